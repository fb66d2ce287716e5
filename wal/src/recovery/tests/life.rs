//! Segments that are prepared, recycled, and crashed in between.

use super::damage::flip_each;
use super::torn::check_torn;
use super::*;

#[test]
fn a_recycled_segment_never_replays_its_past() {
    let mut world = large_world();
    let released = world.settle(Sequence(7));
    assert_eq!(released, [SegmentId(1), SegmentId(2)]);
    for old in released {
        let id = world.log.next_segment();
        let spec = world.spec(id, 0x77 + id.0);
        for op in segment::recycle_ops(old, &spec) {
            world.storage.perform(&op).unwrap();
        }
        world.log.add_ready(spec.id, spec.nonce);
    }
    // Use up everything that was ready before, until both recycled ones are in use.
    let mut recycled_use = 0;
    while recycled_use < 3 {
        let spare = world.log.ready_count();
        world.put(7);
        recycled_use += usize::from(spare == 1);
        world.expect_all();
        if world.log.ready_count() < 2 {
            world.prepare();
            recycled_use += 1;
        }
        if world.log.segment_count() > 7 {
            world.settle(world.log.durable());
        }
    }
    let write = world.submit(3);
    world.tear(&write, |sector| sector == 3);
    world.restart();
    world.expect_all();
}

/// The newest frame is the first in a segment that was recycled.
fn recycled_world() -> World {
    let mut world = World::new();
    world.put(14);
    world.prepare();
    world.put(20);
    world.prepare();
    let released = world.settle(Sequence(3));
    assert_eq!(released, [SegmentId(1)]);
    // Segments 3 and 4, prepared new, are used before the recycled one.
    let ops = world.recycle(SegmentId(1));
    for op in &ops {
        world.storage.perform(op).unwrap();
    }
    let id = SegmentId(world.log.next_segment().0 - 1);
    world.log.add_ready(id, world.nonce.get());
    world.prepare();
    world.put(30);
    world.put(30);
    world.put(2);
    assert_eq!(world.acknowledged.last().unwrap().segment, id);
    world
}

#[test]
fn a_torn_frame_over_frames_of_an_earlier_life_is_cut_at_every_sector() {
    let mut world = recycled_world();
    let write = world.submit(2);
    assert!(!is_zero(world.bytes_mut(&write)), "the segment has a past here");
    check_torn(&mut world, &write);
}

#[test]
fn a_flipped_bit_over_frames_of_an_earlier_life_is_corruption() {
    let mut world = recycled_world();
    let write = world.acknowledged.last().unwrap().clone();
    world.idle();
    flip_each(&mut world, &write, |world, _| world.expect_corrupt("is due here"));
}

#[test]
fn a_crash_at_any_point_of_a_preparation_leaves_a_log_that_starts() {
    let mut world = small_world();
    let id = world.log.next_segment();
    let ops = segment::prepare_ops(&world.spec(id, 0xabc));
    let storage = world.storage.clone();
    for count in 0..=ops.len() {
        world.storage = storage.clone();
        for op in &ops[..count] {
            world.storage.perform(op).unwrap();
        }
        let end = world.expect_all();
        let is_named = count + 1 >= ops.len();
        assert_eq!(end.spare.len(), 1 + usize::from(is_named));
        assert_eq!(end.stale.len(), usize::from(count > 0 && !is_named));
        let last = world.acknowledged.clone();
        world.restart();
        assert!(world.storage.names().all(|name| !name.0.contains("tmp")));
        world.expect_all();
        world.acknowledged = last;
    }
}

#[test]
fn a_crash_at_any_point_of_a_recycling_leaves_a_log_that_starts() {
    let mut world = large_world();
    let released = world.settle(Sequence(4));
    assert_eq!(released, [SegmentId(1)]);
    let ops = world.recycle(SegmentId(1));
    let storage = world.storage.clone();
    let spare_count = world.log.ready_count().min(3);
    for count in 0..=ops.len() {
        world.storage = storage.clone();
        for op in &ops[..count] {
            world.storage.perform(op).unwrap();
        }
        let end = world.expect_all();
        assert!(end.spare.len() >= spare_count);
        let last = world.acknowledged.clone();
        world.restart();
        world.expect_all();
        world.acknowledged = last;
    }
    // The first rename was lost, the new header was not: the old name has another's header.
    world.storage = storage;
    let DiskOp::Write { pieces, .. } = &ops[1] else { panic!("{ops:?}") };
    let header = pieces[0].clone();
    let old = segment::file_name(SegmentId(1));
    world.storage.file_mut(&old)[..BLOCK_SIZE].copy_from_slice(&header);
    let end = world.expect_all();
    assert!(end.stale.contains(&old));
}

#[test]
fn a_segment_that_was_passed_over_is_not_used_after_its_successors() {
    let mut world = small_world();
    // Its removal was lost in a crash, say; the log went on to the next number.
    let passed = world.log.next_segment();
    for op in segment::prepare_ops(&world.spec(passed, 0xdef)) {
        world.storage.perform(&op).unwrap();
    }
    world.prepare();
    world.put(30);
    world.prepare();
    world.put(30);
    assert!(world.acknowledged.last().unwrap().segment > passed);
    let end = world.expect_all();
    assert!(end.stale.contains(&segment::file_name(passed)));
    assert!(end.spare.iter().all(|(id, _)| *id > passed));
    world.restart();
    world.put(30);
    world.expect_all();
}
