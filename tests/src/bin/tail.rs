//! Tries the images that crashes leave of the last write, over a range of seeds.

use std::ops::Range;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tidemill_tests::tail::{Counts, run_seed};

/// Records runs of a real shard and recovers every image of their last writes.
#[derive(Debug, Parser)]
struct Arguments {
    /// Seeds to run, the end excluded.
    #[arg(long, value_parser = parse_range, default_value = "0..20")]
    seeds: Range<u64>,
    /// One seed only.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Writes of each category (kind, place, size) that are tried in one run.
    #[arg(long, default_value_t = 4)]
    writes: u64,
    /// Stop after so many minutes.
    #[arg(long)]
    minutes: Option<u64>,
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("a range is written A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    let range = number(from)?..number(to)?;
    if range.is_empty() { Err("the range is empty".to_owned()) } else { Ok(range) }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seeds = match arguments.seed {
        Some(seed) => seed..seed + 1,
        None => arguments.seeds,
    };
    let started = Instant::now();
    let until = arguments.minutes.map(|minutes| started + Duration::from_secs(minutes * 60));
    let mut total = Counts::default();
    let mut done = 0;
    for seed in seeds {
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        match run_seed(seed, arguments.writes) {
            Ok(counts) => total += counts,
            Err(why) => {
                println!("seed {seed} FAILED: {why}");
                return ExitCode::FAILURE;
            }
        }
        done += 1;
    }
    println!("{total}");
    println!("{done} seeds in {:.1} s, no failures", started.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}
