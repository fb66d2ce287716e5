//! Lines for people, on standard error; the results proper are JSON.

use crate::run::{Percentiles, Run};

/// A line for people.
pub fn tell(run: &Run) {
    let result = &run.result;
    let show = |name: &str, of: &Percentiles| {
        eprintln!(
            "  {name:<8} p50 {:>9.1} p90 {:>9.1} p99 {:>9.1} p99.9 {:>9.1} p99.99 {:>9.1} max {:>9.1} us",
            of.p50, of.p90, of.p99, of.p999, of.p9999, of.max
        );
    };
    eprintln!(
        "round {}: {:.0} records/s of {:.0}; refused {}, unanswered {}; processor seconds: server {:.2}, client {:.2}",
        run.round,
        result.records_per_second,
        run.load.requests_per_second.unwrap_or_default() * run.load.records_per_request as f64,
        result.refused,
        result.unanswered,
        result.cost.server_cpu_seconds.unwrap_or_default(),
        result.cost.client_cpu_seconds,
    );
    show("result", &result.latency.percentiles);
    if let Some(limit) = &run.limit {
        let parts = [
            ("limit", &limit.acknowledgement),
            ("echo", &limit.echo),
            ("write", &limit.durable_write),
        ];
        for (name, latency) in parts {
            if let Some(latency) = latency {
                show(name, &latency.percentiles);
            }
        }
        if let Some(pauses) = &limit.pauses {
            eprintln!(
                "  a processor stood still {:.1} times a second, {:.2} % of the time, at most {:.0} us",
                pauses.per_second,
                100.0 * pauses.share,
                pauses.longest_us
            );
        }
    }
    if let Some(ratio) = &run.ratio_to_limit {
        let shown = |of: Option<f64>| of.map_or("-".to_owned(), |of| format!("{of:.2}"));
        eprintln!(
            "  ratio    p50 {} p99 {} p99.9 {}",
            shown(ratio.p50),
            shown(ratio.p99),
            shown(ratio.p999)
        );
        if ratio.bandwidth.or(ratio.written_twice).is_some() {
            eprintln!(
                "  of the device's sequential bandwidth {}, of what it can write twice {}",
                shown(ratio.bandwidth),
                shown(ratio.written_twice)
            );
        }
    }
    for note in &run.notes {
        eprintln!("  {note}");
    }
}

/// The median of the rounds' ratios, and how far they spread.
pub fn tell_median(runs: &[Run]) {
    let mut ratios: Vec<f64> =
        runs.iter().filter_map(|run| run.ratio_to_limit.as_ref()?.p50).collect();
    ratios.sort_by(f64::total_cmp);
    if let (Some(least), Some(most)) = (ratios.first(), ratios.last()) {
        let median = ratios[ratios.len() / 2];
        eprintln!("median ratio of p50 to the limit: {median:.2} ({least:.2} to {most:.2})");
    }
}
