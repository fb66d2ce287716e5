//! Queries for the most of a window: q5, q7.

use std::time::Duration;

use ::nexmark::event::Bid;
use serde::{Deserialize, Serialize};

use super::{Number, bids, time_ms};
use crate::topology::{
    Context, FiredTimer, Int64, Json, Operator, OperatorError, States, TimeDomain, Topology, Utf8,
    ValueState, Windows,
};

/// How far back q5 looks, and how often.
const HOT_WINDOW: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(2));

/// Length of the windows of q7, in milliseconds.
const HIGHEST_WINDOW_MS: i64 = 10_000;

/// Bids of an auction in a window.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Count {
    auction: usize,
    num: i64,
    end_ms: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct HotItem {
    auction: usize,
    num: i64,
}

pub(super) fn q5(topology: &Topology, to: &str) {
    let (size, hop) = HOT_WINDOW;
    bids(topology)
        .key_by("auction", Number, Json::<Bid>::new(), |bid| bid.auction)
        .window(Windows::hopping(size, hop))
        .count("count")
        .pairs()
        .map(|(auction, window)| Count { auction, num: window.value, end_ms: window.end_ms })
        .key_by("window", Utf8, Json::<Count>::new(), |count| count.end_ms.to_string())
        .process("most", Most { best: ValueState::new("best", Json::new()) })
        .sink(to, Json::<HotItem>::new());
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Best {
    num: i64,
    auctions: Vec<usize>,
}

/// Of the counts of a window, by its end, the highest.
struct Most {
    best: ValueState<Json<Best>>,
}

impl Operator for Most {
    type Key = String;
    type In = Count;
    type Out = HotItem;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.best);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, HotItem>,
        _window: &String,
        Count { auction, num, end_ms }: Count,
    ) -> Result<(), OperatorError> {
        if end_ms - 1 <= context.watermark_ms() {
            context.count_late();
            return Ok(());
        }
        let mut best = self.best.get(context)?.unwrap_or_default();
        if num > best.num {
            best = Best { num, auctions: Vec::new() };
        }
        if num == best.num {
            best.auctions.push(auction);
            self.best.set(context, &best)?;
        }
        context.set_timer(TimeDomain::Event, end_ms - 1);
        Ok(())
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, HotItem>,
        _window: &String,
        _timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        let Best { num, auctions } = self.best.get(context)?.unwrap_or_default();
        self.best.clear(context)?;
        auctions.into_iter().for_each(|auction| context.emit(HotItem { auction, num }));
        Ok(())
    }
}

/// A bid with the end of a window that it may be the highest of.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Candidate {
    end_ms: i64,
    bid: Bid,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct HighestBid {
    auction: usize,
    bidder: usize,
    price: usize,
    #[serde(rename = "dateTime")]
    date_time: u64,
    extra: String,
}

pub(super) fn q7(topology: &Topology, to: &str) {
    // The reference joins with `BETWEEN`, which has both borders: a bid of a window's first
    // millisecond is also told for the window before, if it has the highest price of that one.
    let candidates = |bid: Bid| {
        let start_ms = time_ms(bid.date_time).div_euclid(HIGHEST_WINDOW_MS) * HIGHEST_WINDOW_MS;
        let before = (time_ms(bid.date_time) == start_ms).then(|| bid.clone());
        let before = before.map(|bid| Candidate { end_ms: start_ms, bid });
        [Some(Candidate { end_ms: start_ms + HIGHEST_WINDOW_MS, bid }), before]
            .into_iter()
            .flatten()
    };
    let highest = Highest {
        price: ValueState::new("price", Int64),
        bids: ValueState::new("bids", Json::new()),
    };
    bids(topology)
        .flat_map(candidates)
        .key_by("window", Utf8, Json::<Candidate>::new(), |it| it.end_ms.to_string())
        .process("highest", highest)
        .sink(to, Json::<HighestBid>::new());
}

/// Of the bids of a window, by its end, those with the highest price.
struct Highest {
    /// Of the window's own bids.
    price: ValueState<Int64>,
    /// Those with at least that price, and not all of it the window's own.
    bids: ValueState<Json<Vec<Bid>>>,
}

impl Operator for Highest {
    type Key = String;
    type In = Candidate;
    type Out = HighestBid;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.price);
        states.declare(&self.bids);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, HighestBid>,
        _window: &String,
        Candidate { end_ms, bid }: Candidate,
    ) -> Result<(), OperatorError> {
        // The window's end is the time of a bid that counts for it.
        if end_ms <= context.watermark_ms() {
            context.count_late();
            return Ok(());
        }
        context.set_timer(TimeDomain::Event, end_ms);
        let highest = self.price.get(context)?.unwrap_or(i64::MIN);
        let price = price_of(&bid);
        if price < highest {
            return Ok(());
        }
        let mut bids = self.bids.get(context)?.unwrap_or_default();
        if time_ms(bid.date_time) < end_ms && price > highest {
            self.price.set(context, &price)?;
            bids.retain(|other| price_of(other) >= price);
        }
        bids.push(bid);
        self.bids.set(context, &bids)
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, HighestBid>,
        _window: &String,
        _timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        let highest = self.price.get(context)?;
        let bids = self.bids.get(context)?.unwrap_or_default();
        self.price.clear(context)?;
        self.bids.clear(context)?;
        for bid in bids.into_iter().filter(|bid| Some(price_of(bid)) == highest) {
            let Bid { auction, bidder, price, date_time, extra, .. } = bid;
            context.emit(HighestBid { auction, bidder, price, date_time, extra });
        }
        Ok(())
    }
}

fn price_of(bid: &Bid) -> i64 {
    i64::try_from(bid.price).unwrap_or(i64::MAX)
}
