//! OffsetCommit: store a group's progress. How long it stays is the node's decision alone: the
//! retention that versions 2 to 4 carry is ignored, as Kafka does since 2.1.

use tidemill_wal::format::PartitionId;

use super::ask::{ask_group, decoded, group_reply_as};
use super::{Step, find_partition, find_topic, first_error, head_of, respond};
use crate::command::{
    CommittedOffset, GroupCommand, MemberRef, OffsetCommit, Refusal, Routes, TopicRoute,
};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    OffsetCommitPartition, OffsetCommitPartitionResponse, OffsetCommitRequest,
    OffsetCommitResponse, OffsetCommitTopic, OffsetCommitTopicResponse,
};
use crate::kafka::session::Context;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: OffsetCommitRequest| {
        let mut offsets = Vec::new();
        let mut topics = Vec::with_capacity(body.topics.len());
        for topic in body.topics {
            topics.push(check_topic(cx.routes, request.version, topic, &mut offsets));
        }
        if offsets.is_empty() {
            return finish(request, topics, Vec::new());
        }
        let count = offsets.len();
        let command = GroupCommand::OffsetCommit(OffsetCommit {
            member: MemberRef {
                group: body.group_id.to_string(),
                generation: body.generation_id_or_member_epoch,
                member_id: body.member_id.to_string(),
                instance_id: body.group_instance_id.map(|id| id.to_string()),
            },
            offsets,
        });
        let request = head_of(request);
        ask_group(cx, &body.group_id, command, move |_, reply| {
            let results = match reply {
                Ok(reply) => group_reply_as!(OffsetCommit, reply),
                Err(refusal) => vec![Err(refusal); count],
            };
            assert!(results.len() == count, "one result for each offset");
            finish(&request, topics, results)
        })
    })
}

/// Adds the offsets that can be stored; the others get their error here.
fn check_topic(
    routes: &Routes,
    version: i16,
    topic: OffsetCommitTopic,
    offsets: &mut Vec<(PartitionId, CommittedOffset)>,
) -> OffsetCommitTopicResponse {
    let route = find_topic(routes, version >= 10, &topic.name, topic.topic_id);
    let mut check = |asked: OffsetCommitPartition| {
        let partition_index = asked.partition_index;
        let error_code = match route.and_then(|route| check_offset(route, asked)) {
            Ok(offset) => {
                offsets.push(offset);
                ErrorCode::None
            }
            Err(code) => code,
        };
        OffsetCommitPartitionResponse { partition_index, error_code }
    };
    OffsetCommitTopicResponse {
        partitions: topic.partitions.into_iter().map(&mut check).collect(),
        name: topic.name,
        topic_id: topic.topic_id,
    }
}

fn check_offset(
    route: &TopicRoute,
    asked: OffsetCommitPartition,
) -> Result<(PartitionId, CommittedOffset), ErrorCode> {
    let index = find_partition(route, asked.partition_index)?;
    let committed = CommittedOffset {
        offset: u64::try_from(asked.committed_offset).map_err(|_| ErrorCode::InvalidRequest)?,
        leader_epoch: asked.committed_leader_epoch,
        metadata: asked.committed_metadata.map(|words| words.to_string()).unwrap_or_default(),
    };
    Ok((route.partition(index), committed))
}

/// Puts the group's results where no error is yet, in order.
fn finish(
    request: &RequestFrame,
    mut topics: Vec<OffsetCommitTopicResponse>,
    results: Vec<Result<(), Refusal>>,
) -> Step {
    let mut results = results.into_iter();
    let mut error = None;
    for partition in topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
        if partition.error_code.is_none() {
            let result = results.next().expect("one result for each offset");
            partition.error_code = result.err().map(ErrorCode::for_group).unwrap_or_default();
        }
        error = error.or(first_error([partition.error_code]));
    }
    let response = OffsetCommitResponse { topics, ..OffsetCommitResponse::default() };
    respond::<OffsetCommitRequest>(request, &response, error)
}

#[cfg(test)]
mod tests {
    use tidemill_wal::format::TopicId;

    use super::super::drive::{Node, group};
    use super::*;
    use crate::command::{GroupReply, Reply};

    fn partition(partition_index: i32, committed_offset: i64) -> OffsetCommitPartition {
        OffsetCommitPartition {
            partition_index,
            committed_offset,
            committed_leader_epoch: 0,
            committed_metadata: (partition_index > 0).then(|| "words".into()),
        }
    }

    fn request(node: &Node) -> OffsetCommitRequest {
        let topic = |name: &str, topic_id, partitions| OffsetCommitTopic {
            name: name.into(),
            topic_id,
            partitions,
        };
        OffsetCommitRequest {
            group_id: "g".into(),
            generation_id_or_member_epoch: 4,
            member_id: "m".into(),
            topics: vec![
                topic(
                    "orders",
                    node.topic("orders").id,
                    vec![partition(2, 7), partition(3, 1), partition(0, 9), partition(1, -1)],
                ),
                topic("gone", TopicId([9; 16]), vec![partition(0, 1)]),
            ],
            ..OffsetCommitRequest::default()
        }
    }

    fn codes(response: &OffsetCommitResponse) -> Vec<ErrorCode> {
        (response.topics.iter())
            .flat_map(|topic| topic.partitions.iter().map(|partition| partition.error_code))
            .collect()
    }

    #[test]
    fn known_partitions_are_stored_and_the_others_keep_their_places() {
        let node = Node::new();
        let orders = node.topic("orders");
        for version in 2..=10 {
            let response = node.call(version, request(&node), |_, command| {
                let GroupCommand::OffsetCommit(commit) = group(command) else { panic!() };
                assert_eq!((commit.member.generation, commit.member.member_id.as_str()), (4, "m"));
                let leader_epoch = if version >= 6 { 0 } else { -1 };
                let offset = |offset, metadata: &str| CommittedOffset {
                    offset,
                    leader_epoch,
                    metadata: metadata.to_owned(),
                };
                assert_eq!(
                    commit.offsets,
                    [
                        (orders.partition(2), offset(7, "words")),
                        (orders.partition(0), offset(9, "")),
                    ]
                );
                let results = vec![Err(Refusal::OffsetMetadataTooLarge), Ok(())];
                Reply::Group(GroupReply::OffsetCommit(results))
            });
            let unknown = ErrorCode::UnknownTopicOrPartition;
            assert_eq!(
                codes(&response),
                [
                    ErrorCode::OffsetMetadataTooLarge,
                    unknown,
                    ErrorCode::None,
                    ErrorCode::InvalidRequest,
                    if version >= 10 { ErrorCode::UnknownTopicId } else { unknown },
                ]
            );
            let topic = &response.topics[1];
            assert_eq!(topic.name, if version >= 10 { "" } else { "gone" });
        }
    }

    #[test]
    fn a_refusal_is_told_for_each_offset_that_was_fine() {
        let node = Node::new();
        let response =
            node.call(9, request(&node), |_, _| Reply::Refused(Refusal::RebalanceInProgress));
        assert_eq!(codes(&response)[0], ErrorCode::RebalanceInProgress);
        assert_eq!(codes(&response)[2], ErrorCode::RebalanceInProgress);
        assert_eq!(codes(&response)[3], ErrorCode::InvalidRequest);
    }

    #[test]
    fn a_commit_of_nothing_known_asks_nobody() {
        let node = Node::new();
        let mut request = request(&node);
        request.topics.remove(0);
        assert_eq!(codes(&node.answer(9, request)), [ErrorCode::UnknownTopicOrPartition]);
        assert_eq!(codes(&node.answer(9, OffsetCommitRequest::default())), []);
    }
}
