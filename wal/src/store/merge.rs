//! Merging small extents in tiers: eight of one level become one of the next, and a run that has
//! grown to [`RUN_OWN_SIZE`] gets a file of its own and is not copied again.
//!
//! So a batch is copied a few times at most, and the number of files grows with the data and the
//! logarithm of the rounds, not with partitions times rounds.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::index::RunRef;
use super::{Store, StoreError};
use crate::damage::{Damage, FileFault};
use crate::disk::{DiskOp, Storage};
use crate::extent::{BatchRef, ExtentRef, ExtentView, Run, RunData};
use crate::format::{FileName, PartitionId, ShardId};
use crate::mutation::{self, Mutation};

/// A run of at least this many bytes gets an extent of its own.
pub const RUN_OWN_SIZE: u64 = 1 << 20;

/// Extents of one level that are merged at once.
pub const MERGE_COUNT: usize = 8;

/// Bytes of the files that one merge reads: bounds its time and what it maps.
pub const MERGE_SIZE_MAX: u64 = 256 << 20;

/// No extent is merged more often.
pub const LEVEL_MAX: u8 = 8;

/// What to read and what to make of it.
#[derive(Debug, Clone)]
pub struct MergePlan {
    pub(super) shard: ShardId,
    pub(super) inputs: Vec<Arc<ExtentRef>>,
    pub(super) level: u8,
    pub(super) runs: Vec<MergeRun>,
}

/// Runs of one partition that become one.
#[derive(Debug, Clone)]
pub(super) struct MergeRun {
    partition: PartitionId,
    /// In order; the extent's number and its run.
    parts: Vec<(u64, Run)>,
}

impl MergePlan {
    /// The files to read.
    pub fn files(&self) -> impl Iterator<Item = &FileName> {
        self.inputs.iter().map(|extent| &extent.file)
    }

    /// Reads and checks what is merged, on a thread that may wait. `open` gives a file's bytes,
    /// which can be touched freely (read, or mapped and populated); batches are slices of them.
    pub fn read(
        &self,
        open: &mut dyn FnMut(&FileName) -> io::Result<Bytes>,
    ) -> Result<Vec<RunData>, (FileName, FileFault)> {
        let wanted: BTreeMap<(u64, PartitionId, u64), ()> = self
            .runs
            .iter()
            .flat_map(|run| &run.parts)
            .map(|(extent, run)| ((*extent, run.partition, run.base), ()))
            .collect();
        let mut found: BTreeMap<(u64, PartitionId, u64), Vec<BatchRef>> = BTreeMap::new();
        for extent in &self.inputs {
            let fail = |fault: FileFault| (extent.file.clone(), fault);
            let bytes = open(&extent.file)
                .map_err(|source| fail(FileFault::Read { position: 0, source }))?;
            let view = ExtentView::open_named(&bytes, &|_| Ok(()), self.shard, &extent.file)
                .map_err(|damage| fail(damage.into()))?;
            for run in &extent.runs {
                let key = (extent.id, run.partition, run.base);
                if wanted.contains_key(&key) {
                    let batches = read_run(&view, &bytes, run);
                    found.insert(key, batches.map_err(|damage| fail(damage.into()))?);
                }
            }
        }
        let assemble = |run: &MergeRun| RunData {
            partition: run.partition,
            batches: run
                .parts
                .iter()
                .filter_map(|(extent, part)| found.remove(&(*extent, part.partition, part.base)))
                .flatten()
                .collect(),
        };
        Ok(self.runs.iter().map(assemble).collect())
    }
}

fn read_run(view: &ExtentView<'_>, bytes: &Bytes, run: &Run) -> Result<Vec<BatchRef>, Damage> {
    let mut batches = Vec::new();
    for batch in view.batches(run) {
        let (range, head) = batch?;
        batches.push(BatchRef {
            base_offset: head.base_offset,
            last_offset: head.last_offset,
            max_timestamp_ms: head.max_timestamp_ms,
            bytes: bytes.slice(range),
        });
    }
    match (batches.first(), batches.last()) {
        (Some(first), Some(last))
            if first.base_offset == run.base && last.last_offset + 1 == run.end =>
        {
            Ok(batches)
        }
        _ => Err(Damage::new(run.position, "the run is not the one that the manifest names")),
    }
}

