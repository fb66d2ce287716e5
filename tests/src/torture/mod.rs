//! The live torture: the real node under real clients, while everything around it goes wrong.
//!
//! A run is rounds. In each, libraries and producers of our own write to topics of the round, and
//! libraries read in groups, while faults come and go as the seed drew them. When the faults are
//! over, all clients must finish. Then, in a third of the rounds after a stop and in a third after
//! a kill, a fresh client reads everything back, and it is compared with all that was ever promised
//! ([`ledger`]); `tidemill-dump --verify` has nothing to say; and what the round before wrote is
//! read once more and deleted.
//!
//! The schedule is the seed's; what happens under it is the machine's. So a seed repeats the
//! circumstances of a failure, not the failure.

pub mod committer;
pub mod crowd;
pub mod ledger;
pub mod plan;
pub mod read_back;
mod round;
pub mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use self::ledger::Ledger;
use self::plan::{Deck, Fault, Plan, Turn};
use self::read_back::{delete_topic, read_back, verify};
use crate::clients::Client;
use crate::daemon::{Daemon, Options as DaemonOptions, scratch};
use crate::note;
use crate::peer::Peer;
use crate::sim::random::Random;
use crate::volume::{Throttle, Volume, own_mounts};

/// Partitions of every topic.
const PARTITIONS: u32 = 4;
/// Room for two rounds' topics, twice over, so that the disk is full only when it shall be.
const VOLUME_SIZE: u64 = 1 << 30;
/// Connections that the node takes: fewer than a flood has.
const CONNECTIONS_MAX: u32 = 300;
/// Lines of the log that a failure shows.
const LOG_LINES_MAX: usize = 80;

/// What to do, and for how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the schedule comes from.
    pub seed: u64,
    /// Ends after the round in which this is over.
    pub lasts: Option<Duration>,
    /// Ends after so many rounds.
    pub rounds: Option<u64>,
    /// What may go wrong.
    pub faults: Vec<Fault>,
    /// Libraries that take turns.
    pub clients: Vec<Client>,
    /// Where to make the data, instead of in the target directory.
    pub data_dir: Option<PathBuf>,
}

/// What happened.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Rounds that were done.
    pub rounds: u64,
    /// How often each fault was there.
    pub faults: BTreeMap<Fault, u64>,
    /// Faults that this machine cannot have, and why.
    pub skipped: BTreeMap<Fault, String>,
    /// Records that were acknowledged.
    pub acknowledged: u64,
    /// Records that fresh clients read back and compared.
    pub read_back: u64,
    /// Commits that were confirmed and are not lost.
    pub commits: u64,
    /// Connections of those that nobody wants.
    pub crowd: u64,
    /// Clean stops.
    pub stops: u64,
    /// How long each start took until the node was ready.
    pub starts: Vec<Duration>,
    /// Starts that were killed before that.
    pub starts_killed: u64,
    /// The most memory that any process took, in bytes.
    pub memory_peak: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} rounds, faults {:?}", self.rounds, self.faults)?;
        writeln!(
            f,
            "{} records acknowledged, {} read back and compared; {} commits of our own",
            self.acknowledged, self.read_back, self.commits
        )?;
        let slowest = self.starts.iter().max().copied().unwrap_or_default();
        let total: Duration = self.starts.iter().sum();
        writeln!(
            f,
            "{} starts, {:?} on average, {slowest:?} at most; {} more were killed; {} clean stops",
            self.starts.len(),
            total / (self.starts.len().max(1) as u32),
            self.starts_killed,
            self.stops
        )?;
        write!(
            f,
            "{} unwanted connections; {} MiB of memory at most",
            self.crowd,
            self.memory_peak >> 20
        )?;
        for (fault, why) in &self.skipped {
            write!(f, "\nSKIPPED {fault:?}: {why}")?;
        }
        Ok(())
    }
}

/// A promise that was broken, with all that may tell why.
#[derive(Debug)]
pub struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs a torture to its end or its first failure; progress goes to standard output.
pub fn run(options: &Options) -> Result<Report, Failure> {
    let mut torture = Torture::prepare(options);
    let mut deck = Deck::new(options.seed, &torture.faults, &options.clients);
    let begin = Instant::now();
    let is_over = |rounds| {
        options.rounds.is_some_and(|most| rounds >= most)
            || options.lasts.is_some_and(|lasts| begin.elapsed() >= lasts)
    };
    let mut result = torture.start();
    while result.is_ok() && !is_over(torture.report.rounds) {
        let plan = deck.draw();
        println!("round {}: {plan}", torture.report.rounds);
        result = torture.round(&plan);
    }
    match result.and_then(|()| torture.end()) {
        Ok(()) => Ok(torture.report.clone()),
        Err(why) => Err(torture.failure(options.seed, &why)),
    }
}

