//! Queries for the bids that win auctions: q4, q9.

use std::cmp::Reverse;

use ::nexmark::event::{Auction, Bid};
use serde::{Deserialize, Serialize};

use super::{Number, auctions, bids, time_ms};
use crate::topology::{
    Context, Either, FiredTimer, Int64, Json, Keyed, MapState, Operator, OperatorError, States,
    TimeDomain, Topology, ValueState,
};

/// An auction's best bid has changed.
#[derive(Debug, Clone)]
struct Won {
    auction: Auction,
    bid: Bid,
    /// The best price before.
    price_before: Option<usize>,
}

/// A category's sum has changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Change {
    category: usize,
    price: usize,
    price_before: Option<usize>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Sum {
    auctions: u64,
    prices: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Average {
    id: usize,
    #[serde(rename = "final")]
    last: u64,
}

pub(super) fn q4(topology: &Topology, to: &str) {
    winning(topology)
        .pairs()
        .map(|(_, Won { auction, bid, price_before })| Change {
            category: auction.category,
            price: bid.price,
            price_before,
        })
        // A bid of the same price that was earlier changes nothing here.
        .filter(|change| change.price_before != Some(change.price))
        .key_by("category", Number, Json::<Change>::new(), |change| change.category)
        .aggregate("sum", Json::<Sum>::new(), Sum::default, |sum, _, change| {
            sum.auctions += u64::from(change.price_before.is_none());
            sum.prices += change.price as u64 - change.price_before.unwrap_or(0) as u64;
        })
        // An average of whole numbers is whole, as it is in the reference.
        .map(|category, sum| Average { id: *category, last: sum.prices / sum.auctions })
        .sink(to, Json::<Average>::new());
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Winner {
    id: usize,
    item_name: String,
    description: String,
    initial_bid: usize,
    reserve: usize,
    date_time: u64,
    expires: u64,
    seller: usize,
    category: usize,
    extra: String,
    auction: usize,
    bidder: usize,
    price: usize,
    #[serde(rename = "bid_dateTime")]
    bid_date_time: u64,
    #[serde(rename = "bid_extra")]
    bid_extra: String,
}

pub(super) fn q9(topology: &Topology, to: &str) {
    winning(topology)
        .map(|_, Won { auction, bid, .. }| Winner {
            id: auction.id,
            item_name: auction.item_name,
            description: auction.description,
            initial_bid: auction.initial_bid,
            reserve: auction.reserve,
            date_time: auction.date_time,
            expires: auction.expires,
            seller: auction.seller,
            category: auction.category,
            extra: auction.extra,
            auction: bid.auction,
            bidder: bid.bidder,
            price: bid.price,
            bid_date_time: bid.date_time,
            bid_extra: bid.extra,
        })
        .sink(to, Json::<Winner>::new());
}

/// By auction, its best bid each time that there is a better one.
fn winning(topology: &Topology) -> Keyed<Number, Won> {
    let auctions = auctions(topology)
        .key_by("auction", Number, Json::<Auction>::new(), |auction| auction.id)
        .map(|_, auction| Either::Left(auction));
    let bids = bids(topology)
        .key_by("bid", Number, Json::<Bid>::new(), |bid| bid.auction)
        .map(|_, bid| Either::Right(bid));
    let operator = Winning {
        auction: ValueState::new("auction", Json::new()),
        best: ValueState::new("best", Json::new()),
        waiting: MapState::new("waiting", Int64, Json::new()),
        next: ValueState::new("next", Int64),
    };
    auctions.union(&bids).process("winning", operator)
}

/// Holds an auction and its best bid until the auction is over, and a bid without an auction until
/// none can come any more that was open at its time.
struct Winning {
    auction: ValueState<Json<Auction>>,
    best: ValueState<Json<Bid>>,
    /// Bids that came before their auction, by number.
    waiting: MapState<Int64, Json<Bid>>,
    next: ValueState<Int64>,
}

impl Winning {
    /// A bid for an auction that is there: the better one stays.
    fn bid(
        &self,
        context: &mut Context<'_, '_, Won>,
        auction: &Auction,
        bid: Bid,
    ) -> Result<(), OperatorError> {
        if !(auction.date_time..=auction.expires).contains(&bid.date_time) {
            return Ok(());
        }
        let best = self.best.get(context)?;
        if best.as_ref().is_some_and(|best| rank(best) >= rank(&bid)) {
            return Ok(());
        }
        self.best.set(context, &bid)?;
        let price_before = best.map(|best| best.price);
        context.emit(Won { auction: auction.clone(), bid, price_before });
        Ok(())
    }
}

/// The highest price wins, and of equal ones the first. The rest decides only what the reference
/// leaves open, so that the order of arrival does not.
fn rank(bid: &Bid) -> (usize, Reverse<(u64, usize, &str)>) {
    (bid.price, Reverse((bid.date_time, bid.bidder, bid.extra.as_str())))
}

impl Operator for Winning {
    type Key = usize;
    type In = Either<Auction, Bid>;
    type Out = Won;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.auction);
        states.declare(&self.best);
        states.declare(&self.waiting);
        states.declare(&self.next);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, Won>,
        _key: &usize,
        value: Self::In,
    ) -> Result<(), OperatorError> {
        let known = self.auction.get(context)?;
        match (value, known) {
            (Either::Left(auction), None) => {
                let expires_ms = time_ms(auction.expires);
                if expires_ms <= context.watermark_ms() {
                    context.count_late();
                    return Ok(());
                }
                self.auction.set(context, &auction)?;
                context.set_timer(TimeDomain::Event, expires_ms);
                let waiting = self.waiting.entries(context)?;
                self.waiting.clear(context)?;
                self.next.clear(context)?;
                for (_, bid) in waiting {
                    self.bid(context, &auction, bid)?;
                }
                Ok(())
            }
            // Ids are unique: the first counts.
            (Either::Left(_), Some(_)) => Ok(()),
            (Either::Right(bid), Some(auction)) => self.bid(context, &auction, bid),
            (Either::Right(bid), None) => {
                let bid_ms = time_ms(bid.date_time);
                if bid_ms <= context.watermark_ms() {
                    context.count_late();
                    return Ok(());
                }
                let number = self.next.get(context)?.unwrap_or(0);
                self.waiting.insert(context, &number, &bid)?;
                self.next.set(context, &(number + 1))?;
                context.set_timer(TimeDomain::Event, bid_ms);
                Ok(())
            }
        }
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, Won>,
        _key: &usize,
        timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        let is_over = |time: u64| time_ms(time) <= timer.time_ms;
        for (number, bid) in self.waiting.entries(context)? {
            if is_over(bid.date_time) {
                self.waiting.remove(context, &number)?;
            }
        }
        if self.waiting.entries(context)?.is_empty() {
            self.next.clear(context)?;
        }
        if self.auction.get(context)?.is_some_and(|auction| is_over(auction.expires)) {
            self.auction.clear(context)?;
            self.best.clear(context)?;
        }
        Ok(())
    }
}
