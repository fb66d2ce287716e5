//! A shard's disk with the faults that real ones have.
//!
//! What is written stays volatile until it is synced: a crash keeps each 512-byte sector of it, or
//! not. Sizes of files are volatile in the same way. Names (creations, renames, removals) are
//! volatile until their directory is synced, and a crash keeps a prefix of them or any set. A frame
//! write is durable once it completed; in flight at a crash, any set of its sectors is there.
//!
//! A kill of the process is kinder: what was written stays, still volatile, until recovery reads
//! the file, which syncs it as [`Storage::read`] promises.
//!
//! Faults are of two kinds. The design survives what the disk admits: an operation that fails, no
//! room, a delay. It detects what the disk hides: a bit that turned, a write that went elsewhere or
//! nowhere, a sector that cannot be read any more. Of these the disk keeps the truth, so that an
//! operator with a copy can repair it, and knows which complaint is justified. One hidden fault is
//! there at a time, for two together can look like something else.

mod inode;
mod opening;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_wal::commit::FrameWrite;
use tidemill_wal::disk::{DiskFault, DiskOp, Place, Storage};
use tidemill_wal::extent::EXTENT_SUFFIX;
use tidemill_wal::format::{FileName, FrameKind};
use tidemill_wal::limits::BLOCK_SIZE;
use tidemill_wal::segment::{self, NameKind};

use self::inode::Inode;
pub use self::opening::Opening;
use super::counts::Counts;
use super::random::Random;

/// What a disk writes whole or not at all.
const SECTOR_SIZE: usize = 512;

/// Frames whose places are remembered.
const FRAMES_MAX: usize = 64;

/// A deliberate break of durability: the simulator has to find each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// A frame is reported durable when its write is submitted.
    AcknowledgeAtSubmit,
    /// Syncs of files do nothing.
    SkipFileSync,
    /// Syncs of directories do nothing.
    SkipDirectorySync,
    /// A disk job is reported done before its operations ran, so that a segment is recycled before
    /// the manifest that allows it is durable.
    ReportJobsEarly,
    /// The seal that starts an epoch is not written.
    SkipStartSeal,
}

/// How the machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Power was lost: volatile data may be gone.
    Power,
    /// The process was killed: caches survive.
    Kill,
}

/// How often a disk fails: once in so many operations, never at 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct FaultRates {
    /// Writes, syncs and everything else that changes something, background jobs and frames alike.
    pub error: u64,
    /// Reads.
    pub read_error: u64,
    /// Writes that go nowhere, or elsewhere, and are reported as done.
    pub silent: u64,
}

/// Damage that comes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rot {
    /// A bit turns.
    Flip,
    /// A sector cannot be read any more.
    Unreadable,
}

/// Where a frame is.
#[derive(Debug, Clone)]
struct FramePlace {
    file: FileName,
    range: Range<usize>,
    kind: FrameKind,
}

#[derive(Debug, Clone)]
enum NameOp {
    Add(FileName, usize),
    Rename(FileName, FileName, usize),
    Remove(FileName),
}

impl NameOp {
    fn is_wal(&self) -> bool {
        match self {
            Self::Add(file, _) | Self::Rename(file, _, _) | Self::Remove(file) => file.is_wal(),
        }
    }

    fn apply(self, names: &mut BTreeMap<FileName, usize>) {
        match self {
            Self::Add(file, inode) => drop(names.insert(file, inode)),
            Self::Rename(from, to, inode) => {
                names.remove(&from);
                names.insert(to, inode);
            }
            Self::Remove(file) => drop(names.remove(&file)),
        }
    }
}

/// The disk of one shard.
#[derive(Debug)]
pub struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<FileName, usize>,
    durable_names: BTreeMap<FileName, usize>,
    name_ops: Vec<NameOp>,
    in_flight: Option<FrameWrite>,
    /// Frames that were reported durable, the newest last.
    frames: VecDeque<FramePlace>,
    sabotage: Option<Sabotage>,
    is_full: bool,
    rates: FaultRates,
    /// No new faults: what is there already stays.
    is_calm: bool,
    dice: RefCell<Random>,
    read_errors: Cell<u64>,
    counts: Counts,
}

/// What an injected failure says.
fn io_error() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

/// Whether the fault was injected; all others are the engine's.
pub fn is_injected(fault: &DiskFault) -> bool {
    matches!(fault, DiskFault::Failed { source, .. } if source.raw_os_error() == Some(libc::EIO))
}

