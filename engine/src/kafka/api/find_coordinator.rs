//! FindCoordinator: which broker a group's requests go to. Any shard serves any group; the one
//! that is named here does so without a hop.
//!
//! The first request for a group makes the topic that clients expect to exist once there are groups.

use tidemill_wal::format::ShardId;

use super::ask::decoded;
use super::fault::{Fault, told};
use super::{OFFSETS_TOPIC, Step, ask, first_error, head_of, respond};
use crate::command::{CatalogCommand, Command, NewTopic, group_shard};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{Coordinator, FindCoordinatorRequest, FindCoordinatorResponse};
use crate::kafka::session::{Advertise, Context, NodeFacts};
use crate::kafka::wire::Text;

const KEY_GROUP: i8 = 0;
const KEY_TRANSACTION: i8 = 1;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: FindCoordinatorRequest| {
        let is_for_group = body.key_type == KEY_GROUP;
        if !is_for_group || cx.routes.topics.contains_key(OFFSETS_TOPIC) {
            return finish(cx, request, body);
        }
        let head = head_of(request);
        // Whether it comes to be or not, the group has its coordinator.
        ask(vec![(ShardId(0), Command::Catalog(offsets_topic()))], move |cx, _| {
            finish(cx, &head, body)
        })
    })
}

fn offsets_topic() -> CatalogCommand {
    let topic = NewTopic {
        name: OFFSETS_TOPIC.to_owned(),
        partition_count: Some(1),
        config: Vec::new(),
        automatic: true,
    };
    CatalogCommand::CreateTopics { topics: vec![topic], validate_only: false }
}

fn finish(cx: &Context<'_>, request: &RequestFrame, body: FindCoordinatorRequest) -> Step {
    let is_batched = request.version >= 4;
    let keys = if is_batched { body.coordinator_keys } else { vec![body.key] };
    let mut coordinators: Vec<_> =
        keys.into_iter().map(|key| find(cx.facts, key, body.key_type)).collect();
    let error = first_error(coordinators.iter().map(|found| found.error_code));
    let response = match coordinators.pop() {
        Some(one) if !is_batched => FindCoordinatorResponse {
            error_code: one.error_code,
            error_message: one.error_message,
            node_id: one.node_id,
            host: one.host,
            port: one.port,
            ..FindCoordinatorResponse::default()
        },
        last => {
            coordinators.extend(last);
            FindCoordinatorResponse { coordinators, ..FindCoordinatorResponse::default() }
        }
    };
    respond::<FindCoordinatorRequest>(request, &response, error)
}

fn find(facts: &NodeFacts, key: Text, key_type: i8) -> Coordinator {
    match check(key_type) {
        Ok(()) => {
            let (node_id, endpoint) = match &facts.advertise {
                Advertise::Node(endpoint) => (0, endpoint),
                Advertise::Shards(endpoints) => {
                    let shard = group_shard(&key, facts.shard_count).0;
                    (i32::from(shard), &endpoints[usize::from(shard)])
                }
            };
            let host = Text::from(endpoint.host.as_str());
            Coordinator {
                key,
                node_id,
                host,
                port: i32::from(endpoint.port),
                ..Coordinator::default()
            }
        }
        fault => {
            let (error_code, error_message) = told(fault);
            Coordinator {
                key,
                node_id: -1,
                host: Text::default(),
                port: -1,
                error_code,
                error_message,
            }
        }
    }
}

/// Not COORDINATOR_NOT_AVAILABLE: clients would ask again until they give up without a reason.
fn check(key_type: i8) -> Result<(), Fault> {
    let what = match key_type {
        KEY_GROUP => return Ok(()),
        KEY_TRANSACTION => "transactions are not supported",
        _ => "only consumer groups have a coordinator",
    };
    Err(Fault::new(ErrorCode::InvalidRequest, what))
}

#[cfg(test)]
mod tests {
    use super::super::drive::Node;
    use super::super::testing::{World, answer, asked};
    use super::*;
    use crate::command::{Refusal, Reply};

    fn keys(keys: &[&str], key_type: i8) -> FindCoordinatorRequest {
        FindCoordinatorRequest {
            coordinator_keys: keys.iter().map(|key| Text::from(*key)).collect(),
            key_type,
            ..FindCoordinatorRequest::default()
        }
    }

    fn node() -> Node {
        Node { world: World::new().with_topic(OFFSETS_TOPIC, 1) }
    }

    #[test]
    fn the_first_request_for_a_group_makes_the_topic_that_clients_look_for() {
        let world = World::new();
        let (commands, then) = asked(world.handle(4, &keys(&["g"], KEY_GROUP)));
        let [(ShardId(0), Command::Catalog(CatalogCommand::CreateTopics { topics, .. }))] =
            commands.as_slice()
        else {
            panic!("{commands:?}");
        };
        let [topic] = topics.as_slice() else { panic!("{topics:?}") };
        assert_eq!((topic.name.as_str(), topic.partition_count), (OFFSETS_TOPIC, Some(1)));
        assert!(topic.automatic, "another client's request may have made it meanwhile");
        // A node that cannot make it serves groups all the same.
        let step = then(&world.context(), vec![Reply::Refused(Refusal::DiskFull)]);
        let (response, _) = answer::<FindCoordinatorRequest>(4, step);
        assert_eq!(response.coordinators[0].error_code, ErrorCode::None);
    }

    #[test]
    fn one_node_coordinates_every_group() {
        let node = node();
        for version in 0..=3 {
            let asked = FindCoordinatorRequest { key: "g".into(), ..keys(&[], KEY_GROUP) };
            let response = node.answer(version, asked);
            assert_eq!(response.error_code, ErrorCode::None);
            assert_eq!(
                (response.node_id, response.host.as_str(), response.port),
                (0, "mill", 9092)
            );
        }
    }

    #[test]
    fn with_a_port_for_each_shard_the_group_s_shard_is_named() {
        let node = Node { world: node().world.advertise_shards() };
        let response = node.answer(6, keys(&["a", "b", "c", "d"], KEY_GROUP));
        assert!(response.coordinators.iter().any(|found| found.node_id == 0));
        assert!(response.coordinators.iter().any(|found| found.node_id == 1));
        for found in response.coordinators {
            let shard = group_shard(&found.key, 2).0;
            assert_eq!(found.node_id, i32::from(shard));
            assert_eq!(found.port, 9092 + i32::from(shard));
        }
    }

    #[test]
    fn transactions_and_share_groups_are_refused_for_good() {
        let node = Node::new();
        for key_type in [KEY_TRANSACTION, 2, 7] {
            let response = node.answer(6, keys(&["x"], key_type));
            let found = &response.coordinators[0];
            assert_eq!((found.node_id, found.port), (-1, -1));
            assert_eq!(found.error_code, ErrorCode::InvalidRequest);
            assert!(found.error_message.is_some());
        }
        let single = FindCoordinatorRequest { key: "x".into(), ..keys(&[], KEY_TRANSACTION) };
        assert_eq!(node.answer(2, single).error_code, ErrorCode::InvalidRequest);
    }

    #[test]
    fn no_keys_get_no_coordinators() {
        assert_eq!(node().answer(4, keys(&[], KEY_GROUP)).coordinators, []);
    }
}
