use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::crash_disk::CrashDisk;
use crate::delta::{DeltaRef, DeltaSpec, StateChange, plan_delta, read_delta};
use crate::disk::DiskOp;
use crate::snapshot::{SnapshotRef, SnapshotWriter, read_snapshot};

const SHARD: ShardId = ShardId(2);

fn delta(changes: &[StateChange]) -> (DeltaRef, CrashDisk) {
    let spec = DeltaSpec {
        shard: SHARD,
        after: Sequence(4),
        through: Sequence(8),
        valid_at: Sequence(9),
        number: 6,
    };
    let (delta, ops) = plan_delta(&spec, changes, 1 << 20);
    let mut disk = CrashDisk::default();
    disk.run(&ops);
    (delta, disk)
}

fn read_back(disk: &CrashDisk, delta: &DeltaRef) -> Result<Vec<StateChange>, String> {
    let mut changes = Vec::new();
    read_delta(disk, SHARD, delta, &mut |key, value| {
        changes.push((key.to_vec(), value.map(<[u8]>::to_vec)));
    })
    .map_err(|fault| fault.to_string())?;
    Ok(changes)
}

fn snapshot(slices: &[Vec<(Vec<u8>, Vec<u8>)>]) -> (SnapshotRef, CrashDisk) {
    let (mut writer, mut ops) = SnapshotWriter::begin(SHARD, Sequence(5), 1 << 20);
    for slice in slices {
        ops.extend(writer.add(slice.iter().map(|(key, value)| (key, value))));
    }
    let (snapshot, rest) = writer.finish(Sequence(7));
    ops.extend(rest);
    let mut disk = CrashDisk::default();
    disk.run(&ops);
    (snapshot, disk)
}

fn changes() -> Vec<StateChange> {
    vec![
        (b"a".to_vec(), Some(b"one".to_vec())),
        (b"b".to_vec(), None),
        (b"c".to_vec(), Some(Vec::new())),
    ]
}

#[test]
fn padding_that_is_not_zero_is_damage_even_under_a_right_checksum() {
    let (delta, _) = delta(&changes());
    let mut block = vec![0; 2 * BLOCK_SIZE];
    let header = BlockHeader {
        checksum: 0.into(),
        size: 0.into(),
        count: 0.into(),
        index: 0.into(),
        first: delta.after.0.into(),
        reserved: [0; 8],
    };
    block[..size_of::<BlockHeader>()].copy_from_slice(header.as_bytes());
    stamp(&mut block);
    assert!(check_block(&block, 7, 0, delta.after.0).is_ok());
    block[100] = 1;
    stamp(&mut block);
    let damage = check_block(&block, 7, 0, delta.after.0).unwrap_err();
    assert_eq!(damage, Damage::new(7, "padding is not zero"));
}

/// Small entries, then enough large ones for several blocks and writes.
fn large() -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..60_u8).map(|number| (vec![number], vec![number; 50_000])).collect()
}

#[test]
fn what_is_written_is_read() {
    let (named, disk) = delta(&changes());
    assert_eq!(&*named.file().0, "delta-00000000000000000008-6.dlt");
    assert_eq!(named.size, 3 * 4096);
    assert_eq!(read_back(&disk, &named), Ok(changes()));

    let (named, disk) = snapshot(&[large()[..3].to_vec(), Vec::new(), large()[3..].to_vec()]);
    assert_eq!(&*named.file().0, "snapshot-00000000000000000005-00000000000000000007.snap");
    let mut entries = Vec::new();
    read_snapshot(&disk, SHARD, &named, &mut |key, value| {
        entries.push((key.to_vec(), value.to_vec()))
    })
    .expect("whole");
    assert_eq!(entries, large());
    let mut blocks = 0;
    let info = read_state_file(&disk, &named.file(), named.size, &mut |_| blocks += 1);
    assert_eq!(info.expect("whole").block_count, blocks);
    assert_eq!(blocks, 30, "two entries fill a block");
}

