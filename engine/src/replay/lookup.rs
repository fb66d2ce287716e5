//! Where the records are that a step took: in the frames, in extents, and in the frames of the shard
//! that sent them.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use tidemill_wal::disk::Storage;
use tidemill_wal::extent::{ExtentView, ReadFrom};
use tidemill_wal::format::{Entry, FileName, PartitionId, SegmentId, ShardId};
use tidemill_wal::recovery::ReplayFrame;
use tidemill_wal::segment;
use tidemill_wal::store::Store;

use crate::batch;
use crate::state::{Kind, State};
use crate::topology::stored::ENTRY_MARK;

/// Bytes of frames that are kept, for a step mostly takes what came just before it.
const RECENT_SIZE_MAX: usize = 64 << 20;

/// Bytes in a segment.
#[derive(Debug, Clone, Copy)]
struct Span {
    segment: SegmentId,
    position: u64,
    size: usize,
}

/// A batch in a segment.
struct BatchAt {
    base: u64,
    last: u64,
    span: Span,
}

/// An entry of an outbox.
enum EntryAt {
    /// It was in the state before the frames.
    Held(Bytes),
    Wal(Span),
}

/// Records that were found.
pub struct Found {
    /// Offset of the first.
    pub base: u64,
    /// Offset of the last.
    pub last: u64,
    /// The batch.
    pub bytes: Bytes,
}

/// Everything that the shards have.
pub struct Lookup<'s> {
    storages: &'s [&'s dyn Storage],
    /// Batches of each partition in the frames, by offset.
    batches: HashMap<PartitionId, Vec<BatchAt>>,
    /// Entries of topologies by sender and receiver, by sequence.
    entries: HashMap<(ShardId, ShardId), BTreeMap<u64, EntryAt>>,
    recent: RefCell<Recent>,
    /// The extent that was read last.
    extent: RefCell<Option<(ShardId, FileName, Bytes)>>,
}

/// The newest frames that were walked over, of one shard.
#[derive(Default)]
struct Recent {
    shard: Option<ShardId>,
    frames: VecDeque<ReplayFrame>,
    size: usize,
}

