//! What topologies keep beside the state of their operators: how far they are, and what is on its
//! way between shards. Persisted: see `docs/FORMAT.md`.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemill_wal::format::{ENTRY_OVERHEAD_MAX, PartitionId, ShardId, TopicId};

use super::key::NameId;
use super::run::StagePlace;
use super::watermark::Mark;
use crate::state::Kind;

/// How an entry of the outbox begins that a topology made: a count that changes of the catalog never
/// have.
pub const ENTRY_MARK: [u8; 4] = [0xff; 4];

/// What one shard's part of a topology sends to another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageEntry {
    /// The topology.
    pub topology: NameId,
    /// Version of the catalog that its sender had: one who has an older one does not know the topics
    /// yet that it may name.
    pub version: u64,
    /// What it holds, in order.
    pub parts: Vec<Part>,
}

impl StageEntry {
    /// Its bytes: a mark that no other entry of the outbox begins with, topology, version, parts.
    pub fn encode(&self) -> Bytes {
        let mut bytes = ENTRY_MARK.to_vec();
        bytes.extend_from_slice(&self.topology.0.to_le_bytes());
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&encode_parts(&self.parts));
        bytes.into()
    }

    /// The opposite of [`Self::encode`].
    pub fn decode(entry: &Bytes) -> Option<Self> {
        let (topology, rest) = entry.strip_prefix(&ENTRY_MARK)?.split_first_chunk::<8>()?;
        let (version, rest) = rest.split_first_chunk::<8>()?;
        Some(Self {
            topology: NameId(u64::from_le_bytes(*topology)),
            version: u64::from_le_bytes(*version),
            parts: decode_parts(&entry.slice_ref(rest))?,
        })
    }
}

/// What an entry holds for one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Records for a sink's partition.
    Sink {
        /// The partition.
        id: PartitionId,
        /// Its records.
        batch: Bytes,
    },
    /// Records for a stage's partition.
    Stage {
        /// The stage.
        stage: NameId,
        /// Where its keys are, as the sender has it.
        place: StagePlace,
        /// The partition of its keys.
        partition: u32,
        /// The records.
        batch: Bytes,
    },
    /// How far event time has come.
    Mark {
        /// The stage.
        stage: NameId,
        /// How far.
        mark: Mark,
    },
}

const PART_SINK: u8 = 1;
const PART_STAGE: u8 = 2;
const PART_MARK: u8 = 3;
/// The bytes of [`Mark::Idle`]: no time is the greatest there is.
const IDLE_MS: i64 = i64::MAX;

/// Packs the parts of an entry: for each its kind, where it goes, its size, its bytes. Numbers are
/// little-endian.
fn encode_parts<'a>(parts: impl IntoIterator<Item = &'a Part>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut put = |kind: u8, place: &[u8], partition: u32, contents: &[u8]| {
        bytes.push(kind);
        bytes.extend_from_slice(place);
        bytes.extend_from_slice(&partition.to_le_bytes());
        bytes.extend_from_slice(&(contents.len() as u32).to_le_bytes());
        bytes.extend_from_slice(contents);
    };
    for part in parts {
        match part {
            Part::Sink { id, batch } => put(PART_SINK, &id.topic.0, id.index, batch),
            Part::Stage { stage, place, partition, batch } => {
                let count = place.partition_count.to_le_bytes();
                let first = place.first_shard.0.to_le_bytes();
                let place = [&stage.0.to_le_bytes()[..], &count, &first].concat();
                put(PART_STAGE, &place, *partition, batch);
            }
            Part::Mark { stage, mark } => {
                let time_ms = mark_ms(*mark).to_le_bytes();
                put(PART_MARK, &stage.0.to_le_bytes(), 0, &time_ms);
            }
        }
    }
    bytes
}

