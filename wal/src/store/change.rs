//! Changes of the manifest: planned, performed by somebody, then committed or forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::index::RunRef;
use super::merge::{MergePlan, RUN_OWN_SIZE};
use super::{Settle, Store};
use crate::delta::{DeltaRef, DeltaSpec, StateChange, coalesce, plan_delta};
use crate::disk::{DiskOp, Place};
use crate::extent::{ExtentRef, ExtentSpec, RunData, plan_extent};
use crate::format::{FileName, PartitionId, SegmentId, Sequence, ShardEpoch};
use crate::manifest::{Manifest, SNAPSHOT_COUNT_MAX, manifest_name, plan_manifest};
use crate::mutation::{self, Mutation};
use crate::plan::temporary;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Create,
    Settle,
    Snapshot,
    Merge,
}

/// A change under way.
#[derive(Debug)]
pub(super) struct Change {
    kind: Kind,
    /// The manifest once it is durable.
    manifest: Manifest,
    /// Extents that come with it.
    fresh: Vec<Arc<ExtentRef>>,
    /// Extents that were merged.
    merged: Vec<Arc<ExtentRef>>,
    /// Files that it writes.
    written: Vec<FileName>,
    /// Files that it no longer names.
    obsolete: Vec<FileName>,
    /// Drops that it makes durable.
    drops: BTreeMap<PartitionId, u64>,
}

impl Change {
    /// Whether it brings a run wholly below the offset.
    pub(super) fn touches(&self, partition: PartitionId, offset: u64) -> bool {
        let mut runs = self.fresh.iter().flat_map(|extent| &extent.runs);
        runs.any(|run| run.partition == partition && run.end <= offset)
    }
}

/// New files and the operations that write them.
#[derive(Default)]
struct Files {
    extents: Vec<Arc<ExtentRef>>,
    written: Vec<FileName>,
    ops: Vec<DiskOp>,
}

/// A file under its temporary name, and the operations that write it: what [`plan_extent`] gives.
pub type PlannedExtent = (ExtentRef, Vec<DiskOp>);

/// A delta file under its temporary name, and the operations that write it.
pub type PlannedDelta = (DeltaRef, Vec<DiskOp>);

/// The files of a settle round that are to be planned: every byte is copied or checksummed for that,
/// which takes a millisecond for some MiB, or for some thousand changes.
#[derive(Debug)]
pub struct SettleFiles {
    /// For [`plan_extent`].
    pub extents: Vec<ExtentSpec>,
    /// A delta file and its changes in any order; of two with one key the later counts.
    pub delta: Option<(DeltaSpec, Vec<StateChange>)>,
    /// Bytes of a file that is being written between two drains.
    pub drain_size: usize,
}

/// The files of a settle round, planned.
#[derive(Debug, Clone, Default)]
pub struct PlannedFiles {
    /// Its extents.
    pub extents: Vec<PlannedExtent>,
    /// Its delta file; none if nothing changed.
    pub delta: Option<PlannedDelta>,
}

impl SettleFiles {
    /// Plans them.
    pub fn plan(self) -> PlannedFiles {
        let drain_size = self.drain_size;
        let extents = self.extents.into_iter().map(|spec| plan_extent(spec, drain_size)).collect();
        let delta = self.delta.filter(|(_, changes)| !changes.is_empty());
        let delta = delta.map(|(spec, changes)| plan_delta(&spec, &coalesce(changes), drain_size));
        PlannedFiles { extents, delta }
    }
}

impl Files {
    fn add(&mut self, (extent, ops): PlannedExtent) {
        self.written.push(extent.file.clone());
        self.extents.push(Arc::new(extent));
        self.ops.extend(ops);
    }
}

impl Store {
    /// Plans the first manifest of a new shard, whose WAL was started: its seal is durable. From
    /// now on files without a manifest are an error, and so is a WAL directory that is empty.
    /// [`Self::on_created`] follows.
    pub fn create(
        &mut self,
        first_segment: SegmentId,
        durable: Sequence,
        epoch: ShardEpoch,
    ) -> Vec<DiskOp> {
        assert_eq!(self.manifest.version, 0, "only a new shard is created");
        let manifest = Manifest { first_segment, durable, epoch, ..self.manifest.clone() };
        self.begin(Kind::Create, manifest, Files::default(), Vec::new(), Vec::new())
    }

