//! Opening a shard: what the disk holds becomes state, and a seal makes this start durable.
//!
//! Keyed state comes from the snapshot, the delta files and the frames, in that order; the parts
//! are built from it afterwards. Records come from the frames alone. No user code runs.

use std::collections::HashMap;

use tidemill_wal::commit::{Log as Wal, LogOptions};
use tidemill_wal::disk::{DirectoryError, DiskFault, DiskOp, Storage};
use tidemill_wal::format::{Entry, PartitionId, ShardId, TopicId};
use tidemill_wal::limits::SEGMENT_READY_COUNT;
use tidemill_wal::recovery::{self, Newest, ReplayFrame, ScanEnd, ScanError, ScanStart, Torn};
use tidemill_wal::store::{Store, StoreError};

use super::catalog::ProducerIds;
use super::early::LogEnd;
use super::room::WaitingBatches;
use super::{Outgoing, Shard, ShardOptions};
use crate::batch::RecordBatch;
use crate::catalog::{Catalog, IdSource};
use crate::effect::{Change, Effect, Now};
use crate::group::{Groups, stored};
use crate::outbox::{FilterBeyondEnd, Outbox};
use crate::partition::fetch::Readers;
use crate::partition::log::TailBatch;
use crate::partition::producer::Producer;
use crate::state::{Kind, State};
use crate::topology::stored::decode_progress_key;

/// Why a shard cannot be opened. Each is a decision for the operator; see `docs/OPERATIONS.md`.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Snapshot, delta files, manifest or extents.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The WAL.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The disk refused what recovery has to write.
    #[error(transparent)]
    Disk(#[from] DiskFault),
    /// The directory itself: in use, or on a file system that cannot do what is needed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Checksums hold, but the contents make no sense: written by a defective or newer build.
    #[error("{0}; the data were not changed. Restore a copy, or use the build that wrote them")]
    Contents(String),
    /// Two shards do not belong together: one lost what was durable.
    #[error(
        "{0}. The node does not start. Restore the directory of shard {own} from a copy, or \
         `tidemill-dump quarantine --shard {own}` makes the two agree",
        own = .0.own
    )]
    Disagree(FilterBeyondEnd),
    /// What a topology declares is not what it left here.
    #[error("topology {0:?}: {1}")]
    Topology(String, String),
}

/// A shard whose files were read. What other shards have decides whether its newest frame stays: see
/// [`Recovered::log_end`].
#[derive(Debug)]
pub struct Recovered {
    options: ShardOptions,
    store: Store,
    has_reserve: bool,
    state: State,
    replay: Replay,
    end: ScanEnd,
    newest: Option<Newest>,
    log_end: LogEnd,
}

/// An opened shard and what it took.
#[derive(Debug)]
pub struct Opened {
    /// Ready for its first step.
    pub shard: Shard,
    /// Frames replayed.
    pub frames: u64,
    /// Bytes of frames replayed.
    pub bytes: u64,
    /// A frame that a crash cut short, or that was cut for another shard's; it was never acknowledged.
    pub torn: Option<Torn>,
}

/// Records and last clock of the frames that were replayed.
#[derive(Debug, Default)]
struct Replay {
    batches: Vec<(PartitionId, TailBatch, i64)>,
    frames: u64,
    bytes: u64,
}

impl Replay {
    fn frame(&mut self, frame: &ReplayFrame, state: &mut State) -> Result<(), String> {
        self.frames += 1;
        self.bytes += frame.bytes.len() as u64;
        for item in frame.entries() {
            let (payload, entry) = item.map_err(|fault| fault.to_string())?;
            match entry {
                Entry::Batch(entry, _) => {
                    let tail = TailBatch {
                        base_offset: entry.base_offset,
                        last_offset: entry.last_offset,
                        max_timestamp_ms: entry.max_timestamp_ms,
                        sequence: frame.header.sequence(),
                        bytes: frame.bytes.slice(payload),
                    };
                    self.batches.push((entry.partition, tail, frame.header.clock_ms()));
                }
                Entry::Put { key, value } => {
                    state.apply(Change { key: key.to_vec(), value: Some(value.to_vec()) });
                }
                Entry::Delete { key } => state.apply(Change { key: key.to_vec(), value: None }),
            }
        }
        Ok(())
    }
}

