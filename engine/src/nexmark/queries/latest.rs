//! Queries that keep some bids of a key: q18, q19.

use std::cmp::Reverse;

use ::nexmark::event::Bid;
use serde::{Deserialize, Serialize};

use super::{Number, bids};
use crate::topology::{Json, Topology, Utf8};

/// Bids of an auction that q19 tells.
const TOP: usize = 10;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct LastBid {
    auction: usize,
    bidder: usize,
    price: usize,
    channel: String,
    url: String,
    #[serde(rename = "dateTime")]
    date_time: u64,
    extra: String,
}

impl From<Bid> for LastBid {
    fn from(bid: Bid) -> Self {
        let Bid { auction, bidder, price, channel, url, date_time, extra } = bid;
        Self { auction, bidder, price, channel, url, date_time, extra }
    }
}

pub(super) fn q18(topology: &Topology, to: &str) {
    // Of bids of the same time the reference takes any; this one takes always the same.
    let is_later = |one: &Bid, other: &Bid| {
        (one.date_time, one.price, &one.extra) > (other.date_time, other.price, &other.extra)
    };
    let key = |bid: &Bid| format!("{}, {}", bid.bidder, bid.auction);
    bids(topology)
        .key_by("bidder and auction", Utf8, Json::<Bid>::new(), key)
        .reduce("last", Json::new(), move |last, bid| match is_later(&bid, &last) {
            true => bid,
            false => last,
        })
        .map(|_, bid| LastBid::from(bid))
        .sink(to, Json::<LastBid>::new());
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct RankedBid {
    #[serde(flatten)]
    bid: LastBid,
    rank_number: usize,
}

pub(super) fn q19(topology: &Topology, to: &str) {
    // Of bids of the same price the reference takes any; this one takes always the same.
    let rank = |bid: &Bid| {
        (bid.price, Reverse(bid.date_time), Reverse(bid.bidder), Reverse(bid.extra.clone()))
    };
    bids(topology)
        .key_by("auction", Number, Json::<Bid>::new(), |bid| bid.auction)
        .top_n("highest", TOP, Json::<Vec<Bid>>::new(), rank)
        .pairs()
        .flat_map(|(_, best)| {
            (1..)
                .zip(best)
                .map(|(rank_number, bid)| RankedBid { bid: bid.into(), rank_number })
                .collect::<Vec<_>>()
        })
        .key_by("rank", Utf8, Json::<RankedBid>::new(), |row| {
            format!("{}, {}", row.bid.auction, row.rank_number)
        })
        .sink(to, Json::<RankedBid>::new());
}
