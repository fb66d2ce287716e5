use std::sync::{Mutex, PoisonError};

use super::*;
use crate::topology::{
    Context, FiredTimer, Int64, Json, Nullable, Operator, OperatorError, TimeDomain, Utf8, Windows,
};

fn word_count() -> Topology {
    let topology = Topology::new("words");
    topology
        .source("lines", Utf8)
        .flat_map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .key_by("word", Utf8, Utf8, String::clone)
        .count("count")
        .map(|_, count| count.to_string())
        .sink("counts", Utf8);
    topology
}

fn driver(shard_count: u16, topology: Topology, topics: [&str; 2]) -> TestDriver {
    let mut driver = TestDriver::new(shard_count, vec![topology]).expect("good");
    topics.iter().for_each(|topic| driver.create_topic(topic, 4));
    driver
}

fn texts(driver: &mut TestDriver, topic: &str) -> Vec<String> {
    let mut texts: Vec<String> = driver.pipe_out(topic).iter().map(TestRecord::text).collect();
    texts.sort();
    texts
}

#[test]
fn words_are_counted_over_three_shards() {
    let mut driver = driver(3, word_count(), ["lines", "counts"]);
    let lines = ["a b a", "b c"].map(|line| TestRecord::new("k", line, 1));
    driver.pipe_in("lines", &lines).expect("the power is there");
    assert_eq!(texts(&mut driver, "counts"), ["a=1", "a=2", "b=1", "b=2", "c=1"]);
    driver.pipe_in("lines", &lines[..1]).expect("the power is there");
    assert_eq!(texts(&mut driver, "counts"), ["a=3", "a=4", "b=3"]);
    assert_eq!(driver.paused(), []);
}

#[test]
fn no_power_cut_loses_or_doubles_a_count() {
    let lines: Vec<TestRecord> =
        ["a b", "b c d", "a d"].iter().map(|line| TestRecord::new("k", line, 1)).collect();
    let mut whole = driver(2, word_count(), ["lines", "counts"]);
    whole.pipe_in("lines", &lines).expect("the power is there");
    let expected = texts(&mut whole, "counts");
    let mut cuts = 0;
    for write in 1.. {
        let mut driver = driver(2, word_count(), ["lines", "counts"]);
        driver.crash_at_write(write);
        let mut sent = 0;
        if let Err(why) = driver.pipe_in("lines", &lines) {
            (sent, cuts) = (why.acknowledged, cuts + 1);
            driver.restart().expect("it comes back");
        } else if !driver.is_down() {
            break;
        }
        // A client that had no answer looks whether its record is there, as ours has no id.
        let there = driver.pipe_out("lines").len();
        assert!(there >= sent, "{there} of {sent} acknowledged after a cut at write {write}");
        driver.pipe_in("lines", &lines[there..]).expect("the power is there");
        assert_eq!(texts(&mut driver, "counts"), expected, "a cut at write {write}");
    }
    assert!(cuts > 5, "{cuts} cuts");
}

pub(super) struct Reminder;

impl Operator for Reminder {
    type Key = String;
    type In = String;
    type Out = String;

    fn on_record(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        _value: String,
    ) -> Result<(), OperatorError> {
        context.set_timer(TimeDomain::Processing, context.now_ms() + 1000);
        Ok(())
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        context.emit(format!("due at {}", timer.time_ms));
        Ok(())
    }
}

#[test]
fn timers_fire_once_whatever_the_clock_does() {
    let topology = || {
        let topology = Topology::new("reminders");
        let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
        keyed.process("remind", Reminder).sink("out", Utf8);
        topology
    };
    let mut driver = driver(2, topology(), ["in", "out"]);
    driver.pipe_in("in", &[TestRecord::new("k", "x", 1)]).expect("the power is there");
    driver.set_clock(500);
    driver.advance(Duration::from_millis(900));
    assert_eq!(texts(&mut driver, "out"), [""; 0], "the clock went back");
    driver.restart().expect("it comes back");
    driver.set_clock(100_000);
    driver.advance(Duration::from_secs(2));
    assert_eq!(texts(&mut driver, "out"), ["k=due at 2000"]);
    driver.set_clock(1000);
    driver.advance(Duration::from_secs(5));
    driver.set_clock(1_000_000);
    driver.advance(Duration::from_secs(5));
    assert_eq!(texts(&mut driver, "out"), [""; 0], "it has fired");
}

