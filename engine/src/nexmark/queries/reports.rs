//! Queries for statistics that are kept up to date: q15, q16, q17. Like the reference's they remember
//! every day for ever.

use ::nexmark::event::Bid;
use serde::{Deserialize, Serialize};

use super::{bids, days, time_ms};
use crate::topology::{
    Context, Int64, Json, Keyed, MapState, Operator, OperatorError, States, Topology, Utf8,
    ValueState,
};

/// Counts of bids of three ranges of prices, and of who made them and for what.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Tally {
    total_bids: u64,
    rank1_bids: u64,
    rank2_bids: u64,
    rank3_bids: u64,
    total_bidders: u64,
    rank1_bidders: u64,
    rank2_bidders: u64,
    rank3_bidders: u64,
    total_auctions: u64,
    rank1_auctions: u64,
    rank2_auctions: u64,
    rank3_auctions: u64,
}

/// The range of a price, from 0.
fn rank(price: usize) -> usize {
    match price {
        ..10_000 => 0,
        10_000..1_000_000 => 1,
        1_000_000.. => 2,
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct DayReport {
    day: String,
    #[serde(flatten)]
    tally: Tally,
}

pub(super) fn q15(topology: &Topology, to: &str) {
    let stream = bids(topology).key_by("day", Utf8, Json::<Bid>::new(), day_of);
    statistics(&stream)
        .map(|day, report| DayReport { day: day.clone(), tally: report.tally })
        .sink(to, Json::<DayReport>::new());
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct ChannelReport {
    channel: String,
    day: String,
    minute: String,
    #[serde(flatten)]
    tally: Tally,
}

pub(super) fn q16(topology: &Topology, to: &str) {
    let key = |bid: &Bid| format!("{}, {}", bid.channel, day_of(bid));
    let stream = bids(topology).key_by("channel and day", Utf8, Json::<Bid>::new(), key);
    statistics(&stream)
        .map(|_, Report { channel, day, minute, tally }| ChannelReport {
            channel,
            day,
            minute,
            tally,
        })
        .sink(to, Json::<ChannelReport>::new());
}

fn day_of(bid: &Bid) -> String {
    days::day_text(time_ms(bid.date_time))
}

fn statistics(stream: &Keyed<Utf8, Bid>) -> Keyed<Utf8, Report> {
    let operator = Statistics {
        report: ValueState::new("report", Json::new()),
        bidders: MapState::new("bidders", Int64, Int64),
        auctions: MapState::new("auctions", Int64, Int64),
    };
    stream.process("statistics", operator)
}

/// What is known of a key, with the last bid's channel and day.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Report {
    channel: String,
    day: String,
    /// The latest of the day.
    minute: String,
    tally: Tally,
}

struct Statistics {
    report: ValueState<Json<Report>>,
    /// By who bid, the ranges in which they did, a bit each.
    bidders: MapState<Int64, Int64>,
    /// By auction, the same.
    auctions: MapState<Int64, Int64>,
}

impl Statistics {
    /// Whether that one is new, and new in this range.
    fn see(
        context: &mut Context<'_, '_, Report>,
        seen: &MapState<Int64, Int64>,
        id: usize,
        rank: usize,
    ) -> Result<[u64; 2], OperatorError> {
        let id = i64::try_from(id)?;
        let before = seen.get(context, &id)?.unwrap_or(0);
        let bit = 1 << rank;
        if before & bit == 0 {
            seen.insert(context, &id, &(before | bit))?;
        }
        Ok([u64::from(before == 0), u64::from(before & bit == 0)])
    }
}

impl Operator for Statistics {
    type Key = String;
    type In = Bid;
    type Out = Report;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.report);
        states.declare(&self.bidders);
        states.declare(&self.auctions);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, Report>,
        _key: &String,
        bid: Bid,
    ) -> Result<(), OperatorError> {
        let mut report = self.report.get(context)?.unwrap_or_default();
        let rank = rank(bid.price);
        let [new_bidder, new_bidder_of_rank] = Self::see(context, &self.bidders, bid.bidder, rank)?;
        let [new_auction, new_auction_of_rank] =
            Self::see(context, &self.auctions, bid.auction, rank)?;
        let it = &mut report.tally;
        it.total_bids += 1;
        it.total_bidders += new_bidder;
        it.total_auctions += new_auction;
        let [bids, bidders, auctions] = match rank {
            0 => [&mut it.rank1_bids, &mut it.rank1_bidders, &mut it.rank1_auctions],
            1 => [&mut it.rank2_bids, &mut it.rank2_bidders, &mut it.rank2_auctions],
            _ => [&mut it.rank3_bids, &mut it.rank3_bidders, &mut it.rank3_auctions],
        };
        *bids += 1;
        *bidders += new_bidder_of_rank;
        *auctions += new_auction_of_rank;
        report.minute = report.minute.max(days::minute_text(time_ms(bid.date_time)));
        (report.day, report.channel) = (day_of(&bid), bid.channel);
        self.report.set(context, &report)?;
        context.emit(report);
        Ok(())
    }
}

/// The row is the state: an average comes from the sum.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Prices {
    auction: usize,
    day: String,
    total_bids: u64,
    rank1_bids: u64,
    rank2_bids: u64,
    rank3_bids: u64,
    min_price: u64,
    max_price: u64,
    avg_price: u64,
    sum_price: u64,
}

pub(super) fn q17(topology: &Topology, to: &str) {
    let key = |bid: &Bid| format!("{}, {}", bid.auction, day_of(bid));
    let initial = || Prices { min_price: u64::MAX, ..Prices::default() };
    bids(topology)
        .key_by("auction and day", Utf8, Json::<Bid>::new(), key)
        .aggregate("prices", Json::<Prices>::new(), initial, |prices, _, bid| {
            let price = bid.price as u64;
            (prices.auction, prices.day) = (bid.auction, day_of(&bid));
            prices.total_bids += 1;
            let of_rank = match rank(bid.price) {
                0 => &mut prices.rank1_bids,
                1 => &mut prices.rank2_bids,
                _ => &mut prices.rank3_bids,
            };
            *of_rank += 1;
            prices.min_price = prices.min_price.min(price);
            prices.max_price = prices.max_price.max(price);
            prices.sum_price += price;
            // An average of whole numbers is whole, as it is in the reference.
            prices.avg_price = prices.sum_price / prices.total_bids;
        })
        .sink(to, Json::<Prices>::new());
}
