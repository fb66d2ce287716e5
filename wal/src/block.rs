//! Files of keyed entries, as snapshots and delta files hold them: a header block, blocks of
//! about 64 KiB of entries, a footer block. Everything is padded to blocks of the disk with zeros.
//!
//! Every byte is under a checksum: header and footer under their own, an entry block under its
//! own with its padding, and the footer holds the checksum of all block checksums in order, so
//! that a block of another file, or a missing one, is found too. Entries are handed out only when
//! their block is known to be right.

use bytes::Bytes;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::damage::{Damage, FileFault};
use crate::disk::Storage;
use crate::format::{FileName, Sequence, ShardId};
use crate::limits::{BLOCK_SIZE, KEY_SIZE_MAX, VALUE_SIZE_MAX};
use crate::mutation::{self, Mutation};

/// Version of the bytes of snapshots and delta files.
pub const STATE_FORMAT_VERSION: u16 = 1;

/// A block is closed once it holds this many bytes.
pub const STATE_BLOCK_SIZE: usize = 64 << 10;

/// Largest payload of a block: nearly full, then one entry of the largest size.
const PAYLOAD_SIZE_MAX: usize =
    STATE_BLOCK_SIZE + size_of::<EntryHeader>() + KEY_SIZE_MAX + VALUE_SIZE_MAX;

/// Bytes read at once; blocks are mostly much smaller.
const READ_SIZE: usize = 1 << 20;

const HEADER_MAGIC: [u8; 8] = *b"TMSTATE\0";
const FOOTER_MAGIC: [u8; 8] = *b"TMSTEND\0";

/// What a file of entries is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StateFileKind {
    /// All of a shard's state.
    Snapshot = 1,
    /// Changes of it.
    Delta = 2,
}

/// First block of the file.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct StateHeader {
    /// CRC-32C of the rest of the block, its zeros included.
    pub(crate) checksum: U32,
    /// `STATE_FORMAT_VERSION`.
    pub(crate) version: U16,
    /// A `StateFileKind`.
    pub(crate) kind: u8,
    pub(crate) reserved_a: u8,
    pub(crate) magic: [u8; 8],
    pub(crate) shard: U16,
    pub(crate) reserved_b: [u8; 6],
    /// Snapshot: first frame to replay with it. Delta: newest frame that the delta before it saw.
    pub(crate) first: U64,
    /// Delta: settled through this frame. Snapshot: zero.
    pub(crate) through: U64,
    /// Delta: newest frame that its values saw. Snapshot: zero, the footer knows.
    pub(crate) valid_at: U64,
    /// Delta: version of the manifest that named it first. Snapshot: zero.
    pub(crate) number: U64,
    pub(crate) reserved_c: [u8; 8],
}

/// Begins a block of entries; the entries follow, then zeros to the end of the disk block.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BlockHeader {
    /// CRC-32C of everything after it, the padding included.
    checksum: U32,
    /// Bytes of entries.
    size: U32,
    /// Number of entries.
    count: U32,
    /// Number of the block in its file, from zero.
    index: U32,
    /// `first` of the file: a block of another file shows.
    first: U64,
    reserved: [u8; 8],
}

/// Before each key and value.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct EntryHeader {
    key_size: U16,
    /// 0: a value follows the key; 1: the key is gone.
    kind: u8,
    reserved: u8,
    value_size: U32,
}

/// Last block of the file.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct StateFooter {
    /// CRC-32C of the rest of the block, its zeros included.
    checksum: U32,
    /// CRC-32C of the checksums of the header and of all blocks, in order.
    content_checksum: U32,
    magic: [u8; 8],
    entry_count: U64,
    /// Bytes of entries in all blocks.
    payload_size: U64,
    /// Newest frame that the entries saw.
    last: U64,
    block_count: U32,
    reserved: [u8; 20],
}

const _: () = {
    assert!(size_of::<StateHeader>() == 64);
    assert!(size_of::<BlockHeader>() == 32);
    assert!(size_of::<EntryHeader>() == 8);
    assert!(size_of::<StateFooter>() == 64);
};

const TOMBSTONE: u8 = 1;

/// What a file of entries says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFileInfo {
    /// What it is.
    pub kind: StateFileKind,
    /// Whose state.
    pub shard: ShardId,
    /// Snapshot: first frame to replay with it. Delta: newest frame that the delta before it saw.
    pub first: Sequence,
    /// Delta: settled through this frame.
    pub through: Sequence,
    /// Newest frame that its values saw.
    pub last: Sequence,
    /// Delta: version of the manifest that named it first.
    pub number: u64,
    /// Entries in the file.
    pub entry_count: u64,
    /// Bytes of entries.
    pub payload_size: u64,
    /// Blocks of entries.
    pub block_count: u32,
    /// The footer's checksum, which covers all others: identifies the content.
    pub checksum: u32,
}

