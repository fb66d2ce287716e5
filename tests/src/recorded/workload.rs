//! Clients that make a node do everything that ends on the disk, and note what they are promised.
//!
//! Large batches fill segments, so that the log settles, is recycled, and files are merged. After
//! each of them every other client has a few turns, so that a recording has many different moments
//! and not many equal ones: small batches of all kinds of producers, commits of groups, topics that
//! come and go. Records that are too old when they are sent are what retention takes.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tidemill::batch::{BatchBuilder, NewRecord};
use tidemill::kafka::error_code::ErrorCode;
use tidemill::kafka::messages::{
    InitProducerIdRequest, OffsetCommitPartition, OffsetCommitRequest, OffsetCommitTopic,
};

use super::history::Notes;
use crate::peer::Peer;
use crate::sim::random::Random;

/// The smallest that a node takes, so that segments fill soon.
pub const SEGMENT_SIZE: u64 = 17 << 20;
/// Shards of the node.
pub const SHARDS: u16 = 2;
/// Partitions of a topic: clients of both shards.
const PARTITIONS: i32 = 2;
/// Size of the batches that fill segments: two of them fill one.
const BULK_SIZE: usize = 8 << 20;
/// Bulk records that are kept in each partition.
const BULK_KEPT: i64 = 2;
/// Of so many large batches one goes to the second partition. A shard needs eight settled segments
/// for a merge, and one shard that merges is enough.
const BULK_ELSEWHERE: u64 = 6;
/// Turns of every other client for each large batch.
const TURNS: usize = 2;
/// Groups whose offsets are committed in turn; with their metadata they fill delta files.
const GROUPS: u64 = 60;
/// As much as the protocol allows, nearly.
const METADATA_SIZE: usize = 4000;
/// Small records are at most this large.
const SMALL_SIZE_MAX: u64 = 6000;
/// The topics that stay, with their partitions; the last one is only for offsets of groups.
const TOPICS: [(&str, i32); 4] =
    [("plain", PARTITIONS), ("once", PARTITIONS), ("bulk", PARTITIONS), ("read", 16)];
/// An idempotent producer sends one of so many batches twice, as if it had missed the answer.
const REPEATED: i32 = 4;
/// When old records were made.
const OLD_MS: i64 = 1_700_000_000_000;

/// How a node is started so that much happens in little time.
pub fn arguments() -> Vec<String> {
    let segment_size = SEGMENT_SIZE.to_string();
    let settings = [
        ("--segment-size", segment_size.as_str()),
        ("--segments-max", "3"),
        ("--settle-rate", "unlimited"),
        ("--settle-sync-size", "1MiB"),
        ("--delta-size-max", "1MiB"),
        ("--disk-reserve", "1MiB"),
        ("--default-retention", "unlimited"),
    ];
    settings.iter().flat_map(|(name, value)| [name.to_string(), value.to_string()]).collect()
}

/// The clients' picture of the node, which outlives its crashes.
#[derive(Debug)]
pub struct Workload<'a> {
    notes: &'a Notes,
    session: u64,
    producer: Option<Producer>,
    ends: [i64; PARTITIONS as usize],
}

/// An idempotent producer and the batch that it has no answer for.
#[derive(Debug, Clone)]
pub struct Producer {
    id: i64,
    epoch: i16,
    sequence: i32,
    pending: Option<(Bytes, Bytes)>,
    /// The last batch that was acknowledged, with its offset.
    pub last: Option<(Bytes, i64)>,
}

impl<'a> Workload<'a> {
    /// Nothing happened yet.
    pub fn new(notes: &'a Notes) -> Self {
        Workload { notes, session: 0, producer: None, ends: [0; PARTITIONS as usize] }
    }

    /// The topics that stay.
    pub fn make_topics(&mut self, peer: &mut Peer) {
        let size_max = (BULK_SIZE + (1 << 20)).to_string();
        for (topic, partitions) in TOPICS {
            self.notes.topic_asked(topic);
            let configs = [("max.message.bytes", size_max.as_str())];
            let made = peer.create_topic(topic, partitions, 1, &configs);
            assert_eq!(made.error_code, ErrorCode::None, "{:?}", made.error_message);
            self.notes.topic_made(topic);
        }
    }

    /// Runs all clients until this many large batches are in, and then calls `end`, while the
    /// others go on.
    pub fn run(&mut self, address: SocketAddr, bulk_count: u64, end: impl FnOnce()) {
        self.session += 1;
        let (notes, session) = (self.notes, self.session);
        let producer = self.producer.take();
        thread::scope(|scope| {
            let mut others: Vec<SyncSender<()>> = Vec::new();
            let mut client = || {
                let (sender, turns) = sync_channel(TURNS);
                others.push(sender);
                Client { notes, session, turns }
            };
            for partition in 0..PARTITIONS {
                let client = client();
                scope.spawn(move || client.produce(address, partition));
            }
            for first in [0, GROUPS / 2] {
                let client = client();
                scope.spawn(move || client.commit(address, first));
            }
            let (coming, aging, repeating) = (client(), client(), client());
            scope.spawn(move || coming.come_and_go(address));
            scope.spawn(move || aging.age(address, bulk_count * TURNS as u64 / 2));
            let once = scope.spawn(move || repeating.produce_once(address, producer));
            let mut peer = Peer::connect(address);
            for number in 0..bulk_count {
                self.append_bulk(&mut peer, number);
                for other in others.iter().flat_map(|other| [other; TURNS]) {
                    // Who had an unclear answer has ended.
                    let _ = other.send(());
                }
            }
            end();
            drop(others);
            self.producer = once.join().expect("the producer does not panic");
        });
    }

