//! Reads everything after a recovery: each partition from its start to its end, and each group's
//! committed offsets.

use std::collections::BTreeMap;

use tidemill::command::{
    Command, Fetch, FetchPartition, GroupCommand, Refusal, Reply, group_shard,
};
use tidemill_wal::format::{PartitionId, ShardId};

use super::committer::on_committed;
use super::{Asked, Context, unexpected};
use crate::sim::model::Check;

/// Fetches in a row that may come back empty: their file went while it was read.
const EMPTY_MAX: u32 = 50;

/// Reads and compares.
#[derive(Debug, Default)]
pub struct Auditor {
    /// To be read: where to go on, and fetches in a row that brought nothing.
    left: BTreeMap<PartitionId, (ShardId, u64, u32)>,
    groups: Vec<(String, Vec<PartitionId>)>,
    is_waiting: bool,
    is_begun: bool,
}

impl Auditor {
    /// Begins to read everything.
    pub fn begin(&mut self, cx: &Context<'_>) {
        self.left.clear();
        for (partition, shard) in cx.model.existing() {
            let start = cx.model.known(partition).start();
            self.left.insert(partition, (shard, start, 0));
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
            let asked = Asked::Committed(group.clone());
            let command = GroupCommand::OffsetFetch { group, partitions: Some(partitions) };
            cx.asked.push((shard, Command::Group(command), asked));
            self.is_waiting = true;
            return PAUSE_US;
        }
        self.left.retain(|partition, _| cx.model.is_alive(*partition));
        let ready = self.left.iter().find(|(_, (shard, _, _))| cx.model.is_current(*shard));
        if let Some((partition, (shard, offset, _))) = ready {
            let (partition, offset, shard) = (*partition, *offset, *shard);
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

    pub(super) fn on_reply(&mut self, cx: &mut Context<'_>, asked: Asked, reply: Reply) -> Check {
        self.is_waiting = false;
        match (asked, reply) {
            (asked @ Asked::Committed(_), reply) => on_committed(cx, asked, reply),
            (Asked::Fetch(asked), Reply::Fetch(fetched)) => {
                let ((id, offset, known), fetched) =
                    asked.into_iter().zip(&fetched).next().ok_or("an empty reply")?;
                let next = cx.model.on_fetched(id, offset, known, fetched)?;
                let Some((_, position, empty)) = self.left.get_mut(&id) else { return Ok(()) };
                *empty = if next == offset { *empty + 1 } else { 0 };
                *position = next;
                if matches!(fetched.records, Err(Refusal::UnknownPartition))
                    || next >= fetched.durable_end
                {
                    self.left.remove(&id);
                } else if *empty > EMPTY_MAX {
                    return Err(format!("{id:?}: nothing at offset {next}, before the end"));
                }
                Ok(())
            }
            (asked, reply) => unexpected(&asked, &reply),
        }
    }

    pub(super) fn on_restart(&mut self) {
        *self = Self::default();
    }

    pub(super) fn is_done(&self) -> bool {
        !self.is_begun
    }
}
