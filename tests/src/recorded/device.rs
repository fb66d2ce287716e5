//! A loop device on a file, by the kernel's own calls: commands would cost more than what they do.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
/// The device lets go of its file when nobody has it open any more.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Writes what is dirty and forgets what is cached.
const BLKFLSBUF: libc::Ioctl = 0x1261;
/// Others may take the device that was free a moment ago.
const TRIES: u32 = 100;

/// The kernel's `loop_config` with its `loop_info64`.
#[repr(C)]
struct LoopConfig {
    file: u32,
    block_size: u32,
    unused_numbers: [u64; 5],
    number: u32,
    encryption: [u32; 2],
    flags: u32,
    unused_names: [u8; 160],
    unused: [u64; 10],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

/// A loop device, which goes when this and its last mount do.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    file: File,
}

impl Device {
    /// A device on this file.
    pub fn on(backing: &Path) -> io::Result<Device> {
        let backing = OpenOptions::new().read(true).write(true).open(backing)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        for _ in 0..TRIES {
            let number = control_call(&control, LOOP_CTL_GET_FREE, 0)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            match configure(&file, backing.as_raw_fd()) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(Device { path, file }),
            }
        }
        Err(io::Error::other("others take every free loop device"))
    }

    /// Forgets what the kernel remembers of the device: the contents were exchanged below it.
    pub fn forget(&self) -> io::Result<()> {
        control_call(&self.file, BLKFLSBUF, 0).map(|_| ())
    }

    /// Mounts its ext4.
    pub fn mount(&self, place: &Path) -> io::Result<()> {
        let [device, place] = [&self.path, place].map(text);
        let options = c"errors=remount-ro";
        // SAFETY: the texts live as long as the call.
        let result = unsafe {
            let (from, to) = (device.as_ptr(), place.as_ptr());
            libc::mount(from, to, c"ext4".as_ptr(), 0, options.as_ptr().cast())
        };
        outcome(result)
    }
}

/// Takes a file system down; its last writes go to the device.
pub fn unmount(place: &Path, flags: i32) -> io::Result<()> {
    let place = text(place);
    // SAFETY: the text lives as long as the call.
    outcome(unsafe { libc::umount2(place.as_ptr(), flags) })
}

fn configure(device: &File, backing: RawFd) -> io::Result<()> {
    let config = LoopConfig {
        file: u32::try_from(backing).expect("an open file"),
        block_size: 512,
        unused_numbers: [0; 5],
        number: 0,
        encryption: [0; 2],
        flags: LO_FLAGS_AUTOCLEAR,
        unused_names: [0; 160],
        unused: [0; 10],
    };
    // SAFETY: the structure is the kernel's, by its size and fields, and lives during the call.
    outcome(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })
}

/// A call that takes a number, and gives one.
fn control_call(file: &File, request: libc::Ioctl, argument: u64) -> io::Result<i32> {
    // SAFETY: neither of these requests touches memory of ours.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    outcome(result.min(0)).map(|()| result)
}

fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path of ours")
}

fn outcome(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
