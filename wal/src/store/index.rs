//! Where the batches of each partition are: lookups by offset and time over all extents.

use std::collections::BTreeMap;

use crate::extent::{ExtentRef, Run};
use crate::format::{FileName, PartitionId};

/// A run of a partition, and the file that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRef {
    /// Number of the extent.
    pub extent: u64,
    /// Its file.
    pub file: FileName,
    /// Bytes of the file.
    pub file_size: u64,
    /// Whose.
    pub partition: PartitionId,
    /// Offset of the first record.
    pub base: u64,
    /// One past the offset of the last record.
    pub end: u64,
    /// Largest timestamp, in milliseconds.
    pub max_timestamp_ms: i64,
    /// Bytes of batches.
    pub size: u64,
}

impl RunRef {
    pub(super) fn new(extent: &ExtentRef, run: &Run) -> Self {
        Self {
            extent: extent.id,
            file: extent.file.clone(),
            file_size: extent.size,
            partition: run.partition,
            base: run.base,
            end: run.end,
            max_timestamp_ms: run.max_timestamp_ms,
            size: run.size,
        }
    }
}

#[derive(Debug, Default)]
struct PartitionRuns {
    /// By base offset; they do not overlap.
    runs: BTreeMap<u64, RunRef>,
    size: u64,
}

/// The live runs of all partitions. Ordered maps, so that a walk is the same in every run of a
/// simulation.
#[derive(Debug, Default)]
pub(super) struct RunIndex {
    partitions: BTreeMap<PartitionId, PartitionRuns>,
}

impl RunIndex {
    /// The run that holds the offset, or the next one after a gap.
    pub(super) fn find(&self, partition: PartitionId, offset: u64) -> Option<&RunRef> {
        let runs = &self.partitions.get(&partition)?.runs;
        let holder = runs.range(..=offset).next_back().filter(|(_, run)| run.end > offset);
        holder.or_else(|| runs.range(offset..).next()).map(|(_, run)| run)
    }

    /// The first run with a timestamp at or above.
    pub(super) fn find_time(&self, partition: PartitionId, time_ms: i64) -> Option<&RunRef> {
        self.runs(partition).find(|run| run.max_timestamp_ms >= time_ms)
    }

    pub(super) fn runs(&self, partition: PartitionId) -> impl DoubleEndedIterator<Item = &RunRef> {
        self.partitions.get(&partition).into_iter().flat_map(|found| found.runs.values())
    }

    pub(super) fn partitions(&self) -> impl Iterator<Item = PartitionId> {
        self.partitions.keys().copied()
    }

    pub(super) fn size_of(&self, partition: PartitionId) -> u64 {
        self.partitions.get(&partition).map_or(0, |found| found.size)
    }

    /// The run with this base offset, if it is in this extent.
    pub(super) fn is_in(&self, partition: PartitionId, base: u64, extent: u64) -> bool {
        let found = self.partitions.get(&partition).and_then(|found| found.runs.get(&base));
        found.is_some_and(|run| run.extent == extent)
    }

    /// The run after the one with this base offset.
    pub(super) fn next_after(&self, partition: PartitionId, base: u64) -> Option<&RunRef> {
        let runs = &self.partitions.get(&partition)?.runs;
        runs.range(base + 1..).next().map(|(_, run)| run)
    }

    /// Whether a run overlaps none that is here.
    pub(super) fn has_room_for(&self, run: &Run) -> bool {
        let Some(found) = self.partitions.get(&run.partition) else { return true };
        found.runs.range(..run.end).next_back().is_none_or(|(_, before)| before.end <= run.base)
    }

    /// Adds a run that overlaps none.
    pub(super) fn insert(&mut self, run: RunRef) {
        let found = self.partitions.entry(run.partition).or_default();
        found.size += run.size;
        let replaced = found.runs.insert(run.base, run);
        assert!(replaced.is_none(), "runs do not overlap");
    }

    /// Removes a run if it is in this extent.
    pub(super) fn remove(&mut self, partition: PartitionId, base: u64, extent: u64) {
        if !self.is_in(partition, base, extent) {
            return;
        }
        let found = self.partitions.get_mut(&partition).expect("it was just there");
        let run = found.runs.remove(&base).expect("it was just there");
        found.size -= run.size;
        if found.runs.is_empty() {
            self.partitions.remove(&partition);
        }
    }

    /// Removes the runs wholly below an offset. Returns whether there were any.
    pub(super) fn remove_below(&mut self, partition: PartitionId, offset: u64) -> bool {
        let Some(found) = self.partitions.get_mut(&partition) else { return false };
        let mut is_changed = false;
        while let Some(first) = found.runs.first_entry()
            && first.get().end <= offset
        {
            found.size -= first.remove().size;
            is_changed = true;
        }
        if found.runs.is_empty() {
            self.partitions.remove(&partition);
        }
        is_changed
    }
}
