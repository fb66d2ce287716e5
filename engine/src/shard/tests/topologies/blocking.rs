//! Blocking calls: when they are made, in which order their results come, what a crash does to them.

use super::*;
use crate::effect::CallResult;
use crate::topology::stored::{StoredCall, called_key};
use crate::topology::{Keyed, NameId};

/// Values in capitals, by a blocking call that fails or panics if the value says so.
fn capitals(topology: &Topology) -> Keyed<Utf8, String> {
    let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
    keyed.blocking("capitals", Utf8, Utf8, |_, value| match value.as_str() {
        "fail" => Err("as asked".into()),
        "panic" => panic!("as asked"),
        "large" => Ok("x".repeat(5 << 20)),
        _ => Ok(value.to_uppercase()),
    })
}

fn calling() -> ShardOptions {
    let topology = Topology::new("calling");
    capitals(&topology).sink("out", Utf8);
    topology.dead_letter("dead");
    hosting(topology)
}

/// The calls that are open, as `key value`.
fn open(world: &World) -> Vec<String> {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let shown = |(_, it): &(CallId, CallRequest)| format!("{} {}", text(&it.key), text(&it.value));
    world.calls.iter().map(shown).collect()
}

/// The result of a call that is open.
fn result(world: &mut World, index: usize) -> (CallId, CallResult) {
    let (call, request) = world.calls.remove(index);
    let plan = &world.shard.options.topologies[call.topology];
    (call, plan.make_call(&request))
}

/// A call that is open ends.
fn end(world: &mut World, index: usize) {
    let (call, result) = result(world, index);
    world.inbox.push_back(Input::Called { call, result });
    world.run();
}

fn restarted(world: World, options: ShardOptions) -> World {
    let mut world = world.restart_with(options);
    world.run();
    world
}

/// The frame that a step ended with, and whether calls were asked for.
fn frame(effects: &[Effect]) -> (Option<&tidemill_wal::commit::FrameWrite>, bool) {
    let write = effects.iter().find_map(|effect| match effect {
        Effect::Write(write) => Some(write),
        _ => None,
    });
    (write, effects.iter().any(|effect| matches!(effect, Effect::Call { .. })))
}

#[test]
fn a_call_is_made_when_its_record_is_durable_and_the_frame_of_its_result_says_what_it_was() {
    let mut world = World::with(calling());
    let [input, output, _] = make_topics(&mut world, ["in", "out", "dead"]);
    let mut builder = BatchBuilder::new();
    builder.push(NewRecord { key: Some(b"k"), value: Some(b"v"), ..NewRecord::default() });
    let command = Command::Produce(Produce { batches: vec![(input, builder.build())] });
    let ticket = world.ticket();
    let mut effects = Vec::new();
    world.shard.step(world.now, Input::Command { ticket, command }, &mut effects);
    world.shard.process(world.now, &mut || true, &mut effects);
    world.shard.flush(world.now, &mut effects);
    let (write, has_calls) = frame(&effects);
    assert!(write.is_some() && !has_calls, "{effects:?}");
    effects.into_iter().for_each(|effect| world.perform(effect));
    world.run();
    assert_eq!(open(&world), ["k v"]);
    assert_eq!(received(&mut world, output), [""; 0]);

    let (call, result) = result(&mut world, 0);
    let mut effects = Vec::new();
    world.shard.step(world.now, Input::Called { call, result: result.clone() }, &mut effects);
    world.shard.process(world.now, &mut || true, &mut effects);
    world.shard.flush(world.now, &mut effects);
    let stored = StoredCall {
        operator: NameId::of(&["calling", "capitals"]),
        partition: 0,
        sequence: 0,
        key: Bytes::from_static(b"k"),
        result: Ok(Some(Bytes::from_static(b"V"))),
    };
    let stored = [called_key(NameId::of(&["calling"])), stored.encode()].concat();
    let write = frame(&effects).0.expect("the result is in a frame");
    let is_there = write.bytes.windows(stored.len()).any(|bytes| bytes == stored);
    assert!(is_there, "the frame has the result");
    effects.into_iter().for_each(|effect| world.perform(effect));
    world.run();
    assert_eq!(received(&mut world, output), ["k=V"]);
    let key = called_key(NameId::of(&["calling"]));
    assert_eq!(world.shard.state.value(&key), None, "the state does not keep it");
    let mut world = restarted(world, calling());
    assert_eq!(world.shard.state.value(&key), None, "nor does it come back");
    assert_eq!((open(&world).len(), received(&mut world, output)), (0, vec!["k=V".to_owned()]));
}

