//! Appending: checks, offsets, idempotence; and moving a log's start.

use tidemill_wal::format::{BatchEntry, PartitionId};
use tidemill_wal::mutation::{self, Mutation};

use super::{Appending, Outgoing, Shard};
use crate::batch::{self, RecordBatch};
use crate::command::{Appended, PartitionFacts, Produce, Refusal, Reply, Storage, Ticket};
use crate::effect::{Change, Effect, Now};
use crate::partition::producer::Verdict;
use crate::state::Kind;

impl Shard {
    /// Appends batches, each of which is taken or refused by itself.
    pub(super) fn produce(
        &mut self,
        now: Now,
        ticket: Ticket,
        produce: Produce,
        effects: &mut Vec<Effect>,
    ) {
        let results = produce
            .batches
            .into_iter()
            .map(|(partition, batch)| self.append(now, partition, &batch))
            .collect();
        let reply = Outgoing::Reply(ticket, Reply::Produce(results));
        if mutation::is_on(Mutation::AnswerDuplicateEarly) && self.wal.is_filling_empty() {
            return self.release(reply, effects);
        }
        self.hold(reply, effects);
    }

    fn append(
        &mut self,
        now: Now,
        id: PartitionId,
        batch: &RecordBatch,
    ) -> Result<Appended, Refusal> {
        let has_room = self.has_room(batch.size());
        let refusal_of_room = self.refusal_of_room();
        let partition = self.partitions.get_mut(&id).ok_or(Refusal::UnknownPartition)?;
        if batch.size() > partition.config.batch_size_max as usize {
            return Err(Refusal::BatchTooLarge);
        }
        let append_time_ms = partition.config.append_time.then_some(now.wall_ms);
        let start = partition.log.start();
        match partition.producers.check(batch) {
            Verdict::Append => {}
            Verdict::Duplicate { base_offset } => {
                return Ok(Appended { base_offset, append_time_ms, start });
            }
            Verdict::Refuse(refusal) => return Err(refusal),
        }
        if !has_room {
            return Err(refusal_of_room);
        }
        let base_offset = self.fill(now, id, batch).ok_or(Refusal::UnknownPartition)?;
        Ok(Appended { base_offset, append_time_ms, start })
    }

    /// Adds a batch to the filling frame, which it must fit; returns its first offset, or none if its
    /// partition is not there.
    pub(super) fn fill(&mut self, now: Now, id: PartitionId, batch: &RecordBatch) -> Option<u64> {
        let partition = self.partitions.get_mut(&id)?;
        let append_time_ms = partition.config.append_time.then_some(now.wall_ms);
        let base_offset = partition.log.reserve(batch.record_count());
        let last_offset = partition.log.end() - 1;
        let max_timestamp_ms = append_time_ms.unwrap_or_else(|| batch.max_timestamp_ms());
        let entry = BatchEntry { partition: id, base_offset, last_offset, max_timestamp_ms };
        let range = self.wal.append_batch(entry, batch.bytes());
        let stored = self.wal.filling_bytes_mut(range.clone());
        batch::stamp(stored, base_offset, 0);
        if let Some(append_time_ms) = append_time_ms {
            batch::stamp_append_time(stored, append_time_ms);
        }
        partition.producers.on_appended(batch, base_offset, now.wall_ms);
        if batch.producer_id() >= 0 {
            self.dirty_producers.insert((id, batch.producer_id()));
        }
        self.dirty_partitions.insert(id);
        self.topologies.on_appended(id, self.wal.filling(), self.appending.len());
        self.appending.push(Appending {
            partition: id,
            base_offset,
            last_offset,
            max_timestamp_ms,
            range,
        });
        Some(base_offset)
    }

    pub(super) fn delete_records(&mut self, wanted: Vec<(PartitionId, Option<u64>)>) -> Reply {
        let results = wanted
            .into_iter()
            .map(|(id, offset)| {
                let partition = self.partitions.get(&id).ok_or(Refusal::UnknownPartition)?;
                let end = partition.log.durable_end();
                let offset = offset.unwrap_or(end);
                if offset > end || offset < partition.log.start() {
                    return Err(Refusal::OffsetOutOfRange);
                }
                self.advance_start(id, offset);
                Ok(offset)
            })
            .collect();
        Reply::DeleteRecords(results)
    }

    /// Moves the start of a log, durably: what is below is gone for readers at once, and from the
    /// disk with the next manifest.
    pub(super) fn advance_start(&mut self, id: PartitionId, offset: u64) {
        if !self.deferred.is_empty() {
            // Its frame is not known yet. No command comes in meanwhile, and retention comes again.
            return;
        }
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        if !partition.log.advance_start(offset) {
            return;
        }
        let start = partition.log.start();
        partition.changed_in = self.wal.filling();
        let change = partition_change(id, start, partition.log.end());
        self.record(change);
        if mutation::is_on(Mutation::DropBeforeDurable) {
            self.store.drop_below(id, start);
        }
        self.hold(Outgoing::Drop(id, start), &mut Vec::new());
    }

    pub(super) fn describe_partitions(&self, wanted: &[PartitionId]) -> Reply {
        let facts = |id: &PartitionId| {
            let partition = self.partitions.get(id).ok_or(Refusal::UnknownPartition)?;
            Ok(PartitionFacts {
                start: partition.log.start(),
                durable_end: partition.log.durable_end(),
                size: self.store.size_of(*id) + partition.log.tail_size(),
            })
        };
        Reply::DescribePartitions(wanted.iter().map(facts).collect())
    }

    pub(super) fn describe_producers(&self, wanted: &[PartitionId]) -> Reply {
        let facts = |id: &PartitionId| {
            let partition = self.partitions.get(id).ok_or(Refusal::UnknownPartition)?;
            Ok(partition.producers.facts())
        };
        Reply::DescribeProducers(wanted.iter().map(facts).collect())
    }

    /// Directory and free space are the runtime's to fill in: the shard knows no file system.
    pub(super) fn describe_storage(&self) -> Reply {
        let mut partitions: Vec<(PartitionId, u64)> = self
            .partitions
            .iter()
            .map(|(id, partition)| (*id, self.store.size_of(*id) + partition.log.tail_size()))
            .collect();
        partitions.sort_unstable();
        Reply::DescribeStorage(Storage {
            directory: String::new(),
            total: 0,
            usable: 0,
            partitions,
        })
    }
}

/// The stored facts of a partition: start and end, little-endian.
pub(super) fn partition_change(id: PartitionId, start: u64, end: u64) -> Change {
    let mut value = start.to_le_bytes().to_vec();
    value.extend_from_slice(&end.to_le_bytes());
    Change { key: Kind::Partition.key(&[&id.topic.0, &id.index.to_be_bytes()]), value: Some(value) }
}