/// The opposite of [`encode_parts`].
fn decode_parts(bytes: &Bytes) -> Option<Vec<Part>> {
    let mut rest = bytes.clone();
    let mut parts = Vec::new();
    let take = |rest: &mut Bytes, size: usize| (rest.len() >= size).then(|| rest.split_to(size));
    while !rest.is_empty() {
        let kind = take(&mut rest, 1)?[0];
        let place_size = match kind {
            PART_SINK => 16,
            PART_STAGE => 14,
            PART_MARK => 8,
            _ => return None,
        };
        let place = take(&mut rest, place_size)?;
        let partition = u32::from_le_bytes(take(&mut rest, 4)?[..].try_into().ok()?);
        let size = u32::from_le_bytes(take(&mut rest, 4)?[..].try_into().ok()?);
        let contents = take(&mut rest, size as usize)?;
        let stage = || Some(NameId(u64::from_le_bytes(place[..8].try_into().ok()?)));
        parts.push(match kind {
            PART_SINK => {
                let topic = TopicId(place[..].try_into().ok()?);
                Part::Sink { id: PartitionId { topic, index: partition }, batch: contents }
            }
            PART_STAGE => {
                let partition_count = u32::from_le_bytes(place[8..12].try_into().ok()?);
                let first_shard = ShardId(u16::from_le_bytes(place[12..].try_into().ok()?));
                let place = StagePlace { partition_count, first_shard };
                Part::Stage { stage: stage()?, place, partition, batch: contents }
            }
            PART_MARK => {
                let mark = mark_of(i64::from_le_bytes(contents[..].try_into().ok()?));
                Part::Mark { stage: stage()?, mark }
            }
            _ => return None,
        });
    }
    Some(parts)
}

/// Key of a topology's newest step.
pub fn step_key(topology: NameId) -> Vec<u8> {
    Kind::TopologyStep.key(&[&topology.0.to_be_bytes()])
}

/// Key of how far a topology has read a partition.
pub fn progress_key(topology: NameId, id: PartitionId) -> Vec<u8> {
    Kind::TopologyProgress.key(&[&topology.0.to_be_bytes(), &id.topic.0, &id.index.to_be_bytes()])
}

/// Key of an entry of another shard's outbox that waits for its turn.
pub fn arrival_key(topology: NameId, sender: u16, sequence: u64) -> Vec<u8> {
    let (topology, sequence) = (topology.0.to_be_bytes(), sequence.to_be_bytes());
    Kind::TopologyArrival.key(&[&topology, &sender.to_be_bytes(), &sequence])
}

/// The next offset, and the newest record's event time.
pub fn encode_progress(next_offset: u64, newest_ms: i64) -> Vec<u8> {
    [next_offset.to_le_bytes(), newest_ms.to_le_bytes()].concat()
}

/// The opposite of [`encode_progress`].
pub fn decode_progress(bytes: &[u8]) -> Result<(u64, i64), String> {
    let parts = bytes.split_first_chunk::<8>().and_then(|(next, newest)| {
        Some((u64::from_le_bytes(*next), i64::from_le_bytes(newest.try_into().ok()?)))
    });
    parts.ok_or_else(|| "a topology's progress is not 16 bytes".to_owned())
}

/// How far the entries of one shard were taken: everything before this was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Sequence of the entry in the sender's outbox.
    pub sequence: u64,
    /// Its part.
    pub part: u32,
    /// Records of that part that were taken.
    pub record: u32,
}

/// Key of how far a topology has taken the entries of a shard.
pub fn position_key(topology: NameId, sender: u16) -> Vec<u8> {
    Kind::TopologyTaken.key(&[&topology.0.to_be_bytes(), &sender.to_be_bytes()])
}

impl Position {
    /// Its bytes.
    pub fn encode(self) -> Vec<u8> {
        let (part, record) = (self.part.to_le_bytes(), self.record.to_le_bytes());
        [&self.sequence.to_le_bytes()[..], &part, &record].concat()
    }

    /// The opposite of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (sequence, rest) = bytes.split_first_chunk::<8>()?;
        let (part, record) = rest.split_first_chunk::<4>()?;
        Some(Self {
            sequence: u64::from_le_bytes(*sequence),
            part: u32::from_le_bytes(*part),
            record: u32::from_le_bytes(record.try_into().ok()?),
        })
    }
}

/// Key of what a frame says of the result of a blocking call: it is set there, and removed again.
pub fn called_key(topology: NameId) -> Vec<u8> {
    Kind::TopologyCalled.key(&[&topology.0.to_be_bytes()])
}

/// The result of a blocking call as the frame has it that takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCall {
    /// The operator.
    pub operator: NameId,
    /// Partition of its keys.
    pub partition: u32,
    /// Number of the record among those of its key that waited.
    pub sequence: u64,
    /// The key.
    pub key: Bytes,
    /// The result's bytes, none if it is null; or why the call failed.
    pub result: Result<Option<Bytes>, String>,
}

