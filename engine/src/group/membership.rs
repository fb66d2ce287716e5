//! A group and its members: who is in, which protocols they share, who leads.
//!
//! Nothing here decides when a rebalance begins or ends; that is `rebalance.rs`.
//!
//! Invariants: `joining_count` members have a held join; `unsynced_count` of those
//! that joined this generation have not asked for their assignment; all members share at least one protocol; each static
//! member is found under its instance id; a member's timer in [`Timers`] is never later than its
//! deadline, unless a held request keeps it alive.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_wal::format::PartitionId;

use super::stored::{self, GroupFacts, MemberFacts, StoredOffset};
use super::{Context, GROUP_OVERHEAD_SIZE, Timer, Timers};
use crate::command::{
    GroupDescription, GroupListing, GroupReply, GroupState, Join, JoinRefused, Joined,
    JoinedMember, MemberDescription, Refusal, Synced, Ticket,
};
use crate::effect::Change;

/// What a member costs besides its names, subscriptions and assignment.
const MEMBER_OVERHEAD_SIZE: usize = 512;

/// What a protocol of a member costs besides its name and subscription.
const PROTOCOL_OVERHEAD_SIZE: usize = 64;

/// Client ids and addresses are kept for people; more of them helps nobody.
const CLIENT_NAME_SIZE_MAX: usize = 255;

/// A shorter wait for joins would be a busy one.
const REBALANCE_TIMEOUT_MS_MIN: u32 = 100;

/// One consumer group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: Arc<str>,
    pub(super) state: GroupState,
    pub(super) facts: GroupFacts,
    pub(super) members: BTreeMap<Arc<str>, Member>,
    /// Instance id to member id.
    pub(super) statics: BTreeMap<String, Arc<str>>,
    /// Ids handed out by MEMBER_ID_REQUIRED, each with its timer.
    pub(super) pending: BTreeMap<Arc<str>, Option<u64>>,
    /// Protocol to the number of members that know it.
    supporters: BTreeMap<String, usize>,
    pub(super) joining_count: usize,
    pub(super) unsynced_count: usize,
    pub(super) first_rebalance: Option<FirstRebalance>,
    /// The group's own timer; what it means depends on the state.
    pub(super) timer_ms: Option<u64>,
    /// Whether the shard's state has an entry for this group.
    pub(super) is_stored: bool,
    pub(super) offsets: BTreeMap<PartitionId, StoredOffset>,
    pub(super) members_size: usize,
    pub(super) offsets_size: usize,
}

/// The first rebalance of a new group waits a little for more members.
#[derive(Debug)]
pub(super) struct FirstRebalance {
    /// A member came since the wait was last extended.
    pub(super) grew: bool,
    /// How much longer the wait may be extended.
    pub(super) remaining_ms: u64,
}

/// One member.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) facts: MemberFacts,
    /// Its held join.
    pub(super) joining: Option<Ticket>,
    /// Its held sync.
    pub(super) syncing: Option<Ticket>,
    /// Its first join is not answered yet.
    pub(super) is_new: bool,
    /// It asked for the assignment of this generation, or did not join it.
    pub(super) synced: bool,
    pub(super) deadline_ms: u64,
    pub(super) timer_ms: Option<u64>,
}

impl MemberFacts {
    /// Takes copies: a subscription must not keep a whole request's buffer alive.
    pub(super) fn of(join: &Join) -> Self {
        Self {
            instance_id: join.instance_id.clone(),
            client_id: truncated(&join.client_id).to_owned(),
            client_host: truncated(&join.client_host).to_owned(),
            session_timeout_ms: u32::try_from(join.session_timeout_ms).unwrap_or(0),
            rebalance_timeout_ms: u32::try_from(join.rebalance_timeout_ms)
                .unwrap_or(0)
                .max(REBALANCE_TIMEOUT_MS_MIN),
            protocols: join
                .protocols
                .iter()
                .map(|(name, metadata)| (name.clone(), Bytes::copy_from_slice(metadata)))
                .collect(),
            assignment: Bytes::new(),
        }
    }

    /// Bytes it takes, about; not less than its part of the stored entry.
    pub(super) fn size(&self) -> usize {
        let names = self.instance_id.as_ref().map_or(0, String::len)
            + self.client_id.len()
            + self.client_host.len();
        let protocols: usize = (self.protocols.iter())
            .map(|(name, metadata)| PROTOCOL_OVERHEAD_SIZE + name.len() + metadata.len())
            .sum();
        // Names count twice: one of them is in the member id, too.
        MEMBER_OVERHEAD_SIZE + 2 * names + protocols + self.assignment.len()
    }

