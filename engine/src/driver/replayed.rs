//! Topologies in memory, run once more over what their shards recorded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::replay::Unchecked;
use crate::topology::{
    Codec, CodecError, Context, FiredTimer, Int64, Operator, OperatorError, States, TimeDomain,
    Utf8, ValueState, Windows,
};

/// What an operator looks at beside records and state.
type Outside = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Adds up lengths, draws, and reminds by the clock; what it looks at outside is in what it makes.
struct Adding<C: Codec<Value = i64>> {
    sum: ValueState<C>,
    outside: Outside,
}

impl<C: Codec<Value = i64>> Operator for Adding<C> {
    type Key = String;
    type In = String;
    type Out = String;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.sum);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        value: String,
    ) -> Result<(), OperatorError> {
        assert!(!value.contains("panic"), "as asked");
        if value.contains("bad") {
            return Err("as asked".into());
        }
        let sum = self.sum.get(context)?.unwrap_or(0) + value.len() as i64;
        self.sum.set(context, &sum)?;
        let outside = if value.contains("leak") { (self.outside)() } else { 0 };
        context.set_timer(TimeDomain::Processing, context.now_ms() + 50);
        let (random, now_ms, step) = (context.random(), context.now_ms(), context.step());
        let watermark_ms = context.watermark_ms();
        context.emit(format!("{sum} {outside} {random} {now_ms} {step} {watermark_ms}"));
        Ok(())
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        let sum = self.sum.get(context)?.unwrap_or(0);
        context.emit(format!("{sum} when {} was due", timer.time_ms));
        Ok(())
    }
}

/// Everything at once: timers by both clocks, keys that travel, copies without a key, dead letters.
fn topology_of<C: Codec<Value = i64>>(codec: C, outside: Outside) -> Topology {
    let topology = Topology::new("everything");
    for (topic, partition_count) in [("in", 2), ("out", 3), ("windows", 2), ("copies", 3)] {
        topology.create(topic, partition_count);
    }
    topology.create("dead", 2);
    topology.dead_letter("dead");
    let source = topology.source("in", Utf8).event_time(
        |value| value.len() as i64 * 10,
        Duration::ZERO,
        Some(Duration::from_millis(30)),
    );
    source.map(|value| value.to_uppercase()).sink("copies", Utf8);
    let keyed = source.key_by("last", Utf8, Utf8, |value| value[value.len() - 1..].to_owned());
    keyed
        .process("adding", Adding { sum: ValueState::new("sum", codec), outside })
        .sink("out", Utf8);
    keyed
        .window(Windows::tumbling(Duration::from_millis(20)))
        .count("count")
        .map(|_, it| format!("{}: {}", it.start_ms, it.value))
        .sink("windows", Utf8);
    topology
}

fn topology() -> Topology {
    topology_of(Int64, Arc::new(|| 0))
}

fn records() -> Vec<TestRecord> {
    let texts =
        ["a", "bb", "leaka", "bad", "panic", "abc", "leakaaa", "b", "abcabcabc", "leakleakc"];
    let keyed = texts.iter().map(|text| TestRecord::new(&text[..1], text, 1));
    let mut records: Vec<TestRecord> = keyed.collect();
    // Copies of these are without a key.
    records.iter_mut().step_by(2).for_each(|record| record.key = None);
    records
}

fn send(driver: &mut TestDriver, records: &[TestRecord]) -> Result<(), PowerWent> {
    for record in records {
        driver.pipe_in("in", std::slice::from_ref(record))?;
        driver.advance(Duration::from_millis(7));
    }
    Ok(())
}

