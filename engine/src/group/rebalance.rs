//! How members come, agree and go: Apache Kafka's classic group protocol.
//!
//! ```text
//!            first join                 all joined, or time is up
//!   Empty ----------------> Preparing ----------------------------> Completing
//!     ^                      ^   |   ^                                |     |
//!     |     nobody is left   |   |   | join with news, leave, expiry  |     |
//!     +----------------------|---+   +--------------------------------+     |
//!                            |                                              |
//!                            +-------------- Stable <-----------------------+
//!                               same                    leader's sync
//! ```
//!
//! Joins are held while the group gathers and answered together, with a new generation; syncs are
//! held until the leader brings the assignment. The state is stored when an assignment is there,
//! when the group empties, when a static member's place changes hands in a stable group, and, if
//! there are static members, when joins are answered: a static member must never meet a restarted
//! node that knows it only under its former id, for being fenced is final to a client.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_wal::mutation::{self, Mutation};

use super::membership::{self, FirstRebalance, Group};
use super::stored::MemberFacts;
use super::{Context, GroupLimits, JOIN_PROTOCOL_COUNT_MAX, NAME_SIZE_MAX};
use crate::command::{GroupState, Join, LeavingMember, MemberRef, Refusal, Sync, Ticket};

/// What any group would refuse about a join.
pub(super) fn check_join(join: &Join, limits: &GroupLimits) -> Result<(), Refusal> {
    let timeouts = limits.session_timeout_ms_min..=limits.session_timeout_ms_max;
    if !u32::try_from(join.session_timeout_ms).is_ok_and(|timeout| timeouts.contains(&timeout)) {
        return Err(Refusal::InvalidSessionTimeout);
    }
    let instance_size = join.instance_id.as_ref().map_or(0, String::len);
    let is_named_well = instance_size <= NAME_SIZE_MAX
        && join.protocol_type.len() <= NAME_SIZE_MAX
        && join.protocols.iter().all(|(name, _)| name.len() <= NAME_SIZE_MAX);
    let is_repeated = |(index, (name, _)): (usize, &(String, Bytes))| {
        join.protocols[..index].iter().any(|(earlier, _)| earlier == name)
    };
    if !is_named_well
        || join.protocols.len() > JOIN_PROTOCOL_COUNT_MAX
        || join.protocols.iter().enumerate().any(is_repeated)
    {
        return Err(Refusal::InvalidRequest);
    }
    let metadata_size: usize = join.protocols.iter().map(|(_, metadata)| metadata.len()).sum();
    if metadata_size > limits.member_metadata_size_max {
        return Err(Refusal::PolicyViolation);
    }
    Ok(())
}

impl Group {
    /// A checked join. Answered at once, or held until the rebalance is complete.
    pub(super) fn join(&mut self, ticket: Ticket, join: &Join, cx: &mut Context) {
        // A static member that comes back without its id has the place that it had.
        let returned = join.instance_id.as_ref().and_then(|id| self.statics.get(id)).cloned();
        let place = match &returned {
            Some(id) if join.member_id.is_empty() => id,
            _ => join.member_id.as_str(),
        };
        if !self.has_place_for(place, cx.limits.member_count_max) {
            return self.turn_away(ticket, place, cx);
        }
        if !self.supports(&join.protocol_type, &join.protocols) {
            return cx.refuse_join(ticket, Refusal::InconsistentProtocol, &join.member_id);
        }
        if let Err(refusal) = self.check_growth(join, cx) {
            return cx.refuse_join(ticket, refusal, &join.member_id);
        }
        if join.member_id.is_empty() {
            self.join_new(ticket, join, cx);
        } else if self.pending.contains_key(join.member_id.as_str()) {
            self.join_pending(ticket, join, cx);
        } else {
            match self.known_member(&join.member_id, join.instance_id.as_deref()) {
                Ok(id) => self.rejoin(ticket, &id, join, cx),
                Err(refusal) => cx.refuse_join(ticket, refusal, &join.member_id),
            }
        }
    }

