//! What no crash leaves: damage to what was acknowledged.

use super::*;

/// Damages every byte of the header and some of the rest, one at a time.
pub(super) fn flip_each(
    world: &mut World,
    write: &FrameWrite,
    mut check: impl FnMut(&World, usize),
) {
    // Large frames are many scans: fewer places of them.
    let (header_step, step) =
        if write.bytes.len() > 8 * BLOCK_SIZE { (11, 2003) } else { (1, 251) };
    let is_chosen = |at: usize| at.is_multiple_of(if at < 128 { header_step } else { step });
    for at in (0..write.bytes.len()).filter(|&at| is_chosen(at)) {
        let bit = 1 << (at % 8);
        world.bytes_mut(write)[at] ^= bit;
        check(world, at);
        world.bytes_mut(write)[at] ^= bit;
    }
}

#[test]
fn one_flipped_bit_in_any_acknowledged_frame_but_the_last_is_corruption() {
    for mut world in [small_world(), large_world()] {
        let mut older = world.acknowledged.clone();
        older.pop();
        for write in older {
            flip_each(&mut world, &write, |world, _| match world.scan() {
                Err(ScanError::Corrupt { segment, offset, sequence, .. }) => {
                    assert_eq!((segment, offset), (write.segment, write.offset));
                    assert_eq!(sequence, write.sequence);
                }
                other => panic!("expected corruption, not {other:?}"),
            });
        }
    }
}

#[test]
fn damage_to_exactly_the_last_frame_looks_torn() {
    // The one case that cannot be told from a write that a crash cut short. It is wrong for a
    // frame that was acknowledged; an idle frame or a seal behind it ends the doubt.
    let mut world = small_world();
    let write = world.acknowledged.last().unwrap().clone();
    flip_each(&mut world, &write, |world, _| {
        assert_eq!(world.scan().unwrap().1.last, Sequence(3));
    });
}

#[test]
fn behind_an_idle_frame_the_last_acknowledged_frame_is_safe_from_doubt() {
    let mut world = small_world();
    world.idle();
    let write = world.acknowledged[3].clone();
    flip_each(&mut world, &write, |world, _| world.expect_corrupt("frame 4 is due here"));
}

#[test]
fn behind_the_seal_of_a_clean_stop_the_last_acknowledged_frame_is_safe_from_doubt() {
    let mut world = small_world();
    world.seal();
    let write = world.acknowledged[3].clone();
    flip_each(&mut world, &write, |world, _| world.expect_corrupt("frame 4 is due here"));
}

#[test]
fn a_damaged_frame_that_the_manifest_knows_to_be_durable_is_corruption() {
    let mut world = small_world();
    world.start.known_durable = Sequence(4);
    let write = world.acknowledged[3].clone();
    flip_each(&mut world, &write, |world, _| world.expect_corrupt("frame 4 was durable"));
    // The same if there is nothing at all.
    world.bytes_mut(&write).fill(0);
    world.expect_corrupt("frame 4 is due here, frame 4 was durable, and no frame is here: zeros");
}

#[test]
fn a_settled_frame_that_is_missing_is_corruption_even_if_it_is_the_last() {
    let mut world = small_world();
    world.settle(Sequence(4));
    world.start.known_durable = Sequence(0);
    let write = world.acknowledged[3].clone();
    world.bytes_mut(&write).fill(0);
    world.expect_corrupt("frame 4 is due here");
}

#[test]
fn a_lost_write_in_the_middle_is_corruption() {
    for mut world in [small_world(), large_world()] {
        let mut older = world.acknowledged.clone();
        older.pop();
        for write in older {
            let before = world.bytes_mut(&write).to_vec();
            world.bytes_mut(&write).fill(0);
            world.expect_corrupt("is there");
            world.bytes_mut(&write).copy_from_slice(&before);
        }
    }
}

#[test]
fn a_damaged_frame_before_a_torn_one_is_corruption() {
    // The torn frame was submitted, so the one before it was durable.
    let mut world = small_world();
    let torn = world.submit(3);
    world.tear(&torn, |sector| sector != 9);
    let damaged = world.acknowledged[3].clone();
    flip_each(&mut world, &damaged, |world, _| world.expect_corrupt("frame 5 at byte"));
}

#[test]
fn a_damaged_frame_before_a_torn_one_in_the_next_segment_is_corruption() {
    let mut world = small_world();
    world.prepare();
    let torn = world.submit(25);
    assert_eq!(torn.segment, SegmentId(2));
    world.tear(&torn, |sector| sector != 9);
    let damaged = world.acknowledged[3].clone();
    world.bytes_mut(&damaged)[300] ^= 1;
    world.expect_corrupt("wal-00000000000000000001.seg, byte 24576: frame 4 is due here");
}

#[test]
fn the_first_frame_of_a_later_segment_is_missed_by_the_ones_behind_it() {
    let mut world = large_world();
    let newest = world.log.first_sequence_of_active().unwrap();
    let write = world.acknowledged[newest.0 as usize - 1].clone();
    world.bytes_mut(&write).fill(0);
    world.expect_corrupt("is there");
}

#[test]
fn a_segment_that_is_gone_from_the_middle_is_corruption() {
    let mut world = large_world();
    let file = segment::file_name(SegmentId(2));
    world.storage.perform(&DiskOp::Remove { file }).unwrap();
    world.expect_corrupt("while frame");
}

#[test]
fn a_first_segment_that_is_gone_is_missing() {
    let mut world = large_world();
    world.start.known_durable = Sequence(5);
    let file = segment::file_name(SegmentId(1));
    world.storage.perform(&DiskOp::Remove { file }).unwrap();
    let error = world.scan().unwrap_err();
    assert!(matches!(error, ScanError::Missing { segment: SegmentId(1), .. }), "{error:?}");
    assert!(error.to_string().contains("wal-00000000000000000001.seg is missing"), "{error}");
    // Without a manifest the frames themselves say so.
    world.start.known_durable = Sequence(0);
    world.expect_corrupt("frame 1 is due here and frame 4 is here");
}

#[test]
fn an_empty_directory_is_not_new_if_something_was_durable() {
    let world = World::new();
    let start = ScanStart { known_durable: Sequence(1), ..world.start };
    let error = scan(&MemoryStorage::new(), &start, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, ScanError::Missing { .. }), "{error:?}");
    let start = ScanStart { replay_from: Sequence(2), ..world.start };
    let error = scan(&MemoryStorage::new(), &start, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, ScanError::Missing { .. }), "{error:?}");
}

#[test]
fn a_log_that_starts_after_the_first_frame_to_replay_is_corruption() {
    let mut world = large_world();
    // A manifest that names a segment too late.
    world.start.known_durable = Sequence(2);
    world.start.first_segment = SegmentId(2);
    world.expect_corrupt("no later than with frame 1");
}
