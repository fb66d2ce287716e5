//! Records a node on a drive of ours and cuts the power wherever it can be cut.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tidemill_tests::note;
use tidemill_tests::recorded::stand::Stand;
use tidemill_tests::recorded::trial::{DRIVE_SIZE, Recorded};

/// Records the real daemon on ext4 above a drive that remembers every write and flush, and lets it
/// recover what power cuts leave of that.
#[derive(Debug, Parser)]
struct Arguments {
    /// Chooses the writes and sectors that survive.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stop after so many seconds; try all images otherwise.
    #[arg(long)]
    seconds: Option<u64>,
    /// Cut the power exactly at each flush, and nowhere between two.
    #[arg(long)]
    flushes: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(why) = Stand::missing() {
        note::skipped("power cuts", &why);
        return ExitCode::SUCCESS;
    }
    let mut recorded = Recorded::full(Stand::new(DRIVE_SIZE));
    println!("{}", recorded.describe());
    let lasts = arguments.seconds.map(Duration::from_secs);
    match recorded.search(arguments.seed, lasts, arguments.flushes) {
        Ok(tried) => {
            note::figures(&format!("power cuts: {tried}"));
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}
