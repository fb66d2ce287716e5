//! Files that no longer change, mapped to be read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::{Advice, Mmap};

/// A read-only map of an immutable file. For a helper thread: every touch may wait for the disk.
#[derive(Debug)]
pub struct ExtentMap {
    map: Mmap,
}

impl ExtentMap {
    /// Maps a whole file, which nobody writes to or cuts from now on.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: extents, snapshots and delta files get their name once they are complete, are
        // never written to or truncated after that, and removal leaves a mapped file in place.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { map })
    }

    /// Reads a range of the file into memory, so that touching it does not wait. A disk that
    /// cannot read it is an error here, where it would be a deadly signal at the touch.
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        if range.start > range.end || range.end > self.map.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if range.is_empty() {
            return Ok(());
        }
        self.map.advise_range(Advice::PopulateRead, range.start, range.len())
    }

    /// The file's bytes. Populate what is to be touched first.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
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
        let error = map.populate(0..100_001).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let error = map.populate(usize::MAX - 1..usize::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
