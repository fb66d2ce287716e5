//! Stream processors that run beside Apache Kafka, each with a small program that counts records by
//! key, with its own exactly-once and otherwise its defaults.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::installed::version_of;
use super::{Installed, Process};

/// Heap and collector of a processor's JVM.
const JVM: [&str; 3] = ["-Xms2g", "-Xmx2g", "-XX:+UseG1GC"];

/// Packages that Flink's own scripts open to it.
const OPENED: [&str; 8] = [
    "java.base/java.lang",
    "java.base/java.lang.reflect",
    "java.base/java.net",
    "java.base/java.io",
    "java.base/java.nio",
    "java.base/java.time",
    "java.base/java.util",
    "java.base/java.util.concurrent",
];

/// A stream processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Processor {
    /// Kafka Streams with `exactly_once_v2`.
    KafkaStreams,
    /// Flink with an exactly-once sink and a checkpoint each second.
    Flink,
}

/// One that runs.
pub struct Processing {
    /// The process; it ends with this.
    pub process: Process,
    /// Version and settings.
    pub configuration: BTreeMap<String, String>,
}

impl Processor {
    /// As it is called in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::KafkaStreams => "kafka-streams",
            Self::Flink => "flink",
        }
    }

    /// Where it is below the directory of what is installed.
    fn place(self) -> &'static str {
        match self {
            Self::KafkaStreams => "streams",
            Self::Flink => "flink",
        }
    }

    fn main_class(self) -> &'static str {
        match self {
            Self::KafkaStreams => "StreamsCount",
            Self::Flink => "FlinkCount",
        }
    }

    /// Begin of the name of the jar that tells its version.
    fn jar(self) -> &'static str {
        match self {
            Self::KafkaStreams => "kafka-streams-",
            Self::Flink => "flink-streaming-java-",
        }
    }

    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::KafkaStreams => &[("processing.guarantee", "exactly_once_v2")],
            Self::Flink => &[
                ("execution.checkpointing.interval", "1 s"),
                ("execution.checkpointing.mode", "EXACTLY_ONCE"),
                ("sink.delivery-guarantee", "exactly-once"),
            ],
        }
    }
}

impl Installed {
    /// Why a processor cannot be started, if it cannot.
    pub fn check_processor(&self, processor: Processor) -> Result<(), String> {
        let needs = self.directory(processor.place()).join("classes");
        if needs.exists() {
            return Ok(());
        }
        Err(format!("{} is missing: run bench/setup-peers", needs.display()))
    }

    /// Starts a processor that counts the records of one topic into another. Its directory goes when
    /// it ends. Whether it has begun shows in its results alone.
    pub fn start_processor(
        &self,
        processor: Processor,
        directory: &Path,
        broker: SocketAddr,
        (from, to): (&str, &str),
    ) -> Result<Processing, String> {
        self.check_processor(processor)?;
        let place = self.directory(processor.place());
        let path = format!("{0}/classes:{0}/lib/*", place.display());
        let mut command = Command::new("java");
        command.args(JVM);
        command.args(OPENED.map(|package| format!("--add-opens={package}=ALL-UNNAMED")));
        command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", &path]);
        command.arg(processor.main_class()).arg(broker.to_string()).args([from, to]);
        command.arg(directory.join("state"));
        let process = Process::start(processor.name(), command, directory)?;
        let told = |(name, value): &(&str, &str)| (format!("processor.{name}"), value.to_string());
        let mut configuration: BTreeMap<String, String> =
            processor.settings().iter().map(told).collect();
        configuration.insert("processor.jvm".to_owned(), JVM.join(" "));
        let java = version_of(Command::new("java").arg("-version"));
        let version = version_of_jar(&place.join("lib"), processor.jar());
        configuration.insert("processor.version".to_owned(), format!("{version}, {java}"));
        Ok(Processing { process, configuration })
    }
}

/// As the name of a jar says.
fn version_of_jar(directory: &Path, name: &str) -> String {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names = files.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let version = names.find_map(|found| {
        Some(found.strip_prefix(name)?.strip_suffix(".jar")?.to_owned())
            .filter(|version| version.starts_with(|first: char| first.is_ascii_digit()))
    });
    version.unwrap_or_else(|| "unknown".to_owned())
}
