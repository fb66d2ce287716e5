//! A shard's directories, used by one process at a time, with operations that block.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::removal::{remove, remove_beside_commits};
use super::{DiskFault, DiskOp, Place, Storage};
use crate::format::FileName;
use crate::limits::{BLOCK_SIZE, ZERO_PIECE_SIZE};
use crate::plan::temporary;
use crate::segment::{self, NameKind};

/// Held for as long as a process may write to the directory. Not listed.
const LOCK_FILE: &str = "lock";

/// How often a held lock is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Files that are kept open between operations.
const OPEN_COUNT_MAX: usize = 64;

/// Largest buffer of a blocking write.
const WRITE_PIECE_SIZE: usize = 1 << 20;

/// Where a shard's files are.
#[derive(Debug, Clone)]
pub struct DirectoryOptions {
    /// The directory of the WAL.
    pub wal: PathBuf,
    /// The directory of everything else; may be the same.
    pub data: PathBuf,
    /// How long to wait for a process that is ending: its writes may still be under way.
    pub lock_wait: Duration,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process writes to it.
    #[error(
        "{path} is in use by another process (waited {} ms); stop it, or choose another directory",
        waited.as_millis()
    )]
    InUse {
        /// The file whose lock is held.
        path: PathBuf,
        /// For how long it was tried.
        waited: Duration,
    },
    /// Its file system cannot bypass the page cache, without which a failed sync loses data in
    /// silence.
    #[error("{path}: the file system does not support O_DIRECT; use one that does: ext4, xfs")]
    NoDirectIo {
        /// The file that was opened.
        path: PathBuf,
    },
    /// Anything else.
    #[error("{operation} of {path} failed: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Keeps a shard's directories for this process. Held for as long as anything may write to them.
#[derive(Debug)]
pub struct DirectoryLock {
    _files: Vec<File>,
}

/// How fast writes beside commits may be, in bytes a second; zero: as fast as they can. Shared by
/// the jobs of one shard and changed while they run.
#[derive(Debug, Clone, Default)]
pub struct Pace(Arc<AtomicU64>);

impl Pace {
    /// As fast as they can, and nothing is done for the sake of commits any more: those wait for the
    /// jobs.
    pub const HURRY: u64 = u64::MAX;

    /// From now on.
    pub fn set(&self, bytes_per_second: u64) {
        self.0.store(bytes_per_second, Ordering::Relaxed);
    }

    pub(super) fn is_hurry(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::HURRY
    }

    fn wait_for(&self, size: usize) {
        let rate = self.0.load(Ordering::Relaxed);
        if let Some(micros) = (size as u64 * 1_000_000).checked_div(rate) {
            pause(Duration::from_micros(micros));
        }
    }
}

/// What may be done with the files.
#[derive(Debug)]
enum Access {
    /// Nothing is written.
    ReadOnly,
    /// This process has them for itself, and nothing else goes on.
    Alone,
    /// Commits of the same process go on beside it: they are not held up.
    BesideCommits(Pace),
}

/// A shard's files, through blocking direct I/O. For start, tools, jobs and examples.
#[derive(Debug)]
pub struct Directory {
    wal: PathBuf,
    data: PathBuf,
    access: Access,
    /// Held until this is dropped.
    locks: Vec<File>,
    open: RefCell<HashMap<FileName, File>>,
    /// Files whose predecessor's writes are durable by now.
    synced: RefCell<HashSet<FileName>>,
    /// Where writes are put together. It stays for the next one: fresh memory costs more than the
    /// copy into it.
    staging: Option<AlignedBuffer>,
}

