//! Topologies on whole shards in memory.

use std::time::Duration;

use bytes::Bytes;

use super::{TestDriver, TestRecord};
use crate::topology::{Headers, TIME_MS_MAX, TimeDomain, Topology, Utf8, Windows};

/// Two shards with these topics of so many partitions.
fn driver(topology: Topology, topics: &[(&str, u32)]) -> TestDriver {
    let mut driver = TestDriver::new(2, vec![topology]).expect("good");
    topics.iter().for_each(|(topic, count)| driver.create_topic(topic, *count));
    driver
}

fn put(driver: &mut TestDriver, topic: &str, records: &[TestRecord]) {
    driver.pipe_in(topic, records).expect("the power is there");
}

/// New records of a topic as text, sorted.
fn texts(driver: &mut TestDriver, topic: &str) -> Vec<String> {
    let mut texts: Vec<String> = driver.pipe_out(topic).iter().map(TestRecord::text).collect();
    texts.sort();
    texts
}

#[test]
fn trace_context_goes_through_every_hop_and_not_through_timers() {
    let topology = Topology::new("traces");
    let keyed = topology.source("in", Utf8).key_by("value", Utf8, Utf8, String::clone);
    keyed
        .count("count")
        .map(|_, count| count.to_string())
        .through("middle", Utf8)
        .sink("out", Utf8);
    keyed
        .window(Windows::tumbling(Duration::from_millis(10)))
        .count("window")
        .map(|_, it| it.value.to_string())
        .sink("windows", Utf8);
    let mut driver = driver(topology, &[("in", 1), ("middle", 4), ("out", 4), ("windows", 4)]);
    let headers = |span: &str| -> Headers {
        let parent = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{span}-01");
        let header = |name: &'static str, value: String| (name.into(), Some(Bytes::from(value)));
        vec![header("traceparent", parent), header("tracestate", "a=b,c=d".to_owned())]
    };
    // Enough keys for both shards.
    let records: Vec<TestRecord> = (0..16)
        .map(|number| {
            let value = format!("v{number}");
            let headers = headers(&format!("{number:016x}"));
            TestRecord { headers, ..TestRecord::new("k", &value, 5) }
        })
        .collect();
    put(&mut driver, "in", &records);
    for topic in ["middle", "out"] {
        let told = driver.pipe_out(topic);
        assert_eq!(told.len(), 16, "{topic}");
        for record in told {
            let key = record.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            let number: u32 = key[1..].parse().expect("a number");
            assert_eq!(record.headers, headers(&format!("{number:016x}")), "{topic}");
        }
    }
    put(&mut driver, "in", &[TestRecord::new("k", "v0", 50)]);
    let told = driver.pipe_out("windows");
    assert_eq!(told.len(), 16);
    assert!(told.iter().all(|record| record.headers.is_empty()));
}

#[test]
fn streams_are_joined_by_windows_over_shards() {
    let topology = Topology::new("joins");
    let key = |value: &String| value[..2].to_owned();
    let left = topology.source("left", Utf8).key_by("left", Utf8, Utf8, key);
    let right = topology.source("right", Utf8).key_by("right", Utf8, Utf8, key);
    let windows = Windows::tumbling(Duration::from_millis(10));
    left.window_join("join", &right, windows, (Utf8, Utf8), |_, left, right| {
        format!("{}{}", &left[3..], &right[3..])
    })
    .map(|_, it| format!("{} {}", it.start_ms, it.value))
    .sink("out", Utf8);
    let mut driver = driver(topology, &[("left", 1), ("right", 1), ("out", 4)]);
    let at = |value: &str, time_ms: i64| -> Vec<TestRecord> {
        let record = |key: u8| TestRecord::new("", &format!("k{key} {value}"), time_ms);
        (0..8).map(record).collect()
    };
    put(&mut driver, "left", &at("a", -1));
    put(&mut driver, "right", &at("x", -9));
    driver.restart().expect("it comes back");
    put(&mut driver, "left", &at("b", 20));
    assert_eq!(texts(&mut driver, "out"), [""; 0], "the other side may still come");
    put(&mut driver, "right", &at("y", 35));
    let told: Vec<String> = (0..8).map(|key| format!("k{key}=-10 ax")).collect();
    assert_eq!(texts(&mut driver, "out"), told);
}

