//! What the shards tell about themselves: plain atomics, written with `Relaxed`, locked by nobody.
//!
//! Each shard has its own block, alone on its cache lines, so that counting costs a shard one
//! uncontended `fetch_add` and never waits for another core. Sums over shards are made at scrape.
//! Values of one scrape are not of one instant; metrics do not need that.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;

use crossbeam_utils::CachePadded;
use tidemill_wal::format::PartitionId;
use tokio::sync::oneshot;

use crate::command::{StateEntry, StateQuery};

/// Only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts `count` more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// What was counted so far.
    pub fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Raises the value.
    pub fn add(&self, value: u64) {
        self.0.fetch_add(value, Relaxed);
    }

    /// Lowers the value.
    pub fn subtract(&self, value: u64) {
        let before = self.0.fetch_sub(value, Relaxed);
        debug_assert!(before >= value, "no more is taken away than was added");
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// True or false.
#[derive(Debug, Default)]
pub struct Flag(AtomicBool);

impl Flag {
    /// Replaces the value.
    pub fn set(&self, value: bool) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    pub fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// The buckets of a histogram: powers of two from `2^low` to `2^high`, and with `halves` also the
/// values in the middle between two powers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// Exponent of the first upper bound.
    pub low: u32,
    /// Exponent of the last finite upper bound.
    pub high: u32,
    /// Two buckets for each power instead of one.
    pub halves: bool,
}

/// A durable write: 8 µs to 33 s, in steps of at most a half, for its tail is the product.
pub const COMMIT_LATENCY: Scale = Scale { low: 3, high: 25, halves: true };

/// A request: 64 µs to 67 s. Coarser, for there is one histogram for each API.
pub const REQUEST_LATENCY: Scale = Scale { low: 6, high: 26, halves: false };

/// A frame: one block to the largest.
pub const FRAME_SIZE: Scale = Scale { low: 12, high: 24, halves: false };

impl Scale {
    fn bucket_count(self) -> usize {
        let octaves = (self.high - self.low) as usize;
        // One up to the first bound, and one above the last.
        octaves * self.per_octave() + 2
    }

    fn per_octave(self) -> usize {
        if self.halves { 2 } else { 1 }
    }

    /// The bucket of a value: bounds are inclusive upper bounds.
    fn bucket(self, value: u64) -> usize {
        let below = value.saturating_sub(1);
        if below >> self.low == 0 {
            return 0;
        }
        let octave = below.ilog2();
        if octave >= self.high {
            return self.bucket_count() - 1;
        }
        let half = if self.halves { (below >> (octave - 1) & 1) as usize } else { 0 };
        1 + (octave - self.low) as usize * self.per_octave() + half
    }

    /// The finite upper bounds in order.
    fn bounds(self) -> impl Iterator<Item = u64> {
        (self.low..=self.high).flat_map(move |octave| {
            let power = 1u64 << octave;
            let middle = (self.halves && octave < self.high).then_some(power / 2 * 3);
            [Some(power), middle].into_iter().flatten()
        })
    }
}

/// Counts values in buckets of growing width.
#[derive(Debug)]
pub struct Histogram {
    scale: Scale,
    sum: AtomicU64,
    buckets: Box<[AtomicU64]>,
}

impl Histogram {
    fn new(scale: Scale) -> Self {
        let buckets = (0..scale.bucket_count()).map(|_| AtomicU64::new(0)).collect();
        Self { scale, sum: AtomicU64::new(0), buckets }
    }

    /// Counts one value: microseconds or bytes, as the histogram's name says.
    pub fn record(&self, value: u64) {
        self.buckets[self.scale.bucket(value)].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// Sum of all values.
    pub(super) fn sum(&self) -> u64 {
        self.sum.load(Relaxed)
    }

    /// Upper bounds, `None` for no bound, each with the count of its own bucket.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let bounds = self.scale.bounds().map(Some).chain([None]);
        bounds.zip(self.buckets.iter().map(|bucket| bucket.load(Relaxed)))
    }
}

/// How a request ended, as far as a person who watches cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// No error anywhere in the response.
    Good,
    /// At least one error that clients retry by themselves: overload, a full disk, a rebalance.
    Retriable,
    /// At least one error that says the request was wrong: no such topic, a bad batch.
    Refused,
    /// At least one error that is the node's own: damaged data, something unforeseen.
    Fault,
}

