//! How runs follow each other: in rounds beside the limit, or as probes of a search for the knee.

use std::time::Duration;

use crate::options::OutputOptions;
use crate::run::{Limit, Run};
use crate::sweep::{Probe, Sweep};
use crate::tell::{tell, tell_median};

/// What is measured again and again.
pub trait Subject {
    /// What its rate counts.
    const UNIT: &'static str;

    /// One run, at so many a second; none: as many as it lets.
    fn run(&mut self, rate: Option<f64>) -> Result<Run, String>;

    /// The limit for a run at that rate; none if it is not to be measured.
    fn limit(&mut self, rate: Option<f64>) -> Result<Option<Limit>, String>;
}

/// Rounds of a run and its limit, which take turns at going first.
pub fn alternate(
    subject: &mut impl Subject,
    rate: Option<f64>,
    rounds: u32,
    output: &OutputOptions,
) -> Result<(), String> {
    let mut runs = Vec::new();
    for round in 1..=rounds {
        let limit_first = round % 2 == 0;
        let before = if limit_first { subject.limit(rate)? } else { None };
        let mut run = subject.run(rate)?;
        run.set_limit(if limit_first { before } else { subject.limit(rate)? });
        run.round = round;
        output.write(&run)?;
        tell(&run);
        runs.push(run);
    }
    tell_median(&runs);
    Ok(())
}

/// The highest rate, from this one on, whose 99th percentile is below a bound.
pub fn sweep<S: Subject>(
    subject: &mut S,
    first: f64,
    bound: Duration,
    output: &OutputOptions,
) -> Result<(), String> {
    let mut sweep = Sweep::new(first);
    while let Some(rate) = sweep.next_rate() {
        let mut run = subject.run(Some(rate))?;
        let per_second = run.load.requests_per_second.unwrap_or(rate);
        let is_good = sweep.judge(&run.result, per_second, bound);
        sweep.tell(&mut run, is_good, bound);
        output.write(&run)?;
        tell(&run);
        sweep.add(Probe { rate, is_good });
    }
    match sweep.knee() {
        Some(knee) => {
            eprintln!("knee: {knee:.0} {}/s keep the 99th percentile in {bound:?}", S::UNIT);
        }
        None => eprintln!("no rate that was tried keeps the bound"),
    }
    Ok(())
}
