//! The systems that Tidemill is compared with: how each is started, and what it speaks.

pub mod etcd;
pub mod nats;
pub mod pipelined;
pub mod redis;
mod values;