    /// The idempotent producer, as it is after a run.
    pub fn producer(&self) -> Option<&Producer> {
        self.producer.as_ref()
    }

    fn append_bulk(&mut self, peer: &mut Peer, number: u64) {
        let partition = i32::from(number % BULK_ELSEWHERE == 1);
        let mut random = Random::new(self.session << 32 | number);
        let mut value = format!("bulk/{partition} {} {number} ", self.session).into_bytes();
        while value.len() < BULK_SIZE {
            value.extend(random.bits().to_le_bytes());
        }
        let value = Bytes::from(value);
        self.notes.sent(&value);
        let batch = batch(None, OLD_MS, &[&value]);
        let offset = peer.append_patiently("bulk", partition, &batch);
        self.notes.acknowledged("bulk", partition, offset, &value);
        self.ends[partition as usize] = offset + 1;
        let start = offset + 1 - BULK_KEPT;
        if start > 0 && start % 2 == 0 {
            self.notes.trim_asked("bulk", partition, start);
            peer.trim("bulk", partition, start);
            self.notes.trimmed("bulk", partition);
        }
    }
}

/// A client of one connection, which ends when the node does or when there are no more turns.
struct Client<'a> {
    notes: &'a Notes,
    session: u64,
    turns: Receiver<()>,
}

