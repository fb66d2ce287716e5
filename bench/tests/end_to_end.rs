//! A small run from records to their counts, against the real node. What it measures here means
//! nothing.

mod server;

use std::process::Command;

use serde_json::Value;

use server::{BENCH, server};

#[test]
fn every_record_is_counted_once_here_and_on_another_shard() {
    let output = Command::new(BENCH)
        .args(["end-to-end", "--no-peers", "--rates=200,400", "--rounds=1", "--duration=1"])
        .args(["--warm-up=100ms", "--keys=50", "--shards=2", "--server-arg=--segment-size=17MiB"])
        .arg(format!("--server={}", server().display()))
        .arg(format!("--counter={}", env!("CARGO_BIN_EXE_tidemill-count")))
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let text = String::from_utf8(output.stdout).expect("text");
    let runs: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let kinds: Vec<&str> = runs.iter().filter_map(|run| run["kind"].as_str()).collect();
    let ways = ["end-to-end", "end-to-end, repartitioned", "plain"];
    assert_eq!(kinds, [ways, ways].concat(), "{told}");
    for (run, records) in runs.iter().zip([200.0, 200.0, 200.0, 400.0, 400.0, 400.0]) {
        let number = |path: &str| {
            let found = run.pointer(path).and_then(Value::as_f64);
            found.unwrap_or_else(|| panic!("no {path}: {run:#}"))
        };
        assert_eq!(number("/result/latency/count"), records, "{run:#}");
        assert!(number("/result/latency/p50") > 0.0);
        assert!(number("/machine/cores") > 0.0);
        if run["kind"] != "plain" {
            // A little more was sent before the measured time.
            assert!(number("/figures/results") > records, "{run:#}");
            assert_eq!(number("/figures/results_of_several_records"), 0.0, "each count is told");
            assert_eq!(number("/figures/results_repeated"), 0.0);
            assert!(number("/figures/p50_to_plain") > 0.0);
        }
    }
}
