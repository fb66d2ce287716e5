//! One call of user code, from a record or a timer to everything that it wants: state changes,
//! records for topics and for other shards, timers. All of it is taken as a whole, or none is.
//!
//! Operators change nothing by themselves. What they write lies in an overlay over the shard's
//! state until the call has succeeded; a failed or panicked one leaves no trace.

use std::cmp::Ordering;
use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use tidemill_wal::format::ShardId;
use tidemill_wal::limits::{KEY_SIZE_MAX, VALUE_SIZE_MAX};
use tidemill_wal::mutation::{self, Mutation};

use super::blocking::Line;
pub use super::failure::Failure;
use super::figures::Stopwatch;
use super::key;
use super::stored::StoredCall;
use crate::batch::Record;
use crate::command::{key_partition, partition_shard};
use crate::state::State;

/// The farthest event time from 1970, in milliseconds before or after it: 36 million years. So far,
/// sums of a few times and lengths stay in 64 bits.
pub const TIME_MS_MAX: i64 = 1 << 60;

/// Bytes of a record beside what is in it, at most: its place in a batch and in an entry.
const RECORD_OVERHEAD: usize = 80;

/// Bytes of a size inside a record, at most.
const VARINT_SIZE: usize = 5;

/// Bytes of a change of state beside its key and value, at most.
const CHANGE_OVERHEAD: usize = 16;

/// Headers of a record, in order.
pub type Headers = Vec<(Bytes, Option<Bytes>)>;

/// Where the state of a keyed part of the graph lives: partitions over shards, as a topic's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagePlace {
    /// How many partitions its keys are spread over.
    pub partition_count: u32,
    /// The shard of partition 0.
    pub first_shard: ShardId,
}

/// What holds for all calls of a step.
#[derive(Debug, Clone)]
pub struct Circumstances {
    /// The step's clock, in milliseconds since 1970; never before that of an earlier step.
    pub now_ms: i64,
    /// The shard that runs this.
    pub shard: ShardId,
    /// How many there are.
    pub shard_count: u16,
    /// Where each stage's keys live.
    pub stages: Vec<StagePlace>,
    /// Event time of each operator on this shard: nothing older is expected any more.
    pub watermarks_ms: Vec<i64>,
    /// The same for partitions of an operator's keys that came from a shard where it was further: it
    /// does not go back for them.
    pub seen_before_ms: BTreeMap<(usize, u32), i64>,
    /// Seed of the step's random numbers.
    pub seed: u64,
    /// The step: the sequence of the frame that it goes into.
    pub step: u64,
    /// Most that one call may want, in bytes.
    pub size_max: usize,
    /// What the next call is measured with, if it is.
    pub stopwatch: Option<Stopwatch>,
}

impl Circumstances {
    /// Event time that an operator sees for the keys of a partition.
    pub(super) fn watermark_ms(&self, operator: usize, partition: u32) -> i64 {
        let now_ms = self.watermarks_ms[operator];
        if self.seen_before_ms.is_empty() {
            return now_ms;
        }
        let before_ms = self.seen_before_ms.get(&(operator, partition));
        before_ms.map_or(now_ms, |before_ms| now_ms.max(*before_ms))
    }

    /// The partition of a stage that a key belongs to, and whether it is on this shard.
    pub(super) fn place(&self, stage: usize, key: &[u8]) -> (u32, ShardId) {
        let place = self.stages[stage];
        let partition = key_partition(key, place.partition_count);
        (partition, partition_shard(place.first_shard, partition, self.shard_count))
    }
}

/// A length of time in milliseconds, and no more than event time has.
pub(super) fn duration_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(TIME_MS_MAX)
}

/// Whether a record may have this event time, or why not.
pub(super) fn check_time(time_ms: i64) -> Result<(), String> {
    if (-TIME_MS_MAX..=TIME_MS_MAX).contains(&time_ms) {
        return Ok(());
    }
    Err(format!("the time {time_ms} is farther from 1970 than {TIME_MS_MAX} ms"))
}

/// A record that an operator made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emitted {
    /// Where it goes.
    pub to: Destination,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Its time, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Its headers.
    pub headers: Headers,
}

