//! The real process on a real file system on a drive of ours: its power is cut, it lies, it fails,
//! it runs full, it has bad sectors.
//!
//! The program `power_cuts` tries more of the power cuts than this does.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tidemill::exit_code::ExitCode;
use tidemill::kafka::error_code::ErrorCode;
use tidemill_tests::daemon::Daemon;
use tidemill_tests::note;
use tidemill_tests::peer::{Peer, batch_of};
use tidemill_tests::recorded::cut::{Cutter, Survivors, windows};
use tidemill_tests::recorded::drive::{Event, Trouble};
use tidemill_tests::recorded::stand::Stand;
use tidemill_tests::recorded::trial::{DRIVE_SIZE, Recorded, prepare};
use tidemill_tests::sim::random::Random;

/// Power cuts that are looked at here.
const LASTS: Duration = Duration::from_secs(20);

/// Loop devices and cores are few: one stand at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a test with a stand, or says why not.
fn with_stand(size: u64, test: impl FnOnce(Stand)) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    match Stand::missing() {
        Some(why) => note::skipped("the recorded drive", &why),
        None => test(Stand::new(size)),
    }
}

/// A node with one shard on a file system of ours.
struct Node {
    // Ends before what it stands on.
    daemon: Daemon,
    stand: Stand,
}

impl Node {
    /// Runs a test with a node and a client, or says why not.
    fn with(size: u64, test: impl FnOnce(Node, Peer)) {
        with_stand(size, |mut stand| {
            stand.mount().expect("a new file system");
            let daemon = prepare(&stand, 1);
            let mut node = Node { daemon, stand };
            let peer = node.start();
            test(node, peer);
        });
    }

    fn start(&mut self) -> Peer {
        self.daemon.restart();
        Peer::connect(self.daemon.kafka())
    }

    /// Takes the file system down, and up again on a drive that has this.
    fn remount(&mut self, trouble: Trouble) {
        self.stand.unmount();
        self.set_trouble(trouble);
        self.stand.mount().expect("the file system is whole");
    }

    fn set_trouble(&self, trouble: Trouble) {
        self.stand.drive.lock().set_trouble(trouble);
    }

    fn refusals(&self, what: &str) -> u64 {
        self.stand.drive.lock().refusals(what)
    }

    fn end(mut self) {
        if self.daemon.is_started() {
            self.daemon.kill();
        }
        self.stand.unmount();
    }
}

#[test]
fn a_power_cut_anywhere_loses_nothing_that_was_acknowledged() {
    with_stand(DRIVE_SIZE, |stand| {
        let mut recorded = Recorded::full(stand);
        eprintln!("{}", recorded.describe());
        let tried = recorded.search(1, Some(LASTS), false).unwrap_or_else(|why| panic!("{why}"));
        assert!(tried.with_daemon > 0);
        note::figures(&format!("recorded drive: {tried}"));
    });
}

/// The proof that the checks above would notice: the same daemon, on a drive that forgets the last
/// windows although it was told to flush after each.
#[test]
fn a_drive_that_forgets_what_it_flushed_is_found_out() {
    const FORGOTTEN: usize = 10;
    with_stand(DRIVE_SIZE, |stand| {
        let mut recorded = Recorded::new(stand, &[4], |_| true);
        let recording = recorded.recording.clone();
        let windows = windows(&recording.events);
        let lies: Vec<(&Range<usize>, Range<usize>)> = windows
            .windows(FORGOTTEN)
            .map(|windows| (&windows[0], windows[0].start..windows[FORGOTTEN - 1].end))
            // Elsewhere, as while the daemon starts, nothing is owed.
            .filter(|(_, lie)| recorded.history.acknowledged_within(lie) >= FORGOTTEN / 2)
            .collect();
        let mut cutter = Cutter::new(&recording);
        let mut random = Random::new(1);
        let mut verdicts = Vec::new();
        for (honest, lie) in lies.iter().step_by((lies.len() / 12).max(1)) {
            let cut = cutter.cut(honest, Survivors::Nothing, &mut random);
            recorded.check(cut, None).expect("an honest drive");
            assert!(recording.events[lie.clone()].contains(&Event::Flush));
            verdicts.push(recorded.check(cutter.cut(lie, Survivors::Nothing, &mut random), None));
        }
        eprintln!("a lying drive: {verdicts:?}");
        let lost =
            |verdict: &Result<(), String>| verdict.as_ref().is_err_and(|why| why.contains("lost"));
        assert!(verdicts.iter().any(lost), "what was acknowledged is missed");
        let seen = verdicts.iter().filter(|verdict| verdict.is_err()).count();
        assert!(seen * 2 > verdicts.len(), "most lies are seen");
    });
}

