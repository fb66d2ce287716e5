//! The node that measurements of topologies run. As `serve` it counts records by key, once where the
//! records are, and once on the shard of the key, wherever they came in; as `count` and as
//! `pass-through` it does one thing alone.

use std::process::ExitCode;

use bytes::Bytes;
use tidemill::daemon::Daemon;
use tidemill::topology::{Int64, Raw, Topology};

/// Bytes of a key; each value begins with those of its key.
const KEY_SIZE: usize = 16;

/// Commands of its own.
const COUNT: &str = "count";
const PASS_THROUGH: &str = "pass-through";

fn here() -> Topology {
    let topology = Topology::new(COUNT);
    topology.source("in", Raw).partitioned_by_key(Raw).count("count").sink("counts", Int64);
    topology
}

fn elsewhere() -> Topology {
    let topology = Topology::new("count-elsewhere");
    topology
        .source("in-elsewhere", Raw)
        .key_by("key", Raw, Raw, |value: &Bytes| value.slice(..value.len().min(KEY_SIZE)))
        .count("count")
        .sink("counts-elsewhere", Int64);
    topology
}

fn pass_through() -> Topology {
    let topology = Topology::new(PASS_THROUGH);
    topology.source("in", Raw).map(|value: Bytes| value).sink("out", Raw);
    topology
}

fn main() -> ExitCode {
    let commands = [
        clap::Command::new(COUNT).about("Counts the records of the topic in by key, into counts"),
        clap::Command::new(PASS_THROUGH).about("Writes the records of the topic in to out"),
    ];
    let (daemon, own) = Daemon::from_args_with(commands);
    let topologies = match own.as_ref().map(|own| &*own.name) {
        None => vec![here(), elsewhere()],
        Some(PASS_THROUGH) => vec![pass_through()],
        Some(_) => vec![here()],
    };
    topologies.into_iter().fold(daemon, Daemon::topology).run()
}
