//! Committed offsets: who may commit, when they expire, and which may be deleted.
//!
//! Retention counts from the later of the commit and the moment the group lost its last member
//! (KIP-211): a group with members keeps its offsets.
//! Deliberately absent: expiry of single topics that a group with members does not subscribe to
//! any more. Offsets are kept by topic id and subscriptions by name, and a group knows no names.

use std::collections::BTreeSet;

use tidemill_wal::format::{PartitionId, TopicId};

use super::Context;
use super::membership::Group;
use super::stored::{self, StoredOffset};
use crate::command::{CommittedOffset, GroupState, MemberRef, OffsetCommit, Refusal};
use crate::effect::Change;

/// What an offset costs besides its metadata.
const OFFSET_OVERHEAD_SIZE: usize = 128;

/// An expiry that cannot happen yet (somebody was just handed an id) is tried again after this.
const EXPIRY_RETRY_MS: u64 = 1_000;

impl StoredOffset {
    fn size(&self) -> usize {
        OFFSET_OVERHEAD_SIZE + self.committed.metadata.len()
    }
}

impl Group {
    /// Stores offsets; one result for each.
    pub(super) fn commit(
        &mut self,
        commit: OffsetCommit,
        cx: &mut Context,
    ) -> Vec<Result<(), Refusal>> {
        let refused = |refusal| vec![Err(refusal); commit.offsets.len()];
        if let Err(refusal) = self.check_commit(&commit.member, cx) {
            return refused(refusal);
        }
        let growth = |(partition, offset): &(PartitionId, CommittedOffset)| {
            let old_size = self.offsets.get(partition).map_or(0, StoredOffset::size);
            (OFFSET_OVERHEAD_SIZE + offset.metadata.len()).saturating_sub(old_size)
        };
        let growth: usize = commit.offsets.iter().map(growth).sum();
        if growth > cx.room {
            return refused(Refusal::Busy);
        }
        let commit_ms = cx.now.wall_ms;
        let mut results = Vec::new();
        for (partition, committed) in commit.offsets {
            if committed.metadata.len() > cx.limits.offset_metadata_size_max {
                results.push(Err(Refusal::OffsetMetadataTooLarge));
                continue;
            }
            let offset = StoredOffset { committed, commit_ms };
            cx.out.changes.push(Change {
                key: stored::offset_key(&self.name, partition),
                value: Some(stored::encode_offset(&offset)),
            });
            self.put_offset(partition, offset);
            results.push(Ok(()));
        }
        if self.state == GroupState::Empty && self.timer_ms.is_none() {
            self.schedule_expiry(cx);
        }
        results
    }

    /// A member commits for its generation; anybody may while there are no members.
    fn check_commit(&mut self, who: &MemberRef, cx: &mut Context) -> Result<(), Refusal> {
        let is_outside =
            who.generation < 0 && who.member_id.is_empty() && who.instance_id.is_none();
        match self.state {
            GroupState::Empty | GroupState::Dead if who.generation < 0 => return Ok(()),
            GroupState::Empty
            | GroupState::Dead
            | GroupState::PreparingRebalance
            | GroupState::CompletingRebalance
            | GroupState::Stable => {}
        }
        if is_outside {
            return Err(Refusal::UnknownMember);
        }
        let id = self.known(who)?;
        // A consumer that commits is alive.
        self.touch(&id, cx);
        if self.state == GroupState::CompletingRebalance {
            return Err(Refusal::RebalanceInProgress);
        }
        Ok(())
    }

    /// Puts an offset in its place, without recording it.
    pub(super) fn put_offset(&mut self, partition: PartitionId, offset: StoredOffset) {
        self.offsets_size += offset.size();
        if let Some(old) = self.offsets.insert(partition, offset) {
            self.offsets_size -= old.size();
        }
    }

    /// Forgets an offset; whether there was one.
    pub(super) fn remove_offset(
        &mut self,
        partition: PartitionId,
        changes: &mut Vec<Change>,
    ) -> bool {
        let Some(old) = self.offsets.remove(&partition) else {
            return false;
        };
        self.offsets_size -= old.size();
        changes.push(Change { key: stored::offset_key(&self.name, partition), value: None });
        true
    }

    /// Reads offsets; all there are without a list.
    pub(super) fn fetch_offsets(
        &self,
        partitions: Option<Vec<PartitionId>>,
    ) -> Vec<(PartitionId, Option<CommittedOffset>)> {
        let committed = |offset: &StoredOffset| offset.committed.clone();
        match partitions {
            Some(partitions) => (partitions.into_iter())
                .map(|partition| (partition, self.offsets.get(&partition).map(committed)))
                .collect(),
            None => (self.offsets.iter())
                .map(|(partition, offset)| (*partition, Some(committed(offset))))
                .collect(),
        }
    }

    /// Forgets offsets that no member reads on from; one result for each.
    pub(super) fn delete_offsets(
        &mut self,
        partitions: &[PartitionId],
        topics: &[String],
        cx: &mut Context,
    ) -> Result<Vec<Result<(), Refusal>>, Refusal> {
        let is_consumed = self.consumed(partitions.len(), topics)?;
        let delete = |(partition, is_consumed): (&PartitionId, bool)| {
            if is_consumed {
                return Err(Refusal::SubscribedTopic);
            }
            self.remove_offset(*partition, &mut cx.out.changes);
            Ok(())
        };
        Ok(partitions.iter().zip(is_consumed).map(delete).collect())
    }