#[test]
fn a_drive_that_fails_ends_the_process_and_a_restart_has_everything() {
    let no_flushes = Trouble { refuses_flushes: true, ..Default::default() };
    let no_writes = Trouble { refuses_writes: true, ..Default::default() };
    for (trouble, what) in [(no_flushes, "flush"), (no_writes, "write")] {
        Node::with(128 << 20, |mut node, mut peer| {
            peer.make_topic("kept", 1);
            peer.append("kept", 0, batch_of(b"before"));
            node.set_trouble(trouble);
            let answer = peer.produce("kept", 0, batch_of(b"meanwhile"));
            assert!(answer.is_err(), "not durable, and answered: {answer:?}");
            let code = ExitCode::DiskFailed.number();
            assert_eq!(node.daemon.wait_exit().code(), Some(code.into()));
            let log = node.daemon.log().join("\n");
            assert!(log.contains("wal-") && log.contains("error"), "it says what failed: {log}");
            assert!(node.refusals(what) > 0);
            node.set_trouble(Trouble::default());
            node.remount(Trouble::default());
            let mut peer = node.start();
            let values = peer.values("kept", 0, 0);
            assert_eq!(values[0], &b"before"[..]);
            assert!(values.len() == 1 || values[1..] == [&b"meanwhile"[..]], "{values:?}");
            peer.append("kept", 0, batch_of(b"after"));
            node.end();
        });
    }
}

/// A value that fills, and that begins with a number.
fn large(number: u64) -> Bytes {
    let mut value = format!("large {number} ").into_bytes();
    value.resize(900 << 10, b'.');
    value.into()
}

#[test]
fn a_full_file_system_refuses_politely_and_goes_on_when_there_is_room() {
    // The WAL takes 51 MiB of it; what is settled has to fit the rest.
    Node::with(80 << 20, |mut node, mut peer| {
        peer.make_topic("large", 1);
        let mut kept = 0;
        let refusal = loop {
            let answer = peer.produce("large", 0, batch_of(&large(kept))).expect("an answer");
            match answer.error_code {
                ErrorCode::None => kept += 1,
                code => break code,
            }
            assert!(kept < 200, "more than the file system holds");
        };
        assert!(refusal.is_retriable(), "{refusal:?}");
        node.daemon.wait_log("full");
        assert!(kept > 40, "{kept} fit");
        let all: Vec<Bytes> = (0..kept).map(large).collect();
        assert_eq!(peer.values("large", 0, 0), all, "readers notice nothing");

        // A crash on a full disk, and a start on it.
        node.daemon.kill();
        node.remount(Trouble::default());
        let mut peer = node.start();
        assert_eq!(peer.values("large", 0, 0), all);

        peer.trim("large", 0, kept as i64 - 2);
        let offset = peer.append_patiently("large", 0, &batch_of(&large(kept)));
        assert_eq!(offset, kept as i64);
        let left: Vec<Bytes> = (kept - 2..=kept).map(large).collect();
        assert_eq!(peer.values("large", 0, kept as i64 - 2), left);
        assert!(node.daemon.terminate().success());
        node.end();
    });
}

