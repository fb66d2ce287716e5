//! What `bench/setup-peers` has installed, and how each system is configured.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Process, Speaks};
use crate::client::Client;
use crate::node::{beside_us, free_ports};

/// Heap of Kafka's JVM: four times what its own scripts give it.
const KAFKA_HEAP: [&str; 2] = ["-Xms4g", "-Xmx4g"];

/// The collector as Kafka's own scripts set it, with its heap touched before it starts.
const KAFKA_COLLECTOR: [&str; 5] = [
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-XX:+AlwaysPreTouch",
];

/// Any cluster has one.
const KAFKA_CLUSTER: &str = "AAAAAAAAAAAAAAAAAAAAAQ";

/// A system that can be started here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// Apache Kafka, flushing each message to the disk before it acknowledges.
    KafkaFlush,
    /// Apache Kafka with its defaults: it acknowledges what is in memory.
    Kafka,
    /// Redis Streams, with its log synced before it answers.
    Redis,
    /// NATS JetStream, with each message synced.
    Nats,
    /// etcd.
    Etcd,
}

/// The directory of what is installed.
#[derive(Debug, Clone)]
pub struct Installed(PathBuf);

/// A peer that runs.
pub struct Running {
    /// The process; it ends with this.
    pub process: Process,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Version and settings.
    pub configuration: BTreeMap<String, String>,
}

impl Peer {
    /// As it is called in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::KafkaFlush => "kafka-flush",
            Self::Kafka => "kafka",
            Self::Redis => "redis",
            Self::Nats => "nats",
            Self::Etcd => "etcd",
        }
    }

    /// Its protocol.
    pub fn speaks(self) -> Speaks {
        match self {
            Self::KafkaFlush | Self::Kafka => Speaks::Kafka,
            Self::Redis => Speaks::Redis,
            Self::Nats => Speaks::Nats,
            Self::Etcd => Speaks::Etcd,
        }
    }

    /// What an acknowledgement of it means.
    pub fn promise(self) -> &'static str {
        match self {
            Self::KafkaFlush => "log.flush.interval.messages=1",
            Self::Kafka => "none: acknowledged from memory",
            Self::Redis => "appendfsync always",
            Self::Nats => "sync_interval always",
            Self::Etcd => "fsync of the raft log",
        }
    }
}

impl Installed {
    /// Below a directory, or where `bench/setup-peers` puts it.
    pub fn at(directory: Option<&Path>) -> Result<Self, String> {
        if let Some(directory) = directory {
            return Ok(Self(directory.to_owned()));
        }
        // This program is target/PROFILE/tidemill-bench.
        let us = beside_us("peers")?;
        let target = us.parent().and_then(Path::parent).ok_or("this program is in no target")?;
        Ok(Self(target.join("peers")))
    }

    /// A program that it holds.
    pub fn program(&self, name: &str) -> PathBuf {
        self.0.join("bin").join(name)
    }

