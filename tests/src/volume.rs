//! A disk of a test's own: ext4 in a file on a loop device, which can be full and slow.
//!
//! What this user or this kernel cannot do is an error that says so; the test decides what to skip.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Where the first version of control groups has its limits for block devices.
const BLKIO: &str = "/sys/fs/cgroup/blkio";

/// A file system in a file, mounted until this goes out of scope.
#[derive(Debug)]
pub struct Volume {
    at: PathBuf,
    _image: TempDir,
}

impl Volume {
    /// Mounts an empty file system over a directory; its image is made in another.
    pub fn mount(at: &Path, scratch: &Path, size: u64) -> Result<Volume, String> {
        let image = tempfile::Builder::new()
            .prefix("image-")
            .tempdir_in(scratch)
            .map_err(|error| format!("{}: {error}", scratch.display()))?;
        let file = image.path().join("image");
        File::create(&file)
            .and_then(|file| file.set_len(size))
            .map_err(|error| format!("{}: {error}", file.display()))?;
        // No blocks are set aside for root: full is full.
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&file))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(at))?;
        Ok(Volume { at: at.to_owned(), _image: image })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("--lazy").arg(&self.at).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.at.display());
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim_end()))
}

/// Gives the calling thread mounts of its own, which nobody else sees and which go with it.
pub fn own_mounts() -> Result<(), String> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    let none = std::ptr::null();
    // SAFETY: the first call copies the thread's mounts; the second has a constant path and takes
    // null for what it does not need.
    let results = unsafe {
        [
            libc::unshare(libc::CLONE_NEWNS),
            libc::mount(none, c"/".as_ptr(), none, flags, none.cast()),
        ]
    };
    if results == [0, 0] {
        return Ok(());
    }
    Err(format!("no mounts of one's own: {}", io::Error::last_os_error()))
}

/// Takes all the room that a file system has, without writing it.
pub fn fill(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let mut size: i64 = 1 << 30;
    while size >= 4096 {
        let end = i64::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open; there is no memory in it.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, end, size) } == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::StorageFull {
            return Err(error);
        }
        size /= 2;
    }
    file.sync_all()
}

/// Makes a volume slow for the processes that it is told of.
#[derive(Debug)]
pub struct Throttle {
    group: PathBuf,
    device: String,
}

impl Throttle {
    /// A limit that is off.
    pub fn new(volume: &Volume) -> Result<Throttle, String> {
        let device = fs::metadata(volume.path()).map_err(|error| error.to_string())?.dev();
        let device = format!("{}:{}", libc::major(device), libc::minor(device));
        let group = Path::new(BLKIO).join(format!("tidemill-{}", std::process::id()));
        fs::create_dir(&group).map_err(|error| format!("{}: {error}", group.display()))?;
        let throttle = Throttle { group, device };
        throttle.set(None).map_err(|error| format!("no limit can be set: {error}"))?;
        Ok(throttle)
    }

    /// The process is concerned from now on.
    pub fn take(&self, pid: u32) -> io::Result<()> {
        fs::write(self.group.join("cgroup.procs"), pid.to_string())
    }

    /// At most so many writes a second, or as many as there are.
    pub fn set(&self, writes_per_second: Option<u64>) -> io::Result<()> {
        // Zero is no limit.
        let line = format!("{} {}", self.device, writes_per_second.unwrap_or(0));
        fs::write(self.group.join("blkio.throttle.write_iops_device"), line)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // A process may still be in it, and then it stays, without a limit.
        let _ = self.set(None);
        let _ = fs::remove_dir(&self.group);
    }
}
