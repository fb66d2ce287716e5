//! `tidemill-bench compare-runs A B`: whether B is slower than A.
//!
//! The rule. Runs of A and B are paired: the same scenario, the same round. Each pair gives one
//! ratio, B to A, turned so that above one is worse. What is judged is the median of the ratios, and
//! its uncertainty comes from the pairs themselves: the interval from the k-th smallest to the k-th
//! largest ratio, with the largest k that still holds the true median with at least 93 % (for 5
//! to 7 pairs that is all of them). B is worse if the whole interval is above one and the median
//! is off by more than a tolerance; better the other way round; otherwise the pairs do not show a
//! difference. Fewer than 5 pairs cannot show any. Nothing is assumed of how times are distributed.
//!
//! Two binaries are measured alternately in one run, so that what the machine does to one it does
//! to the other. Runs from different times are only comparable by their ratio to the limit that was
//! measured beside them; where both have one, that ratio is what is paired.

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::compare::{Comparison, Ground, Shared, System, Turn};
use crate::latency::parse_rate;
use crate::node;
use crate::options::{OutputOptions, parse_seconds};
use crate::peers::Installed;
use crate::report;
use crate::run::Run;
use crate::summary::{self, Spread};

/// Fewer pairs show nothing.
const PAIRS_MIN: usize = 5;

/// Least chance that the interval holds the true median.
const CONFIDENCE: f64 = 0.93;

/// Arguments of the subcommand.
#[derive(Debug, Args)]
pub struct Options {
    /// Before: a file of JSON lines, or a `tidemill` to run.
    a: PathBuf,
    /// After: the same kind of thing.
    b: PathBuf,
    /// A difference of the median below this part is none.
    #[arg(long, default_value_t = 0.05, value_parser = parse_tolerance)]
    tolerance: f64,
    /// Rates for two binaries, in records a second.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000", value_parser = parse_rate)]
    rates: Vec<f64>,
    /// Rounds for two binaries; each gives a pair.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Measured seconds of a turn of a binary.
    #[arg(long, default_value = "10", value_parser = parse_seconds)]
    duration: Duration,
    /// Seconds before them.
    #[arg(long, default_value = "2", value_parser = parse_seconds)]
    warm_up: Duration,
    /// A directory on the file system to measure; never tmpfs [default: beside the build].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    output: OutputOptions,
}

/// What the pairs show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// B is worse.
    Worse,
    /// B is better.
    Better,
    /// No difference beyond the pairs' own scatter and the tolerance.
    Same,
    /// Too few pairs.
    Unknown,
}

/// One figure of one scenario, judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// What was measured.
    pub scenario: String,
    /// Which figure.
    pub figure: &'static str,
    /// How many pairs.
    pub pairs: usize,
    /// Median and interval of the ratios: above one is worse.
    pub ratio: Spread,
    /// What they show.
    pub verdict: Verdict,
}

/// A figure that is judged.
struct Figure {
    name: &'static str,
    of: fn(&Run) -> Option<f64>,
    more_is_better: bool,
}

const FIGURES: [Figure; 7] = [
    Figure { name: "p50", of: p50, more_is_better: false },
    Figure { name: "p99", of: p99, more_is_better: false },
    Figure { name: "p99.9", of: p999, more_is_better: false },
    Figure { name: "p50 to the limit", of: |run| run.ratio_to_limit?.p50, more_is_better: false },
    Figure { name: "p99 to the limit", of: |run| run.ratio_to_limit?.p99, more_is_better: false },
    Figure {
        name: "records/s",
        of: |run| summary::is_whole(run).then_some(run.result.records_per_second),
        more_is_better: true,
    },
    Figure {
        name: "server CPU per million records",
        of: |run| run.result.cost.server_cpu_seconds_per_million_records,
        more_is_better: false,
    },
];

fn p50(run: &Run) -> Option<f64> {
    without_limit(run).then_some(run.result.latency.percentiles.p50)
}

fn p99(run: &Run) -> Option<f64> {
    without_limit(run).then_some(run.result.latency.percentiles.p99)
}

fn p999(run: &Run) -> Option<f64> {
    without_limit(run).then_some(run.result.latency.percentiles.p999)
}

/// Whether a run's times have to be compared as they are.
fn without_limit(run: &Run) -> bool {
    run.ratio_to_limit.is_none() && run.result.latency.count > 0
}

/// Runs the subcommand. An error is also that B is worse.
pub fn run(options: &Options) -> Result<(), String> {
    let (a, b) = match (is_program(&options.a)?, is_program(&options.b)?) {
        (true, true) => measure(options)?,
        (false, false) => (report::read(&options.a)?, report::read(&options.b)?),
        _ => return Err("give two files of runs, or two binaries".to_owned()),
    };
    let judged = judge(&a, &b, options.tolerance);
    if judged.is_empty() {
        return Err("no run of A has the scenario and round of one of B".to_owned());
    }
    for line in &judged {
        println!("{line}");
    }
    let worse = judged.iter().filter(|line| line.verdict == Verdict::Worse).count();
    if worse > 0 { Err(format!("a regression: {worse} figures are worse")) } else { Ok(()) }
}

