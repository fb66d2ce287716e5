//! What the log promises of its files, each as a scenario that a break of it ends badly.

use std::path::Path;
use std::time::Duration;

use tidemill_wal::commit::{FrameWrite, LogOptions};
use tidemill_wal::disk::{
    Directory, DirectoryOptions, DiskOp, MemoryStorage, Place, SegmentWriter, Storage, SyncMethod,
};
use tidemill_wal::extent::{BatchRef, ExtentSpec, ExtentView, ReadFrom, RunData, plan_extent};
use tidemill_wal::format::{
    FRAME_HEADER_SIZE, FileName, PartitionId, SegmentId, Sequence, ShardEpoch, ShardId, TopicId,
};
use tidemill_wal::limits::BLOCK_SIZE;
use tidemill_wal::manifest::{manifest_name, version_of};
use tidemill_wal::recovery::{ScanStart, perform_write, scan, start};
use tidemill_wal::segment::{self, SegmentSpec};
use tidemill_wal::store::{Settle, Store};

use super::node::batch_of;

const SHARD: ShardId = ShardId(0);
const SEGMENT_SIZE: u64 = 128 << 10;

/// A log of some frames, as recovery finds it.
struct Written {
    disk: MemoryStorage,
    start: ScanStart,
    frames: Vec<FrameWrite>,
}

impl Written {
    fn new() -> Self {
        let options = LogOptions { shard: SHARD, segment_size: SEGMENT_SIZE, segment_count_max: 4 };
        let from = ScanStart {
            shard: SHARD,
            first_segment: SegmentId(1),
            replay_from: Sequence(1),
            known_durable: Sequence(0),
            epoch_min: ShardEpoch(0),
            segment_size: SEGMENT_SIZE,
            segment_count_max: 4,
        };
        let mut disk = MemoryStorage::new();
        let end = scan(&disk, &from, &mut |_| Ok(())).expect("nothing is there");
        let mut nonces = 1..;
        let mut nonce = || nonces.next().expect("without end");
        let mut log = start(&mut disk, options, &end, 1, 0, &mut nonce).expect("room");
        let mut frames = Vec::new();
        for number in 0..5_u8 {
            log.append_put(&[number], &[number; 100]);
            let write = log.submit(0).expect("room");
            perform_write(&mut disk, &write).expect("room");
            log.on_durable(write.sequence);
            frames.push(write);
        }
        Self { disk, start: from, frames }
    }

    /// Flips a bit of a frame; the scan has to miss the frame.
    fn expect_missed(&self, frame: &FrameWrite, at: usize, bit: usize) {
        let mut disk = self.disk.clone();
        let place = frame.offset as usize + at;
        disk.file_mut(&segment::file_name(frame.segment))[place] ^= 1 << bit;
        let found = scan(&disk, &self.start, &mut |_| Ok(()));
        assert!(found.is_err(), "bit {bit} of byte {at} is passed over: {found:?}");
    }
}

pub fn a_changed_header_is_told() {
    let log = Written::new();
    for at in 0..FRAME_HEADER_SIZE {
        for bit in 0..8 {
            log.expect_missed(&log.frames[2], at, bit);
        }
    }
}

pub fn a_frame_before_others_is_missed() {
    let log = Written::new();
    log.expect_missed(&log.frames[2], FRAME_HEADER_SIZE + 20, 0);
}

pub fn a_known_durable_frame_is_missed() {
    let mut log = Written::new();
    let last = log.frames.last().expect("five").clone();
    log.start.known_durable = last.sequence;
    log.expect_missed(&last, FRAME_HEADER_SIZE + 20, 0);
}

/// Flips a bit of every byte of a part of a file; each has to be told.
fn expect_told(
    disk: &MemoryStorage,
    file: &FileName,
    range: std::ops::Range<usize>,
    is_told: impl Fn(&MemoryStorage) -> bool,
) {
    assert!(!is_told(disk), "{file} is whole");
    for at in range {
        let mut damaged = disk.clone();
        damaged.file_mut(file)[at] ^= 1 << (at % 8);
        assert!(is_told(&damaged), "{file}: byte {at} is passed over");
    }
}

pub fn a_changed_extent_is_told() {
    let partition = PartitionId { topic: TopicId([1; 16]), index: 0 };
    let bytes = batch_of(0, 0, 100).into_bytes();
    let batch = BatchRef { base_offset: 0, last_offset: 0, max_timestamp_ms: 0, bytes };
    let runs = vec![RunData { partition, batches: vec![batch] }];
    let spec = ExtentSpec { id: 1, generation: 0, level: 0, shard: SHARD, runs };
    let (extent, ops) = plan_extent(spec, 1 << 20);
    let mut disk = MemoryStorage::new();
    perform(&mut disk, ops);
    let run = extent.runs[0];
    let range = run.position as usize..(run.position + run.size) as usize;
    expect_told(&disk, &extent.file, range, |disk| {
        let view = ExtentView::open(disk.file(&extent.file).expect("it is there"));
        view.and_then(|view| view.read(partition, ReadFrom::Offset(0), 1 << 20)).is_err()
    });
}

fn perform(disk: &mut MemoryStorage, ops: Vec<DiskOp>) {
    ops.iter().for_each(|op| disk.perform(op).expect("room"));
}

