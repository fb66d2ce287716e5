//! DeleteRecords: everything below an offset is gone.

use tidemill_wal::format::PartitionId;

use super::ask::{ask_scattered, decoded};
use super::scatter::Scatter;
use super::{Step, find_partition, find_topic, first_error, head_of, reply_as, respond};
use crate::command::Command;
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    DeleteRecordsPartitionResponse, DeleteRecordsRequest, DeleteRecordsResponse,
    DeleteRecordsTopicResponse,
};
use crate::kafka::session::Context;

/// The offset that means the partition's end.
const END: i64 = -1;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: DeleteRecordsRequest| {
        let mut scatter: Scatter<(PartitionId, Option<u64>)> = Scatter::new();
        let mut places = Vec::new();
        for topic in &body.topics {
            let route = find_topic(cx.routes, false, &topic.name, Default::default());
            for asked in &topic.partitions {
                let query = route.and_then(|route| {
                    let index = find_partition(route, asked.partition_index)?;
                    let below = below(asked.offset)?;
                    Ok((route.shard_of(index), (route.partition(index), below)))
                });
                places.push(query.map(|(shard, query)| scatter.add(shard, query)));
            }
        }
        let request = head_of(request);
        ask_scattered(
            scatter,
            places,
            Command::DeleteRecords,
            |reply| reply_as!(DeleteRecords, reply),
            move |_, results| finish(&request, body, results),
        )
    })
}

fn below(offset: i64) -> Result<Option<u64>, ErrorCode> {
    match offset {
        END => Ok(None),
        offset => u64::try_from(offset).map(Some).map_err(|_| ErrorCode::OffsetOutOfRange),
    }
}

fn finish(
    request: &RequestFrame,
    body: DeleteRecordsRequest,
    results: Vec<Result<u64, ErrorCode>>,
) -> Step {
    let error = first_error(results.iter().filter_map(|result| result.err()));
    let mut results = results.into_iter();
    let mut topics = Vec::with_capacity(body.topics.len());
    for topic in body.topics {
        let partitions = topic.partitions.into_iter().zip(&mut results).map(|(asked, result)| {
            DeleteRecordsPartitionResponse {
                partition_index: asked.partition_index,
                low_watermark: result.map_or(-1, |start| start as i64),
                error_code: result.err().unwrap_or_default(),
            }
        });
        let partitions = partitions.collect();
        topics.push(DeleteRecordsTopicResponse { name: topic.name, partitions });
    }
    let response = DeleteRecordsResponse { topics, ..DeleteRecordsResponse::default() };
    respond::<DeleteRecordsRequest>(request, &response, error)
}

#[cfg(test)]
mod tests {
    use tidemill_wal::format::ShardId;

    use super::super::drive::Node;
    use super::*;
    use crate::command::{Refusal, Reply};
    use crate::kafka::messages::{DeleteRecordsPartition, DeleteRecordsTopic};

    #[test]
    fn each_shard_is_asked_for_its_partitions_and_answers_find_their_places() {
        let topic = |name: &str, asked: &[(i32, i64)]| DeleteRecordsTopic {
            name: name.into(),
            partitions: asked
                .iter()
                .map(|&(partition_index, offset)| DeleteRecordsPartition {
                    partition_index,
                    offset,
                })
                .collect(),
        };
        for version in 0..=2 {
            let request = DeleteRecordsRequest {
                topics: vec![
                    topic("orders", &[(2, 7), (1, -1), (0, -2), (3, 1), (0, 99)]),
                    topic("gone", &[(0, 1)]),
                ],
                timeout_ms: 1000,
            };
            let node = Node::new();
            let orders = node.topic("orders");
            let response = node.call(version, request, |shard, command| {
                let Command::DeleteRecords(asked) = command else { panic!() };
                if shard == ShardId(1) {
                    assert_eq!(asked, [(orders.partition(1), None)]);
                    return Reply::Refused(Refusal::Busy);
                }
                let expected = [(orders.partition(2), Some(7)), (orders.partition(0), Some(99))];
                assert_eq!(asked, expected);
                Reply::DeleteRecords(vec![Ok(7), Err(Refusal::OffsetOutOfRange)])
            });
            let rows: Vec<_> = (response.topics.iter())
                .flat_map(|topic| &topic.partitions)
                .map(|row| (row.partition_index, row.low_watermark, row.error_code))
                .collect();
            assert_eq!(
                rows,
                [
                    (2, 7, ErrorCode::None),
                    (1, -1, ErrorCode::NotLeaderOrFollower),
                    (0, -1, ErrorCode::OffsetOutOfRange),
                    (3, -1, ErrorCode::UnknownTopicOrPartition),
                    (0, -1, ErrorCode::OffsetOutOfRange),
                    (0, -1, ErrorCode::UnknownTopicOrPartition),
                ]
            );
        }
    }
}