#[test]
fn a_snapshot_of_nothing_is_a_snapshot() {
    let (named, disk) = snapshot(&[]);
    read_snapshot(&disk, SHARD, &named, &mut |_, _| panic!("nothing is in it")).expect("whole");
}

#[test]
fn the_largest_entry_fits() {
    let largest = vec![(vec![7; KEY_SIZE_MAX], Some(vec![8; VALUE_SIZE_MAX]))];
    let (named, disk) = delta(&largest);
    assert_eq!(read_back(&disk, &named), Ok(largest));
}

#[test]
fn a_snapshot_is_written_as_it_grows() {
    let (mut writer, ops) = SnapshotWriter::begin(SHARD, Sequence(5), 2 << 20);
    assert!(matches!(ops[..], [DiskOp::Create { .. }]));
    assert!(writer.add(large().into_iter().take(2)).is_empty(), "less than one write");
    let ops = writer.add(large());
    let count = |wanted: fn(&DiskOp) -> bool| ops.iter().filter(|op| wanted(op)).count();
    assert_eq!(count(|op| matches!(op, DiskOp::Write { .. })), 3, "three MiB are full");
    assert_eq!(count(|op| matches!(op, DiskOp::Drain { .. })), 1);
    assert!(
        matches!(&writer.abandon()[..], [DiskOp::Remove { file }] if file.0.starts_with("tmp-"))
    );
}

#[test]
fn a_snapshot_whose_last_slice_was_drained_is_synced_all_the_same() {
    let (mut writer, _) = SnapshotWriter::begin(SHARD, Sequence(5), 1);
    let ops = writer.add(large());
    assert!(matches!(ops[..], [.., DiskOp::Write { .. }, DiskOp::Drain { .. }]), "{ops:?}");
    let (_, ops) = writer.finish(Sequence(9));
    assert!(matches!(ops[..], [.., DiskOp::Sync { .. }, DiskOp::Rename { .. }]), "{ops:?}");
}