impl Client<'_> {
    fn goes_on(&self) -> bool {
        self.turns.recv().is_ok()
    }

    /// A value that nobody else sends.
    fn value(&self, who: &str, number: u64) -> Bytes {
        let mut random = Random::new(self.session << 32 | number);
        let mut value = format!("{who} {} {number} ", self.session).into_bytes();
        let size = random.skewed(1, SMALL_SIZE_MAX) as usize;
        value.resize_with(value.len() + size, || b'a' + random.below(26) as u8);
        value.into()
    }

    /// Batches of a few records, one after the other.
    fn produce(&self, address: SocketAddr, partition: i32) {
        let mut peer = Peer::connect(address);
        let mut number = 0;
        while self.goes_on() {
            let count = 1 + number % 3;
            let values: Vec<Bytes> = (0..count)
                .map(|index| self.value(&format!("plain/{partition}"), number + index))
                .collect();
            number += count;
            values.iter().for_each(|value| self.notes.sent(value));
            let batch = batch(None, OLD_MS, &values.iter().collect::<Vec<_>>());
            let Ok(response) = peer.produce("plain", partition, batch) else { return };
            if response.error_code == ErrorCode::None {
                for (offset, value) in (response.base_offset..).zip(&values) {
                    self.notes.acknowledged("plain", partition, offset, value);
                }
            }
        }
    }

    /// An idempotent producer, which sends again after a crash what it has no answer for.
    fn produce_once(&self, address: SocketAddr, known: Option<Producer>) -> Option<Producer> {
        let mut peer = Peer::connect(address);
        let mut producer = match known {
            Some(producer) => producer,
            None => {
                let request =
                    InitProducerIdRequest { transaction_timeout_ms: 1000, ..Default::default() };
                let given = peer.try_ask(2, &request).ok()?;
                assert_eq!(given.error_code, ErrorCode::None);
                let (id, epoch) = (given.producer_id, given.producer_epoch);
                Producer { id, epoch, sequence: 0, pending: None, last: None }
            }
        };
        while self.goes_on() {
            let (value, sent) = producer.pending.clone().unwrap_or_else(|| {
                let value = self.value("once", producer.sequence as u64);
                let identity = (producer.id, producer.epoch, producer.sequence);
                (value.clone(), batch(Some(identity), OLD_MS, &[&value]))
            });
            if producer.sequence % REPEATED == 1
                && let Some((batch, offset)) = &producer.last
            {
                let Ok(response) = peer.produce("once", 0, batch.clone()) else { break };
                match response.error_code {
                    ErrorCode::None => assert_eq!(response.base_offset, *offset, "a known batch"),
                    code => assert!(code.is_retriable(), "{code:?}"),
                }
            }
            self.notes.sent(&value);
            producer.pending = Some((value.clone(), sent.clone()));
            let Ok(response) = peer.produce("once", 0, sent.clone()) else { break };
            match response.error_code {
                ErrorCode::None => {
                    self.notes.acknowledged("once", 0, response.base_offset, &value);
                    producer.last = Some((sent, response.base_offset));
                    producer.pending = None;
                    producer.sequence += 1;
                }
                code => assert!(code.is_retriable(), "{code:?}: {:?}", response.error_message),
            }
        }
        Some(producer)
    }

    /// Commits of many groups in turn, each higher than the one before.
    fn commit(&self, address: SocketAddr, first: u64) {
        let mut peer = Peer::connect(address);
        let mut number = 0;
        while self.goes_on() {
            let group = format!("group-{}", first + number % (GROUPS / 2));
            let offset = (self.session << 32 | number) as i64;
            self.notes.commit_asked(&group, offset);
            let partition = |partition_index| OffsetCommitPartition {
                partition_index,
                committed_offset: offset,
                committed_metadata: Some("m".repeat(METADATA_SIZE).as_str().into()),
                ..Default::default()
            };
            let topic = |(name, partitions): &(&str, i32)| OffsetCommitTopic {
                name: (*name).into(),
                partitions: (0..*partitions).map(partition).collect(),
                ..Default::default()
            };
            let request = OffsetCommitRequest {
                group_id: group.as_str().into(),
                topics: TOPICS.iter().map(topic).collect(),
                ..Default::default()
            };
            let Ok(response) = peer.try_ask(8, &request) else { return };
            match response.topics[0].partitions[0].error_code {
                ErrorCode::None => self.notes.committed(&group),
                code => assert!(code.is_retriable(), "{code:?}"),
            }
            number += 1;
        }
    }

    /// Topics that are made, get a record, and are deleted while the next one is there. Each takes
    /// many writes, so this client leaves out every other turn.
    fn come_and_go(&self, address: SocketAddr) {
        let mut peer = Peer::connect(address);
        let name = |number: u64| format!("brief-{}-{number}", self.session);
        let mut number = 0;
        while self.goes_on() && self.goes_on() {
            let topic = name(number);
            self.notes.topic_asked(&topic);
            let Ok(made) = peer.try_create_topic(&topic, PARTITIONS, 1, &[]) else { return };
            if made.error_code != ErrorCode::None {
                assert!(made.error_code.is_retriable(), "{:?}", made.error_code);
                continue;
            }
            self.notes.topic_made(&topic);
            let value = self.value(&topic, 0);
            self.notes.sent(&value);
            let partition = (number % PARTITIONS as u64) as i32;
            let Ok(response) = peer.produce(&topic, partition, batch(None, OLD_MS, &[&value]))
            else {
                return;
            };
            if response.error_code == ErrorCode::None {
                self.notes.acknowledged(&topic, partition, response.base_offset, &value);
            }
            if number > 0 {
                let old = name(number - 1);
                self.notes.deletion_asked(&old);
                let Ok(code) = peer.try_delete_topic(&old) else { return };
                if code == ErrorCode::None {
                    self.notes.deleted(&old);
                }
            }
            number += 1;
        }
    }

    /// Records that are too old as they come, and young ones behind them: at the next start
    /// retention takes the old ones, and no others.
    fn age(&self, address: SocketAddr, old_count: u64) {
        let mut peer = Peer::connect(address);
        if self.session > 1 {
            let before = aging_topic(self.session - 1);
            // There was a retention since; what is gone is gone.
            let (code, start) = peer.list_offset(&before, 0, -2);
            assert_eq!(code, ErrorCode::None);
            self.notes.starts_at(&before, 0, start);
        }
        let topic = aging_topic(self.session);
        self.notes.topic_asked(&topic);
        let configs = [("retention.ms", "3600000")];
        match peer.try_create_topic(&topic, 1, 1, &configs) {
            Ok(made) => assert_eq!(made.error_code, ErrorCode::None, "{:?}", made.error_message),
            Err(_) => return,
        }
        self.notes.topic_made(&topic);
        let mut sent = 0;
        while self.goes_on() {
            let value = self.value(&topic, sent);
            let is_old = sent < old_count;
            sent += 1;
            self.notes.sent(&value);
            if is_old {
                self.notes.trim_asked(&topic, 0, sent as i64);
            }
            let timestamp_ms = if is_old { OLD_MS } else { now_ms() };
            let batch = batch(None, timestamp_ms, &[&value]);
            let Ok(response) = peer.produce(&topic, 0, batch) else { return };
            if response.error_code == ErrorCode::None {
                self.notes.acknowledged(&topic, 0, response.base_offset, &value);
            }
        }
    }
}

fn aging_topic(session: u64) -> String {
    format!("aging-{session}")
}

/// Whether it is a topic of records that retention takes.
pub fn is_aging(topic: &str) -> bool {
    topic.starts_with("aging-")
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    since.as_millis() as i64
}

/// A batch of these values, of a producer with id, epoch and sequence or of none.
fn batch(producer: Option<(i64, i16, i32)>, timestamp_ms: i64, values: &[&Bytes]) -> Bytes {
    let mut builder = BatchBuilder::new();
    if let Some((id, epoch, sequence)) = producer {
        builder = builder.producer(id, epoch, sequence);
    }
    for value in values {
        builder.push(NewRecord { timestamp_ms, value: Some(value), ..Default::default() });
    }
    builder.build().into_bytes()
}
