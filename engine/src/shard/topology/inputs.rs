//! The partitions that topologies read: found in the filling frame, in the tail or on the disk, and
//! taken batch by batch in turn.

use std::collections::{BTreeSet, VecDeque};
use std::iter::Peekable;

use bytes::Bytes;
use tidemill_wal::format::{PartitionId, Sequence};

use super::{Pause, RECORDS_SIZE_MAX, Turn, Wired};
use crate::batch::{self, RecordBatch, RecordIter};
use crate::effect::{Effect, Now, ReadFault, ReadFrom};
use crate::shard::{Appending, Shard, read};
use crate::topology::Taken;

/// Bytes that are read from extents at once.
const COLD_READ_SIZE: u64 = 1 << 20;

/// Inputs of a topology that read from extents at once.
const COLD_READS_MAX: usize = 4;

/// Times in a row that a file may be gone, for it was merged or deleted meanwhile.
const GONE_MAX: u32 = 10;

const MISSING: &str = "an extent has no records where it should";

/// A partition that a topology reads.
pub(super) struct Input {
    pub(super) source: usize,
    pub(super) id: PartitionId,
    pub(super) next_offset: u64,
    /// The batch that is being taken: the offset of its last record, the rest of its records.
    open: Option<(u64, Peekable<RecordIter>)>,
    /// Batches that were read from extents.
    cold: VecDeque<RecordBatch>,
    is_reading: bool,
    /// Its batches in a frame that fills, or was filling: the frame, the batch's number in it.
    filling: VecDeque<(Sequence, usize)>,
    /// It is among those that may have records, or that have to be read.
    is_ready: bool,
    /// It is one of those that are read from the disk.
    has_turn_to_read: bool,
    /// Times in a row that a file was gone when it was to be read.
    gone_count: u32,
    /// Whether it has gone on in this step.
    pub(super) is_moved: bool,
}

impl Input {
    pub(super) fn new(source: usize, id: PartitionId, next_offset: u64) -> Self {
        Self {
            source,
            id,
            next_offset,
            open: None,
            cold: VecDeque::new(),
            is_reading: false,
            filling: VecDeque::new(),
            is_ready: false,
            has_turn_to_read: false,
            gone_count: 0,
            is_moved: false,
        }
    }

    fn place(&self) -> (usize, u32) {
        (self.source, self.id.index)
    }
}

impl Wired {
    /// This input may have records.
    pub(super) fn set_ready(&mut self, number: usize) {
        if !std::mem::replace(&mut self.inputs[number].is_ready, true) {
            self.ready.push_back(number);
        }
    }

    /// Records of an input from this offset on are not there any more, up to this one.
    fn skip_to(&mut self, number: usize, next_offset: u64) {
        self.move_to(number, next_offset);
        self.course.on_input(number, next_offset, next_offset);
    }

    /// An input goes on to this offset, if it is not beyond it.
    fn move_to(&mut self, number: usize, next_offset: u64) {
        let input = &mut self.inputs[number];
        input.next_offset = input.next_offset.max(next_offset);
        if !std::mem::replace(&mut input.is_moved, true) {
            self.moved.push(number);
        }
    }

    /// An input needs the disk no more for now: another one that waits for it may have it.
    fn end_turn_to_read(&mut self, number: usize) {
        if std::mem::take(&mut self.inputs[number].has_turn_to_read) {
            self.reading -= 1;
            if let Some(next) = self.to_read.pop_front() {
                self.ready.push_back(next);
            }
        }
    }
}

/// Where an input's next batch is.
enum Found {
    /// It is open.
    Open,
    /// It cannot be read: its first and last offset, and why.
    Bad(u64, u64, String),
    /// There is none, or it is on its way from the disk: somebody says when to look again.
    Nothing,
    /// It is on the disk, and other inputs are read now.
    ToRead,
    /// It is nowhere: it was deleted, or is between two places.
    Wait,
}

impl Shard {
    /// Inputs of which new batches were written may have records.
    pub(super) fn spread_news(&mut self) {
        let filling = self.wal.filling();
        for (partition, frame, batch) in std::mem::take(&mut self.topologies.appended) {
            let readers = self.topologies.readers.get(&partition);
            for (index, number) in readers.into_iter().flatten() {
                let Some(wired) = &mut self.topologies.hosted[*index].wired else { continue };
                wired.set_ready(*number);
                let known = &mut wired.inputs[*number].filling;
                while known.pop_front_if(|(frame, _)| *frame != filling).is_some() {}
                if frame == filling {
                    known.push_back((frame, batch));
                }
            }
        }
    }