/// Requests of one API on one shard.
#[derive(Debug)]
pub struct ApiTelemetry {
    requests: Counter,
    retriable: Counter,
    refused: Counter,
    faults: Counter,
    latency: Histogram,
}

impl ApiTelemetry {
    fn new() -> Self {
        Self {
            requests: Counter::default(),
            retriable: Counter::default(),
            refused: Counter::default(),
            faults: Counter::default(),
            latency: Histogram::new(REQUEST_LATENCY),
        }
    }

    /// Counts one answered request and the microseconds from its last byte to its answer.
    pub fn record(&self, latency_us: u64, outcome: Outcome) {
        self.requests.add(1);
        self.latency.record(latency_us);
        match outcome {
            Outcome::Good => {}
            Outcome::Retriable => self.retriable.add(1),
            Outcome::Refused => self.refused.add(1),
            Outcome::Fault => self.faults.add(1),
        }
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.count()
    }

    pub(super) fn errors(&self) -> [(&'static str, u64); 3] {
        [
            ("retriable", self.retriable.count()),
            ("refused", self.refused.count()),
            ("fault", self.faults.count()),
        ]
    }

    pub(super) fn latency(&self) -> &Histogram {
        &self.latency
    }
}

/// A bounded amount of memory and how much of it is used.
#[derive(Debug, Default)]
pub struct Budget {
    /// Bytes in use.
    pub used: Gauge,
    /// Bytes that may be in use.
    pub limit: Gauge,
}

/// What a group has committed for one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The group.
    pub group: Arc<str>,
    /// The partition.
    pub partition: PartitionId,
    /// Next offset that the group will read.
    pub offset: u64,
}

/// How far one partition goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionEnd {
    /// Name of its topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: PartitionId,
    /// First offset not yet durable.
    pub durable_end: u64,
}

/// What one shard contributes to group lag. Groups and partitions live on different shards, so
/// the two lists meet only at scrape.
#[derive(Debug, Clone, Default)]
pub struct Offsets {
    /// Of the groups that live on the shard.
    pub committed: Vec<Committed>,
    /// Of the partitions that live on the shard.
    pub ends: Vec<PartitionEnd>,
}

/// A topology as a picture.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// Its name.
    pub topology: String,
    /// What follows what: topics, keys and operators by name.
    pub edges: Vec<(String, String)>,
    /// What can be asked for: operators and their states.
    pub states: Vec<(String, String)>,
}

/// What a topology does on one shard.
#[derive(Debug, Clone, Default)]
pub struct TopologyFigures {
    /// Its name.
    pub topology: String,
    /// Why it does not run.
    pub pause: Option<String>,
    /// Records of its sources.
    pub records: u64,
    /// Records from other shards.
    pub arrivals: u64,
    /// Timers that fired.
    pub timers: u64,
    /// Records that were sent to another shard.
    pub sent: u64,
    /// Records that their producers had put into a wrong partition.
    pub misplaced: u64,
    /// Records that came too late.
    pub late: u64,
    /// Records and timers that could not be processed.
    pub rejected: u64,
    /// Entries of other shards that wait for their turn.
    pub waiting: u64,
    /// Bytes of these.
    pub waiting_size: u64,
    /// Blocking calls whose result was taken.
    pub calls: u64,
    /// Records that wait for blocking calls.
    pub calls_waiting: u64,
    /// Blocking calls that are being made.
    pub calls_open: u64,
    /// Records that retention or a deletion took before they were read.
    pub missed: u64,
    /// The oldest event time of an operator, in milliseconds since 1970, if there is one.
    pub watermark_ms: Option<i64>,
    /// Its operators.
    pub operators: Vec<OperatorFigures>,
    /// The edges of its graph.
    pub edges: Vec<EdgeFigures>,
    /// Where its keys meet their state.
    pub stages: Vec<StageFigures>,
}

