//! Fills a node that runs: one connection, requests in a pipeline.

use std::collections::VecDeque;
use std::net::SocketAddr;

use tidemill::kafka::messages::{ProducePartition, ProduceRequest, ProduceTopic};

use super::{Filled, Options, Template};
use crate::client::Client;
use crate::load::kafka::PRODUCE_VERSION;

/// Requests without an answer at any time.
const IN_FLIGHT_MAX: usize = 16;

/// Times that one batch is refused for now before that is an error.
const REFUSALS_MAX: u32 = 100_000;

pub(super) fn fill(
    address: SocketAddr,
    options: &Options,
    template: &Template,
) -> Result<Filled, String> {
    let says = |error: &dyn std::fmt::Display| format!("{address}: {error}");
    let mut connection = Client::open(address).map_err(|error| says(&error))?;
    let partitions = connection.create_topic(&options.topic, options.partitions, &[]);
    let partitions = partitions.map_err(|error| says(&error))?;
    let batches = options.size.div_ceil(template.size());
    let mut next = 0;
    let mut refused: VecDeque<i32> = VecDeque::new();
    let mut in_flight: VecDeque<i32> = VecDeque::new();
    let mut refusals = 0;
    loop {
        while in_flight.len() < IN_FLIGHT_MAX {
            let partition = match refused.pop_front() {
                Some(partition) => partition,
                None if next < batches => {
                    next += 1;
                    (next % u64::from(partitions)) as i32
                }
                None => break,
            };
            let request = produce(&options.topic, partition, template);
            connection.send(PRODUCE_VERSION, &request).map_err(|error| says(&error))?;
            in_flight.push_back(partition);
        }
        let Some(partition) = in_flight.pop_front() else { break };
        let answer = connection.receive::<ProduceRequest>(PRODUCE_VERSION);
        let answer = answer.map_err(|error| says(&error))?;
        let results = answer.responses.iter().flat_map(|topic| &topic.partition_responses);
        match results.map(|result| result.error_code).next() {
            Some(code) if code.is_none() => refusals = 0,
            Some(code) if code.is_retriable() && refusals < REFUSALS_MAX => {
                refusals += 1;
                refused.push_back(partition);
            }
            Some(code) => return Err(says(&format!("producing failed with {code:?}"))),
            None => return Err(says(&"an answer without a partition")),
        }
    }
    Ok(Filled { records: batches * template.record_count(), size: batches * template.size() })
}

fn produce(topic: &str, index: i32, template: &Template) -> ProduceRequest {
    let partition = ProducePartition { index, records: Some(template.bytes().clone()) };
    ProduceRequest {
        acks: -1,
        timeout_ms: 30_000,
        topic_data: vec![ProduceTopic {
            name: topic.into(),
            partition_data: vec![partition],
            ..ProduceTopic::default()
        }],
        ..ProduceRequest::default()
    }
}
