//! `tidemill-bench fetch`: consumers at the tail, from the time that a record was due at the
//! producer until each consumer has it; and a bare `writev` of the same bytes to as many sockets,
//! which is the least that serving them can cost.
//!
//! Three parts a round: producing alone, producing with consumers, the bare `writev`. What the
//! consumers cost the server is the second without the first.

mod bare;
mod consumers;

use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;

use self::bare::Bare;
use self::consumers::{Arrival, Consumers};
use crate::client::Client;
use crate::latency::parse_rate;
use crate::load::kafka::Produce;
use crate::load::{Arrivals, Clock, new_histogram, to_latency};
use crate::measure::{IN_FLIGHT_MAX, Request, Target};
use crate::options::{LoadOptions, OutputOptions, ServerOptions};
use crate::run::{Latency, Measured, Percentiles, Run};

/// Arguments of the subcommand.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    load: LoadOptions,
    #[command(flatten)]
    output: OutputOptions,
    /// Consumers; each reads all partitions.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    consumers: u32,
    /// Records a second that are produced.
    #[arg(long, default_value_t = 10_000.0, value_parser = parse_rate)]
    rate: f64,
    /// Records in a request of the producer.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Rounds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

/// Runs the subcommand.
pub fn run(options: &Options) -> Result<(), String> {
    let mut server = options.server.clone();
    // Each consumer reads all partitions through one connection, as the bare `writev` is to one.
    let is_said = server.server_arg.iter().any(|argument| argument.starts_with("--advertise"));
    if !is_said && server.address.is_none() {
        server.server_arg.push("--advertise=node".to_owned());
    }
    let target = Target::open(&server)?;
    for round in 1..=options.rounds {
        let mut run = one(options, &server, &target)?;
        run.round = round;
        options.output.write(&run)?;
        tell(&run);
    }
    target.close()
}

fn one(options: &Options, server: &ServerOptions, target: &Target) -> Result<Run, String> {
    // One connection, so that requests and offsets have the same order. Batches are sent when they
    // are due: what is measured is the way from there.
    let load = LoadOptions { connections: 1, arrivals: Arrivals::Even, ..options.load.clone() };
    let mut shape = load.shape(options.batch as usize);
    shape.topic = format!("{}-{:08x}", shape.topic, crate::random() as u32);
    let leaders = target.make_topic(&shape.topic, load.partitions, &[])?;
    if leaders.0.iter().any(|leader| *leader != leaders.0[0]) {
        return Err("fetch wants one address for all partitions: --advertise node".to_owned());
    }
    let mut produce = Produce::new(&shape, &leaders)?;
    let per_second = options.rate / f64::from(options.batch);
    let mut plan = load.plan(&produce, Some(per_second), IN_FLIGHT_MAX);
    let mut run = target.describe("fetch", server)?;
    run.load = load.told(&plan, &produce, options.batch as usize, options.server.shards);
    let request = Request { records: options.batch.into(), size: produce.accepted_size() };

    let alone = target.measure(&plan, &mut produce, request, &mut |_| ())?;

    let clock = Clock::start();
    plan.clock = Some(clock);
    let mut client = Client::open(target.address()).map_err(|error| error.to_string())?;
    let ends = client.ends(&shape.topic, load.partitions)?;
    let consumers = Consumers::start(
        vec![target.address(); options.consumers as usize],
        Some((shape.topic.clone(), ends.clone())),
        clock,
    )?;
    produce.elsewhere();
    let measured = target.measure(&plan, &mut produce, request, &mut |_| ())?;
    if alone.refused + measured.refused > 0 {
        return Err(
            "requests were refused, so offsets do not tell when a record was due".to_owned()
        );
    }
    let due = Due { partitions: load.partitions.into(), records: options.batch.into(), ends };
    let wanted = measured.requests * u64::from(options.consumers);
    let consumed = consumers.finish(client.ends(&shape.topic, load.partitions)?)?;
    let (latency, deliveries) = due.latencies(&consumed.arrivals, &measured, &plan);
    if deliveries < wanted {
        let missing = wanted - deliveries;
        run.notes.push(format!("{missing} of {wanted} deliveries had not come in the end"));
    }

    let bare = Bare::start(options.consumers as usize, produce.batch(0), &shape.topic, per_second)?;
    let reading = Consumers::start(vec![bare.address(); options.consumers as usize], None, clock)?;
    let bare_done = bare.serve(plan.duration)?;
    let bare_consumed = reading.finish(Vec::new())?;

    run.result = measured;
    let acknowledged = std::mem::replace(&mut run.result.latency, latency);
    run.result.series.clear();
    figures(&mut run, &alone, &consumed, &bare_done, bare_consumed.bytes, options.consumers);
    run.figures.insert("produce_p50_us".to_owned(), acknowledged.percentiles.p50);
    run.figures.insert("produce_p99_us".to_owned(), acknowledged.percentiles.p99);
    run.notes.push(
        "latency runs from when a batch was due at the producer until a consumer has it".to_owned(),
    );
    Ok(run)
}

