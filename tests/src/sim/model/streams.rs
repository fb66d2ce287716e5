//! What topologies have to make of their sources. The sources' logs are the truth: what is in them at
//! the end decides, however it came there.

mod expected;
mod windows;

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemill::batch::{BatchBuilder, NewRecord, Record, RecordBatch};
use tidemill::command::TopicRoute;
use tidemill_wal::format::{PartitionId, ShardId};

use super::{Author, Check, Model, require};
use crate::sim::plan::Plan;
use crate::sim::random::Random;
use crate::sim::streams::item::{ITEM_SIZE_MIN, Mood, NewItem};
use crate::sim::streams::{Flow, KEY_COUNT, Role, Streams, TICK_MS, compressed, partition_of};

/// Most bytes of a batch's records: far more than any has.
pub(super) const RECORDS_SIZE_MAX: usize = 64 << 20;

/// Name of the header that has a record's number.
pub(super) const ID_HEADER: &[u8] = b"id";

/// How far a closing record is ahead of all before it, in milliseconds: far beyond every window.
const CLOSING_MS: i64 = 20_000;

/// So many of the largest items fill a segment: what comes of one has to be far less than a frame, even
/// if it becomes three.
const ITEMS_OF_SEGMENT: usize = 24;

/// The first event time, in milliseconds since 1970.
const FIRST_MS: i64 = 1_000_000;

/// What is known of topologies.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    streams: Option<Streams>,
    /// Batches that topologies made, by their first offset, with their last one.
    made: BTreeMap<PartitionId, BTreeMap<u64, (u64, RecordBatch)>>,
    /// How far event time has come.
    event_ms: i64,
    /// Bytes of the largest item.
    item_size_max: usize,
}

impl Ledger {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            streams: Some(plan.streams.clone()),
            event_ms: FIRST_MS,
            item_size_max: plan.segment_size as usize / ITEMS_OF_SEGMENT,
            ..Self::default()
        }
    }
}

/// The records of a topic, by partition, in order.
pub(super) type Records = BTreeMap<u32, Vec<Record>>;

impl Model {
    fn role(&self, partition: PartitionId) -> Option<Role> {
        let topic = self.topic(partition.topic)?;
        self.ledger.streams.as_ref()?.role(&topic.name)
    }

    /// Whether clients append to the partition.
    pub fn is_writable(&self, partition: PartitionId) -> bool {
        self.role(partition) != Some(Role::Made)
    }

    /// Whether the topic stays as it was made, for a topology has it.
    pub fn is_of_stream(&self, partition: PartitionId) -> bool {
        self.role(partition).is_some()
    }

    /// The partitions of the flow's source, with their shards, if there is one.
    pub fn source_partitions(&self, flow: Flow) -> Vec<(PartitionId, ShardId)> {
        let mut partitions = self.existing();
        partitions.retain(|(partition, _)| self.role(*partition) == Some(Role::Source(flow)));
        partitions
    }

    /// The next of the streams' topics that is to be made, with how many partitions.
    pub fn missing_topic(&self) -> Option<(String, u32)> {
        let streams = self.ledger.streams.as_ref()?;
        let is_missing =
            |name: &str| self.picture().is_none_or(|picture| !picture.topics.contains_key(name));
        streams.topics.iter().find(|(name, _)| is_missing(name)).cloned()
    }

    /// How many topics there are that no topology has.
    pub fn plain_topic_count(&self) -> usize {
        let Some((picture, streams)) = self.picture().zip(self.ledger.streams.as_ref()) else {
            return 0;
        };
        picture.topics.keys().filter(|name| streams.role(name).is_none()).count()
    }

    /// Event time goes far ahead. Returns to where.
    pub fn close_windows(&mut self) -> i64 {
        self.ledger.event_ms += CLOSING_MS;
        self.ledger.event_ms
    }

    /// Makes a batch with one record that takes event time to where [`Self::close_windows`] said.
    pub fn make_closing(&mut self, partition: PartitionId, author: Author, time_ms: i64) -> usize {
        let item = NewItem {
            id: self.sent.len() as u64,
            time_ms,
            mood: Mood::Fine,
            parts: 1,
            new_key: 0,
            size: ITEM_SIZE_MIN,
            fill: 0,
        };
        let mut builder = BatchBuilder::new();
        push(&mut builder, Some("closing"), &item, time_ms);
        self.add_batch(partition, author, builder.build())
    }

