//! What must be true: everything that was acknowledged or shown, and what may have happened to the
//! rest. Each reply is compared with it when it leaves the shard, for from then on a client may
//! have it.

mod clock;
mod groups;
mod producing;
mod retention;
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tidemill::batch::{HEADER_SIZE, RecordBatch, batches};
use tidemill::command::{Fetched, Refusal, Routes, TopicConfig, TopicRoute};
use tidemill_wal::format::{PartitionId, ShardId, TopicId};

use self::clock::Clock;
pub use self::groups::MemberAsked;
pub use self::producing::{Author, Sent, Try};
use super::counts::Counts;
use super::plan::Plan;

/// Whether an expectation held; if not, why not.
pub type Check = Result<(), String>;

/// What is known of one partition.
#[derive(Debug, Default)]
pub struct Partition {
    /// Known batches: base offset to end and number.
    log: BTreeMap<u64, (u64, usize)>,
    /// Highest start that was acknowledged or shown.
    pub start: u64,
    /// Highest start that anybody asked for.
    pub start_asked: u64,
    /// Everything below was acknowledged or shown.
    pub end: u64,
    /// The start cannot have moved before this without the model's knowing.
    confirmed_us: u64,
    /// Bytes of batches that were made and may be there or not.
    unplaced_size: u64,
}

/// What a client knew of a partition when it asked: answers must not be older.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    start: u64,
    end: u64,
    asked_us: u64,
}

impl Known {
    /// First offset that can be read.
    pub fn start(self) -> u64 {
        self.start
    }

    /// Everything below was acknowledged or shown.
    pub fn end(self) -> u64 {
        self.end
    }
}

/// The model.
#[derive(Debug, Default)]
pub struct Model {
    /// Every batch that was ever sent.
    pub sent: Vec<Sent>,
    partitions: BTreeMap<PartitionId, Partition>,
    producer_ids: BTreeSet<i64>,
    lanes: BTreeMap<(PartitionId, i64), producing::Lane>,
    groups: BTreeMap<String, groups::Group>,
    settings: retention::Settings,
    ledger: streams::Ledger,
    clock: Clock,
    /// When the clients were done.
    load_ended: Clock,
    /// Retention was looked at since the machine's clock showed this.
    expired_at_ms: i64,
    producer_expiry_ms: u64,
    offsets_retention_ms: u64,
    empty_group_ms: u64,
    /// Pictures of the catalog by version; each was durable when it was published.
    pictures: BTreeMap<u64, Arc<Routes>>,
    /// Version that every shard has durable.
    version_everywhere: u64,
    /// Newest version that each shard published, over all its lives.
    published: Vec<u64>,
    /// Topics for whose deletion somebody asked.
    deleting: BTreeSet<TopicId>,
    /// Topics that no shard knows any more.
    gone: Vec<TopicId>,
    /// What was checked, as far as only the model sees it.
    pub counts: Counts,
}

fn require(condition: bool, why: impl FnOnce() -> String) -> Check {
    if condition { Ok(()) } else { Err(why()) }
}

impl Model {
    /// Nothing happened yet.
    pub fn new(plan: &Plan) -> Self {
        let group = plan.group_limits();
        Self {
            published: vec![0; usize::from(plan.shard_count)],
            producer_expiry_ms: plan.producer_expiry_ms,
            offsets_retention_ms: group.offsets_retention_ms,
            empty_group_ms: group.empty_group_ms,
            ledger: streams::Ledger::new(plan),
            ..Self::default()
        }
    }

    /// The clocks show this.
    pub fn on_clock(&mut self, now_us: u64, wall_ms: i64) {
        self.clock.advance(now_us, wall_ms);
    }

    /// The latest that anybody can have seen on the machine's clock.
    pub fn wall_ms_max(&self) -> i64 {
        self.clock.wall_ms_max()
    }

    /// The node is back; what was open in its last life has no answer.
    pub fn on_restart(&mut self) {
        self.restart_groups();
    }

    /// What is known of a partition now.
    pub fn known(&self, partition: PartitionId) -> Known {
        let asked_us = self.clock.now_us;
        let known = self.partitions.get(&partition);
        let (start, end) = known.map_or((0, 0), |known| (known.start, known.end));
        Known { start, end, asked_us }
    }

