//! A newest frame that nobody was told of, and a start without it.

use super::*;

/// What is found, and the frames that were handed out.
fn find(world: &World) -> (ScanEnd, Option<Newest>, Vec<Sequence>) {
    let mut handed_out = Vec::new();
    let (end, newest) = scan_to_newest(&world.storage, &world.start, &mut |frame| {
        handed_out.push(frame.header.sequence());
        Ok(())
    })
    .unwrap();
    (end, newest, handed_out)
}

#[test]
fn the_newest_frame_is_kept_back_until_something_says_that_it_was_durable() {
    let mut world = small_world();
    let all = world.scan().unwrap().1;
    let (end, newest, handed_out) = find(&world);
    assert_eq!((&end, handed_out), (&all, (1..4).map(Sequence).collect()));
    let newest = newest.expect("nothing says so");
    assert_eq!(newest.frame.header.sequence(), Sequence(4));
    assert_eq!(newest.without.last, Sequence(3));
    assert_eq!(newest.without.epoch, end.epoch, "its number is not given again");
    assert_eq!(newest.without.frames + 1, end.frames);
    world.idle();
    let (_, newest, handed_out) = find(&world);
    assert_eq!(handed_out, (1..5).map(Sequence).collect::<Vec<_>>());
    assert_eq!(newest.expect("the idle frame").frame.header.kind(), FrameKind::Idle);
    let mut world = small_world();
    world.start.known_durable = Sequence(4);
    let (_, newest, handed_out) = find(&world);
    assert!(newest.is_none(), "the manifest says so");
    assert_eq!(handed_out, (1..5).map(Sequence).collect::<Vec<_>>());
}

#[test]
fn the_first_frame_of_a_log_is_not_kept_back() {
    let world = World::new();
    let (_, newest, handed_out) = find(&world);
    assert_eq!((newest.map(drop), handed_out), (None, vec![Sequence(1)]));
}

/// Starts without the newest frame, torn in its turn, and goes on over what is left of it.
fn check_cut(mut world: World) -> World {
    let (end, newest, _) = find(&world);
    let Newest { frame, without } = newest.expect("nothing says that it was durable");
    let write = world.acknowledged.pop().expect("it was written");
    let size = write.bytes.len() as u64;
    assert_eq!((frame.header.sequence(), without.last.next()), (end.last, end.last));
    assert_eq!(without.torn, Some(Torn { segment: write.segment, offset: write.offset, size }));
    let seal = Log::resume(options(), &without).submit_seal(9).unwrap();
    assert_eq!(seal.sequence, end.last);
    let storage = world.storage.clone();
    for cut in 0..=BLOCK_SIZE / SECTOR_SIZE {
        world.tear(&seal, |sector| sector < cut);
        let is_sealed = world.bytes_mut(&seal) == &seal.bytes[..];
        let (found, newest, _) = find(&world);
        if is_sealed {
            assert_eq!((found.last, found.last_kind), (end.last, Some(FrameKind::Seal)));
        } else if found.last == end.last {
            assert_eq!(newest.expect("as before").without.last, without.last);
        } else {
            assert_eq!(found.last, without.last, "cut after {cut} sectors");
        }
        world.storage = storage.clone();
    }
    let mut nonce = 77;
    let mut next_nonce = || {
        nonce += 1;
        nonce
    };
    world.log = start(&mut world.storage, options(), &without, 2, 9, &mut next_nonce).unwrap();
    let (frames, _) = world.scan().unwrap();
    world.acknowledged = frames_from(frames, std::mem::take(&mut world.acknowledged));
    for blocks in [1, 1, 2, 5, 9] {
        world.put(blocks);
        world.expect_all();
        let write = world.submit(1);
        // Not written: the power goes before that, and another process starts.
        drop(write);
        world.restart();
        let last = world.expect_all();
        assert_eq!(last.last.0 as usize, world.acknowledged.len());
    }
    world
}

#[test]
fn a_start_without_the_newest_frame_writes_over_it() {
    check_cut(small_world());
    let mut world = small_world();
    world.put(1);
    check_cut(world);
    let mut world = small_world();
    world.put(9);
    check_cut(world);
}

#[test]
fn the_newest_frame_may_be_the_first_of_its_segment() {
    let mut world = World::new();
    for blocks in [20, 3, 12] {
        world.put(blocks);
    }
    let (before, newest) = (&world.acknowledged[2], &world.acknowledged[3]);
    assert!(before.segment < newest.segment);
    let (segment, sequence) = (newest.segment, newest.sequence);
    let mut world = check_cut(world);
    // It cannot take the place of the seal, should that be damaged.
    let seal = world.acknowledged[sequence.0 as usize - 1].clone();
    assert_eq!((seal.kind, seal.segment), (FrameKind::Seal, segment));
    world.bytes_mut(&seal)[100] ^= 1;
    world.expect_corrupt("frame 4 is due here");
}

#[test]
fn a_torn_frame_tells_that_the_one_before_it_was_durable() {
    let mut world = small_world();
    assert!(find(&world).1.is_some());
    let write = world.submit(2);
    world.tear(&write, |sector| sector == 0);
    let (end, newest, _) = find(&world);
    assert_eq!((end.last, newest.map(drop)), (Sequence(4), None), "its header says so");
}

#[test]
fn frames_before_damage_are_all_handed_out() {
    let mut world = small_world();
    let write = world.acknowledged[2].clone();
    world.bytes_mut(&write)[200] ^= 1;
    let mut handed_out = 0;
    let found = scan(&world.storage, &world.start, &mut |_| {
        handed_out += 1;
        Ok(())
    });
    assert!(matches!(found, Err(ScanError::Corrupt { .. })));
    assert_eq!(handed_out, 2);
}

#[test]
fn a_seal_that_was_not_written_over_a_frame_that_was_cut_is_missed() {
    let mut world = small_world();
    world.put(1);
    let old = world.acknowledged[4].clone();
    let mut world = check_cut(world);
    world.bytes_mut(&old).copy_from_slice(&old.bytes);
    world.expect_corrupt("frame 5 is here, which a later start cut");
}
