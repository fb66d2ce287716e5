//! Topologies in one shard: what is in one frame, what survives, what bad input does.

mod blocking;

use super::*;
use crate::batch::RecordBatch;
use crate::command::StateQuery;
use crate::topology::{
    Codec, CodecError, Context, FiredTimer, Operator, OperatorError, TimeDomain, Topology, Utf8,
    Windows,
};

/// Makes topics with one partition each.
fn make_topics<const N: usize>(world: &mut World, names: [&str; N]) -> [PartitionId; N] {
    names.map(|name| {
        let topic = NewTopic {
            name: name.to_owned(),
            partition_count: Some(1),
            config: Vec::new(),
            automatic: false,
        };
        let command = CatalogCommand::CreateTopics { topics: vec![topic], validate_only: false };
        let Reply::Catalog(made) = world.answer(Command::Catalog(command)) else { panic!("made") };
        PartitionId { topic: made[0].as_ref().expect("made").topic, index: 0 }
    })
}

fn send(world: &mut World, partition: PartitionId, records: &[(&str, &str, i64)]) {
    let mut builder = BatchBuilder::new();
    for (key, value, timestamp_ms) in records {
        let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
        builder.push(NewRecord { timestamp_ms: *timestamp_ms, key, value, headers: &[] });
    }
    let produce = Produce { batches: vec![(partition, builder.build())] };
    let Reply::Produce(results) = world.answer(Command::Produce(produce)) else { panic!("sent") };
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// All records of a partition: key, value, and the dead letter's error if it has one.
fn received(world: &mut World, partition: PartitionId) -> Vec<String> {
    let wanted = FetchPartition { partition, offset: 0, bytes_max: 1 << 20 };
    let fetch = Fetch { partitions: vec![wanted], bytes_min: 0, bytes_max: 1 << 20, wait_ms: 0 };
    let Reply::Fetch(fetched) = world.answer(Command::Fetch(fetch)) else { panic!("fetched") };
    let batches = fetched.into_iter().flat_map(|it| it.records.expect("there")).collect::<Vec<_>>();
    let text =
        |bytes: Option<Bytes>| String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
    let shown = |record: crate::batch::Record| {
        let error = record.headers.into_iter().find(|(name, _)| name == "tidemill.error");
        let error = error.map_or(String::new(), |(_, words)| format!(" ({})", text(words)));
        format!("{}={}{error}", text(record.key), text(record.value))
    };
    let batches = batches.into_iter().map(|bytes| RecordBatch::stored(bytes).expect("ours"));
    batches
        .flat_map(|batch| batch.records(1 << 20).expect("plain"))
        .map(|it| shown(it.expect("good")))
        .collect()
}

fn counting() -> ShardOptions {
    let topology = Topology::new("counting");
    let source = topology.source("in", Utf8);
    source
        .partitioned_by_key(Utf8)
        .count("count")
        .map(|_, count| count.to_string())
        .sink("out", Utf8);
    topology.dead_letter("dead");
    ShardOptions { topologies: vec![topology.build().expect("good").into()], ..options() }
}

#[test]
fn a_record_its_state_and_its_output_are_in_one_frame() {
    let mut world = World::with(counting());
    let [input, output, _] = make_topics(&mut world, ["in", "out", "dead"]);
    let before = world.frames;
    send(&mut world, input, &[("a", "x", 1), ("b", "x", 1), ("a", "x", 1)]);
    assert_eq!(world.frames, before + 1, "input, change and output took one write");
    assert_eq!(received(&mut world, output), ["a=1", "b=1", "a=2"]);
    for _ in 0..2 {
        world = world.restart_with(counting());
        send(&mut world, input, &[("a", "x", 1)]);
    }
    assert_eq!(received(&mut world, output), ["a=1", "b=1", "a=2", "a=3", "a=4"]);
}

#[test]
fn a_topology_waits_for_its_topics_and_begins_with_what_was_there() {
    let mut world = World::with(counting());
    let [input] = make_topics(&mut world, ["in"]);
    send(&mut world, input, &[("a", "x", 1)]);
    let paused: Vec<(&str, &str)> = world.shard.paused_topologies().collect();
    assert_eq!(paused, [("counting", "there is no topic \"out\"; create it")]);
    let [output, _] = make_topics(&mut world, ["out", "dead"]);
    world.run();
    assert_eq!(received(&mut world, output), ["a=1"]);
    assert_eq!(world.shard.paused_topologies().count(), 0);
}

#[test]
fn what_does_not_decode_goes_to_the_dead_letter_topic_and_the_rest_goes_on() {
    let mut world = World::with(counting());
    let [input, output, dead] = make_topics(&mut world, ["in", "out", "dead"]);
    let mut builder = BatchBuilder::new();
    for value in [&b"good"[..], &[0xff], b"good"] {
        let record = NewRecord { key: Some(b"k"), value: Some(value), ..NewRecord::default() };
        builder.push(record);
    }
    let produce = Produce { batches: vec![(input, builder.build())] };
    world.answer(Command::Produce(produce));
    assert_eq!(received(&mut world, output), ["k=1", "k=2"]);
    let [letter] = &received(&mut world, dead)[..] else { panic!("one letter") };
    assert!(letter.contains("(source in: not utf-8"), "{letter}");
}

#[test]
fn windows_are_told_when_event_time_has_passed_them_also_after_a_restart() {
    let windowed = || {
        let topology = Topology::new("windows");
        topology
            .source("in", Utf8)
            .partitioned_by_key(Utf8)
            .window(Windows::tumbling(std::time::Duration::from_millis(10)))
            .count("count")
            .map(|_, it| format!("{}..{}: {}", it.start_ms, it.end_ms, it.value))
            .sink("out", Utf8);
        ShardOptions { topologies: vec![topology.build().expect("good").into()], ..options() }
    };
    let mut world = World::with(windowed());
    let [input, output] = make_topics(&mut world, ["in", "out"]);
    send(&mut world, input, &[("a", "x", 1), ("a", "x", 9), ("b", "x", 5)]);
    assert_eq!(received(&mut world, output), [""; 0]);
    world = world.restart_with(windowed());
    send(&mut world, input, &[("a", "x", 11)]);
    assert_eq!(received(&mut world, output), ["a=0..10: 2", "b=0..10: 1"]);
    send(&mut world, input, &[("b", "late", 3), ("c", "x", 21)]);
    assert_eq!(received(&mut world, output)[2..], ["a=10..20: 1"]);
}

/// A sum for each key, whose codec has this version and reads all up to it.
fn summing(name: &str, version: u8, reads_newer: bool) -> Topology {
    let topology = Topology::new("summing");
    let codec = Versioned { version, reads_newer };
    topology
        .source("in", Utf8)
        .partitioned_by_key(Utf8)
        .aggregate(name, codec, || 0, |sum, _, value| *sum += value.len() as i64)
        .map(|_, sum| sum.to_string())
        .sink("out", Utf8);
    topology
}

fn hosting(topology: Topology) -> ShardOptions {
    ShardOptions { topologies: vec![topology.build().expect("good").into()], ..options() }
}

/// A number in decimal; version 2 writes a plus sign before it.
#[derive(Debug, Clone)]
struct Versioned {
    version: u8,
    reads_newer: bool,
}

impl Codec for Versioned {
    type Value = i64;

    fn name(&self) -> String {
        "decimal".to_owned()
    }

    fn encode(&self, value: &i64, to: &mut Vec<u8>) {
        let sign = if self.version == 2 { "+" } else { "" };
        to.extend_from_slice(format!("{sign}{value}").as_bytes());
    }

    fn decode(&self, bytes: &Bytes) -> Result<i64, CodecError> {
        self.decode_version(self.version, bytes)
    }

    fn version(&self) -> u8 {
        self.version
    }

    fn reads(&self, version: u8) -> bool {
        version <= self.version || self.reads_newer
    }

    fn decode_version(&self, version: u8, bytes: &Bytes) -> Result<i64, CodecError> {
        let text = std::str::from_utf8(bytes).expect("ours");
        assert_eq!(text.starts_with('+'), version == 2, "{text} of version {version}");
        Ok(text.parse().expect("ours"))
    }
}

#[test]
fn a_topology_is_upgraded_over_its_state_and_back() {
    let mut world = World::with(hosting(summing("sum", 1, true)));
    let [input, output] = make_topics(&mut world, ["in", "out"]);
    send(&mut world, input, &[("a", "xx", 1), ("b", "x", 1)]);
    for version in [2, 1, 2] {
        world = world.restart_with(hosting(summing("sum", version, true)));
        send(&mut world, input, &[("a", "x", 1)]);
    }
    assert_eq!(received(&mut world, output), ["a=2", "b=1", "a=3", "a=4", "a=5"]);
}

#[test]
fn a_topology_that_cannot_read_its_state_is_refused_and_the_state_stays() {
    let mut world = World::with(hosting(summing("sum", 2, false)));
    let [input, output] = make_topics(&mut world, ["in", "out"]);
    send(&mut world, input, &[("a", "xx", 1)]);
    let now = world.now;
    let mut refused = |topology: Topology| {
        let opened = Shard::open(&mut world.disk, hosting(topology), now, &mut |_| {});
        opened.expect_err("it cannot run").to_string()
    };
    let older = refused(summing("sum", 1, false));
    assert!(older.contains("version 2 of decimal"), "{older}");
    let renamed = refused(summing("total", 2, false));
    assert!(renamed.contains("drop_state(\"sum\""), "{renamed}");
    world = world.restart_with(hosting(summing("sum", 2, false)));
    send(&mut world, input, &[("a", "x", 1)]);
    assert_eq!(received(&mut world, output), ["a=2", "a=3"]);
}

#[test]
fn a_state_that_is_dropped_goes_and_is_forgotten() {
    let mut world = World::with(hosting(summing("sum", 1, false)));
    let [input, output] = make_topics(&mut world, ["in", "out"]);
    let keys: Vec<String> = (0..1000).map(|number| format!("key {number}")).collect();
    let records: Vec<(&str, &str, i64)> = keys.iter().map(|key| (&key[..], "x", 1)).collect();
    send(&mut world, input, &records);
    let renamed = || {
        let topology = summing("total", 1, false);
        topology.drop_state("sum", "aggregate");
        hosting(topology)
    };
    world = world.restart_with(renamed());
    send(&mut world, input, &[("key 1", "xxx", 1)]);
    for _ in 0..10 {
        world.now.monotonic_ms += 1;
        world.run();
    }
    assert_eq!(received(&mut world, output).last().map(String::as_str), Some("key 1=3"));
    // Without the word `drop_state` it may run now, for nothing is left.
    world = world.restart_with(hosting(summing("total", 1, false)));
    send(&mut world, input, &[("key 1", "x", 1)]);
    assert_eq!(received(&mut world, output).last().map(String::as_str), Some("key 1=4"));
}

fn letters(world: &mut World, dead: PartitionId) -> Vec<String> {
    let wanted = FetchPartition { partition: dead, offset: 0, bytes_max: 1 << 20 };
    let fetch = Fetch { partitions: vec![wanted], bytes_min: 0, bytes_max: 1 << 20, wait_ms: 0 };
    let Reply::Fetch(fetched) = world.answer(Command::Fetch(fetch)) else { panic!("fetched") };
    let batches = fetched.into_iter().flat_map(|it| it.records.expect("there"));
    let batches = batches.map(|bytes| RecordBatch::stored(bytes).expect("ours"));
    let records = batches.flat_map(|batch| batch.records(1 << 20).expect("plain"));
    let origin = |record: crate::batch::Record| {
        let origin = record.headers.into_iter().find(|(name, _)| name == "tidemill.origin");
        let (_, origin) = origin.expect("every letter says where it is from");
        String::from_utf8(origin.expect("a text").to_vec()).expect("a text")
    };
    records.map(|record| origin(record.expect("good"))).collect()
}

/// A batch of two records, changed and sealed anew.
fn bad_batch(change: impl Fn(&mut Vec<u8>)) -> RecordBatch {
    let mut builder = BatchBuilder::new();
    for value in [b"1", b"2"] {
        builder.push(NewRecord { key: Some(b"k"), value: Some(value), ..NewRecord::default() });
    }
    let mut bytes = builder.build().into_bytes().to_vec();
    change(&mut bytes);
    let checksum = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
    RecordBatch::stored(bytes.into()).expect("its length is right")
}

#[test]
fn a_batch_that_cannot_be_read_is_a_dead_letter_and_the_rest_goes_on() {
    let mut world = World::with(counting());
    let [input, output, dead] = make_topics(&mut world, ["in", "out", "dead"]);
    // It says that it is compressed by zstd, and is not; its second record is cut short.
    let compressed = bad_batch(|bytes| bytes[22] |= 4);
    let cut = bad_batch(|bytes| {
        let last = bytes.len() - 1;
        bytes[last] = 9;
    });
    for batch in [compressed, cut] {
        world.answer(Command::Produce(Produce { batches: vec![(input, batch)] }));
    }
    send(&mut world, input, &[("k", "x", 1)]);
    assert_eq!(received(&mut world, output), ["k=1", "k=2"], "one of the cut batch, and the last");
    assert_eq!(letters(&mut world, dead), ["in-0@0..=1", "in-0@3..=3"]);
}

#[test]
fn records_that_claim_one_offset_do_not_stop_the_shard() {
    let mut world = World::with(counting());
    let [input, output, _] = make_topics(&mut world, ["in", "out", "dead"]);
    // The second record's offset delta, which is its fourth byte, becomes the first one's.
    let twice = bad_batch(|bytes| {
        let second = bytes.len() - 9;
        bytes[second + 3] = 0;
    });
    world.answer(Command::Produce(Produce { batches: vec![(input, twice)] }));
    send(&mut world, input, &[("k", "x", 1)]);
    assert_eq!(received(&mut world, output), ["k=1", "k=2"]);
}

/// Sets a timer of the clock for each record, and tells when it rings.
struct Alarm;

impl Operator for Alarm {
    type Key = String;
    type In = String;
    type Out = String;

    fn on_record(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        _value: String,
    ) -> Result<(), OperatorError> {
        context.set_timer(TimeDomain::Processing, context.now_ms() + 10);
        Ok(())
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        _timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        context.emit("rang".to_owned());
        Ok(())
    }
}

#[test]
fn timers_ring_while_records_wait() {
    let topology = Topology::new("alarms");
    topology.source("in", Utf8).partitioned_by_key(Utf8).process("alarm", Alarm).sink("out", Utf8);
    let mut world = World::with(hosting(topology));
    let [input, output] = make_topics(&mut world, ["in", "out"]);
    send(&mut world, input, &[("first", "x", 1)]);
    // Many batches come, and the time of each step is up after two calls.
    for _ in 0..100 {
        let record = NewRecord { key: Some(b"k"), value: Some(b"x"), ..NewRecord::default() };
        let mut builder = BatchBuilder::new();
        builder.push(record);
        let batches = vec![(input, builder.build())];
        let ticket = world.ticket();
        let command = Command::Produce(Produce { batches });
        world.inbox.push_back(Input::Command { ticket, command });
    }
    world.now.monotonic_ms += 10;
    world.now.wall_ms += 10;
    let mut effects = Vec::new();
    while let Some(input) = world.inbox.pop_front() {
        world.shard.step(world.now, input, &mut effects);
    }
    for _ in 0..3 {
        let mut left = 2;
        let mut goes_on = || {
            left -= 1;
            left > 0
        };
        world.shard.process(world.now, &mut goes_on, &mut effects);
    }
    let facts = world.shard.topologies().next().expect("one runs");
    assert!(facts.counts.records < 50, "{:?}", facts.counts);
    assert_eq!(facts.counts.timers, 1, "the alarm does not wait for all records");
    world.shard.flush(world.now, &mut effects);
    effects.into_iter().for_each(|effect| world.perform(effect));
    world.run();
    assert_eq!(received(&mut world, output), ["first=rang"]);
}

#[test]
fn a_topology_rests_when_its_state_is_at_the_budget_and_records_are_taken_all_the_same() {
    let mut world = World::with(ShardOptions { state_budget: 4096, ..counting() });
    let [input, output, _] = make_topics(&mut world, ["in", "out", "dead"]);
    let keys: Vec<String> = (0..100).map(|number| format!("key {number}")).collect();
    for key in &keys {
        send(&mut world, input, &[(key, "x", 1)]);
    }
    let counted = received(&mut world, output).len();
    assert!((1..100).contains(&counted), "{counted} were counted");
    let why = world.shard.paused_topologies().next().expect("it rests").1.to_owned();
    assert!(why.contains("`state_budget`"), "{why}");
    world = world.restart_with(counting());
    world.run();
    assert_eq!(received(&mut world, output).len(), 100, "with more memory it goes on");
}

#[test]
fn a_start_with_an_unknown_topic_is_refused_with_what_to_do() {
    let mut world = World::with(counting());
    let why = world.shard.check_topics().expect_err("there is none").to_string();
    assert!(why.contains("no topic \"in\"") && why.contains("Topology::create"), "{why}");
    make_topics(&mut world, ["in", "out", "dead"]);
    assert!(world.shard.check_topics().is_ok());
}

#[test]
fn topics_that_a_topology_makes_are_there_at_the_start_and_stay() {
    let made = || {
        let topology = summing("sum", 1, false);
        topology.create("in", 1);
        topology.create("out", 3);
        hosting(topology)
    };
    let mut world = World::with(made());
    assert!(world.shard.check_topics().is_ok());
    for _ in 0..2 {
        let mut effects = Vec::new();
        world.shard.start(&mut effects);
        effects.into_iter().for_each(|effect| world.perform(effect));
        world.run();
        assert_eq!(world.shard.paused_topologies().count(), 0);
        let partitions = world.shard.topology_progress().count();
        assert_eq!(partitions, 1, "partitions of the source");
        world.replies.clear();
        world = world.restart_with(made());
    }
}

#[test]
fn topics_are_made_as_they_are_configured_and_a_start_with_an_odd_key_is_refused() {
    let made = |config: &[(&str, &str)]| {
        let topology = summing("sum", 1, false);
        topology.create_with("in", 1, config);
        topology.create("out", 1);
        hosting(topology)
    };
    let mut world = World::with(made(&[("retention.ms", "60000"), ("retention.bytes", "-1")]));
    let mut effects = Vec::new();
    world.shard.start(&mut effects);
    effects.into_iter().for_each(|effect| world.perform(effect));
    world.run();
    let topics = &world.shard.catalog.routes().topics;
    assert_eq!(topics["in"].config.retention_ms, Some(60_000));
    assert_eq!(topics["in"].config.overrides.len(), 2);
    assert!(topics["out"].config.overrides.is_empty());
    for (key, value, words) in [
        ("retention.hours", "1", "\"retention.hours\" is not honoured by this node; known are"),
        ("retention.ms", "soon", "retention.ms=soon is not allowed: a whole number"),
    ] {
        let mut disk = MemoryStorage::new();
        let options = made(&[(key, value)]);
        let now = Now { monotonic_ms: 0, wall_ms: 0 };
        let refused = Shard::open(&mut disk, options, now, &mut |_| {}).expect_err("not allowed");
        let why = refused.to_string();
        assert!(why.starts_with("topology \"summing\": topic \"in\" cannot be made: "), "{why}");
        assert!(why.contains(words), "{why}");
    }
}

#[test]
fn new_partitions_of_a_source_are_read_and_keys_stay_where_their_state_is() {
    let mut world = World::with(counting());
    let [input, output, _] = make_topics(&mut world, ["in", "out", "dead"]);
    send(&mut world, input, &[("a", "x", 1), ("b", "x", 1), ("c", "x", 1)]);
    let topics = vec![(input.topic, 4)];
    let command = CatalogCommand::CreatePartitions { topics, validate_only: false };
    let Reply::Catalog(made) = world.answer(Command::Catalog(command)) else { panic!("made") };
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    world.run();
    for index in 0..4 {
        let partition = PartitionId { index, ..input };
        send(&mut world, partition, &[("a", "x", 1), ("b", "x", 1), ("c", "x", 1)]);
    }
    let last = received(&mut world, output).split_off(12);
    assert_eq!(last, ["a=5", "b=5", "c=5"], "whatever partition they are in");
    world = world.restart_with(counting());
    send(&mut world, PartitionId { index: 3, ..input }, &[("a", "x", 1)]);
    assert_eq!(received(&mut world, output)[15..], ["a=6"]);
}

#[test]
fn a_topology_is_seen_as_a_group_that_nobody_can_join_or_move() {
    let mut world = World::with(counting());
    let [input, ..] = make_topics(&mut world, ["in", "out", "dead"]);
    send(&mut world, input, &[("a", "x", 1), ("b", "x", 1)]);
    let group = || "tidemill.counting".to_owned();
    let fetch = GroupCommand::OffsetFetch { group: group(), partitions: None };
    let GroupReply::OffsetFetch(Ok(offsets)) = world.group(fetch) else { panic!("offsets") };
    let offsets: Vec<_> =
        offsets.into_iter().map(|(id, at)| (id, at.map(|it| it.offset))).collect();
    assert_eq!(offsets, [(input, Some(2))]);
    let GroupReply::List(groups) = world.group(GroupCommand::List) else { panic!("groups") };
    assert_eq!(groups.iter().map(|it| &it.group[..]).collect::<Vec<_>>(), ["tidemill.counting"]);
    let commit = OffsetCommit {
        member: MemberRef { group: group(), ..member(-1, "") },
        offsets: vec![(
            input,
            CommittedOffset { offset: 0, leader_epoch: -1, metadata: "".into() },
        )],
    };
    let reply = world.group(GroupCommand::OffsetCommit(commit));
    assert_eq!(reply, GroupReply::OffsetCommit(vec![Err(Refusal::InvalidGroup)]));
    let reply = world.group(GroupCommand::Delete(group()));
    assert_eq!(reply, GroupReply::Delete(Err(Refusal::NonEmptyGroup)));
}

#[test]
fn a_clock_that_was_wrong_and_is_right_again_holds_up_no_timer() {
    let topology = || {
        let topology = Topology::new("alarms");
        let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
        keyed.process("alarm", Alarm).sink("out", Utf8);
        hosting(topology)
    };
    let mut world = World::with(topology());
    let [input, output] = make_topics(&mut world, ["in", "out"]);
    let wall_ms = world.now.wall_ms;
    world.now.wall_ms += 1_000_000_000;
    send(&mut world, input, &[("a", "x", 1)]);
    world.now.wall_ms = wall_ms;
    assert_eq!(received(&mut world, output), [""; 0]);
    // Nobody looks before the timer is due, and then it rings.
    assert_eq!(world.shard.next_deadline_ms(), Some(world.now.monotonic_ms + 10));
    world.now.monotonic_ms += 10;
    world.now.wall_ms += 10;
    world.inbox.push_back(Input::Tick);
    world.run();
    assert_eq!(received(&mut world, output), ["a=rang"]);
}

#[test]
fn the_state_of_a_key_can_be_read() {
    let mut world = World::with(counting());
    let [input, ..] = make_topics(&mut world, ["in", "out", "dead"]);
    send(&mut world, input, &[("a", "x", 1), ("a", "x", 1)]);
    let mut ask = |operator: &str, key: &'static str| {
        let query = StateQuery {
            topology: "counting".to_owned(),
            operator: operator.to_owned(),
            state: "aggregate".to_owned(),
            key: Bytes::from_static(key.as_bytes()),
            count_max: 10,
        };
        let Reply::ReadState(entries) = world.answer(Command::ReadState(query)) else { panic!() };
        entries.map(|entries| entries.into_iter().map(|it| it.value).collect::<Vec<_>>())
    };
    assert_eq!(ask("count", "a"), Some(vec![2_i64.to_be_bytes().to_vec()]));
    assert_eq!(ask("count", "b"), Some(Vec::new()), "nothing is kept for it");
    assert_eq!(ask("cuont", "a"), None);
}

