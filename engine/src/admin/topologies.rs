//! Topologies for people: the graphs with their numbers, as JSON and for Graphviz; and as metrics.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use serde_json::{Value, json};

use super::metrics::{COUNTER, GAUGE, escaped, gauge};
use super::telemetry::{
    EdgeFigures, Graph, OperatorFigures, ShardTelemetry, Spread, StageFigures, Telemetry,
    TopologyFigures,
};

/// What each shard says, in the order of the shards.
type Shards = [Arc<Vec<TopologyFigures>>];

/// Every topology: its graph, and how it is on each shard.
pub(super) fn page(telemetry: &Telemetry) -> Value {
    let shards: Vec<_> = telemetry.shards().map(ShardTelemetry::topologies).collect();
    let graphs = telemetry.about.graphs.iter().map(|graph| {
        let of_shard = |(shard, figures): (usize, &Arc<Vec<TopologyFigures>>)| {
            let it = figures.iter().find(|it| it.topology == graph.topology)?;
            Some(topology(shard, it))
        };
        let edges = graph.edges.iter().map(|(from, to)| json!({ "from": from, "to": to }));
        let state =
            |(operator, state): &(String, String)| json!({ "operator": operator, "state": state });
        let states = graph.states.iter().map(state);
        json!({
            "topology": graph.topology,
            "edges": edges.collect::<Vec<_>>(),
            "states": states.collect::<Vec<_>>(),
            "shards": shards.iter().enumerate().filter_map(of_shard).collect::<Vec<_>>(),
        })
    });
    graphs.collect()
}

fn topology(shard: usize, it: &TopologyFigures) -> Value {
    json!({
        "shard": shard,
        "paused_because": it.pause,
        "records": it.records,
        "arrivals": it.arrivals,
        "timers": it.timers,
        "sent": it.sent,
        "misplaced": it.misplaced,
        "late": it.late,
        "rejected": it.rejected,
        "missed": it.missed,
        "waiting": it.waiting,
        "waiting_bytes": it.waiting_size,
        "calls": it.calls,
        "calls_waiting": it.calls_waiting,
        "calls_open": it.calls_open,
        "watermark_ms": it.watermark_ms,
        "operators": it.operators.iter().map(operator).collect::<Vec<_>>(),
        "edges": it.edges.iter().map(edge).collect::<Vec<_>>(),
        "stages": it.stages.iter().map(stage).collect::<Vec<_>>(),
    })
}

fn operator(it: &OperatorFigures) -> Value {
    json!({
        "operator": it.operator,
        "records": it.records,
        "timers": it.timers,
        "emitted": it.emitted,
        "late": it.late,
        "failed": it.failed,
        "watermark_ms": it.watermark_ms,
        "watermark_lag_ms": it.watermark_lag_ms,
        "state_entries": it.state_entries,
        "state_bytes": it.state_size,
        "call_ns_mean": it.call_times.sum.checked_div(it.call_times.count()),
        "call_ns_p99": it.call_times.percentile(99),
    })
}

fn edge(it: &EdgeFigures) -> Value {
    json!({ "from": it.from, "to": it.to, "records": it.records })
}

fn stage(it: &StageFigures) -> Value {
    json!({ "stage": it.stage, "waiting": it.waiting, "waiting_bytes": it.waiting_size })
}

/// Sums of all shards for the picture of one topology.
#[derive(Default)]
struct Sums<'f> {
    /// Lines about nodes, by name.
    nodes: BTreeMap<String, BTreeMap<&'static str, u64>>,
    edges: BTreeMap<(&'f str, &'f str), u64>,
}

impl<'f> Sums<'f> {
    fn of(topology: &str, shards: &'f Shards) -> Self {
        let mut sums = Self::default();
        let figures = shards.iter().flat_map(|figures| figures.iter());
        for figures in figures.filter(|it| it.topology == topology) {
            for edge in &figures.edges {
                *sums.edges.entry((&edge.from, &edge.to)).or_default() += edge.records;
            }
            for it in &figures.operators {
                let facts = [
                    ("timers", it.timers),
                    ("late", it.late),
                    ("failed", it.failed),
                    ("entries", it.state_entries),
                    ("bytes of state", it.state_size),
                ];
                sums.add(it.operator.clone(), &facts);
            }
            for it in &figures.stages {
                sums.add(format!("key {}", it.stage), &[("waiting", it.waiting)]);
            }
        }
        sums
    }

