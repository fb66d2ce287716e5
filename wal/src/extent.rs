//! Extents: immutable files of record batches, the long-term home of what the WAL held.
//!
//! An extent holds one or more *runs*; a run is consecutive batches of one partition, increasing
//! in offset, with gaps where retention took something out. Layout: a header block; the batches
//! of all runs back to back, as received; for each run index entries, one for each *piece* of
//! about 32 KiB, cut between batches; a directory of the runs; zeros to a full block.
//!
//! Every byte is under a checksum, and the data are checksummed by piece, so a cold read verifies
//! what it touches and no more: header -> directory -> index of the run -> piece. Batches stay
//! opaque apart from their heads ([`BatchHead`]).
//!
//! A file with a single run is named for it, `<topic>-<partition>-<base>-<generation>.ext`; a
//! shared one `shared-<id>-<generation>.ext`. Extents are not changed, ever; merging writes new
//! ones. Which extents count is the manifest's business.

mod view;

use bytes::Bytes;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use self::view::{ExtentRun, ExtentView, Pieces, Populate, ReadFrom};
use crate::batch::BatchHead;
use crate::block;
use crate::disk::DiskOp;
use crate::format::{FileName, PartitionId, ShardId, TopicId};
use crate::limits::BLOCK_SIZE;
use crate::plan;

/// Version of the bytes of extents.
pub const EXTENT_FORMAT_VERSION: u16 = 1;

/// A piece is closed once it holds this many bytes: small enough that reading one batch costs
/// little, large enough that the index is a thousandth of the data.
pub const PIECE_SIZE: usize = 32 << 10;

/// Ends the names of extents.
pub const EXTENT_SUFFIX: &str = ".ext";

const MAGIC: [u8; 8] = *b"TMEXTENT";

/// First block of the file.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ExtentHeader {
    /// CRC-32C of the rest of the block, its zeros included.
    checksum: U32,
    /// `EXTENT_FORMAT_VERSION`.
    version: U16,
    shard: U16,
    magic: [u8; 8],
    id: U64,
    generation: U32,
    run_count: U32,
    /// Index entries of all runs.
    index_count: U32,
    /// CRC-32C of all directory entries.
    directory_checksum: U32,
    /// Bytes of batches; they begin after this block.
    data_size: U64,
    index_position: U64,
    directory_position: U64,
    /// Bytes of the file, padding included.
    file_size: U64,
    reserved: [u8; 56],
}

/// One for each run, sorted by partition and base offset.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DirectoryEntry {
    topic: [u8; 16],
    partition: U32,
    /// Index entries of the run.
    index_count: U32,
    /// Offset of the first record.
    base: U64,
    /// One past the offset of the last record.
    end: U64,
    max_timestamp_ms: I64,
    /// Of the first batch, in the file.
    position: U64,
    /// Bytes of batches.
    size: U64,
    index_position: U64,
    batch_count: U64,
    /// CRC-32C of the run's index entries.
    index_checksum: U32,
    reserved: [u8; 12],
}

/// One for each piece of a run.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct IndexEntry {
    /// Offset of the piece's first record.
    offset: U64,
    /// Largest timestamp from the run's begin to the piece's end: never falls, can be searched.
    max_timestamp_ms: I64,
    /// Of the piece, in the file.
    position: U64,
    /// Bytes of the piece.
    size: U32,
    /// CRC-32C of the piece.
    checksum: U32,
}

const _: () = {
    assert!(size_of::<ExtentHeader>() == 128);
    assert!(size_of::<DirectoryEntry>() == 96);
    assert!(size_of::<IndexEntry>() == 32);
};

/// A record batch on its way into an extent.
#[derive(Debug, Clone)]
pub struct BatchRef {
    /// Offset of the first record.
    pub base_offset: u64,
    /// Offset of the last record.
    pub last_offset: u64,
    /// Largest timestamp, in milliseconds.
    pub max_timestamp_ms: i64,
    /// The batch as stored; its head says the same offsets and length.
    pub bytes: Bytes,
}