/// A store with a snapshot and a delta file after it.
fn stored() -> (Store, MemoryStorage) {
    let (mut store, mut disk) = (Store::new(SHARD, 1, [7; 16]), MemoryStorage::new());
    let ops = store.create(SegmentId(1), Sequence(1), ShardEpoch(1));
    perform(&mut disk, ops);
    store.on_created();
    let entry = |number: u8| (vec![number], vec![number; 100]);
    let mut ops = store.snapshot_begin(Sequence(2));
    ops.extend(store.snapshot_add([entry(1), entry(2)]));
    ops.extend(store.snapshot_finish(Sequence(1), Sequence(1)));
    perform(&mut disk, ops);
    store.on_snapshot();
    let (key, value) = entry(3);
    let round = Settle {
        through: Sequence(5),
        valid_at: Sequence(5),
        durable: Sequence(5),
        first_segment: SegmentId(1),
        epoch: ShardEpoch(1),
        runs: Vec::new(),
        changes: vec![(key, Some(value))],
    };
    let ops = store.settle(round);
    perform(&mut disk, ops);
    store.on_settled();
    (store, disk)
}

pub fn a_manifest_follows_the_names_in_it() {
    let (mut store, _) = stored();
    let round = Settle {
        through: Sequence(7),
        valid_at: Sequence(7),
        durable: Sequence(7),
        first_segment: SegmentId(1),
        epoch: ShardEpoch(1),
        runs: Vec::new(),
        changes: vec![(vec![1], Some(vec![9]))],
    };
    let mut volatile = Vec::new();
    let mut manifests = 0;
    for op in store.settle(round) {
        match op {
            DiskOp::SyncDirectory { place: Place::Data } => volatile.clear(),
            DiskOp::Rename { to, .. } if version_of(&to).is_some() => {
                assert!(volatile.is_empty(), "{to} may be there without {volatile:?}");
                manifests += 1;
            }
            DiskOp::Rename { to, .. } => volatile.push(to),
            _ => {}
        }
    }
    assert_eq!(manifests, 1);
}

pub fn changed_state_files_are_told() {
    let (store, disk) = stored();
    let manifest = store.manifest();
    for file in [manifest.snapshots[0].file(), manifest.deltas[0].file()] {
        // The block of entries, between the header and the footer.
        expect_told(&disk, &file, BLOCK_SIZE..BLOCK_SIZE + 300, |disk| {
            store.visit_state(disk, &mut |_, _| {}).is_err()
        });
    }
}

pub fn a_changed_manifest_is_told() {
    let (store, disk) = stored();
    let file = manifest_name(store.manifest().version);
    expect_told(&disk, &file, 0..400, |disk| Store::load(disk, SHARD).is_err());
}

pub fn a_segment_is_open_with_o_dsync() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory");
    let path = place.path().to_owned();
    let id = SegmentId(1);
    {
        let (wal, data) = (path.clone(), path.clone());
        let options = DirectoryOptions { wal, data, lock_wait: Duration::ZERO };
        let mut directory = Directory::open(&options).expect("a new directory");
        let spec = SegmentSpec { shard: SHARD, id, nonce: 1, size: SEGMENT_SIZE };
        for op in segment::prepare_ops(&spec) {
            directory.perform(&op).expect("room");
        }
    }
    let file = path.join(&*segment::file_name(id).0);
    let _writer = SegmentWriter::open(&path, id, SyncMethod::Dsync).expect("it is there");
    let flags = flags_of(&file);
    assert_eq!(flags & libc::O_DSYNC, libc::O_DSYNC, "a write returns before it is durable");
}

/// The flags with which this process has a file open.
fn flags_of(file: &Path) -> i32 {
    let open = std::fs::read_dir("/proc/self/fd").expect("Linux");
    let is_it = |link: &std::path::PathBuf| std::fs::read_link(link).is_ok_and(|to| to == file);
    let link = open.flatten().map(|entry| entry.path()).find(is_it).expect("it is open");
    let number = link.file_name().expect("a number");
    let facts = std::fs::read_to_string(Path::new("/proc/self/fdinfo").join(number));
    let facts = facts.expect("it is open");
    let flags = facts.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
    i32::from_str_radix(flags.trim(), 8).expect("an octal number")
}

/// A round changes a key after the snapshot's slice with it, and settles frames that the other
/// slices see.
pub fn a_snapshot_is_loaded_from_its_first_frame() {
    let (mut store, mut disk) = stored();
    let entry = |key: u8, value: u8| (vec![key], vec![value]);
    let mut ops = store.snapshot_begin(Sequence(6));
    ops.extend(store.snapshot_add([entry(1, 0)]));
    let round = Settle {
        through: Sequence(7),
        valid_at: Sequence(7),
        durable: Sequence(9),
        first_segment: SegmentId(1),
        epoch: ShardEpoch(1),
        runs: Vec::new(),
        changes: vec![(vec![1], Some(vec![9]))],
    };
    ops.extend(store.settle(round));
    perform(&mut disk, ops);
    store.on_settled();
    let mut ops = store.snapshot_add([entry(2, 0)]);
    ops.extend(store.snapshot_finish(Sequence(9), Sequence(9)));
    perform(&mut disk, ops);
    store.on_snapshot();
    let mut value = None;
    let mut visit = |key: &[u8], new: Option<&[u8]>| {
        if key == [1] {
            value = new.map(<[u8]>::to_vec);
        }
    };
    store.visit_state(&disk, &mut visit).expect("whole");
    assert_eq!(value, Some(vec![9]), "the snapshot hides a change after its slice");
}
