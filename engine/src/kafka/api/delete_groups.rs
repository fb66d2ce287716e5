//! DeleteGroups: remove empty groups with their progress.

use super::ask::{ask_groups, decoded, distinct, group_reply_as};
use super::{Step, first_error, head_of, respond};
use crate::command::GroupCommand;
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{DeleteGroupsRequest, DeleteGroupsResponse, DeletedGroup};
use crate::kafka::session::Context;
use crate::kafka::wire::Text;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: DeleteGroupsRequest| {
        let ask = |group: Text| {
            let command = GroupCommand::Delete(group.to_string());
            (group, command)
        };
        let asks = distinct(body.groups_names).into_iter().map(ask).collect();
        let request = head_of(request);
        ask_groups(cx, asks, move |_, replies| {
            let results: Vec<_> = replies
                .into_iter()
                .map(|(group_id, reply)| {
                    let result = reply.and_then(|reply| group_reply_as!(Delete, reply));
                    let error_code = result.err().map(ErrorCode::for_group).unwrap_or_default();
                    DeletedGroup { group_id, error_code }
                })
                .collect();
            let error = first_error(results.iter().map(|result| result.error_code));
            let response = DeleteGroupsResponse { results, ..DeleteGroupsResponse::default() };
            respond::<DeleteGroupsRequest>(&request, &response, error)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::drive::{Node, group};
    use super::*;
    use crate::command::{GroupReply, Refusal, Reply};

    #[test]
    fn each_group_has_its_result() {
        for version in 0..=2 {
            let request = DeleteGroupsRequest {
                groups_names: ["empty", "full", "empty", "gone", "busy"].map(Text::from).to_vec(),
            };
            let response = Node::new().call(version, request, |_, command| {
                let GroupCommand::Delete(name) = group(command) else { panic!() };
                Reply::Group(GroupReply::Delete(match name.as_str() {
                    "full" => Err(Refusal::NonEmptyGroup),
                    "gone" => Err(Refusal::UnknownGroup),
                    "busy" => return Reply::Refused(Refusal::Busy),
                    _ => Ok(()),
                }))
            });
            let rows: Vec<_> = (response.results.iter())
                .map(|result| (result.group_id.as_str(), result.error_code))
                .collect();
            assert_eq!(
                rows,
                [
                    ("empty", ErrorCode::None),
                    ("full", ErrorCode::NonEmptyGroup),
                    ("gone", ErrorCode::GroupIdNotFound),
                    ("busy", ErrorCode::CoordinatorNotAvailable),
                ]
            );
        }
    }

    #[test]
    fn more_groups_than_may_be_asked_at_once_are_all_answered_in_order() {
        let names: Vec<_> = (0..300).map(|n| Text::from(format!("g{n}"))).collect();
        let request = DeleteGroupsRequest { groups_names: names.clone() };
        let response =
            Node::new().call(2, request, |_, _| Reply::Group(GroupReply::Delete(Ok(()))));
        let answered: Vec<_> = response.results.into_iter().map(|result| result.group_id).collect();
        assert_eq!(answered, names);
    }
}
