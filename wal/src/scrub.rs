//! The background scrub: reads every extent again and again, at a capped rate, so that rot is
//! found while there may still be a copy.
//!
//! Pure: it says what to verify next. A helper thread populates and verifies the piece with
//! [`crate::extent::ExtentView::verify_range`] and reports faults with file and position.

use std::ops::Range;

use crate::format::FileName;
use crate::store::Store;

/// Bytes of one piece: at the rates that are usual a few each second.
pub const SCRUB_PIECE_SIZE: u64 = 1 << 20;

/// A round over all extents begins no sooner than this after the one before began: a small
/// directory is not read without end.
pub const SCRUB_ROUND_MS_MIN: u64 = 60 * 60 * 1000;

/// What to verify next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubPiece {
    /// The extent.
    pub file: FileName,
    /// Bytes of it.
    pub range: Range<u64>,
}

/// Where the scrub is.
#[derive(Debug, Default)]
pub struct Scrub {
    /// Number of the extent and bytes of it that are done.
    cursor: (u64, u64),
    /// When the pieces so far are paid for.
    ready_ms: u64,
    round_begin_ms: Option<u64>,
    rounds: u64,
}

impl Scrub {
    /// At the beginning.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next piece if it is time for one. `now_ms` never falls. A rate of zero: never.
    pub fn next(
        &mut self,
        store: &Store,
        now_ms: u64,
        rate_bytes_per_s: u64,
    ) -> Option<ScrubPiece> {
        if rate_bytes_per_s == 0 || now_ms < self.ready_ms {
            return None;
        }
        if self.round_begin_ms.is_none() {
            self.round_begin_ms = Some(now_ms);
        }
        let extents = &store.manifest().extents;
        let (id, mut from) = self.cursor;
        let at = extents.partition_point(|extent| extent.id < id);
        let Some(extent) = extents.get(at) else {
            self.end_round(now_ms);
            return None;
        };
        if extent.id != id {
            from = 0;
        }
        let end = extent.size.min(from + SCRUB_PIECE_SIZE);
        self.cursor = if end == extent.size { (extent.id + 1, 0) } else { (extent.id, end) };
        // Rounded up, so that the rate is a cap.
        let cost_ms = ((end - from) * 1000).div_ceil(rate_bytes_per_s);
        self.ready_ms = now_ms + cost_ms;
        Some(ScrubPiece { file: extent.file.clone(), range: from..end })
    }

    /// When the next piece may be due; nothing changes before.
    pub fn ready_ms(&self) -> u64 {
        self.ready_ms
    }

    /// Rounds that were finished.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    fn end_round(&mut self, now_ms: u64) {
        let begin = self.round_begin_ms.take().unwrap_or(now_ms);
        self.ready_ms = now_ms.max(begin + SCRUB_ROUND_MS_MIN);
        self.cursor = (0, 0);
        self.rounds += 1;
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::batch::tests::batch;
    use crate::extent::RunData;
    use crate::format::{PartitionId, SegmentId, Sequence, ShardEpoch, ShardId, TopicId};
    use crate::store::Settle;

    #[test]
    fn pieces_come_at_the_rate_and_rounds_have_a_pause() {
        let mut store = Store::new(ShardId(0), 1, [1; 16]);
        store.create(SegmentId(1), Sequence(1), ShardEpoch(1));
        store.on_created();
        let run = |index, size| RunData {
            partition: PartitionId { topic: TopicId([1; 16]), index },
            batches: vec![batch(0, 1, 1, size)],
        };
        store.settle(Settle {
            through: Sequence(1),
            valid_at: Sequence(1),
            durable: Sequence(1),
            first_segment: SegmentId(1),
            epoch: ShardEpoch(1),
            runs: vec![run(0, 3 << 19), run(1, 100)],
            changes: Vec::new(),
        });
        store.on_settled();
        let mut scrub = Scrub::new();
        let mut trace = String::new();
        let mut now_ms = 5;
        while scrub.rounds() < 2 {
            match scrub.next(&store, now_ms, 1 << 20) {
                Some(piece) => trace += &format!("{now_ms}: {} {:?}\n", piece.file, piece.range),
                None => trace += &format!("{now_ms}: nothing until {}\n", scrub.ready_ms()),
            }
            assert_eq!(scrub.next(&store, scrub.ready_ms() - 1, 1 << 20), None, "not too soon");
            now_ms = scrub.ready_ms();
        }
        assert_eq!(Scrub::new().next(&store, 0, 0), None);
        expect![[r#"
            5: 01010101010101010101010101010101-0-00000000000000000000-0.ext 0..1048576
            1005: 01010101010101010101010101010101-0-00000000000000000000-0.ext 1048576..1581056
            1513: 01010101010101010101010101010101-1-00000000000000000000-0.ext 0..8192
            1521: nothing until 3600005
            3600005: 01010101010101010101010101010101-0-00000000000000000000-0.ext 0..1048576
            3601005: 01010101010101010101010101010101-0-00000000000000000000-0.ext 1048576..1581056
            3601513: 01010101010101010101010101010101-1-00000000000000000000-0.ext 0..8192
            3601521: nothing until 7200005
        "#]]
        .assert_eq(&trace);
    }
}
