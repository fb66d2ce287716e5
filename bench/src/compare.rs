//! `tidemill-bench compare`: Tidemill and its peers, one after another, on the same file system, by
//! the same client, in rounds, so that what the machine does to one it does to all.

mod drive;
mod franz;
mod system;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

pub use self::drive::Shared;
pub use self::system::{Ground, Opened, System, TIDEMILL};

use self::drive::Ask;
use self::franz::Franz;
use crate::latency::parse_rate;
use crate::node;
use crate::options::{OutputOptions, parse_seconds};
use crate::peers::{Installed, Peer, Speaks};
use crate::run::Run;
use crate::summary;
use crate::sweep::{Probe, Sweep};

/// Batches that a client sends a second in the search for the highest rate: what came within the
/// last millisecond goes out together.
const BATCHES_PER_SECOND: f64 = 1000.0;

/// What a batch waits for its last record.
const GATHER: Duration = Duration::from_millis(1);

/// Where the search begins, in records a second.
const SWEEP_FIRST: f64 = 4_000.0;

/// Most probes of a search. A slow server would take for ever otherwise.
const PROBES_MAX: u32 = 20;

/// Arguments of the subcommand.
#[derive(Debug, Args)]
pub struct Options {
    /// What is compared with Tidemill [default: all that bench/setup-peers has installed].
    #[arg(long, value_enum, value_delimiter = ',')]
    pub peers: Option<Vec<Peer>>,
    /// Compares with no peer.
    #[arg(long, conflicts_with = "peers")]
    pub no_peers: bool,
    /// Compares with a server that runs and speaks Kafka's protocol; can be repeated.
    #[arg(long, value_name = "NAME=HOST:PORT", value_parser = system::parse_address)]
    pub kafka_address: Vec<System>,
    /// Measures no limit of the machine beside Tidemill's latencies.
    #[arg(long)]
    pub no_limit: bool,
    /// Leaves Tidemill out.
    #[arg(long)]
    pub no_tidemill: bool,
    /// What is measured.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "latency,sweep,franz")]
    pub scenarios: Vec<Scenario>,
    /// Rates of the latency scenario, in records a second, one in a request.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000", value_parser = parse_rate)]
    pub rates: Vec<f64>,
    /// Rounds. In each, all systems take their turn, in the order of the round before, reversed.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Measured seconds of a turn; each probe of the search takes a tenth, but 2 seconds at least.
    #[arg(long, default_value = "60", value_parser = parse_seconds)]
    pub duration: Duration,
    /// Seconds of load before them, so that a JVM has compiled what it will.
    #[arg(long, default_value = "10", value_parser = parse_seconds)]
    pub warm_up: Duration,
    /// Bound of the 99th percentile in the search for the highest rate.
    #[arg(long, default_value = "5ms", value_parser = parse_seconds)]
    pub bound: Duration,
    /// Where that search ends, in records a second.
    #[arg(long, default_value = "16000000", value_parser = parse_rate)]
    pub sweep_max: f64,
    /// Bytes of a record.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub size: u32,
    /// Partitions of a topic; streams where a system has those instead.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub partitions: u32,
    /// Connections of the open loop.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub connections: u32,
    /// A directory on the file system to measure; never tmpfs [default: beside the build].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where bench/setup-peers has installed [default: target/peers].
    #[arg(long, value_name = "DIR")]
    pub peers_dir: Option<PathBuf>,
    /// Tidemill's server [default: `tidemill` beside this program].
    #[arg(long, value_name = "FILE")]
    pub server: Option<PathBuf>,
    /// Its shards.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub shards: u16,
    /// One more argument for it; can be repeated.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub server_arg: Vec<String>,
    #[command(flatten)]
    pub output: OutputOptions,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// From due time to acknowledgement, at fixed rates.
    Latency,
    /// The highest rate that keeps the 99th percentile below --bound, by a client that gathers for
    /// a millisecond.
    Sweep,
    /// Most records a second with 20,000 in flight by franz-go, and the cost of producing and
    /// consuming them; for servers that speak Kafka's protocol.
    Franz,
}

/// One turn of a system.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Turn {
    /// At a rate.
    Latency(f64),
    /// The search.
    Sweep,
    /// The other client.
    Franz,
}

/// Runs the subcommand.
pub fn run(options: &Options) -> Result<(), String> {
    let comparison = Comparison::new(options)?;
    let systems = systems(options, &comparison.ground.installed)?;
    let turns = turns(options);
    let mut runs = Vec::new();
    for round in 1..=options.rounds {
        for turn in &turns {
            let mut order: Vec<&System> = systems.iter().collect();
            if round % 2 == 0 {
                order.reverse();
            }
            for system in order {
                if *turn == Turn::Franz && system.speaks() != Speaks::Kafka {
                    continue;
                }
                let run = comparison.take_turn(system, *turn, round);
                options.output.write(&run)?;
                eprintln!("{}", summary::line(&run));
                runs.push(run);
            }
        }
    }
    eprint!("\n{}", summary::text(&runs, TIDEMILL));
    Ok(())
}

/// What every turn is taken with.
pub struct Comparison {
    /// Where.
    pub ground: Ground,
    /// With what.
    pub shared: Shared,
    /// For how long.
    pub duration: Duration,
    /// What the search keeps.
    pub bound: Duration,
    /// Where the search ends.
    pub sweep_max: f64,
    /// Whether Tidemill's latencies are measured beside the machine's limit.
    pub with_limit: bool,
}

