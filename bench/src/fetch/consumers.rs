//! Consumers at the tail, all on one thread: each asks for more as soon as it has an answer.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tidemill::batch::{HEADER_SIZE, RecordBatch};
use tidemill::kafka::frame::{decode_response, encode_request};
use tidemill::kafka::messages::{FetchPartition, FetchRequest, FetchTopic};

use super::CATCH_UP;
use crate::client::CLIENT_ID;
use crate::load::{Clock, Link, Poll, thread_cpu_seconds, wake_on_time};

/// The last version that names topics by name.
pub(super) const FETCH_VERSION: i16 = 12;

/// Longest that the server lets a fetch wait.
const WAIT_MS: i32 = 500;

/// Most bytes of an answer.
const ANSWER_SIZE_MAX: usize = 64 << 20;

/// Most bytes asked for of one partition.
const PARTITION_BYTES_MAX: i32 = 1 << 20;

const STOP: usize = usize::MAX;

/// A batch that a consumer got.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Where it is from.
    pub partition: u32,
    /// Its first offset.
    pub base_offset: u64,
    /// When it was there.
    pub at_ns: u64,
}

/// What all consumers got together.
#[derive(Debug, Default)]
pub struct Consumed {
    /// Each batch, for each consumer.
    pub arrivals: Vec<Arrival>,
    /// Records in them.
    pub records: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Answers.
    pub responses: u64,
    /// When each answer with records was there.
    pub answered_ns: Vec<u64>,
    /// Processor seconds of the consumers' thread.
    pub cpu_seconds: f64,
}

/// What consumers ask for.
#[derive(Debug, Clone)]
pub enum Asking {
    /// Partitions of a topic. Offsets have to follow each other.
    Follow(String),
    /// The same in words and bytes, of one that answers with whatever it has.
    Repeat(String),
    /// Nothing: they take what comes.
    Nothing,
}

/// A connection: where to, and with which partitions from which offsets on.
#[derive(Debug, Clone)]
pub struct Route {
    /// The broker.
    pub address: SocketAddr,
    /// Its partitions, with the next offset of each.
    pub offsets: Vec<(u32, u64)>,
}

/// The thread.
pub struct Consumers {
    stop: UnixStream,
    ends: Sender<Vec<u64>>,
    thread: JoinHandle<Result<Consumed, String>>,
}

impl Consumers {
    /// Connects, and asks.
    pub fn start(routes: Vec<Route>, asking: Asking, clock: Clock) -> Result<Self, String> {
        let (stop, stopped) = UnixStream::pair().map_err(|error| error.to_string())?;
        let (ends, wanted) = channel();
        let mut consuming = Consuming::open(routes, asking, clock, (stopped, wanted))?;
        let thread = thread::spawn(move || consuming.run());
        Ok(Self { stop, ends, thread })
    }

    /// Lets them take what is left up to these ends of the partitions, or until the server closes
    /// the connections, and ends them.
    pub fn finish(self, ends: Vec<u64>) -> Result<Consumed, String> {
        self.ends.send(ends).map_err(|_| "the consumers have ended".to_owned())?;
        drop(self.stop);
        self.thread.join().map_err(|_| "the consumers panicked".to_owned())?
    }
}

struct Consuming {
    poll: Poll,
    links: Vec<Consumer>,
    asking: Asking,
    clock: Clock,
    stopped: UnixStream,
    wanted: Receiver<Vec<u64>>,
    consumed: Consumed,
}

struct Consumer {
    link: Link,
    offsets: Vec<(u32, u64)>,
    is_closed: bool,
}

impl Consuming {
    fn open(
        routes: Vec<Route>,
        asking: Asking,
        clock: Clock,
        (stopped, wanted): (UnixStream, Receiver<Vec<u64>>),
    ) -> Result<Self, String> {
        let poll = Poll::new().map_err(|error| error.to_string())?;
        poll.add(&stopped, STOP).map_err(|error| error.to_string())?;
        let mut links = Vec::new();
        for (token, Route { address, offsets }) in routes.into_iter().enumerate() {
            let link = Link::open(address)?;
            poll.add(link.stream(), token).map_err(|error| error.to_string())?;
            links.push(Consumer { link, offsets, is_closed: false });
        }
        let consumed = Consumed { arrivals: Vec::with_capacity(1 << 16), ..Consumed::default() };
        Ok(Self { poll, links, asking, clock, stopped, wanted, consumed })
    }

    fn run(&mut self) -> Result<Consumed, String> {
        wake_on_time();
        let began = thread_cpu_seconds();
        for token in 0..self.links.len() {
            self.ask(token)?;
        }
        // Ends of the partitions, and the end of patience.
        let mut last: Option<(Vec<u64>, u64)> = None;
        let mut ready = Vec::new();
        while !last.as_ref().is_some_and(|(ends, until)| self.is_done(ends, *until)) {
            ready.clear();
            let left = last.as_ref().map(|(_, until)| until.saturating_sub(self.clock.now()));
            let timeout = left.map(Duration::from_nanos);
            ready.extend(self.poll.wait(timeout).map_err(|error| error.to_string())?);
            for event in &ready {
                if event.token == STOP {
                    self.poll.remove(&self.stopped).map_err(|error| error.to_string())?;
                    let ends = self.wanted.recv().map_err(|error| error.to_string())?;
                    last = Some((ends, self.clock.now() + CATCH_UP.as_nanos() as u64));
                } else if !self.receive(event.token)? {
                    let consumer = &mut self.links[event.token];
                    consumer.is_closed = true;
                    self.poll.remove(consumer.link.stream()).map_err(|error| error.to_string())?;
                }
            }
        }
        self.consumed.cpu_seconds = thread_cpu_seconds() - began;
        Ok(std::mem::take(&mut self.consumed))
    }