impl Emitted {
    /// Bytes that it takes in a batch, at most.
    pub fn size(&self) -> usize {
        let bytes = |it: &Option<Bytes>| VARINT_SIZE + it.as_ref().map_or(0, Bytes::len);
        let header =
            |(name, value): &(Bytes, Option<Bytes>)| VARINT_SIZE + name.len() + bytes(value);
        let headers: usize = self.headers.iter().map(header).sum();
        RECORD_OVERHEAD + bytes(&self.key) + bytes(&self.value) + headers
    }
}

/// Where a record goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// A sink of the topology, by number.
    Sink(usize),
    /// A stage whose keys live on another shard.
    Stage {
        /// The stage.
        stage: usize,
        /// The partition of its keys.
        partition: u32,
    },
    /// The topic of what could not be processed.
    DeadLetter,
}

/// What an operator did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperatorCounts {
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
}

impl std::ops::AddAssign for OperatorCounts {
    fn add_assign(&mut self, other: Self) {
        self.records += other.records;
        self.timers += other.timers;
        self.emitted += other.emitted;
        self.late += other.late;
        self.failed += other.failed;
    }
}

/// What a call wants.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Entries of the shard's state, by key: values, or `None` for those that go.
    pub changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Records, in order.
    pub emitted: Vec<Emitted>,
    /// Records that came to the wrong partition of a source that is partitioned by key.
    pub misplaced: u64,
    /// Records that came too late for their operator.
    pub late: u64,
    /// What each operator did that was called, by its number.
    pub operators: Vec<(usize, OperatorCounts)>,
    /// Values that passed edges of the graph, by the edge's number.
    pub edges: Vec<(usize, u64)>,
    /// Nanoseconds that calls of operators took, by the operator's number, if it was measured.
    pub call_times: Vec<(usize, u64)>,
    /// Event time of the record, where its source has a rule for that.
    pub event_time_ms: Option<i64>,
    /// Records that are to wait for blocking calls, in order.
    pub waiting: Vec<NewWaiting>,
    /// The result of a blocking call that it is about.
    pub called: Option<StoredCall>,
}

/// A record that begins to wait for a blocking call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewWaiting {
    /// Where it waits.
    pub line: Line,
    /// Its event time, in milliseconds since 1970.
    pub time_ms: i64,
    /// Bytes of its entry of state.
    pub size: usize,
    /// Whether no other one waits before it.
    pub is_first: bool,
}

impl Wanted {
    /// Bytes of all of it in a frame, at most.
    pub fn size(&self) -> usize {
        let change = |(key, value): (&Vec<u8>, &Option<Vec<u8>>)| {
            CHANGE_OVERHEAD + key.len() + value.as_ref().map_or(0, Vec::len)
        };
        let changes: usize = self.changes.iter().map(change).sum();
        let called = self.called.as_ref().map_or(0, StoredCall::size);
        changes + called + self.emitted.iter().map(Emitted::size).sum::<usize>()
    }
}

/// What a call is about, as numbers: its random numbers are made of it.
type Cause = [u64; 4];

/// The call while it runs.
pub struct Run<'r> {
    state: &'r State,
    circumstances: &'r Circumstances,
    wanted: Wanted,
    failure: Option<Failure>,
    /// Names of all operators of the topology.
    names: &'r [String],
    /// The one that runs.
    operator: usize,
    /// The last one that changed or made something.
    maker: usize,
    /// Partition of the stage whose operator runs.
    partition: u32,
    /// Key of the record, or of the stage's.
    key: Option<Bytes>,
    timestamp_ms: i64,
    headers: Headers,
    cause: Cause,
    /// Random numbers so far.
    drawn: u64,
    /// Nanoseconds of the operators inside of the one that runs.
    inner_ns: u64,
}

/// An entry of state: key and value.
type Entry<'s> = (&'s [u8], &'s [u8]);

/// Entries that a call has set or removed.
type Changes<'s> = btree_map::Range<'s, Vec<u8>, Option<Vec<u8>>>;

impl<'r> Run<'r> {
    /// A call that has not begun.
    pub(super) fn new(
        state: &'r State,
        circumstances: &'r Circumstances,
        names: &'r [String],
    ) -> Self {
        Self {
            state,
            circumstances,
            names,
            wanted: Wanted::default(),
            failure: None,
            operator: usize::MAX,
            maker: usize::MAX,
            partition: 0,
            key: None,
            timestamp_ms: -1,
            headers: Headers::new(),
            cause: Cause::default(),
            drawn: 0,
            inner_ns: 0,
        }
    }

