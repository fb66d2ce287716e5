//! Produce requests of the Kafka protocol, encoded before the run: sending one is a copy and four
//! bytes, reading an answer is looking at fixed places.

pub mod keys;

use std::net::SocketAddr;

use bytes::{Buf, Bytes, BytesMut};
use tidemill::batch::{BatchBuilder, Compression, HEADER_SIZE, NewRecord, RecordBatch};
use tidemill::kafka::error_code::ErrorCode;
use tidemill::kafka::frame::{decode_response, encode_request, encode_response};
use tidemill::kafka::messages::{
    ProducePartition, ProducePartitionResponse, ProduceRequest, ProduceResponse, ProduceTopic,
    ProduceTopicResponse,
};

pub use self::keys::{KEY_SIZE, KeyTurn, key_number, key_text};

use super::{Protocol, Taken, Which};
use crate::client::{CLIENT_ID, Leaders};
use crate::random;

/// Spoken by Tidemill and by Kafka from 2.8 on; names topics by name.
pub const PRODUCE_VERSION: i16 = 9;

/// Largest answer, and memory to read one.
const ANSWER_SIZE_MAX: usize = 1 << 20;

/// Where the correlation id of a request is: behind length, API and version.
const CORRELATION_AT: usize = 8;

/// Bytes of different requests that are made beforehand; they are sent in turn.
const PREPARED_SIZE: usize = 16 << 20;

/// Most different requests of one partition.
const PREPARED_COUNT_MAX: usize = 256;

/// What the requests look like.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Topic that they go to.
    pub topic: String,
    /// Bytes of a record's key and value.
    pub record_size: usize,
    /// Records in a request.
    pub records: usize,
    /// Different keys; 0: none. A keyed record goes to the partition of its key.
    pub keys: u64,
    /// Codec of the batch.
    pub compression: Compression,
    /// Connections.
    pub connections: usize,
}

/// Requests made beforehand.
pub struct Produce {
    topic: String,
    /// For each connection.
    lanes: Vec<Lane>,
    /// Highest offset that was acknowledged, by partition.
    ends: Vec<i64>,
    accepted_size: u64,
}

/// One connection's requests and how far they are.
struct Lane {
    address: SocketAddr,
    /// How many take turns.
    partitions: usize,
    prepared: Vec<Prepared>,
    sent: u64,
    received: u64,
}

struct Prepared {
    frame: Bytes,
    batch_size: usize,
    partition: u32,
}

impl Produce {
    /// Makes the requests. Connections are spread over the leaders, and each sends to the
    /// partitions of its own by turns.
    pub fn new(shape: &Shape, leaders: &Leaders) -> Result<Self, String> {
        let brokers: Vec<(SocketAddr, Vec<u32>)> = leaders.brokers().into_iter().collect();
        if shape.connections < brokers.len() {
            let wanted = brokers.len();
            return Err(format!(
                "{wanted} brokers (each shard is one) want {wanted} connections or more, or a node \
                 with --advertise node"
            ));
        }
        let keys = keys_of(shape, leaders.0.len() as u32);
        let mut accepted_size = 0;
        let mut lanes = Vec::new();
        for connection in 0..shape.connections {
            let (address, partitions) = &brokers[connection % brokers.len()];
            let each = PREPARED_SIZE / shape.connections / shape.batch_size_about();
            // A whole number of turns through the partitions.
            let turns = (each / partitions.len()).clamp(1, PREPARED_COUNT_MAX);
            let count = turns * partitions.len();
            let mut prepared = Vec::with_capacity(count);
            for index in 0..count {
                // Connections of one leader begin at different partitions.
                let partition = partitions[(connection + index) % partitions.len()];
                let batch = shape.batch(keys.get(partition as usize).map(Vec::as_slice))?;
                accepted_size = batch.len() as u64;
                let batch_size = batch.len();
                let frame = request(&shape.topic, partition, batch);
                prepared.push(Prepared { frame, batch_size, partition });
            }
            lanes.push(Lane {
                address: *address,
                partitions: partitions.len(),
                prepared,
                sent: 0,
                received: 0,
            });
        }
        let ends = vec![-1; leaders.0.len()];
        Ok(Self { topic: shape.topic.clone(), lanes, ends, accepted_size })
    }

