use std::collections::{BTreeMap, BTreeSet};

use expect_test::expect;

use super::*;
use crate::batch::tests::batch;
use crate::crash_disk::CrashDisk;
use crate::extent::{ExtentView, ReadFrom};
use crate::format::TopicId;

const SHARD: ShardId = ShardId(0);
const TINY: usize = 100;
const LARGE: usize = RUN_OWN_SIZE as usize + 1;

fn partition(index: u32) -> PartitionId {
    PartitionId { topic: TopicId([0x11; 16]), index }
}

/// What the files hold: state, and for each partition the base offsets of its batches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Picture {
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    batches: BTreeMap<PartitionId, Vec<u64>>,
}

/// Reads everything that the store names, and checks every byte of it.
fn picture(store: &Store, disk: &CrashDisk) -> Picture {
    let mut picture = Picture::default();
    store
        .visit_state(disk, &mut |key, value| match value {
            Some(value) => drop(picture.state.insert(key.to_vec(), value.to_vec())),
            None => drop(picture.state.remove(key)),
        })
        .expect("whole");
    for partition in store.partitions() {
        let mut size = 0;
        for run in store.runs(partition) {
            let bytes = disk.bytes(&run.file);
            let view = ExtentView::open(&bytes).expect("whole");
            view.verify(&mut |damage| panic!("{}: {damage}", run.file));
            let found = view
                .runs()
                .find(|found| (found.run.partition, found.run.base) == (partition, run.base));
            let found = found.expect("the run is in its file").run;
            assert_eq!((found.end, found.size), (run.end, run.size));
            size += run.size;
            let bases = view.batches(&found).map(|batch| batch.expect("whole").1.base_offset);
            picture.batches.entry(partition).or_default().extend(bases);
        }
        assert_eq!(store.size_of(partition), size);
    }
    picture
}

fn load(disk: &CrashDisk) -> Result<Loaded, String> {
    match Store::load(disk, SHARD) {
        Ok(loaded) => Ok(loaded.expect("there is a manifest")),
        Err(error) => Err(error.to_string()),
    }
}

/// A store with its disk, and the pictures of all manifests that were durable.
struct World {
    store: Store,
    disk: CrashDisk,
    picture: Picture,
    /// Newest frame.
    newest: u64,
}

impl World {
    fn new() -> Self {
        let mut store = Store::new(SHARD, 2, [9; 16]);
        let mut disk = CrashDisk::default();
        let ops = store.create(SegmentId(0), Sequence(0), ShardEpoch(0));
        for end in 0..=ops.len() {
            let mut crashed = CrashDisk::default();
            crashed.run(&ops[..end]);
            for (name, left) in crashed.crashes() {
                let loaded = Store::load(&left, SHARD);
                assert!(loaded.is_ok(), "after {end}, {name}: {loaded:?}");
            }
        }
        disk.run(&ops);
        store.on_created();
        Self { store, disk, picture: Picture::default(), newest: 0 }
    }

    fn round(&mut self, runs: Vec<RunData>, changes: &[(&str, Option<&str>)]) -> Settle {
        let through = self.newest + 10;
        self.newest += 12;
        Settle {
            through: Sequence(through),
            valid_at: Sequence(self.newest),
            durable: Sequence(self.newest),
            first_segment: SegmentId(self.newest / 20),
            epoch: ShardEpoch(1),
            runs,
            changes: changes
                .iter()
                .map(|(key, value)| {
                    (key.as_bytes().to_vec(), value.map(|value| value.as_bytes().to_vec()))
                })
                .collect(),
        }
    }

    /// The picture once the round is durable.
    fn after(&self, round: &Settle) -> Picture {
        let mut picture = self.picture.clone();
        for run in &round.runs {
            let bases = run.batches.iter().map(|batch| batch.base_offset);
            picture.batches.entry(run.partition).or_default().extend(bases);
        }
        for (key, value) in &round.changes {
            match value {
                Some(value) => drop(picture.state.insert(key.clone(), value.clone())),
                None => drop(picture.state.remove(key)),
            }
        }
        picture
    }

    fn settle(&mut self, runs: Vec<RunData>, changes: &[(&str, Option<&str>)]) {
        let round = self.round(runs, changes);
        let after = self.after(&round);
        let ops = self.store.settle(round);
        self.perform(&ops, after, Store::on_settled);
    }