impl Shard {
    /// Recovers a shard, or makes a new one in an empty directory. Blocking; performs its writes
    /// through `storage`. `progress` hears of replayed bytes.
    ///
    /// For a shard that is alone, or has ended cleanly. Those of a node agree on the newest frames in
    /// between: [`Shard::recover`], [`agree_on_ends`](super::agree_on_ends), [`Recovered::open`].
    pub fn open(
        storage: &mut dyn Storage,
        options: ShardOptions,
        now: Now,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Opened, OpenError> {
        Self::recover(storage, options, progress)?.open(storage, false, now)
    }

    /// Reads what there is of a shard. What no longer belongs to it goes; its log stays as it is.
    pub fn recover(
        storage: &mut dyn Storage,
        options: ShardOptions,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Recovered, OpenError> {
        let mut has_reserve = false;
        let store = match Store::load(storage, options.id)? {
            Some(loaded) => {
                has_reserve = loaded.reserve_size >= options.disk_reserve_size;
                for file in loaded.unnamed {
                    storage.perform(&DiskOp::Remove { file })?;
                }
                loaded.store
            }
            None => Store::new(options.id, u32::from(options.shard_count), options.node),
        };
        let mut state = State::default();
        store.visit_state(storage, &mut |key, value| state.load(key, value))?;
        let mut replay = Replay::default();
        let start = ScanStart {
            shard: options.id,
            first_segment: store.manifest().first_segment,
            replay_from: store.manifest().replay_from,
            known_durable: store.manifest().durable,
            epoch_min: store.manifest().epoch,
            segment_size: options.segment_size,
            segment_count_max: options.segment_count_max,
        };
        let (end, newest) = recovery::scan_to_newest(storage, &start, &mut |frame| {
            replay.frame(&frame, &mut state)?;
            progress(replay.bytes);
            Ok(())
        })?;
        let mut log_end = LogEnd::default();
        log_end.add_state(&state).map_err(OpenError::Contents)?;
        if let Some(newest) = &newest {
            log_end.set_newest(&newest.frame).map_err(OpenError::Contents)?;
        }
        Ok(Recovered { options, store, has_reserve, state, replay, end, newest, log_end })
    }

    /// What a shard says first: its filters to the others, and its picture of the catalog.
    pub fn start(&mut self, effects: &mut Vec<Effect>) {
        let others: Vec<_> = self.outbox.others().collect();
        for shard in others {
            let hello = self.outbox.hello(shard);
            self.hold(Outgoing::Mesh(shard, hello), effects);
        }
        let routes = self.catalog.routes().clone().into();
        self.hold(Outgoing::Routes(routes), effects);
        if self.options.id == ShardId(0) {
            self.create_topics(effects);
        }
    }

    fn with_parts(
        options: ShardOptions,
        wal: Wal,
        store: Store,
        state: State,
        ids: IdSource,
        now: Now,
    ) -> Self {
        Self {
            wal,
            store,
            state,
            ids,
            catalog: Catalog::new(options.shard_count, options.catalog.clone()),
            partitions: HashMap::new(),
            groups: Groups::new(options.group.clone(), options.seed[0]),
            outbox: Outbox::new(options.id, options.shard_count),
            readers: Readers::default(),
            reads: HashMap::new(),
            queries: HashMap::new(),
            next_read: 0,
            producer_ids: ProducerIds::default(),
            changes_open: Default::default(),
            appending: Vec::new(),
            for_room: WaitingBatches::new(options.waiting_batches_size_max, options.shard_count),
            in_flight: Vec::new(),
            barrier: Default::default(),
            deferred: Default::default(),
            dirty_partitions: Default::default(),
            dirty_producers: Default::default(),
            upkeep: Default::default(),
            topologies: Default::default(),
            unhurried: None,
            early: Default::default(),
            last_activity_ms: now.monotonic_ms,
            is_stopping: false,
            options,
        }
    }

    /// Builds the parts from the keyed state. What belongs to a topic that is gone goes with it.
    fn load_parts(&mut self, now: Now) -> Result<(), String> {
        let mut orphans = Vec::new();
        // Topics come first in key order, so partitions and offsets can be checked against them.
        let state = std::mem::take(&mut self.state);
        for (key, value) in state.range(&[]) {
            let kind =
                Kind::of(key).ok_or_else(|| format!("a state entry of unknown kind {}", key[0]))?;
            match kind {
                Kind::Topic | Kind::CatalogVersion => {
                    let change = Change { key: key.to_vec(), value: Some(value.to_vec()) };
                    if let Some(event) = self.catalog.apply(&change)? {
                        self.on_topic(event, &mut Vec::new());
                    }
                }
                Kind::Partition | Kind::Producer | Kind::ForgottenProducers => {
                    if !self.load_partition_entry(kind, key, value)? {
                        orphans.push(key.to_vec());
                    }
                }
                Kind::TopologyProgress => {
                    let (_, partition) =
                        decode_progress_key(key).ok_or("a topology's progress has a short key")?;
                    if self.catalog.topic(partition.topic).is_none() {
                        orphans.push(key.to_vec());
                    }
                }
                Kind::GroupOffset if !self.has_topic_of_offset(key) => orphans.push(key.to_vec()),
                Kind::Group | Kind::GroupOffset => self.groups.load(now, key, value)?,
                Kind::ProducerIdBlock => {
                    let granted = value.try_into().map(i64::from_le_bytes);
                    self.producer_ids =
                        ProducerIds::resume(granted.map_err(|_| "a producer id is not 8 bytes")?);
                }
                Kind::Outbox | Kind::OutboxNext | Kind::OutboxTaken => {
                    self.outbox.load(key, value)?;
                }
                // Read where they are.
                Kind::OutboxEarly
                | Kind::OperatorState
                | Kind::Timer
                | Kind::TopologyStep
                | Kind::TopologyArrival
                | Kind::TopologyStates
                | Kind::TopologyTaken
                | Kind::TopologyPlaces
                | Kind::TopologySeen
                | Kind::TopologyCalled
                | Kind::TopologyCourse => {}
            }
        }
        self.state = state;
        // A drop that no manifest had yet is made again.
        let stored: Vec<PartitionId> = self.store.partitions().collect();
        for id in stored {
            match self.partitions.get(&id) {
                Some(partition) => self.store.drop_below(id, partition.log.start()),
                None => self.store.drop_partition(id),
            }
        }
        for key in orphans {
            self.state.apply(Change { key, value: None });
        }
        Ok(())
    }

    fn has_topic_of_offset(&self, key: &[u8]) -> bool {
        stored::decode_offset_key(key)
            .map_or(true, |(_, partition)| self.catalog.topic(partition.topic).is_some())
    }

    /// False if the partition is not there any more.
    fn load_partition_entry(
        &mut self,
        kind: Kind,
        key: &[u8],
        value: &[u8],
    ) -> Result<bool, String> {
        let id = partition_of(key).ok_or("a partition's key is too short")?;
        let Some(partition) = self.partitions.get_mut(&id) else { return Ok(false) };
        if kind == Kind::Partition {
            let (start, end) = value.split_at_checked(8).ok_or("a partition's entry is short")?;
            let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes);
            let start = number(start).map_err(|_| "a partition's start is not 8 bytes")?;
            let end = number(end).map_err(|_| "a partition's end is not 8 bytes")?;
            if start > end {
                return Err(format!("partition {id:?} starts at {start}, after its end {end}"));
            }
            partition.log = crate::partition::log::Log::new(start, end);
        } else if kind == Kind::ForgottenProducers {
            let id = value.try_into().map(i64::from_le_bytes);
            let id = id.map_err(|_| "the id of forgotten producers is not 8 bytes")?;
            partition.producers.load_forgotten_up_to(id);
        } else {
            let producer_id = key.get(21..29).and_then(|id| id.try_into().ok());
            let producer_id =
                i64::from_be_bytes(producer_id.ok_or("a producer's key is too short")?);
            let producer = Producer::decode(value).ok_or("a producer's entry cannot be read")?;
            partition.producers.load(producer_id, producer);
        }
        Ok(true)
    }

    /// Puts replayed batches into the tails, as durable.
    fn load_batches(&mut self, batches: Vec<(PartitionId, TailBatch, i64)>) -> Result<(), String> {
        for (id, tail, clock_ms) in batches {
            let Some(partition) = self.partitions.get_mut(&id) else { continue };
            let batch = RecordBatch::stored(tail.bytes.clone()).map_err(|fault| {
                format!("a batch of {id:?} in frame {:?}: {fault}", tail.sequence)
            })?;
            if !partition.log.follows(&tail) {
                return Err(format!(
                    "a batch of {id:?} at offset {} overlaps the one before it",
                    tail.base_offset
                ));
            }
            let base_offset = tail.base_offset;
            partition.log.push(tail);
            partition.producers.on_appended(&batch, base_offset, clock_ms);
            if batch.producer_id() >= 0 {
                self.dirty_producers.insert((id, batch.producer_id()));
            }
            self.dirty_partitions.insert(id);
        }
        let durable = self.wal.durable();
        for partition in self.partitions.values_mut() {
            partition.log.on_durable(durable);
        }
        Ok(())
    }
}

impl Recovered {
    /// What the other shards have to know of it, for [`agree_on_ends`](super::agree_on_ends).
    pub fn log_end(&self) -> &LogEnd {
        &self.log_end
    }

