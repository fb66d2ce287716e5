//! A Kafka client for programs that bring the node along: it configures topics, appends batches and
//! reads them, over the loopback interface, and waits for each answer.
//!
//! It speaks the protocol as everybody does, so what it measures is what others get. It knows that
//! broker `i` listens at the node's port plus `i`, whatever address strangers are told.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;

use crate::batch::{self, BatchFault, RecordBatch};
pub use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::{CloseReason, decode_response, encode_request, frame_size};
use crate::kafka::messages::{
    FetchPartition, FetchRequest, FetchTopic, IncrementalAlterConfig,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResource, ListOffsetsPartition,
    ListOffsetsRequest, ListOffsetsTopic, MetadataRequest, MetadataRequestTopic, ProducePartition,
    ProduceRequest, ProduceTopic, Request,
};

/// What it calls itself.
const CLIENT_ID: &str = "tidemill";

/// Largest answer, and memory to read one.
const ANSWER_SIZE_MAX: usize = 256 << 20;

/// Silence of the node for this long is an error.
const PATIENCE: Duration = Duration::from_secs(30);

const CONFIGURE_VERSION: i16 = 1;
const METADATA_VERSION: i16 = 12;
const LIST_VERSION: i16 = 7;
/// The newest that names topics instead of giving their ids.
const PRODUCE_VERSION: i16 = 12;
/// See [`PRODUCE_VERSION`].
const FETCH_VERSION: i16 = 12;

/// Kind of a resource that is configured: a topic.
const TOPIC: i8 = 2;

/// What is done with a key of its configuration: it gets a value.
const SET: i8 = 0;

/// Stands for the end of a partition.
const LATEST: i64 = -1;

/// All that is in sync have it: the only acknowledgement that means something here.
const ACKS_ALL: i16 = -1;

/// Most that one read of a partition gets at once.
const FETCH_SIZE: i32 = 4 << 20;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection broke, or the node was silent for too long.
    #[error("the connection to {address}: {source}")]
    Connection {
        /// Of the broker.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The node answered something that is no answer.
    #[error("an answer that makes no sense: {0}")]
    Nonsense(String),
    /// The node said no.
    #[error("{what}: {code:?}")]
    Refused {
        /// What was asked.
        what: String,
        /// Its words.
        code: ErrorCode,
    },
}

impl ClientError {
    /// Whether the same may succeed a little later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Refused { code, .. } => code.is_retriable(),
            Self::Connection { .. } | Self::Nonsense(_) => false,
        }
    }
}

/// Connections to the brokers of a node.
pub struct Client {
    /// Where broker 0 listens.
    node: SocketAddr,
    connections: BTreeMap<SocketAddr, Connection>,
}

/// A batch for a partition.
#[derive(Debug, Clone)]
pub struct Append<'t> {
    /// The topic.
    pub topic: &'t str,
    /// The partition's index.
    pub partition: u32,
    /// Who leads it.
    pub leader: SocketAddr,
    /// The batch.
    pub batch: Bytes,
}

/// Where a reader is in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading<'t> {
    /// The topic.
    pub topic: &'t str,
    /// The partition's index.
    pub partition: u32,
    /// The next offset.
    pub offset: u64,
}

impl Client {
    /// For a node whose first broker listens there; nothing is connected yet.
    pub fn new(node: SocketAddr) -> Self {
        Self { node, connections: BTreeMap::new() }
    }

    /// Sets configuration keys of a topic.
    pub fn configure(&mut self, topic: &str, configs: &[(&str, &str)]) -> Result<(), ClientError> {
        let config = |(name, value): &(&str, &str)| IncrementalAlterConfig {
            name: (*name).into(),
            config_operation: SET,
            value: Some((*value).into()),
        };
        let resource = IncrementalAlterConfigsResource {
            resource_type: TOPIC,
            resource_name: topic.into(),
            configs: configs.iter().map(config).collect(),
        };
        let request =
            IncrementalAlterConfigsRequest { resources: vec![resource], validate_only: false };
        let answer = self.at(self.node)?.ask(CONFIGURE_VERSION, &request)?;
        let code = answer.responses.first().map(|resource| resource.error_code);
        match code.ok_or_else(|| nonsense("no topic in it"))? {
            code if code.is_none() => Ok(()),
            code => Err(ClientError::Refused { what: format!("configuring {topic}"), code }),
        }
    }

