//! Names and headers of everything in the WAL. Little-endian, sizes asserted, reserved bytes zero.
//!
//! A segment file is one block with a [`SegmentHeader`], then frames. A frame is a
//! [`FrameHeader`], a body of entries back to back, and zeros up to a whole block. Every byte of a
//! frame is covered: the header by its own checksum, the body by `body_checksum`, the padding by
//! having to be zero. Decoding never panics, whatever the bytes.
//!
//! In both headers the checksum, the magic, the version and the nonce keep their place for ever,
//! and the checksum keeps its range, so that an older build recognises newer bytes and says so.

use std::fmt;
use std::mem::{offset_of, size_of};
use std::ops::Range;
use std::sync::Arc;

use bytes::BytesMut;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits::{BLOCK_SIZE, FRAME_SIZE_MAX};
use crate::mutation::{self, Mutation};

/// What this build writes, and the newest that it reads.
pub const FORMAT_VERSION: u16 = 1;

/// Size of a frame's header.
pub const FRAME_HEADER_SIZE: usize = size_of::<FrameHeader>();

/// Most that an entry takes beyond its key, value or batch bytes.
pub const ENTRY_OVERHEAD_MAX: usize = size_of::<BatchHeader>();

/// Which shard of a node; its index, from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a WAL segment; grows by one for each segment put to use, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u64);

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a frame in one shard's WAL; the first is 1, no gaps. Zero means "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Sequence(pub u64);

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Sequence {
    /// The sequence after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Incarnation of a shard: raised by one at every start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ShardEpoch(pub u64);

impl fmt::Display for ShardEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of a topic: a random UUID, never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TopicId(pub [u8; 16]);

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicId({self})")
    }
}

/// One partition of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId {
    /// The topic.
    pub topic: TopicId,
    /// Index of the partition in its topic, from zero.
    pub index: u32,
}

/// Name of a file inside a shard's directory, without a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileName(pub Arc<str>);

impl FileName {
    /// Whether the file belongs to the WAL, which may have a file system of its own.
    pub fn is_wal(&self) -> bool {
        self.0.starts_with("wal-")
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why bytes are not the header that belongs in their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// Fewer bytes than a header has.
    #[error("too short for a header")]
    Short,
    /// Nothing was ever written here, or it is damaged, or it is the middle of something else.
    #[error("the header does not match its checksum")]
    Checksum,
    /// Intact bytes of another kind of file.
    #[error("not a header of this kind")]
    Magic,
    /// Intact, written by a newer release.
    #[error("format {0} is newer than this build reads")]
    TooNew(u16),
    /// Intact by its checksum, yet no build writes such a value.
    #[error("{0} is out of range")]
    Field(&'static str),
}

/// First bytes of a segment file; the rest of its block is zero. Frozen by `FORMAT_VERSION`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SegmentHeader {
    /// CRC-32C of the rest of the block, zeros included.
    checksum: U32,
    magic: U32,
    version: U16,
    shard: U16,
    /// 1 if the file served as another segment before: then what follows the last frame is not
    /// zeros but that segment's frames.
    recycled: u8,
    reserved: [u8; 3],
    segment: U64,
    /// Random for each use of a file. Every frame repeats it, so that a recycled file cannot
    /// replay its past.
    nonce: U64,
    size: U64,
    reserved_end: [u8; 24],
}

const _: () = {
    assert!(size_of::<SegmentHeader>() == 64);
    assert!(offset_of!(SegmentHeader, magic) == size_of::<U32>());
    assert!(offset_of!(SegmentHeader, segment) == 16);
    assert!(offset_of!(SegmentHeader, reserved_end) == 40);
};

const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"TMSG");

impl SegmentHeader {
    /// A header for a file of `size` bytes.
    pub fn new(shard: ShardId, id: SegmentId, nonce: u64, size: u64, recycled: bool) -> Self {
        assert!(size.is_multiple_of(BLOCK_SIZE as u64));
        assert!(size > BLOCK_SIZE as u64, "a segment has room for a frame");
        Self {
            checksum: U32::ZERO,
            magic: SEGMENT_MAGIC.into(),
            version: FORMAT_VERSION.into(),
            shard: shard.0.into(),
            recycled: u8::from(recycled),
            reserved: [0; 3],
            segment: id.0.into(),
            nonce: nonce.into(),
            size: size.into(),
            reserved_end: [0; 24],
        }
    }

