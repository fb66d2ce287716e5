//! Topologies of which one looks at the machine's clock, so that it does not make the same again.

use std::time::{SystemTime, UNIX_EPOCH};

use tidemill::topology::{Topology, Utf8};

/// The topic that both read.
pub const SOURCE: &str = "letters";
/// What the one makes that is as it should be.
pub const LOUD: &str = "loud";
/// What the other one makes.
pub const STAMPED: &str = "stamped";

/// What the node runs.
pub fn topologies() -> Vec<Topology> {
    let steady = Topology::new("steady");
    for topic in [SOURCE, LOUD, STAMPED] {
        steady.create(topic, 1);
    }
    steady.source(SOURCE, Utf8).map(|value| value.to_uppercase()).sink(LOUD, Utf8);
    let drifting = Topology::new("drifting");
    let stamped = |value: String| match value.contains("clock") {
        true => format!("{:?}", SystemTime::now().duration_since(UNIX_EPOCH)),
        false => value,
    };
    drifting.source(SOURCE, Utf8).map(stamped).sink(STAMPED, Utf8);
    vec![steady, drifting]
}