    /// The records of a batch for a source; nothing if the partition is of none.
    pub(super) fn build_items(
        &mut self,
        random: &mut Random,
        partition: PartitionId,
        builder: &BatchBuilder,
        (count, size): (u64, u64),
        wall_ms: i64,
    ) -> Option<RecordBatch> {
        let Some(Role::Source(flow)) = self.role(partition) else { return None };
        let partition_count = self.topic(partition.topic)?.partition_count;
        let streams = self.ledger.streams.as_ref()?;
        let (mut event_ms, mut builder) = (self.ledger.event_ms, builder.clone());
        for index in 0..count {
            event_ms += random.skewed(1, streams.rules.step_ms as u64) as i64;
            let disorder_ms = random.below(streams.rules.disorder_ms as u64 + 1) as i64;
            let time_ms = (event_ms - disorder_ms) / TICK_MS * TICK_MS;
            let mood = draw_mood(flow, streams.failing_one_in, random);
            let has_parts = flow == Flow::Rekey && mood == Mood::Fine;
            let item = NewItem {
                id: self.sent.len() as u64 | index << 40,
                time_ms,
                mood,
                parts: if has_parts { random.below(4) as u8 } else { 1 },
                new_key: random.below(256) as u8,
                size: (size as usize).clamp(ITEM_SIZE_MIN, self.ledger.item_size_max),
                fill: random.bits(),
            };
            let is_misplaced =
                streams.misplaced_one_in > 0 && random.one_in(streams.misplaced_one_in);
            let key = draw_key(partition.index, partition_count, is_misplaced, random);
            push(&mut builder, key.as_deref(), &item, wall_ms - random.below(3) as i64);
        }
        let batch = builder.build();
        let is_compressed =
            streams.compressed_one_in > 0 && random.one_in(streams.compressed_one_in);
        self.ledger.event_ms = event_ms;
        Some(if is_compressed { compressed(&batch, random.one_in(2)) } else { batch })
    }

    /// Compares a batch that a topology made with what was there before: nothing may change that
    /// anybody saw.
    pub(super) fn compare_made(&mut self, id: PartitionId, stored: &RecordBatch) -> Check {
        let (base, last) = (stored.base_offset(), stored.last_offset());
        let describe = |why: &str| format!("{id:?} offsets {base} to {last}: {why}");
        let log = self.ledger.made.entry(id).or_default();
        self.counts.bytes_compared += stored.size() as u64;
        if let Some((_, known)) = log.get(&base) {
            return require(known.bytes() == stored.bytes(), || {
                describe("another batch than before")
            });
        }
        RecordBatch::stored_intact(stored.bytes().clone())
            .map_err(|fault| describe(&fault.to_string()))?;
        let before = log.range(..base).next_back();
        let is_apart = before.is_none_or(|(_, (end, _))| *end < base);
        let after = log.range(base..).next();
        let is_apart = is_apart && after.is_none_or(|(next, _)| last < *next);
        require(is_apart, || describe("where another batch was"))?;
        log.insert(base, (last, stored.copy()));
        Ok(())
    }

    /// Everything was just read, and all topologies had come to rest before.
    pub fn check_streams(&mut self) -> Check {
        let Some(streams) = self.ledger.streams.clone() else { return Ok(()) };
        for flow in &streams.flows {
            self.check_flow(*flow, &streams).map_err(|why| format!("{flow:?}: {why}"))?;
        }
        Ok(())
    }

    /// Whether all topics of the flow are there.
    pub fn has_topics(&self, flow: &str) -> bool {
        let flow = Flow::ALL.iter().find(|known| known.name() == flow);
        flow.is_some_and(|flow| flow.topics().all(|name| self.route(&name).is_some()))
    }

    fn route(&self, name: &str) -> Option<&TopicRoute> {
        self.picture()?.topics.get(name).map(AsRef::as_ref)
    }

