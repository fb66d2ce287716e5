//! The shard's keyed state: every durable fact that is not a record, as key and value bytes.
//!
//! One ordered map for all kinds, so that frames, delta files, snapshots, recovery and the dump
//! tool know one thing only. Parts of the shard keep what they need in their own types and are
//! rebuilt from here at start. Changes are absolute values or tombstones, so applying one twice,
//! or a newer one before an older one that is then followed by the newer again, ends the same.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use smallvec::SmallVec;
use tidemill_wal::delta::StateChange;

use crate::effect::Change;

/// First byte of every key. Persisted: never reuse a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// `topic id` -> name, partitions, first shard, configuration.
    Topic = 1,
    /// (no more key) -> version of the catalog.
    CatalogVersion = 2,
    /// `topic id, partition` -> start and end.
    Partition = 3,
    /// `topic id, partition, producer id` -> epoch, last batches.
    Producer = 4,
    /// `group` -> members and assignment.
    Group = 5,
    /// `group size, group, topic id, partition` -> committed offset.
    GroupOffset = 6,
    /// (no more key) -> first producer id not yet granted.
    ProducerIdBlock = 7,
    /// `receiver, outbox sequence` -> entry on its way to another shard.
    Outbox = 8,
    /// `receiver` -> next outbox sequence.
    OutboxNext = 9,
    /// `sender` -> highest outbox sequence taken in.
    OutboxTaken = 10,
    /// `topic id, partition` -> highest id of the producers that were forgotten.
    ForgottenProducers = 11,
    /// `state, partition, key size, key, entry` -> version of the codec, value.
    OperatorState = 12,
    /// `topology, domain, operator, time, partition, key` -> nothing.
    Timer = 13,
    /// `topology` -> clock and event times of its newest step.
    TopologyStep = 14,
    /// `topology, topic id, partition` -> next offset, newest event time.
    TopologyProgress = 15,
    /// `topology, sender, outbox sequence` -> what came from another shard and was not taken yet.
    TopologyArrival = 16,
    /// `topology` -> its name, and every state that may have entries.
    TopologyStates = 17,
    /// `topology, sender` -> how far the entries of a shard were taken.
    TopologyTaken = 18,
    /// `topology` -> where the keys of its stages are.
    TopologyPlaces = 19,
    /// `topology` -> the result of a blocking call: set and removed again in the frame that takes it.
    TopologyCalled = 20,
    /// `topology` -> what its newest step did, in order.
    TopologyCourse = 21,
    /// `topology, stage, partition` -> event times that the operators of a former shard had seen.
    TopologySeen = 22,
    /// `sender` -> highest outbox sequence of what came before its frame was durable there.
    OutboxEarly = 23,
}

impl Kind {
    /// The kind of a key, if this build knows it.
    pub fn of(key: &[u8]) -> Option<Self> {
        Some(match *key.first()? {
            1 => Self::Topic,
            2 => Self::CatalogVersion,
            3 => Self::Partition,
            4 => Self::Producer,
            5 => Self::Group,
            6 => Self::GroupOffset,
            7 => Self::ProducerIdBlock,
            8 => Self::Outbox,
            9 => Self::OutboxNext,
            10 => Self::OutboxTaken,
            11 => Self::ForgottenProducers,
            12 => Self::OperatorState,
            13 => Self::Timer,
            14 => Self::TopologyStep,
            15 => Self::TopologyProgress,
            16 => Self::TopologyArrival,
            17 => Self::TopologyStates,
            18 => Self::TopologyTaken,
            19 => Self::TopologyPlaces,
            20 => Self::TopologyCalled,
            21 => Self::TopologyCourse,
            22 => Self::TopologySeen,
            23 => Self::OutboxEarly,
            _ => return None,
        })
    }

    /// A key of this kind.
    pub fn key(self, rest: &[&[u8]]) -> Vec<u8> {
        let mut key = vec![self as u8];
        for part in rest {
            key.extend_from_slice(part);
        }
        key
    }
}

/// How much of it there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateSize {
    /// Entries.
    pub count: usize,
    /// Bytes of their keys and values.
    pub size: usize,
}

