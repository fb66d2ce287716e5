//! The records inside a batch: reading them one by one, and building batches of them.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::{I16, I32, I64, U16, U32};

use super::{Compression, HEADER_SIZE, Header, MAGIC, RecordBatch, UNCOUNTED_SIZE, seal};

/// Why the records of a batch cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// A record that breaks the format.
    #[error("record {index} of the batch is malformed")]
    Malformed {
        /// Which, counting from zero; the record count if something follows the last.
        index: u32,
    },
    /// Bytes that the codec does not understand.
    #[error("the records are not {codec:?}")]
    Compression {
        /// What they should be.
        codec: Compression,
    },
    /// More than the reader allows.
    #[error("the records take more than {size_max} bytes")]
    TooLarge {
        /// The limit.
        size_max: usize,
    },
}

/// One record; its bytes are slices of the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it is in its partition.
    pub offset: u64,
    /// In milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// Its headers, in order; a key may come twice.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// Reads the records of one batch; ends at the first fault.
#[derive(Debug, Clone)]
pub struct RecordIter {
    batch: RecordBatch,
    rest: Bytes,
    index: u32,
    ended: bool,
}

impl RecordIter {
    pub(crate) fn new(batch: &RecordBatch, records: Bytes) -> Self {
        Self { batch: batch.clone(), rest: records, index: 0, ended: false }
    }

    /// Offset of the batch's last record.
    pub fn last_offset(&self) -> u64 {
        self.batch.last_offset()
    }

    fn record(&mut self) -> Option<Record> {
        let size = usize::try_from(varint(&mut self.rest)?).ok()?;
        if size > self.rest.len() {
            return None;
        }
        let mut fields = self.rest.split_to(size);
        let _attributes = fields.try_get_i8().ok()?;
        let timestamp_delta = varint(&mut fields)?;
        let offset_delta = u64::try_from(varint(&mut fields)?).ok()?;
        let offset = self.batch.base_offset().checked_add(offset_delta)?;
        if offset > self.batch.last_offset() {
            return None;
        }
        let timestamp_ms = if self.batch.is_append_time() {
            self.batch.max_timestamp_ms()
        } else {
            self.batch.base_timestamp_ms().checked_add(timestamp_delta)?
        };
        let key = bytes(&mut fields)?;
        let value = bytes(&mut fields)?;
        // Two bytes at least for each header bound their number.
        let header_count = usize::try_from(varint(&mut fields)?).ok()?;
        if header_count > fields.len() / 2 {
            return None;
        }
        let mut headers = Vec::with_capacity(header_count);
        for _ in 0..header_count {
            headers.push((bytes(&mut fields)??, bytes(&mut fields)?));
        }
        fields.is_empty().then_some(Record { offset, timestamp_ms, key, value, headers })
    }
}

impl Iterator for RecordIter {
    type Item = Result<Record, RecordFault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let index = self.index;
        let record = if index < self.batch.record_count() {
            self.record()
        } else {
            self.ended = true;
            if self.rest.is_empty() {
                return None;
            }
            None
        };
        self.index += 1;
        self.ended |= record.is_none();
        Some(record.ok_or(RecordFault::Malformed { index }))
    }
}

/// A signed number: small ones are short whatever their sign.
fn varint(from: &mut Bytes) -> Option<i64> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let byte = from.try_get_u8().ok()?;
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

fn put_varint(to: &mut BytesMut, value: i64) {
    let mut value = (value << 1 ^ value >> 63) as u64;
    while value >= 0x80 {
        to.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    to.put_u8(value as u8);
}

/// `Some(None)` is null.
fn bytes(from: &mut Bytes) -> Option<Option<Bytes>> {
    match varint(from)? {
        -1 => Some(None),
        size => {
            let size = usize::try_from(size).ok()?;
            (size <= from.len()).then(|| Some(from.split_to(size)))
        }
    }
}

fn put_bytes(to: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            put_varint(to, bytes.len() as i64);
            to.put_slice(bytes);
        }
        None => put_varint(to, -1),
    }
}

/// A record to put into a batch.
#[derive(Debug, Clone, Copy, Default)]
pub struct NewRecord<'a> {
    /// In milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
    /// Its headers, in order.
    pub headers: &'a [(&'a [u8], Option<&'a [u8]>)],
}

