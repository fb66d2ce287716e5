//! The queries, and what several of them need.

mod days;
mod hot;
mod joins;
mod latest;
mod passing;
mod reports;
mod sessions;
mod winning;

use bytes::Bytes;

use super::events::{INPUT_TOPICS, auctions, bids, persons, time_ms};
use crate::topology::{Codec, CodecError, Topology};

/// A query.
#[derive(Debug)]
pub struct Query {
    /// As it is asked for: `q5`.
    pub name: &'static str,
    /// What it tells, in one line.
    pub about: &'static str,
    /// The columns that make the key of a row, if later rows replace earlier ones.
    pub key: Option<&'static str>,
    build: fn(&Topology, &str),
}

impl Query {
    /// The topology's name, which is also that of the topic with the rows.
    pub fn topic(&self) -> String {
        format!("nexmark-{}", self.name)
    }

    /// The topic of the events that it could not read.
    pub fn dead_letter(&self) -> String {
        format!("nexmark-{}-dead", self.name)
    }

    /// The query as a topology. What it reads and writes is made with so many partitions, if it does
    /// not exist.
    pub fn topology(&self, partition_count: u32) -> Topology {
        let (topic, dead_letter) = (self.topic(), self.dead_letter());
        let topology = Topology::new(&topic);
        for topic in INPUT_TOPICS.into_iter().chain([&*topic, &*dead_letter]) {
            topology.create(topic, partition_count);
        }
        topology.dead_letter(&dead_letter);
        (self.build)(&topology, &topic);
        topology
    }

    /// The queries of these names, each once, in the order of [`QUERIES`]; `all` is all of them.
    pub fn chosen<'n>(names: impl IntoIterator<Item = &'n str>) -> Vec<&'static Self> {
        let names: Vec<&str> = names.into_iter().collect();
        let is_wanted =
            |query: &&Self| names.iter().any(|name| *name == query.name || *name == "all");
        QUERIES.iter().filter(is_wanted).collect()
    }
}

/// All queries, by number.
pub static QUERIES: [Query; 19] = [
    query("q0", "every bid as it is", None, passing::q0),
    query("q1", "every bid with its price in euros", None, passing::q1),
    query("q2", "bids of every 123rd auction", None, passing::q2),
    query("q3", "who sells what in three states, category 10", None, joins::q3),
    query("q4", "average winning price of each category", Some("id"), winning::q4),
    query("q5", "auctions with the most bids in 10 s, every 2 s", None, hot::q5),
    query("q7", "the highest bids of each 10 s", None, hot::q7),
    query("q8", "who joined and sold in the same 10 s", None, joins::q8),
    query("q9", "the winning bid of each auction", Some("id"), winning::q9),
    query("q11", "bids of each bidder by session, with gaps of 10 s", None, sessions::q11),
    query("q12", "bids of each bidder in 10 s by the clock", None, sessions::q12),
    query("q14", "bids of a price range, by time of day", None, passing::q14),
    query("q15", "bids, bidders and auctions of each day", Some("day"), reports::q15),
    query("q16", "the same of each channel and day", Some("channel, day"), reports::q16),
    query("q17", "prices of each auction and day", Some("auction, day"), reports::q17),
    query("q18", "the last bid of each bidder and auction", Some("bidder, auction"), latest::q18),
    query("q19", "the 10 highest bids of each auction", Some("auction, rank_number"), latest::q19),
    query("q20", "bids with their auctions, category 10", None, joins::q20),
    query("q22", "bids with the folders of their links", None, passing::q22),
];

const fn query(
    name: &'static str,
    about: &'static str,
    key: Option<&'static str>,
    build: fn(&Topology, &str),
) -> Query {
    Query { name, about, key, build }
}

/// A number as decimal text: a key that people can read.
#[derive(Debug, Clone, Copy)]
struct Number;

impl Codec for Number {
    type Value = usize;

    fn name(&self) -> String {
        "decimal".to_owned()
    }

    fn encode(&self, value: &usize, to: &mut Vec<u8>) {
        to.extend_from_slice(value.to_string().as_bytes());
    }

    fn decode(&self, bytes: &Bytes) -> Result<usize, CodecError> {
        let number = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
        number.ok_or_else(|| CodecError::Malformed {
            codec: self.name(),
            reason: format!("{:?}", String::from_utf8_lossy(bytes)),
        })
    }
}

/// A price in euros, as the reference has it: 0.908 times that in dollars. Its thousandths are whole,
/// so the nearest number is written with at most three digits.
fn euros(price: usize) -> f64 {
    thousandths(price) as f64 / 1000.0
}

/// Thousandths of euros.
fn thousandths(price: usize) -> u64 {
    (price as u64).saturating_mul(908)
}