    /// Where each connection goes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.lanes.iter().map(|lane| lane.address).collect()
    }

    /// Which request of a run has the `index`-th batch that comes to a partition, where each
    /// broker has one connection.
    pub fn number(&self, partition: u32, index: u64) -> Option<u64> {
        self.lanes.iter().zip(0..).find_map(|(lane, number)| {
            let is_ours = |prepared: &Prepared| prepared.partition == partition;
            let turn = lane.prepared.iter().position(is_ours)? as u64;
            let index = index * lane.partitions as u64 + turn;
            Some(index * self.lanes.len() as u64 + number)
        })
    }

    /// Bytes of one batch.
    pub fn accepted_size(&self) -> u64 {
        self.accepted_size
    }

    /// The batch of one of the first connection's requests.
    pub fn batch(&self, index: usize) -> Bytes {
        let prepared = &self.lanes[0].prepared[index];
        // Two empty lists of tags, of the topic and of the request, and one of the partition.
        let end = prepared.frame.len() - 3;
        prepared.frame.slice(end - prepared.batch_size..end)
    }

    /// Bytes of one request as it is sent.
    pub fn request_size(&self) -> u64 {
        self.lanes[0].prepared[0].frame.len() as u64
    }

    /// The same requests on new connections, to another server.
    pub fn elsewhere(&mut self) {
        for lane in &mut self.lanes {
            (lane.sent, lane.received) = (0, 0);
        }
        self.ends.fill(-1);
    }

    /// An answer to the first request, as a server that does nothing else gives it. It has to be
    /// numbered; its offset stays, which is noticed by nobody who ignores offsets.
    pub fn answer_frame(&self) -> Vec<u8> {
        answer(&self.topic, 0, ErrorCode::None, 0)
    }
}

impl Protocol for Produce {
    fn encode(&mut self, connection: usize, _number: u64, out: &mut Vec<u8>) {
        let lane = &mut self.lanes[connection];
        let prepared = &lane.prepared[(lane.sent % lane.prepared.len() as u64) as usize];
        let at = out.len() + CORRELATION_AT;
        out.extend_from_slice(&prepared.frame);
        out[at..at + 4].copy_from_slice(&(lane.sent as i32).to_be_bytes());
        lane.sent += 1;
    }

    fn take(
        &mut self,
        connection: usize,
        received: &[u8],
        _out: &mut Vec<u8>,
    ) -> Result<Taken, String> {
        let Some(length) = received.first_chunk::<4>() else { return Ok(Taken::More) };
        let size = 4 + u32::from_be_bytes(*length) as usize;
        if size > ANSWER_SIZE_MAX {
            return Err(format!("an answer of {size} bytes"));
        }
        if received.len() < size {
            return Ok(Taken::More);
        }
        let lane = &mut self.lanes[connection];
        let expected = &lane.prepared[(lane.received % lane.prepared.len() as u64) as usize];
        let answer = Answer::read(&received[4..size], &self.topic)?;
        if answer.correlation != lane.received as i32 {
            return Err(format!("answer {} came, {} was due", answer.correlation, lane.received));
        }
        lane.received += 1;
        let which = Which::Next;
        if !answer.error.is_none() {
            if answer.error.is_retriable() {
                return Ok(Taken::Refused { size, which });
            }
            return Err(format!("producing failed with {:?}", answer.error));
        }
        if answer.partition != expected.partition && answer.base_offset != ANY_OFFSET {
            let (found, expected) = (answer.partition, expected.partition);
            return Err(format!("an answer for partition {found}, not {expected}"));
        }
        if answer.base_offset != ANY_OFFSET {
            let end = &mut self.ends[answer.partition as usize];
            // Connections share partitions, and their answers may pass each other.
            let shared = self.lanes.len() > 1;
            if answer.base_offset < 0 || (!shared && answer.base_offset <= *end) {
                return Err(format!("offset {} after {end}", answer.base_offset));
            }
            *end = (*end).max(answer.base_offset);
        }
        Ok(Taken::Answer { size, which })
    }
}

/// The offset in the answers of a server that stores nothing.
const ANY_OFFSET: i64 = 0x7fff_0000_0000_0000;

/// What an answer says.
struct Answer {
    correlation: i32,
    partition: u32,
    error: ErrorCode,
    base_offset: i64,
}

impl Answer {
    /// Reads an answer for one partition at the places where each field is, if it looks as usual.
    fn read(frame: &[u8], topic: &str) -> Result<Self, String> {
        // Correlation id, no tags, one topic, its name, one partition: then index, error, offset.
        let name_at = 7;
        let name_end = name_at + topic.len();
        let is_usual = topic.len() < 127
            && frame.len() >= name_end + 1 + 4 + 2 + 8
            && frame[4..7] == [0, 2, topic.len() as u8 + 1]
            && &frame[name_at..name_end] == topic.as_bytes()
            && frame[name_end] == 2;
        if !is_usual {
            return Self::read_any(frame);
        }
        let correlation = (&frame[..4]).get_i32();
        let mut rest = &frame[name_end + 1..];
        let partition = rest.get_u32();
        let error = ErrorCode::from(rest.get_i16());
        Ok(Self { correlation, partition, error, base_offset: rest.get_i64() })
    }

