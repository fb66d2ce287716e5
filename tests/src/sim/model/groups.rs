//! The rules of groups: what a group committed, who may commit, and who is fenced.
//!
//! All answers of a group come from one shard, through one barrier, so they leave in the order in
//! which the group did what they tell: within a life the newest good answer says what holds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tidemill::command::{CommittedOffset, MemberRef};
use tidemill_wal::format::PartitionId;

use super::clock::Moment;
use super::{Check, Model, require};

/// One committed offset and what else it may be.
#[derive(Debug, Default)]
struct Committed {
    value: Option<u64>,
    since: Moment,
    /// Asked for in this life, and when; not answered yet. `None` removes.
    open: Vec<(Option<u64>, Moment)>,
    /// Asked for in lives before, and never answered: each may have come after the value.
    uncertain: Vec<Option<u64>>,
}

/// What is known of one group.
#[derive(Debug, Default)]
pub(super) struct Group {
    committed: BTreeMap<PartitionId, Committed>,
    /// The newest generation whose assignment anybody got.
    generation: i32,
    generation_since: Moment,
    /// How often it was removed; its generations begin anew each time.
    removed_count: u64,
    /// Who leads each generation of this life.
    leaders: BTreeMap<i32, String>,
    /// Who holds each instance id.
    holders: BTreeMap<String, String>,
    /// Former holders of instance ids.
    fenced: BTreeSet<String>,
    /// Those that left in this life.
    left: BTreeSet<String>,
    /// Removals that are not answered, each with the offsets that it was to remove.
    removals: VecDeque<Vec<PartitionId>>,
}

/// A request of a member, with what was known when it was sent.
#[derive(Debug, Clone)]
pub struct MemberAsked {
    /// Who asks.
    pub who: MemberRef,
    asked_at: Moment,
    generation: i32,
    removed_count: u64,
    /// The group may have been forgotten, and begin again.
    may_be_new: bool,
    is_fenced: bool,
    has_left: bool,
}

impl Model {
    /// Whether the group may be a new one by now: it was removed, or empty for long.
    fn may_be_new(&self, name: &str) -> bool {
        self.groups.get(name).is_none_or(|group| {
            !group.removals.is_empty()
                || self.clock.may_have_passed(group.generation_since, self.empty_group_ms)
        })
    }

    fn group(&mut self, name: &str) -> &mut Group {
        self.groups.entry(name.to_owned()).or_default()
    }

    /// Offsets are on their way to be committed, or removed.
    pub fn on_commit_asked(&mut self, group: &str, offsets: &[(PartitionId, Option<u64>)]) {
        let now = self.clock.moment();
        let group = self.group(group);
        for (partition, offset) in offsets {
            group.committed.entry(*partition).or_default().open.push((*offset, now));
        }
    }

    /// A commit or a removal was answered.
    pub fn on_commit(
        &mut self,
        group: &str,
        partition: PartitionId,
        offset: Option<u64>,
        is_done: bool,
    ) {
        let known = self.group(group).committed.entry(partition).or_default();
        let index = known.open.iter().position(|(open, _)| *open == offset);
        let asked = index.map(|index| known.open.remove(index).1);
        if is_done {
            known.since = asked.unwrap_or(known.since);
            known.settle(offset);
        }
    }

    /// A committed offset was shown.
    pub fn on_committed_shown(
        &mut self,
        group: &str,
        partition: PartitionId,
        shown: Option<u64>,
    ) -> Check {
        if !self.is_alive(partition) {
            return Ok(());
        }
        let (clock, retention_ms) = (self.clock, self.offsets_retention_ms);
        let known = self.group(group).committed.entry(partition).or_default();
        let may_expire = shown.is_none() && clock.may_have_passed(known.since, retention_ms);
        require(shown == known.value || known.uncertain.contains(&shown) || may_expire, || {
            format!("{group} {partition:?} committed {known:?}, shown is {shown:?}")
        })?;
        known.settle(shown);
        Ok(())
    }

    /// What a deleted topic's partitions had is gone with it.
    pub fn check_no_offsets_of_gone(
        &self,
        gone_count: usize,
        shown: &[(PartitionId, Option<CommittedOffset>)],
    ) -> Check {
        let is_gone = |id: &PartitionId| self.gone[..gone_count].contains(&id.topic);
        let found = shown.iter().find(|(id, committed)| committed.is_some() && is_gone(id));
        require(found.is_none(), || format!("an offset of a topic that is gone: {found:?}"))
    }

    /// All committed offsets of a group were shown.
    pub fn on_all_committed_shown(
        &mut self,
        group: &str,
        shown: &[(PartitionId, Option<CommittedOffset>)],
    ) -> Check {
        let shown: BTreeMap<PartitionId, Option<u64>> = (shown.iter())
            .map(|(id, committed)| (*id, committed.as_ref().map(|committed| committed.offset)))
            .collect();
        let known: Vec<PartitionId> = self.group(group).committed.keys().copied().collect();
        for id in known.iter().chain(shown.keys()) {
            self.on_committed_shown(group, *id, shown.get(id).copied().flatten())?;
        }
        Ok(())
    }

    /// Every group with the partitions that it ever committed for.
    pub fn groups(&self) -> BTreeMap<String, Vec<PartitionId>> {
        let mut groups = BTreeMap::new();
        for (name, group) in &self.groups {
            let alive = group.committed.keys().filter(|id| self.is_alive(**id)).copied();
            groups.insert(name.clone(), alive.collect());
        }
        groups
    }

