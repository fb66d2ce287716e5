//! The node of a measurement of topologies: the plain server makes the topics, and the node goes on as
//! another program.

use std::path::PathBuf;

use clap::Args;

use crate::compare::TIDEMILL;
use crate::end_to_end::COUNTER;
use crate::limit::SyncMethod;
use crate::node::{self, Program};
use crate::options::ServerOptions;

/// The server.
const SERVER: &str = "tidemill";

/// What is measured on.
#[derive(Debug, Clone, Args)]
pub struct Host {
    /// A directory on the file system to measure; never tmpfs [default: beside the build].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The server, on which topics are made, and which runs Nexmark [default: `tidemill` beside this
    /// program].
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
    /// The node that counts and passes through [default: `tidemill-count` beside this program].
    #[arg(long, value_name = "FILE")]
    counter: Option<PathBuf>,
    /// Shards. Each does its steps on one core.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub shards: u16,
    /// Partitions of each topic [default: one for each shard].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    partitions: Option<u32>,
    /// One more argument for the node; can be repeated.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    server_arg: Vec<String>,
    /// Leave the directory of the node in the end.
    #[arg(long)]
    keep: bool,
}

impl Host {
    /// The node as it begins.
    pub fn server(&self) -> ServerOptions {
        ServerOptions {
            address: None,
            server_pid: None,
            system: TIDEMILL.to_owned(),
            server: self.server.clone(),
            data_dir: self.data_dir.clone(),
            shards: self.shards,
            sync: SyncMethod::Dsync,
            server_arg: self.server_arg.clone(),
            keep: self.keep,
        }
    }

    /// The node with topologies of the bench's: a command of it.
    pub fn counting(&self, command: &str, settings: &[String]) -> Result<Program, String> {
        let binary = self.counter.clone().map_or_else(|| node::beside_us(COUNTER), Ok)?;
        Ok(Program { binary, command: vec![command.to_owned()], settings: settings.to_owned() })
    }

    /// The server with a query of Nexmark, which reads what others write.
    pub fn querying(&self, query: &str) -> Result<Program, String> {
        let binary = self.server.clone().map_or_else(|| node::beside_us(SERVER), Ok)?;
        let command = ["nexmark", "--query", query, "--from-topics"].map(str::to_owned).to_vec();
        Ok(Program { binary, command, settings: Vec::new() })
    }

    /// Partitions of each topic.
    pub fn partitions(&self) -> u32 {
        self.partitions.unwrap_or(self.shards.into())
    }
}
