//! Topologies under `kill -9`: a node that counts and copies what producers write, and makes a blocking
//! call for it, is killed again and again, and in the end every record was counted once and copied
//! once, in order, and the result of its call is there once, in order for its key.
//!
//! The truth is the log of the source, which [`crate::torture`] checks for itself.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tidemill::topology::{Raw, Topology, Utf8};

use crate::daemon::{Daemon, Options as DaemonOptions, counting_binary};
use crate::peer::{Peer, keyed_batch};
use crate::sim::random::Random;
use crate::torture::ledger::{Ledger, first_key, value_of, value_size};
use crate::torture::read_back::{read_back, visit};
use crate::torture::writer::Writer;

const SOURCE: &str = "records";
const COUNTS: &str = "counts";
const COPIES: &str = "copies";
const CALLED: &str = "called";
/// Records of it are called for, and the calls never end.
const ENDLESS: &str = "endless";
/// What topologies make of the source.
const MADE: [&str; 3] = [COUNTS, COPIES, CALLED];
/// Partitions of every topic.
const PARTITIONS: u32 = 4;
/// Records are counted by the remainder of their number.
const REMAINDERS: u64 = 1000;
/// Producers that write side by side.
const WRITERS: u64 = 2;
/// How often it is looked whether something has come about.
const TICK: Duration = Duration::from_millis(10);
/// A node that is up does what is left within this.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the node runs: one topology whose keys travel to other shards, one whose records stay, and one
/// with blocking calls.
pub fn topologies() -> Vec<Topology> {
    let counting = Topology::new("counting");
    for topic in [SOURCE, COUNTS, COPIES, CALLED, ENDLESS] {
        counting.create(topic, PARTITIONS);
    }
    counting
        .source(SOURCE, Raw)
        .map(|value| (number_of(&value).unwrap_or(u64::MAX) % REMAINDERS).to_string())
        .key_by("remainder", Utf8, Utf8, String::clone)
        .count("count")
        .map(|_, count| count.to_string())
        .sink(COUNTS, Utf8);
    let copying = Topology::new("copying");
    let source = copying.source(SOURCE, Raw);
    source
        .map(|value| number_of(&value).map_or("none".to_owned(), |it| it.to_string()))
        .sink(COPIES, Utf8);
    let calling = Topology::new("calling");
    calling
        .source(SOURCE, Raw)
        .map(|value| number_of(&value).unwrap_or(u64::MAX))
        .map(|number| number.to_string())
        .key_by("called", Utf8, Utf8, |number| remainder_of(number))
        .blocking("call", Utf8, Utf8, |_, number| Ok(number.clone()))
        .sink(CALLED, Utf8);
    calling.source(ENDLESS, Raw).partitioned_by_key(Utf8).blocking("endless", Raw, Raw, |_, _| {
        loop {
            thread::park();
        }
    });
    vec![counting, copying, calling]
}

/// What a number is counted and called for as.
fn remainder_of(number: &str) -> String {
    number.parse::<u64>().map_or("none".to_owned(), |number| (number % REMAINDERS).to_string())
}

/// The number that a value begins with.
fn number_of(value: &[u8]) -> Option<u64> {
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&value[..digits]).ok()?.parse().ok()
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the moments of the kills come from.
    pub seed: u64,
    /// Shards of the node.
    pub shards: u16,
    /// Bytes of records that the producers write each second, together.
    pub rate: u64,
    /// Kills at least.
    pub kills: u64,
    /// Goes on with kills until this is over.
    pub lasts: Duration,
    /// The most records that are acknowledged between two kills.
    pub records_max: u64,
}

/// What happened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// How often the node was killed.
    pub kills: u64,
    /// Records that were written, counted, copied and called for.
    pub records: u64,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, records, took } = self;
        write!(
            f,
            "{kills} kills in {took:.0?}; {records} records, each counted, copied and called for once"
        )
    }
}