impl Disk {
    /// An empty disk.
    pub fn new(sabotage: Option<Sabotage>, rates: FaultRates, dice: Random) -> Self {
        Self {
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_ops: Vec::new(),
            in_flight: None,
            frames: VecDeque::new(),
            sabotage,
            is_full: false,
            rates,
            is_calm: true,
            dice: RefCell::new(dice),
            read_errors: Cell::new(0),
            counts: Counts::default(),
        }
    }

    /// Whether files can grow.
    pub fn set_full(&mut self, is_full: bool) {
        self.is_full = is_full;
    }

    /// Whether files cannot grow.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Whether new faults come.
    pub fn set_calm(&mut self, is_calm: bool) {
        self.is_calm = is_calm;
    }

    /// Faults so far.
    pub fn counts(&self) -> Counts {
        Counts { read_errors: self.read_errors.get(), ..self.counts }
    }

    fn rolls(&self, one_in: u64) -> bool {
        !self.is_calm && one_in > 0 && self.dice.borrow_mut().one_in(one_in)
    }

    /// Whether a read fails now and may work the next time.
    pub fn fails_to_read(&self) -> bool {
        let fails = self.rolls(self.rates.read_error);
        self.read_errors.set(self.read_errors.get() + u64::from(fails));
        fails
    }

    /// Dice of their own for what needs the rest of the disk meanwhile.
    fn fork_dice(&mut self) -> Random {
        Random::new(self.dice.get_mut().bits())
    }

    /// A frame is on its way to the disk.
    pub fn begin_frame(&mut self, write: FrameWrite) {
        assert!(self.in_flight.is_none(), "at most one frame is in flight");
        self.in_flight = Some(write);
    }

    /// Puts a frame into the disk's cache and no further: a sabotage.
    pub fn cache_frame(&mut self, write: &FrameWrite) -> Result<(), String> {
        let file = segment::file_name(write.segment);
        let inode = self.inode_mut(&file).ok_or_else(|| format!("{file} is not there"))?;
        inode.write(write.offset as usize, &write.bytes);
        Ok(())
    }

    /// The frame on its way is durable, or its write failed.
    pub fn finish_frame(&mut self) -> Result<Result<FrameWrite, DiskFault>, String> {
        let write = self.in_flight.take().ok_or("no frame was in flight")?;
        let file = segment::file_name(write.segment);
        let (offset, end) = (write.offset as usize, write.offset as usize + write.bytes.len());
        let inode = self.inode_mut(&file).ok_or_else(|| format!("{file} is not there"))?;
        if end > inode.durable_size {
            return Err(format!("a frame at {offset} ends behind the durable end of {file}"));
        }
        if self.rolls(self.rates.error) {
            return Ok(Err(self.fail_frame(&file, &write)));
        }
        let inode = self.inode_mut(&file).expect("it was there");
        let old = inode.data[offset..end].to_vec();
        inode.write_through(offset, &write.bytes);
        self.remember_frame(&file, offset..end, write.kind);
        if self.rolls(self.rates.silent) {
            self.lose_write(&file, offset, &old, &write.bytes);
        }
        Ok(Ok(write))
    }

    /// The write of a frame fails, or ends short: some of it is there.
    fn fail_frame(&mut self, file: &FileName, write: &FrameWrite) -> DiskFault {
        let mut dice = self.fork_dice();
        let is_short = dice.one_in(2);
        let kept = dice.choose(&[0, 50, 100]);
        let count = write.bytes.len() / SECTOR_SIZE;
        let prefix = dice.between(0, count as u64 - 1) as usize;
        if let Some(inode) = self.inode_mut(file) {
            for (index, sector) in write.bytes.chunks(SECTOR_SIZE).enumerate() {
                if if is_short { index < prefix } else { dice.percent(kept) } {
                    inode.write(write.offset as usize + index * SECTOR_SIZE, sector);
                }
            }
        }
        match is_short {
            true => self.counts.short_writes += 1,
            false => self.counts.write_errors += 1,
        }
        DiskFault::Failed { operation: "write", file: file.clone(), source: io_error() }
    }

    fn remember_frame(&mut self, file: &FileName, range: Range<usize>, kind: FrameKind) {
        if self.frames.len() == FRAMES_MAX {
            self.frames.pop_front();
        }
        self.frames.push_back(FramePlace { file: file.clone(), range, kind });
    }

