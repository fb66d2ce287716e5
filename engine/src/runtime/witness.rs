//! The file that a [`Witness`] lives in: one block for each shard, mapped and never synced.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::ptr;

use tidemill_wal::limits::BLOCK_SIZE;

use crate::topology::Witness;

/// Its name in the directory of a shard.
const FILE: &str = "witness";

/// Maps the file, which is made if it is not there. It stays mapped until the process ends.
pub fn open(directory: &Path) -> io::Result<&'static Witness> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o640);
    let file = options.open(directory.join(FILE))?;
    if file.metadata()?.len() != BLOCK_SIZE as u64 {
        // Written and not only long: a store into a hole could fail on a full disk.
        file.set_len(0)?;
        file.write_all_at(&[0; BLOCK_SIZE], 0)?;
        file.sync_all()?;
    }
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping of a block of an open file, at an address that the kernel chooses.
    let address =
        unsafe { libc::mmap(ptr::null_mut(), BLOCK_SIZE, access, kind, file.as_raw_fd(), 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping begins at a page, holds more than a witness, is never taken away, and any
    // bytes are a witness, for it is made of atomic numbers. Nobody shortens the file: the shard's
    // directory is locked by this process.
    Ok(unsafe { &*address.cast::<Witness>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Call, NameId};

    #[test]
    fn what_is_noted_is_in_the_file_and_found_at_the_next_start() {
        let directory = tempfile::tempdir().expect("a directory");
        let call = Call::record(NameId(1), NameId(2), 3, 4);
        for ends in 0..3 {
            let witness = open(directory.path()).expect("a file");
            assert_eq!(witness.start(), [], "after {ends} ends");
            witness.enter(call);
        }
        let witness = open(directory.path()).expect("a file");
        assert_eq!(witness.start(), [(call, 3)]);
        let bytes = std::fs::read(directory.path().join(FILE)).expect("a file");
        assert_eq!((bytes.len(), &bytes[..8]), (BLOCK_SIZE, &b"TMWITNES"[..]));
        witness.forget();
        assert_eq!(open(directory.path()).expect("a file").start(), []);
    }

    #[test]
    fn a_file_of_another_length_begins_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join(FILE), b"TMWITNES").expect("a file");
        assert_eq!(open(directory.path()).expect("a file").start(), []);
    }
}
