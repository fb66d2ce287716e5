//! `tidemill-bench agree`: do our client and librdkafka see the same latencies?
//!
//! Both produce to the same node at the same rate, one after the other, several times. Ours should
//! see a little less, for it does less. What librdkafka's three threads and Python add is
//! allowed for; beyond that the two may differ by a factor, and if they differ by more, one of them
//! measures something else than it says.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use crate::latency::parse_rate;
use crate::load::kafka::Produce;
use crate::measure::{IN_FLIGHT_MAX, Request, Target};
use crate::options::{LoadOptions, OutputOptions, ServerOptions, parse_seconds};

/// Arguments of the subcommand.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    load: LoadOptions,
    #[command(flatten)]
    output: OutputOptions,
    /// Requests a second.
    #[arg(long, default_value_t = 200.0, value_parser = parse_rate)]
    rate: f64,
    /// Rounds; the clients have to agree in most of them.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// A Python that has confluent-kafka; `tests/setup` makes one.
    #[arg(long, default_value = "target/clients/venv/bin/python")]
    python: PathBuf,
    /// The program that it runs.
    #[arg(long, default_value = "bench/clients/librdkafka.py")]
    script: PathBuf,
    /// The medians may differ by this factor.
    #[arg(long, default_value_t = 2.0)]
    factor: f64,
    /// What librdkafka and Python may take for themselves beside it.
    #[arg(long, default_value = "500us", value_parser = parse_seconds)]
    allowance: Duration,
}

/// What the program prints.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Theirs {
    count: u64,
    refused: u64,
    unanswered: u64,
    p50_us: f64,
    p99_us: f64,
}

/// Runs the subcommand; an error if the two disagree.
pub fn run(options: &Options) -> Result<(), String> {
    let target = Target::open(&options.server)?;
    let shape = options.load.shape(1);
    let leaders = target.make_topic(&shape.topic, options.load.partitions, &[])?;
    let mut produce = Produce::new(&shape, &leaders)?;
    let plan = options.load.plan(&produce, Some(options.rate), IN_FLIGHT_MAX);
    let request = Request { records: 1, size: produce.accepted_size() };
    let mut medians = Vec::new();
    for round in 1..=options.rounds {
        produce.elsewhere();
        let mut run = target.describe("agree", &options.server)?;
        run.load = options.load.told(&plan, &produce, 1, options.server.shards);
        run.result = target.measure(&plan, &mut produce, request, &mut |_| ())?;
        let theirs = librdkafka(options, &target, &shape.topic)?;
        let ours = run.result.latency.percentiles;
        eprintln!(
            "round {round}: p50 {:.1} us, librdkafka {:.1} us; p99 {:.1} us, librdkafka {:.1} us",
            ours.p50, theirs.p50_us, ours.p99, theirs.p99_us
        );
        run.round = round;
        run.figures = [
            ("librdkafka_p50_us", theirs.p50_us),
            ("librdkafka_p99_us", theirs.p99_us),
            ("librdkafka_count", theirs.count as f64),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        options.output.write(&run)?;
        medians.push((ours.p50, theirs.p50_us));
    }
    target.close()?;
    judge(&medians, options.factor, options.allowance.as_secs_f64() * 1e6)
}

fn librdkafka(options: &Options, target: &Target, topic: &str) -> Result<Theirs, String> {
    let shown = options.python.display();
    let output = Command::new(&options.python)
        .arg(&options.script)
        .args([target.address().to_string(), topic.to_owned()])
        .args([options.rate, f64::from(options.load.size)].map(|number| number.to_string()))
        .args([options.load.warm_up, options.load.duration].map(|it| it.as_secs_f64().to_string()))
        .output()
        .map_err(|error| format!("{shown}: {error}; tests/setup installs it"))?;
    if !output.status.success() {
        return Err(format!("{shown}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let theirs: Theirs =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("{shown}: {error}"))?;
    if theirs.count == 0 || theirs.refused > 0 || theirs.unanswered > 0 {
        return Err(format!("librdkafka did not get all its answers: {theirs:?}"));
    }
    Ok(theirs)
}

/// Compares the medians of each round, ours and theirs: the clients agree if they do in most
/// rounds. Only the two of one round saw the same machine.
fn judge(medians: &[(f64, f64)], factor: f64, allowance_us: f64) -> Result<(), String> {
    let is_close = |(ours, theirs): &&(f64, f64)| {
        *theirs <= ours * factor + allowance_us && *ours <= theirs * factor
    };
    let count = medians.iter().filter(is_close).count();
    let verdict = format!(
        "in {count} of {} rounds the medians are within a factor of {factor} and {allowance_us:.0} us",
        medians.len()
    );
    if 2 * count > medians.len() {
        eprintln!("the clients agree: {verdict}");
        Ok(())
    } else {
        Err(format!("the clients disagree: {verdict}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_agree_within_the_factor_and_no_further() {
        let rounds = |ours: f64, theirs: f64| [(ours, theirs), (ours, theirs), (1e6, 1.0)];
        assert!(judge(&rounds(100.0, 600.0), 2.0, 500.0).is_ok());
        assert!(judge(&rounds(100.0, 701.0), 2.0, 500.0).is_err());
        assert!(judge(&rounds(1000.0, 501.0), 2.0, 500.0).is_ok());
        assert!(judge(&rounds(1000.0, 499.0), 2.0, 500.0).is_err(), "ours must not see much more");
    }
}