    /// A write that was reported done is undone, and perhaps its bytes are put elsewhere.
    fn lose_write(&mut self, file: &FileName, offset: usize, old: &[u8], bytes: &[u8]) {
        if self.is_damaged() {
            return;
        }
        let mut dice = self.fork_dice();
        let inode = self.inode_mut(file).expect("it was written");
        inode.drop_write(&(offset..offset + bytes.len()), old, &mut dice);
        if dice.one_in(2) {
            self.counts.dropped_writes += 1;
        } else {
            self.counts.misdirected_writes += 1;
            let other = match dice.one_in(2) {
                true => file.clone(),
                false => self.random_file(&mut dice).unwrap_or_else(|| file.clone()),
            };
            let inode = self.inode_mut(&other).expect("it has a name");
            let blocks = inode.data.len() / BLOCK_SIZE;
            let at = dice.below(blocks.max(1) as u64) as usize * BLOCK_SIZE;
            let is_own = other == *file && at < offset + bytes.len() && offset < at + bytes.len();
            if !is_own {
                inode.overwrite(at, bytes);
            }
        }
    }

    fn random_file(&self, dice: &mut Random) -> Option<FileName> {
        let files: Vec<&FileName> = (self.names.iter())
            .filter(|(_, inode)| !self.inodes[**inode].data.is_empty())
            .map(|(file, _)| file)
            .collect();
        if files.is_empty() { None } else { Some(dice.choose(&files).clone()) }
    }

    /// Damage comes by itself, in a frame, an extent or anywhere. Returns where.
    pub fn rot(&mut self, rot: Rot) -> Option<(FileName, usize)> {
        if self.is_damaged() || self.is_calm {
            return None;
        }
        let mut dice = self.fork_dice();
        let frames: Vec<FramePlace> = (self.frames.iter())
            .filter(|frame| self.names.contains_key(&frame.file))
            .cloned()
            .collect();
        let extents: Vec<FileName> =
            self.names.keys().filter(|file| file.0.ends_with(EXTENT_SUFFIX)).cloned().collect();
        let (file, range) = match dice.below(3) {
            0 if !frames.is_empty() => {
                let frame = dice.choose(&frames);
                (frame.file, frame.range)
            }
            place => {
                let file = match place == 1 && !extents.is_empty() {
                    true => dice.choose(&extents),
                    false => self.random_file(&mut dice)?,
                };
                let size = self.inode_mut(&file)?.data.len();
                (file, 0..size)
            }
        };
        if range.is_empty() {
            return None;
        }
        let at = dice.between(range.start as u64, range.end as u64 - 1) as usize;
        let bit = dice.below(8) as u8;
        let inode = self.inode_mut(&file)?;
        match rot {
            Rot::Flip => {
                inode.flip(at, bit);
                self.counts.flipped_bits += 1;
            }
            Rot::Unreadable => {
                inode.lose_sector(at);
                self.counts.unreadable_sectors += 1;
            }
        }
        Some((file, at))
    }

    /// From the first damage of a file to its last, in bytes; `None` if it is what was written.
    pub fn damage_of(&self, file: &FileName) -> Option<Range<usize>> {
        let inode = &self.inodes[*self.names.get(file)?];
        inode.damage_in(&(0..inode.data.len()))
    }

    /// Whether any file that has a name holds something else than what was written.
    pub fn is_damaged(&self) -> bool {
        self.names.keys().any(|file| self.damage_of(file).is_some())
    }

    /// The operator restores every file from a copy.
    pub fn repair(&mut self) {
        for inode in &mut self.inodes {
            let all = 0..inode.data.len();
            inode.repair(&all);
        }
    }

    /// Damage to the last frames that leaves no trace cannot be told from a torn write, as
    /// `docs/GUARANTEES.md` says; it is taken back here. Returns whether there was such damage.
    fn settle_doubt(&mut self) {
        let frames: Vec<FramePlace> = self.frames.iter().rev().cloned().collect();
        let is_damaged = |disk: &Self, frame: &FramePlace| {
            let inode = disk.names.get(&frame.file).map(|inode| &disk.inodes[*inode]);
            inode.is_some_and(|inode| inode.damage_in(&frame.range).is_some())
        };
        let doubtful: Vec<FramePlace> =
            frames.into_iter().take_while(|frame| is_damaged(self, frame)).collect();
        // An idle frame or a seal alone carries nothing that could be missed.
        let is_harmless = matches!(
            &doubtful[..],
            [] | [FramePlace { kind: FrameKind::Idle | FrameKind::Seal, .. }]
        );
        if is_harmless {
            return;
        }
        self.counts.doubtful_frames += 1;
        for frame in doubtful {
            if let Some(inode) = self.inode_mut(&frame.file) {
                inode.repair(&frame.range);
            }
        }
    }

