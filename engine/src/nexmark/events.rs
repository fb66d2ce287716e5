//! What the queries read: events of the crate `nexmark` as JSON, from topics.
//!
//! The crate draws each event from its number alone, so the same count of events from the same base
//! time is the same input, on every machine.

use std::time::Duration;

use ::nexmark::EventGenerator;
use ::nexmark::config::NexmarkConfig;
use ::nexmark::event::{Auction, Bid, Event, Person};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::topology::{Json, Nullable, Stream, Topology};

/// The topics of persons, auctions and bids.
pub const INPUT_TOPICS: [&str; 3] = ["nexmark-person", "nexmark-auction", "nexmark-bid"];

/// The first event's time: ten seconds before a day begins, so that short runs see two days.
pub const BASE_TIME_MS: u64 = 1_767_225_590_000;

/// Events in a second of event time. One a millisecond: no two have the same time, so that no order
/// by time leaves a choice.
pub const EVENTS_PER_SECOND: usize = 1000;

/// How much older than the newest an event may be, as in the reference.
pub const LATENESS: Duration = Duration::from_secs(4);

/// A partition without events for this long holds up nobody.
pub const IDLE_AFTER: Duration = Duration::from_secs(30);

/// Event time of a record without a value, which ends the input of its partition: the end of the
/// year 9999. Every window is over then, and whatever comes later is late.
pub const END_MS: i64 = 253_402_300_799_000;

/// An event as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Which of [`INPUT_TOPICS`].
    pub topic: usize,
    /// Its time, in milliseconds since 1970.
    pub time_ms: i64,
    /// JSON, with the crate's field names.
    pub value: Vec<u8>,
}

/// All events from the first on, without end.
pub fn generate() -> impl Iterator<Item = Written> {
    EventGenerator::new(NexmarkConfig {
        base_time: BASE_TIME_MS,
        first_rate: EVENTS_PER_SECOND,
        next_rate: EVENTS_PER_SECOND,
        ..NexmarkConfig::default()
    })
    .map(|event| match event {
        Event::Person(person) => written(0, person.date_time, &person),
        Event::Auction(auction) => written(1, auction.date_time, &auction),
        Event::Bid(bid) => written(2, bid.date_time, &bid),
    })
}

/// Events of now: the same ones, each at the time that it is given.
#[derive(Debug)]
pub struct Traffic(EventGenerator);

impl Traffic {
    /// From the first event on.
    pub fn new() -> Self {
        Self(EventGenerator::new(NexmarkConfig::default()))
    }

    /// The next event, at a time in milliseconds since 1970.
    pub fn next(&mut self, time_ms: u64) -> Written {
        let event = self.0.next().expect("there is always one more");
        match event {
            Event::Person(person) => written(0, time_ms, &Person { date_time: time_ms, ..person }),
            Event::Auction(auction) => {
                let expires = time_ms + (auction.expires - auction.date_time);
                written(1, time_ms, &Auction { date_time: time_ms, expires, ..auction })
            }
            Event::Bid(bid) => written(2, time_ms, &Bid { date_time: time_ms, ..bid }),
        }
    }
}

impl Default for Traffic {
    fn default() -> Self {
        Self::new()
    }
}

fn written(topic: usize, date_time: u64, event: &impl Serialize) -> Written {
    let value = serde_json::to_vec(event).expect("numbers and text, which are JSON");
    Written { topic, time_ms: time_ms(date_time), value }
}

pub(super) fn persons(topology: &Topology) -> Stream<Person> {
    source(topology, INPUT_TOPICS[0], |person: &Person| person.date_time)
}

pub(super) fn auctions(topology: &Topology) -> Stream<Auction> {
    source(topology, INPUT_TOPICS[1], |auction: &Auction| auction.date_time)
}

/// The bids, by their own time.
pub fn bids(topology: &Topology) -> Stream<Bid> {
    source(topology, INPUT_TOPICS[2], |bid: &Bid| bid.date_time)
}

/// Events by their own time. A record without a value only moves event time.
fn source<T>(topology: &Topology, topic: &str, time: fn(&T) -> u64) -> Stream<T>
where
    T: Serialize + DeserializeOwned + Clone + Send + 'static,
{
    topology
        .source(topic, Nullable(Json::<T>::new()))
        .event_time(
            move |event: &Option<T>| event.as_ref().map_or(END_MS, |event| time_ms(time(event))),
            LATENESS,
            Some(IDLE_AFTER),
        )
        .flat_map(|event| event)
}

/// A time of an event, in milliseconds since 1970, no later than the end of all.
pub(super) fn time_ms(date_time: u64) -> i64 {
    i64::try_from(date_time).unwrap_or(END_MS).min(END_MS)
}