impl Directory {
    /// Opens the directories for this process alone; creates them if needed. Waits until no write
    /// of a killed predecessor to any segment is under way.
    pub fn open(options: &DirectoryOptions) -> Result<Self, DirectoryError> {
        let started = Instant::now();
        let mut directory = Self::new(options.wal.clone(), options.data.clone(), Access::Alone);
        for path in directory.paths() {
            create(&path)?;
            let path = path.join(LOCK_FILE);
            let file = open_direct(&path, true)?;
            lock(&file, &path, started, options.lock_wait)?;
            directory.locks.push(file);
        }
        // The kernel keeps a file open, and so its lock, until the last write to it has ended.
        let error =
            |source| DirectoryError::Io { operation: "listing", path: options.wal.clone(), source };
        for (name, _) in directory.list().map_err(error)? {
            if segment::parse_name(&name) != NameKind::Other {
                let path = directory.path(&name);
                let file = open_direct(&path, false)?;
                lock(&file, &path, started, options.lock_wait)?;
            }
        }
        for path in directory.paths() {
            sync_directory(&path).map_err(|source| DirectoryError::Io {
                operation: "sync",
                path,
                source,
            })?;
        }
        Ok(directory)
    }

    /// For tools: reads files beside a running daemon, writes nothing, creates nothing.
    pub fn open_read_only(wal: PathBuf, data: PathBuf) -> Self {
        Self::new(wal, data, Access::ReadOnly)
    }

    /// Beside commits of this process, which holds the directories' locks.
    pub(super) fn open_beside(wal: PathBuf, data: PathBuf, pace: Pace) -> Self {
        Self::new(wal, data, Access::BesideCommits(pace))
    }

    fn new(wal: PathBuf, data: PathBuf, access: Access) -> Self {
        Self {
            wal,
            data,
            access,
            locks: Vec::new(),
            open: RefCell::new(HashMap::new()),
            synced: RefCell::new(HashSet::new()),
            staging: None,
        }
    }

    /// Where a file is.
    pub fn path(&self, file: &FileName) -> PathBuf {
        let directory = if file.is_wal() { &self.wal } else { &self.data };
        directory.join(&*file.0)
    }

    /// Ends blocking I/O and keeps the directories for this process.
    pub fn into_lock(self) -> DirectoryLock {
        DirectoryLock { _files: self.locks }
    }

    fn paths(&self) -> Vec<PathBuf> {
        if self.wal == self.data {
            vec![self.wal.clone()]
        } else {
            vec![self.wal.clone(), self.data.clone()]
        }
    }

    fn is_writable(&self) -> bool {
        !matches!(self.access, Access::ReadOnly)
    }

    /// Gives back what was kept for the next operation: open files and memory.
    pub(super) fn rest(&mut self) {
        self.open.get_mut().clear();
        self.staging = None;
    }

    /// Does something with a file, which is opened if it is not.
    fn with<T>(&self, name: &FileName, act: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let mut open = self.open.borrow_mut();
        if !open.contains_key(name) {
            if open.len() >= OPEN_COUNT_MAX {
                open.clear();
            }
            let mut options = OpenOptions::new();
            options.read(true).write(self.is_writable()).custom_flags(libc::O_DIRECT);
            let file = match options.open(self.path(name)) {
                // A copy may be looked at on any file system.
                Err(error)
                    if error.kind() == io::ErrorKind::InvalidInput && !self.is_writable() =>
                {
                    File::open(self.path(name))?
                }
                opened => opened?,
            };
            open.insert(name.clone(), file);
        }
        act(&open[name])
    }

