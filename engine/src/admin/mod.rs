//! The admin port: health, metrics, and word to the service manager.
//!
//! Read-only. It runs on one ordinary thread that is no shard, reads plain atomics that the shards
//! write, and takes no lock that a shard could wait for. Whatever happens here, however slow the
//! one who asks, the shards do not notice.
//!
//! Absent on purpose: authentication (the listener is on loopback unless the network is trusted)
//! and anything that changes the node.

mod http;
mod metrics;
pub mod notify;
pub mod telemetry;
mod topologies;

pub use self::http::Server;
pub use self::telemetry::{
    About, ApiTelemetry, Budget, Committed, Counter, EdgeFigures, Flag, Gauge, Graph, Histogram,
    Offsets, OperatorFigures, Outcome, PartitionEnd, Scale, ShardTelemetry, Spread, StageFigures,
    Telemetry, TopologyFigures,
};
