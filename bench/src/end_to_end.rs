//! `tidemill-bench end-to-end`: from the time that a record was due at the producer until its result
//! was consumed. The work is a count by key: by a topology inside the node, or by a stream processor
//! beside Apache Kafka.
//!
//! A turn starts a system on an empty directory and measures each rate: the acknowledgement of
//! records that nobody counts, and then, or before, each way to the results. Tidemill has two: where
//! the records are, and on another shard.

mod flow;
mod results;
mod tally;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use self::flow::{Asked, Common, Flow, Flowed, Form, Place, Plain};
use crate::compare::{Ground, Opened, System, TIDEMILL};
use crate::latency::parse_rate;
use crate::node::{self, Program};
use crate::options::{OutputOptions, parse_seconds};
use crate::peers::{Installed, Peer, Processing, Processor};
use crate::run::{FORMAT, Measured, Point, Run};
use crate::summary::{self, Spread};

/// The node that has the topologies.
pub const COUNTER: &str = "tidemill-count";

const HERE: Form = Form { kind: "end-to-end", from: "in", to: "counts", place: Place::Here };

const ELSEWHERE: Form = Form {
    kind: "end-to-end, repartitioned",
    from: "in-elsewhere",
    to: "counts-elsewhere",
    place: Place::Elsewhere,
};

/// A little load until the first results: a stream processor takes its time to begin.
const BEGINNING: Asked = Asked {
    per_second: 200.0,
    warm_up: Duration::ZERO,
    duration: Duration::from_secs(1),
    patience: Duration::from_mins(2),
};

/// Results that come longer after the last record than this are those of a system that has fallen
/// behind: three times the longest interval at which any of them commits.
const LATE: Duration = Duration::from_secs(3);

/// Longest wait for results after a load.
const PATIENCE: Duration = Duration::from_mins(1);

/// Arguments of the subcommand.
#[derive(Debug, Args)]
pub struct Options {
    /// What is measured beside Tidemill [default: all that bench/setup-peers has installed].
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Option<Vec<Processor>>,
    /// Measures Tidemill alone.
    #[arg(long, conflicts_with = "peers")]
    no_peers: bool,
    /// Leaves Tidemill out.
    #[arg(long)]
    no_tidemill: bool,
    /// Records a second, one in a request.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000", value_parser = parse_rate)]
    rates: Vec<f64>,
    /// Rounds. In each, all systems take their turn, in the order of the round before, reversed.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Measured seconds of each part of a turn.
    #[arg(long, default_value = "60", value_parser = parse_seconds)]
    duration: Duration,
    /// Seconds of load before them, so that a JVM has compiled what it will.
    #[arg(long, default_value = "10", value_parser = parse_seconds)]
    warm_up: Duration,
    /// Bytes of a record's key and value.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(32..=1_000_000))]
    size: u32,
    /// Different keys.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    keys: u64,
    /// Partitions of each topic.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    partitions: u32,
    /// Connections of the producer.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// A directory on the file system to measure; never tmpfs [default: beside the build].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where bench/setup-peers has installed [default: target/peers].
    #[arg(long, value_name = "DIR")]
    peers_dir: Option<PathBuf>,
    /// Tidemill's server, on which the topics are made [default: `tidemill` beside this program].
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
    /// The same with the topologies, which goes on from there [default: `tidemill-count` beside this
    /// program].
    #[arg(long, value_name = "FILE")]
    counter: Option<PathBuf>,
    /// Its shards.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    shards: u16,
    /// One more argument for it; can be repeated.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    server_arg: Vec<String>,
    #[command(flatten)]
    output: OutputOptions,
}

/// Runs the subcommand.
pub fn run(options: &Options) -> Result<(), String> {
    let ground = Ground {
        installed: Installed::at(options.peers_dir.as_deref())?,
        data: options.data_dir.clone().map_or_else(node::default_scratch, Ok)?,
        shards: options.shards,
        arguments: options.server_arg.clone(),
    };
    ground.prepare()?;
    let subjects = subjects(options, &ground.installed)?;
    let mut runs = Vec::new();
    for round in 1..=options.rounds {
        let mut order: Vec<&Subject> = subjects.iter().collect();
        if round % 2 == 0 {
            order.reverse();
        }
        for subject in order {
            let turn = Turn { options, ground: &ground, subject, round };
            for run in turn.take() {
                options.output.write(&run)?;
                eprintln!("{}", summary::line(&run));
                run.notes.iter().for_each(|note| eprintln!("  {note}"));
                runs.push(run);
            }
        }
    }
    eprint!("\n{}", summary::text(&runs, TIDEMILL));
    let failed = runs.iter().filter(|run| !summary::is_whole(run)).count();
    if failed > 0 { Err(format!("{failed} turns failed; see above")) } else { Ok(()) }
}

/// A system, and the processor beside it.
struct Subject {
    system: System,
    processor: Option<Processor>,
}

impl Subject {
    fn name(&self) -> &str {
        match self.processor {
            Some(processor) => processor.name(),
            None => self.system.name(),
        }
    }
}