    /// The first manifest is durable.
    pub fn on_created(&mut self) {
        let removals = self.commit(Kind::Create);
        assert!(removals.is_empty(), "a new shard has nothing to remove");
    }

    /// Plans one settle round: extents for the runs, a delta file for the changes, a manifest.
    /// [`Self::on_settled`] or [`Self::on_settle_failed`] follows. A round of nothing makes
    /// pending drops durable.
    ///
    /// A caller that cannot be away for so long, see [`SettleFiles`], asks for the
    /// [`Self::extents_for`] its runs and the [`Self::delta_for`] its changes, plans them when and
    /// where it likes, and ends with [`Self::settle_planned`].
    pub fn settle(&mut self, mut round: Settle) -> Vec<DiskOp> {
        let extents = self.extents_for(std::mem::take(&mut round.runs));
        let changes = std::mem::take(&mut round.changes);
        let delta = Some((self.delta_for(&round), changes));
        let files = SettleFiles { extents, delta, drain_size: self.drain_size };
        self.settle_planned(round, files.plan())
    }

    /// The delta file of a round.
    pub fn delta_for(&self, round: &Settle) -> DeltaSpec {
        DeltaSpec {
            shard: self.manifest.shard,
            after: delta_after(&self.manifest),
            through: round.through,
            valid_at: round.valid_at,
            number: self.version_next,
        }
    }

    /// The extents that a round's runs make, for [`plan_extent`]: large runs get one each, the
    /// small ones share one.
    pub fn extents_for(&mut self, runs: Vec<RunData>) -> Vec<ExtentSpec> {
        self.group(runs, 0, 0)
    }

    /// Plans a settle round whose files were planned before; the round itself has no runs and no
    /// changes.
    pub fn settle_planned(&mut self, round: Settle, planned: PlannedFiles) -> Vec<DiskOp> {
        assert!(round.runs.is_empty() && round.changes.is_empty(), "they are planned");
        assert!(round.through.next() >= self.manifest.replay_from, "settling only goes forward");
        assert!(round.through <= round.valid_at);
        assert!(round.valid_at <= round.durable, "only durable values enter a delta file");
        assert!(round.first_segment >= self.manifest.first_segment);
        assert!(round.epoch >= self.manifest.epoch);
        let mut files = Files::default();
        planned.extents.into_iter().for_each(|extent| files.add(extent));
        for run in files.extents.iter().flat_map(|extent| &extent.runs) {
            assert!(self.index.has_room_for(run), "runs of a partition do not overlap");
        }
        let mut manifest = self.manifest.clone();
        if let Some((delta, ops)) = planned.delta {
            assert!(delta.valid_at == round.valid_at && delta.through == round.through);
            assert_eq!(delta.after, delta_after(&manifest), "no delta file came between");
            files.written.push(delta.file());
            files.ops.extend(ops);
            manifest.deltas.push(delta);
        }
        manifest.replay_from = round.through.next();
        if mutation::is_on(Mutation::SettleTooFar) {
            manifest.replay_from = round.valid_at.next();
        }
        manifest.first_segment = round.first_segment;
        manifest.durable = manifest.durable.max(round.durable);
        manifest.epoch = round.epoch;
        self.begin(Kind::Settle, manifest, files, Vec::new(), Vec::new())
    }

    /// The round is durable. Returns the removal of what is no longer named; the segments below
    /// the manifest's `first_segment` can be recycled.
    pub fn on_settled(&mut self) -> Vec<DiskOp> {
        self.commit(Kind::Settle)
    }

    /// The disk is full: forgets the round. Returns the removal of what it wrote.
    pub fn on_settle_failed(&mut self) -> Vec<DiskOp> {
        self.forget(Kind::Settle)
    }

