//! Serves one drive as the only file of a FUSE file system.
//!
//! Nothing is cached between the file's reader and the drive (`FOPEN_DIRECT_IO`, attributes that
//! expire at once), so the order of events is the order in which the kernel asked.
//!
//! When everything is recorded that is of no use any more, and the file may be opened with the
//! kernel's cache. What is read again then costs no request; writes still come at once and all.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, Session, TimeOrNow, WriteFlags,
};

use super::device::unmount;
use super::drive::SharedDrive;
use crate::volume::own_mounts;

/// The file's name.
const NAME: &str = "drive";
const FILE: INodeNo = INodeNo(2);
/// Nothing is believed for longer than a moment.
const EXPIRY: Duration = Duration::ZERO;

/// A mounted drive. Unmounted when it is dropped, and when the process ends, however it does.
#[derive(Debug)]
pub struct Server {
    place: PathBuf,
    is_cached: Arc<AtomicBool>,
}

impl Server {
    /// Serves the drive in this directory.
    pub fn start(drive: SharedDrive, place: &Path) -> io::Result<Server> {
        let (sender, mounted) = channel();
        let is_cached = Arc::new(AtomicBool::new(false));
        let files = DriveFile { drive, is_cached: is_cached.clone() };
        let at = place.to_path_buf();
        thread::Builder::new().name("drive".into()).spawn(move || {
            let mut config = Config::default();
            config.mount_options = vec![MountOption::FSName("recorded".into())];
            match own_descriptors().and_then(|()| Session::new(files, &at, &config)) {
                Ok(session) => {
                    let left = leave_mounts(&at);
                    let _ = sender.send(left);
                    if let Err(error) = session.run() {
                        eprintln!("the drive's file system ended: {error}");
                    }
                }
                Err(error) => {
                    let _ = sender.send(Err(error));
                }
            }
        })?;
        let server = Server { place: place.into(), is_cached };
        mounted.recv().map_err(io::Error::other)??;
        Ok(server)
    }

    /// Whoever opens the file from now on reads through the kernel's cache.
    pub fn cache(&self) {
        self.is_cached.store(true, Ordering::Release);
    }

    /// The file.
    pub fn file(&self) -> PathBuf {
        self.place.join(NAME)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Lazily, for the loop device may still be letting go of the file. The thread ends when
        // nobody uses the file any more.
        if let Err(error) = unmount(&self.place, libc::MNT_DETACH) {
            eprintln!("{} stays mounted until the process ends: {error}", self.place.display());
        }
    }
}

/// Gives the calling thread descriptors of its own. Only it has `/dev/fuse` open then, so when the
/// process is killed the kernel ends the file system, and with it all who wait for it; shared
/// descriptors would stay open as long as one of those waits, which is for ever.
fn own_descriptors() -> io::Result<()> {
    // SAFETY: it takes a copy of the table of descriptors and touches no memory of ours.
    match unsafe { libc::unshare(libc::CLONE_FILES) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the calling thread out of the mounts that it shares, and leaves no mount of the drive with
/// it. The last to leave a namespace takes its file systems down, and must not be the one who
/// serves what they stand on.
fn leave_mounts(place: &Path) -> io::Result<()> {
    own_mounts().map_err(io::Error::other)?;
    unmount(place, libc::MNT_DETACH)
}

/// The file system: a directory with one file.
struct DriveFile {
    drive: SharedDrive,
    is_cached: Arc<AtomicBool>,
}

impl DriveFile {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_file = inode == FILE;
        let size = if is_file { self.drive.lock().image().size() } else { 0 };
        FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for DriveFile {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The largest piece that the kernel takes; less is as good, only slower.
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&EXPIRY, &self.attributes(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&EXPIRY, &self.attributes(inode));
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.attr(&EXPIRY, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = match self.is_cached.load(Ordering::Acquire) {
            true => FopenFlags::FOPEN_KEEP_CACHE,
            false => FopenFlags::FOPEN_DIRECT_IO,
        };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.drive.lock().read(offset..offset + u64::from(size)) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.drive.lock().write(offset, bytes) {
            Ok(()) => reply.written(bytes.len() as u32),
            Err(error) => reply.error(error.into()),
        }
    }

    /// A descriptor is closed: nothing is promised by that.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    /// What the loop device makes of a block device's flush.
    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.drive.lock().flush() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }

    /// Discards and zeroing: the kernel writes zeroes instead.
    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }
}
