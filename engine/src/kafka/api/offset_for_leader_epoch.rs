//! OffsetForLeaderEpoch: where a leader's records end. There is one epoch, and it has not ended.

use std::collections::HashSet;

use tidemill_wal::format::TopicId;

use super::scatter::{Gather, Place, Scatter};
use super::{
    LEADER_EPOCH, Step, ask, check_leader_epoch, decode, find_partition, find_topic, first_error,
    head_of, reply_as, respond,
};
use crate::command::{Command, PartitionFacts, Refusal};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    EpochEndOffset, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
    OffsetForLeaderTopicResponse,
};
use crate::kafka::session::Context;
use crate::kafka::wire::Text;

struct Topic {
    name: Text,
    /// `None`: an epoch that nobody had.
    partitions: Vec<(i32, Result<Option<Place>, ErrorCode>)>,
}

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    let wanted = decode!(cx, request, OffsetForLeaderEpochRequest);
    let mut scatter = Scatter::new();
    let mut seen = HashSet::new();
    let mut topics = Vec::with_capacity(wanted.topics.len());
    for topic in wanted.topics {
        let route = find_topic(cx.routes, false, &topic.topic, TopicId::default());
        let partitions = topic.partitions.iter().map(|wanted| {
            let place = route.and_then(|route| {
                let index = find_partition(route, wanted.partition)?;
                check_leader_epoch(wanted.current_leader_epoch)?;
                let partition = route.partition(index);
                if !seen.insert(partition) {
                    return Err(ErrorCode::InvalidRequest);
                }
                let is_known = wanted.leader_epoch == LEADER_EPOCH;
                Ok(is_known.then(|| scatter.add(route.shard_of(index), partition)))
            });
            (wanted.partition, place)
        });
        let partitions = partitions.collect();
        topics.push(Topic { name: topic.topic, partitions });
    }
    let head = head_of(request);
    ask(scatter.into_commands(Command::DescribePartitions), move |_, replies| {
        let replies = replies.into_iter().map(|reply| reply_as!(DescribePartitions, reply));
        finish(&head, topics, Gather::new(replies))
    })
}

fn finish(
    request: &RequestFrame,
    topics: Vec<Topic>,
    mut results: Gather<Result<PartitionFacts, Refusal>>,
) -> Step {
    let mut responses = Vec::with_capacity(topics.len());
    let mut error = None;
    for topic in topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for (partition, place) in topic.partitions {
            let response = EpochEndOffset { partition, ..Default::default() };
            let facts = place.and_then(|place| {
                let facts = place.map(|place| results.take(place).flatten());
                facts.transpose().map_err(ErrorCode::for_read)
            });
            let response = match facts {
                Ok(Some(facts)) => EpochEndOffset {
                    leader_epoch: LEADER_EPOCH,
                    end_offset: facts.durable_end as i64,
                    ..response
                },
                Ok(None) => response,
                Err(error_code) => EpochEndOffset { error_code, ..response },
            };
            error = error.or_else(|| first_error([response.error_code]));
            partitions.push(response);
        }
        responses.push(OffsetForLeaderTopicResponse { topic: topic.name, partitions });
    }
    let response = OffsetForLeaderEpochResponse { topics: responses, ..Default::default() };
    respond::<OffsetForLeaderEpochRequest>(request, &response, error)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{World, answer, asked};
    use super::*;
    use crate::command::Reply;
    use crate::kafka::messages::{OffsetForLeaderPartition, OffsetForLeaderTopic};

    #[test]
    fn the_only_epoch_ends_where_the_log_does_and_others_never_were() {
        let world = World::new().with_topic("a", 5);
        let partition = |partition, leader_epoch, current_leader_epoch| OffsetForLeaderPartition {
            partition,
            leader_epoch,
            current_leader_epoch,
        };
        let partitions = vec![
            partition(0, 0, -1),
            partition(2, 1, -1),
            partition(4, -1, 0),
            partition(1, 0, 1),
            partition(3, 0, 0),
            partition(0, 0, -1),
            partition(7, 0, -1),
        ];
        let topics = vec![OffsetForLeaderTopic { topic: "a".into(), partitions }];
        let wanted = OffsetForLeaderEpochRequest { topics, ..Default::default() };
        for version in 2..=4 {
            let (commands, then) = asked(world.handle(version, &wanted));
            let shards: Vec<_> = commands.iter().map(|(shard, _)| shard.0).collect();
            assert_eq!(shards, [0, 1]);
            let facts = PartitionFacts { start: 3, durable_end: 9, size: 100 };
            let replies =
                vec![Reply::DescribePartitions(vec![Ok(facts)]), Reply::Refused(Refusal::Stopping)];
            let step = then(&world.context(), replies);
            let (response, error) = answer::<OffsetForLeaderEpochRequest>(version, step);
            let partitions = response.topics[0].partitions.iter();
            let trace: Vec<_> = partitions
                .map(|p| (p.partition, p.error_code, p.leader_epoch, p.end_offset))
                .collect();
            let expected = [
                (0, ErrorCode::None, 0, 9),
                (2, ErrorCode::None, -1, -1),
                (4, ErrorCode::None, -1, -1),
                (1, ErrorCode::UnknownLeaderEpoch, -1, -1),
                (3, ErrorCode::NotLeaderOrFollower, -1, -1),
                (0, ErrorCode::InvalidRequest, -1, -1),
                (7, ErrorCode::UnknownTopicOrPartition, -1, -1),
            ];
            assert_eq!(trace, expected);
            assert_eq!(error, Some(ErrorCode::UnknownLeaderEpoch));
        }
    }
}
