//! What a damaged shard becomes: everything that is still right, and a list of what is not there.
//!
//! One way for all damage. The state is put together from what can be read, the WAL is replayed as
//! far as it is unbroken, and both become a new snapshot, new extents for what only the WAL or a
//! damaged file held, and a new WAL. Offsets keep their meaning: a partition ends where it ended,
//! and what is missing below is lost, not given to other records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tidemill::batch::RecordBatch;
use tidemill::effect::Change;
use tidemill::outbox::encode_changes;
use tidemill::partition::producer::{Producer, Producers};
use tidemill::state::{Kind, State};
use tidemill_wal::block::{read_state_file, read_state_info};
use tidemill_wal::delta::{DeltaRef, read_delta};
use tidemill_wal::disk::{Directory, ExtentMap, Storage};
use tidemill_wal::extent::{BatchRef, ExtentRef, ExtentView, Run, RunData};
use tidemill_wal::format::{FileName, PartitionId, SegmentId, Sequence, ShardId};
use tidemill_wal::limits::VALUE_SIZE_MAX;
use tidemill_wal::manifest::{LostRange, Manifest, SNAPSHOT_COUNT_MAX, load_manifest, version_of};
use tidemill_wal::snapshot::{SnapshotRef, read_snapshot};

use super::chain::{self, Chain};
use crate::fault::Fault;
use crate::picture::replay;
use crate::place::FileKind;
use crate::verify::missing;
use crate::words::{Names, number, partition_of_key, partition_value, producer_of_key};

/// Producer ids that shard 0 grants at once; so many may be in use beyond what is recorded.
const PRODUCER_ID_BLOCK: u64 = 1000;

/// A shard as it will be.
pub struct Rebuilt {
    /// The manifest to go on from: what it names stays as it is.
    pub base: Manifest,
    /// Version of the new manifest.
    pub version: u64,
    /// Extents that stay.
    pub extents: Vec<Arc<ExtentRef>>,
    /// Batches that need new extents.
    pub runs: Vec<RunData>,
    /// The whole state.
    pub state: State,
    /// What is not there any more.
    pub lost: Vec<LostRange>,
    /// What the WAL held.
    pub chain: Chain,
    /// Above every frame that ever was.
    pub last: Sequence,
    /// Damaged files.
    pub aside: BTreeSet<FileName>,
    /// What a person should know, in sentences.
    pub notes: Vec<String>,
}

/// A batch that only the WAL has, and the clock of the step that took it.
struct Tail {
    batch: BatchRef,
    clock_ms: i64,
}

/// What other shards know, as far as it matters here.
pub struct Peer {
    /// Its number.
    pub shard: u16,
    /// Its state.
    pub state: State,
}

