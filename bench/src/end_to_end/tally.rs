//! Which records a result counts, and so how long each of them waited for its result.
//!
//! The n-th record of a key is in every count of the key from n on; its result is the first of them
//! that was consumed. A system that tells each count has one result for each record; one that
//! gathers counts has fewer, and no record waits longer for that than it really did.

use crate::load::Recorder;
use crate::load::kafka::KeyTurn;
use crate::run::{Latency, Point};

/// What was consumed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// The newest count of each key.
    counts: Vec<u64>,
    /// Their sum.
    total: u64,
    arrivals: Vec<Arrival>,
    repeated: u64,
}

/// A result that counts something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Arrival {
    key: u64,
    /// The count of the result before, and its own.
    from: u64,
    to: u64,
    at_ns: u64,
}

/// When the requests of a run were due.
#[derive(Debug, Clone, Copy)]
pub struct DueTimes {
    /// The first.
    pub start_ns: u64,
    /// From one to the next.
    pub gap_ns: f64,
    /// The measured time.
    pub measured_ns: (u64, u64),
    /// Length of a piece of it.
    pub piece_ns: u64,
}

/// How long records waited for their results.
#[derive(Debug, Clone, Default)]
pub struct Waits {
    /// All of those that were due in the measured time.
    pub latency: Latency,
    /// The same over time.
    pub series: Vec<Point>,
    /// Results that were consumed.
    pub results: u64,
    /// Those that count more than one record.
    pub gathered: u64,
    /// From the end of the measured time until the last one came.
    pub after_ns: u64,
}

impl Tally {
    /// Of so many keys, none of which was counted yet.
    pub fn new(keys: u64) -> Self {
        Self { counts: vec![0; keys as usize], ..Self::default() }
    }

    /// A result. One that says no more than one before it is counted twice by the system.
    pub fn take(&mut self, key: u64, count: u64, at_ns: u64) -> Result<(), String> {
        let known = self.counts.get_mut(key as usize);
        let known =
            known.ok_or_else(|| format!("a result for the key {key}, which nobody sent"))?;
        if count <= *known {
            self.repeated += 1;
            return Ok(());
        }
        self.arrivals.push(Arrival { key, from: *known, to: count, at_ns });
        self.total += count - *known;
        *known = count;
        Ok(())
    }

    /// Records that were counted, of all runs.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Results that said no more than one before them.
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Begins another run, which takes up the counts, and forgets when results came.
    pub fn again(&self) -> Self {
        Self { counts: self.counts.clone(), total: self.total, ..Self::default() }
    }

    /// How long the records of a run waited, which began with the counts of `before`.
    pub fn waits(&self, before: &Self, turns: &[KeyTurn], due: &DueTimes) -> Waits {
        let (begin_ns, end_ns) = due.measured_ns;
        let mut recorder = Recorder::new(begin_ns, due.piece_ns);
        let mut waits = Waits::default();
        for arrival in &self.arrivals {
            waits.results += 1;
            waits.after_ns = waits.after_ns.max(arrival.at_ns.saturating_sub(end_ns));
            waits.gathered += u64::from(arrival.to - arrival.from > 1);
            let key = arrival.key as usize;
            for index in arrival.from..arrival.to {
                let request = turns[key].request(index - before.counts[key]);
                let due_ns = due.start_ns + (request as f64 * due.gap_ns) as u64;
                if (begin_ns..end_ns).contains(&due_ns) {
                    recorder.record(due_ns, arrival.at_ns);
                }
            }
        }
        (waits.latency, waits.series) = recorder.finish();
        waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two keys by turns on one connection, a request each millisecond from 1 s on.
    fn turns() -> Vec<KeyTurn> {
        (0..2).map(|turn| KeyTurn { connection: (0, 1), turn: (turn, 2) }).collect()
    }

    fn due() -> DueTimes {
        DueTimes {
            start_ns: 1_000_000_000,
            gap_ns: 1e6,
            measured_ns: (1_002_000_000, 1_006_000_000),
            piece_ns: 1_000_000,
        }
    }

    fn at_ms(tenths: u64) -> u64 {
        1_000_000_000 + tenths * 100_000
    }

    #[test]
    fn each_record_waits_for_the_first_result_that_counts_it() {
        let before = Tally::new(2);
        let mut tally = before.again();
        // Due at 0, 2 and 4 ms; the first is of the warm-up.
        for (count, tenths) in [(1, 1), (3, 45)] {
            tally.take(0, count, at_ms(tenths)).expect("a key of ours");
        }
        // Due at 1, 3 and 5 ms.
        for (count, tenths) in [(1, 11), (2, 35), (3, 55)] {
            tally.take(1, count, at_ms(tenths)).expect("a key of ours");
        }
        let waits = tally.waits(&before, &turns(), &due());
        assert_eq!((waits.results, waits.gathered, tally.total()), (5, 1, 6));
        assert_eq!(waits.after_ns, 0, "all came within the measured time");
        let shorter = DueTimes { measured_ns: (1_000_000_000, 1_005_000_000), ..due() };
        let after_ns = tally.waits(&before, &turns(), &shorter).after_ns;
        assert_eq!(after_ns, 500_000, "the last came at 5.5 ms");
        assert_eq!(waits.latency.count, 4);
        let worst = waits.latency.percentiles.max;
        assert!((worst - 2500.0).abs() < 5.0, "due at 2 ms, counted at 4.5 ms: {worst}");
        assert!((waits.latency.percentiles.p50 - 500.0).abs() < 2.0, "{waits:?}");
    }

    #[test]
    fn the_next_run_goes_on_from_the_counts_of_the_last() {
        let mut tally = Tally::new(2);
        tally.take(0, 7, 1).expect("a key of ours");
        let before = tally.again();
        let mut tally = before.again();
        tally.take(0, 8, at_ms(1)).expect("a key of ours");
        tally.take(0, 9, at_ms(22)).expect("a key of ours");
        let waits = tally.waits(&before, &turns(), &due());
        assert_eq!((waits.latency.count, tally.total()), (1, 9), "the ninth was due at 2 ms");
        assert!((waits.latency.percentiles.max - 200.0).abs() < 1.0, "{waits:?}");
    }

    #[test]
    fn a_count_that_comes_again_is_noticed() {
        let mut tally = Tally::new(1);
        for count in [1, 2, 2, 1] {
            tally.take(0, count, 1).expect("a key of ours");
        }
        assert_eq!((tally.total(), tally.repeated()), (2, 2));
        assert!(tally.take(1, 1, 1).is_err(), "nobody sent that key");
    }
}
