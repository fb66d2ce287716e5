//! The Kafka protocol: bytes to commands, replies to bytes.

mod api;
pub mod api_key;
pub mod error_code;
pub mod frame;
pub mod messages;
pub mod session;
pub mod wire;
