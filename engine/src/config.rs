//! Every setting and limit of a node, each with its reason.
//!
//! One table makes all of it: the struct, the flags, the `TIDEMILL_*` variables, the keys of the
//! file, the commented default file, `config show` and the configuration hash. So they cannot
//! drift apart, and a new setting is one entry in the table.
//!
//! A flag wins over a variable, a variable over the file, the file over the default, and every
//! value remembers where it came from. Whatever is wrong is said with the key, the place, what is
//! the matter and what to type; all faults are reported at once.
//!
//! Limits that nobody may change (block and frame sizes) are in the log's `limits`.

mod file;
mod flags;
mod setting;
mod value;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgMatches, Command};
use tidemill_wal::limits::{BLOCK_SIZE, FRAME_SIZE_MAX};

pub use self::flags::VERIFY_REPLAY_FLAG;
pub use self::setting::{ENVIRONMENT_PREFIX, Origin, Problem, Setting};
use self::setting::{nearest, settings};
use self::value::Value;
pub use self::value::{
    Advertise, Advertised, LogFormat, LogLevel, Rate, SHARD_COUNT_MAX, ShardCount, Size, SyncChoice,
};
use crate::exit_code::ExitCode;

settings! {
    section "Places" {
        /// Directory of all data; made if it is missing.
        data_dir: PathBuf = "./tidemill-data";
        /// Directory of the write-ahead log, if it is to be on a file system of its own.
        ///
        /// `none` keeps it in the data directory. Both must stay together: neither is of use alone.
        wal_dir: Option<PathBuf> = "none";
        /// Number of shards of a new data directory.
        ///
        /// `auto` is one for each core that the process may use. A directory keeps its number.
        shards: ShardCount = "auto";
    }

    section "Listeners" {
        /// Address for Kafka clients.
        kafka_listen: SocketAddr = "127.0.0.1:9092";
        /// Host, and port if it differs, that clients are told to connect to.
        ///
        /// `none` tells them the listening address. It must be set when that is all addresses
        /// (0.0.0.0), or when a proxy, a port mapping or address translation lies between. The
        /// port is that of shard 0; with `advertise = "shards"` shard i has that plus i.
        kafka_advertise_address: Option<Advertised> = "none";
        /// Whether clients see one broker (`node`) or one for each shard (`shards`).
        ///
        /// With `shards`, shard i listens on the Kafka port plus i, and clients reach the core
        /// that owns a partition without a hop. With `node` there is one port for all, which is
        /// simpler to pass through a proxy or a port mapping, and requests hop between cores.
        advertise: Advertise = "shards";
        /// Address for health checks and metrics, or `off`.
        admin_listen: Option<SocketAddr> = "127.0.0.1:9644";
        /// Allows listening beyond loopback.
        ///
        /// There is no authentication and no encryption yet: whoever reaches a port may read,
        /// write and delete everything. Set it only where the network keeps others out.
        trust_network: bool = "false";
        /// Most open Kafka connections of the node; more are refused.
        ///
        /// Each costs a descriptor and a few KiB; the limit on open files must be above it.
        connections_max: u32 = "10000", "1" to "1000000";
        /// A connection without a request for this long is closed.
        ///
        /// Clients close idle connections after nine minutes, so they go first.
        connection_idle_timeout: Duration = "10m", "1s" to "365d";
    }

    section "Durability" {
        /// How a frame is made durable: `dsync` writes with O_DSYNC, `fdatasync` syncs after.
        ///
        /// Both keep the same promise. O_DSYNC saves a system call, and a flush where the drive
        /// can write through its cache.
        sync: SyncChoice = "dsync";
        /// Size of one segment file of the write-ahead log; a multiple of 4KiB.
        ///
        /// Two are written through before a shard listens, so a larger one delays the first start.
        segment_size: Size = "64MiB", "17MiB" to "4GiB";
        /// Most segments of one shard.
        ///
        /// Segment size times this is what a shard keeps in memory for readers at the tail, what
        /// may be unsettled when it is killed, and so what bounds recovery.
        segments_max: u32 = "8", "3" to "1024";
        /// A shard without work for this long writes one small frame that says all before is durable.
        ///
        /// Until then damage to exactly the last frame would look like a write cut by a crash.
        idle_frame_delay: Duration = "20ms", "1ms" to "1m";
    }

    section "Processing" {
        /// How long the operators of a shard's topologies may work in one step.
        ///
        /// Whoever waits for an acknowledgement waits for them: this long, and one call more. What is
        /// left is done while the frame is written, and comes in the next one.
        operator_budget: Duration = "500us", "10us" to "1s";
        /// Memory that the state of one shard may take before its topologies rest.
        ///
        /// Records are taken in all the same, and wait. `/topologies` of the admin port says so.
        state_budget: Size = "4GiB", "1MiB" to "1TiB";
        /// Most blocking calls of operators (`blocking`) that the node makes at once, each on a thread.
        ///
        /// A thread is started when a call finds none free. They give way to the shards.
        blocking_threads: u32 = "16", "1" to "4096";
    }

    section "Settling" {
        /// Fastest that one shard moves its log into extents while the log is less than half full.
        ///
        /// Slow enough to leave the drive to the log. Up to three quarters four times that, and no
        /// limit above.
        settle_rate: Option<Rate> = "64MiB/s", "1MiB/s" to "1TiB/s";
        /// Settling syncs each time it has written this much.
        ///
        /// A flush of the log also drains what the drive has cached for settling: little, this way.
        /// Snapshots and merges do so too. Left out while more than three quarters of the log are used.
        settle_sync_size: Size = "4MiB", "64KiB" to "1GiB";
        /// Delta files of one shard may grow to this, or to the size of its state if that is more,
        /// before a new snapshot is written.
        ///
        /// They are read at each start, so this bounds the time until a node is ready.
        delta_size_max: Size = "256MiB", "1MiB" to "64GiB";
        /// Rate at which extents are read in the background to find damage, or `unlimited`.
        ///
        /// 8MiB/s reads 20 GiB in 43 minutes and costs a drive next to nothing.
        scrub_rate: Option<Rate> = "8MiB/s", "64KiB/s" to "1TiB/s";
        /// Bytes kept allocated on disk for deletions when everything else is full.
        disk_reserve: Size = "16MiB", "1MiB" to "1GiB";
    }

    section "Requests and memory" {
        /// Largest request; a longer one closes its connection.
        request_size_max: Size = "100MiB", "64KiB" to "1GiB";
        /// Largest record batch that a topic takes unless it says otherwise (`max.message.bytes`).
        ///
        /// A batch is never cut, and must fit one frame of 16 MiB.
        batch_size_max: Size = "1MiB", "1KiB" to "15MiB";
        /// Bytes of requests that one shard holds while they arrive and wait.
        ///
        /// When it is used up the shard stops reading from its connections. It holds at least one
        /// request of the largest size.
        receive_budget: Size = "128MiB", "64KiB" to "64GiB";
        /// Bytes of responses that one shard holds for clients that are slow to read.
        send_budget: Size = "64MiB", "1MiB" to "64GiB";
        /// Bytes of older records that one shard reads from extents and holds at a time.
        cold_read_budget: Size = "32MiB", "1MiB" to "64GiB";
        /// How long an idle shard spins before it sleeps.
        ///
        /// Spinning saves microseconds and takes a whole core; with few cores it also takes time
        /// from the kernel's workers that complete writes.
        spin: Duration = "0s", "0s" to "1ms";
    }

    section "Topics" {
        /// Whether a topic is made when a client first asks for it.
        auto_create: bool = "true";
        /// Partitions of a topic that does not say how many; 0 is one for each shard.
        default_partitions: u32 = "0", "0" to "10000";
        /// How long a topic keeps records unless it says otherwise (`retention.ms`), or `unlimited`.
        default_retention: Option<Duration> = "7d", "1s" to "36500d";
        /// How many bytes a partition keeps unless its topic says otherwise (`retention.bytes`).
        default_retention_size: Option<Size> = "unlimited", "1B" to "1048576TiB";
        /// Most topics of the node.
        ///
        /// Every shard knows all topics, and a client that asks for all gets them in one response.
        topics_max: u32 = "5000", "1" to "1000000";
        /// Most partitions of the node.
        ///
        /// Each costs about a KiB of memory, and a share of every settling round.
        partitions_max: u32 = "20000", "1" to "1000000";
        /// An idempotent producer that was silent for this long is forgotten.
        producer_expiry: Duration = "1d", "1m" to "36500d";
    }

    section "Consumer groups" {
        /// Shortest session timeout that a member may ask for.
        ///
        /// A shorter one would end sessions over a pause of the client's garbage collector.
        group_session_timeout_min: Duration = "6s", "1ms" to "1d";
        /// Longest session timeout that a member may ask for.
        group_session_timeout_max: Duration = "30m", "1ms" to "1d";
        /// Most members of one group.
        ///
        /// All of them rejoin at each rebalance, and the leader gets everybody's subscription.
        group_size_max: u32 = "1000", "1" to "100000";
        /// Most groups of one shard.
        groups_max: u32 = "10000", "1" to "1000000";
        /// An empty group waits this long for more members before its first assignment.
        ///
        /// Longer saves rebalances when many members start together, and delays the first record.
        group_initial_rebalance_delay: Duration = "200ms", "0s" to "5m";
        /// Committed offsets of a group without members are forgotten after this.
        offsets_retention: Duration = "7d", "1m" to "36500d";
    }

    section "Log" {
        /// Log lines for people (`text`) or as JSON objects (`json`); both go to standard error.
        log_format: LogFormat = "text";
        /// Which log lines: a level, or directives for single modules.
        log_level: LogLevel = "info";
    }
}

