//! What a crash may leave of the frame in flight.

use super::*;

/// A frame in flight, for which every subset of its sectors in `subsets` may have been written.
pub(super) fn check_torn(world: &mut World, write: &FrameWrite) {
    let before = world.bytes_mut(write).to_vec();
    let last = Sequence(write.sequence.0 - 1);
    let count = write.bytes.len() / SECTOR_SIZE;
    let mut subsets: Vec<Vec<bool>> = Vec::new();
    for cut in 0..count {
        subsets.push((0..count).map(|sector| sector < cut).collect());
        subsets.push((0..count).map(|sector| sector > cut).collect());
        subsets.push((0..count).map(|sector| sector != cut).collect());
        subsets.push((0..count).map(|sector| sector == cut).collect());
    }
    for (index, subset) in subsets.into_iter().enumerate() {
        world.bytes_mut(write).copy_from_slice(&before);
        world.tear(write, |sector| subset[sector]);
        let is_whole = world.bytes_mut(write) == &write.bytes[..];
        let end = world.expect_all();
        assert_eq!(end.last, if is_whole { write.sequence } else { last });
        if subset[0] && !is_whole {
            let size = write.bytes.len() as u64;
            let torn = Torn { segment: write.segment, offset: write.offset, size };
            assert_eq!(end.torn, Some(torn));
        }
        // The seal over it, torn in its turn, and then whole.
        if index % 7 != 0 {
            continue;
        }
        let mut log = Log::resume(options(), &end);
        let seal = log.submit_seal(9).unwrap();
        let storage = world.storage.clone();
        for cut in 0..=BLOCK_SIZE / SECTOR_SIZE {
            world.tear(&seal, |sector| sector < cut);
            let resealed = world.expect_all();
            let is_sealed = world.bytes_mut(&seal) == &seal.bytes[..];
            let wanted = if is_sealed { end.last.next() } else { end.last };
            assert_eq!(resealed.last, wanted, "cut after {cut} sectors");
            assert!(resealed.epoch >= end.epoch);
            world.storage = storage.clone();
        }
    }
}

#[test]
fn a_torn_last_frame_is_cut_at_every_sector() {
    let mut world = small_world();
    let write = world.submit(2);
    check_torn(&mut world, &write);
}

#[test]
fn a_torn_lone_record_is_cut_at_every_sector() {
    let mut world = small_world();
    world.log.append_put(b"key", b"value");
    let write = world.log.submit(9).unwrap();
    check_torn(&mut world, &write);
}

#[test]
fn a_torn_first_frame_of_a_segment_is_cut_at_every_sector() {
    let mut world = small_world();
    world.prepare();
    let write = world.submit(25);
    assert_eq!((write.segment, write.offset), (SegmentId(2), BLOCK));
    let write = FrameWrite { bytes: write.bytes.slice(..), ..write };
    check_torn_sparsely(&mut world, &write);
}

fn check_torn_sparsely(world: &mut World, write: &FrameWrite) {
    let before = world.bytes_mut(write).to_vec();
    let count = write.bytes.len() / SECTOR_SIZE;
    for cut in 0..count {
        world.bytes_mut(write).copy_from_slice(&before);
        world.tear(write, |sector| sector < cut);
        assert_eq!(world.expect_all().last.next(), write.sequence);
        world.bytes_mut(write).copy_from_slice(&before);
        world.tear(write, |sector| sector != cut);
        assert_eq!(world.expect_all().last.next(), write.sequence);
    }
}

#[test]
fn what_a_torn_frame_left_in_a_ready_segment_is_overwritten_later() {
    let mut world = small_world();
    world.prepare();
    let write = world.submit(25);
    assert_eq!(write.segment, SegmentId(2));
    world.tear(&write, |sector| sector != 30);
    let end = world.restart();
    assert_eq!(end.torn, Some(Torn { segment: SegmentId(2), offset: BLOCK, size: 25 * BLOCK }));
    // The seal went behind the last good frame, with the number of the torn one.
    assert_eq!(world.acknowledged.last().unwrap().segment, SegmentId(1));
    world.put(1);
    assert_eq!(world.expect_all().torn, None);
    // Now that segment comes into use, with most of the torn frame still behind its first frame.
    world.put(28);
    assert_eq!(world.acknowledged.last().unwrap().segment, SegmentId(2));
    world.put(1);
    world.expect_all();
    world.restart();
    world.expect_all();
}

#[test]
fn a_whole_frame_that_was_never_acknowledged_is_kept() {
    let mut world = small_world();
    let write = world.submit(2);
    perform_write(&mut world.storage, &write).unwrap();
    let (frames, end) = world.scan().unwrap();
    assert_eq!(frames.last().unwrap().bytes, write.bytes);
    assert_eq!((end.last, end.torn), (write.sequence, None));
}
