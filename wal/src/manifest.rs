//! The manifest: which files are the truth, and from where the WAL is replayed.
//!
//! A manifest is a small file, written whole under a temporary name, synced, renamed, and the
//! directory synced; the one with the highest version counts. So a crash leaves the old or the
//! new one, and never a mix. A damaged newest manifest is corruption: it was whole when it got its
//! name. The one before is kept to look at; it may name files that are gone.

use std::sync::Arc;

use bytes::Bytes;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::block;
use crate::damage::Damage;
use crate::delta::DeltaRef;
use crate::disk::{DiskOp, Place, Storage};
use crate::extent::{self, ExtentRef, Run};
use crate::format::{FileName, PartitionId, SegmentId, Sequence, ShardEpoch, ShardId, TopicId};
use crate::limits::BLOCK_SIZE;
use crate::mutation::{self, Mutation};
use crate::plan;
use crate::snapshot::SnapshotRef;
use crate::store::StoreError;

/// Version of the bytes of manifests; a newer one means that a newer release was here.
pub const MANIFEST_FORMAT_VERSION: u16 = 1;

/// Begins the names of manifests.
pub const MANIFEST_PREFIX: &str = "manifest-";

/// Snapshots that are kept.
pub const SNAPSHOT_COUNT_MAX: usize = 2;

const MAGIC: [u8; 8] = *b"TMMANIFE";

/// Begins the file. The sections follow in the order of their counts, then zeros to a block.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ManifestHeader {
    /// CRC-32C of the rest of the file, its zeros included.
    checksum: U32,
    /// `MANIFEST_FORMAT_VERSION`.
    format: U16,
    shard: U16,
    magic: [u8; 8],
    node_id: [u8; 16],
    version: U64,
    epoch: U64,
    replay_from: U64,
    first_segment: U64,
    durable: U64,
    extent_id_next: U64,
    shard_count: U32,
    snapshot_count: U32,
    delta_count: U32,
    extent_count: U32,
    /// Runs of all extents, in their order.
    run_count: U32,
    lost_count: U32,
    reserved: [u8; 24],
}

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SnapshotEntry {
    first: U64,
    last: U64,
    size: U64,
    entry_count: U64,
    checksum: U32,
    reserved: [u8; 4],
}

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DeltaEntry {
    after: U64,
    through: U64,
    valid_at: U64,
    number: U64,
    size: U64,
    checksum: U32,
    reserved: [u8; 4],
}

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ExtentEntry {
    id: U64,
    size: U64,
    generation: U32,
    run_count: U32,
    level: u8,
    is_shared: u8,
    reserved: [u8; 6],
}

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RunEntry {
    topic: [u8; 16],
    partition: U32,
    reserved: [u8; 4],
    base: U64,
    end: U64,
    max_timestamp_ms: I64,
    position: U64,
    size: U64,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct LostEntry {
    topic: [u8; 16],
    partition: U32,
    reserved: [u8; 4],
    base: U64,
    end: U64,
}

const _: () = {
    assert!(size_of::<ManifestHeader>() == 128);
    assert!(size_of::<SnapshotEntry>() == 40);
    assert!(size_of::<DeltaEntry>() == 48);
    assert!(size_of::<ExtentEntry>() == 32);
    assert!(size_of::<RunEntry>() == 64);
    assert!(size_of::<LostEntry>() == 40);
};

/// Offsets that an operator gave up; reading them is an error, not a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostRange {
    /// Whose.
    pub partition: PartitionId,
    /// First offset that is gone.
    pub base: u64,
    /// One past the last.
    pub end: u64,
}

