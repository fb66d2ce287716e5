//! Tidemill: a durable stream engine for one Linux machine.
//!
//! One thread per core, nothing shared. The logic of a shard is a state machine without I/O;
//! `runtime` connects it to the machine.

pub mod command;
pub mod effect;

pub mod reshard;
pub mod shard;

pub mod catalog;
pub mod group;
pub mod outbox;
pub mod partition;
pub mod state;
pub mod topology;

pub mod batch;
pub mod kafka;

pub mod client;
pub mod demo;
pub mod nexmark;

pub mod admin;
pub mod config;
pub mod daemon;
pub mod driver;
pub mod exit_code;
pub mod replay;
pub mod runtime;