    /// The block that goes to the start of the file.
    pub fn encode(mut self) -> Vec<u8> {
        let mut block = vec![0; BLOCK_SIZE];
        block[..size_of::<Self>()].copy_from_slice(self.as_bytes());
        self.checksum = crc32c::crc32c(&block[size_of::<U32>()..]).into();
        block[..size_of::<Self>()].copy_from_slice(self.as_bytes());
        block
    }

    /// Reads the first block of a file.
    pub fn decode(block: &[u8]) -> Result<Self, HeaderFault> {
        let block = block.get(..BLOCK_SIZE).ok_or(HeaderFault::Short)?;
        let (header, rest) = Self::read_from_prefix(block).map_err(|_| HeaderFault::Short)?;
        if crc32c::crc32c(&block[size_of::<U32>()..]) != header.checksum.get() {
            return Err(HeaderFault::Checksum);
        }
        if header.magic.get() != SEGMENT_MAGIC {
            return Err(HeaderFault::Magic);
        }
        if header.version.get() > FORMAT_VERSION {
            return Err(HeaderFault::TooNew(header.version.get()));
        }
        if header.version.get() == 0 {
            return Err(HeaderFault::Field("version"));
        }
        if header.recycled > 1 {
            return Err(HeaderFault::Field("recycled mark"));
        }
        let size = header.size.get();
        if size <= BLOCK_SIZE as u64 || !size.is_multiple_of(BLOCK_SIZE as u64) {
            return Err(HeaderFault::Field("size"));
        }
        let reserved = [&header.reserved[..], &header.reserved_end, rest];
        if reserved.iter().any(|bytes| !is_zero(bytes)) {
            return Err(HeaderFault::Field("reserved"));
        }
        Ok(header)
    }

    /// Whose segment it is.
    pub fn shard(&self) -> ShardId {
        ShardId(self.shard.get())
    }

    /// Which segment it is; the file's name says the same.
    pub fn segment(&self) -> SegmentId {
        SegmentId(self.segment.get())
    }

    /// What every frame of this use of the file repeats.
    pub fn nonce(&self) -> u64 {
        self.nonce.get()
    }

    /// Size of the file in bytes, this block included.
    pub fn size(&self) -> u64 {
        self.size.get()
    }

    /// Whether the file held another segment before.
    pub fn is_recycled(&self) -> bool {
        self.recycled == 1
    }
}

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// Entries of one or more steps.
    Steps,
    /// No entries: says what was durable when the shard went idle.
    Idle,
    /// No entries: the start of an epoch, over whatever a crash left there, or a clean stop.
    Seal,
}

impl FrameKind {
    fn encode(self) -> u8 {
        match self {
            Self::Steps => 1,
            Self::Idle => 2,
            Self::Seal => 3,
        }
    }

    fn decode(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Steps),
            2 => Some(Self::Idle),
            3 => Some(Self::Seal),
            _ => None,
        }
    }
}

impl fmt::Display for FrameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Steps => "steps",
            Self::Idle => "idle",
            Self::Seal => "seal",
        })
    }
}

/// Precedes every frame. Frozen by `FORMAT_VERSION`.
///
/// Shard, segment, nonce and offset expose a misdirected or stale write; the sequence and the
/// checksum of the header before it expose a lost one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct FrameHeader {
    /// CRC-32C of the rest of the header.
    checksum: U32,
    magic: U32,
    version: U16,
    kind: u8,
    reserved: u8,
    shard: U16,
    reserved_shard: [u8; 2],
    body_size: U32,
    /// CRC-32C of the body, without the padding.
    body_checksum: U32,
    /// `checksum` of the frame before this one; 0 for the first of all.
    previous: U32,
    reserved_previous: [u8; 4],
    sequence: U64,
    shard_epoch: U64,
    segment: U64,
    nonce: U64,
    /// Of this header in the segment file, in bytes.
    offset: U64,
    durable: U64,
    clock_ms: I64,
    reserved_end: [u8; 40],
}

const _: () = {
    assert!(size_of::<FrameHeader>() == 128);
    assert!(offset_of!(FrameHeader, magic) == size_of::<U32>());
    assert!(offset_of!(FrameHeader, shard) == 12);
    assert!(offset_of!(FrameHeader, body_size) == 16);
    assert!(offset_of!(FrameHeader, sequence) == 32);
    assert!(offset_of!(FrameHeader, durable) == 72);
    assert!(offset_of!(FrameHeader, reserved_end) == 88);
    // A header never spans two sectors, so that a torn write has all of it or nothing of it.
    assert!(512 % size_of::<FrameHeader>() == 0);
};

const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"TMFR");