    /// Who leads each partition of a topic, in order.
    pub fn leaders(&mut self, topic: &str) -> Result<Vec<SocketAddr>, ClientError> {
        let wanted = MetadataRequestTopic { name: Some(topic.into()), ..Default::default() };
        let request = MetadataRequest {
            topics: Some(vec![wanted]),
            allow_auto_topic_creation: false,
            ..MetadataRequest::default()
        };
        let answer = self.at(self.node)?.ask(METADATA_VERSION, &request)?;
        let refused = |code| ClientError::Refused { what: format!("the topic {topic}"), code };
        let found = answer.topics.first().ok_or_else(|| nonsense("no topic in it"))?;
        if !found.error_code.is_none() {
            return Err(refused(found.error_code));
        }
        let mut leaders = vec![None; found.partitions.len()];
        for partition in &found.partitions {
            if !partition.error_code.is_none() {
                return Err(refused(partition.error_code));
            }
            let index = usize::try_from(partition.partition_index).unwrap_or(usize::MAX);
            if let Some(leader) = leaders.get_mut(index) {
                *leader = self.broker(partition.leader_id);
            }
        }
        let leaders: Option<Vec<SocketAddr>> = leaders.into_iter().collect();
        leaders.ok_or_else(|| nonsense("partitions that are missing"))
    }

    /// Where a broker listens.
    fn broker(&self, number: i32) -> Option<SocketAddr> {
        let port = self.node.port().checked_add(u16::try_from(number).ok()?)?;
        Some(SocketAddr::new(self.node.ip(), port))
    }

    /// The end of a partition: how many records were ever appended to it.
    pub fn end(
        &mut self,
        leader: SocketAddr,
        topic: &str,
        partition: u32,
    ) -> Result<u64, ClientError> {
        let wanted = ListOffsetsPartition {
            partition_index: partition as i32,
            timestamp: LATEST,
            ..ListOffsetsPartition::default()
        };
        let wanted = ListOffsetsTopic { name: topic.into(), partitions: vec![wanted] };
        let request = ListOffsetsRequest { topics: vec![wanted], ..ListOffsetsRequest::default() };
        let answer = self.at(leader)?.ask(LIST_VERSION, &request)?;
        let found = answer.topics.first().and_then(|topic| topic.partitions.first());
        let found = found.ok_or_else(|| nonsense("no partition in it"))?;
        if !found.error_code.is_none() {
            let what = format!("the end of {topic} {partition}");
            return Err(ClientError::Refused { what, code: found.error_code });
        }
        u64::try_from(found.offset).map_err(|_| nonsense("an end below zero"))
    }

    /// Appends batches, at most one for each partition, and returns when those that were taken are
    /// durable: the indices of those that were not, with the reason. An error leaves open which were.
    pub fn append(
        &mut self,
        batches: &[Append<'_>],
    ) -> Result<Vec<(usize, ErrorCode)>, ClientError> {
        let mut requests: BTreeMap<SocketAddr, ProduceRequest> = BTreeMap::new();
        for Append { topic, partition, leader, batch } in batches {
            let request = requests.entry(*leader).or_insert_with(|| ProduceRequest {
                acks: ACKS_ALL,
                timeout_ms: PATIENCE.as_millis() as i32,
                ..ProduceRequest::default()
            });
            let records = Some(batch.clone());
            let partition = ProducePartition { index: *partition as i32, records };
            match request.topic_data.iter_mut().find(|data| data.name == *topic) {
                Some(data) => data.partition_data.push(partition),
                None => request.topic_data.push(ProduceTopic {
                    name: (*topic).into(),
                    partition_data: vec![partition],
                    ..ProduceTopic::default()
                }),
            }
        }
        for (leader, request) in &requests {
            self.at(*leader)?.send(PRODUCE_VERSION, request)?;
        }
        let mut refused = Vec::new();
        for leader in requests.keys() {
            let answer = self.at(*leader)?.receive::<ProduceRequest>(PRODUCE_VERSION)?;
            for topic in &answer.responses {
                for part in topic.partition_responses.iter().filter(|it| !it.error_code.is_none()) {
                    let is_meant = |batch: &Append<'_>| {
                        topic.name == batch.topic && batch.partition as i32 == part.index
                    };
                    let index = batches.iter().position(is_meant);
                    let index = index.ok_or_else(|| nonsense("a partition too many"))?;
                    refused.push((index, part.error_code));
                }
            }
        }
        Ok(refused)
    }

