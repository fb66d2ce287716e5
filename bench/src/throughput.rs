//! `tidemill-bench throughput`: records a second in batches, at a rate or as many as fit in flight.

use std::time::Duration;

use clap::Args;

use crate::latency::parse_rate;
use crate::limit;
use crate::load::Plan;
use crate::load::kafka::Produce;
use crate::measure::{self, IN_FLIGHT_MAX, Request, Target};
use crate::options::{LoadOptions, OutputOptions, ServerOptions, parse_seconds};
use crate::rounds;
use crate::run::{Limit, Run};

/// Time that a bandwidth is measured for.
const BANDWIDTH_TIME: Duration = Duration::from_secs(10);

/// Bytes that it is measured over: as many as the logs of two shards and the extents beside them
/// take in a few seconds. A smaller file stays in the caches below the device, which is then
/// faster than it is for anybody who stores something.
const BANDWIDTH_SIZE: u64 = 2 << 30;

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
    let mut subject = Subject { options, target: &target, produce: &mut produce };
    if options.sweep {
        let first = options.rate.expect("clap requires it");
        rounds::sweep(&mut subject, first, options.bound, &options.output)?;
    } else {
        rounds::alternate(&mut subject, options.rate, options.rounds, &options.output)?;
    }
    target.close()
}

/// Requests of one batch.
struct Subject<'a> {
    options: &'a Options,
    target: &'a Target,
    produce: &'a mut Produce,
}

impl Subject<'_> {
    fn plan(&self, rate: Option<f64>) -> Plan {
        let options = self.options;
        let batch = f64::from(options.batch);
        let per_second = rate.map(|rate| rate / batch);
        let in_flight = match rate {
            Some(_) => IN_FLIGHT_MAX,
            None => (options.in_flight / u64::from(options.batch)).max(1),
        };
        let mut plan = options.load.plan(self.produce, per_second, in_flight);
        // From the first record of a batch to the last.
        let gathered = rate.map(|rate| (batch - 1.0) / rate);
        plan.gather = gathered.map_or(Duration::ZERO, Duration::from_secs_f64);
        plan
    }
}

impl rounds::Subject for Subject<'_> {
    const UNIT: &'static str = "records";

    fn run(&mut self, rate: Option<f64>) -> Result<Run, String> {
        let plan = self.plan(rate);
        let Options { load, server, batch, .. } = self.options;
        let mut run = self.target.describe("throughput", server)?;
        run.load = load.told(&plan, self.produce, *batch as usize, server.shards);
        let request = Request { records: u64::from(*batch), size: self.produce.accepted_size() };
        self.produce.elsewhere();
        run.result = self.target.measure(&plan, self.produce, request, &mut |_| ())?;
        let note = match rate {
            Some(_) => "latency runs from when the first record of a batch was due",
            None => "closed loop: latency runs from sending, and says nothing about a rate",
        };
        run.notes.push(note.to_owned());
        let accepted_per_second = run.result.accepted_bytes as f64 / run.result.seconds;
        run.figures.insert("accepted_bytes_per_second".to_owned(), accepted_per_second);
        Ok(run)
    }

    fn limit(&mut self, rate: Option<f64>) -> Result<Option<Limit>, String> {
        if self.options.no_limit {
            return Ok(None);
        }
        let plan = self.plan(rate);
        let sync = self.options.server.sync;
        let mut limit = measure::limits(&plan, self.produce, self.target, sync)?;
        let rest = || self.target.rest();
        let (directory, server) = (self.target.directory(), &self.options.server);
        let (size, time) = (BANDWIDTH_SIZE, BANDWIDTH_TIME);
        let once = limit::sequential_bandwidth(directory, size, time, rest);
        limit.sequential_bytes_per_second = measured("sequential bandwidth", once);
        // How many shards a node has that runs already is not known.
        if server.address.is_none() {
            let twice = limit::written_twice(directory, server.shards, sync, size, time, rest);
            limit.written_twice_bytes_per_second = measured("what can be written twice", twice);
        }
        Ok(Some(limit))
    }
}

/// It takes room of its own; without it, what else was measured stays.
fn measured(what: &str, result: Result<f64, String>) -> Option<f64> {
    result.inspect_err(|why| eprintln!("SKIPPED: {what}: {why}")).ok()
}
