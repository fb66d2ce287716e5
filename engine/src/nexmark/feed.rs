//! `tidemill nexmark`: a node with chosen queries, and their input.
//!
//! An event's place is a function of its number: those of a topic go round its partitions. So the ends
//! of the partitions say which events are there, and a run that was killed goes on with the first that
//! is not: each event is in its topic once, whatever happened.

use std::net::SocketAddr;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::{INPUT_TOPICS, QUERIES, Query, Written, generate};
use crate::batch::{BatchBuilder, NewRecord};
use crate::client::{Append, Client, ClientError, ErrorCode};
use crate::config::Config;
use crate::daemon::Daemon;
use crate::exit_code::ExitCode;
use crate::runtime::Serving;

/// Name of the command.
pub const COMMAND: &str = "nexmark";

/// Heading of its own options.
const HEADING: &str = "Nexmark";

/// Topics keep everything: event time is not the clock's, and retention goes by it.
const TOPIC_CONFIG: [(&str, &str); 1] = [("retention.ms", "-1")];

/// Most events that are written at once.
const EVENTS_AT_ONCE: usize = 2000;

/// A node that refuses the same for longer than this is left alone.
const PATIENCE: Duration = Duration::from_secs(30);

/// Before something that was refused is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The command and its options.
pub fn command() -> Command {
    let all = PossibleValue::new("all").help("every one of these");
    let names = QUERIES.iter().map(|query| {
        let about = match query.key {
            Some(key) => format!("{} (keyed by {key})", query.about),
            None => query.about.to_owned(),
        };
        PossibleValue::new(query.name).help(about)
    });
    Command::new(COMMAND)
        .about("Runs queries of the Nexmark benchmark on generated events")
        .long_about(
            "Runs queries of the Nexmark benchmark inside the node. Events are generated, always the \
             same ones, and written as JSON to the topics nexmark-person, nexmark-auction and \
             nexmark-bid; rows come as JSON in the topics nexmark-q0 and so on. A row of a query that \
             is keyed replaces the one before it with that key.",
        )
        .arg(
            Arg::new("query")
                .long("query")
                .value_name("NAMES")
                .required(true)
                .action(ArgAction::Append)
                .value_delimiter(',')
                .value_parser(PossibleValuesParser::new(names.chain([all])))
                .help_heading(HEADING)
                .help("Queries to run, with commas between them"),
        )
        .arg(
            Arg::new("events")
                .long("events")
                .value_name("COUNT")
                .value_parser(value_parser!(u64))
                .help_heading(HEADING)
                .help("How many events to generate [default: until it is stopped]"),
        )
        .arg(
            Arg::new("rate")
                .long("rate")
                .value_name("COUNT")
                .value_parser(value_parser!(u64).range(1..))
                .help_heading(HEADING)
                .help("Most events a second [default: as many as are taken]"),
        )
        .arg(
            Arg::new("from-topics")
                .long("from-topics")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(["events", "rate", "flush"])
                .help_heading(HEADING)
                .help("Generate nothing: others write the events"),
        )
        .arg(
            Arg::new("flush")
                .long("flush")
                .action(ArgAction::SetTrue)
                .requires("events")
                .help_heading(HEADING)
                .help("End the input after the last event, so that all windows come out")
                .long_help(
                    "End the input after the last event, so that all windows come out: each \
                     partition gets a record without a value, which moves its event time to the end \
                     of the year 9999. What is written after it is late.",
                ),
        )
}

/// Serves with the chosen queries until the node is asked to stop.
pub fn run(daemon: Daemon, arguments: &ArgMatches) -> process::ExitCode {
    let names = arguments.get_many::<String>("query").into_iter().flatten();
    let queries = Query::chosen(names.map(String::as_str));
    let is_generated = !arguments.get_flag("from-topics");
    let input = is_generated.then(|| Input {
        event_count: arguments.get_one("events").copied(),
        rate: arguments.get_one("rate").copied(),
        is_flushed: arguments.get_flag("flush"),
    });
    let mut count = 1;
    let daemon = daemon.adjust(|config| count = partition_count(config));
    let daemon =
        queries.iter().fold(daemon, |daemon, query| daemon.topology(query.topology(count)));
    let mut feeding = None;
    let code = daemon.run_beside(|serving| {
        let feed = move || match feed(&serving, &queries, input) {
            // A node that stops breaks its connections.
            Err(_) if serving.is_stopping() => Ok(()),
            Err(error) => {
                tracing::error!("nexmark: {error}");
                serving.stop();
                Err(error)
            }
            Ok(()) => Ok(()),
        };
        feeding = Some(thread::spawn(feed));
    });
    match feeding.map(thread::JoinHandle::join) {
        None | Some(Ok(Ok(()))) => code,
        Some(_) => ExitCode::Other.into(),
    }
}

/// How many partitions a topic gets that nobody made: what the node gives others, too.
pub(crate) fn partition_count(config: &Config) -> u32 {
    match config.default_partitions {
        0 => config.shards.resolve().into(),
        count => count,
    }
}

/// What to generate.
#[derive(Debug, Clone, Copy)]
struct Input {
    /// How many events; `None`: without end.
    event_count: Option<u64>,
    /// Most events a second.
    rate: Option<u64>,
    /// Whether the input ends after them.
    is_flushed: bool,
}

