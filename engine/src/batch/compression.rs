//! The codecs of record batches, for reading only: batches are stored and sent as clients built
//! them. Every decompression has a limit, whatever the compressed bytes claim.

use std::io::Read;

use bytes::{Buf, Bytes};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::RecordFault;

/// How the records of a batch are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// Gzip.
    Gzip,
    /// Snappy: raw, or in the blocks of the xerial library, which Java uses.
    Snappy,
    /// LZ4 frames.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// The codec of a batch's attributes.
    pub fn from_number(number: u16) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Begins snappy in blocks: a name, then two version numbers that do not matter here.
const XERIAL_MAGIC: &[u8; 8] = b"\x82SNAPPY\0";
const XERIAL_VERSIONS_SIZE: usize = 8;

/// A zstd decoder keeps this much at most of what it has written, or the limit if that is more.
/// Compression levels up to 19 stay below it.
const ZSTD_WINDOW_SIZE_MAX: u64 = 8 << 20;

pub(super) fn decompress(
    codec: Compression,
    bytes: Bytes,
    size_max: usize,
) -> Result<Bytes, RecordFault> {
    match codec {
        Compression::None if bytes.len() > size_max => Err(RecordFault::TooLarge { size_max }),
        Compression::None => Ok(bytes),
        Compression::Gzip => {
            read_all(flate2::read::MultiGzDecoder::new(&bytes[..]), codec, size_max)
        }
        Compression::Snappy => snappy(bytes, size_max),
        Compression::Lz4 => {
            read_all(lz4_flex::frame::FrameDecoder::new(&bytes[..]), codec, size_max)
        }
        Compression::Zstd => zstd(&bytes, size_max),
    }
}

fn read_all(reader: impl Read, codec: Compression, size_max: usize) -> Result<Bytes, RecordFault> {
    let mut output = Vec::new();
    // One byte more than allowed tells too much from just enough.
    let limit = (size_max as u64).saturating_add(1);
    reader.take(limit).read_to_end(&mut output).map_err(|_| RecordFault::Compression { codec })?;
    if output.len() > size_max {
        return Err(RecordFault::TooLarge { size_max });
    }
    Ok(output.into())
}

fn zstd(bytes: &[u8], size_max: usize) -> Result<Bytes, RecordFault> {
    let fault = RecordFault::Compression { codec: Compression::Zstd };
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(ZSTD_WINDOW_SIZE_MAX.max(size_max as u64));
    let decoder = StreamingDecoder::new_with_decoder(bytes, decoder).map_err(|_| fault)?;
    read_all(decoder, Compression::Zstd, size_max)
}

fn snappy(mut bytes: Bytes, size_max: usize) -> Result<Bytes, RecordFault> {
    let mut output = Vec::new();
    if !bytes.starts_with(XERIAL_MAGIC) {
        snappy_block(&bytes, &mut output, size_max)?;
        return Ok(output.into());
    }
    let fault = RecordFault::Compression { codec: Compression::Snappy };
    if bytes.len() < XERIAL_MAGIC.len() + XERIAL_VERSIONS_SIZE {
        return Err(fault);
    }
    bytes.advance(XERIAL_MAGIC.len() + XERIAL_VERSIONS_SIZE);
    while !bytes.is_empty() {
        let size = bytes.try_get_u32().map_err(|_| fault)? as usize;
        if size > bytes.len() {
            return Err(fault);
        }
        snappy_block(&bytes.split_to(size), &mut output, size_max)?;
    }
    Ok(output.into())
}

fn snappy_block(block: &[u8], output: &mut Vec<u8>, size_max: usize) -> Result<(), RecordFault> {
    let fault = RecordFault::Compression { codec: Compression::Snappy };
    let size = snap::raw::decompress_len(block).map_err(|_| fault)?;
    let from = output.len();
    if size > size_max - from {
        return Err(RecordFault::TooLarge { size_max });
    }
    // Snappy copies at most 64 bytes for three: a larger claim is none that the block can keep.
    if size > block.len().saturating_mul(64) {
        return Err(fault);
    }
    output.resize(from + size, 0);
    snap::raw::Decoder::new().decompress(block, &mut output[from..]).map_err(|_| fault)?;
    Ok(())
}