    /// For each partition, whether the members subscribe to its topic.
    fn consumed(&self, count: usize, topics: &[String]) -> Result<Vec<bool>, Refusal> {
        if self.members.is_empty() {
            return Ok(vec![false; count]);
        }
        if self.facts.protocol_type.as_deref() != Some("consumer") {
            return Err(Refusal::NonEmptyGroup);
        }
        // Without a chosen protocol, or with a subscription that cannot be read, all are taken.
        let Some(protocol) = self.facts.protocol.as_deref() else {
            return Ok(vec![true; count]);
        };
        let metadata: Vec<_> =
            self.members.values().map(|member| member.facts.metadata(Some(protocol))).collect();
        let mut subscribed = BTreeSet::new();
        for metadata in &metadata {
            let Some(names) = subscribed_topics(metadata) else {
                return Ok(vec![true; count]);
            };
            subscribed.extend(names);
        }
        let is_subscribed = |topic: &String| subscribed.contains(topic.as_str());
        if topics.len() == count {
            return Ok(topics.iter().map(is_subscribed).collect());
        }
        // Names that cannot be told apart by partition: one subscribed topic protects all.
        Ok(vec![topics.iter().any(is_subscribed); count])
    }

    /// Forgets the offsets of a topic that is gone.
    pub(super) fn forget_topic(&mut self, topic: TopicId, changes: &mut Vec<Change>) {
        let first = PartitionId { topic, index: 0 };
        let last = PartitionId { topic, index: u32::MAX };
        let gone: Vec<PartitionId> =
            self.offsets.range(first..=last).map(|(key, _)| *key).collect();
        for partition in gone {
            self.remove_offset(partition, changes);
        }
    }

    /// Forgets an empty group and all that it has; nothing remains of it in the state.
    pub(super) fn delete(&mut self, cx: &mut Context) {
        assert!(self.members.is_empty(), "only empty groups are deleted");
        while let Some((partition, _)) = self.offsets.first_key_value() {
            self.remove_offset(*partition, &mut cx.out.changes);
        }
        while let Some((id, _)) = self.pending.first_key_value() {
            let id = id.clone();
            self.remove_pending(&id, cx);
        }
        if self.is_stored {
            cx.out.changes.push(Change { key: stored::group_key(&self.name), value: None });
            self.is_stored = false;
        }
    }

    /// The timer of an empty group: offsets that nobody came back for go, and then the group.
    pub(super) fn on_expiry_timeout(&mut self, cx: &mut Context) {
        assert_eq!(self.state, GroupState::Empty);
        let expired: Vec<PartitionId> = (self.offsets.iter())
            .filter(|(_, offset)| self.offset_expires_ms(offset, cx) <= cx.now.wall_ms)
            .map(|(partition, _)| *partition)
            .collect();
        for partition in expired {
            self.remove_offset(partition, &mut cx.out.changes);
        }
        if self.offsets.is_empty()
            && self.pending.is_empty()
            && self.group_expires_ms(cx) <= cx.now.wall_ms
        {
            self.delete(cx);
        } else {
            self.schedule_expiry(cx);
        }
    }

    /// Sets the timer of an empty group.
    pub(super) fn schedule_expiry(&mut self, cx: &mut Context) {
        let first_ms = self.offsets.values().map(|offset| self.offset_expires_ms(offset, cx)).min();
        let expires_ms = first_ms.unwrap_or_else(|| self.group_expires_ms(cx));
        self.set_timer(Some(Self::expiry_timer_ms(expires_ms, cx)), cx);
    }

    /// A wall clock time as one for the timer, or soon if it has passed.
    pub(super) fn expiry_timer_ms(expires_ms: i64, cx: &Context) -> u64 {
        let wait_ms = u64::try_from(expires_ms.saturating_sub(cx.now.wall_ms)).unwrap_or(0);
        cx.now.monotonic_ms.saturating_add(wait_ms.max(EXPIRY_RETRY_MS))
    }

    /// When an offset of an empty group expires.
    pub(super) fn offset_expires_ms(&self, offset: &StoredOffset, cx: &Context) -> i64 {
        let since_ms = self.facts.empty_since_ms.unwrap_or(i64::MIN).max(offset.commit_ms);
        since_ms.saturating_add_unsigned(cx.limits.offsets_retention_ms)
    }

    /// When an empty group without offsets goes.
    fn group_expires_ms(&self, cx: &Context) -> i64 {
        let since_ms = self.facts.empty_since_ms.unwrap_or(cx.now.wall_ms);
        since_ms.saturating_add_unsigned(cx.limits.empty_group_ms)
    }
}

/// Topic names in a subscription of Kafka's consumer protocol, which begins with a version and an
/// array of strings in every version. `None`: it is something else.
fn subscribed_topics(metadata: &[u8]) -> Option<Vec<&str>> {
    let (_version, rest) = metadata.split_at_checked(2)?;
    let (count, mut rest) = rest.split_first_chunk()?;
    let mut topics = Vec::new();
    for _ in 0..i32::from_be_bytes(*count) {
        let (size, after) = rest.split_first_chunk()?;
        let size = usize::try_from(i16::from_be_bytes(*size)).ok()?;
        let (name, after) = after.split_at_checked(size)?;
        topics.push(std::str::from_utf8(name).ok()?);
        rest = after;
    }
    Some(topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscriptions_are_read_within_their_bounds() {
        let subscription = b"\0\x01\0\0\0\x02\0\x01a\0\x02bc\xff\xff\xff\xff";
        assert_eq!(subscribed_topics(subscription), Some(vec!["a", "bc"]));
        for size in 0..13 {
            assert_eq!(subscribed_topics(&subscription[..size]), None, "cut at {size}");
        }
        assert_eq!(subscribed_topics(b"\0\0\x7f\xff\xff\xff"), None);
        assert_eq!(subscribed_topics(b"\0\0\0\0\0\x01\xff\xff"), None);
    }
}