    /// Performs a change with a crash after each of its operations: the picture that is loaded is
    /// the old or the new one, and the new one once all were performed; the same while files that
    /// are no longer named are removed.
    fn perform(&mut self, ops: &[DiskOp], after: Picture, done: fn(&mut Store) -> Vec<DiskOp>) {
        let old = self.store.manifest().version;
        for end in 0..=ops.len() {
            self.crash(&ops[..end], |version| match version == old {
                true => {
                    assert!(end < ops.len(), "it was durable");
                    self.picture.clone()
                }
                false => after.clone(),
            });
        }
        self.disk.run(ops);
        self.picture = after;
        let removals = done(&mut self.store);
        for end in 0..=removals.len() {
            self.crash(&removals[..end], |version| {
                assert!(version > old, "it was durable");
                self.picture.clone()
            });
        }
        self.disk.run(&removals);
        assert_eq!(picture(&self.store, &self.disk), self.picture);
        // A snapshot that is being written has no name yet.
        let unnamed = load(&self.disk).expect("whole").unnamed;
        assert_eq!(unnamed.len(), usize::from(self.store.is_snapshotting()), "{unnamed:?}");
    }

    fn crash(&self, ops: &[DiskOp], expected: impl Fn(u64) -> Picture) {
        let mut disk = self.disk.clone();
        disk.run(ops);
        for (name, mut left) in disk.crashes() {
            let after = format!("after {} operations, {name}", ops.len());
            let loaded = load(&left).unwrap_or_else(|error| panic!("{after}: {error}"));
            let store = &loaded.store;
            assert_eq!(picture(store, &left), expected(store.manifest().version), "{after}");
            for file in loaded.unnamed {
                left.run(&[DiskOp::Remove { file }]);
            }
            let again = load(&left).expect("only what is not named went");
            assert_eq!(again.unnamed, [], "{after}");
        }
    }
}

fn run(index: u32, base: u64, size: usize) -> RunData {
    RunData { partition: partition(index), batches: vec![batch(base, 10, base as i64, size)] }
}

