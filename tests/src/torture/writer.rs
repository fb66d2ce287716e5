//! A producer of our own: fast, idempotent, with several requests on their way, and stubborn.
//!
//! It does what the guarantees ask of a client: batches that were not acknowledged are sent again,
//! in their order, on another connection if need be, until they are. So every record that it ever
//! numbered is in the log once, in order.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tidemill::batch::{BatchBuilder, NewRecord};
use tidemill::kafka::error_code::ErrorCode;
use tidemill::kafka::messages::{InitProducerIdRequest, ProduceRequest};

use super::ledger::{Ledger, first_key, value_of, value_size};
use crate::peer::{PRODUCE_VERSION, Peer, produce_request};
use crate::sim::random::Random;

/// A node remembers five batches of a producer in a partition.
const WINDOW_MAX: usize = 5;
/// A batch is closed above this; one record may be larger than the rest together.
const BATCH_SIZE: usize = 100_000;
/// Pause after a refusal or without a node.
const PAUSE: Duration = Duration::from_millis(20);
/// A node that is up takes what a producer still holds within this.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a producer is told while it runs.
#[derive(Debug)]
pub struct Control {
    is_over: AtomicBool,
    /// Bytes a second.
    rate: AtomicU64,
}

/// A producer that runs.
#[derive(Debug)]
pub struct Writer {
    control: Arc<Control>,
    thread: JoinHandle<Result<(), String>>,
}

impl Writer {
    /// Starts to produce to a topic, at most `size_max` bytes.
    pub fn start(
        address: SocketAddr,
        topic: &str,
        partitions: u32,
        writer: u64,
        rate: u64,
        size_max: u64,
        ledger: &Arc<Mutex<Ledger>>,
    ) -> Writer {
        let control =
            Arc::new(Control { is_over: AtomicBool::new(false), rate: AtomicU64::new(rate) });
        let production = Production {
            address,
            topic: topic.into(),
            writer,
            size_left: size_max,
            control: control.clone(),
            ledger: ledger.clone(),
            random: Random::new(writer),
            producer: None,
            sequences: vec![0; partitions as usize],
            number: 0,
            window: VecDeque::new(),
            due: Instant::now(),
            complaint: String::new(),
        };
        Writer { control, thread: thread::spawn(|| production.run()) }
    }

    /// Bytes a second from now on.
    pub fn set_rate(&self, rate: u64) {
        self.control.rate.store(rate, Ordering::Relaxed);
        self.thread.thread().unpark();
    }

    /// Begins no more batches.
    pub fn stop(&self) {
        self.control.is_over.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
    }

