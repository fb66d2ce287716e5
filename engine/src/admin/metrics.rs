//! The metrics page: OpenMetrics text, made from the telemetry at each scrape.
//!
//! Names follow Prometheus: base units in the name, `_total` on counters. An API or an error
//! class appears with its first request, so that thirty idle APIs do not cost six hundred series.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::telemetry::{Histogram, ShardTelemetry, Telemetry};
use super::topologies;

/// Content type of the page.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Most series of group lag in one page; more are counted, not listed. At 100 bytes each that is
/// about a megabyte a scrape.
const LAG_SERIES_MAX: usize = 10_000;

/// Writes the page.
pub(super) fn page(telemetry: &Arc<Telemetry>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("tidemill");
    registry.register_collector(Box::new(Page(Arc::clone(telemetry))));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Page(Arc<Telemetry>);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let telemetry = &*self.0;
        encode_node(telemetry, &mut encoder)?;
        encode_shards(telemetry, &mut encoder)?;
        encode_budgets(telemetry, &mut encoder)?;
        encode_apis(telemetry, &mut encoder)?;
        encode_lag(telemetry, &mut encoder)?;
        encode_topologies(telemetry, &mut encoder)?;
        encode_disks(telemetry, &mut encoder)
    }
}

fn encode_node(telemetry: &Telemetry, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "build_info",
        "The running release, in a label; the value is always 1.",
        None,
        MetricType::Gauge,
    )?;
    gauge(&mut family, &[("version", telemetry.about.version)], 1)?;

    let mut family = encoder.encode_descriptor(
        "configuration_hash",
        "A number that differs when any setting differs.",
        None,
        MetricType::Gauge,
    )?;
    gauge(&mut family, &[], u64::from(telemetry.about.configuration_hash))?;

    let mut family = encoder.encode_descriptor(
        "ready",
        "Whether the node takes requests: every shard has recovered and it is not stopping.",
        None,
        MetricType::Gauge,
    )?;
    gauge(&mut family, &[], u64::from(telemetry.is_ready()))
}

/// A family with one value for each shard.
struct Row {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    value: fn(&ShardTelemetry) -> u64,
}

pub(super) const GAUGE: MetricType = MetricType::Gauge;
pub(super) const COUNTER: MetricType = MetricType::Counter;

fn rows() -> Vec<Row> {
    let row = |name, help, unit, kind, value| Row { name, help, unit, kind, value };
    let bytes = Some(Unit::Bytes);
    vec![
        row(
            "shard_ready",
            "Whether the shard has recovered and takes requests.",
            None,
            GAUGE,
            |shard| u64::from(shard.ready.is_set()),
        ),
        row("frames", "Frames with steps that became durable.", None, COUNTER, |shard| {
            shard.frames.count()
        }),
        row(
            "idle_frames",
            "Frames written only to say that all before them is durable.",
            None,
            COUNTER,
            |shard| shard.idle_frames.count(),
        ),
        row("inbox_depth", "Messages that wait for a step.", None, GAUGE, |shard| {
            shard.inbox_depth.value()
        }),
        row("filling", "Size of the frame that fills.", bytes.clone(), GAUGE, |shard| {
            shard.filling.value()
        }),
        row(
            "waiting_batches",
            "Batches that wait for room in the log.",
            bytes.clone(),
            GAUGE,
            |shard| shard.waiting_batches.value(),
        ),
        row("state", "Keyed state, in memory and in snapshots.", bytes.clone(), GAUGE, |shard| {
            shard.state.value()
        }),
        row("wal_used", "Write-ahead log in use.", bytes.clone(), GAUGE, |shard| {
            shard.wal_used.value()
        }),
        row(
            "wal_capacity",
            "Write-ahead log that may be in use; produce is refused when it is.",
            bytes.clone(),
            GAUGE,
            |shard| shard.wal_capacity.value(),
        ),
        row(
            "settle_lag",
            "Durable data that has still to be moved into extents.",
            bytes.clone(),
            GAUGE,
            |shard| shard.settle_lag.value(),
        ),
        row("tail", "Records kept in memory for readers.", bytes.clone(), GAUGE, |shard| {
            shard.tail.value()
        }),
        row(
            "disk_full",
            "Whether the shard refuses writes because the disk is full.",
            None,
            GAUGE,
            |shard| u64::from(shard.disk_full.is_set()),
        ),
        row("scrubbed", "Extents that the scrub has read.", bytes.clone(), COUNTER, |shard| {
            shard.scrubbed.count()
        }),
        row(
            "damage",
            "Faults found in stored files by the scrub or by reads.",
            None,
            COUNTER,
            |shard| shard.damage.count(),
        ),
        row(
            "recovery_done",
            "What recovery has read and replayed.",
            bytes.clone(),
            GAUGE,
            |shard| shard.recovery_done.value(),
        ),
        row("recovery_work", "What recovery has to read and replay.", bytes, GAUGE, |shard| {
            shard.recovery_total.value()
        }),
        row("connections_open", "Open Kafka connections.", None, GAUGE, |shard| {
            shard.connections_open.value()
        }),
        row(
            "connections_accepted",
            "Kafka connections taken since the start.",
            None,
            COUNTER,
            |shard| shard.connections_accepted.count(),
        ),
        row(
            "connections_refused",
            "Kafka connections refused because connections_max was reached.",
            None,
            COUNTER,
            |shard| shard.connections_refused.count(),
        ),
    ]
}