/// Batches of one partition, increasing in offset, on their way into an extent.
#[derive(Debug, Clone)]
pub struct RunData {
    /// Whose.
    pub partition: PartitionId,
    /// The batches, at least one.
    pub batches: Vec<BatchRef>,
}

impl RunData {
    /// Bytes of all batches.
    pub fn size(&self) -> u64 {
        self.batches.iter().map(|batch| batch.bytes.len() as u64).sum()
    }

    /// Offset of the first record.
    pub fn base(&self) -> u64 {
        self.batches.first().expect("a run is not empty").base_offset
    }

    /// One past the offset of the last record.
    pub fn end(&self) -> u64 {
        self.batches.last().expect("a run is not empty").last_offset + 1
    }
}

/// An extent to write.
#[derive(Debug, Clone)]
pub struct ExtentSpec {
    /// Its number, never reused in a shard.
    pub id: u64,
    /// One more than that of any extent merged into it.
    pub generation: u32,
    /// How often its runs were merged.
    pub level: u8,
    /// Whose.
    pub shard: ShardId,
    /// At least one.
    pub runs: Vec<RunData>,
}

/// A run as manifest and index know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Whose.
    pub partition: PartitionId,
    /// Offset of the first record.
    pub base: u64,
    /// One past the offset of the last record.
    pub end: u64,
    /// Largest timestamp, in milliseconds.
    pub max_timestamp_ms: i64,
    /// Of the first batch, in the file.
    pub position: u64,
    /// Bytes of batches.
    pub size: u64,
}

/// An extent that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentRef {
    /// Its number.
    pub id: u64,
    /// See [`ExtentSpec::generation`].
    pub generation: u32,
    /// How often its runs were merged.
    pub level: u8,
    /// Whether it was written with more than one run.
    pub is_shared: bool,
    /// Its name, which follows from the rest.
    pub file: FileName,
    /// Bytes of the file.
    pub size: u64,
    /// The runs that count; dropped ones are in the file but not here. Sorted by partition and
    /// base offset.
    pub runs: Vec<Run>,
}

/// Name of an extent with a single run.
pub fn single_name(partition: PartitionId, base: u64, generation: u32) -> FileName {
    let PartitionId { topic, index } = partition;
    FileName(format!("{topic}-{index}-{base:020}-{generation}{EXTENT_SUFFIX}").into())
}

/// Name of an extent with several runs.
pub fn shared_name(id: u64, generation: u32) -> FileName {
    FileName(format!("shared-{id:020}-{generation}{EXTENT_SUFFIX}").into())
}

/// Plans the file. The batches' bytes are not copied. The rename at the end is durable after a
/// sync of the directory, which the caller adds once for many files.
pub fn plan_extent(mut spec: ExtentSpec, drain_size: usize) -> (ExtentRef, Vec<DiskOp>) {
    assert!(!spec.runs.is_empty());
    spec.runs.sort_by_key(|run| (run.partition, run.base()));
    let mut layout = Layout::default();
    for run in &spec.runs {
        layout.add_run(run);
    }
    for pair in layout.runs.windows(2) {
        let same = pair[0].partition == pair[1].partition;
        assert!(!same || pair[0].end <= pair[1].base, "runs of a partition do not overlap");
    }
    let (header, tail) = layout.close(&spec);
    let is_shared = spec.runs.len() > 1;
    let file = if is_shared {
        shared_name(spec.id, spec.generation)
    } else {
        single_name(spec.runs[0].partition, spec.runs[0].base(), spec.generation)
    };
    let batches = spec.runs.into_iter().flat_map(|run| run.batches).map(|batch| batch.bytes);
    let pieces = std::iter::once(header).chain(batches).chain(std::iter::once(tail));
    let (size, ops) = plan::whole_file(&file, pieces, drain_size);
    let extent = ExtentRef {
        id: spec.id,
        generation: spec.generation,
        level: spec.level,
        is_shared,
        file,
        size,
        runs: layout.runs,
    };
    (extent, ops)
}

/// Where everything goes.
#[derive(Default)]
struct Layout {
    data_size: u64,
    index: Vec<IndexEntry>,
    /// With index positions counted in entries until the data's size is known.
    directory: Vec<DirectoryEntry>,
    runs: Vec<Run>,
}

