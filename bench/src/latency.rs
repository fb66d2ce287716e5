//! `tidemill-bench latency`: how long a record waits for its durable acknowledgement, at a rate,
//! beside what this machine could do at best.

use std::time::Duration;

use clap::Args;

use crate::load::kafka::Produce;
use crate::measure::{self, IN_FLIGHT_MAX, Request, Target};
use crate::options::{LoadOptions, OutputOptions, ServerOptions, parse_seconds};
use crate::run::{Limit, Run};
use crate::sweep::{Probe, Sweep};
use crate::tell::{tell, tell_median};

/// Arguments of the subcommand.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    load: LoadOptions,
    #[command(flatten)]
    output: OutputOptions,
    /// Requests a second, of one record each. With --sweep, where it begins.
    #[arg(long, default_value_t = 1000.0, value_parser = parse_rate)]
    rate: f64,
    /// Rounds; in each, run and limit alternate, the one or the other first.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Measure no limit.
    #[arg(long)]
    no_limit: bool,
    /// Find the highest rate with a 99th percentile below --bound.
    #[arg(long)]
    sweep: bool,
    /// The bound of --sweep.
    #[arg(long, default_value = "5ms", value_parser = parse_seconds)]
    bound: Duration,
}

/// Runs the subcommand.
pub fn run(options: &Options) -> Result<(), String> {
    let target = Target::open(&options.server)?;
    let shape = options.load.shape(1);
    let leaders = target.make_topic(&shape.topic, options.load.partitions, &[])?;
    let mut produce = Produce::new(&shape, &leaders)?;
    if options.sweep {
        sweep(options, &target, &mut produce)?;
    } else {
        rounds(options, &target, &mut produce)?;
    }
    target.close()
}

fn rounds(options: &Options, target: &Target, produce: &mut Produce) -> Result<(), String> {
    let mut runs = Vec::new();
    for round in 1..=options.rounds {
        let limit_first = round % 2 == 0;
        let before = if limit_first { limit(options, target, produce)? } else { None };
        let mut run = one(options, target, produce, options.rate)?;
        run.set_limit(if limit_first { before } else { limit(options, target, produce)? });
        run.round = round;
        options.output.write(&run)?;
        tell(&run);
        runs.push(run);
    }
    tell_median(&runs);
    Ok(())
}

/// One measured run.
fn one(
    options: &Options,
    target: &Target,
    produce: &mut Produce,
    rate: f64,
) -> Result<Run, String> {
    let plan = options.load.plan(produce, Some(rate), IN_FLIGHT_MAX);
    let mut run = target.describe("latency", &options.server)?;
    run.load = options.load.told(&plan, produce, 1, options.server.shards);
    let request = Request { records: 1, size: produce.accepted_size() };
    produce.elsewhere();
    run.result = target.measure(&plan, produce, request, &mut |_| ())?;
    Ok(run)
}

fn limit(
    options: &Options,
    target: &Target,
    produce: &mut Produce,
) -> Result<Option<Limit>, String> {
    if options.no_limit {
        return Ok(None);
    }
    let plan = options.load.plan(produce, Some(options.rate), IN_FLIGHT_MAX);
    measure::limits(&plan, produce, target, options.server.sync).map(Some)
}

fn sweep(options: &Options, target: &Target, produce: &mut Produce) -> Result<(), String> {
    let mut sweep = Sweep::new(options.rate);
    while let Some(rate) = sweep.next_rate() {
        let mut run = one(options, target, produce, rate)?;
        let is_good = sweep.judge(&run.result, rate, options.bound);
        sweep.tell(&mut run, is_good, options.bound);
        options.output.write(&run)?;
        tell(&run);
        sweep.add(Probe { rate, is_good });
    }
    match sweep.knee() {
        Some(knee) => {
            eprintln!("knee: {knee:.0} requests/s keep the 99th percentile in {:?}", options.bound);
        }
        None => eprintln!("no rate that was tried keeps the bound"),
    }
    Ok(())
}

/// A rate above zero.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e9 => Ok(rate),
        _ => Err("write how many a second, above zero".to_owned()),
    }
}