fn encode_shards(telemetry: &Telemetry, encoder: &mut DescriptorEncoder) -> fmt::Result {
    for row in rows() {
        let mut family =
            encoder.encode_descriptor(row.name, row.help, row.unit.as_ref(), row.kind)?;
        for (index, shard) in telemetry.shards().enumerate() {
            let labels = [("shard", index.to_string())];
            let series = family.encode_family(&labels)?;
            let value = (row.value)(shard);
            match row.kind {
                MetricType::Counter => ConstCounter::new(value).encode(series)?,
                _ => ConstGauge::new(value as f64).encode(series)?,
            }
        }
    }

    let mut family = encoder.encode_descriptor(
        "recovery_estimate",
        "Time that recovery would take if the shard started now; while it recovers, what remains.",
        Some(&Unit::Seconds),
        GAUGE,
    )?;
    for (index, shard) in telemetry.shards().enumerate() {
        let seconds = shard.recovery_estimate_ms.value() as f64 / 1e3;
        let labels = [("shard", index.to_string())];
        ConstGauge::new(seconds).encode(family.encode_family(&labels)?)?;
    }

    let mut family = encoder.encode_descriptor(
        "commit_latency",
        "From the submission of a frame until it is durable.",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for (index, shard) in telemetry.shards().enumerate() {
        let labels = [("shard", index.to_string())];
        histogram(&mut family.encode_family(&labels)?, &[&shard.commit_latency], MICROSECONDS)?;
    }

    let mut family = encoder.encode_descriptor(
        "frame_size",
        "Sizes of frames with steps in them: how much one durable write carries.",
        Some(&Unit::Bytes),
        MetricType::Histogram,
    )?;
    for (index, shard) in telemetry.shards().enumerate() {
        let labels = [("shard", index.to_string())];
        histogram(&mut family.encode_family(&labels)?, &[&shard.frame_size], 1.0)?;
    }
    Ok(())
}

fn encode_budgets(telemetry: &Telemetry, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let budgets = |shard: &ShardTelemetry| {
        [&shard.receive_budget, &shard.send_budget, &shard.cold_read_budget]
            .map(|budget| (budget.used.value(), budget.limit.value()))
    };
    let families = [
        ("budget_used", "Memory in use of a bounded budget."),
        ("budget_limit", "Memory that the budget allows."),
    ];
    for (name, help) in families {
        let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Bytes), GAUGE)?;
        for (index, shard) in telemetry.shards().enumerate() {
            let shard_label = index.to_string();
            for (budget, (used, limit)) in
                ["receive", "send", "cold_read"].iter().zip(budgets(shard))
            {
                let value = if name == "budget_used" { used } else { limit };
                gauge(&mut family, &[("shard", &shard_label), ("budget", budget)], value)?;
            }
        }
    }
    Ok(())
}