#[test]
fn results_of_a_key_are_in_order_and_other_keys_pass() {
    let mut world = World::with(calling());
    let [input, output, _] = make_topics(&mut world, ["in", "out", "dead"]);
    send(&mut world, input, &[("a", "1", 1), ("b", "x", 2), ("a", "2", 3), ("a", "3", 4)]);
    assert_eq!(open(&world), ["a 1", "b x"], "one of each key");
    end(&mut world, 1);
    assert_eq!(received(&mut world, output), ["b=X"]);
    end(&mut world, 0);
    assert_eq!(open(&world), ["a 2"]);
    send(&mut world, input, &[("b", "y", 5)]);
    end(&mut world, 0);
    assert_eq!(open(&world), ["b y", "a 3"], "the key that waits longest is first");
    end(&mut world, 1);
    end(&mut world, 0);
    assert_eq!(received(&mut world, output), ["b=X", "a=1", "a=2", "a=3", "b=Y"]);
    let facts = world.shard.topologies().next().expect("one runs");
    assert_eq!((facts.counts.calls, facts.calls_waiting, facts.calls_open), (5, 0, 0));
}

#[test]
fn a_call_without_a_result_is_made_again_after_a_crash_and_no_other() {
    let mut world = World::with(calling());
    let [input, output, _] = make_topics(&mut world, ["in", "out", "dead"]);
    send(&mut world, input, &[("a", "1", 1), ("a", "2", 1), ("b", "x", 1)]);
    end(&mut world, 0);
    assert_eq!(open(&world), ["b x", "a 2"]);
    let mut world = restarted(world, calling());
    assert_eq!(open(&world), ["a 2", "b x"]);
    end(&mut world, 0);
    end(&mut world, 0);
    assert_eq!(received(&mut world, output), ["a=1", "a=2", "b=X"]);
    let mut world = restarted(world, calling());
    assert_eq!(open(&world), [""; 0]);
    send(&mut world, input, &[("a", "3", 1)]);
    end(&mut world, 0);
    assert_eq!(received(&mut world, output)[3..], ["a=3"]);
}

#[test]
fn a_result_that_an_earlier_wiring_asked_for_is_nothing_to_this_one() {
    let mut world = World::with(calling());
    let [input, output, _] = make_topics(&mut world, ["in", "out", "dead"]);
    send(&mut world, input, &[("a", "1", 1)]);
    let topics = vec![(input.topic, 2)];
    let command = CatalogCommand::CreatePartitions { topics, validate_only: false };
    world.answer(Command::Catalog(command));
    world.run();
    assert_eq!(open(&world), ["a 1", "a 1"], "it is called for again");
    let (call, _) = world.calls.remove(0);
    let result = Ok(Some(Bytes::from_static(b"stale")));
    world.inbox.push_back(Input::Called { call, result });
    world.run();
    assert_eq!(received(&mut world, output), [""; 0]);
    end(&mut world, 0);
    assert_eq!(received(&mut world, output), ["a=1"]);
    let facts = world.shard.topologies().next().expect("one runs");
    assert_eq!((facts.calls_waiting, facts.calls_open), (0, 0), "both have ended");
}

