//! Real nodes that were killed, and their topologies run once more; that nothing differs under many
//! kills is in `exactly_once`.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tidemill_tests::daemon::{
    Daemon, Options, binary, counting_binary, drifting_binary, dump_binary, said,
};
use tidemill_tests::drifting::{LOUD, SOURCE, STAMPED};
use tidemill_tests::peer::{Peer, keyed_batch};

const PATIENCE: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(10);

fn drifting() -> Daemon {
    Daemon::start(Options {
        command: vec![drifting_binary().display().to_string()],
        // The records are of 1970.
        arguments: ["--default-retention", "unlimited"].map(String::from).into(),
        ..Options::default()
    })
}

/// Writes values and waits until both topologies have taken them.
fn send(daemon: &Daemon, values: &[&str], count: i64) {
    let mut peer = Peer::connect(daemon.kafka());
    for value in values {
        peer.append_patiently(SOURCE, 0, &keyed_batch("key", value.as_bytes()));
    }
    let deadline = Instant::now() + PATIENCE;
    let mut is_done = |topic: &str| peer.fetch(topic, 0, 0).high_watermark >= count;
    while !is_done(LOUD) || !is_done(STAMPED) {
        assert!(Instant::now() < deadline, "topologies do not get on");
        thread::park_timeout(TICK);
    }
}

fn dump(daemon: &Daemon, program: &str) -> (Option<i32>, String) {
    let mut command = Command::new(dump_binary());
    command.arg("verify-replay").arg(daemon.data_dir()).args(["--program", program]);
    said(command)
}

#[test]
fn an_operator_that_looks_at_the_clock_is_found_with_its_record_after_kills() {
    let program = drifting_binary().display().to_string();
    let mut daemon = drifting();
    send(&daemon, &["a", "b"], 2);
    daemon.kill();
    let (code, text) = daemon.verify_replay();
    assert_eq!(code, Some(0), "nothing has looked at the clock yet: {text}");
    assert!(text.starts_with("verify-replay: ") && text.ends_with("\nno difference\n"), "{text}");
    let (code, text) = dump(&daemon, &program);
    assert_eq!(code, Some(0), "{text}");
    daemon.restart();
    send(&daemon, &["c", "the clock", "d", "clock"], 6);
    daemon.kill();
    for (code, text) in [daemon.verify_replay(), dump(&daemon, &program)] {
        assert!([Some(18), Some(1)].contains(&code), "{code:?}: {text}");
        let line = text.lines().find(|line| line.starts_with("difference: "));
        let line = line.unwrap_or_else(|| panic!("{text}"));
        let what = ", topology \"drifting\", at letters-0@3: a record for stamped-0: recorded ";
        assert!(line.contains(what), "{line}");
        assert!(text.contains("\n2 steps came out otherwise"), "{text}");
    }
    assert_eq!(daemon.verify_replay().0, Some(18));
    assert_eq!(dump(&daemon, &program).0, Some(1));
    daemon.restart();
    send(&daemon, &["e"], 7);
    let (code, text) = daemon.verify_replay();
    assert_eq!(code, Some(12), "a node that runs is left alone: {text}");
}

#[test]
fn a_program_without_these_topologies_counts_and_one_without_the_flag_is_refused() {
    let program = counting_binary().display().to_string();
    let mut daemon = drifting();
    send(&daemon, &["a"], 1);
    daemon.kill();
    let (code, text) = dump(&daemon, &program);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(" steps not made again: their topology is not one of"), "{text}");
    let (code, text) = dump(&daemon, &binary().display().to_string());
    assert_eq!(code, Some(0), "the plain node has none: {text}");
    for other in [dump_binary().display().to_string(), "true".to_owned()] {
        let (code, text) = dump(&daemon, &other);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains("has checked nothing"), "{text}");
    }
    let (code, text) = dump(&daemon, "/nonexistent/program");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("does not start"), "{text}");
    let missing = daemon.data_dir().join("none");
    let mut command = Command::new(drifting_binary());
    command.args(["--verify-replay", "--data-dir"]).arg(&missing);
    let (code, text) = said(command);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("is no data directory"), "{text}");
    assert!(!missing.exists(), "and none is made");
}