/// Everything that a frame's header says, apart from its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameFields {
    /// What it is for.
    pub kind: FrameKind,
    /// Whose it is.
    pub shard: ShardId,
    /// The shard's incarnation that wrote it.
    pub shard_epoch: ShardEpoch,
    /// The segment it is in.
    pub segment: SegmentId,
    /// The nonce of that segment's header.
    pub nonce: u64,
    /// Where it is in the segment, in bytes.
    pub offset: u64,
    /// Its number.
    pub sequence: Sequence,
    /// The highest sequence that was known durable when it was built.
    pub durable: Sequence,
    /// [`FrameHeader::checksum`] of the frame before it.
    pub previous: u32,
    /// The wall clock of its step, in milliseconds since 1970.
    pub clock_ms: i64,
}

impl FrameHeader {
    /// The header of a frame with this body.
    pub fn new(fields: &FrameFields, body: &[u8]) -> Self {
        assert!(frame_size(body.len()) <= FRAME_SIZE_MAX);
        assert!(fields.offset.is_multiple_of(BLOCK_SIZE as u64));
        assert!(fields.sequence > fields.durable, "a frame is not durable before it is written");
        let mut header = Self::new_zeroed();
        header.magic = FRAME_MAGIC.into();
        header.version = FORMAT_VERSION.into();
        header.kind = fields.kind.encode();
        header.shard = fields.shard.0.into();
        header.body_size = (body.len() as u32).into();
        header.body_checksum = crc32c::crc32c(body).into();
        header.previous = fields.previous.into();
        header.sequence = fields.sequence.0.into();
        header.shard_epoch = fields.shard_epoch.0.into();
        header.segment = fields.segment.0.into();
        header.nonce = fields.nonce.into();
        header.offset = fields.offset.into();
        header.durable = fields.durable.0.into();
        header.clock_ms = fields.clock_ms.into();
        header.checksum = header.compute_checksum().into();
        header
    }

    /// The bytes at the start of the frame.
    pub fn encode(&self) -> &[u8] {
        self.as_bytes()
    }

    /// Reads the start of a frame. Says nothing about its body, see [`FrameHeader::check_frame`].
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let (header, _) = Self::read_from_prefix(bytes).map_err(|_| HeaderFault::Short)?;
        // Looked at first because a search for frames asks this of every block.
        if header.magic.get() != FRAME_MAGIC {
            return Err(HeaderFault::Magic);
        }
        let is_believed = mutation::is_on(Mutation::TrustFrameHeader);
        if header.compute_checksum() != header.checksum.get() && !is_believed {
            return Err(HeaderFault::Checksum);
        }
        if header.version.get() > FORMAT_VERSION {
            return Err(HeaderFault::TooNew(header.version.get()));
        }
        if header.version.get() == 0 {
            return Err(HeaderFault::Field("version"));
        }
        let Some(kind) = FrameKind::decode(header.kind) else {
            return Err(HeaderFault::Field("kind"));
        };
        if header.body_size.get() as usize > FRAME_SIZE_MAX - FRAME_HEADER_SIZE {
            return Err(HeaderFault::Field("body size"));
        }
        if kind != FrameKind::Steps && header.body_size.get() != 0 {
            return Err(HeaderFault::Field("body size"));
        }
        if header.sequence.get() == 0 || header.sequence.get() == u64::MAX {
            return Err(HeaderFault::Field("sequence"));
        }
        if header.shard_epoch.get() == u64::MAX {
            return Err(HeaderFault::Field("shard epoch"));
        }
        if header.durable.get() >= header.sequence.get() {
            return Err(HeaderFault::Field("durable sequence"));
        }
        if header.offset.get() == 0 || !header.offset.get().is_multiple_of(BLOCK_SIZE as u64) {
            return Err(HeaderFault::Field("offset"));
        }
        let reserved = [
            &[header.reserved][..],
            &header.reserved_shard,
            &header.reserved_previous,
            &header.reserved_end,
        ];
        if reserved.iter().any(|bytes| !is_zero(bytes)) {
            return Err(HeaderFault::Field("reserved"));
        }
        Ok(header)
    }

    /// The nonce of a header of any format, which may be newer than this build's.
    pub fn nonce_of(bytes: &[u8]) -> Option<u64> {
        let at = offset_of!(Self, nonce);
        bytes.get(at..).and_then(|rest| U64::read_from_prefix(rest).ok()).map(|(n, _)| n.get())
    }

    /// Whether body and padding are as they were written. `frame` starts with this header and has
    /// [`FrameHeader::frame_size`] bytes.
    pub fn check_frame(&self, frame: &[u8]) -> Result<(), BodyFault> {
        assert_eq!(frame.len(), self.frame_size());
        let (body, padding) = frame[FRAME_HEADER_SIZE..].split_at(self.body_size());
        let is_believed = mutation::is_on(Mutation::TrustFrameBody);
        if crc32c::crc32c(body) != self.body_checksum.get() && !is_believed {
            return Err(BodyFault::Checksum);
        }
        if !is_zero(padding) {
            return Err(BodyFault::Padding);
        }
        Ok(())
    }

    /// CRC-32C of the rest of the header; the next frame repeats it.
    pub fn checksum(&self) -> u32 {
        self.checksum.get()
    }

    /// Size of the entries in bytes.
    pub fn body_size(&self) -> usize {
        self.body_size.get() as usize
    }

    /// Size of header, body and padding in bytes.
    pub fn frame_size(&self) -> usize {
        frame_size(self.body_size())
    }

    /// What the frame is for.
    pub fn kind(&self) -> FrameKind {
        FrameKind::decode(self.kind).expect("checked by decode, given to new")
    }

    /// Whose frame it is.
    pub fn shard(&self) -> ShardId {
        ShardId(self.shard.get())
    }

    /// The incarnation that wrote it.
    pub fn shard_epoch(&self) -> ShardEpoch {
        ShardEpoch(self.shard_epoch.get())
    }

    /// Its number.
    pub fn sequence(&self) -> Sequence {
        Sequence(self.sequence.get())
    }

    /// The highest sequence that was known durable when it was built.
    pub fn durable(&self) -> Sequence {
        Sequence(self.durable.get())
    }

    /// The segment it was written to.
    pub fn segment(&self) -> SegmentId {
        SegmentId(self.segment.get())
    }

    /// The nonce of that segment.
    pub fn nonce(&self) -> u64 {
        self.nonce.get()
    }

    /// Where in that segment it was written, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset.get()
    }

    /// [`FrameHeader::checksum`] of the frame before it.
    pub fn previous(&self) -> u32 {
        self.previous.get()
    }

    /// The wall clock of its step, in milliseconds since 1970.
    pub fn clock_ms(&self) -> i64 {
        self.clock_ms.get()
    }

    fn compute_checksum(&self) -> u32 {
        crc32c::crc32c(&self.as_bytes()[size_of::<U32>()..])
    }
}