/// The largest that `batch_size_max`, and a topic's `max.message.bytes`, may be: a batch is never
/// cut, and one frame must hold it with its headers.
pub const BATCH_SIZE_LIMIT: u32 = 15 << 20;

const _: () = assert!((BATCH_SIZE_LIMIT as usize) < FRAME_SIZE_MAX - BLOCK_SIZE);

/// What kind of type a setting has, apart from its text form.
trait MaybeAbsent {
    const ABSENT_WORD: Option<&'static str> = None;
    const IS_SWITCH: bool = false;
}

impl<T: Value> MaybeAbsent for Option<T> {
    const ABSENT_WORD: Option<&'static str> = Some(T::ABSENT);
}

impl MaybeAbsent for bool {
    const IS_SWITCH: bool = true;
}

macro_rules! always_present {
    ($($type:ty)+) => { $(impl MaybeAbsent for $type {})+ };
}

always_present! {
    Advertise Duration LogFormat LogLevel PathBuf ShardCount Size SocketAddr SyncChoice u32
}

impl Setting {
    /// What to type: the form, the word for "not set" and the range.
    pub fn advice(&self) -> String {
        let mut advice = self.form.to_owned();
        if let Some((low, high)) = self.range {
            advice = format!("{advice}, from {low} to {high}");
        }
        if let Some(word) = self.absent {
            advice = format!("{advice}; or {word}");
        }
        advice
    }
}

