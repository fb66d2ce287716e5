//! What the machine offers, asked before anything depends on it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use std::os::unix::fs::OpenOptionsExt;

use super::background::SyncMethod;
use super::directory::{AlignedBuffer, DirectoryError, write_whole};
use crate::limits::BLOCK_SIZE;

/// How many writes are measured.
const WRITE_COUNT: usize = 100;

/// A temporary name of the WAL, so that a start removes it if this process dies.
const PROBE_FILE: &str = "wal-tmp-probe";

/// Where `io_uring_params` has its features, in words.
const FEATURES_INDEX: usize = 5;

/// `IORING_FEAT_EXT_ARG`, since Linux 5.11: waiting with a timeout.
const FEATURE_EXT_ARG: u32 = 1 << 8;

/// Why this machine cannot run the log.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel has no io_uring, or one that is too old.
    #[error(
        "this kernel has no io_uring that does: Linux 5.11 or newer is needed, with CONFIG_IO_URING"
    )]
    NoIoUring,
    /// The kernel has it and does not let this process use it.
    #[error(
        "io_uring is forbidden here: in a container allow io_uring_setup, io_uring_enter and \
         io_uring_register in the seccomp profile (Docker: --security-opt seccomp=…); otherwise \
         set the sysctl kernel.io_uring_disabled to 0"
    )]
    IoUringForbidden,
    /// The directory's file system does not do.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Anything else.
    #[error("setting up io_uring failed: {0}")]
    Io(#[source] io::Error),
}

/// Whether io_uring may be used.
pub fn probe_io_uring() -> Result<(), ProbeError> {
    // struct io_uring_params has 120 bytes; all zero asks for the defaults.
    let mut params = [0_u32; 30];
    // SAFETY: the kernel reads and writes the parameters, which live and have the size of its
    // struct, and returns a descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    if fd >= 0 {
        // SAFETY: the descriptor is ours and is closed only here.
        unsafe { libc::close(fd as libc::c_int) };
        let has_timeouts = params[FEATURES_INDEX] & FEATURE_EXT_ARG != 0;
        return if has_timeouts { Ok(()) } else { Err(ProbeError::NoIoUring) };
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::ENOSYS) => ProbeError::NoIoUring,
        Some(libc::EPERM | libc::EACCES) => ProbeError::IoUringForbidden,
        Some(_) | None => ProbeError::Io(error),
    })
}

/// Writes blocks durably to a file in `directory` as a commit does; returns the median time.
pub fn probe_disk(directory: &Path, method: SyncMethod) -> Result<Duration, ProbeError> {
    let path = directory.join(PROBE_FILE);
    let result = measure(&path, method);
    let removed = match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(io_error("removal", &path, source))
        }
        Ok(()) | Err(_) => Ok(()),
    };
    let median = result?;
    removed?;
    Ok(median)
}

fn measure(path: &Path, method: SyncMethod) -> Result<Duration, ProbeError> {
    let flags = match method {
        SyncMethod::Dsync => libc::O_DSYNC,
        SyncMethod::Fdatasync => 0,
    };
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o640);
    options.custom_flags(libc::O_DIRECT | flags);
    let file = options.open(path).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidInput => DirectoryError::NoDirectIo { path: path.to_owned() }.into(),
        _ => io_error("open", path, source),
    })?;
    let to_error = |source: io::Error| match source.kind() {
        io::ErrorKind::InvalidInput => DirectoryError::NoDirectIo { path: path.to_owned() }.into(),
        _ => io_error("write", path, source),
    };
    // Written through first, as a segment is: what is measured changes no metadata.
    let zeros = AlignedBuffer::zeroed(WRITE_COUNT * BLOCK_SIZE);
    write_whole(&file, zeros.as_ref(), 0).map_err(to_error)?;
    file.sync_all().map_err(to_error)?;
    let mut times = Vec::with_capacity(WRITE_COUNT);
    for index in 0..WRITE_COUNT {
        let started = Instant::now();
        let offset = (index * BLOCK_SIZE) as u64;
        write_whole(&file, &zeros.as_ref()[..BLOCK_SIZE], offset).map_err(to_error)?;
        match method {
            SyncMethod::Dsync => {}
            SyncMethod::Fdatasync => file.sync_data().map_err(to_error)?,
        }
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times[WRITE_COUNT / 2])
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> ProbeError {
    DirectoryError::Io { operation, path: PathBuf::from(path), source }.into()
}
