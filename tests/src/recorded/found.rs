//! Looks at what a recovery left: by recovering the shards in this process, which takes
//! milliseconds, or by asking the real daemon.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tidemill::batch::batches;
use tidemill::catalog::{Catalog, CatalogLimits};
use tidemill::effect::{Change, Now};
use tidemill::group::GroupLimits;
use tidemill::kafka::error_code::ErrorCode;
use tidemill::kafka::messages::{OffsetFetchGroup, OffsetFetchRequest};
use tidemill::runtime::identity::{Identity, shard_directory};
use tidemill::shard::{LogEnd, Shard, ShardOptions, agree_on_ends};
use tidemill::state::{Kind, State};
use tidemill_wal::disk::{Directory, DirectoryOptions, DiskFault, DiskOp, ExtentMap, Storage};
use tidemill_wal::extent::ExtentView;
use tidemill_wal::format::{Entry, FileName, PartitionId, ShardId};
use tidemill_wal::recovery::{self, ScanStart};
use tidemill_wal::store::Store;

use super::history::{Found, History, Partition};
use super::workload::SEGMENT_SIZE;
use crate::peer::Peer;

/// No shard has more; matters only to what recovery prepares.
const SEGMENT_COUNT_MAX: usize = 3;
/// More than any batch of the workload.
const BATCH_SIZE_MAX: usize = 64 << 20;

/// Recovers every shard of a data directory as the daemon does, and reads all that is there.
pub fn recover(directory: &Path) -> Result<Found, String> {
    let Some(identity) = Identity::load(directory).map_err(|error| error.to_string())? else {
        return Ok(Found::default());
    };
    let mut found = Found::default();
    let mut catalog = Catalog::new(identity.shards, limits());
    let mut records = BTreeMap::new();
    let say = |shard: u16| move |why: String| format!("shard {shard}: {why}");
    let mut recovered = Vec::new();
    for shard in 0..identity.shards {
        let place = shard_directory(directory, shard);
        let wait = Duration::from_secs(5);
        let options = DirectoryOptions { wal: place.clone(), data: place, lock_wait: wait };
        let opened = Directory::open(&options).map_err(|error| say(shard)(error.to_string()));
        let mut files = ReadOnce { directory: opened?, pieces: RefCell::default() };
        let options = shard_options(shard, &identity);
        let found = Shard::recover(&mut files, options, &mut |_| {});
        recovered.push((found.map_err(|error| say(shard)(error.to_string()))?, files));
    }
    let ends: Vec<LogEnd> = recovered.iter().map(|(found, _)| found.log_end().clone()).collect();
    let cuts = agree_on_ends(&ends).map_err(|fault| fault.to_string())?;
    for (shard, ((recovered, mut files), is_cut)) in (0..).zip(recovered.into_iter().zip(cuts)) {
        let say = say(shard);
        let now = Now { monotonic_ms: 1, wall_ms: 1 };
        let opened = recovered.open(&mut files, is_cut, now);
        let opened = opened.map_err(|error| say(error.to_string()))?.shard;
        for (group, _, offset) in opened.committed() {
            note_committed(&mut found.committed, group, offset as i64);
        }
        drop(opened);
        let state = read(&files, shard, &mut records).map_err(say)?;
        if shard == 0 {
            for (key, value) in state.range(&[Kind::Topic as u8]) {
                catalog.apply(&Change { key: key.to_vec(), value: Some(value.to_vec()) })?;
            }
        }
    }
    found.topics = catalog.routes().topics.keys().map(ToString::to_string).collect();
    for (id, values) in records {
        // Whatever has no name belongs to a topic that was deleted.
        if let Some(topic) = catalog.topic(id.topic) {
            found.records.insert((topic.name.to_string(), id.index as i32), values);
        }
    }
    Ok(found)
}

/// Pieces of a file by offset and size.
type Pieces = HashMap<(u64, usize), Bytes>;

/// A shard's directory of which every piece is read once: recovery and whoever looks afterwards
/// read the same, unless it was written to between.
struct ReadOnce {
    directory: Directory,
    pieces: RefCell<HashMap<FileName, Pieces>>,
}

