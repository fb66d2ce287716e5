//! A write-ahead log for one shard of one machine: what was acknowledged survives a crash.
//!
//! Everything but `disk` is pure: it plans bytes and operations, and is told what became of them.
//! `disk` performs them for real, the simulator performs them with faults.

pub mod batch;
pub mod block;
pub mod commit;
pub mod damage;
pub mod delta;
pub mod disk;
pub mod extent;
mod filling;
pub mod format;
pub mod limits;
pub mod manifest;
pub mod mutation;
pub mod plan;
pub mod pool;
pub mod recovery;
pub mod scrub;
pub mod segment;
pub mod snapshot;
pub mod store;

#[cfg(test)]
mod crash_disk;
