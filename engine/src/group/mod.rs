//! Consumer groups, as Apache Kafka's classic protocol has them: members share the partitions of
//! topics, and what they have read survives them.
//!
//! A state machine: commands, time and vanished connections in, replies and changes of the shard's
//! keyed state out. Replies leave when the changes before them are durable, which the shard sees
//! to. A group with members is stable after a restart, with the same generation, member ids and
//! assignments, so consumers go on without a rebalance.
//!
//! Invariants: every ticket is answered once or cancelled; timers of members and groups that went
//! are gone; a group of which nothing would be lost is not kept; all maps are ordered, so the same
//! inputs always have the same outcome. Deliberately absent: topic names, offsets' bounds and
//! transactions.

mod membership;
mod offsets;
mod rebalance;
pub mod stored;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidemill_wal::format::{PartitionId, TopicId};
use tidemill_wal::limits::VALUE_SIZE_MAX;

use self::membership::Group;
use crate::command::{
    GroupCommand, GroupDescription, GroupReply, GroupState, Join, MemberRef, OffsetCommit, Refusal,
    Reply, Sync, Ticket,
};
use crate::effect::{Now, Outcome};
use crate::state::Kind;

/// Longest name of a group, an instance or a protocol, in bytes.
const NAME_SIZE_MAX: usize = 1_024;

/// Most protocols that one member may offer; real clients offer up to three.
const JOIN_PROTOCOL_COUNT_MAX: usize = 64;

/// Timers handled in one tick. More wait for the next, which is due at once.
const TICK_TIMER_COUNT_MAX: usize = 1_000;

/// What a stored group has besides its members: a few names and numbers.
const GROUP_FACTS_SIZE_MAX: usize = 8 * NAME_SIZE_MAX;

/// What a group costs besides members and offsets.
const GROUP_OVERHEAD_SIZE: usize = 512;

/// Bounds on groups, and their times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupLimits {
    /// Shortest session timeout that a member may ask for: a shorter one is a storm of heartbeats.
    pub session_timeout_ms_min: u32,
    /// Longest session timeout: a dead member keeps its partitions that long.
    pub session_timeout_ms_max: u32,
    /// How long the first rebalance of a new group waits for more members; 0: not at all.
    pub initial_rebalance_delay_ms: u64,
    /// How long the first join of a member may be held before the member counts as gone.
    pub new_member_join_ms: u64,
    /// How long offsets remain after the last member went and nobody committed.
    pub offsets_retention_ms: u64,
    /// How long a group remains that has neither members nor offsets.
    pub empty_group_ms: u64,
    /// Most groups of one shard.
    pub group_count_max: usize,
    /// Most members of one group.
    pub member_count_max: usize,
    /// Most bytes of all subscriptions in one join.
    pub member_metadata_size_max: usize,
    /// Most bytes of one group's members, with subscriptions and assignments: they are stored as
    /// one entry of state, whose size is limited.
    pub members_size_max: usize,
    /// Most bytes of all groups of one shard, about.
    pub state_size_max: usize,
    /// Most bytes of a client's own words with a committed offset.
    pub offset_metadata_size_max: usize,
}

impl Default for GroupLimits {
    fn default() -> Self {
        Self {
            session_timeout_ms_min: 6_000,
            session_timeout_ms_max: 1_800_000,
            // Consumers of one application start together; Kafka's 3 s delays every first start.
            initial_rebalance_delay_ms: 100,
            new_member_join_ms: 300_000,
            offsets_retention_ms: 7 * 24 * 3_600_000,
            empty_group_ms: 600_000,
            group_count_max: 100_000,
            member_count_max: 5_000,
            member_metadata_size_max: 256 << 10,
            members_size_max: 3 << 20,
            state_size_max: 64 << 20,
            offset_metadata_size_max: 4_096,
        }
    }
}

/// All groups of one shard.
#[derive(Debug)]
pub struct Groups {
    limits: GroupLimits,
    groups: BTreeMap<Arc<str>, Group>,
    timers: Timers,
    /// Held joins and syncs: their group and member.
    waiting: Waiting,
    ids: MemberIds,
    /// Bytes of all groups, about.
    size: usize,
}

type Waiting = BTreeMap<Ticket, (Arc<str>, Arc<str>)>;

