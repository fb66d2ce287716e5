//! Kafka's record batch v2: the unit that is received, stored and sent, as the client built it.
//!
//! 61 bytes of header, big-endian, then records, compressed or not. The checksum covers everything
//! from the attributes on, so that base offset and leader epoch, which come before it, are stamped
//! without computing it anew.
//!
//! Promise: a [`RecordBatch`] always holds exactly one batch whose header is whole and whose
//! length is right. That its checksum is right too, and that a client may send such a batch, is
//! what [`RecordBatch::check`] adds. Nobody looks into the records on the way in: that they are
//! well formed is found by whoever reads them, in [`RecordBatch::records`].

mod compression;
mod record;

use bytes::Bytes;
use zerocopy::byteorder::big_endian::{I16, I32, I64, U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use compression::Compression;
pub use record::{BatchBuilder, NewRecord, Record, RecordFault, RecordIter};

/// Bytes before the records.
pub const HEADER_SIZE: usize = 61;

/// Bytes that the length field does not count: the base offset and itself.
const UNCOUNTED_SIZE: usize = 12;

/// Where the checksum begins to count.
const CHECKED_FROM: usize = 21;

/// The only batch format there is.
const MAGIC: i8 = 2;

/// An uncompressed record takes one byte for each of its seven fields.
const RECORD_SIZE_MIN: usize = 7;

const ATTRIBUTE_COMPRESSION: u16 = 0b111;
const ATTRIBUTE_APPEND_TIME: u16 = 1 << 3;
const ATTRIBUTE_TRANSACTIONAL: u16 = 1 << 4;
const ATTRIBUTE_CONTROL: u16 = 1 << 5;
const ATTRIBUTES_OF_CLIENTS: u16 =
    ATTRIBUTE_COMPRESSION | ATTRIBUTE_APPEND_TIME | ATTRIBUTE_TRANSACTIONAL | ATTRIBUTE_CONTROL;

/// What precedes the records.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    base_offset: I64,
    /// Bytes that follow this field.
    length: I32,
    leader_epoch: I32,
    magic: i8,
    /// CRC-32C of all that follows.
    checksum: U32,
    attributes: U16,
    last_offset_delta: I32,
    base_timestamp: I64,
    max_timestamp: I64,
    producer_id: I64,
    producer_epoch: I16,
    base_sequence: I32,
    record_count: I32,
}

const _: () = {
    assert!(size_of::<Header>() == HEADER_SIZE);
    assert!(std::mem::offset_of!(Header, leader_epoch) == UNCOUNTED_SIZE);
    assert!(std::mem::offset_of!(Header, attributes) == CHECKED_FROM);
};

/// What is wrong with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchFault {
    /// Less than a header.
    #[error("{size} bytes are no record batch")]
    Short {
        /// How much there is.
        size: usize,
    },
    /// A message format from before Kafka 0.11.
    #[error("message format {found}, only 2 is supported")]
    Magic {
        /// What it says.
        found: i8,
    },
    /// More or less than exactly one batch.
    #[error("a record batch of {claimed} bytes in {size}")]
    Length {
        /// Size of the whole batch by its length field.
        claimed: i64,
        /// How much there is.
        size: usize,
    },
    /// Damaged on the way.
    #[error("checksum {found:#010x}, the bytes have {computed:#010x}")]
    Checksum {
        /// What it says.
        found: u32,
        /// What it should say.
        computed: u32,
    },
    /// No records, a count that differs from the offsets, or more than the bytes can hold.
    #[error("{count} records with a last offset delta of {last_offset_delta}")]
    RecordCount {
        /// How many it says.
        count: i32,
        /// Where they should end.
        last_offset_delta: i32,
    },
    /// An unknown compression codec.
    #[error("unknown compression codec {codec}")]
    Compression {
        /// Its number.
        codec: u16,
    },
    /// A batch that only servers write.
    #[error("control batches are not for clients")]
    Control,
    /// A batch of a transaction.
    #[error("transactions are not supported")]
    Transactional,
    /// Attributes that only servers set, or that nobody knows.
    #[error("attributes {found:#06x} are not for clients")]
    Attributes {
        /// All of them.
        found: u16,
    },
    /// A producer id without an epoch or a sequence.
    #[error("producer {id} with epoch {epoch} and sequence {sequence}")]
    Producer {
        /// Its id.
        id: i64,
        /// Its epoch.
        epoch: i16,
        /// Its sequence.
        sequence: i32,
    },
}