/// The file system has room and the drive has not: a thin volume. What the kernel makes of it is
/// no promise of ours; that nothing acknowledged is lost is.
#[test]
fn a_thin_volume_without_room_loses_nothing_that_was_acknowledged() {
    Node::with(256 << 20, |mut node, mut peer| {
        peer.make_topic("large", 1);
        let mut kept = 0;
        node.set_trouble(Trouble { is_full: true, ..Default::default() });
        while let Ok(answer) = peer.produce("large", 0, batch_of(&large(kept))) {
            if answer.error_code != ErrorCode::None {
                assert!(answer.error_code.is_retriable(), "{:?}", answer.error_code);
                node.daemon.kill();
                break;
            }
            kept += 1;
            assert!(kept < 200, "more than there is room for");
        }
        let refused = node.refusals("write");
        assert!(refused > 0 && kept > 0, "{kept} kept, {refused} writes refused");
        if node.daemon.is_started() {
            let code = ExitCode::DiskFailed.number();
            assert_eq!(node.daemon.wait_exit().code(), Some(code.into()));
        }
        node.set_trouble(Trouble::default());
        node.remount(Trouble::default());
        let mut peer = node.start();
        let found = peer.values("large", 0, 0);
        let expected: Vec<Bytes> = (0..found.len() as u64).map(large).collect();
        assert_eq!(found, expected);
        assert!(found.len() as u64 >= kept, "{} of {kept}", found.len());
        node.end();
    });
}

#[test]
fn a_bad_sector_in_the_log_refuses_the_start_and_is_named() {
    let marker = b"a record that is in the log alone";
    Node::with(128 << 20, |mut node, mut peer| {
        peer.make_topic("kept", 1);
        peer.append("kept", 0, batch_of(marker));
        peer.append("kept", 0, batch_of(b"behind it"));
        node.daemon.kill();
        node.remount(Trouble::default());
        let unreadable = node.stand.drive.lock().image().find(marker);
        assert!(!unreadable.is_empty());
        node.remount(Trouble { unreadable, ..Default::default() });
        node.daemon.spawn();
        assert_eq!(node.daemon.wait_exit().code(), Some(ExitCode::DiskFailed.number().into()));
        let log = node.daemon.log().join("\n");
        assert!(log.contains("wal-00000000000000000001.seg"), "it names the file: {log}");
        node.remount(Trouble::default());
        let values = node.start().values("kept", 0, 0);
        assert_eq!(values, [&marker[..], b"behind it"], "and nothing was cut off meanwhile");
        node.end();
    });
}

#[test]
fn a_bad_sector_in_an_extent_is_reported_to_its_readers_and_the_rest_is_served() {
    let marker = b"a record that has settled";
    Node::with(256 << 20, |mut node, mut peer| {
        peer.make_topic("marked", 1);
        peer.make_topic("large", 1);
        peer.append("marked", 0, batch_of(marker));
        // More than the log holds: its first segment must have settled by then.
        for number in 0..60 {
            peer.append_patiently("large", 0, &batch_of(&large(number)));
        }
        assert!(node.daemon.terminate().success());
        let unreadable = vec![sector_of_extent(&mut node, marker)];
        node.remount(Trouble { unreadable, ..Default::default() });
        let mut peer = node.start();
        assert_eq!(peer.fetch("marked", 0, 0).error_code, ErrorCode::KafkaStorageError);
        node.daemon.wait_log(".ext");
        assert!(node.refusals("read") > 0);
        assert_eq!(peer.values("large", 0, 0), (0..60).map(large).collect::<Vec<_>>());
        assert_eq!(peer.append("marked", 0, batch_of(b"behind it")), 1);
        assert_eq!(peer.values("marked", 0, 1), [&b"behind it"[..]]);
        node.end();
    });
}

/// The sector of an extent that holds this text: the one whose loss an extent's reader notices.
fn sector_of_extent(node: &mut Node, text: &[u8]) -> Range<u64> {
    node.remount(Trouble::default());
    let sectors = node.stand.drive.lock().image().find(text);
    let shard = node.daemon.data_dir().join("shard-0000");
    let is_extent_bad = || {
        std::fs::read_dir(&shard)
            .expect("a shard")
            .map(|entry| entry.expect("readable").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "ext"))
            .any(|path| std::fs::read(path).is_err())
    };
    sectors
        .into_iter()
        .find(|sector| {
            node.remount(Trouble { unreadable: vec![sector.clone()], ..Default::default() });
            is_extent_bad()
        })
        .expect("an extent holds the text")
}