/// Bytes of a key. A short one lies in the map itself: a look-up in a large map waits for memory, and
/// would wait once more for each key that it compares.
type Key = SmallVec<[u8; 40]>;

/// Bytes of a value, with the keys' reason.
type Value = SmallVec<[u8; VALUE_SIZE_SHORT]>;
const VALUE_SIZE_SHORT: usize = 16;

/// A value, and the number that its key has or had among those that changed.
#[derive(Debug)]
struct Slot {
    value: Value,
    number: u64,
}

/// The number of a key that was never among them.
const NO_NUMBER: u64 = u64::MAX;

/// What a key that changed has now.
#[derive(Debug)]
enum Changed {
    /// Nothing any more.
    Gone,
    /// A value that lies here too: to look it up would wait for memory.
    Short(Value),
    /// A value that is to be looked up: twice it would take too much room.
    Long,
}

impl Changed {
    fn of(value: &[u8]) -> Self {
        if value.len() > VALUE_SIZE_SHORT {
            Self::Long
        } else {
            Self::Short(Value::from_slice(value))
        }
    }
}

/// Keys in a piece of a queue.
const PIECE_COUNT: usize = 1024;

/// The keys that changed, in the order of their first changes. A key is there once, and once more each
/// time that it went and came again: to find where a key was that has no entry any more would take a
/// map of those. The queue grows by pieces: there may be a million keys in it, and nothing is copied
/// when one more comes.
#[derive(Debug, Default)]
struct Changes {
    /// Of as many places each; the numbers of the first piece begin at a multiple of that.
    pieces: VecDeque<Vec<(Key, Changed)>>,
    /// Number of the first key that is still there.
    first: u64,
    /// Number of the next one.
    next: u64,
}

impl Changes {
    fn count(&self) -> usize {
        (self.next - self.first) as usize
    }

    /// Where the first key is in the first piece.
    fn first_place(&self) -> usize {
        self.first as usize % PIECE_COUNT
    }

    /// What the key of a number has, if it is still there.
    fn noted(&mut self, number: u64) -> Option<&mut Changed> {
        if !(self.first..self.next).contains(&number) {
            return None;
        }
        let place = (number - self.first) as usize + self.first_place();
        let piece = self.pieces.get_mut(place / PIECE_COUNT)?;
        piece.get_mut(place % PIECE_COUNT).map(|(_, changed)| changed)
    }

    /// Notes another key, and gives its number.
    fn push(&mut self, key: &[u8], changed: Changed) -> u64 {
        if self.pieces.back().is_none_or(|piece| piece.len() == PIECE_COUNT) {
            self.pieces.push_back(Vec::with_capacity(PIECE_COUNT));
        }
        let piece = self.pieces.back_mut().expect("one was added");
        piece.push((Key::from_slice(key), changed));
        self.next += 1;
        self.next - 1
    }

    /// Takes the first.
    fn pop(&mut self) -> Option<(Key, Changed)> {
        let place = self.first_place();
        let taken = self.pieces.front_mut()?.get_mut(place)?;
        let taken = std::mem::replace(taken, (Key::new(), Changed::Gone));
        self.first += 1;
        if place + 1 == PIECE_COUNT {
            self.pieces.pop_front();
        }
        Some(taken)
    }
}

/// Keyed state with the keys that changed since a delta file took them.
#[derive(Debug, Default)]
pub struct State {
    entries: BTreeMap<Key, Slot>,
    changes: Changes,
    size: usize,
    /// Of each state of an operator that has entries, by its identity.
    operator_states: BTreeMap<u64, StateSize>,
    /// How often a timer was set or removed.
    timers_version: u64,
}

impl State {
    /// Applies a change.
    pub fn apply(&mut self, change: Change) {
        self.put(&change.key, change.value.as_deref(), true);
    }

    /// Applies a change that a delta file or snapshot already holds.
    pub fn load(&mut self, key: &[u8], value: Option<&[u8]>) {
        self.put(key, value, false);
    }