/// Why an intact header's frame is not intact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyFault {
    /// The entries are not those that were written.
    #[error("the body does not match its checksum")]
    Checksum,
    /// Something is behind the entries.
    #[error("the padding is not zero")]
    Padding,
}

/// Size of a frame with a body of this size: header, body and padding.
pub fn frame_size(body_size: usize) -> usize {
    (FRAME_HEADER_SIZE + body_size).next_multiple_of(BLOCK_SIZE)
}

/// A run of records appended to a partition.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct BatchHeader {
    kind: u8,
    reserved: [u8; 3],
    size: U32,
    topic: [u8; 16],
    partition: U32,
    reserved_partition: [u8; 4],
    base_offset: U64,
    last_offset: U64,
    max_timestamp_ms: I64,
}

/// A change of state: a value, or the end of one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct ChangeHeader {
    kind: u8,
    reserved: u8,
    key_size: U16,
    value_size: U32,
}

const _: () = {
    assert!(size_of::<BatchHeader>() == 56);
    assert!(offset_of!(BatchHeader, topic) == 8);
    assert!(offset_of!(BatchHeader, base_offset) == 32);
    assert!(size_of::<ChangeHeader>() == 8);
    assert!(size_of::<ChangeHeader>() <= ENTRY_OVERHEAD_MAX);
};

const KIND_BATCH: u8 = 1;
const KIND_PUT: u8 = 2;
const KIND_DELETE: u8 = 3;

/// What a batch entry says about its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchEntry {
    /// Where the batch is appended.
    pub partition: PartitionId,
    /// Offset of its first record.
    pub base_offset: u64,
    /// Offset of its last record.
    pub last_offset: u64,
    /// Largest timestamp of its records.
    pub max_timestamp_ms: i64,
}

/// One thing that a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// Appended records.
    Batch(BatchEntry, &'a [u8]),
    /// Gave a key of the state a value.
    Put {
        /// The key.
        key: &'a [u8],
        /// Its value from now on.
        value: &'a [u8],
    },
    /// Took a key out of the state.
    Delete {
        /// The key.
        key: &'a [u8],
    },
}

