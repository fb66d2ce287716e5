//! A Kafka client of one socket that does what it is told, be it wrong.
//!
//! Requests are encoded by the engine's own codec, or are any bytes at all. Every wait has the
//! socket's timeout: a node that neither answers nor closes fails the test.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tidemill::batch::{BatchBuilder, NewRecord, batches};
use tidemill::kafka::error_code::ErrorCode;
use tidemill::kafka::frame::{decode_response, encode_request};
use tidemill::kafka::messages::{
    CreateTopic, CreateTopicConfig, CreateTopicResponse, CreateTopicsRequest,
    DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsTopic, DeleteTopic,
    DeleteTopicsRequest, FetchPartition, FetchPartitionResponse, FetchRequest, FetchTopic,
    ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic, MetadataRequest,
    MetadataRequestTopic, MetadataResponse, ProducePartition, ProducePartitionResponse,
    ProduceRequest, ProduceTopic, Request,
};

/// Longest wait for an answer or for a connection's end; a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(20);
/// Largest answer, and most memory that decoding one may take.
const RESPONSE_SIZE_MAX: usize = 256 << 20;

/// The newest versions that name topics instead of giving their ids.
pub const PRODUCE_VERSION: i16 = 12;
/// See [`PRODUCE_VERSION`].
pub const FETCH_VERSION: i16 = 12;

/// One connection.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    correlation_id: i32,
}

impl Peer {
    /// Connects, which must succeed.
    pub fn connect(address: SocketAddr) -> Peer {
        Peer::try_connect(address).unwrap_or_else(|error| panic!("{address}: {error}"))
    }

    /// Connects.
    pub fn try_connect(address: SocketAddr) -> io::Result<Peer> {
        Peer::try_connect_within(address, PATIENCE)
    }

    /// Connects; no wait is longer than this.
    pub fn try_connect_within(address: SocketAddr, patience: Duration) -> io::Result<Peer> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(Peer { stream, correlation_id: 0 })
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends any bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a request and does not wait for its answer.
    pub fn send<R: Request>(&mut self, version: i16, request: &R) -> io::Result<()> {
        self.correlation_id += 1;
        let frame = encode_request(version, self.correlation_id, Some("peer"), request);
        self.send_bytes(&frame.concat())
    }

