//! `tidemill-bench fetch`: consumers at the tail, from the time that a record was due at the
//! producer until each consumer has it; and a bare `writev` of the same bytes to as many sockets,
//! which is the least that serving them can cost: unasked, and where each answer is asked for.
//!
//! Four parts a round: producing alone, producing with consumers, the bare `writev` twice. What the
//! consumers cost the server is the second without the first.

mod bare;
mod consumers;

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;

pub use self::consumers::next_batch;

use self::bare::{Bare, Writes};
use self::consumers::{Arrival, Asking, Consumers, Route};
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
    let server = &options.server;
    let target = Target::open(server)?;
    for round in 1..=options.rounds {
        let mut run = one(options, server, &target)?;
        run.round = round;
        options.output.write(&run)?;
        tell(&run);
    }
    target.close()
}

fn one(options: &Options, server: &ServerOptions, target: &Target) -> Result<Run, String> {
    let mut shape = options.load.shape(options.batch as usize);
    shape.topic = format!("{}-{:08x}", shape.topic, crate::random() as u32);
    let leaders = target.make_topic(&shape.topic, options.load.partitions, &[])?;
    let brokers = leaders.brokers();
    // One connection to each broker, so that requests and offsets have the same order. Batches are
    // sent when they are due: what is measured is the way from there.
    shape.connections = brokers.len();
    let connections = brokers.len() as u32;
    let load = LoadOptions { connections, arrivals: Arrivals::Even, ..options.load.clone() };
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
    let route = |(address, partitions): (&SocketAddr, &Vec<u32>)| Route {
        address: *address,
        offsets: partitions.iter().map(|index| (*index, ends[*index as usize])).collect(),
    };
    let consumer: Vec<Route> = brokers.iter().map(route).collect();
    let routes = vec![consumer; options.consumers as usize].concat();
    let consumers = Consumers::start(routes.clone(), Asking::Follow(shape.topic.clone()), clock)?;
    produce.elsewhere();
    let measured = target.measure(&plan, &mut produce, request, &mut |_| ())?;
    if alone.refused + measured.refused > 0 {
        return Err(
            "requests were refused, so offsets do not tell when a record was due".to_owned()
        );
    }
    let due = Due { produce: &produce, records: options.batch.into(), ends: &ends };
    let wanted = measured.requests * u64::from(options.consumers);
    let consumed = consumers.finish(client.ends(&shape.topic, load.partitions)?)?;
    let (latency, deliveries) = due.latencies(&consumed.arrivals, &measured, &plan);
    if deliveries < wanted {
        let missing = wanted - deliveries;
        run.notes.push(format!("{missing} of {wanted} deliveries had not come in the end"));
    }

    let bare = |writes, asking| {
        let connections = (options.consumers as usize, brokers.len());
        let bare = Bare::start(connections, produce.batch(0), &shape.topic, per_second)?;
        let to_it = |route: &Route| Route { address: bare.address(), ..route.clone() };
        let reading = Consumers::start(routes.iter().map(to_it).collect(), asking, clock)?;
        let done = bare.serve(writes, plan.duration)?;
        reading.finish(Vec::new())?;
        Ok::<_, String>(done)
    };
    let unasked = bare(Writes::Unasked, Asking::Nothing)?;
    let asked = bare(Writes::Asked, Asking::Repeat(shape.topic.clone()))?;

    run.result = measured;
    let acknowledged = std::mem::replace(&mut run.result.latency, latency);
    run.result.series.clear();
    let begin_ns = run.result.start_ns + plan.warm_up.as_nanos() as u64;
    let measured_ns = begin_ns..begin_ns + plan.duration.as_nanos() as u64;
    let is_measured = |at_ns: &&u64| measured_ns.contains(*at_ns);
    let responses = consumed.answered_ns.iter().filter(is_measured).count() as f64;
    let serving = Serving { consumed: &consumed, responses, consumers: options.consumers };
    figures(&mut run, &alone, &serving, &unasked, &asked);
    if asked.skipped * 100 > asked.calls {
        let (skipped, calls) = (asked.skipped, asked.calls);
        run.notes.push(format!(
            "the consumers of the bare thread had not asked in time for {skipped} answers beside \
             {calls}: its cost of an answer has a read in vain for each of them"
        ));
    }
    run.figures.insert("produce_p50_us".to_owned(), acknowledged.percentiles.p50);
    run.figures.insert("produce_p99_us".to_owned(), acknowledged.percentiles.p99);
    run.notes.push(
        "latency runs from when a batch was due at the producer until a consumer has it".to_owned(),
    );
    Ok(run)
}

