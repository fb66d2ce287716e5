use std::cell::RefCell;
use std::io;

use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::batch::tests::batch;
use crate::crash_disk::CrashDisk;
use crate::damage::Damage;

fn partition(index: u32) -> PartitionId {
    PartitionId { topic: TopicId([0xab; 16]), index }
}

fn run(index: u32, batches: Vec<BatchRef>) -> RunData {
    RunData { partition: partition(index), batches }
}

fn write(runs: Vec<RunData>) -> (ExtentRef, Bytes) {
    let spec = ExtentSpec { id: 7, generation: 2, level: 1, shard: ShardId(3), runs };
    let (extent, ops) = plan_extent(spec, 1 << 20);
    let mut disk = CrashDisk::default();
    disk.run(&ops);
    let bytes = disk.bytes(&extent.file);
    assert_eq!(extent.size, bytes.len() as u64);
    (extent, bytes)
}

/// Two partitions; one has a gap in its offsets, times out of order and several pieces.
fn sample() -> (ExtentRef, Bytes) {
    write(vec![
        run(
            1,
            vec![
                batch(10, 5, 100, 20_000),
                batch(15, 1, 300, 20_000),
                batch(16, 4, 200, 20_000),
                batch(40, 10, 250, 70),
                batch(50, 1, 400, 61),
            ],
        ),
        run(0, vec![batch(0, 3, 50, 100)]),
    ])
}

