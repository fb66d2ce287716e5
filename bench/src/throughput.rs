//! `tidemill-bench throughput`: records a second in batches, at a rate or as many as fit in flight.

use std::time::Duration;

use clap::Args;

use crate::latency::parse_rate;
use crate::limit;
use crate::load::Plan;
use crate::load::kafka::Produce;
use crate::measure::{self, IN_FLIGHT_MAX, Request, Target};
use crate::options::{LoadOptions, OutputOptions, ServerOptions, parse_seconds};
use crate::run::{Limit, Run};
use crate::sweep::{Probe, Sweep};
use crate::tell::{tell, tell_median};

/// Time that the sequential bandwidth is measured for.
const BANDWIDTH_TIME: Duration = Duration::from_secs(2);

/// Arguments of the subcommand.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    load: LoadOptions,
    #[command(flatten)]
    output: OutputOptions,
    /// Records in a batch, one batch in a request. Batches of 64 KiB: 64 of --size 1016.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Records a second; none: as many as --in-flight lets. A request is then due when its first
    /// record is, and sent when its last one is, as by a client that gathers a batch.
    #[arg(long, value_parser = parse_rate)]
    rate: Option<f64>,
    /// Most records without an answer, if no rate is given.
    #[arg(long, default_value_t = 20_000)]
    in_flight: u64,
    /// Rounds; in each, run and limit alternate.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Measure no limit.
    #[arg(long)]
    no_limit: bool,
    /// Find the highest rate with a 99th percentile below --bound.
    #[arg(long, requires = "rate")]
    sweep: bool,
    /// The bound of --sweep.
    #[arg(long, default_value = "5ms", value_parser = parse_seconds)]
    bound: Duration,
}

/// Runs the subcommand.
pub fn run(options: &Options) -> Result<(), String> {
    let target = Target::open(&options.server)?;
    let shape = options.load.shape(options.batch as usize);
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
        add_bandwidth(&mut run);
        options.output.write(&run)?;
        tell(&run);
        runs.push(run);
    }
    tell_median(&runs);
    Ok(())
}

fn plan(options: &Options, produce: &Produce, rate: Option<f64>) -> Plan {
    let batch = f64::from(options.batch);
    let per_second = rate.map(|rate| rate / batch);
    let in_flight = match rate {
        Some(_) => IN_FLIGHT_MAX,
        None => (options.in_flight / u64::from(options.batch)).max(1),
    };
    let mut plan = options.load.plan(produce, per_second, in_flight);
    // From the first record of a batch to the last.
    let gathered = rate.map(|rate| (batch - 1.0) / rate);
    plan.gather = gathered.map_or(Duration::ZERO, Duration::from_secs_f64);
    plan
}

fn one(
    options: &Options,
    target: &Target,
    produce: &mut Produce,
    rate: Option<f64>,
) -> Result<Run, String> {
    let plan = plan(options, produce, rate);
    let mut run = target.describe("throughput", &options.server)?;
    run.load = options.load.told(&plan, produce, options.batch as usize, options.server.shards);
    let request = Request { records: options.batch.into(), size: produce.accepted_size() };
    produce.elsewhere();
    run.result = target.measure(&plan, produce, request, &mut |_| ())?;
    match rate {
        Some(_) => {
            run.notes.push("latency runs from when the first record of a batch was due".to_owned());
        }
        None => run.notes.push(
            "closed loop: latency runs from sending, and says nothing about a rate".to_owned(),
        ),
    }
    let accepted_per_second = run.result.accepted_bytes as f64 / run.result.seconds;
    run.figures.insert("accepted_bytes_per_second".to_owned(), accepted_per_second);
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
    let plan = plan(options, produce, options.rate);
    let mut limit = measure::limits(&plan, produce, target, options.server.sync)?;
    let bandwidth = limit::sequential_bandwidth(target.directory(), BANDWIDTH_TIME)?;
    limit.sequential_bytes_per_second = Some(bandwidth);
    Ok(Some(limit))
}

/// What reached the device to what it can take.
fn add_bandwidth(run: &mut Run) {
    let limit = run.limit.as_ref().and_then(|limit| limit.sequential_bytes_per_second);
    let written = run.result.cost.device_written_bytes.zip(limit);
    if let Some(ratio) = &mut run.ratio_to_limit {
        ratio.bandwidth =
            written.map(|(written, limit)| written as f64 / run.result.seconds / limit);
    }
}

fn sweep(options: &Options, target: &Target, produce: &mut Produce) -> Result<(), String> {
    let mut sweep = Sweep::new(options.rate.expect("clap requires it"));
    while let Some(rate) = sweep.next_rate() {
        let mut run = one(options, target, produce, Some(rate))?;
        let per_second = rate / f64::from(options.batch);
        let is_good = sweep.judge(&run.result, per_second, options.bound);
        sweep.tell(&mut run, is_good, options.bound);
        options.output.write(&run)?;
        tell(&run);
        sweep.add(Probe { rate, is_good });
    }
    match sweep.knee() {
        Some(knee) => {
            eprintln!("knee: {knee:.0} records/s keep the 99th percentile in {:?}", options.bound);
        }
        None => eprintln!("no rate that was tried keeps the bound"),
    }
    Ok(())
}
