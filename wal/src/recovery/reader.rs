//! Segment files read in big pieces, and what may stand where a frame is looked for.

use std::io;

use bytes::Bytes;

use super::{BLOCK, ReplayFrame, ScanError};
use crate::disk::Storage;
use crate::format::{
    BodyFault, FileName, FrameHeader, HeaderFault, SegmentHeader, SegmentId, Sequence, ShardId,
    is_zero,
};
use crate::limits::{BLOCK_SIZE, SCAN_READ_SIZE};
use crate::segment;

/// What is at a place where a frame may start.
pub(super) enum FrameRead {
    /// A frame of this place, whole.
    Intact(FrameHeader),
    /// A frame of this place by its header, with something wrong behind it.
    Damaged(FrameHeader, &'static str),
    /// A frame of this place by its header, which only a newer release reads.
    TooNew(u16),
    /// Nothing that was written to this place in this life of the file.
    Nothing(&'static str),
}

/// One segment file, read in big pieces.
pub(super) struct SegmentReader<'a> {
    storage: &'a dyn Storage,
    file: FileName,
    pub(super) id: SegmentId,
    pub(super) header: SegmentHeader,
    piece_offset: u64,
    piece: Bytes,
}

impl<'a> SegmentReader<'a> {
    /// Reads the header and insists that it is the one of this file.
    pub(super) fn open(
        storage: &'a dyn Storage,
        shard: ShardId,
        id: SegmentId,
        file_size: u64,
    ) -> Result<Self, ScanError> {
        let reader = Self::open_any(storage, id, file_size)?;
        if reader.header.shard() != shard {
            let why = format!("the segment belongs to shard {}", reader.header.shard());
            return Err(reader.corrupt(0, Sequence(0), why));
        }
        Ok(reader)
    }

    fn open_any(
        storage: &'a dyn Storage,
        id: SegmentId,
        file_size: u64,
    ) -> Result<Self, ScanError> {
        let file = segment::file_name(id);
        let corrupt = |why: String| ScanError::Corrupt {
            file: segment::file_name(id),
            segment: id,
            offset: 0,
            sequence: Sequence(0),
            why,
        };
        let block = storage.read(&file, 0, BLOCK_SIZE).map_err(|source| ScanError::Io {
            file: file.clone(),
            offset: 0,
            source,
        })?;
        let header = match SegmentHeader::decode(&block) {
            Ok(header) => header,
            Err(HeaderFault::TooNew(found)) => {
                return Err(ScanError::TooNew { file, offset: 0, found });
            }
            Err(
                fault @ (HeaderFault::Short
                | HeaderFault::Checksum
                | HeaderFault::Magic
                | HeaderFault::Field(_)),
            ) => return Err(corrupt(format!("the segment's header: {fault}"))),
        };
        if header.segment() != id {
            return Err(corrupt(format!("the header is that of segment {}", header.segment())));
        }
        if header.size() != file_size {
            let size = header.size();
            return Err(corrupt(format!("the file has {file_size} bytes, its header says {size}")));
        }
        Ok(Self { storage, file, id, header, piece_offset: 0, piece: Bytes::new() })
    }

