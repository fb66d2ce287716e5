//! What the fuzzers call: each target takes any bytes and asserts what has to hold for all bytes.
//!
//! Nothing panics; nothing allocates more than its bound; what was accepted is encoded and read
//! again to the same. Checksums would stop a fuzzer at the door, so most targets come twice: with
//! the bytes as they are, and with their checksums put right.
//!
//! `tests/fuzz` runs these under libFuzzer, `tests/tests/corpora.rs` runs them over the files in
//! `tests/corpora` with every `cargo test`. [`seeds`] makes the first of those files.

pub mod allocation;
mod batches;
mod configuration;
mod extents;
mod frames;
mod requests;
pub mod seeds;
mod state;

pub use batches::batch;
pub use configuration::configuration;
pub use extents::extent;
pub use frames::{entries, log};
pub use requests::{request, session};
pub use state::{manifest, state_file};

/// A target takes any bytes.
pub type Target = fn(&[u8]);

/// Every target with the name of its corpus.
pub const TARGETS: [(&str, Target); 9] = [
    ("request", request),
    ("session", session),
    ("batch", batch),
    ("entries", entries),
    ("log", log),
    ("extent", extent),
    ("state_file", state_file),
    ("manifest", manifest),
    ("configuration", configuration),
];

/// Writes the CRC-32C of what follows into the first four bytes, as all our files have it.
fn stamp(bytes: &mut [u8]) -> u32 {
    let Some((head, rest)) = bytes.split_at_mut_checked(4) else { return 0 };
    let checksum = crc32c::crc32c(rest);
    head.copy_from_slice(&checksum.to_le_bytes());
    checksum
}

/// Pads with zeros to a whole number of blocks, at least one.
fn pad(bytes: &mut Vec<u8>) {
    let block = tidemill_wal::limits::BLOCK_SIZE;
    bytes.resize(bytes.len().max(1).next_multiple_of(block), 0);
}

/// Takes bytes off the front, fewer if there are not as many.
fn take<'a>(data: &mut &'a [u8], size: usize) -> &'a [u8] {
    let (head, rest) = data.split_at(size.min(data.len()));
    *data = rest;
    head
}

/// Takes one byte off the front; 0 if there is none.
fn take_byte(data: &mut &[u8]) -> u8 {
    take(data, 1).first().copied().unwrap_or(0)
}
