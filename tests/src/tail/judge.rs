//! Makes the images of one write and compares what recovery makes of them with the rule.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemill_wal::commit::{FrameWrite, Log, LogOptions};
use tidemill_wal::disk::{MemoryStorage, Storage};
use tidemill_wal::format::{
    FrameFields, FrameHeader, FrameKind, SegmentHeader, SegmentId, Sequence, is_zero,
};
use tidemill_wal::limits::BLOCK_SIZE;
use tidemill_wal::manifest::{Manifest, load_manifest};
use tidemill_wal::recovery::{self, ReplayFrame, ScanEnd, ScanError, ScanStart, Torn};
use tidemill_wal::segment;

use super::{Category, Counts, Kind, Place, Size};
use crate::sim::random::Random;

/// What a disk writes whole or not at all.
pub const SECTOR_SIZE: usize = 512;

/// Every subset of so many sectors is tried; of more, cuts and random subsets.
const EXHAUSTIVE_MAX: usize = 12;

/// Random subsets of a write with more sectors, and of any before another background.
const RANDOM_SUBSETS: usize = 48;

/// Bytes behind a write that get another background: more than a scan needs to stumble.
const BEHIND: usize = 8 * BLOCK_SIZE;

/// What lies under and behind a write instead of what was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Background {
    /// Valid frames of an earlier segment, at their places, numbered from this one on.
    EarlierLife,
    /// Valid frames of this life of the segment at their places, with numbers that are over.
    OldNumbers,
    /// A torn frame of the same number and place from an epoch before: its header and noise.
    TornBefore,
    /// Anything.
    Noise,
}

const BACKGROUNDS: [Background; 4] =
    [Background::EarlierLife, Background::OldNumbers, Background::TornBefore, Background::Noise];

/// One write and all that is known about the log before it.
pub struct Judge<'a> {
    /// The disk just before the write.
    pub storage: &'a mut MemoryStorage,
    /// The write.
    pub write: &'a FrameWrite,
    /// The log.
    pub options: LogOptions,
    /// Frames that are durable, as far as they are known by their bytes.
    pub frames: &'a BTreeMap<Sequence, Bytes>,
    /// Writes of frames that are not durable, which crashes cut before.
    pub attempts: &'a [FrameWrite],
    /// Chooses subsets.
    pub random: &'a mut Random,
    /// Counts of this write alone.
    pub counts: Counts,
}

/// What an image left of the write.
#[derive(Debug, Clone, Copy)]
struct Image {
    is_whole: bool,
    /// Whether zeros follow the write. What follows may else be told as the rest of a torn one.
    is_blank_behind: bool,
    /// Whether the write's header is there.
    has_header: bool,
}

/// What a write is, by what it holds and what was in its place.
pub fn category(storage: &MemoryStorage, write: &FrameWrite) -> Category {
    let file = storage.file(&segment::file_name(write.segment)).expect("its segment is ready");
    let header = SegmentHeader::decode(file).expect("its segment is ready");
    let place = &file[write.offset as usize..][..write.bytes.len()];
    let place = match FrameHeader::decode(place) {
        Ok(old) if old.nonce() == header.nonce() => Place::Torn,
        _ if header.is_recycled() => Place::Recycled,
        _ if place.iter().any(|byte| *byte != 0) => Place::Torn,
        _ => Place::Fresh,
    };
    let size = match write.bytes.len() / BLOCK_SIZE {
        ..=1 => Size::Block,
        2..=4 => Size::Small,
        _ => Size::Big,
    };
    let is_first = write.offset == BLOCK_SIZE as u64;
    Category { kind: Kind::from(write.kind), place, is_first, size }
}

/// Where the log of a directory begins, by its newest manifest.
pub fn scan_start(storage: &dyn Storage, options: LogOptions) -> Result<ScanStart, String> {
    let files = storage.list().map_err(|error| error.to_string())?;
    let manifest = load_manifest(storage, options.shard, &files).map_err(|e| e.to_string())?;
    let manifest = manifest.unwrap_or_else(|| Manifest::new(options.shard, 1, [0; 16]));
    Ok(ScanStart {
        shard: options.shard,
        first_segment: manifest.first_segment,
        replay_from: manifest.replay_from,
        known_durable: manifest.durable,
        epoch_min: manifest.epoch,
        segment_size: options.segment_size,
        segment_count_max: options.segment_count_max,
    })
}

