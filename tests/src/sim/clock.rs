//! The machine's two clocks: one only goes forward, the other is set by people and by the network.

use tidemill::effect::Now;

use super::random::Random;

/// When every run begins, in milliseconds since 1970.
const WALL_MS: i64 = 1_700_000_000_000;

/// Furthest that one jump goes, in milliseconds.
const JUMP_MS_MAX: u64 = 60 * 60 * 1000;

/// Furthest that the wall clock is from the other one. Well below the day after which a silent
/// producer is forgotten, for that goes by the wall clock.
const OFFSET_MS_MAX: i64 = 10 * 60 * 60 * 1000;

/// The clocks.
#[derive(Debug)]
pub struct Clock {
    /// Microseconds of the clock that only goes forward.
    pub now_us: u64,
    offset_ms: i64,
    /// How much faster the wall clock goes, in millionths; below zero: slower.
    drift_ppm: i64,
    drifts_from_us: u64,
}

impl Clock {
    /// Clocks that agree and drift apart from now on.
    pub fn new(drift_ppm: i64) -> Self {
        let now_us = 1_000_000;
        Self { now_us, offset_ms: 0, drift_ppm, drifts_from_us: now_us }
    }

    /// Milliseconds since 1970, as the machine believes.
    pub fn wall_ms(&self) -> i64 {
        let drifting_ms = (self.now_us - self.drifts_from_us) as i64 / 1000;
        let drift_ms = drifting_ms * self.drift_ppm / 1_000_000;
        WALL_MS + (self.now_us / 1000) as i64 + self.offset_ms + drift_ms
    }

    /// Both clocks, as a step sees them.
    pub fn now(&self) -> Now {
        Now { monotonic_ms: self.now_us / 1000, wall_ms: self.wall_ms() }
    }

    /// Somebody sets the wall clock to what it should show at least.
    pub fn set_forward(&mut self, wall_ms: i64) {
        self.offset_ms += (wall_ms - self.wall_ms()).max(0);
    }

    /// Somebody sets the wall clock. Returns by how much, in milliseconds.
    pub fn jump(&mut self, random: &mut Random) -> i64 {
        let by_ms = random.skewed(1, JUMP_MS_MAX) as i64;
        let by_ms = if random.one_in(2) { by_ms } else { -by_ms };
        let offset_ms = (self.offset_ms + by_ms).clamp(-OFFSET_MS_MAX, OFFSET_MS_MAX);
        let jumped_ms = offset_ms - self.offset_ms;
        self.offset_ms = offset_ms;
        jumped_ms
    }
}
