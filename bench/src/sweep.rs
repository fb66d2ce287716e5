//! The search for the knee: the highest rate that keeps a bound.
//!
//! The rate doubles until a probe fails, then the gap is halved, geometrically. A single probe can
//! fail by accident, so a failed one is tried once more.

use std::time::Duration;

use crate::run::{Measured, Run};

/// Halvings of the gap: the knee is known to a twentieth.
const HALVINGS: u32 = 4;

/// Most probes, whatever happens.
const PROBES_MAX: usize = 64;

/// A rate that was tried.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Probe {
    /// Requests a second.
    pub rate: f64,
    /// Whether it kept the bound.
    pub is_good: bool,
}

/// The state of the search.
#[derive(Debug)]
pub struct Sweep {
    first: f64,
    good: Option<f64>,
    bad: Option<f64>,
    failed_once: Option<f64>,
    halvings: u32,
    probes: usize,
}

impl Sweep {
    /// Begins at a rate.
    pub fn new(first: f64) -> Self {
        Self { first, good: None, bad: None, failed_once: None, halvings: 0, probes: 0 }
    }

    /// What to try next; none: the knee is known.
    pub fn next_rate(&self) -> Option<f64> {
        if self.probes == PROBES_MAX {
            return None;
        }
        if let Some(rate) = self.failed_once {
            return Some(rate);
        }
        match (self.good, self.bad) {
            (None, None) => Some(self.first),
            (Some(good), None) => Some(good * 2.0),
            (None, Some(bad)) if bad > 1.0 => Some(bad / 2.0),
            (None, Some(_)) => None,
            (Some(good), Some(bad)) => (self.halvings < HALVINGS).then(|| (good * bad).sqrt()),
        }
    }

    /// Whether a run at a rate of requests kept the bound: all answered, and in time.
    pub fn judge(&self, result: &Measured, rate: f64, bound: Duration) -> bool {
        let due = rate * result.seconds;
        let is_whole = result.requests as f64 >= due * 0.99 - 1.0;
        let in_time = result.latency.percentiles.p99 < bound.as_secs_f64() * 1e6;
        is_whole && in_time && result.refused == 0 && result.unanswered == 0
    }

    /// Says in a probe's run which one it was and what came of it: the knee is the highest rate of
    /// those that kept the bound.
    pub fn tell(&self, run: &mut Run, is_good: bool, bound: Duration) {
        run.round = self.probes as u32 + 1;
        run.figures.insert("sweep_bound_us".to_owned(), bound.as_secs_f64() * 1e6);
        run.figures.insert("sweep_bound_kept".to_owned(), f64::from(u8::from(is_good)));
    }

    /// What came of a probe.
    pub fn add(&mut self, probe: Probe) {
        self.probes += 1;
        if !probe.is_good && self.failed_once.is_none() {
            self.failed_once = Some(probe.rate);
            return;
        }
        self.failed_once = None;
        if self.good.is_some() && self.bad.is_some() {
            self.halvings += 1;
        }
        if probe.is_good {
            self.good = Some(probe.rate);
        } else {
            self.bad = Some(probe.rate);
        }
    }

    /// The highest rate that kept the bound.
    pub fn knee(&self) -> Option<f64> {
        self.good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches a server that holds up to a rate; every one of `accidents` fails once.
    fn search(first: f64, holds: f64, mut accidents: Vec<usize>) -> (Option<f64>, usize) {
        let mut sweep = Sweep::new(first);
        let mut count = 0;
        while let Some(rate) = sweep.next_rate() {
            let is_accident = accidents.contains(&count);
            accidents.retain(|at| *at != count);
            sweep.add(Probe { rate, is_good: rate <= holds && !is_accident });
            count += 1;
        }
        (sweep.knee(), count)
    }

    #[test]
    fn the_knee_is_found_from_below_and_from_above() {
        for first in [100.0, 64_000.0] {
            let (knee, count) = search(first, 10_000.0, Vec::new());
            let knee = knee.expect("found");
            assert!((9_500.0..=10_000.0).contains(&knee), "{knee} after {count} probes");
            assert!(count < 24, "{count}");
        }
    }

    #[test]
    fn one_accident_changes_nothing() {
        let (knee, _) = search(100.0, 10_000.0, vec![2, 9]);
        assert!((9_500.0..=10_000.0).contains(&knee.expect("found")));
    }

    #[test]
    fn a_server_that_holds_nothing_has_no_knee() {
        assert_eq!(search(100.0, 0.0, Vec::new()).0, None);
    }
}
