//! Reads an extent that lies in memory, mapped or copied, and checks what it touches.

use std::cell::Cell;
use std::io;
use std::ops::Range;

use zerocopy::FromBytes;

use super::{
    DirectoryEntry, EXTENT_FORMAT_VERSION, ExtentHeader, IndexEntry, MAGIC, Run, shared_name,
    single_name,
};
use crate::batch::BatchHead;
use crate::block;
use crate::damage::Damage;
use crate::format::{FileName, PartitionId, ShardId, TopicId};
use crate::limits::BLOCK_SIZE;
use crate::mutation::{self, Mutation};

/// Called with every range before it is touched. A map reads the pages in here, so that a media
/// error is an error and not a signal.
pub type Populate<'a> = &'a dyn Fn(Range<usize>) -> io::Result<()>;

/// Where a read begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// At the batch that holds this offset, or at the next one if it is in a gap.
    Offset(u64),
    /// At the first batch whose largest timestamp is at least this, in milliseconds.
    Time(i64),
}

/// One run in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtentRun {
    /// What and where.
    pub run: Run,
    /// Batches in it.
    pub batch_count: u64,
    /// Pieces it is checksummed in.
    pub piece_count: u32,
}

/// A whole extent in memory. Header and directory were checked; the rest is checked when touched.
pub struct ExtentView<'a> {
    bytes: &'a [u8],
    populate: Populate<'a>,
    header: &'a ExtentHeader,
    directory: &'a [DirectoryEntry],
}

impl<'a> ExtentView<'a> {
    /// Opens bytes that can be touched freely.
    pub fn open(bytes: &'a [u8]) -> Result<Self, Damage> {
        Self::open_with(bytes, &|_| Ok(()))
    }

    /// Opens bytes that are populated before they are touched.
    pub fn open_with(bytes: &'a [u8], populate: Populate<'a>) -> Result<Self, Damage> {
        let cut = || Damage::new(bytes.len() as u64, "the file is cut short");
        if bytes.len() < BLOCK_SIZE {
            return Err(cut());
        }
        touch(populate, 0..BLOCK_SIZE)?;
        let header = block::open_block::<ExtentHeader>(bytes, 0, |header| header.magic == MAGIC)?;
        if header.version.get() != EXTENT_FORMAT_VERSION {
            let why =
                format!("format {}, this build reads {EXTENT_FORMAT_VERSION}", header.version);
            return Err(Damage::new(0, why));
        }
        if header.reserved != [0; 56] {
            return Err(Damage::new(0, "reserved bytes are not zero"));
        }
        if header.file_size.get() != bytes.len() as u64 {
            let why = format!("{} bytes long, should be {}", bytes.len(), header.file_size);
            return Err(Damage::new(bytes.len() as u64, why));
        }
        let position = header.directory_position.get();
        let tail = usize::try_from(position).ok().filter(|from| *from <= bytes.len());
        let from = tail.ok_or_else(cut)?;
        touch(populate, from..bytes.len())?;
        let count = header.run_count.get() as usize;
        let (directory, padding) =
            <[DirectoryEntry]>::ref_from_prefix_with_elems(&bytes[from..], count)
                .map_err(|_| cut())?;
        let end = bytes.len() - padding.len();
        if crc32c::crc32c(&bytes[from..end]) != header.directory_checksum.get() {
            return Err(Damage::new(position, "directory checksum is wrong"));
        }
        if padding.len() >= BLOCK_SIZE || padding.iter().any(|byte| *byte != 0) {
            return Err(Damage::new(end as u64, "padding is not zero"));
        }
        let view = Self { bytes, populate, header, directory };
        view.check_directory()?;
        Ok(view)
    }

    /// Opens the bytes of a file by its name. What a drive wrote to the wrong place may be a whole
    /// extent, but it is another one.
    pub fn open_named(
        bytes: &'a [u8],
        populate: Populate<'a>,
        shard: ShardId,
        file: &FileName,
    ) -> Result<Self, Damage> {
        let view = Self::open_with(bytes, populate)?;
        if view.shard() != shard || view.file_name() != *file {
            let why = format!("it holds {} of shard {}", view.file_name(), view.shard().0);
            return Err(Damage::new(0, why));
        }
        Ok(view)
    }

    /// The name of the file that it was made for.
    pub fn file_name(&self) -> FileName {
        match self.directory {
            [run] => {
                let partition =
                    PartitionId { topic: TopicId(run.topic), index: run.partition.get() };
                single_name(partition, run.base.get(), self.generation())
            }
            _ => shared_name(self.id(), self.generation()),
        }
    }

