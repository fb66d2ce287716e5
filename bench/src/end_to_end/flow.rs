//! A topic of records by key and the topic of their counts, and loads from one to the other.

use std::net::SocketAddr;
use std::time::Duration;

use tidemill::batch::Compression;
use tidemill::command::{key_partition, murmur2};
use tidemill::topology::KEY_PARTITIONS;

use super::results::Results;
use super::tally::{DueTimes, Tally, Waits};
use crate::client::{Client, Leaders};
use crate::load::kafka::{KeyTurn, Produce, Shape};
use crate::load::{Arrivals, Clock, Plan};
use crate::measure::{DRAIN, IN_FLIGHT_MAX, Request, Target};
use crate::run::{Load, Measured};

/// Length of a piece of the series.
const PIECE: Duration = Duration::from_secs(1);

/// Where records are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Where they are: their counts are on the same shard too.
    Here,
    /// On another shard than the one that they are on.
    Elsewhere,
}

/// The topics of one way, and what it is called.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// In results.
    pub kind: &'static str,
    /// The topic of the records.
    pub from: &'static str,
    /// The topic of the counts.
    pub to: &'static str,
    /// Where they are counted.
    pub place: Place,
}

/// Where the partitions of a form's topics are led.
#[derive(Debug, Clone)]
pub struct Topics {
    from: Leaders,
    to: Leaders,
}

/// What all loads have in common.
#[derive(Debug, Clone, Copy)]
pub struct Common {
    /// Bytes of a record's key and value.
    pub size: u32,
    /// Different keys.
    pub keys: u64,
    /// Partitions of each topic.
    pub partitions: u32,
    /// Connections of the producer.
    pub connections: u32,
    /// Shards of the node.
    pub shards: u16,
}

/// One load.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Records a second.
    pub per_second: f64,
    /// Load before the measured time.
    pub warm_up: Duration,
    /// The measured time.
    pub duration: Duration,
    /// Longest wait for results after it.
    pub patience: Duration,
}

/// Records that nobody counts: what an acknowledgement takes by itself.
pub struct Plain<'a> {
    target: &'a Target,
    common: Common,
    produce: Produce,
}

/// Records and their counts.
pub struct Flow<'a> {
    form: Form,
    target: &'a Target,
    common: Common,
    /// Of the counts.
    leaders: Leaders,
    produce: Produce,
    turns: Vec<KeyTurn>,
    tally: Tally,
}

/// What came of a load.
pub struct Flowed {
    /// The acknowledgements.
    pub acknowledged: Measured,
    /// The results.
    pub waits: Waits,
    /// Results that said no more than one before them.
    pub repeated: u64,
}

impl Form {
    /// Makes the topics. Counts are on the shard where the keys are counted, so that a result has no
    /// more to go than the form says.
    pub fn make_topics(&self, target: &Target, common: Common) -> Result<Topics, String> {
        let from = target.make_topic(self.from, common.partitions, &[])?;
        let first = match self.place {
            Place::Here => from.0[0],
            Place::Elsewhere => target.address(),
        };
        let to = make_topic_at(target, self.to, common.partitions, (first, common.shards))?;
        Ok(Topics { from, to })
    }
}

impl<'a> Plain<'a> {
    /// Makes the topic.
    pub fn open(target: &'a Target, common: Common) -> Result<Self, String> {
        const TOPIC: &str = "plain";
        let leaders = target.make_topic(TOPIC, common.partitions, &[])?;
        let place = |key: &[u8]| key_partition(key, common.partitions);
        let (produce, _) = Produce::of_keys(&common.shape(TOPIC), &leaders, &place)?;
        Ok(Self { target, common, produce })
    }

    /// Drives a load.
    pub fn measure(&mut self, asked: &Asked) -> Result<(Load, Measured), String> {
        let plan = asked.plan(self.produce.addresses(), Clock::start());
        let request = Request { records: 1, size: self.produce.accepted_size() };
        self.produce.elsewhere();
        let measured = self.target.measure(&plan, &mut self.produce, request, &mut |_| ())?;
        Ok((self.common.told(&plan, &self.produce), measured))
    }
}

impl<'a> Flow<'a> {
    /// Between topics that are there.
    pub fn open(
        form: Form,
        topics: Topics,
        target: &'a Target,
        common: Common,
    ) -> Result<Self, String> {
        let Topics { from, to: leaders } = topics;
        let spread = Spread { leaders: &from, first: target.address(), shards: common.shards };
        if form.place == Place::Elsewhere {
            spread.check()?;
        }
        let place = |key: &[u8]| match form.place {
            Place::Here => key_partition(key, common.partitions),
            Place::Elsewhere => spread.partition_elsewhere(key),
        };
        let (produce, turns) = Produce::of_keys(&common.shape(form.from), &from, &place)?;
        let tally = Tally::new(common.keys);
        Ok(Self { form, target, common, leaders, produce, turns, tally })
    }

