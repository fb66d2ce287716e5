//! The node that `exactly_once` kills: `tidemill` with topologies that count and copy.

use std::process::ExitCode;

use tidemill::daemon::Daemon;
use tidemill_tests::exactly_once::topologies;

fn main() -> ExitCode {
    topologies().into_iter().fold(Daemon::from_args(), Daemon::topology).run()
}