impl<'s> Lookup<'s> {
    /// Of shards by number.
    pub fn new(storages: &'s [&'s dyn Storage]) -> Self {
        Self {
            storages,
            batches: HashMap::new(),
            entries: HashMap::new(),
            recent: RefCell::default(),
            extent: RefCell::default(),
        }
    }

    /// Takes what is on its way in the state before the frames.
    pub fn add_state(&mut self, shard: ShardId, state: &State) {
        for (key, value) in state.range(&[Kind::Outbox as u8]) {
            if let Some((to, sequence)) = outbox_key(key).filter(|_| value.starts_with(&ENTRY_MARK))
            {
                let at = EntryAt::Held(Bytes::copy_from_slice(value));
                self.entries.entry((shard, to)).or_default().insert(sequence, at);
            }
        }
    }

    /// Takes what a frame holds. Frames come in order.
    pub fn add_frame(&mut self, shard: ShardId, frame: &ReplayFrame) -> Result<(), String> {
        for item in frame.entries() {
            let (payload, entry) = item.map_err(|fault| fault.to_string())?;
            let span = Span {
                segment: frame.segment,
                position: frame.offset + payload.start as u64,
                size: payload.len(),
            };
            match entry {
                Entry::Batch(entry, _) => {
                    let (base, last) = (entry.base_offset, entry.last_offset);
                    let at = BatchAt { base, last, span };
                    self.batches.entry(entry.partition).or_default().push(at);
                }
                Entry::Put { key, value } if value.starts_with(&ENTRY_MARK) => {
                    let key = outbox_key(key).filter(|_| Kind::of(key) == Some(Kind::Outbox));
                    if let Some((to, sequence)) = key {
                        let entries = self.entries.entry((shard, to)).or_default();
                        entries.insert(sequence, EntryAt::Wal(span));
                    }
                }
                Entry::Put { .. } | Entry::Delete { .. } => {}
            }
        }
        Ok(())
    }

    /// Keeps a frame at hand: what comes next mostly needs it.
    pub fn keep_recent(&self, shard: ShardId, frame: ReplayFrame) {
        let mut recent = self.recent.borrow_mut();
        if recent.shard != Some(shard) {
            *recent = Recent { shard: Some(shard), ..Recent::default() };
        }
        recent.size += frame.bytes.len();
        recent.frames.push_back(frame);
        while recent.size > RECENT_SIZE_MAX && recent.frames.len() > 1 {
            let size = recent.frames.pop_front().map_or(0, |frame| frame.bytes.len());
            recent.size -= size;
        }
    }

    /// The batch of a partition that holds an offset; none if it is not there any more.
    pub fn batch(
        &self,
        shard: ShardId,
        store: &Store,
        id: PartitionId,
        offset: u64,
    ) -> Result<Option<Found>, String> {
        let known = self.batches.get(&id).map_or(&[][..], Vec::as_slice);
        let first = known.partition_point(|batch| batch.last < offset);
        if let Some(at) = known.get(first).filter(|batch| batch.base <= offset) {
            let bytes = self.read(shard, at.span)?;
            return Ok(Some(Found { base: at.base, last: at.last, bytes }));
        }
        let Some(run) = store.find(id, offset).filter(|run| run.base <= offset) else {
            return Ok(None);
        };
        let bytes = self.extent(shard, &run.file)?;
        let damaged = |damage: &dyn std::fmt::Display| format!("{}: {damage}", run.file);
        let view = ExtentView::open_named(&bytes, &|_| Ok(()), shard, &run.file)
            .map_err(|damage| damaged(&damage))?;
        let range = view.read(id, ReadFrom::Offset(offset), 1).map_err(|it| damaged(&it))?;
        let Some(range) = range else { return Ok(None) };
        let Some(batch) = batch::batches(bytes.slice(range)).next() else { return Ok(None) };
        let batch = batch.map_err(|fault| damaged(&fault))?;
        let (base, last) = (batch.base_offset(), batch.last_offset());
        let is_it = (base..=last).contains(&offset);
        Ok(is_it.then(|| Found { base, last, bytes: batch.into_bytes() }))
    }

    /// An entry of a shard's outbox for another one; none if it is not there any more.
    pub fn entry(
        &self,
        sender: ShardId,
        receiver: ShardId,
        sequence: u64,
    ) -> Result<Option<Bytes>, String> {
        let entries = self.entries.get(&(sender, receiver));
        Ok(match entries.and_then(|entries| entries.get(&sequence)) {
            Some(EntryAt::Held(bytes)) => Some(bytes.clone()),
            Some(EntryAt::Wal(span)) => Some(self.read(sender, *span)?),
            None => None,
        })
    }

    fn read(&self, shard: ShardId, span: Span) -> Result<Bytes, String> {
        let recent = self.recent.borrow();
        if recent.shard == Some(shard) {
            let place = (span.segment, span.position);
            let behind =
                recent.frames.partition_point(|frame| (frame.segment, frame.offset) <= place);
            let frame = behind.checked_sub(1).and_then(|index| recent.frames.get(index));
            if let Some(frame) = frame.filter(|frame| frame.segment == span.segment) {
                let from = (span.position - frame.offset) as usize;
                if from + span.size <= frame.bytes.len() {
                    return Ok(frame.bytes.slice(from..from + span.size));
                }
            }
        }
        let file = segment::file_name(span.segment);
        self.read_file(shard, &file, span.position, span.size)
    }

    fn extent(&self, shard: ShardId, file: &FileName) -> Result<Bytes, String> {
        let mut extent = self.extent.borrow_mut();
        if let Some((of, name, bytes)) = &*extent
            && (*of, name) == (shard, file)
        {
            return Ok(bytes.clone());
        }
        let list = self.storages[usize::from(shard.0)].list();
        let list = list.map_err(|error| format!("the directory cannot be listed: {error}"))?;
        let size = list.iter().find(|(name, _)| name == file).map_or(0, |(_, size)| *size);
        let bytes = self.read_file(shard, file, 0, size as usize)?;
        *extent = Some((shard, file.clone(), bytes.clone()));
        Ok(bytes)
    }

    fn read_file(
        &self,
        shard: ShardId,
        file: &FileName,
        position: u64,
        size: usize,
    ) -> Result<Bytes, String> {
        let bytes = self.storages[usize::from(shard.0)].read(file, position, size);
        let bytes = bytes.map_err(|error| format!("{file} cannot be read: {error}"))?;
        match bytes.len() == size {
            true => Ok(bytes),
            false => Err(format!("{file} ends before byte {}", position + size as u64)),
        }
    }
}

/// The receiver and the sequence in the key of an outbox entry.
fn outbox_key(key: &[u8]) -> Option<(ShardId, u64)> {
    let (to, sequence) = key.get(1..)?.split_first_chunk::<2>()?;
    let sequence = u64::from_be_bytes(sequence.try_into().ok()?);
    Some((ShardId(u16::from_be_bytes(*to)), sequence))
}