/// What a group needs besides itself while it handles something.
struct Context<'a> {
    now: Now,
    limits: &'a GroupLimits,
    timers: &'a mut Timers,
    waiting: &'a mut Waiting,
    ids: &'a mut MemberIds,
    /// Bytes that all groups may still grow by.
    room: usize,
    out: &'a mut Outcome,
}

impl Context<'_> {
    /// Answers a command, held or not.
    fn reply(&mut self, ticket: Ticket, reply: GroupReply) {
        self.waiting.remove(&ticket);
        self.out.replies.push((ticket, Reply::Group(reply)));
    }
}

impl Groups {
    /// No groups yet. The seed makes member ids unique: another one for each shard and each start.
    pub fn new(limits: GroupLimits, id_seed: u64) -> Self {
        assert!(limits.members_size_max + GROUP_FACTS_SIZE_MAX <= VALUE_SIZE_MAX);
        Self {
            limits,
            groups: BTreeMap::new(),
            timers: Timers::default(),
            waiting: BTreeMap::new(),
            ids: MemberIds { seed: id_seed, count: 0 },
            size: 0,
        }
    }

    /// Takes in one entry of the state at recovery, in any order. Members get a fresh session.
    /// An error says what is wrong with the entry.
    pub fn load(&mut self, now: Now, key: &[u8], value: &[u8]) -> Result<(), String> {
        let mut out = Outcome::default();
        if Kind::of(key) == Some(Kind::Group) {
            let name = stored::decode_group_key(key)?;
            let (facts, members) = stored::decode_group(value)?;
            self.create(name);
            self.visit(now, name, &mut out, |group, cx| group.restore(facts, members, cx))
                .unwrap_or_else(|| unreachable!("it was just created"))
        } else {
            let (name, partition) = stored::decode_offset_key(key)?;
            let offset = stored::decode_offset(value)?;
            self.create(name);
            self.visit(now, name, &mut out, |group, cx| {
                group.restore_offset(partition, offset, cx);
            });
            Ok(())
        }
    }

    /// Handles a command. Joins and syncs may be answered later; all others are at once.
    pub fn handle(&mut self, now: Now, ticket: Ticket, command: GroupCommand, out: &mut Outcome) {
        let reply = match command {
            GroupCommand::Join(join) => return self.join(now, ticket, &join, out),
            GroupCommand::Sync(sync) => return self.sync(now, ticket, &sync, out),
            GroupCommand::Heartbeat(who) => GroupReply::Heartbeat(self.heartbeat(now, &who, out)),
            GroupCommand::Leave { group, members } => {
                let refused = vec![Err(Refusal::UnknownMember); members.len()];
                GroupReply::Leave(check_name(&group).map(|()| {
                    self.visit(now, &group, out, |group, cx| group.leave(&members, cx))
                        .unwrap_or(refused)
                }))
            }
            GroupCommand::OffsetCommit(commit) => {
                GroupReply::OffsetCommit(self.commit(now, commit, out))
            }
            GroupCommand::OffsetFetch { group, partitions } => {
                GroupReply::OffsetFetch(Ok(match self.groups.get(group.as_str()) {
                    Some(group) => group.fetch_offsets(partitions),
                    None => (partitions.into_iter().flatten())
                        .map(|partition| (partition, None))
                        .collect(),
                }))
            }
            GroupCommand::OffsetDelete { group, partitions, topics } => {
                let result = self.visit(now, &group, out, |group, cx| {
                    group.delete_offsets(&partitions, &topics, cx)
                });
                GroupReply::OffsetDelete(result.unwrap_or(Err(Refusal::UnknownGroup)))
            }
            GroupCommand::Describe(group) => GroupReply::Describe(self.describe(&group)),
            GroupCommand::List => {
                GroupReply::List(self.groups.values().map(Group::listing).collect())
            }
            GroupCommand::Delete(group) => GroupReply::Delete(self.delete(now, &group, out)),
        };
        out.replies.push((ticket, Reply::Group(reply)));
    }

    /// The asker's connection is gone: a held join or sync is forgotten, and its member has one
    /// session timeout to come back, unless it never was told its id. Whether there was one.
    pub fn cancel(&mut self, now: Now, ticket: Ticket, out: &mut Outcome) -> bool {
        let Some((group, member)) = self.waiting.remove(&ticket) else { return false };
        self.visit(now, &group, out, |group, cx| group.on_cancel(&member, ticket, cx));
        true
    }

