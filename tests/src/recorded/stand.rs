//! A test stand: a drive of ours below a real file system of the kernel.
//!
//! The calling thread, and whatever it starts, gets a mount namespace of its own; the drive's file
//! is served there, and ext4 is mounted from a loop device on it. Dropping the stand takes all of
//! that down; so does the end of the process, for then the namespace goes, and the loop device with
//! its last mount.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::device::{self, Device};
use super::drive::{Image, SharedDrive};
use super::server::Server;
use crate::volume::own_mounts;

/// How often the kernel is asked again whether it has.
const TICK: Duration = Duration::from_millis(1);
/// Longest wait for the kernel to let go of files of a process that was killed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A drive with ext4 on it.
#[derive(Debug)]
pub struct Stand {
    /// The drive below.
    pub drive: SharedDrive,
    is_mounted: bool,
    // These end in this order.
    contents: Option<File>,
    device: Device,
    server: Server,
    place: PathBuf,
    _directory: TempDir,
}

impl Stand {
    /// Why there can be no stand on this machine.
    pub fn missing() -> Option<String> {
        for device in ["/dev/fuse", "/dev/loop-control"] {
            if let Err(error) = File::options().read(true).write(true).open(device) {
                return Some(format!("{device}: {error}"));
            }
        }
        if run_command("mkfs.ext4", &["-V".as_ref()]).is_err() {
            return Some("mkfs.ext4 is not installed".into());
        }
        own_mounts().err()
    }

    /// A freshly made ext4 on a drive of this size. It is not mounted yet.
    pub fn new(size: u64) -> Stand {
        own_mounts().expect("the stand's needs were looked at before");
        let directory = tempfile::tempdir().expect("a directory for the mounts");
        let (below, place) = (directory.path().join("below"), directory.path().join("disk"));
        for path in [&below, &place] {
            fs::create_dir(path).expect("a new directory");
        }
        let drive = SharedDrive::new(size);
        let server = Server::start(drive.clone(), &below).expect("FUSE works here");
        // All at once, so that nothing is initialised lazily in the middle of a recording.
        let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        let arguments = ["-q", "-F", "-J", "size=4", "-m", "0", "-E", options].map(OsStr::new);
        run_command("mkfs.ext4", &[&arguments[..], &[server.file().as_os_str()]].concat())
            .expect("ext4 can be made");
        let device = Device::on(&server.file()).expect("loop devices work here");
        let (is_mounted, contents) = (false, None);
        Stand { drive, is_mounted, contents, device, server, place, _directory: directory }
    }

    /// Where the file system is, when it is mounted.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Mounts the file system; ext4 replays its journal.
    pub fn mount(&mut self) -> Result<(), String> {
        assert!(!self.is_mounted);
        let mounted = self.device.forget().and_then(|()| self.device.mount(&self.place));
        mounted.map_err(|error| format!("mount: {error}"))?;
        self.is_mounted = true;
        Ok(())
    }

    /// Takes the file system down. Its last writes go to the drive.
    pub fn unmount(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // Files of a process that was killed are closed when the last of its I/O has ended.
        while let Err(error) = device::unmount(&self.place, 0) {
            let is_busy = error.raw_os_error() == Some(libc::EBUSY);
            assert!(is_busy && Instant::now() < deadline, "umount: {error}");
            thread::park_timeout(TICK);
        }
        self.is_mounted = false;
    }

    /// From now on many images are inserted, and the order of writes is of no interest: then an
    /// image costs what differs from the one before.
    pub fn cache(&mut self) -> io::Result<()> {
        assert!(!self.is_mounted);
        self.server.cache();
        self.device = Device::on(&self.server.file())?;
        self.contents = Some(File::options().write(true).open(self.server.file())?);
        Ok(())
    }

    /// Exchanges what is on the drive, below a file system that is not mounted.
    pub fn insert(&mut self, image: Image) {
        assert!(!self.is_mounted);
        if let Some(file) = &self.contents {
            let before = self.drive.lock().image().clone();
            for (offset, bytes) in image.differences(&before) {
                file.write_all_at(bytes, offset).expect("a drive without trouble");
            }
        }
        *self.drive.lock() = super::drive::Drive::new(image);
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.drive.lock().set_trouble(super::drive::Trouble::default());
        if self.is_mounted {
            // Lazily, for a test that failed may still have files open.
            if let Err(error) = device::unmount(&self.place, libc::MNT_DETACH) {
                eprintln!("{} stays mounted until the process ends: {error}", self.place.display());
            }
        }
    }
}

/// Runs a command of the system; its complaint is the error.
fn run_command(name: &str, arguments: &[&OsStr]) -> Result<(), String> {
    let output = Command::new(name)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
