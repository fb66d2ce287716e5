//! A drive in memory that remembers every write and every flush, and that can be made to fail.
//!
//! Pages are shared between images until one of them changes, so a copy of a drive costs a table
//! and not its contents: that is what makes thousands of power cuts affordable.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};

/// What a drive writes whole or not at all.
pub const SECTOR_SIZE: usize = 512;
/// What images share.
const PAGE_SIZE: usize = 16 << 10;

/// What is on a drive; zeroes where nothing was written.
#[derive(Debug, Clone)]
pub struct Image {
    pages: Vec<Option<Arc<[u8; PAGE_SIZE]>>>,
}

impl Image {
    /// An empty drive.
    pub fn new(size: u64) -> Image {
        assert!(size.is_multiple_of(PAGE_SIZE as u64), "whole pages");
        Image { pages: vec![None; size as usize / PAGE_SIZE] }
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        (self.pages.len() * PAGE_SIZE) as u64
    }

    /// Copies what is at a place, as far as the drive goes.
    pub fn read(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        for (page, inside) in pieces(range.start..range.end.min(self.size())) {
            match &self.pages[page] {
                Some(contents) => bytes.extend_from_slice(&contents[inside]),
                None => bytes.resize(bytes.len() + inside.len(), 0),
            }
        }
        bytes
    }

    /// Puts bytes at a place, which must be inside the drive.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (page, inside) in pieces(offset..offset + bytes.len() as u64) {
            let (piece, after) = rest.split_at(inside.len());
            let page = self.pages[page].get_or_insert_with(|| Arc::new([0; PAGE_SIZE]));
            Arc::make_mut(page)[inside].copy_from_slice(piece);
            rest = after;
        }
    }

    /// Places whose contents differ from another image's of the same size, with what this one
    /// has there.
    pub fn differences<'a>(
        &'a self,
        other: &'a Image,
    ) -> impl Iterator<Item = (u64, &'a [u8; PAGE_SIZE])> {
        let pages = self.pages.iter().zip(&other.pages).enumerate();
        pages.filter_map(|(number, (here, there))| {
            let contents = match (here, there) {
                (Some(here), Some(there)) if Arc::ptr_eq(here, there) || here == there => {
                    return None;
                }
                (None, None) => return None,
                (Some(here), _) => here,
                (None, Some(_)) => &[0; PAGE_SIZE],
            };
            Some(((number * PAGE_SIZE) as u64, contents))
        })
    }

    /// Whether something was ever written there.
    pub fn is_allocated(&self, range: Range<u64>) -> bool {
        pieces(range).all(|(page, _)| self.pages[page].is_some())
    }

    /// Writes it to a new file, without what was never written.
    pub fn save(&self, file: &File) -> io::Result<()> {
        file.set_len(self.size())?;
        for (number, page) in self.pages.iter().enumerate() {
            if let Some(page) = page {
                file.write_all_at(&page[..], (number * PAGE_SIZE) as u64)?;
            }
        }
        Ok(())
    }

    /// The sectors in which this text begins; it must not cross a page.
    pub fn find(&self, text: &[u8]) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        for (number, page) in self.pages.iter().enumerate() {
            let Some(page) = page else { continue };
            for at in page.windows(text.len()).enumerate().filter(|(_, window)| *window == text) {
                let sector = (number * PAGE_SIZE + at.0) / SECTOR_SIZE * SECTOR_SIZE;
                found.push(sector as u64..(sector + SECTOR_SIZE) as u64);
            }
        }
        found
    }
}

/// Pages that a range touches, each with the part of it inside.
fn pieces(range: Range<u64>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let size = PAGE_SIZE as u64;
    (range.start / size..range.end.div_ceil(size)).map(move |page| {
        let start = range.start.max(page * size) - page * size;
        let end = range.end.min((page + 1) * size) - page * size;
        (page as usize, start as usize..end as usize)
    })
}

