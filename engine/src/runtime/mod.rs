//! The runtime: everything that touches threads, sockets, files and clocks.
//!
//! [`serve`] starts a node from its configuration and returns when it has stopped. One pinned
//! thread with an io_uring of its own for each shard, a helper thread and threads for disk jobs
//! beside each, one ordinary thread for the admin port.

mod beginning;
mod calls;
mod clock;
mod connection;
mod figures;
mod helper;
mod hub;
pub mod identity;
pub mod inbox;
mod jobs;
mod lines;
mod listener;
mod log;
pub mod mesh;
mod node;
pub mod placement;
pub mod ring;
mod serving;
mod signals;
pub mod tickets;
mod uring;
mod verify;
mod witness;
mod worker;

use std::io;
use std::path::Path;

pub use node::{ServeError, serve, serve_beside};
pub use serving::Serving;
pub use verify::verify_replay;

use crate::admin::telemetry::Outcome;
use crate::kafka::error_code::ErrorCode;
use crate::shard::Gauges;

/// Replay reads at disk speed and checks every byte; this rate is a careful estimate.
const REPLAY_BYTES_PER_MS: u64 = 500_000;

/// Entries of keyed state are put into their map one by one, at about this rate.
const STATE_ENTRIES_PER_MS: u64 = 700;

/// Total and usable bytes of a directory's file system.
fn disk_space(directory: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(directory.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a valid `statvfs` to be filled in.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte and the result lives.
    if unsafe { libc::statvfs(path.as_ptr(), &mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
}

/// How long a start would take now, from what it would replay and load.
fn recovery_estimate_ms(gauges: &Gauges) -> u64 {
    (gauges.wal_used + gauges.state_size) / REPLAY_BYTES_PER_MS
        + (gauges.state_count + gauges.changed_count) / STATE_ENTRIES_PER_MS
}

/// How long a recovery still takes at most that has replayed so many bytes of all segments.
fn remaining_ms(done: u64, total: u64) -> u64 {
    total.saturating_sub(done) / REPLAY_BYTES_PER_MS
}

/// Which class of metrics an error belongs to.
fn outcome_of(code: ErrorCode) -> Outcome {
    if code.is_none() {
        Outcome::Good
    } else if code == ErrorCode::KafkaStorageError || code == ErrorCode::UnknownServerError {
        Outcome::Fault
    } else if code.is_retriable() {
        Outcome::Retriable
    } else {
        Outcome::Refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_takes_longer_the_more_bytes_and_the_more_entries_there_are() {
        let gauges = Gauges { wal_used: 250_000_000, state_size: 250_000_000, ..Gauges::default() };
        assert_eq!(recovery_estimate_ms(&gauges), 1000);
        let gauges = Gauges { state_count: 2_000_000, changed_count: 800_000, ..gauges };
        assert_eq!(recovery_estimate_ms(&gauges), 5000);
    }

    #[test]
    fn what_remains_of_a_recovery_is_never_less_than_nothing() {
        assert_eq!(remaining_ms(0, 500_000_000), 1000);
        assert_eq!(remaining_ms(600_000_000, 500_000_000), 0);
    }
}