/// What one shard's files mean together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Whose.
    pub shard: ShardId,
    /// How many shards the directory was made for.
    pub shard_count: u32,
    /// Which node's directory this is.
    pub node_id: [u8; 16],
    /// Grows with each manifest; zero: nothing was written yet.
    pub version: u64,
    /// Incarnation of the shard that wrote it.
    pub epoch: ShardEpoch,
    /// First frame of the WAL that is not in extents and delta files.
    pub replay_from: Sequence,
    /// The segment that holds `replay_from`, or will; older ones are not needed.
    pub first_segment: SegmentId,
    /// Newest frame known durable when this was written.
    pub durable: Sequence,
    /// Number of the next extent.
    pub extent_id_next: u64,
    /// At most two, the older one first.
    pub snapshots: Vec<SnapshotRef>,
    /// In order, without a gap, from what the older snapshot needs.
    pub deltas: Vec<DeltaRef>,
    /// Sorted by number.
    pub extents: Vec<Arc<ExtentRef>>,
    /// What was quarantined.
    pub lost: Vec<LostRange>,
}

/// Name of the manifest of a version.
pub fn manifest_name(version: u64) -> FileName {
    FileName(format!("{MANIFEST_PREFIX}{version:020}").into())
}

/// The version in the name of a manifest.
pub fn version_of(file: &FileName) -> Option<u64> {
    let version = file.0.strip_prefix(MANIFEST_PREFIX)?.parse().ok()?;
    (manifest_name(version) == *file).then_some(version)
}

/// Plans the file of a manifest; the last operation makes it the one that counts.
pub fn plan_manifest(manifest: &Manifest) -> Vec<DiskOp> {
    let file = manifest_name(manifest.version);
    let (_, mut ops) = plan::whole_file(&file, [manifest.encode()], plan::DRAIN_SIZE_DEFAULT);
    if !mutation::is_on(Mutation::SkipManifestSync) {
        ops.push(DiskOp::SyncDirectory { place: Place::Data });
    }
    ops
}

/// The newest manifest of a shard; `None` if there is none, nor any file that one would name.
pub fn load_manifest(
    storage: &dyn Storage,
    shard: ShardId,
    files: &[(FileName, u64)],
) -> Result<Option<Manifest>, StoreError> {
    let newest =
        files.iter().filter_map(|(file, size)| Some((version_of(file)?, file, *size))).max();
    let Some((version, file, size)) = newest else {
        let orphan = files.iter().find(|(file, _)| crate::store::is_named_by_manifests(file));
        return match orphan {
            Some((file, _)) => Err(StoreError::NoManifest { file: file.clone() }),
            None => Ok(None),
        };
    };
    let size = usize::try_from(size)
        .map_err(|_| StoreError::corrupt(file, Damage::new(0, "too large")))?;
    let bytes = storage.read(file, 0, size).map_err(|source| StoreError::Read {
        file: file.clone(),
        position: 0,
        source,
    })?;
    match format_of(&bytes) {
        Some(found) if found > MANIFEST_FORMAT_VERSION => {
            return Err(StoreError::TooNew { file: file.clone(), found });
        }
        Some(_) | None => {}
    }
    let manifest = Manifest::decode(&bytes).map_err(|damage| StoreError::corrupt(file, damage))?;
    if manifest.shard != shard || manifest.version != version {
        let damage = Damage::new(0, "the manifest belongs to another name or shard");
        return Err(StoreError::corrupt(file, damage));
    }
    Ok(Some(manifest))
}

/// The format of an undamaged manifest, of any release.
fn format_of(bytes: &[u8]) -> Option<u16> {
    block::check_stamp(bytes, 0, "").ok()?;
    let (header, _) = ManifestHeader::ref_from_prefix(bytes).ok()?;
    (header.magic == MAGIC).then_some(header.format.get())
}

