//! The store: what a shard has outside its WAL, in memory, and the plans that change it.
//!
//! Pure: it hands out operations and is told what became of them. A change (a settle round, a
//! finished snapshot, a merge, a drop) writes new files, makes them and their names durable, then
//! a manifest that names them; only when that is durable does the store show the new picture and
//! hand out the removal of what is no longer named. At most one change is under way.
//!
//! Invariants: what the manifest on disk names exists, whole; the delta files and the WAL from
//! `replay_from` hold every change since the `first` of the older snapshot; runs of a partition
//! do not overlap. Drops show at once and reach the disk with the next change, so after a crash
//! dropped runs can be there again: the shard's state, which knows the start of each partition,
//! drops them again.

mod change;
mod index;
mod merge;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use self::change::Change;
pub use self::change::{PlannedDelta, PlannedExtent, PlannedFiles, SettleFiles};
use self::index::RunIndex;
pub use self::index::RunRef;
pub use self::merge::{LEVEL_MAX, MERGE_COUNT, MERGE_SIZE_MAX, MergePlan, RUN_OWN_SIZE};
use crate::damage::{Damage, FileFault};
use crate::delta::{DELTA_SUFFIX, StateChange, VisitChange, read_delta};
use crate::disk::{DiskOp, Place, Storage};
use crate::extent::{EXTENT_SUFFIX, RunData};
use crate::format::{FileName, PartitionId, SegmentId, Sequence, ShardEpoch, ShardId};
use crate::manifest::{
    MANIFEST_FORMAT_VERSION, Manifest, load_manifest, manifest_name, version_of,
};
use crate::mutation::{self, Mutation};
use crate::plan::TEMPORARY;
use crate::snapshot::{SNAPSHOT_SUFFIX, SnapshotWriter, read_snapshot};

/// Delta files are worth a snapshot when they are larger than the state, but not below this.
const DELTA_SIZE_MIN: u64 = 4 << 20;

/// More delta files than this are worth a snapshot, however small: each is opened at start.
const DELTA_COUNT_MAX: usize = 256;

/// The file that holds room for a manifest when the disk is full.
pub const RESERVE_FILE: &str = "reserve";

const ADVICE: &str = "Nothing was changed. Restore the directory from a copy, or run \
    `tidemill-dump quarantine DIR --shard N` to move the damage aside and accept the loss it prints";

/// Why a shard's files cannot be used. One variant per decision the caller can take.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file that the manifest names is not what was written.
    #[error("{file} is damaged at {damage}.{hint} {ADVICE}.")]
    Corrupt {
        /// The file.
        file: FileName,
        /// Where and what.
        damage: Damage,
        /// What else there is, as a sentence with a space before it; may be empty.
        hint: String,
    },
    /// A file that the manifest names is not there.
    #[error("{file} is missing, but {manifest} names it. {ADVICE}.")]
    Missing {
        /// The file.
        file: FileName,
        /// Who names it.
        manifest: FileName,
    },
    /// There are files that only a manifest gives a meaning, and no manifest.
    #[error("there is no manifest, but {file} needs one. {ADVICE}.")]
    NoManifest {
        /// One such file.
        file: FileName,
    },
    /// A newer release wrote here.
    #[error(
        "{file} has format {found}, and this build reads up to {MANIFEST_FORMAT_VERSION}. \
         Start the newer release that wrote it"
    )]
    TooNew {
        /// The manifest.
        file: FileName,
        /// Its format.
        found: u16,
    },
    /// The system cannot read a file.
    #[error("{file} cannot be read at byte {position}: {source}. {ADVICE}.")]
    Read {
        /// The file.
        file: FileName,
        /// Where.
        position: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// The system cannot list the directory.
    #[error("the directory cannot be listed: {0}")]
    List(io::Error),
}

impl StoreError {
    pub(crate) fn corrupt(file: &FileName, damage: Damage) -> Self {
        Self::Corrupt { file: file.clone(), damage, hint: String::new() }
    }

    fn fault(file: FileName, fault: FileFault) -> Self {
        match fault {
            FileFault::Damage(damage) => Self::Corrupt { file, damage, hint: String::new() },
            FileFault::Read { position, source } => Self::Read { file, position, source },
        }
    }
}