/// Builds the blocks of a file.
#[derive(Debug)]
pub(crate) struct BlockWriter {
    first: u64,
    payload: Vec<u8>,
    payload_count: u32,
    block_count: u32,
    entry_count: u64,
    payload_size: u64,
    content_checksum: u32,
}

impl BlockWriter {
    /// Begins a file. Returns its first block too.
    pub(crate) fn new(mut header: StateHeader) -> (Self, Bytes) {
        header.version = STATE_FORMAT_VERSION.into();
        header.magic = HEADER_MAGIC;
        let (checksum, block) = seal_block(header.as_bytes());
        let writer = Self {
            first: header.first.get(),
            payload: Vec::new(),
            payload_count: 0,
            block_count: 0,
            entry_count: 0,
            payload_size: 0,
            content_checksum: crc32c::crc32c(&checksum.to_le_bytes()),
        };
        (writer, block)
    }

    /// Adds an entry; returns a block if it is full with it.
    pub(crate) fn add(&mut self, key: &[u8], value: Option<&[u8]>) -> Option<Bytes> {
        assert!(key.len() <= KEY_SIZE_MAX);
        let value_size = value.map_or(0, <[u8]>::len);
        assert!(value_size <= VALUE_SIZE_MAX);
        let header = EntryHeader {
            key_size: (key.len() as u16).into(),
            kind: if value.is_some() { 0 } else { TOMBSTONE },
            reserved: 0,
            value_size: (value_size as u32).into(),
        };
        self.payload.extend_from_slice(header.as_bytes());
        self.payload.extend_from_slice(key);
        self.payload.extend_from_slice(value.unwrap_or_default());
        self.payload_count += 1;
        if self.payload.len() >= STATE_BLOCK_SIZE { self.close() } else { None }
    }

    /// The last blocks of the file, and the checksum that identifies it.
    pub(crate) fn finish(mut self, last: Sequence) -> (u32, Vec<Bytes>) {
        let mut blocks: Vec<Bytes> = self.close().into_iter().collect();
        let footer = StateFooter {
            checksum: 0.into(),
            content_checksum: self.content_checksum.into(),
            magic: FOOTER_MAGIC,
            entry_count: self.entry_count.into(),
            payload_size: self.payload_size.into(),
            last: last.0.into(),
            block_count: self.block_count.into(),
            reserved: [0; 20],
        };
        let (checksum, block) = seal_block(footer.as_bytes());
        blocks.push(block);
        (checksum, blocks)
    }

    /// Entries added so far.
    pub(crate) fn entry_count(&self) -> u64 {
        self.entry_count + u64::from(self.payload_count)
    }

    fn close(&mut self) -> Option<Bytes> {
        if self.payload_count == 0 {
            return None;
        }
        let header = BlockHeader {
            checksum: 0.into(),
            size: (self.payload.len() as u32).into(),
            count: self.payload_count.into(),
            index: self.block_count.into(),
            first: self.first.into(),
            reserved: [0; 8],
        };
        let size = (size_of::<BlockHeader>() + self.payload.len()).next_multiple_of(BLOCK_SIZE);
        let mut block = Vec::with_capacity(size);
        block.extend_from_slice(header.as_bytes());
        block.extend_from_slice(&self.payload);
        block.resize(size, 0);
        let checksum = stamp(&mut block);
        self.content_checksum =
            crc32c::crc32c_append(self.content_checksum, &checksum.to_le_bytes());
        self.entry_count += u64::from(self.payload_count);
        self.payload_size += self.payload.len() as u64;
        self.block_count += 1;
        self.payload_count = 0;
        self.payload.clear();
        Some(block.into())
    }
}

/// A block of entries that was checked.
#[derive(Debug)]
pub struct StateBlock<'a> {
    /// Where in the file, in bytes.
    pub position: u64,
    /// Number of the block, from zero.
    pub index: u32,
    /// Entries in it.
    pub count: u32,
    payload: &'a [u8],
}

impl<'a> StateBlock<'a> {
    /// Bytes of entries.
    pub fn size(&self) -> usize {
        self.payload.len()
    }

    /// The entries in order; `None` is a key that is gone.
    pub fn entries(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
        let mut rest = self.payload;
        std::iter::from_fn(move || {
            let (entry, after) = split_entry(rest)?;
            rest = after;
            Some(entry)
        })
    }
}

