use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use super::directory::{open_direct, try_lock};
use super::*;
use crate::commit::LogOptions;
use crate::format::{SegmentId, Sequence, ShardEpoch, ShardId};
use crate::limits::BLOCK_SIZE;
use crate::recovery::{ScanStart, scan, start};
use crate::segment::{self, SegmentSpec};

const SEGMENT_SIZE: u64 = 1 << 20;

fn name(text: &str) -> FileName {
    FileName(text.into())
}

fn options(path: &Path) -> DirectoryOptions {
    DirectoryOptions { wal: path.join("log"), data: path.join("data"), lock_wait: Duration::ZERO }
}

/// A list of operations of every kind, on files of both directories.
fn every_op() -> Vec<DiskOp> {
    let (file, other, wal) = (name("a.tmp"), name("b"), name("wal-tmp-a"));
    let pieces = vec![Bytes::from(vec![1; 5000]), Bytes::new(), Bytes::from(vec![2; 2 << 20])];
    vec![
        DiskOp::Create { file: file.clone() },
        DiskOp::Write { file: file.clone(), offset: 4096, pieces },
        DiskOp::Zero { file: file.clone(), offset: 0, size: 4096 },
        DiskOp::Drain { file: file.clone() },
        DiskOp::Sync { file: file.clone() },
        DiskOp::Rename { from: file, to: name("a") },
        DiskOp::Create { file: other.clone() },
        DiskOp::Create { file: wal.clone() },
        DiskOp::Zero { file: wal.clone(), offset: 0, size: 3 << 20 },
        DiskOp::Sync { file: wal },
        DiskOp::SyncDirectory { place: Place::Data },
        DiskOp::Remove { file: other.clone() },
        DiskOp::Remove { file: other },
        DiskOp::SyncDirectory { place: Place::Wal },
        // Without a create: the file is opened.
        DiskOp::Write { file: name("a"), offset: 0, pieces: vec![Bytes::from_static(b"start")] },
        DiskOp::Sync { file: name("a") },
    ]
}

fn check_every_op(storage: &dyn Storage) {
    let mut list = storage.list().unwrap();
    list.sort();
    let size = 4096 + (5000u64 + (2 << 20)).next_multiple_of(4096);
    assert_eq!(list, [(name("a"), size), (name("wal-tmp-a"), 3 << 20)]);
    let all = storage.read(&name("a"), 0, 8 << 20).unwrap();
    assert_eq!(all.len() as u64, size);
    assert_eq!(&all[..5], b"start");
    assert!(all[5..4096].iter().all(|byte| *byte == 0));
    assert!(all[4096..9096].iter().all(|byte| *byte == 1));
    assert!(all[9096..][..2 << 20].iter().all(|byte| *byte == 2));
    assert!(all[9096 + (2 << 20)..].iter().all(|byte| *byte == 0));
    assert_eq!(storage.read(&name("a"), 9090, 10).unwrap()[..], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2]);
    assert_eq!(storage.read(&name("a"), size - 1, 10).unwrap().len(), 1);
    assert_eq!(storage.read(&name("a"), size + 9, 10).unwrap().len(), 0);
    assert!(storage.read(&name("b"), 0, 1).is_err());
}

#[test]
fn memory_performs_every_operation() {
    let mut storage = MemoryStorage::new();
    for op in every_op() {
        storage.perform(&op).unwrap();
    }
    check_every_op(&storage);
}

#[test]
fn a_directory_performs_every_operation() {
    let path = tempfile::tempdir().unwrap();
    let mut directory = Directory::open(&options(path.path())).unwrap();
    for op in every_op() {
        directory.perform(&op).unwrap();
    }
    check_every_op(&directory);
    assert!(path.path().join("log/wal-tmp-a").exists());
    assert!(path.path().join("data/a").exists());
}

#[test]
fn a_background_job_performs_every_operation() {
    let path = tempfile::tempdir().unwrap();
    let directory = Directory::open(&options(path.path())).unwrap();
    let mut background =
        Background::new(path.path().join("log"), path.path().join("data"), Pace::default());
    background.run(&every_op()).unwrap();
    check_every_op(&directory);
}

#[test]
fn the_directories_may_be_relative_to_the_current_one() {
    let path = tempfile::tempdir().unwrap();
    let directory = Directory::open(&options(path.path())).unwrap();
    let up: std::path::PathBuf =
        std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect();
    let relative = up.join(path.path().strip_prefix("/").unwrap());
    let mut background =
        Background::new(relative.join("log"), relative.join("data"), Pace::default());
    background.run(&every_op()).unwrap();
    check_every_op(&directory);
}

