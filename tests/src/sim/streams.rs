//! Topologies of a seed: which ones a node runs, with which settings, and what their topics are.
//!
//! All shards run the same ones over all lives of a node. Their sources are written by the same
//! clients as other topics, with records of [`item`]; `model` says what has to come of them.

mod compress;
mod graphs;
pub mod item;

use std::sync::Arc;

use tidemill::command::murmur2;
use tidemill::topology::{Plan, Windows};

pub use self::compress::compressed;
use super::random::Random;

/// Event times are whole multiples of this, in milliseconds; gaps of sessions are not, so that no
/// record is exactly as far from a session as its gap.
pub const TICK_MS: i64 = 10;

/// Keys of sources; records that are keyed anew have fewer.
pub const KEY_COUNT: u64 = 12;

/// What the name of a source ends with.
const SOURCE: &str = "in";

/// Longest that a timer by the clock is set for, in milliseconds.
pub const TIMER_MS_MAX: i64 = 200;

/// A topology by what it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flow {
    /// Keys are counted where they are.
    Count,
    /// Records become several, each with another key, which is counted on its shard.
    Rekey,
    /// Windows over event time, with late records beside.
    Windows,
    /// Each record sets a timer by the clock, which tells once.
    Timers,
    /// Two parts with a topic between them.
    Chain,
}

impl Flow {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Count, Self::Rekey, Self::Windows, Self::Timers, Self::Chain];

    /// Its name; its topics begin with it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Rekey => "rekey",
            Self::Windows => "windows",
            Self::Timers => "timers",
            Self::Chain => "chain",
        }
    }

    /// The topic that clients write.
    pub fn source(self) -> String {
        format!("{}-{SOURCE}", self.name())
    }

    /// The topic of its results.
    pub fn sink(self) -> String {
        format!("{}-out", self.name())
    }

    /// The topic of what it could not process.
    pub fn dead_letter(self) -> String {
        format!("{}-dead", self.name())
    }

    /// A topic between or beside, if it has one: what came too late, or what the first part made.
    pub fn other(self) -> Option<String> {
        match self {
            Self::Windows => Some("windows-late".to_owned()),
            Self::Chain => Some("chain-middle".to_owned()),
            Self::Count | Self::Rekey | Self::Timers => None,
        }
    }

    /// All its topics, the source first.
    pub fn topics(self) -> impl Iterator<Item = String> {
        [self.source(), self.sink(), self.dead_letter()].into_iter().chain(self.other())
    }
}

/// What a topic is to the topologies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Clients write it.
    Source(Flow),
    /// A topology writes it, and nobody else.
    Made,
}

/// How event time is cut, and how records come.
#[derive(Debug, Clone, Copy)]
pub struct WindowRules {
    /// The windows.
    pub windows: Windows,
    /// How much older than the newest of its partition a record may be, in milliseconds.
    pub lateness_ms: i64,
    /// A partition that is silent for so long holds nobody up.
    pub idle_after_ms: Option<u64>,
    /// How long a window stays after its end, in milliseconds of event time.
    pub allowed_lateness_ms: i64,
    /// Records get another key, whose windows may be on another shard.
    pub is_keyed_anew: bool,
    /// How much older than the one before it a record is at most as its client makes it, in
    /// milliseconds.
    pub disorder_ms: i64,
    /// From one record to the next at most, in milliseconds.
    pub step_ms: i64,
}

/// What a seed makes of its topologies.
#[derive(Debug, Clone)]
pub struct Streams {
    /// Which ones there are.
    pub flows: Vec<Flow>,
    /// Their topics, with how many partitions each gets.
    pub topics: Vec<(String, u32)>,
    /// Of [`Flow::Windows`].
    pub rules: WindowRules,
    /// One record in so many cannot be processed; 0: none.
    pub failing_one_in: u64,
    /// One record in so many comes without a key, or to a partition that its key does not belong
    /// to; 0: none.
    pub misplaced_one_in: u64,
    /// One batch in so many is compressed; 0: none.
    pub compressed_one_in: u64,
    /// The time of operators is over at one look in so many; 0: never.
    pub late_one_in: u64,
    /// What fails fails in a blocking call, and windows are behind one.
    pub has_calls: bool,
}

impl Streams {
    /// No topologies.
    pub fn none() -> Self {
        Self::of(Vec::new(), &mut Random::new(0))
    }

    /// Draws them; one seed in three has none.
    pub fn draw(random: &mut Random) -> Self {
        let mut flows = Vec::new();
        if !random.one_in(3) {
            for _ in 0..random.between(1, 3) {
                let flow = random.choose(&Flow::ALL);
                if !flows.contains(&flow) {
                    flows.push(flow);
                }
            }
        }
        Self::of(flows, random)
    }

    fn of(flows: Vec<Flow>, random: &mut Random) -> Self {
        let topics = flows.iter().flat_map(|flow| flow.topics());
        let topics = topics.map(|name| (name, random.skewed(1, 4) as u32)).collect();
        Self {
            flows,
            topics,
            rules: WindowRules::draw(random),
            failing_one_in: random.choose(&[0, 5, 40, 40]),
            misplaced_one_in: random.choose(&[0, 0, 50, 10]),
            compressed_one_in: random.choose(&[0, 0, 5, 2]),
            late_one_in: random.choose(&[0, 1000, 20, 20, 3]),
            has_calls: random.one_in(3),
        }
    }

    /// What a topic is to them; nothing if it is none of theirs.
    pub fn role(&self, topic: &str) -> Option<Role> {
        let (name, part) = topic.split_once('-')?;
        let flow = self.flows.iter().find(|flow| flow.name() == name)?;
        Some(if part == SOURCE { Role::Source(*flow) } else { Role::Made })
    }

    /// The graphs as shards run them.
    pub fn plans(&self) -> Vec<Arc<Plan>> {
        let build = |flow: &Flow| graphs::graph(*flow, self).build();
        self.flows.iter().map(|flow| Arc::new(build(flow).expect("the graph is good"))).collect()
    }
}

impl WindowRules {
    fn draw(random: &mut Random) -> Self {
        let size_ms = random.choose(&[50, 100, 300]);
        let windows = match random.below(3) {
            0 => Windows::Tumbling { size_ms },
            1 => Windows::Hopping { size_ms, hop_ms: random.choose(&[10, 30, 50, 100, 150]) },
            _ => Windows::Session { gap_ms: random.choose(&[15, 45, 95]) },
        };
        let lateness_ms = random.choose(&[0, 50, 500, 5000]);
        Self {
            windows,
            lateness_ms,
            idle_after_ms: random.choose(&[None, None, Some(20), Some(100)]),
            allowed_lateness_ms: random.choose(&[0, 0, 30, 200]),
            is_keyed_anew: random.one_in(2),
            disorder_ms: random.choose(&[0, 0, lateness_ms, lateness_ms + 100]),
            step_ms: random.choose(&[10, 50, 200]),
        }
    }
}

/// The partition of a key, as clients of Kafka choose it.
pub fn partition_of(key: &[u8], partition_count: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partition_count
}
