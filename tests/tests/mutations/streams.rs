//! What topologies promise over a power cut, each as a scenario that a break of it ends badly.

use std::time::Duration;

use tidemill::command::key_partition;
use tidemill::driver::{TestDriver, TestRecord};
use tidemill::topology::{Topology, Utf8, Windows};

/// Bytes of a result: those of [`OWN_WORDS`] fit one call, and are more than topologies put into a
/// frame by several, so that what another shard sent at once is taken in two steps.
const RESULT_SIZE: usize = 500 << 10;

/// Words of a line for each shard.
const OWN_WORDS: usize = 5;

/// How long a partition may be silent before it holds nobody up.
const SILENCE: Duration = Duration::from_millis(100);

fn driver(shard_count: u16, topology: Topology, partition_count: u32) -> TestDriver {
    let mut driver = TestDriver::new(shard_count, vec![topology]).expect("a good topology");
    ["in", "out"].iter().for_each(|topic| driver.create_topic(topic, partition_count));
    driver
}

/// New records of the results, as text, without the spaces that make them large.
fn results(driver: &mut TestDriver) -> Vec<String> {
    let records = driver.pipe_out("out");
    let mut texts: Vec<String> =
        records.iter().map(|record| record.text().trim_end().to_owned()).collect();
    texts.sort();
    texts
}

fn large_counts() -> Topology {
    let topology = Topology::new("words");
    topology
        .source("in", Utf8)
        .flat_map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .key_by("word", Utf8, Utf8, String::clone)
        .count("count")
        .map(|_, count| format!("{count}{}", " ".repeat(RESULT_SIZE)))
        .sink("out", Utf8);
    topology
}

pub fn what_another_shard_sent_is_taken_once() {
    let of_shard = |shard: u32| {
        let words = (0..).map(|number: u32| format!("w{number}"));
        words.filter(move |word| key_partition(word.as_bytes(), 2) == shard).take(OWN_WORDS)
    };
    let words: Vec<String> = of_shard(0).chain(of_shard(1)).collect();
    let lines = [TestRecord::new("k", &words.join(" "), 1)];
    let mut whole = driver(2, large_counts(), 2);
    whole.pipe_in("in", &lines).expect("there is power");
    let expected = results(&mut whole);
    assert_eq!(expected.len(), words.len());
    for write in 1.. {
        let mut driver = driver(2, large_counts(), 2);
        driver.crash_at_write(write);
        let sent = driver.pipe_in("in", &lines);
        if !driver.is_down() {
            return;
        }
        driver.restart().expect("it comes back");
        if sent.is_err() && driver.pipe_out("in").is_empty() {
            driver.pipe_in("in", &lines).expect("there is power");
        }
        assert_eq!(results(&mut driver), expected, "the power went at write {write}");
    }
}

fn short_windows() -> Topology {
    let topology = Topology::new("windows");
    topology
        .source("in", Utf8)
        .event_time(|time| time.parse().unwrap_or(0), Duration::ZERO, Some(SILENCE))
        .partitioned_by_key(Utf8)
        .window(Windows::tumbling(Duration::from_millis(10)))
        .count("count")
        .map(|_, it| format!("{}..{}: {}", it.start_ms, it.end_ms, it.value))
        .sink("out", Utf8);
    topology
}

pub fn what_was_late_stays_late() {
    let is_first = |key: &&str| key_partition(key.as_bytes(), 2) == 0;
    let keys = ["a", "b", "c", "d", "e", "f"];
    let silent = keys.iter().find(|key| is_first(key)).expect("one of many");
    let active = keys.iter().find(|key| !is_first(key)).expect("one of many");
    let mut driver = driver(1, short_windows(), 2);
    let send = |driver: &mut TestDriver, key: &str, time: &str| {
        driver.pipe_in("in", &[TestRecord::new(key, time, 0)]).expect("there is power");
        driver.advance(SILENCE * 2 / 3);
    };
    send(&mut driver, silent, "1");
    send(&mut driver, active, "35");
    assert_eq!(results(&mut driver), [format!("{silent}=0..10: 1")], "one partition is silent");
    driver.restart().expect("it comes back");
    send(&mut driver, silent, "2");
    send(&mut driver, active, "36");
    assert_eq!(results(&mut driver), [""; 0], "the window was told, and the record is late");
}