/// What [`Store::load`] found.
#[derive(Debug)]
pub struct Loaded {
    /// The store.
    pub store: Store,
    /// Files of ours that no manifest names, to be removed before the first change, which may
    /// give one of these names to a new file: a crash left them.
    pub unnamed: Vec<FileName>,
    /// Bytes of the reserve file, if it is there.
    pub reserve_size: u64,
}

/// One settle round: what leaves the WAL.
#[derive(Debug, Clone)]
pub struct Settle {
    /// The newest frame that runs and changes hold wholly.
    pub through: Sequence,
    /// The newest frame that the values of the changes saw.
    pub valid_at: Sequence,
    /// The newest frame known durable, at or above `valid_at`.
    pub durable: Sequence,
    /// The segment that holds the frame after `through`, or will.
    pub first_segment: SegmentId,
    /// Incarnation of the shard.
    pub epoch: ShardEpoch,
    /// Batches of the frames that are settled; empty for [`Store::settle_planned`].
    pub runs: Vec<RunData>,
    /// Every key that a frame up to `through` changed and no round before took since, as it is now,
    /// in any order; empty for [`Store::settle_planned`].
    pub changes: Vec<StateChange>,
}

/// A shard's extents, delta files and snapshots, as the newest durable manifest names them.
#[derive(Debug)]
pub struct Store {
    manifest: Manifest,
    index: RunIndex,
    /// Drops that no manifest on disk knows yet: all below the offset.
    drops: BTreeMap<PartitionId, u64>,
    change: Option<Change>,
    snapshot: Option<SnapshotWriter>,
    /// Manifest before the newest, kept to look at.
    previous: Option<u64>,
    version_next: u64,
    extent_id_next: u64,
    drain_size: usize,
}

impl Store {
    /// Of a shard that has nothing yet; [`Self::create`] comes next.
    pub fn new(shard: ShardId, shard_count: u32, node_id: [u8; 16]) -> Self {
        Self::of_manifest(Manifest::new(shard, shard_count, node_id), RunIndex::default())
    }

    /// The newest manifest, and that every file it names is there with its size. `None` if the
    /// shard has no manifest, and no file that one would name: it is new, provided that no
    /// segment is in use.
    pub fn load(storage: &dyn Storage, shard: ShardId) -> Result<Option<Loaded>, StoreError> {
        let files = storage.list().map_err(StoreError::List)?;
        let Some(manifest) = load_manifest(storage, shard, &files)? else { return Ok(None) };
        let sizes: HashMap<&FileName, u64> =
            files.iter().map(|(file, size)| (file, *size)).collect();
        let file = manifest_name(manifest.version);
        for (named, size) in named_files(&manifest) {
            match sizes.get(&named) {
                Some(found) if *found == size => {}
                Some(found) => {
                    let why = format!("{found} bytes long, should be {size}");
                    return Err(StoreError::corrupt(&named, Damage::new(size.min(*found), why)));
                }
                None => return Err(StoreError::Missing { file: named, manifest: file }),
            }
        }
        let previous = files.iter().filter_map(|(file, _)| version_of(file));
        let previous = previous.filter(|version| *version < manifest.version).max();
        let named: BTreeSet<FileName> = named_files(&manifest).map(|(file, _)| file).collect();
        let is_unnamed = |file: &FileName| {
            let is_old = version_of(file)
                .is_some_and(|version| version < manifest.version && Some(version) != previous);
            file.0.starts_with(TEMPORARY)
                || is_old
                || (is_named_by_manifests(file) && !named.contains(file))
        };
        let mut unnamed: Vec<FileName> =
            files.iter().map(|(file, _)| file).filter(|file| is_unnamed(file)).cloned().collect();
        unnamed.sort();
        let reserve_size = sizes.get(&FileName(RESERVE_FILE.into())).copied().unwrap_or(0);
        let mut store = Self::from_manifest(manifest)
            .map_err(|why| StoreError::corrupt(&file, Damage::new(0, why)))?;
        store.previous = previous;
        Ok(Some(Loaded { store, unnamed, reserve_size }))
    }

