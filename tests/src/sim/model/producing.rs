//! The rules of appending: what each answer to a batch may be, where batches go, and in what order.

use std::collections::BTreeMap;

use tidemill::batch::{BatchBuilder, NewRecord, RecordBatch};
use tidemill::command::{Appended, Refusal};
use tidemill_wal::format::{PartitionId, ShardId};

use super::clock::Moment;
use super::{Check, Model, require};
use crate::sim::random::Random;

/// Batches that are remembered of a producer.
const REMEMBERED: usize = 5;

/// Who makes a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Author {
    /// A connection of a producer without an id, by a number of its own.
    Plain(u64),
    /// An idempotent one.
    Idempotent {
        /// Its id.
        id: i64,
        /// Its epoch.
        epoch: i16,
        /// Sequence number of the batch's first record.
        sequence: i32,
    },
}

impl Author {
    /// Batches of one lane of a partition are in the order in which they were made.
    fn lane(self) -> i64 {
        match self {
            Self::Plain(number) => -1 - number as i64,
            Self::Idempotent { id, .. } => id,
        }
    }
}

/// A batch that a producer made. Its number is in its first record.
#[derive(Debug)]
pub struct Sent {
    /// Where it belongs.
    pub partition: PartitionId,
    /// As the client built it.
    pub batch: RecordBatch,
    /// Where it is, once that is known.
    pub base: Option<u64>,
    /// It was refused and must never appear.
    pub is_refused: bool,
    /// It was acknowledged.
    pub is_acknowledged: bool,
    /// When it was sent first.
    pub(super) first_tried: Moment,
    author: Author,
    tries: u32,
}

/// One try to append a batch, with what was known when it was sent.
#[derive(Debug, Clone, Copy)]
pub struct Try {
    /// The batch.
    pub number: usize,
    /// The newest epoch of its producer that the partition acknowledged.
    epoch_acknowledged: i16,
    /// Its shard may not know the partition yet.
    is_early: bool,
}

/// The batches of one producer in one partition.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// All, in the order in which they were made.
    made: Vec<usize>,
    /// Those that are known to be there, by offset.
    log: BTreeMap<u64, usize>,
    epoch_acknowledged: i16,
}

impl Model {
    /// Makes a batch with contents that no other has.
    pub fn make_batch(
        &mut self,
        random: &mut Random,
        partition: PartitionId,
        author: Author,
        shape: (u64, u64),
        wall_ms: i64,
    ) -> usize {
        let number = self.sent.len();
        let (count, size) = shape;
        let mut builder = BatchBuilder::new();
        if let Author::Idempotent { id, epoch, sequence } = author {
            builder = builder.producer(id, epoch, sequence);
        }
        let items = self.build_items(random, partition, &builder, shape, wall_ms);
        if let Some(batch) = items {
            return self.add_batch(partition, author, batch);
        }
        let mut value = vec![0; size.max(8) as usize];
        for index in 0..count {
            let fill = random.bits().to_le_bytes();
            for chunk in value.chunks_mut(8) {
                chunk.copy_from_slice(&fill[..chunk.len()]);
            }
            value[..8].copy_from_slice(&(number as u64 | index << 40).to_le_bytes());
            let timestamp_ms = wall_ms - random.below(3) as i64;
            builder.push(NewRecord { timestamp_ms, key: None, value: Some(&value), headers: &[] });
        }
        self.add_batch(partition, author, builder.build())
    }

    /// A batch that a client has made, and will send.
    pub(super) fn add_batch(
        &mut self,
        partition: PartitionId,
        author: Author,
        batch: RecordBatch,
    ) -> usize {
        let number = self.sent.len();
        if let Some(known) = self.partitions.get_mut(&partition) {
            known.unplaced_size += batch.size() as u64;
        }
        self.lanes.entry((partition, author.lane())).or_default().made.push(number);
        self.sent.push(Sent {
            partition,
            batch,
            base: None,
            is_refused: false,
            is_acknowledged: false,
            first_tried: self.clock.moment(),
            author,
            tries: 0,
        });
        number
    }

    /// A batch goes to its shard, for the first time or again.
    pub fn on_tried(&mut self, number: usize, shard: ShardId) -> Try {
        let is_early = !self.is_current(shard);
        let sent = &mut self.sent[number];
        sent.tries += 1;
        // Its refusal was not heard, or its author thinks otherwise: it may be taken now.
        if std::mem::take(&mut sent.is_refused)
            && let Some(known) = self.partitions.get_mut(&sent.partition)
        {
            known.unplaced_size += sent.batch.size() as u64;
        }
        if sent.tries == 1 {
            sent.first_tried = self.clock.moment();
        }
        let lane = self.lanes.get(&(sent.partition, sent.author.lane()));
        let epoch_acknowledged = lane.map_or(0, |lane| lane.epoch_acknowledged);
        Try { number, epoch_acknowledged, is_early }
    }

