//! Opens a directory, recovers what is in it, and appends records of several producers with
//! group commit: one durable write acknowledges a record of each of them.
//!
//! ```text
//! cargo run -p tidemill-wal --example append -- DIRECTORY [RECORDS] [PRODUCERS]
//! ```
//!
//! Run it again on the same directory, or kill it in between: recovery finds every record whose
//! acknowledgement was counted. Nothing settles here, so in the end the log is full.

use std::error::Error;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidemill_wal::commit::{FrameWrite, Log, LogOptions};
use tidemill_wal::disk::{
    Background, Directory, DirectoryOptions, DiskFault, FrameBuffer, Pace, SegmentWriter,
    SyncMethod, probe_disk,
};
use tidemill_wal::format::{FrameKind, SegmentId, Sequence, ShardEpoch, ShardId};
use tidemill_wal::limits::{SEGMENT_COUNT_MAX_DEFAULT, SEGMENT_READY_COUNT, SEGMENT_SIZE_MIN};
use tidemill_wal::recovery::{self, ScanStart};
use tidemill_wal::segment::{self, SegmentSpec};

/// A full server also has a manifest, which would say where the log starts.
const START: ScanStart = ScanStart {
    shard: ShardId(0),
    first_segment: SegmentId(1),
    replay_from: Sequence(1),
    known_durable: Sequence(0),
    epoch_min: ShardEpoch(0),
    segment_size: SEGMENT_SIZE_MIN,
    segment_count_max: SEGMENT_COUNT_MAX_DEFAULT,
};

const OPTIONS: LogOptions = LogOptions {
    shard: START.shard,
    segment_size: START.segment_size,
    segment_count_max: START.segment_count_max,
};

const RECORD_SIZE: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = match arguments.next() {
        Some(path) => PathBuf::from(path),
        None => std::env::temp_dir().join("tidemill-append"),
    };
    let record_count: usize = arguments.next().map_or(Ok(10_000), |text| text.parse())?;
    let producer_count: usize = arguments.next().map_or(Ok(16), |text| text.parse())?;
    let producer_count = producer_count.max(1);

    let options = DirectoryOptions {
        wal: path.clone(),
        data: path.clone(),
        lock_wait: Duration::from_secs(5),
    };
    let mut directory = Directory::open(&options)?;
    println!(
        "{}: one durable write takes {:?}",
        path.display(),
        probe_disk(&path, SyncMethod::Dsync)?
    );
    let log = recover(&mut directory)?;
    // Kept to the end: nobody else may write here.
    let _lock = directory.into_lock();

    append(path, log, record_count, producer_count)?;
    Ok(())
}

/// Replays what is there, and seals it.
fn recover(directory: &mut Directory) -> Result<Log, Box<dyn Error>> {
    let started = Instant::now();
    let (mut record_count, mut frame_count) = (0, 0);
    let end = recovery::scan(directory, &START, &mut |frame| {
        if frame.header.kind() == FrameKind::Steps {
            frame_count += 1;
        }
        for entry in frame.entries() {
            entry.map_err(|fault| fault.to_string())?;
            record_count += 1;
        }
        Ok(())
    })?;
    println!(
        "recovered {record_count} records in {frame_count} frames, {} bytes of log in {:?}",
        end.bytes,
        started.elapsed()
    );
    if let Some(torn) = end.torn {
        println!("cut a torn frame of {} bytes: it was never acknowledged", torn.size);
    }
    let log =
        recovery::start(directory, OPTIONS, &end, SEGMENT_READY_COUNT, clock_ms(), &mut random)?;
    println!("epoch {} starts with frame {}", log.epoch(), log.durable());
    Ok(log)
}

/// One loop appends and writes; each producer has one record on its way at a time, and its next
/// one comes when that is durable.
fn append(
    path: PathBuf,
    mut log: Log,
    record_count: usize,
    producer_count: usize,
) -> Result<(), DiskFault> {
    let mut background = Background::new(path.clone(), path.clone(), Pace::default());
    let mut buffer = FrameBuffer::default();
    let mut idle_producers = producer_count;
    let mut writer: Option<SegmentWriter> = None;
    let mut frame_count = 0;
    let (mut started_count, mut durable_count) = (0, 0);
    let started = Instant::now();
    while durable_count < record_count {
        while idle_producers > 0 && started_count < record_count && log.fits(RECORD_SIZE + 8) {
            log.append_put(&(started_count as u64).to_le_bytes(), &[7; RECORD_SIZE]);
            idle_producers -= 1;
            started_count += 1;
        }
        let Some(write) = log.submit(clock_ms()) else {
            println!("the log is full; a server would have settled it");
            break;
        };
        let open = writer_for(&path, &mut writer, &write)?;
        open.write(&mut buffer, write.offset, &write.bytes)?;
        log.on_durable(write.sequence);
        frame_count += 1;
        idle_producers += started_count - durable_count;
        durable_count = started_count;
        prepare(&mut background, &mut log)?;
    }
    let elapsed = started.elapsed();
    println!(
        "{durable_count} records of {producer_count} producers are durable after {elapsed:?}, with \
         {frame_count} writes: {:?} each",
        elapsed / frame_count.max(1)
    );
    if let Some(write) = log.submit_seal(clock_ms()) {
        let open = writer_for(&path, &mut writer, &write)?;
        open.write(&mut buffer, write.offset, &write.bytes)?;
        log.on_durable(write.sequence);
    }
    Ok(())
}

/// The writer of the segment that a frame goes to.
fn writer_for<'a>(
    path: &Path,
    writer: &'a mut Option<SegmentWriter>,
    write: &FrameWrite,
) -> Result<&'a SegmentWriter, DiskFault> {
    if writer.as_ref().is_none_or(|writer| writer.id() != write.segment) {
        *writer = Some(SegmentWriter::open(path, write.segment, SyncMethod::Dsync)?);
    }
    Ok(writer.as_ref().expect("just opened"))
}

/// Keeps segments ready. A server does this beside its commits, not between them.
fn prepare(background: &mut Background, log: &mut Log) -> Result<(), DiskFault> {
    while log.ready_count() < SEGMENT_READY_COUNT && log.segment_count() < log.segment_count_max() {
        let spec = SegmentSpec {
            shard: OPTIONS.shard,
            id: log.next_segment(),
            nonce: random(),
            size: OPTIONS.segment_size,
        };
        background.run(&segment::prepare_ops(&spec))?;
        log.add_ready(spec.id, spec.nonce);
    }
    Ok(())
}

fn clock_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
