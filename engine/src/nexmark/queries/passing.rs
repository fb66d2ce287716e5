//! Queries that look at one bid at a time: q0, q1, q2, q14, q22.

use ::nexmark::event::Bid;
use serde::{Deserialize, Serialize};

use super::{bids, days, euros, thousandths, time_ms};
use crate::topology::{Json, Topology};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Passed {
    auction: usize,
    bidder: usize,
    price: usize,
    #[serde(rename = "dateTime")]
    date_time: u64,
    extra: String,
}

pub(super) fn q0(topology: &Topology, to: &str) {
    let row = |Bid { auction, bidder, price, date_time, extra, .. }: Bid| Passed {
        auction,
        bidder,
        price,
        date_time,
        extra,
    };
    bids(topology).map(row).sink(to, Json::<Passed>::new());
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct InEuros {
    auction: usize,
    bidder: usize,
    price: f64,
    #[serde(rename = "dateTime")]
    date_time: u64,
    extra: String,
}

pub(super) fn q1(topology: &Topology, to: &str) {
    let row = |Bid { auction, bidder, price, date_time, extra, .. }: Bid| InEuros {
        auction,
        bidder,
        price: euros(price),
        date_time,
        extra,
    };
    bids(topology).map(row).sink(to, Json::<InEuros>::new());
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Selected {
    auction: usize,
    price: usize,
}

pub(super) fn q2(topology: &Topology, to: &str) {
    bids(topology)
        .filter(|bid| bid.auction.is_multiple_of(123))
        .map(|Bid { auction, price, .. }| Selected { auction, price })
        .sink(to, Json::<Selected>::new());
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Calculated {
    auction: usize,
    bidder: usize,
    price: f64,
    #[serde(rename = "bidTimeType")]
    bid_time_type: String,
    #[serde(rename = "dateTime")]
    date_time: u64,
    extra: String,
    c_counts: usize,
}

pub(super) fn q14(topology: &Topology, to: &str) {
    // More than a million and less than fifty, in thousandths.
    let is_wanted = |bid: &Bid| {
        let price = thousandths(bid.price);
        price > 1_000_000_000 && price < 50_000_000_000
    };
    let row = |Bid { auction, bidder, price, date_time, extra, .. }: Bid| {
        let bid_time_type = match days::hour(time_ms(date_time)) {
            8..=18 => "dayTime",
            0..=6 | 20.. => "nightTime",
            _ => "otherTime",
        };
        Calculated {
            auction,
            bidder,
            price: euros(price),
            bid_time_type: bid_time_type.to_owned(),
            date_time,
            c_counts: extra.matches('c').count(),
            extra,
        }
    };
    bids(topology).filter(is_wanted).map(row).sink(to, Json::<Calculated>::new());
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Folders {
    auction: usize,
    bidder: usize,
    price: usize,
    channel: String,
    dir1: Option<String>,
    dir2: Option<String>,
    dir3: Option<String>,
}

pub(super) fn q22(topology: &Topology, to: &str) {
    let row = |Bid { auction, bidder, price, channel, url, .. }: Bid| {
        // Behind the scheme, nothing, and the host.
        let mut folders = url.split('/').skip(3).map(str::to_owned);
        let [dir1, dir2, dir3] = [folders.next(), folders.next(), folders.next()];
        Folders { auction, bidder, price, channel, dir1, dir2, dir3 }
    };
    bids(topology).map(row).sink(to, Json::<Folders>::new());
}
