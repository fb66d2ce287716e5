//! JoinGroup: become or stay a member.

use bytes::Bytes;

use super::ask::{ask_group, decoded, group_reply_as};
use super::{Step, head_of, respond};
use crate::command::{GroupCommand, Join, JoinRefused, Joined};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{JoinGroupMember, JoinGroupRequest, JoinGroupResponse};
use crate::kafka::session::Context;
use crate::kafka::wire::Text;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, peer: &str) -> Step {
    decoded(cx, request, |body: JoinGroupRequest| {
        let group = body.group_id.clone();
        let member_id = body.member_id.to_string();
        let join = join(request, peer, body);
        let request = head_of(request);
        ask_group(cx, &group, GroupCommand::Join(join), move |_, reply| {
            let result = match reply {
                Ok(reply) => group_reply_as!(Join, reply),
                Err(refusal) => Err(JoinRefused { refusal, member_id }),
            };
            match result {
                Ok(joined) => {
                    respond::<JoinGroupRequest>(&request, &accepted(&request, joined), None)
                }
                Err(refused) => {
                    let response = refusal(refused);
                    let error = Some(response.error_code);
                    respond::<JoinGroupRequest>(&request, &response, error)
                }
            }
        })
    })
}

/// The group keeps what it is given: copies, not slices of a frame that holds much more.
fn join(request: &RequestFrame, peer: &str, body: JoinGroupRequest) -> Join {
    Join {
        group: body.group_id.to_string(),
        member_id: body.member_id.to_string(),
        instance_id: body.group_instance_id.map(|id| id.to_string()),
        client_id: request.client_id.as_ref().map(Text::to_string).unwrap_or_default(),
        client_host: peer.to_owned(),
        session_timeout_ms: body.session_timeout_ms,
        rebalance_timeout_ms: match request.version {
            0 => body.session_timeout_ms,
            _ => body.rebalance_timeout_ms,
        },
        protocol_type: body.protocol_type.to_string(),
        protocols: body
            .protocols
            .into_iter()
            .map(|protocol| (protocol.name.to_string(), Bytes::copy_from_slice(&protocol.metadata)))
            .collect(),
        member_id_required: request.version >= 4,
        can_skip_assignment: request.version >= 9,
    }
}

fn accepted(request: &RequestFrame, joined: Joined) -> JoinGroupResponse {
    assert!(request.version >= 9 || !joined.skip_assignment, "older clients cannot be told");
    JoinGroupResponse {
        generation_id: joined.generation,
        protocol_type: Some(joined.protocol_type.into()),
        protocol_name: Some(joined.protocol.into()),
        leader: joined.leader.into(),
        skip_assignment: joined.skip_assignment,
        member_id: joined.member_id.into(),
        members: joined
            .members
            .into_iter()
            .map(|member| JoinGroupMember {
                member_id: member.member_id.into(),
                group_instance_id: member.instance_id.map(Text::from),
                metadata: member.metadata,
            })
            .collect(),
        ..JoinGroupResponse::default()
    }
}

fn refusal(refused: JoinRefused) -> JoinGroupResponse {
    JoinGroupResponse {
        error_code: ErrorCode::for_group(refused.refusal),
        protocol_name: None,
        member_id: refused.member_id.into(),
        ..JoinGroupResponse::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::drive::{Node, group};
    use super::*;
    use crate::command::{GroupReply, JoinedMember, Refusal, Reply, group_shard};
    use crate::kafka::messages::JoinGroupProtocol;

    fn request() -> JoinGroupRequest {
        JoinGroupRequest {
            group_id: "g".into(),
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 60_000,
            member_id: "m".into(),
            group_instance_id: Some("i".into()),
            protocol_type: "consumer".into(),
            protocols: vec![JoinGroupProtocol { name: "range".into(), metadata: "sub".into() }],
            reason: None,
        }
    }

    fn joined() -> Joined {
        Joined {
            generation: 3,
            protocol_type: "consumer".into(),
            protocol: "range".into(),
            leader: "m".into(),
            member_id: "m".into(),
            skip_assignment: false,
            members: vec![JoinedMember {
                member_id: "m".into(),
                instance_id: Some("i".into()),
                metadata: "sub".into(),
            }],
        }
    }

    #[test]
    fn each_version_asks_for_what_its_client_knows() {
        for version in 0..=9 {
            let mut asked = None;
            let response = Node::new().call(version, request(), |shard, command| {
                asked = Some((shard, group(command)));
                Reply::Group(GroupReply::Join(Ok(joined())))
            });
            let (shard, command) = asked.unwrap();
            assert_eq!(shard, group_shard("g", 2));
            let GroupCommand::Join(join) = command else { panic!("{command:?}") };
            let expected = Join {
                group: "g".into(),
                member_id: "m".into(),
                instance_id: (version >= 5).then(|| "i".into()),
                client_id: "client".into(),
                client_host: "127.0.0.1".into(),
                session_timeout_ms: 10_000,
                rebalance_timeout_ms: if version == 0 { 10_000 } else { 60_000 },
                protocol_type: "consumer".into(),
                protocols: vec![("range".into(), "sub".into())],
                member_id_required: version >= 4,
                can_skip_assignment: version >= 9,
            };
            assert_eq!(join, expected, "version {version}");
            assert_eq!(response.error_code, ErrorCode::None);
            assert_eq!(response.generation_id, 3);
            assert_eq!(response.protocol_type, (version >= 7).then(|| "consumer".into()));
            assert_eq!(response.protocol_name, Some("range".into()));
            assert_eq!(response.members[0].metadata, "sub");
        }
    }

    #[test]
    fn a_refusal_hands_out_the_member_id_and_no_generation() {
        for (reply, code, member_id) in [
            (
                Reply::Group(GroupReply::Join(Err(JoinRefused {
                    refusal: Refusal::MemberIdRequired,
                    member_id: "new".into(),
                }))),
                ErrorCode::MemberIdRequired,
                "new",
            ),
            (Reply::Refused(Refusal::Busy), ErrorCode::CoordinatorNotAvailable, "m"),
            (Reply::Refused(Refusal::Stopping), ErrorCode::NotCoordinator, "m"),
        ] {
            for version in [0, 6, 7, 9] {
                let response = Node::new().call(version, request(), |_, _| reply.clone());
                assert_eq!(response.error_code, code);
                assert_eq!((response.generation_id, response.member_id.as_str()), (-1, member_id));
                let protocol = if version >= 7 { None } else { Some(Text::default()) };
                assert_eq!(response.protocol_name, protocol);
            }
        }
    }
}