    /// The next frame, without its length.
    pub fn receive_frame(&mut self) -> io::Result<Bytes> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let size = usize::try_from(i32::from_be_bytes(length)).map_err(io::Error::other)?;
        assert!(size <= RESPONSE_SIZE_MAX, "an answer of {size} bytes");
        let mut frame = vec![0; size];
        self.stream.read_exact(&mut frame)?;
        Ok(frame.into())
    }

    /// The answer to the request that was sent last.
    pub fn receive<R: Request>(&mut self, version: i16) -> io::Result<R::Response> {
        let (correlation_id, response) = self.receive_next::<R>(version)?;
        assert_eq!(correlation_id, self.correlation_id, "answers come in order");
        Ok(response)
    }

    /// The next answer, where several requests were sent; with how many requests were sent up to
    /// the one that it answers.
    pub fn receive_next<R: Request>(&mut self, version: i16) -> io::Result<(i32, R::Response)> {
        let frame = self.receive_frame()?;
        decode_response::<R>(version, frame, RESPONSE_SIZE_MAX).map_err(io::Error::other)
    }

    /// Sends a request and waits for its answer.
    pub fn try_ask<R: Request>(&mut self, version: i16, request: &R) -> io::Result<R::Response> {
        self.send(version, request)?;
        self.receive::<R>(version)
    }

    /// Sends a request and waits for its answer, which must come.
    pub fn ask<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        self.try_ask(version, request)
            .unwrap_or_else(|error| panic!("no answer to {} {version}: {error}", R::API))
    }

    /// Waits until the other side has closed; what it sends before is thrown away. False if it
    /// does not.
    pub fn waits_for_close(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return true,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return true,
                Err(_) => return false,
            }
        }
    }

    /// Makes a topic with the given configuration.
    pub fn create_topic(
        &mut self,
        name: &str,
        num_partitions: i32,
        replication_factor: i16,
        configs: &[(&str, &str)],
    ) -> CreateTopicResponse {
        self.try_create_topic(name, num_partitions, replication_factor, configs)
            .unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// Makes a topic with the given configuration, if there is an answer.
    pub fn try_create_topic(
        &mut self,
        name: &str,
        num_partitions: i32,
        replication_factor: i16,
        configs: &[(&str, &str)],
    ) -> io::Result<CreateTopicResponse> {
        let configs = configs
            .iter()
            .map(|(name, value)| CreateTopicConfig {
                name: (*name).into(),
                value: Some((*value).into()),
            })
            .collect();
        let topic = CreateTopic {
            name: name.into(),
            num_partitions,
            replication_factor,
            configs,
            ..Default::default()
        };
        let request = CreateTopicsRequest { topics: vec![topic], ..Default::default() };
        let mut response = self.try_ask(7, &request)?;
        Ok(response.topics.pop().expect("one topic was asked for"))
    }

    /// Makes a topic, which must succeed.
    pub fn make_topic(&mut self, name: &str, num_partitions: i32) {
        let made = self.create_topic(name, num_partitions, 1, &[]);
        assert_eq!(made.error_code, ErrorCode::None, "{:?}", made.error_message);
    }

    /// What the node says about a topic, without making it.
    pub fn metadata(&mut self, topic: &str) -> MetadataResponse {
        let topic = MetadataRequestTopic { name: Some(topic.into()), ..Default::default() };
        let request = MetadataRequest {
            topics: Some(vec![topic]),
            allow_auto_topic_creation: false,
            ..Default::default()
        };
        self.ask(12, &request)
    }

    /// The names of all topics.
    pub fn topic_names(&mut self) -> BTreeSet<String> {
        let request = MetadataRequest {
            topics: None,
            allow_auto_topic_creation: false,
            ..Default::default()
        };
        let topics = self.ask(12, &request).topics;
        topics.into_iter().filter_map(|topic| Some(topic.name?.as_str().into())).collect()
    }

    /// Moves the start of a partition.
    pub fn trim(&mut self, topic: &str, partition_index: i32, offset: i64) {
        let partition = DeleteRecordsPartition { partition_index, offset };
        let topic = DeleteRecordsTopic { name: topic.into(), partitions: vec![partition] };
        let request = DeleteRecordsRequest { topics: vec![topic], timeout_ms: 10_000 };
        let response = self.ask(2, &request);
        let answer = &response.topics[0].partitions[0];
        assert_eq!((answer.error_code, answer.low_watermark), (ErrorCode::None, offset));
    }

    /// Deletes a topic, if there is an answer.
    pub fn try_delete_topic(&mut self, name: &str) -> io::Result<ErrorCode> {
        let topic = DeleteTopic { name: Some(name.into()), ..Default::default() };
        let request =
            DeleteTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
        Ok(self.try_ask(6, &request)?.responses[0].error_code)
    }

    /// Appends a batch, for which the node answers `acks`.
    pub fn produce(
        &mut self,
        topic: &str,
        partition: i32,
        batch: Bytes,
    ) -> io::Result<ProducePartitionResponse> {
        let mut response =
            self.try_ask(PRODUCE_VERSION, &produce_request(-1, topic, partition, batch))?;
        let mut topic = response.responses.pop().expect("one topic was asked for");
        Ok(topic.partition_responses.pop().expect("one partition was asked for"))
    }

    /// Appends a batch, which must succeed, and returns its first offset.
    pub fn append(&mut self, topic: &str, partition: i32, batch: Bytes) -> i64 {
        let response = self.produce(topic, partition, batch).expect("an answer");
        assert_eq!(response.error_code, ErrorCode::None, "{:?}", response.error_message);
        response.base_offset
    }

    /// Appends a batch as a client does that tries again after an error which says so.
    pub fn append_patiently(&mut self, topic: &str, partition: i32, batch: &Bytes) -> i64 {
        let started = Instant::now();
        loop {
            let response = self.produce(topic, partition, batch.clone()).expect("an answer");
            match response.error_code {
                ErrorCode::None => return response.base_offset,
                code => assert!(code.is_retriable(), "{code:?}: {:?}", response.error_message),
            }
            assert!(started.elapsed() < PATIENCE, "still refused: {:?}", response.error_message);
            self.pause(topic, partition);
        }
    }

    /// A pause with an event's manners: a long poll for records that hardly come.
    pub fn pause(&mut self, topic: &str, partition: i32) {
        let (_, end) = self.list_offset(topic, partition, -1);
        let poll = FetchRequest { max_wait_ms: 50, ..fetch_request(topic, partition, end) };
        self.ask(FETCH_VERSION, &poll);
    }

    /// Reads records from an offset on, waiting for them a little.
    pub fn fetch(&mut self, topic: &str, partition: i32, offset: i64) -> FetchPartitionResponse {
        let mut response = self.ask(FETCH_VERSION, &fetch_request(topic, partition, offset));
        assert_eq!(response.error_code, ErrorCode::None);
        let mut topic = response.responses.pop().expect("one topic was asked for");
        topic.partitions.pop().expect("one partition was asked for")
    }

    /// The values of all records from an offset on.
    pub fn values(&mut self, topic: &str, partition: i32, from: i64) -> Vec<Bytes> {
        let mut values = Vec::new();
        let mut next = from;
        loop {
            let response = self.fetch(topic, partition, next);
            assert_eq!(response.error_code, ErrorCode::None);
            for batch in batches(response.records.0.concat().into()) {
                let batch = batch.expect("stored batches are whole");
                for record in batch.records(RESPONSE_SIZE_MAX).expect("readable") {
                    let record = record.expect("readable");
                    if record.offset as i64 >= next {
                        values.push(record.value.unwrap_or_default());
                    }
                }
                next = next.max(batch.last_offset() as i64 + 1);
            }
            if next >= response.high_watermark {
                return values;
            }
        }
    }

    /// Asks for an offset by time; -1 is the end, -2 the start.
    pub fn list_offset(
        &mut self,
        topic: &str,
        partition_index: i32,
        timestamp: i64,
    ) -> (ErrorCode, i64) {
        let partition = ListOffsetsPartition { partition_index, timestamp, ..Default::default() };
        let topic = ListOffsetsTopic { name: topic.into(), partitions: vec![partition] };
        let request = ListOffsetsRequest { topics: vec![topic], ..Default::default() };
        let response = self.ask(7, &request);
        let found = &response.topics[0].partitions[0];
        (found.error_code, found.offset)
    }
}

