//! The same third-party client, franz-go, against every server that speaks Kafka's protocol.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::drive::Shared;
use super::system::Opened;
use crate::machine::{self, Device, DeviceCounters};
use crate::run::{Cost, Load, Measured, Run};

/// Records without an answer that the client may have.
pub const IN_FLIGHT: u64 = 20_000;

/// Most records that are consumed again: what a server did for the first ones it does for all.
const CONSUMED_MAX: u64 = 5_000_000;

const TOPIC: &str = "franz";

/// What one run of the client came to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Counted {
    /// In the measured time.
    records: u64,
    /// Its length.
    seconds: f64,
    /// With those before and after it.
    total: u64,
    server_cpu_seconds: Option<f64>,
    client_cpu_seconds: f64,
    device: Option<DeviceCounters>,
}

/// The program, and the server that it is run against.
pub struct Franz<'a> {
    /// The program.
    pub program: PathBuf,
    /// The server.
    pub opened: &'a Opened,
}

impl Franz<'_> {
    /// As many records as go through, and some of them back.
    pub fn measure(
        &self,
        shared: &Shared,
        duration: Duration,
        run: &mut Run,
    ) -> Result<(), String> {
        self.opened.target.make_topic(TOPIC, shared.partitions, &[])?;
        let seconds = duration.as_secs().max(1);
        let warm_up = shared.warm_up.as_secs().max(1);
        let produced = self.run(&[
            "produce".to_owned(),
            self.opened.target.address().to_string(),
            TOPIC.to_owned(),
            format!("seconds={seconds}"),
            format!("warmup={warm_up}"),
            format!("size={}", shared.size),
            format!("inflight={IN_FLIGHT}"),
        ])?;
        let records = produced.total.min(CONSUMED_MAX);
        let consumed = self.run(&[
            "consume".to_owned(),
            self.opened.target.address().to_string(),
            TOPIC.to_owned(),
            format!("records={records}"),
            format!("warmup={}", records / 5),
        ])?;
        run.load = Load {
            arrivals: "closed".to_owned(),
            in_flight_max: IN_FLIGHT,
            record_size: shared.size.into(),
            partitions: shared.partitions,
            connections: 1,
            compression: "none".to_owned(),
            acks: run.sync_method.clone(),
            warm_up_seconds: warm_up as f64,
            duration_seconds: seconds as f64,
            shards: shared.shards.into(),
            ..Load::default()
        };
        run.result = to_measured(&produced, shared.size.into(), self.source());
        run.figures = figures(&produced, &consumed);
        Ok(())
    }

    fn source(&self) -> String {
        Device::of(self.opened.target.directory()).map(|it| it.source()).unwrap_or_default()
    }

    fn run(&self, arguments: &[String]) -> Result<Counted, String> {
        let says = |error: std::io::Error| format!("{}: {error}", self.program.display());
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(says)?;
        let output = child.stdout.take().expect("piped");
        let counted = self.follow(&child, BufReader::new(output).lines());
        if counted.is_err() {
            // It may have ended by itself.
            let _ = child.kill();
        }
        let status = child.wait().map_err(says)?;
        if !status.success() {
            return Err(format!("{} {}: {status}", self.program.display(), arguments[0]));
        }
        counted
    }

    /// Reads the counters when the client says that the measured time begins and ends.
    fn follow(
        &self,
        child: &Child,
        mut lines: Lines<BufReader<ChildStdout>>,
    ) -> Result<Counted, String> {
        let mut line = || match lines.next() {
            Some(line) => line.map_err(|error| error.to_string()),
            None => Err("the client ended early".to_owned()),
        };
        let device = Device::of(self.opened.target.directory());
        let read = || {
            let server = self.opened.target.pid().and_then(machine::process_cpu_seconds);
            let client = machine::process_cpu_seconds(child.id()).unwrap_or_default();
            (server, client, device.as_ref().and_then(Device::counters))
        };
        expect(&line()?, "begin")?;
        let (server_before, client_before, device_before) = read();
        expect(&line()?, "end")?;
        let (server, client, device) = read();
        let (records, seconds, total) = parse_counts(&line()?)?;
        Ok(Counted {
            records,
            seconds,
            total,
            server_cpu_seconds: server.zip(server_before).map(|(after, before)| after - before),
            client_cpu_seconds: client - client_before,
            device: device.zip(device_before).map(|(after, before)| after.since(before)),
        })
    }
}

