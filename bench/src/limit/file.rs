//! A file as the engine's log has it: written through before its first use, then written over with
//! direct writes, so that no write changes its size or finds a new block.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Unit of direct writes, as in the engine's log.
pub const BLOCK_SIZE: usize = 4096;

/// Bytes written at once when the file is made.
const PIECE_SIZE: usize = 1 << 20;

/// How a write becomes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SyncMethod {
    /// The file is open with `O_DSYNC`.
    Dsync,
    /// A write, then `fdatasync`.
    Fdatasync,
    /// Not at all: for the bandwidth, which is synced at its end.
    #[value(skip)]
    None,
}

impl SyncMethod {
    /// As the engine's configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dsync => "dsync",
            Self::Fdatasync => "fdatasync",
            Self::None => "none",
        }
    }
}

/// Memory for direct writes.
pub struct Aligned {
    memory: Vec<u8>,
    from: usize,
    size: usize,
}

impl Aligned {
    /// Some bytes, none of them zero.
    pub fn filled(size: usize) -> Self {
        let memory = vec![0x5a; size + BLOCK_SIZE];
        let from = memory.as_ptr().align_offset(BLOCK_SIZE);
        assert!(from <= BLOCK_SIZE, "bytes can be aligned");
        Self { memory, from, size }
    }

    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.from..self.from + self.size]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + self.size]
    }
}

/// A file for limits; it is removed in the end.
pub struct LimitFile {
    file: File,
    path: PathBuf,
    size: u64,
    next: u64,
    method: SyncMethod,
    buffer: Aligned,
}

impl LimitFile {
    /// Makes it in a directory, written through and synced.
    pub fn create(directory: &Path, size: u64, method: SyncMethod) -> Result<Self, String> {
        assert!(size.is_multiple_of(PIECE_SIZE as u64), "whole pieces");
        let name = format!("limit-{}-{:016x}", std::process::id(), crate::random());
        let path = directory.join(name);
        let says = |error: std::io::Error| format!("{}: {error}", path.display());
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
            .map_err(says)?;
        let flags = match method {
            SyncMethod::Dsync => libc::O_DSYNC,
            SyncMethod::Fdatasync | SyncMethod::None => 0,
        };
        let piece = Aligned::filled(PIECE_SIZE);
        for at in (0..size).step_by(PIECE_SIZE) {
            write_whole(&made, piece.bytes(), at).map_err(says)?;
        }
        made.sync_all().map_err(says)?;
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT | flags)
            .open(&path)
            .map_err(says)?;
        Ok(Self { file, path, size, next: 0, method, buffer: Aligned::filled(PIECE_SIZE) })
    }

    /// Writes bytes behind those before, in whole blocks, durably; begins anew at the end.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), String> {
        for piece in bytes.chunks(PIECE_SIZE) {
            let size = piece.len().next_multiple_of(BLOCK_SIZE);
            if self.next + size as u64 > self.size {
                self.next = 0;
            }
            self.buffer.bytes_mut()[..piece.len()].copy_from_slice(piece);
            self.buffer.bytes_mut()[piece.len()..size].fill(0);
            self.write_at(&self.buffer.bytes()[..size], self.next)?;
            self.next += size as u64;
        }
        self.make_durable()
    }

    /// Writes whole blocks at a place, durably.
    pub fn write_durably(&self, bytes: &[u8], at: u64) -> Result<(), String> {
        self.write_at(bytes, at)?;
        self.make_durable()
    }

    /// What was written.
    fn make_durable(&self) -> Result<(), String> {
        match self.method {
            SyncMethod::Fdatasync => self.sync(),
            SyncMethod::Dsync | SyncMethod::None => Ok(()),
        }
    }

    /// Writes whole blocks at a place.
    pub fn write_at(&self, bytes: &[u8], at: u64) -> Result<(), String> {
        write_whole(&self.file, bytes, at).map_err(|error| self.says(&error))
    }

    /// `fdatasync`.
    pub fn sync(&self) -> Result<(), String> {
        self.file.sync_data().map_err(|error| self.says(&error))
    }

    fn says(&self, error: &std::io::Error) -> String {
        format!("{}: {error}", self.path.display())
    }
}

impl Drop for LimitFile {
    fn drop(&mut self) {
        // What cannot be removed is left in a scratch directory; nothing depends on it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One write, or an error: a second one would not be one durable write.
fn write_whole(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    let written = file.write_at(bytes, at)?;
    if written != bytes.len() {
        return Err(std::io::ErrorKind::WriteZero.into());
    }
    Ok(())
}
