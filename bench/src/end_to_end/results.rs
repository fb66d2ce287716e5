//! The consumer of the results: a thread that asks for more as soon as it has an answer, sees
//! committed records alone, and notes when each count was there.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use tidemill::batch::RecordBatch;
use tidemill::kafka::frame::{decode_response, encode_request};
use tidemill::kafka::messages::{FetchPartition, FetchRequest, FetchTopic};

use super::tally::Tally;
use crate::client::{CLIENT_ID, Leaders};
use crate::fetch::next_batch;
use crate::load::kafka::key_number;
use crate::load::{Clock, Link, Poll, wake_on_time};

/// The last version that names topics by name.
const FETCH_VERSION: i16 = 12;

/// Kafka's number for a consumer that sees what is committed, and nothing else.
const READ_COMMITTED: i8 = 1;

/// Longest that the server lets a fetch wait.
const WAIT_MS: i32 = 500;

/// Most bytes of an answer.
const ANSWER_SIZE_MAX: usize = 64 << 20;

/// Most bytes asked for of one partition.
const PARTITION_BYTES_MAX: i32 = 1 << 20;

/// Most bytes of the records of one batch.
const RECORDS_SIZE_MAX: usize = 64 << 20;

const STOP: usize = usize::MAX;

/// The thread.
pub struct Results {
    stop: UnixStream,
    last: Sender<Last>,
    thread: JoinHandle<Result<Tally, String>>,
}

/// What is still to come when the load has ended.
#[derive(Debug, Clone, Copy)]
struct Last {
    /// Records that are counted in the end.
    total: u64,
    /// Longest wait for that.
    patience: Duration,
}

impl Results {
    /// Connects to each leader of the topic, and asks from these offsets of its partitions on.
    pub fn start(
        topic: &str,
        (leaders, offsets): (&Leaders, &[u64]),
        tally: Tally,
        clock: Clock,
    ) -> Result<Self, String> {
        let (stop, stopped) = UnixStream::pair().map_err(|error| error.to_string())?;
        let (last, told) = channel();
        let poll = Poll::new().map_err(|error| error.to_string())?;
        poll.add(&stopped, STOP).map_err(|error| error.to_string())?;
        let mut consumers = Vec::new();
        for (token, (address, partitions)) in leaders.brokers().into_iter().enumerate() {
            let consumer = Consumer::open(address, &partitions, offsets)?;
            poll.add(consumer.link.stream(), token).map_err(|error| error.to_string())?;
            consumers.push(consumer);
        }
        let topic = topic.to_owned();
        let mut reading = Reading { poll, consumers, topic, tally, clock, stopped, told };
        let thread = thread::spawn(move || reading.run());
        Ok(Self { stop, last, thread })
    }

    /// Lets it go on until this many records were counted in all, or patience is over, and ends it.
    pub fn finish(self, total: u64, patience: Duration) -> Result<Tally, String> {
        // If it has ended already, its own words say why.
        let _ = self.last.send(Last { total, patience });
        drop(self.stop);
        self.thread.join().map_err(|_| "the consumer of the results panicked".to_owned())?
    }
}

struct Reading {
    poll: Poll,
    consumers: Vec<Consumer>,
    topic: String,
    tally: Tally,
    clock: Clock,
    stopped: UnixStream,
    told: Receiver<Last>,
}

/// A connection to one leader.
struct Consumer {
    link: Link,
    /// Its partitions, with the next offset of each.
    offsets: Vec<(u32, u64)>,
}

impl Consumer {
    fn open(address: SocketAddr, partitions: &[u32], offsets: &[u64]) -> Result<Self, String> {
        let offset = |partition: &u32| (*partition, offsets[*partition as usize]);
        let offsets = partitions.iter().map(offset).collect();
        Ok(Self { link: Link::open(address)?, offsets })
    }

    fn ask(&mut self, topic: &str) -> Result<(), String> {
        let partition = |(index, offset): &(u32, u64)| FetchPartition {
            partition: *index as i32,
            fetch_offset: *offset as i64,
            partition_max_bytes: PARTITION_BYTES_MAX,
            ..FetchPartition::default()
        };
        let topic = FetchTopic {
            topic: topic.into(),
            partitions: self.offsets.iter().map(partition).collect(),
            ..FetchTopic::default()
        };
        let request = FetchRequest {
            max_wait_ms: WAIT_MS,
            min_bytes: 1,
            max_bytes: ANSWER_SIZE_MAX as i32 / 2,
            isolation_level: READ_COMMITTED,
            topics: vec![topic],
            ..FetchRequest::default()
        };
        let frame = encode_request(FETCH_VERSION, 0, Some(CLIENT_ID), &request);
        for piece in frame.pieces {
            self.link.out().extend_from_slice(&piece);
        }
        if self.link.flush()? {
            return Err("a fetch request does not fit the socket".to_owned());
        }
        Ok(())
    }

