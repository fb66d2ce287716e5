//! `tidemill-bench state`: many keys with a count each. How long it takes to make them, whether settling
//! and snapshots of them show in acknowledgements, and how soon they are there again after `kill -9`.
//!
//! Acknowledgements are measured in turns. In one kind of turn segments and delta files are so small
//! that the node settles and writes snapshots all the time, in the other so large that it does neither;
//! everything else is the same. Between two turns the node is stopped and goes on with the other
//! settings.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use clap::Args;
use serde_json::Value;
use tidemill::batch::Compression;
use tidemill::command::key_partition;
use tidemill_wal::delta::DELTA_SUFFIX;
use tidemill_wal::snapshot::SNAPSHOT_SUFFIX;

use crate::client::Client;
use crate::compare::TIDEMILL;
use crate::fill;
use crate::latency::parse_rate;
use crate::load::kafka::{Produce, Shape, key_text};
use crate::load::{Arrivals, Plan, Poll};
use crate::machine;
use crate::measure::{DRAIN, IN_FLIGHT_MAX, Request, Target};
use crate::node::Node;
use crate::options::{OutputOptions, ServerOptions, parse_seconds};
use crate::parse_size;
use crate::processing::drain::{Look, Results, Watched};
use crate::processing::host::Host;
use crate::processing::input::{Batches, keyed};
use crate::run::{Load, Run};
use crate::summary::{self, STATE, STATE_BUILT, STATE_QUIET, STATE_RECOVERED, Spread};

const INPUT: &str = "in";
const OUTPUT: &str = "counts";

/// The topology, which is also the node's command.
const COUNT: &str = "count";

/// Where it has the count of a key.
const STATE_PAGE: &str = "/topologies/count/state/count/aggregate?key=";

/// Bytes of the log that a record takes at most when it is alone in its frame, with its count.
const RECORD_LOG_SIZE: f64 = 8192.0;

/// Segments that the engine takes.
const SEGMENT_SIZE_MIN: u64 = 17 << 20;
const SEGMENT_SIZE_MAX: u64 = 4 << 30;

/// Largest delta files that it takes.
const DELTA_SIZE_MAX: &str = "64GiB";

/// Most different keys of one turn's load.
const KEYS_SENT_MAX: f64 = 200_000.0;

/// Room in a segment for what is sent before a turn's load.
const MARGIN: u64 = 64 << 20;

/// Records that nobody counts: how many are sent at once, and bytes of one.
const FILLER: &str = "filler";
const FILLER_COUNT: u64 = 4096;
const FILLER_SIZE: usize = 1000;

/// How names of the log's segments end.
const SEGMENT_SUFFIX: &str = ".seg";

/// Longest wait until a segment is full and settled.
const SETTLED_PATIENCE: Duration = Duration::from_mins(5);

/// Times that the device is waited for before a turn in which nothing else is to happen.
const RESTS_MAX: u32 = 12;

/// Longest wait until all that was acknowledged is counted; a look each tick.
const PATIENCE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(10);

/// Keys whose counts are looked at after a recovery.
const KEYS_CHECKED: usize = 100;

/// Arguments of the subcommand.
#[derive(Debug, Args)]
pub struct Options {
    /// Different keys, each with a count.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(100..))]
    keys: u64,
    /// Bytes of a record's key and value.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(32..=100_000))]
    size: u32,
    /// Records a second, one in a request, each of a random key.
    #[arg(long, default_value_t = 1000.0, value_parser = parse_rate)]
    rate: f64,
    /// Connections of the producer.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Rounds, each with a turn of both kinds, in the order of the round before, reversed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Measured seconds of a turn.
    #[arg(long, default_value = "60", value_parser = parse_seconds)]
    duration: Duration,
    /// Seconds of load before them.
    #[arg(long, default_value = "5", value_parser = parse_seconds)]
    warm_up: Duration,
    /// Segment size of the turns in which the node settles.
    #[arg(long, default_value = "17MiB", value_parser = parse_size)]
    busy_segment_size: u64,
    /// Bytes of delta files after which it writes a snapshot in them.
    #[arg(long, default_value = "1MiB", value_parser = parse_size)]
    busy_delta_size: u64,
    /// Times that it is killed in the end, with the settings that it was given; once more right after
    /// the state was made.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    recoveries: u32,
    #[command(flatten)]
    host: Host,
    #[command(flatten)]
    output: OutputOptions,
}

