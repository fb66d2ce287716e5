//! What the tests of the whole server share: the real process, real clients, the simulator,
//! the exhaustive tail, the recorded drive, the torture, and topologies under `kill -9`.

pub mod clients;
pub mod daemon;
pub mod drifting;
pub mod exactly_once;
pub mod fuzz;
pub mod launch;
pub mod note;
pub mod peer;
pub mod recorded;
pub mod sim;
pub mod tail;
pub mod torture;
pub mod volume;
