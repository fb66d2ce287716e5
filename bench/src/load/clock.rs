//! Time in nanoseconds from one origin, and the due times of a load.

use std::time::{Duration, Instant};

/// Nanoseconds since it was made.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Begins at zero.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// How due times follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Arrivals {
    /// At equal distances.
    Even,
    /// At random, as from many clients that know nothing of each other (a Poisson process).
    Random,
}

/// The due times of requests at a rate, one after the other. They depend on nothing but this.
#[derive(Debug, Clone)]
pub struct Schedule {
    arrivals: Arrivals,
    gap_ns: f64,
    next_ns: f64,
    bits: u64,
}

impl Schedule {
    /// `per_second` requests from `start_ns` on.
    pub fn new(per_second: f64, arrivals: Arrivals, start_ns: u64) -> Self {
        assert!(per_second > 0.0, "the caller checks the rate");
        Self { arrivals, gap_ns: 1e9 / per_second, next_ns: start_ns as f64, bits: 0x9e37_79b9 }
    }

    /// When the next request is due.
    pub fn due(&self) -> u64 {
        self.next_ns as u64
    }

    /// Goes on to the one after it.
    pub fn advance(&mut self) {
        self.next_ns += match self.arrivals {
            Arrivals::Even => self.gap_ns,
            Arrivals::Random => self.gap_ns * -self.uniform().ln(),
        };
    }

    /// In (0, 1], the same sequence in every run.
    fn uniform(&mut self) -> f64 {
        self.bits = self.bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.bits;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((mixed >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

/// From seconds of an option.
pub fn duration_ns(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dues(arrivals: Arrivals, count: usize) -> Vec<u64> {
        let mut schedule = Schedule::new(1000.0, arrivals, 500);
        let next = || {
            let due = schedule.due();
            schedule.advance();
            due
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    #[test]
    fn even_requests_are_due_at_equal_distances() {
        assert_eq!(dues(Arrivals::Even, 4), [500, 1_000_500, 2_000_500, 3_000_500]);
    }

    #[test]
    fn random_requests_keep_the_rate_and_scatter_like_strangers() {
        let dues = dues(Arrivals::Random, 100_001);
        let gaps: Vec<f64> = dues.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        assert!((mean / 1e6 - 1.0).abs() < 0.02, "mean {mean}");
        let short = gaps.iter().filter(|gap| **gap < 1e6).count() as f64 / gaps.len() as f64;
        assert!((short - 0.632).abs() < 0.02, "1 - 1/e of the gaps are below the mean: {short}");
    }
}
