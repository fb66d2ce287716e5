//! The head of a Kafka record batch (v2), as much of it as extents need: a batch is opaque apart
//! from its length, its offsets and its largest timestamp. Big-endian, because Kafka's bytes are
//! stored as received. The records and the batch's own checksum are the engine's business.

/// Bytes before the first record.
pub const BATCH_HEADER_SIZE: usize = 61;

/// Bytes before the part that `batch length` counts.
const LENGTH_END: usize = 12;

/// Where a batch begins, ends, and how new it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHead {
    /// Offset of the first record.
    pub base_offset: u64,
    /// Offset of the last record.
    pub last_offset: u64,
    /// Largest timestamp of a record, in milliseconds.
    pub max_timestamp_ms: i64,
    /// Bytes of the whole batch.
    pub size: usize,
}

impl BatchHead {
    /// The head of the batch that `bytes` begin with. `None` if no whole batch is there or its
    /// numbers make no sense.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let head = bytes.get(..BATCH_HEADER_SIZE)?;
        let base_offset = u64::try_from(i64::from_be_bytes(field(head, 0))).ok()?;
        let length = usize::try_from(i32::from_be_bytes(field(head, 8))).ok()?;
        let last_offset_delta = u64::try_from(i32::from_be_bytes(field(head, 23))).ok()?;
        let max_timestamp_ms = i64::from_be_bytes(field(head, 35));
        let size = length + LENGTH_END;
        if size < BATCH_HEADER_SIZE || size > bytes.len() {
            return None;
        }
        // A base offset is at most i64::MAX, so this does not overflow.
        Some(Self {
            base_offset,
            last_offset: base_offset + last_offset_delta,
            max_timestamp_ms,
            size,
        })
    }
}

fn field<const SIZE: usize>(head: &[u8], at: usize) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes.copy_from_slice(&head[at..at + SIZE]);
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::extent::BatchRef;

    /// A batch of `records` records and `size` bytes whose content follows from its numbers.
    pub(crate) fn batch(base: u64, records: u32, timestamp: i64, size: usize) -> BatchRef {
        assert!(size >= BATCH_HEADER_SIZE);
        let mut bytes: Vec<u8> = (0..size).map(|at| (at as u64 * 31 + base * 7) as u8).collect();
        bytes[0..8].copy_from_slice(&(base as i64).to_be_bytes());
        bytes[8..12].copy_from_slice(&((size - LENGTH_END) as i32).to_be_bytes());
        bytes[23..27].copy_from_slice(&(records as i32 - 1).to_be_bytes());
        bytes[35..43].copy_from_slice(&timestamp.to_be_bytes());
        BatchRef {
            base_offset: base,
            last_offset: base + u64::from(records) - 1,
            max_timestamp_ms: timestamp,
            bytes: Bytes::from(bytes),
        }
    }

    #[test]
    fn head_is_read_from_kafkas_positions() {
        let batch = batch(1000, 5, 77, 100);
        assert_eq!(
            BatchHead::parse(&batch.bytes),
            Some(BatchHead {
                base_offset: 1000,
                last_offset: 1004,
                max_timestamp_ms: 77,
                size: 100
            })
        );
        assert_eq!(BatchHead::parse(&batch.bytes[..99]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(head) = BatchHead::parse(&bytes) {
                prop_assert!(head.size <= bytes.len());
                prop_assert!(head.last_offset >= head.base_offset);
            }
        }
    }
}
