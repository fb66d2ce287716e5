//! `tidemill demo`: auction traffic, two topologies over it, and what can be seen of them, live.
//!
//! The node is a whole one, on a directory of its own: what is shown comes in over the Kafka protocol
//! and goes out over it, as it would for anybody.

mod alerts;
mod screen;
mod traffic;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Arg, ArgMatches, Command, value_parser};

use self::alerts::{ALERTS, ALERTS_DEAD};
use self::screen::{Figures, Screen};
use self::traffic::Seen;
use crate::admin::telemetry::ShardTelemetry;
use crate::client::{Client, ClientError};
use crate::config::{LogLevel, Origin};
use crate::daemon::Daemon;
use crate::exit_code::ExitCode;
use crate::nexmark::feed::{partition_count, patiently};
use crate::nexmark::{INPUT_TOPICS, Query};
use crate::runtime::Serving;

/// Name of the command.
pub const COMMAND: &str = "demo";

/// Heading of its own options.
const HEADING: &str = "Demonstration";

/// Where its data go if nobody says otherwise.
const DATA_DIR: &str = "tidemill-demo";

/// The topic of q5.
const HOT_ITEMS: &str = "nexmark-q5";

/// Topics keep an hour: it is traffic of now, and nobody needs it tomorrow.
const TOPIC_CONFIG: [(&str, &str); 1] = [("retention.ms", "3600000")];

/// The command and its options.
pub fn command() -> Command {
    Command::new(COMMAND)
        .about("Shows the node at work on auction traffic, live in the terminal")
        .long_about(
            "Shows the node at work, live in the terminal: auction traffic comes in, the query q5 of \
             Nexmark tells hot items and another topology suspicious bids, exactly once and each \
             after one durable write. Data go to ./tidemill-demo unless --data-dir says otherwise.",
        )
        .arg(
            Arg::new("rate")
                .long("rate")
                .value_name("COUNT")
                .value_parser(value_parser!(u64).range(1..))
                .default_value("5000")
                .help_heading(HEADING)
                .help("Events a second"),
        )
        .arg(
            Arg::new("duration")
                .long("duration")
                .value_name("SECONDS")
                .value_parser(value_parser!(u64).range(1..))
                .help_heading(HEADING)
                .help("Stop after so many seconds [default: at Ctrl-C]"),
        )
}

/// Serves and shows until the node is asked to stop, or the time is over.
pub fn run(daemon: Daemon, arguments: &ArgMatches) -> process::ExitCode {
    let rate = arguments.get_one::<u64>("rate").copied().unwrap_or(1);
    let duration =
        arguments.get_one::<u64>("duration").map(|seconds| Duration::from_secs(*seconds));
    let (mut data_dir, mut count) = (PathBuf::new(), 1);
    let mut kafka = None;
    let daemon = daemon.adjust(|config| {
        if *config.origin("data_dir") == Origin::Default {
            config.data_dir = DATA_DIR.into();
        }
        // Lines of the log would come between those of the block.
        if *config.origin("log_level") == Origin::Default {
            config.log_level = LogLevel("warn".to_owned());
        }
        data_dir.clone_from(&config.data_dir);
        count = partition_count(config);
    });
    let queries = Query::chosen(["q5"]);
    let daemon =
        queries.iter().fold(daemon, |daemon, query| daemon.topology(query.topology(count)));
    let mut showing = None;
    let code = daemon.topology(alerts::topology(count)).run_beside(|serving| {
        kafka = Some(serving.kafka());
        showing = Some(thread::spawn(move || show(&serving, rate, duration)));
    });
    // Without it the node did not start, and has said why.
    let (Some(showing), Some(kafka)) = (showing, kafka) else { return code };
    if !matches!(showing.join(), Ok(Ok(()))) {
        return ExitCode::Other.into();
    }
    // A reader that went away (`| head`) is no failure.
    let _ = writeln!(
        io::stdout(),
        "The results are in {0}; to read them:\n\n  \
         tidemill --data-dir {0} --kafka-listen {kafka}\n  \
         kcat -b {kafka} -C -t {HOT_ITEMS} -o beginning -e\n  \
         kcat -b {kafka} -C -t {ALERTS} -o beginning -e",
        data_dir.display()
    );
    code
}