    /// No place in the group, not even for a member if the limit is lower than it was.
    fn turn_away(&mut self, ticket: Ticket, member_id: &str, cx: &mut Context) {
        cx.refuse_join(ticket, Refusal::GroupFull, "");
        if self.members.contains_key(member_id) {
            self.remove_member(member_id, Refusal::GroupFull, cx);
            self.after_removal(cx);
        } else if self.remove_pending(member_id, cx) {
            self.complete_join_if_all_joined(cx);
        }
    }

    /// Members have a place; while the group gathers, it belongs to whoever is there first.
    fn has_place_for(&self, member_id: &str, member_count_max: usize) -> bool {
        let member = self.members.get(member_id);
        let is_full = match self.state {
            GroupState::Empty | GroupState::Dead => false,
            GroupState::PreparingRebalance => {
                member.is_none_or(|member| member.joining.is_none())
                    && self.joining_count >= member_count_max
            }
            GroupState::CompletingRebalance | GroupState::Stable => {
                member.is_none() && self.members.len() >= member_count_max
            }
        };
        !is_full && (!member_id.is_empty() || self.pending.len() < member_count_max)
    }

    fn check_growth(&self, join: &Join, cx: &Context) -> Result<(), Refusal> {
        let new_size = MemberFacts::of(join).size();
        let old_size =
            self.members.get(join.member_id.as_str()).map_or(0, |member| member.facts.size());
        let growth = new_size.saturating_sub(old_size);
        if self.members_size + growth > cx.limits.members_size_max {
            return Err(Refusal::GroupFull);
        }
        if growth > cx.room { Err(Refusal::Busy) } else { Ok(()) }
    }

    fn join_new(&mut self, ticket: Ticket, join: &Join, cx: &mut Context) {
        match &join.instance_id {
            Some(instance_id) => {
                let new_id = cx.new_member_id(instance_id);
                match self.statics.get(instance_id).cloned() {
                    Some(old_id) => self.join_returned(ticket, join, &old_id, &new_id, cx),
                    None => self.admit(ticket, join, new_id, cx),
                }
            }
            None => {
                let new_id = cx.new_member_id(membership::truncated(&join.client_id));
                if join.member_id_required {
                    // A client that never hears its id must not leave a member behind (KIP-394).
                    let session_timeout_ms = u64::from(MemberFacts::of(join).session_timeout_ms);
                    cx.refuse_join(ticket, Refusal::MemberIdRequired, &new_id);
                    self.add_pending(new_id, session_timeout_ms, cx);
                } else {
                    self.admit(ticket, join, new_id, cx);
                }
            }
        }
    }

    fn join_pending(&mut self, ticket: Ticket, join: &Join, cx: &mut Context) {
        if join.instance_id.is_some() {
            // Ids are handed out in advance to dynamic members only.
            return cx.refuse_join(ticket, Refusal::UnknownMember, &join.member_id);
        }
        let was_pending = self.remove_pending(&join.member_id, cx);
        assert!(was_pending);
        self.admit(ticket, join, Arc::from(join.member_id.as_str()), cx);
    }

    /// A new member: the group rebalances.
    fn admit(&mut self, ticket: Ticket, join: &Join, id: Arc<str>, cx: &mut Context) {
        self.add_member(id.clone(), MemberFacts::of(join), &join.protocol_type, cx);
        self.hold_join(&id, ticket, cx);
        self.rebalance(cx);
    }

    /// A static member is back without its id, as after a restart of its process (KIP-345).
    fn join_returned(
        &mut self,
        ticket: Ticket,
        join: &Join,
        old_id: &str,
        new_id: &Arc<str>,
        cx: &mut Context,
    ) {
        let was_leader = self.is_leader(old_id);
        self.replace_static(old_id, new_id, cx);
        self.update_member(new_id, join, cx);
        let is_stable = self.state == GroupState::Stable;
        if !is_stable || self.select_protocol() != self.facts.protocol {
            self.hold_join(new_id, ticket, cx);
            return self.rebalance(cx);
        }
        self.store(cx);
        let mut joined = self.joined(new_id);
        if was_leader && join.can_skip_assignment {
            // It leads, and knows the members, but must leave the assignment alone (KIP-814).
            joined.skip_assignment = true;
            joined.members = self.joined_members();
        } else if was_leader {
            // An older client must not believe that it leads: it would assign anew.
            joined.leader = old_id.to_owned();
        }
        cx.answer_join(ticket, joined);
    }