#[test]
fn a_crash_anywhere_in_a_settle_round_leaves_the_old_or_the_new_picture() {
    let mut world = World::new();
    world.settle(vec![run(0, 0, TINY), run(1, 0, TINY)], &[("a", Some("1")), ("b", Some("1"))]);
    world.settle(vec![run(0, 10, LARGE), run(1, 10, TINY)], &[("a", Some("2")), ("b", None)]);
    world.settle(vec![], &[]);
    world.settle(vec![run(0, 20, TINY)], &[]);
    expect![[r#"
        11111111111111111111111111111111-0-00000000000000000010-0.ext
        11111111111111111111111111111111-0-00000000000000000020-0.ext
        11111111111111111111111111111111-1-00000000000000000010-0.ext
        delta-00000000000000000010-2.dlt
        delta-00000000000000000022-3.dlt
        manifest-00000000000000000004
        manifest-00000000000000000005
        shared-00000000000000000001-0.ext"#]]
    .assert_eq(&world.disk.files().join("\n"));
}

#[test]
fn a_crash_anywhere_in_a_snapshot_leaves_the_old_or_the_new_picture() {
    let mut world = World::new();
    let slice = |world: &World, from: &str, to: &str| {
        let entries = world.picture.state.range(from.as_bytes().to_vec()..to.as_bytes().to_vec());
        entries.map(|(key, value)| (key.clone(), value.clone())).collect::<Vec<_>>()
    };
    for number in 0..4 {
        world.settle(vec![run(0, number * 10, TINY)], &[("a", Some("1")), ("m", Some("1"))]);
        let ops = world.store.snapshot_begin(Sequence(world.newest + 1));
        world.disk.run(&ops);
        let ops = world.store.snapshot_add(slice(&world, "a", "g"));
        world.disk.run(&ops);
        let changed = format!("{number}");
        // The first slice has not seen this, the second one has: replay makes both right.
        world.settle(vec![], &[("a", Some(&changed)), ("n", Some(&changed))]);
        let ops = world.store.snapshot_add(slice(&world, "g", "zz"));
        world.disk.run(&ops);
        let newest = Sequence(world.newest);
        let ops = world.store.snapshot_finish(newest, newest);
        let picture = world.picture.clone();
        world.perform(&ops, picture, Store::on_snapshot);
    }
    world.settle(vec![], &[("z", Some("last"))]);
    // Two snapshots, and the delta files since the first frame of the older one.
    expect![[r#"
        11111111111111111111111111111111-0-00000000000000000000-0.ext
        11111111111111111111111111111111-0-00000000000000000010-0.ext
        11111111111111111111111111111111-0-00000000000000000020-0.ext
        11111111111111111111111111111111-0-00000000000000000030-0.ext
        delta-00000000000000000070-9.dlt
        delta-00000000000000000082-11.dlt
        delta-00000000000000000094-12.dlt
        delta-00000000000000000106-14.dlt
        manifest-00000000000000000013
        manifest-00000000000000000014
        snapshot-00000000000000000061-00000000000000000072.snap
        snapshot-00000000000000000085-00000000000000000096.snap"#]]
    .assert_eq(&world.disk.files().join("\n"));
}

#[test]
fn the_older_snapshot_gives_the_same_state() {
    let mut world = World::new();
    for (first, changed) in [("1", "x"), ("2", "y"), ("3", "z")] {
        world.settle(vec![], &[("a", Some(first)), (changed, Some(first))]);
        let ops = world.store.snapshot_begin(Sequence(world.newest + 1));
        world.disk.run(&ops);
        let all: Vec<_> = world.picture.state.clone().into_iter().collect();
        let ops = world.store.snapshot_add(all);
        world.disk.run(&ops);
        let newest = Sequence(world.newest);
        let ops = world.store.snapshot_finish(newest, newest);
        let picture = world.picture.clone();
        world.perform(&ops, picture, Store::on_snapshot);
    }
    world.settle(vec![], &[("b", Some("4"))]);
    let mut manifest = world.store.manifest().clone();
    manifest.snapshots.pop();
    let older = Store::from_manifest(manifest).expect("still a manifest");
    assert_eq!(picture(&older, &world.disk), world.picture);
}

#[test]
fn a_delta_that_saw_frames_after_the_snapshots_begin_is_kept() {
    // Settled through 10 with values of frame 12; the snapshot begins at 11. The keys that 11 and
    // 12 changed are in that delta file and in no later one.
    let mut world = World::new();
    let round = world.round(vec![], &[("a", Some("12"))]);
    let after = world.after(&round);
    let ops = world.store.snapshot_begin(Sequence(11));
    world.disk.run(&ops);
    let ops = world.store.settle(round);
    world.perform(&ops, after.clone(), Store::on_settled);
    let ops = world.store.snapshot_finish(Sequence(10), Sequence(12));
    world.perform(&ops, after, Store::on_snapshot);
    assert_eq!(world.store.manifest().deltas.len(), 1);
}

#[test]
fn a_crash_anywhere_in_a_merge_leaves_the_same_batches() {
    let mut world = World::new();
    for number in 0..MERGE_COUNT as u64 {
        assert!(world.store.due_merge().is_none());
        let mut runs = vec![run(0, number * 10, TINY), run(1, number * 10, 200_000)];
        if number == 3 {
            runs.push(run(2, 0, TINY));
        }
        // A run that a large one separates from its neighbours.
        runs.push(run(3, number * 10, if number == 4 { LARGE } else { TINY }));
        world.settle(runs, &[]);
    }
    let merge = world.store.due_merge().expect("eight small extents");
    let data = merge.read(&mut |file| Ok(world.disk.bytes(file))).expect("whole");
    let ops = world.store.merge(merge, data);
    let picture = world.picture.clone();
    world.perform(&ops, picture, Store::on_merged);
    assert!(world.store.due_merge().is_none());
    let runs = |index| world.store.runs(partition(index)).map(|run| run.end).collect::<Vec<_>>();
    assert_eq!((runs(0), runs(1), runs(2)), (vec![80], vec![80], vec![10]));
    assert_eq!(runs(3), [40, 50, 80], "the large run stays where it is");
    expect![[r#"
        11111111111111111111111111111111-1-00000000000000000000-1.ext
        11111111111111111111111111111111-3-00000000000000000040-0.ext
        manifest-00000000000000000009
        manifest-00000000000000000010
        shared-00000000000000000011-1.ext"#]]
    .assert_eq(&world.disk.files().join("\n"));
}

#[test]
fn what_is_dropped_during_a_merge_stays_out() {
    let mut world = World::new();
    for number in 0..MERGE_COUNT as u64 {
        let runs = (0..3).map(|index| run(index, number * 10, TINY)).collect();
        world.settle(runs, &[]);
    }
    let merge = world.store.due_merge().expect("eight small extents");
    let data = merge.read(&mut |file| Ok(world.disk.bytes(file))).expect("whole");
    world.store.drop_below(partition(0), 35);
    world.store.drop_partition(partition(1));
    let ops = world.store.merge(merge, data);
    // And while it is written.
    world.store.drop_partition(partition(2));
    world.disk.run(&ops);
    let removals = world.store.on_merged();
    world.disk.run(&removals);
    let bases: Vec<_> = world.store.runs(partition(0)).map(|run| (run.base, run.end)).collect();
    assert_eq!(bases, [(30, 80)]);
    assert_eq!(world.store.partitions().collect::<Vec<_>>(), [partition(0)]);
    assert!(world.store.has_pending_drops(), "the disk still has one partition");
    let mut picture = picture(&world.store, &world.disk);
    picture.state = world.picture.state.clone();
    world.picture = picture;
    assert_eq!(load(&world.disk).expect("whole").store.partitions().count(), 2);
    let round = world.round(vec![], &[]);
    let ops = world.store.settle(round);
    world.disk.run(&ops);
    let removals = world.store.on_settled();
    world.disk.run(&removals);
    assert!(!world.store.has_pending_drops());
    assert_eq!(load(&world.disk).expect("whole").store.partitions().count(), 1);
}

#[test]
fn drops_show_at_once_and_free_files_with_the_next_change() {
    let mut world = World::new();
    world.settle(vec![run(0, 0, LARGE), run(1, 0, TINY), run(2, 0, TINY)], &[]);
    world.settle(vec![run(0, 10, LARGE), run(1, 10, TINY)], &[]);
    world.store.drop_below(partition(0), 9);
    assert!(!world.store.has_pending_drops(), "no run is wholly below");
    world.store.drop_below(partition(0), 15);
    world.store.drop_partition(partition(1));
    assert!(world.store.has_pending_drops());
    assert_eq!(world.store.find(partition(0), 0).map(|run| run.base), Some(10));
    assert_eq!(world.store.find(partition(1), 0), None);
    world.picture.batches.remove(&partition(1));
    world.picture.batches.insert(partition(0), vec![10]);
    // A crash now brings them back; the next change does not.
    let round = world.round(vec![], &[]);
    let ops = world.store.settle(round);
    world.disk.run(&ops);
    let removals = world.store.on_settled();
    let removed: Vec<String> = removals.iter().map(|op| format!("{op:?}")).collect();
    assert_eq!(removed.len(), 3, "two extents and an old manifest: {removed:?}");
    world.disk.run(&removals);
    assert_eq!(picture(&world.store, &world.disk), world.picture);
    let loaded = load(&world.disk).expect("whole");
    assert_eq!(picture(&loaded.store, &world.disk), world.picture);
    let shared = world.store.find(partition(2), 0).expect("still there");
    assert!(shared.file.0.starts_with("shared-"), "the file stays for the run that lives");
}

#[test]
fn what_is_dropped_while_a_round_is_planned_or_written_is_not_found_after() {
    let mut world = World::new();
    world.settle(vec![run(0, 0, TINY), run(1, 0, TINY)], &[]);
    let round = world.round(vec![run(0, 10, TINY), run(1, 10, TINY), run(2, 0, LARGE)], &[]);
    let extents = world.store.extents_for(round.runs.clone());
    world.store.drop_partition(partition(0));
    let planned = SettleFiles { extents, delta: None, drain_size: 1 << 20 }.plan();
    let ops = world.store.settle_planned(Settle { runs: vec![], ..round }, planned);
    world.store.drop_partition(partition(1));
    world.disk.run(&ops);
    let removals = world.store.on_settled();
    world.disk.run(&removals);
    assert_eq!(world.store.partitions().collect::<Vec<_>>(), [partition(2)]);
    let loaded = load(&world.disk).expect("whole");
    assert_eq!(loaded.store.partitions().collect::<Vec<_>>(), [partition(1), partition(2)]);
    let round = world.round(vec![], &[]);
    let ops = world.store.settle(round);
    world.disk.run(&ops);
    let loaded = load(&world.disk).expect("whole");
    assert_eq!(loaded.store.partitions().collect::<Vec<_>>(), [partition(2)]);
}

#[test]
fn lookups_find_runs_by_offset_and_time() {
    let mut world = World::new();
    world.settle(vec![run(0, 0, TINY), run(1, 0, TINY)], &[]);
    world.settle(vec![run(0, 20, TINY)], &[]);
    let find = |offset| world.store.find(partition(0), offset).map(|run| run.base);
    assert_eq!(
        [find(0), find(9), find(10), find(29), find(30)],
        [Some(0), Some(0), Some(20), Some(20), None]
    );
    let time = |time| world.store.find_time(partition(0), time).map(|run| run.base);
    assert_eq!([time(-5), time(1), time(20), time(21)], [Some(0), Some(20), Some(20), None]);
    let found = world.store.find(partition(0), 20).expect("there");
    let bytes = world.disk.bytes(&found.file);
    let view = ExtentView::open(&bytes).expect("whole");
    let range = view.read(partition(0), ReadFrom::Offset(25), 1).expect("whole").expect("there");
    assert_eq!(bytes.slice(range), batch(20, 10, 20, TINY).bytes);
}

#[test]
fn a_full_disk_anywhere_in_a_round_is_forgotten_and_the_round_can_be_tried_again() {
    let mut world = World::new();
    world.settle(vec![run(0, 0, TINY), run(1, 0, TINY)], &[("a", Some("1"))]);
    let round = world.round(vec![run(0, 10, LARGE), run(1, 10, TINY)], &[("a", Some("2"))]);
    let after = world.after(&round);
    let count = world.store.settle(round.clone()).len();
    world.store.on_settle_failed();
    for end in 0..count {
        let ops = world.store.settle(round.clone());
        let before = world.disk.clone();
        world.disk.run(&ops[..end]);
        let cleanup = world.store.on_settle_failed();
        for cleaned in 0..=cleanup.len() {
            world.crash(&cleanup[..cleaned], |version| match version == 2 {
                true => world.picture.clone(),
                false => {
                    assert!(cleaned < 3, "the manifest is gone for good");
                    after.clone()
                }
            });
        }
        world.disk.run(&cleanup);
        assert_eq!(world.disk.files(), before.files());
        assert_eq!(picture(&world.store, &world.disk), world.picture);
    }
    let ops = world.store.settle(round);
    world.perform(&ops, after, Store::on_settled);
}

#[test]
fn damaged_and_missing_files_are_named_with_what_to_do() {
    let mut world = World::new();
    world.settle(vec![run(0, 0, TINY), run(1, 0, TINY)], &[("a", Some("1"))]);
    let manifest = world.store.manifest().clone();
    let missing = |file: FileName| {
        let mut disk = world.disk.clone();
        disk.remove(&file);
        load(&disk).expect_err("missing")
    };
    expect!["shared-00000000000000000001-0.ext is missing, but manifest-00000000000000000002 names it. Nothing was changed. Restore the directory from a copy, or run `tidemill-dump quarantine DIR --shard N` to move the damage aside and accept the loss it prints."].assert_eq(&missing(manifest.extents[0].file.clone()));
    assert!(missing(manifest.deltas[0].file()).starts_with("delta-"));
    let mut disk = world.disk.clone();
    disk.bytes_mut(&manifest.extents[0].file).truncate(4096);
    expect!["shared-00000000000000000001-0.ext is damaged at byte 4096: 4096 bytes long, should be 8192. Nothing was changed. Restore the directory from a copy, or run `tidemill-dump quarantine DIR --shard N` to move the damage aside and accept the loss it prints."].assert_eq(&load(&disk).expect_err("cut short"));
    let mut disk = world.disk.clone();
    disk.bytes_mut(&manifest.deltas[0].file())[4096 + 40] ^= 1;
    let store = load(&disk).expect("sizes are right").store;
    let error = store.visit_state(&disk, &mut |_, _| ()).expect_err("damaged");
    expect!["delta-00000000000000000010-2.dlt is damaged at byte 4096: block checksum is wrong. Nothing was changed. Restore the directory from a copy, or run `tidemill-dump quarantine DIR --shard N` to move the damage aside and accept the loss it prints."].assert_eq(&error.to_string());
}

#[test]
fn a_damaged_newest_snapshot_is_not_replaced_by_the_older_one_in_silence() {
    let mut world = World::new();
    for number in ["1", "2"] {
        world.settle(vec![], &[("a", Some(number))]);
        let ops = world.store.snapshot_begin(Sequence(world.newest + 1));
        world.disk.run(&ops);
        let all: Vec<_> = world.picture.state.clone().into_iter().collect();
        let ops = world.store.snapshot_add(all);
        world.disk.run(&ops);
        let newest = Sequence(world.newest);
        let ops = world.store.snapshot_finish(newest, newest);
        let picture = world.picture.clone();
        world.perform(&ops, picture, Store::on_snapshot);
    }
    let newest = world.store.manifest().snapshots[1].file();
    world.disk.bytes_mut(&newest)[5000] ^= 1;
    let error = world.store.visit_state(&world.disk, &mut |_, _| ()).expect_err("damaged");
    expect!["snapshot-00000000000000000025-00000000000000000024.snap is damaged at byte 4096: block checksum is wrong. The older snapshot-00000000000000000013-00000000000000000012.snap is there with the delta files it needs, and gives the same state once the damaged one is quarantined. Nothing was changed. Restore the directory from a copy, or run `tidemill-dump quarantine DIR --shard N` to move the damage aside and accept the loss it prints."].assert_eq(&error.to_string());
}

#[test]
fn a_snapshot_is_due_when_delta_files_outgrow_the_state_or_recovery() {
    let mut world = World::new();
    let large = "x".repeat(1 << 20);
    assert!(!world.store.due_snapshot(0, 0), "nothing to replace");
    for key in ["a", "b", "c", "d"] {
        assert!(!world.store.due_snapshot(0, u64::MAX), "below the minimum");
        world.settle(vec![], &[(key, Some(&large))]);
    }
    assert!(world.store.due_snapshot(1 << 20, u64::MAX), "larger than the state");
    assert!(!world.store.due_snapshot(5 << 20, u64::MAX), "the state is larger");
    assert!(world.store.due_snapshot(5 << 20, 4 << 20), "more than recovery may read");
    let ops = world.store.snapshot_begin(Sequence(world.newest + 1));
    world.disk.run(&ops);
    assert!(!world.store.due_snapshot(0, 0), "one is being written");
    let ops = world.store.snapshot_abandon();
    world.disk.run(&ops);
    assert_eq!(load(&world.disk).expect("whole").unnamed, []);
}

#[test]
fn small_runs_share_a_file_and_merging_keeps_the_number_of_files_low() {
    let mut world = World::new();
    let mut copied = 0;
    for number in 0..200_u64 {
        let runs = (0..20).map(|index| run(index, number * 10, TINY)).collect();
        let round = world.round(runs, &[]);
        let ops = world.store.settle(round);
        world.disk.run(&ops);
        let removals = world.store.on_settled();
        world.disk.run(&removals);
        while let Some(plan) = world.store.due_merge() {
            let data = plan.read(&mut |file| Ok(world.disk.bytes(file))).expect("whole");
            copied += data.iter().map(RunData::size).sum::<u64>();
            let ops = world.store.merge(plan, data);
            world.disk.run(&ops);
            let removals = world.store.on_merged();
            world.disk.run(&removals);
        }
    }
    let extents = world.store.manifest().extents.len();
    assert!(extents <= 3 * 7, "{extents} extents");
    let written = 200 * 20 * TINY as u64;
    assert!(copied <= 3 * written, "a batch is copied once for each level, {copied} of {written}");
    let found = picture(&world.store, &world.disk);
    let expected: Vec<u64> = (0..200).map(|number| number * 10).collect();
    assert!(found.batches.values().all(|bases| *bases == expected));
    let named: BTreeSet<_> = named_files(world.store.manifest()).map(|(file, _)| file).collect();
    assert_eq!(
        named.len() + 2,
        world.disk.files().len(),
        "two manifests and what the newest names"
    );
}

#[test]
fn the_reserve_is_known_and_not_taken_for_a_leftover() {
    let mut world = World::new();
    world.disk.run(&Store::reserve_ops(8192));
    let loaded = load(&world.disk).expect("whole");
    assert_eq!((loaded.reserve_size, loaded.unnamed), (8192, vec![]));
    world.disk.run(&Store::release_reserve_ops());
    assert_eq!(load(&world.disk).expect("whole").reserve_size, 0);
}
