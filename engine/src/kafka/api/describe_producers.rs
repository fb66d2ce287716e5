//! DescribeProducers: the idempotent producers that partitions remember.

use std::collections::HashSet;

use super::ask::{ask_scattered, decoded};
use super::scatter::Scatter;
use super::{Step, find_partition, find_topic, first_error, head_of, reply_as, respond};
use crate::command::{Command, ProducerFacts};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    ActiveProducer, DescribeProducersPartition, DescribeProducersRequest,
    DescribeProducersResponse, DescribeProducersTopicResponse,
};
use crate::kafka::session::Context;

/// Without transactions there is no coordinator's epoch.
const COORDINATOR_EPOCH: i32 = -1;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: DescribeProducersRequest| {
        let mut seen = HashSet::new();
        let mut scatter = Scatter::new();
        let mut places = Vec::new();
        for topic in &body.topics {
            let route = find_topic(cx.routes, false, &topic.name, Default::default());
            for asked in &topic.partition_indexes {
                let place = route.and_then(|route| {
                    let index = find_partition(route, *asked)?;
                    let partition = route.partition(index);
                    // Each mention brings all producers: a small request, a huge answer.
                    if !seen.insert(partition) {
                        return Err(ErrorCode::InvalidRequest);
                    }
                    Ok(scatter.add(route.shard_of(index), partition))
                });
                places.push(place);
            }
        }
        let request = head_of(request);
        ask_scattered(
            scatter,
            places,
            Command::DescribeProducers,
            |reply| reply_as!(DescribeProducers, reply),
            move |_, results| finish(&request, body, results),
        )
    })
}

fn finish(
    request: &RequestFrame,
    body: DescribeProducersRequest,
    results: Vec<Result<Vec<ProducerFacts>, ErrorCode>>,
) -> Step {
    let error = first_error(results.iter().filter_map(|result| result.as_ref().err().copied()));
    let mut results = results.into_iter();
    let mut topics = Vec::with_capacity(body.topics.len());
    for topic in body.topics {
        let indexes = topic.partition_indexes.into_iter();
        let partitions = indexes.zip(&mut results).map(|(partition_index, result)| {
            let (producers, error_code) = match result {
                Ok(producers) => (producers, ErrorCode::None),
                Err(code) => (Vec::new(), code),
            };
            DescribeProducersPartition {
                partition_index,
                error_code,
                error_message: None,
                active_producers: producers.into_iter().map(active_producer).collect(),
            }
        });
        let partitions = partitions.collect();
        topics.push(DescribeProducersTopicResponse { name: topic.name, partitions });
    }
    let response = DescribeProducersResponse { topics, ..DescribeProducersResponse::default() };
    respond::<DescribeProducersRequest>(request, &response, error)
}

fn active_producer(facts: ProducerFacts) -> ActiveProducer {
    ActiveProducer {
        producer_id: facts.producer_id,
        producer_epoch: i32::from(facts.producer_epoch),
        last_sequence: facts.last_sequence,
        last_timestamp: facts.last_timestamp_ms,
        coordinator_epoch: COORDINATOR_EPOCH,
        ..ActiveProducer::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::drive::Node;
    use super::*;
    use crate::command::{Refusal, Reply};
    use crate::kafka::messages::DescribeProducersTopic;

    #[test]
    fn each_partition_lists_its_producers_once() {
        let topic = |name: &str, indexes: &[i32]| DescribeProducersTopic {
            name: name.into(),
            partition_indexes: indexes.to_vec(),
        };
        let request = DescribeProducersRequest {
            topics: vec![topic("orders", &[1, 0, 1, 5]), topic("gone", &[0])],
        };
        let producer = ProducerFacts {
            producer_id: 4000,
            producer_epoch: 2,
            last_sequence: 17,
            last_timestamp_ms: 99,
        };
        let node = Node::new();
        let orders = node.topic("orders");
        let response = node.call(0, request, |shard, command| {
            let Command::DescribeProducers(asked) = command else { panic!() };
            assert_eq!(asked, [orders.partition(u32::from(shard.0))]);
            match shard.0 {
                0 => Reply::DescribeProducers(vec![Err(Refusal::Storage)]),
                _ => Reply::DescribeProducers(vec![Ok(vec![producer])]),
            }
        });
        let rows: Vec<_> = (response.topics.iter())
            .flat_map(|topic| &topic.partitions)
            .map(|row| (row.partition_index, row.error_code, row.active_producers.len()))
            .collect();
        let unknown = ErrorCode::UnknownTopicOrPartition;
        assert_eq!(
            rows,
            [
                (1, ErrorCode::None, 1),
                (0, ErrorCode::KafkaStorageError, 0),
                (1, ErrorCode::InvalidRequest, 0),
                (5, unknown, 0),
                (0, unknown, 0),
            ]
        );
        let expected = ActiveProducer {
            producer_id: 4000,
            producer_epoch: 2,
            last_sequence: 17,
            last_timestamp: 99,
            coordinator_epoch: -1,
            current_txn_start_offset: -1,
        };
        assert_eq!(response.topics[0].partitions[0].active_producers, [expected]);
    }
}