/// Plans the shard's new life. Reads only. `is_cut`: its newest frame goes.
pub fn plan(
    directory: &Directory,
    shard: ShardId,
    shard_count: u16,
    node: [u8; 16],
    faults: &[Fault],
    peers: &[Peer],
    is_cut: bool,
) -> Result<Rebuilt, String> {
    let files =
        directory.list().map_err(|error| format!("the directory cannot be listed: {error}"))?;
    let mut aside: BTreeSet<FileName> =
        faults.iter().filter_map(|fault| fault.name.clone()).collect();
    let mut notes = Vec::new();
    let versions = files.iter().filter_map(|(name, _)| version_of(name));
    let version = versions.max().unwrap_or(0) + 1;
    let loaded = load_manifest(directory, shard, &files);
    let is_new_manifest = !matches!(loaded, Ok(Some(_)));
    let base = match loaded {
        Ok(Some(manifest)) => manifest,
        Ok(None) | Err(_) => {
            notes.push("The manifest is made anew from the files that are there.".to_owned());
            let empty = Manifest::new(shard, shard_count.into(), node);
            collect_manifest(directory, empty, &files, &mut aside)
        }
    };
    let (mut state, _) = load_state(directory, &base, &mut notes);
    let replay_from = (!is_new_manifest).then_some(base.replay_from);
    let mut chain = chain::read(directory, shard, &files, base.first_segment, replay_from);
    if is_cut && let Some(newest) = chain.frames.pop() {
        notes.push(format!(
            "Frame {}, the newest, goes as at a start: it rests on what another shard has lost. \
             Nobody was told of it.",
            newest.header.sequence()
        ));
    }
    aside.extend(chain.cut.iter().cloned());
    let mut tails: BTreeMap<PartitionId, Vec<Tail>> = BTreeMap::new();
    for frame in &chain.frames {
        let clock_ms = frame.header.clock_ms();
        let taken = replay(frame, &mut state, &mut |entry, bytes| {
            let batch = BatchRef {
                base_offset: entry.base_offset,
                last_offset: entry.last_offset,
                max_timestamp_ms: entry.max_timestamp_ms,
                bytes,
            };
            tails.entry(entry.partition).or_default().push(Tail { batch, clock_ms });
        });
        if let Err(why) = taken {
            notes.push(format!("Frame {} was taken in part: {why}.", frame.header.sequence()));
        }
    }
    if chain.frames_cut > 0 {
        notes.push(format!(
            "{} frames of the WAL behind the damage are cut off, with {} changes of the state \
             (committed offsets, groups, topics) beside their records.",
            chain.frames_cut, chain.changes_cut
        ));
    }
    let newest = [base.durable, chain.newest, chain.durable, Sequence(base.replay_from.0 - 1)];
    let last = newest.into_iter().max().unwrap_or_default().next();
    let mut rebuilt = Rebuilt {
        version,
        extents: Vec::new(),
        runs: Vec::new(),
        state,
        lost: base.lost.clone(),
        chain,
        last,
        aside,
        notes,
        base,
    };
    rebuilt.keep_extents(directory);
    rebuilt.take_tails(tails);
    rebuilt.agree_with(peers, shard);
    rebuilt.find_lost(shard, shard_count);
    Ok(rebuilt)
}

/// A manifest from the files themselves: of extents that overlap the merged one counts, of
/// snapshots the newest, of delta files those that follow one another to the newest.
fn collect_manifest(
    directory: &Directory,
    mut manifest: Manifest,
    files: &[(FileName, u64)],
    aside: &mut BTreeSet<FileName>,
) -> Manifest {
    let mut extents = Vec::new();
    let mut deltas: Vec<DeltaRef> = Vec::new();
    for (name, size) in files {
        match FileKind::of(name) {
            FileKind::Extent => match extent_ref(directory, name, *size) {
                Some(extent) => extents.push(extent),
                None => _ = aside.insert(name.clone()),
            },
            FileKind::Snapshot => match read_state_info(directory, name, *size) {
                Ok(info) => manifest.snapshots.push(SnapshotRef {
                    first: info.first,
                    last: info.last,
                    size: *size,
                    entry_count: info.entry_count,
                    checksum: info.checksum,
                }),
                Err(_) => _ = aside.insert(name.clone()),
            },
            FileKind::Delta => match read_state_info(directory, name, *size) {
                Ok(info) => deltas.push(DeltaRef {
                    after: info.first,
                    through: info.through,
                    valid_at: info.last,
                    number: info.number,
                    size: *size,
                    checksum: info.checksum,
                }),
                Err(_) => _ = aside.insert(name.clone()),
            },
            FileKind::Segment(_) | FileKind::Manifest(_) | FileKind::Other => {}
        }
    }
    extents.sort_by_key(|extent| std::cmp::Reverse((extent.generation, extent.id)));
    let mut taken: BTreeMap<PartitionId, Vec<(u64, u64)>> = BTreeMap::new();
    for mut extent in extents {
        extent.runs.retain(|run| {
            let ranges = taken.entry(run.partition).or_default();
            let is_free = ranges.iter().all(|(base, end)| run.end <= *base || run.base >= *end);
            if is_free {
                ranges.push((run.base, run.end));
            }
            is_free
        });
        manifest.extent_id_next = manifest.extent_id_next.max(extent.id + 1);
        if !extent.runs.is_empty() {
            manifest.extents.push(Arc::new(extent));
        }
    }
    manifest.extents.sort_by_key(|extent| extent.id);
    manifest.snapshots.sort_by_key(|snapshot| snapshot.first);
    let surplus = manifest.snapshots.len().saturating_sub(SNAPSHOT_COUNT_MAX);
    manifest.snapshots.drain(..surplus);
    deltas.sort_by_key(|delta| std::cmp::Reverse((delta.valid_at, delta.number)));
    for delta in deltas {
        if manifest.deltas.last().is_none_or(|later| later.after == delta.valid_at) {
            manifest.deltas.push(delta);
        }
    }
    manifest.deltas.reverse();
    let settled = manifest.deltas.last().map_or(Sequence(0), |delta| delta.through);
    manifest.replay_from = settled.next();
    manifest.first_segment = SegmentId(0);
    let seen = manifest.snapshots.iter().map(|snapshot| snapshot.last);
    let seen = seen.chain(manifest.deltas.iter().map(|delta| delta.valid_at));
    manifest.durable = seen.max().unwrap_or_default();
    manifest
}