    /// The newest picture of the catalog.
    pub fn picture(&self) -> Option<&Arc<Routes>> {
        self.pictures.last_key_value().map(|(_, picture)| picture)
    }

    /// Whether the partition exists as far as anybody was told, and nobody wants it gone.
    pub fn is_alive(&self, partition: PartitionId) -> bool {
        !self.deleting.contains(&partition.topic)
            && self
                .picture()
                .and_then(|picture| picture.ids.get(&partition.topic))
                .is_some_and(|topic| partition.index < topic.partition_count)
    }

    /// Partitions that exist and that nobody wants gone, with their shards.
    pub fn existing(&self) -> Vec<(PartitionId, ShardId)> {
        let Some(picture) = self.picture() else { return Vec::new() };
        let mut existing = Vec::new();
        for topic in picture.topics.values() {
            if !self.deleting.contains(&topic.id) {
                let indexes = 0..topic.partition_count;
                existing
                    .extend(indexes.map(|index| (topic.partition(index), topic.shard_of(index))));
            }
        }
        existing.sort_unstable();
        existing
    }

    /// The same, without those whose shard does not know the newest catalog yet.
    pub fn alive(&self) -> Vec<(PartitionId, ShardId)> {
        let mut alive = self.existing();
        alive.retain(|(_, shard)| self.is_current(*shard));
        alive
    }

    /// Whether the shard has told everybody of the newest catalog.
    pub fn is_current(&self, shard: ShardId) -> bool {
        let newest = self.pictures.last_key_value().map_or(0, |(version, _)| *version);
        self.published[usize::from(shard.0)] == newest
    }

    /// A shard publishes a picture.
    pub fn on_routes(&mut self, shard: ShardId, routes: &Arc<Routes>, at_start: bool) -> Check {
        let version = routes.version;
        let newest = self.pictures.last_key_value().map_or(0, |(version, _)| *version);
        let published = &mut self.published[usize::from(shard.0)];
        require(version >= *published, || {
            format!("{shard:?} published catalog {published}, now {version}")
        })?;
        require(!at_start || version >= self.version_everywhere, || {
            let everywhere = self.version_everywhere;
            format!("{shard:?} starts with catalog {version}, acknowledged was {everywhere}")
        })?;
        *published = version;
        match self.pictures.get(&version) {
            Some(known) => require(known.topics == routes.topics, || {
                format!("{shard:?} shows another catalog of version {version}")
            })?,
            None => {
                require(shard == ShardId(0), || {
                    format!("{shard:?} has catalog {version}, but shard 0 only {newest}")
                })?;
                self.pictures.insert(version, routes.clone());
                self.on_new_picture(routes)?;
            }
        }
        Ok(())
    }

    fn on_new_picture(&mut self, routes: &Arc<Routes>) -> Check {
        self.settings.on_picture(routes);
        for topic in routes.topics.values() {
            for index in 0..topic.partition_count {
                self.partitions.entry(topic.partition(index)).or_default();
            }
        }
        let gone: Vec<PartitionId> = (self.partitions.keys())
            .filter(|partition| !routes.ids.contains_key(&partition.topic))
            .copied()
            .collect();
        for partition in gone {
            require(self.deleting.contains(&partition.topic), || {
                format!("{partition:?} is gone, and nobody asked for that")
            })?;
            self.partitions.remove(&partition);
        }
        self.lanes.retain(|(partition, _), _| self.partitions.contains_key(partition));
        Ok(())
    }

    /// A change of the catalog was acknowledged: every shard has it.
    pub fn on_catalog_acknowledged(&mut self) {
        self.version_everywhere = self.pictures.last_key_value().map_or(0, |(version, _)| *version);
        self.settings.on_everywhere(self.clock.now_us);
        let is_gone = |topic: &TopicId| self.topic(*topic).is_none() && !self.gone.contains(topic);
        let gone: Vec<TopicId> = self.deleting.iter().copied().filter(is_gone).collect();
        self.gone.extend(gone);
    }

    /// Topics that no shard knows any more.
    pub fn gone_count(&self) -> usize {
        self.gone.len()
    }

    /// The topic in the newest picture.
    pub fn topic(&self, id: TopicId) -> Option<&Arc<TopicRoute>> {
        self.picture().and_then(|picture| picture.ids.get(&id))
    }