impl Store {
    /// What should be merged now, lowest level first; nothing while a merge is under way.
    pub fn due_merge(&self) -> Option<MergePlan> {
        let mut levels: BTreeMap<u8, Vec<&Arc<ExtentRef>>> = BTreeMap::new();
        for extent in &self.manifest.extents {
            let is_small = extent.runs.iter().all(|run| run.size < RUN_OWN_SIZE);
            if is_small && extent.level < LEVEL_MAX {
                levels.entry(extent.level).or_default().push(extent);
            }
        }
        levels.iter().find_map(|(level, extents)| {
            if extents.len() < MERGE_COUNT {
                return None;
            }
            let mut size = 0;
            let fits = |extent: &&&Arc<ExtentRef>| {
                size += extent.size;
                size <= MERGE_SIZE_MAX
            };
            let inputs: Vec<Arc<ExtentRef>> = extents
                .iter()
                .take(MERGE_COUNT)
                .take_while(fits)
                .map(|found| (*found).clone())
                .collect();
            (inputs.len() >= 2).then(|| self.plan_merge(*level + 1, inputs))
        })
    }

    fn plan_merge(&self, level: u8, inputs: Vec<Arc<ExtentRef>>) -> MergePlan {
        let mut parts: Vec<(u64, Run)> = inputs
            .iter()
            .flat_map(|extent| extent.runs.iter().map(|run| (extent.id, *run)))
            .filter(|(extent, run)| self.index.is_in(run.partition, run.base, *extent))
            .collect();
        parts.sort_by_key(|(_, run)| (run.partition, run.base));
        let mut runs: Vec<MergeRun> = Vec::new();
        for (extent, run) in parts {
            // Runs become one only if no other extent has a run between them.
            let neighbour = runs.last_mut().filter(|before| {
                let last = before.parts.last().expect("never empty").1;
                let next = self.index.next_after(last.partition, last.base);
                last.partition == run.partition && next.is_some_and(|next| next.base == run.base)
            });
            match neighbour {
                Some(before) => before.parts.push((extent, run)),
                None => {
                    runs.push(MergeRun { partition: run.partition, parts: vec![(extent, run)] });
                }
            }
        }
        MergePlan { shard: self.manifest.shard, inputs, level, runs }
    }

    /// Plans the merged extents and the manifest that names them instead of the inputs. What was
    /// dropped since the plan was made stays out.
    pub fn merge(&mut self, plan: MergePlan, data: Vec<RunData>) -> Vec<DiskOp> {
        assert_eq!(plan.runs.len(), data.len());
        let generation = plan.inputs.iter().map(|extent| extent.generation).max().unwrap_or(0) + 1;
        let mut runs = Vec::new();
        for (run, mut data) in plan.runs.iter().zip(data) {
            assert_eq!(run.partition, data.partition);
            let is_live =
                |part: &&(u64, Run)| self.index.is_in(part.1.partition, part.1.base, part.0);
            // Drops take the lowest offsets, so what is left is the end of the run.
            let Some((_, first)) = run.parts.iter().find(is_live) else { continue };
            data.batches.retain(|batch| batch.base_offset >= first.base);
            let size: u64 = run.parts.iter().filter(is_live).map(|(_, part)| part.size).sum();
            assert_eq!(data.size(), size, "a merge loses nothing");
            runs.push(data);
        }
        if mutation::is_on(Mutation::MergeLosesRun) {
            runs.pop();
        }
        self.begin_merge(&plan, generation, runs)
    }

    /// What all extents hold, as one run of each partition; reads and checks every byte. For making
    /// other shards of it: a merge has its bounds.
    pub fn read_all(&self, storage: &dyn Storage) -> Result<Vec<RunData>, StoreError> {
        let extents = &self.manifest.extents;
        let sizes: BTreeMap<&FileName, u64> =
            extents.iter().map(|extent| (&extent.file, extent.size)).collect();
        let mut open = |file: &FileName| storage.read(file, 0, sizes[file] as usize);
        let plan = self.plan_merge(LEVEL_MAX, extents.clone());
        plan.read(&mut open).map_err(|(file, fault)| StoreError::fault(file, fault))
    }

    /// The live runs of an extent, as they are looked up.
    pub fn runs_in<'a>(&'a self, extent: &'a ExtentRef) -> impl Iterator<Item = RunRef> + 'a {
        extent
            .runs
            .iter()
            .filter(|run| self.index.is_in(run.partition, run.base, extent.id))
            .map(|run| RunRef::new(extent, run))
    }
}