    fn create(&mut self, name: &FileName) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        options.custom_flags(libc::O_DIRECT).mode(0o640);
        let file = options.open(self.path(name))?;
        let open = self.open.get_mut();
        if open.len() >= OPEN_COUNT_MAX {
            open.clear();
        }
        open.insert(name.clone(), file);
        Ok(())
    }

    fn write(&mut self, name: &FileName, mut offset: u64, pieces: &[Bytes]) -> io::Result<()> {
        let mut left: usize = pieces.iter().map(Bytes::len).sum();
        let room = left.clamp(1, WRITE_PIECE_SIZE);
        let kept = self.staging.take().filter(|buffer| buffer.as_ref().len() >= room);
        let mut buffer = kept.unwrap_or_else(|| AlignedBuffer::zeroed(room));
        let mut pieces = pieces.iter();
        let mut piece: &[u8] = &[];
        while left > 0 {
            let size = left.min(WRITE_PIECE_SIZE);
            let target = buffer.as_mut();
            let mut filled = 0;
            while filled < size {
                if piece.is_empty() {
                    piece = pieces.next().expect("left counts them");
                    continue;
                }
                let count = piece.len().min(size - filled);
                target[filled..filled + count].copy_from_slice(&piece[..count]);
                piece = &piece[count..];
                filled += count;
            }
            let padded = size.next_multiple_of(BLOCK_SIZE);
            target[size..padded].fill(0);
            self.with(name, |file| write_whole(file, &buffer.as_ref()[..padded], offset))?;
            offset += padded as u64;
            left -= size;
            if let Access::BesideCommits(pace) = &self.access {
                pace.wait_for(padded);
            }
        }
        self.staging = Some(buffer);
        Ok(())
    }

    fn zero(&self, name: &FileName, mut offset: u64, size: u64) -> io::Result<()> {
        let zeros = AlignedBuffer::zeroed(ZERO_PIECE_SIZE);
        let end = offset + size;
        while offset < end {
            let size = (end - offset).min(ZERO_PIECE_SIZE as u64) as usize;
            self.with(name, |file| write_whole(file, &zeros.as_ref()[..size], offset))?;
            if let Access::BesideCommits(_) = &self.access {
                // What the device has cached, the next commit's flush would have to wait for.
                self.with(name, File::sync_data)?;
            }
            offset += size as u64;
        }
        Ok(())
    }

    /// Where commits wait for the jobs, or nobody commits, it would only cost time.
    fn drain(&self, name: &FileName) -> io::Result<()> {
        match &self.access {
            Access::BesideCommits(pace) if !pace.is_hurry() => self.with(name, File::sync_data),
            Access::BesideCommits(_) | Access::Alone | Access::ReadOnly => Ok(()),
        }
    }

    fn remove(&mut self, name: &FileName) -> io::Result<()> {
        self.open.get_mut().remove(name);
        let path = self.path(name);
        if let Access::BesideCommits(pace) = &self.access
            && !name.is_wal()
        {
            return remove_beside_commits(&path, &self.path(&temporary(name)), pace);
        }
        remove(&path)
    }

    fn rename(&mut self, from: &FileName, to: &FileName) -> io::Result<()> {
        assert_eq!(from.is_wal(), to.is_wal(), "renames stay within one directory");
        self.open.get_mut().remove(from);
        self.open.get_mut().remove(to);
        fs::rename(self.path(from), self.path(to))
    }
}

impl Storage for Directory {
    fn list(&self) -> io::Result<Vec<(FileName, u64)>> {
        let mut files = Vec::new();
        for path in self.paths() {
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                let name = FileName(name.into());
                // With two directories each has only its own kind.
                let is_own = self.path(&name).parent() == Some(path.as_path());
                if &*name.0 == LOCK_FILE || !is_own {
                    continue;
                }
                match entry.metadata() {
                    Ok(metadata) if metadata.is_file() => files.push((name, metadata.len())),
                    Ok(_) => {}
                    // Beside a running daemon files come and go.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(files)
    }

    fn read(&self, name: &FileName, offset: u64, size: usize) -> io::Result<Bytes> {
        if self.is_writable() && !self.synced.borrow().contains(name) {
            self.with(name, File::sync_data)?;
            self.synced.borrow_mut().insert(name.clone());
        }
        let block = BLOCK_SIZE as u64;
        let start = offset / block * block;
        let skip = (offset - start) as usize;
        let mut buffer = AlignedBuffer::zeroed((skip + size).max(1));
        let count = self.with(name, |file| read_whole(file, buffer.as_mut(), start))?;
        let end = count.min(skip + size);
        Ok(Bytes::from_owner(buffer).slice(skip.min(end)..end))
    }

    fn perform(&mut self, op: &DiskOp) -> Result<(), DiskFault> {
        assert!(self.is_writable(), "opened to read only");
        let (operation, file, result) = match op {
            DiskOp::Create { file } => ("create", file, self.create(file)),
            DiskOp::Write { file, offset, pieces } => {
                ("write", file, self.write(file, *offset, pieces))
            }
            DiskOp::Zero { file, offset, size } => ("write", file, self.zero(file, *offset, *size)),
            DiskOp::Sync { file } => ("sync", file, self.with(file, File::sync_data)),
            DiskOp::Drain { file } => ("sync", file, self.drain(file)),
            DiskOp::Rename { from, to } => ("rename", from, self.rename(from, to)),
            DiskOp::Remove { file } => ("remove", file, self.remove(file)),
            DiskOp::SyncDirectory { place } => {
                let (path, name) = match place {
                    Place::Wal => (&self.wal, "the WAL directory"),
                    Place::Data => (&self.data, "the data directory"),
                };
                return sync_directory(path)
                    .map_err(|source| DiskFault::from_io("sync", &FileName(name.into()), source));
            }
        };
        result.map_err(|source| DiskFault::from_io(operation, file, source))
    }
}

/// Takes the file's lock unless another open file holds it.
pub(super) fn try_lock(fd: RawFd) -> io::Result<bool> {
    // SAFETY: flock takes no pointers; a wrong descriptor is an error that is returned.
    let result = unsafe { libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock { Ok(false) } else { Err(error) }
}

/// Writes all of it or fails.
pub(super) fn write_whole(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let written = file.write_at(bytes, offset)?;
    if written == bytes.len() {
        return Ok(());
    }
    let why = format!("{written} of {} bytes were written at byte {offset}", bytes.len());
    Err(io::Error::new(io::ErrorKind::WriteZero, why))
}

/// Opens a file for direct reads and writes; creates it if asked.
pub(super) fn open_direct(path: &Path, is_new: bool) -> Result<File, DirectoryError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(is_new).mode(0o640).custom_flags(libc::O_DIRECT);
    options.open(path).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            // What `open` says about a flag that the file system does not know.
            io::ErrorKind::InvalidInput => DirectoryError::NoDirectIo { path },
            _ => DirectoryError::Io { operation: "open", path, source },
        }
    })
}

