//! What must be true: everything that was acknowledged or shown, and what may have happened to the
//! rest. Each reply is compared with it when it leaves the shard, for from then on a client may
//! have it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tidemill::batch::{BatchBuilder, HEADER_SIZE, NewRecord, RecordBatch, batches};
use tidemill::command::{Fetched, Refusal, Routes, TopicRoute};
use tidemill_wal::format::{PartitionId, ShardId, TopicId};

use super::random::Random;

/// Whether an expectation held; if not, why not.
pub type Check = Result<(), String>;

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
}

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
}

/// What a client knew of a partition when it asked: answers must not be older.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    start: u64,
    end: u64,
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

/// A committed offset and what else it may be.
#[derive(Debug, Default)]
struct Committed {
    value: Option<u64>,
    /// Commits without an answer, oldest first.
    open: Vec<u64>,
}

/// The model.
#[derive(Debug, Default)]
pub struct Model {
    /// Every batch that was ever sent.
    pub sent: Vec<Sent>,
    partitions: BTreeMap<PartitionId, Partition>,
    producer_ids: BTreeSet<i64>,
    committed: BTreeMap<(String, PartitionId), Committed>,
    /// Pictures of the catalog by version; each was durable when it was published.
    pictures: BTreeMap<u64, Arc<Routes>>,
    /// Version that every shard has durable.
    version_everywhere: u64,
    /// Newest version that each shard published, over all its lives.
    published: Vec<u64>,
    /// Topics for whose deletion somebody asked.
    deleting: BTreeSet<TopicId>,
    /// Topics that ever had a limit of age or size.
    expiring: BTreeSet<TopicId>,
    /// Records acknowledged.
    pub records_acknowledged: u64,
    /// Bytes of batches read and compared.
    pub bytes_compared: u64,
}

fn require(condition: bool, why: impl FnOnce() -> String) -> Check {
    if condition { Ok(()) } else { Err(why()) }
}

impl Model {
    /// Nothing happened yet.
    pub fn new(shard_count: u16) -> Self {
        Self { published: vec![0; usize::from(shard_count)], ..Self::default() }
    }

