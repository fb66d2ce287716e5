//! Files that no longer change, to be read: mapped, or past the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use memmap2::{Advice, Mmap};

use crate::limits::BLOCK_SIZE;
use crate::pool::Pool;

/// A read-only map of an immutable file. For a helper thread: every touch may wait for the disk.
#[derive(Debug)]
pub struct ExtentMap {
    file: File,
    map: Mmap,
}

impl ExtentMap {
    /// Maps a whole file, which nobody writes to from now on, and nobody cuts who does not
    /// have it open alone.
    pub fn open(path: &Path) -> io::Result<Self> {
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
        let file = match direct {
            // A copy may be looked at on any file system.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => File::open(path)?,
            opened => opened?,
        };
        // SAFETY: extents, snapshots and delta files get their name once they are complete, are
        // never written to after that, and a file that goes is cut only where nobody else has it
        // open or mapped.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { file, map })
    }

    /// Reads a range of the file with direct I/O, where the file system has that, into memory of
    /// the pool, whole blocks with it.
    pub fn read(&self, range: Range<usize>, pool: &mut Pool) -> io::Result<Bytes> {
        self.check(&range)?;
        let start = range.start / BLOCK_SIZE * BLOCK_SIZE;
        let end = range.end.next_multiple_of(BLOCK_SIZE);
        let mut memory = pool.take(end - start);
        while memory.len() < range.end - start {
            let position = start + memory.len();
            match read_at(&self.file, position as u64, &mut memory, end - position) {
                // What follows the end of an unaligned file is not asked for.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(memory.freeze().slice(range.start - start..range.end - start))
    }

    /// Reads a range of the file into memory, so that touching it does not wait. A disk that
    /// cannot read it is an error here, where it would be a deadly signal at the touch.
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        self.check(&range)?;
        if range.is_empty() {
            return Ok(());
        }
        self.map.advise_range(Advice::PopulateRead, range.start, range.len())
    }

    fn check(&self, range: &Range<usize>) -> io::Result<()> {
        if range.start > range.end || range.end > self.map.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// The file's bytes. Populate what is to be touched first.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// Reads at most `size` bytes of a file behind what a buffer holds, which has room for them.
fn read_at(file: &File, position: u64, memory: &mut BytesMut, size: usize) -> io::Result<usize> {
    let room = &mut memory.spare_capacity_mut()[..size];
    // SAFETY: the kernel writes at most `size` bytes, into room that the buffer owns.
    let count = unsafe {
        libc::pread(file.as_raw_fd(), room.as_mut_ptr().cast(), size, position as libc::off_t)
    };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: that many bytes behind the old length are written now.
    unsafe { memory.set_len(memory.len() + count) };
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_populated_range_reads_as_written_and_a_range_beyond_the_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let bytes: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = ExtentMap::open(&path).unwrap();
        map.populate(5_000..70_000).unwrap();
        map.populate(0..100_000).unwrap();
        map.populate(7..7).unwrap();
        assert_eq!(map.bytes()[5_000..70_000], bytes[5_000..70_000]);
        let mut pool = Pool::new(64 << 10);
        for range in [0..1, 0..4096, 4095..4097, 5_000..70_000, 99_999..100_000, 0..100_000, 7..7] {
            assert_eq!(map.read(range.clone(), &mut pool).unwrap(), bytes[range]);
        }
        let error = map.read(0..100_001, &mut pool).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let error = map.populate(0..100_001).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let error = map.populate(usize::MAX - 1..usize::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
