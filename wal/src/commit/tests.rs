use std::fmt::Write;

use expect_test::{Expect, expect};

use super::*;
use crate::disk::MemoryStorage;
use crate::format::{Entry, PartitionId, TopicId, entries};
use crate::recovery::{ScanStart, scan};

/// A segment of 31 blocks of frames, 16 of which are the reserve.
const SEGMENT_SIZE: u64 = 32 * BLOCK_SIZE as u64;

fn empty_log() -> Log {
    let start = ScanStart {
        shard: ShardId(0),
        first_segment: SegmentId(1),
        replay_from: Sequence(1),
        known_durable: Sequence(0),
        epoch_min: ShardEpoch(0),
        segment_size: SEGMENT_SIZE,
        segment_count_max: 4,
    };
    let end = scan(&MemoryStorage::new(), &start, &mut |_| Ok(())).unwrap();
    let options =
        LogOptions { shard: ShardId(0), segment_size: SEGMENT_SIZE, segment_count_max: 4 };
    let mut log = Log::resume(options, &end);
    // The traces start without the seal, so that their numbers start at 1.
    log.needs_seal = false;
    log
}

/// Runs a script of `verb argument` steps and compares what each of them did.
fn check(script: &str, expected: Expect) {
    let mut log = empty_log();
    let mut trace = String::new();
    for step in script.split(',').map(str::trim) {
        let (verb, argument) = step.split_once(' ').unwrap_or((step, ""));
        let number = argument.parse::<u64>().unwrap_or_default();
        let result = match verb {
            "ready" => {
                let id = log.next_segment();
                log.add_ready(id, 100 + id.0);
                format!("segment {id}")
            }
            // The argument is the size of the whole frame in blocks.
            "put" => {
                let size = number as usize * BLOCK_SIZE - log.filling_size() - ENTRY_OVERHEAD_MAX;
                if log.fits(size) {
                    log.append_put(b"", &vec![7; size]);
                    "ok".to_owned()
                } else {
                    "does not fit".to_owned()
                }
            }
            "submit" => trace_write(log.submit(5)),
            "idle" => trace_write(log.submit_idle(5)),
            "seal" => trace_write(log.submit_seal(5)),
            "durable" => {
                let sequence = log.in_flight().unwrap();
                log.on_durable(sequence);
                format!("through {}", log.durable())
            }
            "room" => format!("{} of {}", blocks(log.room()), blocks(log.capacity())),
            "used" => {
                format!("{} in {} segments", blocks(log.used()), log.segment_count())
            }
            "first" => format!("{:?}", log.first_segment_after(Sequence(number)).unwrap()),
            "release" => {
                let released = log.release_before(SegmentId(number));
                format!("{:?}", released.iter().map(|one| one.id.0).collect::<Vec<_>>())
            }
            other => panic!("no such verb: {other}"),
        };
        writeln!(trace, "{step} -> {result}").unwrap();
    }
    expected.assert_eq(&trace);
}

fn blocks(bytes: u64) -> u64 {
    assert!(bytes.is_multiple_of(BLOCK_SIZE as u64));
    bytes / BLOCK_SIZE as u64
}

fn trace_write(write: Option<FrameWrite>) -> String {
    let Some(write) = write else { return "nothing".to_owned() };
    let header = FrameHeader::decode(&write.bytes).unwrap();
    assert_eq!(header.check_frame(&write.bytes), Ok(()));
    assert_eq!(header.sequence(), write.sequence);
    assert_eq!(header.segment(), write.segment);
    assert_eq!(header.offset(), write.offset);
    assert_eq!(header.nonce(), 100 + write.segment.0);
    format!(
        "{} {} segment {} block {}+{} durable {}",
        header.kind(),
        write.sequence,
        write.segment,
        blocks(write.offset),
        blocks(write.bytes.len() as u64),
        header.durable(),
    )
}

