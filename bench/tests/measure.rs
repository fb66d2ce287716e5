//! Every kind of run, small, against the real server: that it runs to its end, checks what it gets,
//! and tells all that a result has to tell. What it measures here means nothing.

mod server;

use std::process::Command;

use serde_json::Value;

use server::{BENCH, server};

/// Runs a subcommand and returns the runs that it tells.
fn bench(arguments: &[&str]) -> Vec<Value> {
    let small = ["--shards", "1", "--server-arg=--segment-size=17MiB"];
    // Recovery chooses the segments itself.
    let small = if arguments[0] == "recovery" { &small[..2] } else { &small[..] };
    let output = Command::new(BENCH)
        .args(arguments)
        .args(small)
        .arg("--server")
        .arg(server())
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}");
    let lines = String::from_utf8(output.stdout).expect("text");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {value:#}"))
}

/// What every run has to tell.
fn check_told(run: &Value) {
    assert_eq!(number(run, "/format"), 1.0);
    for path in ["/commit", "/machine/kernel", "/machine/file_system", "/sync_method"] {
        let text = run.pointer(path).and_then(Value::as_str).unwrap_or_default();
        assert!(!text.is_empty(), "no {path} in {run:#}");
    }
    assert!(number(run, "/machine/cores") > 0.0);
}

/// That every request of an open loop was answered or accounted for.
fn check_whole(run: &Value, requests: f64) {
    let told =
        ["requests", "refused", "unanswered"].map(|name| number(run, &format!("/result/{name}")));
    assert!((told.iter().sum::<f64>() - requests).abs() <= 1.0, "{told:?} of {requests}");
    assert_eq!(number(run, "/result/latency/count"), told[0] + told[2]);
    assert!(number(run, "/result/latency/p50") > 0.0);
    assert!(number(run, "/result/latency/max") >= number(run, "/result/latency/p9999"));
    assert!(number(run, "/result/cost/server_cpu_seconds") >= 0.0);
}

const SHORT: [&str; 6] = ["--duration", "1", "--warm-up", "200ms", "--rounds", "1"];

#[test]
fn latency_is_told_beside_its_limit() {
    let mut arguments = vec!["latency", "--rate", "100", "--keys", "7", "--arrivals", "even"];
    arguments.extend(SHORT);
    let runs = bench(&arguments);
    assert_eq!(runs.len(), 1);
    check_told(&runs[0]);
    check_whole(&runs[0], 100.0);
    for limit in ["acknowledgement", "echo", "durable_write"] {
        assert!(number(&runs[0], &format!("/limit/{limit}/p50")) > 0.0);
    }
    let ratio =
        number(&runs[0], "/result/latency/p50") / number(&runs[0], "/limit/acknowledgement/p50");
    assert!((number(&runs[0], "/ratio_to_limit/p50") / ratio - 1.0).abs() < 1e-9);
}

#[test]
fn throughput_is_told_for_every_codec_at_a_rate_and_without() {
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let mut arguments = vec!["throughput", "--compression", codec, "--batch", "10"];
        arguments.extend(SHORT);
        arguments.push("--no-limit");
        let runs = bench(&arguments);
        check_told(&runs[0]);
        assert!(number(&runs[0], "/result/records") > 0.0, "{codec}");
    }
    let mut arguments = vec!["throughput", "--batch", "10", "--rate", "1000", "--no-limit"];
    arguments.extend(SHORT);
    check_whole(&bench(&arguments)[0], 100.0);
}

#[test]
fn consumers_get_every_batch() {
    let mut arguments = vec!["fetch", "--consumers", "3", "--rate", "500", "--batch", "5"];
    arguments.extend(SHORT);
    let runs = bench(&arguments);
    check_told(&runs[0]);
    let notes = runs[0]["notes"].to_string();
    assert!(!notes.contains("had not come"), "{notes}");
    assert_eq!(number(&runs[0], "/result/latency/count"), 300.0, "100 batches for each of 3");
    assert_eq!(number(&runs[0], "/figures/bare_writev_calls"), 300.0);
}

#[test]
fn a_killed_node_has_everything_again() {
    let runs = bench(&["recovery", "--fill", "4MiB", "--rounds", "1"]);
    check_told(&runs[0]);
    assert!(number(&runs[0], "/figures/ready_seconds") > 0.0);
    assert!(number(&runs[0], "/figures/unsettled_bytes") >= f64::from(4 << 20));
}

#[test]
fn a_soak_tells_memory_and_descriptors_piece_by_piece() {
    let runs = bench(&[
        "soak",
        "--rate",
        "500",
        "--batch",
        "5",
        "--duration",
        "2",
        "--warm-up",
        "0",
        "--piece",
        "500ms",
    ]);
    check_told(&runs[0]);
    check_whole(&runs[0], 200.0);
    assert!(number(&runs[0], "/result/series/0/resident_bytes") > 0.0);
    assert!(number(&runs[0], "/result/series/0/descriptors") > 0.0);
}

#[test]
fn a_sweep_finds_a_rate() {
    let mut arguments = vec!["latency", "--sweep", "--rate", "1", "--bound", "1us"];
    arguments.extend(SHORT);
    let runs = bench(&arguments);
    assert_eq!(runs.len(), 2, "one rate, tried twice, and none below it");
}

#[test]
fn nothing_is_measured_where_nothing_is_durable() {
    let output = Command::new(BENCH)
        .args(["latency", "--data-dir", "/dev/shm", "--server"])
        .arg(server())
        .output()
        .expect("it runs");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("tmpfs"), "{text}");
}