/// Reads a value; an error is a clause about it, empty where the form to type says it all.
fn parse_within<T: Value>(text: &str, range: Option<(&str, &str)>) -> Result<T, &'static str> {
    let value = T::parse(text).ok_or("")?;
    if let Some((low, high)) = range {
        let bound = |text| T::parse(text).expect("a test parses every bound");
        if !value.is_within(&bound(low), &bound(high)) {
            return Err(", which is out of range");
        }
    }
    Ok(value)
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Action {
    /// Run the node.
    Serve(Config),
    /// Run topologies once more over what a stopped node recorded.
    VerifyReplay(Config),
    /// Print every value with its origin.
    Show(Config),
    /// Say that the configuration is good.
    Check(Config),
    /// Print the commented default file.
    PrintDefault,
}

/// A command of the program that brings the node along.
#[derive(Debug)]
pub struct OwnCommand {
    /// Its name.
    pub name: String,
    /// What it was given.
    pub arguments: ArgMatches,
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum LoadError {
    /// The command line was not understood, or asked for help or the version.
    Usage(clap::Error),
    /// Values that cannot be served.
    Bad(Vec<Problem>),
}

impl LoadError {
    /// How the process ends.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(error) if error.exit_code() == 0 => ExitCode::Success,
            Self::Usage(_) => ExitCode::Configuration,
            Self::Bad(problems) if problems.iter().all(|problem| problem.is_untrusted_network) => {
                ExitCode::NetworkNotTrusted
            }
            Self::Bad(_) => ExitCode::Configuration,
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(error) => write!(f, "{error}"),
            Self::Bad(problems) => {
                for (index, problem) in problems.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "\n" };
                    write!(f, "{separator}{problem}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for LoadError {}

/// The file that is read when none is named.
const FILE_DEFAULT: &str = "tidemill.toml";

/// Largest configuration file: room for every comment one could want, and no way to fill memory.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// Reads a configuration file.
pub fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_SIZE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_SIZE_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1MiB"));
    }
    Ok(text)
}

impl Action {
    /// Works out what to do from the three sources; `read` is [`read_file`] outside of tests.
    pub fn from_sources(
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        read: impl FnOnce(&Path) -> io::Result<String>,
    ) -> Result<Self, LoadError> {
        Ok(Self::with_commands([], arguments, environment, read)?.0)
    }