/// What consumers did.
struct Serving<'a> {
    consumed: &'a consumers::Consumed,
    /// Answers with records in the measured time.
    responses: f64,
    consumers: u32,
}

/// What serving consumers cost, beside the least: unasked, and by requests.
fn figures(
    run: &mut Run,
    alone: &Measured,
    serving: &Serving<'_>,
    unasked: &bare::Done,
    asked: &bare::Done,
) {
    let both = run.result.cost.server_cpu_seconds;
    let extra = both.zip(alone.cost.server_cpu_seconds).map(|(both, alone)| both - alone);
    let consumed = serving.consumed;
    let ratio = |server: Option<f64>, bare: f64| server.filter(|_| bare > 0.0).map(|it| it / bare);
    let each = |done: &bare::Done| done.cpu_seconds / (done.calls as f64).max(1.0);
    let answer = extra.map(|extra| extra / serving.responses.max(1.0));
    let figures = [
        ("consumers", Some(f64::from(serving.consumers))),
        ("consumed_bytes", Some(consumed.bytes as f64)),
        ("consumed_records", Some(consumed.records as f64)),
        ("fetch_responses", Some(consumed.responses as f64)),
        ("consumer_cpu_seconds", Some(consumed.cpu_seconds)),
        ("server_cpu_seconds_producing_alone", alone.cost.server_cpu_seconds),
        ("server_cpu_seconds_for_consumers", extra),
        ("server_cpu_us_per_answer", answer.map(|it| it * 1e6)),
        ("bare_writev_cpu_seconds", Some(unasked.cpu_seconds)),
        ("bare_writev_calls", Some(unasked.calls as f64)),
        ("bare_writev_cpu_us_per_answer", Some(each(unasked) * 1e6)),
        ("bare_asked_calls", Some(asked.calls as f64)),
        ("bare_asked_skips", Some(asked.skipped as f64)),
        ("bare_asked_cpu_us_per_answer", Some(each(asked) * 1e6)),
        ("cpu_ratio_to_bare_writev", ratio(extra, unasked.cpu_seconds)),
        ("cpu_ratio_to_bare_writev_with_producing", ratio(both, unasked.cpu_seconds)),
        ("cpu_ratio_to_bare_asked", ratio(answer, each(asked))),
    ];
    run.figures
        .extend(figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
}

/// Which request an offset is of, and so when it was due.
struct Due<'a> {
    produce: &'a Produce,
    records: u64,
    /// Where each partition ended before the first request.
    ends: &'a [u64],
}

impl Due<'_> {
    fn request(&self, partition: u32, base_offset: u64) -> Option<u64> {
        let since = base_offset.checked_sub(*self.ends.get(partition as usize)?)?;
        self.produce.number(partition, since / self.records)
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
    eprintln!(
        "  us an answer: {:.2}, {:.2} bare writev after a read of the request: ratio {:.2}",
        figure("server_cpu_us_per_answer"),
        figure("bare_asked_cpu_us_per_answer"),
        figure("cpu_ratio_to_bare_asked"),
    );
    for note in &run.notes {
        eprintln!("  {note}");
    }
}

/// How long consumers may take for what is left when the load has ended.
const CATCH_UP: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use tidemill::batch::Compression;

    use super::*;
    use crate::client::Leaders;
    use crate::load::kafka::Shape;

    #[test]
    fn an_offset_tells_its_request() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        // The first and the last partition on the first broker, whose connection is number zero.
        let leaders = Leaders(vec![at(1), at(2), at(1)]);
        let shape = Shape {
            topic: "t".to_owned(),
            record_size: 1,
            records: 10,
            keys: 0,
            compression: Compression::None,
            connections: 2,
        };
        let produce = Produce::new(&shape, &leaders).expect("good");
        let due = Due { produce: &produce, records: 10, ends: &[100, 200, 300] };
        let requests = [(0, 100), (1, 200), (2, 300), (1, 210), (0, 110), (2, 310)];
        let found = requests.map(|(partition, offset)| due.request(partition, offset));
        assert_eq!(found, [0, 1, 2, 3, 4, 6].map(Some));
        assert_eq!(due.request(1, 199), None, "from before");
        assert_eq!(due.request(3, 0), None, "no such partition");
    }
}