    /// Whose.
    pub fn shard(&self) -> ShardId {
        ShardId(self.header.shard.get())
    }

    /// Number of the extent.
    pub fn id(&self) -> u64 {
        self.header.id.get()
    }

    /// See [`super::ExtentSpec::generation`].
    pub fn generation(&self) -> u32 {
        self.header.generation.get()
    }

    /// The runs, sorted by partition and base offset.
    pub fn runs(&self) -> impl Iterator<Item = ExtentRun> {
        self.directory.iter().map(|entry| ExtentRun {
            run: entry.run(),
            batch_count: entry.batch_count.get(),
            piece_count: entry.index_count.get(),
        })
    }

    /// Finds whole batches of a partition, checked, one after the other in one run: from the first
    /// that fits `from`, as many as `bytes_max` allows and at least one. `None` if none fits.
    pub fn read(
        &self,
        partition: PartitionId,
        from: ReadFrom,
        bytes_max: usize,
    ) -> Result<Option<Range<usize>>, Damage> {
        let mut all: Option<Range<usize>> = None;
        let mut from = from;
        loop {
            let size = all.as_ref().map_or(0, Range::len);
            let room = bytes_max.saturating_sub(size);
            if all.is_some() && room == 0 {
                return Ok(all);
            }
            let Some(pieces) = self.locate(partition, from, room)? else { return Ok(all) };
            let place = pieces.range();
            touch(self.populate, place.clone())?;
            let found = pieces.find(&self.bytes[place.clone()])?;
            let found = found.map(|found| place.start + found.start..place.start + found.end);
            match (&mut all, found) {
                (None, found) => all = found,
                (Some(all), Some(found)) if found.start == all.end && found.len() <= room => {
                    all.end = found.end;
                }
                (Some(_), _) => return Ok(all),
            }
            // What was cut inside a piece is all that fits.
            if all.as_ref().is_some_and(|all| all.end < place.end) {
                return Ok(all);
            }
            let Some(next) = pieces.next_offset else { return Ok(all) };
            from = ReadFrom::Offset(next);
        }
    }

    /// The first pieces that [`Self::read`] touches, to be read by other means: as many as fit
    /// `bytes_max`, at least one. `None` if nothing fits `from`.
    pub fn locate(
        &self,
        partition: PartitionId,
        from: ReadFrom,
        bytes_max: usize,
    ) -> Result<Option<Pieces>, Damage> {
        let first = self.directory.partition_point(|entry| entry.run().partition < partition);
        let mut runs =
            self.directory[first..].iter().take_while(|entry| entry.run().partition == partition);
        let run = runs.find(|entry| match from {
            ReadFrom::Offset(offset) => entry.end.get() > offset,
            ReadFrom::Time(time) => entry.max_timestamp_ms.get() >= time,
        });
        let Some(run) = run else { return Ok(None) };
        let index = self.index(run)?;
        let first = match from {
            ReadFrom::Offset(offset) => {
                index.partition_point(|entry| entry.offset.get() <= offset).saturating_sub(1)
            }
            ReadFrom::Time(time) => {
                index.partition_point(|entry| entry.max_timestamp_ms.get() < time)
            }
        };
        let mut size = 0;
        let fitting = index[first..].iter().take_while(|entry| {
            size += entry.size.get() as usize;
            size <= bytes_max
        });
        let end = first + fitting.count().max(1);
        let Some(entries) = index.get(first..end).map(<[IndexEntry]>::to_vec) else {
            return Ok(None);
        };
        let next_offset = index.get(end).map(|next| next.offset.get());
        Ok(Some(Pieces { entries, next_offset, from, bytes_max }))
    }

    /// Every batch of a run with its place in the file, each after its piece was checked. Ends at
    /// the first damage.
    pub fn batches(
        &self,
        run: &Run,
    ) -> impl Iterator<Item = Result<(Range<usize>, BatchHead), Damage>> {
        let entry = self.directory.iter().find(|entry| entry.run() == *run);
        let (index, missing) = match entry.map(|entry| self.index(entry)) {
            Some(Ok(index)) => (index, None),
            Some(Err(damage)) => (&[][..], Some(damage)),
            None => (&[][..], Some(Damage::new(run.position, "no such run in the file"))),
        };
        let is_over = Cell::new(false);
        let pieces = index.iter().flat_map(move |entry| {
            let fault = self.check_piece(entry).err();
            let batches = fault.is_none().then(|| self.batches_of(entry)).into_iter().flatten();
            batches.chain(fault.map(Err))
        });
        let stop_after = move |batch: Result<_, _>| {
            let ended = is_over.replace(is_over.get() || batch.is_err());
            (!ended).then_some(batch)
        };
        missing.map(Err).into_iter().chain(pieces).map_while(stop_after)
    }

