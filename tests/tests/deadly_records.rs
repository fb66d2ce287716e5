//! A record that ends the process each time: after three ends its topology rests, everything else goes
//! on, and a mended program takes it up. Against the real process.

use std::os::unix::process::ExitStatusExt;

use tidemill_tests::daemon::{Daemon, Options, deadly_binary};
use tidemill_tests::peer::{Peer, batch_of};

/// The values of a topic's one partition, once there are so many.
fn values(daemon: &Daemon, topic: &str, count: usize) -> Vec<String> {
    let mut peer = Peer::connect(daemon.kafka());
    while (peer.list_offset(topic, 0, -1).1 as usize) < count {
        peer.pause(topic, 0);
    }
    let text = |value: bytes::Bytes| String::from_utf8(value.to_vec()).expect("text");
    peer.values(topic, 0, 0).into_iter().map(text).collect()
}

fn append(daemon: &Daemon, word: &str) {
    Peer::connect(daemon.kafka()).append("words", 0, batch_of(word.as_bytes()));
}

/// The topology rests, and says at which record.
fn assert_paused(daemon: &Daemon) {
    let page = daemon.get("/topologies").expect("a page").body;
    let reason = "the process ended 3 times in a row inside of it, at the record words-0@1;";
    assert!(page.contains(reason), "{page}");
    let metrics = daemon.get("/metrics").expect("a page").body;
    for (topology, value) in [("dying", "1.0"), ("copying", "0.0")] {
        let of_topology = format!("tidemill_topology_paused{{topology=\"{topology}\"");
        let mut lines = metrics.lines().filter(|line| line.starts_with(&of_topology));
        assert!(lines.any(|line| line.ends_with(value)), "{topology}: {metrics}");
    }
}

fn dies_and_rests_and_is_mended(deadly: &str) {
    let mut daemon = Daemon::prepare(Options {
        command: vec![deadly_binary().display().to_string()],
        ..Options::default()
    });
    daemon.set_environment("DEADLY_NODE", "plain");
    daemon.restart();
    let mut peer = Peer::connect(daemon.kafka());
    for topic in ["words", "counts", "copies"] {
        peer.make_topic(topic, 1);
    }
    for word in ["a", deadly, "b"] {
        append(&daemon, word);
    }
    assert!(daemon.terminate().success());

    daemon.set_environment("DEADLY_NODE", "deadly");
    for _ in 0..3 {
        daemon.spawn();
        assert_eq!(daemon.wait_exit().signal(), Some(libc::SIGABRT));
    }
    daemon.restart();
    daemon.wait_log("the topology is paused");
    assert_paused(&daemon);
    append(&daemon, "c");
    assert_eq!(values(&daemon, "words", 4), ["a", deadly, "b", "c"]);
    assert_eq!(values(&daemon, "copies", 4), ["a", deadly, "b", "c"]);
    // An end that nobody asked for changes nothing.
    daemon.kill();
    daemon.restart();
    assert_paused(&daemon);
    append(&daemon, "a");
    assert_eq!(values(&daemon, "copies", 5), ["a", deadly, "b", "c", "a"]);
    assert!(daemon.terminate().success());

    daemon.set_environment("DEADLY_NODE", "mended");
    daemon.restart();
    append(&daemon, "b");
    let mut counts = values(&daemon, "counts", 6);
    counts.sort();
    let once = format!("{deadly} 1");
    let mut expected = ["a 1", "a 2", "b 1", "b 2", "c 1", &once];
    expected.sort_unstable();
    assert_eq!(counts, expected);
    assert!(daemon.terminate().success());
}

#[test]
fn a_record_that_aborts_the_process_pauses_its_topology_until_the_program_is_mended() {
    dies_and_rests_and_is_mended("abort");
}

#[test]
fn a_record_that_overflows_the_stack_does_as_well() {
    dies_and_rests_and_is_mended("overflow");
}
