//! Calls that end the process: the same one again and again pauses its topology, and nothing else.

use std::cell::Cell;

use super::*;
use crate::topology::{Context, FiredTimer, Operator, OperatorError, TimeDomain, Utf8, Witness};

thread_local! {
    /// The witness of the shard that runs.
    static OURS: Cell<Option<&'static Witness>> = const { Cell::new(None) };
    /// What would be left of it if the process had ended at the deadly call.
    static LEFT: Cell<Option<Witness>> = const { Cell::new(None) };
}

/// The process ends here, as far as anybody can tell at the next start.
fn die() {
    LEFT.set(OURS.get().map(Witness::copy));
}

/// Passes words on; a record or a timer of the word "deadly" ends the process.
struct Deadly {
    has_timer: bool,
}

impl Operator for Deadly {
    type Key = String;
    type In = String;
    type Out = String;

    fn on_record(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        word: String,
    ) -> Result<(), OperatorError> {
        match &word[..] {
            "deadly" if self.has_timer => context.set_timer(TimeDomain::Event, 7),
            "deadly" => die(),
            _ => {}
        }
        context.emit(word);
        Ok(())
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, String>,
        _key: &String,
        _timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        die();
        context.emit("rang".to_owned());
        Ok(())
    }
}

/// Where the deadly call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Record,
    Arrival,
    Timer,
}

/// One topology that dies, and one that copies the same topic.
fn plans(place: Place) -> Vec<Arc<Plan>> {
    let dying = Topology::new("dying");
    let words = dying.source("words", Utf8);
    if place == Place::Record {
        words
            .inspect(|word| {
                if word == "deadly" {
                    die()
                }
            })
            .sink("out", Utf8);
    } else {
        // All keys live on the other shard than the one partition of the topic, or on its own.
        let key = match place {
            Place::Arrival => "elsewhere",
            Place::Record | Place::Timer => "here",
        };
        words
            .key_by("word", Utf8, Utf8, move |_| key.to_owned())
            .process("deadly", Deadly { has_timer: place == Place::Timer })
            .sink("out", Utf8);
    }
    let copying = Topology::new("copying");
    copying.source("words", Utf8).sink("copies", Utf8);
    [dying, copying].map(|it| Arc::new(it.build().expect("good"))).into()
}

/// Starts with what an earlier process left, and with power for so many writes.
fn start(driver: &mut TestDriver, left: Vec<Witness>, writes: u64) -> Vec<&'static Witness> {
    driver.power_off();
    let witnesses: Vec<&Witness> = left.into_iter().map(|it| &*Box::leak(Box::new(it))).collect();
    for (index, witness) in witnesses.iter().enumerate() {
        let options = driver.options(index as u16);
        let place = &mut driver.places[index];
        let opened = Shard::open(&mut place.disk, options, driver.now, &mut |_| {}).expect("good");
        let mut shard = opened.shard;
        shard.note_calls(witness);
        place.shard = Some(shard);
    }
    driver.is_down = false;
    driver.crash_at_write(writes);
    for index in 0..witnesses.len() {
        let mut effects = Vec::new();
        if let Some(shard) = &mut driver.places[index].shard {
            shard.start(&mut effects);
        }
        effects.into_iter().for_each(|effect| driver.perform(index, effect));
    }
    witnesses
}

/// Lets shards work until one is inside of the deadly call, and the power goes before what it made is
/// stored: with one write less it does not come to the call. What is left then.
fn end_in_call(driver: &mut TestDriver, left: &[Witness]) -> Vec<Witness> {
    let disks: Vec<MemoryStorage> = driver.places.iter().map(|it| it.disk.clone()).collect();
    for writes in 1..100 {
        for (place, disk) in driver.places.iter_mut().zip(&disks) {
            place.disk = disk.clone();
        }
        let witnesses = start(driver, left.iter().map(Witness::copy).collect(), writes);
        let mut died = None;
        for _ in 0..1000 {
            for (index, witness) in witnesses.iter().enumerate() {
                OURS.set(Some(*witness));
                if died.is_none() && !driver.is_down {
                    driver.turn(index);
                    died = LEFT.take().map(|it| (index, it));
                }
            }
        }
        if let Some((index, witness)) = died {
            driver.power_off();
            let mut left: Vec<Witness> = witnesses.iter().map(|it| it.copy()).collect();
            left[index] = witness;
            return left;
        }
    }
    panic!("nobody dies");
}

fn check(place: Place, reason: &str) {
    let mut driver = TestDriver::new(2, Vec::new()).expect("good");
    for topic in ["words", "out", "copies"] {
        driver.create_topic(topic, 1);
    }
    let word = |word| TestRecord::new("k", word, 5);
    // Event time goes beyond that of the timer.
    let last = TestRecord::new("k", "c", 20);
    driver.pipe_in("words", &[word("a"), word("deadly"), word("b"), last]).expect("power");
    driver.plans = plans(place);
    let mut left = vec![Witness::default(), Witness::default()];
    for _ in 0..3 {
        left = end_in_call(&mut driver, &left);
    }
    for _ in 0..2 {
        let witnesses = start(&mut driver, left, u64::MAX);
        driver.run();
        assert!(LEFT.take().is_none(), "{place:?}: it is not called again");
        let paused = driver.paused();
        let [(topology, why)] = &paused[..] else { panic!("{place:?}: {paused:?}") };
        assert_eq!(topology, "dying");
        assert!(why.contains("ended 3 times in a row") && why.contains(reason), "{why}");
        driver.rewind();
        assert_eq!(driver.pipe_out("copies").len(), 4, "others go on");
        left = witnesses.iter().map(|it| it.copy()).collect();
    }
    // More comes in meanwhile.
    driver.pipe_in("words", &[word("d")]).expect("power");
    driver.shards().for_each(Shard::forget_ends);
    start(&mut driver, vec![Witness::default(), Witness::default()], u64::MAX);
    driver.run();
    LEFT.take();
    assert_eq!(driver.paused(), []);
    driver.rewind();
    let mut out: Vec<String> =
        driver.pipe_out("out").iter().map(|it| it.text().split_off(it.text().len() - 1)).collect();
    out.sort();
    let rang = if place == Place::Timer { &["g"][..] } else { &[] };
    assert_eq!(out, [&["a", "b", "c", "d"][..], rang, &["y"]].concat(), "{place:?}: once each");
}

#[test]
fn a_record_that_ends_the_process_three_times_pauses_its_topology() {
    check(Place::Record, "the record words-0@1;");
}

#[test]
fn so_does_a_record_that_another_shard_sent() {
    check(Place::Arrival, "a record for key word-");
}

#[test]
fn so_does_a_timer() {
    check(Place::Timer, "a timer of operator deadly at 7 ms by event time;");
}