    /// The batches of a run that are still what was written, for whoever has to give up the rest:
    /// pieces that are damaged are left out, all of them if the index is.
    pub fn intact_batches(&self, run: &Run) -> Vec<(Range<usize>, BatchHead)> {
        let entry = self.directory.iter().find(|entry| entry.run() == *run);
        let Some(Ok(index)) = entry.map(|entry| self.index(entry)) else { return Vec::new() };
        let intact = index.iter().filter(|piece| self.check_piece(piece).is_ok());
        intact.flat_map(|piece| self.batches_of(piece).map_while(Result::ok)).collect()
    }

    /// Checks everything and reports every fault with its position.
    pub fn verify(&self, report: &mut dyn FnMut(Damage)) {
        self.verify_range(0..self.bytes.len() as u64, report);
    }

    /// Checks every piece that begins in the range, and the index of every run that does.
    pub fn verify_range(&self, range: Range<u64>, report: &mut dyn FnMut(Damage)) {
        for run in self.directory {
            let run_range = run.position.get()..run.position.get() + run.size.get();
            if run_range.start >= range.end || run_range.end <= range.start {
                continue;
            }
            match self.index(run) {
                Ok(index) => self.verify_run(run, index, &range, report),
                Err(damage) => report(damage),
            }
        }
    }

    fn verify_run(
        &self,
        run: &DirectoryEntry,
        index: &'a [IndexEntry],
        range: &Range<u64>,
        report: &mut dyn FnMut(Damage),
    ) {
        let mut offset_next = 0;
        for (number, entry) in index.iter().enumerate() {
            if !range.contains(&entry.position.get()) {
                continue;
            }
            if let Err(damage) = self.check_piece(entry) {
                report(damage);
                continue;
            }
            let offset_end = index.get(number + 1).map_or(run.end.get(), |next| next.offset.get());
            for (at, batch) in self.batches_of(entry).enumerate() {
                let head = match batch {
                    Ok((_, head)) => head,
                    Err(damage) => {
                        report(damage);
                        break;
                    }
                };
                let begins = at > 0 || head.base_offset == entry.offset.get();
                if !begins || head.base_offset < offset_next || head.last_offset >= offset_end {
                    report(Damage::new(entry.position.get(), "offsets are out of order"));
                    break;
                }
                offset_next = head.last_offset + 1;
            }
        }
    }

    /// The index of a run, checked.
    fn index(&self, run: &DirectoryEntry) -> Result<&'a [IndexEntry], Damage> {
        let position = run.index_position.get();
        let count = run.index_count.get() as usize;
        // `check_directory` made sure that this is inside the file.
        let range = position as usize..position as usize + count * size_of::<IndexEntry>();
        touch(self.populate, range.clone())?;
        let bytes = &self.bytes[range];
        if crc32c::crc32c(bytes) != run.index_checksum.get() {
            return Err(Damage::new(position, "index checksum is wrong"));
        }
        let index = <[IndexEntry]>::ref_from_bytes(bytes)
            .map_err(|_| Damage::new(position, "index of an impossible size"))?;
        let wrong = || Damage::new(position, "index and directory do not belong together");
        let mut at = run.position.get();
        let mut last: Option<&IndexEntry> = None;
        for entry in index {
            let follows = last.is_none_or(|last| {
                last.offset.get() < entry.offset.get()
                    && last.max_timestamp_ms.get() <= entry.max_timestamp_ms.get()
            });
            if entry.position.get() != at || entry.size.get() == 0 || !follows {
                return Err(wrong());
            }
            at = at.checked_add(entry.size.get().into()).ok_or_else(wrong)?;
            last = Some(entry);
        }
        let fits = at == run.position.get() + run.size.get()
            && index.first().is_some_and(|first| first.offset == run.base);
        if fits { Ok(index) } else { Err(wrong()) }
    }

    fn check_piece(&self, entry: &IndexEntry) -> Result<(), Damage> {
        let range = piece_range(entry);
        touch(self.populate, range.clone())?;
        check_piece(entry, &self.bytes[range])
    }

    /// Walks the batches of a checked piece.
    fn batches_of(
        &self,
        entry: &IndexEntry,
    ) -> impl Iterator<Item = Result<(Range<usize>, BatchHead), Damage>> + use<'a> {
        let range = piece_range(entry);
        batches_of(&self.bytes[range.clone()], range.start)
    }

    /// Every number in the directory makes sense, so that reading need not ask again.
    fn check_directory(&self) -> Result<(), Damage> {
        let header = self.header;
        let position = header.directory_position.get();
        let wrong = |why: &'static str| Err(Damage::new(position, why));
        let mut data = BLOCK_SIZE as u64;
        if data.checked_add(header.data_size.get()) != Some(header.index_position.get()) {
            return wrong("header and directory do not belong together");
        }
        let mut index = header.index_position.get();
        let mut index_count = 0_u64;
        let mut last: Option<Run> = None;
        for entry in self.directory {
            let run = entry.run();
            let entry_count = u64::from(entry.index_count.get());
            if run.position != data || entry.index_position.get() != index || run.base >= run.end {
                return wrong("runs do not follow one another");
            }
            if last.is_some_and(|last| (last.partition, last.end) > (run.partition, run.base)) {
                return wrong("runs are out of order");
            }
            if entry.reserved != [0; 12] {
                return wrong("reserved bytes are not zero");
            }
            index += entry_count * size_of::<IndexEntry>() as u64;
            index_count += entry_count;
            let end = data.checked_add(run.size).filter(|end| *end <= header.index_position.get());
            match end {
                Some(end) if index <= position => data = end,
                Some(_) | None => return wrong("runs reach past their section"),
            }
            last = Some(run);
        }
        let fills = data == header.index_position.get()
            && index == position
            && index_count == u64::from(header.index_count.get())
            && last.is_some();
        if fills { Ok(()) } else { wrong("runs do not fill their section") }
    }
}

