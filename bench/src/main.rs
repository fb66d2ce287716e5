//! Load and data for measurements. One file for each subcommand.

mod agree;
mod compare;
mod compare_runs;
mod end_to_end;
mod fetch;
mod fill;
mod keyed_state;
mod latency;
mod processing;
mod recovery;
mod report;
mod soak;
mod throughput;

mod measure;
mod options;
mod rounds;
mod sweep;
mod tell;

mod client;
mod limit;
mod load;
mod machine;
mod node;
mod peers;
mod run;
mod summary;

use std::fs::File;
use std::io::Read;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

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
    /// How long a record waits for its durable acknowledgement, beside the limit.
    Latency(latency::Options),
    /// Records a second in batches, at a rate or as many as fit in flight.
    Throughput(throughput::Options),
    /// Consumers at the tail, beside a bare `writev` of the same bytes.
    Fetch(fetch::Options),
    /// Whether our client and librdkafka see the same latencies.
    Agree(agree::Options),
    /// From `kill -9` with much unsettled to ready again.
    Recovery(recovery::Options),
    /// Hours at a steady rate: nothing may grow, nothing may drift.
    Soak(soak::Options),
    /// Tidemill beside its peers, one after another in rounds.
    Compare(compare::Options),
    /// From due time to result consumed: a count by key, beside stream processors on Kafka.
    EndToEnd(end_to_end::Options),
    /// Records a second that topologies take, durable and exactly once.
    Processing(processing::Options),
    /// Many keys: made, settled beside acknowledgements, and there again after `kill -9`.
    State(keyed_state::Options),
    /// Whether one build, or one set of runs, is slower than another.
    CompareRuns(compare_runs::Options),
    /// Runs as one HTML page.
    Report(report::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().subcommand {
        Subcommands::Fill(options) => fill::run(&options),
        Subcommands::Latency(options) => latency::run(&options),
        Subcommands::Throughput(options) => throughput::run(&options),
        Subcommands::Fetch(options) => fetch::run(&options),
        Subcommands::Agree(options) => agree::run(&options),
        Subcommands::Recovery(options) => recovery::run(&options),
        Subcommands::Soak(options) => soak::run(&options),
        Subcommands::Compare(options) => compare::run(&options),
        Subcommands::EndToEnd(options) => end_to_end::run(&options),
        Subcommands::Processing(options) => processing::run(&options),
        Subcommands::State(options) => keyed_state::run(&options),
        Subcommands::CompareRuns(options) => compare_runs::run(&options),
        Subcommands::Report(options) => report::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("tidemill-bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err("write a number with KiB, MiB, GiB or TiB, for example 20GiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "write a number first".to_owned())?;
    let size = number.checked_mul(1 << shift).ok_or("that is too much")?;
    if size == 0 { Err("write more than nothing".to_owned()) } else { Ok(size) }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// 64 random bits.
fn random() -> u64 {
    let mut bytes = [0; 8];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.expect("the system has random numbers");
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(parse_size("20GiB"), Ok(20 << 30));
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("3 KiB"), Ok(3072));
        for wrong in ["", "GiB", "20GB", "-1", "0", "99999999999999TiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
