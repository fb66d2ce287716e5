//! Files that go while commits go on.
//!
//! A file system that is mounted with `discard` tells the drive of the room that it gets back, and the
//! drive may write nothing else meanwhile: for a file of 400 MB commits waited for 40 to 70 ms. So a
//! large file goes in pieces.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::directory::{Pace, pause};

/// Most room that is given back at once, in bytes.
const PIECE_SIZE: u64 = 8 << 20;

/// Between two pieces others have their turn.
const PAUSE: Duration = Duration::from_millis(5);

/// `F_SETSIG` of fcntl(2), which `libc` does not have for every architecture.
const F_SETSIG: libc::c_int = 10;

/// Removes a file, if it is there. A large one gets another name of the same directory first: a crash
/// on the way leaves nothing with the old one that is not whole.
///
/// Pieces are an attempt. If a file cannot be renamed or cut it goes whole.
pub(super) fn remove_beside_commits(path: &Path, other: &Path, pace: &Pace) -> io::Result<()> {
    let Ok(Some((file, size))) = set_aside(path, other) else { return remove(path) };
    // An opening that found the old name may be counted a little later.
    if !is_open_elsewhere(&file) {
        pause(PAUSE);
        if !is_open_elsewhere(&file) {
            cut(&file, size, pace);
        }
    }
    remove(other)
}

/// Renames a file that can go in pieces, and gives its size: a large one that has no other name.
fn set_aside(path: &Path, other: &Path) -> io::Result<Option<(File, u64)>> {
    let file = OpenOptions::new().write(true).open(path)?;
    let metadata = file.metadata()?;
    if metadata.len() <= PIECE_SIZE || metadata.nlink() > 1 {
        return Ok(None);
    }
    fs::rename(path, other)?;
    Ok(Some((file, metadata.len())))
}

/// Cuts pieces off, as far as that goes.
fn cut(file: &File, mut size: u64, pace: &Pace) {
    while size > PIECE_SIZE {
        size -= PIECE_SIZE;
        if file.set_len(size).is_err() {
            return;
        }
        if !pace.is_hurry() {
            pause(PAUSE);
        }
    }
}

/// Removes a file at once, if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether somebody else has the file open: a lease to write is given to nobody else then (fcntl(2),
/// `F_SETLEASE`). Also true if that cannot be told.
fn is_open_elsewhere(file: &File) -> bool {
    let descriptor = file.as_raw_fd();
    // SAFETY: these calls take numbers only; a wrong one is an error that is returned.
    unsafe {
        // Who opens the file while the lease is there makes the kernel send a signal: one that does
        // nothing instead of SIGIO, which ends the process.
        if libc::fcntl(descriptor, F_SETSIG, libc::SIGURG) != 0
            || libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_WRLCK) != 0
        {
            return true;
        }
        libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_UNLCK) != 0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// A directory with a file of a size, whose last byte is 7.
    fn directory(size: u64) -> (tempfile::TempDir, File) {
        let directory = tempfile::tempdir().expect("made");
        let file = File::create_new(directory.path().join("file")).expect("created");
        file.write_all_at(&[7], size - 1).expect("written");
        (directory, file)
    }

    fn remove_in(directory: &Path) {
        let (file, other) = (directory.join("file"), directory.join("other"));
        remove_beside_commits(&file, &other, &Pace::default()).expect("removed");
        assert!(!file.exists() && !other.exists());
    }

    fn last_byte(file: &File, size: u64) -> io::Result<u8> {
        let mut byte = [0];
        file.read_exact_at(&mut byte, size - 1).map(|()| byte[0])
    }

    #[test]
    fn a_file_of_any_size_goes() {
        for size in [1, PIECE_SIZE, PIECE_SIZE + 1, 3 * PIECE_SIZE] {
            let (directory, file) = directory(size);
            drop(file);
            remove_in(directory.path());
            // It is not there any more, which is what was asked for.
            remove_in(directory.path());
        }
    }

    #[test]
    fn who_still_reads_a_file_that_goes_reads_all_of_it() {
        let size = 2 * PIECE_SIZE + 1;
        let (directory, written) = directory(size);
        let open = File::open(directory.path().join("file")).expect("there");
        drop(written);
        remove_in(directory.path());
        assert_eq!(last_byte(&open, size).expect("still there"), 7);
    }

    #[test]
    fn a_file_that_has_another_name_too_stays_whole_there() {
        let size = 2 * PIECE_SIZE + 1;
        let (directory, written) = directory(size);
        drop(written);
        let kept = directory.path().join("kept");
        fs::hard_link(directory.path().join("file"), &kept).expect("linked");
        remove_in(directory.path());
        assert_eq!(last_byte(&File::open(kept).expect("there"), size).expect("whole"), 7);
    }

    #[test]
    fn a_file_that_cannot_be_set_aside_goes_all_the_same() {
        let (directory, written) = directory(2 * PIECE_SIZE);
        drop(written);
        let (file, nowhere) = (directory.path().join("file"), directory.path().join("no/where"));
        remove_beside_commits(&file, &nowhere, &Pace::default()).expect("removed");
        assert!(!file.exists());
    }

    #[test]
    fn a_file_that_nobody_else_has_open_gives_its_room_back_before_it_goes() {
        let (directory, file) = directory(2 * PIECE_SIZE);
        assert!(!is_open_elsewhere(&file));
        let again = File::open(directory.path().join("file")).expect("there");
        assert!(is_open_elsewhere(&file));
        drop(again);
        assert!(!is_open_elsewhere(&file));
    }
}
