//! Heartbeat: stay a member.

use super::ask::{ask_group, decoded, group_reply_as};
use super::{Step, head_of, respond};
use crate::command::{GroupCommand, MemberRef};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{HeartbeatRequest, HeartbeatResponse};
use crate::kafka::session::Context;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: HeartbeatRequest| {
        let member = MemberRef {
            group: body.group_id.to_string(),
            generation: body.generation_id,
            member_id: body.member_id.to_string(),
            instance_id: body.group_instance_id.map(|id| id.to_string()),
        };
        let request = head_of(request);
        ask_group(cx, &body.group_id, GroupCommand::Heartbeat(member), move |_, reply| {
            let result = reply.and_then(|reply| group_reply_as!(Heartbeat, reply));
            let error = result.err().map(ErrorCode::for_group);
            let response = HeartbeatResponse {
                error_code: error.unwrap_or_default(),
                ..HeartbeatResponse::default()
            };
            respond::<HeartbeatRequest>(&request, &response, error)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::drive::{Node, group};
    use super::*;
    use crate::command::{GroupReply, Refusal, Reply};

    #[test]
    fn a_heartbeat_names_the_member_and_tells_what_the_group_says() {
        for (reply, code) in [
            (Reply::Group(GroupReply::Heartbeat(Ok(()))), ErrorCode::None),
            (
                Reply::Group(GroupReply::Heartbeat(Err(Refusal::RebalanceInProgress))),
                ErrorCode::RebalanceInProgress,
            ),
            (Reply::Refused(Refusal::WrongShard), ErrorCode::NotCoordinator),
        ] {
            for version in 0..=4 {
                let request = HeartbeatRequest {
                    group_id: "g".into(),
                    generation_id: 2,
                    member_id: "m".into(),
                    group_instance_id: Some("i".into()),
                };
                let response = Node::new().call(version, request, |_, command| {
                    let GroupCommand::Heartbeat(member) = group(command) else { panic!() };
                    let expected = MemberRef {
                        group: "g".into(),
                        generation: 2,
                        member_id: "m".into(),
                        instance_id: (version >= 3).then(|| "i".into()),
                    };
                    assert_eq!(member, expected);
                    reply.clone()
                });
                assert_eq!(response.error_code, code);
            }
        }
    }
}