/// What is there to measure. A peer that was asked for by name has to be there.
fn subjects(options: &Options, installed: &Installed) -> Result<Vec<Subject>, String> {
    let mut subjects = Vec::new();
    if !options.no_tidemill {
        let system = System::Tidemill { name: TIDEMILL.to_owned(), binary: options.server.clone() };
        subjects.push(Subject { system, processor: None });
    }
    for processor in options.peers.as_deref().unwrap_or(Processor::value_variants()) {
        let is_there =
            installed.check_processor(*processor).and_then(|()| installed.check(Peer::Kafka));
        let system = System::Peer(Peer::Kafka);
        match is_there {
            _ if options.no_peers => {}
            Ok(()) => subjects.push(Subject { system, processor: Some(*processor) }),
            Err(why) if options.peers.is_some() => return Err(why),
            Err(why) => eprintln!("SKIPPED: {}: {why}", processor.name()),
        }
    }
    if subjects.is_empty() { Err("nothing to measure".to_owned()) } else { Ok(subjects) }
}

/// One system in one round.
struct Turn<'a> {
    options: &'a Options,
    ground: &'a Ground,
    subject: &'a Subject,
    round: u32,
}

impl Turn<'_> {
    /// Measures. What goes wrong is in a run of its own, and the other systems go on.
    fn take(&self) -> Vec<Run> {
        let mut runs = Vec::new();
        if let Err(why) = self.attempt(&mut runs) {
            runs.push(Run {
                format: FORMAT,
                kind: HERE.kind.to_owned(),
                system: self.subject.name().to_owned(),
                started_unix_ms: crate::now_ms() as u64,
                notes: vec![format!("failed: {why}")],
                ..Run::default()
            });
        }
        runs.iter_mut().for_each(|run| run.round = self.round);
        runs
    }

    fn attempt(&self, runs: &mut Vec<Run>) -> Result<(), String> {
        let mut opened = self.subject.system.open(self.ground)?;
        let common = self.common();
        let mut forms = vec![(HERE, HERE.make_topics(&opened.target, common)?)];
        // A processor repartitions as it will.
        if self.subject.processor.is_none() {
            forms.push((ELSEWHERE, ELSEWHERE.make_topics(&opened.target, common)?));
            let binary = self.counter()?;
            let command = vec!["serve".to_owned()];
            opened.target.go_on_as(&Program { binary, command, settings: Vec::new() })?;
        }
        let opened = opened;
        let mut plain = Plain::open(&opened.target, common)?;
        let mut flows = Vec::new();
        // On one shard there is no other.
        forms.retain(|(form, _)| form.place == Place::Here || self.options.shards > 1);
        for (form, topics) in forms {
            flows.push(Flow::open(form, topics, &opened.target, common)?);
        }
        let processing = self.start_processor(&opened)?;
        let mut measured = flows.iter_mut().try_for_each(|it| it.measure(&BEGINNING).map(drop));
        for rate in &self.options.rates {
            measured = measured.and_then(|()| {
                let parts = (&mut plain, &mut flows[..]);
                self.measure(*rate, (&opened, processing.as_ref()), parts, runs)
            });
        }
        let log = processing.as_ref().map(|it| it.process.log_end()).unwrap_or_default();
        measured.map_err(|why| format!("{why}\n{log}").trim().to_owned())?;
        drop((plain, flows));
        drop(processing);
        opened.close()
    }

    fn start_processor(&self, opened: &Opened) -> Result<Option<Processing>, String> {
        let Some(processor) = self.subject.processor else { return Ok(None) };
        let directory = self.ground.new_directory(processor.name())?;
        let (broker, topics) = (opened.target.address(), (HERE.from, HERE.to));
        let installed = &self.ground.installed;
        installed.start_processor(processor, &directory, broker, topics).map(Some)
    }

    /// One rate: the plain acknowledgement and each flow, in the order of the round before, reversed.
    fn measure(
        &self,
        rate: f64,
        (opened, processing): (&Opened, Option<&Processing>),
        (plain, flows): (&mut Plain<'_>, &mut [Flow<'_>]),
        runs: &mut Vec<Run>,
    ) -> Result<(), String> {
        let Options { warm_up, duration, .. } = *self.options;
        let asked = Asked { per_second: rate, warm_up, duration, patience: PATIENCE };
        let describe = |kind: &str| self.describe(kind, opened, processing);
        let mut alone = None;
        let mut flowed = Vec::new();
        let mut parts: Vec<Option<usize>> =
            std::iter::once(None).chain((0..flows.len()).map(Some)).collect();
        if self.round.is_multiple_of(2) {
            parts.reverse();
        }
        for part in parts {
            match part {
                None => {
                    let mut run = describe("plain")?;
                    (run.load, run.result) = plain.measure(&asked)?;
                    alone = Some(run);
                }
                Some(index) => {
                    let flow = &mut flows[index];
                    let mut run = describe(flow.form().kind)?;
                    let (load, came) = flow.measure(&asked)?;
                    run.load = load;
                    flowed.push((run, came));
                }
            }
        }
        let alone = alone.expect("it is one of the parts");
        for (mut run, came) in flowed {
            set_result(&mut run, came, &alone.result);
            runs.push(run);
        }
        runs.push(alone);
        Ok(())
    }

    fn describe(
        &self,
        kind: &str,
        opened: &Opened,
        processing: Option<&Processing>,
    ) -> Result<Run, String> {
        let mut run = opened.describe(kind)?;
        self.subject.name().clone_into(&mut run.system);
        if let Some(processing) = processing {
            run.configuration.extend(processing.configuration.clone());
        }
        Ok(run)
    }

    fn counter(&self) -> Result<PathBuf, String> {
        self.options.counter.clone().map_or_else(|| node::beside_us(COUNTER), Ok)
    }

    fn common(&self) -> Common {
        let Options { size, keys, partitions, connections, shards, .. } = *self.options;
        Common { size, keys, partitions, connections, shards }
    }
}