    fn rejoin(&mut self, ticket: Ticket, id: &Arc<str>, join: &Join, cx: &mut Context) {
        let has_news = self.members[id].facts.protocols != join.protocols;
        let is_answered = match self.state {
            // Its answer was lost: the generation is still the one it gets.
            GroupState::CompletingRebalance => !has_news,
            // A leader that joins again has seen news that its subscription does not show.
            GroupState::Stable => !has_news && !self.is_leader(id),
            GroupState::PreparingRebalance | GroupState::Empty | GroupState::Dead => false,
        };
        if is_answered {
            self.touch(id, cx);
            let mut joined = self.joined(id);
            if self.state == GroupState::CompletingRebalance && self.is_leader(id) {
                joined.members = self.joined_members();
            }
            return cx.answer_join(ticket, joined);
        }
        self.update_member(id, join, cx);
        self.hold_join(id, ticket, cx);
        self.rebalance(cx);
    }

    /// Begins a rebalance, or goes on with the one under way.
    fn rebalance(&mut self, cx: &mut Context) {
        match self.state {
            GroupState::Empty | GroupState::CompletingRebalance | GroupState::Stable => {
                self.prepare_rebalance(cx);
            }
            GroupState::PreparingRebalance => self.complete_join_if_all_joined(cx),
            GroupState::Dead => unreachable!("a dead group is not kept"),
        }
    }

    /// Goes on after members went.
    pub(super) fn after_removal(&mut self, cx: &mut Context) {
        if self.state != GroupState::Empty {
            self.rebalance(cx);
        }
    }