/// Exactly one record batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordBatch {
    bytes: Bytes,
}

impl RecordBatch {
    /// A batch as a client may send it: whole, undamaged, and not one that only servers write.
    pub fn check(bytes: Bytes) -> Result<Self, BatchFault> {
        let batch = Self::stored_intact(bytes)?;
        batch.check_attributes()?;
        batch.check_count()?;
        let (id, epoch) = (batch.producer_id(), batch.producer_epoch());
        let sequence = batch.base_sequence();
        if id >= 0 && (epoch < 0 || sequence < 0) {
            return Err(BatchFault::Producer { id, epoch, sequence });
        }
        Ok(batch)
    }

    /// A batch of our own: header and length only. Whoever stores bytes has checksums over them.
    pub fn stored(bytes: Bytes) -> Result<Self, BatchFault> {
        let size = bytes.len();
        let claimed = claimed_size(&bytes)?;
        if claimed != size as i64 {
            return Err(BatchFault::Length { claimed, size });
        }
        Ok(Self { bytes })
    }

    /// A batch of our own, its checksum included: for tools that trust nothing.
    pub fn stored_intact(bytes: Bytes) -> Result<Self, BatchFault> {
        let batch = Self::stored(bytes)?;
        let found = batch.header().checksum.get();
        let computed = crc32c::crc32c(&batch.bytes[CHECKED_FROM..]);
        if found != computed {
            return Err(BatchFault::Checksum { found, computed });
        }
        Ok(batch)
    }

    /// The same in memory of its own.
    pub fn copy(&self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes) }
    }

    fn check_attributes(&self) -> Result<(), BatchFault> {
        let found = self.header().attributes.get();
        let codec = found & ATTRIBUTE_COMPRESSION;
        if Compression::from_number(codec).is_none() {
            return Err(BatchFault::Compression { codec });
        }
        if self.is_control() {
            return Err(BatchFault::Control);
        }
        if self.is_transactional() {
            return Err(BatchFault::Transactional);
        }
        if self.is_append_time() || found & !ATTRIBUTES_OF_CLIENTS != 0 {
            return Err(BatchFault::Attributes { found });
        }
        Ok(())
    }

    fn check_count(&self) -> Result<(), BatchFault> {
        let (count, last_offset_delta) =
            (self.header().record_count.get(), self.header().last_offset_delta.get());
        let fits = match self.compression() {
            Compression::None => count as usize <= (self.size() - HEADER_SIZE) / RECORD_SIZE_MIN,
            Compression::Gzip | Compression::Snappy | Compression::Lz4 | Compression::Zstd => true,
        };
        if count <= 0 || last_offset_delta != count - 1 || !fits {
            return Err(BatchFault::RecordCount { count, last_offset_delta });
        }
        Ok(())
    }

    fn header(&self) -> &Header {
        let (header, _) = Header::ref_from_prefix(&self.bytes).expect("a batch holds its header");
        header
    }

    /// Offset of the first record.
    pub fn base_offset(&self) -> u64 {
        self.header().base_offset.get() as u64
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> u64 {
        self.base_offset().wrapping_add_signed(self.header().last_offset_delta.get().into())
    }

    /// The leader epoch stamped on it.
    pub fn leader_epoch(&self) -> i32 {
        self.header().leader_epoch.get()
    }

    /// How many records.
    pub fn record_count(&self) -> u32 {
        self.header().record_count.get().max(0) as u32
    }

    /// Timestamp that those of the records are relative to, in milliseconds since 1970.
    pub fn base_timestamp_ms(&self) -> i64 {
        self.header().base_timestamp.get()
    }

    /// Largest timestamp of a record, in milliseconds since 1970; -1 if they have none.
    pub fn max_timestamp_ms(&self) -> i64 {
        self.header().max_timestamp.get()
    }

    /// The idempotent producer, or -1.
    pub fn producer_id(&self) -> i64 {
        self.header().producer_id.get()
    }

    /// The producer's epoch, or -1.
    pub fn producer_epoch(&self) -> i16 {
        self.header().producer_epoch.get()
    }

    /// The producer's sequence number of the first record, or -1.
    pub fn base_sequence(&self) -> i32 {
        self.header().base_sequence.get()
    }

    /// The producer's sequence number of the last record, or -1. After `i32::MAX` comes 0.
    pub fn last_sequence(&self) -> i32 {
        let base = self.base_sequence();
        if base < 0 {
            return -1;
        }
        // Only the sign can be lost, and dropping it is the wrap from `i32::MAX` to 0.
        base.wrapping_add(self.header().last_offset_delta.get()) & i32::MAX
    }

    /// How the records are compressed.
    pub fn compression(&self) -> Compression {
        let codec = self.header().attributes.get() & ATTRIBUTE_COMPRESSION;
        Compression::from_number(codec).unwrap_or(Compression::None)
    }

    /// Whether it belongs to a transaction.
    pub fn is_transactional(&self) -> bool {
        self.header().attributes.get() & ATTRIBUTE_TRANSACTIONAL != 0
    }

    /// Whether it is a marker rather than records.
    pub fn is_control(&self) -> bool {
        self.header().attributes.get() & ATTRIBUTE_CONTROL != 0
    }

    /// Whether its largest timestamp stands for all its records: the server's clock, not the client's.
    pub fn is_append_time(&self) -> bool {
        self.header().attributes.get() & ATTRIBUTE_APPEND_TIME != 0
    }

    /// Bytes in all, header included.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The batch as it is stored and sent.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The batch as it is stored and sent.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Everything after the header, decompressed; more than `size_max` bytes are refused.
    pub fn decompress(&self, size_max: usize) -> Result<Bytes, RecordFault> {
        compression::decompress(self.compression(), self.bytes.slice(HEADER_SIZE..), size_max)
    }

    /// The records, decompressed if need be to at most `size_max` bytes.
    pub fn records(&self, size_max: usize) -> Result<RecordIter, RecordFault> {
        Ok(RecordIter::new(self, self.decompress(size_max)?))
    }
}

