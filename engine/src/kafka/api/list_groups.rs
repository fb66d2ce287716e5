//! ListGroups: all groups that this broker coordinates.
//!
//! Clients ask every broker and put the lists together. Hence one broker lists all shards, but
//! where each shard is a broker of its own, each lists its own groups.

use tidemill_wal::format::ShardId;

use super::ask::{ask_in_turns, decoded, group_reply_as};
use super::describe_groups::state_name;
use super::{Step, first_error, head_of, reply_as, respond};
use crate::command::{Command, GroupCommand, GroupListing, Refusal, Reply};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{ListGroupsRequest, ListGroupsResponse, ListedGroup};
use crate::kafka::session::{Advertise, Context, NodeFacts};
use crate::kafka::wire::Text;

/// The type of every group: those of KIP-848 and share groups are not served.
const GROUP_TYPE: &str = "classic";

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: ListGroupsRequest| {
        let list = |shard| (shard, Command::Group(GroupCommand::List));
        let commands = broker_shards(cx.facts).into_iter().map(list).collect();
        let request = head_of(request);
        ask_in_turns(commands, move |_, replies| {
            let mut response = ListGroupsResponse::default();
            match listings(replies) {
                Ok(listings) => {
                    let is_wanted = |listing: &GroupListing| {
                        has(&body.states_filter, state_name(listing.state))
                            && has(&body.types_filter, GROUP_TYPE)
                    };
                    let wanted = listings.into_iter().filter(is_wanted);
                    response.groups = wanted.map(listed).collect();
                }
                // A part of the list would look like all of it.
                Err(refusal) => response.error_code = ErrorCode::for_group(refusal),
            }
            let error = first_error([response.error_code]);
            respond::<ListGroupsRequest>(&request, &response, error)
        })
    })
}

/// The shards that answer as the broker whose connection this is.
pub(super) fn broker_shards(facts: &NodeFacts) -> Vec<ShardId> {
    match facts.advertise {
        Advertise::Node(_) => (0..facts.shard_count).map(ShardId).collect(),
        Advertise::Shards(_) => vec![facts.shard],
    }
}

fn listings(replies: Vec<Reply>) -> Result<Vec<GroupListing>, Refusal> {
    let mut listings = Vec::new();
    for reply in replies {
        listings.extend(reply_as!(Group, reply).map(|reply| group_reply_as!(List, reply))?);
    }
    Ok(listings)
}

/// Whether a filter lets a value through: an empty one does. Kafka ignores the case.
fn has(filter: &[Text], value: &str) -> bool {
    filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(value))
}

fn listed(listing: GroupListing) -> ListedGroup {
    ListedGroup {
        group_id: listing.group.into(),
        protocol_type: listing.protocol_type.into(),
        group_state: state_name(listing.state).into(),
        group_type: GROUP_TYPE.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::drive::{Node, group};
    use super::*;
    use crate::command::{GroupReply, GroupState};

    /// Shard 0 has `a0` and `b0`, shard 1 has `a1` and `b1`; `a` is stable, `b` empty.
    fn reply(shard: ShardId, command: Command) -> Reply {
        assert!(matches!(group(command), GroupCommand::List));
        let listing = |name: &str, state| GroupListing {
            group: format!("{name}{}", shard.0),
            protocol_type: "consumer".into(),
            state,
        };
        Reply::Group(GroupReply::List(vec![
            listing("a", GroupState::Stable),
            listing("b", GroupState::Empty),
        ]))
    }

    fn listed_names(node: &Node, version: i16, states: &[&str], types: &[&str]) -> Vec<String> {
        let texts = |names: &[&str]| names.iter().map(|name| Text::from(*name)).collect();
        let request =
            ListGroupsRequest { states_filter: texts(states), types_filter: texts(types) };
        let response = node.call(version, request, reply);
        assert_eq!(response.error_code, ErrorCode::None);
        response.groups.iter().map(|group| group.group_id.to_string()).collect()
    }

    #[test]
    fn filters_choose_among_the_groups_of_all_shards() {
        let node = Node::new();
        let all = ["a0", "b0", "a1", "b1"];
        assert_eq!(listed_names(&node, 0, &["Empty"], &[]), all, "version 0 has no filter");
        assert_eq!(listed_names(&node, 5, &[], &[]), all);
        assert_eq!(listed_names(&node, 4, &["stable", "Dead"], &[]), ["a0", "a1"]);
        assert_eq!(listed_names(&node, 5, &["Empty"], &["Classic"]), ["b0", "b1"]);
        assert_eq!(listed_names(&node, 5, &[], &["consumer"]), [""; 0]);
    }

    #[test]
    fn a_broker_of_one_shard_lists_that_shard_s_groups() {
        assert_eq!(listed_names(&Node::with_ports(), 5, &[], &[]), ["a0", "b0"]);
    }

    #[test]
    fn one_shard_s_refusal_spoils_the_list() {
        let response = Node::new().call(5, ListGroupsRequest::default(), |shard, command| {
            if shard.0 == 1 { Reply::Refused(Refusal::Loading) } else { reply(shard, command) }
        });
        assert_eq!(response.error_code, ErrorCode::CoordinatorLoadInProgress);
        assert_eq!(response.groups, []);
    }
}
