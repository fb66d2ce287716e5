//! Nexmark against an independent oracle: the queries run in the real process, which is killed on the
//! way, and SQL in DuckDB says over the same events what their rows have to be.
//!
//! `TIDEMILL_NEXMARK_EVENTS=1000000` makes it the long run that is started by hand.

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tidemill::nexmark::{END_MS, LATENESS, QUERIES};
use tidemill_tests::daemon::{Daemon, Options, binary, repository};
use tidemill_tests::note;
use tidemill_tests::peer::Peer;

/// Events of a run in the gate.
const EVENT_COUNT: u64 = 20_000;

/// How often the process is killed while it writes and processes them.
const KILL_COUNT: u64 = 3;

/// Bids of fifty events, as the generator has it.
const BIDS_OF_FIFTY: u64 = 46;

/// Partitions of each topic: one for each shard.
const PARTITIONS: i32 = 2;

/// Queries whose operators have no timers, or that have no operators: nobody tells their shards of event
/// time, so only their lag says how far they are.
const TIMELESS: [&str; 9] = ["q0", "q1", "q2", "q4", "q14", "q17", "q18", "q19", "q22"];

/// Longest wait for all rows, for each thousand events beyond those of the gate.
const PATIENCE: Duration = Duration::from_secs(120);
const PATIENCE_PER_THOUSAND: Duration = Duration::from_secs(3);

fn event_count() -> u64 {
    match std::env::var("TIDEMILL_NEXMARK_EVENTS") {
        Ok(text) => text.parse().expect("TIDEMILL_NEXMARK_EVENTS is a number"),
        Err(_) => EVENT_COUNT,
    }
}

#[test]
fn every_query_tells_what_sql_says_although_the_process_is_killed() {
    let event_count = event_count();
    let start_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let mut daemon = Daemon::prepare(options(event_count));
    daemon.spawn();
    daemon.wait_ready();
    daemon.wait_log("nexmark: the rows come in");
    for kill in 1..=KILL_COUNT {
        let bids = event_count * BIDS_OF_FIFTY / 50 * kill / (KILL_COUNT + 1);
        wait_for_bids(&daemon, bids);
        daemon.kill();
        daemon.restart();
    }
    daemon.wait_log(&format!("nexmark: {event_count} events are there"));
    wait_until_processed(&daemon, event_count);

    let names: Vec<&str> = QUERIES.iter().map(|query| query.name).collect();
    let output = Command::new(repository().join("target/clients/venv/bin/python"))
        .arg(repository().join("tests/clients/python/nexmark_oracle.py"))
        .args([daemon.kafka().to_string(), event_count.to_string(), start_ms.to_string()])
        .arg(names.join(","))
        .output()
        .unwrap_or_else(|error| panic!("python does not start: {error}; see tests/setup"));
    let told = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{told}{complaints}", output.status);
    assert_eq!(told.lines().count(), names.len(), "a line for each query:\n{told}");
    assert!(daemon.terminate().success(), "SIGTERM ends it cleanly");
    note::figures(&format!(
        "nexmark: {event_count} events, {KILL_COUNT} kills; {}",
        told.lines().collect::<Vec<_>>().join("; ")
    ));
}

#[test]
fn the_demonstration_shows_latencies_and_stops_at_ctrl_c() {
    let mut daemon = Daemon::start(options_of("demo", &["--rate", "1000"]));
    // Two of them: there are results, and their latencies.
    daemon.wait_log(" ms p99 ");
    daemon.signal(libc::SIGINT);
    assert!(daemon.wait_exit().success(), "Ctrl-C ends it cleanly");
    let log = daemon.log();
    let says = |text: &str| log.iter().any(|line| line.contains(text));
    assert!(says(" records/s in, "));
    assert!(says(&format!("kcat -b {} -C -t nexmark-q5", daemon.kafka())));
    assert!(says(&format!("tidemill --data-dir {}", daemon.data_dir().display())));
}

fn options(event_count: u64) -> Options {
    // Some seconds, so that the kills come while events are written.
    let (count, rate) = (event_count.to_string(), (event_count / 5).to_string());
    let arguments =
        ["--query", "all", "--events", &count, "--rate", &rate, "--flush", "--log-format", "text"];
    options_of("nexmark", &arguments)
}

/// The daemon's first argument is `serve`; another command takes its place.
fn options_of(command: &str, arguments: &[&str]) -> Options {
    let instead = format!(r#"shift; exec "$0" {command} "$@""#);
    let program = binary().display().to_string();
    Options {
        shards: PARTITIONS as u16,
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        command: vec!["sh".to_owned(), "-c".to_owned(), instead, program],
        ..Options::default()
    }
}

/// Waits until so many bids were written.
fn wait_for_bids(daemon: &Daemon, count: u64) {
    let mut peer = Peer::connect(daemon.kafka());
    let started = Instant::now();
    loop {
        let ends: i64 = (0..PARTITIONS).map(|it| peer.list_offset("nexmark-bid", it, -1).1).sum();
        if ends >= count as i64 {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{ends} of {count} bids are there");
        peer.pause("nexmark-bid", 0);
    }
}

/// Waits until every query has taken all events, and event time is at its end everywhere.
fn wait_until_processed(daemon: &Daemon, event_count: u64) {
    let more = event_count.saturating_sub(EVENT_COUNT) / 1000;
    let patience = PATIENCE + PATIENCE_PER_THOUSAND * u32::try_from(more).expect("few");
    let mut peer = Peer::connect(daemon.kafka());
    let started = Instant::now();
    loop {
        // In this order: figures of lag are newer than those that say that nothing more will come.
        let open = open_topologies(daemon).and_then(|open| Some(open + open_partitions(daemon)?));
        if open == Some(0) {
            return;
        }
        assert!(started.elapsed() < patience, "{open:?} parts have not processed everything");
        peer.pause("nexmark-bid", 0);
    }
}

/// Topologies, counted on each shard, whose event time is not at its end.
fn open_topologies(daemon: &Daemon) -> Option<usize> {
    let end_ms = END_MS - LATENESS.as_millis() as i64 - 1;
    let page: Value = serde_json::from_str(&daemon.get("/topologies")?.body).ok()?;
    let topologies = page.as_array()?;
    assert_eq!(topologies.len(), QUERIES.len());
    let mut open = 0;
    for topology in topologies {
        let name = topology["topology"].as_str()?.trim_start_matches("nexmark-");
        let is_timeless = TIMELESS.contains(&name);
        let shards = topology["shards"].as_array()?;
        open += usize::from(PARTITIONS as u16) - shards.len();
        for shard in shards {
            assert_eq!(shard["paused_because"], Value::Null, "{}", topology["topology"]);
            assert_eq!(shard["late"], 0, "{}", topology["topology"]);
            let watermark_ms = shard["watermark_ms"].as_i64();
            let is_behind =
                !is_timeless && watermark_ms.is_none_or(|watermark_ms| watermark_ms < end_ms);
            open += usize::from(is_behind || shard["waiting"] != 0);
        }
    }
    Some(open)
}

/// Partitions of inputs that a query has not read to the end.
fn open_partitions(daemon: &Daemon) -> Option<usize> {
    let page = daemon.get("/metrics")?.body;
    let lags: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("tidemill_group_lag_records{group=\"tidemill.nexmark-"))
        .collect();
    // Each query reads one to three topics.
    let missing = (QUERIES.len() * PARTITIONS as usize).saturating_sub(lags.len());
    Some(missing + lags.iter().filter(|line| !line.ends_with(" 0.0")).count())
}