impl Manifest {
    /// Of a shard that has nothing yet.
    pub fn new(shard: ShardId, shard_count: u32, node_id: [u8; 16]) -> Self {
        Self {
            shard,
            shard_count,
            node_id,
            version: 0,
            epoch: ShardEpoch(0),
            replay_from: Sequence(1),
            first_segment: SegmentId(0),
            durable: Sequence(0),
            extent_id_next: 1,
            snapshots: Vec::new(),
            deltas: Vec::new(),
            extents: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// The file's bytes.
    pub fn encode(&self) -> Bytes {
        let run_count: usize = self.extents.iter().map(|extent| extent.runs.len()).sum();
        let header = ManifestHeader {
            checksum: 0.into(),
            format: MANIFEST_FORMAT_VERSION.into(),
            shard: self.shard.0.into(),
            magic: MAGIC,
            node_id: self.node_id,
            version: self.version.into(),
            epoch: self.epoch.0.into(),
            replay_from: self.replay_from.0.into(),
            first_segment: self.first_segment.0.into(),
            durable: self.durable.0.into(),
            extent_id_next: self.extent_id_next.into(),
            shard_count: self.shard_count.into(),
            snapshot_count: count(self.snapshots.len()),
            delta_count: count(self.deltas.len()),
            extent_count: count(self.extents.len()),
            run_count: count(run_count),
            lost_count: count(self.lost.len()),
            reserved: [0; 24],
        };
        let mut bytes = header.as_bytes().to_vec();
        for snapshot in &self.snapshots {
            bytes.extend_from_slice(SnapshotEntry::from(snapshot).as_bytes());
        }
        for delta in &self.deltas {
            bytes.extend_from_slice(DeltaEntry::from(delta).as_bytes());
        }
        for extent in &self.extents {
            bytes.extend_from_slice(ExtentEntry::from(&**extent).as_bytes());
        }
        for run in self.extents.iter().flat_map(|extent| &extent.runs) {
            bytes.extend_from_slice(RunEntry::from(run).as_bytes());
        }
        for lost in &self.lost {
            bytes.extend_from_slice(LostEntry::from(lost).as_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(BLOCK_SIZE), 0);
        block::stamp(&mut bytes);
        bytes.into()
    }

    /// Checks and reads the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        if !mutation::is_on(Mutation::TrustManifest) {
            block::check_stamp(bytes, 0, "manifest checksum is wrong")?;
        }
        let mut sections = Sections { bytes, rest: bytes };
        let header = &sections.take::<ManifestHeader>(1_u32)?[0];
        if header.magic != MAGIC {
            return Err(Damage::new(0, "not a manifest"));
        }
        if header.format.get() != MANIFEST_FORMAT_VERSION {
            let why =
                format!("format {}, this build reads {MANIFEST_FORMAT_VERSION}", header.format);
            return Err(Damage::new(0, why));
        }
        let snapshots = sections.take::<SnapshotEntry>(header.snapshot_count.get())?;
        let deltas = sections.take::<DeltaEntry>(header.delta_count.get())?;
        let extents = sections.take::<ExtentEntry>(header.extent_count.get())?;
        let runs = sections.take::<RunEntry>(header.run_count.get())?;
        let lost = sections.take::<LostEntry>(header.lost_count.get())?;
        let is_zero = header.reserved == [0; 24]
            && snapshots.iter().all(|entry| entry.reserved == [0; 4])
            && deltas.iter().all(|entry| entry.reserved == [0; 4])
            && extents.iter().all(|entry| entry.reserved == [0; 6] && entry.is_shared <= 1)
            && runs.iter().all(|entry| entry.reserved == [0; 4])
            && lost.iter().all(|entry| entry.reserved == [0; 4])
            && sections.rest.len() < BLOCK_SIZE
            && sections.rest.iter().all(|byte| *byte == 0);
        if !is_zero {
            return Err(Damage::new(0, "reserved bytes are not zero"));
        }
        let manifest = Self {
            shard: ShardId(header.shard.get()),
            shard_count: header.shard_count.get(),
            node_id: header.node_id,
            version: header.version.get(),
            epoch: ShardEpoch(header.epoch.get()),
            replay_from: Sequence(header.replay_from.get()),
            first_segment: SegmentId(header.first_segment.get()),
            durable: Sequence(header.durable.get()),
            extent_id_next: header.extent_id_next.get(),
            snapshots: snapshots.iter().map(SnapshotRef::from).collect(),
            deltas: deltas.iter().map(DeltaRef::from).collect(),
            extents: decode_extents(extents, runs)?,
            lost: lost.iter().map(LostRange::from).collect(),
        };
        manifest.check().map_err(|why| Damage::new(0, why))?;
        Ok(manifest)
    }

    /// What holds for every manifest, whoever wrote it.
    pub fn check(&self) -> Result<(), &'static str> {
        let durable = self.durable.0;
        let ensure = |holds: bool, why| if holds { Ok(()) } else { Err(why) };
        ensure(self.snapshots.len() <= SNAPSHOT_COUNT_MAX, "too many snapshots")?;
        ensure(self.epoch.0 < u64::MAX, "no epoch can follow")?;
        ensure(self.replay_from.0 >= 1, "replay begins before the first frame")?;
        ensure(self.replay_from.0 - 1 <= durable, "settled what was not durable")?;
        for snapshot in &self.snapshots {
            ensure(snapshot.last.0 <= durable, "a snapshot is newer than what was durable")?;
            ensure(snapshot.first.0 >= 1, "a snapshot begins before the first frame")?;
            ensure(snapshot.first.0 - 1 <= snapshot.last.0, "a snapshot ends before it begins")?;
        }
        let in_order = self.snapshots.is_sorted_by(|a, b| a.first < b.first);
        ensure(in_order, "snapshots are out of order")?;
        for delta in &self.deltas {
            ensure(delta.valid_at.0 <= durable, "a delta file is newer than what was durable")?;
            let ordered = delta.after <= delta.valid_at && delta.through <= delta.valid_at;
            ensure(ordered, "a delta file ends before it begins")?;
            ensure(delta.through < self.replay_from, "a delta file reaches into the replay")?;
        }
        let follow = self.deltas.windows(2).all(|pair| pair[0].valid_at == pair[1].after);
        ensure(follow, "a delta file is missing")?;
        let oldest = self.snapshots.first().map_or(0, |snapshot| snapshot.first.0 - 1);
        let after = self.deltas.first().map_or(0, |delta| delta.after.0);
        ensure(after <= oldest, "the first delta file is missing")?;
        ensure(self.extents.is_sorted_by(|a, b| a.id < b.id), "extents are out of order")?;
        for extent in &self.extents {
            ensure(extent.id < self.extent_id_next, "an extent's number is not taken")?;
            ensure(!extent.runs.is_empty(), "an extent without a run")?;
            ensure(extent.is_shared || extent.runs.len() == 1, "an extent has another name")?;
            let sorted = extent.runs.is_sorted_by_key(|run| (run.partition, run.base));
            ensure(sorted, "runs are out of order")?;
            for run in &extent.runs {
                ensure(run.base < run.end, "an empty run")?;
                let end = run.position.checked_add(run.size);
                ensure(end.is_some_and(|end| end <= extent.size), "a run ends after its file")?;
            }
        }
        Ok(())
    }
}