    /// Reads from partitions that one broker leads, and moves on in them: batches, each with the index
    /// of its partition among these. The first of a partition may begin before the offset. Waits for
    /// records for so long, if there are none.
    pub fn fetch(
        &mut self,
        leader: SocketAddr,
        readings: &mut [Reading<'_>],
        wait: Duration,
    ) -> Result<Vec<(usize, RecordBatch)>, ClientError> {
        let mut topics: Vec<FetchTopic> = Vec::new();
        for reading in readings.iter() {
            let partition = FetchPartition {
                partition: reading.partition as i32,
                fetch_offset: reading.offset as i64,
                partition_max_bytes: FETCH_SIZE,
                ..FetchPartition::default()
            };
            match topics.iter_mut().find(|topic| topic.topic == reading.topic) {
                Some(topic) => topic.partitions.push(partition),
                None => topics.push(FetchTopic {
                    topic: reading.topic.into(),
                    partitions: vec![partition],
                    ..FetchTopic::default()
                }),
            }
        }
        let request = FetchRequest {
            max_wait_ms: wait.as_millis() as i32,
            min_bytes: 1,
            session_epoch: -1,
            topics,
            ..FetchRequest::default()
        };
        let answer = self.at(leader)?.ask(FETCH_VERSION, &request)?;
        let mut read = Vec::new();
        for topic in answer.responses {
            for part in topic.partitions {
                let what = || format!("reading {} {}", topic.topic, part.partition_index);
                if !part.error_code.is_none() {
                    return Err(ClientError::Refused { what: what(), code: part.error_code });
                }
                let is_meant = |reading: &Reading<'_>| {
                    topic.topic == reading.topic && reading.partition as i32 == part.partition_index
                };
                let index = readings.iter().position(is_meant);
                let index = index.ok_or_else(|| nonsense("a partition too many"))?;
                for batch in batch::batches(part.records.0.concat().into()) {
                    let batch: RecordBatch =
                        batch.map_err(|fault: BatchFault| nonsense(&fault.to_string()))?;
                    let offset = &mut readings[index].offset;
                    *offset = (*offset).max(batch.last_offset() + 1);
                    read.push((index, batch));
                }
            }
        }
        Ok(read)
    }

    fn at(&mut self, address: SocketAddr) -> Result<&mut Connection, ClientError> {
        match self.connections.entry(address) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => Ok(entry.insert(Connection::open(address)?)),
        }
    }
}

fn nonsense(what: &str) -> ClientError {
    ClientError::Nonsense(what.to_owned())
}

/// A connection; answers come in the order of the requests.
struct Connection {
    address: SocketAddr,
    stream: TcpStream,
    sent: i32,
    received: i32,
}

impl Connection {
    fn open(address: SocketAddr) -> Result<Self, ClientError> {
        let open = || {
            let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let stream = open().map_err(|source| ClientError::Connection { address, source })?;
        Ok(Self { address, stream, sent: 0, received: 0 })
    }

    fn ask<R: Request>(&mut self, version: i16, request: &R) -> Result<R::Response, ClientError> {
        self.send(version, request)?;
        self.receive::<R>(version)
    }

    fn send<R: Request>(&mut self, version: i16, request: &R) -> Result<(), ClientError> {
        let frame = encode_request(version, self.sent, Some(CLIENT_ID), request);
        self.sent = self.sent.wrapping_add(1);
        let sent = frame.pieces.iter().try_for_each(|piece| self.stream.write_all(piece));
        sent.map_err(|source| ClientError::Connection { address: self.address, source })
    }

    fn receive<R: Request>(&mut self, version: i16) -> Result<R::Response, ClientError> {
        let address = self.address;
        let broken = |source| ClientError::Connection { address, source };
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(broken)?;
        let size = frame_size(length, ANSWER_SIZE_MAX)
            .map_err(|reason: CloseReason| nonsense(&reason.to_string()))?;
        let mut frame = vec![0; size];
        self.stream.read_exact(&mut frame).map_err(broken)?;
        let (number, answer) = decode_response::<R>(version, frame.into(), ANSWER_SIZE_MAX)
            .map_err(|error| nonsense(&error.to_string()))?;
        if number != self.received {
            return Err(nonsense(&format!("number {number}, and {} was due", self.received)));
        }
        self.received = self.received.wrapping_add(1);
        Ok(answer)
    }
}