/// What went wrong was told.
#[derive(Debug)]
struct Failed;

/// Makes the topics, lets traffic in, and shows a second after the other.
fn show(serving: &Serving, rate: u64, duration: Option<Duration>) -> Result<(), Failed> {
    let has_failed = AtomicBool::new(false);
    let tell = |result: Result<(), ClientError>| match result {
        // A node that stops breaks its connections.
        Err(error) if !serving.is_stopping() => {
            tracing::error!("demo: {error}");
            has_failed.store(true, Ordering::Relaxed);
            serving.stop();
        }
        Ok(()) | Err(_) => {}
    };
    let mut client = Client::new(serving.kafka());
    let set_up = configure_topics(serving, &mut client)
        .and_then(|()| traffic::results(serving, &mut client, [HOT_ITEMS, ALERTS]));
    let seen = Seen::new();
    match set_up {
        Ok(results) => thread::scope(|scope| {
            let (seen, tell) = (&seen, &tell);
            for (leader, results) in results {
                scope.spawn(move || tell(traffic::read(serving, seen, leader, &results)));
            }
            scope.spawn(move || tell(traffic::write(serving, seen, rate)));
            refresh(serving, seen, rate, duration);
        }),
        Err(error) => tell(Err(error)),
    }
    if has_failed.load(Ordering::Relaxed) { Err(Failed) } else { Ok(()) }
}

fn configure_topics(serving: &Serving, client: &mut Client) -> Result<(), ClientError> {
    let dead = Query::chosen(["q5"]).into_iter().map(Query::dead_letter);
    let outputs = [HOT_ITEMS, ALERTS, ALERTS_DEAD].map(str::to_owned).into_iter().chain(dead);
    for topic in INPUT_TOPICS.map(str::to_owned).into_iter().chain(outputs) {
        patiently(serving, || client.configure(&topic, &TOPIC_CONFIG))?;
    }
    Ok(())
}

/// Writes the figures of each second until the node stops, or is to.
fn refresh(serving: &Serving, seen: &Seen, rate: u64, duration: Option<Duration>) {
    const SECOND: Duration = Duration::from_secs(1);
    let head = format!(
        "Tidemill demo: {rate} events a second, {} shards, all durable when answered",
        serving.shard_count()
    );
    let tail =
        format!("  Read along: kcat -b {} -C -t {ALERTS} -o end\n  Ctrl-C stops.", serving.kafka());
    let mut screen = Screen::new(io::stdout().is_terminal(), head, tail);
    let started = Instant::now();
    let mut next = started + SECOND;
    let (mut written, mut read, mut syncs) = (0, 0, syncs(serving));
    while !serving.pause(next.saturating_duration_since(Instant::now())) {
        next += SECOND;
        let now = [
            seen.written.load(Ordering::Relaxed),
            seen.read.load(Ordering::Relaxed),
            self::syncs(serving),
        ];
        let text = screen.show(Figures {
            written: now[0] - written,
            read: now[1] - read,
            total: now[0],
            latencies_us: seen.take_latencies(),
            state: shards(serving, |shard| shard.state.value()),
            syncs: now[2] - syncs,
            hottest: seen.hottest(),
            alert: seen.alert(),
        });
        [written, read, syncs] = now;
        // Nobody may look any more (`| head`): the node goes on until it is stopped.
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        drop(stdout);
        if duration.is_some_and(|duration| started.elapsed() >= duration) {
            serving.stop();
            return;
        }
    }
}

/// Durable writes of all shards since the start.
fn syncs(serving: &Serving) -> u64 {
    shards(serving, |shard| shard.frames.count() + shard.idle_frames.count())
}

/// The sum of a figure over all shards.
fn shards(serving: &Serving, figure: impl Fn(&ShardTelemetry) -> u64) -> u64 {
    (0..serving.shard_count()).map(|index| figure(serving.telemetry().shard(index))).sum()
}