    /// The same for a program that has commands of its own, which take every flag of the node beside
    /// theirs. If one of these was asked for, it comes with its arguments, and the action is to serve.
    pub fn with_commands(
        commands: impl IntoIterator<Item = Command>,
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        read: impl FnOnce(&Path) -> io::Result<String>,
    ) -> Result<(Self, Option<OwnCommand>), LoadError> {
        let commands: Vec<Command> = commands.into_iter().collect();
        let names: Vec<String> =
            commands.iter().map(|command| command.get_name().to_owned()).collect();
        let matches = flags::command()
            .subcommands(commands)
            .try_get_matches_from(arguments)
            .map_err(LoadError::Usage)?;
        let mut own = None;
        let make = match matches.subcommand() {
            Some((name, arguments)) if names.iter().any(|own| own == name) => {
                own = Some(OwnCommand { name: name.to_owned(), arguments: arguments.clone() });
                Self::Serve
            }
            None | Some(("serve", _)) => Self::Serve,
            Some(("config", matches)) => match matches.subcommand_name() {
                Some("show") => Self::Show,
                Some("check") => Self::Check,
                Some("default") => return Ok((Self::PrintDefault, None)),
                other => unreachable!("clap lets no {other:?} through"),
            },
            Some((other, _)) => unreachable!("clap lets no {other} through"),
        };

        // Flags are global, and clap hands them down to the innermost command.
        let mut innermost = &matches;
        while let Some((_, inner)) = innermost.subcommand() {
            innermost = inner;
        }

        let is_check = innermost.get_flag(VERIFY_REPLAY_FLAG);
        let mut problems = Vec::new();
        let variables = own_variables(environment, &mut problems);
        let mut config = Config::default();
        let named_file = innermost
            .get_one::<String>(flags::CONFIG_FLAG)
            .cloned()
            .or_else(|| variables.file.clone());
        config.apply_file(named_file, read, &mut problems);
        for (setting, text) in &variables.values {
            config.apply(setting, text, Origin::Environment, &mut problems);
        }
        for (setting, text) in flags::given(innermost) {
            config.apply(setting, text, Origin::Flag, &mut problems);
        }
        // Values that could not be read would only raise a second, wrong complaint here.
        if problems.is_empty() {
            config.check(&mut problems);
        }
        if !problems.is_empty() {
            return Err(LoadError::Bad(problems));
        }
        let action = match make(config) {
            Self::Serve(config) if is_check => Self::VerifyReplay(config),
            action => action,
        };
        Ok((action, own))
    }
}

#[derive(Default)]
struct Variables {
    file: Option<String>,
    values: Vec<(&'static Setting, String)>,
}

/// Picks our variables out of the environment.
fn own_variables(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    problems: &mut Vec<Problem>,
) -> Variables {
    let mut ours: Vec<(String, OsString)> = environment
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX) && !is_service_link(name))
        .collect();
    ours.sort();

