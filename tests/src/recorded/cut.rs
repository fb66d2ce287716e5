//! Power cuts: what may be on a drive when the power goes at some moment of its recording.
//!
//! Everything up to the last flush before that moment is there. Of the writes after it any part
//! may be, down to single sectors, in any order.

use std::ops::Range;

use super::drive::{Event, Image, Recording, SECTOR_SIZE};
use crate::sim::random::Random;

/// Up to here the file system needs its writes whole: ext4 writes its superblock without the
/// journal, has a checksum over it, and does not mount when it is torn. That is no matter of ours.
const WHOLE_END: u64 = 4096;

/// Which of the writes since the last flush survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survivors {
    /// None of them.
    Nothing,
    /// All of them: the cut came just before the next flush.
    Everything,
    /// The first ones; the last of these is torn after some sector.
    Beginning,
    /// About this many whole writes in a hundred.
    Writes(u64),
    /// About this many single sectors in a hundred.
    Sectors(u64),
}

impl Survivors {
    /// Every kind.
    pub const ALL: [Survivors; 8] = [
        Survivors::Nothing,
        Survivors::Everything,
        Survivors::Beginning,
        Survivors::Writes(20),
        Survivors::Writes(80),
        Survivors::Sectors(10),
        Survivors::Sectors(50),
        Survivors::Sectors(95),
    ];
}

/// A drive after a power cut.
#[derive(Debug, Clone)]
pub struct Cut {
    /// What is on it.
    pub image: Image,
    /// How much of the recording had happened: answers given by then are binding.
    pub moment: usize,
}

/// The writes between one flush and the next, as a range of events.
pub type Window = Range<usize>;

/// All windows with writes.
pub fn windows(events: &[Event]) -> Vec<Window> {
    let mut windows = Vec::new();
    let mut start = 0;
    for (index, event) in events.iter().enumerate() {
        if *event == Event::Flush {
            if start < index {
                windows.push(start..index);
            }
            start = index + 1;
        }
    }
    if start < events.len() {
        windows.push(start..events.len());
    }
    windows
}

/// Cuts the power again and again, from the beginning of a recording to its end.
#[derive(Debug)]
pub struct Cutter<'a> {
    events: &'a [Event],
    durable: Image,
    applied: usize,
}

impl<'a> Cutter<'a> {
    /// At the beginning.
    pub fn new(recording: &'a Recording) -> Self {
        Cutter { events: &recording.events, durable: recording.base.clone(), applied: 0 }
    }

