//! The node as a program: arguments to configuration to runtime, with the topologies that the program
//! brings along. The binary `tidemill` is this with none.

use std::io::{self, IsTerminal, Write};
use std::process;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;

use crate::config::{self, Action, Config, LogFormat, OwnCommand};
use crate::exit_code::ExitCode;
use crate::runtime::Serving;
use crate::topology::{self, BadTopology, Plan, Topology};

pub use crate::config::VERIFY_REPLAY_FLAG;

/// How the answer to `--verify-replay` begins on standard output: so another program knows that there was
/// a check.
pub const VERIFY_REPLAY_REPORT: &str = "verify-replay: ";

/// A node that is about to start, with every flag, variable and file of `tidemill`.
pub struct Daemon {
    action: Result<Action, config::LoadError>,
    plans: Vec<Arc<Plan>>,
    faults: Vec<BadTopology>,
}

impl Daemon {
    /// Reads the process's arguments, its environment and its configuration file.
    pub fn from_args() -> Self {
        let action =
            Action::from_sources(std::env::args_os(), std::env::vars_os(), config::read_file);
        Self { action, plans: Vec::new(), faults: Vec::new() }
    }

    /// The same for a program that has commands of its own, which take every flag of the node beside
    /// theirs; the one that was asked for, if it is one of these.
    pub fn from_args_with(
        commands: impl IntoIterator<Item = clap::Command>,
    ) -> (Self, Option<OwnCommand>) {
        let asked = Action::with_commands(
            commands,
            std::env::args_os(),
            std::env::vars_os(),
            config::read_file,
        );
        let (action, own) = match asked {
            Ok((action, own)) => (Ok(action), own),
            Err(error) => (Err(error), None),
        };
        (Self { action, plans: Vec::new(), faults: Vec::new() }, own)
    }

    /// Changes settings before the node starts, such as defaults that are others here. Without effect
    /// if it is neither to serve nor to run topologies once more.
    #[must_use]
    pub fn adjust(mut self, change: impl FnOnce(&mut Config)) -> Self {
        if let Ok(Action::Serve(config) | Action::VerifyReplay(config)) = &mut self.action {
            change(config);
        }
        self
    }

    /// Runs a topology inside the node.
    #[must_use]
    pub fn topology(mut self, topology: Topology) -> Self {
        match topology.build() {
            Ok(plan) => {
                if self.plans.iter().any(|known| known.name() == plan.name()) {
                    let faults = vec!["another one has that name".to_owned()];
                    let topology = plan.name().to_owned();
                    self.faults.push(BadTopology { topology, faults });
                }
                self.plans.push(plan.into());
            }
            Err(fault) => self.faults.push(fault),
        }
        self
    }

    /// Does what the arguments ask for: serves until a signal asks to stop, runs topologies once more over
    /// what was recorded (`--verify-replay`), or shows the configuration. The result is what the process is to end with.
    pub fn run(self) -> process::ExitCode {
        self.run_beside(|_| ())
    }

    /// The same, and calls `begin` as soon as the node takes connections. The threads that it starts
    /// have to end by themselves when the node is asked to stop.
    pub fn run_beside(self, begin: impl FnOnce(Serving)) -> process::ExitCode {
        let code = match self.action {
            Ok(Action::Serve(_) | Action::VerifyReplay(_)) if !self.faults.is_empty() => {
                self.faults.iter().for_each(|fault| eprintln!("tidemill: {fault}"));
                ExitCode::Configuration
            }
            Ok(Action::Serve(config)) => serve(&config, &self.plans, begin),
            Ok(Action::VerifyReplay(config)) => verify_replay(&config, &self.plans),
            Ok(Action::Show(config)) => print(&config.show()),
            Ok(Action::Check(_)) => print("The configuration is good.\n"),
            Ok(Action::PrintDefault) => print(&Config::default_file()),
            Err(error) => {
                let code = error.exit_code();
                match &error {
                    // Help and version go to standard output, usage errors to standard error.
                    config::LoadError::Usage(usage) => _ = usage.print(),
                    config::LoadError::Bad(_) => eprintln!("{error}"),
                }
                code
            }
        };
        code.into()
    }
}

fn serve(config: &Config, plans: &[Arc<Plan>], begin: impl FnOnce(Serving)) -> ExitCode {
    log_to_stderr(config);
    end_at_panics();
    match crate::runtime::serve_beside(config, plans, begin) {
        Ok(()) => ExitCode::Success,
        Err(error) => {
            eprintln!("tidemill: {error}");
            error.exit_code()
        }
    }
}

fn verify_replay(config: &Config, plans: &[Arc<Plan>]) -> ExitCode {
    end_at_panics();
    let report = match crate::runtime::verify_replay(config, plans) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("tidemill: {error}");
            return error.exit_code();
        }
    };
    match print(&format!("{VERIFY_REPLAY_REPORT}{report}\n")) {
        ExitCode::Success if report.differing > 0 => ExitCode::Difference,
        code => code,
    }
}

/// Ends the process at any panic but an operator's: a shard that lost its thread must not leave the
/// others to go on without it.
fn end_at_panics() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !topology::is_calling() {
            tell(info);
            process::abort();
        }
    }));
}

fn log_to_stderr(config: &Config) {
    let filter = EnvFilter::builder().parse_lossy(&config.log_level.0);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match config.log_format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
}

/// Writes to standard output; a reader that went away (`| head`) is no failure.
fn print(text: &str) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::Success,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::Success,
        Err(error) => {
            eprintln!("tidemill: standard output: {error}");
            ExitCode::Other
        }
    }
}