/// What serving consumers cost, beside the least.
fn figures(
    run: &mut Run,
    alone: &Measured,
    consumed: &consumers::Consumed,
    bare: &bare::Done,
    bare_bytes: u64,
    consumers: u32,
) {
    let both = run.result.cost.server_cpu_seconds;
    let extra = both.zip(alone.cost.server_cpu_seconds).map(|(both, alone)| both - alone);
    // The measured time alone, as the server's; the consumers' own figures include the warm-up.
    let bare_cpu = bare.cpu_seconds;
    let figures = [
        ("consumers", Some(f64::from(consumers))),
        ("consumed_bytes", Some(consumed.bytes as f64)),
        ("consumed_records", Some(consumed.records as f64)),
        ("fetch_responses", Some(consumed.responses as f64)),
        ("consumer_cpu_seconds", Some(consumed.cpu_seconds)),
        ("server_cpu_seconds_producing_alone", alone.cost.server_cpu_seconds),
        ("server_cpu_seconds_for_consumers", extra),
        ("bare_writev_cpu_seconds", Some(bare_cpu)),
        ("bare_writev_bytes", Some(bare_bytes as f64)),
        ("bare_writev_calls", Some(bare.calls as f64)),
        ("cpu_ratio_to_bare_writev", extra.filter(|_| bare_cpu > 0.0).map(|it| it / bare_cpu)),
        (
            "cpu_ratio_to_bare_writev_with_producing",
            both.filter(|_| bare_cpu > 0.0).map(|both| both / bare_cpu),
        ),
    ];
    run.figures
        .extend(figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
}

/// Which request an offset is of, and so when it was due.
struct Due {
    partitions: u64,
    records: u64,
    /// Where each partition ended before the first request.
    ends: Vec<u64>,
}

impl Due {
    fn request(&self, partition: u32, base_offset: u64) -> Option<u64> {
        let since = base_offset.checked_sub(*self.ends.get(partition as usize)?)?;
        Some(since / self.records * self.partitions + u64::from(partition))
    }

    /// Of all deliveries whose request was due in the measured time.
    fn latencies(
        &self,
        arrivals: &[Arrival],
        measured: &Measured,
        plan: &crate::load::Plan,
    ) -> (Latency, u64) {
        let mut times: Histogram<u64> = new_histogram();
        let start_ns = measured.start_ns;
        let gap_ns = 1e9 / plan.per_second.expect("an open loop");
        let begin_ns = start_ns + plan.warm_up.as_nanos() as u64;
        let end_ns = begin_ns + plan.duration.as_nanos() as u64;
        for arrival in arrivals {
            let Some(number) = self.request(arrival.partition, arrival.base_offset) else {
                continue;
            };
            let due = start_ns + (number as f64 * gap_ns) as u64;
            if (begin_ns..end_ns).contains(&due) {
                times.saturating_record(arrival.at_ns.saturating_sub(due));
            }
        }
        (to_latency(&times), times.len())
    }
}

fn tell(run: &Run) {
    let figure = |name: &str| run.figures.get(name).copied().unwrap_or(f64::NAN);
    let of: Percentiles = run.result.latency.percentiles;
    eprintln!(
        "round {}: {} consumers, {:.0} records/s produced; end to end p50 {:.1} p99 {:.1} p99.9 {:.1} max {:.1} us",
        run.round,
        figure("consumers"),
        run.result.records_per_second,
        of.p50,
        of.p99,
        of.p999,
        of.max
    );
    eprintln!(
        "  processor seconds: {:.2} producing alone, {:.2} more for consumers, {:.2} bare writev: ratio {:.2}",
        figure("server_cpu_seconds_producing_alone"),
        figure("server_cpu_seconds_for_consumers"),
        figure("bare_writev_cpu_seconds"),
        figure("cpu_ratio_to_bare_writev"),
    );
    for note in &run.notes {
        eprintln!("  {note}");
    }
}

/// How long consumers may take for what is left when the load has ended.
const CATCH_UP: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_tells_its_request() {
        let due = Due { partitions: 3, records: 10, ends: vec![100, 200, 300] };
        let requests = [(0, 100), (1, 200), (2, 300), (0, 110), (2, 310)];
        let found = requests.map(|(partition, offset)| due.request(partition, offset));
        assert_eq!(found, [Some(0), Some(1), Some(2), Some(3), Some(5)]);
        assert_eq!(due.request(1, 199), None, "from before");
        assert_eq!(due.request(3, 0), None, "no such partition");
    }
}
