//! LeaveGroup: members that go; one up to version 2, many from 3 on.

use super::ask::{ask_group, decoded, group_reply_as};
use super::{Step, first_error, head_of, respond};
use crate::command::{GroupCommand, LeavingMember, Refusal};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    LeaveGroupMember, LeaveGroupMemberResponse, LeaveGroupRequest, LeaveGroupResponse,
};
use crate::kafka::session::Context;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |mut body: LeaveGroupRequest| {
        if request.version < 3 {
            let member_id = body.member_id.clone();
            body.members = vec![LeaveGroupMember { member_id, ..LeaveGroupMember::default() }];
        }
        let command = GroupCommand::Leave {
            group: body.group_id.to_string(),
            members: body
                .members
                .iter()
                .map(|member| LeavingMember {
                    member_id: member.member_id.to_string(),
                    instance_id: member.group_instance_id.as_ref().map(|id| id.to_string()),
                })
                .collect(),
        };
        let request = head_of(request);
        let members = body.members;
        ask_group(cx, &body.group_id, command, move |_, reply| {
            let result = reply.and_then(|reply| group_reply_as!(Leave, reply));
            let response = response(request.version, members, result);
            let error = first_error(
                [response.error_code]
                    .into_iter()
                    .chain(response.members.iter().map(|member| member.error_code)),
            );
            respond::<LeaveGroupRequest>(&request, &response, error)
        })
    })
}

fn response(
    version: i16,
    members: Vec<LeaveGroupMember>,
    result: Result<Vec<Result<(), Refusal>>, Refusal>,
) -> LeaveGroupResponse {
    let code = |result: Result<(), Refusal>| result.err().map(ErrorCode::for_group);
    match result {
        Err(refusal) => LeaveGroupResponse {
            error_code: ErrorCode::for_group(refusal),
            ..LeaveGroupResponse::default()
        },
        Ok(results) => {
            assert!(results.len() == members.len(), "one result for each member");
            let members: Vec<_> = members
                .into_iter()
                .zip(results)
                .map(|(member, result)| LeaveGroupMemberResponse {
                    member_id: member.member_id,
                    group_instance_id: member.group_instance_id,
                    error_code: code(result).unwrap_or_default(),
                })
                .collect();
            // Without a list of members, the only one's error is the answer's.
            let error_code = match version {
                ..3 => members[0].error_code,
                _ => ErrorCode::None,
            };
            LeaveGroupResponse { error_code, members, ..LeaveGroupResponse::default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::drive::{Node, group};
    use super::*;
    use crate::command::{GroupReply, Reply};

    fn request() -> LeaveGroupRequest {
        let member = |id: &str, instance: Option<&str>| LeaveGroupMember {
            member_id: id.into(),
            group_instance_id: instance.map(Into::into),
            reason: None,
        };
        LeaveGroupRequest {
            group_id: "g".into(),
            member_id: "a".into(),
            members: vec![member("a", None), member("", Some("i"))],
        }
    }

    #[test]
    fn the_only_member_s_error_is_the_answer_s_up_to_version_2() {
        for version in 0..=2 {
            let response = Node::new().call(version, request(), |_, command| {
                let GroupCommand::Leave { members, .. } = group(command) else { panic!() };
                assert_eq!(members, [LeavingMember { member_id: "a".into(), instance_id: None }]);
                Reply::Group(GroupReply::Leave(Ok(vec![Err(Refusal::UnknownMember)])))
            });
            assert_eq!(response.error_code, ErrorCode::UnknownMemberId);
        }
    }

    #[test]
    fn each_member_has_its_own_result_from_version_3_on() {
        for version in 3..=5 {
            let response = Node::new().call(version, request(), |_, command| {
                let GroupCommand::Leave { members, .. } = group(command) else { panic!() };
                assert_eq!(members[1].instance_id.as_deref(), Some("i"));
                Reply::Group(GroupReply::Leave(Ok(vec![Ok(()), Err(Refusal::UnknownMember)])))
            });
            let codes: Vec<_> = response.members.iter().map(|member| member.error_code).collect();
            assert_eq!(codes, [ErrorCode::None, ErrorCode::UnknownMemberId]);
            assert_eq!(response.error_code, ErrorCode::None);
            assert_eq!(response.members[1].group_instance_id, Some("i".into()));
        }
    }

    #[test]
    fn a_refused_group_is_told_without_members() {
        for version in [1, 5] {
            let response =
                Node::new().call(version, request(), |_, _| Reply::Refused(Refusal::InvalidGroup));
            assert_eq!(response.error_code, ErrorCode::InvalidGroupId);
            assert_eq!(response.members, []);
        }
    }
}