    /// When `tick` has something to do, on the monotonic clock; it may turn out to be nothing.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.timers.next_ms()
    }

    /// Time has passed: sessions expire, rebalances end, offsets of abandoned groups go.
    pub fn tick(&mut self, now: Now, out: &mut Outcome) {
        for _ in 0..TICK_TIMER_COUNT_MAX {
            match self.timers.pop_due(now.monotonic_ms) {
                None => break,
                Some(Timer::Member(group, member)) => {
                    self.visit(now, &group, out, |group, cx| group.on_member_timer(&member, cx));
                }
                Some(Timer::Group(group)) => {
                    self.visit(now, &group, out, |group, cx| group.on_timer(cx));
                }
            }
        }
    }

    /// A topic is gone, and with it all its offsets.
    pub fn on_topic_deleted(&mut self, topic: TopicId, out: &mut Outcome) {
        for group in self.groups.values_mut() {
            let size = group.size();
            group.forget_topic(topic, &mut out.changes);
            self.size -= size - group.size();
            if group.is_vacant() {
                group.stop_timer(&mut self.timers);
                self.size -= group.size();
            }
        }
        self.groups.retain(|_, group| !group.is_vacant());
    }

    /// Every committed offset: group, partition and next offset to consume.
    pub fn committed(&self) -> impl Iterator<Item = (&str, PartitionId, u64)> {
        self.groups.values().flat_map(|group| {
            let name = &*group.name;
            group
                .offsets
                .iter()
                .map(move |(partition, offset)| (name, *partition, offset.committed.offset))
        })
    }

    /// Lets a group do something and sees to what follows for all groups. `None`: no such group.
    fn visit<R>(
        &mut self,
        now: Now,
        name: &str,
        out: &mut Outcome,
        run: impl FnOnce(&mut Group, &mut Context) -> R,
    ) -> Option<R> {
        let group = self.groups.get_mut(name)?;
        let mut cx = Context {
            now,
            limits: &self.limits,
            timers: &mut self.timers,
            waiting: &mut self.waiting,
            ids: &mut self.ids,
            room: self.limits.state_size_max.saturating_sub(self.size),
            out,
        };
        self.size -= group.size();
        let result = run(group, &mut cx);
        if group.is_vacant() {
            group.set_timer(None, &mut cx);
            self.groups.remove(name);
        } else {
            self.size += group.size();
        }
        Some(result)
    }

    /// Makes sure that a group is there; it goes again if nothing comes into it.
    fn create(&mut self, name: &str) {
        if !self.groups.contains_key(name) {
            let group = Group::new(Arc::from(name));
            self.size += group.size();
            self.groups.insert(group.name.clone(), group);
        }
    }

    /// Makes sure that a group is there, within the limits.
    fn create_for_client(&mut self, name: &str) -> Result<(), Refusal> {
        if self.groups.contains_key(name) {
            return Ok(());
        }
        if self.groups.len() >= self.limits.group_count_max {
            return Err(Refusal::PolicyViolation);
        }
        if self.size + GROUP_OVERHEAD_SIZE > self.limits.state_size_max {
            return Err(Refusal::Busy);
        }
        self.create(name);
        Ok(())
    }

    fn join(&mut self, now: Now, ticket: Ticket, join: &Join, out: &mut Outcome) {
        let checked = check_name(&join.group)
            .and_then(|()| rebalance::check_join(join, &self.limits))
            .and_then(|()| match join.member_id.is_empty() {
                true => self.create_for_client(&join.group),
                false => Ok(()),
            });
        let joined = checked.and_then(|()| {
            self.visit(now, &join.group, out, |group, cx| group.join(ticket, join, cx))
                .ok_or(Refusal::UnknownMember)
        });
        if let Err(refusal) = joined {
            let member_id = join.member_id.clone();
            let refused = crate::command::JoinRefused { refusal, member_id };
            out.replies.push((ticket, Reply::Group(GroupReply::Join(Err(refused)))));
        }
    }

    fn sync(&mut self, now: Now, ticket: Ticket, sync: &Sync, out: &mut Outcome) {
        let synced = check_name(&sync.member.group).and_then(|()| {
            self.visit(now, &sync.member.group, out, |group, cx| group.sync(ticket, sync, cx))
                .ok_or(Refusal::UnknownMember)
        });
        if let Err(refusal) = synced {
            out.replies.push((ticket, Reply::Group(GroupReply::Sync(Err(refusal)))));
        }
    }

    fn heartbeat(&mut self, now: Now, who: &MemberRef, out: &mut Outcome) -> Result<(), Refusal> {
        check_name(&who.group)?;
        self.visit(now, &who.group, out, |group, cx| group.heartbeat(who, cx))
            .unwrap_or(Err(Refusal::UnknownMember))
    }

    fn commit(
        &mut self,
        now: Now,
        commit: OffsetCommit,
        out: &mut Outcome,
    ) -> Vec<Result<(), Refusal>> {
        let name = commit.member.group.clone();
        let count = commit.offsets.len();
        let created = check_name(&name).and_then(|()| {
            let is_there = self.groups.contains_key(name.as_str());
            // Members of a group that is gone must not bring it back.
            if !is_there && commit.member.generation >= 0 {
                return Err(Refusal::IllegalGeneration);
            }
            self.create_for_client(&name)
        });
        match created {
            Ok(()) => self
                .visit(now, &name, out, |group, cx| group.commit(commit, cx))
                .unwrap_or_else(|| unreachable!("it was just created")),
            Err(refusal) => vec![Err(refusal); count],
        }
    }

    fn describe(&self, name: &str) -> GroupDescription {
        self.groups.get(name).map_or_else(
            || GroupDescription {
                state: GroupState::Dead,
                protocol_type: String::new(),
                protocol: String::new(),
                members: Vec::new(),
            },
            Group::describe,
        )
    }

    fn delete(&mut self, now: Now, name: &str, out: &mut Outcome) -> Result<(), Refusal> {
        let deleted = self.visit(now, name, out, |group, cx| {
            if group.state != GroupState::Empty {
                return Err(Refusal::NonEmptyGroup);
            }
            group.delete(cx);
            Ok(())
        });
        deleted.unwrap_or(Err(Refusal::UnknownGroup))
    }
}

