//! The numbers of topologies for people, with real shards.

use std::cell::Cell;

use super::*;
use crate::state::Kind;
use crate::topology::{Context, Int64, Operator, OperatorError, States, Utf8, ValueState, Windows};

thread_local! {
    static CLOCK_NS: Cell<u64> = const { Cell::new(0) };
}

/// A clock that goes on by a microsecond whenever somebody looks.
fn clock_ns() -> u64 {
    CLOCK_NS.replace(CLOCK_NS.get() + 1000)
}

/// Passes words on and remembers the last one and how many; fails at "bad".
struct Words {
    last: ValueState<Utf8>,
    count: ValueState<Int64>,
}

impl Operator for Words {
    type Key = String;
    type In = String;
    type Out = String;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.last);
        states.declare(&self.count);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        word: String,
    ) -> Result<(), OperatorError> {
        self.last.set(context, &word)?;
        let count = self.count.get(context)?.unwrap_or(0) + 1;
        self.count.set(context, &count)?;
        context.emit(word.clone());
        match &word[..] {
            "bad" => Err("it is bad".into()),
            _ => Ok(()),
        }
    }
}

/// Lines of `key word word ...`: each word goes to its key.
fn words(has_dead_letter: bool) -> Topology {
    let topology = Topology::new("words");
    topology.create("lines", 1);
    topology.create("out", 1);
    if has_dead_letter {
        topology.create("dead", 1);
        topology.dead_letter("dead");
    }
    let words = topology
        .source("lines", Utf8)
        .flat_map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            let key = words.next().unwrap_or_default();
            words.map(|word| (key.clone(), word)).collect::<Vec<_>>()
        })
        .map(|(key, word)| format!("{key} {word}"))
        .key_by("word", Utf8, Utf8, |both| both.split(' ').next().unwrap_or_default().to_owned())
        .map(|_, both| both.split(' ').nth(1).unwrap_or_default().to_owned());
    let operator =
        Words { last: ValueState::new("last", Utf8), count: ValueState::new("count", Int64) };
    let passed = words.process("words", operator);
    passed.count("total").map(|_, count| count.to_string()).sink("out", Utf8);
    // Two ways from one name to another are one edge for people.
    passed.filter(|_, word| word.starts_with('a')).sink("out", Utf8);
    passed.filter(|_, word| word.starts_with('o')).sink("out", Utf8);
    topology
}

fn line(text: &str) -> TestRecord {
    TestRecord::new("k", text, 5)
}

/// Sums over shards: each edge as `from -> to: records`.
fn edges(driver: &TestDriver) -> Vec<String> {
    let mut sums: Vec<(String, u64)> = Vec::new();
    for facts in driver.shards().flat_map(Shard::topologies) {
        for edge in facts.edges {
            let name = format!("{} -> {}", edge.from, edge.to);
            match sums.iter_mut().find(|(it, _)| *it == name) {
                Some((_, sum)) => *sum += edge.records,
                None => sums.push((name, edge.records)),
            }
        }
    }
    sums.into_iter().map(|(name, sum)| format!("{name}: {sum}")).collect()
}

/// A key that lives on another shard than the one that reads the lines.
fn key_elsewhere(driver: &TestDriver) -> (String, ShardId) {
    let here = driver.route("lines").shard_of(0);
    let shard_of = |key: &str| ShardId((key_partition(key.as_bytes(), 256) % 2) as u16);
    let keys = (0..100).map(|number| number.to_string());
    let key = keys.into_iter().find(|key| shard_of(key) != here).expect("one of them");
    let shard = shard_of(&key);
    (key, shard)
}

#[test]
fn each_edge_counts_what_passed_it_in_calls_that_succeeded_on_whatever_shard() {
    let mut driver = TestDriver::new(2, vec![words(true)]).expect("good");
    let (key, _) = key_elsewhere(&driver);
    let lines = [line("a and or"), line(&format!("{key} an bad or")), line("b x")];
    driver.pipe_in("lines", &lines).expect("power");
    let expected = [
        // The bad word fails alone if it was sent to its key's shard, and with its line if not.
        "topic lines -> key word: 6",
        "key word -> words: 5",
        "words -> total: 5",
        "total -> topic out: 5",
        "words -> topic out: 4",
    ];
    assert_eq!(edges(&driver), expected);
    assert_eq!(driver.pipe_out("out").len(), 9);
    // A topic that changes makes the topology be put together anew.
    let topics = vec![(driver.route("out").id, 2)];
    let grow = CatalogCommand::CreatePartitions { topics, validate_only: false };
    driver.answer(ShardId(0), Command::Catalog(grow)).expect("power");
    driver.pipe_in("lines", &[line("a or")]).expect("power");
    assert_eq!(edges(&driver)[1], "key word -> words: 6");
    let facts = driver.shards().flat_map(Shard::topologies);
    let records = facts.flat_map(|facts| facts.operators.into_iter().map(|it| it.counts.records));
    assert_eq!(records.sum::<u64>(), 12);
}

