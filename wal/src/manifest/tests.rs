use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::crash_disk::CrashDisk;

fn partition(index: u32) -> PartitionId {
    PartitionId { topic: TopicId([0xcd; 16]), index }
}

fn sample() -> Manifest {
    let run = |index, base, position| Run {
        partition: partition(index),
        base,
        end: base + 10,
        max_timestamp_ms: -1,
        position,
        size: 500,
    };
    let extent = |id: u64, is_shared: bool, runs: Vec<Run>| {
        let file = match is_shared {
            true => extent::shared_name(id, 4),
            false => extent::single_name(runs[0].partition, runs[0].base, 4),
        };
        Arc::new(ExtentRef { id, generation: 4, level: 1, is_shared, file, size: 8192, runs })
    };
    Manifest {
        version: 12,
        epoch: ShardEpoch(3),
        replay_from: Sequence(31),
        first_segment: SegmentId(5),
        durable: Sequence(40),
        extent_id_next: 9,
        snapshots: vec![
            SnapshotRef {
                first: Sequence(11),
                last: Sequence(15),
                size: 12288,
                entry_count: 3,
                checksum: 0x1111_1111,
            },
            SnapshotRef {
                first: Sequence(25),
                last: Sequence(24),
                size: 8192,
                entry_count: 0,
                checksum: 0x2222_2222,
            },
        ],
        deltas: vec![
            DeltaRef {
                after: Sequence(10),
                through: Sequence(20),
                valid_at: Sequence(22),
                number: 10,
                size: 12288,
                checksum: 0x3333_3333,
            },
            DeltaRef {
                after: Sequence(22),
                through: Sequence(30),
                valid_at: Sequence(30),
                number: 11,
                size: 12288,
                checksum: 0x4444_4444,
            },
        ],
        extents: vec![
            extent(2, false, vec![run(0, 0, 4096)]),
            extent(8, true, vec![run(0, 10, 4096), run(1, 0, 4596)]),
        ],
        lost: vec![LostRange { partition: partition(1), base: 10, end: 20 }],
        ..Manifest::new(ShardId(1), 2, [0xee; 16])
    }
}

#[test]
fn what_is_written_is_read() {
    let manifest = sample();
    assert_eq!(manifest.check(), Ok(()));
    assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
}