const CALLED_NULL: u8 = 0;
const CALLED_VALUE: u8 = 1;
const CALLED_FAILED: u8 = 2;

impl StoredCall {
    /// Its bytes: operator, partition, sequence, size of the key, the key, what came of the call (0 null,
    /// 1 a value, 2 it failed), the value or the words. Little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let (outcome, contents) = match &self.result {
            Ok(None) => (CALLED_NULL, &[][..]),
            Ok(Some(value)) => (CALLED_VALUE, &value[..]),
            Err(words) => (CALLED_FAILED, words.as_bytes()),
        };
        let mut bytes = self.operator.0.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.partition.to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&(self.key.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.key);
        bytes.push(outcome);
        bytes.extend_from_slice(contents);
        bytes
    }

    /// The opposite of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let operator = NameId(take_u64(&mut rest)?);
        let partition = take_u32(&mut rest)?;
        let sequence = take_u64(&mut rest)?;
        let size = take_u32(&mut rest)?;
        let (key, rest) = rest.split_at_checked(size as usize)?;
        let (outcome, contents) = rest.split_first()?;
        let result = match *outcome {
            CALLED_NULL if contents.is_empty() => Ok(None),
            CALLED_VALUE => Ok(Some(Bytes::copy_from_slice(contents))),
            CALLED_FAILED => Err(String::from_utf8(contents.to_vec()).ok()?),
            _ => return None,
        };
        let key = Bytes::copy_from_slice(key);
        Some(Self { operator, partition, sequence, key, result })
    }

    /// Bytes that it takes in a frame, at most: it is set and removed.
    pub fn size(&self) -> usize {
        let contents = match &self.result {
            Ok(value) => value.as_ref().map_or(0, Bytes::len),
            Err(words) => words.len(),
        };
        2 * (ENTRY_OVERHEAD_MAX + 9) + 25 + self.key.len() + contents
    }
}

/// Key of where the keys of a topology's stages are.
pub fn places_key(topology: NameId) -> Vec<u8> {
    Kind::TopologyPlaces.key(&[&topology.0.to_be_bytes()])
}

/// Packs where the keys of stages are: for each its identity, partitions, the shard of the first.
pub fn encode_places(places: &BTreeMap<NameId, StagePlace>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (stage, place) in places {
        bytes.extend_from_slice(&stage.0.to_le_bytes());
        bytes.extend_from_slice(&place.partition_count.to_le_bytes());
        bytes.extend_from_slice(&place.first_shard.0.to_le_bytes());
    }
    bytes
}

/// The opposite of [`encode_places`].
pub fn decode_places(bytes: &[u8]) -> Option<BTreeMap<NameId, StagePlace>> {
    let (places, rest) = bytes.as_chunks::<14>();
    let place = |bytes: &[u8; 14]| {
        let (stage, rest) = bytes.split_first_chunk::<8>()?;
        let (partition_count, first_shard) = rest.split_first_chunk::<4>()?;
        let partition_count = u32::from_le_bytes(*partition_count);
        let first_shard = ShardId(u16::from_le_bytes(first_shard.try_into().ok()?));
        let place = StagePlace { partition_count, first_shard };
        Some((NameId(u64::from_le_bytes(*stage)), place))
    };
    rest.is_empty().then(|| places.iter().map(place).collect()).flatten()
}

/// Key of what operators of a former shard had seen of event time when they were given up, for the
/// keys of one partition of a stage.
pub fn seen_key(topology: NameId, stage: NameId, partition: u32) -> Vec<u8> {
    let (topology, stage) = (topology.0.to_be_bytes(), stage.0.to_be_bytes());
    Kind::TopologySeen.key(&[&topology, &stage, &partition.to_be_bytes()])
}

/// The topology, the stage and the partition in such a key.
pub fn decode_seen_key(key: &[u8]) -> Option<(NameId, NameId, u32)> {
    let (topology, rest) = key.get(1..)?.split_first_chunk::<8>()?;
    let (stage, partition) = rest.split_first_chunk::<8>()?;
    let partition = u32::from_be_bytes(partition.try_into().ok()?);
    Some((NameId(u64::from_be_bytes(*topology)), NameId(u64::from_be_bytes(*stage)), partition))
}

