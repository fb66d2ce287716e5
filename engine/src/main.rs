//! The daemon, without topologies of its own, and what it brings to try it: the queries of Nexmark,
//! and a demonstration.

use std::process;

use tidemill::daemon::Daemon;
use tidemill::{demo, nexmark};

fn main() -> process::ExitCode {
    #[cfg(feature = "mutations")]
    if let Some(name) = std::env::var_os("MUTATION") {
        let is_known = name.to_str().is_some_and(tidemill_wal::mutation::break_process);
        assert!(is_known, "MUTATION is {name:?}, which is none");
        eprintln!("tidemill: broken on purpose: {name:?}");
    }
    let (daemon, own) = Daemon::from_args_with([nexmark::feed::command(), demo::command()]);
    match own {
        None => daemon.run(),
        Some(own) if own.name == demo::COMMAND => demo::run(daemon, &own.arguments),
        Some(own) => nexmark::feed::run(daemon, &own.arguments),
    }
}