/// What passes an edge of a topology's graph on one shard.
#[derive(Debug, Clone, Default)]
pub struct EdgeFigures {
    /// What it comes from, by name.
    pub from: String,
    /// What it leads to, by name.
    pub to: String,
    /// Values that passed it.
    pub records: u64,
}

/// What waits before a stage of a topology on one shard.
#[derive(Debug, Clone, Default)]
pub struct StageFigures {
    /// Its name.
    pub stage: String,
    /// Records of other shards that wait for their turn.
    pub waiting: u64,
    /// Bytes of the batches that they are in.
    pub waiting_size: u64,
}

/// A histogram that was counted elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Spread {
    /// Sum of all values.
    pub sum: u64,
    /// Upper bounds, `None` for no bound, each with the count of its own bucket.
    pub buckets: Vec<(Option<u64>, u64)>,
}

impl Spread {
    /// Adds the counts of another one with the same buckets; an empty one has none.
    pub(super) fn add(&mut self, other: &Self) {
        self.sum += other.sum;
        if self.buckets.is_empty() {
            self.buckets.clone_from(&other.buckets);
            return;
        }
        for ((_, count), (_, more)) in self.buckets.iter_mut().zip(&other.buckets) {
            *count += more;
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// The bound that so many of a hundred values do not exceed, if there are values and it is known.
    pub(super) fn percentile(&self, percent: u64) -> Option<u64> {
        let wanted = (self.count() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let bucket = self.buckets.iter().find(|(_, count)| {
            seen += count;
            seen >= wanted
        });
        bucket.and_then(|(bound, _)| *bound)
    }
}

/// What an operator of a topology does on one shard.
#[derive(Debug, Clone, Default)]
pub struct OperatorFigures {
    /// Its name.
    pub operator: String,
    /// Records that came to it.
    pub records: u64,
    /// Timers of it that fired.
    pub timers: u64,
    /// Values that it passed on.
    pub emitted: u64,
    /// Records that came too late for it.
    pub late: u64,
    /// Calls of it that failed.
    pub failed: u64,
    /// Its event time, in milliseconds since 1970, if it has one.
    pub watermark_ms: Option<i64>,
    /// How far that is behind the machine's clock, in milliseconds; less than 0 if it is before it.
    pub watermark_lag_ms: Option<i64>,
    /// Entries of its state.
    pub state_entries: u64,
    /// Bytes of their keys and values.
    pub state_size: u64,
    /// Nanoseconds that calls of it took.
    pub call_times: Spread,
}

/// Questions that may wait for one shard.
const QUESTIONS_MAX: usize = 64;

/// One shard's block. Sizes are bytes.
#[derive(Debug)]
pub struct ShardTelemetry {
    /// Microseconds from a frame's submission until it is durable.
    pub commit_latency: Histogram,
    /// Microseconds of the longest call of operators in each step that had any.
    pub longest_call: Histogram,
    /// Sizes of frames with steps in them.
    pub frame_size: Histogram,
    /// Frames with steps that became durable.
    pub frames: Counter,
    /// Frames that only say that all before them is durable.
    pub idle_frames: Counter,
    /// Messages from other shards, connections and timers that wait for a step.
    pub inbox_depth: Gauge,
    /// Bytes in the frame that fills.
    pub filling: Gauge,
    /// Bytes of batches that wait for room in the log.
    pub waiting_batches: Gauge,
    /// Bytes of the WAL in use.
    pub wal_used: Gauge,
    /// Bytes that the WAL holds.
    pub wal_capacity: Gauge,
    /// Durable bytes that settling has still to write.
    pub settle_lag: Gauge,
    /// Bytes in the memory tail.
    pub tail: Gauge,
    /// Bytes of keyed state.
    pub state: Gauge,
    /// The disk is full: this shard refuses what would need room.
    pub disk_full: Flag,
    /// Bytes of extents that the scrub has read.
    pub scrubbed: Counter,
    /// Faults that the scrub or a read has found in files.
    pub damage: Counter,
    /// Recovery is over and the shard takes requests.
    pub ready: Flag,
    /// Bytes that recovery has read and replayed.
    pub recovery_done: Gauge,
    /// Bytes that recovery has to read and replay; 0 while that is unknown.
    pub recovery_total: Gauge,
    /// Estimated milliseconds that recovery would take if the shard started now; while it
    /// recovers, what remains of its log at most.
    pub recovery_estimate_ms: Gauge,
    /// Open connections.
    pub connections_open: Gauge,
    /// Connections taken since the start.
    pub connections_accepted: Counter,
    /// Connections refused because the limit was reached.
    pub connections_refused: Counter,
    /// Requests that arrive and wait.
    pub receive_budget: Budget,
    /// Responses that clients have not read.
    pub send_budget: Budget,
    /// Older records on their way from extents.
    pub cold_read_budget: Budget,
    apis: Box<[ApiTelemetry]>,
    offsets: Mutex<Arc<Offsets>>,
    topologies: Mutex<Arc<Vec<TopologyFigures>>>,
    questions: Mutex<VecDeque<Question>>,
    has_questions: Flag,
    /// Wakes the shard's loop.
    waker: OnceLock<Waker>,
}

/// What somebody wants to know of a shard's state.
#[derive(Debug)]
pub struct Question {
    /// What.
    pub query: StateQuery,
    /// Where the answer goes, if anybody still waits.
    pub answer: oneshot::Sender<Option<Vec<StateEntry>>>,
}

impl ShardTelemetry {
    fn new(api_count: usize) -> Self {
        Self {
            commit_latency: Histogram::new(COMMIT_LATENCY),
            longest_call: Histogram::new(COMMIT_LATENCY),
            frame_size: Histogram::new(FRAME_SIZE),
            frames: Counter::default(),
            idle_frames: Counter::default(),
            inbox_depth: Gauge::default(),
            filling: Gauge::default(),
            waiting_batches: Gauge::default(),
            wal_used: Gauge::default(),
            wal_capacity: Gauge::default(),
            settle_lag: Gauge::default(),
            tail: Gauge::default(),
            state: Gauge::default(),
            disk_full: Flag::default(),
            scrubbed: Counter::default(),
            damage: Counter::default(),
            ready: Flag::default(),
            recovery_done: Gauge::default(),
            recovery_total: Gauge::default(),
            recovery_estimate_ms: Gauge::default(),
            connections_open: Gauge::default(),
            connections_accepted: Counter::default(),
            connections_refused: Counter::default(),
            receive_budget: Budget::default(),
            send_budget: Budget::default(),
            cold_read_budget: Budget::default(),
            apis: (0..api_count).map(|_| ApiTelemetry::new()).collect(),
            offsets: Mutex::default(),
            topologies: Mutex::default(),
            questions: Mutex::default(),
            has_questions: Flag::default(),
            waker: OnceLock::new(),
        }
    }

    /// The counters of an API by its index in the list that [`Telemetry::new`] was given.
    pub fn api(&self, index: usize) -> &ApiTelemetry {
        &self.apis[index]
    }

    /// Replaces what this shard contributes to group lag; about once a second. The lock is held
    /// for the exchange of a pointer, on both sides.
    pub fn publish_offsets(&self, offsets: Offsets) {
        publish(&self.offsets, offsets);
    }

    /// Replaces what is known of this shard's topologies; about once a second.
    pub fn publish_topologies(&self, topologies: Vec<TopologyFigures>) {
        publish(&self.topologies, topologies);
    }

    /// The shard's loop says how it is woken; once.
    pub fn install(&self, waker: Waker) {
        let _ = self.waker.set(waker);
    }

    /// Asks the shard. `None` if too many questions are open.
    pub(super) fn ask(
        &self,
        query: StateQuery,
    ) -> Option<oneshot::Receiver<Option<Vec<StateEntry>>>> {
        let (answer, answered) = oneshot::channel();
        {
            let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
            if questions.len() >= QUESTIONS_MAX {
                return None;
            }
            questions.push_back(Question { query, answer });
        }
        self.has_questions.set(true);
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
        Some(answered)
    }

    /// What was asked since the last call; looked at in every turn of the shard's loop.
    pub fn take_questions(&self) -> VecDeque<Question> {
        if !self.has_questions.is_set() {
            return VecDeque::new();
        }
        self.has_questions.set(false);
        std::mem::take(&mut *self.questions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn topologies(&self) -> Arc<Vec<TopologyFigures>> {
        Arc::clone(&self.topologies.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn offsets(&self) -> Arc<Offsets> {
        Arc::clone(&self.offsets.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn publish<T>(slot: &Mutex<Arc<T>>, fresh: T) {
    let fresh = Arc::new(fresh);
    let stale = {
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *slot, fresh)
    };
    drop(stale);
}

/// What does not change while the node runs.
#[derive(Debug, Clone)]
pub struct About {
    /// Release.
    pub version: &'static str,
    /// Hash of all settings.
    pub configuration_hash: u32,
    /// Directory of the data.
    pub data_dir: PathBuf,
    /// Directory of the WAL, if it is elsewhere.
    pub wal_dir: Option<PathBuf>,
    /// Its topologies.
    pub graphs: Vec<Graph>,
}

/// Everything that the admin port knows.
#[derive(Debug)]
pub struct Telemetry {
    pub(super) about: About,
    pub(super) api_names: Vec<&'static str>,
    shards: Box<[CachePadded<ShardTelemetry>]>,
    stopping: Flag,
}

impl Telemetry {
    /// Blocks for `shard_count` shards; `api_names` names the APIs by their index.
    pub fn new(about: About, shard_count: u16, api_names: Vec<&'static str>) -> Arc<Self> {
        let shards = (0..shard_count)
            .map(|_| CachePadded::new(ShardTelemetry::new(api_names.len())))
            .collect();
        Arc::new(Self { about, api_names, shards, stopping: Flag::default() })
    }

    /// Kafka connections of all shards.
    pub fn connections_open(&self) -> u64 {
        self.shards.iter().map(|shard| shard.connections_open.value()).sum()
    }

    /// One shard's block, by the shard's index.
    pub fn shard(&self, index: u16) -> &ShardTelemetry {
        &self.shards[usize::from(index)]
    }

    /// From now on the node is not ready, for it is about to stop.
    pub fn set_stopping(&self) {
        self.stopping.set(true);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_set()
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = &ShardTelemetry> {
        self.shards.iter().map(|shard| &**shard)
    }

    /// Whether every shard takes requests.
    pub fn is_ready(&self) -> bool {
        !self.is_stopping() && self.shards().all(|shard| shard.ready.is_set())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn every_value_is_counted_at_the_smallest_bound_that_holds_it() {
        for scale in [COMMIT_LATENCY, REQUEST_LATENCY, FRAME_SIZE] {
            let bounds: Vec<u64> = scale.bounds().collect();
            assert_eq!(bounds.len() + 1, scale.bucket_count());
            assert!(bounds.is_sorted());
            for (index, bound) in bounds.iter().enumerate() {
                assert_eq!(scale.bucket(*bound), index, "{scale:?} holds its bound {bound}");
                assert_eq!(scale.bucket(bound + 1), index + 1, "{scale:?} ends at {bound}");
            }
            assert_eq!(scale.bucket(0), 0);
            assert_eq!(scale.bucket(u64::MAX), bounds.len());
        }
    }

    #[test]
    fn buckets_between_powers_are_halves() {
        let scale = Scale { low: 3, high: 5, halves: true };
        let histogram = Histogram::new(scale);
        for value in [1, 8, 9, 12, 13, 16, 24, 25, 33] {
            histogram.record(value);
        }
        let text: Vec<String> = histogram
            .buckets()
            .map(|(bound, count)| match bound {
                Some(bound) => format!("<= {bound}: {count}"),
                None => format!("more: {count}"),
            })
            .collect();
        expect![[r#"
            <= 8: 2
            <= 12: 2
            <= 16: 2
            <= 24: 1
            <= 32: 1
            more: 1"#]]
        .assert_eq(&text.join("\n"));
        assert_eq!(histogram.sum(), 141);
    }
}