#[test]
fn windows_over_two_shards_end_with_event_time() {
    let topology = Topology::new("windows");
    topology
        .source("in", Utf8)
        .key_by("value", Utf8, Utf8, String::clone)
        .window(Windows::tumbling(Duration::from_millis(10)))
        .count("count")
        .map(|_, it| format!("{}: {}", it.start_ms, it.value))
        .sink("out", Utf8);
    let mut driver = TestDriver::new(2, vec![topology]).expect("good");
    driver.create_topic("in", 1);
    driver.create_topic("out", 4);
    let records: Vec<TestRecord> =
        [1, 2, 9].map(|time_ms| TestRecord::new("k", &format!("v{}", time_ms % 2), time_ms)).into();
    driver.pipe_in("in", &records).expect("the power is there");
    assert_eq!(texts(&mut driver, "out"), [""; 0]);
    driver.pipe_in("in", &[TestRecord::new("k", "v0", 25)]).expect("the power is there");
    assert_eq!(texts(&mut driver, "out"), ["v0=0: 1", "v1=0: 2"]);
}

#[test]
fn repeated_records_pass_once_until_event_time_is_past_them() {
    let topology = Topology::new("once");
    topology
        .source("in", Utf8)
        .partitioned_by_key(Utf8)
        .dedup("once", Duration::from_millis(10))
        .sink("out", Utf8);
    let mut driver = driver(1, topology, ["in", "out"]);
    let at = |times: &[i64]| -> Vec<TestRecord> {
        times.iter().map(|ms| TestRecord::new("k", &ms.to_string(), *ms)).collect()
    };
    driver.pipe_in("in", &at(&[100, 101, 109, 110, 95, 119, 121])).expect("power");
    // 95 is 15 before 110, the newest that passed.
    assert_eq!(texts(&mut driver, "out"), ["k=100", "k=110", "k=121", "k=95"]);
}

#[test]
fn the_best_are_told_each_time_that_they_change() {
    let topology = Topology::new("best");
    topology
        .source("in", Utf8)
        .partitioned_by_key(Utf8)
        .top_n("best", 2, Json::<Vec<String>>::default(), |value| value.len())
        .map(|_, best| best.join(","))
        .sink("out", Utf8);
    let mut driver = driver(1, topology, ["in", "out"]);
    let records = ["bb", "a", "c", "dd", "eee"].map(|value| TestRecord::new("k", value, 1));
    driver.pipe_in("in", &records).expect("power");
    let told: Vec<String> = driver.pipe_out("out").iter().map(TestRecord::text).collect();
    assert_eq!(told, ["k=bb", "k=bb,a", "k=bb,dd", "k=eee,bb"]);
}

#[test]
fn a_stream_goes_on_behind_a_topic_of_its_own() {
    let topology = Topology::new("through");
    topology
        .source("in", Utf8)
        .map(|value| value.to_uppercase())
        .through("middle", Utf8)
        .filter(|value| value != "B")
        .sink("out", Utf8);
    let mut driver = driver(2, topology, ["in", "out"]);
    driver.create_topic("middle", 2);
    let records = ["a", "b", "c"].map(|value| TestRecord::new("k", value, 1));
    driver.pipe_in("in", &records).expect("power");
    assert_eq!(texts(&mut driver, "middle"), ["k=A", "k=B", "k=C"]);
    assert_eq!(texts(&mut driver, "out"), ["k=A", "k=C"]);
}

/// Fails for one value, without a topic for dead letters.
struct Picky;

impl Operator for Picky {
    type Key = String;
    type In = String;
    type Out = String;

    fn on_record(
        &self,
        _context: &mut Context<'_, '_, String>,
        _key: &String,
        value: String,
    ) -> Result<(), OperatorError> {
        match value.starts_with("bad") {
            true => Err("as asked".into()),
            false => Ok(()),
        }
    }
}

#[test]
fn a_shard_that_does_not_get_on_is_sent_no_more_than_it_may_keep() {
    let topology = Topology::new("picky");
    let source = topology.source("in", Utf8);
    source.key_by("value", Utf8, Utf8, |value| value[..8].to_owned()).process("picky", Picky);
    let mut driver = TestDriver::new(2, vec![topology]).expect("good");
    driver.create_topic("in", 1);
    // The shard that has the topic sends, and the other one stops at the first of these.
    let home = driver.route("in").shard_of(0);
    let is_away = |text: &String| {
        let partition = key_partition(&text.as_bytes()[..8], 256);
        partition % 2 != u32::from(home.0)
    };
    let texts: Vec<String> =
        (0..).map(|number| format!("bad {number:04}")).filter(is_away).take(2).collect();
    driver.pipe_in("in", &[TestRecord::new("k", &texts[0], 1)]).expect("power");
    assert_eq!(driver.paused().len(), 1, "{:?}", driver.paused());
    let large = TestRecord::new("k", &(texts[1].clone() + &"x".repeat(100_000)), 1);
    for _ in 0..300 {
        driver.pipe_in("in", std::slice::from_ref(&large)).expect("power");
    }
    let read: u64 = driver.shards().flat_map(Shard::topology_progress).map(|it| it.2).sum();
    assert!((80..200).contains(&read), "{read} of 301 were sent on");
    assert_eq!(driver.pipe_out("in").len(), 301, "all of them were taken in");
}

