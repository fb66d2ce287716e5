//! Kills a node with topologies for as long as asked, and says whether all is there once.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tidemill_tests::exactly_once::{Options, run};

/// Kills a node with topologies again and again, and compares what they made with what was written.
#[derive(Debug, Parser)]
struct Arguments {
    /// Goes on until so many minutes are over.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Shards of the node.
    #[arg(long, default_value_t = 2)]
    shards: u16,
    /// Bytes of records a second; a record has 700 on average.
    #[arg(long, default_value_t = 3_500_000)]
    rate: u64,
    /// The most records that are acknowledged between two kills.
    #[arg(long, default_value_t = 20_000)]
    records_max: u64,
    /// Where the moments of the kills come from; a new one each time if it is not given.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let Arguments { minutes, shards, rate, records_max, seed } = Arguments::parse();
    let seed = seed.unwrap_or_else(|| std::process::id().into());
    let lasts = Duration::from_secs_f64(minutes * 60.0);
    println!("seed {seed}");
    match run(&Options { seed, shards, rate, kills: 1, lasts, records_max }) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("FAILED {why}");
            ExitCode::FAILURE
        }
    }
}