    /// Cuts the power inside the range, whose start must not lie before that of the last cut:
    /// everything before it is on the drive, and some of what is in it.
    pub fn cut(&mut self, range: &Range<usize>, survivors: Survivors, random: &mut Random) -> Cut {
        assert!(self.applied <= range.start, "forward only");
        for event in &self.events[self.applied..range.start] {
            if let Event::Write { offset, bytes } = event {
                self.durable.write(*offset, bytes);
            }
        }
        self.applied = range.start;
        let mut image = self.durable.clone();
        let mut moment = range.end;
        if survivors == Survivors::Beginning {
            moment = range.start + 1 + random.below(range.len() as u64) as usize;
        }
        for (index, event) in self.events[..moment].iter().enumerate().skip(range.start) {
            let Event::Write { offset, bytes } = event else { continue };
            match survivors {
                Survivors::Nothing => {}
                Survivors::Everything => image.write(*offset, bytes),
                Survivors::Beginning => {
                    let sectors = bytes.len() / SECTOR_SIZE;
                    let is_last = index + 1 == moment;
                    let kept =
                        if is_last { random.below(sectors as u64) as usize } else { sectors };
                    let kept = kept * SECTOR_SIZE;
                    let is_torn = offset + (kept as u64) < WHOLE_END && kept < bytes.len();
                    image.write(*offset, &bytes[..if is_torn { 0 } else { kept }]);
                }
                Survivors::Writes(percent) => {
                    if random.percent(percent) {
                        image.write(*offset, bytes);
                    }
                }
                Survivors::Sectors(percent) => {
                    let whole = WHOLE_END.saturating_sub(*offset).min(bytes.len() as u64) as usize;
                    let (whole, sectors) = bytes.split_at(whole);
                    if random.percent(percent) {
                        image.write(*offset, whole);
                    }
                    let offset = offset + whole.len() as u64;
                    for (number, sector) in sectors.chunks(SECTOR_SIZE).enumerate() {
                        if random.percent(percent) {
                            image.write(offset + (number * SECTOR_SIZE) as u64, sector);
                        }
                    }
                }
            }
        }
        Cut { image, moment }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR: u64 = SECTOR_SIZE as u64;

    fn write(sector: u64, count: usize, value: u8) -> Event {
        let offset = WHOLE_END + sector * SECTOR;
        Event::Write { offset, bytes: vec![value; count * SECTOR_SIZE].into() }
    }

    fn recording() -> Recording {
        let events = vec![
            write(0, 1, 1),
            Event::Flush,
            Event::Flush,
            write(1, 4, 2),
            write(5, 1, 3),
            Event::Flush,
            write(0, 1, 4),
        ];
        Recording { base: Image::new(64 << 10), events }
    }

    /// The first byte of each of the first six sectors.
    fn sectors(image: &Image) -> Vec<u8> {
        let start = |sector| WHOLE_END + sector * SECTOR;
        (0..6).map(|sector| image.read(start(sector)..start(sector) + 1)[0]).collect()
    }

    #[test]
    fn windows_lie_between_flushes_and_hold_writes() {
        assert_eq!(windows(&recording().events), [0..1, 3..5, 6..7]);
        assert!(windows(&[Event::Flush]).is_empty());
    }

    #[test]
    fn what_was_flushed_is_there_and_what_came_later_is_not() {
        let recording = recording();
        let mut cutter = Cutter::new(&recording);
        let mut random = Random::new(1);
        let cut = cutter.cut(&(3..5), Survivors::Nothing, &mut random);
        assert_eq!((sectors(&cut.image), cut.moment), (vec![1, 0, 0, 0, 0, 0], 5));
        let cut = cutter.cut(&(3..5), Survivors::Everything, &mut random);
        assert_eq!((sectors(&cut.image), cut.moment), (vec![1, 2, 2, 2, 2, 3], 5));
        let cut = cutter.cut(&(6..7), Survivors::Nothing, &mut random);
        assert_eq!((sectors(&cut.image), cut.moment), (vec![1, 2, 2, 2, 2, 3], 7));
    }

    #[test]
    fn every_subset_that_a_kind_may_leave_is_left() {
        let recording = recording();
        let mut cutter = Cutter::new(&recording);
        let mut random = Random::new(1);
        let mut left = |survivors| {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..2000 {
                seen.insert(sectors(&cutter.cut(&(3..5), survivors, &mut random).image));
            }
            seen.len()
        };
        assert_eq!(left(Survivors::Writes(20)), 4);
        assert_eq!(left(Survivors::Sectors(50)), 32);
        // Torn in the first write after 0 to 3 sectors, or before the second.
        assert_eq!(left(Survivors::Beginning), 5);
    }

    #[test]
    fn the_superblock_is_there_or_not_and_never_torn() {
        let block = Event::Write { offset: 0, bytes: vec![9; WHOLE_END as usize + 512].into() };
        let recording = Recording { base: Image::new(64 << 10), events: vec![block] };
        let mut cutter = Cutter::new(&recording);
        let mut random = Random::new(1);
        for survivors in [Survivors::Beginning, Survivors::Sectors(50)] {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..100 {
                let image = cutter.cut(&(0..1), survivors, &mut random).image;
                let first = image.read(0..WHOLE_END);
                assert!(first.iter().all(|byte| *byte == first[0]), "{survivors:?}");
                seen.insert(first[0]);
            }
            assert_eq!(seen.len(), 2, "{survivors:?}");
        }
    }
}