    /// All records of a topic that clients write. They begin at zero and have no gap.
    fn read_source(&self, name: &str) -> Result<Records, String> {
        self.read(name, |id| {
            let known = self.partitions.get(&id).ok_or("nothing is known of a partition")?;
            let batches = known
                .log
                .iter()
                .map(|(base, (end, number))| (*base, *end, self.sent[*number].batch.clone()));
            Ok((batches.collect(), known.end))
        })
    }

    /// All records of a topic that a topology writes.
    fn read_made(&self, name: &str) -> Result<Records, String> {
        self.read(name, |id| {
            let end = self.partitions.get(&id).ok_or("nothing is known of a partition")?.end;
            let made = self.ledger.made.get(&id).into_iter().flatten();
            Ok((made.map(|(base, (last, batch))| (*base, last + 1, batch.clone())).collect(), end))
        })
    }

    fn read(&self, name: &str, log: impl Fn(PartitionId) -> Log) -> Result<Records, String> {
        let mut records = Records::new();
        let Some(route) = self.route(name) else { return Ok(records) };
        for index in 0..route.partition_count {
            let (batches, end) = log(route.partition(index))?;
            let own = records.entry(index).or_default();
            let mut next = 0;
            for (base, batch_end, batch) in batches {
                require(base == next, || {
                    format!("{name}-{index}: {next} is due, {base} is there")
                })?;
                next = batch_end;
                for record in batch.records(RECORDS_SIZE_MAX).map_err(|fault| fault.to_string())? {
                    let record = record.map_err(|fault| fault.to_string())?;
                    let offset = base + record.offset - batch.base_offset();
                    own.push(Record { offset, ..record });
                }
            }
            require(next == end && own.len() as u64 == end, || {
                format!("{name}-{index} ends at {end}, read were {} to {next}", own.len())
            })?;
        }
        Ok(records)
    }
}

/// Batches with where they begin and end, and where their log ends.
type Log = Result<(Vec<(u64, u64, RecordBatch)>, u64), String>;

fn push(builder: &mut BatchBuilder, key: Option<&str>, item: &NewItem, timestamp_ms: i64) {
    let id = item.id.to_le_bytes();
    builder.push(NewRecord {
        timestamp_ms,
        key: key.map(str::as_bytes),
        value: Some(&item.encode()),
        headers: &[(ID_HEADER, Some(&id[..]))],
    });
}

fn draw_mood(flow: Flow, failing_one_in: u64, random: &mut Random) -> Mood {
    if failing_one_in == 0 || !random.one_in(failing_one_in) {
        return Mood::Fine;
    }
    let moods: &[Mood] = match flow {
        Flow::Windows => &[Mood::Undecodable],
        Flow::Count | Flow::Timers => &[Mood::Undecodable, Mood::Error, Mood::Panic],
        Flow::Rekey | Flow::Chain => {
            &[Mood::Undecodable, Mood::Error, Mood::Panic, Mood::PanicAtOnce]
        }
    };
    random.choose(moods)
}

/// A key that belongs to the partition, if there is one and it is not misplaced.
fn draw_key(
    index: u32,
    partition_count: u32,
    is_misplaced: bool,
    random: &mut Random,
) -> Option<String> {
    let number = random.below(KEY_COUNT);
    if is_misplaced {
        return (!random.one_in(3)).then(|| format!("k{number}"));
    }
    let keys = (0..KEY_COUNT).map(|step| format!("k{}", (number + step) % KEY_COUNT));
    let mut own = keys.filter(|key| partition_of(key.as_bytes(), partition_count) == index);
    own.next().or_else(|| Some(format!("k{number}")))
}

/// The first difference of two sorted lists.
fn difference<T: Ord + Clone>(expected: &[T], found: &[T]) -> Option<(Option<T>, Option<T>)> {
    let index = expected.iter().zip(found).position(|(expected, found)| expected != found);
    let index = index.unwrap_or(expected.len().min(found.len()));
    let pair = (expected.get(index).cloned(), found.get(index).cloned());
    (pair.0.is_some() || pair.1.is_some()).then_some(pair)
}

/// The number in a record's header.
fn id_header(headers: &[(Bytes, Option<Bytes>)]) -> Option<u64> {
    let (_, value) = headers.iter().find(|(name, _)| name == ID_HEADER)?;
    Some(u64::from_le_bytes(value.as_deref()?.try_into().ok()?))
}
