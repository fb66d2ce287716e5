//! Runs topologies once more over what a node recorded. They are in a program of the user's, which does
//! it itself; here it is started, and its answer understood.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Args;
use tidemill::daemon::{VERIFY_REPLAY_FLAG, VERIFY_REPLAY_REPORT};
use tidemill::exit_code::ExitCode;

use crate::output::Printer;
use crate::{Failure, Outcome};

/// What is asked.
#[derive(Debug, Args)]
pub struct Options {
    /// The data directory of a node that is stopped.
    path: PathBuf,
    /// The program with the topologies, made with `tidemill::daemon::Daemon`.
    #[arg(long, value_name = "PATH")]
    program: PathBuf,
    /// Directory of the write-ahead log, if it is not in the data directory.
    #[arg(long, value_name = "DIR")]
    wal_dir: Option<PathBuf>,
    /// Arguments of the program itself, such as the name of a command of its own.
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

/// Starts the program, and shows what it says.
pub fn run(options: &Options) -> Result<Outcome, Failure> {
    let program = options.program.display();
    let mut command = Command::new(&options.program);
    command.args(&options.arguments).arg(format!("--{VERIFY_REPLAY_FLAG}"));
    command.arg("--data-dir").arg(&options.path);
    if let Some(wal_dir) = &options.wal_dir {
        command.arg("--wal-dir").arg(wal_dir);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let started = command.spawn();
    let mut child =
        started.map_err(|error| Failure::Usage(format!("{program} does not start: {error}")))?;
    let mut printer = Printer::new(false);
    let mut has_reported = false;
    for line in child.stdout.take().into_iter().flat_map(|it| BufReader::new(it).lines()) {
        let unreadable = |error| Failure::Unreadable(format!("what {program} says: {error}"));
        let line = line.map_err(unreadable)?;
        has_reported |= line.starts_with(VERIFY_REPLAY_REPORT);
        printer.item(format_args!("{line}"), || line.clone().into())?;
    }
    printer.finish()?;
    let ended = child.wait();
    let status = ended.map_err(|error| Failure::Unreadable(format!("{program}: {error}")))?;
    let is = |code: ExitCode| status.code() == Some(code.number().into());
    if has_reported && is(ExitCode::Success) {
        return Ok(Outcome::Fine);
    }
    if has_reported && is(ExitCode::Difference) {
        return Ok(Outcome::Faults);
    }
    if is(ExitCode::Success) || is(ExitCode::Configuration) {
        return Err(Failure::Usage(format!(
            "{program} has checked nothing ({status}); if it says no reason, it has to be a program \
             made with `tidemill::daemon::Daemon` of this release or a later one, which knows \
             `--{VERIFY_REPLAY_FLAG}`"
        )));
    }
    Err(Failure::Unreadable(format!("{program} has ended before it was done: {status}")))
}