    /// What is nothing is not shown.
    fn add(&mut self, node: String, facts: &[(&'static str, u64)]) {
        let node = self.nodes.entry(node).or_default();
        for (what, count) in facts.iter().filter(|(_, count)| *count > 0) {
            *node.entry(what).or_default() += count;
        }
    }
}

/// All graphs in the language of Graphviz: at each edge how many records passed it.
pub(super) fn dot(telemetry: &Telemetry) -> String {
    let shards: Vec<_> = telemetry.shards().map(ShardTelemetry::topologies).collect();
    let mut dot = String::from("digraph tidemill {\n");
    for (index, graph) in telemetry.about.graphs.iter().enumerate() {
        dot +=
            &format!("  subgraph cluster_{index} {{\n    label = {};\n", quoted(&graph.topology));
        dot += &cluster(graph, &Sums::of(&graph.topology, &shards));
        dot += "  }\n";
    }
    dot + "}\n"
}

fn cluster(graph: &Graph, sums: &Sums<'_>) -> String {
    // Nodes of one name belong to one topology each.
    let node = |node: &str| quoted(&format!("{}: {node}", graph.topology));
    let mut dot = String::new();
    for (name, facts) in sums.nodes.iter().filter(|(_, facts)| !facts.is_empty()) {
        let facts = facts.iter().map(|(what, count)| format!("{count} {what}"));
        let lines: Vec<String> = std::iter::once(name.clone()).chain(facts).collect();
        dot += &format!("    {} [label = {}];\n", node(name), quoted(&lines.join("\n")));
    }
    let mut edges: BTreeMap<(&str, &str), u64> =
        graph.edges.iter().map(|(from, to)| ((&**from, &**to), 0)).collect();
    for (edge, records) in &sums.edges {
        edges.insert(*edge, *records);
    }
    for ((from, to), records) in edges {
        dot += &format!("    {} -> {} [label = \"{records}\"];\n", node(from), node(to));
    }
    dot
}

fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{text}\"")
}

/// A family with one value for each topology and shard.
struct TopologyRow {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    value: fn(&TopologyFigures) -> u64,
}

fn topology_rows() -> [TopologyRow; 14] {
    let row = |name, help, kind, value| TopologyRow { name, help, unit: None, kind, value };
    [
        row("topology_records", "Records of sources that were processed.", COUNTER, |it| {
            it.records
        }),
        row("topology_arrivals", "Records of other shards that were processed.", COUNTER, |it| {
            it.arrivals
        }),
        row("topology_timers", "Timers that fired.", COUNTER, |it| it.timers),
        row("topology_sent", "Records that were sent to another shard.", COUNTER, |it| it.sent),
        row(
            "topology_misplaced",
            "Records whose producer put them into another partition than their key's.",
            COUNTER,
            |it| it.misplaced,
        ),
        row("topology_late", "Records that came too late.", COUNTER, |it| it.late),
        row("topology_rejected", "Calls that failed.", COUNTER, |it| it.rejected),
        row(
            "topology_missed",
            "Records that retention or a deletion took before they were read.",
            COUNTER,
            |it| it.missed,
        ),
        row("topology_waiting", "Entries of other shards that wait.", GAUGE, |it| it.waiting),
        TopologyRow {
            name: "topology_waiting",
            help: "Entries of other shards that wait, in bytes.",
            unit: Some(Unit::Bytes),
            kind: GAUGE,
            value: |it| it.waiting_size,
        },
        row("topology_calls", "Blocking calls whose result was taken.", COUNTER, |it| it.calls),
        row("topology_calls_waiting", "Records that wait for blocking calls.", GAUGE, |it| {
            it.calls_waiting
        }),
        row("topology_calls_open", "Blocking calls that are being made.", GAUGE, |it| {
            it.calls_open
        }),
        row(
            "topology_paused",
            "Whether the topology does not run; the page /topologies says why.",
            GAUGE,
            |it| u64::from(it.pause.is_some()),
        ),
    ]
}