/// Cuts several batches, back to back, into one after the other, by header and length only. Ends
/// at the first fault.
pub fn batches(bytes: Bytes) -> impl Iterator<Item = Result<RecordBatch, BatchFault>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let size = rest.len();
        let batch = match claimed_size(&rest) {
            Ok(claimed) if claimed <= size as i64 => {
                Ok(RecordBatch { bytes: rest.split_to(claimed as usize) })
            }
            Ok(claimed) => Err(BatchFault::Length { claimed, size }),
            Err(fault) => Err(fault),
        };
        if batch.is_err() {
            rest.clear();
        }
        Some(batch)
    })
}

/// Size of the whole batch that begins here, by its own account: a header at least.
fn claimed_size(bytes: &[u8]) -> Result<i64, BatchFault> {
    let size = bytes.len();
    let Ok((header, _)) = Header::ref_from_prefix(bytes) else {
        return Err(BatchFault::Short { size });
    };
    if header.magic != MAGIC {
        return Err(BatchFault::Magic { found: header.magic });
    }
    let claimed = i64::from(header.length.get()) + UNCOUNTED_SIZE as i64;
    if claimed < HEADER_SIZE as i64 {
        return Err(BatchFault::Length { claimed, size });
    }
    Ok(claimed)
}

/// Gives a batch its place in the log. Its checksum stays right.
pub fn stamp(batch: &mut [u8], base_offset: u64, leader_epoch: i32) {
    let header = header_mut(batch);
    header.base_offset = I64::new(base_offset as i64);
    header.leader_epoch = I32::new(leader_epoch);
}

/// Gives all records of a batch the time of now, and the batch a new checksum.
pub fn stamp_append_time(batch: &mut [u8], now_ms: i64) {
    let header = header_mut(batch);
    header.attributes = U16::new(header.attributes.get() | ATTRIBUTE_APPEND_TIME);
    header.max_timestamp = I64::new(now_ms);
    seal(batch);
}

/// Computes the checksum.
fn seal(batch: &mut [u8]) {
    let checksum = crc32c::crc32c(&batch[CHECKED_FROM..]);
    header_mut(batch).checksum = U32::new(checksum);
}

fn header_mut(batch: &mut [u8]) -> &mut Header {
    let (header, _) = Header::mut_from_prefix(batch).expect("a batch holds its header");
    header
}

#[cfg(test)]
mod tests;