    /// The next whole answer of those that have come.
    fn answer(&mut self) -> Result<Option<Bytes>, String> {
        let received = self.link.received();
        let Some(length) = received.first_chunk::<4>() else { return Ok(None) };
        let size = 4 + u32::from_be_bytes(*length) as usize;
        if size > ANSWER_SIZE_MAX {
            return Err(format!("an answer of {size} bytes"));
        }
        if received.len() < size {
            return Ok(None);
        }
        let frame = Bytes::copy_from_slice(&received[4..size]);
        self.link.pass(size);
        Ok(Some(frame))
    }

    /// Counts what an answer has, and goes on behind it.
    fn take(&mut self, frame: Bytes, at_ns: u64, tally: &mut Tally) -> Result<(), String> {
        let decoded = decode_response::<FetchRequest>(FETCH_VERSION, frame, ANSWER_SIZE_MAX);
        let (_, response) = decoded.map_err(|error| error.to_string())?;
        if !response.error_code.is_none() {
            return Err(format!("fetching failed with {:?}", response.error_code));
        }
        for found in response.responses.into_iter().flat_map(|topic| topic.partitions) {
            if !found.error_code.is_none() {
                return Err(format!("fetching failed with {:?}", found.error_code));
            }
            if found.aborted_transactions.is_some_and(|aborted| !aborted.is_empty()) {
                return Err("a transaction was aborted: the run is not as it should be".to_owned());
            }
            let partition = found.partition_index as u32;
            let (_, offset) = self
                .offsets
                .iter_mut()
                .find(|(index, _)| *index == partition)
                .ok_or_else(|| format!("nobody asked for partition {partition}"))?;
            for mut rest in found.records.0 {
                while let Some(batch) = next_batch(&mut rest)? {
                    count(&batch, *offset, at_ns, tally)?;
                    *offset = batch.last_offset() + 1;
                }
            }
        }
        Ok(())
    }
}

/// Counts the records of a batch from an offset on.
fn count(batch: &RecordBatch, from: u64, at_ns: u64, tally: &mut Tally) -> Result<(), String> {
    if batch.is_control() {
        return Ok(());
    }
    for record in batch.records(RECORDS_SIZE_MAX).map_err(|error| error.to_string())? {
        let record = record.map_err(|error| error.to_string())?;
        if record.offset < from {
            continue;
        }
        let key = record.key.as_deref().and_then(key_number);
        let count: Option<[u8; 8]> = record.value.as_deref().and_then(|it| it.try_into().ok());
        match key.zip(count.map(u64::from_be_bytes)) {
            Some((key, count)) => tally.take(key, count, at_ns)?,
            None => return Err(format!("a result that is none: {record:?}")),
        }
    }
    Ok(())
}

impl Reading {
    fn run(&mut self) -> Result<Tally, String> {
        wake_on_time();
        for consumer in &mut self.consumers {
            consumer.ask(&self.topic)?;
        }
        // How many are wanted, and the end of patience.
        let mut last: Option<(u64, u64)> = None;
        let mut ready = Vec::new();
        while last.is_none_or(|(total, until_ns)| {
            self.tally.total() < total && self.clock.now() < until_ns
        }) {
            ready.clear();
            let left = last.map(|(_, until_ns)| until_ns.saturating_sub(self.clock.now()));
            let timeout = left.map(Duration::from_nanos);
            ready.extend(self.poll.wait(timeout).map_err(|error| error.to_string())?);
            for event in &ready {
                if event.token == STOP {
                    self.poll.remove(&self.stopped).map_err(|error| error.to_string())?;
                    let told = self.told.recv().map_err(|error| error.to_string())?;
                    let until_ns = self.clock.now() + told.patience.as_nanos() as u64;
                    last = Some((told.total, until_ns));
                } else {
                    self.receive(event.token)?;
                }
            }
        }
        Ok(std::mem::take(&mut self.tally))
    }

    fn receive(&mut self, token: usize) -> Result<(), String> {
        let consumer = &mut self.consumers[token];
        if !consumer.link.fill()? {
            return Ok(());
        }
        let at_ns = self.clock.now();
        while let Some(frame) = consumer.answer()? {
            consumer.take(frame, at_ns, &mut self.tally)?;
            consumer.ask(&self.topic)?;
        }
        Ok(())
    }
}