    /// Somebody asks for a topic's deletion: from now on it may go at any time.
    pub fn on_deletion_asked(&mut self, topic: TopicId) {
        self.deleting.insert(topic);
    }

    /// The deletion was refused as a whole, or a crash came first and the topic is still there.
    pub fn on_deletion_undone(&mut self, topic: TopicId) {
        if self.topic(topic).is_some() {
            self.deleting.remove(&topic);
        }
    }

    /// Whether somebody asked for the topic's deletion.
    pub fn is_deleting(&self, topic: TopicId) -> bool {
        self.deleting.contains(&topic)
    }

    /// Compares one stored batch with what was sent.
    fn compare(&mut self, partition: PartitionId, stored: &RecordBatch) -> Check {
        if !self.is_writable(partition) {
            return self.compare_made(partition, stored);
        }
        let base = stored.base_offset();
        let describe = |why: &str| format!("{partition:?} offset {base}: {why}");
        let number = number_of(stored).ok_or_else(|| describe("not a batch that was sent"))?;
        let sent = self.sent.get(number).ok_or_else(|| describe("a batch that nobody sent"))?;
        if sent.partition != partition {
            return Err(describe("a batch of another partition"));
        }
        let (old, new) = (sent.batch.bytes(), stored.bytes());
        let is_same = match stored.is_append_time() {
            true => old[HEADER_SIZE..] == new[HEADER_SIZE..] && old.len() == new.len(),
            false => old[16..] == new[16..] && old[8..12] == new[8..12],
        };
        if !is_same {
            return Err(describe(&format!("not the bytes of batch {number}")));
        }
        self.counts.bytes_compared += new.len() as u64;
        self.place(number, base)
    }

    /// No batch before the one that was found is late enough, of those that are known to stay and
    /// have their producer's time.
    pub fn check_time(
        &self,
        id: PartitionId,
        asked: Known,
        time_ms: i64,
        found: Option<u64>,
    ) -> Check {
        let Some(partition) = self.partitions.get(&id) else { return Ok(()) };
        let mut configs = self.settings.since(id.topic, 0);
        let is_plain = |config: &TopicConfig| {
            let has_limit = config.retention_ms.is_some() || config.retention_bytes.is_some();
            !has_limit && !config.append_time
        };
        let from = partition.start.max(partition.start_asked);
        let below = found.unwrap_or(u64::MAX).min(asked.end);
        if !configs.all(is_plain) || from >= below {
            return Ok(());
        }
        let time_of = |number: usize| self.sent[number].batch.max_timestamp_ms();
        let mut passed = partition.log.range(from..below);
        let passed = passed.find(|(_, (_, number))| time_of(*number) >= time_ms);
        require(passed.is_none(), || {
            format!("{id:?}: at {time_ms} or later is {passed:?}, found was {found:?}")
        })
    }

    /// Checks a batch that an offset query found.
    pub fn on_found(&mut self, partition: PartitionId, batch: &RecordBatch) -> Check {
        self.compare(partition, batch)
    }

    /// Checks what a fetch says about a partition's bounds.
    pub fn on_bounds(&mut self, id: PartitionId, asked: Known, bounds: (u64, u64)) -> Check {
        let (start, end) = bounds;
        self.check_drop(id, start)?;
        let Some(partition) = self.partitions.get_mut(&id) else { return Ok(()) };
        require(start <= end, || format!("{id:?} starts at {start} and ends at {end}"))?;
        require(start >= asked.start, || {
            format!("{id:?} started at {}, now at {start}", asked.start)
        })?;
        partition.start = partition.start.max(start);
        partition.confirmed_us = partition.confirmed_us.max(asked.asked_us);
        self.on_end(id, asked, end)
    }

    /// Checks what is said about a partition's end.
    pub fn on_end(&mut self, id: PartitionId, asked: Known, end: u64) -> Check {
        require(end >= asked.end, || format!("{id:?} ended at {}, now at {end}", asked.end))?;
        if let Some(partition) = self.partitions.get_mut(&id) {
            partition.end = partition.end.max(end);
        }
        Ok(())
    }