struct Torture {
    // The daemon's directory is on the volume, and the volume's mount in the directory below: they
    // go in this order.
    daemon: Daemon,
    throttle: Option<Throttle>,
    volume: Option<Volume>,
    _directory: TempDir,
    shards: u16,
    faults: Vec<Fault>,
    ledger: Arc<Mutex<Ledger>>,
    random: Random,
    /// Writers have numbers of their own for a whole run.
    writers: u64,
    /// Deleted lately, and not to come back.
    deleted: Option<String>,
    report: Report,
}

impl Torture {
    fn prepare(options: &Options) -> Torture {
        let mut random = Random::new(!options.seed);
        let directory = tempfile::Builder::new()
            .prefix("torture-")
            .tempdir_in(options.data_dir.clone().unwrap_or_else(scratch))
            .expect("a scratch directory can be made");
        let mut report = Report::default();
        let mut faults = options.faults.clone();
        let mut skip = |fault: Fault, why: &str| {
            if faults.contains(&fault) {
                note::skipped(&format!("torture by {fault:?}"), why);
                report.skipped.insert(fault, why.into());
                faults.retain(|other| *other != fault);
            }
        };
        let at = directory.path().join("volume");
        std::fs::create_dir(&at).expect("a directory of ours");
        let volume = own_mounts().and_then(|()| Volume::mount(&at, directory.path(), VOLUME_SIZE));
        let throttle = match &volume {
            Ok(volume) => Throttle::new(volume),
            Err(why) => Err(why.clone()),
        };
        if let Err(why) = &volume {
            skip(Fault::Full, why);
        }
        if let Err(why) = &throttle {
            skip(Fault::Slow, why);
        }
        let shards = random.between(1, 3) as u16;
        let sync = random.choose(&["dsync", "fdatasync"]);
        let advertise = random.choose(&["node", "shards"]);
        let connections_max = CONNECTIONS_MAX.to_string();
        let arguments = [
            ("--segment-size", "17MiB"),
            ("--segments-max", "3"),
            ("--disk-reserve", "1MiB"),
            ("--connections-max", &connections_max),
            ("--connection-idle-timeout", "20s"),
            ("--sync", sync),
            ("--advertise", advertise),
        ];
        println!("seed {}: {shards} shards, {sync}, advertises {advertise}", options.seed);
        let arguments = arguments.iter().flat_map(|(name, value)| [*name, *value]);
        let daemon = Daemon::prepare(DaemonOptions {
            shards,
            arguments: arguments.map(String::from).collect(),
            scratch: Some(at),
            ..Default::default()
        });
        Torture {
            daemon,
            throttle: throttle.ok(),
            volume: volume.ok(),
            _directory: directory,
            shards,
            faults,
            ledger: Arc::default(),
            random,
            writers: 0,
            deleted: None,
            report,
        }
    }

    /// Starts the node and waits until it is ready.
    fn start(&mut self) -> Result<(), String> {
        let begin = Instant::now();
        self.spawn()?;
        self.daemon.try_wait_ready()?;
        self.report.starts.push(begin.elapsed());
        Ok(())
    }

    fn spawn(&mut self) -> Result<(), String> {
        self.daemon.spawn();
        let Some(throttle) = &self.throttle else { return Ok(()) };
        throttle.take(self.daemon.pid()).map_err(|error| format!("the daemon's limits: {error}"))
    }

    fn kill(&mut self) {
        self.note_memory();
        self.daemon.kill();
    }

    /// SIGTERM, which ends it well.
    fn stop(&mut self) -> Result<(), String> {
        self.note_memory();
        self.report.stops += 1;
        let status = self.daemon.try_terminate()?;
        if status.success() { Ok(()) } else { Err(format!("a clean stop ends with {status}")) }
    }

