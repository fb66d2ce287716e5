//! OffsetFetch: read the progress of one group up to version 7, of many from 8 on.
//!
//! There are no open transactions, so every offset is stable, whether that is required or not. A
//! partition that does not exist has no offset, which is no error, except by a topic id.

use std::collections::{BTreeMap, HashMap, HashSet};

use tidemill_wal::format::PartitionId;

use super::ask::{ask_groups, decoded, group_reply_as};
use super::{Step, find_partition, find_topic, first_error, head_of, respond};
use crate::command::{CommittedOffset, GroupCommand, Routes, TopicRoute};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    OffsetFetchGroup, OffsetFetchGroupResponse, OffsetFetchPartitionResponse, OffsetFetchRequest,
    OffsetFetchResponse, OffsetFetchTopic, OffsetFetchTopicResponse,
};
use crate::kafka::session::Context;
use crate::kafka::wire::Text;

type Topics = Option<Vec<OffsetFetchTopic>>;
type Offsets = Vec<(PartitionId, Option<CommittedOffset>)>;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: OffsetFetchRequest| {
        let asked = if request.version >= 8 {
            body.groups
        } else {
            let OffsetFetchRequest { group_id, topics, .. } = body;
            vec![OffsetFetchGroup { group_id, topics, ..OffsetFetchGroup::default() }]
        };
        let mut seen = HashSet::new();
        let mut asks = Vec::new();
        let mut wanted = Vec::with_capacity(asked.len());
        for OffsetFetchGroup { group_id, topics, .. } in asked {
            // Each mention could bring all offsets of the group: a small request, a huge answer.
            let is_first = seen.insert(group_id.clone());
            if is_first {
                let partitions = topics
                    .as_ref()
                    .map(|topics| known_partitions(cx.routes, request.version, topics));
                let group = group_id.to_string();
                asks.push((group_id.clone(), GroupCommand::OffsetFetch { group, partitions }));
            }
            wanted.push((group_id, topics, is_first));
        }
        let request = head_of(request);
        ask_groups(cx, asks, move |cx, replies| {
            let mut replies = replies.into_iter().map(|(_, reply)| {
                reply
                    .and_then(|reply| group_reply_as!(OffsetFetch, reply))
                    .map_err(ErrorCode::for_group)
            });
            let groups = wanted.into_iter().map(|(group_id, topics, is_first)| {
                let result = match is_first {
                    true => replies.next().expect("one reply for each group"),
                    false => Err(ErrorCode::InvalidRequest),
                };
                group_response(cx.routes, request.version, group_id, topics, result)
            });
            finish(&request, groups.collect())
        })
    })
}

fn finish(request: &RequestFrame, mut groups: Vec<OffsetFetchGroupResponse>) -> Step {
    let codes = groups.iter().flat_map(|group| {
        let partitions = group.topics.iter().flat_map(|topic| &topic.partitions);
        [group.error_code].into_iter().chain(partitions.map(|partition| partition.error_code))
    });
    let error = first_error(codes);
    let mut response = OffsetFetchResponse::default();
    if request.version >= 8 {
        response.groups = groups;
    } else {
        let group = groups.pop().expect("one group was asked for");
        response.topics = group.topics;
        response.error_code = group.error_code;
    }
    respond::<OffsetFetchRequest>(request, &response, error)
}

fn known_partitions(
    routes: &Routes,
    version: i16,
    topics: &[OffsetFetchTopic],
) -> Vec<PartitionId> {
    let mut partitions = Vec::new();
    for topic in topics {
        let Ok(route) = find_topic(routes, version >= 10, &topic.name, topic.topic_id) else {
            continue;
        };
        let indexes = topic.partition_indexes.iter();
        let known = indexes.filter_map(|index| find_partition(route, *index).ok());
        partitions.extend(known.map(|index| route.partition(index)));
    }
    partitions
}

fn group_response(
    routes: &Routes,
    version: i16,
    group_id: Text,
    topics: Topics,
    result: Result<Offsets, ErrorCode>,
) -> OffsetFetchGroupResponse {
    let mut response = OffsetFetchGroupResponse { group_id, ..OffsetFetchGroupResponse::default() };
    match (result, topics) {
        (Ok(offsets), Some(topics)) => {
            let offsets: HashMap<_, _> = offsets.into_iter().collect();
            response.topics = topics
                .into_iter()
                .map(|topic| topic_response(routes, version, topic, &offsets))
                .collect();
        }
        (Ok(offsets), None) => response.topics = all_topics(routes, offsets),
        // Version 1 has no other place for an error than the partitions.
        (Err(code), Some(topics)) if version < 2 => {
            response.topics = topics.into_iter().map(|topic| failed(topic, code)).collect();
        }
        (Err(code), _) => response.error_code = code,
    }
    response
}