impl Storage for ReadOnce {
    fn list(&self) -> io::Result<Vec<(FileName, u64)>> {
        self.directory.list()
    }

    fn read(&self, file: &FileName, offset: u64, size: usize) -> io::Result<Bytes> {
        let mut pieces = self.pieces.borrow_mut();
        let of_file = pieces.entry(file.clone()).or_default();
        if let Some(known) = of_file.get(&(offset, size)) {
            return Ok(known.clone());
        }
        let piece = self.directory.read(file, offset, size)?;
        of_file.insert((offset, size), piece.clone());
        Ok(piece)
    }

    fn perform(&mut self, op: &DiskOp) -> Result<(), DiskFault> {
        let pieces = self.pieces.get_mut();
        match op {
            DiskOp::Create { file }
            | DiskOp::Write { file, .. }
            | DiskOp::Zero { file, .. }
            | DiskOp::Remove { file } => {
                pieces.remove(file);
            }
            DiskOp::Rename { from, to } => {
                pieces.remove(from);
                pieces.remove(to);
            }
            DiskOp::Sync { .. } | DiskOp::Drain { .. } | DiskOp::SyncDirectory { .. } => {}
        }
        self.directory.perform(op)
    }
}

/// For the recovery of the daemon itself.
fn shard_options(shard: u16, identity: &Identity) -> ShardOptions {
    ShardOptions {
        id: ShardId(shard),
        shard_count: identity.shards,
        node: identity.node_bytes().expect("checked when it was loaded"),
        seed: [1, 2],
        segment_size: SEGMENT_SIZE,
        segment_count_max: SEGMENT_COUNT_MAX,
        catalog: limits(),
        group: GroupLimits::default(),
        idle_frame_ms: 20,
        producer_expiry_ms: 86_400_000,
        retention_check_ms: 30_000,
        delta_size_max: 1 << 20,
        disk_reserve_size: 1 << 20,
        disk_full_retry_ms: 1000,
        scrub_rate: 0,
        settle_sync_size: 1 << 20,
        copied_at_once: usize::MAX,
        readers_max: 100,
        waiting_batches_size_max: 8 << 20,
        topologies: Vec::new(),
        state_budget: u64::MAX,
    }
}

fn limits() -> CatalogLimits {
    CatalogLimits {
        partition_count_default: 2,
        partition_count_max: 20_000,
        topic_count_max: 5000,
        retention_ms: None,
        retention_bytes: None,
        batch_size_max: 1 << 20,
        batch_size_limit: 15 << 20,
    }
}

type Records = BTreeMap<PartitionId, BTreeMap<i64, Bytes>>;

/// Reads all records and the state of a shard that was recovered, without changing anything.
fn read(files: &ReadOnce, shard: u16, records: &mut Records) -> Result<State, String> {
    let loaded = Store::load(files, ShardId(shard)).map_err(|error| error.to_string())?;
    let store = loaded.ok_or("no manifest after a recovery")?.store;
    let mut state = State::default();
    store
        .visit_state(files, &mut |key, value| {
            state.load(key, value);
        })
        .map_err(|error| error.to_string())?;
    for extent in &store.manifest().extents {
        let map = ExtentMap::open(&files.directory.path(&extent.file))
            .map_err(|error| format!("{}: {error}", extent.file.0))?;
        let populate = |range| map.populate(range);
        let view = ExtentView::open_with(map.bytes(), &populate)
            .map_err(|damage| format!("{}: {damage:?}", extent.file.0))?;
        for run in &extent.runs {
            for batch in view.batches(run) {
                let (range, _) =
                    batch.map_err(|damage| format!("{}: {damage:?}", extent.file.0))?;
                take(records, run.partition, Bytes::copy_from_slice(&map.bytes()[range]))?;
            }
        }
    }
    let manifest = store.manifest();
    let start = ScanStart {
        shard: manifest.shard,
        first_segment: manifest.first_segment,
        replay_from: manifest.replay_from,
        known_durable: manifest.durable,
        epoch_min: manifest.epoch,
        segment_size: SEGMENT_SIZE,
        segment_count_max: SEGMENT_COUNT_MAX,
    };
    recovery::scan(files, &start, &mut |frame| {
        for item in frame.entries() {
            let (payload, entry) = item.map_err(|fault| fault.to_string())?;
            match entry {
                Entry::Batch(entry, _) => {
                    take(records, entry.partition, frame.bytes.slice(payload))?;
                }
                Entry::Put { key, value } => {
                    state.load(key, Some(value));
                }
                Entry::Delete { key } => state.load(key, None),
            }
        }
        Ok(())
    })
    .map_err(|error| error.to_string())?;
    Ok(state)
}