    /// Makes a batch with contents that no other has.
    pub fn make_batch(
        &mut self,
        random: &mut Random,
        partition: PartitionId,
        producer: Option<(i64, i32)>,
        shape: (u64, u64),
        wall_ms: i64,
    ) -> usize {
        let number = self.sent.len();
        let (count, size) = shape;
        let mut builder = BatchBuilder::new();
        if let Some((id, sequence)) = producer {
            builder = builder.producer(id, 0, sequence);
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
        let batch = builder.build();
        self.sent.push(Sent { partition, batch, base: None, is_refused: false });
        number
    }

    /// What is known of a partition now.
    pub fn known(&self, partition: PartitionId) -> Known {
        let known = self.partitions.get(&partition);
        known.map_or(Known { start: 0, end: 0 }, |known| Known {
            start: known.start,
            end: known.end,
        })
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
        for topic in routes.topics.values() {
            if topic.config.retention_ms.is_some() || topic.config.retention_bytes.is_some() {
                self.expiring.insert(topic.id);
            }
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
        Ok(())
    }

    /// A change of the catalog was acknowledged: every shard has it.
    pub fn on_catalog_acknowledged(&mut self) {
        self.version_everywhere = self.pictures.last_key_value().map_or(0, |(version, _)| *version);
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

    /// Whether limits of age or size may drop records.
    pub fn may_expire(&self, topic: TopicId) -> bool {
        self.expiring.contains(&topic)
    }

    /// Somebody asks for limits: from now on records may go.
    pub fn on_expiry_asked(&mut self, topic: TopicId) {
        self.expiring.insert(topic);
    }

    /// A batch was acknowledged at this offset.
    pub fn on_acknowledged(&mut self, number: usize, base: u64) -> Check {
        let is_new = self.sent[number].base.is_none();
        self.place(number, base)?;
        let (partition, count) = {
            let sent = &self.sent[number];
            (sent.partition, u64::from(sent.batch.record_count()))
        };
        if is_new {
            self.records_acknowledged += count;
        }
        if let Some(known) = self.partitions.get_mut(&partition) {
            known.end = known.end.max(base + count);
        }
        Ok(())
    }

    /// A batch was refused, and no other try of it may have come through.
    pub fn on_refused(&mut self, number: usize) -> Check {
        let sent = &mut self.sent[number];
        sent.is_refused = true;
        require(sent.base.is_none(), || format!("batch {number} is there and was refused"))
    }

    /// A batch is at this offset: it is at no other, and nothing else is there.
    fn place(&mut self, number: usize, base: u64) -> Check {
        let sent = &mut self.sent[number];
        require(!sent.is_refused, || format!("batch {number} was refused, but is at {base}"))?;
        if let Some(old) = sent.base {
            require(old == base, || format!("batch {number} is at {old}, and again at {base}"))?;
        }
        sent.base = Some(base);
        let end = base + u64::from(sent.batch.record_count());
        let Some(partition) = self.partitions.get_mut(&sent.partition) else { return Ok(()) };
        let before = partition.log.range(..end).next_back();
        if let Some((known, (known_end, known_number))) = before
            && *known_end > base
        {
            require(*known == base && *known_number == number, || {
                format!("batch {number} is at {base}, where batch {known_number} was ({known})")
            })?;
        }
        partition.log.insert(base, (end, number));
        Ok(())
    }

    /// Compares one stored batch with what was sent.
    fn compare(&mut self, partition: PartitionId, stored: &RecordBatch) -> Check {
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
        self.bytes_compared += new.len() as u64;
        self.place(number, base)
    }

    /// Checks a batch that an offset query found.
    pub fn on_found(&mut self, partition: PartitionId, batch: &RecordBatch) -> Check {
        self.compare(partition, batch)
    }

    /// Checks what a fetch says about a partition's bounds.
    pub fn on_bounds(&mut self, id: PartitionId, asked: Known, bounds: (u64, u64)) -> Check {
        let (start, end) = bounds;
        let may_expire = self.may_expire(id.topic);
        let Some(partition) = self.partitions.get_mut(&id) else { return Ok(()) };
        require(start <= end, || format!("{id:?} starts at {start} and ends at {end}"))?;
        require(start >= asked.start, || {
            format!("{id:?} started at {}, now at {start}", asked.start)
        })?;
        require(end >= asked.end, || format!("{id:?} ended at {}, now at {end}", asked.end))?;
        require(may_expire || start <= partition.start_asked, || {
            format!("{id:?} starts at {start}, asked was {}", partition.start_asked)
        })?;
        partition.start = partition.start.max(start);
        partition.end = partition.end.max(end);
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
            Ok(pieces) => pieces,
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

    /// The start is acknowledged to be at least here.
    pub fn on_start(&mut self, id: PartitionId, offset: u64) {
        if let Some(partition) = self.partitions.get_mut(&id) {
            partition.start = partition.start.max(offset);
            partition.end = partition.end.max(offset);
        }
    }

    /// A producer id was granted.
    pub fn on_producer_id(&mut self, id: i64) -> Check {
        require(self.producer_ids.insert(id), || format!("producer id {id} was granted twice"))
    }

    /// An offset is on its way to be committed.
    pub fn on_commit_asked(&mut self, group: &str, partition: PartitionId, offset: u64) {
        self.committed.entry((group.to_owned(), partition)).or_default().open.push(offset);
    }

    /// A commit was answered.
    pub fn on_commit(&mut self, group: &str, partition: PartitionId, offset: u64, is_done: bool) {
        let Some(known) = self.committed.get_mut(&(group.to_owned(), partition)) else { return };
        if is_done {
            known.take(offset);
        } else {
            known.open.retain(|open| *open != offset);
        }
    }

    /// A committed offset was shown.
    pub fn on_committed_shown(
        &mut self,
        group: &str,
        partition: PartitionId,
        shown: Option<u64>,
    ) -> Check {
        if !self.is_alive(partition) {
            return Ok(());
        }
        let Some(known) = self.committed.get_mut(&(group.to_owned(), partition)) else {
            return require(shown.is_none(), || format!("{group} never committed {shown:?}"));
        };
        match shown {
            Some(offset) if known.open.contains(&offset) => known.take(offset),
            shown => require(shown == known.value, || {
                format!("{group} {partition:?} committed {known:?}, shown is {shown:?}")
            })?,
        }
        Ok(())
    }

    /// Every committed offset of a group.
    pub fn groups(&self) -> BTreeMap<String, Vec<PartitionId>> {
        let mut groups: BTreeMap<String, Vec<PartitionId>> = BTreeMap::new();
        for (group, partition) in self.committed.keys() {
            if self.is_alive(*partition) {
                groups.entry(group.clone()).or_default().push(*partition);
            }
        }
        groups
    }
}

impl Committed {
    /// This one is durable; what was asked for before it was overwritten by it.
    fn take(&mut self, offset: u64) {
        self.value = Some(offset);
        if let Some(index) = self.open.iter().position(|open| *open == offset) {
            self.open.drain(..=index);
        }
    }
}

/// The number in the first record's value.
fn number_of(batch: &RecordBatch) -> Option<usize> {
    let mut rest = batch.bytes().get(HEADER_SIZE..)?;
    skip_varint(&mut rest)?; // Size of the record.
    rest = rest.get(1..)?; // Attributes.
    for _ in 0..4 {
        skip_varint(&mut rest)?; // Time, offset, no key, size of the value.
    }
    let number = u64::from_le_bytes(rest.get(..8)?.try_into().ok()?);
    usize::try_from(number & ((1 << 40) - 1)).ok()
}

fn skip_varint(from: &mut &[u8]) -> Option<()> {
    let size = from.iter().position(|byte| byte & 0x80 == 0)? + 1;
    *from = &from[size..];
    Some(())
}