    let mut variables = Variables::default();
    for (name, value) in ours {
        let mut fault = |message: String| {
            let place = format!("environment variable {name}");
            problems.push(Problem { place, message, is_untrusted_network: false });
        };
        let Ok(value) = value.into_string() else {
            fault("the value is not UTF-8".to_owned());
            continue;
        };
        let key = name[ENVIRONMENT_PREFIX.len()..].to_ascii_lowercase();
        if key == flags::CONFIG_FLAG {
            variables.file = Some(value);
        } else if let Some(setting) = SETTINGS.iter().find(|setting| setting.variable() == name) {
            variables.values.push((setting, value));
        } else {
            let meant = nearest(&key, SETTINGS.iter().map(|setting| setting.key));
            let setting = SETTINGS.iter().find(|setting| Some(setting.key) == meant);
            fault(match setting {
                Some(setting) => {
                    format!("this is not a setting: did you mean {}?", setting.variable())
                }
                None => {
                    "this is not a setting: `tidemill config default` prints them all".to_owned()
                }
            });
        }
    }
    variables
}

/// Kubernetes gives a pod variables for every service beside it, so a service named `tidemill`
/// makes these; they are not meant for us.
fn is_service_link(name: &str) -> bool {
    let rest = &name[ENVIRONMENT_PREFIX.len()..];
    rest == "PORT" || rest.starts_with("PORT_") || rest.starts_with("SERVICE_")
}