fn count(count: usize) -> U32 {
    u32::try_from(count).expect("far fewer files than that").into()
}

fn decode_extents(
    extents: &[ExtentEntry],
    mut runs: &[RunEntry],
) -> Result<Vec<Arc<ExtentRef>>, Damage> {
    let wrong = || Damage::new(0, "extents and runs do not belong together");
    let mut decoded = Vec::with_capacity(extents.len());
    for entry in extents {
        let (own, rest) =
            runs.split_at_checked(entry.run_count.get() as usize).ok_or_else(wrong)?;
        runs = rest;
        let own: Vec<Run> = own.iter().map(Run::from).collect();
        let first = own.first().ok_or_else(wrong)?;
        let is_shared = entry.is_shared == 1;
        let generation = entry.generation.get();
        let file = if is_shared {
            extent::shared_name(entry.id.get(), generation)
        } else {
            extent::single_name(first.partition, first.base, generation)
        };
        decoded.push(Arc::new(ExtentRef {
            id: entry.id.get(),
            generation,
            level: entry.level,
            is_shared,
            file,
            size: entry.size.get(),
            runs: own,
        }));
    }
    if runs.is_empty() { Ok(decoded) } else { Err(wrong()) }
}

/// Takes one section after the other.
struct Sections<'a> {
    bytes: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Sections<'a> {
    fn take<T: FromBytes + Immutable + KnownLayout + Unaligned>(
        &mut self,
        count: impl Into<u64>,
    ) -> Result<&'a [T], Damage> {
        let position = self.bytes.len() - self.rest.len();
        let cut = || Damage::new(position as u64, "the manifest is cut short");
        let count = usize::try_from(count.into()).map_err(|_| cut())?;
        let (section, rest) =
            <[T]>::ref_from_prefix_with_elems(self.rest, count).map_err(|_| cut())?;
        self.rest = rest;
        Ok(section)
    }
}