/// Packs event times of operators: for each its identity and the time.
pub fn encode_seen(seen_ms: &BTreeMap<NameId, i64>) -> Vec<u8> {
    let operators = seen_ms.iter();
    operators.flat_map(|(id, ms)| [id.0.to_le_bytes(), ms.to_le_bytes()].concat()).collect()
}

/// The opposite of [`encode_seen`].
pub fn decode_seen(bytes: &[u8]) -> Option<BTreeMap<NameId, i64>> {
    let (operators, rest) = bytes.as_chunks::<16>();
    let operator = |bytes: &[u8; 16]| {
        let (id, seen_ms) = bytes.split_first_chunk::<8>()?;
        Some((NameId(u64::from_le_bytes(*id)), i64::from_le_bytes(seen_ms.try_into().ok()?)))
    };
    rest.is_empty().then(|| operators.iter().map(operator).collect()).flatten()
}

/// What a topology's newest step says of its times: the clock, each operator's event time, and what
/// each shard said of each stage.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StoredStep {
    /// Its clock, in milliseconds since 1970.
    pub clock_ms: i64,
    /// Event time of each operator, in the same unit: up to where its timers have all fired, and what it
    /// sees.
    pub operators_ms: Vec<(NameId, i64, i64)>,
    /// The marks of each stage, one from each shard, as [`mark_ms`] has them.
    pub heard: Vec<(NameId, Vec<i64>)>,
}

impl StoredStep {
    /// Its bytes: the clock; how many operators, each with its times; then for each stage its
    /// identity, how many shards, and the mark of each. Little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.clock_ms.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(self.operators_ms.len() as u32).to_le_bytes());
        for (operator, fired_ms, seen_ms) in &self.operators_ms {
            bytes.extend_from_slice(&operator.0.to_le_bytes());
            bytes.extend_from_slice(&fired_ms.to_le_bytes());
            bytes.extend_from_slice(&seen_ms.to_le_bytes());
        }
        for (stage, marks) in &self.heard {
            bytes.extend_from_slice(&stage.0.to_le_bytes());
            bytes.extend_from_slice(&(marks.len() as u32).to_le_bytes());
            marks.iter().for_each(|mark| bytes.extend_from_slice(&mark.to_le_bytes()));
        }
        bytes
    }

    /// The opposite of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let read = || {
            let mut rest = bytes;
            let clock_ms = take_u64(&mut rest)? as i64;
            let mut step = Self { clock_ms, ..Self::default() };
            for _ in 0..take_u32(&mut rest)? {
                let operator = NameId(take_u64(&mut rest)?);
                let (fired_ms, seen_ms) = (take_u64(&mut rest)?, take_u64(&mut rest)?);
                step.operators_ms.push((operator, fired_ms as i64, seen_ms as i64));
            }
            while !rest.is_empty() {
                let stage = NameId(take_u64(&mut rest)?);
                let count = take_u32(&mut rest)?;
                let marks: Option<Vec<i64>> =
                    (0..count).map(|_| Some(take_u64(&mut rest)? as i64)).collect();
                step.heard.push((stage, marks?));
            }
            Some(step)
        };
        read().ok_or_else(|| "a topology's step cannot be read".to_owned())
    }
}

/// A mark as a number of milliseconds since 1970, or the greatest number.
pub fn mark_ms(mark: Mark) -> i64 {
    match mark {
        Mark::At(time_ms) => time_ms,
        Mark::Idle => IDLE_MS,
    }
}

/// The opposite of [`mark_ms`].
pub fn mark_of(time_ms: i64) -> Mark {
    if time_ms == IDLE_MS { Mark::Idle } else { Mark::At(time_ms) }
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_le_bytes(*number))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (number, after) = rest.split_first_chunk::<8>()?;
    *rest = after;
    Some(u64::from_le_bytes(*number))
}

/// The topology, the sender and its outbox's sequence in the key of an arrival.
pub fn decode_arrival_key(key: &[u8]) -> Option<(NameId, u16, u64)> {
    let (topology, rest) = key.get(1..)?.split_first_chunk::<8>()?;
    let (sender, sequence) = rest.split_first_chunk::<2>()?;
    let sequence = u64::from_be_bytes(sequence.try_into().ok()?);
    Some((NameId(u64::from_be_bytes(*topology)), u16::from_be_bytes(*sender), sequence))
}

