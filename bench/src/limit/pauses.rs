//! How long processors stand still: for other virtual machines, the host, other programs.

use std::thread;
use std::time::{Duration, Instant};

use tidemill::runtime::placement;

use crate::run::Pauses;

/// Between two looks at the clock there is less, unless the thread stood still.
const PAUSE_MIN: Duration = Duration::from_micros(500);

/// Looks at the clock on each processor for a time, one thread on each, all at once.
pub fn pauses(duration: Duration) -> Pauses {
    let cores = placement::allowed_cores();
    let watched: Vec<Watched> = thread::scope(|scope| {
        let watch = |core| {
            scope.spawn(move || {
                placement::keep_on(&[core]);
                let started = Instant::now();
                watch(duration, || started.elapsed())
            })
        };
        let watchers: Vec<_> = cores.into_iter().map(watch).collect();
        watchers.into_iter().map(|it| it.join().expect("it does not panic")).collect()
    });
    summary(&watched)
}

/// What one processor's thread saw.
struct Watched {
    pauses: Vec<Duration>,
    whole: Duration,
}

/// Looks at a clock until it shows so much.
fn watch(duration: Duration, clock: impl Fn() -> Duration) -> Watched {
    let (mut before, mut pauses) = (Duration::ZERO, Vec::new());
    while before < duration {
        let now = clock();
        if now - before >= PAUSE_MIN {
            pauses.push(now - before);
        }
        before = now;
    }
    Watched { pauses, whole: before }
}

fn summary(watched: &[Watched]) -> Pauses {
    let whole: f64 = watched.iter().map(|it| it.whole.as_secs_f64()).sum();
    let all = || watched.iter().flat_map(|it| &it.pauses);
    Pauses {
        per_second: all().count() as f64 / whole,
        share: all().sum::<Duration>().as_secs_f64() / whole,
        longest_us: all().max().map_or(0.0, |longest| longest.as_secs_f64() * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_missing_between_two_looks_is_a_pause() {
        let looks = [1, 2, 500, 1000, 3000, 3001, 3501, 4001].map(Duration::from_micros);
        let next = Cell::new(0);
        let clock = || looks[next.replace(next.get() + 1)];
        let one = watch(Duration::from_millis(4), clock);
        let other = Watched { pauses: Vec::new(), whole: Duration::from_micros(3999) };
        let found = summary(&[one, other]);
        assert_eq!(next.get(), looks.len());
        // Three of half a millisecond are in it, too, and one of 498 us is not.
        assert_eq!(found.longest_us, 2000.0);
        assert!((found.share - 3.5 / 8.0).abs() < 1e-9, "{found:?}");
        assert!((found.per_second - 500.0).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn every_processor_is_watched() {
        let found = pauses(Duration::from_millis(5));
        assert!((0.0..=1.0).contains(&found.share), "{found:?}");
    }
}