fn extent_ref(directory: &Directory, name: &FileName, size: u64) -> Option<ExtentRef> {
    let map = ExtentMap::open(&directory.path(name)).ok()?;
    let populate = |range| map.populate(range);
    let view = ExtentView::open_with(map.bytes(), &populate).ok()?;
    Some(ExtentRef {
        id: view.id(),
        generation: view.generation(),
        level: u8::try_from(view.generation()).unwrap_or(u8::MAX).min(8),
        is_shared: name.0.starts_with("shared-"),
        file: name.clone(),
        size,
        runs: view.runs().map(|found| found.run).collect(),
    })
}

/// The state of the manifest's files; whether it is exactly what was stored.
fn load_state(
    directory: &Directory,
    manifest: &Manifest,
    notes: &mut Vec<String>,
) -> (State, bool) {
    let snapshots = manifest.snapshots.iter().rev().map(Some);
    let has_all_deltas =
        manifest.deltas.first().map_or(manifest.snapshots.is_empty(), |delta| delta.after.0 == 0);
    let bases: Vec<Option<&SnapshotRef>> =
        snapshots.chain(has_all_deltas.then_some(None)).collect();
    for base in &bases {
        let mut state = State::default();
        if load_exactly(directory, manifest, *base, &mut state) {
            if *base != bases[0] {
                notes.push(
                    "The newest snapshot is damaged; the files before it give the same state: \
                     nothing of it is lost."
                        .to_owned(),
                );
            }
            return (state, true);
        }
    }
    notes.push(
        "The state could not be put together whole. Committed offsets, groups and what producers \
         sent last may be older than they were, or gone: consumers may read records again, and \
         idempotent producers may have to start anew."
            .to_owned(),
    );
    let mut state = State::default();
    for snapshot in &manifest.snapshots {
        load_what_is_left(directory, &snapshot.file(), snapshot.size, &mut state);
    }
    for delta in &manifest.deltas {
        load_what_is_left(directory, &delta.file(), delta.size, &mut state);
    }
    (state, false)
}

fn load_exactly(
    directory: &Directory,
    manifest: &Manifest,
    base: Option<&SnapshotRef>,
    state: &mut State,
) -> bool {
    let shard = manifest.shard;
    let load = |state: &mut State, key: &[u8], value: Option<&[u8]>| {
        state.load(key, value);
    };
    let is_based = base.is_none_or(|snapshot| {
        let mut put = |key: &[u8], value: &[u8]| load(state, key, Some(value));
        read_snapshot(directory, shard, snapshot, &mut put).is_ok()
    });
    let first = base.map_or(Sequence(0), |snapshot| snapshot.first);
    let mut deltas = manifest.deltas.iter().filter(|delta| delta.valid_at >= first);
    is_based
        && deltas.all(|delta| {
            let mut put = |key: &[u8], value: Option<&[u8]>| load(state, key, value);
            read_delta(directory, shard, delta, &mut put).is_ok()
        })
}

fn load_what_is_left(directory: &Directory, file: &FileName, size: u64, state: &mut State) {
    // It ends at the damage; what came before is right.
    let _ = read_state_file(directory, file, size, &mut |block| {
        for (key, value) in block.entries() {
            state.load(key, value);
        }
    });
}

