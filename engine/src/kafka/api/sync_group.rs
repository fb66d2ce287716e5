//! SyncGroup: the leader brings the assignments, everybody takes their own.

use bytes::Bytes;

use super::ask::{ask_group, decoded, group_reply_as};
use super::{Step, head_of, respond};
use crate::command::{GroupCommand, MemberRef, Sync};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{SyncGroupRequest, SyncGroupResponse};
use crate::kafka::session::Context;
use crate::kafka::wire::Text;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: SyncGroupRequest| {
        let is_named = body.protocol_type.is_some() && body.protocol_name.is_some();
        if request.version >= 5 && !is_named {
            return refused(request, ErrorCode::InconsistentGroupProtocol);
        }
        let group = body.group_id.clone();
        let request = head_of(request);
        ask_group(cx, &group, GroupCommand::Sync(sync(body)), move |_, reply| {
            match reply.and_then(|reply| group_reply_as!(Sync, reply)) {
                Ok(synced) => {
                    let response = SyncGroupResponse {
                        protocol_type: Some(synced.protocol_type.into()),
                        protocol_name: Some(synced.protocol.into()),
                        assignment: synced.assignment,
                        ..SyncGroupResponse::default()
                    };
                    respond::<SyncGroupRequest>(&request, &response, None)
                }
                Err(refusal) => refused(&request, ErrorCode::for_group(refusal)),
            }
        })
    })
}

/// The group keeps what it is given: copies, not slices of a frame that holds much more.
fn sync(body: SyncGroupRequest) -> Sync {
    Sync {
        member: MemberRef {
            group: body.group_id.to_string(),
            generation: body.generation_id,
            member_id: body.member_id.to_string(),
            instance_id: body.group_instance_id.map(|id| id.to_string()),
        },
        protocol_type: body.protocol_type.as_ref().map(Text::to_string),
        protocol: body.protocol_name.as_ref().map(Text::to_string),
        assignments: body
            .assignments
            .into_iter()
            .map(|given| (given.member_id.to_string(), Bytes::copy_from_slice(&given.assignment)))
            .collect(),
    }
}

fn refused(request: &RequestFrame, error_code: ErrorCode) -> Step {
    let response = SyncGroupResponse { error_code, ..SyncGroupResponse::default() };
    respond::<SyncGroupRequest>(request, &response, Some(error_code))
}

#[cfg(test)]
mod tests {
    use super::super::drive::{Node, group};
    use super::*;
    use crate::command::{GroupReply, Refusal, Reply, Synced};
    use crate::kafka::messages::SyncGroupAssignment;

    fn request() -> SyncGroupRequest {
        SyncGroupRequest {
            group_id: "g".into(),
            generation_id: 3,
            member_id: "m".into(),
            group_instance_id: None,
            protocol_type: Some("consumer".into()),
            protocol_name: Some("range".into()),
            assignments: vec![SyncGroupAssignment {
                member_id: "m".into(),
                assignment: "all".into(),
            }],
        }
    }

    #[test]
    fn the_leader_s_assignments_go_to_the_group_and_its_own_comes_back() {
        for version in 0..=5 {
            let response = Node::new().call(version, request(), |_, command| {
                let GroupCommand::Sync(sync) = group(command) else { panic!() };
                assert_eq!((sync.member.generation, sync.member.member_id.as_str()), (3, "m"));
                assert_eq!(sync.assignments, [("m".to_owned(), Bytes::from("all"))]);
                assert_eq!(sync.protocol.is_some(), version >= 5);
                Reply::Group(GroupReply::Sync(Ok(Synced {
                    protocol_type: "consumer".into(),
                    protocol: "range".into(),
                    assignment: "mine".into(),
                })))
            });
            assert_eq!(response.error_code, ErrorCode::None);
            assert_eq!(response.assignment, "mine");
            assert_eq!(response.protocol_name, (version >= 5).then(|| "range".into()));
        }
    }

    #[test]
    fn version_5_must_name_its_protocol() {
        let unnamed = SyncGroupRequest { protocol_name: None, ..request() };
        let response = Node::new().answer(5, unnamed);
        assert_eq!(response.error_code, ErrorCode::InconsistentGroupProtocol);
    }

    #[test]
    fn refusals_are_told() {
        for (reply, code) in [
            (
                Reply::Group(GroupReply::Sync(Err(Refusal::RebalanceInProgress))),
                ErrorCode::RebalanceInProgress,
            ),
            (Reply::Refused(Refusal::Loading), ErrorCode::CoordinatorLoadInProgress),
        ] {
            let response = Node::new().call(5, request(), |_, _| reply.clone());
            assert_eq!((response.error_code, response.assignment.len()), (code, 0));
        }
    }
}