    /// Partitions of which nothing came for long are idle: but one with records that were not taken
    /// is not.
    pub(super) fn fall_silent(&self, now: Now, wired: &mut Wired) {
        let is_due = |at_ms: u64| at_ms <= now.monotonic_ms;
        if !wired.task.times().silent_at_ms().is_some_and(is_due) {
            return;
        }
        let waits = |input: &&Input| {
            let end = self.partitions.get(&input.id).map_or(0, |partition| partition.log.end());
            input.next_offset < end
        };
        let waiting: BTreeSet<_> = wired.inputs.iter().filter(waits).map(Input::place).collect();
        wired.task.times_mut().fall_silent(now.monotonic_ms, &waiting);
    }

    /// The next input that has records takes those of one batch.
    pub(super) fn take_input(
        &mut self,
        index: usize,
        wired: &mut Wired,
        room: usize,
        goes_on: &mut dyn FnMut() -> bool,
        effects: &mut Vec<Effect>,
    ) -> Turn {
        for _ in 0..wired.ready.len() {
            let Some(number) = wired.ready.pop_front() else { break };
            match self.find_batch(index, wired, number, effects) {
                Found::Wait => wired.ready.push_back(number),
                Found::Nothing => wired.inputs[number].is_ready = false,
                Found::ToRead => wired.to_read.push_back(number),
                Found::Open => {
                    let turn = self.take_batch(wired, number, room, goes_on);
                    // One batch is open at a time, for it may be large.
                    match wired.inputs[number].open {
                        Some(_) => wired.ready.push_front(number),
                        None => wired.ready.push_back(number),
                    }
                    return turn;
                }
                Found::Bad(first, last, why) => {
                    wired.ready.push_front(number);
                    let place = wired.inputs[number].place();
                    let taken = wired.task.on_bad_batch(place, (first, last), &why, room);
                    if taken == Taken::NoRoom {
                        // What was read from an extent is read again.
                        wired.inputs[number].cold.clear();
                        return Turn::Full;
                    }
                    wired.move_to(number, last + 1);
                    wired.course.on_input(number, first, last + 1);
                    return Turn::Took;
                }
            }
        }
        Turn::Nothing
    }

