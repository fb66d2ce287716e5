//! Extents: header, directory, indexes and batches of any contents.

use tidemill_wal::extent::{ExtentRun, ExtentView, ReadFrom};
use tidemill_wal::limits::BLOCK_SIZE;

use super::allocation::bounded;
use super::{pad, stamp};

/// Bytes of the header; a target's bytes have it without the zeros behind it.
pub(super) const HEADER_SIZE: usize = 128;
const DIRECTORY_ENTRY_SIZE: usize = 96;
const INDEX_ENTRY_SIZE: usize = 32;

/// What a reader may allocate: it reads in place.
const MEMORY_MAX: usize = 1 << 14;

/// A header and what follows its block, as they are and with all checksums put right.
pub fn extent(data: &[u8]) {
    let (header, rest) = data.split_at(HEADER_SIZE.min(data.len()));
    let mut bytes = header.to_vec();
    bytes.resize(BLOCK_SIZE, 0);
    bytes.extend_from_slice(rest);
    pad(&mut bytes);
    check(&bytes);
    put_right(&mut bytes);
    check(&bytes);
}

fn check(bytes: &[u8]) {
    let Ok(view) = bounded(MEMORY_MAX, || ExtentView::open(bytes)) else { return };
    let runs: Vec<ExtentRun> = view.runs().collect();
    let mut faults = 0;
    view.verify(&mut |damage| {
        assert!(damage.position <= bytes.len() as u64);
        faults += 1;
    });
    for run in &runs {
        let mut at = run.run.position as usize;
        let mut is_whole = true;
        for batch in view.batches(&run.run) {
            let Ok((range, head)) = batch else {
                is_whole = false;
                continue;
            };
            assert!(is_whole, "nothing comes after damage");
            assert_eq!((range.start, range.len()), (at, head.size));
            at = range.end;
        }
        let end = (run.run.position + run.run.size) as usize;
        assert!(at <= end && end <= bytes.len());
        assert!(is_whole == (at == end), "a run is read to its end or is damaged");
        assert!(is_whole || faults > 0, "what cannot be read is damage");
        for (range, _) in view.intact_batches(&run.run) {
            assert!(range.start >= run.run.position as usize && range.end <= end);
        }
        for from in [
            ReadFrom::Offset(run.run.base),
            ReadFrom::Offset(run.run.end - 1),
            ReadFrom::Offset(0),
            ReadFrom::Time(run.run.max_timestamp_ms),
            ReadFrom::Time(i64::MIN),
        ] {
            for bytes_max in [0, 100, usize::MAX] {
                let found = bounded(MEMORY_MAX, || view.read(run.run.partition, from, bytes_max));
                let Ok(Some(range)) = found else { continue };
                assert!(range.start >= BLOCK_SIZE && range.end <= bytes.len());
                assert!(!range.is_empty());
            }
        }
        if faults == 0 {
            let first = view.read(run.run.partition, ReadFrom::Offset(run.run.base), 1);
            assert!(matches!(first, Ok(Some(_))), "an extent without damage can be read");
        }
    }
}

fn number(bytes: &[u8], at: usize, size: usize) -> Option<usize> {
    let mut word = [0; 8];
    word[..size].copy_from_slice(bytes.get(at..at.checked_add(size)?)?);
    usize::try_from(u64::from_le_bytes(word)).ok()
}

fn put(bytes: &mut [u8], at: usize, checksum: u32) {
    bytes[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
}

fn section(at: usize, count: usize, size: usize) -> Option<std::ops::Range<usize>> {
    Some(at..at.checked_add(count.checked_mul(size)?)?)
}

/// Puts right every checksum that can be found: of pieces, indexes, directory and header.
pub(super) fn put_right(bytes: &mut [u8]) {
    let size = bytes.len() as u64;
    bytes[72..80].copy_from_slice(&size.to_le_bytes());
    let _ = put_right_inside(bytes);
    stamp(&mut bytes[..BLOCK_SIZE]);
}

fn put_right_inside(bytes: &mut [u8]) -> Option<()> {
    let run_count = number(bytes, 28, 4)?;
    let directory = section(number(bytes, 64, 8)?, run_count, DIRECTORY_ENTRY_SIZE)?;
    bytes.get(directory.clone())?;
    for entry in directory.clone().step_by(DIRECTORY_ENTRY_SIZE) {
        let index_count = number(bytes, entry + 20, 4)?;
        let index = section(number(bytes, entry + 64, 8)?, index_count, INDEX_ENTRY_SIZE)?;
        bytes.get(index.clone())?;
        for piece in index.clone().step_by(INDEX_ENTRY_SIZE) {
            let range = section(number(bytes, piece + 16, 8)?, number(bytes, piece + 24, 4)?, 1)?;
            if let Some(piece_bytes) = bytes.get(range) {
                let checksum = crc32c::crc32c(piece_bytes);
                put(bytes, piece + 28, checksum);
            }
        }
        let checksum = crc32c::crc32c(&bytes[index]);
        put(bytes, entry + 80, checksum);
    }
    let checksum = crc32c::crc32c(&bytes[directory]);
    put(bytes, 36, checksum);
    Some(())
}
