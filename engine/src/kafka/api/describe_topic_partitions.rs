//! DescribeTopicPartitions: what Metadata says of topics, page by page.

use std::collections::BTreeSet;

use super::{Step, TOPIC_OPERATIONS, decode, first_error, is_internal, is_topic_name, respond};
use crate::command::TopicRoute;
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    DescribeTopicPartitionsPartition, DescribeTopicPartitionsRequest,
    DescribeTopicPartitionsResponse, DescribeTopicPartitionsTopicResponse, PartitionCursor,
};
use crate::kafka::session::Context;

/// Partitions on one page at most, as in Kafka.
const PAGE_SIZE_MAX: i32 = 2000;

type Topic = DescribeTopicPartitionsTopicResponse;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    let wanted = decode!(cx, request, DescribeTopicPartitionsRequest);
    let (from_topic, from_partition) = match &wanted.cursor {
        Some(cursor) => (cursor.topic_name.as_str(), cursor.partition_index),
        None => ("", 0),
    };
    let names: BTreeSet<&str> = if wanted.topics.is_empty() {
        cx.routes.topics.keys().map(AsRef::as_ref).collect()
    } else {
        wanted.topics.iter().map(|topic| topic.name.as_str()).collect()
    };
    let mut response = DescribeTopicPartitionsResponse::default();
    let mut room = wanted.response_partition_limit.clamp(1, PAGE_SIZE_MAX) as u32;
    for &name in names.range(from_topic..) {
        if from_partition < 0 {
            response.topics.push(refused(name, ErrorCode::InvalidRequest));
            continue;
        }
        let Some(topic) = cx.routes.topics.get(name) else {
            let is_name = is_topic_name(name);
            let unknown = ErrorCode::UnknownTopicOrPartition;
            response
                .topics
                .push(refused(name, if is_name { unknown } else { ErrorCode::InvalidTopic }));
            continue;
        };
        let from = if name == from_topic { from_partition as u32 } else { 0 };
        let end = topic.partition_count.min(from.saturating_add(room));
        // A page that is full before a topic's first partition says nothing of that topic.
        if room > 0 {
            response.topics.push(described(cx, topic, from..end));
            room -= end.saturating_sub(from);
        }
        if end < topic.partition_count {
            let partition_index = end as i32;
            response.next_cursor =
                Some(PartitionCursor { topic_name: name.into(), partition_index });
            break;
        }
    }
    let error = first_error(response.topics.iter().map(|topic| topic.error_code));
    respond::<DescribeTopicPartitionsRequest>(request, &response, error)
}

fn refused(name: &str, error_code: ErrorCode) -> Topic {
    Topic { error_code, name: Some(name.into()), ..Default::default() }
}

fn described(cx: &Context<'_>, topic: &TopicRoute, partitions: std::ops::Range<u32>) -> Topic {
    let partitions = partitions.map(|index| {
        let leader_id = cx.facts.broker_of(topic.shard_of(index));
        DescribeTopicPartitionsPartition {
            partition_index: index as i32,
            leader_id,
            leader_epoch: super::LEADER_EPOCH,
            replica_nodes: vec![leader_id],
            isr_nodes: vec![leader_id],
            eligible_leader_replicas: Some(Vec::new()),
            last_known_elr: Some(Vec::new()),
            ..Default::default()
        }
    });
    Topic {
        error_code: ErrorCode::None,
        name: Some((&*topic.name).into()),
        topic_id: topic.id,
        is_internal: is_internal(&topic.name),
        partitions: partitions.collect(),
        topic_authorized_operations: TOPIC_OPERATIONS,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;
    use crate::kafka::messages::DescribeTopicPartitionsTopic;

    type Page = (Vec<(String, ErrorCode, Vec<i32>)>, Option<(String, i32)>);

    fn check(names: &[&str], limit: i32, cursor: Option<(&str, i32)>) -> Page {
        let world = World::new().with_topic("a", 2).with_topic("b", 3);
        let topics = names.iter().map(|&name| DescribeTopicPartitionsTopic { name: name.into() });
        let request = DescribeTopicPartitionsRequest {
            topics: topics.collect(),
            response_partition_limit: limit,
            cursor: cursor.map(|(topic, partition_index)| PartitionCursor {
                topic_name: topic.into(),
                partition_index,
            }),
        };
        let response = world.answer(0, &request);
        let topics = response.topics.into_iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|partition| partition.partition_index);
            (topic.name.unwrap_or_default().to_string(), topic.error_code, partitions.collect())
        });
        let next = response.next_cursor.map(|c| (c.topic_name.to_string(), c.partition_index));
        (topics.collect(), next)
    }

    fn ok(name: &str, partitions: &[i32]) -> (String, ErrorCode, Vec<i32>) {
        (name.into(), ErrorCode::None, partitions.to_vec())
    }

    #[test]
    fn pages_follow_each_other_through_all_topics() {
        assert_eq!(check(&[], 2000, None), (vec![ok("a", &[0, 1]), ok("b", &[0, 1, 2])], None));
        let first = vec![ok("a", &[0, 1]), ok("b", &[0])];
        assert_eq!(check(&[], 3, None), (first, Some(("b".into(), 1))));
        assert_eq!(check(&[], 3, Some(("b", 1))), (vec![ok("b", &[1, 2])], None));
        assert_eq!(check(&[], 0, None), (vec![ok("a", &[0])], Some(("a".into(), 1))));
    }

    #[test]
    fn a_page_that_ends_with_a_topic_goes_on_with_the_next() {
        assert_eq!(check(&[], 2, None), (vec![ok("a", &[0, 1])], Some(("b".into(), 0))));
        assert_eq!(check(&[], 2, Some(("b", 0))), (vec![ok("b", &[0, 1])], Some(("b".into(), 2))));
    }

    #[test]
    fn unknown_topics_and_cursors_are_told() {
        let unknown = ("c".into(), ErrorCode::UnknownTopicOrPartition, vec![]);
        let invalid = ("no/name".into(), ErrorCode::InvalidTopic, vec![]);
        assert_eq!(
            check(&["no/name", "c", "a"], 9, None),
            (vec![ok("a", &[0, 1]), unknown, invalid], None)
        );
        let negative = ("a".into(), ErrorCode::InvalidRequest, vec![]);
        assert_eq!(check(&["a"], 9, Some(("a", -1))), (vec![negative], None));
        assert_eq!(check(&["a"], 9, Some(("a", 5))), (vec![ok("a", &[])], None));
    }
}