    /// Which one it is.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Drives a load and waits until all of it is counted.
    pub fn measure(&mut self, asked: &Asked) -> Result<(Load, Flowed), String> {
        let clock = Clock::start();
        let plan = asked.plan(self.produce.addresses(), clock);
        let request = Request { records: 1, size: self.produce.accepted_size() };
        let mut client = Client::open(self.target.address()).map_err(|error| error.to_string())?;
        let offsets = client.ends(self.form.to, self.common.partitions)?;
        let from = (&self.leaders, &offsets[..]);
        let results = Results::start(self.form.to, from, self.tally.again(), clock)?;
        self.produce.elsewhere();
        let measured = self.target.measure(&plan, &mut self.produce, request, &mut |_| ())?;
        let missing = measured.refused + measured.unanswered;
        if missing > 0 {
            return Err(format!("{missing} requests were refused, or have no answer"));
        }
        let total = self.tally.total() + self.produce.answered();
        let tally = results.finish(total, asked.patience)?;
        if tally.total() != total {
            let (counted, patience) = (tally.total(), asked.patience);
            return Err(format!("{counted} of {total} records are counted after {patience:?}"));
        }
        let waits = tally.waits(&self.tally, &self.turns, &asked.due(measured.start_ns));
        let repeated = tally.repeated();
        self.tally = tally;
        let load = self.common.told(&plan, &self.produce);
        Ok((load, Flowed { acknowledged: measured, waits, repeated }))
    }
}

impl Common {
    fn shape(&self, topic: &str) -> Shape {
        Shape {
            topic: topic.to_owned(),
            record_size: self.size as usize,
            records: 1,
            keys: self.keys,
            compression: Compression::None,
            connections: self.connections as usize,
        }
    }

    fn told(&self, plan: &Plan, produce: &Produce) -> Load {
        Load {
            requests_per_second: plan.per_second,
            arrivals: "even".to_owned(),
            in_flight_max: plan.in_flight_max,
            record_size: self.size.into(),
            records_per_request: 1,
            request_size: produce.request_size(),
            partitions: self.partitions,
            connections: self.connections,
            keys: self.keys,
            compression: "none".to_owned(),
            acks: "all".to_owned(),
            warm_up_seconds: plan.warm_up.as_secs_f64(),
            duration_seconds: plan.duration.as_secs_f64(),
            shards: self.shards.into(),
        }
    }
}

impl Asked {
    fn plan(&self, addresses: Vec<SocketAddr>, clock: Clock) -> Plan {
        Plan {
            addresses,
            per_second: Some(self.per_second),
            arrivals: Arrivals::Even,
            gather: Duration::ZERO,
            in_flight_max: IN_FLIGHT_MAX,
            warm_up: self.warm_up,
            duration: self.duration,
            piece: PIECE,
            drain: DRAIN,
            spin: false,
            clock: Some(clock),
        }
    }

    fn due(&self, start_ns: u64) -> DueTimes {
        let begin_ns = start_ns + self.warm_up.as_nanos() as u64;
        DueTimes {
            start_ns,
            gap_ns: 1e9 / self.per_second,
            measured_ns: (begin_ns, begin_ns + self.duration.as_nanos() as u64),
            piece_ns: PIECE.as_nanos() as u64,
        }
    }
}

fn hash(key: &[u8]) -> u32 {
    murmur2(key) & 0x7fff_ffff
}

/// A topic over the shards of a node.
#[derive(Debug, Clone, Copy)]
struct Spread<'a> {
    leaders: &'a Leaders,
    /// Address of the first shard; the others follow.
    first: SocketAddr,
    shards: u16,
}

impl Spread<'_> {
    fn check(&self) -> Result<(), String> {
        if self.leaders.brokers().len() == usize::from(self.shards) && self.shards > 1 {
            return Ok(());
        }
        Err("to count on another shard wants two shards or more, each with a partition and an \
             address of its own"
            .to_owned())
    }

    /// A partition on another shard than the one where the key is counted.
    fn partition_elsewhere(&self, key: &[u8]) -> u32 {
        let hash = hash(key);
        let shard = (hash % KEY_PARTITIONS) as u16 % self.shards;
        let counted = SocketAddr::new(self.first.ip(), self.first.port() + shard);
        let others = (0..).zip(&self.leaders.0).filter(|(_, leader)| **leader != counted);
        let others: Vec<u32> = others.map(|(partition, _)| partition).collect();
        others[(hash / KEY_PARTITIONS) as usize % others.len()]
    }
}

/// Makes a topic whose first partition is led there. Topics begin on one shard after the other, so a
/// few that nobody uses go before it.
fn make_topic_at(
    target: &Target,
    name: &str,
    partitions: u32,
    (first, shards): (SocketAddr, u16),
) -> Result<Leaders, String> {
    for number in 0..shards {
        let before = target.make_topic(&format!("{name}-{number}"), shards.into(), &[])?;
        // The next one begins where this one's second partition is.
        if before.0[1 % before.0.len()] == first {
            break;
        }
    }
    let leaders = target.make_topic(name, partitions, &[])?;
    if leaders.0[0] != first {
        let found = leaders.0[0];
        return Err(format!("the topic {name} begins at {found}, and not at {first}"));
    }
    Ok(leaders)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::kafka::keys::key_text;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn a_key_that_is_counted_elsewhere_comes_in_on_another_shard_and_all_partitions_are_used() {
        let leaders = Leaders(vec![at(101), at(102), at(100), at(101)]);
        let spread = Spread { leaders: &leaders, first: at(100), shards: 3 };
        spread.check().expect("three shards");
        let mut used = [false; 4];
        for number in 0..1000 {
            let key = key_text(number);
            let partition = spread.partition_elsewhere(key.as_bytes());
            let shard = key_partition(key.as_bytes(), KEY_PARTITIONS) as u16 % 3;
            assert_ne!(leaders.0[partition as usize], at(100 + shard), "key {number}");
            used[partition as usize] = true;
        }
        assert_eq!(used, [true; 4]);
    }

    #[test]
    fn one_shard_has_no_other() {
        let leaders = Leaders(vec![at(100), at(100)]);
        assert!(Spread { leaders: &leaders, first: at(100), shards: 1 }.check().is_err());
        assert!(Spread { leaders: &leaders, first: at(100), shards: 2 }.check().is_err());
    }
}
