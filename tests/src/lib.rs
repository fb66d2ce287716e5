//! What the tests of the whole server share: the real process, real clients, the simulator.

pub mod clients;
pub mod daemon;
pub mod launch;
pub mod peer;
pub mod sim;
