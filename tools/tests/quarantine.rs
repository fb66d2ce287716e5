//! Damage is moved aside, the node starts, and what is gone is said, never passed over.

mod directory;

use std::collections::BTreeMap;

use serde_json::Value;
use tidemill::batch::{BatchBuilder, NewRecord, RecordBatch};
use tidemill::command::Refusal;
use tidemill::shard::OpenError;
use tidemill_wal::format::FileName;
use tidemill_wal::manifest::manifest_name;
use tidemill_wal::segment::file_name;

use self::directory::{Golden, Node, dump, partition};

/// Records of `orders`, and of `small`, in each partition.
const ORDERS: usize = 180;
const SMALL: usize = 18;

type Lost = BTreeMap<(String, u64), Vec<(u64, u64)>>;

fn path(golden: &Golden) -> String {
    golden.path().display().to_string()
}

fn quarantine(golden: &Golden, shard: &str, more: &[&str]) -> (i32, String) {
    let arguments = ["quarantine", &path(golden), "--shard", shard, "--json"];
    dump(&[&arguments[..], more].concat())
}

fn lost_of(text: &str) -> Lost {
    let lines =
        text.lines().map(|line| -> Value { serde_json::from_str(line).expect("an object") });
    let lost = lines.filter(|line| line["lost"].is_array()).map(|line| {
        let ranges = line["lost"].as_array().expect("an array").iter();
        let ranges = ranges.map(|range| (range[0].as_u64().unwrap(), range[1].as_u64().unwrap()));
        let name =
            (line["topic"].as_str().unwrap().to_owned(), line["partition"].as_u64().unwrap());
        (name, ranges.collect())
    });
    lost.collect()
}

/// Quarantines shard 0 and starts the node. What was printed as lost must be exactly what is
/// refused, and everything else must be there.
fn check(golden: &Golden, file: &FileName) -> (Lost, String) {
    let (code, planned) = quarantine(golden, "0", &[]);
    assert_eq!(code, 1, "{planned}");
    assert_eq!(dump(&[&path(golden), "--verify"]).0, 1, "nothing was changed");
    let (code, text) = quarantine(golden, "0", &["--yes"]);
    assert_eq!(code, 0, "{text}");
    let lost = lost_of(&text);
    assert_eq!(lost, lost_of(&planned), "it does what it said");
    let kept = golden.path().join("quarantine-1/shard-0000").join(&*file.0);
    assert!(kept.is_file(), "{file} is kept: {text}");
    let (code, verified) = dump(&[&path(golden), "--verify"]);
    assert_eq!(code, 0, "{verified}");

    let mut node = Node::open(golden.path()).expect("the node starts");
    let topics = [("orders", golden.orders, ORDERS), ("small", golden.small, SMALL)];
    for (name, topic, count) in topics {
        for index in 0..2 {
            let offsets = node.offsets(partition(topic, index));
            assert_eq!(offsets.len(), count, "{name}/{index} ends where it ended");
            let ranges = lost.get(&(name.to_owned(), index.into())).cloned().unwrap_or_default();
            for (offset, found) in offsets.into_iter().enumerate() {
                let is_lost =
                    ranges.iter().any(|(base, end)| (*base..*end).contains(&(offset as u64)));
                let expected = if is_lost { Err(Refusal::Storage) } else { Ok(()) };
                assert_eq!(found, expected, "offset {offset} of {name}/{index}");
            }
            let batch = new_batch();
            assert_eq!(node.produce(partition(topic, index), batch), Ok(count as u64));
        }
    }
    assert_eq!(node.create_topic("later").0.len(), 16, "the catalog still changes");
    node.idle();
    drop(node);
    let (code, verified) = dump(&[&path(golden), "--verify"]);
    assert_eq!(code, 0, "{verified}");
    assert_eq!(quarantine(golden, "0", &["--yes"]).0, 0, "there is nothing left to do");
    (lost, text)
}

fn lost_count(lost: &Lost) -> u64 {
    lost.values().flatten().map(|(base, end)| end - base).sum()
}

#[test]
fn of_a_damaged_extent_only_the_damaged_piece_is_lost() {
    let golden = Golden::new();
    let extent = golden.manifest(0).extents[0].clone();
    let run = extent.runs.iter().max_by_key(|run| run.size).copied().unwrap();
    golden.damage(0, &extent.file, run.position + run.size / 2);
    let (lost, text) = check(&golden, &extent.file);
    assert_eq!(lost.len(), 1, "{text}");
    let count = lost_count(&lost);
    assert!(count > 0 && count < run.end - run.base, "{text}");
}

