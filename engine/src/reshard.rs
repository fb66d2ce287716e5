//! The same contents on another number of shards.
//!
//! Pure: from what the shards of a node hold to what as many others are to hold. Whatever belongs to
//! a partition, of a topic or of keys, goes where the partition goes. The old shards are at rest:
//! nothing is on its way between them, so what they know of each other is left behind, and all
//! outboxes begin anew.
//!
//! Where a stage's keys are is stored, but not which of them an operator has. So that each of its
//! entries can be found, the first partition of all keys is on shard 0 from then on, and that of every
//! topic whose records find their keys in its own partitions.
//!
//! No record becomes late by the move, and no time comes twice: an operator sees on a new shard the
//! earliest event time that it saw on any old one, and goes on once all new shards have been heard.
//! Where shards had come to different times, which they have when several sources fell silent at once,
//! the keys of those that were ahead keep what was seen for them. A clock is the latest of all.

use std::collections::BTreeMap;

use tidemill_wal::format::{PartitionId, ShardId, TopicId};

use crate::catalog::StoredTopic;
use crate::command::{group_shard, partition_shard};
use crate::group::stored::{decode_group_key, decode_offset_key};
use crate::shard::{Contents, partition_of};
use crate::state::Kind;
use crate::topology::declared::{StoredStates, states_key};
use crate::topology::stored::{self, StoredStep, decode_progress_key};
use crate::topology::{NameId, StagePlace, Timer, partition_of_state};

