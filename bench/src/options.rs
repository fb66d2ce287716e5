//! Options that the subcommands share.

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tidemill::batch::Compression;

use crate::limit::SyncMethod;
use crate::load::Arrivals;
use crate::node::NodeOptions;
use crate::run::Run;

/// What is measured on.
#[derive(Debug, Clone, Args)]
pub struct ServerOptions {
    /// A node that runs; none: one is started for the run, on an empty directory.
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<SocketAddr>,
    /// Process of the node at --address, for its processor time.
    #[arg(long, value_name = "PID", requires = "address")]
    pub server_pid: Option<u32>,
    /// What the node at --address is called in the results.
    #[arg(long, default_value = "tidemill")]
    pub system: String,
    /// The server to start [default: `tidemill` beside this program].
    #[arg(long, value_name = "FILE", conflicts_with = "address")]
    pub server: Option<PathBuf>,
    /// A directory on the file system to measure, for the node and for the limits; never tmpfs
    /// [default: beside the build].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Shards of the node that is started.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub shards: u16,
    /// How writes become durable: the node's, and those of the limits.
    #[arg(long, value_enum, default_value_t = SyncMethod::Dsync)]
    pub sync: SyncMethod,
    /// One more argument for the node that is started; can be repeated
    /// (`--server-arg=--advertise --server-arg=node`).
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub server_arg: Vec<String>,
    /// Leave the directory of the node in the end.
    #[arg(long)]
    pub keep: bool,
}

/// What is asked of the server.
#[derive(Debug, Clone, Args)]
pub struct LoadOptions {
    /// Bytes of a record's key and value.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub size: u32,
    /// Partitions of the topic.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub partitions: u32,
    /// Connections.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=2048))]
    pub connections: u32,
    /// Different keys; 0: records without a key.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub keys: u64,
    /// Codec of the batches. They are compressed before the run.
    #[arg(long, value_enum, default_value_t = Codec::None)]
    pub compression: Codec,
    /// Measured seconds of each round.
    #[arg(long, default_value = "10", value_parser = parse_seconds)]
    pub duration: Duration,
    /// Seconds of load before them.
    #[arg(long, default_value = "2", value_parser = parse_seconds)]
    pub warm_up: Duration,
    /// How due times follow each other.
    #[arg(long, value_enum, default_value_t = Arrivals::Even)]
    pub arrivals: Arrivals,
    /// The client spins instead of sleeping: no wake-up of its own in the times, but it takes a
    /// core.
    #[arg(long)]
    pub spin: bool,
    /// Name of the topic, which is made.
    #[arg(long)]
    pub topic: Option<String>,
}

/// Where results go.
#[derive(Debug, Clone, Args)]
pub struct OutputOptions {
    /// A file that the JSON lines are added to [default: standard output].
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Names of codecs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Codec {
    /// Not compressed.
    None,
    /// Gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Codec {
    /// As the batch has it.
    pub fn compression(self) -> Compression {
        match self {
            Self::None => Compression::None,
            Self::Gzip => Compression::Gzip,
            Self::Snappy => Compression::Snappy,
            Self::Lz4 => Compression::Lz4,
            Self::Zstd => Compression::Zstd,
        }
    }

    /// As it is typed.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

impl ServerOptions {
    /// What to start.
    pub fn node(&self) -> NodeOptions {
        let mut arguments = vec!["--sync".to_owned(), self.sync.name().to_owned()];
        arguments.extend(self.server_arg.iter().cloned());
        NodeOptions {
            binary: self.server.clone(),
            scratch: self.data_dir.clone(),
            shards: self.shards,
            arguments,
            keep: self.keep,
        }
    }
}

impl OutputOptions {
    /// Adds a run.
    pub fn write(&self, run: &Run) -> Result<(), String> {
        let says = |error: io::Error| format!("writing the result: {error}");
        match &self.out {
            Some(path) => {
                let file = File::options().create(true).append(true).open(path).map_err(says)?;
                run.write_to(file).map_err(says)
            }
            None => {
                let mut output = io::stdout().lock();
                run.write_to(&mut output).and_then(|()| output.flush()).map_err(says)
            }
        }
    }
}

/// Seconds, perhaps with a fraction or with a unit.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let split = text.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("write seconds, or a number with us, ms, s, m or h".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "write a number first".to_owned())?;
    Duration::try_from_secs_f64(number * scale).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        assert_eq!(parse_seconds("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_seconds("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(parse_seconds("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "s", "-1", "1d", "1e999"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
    }
}
