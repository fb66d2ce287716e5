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
/// Where the second version has all of its groups.
const UNIFIED: &str = "/sys/fs/cgroup";

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

/// The two versions of control groups that kernels have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    /// The file of a group that limits writes.
    fn file(self) -> &'static str {
        match self {
            Version::One => "blkio.throttle.write_iops_device",
            Version::Two => "io.max",
        }
    }

    /// What is written to it.
    fn line(self, device: &str, writes_per_second: Option<u64>) -> String {
        match (self, writes_per_second) {
            (Version::One, limit) => format!("{device} {}", limit.unwrap_or(0)),
            (Version::Two, Some(limit)) => format!("{device} wiops={limit}"),
            (Version::Two, None) => format!("{device} wiops=max"),
        }
    }
}

/// Where groups with limits for block devices can be made.
fn limits_of(blkio: &Path, unified: &Path) -> Result<(PathBuf, Version), String> {
    if blkio.join("cgroup.procs").exists() {
        return Ok((blkio.to_owned(), Version::One));
    }
    let controllers = fs::read_to_string(unified.join("cgroup.controllers")).unwrap_or_default();
    if !controllers.split_whitespace().any(|name| name == "io") {
        return Err("no control groups with limits for block devices".into());
    }
    let control = unified.join("cgroup.subtree_control");
    fs::write(&control, "+io").map_err(|error| format!("{}: {error}", control.display()))?;
    Ok((unified.to_owned(), Version::Two))
}

/// Makes a volume slow for the processes that it is told of.
#[derive(Debug)]
pub struct Throttle {
    version: Version,
    group: PathBuf,
    device: String,
}

impl Throttle {
    /// A limit that is off.
    pub fn new(volume: &Volume) -> Result<Throttle, String> {
        let device = fs::metadata(volume.path()).map_err(|error| error.to_string())?.dev();
        let device = format!("{}:{}", libc::major(device), libc::minor(device));
        let (parent, version) = limits_of(Path::new(BLKIO), Path::new(UNIFIED))?;
        let group = parent.join(format!("tidemill-{}", std::process::id()));
        fs::create_dir(&group).map_err(|error| format!("{}: {error}", group.display()))?;
        let throttle = Throttle { version, group, device };
        throttle.set(None).map_err(|error| format!("no limit can be set: {error}"))?;
        Ok(throttle)
    }

    /// The process is concerned from now on.
    pub fn take(&self, pid: u32) -> io::Result<()> {
        fs::write(self.group.join("cgroup.procs"), pid.to_string())
    }

    /// At most so many writes a second, or as many as there are.
    pub fn set(&self, writes_per_second: Option<u64>) -> io::Result<()> {
        let line = self.version.line(&self.device, writes_per_second);
        fs::write(self.group.join(self.version.file()), line)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // A process may still be in it, and then it stays, without a limit.
        let _ = self.set(None);
        let _ = fs::remove_dir(&self.group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_written_as_each_version_wants_it() {
        for (version, limit, line) in [
            (Version::One, Some(20), "7:0 20"),
            (Version::One, None, "7:0 0"),
            (Version::Two, Some(20), "7:0 wiops=20"),
            (Version::Two, None, "7:0 wiops=max"),
        ] {
            assert_eq!(version.line("7:0", limit), line);
        }
    }

    #[test]
    fn the_version_that_has_the_limits_is_found() {
        let directory = tempfile::tempdir().expect("a directory");
        let [blkio, unified] = ["blkio", "unified"].map(|name| directory.path().join(name));
        fs::create_dir(&unified).expect("a new directory");
        let controllers = unified.join("cgroup.controllers");
        assert!(limits_of(&blkio, &unified).is_err(), "there is none");
        fs::write(&controllers, "cpuset hugetlb\n").expect("a file");
        assert!(limits_of(&blkio, &unified).is_err(), "it has no limits for block devices");
        fs::write(&controllers, "cpuset io memory\n").expect("a file");
        assert_eq!(limits_of(&blkio, &unified), Ok((unified.clone(), Version::Two)));
        let control = fs::read_to_string(unified.join("cgroup.subtree_control"));
        assert_eq!(control.expect("it was written"), "+io");
        fs::create_dir(&blkio).expect("a new directory");
        fs::write(blkio.join("cgroup.procs"), "").expect("a file");
        assert_eq!(limits_of(&blkio, &unified), Ok((blkio, Version::One)));
    }
}
