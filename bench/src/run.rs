//! What one run measured, as one JSON line.
//!
//! A line stands alone: it says what was measured, where, how, and what that cost, so that a reader
//! needs no other file to judge it. Fields are added and not renamed; `format` counts the times
//! that this could not be kept.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

/// The present meaning of the fields.
pub const FORMAT: u32 = 1;

/// One run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Meaning of the fields: [`FORMAT`].
    pub format: u32,
    /// What was measured: `latency`, `throughput`, `fetch`, `recovery`, `soak`, `processing, count`, …
    pub kind: String,
    /// What it was measured on: `tidemill`, `kafka`, …
    pub system: String,
    /// When it began, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Which of the rounds of one command, from 1.
    pub round: u32,
    /// The command.
    pub command: Vec<String>,
    /// Commit of the tree; `-dirty` follows if files differed from it.
    pub commit: String,
    /// Where.
    pub machine: Machine,
    /// How the server makes writes durable: `dsync`, `fdatasync`, or in the server's own words.
    pub sync_method: String,
    /// Settings of the server that differ from its defaults.
    pub configuration: BTreeMap<String, String>,
    /// What was asked of the server.
    pub load: Load,
    /// What came of it.
    pub result: Measured,
    /// What the machine can do at best, measured beside this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// The result divided by the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_to_limit: Option<Ratio>,
    /// Figures of this kind of run alone, by name with unit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, f64>,
    /// What a reader has to know to judge the figures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Where a run was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor, as it calls itself.
    pub processor: String,
    /// Cores that the run could use.
    pub cores: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Whether the processor says that it is virtual.
    pub is_virtual: bool,
    /// Release of the kernel.
    pub kernel: String,
    /// File system of the data directory.
    pub file_system: String,
    /// Its mount options.
    pub mount_options: String,
    /// Block device below it, whole; empty if there is none.
    pub disk: String,
    /// Model of the device, as far as it says.
    pub disk_model: String,
    /// Its cache, as the kernel sees it: `write back` or `write through`.
    pub disk_cache: String,
    /// Its I/O scheduler.
    pub disk_scheduler: String,
    /// Running tasks, averaged over the minute before the run: above zero, others took part.
    pub load_average_before: f64,
}

/// What was asked of the server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Requests a second, at fixed due times; none: as many as fit `in_flight`.
    pub requests_per_second: Option<f64>,
    /// How due times follow each other: `even`, `random`; `closed` without a rate.
    pub arrivals: String,
    /// Most requests without an answer, of all connections together.
    pub in_flight_max: u64,
    /// Bytes of a record's key and value.
    pub record_size: u64,
    /// Records in each request.
    pub records_per_request: u64,
    /// Bytes of a request as it is sent.
    pub request_size: u64,
    /// Partitions.
    pub partitions: u32,
    /// Connections.
    pub connections: u32,
    /// Different keys; 0: records without a key.
    pub keys: u64,
    /// Codec of the batches.
    pub compression: String,
    /// `all`, or what the system calls its promise.
    pub acks: String,
    /// Seconds of load before the measured ones.
    pub warm_up_seconds: f64,
    /// Measured seconds.
    pub duration_seconds: f64,
    /// Shards of the server, if it has such.
    pub shards: u32,
}

/// What came of it, without the warm-up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// When the first request was due, for whoever has the clock.
    #[serde(skip)]
    pub start_ns: u64,
    /// From the first to the last measured due time.
    pub seconds: f64,
    /// Requests that were answered well.
    pub requests: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of those records, as sent (keys, values, and what the batch adds).
    pub accepted_bytes: u64,
    /// Records answered per second.
    pub records_per_second: f64,
    /// Requests that were refused. Their times do not count among the latencies.
    pub refused: u64,
    /// Requests without an answer at the end. They count with the time that they waited.
    pub unanswered: u64,
    /// From the time that a request had to be sent until it was: what the client itself added. It
    /// is part of the latencies.
    pub send_delay_us: Percentiles,
    /// From due time to answer.
    pub latency: Latency,
    /// The same over time.
    pub series: Vec<Point>,
    /// What it cost.
    pub cost: Cost,
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p999: f64,
    /// 99.99 %.
    pub p9999: f64,
    /// The largest.
    pub max: f64,
}

