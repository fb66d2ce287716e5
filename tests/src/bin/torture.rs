//! Tortures the real node for as long as asked, and says what came of it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tidemill_tests::clients::Client;
use tidemill_tests::torture::plan::Fault;
use tidemill_tests::torture::{self, Options};

/// kafka-python (3.0.12) is left out: when the node is away at the wrong moment, its poll fails for
/// good, or its refresh of metadata ends and it waits for ever.
const CLIENTS: [Client; 5] =
    [Client::Confluent, Client::Java, Client::FranzGo, Client::Kcat, Client::Aiokafka];

/// Runs the real node under real clients, and lets everything around it go wrong.
#[derive(Debug, Parser)]
struct Arguments {
    /// Ends after the round in which so many minutes are over.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Ends after so many rounds.
    #[arg(long, conflicts_with = "minutes")]
    rounds: Option<u64>,
    /// Where the schedule of faults comes from; a new one each time if it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Where to make the data and its disk.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// What may go wrong.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Fault::ALL)]
    faults: Vec<Fault>,
    /// Libraries that take turns.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = CLIENTS)]
    clients: Vec<Client>,
}

fn main() -> ExitCode {
    let Arguments { minutes, rounds, seed, data_dir, faults, clients } = Arguments::parse();
    let seed = seed.unwrap_or_else(|| std::process::id().into());
    let lasts = rounds.is_none().then(|| Duration::from_secs_f64(minutes * 60.0));
    let options = Options { seed, lasts, rounds, faults, clients, data_dir };
    match torture::run(&options) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("FAILED {failure}");
            ExitCode::FAILURE
        }
    }
}
