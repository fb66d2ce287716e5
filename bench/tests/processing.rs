//! Small runs of topologies, against the real node. What they measure here means nothing.

mod server;

use std::process::Command;

use serde_json::Value;

use server::{BENCH, server};

/// Runs a subcommand and returns the runs that it tells.
fn bench(arguments: &[&str]) -> Vec<Value> {
    let output = Command::new(BENCH)
        .args(arguments)
        .arg("--server-arg=--segments-max=3")
        .arg(format!("--server={}", server().display()))
        .arg(format!("--counter={}", env!("CARGO_BIN_EXE_tidemill-count")))
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn number(run: &Value, path: &str) -> f64 {
    let found = run.pointer(path).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no {path} in {run:#}"))
}

#[test]
fn each_topology_takes_all_records_from_a_backlog_and_as_they_come() {
    let runs = bench(&[
        "processing",
        "--records=3000",
        "--keys=100",
        "--events=20000",
        "--rounds=1",
        "--shards=2",
        "--server-arg=--segment-size=17MiB",
    ]);
    let kinds: Vec<&str> = runs.iter().filter_map(|run| run["kind"].as_str()).collect();
    let kinds_expected = ["pass-through", "count", "q5", "q8"]
        .map(|work| [(); 2].map(|()| format!("processing, {work}")))
        .concat();
    assert_eq!(kinds, kinds_expected);
    // Of 50 events one is a person, three are auctions, and all others bids.
    let taken = [3000.0, 3000.0, 3000.0, 3000.0, 18400.0, 18400.0, 1600.0, 1600.0];
    for (run, records) in runs.iter().zip(taken) {
        // The first look is not at nothing.
        assert!((1.0..=records).contains(&number(run, "/result/records")), "{run:#}");
        assert!(number(run, "/result/records_per_second") > 0.0, "{run:#}");
        assert!(number(run, "/machine/cores") > 0.0, "{run:#}");
        let results = number(run, "/figures/results");
        match run["load"]["keys"].as_f64() {
            Some(keys) if keys > 0.0 => assert_eq!(results, records, "{run:#}"),
            _ => assert!((1.0..records).contains(&results), "{run:#}"),
        }
        assert_eq!(number(run, "/figures/rejected"), 0.0, "{run:#}");
    }
}

#[test]
fn keys_of_state_are_made_measured_in_turns_and_there_again_after_a_kill() {
    let runs = bench(&[
        "state",
        "--keys=2000",
        "--rate=200",
        "--rounds=2",
        "--duration=1",
        "--warm-up=100ms",
        "--recoveries=1",
    ]);
    let kinds: Vec<&str> = runs.iter().filter_map(|run| run["kind"].as_str()).collect();
    let turns = ["state", "state, quiet", "state, quiet", "state"];
    let recovered = "state, recovered";
    assert_eq!(kinds[..2], ["state, built", recovered]);
    assert_eq!(kinds[2..6], turns);
    assert_eq!(kinds[6..], [recovered]);
    for run in &runs {
        assert_eq!(number(run, "/load/keys"), 2000.0, "{run:#}");
        match run["kind"].as_str() {
            Some("state" | "state, quiet") => {
                assert_eq!(number(run, "/result/latency/count"), 200.0, "{run:#}");
                assert!(number(run, "/figures/settling_rounds") >= 0.0, "{run:#}");
            }
            _ => assert!(number(run, "/result/records_per_second") > 0.0, "{run:#}"),
        }
        if run["kind"] == "state" {
            assert!(number(run, "/figures/p999_to_quiet") > 0.0, "{run:#}");
        }
        if run["kind"] == recovered {
            let [before, after] = ["state_bytes_before", "state_bytes"]
                .map(|name| number(run, &format!("/figures/{name}")));
            assert!(before > 2000.0 && after >= before, "{run:#}");
        }
    }
}