#[test]
fn an_extent_without_a_head_or_without_a_file_is_lost_with_its_runs() {
    for is_removed in [false, true] {
        let golden = Golden::new();
        let extent = golden.manifest(0).extents[0].clone();
        if is_removed {
            // Its place in the quarantine stays empty, so the check for it is for the other case.
            std::fs::remove_file(golden.shard(0).join(&*extent.file.0)).unwrap();
            let (code, text) = quarantine(&golden, "0", &["--yes"]);
            assert_eq!(code, 0, "{text}");
            assert!(lost_count(&lost_of(&text)) > 0, "{text}");
            assert_eq!(dump(&[&path(&golden), "--verify"]).0, 0);
        } else {
            golden.damage(0, &extent.file, 20);
            let (lost, text) = check(&golden, &extent.file);
            let all: u64 = extent.runs.iter().map(|run| run.end - run.base).sum();
            assert_eq!(lost_count(&lost), all, "{text}");
        }
    }
}

#[test]
fn a_damaged_newest_snapshot_costs_nothing_if_older_files_give_the_same_state() {
    let golden = Golden::new();
    let manifest = golden.manifest(0);
    assert_eq!(manifest.snapshots.len(), 2, "or the test shows something else");
    let snapshot = manifest.snapshots[1].file();
    golden.damage(0, &snapshot, 4200);
    let (lost, text) = check(&golden, &snapshot);
    assert!(lost.is_empty(), "{text}");
    assert!(text.contains("nothing of it is lost"), "{text}");
}

#[test]
fn a_damaged_delta_file_that_the_newest_snapshot_does_not_need_costs_nothing() {
    let golden = Golden::new();
    let manifest = golden.manifest(0);
    let delta = manifest.deltas.last().unwrap();
    assert!(delta.valid_at < manifest.snapshots[1].first, "or the test shows something else");
    golden.damage(0, &delta.file(), 4200);
    let (lost, text) = check(&golden, &delta.file());
    assert!(lost.is_empty(), "{text}");
    assert!(!text.contains("could not be put together whole"), "{text}");
}

#[test]
fn a_damaged_delta_file_that_is_needed_loses_no_record_and_says_that_state_may_be_old() {
    for number in 0..2 {
        let golden = Golden::without_snapshots();
        let manifest = golden.manifest(0);
        assert!(manifest.snapshots.is_empty() && manifest.deltas.len() >= 2);
        // The first has the topics, which other shards know too.
        let delta = manifest.deltas[number].file();
        golden.damage(0, &delta, 4200);
        let (lost, text) = check(&golden, &delta);
        assert!(lost.is_empty(), "{text}");
        assert!(text.contains("could not be put together whole"), "{text}");
    }
}

#[test]
fn a_damaged_manifest_is_made_anew_and_nothing_is_lost() {
    let golden = Golden::new();
    let newest = manifest_name(golden.manifest(0).version);
    golden.damage(0, &newest, 150);
    let (lost, text) = check(&golden, &newest);
    assert!(lost.is_empty(), "{text}");
}

#[test]
fn damage_behind_a_damaged_manifest_takes_a_second_run() {
    let golden = Golden::new();
    let manifest = golden.manifest(0);
    let extent = &manifest.extents[0];
    golden.damage(0, &manifest_name(manifest.version), 150);
    golden.damage(0, &extent.file, extent.runs[0].position + 100);
    let (code, text) = quarantine(&golden, "0", &["--yes"]);
    assert_eq!(code, 1, "{text}");
    let (code, text) = quarantine(&golden, "0", &["--yes"]);
    assert_eq!(code, 0, "{text}");
    assert!(lost_count(&lost_of(&text)) > 0, "{text}");
    assert_eq!(dump(&[&path(&golden), "--verify"]).0, 0);
    assert!(golden.path().join("quarantine-2").is_dir());
}

#[test]
fn a_damaged_frame_ends_the_wal_and_keeps_what_came_before() {
    let golden = Golden::new();
    let manifest = golden.manifest(0);
    let frames = golden.frames(0, manifest.first_segment);
    let segment = file_name(manifest.first_segment);
    golden.damage(0, &segment, frames[frames.len() / 2] + 150);
    let (lost, text) = check(&golden, &segment);
    assert!(lost_count(&lost) > 0, "{text}");
    assert!(text.contains("are cut off"), "{text}");
    assert!(lost_count(&lost) < ORDERS as u64, "{text}");
}

#[test]
fn the_frames_of_a_segment_without_a_header_are_all_saved() {
    let golden = Golden::new();
    let segment = file_name(golden.manifest(0).first_segment);
    golden.damage(0, &segment, 9);
    let (lost, text) = check(&golden, &segment);
    assert!(lost.is_empty(), "{text}");
}

#[test]
fn a_wal_that_is_gone_takes_with_it_what_had_not_settled() {
    let golden = Golden::new();
    let manifest = golden.manifest(0);
    for entry in std::fs::read_dir(golden.shard(0)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "seg") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let (code, text) = quarantine(&golden, "0", &["--yes"]);
    assert_eq!(code, 0, "{text}");
    let mut node = Node::open(golden.path()).expect("the node starts");
    let settled = manifest.extents.iter().flat_map(|extent| &extent.runs);
    let settled: u64 = settled.map(|run| run.end - run.base).sum();
    assert!(settled > 0);
    let own = node.offsets(partition(golden.orders, 0));
    assert!(own.iter().any(Result::is_ok), "what settled is there");
}

