//! What the device takes if each byte goes to a log first, durably, and then to a file of its own.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::LARGE_SIZE;
use super::file::{Aligned, LimitFile, SyncMethod};

/// Large writes that a copy may be behind its log before the log waits: a segment's worth.
const BEHIND_MAX: usize = 64;

/// Bytes a second that are in both. There are as many logs as asked for, each with one durable write in
/// flight, and beside each of them one thread that copies, whose file is synced in the end. All
/// files together have the size, and were written through before; in between, the device rests.
pub fn written_twice(
    directory: &Path,
    logs: u16,
    method: SyncMethod,
    size: u64,
    duration: Duration,
    rest: impl FnOnce() -> Result<(), String>,
) -> Result<f64, String> {
    let share = size / (2 * u64::from(logs));
    let share = (share - share % LARGE_SIZE as u64).max(LARGE_SIZE as u64);
    let file = |method| LimitFile::create(directory, share, method);
    let pair = |_| Ok::<_, String>((file(method)?, file(SyncMethod::None)?));
    let pairs: Vec<_> = (0..logs).map(pair).collect::<Result<_, _>>()?;
    rest()?;
    let started = Instant::now();
    let copied: Result<Vec<u64>, String> = thread::scope(|scope| {
        let mut workers = Vec::new();
        for (log, copy) in &pairs {
            let (written, to_copy) = sync_channel(BEHIND_MAX);
            let log =
                scope.spawn(move || append(log, share, || started.elapsed() < duration, written));
            let copy = scope.spawn(move || follow(copy, to_copy));
            workers.push((log, copy));
        }
        let ends = workers.into_iter().map(|(log, copy)| {
            log.join().expect("it does not panic")?;
            copy.join().expect("it does not panic")
        });
        ends.collect()
    });
    Ok(copied?.iter().sum::<u64>() as f64 / started.elapsed().as_secs_f64())
}

/// Writes over the log, and says where after each write.
fn append(
    log: &LimitFile,
    size: u64,
    goes_on: impl Fn() -> bool,
    written: SyncSender<u64>,
) -> Result<(), String> {
    let buffer = Aligned::filled(LARGE_SIZE);
    for at in (0..size).step_by(LARGE_SIZE).cycle().take_while(|_| goes_on()) {
        log.write_durably(buffer.bytes(), at)?;
        if written.send(at).is_err() {
            // The copy ended with an error, which it tells itself.
            break;
        }
    }
    Ok(())
}

/// Writes to the same places; returns the bytes.
fn follow(copy: &LimitFile, to_copy: Receiver<u64>) -> Result<u64, String> {
    let buffer = Aligned::filled(LARGE_SIZE);
    let mut done = 0;
    for at in to_copy {
        copy.write_at(buffer.bytes(), at)?;
        done += LARGE_SIZE as u64;
    }
    copy.sync()?;
    Ok(done)
}