/// A family with one value for each operator, topology and shard.
struct OperatorRow {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    value: fn(&OperatorFigures) -> u64,
}

fn operator_rows() -> [OperatorRow; 7] {
    let row = |name, help, value| OperatorRow { name, help, unit: None, kind: COUNTER, value };
    [
        row("operator_records", "Records that came to the operator.", |it| it.records),
        row("operator_timers", "Timers of the operator that fired.", |it| it.timers),
        row("operator_emitted", "Values that the operator passed on.", |it| it.emitted),
        row("operator_late", "Records that came too late for the operator.", |it| it.late),
        row("operator_failed", "Calls of the operator that failed.", |it| it.failed),
        OperatorRow {
            kind: GAUGE,
            ..row("operator_state_entries", "Entries of the operator's state.", |it| {
                it.state_entries
            })
        },
        OperatorRow {
            kind: GAUGE,
            unit: Some(Unit::Bytes),
            ..row("operator_state", "Keys and values of the operator's state.", |it| it.state_size)
        },
    ]
}

/// Writes the families of topologies.
pub(super) fn encode(telemetry: &Telemetry, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let shards: Vec<_> = telemetry.shards().map(ShardTelemetry::topologies).collect();
    for row in topology_rows() {
        let mut family =
            encoder.encode_descriptor(row.name, row.help, row.unit.as_ref(), row.kind)?;
        for (shard, figures) in all(&shards) {
            let name = escaped(&figures.topology);
            let labels = [("topology", &*name), ("shard", &*shard)];
            let value = (row.value)(figures);
            match row.kind {
                MetricType::Counter => {
                    ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
                }
                _ => gauge(&mut family, &labels, value)?,
            }
        }
    }
    encode_edges(&shards, encoder)?;
    encode_stages(&shards, encoder)?;
    encode_operators(&shards, encoder)
}

/// What each shard says of each topology.
fn all(shards: &Shards) -> impl Iterator<Item = (String, &TopologyFigures)> {
    let shards = shards.iter().enumerate();
    shards.flat_map(|(shard, figures)| figures.iter().map(move |it| (shard.to_string(), it)))
}