fn feed(serving: &Serving, queries: &[&Query], input: Option<Input>) -> Result<(), ClientError> {
    let mut client = Client::new(serving.kafka());
    let inputs = INPUT_TOPICS.map(str::to_owned).into_iter();
    let outputs = queries.iter().flat_map(|query| [query.topic(), query.dead_letter()]);
    for topic in inputs.chain(outputs) {
        patiently(serving, || client.configure(&topic, &TOPIC_CONFIG))?;
    }
    let topics: Vec<String> = queries.iter().map(|query| query.topic()).collect();
    tracing::info!("nexmark: the rows come in {}", topics.join(", "));
    let Some(input) = input else { return Ok(()) };
    let mut feeder = Feeder::new(serving, client)?;
    let (passed, written) = feeder.feed(input)?;
    if !serving.is_stopping() {
        tracing::info!("nexmark: {passed} events are there, {written} of them new");
    }
    Ok(())
}

/// Does it again while it is refused for a passing reason and the node does not stop.
pub(crate) fn patiently<T>(
    serving: &Serving,
    mut act: impl FnMut() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let started = Instant::now();
    loop {
        match act() {
            Err(error) if error.is_passing() && started.elapsed() < PATIENCE => {
                if serving.pause(RETRY_PAUSE) {
                    return Err(error);
                }
            }
            result => return result,
        }
    }
}

/// A partition of an input topic.
struct Partition {
    topic: &'static str,
    index: u32,
    leader: SocketAddr,
    /// Records that were there at the start.
    end: u64,
    /// Events that belong there, so far.
    passed: u64,
    batch: BatchBuilder,
}

/// Writes events to their partitions.
struct Feeder<'s> {
    serving: &'s Serving,
    client: Client,
    /// Of each input topic.
    topics: Vec<Vec<Partition>>,
    /// Events in the batches.
    waiting: usize,
    newest_ms: i64,
}

impl<'s> Feeder<'s> {
    fn new(serving: &'s Serving, mut client: Client) -> Result<Self, ClientError> {
        let mut topics = Vec::new();
        for topic in INPUT_TOPICS {
            let leaders = patiently(serving, || client.leaders(topic))?;
            let mut partitions = Vec::new();
            for (index, leader) in (0..).zip(leaders) {
                let end = patiently(serving, || client.end(leader, topic, index))?;
                let batch = BatchBuilder::new();
                partitions.push(Partition { topic, index, leader, end, passed: 0, batch });
            }
            topics.push(partitions);
        }
        Ok(Self { serving, client, topics, waiting: 0, newest_ms: 0 })
    }

    /// Writes what is not there yet: how many events belong there, and how many were written.
    fn feed(&mut self, input: Input) -> Result<(u64, u64), ClientError> {
        let mut started = Instant::now();
        let (mut passed, mut written) = (0, 0);
        for event in generate() {
            if input.event_count == Some(passed) || self.serving.is_stopping() {
                break;
            }
            if let Some(rate) = input.rate {
                if written == 0 {
                    started = Instant::now();
                }
                self.wait_until(started + Duration::from_secs_f64(written as f64 / rate as f64))?;
            }
            passed += 1;
            written += u64::from(self.take(event));
            if self.waiting >= EVENTS_AT_ONCE {
                self.write()?;
            }
        }
        self.write()?;
        if input.is_flushed && input.event_count == Some(passed) {
            self.end_input();
            self.write()?;
        }
        Ok((passed, written))
    }

    /// An event that is not due yet is waited for, and those before it are written meanwhile.
    fn wait_until(&mut self, due: Instant) -> Result<(), ClientError> {
        if Instant::now() < due {
            self.write()?;
            self.serving.pause(due.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    /// Puts an event into the batch of its partition. False if it is there already.
    fn take(&mut self, Written { topic, time_ms, value }: Written) -> bool {
        self.newest_ms = time_ms;
        let partitions = &mut self.topics[topic];
        // The partition that has got the fewest, the first of these: they take turns.
        let partition = partitions.iter_mut().min_by_key(|partition| partition.passed);
        let partition = partition.expect("a topic has partitions");
        partition.passed += 1;
        let is_new = partition.passed > partition.end;
        if is_new {
            let value = Some(&value[..]);
            partition.batch.push(NewRecord { timestamp_ms: time_ms, value, ..Default::default() });
            self.waiting += 1;
        }
        is_new
    }

    /// A record without a value ends a partition's input, unless it has one already.
    fn end_input(&mut self) {
        let timestamp_ms = self.newest_ms;
        for partition in self.topics.iter_mut().flatten() {
            if partition.end <= partition.passed {
                partition.batch.push(NewRecord { timestamp_ms, ..Default::default() });
                self.waiting += 1;
            }
        }
    }

    /// Writes the batches, and tries those again that the node has no room for.
    fn write(&mut self) -> Result<(), ClientError> {
        self.waiting = 0;
        let mut batches: Vec<Append<'_>> = Vec::new();
        for partition in self.topics.iter_mut().flatten() {
            if partition.batch.record_count() > 0 {
                let batch = std::mem::take(&mut partition.batch).build();
                let (topic, leader) = (partition.topic, partition.leader);
                let batch: Bytes = batch.into_bytes();
                batches.push(Append { topic, partition: partition.index, leader, batch });
            }
        }
        let started = Instant::now();
        while !batches.is_empty() {
            let refused = self.client.append(&batches)?;
            let is_final =
                |code: ErrorCode| !code.is_retriable() || code == ErrorCode::RequestTimedOut;
            let worst = refused.iter().find(|(_, code)| is_final(*code)).or(refused.first());
            let Some((index, code)) = worst.copied() else { break };
            // After a timeout nobody knows whether it is there; the next start looks.
            if is_final(code) || started.elapsed() > PATIENCE || self.serving.pause(RETRY_PAUSE) {
                let what = format!("appending to {}", batches[index].topic);
                return Err(ClientError::Refused { what, code });
            }
            batches = refused.iter().map(|(index, _)| batches[*index].clone()).collect();
        }
        Ok(())
    }
}
