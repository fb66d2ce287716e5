//! Partitions of one shard: logs, producers, waiting readers, retention.

pub mod fetch;
pub mod log;
pub mod producer;
pub mod retention;