/// Reads and checks the file from one end to the other; hands out one block of entries after the
/// other. Stops at the first fault.
pub fn read_state_file(
    storage: &dyn Storage,
    file: &FileName,
    size: u64,
    visit: &mut dyn FnMut(&StateBlock<'_>),
) -> Result<StateFileInfo, FileFault> {
    let (info, content_checksum) = read_ends(storage, file, size)?;
    let end = size - BLOCK_SIZE as u64;
    let mut reader = Reader { storage, file, end, start: 0, bytes: Bytes::new() };
    let mut position = BLOCK_SIZE as u64;
    let mut checksum = content_checksum.header;
    let (mut entry_count, mut payload_size) = (0, 0);
    for index in 0..info.block_count {
        let head = reader.get(position, size_of::<BlockHeader>())?;
        let (header, _) = BlockHeader::ref_from_prefix(&head)
            .map_err(|_| Damage::new(position, "the file ends inside a block header"))?;
        let payload = header.size.get() as usize;
        if payload > PAYLOAD_SIZE_MAX {
            return Err(Damage::new(position, "block of an impossible size").into());
        }
        let block_size = (size_of::<BlockHeader>() + payload).next_multiple_of(BLOCK_SIZE);
        let bytes = reader.get(position, block_size)?;
        let block = check_block(&bytes, position, index, info.first.0)?;
        entry_count += u64::from(block.count);
        payload_size += block.size() as u64;
        checksum = crc32c::crc32c_append(checksum, &bytes[..4]);
        visit(&block);
        position += block_size as u64;
    }
    let whole = position == end
        && entry_count == info.entry_count
        && payload_size == info.payload_size
        && checksum == content_checksum.all;
    if !whole {
        return Err(Damage::new(position, "blocks and footer do not belong together").into());
    }
    Ok(info)
}

/// Reads and checks the first and the last block only.
pub fn read_state_info(
    storage: &dyn Storage,
    file: &FileName,
    size: u64,
) -> Result<StateFileInfo, FileFault> {
    read_ends(storage, file, size).map(|(info, _)| info)
}

/// Checksums of checksums.
struct ContentChecksum {
    /// Of the header's alone: where the sum begins.
    header: u32,
    /// Of all, as the footer says.
    all: u32,
}

fn read_ends(
    storage: &dyn Storage,
    file: &FileName,
    size: u64,
) -> Result<(StateFileInfo, ContentChecksum), FileFault> {
    if size < 2 * BLOCK_SIZE as u64 || !size.is_multiple_of(BLOCK_SIZE as u64) {
        return Err(Damage::new(size, "the file is cut short").into());
    }
    let end = size - BLOCK_SIZE as u64;
    let mut reader = Reader { storage, file, end: size, start: 0, bytes: Bytes::new() };
    let bytes = reader.get(0, BLOCK_SIZE)?;
    let header = open_block::<StateHeader>(&bytes, 0, |header| header.magic == HEADER_MAGIC)?;
    if header.version.get() != STATE_FORMAT_VERSION {
        let why = format!("format {}, this build reads {STATE_FORMAT_VERSION}", header.version);
        return Err(Damage::new(0, why).into());
    }
    let kind = match header.kind {
        1 => StateFileKind::Snapshot,
        2 => StateFileKind::Delta,
        kind => return Err(Damage::new(0, format!("unknown kind {kind}")).into()),
    };
    if header.reserved_a != 0 || header.reserved_b != [0; 6] || header.reserved_c != [0; 8] {
        return Err(Damage::new(0, "reserved bytes are not zero").into());
    }
    let tail = reader.get(end, BLOCK_SIZE)?;
    let footer = open_block::<StateFooter>(&tail, end, |footer| footer.magic == FOOTER_MAGIC)?;
    if footer.reserved != [0; 20] {
        return Err(Damage::new(end, "reserved bytes are not zero").into());
    }
    let last = footer.last.get();
    if kind == StateFileKind::Delta && last != header.valid_at.get() {
        return Err(Damage::new(end, "header and footer do not belong together").into());
    }
    let info = StateFileInfo {
        kind,
        shard: ShardId(header.shard.get()),
        first: Sequence(header.first.get()),
        through: Sequence(header.through.get()),
        last: Sequence(last),
        number: header.number.get(),
        entry_count: footer.entry_count.get(),
        payload_size: footer.payload_size.get(),
        block_count: footer.block_count.get(),
        checksum: footer.checksum.get(),
    };
    let content = ContentChecksum {
        header: crc32c::crc32c(header.checksum.as_bytes()),
        all: footer.content_checksum.get(),
    };
    Ok((info, content))
}

fn check_block<'a>(
    bytes: &'a [u8],
    position: u64,
    index: u32,
    first: u64,
) -> Result<StateBlock<'a>, Damage> {
    if !mutation::is_on(Mutation::TrustStateFile) {
        check_stamp(bytes, position, "block checksum is wrong")?;
    }
    let (header, payload) = BlockHeader::ref_from_prefix(bytes)
        .map_err(|_| Damage::new(position, "the file ends inside a block header"))?;
    if header.index.get() != index || header.first.get() != first || header.reserved != [0; 8] {
        return Err(Damage::new(position, "block belongs elsewhere"));
    }
    let (payload, padding) = payload
        .split_at_checked(header.size.get() as usize)
        .ok_or_else(|| Damage::new(position, "block of an impossible size"))?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(Damage::new(position, "padding is not zero"));
    }
    let (mut rest, mut count) = (payload, 0);
    while let Some((_, after)) = split_entry(rest) {
        (rest, count) = (after, count + 1);
    }
    if !rest.is_empty() || count != header.count.get() {
        return Err(Damage::new(position, "entries do not fill their block"));
    }
    Ok(StateBlock { position, index, count, payload })
}