    /// A directory that it holds.
    pub fn directory(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Why a peer cannot be started, if it cannot.
    pub fn check(&self, peer: Peer) -> Result<(), String> {
        let needs = match peer {
            Peer::KafkaFlush | Peer::Kafka => self.0.join("kafka"),
            Peer::Redis => self.program("redis-server"),
            Peer::Nats => self.program("nats-server"),
            Peer::Etcd => self.program("etcd"),
        };
        if needs.exists() {
            Ok(())
        } else {
            Err(format!("{} is missing: run bench/setup-peers", needs.display()))
        }
    }

    /// Starts a peer on an empty directory, which goes when it ends, and waits until it listens.
    pub fn start(&self, peer: Peer, directory: &Path) -> Result<Running, String> {
        self.check(peer)?;
        let port = free_ports(2)?;
        let mut running = match peer {
            Peer::KafkaFlush | Peer::Kafka => self.kafka(peer, directory, port),
            Peer::Redis => self.redis(directory, port),
            Peer::Nats => self.nats(directory, port),
            Peer::Etcd => self.etcd(directory, port),
        }?;
        running.process.wait_listening(running.address)?;
        if peer.speaks() == Speaks::Kafka {
            let address = running.address;
            running.process.wait_until(|| kafka_is_ready(address))?;
        }
        Ok(running)
    }

    fn kafka(&self, peer: Peer, directory: &Path, port: u16) -> Result<Running, String> {
        let controller = port + 1;
        let data = directory.join("data");
        let mut settings = vec![
            ("process.roles", "broker,controller".to_owned()),
            ("node.id", "1".to_owned()),
            ("controller.quorum.voters", format!("1@127.0.0.1:{controller}")),
            (
                "listeners",
                format!("PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}"),
            ),
            ("advertised.listeners", format!("PLAINTEXT://127.0.0.1:{port}")),
            ("controller.listener.names", "CONTROLLER".to_owned()),
            (
                "listener.security.protocol.map",
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned(),
            ),
            ("log.dirs", data.display().to_string()),
            ("offsets.topic.replication.factor", "1".to_owned()),
            ("transaction.state.log.replication.factor", "1".to_owned()),
            ("transaction.state.log.min.isr", "1".to_owned()),
            ("share.coordinator.state.topic.replication.factor", "1".to_owned()),
            ("group.initial.rebalance.delay.ms", "0".to_owned()),
            ("auto.create.topics.enable", "false".to_owned()),
        ];
        if peer == Peer::KafkaFlush {
            settings.push(("log.flush.interval.messages", "1".to_owned()));
        }
        let java = || {
            let mut java = Command::new("java");
            java.args(KAFKA_HEAP).args(KAFKA_COLLECTOR);
            java.args(["-server", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"]);
            java.arg(self.0.join("kafka/*"));
            java
        };
        let file = write_settings(directory, "server.properties", &settings)?;
        let mut format = java();
        format.args(["kafka.tools.StorageTool", "format", "-t", KAFKA_CLUSTER, "-c"]).arg(&file);
        run_to_end("kafka's storage tool", format)?;
        let mut server = java();
        server.arg("kafka.Kafka").arg(&file);
        let jvm = KAFKA_HEAP.iter().chain(&KAFKA_COLLECTOR).copied().collect::<Vec<_>>();
        let mut configuration = to_configuration(&settings);
        configuration.insert("jvm".to_owned(), jvm.join(" "));
        configuration.insert("version".to_owned(), self.kafka_version());
        started(peer, server, directory, port, configuration)
    }

    /// As the name of its jar says, and the JVM's.
    fn kafka_version(&self) -> String {
        let names = fs::read_dir(self.0.join("kafka")).into_iter().flatten().flatten();
        let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let version = names.find_map(|name| {
            Some(name.strip_prefix("kafka-server-4")?.strip_suffix(".jar")?.to_owned())
        });
        let java = version_of(Command::new("java").arg("-version"));
        format!("4{}, {java}", version.unwrap_or_default())
    }

    fn redis(&self, directory: &Path, port: u16) -> Result<Running, String> {
        let settings = [
            ("appendonly", "yes".to_owned()),
            ("appendfsync", "always".to_owned()),
            ("save", "\"\"".to_owned()),
            // A rewrite in the middle of a run would only cost it time.
            ("auto-aof-rewrite-percentage", "0".to_owned()),
            ("protected-mode", "no".to_owned()),
            ("bind", "127.0.0.1".to_owned()),
            ("port", port.to_string()),
            ("dir", directory.display().to_string()),
        ];
        let text: Vec<String> = settings.iter().map(|(name, it)| format!("{name} {it}")).collect();
        let file = write(directory, "redis.conf", &text.join("\n"))?;
        let mut server = Command::new(self.program("redis-server"));
        server.arg(file);
        let mut configuration = to_configuration(&settings);
        let version = version_of(Command::new(self.program("redis-server")).arg("--version"));
        configuration.insert("version".to_owned(), version);
        started(Peer::Redis, server, directory, port, configuration)
    }

    fn nats(&self, directory: &Path, port: u16) -> Result<Running, String> {
        let store = directory.join("data").display().to_string();
        let settings = [
            ("listen", format!("127.0.0.1:{port}")),
            ("jetstream.sync_interval", "always".to_owned()),
            ("jetstream.max_file_store", "100GB".to_owned()),
            ("jetstream.store_dir", store.clone()),
        ];
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\n\
             jetstream {{\n  store_dir: \"{store}\"\n  sync_interval: always\n  \
             max_file_store: 100GB\n}}\n"
        );
        let file = write(directory, "nats.conf", &text)?;
        let mut server = Command::new(self.program("nats-server"));
        server.arg("-c").arg(file);
        let mut configuration = to_configuration(&settings);
        let version = version_of(Command::new(self.program("nats-server")).arg("--version"));
        configuration.insert("version".to_owned(), version);
        started(Peer::Nats, server, directory, port, configuration)
    }

    fn etcd(&self, directory: &Path, port: u16) -> Result<Running, String> {
        let (client, peer) =
            (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", port + 1));
        let settings = [
            ("name", "bench".to_owned()),
            ("data-dir", directory.join("data").display().to_string()),
            ("listen-client-urls", client.clone()),
            ("advertise-client-urls", client),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer.clone()),
            ("initial-cluster", format!("bench={peer}")),
            ("quota-backend-bytes", (8_u64 << 30).to_string()),
            ("log-level", "error".to_owned()),
        ];
        let mut server = Command::new(self.program("etcd"));
        server.args(settings.iter().map(|(name, value)| format!("--{name}={value}")));
        let mut configuration = to_configuration(&settings);
        let version = version_of(Command::new(self.program("etcd")).arg("--version"));
        configuration.insert("version".to_owned(), version);
        started(Peer::Etcd, server, directory, port, configuration)
    }
}

/// A new topic shows that a broker does its work.
fn kafka_is_ready(address: SocketAddr) -> Result<(), String> {
    let mut client = Client::open(address).map_err(|error| error.to_string())?;
    match client.create_topic("ready", Some(1), &[]) {
        Err(why) if !why.contains("exists already") => Err(why),
        Ok(_) | Err(_) => client.leaders("ready").map(drop),
    }
}

fn started(
    peer: Peer,
    command: Command,
    directory: &Path,
    port: u16,
    configuration: BTreeMap<String, String>,
) -> Result<Running, String> {
    let process = Process::start(peer.name(), command, directory)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Ok(Running { process, address, configuration })
}

/// What a reader wants to know: without names of files, and ports, which differ each time.
fn to_configuration(settings: &[(&str, String)]) -> BTreeMap<String, String> {
    let is_place = |name: &str| {
        ["dir", "listen", "port", "url", "voters", "initial-cluster", "store"]
            .iter()
            .any(|part| name.contains(part))
    };
    let kept = settings.iter().filter(|(name, _)| !is_place(name) || name.contains("max_file"));
    kept.map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

fn write_settings(
    directory: &Path,
    name: &str,
    settings: &[(&str, String)],
) -> Result<PathBuf, String> {
    let lines: Vec<String> = settings.iter().map(|(name, it)| format!("{name}={it}\n")).collect();
    write(directory, name, &lines.concat())
}

fn write(directory: &Path, name: &str, text: &str) -> Result<PathBuf, String> {
    let path = directory.join(name);
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

fn run_to_end(name: &str, mut command: Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The first line of what a program says about itself.
pub(super) fn version_of(command: &mut Command) -> String {
    let Ok(output) = command.output() else { return "unknown".to_owned() };
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&text).lines().next().unwrap_or("unknown").trim().to_owned()
}