fn encode_apis(telemetry: &Telemetry, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let used: Vec<(usize, &str)> = telemetry
        .api_names
        .iter()
        .copied()
        .enumerate()
        .filter(|(index, _)| telemetry.shards().any(|shard| shard.api(*index).requests() > 0))
        .collect();

    let mut family = encoder.encode_descriptor("requests", "Requests answered.", None, COUNTER)?;
    for (index, api) in &used {
        let count: u64 = telemetry.shards().map(|shard| shard.api(*index).requests()).sum();
        ConstCounter::new(count).encode(family.encode_family(&[("api", *api)])?)?;
    }

    let mut family = encoder.encode_descriptor(
        "request_errors",
        "Requests answered with an error: retriable by clients, refused as wrong, or our fault.",
        None,
        COUNTER,
    )?;
    for (index, api) in &used {
        for class in 0..3 {
            let counts = telemetry.shards().map(|shard| shard.api(*index).errors()[class]);
            let (name, count) = counts.fold(("", 0), |(_, sum), (name, count)| (name, sum + count));
            if count > 0 {
                let labels = [("api", *api), ("class", name)];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
    }

    let mut family = encoder.encode_descriptor(
        "request_latency",
        "From the last byte of a request to its answer, waiting for the disk or for records included.",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for (index, api) in &used {
        let parts: Vec<&Histogram> =
            telemetry.shards().map(|shard| shard.api(*index).latency()).collect();
        histogram(&mut family.encode_family(&[("api", *api)])?, &parts, MICROSECONDS)?;
    }
    Ok(())
}

fn encode_lag(telemetry: &Telemetry, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let offsets: Vec<_> = telemetry.shards().map(ShardTelemetry::offsets).collect();
    let ends: BTreeMap<_, _> = offsets
        .iter()
        .flat_map(|offsets| &offsets.ends)
        .map(|end| (end.partition, (&*end.topic, end.durable_end)))
        .collect();
    let mut omitted = 0u64;
    let mut listed = 0;

    let mut family = encoder.encode_descriptor(
        "group_lag_records",
        "Offsets between what a group has committed and the durable end of the partition.",
        None,
        GAUGE,
    )?;
    for committed in offsets.iter().flat_map(|offsets| &offsets.committed) {
        // A partition that is not there any more has no lag.
        let Some((topic, durable_end)) = ends.get(&committed.partition) else { continue };
        if listed == LAG_SERIES_MAX {
            omitted += 1;
            continue;
        }
        listed += 1;
        let group = escaped(&committed.group);
        let index = committed.partition.index.to_string();
        let labels = [("group", &*group), ("topic", topic), ("partition", &index)];
        gauge(&mut family, &labels, durable_end.saturating_sub(committed.offset))?;
    }

    let mut family = encoder.encode_descriptor(
        "group_lag_omitted_series",
        "Series of group lag left out of this page because there are too many.",
        None,
        GAUGE,
    )?;
    gauge(&mut family, &[], omitted)
}

fn encode_topologies(telemetry: &Telemetry, encoder: &mut DescriptorEncoder) -> fmt::Result {
    if telemetry.about.graphs.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(
        "operator_call",
        "The longest call of each step: what operators add to an acknowledgement at most.",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for (index, shard) in telemetry.shards().enumerate() {
        let labels = [("shard", index.to_string())];
        histogram(&mut family.encode_family(&labels)?, &[&shard.longest_call], MICROSECONDS)?;
    }
    topologies::encode(telemetry, encoder)
}

fn encode_disks(telemetry: &Telemetry, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let directories =
        [("data", Some(&telemetry.about.data_dir)), ("wal", telemetry.about.wal_dir.as_ref())];
    let spaces: Vec<(&str, Space)> =
        directories.into_iter().filter_map(|(name, path)| Some((name, space(path?)?))).collect();
    let families = [
        ("disk_free", "Room on the file system of a directory, for an unprivileged user."),
        ("disk_size", "Size of the file system of a directory."),
    ];
    for (name, help) in families {
        let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Bytes), GAUGE)?;
        for (directory, space) in &spaces {
            let value = if name == "disk_free" { space.free } else { space.size };
            gauge(&mut family, &[("directory", directory)], value)?;
        }
    }
    Ok(())
}

pub(super) fn gauge(
    family: &mut MetricEncoder,
    labels: &[(&str, &str)],
    value: u64,
) -> fmt::Result {
    // Above 2^53 a float rounds; no byte count here comes near.
    let value = value as f64;
    if labels.is_empty() {
        family.encode_gauge(&value)
    } else {
        family.encode_family(&labels)?.encode_gauge(&value)
    }
}

/// The encoder writes label values as they are, but a client chooses the names of groups, and a
/// quote in one would spoil the whole page.
pub(super) fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

/// Microseconds in a second.
const MICROSECONDS: f64 = 1e6;

/// Writes the sum of several histograms of one scale.
fn histogram(series: &mut MetricEncoder, parts: &[&Histogram], units_per_base: f64) -> fmt::Result {
    let mut buckets: Vec<(f64, u64)> = Vec::new();
    for part in parts {
        for (index, (bound, count)) in part.buckets().enumerate() {
            match buckets.get_mut(index) {
                Some((_, sum)) => *sum += count,
                // The encoder takes the largest float for "no bound".
                None => buckets
                    .push((bound.map_or(f64::MAX, |bound| bound as f64 / units_per_base), count)),
            }
        }
    }
    let sum: u64 = parts.iter().map(|part| part.sum()).sum();
    let count = buckets.iter().map(|(_, count)| count).sum();
    series.encode_histogram::<NoLabelSet>(sum as f64 / units_per_base, count, &buckets, None)
}

struct Space {
    free: u64,
    size: u64,
}

/// Asks the file system; `None` if it does not answer, for a scrape is no place to fail.
fn space(path: &Path) -> Option<Space> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut facts = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is a C string, and the call writes one `statvfs` into memory of that size.
    let result = unsafe { libc::statvfs(path.as_ptr(), facts.as_mut_ptr()) };
    if result != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it has filled the structure.
    let facts = unsafe { facts.assume_init() };
    Some(Space { free: facts.f_bavail * facts.f_frsize, size: facts.f_blocks * facts.f_frsize })
}
