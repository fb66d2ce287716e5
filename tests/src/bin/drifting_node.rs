//! `tidemill` with a topology that looks at the machine's clock.

use std::process::ExitCode;

use tidemill::daemon::Daemon;
use tidemill_tests::drifting::topologies;

fn main() -> ExitCode {
    topologies().into_iter().fold(Daemon::from_args(), Daemon::topology).run()
}
