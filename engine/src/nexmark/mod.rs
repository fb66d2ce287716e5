//! The Nexmark benchmark: an auction house's events, and the questions that are asked of them, as
//! topologies.
//!
//! The queries mean what their SQL in the reference (github.com/nexmark/nexmark, for Flink) means,
//! and their rows have its column names; times are milliseconds since 1970. Each is a topology of its
//! own, `nexmark-q5` and so on, which reads the topics of [`INPUT_TOPICS`] and writes JSON rows to the
//! topic of its name. Rows of a query that updates have a key, and the last row of a key counts. No
//! query of these takes a row back, so none writes a tombstone.
//!
//! Absent: q6, which the reference cannot run either; q10, which writes files; q13, which reads a
//! table from outside; q21, which is q22 with regular expressions.

mod events;
pub mod feed;
mod queries;
#[cfg(test)]
mod tests;

pub use self::events::{
    BASE_TIME_MS, END_MS, EVENTS_PER_SECOND, IDLE_AFTER, INPUT_TOPICS, LATENESS, Traffic, Written,
    bids, generate,
};
pub use self::queries::{QUERIES, Query};
