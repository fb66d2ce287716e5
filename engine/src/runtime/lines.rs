//! Lines of the log that clients can cause: many of them are few.

use std::cell::Cell;

/// Lines that may follow each other at once: an operator who tries something sees each.
const BURST_MAX: u64 = 100;

/// One more line may be written each time this has passed.
const LINE_US: u64 = 200_000;

/// Lets lines into the log, and counts those that are left out.
#[derive(Debug, Default)]
pub struct LineLimit {
    /// When the lines that were written would have been paid for, one after another.
    paid_us: Cell<u64>,
    left_out: Cell<u64>,
}

impl LineLimit {
    /// Whether a line may be written now; if so, how many before it were not, unless none.
    pub fn admit(&self, now_us: u64) -> Option<Option<u64>> {
        let paid_us = self.paid_us.get().max(now_us) + LINE_US;
        if paid_us > now_us + BURST_MAX * LINE_US {
            self.left_out.set(self.left_out.get() + 1);
            return None;
        }
        self.paid_us.set(paid_us);
        Some(Some(self.left_out.take()).filter(|count| *count > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_a_burst_and_then_a_trickle_that_counts_the_rest() {
        let limit = LineLimit::default();
        let admitted = (0..BURST_MAX + 50).filter(|_| limit.admit(7) == Some(None)).count();
        assert_eq!(admitted as u64, BURST_MAX);
        assert_eq!(limit.admit(7 + LINE_US - 1), None, "not yet");
        assert_eq!(limit.admit(7 + LINE_US), Some(Some(51)), "and so many were left out");
        assert_eq!(limit.admit(7 + LINE_US), None, "one at a time");
        let later = 7 + (BURST_MAX + 10) * LINE_US;
        assert_eq!(limit.admit(later), Some(Some(1)));
        assert_eq!(limit.admit(later), Some(None), "a burst again");
    }
}
