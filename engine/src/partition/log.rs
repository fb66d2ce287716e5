//! One partition's log: its offsets and its memory tail.
//!
//! The tail holds every batch that is not settled yet, as slices of the frames that hold them; so
//! a consumer at the tail is served the very bytes that were written to disk. Older batches are in
//! extents, which the shard's store knows.
//!
//! Invariants: `start <= durable_end <= end`; tail batches are in offset order without overlap; a
//! batch is visible once `durable_end` is past it, which happens when its frame is durable.

use std::collections::VecDeque;

use bytes::Bytes;
use tidemill_wal::format::Sequence;
use tidemill_wal::mutation::{self, Mutation};

/// A batch that lives in memory and in the WAL.
#[derive(Debug, Clone)]
pub struct TailBatch {
    /// Offset of its first record.
    pub base_offset: u64,
    /// Offset of its last record.
    pub last_offset: u64,
    /// Largest timestamp of its records, in milliseconds since 1970.
    pub max_timestamp_ms: i64,
    /// The frame that holds it.
    pub sequence: Sequence,
    /// The batch as stored.
    pub bytes: Bytes,
}

/// Offsets and tail of one partition.
#[derive(Debug, Default)]
pub struct Log {
    start: u64,
    end: u64,
    durable_end: u64,
    tail: VecDeque<TailBatch>,
    tail_size: u64,
}

impl Log {
    /// A log as recovery knows it from state: empty tail, everything durable.
    pub fn new(start: u64, end: u64) -> Self {
        assert!(start <= end, "a log ends before it starts: {start} > {end}");
        Self { start, end, durable_end: end, tail: VecDeque::new(), tail_size: 0 }
    }

    /// First offset that can be read.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The offset that the next record gets.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// First offset that is not durable.
    pub fn durable_end(&self) -> u64 {
        self.durable_end
    }

    /// Bytes of batches in the tail.
    pub fn tail_size(&self) -> u64 {
        self.tail_size
    }

    /// First offset of the tail; `end` if it is empty.
    pub fn tail_start(&self) -> u64 {
        self.tail.front().map_or(self.end, |batch| batch.base_offset)
    }

    /// Gives offsets to `count` records; their batch comes with [`Self::push`] in order.
    pub fn reserve(&mut self, count: u32) -> u64 {
        assert!(count > 0, "a batch holds at least one record");
        let base = self.end;
        self.end += u64::from(count);
        base
    }

    /// Puts a batch at the end of the tail when its frame is submitted or replayed.
    pub fn push(&mut self, batch: TailBatch) {
        assert!(batch.base_offset <= batch.last_offset);
        if let Some(last) = self.tail.back() {
            assert!(batch.base_offset > last.last_offset, "batches of a log never overlap");
        }
        self.end = self.end.max(batch.last_offset + 1);
        if mutation::is_on(Mutation::ServeBeforeDurable) {
            self.durable_end = self.end;
        }
        self.tail_size += batch.bytes.len() as u64;
        self.tail.push_back(batch);
    }

    /// Whether a replayed batch fits behind the tail.
    pub fn follows(&self, batch: &TailBatch) -> bool {
        batch.base_offset <= batch.last_offset
            && self.tail.back().is_none_or(|last| batch.base_offset > last.last_offset)
    }

    /// Everything pushed with a frame up to `sequence` is durable. True if the end moved.
    pub fn on_durable(&mut self, sequence: Sequence) -> bool {
        let first_after = self.count_before(|batch| batch.sequence <= sequence);
        let Some(last) = first_after.checked_sub(1) else { return false };
        let end = self.tail[last].last_offset + 1;
        let moved = end > self.durable_end;
        self.durable_end = self.durable_end.max(end);
        moved
    }

    /// Removes the tail up to `sequence`: it is settled.
    pub fn drop_settled(&mut self, through: Sequence) {
        while self.tail.front().is_some_and(|batch| batch.sequence <= through) {
            if let Some(batch) = self.tail.pop_front() {
                self.tail_size -= batch.bytes.len() as u64;
            }
        }
        if self.tail.is_empty() {
            self.tail = VecDeque::new();
        }
    }

    /// Batches of the tail up to `through` that still have a readable record, to be settled.
    pub fn unsettled(&self, through: Sequence) -> impl Iterator<Item = &TailBatch> {
        self.tail
            .iter()
            .take_while(move |batch| batch.sequence <= through)
            .filter(|batch| batch.last_offset >= self.start)
    }

    /// How many batches of the tail come before something. It is mostly near the end, so the search
    /// begins there, where memory was touched lately.
    fn count_before(&self, is_before: impl Fn(&TailBatch) -> bool) -> usize {
        let (mut first, mut end) = (0, self.tail.len());
        let mut step = 1;
        while let Some(index) = end.checked_sub(step) {
            if is_before(&self.tail[index]) {
                first = index + 1;
                break;
            }
            (end, step) = (index, 2 * step);
        }
        while first < end {
            let middle = first.midpoint(end);
            if is_before(&self.tail[middle]) {
                first = middle + 1;
            } else {
                end = middle;
            }
        }
        first
    }

    /// Moves the start up to `offset`; never down, never past the durable end. True if it moved.
    pub fn advance_start(&mut self, offset: u64) -> bool {
        let start = offset.min(self.durable_end).max(self.start);
        let moved = start > self.start;
        self.start = start;
        moved
    }

    /// The first batch of the tail with a record at or after `offset`, durable or not.
    pub fn batch_at(&self, offset: u64) -> Option<&TailBatch> {
        let first = self.count_before(|batch| batch.last_offset < offset);
        self.tail.get(first)
    }