#[test]
fn what_depends_on_records_and_state_alone_is_the_same_after_any_power_cut() {
    let mut cuts = 0;
    for write in 1.. {
        let mut driver = TestDriver::new(2, vec![topology()]).expect("good");
        driver.crash_at_write(write);
        let is_sent = send(&mut driver, &records()).is_ok();
        if is_sent {
            driver.advance(Duration::from_secs(1));
        }
        let is_cut = driver.is_down();
        if is_cut {
            cuts += 1;
            driver.restart().expect("it comes back");
            let there = driver.pipe_out("in").len();
            send(&mut driver, &records()[there..]).expect("power");
            driver.advance(Duration::from_secs(1));
        }
        assert_eq!(driver.pipe_out("dead").len(), 2);
        assert!(driver.pipe_out("windows").len() > 3);
        let report = driver.verify_replay(vec![topology()]).expect("readable");
        assert_eq!(report.differing, 0, "a cut at write {write}: {report}");
        assert_eq!(report.unchecked, Unchecked::default());
        // Of each record one where it came, and one where its key is; the others are timers.
        assert!(report.steps > 20 && report.calls > 30, "{report}");
        if !is_cut {
            break;
        }
    }
    assert!(cuts > 20, "{cuts} cuts");
}

#[test]
fn what_is_looked_at_outside_is_found_with_the_record_that_did() {
    let counter = Arc::new(AtomicU64::new(0));
    let counting = || {
        let counter = counter.clone();
        topology_of(Int64, Arc::new(move || counter.fetch_add(1, Ordering::Relaxed)))
    };
    let mut driver = TestDriver::new(1, vec![counting()]).expect("good");
    send(&mut driver, &records()).expect("power");
    let report = driver.verify_replay(vec![counting()]).expect("readable");
    assert_eq!(report.differing, 3, "each of those that leak: {report}");
    let [difference] = &report.differences[..] else { panic!("{report}") };
    let is_first = |name: &str| {
        let place = difference.cause.as_deref().expect("known").strip_prefix("in-");
        let (partition, offset) = place.expect("a record").split_once('@').expect("an offset");
        let (partition, offset): (u32, u64) =
            (partition.parse().expect("a number"), offset.parse().expect("a number"));
        let before = records().into_iter().zip(0_u32..);
        let mut keyless = 0;
        let of = before.filter_map(|(record, _)| {
            let index = match &record.key {
                Some(key) => key_partition(key, 2),
                None => {
                    keyless += 1;
                    keyless % 2
                }
            };
            (index == partition).then(|| record.text())
        });
        let found: Vec<String> = of.collect();
        found[offset as usize].ends_with(name)
    };
    assert!(is_first("=leaka"), "{difference}");
    let offset = difference.recorded.find(" 0 ").expect("the first number outside");
    assert_ne!(&difference.now[offset..offset + 3], " 0 ", "{difference}");
    assert!(difference.what.starts_with("a record for out-"), "{difference}");
    assert!(difference.frame > 1, "{difference}");
}

/// Numbers, written in another way.
#[derive(Clone)]
struct Digits;

impl Codec for Digits {
    type Value = i64;

    fn name(&self) -> String {
        Int64.name()
    }

    fn version(&self) -> u8 {
        2
    }

    fn encode(&self, value: &i64, to: &mut Vec<u8>) {
        to.extend_from_slice(value.to_string().as_bytes());
    }

    fn decode(&self, bytes: &Bytes) -> Result<i64, CodecError> {
        let text = String::from_utf8_lossy(bytes);
        text.parse().map_err(|_| CodecError::Null { codec: self.name() })
    }

    fn decode_version(&self, version: u8, bytes: &Bytes) -> Result<i64, CodecError> {
        if version == 1 { Int64.decode(bytes) } else { self.decode(bytes) }
    }
}