fn topic_response(
    routes: &Routes,
    version: i16,
    topic: OffsetFetchTopic,
    offsets: &HashMap<PartitionId, Option<CommittedOffset>>,
) -> OffsetFetchTopicResponse {
    let route = match find_topic(routes, version >= 10, &topic.name, topic.topic_id) {
        Ok(route) => route,
        Err(ErrorCode::UnknownTopicId) => return failed(topic, ErrorCode::UnknownTopicId),
        Err(_) => return failed(topic, ErrorCode::None),
    };
    let partitions = topic.partition_indexes.iter().map(|index| {
        let committed = u32::try_from(*index)
            .ok()
            .and_then(|index| offsets.get(&route.partition(index)))
            .and_then(Option::as_ref);
        partition_response(*index, committed, ErrorCode::None)
    });
    OffsetFetchTopicResponse {
        partitions: partitions.collect(),
        name: topic.name,
        topic_id: topic.topic_id,
    }
}

fn failed(topic: OffsetFetchTopic, code: ErrorCode) -> OffsetFetchTopicResponse {
    let indexes = topic.partition_indexes.iter();
    OffsetFetchTopicResponse {
        partitions: indexes.map(|index| partition_response(*index, None, code)).collect(),
        name: topic.name,
        topic_id: topic.topic_id,
    }
}

/// Topics that are gone have no name to tell; their offsets go soon after them.
fn all_topics(routes: &Routes, offsets: Offsets) -> Vec<OffsetFetchTopicResponse> {
    let mut topics: BTreeMap<&str, (&TopicRoute, BTreeMap<u32, CommittedOffset>)> = BTreeMap::new();
    for (partition, committed) in offsets {
        if let (Some(route), Some(committed)) = (routes.ids.get(&partition.topic), committed) {
            let (_, partitions) =
                topics.entry(&route.name).or_insert_with(|| (route, BTreeMap::new()));
            partitions.insert(partition.index, committed);
        }
    }
    let response = |(name, (route, partitions)): (&str, (&TopicRoute, BTreeMap<_, _>))| {
        OffsetFetchTopicResponse {
            name: name.into(),
            topic_id: route.id,
            partitions: partitions
                .iter()
                .map(|(index, committed): (&u32, _)| {
                    partition_response(*index as i32, Some(committed), ErrorCode::None)
                })
                .collect(),
        }
    };
    topics.into_iter().map(response).collect()
}

