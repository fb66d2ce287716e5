//! Other numbers of shards over the same contents.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemill_wal::format::{PartitionId, ShardId};

use super::tests::Reminder;
use super::{DriverError, TestDriver, TestRecord};
use crate::batch::{BatchBuilder, NewRecord};
use crate::command::{
    Command, CommittedOffset, GroupCommand, GroupReply, MemberRef, OffsetCommit, Produce, Reply,
    group_shard, key_partition,
};
use crate::reshard::ReshardError;
use crate::shard::Shard;
use crate::topology::{Nullable, SideOutput, Topology, Utf8, Windows};

/// Numbers of shards, one after the other.
const WAYS: [&[u16]; 5] = [&[1, 4], &[4, 2], &[3, 1], &[2, 2], &[2, 5, 1, 3]];

/// What happens to a node.
enum Event {
    /// Records come to a topic.
    Records(&'static str, Vec<TestRecord>),
    /// Time passes.
    Passes(Duration),
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn play(driver: &mut TestDriver, event: &Event) {
    match event {
        Event::Records(topic, records) => driver.pipe_in(topic, records).expect("power"),
        Event::Passes(by) => driver.advance(*by),
    }
}

/// The records of topics by topic and key, as text, in order.
type Told = BTreeMap<String, Vec<String>>;

fn take(driver: &mut TestDriver, topics: &[&str], told: &mut Told) {
    for topic in topics {
        for record in driver.pipe_out(topic) {
            let text = record.text();
            let (key, value) = text.split_once('=').expect("a key");
            let place = format!("{topic} {key}");
            told.entry(place).or_default().push(format!("{value} at {}", record.timestamp_ms));
        }
    }
}

/// What topologies tell of events when the number of shards changes before some of them.
fn told(
    topologies: fn() -> Vec<Topology>,
    (first, changes): (u16, &BTreeMap<usize, u16>),
    events: &[Event],
    topics: &[&str],
) -> Told {
    let mut driver = TestDriver::new(first, topologies()).expect("good");
    let mut told = Told::new();
    for (number, event) in events.iter().enumerate() {
        if let Some(count) = changes.get(&number) {
            // Some of it was read before, and some is read after.
            take(&mut driver, &topics[..1], &mut told);
            driver.restore(*count).expect("it goes on");
            assert_eq!(driver.shards().count(), usize::from(*count));
        }
        play(&mut driver, event);
    }
    take(&mut driver, topics, &mut told);
    assert_eq!(driver.paused(), []);
    told
}

/// Whatever the number of shards, and whenever it changes, topologies tell the same.
fn check(topologies: fn() -> Vec<Topology>, events: &[Event], topics: &[&str]) -> Told {
    let whole = told(topologies, (2, &BTreeMap::new()), events, topics);
    for (number, counts) in WAYS.into_iter().enumerate() {
        let at = 1 + number % (events.len() - counts.len() + 1);
        let changes: BTreeMap<usize, u16> = (at..).zip(counts[1..].iter().copied()).collect();
        let told = told(topologies, (counts[0], &changes), events, topics);
        assert_eq!(told, whole, "{counts:?} from event {at} on");
    }
    whole
}

/// Records of nine keys, each a little later than the one before, and some much too late.
fn records(numbers: std::ops::Range<i64>) -> Vec<TestRecord> {
    numbers
        .map(|number| {
            let (key, behind) = (number * 7 % 9, if number % 10 == 8 { 40 } else { 0 });
            TestRecord::new(&format!("k{key}"), &format!("k{key} {number}"), number * 3 - behind)
        })
        .collect()
}

fn key_of(value: &str) -> String {
    value[..2].to_owned()
}

#[test]
fn counts_and_aggregates_go_on_where_they_were() {
    let topologies = || {
        let topology = Topology::new("counts");
        for (topic, count) in [("in", 3), ("middle", 2), ("words", 4), ("keys", 4), ("twice", 1)] {
            topology.create(topic, count);
        }
        let source = topology.source("in", Utf8);
        let by_word = source.key_by("word", Utf8, Utf8, |value| key_of(value));
        by_word.count("words").map(|_, count| count.to_string()).sink("words", Utf8);
        let by_key = source.partitioned_by_key(Utf8);
        let joined = |all: &mut String, value: String| all.push_str(&value[2..]);
        by_key
            .aggregate("keys", Utf8, String::new, move |all, _, value| joined(all, value))
            .sink("keys", Utf8);
        by_word
            .reduce("newest", Utf8, |_, new| new)
            .through("middle", Utf8)
            .partitioned_by_key(Utf8)
            .count("twice")
            .map(|_, count| count.to_string())
            .sink("twice", Utf8);
        vec![topology]
    };
    let events = [0..20, 20..25, 25..26, 26..60].map(|it| Event::Records("in", records(it)));
    let told = check(topologies, &events, &["words", "keys", "twice"]);
    assert_eq!(told["words k0"].len(), 7);
    assert_eq!(told.len(), 27, "nine keys in each topic");
}

#[test]
fn windows_sessions_and_joins_go_on_where_they_were() {
    let topologies = || {
        let topology = Topology::new("windows");
        for topic in ["in", "other"] {
            topology.create(topic, 1);
        }
        for topic in ["windows", "late", "sessions", "near", "pairs", "table"] {
            topology.create(topic, 3);
        }
        let keyed = topology.source("in", Utf8).key_by("in", Utf8, Utf8, |value| key_of(value));
        let other =
            topology.source("other", Utf8).key_by("other", Utf8, Utf8, |value| key_of(value));
        let late = SideOutput::new();
        let hopping = Windows::hopping(ms(20), ms(10));
        let windows = keyed.window(hopping).late_to(&late).count("windows");
        late.stream(&windows).sink("late", Utf8);
        // An operator behind another one, with times of its own.
        let again = windows.window(Windows::tumbling(ms(40))).count("again");
        again.map(|_, it| format!("{}: {}", it.start_ms, it.value)).sink("windows", Utf8);
        let sessions = keyed.window(Windows::session(ms(30))).count("sessions");
        sessions.map(|_, it| format!("{}: {}", it.start_ms, it.value)).sink("sessions", Utf8);
        let both = |left: &str, right: &str| format!("{left}+{right}");
        let near = (ms(6), ms(9));
        keyed
            .interval_join("near", &other, near, (Utf8, Utf8), move |_, one, two| both(one, two))
            .sink("near", Utf8);
        let windows = Windows::tumbling(ms(25));
        keyed
            .window_join("pairs", &other, windows, (Utf8, Utf8), move |_, one, two| both(one, two))
            .map(|_, it| it.value)
            .sink("pairs", Utf8);
        let table = other.map(|_, value| Some(value));
        keyed
            .join_table("table", &table, Utf8, move |_, one, two| {
                Some(both(&one, two.map_or("nothing", String::as_str)))
            })
            .sink("table", Utf8);
        vec![topology]
    };
    let mut events: Vec<Event> = Vec::new();
    for numbers in [0..20, 20..33, 33..60] {
        let others = records(numbers.start..numbers.end).into_iter();
        let others = others.filter(|it| it.timestamp_ms % 2 == 0).collect();
        events.extend([Event::Records("in", records(numbers)), Event::Records("other", others)]);
    }
    let last = || vec![TestRecord::new("", "end", 100_000)];
    events.extend([Event::Records("in", last()), Event::Records("other", last())]);
    let topics = ["windows", "late", "sessions", "near", "pairs", "table"];
    let told = check(topologies, &events, &topics);
    for topic in topics {
        let of_topic = told.iter().filter(|(place, _)| place.starts_with(topic));
        let count: usize = of_topic.map(|(_, told)| told.len()).sum();
        assert!(count >= 5, "{count} in {topic}");
    }
}

#[test]
fn timers_by_the_clock_fire_once_after_a_restore() {
    let topologies = || {
        let topology = Topology::new("reminders");
        topology.create("in", 4);
        topology.create("out", 4);
        let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
        keyed.process("remind", Reminder).sink("out", Utf8);
        vec![topology]
    };
    let events = [
        Event::Records("in", records(0..9)),
        Event::Passes(ms(600)),
        Event::Records("in", records(9..14)),
        Event::Passes(ms(600)),
        Event::Passes(ms(600)),
        Event::Passes(ms(2000)),
    ];
    let told = check(topologies, &events, &["out"]);
    assert_eq!(told.values().map(Vec::len).sum::<usize>(), 14);
    assert!(told["out k0"][0].starts_with("due at 2000"), "{told:?}");
}

#[test]
fn nothing_becomes_late_by_a_restore_and_no_window_is_told_twice() {
    let topology = || {
        let topology = Topology::new("late");
        topology.create("in", 1);
        topology.create("out", 3);
        topology.create("late", 3);
        let late = SideOutput::new();
        let keyed = topology.source("in", Utf8).key_by("word", Utf8, Utf8, |value| key_of(value));
        let windows = keyed.window(Windows::tumbling(ms(10))).late_to(&late).count("windows");
        late.stream(&windows).sink("late", Utf8);
        windows.map(|_, it| format!("{}: {}", it.start_ms, it.value)).sink("out", Utf8);
        topology
    };
    let at = |time_ms: i64| -> Vec<TestRecord> {
        (0..8).map(|key| TestRecord::new("", &format!("k{key}"), time_ms)).collect()
    };
    for counts in WAYS {
        let mut driver = TestDriver::new(counts[0], vec![topology()]).expect("good");
        let mut told = Told::new();
        let mut put = |driver: &mut TestDriver, time_ms: i64| {
            told.clear();
            driver.pipe_in("in", &at(time_ms)).expect("power");
            take(driver, &["out", "late"], &mut told);
            told.clone()
        };
        let all = |topic: &str, words: &dyn Fn(&str) -> String| -> Told {
            let keys = (0..8).map(|key| format!("k{key}"));
            keys.map(|key| (format!("{topic} {key}"), vec![words(&key)])).collect()
        };
        put(&mut driver, 5);
        // Event time is at 19: nothing of it or before is expected.
        assert_eq!(put(&mut driver, 20), all("out", &|_| "0: 1 at 9".to_owned()));
        for count in &counts[1..] {
            driver.restore(*count).expect("it goes on");
            let late = all("late", &|key| format!("{key} at 9"));
            assert_eq!(put(&mut driver, 9), late, "{counts:?}: its window was told");
            assert_eq!(put(&mut driver, 20), Told::new(), "{counts:?}: in time");
        }
        let in_time = counts.len();
        assert_eq!(
            put(&mut driver, 40),
            all("out", &|_| format!("20: {in_time} at 29")),
            "{counts:?}"
        );
    }
}

/// Windows behind windows over a source of two partitions that fall silent.
fn silent() -> Topology {
    let topology = Topology::new("silent");
    topology.create("in", 2);
    topology.create("out", 3);
    topology.create("late", 3);
    let late = SideOutput::new();
    let time = |value: &String| value[3..].parse().unwrap_or(0);
    let source = topology.source("in", Utf8).event_time(time, ms(0), Some(ms(100)));
    let keyed = source.key_by("word", Utf8, Utf8, |value| key_of(value));
    let windows = keyed.window(Windows::tumbling(ms(10))).late_to(&late).count("windows");
    late.stream(&windows).sink("late", Utf8);
    let again = windows.window(Windows::tumbling(ms(20))).count("again");
    again.map(|_, it| format!("{}: {}", it.start_ms, it.value)).sink("out", Utf8);
    topology
}

/// Eight words at a time, by way of a partition.
fn put_words(driver: &mut TestDriver, partition: u32, time_ms: i64) {
    let of_partition = |key: &String| key_partition(key.as_bytes(), 2) == partition;
    let key = (0..).map(|number| number.to_string()).find(of_partition).expect("one");
    let records: Vec<TestRecord> =
        (0..8).map(|word| TestRecord::new(&key, &format!("k{word} {time_ms}"), 0)).collect();
    driver.pipe_in("in", &records).expect("power");
}

/// The earliest event time of an operator, on each shard.
fn watermarks(driver: &TestDriver) -> Vec<Option<i64>> {
    driver.shards().flat_map(Shard::topologies).map(|facts| facts.watermark_ms).collect()
}

#[test]
fn event_time_does_not_go_back_when_a_silent_source_counts_again_after_a_restore() {
    let told = |counts: &[u16]| -> Told {
        let mut driver = TestDriver::new(2, vec![silent()]).expect("good");
        put_words(&mut driver, 1, 11);
        driver.advance(ms(60));
        put_words(&mut driver, 0, 51);
        driver.advance(ms(60));
        assert_eq!(watermarks(&driver), [Some(50); 2], "nobody waits for the silent one");
        for count in counts {
            driver.restore(*count).expect("it goes on");
            assert_eq!(watermarks(&driver), vec![Some(50); usize::from(*count)]);
        }
        put_words(&mut driver, 1, 30);
        put_words(&mut driver, 0, 200);
        put_words(&mut driver, 1, 200);
        let mut told = Told::new();
        take(&mut driver, &["out", "late"], &mut told);
        told
    };
    let whole = told(&[]);
    let late = whole.iter().filter(|(place, _)| place.starts_with("late")).count();
    assert_eq!(late, 8, "{whole:?}");
    for counts in [&[1][..], &[3], &[4, 1]] {
        assert_eq!(told(counts), whole, "{counts:?}");
    }
}

#[test]
fn keys_of_a_shard_that_was_ahead_keep_their_event_time() {
    let told = |counts: &[u16]| -> Told {
        let mut driver = TestDriver::new(2, vec![silent()]).expect("good");
        put_words(&mut driver, 0, 51);
        put_words(&mut driver, 1, 11);
        // Both fall silent at once: one shard hears it in another order than the other.
        driver.advance(ms(100));
        let times = watermarks(&driver);
        assert_ne!(times[0], times[1]);
        for (count, time_ms) in counts.iter().zip(30..) {
            driver.restore(*count).expect("it goes on");
            put_words(&mut driver, 1, time_ms);
        }
        for time_ms in (30..33).skip(counts.len()) {
            put_words(&mut driver, 1, time_ms);
        }
        put_words(&mut driver, 0, 200);
        put_words(&mut driver, 1, 200);
        let mut told = Told::new();
        take(&mut driver, &["out", "late"], &mut told);
        told
    };
    let whole = told(&[]);
    let late = whole.iter().filter(|(place, _)| place.starts_with("late")).count();
    assert!((1..8).contains(&late), "{whole:?}");
    for counts in [&[1][..], &[3], &[4, 1], &[3, 2, 5]] {
        assert_eq!(told(counts), whole, "{counts:?}");
    }
}

/// A batch of one record, of an idempotent producer.
fn batch_of_producer(sequence: i32) -> crate::batch::RecordBatch {
    let mut builder = BatchBuilder::new().producer(7, 0, sequence);
    let value = sequence.to_string();
    builder.push(NewRecord {
        timestamp_ms: 1,
        key: None,
        value: Some(value.as_bytes()),
        headers: &[],
    });
    builder.build()
}

/// Offset that a batch gets.
fn append(driver: &mut TestDriver, partition: u32, sequence: i32) -> u64 {
    let route = driver.route("log");
    let batches = vec![(route.partition(partition), batch_of_producer(sequence))];
    let command = Command::Produce(Produce { batches });
    match driver.answer(route.shard_of(partition), command) {
        Some(Reply::Produce(results)) => results[0].expect("taken").base_offset,
        other => panic!("not taken: {other:?}"),
    }
}

fn ask_group(driver: &mut TestDriver, group: &str, command: GroupCommand) -> GroupReply {
    let shard = group_shard(group, driver.shard_count);
    match driver.answer(shard, Command::Group(command)) {
        Some(Reply::Group(reply)) => reply,
        other => panic!("no answer: {other:?}"),
    }
}

fn new_producer_id(driver: &mut TestDriver) -> i64 {
    match driver.answer(ShardId(0), Command::InitProducerId) {
        Some(Reply::InitProducerId(Ok(id))) => id,
        other => panic!("no id: {other:?}"),
    }
}

#[test]
fn logs_producers_and_groups_go_on_where_they_were() {
    for counts in WAYS {
        let mut driver = TestDriver::new(counts[0], Vec::new()).expect("good");
        driver.create_topic("other", 1);
        driver.create_topic("log", 5);
        let groups: Vec<String> = (0..9).map(|number| format!("group {number}")).collect();
        let partition = |driver: &TestDriver, index: usize| -> PartitionId {
            driver.route("log").partition(index as u32 % 5)
        };
        for (index, group) in groups.iter().enumerate() {
            let offset = CommittedOffset {
                offset: 100 + index as u64,
                leader_epoch: -1,
                metadata: String::new(),
            };
            let member = MemberRef {
                group: group.clone(),
                generation: -1,
                member_id: String::new(),
                instance_id: None,
            };
            let offsets = vec![(partition(&driver, index), offset)];
            let commit = OffsetCommit { member, offsets };
            let reply = ask_group(&mut driver, group, GroupCommand::OffsetCommit(commit));
            assert_eq!(reply, GroupReply::OffsetCommit(vec![Ok(())]));
        }
        for index in 0..5 {
            assert_eq!((append(&mut driver, index, 0), append(&mut driver, index, 1)), (0, 1));
        }
        assert_eq!(driver.pipe_out("log").len(), 10);
        let mut newest_id = new_producer_id(&mut driver);
        for (number, count) in (2..).zip(&counts[1..]) {
            driver.restore(*count).expect("it goes on");
            for index in 0..5 {
                let sequence = number as i32;
                assert_eq!(append(&mut driver, index, sequence - 1), number - 1, "known");
                assert_eq!(append(&mut driver, index, sequence), number, "new");
            }
            assert_eq!(driver.pipe_out("log").len(), 5, "what is new");
            let id = new_producer_id(&mut driver);
            assert!(id > newest_id, "{id} after {newest_id}");
            newest_id = id;
            for (index, group) in groups.iter().enumerate() {
                let partition = partition(&driver, index);
                let fetch = GroupCommand::OffsetFetch { group: group.clone(), partitions: None };
                let reply = ask_group(&mut driver, group, fetch);
                let GroupReply::OffsetFetch(Ok(offsets)) = reply else { panic!("{reply:?}") };
                let offsets: Vec<_> =
                    offsets.into_iter().map(|(id, it)| (id, it.map(|it| it.offset))).collect();
                assert_eq!(offsets, [(partition, Some(100 + index as u64))], "{group}");
            }
            driver.create_topic(&format!("new {count}").replace(' ', "-"), 3);
        }
        driver.rewind();
        assert_eq!(driver.pipe_out("log").len(), 10 + 5 * (counts.len() - 1));
    }
}

#[test]
fn settled_records_go_along() {
    let mut driver = TestDriver::new(2, Vec::new()).expect("good");
    driver.create_topic("log", 3);
    let text = "x".repeat(700 << 10);
    let record = |number: u32| TestRecord::new(&number.to_string(), &text, number.into());
    let put = |driver: &mut TestDriver, numbers: std::ops::Range<u32>| {
        let records: Vec<TestRecord> = numbers.map(record).collect();
        driver.pipe_in("log", &records).expect("power");
    };
    put(&mut driver, 0..60);
    let is_extent = |name: &tidemill_wal::format::FileName| name.0.ends_with(".ext");
    assert!(driver.places.iter().any(|place| place.disk.names().any(is_extent)));
    driver.restore(3).expect("it goes on");
    put(&mut driver, 60..70);
    driver.restore(1).expect("it goes on");
    let mut keys: Vec<(i64, usize)> = Vec::new();
    for record in driver.pipe_out("log") {
        keys.push((record.timestamp_ms, record.value.map_or(0, |value| value.len())));
    }
    keys.sort_unstable();
    assert_eq!(keys, (0..70).map(|number| (number, text.len())).collect::<Vec<_>>());
}

#[test]
fn what_waits_for_a_topology_that_rests_keeps_the_old_shards() {
    let topology = |is_picky: bool| {
        let topology = Topology::new("picky");
        topology.create("in", 1);
        topology.create("out", 1);
        let keyed = topology.source("in", Utf8).key_by("value", Utf8, Utf8, String::clone);
        let seen = keyed.map(move |_, value| match is_picky && value.starts_with("bad") {
            true => panic!("as asked"),
            false => value,
        });
        seen.sink("out", Utf8);
        topology
    };
    let mut driver = TestDriver::new(2, vec![topology(true)]).expect("good");
    let home = driver.route("in").shard_of(0);
    let is_away = |text: &String| key_partition(text.as_bytes(), 256) % 2 != u32::from(home.0);
    let bad = (0..).map(|number| format!("bad {number}")).find(is_away).expect("one");
    driver.pipe_in("in", &[TestRecord::new("k", &bad, 1)]).expect("power");
    let refused = driver.restore(3).expect_err("an entry waits");
    let is_not_at_rest = matches!(refused, DriverError::Reshard(ReshardError::NotAtRest { .. }));
    assert!(is_not_at_rest, "{refused}");
    assert!(driver.is_down());
    driver.restart_with(vec![topology(false)]).expect("the old shards");
    driver.restore(3).expect("it goes on");
    assert_eq!(driver.pipe_out("out").len(), 1);
}

#[test]
fn the_power_may_go_before_and_after_a_restore() {
    let topologies = || {
        let topology = Topology::new("counts");
        topology.create("in", 2);
        topology.create("out", 2);
        let nullable = topology.source("in", Nullable(Utf8)).map(Option::unwrap_or_default);
        let keyed = nullable.key_by("word", Utf8, Utf8, |value| key_of(value));
        keyed.count("count").map(|_, count| count.to_string()).sink("out", Utf8);
        vec![topology]
    };
    let all = records(0..12);
    let mut cuts = 0;
    for write in (1..).step_by(2) {
        let mut driver = TestDriver::new(2, topologies()).expect("good");
        driver.crash_at_write(write);
        let mut is_cut = driver.pipe_in("in", &all[..4]).is_err() || driver.is_down();
        driver.restore(3).expect("it goes on");
        let there = driver.pipe_out("in").len();
        driver.crash_at_write(write);
        is_cut |= driver.pipe_in("in", &all[there..8]).is_err() || driver.is_down();
        driver.restore(1).expect("it goes on");
        let there = there + driver.pipe_out("in").len();
        driver.pipe_in("in", &all[there..]).expect("power");
        let mut told = Told::new();
        take(&mut driver, &["out"], &mut told);
        let counts: BTreeMap<&str, usize> = told.iter().map(|(k, it)| (&**k, it.len())).collect();
        assert_eq!(counts.values().sum::<usize>(), 12, "cuts at write {write}: {told:?}");
        let are_in_order = told.values().all(|it| {
            it.iter().zip(1..).all(|(words, count)| words.starts_with(&format!("{count} at")))
        });
        assert!(are_in_order, "cuts at write {write}: {told:?}");
        if !is_cut {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 3, "{cuts} cuts");
}