type Entry<'a> = (&'a [u8], Option<&'a [u8]>);

fn split_entry(bytes: &[u8]) -> Option<(Entry<'_>, &[u8])> {
    let (header, rest) = EntryHeader::ref_from_prefix(bytes).ok()?;
    let (key, rest) = rest.split_at_checked(usize::from(header.key_size.get()))?;
    let (value, rest) = rest.split_at_checked(header.value_size.get() as usize)?;
    let value = match header.kind {
        0 => Some(value),
        TOMBSTONE if value.is_empty() => None,
        _ => return None,
    };
    (header.reserved == 0).then_some(((key, value), rest))
}

/// A file read in large pieces, served in small ones.
struct Reader<'a> {
    storage: &'a dyn Storage,
    file: &'a FileName,
    end: u64,
    start: u64,
    bytes: Bytes,
}

impl Reader<'_> {
    fn get(&mut self, position: u64, size: usize) -> Result<Bytes, FileFault> {
        let within = position.checked_add(size as u64).is_some_and(|end| end <= self.end);
        if !within {
            return Err(Damage::new(position, "the file is cut short").into());
        }
        let held = position >= self.start
            && position + size as u64 <= self.start + self.bytes.len() as u64;
        if !held {
            let wanted = size.max(READ_SIZE).min((self.end - position) as usize);
            self.bytes = self
                .storage
                .read(self.file, position, wanted)
                .map_err(|source| FileFault::Read { position, source })?;
            self.start = position;
            if self.bytes.len() < size {
                return Err(Damage::new(position, "the file is cut short").into());
            }
        }
        let from = (position - self.start) as usize;
        Ok(self.bytes.slice(from..from + size))
    }
}

/// A disk block that begins with a struct whose first field is a checksum of the rest.
pub(crate) fn seal_block(header: &[u8]) -> (u32, Bytes) {
    let mut block = vec![0; BLOCK_SIZE];
    block[..header.len()].copy_from_slice(header);
    let checksum = stamp(&mut block);
    (checksum, block.into())
}

/// Writes the checksum of everything after the first four bytes into them.
pub(crate) fn stamp(bytes: &mut [u8]) -> u32 {
    let checksum = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
    checksum
}

/// Checks what [`stamp`] wrote.
pub(crate) fn check_stamp(bytes: &[u8], position: u64, why: &'static str) -> Result<(), Damage> {
    match bytes.split_at_checked(4) {
        Some((stamp, rest)) if stamp == crc32c::crc32c(rest).to_le_bytes() => Ok(()),
        _ => Err(Damage::new(position, why)),
    }
}

/// Checks what [`seal_block`] wrote.
pub(crate) fn open_block<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
    position: u64,
    is_right: impl FnOnce(&T) -> bool,
) -> Result<&T, Damage> {
    let block =
        bytes.get(..BLOCK_SIZE).ok_or_else(|| Damage::new(position, "the file is cut short"))?;
    check_stamp(block, position, "header checksum is wrong")?;
    let (header, rest) =
        T::ref_from_prefix(block).map_err(|_| Damage::new(position, "the file is cut short"))?;
    if !is_right(header) {
        return Err(Damage::new(position, "not a file of this kind"));
    }
    if rest.iter().any(|byte| *byte != 0) {
        return Err(Damage::new(position, "reserved bytes are not zero"));
    }
    Ok(header)
}

#[cfg(test)]
mod tests;