/// Reads the whole log: its frames, and how it ends.
pub fn scan(
    storage: &MemoryStorage,
    start: &ScanStart,
) -> Result<(Vec<ReplayFrame>, ScanEnd), ScanError> {
    let mut frames = Vec::new();
    let end = recovery::scan(storage, start, &mut |frame| {
        frames.push(frame);
        Ok(())
    })?;
    Ok((frames, end))
}

impl Judge<'_> {
    /// Tries the images of the write; leaves the disk as it was.
    pub fn run(&mut self) -> Result<(), String> {
        let start = scan_start(self.storage, self.options)?;
        let category = category(self.storage, self.write);
        let before = self.region().to_vec();
        let result = self.run_backgrounds(&start, &before);
        self.region().copy_from_slice(&before);
        let (sequence, offset) = (self.write.sequence, self.write.offset);
        result.map_err(|why| format!("{category:?}, frame {sequence} at byte {offset}: {why}"))?;
        let images = self.counts.images();
        self.counts.categories.insert(category, (1, images));
        Ok(())
    }

    fn run_backgrounds(&mut self, start: &ScanStart, before: &[u8]) -> Result<(), String> {
        let subsets = self.subsets(before);
        let is_blank_behind = is_zero(&before[self.write.bytes.len()..]);
        for (index, subset) in subsets.iter().enumerate() {
            let image = Image { is_blank_behind, ..self.lay(before, subset) };
            self.check(start, image, index % 16 == 0)
                .map_err(|why| format!("sectors {}: {why}", picture(subset)))?;
        }
        for background in BACKGROUNDS {
            let ground = self.ground(background, before);
            for subset in self.some_subsets() {
                let image = self.lay(&ground, &subset);
                self.counts.backgrounds += 1;
                self.check(start, image, false).map_err(|why| {
                    format!("before {background:?}, sectors {}: {why}", picture(&subset))
                })?;
            }
        }
        self.check_later_frame(start, before)
    }

    /// The write's place and what is behind it.
    fn region(&mut self) -> &mut [u8] {
        let file = self.storage.file_mut(&segment::file_name(self.write.segment));
        let from = self.write.offset as usize;
        let to = file.len().min(from + self.write.bytes.len() + BEHIND);
        &mut file[from..to]
    }

    fn sector_count(&self) -> usize {
        self.write.bytes.len() / SECTOR_SIZE
    }

    /// Every subset of the sectors in which the write differs from what is there, or a choice of
    /// them if there are too many.
    fn subsets(&mut self, before: &[u8]) -> Vec<Vec<bool>> {
        let count = self.sector_count();
        let sectors = self.write.bytes.chunks(SECTOR_SIZE).zip(before.chunks(SECTOR_SIZE));
        let changed: Vec<usize> =
            sectors.enumerate().filter(|(_, (new, old))| new != old).map(|(at, _)| at).collect();
        if changed.len() <= EXHAUSTIVE_MAX {
            self.counts.exhaustive += 1;
            return (0..1_usize << changed.len())
                .map(|bits| {
                    let mut subset = vec![true; count];
                    for (bit, sector) in changed.iter().enumerate() {
                        subset[*sector] = bits >> bit & 1 == 1;
                    }
                    subset
                })
                .collect();
        }
        let mut subsets: Vec<Vec<bool>> =
            (0..=count).map(|cut| (0..count).map(|sector| sector < cut).collect()).collect();
        // A long write has many cuts; single sectors of it are chosen by chance.
        for _ in 0..count.min(4 * RANDOM_SUBSETS) {
            let chosen = self.random.below(count as u64) as usize;
            let is_missing = self.random.one_in(2);
            subsets.push((0..count).map(|sector| (sector == chosen) != is_missing).collect());
        }
        subsets.extend(self.random_subsets());
        subsets
    }

    fn random_subsets(&mut self) -> Vec<Vec<bool>> {
        let count = self.sector_count();
        (0..RANDOM_SUBSETS)
            .map(|_| {
                let percent = self.random.choose(&[10, 50, 90, 98]);
                (0..count).map(|_| self.random.percent(percent)).collect()
            })
            .collect()
    }

    fn some_subsets(&mut self) -> Vec<Vec<bool>> {
        let count = self.sector_count();
        let mut subsets = self.random_subsets();
        subsets.push(vec![true; count]);
        subsets.push(vec![false; count]);
        subsets.push((0..count).map(|sector| sector > 0).collect());
        subsets.push((0..count).map(|sector| sector == 0).collect());
        subsets
    }

    /// Puts a background and some sectors of the write on it.
    fn lay(&mut self, ground: &[u8], subset: &[bool]) -> Image {
        let bytes = self.write.bytes.clone();
        let region = self.region();
        region.copy_from_slice(ground);
        for (at, sector) in bytes.chunks(SECTOR_SIZE).enumerate() {
            if subset[at] {
                region[at * SECTOR_SIZE..][..SECTOR_SIZE].copy_from_slice(sector);
            }
        }
        Image {
            is_blank_behind: false,
            is_whole: region[..bytes.len()] == bytes,
            has_header: region[..SECTOR_SIZE] == bytes[..SECTOR_SIZE],
        }
    }

    fn ground(&mut self, background: Background, before: &[u8]) -> Vec<u8> {
        let mut ground = before.to_vec();
        let own = FrameHeader::decode(&self.write.bytes).expect("a write starts with its header");
        for (index, block) in ground.chunks_mut(BLOCK_SIZE).enumerate() {
            let index = index as u64;
            let mut fields = FrameFields {
                kind: FrameKind::Steps,
                shard: own.shard(),
                shard_epoch: own.shard_epoch(),
                segment: own.segment(),
                nonce: own.nonce(),
                offset: own.offset() + index * BLOCK_SIZE as u64,
                sequence: own.sequence(),
                durable: Sequence(own.sequence().0 - 1),
                previous: own.previous(),
                clock_ms: own.clock_ms(),
            };
            match background {
                Background::Noise => block.fill_with(|| self.random.bits() as u8),
                Background::EarlierLife => {
                    fields.nonce ^= self.random.bits() | 1;
                    fields.segment = SegmentId(own.segment().0.saturating_sub(index % 3));
                    fields.sequence = Sequence(own.sequence().0 + index);
                    fields.durable = Sequence(fields.sequence.0 - 1);
                    write_frame(block, &fields, b"an earlier life");
                }
                Background::OldNumbers => {
                    let back = 1 + self.random.below(3);
                    fields.sequence = Sequence(own.sequence().0.saturating_sub(back));
                    fields.durable = Sequence(fields.sequence.0.saturating_sub(1));
                    if fields.sequence > Sequence(0) {
                        write_frame(block, &fields, b"an old number");
                    }
                }
                Background::TornBefore if index == 0 => {
                    write_frame(block, &fields, &[7; BLOCK_SIZE - 200]);
                    block[1000] ^= 1;
                }
                Background::TornBefore => block.fill_with(|| self.random.bits() as u8),
            }
        }
        ground
    }

    /// The rule.
    fn check(&mut self, start: &ScanStart, image: Image, is_sealed: bool) -> Result<(), String> {
        let (frames, end) = scan(self.storage, start).map_err(|error| error.to_string())?;
        let due = self.write.sequence;
        let kept = match image.is_whole {
            true => Some(&self.write.bytes),
            false => self.whole_attempt(self.attempts),
        };
        let last = if kept.is_some() { due } else { Sequence(due.0 - 1) };
        if end.last != last {
            return Err(format!("the log ends with frame {}, not {last}", end.last));
        }
        self.check_frames(start, &frames, last)?;
        if let Some(kept) = kept {
            if frames.last().map(|frame| &frame.bytes) != Some(kept) {
                return Err("the frame is there with other bytes".to_owned());
            }
            self.counts.kept += 1;
            if image.is_blank_behind && end.torn.is_some() {
                return Err(format!("nothing is torn, yet {:?} is reported", end.torn));
            }
        } else {
            self.counts.cut += 1;
            let own = FrameHeader::decode(&self.write.bytes).expect("it is a frame");
            let torn = torn_of(self.write);
            // Of two torn frames of one number, the one in the later segment is told.
            let is_told = end.torn == Some(torn)
                || self.attempts.iter().any(|attempt| Some(torn_of(attempt)) == end.torn);
            if image.has_header && !is_told {
                return Err(format!("{torn:?} is reported as {:?}", end.torn));
            }
            if image.has_header && end.epoch <= own.shard_epoch() {
                return Err(format!("epoch {} begins a second time", end.epoch));
            }
        }
        if is_sealed { self.check_sealed(start, &frames, &end) } else { Ok(()) }
    }

    /// An earlier write of the frame that was cut, and that now is whole: the sectors that it
    /// lacked are the same in the later write. Nothing was built on its loss, so it is kept.
    fn whole_attempt<'b>(
        &self,
        attempts: impl IntoIterator<Item = &'b FrameWrite>,
    ) -> Option<&'b Bytes> {
        let is_whole = |attempt: &&FrameWrite| {
            let file = self.storage.file(&segment::file_name(attempt.segment));
            let place = file.and_then(|file| file.get(attempt.offset as usize..));
            place.is_some_and(|place| place.starts_with(&attempt.bytes))
        };
        attempts
            .into_iter()
            .filter(|attempt| attempt.sequence == self.write.sequence)
            .find(is_whole)
            .map(|attempt| &attempt.bytes)
    }

    /// Everything that is not settled is there, in order, and as it was written.
    fn check_frames(
        &self,
        start: &ScanStart,
        frames: &[ReplayFrame],
        last: Sequence,
    ) -> Result<(), String> {
        let count = (last.0 + 1).saturating_sub(start.replay_from.0);
        if frames.len() as u64 != count {
            return Err(format!("{} frames are replayed, not {count}", frames.len()));
        }
        for (frame, sequence) in frames.iter().zip(start.replay_from.0..) {
            if frame.header.sequence().0 != sequence {
                return Err(format!("frame {} comes for {sequence}", frame.header.sequence()));
            }
            let known = self.frames.get(&Sequence(sequence));
            if known.is_some_and(|bytes| *bytes != frame.bytes) {
                return Err(format!("frame {sequence} has other bytes"));
            }
        }
        Ok(())
    }

    /// A seal follows, a second and a third recovery agree, and so they do if that seal is torn.
    fn check_sealed(
        &mut self,
        start: &ScanStart,
        frames: &[ReplayFrame],
        end: &ScanEnd,
    ) -> Result<(), String> {
        self.check_torn_seal(start, end)?;
        let mut storage = self.storage.clone();
        let mut nonce = self.random.bits();
        let mut next_nonce = || {
            nonce = nonce.wrapping_add(0x9e37_79b9_7f4a_7c15);
            nonce
        };
        let mut end = end.clone();
        for round in 1..=2_u64 {
            let last = end.last;
            recovery::start(&mut storage, self.options, &end, 1, 7, &mut next_nonce)
                .map_err(|fault| fault.to_string())?;
            let (again, sealed) = scan(&storage, start).map_err(|error| error.to_string())?;
            let is_sealed = sealed.last == last.next()
                && sealed.last_kind == Some(FrameKind::Seal)
                && sealed.torn.is_none()
                && sealed.epoch > end.epoch;
            if !is_sealed {
                return Err(format!("recovery {}: no clean seal after {last}", round + 1));
            }
            let is_same = again.len() as u64 == frames.len() as u64 + round
                && frames.iter().zip(&again).all(|(one, two)| one.bytes == two.bytes);
            if !is_same {
                return Err(format!("recovery {}: other frames than before", round + 1));
            }
            end = sealed;
        }
        self.counts.resealed += 1;
        Ok(())
    }

    /// The start that cuts the frame is cut short itself, while it writes its seal.
    fn check_torn_seal(&mut self, start: &ScanStart, end: &ScanEnd) -> Result<(), String> {
        let Some(seal) = Log::resume(self.options, end).submit_seal(7) else { return Ok(()) };
        let file = segment::file_name(seal.segment);
        let place = seal.offset as usize..seal.offset as usize + seal.bytes.len();
        let before =
            self.storage.file(&file).expect("it is in use or ready")[place.clone()].to_vec();
        let count = seal.bytes.len() / SECTOR_SIZE;
        for cut in 0..2 * count {
            let target = &mut self.storage.file_mut(&file)[place.clone()];
            target.copy_from_slice(&before);
            for (at, sector) in seal.bytes.chunks(SECTOR_SIZE).enumerate() {
                // The first so many sectors, or all but one.
                if if cut < count { at < cut } else { at != cut - count } {
                    target[at * SECTOR_SIZE..][..SECTOR_SIZE].copy_from_slice(sector);
                }
            }
            let is_whole = *target == *seal.bytes;
            let (frames, again) = scan(self.storage, start)
                .map_err(|error| format!("its seal, cut at {cut}: {error}"))?;
            let attempts = self.attempts.iter().chain([self.write]);
            let is_again = seal.sequence == self.write.sequence;
            let is_kept = is_whole || is_again && self.whole_attempt(attempts).is_some();
            let last = if is_kept { seal.sequence } else { end.last };
            if again.last != last || again.epoch < end.epoch {
                return Err(format!("its seal, cut at {cut}: the log ends with {}", again.last));
            }
            self.check_frames(start, &frames, last)
                .map_err(|why| format!("its seal, cut at {cut}: {why}"))?;
            self.counts.seals_torn += 1;
        }
        self.storage.file_mut(&file)[place].copy_from_slice(&before);
        Ok(())
    }

    /// A valid frame behind says that the write was durable: then damage to it is corruption, and
    /// nothing is cut.
    fn check_later_frame(&mut self, start: &ScanStart, before: &[u8]) -> Result<(), String> {
        let size = self.write.bytes.len();
        if before.len() < size + BLOCK_SIZE {
            return Ok(());
        }
        let own = FrameHeader::decode(&self.write.bytes).expect("it is a frame");
        let fields = FrameFields {
            kind: FrameKind::Idle,
            shard: own.shard(),
            shard_epoch: own.shard_epoch(),
            segment: own.segment(),
            nonce: own.nonce(),
            offset: own.offset() + size as u64,
            sequence: own.sequence().next(),
            durable: own.sequence(),
            previous: own.checksum(),
            clock_ms: own.clock_ms(),
        };
        let mut ground = before.to_vec();
        write_frame(&mut ground[size..size + BLOCK_SIZE], &fields, b"");
        for missing in 0..self.sector_count().min(EXHAUSTIVE_MAX) {
            let subset: Vec<bool> = (0..self.sector_count()).map(|at| at != missing).collect();
            if self.lay(&ground, &subset).is_whole || self.whole_attempt(self.attempts).is_some() {
                continue;
            }
            match scan(self.storage, start) {
                Err(ScanError::Corrupt { segment, offset, .. })
                    if (segment, offset) == (self.write.segment, self.write.offset) => {}
                other => {
                    let other = other.map(|(_, end)| end);
                    return Err(format!("a later frame is there without {missing}: {other:?}"));
                }
            }
            self.counts.refused += 1;
        }
        Ok(())
    }
}

fn torn_of(write: &FrameWrite) -> Torn {
    Torn { segment: write.segment, offset: write.offset, size: write.bytes.len() as u64 }
}

/// A valid frame at the start of a block.
fn write_frame(block: &mut [u8], fields: &FrameFields, body: &[u8]) {
    block.fill(0);
    let header = FrameHeader::new(fields, body);
    let head = header.encode();
    block[..head.len()].copy_from_slice(head);
    block[head.len()..][..body.len()].copy_from_slice(body);
}

fn picture(subset: &[bool]) -> String {
    subset.iter().map(|is_there| if *is_there { '#' } else { '.' }).collect()
}