/// A request that appends one batch to one partition.
pub fn produce_request(acks: i16, topic: &str, index: i32, batch: Bytes) -> ProduceRequest {
    let partition = ProducePartition { index, records: Some(batch) };
    let topic =
        ProduceTopic { name: topic.into(), partition_data: vec![partition], ..Default::default() };
    ProduceRequest { acks, timeout_ms: 10_000, topic_data: vec![topic], ..Default::default() }
}

/// A request for records of one partition, as many as the node gives.
pub fn fetch_request(topic: &str, partition: i32, fetch_offset: i64) -> FetchRequest {
    let partition = FetchPartition {
        partition,
        fetch_offset,
        partition_max_bytes: i32::MAX,
        ..Default::default()
    };
    let topic =
        FetchTopic { topic: topic.into(), partitions: vec![partition], ..Default::default() };
    FetchRequest {
        max_wait_ms: 1000,
        min_bytes: 1,
        session_epoch: -1,
        topics: vec![topic],
        ..Default::default()
    }
}

/// A batch of one record of now: an older one might be retention's at once.
pub fn batch_of(value: &[u8]) -> Bytes {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    batch_at(now.as_millis() as i64, value)
}

/// A batch of one record with a key.
pub fn keyed_batch(key: &str, value: &[u8]) -> Bytes {
    let mut builder = BatchBuilder::new();
    builder.push(NewRecord { key: Some(key.as_bytes()), value: Some(value), ..Default::default() });
    builder.build().into_bytes()
}

/// A batch of one record with this time.
pub fn batch_at(timestamp_ms: i64, value: &[u8]) -> Bytes {
    let mut builder = BatchBuilder::new();
    builder.push(NewRecord { timestamp_ms, value: Some(value), ..Default::default() });
    builder.build().into_bytes()
}

/// The checksum of batches, frames and headers, bit by bit: tests need no speed.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// A client that behaves, and so must never notice what others do: it appends one record to each
/// partition of a topic of its own and reads it back, over and over.
#[derive(Debug)]
pub struct Witness {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Witnessed>,
}

/// What a [`Witness`] saw.
#[derive(Debug, Clone, Copy)]
pub struct Witnessed {
    /// Records that were acknowledged and read back.
    pub rounds: u64,
    /// The longest that one of them took.
    pub slowest: Duration,
}

impl Witness {
    /// Starts after the first round has succeeded.
    pub fn start(address: SocketAddr, partitions: i32) -> Witness {
        const TOPIC: &str = "witness";
        let is_over = Arc::new(AtomicBool::new(false));
        let stop = is_over.clone();
        let mut peer = Peer::connect(address);
        peer.make_topic(TOPIC, partitions);
        let mut round = move |number: u64| {
            for partition in 0..partitions {
                let value = format!("{partition} {number}");
                let offset = peer.append_patiently(TOPIC, partition, &batch_of(value.as_bytes()));
                assert_eq!(offset, number as i64, "nobody else writes here");
                assert_eq!(peer.values(TOPIC, partition, offset), [value.as_bytes()]);
            }
        };
        round(0);
        let thread = thread::spawn(move || {
            let mut seen = Witnessed { rounds: 1, slowest: Duration::ZERO };
            while !stop.load(Ordering::Acquire) {
                let started = Instant::now();
                round(seen.rounds);
                seen.rounds += 1;
                seen.slowest = seen.slowest.max(started.elapsed());
            }
            seen
        });
        Witness { is_over, thread }
    }

    /// Ends after the round that is running.
    pub fn finish(self) -> Witnessed {
        self.is_over.store(true, Ordering::Release);
        match self.thread.join() {
            Ok(seen) => seen,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