impl Layout {
    fn add_run(&mut self, data: &RunData) {
        let position = BLOCK_SIZE as u64 + self.data_size;
        let index_from = self.index.len();
        let mut max_timestamp_ms = i64::MIN;
        let mut piece: Option<IndexEntry> = None;
        let mut checksum = 0;
        let mut offset_next = 0;
        for batch in &data.batches {
            let head = BatchHead::parse(&batch.bytes).expect("whole batches are settled");
            assert_eq!(head.size, batch.bytes.len());
            assert_eq!(head.base_offset, batch.base_offset);
            assert_eq!(head.last_offset, batch.last_offset);
            assert!(batch.base_offset >= offset_next, "offsets increase");
            offset_next = batch.last_offset + 1;
            max_timestamp_ms = max_timestamp_ms.max(batch.max_timestamp_ms);
            let entry = piece.get_or_insert_with(|| IndexEntry {
                offset: batch.base_offset.into(),
                max_timestamp_ms: 0.into(),
                position: (BLOCK_SIZE as u64 + self.data_size).into(),
                size: 0.into(),
                checksum: 0.into(),
            });
            checksum = crc32c::crc32c_append(checksum, &batch.bytes);
            entry.size += batch.bytes.len() as u32;
            entry.max_timestamp_ms = max_timestamp_ms.into();
            entry.checksum = checksum.into();
            self.data_size += batch.bytes.len() as u64;
            if entry.size.get() as usize >= PIECE_SIZE {
                self.index.extend(piece.take());
                checksum = 0;
            }
        }
        self.index.extend(piece);
        let run = Run {
            partition: data.partition,
            base: data.base(),
            end: data.end(),
            max_timestamp_ms,
            position,
            size: BLOCK_SIZE as u64 + self.data_size - position,
        };
        let index = &self.index[index_from..];
        self.directory.push(DirectoryEntry {
            topic: run.partition.topic.0,
            partition: run.partition.index.into(),
            index_count: (index.len() as u32).into(),
            base: run.base.into(),
            end: run.end.into(),
            max_timestamp_ms: max_timestamp_ms.into(),
            position: position.into(),
            size: run.size.into(),
            index_position: (index_from as u64).into(),
            batch_count: (data.batches.len() as u64).into(),
            index_checksum: crc32c::crc32c(index.as_bytes()).into(),
            reserved: [0; 12],
        });
        self.runs.push(run);
    }

    /// The header block, and everything after the data.
    fn close(&mut self, spec: &ExtentSpec) -> (Bytes, Bytes) {
        let index_position = BLOCK_SIZE as u64 + self.data_size;
        for entry in &mut self.directory {
            let index_from = entry.index_position.get() * size_of::<IndexEntry>() as u64;
            entry.index_position = (index_position + index_from).into();
        }
        let index = self.index.as_bytes();
        let directory = self.directory.as_bytes();
        let directory_position = index_position + index.len() as u64;
        let end = directory_position + directory.len() as u64;
        let header = ExtentHeader {
            checksum: 0.into(),
            version: EXTENT_FORMAT_VERSION.into(),
            shard: spec.shard.0.into(),
            magic: MAGIC,
            id: spec.id.into(),
            generation: spec.generation.into(),
            run_count: (self.directory.len() as u32).into(),
            index_count: (self.index.len() as u32).into(),
            directory_checksum: crc32c::crc32c(directory).into(),
            data_size: self.data_size.into(),
            index_position: index_position.into(),
            directory_position: directory_position.into(),
            file_size: end.next_multiple_of(BLOCK_SIZE as u64).into(),
            reserved: [0; 56],
        };
        let (_, header) = block::seal_block(header.as_bytes());
        (header, [index, directory].concat().into())
    }
}

impl DirectoryEntry {
    fn run(&self) -> Run {
        Run {
            partition: PartitionId { topic: TopicId(self.topic), index: self.partition.get() },
            base: self.base.get(),
            end: self.end.get(),
            max_timestamp_ms: self.max_timestamp_ms.get(),
            position: self.position.get(),
            size: self.size.get(),
        }
    }
}

#[cfg(test)]
mod tests;