    /// The picture that a manifest paints.
    pub fn from_manifest(manifest: Manifest) -> Result<Self, &'static str> {
        manifest.check()?;
        let mut index = RunIndex::default();
        for extent in &manifest.extents {
            for run in &extent.runs {
                if !index.has_room_for(run) {
                    return Err("runs of a partition overlap");
                }
                index.insert(RunRef::new(extent, run));
            }
        }
        Ok(Self::of_manifest(manifest, index))
    }

    fn of_manifest(manifest: Manifest, index: RunIndex) -> Self {
        Self {
            index,
            drops: BTreeMap::new(),
            change: None,
            snapshot: None,
            previous: None,
            version_next: manifest.version + 1,
            extent_id_next: manifest.extent_id_next,
            drain_size: crate::plan::DRAIN_SIZE_DEFAULT,
            manifest,
        }
    }

    /// Bytes of a file that is being written between two drains.
    pub fn set_drain_size(&mut self, drain_size: usize) {
        self.drain_size = drain_size;
    }

    /// The newest durable manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether a change of the manifest is under way, so that no other may begin.
    pub fn is_changing(&self) -> bool {
        self.change.is_some()
    }

    /// Hands out the newest snapshot's entries and then every change since, in order: later ones
    /// win. Frames from `replay_from` come after. Reads and checks every byte of these files.
    pub fn visit_state(
        &self,
        storage: &dyn Storage,
        visit: &mut VisitChange<'_>,
    ) -> Result<(), StoreError> {
        let shard = self.manifest.shard;
        let newest = self.manifest.snapshots.last();
        if let Some(snapshot) = newest {
            read_snapshot(storage, shard, snapshot, &mut |key, value| visit(key, Some(value)))
                .map_err(|fault| self.with_older_snapshot(snapshot.file(), fault))?;
        }
        let mut first = newest.map_or(Sequence(0), |snapshot| snapshot.first);
        if mutation::is_on(Mutation::LoadFromSnapshotEnd) {
            first = newest.map_or(first, |snapshot| snapshot.last);
        }
        for delta in self.manifest.deltas.iter().filter(|delta| delta.valid_at >= first) {
            read_delta(storage, shard, delta, visit)
                .map_err(|fault| StoreError::fault(delta.file(), fault))?;
        }
        Ok(())
    }

    /// The newest snapshot is damaged. The older one with its delta files gives the same state,
    /// but taking it in silence would hide that the disk rots.
    fn with_older_snapshot(&self, file: FileName, fault: FileFault) -> StoreError {
        let mut error = StoreError::fault(file, fault);
        if let (StoreError::Corrupt { hint, .. }, [older, _]) =
            (&mut error, &self.manifest.snapshots[..])
        {
            *hint = format!(
                " The older {} is there with the delta files it needs, and gives the same state \
                 once the damaged one is quarantined.",
                older.file()
            );
        }
        error
    }

    /// The run that holds an offset, or the next one after a gap.
    pub fn find(&self, partition: PartitionId, offset: u64) -> Option<RunRef> {
        self.index.find(partition, offset).cloned()
    }

    /// The first run that holds a timestamp at or above this.
    pub fn find_time(&self, partition: PartitionId, time_ms: i64) -> Option<RunRef> {
        self.index.find_time(partition, time_ms).cloned()
    }

    /// The runs of a partition, by offset.
    pub fn runs(&self, partition: PartitionId) -> impl DoubleEndedIterator<Item = &RunRef> {
        self.index.runs(partition)
    }

    /// Every partition that has a run.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> {
        self.index.partitions()
    }

    /// Bytes of batches of a partition.
    pub fn size_of(&self, partition: PartitionId) -> u64 {
        self.index.size_of(partition)
    }

    /// The partition is gone: its runs are not found any more, and go with the next change.
    pub fn drop_partition(&mut self, partition: PartitionId) {
        self.drop_below(partition, u64::MAX);
    }

    /// Runs wholly below the offset are not found any more, and go with the next change.
    pub fn drop_below(&mut self, partition: PartitionId, offset: u64) {
        let is_lost =
            |lost: &crate::manifest::LostRange| lost.partition == partition && lost.end <= offset;
        let matters = self.index.remove_below(partition, offset)
            || self.manifest.lost.iter().any(is_lost)
            || self.change.as_ref().is_some_and(|change| change.touches(partition, offset));
        if matters {
            let below = self.drops.entry(partition).or_default();
            *below = offset.max(*below);
        }
    }

    /// Whether something was dropped that the disk still has: a change should follow, a
    /// [`Self::settle`] of nothing if there is nothing else.
    pub fn has_pending_drops(&self) -> bool {
        !self.drops.is_empty()
    }

    /// Whether it is time for a snapshot: what the newest one needs has outgrown the state, or
    /// the bytes that recovery may read.
    pub fn due_snapshot(&self, state_size: usize, bytes_max: u64) -> bool {
        if self.snapshot.is_some() {
            return false;
        }
        let first = self.manifest.snapshots.last().map_or(Sequence(0), |newest| newest.first);
        let needed = self.manifest.deltas.iter().filter(|delta| delta.valid_at >= first);
        let (count, size) =
            needed.fold((0, 0), |(count, size), delta| (count + 1, size + delta.size));
        let worth = (state_size as u64).max(DELTA_SIZE_MIN).min(bytes_max);
        count > 0 && (size > worth || count > DELTA_COUNT_MAX)
    }

    /// Whether a snapshot is being written.
    pub fn is_snapshotting(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Begins a snapshot before the frame `first` is filled. Slices follow, between steps; the
    /// operations of all calls are performed in order. Settling goes on meanwhile.
    pub fn snapshot_begin(&mut self, first: Sequence) -> Vec<DiskOp> {
        assert!(self.snapshot.is_none(), "one snapshot at a time");
        let newest = self.manifest.snapshots.last();
        assert!(newest.is_none_or(|newest| newest.first < first), "a frame lies between snapshots");
        let (writer, ops) = SnapshotWriter::begin(self.manifest.shard, first, self.drain_size);
        self.snapshot = Some(writer);
        ops
    }

    /// Adds a slice: keys with their values as they are now.
    pub fn snapshot_add(
        &mut self,
        slice: impl IntoIterator<Item = (impl AsRef<[u8]>, impl AsRef<[u8]>)>,
    ) -> Vec<DiskOp> {
        self.snapshot.as_mut().expect("a snapshot was begun").add(slice)
    }

    /// Gives the snapshot up, for example on a full disk.
    pub fn snapshot_abandon(&mut self) -> Vec<DiskOp> {
        self.snapshot.take().expect("a snapshot was begun").abandon()
    }

    /// Plans the file that keeps room for a manifest on a full disk; `size` is a multiple of the
    /// block size.
    pub fn reserve_ops(size: u64) -> Vec<DiskOp> {
        let file = FileName(RESERVE_FILE.into());
        vec![
            DiskOp::Create { file: file.clone() },
            DiskOp::Zero { file: file.clone(), offset: 0, size },
            DiskOp::Sync { file },
            DiskOp::SyncDirectory { place: Place::Data },
        ]
    }

    /// Gives that room back, for deletions and the manifest that makes them durable.
    pub fn release_reserve_ops() -> Vec<DiskOp> {
        let file = FileName(RESERVE_FILE.into());
        vec![DiskOp::Remove { file }, DiskOp::SyncDirectory { place: Place::Data }]
    }
}

/// Every file that a manifest names, with its size.
pub fn named_files(manifest: &Manifest) -> impl Iterator<Item = (FileName, u64)> {
    let snapshots = manifest.snapshots.iter().map(|snapshot| (snapshot.file(), snapshot.size));
    let deltas = manifest.deltas.iter().map(|delta| (delta.file(), delta.size));
    let extents = manifest.extents.iter().map(|extent| (extent.file.clone(), extent.size));
    snapshots.chain(deltas).chain(extents)
}

/// Whether a file has a meaning only if a manifest names it.
pub fn is_named_by_manifests(file: &FileName) -> bool {
    let is_ours = [EXTENT_SUFFIX, DELTA_SUFFIX, SNAPSHOT_SUFFIX]
        .iter()
        .any(|suffix| file.0.ends_with(suffix));
    is_ours && !file.0.starts_with(TEMPORARY) && !file.is_wal()
}

#[cfg(test)]
mod tests;
