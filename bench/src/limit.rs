//! What the machine can do at best: the measure of every result.
//!
//! The limit of an acknowledgement is a server that does nothing but what a durable one must: it
//! takes all requests that have arrived, makes them durable with one direct write, answers them, and
//! only then looks again. So exactly one durable write is in flight, and requests that come
//! meanwhile share the next. It is driven by the same client with the same bytes at the same due
//! times. It uses blocking `pwrite`: one system call, and no queue or worker between.

mod answerer;
mod file;
mod pauses;
mod twice;

use std::path::Path;
use std::time::{Duration, Instant};

pub use self::answerer::Answerer;
pub use self::file::{BLOCK_SIZE, LimitFile, SyncMethod};
pub use self::pauses::pauses;
pub use self::twice::written_twice;

use crate::load::{new_histogram, to_latency};
use crate::run::Latency;

/// Bytes of the file that limits are measured on; written through beforehand, then over again.
pub const FILE_SIZE: u64 = 64 << 20;

/// One large write of the sequential bandwidth.
const LARGE_SIZE: usize = 1 << 20;

/// Large writes that are under way at a time, so that the device never waits for the next.
const WRITER_COUNT: u64 = 4;

/// Durable writes of one block, one after the other, for a time.
pub fn durable_writes(
    directory: &Path,
    method: SyncMethod,
    duration: Duration,
) -> Result<Latency, String> {
    let mut file = LimitFile::create(directory, FILE_SIZE, method)?;
    let mut times = new_histogram();
    let block = [0x5a; BLOCK_SIZE];
    let started = Instant::now();
    while started.elapsed() < duration {
        let before = Instant::now();
        file.append(&block)?;
        times.saturating_record(before.elapsed().as_nanos() as u64);
    }
    Ok(to_latency(&times))
}

/// Bytes a second that the device takes in large direct writes, several at a time, with one sync
/// at the end, over a file of a size that was written through before; in between, the device rests.
pub fn sequential_bandwidth(
    directory: &Path,
    size: u64,
    duration: Duration,
    rest: impl FnOnce() -> Result<(), String>,
) -> Result<f64, String> {
    let file = LimitFile::create(directory, size, SyncMethod::None)?;
    rest()?;
    let share = size / WRITER_COUNT;
    let started = Instant::now();
    let write = |writer: u64| {
        let mut done = 0;
        let buffer = file::Aligned::filled(LARGE_SIZE);
        while started.elapsed() < duration {
            let at = writer * share + done % share;
            file.write_at(buffer.bytes(), at)?;
            done += LARGE_SIZE as u64;
        }
        Ok(done)
    };
    let done: Result<Vec<u64>, String> = std::thread::scope(|scope| {
        let writers: Vec<_> =
            (0..WRITER_COUNT).map(|writer| scope.spawn(move || write(writer))).collect();
        writers.into_iter().map(|writer| writer.join().expect("it does not panic")).collect()
    });
    let done: u64 = done?.iter().sum();
    file.sync()?;
    Ok(done as f64 / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_syncing_and_the_bandwidth_are_measured() {
        let directory = tempfile::tempdir_in(".").expect("a directory");
        let moment = Duration::from_millis(20);
        for method in [SyncMethod::Dsync, SyncMethod::Fdatasync] {
            let times = durable_writes(directory.path(), method, moment).expect("measured");
            assert!(times.count > 0 && times.percentiles.p50 > 0.0, "{method:?}: {times:?}");
        }
        let bandwidth = sequential_bandwidth(directory.path(), 16 << 20, moment, || Ok(()));
        let bandwidth = bandwidth.expect("measured");
        assert!(bandwidth > 0.0);
        for method in [SyncMethod::Dsync, SyncMethod::Fdatasync] {
            let twice = written_twice(directory.path(), 2, method, 8 << 20, moment, || Ok(()));
            assert!(twice.expect("measured") > 0.0, "{method:?}");
        }
        let left = std::fs::read_dir(directory.path()).expect("readable").count();
        assert_eq!(left, 0, "the files are gone");
    }
}