/// Runs the subcommand.
pub fn run(options: &Options) -> Result<(), String> {
    let server = options.host.server();
    let mut target = Target::open(&server)?;
    let mut measuring = Measuring { options, server, runs: Vec::new() };
    measuring.build(&mut target)?;
    measuring.recover(&mut target, 1, "right after the last key was made")?;
    for round in 1..=options.rounds {
        measuring.round(&mut target, round)?;
    }
    for round in 1..=options.recoveries {
        let program = options.host.counting(COUNT, &[])?;
        target.go_on_as(&program)?;
        measuring.load(&target, Duration::ZERO, options.warm_up, &mut || ())?;
        measuring.recover(&mut target, round, "after some load with the settings as they are")?;
    }
    measuring.tell();
    target.close()
}

/// The runs so far.
struct Measuring<'a> {
    options: &'a Options,
    server: ServerOptions,
    runs: Vec<Run>,
}

/// A kind of turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The node settles and writes snapshots.
    Busy,
    /// It does not.
    Quiet,
}

impl Measuring<'_> {
    /// Makes the topics and a record of each key, and has them counted.
    fn build(&mut self, target: &mut Target) -> Result<(), String> {
        let options = self.options;
        let partitions = options.host.partitions();
        let mut run = target.describe(STATE_BUILT, &self.server)?;
        for topic in [INPUT, OUTPUT, FILLER] {
            target.make_topic(topic, partitions, &[])?;
        }
        let records = keyed((options.keys, options.keys), options.size as usize, partitions);
        let filled = fill::send(target.address(), Batches::new(&[INPUT], partitions, records))?;
        target.wait_for_rest()?;
        let before = Look::before(target);
        target.go_on_as(&options.host.counting(COUNT, &[])?)?;
        let results = Results { topic: OUTPUT, partitions, is_each: true };
        let mut watched = Watched::open(target, COUNT, results)?;
        let drained = watched.drain(before, filled.records)?;
        let record_size = filled.size as f64 / filled.records as f64;
        drained.tell(target, record_size, options.host.shards, &mut run);
        run.load = self.told(None);
        self.add(run)
    }

    /// A turn of each kind.
    fn round(&mut self, target: &mut Target, round: u32) -> Result<(), String> {
        let mut turns = [Turn::Busy, Turn::Quiet];
        if round.is_multiple_of(2) {
            turns.reverse();
        }
        let mut runs = Vec::new();
        for turn in turns {
            let mut run = self.turn(target, turn)?;
            run.round = round;
            runs.push((turn, run));
        }
        let p999 = |of: Turn| {
            let found = runs.iter().find(|(turn, _)| *turn == of);
            found.map_or(0.0, |(_, run)| run.result.latency.percentiles.p999)
        };
        let (busy, quiet) = (p999(Turn::Busy), p999(Turn::Quiet));
        for (turn, mut run) in runs {
            if turn == Turn::Busy && quiet > 0.0 {
                run.figures.insert("p999_to_quiet".to_owned(), busy / quiet);
            }
            self.add(run)?;
        }
        Ok(())
    }

    fn turn(&self, target: &mut Target, turn: Turn) -> Result<Run, String> {
        let options = self.options;
        target.go_on_as(&options.host.counting(COUNT, &self.settings(turn))?)?;
        let mut notes = Vec::new();
        self.leave_old_segments(target)?;
        if turn == Turn::Quiet && !rests(target)? {
            notes.push("the device did not come to rest before".to_owned());
        }
        let kind = match turn {
            Turn::Busy => STATE,
            Turn::Quiet => STATE_QUIET,
        };
        let mut run = target.describe(kind, &self.server)?;
        for setting in self.settings(turn) {
            if let Some((name, value)) = setting.trim_start_matches('-').split_once('=') {
                run.configuration.insert(name.to_owned(), value.to_owned());
            }
        }
        let mut files = Files::at(target.directory());
        let look = &mut || files.look(target.directory());
        let log_before = log_size(target);
        (run.load, run.result) = self.load(target, options.warm_up, options.duration, look)?;
        files.look(target.directory());
        let sent = options.rate * (options.warm_up + options.duration).as_secs_f64();
        if let Some((before, after)) = log_before.zip(log_size(target)) {
            run.figures.insert("frame_bytes_per_record".to_owned(), (after - before) / sent);
        }
        let (settled, snapshots) = (files.deltas.count_new(), files.snapshots.count_new());
        run.figures.insert("settling_rounds".to_owned(), settled as f64);
        run.figures.insert("snapshots".to_owned(), snapshots as f64);
        match turn {
            Turn::Busy if settled == 0 || snapshots == 0 => {
                notes.push("too short: it did not both settle and write a snapshot".to_owned());
            }
            Turn::Quiet if settled + snapshots > 0 => {
                notes.push("it settled or wrote a snapshot all the same".to_owned());
            }
            Turn::Busy | Turn::Quiet => {}
        }
        run.notes.extend(notes);
        Ok(run)
    }

    /// Fills the segments that the node went on with, and waits until they are settled: the log is in
    /// new ones then, of the size that the turn is to have.
    fn leave_old_segments(&self, target: &Target) -> Result<(), String> {
        let mut files = Files::at(target.directory());
        let at_first = files.newest_segments.clone();
        let mut nothing = Poll::new().map_err(|error| error.to_string())?;
        let until = Instant::now() + SETTLED_PATIENCE;
        let partitions = self.options.host.partitions();
        let leaves = |files: &Files| {
            files.newest_segments.iter().all(|(shard, newest)| at_first.get(shard) != Some(newest))
        };
        while files.deltas.count_new() < at_first.len() {
            if Instant::now() > until {
                return Err(format!("nothing was settled for {SETTLED_PATIENCE:?}"));
            }
            if !leaves(&files) {
                let records = keyed((FILLER_COUNT, FILLER_COUNT), FILLER_SIZE, partitions);
                fill::send(target.address(), Batches::new(&[FILLER], partitions, records))?;
            }
            nothing.wait(Some(TICK)).map_err(|error| error.to_string())?.for_each(drop);
            files.look(target.directory());
        }
        Ok(())
    }

    fn settings(&self, turn: Turn) -> Vec<String> {
        let Options { rate, warm_up, duration, busy_segment_size, busy_delta_size, .. } =
            *self.options;
        let (segment_size, delta_size) = match turn {
            Turn::Busy => (busy_segment_size, format!("{busy_delta_size}B")),
            Turn::Quiet => {
                let size = rate * (warm_up + duration).as_secs_f64() * RECORD_LOG_SIZE;
                (size as u64 + MARGIN, DELTA_SIZE_MAX.to_owned())
            }
        };
        let segment_size = segment_size.clamp(SEGMENT_SIZE_MIN, SEGMENT_SIZE_MAX);
        let segment_size = segment_size - segment_size % 4096;
        vec![format!("--segment-size={segment_size}B"), format!("--delta-size-max={delta_size}")]
    }

    /// Sends records of random keys at the rate, and waits until all are counted.
    fn load(
        &self,
        target: &Target,
        warm_up: Duration,
        duration: Duration,
        look: &mut dyn FnMut(),
    ) -> Result<(Load, crate::run::Measured), String> {
        let options = self.options;
        let partitions = options.host.partitions();
        let shape = Shape {
            topic: INPUT.to_owned(),
            record_size: options.size as usize,
            records: 1,
            keys: options.keys,
            compression: Compression::None,
            connections: options.connections as usize,
        };
        let place = |key: &[u8]| key_partition(key, partitions);
        let leaders = target.leaders(INPUT)?;
        let seconds = (warm_up + duration).as_secs_f64();
        // Enough that each connection has some.
        let fewest = f64::from(options.connections) * 16.0;
        let count = (options.rate * seconds).clamp(fewest, KEYS_SENT_MAX.max(fewest)) as usize;
        let numbers = random_numbers(count, options.keys);
        let (mut produce, _) = Produce::of_numbers(&shape, &leaders, &place, &numbers)?;
        let plan = Plan {
            addresses: produce.addresses(),
            per_second: Some(options.rate),
            arrivals: Arrivals::Even,
            gather: Duration::ZERO,
            in_flight_max: IN_FLIGHT_MAX,
            warm_up,
            duration,
            piece: Duration::from_secs(1),
            drain: DRAIN,
            spin: false,
            clock: None,
        };
        let request = Request { records: 1, size: produce.accepted_size() };
        let measured = target.measure(&plan, &mut produce, request, &mut |_| look())?;
        self.wait_counted(target)?;
        let mut load = self.told(Some(&plan));
        load.request_size = produce.request_size();
        Ok((load, measured))
    }

    /// Waits until each record has its count: exactly one.
    fn wait_counted(&self, target: &Target) -> Result<(), String> {
        let mut client = Client::open(target.address()).map_err(|error| error.to_string())?;
        let mut nothing = Poll::new().map_err(|error| error.to_string())?;
        let until = Instant::now() + PATIENCE;
        loop {
            let (records, counts) = self.ends(&mut client)?;
            if counts == records {
                return Ok(());
            }
            if counts > records || Instant::now() > until {
                return Err(format!("{counts} counts of {records} records"));
            }
            nothing.wait(Some(TICK)).map_err(|error| error.to_string())?.for_each(drop);
        }
    }

    /// How many records there are, and how many counts.
    fn ends(&self, client: &mut Client) -> Result<(u64, u64), String> {
        let partitions = self.options.host.partitions();
        let mut sum = |topic| client.ends(topic, partitions).map(|ends| ends.iter().sum());
        Ok((sum(INPUT)?, sum(OUTPUT)?))
    }

    /// Kills the node and waits until it is ready again.
    fn recover(&mut self, target: &mut Target, round: u32, when: &str) -> Result<(), String> {
        let mut run = target.describe(STATE_RECOVERED, &self.server)?;
        run.round = round;
        let keys = self.options.keys;
        let node = target.node.as_mut().expect("it is ours");
        let metric = |node: &Node, name: &str| node.metric(name);
        let estimate = metric(node, "tidemill_recovery_estimate_seconds");
        let state_before = metric(node, "tidemill_state_bytes");
        node.kill()?;
        let started = Instant::now();
        node.spawn()?;
        node.wait_ready()?;
        let seconds = started.elapsed().as_secs_f64();
        let figures = [
            ("keys_per_second", Some(keys as f64 / seconds)),
            ("ready_seconds", Some(seconds)),
            ("estimated_seconds", estimate),
            ("log_bytes", metric(node, "tidemill_recovery_work_bytes")),
            ("state_bytes_before", state_before),
            ("state_bytes", metric(node, "tidemill_state_bytes")),
            ("resident_bytes", machine::resident_bytes(node.pid()).map(|bytes| bytes as f64)),
        ];
        let known = figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        run.figures = known.collect();
        run.result.cost.server_cpu_seconds = machine::process_cpu_seconds(node.pid());
        check_counts(node, keys)?;
        self.wait_counted(target)?;
        run.load = self.told(None);
        run.result.records = keys;
        run.result.seconds = seconds;
        run.result.records_per_second = keys as f64 / seconds;
        run.notes.push(format!("killed {when}; the page cache was not emptied"));
        self.add(run)
    }

    fn told(&self, plan: Option<&Plan>) -> Load {
        let Options { size, keys, connections, ref host, .. } = *self.options;
        Load {
            requests_per_second: plan.and_then(|plan| plan.per_second),
            arrivals: if plan.is_some() { "even" } else { "backlog" }.to_owned(),
            in_flight_max: plan.map_or(0, |plan| plan.in_flight_max),
            record_size: size.into(),
            records_per_request: u64::from(plan.is_some()),
            partitions: host.partitions(),
            connections,
            keys,
            compression: "none".to_owned(),
            acks: "all".to_owned(),
            warm_up_seconds: plan.map_or(0.0, |plan| plan.warm_up.as_secs_f64()),
            duration_seconds: plan.map_or(0.0, |plan| plan.duration.as_secs_f64()),
            shards: host.shards.into(),
            ..Load::default()
        }
    }

    fn add(&mut self, run: Run) -> Result<(), String> {
        self.options.output.write(&run)?;
        eprintln!("{}", summary::line(&run));
        run.notes.iter().for_each(|note| eprintln!("  {note}"));
        self.runs.push(run);
        Ok(())
    }

    fn tell(&self) {
        eprint!("\n{}", summary::text(&self.runs, TIDEMILL));
        let ratios = self.runs.iter().filter_map(|run| run.figures.get("p999_to_quiet").copied());
        if let Some(Spread { median, least, most }) = Spread::of(ratios.collect()) {
            eprintln!(
                "p99.9 with settling and snapshots to that without: {median:.2} ({least:.2} to {most:.2})"
            );
        }
    }
}