    /// Ends the snapshot, whose slices saw no frame above `last`, which is durable. Plans the
    /// manifest that names it, keeps one snapshot before it and the delta files that one needs.
    /// [`Self::on_snapshot`] or [`Self::on_snapshot_failed`] follows.
    pub fn snapshot_finish(&mut self, last: Sequence, durable: Sequence) -> Vec<DiskOp> {
        assert!(last <= durable, "a snapshot is valid once its last frame is durable");
        let writer = self.snapshot.take().expect("a snapshot was begun");
        let (snapshot, ops) = writer.finish(last);
        let files = Files { written: vec![snapshot.file()], ops, extents: Vec::new() };
        let mut manifest = self.manifest.clone();
        let mut obsolete = Vec::new();
        manifest.snapshots.push(snapshot);
        if manifest.snapshots.len() > SNAPSHOT_COUNT_MAX {
            obsolete.push(manifest.snapshots.remove(0).file());
        }
        let older = manifest.snapshots[0].first;
        manifest.deltas.retain(|delta| {
            let is_needed = delta.valid_at >= older;
            if !is_needed {
                obsolete.push(delta.file());
            }
            is_needed
        });
        manifest.durable = manifest.durable.max(durable);
        self.begin(Kind::Snapshot, manifest, files, obsolete, Vec::new())
    }

    /// The snapshot is durable and named. Returns the removal of what is no longer named.
    pub fn on_snapshot(&mut self) -> Vec<DiskOp> {
        self.commit(Kind::Snapshot)
    }

    /// The disk is full: forgets the snapshot. Returns the removal of what it wrote.
    pub fn on_snapshot_failed(&mut self) -> Vec<DiskOp> {
        self.forget(Kind::Snapshot)
    }

    /// Second half of [`Store::merge`].
    pub(super) fn begin_merge(
        &mut self,
        plan: &MergePlan,
        generation: u32,
        runs: Vec<RunData>,
    ) -> Vec<DiskOp> {
        let mut files = Files::default();
        for spec in self.group(runs, generation, plan.level) {
            files.add(plan_extent(spec, self.drain_size));
        }
        let inputs: BTreeSet<u64> = plan.inputs.iter().map(|extent| extent.id).collect();
        let mut manifest = self.manifest.clone();
        let mut obsolete = Vec::new();
        manifest.extents.retain(|extent| {
            let is_input = inputs.contains(&extent.id);
            if is_input {
                obsolete.push(extent.file.clone());
            }
            !is_input
        });
        self.begin(Kind::Merge, manifest, files, obsolete, plan.inputs.clone())
    }

    /// The merged extents are durable and named. Returns the removal of the inputs.
    pub fn on_merged(&mut self) -> Vec<DiskOp> {
        self.commit(Kind::Merge)
    }

    /// The disk is full: forgets the merge. Returns the removal of what it wrote.
    pub fn on_merge_failed(&mut self) -> Vec<DiskOp> {
        self.forget(Kind::Merge)
    }

    /// What is dropped stays out.
    fn group(&mut self, runs: Vec<RunData>, generation: u32, level: u8) -> Vec<ExtentSpec> {
        let is_live = |run: &RunData| {
            !run.batches.is_empty()
                && self.drops.get(&run.partition).is_none_or(|below| run.end() > *below)
        };
        let live = runs.into_iter().filter(is_live);
        let (large, small): (Vec<RunData>, Vec<RunData>) =
            live.partition(|run| run.size() >= RUN_OWN_SIZE);
        let mut groups: Vec<Vec<RunData>> = large.into_iter().map(|run| vec![run]).collect();
        if !small.is_empty() {
            groups.push(small);
        }
        let shard = self.manifest.shard;
        let id_first = self.extent_id_next;
        self.extent_id_next += groups.len() as u64;
        let spec = |(id, runs)| ExtentSpec { id, generation, level, shard, runs };
        (id_first..).zip(groups).map(spec).collect()
    }