#[test]
fn golden_bytes() {
    let bytes = sample().encode();
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("not empty") + 1;
    let lines = bytes[..used]
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "));
    expect![[r#"
        eb 5c 16 1c 01 00 01 00 54 4d 4d 41 4e 49 46 45
        ee ee ee ee ee ee ee ee ee ee ee ee ee ee ee ee
        0c 00 00 00 00 00 00 00 03 00 00 00 00 00 00 00
        1f 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00
        28 00 00 00 00 00 00 00 09 00 00 00 00 00 00 00
        02 00 00 00 02 00 00 00 02 00 00 00 02 00 00 00
        03 00 00 00 01 00 00 00 00 00 00 00 00 00 00 00
        00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
        0b 00 00 00 00 00 00 00 0f 00 00 00 00 00 00 00
        00 30 00 00 00 00 00 00 03 00 00 00 00 00 00 00
        11 11 11 11 00 00 00 00 19 00 00 00 00 00 00 00
        18 00 00 00 00 00 00 00 00 20 00 00 00 00 00 00
        00 00 00 00 00 00 00 00 22 22 22 22 00 00 00 00
        0a 00 00 00 00 00 00 00 14 00 00 00 00 00 00 00
        16 00 00 00 00 00 00 00 0a 00 00 00 00 00 00 00
        00 30 00 00 00 00 00 00 33 33 33 33 00 00 00 00
        16 00 00 00 00 00 00 00 1e 00 00 00 00 00 00 00
        1e 00 00 00 00 00 00 00 0b 00 00 00 00 00 00 00
        00 30 00 00 00 00 00 00 44 44 44 44 00 00 00 00
        02 00 00 00 00 00 00 00 00 20 00 00 00 00 00 00
        04 00 00 00 01 00 00 00 01 00 00 00 00 00 00 00
        08 00 00 00 00 00 00 00 00 20 00 00 00 00 00 00
        04 00 00 00 02 00 00 00 01 01 00 00 00 00 00 00
        cd cd cd cd cd cd cd cd cd cd cd cd cd cd cd cd
        00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
        0a 00 00 00 00 00 00 00 ff ff ff ff ff ff ff ff
        00 10 00 00 00 00 00 00 f4 01 00 00 00 00 00 00
        cd cd cd cd cd cd cd cd cd cd cd cd cd cd cd cd
        00 00 00 00 00 00 00 00 0a 00 00 00 00 00 00 00
        14 00 00 00 00 00 00 00 ff ff ff ff ff ff ff ff
        00 10 00 00 00 00 00 00 f4 01 00 00 00 00 00 00
        cd cd cd cd cd cd cd cd cd cd cd cd cd cd cd cd
        01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
        0a 00 00 00 00 00 00 00 ff ff ff ff ff ff ff ff
        f4 11 00 00 00 00 00 00 f4 01 00 00 00 00 00 00
        cd cd cd cd cd cd cd cd cd cd cd cd cd cd cd cd
        01 00 00 00 00 00 00 00 0a 00 00 00 00 00 00 00
        14"#]]
    .assert_eq(&lines.collect::<Vec<_>>().join("\n"));
}

#[test]
fn any_flipped_bit_and_any_cut_is_damage() {
    let bytes = sample().encode();
    for at in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 1 << (at % 8);
        assert!(Manifest::decode(&damaged).is_err(), "byte {at}");
        assert!(Manifest::decode(&bytes[..at]).is_err(), "cut at {at}");
    }
}

fn store_bytes(disk: &mut CrashDisk, file: &FileName, bytes: Bytes) {
    let write = DiskOp::Write { file: file.clone(), offset: 0, pieces: vec![bytes] };
    disk.run(&[DiskOp::Create { file: file.clone() }, write]);
}

fn load(disk: &CrashDisk) -> Result<Option<Manifest>, String> {
    let files = disk.list().expect("listed");
    load_manifest(disk, ShardId(1), &files).map_err(|error| error.to_string())
}

#[test]
fn the_newest_manifest_counts_and_damage_to_it_is_not_passed_over() {
    let mut disk = CrashDisk::default();
    assert_eq!(load(&disk), Ok(None), "a new directory");
    let old = sample();
    let new = Manifest { version: 13, ..sample() };
    disk.run(&plan_manifest(&old));
    store_bytes(&mut disk, &FileName("tmp-manifest-00000000000000000014".into()), Bytes::new());
    store_bytes(&mut disk, &FileName("manifest-99".into()), Bytes::new());
    assert_eq!(load(&disk), Ok(Some(old)), "temporary and foreign names do not count");
    disk.run(&plan_manifest(&new));
    assert_eq!(load(&disk), Ok(Some(new)));
    disk.bytes_mut(&manifest_name(13))[100] ^= 4;
    expect!["manifest-00000000000000000013 is damaged at byte 0: manifest checksum is wrong. Nothing was changed. Restore the directory from a copy, or run `tidemill-dump quarantine DIR --shard N` to move the damage aside and accept the loss it prints."].assert_eq(&load(&disk).expect_err("damaged"));
}

#[test]
fn a_newer_release_and_a_foreign_manifest_are_named_as_such() {
    let mut disk = CrashDisk::default();
    disk.run(&plan_manifest(&sample()));
    let files = disk.list().expect("listed");
    let foreign = load_manifest(&disk, ShardId(0), &files).expect_err("another shard's");
    assert!(matches!(foreign, StoreError::Corrupt { .. }), "{foreign}");
    let bytes = disk.bytes_mut(&manifest_name(12));
    bytes[4] = 2;
    block::stamp(bytes);
    expect!["manifest-00000000000000000012 has format 2, and this build reads up to 1. Start the newer release that wrote it"].assert_eq(&load(&disk).expect_err("too new"));
}

#[test]
fn files_without_any_manifest_are_an_error() {
    let mut disk = CrashDisk::default();
    store_bytes(&mut disk, &FileName("wal-00000000000000000001.seg".into()), Bytes::new());
    store_bytes(&mut disk, &FileName("tmp-shared-1-0.ext".into()), Bytes::new());
    assert_eq!(load(&disk), Ok(None));
    store_bytes(&mut disk, &extent::shared_name(1, 0), Bytes::new());
    expect!["there is no manifest, but shared-00000000000000000001-0.ext needs one. Nothing was changed. Restore the directory from a copy, or run `tidemill-dump quarantine DIR --shard N` to move the damage aside and accept the loss it prints."].assert_eq(&load(&disk).expect_err("no manifest"));
}

#[test]
fn what_cannot_be_is_refused() {
    let check = |change: fn(&mut Manifest), why: &str| {
        let mut manifest = sample();
        change(&mut manifest);
        assert_eq!(manifest.check(), Err(why));
        let damage = Manifest::decode(&manifest.encode()).expect_err("decoding checks it too");
        assert_eq!(damage.why, why);
    };
    check(
        |manifest| manifest.deltas = manifest.deltas.split_off(1),
        "the first delta file is missing",
    );
    check(|manifest| manifest.deltas[1].after = Sequence(23), "a delta file is missing");
    check(|manifest| manifest.epoch = ShardEpoch(u64::MAX), "no epoch can follow");
    check(|manifest| manifest.durable = Sequence(29), "settled what was not durable");
    check(|manifest| manifest.replay_from = Sequence(30), "a delta file reaches into the replay");
    check(|manifest| manifest.snapshots.reverse(), "snapshots are out of order");
    check(|manifest| manifest.extents.reverse(), "extents are out of order");
    check(|manifest| manifest.extent_id_next = 8, "an extent's number is not taken");
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_without_a_panic(
        changes in proptest::collection::vec((4..700_usize, any::<u8>()), 0..8),
        size in 0..8192_usize,
    ) {
        let mut bytes = sample().encode().to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.resize(size.max(4), 0);
        block::stamp(&mut bytes);
        if let Ok(manifest) = Manifest::decode(&bytes) {
            prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        }
    }
}