/// Files of the log, of settling and of snapshots: those that were there at first, and those that came.
struct Files {
    deltas: Names,
    snapshots: Names,
    /// By directory. A new one is made when the log goes on in one that was ready.
    newest_segments: BTreeMap<PathBuf, String>,
}

#[derive(Debug, Default)]
struct Names {
    at_first: usize,
    all: BTreeSet<PathBuf>,
}

impl Names {
    fn count_new(&self) -> usize {
        self.all.len() - self.at_first
    }
}

impl Files {
    fn at(directory: &Path) -> Self {
        let mut files = Self {
            deltas: Names::default(),
            snapshots: Names::default(),
            newest_segments: BTreeMap::new(),
        };
        files.look(directory);
        for names in [&mut files.deltas, &mut files.snapshots] {
            names.at_first = names.all.len();
        }
        files
    }

    /// What goes while it is looked at was there all the same, or is of no interest.
    fn look(&mut self, directory: &Path) {
        let _ = self.look_into(directory);
    }

    fn look_into(&mut self, directory: &Path) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // One that is whole says where it ends, too.
            let is_whole = name.matches('-').count() == 2;
            if name.ends_with(DELTA_SUFFIX) {
                self.deltas.all.insert(path);
            } else if name.ends_with(SNAPSHOT_SUFFIX) {
                if is_whole {
                    self.snapshots.all.insert(path);
                }
            } else if name.ends_with(SEGMENT_SUFFIX) {
                let newest = self.newest_segments.entry(directory.to_owned()).or_default();
                if **newest < *name {
                    *newest = name.into_owned();
                }
            } else if path.is_dir() {
                self.look_into(&path)?;
            }
        }
        Ok(())
    }
}