    /// Durable batches of the tail from the one that holds `offset`, at most `bytes_max` bytes but
    /// at least one. `None` if `offset` is before the tail.
    pub fn read(&self, offset: u64, bytes_max: u64) -> Option<Vec<&TailBatch>> {
        if offset < self.tail_start() {
            return None;
        }
        let first = self.count_before(|batch| batch.last_offset < offset);
        let mut size = 0;
        let mut batches = Vec::new();
        for batch in self.tail.iter().skip(first) {
            let is_durable = batch.last_offset < self.durable_end;
            if !is_durable || (!batches.is_empty() && size + batch.bytes.len() as u64 > bytes_max) {
                break;
            }
            size += batch.bytes.len() as u64;
            batches.push(batch);
        }
        Some(batches)
    }

    /// Bytes that a read at `offset` finds in the tail, counted no further than `enough`.
    pub fn readable_size(&self, offset: u64, enough: u64) -> u64 {
        let first = self.count_before(|batch| batch.last_offset < offset);
        let mut size = 0;
        for batch in self.tail.iter().skip(first) {
            if size >= enough || batch.last_offset >= self.durable_end {
                break;
            }
            size += batch.bytes.len() as u64;
        }
        size
    }

    /// The first durable batch of the tail with a record at or after `start` and a timestamp of at
    /// least `time_ms`.
    pub fn find_time(&self, time_ms: i64) -> Option<&TailBatch> {
        self.durable_tail()
            .find(|batch| batch.max_timestamp_ms >= time_ms && batch.last_offset >= self.start)
    }

    /// The first durable batch of the tail with the largest timestamp.
    pub fn find_max_timestamp(&self) -> Option<&TailBatch> {
        let mut best: Option<&TailBatch> = None;
        for batch in self.durable_tail().filter(|batch| batch.last_offset >= self.start) {
            if best.is_none_or(|best| batch.max_timestamp_ms > best.max_timestamp_ms) {
                best = Some(batch);
            }
        }
        best
    }

    /// Batches of the tail that consumers may see.
    pub fn durable_tail(&self) -> impl Iterator<Item = &TailBatch> {
        self.tail.iter().take_while(|batch| batch.last_offset < self.durable_end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(log: &mut Log, count: u32, sequence: u64) -> TailBatch {
        let base_offset = log.reserve(count);
        TailBatch {
            base_offset,
            last_offset: base_offset + u64::from(count) - 1,
            max_timestamp_ms: base_offset as i64 * 10,
            sequence: Sequence(sequence),
            bytes: Bytes::from(vec![0; 100]),
        }
    }

    fn log_of_three() -> Log {
        let mut log = Log::new(0, 0);
        for sequence in 1..=3 {
            let next = batch(&mut log, 10, sequence);
            log.push(next);
        }
        log
    }

    #[test]
    fn a_batch_is_visible_only_when_its_frame_is_durable() {
        let mut log = log_of_three();
        assert_eq!(log.read(0, 1000).map(|found| found.len()), Some(0));
        assert!(log.on_durable(Sequence(2)));
        assert_eq!(log.durable_end(), 20);
        assert_eq!(log.read(0, 1000).map(|found| found.len()), Some(2));
        assert_eq!(log.readable_size(0, u64::MAX), 200);
        assert!(!log.on_durable(Sequence(2)));
    }

    #[test]
    fn every_offset_is_found_in_a_tail_of_any_length() {
        let mut log = Log::new(0, 0);
        for count in 0..70 {
            for offset in 0..2 * count {
                let found = log.batch_at(offset).map(|batch| batch.base_offset);
                assert_eq!(found, Some(offset - offset % 2), "of {count}");
            }
            assert!(log.batch_at(2 * count).is_none());
            let next = batch(&mut log, 2, count + 1);
            log.push(next);
        }
    }

    #[test]
    fn a_read_begins_at_the_batch_that_holds_the_offset_and_returns_one_even_if_it_is_too_large() {
        let mut log = log_of_three();
        log.on_durable(Sequence(3));
        let bases = |offset, size| -> Vec<u64> {
            log.read(offset, size).unwrap_or_default().iter().map(|b| b.base_offset).collect()
        };
        assert_eq!(bases(15, 1), [10]);
        assert_eq!(bases(15, 200), [10, 20]);
        assert_eq!(bases(30, 200), [0; 0]);
    }

    #[test]
    fn settled_batches_leave_the_tail_and_are_read_elsewhere() {
        let mut log = log_of_three();
        log.on_durable(Sequence(3));
        log.drop_settled(Sequence(2));
        assert_eq!(log.tail_start(), 20);
        assert!(log.read(19, 1000).is_none());
        assert_eq!(log.read(20, 1000).map(|found| found.len()), Some(1));
        assert_eq!(log.tail_size(), 100);
    }

    #[test]
    fn the_start_never_goes_back_nor_past_the_durable_end() {
        let mut log = log_of_three();
        log.on_durable(Sequence(1));
        assert!(log.advance_start(25));
        assert_eq!(log.start(), 10);
        assert!(!log.advance_start(5));
        log.on_durable(Sequence(3));
        assert!(log.advance_start(25));
        assert_eq!(log.unsettled(Sequence(3)).count(), 1);
    }

    #[test]
    fn times_are_found_in_the_durable_part() {
        let mut log = log_of_three();
        assert!(log.find_time(0).is_none());
        log.on_durable(Sequence(2));
        assert_eq!(log.find_time(50).map(|b| b.base_offset), Some(10));
        assert!(log.find_time(150).is_none());
        assert_eq!(log.find_max_timestamp().map(|b| b.base_offset), Some(10));
    }
}