/// The topology in the key of its step.
pub fn decode_step_key(key: &[u8]) -> Option<NameId> {
    Some(NameId(u64::from_be_bytes(key.get(1..)?.try_into().ok()?)))
}

/// The topology and the partition in the key of its progress.
pub fn decode_progress_key(key: &[u8]) -> Option<(NameId, PartitionId)> {
    let (topology, rest) = key.get(1..)?.split_first_chunk::<8>()?;
    let (topic, index) = rest.split_first_chunk::<16>()?;
    let index = u32::from_be_bytes(index.try_into().ok()?);
    Some((NameId(u64::from_be_bytes(*topology)), PartitionId { topic: TopicId(*topic), index }))
}

/// The topology and the sender in the key of a position.
pub fn decode_position_key(key: &[u8]) -> Option<(NameId, u16)> {
    let (topology, sender) = key.get(1..)?.split_first_chunk::<8>()?;
    Some((NameId(u64::from_be_bytes(*topology)), u16::from_be_bytes(sender.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_as_they_were_and_nothing_else_does() {
        let stage = NameId(9);
        let place = StagePlace { partition_count: 256, first_shard: ShardId(1) };
        let id = PartitionId { topic: TopicId([3; 16]), index: 4 };
        let batch = Bytes::from_static(b"records");
        let parts = vec![
            Part::Sink { id, batch: batch.clone() },
            Part::Stage { stage, place, partition: 200, batch },
            Part::Mark { stage, mark: Mark::At(-5) },
            Part::Mark { stage, mark: Mark::Idle },
        ];
        let entry = StageEntry { topology: NameId(7), version: 11, parts };
        let bytes = entry.encode();
        assert_eq!(StageEntry::decode(&bytes).as_ref(), Some(&entry));
        for size in 0..bytes.len() {
            let cut = StageEntry::decode(&bytes.slice(..size));
            assert!(cut.is_none_or(|cut| cut.parts.len() < 4), "{size} bytes");
        }
    }

    #[test]
    fn results_of_calls_come_back_as_they_were_and_nothing_else_does() {
        for result in [Ok(None), Ok(Some(Bytes::from_static(b"value"))), Err("why".to_owned())] {
            let call = StoredCall {
                operator: NameId(7),
                partition: 3,
                sequence: 11,
                key: Bytes::from_static(b"key"),
                result,
            };
            let bytes = call.encode();
            let in_frame = 2 * (ENTRY_OVERHEAD_MAX + called_key(NameId(1)).len()) + bytes.len();
            assert_eq!(call.size(), in_frame);
            assert_eq!(StoredCall::decode(&bytes), Some(call));
            // What a value or words begin with is cut off nowhere.
            for size in 0..28 {
                assert_eq!(StoredCall::decode(&bytes[..size.min(bytes.len() - 1)]), None, "{size}");
            }
        }
    }

    #[test]
    fn steps_places_and_positions_come_back_as_they_were() {
        let step = StoredStep {
            clock_ms: 5,
            operators_ms: vec![(NameId(1), i64::MIN, 1), (NameId(2), 7, 8)],
            heard: vec![(NameId(3), vec![1, IDLE_MS])],
        };
        assert_eq!(StoredStep::decode(&step.encode()), Ok(step));
        assert!(StoredStep::decode(&[0; 11]).is_err());
        let place = StagePlace { partition_count: 256, first_shard: ShardId(3) };
        let places = BTreeMap::from([(NameId(1), place), (NameId(u64::MAX), place)]);
        assert_eq!(decode_places(&encode_places(&places)), Some(places));
        assert_eq!(decode_places(&[0; 15]), None);
        let position = Position { sequence: 1 << 40, part: 2, record: 3 };
        assert_eq!(Position::decode(&position.encode()), Some(position));
        assert_eq!(Position::decode(&[0; 15]), None);
        let seen_ms = BTreeMap::from([(NameId(1), i64::MIN), (NameId(u64::MAX), 7)]);
        assert_eq!(decode_seen(&encode_seen(&seen_ms)), Some(seen_ms));
        assert_eq!(decode_seen(&[0; 17]), None);
        let key = seen_key(NameId(1), NameId(2), 3);
        assert_eq!(decode_seen_key(&key), Some((NameId(1), NameId(2), 3)));
        assert_eq!(decode_seen_key(&key[..20]), None);
    }
}
