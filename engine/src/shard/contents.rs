//! All that a shard holds, as data, and a shard made of that.

use std::collections::BTreeMap;

use tidemill_wal::disk::Storage;
use tidemill_wal::extent::RunData;
use tidemill_wal::store::{Settle, StoreError};

use super::{OpenError, Shard, ShardOptions};
use crate::effect::Now;

/// The contents of one shard.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// Its keyed state: every entry, by key.
    pub entries: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The batches of its partitions. Runs of one partition do not overlap.
    pub runs: Vec<RunData>,
}

impl Shard {
    /// Everything that it holds. For a shard that was just opened: what only a step has made is not
    /// there.
    pub fn contents(&mut self, storage: &dyn Storage) -> Result<Contents, StoreError> {
        self.refresh_state();
        let entries = self.state.range(&[]).map(|(key, value)| (key.to_vec(), value.to_vec()));
        let mut runs = self.store.read_all(storage)?;
        runs.extend(self.unsettled_runs(self.wal.durable()).0);
        Ok(Contents { entries: entries.collect(), runs })
    }
}

impl Contents {
    /// Makes a shard of it, durably, in a directory without files: as one that has settled all of it.
    /// [`Shard::open`] takes it from there.
    pub fn write(
        self,
        storage: &mut dyn Storage,
        options: ShardOptions,
        now: Now,
    ) -> Result<(), OpenError> {
        let mut shard = Shard::open(storage, options, now, &mut |_| {})?.shard;
        let durable = shard.wal.durable();
        let settle = Settle {
            through: durable,
            valid_at: durable,
            durable,
            first_segment: shard
                .wal
                .first_segment_after(durable)
                .expect("the start's seal made a segment active"),
            epoch: shard.wal.epoch(),
            runs: self.runs,
            changes: self.entries.into_iter().map(|(key, value)| (key, Some(value))).collect(),
        };
        for op in shard.store.settle(settle) {
            storage.perform(&op)?;
        }
        for op in shard.store.on_settled() {
            storage.perform(&op)?;
        }
        Ok(())
    }
}