    /// These bytes of the file, all of which are inside it.
    pub(super) fn bytes(&mut self, offset: u64, size: usize) -> Result<Bytes, ScanError> {
        assert!(offset + size as u64 <= self.header.size());
        let piece_end = self.piece_offset + self.piece.len() as u64;
        if offset < self.piece_offset || offset + size as u64 > piece_end {
            let rest = usize::try_from(self.header.size() - offset).unwrap_or(usize::MAX);
            let wanted = size.max(SCAN_READ_SIZE).min(rest);
            let error = |source| ScanError::Io { file: self.file.clone(), offset, source };
            self.piece = self.storage.read(&self.file, offset, wanted).map_err(error)?;
            self.piece_offset = offset;
            if self.piece.len() < size {
                return Err(error(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        let start = (offset - self.piece_offset) as usize;
        Ok(self.piece.slice(start..start + size))
    }

    /// Gives back the memory of the piece that was read last.
    pub(super) fn forget(&mut self) {
        self.piece = Bytes::new();
    }

    pub(super) fn frame_at(&mut self, offset: u64) -> Result<FrameRead, ScanError> {
        if offset >= self.header.size() {
            return Ok(FrameRead::Nothing("the segment ends"));
        }
        let block = self.bytes(offset, BLOCK_SIZE)?;
        let header = match FrameHeader::decode(&block) {
            Ok(header) if self.is_of_this_place(&header, offset) => header,
            Ok(_) => return Ok(FrameRead::Nothing("a frame of another place or time")),
            Err(HeaderFault::TooNew(found)) if self.is_of_this_life(&block) => {
                return Ok(FrameRead::TooNew(found));
            }
            Err(HeaderFault::TooNew(_)) => {
                return Ok(FrameRead::Nothing("a frame of another place or time"));
            }
            Err(HeaderFault::Magic) if is_zero(&block) => return Ok(FrameRead::Nothing("zeros")),
            Err(HeaderFault::Magic | HeaderFault::Short) => {
                return Ok(FrameRead::Nothing("no frame starts here"));
            }
            Err(HeaderFault::Checksum) => {
                return Ok(FrameRead::Nothing("a header that does not match its checksum"));
            }
            Err(HeaderFault::Field(_)) => {
                return Ok(FrameRead::Nothing("a header with a value out of range"));
            }
        };
        if header.frame_size() as u64 > self.header.size() - offset {
            return Ok(FrameRead::Damaged(header, "it is larger than the rest of its segment"));
        }
        let frame = self.bytes(offset, header.frame_size())?;
        Ok(match header.check_frame(&frame) {
            Ok(()) => FrameRead::Intact(header),
            Err(BodyFault::Checksum) => {
                FrameRead::Damaged(header, "the body does not match its checksum")
            }
            Err(BodyFault::Padding) => FrameRead::Damaged(header, "the padding is not zero"),
        })
    }

    /// The next place, from `offset` on, with the header of a frame of this place and time.
    pub(super) fn next_header(
        &mut self,
        mut offset: u64,
    ) -> Result<Option<(u64, FrameHeader)>, ScanError> {
        while offset < self.header.size() {
            let block = self.bytes(offset, BLOCK_SIZE)?;
            match FrameHeader::decode(&block) {
                Ok(header) if self.is_of_this_place(&header, offset) => {
                    return Ok(Some((offset, header)));
                }
                Err(HeaderFault::TooNew(found)) if self.is_of_this_life(&block) => {
                    return Err(self.too_new(offset, found));
                }
                Ok(_)
                | Err(
                    HeaderFault::TooNew(_)
                    | HeaderFault::Short
                    | HeaderFault::Checksum
                    | HeaderFault::Magic
                    | HeaderFault::Field(_),
                ) => offset += BLOCK,
            }
        }
        Ok(None)
    }

    fn is_of_this_place(&self, header: &FrameHeader, offset: u64) -> bool {
        header.nonce() == self.header.nonce()
            && header.segment() == self.id
            && header.shard() == self.header.shard()
            && header.offset() == offset
    }

    /// Whether a header of a newer format is meant: clients can send bytes that look like one, but
    /// they do not know the nonce.
    pub(super) fn is_of_this_life(&self, block: &[u8]) -> bool {
        FrameHeader::nonce_of(block) == Some(self.header.nonce())
    }

    pub(super) fn corrupt(&self, offset: u64, sequence: Sequence, why: String) -> ScanError {
        ScanError::Corrupt { file: self.file.clone(), segment: self.id, offset, sequence, why }
    }

    pub(super) fn too_new(&self, offset: u64, found: u16) -> ScanError {
        ScanError::TooNew { file: self.file.clone(), offset, found }
    }
}

/// Something in a segment file, for tools.
#[derive(Debug, Clone)]
pub enum WalkItem {
    /// An intact frame.
    Frame(ReplayFrame),
    /// Bytes that are no frame, with frames behind them.
    Damage {
        /// Where they start, in bytes.
        offset: u64,
        /// How many there are.
        size: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// No frame follows. The last item.
    End {
        /// Where the next frame would be, in bytes.
        offset: u64,
        /// A frame that is not whole is there: one in flight, torn, or damaged.
        torn: Option<&'static str>,
    },
}

/// Every frame of one segment file, by itself, and what is between them. Beside a running daemon
/// the last frame may be half there.
pub struct Walk<'a> {
    reader: SegmentReader<'a>,
    offset: u64,
    is_done: bool,
}

/// Walks one segment file; fails if its header is not intact.
pub fn walk<'a>(storage: &'a dyn Storage, id: SegmentId) -> Result<Walk<'a>, ScanError> {
    let file = segment::file_name(id);
    let error = |source| ScanError::Io { file: file.clone(), offset: 0, source };
    let list = storage.list().map_err(error)?;
    let size = list.iter().find(|(name, _)| *name == file).map(|(_, size)| *size);
    let size = size.ok_or_else(|| error(io::ErrorKind::NotFound.into()))?;
    let reader = SegmentReader::open_any(storage, id, size)?;
    Ok(Walk { reader, offset: BLOCK, is_done: false })
}

impl Walk<'_> {
    /// What the file says about itself.
    pub fn header(&self) -> &SegmentHeader {
        &self.reader.header
    }

    fn step(&mut self) -> Result<WalkItem, ScanError> {
        let offset = self.offset;
        let (torn, why) = match self.reader.frame_at(offset)? {
            FrameRead::Intact(header) => {
                let frame = self.reader.bytes(offset, header.frame_size())?;
                let bytes = Bytes::copy_from_slice(&frame);
                self.offset += bytes.len() as u64;
                let segment = self.reader.id;
                return Ok(WalkItem::Frame(ReplayFrame { header, segment, offset, bytes }));
            }
            FrameRead::Damaged(_, why) => (Some(why), why),
            FrameRead::TooNew(found) => return Err(self.reader.too_new(offset, found)),
            FrameRead::Nothing(why) => (None, why),
        };
        match self.reader.next_header(offset + BLOCK)? {
            Some((next, _)) => {
                self.offset = next;
                Ok(WalkItem::Damage { offset, size: next - offset, why })
            }
            None => {
                self.is_done = true;
                Ok(WalkItem::End { offset, torn })
            }
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<WalkItem, ScanError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let item = self.step();
        self.is_done |= item.is_err();
        Some(item)
    }
}
