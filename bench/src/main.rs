//! Load and data for measurements. One file for each subcommand.

mod fill;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Tidemill, and makes what there is to measure.
#[derive(Debug, Parser)]
#[command(name = "tidemill-bench", version)]
struct Arguments {
    #[command(subcommand)]
    subcommand: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Fills a new data directory, or a node that runs, with records.
    Fill(fill::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().subcommand {
        Subcommands::Fill(options) => fill::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("tidemill-bench: {why}");
            ExitCode::FAILURE
        }
    }
}