#[test]
fn the_state_of_an_operator_is_counted_and_the_same_after_the_power_went() {
    let mut driver = TestDriver::new(2, vec![words(true)]).expect("good");
    for number in (0..20).chain(0..10) {
        driver.pipe_in("lines", &[line(&format!("{number} word{number} x"))]).expect("power");
    }
    let check = |driver: &TestDriver| {
        let mut sums = [0, 0];
        for shard in driver.shards() {
            let facts = shard.topologies().next().expect("one");
            for (index, operator) in facts.operators.iter().enumerate() {
                let states = facts.plan.states().iter();
                let states = states.filter(|it| it.operator == operator.operator);
                let prefixes = states.map(|it| Kind::OperatorState.key(&[&it.id.0.to_be_bytes()]));
                let entries = shard.state_entries(&prefixes.collect::<Vec<_>>());
                assert_eq!((operator.state.count, operator.state.size), entries);
                sums[index] += operator.state.count;
            }
        }
        sums
    };
    let counts = check(&driver);
    assert_eq!(counts[0], 2 * counts[1], "two states, and one");
    assert!(counts[1] >= 10, "{counts:?}");
    driver.restart().expect("good");
    assert_eq!(check(&driver), counts);
}

#[test]
fn records_that_wait_before_a_stage_are_counted_until_they_are_taken() {
    let mut driver = TestDriver::new(2, vec![words(false)]).expect("good");
    let (key, shard) = key_elsewhere(&driver);
    let lines = [line(&format!("{key} one two bad three")), line(&format!("{key} four"))];
    driver.pipe_in("lines", &lines).expect("power");
    let waiting = |driver: &TestDriver, shard: ShardId| {
        let shard = driver.places[usize::from(shard.0)].shard.as_ref().expect("power");
        let facts = shard.topologies().next().expect("one");
        let [stage] = &facts.stages[..] else { panic!("one stage") };
        assert_eq!(stage.stage, "word");
        assert!(stage.waiting_size <= facts.waiting_size, "{facts:?}");
        assert_eq!(stage.waiting > 0, stage.waiting_size > 0, "{facts:?}");
        stage.waiting
    };
    // Of the first entry two records were taken, and the third one is stuck.
    assert_eq!(waiting(&driver, shard), 3);
    assert_eq!(waiting(&driver, ShardId(1 - shard.0)), 0);
    driver.restart().expect("good");
    assert_eq!(waiting(&driver, shard), 3);
    driver.restart_with(vec![words(true)]).expect("good");
    assert_eq!(waiting(&driver, shard), 0);
}

#[test]
fn a_call_is_measured_without_the_operators_behind_it() {
    let mut driver = TestDriver::new(1, vec![words(true)]).expect("good");
    // Before anything works, as the runtime does.
    driver.power_off();
    let options = driver.options(0);
    let place = &mut driver.places[0];
    let opened = Shard::open(&mut place.disk, options, driver.now, &mut |_| {}).expect("good");
    let mut shard = opened.shard;
    shard.measure_calls(clock_ns);
    place.shard = Some(shard);
    driver.is_down = false;
    for _ in 0..2000 {
        driver.pipe_in("lines", &[line("k or")]).expect("power");
    }
    let shard = driver.shards().next().expect("one");
    let facts = shard.topologies().next().expect("one");
    for (operator, own_ns) in facts.operators.iter().zip([2000, 1000]) {
        let times = operator.call_times;
        let counts: Vec<_> = times.buckets().filter(|(_, count)| *count > 0).collect();
        let [(bound, count)] = counts[..] else { panic!("{counts:?}") };
        assert_eq!(bound, Some(u64::next_power_of_two(own_ns)), "{}", operator.operator);
        assert!((1600..=2400).contains(&count), "{count} of 2000 calls");
        assert_eq!(times.sum_ns(), count * own_ns);
    }
}

#[test]
fn without_a_stopwatch_nothing_is_measured() {
    let mut driver = TestDriver::new(1, vec![words(true)]).expect("good");
    for _ in 0..100 {
        driver.pipe_in("lines", &[line("k or")]).expect("power");
    }
    let facts = driver.shards().next().and_then(|shard| shard.topologies().next()).expect("one");
    assert!(facts.operators.iter().all(|it| it.call_times.sum_ns() == 0));
}

#[test]
fn an_operator_shows_its_event_time_once_it_has_one() {
    let topology = Topology::new("windows");
    topology.create("lines", 1);
    let keyed = topology.source("lines", Utf8).partitioned_by_key(Utf8);
    keyed.window(Windows::tumbling(Duration::from_millis(10))).count("window").pairs();
    let mut driver = TestDriver::new(1, vec![topology]).expect("good");
    let watermark_ms = |driver: &TestDriver| {
        let facts = driver.shards().next().and_then(|shard| shard.topologies().next());
        facts.expect("one").operators[0].watermark_ms
    };
    assert_eq!(watermark_ms(&driver), None);
    driver.pipe_in("lines", &[line("x")]).expect("power");
    assert_eq!(watermark_ms(&driver), Some(4), "nothing before the record's time is expected");
}
