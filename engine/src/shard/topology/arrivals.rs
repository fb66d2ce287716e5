//! What other shards sent to topologies: taken in the order of sending, and kept as state until then.
//!
//! How far the entries of a shard were taken is in the frame of what was made of them. An entry that
//! is sent again, for its filter was not durable when the power went, is known by that and not taken
//! twice.

use std::collections::{BTreeMap, VecDeque};
use std::iter::Peekable;

use bytes::Bytes;
use tidemill_wal::format::{ENTRY_OVERHEAD_MAX, ShardId};
use tidemill_wal::mutation::{self, Mutation};

use super::{Hosted, RECORDS_SIZE_MAX, Turn, Wired};
use crate::batch::{RecordBatch, RecordIter};
use crate::effect::{Change, Effect};
use crate::shard::Shard;
use crate::state::State;
use crate::topology::stored::{self, Part, Position, StageEntry};
use crate::topology::{NameId, Plan, Taken};

/// Bytes of entries that came in one step beyond which their senders are told at once that they are
/// durable.
const CONFIRMED_SIZE_MAX: usize = 64 << 10;

/// Shards whose entries came in this step: the filter that says so is recorded after them.
#[derive(Debug)]
pub(super) struct Arrived {
    from: ShardId,
    filter: Vec<Change>,
}

impl Arrived {
    pub(super) fn is_from(&self, shard: ShardId) -> bool {
        self.from == shard
    }
}

/// An entry that waits for room in the log.
#[derive(Debug)]
pub(super) struct Held {
    from: ShardId,
    sequence: u64,
    entry: Bytes,
}

/// An entry of another shard's outbox.
struct Arrival {
    sequence: u64,
    entry: StageEntry,
    /// As it came.
    bytes: Bytes,
    /// Whether it is in the shard's state.
    is_stored: bool,
}

/// Records for one stage that wait for their turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) records: u64,
    /// Bytes of the batches that they are in.
    pub(super) size: u64,
}

impl Waiting {
    /// In a part of an entry, with the stage that it is for.
    fn of(part: &Part) -> Option<(NameId, Self)> {
        let Part::Stage { stage, batch, .. } = part else { return None };
        // One that cannot be read is told of when its turn comes.
        let records = RecordBatch::stored(batch.clone()).map_or(0, |it| it.record_count());
        Some((*stage, Self { records: records.into(), size: batch.len() as u64 }))
    }
}

/// Entries of one shard, in order.
#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<Arrival>,
    /// Bytes of these.
    size: usize,
    /// Of these the records, for each stage; the batch that is being taken counts as a whole.
    records: BTreeMap<NameId, Waiting>,
    /// Everything before this was taken.
    position: Position,
    /// Whether it has gone on in this step.
    pub(super) is_moved: bool,
    /// The rest of the part that is being taken.
    open: Option<Peekable<RecordIter>>,
}

