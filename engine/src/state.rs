//! The shard's keyed state: every durable fact that is not a record, as key and value bytes.
//!
//! One ordered map for all kinds, so that frames, delta files, snapshots, recovery and the dump
//! tool know one thing only. Parts of the shard keep what they need in their own types and are
//! rebuilt from here at start. Changes are absolute values or tombstones, so applying one twice,
//! or a newer one before an older one that is then followed by the newer again, ends the same.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use tidemill_wal::mutation::{self, Mutation};

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

/// Keyed state with the set of keys that changed since the last delta file.
#[derive(Debug, Default)]
pub struct State {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    changed: BTreeSet<Vec<u8>>,
    size: usize,
}

impl State {
    /// Applies a change.
    pub fn apply(&mut self, change: Change) {
        self.changed.insert(change.key.clone());
        self.load(change);
    }

    /// Applies a change that a delta file or snapshot already holds.
    pub fn load(&mut self, change: Change) {
        let key_size = change.key.len();
        let old = match change.value {
            Some(value) => {
                self.size += key_size + value.len();
                self.entries.insert(change.key, value)
            }
            None => self.entries.remove(&change.key),
        };
        if let Some(old) = old {
            self.size -= key_size + old.len();
        }
    }

    /// The value of a key.
    pub fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.entries.get(key).map(Vec::as_slice)
    }

    /// All entries whose key starts with `prefix`, in key order.
    pub fn range<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.entries
            .range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// The entries between two keys, in key order, from either end. The first border is not behind
    /// the second.
    pub fn range_between<'a>(
        &'a self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
    ) -> impl DoubleEndedIterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let entries = self.entries.range::<[u8], _>((from, to));
        entries.map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// Takes the keys changed since the last call, each with its value now.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let is_forgotten = |key: &[u8]| {
            Kind::of(key) == Some(Kind::GroupOffset) && mutation::is_on(Mutation::ForgetGroupOffset)
        };
        std::mem::take(&mut self.changed)
            .into_iter()
            .filter(|key| !is_forgotten(key))
            .map(|key| Change { value: self.entries.get(&key).cloned(), key })
            .collect()
    }

    /// The next entries after `cursor` in key order, about `size_max` bytes of them: one slice of
    /// a snapshot. Empty at the end.
    pub fn slice(&self, cursor: Option<&[u8]>, size_max: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let mut size = 0;
        let mut slice = Vec::new();
        for (key, value) in self.entries.range::<[u8], _>((from, Bound::Unbounded)) {
            slice.push((key.clone(), value.clone()));
            size += key.len() + value.len();
            if size >= size_max {
                break;
            }
        }
        slice
    }

    /// How many entries there are.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of all keys and values.
    pub fn size(&self) -> usize {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &[u8], value: &[u8]) -> Change {
        Change { key: key.to_vec(), value: Some(value.to_vec()) }
    }

    #[test]
    fn changes_are_taken_once_with_their_last_value() {
        let mut state = State::default();
        state.apply(put(b"a", b"1"));
        state.apply(put(b"a", b"2"));
        state.apply(Change { key: b"b".to_vec(), value: None });
        assert_eq!(
            state.take_changes(),
            [put(b"a", b"2"), Change { key: b"b".to_vec(), value: None }]
        );
        assert_eq!(state.take_changes(), []);
        assert_eq!(state.size(), 2);
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
            let slice = state.slice(cursor.as_deref(), 50);
            let Some((last, _)) = slice.last() else { break };
            cursor = Some(last.clone());
            seen.extend(slice.into_iter().map(|(key, _)| key[0]));
        }
        assert_eq!(seen, (0..100).collect::<Vec<u8>>());
    }
}