fn partition_response(
    partition_index: i32,
    committed: Option<&CommittedOffset>,
    error_code: ErrorCode,
) -> OffsetFetchPartitionResponse {
    match committed {
        Some(committed) => OffsetFetchPartitionResponse {
            partition_index,
            committed_offset: committed.offset as i64,
            committed_leader_epoch: committed.leader_epoch,
            metadata: Some(committed.metadata.as_str().into()),
            error_code,
        },
        None => OffsetFetchPartitionResponse {
            partition_index,
            committed_offset: -1,
            error_code,
            ..OffsetFetchPartitionResponse::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use tidemill_wal::format::TopicId;

    use super::super::drive::{Node, group};
    use super::*;
    use crate::command::{GroupReply, Refusal, Reply, group_shard};

    fn committed(offset: u64) -> CommittedOffset {
        CommittedOffset { offset, leader_epoch: 0, metadata: "words".into() }
    }

    fn topics(node: &Node) -> Vec<OffsetFetchTopic> {
        let topic = |name: &str, topic_id, partition_indexes| OffsetFetchTopic {
            name: name.into(),
            topic_id,
            partition_indexes,
        };
        vec![
            topic("gone", TopicId([9; 16]), vec![0]),
            topic("orders", node.topic("orders").id, vec![2, 1, 9, -1]),
        ]
    }

    /// For old versions and new ones alike.
    fn request(topics: Option<Vec<OffsetFetchTopic>>) -> OffsetFetchRequest {
        let group_id = Text::from("g");
        OffsetFetchRequest {
            groups: vec![OffsetFetchGroup {
                group_id: group_id.clone(),
                topics: topics.clone(),
                ..OffsetFetchGroup::default()
            }],
            group_id,
            topics,
            require_stable: true,
        }
    }

    /// The only group's answer, wherever the version has it.
    fn only_group(version: i16, response: OffsetFetchResponse) -> OffsetFetchGroupResponse {
        if version >= 8 {
            assert_eq!(response.groups.len(), 1);
            return response.groups.into_iter().next().unwrap();
        }
        OffsetFetchGroupResponse {
            group_id: "g".into(),
            topics: response.topics,
            error_code: response.error_code,
        }
    }

    fn rows(group: &OffsetFetchGroupResponse) -> Vec<(i32, i64, ErrorCode)> {
        (group.topics.iter())
            .flat_map(|topic| &topic.partitions)
            .map(|partition| {
                (partition.partition_index, partition.committed_offset, partition.error_code)
            })
            .collect()
    }

    #[test]
    fn every_partition_asked_for_is_answered_in_its_place() {
        let node = Node::new();
        let orders = node.topic("orders");
        for version in 1..=10 {
            let response = node.call(version, request(Some(topics(&node))), |shard, command| {
                assert_eq!(shard, group_shard("g", 2));
                let GroupCommand::OffsetFetch { partitions, .. } = group(command) else { panic!() };
                assert_eq!(partitions, Some(vec![orders.partition(2), orders.partition(1)]));
                Reply::Group(GroupReply::OffsetFetch(Ok(vec![
                    (orders.partition(2), Some(committed(5))),
                    (orders.partition(1), None),
                ])))
            });
            let group = only_group(version, response);
            let gone = if version >= 10 { ErrorCode::UnknownTopicId } else { ErrorCode::None };
            let none = ErrorCode::None;
            assert_eq!(
                rows(&group),
                [(0, -1, gone), (2, 5, none), (1, -1, none), (9, -1, none), (-1, -1, none)]
            );
            let found = &group.topics[1].partitions[0];
            assert_eq!(found.metadata, Some("words".into()));
            assert_eq!(found.committed_leader_epoch, if version >= 5 { 0 } else { -1 });
        }
    }

    #[test]
    fn null_topics_mean_all_that_still_exist() {
        let node = Node::new();
        let (orders, audit) = (node.topic("orders"), node.topic("audit"));
        for version in 2..=10 {
            let response = node.call(version, request(None), |_, command| {
                let GroupCommand::OffsetFetch { partitions, .. } = group(command) else { panic!() };
                assert_eq!(partitions, None);
                let gone = PartitionId { topic: TopicId([9; 16]), index: 0 };
                Reply::Group(GroupReply::OffsetFetch(Ok(vec![
                    (orders.partition(2), Some(committed(5))),
                    (gone, Some(committed(1))),
                    (audit.partition(0), Some(committed(7))),
                    (orders.partition(0), Some(committed(6))),
                ])))
            });
            let group = only_group(version, response);
            let none = ErrorCode::None;
            assert_eq!(rows(&group), [(0, 7, none), (0, 6, none), (2, 5, none)]);
            match version {
                10 => assert_eq!(group.topics[0].topic_id, audit.id),
                _ => assert_eq!(group.topics[0].name, "audit"),
            }
        }
    }

    #[test]
    fn a_refusal_is_told_where_the_version_has_a_place() {
        let node = Node::new();
        for version in 1..=10 {
            let response = node.call(version, request(Some(topics(&node))), |_, _| {
                Reply::Group(GroupReply::OffsetFetch(Err(Refusal::Loading)))
            });
            let group = only_group(version, response);
            if version == 1 {
                assert!(
                    rows(&group).iter().all(|row| row.2 == ErrorCode::CoordinatorLoadInProgress)
                );
                assert_eq!(rows(&group).len(), 5);
            } else {
                assert_eq!(group.error_code, ErrorCode::CoordinatorLoadInProgress);
                assert_eq!(rows(&group), []);
            }
        }
    }

    #[test]
    fn many_groups_are_answered_in_order_and_a_second_mention_is_refused() {
        let node = Node::new();
        let orders = node.topic("orders");
        let group_of = |name: &str| OffsetFetchGroup {
            group_id: name.into(),
            topics: None,
            ..OffsetFetchGroup::default()
        };
        let request = OffsetFetchRequest {
            groups: ["a", "bb", "a", "ccc"].map(group_of).to_vec(),
            ..OffsetFetchRequest::default()
        };
        let mut asked = 0;
        let response = node.call(8, request, |shard, command| {
            let GroupCommand::OffsetFetch { group, .. } = group(command) else { panic!() };
            assert_eq!(shard, group_shard(&group, 2));
            asked += 1;
            let offset = committed(group.len() as u64);
            Reply::Group(GroupReply::OffsetFetch(Ok(vec![(orders.partition(0), Some(offset))])))
        });
        let offsets: Vec<_> = (response.groups.iter())
            .map(|group| (rows(group).first().map(|row| row.1), group.error_code))
            .collect();
        assert_eq!(asked, 3);
        assert_eq!(
            offsets,
            [
                (Some(1), ErrorCode::None),
                (Some(2), ErrorCode::None),
                (None, ErrorCode::InvalidRequest),
                (Some(3), ErrorCode::None),
            ]
        );
    }
}
