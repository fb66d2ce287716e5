//! A small comparison against the real server, the page that is drawn of it, and the verdict on two
//! equal sets of runs. What it measures here means nothing.

mod server;

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

use server::{BENCH, server};

fn bench(arguments: &[&str]) -> Output {
    Command::new(BENCH).args(arguments).output().expect("it runs")
}

#[test]
fn tidemill_alone_is_compared_and_reported() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (runs, page, data) = (path("runs.jsonl"), path("page.html"), path("data"));
    let server = server().display().to_string();
    let output = bench(&[
        "compare",
        "--no-peers",
        "--scenarios=latency,sweep",
        "--rates=200",
        "--rounds=1",
        "--duration=2",
        "--warm-up=100ms",
        // Any time will do: what is tried is that the search ends.
        "--bound=30s",
        "--sweep-max=8000",
        "--shards=1",
        "--server-arg=--segment-size=17MiB",
        &format!("--server={server}"),
        &format!("--data-dir={data}"),
        &format!("--out={runs}"),
    ]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("Acknowledgement at 200 records/s of 256 B"), "{told}");
    let text = fs::read_to_string(&runs).expect("runs");
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let kinds: Vec<&str> = lines.iter().filter_map(|line| line["kind"].as_str()).collect();
    assert_eq!(kinds, ["latency", "sweep"], "{told}");
    let requests = ["requests", "refused", "unanswered"]
        .map(|name| lines[0]["result"][name].as_f64().expect("a number"));
    assert!((requests.iter().sum::<f64>() - 400.0).abs() <= 1.0, "{requests:?}");
    assert!(lines[0]["ratio_to_limit"]["p50"].as_f64().is_some_and(|ratio| ratio > 0.0));
    assert!(lines[1]["figures"]["probes"].as_f64().is_some_and(|probes| probes >= 1.0));
    assert_eq!(fs::read_dir(&data).expect("kept").count(), 0, "nothing is left of the server");

    let output = bench(&["report", &runs, "--out", &page]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = fs::read_to_string(page).expect("the page");
    assert!(page.contains("<svg") && page.contains("<td>tidemill<small>1 rounds</small></td>"));
}

#[test]
fn a_regression_is_an_exit_code() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let write = |name: &str, p50: f64| {
        let lines = (1..=5).map(|round| {
            let latency = format!(
                r#"{{"count":9,"p50":{p50},"p90":9,"p99":9,"p999":9,"p9999":9,"max":9,"curve":[]}}"#
            );
            LINE.replace("ROUND", &round.to_string()).replace("LATENCY", &latency) + "\n"
        });
        let path = directory.path().join(name);
        fs::write(&path, lines.collect::<String>()).expect("written");
        path.display().to_string()
    };
    let (fast, slow) = (write("fast", 100.0), write("slow", 120.0));
    let worse = bench(&["compare-runs", &fast, &slow]);
    let told = String::from_utf8_lossy(&worse.stdout);
    assert!(!worse.status.success() && told.contains("p50: WORSE: x1.200"), "{worse:?}");
    let better = bench(&["compare-runs", &slow, &fast]);
    let told = String::from_utf8_lossy(&better.stdout);
    assert!(better.status.success() && told.contains("p50: better: x0.833"), "{better:?}");
    let same = bench(&["compare-runs", &fast, &fast]);
    assert!(same.status.success(), "{same:?}");
}

/// A run as it was written once: whoever changes a field's name has to change `format`.
const LINE: &str = r#"{"format":1,"kind":"latency","system":"tidemill","started_unix_ms":1,"round":ROUND,"command":[],"commit":"abc","machine":{"processor":"","cores":2,"memory_bytes":1,"is_virtual":true,"kernel":"6","file_system":"ext4","mount_options":"rw","disk":"vda","disk_model":"","disk_cache":"","disk_scheduler":"","load_average_before":0},"sync_method":"dsync","configuration":{},"load":{"requests_per_second":1000.0,"arrivals":"even","in_flight_max":1,"record_size":256,"records_per_request":1,"request_size":300,"partitions":1,"connections":1,"keys":0,"compression":"none","acks":"all","warm_up_seconds":1,"duration_seconds":1,"shards":1},"result":{"seconds":1,"requests":9,"records":9,"accepted_bytes":9,"records_per_second":9,"refused":0,"unanswered":0,"send_delay_us":{"p50":1,"p90":1,"p99":1,"p999":1,"p9999":1,"max":1},"latency":LATENCY,"series":[],"cost":{"server_cpu_seconds":null,"server_cpu_seconds_per_million_records":null,"client_cpu_seconds":1,"client_cpu_seconds_per_million_records":1,"device_written_bytes":null,"device_writes":null,"device_flushes":null,"device_source":"","device_bytes_per_accepted_byte":null}}}"#;