#[test]
fn golden_bytes_of_header_block_and_footer() {
    let (named, disk) = delta(&changes());
    let bytes = disk.bytes(&named.file());
    let hex = |bytes: &[u8]| {
        let lines = bytes.chunks(16).map(|line| {
            line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    expect![[r#"
        1c 87 32 8a 01 00 02 00 54 4d 53 54 41 54 45 00
        02 00 00 00 00 00 00 00 04 00 00 00 00 00 00 00
        08 00 00 00 00 00 00 00 09 00 00 00 00 00 00 00
        06 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"#]]
    .assert_eq(&hex(&bytes[..64]));
    expect![[r#"
        02 f3 e0 72 1e 00 00 00 03 00 00 00 00 00 00 00
        04 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
        01 00 00 00 03 00 00 00 61 6f 6e 65 01 00 01 00
        00 00 00 00 62 01 00 00 00 00 00 00 00 63 00 00"#]]
    .assert_eq(&hex(&bytes[4096..4096 + 64]));
    expect![[r#"
        01 b9 41 3e e2 6d 71 a5 54 4d 53 54 45 4e 44 00
        03 00 00 00 00 00 00 00 1e 00 00 00 00 00 00 00
        09 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00
        00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"#]]
    .assert_eq(&hex(&bytes[8192..8192 + 64]));
}

#[test]
fn any_flipped_bit_is_a_fault_and_hands_out_nothing_wrong() {
    let (named, disk) = delta(&changes());
    let size = disk.bytes(&named.file()).len();
    for at in 0..size {
        let mut disk = disk.clone();
        disk.bytes_mut(&named.file())[at] ^= 1 << (at % 8);
        let mut seen = Vec::new();
        let fault = read_delta(&disk, SHARD, &named, &mut |key, value| {
            seen.push((key.to_vec(), value.map(<[u8]>::to_vec)));
        })
        .expect_err("one bit is wrong");
        let FileFault::Damage(damage) = fault else { panic!("byte {at}: {fault}") };
        assert_eq!(damage.position, at as u64 / 4096 * 4096, "byte {at}: {damage}");
        assert!(changes().starts_with(&seen));
    }
}

#[test]
fn a_file_cut_short_anywhere_is_a_fault() {
    let (named, disk) = snapshot(&[large()]);
    let whole = disk.bytes(&named.file()).len();
    for size in (0..whole).step_by(12_345).chain([whole - 4096, whole - 1]) {
        let mut disk = disk.clone();
        disk.bytes_mut(&named.file()).truncate(size);
        // Both as the manifest thinks it is, and as the directory lists it.
        assert!(read_snapshot(&disk, SHARD, &named, &mut |_, _| ()).is_err(), "cut at {size}");
        let listed = read_state_file(&disk, &named.file(), size as u64, &mut |_| ());
        assert!(listed.is_err(), "cut at {size}");
    }
}

#[test]
fn blocks_of_other_files_and_missing_blocks_are_found() {
    let (named, disk) = snapshot(&[large()]);
    let file = named.file();
    let block = (32 + 2 * 50_009_usize).next_multiple_of(4096);
    let swap = |first: usize, second: usize| {
        let mut disk = disk.clone();
        let bytes = disk.bytes_mut(&file);
        let (a, b) = (4096 + first * block, 4096 + second * block);
        let taken = bytes[a..a + block].to_vec();
        bytes.copy_within(b..b + block, a);
        bytes[b..b + block].copy_from_slice(&taken);
        read_snapshot(&disk, SHARD, &named, &mut |_, _| ()).expect_err("swapped").to_string()
    };
    assert_eq!(swap(1, 2), format!("byte {}: block belongs elsewhere", 4096 + block));

    // The same first frame, other values: the blocks are right, the file is not.
    let other: Vec<_> = large().into_iter().map(|(key, _)| (key, vec![0; 50_000])).collect();
    let (_, other) = snapshot(&[other]);
    let mut mixed = disk.clone();
    mixed.bytes_mut(&file)[4096..4096 + block]
        .copy_from_slice(&other.bytes(&file)[4096..4096 + block]);
    let fault = read_snapshot(&mixed, SHARD, &named, &mut |_, _| ()).expect_err("mixed");
    assert!(fault.to_string().ends_with("blocks and footer do not belong together"), "{fault}");

    // Another file under the name: whole, but not the one.
    let fault = read_snapshot(&other, SHARD, &named, &mut |_, _| ()).expect_err("another");
    assert_eq!(fault.to_string(), "byte 0: not the file that the manifest names");
}

proptest! {
    #[test]
    fn any_changes_survive(changes in proptest::collection::btree_map(
        proptest::collection::vec(any::<u8>(), 0..40),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9000)),
        0..40,
    )) {
        let changes: Vec<StateChange> = changes.into_iter().collect();
        let (named, disk) = delta(&changes);
        prop_assert_eq!(read_back(&disk, &named), Ok(changes));
    }

    /// Wrong numbers under right checksums do no harm.
    #[test]
    fn no_bytes_make_the_reader_panic(
        changed in proptest::collection::vec((0..192_usize, any::<u8>()), 0..6),
        size in 0..20_000_u64,
        is_cut in any::<bool>(),
    ) {
        let (named, mut disk) = delta(&changes());
        let bytes = disk.bytes_mut(&named.file());
        for (at, byte) in changed {
            bytes[at / 64 * 4096 + at % 64] = byte;
        }
        for block in bytes.chunks_mut(4096) {
            stamp(block);
        }
        let size = if is_cut { size } else { named.size };
        let _ = read_state_file(&disk, &named.file(), size, &mut |block| {
            assert_eq!(block.entries().count(), block.count as usize);
        });
    }
}