#[test]
fn no_power_cut_changes_what_windows_and_timers_tell() {
    let topologies = || {
        let windows = Topology::new("windows");
        windows
            .source("in", Utf8)
            .event_time(|value| value.len() as i64 * 10, Duration::ZERO, None)
            .key_by("first", Utf8, Utf8, |value| value[..1].to_owned())
            .window(Windows::tumbling(Duration::from_millis(20)))
            .count("count")
            .map(|_, it| format!("{}: {}", it.start_ms, it.value))
            .sink("windows", Utf8);
        let reminders = Topology::new("reminders");
        let keyed = reminders.source("in", Utf8).partitioned_by_key(Utf8);
        keyed.process("remind", Reminder).sink("reminders", Utf8);
        for (topic, partition_count) in [("in", 1), ("windows", 2), ("reminders", 2)] {
            windows.create(topic, partition_count);
        }
        vec![windows, reminders]
    };
    let records: Vec<TestRecord> = ["a", "bb", "aaa", "bbbbb", "aaaaaaaa", "bbbbbbbbb"]
        .map(|text| TestRecord::new(&text[..1], text, 1))
        .into();
    let told = |driver: &mut TestDriver| {
        driver.advance(Duration::from_secs(3));
        let mut told = texts(driver, "windows");
        // When a timer is due is the clock's to say; that it rang once for each record is not.
        told.push(format!("{} reminders", driver.pipe_out("reminders").len()));
        told
    };
    let send = |driver: &mut TestDriver, records: &[TestRecord]| {
        for record in records {
            driver.pipe_in("in", std::slice::from_ref(record))?;
            driver.advance(Duration::from_millis(1));
        }
        Ok::<(), PowerWent>(())
    };
    let mut whole = TestDriver::new(2, topologies()).expect("good");
    send(&mut whole, &records).expect("power");
    let expected = told(&mut whole);
    assert!(expected.len() > 3, "{expected:?}");
    let mut cuts = 0;
    for write in 1.. {
        let mut driver = TestDriver::new(2, topologies()).expect("good");
        driver.crash_at_write(write);
        let is_cut = send(&mut driver, &records).is_err() || driver.is_down();
        if !is_cut {
            break;
        }
        cuts += 1;
        driver.restart().expect("it comes back");
        let there = driver.pipe_out("in").len();
        send(&mut driver, &records[there..]).expect("power");
        assert_eq!(told(&mut driver), expected, "a cut at write {write}");
    }
    assert!(cuts > 10, "{cuts} cuts");
}

/// Words are looked up by a blocking call, and then counted where they live; it fails for one.
fn looked_up(made: Arc<Mutex<Vec<String>>>) -> Topology {
    let topology = Topology::new("looked up");
    topology
        .source("in", Utf8)
        .key_by("first", Utf8, Utf8, |value| value[..1].to_owned())
        .blocking("look up", Utf8, Utf8, move |key, value| {
            let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
            made.push(value.clone());
            match value.as_str() {
                "b-bad" => Err("unknown".into()),
                _ => Ok(format!("{key}{}", value.len())),
            }
        })
        .key_by("found", Utf8, Utf8, |_, found| found.clone())
        .count("count")
        .map(|_, count| count.to_string())
        .sink("out", Utf8);
    topology.dead_letter("dead");
    for topic in ["in", "out", "dead"] {
        topology.create(topic, 4);
    }
    topology
}

