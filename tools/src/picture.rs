//! One shard as its files describe it: manifest, state, and what the WAL adds to both. Whatever is
//! damaged is left out and named.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemill::batch::RecordBatch;
use tidemill::shard::LogEnd;
use tidemill::state::{Kind, State};
use tidemill_wal::disk::{Directory, Storage};
use tidemill_wal::format::{
    BatchEntry, Entry, FileName, PartitionId, Sequence, ShardEpoch, ShardId,
};
use tidemill_wal::limits::{SEGMENT_COUNT_MAX_DEFAULT, SEGMENT_SIZE_DEFAULT};
use tidemill_wal::manifest::{Manifest, load_manifest};
use tidemill_wal::recovery::{self, ReplayFrame, ScanEnd, ScanStart};
use tidemill_wal::store::Store;

use crate::fault::Fault;
use crate::place::Node;
use crate::words::{Names, partition_of_key, partition_value};

/// Beside a running node a file may go while it is looked for; the newest manifest says where its
/// contents are now.
const ATTEMPTS_MAX: usize = 10;

/// How much of the WAL's batches stays in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Their numbers: as little as a look at all shards at once can afford.
    Numbers,
    /// All of their bytes.
    Bytes,
}

/// A batch that only the WAL has.
#[derive(Debug, Clone)]
pub struct Tail {
    /// Offset of its first record.
    pub base: u64,
    /// One past the offset of its last record.
    pub end: u64,
    /// Timestamp of its first record, in milliseconds since 1970.
    pub base_timestamp_ms: i64,
    /// Largest timestamp of its records.
    pub max_timestamp_ms: i64,
    /// Bytes of the batch.
    pub size: u64,
    /// The bytes; empty if they are not kept.
    pub bytes: Bytes,
}

/// A shard.
pub struct Picture {
    /// Its number.
    pub shard: u16,
    /// Where its files are.
    pub directory: Directory,
    /// Every file with its size.
    pub files: Vec<(FileName, u64)>,
    /// What the newest manifest names; `None` if the shard has none yet, or a damaged one.
    pub store: Option<Store>,
    /// All of the state, the WAL included.
    pub state: State,
    /// Batches that only the WAL has.
    pub tails: BTreeMap<PartitionId, Vec<Tail>>,
    /// Epochs of the WAL's frames, first and last.
    pub epochs: Option<(ShardEpoch, ShardEpoch)>,
    /// Sequences of the WAL's frames that have not settled, first and last.
    pub sequences: Option<(Sequence, Sequence)>,
    /// How the scan of the WAL ended.
    pub wal_end: Option<ScanEnd>,
    /// What it says about entries of outboxes.
    pub log_end: LogEnd,
    /// What kept it from being whole.
    pub faults: Vec<Fault>,
}

/// Where frames of the WAL go.
struct Frames<'a> {
    keep: Keep,
    state: &'a mut State,
    tails: &'a mut BTreeMap<PartitionId, Vec<Tail>>,
    epochs: &'a mut Option<(ShardEpoch, ShardEpoch)>,
    sequences: &'a mut Option<(Sequence, Sequence)>,
}

impl Frames<'_> {
    fn add(&mut self, frame: &ReplayFrame) -> Result<(), String> {
        let (epoch, sequence) = (frame.header.shard_epoch(), frame.header.sequence());
        *self.epochs = Some((self.epochs.map_or(epoch, |known| known.0), epoch));
        *self.sequences = Some((self.sequences.map_or(sequence, |known| known.0), sequence));
        replay(frame, self.state, &mut |entry, bytes| {
            let head = RecordBatch::stored(bytes.clone());
            self.tails.entry(entry.partition).or_default().push(Tail {
                base: entry.base_offset,
                end: entry.last_offset + 1,
                base_timestamp_ms: head.map_or(-1, |batch| batch.base_timestamp_ms()),
                max_timestamp_ms: entry.max_timestamp_ms,
                size: bytes.len() as u64,
                bytes: if self.keep == Keep::Bytes { bytes } else { Bytes::new() },
            });
        })
    }
}

impl Picture {
    /// Reads a shard. A fault that a second look at newer files does not show is none.
    pub fn load(node: &Node, shard: u16, keep: Keep) -> Self {
        Self::load_all(node, shard, keep, false)
    }

    /// The same without the newest frame, which a start would cut.
    pub fn load_cut(node: &Node, shard: u16, keep: Keep) -> Self {
        Self::load_all(node, shard, keep, true)
    }

    fn load_all(node: &Node, shard: u16, keep: Keep, is_cut: bool) -> Self {
        let mut before = Self::load_once(node, shard, keep, is_cut);
        for _ in 1..ATTEMPTS_MAX {
            if before.faults.is_empty() {
                break;
            }
            let again = Self::load_once(node, shard, keep, is_cut);
            let is_same = again.faults == before.faults;
            before = again;
            if is_same {
                break;
            }
        }
        before
    }