    /// Starts the shard, without its newest frame if that is cut. From then on that is so for good, so
    /// no shard of the node may make anything new before all were opened: what is made of the same
    /// number as what was lost would be taken for it.
    pub fn open(
        self,
        storage: &mut dyn Storage,
        is_cut: bool,
        now: Now,
    ) -> Result<Opened, OpenError> {
        let Self {
            options, mut store, mut has_reserve, mut state, mut replay, end, newest, ..
        } = self;
        let end = match newest {
            Some(newest) if is_cut => newest.without,
            Some(newest) => {
                newest.visit(&mut |frame| replay.frame(&frame, &mut state))?;
                end
            }
            None => end,
        };
        let log_options = LogOptions {
            shard: options.id,
            segment_size: options.segment_size,
            segment_count_max: options.segment_count_max,
        };
        let mut ids = IdSource::new(options.seed);
        let mut nonce = || ids.next_u64();
        let wal = recovery::start(
            storage,
            log_options,
            &end,
            SEGMENT_READY_COUNT,
            now.wall_ms,
            &mut nonce,
        )?;
        store.set_drain_size(options.settle_sync_size);
        if store.manifest().version == 0 {
            let first_segment = wal.oldest_segment().expect("the seal is in it");
            for op in store.create(first_segment, wal.durable(), wal.epoch()) {
                storage.perform(&op)?;
            }
            store.on_created();
        }
        if !has_reserve {
            has_reserve = make_reserve(storage, options.disk_reserve_size)?;
        }
        let mut shard = Shard::with_parts(options, wal, store, state, ids, now);
        shard.upkeep.set_reserve(has_reserve);
        shard.load_parts(now).map_err(OpenError::Contents)?;
        shard.load_batches(replay.batches).map_err(OpenError::Contents)?;
        shard.host()?;
        Ok(Opened { shard, frames: replay.frames, bytes: replay.bytes, torn: end.torn })
    }
}

/// False if there is no room for it now.
fn make_reserve(storage: &mut dyn Storage, size: u64) -> Result<bool, DiskFault> {
    for op in Store::reserve_ops(size) {
        match storage.perform(&op) {
            Ok(()) => {}
            Err(DiskFault::Full { .. }) => {
                for op in Store::release_reserve_ops() {
                    storage.perform(&op)?;
                }
                return Ok(false);
            }
            Err(fault @ DiskFault::Failed { .. }) => return Err(fault),
        }
    }
    Ok(true)
}

/// The partition in the key of what belongs to one: of its own entry, and of its producers'.
pub fn partition_of(key: &[u8]) -> Option<PartitionId> {
    let topic = TopicId(key.get(1..17)?.try_into().ok()?);
    let index = u32::from_be_bytes(key.get(17..21)?.try_into().ok()?);
    Some(PartitionId { topic, index })
}