    /// A try was answered.
    pub fn on_produced(&mut self, of: &Try, result: &Result<Appended, Refusal>) -> Check {
        match result {
            Ok(appended) => self.on_acknowledged(of, appended.base_offset),
            Err(refusal) => self.on_refused(of, *refusal),
        }
    }

    fn on_acknowledged(&mut self, of: &Try, base: u64) -> Check {
        let sent = &self.sent[of.number];
        let (partition, count) = (sent.partition, u64::from(sent.batch.record_count()));
        let (size, from_us) = (sent.batch.size(), sent.first_tried.now_us);
        if let Author::Idempotent { epoch, .. } = sent.author {
            require(epoch >= of.epoch_acknowledged || self.may_forget_lane(of.number), || {
                let newer = of.epoch_acknowledged;
                format!("batch {} of epoch {epoch} is taken after epoch {newer}", of.number)
            })?;
            let lane = self.lanes.entry((partition, sent.author.lane())).or_default();
            lane.epoch_acknowledged = lane.epoch_acknowledged.max(epoch);
        }
        if self.topic(partition.topic).is_some() {
            let mut configs = self.settings.since(partition.topic, from_us);
            require(configs.any(|config| size <= config.batch_size_max as usize), || {
                format!("batch {} of {size} bytes is larger than its topic allows", of.number)
            })?;
        }
        self.counts.repeated_batches += u64::from(self.sent[of.number].base.is_some());
        if !std::mem::replace(&mut self.sent[of.number].is_acknowledged, true) {
            self.counts.records += count;
        }
        self.place(of.number, base)?;
        if let Some(known) = self.partitions.get_mut(&partition) {
            known.end = known.end.max(base + count);
        }
        Ok(())
    }

    /// Whether the answer is one that the rules allow.
    fn on_refused(&mut self, of: &Try, refusal: Refusal) -> Check {
        let sent = &self.sent[of.number];
        let (partition, size) = (sent.partition, sent.batch.size());
        let is_idempotent = matches!(sent.author, Author::Idempotent { .. });
        let is_allowed = match refusal {
            Refusal::Busy | Refusal::DiskFull | Refusal::Stopping => true,
            Refusal::UnknownPartition => of.is_early || self.is_deleting(partition.topic),
            // Of a topic that is gone nobody knows any more what it allowed.
            Refusal::BatchTooLarge if self.topic(partition.topic).is_none() => true,
            Refusal::BatchTooLarge => self
                .settings
                .since(partition.topic, sent.first_tried.now_us)
                .any(|config| size > config.batch_size_max as usize),
            Refusal::OutOfOrderSequence
            | Refusal::DuplicateSequence
            | Refusal::InvalidProducerEpoch => {
                is_idempotent
                    && (self.may_refuse(of.number, refusal) || self.may_forget_lane(of.number))
            }
            _ => false,
        };
        require(is_allowed, || {
            format!("batch {} for {partition:?} is refused: {refusal:?}", of.number)
        })?;
        match refusal {
            Refusal::UnknownPartition => self.counts.early_batches += u64::from(of.is_early),
            Refusal::BatchTooLarge => self.counts.refused_sizes += 1,
            Refusal::InvalidProducerEpoch => self.counts.fenced_epochs += 1,
            Refusal::OutOfOrderSequence | Refusal::DuplicateSequence => {
                self.counts.refused_sequences += 1;
            }
            _ => {}
        }
        // Another try may have come through.
        if self.sent[of.number].tries > 1 {
            return Ok(());
        }
        let sent = &mut self.sent[of.number];
        let is_final = !is_idempotent || refusal == Refusal::BatchTooLarge;
        if is_final && !std::mem::replace(&mut sent.is_refused, true) {
            require(sent.base.is_none(), || {
                format!("batch {} is there and was refused", of.number)
            })?;
            if let Some(known) = self.partitions.get_mut(&partition) {
                known.unplaced_size -= size as u64;
            }
        }
        Ok(())
    }

    /// The rules of idempotence, for a producer that is not forgotten.
    fn may_refuse(&self, number: usize, refusal: Refusal) -> bool {
        let sent = &self.sent[number];
        let Some(lane) = self.lanes.get(&(sent.partition, sent.author.lane())) else {
            return false;
        };
        let epoch = |number: usize| self.sent[number].batch.producer_epoch();
        let (before, after) = lane.made.split_at(lane.made.partition_point(|made| *made < number));
        let mut before = before.iter().rev().take_while(|made| epoch(**made) == epoch(number));
        let after = after.get(1..).unwrap_or_default();
        match refusal {
            // One before it is missing.
            Refusal::OutOfOrderSequence => before.any(|made| !self.sent[*made].is_acknowledged),
            // Only so many are remembered.
            Refusal::DuplicateSequence => {
                after.iter().filter(|made| epoch(**made) == epoch(number)).count() >= REMEMBERED
            }
            Refusal::InvalidProducerEpoch => {
                after.last().is_some_and(|made| epoch(*made) > epoch(number))
            }
            _ => false,
        }
    }

