//! `tidemill-bench latency`: how long a record waits for its durable acknowledgement, at a rate,
//! beside what this machine could do at best.

use std::time::Duration;

use clap::Args;

use crate::load::kafka::Produce;
use crate::measure::{self, IN_FLIGHT_MAX, Request, Target};
use crate::options::{LoadOptions, OutputOptions, ServerOptions, parse_seconds};
use crate::rounds;
use crate::run::{Limit, Run};

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
    let mut subject = Subject { options, target: &target, produce: &mut produce };
    if options.sweep {
        rounds::sweep(&mut subject, options.rate, options.bound, &options.output)?;
    } else {
        rounds::alternate(&mut subject, Some(options.rate), options.rounds, &options.output)?;
    }
    target.close()
}

/// Requests of one record.
struct Subject<'a> {
    options: &'a Options,
    target: &'a Target,
    produce: &'a mut Produce,
}

impl rounds::Subject for Subject<'_> {
    const UNIT: &'static str = "requests";

    fn run(&mut self, rate: Option<f64>) -> Result<Run, String> {
        let Options { load, server, .. } = self.options;
        let plan = load.plan(self.produce, rate, IN_FLIGHT_MAX);
        let mut run = self.target.describe("latency", server)?;
        run.load = load.told(&plan, self.produce, 1, server.shards);
        let request = Request { records: 1, size: self.produce.accepted_size() };
        self.produce.elsewhere();
        run.result = self.target.measure(&plan, self.produce, request, &mut |_| ())?;
        Ok(run)
    }

    fn limit(&mut self, rate: Option<f64>) -> Result<Option<Limit>, String> {
        if self.options.no_limit {
            return Ok(None);
        }
        let plan = self.options.load.plan(self.produce, rate, IN_FLIGHT_MAX);
        measure::limits(&plan, self.produce, self.target, self.options.server.sync).map(Some)
    }
}

/// A rate above zero.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e9 => Ok(rate),
        _ => Err("write how many a second, above zero".to_owned()),
    }
}
