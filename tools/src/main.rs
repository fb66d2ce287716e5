//! `tidemill-dump`: what is in a data directory, whether it is whole, and a way out if it is not.
//!
//! Reads only, without a lock, so it works beside a running node and on a damaged copy; nothing
//! but `quarantine --yes` changes anything. `verify-replay` is of a stopped node alone: it takes the
//! directory's lock. Exit codes: 0 fine, 1 faults or differences were found, 2 wrong
//! usage, 3 something could not be read or written.

mod contents;
mod fault;
mod output;
mod picture;
mod place;
mod progress;
mod quarantine;
mod records;
mod summary;
mod verify;
mod verify_replay;
mod words;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use self::output::Printer;
use self::place::Target;
use self::records::Selection;

const FAULTS: u8 = 1;
const USAGE: u8 = 2;
const UNREADABLE: u8 = 3;

/// Shows and checks what a Tidemill data directory, or one file of it, holds.
#[derive(Debug, Parser)]
#[command(
    name = "tidemill-dump",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Exit codes: 0 fine, 1 faults were found, 2 wrong usage, 3 cannot read."
)]
struct Arguments {
    #[command(subcommand)]
    subcommand: Option<Subcommands>,
    #[command(flatten)]
    dump: Dump,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Moves the damaged files of one shard aside so that the node starts, and says what is lost.
    Quarantine(quarantine::Options),
    /// Runs topologies once more over what a stopped node recorded, and says what came out otherwise.
    VerifyReplay(verify_replay::Options),
}

#[derive(Debug, Args)]
struct Dump {
    /// A data directory, a shard's directory in it, or one file.
    #[arg(required = true)]
    path: Option<PathBuf>,
    /// Directory of the write-ahead log, if it is not in the data directory.
    #[arg(long, value_name = "DIR")]
    wal_dir: Option<PathBuf>,
    /// Prints the records themselves, decompressed.
    #[arg(long, conflicts_with = "verify")]
    records: bool,
    /// Only this partition: a topic's name or id, a slash, a number.
    #[arg(long, value_name = "TOPIC/N")]
    partition: Option<String>,
    /// Only records from this offset on.
    #[arg(long, value_name = "OFFSET", requires = "records")]
    from: Option<u64>,
    /// Only records below this offset.
    #[arg(long, value_name = "OFFSET", requires = "records")]
    to: Option<u64>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// Checks every checksum and invariant; prints each fault, and ends with 1 if there is one.
    #[arg(long)]
    verify: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The arguments do not fit what is there.
    #[error("{0}")]
    Usage(String),
    /// Something could not be read or written.
    #[error("{0}")]
    Unreadable(String),
    /// Whoever reads the output is gone, which is their right; or the output failed.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

/// What was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is wrong.
    Fine,
    /// Something is.
    Faults,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.subcommand {
        Some(Subcommands::Quarantine(options)) => quarantine::run(&options),
        Some(Subcommands::VerifyReplay(options)) => verify_replay::run(&options),
        None => dump(&arguments.dump),
    };
    match result {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Faults) => ExitCode::from(FAULTS),
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("tidemill-dump: {failure}");
            ExitCode::from(match failure {
                Failure::Usage(_) => USAGE,
                Failure::Unreadable(_) | Failure::Output(_) => UNREADABLE,
            })
        }
    }
}

fn dump(options: &Dump) -> Result<Outcome, Failure> {
    let path = options.path.as_deref().expect("clap requires it without a subcommand");
    let target = place::find(path, options.wal_dir.as_deref())?;
    let mut printer = Printer::new(options.json);
    let partition = options.partition.as_deref();
    let selection = Selection::parse(partition, options.from, options.to)?;
    let outcome = match &target {
        Target::Node(node) if options.verify => verify::node(node, &mut printer)?,
        Target::File(file) if options.verify => verify::file(file, &mut printer)?,
        Target::Node(node) if options.records => records::of_node(node, &selection, &mut printer)?,
        Target::Node(node) => summary::of_node(node, &selection, &mut printer)?,
        Target::File(file) => contents::of_file(file, &selection, options.records, &mut printer)?,
    };
    printer.finish()?;
    Ok(outcome)
}