    /// The machine ends here; what is left is what the next start finds.
    pub fn crash(&mut self, crash: Crash, random: &mut Random) {
        self.settle_doubt();
        self.crash_frame(crash, random);
        if crash == Crash::Kill {
            return;
        }
        let mut names = std::mem::take(&mut self.durable_names);
        let ops = std::mem::take(&mut self.name_ops);
        for is_wal in [true, false] {
            let ops: Vec<NameOp> = ops.iter().filter(|op| op.is_wal() == is_wal).cloned().collect();
            let prefix = random.between(0, ops.len() as u64) as usize;
            let is_set = random.one_in(2);
            for (index, op) in ops.into_iter().enumerate() {
                if if is_set { random.one_in(2) } else { index < prefix } {
                    op.apply(&mut names);
                }
            }
        }
        // Inodes without a name are gone; the others are numbered anew.
        let mut inodes = Vec::new();
        let mut numbers = BTreeMap::new();
        for inode in names.values_mut() {
            *inode = *numbers.entry(*inode).or_insert_with(|| {
                inodes.push(std::mem::take(&mut self.inodes[*inode]));
                inodes.len() - 1
            });
        }
        for inode in &mut inodes {
            inode.lose_power(random);
        }
        self.inodes = inodes;
        self.durable_names = names.clone();
        self.names = names;
    }

    fn crash_frame(&mut self, crash: Crash, random: &mut Random) {
        let Some(write) = self.in_flight.take() else { return };
        let kept = match crash {
            Crash::Power => random.choose(&[0, 100, 50, 90]),
            Crash::Kill => random.choose(&[0, 100]),
        };
        let file = segment::file_name(write.segment);
        let Some(inode) = self.inode_mut(&file) else { return };
        for (index, sector) in write.bytes.chunks(SECTOR_SIZE).enumerate() {
            let offset = write.offset as usize + index * SECTOR_SIZE;
            match crash {
                _ if !random.percent(kept) => {}
                Crash::Power => inode.write_through(offset, sector),
                // Volatile: it is in a cache, and a loss of power then takes it or not.
                Crash::Kill => inode.write(offset, sector),
            }
        }
    }

    /// What the runtime does before recovery: both directories are synced.
    pub fn prepare_open(&mut self) {
        self.sync_names(Place::Wal);
        self.sync_names(Place::Data);
    }

    fn sync_names(&mut self, place: Place) {
        for op in std::mem::take(&mut self.name_ops) {
            if op.is_wal() == (place == Place::Wal) {
                op.apply(&mut self.durable_names);
            } else {
                self.name_ops.push(op);
            }
        }
        let used: BTreeSet<usize> =
            self.names.values().chain(self.durable_names.values()).copied().collect();
        for (index, inode) in self.inodes.iter_mut().enumerate() {
            if !inode.data.is_empty() && !used.contains(&index) {
                *inode = Inode::default();
            }
        }
    }

    /// A file's bytes as they are now; they outlive its name.
    pub fn map(&self, file: &FileName) -> Option<Arc<Vec<u8>>> {
        self.names.get(file).map(|inode| self.inodes[*inode].data.clone())
    }

    /// Fails if the range of the file has a sector that cannot be read.
    pub fn populate(&self, file: &FileName, range: &Range<usize>) -> io::Result<()> {
        let inode = self.names.get(file).map(|inode| &self.inodes[*inode]);
        match inode.is_some_and(|inode| inode.is_unreadable(range)) {
            true => Err(io_error()),
            false => Ok(()),
        }
    }

    fn inode_mut(&mut self, file: &FileName) -> Option<&mut Inode> {
        self.names.get(file).map(|inode| &mut self.inodes[*inode])
    }

