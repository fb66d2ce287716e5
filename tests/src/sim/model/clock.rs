//! What the clocks may have shown, for rules that go by time. The machine's clock jumps, and a
//! shard looks at it at times that nobody else knows; so the rules ask what is possible.

/// The clocks of the world, followed event by event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    /// The clock that only goes forward, in microseconds.
    pub now_us: u64,
    /// The machine's clock, in milliseconds since 1970.
    pub wall_ms: i64,
    wall_ms_max: i64,
    /// By how much the machine's clock was ever set back, all together.
    fallen_ms: i64,
}

/// A point in time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moment {
    /// On the clock that only goes forward, in microseconds.
    pub now_us: u64,
    wall_ms: i64,
    fallen_ms: i64,
}

impl Clock {
    /// The clocks show this.
    pub fn advance(&mut self, now_us: u64, wall_ms: i64) {
        self.now_us = now_us;
        self.fallen_ms += (self.wall_ms - wall_ms).max(0);
        self.wall_ms = wall_ms;
        self.wall_ms_max = self.wall_ms_max.max(wall_ms);
    }

    /// Now.
    pub fn moment(&self) -> Moment {
        Moment { now_us: self.now_us, wall_ms: self.wall_ms, fallen_ms: self.fallen_ms }
    }

    /// The latest that anybody can have seen on the machine's clock.
    pub fn wall_ms_max(&self) -> i64 {
        self.wall_ms_max
    }

    /// The earliest that anybody can have seen on the machine's clock since then.
    pub fn wall_ms_min(&self, since: Moment) -> i64 {
        since.wall_ms - (self.fallen_ms - since.fallen_ms)
    }

    /// Whether the machine's clock may have shown so much more than at a time since then.
    pub fn may_have_passed(&self, since: Moment, span_ms: u64) -> bool {
        self.wall_ms_max.saturating_sub(self.wall_ms_min(since)).unsigned_abs() >= span_ms
    }
}