    fn prepare_rebalance(&mut self, cx: &mut Context) {
        let syncing: Vec<Arc<str>> = (self.members.iter())
            .filter(|(_, member)| member.syncing.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        for id in syncing {
            let ticket = self.members.get_mut(&id).and_then(|member| member.syncing.take());
            cx.answer_sync(ticket.expect("it is syncing"), Err(Refusal::RebalanceInProgress));
            self.touch(&id, cx);
        }
        let is_first = self.state == GroupState::Empty && self.facts.generation == 0;
        let delay_ms = cx.limits.initial_rebalance_delay_ms;
        self.state = GroupState::PreparingRebalance;
        self.facts.empty_since_ms = None;
        if is_first && delay_ms > 0 {
            let remaining_ms = self.rebalance_timeout_ms().saturating_sub(delay_ms);
            self.first_rebalance = Some(FirstRebalance { grew: false, remaining_ms });
            self.set_timer(Some(cx.now.monotonic_ms + delay_ms), cx);
        } else {
            self.wait_for_joins(cx);
            self.complete_join_if_all_joined(cx);
        }
    }

    /// Gives members that did not join yet the rebalance timeout to do so.
    pub(super) fn wait_for_joins(&mut self, cx: &mut Context) {
        self.set_timer(Some(cx.now.monotonic_ms + self.rebalance_timeout_ms()), cx);
    }

    /// A group with members waits for those that were handed an id, too: they are about to join.
    pub(super) fn complete_join_if_all_joined(&mut self, cx: &mut Context) {
        let nobody_is_awaited = self.members.is_empty()
            || (self.joining_count == self.members.len() && self.pending.is_empty());
        if self.state == GroupState::PreparingRebalance
            && self.first_rebalance.is_none()
            && nobody_is_awaited
        {
            self.complete_join(cx);
        }
    }

    /// The group's timer while it gathers.
    pub(super) fn on_join_timeout(&mut self, cx: &mut Context) {
        assert_eq!(self.state, GroupState::PreparingRebalance);
        if let Some(first) = &mut self.first_rebalance
            && first.grew
            && first.remaining_ms > 0
        {
            let delay_ms = cx.limits.initial_rebalance_delay_ms.min(first.remaining_ms);
            first.grew = false;
            first.remaining_ms -= delay_ms;
            return self.set_timer(Some(cx.now.monotonic_ms + delay_ms), cx);
        }
        self.complete_join(cx);
    }

    /// Whoever is here makes the next generation; static members keep their place while their
    /// session lasts.
    fn complete_join(&mut self, cx: &mut Context) {
        self.first_rebalance = None;
        let absent: Vec<Arc<str>> = (self.members.iter())
            .filter(|(_, member)| member.joining.is_none() && member.facts.instance_id.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        for id in absent {
            self.remove_member(&id, Refusal::UnknownMember, cx);
        }
        if self.members.is_empty() {
            return self.become_empty(cx);
        }
        if !self.elect_leader() {
            // Static members only, and none is back: their sessions decide.
            return self.wait_for_joins(cx);
        }
        self.begin_generation(cx);
        self.answer_joins(cx);
    }

    fn begin_generation(&mut self, cx: &mut Context) {
        self.facts.generation = self.facts.generation.checked_add(1).unwrap_or(1);
        self.facts.protocol = self.select_protocol();
        assert!(self.facts.protocol.is_some(), "nobody is admitted without a shared protocol");
        self.state = GroupState::CompletingRebalance;
        if !self.statics.is_empty() {
            self.store(cx);
        }
        // A member that does not fetch its assignment holds up its partitions: it has as long as
        // it had to join.
        self.set_timer(Some(cx.now.monotonic_ms + self.rebalance_timeout_ms()), cx);
    }

    fn answer_joins(&mut self, cx: &mut Context) {
        let mut for_leader = Some(self.joined_members());
        let ids: Vec<Arc<str>> = self.members.keys().cloned().collect();
        self.unsynced_count = self.joining_count;
        self.joining_count = 0;
        for id in &ids {
            let member = self.members.get_mut(id).expect("its key was just read");
            member.is_new = false;
            // An absent static member is not awaited: its session alone decides.
            member.synced = member.joining.is_none();
            if let Some(ticket) = member.joining.take() {
                let mut joined = self.joined(id);
                if self.is_leader(id) {
                    joined.members = for_leader.take().expect("one member leads");
                }
                cx.answer_join(ticket, joined);
                self.touch(id, cx);
            }
        }
    }

    /// The last member is gone; offsets remain for their retention.
    fn become_empty(&mut self, cx: &mut Context) {
        self.state = GroupState::Empty;
        self.facts.leader = None;
        self.facts.protocol = None;
        self.unsynced_count = 0;
        if self.facts.generation == 0 {
            // Nobody ever learned of it.
            self.facts.protocol_type = None;
            self.set_timer(None, cx);
            return self.schedule_expiry(cx);
        }
        self.facts.generation = self.facts.generation.checked_add(1).unwrap_or(1);
        self.facts.empty_since_ms = Some(cx.now.wall_ms);
        self.store(cx);
        self.schedule_expiry(cx);
    }

    /// A member asks for its assignment. Answered at once, or held until the leader brings it.
    pub(super) fn sync(&mut self, ticket: Ticket, sync: &Sync, cx: &mut Context) {
        match self.check_sync(sync) {
            Err(refusal) => cx.answer_sync(ticket, Err(refusal)),
            Ok(id) if self.state == GroupState::Stable => {
                self.mark_synced(&id, cx);
                self.touch(&id, cx);
                let assignment = self.members[&id].facts.assignment.clone();
                let synced = self.synced(assignment);
                cx.answer_sync(ticket, Ok(synced));
            }
            Ok(id) => self.hold_sync(ticket, &id, sync, cx),
        }
    }

    fn check_sync(&self, sync: &Sync) -> Result<Arc<str>, Refusal> {
        let id = self.known(&sync.member)?;
        let differs = |sent: &Option<String>, known: &Option<String>| {
            sent.is_some() && sent.as_deref() != known.as_deref()
        };
        if differs(&sync.protocol_type, &self.facts.protocol_type)
            || differs(&sync.protocol, &self.facts.protocol)
        {
            return Err(Refusal::InconsistentProtocol);
        }
        match self.state {
            GroupState::Empty | GroupState::Dead => Err(Refusal::UnknownMember),
            GroupState::PreparingRebalance => Err(Refusal::RebalanceInProgress),
            GroupState::CompletingRebalance | GroupState::Stable => Ok(id),
        }
    }

    fn hold_sync(&mut self, ticket: Ticket, id: &Arc<str>, sync: &Sync, cx: &mut Context) {
        if self.is_leader(id)
            && let Err(refusal) = self.check_assignment(sync, cx)
        {
            return cx.answer_sync(ticket, Err(refusal));
        }
        let member = self.members.get_mut(id).expect("it was just looked up");
        if let Some(old) = member.syncing.replace(ticket) {
            cx.answer_sync(old, Err(Refusal::RebalanceInProgress));
        }
        cx.waiting.insert(ticket, (self.name.clone(), id.clone()));
        self.mark_synced(id, cx);
        if self.is_leader(id) {
            self.assign(&sync.assignments, cx);
        }
    }

    fn check_assignment(&self, sync: &Sync, cx: &Context) -> Result<(), Refusal> {
        let new_size: usize = sync.assignments.iter().map(|(_, bytes)| bytes.len()).sum();
        let old_size: usize =
            self.members.values().map(|member| member.facts.assignment.len()).sum();
        if self.members_size - old_size + new_size > cx.limits.members_size_max {
            return Err(Refusal::PolicyViolation);
        }
        if new_size.saturating_sub(old_size) > cx.room { Err(Refusal::Busy) } else { Ok(()) }
    }

    /// The leader has spoken: the group is stable.
    fn assign(&mut self, assignments: &[(String, Bytes)], cx: &mut Context) {
        let assignments: HashMap<&str, &Bytes> =
            assignments.iter().map(|(id, assignment)| (id.as_str(), assignment)).collect();
        for (id, member) in &mut self.members {
            let assignment = assignments.get(&**id).map(|bytes| Bytes::copy_from_slice(bytes));
            self.members_size -= member.facts.assignment.len();
            member.facts.assignment = assignment.unwrap_or_default();
            self.members_size += member.facts.assignment.len();
        }
        self.state = GroupState::Stable;
        self.store(cx);
        let ids: Vec<Arc<str>> = self.members.keys().cloned().collect();
        for id in &ids {
            let member = self.members.get_mut(id).expect("its key was just read");
            if let Some(ticket) = member.syncing.take() {
                let assignment = member.facts.assignment.clone();
                let synced = self.synced(assignment);
                cx.answer_sync(ticket, Ok(synced));
                self.touch(id, cx);
            }
        }
    }

    fn mark_synced(&mut self, id: &Arc<str>, cx: &mut Context) {
        let member = self.members.get_mut(id).expect("only members sync");
        if !member.synced {
            member.synced = true;
            self.unsynced_count -= 1;
        }
        if self.unsynced_count == 0 {
            self.set_timer(None, cx);
        }
    }

    /// The group's timer once the joins are answered: whoever did not fetch its assignment is out.
    pub(super) fn on_sync_timeout(&mut self, cx: &mut Context) {
        let late: Vec<Arc<str>> = (self.members.iter())
            .filter(|(_, member)| !member.synced)
            .map(|(id, _)| id.clone())
            .collect();
        assert!(!late.is_empty(), "the timer ends with the last sync");
        for id in late {
            self.remove_member(&id, Refusal::UnknownMember, cx);
        }
        self.after_removal(cx);
    }

    /// A member is alive.
    pub(super) fn heartbeat(&mut self, who: &MemberRef, cx: &mut Context) -> Result<(), Refusal> {
        let id = self.known(who)?;
        self.touch(&id, cx);
        match self.state {
            GroupState::Empty | GroupState::Dead => Err(Refusal::UnknownMember),
            GroupState::PreparingRebalance => Err(Refusal::RebalanceInProgress),
            GroupState::CompletingRebalance | GroupState::Stable => Ok(()),
        }
    }

    /// The member that asks, if it is one and of this generation.
    pub(super) fn known(&self, who: &MemberRef) -> Result<Arc<str>, Refusal> {
        let id = self.known_member(&who.member_id, who.instance_id.as_deref())?;
        let takes_old = mutation::is_on(Mutation::TakeOldGeneration);
        if who.generation == self.facts.generation || takes_old {
            Ok(id)
        } else {
            Err(Refusal::IllegalGeneration)
        }
    }

    /// Members go; one rebalance for all of them.
    pub(super) fn leave(
        &mut self,
        leaving: &[LeavingMember],
        cx: &mut Context,
    ) -> Vec<Result<(), Refusal>> {
        let count = self.members.len();
        let results = leaving.iter().map(|member| self.leave_one(member, cx)).collect();
        if self.members.len() < count {
            self.after_removal(cx);
        } else {
            self.complete_join_if_all_joined(cx);
        }
        results
    }

    fn leave_one(&mut self, leaving: &LeavingMember, cx: &mut Context) -> Result<(), Refusal> {
        let id = match &leaving.instance_id {
            // An operator removes whoever holds the instance id.
            Some(instance_id) if leaving.member_id.is_empty() => {
                self.statics.get(instance_id).cloned().ok_or(Refusal::UnknownMember)?
            }
            instance_id => {
                if self.remove_pending(&leaving.member_id, cx) {
                    return Ok(());
                }
                self.known_member(&leaving.member_id, instance_id.as_deref())?
            }
        };
        self.remove_member(&id, Refusal::UnknownMember, cx);
        Ok(())
    }

    /// A member's timer fired: its session may be over, or an id was never used.
    pub(super) fn on_member_timer(&mut self, id: &Arc<str>, cx: &mut Context) {
        if self.pending.remove(id).is_some() {
            return self.complete_join_if_all_joined(cx);
        }
        let Some(member) = self.members.get_mut(id) else {
            unreachable!("a member's timer goes with it");
        };
        member.timer_ms = None;
        let is_held = member.syncing.is_some() || (member.joining.is_some() && !member.is_new);
        if is_held {
            // Its session begins anew with the answer.
            return;
        }
        if member.deadline_ms > cx.now.monotonic_ms {
            let at_ms = Some(member.deadline_ms);
            let timer = || super::Timer::Member(self.name.clone(), id.clone());
            return cx.timers.set(&mut member.timer_ms, at_ms, timer);
        }
        self.remove_member(id, Refusal::UnknownMember, cx);
        self.after_removal(cx);
    }

    /// The connection behind a held join or sync is gone.
    pub(super) fn on_cancel(&mut self, id: &Arc<str>, ticket: Ticket, cx: &mut Context) {
        let member = self.members.get_mut(id).expect("tickets of members that went are answered");
        if member.syncing == Some(ticket) {
            member.syncing = None;
            return self.touch(id, cx);
        }
        assert_eq!(member.joining, Some(ticket), "a waiting ticket belongs to a held request");
        member.joining = None;
        self.joining_count -= 1;
        if member.is_new && member.facts.instance_id.is_none() {
            // It never was part of a generation, and comes back as somebody new.
            self.remove_member(id, Refusal::UnknownMember, cx);
            self.after_removal(cx);
        } else {
            self.touch(id, cx);
        }
    }
}

impl Context<'_> {
    /// An id that no member ever had or will have again.
    fn new_member_id(&mut self, name: &str) -> Arc<str> {
        self.ids.next(name)
    }
}