    /// Somebody asks for the group's removal with all that it has.
    pub fn on_removal_asked(&mut self, name: &str) {
        let now = self.clock.moment();
        let group = self.group(name);
        for committed in group.committed.values_mut() {
            committed.open.push((None, now));
        }
        let removed = group.committed.keys().copied().collect();
        group.removals.push_back(removed);
    }

    /// The removal was answered; `is_unknown`: there is no such group.
    pub fn on_removal(&mut self, name: &str, is_done: bool, is_unknown: bool) -> Check {
        let removed = self.group(name).removals.pop_front().expect("it was asked for");
        for id in removed {
            self.on_commit(name, id, None, is_done);
            if is_unknown {
                self.on_committed_shown(name, id, None)?;
            }
        }
        self.counts.removed_groups += u64::from(is_done);
        let group = self.group(name);
        if is_done || is_unknown {
            group.forget_members();
        }
        Ok(())
    }

    /// A member asks for something.
    pub fn on_member_asked(&mut self, who: MemberRef) -> MemberAsked {
        let asked_at = self.clock.moment();
        let may_be_new = self.may_be_new(&who.group);
        let group = self.group(&who.group);
        MemberAsked {
            asked_at,
            generation: if may_be_new { 0 } else { group.generation },
            removed_count: group.removed_count,
            may_be_new,
            is_fenced: group.fenced.contains(&who.member_id),
            has_left: group.left.contains(&who.member_id),
            who,
        }
    }

    /// The generation that the group had reached when this was asked. The request may have waited for
    /// a slow disk while the group lost its members and was forgotten, or it was passed by a removal.
    fn generation_due(&self, asked: &MemberAsked) -> i32 {
        let group = self.groups.get(&asked.who.group);
        let is_removed = group.is_some_and(|group| group.removed_count != asked.removed_count);
        if is_removed || self.may_be_new(&asked.who.group) { 0 } else { asked.generation }
    }

    /// A member was told that it is one, and of the current generation.
    pub fn on_member_confirmed(&mut self, asked: &MemberAsked) -> Check {
        let who = &asked.who;
        let generation = self.generation_due(asked);
        require(who.generation >= generation, || {
            format!("{who:?} is taken for a member, of generation {generation} by then")
        })?;
        require(!asked.is_fenced, || format!("{who:?} is fenced, and taken for a member"))?;
        require(!asked.has_left, || format!("{who:?} has left, and is taken for a member"))
    }

    /// A member was told that it is none, or of a generation that is over.
    pub fn on_member_refused(&mut self, asked: &MemberAsked) {
        let is_late = asked.who.generation < asked.generation;
        self.counts.fenced_members += u64::from(is_late || asked.is_fenced || asked.has_left);
    }

    /// A member got the assignment of its generation.
    pub fn on_synced(&mut self, asked: &MemberAsked) -> Check {
        self.on_member_confirmed(asked)?;
        self.counts.assignments += 1;
        let may_be_new = asked.may_be_new || self.may_be_new(&asked.who.group);
        let group = self.group(&asked.who.group);
        group.generation = match may_be_new {
            true => asked.who.generation,
            false => group.generation.max(asked.who.generation),
        };
        // The answer may have waited for a slow disk, while the group lost all its members.
        group.generation_since = asked.asked_at;
        Ok(())
    }

    /// A member joined a generation.
    pub fn on_joined(
        &mut self,
        asked: &MemberAsked,
        member_id: &str,
        generation: i32,
        leads: bool,
    ) -> Check {
        let due = self.generation_due(asked);
        require(generation >= due, || {
            format!("{member_id} joins generation {generation}, after {due}")
        })?;
        require(!asked.is_fenced && !asked.has_left, || {
            format!("{:?} joins, though it is fenced or left", asked.who)
        })?;
        let may_be_new = asked.may_be_new || self.may_be_new(&asked.who.group);
        let group = self.group(&asked.who.group);
        if let Some(instance_id) = &asked.who.instance_id
            && let Some(former) = group.holders.insert(instance_id.clone(), member_id.to_owned())
            && former != member_id
        {
            group.fenced.insert(former);
        }
        if leads {
            if may_be_new {
                group.leaders.retain(|known, _| *known < generation);
            }
            let leader = group.leaders.entry(generation).or_insert_with(|| member_id.to_owned());
            require(leader == member_id, || {
                format!("{leader} and {member_id} both lead generation {generation}")
            })?;
        }
        Ok(())
    }

    /// A member left.
    pub fn on_left(&mut self, asked: &MemberAsked) -> Check {
        let who = &asked.who;
        require(!asked.is_fenced, || format!("{who:?} is fenced, and leaves"))?;
        self.group(&who.group).left.insert(who.member_id.clone());
        Ok(())
    }

    /// The node is back: what was open has no answer, and never gets one.
    pub(super) fn restart_groups(&mut self) {
        for group in self.groups.values_mut() {
            for committed in group.committed.values_mut() {
                let open = std::mem::take(&mut committed.open);
                committed.uncertain.extend(open.into_iter().map(|(offset, _)| offset));
            }
            // Only what was assigned is kept; the same number may be used for others.
            group.leaders.clear();
            group.left.clear();
            if !std::mem::take(&mut group.removals).is_empty() {
                group.forget_members();
            }
        }
    }
}

impl Group {
    fn forget_members(&mut self) {
        self.generation = 0;
        self.removed_count += 1;
        self.leaders.clear();
        self.holders.clear();
    }
}

impl Committed {
    /// This holds, and nothing from before it can come up again.
    fn settle(&mut self, value: Option<u64>) {
        self.value = value;
        self.uncertain.clear();
    }
}
