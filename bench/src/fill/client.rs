//! Fills a node that runs: one connection, requests in a pipeline.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;
use tidemill::kafka::messages::{ProducePartition, ProduceRequest, ProduceTopic};

use super::{Filled, Options, Template};
use crate::client::Client;
use crate::load::kafka::PRODUCE_VERSION;

/// A batch for a partition.
#[derive(Debug, Clone)]
pub struct Addressed<'t> {
    /// The topic.
    pub topic: &'t str,
    /// The partition's index.
    pub partition: u32,
    /// The batch, as a client sends it.
    pub batch: Bytes,
    /// How many records it has.
    pub records: u64,
}

/// Requests without an answer at any time.
const IN_FLIGHT_MAX: usize = 16;

/// Times that one batch is refused for now before that is an error.
const REFUSALS_MAX: u32 = 100_000;

pub(super) fn fill(
    address: SocketAddr,
    options: &Options,
    template: &Template,
) -> Result<Filled, String> {
    into_topic(address, (&options.topic, options.partitions), options.size, template)
}

/// Makes the topic and fills it with `size` bytes of batches.
pub(super) fn into_topic(
    address: SocketAddr,
    (topic, partitions): (&str, Option<u32>),
    size: u64,
    template: &Template,
) -> Result<Filled, String> {
    let says = |error: &dyn std::fmt::Display| format!("{address}: {error}");
    let mut connection = Client::open(address).map_err(|error| says(&error))?;
    let partitions = connection.create_topic(topic, partitions, &[]);
    let partitions = partitions.map_err(|error| says(&error))?;
    let batches = (1..=size.div_ceil(template.size())).map(|number| Addressed {
        topic,
        partition: (number % u64::from(partitions)) as u32,
        batch: template.bytes().clone(),
        records: template.record_count(),
    });
    send(address, batches)
}

/// Sends batches to topics that are there, and waits until all are durable.
pub fn send<'t>(
    address: SocketAddr,
    mut batches: impl Iterator<Item = Addressed<'t>>,
) -> Result<Filled, String> {
    let says = |error: &dyn std::fmt::Display| format!("{address}: {error}");
    let mut connection = Client::open(address).map_err(|error| says(&error))?;
    let mut filled = Filled::default();
    let mut refused: VecDeque<Addressed<'t>> = VecDeque::new();
    let mut in_flight: VecDeque<Addressed<'t>> = VecDeque::new();
    let mut refusals = 0;
    loop {
        while in_flight.len() < IN_FLIGHT_MAX {
            let Some(batch) = refused.pop_front().or_else(|| batches.next()) else { break };
            let request = produce(&batch);
            connection.send(PRODUCE_VERSION, &request).map_err(|error| says(&error))?;
            in_flight.push_back(batch);
        }
        let Some(batch) = in_flight.pop_front() else { break };
        let answer = connection.receive::<ProduceRequest>(PRODUCE_VERSION);
        let answer = answer.map_err(|error| says(&error))?;
        let results = answer.responses.iter().flat_map(|topic| &topic.partition_responses);
        match results.map(|result| result.error_code).next() {
            Some(code) if code.is_none() => {
                refusals = 0;
                filled.records += batch.records;
                filled.size += batch.batch.len() as u64;
            }
            Some(code) if code.is_retriable() && refusals < REFUSALS_MAX => {
                refusals += 1;
                refused.push_back(batch);
            }
            Some(code) => return Err(says(&format!("producing failed with {code:?}"))),
            None => return Err(says(&"an answer without a partition")),
        }
    }
    Ok(filled)
}

fn produce(batch: &Addressed<'_>) -> ProduceRequest {
    let records = Some(batch.batch.clone());
    let partition = ProducePartition { index: batch.partition as i32, records };
    ProduceRequest {
        acks: -1,
        timeout_ms: 30_000,
        topic_data: vec![ProduceTopic {
            name: batch.topic.into(),
            partition_data: vec![partition],
            ..ProduceTopic::default()
        }],
        ..ProduceRequest::default()
    }
}