fn check_name(group: &str) -> Result<(), Refusal> {
    if group.is_empty() || group.len() > NAME_SIZE_MAX {
        return Err(Refusal::InvalidGroup);
    }
    Ok(())
}

/// Something that is due at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// Of a group; what it means depends on the group's state.
    Group(Arc<str>),
    /// The session of a group's member, or the time that an id has to be used.
    Member(Arc<str>, Arc<str>),
}

/// All timers, by time. Whoever has a timer keeps its time in a slot of its own.
#[derive(Debug, Default)]
struct Timers {
    due: BTreeSet<(u64, Timer)>,
}

impl Timers {
    /// Replaces the timer whose time is in `slot`.
    fn set(&mut self, slot: &mut Option<u64>, at_ms: Option<u64>, timer: impl FnOnce() -> Timer) {
        if *slot == at_ms {
            return;
        }
        let timer = timer();
        if let Some(old_ms) = slot.take() {
            let was_there = self.due.remove(&(old_ms, timer.clone()));
            assert!(was_there, "a slot is empty after its timer fired");
        }
        *slot = at_ms;
        if let Some(at_ms) = at_ms {
            self.due.insert((at_ms, timer));
        }
    }

    fn next_ms(&self) -> Option<u64> {
        self.due.first().map(|(at_ms, _)| *at_ms)
    }

    /// Takes the first timer that is due. Its slot has to be emptied by whoever handles it.
    fn pop_due(&mut self, now_ms: u64) -> Option<Timer> {
        if self.next_ms()? > now_ms {
            return None;
        }
        self.due.pop_first().map(|(_, timer)| timer)
    }
}

/// Makes member ids: unique without dice, for a seed is never used twice.
#[derive(Debug)]
struct MemberIds {
    seed: u64,
    count: u64,
}

impl MemberIds {
    fn next(&mut self, name: &str) -> Arc<str> {
        self.count += 1;
        // Both mixes are one-to-one, so different pairs stay different.
        let unique = uuid::Uuid::from_u64_pair(mix(self.seed), mix(self.count));
        Arc::from(format!("{name}-{unique}"))
    }
}

/// The finalizer of SplitMix64, a permutation of all 64-bit numbers.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