    /// Checks one partition of a fetch reply; returns where to go on.
    pub fn on_fetched(
        &mut self,
        id: PartitionId,
        offset: u64,
        asked: Known,
        fetched: &Fetched,
    ) -> Result<u64, String> {
        let records = match &fetched.records {
            Err(Refusal::UnknownPartition) => {
                let is_allowed = self.is_deleting(id.topic);
                require(is_allowed, || format!("{id:?} is unknown"))?;
                return Ok(offset);
            }
            Err(refusal @ (Refusal::Busy | Refusal::Stopping)) => {
                return Err(format!("a fetch is refused: {refusal:?}"));
            }
            records => records,
        };
        self.on_bounds(id, asked, (fetched.start, fetched.durable_end))?;
        let pieces: &[Bytes] = match records {
            Ok(pieces) => {
                // A start that moves while a file is read comes too late for that fetch.
                require(offset >= asked.start, || {
                    format!("{id:?} offset {offset} is read, below its start {}", asked.start)
                })?;
                pieces
            }
            Err(Refusal::OffsetOutOfRange) => {
                let is_outside = offset < fetched.start || offset > fetched.durable_end;
                require(is_outside, || format!("{id:?} offset {offset} is not out of range"))?;
                return Ok(fetched.start.max(offset.min(fetched.durable_end)));
            }
            Err(refusal) => return Err(format!("{id:?} offset {offset}: {refusal:?}")),
        };
        let mut next = offset;
        let mut is_first = true;
        for batch in pieces.iter().flat_map(|piece| batches(piece.clone())) {
            let batch = batch.map_err(|fault| format!("{id:?} offset {next}: {fault}"))?;
            let (base, last) = (batch.base_offset(), batch.last_offset());
            let follows = if is_first { base <= next && next <= last } else { base == next };
            require(follows, || {
                format!("{id:?}: offset {next} is due, a batch from {base} to {last} is there")
            })?;
            require(last < fetched.durable_end, || {
                format!("{id:?}: offset {last} is shown, durable is {}", fetched.durable_end)
            })?;
            self.compare(id, &batch)?;
            next = last + 1;
            is_first = false;
        }
        if let Some(partition) = self.partitions.get_mut(&id) {
            partition.end = partition.end.max(next);
        }
        Ok(next)
    }

    /// Somebody asks for a partition's start to move.
    pub fn on_start_asked(&mut self, id: PartitionId, offset: Option<u64>) {
        if let Some(partition) = self.partitions.get_mut(&id) {
            let offset = offset.unwrap_or(u64::MAX);
            partition.start_asked = partition.start_asked.max(offset);
        }
    }

    /// The start was moved to this offset, or was behind it already.
    pub fn on_start(&mut self, id: PartitionId, offset: u64) {
        if let Some(partition) = self.partitions.get_mut(&id) {
            partition.start = partition.start.max(offset);
            partition.end = partition.end.max(offset);
            // Nobody else moves starts: what was asked for is done.
            partition.start_asked = partition.start;
        }
    }

    /// A producer id was granted.
    pub fn on_producer_id(&mut self, id: i64) -> Check {
        require(self.producer_ids.insert(id), || format!("producer id {id} was granted twice"))
    }
}

/// The number in the first record's value.
fn number_of(batch: &RecordBatch) -> Option<usize> {
    let records = batch.decompress(streams::RECORDS_SIZE_MAX).ok()?;
    let mut rest = &records[..];
    take_varint(&mut rest)?; // Size of the record.
    rest = rest.get(1..)?; // Attributes.
    take_varint(&mut rest)?; // Time.
    take_varint(&mut rest)?; // Offset.
    let key_size = usize::try_from(take_varint(&mut rest)?).unwrap_or(0);
    rest = rest.get(key_size..)?;
    take_varint(&mut rest)?; // Size of the value.
    let number = u64::from_le_bytes(*rest.first_chunk::<8>()?);
    usize::try_from(number & ((1 << 40) - 1)).ok()
}

fn take_varint(from: &mut &[u8]) -> Option<i64> {
    let size = from.iter().position(|byte| byte & 0x80 == 0)? + 1;
    let bits = from.get(..size)?.iter().rev();
    let value = bits.fold(0_u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
    *from = &from[size..];
    Some((value >> 1) as i64 ^ -((value & 1) as i64))
}