impl Comparison {
    fn new(options: &Options) -> Result<Self, String> {
        let ground = Ground {
            installed: Installed::at(options.peers_dir.as_deref())?,
            data: options.data_dir.clone().map_or_else(node::default_scratch, Ok)?,
            shards: options.shards,
            arguments: options.server_arg.clone(),
        };
        ground.prepare()?;
        let shared = Shared {
            size: options.size,
            partitions: options.partitions,
            connections: options.connections,
            warm_up: options.warm_up,
            shards: options.shards,
        };
        let (duration, bound) = (options.duration, options.bound);
        let (with_limit, sweep_max) = (!options.no_limit, options.sweep_max);
        Ok(Self { ground, shared, duration, bound, sweep_max, with_limit })
    }

    /// Opens a system, measures it and closes it. What goes wrong is in the run, and the others go
    /// on.
    pub fn take_turn(&self, system: &System, turn: Turn, round: u32) -> Run {
        let mut run = Run {
            format: crate::run::FORMAT,
            kind: turn.kind().to_owned(),
            system: system.name().to_owned(),
            ..Run::default()
        };
        if let Err(why) = self.try_turn(system, turn, &mut run) {
            run.result = crate::run::Measured::default();
            run.figures.clear();
            run.notes.push(format!("failed: {why}"));
        }
        run.round = round;
        run
    }

    fn try_turn(&self, system: &System, turn: Turn, run: &mut Run) -> Result<(), String> {
        let opened = system.open(&self.ground)?;
        *run = opened.describe(turn.kind())?;
        match turn {
            Turn::Latency(rate) => {
                drive::prepare(&opened, &self.shared)?;
                let ask = Ask {
                    per_second: rate,
                    records: 1,
                    gather: Duration::ZERO,
                    warm_up: self.shared.warm_up,
                    duration: self.duration,
                    with_limit: self.with_limit && matches!(system, System::Tidemill { .. }),
                };
                drive::drive(&opened, &self.shared, ask, run)?;
            }
            Turn::Sweep => {
                drive::prepare(&opened, &self.shared)?;
                self.sweep(&opened, run)?;
            }
            Turn::Franz => {
                let program = self.ground.installed.program("franz");
                let franz = Franz { program, opened: &opened };
                opened.target.wait_for_rest()?;
                franz.measure(&self.shared, self.duration, run)?;
            }
        }
        opened.close()
    }

    /// Searches for the highest rate. The run is that of the best probe.
    fn sweep(&self, opened: &Opened, run: &mut Run) -> Result<(), String> {
        let mut sweep = Sweep::new(SWEEP_FIRST / BATCHES_PER_SECOND);
        let mut best: Option<Run> = None;
        let mut notes = Vec::new();
        let mut probes = 0;
        // As many batches a second at every rate: what varies is their size.
        while let Some(records) = sweep.next_rate().filter(|_| probes < PROBES_MAX) {
            let records = records.round().max(1.0);
            if records * BATCHES_PER_SECOND > self.sweep_max {
                break;
            }
            let ask = Ask {
                per_second: BATCHES_PER_SECOND,
                records: records as u64,
                gather: GATHER,
                warm_up: if probes == 0 { self.shared.warm_up } else { Duration::from_secs(1) },
                duration: (self.duration / 10).max(Duration::from_secs(2)),
                with_limit: false,
            };
            let mut probe = run.clone();
            // A server that falls over at a rate has not kept it.
            let is_good = match drive::drive(opened, &self.shared, ask, &mut probe) {
                Ok(()) => sweep.judge(&probe.result, BATCHES_PER_SECOND, self.bound),
                Err(why) => {
                    notes.push(format!("at {records} records a batch: {why}"));
                    false
                }
            };
            probes += 1;
            sweep.add(Probe { rate: records, is_good });
            let is_better = |best: &Run| best.load.records_per_request < ask.records;
            if is_good && best.as_ref().is_none_or(is_better) {
                best = Some(probe);
            }
        }
        let best = best.ok_or_else(|| {
            format!("not even {BATCHES_PER_SECOND} records/s keep the bound of {:?}", self.bound)
        })?;
        *run = best;
        run.notes.append(&mut notes);
        run.figures.insert("bound_ms".to_owned(), self.bound.as_secs_f64() * 1e3);
        run.figures.insert("probes".to_owned(), probes.into());
        Ok(())
    }
}

impl Turn {
    fn kind(self) -> &'static str {
        match self {
            Self::Latency(_) => "latency",
            Self::Sweep => "sweep",
            Self::Franz => "franz",
        }
    }
}

fn turns(options: &Options) -> Vec<Turn> {
    let mut turns = Vec::new();
    for scenario in &options.scenarios {
        match scenario {
            Scenario::Latency => turns.extend(options.rates.iter().map(|it| Turn::Latency(*it))),
            Scenario::Sweep => turns.push(Turn::Sweep),
            Scenario::Franz => turns.push(Turn::Franz),
        }
    }
    turns
}

/// What is there to compare. A peer that was asked for by name has to be there.
fn systems(options: &Options, installed: &Installed) -> Result<Vec<System>, String> {
    let mut systems = Vec::new();
    if !options.no_tidemill {
        let name = TIDEMILL.to_owned();
        systems.push(System::Tidemill { name, binary: options.server.clone() });
    }
    let peers = options.peers.as_deref().unwrap_or(Peer::value_variants());
    for peer in peers.iter().filter(|_| !options.no_peers) {
        match installed.check(*peer) {
            Ok(()) => systems.push(System::Peer(*peer)),
            Err(why) if options.peers.is_some() => return Err(why),
            Err(why) => eprintln!("SKIPPED: {}: {why}", peer.name()),
        }
    }
    systems.extend(options.kafka_address.iter().cloned());
    if systems.is_empty() { Err("nothing to compare".to_owned()) } else { Ok(systems) }
}
