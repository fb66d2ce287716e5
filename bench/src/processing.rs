//! `tidemill-bench processing`: records a second that topologies take, durable and exactly once.
//!
//! Each measurement has a node of its own on an empty directory. The plain server makes the topics.
//! From a backlog, it is also the one that they are filled on; then the node goes on with the topology,
//! which reads what is there as fast as it can. Live, the node goes on first, and the records come while
//! it runs, in batches, as fast as they are taken; all batches were made before, in memory, so that making
//! them takes no core away.

pub mod drain;
pub mod host;
pub mod input;

use std::thread;

use clap::{Args, ValueEnum};
use tidemill::nexmark::INPUT_TOPICS;

use self::drain::{Drained, Look, Results, Watched};
use self::host::Host;
use self::input::{Batches, events, keyed};
use crate::client::Client;
use crate::compare::TIDEMILL;
use crate::fill::{self, Addressed, BATCH_SIZE, Filled};
use crate::measure::Target;
use crate::node::Program;
use crate::options::OutputOptions;
use crate::run::{FORMAT, Load, Run};
use crate::summary::{self, PROCESSING};

/// Topics keep everything: events are older than retention.
const TOPIC_CONFIG: [(&str, &str); 1] = [("retention.ms", "-1")];

/// Arguments of the subcommand.
#[derive(Debug, Args)]
pub struct Options {
    /// Topologies.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "pass-through,count,q5,q8")]
    work: Vec<Work>,
    /// How their records come.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "backlog,live")]
    ways: Vec<Way>,
    /// Records of pass-through and count.
    #[arg(long, default_value_t = 20_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,
    /// Bytes of such a record's key and value.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=100_000))]
    size: u32,
    /// Different keys.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Events of Nexmark. q5 reads the bids, which are 92 of 100; q8 the others.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(50..))]
    events: u64,
    /// Rounds of all of it.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    #[command(flatten)]
    host: Host,
    #[command(flatten)]
    output: OutputOptions,
}

/// What a topology does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Work {
    /// Each record to another topic.
    PassThrough,
    /// The count of each record's key, each count told.
    Count,
    /// Nexmark's hot items.
    Q5,
    /// Nexmark's new sellers.
    Q8,
}

/// How records come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// All are there before.
    Backlog,
    /// While the topology runs.
    Live,
}

/// What a topology reads and writes.
struct Topics {
    inputs: &'static [&'static str],
    output: &'static str,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::PassThrough => "pass-through",
            Self::Count => "count",
            Self::Q5 => "q5",
            Self::Q8 => "q8",
        }
    }

    fn topology(self) -> &'static str {
        match self {
            Self::PassThrough | Self::Count => self.name(),
            Self::Q5 => "nexmark-q5",
            Self::Q8 => "nexmark-q8",
        }
    }

    fn topics(self) -> Topics {
        match self {
            Self::PassThrough => Topics { inputs: &["in"], output: "out" },
            Self::Count => Topics { inputs: &["in"], output: "counts" },
            Self::Q5 | Self::Q8 => Topics { inputs: &INPUT_TOPICS, output: self.topology() },
        }
    }

    /// Which of Nexmark's topics it reads; none if it has nothing to do with them.
    fn events(self) -> Option<[bool; INPUT_TOPICS.len()]> {
        match self {
            Self::PassThrough | Self::Count => None,
            Self::Q5 => Some([false, false, true]),
            Self::Q8 => Some([true, true, false]),
        }
    }
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Backlog => "backlog",
            Self::Live => "live",
        }
    }
}

/// Runs the subcommand. What goes wrong is in a run of its own, and the others go on.
pub fn run(options: &Options) -> Result<(), String> {
    let mut runs = Vec::new();
    for round in 1..=options.rounds {
        for work in &options.work {
            for way in &options.ways {
                let subject = Subject { options, work: *work, way: *way };
                let mut run = subject.measure().unwrap_or_else(|why| Run {
                    format: FORMAT,
                    kind: subject.kind(),
                    system: TIDEMILL.to_owned(),
                    started_unix_ms: crate::now_ms() as u64,
                    load: subject.load(0.0),
                    notes: vec![format!("failed: {why}")],
                    ..Run::default()
                });
                run.round = round;
                options.output.write(&run)?;
                eprintln!("{}", summary::line(&run));
                runs.push(run);
            }
        }
    }
    eprint!("\n{}", summary::text(&runs, TIDEMILL));
    let failed = runs.iter().filter(|run| !summary::is_whole(run)).count();
    if failed > 0 { Err(format!("{failed} runs failed; see above")) } else { Ok(()) }
}

