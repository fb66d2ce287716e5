//! Batches as clients compress them.

use std::io::Write;

use bytes::Bytes;
use flate2::write::GzEncoder;
use tidemill::batch::{HEADER_SIZE, RecordBatch};

/// Where the length is, which counts what follows it.
const LENGTH_AT: usize = 8;

/// Where the checksum is.
const CHECKSUM_AT: usize = 17;

/// Where the checksum begins to count, with the attributes: the codec is in the second byte.
const ATTRIBUTES_AT: usize = 21;

const GZIP: u8 = 1;
const SNAPPY: u8 = 2;

/// The same records, compressed.
pub fn compressed(batch: &RecordBatch, is_gzip: bool) -> RecordBatch {
    let (header, records) = batch.bytes().split_at(HEADER_SIZE);
    let (codec, packed) = match is_gzip {
        true => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(records).expect("memory takes everything");
            (GZIP, encoder.finish().expect("memory takes everything"))
        }
        false => {
            let packed = snap::raw::Encoder::new().compress_vec(records);
            (SNAPPY, packed.expect("far below what it takes"))
        }
    };
    let mut bytes = [header, &packed].concat();
    let length = (bytes.len() - LENGTH_AT - 4) as u32;
    bytes[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
    bytes[ATTRIBUTES_AT + 1] |= codec;
    let checksum = crc32c::crc32c(&bytes[ATTRIBUTES_AT..]);
    bytes[CHECKSUM_AT..ATTRIBUTES_AT].copy_from_slice(&checksum.to_be_bytes());
    RecordBatch::check(Bytes::from(bytes)).expect("it is what a client may send")
}
