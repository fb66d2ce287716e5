//! Histograms of one run: all of it, and piece by piece.

use hdrhistogram::{Counter, Histogram};

use crate::run::{Latency, Percentiles, Point};

/// Longest time that is told apart from longer ones: an hour.
const TIME_NS_MAX: u64 = 3_600_000_000_000;

/// Records times; nothing is computed before the end, so that recording takes nobody's time.
#[derive(Debug)]
pub struct Recorder {
    all: Histogram<u64>,
    piece: Histogram<u32>,
    pieces: Vec<(f64, Histogram<u32>)>,
    piece_ns: u64,
    piece_end_ns: u64,
    start_ns: u64,
}

impl Recorder {
    /// For times from `start_ns` on, in pieces of a length.
    pub fn new(start_ns: u64, piece_ns: u64) -> Self {
        Self {
            all: Histogram::new_with_bounds(1, TIME_NS_MAX, 3).expect("good bounds"),
            piece: new_piece(),
            pieces: Vec::with_capacity(1024),
            piece_ns,
            piece_end_ns: start_ns + piece_ns,
            start_ns,
        }
    }

    /// A request that was due and answered at these times.
    pub fn record(&mut self, due_ns: u64, now_ns: u64) {
        while now_ns >= self.piece_end_ns {
            self.end_piece();
        }
        let time = now_ns.saturating_sub(due_ns);
        self.all.saturating_record(time);
        self.piece.saturating_record(time);
    }

    fn end_piece(&mut self) {
        let until = (self.piece_end_ns - self.start_ns) as f64 / 1e9;
        self.pieces.push((until, std::mem::replace(&mut self.piece, new_piece())));
        self.piece_end_ns += self.piece_ns;
    }

    /// How many pieces are whole.
    pub fn piece_count(&self) -> usize {
        self.pieces.len()
    }

    /// The piece of this index.
    pub fn point(&self, index: usize) -> Option<Point> {
        let (until_seconds, piece) = self.pieces.get(index)?;
        Some(Point {
            until_seconds: *until_seconds,
            count: piece.len(),
            percentiles: percentiles_us(piece),
            ..Point::default()
        })
    }

    /// The whole, and its pieces. The last piece may be shorter.
    pub fn finish(mut self) -> (Latency, Vec<Point>) {
        if !self.piece.is_empty() {
            self.end_piece();
        }
        let points = (0..self.pieces.len()).filter_map(|index| self.point(index)).collect();
        (to_latency(&self.all), points)
    }
}

fn new_piece() -> Histogram<u32> {
    Histogram::new_with_bounds(1000, TIME_NS_MAX, 2).expect("good bounds")
}

/// A histogram of nanoseconds for everything that is not a [`Recorder`].
pub fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, TIME_NS_MAX, 3).expect("good bounds")
}

/// The usual percentiles of a histogram of nanoseconds.
pub fn percentiles_us<C: Counter>(times: &Histogram<C>) -> Percentiles {
    let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
    if times.is_empty() {
        return Percentiles::default();
    }
    Percentiles {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        p9999: at(0.9999),
        max: times.max() as f64 / 1e3,
    }
}

/// The whole distribution of a histogram of nanoseconds.
pub fn to_latency<C: Counter>(times: &Histogram<C>) -> Latency {
    let mut curve: Vec<(f64, f64)> = Vec::new();
    for step in times.iter_quantiles(10) {
        let point = (step.quantile_iterated_to(), step.value_iterated_to() as f64 / 1e3);
        if curve.last() != Some(&point) {
            curve.push(point);
        }
    }
    Latency { count: times.len(), percentiles: percentiles_us(times), curve }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_shows_in_its_piece_and_in_the_tail_of_the_whole() {
        let mut recorder = Recorder::new(0, 1_000_000);
        // A request each 10 µs answered at once, but nothing between 1.5 ms and 2.5 ms.
        for due in (0..4_000_000).step_by(10_000) {
            let answered = if (1_500_000..2_500_000).contains(&due) { 2_500_000 } else { due };
            recorder.record(due, answered + 5_000);
        }
        let (all, points) = recorder.finish();
        assert_eq!(all.count, 400);
        assert!((all.percentiles.p50 - 5.0).abs() < 0.1, "{:?}", all.percentiles);
        assert!((all.percentiles.p99 - 975.0).abs() < 25.0, "{:?}", all.percentiles);
        assert!((all.percentiles.max - 1005.0).abs() < 2.0, "{:?}", all.percentiles);
        let counts: Vec<u64> = points.iter().map(|point| point.count).collect();
        assert_eq!(counts, [100, 50, 150, 100], "answers count where they came");
        assert!(points[0].percentiles.max < 6.0);
        assert!(points[2].percentiles.max > 1000.0);
        let rises = |pair: &[(f64, f64)]| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1;
        assert!(all.curve.windows(2).all(rises), "{:?}", all.curve);
        assert_eq!(all.curve.last().map(|last| last.0), Some(1.0));
    }
}
