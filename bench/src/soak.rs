//! `tidemill-bench soak`: hours at a steady rate, with settling and retention going on. Nothing may
//! grow, nothing may drift.

use std::time::Duration;

use clap::Args;

use crate::latency::parse_rate;
use crate::load::kafka::Produce;
use crate::machine;
use crate::measure::{IN_FLIGHT_MAX, Request, Target};
use crate::options::{LoadOptions, OutputOptions, ServerOptions, parse_seconds};
use crate::parse_size;
use crate::run::{Point, Run};
use crate::tell::tell;

/// Arguments of the subcommand.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    load: LoadOptions,
    #[command(flatten)]
    output: OutputOptions,
    /// Records a second.
    #[arg(long, default_value_t = 10_000.0, value_parser = parse_rate)]
    rate: f64,
    /// Records in a request.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// What a partition keeps at most; retention drops the rest while the load runs.
    #[arg(long, default_value = "256MiB", value_parser = parse_size)]
    retention: u64,
    /// Length of a piece of the series: what is compared with each other.
    #[arg(long, default_value = "1m", value_parser = parse_seconds)]
    piece: Duration,
}

/// Runs the subcommand. `--duration 1h` makes it a soak.
pub fn run(options: &Options) -> Result<(), String> {
    let target = Target::open(&options.server)?;
    let shape = options.load.shape(options.batch as usize);
    let retention = options.retention.to_string();
    let configs = [("retention.bytes", retention.as_str())];
    let leaders = target.make_topic(&shape.topic, options.load.partitions, &configs)?;
    let mut produce = Produce::new(&shape, &leaders)?;
    let per_second = options.rate / f64::from(options.batch);
    let mut plan = options.load.plan(&produce, Some(per_second), IN_FLIGHT_MAX);
    plan.gather = Duration::from_secs_f64(f64::from(options.batch - 1) / options.rate);
    plan.piece = options.piece;
    let mut run = target.describe("soak", &options.server)?;
    run.configuration.insert("retention.bytes".to_owned(), retention);
    run.load = options.load.told(&plan, &produce, options.batch as usize, options.server.shards);
    let request = Request { records: options.batch.into(), size: produce.accepted_size() };
    let mut samples = Vec::new();
    run.result = target.measure(&plan, &mut produce, request, &mut |mut point| {
        point.resident_bytes = target.pid().and_then(machine::resident_bytes);
        point.descriptors = target.pid().and_then(machine::descriptors);
        tell_piece(&point);
        samples.push(point);
    })?;
    for (point, sample) in run.result.series.iter_mut().zip(&samples) {
        (point.resident_bytes, point.descriptors) = (sample.resident_bytes, sample.descriptors);
    }
    judge(&mut run);
    options.output.write(&run)?;
    tell(&run);
    for (name, value) in &run.figures {
        eprintln!("  {name} {value:.3}");
    }
    target.close()
}

/// Slopes over the second half, when everything has been filled once; and the worst piece.
fn judge(run: &mut Run) {
    // The last piece may be short.
    let whole = run.result.series.len().saturating_sub(1).max(1);
    let points = &run.result.series[..whole.min(run.result.series.len())];
    let settled = &points[points.len() / 2..];
    let slope = |of: fn(&Point) -> Option<f64>| {
        let line: Vec<(f64, f64)> = settled
            .iter()
            .filter_map(|point| Some((point.until_seconds / 3600.0, of(point)?)))
            .collect();
        slope(&line)
    };
    let memory = slope(|point| point.resident_bytes.map(|bytes| bytes as f64));
    let descriptors = slope(|point| point.descriptors.map(|count| count as f64));
    let median_drift = slope(|point| Some(point.percentiles.p50));
    let mut tails: Vec<f64> = points.iter().map(|point| point.percentiles.p999).collect();
    tails.sort_by(f64::total_cmp);
    let worst = tails.last().zip(tails.get(tails.len() / 2)).map(|(worst, median)| worst / median);
    let figures = [
        ("resident_bytes_per_hour", memory),
        ("descriptors_per_hour", descriptors),
        ("p50_us_per_hour", median_drift),
        ("worst_p999_to_median_p999", worst),
    ];
    run.figures
        .extend(figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
}

/// Of the line with the least squares through the points; none through fewer than two.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x_mean, y_mean) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x_mean).powi(2)).sum();
    let together: f64 = points.iter().map(|point| (point.0 - x_mean) * (point.1 - y_mean)).sum();
    (points.len() > 1 && spread > 0.0).then(|| together / spread)
}

fn tell_piece(point: &Point) {
    eprintln!(
        "{:>7.0} s: p50 {:>8.1} p99 {:>8.1} p99.9 {:>8.1} max {:>9.1} us, {} answers, {} MiB, {} descriptors",
        point.until_seconds,
        point.percentiles.p50,
        point.percentiles.p99,
        point.percentiles.p999,
        point.percentiles.max,
        point.count,
        point.resident_bytes.unwrap_or_default() >> 20,
        point.descriptors.unwrap_or_default(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Percentiles;

    #[test]
    fn growth_in_the_second_half_and_the_worst_piece_show() {
        let mut run = Run::default();
        run.result.series = (0..121)
            .map(|minute: u64| Point {
                until_seconds: 60.0 * (minute + 1) as f64,
                // Fills for an hour, then a leak of a MiB a minute.
                resident_bytes: Some(if minute < 60 {
                    minute << 24
                } else {
                    (1 << 30) + (minute << 20)
                }),
                descriptors: Some(40),
                percentiles: Percentiles {
                    p50: 100.0,
                    p999: if minute == 30 { 1500.0 } else { 500.0 },
                    ..Percentiles::default()
                },
                ..Point::default()
            })
            .collect();
        judge(&mut run);
        let figure = |name: &str| run.figures[name];
        assert!((figure("resident_bytes_per_hour") / (60 << 20) as f64 - 1.0).abs() < 1e-6);
        assert!(figure("descriptors_per_hour").abs() < 1e-6);
        assert!(figure("p50_us_per_hour").abs() < 1e-6);
        assert!((figure("worst_p999_to_median_p999") - 3.0).abs() < 1e-6);
    }

    #[test]
    fn a_run_of_one_piece_has_no_slope() {
        let mut run = Run::default();
        run.result.series = vec![Point { resident_bytes: Some(1), ..Point::default() }];
        judge(&mut run);
        assert!(!run.figures.contains_key("resident_bytes_per_hour"));
        judge(&mut Run::default());
    }
}