    /// Takes the records of the open batch.
    fn take_batch(
        &mut self,
        wired: &mut Wired,
        number: usize,
        room: usize,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Turn {
        let before = wired.inputs[number].next_offset;
        let mut first = None;
        let turn = self.take_records(wired, number, &mut first, room, goes_on);
        let input = &wired.inputs[number];
        if input.is_moved {
            let (from, to) = (first.unwrap_or(before), input.next_offset);
            wired.course.on_input(number, from, to);
        }
        turn
    }

    /// The same; says the offset of the first one that was taken.
    fn take_records(
        &mut self,
        wired: &mut Wired,
        number: usize,
        first: &mut Option<u64>,
        room: usize,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Turn {
        let input = &mut wired.inputs[number];
        let place = input.place();
        let Some((last_offset, records)) = &mut input.open else { return Turn::Took };
        let last_offset = *last_offset;
        while let Some(record) = records.peek() {
            if wired.task.has_many_calls() {
                return Turn::Took;
            }
            if !goes_on() {
                return Turn::Full;
            }
            let taken = match record {
                // It was taken before, or is one of several that claim one offset.
                Ok(record) if record.offset < input.next_offset => {
                    records.next();
                    continue;
                }
                Ok(record) => wired.task.on_record(&mut self.state, place, record, room),
                Err(fault) => {
                    let offsets = (input.next_offset, last_offset);
                    wired.task.on_bad_batch(place, offsets, &fault.to_string(), room)
                }
            };
            if taken == Taken::NoRoom {
                return Turn::Full;
            }
            let (offset, next_offset) = match record {
                Ok(record) => (record.offset, record.offset + 1),
                // What is behind it in the batch cannot be read either.
                Err(_) => (input.next_offset, last_offset + 1),
            };
            first.get_or_insert(offset);
            records.next();
            input.next_offset = input.next_offset.max(next_offset);
            if !std::mem::replace(&mut input.is_moved, true) {
                wired.moved.push(number);
            }
        }
        // The batch's end, whatever its records say of their offsets.
        input.open = None;
        wired.move_to(number, last_offset + 1);
        Turn::Took
    }

    /// Opens the batch with an input's next record.
    fn find_batch(
        &mut self,
        index: usize,
        wired: &mut Wired,
        number: usize,
        effects: &mut Vec<Effect>,
    ) -> Found {
        let input = &mut wired.inputs[number];
        if input.open.is_some() {
            return Found::Open;
        }
        let Some(partition) = self.partitions.get(&input.id) else { return Found::Nothing };
        let log = &partition.log;
        if log.start() > input.next_offset {
            wired.task.counts_mut().missed += log.start() - input.next_offset;
            wired.skip_to(number, log.start());
        }
        let input = &mut wired.inputs[number];
        while let Some(batch) = input.cold.pop_front() {
            if batch.last_offset() >= input.next_offset {
                return input.open_batch(batch);
            }
        }
        if input.is_reading {
            return Found::Nothing;
        }
        if input.next_offset >= log.end() {
            wired.end_turn_to_read(number);
            return Found::Nothing;
        }
        let in_tail = log.batch_at(input.next_offset);
        let is_behind = in_tail.is_none_or(|batch| batch.base_offset > input.next_offset);
        if is_behind && let Some(run) = self.store.find(input.id, input.next_offset) {
            if !input.has_turn_to_read && wired.reading == COLD_READS_MAX {
                return Found::ToRead;
            }
            wired.reading += usize::from(!input.has_turn_to_read);
            (input.is_reading, input.has_turn_to_read) = (true, true);
            let from = ReadFrom::Offset(input.next_offset);
            let request = read::extent_read(&run, input.id, from, COLD_READ_SIZE);
            let wiring = wired.number;
            self.read(read::Purpose::Topology { index, wiring, number }, request, effects);
            return Found::Nothing;
        }
        if let Some(batch) = in_tail.filter(|_| is_behind) {
            // An extent that was damaged and taken away leaves a gap; consumers go over it as well.
            wired.task.counts_mut().missed += batch.base_offset - input.next_offset;
        }
        let bytes = in_tail.map(|batch| batch.bytes.clone());
        wired.end_turn_to_read(number);
        let input = &mut wired.inputs[number];
        let Some(bytes) = bytes.or_else(|| self.filling_batch(input)) else { return Found::Wait };
        match RecordBatch::stored(bytes) {
            Ok(batch) => input.open_batch(batch),
            Err(fault) => Found::Bad(input.next_offset, input.next_offset, fault.to_string()),
        }
    }

    /// The batch with an input's next record in the frame that fills.
    fn filling_batch(&mut self, input: &mut Input) -> Option<Bytes> {
        let filling = self.wal.filling();
        let has_next = |it: &&Appending| {
            it.partition == input.id
                && (it.base_offset..=it.last_offset).contains(&input.next_offset)
        };
        let mut found = None;
        while let Some((frame, number)) = input.filling.pop_front() {
            found = self.appending.get(number).filter(|_| frame == filling).filter(has_next);
            if found.is_some() {
                break;
            }
        }
        // Some came before this input was there.
        let found = found.or_else(|| self.appending.iter().find(has_next))?;
        let range = found.range.clone();
        Some(Bytes::copy_from_slice(self.wal.filling_bytes_mut(range)))
    }

    /// Batches that an input asked for are there, or cannot be read: then the topology rests.
    pub(in crate::shard) fn on_topology_read(
        &mut self,
        now: Now,
        (index, wiring, number): (usize, u64, usize),
        result: Result<Vec<Bytes>, ReadFault>,
    ) {
        let Some(hosted) = self.topologies.hosted.get_mut(index) else { return };
        let Some(wired) = hosted.wired.as_mut().filter(|wired| wired.number == wiring) else {
            return;
        };
        wired.inputs[number].is_reading = false;
        wired.set_ready(number);
        let why = match result {
            // A piece is several batches, one behind the other.
            Ok(pieces) => {
                let batches: Result<Vec<RecordBatch>, _> =
                    pieces.into_iter().flat_map(batch::batches).collect();
                match batches {
                    Ok(batches) => {
                        let input = &mut wired.inputs[number];
                        input.gone_count = 0;
                        input.cold.extend(batches);
                        let is_new = |batch: &RecordBatch| batch.last_offset() >= input.next_offset;
                        if input.cold.iter().any(is_new) {
                            return;
                        }
                        MISSING.to_owned()
                    }
                    Err(fault) => fault.to_string(),
                }
            }
            // It was moved or dropped; the next look finds where it is now.
            Err(ReadFault::Gone) if wired.inputs[number].gone_count < GONE_MAX => {
                wired.inputs[number].gone_count += 1;
                return;
            }
            Err(ReadFault::Gone) => "the file is gone".to_owned(),
            Err(ReadFault::Nothing) => MISSING.to_owned(),
            Err(ReadFault::Corrupt(why) | ReadFault::Failed(why)) => why,
        };
        let (topic, id) =
            (&wired.sources[wired.inputs[number].source].name, wired.inputs[number].id);
        let why = format!("records of {topic}-{} cannot be read: {why}", id.index);
        hosted.pause = Some(Pause::retried(why, now));
    }
}

impl Input {
    fn open_batch(&mut self, batch: RecordBatch) -> Found {
        match batch.records(RECORDS_SIZE_MAX) {
            Ok(records) => {
                self.open = Some((batch.last_offset(), records.peekable()));
                Found::Open
            }
            Err(fault) => {
                let first = batch.base_offset().max(self.next_offset);
                Found::Bad(first, batch.last_offset(), fault.to_string())
            }
        }
    }
}