/// A distribution of times.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// The usual percentiles.
    #[serde(flatten)]
    pub percentiles: Percentiles,
    /// The whole curve: part of all (0 to 1) and microseconds, rising in both; ten points each
    /// time that the rest above halves.
    pub curve: Vec<(f64, f64)>,
}

/// One piece of a run's time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Seconds from the begin of the measured time to the end of the piece.
    pub until_seconds: f64,
    /// Answers in the piece.
    pub count: u64,
    /// Their percentiles, with two digits.
    #[serde(flatten)]
    pub percentiles: Percentiles,
    /// Memory of the server at its end, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Open descriptors of the server at its end, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<u64>,
}

/// What the measured time cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Processor seconds of the server, kernel included; none if its process is not known.
    pub server_cpu_seconds: Option<f64>,
    /// The same for a million records.
    pub server_cpu_seconds_per_million_records: Option<f64>,
    /// Processor seconds of the thread that makes the load.
    pub client_cpu_seconds: f64,
    /// The same for a million records.
    pub client_cpu_seconds_per_million_records: f64,
    /// Bytes that the device was told to write, by whomever.
    pub device_written_bytes: Option<u64>,
    /// Writes that the device was told, by whomever.
    pub device_writes: Option<u64>,
    /// Flushes that the device was told, by whomever.
    pub device_flushes: Option<u64>,
    /// Where the device's figures are from.
    pub device_source: String,
    /// Device bytes per byte accepted.
    pub device_bytes_per_accepted_byte: Option<f64>,
}

/// What the machine can do at best, measured beside the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// The same load, answered by a thread that makes one durable write at a time and nothing else:
    /// the least that an acknowledgement can take.
    pub acknowledgement: Option<Latency>,
    /// The same load, answered without a write.
    pub echo: Option<Latency>,
    /// Durable writes of 4 KiB, one after the other, as fast as they go.
    pub durable_write: Option<Latency>,
    /// Bytes a second in large sequential writes.
    pub sequential_bytes_per_second: Option<f64>,
    /// Bytes a second that are written to a log, durably, and then to another file: by as many threads
    /// of each kind as there are shards, and nothing else.
    pub written_twice_bytes_per_second: Option<f64>,
    /// How processors stood still, right before the other limits.
    pub pauses: Option<Pauses>,
    /// Processor seconds of the thread that answered for `acknowledgement`.
    pub acknowledgement_cpu_seconds: Option<f64>,
}

/// Times in which a processor did not run a thread that only looks at the clock, of half a millisecond or
/// more: the mean of all processors. Other programs are in it, and what a machine takes from those who
/// use all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Pauses {
    /// Pauses of one processor in a second.
    pub per_second: f64,
    /// Of the time of one processor.
    pub share: f64,
    /// The longest of all.
    pub longest_us: f64,
}

/// A result divided by the limit of the same round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Of the medians.
    pub p50: Option<f64>,
    /// Of the 99th percentiles.
    pub p99: Option<f64>,
    /// Of the 99.9th percentiles.
    pub p999: Option<f64>,
    /// Of bytes written to the device a second to its sequential bandwidth.
    pub bandwidth: Option<f64>,
    /// Of bytes written to the device a second to twice those that can be written twice.
    pub written_twice: Option<f64>,
}

impl Run {
    /// Writes the line.
    pub fn write_to(&self, mut to: impl Write) -> io::Result<()> {
        let mut line = serde_json::to_string(self).map_err(io::Error::other)?;
        line.push('\n');
        to.write_all(line.as_bytes())
    }

