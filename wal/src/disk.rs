//! The only I/O of the log: direct writes, syncs, maps, directory syncs.
//!
//! [`Directory`] performs the operations, for a start, for tools, and on threads beside a running
//! shard ([`Background`]). The simulator implements [`Storage`] with faults.

mod background;
mod directory;
mod extent_map;
mod memory;
mod probe;
mod removal;

use std::io;

use bytes::Bytes;

pub use self::background::{Background, SegmentWriter, SyncMethod};
pub use self::directory::{Directory, DirectoryError, DirectoryLock, DirectoryOptions, Pace};
pub use self::extent_map::ExtentMap;
pub use self::memory::MemoryStorage;
pub use self::probe::{ProbeError, probe_disk, probe_io_uring};

use crate::format::FileName;

/// Which of a shard's two directories; they may be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Holds files whose name starts with `wal-`.
    Wal,
    /// Holds everything else.
    Data,
}

/// One operation on a file of a shard. A job is a list of them, performed in order, each only
/// after the one before it succeeded. Durability comes from `Sync` and `SyncDirectory` alone.
#[derive(Debug, Clone)]
pub enum DiskOp {
    /// Creates the file, empty; an existing file of that name is replaced.
    Create {
        /// The file.
        file: FileName,
    },
    /// Writes the pieces one after the other from `offset`, a multiple of the block size; the end
    /// is padded with zeros to a block.
    Write {
        /// The file, created or opened before.
        file: FileName,
        /// Where in the file, in bytes.
        offset: u64,
        /// The bytes, in order.
        pieces: Vec<Bytes>,
    },
    /// Writes zeros, really (no hole, no `fallocate`), paced by the executor.
    Zero {
        /// The file.
        file: FileName,
        /// Where in the file, in bytes; a multiple of the block size.
        offset: u64,
        /// How many bytes; a multiple of the block size.
        size: u64,
    },
    /// `fdatasync`: what was written to the file is durable when this succeeds.
    Sync {
        /// The file.
        file: FileName,
    },
    /// What was written to the file leaves the drive's cache now, so that the next flush for a frame
    /// finds little there. Nothing is durable by it: an executor in a hurry leaves it out.
    Drain {
        /// The file.
        file: FileName,
    },
    /// Renames within one directory, replacing the target.
    Rename {
        /// The old name.
        from: FileName,
        /// The new name.
        to: FileName,
    },
    /// Removes the file. Success if it is gone already.
    Remove {
        /// The file.
        file: FileName,
    },
    /// Makes creations, renames and removals in the directory durable.
    SyncDirectory {
        /// Which directory.
        place: Place,
    },
}

/// Why a job did not finish. What it had done so far is undefined until the next recovery.
#[derive(Debug, thiserror::Error)]
pub enum DiskFault {
    /// No space left. Nothing acknowledged is hurt; try again when there is room.
    #[error("no space left while writing {file}")]
    Full {
        /// The file that could not grow.
        file: FileName,
    },
    /// Anything else, a short write included. The process must end: only replay trusts the disk.
    #[error("{operation} of {file} failed: {source}")]
    Failed {
        /// What was tried: `write`, `sync`, `rename`, …
        operation: &'static str,
        /// On which file.
        file: FileName,
        /// The system's reason.
        source: io::Error,
    },
}

/// A shard's files as recovery and the tools need them: whole reads, blocking operations.
pub trait Storage {
    /// Every file of both directories with its size in bytes, in no order.
    fn list(&self) -> io::Result<Vec<(FileName, u64)>>;
    /// Makes durable whatever a killed predecessor left in caches, then reads `size` bytes at
    /// `offset`; fewer only at the end of the file.
    fn read(&self, file: &FileName, offset: u64, size: usize) -> io::Result<Bytes>;
    /// Performs one operation and waits for it.
    fn perform(&mut self, op: &DiskOp) -> Result<(), DiskFault>;
}

impl DiskFault {
    /// Tells a full disk from everything else.
    fn from_io(operation: &'static str, file: &FileName, source: io::Error) -> Self {
        let file = file.clone();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { file },
            _ => Self::Failed { operation, file, source },
        }
    }
}

#[cfg(test)]
mod tests;
