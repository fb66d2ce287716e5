//! What operators keep, for people who ask.

use crate::command::{StateEntry, StateQuery};
use crate::shard::Shard;
use crate::topology::{NameId, state_prefix};

/// Bytes of entries that one answer has, about.
const SIZE_MAX: usize = 1 << 20;

impl Shard {
    /// The entries of a state for a key, none if the key lives on another shard. `None` if there is no
    /// such state, or its topology does not run.
    pub(in crate::shard) fn read_state(&self, query: &StateQuery) -> Option<Vec<StateEntry>> {
        let hosted = self.topologies.hosted.iter();
        let hosted = hosted.into_iter().find(|it| it.plan.name() == query.topology)?;
        let names = [&query.topology[..], &query.operator, &query.state];
        let state = NameId::of(&names);
        hosted.plan.states().iter().find(|it| it.id == state)?;
        let operator = hosted.plan.operator(NameId::of(&names[..2]))?;
        let stage = hosted.plan.stage_of_operator(operator)?;
        let task = &hosted.wired.as_ref()?.task;
        let prefix = state_prefix(state, task.partition_of(stage, &query.key), &query.key);
        let mut size = 0;
        let fits = |(key, value): &(&[u8], &[u8])| {
            let before = size;
            size += key.len() + value.len();
            before < SIZE_MAX
        };
        let entries = self.state.range(&prefix).take(query.count_max).take_while(fits);
        let entry = |(key, value): (&[u8], &[u8])| {
            let (version, value) = value.split_first()?;
            let (entry, value) = (key[prefix.len()..].to_vec(), value.to_vec());
            Some(StateEntry { entry, version: *version, value })
        };
        Some(entries.filter_map(entry).collect())
    }
}
