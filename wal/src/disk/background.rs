//! Disk operations of a running shard, awaited on its glommio executor.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use glommio::io::{Directory, DmaBuffer, DmaFile, OpenOptions};

use super::directory::try_lock;
use super::{DiskFault, DiskOp, Place};
use crate::format::{FileName, SegmentId};
use crate::limits::{BLOCK_SIZE, ZERO_PIECE_SIZE};
use crate::mutation::{self, Mutation};
use crate::segment;

/// Largest buffer of a background write: a commit waits behind one of them at most.
const WRITE_PIECE_SIZE: usize = 1 << 20;

/// How the write of a frame becomes durable. Measured at start, chosen by configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMethod {
    /// The file is open with `O_DSYNC`: the write itself is durable.
    Dsync,
    /// A write, then `fdatasync`.
    Fdatasync,
}

/// Writes frames to one prepared segment. It holds the segment's lock, which the kernel keeps for
/// as long as a write of this process is under way, even one that was killed.
#[derive(Debug)]
pub struct SegmentWriter {
    id: SegmentId,
    name: FileName,
    file: DmaFile,
    method: SyncMethod,
}

impl SegmentWriter {
    /// Opens a prepared segment in the WAL's directory and locks it.
    pub async fn open(wal: &Path, id: SegmentId, method: SyncMethod) -> Result<Self, DiskFault> {
        let name = segment::file_name(id);
        let flags = match method {
            SyncMethod::Dsync if mutation::is_on(Mutation::OpenWithoutDsync) => 0,
            SyncMethod::Dsync => libc::O_DSYNC,
            SyncMethod::Fdatasync => 0,
        };
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(flags);
        let file = options.dma_open(wal.join(&*name.0)).await.map_err(to_fault("open", &name))?;
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

    /// Writes a whole frame, durably. After an error nothing is known about the file; the process
    /// must end.
    pub async fn write(&self, offset: u64, bytes: &Bytes) -> Result<(), DiskFault> {
        assert!(offset.is_multiple_of(BLOCK_SIZE as u64));
        assert!(bytes.len().is_multiple_of(BLOCK_SIZE));
        let mut buffer = self.file.alloc_dma_buffer(bytes.len());
        buffer.as_bytes_mut().copy_from_slice(bytes);
        write_whole(&self.file, &self.name, buffer, offset).await?;
        match self.method {
            SyncMethod::Dsync => Ok(()),
            SyncMethod::Fdatasync => {
                self.file.fdatasync().await.map_err(to_fault("sync", &self.name))
            }
        }
    }

    /// Closes the file, which releases the lock.
    pub async fn close(self) -> Result<(), DiskFault> {
        self.file.close().await.map_err(to_fault("close", &self.name))
    }
}

/// How fast background writes may be, in bytes a second; zero: as fast as they can. Shared by the
/// jobs of one shard and changed while they run.
#[derive(Debug, Clone, Default)]
pub struct Pace(Rc<Cell<u64>>);

impl Pace {
    /// From now on.
    pub fn set(&self, bytes_per_second: u64) {
        self.0.set(bytes_per_second);
    }

    async fn wait_for(&self, size: usize) {
        if let Some(micros) = (size as u64 * 1_000_000).checked_div(self.0.get()) {
            glommio::timer::sleep(Duration::from_micros(micros)).await;
        }
    }
}

/// Performs jobs for one shard. A job's pieces are small and each is awaited, so that the shard's
/// commits go between them; run it in a task queue with few shares.
#[derive(Debug, Clone)]
pub struct Background {
    wal: PathBuf,
    data: PathBuf,
    pace: Pace,
}

impl Background {
    /// For a shard's two directories, which may be the same. Writes of data keep the pace; making
    /// segments does not, for commits wait for those.
    pub fn new(wal: PathBuf, data: PathBuf, pace: Pace) -> Self {
        // glommio opens a directory relative to no directory at all, which the kernel refuses for
        // a relative path.
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        Self { wal: absolute(wal), data: absolute(data), pace }
    }

    /// Performs the operations in order; ends at the first that fails.
    pub async fn run(&self, ops: Vec<DiskOp>) -> Result<(), DiskFault> {
        let mut job = Job { background: self, open: HashMap::new() };
        let mut result = Ok(());
        for op in &ops {
            result = job.perform(op).await;
            if result.is_err() {
                break;
            }
        }
        for (name, file) in job.open.drain() {
            let closed = file.close().await.map_err(to_fault("close", &name));
            result = result.and(closed);
        }
        result
    }

    fn path(&self, file: &FileName) -> PathBuf {
        let directory = if file.is_wal() { &self.wal } else { &self.data };
        directory.join(&*file.0)
    }
}

/// One list of operations and the files that it has open.
struct Job<'a> {
    background: &'a Background,
    open: HashMap<FileName, DmaFile>,
}

