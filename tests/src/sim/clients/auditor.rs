//! Reads everything after a recovery: each partition from its start to its end, and each group's
//! committed offsets.

use std::collections::BTreeMap;

use tidemill::command::{
    Command, Fetch, FetchPartition, GroupCommand, GroupReply, Refusal, Reply, group_shard,
};
use tidemill_wal::format::{PartitionId, ShardId};

use super::answer::next_offset;
use super::{Asked, Context, unexpected};
use crate::sim::model::Check;

/// Fetches in a row that may come back empty: their file went while it was read.
const EMPTY_MAX: u32 = 50;

/// Reads and compares.
#[derive(Debug, Default)]
pub struct Auditor {
    left: BTreeMap<PartitionId, Left>,
    groups: Vec<(String, Vec<PartitionId>)>,
    is_waiting: bool,
    is_begun: bool,
}

/// What is still to be read of a partition.
#[derive(Debug)]
struct Left {
    shard: ShardId,
    /// Where to go on.
    offset: u64,
    /// Where to end: what came later is not from before the start of the node.
    end: Option<u64>,
    /// Fetches in a row that brought nothing.
    empty_count: u32,
}

impl Auditor {
    /// Begins to read everything.
    pub fn begin(&mut self, cx: &Context<'_>) {
        self.left.clear();
        for (partition, shard) in cx.model.existing() {
            let offset = cx.model.known(partition).start();
            self.left.insert(partition, Left { shard, offset, end: None, empty_count: 0 });
        }
        self.groups = cx.model.groups().into_iter().collect();
        self.is_waiting = false;
        self.is_begun = true;
    }

    pub(super) fn act(&mut self, cx: &mut Context<'_>) -> u64 {
        const PAUSE_US: u64 = 50;
        if self.is_waiting || !self.is_begun {
            return PAUSE_US;
        }
        if let Some((group, partitions)) = self.groups.pop() {
            let shard = group_shard(&group, cx.shard_count);
            let is_all = cx.random.one_in(2);
            let asked = Asked::Committed {
                group: group.clone(),
                is_all,
                gone_count: cx.model.gone_count(),
            };
            let partitions = (!is_all).then_some(partitions);
            let command = GroupCommand::OffsetFetch { group, partitions };
            cx.asked.push((shard, Command::Group(command), asked));
            self.is_waiting = true;
            return PAUSE_US;
        }
        self.left.retain(|partition, _| cx.model.is_alive(*partition));
        let ready = self.left.iter().find(|(_, left)| cx.model.is_current(left.shard));
        if let Some((partition, left)) = ready {
            let (partition, offset, shard) = (*partition, left.offset, left.shard);
            let bytes_max = cx.random.skewed(1 << 10, 1 << 20) as u32;
            let partitions = vec![FetchPartition { partition, offset, bytes_max }];
            let fetch = Fetch { partitions, bytes_min: 1, bytes_max, wait_ms: 0 };
            let asked = Asked::Fetch(vec![(partition, offset, cx.model.known(partition))]);
            cx.asked.push((shard, Command::Fetch(fetch), asked));
            self.is_waiting = true;
        } else if self.left.is_empty() {
            self.is_begun = false;
        }
        PAUSE_US
    }

    pub(super) fn on_reply(&mut self, _: &mut Context<'_>, asked: Asked, reply: Reply) -> Check {
        self.is_waiting = false;
        match (asked, reply) {
            (Asked::Committed { .. }, Reply::Group(GroupReply::OffsetFetch(Ok(_)))) => Ok(()),
            (Asked::Fetch(asked), Reply::Fetch(fetched)) => {
                let ((id, offset, _), fetched) =
                    asked.into_iter().zip(&fetched).next().ok_or("an empty reply")?;
                let next = next_offset(offset, fetched);
                let Some(left) = self.left.get_mut(&id) else { return Ok(()) };
                left.empty_count = if next == offset { left.empty_count + 1 } else { 0 };
                left.offset = next;
                let end = *left.end.get_or_insert(fetched.durable_end);
                let is_gone = matches!(fetched.records, Err(Refusal::UnknownPartition));
                if is_gone || next >= end {
                    self.left.remove(&id);
                } else if left.empty_count > EMPTY_MAX {
                    return Err(format!("{id:?}: nothing at offset {next}, before the end"));
                }
                Ok(())
            }
            // The shard of its connection has not heard of the partition yet.
            (Asked::Fetch(_), Reply::Refused(Refusal::Busy)) => Ok(()),
            (asked, reply) => unexpected(&asked, &reply),
        }
    }

    pub(super) fn on_restart(&mut self) {
        *self = Self::default();
    }

    /// It goes on where it was.
    pub(super) fn on_disconnect(&mut self) {
        self.is_waiting = false;
    }

    pub(super) fn is_done(&self) -> bool {
        !self.is_begun
    }
}