impl Config {
    fn apply_file(
        &mut self,
        named: Option<String>,
        read: impl FnOnce(&Path) -> io::Result<String>,
        problems: &mut Vec<Problem>,
    ) {
        let is_named = named.is_some();
        let path: Arc<Path> = Path::new(named.as_deref().unwrap_or(FILE_DEFAULT)).into();
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if !is_named && error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                problems.push(Problem {
                    place: path.display().to_string(),
                    message: format!("the configuration file cannot be read: {error}"),
                    is_untrusted_network: false,
                });
                return;
            }
        };
        for entry in file::parse(&path, &text) {
            match entry {
                Ok(entry) => {
                    let origin = Origin::File { path: Arc::clone(&path), line: entry.line };
                    self.apply(entry.setting, &entry.text, origin, problems);
                }
                Err(problem) => problems.push(problem),
            }
        }
    }

    fn apply(
        &mut self,
        setting: &'static Setting,
        text: &str,
        origin: Origin,
        problems: &mut Vec<Problem>,
    ) {
        match self.assign(setting.key, text) {
            Ok(()) => self.origins[index_of(setting.key)] = origin,
            Err(why) => problems.push(Problem {
                place: origin.describe(setting),
                message: format!(
                    "`{}` cannot be {text:?}{why}: write {}",
                    setting.key,
                    setting.advice()
                ),
                is_untrusted_network: false,
            }),
        }
    }

    /// Where the value of a setting came from.
    pub fn origin(&self, key: &str) -> &Origin {
        &self.origins[index_of(key)]
    }

    /// What is wrong between settings that are each well-formed.
    fn check(&self, problems: &mut Vec<Problem>) {
        let mut fault = |key: &'static str, message: String| {
            let setting = &SETTINGS[index_of(key)];
            problems.push(Problem {
                place: self.origin(key).describe(setting),
                message: format!("`{key}` {message}"),
                is_untrusted_network: false,
            });
        };

        if !self.segment_size.bytes().is_multiple_of(BLOCK_SIZE as u64) {
            let size = self.segment_size;
            fault("segment_size", format!("cannot be {size}: it must be a multiple of 4KiB"));
        }
        if self.receive_budget < self.request_size_max {
            fault(
                "receive_budget",
                format!(
                    "cannot be {}: one request may have {} (`request_size_max`); raise the one or \
                     lower the other",
                    self.receive_budget, self.request_size_max
                ),
            );
        }
        if self.batch_size_max >= self.request_size_max {
            fault(
                "batch_size_max",
                format!(
                    "cannot be {}: a batch must fit a request of {} (`request_size_max`)",
                    self.batch_size_max, self.request_size_max
                ),
            );
        }
        if self.default_partitions > self.partitions_max {
            fault(
                "default_partitions",
                format!(
                    "cannot be {}: the node has at most {} (`partitions_max`)",
                    self.default_partitions, self.partitions_max
                ),
            );
        }
        if self.group_session_timeout_min > self.group_session_timeout_max {
            fault(
                "group_session_timeout_min",
                format!(
                    "cannot be {}: `group_session_timeout_max` is {}",
                    self.group_session_timeout_min.print(),
                    self.group_session_timeout_max.print()
                ),
            );
        }
        // Without trust the complaint is about that, and only about that.
        if self.trust_network
            && self.kafka_listen.ip().is_unspecified()
            && self.kafka_advertise_address.is_none()
        {
            fault(
                "kafka_advertise_address",
                format!(
                    "must be set: the node listens on all addresses ({}), and clients must be \
                     told one of them; write {}",
                    self.kafka_listen.ip(),
                    <Advertised as Value>::FORM
                ),
            );
        }
        self.check_ports(&mut fault);
        self.check_trust(problems);
    }

    fn check_ports(&self, fault: &mut impl FnMut(&'static str, String)) {
        let first = self.kafka_listen.port();
        let count = match self.advertise {
            Advertise::Node => 1,
            Advertise::Shards => self.shards.resolve(),
        };
        let advertised = self.kafka_advertise_address.as_ref().and_then(|address| address.port);
        if advertised.is_some_and(|port| port.checked_add(count - 1).is_none()) {
            fault(
                "kafka_advertise_address",
                format!(
                    "cannot have that port: with `advertise = \"shards\"` the {count} shards are \
                     told on consecutive ports, and the last is 65535"
                ),
            );
        }
        let Some(last) = first.checked_add(count - 1) else {
            fault(
                "kafka_listen",
                format!(
                    "cannot use port {first}: with `advertise = \"shards\"` the {count} shards \
                     listen on consecutive ports, and the last is 65535"
                ),
            );
            return;
        };
        if self.advertise == Advertise::Shards && first == 0 {
            fault(
                "kafka_listen",
                "cannot use port 0 with `advertise = \"shards\"`: write the port of shard 0"
                    .to_owned(),
            );
        }
        let Some(admin) = self.admin_listen else { return };
        let is_same_host = admin.ip() == self.kafka_listen.ip()
            || admin.ip().is_unspecified()
            || self.kafka_listen.ip().is_unspecified();
        if is_same_host && first != 0 && (first..=last).contains(&admin.port()) {
            fault(
                "admin_listen",
                format!(
                    "cannot use port {}: Kafka clients have {}",
                    admin.port(),
                    if first == last {
                        format!("port {first}")
                    } else {
                        format!("{first} to {last}")
                    }
                ),
            );
        }
    }

    fn check_trust(&self, problems: &mut Vec<Problem>) {
        if self.trust_network {
            return;
        }
        let listeners =
            [("kafka_listen", Some(self.kafka_listen)), ("admin_listen", self.admin_listen)];
        for (key, address) in listeners {
            let Some(address) = address.filter(|address| !address.ip().is_loopback()) else {
                continue;
            };
            problems.push(Problem {
                place: self.origin(key).describe(&SETTINGS[index_of(key)]),
                message: format!(
                    "`{key}` is {address}, which others can reach, and there is no authentication \
                     yet: if the network keeps strangers out, set `trust_network = true` \
                     (--trust-network); otherwise listen on 127.0.0.1:{}",
                    address.port()
                ),
                is_untrusted_network: true,
            });
        }
    }

    /// Bytes that the node may hold in memory for its data, with this many shards: the tails,
    /// two frames each (one filling, one in flight), and the three budgets.
    pub fn memory_budget(&self, shard_count: u16) -> Size {
        let tail = self.segment_size.bytes() * u64::from(self.segments_max);
        // The receive budget bounds what arrives and once more what waits to be appended. One
        // request at a time may be received beyond it, and a client is cut off for
        // not reading at twice the send budget.
        let budgets = 2 * self.receive_budget.bytes()
            + self.request_size_max.bytes()
            + 2 * self.send_budget.bytes()
            + self.cold_read_budget.bytes();
        Size((tail + 2 * FRAME_SIZE_MAX as u64 + budgets) * u64::from(shard_count))
    }

    /// A number that differs, in all likelihood, when any value differs; origins do not count.
    pub fn hash(&self) -> u32 {
        SETTINGS.iter().fold(0, |hash, setting| {
            let line = format!("{} = {}\n", setting.key, self.print(setting.key));
            crc32c::crc32c_append(hash, line.as_bytes())
        })
    }

    /// Every setting with its value, in the order of the table.
    pub fn values(&self) -> Vec<(String, String)> {
        let value = |setting: &Setting| (setting.key.to_owned(), self.print(setting.key));
        SETTINGS.iter().map(value).collect()
    }

    /// Every value with its origin, as a file that makes the same configuration.
    pub fn show(&self) -> String {
        let lines: Vec<(String, String)> = SETTINGS
            .iter()
            .map(|setting| {
                let origin = self.origin(setting.key).describe(setting);
                (assignment(setting.key, &self.print(setting.key)), origin)
            })
            .collect();
        let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0);
        lines.iter().map(|(line, origin)| format!("{line:width$}  # {origin}\n")).collect()
    }

    /// The commented file with every setting at its default.
    pub fn default_file() -> String {
        let mut text = String::from(
            "# Tidemill's configuration: every setting, at its default.\n\
             #\n\
             # Each is also a flag (--segment-size) and a variable (TIDEMILL_SEGMENT_SIZE). A flag\n\
             # wins over a variable, a variable over this file. `tidemill config check` says\n\
             # whether all is well, `tidemill config show` which value came from where.\n",
        );
        let mut section = "";
        for setting in SETTINGS {
            if setting.section != section {
                section = setting.section;
                text.push_str(&format!("\n## {section}\n"));
            }
            text.push('\n');
            for line in setting.doc {
                text.push_str(format!("# {}", line.trim()).trim_end());
                text.push('\n');
            }
            text.push_str(&format!("#{}\n", assignment(setting.key, setting.default)));
        }
        text
    }
}

fn index_of(key: &str) -> usize {
    SETTINGS.iter().position(|setting| setting.key == key).expect("a key of the table")
}

/// One line of TOML; numbers and booleans go without quotes.
fn assignment(key: &str, text: &str) -> String {
    let is_bare = text.parse::<i64>().is_ok_and(|number| number.to_string() == text)
        || text.parse::<bool>().is_ok();
    if is_bare {
        format!("{key} = {text}")
    } else {
        format!("{key} = {}", toml::Value::String(text.to_owned()))
    }
}
