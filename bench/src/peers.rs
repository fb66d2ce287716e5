//! The systems that Tidemill is compared with: how each is started, and what it speaks.
//!
//! Each starts on an empty directory, alone on the machine, with the settings that suit it best and
//! keep the promise that is compared: every acknowledgement on the disk. The one exception says so
//! in its name and its promise.

pub mod etcd;
mod installed;
pub mod nats;
pub mod pipelined;
mod process;
mod processors;
pub mod redis;
mod values;

pub use self::installed::{Installed, Peer};
pub use self::process::Process;
pub use self::processors::{Processing, Processor};

/// The protocol of a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// Kafka's.
    Kafka,
    /// Redis' own, with `XADD`.
    Redis,
    /// NATS' own, with JetStream's acknowledgements.
    Nats,
    /// etcd's puts over gRPC.
    Etcd,
}