/// A map that batches are slices of.
struct Mapped(Arc<ExtentMap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl Rebuilt {
    /// Extents stay if they are whole; of the others the pieces that are right are copied.
    fn keep_extents(&mut self, directory: &Directory) {
        for extent in &self.base.extents {
            if !self.aside.contains(&extent.file) {
                self.extents.push(extent.clone());
                continue;
            }
            let Ok(map) = ExtentMap::open(&directory.path(&extent.file)) else { continue };
            let map = Arc::new(map);
            let bytes = Bytes::from_owner(Mapped(map.clone()));
            let populate = |range| map.populate(range);
            let Ok(view) = ExtentView::open_with(&bytes, &populate) else { continue };
            for run in &extent.runs {
                self.runs.extend(salvage(&view, &bytes, run));
            }
        }
    }

    /// What only the WAL held goes to extents, and what producers sent is remembered.
    fn take_tails(&mut self, tails: BTreeMap<PartitionId, Vec<Tail>>) {
        for (partition, batches) in tails {
            let mut producers = Producers::default();
            let prefix = Kind::Producer.key(&[&partition.topic.0, &partition.index.to_be_bytes()]);
            for (key, value) in self.state.range(&prefix) {
                if let Some((id, producer)) = producer_of_key(key).zip(Producer::decode(value)) {
                    producers.load(id, producer);
                }
            }
            let mut free = Vec::new();
            for Tail { batch: tail, clock_ms } in batches {
                if let Ok(batch) = RecordBatch::stored(tail.bytes.clone()) {
                    producers.on_appended(&batch, tail.base_offset, clock_ms);
                }
                // With a manifest made anew, frames may be there that have settled.
                if !self.holds(partition, tail.base_offset) {
                    free.push(tail);
                }
            }
            for id in producers.ids() {
                let Some(producer) = producers.producer(id) else { continue };
                let key = [&prefix[..], &id.to_be_bytes()].concat();
                self.state.load(&key, Some(&producer.encode()));
            }
            self.runs.extend(cut_at_gaps(partition, free));
        }
    }

    fn holds(&self, partition: PartitionId, offset: u64) -> bool {
        let kept = self.extents.iter().flat_map(|extent| &extent.runs);
        let mut kept = kept.filter(|run| run.partition == partition);
        let mut fresh = self.runs.iter().filter(|run| run.partition == partition);
        kept.any(|run| (run.base..run.end).contains(&offset))
            || fresh.any(|run| (run.base()..run.end()).contains(&offset))
    }

    /// What other shards have must not be ahead of this one, or the node stops with corruption.
    fn agree_with(&mut self, peers: &[Peer], shard: ShardId) {
        let version = |state: &State| {
            state.value(&Kind::CatalogVersion.key(&[])).and_then(number).unwrap_or(0)
        };
        let newest = peers.iter().max_by_key(|peer| version(&peer.state));
        if let Some(peer) = newest
            && version(&peer.state) > version(&self.state)
        {
            self.notes.push(format!(
                "The catalog of topics is taken from shard {}, which has a newer one.",
                peer.shard
            ));
            let own = self.state.range(&[Kind::Topic as u8]);
            let own: Vec<Vec<u8>> = own.map(|(key, _)| key.to_vec()).collect();
            for key in own {
                self.state.load(&key, None);
            }
            let copied = peer.state.range(&[Kind::Topic as u8]);
            for (key, value) in copied.chain(peer.state.range(&[Kind::CatalogVersion as u8])) {
                self.state.load(key, Some(value));
            }
        }
        for peer in peers {
            self.agree_on_outbox(peer, shard);
            if shard == ShardId(0) && version(&peer.state) < version(&self.state) {
                self.send_catalog(peer);
            }
        }
        let producer_ids = |state: &State| {
            let ids = state.range(&[Kind::Producer as u8]);
            ids.filter_map(|(key, _)| producer_of_key(key)).max()
        };
        let used = peers.iter().map(|peer| producer_ids(&peer.state)).max().flatten();
        let used = used.max(producer_ids(&self.state)).max(self.chain.producer_id_max);
        self.let_producers_go_on(used);
        let key = Kind::ProducerIdBlock.key(&[]);
        let granted = self.state.value(&key).and_then(number);
        if shard == ShardId(0)
            && let Some(used) = used.and_then(|used| u64::try_from(used).ok())
        {
            // An id may be in use that no record shows yet.
            let granted = granted.unwrap_or(0).max(used + 1) + PRODUCER_ID_BLOCK;
            self.state.load(&key, Some(&granted.to_le_bytes()));
        }
    }

    /// What producers did may be lost, so all that there are may go on where they are.
    fn let_producers_go_on(&mut self, used: Option<i64>) {
        let Some(used) = used else { return };
        let partitions = self.state.range(&[Kind::Partition as u8]);
        let keys: Vec<Vec<u8>> = partitions
            .filter_map(|(key, _)| partition_of_key(key))
            .map(|id| Kind::ForgottenProducers.key(&[&id.topic.0, &id.index.to_be_bytes()]))
            .collect();
        for key in keys {
            self.state.load(&key, Some(&used.to_le_bytes()));
        }
    }

    fn agree_on_outbox(&mut self, peer: &Peer, shard: ShardId) {
        let numbered = |state: &State, kind: Kind, of: u16| {
            state.value(&kind.key(&[&of.to_be_bytes()])).and_then(number)
        };
        // What the peer took from here was made here.
        let taken = numbered(&peer.state, Kind::OutboxTaken, shard.0).unwrap_or(0);
        let next = numbered(&self.state, Kind::OutboxNext, peer.shard).unwrap_or(1);
        if taken >= next {
            self.put_number(Kind::OutboxNext, peer.shard, taken + 1);
            let prefix = Kind::Outbox.key(&[&peer.shard.to_be_bytes()]);
            let stale: Vec<Vec<u8>> =
                self.state.range(&prefix).map(|(key, _)| key.to_vec()).collect();
            for key in stale {
                self.state.load(&key, None);
            }
        }
        // What the peer no longer keeps for this shard was taken here.
        let next = numbered(&peer.state, Kind::OutboxNext, shard.0).unwrap_or(1);
        let waiting = Kind::Outbox.key(&[&shard.0.to_be_bytes()]);
        let waiting = peer.state.range(&waiting).count() as u64;
        let confirmed = (next - 1).saturating_sub(waiting);
        if numbered(&self.state, Kind::OutboxTaken, peer.shard).unwrap_or(0) < confirmed {
            self.put_number(Kind::OutboxTaken, peer.shard, confirmed);
        }
    }

    /// The change that a peer has not heard of may have been in what is cut off: it gets the whole
    /// catalog, unless something is on its way to it anyway.
    fn send_catalog(&mut self, peer: &Peer) {
        let prefix = Kind::Outbox.key(&[&peer.shard.to_be_bytes()]);
        if self.state.range(&prefix).next().is_some() {
            return;
        }
        let gone = peer.state.range(&[Kind::Topic as u8]).map(|(key, _)| key);
        let gone = gone.filter(|key| self.state.value(key).is_none());
        let mut changes: Vec<Change> =
            gone.map(|key| Change { key: key.to_vec(), value: None }).collect();
        for kind in [Kind::Topic, Kind::CatalogVersion] {
            changes.extend(
                self.state
                    .range(&[kind as u8])
                    .map(|(key, value)| Change { key: key.to_vec(), value: Some(value.to_vec()) }),
            );
        }
        let entry = encode_changes(&changes);
        if entry.len() > VALUE_SIZE_MAX {
            self.notes.push(format!(
                "Shard {} has an older catalog of topics: topics that are new to it cannot be used.",
                peer.shard
            ));
            return;
        }
        let next = self.state.value(&Kind::OutboxNext.key(&[&peer.shard.to_be_bytes()]));
        let next = next.and_then(number).unwrap_or(1);
        let key = [&prefix[..], &next.to_be_bytes()].concat();
        self.state.load(&key, Some(&entry));
        self.put_number(Kind::OutboxNext, peer.shard, next + 1);
    }

    fn put_number(&mut self, kind: Kind, of: u16, number: u64) {
        let key = kind.key(&[&of.to_be_bytes()]);
        self.state.load(&key, Some(&number.to_le_bytes()));
    }

    /// Every offset that once had a record, and has none now.
    fn find_lost(&mut self, shard: ShardId, shard_count: u16) {
        let mut names = Names::new(shard_count);
        for (key, value) in self.state.range(&[Kind::Topic as u8]) {
            names.learn(key, Some(value));
        }
        let topics: Vec<_> = names.routes().topics.values().cloned().collect();
        let partitions: Vec<PartitionId> = topics
            .iter()
            .flat_map(|topic| {
                let own =
                    (0..topic.partition_count).filter(|index| topic.shard_of(*index) == shard);
                own.map(|index| topic.partition(index))
            })
            .collect();
        let live: BTreeSet<PartitionId> = partitions.iter().copied().collect();
        self.forget_partitions_but(&live);
        self.lost.clear();
        for partition in partitions {
            self.find_lost_of(partition);
        }
    }

    /// State of a partition that is not there would be dropped at the start anyway.
    fn forget_partitions_but(&mut self, live: &BTreeSet<PartitionId>) {
        let stored = self.state.range(&[Kind::Partition as u8]);
        let stored = stored.chain(self.state.range(&[Kind::Producer as u8]));
        let stored = stored.chain(self.state.range(&[Kind::ForgottenProducers as u8]));
        let dead: Vec<Vec<u8>> = stored
            .map(|(key, _)| key)
            .filter(|key| partition_of_key(key).is_none_or(|id| !live.contains(&id)))
            .map(<[u8]>::to_vec)
            .collect();
        for key in dead {
            self.state.load(&key, None);
        }
        self.runs.retain(|run| live.contains(&run.partition));
    }

    fn find_lost_of(&mut self, partition: PartitionId) {
        let key = Kind::Partition.key(&[&partition.topic.0, &partition.index.to_be_bytes()]);
        let (start, stored_end) =
            self.state.value(&key).and_then(partition_value).unwrap_or((0, 0));
        let kept = self.extents.iter().flat_map(|extent| &extent.runs);
        let kept = kept.filter(|run| run.partition == partition).map(|run| (run.base, run.end));
        let fresh = self.runs.iter().filter(|run| run.partition == partition);
        let mut covered: Vec<(u64, u64)> =
            kept.chain(fresh.map(|run| (run.base(), run.end()))).collect();
        let known = self.base.lost.iter().filter(|lost| lost.partition == partition);
        let ends = covered.iter().map(|(_, end)| *end);
        let ends = ends.chain(known.map(|lost| lost.end));
        // Runs of a damaged extent, and batches behind the damage of the WAL, had their offsets.
        let named = self.base.extents.iter().flat_map(|extent| &extent.runs);
        let named = named.filter(|run| run.partition == partition).map(|run| run.end);
        let behind = self.chain.ends.get(&partition).copied();
        let end = ends.chain(named).chain(behind).max().unwrap_or(0).max(stored_end).max(start);
        let gaps = missing(&mut covered, start, end);
        self.lost.extend(gaps.into_iter().map(|(base, end)| LostRange { partition, base, end }));
        let value = [start.to_le_bytes(), end.to_le_bytes()].concat();
        if end > 0 {
            self.state.load(&key, Some(&value));
        }
    }
}

/// The batches of a run that are right.
fn salvage(view: &ExtentView<'_>, bytes: &Bytes, run: &Run) -> Vec<RunData> {
    let batches = view.intact_batches(run).into_iter().filter_map(|(range, head)| {
        let bytes = bytes.slice(range);
        RecordBatch::stored_intact(bytes.clone()).ok()?;
        Some(BatchRef {
            base_offset: head.base_offset,
            last_offset: head.last_offset,
            max_timestamp_ms: head.max_timestamp_ms,
            bytes,
        })
    });
    cut_at_gaps(run.partition, batches.collect())
}

/// Runs without a gap inside.
fn cut_at_gaps(partition: PartitionId, batches: Vec<BatchRef>) -> Vec<RunData> {
    let mut runs: Vec<RunData> = Vec::new();
    for batch in batches {
        match runs.last_mut() {
            Some(run) if run.end() == batch.base_offset => run.batches.push(batch),
            Some(run) if run.end() > batch.base_offset => {}
            Some(_) | None => runs.push(RunData { partition, batches: vec![batch] }),
        }
    }
    runs
}