/// Takes the records of stored batches, each of which must be whole and at an offset of its own.
fn take(records: &mut Records, partition: PartitionId, bytes: Bytes) -> Result<(), String> {
    let values = records.entry(partition).or_default();
    for batch in batches(bytes) {
        let batch = batch.map_err(|fault| fault.to_string())?;
        for record in batch.records(BATCH_SIZE_MAX).map_err(|fault| fault.to_string())? {
            let record = record.map_err(|fault| fault.to_string())?;
            let offset = record.offset as i64;
            if values.insert(offset, record.value.unwrap_or_default()).is_some() {
                return Err(format!("{partition:?}: offset {offset} is there twice"));
            }
        }
    }
    Ok(())
}

/// A commit names several partitions and is in whole or not at all: the lowest offset counts.
fn note_committed(committed: &mut BTreeMap<String, i64>, group: &str, offset: i64) {
    let known = committed.entry(group.to_owned()).or_insert(offset);
    *known = offset.min(*known);
}

/// What a node has been through, by the files that it left.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Past {
    /// Segments that were filled and recycled.
    pub recycled: u64,
    /// Extents that were merged from others.
    pub merged: usize,
    /// Snapshots that are there beside the first, empty one.
    pub snapshots: usize,
    /// Times that a shard was opened.
    pub epochs: u64,
}

/// Looks at the manifests of a data directory that nobody uses.
pub fn past(directory: &Path) -> Result<Past, String> {
    let identity = Identity::load(directory).map_err(|error| error.to_string())?;
    let mut past = Past::default();
    for shard in 0..identity.ok_or("no identity")?.shards {
        let place = shard_directory(directory, shard);
        let directory = Directory::open_read_only(place.clone(), place);
        let loaded = Store::load(&directory, ShardId(shard)).map_err(|error| error.to_string())?;
        let store = loaded.ok_or("no manifest")?.store;
        let manifest = store.manifest();
        past.recycled += manifest.first_segment.0.saturating_sub(SEGMENT_COUNT_MAX as u64);
        past.merged += manifest.extents.iter().filter(|extent| extent.level > 0).count();
        past.snapshots += manifest.snapshots.iter().filter(|snapshot| snapshot.size > 0).count();
        past.epochs += manifest.epoch.0;
    }
    Ok(past)
}

/// Asks a daemon for everything that it owes at a moment.
pub fn ask(peer: &mut Peer, history: &History, moment: usize) -> Found {
    let mut found = Found { topics: peer.topic_names(), ..Found::default() };
    for (topic, index) in history.partitions_at(moment) {
        if !found.topics.contains(topic) {
            continue;
        }
        let partition: Partition = (topic.clone(), *index);
        let (error, start) = peer.list_offset(topic, *index, -2);
        assert_eq!(error, ErrorCode::None, "{topic}/{index}");
        let values = peer.values(topic, *index, start);
        found.records.insert(partition.clone(), (start..).zip(values).collect());
        found.starts.insert(partition, start);
    }
    let group = |name: &String| OffsetFetchGroup {
        group_id: name.as_str().into(),
        topics: None,
        ..Default::default()
    };
    let groups: Vec<OffsetFetchGroup> = history.groups().map(group).collect();
    let request = OffsetFetchRequest { groups, ..Default::default() };
    for group in peer.ask(8, &request).groups {
        assert_eq!(group.error_code, ErrorCode::None);
        let offsets = group.topics.iter().flat_map(|topic| &topic.partitions);
        for partition in offsets {
            note_committed(&mut found.committed, &group.group_id, partition.committed_offset);
        }
    }
    found
}