/// Why shards cannot become others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReshardError {
    /// Something was on its way between them.
    #[error(
        "shard {shard} holds {what}; start the node with all its topologies, let them come to rest, \
         and stop it"
    )]
    NotAtRest {
        /// Which shard.
        shard: usize,
        /// What it holds.
        what: &'static str,
    },
    /// They hold different things of what is one.
    #[error("the shards do not agree on {0}: one of them lost durable data")]
    Disagree(&'static str),
    /// An entry is not what it should be.
    #[error("{0}; written by a defective or newer build")]
    Unreadable(&'static str),
}

/// An entry is not what it should be.
fn unreadable(what: &'static str) -> ReshardError {
    ReshardError::Unreadable(what)
}

/// Spreads what some shards hold over so many others.
pub fn reshard(shards: Vec<Contents>, shard_count: u16) -> Result<Vec<Contents>, ReshardError> {
    assert!(shard_count > 0, "a node has a shard");
    check_at_rest(&shards)?;
    let topologies = topologies(&shards)?;
    let mut catalog = Catalog::of(&shards)?;
    catalog.move_topics(&topologies, shard_count);
    let mut common = std::mem::take(&mut catalog.entries);
    common.extend(topologies.iter().flat_map(|(id, topology)| topology.entries(*id)));
    let copy = || Contents { entries: common.clone(), runs: Vec::new() };
    let mut new: Vec<Contents> = (0..shard_count).map(|_| copy()).collect();
    for (id, topology) in &topologies {
        for ((stage, partition), seen_ms) in topology.seen_before() {
            let to = partition_shard(ShardId(0), partition, shard_count);
            let key = stored::seen_key(*id, stage, partition);
            new[usize::from(to.0)].entries.insert(key, stored::encode_seen(&seen_ms));
        }
    }
    for shard in shards {
        for (key, value) in shard.entries {
            let Some(to) = catalog.place(&key, shard_count)? else { continue };
            if new[usize::from(to.0)].entries.insert(key, value).is_some() {
                return Err(ReshardError::Disagree("where a key is"));
            }
        }
        for run in shard.runs {
            // Of a topic that is gone, nothing is kept.
            let Some(to) = catalog.shard_of(run.partition, shard_count) else { continue };
            new[usize::from(to.0)].runs.push(run);
        }
    }
    Ok(new)
}

fn check_at_rest(shards: &[Contents]) -> Result<(), ReshardError> {
    for (shard, contents) in shards.iter().enumerate() {
        let holds = |kind: Kind| {
            let key = [kind as u8];
            contents.entries.range(key.to_vec()..).next().is_some_and(|(it, _)| it[0] == key[0])
        };
        let not_at_rest = |what| Err(ReshardError::NotAtRest { shard, what });
        if holds(Kind::Outbox) {
            return not_at_rest("what it did not send to other shards");
        }
        if holds(Kind::TopologyArrival) {
            return not_at_rest("what other shards sent to a topology that did not take it");
        }
    }
    Ok(())
}

/// The topics, of which every shard has a copy.
struct Catalog {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The shard of the first partition of each.
    first_shards: BTreeMap<TopicId, ShardId>,
}

impl Catalog {
    fn of(shards: &[Contents]) -> Result<Self, ReshardError> {
        let is_ours =
            |key: &[u8]| matches!(Kind::of(key), Some(Kind::Topic | Kind::CatalogVersion));
        let entries_of = |shard: &Contents| -> BTreeMap<Vec<u8>, Vec<u8>> {
            let ours = shard.entries.iter().filter(|(key, _)| is_ours(key));
            ours.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let mut catalogs = shards.iter().map(entries_of);
        let entries = catalogs.next().unwrap_or_default();
        if catalogs.any(|other| other != entries) {
            return Err(ReshardError::Disagree("the topics"));
        }
        let mut first_shards = BTreeMap::new();
        for (key, value) in entries.iter().filter(|(key, _)| key[0] == Kind::Topic as u8) {
            let id =
                key[1..].try_into().map_err(|_| unreadable("a topic's key is not 17 bytes"))?;
            let topic = StoredTopic::decode(value);
            let topic = topic.ok_or(unreadable("the entry of a topic cannot be read"))?;
            first_shards.insert(TopicId(id), topic.first_shard());
        }
        Ok(Self { entries, first_shards })
    }

    /// Topics that are read by key begin where their keys do; others stay where they began.
    fn move_topics(&mut self, topologies: &BTreeMap<NameId, OneTopology>, shard_count: u16) {
        let is_topic = |key: &[u8]| Kind::of(key) == Some(Kind::Topic);
        for (key, value) in self.entries.iter_mut().filter(|(key, _)| is_topic(key)) {
            let Some(mut topic) = StoredTopic::decode(value) else { continue };
            let is_stage = |it: &OneTopology| it.has_stage(topic.name());
            let first_shard = match topologies.values().any(is_stage) {
                true => ShardId(0),
                false => ShardId(topic.first_shard().0 % shard_count),
            };
            topic.set_first_shard(first_shard);
            *value = topic.into_bytes();
            if let Some(id) = key.get(1..).and_then(|id| id.try_into().ok()) {
                self.first_shards.insert(TopicId(id), first_shard);
            }
        }
    }

    fn shard_of(&self, partition: PartitionId, shard_count: u16) -> Option<ShardId> {
        let first_shard = self.first_shards.get(&partition.topic)?;
        Some(partition_shard(*first_shard, partition.index, shard_count))
    }

    /// Where an entry goes; nowhere if it is of a topic that is gone, all shards have it, or it was
    /// between the old ones.
    fn place(&self, key: &[u8], shard_count: u16) -> Result<Option<ShardId>, ReshardError> {
        let of_keys = |partition: u32| Some(partition_shard(ShardId(0), partition, shard_count));
        let kind = Kind::of(key).ok_or(unreadable("a state entry is of unknown kind"))?;
        Ok(match kind {
            Kind::Topic
            | Kind::CatalogVersion
            | Kind::TopologyStep
            | Kind::TopologyStates
            | Kind::TopologyPlaces
            | Kind::TopologySeen
            | Kind::TopologyCalled
            | Kind::TopologyCourse
            | Kind::Outbox
            | Kind::OutboxNext
            | Kind::OutboxTaken
            | Kind::OutboxEarly
            | Kind::TopologyArrival
            | Kind::TopologyTaken => None,
            Kind::Partition | Kind::Producer | Kind::ForgottenProducers => {
                let partition = partition_of(key);
                self.shard_of(
                    partition.ok_or(unreadable("a partition's key is short"))?,
                    shard_count,
                )
            }
            Kind::Group => {
                let group = decode_group_key(key);
                Some(group_shard(group.map_err(|_| unreadable("a group's key"))?, shard_count))
            }
            Kind::GroupOffset => {
                let offset = decode_offset_key(key);
                let (group, _) = offset.map_err(|_| unreadable("the key of a group's offset"))?;
                Some(group_shard(group, shard_count))
            }
            Kind::ProducerIdBlock => Some(ShardId(0)),
            Kind::OperatorState => {
                let partition = partition_of_state(key);
                of_keys(partition.ok_or(unreadable("the key of an operator's state is short"))?)
            }
            Kind::Timer => {
                let timer = Timer::decode(key);
                of_keys(timer.ok_or(unreadable("a timer cannot be read"))?.partition)
            }
            Kind::TopologyProgress => {
                let progress = decode_progress_key(key);
                let progress =
                    progress.ok_or(unreadable("a topology's progress has a short key"))?;
                self.shard_of(progress.1, shard_count)
            }
        })
    }
}

/// Event time that each operator has seen, in milliseconds since 1970.
type SeenMs = BTreeMap<NameId, i64>;

/// What the shards have stored of one topology, beside what belongs to a partition.
#[derive(Default)]
struct OneTopology {
    states: Option<StoredStates>,
    places: BTreeMap<NameId, StagePlace>,
    /// The newest step of each old shard that has one.
    steps: Vec<Option<StoredStep>>,
    /// What operators had seen already on shards before the old ones, by stage and partition.
    seen_ms: BTreeMap<(NameId, u32), SeenMs>,
}

fn topologies(shards: &[Contents]) -> Result<BTreeMap<NameId, OneTopology>, ReshardError> {
    let mut topologies: BTreeMap<NameId, OneTopology> = BTreeMap::new();
    let entries = shards.iter().enumerate();
    let entries =
        entries.flat_map(|(index, shard)| shard.entries.iter().map(move |it| (index, it)));
    for (shard, (key, value)) in entries {
        let kind = Kind::of(key);
        let id = match kind {
            Some(Kind::TopologyStep | Kind::TopologyStates | Kind::TopologyPlaces) => {
                stored::decode_step_key(key)
            }
            Some(Kind::TopologySeen) => stored::decode_seen_key(key).map(|(topology, ..)| topology),
            _ => continue,
        };
        let id = id.ok_or(unreadable("the key of a topology is short"))?;
        let topology = topologies.entry(id).or_default();
        match kind {
            Some(Kind::TopologyStates) => topology.add_states(value)?,
            Some(Kind::TopologyPlaces) => topology.add_places(value)?,
            Some(Kind::TopologySeen) => topology.add_seen(key, value)?,
            _ => {
                let step = StoredStep::decode(value);
                let step = step.map_err(|_| unreadable("a topology's step cannot be read"))?;
                topology.steps.resize_with(shards.len(), || None);
                topology.steps[shard] = Some(step);
            }
        }
    }
    Ok(topologies)
}

impl OneTopology {
    /// Whether the keys of a topic are those of a stage.
    fn has_stage(&self, topic: &str) -> bool {
        let name = self.states.as_ref().map(|states| states.topology.as_str());
        name.is_some_and(|name| self.places.contains_key(&NameId::of(&[name, topic])))
    }

    /// A state is known to a shard while it holds entries of it, so one shard may know more than
    /// another.
    fn add_states(&mut self, value: &[u8]) -> Result<(), ReshardError> {
        let other = StoredStates::decode(value);
        let other = other.ok_or(unreadable("the states of a topology cannot be read"))?;
        let Some(states) = &mut self.states else {
            self.states = Some(other);
            return Ok(());
        };
        let is_same = states.merge(other);
        is_same.then_some(()).ok_or(ReshardError::Disagree("the states of a topology"))
    }

    fn add_places(&mut self, value: &[u8]) -> Result<(), ReshardError> {
        let other = stored::decode_places(value);
        for (stage, place) in other.ok_or(unreadable("the stages of a topology cannot be read"))? {
            if *self.places.entry(stage).or_insert(place) != place {
                return Err(ReshardError::Disagree("where the keys of a stage are"));
            }
        }
        Ok(())
    }

    fn add_seen(&mut self, key: &[u8], value: &[u8]) -> Result<(), ReshardError> {
        let seen = stored::decode_seen_key(key).zip(stored::decode_seen(value));
        let ((_, stage, partition), seen_ms) = seen.ok_or(unreadable("former times"))?;
        self.seen_ms.insert((stage, partition), seen_ms);
        Ok(())
    }

    /// The step that all new shards go on from: the latest clock, and of each operator the earliest of
    /// its times, and none if a shard has none. What was heard of the old shards is nobody's word any
    /// more.
    fn step(&self) -> Option<StoredStep> {
        let mut steps = self.steps.iter().flatten();
        let first = steps.next()?;
        let (clock_ms, operators_ms) = (first.clock_ms, first.operators_ms.clone());
        let mut all = StoredStep { clock_ms, operators_ms, heard: Vec::new() };
        for step in steps {
            all.clock_ms = all.clock_ms.max(step.clock_ms);
            all.operators_ms.retain_mut(|(operator, fired_ms, seen_ms)| {
                let same = step.operators_ms.iter().find(|it| it.0 == *operator);
                let Some((_, other_fired_ms, other_seen_ms)) = same else { return false };
                *fired_ms = (*other_fired_ms).min(*fired_ms);
                *seen_ms = (*other_seen_ms).min(*seen_ms);
                true
            });
        }
        Some(all)
    }

    /// What operators had seen for the keys of each partition, where that is more than all new shards
    /// know.
    fn seen_before(&self) -> BTreeMap<(NameId, u32), SeenMs> {
        let operators_ms = self.step().map(|step| step.operators_ms).unwrap_or_default();
        let known_ms: SeenMs =
            operators_ms.into_iter().map(|(operator, _, seen_ms)| (operator, seen_ms)).collect();
        let is_more = |(operator, seen_ms): &(NameId, i64)| {
            known_ms.get(operator).is_none_or(|known_ms| seen_ms > known_ms)
        };
        let (mut all, old_count) = (BTreeMap::new(), self.steps.len().max(1) as u16);
        for (stage, place) in &self.places {
            for partition in 0..place.partition_count {
                let shard = partition_shard(place.first_shard, partition, old_count);
                let old = self.steps.get(usize::from(shard.0)).and_then(Option::as_ref);
                let old = old.into_iter().flat_map(|step| &step.operators_ms);
                let mut seen_ms: SeenMs =
                    old.map(|(operator, _, seen_ms)| (*operator, *seen_ms)).collect();
                let before = self.seen_ms.get(&(*stage, partition));
                for (operator, before_ms) in before.into_iter().flatten() {
                    let seen_ms = seen_ms.entry(*operator).or_insert(*before_ms);
                    *seen_ms = (*before_ms).max(*seen_ms);
                }
                let seen_ms: SeenMs = seen_ms.into_iter().filter(is_more).collect();
                if !seen_ms.is_empty() {
                    all.insert((*stage, partition), seen_ms);
                }
            }
        }
        all
    }

    /// The entries that each new shard gets.
    fn entries(&self, id: NameId) -> Vec<(Vec<u8>, Vec<u8>)> {
        let on_first = |place: &StagePlace| StagePlace { first_shard: ShardId(0), ..*place };
        let places: BTreeMap<NameId, StagePlace> =
            self.places.iter().map(|(stage, place)| (*stage, on_first(place))).collect();
        let places = (stored::places_key(id), stored::encode_places(&places));
        let states = self.states.as_ref().map(|states| (states_key(id), states.encode()));
        let step = self.step();
        let step = step.as_ref().map(|step| (stored::step_key(id), step.encode()));
        states.into_iter().chain(step).chain([places]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{TimeDomain, state_prefix};

    const TOPOLOGY: NameId = NameId(7);
    const STAGE: NameId = NameId(8);
    const OPERATOR: NameId = NameId(9);

    fn contents(entries: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Contents {
        Contents { entries: entries.into_iter().collect(), runs: Vec::new() }
    }

    /// A shard with a topology of one operator, whose keys have four partitions.
    fn shard(clock_ms: i64, fired_ms: i64, seen_ms: i64) -> Contents {
        let operators_ms = vec![(OPERATOR, fired_ms, seen_ms)];
        let heard = vec![(STAGE, vec![1, 2])];
        let step = StoredStep { clock_ms, operators_ms, heard };
        let place = StagePlace { partition_count: 4, first_shard: ShardId(1) };
        let places = stored::encode_places(&BTreeMap::from([(STAGE, place)]));
        contents([
            (stored::step_key(TOPOLOGY), step.encode()),
            (stored::places_key(TOPOLOGY), places),
        ])
    }

    fn seen(contents: &Contents, partition: u32) -> Option<i64> {
        let value = contents.entries.get(&stored::seen_key(TOPOLOGY, STAGE, partition))?;
        stored::decode_seen(value).expect("ours").get(&OPERATOR).copied()
    }

    fn step(contents: &Contents) -> StoredStep {
        StoredStep::decode(&contents.entries[&stored::step_key(TOPOLOGY)]).expect("ours")
    }

    #[test]
    fn time_goes_on_from_the_earliest_and_partitions_that_were_ahead_keep_theirs() {
        let new = reshard(vec![shard(5, 10, 12), shard(6, 20, 20)], 3).expect("at rest");
        for shard in &new {
            let operators_ms = vec![(OPERATOR, 10, 12)];
            let expected = StoredStep { clock_ms: 6, operators_ms, heard: Vec::new() };
            assert_eq!(step(shard), expected);
            let places = stored::decode_places(&shard.entries[&stored::places_key(TOPOLOGY)]);
            assert_eq!(places.expect("ours")[&STAGE].first_shard, ShardId(0));
        }
        // The first partition was on shard 1, which was ahead.
        let seen_of = |new: &[Contents]| -> Vec<Vec<Option<i64>>> {
            new.iter().map(|shard| (0..4).map(|it| seen(shard, it)).collect()).collect()
        };
        let none = || vec![None; 4];
        let third = vec![None, None, Some(20), None];
        assert_eq!(seen_of(&new), [vec![Some(20), None, None, None], none(), third]);
        // They keep it when they move on, as long as it is ahead.
        let again = reshard(new, 1).expect("at rest");
        assert_eq!(seen_of(&again), [vec![Some(20), None, Some(20), None]]);
        assert_eq!(
            seen_of(&reshard(again, 2).expect("at rest")).concat().iter().flatten().count(),
            2
        );
        let level = reshard(vec![shard(5, 20, 20), shard(6, 20, 20)], 1).expect("at rest");
        assert_eq!(seen_of(&level), [none()]);
    }

    #[test]
    fn an_operator_that_one_shard_does_not_have_begins_anew() {
        let mut other = shard(5, 10, 10);
        let unknown = StoredStep { clock_ms: 5, ..StoredStep::default() };
        other.entries.insert(stored::step_key(TOPOLOGY), unknown.encode());
        let new = reshard(vec![shard(5, 10, 10), other], 1).expect("at rest");
        assert_eq!(step(&new[0]).operators_ms, []);
        assert_eq!(seen(&new[0], 1), Some(10), "of the shard that has it");
        assert_eq!(seen(&new[0], 0), None);
    }

    #[test]
    fn what_belongs_to_keys_goes_where_their_partition_goes() {
        let timer = |partition: u32| {
            let (domain, time_ms, key) = (TimeDomain::Event, 5, b"k".to_vec());
            Timer { topology: TOPOLOGY, domain, operator: OPERATOR, time_ms, partition, key }
        };
        let entries = (0..5).flat_map(|partition| {
            let state = state_prefix(NameId(3), partition, b"k");
            [(timer(partition).encode(), Vec::new()), (state, vec![partition as u8])]
        });
        let position = stored::position_key(TOPOLOGY, 1);
        let filter = Kind::OutboxTaken.key(&[&[0, 1]]);
        let old = contents(entries.chain([(position, vec![0; 16]), (filter, vec![0; 8])]));
        let new = reshard(vec![contents([]), old], 3).expect("at rest");
        for (shard, expected) in new.iter().zip([&[0, 3][..], &[1, 4], &[2]]) {
            let states = shard.entries.keys().filter(|key| key[0] == Kind::OperatorState as u8);
            let states: Vec<_> = states.filter_map(|key| partition_of_state(key)).collect();
            assert_eq!(states, expected);
            let timers = shard.entries.keys().filter_map(|key| Timer::decode(key));
            assert_eq!(timers.map(|it| it.partition).collect::<Vec<_>>(), expected);
            assert_eq!(shard.entries.len(), 2 * expected.len(), "and nothing else");
        }
    }

    #[test]
    fn shards_that_are_not_at_rest_or_do_not_agree_are_refused() {
        let refused = |shards: Vec<Contents>| reshard(shards, 2).expect_err("refused").to_string();
        let sent = Kind::Outbox.key(&[&[0, 0], &[0; 8]]);
        let why = refused(vec![contents([]), contents([(sent, Vec::new())])]);
        assert!(why.starts_with("shard 1 holds what it did not send"), "{why}");
        let arrival = stored::arrival_key(TOPOLOGY, 0, 1);
        let why = refused(vec![contents([(arrival, Vec::new())])]);
        assert!(why.contains("let them come to rest"), "{why}");
        let state = || (state_prefix(NameId(3), 0, b"k"), vec![0]);
        let why = refused(vec![contents([state()]), contents([state()])]);
        assert!(why.contains("where a key is"), "{why}");
        let version = |number: u8| contents([(Kind::CatalogVersion.key(&[]), vec![number; 8])]);
        assert!(refused(vec![version(1), version(2)]).contains("the topics"));
        let mut elsewhere = shard(1, 1, 1);
        let place = StagePlace { partition_count: 5, first_shard: ShardId(1) };
        let places = stored::encode_places(&BTreeMap::from([(STAGE, place)]));
        elsewhere.entries.insert(stored::places_key(TOPOLOGY), places);
        let why = refused(vec![shard(1, 1, 1), elsewhere]);
        assert!(why.contains("where the keys of a stage are"), "{why}");
    }
}