#[test]
fn a_wal_in_a_directory_of_its_own_has_a_quarantine_of_its_own() {
    let golden = Golden::new();
    let wal = tempfile::tempdir().unwrap();
    let shown = wal.path().display().to_string();
    for shard in 0..directory::SHARDS {
        let target = tidemill::runtime::identity::shard_directory(wal.path(), shard);
        std::fs::create_dir_all(&target).unwrap();
        for entry in std::fs::read_dir(golden.shard(shard)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_str().unwrap().starts_with("wal-") {
                std::fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
    }
    let (code, text) = dump(&[&path(&golden), "--verify"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("--wal-dir"), "{text}");
    assert_eq!(dump(&[&path(&golden), "--verify", "--wal-dir", &shown]).0, 0);

    let segment = file_name(golden.manifest(0).first_segment);
    let damaged = wal.path().join("shard-0000").join(&*segment.0);
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[9] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    assert_eq!(dump(&[&path(&golden), "--verify", "--wal-dir", &shown]).0, 1);
    let (code, text) = quarantine(&golden, "0", &["--yes", "--wal-dir", &shown]);
    assert_eq!(code, 0, "{text}");
    assert!(wal.path().join("quarantine-1/shard-0000").join(&*segment.0).is_file());
    let (code, text) = dump(&[&path(&golden), "--verify", "--wal-dir", &shown]);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn shards_agree_again_after_one_of_them_lost_changes_of_the_catalog() {
    for shard in 0..directory::SHARDS {
        let golden = Golden::with_catalog_in_the_wal();
        let first = golden.manifest(shard).first_segment;
        let segment = if first.0 == 0 { tidemill_wal::format::SegmentId(1) } else { first };
        // The seal comes first, then what made the topics.
        let frames = golden.frames(shard, segment);
        golden.damage(shard, &file_name(segment), frames[1] + 150);
        let (code, text) = quarantine(&golden, &shard.to_string(), &["--yes"]);
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("The catalog of topics is taken from shard"), "{text}");
        let (code, text) = dump(&[&path(&golden), "--verify"]);
        assert_eq!(code, 0, "{text}");
        let mut node = Node::open(golden.path()).expect("the node starts");
        let later = node.create_topic("later");
        for topic in [golden.orders, golden.small, later] {
            for index in 0..2 {
                assert!(node.produce(partition(topic, index), new_batch()).is_ok());
            }
        }
    }
}

#[test]
fn shards_that_do_not_belong_together_agree_after_a_quarantine() {
    let data = tempfile::tempdir().unwrap();
    let first = tidemill::runtime::identity::shard_directory(data.path(), 0);
    drop(Node::open(data.path()).expect("a new node"));
    let old = files_of(&first);
    let mut node = Node::open(data.path()).expect("the node starts");
    // The second change says that the other shard has the first one for good.
    let topics = ["one", "two"].map(|name| node.create_topic(name));
    drop(node);
    std::fs::remove_dir_all(&first).unwrap();
    std::fs::create_dir(&first).unwrap();
    for (name, bytes) in old {
        std::fs::write(first.join(name), bytes).unwrap();
    }
    match Node::open(data.path()) {
        Err(error @ OpenError::Disagree(_)) => {
            assert!(error.to_string().contains("quarantine --shard 0"), "{error}");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("an old copy was taken"),
    }
    let shown = data.path().display().to_string();
    let (code, text) = dump(&["quarantine", &shown, "--shard", "1", "--yes"]);
    assert!(code != 0 && text.contains("quarantine shard 0"), "{text}");
    let (code, text) = dump(&["quarantine", &shown, "--shard", "0", "--yes"]);
    assert_eq!(code, 0, "{text}");
    let mut node = Node::open(data.path()).expect("the node starts");
    let later = node.create_topic("later");
    for topic in [topics[0], later] {
        assert!(node.produce(partition(topic, 0), new_batch()).is_ok());
    }
}

fn files_of(directory: &std::path::Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap())).collect()
}

#[test]
fn committed_offsets_outlive_a_quarantine_of_records() {
    let golden = Golden::new();
    let before = Node::open(golden.path()).unwrap().committed_offset("readers");
    assert_eq!(before, Some(177));
    let shard = tidemill::command::group_shard("readers", directory::SHARDS).0;
    let extent = golden.manifest(shard).extents[0].clone();
    golden.damage(shard, &extent.file, extent.runs[0].position);
    let (code, text) = quarantine(&golden, &shard.to_string(), &["--yes"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(Node::open(golden.path()).unwrap().committed_offset("readers"), before);
}

fn new_batch() -> RecordBatch {
    let mut builder = BatchBuilder::new();
    builder.push(NewRecord { value: Some(b"new"), ..NewRecord::default() });
    builder.build()
}
