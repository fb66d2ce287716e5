//! A Kafka client that waits for each answer: for what has to be set up before anything is
//! measured.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use tidemill::kafka::error_code::ErrorCode;
use tidemill::kafka::frame::{decode_response, encode_request, frame_size};
use tidemill::kafka::messages::{
    CreateTopic, CreateTopicConfig, CreateTopicsRequest, ListOffsetsPartition, ListOffsetsRequest,
    ListOffsetsTopic, MetadataRequest, MetadataRequestTopic, Request,
};

/// What we call ourselves.
pub const CLIENT_ID: &str = "tidemill-bench";

/// Largest answer, and memory to read one.
const ANSWER_SIZE_MAX: usize = 16 << 20;

/// Silence of the node for this long is an error.
const PATIENCE: Duration = Duration::from_secs(30);

const CREATE_VERSION: i16 = 7;
const METADATA_VERSION: i16 = 9;
const LIST_VERSION: i16 = 5;

/// Stands for the end of a partition.
const LATEST: i64 = -1;

/// Times that metadata are asked for before a topic without leaders is an error.
const METADATA_TRIES: u32 = 1000;

/// A connection; answers come in the order of the requests.
pub struct Client {
    stream: TcpStream,
    sent: i32,
    received: i32,
}

/// Where the partitions of a topic are led, by index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaders(pub Vec<SocketAddr>);

impl Leaders {
    /// Each broker with the partitions that it leads.
    pub fn brokers(&self) -> BTreeMap<SocketAddr, Vec<u32>> {
        let mut brokers: BTreeMap<SocketAddr, Vec<u32>> = BTreeMap::new();
        for (partition, leader) in self.0.iter().enumerate() {
            brokers.entry(*leader).or_default().push(partition as u32);
        }
        brokers
    }
}

impl Client {
    /// Connects.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, sent: 0, received: 0 })
    }

    /// Sends a request and does not wait.
    pub fn send<R: Request>(&mut self, version: i16, request: &R) -> io::Result<()> {
        let frame = encode_request(version, self.sent, Some(CLIENT_ID), request);
        self.sent += 1;
        frame.pieces.iter().try_for_each(|piece| self.stream.write_all(piece))
    }

    /// The next answer.
    pub fn receive<R: Request>(&mut self, version: i16) -> Result<R::Response, String> {
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

    /// Sends a request and waits for its answer.
    pub fn ask<R: Request>(&mut self, version: i16, request: &R) -> Result<R::Response, String> {
        self.send(version, request).map_err(|error| error.to_string())?;
        self.receive::<R>(version)
    }

    /// Makes a topic and returns how many partitions it has; -1 leaves the number to the node.
    pub fn create_topic(
        &mut self,
        name: &str,
        partitions: Option<u32>,
        configs: &[(&str, &str)],
    ) -> Result<u32, String> {
        let config = |(name, value): &(&str, &str)| CreateTopicConfig {
            name: (*name).into(),
            value: Some((*value).into()),
        };
        let topic = CreateTopic {
            name: name.into(),
            num_partitions: partitions.map_or(-1, |count| count as i32),
            replication_factor: -1,
            configs: configs.iter().map(config).collect(),
            ..CreateTopic::default()
        };
        let request = CreateTopicsRequest { topics: vec![topic], ..CreateTopicsRequest::default() };
        let answer = self.ask(CREATE_VERSION, &request)?;
        let made = answer.topics.first().ok_or("an answer without a topic")?;
        if made.error_code == ErrorCode::TopicAlreadyExists {
            return Err(format!("the topic {name} exists already; choose another with --topic"));
        }
        if !made.error_code.is_none() {
            let why = made.error_message.as_deref().unwrap_or_default();
            return Err(format!("creating the topic failed with {:?}: {why}", made.error_code));
        }
        u32::try_from(made.num_partitions).map_err(|_| "a topic without partitions".to_owned())
    }

    /// Asks until every partition of a topic has a leader.
    pub fn leaders(&mut self, topic: &str) -> Result<Leaders, String> {
        let wanted = MetadataRequestTopic { name: Some(topic.into()), ..Default::default() };
        let request = MetadataRequest {
            topics: Some(vec![wanted]),
            allow_auto_topic_creation: false,
            ..MetadataRequest::default()
        };
        for _ in 0..METADATA_TRIES {
            let answer = self.ask(METADATA_VERSION, &request)?;
            let broker = |id: i32| -> Option<SocketAddr> {
                let broker = answer.brokers.iter().find(|broker| broker.node_id == id)?;
                let port = u16::try_from(broker.port).ok()?;
                std::net::ToSocketAddrs::to_socket_addrs(&(&*broker.host, port)).ok()?.next()
            };
            let Some(found) = answer.topics.first().filter(|topic| topic.error_code.is_none())
            else {
                continue;
            };
            let mut leaders = vec![None; found.partitions.len()];
            for partition in found.partitions.iter().filter(|each| each.error_code.is_none()) {
                let index = usize::try_from(partition.partition_index).unwrap_or(usize::MAX);
                if let Some(leader) = leaders.get_mut(index) {
                    *leader = broker(partition.leader_id);
                }
            }
            let leaders: Option<Vec<SocketAddr>> = leaders.into_iter().collect();
            if let Some(leaders) = leaders.filter(|leaders| !leaders.is_empty()) {
                return Ok(Leaders(leaders));
            }
        }
        Err(format!("the topic {topic} has partitions without a leader"))
    }

    /// The end of each partition of a topic.
    pub fn ends(&mut self, topic: &str, partitions: u32) -> Result<Vec<u64>, String> {
        let wanted = |index: u32| ListOffsetsPartition {
            partition_index: index as i32,
            timestamp: LATEST,
            ..ListOffsetsPartition::default()
        };
        let partitions = (0..partitions).map(wanted).collect();
        let topic = ListOffsetsTopic { name: topic.into(), partitions };
        let request = ListOffsetsRequest { topics: vec![topic], ..ListOffsetsRequest::default() };
        let answer = self.ask(LIST_VERSION, &request)?;
        // Kafka answers in an order of its own.
        let mut found: Vec<_> = answer.topics.iter().flat_map(|topic| &topic.partitions).collect();
        found.sort_by_key(|found| found.partition_index);
        found
            .into_iter()
            .map(|found| match u64::try_from(found.offset) {
                Ok(offset) if found.error_code.is_none() => Ok(offset),
                _ => Err(format!("no end: {:?}", found.error_code)),
            })
            .collect()
    }
}
