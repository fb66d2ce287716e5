//! The simulator: a whole node, its disks, clients and crashes, from one seed.
//!
//! A run with a seed is always the same run. It draws a [`plan`], lets [`clients`] load a node of
//! real shards over simulated [`disk`]s and a real mesh, through real sessions over a simulated
//! [`wire`], ends the machine again and again, and compares every command, reply and answer and
//! everything read after each recovery with a [`model`] of what was promised.

pub mod clients;
pub mod clock;
pub mod counts;
pub mod disk;
pub mod model;
pub mod plan;
pub mod random;
pub mod streams;
pub mod trace;
pub mod wire;
pub mod world;

use std::sync::Once;

use tidemill::topology::is_calling;

pub use self::counts::Counts;
pub use self::disk::Sabotage;
use self::trace::Sink;
use self::world::World;

/// What did not hold, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Steps of all shards before it.
    pub step: u64,
    /// What did not hold.
    pub why: String,
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

/// Runs one seed, and perhaps prints everything that happens.
pub fn run_seed(seed: u64, sabotage: Option<Sabotage>, is_traced: bool) -> Outcome {
    let print = |line: &str| println!("{line}");
    trace_seed(seed, sabotage, is_traced.then(|| Box::new(print) as Sink))
}

/// Runs one seed and tells a sink everything that happens, line by line.
pub fn trace_seed(seed: u64, sabotage: Option<Sabotage>, sink: Option<Sink>) -> Outcome {
    quiet_operators();
    let mut world = World::new(seed, sabotage, sink);
    let result = world.run();
    Outcome { counts: world.counts(), trace: world.trace(), result }
}

/// Panics of operators are part of a run, so nobody has to hear of them.
fn quiet_operators() {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !is_calling() {
                report(panic);
            }
        }));
    });
}

/// The seeds in the first column of `tests/seeds.md`: each showed a defect once.
pub fn known_seeds() -> Vec<u64> {
    let cell = |line: &str| line.split('|').nth(1).and_then(|cell| cell.trim().parse().ok());
    include_str!("../../seeds.md").lines().filter_map(cell).collect()
}