    fn read_any(frame: &[u8]) -> Result<Self, String> {
        let frame = Bytes::copy_from_slice(frame);
        let decoded = decode_response::<ProduceRequest>(PRODUCE_VERSION, frame, ANSWER_SIZE_MAX);
        let (correlation, response) = decoded.map_err(|error| error.to_string())?;
        let mut partitions = response.responses.iter().flat_map(|each| &each.partition_responses);
        let first = partitions.next().ok_or("an answer without a partition")?;
        Ok(Self {
            correlation,
            partition: first.index as u32,
            error: first.error_code,
            base_offset: first.base_offset,
        })
    }
}

impl Shape {
    fn batch_size_about(&self) -> usize {
        HEADER_SIZE + self.records * (self.record_size + 16)
    }

    /// A batch of new random records, with keys of one partition by turns.
    fn batch(&self, keys: Option<&[Vec<u8>]>) -> Result<Bytes, String> {
        let mut bits = random();
        let mut builder = BatchBuilder::new();
        let timestamp_ms = crate::now_ms();
        let mut value = vec![0; self.record_size];
        for _ in 0..self.records {
            fill_with_text(&mut value, &mut bits);
            let key = keys
                .filter(|keys| !keys.is_empty())
                .map(|keys| keys[(bits >> 33) as usize % keys.len()].as_slice());
            let size = self.record_size - key.map_or(0, <[u8]>::len).min(self.record_size);
            let value = Some(&value[..size]);
            builder.push(NewRecord { timestamp_ms, key, value, ..NewRecord::default() });
        }
        compress(builder.build(), self.compression)
    }
}

/// The keys of each partition. A partition that no key falls to gets records without one.
fn keys_of(shape: &Shape, partitions: u32) -> Vec<Vec<Vec<u8>>> {
    let mut keys = vec![Vec::new(); partitions as usize];
    for number in 0..shape.keys {
        let key = format!("{number:016x}").into_bytes();
        keys[(number % u64::from(partitions)) as usize].push(key);
    }
    keys
}

/// Text that does not compress to nothing.
pub fn fill_with_text(value: &mut [u8], bits: &mut u64) {
    for byte in value {
        *bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = b'a' + (*bits >> 59) as u8 % 26;
    }
}

/// The batch with its records compressed.
fn compress(batch: RecordBatch, codec: Compression) -> Result<Bytes, String> {
    let plain = batch.into_bytes();
    let records = &plain[HEADER_SIZE..];
    let (number, compressed) = match codec {
        Compression::None => return Ok(plain),
        Compression::Gzip => {
            use std::io::Write;
            let level = flate2::Compression::default();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(records).map_err(|error| error.to_string())?;
            (1, encoder.finish().map_err(|error| error.to_string())?)
        }
        Compression::Snappy => {
            let done = snap::raw::Encoder::new().compress_vec(records);
            (2, done.map_err(|error| error.to_string())?)
        }
        Compression::Lz4 => {
            use std::io::Write;
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(records).map_err(|error| error.to_string())?;
            (3, encoder.finish().map_err(|error| error.to_string())?)
        }
        Compression::Zstd => {
            let level = ruzstd::encoding::CompressionLevel::Fastest;
            (4, ruzstd::encoding::compress_to_vec(records, level))
        }
    };
    let mut bytes = BytesMut::from(&plain[..HEADER_SIZE]);
    bytes.extend_from_slice(&compressed);
    // Length, attributes and checksum are what changes; see the layout in `tidemill::batch`.
    let length = (bytes.len() - 12) as i32;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    bytes[21..23].copy_from_slice(&(number as u16).to_be_bytes());
    let checksum = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
    let checked = RecordBatch::check(bytes.freeze()).map_err(|error| error.to_string())?;
    Ok(checked.into_bytes())
}

/// A request with one batch for one partition.
fn request(topic: &str, partition: u32, records: Bytes) -> Bytes {
    let partition = ProducePartition { index: partition as i32, records: Some(records) };
    let request = ProduceRequest {
        acks: -1,
        timeout_ms: 30_000,
        topic_data: vec![ProduceTopic {
            name: topic.into(),
            partition_data: vec![partition],
            ..ProduceTopic::default()
        }],
        ..ProduceRequest::default()
    };
    encode_request(PRODUCE_VERSION, 0, Some(CLIENT_ID), &request).concat()
}