#[test]
fn a_job_ends_at_the_first_operation_that_fails() {
    let path = tempfile::tempdir().unwrap();
    let directory = Directory::open(&options(path.path())).unwrap();
    let mut background =
        Background::new(path.path().join("log"), path.path().join("data"), Pace::default());
    let ops = [DiskOp::Sync { file: name("missing") }, DiskOp::Create { file: name("never") }];
    let fault = background.run(&ops).unwrap_err();
    assert!(matches!(fault, DiskFault::Failed { operation: "sync", .. }), "{fault:?}");
    assert_eq!(directory.list().unwrap(), []);
}

#[test]
fn a_file_is_drained_for_commits_and_not_while_they_wait_for_the_job() {
    let path = tempfile::tempdir().unwrap();
    let _directory = Directory::open(&options(path.path())).unwrap();
    let pace = Pace::default();
    let mut background =
        Background::new(path.path().join("log"), path.path().join("data"), pace.clone());
    // Whoever drains has to open it.
    let ops = [DiskOp::Drain { file: name("missing") }];
    pace.set(Pace::HURRY);
    background.run(&ops).unwrap();
    for rate in [0, 1] {
        pace.set(rate);
        let fault = background.run(&ops).unwrap_err();
        assert!(matches!(fault, DiskFault::Failed { operation: "sync", .. }), "{fault:?}");
    }
}

#[test]
fn a_full_disk_is_told_from_a_broken_one() {
    let file = name("a");
    let fault = |code| DiskFault::from_io("write", &file, io::Error::from_raw_os_error(code));
    assert!(matches!(fault(libc::ENOSPC), DiskFault::Full { .. }));
    assert!(matches!(fault(libc::EDQUOT), DiskFault::Full { .. }));
    assert!(matches!(fault(libc::EIO), DiskFault::Failed { .. }));
    assert_eq!(fault(libc::EIO).to_string(), "write of a failed: Input/output error (os error 5)");
}

#[test]
fn a_directory_serves_one_process_and_read_only_ones() {
    let path = tempfile::tempdir().unwrap();
    let options = options(path.path());
    let first = Directory::open(&options).unwrap();
    let error = Directory::open(&options).unwrap_err();
    assert!(matches!(error, DirectoryError::InUse { .. }), "{error:?}");
    assert!(error.to_string().contains("in use by another process"), "{error}");
    let lock = first.into_lock();
    assert!(Directory::open(&options).is_err(), "the lock outlives blocking I/O");
    let reader = Directory::open_read_only(options.wal.clone(), options.data.clone());
    assert_eq!(reader.list().unwrap(), [], "the lock is not listed");
    drop(lock);
    Directory::open(&options).unwrap();
}

#[test]
fn a_directory_waits_for_a_segment_that_is_still_being_written() {
    let path = tempfile::tempdir().unwrap();
    let mut options = options(path.path());
    let mut directory = Directory::open(&options).unwrap();
    let segment = segment::file_name(SegmentId(1));
    directory.perform(&DiskOp::Create { file: segment.clone() }).unwrap();
    drop(directory);

    // A killed predecessor, whose last write has not ended, as far as the kernel is concerned.
    let held = open_direct(&options.wal.join(&*segment.0), false).unwrap();
    assert!(try_lock(held.as_raw_fd()).unwrap());
    let error = Directory::open(&options).unwrap_err();
    assert!(error.to_string().contains("wal-00000000000000000001.seg"), "{error}");

    options.lock_wait = Duration::from_secs(60);
    let waiting = std::thread::spawn(move || Directory::open(&options).map(|_| ()));
    drop(held);
    waiting.join().unwrap().unwrap();
}

#[test]
fn a_file_system_without_direct_io_is_named() {
    // /proc is one on every machine.
    let error = open_direct(Path::new("/proc/version"), false).unwrap_err();
    match error {
        DirectoryError::NoDirectIo { .. } => {
            assert!(error.to_string().contains("O_DIRECT"), "{error}");
        }
        DirectoryError::Io { .. } => {
            // Its files cannot be opened for writing, which some kernels notice first.
            assert!(error.to_string().contains("/proc/version"), "{error}");
        }
        DirectoryError::InUse { .. } => panic!("{error}"),
    }
}

fn scan_start() -> ScanStart {
    ScanStart {
        shard: ShardId(0),
        first_segment: SegmentId(1),
        replay_from: Sequence(1),
        known_durable: Sequence(0),
        epoch_min: ShardEpoch(0),
        segment_size: SEGMENT_SIZE,
        segment_count_max: 4,
    }
}

fn log_options() -> LogOptions {
    LogOptions { shard: ShardId(0), segment_size: SEGMENT_SIZE, segment_count_max: 4 }
}

