//! What a topology does, in numbers for people: counts, and how long the calls of its operators take.
//!
//! Nothing that a shard does depends on these. Time comes from outside, by a stopwatch that the
//! runtime hands in; without one no call is measured.

use super::Plan;
use super::run::{OperatorCounts, Wanted};

/// Reads a clock that only goes forward: nanoseconds since some moment.
pub type Stopwatch = fn() -> u64;

/// One call in so many is measured, and counts for that many: reading the clock twice around each
/// operator costs about what a small operator does.
pub const MEASURED_ONE_IN: u32 = 16;

/// Counts since the start, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records of sources.
    pub records: u64,
    /// Records from other shards.
    pub arrivals: u64,
    /// Timers that fired.
    pub timers: u64,
    /// Records that were sent to another shard, for their key lives there.
    pub sent: u64,
    /// Of these, those whose producer should have known.
    pub misplaced: u64,
    /// Records that came too late.
    pub late: u64,
    /// Calls that failed.
    pub rejected: u64,
    /// Blocking calls whose result was taken.
    pub calls: u64,
    /// Records that retention or a deletion took before they were read.
    pub missed: u64,
}

/// What a topology has done on one shard since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// All of it.
    pub counts: Counts,
    /// Each operator, by its number.
    pub operators: Vec<OperatorCounts>,
    /// How long the calls of each operator took, by its number.
    pub call_times: Vec<CallTimes>,
    /// Values that passed each edge of the graph, by its number.
    pub edges: Vec<u64>,
}

impl Figures {
    /// Of a topology that has done nothing.
    pub fn new(plan: &Plan) -> Self {
        let operator_count = plan.operator_names().len();
        Self {
            counts: Counts::default(),
            operators: vec![OperatorCounts::default(); operator_count],
            call_times: vec![CallTimes::default(); operator_count],
            edges: vec![0; plan.edges().len()],
        }
    }

    /// Counts what the operators of a call did, which has succeeded.
    pub(super) fn add(&mut self, wanted: &Wanted) {
        for (operator, counts) in &wanted.operators {
            self.operators[*operator] += *counts;
        }
        for (operator, took_ns) in &wanted.call_times {
            self.call_times[*operator].add(*took_ns);
        }
        for (edge, count) in &wanted.edges {
            self.edges[*edge] += count;
        }
    }
}

/// Upper bounds of call times: powers of two from `2^8` (256 ns) to `2^34` nanoseconds (17 s).
const BOUNDS: std::ops::RangeInclusive<u32> = 8..=34;
/// One bucket for each bound, and one above them.
const BUCKET_COUNT: usize = (*BOUNDS.end() - *BOUNDS.start()) as usize + 2;

/// How long the calls of one operator took, each without the operators that it passed values to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallTimes {
    sum_ns: u64,
    buckets: [u64; BUCKET_COUNT],
}

impl CallTimes {
    /// A call that was measured, and stands for all that were not since the one before.
    fn add(&mut self, took_ns: u64) {
        let weight = u64::from(MEASURED_ONE_IN);
        self.sum_ns = self.sum_ns.saturating_add(took_ns.saturating_mul(weight));
        let bits = u64::BITS - took_ns.saturating_sub(1).leading_zeros();
        let bucket = bits.saturating_sub(*BOUNDS.start()) as usize;
        self.buckets[bucket.min(BUCKET_COUNT - 1)] += weight;
    }

    /// Nanoseconds of all calls, about.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// Upper bounds in nanoseconds, `None` for no bound, each with the calls of its own bucket, about.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let bounds = BOUNDS.map(|exponent| Some(1 << exponent)).chain([None]);
        bounds.zip(self.buckets)
    }
}

/// Picks the calls that are measured: one in [`MEASURED_ONE_IN`] on average, at distances that no
/// pattern of the input has.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    pub(super) stopwatch: Option<Stopwatch>,
    /// Calls until the next one that is measured.
    left: u32,
    drawn: u64,
}

impl Sampler {
    /// What to measure the next call with, if it is one of those.
    pub(super) fn next(&mut self) -> Option<Stopwatch> {
        let stopwatch = self.stopwatch?;
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            return None;
        }
        // From 0 to twice the distance that is meant: a step of Knuth's generator, its upper bits.
        self.drawn = self.drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.left = (self.drawn >> 33) as u32 % (2 * MEASURED_ONE_IN - 1);
        Some(stopwatch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_smallest_bucket_that_holds_it() {
        let bucket = |took_ns: u64| {
            let mut times = CallTimes::default();
            times.add(took_ns);
            let (bound, count) = times.buckets().find(|(_, count)| *count > 0).expect("one");
            assert_eq!((count, times.sum_ns()), (16, took_ns.saturating_mul(16)));
            bound
        };
        assert_eq!(bucket(0), Some(256));
        assert_eq!(bucket(256), Some(256));
        assert_eq!(bucket(257), Some(512));
        assert_eq!(bucket(1 << 34), Some(1 << 34));
        assert_eq!(bucket((1 << 34) + 1), None);
        assert_eq!(bucket(u64::MAX), None);
    }

    #[test]
    fn one_call_in_sixteen_is_measured_whatever_the_rhythm_of_the_input() {
        let mut sampler = Sampler { stopwatch: Some(|| 0), ..Sampler::default() };
        let measured: Vec<usize> = (0..160_000).filter(|_| sampler.next().is_some()).collect();
        assert!((9_800..=10_200).contains(&measured.len()), "{}", measured.len());
        for rhythm in [2, 3, 16, 17, 31] {
            let met = (0..rhythm).map(|beat| {
                let is_met = |call: &&usize| **call % rhythm == beat;
                measured.iter().filter(is_met).count()
            });
            let expected = measured.len() / rhythm;
            for count in met {
                assert!((expected / 2..=expected * 2).contains(&count), "{count} of {expected}");
            }
        }
        assert!(Sampler::default().next().is_none(), "nobody asked for it");
    }
}