#[test]
fn a_call_that_fails_or_panics_is_a_dead_letter_and_the_next_is_made() {
    let mut world = World::with(calling());
    let [input, output, dead] = make_topics(&mut world, ["in", "out", "dead"]);
    send(&mut world, input, &[("a", "fail", 1), ("a", "panic", 1), ("a", "x", 1)]);
    for _ in 0..3 {
        end(&mut world, 0);
    }
    assert_eq!(received(&mut world, output), ["a=X"]);
    let told =
        ["a=fail (operator capitals: as asked)", "a=panic (operator capitals panicked: as asked)"];
    assert_eq!(received(&mut world, dead), told);
    assert_eq!(letters(&mut world, dead), ["key in-0"; 2]);
    let facts = world.shard.topologies().next().expect("one runs");
    assert_eq!((facts.counts.rejected, facts.operators[0].counts.failed), (2, 2));
    assert_eq!(open(&restarted(world, calling())), [""; 0]);
}

#[test]
fn a_result_that_no_frame_takes_is_a_dead_letter_whatever_follows_it() {
    let topology = Topology::new("calling");
    topology.dead_letter("dead");
    let told = capitals(&topology).map(|_, value| {
        assert!(value.len() < 4 << 20, "much too long");
        value
    });
    told.sink("out", Utf8);
    for options in [calling(), hosting(topology)] {
        let mut world = World::with(options);
        let [input, output, dead] = make_topics(&mut world, ["in", "out", "dead"]);
        send(&mut world, input, &[("a", "large", 1), ("a", "x", 1)]);
        end(&mut world, 0);
        end(&mut world, 0);
        assert_eq!(received(&mut world, output), ["a=X"]);
        let told = received(&mut world, dead);
        assert!(told.len() == 1 && told[0].starts_with("a=large (operator capitals"), "{told:?}");
        assert_eq!(received(&mut restarted(world, calling()), output), ["a=X"]);
    }
}

#[test]
fn what_follows_a_result_and_fails_is_a_dead_letter_of_its_record() {
    let topology = Topology::new("calling");
    let told = capitals(&topology).map(|_, value| {
        assert!(value != "BAD", "no such word");
        value
    });
    told.sink("out", Utf8);
    topology.dead_letter("dead");
    let mut world = World::with(hosting(topology));
    let [input, output, dead] = make_topics(&mut world, ["in", "out", "dead"]);
    send(&mut world, input, &[("a", "bad", 1), ("a", "good", 1)]);
    end(&mut world, 0);
    end(&mut world, 0);
    assert_eq!(received(&mut world, output), ["a=GOOD"]);
    let told = received(&mut world, dead);
    assert_eq!(told, ["a=bad (operator capitals panicked: no such word)"]);
}

#[test]
fn without_a_topic_for_dead_letters_a_call_that_failed_is_made_again_after_a_rest() {
    let topology = Topology::new("calling");
    capitals(&topology).sink("out", Utf8);
    let mut world = World::with(hosting(topology));
    let [input, output] = make_topics(&mut world, ["in", "out"]);
    send(&mut world, input, &[("a", "fail", 1), ("a", "x", 1)]);
    let (call, request) = world.calls.remove(0);
    let result = Err(crate::effect::CallFault::Failed("not now".to_owned()));
    world.inbox.push_back(Input::Called { call, result });
    world.run();
    let why = world.shard.paused_topologies().next().expect("it rests").1.to_owned();
    assert!(why.contains("operator capitals: not now"), "{why}");
    assert_eq!(open(&world), [""; 0]);
    world.now.monotonic_ms += 10_000;
    world.inbox.push_back(Input::Tick);
    world.run();
    assert_eq!(world.calls.iter().map(|it| &it.1).collect::<Vec<_>>(), [&request]);
    // It does better now.
    let (call, _) = world.calls.remove(0);
    let result = Ok(Some(Bytes::from_static(b"better")));
    world.inbox.push_back(Input::Called { call, result });
    world.run();
    end(&mut world, 0);
    assert_eq!(received(&mut world, output), ["a=better", "a=X"]);
}