/// Kills a node that works until enough is enough, and compares. The error is what is wrong.
pub fn run(options: &Options) -> Result<Report, String> {
    let begun = Instant::now();
    let mut random = Random::new(options.seed);
    let mut daemon = Daemon::start(DaemonOptions {
        shards: options.shards,
        command: vec![counting_binary().display().to_string()],
        ..DaemonOptions::default()
    });
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let rate = options.rate / WRITERS;
    let writers: Vec<Writer> = (1..=WRITERS)
        .map(|writer| {
            Writer::start(daemon.kafka(), SOURCE, PARTITIONS, writer, rate, u64::MAX, &ledger)
        })
        .collect();
    let acknowledged =
        || ledger.lock().unwrap_or_else(PoisonError::into_inner).acknowledged_count();
    let mut kills = 0;
    while kills < options.kills || begun.elapsed() < options.lasts {
        let until = acknowledged() + 1 + random.below(options.records_max);
        wait_until("records are acknowledged", || Ok(acknowledged() >= until))?;
        daemon.kill();
        kills += 1;
        daemon.restart();
    }
    for writer in writers {
        writer.finish()?;
    }
    let written = read_back(&mut Peer::connect(daemon.kafka()), SOURCE, PARTITIONS)?;
    let records = written.iter().map(Vec::len).sum::<usize>() as u64;
    for topic in MADE {
        wait_until(&format!("all is in {topic}"), || {
            let mut peer = Peer::connect(daemon.kafka());
            Ok(count_of(&mut peer, topic)? >= records)
        })?;
    }
    check(&mut Peer::connect(daemon.kafka()), &written)?;
    // After one more start nothing is made again: one more record comes right behind all the others.
    daemon.kill();
    daemon.restart();
    let last = first_key(WRITERS + 1);
    let value = value_of(last, value_size(last));
    Peer::connect(daemon.kafka()).append(SOURCE, 0, keyed_batch(&last.to_string(), &value));
    let mut written = written;
    written[0].push(last);
    for topic in MADE {
        wait_until(&format!("one more is in {topic}"), || {
            let mut peer = Peer::connect(daemon.kafka());
            Ok(count_of(&mut peer, topic)? > records)
        })?;
    }
    check(&mut Peer::connect(daemon.kafka()), &written)?;
    // The end waits for no call.
    Peer::connect(daemon.kafka()).append(ENDLESS, 0, keyed_batch("k", b"v"));
    daemon.terminate();
    match daemon.verify_replay() {
        (Some(0), said) if said.ends_with("\nno difference\n") => {}
        (code, said) => return Err(format!("run once more, it ends with {code:?}: {said}")),
    }
    Ok(Report { kills, records, took: begun.elapsed() })
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<bool, String>) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        if Instant::now() > deadline {
            return Err(format!("not within {PATIENCE:?}: {what}"));
        }
        thread::park_timeout(TICK);
    }
    Ok(())
}

/// Records of a topic.
fn count_of(peer: &mut Peer, topic: &str) -> Result<u64, String> {
    let ends = (0..PARTITIONS)
        .map(|partition| Ok(peer.fetch(topic, partition as i32, 0).high_watermark as u64));
    ends.sum()
}

/// Compares what topologies made with what was written.
fn check(peer: &mut Peer, written: &[Vec<u64>]) -> Result<(), String> {
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for number in written.iter().flatten() {
        *expected.entry((number % REMAINDERS).to_string()).or_default() += 1;
    }
    let mut counted: BTreeMap<String, u64> = BTreeMap::new();
    for partition in 0..PARTITIONS {
        visit(peer, COUNTS, partition, &mut |record| {
            let (key, value) = (text(&record.key)?, text(&record.value)?);
            let count = counted.entry(key.clone()).or_default();
            *count += 1;
            match value == count.to_string() {
                true => Ok(()),
                false => Err(format!("{key} is {value} and should be {count}")),
            }
        })?;
    }
    if counted != expected {
        let differs = expected.iter().find(|(key, count)| counted.get(*key) != Some(count));
        return Err(format!("the counts end otherwise, first at {differs:?}"));
    }
    check_copies(peer, COPIES, written, |_| String::new())?;
    check_copies(peer, CALLED, written, remainder_of)
}

/// Compares a topic that has each number once: those of one partition of the source, and of one key if
/// that is what they have, in their order.
fn check_copies(
    peer: &mut Peer,
    topic: &str,
    written: &[Vec<u64>],
    lane_of: fn(&str) -> String,
) -> Result<(), String> {
    // Where each was written: what is of one partition stays in its order.
    let mut missing: HashMap<u64, (usize, usize)> = HashMap::new();
    for (partition, numbers) in written.iter().enumerate() {
        missing
            .extend(numbers.iter().zip(0..).map(|(number, index)| (*number, (partition, index))));
    }
    for partition in 0..PARTITIONS {
        let mut newest: HashMap<(usize, String), usize> = HashMap::new();
        visit(peer, topic, partition, &mut |record| {
            let (key, value) = (text(&record.key)?, text(&record.value)?);
            let number: u64 = value.parse().map_err(|_| format!("{value} is no number"))?;
            let lane = lane_of(&value);
            let is_of_key = key == if lane.is_empty() { &*value } else { &*lane };
            let place = missing.remove(&number).filter(|_| is_of_key);
            let (from, index) = place.ok_or_else(|| {
                format!("{topic}: {number} of key {key} was not written, or is there twice")
            })?;
            match newest.insert((from, lane), index).is_some_and(|before| before > index) {
                true => {
                    Err(format!("{topic}: {number} comes after one that was written behind it"))
                }
                false => Ok(()),
            }
        })?;
    }
    match missing.keys().min() {
        Some(number) => {
            let count = missing.len();
            Err(format!("{topic}: {count} copies are missing, the first of {number}"))
        }
        None => Ok(()),
    }
}

fn text(bytes: &Option<bytes::Bytes>) -> Result<String, String> {
    let bytes = bytes.as_ref().ok_or("a null")?;
    String::from_utf8(bytes.to_vec()).map_err(|_| "no text".to_owned())
}