    /// Takes time and headers of a record of a partition, of a topic or of a stage.
    pub(super) fn begin(&mut self, record: &Record, partition: u32) {
        self.partition = partition;
        self.timestamp_ms = record.timestamp_ms;
        self.key.clone_from(&record.key);
        self.headers.clone_from(&record.headers);
        self.cause = [1, partition.into(), record.offset, record.timestamp_ms as u64];
    }

    /// It is the call of a timer, which has no headers.
    pub(super) fn begin_timer(&mut self, timer: &key::Timer) {
        self.cause = [2, timer.partition.into(), timer.domain as u64, timer.time_ms as u64];
    }

    /// It is the result of a blocking call for this record.
    pub(super) fn begin_result(&mut self, record: &Record, partition: u32, called: StoredCall) {
        self.begin(record, partition);
        self.cause[0] = 3;
        self.wanted.called = Some(called);
    }

    /// What it wants, or why it failed.
    pub(super) fn end(mut self) -> Result<Wanted, Failure> {
        let is_kept = mutation::is_on(Mutation::KeepFailedCall);
        if let Some(failure) = self.failure.take().filter(|_| !is_kept) {
            return Err(failure);
        }
        if let Some((size, size_max)) = self.too_large() {
            let maker = self.names.get(self.maker).map(String::as_str);
            let operator = maker.unwrap_or("(none)").to_owned();
            return Err(Failure::TooLarge { operator, size, size_max });
        }
        Ok(self.wanted)
    }

    /// The size of what no frame takes, and the most that it would take.
    fn too_large(&self) -> Option<(usize, usize)> {
        let whole = (self.wanted.size(), self.circumstances.size_max);
        // What the log takes of one key and one value; see the limits of its format.
        let parts = self.wanted.changes.iter().flat_map(|(key, value)| {
            let value_size = value.as_ref().map_or(0, Vec::len);
            [(key.len(), KEY_SIZE_MAX), (value_size, VALUE_SIZE_MAX)]
        });
        parts.chain([whole]).find(|(size, size_max)| size > size_max)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// The first failure counts; nothing more is done after it.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// Fails with these words, as the operator that runs.
    pub(super) fn fail_with(&mut self, reason: &str) {
        let operator = self.operator().to_owned();
        self.fail(Failure::Operator { operator, reason: reason.to_owned() });
    }

    /// The record has this event time, in milliseconds since 1970.
    pub(super) fn set_event_time(&mut self, timestamp_ms: i64) {
        self.timestamp_ms = timestamp_ms;
        self.wanted.event_time_ms = Some(timestamp_ms);
    }

    pub(super) fn circumstances(&self) -> &'r Circumstances {
        self.circumstances
    }

    pub(super) fn timestamp_ms(&self) -> i64 {
        self.timestamp_ms
    }

    pub(super) fn headers(&self) -> &Headers {
        &self.headers
    }

    pub(super) fn partition(&self) -> u32 {
        self.partition
    }

    /// Does something for a key, in its partition of a stage and at a time; what follows in the graph
    /// is inside.
    pub(super) fn within<T>(
        &mut self,
        partition: u32,
        key: Bytes,
        timestamp_ms: i64,
        act: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let outer_key = self.key.replace(key);
        let before = (self.partition, self.timestamp_ms);
        (self.partition, self.timestamp_ms) = (partition, timestamp_ms);
        let result = act(self);
        (self.partition, self.timestamp_ms) = before;
        self.key = outer_key;
        result
    }