#[test]
fn no_more_calls_are_open_and_no_more_records_wait_than_may() {
    let mut world = World::with(calling());
    let [input, output, _] = make_topics(&mut world, ["in", "out", "dead"]);
    let keys: Vec<String> = (0..11_000).map(|number| format!("{number}")).collect();
    let records: Vec<(&str, &str, i64)> = keys.iter().map(|key| (&key[..], "x", 1)).collect();
    send(&mut world, input, &records);
    let facts = world.shard.topologies().next().expect("one runs");
    assert_eq!((facts.counts.records, facts.calls_waiting), (10_000, 10_000));
    assert_eq!((world.calls.len(), facts.calls_open), (64, 64));
    let before = world.frames;
    let mut count = 0;
    while !world.calls.is_empty() {
        for _ in 0..world.calls.len() {
            let (call, result) = result(&mut world, 0);
            world.inbox.push_back(Input::Called { call, result });
            count += 1;
        }
        world.run();
        assert!(world.calls.len() <= 64);
    }
    assert_eq!(count, 11_000);
    assert!(world.frames - before < 1000, "results that come together share a frame");
    let facts = world.shard.topologies().next().expect("one runs");
    assert_eq!((facts.counts.records, facts.calls_waiting), (11_000, 0));
    assert!(received(&mut world, output).len() > 1000, "as much as one answer holds");
}

#[test]
fn results_are_taken_while_the_state_is_at_its_budget() {
    let mut world = World::with(calling());
    let [input, output, _] = make_topics(&mut world, ["in", "out", "dead"]);
    send(&mut world, input, &[("a", "1", 1), ("b", "2", 1)]);
    let mut world = restarted(world, ShardOptions { state_budget: 1, ..calling() });
    assert_eq!(open(&world), ["a 1", "b 2"]);
    end(&mut world, 0);
    end(&mut world, 0);
    assert_eq!(received(&mut world, output), ["a=1", "b=2"]);
    send(&mut world, input, &[("a", "3", 1)]);
    assert_eq!(open(&world), [""; 0], "the next one waits in its topic");
}

#[test]
fn event_time_waits_for_the_oldest_record_without_a_result_also_after_a_restart() {
    let windowed = || {
        let topology = Topology::new("windows");
        capitals(&topology)
            .window(Windows::tumbling(std::time::Duration::from_millis(10)))
            .count("count")
            .map(|_, it| format!("{}..{}: {}", it.start_ms, it.end_ms, it.value))
            .sink("out", Utf8);
        hosting(topology)
    };
    let mut world = World::with(windowed());
    let [input, output] = make_topics(&mut world, ["in", "out"]);
    send(&mut world, input, &[("a", "x", 1), ("a", "y", 9), ("b", "z", 15), ("b", "z", 25)]);
    assert_eq!(open(&world), ["a x", "b z"]);
    end(&mut world, 1);
    end(&mut world, 1);
    assert_eq!(received(&mut world, output), [""; 0], "both of b have come, and none of a");
    let mut world = restarted(world, windowed());
    assert_eq!(open(&world), ["a x"]);
    end(&mut world, 0);
    assert_eq!(received(&mut world, output), [""; 0], "the second of a is missing");
    end(&mut world, 0);
    assert_eq!(received(&mut world, output), ["a=0..10: 2", "b=10..20: 1"]);
    assert_eq!(world.shard.topologies().next().expect("one runs").counts.late, 0);
}

#[test]
fn a_node_that_stops_begins_no_call() {
    let mut world = World::with(calling());
    let [input, ..] = make_topics(&mut world, ["in", "out", "dead"]);
    let mut builder = BatchBuilder::new();
    builder.push(NewRecord { key: Some(b"k"), value: Some(b"v"), ..NewRecord::default() });
    let command = Command::Produce(Produce { batches: vec![(input, builder.build())] });
    let ticket = world.ticket();
    let mut effects = Vec::new();
    world.shard.step(world.now, Input::Command { ticket, command }, &mut effects);
    world.shard.process(world.now, &mut || true, &mut effects);
    world.shard.flush(world.now, &mut effects);
    world.shard.step(world.now, Input::Stop, &mut effects);
    effects.into_iter().for_each(|effect| world.perform(effect));
    world.run();
    assert!(world.shard.is_quiet());
    assert_eq!(open(&world), [""; 0]);
    assert_eq!(open(&restarted(world, calling())), ["k v"]);
}