    fn put(&mut self, key: &[u8], value: Option<&[u8]>, is_change: bool) {
        self.timers_version += u64::from(key.first() == Some(&(Kind::Timer as u8)));
        let Some(value) = value else { return self.remove(key, is_change) };
        let changes = &mut self.changes;
        let old_size = match self.entries.entry(Key::from_slice(key)) {
            Entry::Occupied(mut entry) => {
                let slot = entry.get_mut();
                let old_size = slot.value.len();
                slot.value.clear();
                slot.value.extend_from_slice(value);
                match changes.noted(slot.number) {
                    Some(changed) => *changed = Changed::of(value),
                    None if is_change => slot.number = changes.push(key, Changed::of(value)),
                    None => {}
                }
                Some(old_size)
            }
            Entry::Vacant(entry) => {
                let number =
                    if is_change { changes.push(key, Changed::of(value)) } else { NO_NUMBER };
                entry.insert(Slot { value: Value::from_slice(value), number });
                None
            }
        };
        self.resize(key, old_size, Some(value.len()));
    }

    fn remove(&mut self, key: &[u8], is_change: bool) {
        let old = self.entries.remove(key);
        if let Some(old) = &old {
            self.resize(key, Some(old.value.len()), None);
        }
        match old.and_then(|old| self.changes.noted(old.number)) {
            Some(changed) => *changed = Changed::Gone,
            None if is_change => drop(self.changes.push(key, Changed::Gone)),
            None => {}
        }
    }

    /// An entry has another size than before: of its value, if it has one.
    fn resize(&mut self, key: &[u8], old: Option<usize>, new: Option<usize>) {
        if old == new {
            return;
        }
        let of_entry = |value: Option<usize>| value.map_or(0, |size| key.len() + size);
        self.size = self.size + of_entry(new) - of_entry(old);
        if let Some(id) = operator_state(key) {
            let of_state = self.operator_states.entry(id).or_default();
            of_state.size = of_state.size + of_entry(new) - of_entry(old);
            of_state.count =
                of_state.count + usize::from(new.is_some()) - usize::from(old.is_some());
            if of_state.count == 0 {
                self.operator_states.remove(&id);
            }
        }
    }

    /// The value of a key.
    pub fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.entries.get(key).map(|slot| &slot.value[..])
    }

    /// All entries whose key starts with `prefix`, in key order.
    pub fn range<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.range_between(Bound::Included(prefix), Bound::Unbounded)
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// The entries between two keys, in key order, from either end. The first border is not behind
    /// the second.
    pub fn range_between<'a>(
        &'a self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
    ) -> impl DoubleEndedIterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let entries = self.entries.range::<[u8], _>((from, to));
        entries.map(|(key, slot)| (&key[..], &slot.value[..]))
    }

    /// How many changes wait to be taken: a key that went and came is several.
    pub fn changed_count(&self) -> usize {
        self.changes.count()
    }

    /// Takes the keys that changed first, at most so many and about so many bytes, each with its value
    /// now, or without one where it was gone; a key that came again follows later.
    pub fn take_changes(&mut self, count_max: usize, size_max: usize) -> Vec<StateChange> {
        let mut size = 0;
        let mut taken: Vec<StateChange> = Vec::new();
        while taken.len() < count_max && size < size_max {
            let Some((key, changed)) = self.changes.pop() else { break };
            let value = match changed {
                Changed::Gone => None,
                Changed::Short(value) => Some(value.to_vec()),
                Changed::Long => Some(self.value(&key).expect("it is not gone").to_vec()),
            };
            size += key.len() + value.as_ref().map_or(0, Vec::len);
            taken.push((key.into_vec(), value));
        }
        taken
    }

    /// The next entries after `cursor` in key order, about `size_max` bytes of memory of them: one
    /// slice of a snapshot. Empty at the end.
    pub fn slice<'a>(
        &'a self,
        cursor: Option<&[u8]>,
        size_max: usize,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let mut size = 0;
        self.range_between(from, Bound::Unbounded).take_while(move |(key, value)| {
            let is_inside = size < size_max;
            size += size_of::<(Key, Slot)>() + key.len() + value.len();
            is_inside
        })
    }

    /// How many entries there are.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of all keys and values.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Another one than before if a timer was set or removed since.
    pub fn timers_version(&self) -> u64 {
        self.timers_version
    }

    /// How much of it is one state of an operator, by its identity.
    pub fn of_operator_state(&self, id: u64) -> StateSize {
        self.operator_states.get(&id).copied().unwrap_or_default()
    }
}