/// What the drive was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes for a place.
    Write {
        /// Where.
        offset: u64,
        /// What.
        bytes: Box<[u8]>,
    },
    /// All writes before it are to survive a power cut.
    Flush,
}

/// Everything that a drive was asked from some moment on.
#[derive(Debug, Clone)]
pub struct Recording {
    /// What was on it then.
    pub base: Image,
    /// What followed, in order.
    pub events: Vec<Event>,
}

/// What is wrong with a drive.
#[derive(Debug, Clone, Default)]
pub struct Trouble {
    /// Places that cannot be read.
    pub unreadable: Vec<Range<u64>>,
    /// No write succeeds.
    pub refuses_writes: bool,
    /// No flush succeeds.
    pub refuses_flushes: bool,
    /// No write to a place that was never written succeeds: a thin volume without room.
    pub is_full: bool,
}

/// A drive.
#[derive(Debug)]
pub struct Drive {
    image: Image,
    recording: Option<Recording>,
    trouble: Trouble,
    refusals: BTreeMap<&'static str, u64>,
}

impl Drive {
    /// A drive that holds this.
    pub fn new(image: Image) -> Drive {
        Drive { image, recording: None, trouble: Trouble::default(), refusals: BTreeMap::new() }
    }

    /// What is on it.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Remembers everything from now on.
    pub fn record(&mut self) {
        self.recording = Some(Recording { base: self.image.clone(), events: Vec::new() });
    }

    /// How much has been recorded: whoever looks after an answer knows which writes and flushes
    /// came before it.
    pub fn moment(&self) -> usize {
        self.recording.as_ref().map_or(0, |recording| recording.events.len())
    }

    /// Ends the recording.
    pub fn take_recording(&mut self) -> Recording {
        self.recording.take().expect("it records")
    }

    /// From now on this is wrong with it.
    pub fn set_trouble(&mut self, trouble: Trouble) {
        self.trouble = trouble;
    }

    /// How often it refused something, by what was asked.
    pub fn refusals(&self, what: &str) -> u64 {
        self.refusals.get(what).copied().unwrap_or(0)
    }

    /// Reads.
    pub fn read(&mut self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let touches = |bad: &Range<u64>| bad.start < range.end && range.start < bad.end;
        if self.trouble.unreadable.iter().any(touches) {
            return Err(self.refuse("read", libc::EIO));
        }
        Ok(self.image.read(range))
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let range = offset..offset + bytes.len() as u64;
        if self.trouble.refuses_writes || range.end > self.image.size() {
            return Err(self.refuse("write", libc::EIO));
        }
        if self.trouble.is_full && !self.image.is_allocated(range) {
            return Err(self.refuse("write", libc::ENOSPC));
        }
        self.image.write(offset, bytes);
        if let Some(recording) = &mut self.recording {
            recording.events.push(Event::Write { offset, bytes: bytes.into() });
        }
        Ok(())
    }

    /// Makes all writes so far durable.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.trouble.refuses_flushes {
            return Err(self.refuse("flush", libc::EIO));
        }
        if let Some(recording) = &mut self.recording {
            recording.events.push(Event::Flush);
        }
        Ok(())
    }

    fn refuse(&mut self, what: &'static str, error: i32) -> io::Error {
        *self.refusals.entry(what).or_default() += 1;
        io::Error::from_raw_os_error(error)
    }
}

/// A drive that is served by one thread and looked at by others.
#[derive(Debug, Clone)]
pub struct SharedDrive(Arc<Mutex<Drive>>);

impl SharedDrive {
    /// An empty drive.
    pub fn new(size: u64) -> SharedDrive {
        SharedDrive(Arc::new(Mutex::new(Drive::new(Image::new(size)))))
    }