#[test]
fn state_of_silent_keys_goes_by_the_clock_also_after_a_restart() {
    let topology = Topology::new("silence");
    let keyed = topology.source("in", Utf8).key_by("value", Utf8, Utf8, String::clone);
    let living = keyed.ttl(TimeDomain::Processing, Duration::from_secs(10));
    living.count("count").map(|_, count| count.to_string()).sink("out", Utf8);
    let mut driver = driver(topology, &[("in", 4), ("out", 4)]);
    let record = |value: &str| [TestRecord::new("k", value, 5)];
    for value in ["a", "b", "c"] {
        put(&mut driver, "in", &record(value));
    }
    driver.advance(Duration::from_secs(6));
    put(&mut driver, "in", &record("b"));
    assert_eq!(texts(&mut driver, "out"), ["a=1", "b=1", "b=2", "c=1"]);
    driver.advance(Duration::from_secs(6));
    for value in ["a", "b", "c"] {
        put(&mut driver, "in", &record(value));
    }
    assert_eq!(texts(&mut driver, "out"), ["a=1", "b=3", "c=1"]);
    driver.restart().expect("it comes back");
    driver.advance(Duration::from_secs(10));
    put(&mut driver, "in", &record("b"));
    assert_eq!(texts(&mut driver, "out"), ["b=1"]);
}

#[test]
fn records_of_times_beyond_all_times_go_to_the_dead_letters_and_time_goes_on_without_them() {
    let topology = Topology::new("times");
    topology.dead_letter("dead");
    let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
    keyed
        .window(Windows::tumbling(Duration::from_millis(10)))
        .count("window")
        .map(|_, it| it.value.to_string())
        .sink("out", Utf8);
    let mut driver = driver(topology, &[("in", 4), ("dead", 4), ("out", 4)]);
    let times = [1, i64::MIN, i64::MAX, TIME_MS_MAX + 1, -TIME_MS_MAX - 1, 2];
    let records = times.map(|time_ms| TestRecord::new("k", "x", time_ms));
    put(&mut driver, "in", &records);
    assert_eq!(texts(&mut driver, "out"), [""; 0]);
    let dead: Vec<i64> = driver.pipe_out("dead").iter().map(|it| it.timestamp_ms).collect();
    assert_eq!(dead, times[1..5]);
    assert_eq!(driver.paused(), []);
}

#[test]
fn event_time_goes_on_over_shards_beside_a_topology_that_has_none() {
    let counts = Topology::new("counts");
    let words = counts.source("in", Utf8).key_by("word", Utf8, Utf8, String::clone);
    words.count("count").map(|_, count| count.to_string()).sink("out", Utf8);
    let windows = Topology::new("windows");
    let words = windows.source("in", Utf8).key_by("word", Utf8, Utf8, String::clone);
    let window = words.window(Windows::tumbling(Duration::from_millis(10)));
    window.count("count").map(|_, it| it.value.to_string()).sink("windows", Utf8);
    let mut driver = TestDriver::new(2, vec![counts, windows]).expect("good");
    for (topic, count) in [("in", 1), ("out", 2), ("windows", 2)] {
        driver.create_topic(topic, count);
    }
    let word = |number: usize| format!("v{number}");
    let records = (0..16).map(|number| TestRecord::new("k", &word(number), number as i64 / 8));
    put(&mut driver, "in", &records.collect::<Vec<_>>());
    put(&mut driver, "in", &[TestRecord::new("k", "last", 25)]);
    assert_eq!(texts(&mut driver, "out").len(), 17);
    assert_eq!(texts(&mut driver, "windows").len(), 16, "no time has passed on the clock");
}
