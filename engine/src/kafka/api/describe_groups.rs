//! DescribeGroups: members and state, for people.

use super::ask::{ask_groups, decoded, distinct, group_reply_as};
use super::{Step, first_error, head_of, respond};
use crate::command::{GroupCommand, GroupDescription, GroupState, Refusal};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    DescribeGroupsRequest, DescribeGroupsResponse, DescribedGroup, DescribedGroupMember,
    OPERATIONS_UNKNOWN,
};
use crate::kafka::session::Context;
use crate::kafka::wire::Text;

/// All operations on a group that exist here, for whoever asks what it may do: there is no
/// authorization yet. Bits are the codes of `AclOperation`: READ, DELETE, DESCRIBE.
const GROUP_OPERATIONS: i32 = 1 << 3 | 1 << 6 | 1 << 8;

/// From this version on a group that does not exist is an error; before, it is dead.
const UNKNOWN_GROUP_FROM: i16 = 6;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: DescribeGroupsRequest| {
        let ask = |group: Text| {
            let command = GroupCommand::Describe(group.to_string());
            (group, command)
        };
        let asks = distinct(body.groups).into_iter().map(ask).collect();
        let operations = match body.include_authorized_operations {
            true => GROUP_OPERATIONS,
            false => OPERATIONS_UNKNOWN,
        };
        let request = head_of(request);
        ask_groups(cx, asks, move |_, replies| {
            let groups: Vec<_> = replies
                .into_iter()
                .map(|(group, reply)| {
                    let description = reply.map(|reply| group_reply_as!(Describe, reply));
                    let authorized_operations = operations;
                    let described = described(request.version, group, description);
                    DescribedGroup { authorized_operations, ..described }
                })
                .collect();
            let error = first_error(groups.iter().map(|group| group.error_code));
            let response = DescribeGroupsResponse { groups, ..DescribeGroupsResponse::default() };
            respond::<DescribeGroupsRequest>(&request, &response, error)
        })
    })
}

fn described(
    version: i16,
    group_id: Text,
    description: Result<GroupDescription, Refusal>,
) -> DescribedGroup {
    let description = match description {
        Ok(description) => description,
        Err(refusal) => {
            let error_code = ErrorCode::for_group(refusal);
            return DescribedGroup { group_id, error_code, ..DescribedGroup::default() };
        }
    };
    let is_unknown = version >= UNKNOWN_GROUP_FROM && description.state == GroupState::Dead;
    DescribedGroup {
        error_code: if is_unknown { ErrorCode::GroupIdNotFound } else { ErrorCode::None },
        error_message: is_unknown.then(|| format!("there is no group {group_id:?}").into()),
        group_id,
        group_state: state_name(description.state).into(),
        protocol_type: description.protocol_type.into(),
        protocol_data: description.protocol.into(),
        members: description
            .members
            .into_iter()
            .map(|member| DescribedGroupMember {
                member_id: member.member_id.into(),
                group_instance_id: member.instance_id.map(Text::from),
                client_id: member.client_id.into(),
                client_host: member.client_host.into(),
                member_metadata: member.metadata,
                member_assignment: member.assignment,
            })
            .collect(),
        ..DescribedGroup::default()
    }
}

/// What Kafka calls a state.
pub(super) fn state_name(state: GroupState) -> &'static str {
    match state {
        GroupState::Empty => "Empty",
        GroupState::PreparingRebalance => "PreparingRebalance",
        GroupState::CompletingRebalance => "CompletingRebalance",
        GroupState::Stable => "Stable",
        GroupState::Dead => "Dead",
    }
}

#[cfg(test)]
mod tests {
    use super::super::drive::{Node, group};
    use super::*;
    use crate::command::{GroupReply, MemberDescription, Reply, group_shard};

    fn description(name: &str) -> GroupDescription {
        if name == "gone" {
            return GroupDescription {
                state: GroupState::Dead,
                protocol_type: String::new(),
                protocol: String::new(),
                members: Vec::new(),
            };
        }
        GroupDescription {
            state: GroupState::Stable,
            protocol_type: "consumer".into(),
            protocol: "range".into(),
            members: vec![MemberDescription {
                member_id: "m".into(),
                instance_id: Some("i".into()),
                client_id: "c".into(),
                client_host: "/192.0.2.1".into(),
                metadata: "sub".into(),
                assignment: "all".into(),
            }],
        }
    }

    #[test]
    fn each_group_is_described_once_by_its_own_shard() {
        for version in 0..=6 {
            let request = DescribeGroupsRequest {
                groups: ["g", "gone", "g", "busy"].map(Text::from).to_vec(),
                include_authorized_operations: true,
            };
            let response = Node::new().call(version, request, |shard, command| {
                let GroupCommand::Describe(name) = group(command) else { panic!() };
                assert_eq!(shard, group_shard(&name, 2));
                match name.as_str() {
                    "busy" => Reply::Refused(Refusal::Busy),
                    name => Reply::Group(GroupReply::Describe(description(name))),
                }
            });
            let unknown = if version >= 6 { ErrorCode::GroupIdNotFound } else { ErrorCode::None };
            let rows: Vec<_> = (response.groups.iter())
                .map(|group| {
                    (group.group_id.as_str(), group.group_state.as_str(), group.error_code)
                })
                .collect();
            assert_eq!(
                rows,
                [
                    ("g", "Stable", ErrorCode::None),
                    ("gone", "Dead", unknown),
                    ("busy", "", ErrorCode::CoordinatorNotAvailable),
                ]
            );
            let found = &response.groups[0];
            let operations = if version >= 3 { GROUP_OPERATIONS } else { OPERATIONS_UNKNOWN };
            assert_eq!(found.authorized_operations, operations);
            assert_eq!(found.members[0].member_assignment, "all");
            assert_eq!(found.members[0].group_instance_id.is_some(), version >= 4);
        }
    }
}
