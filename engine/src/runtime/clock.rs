//! The only clock: what every step is told the time by.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::effect::Now;

/// Nanoseconds of the monotonic clock since it was first asked for: a stopwatch, which no step is told.
pub fn stopwatch_ns() -> u64 {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    BEGIN.elapsed().as_nanos() as u64
}

/// Monotonic since the start of the process, and the machine's wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The time of a step.
    pub fn now(&self) -> Now {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { monotonic_ms: self.monotonic_ms(), wall_ms: since_1970.as_millis() as i64 }
    }

    /// Milliseconds since the start.
    pub fn monotonic_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Microseconds since the start, for latencies.
    pub fn monotonic_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}
