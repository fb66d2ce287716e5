//! Both ends of the demonstration: who writes events when they are due, and who reads results.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::alerts::{ALERTS, Alert};
use crate::batch::{BatchBuilder, NewRecord};
use crate::client::{Append, Client, ClientError, Reading};
use crate::nexmark::feed::patiently;
use crate::nexmark::{INPUT_TOPICS, Traffic};
use crate::runtime::Serving;

/// Header with the time at which an event was due. What a topology makes of a record has its headers.
const DUE_HEADER: &[u8] = b"due";

/// Longest wait of a reader for results.
const READ_WAIT: Duration = Duration::from_millis(500);

/// Most events that are written at once: what a generator that fell behind catches up with. They are
/// some 300 bytes each, and may be one batch, which has a mebibyte at most.
const EVENTS_AT_ONCE: u64 = 2000;

/// Most that the records of one batch may take when they are decompressed.
const RECORDS_SIZE_MAX: usize = 64 << 20;

/// The last window's auction with the most bids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub(super) struct HotItem {
    /// The auction.
    pub(super) auction: usize,
    /// Bids in the window.
    pub(super) num: u64,
}

/// What both ends have done so far.
pub(super) struct Seen {
    /// Tells the records of this run from those of earlier ones.
    run: u64,
    started: Instant,
    /// Events that were acknowledged.
    pub(super) written: AtomicU64,
    /// Results that were read.
    pub(super) read: AtomicU64,
    /// From when an event was due until its result was read, since the last look, in microseconds.
    latencies_us: Mutex<Vec<u64>>,
    hottest: Mutex<Option<HotItem>>,
    alert: Mutex<Option<Alert>>,
}

impl Seen {
    /// Nothing.
    pub(super) fn new() -> Self {
        let run = since_1970().as_nanos() as u64;
        Self {
            run,
            started: Instant::now(),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            latencies_us: Mutex::default(),
            hottest: Mutex::default(),
            alert: Mutex::default(),
        }
    }

    /// Latencies since the last call, in microseconds.
    pub(super) fn take_latencies(&self) -> Vec<u64> {
        std::mem::take(&mut *lock(&self.latencies_us))
    }

    /// The newest row of q5.
    pub(super) fn hottest(&self) -> Option<HotItem> {
        *lock(&self.hottest)
    }

    /// The newest alert.
    pub(super) fn alert(&self) -> Option<Alert> {
        lock(&self.alert).clone()
    }

    fn due_header(&self, due: Instant) -> [u8; 16] {
        let due_us = due.duration_since(self.started).as_micros() as u64;
        let mut header = [0; 16];
        header[..8].copy_from_slice(&self.run.to_be_bytes());
        header[8..].copy_from_slice(&due_us.to_be_bytes());
        header
    }

