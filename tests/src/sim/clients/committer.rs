//! Commits offsets outside a membership, and reads them back.

use tidemill::command::{
    Command, CommittedOffset, GroupCommand, GroupReply, MemberRef, OffsetCommit, Refusal, Reply,
    group_shard,
};

use super::{Asked, Context, unexpected};
use crate::sim::model::Check;

/// Open commits at most.
const OPEN_MAX: usize = 3;

/// Stores progress that only grows.
#[derive(Debug)]
pub struct Committer {
    group: String,
    next: u64,
    open: usize,
    pause_us: u64,
}

impl Committer {
    /// A committer for a group of its own.
    pub fn new(group: String, pause_us: u64) -> Self {
        Self { group, next: 1, open: 0, pause_us }
    }

    pub(super) fn act(&mut self, cx: &mut Context<'_>) -> u64 {
        let pause_us = cx.random.between(1, 2 * self.pause_us);
        let alive = cx.model.alive();
        if self.open >= OPEN_MAX || alive.is_empty() || cx.is_draining {
            return pause_us;
        }
        self.open += 1;
        let shard = group_shard(&self.group, cx.shard_count);
        if cx.random.one_in(5) {
            let partitions = cx.random.one_in(2).then(|| vec![cx.random.choose(&alive).0]);
            let command = GroupCommand::OffsetFetch { group: self.group.clone(), partitions };
            let asked = Asked::Committed(self.group.clone());
            cx.asked.push((shard, Command::Group(command), asked));
            return pause_us;
        }
        let mut offsets = Vec::new();
        for _ in 0..cx.random.between(1, 3) {
            let (partition, _) = cx.random.choose(&alive);
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
        cx.asked.push(commit(cx.shard_count, member, &offsets, cx.model));
        pause_us
    }

    pub(super) fn on_reply(&mut self, cx: &mut Context<'_>, asked: Asked, reply: Reply) -> Check {
        self.open -= 1;
        on_committed(cx, asked, reply)
    }

    pub(super) fn on_restart(&mut self) {
        self.open = 0;
    }
}

/// A commit, with the model told.
pub(super) fn commit(
    shard_count: u16,
    member: MemberRef,
    offsets: &[(tidemill_wal::format::PartitionId, u64)],
    model: &mut crate::sim::model::Model,
) -> (tidemill_wal::format::ShardId, Command, Asked) {
    let group = member.group.clone();
    for (partition, offset) in offsets {
        model.on_commit_asked(&group, *partition, *offset);
    }
    let stored = |offset| CommittedOffset { offset, leader_epoch: -1, metadata: String::new() };
    let command = GroupCommand::OffsetCommit(OffsetCommit {
        member,
        offsets: offsets.iter().map(|(partition, offset)| (*partition, stored(*offset))).collect(),
    });
    let shard = group_shard(&group, shard_count);
    (shard, Command::Group(command), Asked::Commit(group, offsets.to_vec()))
}

/// Checks the answer to a commit or a read of offsets.
pub(super) fn on_committed(cx: &mut Context<'_>, asked: Asked, reply: Reply) -> Check {
    match (asked, reply) {
        (Asked::Commit(group, offsets), Reply::Group(GroupReply::OffsetCommit(results))) => {
            for ((partition, offset), result) in offsets.into_iter().zip(results) {
                cx.model.on_commit(&group, partition, offset, result.is_ok());
            }
        }
        (Asked::Commit(group, offsets), Reply::Refused(refusal)) => {
            if !matches!(refusal, Refusal::Busy | Refusal::DiskFull | Refusal::Stopping) {
                return Err(format!("a commit of {group} is refused: {refusal:?}"));
            }
            for (partition, offset) in offsets {
                cx.model.on_commit(&group, partition, offset, false);
            }
        }
        (Asked::Committed(group), Reply::Group(GroupReply::OffsetFetch(Ok(shown)))) => {
            for (partition, committed) in shown {
                let offset = committed.map(|committed| committed.offset);
                cx.model.on_committed_shown(&group, partition, offset)?;
            }
        }
        (Asked::Committed(_), Reply::Refused(_)) => {}
        (asked, reply) => return unexpected(&asked, &reply),
    }
    Ok(())
}