/// Consecutive pieces of one run that hold what a read looks for.
#[derive(Debug, Clone)]
pub struct Pieces {
    /// Not empty.
    entries: Vec<IndexEntry>,
    /// Where the run goes on behind them. If they end in a gap, what is looked for may be there.
    pub next_offset: Option<u64>,
    from: ReadFrom,
    bytes_max: usize,
}

impl Pieces {
    /// Where they are in the file.
    pub fn range(&self) -> Range<usize> {
        let last = &self.entries[self.entries.len() - 1];
        piece_range(&self.entries[0]).start..piece_range(last).end
    }

    /// Finds what the read looks for in their bytes, those of [`Self::range`], which are checked.
    pub fn find(&self, bytes: &[u8]) -> Result<Option<Range<usize>>, Damage> {
        let place = self.range();
        assert_eq!(bytes.len(), place.len());
        let mut found: Option<Range<usize>> = None;
        for entry in &self.entries {
            if found.as_ref().is_some_and(|range| range.len() >= self.bytes_max) {
                break;
            }
            let range = piece_range(entry);
            let piece = &bytes[range.start - place.start..range.end - place.start];
            check_piece(entry, piece)?;
            for batch in batches_of(piece, range.start) {
                let (range, head) = batch?;
                let range = range.start - place.start..range.end - place.start;
                match &mut found {
                    Some(found) if range.end - found.start > self.bytes_max => {
                        return Ok(Some(found.clone()));
                    }
                    Some(found) => found.end = range.end,
                    None => {
                        let fits = match self.from {
                            ReadFrom::Offset(offset) => head.last_offset >= offset,
                            ReadFrom::Time(time) => head.max_timestamp_ms >= time,
                        };
                        found = fits.then_some(range);
                    }
                }
            }
        }
        Ok(found)
    }
}

fn check_piece(entry: &IndexEntry, bytes: &[u8]) -> Result<(), Damage> {
    let is_believed = mutation::is_on(Mutation::TrustExtent);
    if crc32c::crc32c(bytes) == entry.checksum.get() || is_believed {
        Ok(())
    } else {
        Err(Damage::new(entry.position.get(), "checksum of the batches is wrong"))
    }
}

/// Walks the batches of a checked piece that begins at a position of the file.
fn batches_of(
    bytes: &[u8],
    position: usize,
) -> impl Iterator<Item = Result<(Range<usize>, BatchHead), Damage>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == bytes.len() {
            return None;
        }
        let Some(head) = BatchHead::parse(&bytes[start..]) else {
            let damage = Damage::new((position + start) as u64, "not a record batch");
            start = bytes.len();
            return Some(Err(damage));
        };
        let range = position + start..position + start + head.size;
        start += head.size;
        Some(Ok((range, head)))
    })
}

fn piece_range(entry: &IndexEntry) -> Range<usize> {
    let start = entry.position.get() as usize;
    start..start + entry.size.get() as usize
}

fn touch(populate: Populate<'_>, range: Range<usize>) -> Result<(), Damage> {
    let position = range.start as u64;
    populate(range).map_err(|error| Damage::new(position, format!("cannot be read: {error}")))
}
