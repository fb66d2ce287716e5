//! Topologies as consumer groups: their progress is seen by every tool that shows the lag of groups.
//! Nobody can join one, or move it.

use tidemill_wal::format::PartitionId;

use super::{Hosted, Input};
use crate::command::{
    CommittedOffset, GroupCommand, GroupDescription, GroupListing, GroupReply, GroupState,
    JoinRefused, Refusal, TOPOLOGY_GROUPS, group_shard,
};
use crate::shard::Shard;

/// What tools look for when they list groups that consume topics.
const PROTOCOL_TYPE: &str = "consumer";

impl Hosted {
    fn state(&self) -> GroupState {
        if self.pause.is_some() { GroupState::Empty } else { GroupState::Stable }
    }

    fn offsets(
        &self,
        wanted: Option<Vec<PartitionId>>,
    ) -> Vec<(PartitionId, Option<CommittedOffset>)> {
        let inputs: &[Input] = self.wired.as_ref().map_or(&[], |wired| &wired.inputs);
        let committed = |input: &Input| CommittedOffset {
            offset: input.next_offset,
            leader_epoch: -1,
            metadata: String::new(),
        };
        let offset_of = |partition: PartitionId| {
            inputs.iter().find(|input| input.id == partition).map(committed)
        };
        match wanted {
            Some(wanted) => {
                wanted.into_iter().map(|partition| (partition, offset_of(partition))).collect()
            }
            None => inputs.iter().map(|input| (input.id, Some(committed(input)))).collect(),
        }
    }
}

impl Shard {
    fn topology_of_group(&self, group: &str) -> Option<&Hosted> {
        let name = group.strip_prefix(TOPOLOGY_GROUPS)?;
        self.topologies.hosted.iter().find(|hosted| hosted.plan.name() == name)
    }

    /// Answers for a group that is a topology of this node; every shard does for its partitions.
    pub(in crate::shard) fn ask_topology(&self, command: &GroupCommand) -> Option<GroupReply> {
        let known = |group: &str| self.topology_of_group(group);
        let refusal = Refusal::InvalidGroup;
        Some(match command {
            GroupCommand::OffsetFetch { group, partitions } => {
                GroupReply::OffsetFetch(Ok(known(group)?.offsets(partitions.clone())))
            }
            GroupCommand::Describe(group) => GroupReply::Describe(GroupDescription {
                state: known(group)?.state(),
                protocol_type: PROTOCOL_TYPE.to_owned(),
                protocol: String::new(),
                members: Vec::new(),
            }),
            GroupCommand::Join(join) => {
                known(&join.group)?;
                let member_id = join.member_id.clone();
                GroupReply::Join(Err(JoinRefused { refusal, member_id }))
            }
            GroupCommand::Sync(sync) => {
                known(&sync.member.group)?;
                GroupReply::Sync(Err(refusal))
            }
            GroupCommand::Heartbeat(who) => {
                known(&who.group)?;
                GroupReply::Heartbeat(Err(refusal))
            }
            GroupCommand::Leave { group, .. } => {
                known(group)?;
                GroupReply::Leave(Err(refusal))
            }
            GroupCommand::OffsetCommit(commit) => {
                known(&commit.member.group)?;
                GroupReply::OffsetCommit(vec![Err(refusal); commit.offsets.len()])
            }
            GroupCommand::OffsetDelete { group, .. } => {
                known(group)?;
                GroupReply::OffsetDelete(Err(refusal))
            }
            GroupCommand::Delete(group) => {
                known(group)?;
                GroupReply::Delete(Err(Refusal::NonEmptyGroup))
            }
            GroupCommand::List => return None,
        })
    }

    /// Topologies for the list of this shard's groups.
    pub(in crate::shard) fn topology_listings(&self) -> impl Iterator<Item = GroupListing> {
        self.topologies.hosted.iter().filter_map(|hosted| {
            let group = format!("{TOPOLOGY_GROUPS}{}", hosted.plan.name());
            let is_own = group_shard(&group, self.options.shard_count) == self.options.id;
            let (protocol_type, state) = (PROTOCOL_TYPE.to_owned(), hosted.state());
            is_own.then_some(GroupListing { group, protocol_type, state })
        })
    }
}