impl From<&SnapshotRef> for SnapshotEntry {
    fn from(snapshot: &SnapshotRef) -> Self {
        Self {
            first: snapshot.first.0.into(),
            last: snapshot.last.0.into(),
            size: snapshot.size.into(),
            entry_count: snapshot.entry_count.into(),
            checksum: snapshot.checksum.into(),
            reserved: [0; 4],
        }
    }
}

impl From<&SnapshotEntry> for SnapshotRef {
    fn from(entry: &SnapshotEntry) -> Self {
        Self {
            first: Sequence(entry.first.get()),
            last: Sequence(entry.last.get()),
            size: entry.size.get(),
            entry_count: entry.entry_count.get(),
            checksum: entry.checksum.get(),
        }
    }
}

impl From<&DeltaRef> for DeltaEntry {
    fn from(delta: &DeltaRef) -> Self {
        Self {
            after: delta.after.0.into(),
            through: delta.through.0.into(),
            valid_at: delta.valid_at.0.into(),
            number: delta.number.into(),
            size: delta.size.into(),
            checksum: delta.checksum.into(),
            reserved: [0; 4],
        }
    }
}

impl From<&DeltaEntry> for DeltaRef {
    fn from(entry: &DeltaEntry) -> Self {
        Self {
            after: Sequence(entry.after.get()),
            through: Sequence(entry.through.get()),
            valid_at: Sequence(entry.valid_at.get()),
            number: entry.number.get(),
            size: entry.size.get(),
            checksum: entry.checksum.get(),
        }
    }
}

impl From<&ExtentRef> for ExtentEntry {
    fn from(extent: &ExtentRef) -> Self {
        Self {
            id: extent.id.into(),
            size: extent.size.into(),
            generation: extent.generation.into(),
            run_count: count(extent.runs.len()),
            level: extent.level,
            is_shared: extent.is_shared.into(),
            reserved: [0; 6],
        }
    }
}

impl From<&Run> for RunEntry {
    fn from(run: &Run) -> Self {
        Self {
            topic: run.partition.topic.0,
            partition: run.partition.index.into(),
            reserved: [0; 4],
            base: run.base.into(),
            end: run.end.into(),
            max_timestamp_ms: run.max_timestamp_ms.into(),
            position: run.position.into(),
            size: run.size.into(),
        }
    }
}

impl From<&RunEntry> for Run {
    fn from(entry: &RunEntry) -> Self {
        Self {
            partition: PartitionId { topic: TopicId(entry.topic), index: entry.partition.get() },
            base: entry.base.get(),
            end: entry.end.get(),
            max_timestamp_ms: entry.max_timestamp_ms.get(),
            position: entry.position.get(),
            size: entry.size.get(),
        }
    }
}

impl From<&LostRange> for LostEntry {
    fn from(lost: &LostRange) -> Self {
        Self {
            topic: lost.partition.topic.0,
            partition: lost.partition.index.into(),
            reserved: [0; 4],
            base: lost.base.into(),
            end: lost.end.into(),
        }
    }
}

impl From<&LostEntry> for LostRange {
    fn from(entry: &LostEntry) -> Self {
        Self {
            partition: PartitionId { topic: TopicId(entry.topic), index: entry.partition.get() },
            base: entry.base.get(),
            end: entry.end.get(),
        }
    }
}

#[cfg(test)]
mod tests;