    fn load_once(node: &Node, shard: u16, keep: Keep, is_cut: bool) -> Self {
        let directory = node.open(shard);
        let mut picture = Self {
            shard,
            files: Vec::new(),
            store: None,
            state: State::default(),
            tails: BTreeMap::new(),
            epochs: None,
            sequences: None,
            wal_end: None,
            log_end: LogEnd::default(),
            faults: Vec::new(),
            directory,
        };
        match picture.directory.list() {
            Ok(files) => picture.files = files,
            Err(error) => {
                let path = picture.directory.path(&FileName("".into()));
                picture.faults.push(Fault::of_path(&path, error));
                return picture;
            }
        }
        picture.load_store();
        picture.load_wal(keep, is_cut);
        picture
    }

    fn load_store(&mut self) {
        let manifest = match load_manifest(&self.directory, ShardId(self.shard), &self.files) {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return,
            Err(error) => {
                self.faults.push(Fault::of_store(&self.directory, &error));
                return;
            }
        };
        let store = match Store::from_manifest(manifest) {
            Ok(store) => store,
            Err(why) => {
                self.faults.push(Fault::of_path(&self.directory.path(&FileName("".into())), why));
                return;
            }
        };
        let state = &mut self.state;
        let visited = store.visit_state(&self.directory, &mut |key, value| {
            state.load(key, value);
        });
        if let Err(error) = visited {
            self.faults.push(Fault::of_store(&self.directory, &error));
        }
        self.store = Some(store);
    }

    fn load_wal(&mut self, keep: Keep, is_cut: bool) {
        let start = match &self.store {
            Some(store) => scan_start(store.manifest()),
            None => scan_start(&Manifest::new(ShardId(self.shard), 1, [0; 16])),
        };
        let mut frames = Frames {
            keep,
            state: &mut self.state,
            tails: &mut self.tails,
            epochs: &mut self.epochs,
            sequences: &mut self.sequences,
        };
        let scanned =
            recovery::scan_to_newest(&self.directory, &start, &mut |frame| frames.add(&frame));
        let scanned = scanned.and_then(|(end, newest)| {
            let log_end = &mut self.log_end;
            // What cannot be read there is a fault of the state.
            let _ = log_end.add_state(frames.state);
            let Some(newest) = newest else { return Ok(end) };
            let _ = log_end.set_newest(&newest.frame);
            if is_cut {
                return Ok(newest.without);
            }
            newest.visit(&mut |frame| frames.add(&frame)).map(|()| end)
        });
        match scanned {
            Ok(end) => self.wal_end = Some(end),
            Err(error) => self.faults.push(Fault::of_scan(&self.directory, &error)),
        }
    }

    /// Adds the names of this shard's topics.
    pub fn name(&self, names: &mut Names) {
        for (key, value) in self.state.range(&[Kind::Topic as u8]) {
            names.learn(key, Some(value));
        }
    }

    /// Start and end of a partition: what the state says, or more if the WAL has more.
    pub fn bounds(&self, partition: PartitionId) -> (u64, u64) {
        let key = Kind::Partition.key(&[&partition.topic.0, &partition.index.to_be_bytes()]);
        let stored = self.state.value(&key).and_then(partition_value).unwrap_or((0, 0));
        let tail = self.tails.get(&partition).and_then(|tail| tail.last());
        (stored.0, stored.1.max(tail.map_or(0, |batch| batch.end)))
    }

    /// Partitions that have a stored entry, a run or a batch in the WAL.
    pub fn partitions(&self) -> Vec<PartitionId> {
        let mut partitions: Vec<PartitionId> = self.tails.keys().copied().collect();
        let stored = self.state.range(&[Kind::Partition as u8]);
        partitions.extend(stored.filter_map(|(key, _)| partition_of_key(key)));
        partitions.extend(self.store.iter().flat_map(Store::partitions));
        partitions.sort_unstable();
        partitions.dedup();
        partitions
    }
}

/// Where recovery would begin.
pub fn scan_start(manifest: &Manifest) -> ScanStart {
    ScanStart {
        shard: manifest.shard,
        first_segment: manifest.first_segment,
        replay_from: manifest.replay_from,
        known_durable: manifest.durable,
        epoch_min: manifest.epoch,
        // These decide only which spare segments stay, and nothing is removed here.
        segment_size: SEGMENT_SIZE_DEFAULT,
        segment_count_max: SEGMENT_COUNT_MAX_DEFAULT,
    }
}

/// Takes the entries of a frame: changes into the state, batches wherever they go.
pub fn replay(
    frame: &ReplayFrame,
    state: &mut State,
    take: &mut dyn FnMut(BatchEntry, Bytes),
) -> Result<(), String> {
    for item in frame.entries() {
        let (payload, entry) = item.map_err(|fault| fault.to_string())?;
        match entry {
            Entry::Batch(entry, _) => take(entry, frame.bytes.slice(payload)),
            Entry::Put { key, value } => {
                state.load(key, Some(value));
            }
            Entry::Delete { key } => state.load(key, None),
        }
    }
    Ok(())
}