/// Builds an uncompressed batch, as a client or for records of our own.
#[derive(Debug, Clone)]
pub struct BatchBuilder {
    bytes: BytesMut,
    /// One record's fields, before their size is known.
    record: BytesMut,
    record_count: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchBuilder {
    /// A batch without records.
    pub fn new() -> Self {
        let mut bytes = BytesMut::with_capacity(1024);
        bytes.put_bytes(0, HEADER_SIZE);
        Self {
            bytes,
            record: BytesMut::new(),
            record_count: 0,
            base_timestamp: 0,
            max_timestamp: i64::MIN,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
        }
    }

    /// Makes it a batch of an idempotent producer.
    #[must_use]
    pub fn producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> Self {
        (self.producer_id, self.producer_epoch, self.base_sequence) = (id, epoch, base_sequence);
        self
    }

    /// Adds a record, of any time.
    pub fn push(&mut self, record: NewRecord<'_>) {
        if self.record_count == 0 {
            self.base_timestamp = record.timestamp_ms;
        }
        let delta = record.timestamp_ms.checked_sub(self.base_timestamp).unwrap_or_else(|| {
            self.count_from_1970();
            record.timestamp_ms
        });
        self.max_timestamp = self.max_timestamp.max(record.timestamp_ms);
        let fields = &mut self.record;
        fields.clear();
        fields.put_i8(0); // Attributes: none exist.
        put_varint(fields, delta);
        put_varint(fields, self.record_count.into());
        put_bytes(fields, record.key);
        put_bytes(fields, record.value);
        put_varint(fields, record.headers.len() as i64);
        for (key, value) in record.headers {
            put_bytes(fields, Some(key));
            put_bytes(fields, *value);
        }
        self.put_record();
        self.record_count += 1;
    }

    /// Appends the record whose fields are there.
    fn put_record(&mut self) {
        put_varint(&mut self.bytes, self.record.len() as i64);
        self.bytes.put_slice(&self.record);
    }

    /// Two times are too far apart for a difference of 64 bits: from now on all are told from 1970.
    fn count_from_1970(&mut self) {
        let base = std::mem::take(&mut self.base_timestamp);
        let mut records = self.bytes.split_off(HEADER_SIZE).freeze();
        for _ in 0..self.record_count {
            let size = varint(&mut records).expect("a record of ours has a size");
            let mut rest = records.split_to(size as usize);
            let attributes = rest.get_i8();
            let delta = varint(&mut rest).expect("a record of ours has a time");
            self.record.clear();
            self.record.put_i8(attributes);
            put_varint(&mut self.record, base + delta);
            self.record.put_slice(&rest);
            self.put_record();
        }
    }

    /// Bytes so far, header included.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Records so far.
    pub fn record_count(&self) -> u32 {
        self.record_count as u32
    }

    /// The batch, at offset 0.
    pub fn build(mut self) -> RecordBatch {
        assert!(self.record_count > 0, "a batch has records");
        let length = i32::try_from(self.bytes.len() - UNCOUNTED_SIZE)
            .expect("the caller stops adding records far below 2 GiB");
        let header = Header {
            base_offset: I64::new(0),
            length: I32::new(length),
            leader_epoch: I32::new(-1),
            magic: MAGIC,
            checksum: U32::new(0),
            attributes: U16::new(0),
            last_offset_delta: I32::new(self.record_count - 1),
            base_timestamp: I64::new(self.base_timestamp),
            max_timestamp: I64::new(self.max_timestamp),
            producer_id: I64::new(self.producer_id),
            producer_epoch: I16::new(self.producer_epoch),
            base_sequence: I32::new(self.base_sequence),
            record_count: I32::new(self.record_count),
        };
        self.bytes[..HEADER_SIZE].copy_from_slice(header.as_bytes());
        seal(&mut self.bytes);
        RecordBatch::stored(self.bytes.freeze()).expect("it is what was built")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is built of records of these times, as it is read.
    fn check(times: &[i64]) {
        let mut builder = BatchBuilder::new();
        for (index, timestamp_ms) in times.iter().enumerate() {
            let key = [index as u8; 200];
            let headers = [(&b"name"[..], None), (&key[..3], Some(&b"value"[..]))];
            builder.push(NewRecord {
                timestamp_ms: *timestamp_ms,
                key: Some(&key[..index]),
                value: None,
                headers: &headers,
            });
        }
        let batch = builder.build();
        assert_eq!(batch.max_timestamp_ms(), *times.iter().max().expect("some"), "{times:?}");
        let records = batch.records(1 << 20).expect("it is not compressed");
        let read: Vec<Record> = records.collect::<Result<_, _>>().expect("all can be read");
        for (index, record) in read.iter().enumerate() {
            assert_eq!(record.offset, index as u64, "{times:?}");
            let key = record.key.as_deref().expect("a key");
            assert!(key.len() == index && key.iter().all(|it| *it == index as u8), "{times:?}");
            assert_eq!(record.headers.len(), 2, "{times:?}");
        }
        let read: Vec<i64> = read.into_iter().map(|record| record.timestamp_ms).collect();
        assert_eq!(read, times);
    }

    #[test]
    fn records_of_any_times_share_a_batch() {
        check(&[5, 3, 9]);
        check(&[i64::MIN, i64::MAX]);
        check(&[i64::MAX, i64::MIN]);
        check(&[1, 2, i64::MAX, -2, i64::MIN, 0, -1]);
        check(&[-2, -1, i64::MAX, i64::MAX - 1, i64::MIN, i64::MIN]);
    }
}
