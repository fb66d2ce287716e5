//! The node that `tidemill-bench end-to-end` measures: it counts records by key, once where the
//! records are, and once on the shard of the key, wherever they came in.

use std::process::ExitCode;

use bytes::Bytes;
use tidemill::daemon::Daemon;
use tidemill::topology::{Int64, Raw, Topology};

/// Bytes of a key; each value begins with those of its key.
const KEY_SIZE: usize = 16;

fn here() -> Topology {
    let topology = Topology::new("count");
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

fn main() -> ExitCode {
    Daemon::from_args().topology(here()).topology(elsewhere()).run()
}
