//! Files of keyed state (snapshots, delta files) and manifests.

use tidemill_wal::block::{StateFileInfo, StateFileKind, read_state_file, read_state_info};
use tidemill_wal::delta::{DeltaRef, DeltaSpec, StateChange, plan_delta, read_delta};
use tidemill_wal::disk::{DiskOp, MemoryStorage, Storage};
use tidemill_wal::format::FileName;
use tidemill_wal::limits::{BLOCK_SIZE, KEY_SIZE_MAX, VALUE_SIZE_MAX};
use tidemill_wal::manifest::Manifest;
use tidemill_wal::snapshot::{SnapshotRef, SnapshotWriter, read_snapshot};

use super::allocation::bounded;
use super::{pad, stamp, take};

/// Bytes of the header and of the footer; a target's bytes have both first, then the blocks.
pub(super) const END_SIZE: usize = 64;

/// A header, a footer and one block of entries, as they are and with all checksums put right.
pub fn state_file(mut data: &[u8]) {
    let mut bytes = take(&mut data, END_SIZE).to_vec();
    bytes.resize(BLOCK_SIZE, 0);
    let mut footer = take(&mut data, END_SIZE).to_vec();
    footer.resize(BLOCK_SIZE, 0);
    let blocks = BLOCK_SIZE..BLOCK_SIZE + data.len().next_multiple_of(BLOCK_SIZE);
    bytes.extend_from_slice(data);
    bytes.resize(blocks.end, 0);
    bytes.extend_from_slice(&footer);
    check(bytes.clone());

    let mut checksum = crc32c::crc32c(&stamp(&mut bytes[..BLOCK_SIZE]).to_le_bytes());
    if !blocks.is_empty() {
        let block = stamp(&mut bytes[blocks.clone()]);
        checksum = crc32c::crc32c_append(checksum, &block.to_le_bytes());
    }
    let footer = &mut bytes[blocks.end..];
    footer[4..8].copy_from_slice(&checksum.to_le_bytes());
    stamp(footer);
    check(bytes);
}

fn check(bytes: Vec<u8>) {
    let (file, size) = (FileName("state".into()), bytes.len());
    let mut storage = MemoryStorage::new();
    *storage.file_mut(&file) = bytes;
    let mut changes: Vec<StateChange> = Vec::new();
    let read = bounded(16 * size + (1 << 16), || {
        read_state_file(&storage, &file, size as u64, &mut |block| {
            for (key, value) in block.entries() {
                changes.push((key.to_vec(), value.map(<[u8]>::to_vec)));
            }
        })
    });
    let Ok(info) = read else { return };
    assert_eq!(changes.len() as u64, info.entry_count);
    let ends = read_state_info(&storage, &file, size as u64).expect("it is a part of it");
    assert_eq!(ends, info);
    let fits = changes.iter().all(|(key, value)| {
        key.len() <= KEY_SIZE_MAX && value.as_ref().map_or(0, Vec::len) <= VALUE_SIZE_MAX
    });
    if !fits {
        return;
    }
    match info.kind {
        StateFileKind::Delta => check_delta(storage, &file, &info, &changes),
        StateFileKind::Snapshot => check_snapshot(&info, &changes),
    }
}

/// A delta file that is read is written again to the same bytes, if its keys are in order.
fn check_delta(
    mut storage: MemoryStorage,
    file: &FileName,
    info: &StateFileInfo,
    changes: &[StateChange],
) {
    let bytes = storage.file(file).expect("it was just read").to_vec();
    let delta = DeltaRef {
        after: info.first,
        through: info.through,
        valid_at: info.last,
        number: info.number,
        size: bytes.len() as u64,
        checksum: info.checksum,
    };
    *storage.file_mut(&delta.file()) = bytes.clone();
    let read = read_delta(&storage, info.shard, &delta, &mut |_, _| {});
    let is_sorted = changes.is_sorted_by(|one, two| one.0 < two.0);
    assert_eq!(read.is_ok(), is_sorted, "{read:?}");
    if !is_sorted || info.through > info.last || info.first > info.last || info.block_count > 1 {
        return;
    }
    let spec = DeltaSpec {
        shard: info.shard,
        after: info.first,
        through: info.through,
        valid_at: info.last,
        number: info.number,
    };
    let (again, ops) = plan_delta(&spec, changes, 1 << 20);
    assert_eq!(again, delta);
    assert_eq!(perform(ops).file(&delta.file()), Some(&bytes[..]));
}

/// A snapshot's entries are written and read to the same.
fn check_snapshot(info: &StateFileInfo, changes: &[StateChange]) {
    let entries: Option<Vec<(Vec<u8>, Vec<u8>)>> =
        changes.iter().map(|(key, value)| Some((key.clone(), value.clone()?))).collect();
    let Some(entries) = entries else { return };
    if info.last.0 == u64::MAX || info.first > info.last.next() {
        return;
    }
    let (mut writer, mut ops) = SnapshotWriter::begin(info.shard, info.first, 1 << 20);
    ops.extend(writer.add(entries.iter().map(|(key, value)| (key, value))));
    let (snapshot, rest): (SnapshotRef, _) = writer.finish(info.last);
    ops.extend(rest);
    let storage = perform(ops);
    let mut again = Vec::new();
    read_snapshot(&storage, info.shard, &snapshot, &mut |key, value| {
        again.push((key.to_vec(), value.to_vec()));
    })
    .expect("it was just written");
    assert_eq!(again, entries);
}

fn perform(ops: Vec<DiskOp>) -> MemoryStorage {
    let mut storage = MemoryStorage::new();
    for op in ops {
        storage.perform(&op).expect("memory takes all");
    }
    storage
}

/// A manifest, as it is and with its checksum put right: what is accepted is written to the same.
pub fn manifest(data: &[u8]) {
    let mut bytes = data.to_vec();
    pad(&mut bytes);
    check_manifest(&bytes);
    stamp(&mut bytes);
    check_manifest(&bytes);
}

fn check_manifest(bytes: &[u8]) {
    let decoded = bounded(16 * bytes.len() + (1 << 12), || Manifest::decode(bytes));
    let Ok(manifest) = decoded else { return };
    assert_eq!(manifest.check(), Ok(()));
    assert_eq!(manifest.encode(), bytes);
}