    /// Does something as an operator, which a panic or a failure is told with.
    pub(super) fn named<T>(&mut self, operator: usize, act: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.operator, operator);
        let result = match self.circumstances.stopwatch {
            Some(stopwatch) => self.measured(operator, stopwatch, act),
            None => act(self),
        };
        // After a panic or a failure the name stays that of the culprit.
        if self.failure.is_none() {
            self.operator = before;
        }
        result
    }

    /// Notes how long it takes, without the operators inside.
    fn measured<T>(
        &mut self,
        operator: usize,
        stopwatch: Stopwatch,
        act: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let outer_ns = std::mem::take(&mut self.inner_ns);
        let begun_ns = stopwatch();
        let result = act(self);
        let took_ns = stopwatch().saturating_sub(begun_ns);
        let own_ns = took_ns.saturating_sub(self.inner_ns);
        self.wanted.call_times.push((operator, own_ns));
        self.inner_ns = outer_ns + took_ns;
        result
    }

    pub(super) fn key(&self) -> Option<&Bytes> {
        self.key.as_ref()
    }

    /// The next random number: another one for each step, record or timer, operator, key, and draw;
    /// the same one if all of these are the same.
    pub(super) fn draw(&mut self) -> u64 {
        self.drawn += 1;
        let key = self.key.as_deref().unwrap_or_default();
        let size = key.len() as u64;
        let place = [self.operator as u64, self.partition.into(), self.drawn, size];
        let (words, rest) = key.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let words = words.iter().chain([&last]).map(|word| u64::from_le_bytes(*word));
        let all = self.cause.into_iter().chain(place).chain(words);
        all.fold(self.circumstances.seed, |number, word| mixed(number ^ word))
    }

    /// The value of an entry, as this call sees it.
    pub(super) fn value(&self, key: &[u8]) -> Option<&[u8]> {
        match self.wanted.changes.get(key) {
            Some(change) => change.as_deref(),
            None => self.state.value(key),
        }
    }

    /// Sets or removes an entry.
    pub(super) fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.note_maker();
        self.wanted.changes.insert(key, value);
    }

    /// The entries from one key on and before another, in order, as this call sees them. They are
    /// read as they are asked for.
    pub(super) fn range<'s>(
        &'s self,
        from: &[u8],
        to: &[u8],
    ) -> impl Iterator<Item = Entry<'s>> + use<'s, 'r> {
        let (stored, changed) = self.both(from, to);
        let (stored, changed) = (stored.peekable(), changed.peekable());
        Merged { stored, changed, is_backward: false }
    }

    /// The same entries as [`Self::range`], from the last to the first.
    pub(super) fn range_backward<'s>(
        &'s self,
        from: &[u8],
        to: &[u8],
    ) -> impl Iterator<Item = Entry<'s>> + use<'s, 'r> {
        let (stored, changed) = self.both(from, to);
        let (stored, changed) = (stored.rev().peekable(), changed.rev().peekable());
        Merged { stored, changed, is_backward: true }
    }

    /// What is stored of a range, and what this call has changed of it.
    fn both<'s>(
        &'s self,
        from: &[u8],
        to: &[u8],
    ) -> (impl DoubleEndedIterator<Item = Entry<'s>> + use<'s, 'r>, Changes<'s>) {
        // A range that ends before it begins is empty.
        let (from, to) = (Bound::Included(from), Bound::Excluded(to.max(from)));
        let changed = self.wanted.changes.range::<[u8], _>((from, to));
        (self.state.range_between(from, to), changed)
    }

    /// A record is to wait for a blocking call; it is set as an entry of state beside.
    pub(super) fn wait(&mut self, waiting: NewWaiting) {
        self.wanted.waiting.push(waiting);
    }

    pub(super) fn emit(&mut self, emitted: Emitted) {
        self.note_maker();
        self.wanted.emitted.push(emitted);
    }

    fn note_maker(&mut self) {
        if self.operator < self.names.len() {
            self.maker = self.operator;
        }
    }

    /// Counts the record if the producer that keyed it put it into another partition of its topic
    /// than the stage that has the topic's keys.
    pub(super) fn check_place(&mut self, stage: usize, key: &[u8]) {
        let (partition, _) = self.circumstances.place(stage, key);
        self.wanted.misplaced += u64::from(partition != self.partition);
    }

    pub(super) fn count_late(&mut self) {
        self.wanted.late += 1;
        self.counts_of(self.operator).late += 1;
    }

    /// A value passes an edge of the graph.
    pub(super) fn count_edge(&mut self, edge: usize) {
        match self.wanted.edges.iter_mut().find(|(it, _)| *it == edge) {
            Some((_, count)) => *count += 1,
            None => self.wanted.edges.push((edge, 1)),
        }
    }

    /// What an operator does in this call.
    pub(super) fn counts_of(&mut self, operator: usize) -> &mut OperatorCounts {
        let known = self.wanted.operators.iter().position(|(it, _)| *it == operator);
        let index = known.unwrap_or_else(|| {
            self.wanted.operators.push((operator, OperatorCounts::default()));
            self.wanted.operators.len() - 1
        });
        &mut self.wanted.operators[index].1
    }

    /// Sets a timer, once for each operator, key and time.
    pub(super) fn set_timer(&mut self, timer: &key::Timer) {
        self.set(timer.encode(), Some(Vec::new()));
    }

    /// Forgets a timer, if it is set.
    pub(super) fn forget_timer(&mut self, timer: &key::Timer) {
        let key = timer.encode();
        if self.value(&key).is_some() {
            self.set(key, None);
        }
    }

    /// The name of the operator that runs, for errors.
    pub(super) fn operator(&self) -> &'r str {
        self.names.get(self.operator).map_or("", String::as_str)
    }
}