/// Bytes of the frames that a node has written.
fn log_size(target: &Target) -> Option<f64> {
    target.node.as_ref()?.metric("tidemill_frame_size_bytes_sum")
}

/// Waits until the device has nothing to write; false if it always has.
fn rests(target: &Target) -> Result<bool, String> {
    for _ in 0..RESTS_MAX {
        if target.wait_for_rest()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Numbers below `bound`, each drawn apart.
fn random_numbers(count: usize, bound: u64) -> Vec<u64> {
    let mut bits = crate::random();
    let next = || {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (bits >> 20) % bound
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Asks the node for the counts of some keys: each was counted.
fn check_counts(node: &Node, keys: u64) -> Result<(), String> {
    let mut nothing = Poll::new().map_err(|error| error.to_string())?;
    let until = Instant::now() + PATIENCE;
    for number in random_numbers(KEYS_CHECKED, keys) {
        let path = format!("{STATE_PAGE}{}", key_text(number));
        // A topology that has just begun does not answer yet.
        let page = loop {
            match node.page(&path) {
                Some(page) => break page,
                None if Instant::now() > until => return Err(format!("no answer of {path}")),
                None => {
                    nothing.wait(Some(TICK)).map_err(|error| error.to_string())?.for_each(drop);
                }
            }
        };
        if count_of(&page).is_none_or(|count| count < 1) {
            return Err(format!("the key {number} has no count any more: {page}"));
        }
    }
    Ok(())
}

/// The count in the answer of a query.
fn count_of(page: &str) -> Option<i64> {
    let page: Value = serde_json::from_str(page).ok()?;
    page.pointer("/entries/0/value/int64")?.as_i64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_of_a_key_is_read_from_the_answer() {
        let page = r#"{"entries":[{"entry":{},"version":0,"value":{"int64":7}}],"is_cut":false}"#;
        assert_eq!(count_of(page), Some(7));
        for wrong in [r#"{"entries":[]}"#, "no JSON", r#"{"entries":[{"value":{"int64":null}}]}"#] {
            assert_eq!(count_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn files_that_came_meanwhile_are_counted_once_and_snapshots_when_they_are_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let shard = directory.path().join("data/shard-0000");
        fs::create_dir_all(&shard).expect("a directory");
        let touch = |name: &str| fs::write(shard.join(name), "").expect("writes");
        touch("delta-00000000000000000008-6.dlt");
        let mut files = Files::at(directory.path());
        touch("snapshot-00000000000000000005.snap");
        touch("delta-00000000000000000009-8.dlt");
        files.look(directory.path());
        assert_eq!((files.deltas.count_new(), files.snapshots.count_new()), (1, 0));
        touch("snapshot-00000000000000000005-00000000000000000007.snap");
        fs::remove_file(shard.join("delta-00000000000000000009-8.dlt")).expect("removes");
        files.look(directory.path());
        files.look(directory.path());
        assert_eq!((files.deltas.count_new(), files.snapshots.count_new()), (1, 1));
    }

    #[test]
    fn random_numbers_are_below_their_bound_and_all_over() {
        let numbers = random_numbers(10_000, 100);
        let different: BTreeSet<u64> = numbers.iter().copied().collect();
        assert_eq!((different.len(), different.last()), (100, Some(&99)));
    }
}
