//! Counts words: reads lines from the topic `lines`, writes each word with its new count to `counts`.
//!
//! ```sh
//! cargo run --release --example word_count -- --data-dir word-count-data
//! kcat -b 127.0.0.1:9092 -P -t lines <<< "so it goes so"
//! kcat -b 127.0.0.1:9092 -C -t counts -e -K =
//! ```

use std::process;

use tidemill::daemon::Daemon;
use tidemill::topology::{Topology, Utf8};

/// Partitions of the topics, which are made at the first start.
const PARTITIONS: u32 = 4;

fn topology() -> Topology {
    let topology = Topology::new("word-count");
    for topic in ["lines", "counts"] {
        topology.create(topic, PARTITIONS);
    }
    topology
        .source("lines", Utf8)
        .flat_map(|line| line.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>())
        .key_by("word", Utf8, Utf8, String::clone)
        .count("count")
        .map(|_, count| count.to_string())
        .sink("counts", Utf8);
    topology
}

fn main() -> process::ExitCode {
    Daemon::from_args().topology(topology()).run()
}

#[cfg(test)]
mod tests {
    use tidemill::driver::{TestDriver, TestRecord};

    use super::*;

    fn driver() -> TestDriver {
        TestDriver::new(2, vec![topology()]).expect("good")
    }

    fn lines() -> Vec<TestRecord> {
        let lines = ["so it goes", "So on and so on", "it"];
        lines.iter().enumerate().map(|(at, line)| TestRecord::new("", line, at as i64)).collect()
    }

    fn counts(driver: &mut TestDriver) -> Vec<String> {
        let mut counts: Vec<String> =
            driver.pipe_out("counts").iter().map(TestRecord::text).collect();
        counts.sort();
        counts
    }

    const COUNTS: [&str; 9] =
        ["and=1", "goes=1", "it=1", "it=2", "on=1", "on=2", "so=1", "so=2", "so=3"];

    #[test]
    fn words_are_counted_over_two_shards_whatever_their_case() {
        let mut driver = driver();
        driver.pipe_in("lines", &lines()).expect("the power is there");
        assert_eq!(counts(&mut driver), COUNTS);
        driver.restart().expect("it comes back");
        driver.pipe_in("lines", &[TestRecord::new("", "so", 9)]).expect("the power is there");
        assert_eq!(counts(&mut driver), ["so=4"], "counts outlive the process");
    }

    #[test]
    fn no_power_cut_loses_or_doubles_a_word() {
        let lines = lines();
        let mut cuts = 0;
        for write in 1.. {
            let mut driver = driver();
            driver.crash_at_write(write);
            if driver.pipe_in("lines", &lines).is_ok() {
                break;
            }
            cuts += 1;
            driver.restart().expect("it comes back");
            // What was not acknowledged may be there all the same.
            let there = driver.pipe_out("lines").len();
            driver.pipe_in("lines", &lines[there..]).expect("the power is there");
            assert_eq!(counts(&mut driver), COUNTS, "a cut at write {write}");
        }
        assert!(cuts > 5, "{cuts} cuts");
    }
}
