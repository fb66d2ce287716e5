//! Bids that look wrong: a price far above what its bidder is used to, told at once, and a bidder who
//! bids all the time, told when that session ends.

use std::time::Duration;

use ::nexmark::event::Bid;
use serde::{Deserialize, Serialize};

use crate::nexmark::{INPUT_TOPICS, bids};
use crate::topology::{
    Context, Json, Operator, OperatorError, States, Topology, Utf8, ValueState, Windows,
};

/// The topology, and the topic that alerts go to.
pub const ALERTS: &str = "demo-alerts";

/// Where bids go that cannot be processed.
pub const ALERTS_DEAD: &str = "demo-alerts-dead";

/// A bidder has no habits before so many bids.
const HABIT_COUNT: u64 = 5;

/// So many times what is usual is not usual any more.
const UNUSUAL: u64 = 4;

/// A session ends when its bidder was silent for this long.
const SESSION_GAP: Duration = Duration::from_secs(2);

/// So many bids in one session are too many.
const SPREE_COUNT: u64 = 100;

/// An alert, as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "alert", rename_all = "snake_case")]
pub enum Alert {
    /// A price that its bidder does not pay otherwise.
    UnusualPrice {
        /// Who.
        bidder: usize,
        /// For what.
        auction: usize,
        /// How much.
        price: u64,
        /// The average before.
        usual: u64,
    },
    /// Bids one after the other.
    Spree {
        /// Who.
        bidder: usize,
        /// How many.
        bids: u64,
        /// How much together.
        total: u64,
        /// From the first to the last, in milliseconds.
        lasted_ms: i64,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Glance {
    bidder: usize,
    auction: usize,
    price: u64,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Habit {
    bids: u64,
    total: u64,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Spree {
    bidder: usize,
    bids: u64,
    total: u64,
}

/// The topology. What it reads and writes is made with so many partitions, if it does not exist.
pub fn topology(partition_count: u32) -> Topology {
    let topology = Topology::new(ALERTS);
    [INPUT_TOPICS[2], ALERTS].iter().for_each(|topic| topology.create(topic, partition_count));
    topology.create(ALERTS_DEAD, 1);
    topology.dead_letter(ALERTS_DEAD);
    let glance =
        |Bid { bidder, auction, price, .. }: Bid| Glance { bidder, auction, price: price as u64 };
    let by_bidder =
        bids(&topology)
            .map(glance)
            .key_by("bidder", Utf8, Json::<Glance>::new(), |glance| glance.bidder.to_string());
    by_bidder
        .process("unusual", Unusual { habit: ValueState::new("habit", Json::new()) })
        .sink(ALERTS, Json::<Alert>::new());
    let add = |spree: &mut Spree, glance: Glance| {
        spree.bidder = glance.bidder;
        spree.bids += 1;
        spree.total += glance.price;
    };
    let merge = |spree: &mut Spree, other: Spree| {
        spree.bids += other.bids;
        spree.total += other.total;
    };
    by_bidder
        .window(Windows::session(SESSION_GAP))
        .aggregate("sprees", Json::<Spree>::new(), Spree::default, add, merge)
        .filter(|_, session| session.value.bids >= SPREE_COUNT)
        .map(|_, session| {
            let Spree { bidder, bids, total } = session.value;
            let gap_ms = SESSION_GAP.as_millis() as i64;
            let lasted_ms = session.end_ms - session.start_ms - gap_ms;
            Alert::Spree { bidder, bids, total, lasted_ms }
        })
        .sink(ALERTS, Json::<Alert>::new());
    topology
}

struct Unusual {
    habit: ValueState<Json<Habit>>,
}

impl Operator for Unusual {
    type Key = String;
    type In = Glance;
    type Out = Alert;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.habit);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, Alert>,
        _key: &String,
        Glance { bidder, auction, price }: Glance,
    ) -> Result<(), OperatorError> {
        let Habit { bids, total } = self.habit.get(context)?.unwrap_or_default();
        if bids >= HABIT_COUNT && price > UNUSUAL * (total / bids) {
            context.emit(Alert::UnusualPrice { bidder, auction, price, usual: total / bids });
        }
        self.habit.set(context, &Habit { bids: bids + 1, total: total + price })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{TestDriver, TestRecord};

    fn bid(bidder: usize, price: usize, date_time: u64) -> TestRecord {
        let (channel, url, extra) = (String::new(), String::new(), String::new());
        let bid = Bid { auction: 7, bidder, price, channel, url, date_time, extra };
        let value = serde_json::to_vec(&bid).expect("a bid").into();
        TestRecord { value: Some(value), timestamp_ms: 1, ..TestRecord::default() }
    }

    fn driver() -> TestDriver {
        TestDriver::new(2, vec![topology(1)]).expect("a good topology")
    }

    fn alerts(driver: &mut TestDriver) -> Vec<Alert> {
        let value = |record: TestRecord| record.value.expect("an alert");
        let alert = |record| serde_json::from_slice(&value(record)).expect("an alert");
        driver.pipe_out(ALERTS).into_iter().map(alert).collect()
    }

    #[test]
    fn a_price_beyond_all_habits_is_told_at_once() {
        let mut driver = driver();
        let mut bids: Vec<TestRecord> = (0..5).map(|_| bid(1, 100, 1)).collect();
        bids.extend([bid(1, 400, 1), bid(2, 1_000_000, 1), bid(1, 601, 1)]);
        driver.pipe_in(INPUT_TOPICS[2], &bids).expect("the power is there");
        // Six bids of 900 together before the last one: 150 each.
        let expected = Alert::UnusualPrice { bidder: 1, auction: 7, price: 601, usual: 150 };
        assert_eq!(alerts(&mut driver), [expected]);
    }

    #[test]
    fn bids_without_a_pause_are_told_when_the_pause_comes() {
        let mut driver = driver();
        let mut bids: Vec<TestRecord> = (0..100).map(|number| bid(1, 1, 1000 * number)).collect();
        bids.extend((0..99).map(|number| bid(2, 1, 99_000 + number)));
        driver.pipe_in(INPUT_TOPICS[2], &bids).expect("the power is there");
        assert_eq!(alerts(&mut driver), [], "both go on");
        driver.pipe_in(INPUT_TOPICS[2], &[bid(3, 1, 200_000)]).expect("the power is there");
        let expected = Alert::Spree { bidder: 1, bids: 100, total: 100, lasted_ms: 99_000 };
        assert_eq!(alerts(&mut driver), [expected]);
    }
}