#[test]
fn frames_written_to_segments_are_recovered_from_the_disk() {
    for method in [SyncMethod::Dsync, SyncMethod::Fdatasync] {
        let path = tempfile::tempdir().unwrap();
        let options = options(path.path());
        let mut directory = Directory::open(&options).unwrap();
        let end = scan(&directory, &scan_start(), &mut |_| Ok(())).unwrap();
        let mut nonce = 0;
        let mut log = start(&mut directory, log_options(), &end, 2, 1, &mut || {
            nonce += 1;
            nonce
        })
        .unwrap();
        let _lock = directory.into_lock();
        let wal = &options.wal;
        let mut writer = SegmentWriter::open(wal, SegmentId(1), method).unwrap();
        let fault = SegmentWriter::open(wal, SegmentId(1), method).unwrap_err();
        assert!(fault.to_string().contains("another process"), "{fault}");
        for value in 0..3 {
            // The largest goes to the next segment.
            log.append_put(b"key", &vec![value; value as usize * 400_000]);
            let write = log.submit(2).unwrap();
            if write.segment != writer.id() {
                writer = SegmentWriter::open(wal, write.segment, method).unwrap();
            }
            writer.write(&write).unwrap();
            log.on_durable(write.sequence);
        }
        assert_eq!(writer.id(), SegmentId(2));
        drop(writer);

        let reader = Directory::open_read_only(options.wal.clone(), options.data.clone());
        let mut sizes = Vec::new();
        let end = scan(&reader, &scan_start(), &mut |frame| {
            sizes.push(frame.header.body_size());
            Ok(())
        })
        .unwrap();
        assert_eq!(sizes, [0, 11, 400_011, 800_011]);
        assert_eq!(end.last, Sequence(4));
        assert_eq!(end.in_use.len(), 2);
    }
}

#[test]
fn a_background_job_prepares_and_recycles_segments() {
    let path = tempfile::tempdir().unwrap();
    let options = options(path.path());
    let directory = Directory::open(&options).unwrap();
    let mut background =
        Background::new(options.wal.clone(), options.data.clone(), Pace::default());
    let spec =
        |id, nonce| SegmentSpec { shard: ShardId(0), id: SegmentId(id), nonce, size: SEGMENT_SIZE };
    background.run(&segment::prepare_ops(&spec(1, 10))).unwrap();
    background.run(&segment::prepare_ops(&spec(2, 20))).unwrap();
    background.run(&segment::recycle_ops(SegmentId(1), &spec(3, 30))).unwrap();
    background.run(&segment::remove_ops(SegmentId(2))).unwrap();
    let end = scan(&directory, &scan_start(), &mut |_| Ok(())).unwrap();
    assert_eq!(end.spare, [(SegmentId(3), 30)]);
    assert_eq!(end.stale, []);
    let written = directory.read(&segment::file_name(SegmentId(3)), 0, 2 << 20).unwrap();
    assert_eq!(written.len() as u64, SEGMENT_SIZE);
    assert!(written[BLOCK_SIZE..].iter().all(|byte| *byte == 0));
}

#[test]
fn this_machine_is_measured_and_nothing_is_left_behind() {
    probe_io_uring().unwrap();
    let path = tempfile::tempdir().unwrap();
    for method in [SyncMethod::Dsync, SyncMethod::Fdatasync] {
        let median = probe_disk(path.path(), method).unwrap();
        assert!(median > Duration::ZERO);
    }
    assert_eq!(std::fs::read_dir(path.path()).unwrap().count(), 0);
    let error = probe_disk(&path.path().join("missing"), SyncMethod::Dsync).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn a_lock_ends_with_the_last_open_file_that_has_it() {
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("file");
    let first = File::create(&path).unwrap();
    let same = first.try_clone().unwrap();
    let other = File::open(&path).unwrap();
    assert!(try_lock(first.as_raw_fd()).unwrap());
    drop(first);
    assert!(!try_lock(other.as_raw_fd()).unwrap());
    drop(same);
    assert!(try_lock(other.as_raw_fd()).unwrap());
}

#[test]
fn only_a_whole_write_is_one() {
    let path = tempfile::tempdir().unwrap();
    std::fs::write(path.path().join("wal-00000000000000000001.seg"), []).unwrap();
    let writer = SegmentWriter::open(path.path(), SegmentId(1), SyncMethod::Dsync).unwrap();
    assert!(writer.check("write", 8192, 8192).is_ok());
    let short = writer.check("write", 4096, 8192).unwrap_err();
    assert!(short.to_string().contains("4096 of 8192 bytes"), "{short}");
    let failed = writer.check("write", -libc::EIO, 8192).unwrap_err();
    assert!(failed.to_string().contains("wal-00000000000000000001.seg"), "{failed}");
    assert!(matches!(failed, DiskFault::Failed { operation: "write", .. }), "{failed}");
}