    /// The drive; the one who serves it waits meanwhile.
    pub fn lock(&self) -> MutexGuard<'_, Drive> {
        self.0.lock().expect("no panic while it is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 4 * PAGE_SIZE as u64;

    #[test]
    fn an_image_reads_what_was_written_across_pages_and_zeroes_elsewhere() {
        let mut image = Image::new(SIZE);
        let at = PAGE_SIZE as u64 - 2;
        image.write(at, b"four");
        assert_eq!(image.read(at - 1..at + 5), b"\0four\0");
        assert_eq!(image.read(SIZE - 2..SIZE + 2), [0; 2], "nothing behind the end");
        assert!(image.is_allocated(0..2 * PAGE_SIZE as u64));
        assert!(!image.is_allocated(0..2 * PAGE_SIZE as u64 + 1));
    }

    #[test]
    fn a_copy_does_not_see_later_writes() {
        let mut image = Image::new(SIZE);
        image.write(5, b"old");
        let copy = image.clone();
        assert_eq!(image.differences(&copy).count(), 0);
        image.write(5, b"new");
        image.write(2 * PAGE_SIZE as u64, b"more");
        let places = |from: &Image, to: &Image| -> Vec<(u64, Vec<u8>)> {
            let all = from.differences(to);
            all.map(|(offset, bytes)| (offset, bytes[..8].to_vec())).collect()
        };
        let at = 2 * PAGE_SIZE as u64;
        let [empty, more] = [[0; 8].to_vec(), b"more\0\0\0\0".to_vec()];
        let [old, new] = [b"\0\0\0\0\0old".to_vec(), b"\0\0\0\0\0new".to_vec()];
        assert_eq!(places(&copy, &image), [(0, old), (at, empty)]);
        assert_eq!(places(&image, &copy), [(0, new), (at, more)]);
        assert_eq!((copy.read(5..8), image.read(5..8)), (b"old".to_vec(), b"new".to_vec()));
    }

    #[test]
    fn text_is_found_by_its_sector() {
        let mut image = Image::new(SIZE);
        image.write(PAGE_SIZE as u64 + 600, b"marker");
        let sector = (PAGE_SIZE + 512) as u64;
        assert_eq!(image.find(b"marker"), vec![sector..sector + 512]);
    }

    #[test]
    fn a_recording_holds_what_followed_its_base() {
        let mut drive = Drive::new(Image::new(SIZE));
        drive.write(0, b"before").expect("a good drive");
        drive.record();
        drive.write(0, b"during").expect("a good drive");
        drive.flush().expect("a good drive");
        assert_eq!(drive.moment(), 2);
        let recording = drive.take_recording();
        assert_eq!(recording.base.read(0..6), b"before");
        let write = Event::Write { offset: 0, bytes: (*b"during").into() };
        assert_eq!(recording.events, [write, Event::Flush]);
    }

    #[test]
    fn a_drive_refuses_what_its_trouble_says() {
        let code = |result: io::Result<()>| result.err().and_then(|error| error.raw_os_error());
        let mut drive = Drive::new(Image::new(SIZE));
        drive.write(0, b"here").expect("a good drive");
        let unreadable = vec![512..1024, 1024..1536];
        drive.set_trouble(Trouble { unreadable, is_full: true, ..Default::default() });
        assert_eq!(code(drive.read(0..513).map(drop)), Some(libc::EIO));
        assert_eq!(drive.read(0..4).expect("beside the bad place"), b"here");
        assert_eq!(code(drive.write(0, b"over")), None);
        assert_eq!(code(drive.write(SIZE - 4, b"more")), Some(libc::ENOSPC));
        drive.set_trouble(Trouble {
            refuses_writes: true,
            refuses_flushes: true,
            ..Default::default()
        });
        assert_eq!(code(drive.write(0, b"over")), Some(libc::EIO));
        assert_eq!(code(drive.flush()), Some(libc::EIO));
        assert_eq!((drive.refusals("write"), drive.refusals("flush")), (2, 1));
        drive.set_trouble(Trouble::default());
        assert_eq!(drive.image().read(0..4), b"over", "refused writes change nothing");
    }
}