    /// How long ago a result's event was due, if it is of this run.
    fn latency(&self, header: &[u8], now: Instant) -> Option<Duration> {
        let (run, due_us) = header.split_first_chunk::<8>()?;
        let due_us = u64::from_be_bytes(due_us.try_into().ok()?);
        let due = self.started + Duration::from_micros(due_us);
        (u64::from_be_bytes(*run) == self.run).then(|| now.saturating_duration_since(due))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Writes events at a rate until the node stops, each at its time: one that could not be written
/// then is late, and its latency counts from when it was due.
pub(super) fn write(serving: &Serving, seen: &Seen, rate: u64) -> Result<(), ClientError> {
    let mut client = Client::new(serving.kafka());
    let mut leaders = Vec::new();
    for topic in INPUT_TOPICS {
        leaders.push(patiently(serving, || client.leaders(topic))?);
    }
    let mut traffic = Traffic::new();
    let (started, started_ms) = (Instant::now(), since_1970().as_millis() as u64);
    let due = |number: u64| started + Duration::from_secs_f64(number as f64 / rate as f64);
    let mut next = 0;
    // Events of each topic, which go round its partitions.
    let mut counts = [0_usize; INPUT_TOPICS.len()];
    loop {
        if serving.pause(due(next).saturating_duration_since(Instant::now())) {
            return Ok(());
        }
        let now = Instant::now();
        let mut batches: BTreeMap<(usize, usize), BatchBuilder> = BTreeMap::new();
        let first = next;
        while due(next) <= now && next - first < EVENTS_AT_ONCE {
            let time_ms = started_ms + (due(next) - started).as_millis() as u64;
            let event = traffic.next(time_ms);
            let partition = counts[event.topic] % leaders[event.topic].len();
            counts[event.topic] += 1;
            let header = seen.due_header(due(next));
            batches.entry((event.topic, partition)).or_default().push(NewRecord {
                timestamp_ms: event.time_ms,
                key: None,
                value: Some(&event.value),
                headers: &[(DUE_HEADER, Some(&header))],
            });
            next += 1;
        }
        let batches: Vec<Append<'_>> = batches
            .into_iter()
            .map(|((topic, partition), batch)| Append {
                topic: INPUT_TOPICS[topic],
                partition: partition as u32,
                leader: leaders[topic][partition],
                batch: batch.build().into_bytes(),
            })
            .collect();
        let refused = client.append(&batches)?;
        match refused.iter().find(|(_, code)| !code.is_retriable()) {
            None => {}
            Some((index, code)) => {
                let what = format!("appending to {}", batches[*index].topic);
                return Err(ClientError::Refused { what, code: *code });
            }
        }
        // What was refused for a passing reason is traffic that is lost; more comes.
        if refused.is_empty() {
            seen.written.fetch_add(next - first, Ordering::Relaxed);
        }
    }
}

/// A partition with results.
#[derive(Debug, Clone, Copy)]
pub(super) struct Results {
    topic: &'static str,
    partition: u32,
    /// Where it ended when this was set up.
    end: u64,
}

/// The partitions with results, by who leads them.
pub(super) fn results(
    serving: &Serving,
    client: &mut Client,
    topics: [&'static str; 2],
) -> Result<BTreeMap<SocketAddr, Vec<Results>>, ClientError> {
    let mut led: BTreeMap<SocketAddr, Vec<Results>> = BTreeMap::new();
    for topic in topics {
        let leaders = patiently(serving, || client.leaders(topic))?;
        for (partition, leader) in (0..).zip(leaders) {
            let end = patiently(serving, || client.end(leader, topic, partition))?;
            led.entry(leader).or_default().push(Results { topic, partition, end });
        }
    }
    Ok(led)
}

/// Reads the results that one broker leads until the node stops.
pub(super) fn read(
    serving: &Serving,
    seen: &Seen,
    leader: SocketAddr,
    results: &[Results],
) -> Result<(), ClientError> {
    let mut client = Client::new(serving.kafka());
    let mut readings: Vec<Reading<'_>> = results
        .iter()
        .map(|it| Reading { topic: it.topic, partition: it.partition, offset: it.end })
        .collect();
    while !serving.is_stopping() {
        let before: Vec<u64> = readings.iter().map(|reading| reading.offset).collect();
        let read = client.fetch(leader, &mut readings, READ_WAIT)?;
        let now = Instant::now();
        let mut latencies = Vec::new();
        for (reading, batch) in read {
            let (topic, from) = (readings[reading].topic, before[reading]);
            let records = batch.records(RECORDS_SIZE_MAX);
            let records = records.map_err(|fault| ClientError::Nonsense(fault.to_string()))?;
            for record in records {
                let record = record.map_err(|fault| ClientError::Nonsense(fault.to_string()))?;
                if record.offset < from {
                    continue;
                }
                seen.read.fetch_add(1, Ordering::Relaxed);
                let due = record.headers.iter().find(|(name, _)| *name == DUE_HEADER);
                let due = due.and_then(|(_, due)| seen.latency(due.as_deref()?, now));
                latencies.extend(due.map(|latency| latency.as_micros() as u64));
                let value = record.value.unwrap_or_default();
                if topic == ALERTS {
                    *lock(&seen.alert) = serde_json::from_slice(&value).ok();
                } else {
                    *lock(&seen.hottest) = serde_json::from_slice(&value).ok();
                }
            }
        }
        lock(&seen.latencies_us).extend(latencies);
    }
    Ok(())
}