    /// Reads lines; empty ones are passed over.
    pub fn read_all(from: impl BufRead) -> Result<Vec<Self>, String> {
        let mut runs = Vec::new();
        for (index, line) in from.lines().enumerate() {
            let line = line.map_err(|error| error.to_string())?;
            if line.trim().is_empty() {
                continue;
            }
            let run: Self = serde_json::from_str(&line)
                .map_err(|error| format!("line {}: {error}", index + 1))?;
            if run.format != FORMAT {
                return Err(format!("line {}: format {}, not {FORMAT}", index + 1, run.format));
            }
            runs.push(run);
        }
        Ok(runs)
    }
}

/// A ratio below this is better than the limit by more than chance.
const RATIO_MIN: f64 = 0.95;

impl Run {
    /// Takes the limit of the same round. A result that is better than it is noted: the ratio then
    /// praises nobody.
    pub fn set_limit(&mut self, limit: Option<Limit>) {
        let acknowledgement = limit.as_ref().and_then(|limit| limit.acknowledgement.as_ref());
        self.ratio_to_limit = acknowledgement.map(|limit| Ratio::of(&self.result.latency, limit));
        if self.ratio_to_limit.and_then(|ratio| ratio.p50).is_some_and(|ratio| ratio < RATIO_MIN) {
            self.notes.push(
                "better than one durable write at a time: shards wrote at once, or others kept the \
                 machine busy during the limit; no ratio to read anything into"
                    .to_owned(),
            );
        }
        if let (Some(ratio), Some(limit)) = (&mut self.ratio_to_limit, &limit) {
            let per_second = |bytes: u64| bytes as f64 / self.result.seconds;
            let written = self.result.cost.device_written_bytes;
            let bandwidth = written.zip(limit.sequential_bytes_per_second);
            ratio.bandwidth = bandwidth.map(|(written, limit)| per_second(written) / limit);
            let twice = written.zip(limit.written_twice_bytes_per_second);
            ratio.written_twice = twice.map(|(written, limit)| per_second(written) / (2.0 * limit));
        }
        self.limit = limit;
    }
}

impl Ratio {
    /// Of a run's latencies to those of the limit.
    pub fn of(result: &Latency, limit: &Latency) -> Self {
        let ratio = |of: fn(&Percentiles) -> f64| {
            let limit = of(&limit.percentiles);
            (limit > 0.0).then(|| of(&result.percentiles) / limit)
        };
        Self {
            p50: ratio(|of| of.p50),
            p99: ratio(|of| of.p99),
            p999: ratio(|of| of.p999),
            bandwidth: None,
            written_twice: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latency(us: f64) -> Latency {
        let percentiles = Percentiles { p50: us, p99: us, p999: us, ..Percentiles::default() };
        Latency { count: 1, percentiles, curve: vec![(1.0, us)] }
    }

    fn run(us: f64, limit_us: f64) -> Run {
        let mut run = Run { format: FORMAT, ..Run::default() };
        run.result.latency = latency(us);
        let acknowledgement = Some(latency(limit_us));
        run.set_limit(Some(Limit { acknowledgement, ..Limit::default() }));
        run
    }

    #[test]
    fn a_result_better_than_its_limit_is_noted() {
        let honest = run(130.0, 100.0);
        assert_eq!(honest.ratio_to_limit.and_then(|ratio| ratio.p50), Some(1.3));
        assert!(honest.notes.is_empty());
        assert_eq!(run(50.0, 100.0).notes.len(), 1);
    }

    #[test]
    fn lines_are_read_as_they_were_written_and_no_other_format() {
        let runs = [run(130.0, 100.0), Run { format: FORMAT, ..Run::default() }];
        let mut lines = Vec::new();
        runs.iter().try_for_each(|run| run.write_to(&mut lines)).expect("memory");
        assert_eq!(Run::read_all(&lines[..]).expect("readable"), runs);
        let other = String::from_utf8(lines).expect("JSON").replace("\"format\":1", "\"format\":9");
        assert!(Run::read_all(other.as_bytes()).is_err());
        assert!(Run::read_all(&b"{}"[..]).is_err());
    }
}