    /// Its subscription for a protocol.
    pub(super) fn metadata(&self, protocol: Option<&str>) -> Bytes {
        self.protocols
            .iter()
            .find(|(name, _)| Some(name.as_str()) == protocol)
            .map(|(_, metadata)| metadata.clone())
            .unwrap_or_default()
    }
}

/// The beginning of a name that a client chose.
pub(super) fn truncated(name: &str) -> &str {
    &name[..name.floor_char_boundary(CLIENT_NAME_SIZE_MAX)]
}

impl Group {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            state: GroupState::Empty,
            facts: GroupFacts::default(),
            members: BTreeMap::new(),
            statics: BTreeMap::new(),
            pending: BTreeMap::new(),
            supporters: BTreeMap::new(),
            joining_count: 0,
            unsynced_count: 0,
            first_rebalance: None,
            timer_ms: None,
            is_stored: false,
            offsets: BTreeMap::new(),
            members_size: 0,
            offsets_size: 0,
        }
    }

    /// Bytes it takes, about.
    pub(super) fn size(&self) -> usize {
        GROUP_OVERHEAD_SIZE + self.members_size + self.offsets_size
    }

    /// Nothing would be lost by forgetting it.
    pub(super) fn is_vacant(&self) -> bool {
        self.state == GroupState::Empty
            && !self.is_stored
            && self.members.is_empty()
            && self.pending.is_empty()
            && self.offsets.is_empty()
    }

    /// Records the group as it is now.
    pub(super) fn store(&mut self, cx: &mut Context) {
        self.is_stored = true;
        self.facts.rebalancing = !self.members.is_empty() && self.state != GroupState::Stable;
        let members = self.members.iter().map(|(id, member)| (&**id, &member.facts));
        let value = stored::encode_group(&self.facts, members);
        cx.out.changes.push(Change { key: stored::group_key(&self.name), value: Some(value) });
    }

    /// Replaces the group's timer.
    pub(super) fn set_timer(&mut self, at_ms: Option<u64>, cx: &mut Context) {
        cx.timers.set(&mut self.timer_ms, at_ms, || Timer::Group(self.name.clone()));
    }

    /// Takes the group's timer away, outside of any command.
    pub(super) fn stop_timer(&mut self, timers: &mut Timers) {
        timers.set(&mut self.timer_ms, None, || Timer::Group(self.name.clone()));
    }

    /// The group's timer fired.
    pub(super) fn on_timer(&mut self, cx: &mut Context) {
        self.timer_ms = None;
        match self.state {
            GroupState::PreparingRebalance => self.on_join_timeout(cx),
            GroupState::CompletingRebalance | GroupState::Stable => self.on_sync_timeout(cx),
            GroupState::Empty => self.on_expiry_timeout(cx),
            GroupState::Dead => unreachable!("a dead group is not kept"),
        }
    }

    /// Takes in what was stored. A group that was stable is so again.
    pub(super) fn restore(
        &mut self,
        facts: GroupFacts,
        members: Vec<(String, MemberFacts)>,
        cx: &mut Context,
    ) -> Result<(), String> {
        if self.is_stored {
            return Err(format!("group {} is stored twice", self.name));
        }
        self.is_stored = true;
        self.facts = facts;
        let protocol_type = self.facts.protocol_type.clone().unwrap_or_default();
        for (id, member) in members {
            let instance_id = member.instance_id.as_ref();
            if self.members.contains_key(id.as_str())
                || instance_id.is_some_and(|instance_id| self.statics.contains_key(instance_id))
            {
                return Err(format!("group {} has member {id} twice", self.name));
            }
            let id: Arc<str> = Arc::from(id);
            self.add_member(id.clone(), member, &protocol_type, cx);
            self.members.get_mut(&id).expect("it was just added").is_new = false;
        }
        if self.members.is_empty() {
            self.schedule_expiry(cx);
            return Ok(());
        }
        let leader = self.facts.leader.as_deref().unwrap_or_default();
        let protocol = self.facts.protocol.as_deref().unwrap_or_default();
        if !self.members.contains_key(leader) || !self.is_shared(protocol) {
            return Err(format!("group {} has no leader or no shared protocol", self.name));
        }
        if self.facts.rebalancing {
            self.state = GroupState::PreparingRebalance;
            self.wait_for_joins(cx);
        } else {
            self.state = GroupState::Stable;
            self.set_timer(None, cx);
        }
        Ok(())
    }

    /// Takes in a stored offset.
    pub(super) fn restore_offset(
        &mut self,
        partition: PartitionId,
        offset: StoredOffset,
        cx: &mut Context,
    ) {
        let expires_ms = self.offset_expires_ms(&offset, cx);
        self.put_offset(partition, offset);
        // Scanning all offsets for the first to expire, at every one of them, would be quadratic.
        // The timer may be early; then it finds out.
        if self.state == GroupState::Empty {
            let at_ms = Self::expiry_timer_ms(expires_ms, cx);
            if self.timer_ms.is_none_or(|timer_ms| timer_ms > at_ms) {
                self.set_timer(Some(at_ms), cx);
            }
        }
    }

    /// Whether a member with these protocols could be in this group.
    pub(super) fn supports(&self, protocol_type: &str, protocols: &[(String, Bytes)]) -> bool {
        if self.members.is_empty() {
            return !protocol_type.is_empty() && !protocols.is_empty();
        }
        self.facts.protocol_type.as_deref() == Some(protocol_type)
            && protocols.iter().any(|(name, _)| self.is_shared(name))
    }

    fn is_shared(&self, protocol: &str) -> bool {
        self.supporters.get(protocol) == Some(&self.members.len())
    }

    /// The protocol with most votes among those that all members know; each member votes for the
    /// first that it prefers, the leader's preference decides a tie. `None`: they share none.
    pub(super) fn select_protocol(&self) -> Option<String> {
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            let vote = member.facts.protocols.iter().find(|(name, _)| self.is_shared(name));
            *votes.entry(vote?.0.as_str()).or_default() += 1;
        }
        let leader = self.facts.leader.as_deref().and_then(|id| self.members.get(id));
        let preferences = &leader.or(self.members.values().next())?.facts.protocols;
        let rank = |protocol: &str| preferences.iter().position(|(name, _)| name == protocol);
        let winner = votes.into_iter().max_by_key(|(name, count)| (*count, Reverse(rank(name))));
        winner.map(|(name, _)| name.to_owned())
    }

    /// A member comes in; the first one leads and decides the protocol type.
    pub(super) fn add_member(
        &mut self,
        id: Arc<str>,
        facts: MemberFacts,
        protocol_type: &str,
        cx: &mut Context,
    ) {
        assert!(!self.members.contains_key(&id), "a member is added once");
        if self.members.is_empty() {
            self.facts.protocol_type = Some(protocol_type.to_owned());
        }
        if self.facts.leader.is_none() {
            self.facts.leader = Some(id.to_string());
        }
        if let Some(instance_id) = &facts.instance_id {
            let old = self.statics.insert(instance_id.clone(), id.clone());
            assert!(old.is_none(), "a static member is replaced, not added again");
        }
        if let Some(first) = &mut self.first_rebalance {
            first.grew = true;
        }
        self.members_size += facts.size();
        count_supporters(&mut self.supporters, &facts.protocols);
        let member = Member {
            facts,
            joining: None,
            syncing: None,
            is_new: true,
            synced: true,
            deadline_ms: 0,
            timer_ms: None,
        };
        self.members.insert(id.clone(), member);
        self.touch(&id, cx);
    }

    /// A member goes; what it waits for is refused. The caller continues with `after_removal`.
    pub(super) fn remove_member(&mut self, id: &str, refusal: Refusal, cx: &mut Context) {
        let Some((id, mut member)) = self.members.remove_entry(id) else {
            unreachable!("only members are removed");
        };
        self.release(&id, &mut member, refusal, cx);
        if !member.synced {
            self.unsynced_count -= 1;
        }
        self.members_size -= member.facts.size();
        discount_supporters(&mut self.supporters, &member.facts.protocols);
        if let Some(instance_id) = &member.facts.instance_id {
            self.statics.remove(instance_id);
        }
        if self.facts.leader.as_deref() == Some(&*id) {
            let next = self.members.iter().find(|(_, member)| member.joining.is_some());
            self.facts.leader = next.map(|(id, _)| id.to_string());
        }
    }

    /// Refuses what a member waits for and stops its timer.
    fn release(&mut self, id: &Arc<str>, member: &mut Member, refusal: Refusal, cx: &mut Context) {
        if let Some(ticket) = member.joining.take() {
            self.joining_count -= 1;
            cx.refuse_join(ticket, refusal, id);
        }
        if let Some(ticket) = member.syncing.take() {
            cx.answer_sync(ticket, Err(refusal));
        }
        cx.timers.set(&mut member.timer_ms, None, || Timer::Member(self.name.clone(), id.clone()));
    }

    /// A member brings new subscriptions and timeouts and waits for the rebalance.
    pub(super) fn update_member(&mut self, id: &Arc<str>, join: &Join, cx: &mut Context) {
        let member = self.members.get_mut(id).expect("only members are updated");
        self.members_size -= member.facts.size();
        discount_supporters(&mut self.supporters, &member.facts.protocols);
        let facts = MemberFacts::of(join);
        let (instance_id, assignment) =
            (member.facts.instance_id.take(), std::mem::take(&mut member.facts.assignment));
        member.facts = MemberFacts { instance_id, assignment, ..facts };
        count_supporters(&mut self.supporters, &member.facts.protocols);
        self.members_size += member.facts.size();
        self.touch(id, cx);
    }

    /// Holds a member's join until the rebalance has gathered everybody.
    pub(super) fn hold_join(&mut self, id: &Arc<str>, ticket: Ticket, cx: &mut Context) {
        let member = self.members.get_mut(id).expect("only members wait");
        match member.joining.replace(ticket) {
            None => self.joining_count += 1,
            // The same member asks again: only its last request counts.
            Some(old) => cx.refuse_join(old, Refusal::RebalanceInProgress, id),
        }
        if member.is_new {
            self.set_deadline(id, cx.limits.new_member_join_ms, cx);
        }
        cx.waiting.insert(ticket, (self.name.clone(), id.clone()));
    }

    /// A static member is back under a new id: it takes the old one's place and assignment.
    pub(super) fn replace_static(&mut self, old_id: &str, new_id: &Arc<str>, cx: &mut Context) {
        let Some((old_id, mut member)) = self.members.remove_entry(old_id) else {
            unreachable!("static members are members");
        };
        self.release(&old_id, &mut member, Refusal::FencedInstance, cx);
        if self.facts.leader.as_deref() == Some(&*old_id) {
            self.facts.leader = Some(new_id.to_string());
        }
        let instance_id = member.facts.instance_id.clone().expect("it is static");
        self.statics.insert(instance_id, new_id.clone());
        self.members.insert(new_id.clone(), member);
        self.touch(new_id, cx);
    }

    /// A member was heard of: its session begins anew.
    pub(super) fn touch(&mut self, id: &Arc<str>, cx: &mut Context) {
        let member = self.members.get(id).expect("only members have sessions");
        self.set_deadline(id, u64::from(member.facts.session_timeout_ms), cx);
    }

    /// Moves a member's deadline. A timer that is early enough stays where it is: when it fires,
    /// it moves on. So a heartbeat costs no change of the timers.
    fn set_deadline(&mut self, id: &Arc<str>, after_ms: u64, cx: &mut Context) {
        let member = self.members.get_mut(id).expect("only members have deadlines");
        member.deadline_ms = cx.now.monotonic_ms + after_ms;
        if member.timer_ms.is_none_or(|timer_ms| timer_ms > member.deadline_ms) {
            cx.timers.set(&mut member.timer_ms, Some(member.deadline_ms), || {
                Timer::Member(self.name.clone(), id.clone())
            });
        }
    }

    /// An id is handed out; it has one session timeout to come back.
    pub(super) fn add_pending(&mut self, id: Arc<str>, session_timeout_ms: u64, cx: &mut Context) {
        let mut timer_ms = None;
        let at_ms = cx.now.monotonic_ms + session_timeout_ms;
        cx.timers.set(&mut timer_ms, Some(at_ms), || Timer::Member(self.name.clone(), id.clone()));
        self.pending.insert(id, timer_ms);
    }

    /// Forgets an id that was handed out; whether there was one.
    pub(super) fn remove_pending(&mut self, id: &str, cx: &mut Context) -> bool {
        let Some((id, mut timer_ms)) = self.pending.remove_entry(id) else {
            return false;
        };
        cx.timers.set(&mut timer_ms, None, || Timer::Member(self.name.clone(), id));
        true
    }

    /// Checks that a member is who it says it is.
    pub(super) fn known_member(
        &self,
        member_id: &str,
        instance_id: Option<&str>,
    ) -> Result<Arc<str>, Refusal> {
        if let Some(instance_id) = instance_id {
            let holder = self.statics.get(instance_id).ok_or(Refusal::UnknownMember)?;
            if **holder != *member_id {
                return Err(Refusal::FencedInstance);
            }
        }
        let (id, _) = self.members.get_key_value(member_id).ok_or(Refusal::UnknownMember)?;
        Ok(id.clone())
    }

    pub(super) fn is_leader(&self, id: &str) -> bool {
        self.facts.leader.as_deref() == Some(id)
    }

    /// Keeps the leader if it joins again, else takes another that does. `false`: nobody joins.
    pub(super) fn elect_leader(&mut self) -> bool {
        let leader = self.facts.leader.as_deref().and_then(|id| self.members.get(id));
        if leader.is_some_and(|leader| leader.joining.is_some()) {
            return true;
        }
        let Some((id, _)) = self.members.iter().find(|(_, member)| member.joining.is_some()) else {
            return false;
        };
        self.facts.leader = Some(id.to_string());
        true
    }

    /// The longest that any member lets a rebalance wait.
    pub(super) fn rebalance_timeout_ms(&self) -> u64 {
        let timeouts = self.members.values().map(|member| member.facts.rebalance_timeout_ms);
        u64::from(timeouts.max().unwrap_or(0))
    }

    /// Everybody with their subscriptions, for the leader.
    pub(super) fn joined_members(&self) -> Vec<JoinedMember> {
        let protocol = self.facts.protocol.as_deref();
        let joined = |(id, member): (&Arc<str>, &Member)| JoinedMember {
            member_id: id.to_string(),
            instance_id: member.facts.instance_id.clone(),
            metadata: member.facts.metadata(protocol),
        };
        self.members.iter().map(joined).collect()
    }

    /// A follower's answer to a join of this generation.
    pub(super) fn joined(&self, id: &str) -> Joined {
        Joined {
            generation: self.facts.generation,
            protocol_type: self.facts.protocol_type.clone().unwrap_or_default(),
            protocol: self.facts.protocol.clone().unwrap_or_default(),
            leader: self.facts.leader.clone().unwrap_or_default(),
            member_id: id.to_owned(),
            skip_assignment: false,
            members: Vec::new(),
        }
    }

    /// A member's answer to a sync of this generation.
    pub(super) fn synced(&self, assignment: Bytes) -> Synced {
        Synced {
            protocol_type: self.facts.protocol_type.clone().unwrap_or_default(),
            protocol: self.facts.protocol.clone().unwrap_or_default(),
            assignment,
        }
    }

    pub(super) fn listing(&self) -> GroupListing {
        GroupListing {
            group: self.name.to_string(),
            protocol_type: self.facts.protocol_type.clone().unwrap_or_default(),
            state: self.state,
        }
    }

    /// For people; subscriptions and assignments belong together only in a stable group.
    pub(super) fn describe(&self) -> GroupDescription {
        let is_stable = self.state == GroupState::Stable;
        let protocol = if is_stable { self.facts.protocol.as_deref() } else { None };
        let describe = |(id, member): (&Arc<str>, &Member)| MemberDescription {
            member_id: id.to_string(),
            instance_id: member.facts.instance_id.clone(),
            client_id: member.facts.client_id.clone(),
            client_host: member.facts.client_host.clone(),
            metadata: member.facts.metadata(protocol),
            assignment: if is_stable { member.facts.assignment.clone() } else { Bytes::new() },
        };
        GroupDescription {
            state: self.state,
            protocol_type: self.facts.protocol_type.clone().unwrap_or_default(),
            protocol: protocol.unwrap_or_default().to_owned(),
            members: self.members.iter().map(describe).collect(),
        }
    }
}

impl Context<'_> {
    pub(super) fn answer_join(&mut self, ticket: Ticket, joined: Joined) {
        self.reply(ticket, GroupReply::Join(Ok(joined)));
    }

    pub(super) fn refuse_join(&mut self, ticket: Ticket, refusal: Refusal, member_id: &str) {
        let refused = JoinRefused { refusal, member_id: member_id.to_owned() };
        self.reply(ticket, GroupReply::Join(Err(refused)));
    }

    pub(super) fn answer_sync(&mut self, ticket: Ticket, result: Result<Synced, Refusal>) {
        self.reply(ticket, GroupReply::Sync(result));
    }
}

fn count_supporters(supporters: &mut BTreeMap<String, usize>, protocols: &[(String, Bytes)]) {
    for (name, _) in protocols {
        match supporters.get_mut(name) {
            Some(count) => *count += 1,
            None => {
                supporters.insert(name.clone(), 1);
            }
        }
    }
}

fn discount_supporters(supporters: &mut BTreeMap<String, usize>, protocols: &[(String, Bytes)]) {
    for (name, _) in protocols {
        let count = supporters.get_mut(name).expect("a member's protocols are counted");
        *count -= 1;
        if *count == 0 {
            supporters.remove(name);
        }
    }
}