fn lock(file: &File, path: &Path, started: Instant, wait: Duration) -> Result<(), DirectoryError> {
    let error = |source| DirectoryError::Io { operation: "lock", path: path.to_owned(), source };
    while !try_lock(file.as_raw_fd()).map_err(error)? {
        let waited = started.elapsed();
        if waited >= wait {
            return Err(DirectoryError::InUse { path: path.to_owned(), waited });
        }
        pause(LOCK_RETRY);
    }
    Ok(())
}

/// A lock is polled, for waiting in the kernel has no limit in time; a pace is kept by waiting.
#[expect(clippy::disallowed_methods, reason = "neither has an event to wait for")]
pub(super) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

fn create(path: &Path) -> Result<(), DirectoryError> {
    let error = |source| DirectoryError::Io { operation: "creation", path: path.into(), source };
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        if ancestor.as_os_str().is_empty() || ancestor.try_exists().map_err(error)? {
            break;
        }
        missing.push(ancestor);
    }
    fs::DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(error)?;
    // A new name is durable once the directory that holds it is synced.
    for ancestor in missing {
        let parent = match ancestor.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        sync_directory(parent).map_err(error)?;
    }
    Ok(())
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Reads until the buffer is full or the file ends.
fn read_whole(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match file.read_at(&mut buffer[count..], offset + count as u64) {
            Ok(0) => break,
            Ok(read) => {
                count += read;
                if !read.is_multiple_of(BLOCK_SIZE) {
                    // The end of a file of another length; a further direct read is not aligned.
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// Memory that direct I/O accepts: whole blocks, starting on one.
#[derive(Debug)]
pub(super) struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

impl AlignedBuffer {
    /// At least `size` bytes, which is not 0, rounded up to blocks.
    pub(super) fn zeroed(size: usize) -> Self {
        assert!(size > 0);
        let size = size.next_multiple_of(BLOCK_SIZE);
        let layout = Layout::from_size_align(size, BLOCK_SIZE).expect("a size below isize::MAX");
        // SAFETY: the layout's size is not 0.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `start` points to that many initialised bytes, owned by `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl AsMut<[u8]> for AlignedBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: `start` points to that many initialised bytes, owned by `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

// SAFETY: the buffer owns its memory, as a `Vec<u8>` does; only `&mut` writes to it.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above.
unsafe impl Sync for AlignedBuffer {}
