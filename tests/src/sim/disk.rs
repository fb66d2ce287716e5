//! A shard's disk with the faults that real ones have.
//!
//! What is written stays volatile until it is synced: a crash keeps each 512-byte sector of it, or
//! not. Sizes of files are volatile in the same way. Names (creations, renames, removals) are
//! volatile until their directory is synced, and a crash keeps a prefix of them or any set. A frame
//! write is durable once it completed; in flight at a crash, any set of its sectors is there.
//!
//! A kill of the process is kinder: what was written stays, still volatile, until recovery reads
//! the file, which syncs it as [`Storage::read`] promises.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_wal::commit::FrameWrite;
use tidemill_wal::disk::{DiskFault, DiskOp, Place, Storage};
use tidemill_wal::format::FileName;
use tidemill_wal::limits::BLOCK_SIZE;
use tidemill_wal::segment;

use super::random::Random;

/// What a disk writes whole or not at all.
const SECTOR_SIZE: usize = 512;

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

#[derive(Debug, Clone, Default)]
struct Inode {
    data: Arc<Vec<u8>>,
    /// Bytes of it that are durable as a size; what is behind them is volatile.
    durable_size: usize,
    /// Durable content of the sectors that were overwritten since the last sync.
    before: BTreeMap<usize, [u8; SECTOR_SIZE]>,
}

impl Inode {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        let first = offset / SECTOR_SIZE;
        let last = end.min(self.durable_size).div_ceil(SECTOR_SIZE);
        for sector in first..last {
            let at = sector * SECTOR_SIZE;
            self.before.entry(sector).or_insert_with(|| {
                self.data[at..at + SECTOR_SIZE].try_into().expect("a whole sector")
            });
        }
        let data = Arc::make_mut(&mut self.data);
        if data.len() < end {
            data.resize(end, 0);
        }
        data[offset..end].copy_from_slice(bytes);
    }

    fn sync(&mut self) {
        self.durable_size = self.data.len();
        self.before.clear();
    }

    fn lose_power(&mut self, random: &mut Random) {
        if self.before.is_empty() && self.durable_size == self.data.len() {
            return;
        }
        // Nothing of it, all of it, or any sectors.
        let kept = random.choose(&[0, 100, 50, 90]);
        let blocks = (self.data.len() - self.durable_size) / BLOCK_SIZE;
        let size = match kept {
            0 => self.durable_size,
            100 => self.data.len(),
            _ => self.durable_size + random.between(0, blocks as u64) as usize * BLOCK_SIZE,
        };
        let durable_size = self.durable_size;
        let data = Arc::make_mut(&mut self.data);
        for (sector, before) in std::mem::take(&mut self.before) {
            if !random.percent(kept) {
                data[sector * SECTOR_SIZE..(sector + 1) * SECTOR_SIZE].copy_from_slice(&before);
            }
        }
        data.truncate(size);
        if kept != 100 {
            for sector in data[durable_size..].chunks_mut(SECTOR_SIZE) {
                if !random.percent(kept) {
                    sector.fill(0);
                }
            }
        }
        self.durable_size = data.len();
    }
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
#[derive(Debug, Clone, Default)]
pub struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<FileName, usize>,
    durable_names: BTreeMap<FileName, usize>,
    name_ops: Vec<NameOp>,
    in_flight: Option<FrameWrite>,
    sabotage: Option<Sabotage>,
    is_full: bool,
}

impl Disk {
    /// An empty disk.
    pub fn new(sabotage: Option<Sabotage>) -> Self {
        Self { sabotage, ..Self::default() }
    }

    /// Whether files can grow.
    pub fn set_full(&mut self, is_full: bool) {
        self.is_full = is_full;
    }

    /// Whether files cannot grow.
    pub fn is_full(&self) -> bool {
        self.is_full
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

    /// The frame on its way is durable.
    pub fn finish_frame(&mut self) -> Result<FrameWrite, String> {
        let write = self.in_flight.take().ok_or("no frame was in flight")?;
        let file = segment::file_name(write.segment);
        let inode = self.inode_mut(&file).ok_or_else(|| format!("{file} is not there"))?;
        let (offset, end) = (write.offset as usize, write.offset as usize + write.bytes.len());
        if end > inode.durable_size {
            return Err(format!("a frame at {offset} ends behind the durable end of {file}"));
        }
        Arc::make_mut(&mut inode.data)[offset..end].copy_from_slice(&write.bytes);
        inode.before.retain(|sector, _| {
            let at = sector * SECTOR_SIZE;
            at < offset || at >= end
        });
        Ok(write)
    }

    /// The machine ends here; what is left is what the next start finds.
    pub fn crash(&mut self, crash: Crash, random: &mut Random) {
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
            if random.percent(kept) {
                // Volatile: a kill leaves it in a cache, and a loss of power then takes it or not.
                inode.write(write.offset as usize + index * SECTOR_SIZE, sector);
            }
        }
        if crash == Crash::Power {
            inode.sync();
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

    /// Every name, in order.
    pub fn names(&self) -> impl Iterator<Item = &FileName> {
        self.names.keys()
    }

    /// Damages one bit of a file, durably.
    pub fn flip(&mut self, file: &FileName, at: usize, bit: u8) {
        let inode = self.inode_mut(file).expect("the file is there");
        Arc::make_mut(&mut inode.data)[at] ^= 1 << bit;
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
        Ok(Bytes::from_owner(Mapped(data)).slice(start..end))
    }

    fn perform(&mut self, op: &DiskOp) -> Result<(), DiskFault> {
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
                [piece] => self.write(file, *offset, piece)?,
                pieces => self.write(file, *offset, &pieces.concat())?,
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

/// A disk during recovery, which may be cut short after any operation.
pub struct Opening<'a> {
    /// The disk.
    pub disk: &'a mut Disk,
    /// Operations until the machine ends once more; never if `None`.
    pub ops_until_crash: Option<u64>,
    /// Files that recovery read, and that are therefore synced.
    pub read: std::cell::RefCell<BTreeSet<FileName>>,
}

impl Opening<'_> {
    /// The machine ended during recovery.
    pub fn is_crashed(&self) -> bool {
        self.ops_until_crash == Some(0)
    }

    /// What recovery read is durable.
    fn sync_read(&mut self) {
        for file in self.read.take() {
            if let Some(inode) = self.disk.inode_mut(&file) {
                inode.sync();
            }
        }
    }
}

impl Storage for Opening<'_> {
    fn list(&self) -> io::Result<Vec<(FileName, u64)>> {
        self.disk.list()
    }

    fn read(&self, file: &FileName, offset: u64, size: usize) -> io::Result<Bytes> {
        self.read.borrow_mut().insert(file.clone());
        self.disk.read(file, offset, size)
    }

    fn perform(&mut self, op: &DiskOp) -> Result<(), DiskFault> {
        self.sync_read();
        match &mut self.ops_until_crash {
            Some(0) => {
                let (operation, file) = ("anything", FileName("a machine without power".into()));
                let source = io::ErrorKind::Other.into();
                return Err(DiskFault::Failed { operation, file, source });
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let is_seal =
            |file: &FileName| matches!(segment::parse_name(file), segment::NameKind::Segment(_));
        match op {
            DiskOp::Write { file, .. }
                if is_seal(file) && self.disk.sabotage == Some(Sabotage::SkipStartSeal) =>
            {
                Ok(())
            }
            op => self.disk.perform(op),
        }
    }
}