impl Queue {
    /// What waited before the start, and how far it was taken.
    pub(super) fn load(state: &State, plan: &Plan, sender: u16) -> Result<Self, String> {
        let position = match state.value(&stored::position_key(plan.id(), sender)) {
            Some(bytes) => Position::decode(bytes).ok_or("a position is not 16 bytes")?,
            None => Position::default(),
        };
        let mut queue = Self { position, ..Self::default() };
        let prefix = stored::arrival_key(plan.id(), sender, 0);
        for (key, value) in state.range(&prefix[..prefix.len() - 8]) {
            let (.., sequence) =
                stored::decode_arrival_key(key).ok_or("an arrival's key is short")?;
            queue.push(sequence, &Bytes::copy_from_slice(value), true)?;
        }
        Ok(queue)
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes of the entries that wait.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Records for a stage that wait for their turn.
    pub(super) fn waiting_for(&self, stage: NameId) -> Waiting {
        let mut waiting = self.records.get(&stage).copied().unwrap_or_default();
        let open = self.waiting.front().filter(|it| it.sequence == self.position.sequence);
        let open = open.and_then(|it| it.entry.parts.get(self.position.part as usize));
        if open.and_then(Waiting::of).is_some_and(|(of, _)| of == stage) {
            waiting.records = waiting.records.saturating_sub(self.position.record.into());
        }
        waiting
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    fn push(&mut self, sequence: u64, bytes: &Bytes, is_stored: bool) -> Result<(), String> {
        if sequence < self.position.sequence && !mutation::is_on(Mutation::TakeArrivalAgain) {
            return Ok(());
        }
        let entry = StageEntry::decode(bytes).ok_or("an entry of a topology cannot be read")?;
        self.size += bytes.len();
        let is_begun = sequence == self.position.sequence;
        let taken = if is_begun { self.position.part as usize } else { 0 };
        for (stage, waiting) in entry.parts.iter().skip(taken).filter_map(Waiting::of) {
            let known = self.records.entry(stage).or_default();
            known.records += waiting.records;
            known.size += waiting.size;
        }
        self.waiting.push_back(Arrival { sequence, entry, bytes: bytes.clone(), is_stored });
        Ok(())
    }

    /// Where the first entry that waits goes on, or the next one begins.
    fn front(&self) -> Position {
        match self.waiting.front() {
            Some(first) if self.position.sequence < first.sequence => {
                Position { sequence: first.sequence, part: 0, record: 0 }
            }
            Some(_) | None => self.position,
        }
    }

    /// Whether records for an operator come next.
    fn is_at_records(&self) -> bool {
        let Some(first) = self.waiting.front() else { return false };
        let is_begun = self.position.sequence == first.sequence;
        let part = if is_begun { self.position.part as usize } else { 0 };
        matches!(first.entry.parts.get(part), Some(Part::Stage { .. }))
    }

    /// The first part that was not taken is, as a whole.
    fn end_part(&mut self) {
        let first = self.waiting.front();
        let part = first.and_then(|it| it.entry.parts.get(self.position.part as usize));
        if let Some((stage, waiting)) = part.and_then(Waiting::of)
            && let Some(known) = self.records.get_mut(&stage)
        {
            known.records -= waiting.records;
            known.size -= waiting.size;
        }
        self.position.part += 1;
        self.position.record = 0;
        self.is_moved = true;
    }

    /// The first entry was taken. Its key, if it is in the state.
    fn end_entry(&mut self, plan: &Plan, sender: usize) -> Option<Vec<u8>> {
        let arrival = self.waiting.pop_front()?;
        self.size -= arrival.bytes.len();
        self.position = Position { sequence: arrival.sequence + 1, part: 0, record: 0 };
        let key = || stored::arrival_key(plan.id(), sender as u16, arrival.sequence);
        arrival.is_stored.then(key)
    }
}

impl Shard {
    /// Takes the next entry that came from another shard, or the rest of one. While the state may not
    /// grow, records for operators wait.
    pub(super) fn take_arrivals(
        &mut self,
        wired: &mut Wired,
        queues: &mut [Queue],
        (room, may_grow): (usize, bool),
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Turn {
        let version = self.catalog.routes().version;
        let may_take = |queue: &Queue| {
            let first = queue.waiting.front().filter(|it| it.entry.version <= version);
            first.is_some() && (may_grow || !queue.is_at_records())
        };
        let (first, count) = (wired.sender, queues.len());
        let mut order = (0..count).map(|turn| (first + turn) % count);
        let Some(sender) = order.find(|sender| may_take(&queues[*sender])) else {
            return Turn::Nothing;
        };
        wired.sender = (sender + 1) % count;
        let queue = &mut queues[sender];
        let (before, from) = (queue.position, queue.front());
        let turn = self.take_entry(wired, queue, sender, (room, may_grow), goes_on);
        if queue.position > from {
            wired.course.on_arrivals(sender as u16, from, queue.position);
        } else {
            // What is between it and the entry is others', and is gone over with what is taken.
            queue.position = before;
        }
        turn
    }

    fn take_entry(
        &mut self,
        wired: &mut Wired,
        queue: &mut Queue,
        sender: usize,
        (room, may_grow): (usize, bool),
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Turn {
        let task = &mut wired.task;
        while let Some(arrival) = queue.waiting.front() {
            // Another part than the front one's of a sequence that is past: from its beginning.
            queue.position = queue.front();
            let Some(part) = arrival.entry.parts.get(queue.position.part as usize) else { break };
            match part {
                Part::Mark { stage, mark } => {
                    // A stage that is gone waits for nobody.
                    if let Some(stage) = task.plan().stage(*stage) {
                        task.times_mut().on_told(stage, sender, *mark);
                    }
                }
                Part::Sink { id, batch } if self.partitions.contains_key(id) => {
                    let batch = match RecordBatch::stored(batch.clone()) {
                        Ok(batch) => batch,
                        Err(fault) => return unreadable(sender, &fault),
                    };
                    if !goes_on() || task.sink(*id, batch, room) == Taken::NoRoom {
                        return Turn::Full;
                    }
                }
                // A topic that is gone takes nothing.
                Part::Sink { .. } => {}
                Part::Stage { .. } if !may_grow => return Turn::Took,
                Part::Stage { stage, place, partition, batch } => {
                    let Some(stage) = task.plan().stage(*stage) else {
                        return Turn::Fault(format!(
                            "shard {sender} sent records for a stage that the program does not \
                             have any more; let the former program take them first"
                        ));
                    };
                    if task.place(stage) != *place {
                        let name = task.plan().stages().nth(stage).unwrap_or_default();
                        return Turn::Fault(format!(
                            "shard {sender} has the keys of {name:?} in {place:?}, and this one in \
                             {:?}; give the stage another name",
                            task.place(stage)
                        ));
                    }
                    let records = match &mut queue.open {
                        Some(records) => records,
                        None => match records_of(batch, queue.position.record) {
                            Ok(records) => queue.open.insert(records),
                            Err(fault) => return unreadable(sender, &*fault),
                        },
                    };
                    while let Some(record) = records.peek() {
                        let record = match record {
                            Ok(record) => record,
                            Err(fault) => return unreadable(sender, fault),
                        };
                        let place = (stage, *partition);
                        if task.has_many_calls() {
                            return Turn::Took;
                        }
                        task.expect_arrival(sender as u16, queue.position);
                        if !goes_on()
                            || task.on_arrival(&mut self.state, place, record, room)
                                == Taken::NoRoom
                        {
                            return Turn::Full;
                        }
                        records.next();
                        queue.position.record += 1;
                        queue.is_moved = true;
                    }
                    queue.open = None;
                }
            }
            queue.end_part();
        }
        queue.is_moved = true;
        if let Some(key) = queue.end_entry(task.plan(), sender) {
            task.keep(&mut self.state, key, None);
        }
        Turn::Took
    }

    /// What came from another shard for topologies: it waits for its turn, which may come in this
    /// step.
    pub(in crate::shard) fn take_topology_entry(
        &mut self,
        from: ShardId,
        sequence: u64,
        bytes: &Bytes,
    ) {
        let Some(entry) = StageEntry::decode(bytes) else {
            panic!("a topology's entry of shard {} cannot be read", from.0);
        };
        let is_meant = |hosted: &&mut Hosted| hosted.plan.id() == entry.topology;
        if let Some(hosted) = self.topologies.hosted.iter_mut().find(is_meant) {
            let queue = &mut hosted.queues[usize::from(from.0)];
            if let Err(why) = queue.push(sequence, bytes, false) {
                panic!("{why}: of shard {}", from.0);
            }
            self.topologies.arrived_size += bytes.len() + 2 * ENTRY_OVERHEAD_MAX;
            self.topologies.is_awaited |= self.topologies.tells_time;
        } else {
            // Of a topology that this program does not have: it may come back.
            let key = stored::arrival_key(entry.topology, from.0, sequence);
            self.record(Change { key, value: Some(bytes.to_vec()) });
        }
    }

    /// Entries came whose filter is to be recorded after them; their sender may wait for word of that.
    pub(in crate::shard) fn on_arrived(
        &mut self,
        from: ShardId,
        filter: Vec<Change>,
        is_awaited: bool,
    ) {
        self.topologies.is_awaited |= is_awaited;
        self.topologies.arrived.push(Arrived { from, filter });
    }

    /// What came from other shards and was not taken in this step is recorded, and that it came, for
    /// the sender forgets it then.
    pub(in crate::shard) fn store_arrivals(&mut self, effects: &mut Vec<Effect>) {
        if self.topologies.arrived.is_empty() {
            return;
        }
        let mut changes = Vec::new();
        for hosted in &mut self.topologies.hosted {
            let topology = hosted.plan.id();
            for (queue, sender) in hosted.queues.iter_mut().zip(0..) {
                // New ones are behind the others.
                let new = queue.waiting.iter_mut().rev().take_while(|arrival| !arrival.is_stored);
                for arrival in new {
                    let key = stored::arrival_key(topology, sender, arrival.sequence);
                    changes.push(Change { key, value: Some(arrival.bytes.to_vec()) });
                    arrival.is_stored = true;
                }
            }
        }
        let size = std::mem::take(&mut self.topologies.arrived_size);
        let at_once = std::mem::take(&mut self.topologies.is_awaited) || size > CONFIRMED_SIZE_MAX;
        changes.into_iter().for_each(|change| self.record(change));
        for Arrived { from, filter } in std::mem::take(&mut self.topologies.arrived) {
            self.confirm_entries(from, filter, at_once, effects);
        }
    }

    /// Whether entries of a shard are to wait: there is no room in the log for them, or others of that
    /// shard wait already. Those of topologies do; what changes the catalog is taken from the reserve,
    /// for it may make room, and then what is before it is. If that is more than the log has left, no
    /// frame could take it, and all of it waits.
    pub(in crate::shard) fn must_hold(&self, from: ShardId, entries: &[Bytes]) -> bool {
        let is_of_topology = |entry: &Bytes| entry.starts_with(&stored::ENTRY_MARK);
        let held = self.topologies.held.iter().filter(|held| held.from == from);
        let waiting: Vec<usize> = held.map(|held| held.entry.len()).collect();
        let size: usize = entries.iter().map(Bytes::len).sum();
        if entries.iter().all(is_of_topology) {
            return !waiting.is_empty() || !self.has_room(size);
        }
        // For each an entry of the state, and two that say that it came.
        let count = 3 * (entries.len() + waiting.len());
        let size = size + waiting.iter().sum::<usize>() + self.topologies.arrived_size();
        let has_before = !waiting.is_empty() || entries.iter().any(is_of_topology);
        has_before && !self.wal.fits_leaving(count, size, 0)
    }

    /// Entries wait for room.
    pub(in crate::shard) fn hold_entries(
        &mut self,
        from: ShardId,
        first: u64,
        entries: Vec<Bytes>,
    ) {
        let held = (first..).zip(entries);
        let held = held.map(|(sequence, entry)| Held { from, sequence, entry });
        self.topologies.held.extend(held);
    }

    /// Takes entries that waited for room: as many as there is room for, or all of one shard.
    pub(in crate::shard) fn take_held_of(&mut self, from: ShardId, effects: &mut Vec<Effect>) {
        let held = std::mem::take(&mut self.topologies.held);
        for held in held {
            match held.from == from {
                true => self.take_entries(held.from, held.sequence, vec![held.entry], effects),
                false => self.topologies.held.push_back(held),
            }
        }
    }

    /// Takes entries that waited for room, as many as there is room for.
    pub(super) fn take_held(&mut self, effects: &mut Vec<Effect>) {
        while let Some(held) = self.topologies.held.front() {
            if !self.deferred.is_empty() || !self.has_room(held.entry.len()) {
                return;
            }
            if let Some(held) = self.topologies.held.pop_front() {
                self.take_entries(held.from, held.sequence, vec![held.entry], effects);
            }
        }
    }
}

/// The records of a batch of our own, without those that were taken.
fn records_of(
    batch: &Bytes,
    taken: u32,
) -> Result<Peekable<RecordIter>, Box<dyn std::error::Error>> {
    let mut records = RecordBatch::stored(batch.clone())?.records(RECORDS_SIZE_MAX)?.peekable();
    for _ in 0..taken {
        records.next().transpose()?;
    }
    Ok(records)
}

fn unreadable(sender: usize, fault: &dyn std::fmt::Display) -> Turn {
    Turn::Fault(format!("what shard {sender} sent cannot be read: {fault}"))
}
