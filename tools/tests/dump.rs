//! The tool on directories that real shards wrote.

mod directory;

use serde_json::Value;
use tidemill_wal::format::FileName;
use tidemill_wal::segment::file_name;

use self::directory::{Golden, Node, dump, partition};

fn path(golden: &Golden) -> String {
    golden.path().display().to_string()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

#[test]
fn a_whole_directory_has_no_fault() {
    let golden = Golden::new();
    let (code, text) = dump(&[&path(&golden), "--verify"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("0 faults; "), "{text}");
    let manifest = golden.manifest(0);
    assert!(!manifest.extents.is_empty(), "or the test shows little");
    assert!(!manifest.snapshots.is_empty());
    assert!(!manifest.deltas.is_empty());
    assert!(manifest.durable >= manifest.replay_from, "frames are left in the WAL");
}

#[test]
fn the_summary_names_topics_offsets_and_frames() {
    let golden = Golden::new();
    let (code, text) = dump(&[&path(&golden)]);
    assert_eq!(code, 0, "{text}");
    for part in ["topic orders", "orders/0 on shard", "offsets 0 to 180", "settled through frame"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let (code, text) = dump(&[&path(&golden), "--json"]);
    assert_eq!(code, 0, "{text}");
    let lines = json_lines(&text);
    let end = |topic: &str, index: u64| {
        let is_it = |line: &&Value| line["topic"] == topic && line["partition"] == index;
        lines.iter().find(is_it).map(|line| line["end"].clone())
    };
    assert_eq!(end("orders", 1), Some(180.into()));
    assert_eq!(end("small", 0), Some(18.into()));
    assert_eq!(lines.last().map(|line| line["whole"].clone()), Some(true.into()));
}

#[test]
fn records_come_in_order_from_extents_and_wal_and_can_be_chosen() {
    let golden = Golden::new();
    let chosen = ["--records", "--json", "--partition", "orders/0"];
    let (code, text) = dump(&[&[path(&golden).as_str()], &chosen[..]].concat());
    assert_eq!(code, 0, "{text}");
    let lines = json_lines(&text);
    let offsets: Vec<u64> = lines.iter().filter_map(|line| line["offset"].as_u64()).collect();
    assert_eq!(offsets, (0..180).collect::<Vec<_>>());
    let value = lines[4]["value"].as_str().expect("text");
    assert!(value.starts_with("1-1-xxx"), "{value}");
    assert_eq!(lines[4]["headers"][0][1], "test");
    let (code, text) = dump(&[
        &path(&golden),
        "--records",
        "--partition",
        &format!("{}/1", golden.small),
        "--from",
        "4",
        "--to",
        "6",
    ]);
    assert_eq!(code, 0, "{text}");
    let starts: Vec<&str> =
        text.lines().filter_map(|line| line.get(..29)).map(|line| &line[..9]).collect();
    assert_eq!(starts, ["small/1 4", "small/1 5"], "{text}");
}

#[test]
fn single_files_are_shown_with_what_is_in_them() {
    let golden = Golden::new();
    let manifest = golden.manifest(0);
    let show = |file: &FileName| {
        let path = golden.shard(0).join(&*file.0).display().to_string();
        let (code, text) = dump(&[&path]);
        assert_eq!(code, 0, "{text}");
        let (code, json) = dump(&[&path, "--json"]);
        assert_eq!(code, 0, "{json}");
        assert!(!json_lines(&json).is_empty());
        text
    };
    let text = show(&file_name(manifest.first_segment));
    assert!(text.contains("(steps)") && text.contains("producer 11 epoch 0"), "{text}");
    let text = show(&manifest.extents[0].file);
    assert!(text.contains("run of orders/") || text.contains("run of small/"), "{text}");
    let text = show(&manifest.snapshots[0].file());
    assert!(text.contains("topic ") && text.contains("\"orders\", 2 partitions"), "{text}");
    let text = show(&manifest.deltas[0].file());
    assert!(text.contains("partition orders/"), "{text}");
    let text = show(&tidemill_wal::manifest::manifest_name(manifest.version));
    assert!(text.contains("replay from frame"), "{text}");
}

/// The kinds of damage: a name, the file, and the byte.
fn damages(golden: &Golden) -> Vec<(&'static str, FileName, u64)> {
    let manifest = golden.manifest(0);
    let extent = manifest.extents.first().expect("an extent");
    let snapshot = manifest.snapshots.last().expect("a snapshot");
    let delta = manifest.deltas.last().expect("a delta file");
    let newest = tidemill_wal::manifest::manifest_name(manifest.version);
    let segment = file_name(manifest.first_segment);
    vec![
        ("batches of an extent", extent.file.clone(), extent.runs[0].position + 100),
        ("head of an extent", extent.file.clone(), 20),
        ("tail of an extent", extent.file.clone(), extent.size - 1),
        ("entries of a snapshot", snapshot.file(), 4200),
        ("end of a snapshot", snapshot.file(), snapshot.size - 4000),
        ("entries of a delta file", delta.file(), 4200),
        ("head of a delta file", delta.file(), 30),
        ("manifest", newest, 150),
        ("header of a segment", segment.clone(), 9),
        ("header of a frame", segment.clone(), 4096 + 33),
        ("body of a frame", segment, 4096 + 200),
    ]
}

#[test]
fn one_flipped_bit_anywhere_is_found_with_its_position() {
    let golden = Golden::new();
    for (what, file, position) in damages(&golden) {
        golden.damage(0, &file, position);
        let (code, text) = dump(&[&path(&golden), "--verify"]);
        assert_eq!(code, 1, "{what}: {text}");
        let line = text.lines().find(|line| line.contains(&*file.0) && line.contains(": byte "));
        assert!(line.is_some(), "{what} in {file}: {text}");
        golden.damage(0, &file, position);
        let (code, text) = dump(&[&path(&golden), "--verify"]);
        assert_eq!(code, 0, "{what} was repaired: {text}");
    }
}

#[test]
fn a_file_by_itself_is_verified_too() {
    let golden = Golden::new();
    for (what, file, position) in damages(&golden) {
        let path = golden.shard(0).join(&*file.0).display().to_string();
        assert_eq!(dump(&[&path, "--verify"]).0, 0, "{what}");
        golden.damage(0, &file, position);
        assert_eq!(dump(&[&path, "--verify"]).0, 1, "{what}");
        golden.damage(0, &file, position);
    }
}

#[test]
fn a_missing_file_is_a_fault_and_a_cut_one_too() {
    let golden = Golden::new();
    let manifest = golden.manifest(1);
    let extent = golden.shard(1).join(&*manifest.extents[0].file.0);
    std::fs::File::options().write(true).open(&extent).unwrap().set_len(4096).unwrap();
    std::fs::remove_file(golden.shard(1).join(&*manifest.deltas[0].file().0)).unwrap();
    let (code, text) = dump(&[&path(&golden), "--verify"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("4096 bytes long"), "{text}");
    assert!(text.contains("missing, but manifest-"), "{text}");
    std::fs::write(golden.path().join("node.toml"), "format = 1").unwrap();
    let (code, text) = dump(&[&path(&golden), "--verify"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("node.toml is damaged"), "{text}");
    assert!(text.contains("4096 bytes long"), "the shards are looked at all the same: {text}");
}

#[test]
fn it_works_beside_the_node_that_has_the_directory_open() {
    let golden = Golden::new();
    let mut node = Node::open(golden.path()).unwrap();
    let (code, text) = dump(&[&path(&golden), "--verify"]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = dump(&["quarantine", &path(&golden), "--shard", "0"]);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("stop that first"), "{text}");
    assert_eq!(node.offsets(partition(golden.orders, 0)).len(), 180);
}

#[test]
fn a_node_at_full_load_has_no_fault() {
    let golden = Golden::new();
    let mut node = Node::open(golden.path()).unwrap();
    let mut number = 60;
    for arguments in [&["--verify"][..], &["--verify", "--json"], &[], &["--json"]] {
        for _ in 0..4 {
            let mut tool = directory::start(&[&[path(&golden).as_str()], arguments].concat());
            while tool.try_wait().unwrap().is_none() {
                for index in 0..2 {
                    let batch = directory::batch(number);
                    node.produce(partition(golden.orders, index), batch).unwrap();
                }
                number += 1;
            }
            let (code, text) = directory::end(tool);
            assert_eq!(code, 0, "{arguments:?}: {text}");
        }
    }
    assert!(number > 100, "the node did something meanwhile");
}

#[test]
fn wrong_usage_and_missing_files_have_their_own_codes() {
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().display().to_string();
    assert_eq!(dump(&[]).0, 2);
    assert_eq!(dump(&[&empty]).0, 2);
    assert_eq!(dump(&[&format!("{empty}/nowhere")]).0, 3);
    let golden = Golden::new();
    assert_eq!(dump(&[&path(&golden), "--records", "--partition", "nothing/0"]).0, 2);
    assert_eq!(dump(&[&path(&golden), "--records", "--partition", "orders"]).0, 2);
    assert_eq!(dump(&["quarantine", &path(&golden), "--shard", "7"]).0, 2);
}