/// The two binaries by turns, with the first of a round changing.
fn measure(options: &Options) -> Result<(Vec<Run>, Vec<Run>), String> {
    let ground = Ground {
        installed: Installed::at(None)?,
        data: options.data_dir.clone().map_or_else(node::default_scratch, Ok)?,
        shards: 2,
        arguments: Vec::new(),
    };
    ground.prepare()?;
    let shared =
        Shared { size: 256, partitions: 4, connections: 4, warm_up: options.warm_up, shards: 2 };
    let bound = Duration::from_millis(5);
    let duration = options.duration;
    // The two are each other's measure.
    let comparison =
        Comparison { ground, shared, duration, bound, sweep_max: f64::MAX, with_limit: false };
    let system = |name: &str, binary: &Path| System::Tidemill {
        name: name.to_owned(),
        binary: Some(binary.to_owned()),
    };
    let systems = [system("a", &options.a), system("b", &options.b)];
    let mut runs = [Vec::new(), Vec::new()];
    for round in 1..=options.rounds {
        for rate in &options.rates {
            let order = if round % 2 == 1 { [0, 1] } else { [1, 0] };
            for index in order {
                let turn = Turn::Latency(*rate);
                let run = comparison.take_turn(&systems[index], turn, round);
                if options.output.out.is_some() {
                    options.output.write(&run)?;
                }
                eprintln!("{}", summary::line(&run));
                runs[index].push(run);
            }
        }
    }
    let [a, b] = runs;
    Ok((a, b))
}

/// Judges each figure of each scenario that both have.
pub fn judge(a: &[Run], b: &[Run], tolerance: f64) -> Vec<Judged> {
    let key = |run: &Run| (run.system_key(), summary::title(run), run.round);
    let mut scenarios: Vec<(String, String)> = Vec::new();
    for run in a {
        let (system, title, _) = key(run);
        if !scenarios.contains(&(system.clone(), title.clone())) {
            scenarios.push((system, title));
        }
    }
    let mut judged = Vec::new();
    for (system, title) in scenarios {
        for figure in &FIGURES {
            let mut ratios = Vec::new();
            for before in a.iter().filter(|run| run.system_key() == system) {
                let wanted = key(before);
                if wanted.1 != title {
                    continue;
                }
                let after = b.iter().find(|run| key(run) == wanted);
                let pair =
                    after.and_then(|after| Some(((figure.of)(before)?, (figure.of)(after)?)));
                let (before, after) = match pair {
                    Some((before, after)) if before > 0.0 && after > 0.0 => (before, after),
                    _ => continue,
                };
                ratios.push(if figure.more_is_better { before / after } else { after / before });
            }
            let Some((pairs, ratio)) = interval(ratios) else { continue };
            let scenario =
                if system.is_empty() { title.clone() } else { format!("{system}: {title}") };
            let verdict = verdict(pairs, ratio, tolerance);
            judged.push(Judged { scenario, figure: figure.name, pairs, ratio, verdict });
        }
    }
    judged
}

/// The median of some ratios with its interval.
fn interval(mut ratios: Vec<f64>) -> Option<(usize, Spread)> {
    ratios.sort_by(f64::total_cmp);
    let median = Spread::of(ratios.clone())?.median;
    let dropped = dropped(ratios.len());
    let (least, most) = (ratios[dropped], ratios[ratios.len() - 1 - dropped]);
    Some((ratios.len(), Spread { median, least, most }))
}

/// How many of the smallest, and of the largest, may be left out of the interval.
fn dropped(count: usize) -> usize {
    // Chance that at most `dropped` of `count` fair coins show heads, on either side.
    let mut outside = 0.0;
    let mut term = 0.5_f64.powi(count as i32);
    let mut dropped = 0;
    for index in 0..count / 2 {
        outside += 2.0 * term;
        if 1.0 - outside < CONFIDENCE {
            break;
        }
        dropped = index;
        term *= (count - index) as f64 / (index + 1) as f64;
    }
    dropped
}

fn verdict(pairs: usize, ratio: Spread, tolerance: f64) -> Verdict {
    if pairs < PAIRS_MIN {
        Verdict::Unknown
    } else if ratio.least > 1.0 && ratio.median > 1.0 + tolerance {
        Verdict::Worse
    } else if ratio.most < 1.0 && ratio.median < 1.0 / (1.0 + tolerance) {
        Verdict::Better
    } else {
        Verdict::Same
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Worse => "WORSE",
            Verdict::Better => "better",
            Verdict::Same => "no difference shown",
            Verdict::Unknown => "too few pairs",
        };
        let Spread { median, least, most } = self.ratio;
        let (scenario, figure, pairs) = (&self.scenario, self.figure, self.pairs);
        write!(
            f,
            "{scenario}: {figure}: {verdict}: x{median:.3} ({least:.3} to {most:.3}, {pairs} pairs; above 1 is worse)"
        )
    }
}