    /// Whether everybody has everything, or waits for it no longer.
    fn is_done(&self, ends: &[u64], until_ns: u64) -> bool {
        let has_all = |consumer: &Consumer| match self.asking {
            Asking::Follow(_) => {
                let is_there =
                    |(partition, offset): &(u32, u64)| ends[*partition as usize] == *offset;
                consumer.offsets.iter().all(is_there)
            }
            Asking::Repeat(_) | Asking::Nothing => consumer.is_closed,
        };
        self.links.iter().all(has_all) || self.clock.now() >= until_ns
    }

    fn ask(&mut self, token: usize) -> Result<(), String> {
        let (Asking::Follow(topic) | Asking::Repeat(topic)) = &self.asking else {
            return Ok(());
        };
        let consumer = &mut self.links[token];
        let partition = |(index, offset): &(u32, u64)| FetchPartition {
            partition: *index as i32,
            fetch_offset: *offset as i64,
            partition_max_bytes: PARTITION_BYTES_MAX,
            ..FetchPartition::default()
        };
        let topic = FetchTopic {
            topic: topic.as_str().into(),
            partitions: consumer.offsets.iter().map(partition).collect(),
            ..FetchTopic::default()
        };
        let request = FetchRequest {
            max_wait_ms: WAIT_MS,
            min_bytes: 1,
            max_bytes: ANSWER_SIZE_MAX as i32 / 2,
            topics: vec![topic],
            ..FetchRequest::default()
        };
        let frame = encode_request(FETCH_VERSION, token as i32, Some(CLIENT_ID), &request);
        for piece in frame.pieces {
            consumer.link.out().extend_from_slice(&piece);
        }
        if consumer.link.flush()? {
            return Err("a fetch request does not fit the socket".to_owned());
        }
        Ok(())
    }

    /// Takes what has come; false when the other side has ended.
    fn receive(&mut self, token: usize) -> Result<bool, String> {
        let is_following = matches!(self.asking, Asking::Follow(_));
        match self.links[token].link.fill() {
            Ok(true) => {}
            Ok(false) => return Ok(true),
            Err(why) if is_following => return Err(why),
            Err(_) => return Ok(false),
        }
        let at_ns = self.clock.now();
        loop {
            let received = self.links[token].link.received();
            let Some(length) = received.first_chunk::<4>() else { break };
            let size = 4 + u32::from_be_bytes(*length) as usize;
            if size > ANSWER_SIZE_MAX {
                return Err(format!("an answer of {size} bytes"));
            }
            if received.len() < size {
                break;
            }
            let frame = Bytes::copy_from_slice(&received[4..size]);
            self.links[token].link.pass(size);
            self.consumed.bytes += size as u64;
            self.consumed.responses += 1;
            let arrivals = self.consumed.arrivals.len();
            self.take(token, frame, at_ns)?;
            if self.consumed.arrivals.len() > arrivals {
                self.consumed.answered_ns.push(at_ns);
            }
            self.ask(token)?;
        }
        Ok(true)
    }

    fn take(&mut self, token: usize, frame: Bytes, at_ns: u64) -> Result<(), String> {
        let decoded = decode_response::<FetchRequest>(FETCH_VERSION, frame, ANSWER_SIZE_MAX);
        let (_, response) = decoded.map_err(|error| error.to_string())?;
        if !response.error_code.is_none() {
            return Err(format!("fetching failed with {:?}", response.error_code));
        }
        let is_following = matches!(self.asking, Asking::Follow(_));
        let offsets = &mut self.links[token].offsets;
        for found in response.responses.into_iter().flat_map(|topic| topic.partitions) {
            if !found.error_code.is_none() {
                return Err(format!("fetching failed with {:?}", found.error_code));
            }
            let partition = found.partition_index as u32;
            for bytes in found.records.0 {
                let mut rest = bytes;
                while let Some(batch) = next_batch(&mut rest)? {
                    self.consumed.records += u64::from(batch.record_count());
                    let base_offset = batch.base_offset();
                    if is_following {
                        let (_, offset) = offsets
                            .iter_mut()
                            .find(|(index, _)| *index == partition)
                            .ok_or_else(|| format!("nobody asked for partition {partition}"))?;
                        if base_offset != *offset {
                            return Err(format!("offset {base_offset} came, {offset} was due"));
                        }
                        *offset = batch.last_offset() + 1;
                    }
                    self.consumed.arrivals.push(Arrival { partition, base_offset, at_ns });
                }
            }
        }
        Ok(())
    }
}

/// Takes the next whole batch; a part of one at the end is passed over, as consumers do.
pub fn next_batch(rest: &mut Bytes) -> Result<Option<RecordBatch>, String> {
    if rest.len() < HEADER_SIZE {
        return Ok(None);
    }
    let size = 12 + (&rest[8..12]).get_u32() as usize;
    if rest.len() < size {
        return Ok(None);
    }
    let batch = RecordBatch::stored(rest.split_to(size)).map_err(|error| error.to_string())?;
    Ok(Some(batch))
}
