//! Disk operations beside a running shard: jobs on threads of their own, and the segment that its
//! frames go to.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::directory::{Directory, Pace, try_lock, write_whole};
use super::{DiskFault, DiskOp, Storage};
use crate::commit::FrameWrite;
use crate::format::{FileName, SegmentId};
use crate::mutation::{self, Mutation};
use crate::segment;

/// How the write of a frame becomes durable. Measured at start, chosen by configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMethod {
    /// The file is open with `O_DSYNC`: the write itself is durable.
    Dsync,
    /// A write, then `fdatasync`.
    Fdatasync,
}

/// The open file of one prepared segment, to write frames to. It holds the segment's lock, which
/// the kernel keeps for as long as a write of this process is under way, even one that was killed.
#[derive(Debug)]
pub struct SegmentWriter {
    id: SegmentId,
    name: FileName,
    file: File,
    method: SyncMethod,
}

impl SegmentWriter {
    /// Opens a prepared segment in the WAL's directory and locks it.
    pub fn open(wal: &Path, id: SegmentId, method: SyncMethod) -> Result<Self, DiskFault> {
        let name = segment::file_name(id);
        let flags = match method {
            SyncMethod::Dsync if mutation::is_on(Mutation::OpenWithoutDsync) => 0,
            SyncMethod::Dsync => libc::O_DSYNC,
            SyncMethod::Fdatasync => 0,
        };
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_DIRECT | flags);
        let file = options
            .open(wal.join(&*name.0))
            .map_err(|source| DiskFault::from_io("open", &name, source))?;
        let is_locked = try_lock(file.as_raw_fd())
            .map_err(|source| DiskFault::from_io("lock", &name, source))?;
        if !is_locked {
            let source = io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another process holds the segment; stop it first",
            );
            return Err(DiskFault::from_io("lock", &name, source));
        }
        Ok(Self { id, name, file, method })
    }

    /// Which segment this is.
    pub fn id(&self) -> SegmentId {
        self.id
    }

    /// How its writes become durable.
    pub fn method(&self) -> SyncMethod {
        self.method
    }

    /// The descriptor, for a ring that writes without waiting: whole frames,
    /// which start on a block in memory, too.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Writes a whole frame, durably, and waits for it. After an error nothing is known about the
    /// file; the process must end.
    pub fn write(&self, write: &FrameWrite) -> Result<(), DiskFault> {
        write_whole(&self.file, &write.bytes, write.offset)
            .map_err(|source| DiskFault::from_io("write", &self.name, source))?;
        match self.method {
            SyncMethod::Dsync => Ok(()),
            SyncMethod::Fdatasync => self
                .file
                .sync_data()
                .map_err(|source| DiskFault::from_io("sync", &self.name, source)),
        }
    }

    /// What the result of an operation on the descriptor means: bytes written, or `-errno`.
    /// `expected` is what has to be written; anything less is a fault.
    pub fn check(
        &self,
        operation: &'static str,
        result: i32,
        expected: usize,
    ) -> Result<(), DiskFault> {
        let source = match usize::try_from(result) {
            Ok(written) if written == expected => return Ok(()),
            Ok(written) => io::Error::new(
                io::ErrorKind::WriteZero,
                format!("{written} of {expected} bytes were written"),
            ),
            Err(_) => io::Error::from_raw_os_error(-result),
        };
        Err(DiskFault::from_io(operation, &self.name, source))
    }
}

/// Performs jobs for one shard, on a thread that may wait.
#[derive(Debug)]
pub struct Background(Directory);

impl Background {
    /// For a shard's two directories, which may be the same and which this process holds. Writes
    /// of data keep the pace; making segments does not, for commits wait for those.
    pub fn new(wal: PathBuf, data: PathBuf, pace: Pace) -> Self {
        Self(Directory::open_beside(wal, data, pace))
    }

    /// Performs the operations in order; ends at the first that fails.
    pub fn run(&mut self, ops: &[DiskOp]) -> Result<(), DiskFault> {
        let result = ops.iter().try_for_each(|op| self.0.perform(op));
        // Nothing keeps a file open between jobs: its room would not be free when it goes.
        self.0.rest();
        result
    }
}