/// The waits for results are the run's latencies; beside them is what acknowledgements took, of the
/// same records, and of those that nobody counted.
fn set_result(run: &mut Run, came: Flowed, plain: &Measured) {
    let Flowed { acknowledged, waits, repeated } = came;
    let (own, plain) = (acknowledged.latency.percentiles, plain.latency.percentiles);
    let times = waits.latency.percentiles;
    let after = Duration::from_nanos(waits.after_ns);
    let figures = [
        ("acknowledgement_p50_us", own.p50),
        ("acknowledgement_p99_us", own.p99),
        ("plain_p50_us", plain.p50),
        ("plain_p99_us", plain.p99),
        ("results", waits.results as f64),
        ("results_of_several_records", waits.gathered as f64),
        ("results_repeated", repeated as f64),
        ("last_result_after_seconds", after.as_secs_f64()),
    ];
    run.figures.extend(figures.map(|(name, value)| (name.to_owned(), value)));
    for (name, time, to) in
        [("p50_to_plain", times.p50, plain.p50), ("p99_to_plain", times.p99, plain.p99)]
    {
        if to > 0.0 {
            run.figures.insert(name.to_owned(), time / to);
        }
    }
    run.result = Measured { latency: waits.latency, series: waits.series, ..acknowledged };
    run.notes.push(
        "latency runs from when a record was due at the producer until a count of it was consumed"
            .to_owned(),
    );
    if after > LATE || has_grown(&run.result.series, run.result.seconds) {
        run.notes
            .push("it fell behind: the waits for results say for how long the load ran".to_owned());
    }
    if repeated > 0 {
        run.notes.push(format!("{repeated} results said no more than one before them"));
    }
}

/// Whether waits grew: in the second half of the measured time they are more than twice as long as in
/// the first.
fn has_grown(series: &[Point], seconds: f64) -> bool {
    let median = |from: f64, to: f64| {
        let is_within = |point: &&Point| (from..=to).contains(&point.until_seconds);
        let medians = series.iter().filter(is_within).map(|point| point.percentiles.p50);
        Spread::of(medians.collect()).map(|spread| spread.median)
    };
    let halves = median(0.0, seconds / 2.0).zip(median(seconds / 2.0, seconds));
    halves.is_some_and(|(first, second)| second > 2.0 * first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Latency, Percentiles};

    fn measured(p50: f64, p99: f64) -> Measured {
        let percentiles = Percentiles { p50, p99, ..Percentiles::default() };
        let latency = Latency { count: 10, percentiles, curve: Vec::new() };
        Measured { records: 10, latency, ..Measured::default() }
    }

    #[test]
    fn results_stand_beside_the_plain_acknowledgement() {
        let mut run = Run::default();
        let waits = flow_waits(measured(150.0, 600.0));
        let came = Flowed { acknowledged: measured(120.0, 500.0), waits, repeated: 0 };
        set_result(&mut run, came, &measured(100.0, 400.0));
        let figure = |name: &str| run.figures[name];
        assert_eq!((figure("p50_to_plain"), figure("p99_to_plain")), (1.5, 1.5));
        assert_eq!(figure("acknowledgement_p50_us"), 120.0);
        assert_eq!((run.result.records, run.result.latency.percentiles.p50), (10, 150.0));
        assert_eq!(run.notes.len(), 1, "nothing was repeated");
    }

    #[test]
    fn waits_that_grow_all_the_time_are_noticed() {
        let series = |wait_us: fn(f64) -> f64| -> Vec<Point> {
            let point = |second: u32| {
                let until_seconds = f64::from(second) + 1.0;
                let p50 = wait_us(until_seconds);
                let percentiles = Percentiles { p50, ..Percentiles::default() };
                Point { until_seconds, percentiles, ..Point::default() }
            };
            (0..10).map(point).collect()
        };
        assert!(has_grown(&series(|second| second * 1e5), 10.0));
        assert!(!has_grown(&series(|second| 500.0 + second), 10.0));
        let stall = |second| if second == 9.0 { 1e6 } else { 500.0 };
        assert!(!has_grown(&series(stall), 10.0), "it caught up again");
        assert!(!has_grown(&[], 10.0));
    }

    fn flow_waits(measured: Measured) -> tally::Waits {
        tally::Waits { latency: measured.latency, ..tally::Waits::default() }
    }
}