fn answer(topic: &str, partition: i32, error_code: ErrorCode, correlation: i32) -> Vec<u8> {
    let partition = ProducePartitionResponse {
        index: partition,
        error_code,
        base_offset: ANY_OFFSET,
        log_start_offset: 0,
        ..ProducePartitionResponse::default()
    };
    let topic = ProduceTopicResponse {
        name: topic.into(),
        partition_responses: vec![partition],
        ..ProduceTopicResponse::default()
    };
    let response = ProduceResponse { responses: vec![topic], ..ProduceResponse::default() };
    encode_response::<ProduceRequest>(PRODUCE_VERSION, correlation, &response).concat().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            topic: "t".into(),
            record_size: 100,
            records: 20,
            keys: 10,
            compression: Compression::None,
            connections: 1,
        }
    }

    fn produce(partitions: usize) -> Produce {
        let address = "127.0.0.1:9".parse().expect("an address");
        Produce::new(&shape(), &Leaders(vec![address; partitions])).expect("made")
    }

    #[test]
    fn a_batch_of_every_codec_is_one_that_the_server_takes() {
        for compression in [
            Compression::None,
            Compression::Gzip,
            Compression::Snappy,
            Compression::Lz4,
            Compression::Zstd,
        ] {
            let shape = Shape { compression, ..shape() };
            let keys = keys_of(&shape, 2);
            let bytes = shape.batch(Some(&keys[1])).expect("built");
            let batch = RecordBatch::check(bytes).expect("good");
            assert_eq!(batch.compression(), compression);
            let records: Vec<_> = batch.records(1 << 20).expect("decompressed").collect();
            assert_eq!(records.len(), 20);
            for record in records {
                let record = record.expect("whole");
                let size = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
                assert_eq!(size(&record.key) + size(&record.value), 100, "{compression:?}");
            }
        }
    }

    #[test]
    fn the_batch_of_a_request_is_found_in_it() {
        let produce = produce(2);
        let batch = RecordBatch::check(produce.batch(1)).expect("a whole batch");
        assert_eq!(batch.record_count(), 20);
    }

    #[test]
    fn answers_are_matched_and_checked() {
        let mut produce = produce(2);
        let mut out = Vec::new();
        for number in 0..3 {
            produce.encode(0, number, &mut out);
        }
        let mut take = |bytes: &[u8]| produce.take(0, bytes, &mut Vec::new());
        let good = answer("t", 0, ErrorCode::None, 0);
        let size = good.len();
        assert_eq!(take(&good[..size - 1]), Ok(Taken::More));
        assert_eq!(take(&good), Ok(Taken::Answer { size, which: Which::Next }));
        assert!(take(&good).is_err(), "the same again");
        let full = answer("t", 1, ErrorCode::NotEnoughReplicas, 1);
        assert_eq!(take(&full), Ok(Taken::Refused { size, which: Which::Next }));
        assert!(take(&answer("t", 0, ErrorCode::CorruptMessage, 2)).is_err());
    }

    #[test]
    fn an_answer_of_another_partition_or_an_old_offset_is_an_error() {
        let real = |partition: i32, offset: i64, correlation: i32| {
            let mut frame = answer("t", partition, ErrorCode::None, correlation);
            let at = frame.windows(2).position(|pair| pair == [0x7f, 0xff]).expect("the offset");
            frame[at..at + 8].copy_from_slice(&offset.to_be_bytes());
            frame
        };
        let mut produce = produce(1);
        let mut take = |frame: Vec<u8>| produce.take(0, &frame, &mut Vec::new());
        assert!(take(real(0, 5, 0)).is_ok());
        assert!(take(real(0, 5, 1)).is_err(), "an offset given twice");
        assert!(take(real(1, 6, 2)).is_err(), "a partition that nobody asked for");
    }

    #[test]
    fn an_unusual_answer_is_read_too() {
        let usual = answer("t", 1, ErrorCode::None, 7);
        let read = |frame: &[u8], topic| Answer::read(frame, topic).map(|it| it.partition);
        assert_eq!(read(&usual[4..], "t"), Ok(1));
        assert_eq!(read(&usual[4..], "another"), Ok(1), "by the general way");
        assert!(Answer::read(&usual[4..12], "t").is_err());
    }
}
