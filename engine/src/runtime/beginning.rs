//! How the shards of a node start together.
//!
//! Each reads its log; when all have, it is known which newest frames go ([`agree_on_ends`]), and each opens.
//! When all have, they work: what is made anew must not meet what was not yet cut.

use std::io;
use std::sync::mpsc;
use std::time::Duration;

use super::node::{ServeError, raise_locked_memory};
use crate::admin::notify::Notify;
use crate::shard::{LogEnd, OpenError, agree_on_ends};

/// What a shard's thread tells the main thread.
pub(super) enum Event {
    Recovered { shard: u16, end: LogEnd },
    Ready { shard: u16, took: Duration, frames: u64, bytes: u64 },
    Listening,
    Failed { shard: u16, error: Box<OpenError> },
    NoRing(io::Error),
    FailedToStart { what: &'static str, source: io::Error },
}

/// What a shard's thread waits for while all start.
pub(super) enum Told {
    /// All have read their logs: whether this one begins without its newest frame.
    End { is_cut: bool },
    /// All have opened: what is new may be made.
    Begin,
}

/// Leads the shards through their start; returns how much was replayed. If one does not start the
/// others end, for nobody tells them anything any more.
pub(super) fn wait_until_ready(
    events: &mpsc::Receiver<Event>,
    tells: Vec<mpsc::Sender<Told>>,
    notify: &Notify,
) -> Result<(u64, u64), ServeError> {
    let mut ends: Vec<Option<LogEnd>> = vec![None; tells.len()];
    let mut ready = 0;
    let mut replayed = (0, 0);
    while ready < tells.len() {
        match events.recv_timeout(Duration::from_secs(10)) {
            Ok(Event::Recovered { shard, end }) => {
                ends[usize::from(shard)] = Some(end);
                if let Some(ends) = ends.iter().cloned().collect::<Option<Vec<_>>>() {
                    let cuts = agree_on_ends(&ends)
                        .map_err(|fault| open_error(fault.own, OpenError::Disagree(fault)))?;
                    for (tell, is_cut) in tells.iter().zip(cuts) {
                        // A thread that has ended says why itself.
                        let _ = tell.send(Told::End { is_cut });
                    }
                }
            }
            Ok(Event::Ready { shard, took, frames, bytes }) => {
                tracing::debug!(shard, took_ms = took.as_millis() as u64, frames, bytes, "ready");
                ready += 1;
                replayed = (replayed.0 + frames, replayed.1 + bytes);
            }
            Ok(Event::Listening) => unreachable!("nobody was told to"),
            Ok(Event::Failed { shard, error }) => return Err(open_error(shard, *error)),
            Ok(Event::NoRing(source)) if source.raw_os_error() == Some(libc::ENOMEM) => {
                return Err(ServeError::LockedMemory { limit: raise_locked_memory() });
            }
            Ok(Event::NoRing(source)) => {
                return Err(ServeError::System { what: "setting up io_uring", source });
            }
            Ok(Event::FailedToStart { what, source }) => {
                return Err(ServeError::System { what, source });
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                notify.status("recovering");
                notify.extend_timeout(Duration::from_secs(60));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let source = io::Error::other("it ended without a word");
                return Err(ServeError::System { what: "a shard's thread", source });
            }
        }
    }
    for tell in &tells {
        let _ = tell.send(Told::Begin);
    }
    Ok(replayed)
}

/// Every shard takes connections from here on. One that cannot ends the process.
pub(super) fn wait_until_listening(events: &mpsc::Receiver<Event>, shard_count: u16) {
    let is_listening = |event: &Event| matches!(event, Event::Listening);
    let count = events.iter().filter(is_listening).take(shard_count.into()).count();
    assert_eq!(count, usize::from(shard_count), "a shard's thread ended without a word");
}

/// A directory in use is the node's matter, not a shard's.
fn open_error(shard: u16, error: OpenError) -> ServeError {
    match error {
        OpenError::Directory(error) => ServeError::Directory(error),
        error => ServeError::Open { shard, source: Box::new(error) },
    }
}