    /// Whether its producer may have been silent after it for so long that it was forgotten.
    fn may_forget(&self, number: usize) -> bool {
        let is_remembered = self.sent[number].batch.producer_id() >= 0;
        is_remembered
            && self.clock.may_have_passed(self.sent[number].first_tried, self.producer_expiry_ms)
    }

    /// Whether its producer may ever have been forgotten. Then the rules of order are off: old
    /// batches may have come once more.
    fn may_forget_lane(&self, number: usize) -> bool {
        let sent = &self.sent[number];
        let lane = self.lanes.get(&(sent.partition, sent.author.lane()));
        lane.and_then(|lane| lane.made.first()).is_none_or(|first| self.may_forget(*first))
    }

    /// Whether any producer may ever have been forgotten.
    pub(super) fn may_any_be_forgotten(&self) -> bool {
        self.sent.first().is_some_and(|sent| {
            self.clock.may_have_passed(sent.first_tried, self.producer_expiry_ms)
        })
    }

    /// A batch is at this offset: it is at no other, nothing else is there, and what its producer
    /// made before it is before it.
    pub(super) fn place(&mut self, number: usize, base: u64) -> Check {
        let (may_forget, may_forget_lane) = (self.may_forget(number), self.may_forget_lane(number));
        let sent = &mut self.sent[number];
        require(!sent.is_refused, || format!("batch {number} was refused, but is at {base}"))?;
        let old = sent.base.replace(base);
        if let Some(old) = old {
            require(old == base || may_forget, || {
                format!("batch {number} is at {old}, and again at {base}")
            })?;
        }
        let end = base + u64::from(sent.batch.record_count());
        let Some(partition) = self.partitions.get_mut(&sent.partition) else { return Ok(()) };
        if old.is_none() {
            partition.unplaced_size -= sent.batch.size() as u64;
        }
        let before = partition.log.range(..end).next_back();
        if let Some((known, (known_end, known_number))) = before
            && *known_end > base
        {
            require(*known == base && *known_number == number, || {
                format!("batch {number} is at {base}, where batch {known_number} was ({known})")
            })?;
        }
        if partition.log.insert(base, (end, number)).is_some() {
            return Ok(());
        }
        let lane = self.lanes.entry((sent.partition, sent.author.lane())).or_default();
        lane.log.insert(base, number);
        let before = lane.log.range(..base).next_back();
        let after = lane.log.range(base + 1..).next();
        let is_in_order = before.is_none_or(|(_, made)| *made < number)
            && after.is_none_or(|(_, made)| *made > number);
        require(is_in_order || may_forget_lane, || {
            format!(
                "batch {number} is at {base}, out of its producer's order: {before:?} {after:?}"
            )
        })
    }

    /// Everything readable was just read: no producer has a gap.
    pub fn check_producers(&self) -> Check {
        // A partition that forgot any may take an older one for one that goes on.
        let may_any_be_forgotten = self.may_any_be_forgotten();
        for ((id, _), lane) in &self.lanes {
            let Some(partition) = self.partitions.get(id) else { continue };
            let mut readable = lane.log.range(partition.start..partition.end);
            let Some((base, mut last)) = readable.next() else { continue };
            let first = &self.sent[*last].batch;
            let is_due = first.producer_id() < 0 || first.base_sequence() == 0;
            require(is_due || partition.start > 0 || may_any_be_forgotten, || {
                format!("{id:?}: batch {last} at {base} begins its producer with a gap")
            })?;
            for (base, number) in readable {
                let (old, new) = (&self.sent[*last].batch, &self.sent[*number].batch);
                let due = match old.producer_epoch() == new.producer_epoch() {
                    true => old.last_sequence().checked_add(1).unwrap_or(0),
                    false => 0,
                };
                let is_due = new.producer_id() < 0 || new.base_sequence() == due;
                require(is_due || self.may_forget_lane(*last), || {
                    format!("{id:?}: batch {number} at {base} follows batch {last} with a gap")
                })?;
                last = number;
            }
        }
        Ok(())
    }

    /// A batch that was acknowledged or seen in a partition that is there, to be sent once more.
    pub fn old_batch(&self, random: &mut Random) -> Option<usize> {
        if self.sent.is_empty() {
            return None;
        }
        let number = random.below(self.sent.len() as u64) as usize;
        let sent = &self.sent[number];
        let is_fit = sent.base.is_some()
            && matches!(sent.author, Author::Idempotent { .. })
            && self.is_alive(sent.partition);
        is_fit.then_some(number)
    }
}