#[test]
fn what_arrives_during_a_write_shares_the_next_one() {
    check(
        "ready, put 1, submit, put 2, put 3, submit, durable, submit, durable, submit",
        expect![[r#"
            ready -> segment 1
            put 1 -> ok
            submit -> steps 1 segment 1 block 1+1 durable 0
            put 2 -> ok
            put 3 -> ok
            submit -> nothing
            durable -> through 1
            submit -> steps 2 segment 1 block 2+3 durable 1
            durable -> through 2
            submit -> nothing
        "#]],
    );
}

#[test]
fn nothing_is_written_before_a_segment_is_ready() {
    check(
        "put 1, submit, room, ready, put 1, submit",
        expect![[r#"
        put 1 -> does not fit
        submit -> nothing
        room -> 0 of 124
        ready -> segment 1
        put 1 -> ok
        submit -> steps 1 segment 1 block 1+1 durable 0
    "#]],
    );
}

#[test]
fn a_frame_that_does_not_fit_the_rest_of_a_segment_starts_the_next() {
    check(
        "ready, ready, put 20, submit, durable, put 12, submit, durable, used, put 3, room",
        expect![[r#"
            ready -> segment 1
            ready -> segment 2
            put 20 -> ok
            submit -> steps 1 segment 1 block 1+20 durable 0
            durable -> through 1
            put 12 -> ok
            submit -> steps 2 segment 2 block 1+12 durable 1
            durable -> through 2
            used -> 43 in 2 segments
            put 3 -> ok
            room -> 3 of 124
        "#]],
    );
}

#[test]
fn a_frame_that_has_room_nowhere_waits_for_a_segment() {
    check(
        "ready, put 15, submit, durable, put 1, room, ready, put 16, submit",
        expect![[r#"
        ready -> segment 1
        put 15 -> ok
        submit -> steps 1 segment 1 block 1+15 durable 0
        durable -> through 1
        put 1 -> does not fit
        room -> 0 of 124
        ready -> segment 2
        put 16 -> ok
        submit -> steps 2 segment 1 block 16+16 durable 1
    "#]],
    );
}

#[test]
fn seals_have_a_reserve_that_nothing_else_takes() {
    let seals = ", seal, durable".repeat(16);
    check(
        &format!("ready, put 15, submit, durable, put 1, idle{seals}, seal"),
        expect![[r#"
            ready -> segment 1
            put 15 -> ok
            submit -> steps 1 segment 1 block 1+15 durable 0
            durable -> through 1
            put 1 -> does not fit
            idle -> nothing
            seal -> seal 2 segment 1 block 16+1 durable 1
            durable -> through 2
            seal -> seal 3 segment 1 block 17+1 durable 2
            durable -> through 3
            seal -> seal 4 segment 1 block 18+1 durable 3
            durable -> through 4
            seal -> seal 5 segment 1 block 19+1 durable 4
            durable -> through 5
            seal -> seal 6 segment 1 block 20+1 durable 5
            durable -> through 6
            seal -> seal 7 segment 1 block 21+1 durable 6
            durable -> through 7
            seal -> seal 8 segment 1 block 22+1 durable 7
            durable -> through 8
            seal -> seal 9 segment 1 block 23+1 durable 8
            durable -> through 9
            seal -> seal 10 segment 1 block 24+1 durable 9
            durable -> through 10
            seal -> seal 11 segment 1 block 25+1 durable 10
            durable -> through 11
            seal -> seal 12 segment 1 block 26+1 durable 11
            durable -> through 12
            seal -> seal 13 segment 1 block 27+1 durable 12
            durable -> through 13
            seal -> seal 14 segment 1 block 28+1 durable 13
            durable -> through 14
            seal -> seal 15 segment 1 block 29+1 durable 14
            durable -> through 15
            seal -> seal 16 segment 1 block 30+1 durable 15
            durable -> through 16
            seal -> seal 17 segment 1 block 31+1 durable 16
            durable -> through 17
            seal -> nothing
        "#]],
    );
}

#[test]
fn an_idle_frame_is_written_once_after_steps_and_takes_a_number() {
    check(
        "idle, ready, idle, put 1, idle, submit, idle, durable, idle, put 1, submit, durable, \
         submit, idle, durable, idle, seal, durable, idle",
        expect![[r#"
            idle -> nothing
            ready -> segment 1
            idle -> nothing
            put 1 -> ok
            idle -> nothing
            submit -> steps 1 segment 1 block 1+1 durable 0
            idle -> nothing
            durable -> through 1
            idle -> idle 2 segment 1 block 2+1 durable 1
            put 1 -> ok
            submit -> nothing
            durable -> through 2
            submit -> steps 3 segment 1 block 3+1 durable 2
            idle -> nothing
            durable -> through 3
            idle -> idle 4 segment 1 block 4+1 durable 3
            seal -> nothing
            durable -> through 4
            idle -> nothing
        "#]],
    );
}

#[test]
fn a_seal_waits_for_what_is_filled_and_what_is_in_flight() {
    check(
        "ready, put 1, seal, submit, seal, durable, seal, durable, seal",
        expect![[r#"
        ready -> segment 1
        put 1 -> ok
        seal -> nothing
        submit -> steps 1 segment 1 block 1+1 durable 0
        seal -> nothing
        durable -> through 1
        seal -> seal 2 segment 1 block 2+1 durable 1
        durable -> through 2
        seal -> seal 3 segment 1 block 3+1 durable 2
    "#]],
    );
}

#[test]
fn segments_are_released_once_the_manifest_is_past_them() {
    check(
        "ready, ready, ready, ready, put 20, submit, durable, put 20, submit, durable, put 20, \
         submit, durable, used, first 0, first 1, first 2, first 3, release 2, release 2, used, \
         release 3, used",
        expect![[r#"
            ready -> segment 1
            ready -> segment 2
            ready -> segment 3
            ready -> segment 4
            put 20 -> ok
            submit -> steps 1 segment 1 block 1+20 durable 0
            durable -> through 1
            put 20 -> ok
            submit -> steps 2 segment 2 block 1+20 durable 1
            durable -> through 2
            put 20 -> ok
            submit -> steps 3 segment 3 block 1+20 durable 2
            durable -> through 3
            used -> 82 in 4 segments
            first 0 -> SegmentId(1)
            first 1 -> SegmentId(2)
            first 2 -> SegmentId(3)
            first 3 -> SegmentId(3)
            release 2 -> [1]
            release 2 -> []
            used -> 51 in 3 segments
            release 3 -> [2]
            used -> 20 in 2 segments
        "#]],
    );
}

#[test]
fn the_log_never_starts_at_a_segment_without_a_durable_frame() {
    check(
        "ready, ready, ready, put 15, submit, durable, put 31, submit, first 1, durable, first 1",
        expect![[r#"
            ready -> segment 1
            ready -> segment 2
            ready -> segment 3
            put 15 -> ok
            submit -> steps 1 segment 1 block 1+15 durable 0
            durable -> through 1
            put 31 -> ok
            submit -> steps 2 segment 2 block 1+31 durable 1
            first 1 -> SegmentId(1)
            durable -> through 2
            first 1 -> SegmentId(2)
        "#]],
    );
}

#[test]
fn a_frame_is_never_larger_than_its_limit() {
    let log = empty_log();
    assert_eq!(log.frame_size_max(), 31 * BLOCK_SIZE);
    assert!(!log.fits(usize::MAX));
    assert!(!log.fits(FRAME_SIZE_MAX + 1));
    assert!(!log.fits_leaving(usize::MAX, 0, 0));
    assert!(!log.fits_leaving(1, 0, u64::MAX));
}

#[test]
fn the_reserve_of_a_caller_is_left_by_what_fits() {
    let mut log = empty_log();
    let id = log.next_segment();
    log.add_ready(id, 1);
    let block = BLOCK_SIZE as u64;
    assert_eq!(log.room(), 15 * block);
    assert!(log.fits_leaving(1, 100, 14 * block));
    assert!(!log.fits_leaving(1, 100, 15 * block));
    assert!(!log.fits_leaving(1, BLOCK_SIZE, 14 * block));
}

#[test]
fn a_batch_is_found_in_the_frame_where_append_said_and_can_be_stamped_before() {
    let mut log = empty_log();
    let id = log.next_segment();
    log.add_ready(id, 1);
    let entry = BatchEntry {
        partition: PartitionId { topic: TopicId([3; 16]), index: 1 },
        base_offset: 10,
        last_offset: 12,
        max_timestamp_ms: 99,
    };
    log.append_put(b"key", b"value");
    let range = log.append_batch(entry, b"three records");
    log.filling_bytes_mut(range.clone())[..5].copy_from_slice(b"THREE");
    log.append_delete(b"key");
    let write = log.submit(7).unwrap();
    assert_eq!(&write.bytes[range.clone()], b"THREE records");

    let header = FrameHeader::decode(&write.bytes).unwrap();
    assert_eq!(header.clock_ms(), 7);
    let body = &write.bytes[FRAME_HEADER_SIZE..][..header.body_size()];
    let read: Vec<_> = entries(body).map(|entry| entry.unwrap().1).collect();
    assert_eq!(
        read,
        [
            Entry::Put { key: b"key", value: b"value" },
            Entry::Batch(entry, b"THREE records"),
            Entry::Delete { key: b"key" },
        ]
    );
}

#[test]
#[should_panic(expected = "one frame at a time")]
fn a_completion_of_another_frame_is_our_mistake() {
    let mut log = empty_log();
    log.on_durable(Sequence(1));
}

#[test]
#[should_panic(expected = "an epoch starts with a seal")]
fn steps_before_the_seal_of_a_start_are_our_mistake() {
    let mut log = empty_log();
    log.needs_seal = true;
    let id = log.next_segment();
    log.add_ready(id, 1);
    log.append_put(b"key", b"value");
    log.submit(0);
}
