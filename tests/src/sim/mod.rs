//! The simulator: a whole node, its disks, clients and crashes, from one seed.
//!
//! A run with a seed is always the same run. It draws a [`plan`], lets [`clients`] load a node of
//! real shards over simulated [`disk`]s, ends the machine again and again, and compares every
//! reply and everything read after each recovery with a [`model`] of what was promised.

pub mod clients;
pub mod disk;
pub mod model;
pub mod plan;
pub mod random;
pub mod world;

use std::ops::AddAssign;

pub use self::disk::Sabotage;
use self::world::World;

/// What did not hold, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Steps of all shards before it.
    pub step: u64,
    /// What did not hold.
    pub why: String,
}

/// How much was simulated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events of the world.
    pub events: u64,
    /// Steps of shards.
    pub steps: u64,
    /// Effects and operations of disk jobs; the machine may end before each.
    pub effects: u64,
    /// Commands of clients.
    pub commands: u64,
    /// Ends of the machine without a stop.
    pub crashes: u64,
    /// Clean stops.
    pub stops: u64,
    /// Starts that came to their end.
    pub recoveries: u64,
    /// Everything acknowledged was read.
    pub audits: u64,
    /// Recoveries that cut a torn frame.
    pub torn: u64,
    /// Frames written.
    pub frames: u64,
    /// Frames replayed.
    pub replayed: u64,
    /// Settle rounds.
    pub settles: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Merges begun.
    pub merges: u64,
    /// Reads of extents.
    pub cold_reads: u64,
    /// Times that a shard found its disk full.
    pub full_disks: u64,
    /// Records acknowledged.
    pub records: u64,
    /// Bytes of batches read and compared.
    pub bytes_compared: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.steps += other.steps;
        self.effects += other.effects;
        self.commands += other.commands;
        self.crashes += other.crashes;
        self.stops += other.stops;
        self.recoveries += other.recoveries;
        self.audits += other.audits;
        self.torn += other.torn;
        self.frames += other.frames;
        self.replayed += other.replayed;
        self.settles += other.settles;
        self.snapshots += other.snapshots;
        self.merges += other.merges;
        self.cold_reads += other.cold_reads;
        self.full_disks += other.full_disks;
        self.records += other.records;
        self.bytes_compared += other.bytes_compared;
    }
}

/// What came of a seed.
#[derive(Debug)]
pub struct Outcome {
    /// How much was simulated.
    pub counts: Counts,
    /// The whole run as one number.
    pub trace: u64,
    /// What did not hold, if anything.
    pub result: Result<(), Failure>,
}

/// Runs one seed.
pub fn run_seed(seed: u64, sabotage: Option<Sabotage>, is_traced: bool) -> Outcome {
    let mut world = World::new(seed, sabotage, is_traced);
    let result = world.run();
    Outcome { counts: world.counts(), trace: world.trace(), result }
}