/// Where the entries of an intact body stop making sense: the writer's mistake, not the disk's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("entry at byte {at} of the body: {why}")]
pub struct EntryFault {
    /// Where the entry starts in the body.
    pub at: usize,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Appends a batch entry to a frame; returns where its bytes are.
pub fn push_batch(frame: &mut BytesMut, entry: &BatchEntry, bytes: &[u8]) -> Range<usize> {
    assert!(entry.base_offset <= entry.last_offset);
    assert!(bytes.len() <= FRAME_SIZE_MAX);
    let header = BatchHeader {
        kind: KIND_BATCH,
        reserved: [0; 3],
        size: (bytes.len() as u32).into(),
        topic: entry.partition.topic.0,
        partition: entry.partition.index.into(),
        reserved_partition: [0; 4],
        base_offset: entry.base_offset.into(),
        last_offset: entry.last_offset.into(),
        max_timestamp_ms: entry.max_timestamp_ms.into(),
    };
    frame.extend_from_slice(header.as_bytes());
    let start = frame.len();
    frame.extend_from_slice(bytes);
    start..frame.len()
}

/// Appends a new value of a key to a frame.
pub fn push_put(frame: &mut BytesMut, key: &[u8], value: &[u8]) {
    push_change(frame, KIND_PUT, key, value);
}

/// Appends the end of a key to a frame.
pub fn push_delete(frame: &mut BytesMut, key: &[u8]) {
    push_change(frame, KIND_DELETE, key, &[]);
}

fn push_change(frame: &mut BytesMut, kind: u8, key: &[u8], value: &[u8]) {
    assert!(key.len() <= crate::limits::KEY_SIZE_MAX);
    assert!(value.len() <= crate::limits::VALUE_SIZE_MAX);
    let header = ChangeHeader {
        kind,
        reserved: 0,
        key_size: (key.len() as u16).into(),
        value_size: (value.len() as u32).into(),
    };
    frame.extend_from_slice(header.as_bytes());
    frame.extend_from_slice(key);
    frame.extend_from_slice(value);
}

/// The entries of a body in order, each with where its batch bytes or its value are in `body`
/// (empty for a delete). Ends after the first fault.
pub fn entries(body: &[u8]) -> Entries<'_> {
    Entries { body, at: 0 }
}

/// See [`entries`].
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(Range<usize>, Entry<'a>), EntryFault>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        let kind = *self.body.get(at)?;
        let entry = match kind {
            KIND_BATCH => self.batch(),
            KIND_PUT | KIND_DELETE => self.change(kind),
            _ => Err("no such kind of entry"),
        };
        Some(entry.map_err(|why| {
            self.at = self.body.len();
            EntryFault { at, why }
        }))
    }
}

impl<'a> Entries<'a> {
    fn batch(&mut self) -> Result<(Range<usize>, Entry<'a>), &'static str> {
        let header = self.header::<BatchHeader>()?;
        if !is_zero(&header.reserved) || !is_zero(&header.reserved_partition) {
            return Err("reserved bytes of a batch are not zero");
        }
        let entry = BatchEntry {
            partition: PartitionId { topic: TopicId(header.topic), index: header.partition.get() },
            base_offset: header.base_offset.get(),
            last_offset: header.last_offset.get(),
            max_timestamp_ms: header.max_timestamp_ms.get(),
        };
        if entry.base_offset > entry.last_offset {
            return Err("a batch ends before it starts");
        }
        let range = self.take(header.size.get() as usize)?;
        Ok((range.clone(), Entry::Batch(entry, &self.body[range])))
    }

    fn change(&mut self, kind: u8) -> Result<(Range<usize>, Entry<'a>), &'static str> {
        let header = self.header::<ChangeHeader>()?;
        if header.reserved != 0 {
            return Err("a reserved byte of a change is not zero");
        }
        let key = self.take(usize::from(header.key_size.get()))?;
        let value = self.take(header.value_size.get() as usize)?;
        let key = &self.body[key];
        if kind == KIND_PUT {
            return Ok((value.clone(), Entry::Put { key, value: &self.body[value] }));
        }
        if !value.is_empty() {
            return Err("a delete has a value");
        }
        Ok((value, Entry::Delete { key }))
    }

    fn header<T: FromBytes>(&mut self) -> Result<T, &'static str> {
        let range = self.take(size_of::<T>())?;
        T::read_from_bytes(&self.body[range]).map_err(|_| "an entry is cut short")
    }

    fn take(&mut self, size: usize) -> Result<Range<usize>, &'static str> {
        if size > self.body.len() - self.at {
            return Err("an entry is cut short");
        }
        let start = self.at;
        self.at += size;
        Ok(start..self.at)
    }
}

/// Whether every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}

#[cfg(test)]
mod tests;