impl Job<'_> {
    async fn perform(&mut self, op: &DiskOp) -> Result<(), DiskFault> {
        match op {
            DiskOp::Create { file } => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(true).mode(0o640);
                self.open(file, &options, "create").await?;
                Ok(())
            }
            DiskOp::Write { file, offset, pieces } => self.write(file, *offset, pieces).await,
            DiskOp::Zero { file, offset, size } => self.zero(file, *offset, *size).await,
            DiskOp::Sync { file } => {
                let handle = self.existing(file).await?;
                handle.fdatasync().await.map_err(to_fault("sync", file))
            }
            DiskOp::Rename { from, to } => {
                // A file is complete, or unchanged, when it is renamed: nothing keeps it open.
                if let Some(handle) = self.open.remove(from) {
                    handle.close().await.map_err(to_fault("close", from))?;
                }
                let (old, new) = (self.background.path(from), self.background.path(to));
                glommio::io::rename(old, new).await.map_err(to_fault("rename", from))
            }
            DiskOp::Remove { file } => {
                if let Some(handle) = self.open.remove(file) {
                    handle.close().await.map_err(to_fault("close", file))?;
                }
                match glommio::io::remove(self.background.path(file)).await {
                    Ok(()) => Ok(()),
                    Err(error) => match io::Error::from(error) {
                        error if error.kind() == io::ErrorKind::NotFound => Ok(()),
                        error => Err(DiskFault::from_io("remove", file, error)),
                    },
                }
            }
            DiskOp::SyncDirectory { place } => {
                let (path, name) = match place {
                    Place::Wal => (&self.background.wal, "the WAL directory"),
                    Place::Data => (&self.background.data, "the data directory"),
                };
                let name = FileName(name.into());
                let directory = Directory::open(path).await.map_err(to_fault("open", &name))?;
                directory.sync().await.map_err(to_fault("sync", &name))?;
                directory.close().await.map_err(to_fault("close", &name))
            }
        }
    }

    async fn write(
        &mut self,
        file: &FileName,
        mut offset: u64,
        pieces: &[Bytes],
    ) -> Result<(), DiskFault> {
        let pace = self.background.pace.clone();
        let handle = self.existing(file).await?;
        let mut left: usize = pieces.iter().map(Bytes::len).sum();
        let mut pieces = pieces.iter();
        let mut piece: &[u8] = &[];
        while left > 0 {
            let size = left.min(WRITE_PIECE_SIZE);
            let mut buffer = handle.alloc_dma_buffer(size.next_multiple_of(BLOCK_SIZE));
            let mut rest = buffer.as_bytes_mut();
            let mut wanted = size;
            while wanted > 0 {
                if piece.is_empty() {
                    piece = pieces.next().expect("left counts them");
                    continue;
                }
                let count = wanted.min(piece.len());
                rest[..count].copy_from_slice(&piece[..count]);
                rest = &mut rest[count..];
                piece = &piece[count..];
                wanted -= count;
            }
            rest.fill(0);
            let written = buffer.len();
            write_whole(handle, file, buffer, offset).await?;
            offset += written as u64;
            left -= size;
            pace.wait_for(written).await;
        }
        Ok(())
    }

    async fn zero(&mut self, file: &FileName, offset: u64, size: u64) -> Result<(), DiskFault> {
        let handle = self.existing(file).await?;
        let mut left = size;
        let mut offset = offset;
        while left > 0 {
            let size = left.min(ZERO_PIECE_SIZE as u64) as usize;
            let mut buffer = handle.alloc_dma_buffer(size);
            buffer.as_bytes_mut().fill(0);
            write_whole(handle, file, buffer, offset).await?;
            // What the device has cached, the next commit's flush would have to wait for.
            handle.fdatasync().await.map_err(to_fault("sync", file))?;
            offset += size as u64;
            left -= size as u64;
        }
        Ok(())
    }

    async fn existing(&mut self, file: &FileName) -> Result<&DmaFile, DiskFault> {
        if !self.open.contains_key(file) {
            let mut options = OpenOptions::new();
            options.read(true).write(true);
            return self.open(file, &options, "open").await;
        }
        Ok(&self.open[file])
    }

    async fn open(
        &mut self,
        file: &FileName,
        options: &OpenOptions,
        operation: &'static str,
    ) -> Result<&DmaFile, DiskFault> {
        let path = self.background.path(file);
        let handle = options.dma_open(path).await.map_err(to_fault(operation, file))?;
        if let Some(replaced) = self.open.insert(file.clone(), handle) {
            replaced.close().await.map_err(to_fault("close", file))?;
        }
        Ok(&self.open[file])
    }
}

async fn write_whole(
    file: &DmaFile,
    name: &FileName,
    buffer: DmaBuffer,
    offset: u64,
) -> Result<(), DiskFault> {
    let size = buffer.len();
    let written = file.write_at(buffer, offset).await.map_err(to_fault("write", name))?;
    if written != size {
        let why = format!("{written} of {size} bytes were written at byte {offset}");
        let source = io::Error::new(io::ErrorKind::WriteZero, why);
        return Err(DiskFault::from_io("write", name, source));
    }
    Ok(())
}

fn to_fault(
    operation: &'static str,
    file: &FileName,
) -> impl FnOnce(glommio::GlommioError<()>) -> DiskFault {
    let file = file.clone();
    move |error| DiskFault::from_io(operation, &file, error.into())
}