impl Run {
    /// The system, unless it is one of two builds that are compared with each other.
    fn system_key(&self) -> String {
        if self.system == "a" || self.system == "b" { String::new() } else { self.system.clone() }
    }
}

/// Whether a file is a program, and not text.
fn is_program(path: &Path) -> Result<bool, String> {
    let says = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file = fs::File::open(path).map_err(says)?;
    let mut magic = [0; 4];
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(&magic == b"\x7fELF" || &magic[..2] == b"#!"),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(says(error)),
    }
}

fn parse_tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(part) if (0.0..1.0).contains(&part) => Ok(part),
        _ => Err("write a part, from 0 to 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Latency, Load, Measured, Percentiles, Ratio};

    fn runs(times: &[f64]) -> Vec<Run> {
        let run = |(index, p50): (usize, &f64)| Run {
            kind: "latency".to_owned(),
            system: "tidemill".to_owned(),
            round: index as u32 + 1,
            load: Load {
                requests_per_second: Some(1000.0),
                record_size: 256,
                records_per_request: 1,
                ..Default::default()
            },
            result: Measured {
                records: 10,
                records_per_second: 1000.0,
                latency: Latency {
                    count: 10,
                    percentiles: Percentiles { p50: *p50, ..Default::default() },
                    ..Default::default()
                },
                ..Default::default()
            },
            ..Run::default()
        };
        times.iter().enumerate().map(run).collect()
    }

    fn verdict_of(figure: &str, a: &[Run], b: &[Run]) -> Verdict {
        let judged = judge(a, b, 0.05);
        let found = judged.iter().find(|line| line.figure == figure);
        found.unwrap_or_else(|| panic!("{figure} in {judged:?}")).verdict
    }

    #[test]
    fn a_difference_counts_when_every_pair_shows_it() {
        let a = runs(&[100.0, 140.0, 90.0, 200.0, 110.0]);
        // The machine was slow in some rounds, for both.
        let slower = runs(&[112.0, 150.0, 101.0, 215.0, 130.0]);
        assert_eq!(verdict_of("p50", &a, &slower), Verdict::Worse);
        assert_eq!(verdict_of("p50", &slower, &a), Verdict::Better);
        assert_eq!(verdict_of("records/s", &a, &slower), Verdict::Same);
    }

    #[test]
    fn scatter_and_small_differences_show_nothing() {
        let a = runs(&[100.0, 100.0, 100.0, 100.0, 100.0]);
        let scattered = runs(&[150.0, 160.0, 99.0, 170.0, 180.0]);
        assert_eq!(verdict_of("p50", &a, &scattered), Verdict::Same, "one pair says otherwise");
        let little = runs(&[103.0, 104.0, 103.0, 102.0, 103.0]);
        assert_eq!(verdict_of("p50", &a, &little), Verdict::Same, "below the tolerance");
        let twice = runs(&[200.0; 4]);
        assert_eq!(verdict_of("p50", &a, &twice), Verdict::Unknown, "four pairs");
    }

    #[test]
    fn more_records_are_better() {
        let (a, mut b) = (runs(&[1.0; 6]), runs(&[1.0; 6]));
        b.iter_mut().for_each(|run| run.result.records_per_second = 800.0);
        assert_eq!(verdict_of("records/s", &a, &b), Verdict::Worse);
        assert_eq!(verdict_of("records/s", &b, &a), Verdict::Better);
    }

    #[test]
    fn with_a_limit_the_ratio_to_it_is_what_counts() {
        let (mut a, mut b) = (runs(&[100.0; 5]), runs(&[200.0; 5]));
        for (run, ratio) in a.iter_mut().map(|it| (it, 1.2)).chain(b.iter_mut().map(|it| (it, 1.2)))
        {
            run.ratio_to_limit = Some(Ratio { p50: Some(ratio), ..Default::default() });
        }
        assert_eq!(verdict_of("p50 to the limit", &a, &b), Verdict::Same);
        assert!(judge(&a, &b, 0.05).iter().all(|line| line.figure != "p50"));
    }

    #[test]
    fn the_interval_narrows_with_more_pairs() {
        let of: Vec<usize> = [1, 5, 7, 8, 9, 20].map(dropped).into();
        // 1 - 2 * sum of binomials: of 8 one on each side leaves 92.97 %, of 9 96.1 %.
        assert_eq!(of, [0, 0, 0, 0, 1, 5]);
    }

    #[test]
    fn scenarios_that_only_one_has_are_not_judged() {
        let (a, mut b) = (runs(&[1.0; 5]), runs(&[1.0; 5]));
        b.iter_mut().for_each(|run| run.load.requests_per_second = Some(10_000.0));
        assert_eq!(judge(&a, &b, 0.05), []);
    }
}