#[test]
fn a_codec_that_writes_otherwise_is_found_and_the_rest_is_compared_from_what_is_recorded() {
    let mut driver = TestDriver::new(2, vec![topology()]).expect("good");
    send(&mut driver, &records()).expect("power");
    let letters = 'a'..='z';
    let more: Vec<TestRecord> =
        letters.map(|it| TestRecord::new("k", &it.to_string(), 1)).collect();
    send(&mut driver, &more).expect("power");
    driver.advance(Duration::from_secs(1));
    let changed = topology_of(Digits, Arc::new(|| 0));
    let report = driver.verify_replay(vec![changed]).expect("readable");
    // All records but the two that fail.
    assert_eq!(report.differing, 8 + 26, "{report}");
    let first = report.differences.first().expect("there is one");
    assert_eq!(first.operator.as_deref(), Some("adding"));
    assert!(first.what.starts_with("state \"sum\" of key "), "{first}");
    assert!(first.recorded.ends_with("by version 1 of its codec"), "{first}");
    assert!(first.now.ends_with("by version 2 of its codec"), "{first}");
    let shards: Vec<u16> = report.differences.iter().map(|it| it.shard).collect();
    assert_eq!(shards, [0, 1], "the first of each");
}

#[test]
fn steps_that_the_program_does_not_know_are_counted() {
    let mut driver = TestDriver::new(1, vec![topology()]).expect("good");
    send(&mut driver, &records()).expect("power");
    let all = driver.verify_replay(vec![topology()]).expect("readable").steps;
    assert!(all > 10);
    let report = driver.verify_replay(Vec::new()).expect("readable");
    assert_eq!(
        (report.steps, report.unchecked),
        (0, Unchecked { unknown: all, ..Default::default() })
    );
    let smaller = Topology::new("everything");
    smaller.source("in", Utf8).sink("copies", Utf8);
    let report = driver.verify_replay(vec![smaller]).expect("readable");
    assert_eq!(
        (report.steps, report.unchecked),
        (0, Unchecked { other: all, ..Default::default() })
    );
}

fn large() -> Vec<TestRecord> {
    let value = |number: u32| format!("{number}{}", "x".repeat(100_000));
    (0..400).map(|number| TestRecord::new(&number.to_string(), &value(number), 1)).collect()
}

/// Counts records by their keys, where they are, or where they are sent to.
fn counts(travel: bool) -> Topology {
    let topology = Topology::new("counts");
    let source = topology.source("in", Utf8);
    let keyed = match travel {
        true => source.key_by("first", Utf8, Utf8, |value| value[..1].to_owned()),
        false => source.partitioned_by_key(Utf8),
    };
    let counts = keyed.count("count").map(|_, count| count.to_string());
    if travel {
        counts.sink("out", Utf8);
    }
    topology
}

fn large_driver(topologies: Vec<Topology>) -> TestDriver {
    let mut driver = TestDriver::new(2, Vec::new()).expect("good");
    driver.create_topic("in", 2);
    driver.create_topic("out", 2);
    driver.restart_with(topologies).expect("good");
    driver.pipe_in("in", &large()).expect("power");
    driver.advance(Duration::from_secs(5));
    driver
}

#[test]
fn records_that_had_settled_before_they_were_taken_are_found_in_extents() {
    let mut driver = large_driver(Vec::new());
    driver.restart_with(vec![counts(false)]).expect("good");
    driver.advance(Duration::from_secs(5));
    let report = driver.verify_replay(vec![counts(false)]).expect("readable");
    assert_eq!((report.differing, report.unchecked), (0, Unchecked::default()), "{report}");
    assert_eq!(report.calls, 400, "{report}");
}

#[test]
fn steps_of_a_time_whose_state_or_records_are_over_are_counted_and_do_not_differ() {
    for travel in [false, true] {
        let mut driver = large_driver(vec![counts(travel)]);
        assert_eq!(driver.pipe_out("out").len(), if travel { 400 } else { 0 });
        let report = driver.verify_replay(vec![counts(travel)]).expect("readable");
        assert_eq!(report.differing, 0, "{report}");
        assert!(report.steps > 50 && report.unchecked.state_gone > 0, "{report}");
        // What another shard sent is there no longer than its frame; a shard's own records stay.
        assert_eq!(report.unchecked.input_gone > 0, travel, "{report}");
    }
}