/// A step of SplitMix64 (Steele, Lea, Flood 2014).
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Stored entries with the changes that lie over them, both in the same order.
struct Merged<S: Iterator, C: Iterator> {
    stored: Peekable<S>,
    changed: Peekable<C>,
    is_backward: bool,
}

impl<'s, S, C> Iterator for Merged<S, C>
where
    S: Iterator<Item = Entry<'s>>,
    C: Iterator<Item = (&'s Vec<u8>, &'s Option<Vec<u8>>)>,
{
    type Item = Entry<'s>;

    fn next(&mut self) -> Option<Entry<'s>> {
        loop {
            let order = match (self.stored.peek(), self.changed.peek()) {
                (Some((stored, _)), Some((changed, _))) => Some((*stored).cmp(changed.as_slice())),
                (Some(_), None) => return self.stored.next(),
                (None, _) => None,
            };
            let order = order.map(|it| if self.is_backward { it.reverse() } else { it });
            match order {
                Some(Ordering::Less) => return self.stored.next(),
                Some(Ordering::Equal) => _ = self.stored.next(),
                Some(Ordering::Greater) | None => {}
            }
            let (key, value) = self.changed.next()?;
            if let Some(value) = value {
                return Some((key, value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::Change;
    use crate::topology::{NameId, TimeDomain, Timer};

    fn circumstances() -> Circumstances {
        Circumstances {
            now_ms: 0,
            shard: ShardId(0),
            shard_count: 1,
            stages: Vec::new(),
            watermarks_ms: Vec::new(),
            seen_before_ms: BTreeMap::new(),
            seed: 1,
            step: 1,
            size_max: 1000,
            stopwatch: None,
        }
    }

    fn record(offset: u64) -> Record {
        let (key, value) = (Some(Bytes::from_static(b"key")), None);
        Record { offset, timestamp_ms: 0, key, value, headers: Vec::new() }
    }

    #[test]
    fn a_range_is_what_is_stored_under_what_has_changed_from_both_ends() {
        // Each of four keys: stored or not, and untouched, set or removed by the call.
        for case in 0..6_usize.pow(4) {
            let (mut state, circumstances) = (State::default(), circumstances());
            let ways: Vec<(u8, usize)> =
                (0..4).map(|key| (key, case / 6_usize.pow(key.into()) % 6)).collect();
            for (key, _) in ways.iter().filter(|(_, way)| way % 2 == 1) {
                state.apply(Change { key: vec![*key], value: Some(vec![0]) });
            }
            let mut run = Run::new(&state, &circumstances, &[]);
            let mut expected: Vec<(u8, u8)> = Vec::new();
            for (key, way) in ways {
                match way / 2 {
                    0 if way == 1 => expected.push((key, 0)),
                    1 => {
                        run.set(vec![key], Some(vec![1]));
                        expected.push((key, 1));
                    }
                    2 => run.set(vec![key], None),
                    _ => {}
                }
            }
            for (from, to) in [(0, 4), (1, 3), (2, 2), (3, 1)] {
                let mut inside = expected.clone();
                inside.retain(|(key, _)| (from..to).contains(key));
                let shown = |(key, value): Entry<'_>| (key[0], value[0]);
                let forward: Vec<_> = run.range(&[from], &[to]).map(shown).collect();
                assert_eq!(forward, inside, "case {case}: {from} to {to}");
                inside.reverse();
                let backward: Vec<_> = run.range_backward(&[from], &[to]).map(shown).collect();
                assert_eq!(backward, inside, "case {case}: {from} to {to}, backward");
            }
        }
    }

    #[test]
    fn random_numbers_differ_by_record_timer_operator_key_and_draw() {
        let (state, circumstances) = (State::default(), circumstances());
        let names = ["a", "b"].map(str::to_owned);
        let mut drawn = std::collections::HashSet::new();
        let mut count = 0;
        let mut draw = |begin: &dyn Fn(&mut Run<'_>), operator: usize, key: &'static [u8]| {
            let mut run = Run::new(&state, &circumstances, &names);
            begin(&mut run);
            let numbers = run.within(0, Bytes::from_static(key), 0, |run| {
                run.named(operator, |run| [run.draw(), run.draw()])
            });
            count += 2;
            drawn.extend(numbers);
            numbers
        };
        for key in [&b"k"[..], b"l", b"a key of more than eight bytes"] {
            for operator in 0..2 {
                for offset in 0..3 {
                    for partition in 0..2 {
                        draw(&|run| run.begin(&record(offset), partition), operator, key);
                    }
                }
                for domain in [TimeDomain::Event, TimeDomain::Processing] {
                    for time_ms in 0..3 {
                        let timer = Timer {
                            topology: NameId(0),
                            domain,
                            operator: NameId(0),
                            time_ms,
                            partition: 0,
                            key: Vec::new(),
                        };
                        draw(&|run| run.begin_timer(&timer), operator, key);
                    }
                }
            }
        }
        let again = |run: &mut Run<'_>| run.begin(&record(0), 0);
        assert_eq!(draw(&again, 0, b"k"), draw(&again, 0, b"k"), "a replay draws the same");
        assert_eq!(drawn.len(), count - 4, "all others differ");
    }

    #[test]
    fn a_size_is_never_less_than_the_bytes_of_a_batch() {
        use crate::batch::{BatchBuilder, HEADER_SIZE, NewRecord};
        for header_count in [0_u8, 1, 200] {
            for size in [0, 1, 200, 70_000] {
                let bytes = || Some(Bytes::from(vec![7; size]));
                let header = |index: u8| (Bytes::from(vec![index; size % 300]), bytes());
                let emitted = Emitted {
                    to: Destination::Sink(0),
                    key: bytes(),
                    value: bytes(),
                    timestamp_ms: i64::MAX,
                    headers: (0..header_count).map(header).collect(),
                };
                let headers: Vec<(&[u8], Option<&[u8]>)> =
                    emitted.headers.iter().map(|(name, it)| (&name[..], it.as_deref())).collect();
                let mut builder = BatchBuilder::new();
                builder.push(NewRecord {
                    timestamp_ms: emitted.timestamp_ms,
                    key: emitted.key.as_deref(),
                    value: emitted.value.as_deref(),
                    headers: &headers,
                });
                let real = builder.size() - HEADER_SIZE;
                assert!(emitted.size() >= real, "{} counted of {real}", emitted.size());
            }
        }
    }

    #[test]
    fn a_change_counts_with_its_key_and_what_is_around_it() {
        let (state, circumstances) = (State::default(), circumstances());
        let mut run = Run::new(&state, &circumstances, &[]);
        run.set(vec![0; 5], Some(vec![0; 7]));
        run.set(vec![1; 5], None);
        assert_eq!(run.end().expect("small").size(), 16 + 5 + 7 + 16 + 5);
    }

    #[test]
    fn what_is_too_large_is_told_of_the_last_operator_that_made_something() {
        let state = State::default();
        let circumstances = Circumstances { size_max: 100 << 20, ..circumstances() };
        let names = ["first", "second", "third"].map(str::to_owned);
        let fails = |key_size: usize, value_size: usize| {
            let mut run = Run::new(&state, &circumstances, &names);
            run.named(0, |run| run.set(vec![0; key_size], Some(vec![0; value_size])));
            run.named(1, |run| run.set(vec![1], None));
            run.named(2, |_| ());
            run.end().map(|_| ()).map_err(|failure| failure.to_string())
        };
        assert_eq!(fails(KEY_SIZE_MAX, VALUE_SIZE_MAX), Ok(()));
        let key = fails(KEY_SIZE_MAX + 1, 0).expect_err("the key");
        assert!(key.starts_with("operator second made 65536 bytes"), "{key}");
        assert!(fails(1, VALUE_SIZE_MAX + 1).is_err());
    }
}