fn encode_edges(shards: &Shards, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let help = "Values that passed an edge of the graph in calls that succeeded.";
    let mut family = encoder.encode_descriptor("edge_records", help, None, COUNTER)?;
    for (shard, figures) in all(shards) {
        let topology = escaped(&figures.topology);
        for edge in &figures.edges {
            let (from, to) = (escaped(&edge.from), escaped(&edge.to));
            let labels =
                [("topology", &*topology), ("from", &*from), ("to", &*to), ("shard", &*shard)];
            ConstCounter::new(edge.records).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// A family with one value for each stage, topology and shard.
type StageRow = (&'static str, &'static str, Option<Unit>, fn(&StageFigures) -> u64);

fn encode_stages(shards: &Shards, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let rows: [StageRow; 2] = [
        (
            "stage_waiting_records",
            "Records of other shards that wait before a stage.",
            None,
            |it| it.waiting,
        ),
        (
            "stage_waiting",
            "Batches of records of other shards that wait before a stage.",
            Some(Unit::Bytes),
            |it| it.waiting_size,
        ),
    ];
    for (name, help, unit, value) in rows {
        let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), GAUGE)?;
        for (shard, figures) in all(shards) {
            let topology = escaped(&figures.topology);
            for stage in &figures.stages {
                let name = escaped(&stage.stage);
                let labels = [("topology", &*topology), ("stage", &*name), ("shard", &*shard)];
                gauge(&mut family, &labels, value(stage))?;
            }
        }
    }
    Ok(())
}

fn encode_operators(shards: &Shards, encoder: &mut DescriptorEncoder) -> fmt::Result {
    for row in operator_rows() {
        let mut family =
            encoder.encode_descriptor(row.name, row.help, row.unit.as_ref(), row.kind)?;
        for (shard, figures) in all(shards) {
            let topology = escaped(&figures.topology);
            for operator in &figures.operators {
                let name = escaped(&operator.operator);
                let labels = [("topology", &*topology), ("operator", &*name), ("shard", &*shard)];
                let value = (row.value)(operator);
                match row.kind {
                    MetricType::Counter => {
                        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
                    }
                    _ => gauge(&mut family, &labels, value)?,
                }
            }
        }
    }

    let help = "How far the event time of the operator is behind the clock.";
    let mut family =
        encoder.encode_descriptor("operator_watermark_lag", help, Some(&Unit::Seconds), GAUGE)?;
    for (shard, figures) in all(shards) {
        let topology = escaped(&figures.topology);
        for operator in &figures.operators {
            // One that was never told of time has no lag.
            let Some(lag_ms) = operator.watermark_lag_ms else { continue };
            let name = escaped(&operator.operator);
            let labels = [("topology", &*topology), ("operator", &*name), ("shard", &*shard)];
            ConstGauge::new(lag_ms as f64 / 1e3).encode(family.encode_family(&labels)?)?;
        }
    }
    encode_latency(shards, encoder)
}

/// One histogram for each operator, of all shards.
fn encode_latency(shards: &Shards, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let mut operators: BTreeMap<(&str, &str), Spread> = BTreeMap::new();
    for figures in shards.iter().flat_map(|figures| figures.iter()) {
        for operator in &figures.operators {
            let names = (&*figures.topology, &*operator.operator);
            operators.entry(names).or_default().add(&operator.call_times);
        }
    }
    let mut family = encoder.encode_descriptor(
        "operator_latency",
        "Calls of the operator without those that it passes values to, from a sample: one call in 16 \
         is measured and counts as 16.",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for ((topology, operator), spread) in operators {
        let (topology, operator) = (escaped(topology), escaped(operator));
        let labels = [("topology", &*topology), ("operator", &*operator)];
        // The encoder takes the largest float for "no bound".
        let bound = |it: &Option<u64>| it.map_or(f64::MAX, |bound| bound as f64 / NANOSECONDS);
        let buckets: Vec<(f64, u64)> =
            spread.buckets.iter().map(|(it, count)| (bound(it), *count)).collect();
        let sum = spread.sum as f64 / NANOSECONDS;
        let mut series = family.encode_family(&labels)?;
        series.encode_histogram::<NoLabelSet>(sum, spread.count(), &buckets, None)?;
    }
    Ok(())
}

/// Nanoseconds in a second.
const NANOSECONDS: f64 = 1e9;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use expect_test::expect;

    use super::*;
    use crate::admin::About;
    use crate::admin::metrics;

    fn operator(scale: u64) -> OperatorFigures {
        OperatorFigures {
            operator: "count".to_owned(),
            records: scale,
            timers: 2 * scale,
            emitted: 3 * scale,
            late: 4 * scale,
            failed: 5 * scale,
            watermark_ms: Some(1000),
            watermark_lag_ms: Some(-1500),
            state_entries: 6 * scale,
            state_size: 7 * scale,
            call_times: Spread {
                sum: 1_000_000_000 * scale,
                buckets: vec![(Some(256), 98 * scale), (Some(512), scale), (None, scale)],
            },
        }
    }

    /// Two shards, the second one with ten times as much.
    fn telemetry() -> Arc<Telemetry> {
        let names = [("topic in", "key in"), ("key in", "count"), ("count", "topic out")];
        let edges = names.map(|(from, to)| (from.to_owned(), to.to_owned()));
        let about = About {
            version: "1.2.3",
            configuration_hash: 7,
            data_dir: PathBuf::from("/nonexistent"),
            wal_dir: None,
            graphs: vec![Graph {
                topology: "t".to_owned(),
                edges: edges.to_vec(),
                states: vec![("count".to_owned(), "aggregate".to_owned())],
            }],
        };
        let telemetry = Telemetry::new(about, 2, Vec::new());
        for (shard, scale) in [(0, 1), (1, 10)] {
            let edge = |(from, to): (String, String)| EdgeFigures { from, to, records: scale };
            let figures = TopologyFigures {
                topology: "t".to_owned(),
                waiting: 8 * scale,
                waiting_size: 9 * scale,
                operators: vec![operator(scale)],
                edges: edges.clone().map(edge).to_vec(),
                stages: vec![StageFigures {
                    stage: "in".to_owned(),
                    waiting: 11 * scale,
                    waiting_size: 12 * scale,
                }],
                ..TopologyFigures::default()
            };
            telemetry.shard(shard).publish_topologies(vec![figures]);
        }
        telemetry
    }

    #[test]
    fn the_picture_has_the_numbers_of_all_shards() {
        expect![[r#"
            digraph tidemill {
              subgraph cluster_0 {
                label = "t";
                "t: count" [label = "count\n77 bytes of state\n66 entries\n55 failed\n44 late\n22 timers"];
                "t: key in" [label = "key in\n121 waiting"];
                "t: count" -> "t: topic out" [label = "11"];
                "t: key in" -> "t: count" [label = "11"];
                "t: topic in" -> "t: key in" [label = "11"];
              }
            }
        "#]].assert_eq(&dot(&telemetry()));
    }

    #[test]
    fn operators_edges_and_stages_are_metrics() {
        let page = metrics::page(&telemetry()).expect("it is written");
        let is_shown = |line: &&str| {
            let families = ["operator_", "edge_", "stage_", "topology_waiting"];
            // The longest calls are the shard's and have none here.
            families.iter().any(|family| line.contains(&format!("tidemill_{family}")))
                && !line.contains("operator_call_seconds")
        };
        let shown: Vec<&str> = page.lines().filter(is_shown).collect();
        expect![[r##"
            # HELP tidemill_topology_waiting Entries of other shards that wait.
            # TYPE tidemill_topology_waiting gauge
            tidemill_topology_waiting{topology="t",shard="0"} 8.0
            tidemill_topology_waiting{topology="t",shard="1"} 80.0
            # HELP tidemill_topology_waiting_bytes Entries of other shards that wait, in bytes.
            # TYPE tidemill_topology_waiting_bytes gauge
            # UNIT tidemill_topology_waiting_bytes bytes
            tidemill_topology_waiting_bytes{topology="t",shard="0"} 9.0
            tidemill_topology_waiting_bytes{topology="t",shard="1"} 90.0
            # HELP tidemill_edge_records Values that passed an edge of the graph in calls that succeeded.
            # TYPE tidemill_edge_records counter
            tidemill_edge_records_total{topology="t",from="topic in",to="key in",shard="0"} 1
            tidemill_edge_records_total{topology="t",from="key in",to="count",shard="0"} 1
            tidemill_edge_records_total{topology="t",from="count",to="topic out",shard="0"} 1
            tidemill_edge_records_total{topology="t",from="topic in",to="key in",shard="1"} 10
            tidemill_edge_records_total{topology="t",from="key in",to="count",shard="1"} 10
            tidemill_edge_records_total{topology="t",from="count",to="topic out",shard="1"} 10
            # HELP tidemill_stage_waiting_records Records of other shards that wait before a stage.
            # TYPE tidemill_stage_waiting_records gauge
            tidemill_stage_waiting_records{topology="t",stage="in",shard="0"} 11.0
            tidemill_stage_waiting_records{topology="t",stage="in",shard="1"} 110.0
            # HELP tidemill_stage_waiting_bytes Batches of records of other shards that wait before a stage.
            # TYPE tidemill_stage_waiting_bytes gauge
            # UNIT tidemill_stage_waiting_bytes bytes
            tidemill_stage_waiting_bytes{topology="t",stage="in",shard="0"} 12.0
            tidemill_stage_waiting_bytes{topology="t",stage="in",shard="1"} 120.0
            # HELP tidemill_operator_records Records that came to the operator.
            # TYPE tidemill_operator_records counter
            tidemill_operator_records_total{topology="t",operator="count",shard="0"} 1
            tidemill_operator_records_total{topology="t",operator="count",shard="1"} 10
            # HELP tidemill_operator_timers Timers of the operator that fired.
            # TYPE tidemill_operator_timers counter
            tidemill_operator_timers_total{topology="t",operator="count",shard="0"} 2
            tidemill_operator_timers_total{topology="t",operator="count",shard="1"} 20
            # HELP tidemill_operator_emitted Values that the operator passed on.
            # TYPE tidemill_operator_emitted counter
            tidemill_operator_emitted_total{topology="t",operator="count",shard="0"} 3
            tidemill_operator_emitted_total{topology="t",operator="count",shard="1"} 30
            # HELP tidemill_operator_late Records that came too late for the operator.
            # TYPE tidemill_operator_late counter
            tidemill_operator_late_total{topology="t",operator="count",shard="0"} 4
            tidemill_operator_late_total{topology="t",operator="count",shard="1"} 40
            # HELP tidemill_operator_failed Calls of the operator that failed.
            # TYPE tidemill_operator_failed counter
            tidemill_operator_failed_total{topology="t",operator="count",shard="0"} 5
            tidemill_operator_failed_total{topology="t",operator="count",shard="1"} 50
            # HELP tidemill_operator_state_entries Entries of the operator's state.
            # TYPE tidemill_operator_state_entries gauge
            tidemill_operator_state_entries{topology="t",operator="count",shard="0"} 6.0
            tidemill_operator_state_entries{topology="t",operator="count",shard="1"} 60.0
            # HELP tidemill_operator_state_bytes Keys and values of the operator's state.
            # TYPE tidemill_operator_state_bytes gauge
            # UNIT tidemill_operator_state_bytes bytes
            tidemill_operator_state_bytes{topology="t",operator="count",shard="0"} 7.0
            tidemill_operator_state_bytes{topology="t",operator="count",shard="1"} 70.0
            # HELP tidemill_operator_watermark_lag_seconds How far the event time of the operator is behind the clock.
            # TYPE tidemill_operator_watermark_lag_seconds gauge
            # UNIT tidemill_operator_watermark_lag_seconds seconds
            tidemill_operator_watermark_lag_seconds{topology="t",operator="count",shard="0"} -1.5
            tidemill_operator_watermark_lag_seconds{topology="t",operator="count",shard="1"} -1.5
            # HELP tidemill_operator_latency_seconds Calls of the operator without those that it passes values to, from a sample: one call in 16 is measured and counts as 16.
            # TYPE tidemill_operator_latency_seconds histogram
            # UNIT tidemill_operator_latency_seconds seconds
            tidemill_operator_latency_seconds_sum{topology="t",operator="count"} 11.0
            tidemill_operator_latency_seconds_count{topology="t",operator="count"} 1100
            tidemill_operator_latency_seconds_bucket{le="2.56e-7",topology="t",operator="count"} 1078
            tidemill_operator_latency_seconds_bucket{le="5.12e-7",topology="t",operator="count"} 1089
            tidemill_operator_latency_seconds_bucket{le="+Inf",topology="t",operator="count"} 1100"##]].assert_eq(&shown.join("\n"));
    }

    #[test]
    fn the_json_page_has_the_same_numbers_for_each_shard() {
        let page = page(&telemetry());
        assert_eq!(page[0]["states"], json!([{"operator": "count", "state": "aggregate"}]));
        let shard = &page[0]["shards"][1];
        assert_eq!(shard["waiting_bytes"], 90);
        assert_eq!(shard["edges"][2], json!({"from": "count", "to": "topic out", "records": 10}));
        assert_eq!(
            shard["stages"][0],
            json!({"stage": "in", "waiting": 110, "waiting_bytes": 120})
        );
        let operator = &shard["operators"][0];
        assert_eq!(operator["state_entries"], 60);
        assert_eq!(operator["state_bytes"], 70);
        assert_eq!(operator["watermark_lag_ms"], -1500);
        assert_eq!(operator["call_ns_mean"], 10_000_000);
        assert_eq!(operator["call_ns_p99"], 512);
    }

    #[test]
    fn a_percentile_is_the_bound_that_holds_it() {
        let spread = Spread { sum: 0, buckets: vec![(Some(1), 1), (Some(2), 98), (None, 1)] };
        assert_eq!(spread.percentile(1), Some(1));
        assert_eq!(spread.percentile(2), Some(2));
        assert_eq!(spread.percentile(99), Some(2));
        assert_eq!(spread.percentile(100), None, "nobody knows how long that one took");
        assert_eq!(Spread::default().percentile(50), None);
    }
}