#[test]
fn no_power_cut_loses_or_doubles_what_comes_of_a_blocking_call() {
    let made: Arc<Mutex<Vec<String>>> = Arc::default();
    let taken = || std::mem::take(&mut *made.lock().unwrap_or_else(PoisonError::into_inner));
    let start = || TestDriver::new(2, vec![looked_up(made.clone())]).expect("good");
    let records: Vec<TestRecord> =
        ["a-x", "b-x", "a-y", "b-bad"].map(|value| TestRecord::new("k", value, 1)).into();
    let told = |driver: &mut TestDriver| {
        let mut told = texts(driver, "out");
        told.extend(texts(driver, "dead"));
        told
    };
    let mut whole = start();
    whole.pipe_in("in", &records).expect("power");
    let expected = told(&mut whole);
    assert_eq!(expected, ["a3=1", "a3=2", "b3=1", "b=b-bad"]);
    let mut values: Vec<String> =
        records.iter().map(|it| it.text()["k=".len()..].to_owned()).collect();
    values.sort();
    let mut calls = taken();
    calls.sort();
    assert_eq!(calls, values, "one call each");
    let (mut cuts, mut repeated) = (0, 0);
    for write in 1.. {
        let mut driver = start();
        driver.crash_at_write(write);
        let is_cut = driver.pipe_in("in", &records).is_err() || driver.is_down();
        if !is_cut {
            break;
        }
        cuts += 1;
        driver.restart().expect("it comes back");
        let there = driver.pipe_out("in").len();
        driver.pipe_in("in", &records[there..]).expect("power");
        assert_eq!(told(&mut driver), expected, "a cut at write {write}");
        let calls = taken();
        for value in &values {
            let count = calls.iter().filter(|call| *call == value).count();
            assert!((1..=2).contains(&count), "{value}: {count} calls");
            repeated += count - 1;
        }
    }
    assert!(cuts > 10 && repeated > 0, "{cuts} cuts, {repeated} calls were made again");
}

#[test]
fn results_of_a_key_come_in_the_order_of_its_records_with_their_times_and_headers() {
    let topology = Topology::new("order");
    let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
    let sizes = keyed.blocking("size", Utf8, Int64, |_, value| Ok(value.len() as i64));
    sizes.map(|_, size| size.to_string()).sink("out", Utf8);
    let mut driver = driver(2, topology, ["in", "out"]);
    let header = |number: i64| ("n".into(), Some(Bytes::from(number.to_string())));
    let records: Vec<TestRecord> = (0..60)
        .map(|number| {
            let value = "x".repeat(number as usize);
            let record = TestRecord::new(&format!("k{}", number % 7), &value, number);
            TestRecord { headers: vec![header(number), ("none".into(), None)], ..record }
        })
        .collect();
    driver.pipe_in("in", &records).expect("power");
    let told = driver.pipe_out("out");
    for key in 0..7 {
        let key = format!("k{key}");
        let is_its = |it: &&TestRecord| it.key.as_deref() == Some(key.as_bytes());
        let expected: Vec<TestRecord> = (records.iter().filter(is_its))
            .map(|it| {
                let size = it.value.as_ref().map_or(0, Bytes::len).to_string();
                TestRecord { value: Some(size.into()), ..it.clone() }
            })
            .collect();
        let told: Vec<TestRecord> = told.iter().filter(is_its).cloned().collect();
        assert_eq!(told, expected, "{key}");
    }
}

#[test]
fn a_blocking_call_takes_and_gives_nulls() {
    let topology = Topology::new("nulls");
    let keyed = topology.source("in", Nullable(Utf8)).partitioned_by_key(Utf8);
    let (values, results) = (Nullable(Utf8), Nullable(Utf8));
    let turned = keyed.blocking("turn", values, results, |_, value| match value {
        Some(_) => Ok(None),
        None => Ok(Some("there".to_owned())),
    });
    turned.sink("out", Nullable(Utf8));
    let mut driver = driver(1, topology, ["in", "out"]);
    let there = TestRecord::new("k", "x", 1);
    let null = TestRecord { value: None, ..there.clone() };
    driver.pipe_in("in", &[there, null]).expect("power");
    let told: Vec<Option<Bytes>> = driver.pipe_out("out").into_iter().map(|it| it.value).collect();
    assert_eq!(told, [None, Some(Bytes::from_static(b"there"))]);
}

#[test]
fn an_operator_that_calls_is_not_removed_while_records_wait() {
    let calling = |name: &str| {
        let topology = Topology::new("calling");
        let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
        keyed.blocking(name, Utf8, Utf8, |_, _| Err("not now".into())).sink("out", Utf8);
        topology
    };
    let mut driver = driver(1, calling("call"), ["in", "out"]);
    driver.pipe_in("in", &[TestRecord::new("k", "x", 1)]).expect("power");
    assert_eq!(driver.paused().len(), 1, "it has no topic for dead letters");
    let why = driver.restart_with(vec![calling("other")]).expect_err("a record waits").to_string();
    assert!(why.contains("drop_state(\"call\", \"waiting\")"), "{why}");
}
