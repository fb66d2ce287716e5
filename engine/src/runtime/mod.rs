//! The runtime: everything that touches threads, sockets, files and clocks.
//!
//! [`serve`] starts a node from its configuration and returns when it has stopped. One pinned
//! thread with an io_uring of its own for each shard, a helper thread and threads for disk jobs
//! beside each, one ordinary thread for the admin port.

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
mod placement;
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