    fn existing(
        &mut self,
        operation: &'static str,
        file: &FileName,
    ) -> Result<&mut Inode, DiskFault> {
        self.inode_mut(file).ok_or_else(|| DiskFault::Failed {
            operation,
            file: file.clone(),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    fn write(&mut self, file: &FileName, offset: u64, bytes: &[u8]) -> Result<(), DiskFault> {
        assert!(offset.is_multiple_of(BLOCK_SIZE as u64), "direct writes are aligned");
        let is_full = self.is_full;
        let inode = self.existing("write", file)?;
        let offset = offset as usize;
        assert!(offset <= inode.data.len() || !file.0.ends_with(".ext"), "no holes");
        if is_full && offset + bytes.len() > inode.data.len() {
            return Err(DiskFault::Full { file: file.clone() });
        }
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(BLOCK_SIZE), 0);
        inode.write(offset, &padded);
        Ok(())
    }

    /// A write that may be lost on the way.
    fn write_or_lose(
        &mut self,
        file: &FileName,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), DiskFault> {
        let is_lost = self.rolls(self.rates.silent);
        let start = offset as usize;
        let end = (start + bytes.len()).next_multiple_of(BLOCK_SIZE);
        let old = match self.inode_mut(file) {
            Some(inode) if is_lost => {
                inode.data[start.min(inode.data.len())..end.min(inode.data.len())].to_vec()
            }
            Some(_) | None => Vec::new(),
        };
        self.write(file, offset, bytes)?;
        if offset > 0 && matches!(segment::parse_name(file), NameKind::Segment(_)) {
            self.remember_frame(file, start..end, FrameKind::Seal);
        }
        if is_lost {
            let mut padded = bytes.to_vec();
            padded.resize(end - start, 0);
            self.lose_write(file, start, &old, &padded);
        }
        Ok(())
    }

    /// An operation fails: some of a write is there, a failed sync has lost some of what it was to
    /// keep, and nothing else is done.
    fn fail(&mut self, op: &DiskOp) -> DiskFault {
        let mut dice = self.fork_dice();
        let (operation, file) = match op {
            DiskOp::Create { file } => ("creation", file.clone()),
            DiskOp::Write { file, offset, pieces } => {
                let bytes = pieces.concat();
                let kept = dice.below(bytes.len() as u64 + 1) as usize / BLOCK_SIZE * BLOCK_SIZE;
                let _ = self.write(file, *offset, &bytes[..kept]);
                ("write", file.clone())
            }
            DiskOp::Zero { file, .. } => ("write", file.clone()),
            DiskOp::Sync { file } | DiskOp::Drain { file } => {
                if let Some(inode) = self.inode_mut(file) {
                    inode.lose_power(&mut dice);
                }
                ("sync", file.clone())
            }
            DiskOp::Rename { from, .. } => ("rename", from.clone()),
            DiskOp::Remove { file } => ("removal", file.clone()),
            DiskOp::SyncDirectory { place } => ("sync", FileName(format!("{place:?}").into())),
        };
        match operation {
            "sync" => self.counts.sync_errors += 1,
            "write" => self.counts.write_errors += 1,
            _ => self.counts.name_errors += 1,
        }
        DiskFault::Failed { operation, file, source: io_error() }
    }
}

impl Storage for Disk {
    fn list(&self) -> io::Result<Vec<(FileName, u64)>> {
        let size = |inode: &usize| self.inodes[*inode].data.len() as u64;
        Ok(self.names.iter().map(|(file, inode)| (file.clone(), size(inode))).collect())
    }

    fn read(&self, file: &FileName, offset: u64, size: usize) -> io::Result<Bytes> {
        let data = self.map(file).ok_or(io::ErrorKind::NotFound)?;
        let start = data.len().min(offset as usize);
        let end = data.len().min(start.saturating_add(size));
        self.populate(file, &(start..end))?;
        Ok(Bytes::from_owner(Mapped(data)).slice(start..end))
    }

    fn perform(&mut self, op: &DiskOp) -> Result<(), DiskFault> {
        if self.rolls(self.rates.error) {
            return Err(self.fail(op));
        }
        match op {
            DiskOp::Create { file } => {
                if self.is_full && !self.names.contains_key(file) {
                    return Err(DiskFault::Full { file: file.clone() });
                }
                self.inodes.push(Inode::default());
                let inode = self.inodes.len() - 1;
                self.names.insert(file.clone(), inode);
                self.name_ops.push(NameOp::Add(file.clone(), inode));
            }
            DiskOp::Write { file, offset, pieces } => match &pieces[..] {
                [piece] => self.write_or_lose(file, *offset, piece)?,
                pieces => self.write_or_lose(file, *offset, &pieces.concat())?,
            },
            DiskOp::Zero { file, offset, size } => {
                self.write(file, *offset, &vec![0; *size as usize])?;
            }
            DiskOp::Sync { file } => {
                let is_skipped = self.sabotage == Some(Sabotage::SkipFileSync);
                let inode = self.existing("sync", file)?;
                if !is_skipped {
                    inode.sync();
                }
            }
            DiskOp::Drain { file } => {
                self.existing("sync", file)?;
            }
            DiskOp::Rename { from, to } => {
                self.existing("rename", from)?;
                let inode = self.names.remove(from).expect("it is there");
                self.names.insert(to.clone(), inode);
                self.name_ops.push(NameOp::Rename(from.clone(), to.clone(), inode));
            }
            DiskOp::Remove { file } => {
                if self.names.remove(file).is_some() {
                    self.name_ops.push(NameOp::Remove(file.clone()));
                }
            }
            DiskOp::SyncDirectory { place } => {
                if self.sabotage != Some(Sabotage::SkipDirectorySync) {
                    self.sync_names(*place);
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Mapped(Arc<Vec<u8>>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