fn hex(bytes: &[u8]) -> String {
    let lines = bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn an_extent_in_the_place_of_another_is_damage() {
    let (shared, bytes) = sample();
    let (single, single_bytes) = write(vec![run(1, vec![batch(10, 5, 100, 61)])]);
    let open = |bytes: &Bytes, shard: u16, file: &FileName| {
        let view = ExtentView::open_named(bytes, &|_| Ok(()), ShardId(shard), file);
        view.map(|_| ()).map_err(|damage| damage.why.to_string())
    };
    assert_eq!(open(&bytes, 3, &shared.file), Ok(()));
    assert_eq!(open(&single_bytes, 3, &single.file), Ok(()));
    let other = shared_name(8, 2);
    let why = "it holds shared-00000000000000000007-2.ext of shard 3";
    for (bytes, shard, file) in [(&bytes, 3, &other), (&bytes, 4, &shared.file)] {
        assert_eq!(open(bytes, shard, file), Err(why.to_owned()));
    }
    assert!(open(&single_bytes, 3, &shared.file).is_err());
}

#[test]
fn golden_bytes_of_header_directory_and_index() {
    let (extent, bytes) = write(vec![run(1, vec![batch(10, 5, 100, 61)])]);
    assert_eq!(&*extent.file.0, "abababababababababababababababab-1-00000000000000000010-2.ext");
    let tail = BLOCK_SIZE + 61;
    expect![[r#"
        da 87 24 5b 01 00 03 00 54 4d 45 58 54 45 4e 54
        07 00 00 00 00 00 00 00 02 00 00 00 01 00 00 00
        01 00 00 00 08 15 66 d3 3d 00 00 00 00 00 00 00
        3d 10 00 00 00 00 00 00 5d 10 00 00 00 00 00 00
        00 20 00 00 00 00 00 00 00 00 00 00 00 00 00 00
        00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
        00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
        00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"#]]
    .assert_eq(&hex(&bytes[..128]));
    expect![[r#"
        0a 00 00 00 00 00 00 00 64 00 00 00 00 00 00 00
        00 10 00 00 00 00 00 00 3d 00 00 00 09 7b df e0
        ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab ab
        01 00 00 00 01 00 00 00 0a 00 00 00 00 00 00 00
        0f 00 00 00 00 00 00 00 64 00 00 00 00 00 00 00
        00 10 00 00 00 00 00 00 3d 00 00 00 00 00 00 00
        3d 10 00 00 00 00 00 00 01 00 00 00 00 00 00 00
        f9 2d 60 bf 00 00 00 00 00 00 00 00 00 00 00 00"#]]
    .assert_eq(&hex(&bytes[tail..tail + 128]));
}

#[test]
fn the_reference_says_what_the_file_holds() {
    let (extent, bytes) = sample();
    assert_eq!(&*extent.file.0, "shared-00000000000000000007-2.ext");
    let view = ExtentView::open(&bytes).expect("whole");
    assert_eq!(view.runs().map(|run| run.run).collect::<Vec<_>>(), extent.runs);
    let counts: Vec<(u64, u32)> =
        view.runs().map(|run| (run.batch_count, run.piece_count)).collect();
    assert_eq!(counts, [(1, 1), (5, 2)]);
    assert_eq!((view.id(), view.generation(), view.shard()), (7, 2, ShardId(3)));
    assert_eq!(verify(&bytes), []);
}

/// Base offsets of the batches in a range of the file.
fn bases(bytes: &[u8], range: std::ops::Range<usize>) -> Vec<u64> {
    let mut rest = &bytes[range];
    let mut bases = Vec::new();
    while !rest.is_empty() {
        let head = BatchHead::parse(rest).expect("whole batches");
        bases.push(head.base_offset);
        rest = &rest[head.size..];
    }
    bases
}

#[test]
fn reads_begin_at_the_batch_that_fits_and_end_at_a_batch() {
    let (_, bytes) = sample();
    let view = ExtentView::open(&bytes).expect("whole");
    let check = |from, bytes_max| {
        let range = view.read(partition(1), from, bytes_max).expect("nothing is damaged");
        range.map(|range| bases(&bytes, range))
    };
    use ReadFrom::{Offset, Time};
    assert_eq!(check(Offset(0), 0), Some(vec![10]), "one batch at least");
    assert_eq!(check(Offset(14), 39_999), Some(vec![10]));
    assert_eq!(check(Offset(14), 40_000), Some(vec![10, 15]));
    assert_eq!(check(Offset(15), 40_000), Some(vec![15, 16]), "across pieces");
    assert_eq!(check(Offset(19), 1 << 20), Some(vec![16, 40, 50]));
    assert_eq!(check(Offset(20), 1 << 20), Some(vec![40, 50]), "a gap");
    assert_eq!(check(Offset(50), 1 << 20), Some(vec![50]));
    assert_eq!(check(Offset(51), 1 << 20), None);
    assert_eq!(check(Time(i64::MIN), 1), Some(vec![10]));
    assert_eq!(check(Time(101), 1), Some(vec![15]));
    assert_eq!(check(Time(300), 1), Some(vec![15]));
    assert_eq!(check(Time(301), 1 << 20), Some(vec![50]));
    assert_eq!(check(Time(401), 1), None);
    assert_eq!(view.read(partition(2), Offset(0), 1), Ok(None));
    let range = view.read(partition(0), Offset(2), 1).expect("whole").expect("there");
    assert_eq!(bases(&bytes, range), [0]);
}

#[test]
fn the_pieces_of_a_read_are_whole_and_fit_and_tell_what_follows() {
    let (extent, bytes) = sample();
    let view = ExtentView::open(&bytes).expect("whole");
    let begin = extent.runs[1].position as usize;
    let check = |from, bytes_max| {
        let pieces = view.locate(partition(1), from, bytes_max).expect("whole")?;
        let range = pieces.range();
        let found = pieces.find(&bytes[range.clone()]).expect("whole");
        let bases = found.map(|it| bases(&bytes, range.start + it.start..range.start + it.end));
        Some((range.start - begin..range.end - begin, pieces.next_offset, bases))
    };
    use ReadFrom::{Offset, Time};
    assert_eq!(check(Offset(15), 0), Some((0..40_000, Some(16), Some(vec![15]))), "one at least");
    assert_eq!(check(Offset(10), 60_130), Some((0..40_000, Some(16), Some(vec![10, 15]))));
    assert_eq!(check(Offset(10), 60_131), Some((0..60_131, None, Some(vec![10, 15, 16, 40, 50]))));
    assert_eq!(check(Offset(12), 20_000), Some((0..40_000, Some(16), Some(vec![10]))));
    assert_eq!(check(Offset(50), 1 << 20), Some((40_000..60_131, None, Some(vec![50]))));
    assert_eq!(check(Time(301), 100), Some((40_000..60_131, None, Some(vec![50]))));
    assert_eq!(check(Offset(51), 1 << 20), None);
}

#[test]
fn a_read_goes_on_behind_a_piece_that_ends_in_a_gap() {
    let (_, bytes) = write(vec![run(
        1,
        vec![batch(0, 1, 0, 40_000), batch(7, 1, 0, 40_000), batch(8, 1, 0, 100)],
    )]);
    let view = ExtentView::open(&bytes).expect("whole");
    let read = |offset, bytes_max| {
        let range = view.read(partition(1), ReadFrom::Offset(offset), bytes_max).expect("whole");
        bases(&bytes, range.expect("there"))
    };
    assert_eq!(read(3, 1), [7]);
    assert_eq!(read(3, 40_100), [7, 8]);
    let pieces = view.locate(partition(1), ReadFrom::Offset(3), 1).expect("whole").expect("one");
    assert_eq!(pieces.find(&bytes[pieces.range()]), Ok(None));
    assert_eq!(pieces.next_offset, Some(7));
}

#[test]
fn a_read_ends_with_its_run_though_the_next_one_follows_in_the_file() {
    let (_, bytes) =
        write(vec![run(1, vec![batch(0, 1, 0, 100)]), run(1, vec![batch(5, 1, 0, 100)])]);
    let view = ExtentView::open(&bytes).expect("whole");
    let read = |offset| {
        let range = view.read(partition(1), ReadFrom::Offset(offset), 1 << 20).expect("whole");
        bases(&bytes, range.expect("there"))
    };
    assert_eq!(read(0), [0]);
    assert_eq!(read(1), [5]);
}

#[test]
fn a_read_touches_only_the_pieces_it_returns() {
    let (_, bytes) = sample();
    let touched = RefCell::new(Vec::new());
    let populate = |range: std::ops::Range<usize>| {
        touched.borrow_mut().push(range);
        Ok(())
    };
    let view = ExtentView::open_with(&bytes, &populate).expect("whole");
    touched.borrow_mut().clear();
    let found = view.read(partition(1), ReadFrom::Offset(40), 1).expect("whole").expect("there");
    let data: Vec<_> =
        touched.borrow().iter().filter(|range| range.start < 64_000).cloned().collect();
    assert_eq!(data.len(), 1, "{data:?}");
    assert!(data[0].start < found.start && data[0].len() < 21_000);
}

#[test]
fn what_the_system_cannot_read_is_a_fault_with_its_position() {
    let (_, bytes) = sample();
    let populate = |range: std::ops::Range<usize>| match range.contains(&30_000) {
        true => Err(io::Error::other("medium error")),
        false => Ok(()),
    };
    let view = ExtentView::open_with(&bytes, &populate).expect("header and directory are fine");
    let fault = view.read(partition(1), ReadFrom::Offset(10), 1).expect_err("the piece is not");
    assert_eq!(fault.to_string(), "byte 4196: cannot be read: medium error");
}

fn verify(bytes: &[u8]) -> Vec<Damage> {
    let mut faults = Vec::new();
    match ExtentView::open(bytes) {
        Ok(view) => view.verify(&mut |damage| faults.push(damage)),
        Err(damage) => faults.push(damage),
    }
    faults
}

#[test]
fn any_flipped_bit_is_found_and_never_read() {
    let (_, bytes) = write(vec![
        run(0, vec![batch(0, 3, 50, 100), batch(3, 1, 60, 70)]),
        run(1, vec![batch(9, 1, 50, 61)]),
    ]);
    for at in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 1 << (at % 8);
        let faults = verify(&damaged);
        let [fault] = &faults[..] else { panic!("byte {at}: {faults:?}") };
        assert!(fault.position <= at as u64, "byte {at}: {fault}");
        let read = ExtentView::open(&damaged)
            .and_then(|view| view.read(partition(0), ReadFrom::Offset(0), 1000));
        match read {
            Ok(range) => assert_eq!(range, Some(BLOCK_SIZE..BLOCK_SIZE + 170), "byte {at}"),
            Err(damage) => assert_eq!(damage, *fault),
        }
    }
}

#[test]
fn a_file_cut_short_anywhere_does_not_open() {
    let (_, bytes) = sample();
    for size in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        let fault = ExtentView::open(&bytes[..size]).err().expect("cut short");
        assert!(fault.position <= bytes.len() as u64, "{fault}");
    }
}

#[test]
fn damage_in_one_run_leaves_the_others_readable() {
    let (extent, bytes) = sample();
    let mut damaged = bytes.to_vec();
    damaged[extent.runs[1].position as usize + 50_000] ^= 1;
    let faults = verify(&damaged);
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].position, extent.runs[1].position + 40_000, "the second piece");
    let view = ExtentView::open(&damaged).expect("header and directory are fine");
    assert!(view.read(partition(0), ReadFrom::Offset(0), 1000).is_ok());
    assert!(view.read(partition(1), ReadFrom::Offset(10), 30_000).is_ok());
    assert!(view.read(partition(1), ReadFrom::Offset(10), 60_000).is_err());
    let walked: Vec<_> = view.batches(&extent.runs[1]).collect();
    assert_eq!(walked.len(), 3);
    assert!(walked[1].is_ok() && walked[2].is_err(), "the walk ends at the damage");
}

#[test]
fn a_range_is_verified_alone() {
    let (extent, bytes) = sample();
    let mut damaged = bytes.to_vec();
    let second_piece = extent.runs[1].position + 40_000;
    damaged[second_piece as usize + 5] ^= 1;
    let view = ExtentView::open(&damaged).expect("header and directory are fine");
    let count = |range| {
        let mut count = 0;
        view.verify_range(range, &mut |_| count += 1);
        count
    };
    assert_eq!(count(0..second_piece), 0);
    assert_eq!(count(second_piece..second_piece + 1), 1);
    assert_eq!(count(second_piece + 1..extent.size), 0);
}

/// Makes the checksums of header, directory and indexes right again.
fn restamp(bytes: &mut [u8]) {
    let field = |bytes: &[u8], at: usize| {
        let mut field = [0; 8];
        field.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(field) as usize
    };
    let from = field(bytes, 56);
    let mut count = [0; 4];
    count.copy_from_slice(&bytes[28..32]);
    let size = (u32::from_le_bytes(count) as usize).saturating_mul(96);
    let Some(to) = from.checked_add(size).filter(|to| *to <= bytes.len()) else { return };
    for entry in (from..to).step_by(96) {
        let mut count = [0; 4];
        count.copy_from_slice(&bytes[entry + 20..entry + 24]);
        let index = field(bytes, entry + 64);
        let end = (u32::from_le_bytes(count) as usize).saturating_mul(32).checked_add(index);
        if let Some(index) = end.and_then(|end| bytes.get(index..end)) {
            let checksum = crc32c::crc32c(index).to_le_bytes();
            bytes[entry + 80..entry + 84].copy_from_slice(&checksum);
        }
    }
    let checksum = crc32c::crc32c(&bytes[from..to]).to_le_bytes();
    bytes[36..40].copy_from_slice(&checksum);
    block::stamp(&mut bytes[..BLOCK_SIZE]);
}

fn walk_all(bytes: &[u8]) {
    let Ok(view) = ExtentView::open(bytes) else { return };
    view.verify(&mut |_| {});
    for run in view.runs().take(100) {
        let _ = view.batches(&run.run).count();
        let _ = view.read(run.run.partition, ReadFrom::Offset(run.run.base), 1000);
        let _ = view.read(run.run.partition, ReadFrom::Time(run.run.max_timestamp_ms), 1000);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_opened_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
        walk_all(&bytes);
    }

    /// Even numbers that are wrong under right checksums do no harm.
    #[test]
    fn wrong_numbers_under_right_checksums_do_not_panic(
        changes in proptest::collection::vec((0..600_usize, any::<u8>()), 1..4),
    ) {
        let (_, bytes) = write(vec![
            run(0, vec![batch(0, 3, 50, 100), batch(3, 1, 60, 70)]),
            run(1, vec![batch(9, 1, 50, 61)]),
        ]);
        let mut bytes = bytes.to_vec();
        for (at, byte) in changes {
            // The header's fields, or the sections behind the data.
            let at = if at < 128 { at.max(4) } else { BLOCK_SIZE + 231 + at - 128 };
            if let Some(found) = bytes.get_mut(at) {
                *found = byte;
            }
        }
        restamp(&mut bytes);
        walk_all(&bytes);
    }

    #[test]
    fn reads_agree_with_a_plain_list(
        sizes in proptest::collection::vec((61..30_000_usize, 1..5_u32, 0..3_u64, 0..50_i64), 1..12),
        offset in 0..60_u64,
        time in 0..60_i64,
        bytes_max in 0..100_000_usize,
    ) {
        let mut base = 0;
        let mut batches = Vec::new();
        for (size, records, gap, timestamp) in sizes {
            base += gap;
            batches.push(batch(base, records, timestamp, size));
            base += u64::from(records);
        }
        let (_, bytes) = write(vec![run(0, batches.clone()), run(5, vec![batch(0, 1, 0, 61)])]);
        let view = ExtentView::open(&bytes).expect("whole");
        let expected = |first: Option<usize>| first.map(|first| {
            let mut size = 0;
            batches[first..].iter().enumerate().take_while(|(at, batch)| {
                size += batch.bytes.len();
                *at == 0 || size <= bytes_max
            }).map(|(_, batch)| batch.base_offset).collect::<Vec<_>>()
        });
        let read = |from| {
            let range = view.read(partition(0), from, bytes_max).expect("whole");
            range.map(|range| bases(&bytes, range))
        };
        let first = batches.iter().position(|batch| batch.last_offset >= offset);
        prop_assert_eq!(read(ReadFrom::Offset(offset)), expected(first));
        let first = batches.iter().position(|batch| batch.max_timestamp_ms >= time);
        prop_assert_eq!(read(ReadFrom::Time(time)), expected(first));
    }
}

#[test]
fn intact_batches_leave_out_damaged_pieces_and_nothing_else() {
    let (extent, bytes) = sample();
    let run = extent.runs[1];
    let bases = |bytes: &[u8]| -> Vec<u64> {
        let view = ExtentView::open(bytes).expect("its head and directory are whole");
        view.intact_batches(&run).into_iter().map(|(_, head)| head.base_offset).collect()
    };
    assert_eq!(bases(&bytes), [10, 15, 16, 40, 50]);
    let mut damaged = bytes.to_vec();
    damaged[run.position as usize + 25_000] ^= 1;
    assert_eq!(bases(&damaged), [16, 40, 50]);
    let other = ExtentView::open(&damaged).unwrap().intact_batches(&extent.runs[0]).len();
    assert_eq!(other, 1, "other runs are not touched");
}
