//! Commits offsets outside a membership, reads them back, and removes them.

use tidemill::command::{
    Command, CommittedOffset, GroupCommand, GroupReply, MemberRef, OffsetCommit, Reply, group_shard,
};
use tidemill_wal::format::{PartitionId, ShardId};

use super::{Asked, Context, unexpected};
use crate::sim::model::{Check, MemberAsked, Model};

/// Open requests at most.
const OPEN_MAX: usize = 3;

/// Stores progress that only grows, until it is removed.
#[derive(Debug)]
pub struct Committer {
    group: String,
    /// A group with members, which it tries to remove.
    other_group: String,
    next: u64,
    open: usize,
    pause_us: u64,
}

impl Committer {
    /// A committer for a group of its own.
    pub fn new(group: String, other_group: String, pause_us: u64) -> Self {
        Self { group, other_group, next: 1, open: 0, pause_us }
    }

    pub(super) fn act(&mut self, cx: &mut Context<'_>) -> u64 {
        let pause_us = cx.random.between(1, 2 * self.pause_us);
        let alive = cx.model.alive();
        if self.open > 0 && cx.random.one_in(50) {
            self.open = 0;
            cx.is_disconnecting = true;
        }
        if self.open >= OPEN_MAX || alive.is_empty() || cx.is_draining {
            return pause_us;
        }
        self.open += 1;
        let (partition, _) = cx.random.choose(&alive);
        match cx.random.below(40) {
            0..8 => self.read(cx, partition),
            8..10 => self.remove_offset(cx, partition),
            10 => self.remove_group(cx),
            _ => self.commit(cx, &alive),
        }
        pause_us
    }

    fn ask(&self, cx: &mut Context<'_>, group: &str, command: GroupCommand, asked: Asked) {
        cx.asked.push((group_shard(group, cx.shard_count), Command::Group(command), asked));
    }

    fn read(&mut self, cx: &mut Context<'_>, partition: PartitionId) {
        let partitions = cx.random.one_in(2).then(|| vec![partition]);
        let group = self.group.clone();
        let asked = Asked::Committed {
            group: group.clone(),
            is_all: partitions.is_none(),
            gone_count: cx.model.gone_count(),
        };
        self.ask(cx, &self.group, GroupCommand::OffsetFetch { group, partitions }, asked);
    }

    fn remove_offset(&mut self, cx: &mut Context<'_>, partition: PartitionId) {
        let offsets = vec![(partition, None)];
        cx.model.on_commit_asked(&self.group, &offsets);
        let name = cx.model.topic(partition.topic).map(|topic| topic.name.to_string());
        let command = GroupCommand::OffsetDelete {
            group: self.group.clone(),
            partitions: vec![partition],
            topics: name.into_iter().collect(),
        };
        self.ask(cx, &self.group, command, Asked::Commit(self.group.clone(), offsets, None));
    }

    fn remove_group(&mut self, cx: &mut Context<'_>) {
        let group = cx.random.choose(&[&self.group, &self.other_group]);
        cx.model.on_removal_asked(group);
        self.ask(cx, group, GroupCommand::Delete(group.clone()), Asked::RemoveGroup(group.clone()));
    }

    fn commit(&mut self, cx: &mut Context<'_>, alive: &[(PartitionId, ShardId)]) {
        let mut offsets = Vec::new();
        for _ in 0..cx.random.between(1, 3) {
            let (partition, _) = cx.random.choose(alive);
            if offsets.iter().all(|(known, _)| *known != partition) {
                offsets.push((partition, self.next));
                self.next += 1;
            }
        }
        let member = MemberRef {
            group: self.group.clone(),
            generation: -1,
            member_id: String::new(),
            instance_id: None,
        };
        cx.asked.push(commit(cx.shard_count, member, None, &offsets, cx.model));
    }

    pub(super) fn on_reply(&mut self, _: &mut Context<'_>, asked: Asked, reply: Reply) -> Check {
        self.open -= 1;
        match (&asked, &reply) {
            (_, Reply::Refused(_))
            | (Asked::Commit(..), Reply::Group(_))
            | (Asked::Committed { .. }, Reply::Group(GroupReply::OffsetFetch(Ok(_))))
            | (Asked::RemoveGroup(_), Reply::Group(GroupReply::Delete(_))) => Ok(()),
            _ => unexpected(&asked, &reply),
        }
    }

    pub(super) fn on_restart(&mut self) {
        self.open = 0;
    }
}

/// A commit, with the model told.
pub(super) fn commit(
    shard_count: u16,
    who: MemberRef,
    member: Option<MemberAsked>,
    offsets: &[(PartitionId, u64)],
    model: &mut Model,
) -> (ShardId, Command, Asked) {
    let group = who.group.clone();
    let asked: Vec<(PartitionId, Option<u64>)> =
        offsets.iter().map(|(partition, offset)| (*partition, Some(*offset))).collect();
    model.on_commit_asked(&group, &asked);
    let stored = |offset| CommittedOffset { offset, leader_epoch: -1, metadata: String::new() };
    let command = GroupCommand::OffsetCommit(OffsetCommit {
        member: who,
        offsets: offsets.iter().map(|(partition, offset)| (*partition, stored(*offset))).collect(),
    });
    let shard = group_shard(&group, shard_count);
    (shard, Command::Group(command), Asked::Commit(group, asked, member))
}