/// The state of an operator that a key is of, if it is of one.
fn operator_state(key: &[u8]) -> Option<u64> {
    let (kind, rest) = key.split_first()?;
    let (id, _) = rest.split_first_chunk::<8>()?;
    (*kind == Kind::OperatorState as u8).then(|| u64::from_be_bytes(*id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &[u8], value: &[u8]) -> Change {
        Change { key: key.to_vec(), value: Some(value.to_vec()) }
    }

    fn change(key: &[u8], value: Option<&[u8]>) -> StateChange {
        (key.to_vec(), value.map(<[u8]>::to_vec))
    }

    fn taken(state: &mut State, count_max: usize) -> Vec<StateChange> {
        state.take_changes(count_max, usize::MAX)
    }

    #[test]
    fn changes_are_taken_once_with_their_last_value() {
        let mut state = State::default();
        state.apply(put(b"a", b"1"));
        state.apply(put(b"a", b"2"));
        state.apply(Change { key: b"b".to_vec(), value: None });
        assert_eq!(taken(&mut state, 9), [change(b"a", Some(b"2")), change(b"b", None)]);
        assert_eq!(taken(&mut state, 9), []);
        assert_eq!(state.size(), 2);
    }

    #[test]
    fn what_changes_again_after_it_was_taken_is_taken_again() {
        let mut state = State::default();
        for key in [b"a", b"b"] {
            state.apply(put(key, b"1"));
        }
        assert_eq!(taken(&mut state, 1), [change(b"a", Some(b"1"))]);
        state.apply(put(b"a", b"2"));
        state.apply(put(b"b", b"2"));
        assert_eq!(state.changed_count(), 2);
        assert_eq!(taken(&mut state, 9), [change(b"b", Some(b"2")), change(b"a", Some(b"2"))]);
        state.apply(Change { key: b"a".to_vec(), value: None });
        state.apply(put(b"a", b"3"));
        state.apply(put(b"a", b"4"));
        // It went and came.
        assert_eq!(state.changed_count(), 2);
        assert_eq!(taken(&mut state, 9), [change(b"a", None), change(b"a", Some(b"4"))]);
    }

    #[test]
    fn what_any_course_of_changes_gives_in_order_ends_as_the_entries_do() {
        // Two keys, each set to a short or a long value or removed, and the first change taken.
        const COURSE: u32 = 5;
        for case in 0..7_usize.pow(COURSE) {
            let mut state = State::default();
            // What is to be taken, and what those who took it have.
            let mut waiting: Vec<StateChange> = Vec::new();
            let (mut entries, mut stored) = (BTreeMap::new(), BTreeMap::new());
            let steps = (0..COURSE).map(|step| (step, case / 7_usize.pow(step) % 7));
            for (step, way) in steps.chain([(COURSE, 6); COURSE as usize]) {
                if way == 6 {
                    let expected: Vec<_> = waiting.drain(..waiting.len().min(1)).collect();
                    assert_eq!(taken(&mut state, 1), expected, "case {case}");
                    expected.into_iter().for_each(|change| set(&mut stored, change));
                    continue;
                }
                let key = vec![(way % 2) as u8];
                let value =
                    [Some(vec![step as u8; 17]), Some(vec![step as u8; 16]), None][way / 2].clone();
                set(&mut entries, (key.clone(), value.clone()));
                match waiting.iter_mut().find(|(one, value)| *one == key && value.is_some()) {
                    Some((_, waits)) => waits.clone_from(&value),
                    None => waiting.push((key.clone(), value.clone())),
                }
                state.apply(Change { key, value });
            }
            assert_eq!(state.changed_count(), 0, "case {case}");
            assert_eq!(stored, entries, "case {case}");
        }
    }

    fn set(entries: &mut BTreeMap<Vec<u8>, Vec<u8>>, (key, value): StateChange) {
        match value {
            Some(value) => drop(entries.insert(key, value)),
            None => drop(entries.remove(&key)),
        }
    }

    #[test]
    fn many_changes_are_taken_in_their_order_while_more_come() {
        let mut state = State::default();
        let key = |number: u32| number.to_be_bytes();
        let (mut first, mut next) = (0, 0);
        for count in [1, 1023, 1024, 1025, 1, 3000, 7, 0] {
            for _ in 0..count {
                state.apply(put(&key(next), b"1"));
                next += 1;
            }
            // The first changes again, and keeps its place.
            state.apply(put(&key(first), b"2"));
            next = next.max(first + 1);
            let count = if count == 0 { u32::MAX } else { count / 2 + 1 };
            for (taken, _) in taken(&mut state, count as usize) {
                assert_eq!(taken, key(first));
                first += 1;
            }
            assert_eq!(state.changed_count(), (next - first) as usize);
        }
        assert!(state.changes.pieces.len() <= 1, "what is taken takes no room");
    }

    #[test]
    fn changes_are_taken_in_pieces_of_about_a_size() {
        let mut state = State::default();
        for key in 0..4 {
            state.apply(put(&[key], &[7; 99]));
        }
        let counts = [0; 2].map(|_| state.take_changes(9, 150).len());
        assert_eq!((counts, state.changed_count()), ([2, 2], 0));
    }

    #[test]
    fn entries_of_any_size_come_back_in_order_and_are_counted() {
        let mut state = State::default();
        let mut expected = BTreeMap::new();
        for number in 0..200_usize {
            let (key, value) = (vec![number as u8; 1 + number % 90], vec![7; number * 7 % 60]);
            state.apply(put(&key, &value));
            expected.insert(key, value);
        }
        for number in (0..200_usize).step_by(3) {
            let key = vec![number as u8; 1 + number % 90];
            state.apply(Change { key: key.clone(), value: None });
            expected.remove(&key);
        }
        let entries = expected.iter().map(|(key, value)| (&key[..], &value[..]));
        assert!(state.range(&[]).eq(entries.clone()));
        let sizes = entries.map(|(key, value)| key.len() + value.len());
        assert_eq!(state.size(), sizes.sum::<usize>());
        assert_eq!(state.count(), expected.len());
    }

    #[test]
    fn the_size_of_each_state_of_an_operator_is_that_of_its_entries() {
        let key = |id: u64, entry: u8| Kind::OperatorState.key(&[&id.to_be_bytes(), &[entry]]);
        let mut state = State::default();
        let sizes = |state: &State| {
            [1, 2].map(|id| {
                let of_state = state.of_operator_state(id);
                let prefix = Kind::OperatorState.key(&[&id.to_be_bytes()]);
                let found: Vec<_> = state.range(&prefix).collect();
                let size = found.iter().map(|(key, value)| key.len() + value.len()).sum();
                assert_eq!(of_state, StateSize { count: found.len(), size });
                (of_state.count, of_state.size)
            })
        };
        state.apply(put(&key(1, 1), b"12"));
        state.load(&key(1, 2), Some(b""));
        state.apply(put(&key(2, 1), b"1"));
        state.apply(put(&[Kind::Timer as u8, 0, 0, 0, 0, 0, 0, 0, 1, 1], b"no state"));
        assert_eq!(sizes(&state), [(2, 22), (1, 11)]);
        state.apply(put(&key(1, 1), b"1234"));
        state.apply(Change { key: key(2, 1), value: None });
        state.apply(Change { key: key(2, 1), value: None });
        assert_eq!(sizes(&state), [(2, 24), (0, 0)]);
        assert_eq!(state.operator_states.len(), 1, "what is gone takes no room");
    }

    #[test]
    fn slices_cover_everything_once() {
        let mut state = State::default();
        for number in 0..100_u8 {
            state.apply(put(&[number], &[number; 10]));
        }
        let mut cursor: Option<Vec<u8>> = None;
        let mut seen = Vec::new();
        loop {
            let slice: Vec<_> = state.slice(cursor.as_deref(), 500).collect();
            let Some((last, _)) = slice.last() else { break };
            assert!(slice.len() < 10, "an entry is more than its bytes");
            cursor = Some(last.to_vec());
            seen.extend(slice.into_iter().map(|(key, _)| key[0]));
        }
        assert_eq!(seen, (0..100).collect::<Vec<u8>>());
    }
}