    fn round(&mut self, plan: &Plan) -> Result<(), String> {
        let before = self.ledger().acknowledged_count();
        let drained = round::run(self, plan)?;
        match plan.turn {
            Turn::None => {}
            Turn::Stop => {
                self.stop()?;
                self.start()?;
            }
            Turn::Kill => {
                self.kill();
                self.start()?;
            }
        }
        let read = self.compare()?;
        self.forget_all_but(&round_topics(self.report.rounds))?;
        self.report.rounds += 1;
        self.report.read_back += read;
        let acknowledged = self.ledger().acknowledged_count();
        self.report.acknowledged = acknowledged;
        println!(
            "  {} acknowledged, {read} read back, {:.1} s of faults and {:.1} s after them, {} \
             starts, the last took {:?}, {} MiB at most",
            self.report.acknowledged - before,
            plan.end().as_secs_f64(),
            drained.as_secs_f64(),
            self.report.starts.len(),
            self.report.starts.last().copied().unwrap_or_default(),
            self.report.memory_peak >> 20,
        );
        Ok(())
    }

    /// Reads everything back with a fresh client, and compares it with what was promised.
    fn compare(&mut self) -> Result<u64, String> {
        let topics: Vec<String> = self.ledger().topics().map(String::from).collect();
        let mut peer = self.peer()?;
        let mut count = 0;
        for topic in &topics {
            let log = read_back(&mut peer, topic, PARTITIONS)?;
            count += log.iter().map(|keys| keys.len() as u64).sum::<u64>();
            let mut ledger = self.ledger();
            ledger.check(topic, &log)?;
            for group in ledger.groups(topic) {
                for (partition, keys) in (0..).zip(&log) {
                    let known = ledger.committed(topic, group, partition);
                    let stored =
                        read_back::committed(&mut peer, group, topic, partition)?.unwrap_or(0);
                    if stored < known || stored > keys.len() as u64 {
                        return Err(format!(
                            "group {group} of {topic}/{partition}: {known} was committed, {stored} \
                             is stored, the log ends at {}",
                            keys.len()
                        ));
                    }
                }
            }
        }
        if let Some(topic) = &self.deleted
            && read_back::exists(&mut peer, topic)?
        {
            return Err(format!("{topic} is back, though its deletion was confirmed"));
        }
        verify(self.daemon.data_dir())?;
        Ok(count)
    }

    /// Deletes what older rounds wrote.
    fn forget_all_but(&mut self, kept: &[String]) -> Result<(), String> {
        let topics: Vec<String> = self.ledger().topics().map(String::from).collect();
        let mut peer = self.peer()?;
        for topic in topics.into_iter().filter(|topic| !kept.contains(topic)) {
            delete_topic(&mut peer, &topic)?;
            self.ledger().forget(&topic);
            self.deleted = Some(topic);
        }
        Ok(())
    }

    /// A clean stop, and a look at what is left.
    fn end(&mut self) -> Result<(), String> {
        self.stop()?;
        verify(self.daemon.data_dir())
    }

    fn peer(&self) -> Result<Peer, String> {
        Peer::try_connect(self.daemon.kafka())
            .map_err(|error| format!("a node that is ready takes no connection: {error}"))
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no panic while it is held")
    }

    fn note_memory(&mut self) {
        let status = format!("/proc/{}/status", self.daemon.pid());
        let status = std::fs::read_to_string(status).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = peak.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        self.report.memory_peak = self.report.memory_peak.max(kibibytes.unwrap_or(0) << 10);
    }

    fn failure(&self, seed: u64, why: &str) -> Failure {
        let mut text = format!("seed {seed}, round {}: {why}\n", self.report.rounds);
        let first = self.daemon.kafka().port();
        let connections = crowd::connections(first..first + self.shards);
        text += "--- connections of the node\n";
        text += &connections.unwrap_or_else(|error| error.to_string());
        text += "--- metrics of the node\n";
        let metrics = self.daemon.get("/metrics").map_or("none".into(), |answer| answer.body);
        for line in metrics.lines().filter(|line| !line.starts_with('#')) {
            text += &format!("{line}\n");
        }
        text += "--- the end of its log\n";
        let log = self.daemon.log();
        for line in &log[log.len().saturating_sub(LOG_LINES_MAX)..] {
            text += &format!("{line}\n");
        }
        Failure(text)
    }
}

/// Topics of a round: of the libraries, and of our own producers.
fn round_topics(round: u64) -> [String; 2] {
    [format!("live-{round}"), format!("raw-{round}")]
}

fn broken(what: &str) -> impl Fn(io::Error) -> String {
    let what = what.to_owned();
    move |error| format!("{what}: {error}")
}
