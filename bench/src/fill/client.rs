//! Fills a node that runs: one connection, requests in a pipeline.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use tidemill::kafka::error_code::ErrorCode;
use tidemill::kafka::frame::{decode_response, encode_request, frame_size};
use tidemill::kafka::messages::{
    CreateTopic, CreateTopicsRequest, ProducePartition, ProduceRequest, ProduceTopic, Request,
};

use super::{Filled, Options, Template};

/// Requests without an answer at any time.
const IN_FLIGHT_MAX: usize = 16;

/// Times that one batch is refused for now before that is an error.
const REFUSALS_MAX: u32 = 100_000;

/// Largest answer, and memory to read one.
const ANSWER_SIZE_MAX: usize = 16 << 20;

/// Silence of the node for this long is an error.
const PATIENCE: Duration = Duration::from_secs(30);

const CREATE_VERSION: i16 = 7;
const PRODUCE_VERSION: i16 = 9;

struct Connection {
    stream: TcpStream,
    sent: i32,
    received: i32,
}

impl Connection {
    fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, sent: 0, received: 0 })
    }

    fn send<R: Request>(&mut self, version: i16, request: &R) -> io::Result<()> {
        let frame = encode_request(version, self.sent, Some("tidemill-bench"), request);
        self.sent += 1;
        frame.pieces.iter().try_for_each(|piece| self.stream.write_all(piece))
    }

    /// The next answer; they come in the order of the requests.
    fn receive<R: Request>(&mut self, version: i16) -> Result<R::Response, String> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(|error| error.to_string())?;
        let size = frame_size(length, ANSWER_SIZE_MAX).map_err(|error| error.to_string())?;
        let mut frame = vec![0; size];
        self.stream.read_exact(&mut frame).map_err(|error| error.to_string())?;
        let answer = decode_response::<R>(version, Bytes::from(frame), ANSWER_SIZE_MAX);
        let (number, response) = answer.map_err(|error| error.to_string())?;
        if number != self.received {
            return Err(format!("answer {number} came, {} was due", self.received));
        }
        self.received += 1;
        Ok(response)
    }
}

pub(super) fn fill(
    address: SocketAddr,
    options: &Options,
    template: &Template,
) -> Result<Filled, String> {
    let says = |error: &dyn std::fmt::Display| format!("{address}: {error}");
    let mut connection = Connection::open(address).map_err(|error| says(&error))?;
    let partitions = create_topic(&mut connection, options).map_err(|error| says(&error))?;
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

/// Makes the topic, or finds how many partitions it has.
fn create_topic(connection: &mut Connection, options: &Options) -> Result<u32, String> {
    let topic = CreateTopic {
        name: options.topic.as_str().into(),
        num_partitions: options.partitions.map_or(-1, |count| count as i32),
        replication_factor: -1,
        ..CreateTopic::default()
    };
    let request = CreateTopicsRequest { topics: vec![topic], ..CreateTopicsRequest::default() };
    connection.send(CREATE_VERSION, &request).map_err(|error| error.to_string())?;
    let answer = connection.receive::<CreateTopicsRequest>(CREATE_VERSION)?;
    let made = answer.topics.first().ok_or("an answer without a topic")?;
    if made.error_code == ErrorCode::TopicAlreadyExists {
        return Err(format!(
            "the topic {} exists already; choose another with --topic",
            options.topic
        ));
    }
    if !made.error_code.is_none() {
        let why = made.error_message.as_deref().unwrap_or_default();
        return Err(format!("creating the topic failed with {:?}: {why}", made.error_code));
    }
    u32::try_from(made.num_partitions).map_err(|_| "a topic without partitions".to_owned())
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