fn expect(line: &str, wanted: &str) -> Result<(), String> {
    if line == wanted { Ok(()) } else { Err(format!("the client says {line:?}, not {wanted:?}")) }
}

/// Reads `records=N seconds=S total=N`.
fn parse_counts(line: &str) -> Result<(u64, f64, u64), String> {
    let field = |name: &str| {
        let mut fields = line.split(' ').filter_map(|field| field.split_once('='));
        fields.find(|(found, _)| *found == name).map(|(_, value)| value)
    };
    let parsed = || {
        let records = field("records")?.parse().ok()?;
        let seconds = field("seconds")?.parse().ok().filter(|seconds| *seconds > 0.0)?;
        Some((records, seconds, field("total")?.parse().ok()?))
    };
    parsed().ok_or_else(|| format!("the client says {line:?}"))
}

fn to_measured(produced: &Counted, record_size: u64, device_source: String) -> Measured {
    let per_million = |seconds: f64| seconds * 1e6 / produced.records.max(1) as f64;
    let accepted_bytes = produced.records * record_size;
    let device = produced.device;
    Measured {
        seconds: produced.seconds,
        records: produced.records,
        accepted_bytes,
        records_per_second: produced.records as f64 / produced.seconds,
        cost: Cost {
            server_cpu_seconds: produced.server_cpu_seconds,
            server_cpu_seconds_per_million_records: produced.server_cpu_seconds.map(per_million),
            client_cpu_seconds: produced.client_cpu_seconds,
            client_cpu_seconds_per_million_records: per_million(produced.client_cpu_seconds),
            device_written_bytes: device.map(|device| device.written_bytes),
            device_writes: device.map(|device| device.writes),
            device_flushes: device.map(|device| device.flushes),
            device_source,
            device_bytes_per_accepted_byte: device
                .map(|device| device.written_bytes as f64 / accepted_bytes.max(1) as f64),
        },
        ..Measured::default()
    }
}

fn figures(produced: &Counted, consumed: &Counted) -> BTreeMap<String, f64> {
    let per_million = |counted: &Counted| {
        let seconds = counted.server_cpu_seconds?;
        Some(seconds * 1e6 / counted.records.max(1) as f64)
    };
    let rate = consumed.records as f64 / consumed.seconds;
    let mut figures = BTreeMap::from([("consumed_records_per_second".to_owned(), rate)]);
    let both = per_million(produced).zip(per_million(consumed));
    if let Some((produced, consumed)) = both {
        figures.insert("consumed_cpu_seconds_per_million".to_owned(), consumed);
        figures.insert("both_cpu_seconds_per_million".to_owned(), produced + consumed);
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_whole_or_not_at_all() {
        let line = "records=10 seconds=2.500000 total=12";
        assert_eq!(parse_counts(line), Ok((10, 2.5, 12)));
        for wrong in ["", "records=10 seconds=0 total=1", "records=10 total=12", "records=x"] {
            assert!(parse_counts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_cost_of_both_ways_is_added_for_each_record() {
        let counted = |records, cpu| Counted {
            records,
            seconds: 2.0,
            total: records,
            server_cpu_seconds: Some(cpu),
            client_cpu_seconds: 1.0,
            device: None,
        };
        let figures = figures(&counted(2_000_000, 1.0), &counted(500_000, 0.5));
        assert_eq!(figures["both_cpu_seconds_per_million"], 1.5);
        assert_eq!(figures["consumed_records_per_second"], 250_000.0);
    }
}