/// One topology, fed in one way.
struct Subject<'a> {
    options: &'a Options,
    work: Work,
    way: Way,
}

impl Subject<'_> {
    fn kind(&self) -> String {
        format!("{PROCESSING}{}", self.work.name())
    }

    fn measure(&self) -> Result<Run, String> {
        let host = &self.options.host;
        let server = host.server();
        let mut target = Target::open(&server)?;
        let mut run = target.describe(&self.kind(), &server)?;
        self.make_topics(&target)?;
        let (filled, drained) = match self.way {
            Way::Backlog => self.backlog(&mut target)?,
            Way::Live => self.live(&mut target)?,
        };
        if filled.records != drained.taken {
            let (sent, taken) = (filled.records, drained.taken);
            return Err(format!("{sent} records were acknowledged, {taken} taken"));
        }
        let record_size = filled.size as f64 / filled.records as f64;
        drained.tell(&target, record_size, host.shards, &mut run);
        run.load = self.load(record_size);
        run.notes.push(
            "from the first look at which the topology had taken records until it had taken all and \
             the results were durable"
                .to_owned(),
        );
        target.close()?;
        Ok(run)
    }

    fn make_topics(&self, target: &Target) -> Result<(), String> {
        let mut client = Client::open(target.address()).map_err(|error| error.to_string())?;
        let Topics { inputs, output } = self.work.topics();
        let partitions = Some(self.options.host.partitions());
        inputs.iter().chain([&output]).try_for_each(|topic| {
            client.create_topic(topic, partitions, &TOPIC_CONFIG)?;
            client.leaders(topic).map(drop)
        })
    }

    fn backlog(&self, target: &mut Target) -> Result<(Filled, Drained), String> {
        let filled = fill::send(target.address(), self.batches())?;
        target.wait_for_rest()?;
        let before = Look::before(target);
        target.go_on_as(&self.program()?)?;
        let mut watched = self.watched(target)?;
        let drained = watched.drain(before, filled.records)?;
        Ok((filled, drained))
    }

    fn live(&self, target: &mut Target) -> Result<(Filled, Drained), String> {
        target.go_on_as(&self.program()?)?;
        let batches: Vec<Addressed<'_>> = self.batches().collect();
        let total = batches.iter().map(|batch| batch.records).sum();
        target.wait_for_rest()?;
        let target = &*target;
        let mut watched = self.watched(target)?;
        let before = Look::now(target);
        thread::scope(|scope| {
            let filling = scope.spawn(|| fill::send(target.address(), batches.into_iter()));
            let drained = watched.drain(before, total);
            // If it failed, that is why nothing more was taken.
            let filled = filling.join().map_err(|_| "the producer panicked".to_owned())?;
            Ok((filled?, drained?))
        })
    }

    fn watched<'t>(&self, target: &'t Target) -> Result<Watched<'t>, String> {
        let results = Results {
            topic: self.work.topics().output,
            partitions: self.options.host.partitions(),
            is_each: self.work.events().is_none(),
        };
        Watched::open(target, self.work.topology(), results)
    }

    fn program(&self) -> Result<Program, String> {
        match self.work.events() {
            None => self.options.host.counting(self.work.name(), &[]),
            Some(_) => self.options.host.querying(self.work.name()),
        }
    }

    /// All records, in batches.
    fn batches(&self) -> Box<dyn Iterator<Item = Addressed<'static>>> {
        let Options { records, keys, size, events: count, .. } = *self.options;
        let (partitions, topics) = (self.options.host.partitions(), self.work.topics().inputs);
        match self.work.events() {
            None => {
                let records = keyed((records, keys), size as usize, partitions);
                Box::new(Batches::new(topics, partitions, records))
            }
            Some(wanted) => {
                let records = events(count, wanted, partitions);
                Box::new(Batches::new(topics, partitions, records))
            }
        }
    }

    /// As it is told in a run.
    fn load(&self, record_size: f64) -> Load {
        let Options { size, keys, .. } = *self.options;
        let is_keyed = self.work.events().is_none();
        let record_size = if is_keyed { size.into() } else { record_size.round() as u64 };
        Load {
            arrivals: self.way.name().to_owned(),
            record_size,
            request_size: BATCH_SIZE as u64,
            partitions: self.options.host.partitions(),
            connections: 1,
            keys: if is_keyed { keys } else { 0 },
            compression: "none".to_owned(),
            acks: "all".to_owned(),
            shards: self.options.host.shards.into(),
            ..Load::default()
        }
    }
}
