//! Random runs with crashes against a model: the frames that were acknowledged.

use proptest::prelude::*;

use super::*;

/// What a random run does next.
#[derive(Debug, Clone)]
enum Act {
    Put(usize),
    Idle,
    Prepare,
    /// Settles some of what is durable, and recycles what that frees.
    Settle(prop::sample::Index),
    /// Crashes with a frame of so many blocks in flight, of which some sectors were written.
    Crash(usize, Vec<bool>),
    Stop,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (1usize..12).prop_map(Act::Put),
        1 => Just(Act::Idle),
        3 => Just(Act::Prepare),
        2 => any::<prop::sample::Index>().prop_map(Act::Settle),
        3 => (1usize..9, prop::collection::vec(prop::bool::weighted(0.8), 8 * 9))
            .prop_map(|(blocks, sectors)| Act::Crash(blocks, sectors)),
        1 => Just(Act::Stop),
    ]
}

fn run(world: &mut World, act: Act) {
    match act {
        Act::Put(blocks) => {
            if world.log.fits((blocks - 1) * BLOCK_SIZE) {
                world.put(blocks);
            }
        }
        Act::Idle => {
            if let Some(write) = world.log.submit_idle(9) {
                world.acknowledge(write);
            }
        }
        Act::Prepare => {
            if world.log.segment_count() < world.log.segment_count_max() {
                world.prepare();
            }
        }
        Act::Settle(index) => {
            let from = world.start.replay_from.0 - 1;
            let settled = from + index.index((world.log.durable().0 - from) as usize + 1) as u64;
            for old in world.settle(Sequence(settled)) {
                let ops = world.recycle(old);
                for op in &ops {
                    world.storage.perform(op).unwrap();
                }
                let id = SegmentId(world.log.next_segment().0 - 1);
                world.log.add_ready(id, world.nonce.get());
            }
        }
        Act::Crash(blocks, sectors) => {
            if world.log.fits((blocks - 1) * BLOCK_SIZE) {
                let write = world.submit(blocks);
                world.tear(&write, |sector| sectors[sector]);
            }
            world.expect_all();
            world.restart();
        }
        Act::Stop => {
            if let Some(write) = world.log.submit_seal(9) {
                world.acknowledge(write);
            }
            world.restart();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_acknowledged_frames_come_back(acts in prop::collection::vec(act(), 1..60)) {
        let mut world = World::new();
        for act in acts {
            run(&mut world, act);
        }
        world.expect_all();
    }
}