    /// Takes in the drops, gives the manifest its version, and plans its file behind the others.
    fn begin(
        &mut self,
        kind: Kind,
        mut manifest: Manifest,
        files: Files,
        mut obsolete: Vec<FileName>,
        merged: Vec<Arc<ExtentRef>>,
    ) -> Vec<DiskOp> {
        assert!(self.change.is_none(), "one change at a time");
        assert!(kind == Kind::Create || self.manifest.version > 0, "create comes first");
        let id_fresh = files.extents.first().map_or(u64::MAX, |extent| extent.id);
        manifest.extents.extend(files.extents);
        self.apply_drops(&mut manifest, &mut obsolete);
        let fresh = manifest.extents.iter().filter(|extent| extent.id >= id_fresh).cloned();
        let fresh = fresh.collect();
        manifest.extent_id_next = self.extent_id_next;
        manifest.version = self.version_next;
        self.version_next += 1;
        debug_assert_eq!(manifest.check(), Ok(()));
        let mut ops = files.ops;
        if !ops.is_empty() && !mutation::is_on(Mutation::SkipNamesSync) {
            // The names below the manifest's must be durable before its own.
            ops.push(DiskOp::SyncDirectory { place: Place::Data });
        }
        if mutation::is_on(Mutation::RemoveBeforeManifest) {
            ops.extend(obsolete.iter().map(|file| DiskOp::Remove { file: file.clone() }));
        }
        ops.extend(plan_manifest(&manifest));
        self.change = Some(Change {
            kind,
            manifest,
            fresh,
            merged,
            written: files.written,
            obsolete,
            drops: self.drops.clone(),
        });
        ops
    }

    fn apply_drops(&self, manifest: &mut Manifest, obsolete: &mut Vec<FileName>) {
        if self.drops.is_empty() {
            return;
        }
        let is_dropped = |partition: &PartitionId, end: u64| {
            self.drops.get(partition).is_some_and(|below| end <= *below)
        };
        manifest.lost.retain(|lost| !is_dropped(&lost.partition, lost.end));
        manifest.extents.retain_mut(|extent| {
            if !extent.runs.iter().any(|run| is_dropped(&run.partition, run.end)) {
                return true;
            }
            let extent = Arc::make_mut(extent);
            extent.runs.retain(|run| !is_dropped(&run.partition, run.end));
            if extent.runs.is_empty() {
                obsolete.push(extent.file.clone());
            }
            !extent.runs.is_empty()
        });
    }

    fn commit(&mut self, kind: Kind) -> Vec<DiskOp> {
        let change = self.change.take().expect("a change is under way");
        assert_eq!(change.kind, kind);
        for extent in &change.merged {
            for run in &extent.runs {
                self.index.remove(run.partition, run.base, extent.id);
            }
        }
        self.drops.retain(|partition, below| change.drops.get(partition) != Some(below));
        for extent in &change.fresh {
            for run in &extent.runs {
                let below = self.drops.get(&run.partition);
                if below.is_none_or(|below| run.end > *below) {
                    self.index.insert(RunRef::new(extent, run));
                }
            }
        }
        let before = std::mem::replace(&mut self.manifest, change.manifest);
        let mut obsolete = change.obsolete;
        obsolete.extend(self.previous.map(manifest_name));
        self.previous = (before.version > 0).then_some(before.version);
        obsolete.into_iter().map(|file| DiskOp::Remove { file }).collect()
    }

    /// The manifest goes first, and durably: it may already have its name, and must never name
    /// what is gone.
    fn forget(&mut self, kind: Kind) -> Vec<DiskOp> {
        let change = self.change.take().expect("a change is under way");
        assert_eq!(change.kind, kind);
        let manifest = manifest_name(change.manifest.version);
        let mut ops = vec![
            DiskOp::Remove { file: temporary(&manifest) },
            DiskOp::Remove { file: manifest },
            DiskOp::SyncDirectory { place: Place::Data },
        ];
        for file in change.written {
            ops.push(DiskOp::Remove { file: temporary(&file) });
            ops.push(DiskOp::Remove { file });
        }
        ops
    }
}

/// Newest frame that the delta file before the next one saw.
fn delta_after(manifest: &Manifest) -> Sequence {
    match (manifest.deltas.last(), manifest.snapshots.first()) {
        (Some(last), _) => last.valid_at,
        // All delta files before the snapshot's first frame are gone, and this one begins there
        // or earlier.
        (None, Some(snapshot)) => Sequence(snapshot.first.0 - 1),
        (None, None) => Sequence(0),
    }
}