    /// Waits until all is acknowledged.
    pub fn finish(self) -> Result<(), String> {
        self.stop();
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// A batch that is not acknowledged.
struct Batch {
    partition: u32,
    first_key: u64,
    count: u64,
    bytes: Bytes,
    /// Sent on this connection, and not yet answered.
    is_sent: bool,
    was_refused: bool,
}

struct Production {
    address: SocketAddr,
    topic: String,
    writer: u64,
    size_left: u64,
    control: Arc<Control>,
    ledger: Arc<Mutex<Ledger>>,
    random: Random,
    /// Id and epoch.
    producer: Option<(i64, i16)>,
    /// The next of each partition.
    sequences: Vec<i32>,
    number: u64,
    window: VecDeque<Batch>,
    /// When the next batch may be made.
    due: Instant,
    complaint: String,
}

/// Why a connection is left.
enum Break {
    /// It broke, as connections do.
    Broken(io::Error),
    /// The node does what it must not do.
    Wrong(String),
}

impl From<io::Error> for Break {
    fn from(error: io::Error) -> Break {
        Break::Broken(error)
    }
}

impl Production {
    fn run(mut self) -> Result<(), String> {
        let mut over_since = None;
        loop {
            match self.on_a_connection() {
                Ok(()) => {
                    let mut ledger = self.ledger.lock().expect("no panic while it is held");
                    ledger.on_finished(&self.topic, self.writer, self.number);
                    return Ok(());
                }
                Err(Break::Broken(error)) => self.complaint = error.to_string(),
                Err(Break::Wrong(why)) => return Err(why),
            }
            self.window.iter_mut().for_each(|batch| batch.is_sent = false);
            if self.is_over() {
                let since: &mut Instant = over_since.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    return Err(format!("a producer is not done in time: {}", self.complaint));
                }
            }
            thread::park_timeout(PAUSE);
        }
    }

    /// Works until all is acknowledged and no more is wanted.
    fn on_a_connection(&mut self) -> Result<(), Break> {
        let mut peer = Peer::try_connect(self.address)?;
        let (id, epoch) = match self.producer {
            Some(producer) => producer,
            None => {
                let request =
                    InitProducerIdRequest { transaction_timeout_ms: 60_000, ..Default::default() };
                let granted = peer.try_ask(4, &request)?;
                if granted.error_code != ErrorCode::None {
                    return Err(self.refused(granted.error_code, "no producer id"));
                }
                *self.producer.insert((granted.producer_id, granted.producer_epoch))
            }
        };
        let mut refused_at = None;
        loop {
            if refused_at.is_none() {
                while self.wants_more() {
                    let batch = self.next_batch(id, epoch);
                    self.window.push_back(batch);
                }
                for batch in self.window.iter_mut().filter(|batch| !batch.is_sent) {
                    let Batch { partition, bytes, .. } = batch;
                    let request =
                        produce_request(-1, &self.topic, *partition as i32, bytes.clone());
                    peer.send(PRODUCE_VERSION, &request)?;
                    (batch.is_sent, batch.was_refused) = (true, false);
                }
            }
            if self.window.iter().any(|batch| batch.is_sent) {
                if let Some(error) = self.receive(&mut peer)? {
                    let since = *refused_at.get_or_insert_with(Instant::now);
                    if self.is_over() && since.elapsed() > PATIENCE {
                        let why = format!("still refused: {error:?}, {}", self.complaint);
                        return Err(Break::Wrong(why));
                    }
                }
            } else if refused_at.take().is_some() {
                thread::park_timeout(PAUSE);
            } else if self.is_over() {
                return Ok(());
            } else {
                // Until the next batch is due; forever once all is sent.
                let wait = self.due.saturating_duration_since(Instant::now());
                thread::park_timeout(if self.size_left == 0 { PATIENCE } else { wait });
            }
        }
    }

    /// Takes the answer to the first batch that waits for one; an error is one to try again after.
    fn receive(&mut self, peer: &mut Peer) -> Result<Option<ErrorCode>, Break> {
        let (_, response) = peer.receive_next::<ProduceRequest>(PRODUCE_VERSION)?;
        let answer = &response.responses[0].partition_responses[0];
        let index =
            self.window.iter().position(|batch| batch.is_sent).expect("an answer is waited for");
        let partition = self.window[index].partition;
        let place = format!("{}/{partition}, writer {}", self.topic, self.writer);
        if answer.index != partition as i32 {
            return Err(Break::Wrong(format!("{place}: an answer for {}", answer.index)));
        }
        if answer.error_code == ErrorCode::None {
            let Batch { first_key, count, .. } =
                self.window.remove(index).expect("it was just found");
            let offset = u64::try_from(answer.base_offset)
                .map_err(|_| Break::Wrong(format!("{place}: offset {}", answer.base_offset)))?;
            let mut ledger = self.ledger.lock().expect("no panic while it is held");
            ledger
                .on_acknowledged(&self.topic, partition, offset, Some(first_key), count)
                .map_err(|why| Break::Wrong(format!("{why}; writer {}", self.writer)))?;
            return Ok(None);
        }
        // Behind a refused batch the next ones of its partition are out of order.
        let is_behind = |batch: &Batch| batch.partition == partition && batch.was_refused;
        let is_expected = answer.error_code == ErrorCode::OutOfOrderSequenceNumber
            && self.window.iter().take(index).any(is_behind);
        if !is_expected && !answer.error_code.is_retriable() {
            return Err(Break::Wrong(format!(
                "{place}: a batch is refused with {:?}, {:?}",
                answer.error_code, answer.error_message
            )));
        }
        self.complaint = format!("{:?}", answer.error_message);
        let batch = &mut self.window[index];
        (batch.is_sent, batch.was_refused) = (false, true);
        Ok(Some(answer.error_code))
    }

    fn refused(&self, code: ErrorCode, what: &str) -> Break {
        if code.is_retriable() {
            return Break::Broken(io::Error::other(format!("{what}: {code:?}")));
        }
        Break::Wrong(format!("{what}: {code:?}"))
    }

    fn is_over(&self) -> bool {
        self.control.is_over.load(Ordering::Relaxed)
    }

    fn wants_more(&self) -> bool {
        self.window.len() < WINDOW_MAX
            && self.size_left > 0
            && Instant::now() >= self.due
            && !self.is_over()
    }

    fn next_batch(&mut self, id: i64, epoch: i16) -> Batch {
        let partition = self.random.below(self.sequences.len() as u64) as u32;
        let sequence = &mut self.sequences[partition as usize];
        let first_key = first_key(self.writer) + self.number;
        let wanted = self.random.skewed(1, 256);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let mut builder = BatchBuilder::new().producer(id, epoch, *sequence);
        let mut count = 0;
        while count < wanted && builder.size() < BATCH_SIZE {
            let key = first_key + count;
            let (name, value) = (key.to_string(), value_of(key, value_size(key)));
            builder.push(NewRecord {
                timestamp_ms: now.as_millis() as i64,
                key: Some(name.as_bytes()),
                value: Some(&value),
                ..Default::default()
            });
            count += 1;
        }
        *sequence += count as i32;
        self.number += count;
        let bytes = builder.build().into_bytes();
        let size = bytes.len() as u64;
        self.size_left = self.size_left.saturating_sub(size);
        let rate = self.control.rate.load(Ordering::Relaxed).max(1);
        self.due =
            self.due.max(Instant::now()) + Duration::from_secs_f64(size as f64 / rate as f64);
        Batch { partition, first_key, count, bytes, is_sent: false, was_refused: false }
    }
}