#[test]
fn what_came_into_the_frame_before_a_topology_was_wired_is_read_in_its_turn() {
    let mut world = World::with(counting());
    let [input] = make_topics(&mut world, ["in"]);
    send(&mut world, input, &[("a", "x", 1), ("a", "x", 1)]);
    let mut effects = Vec::new();
    let mut produce = |world: &mut World, key: &str| {
        let record =
            NewRecord { key: Some(key.as_bytes()), value: Some(b"x"), ..Default::default() };
        let mut builder = BatchBuilder::new();
        builder.push(record);
        let command = Command::Produce(Produce { batches: vec![(input, builder.build())] });
        let ticket = world.ticket();
        world.shard.step(world.now, Input::Command { ticket, command }, &mut effects);
    };
    // In one frame: a record, the topics that the topology waits for, and another record.
    produce(&mut world, "b");
    let topics = ["out", "dead"].map(|name| NewTopic {
        name: name.to_owned(),
        partition_count: Some(1),
        config: Vec::new(),
        automatic: false,
    });
    let command = CatalogCommand::CreateTopics { topics: topics.into(), validate_only: false };
    let ticket = world.ticket();
    let command = Command::Catalog(command);
    let mut more = Vec::new();
    world.shard.step(world.now, Input::Command { ticket, command }, &mut more);
    // Time for the first record alone.
    world.shard.process(world.now, &mut || false, &mut more);
    produce(&mut world, "c");
    world.shard.process(world.now, &mut || true, &mut more);
    world.shard.flush(world.now, &mut more);
    effects.into_iter().chain(more).for_each(|effect| world.perform(effect));
    world.run();
    let routes = world.shard.catalog.routes();
    let output = PartitionId { topic: routes.topics["out"].id, index: 0 };
    assert_eq!(received(&mut world, output), ["a=1", "a=2", "b=1", "c=1"]);
}
