//! A topology at work on one shard: records in, and for each what it changed and made; timers, once
//! their time has come, operator by operator.
//!
//! Each call is taken whole: its changes go into the shard's state at once, what it made is gathered
//! until the shard asks for it. The shard puts both into one frame. A call whose result has no
//! room in that frame is as if it had not been; it is made again for the next one.

mod calls;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use indexmap::IndexMap;
use tidemill_wal::format::{ENTRY_OVERHEAD_MAX, PartitionId, ShardId};
use tidemill_wal::mutation::{self, Mutation};

pub use self::calls::Asked;
use self::calls::Calls;
use super::blocking::Line;
use super::figures::{Counts, Figures, Sampler, Stopwatch};
use super::key::{TimeDomain, Timer};
use super::run::{Circumstances, Destination, Emitted, Failure, StagePlace, Wanted};
use super::stored::{Position, StoredCall};
use super::watermark::EventTimes;
use super::witness::{Call, Witness};
use super::{NameId, Plan, SeenBefore};
use crate::batch::{Record, RecordBatch};
use crate::command::partition_shard;
use crate::effect::{Change, Now};
use crate::state::State;

/// Where a task is, and where the topology's other parts are.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The shard.
    pub shard: ShardId,
    /// How many there are.
    pub shard_count: u16,
    /// Where each stage's keys live.
    pub stages: Vec<StagePlace>,
}

/// Facts of the step that a call is part of.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Its clock.
    pub now: Now,
    /// The frame that it goes into.
    pub sequence: u64,
    /// Seed of its random numbers.
    pub seed: u64,
    /// Most that one call may make, in bytes.
    pub size_max: usize,
}

/// A record that could not be processed, or a timer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Why.
    pub failure: Failure,
    /// The record; none if it was a timer.
    pub record: Option<Record>,
    /// Topic and partition that it is from, for people.
    pub origin: String,
}

/// Most bytes of a failure's words that a dead letter tells.
const WORDS_SIZE_MAX: usize = 4096;

impl Rejected {
    /// The rest of a batch of a source, from one offset to the last, which cannot be read.
    pub fn of_bad_batch(
        plan: &Plan,
        (source, partition): (usize, u32),
        (first, last): (u64, u64),
        reason: &str,
    ) -> Self {
        let topic = plan.sources().nth(source).unwrap_or_default();
        let origin = format!("{topic}-{partition}@{first}..={last}");
        let failure = Failure::Decode { source_name: topic.to_owned(), reason: reason.to_owned() };
        Self { failure, record: None, origin }
    }

    /// A record of a source.
    pub fn of_record(
        plan: &Plan,
        (source, partition): (usize, u32),
        record: &Record,
        failure: Failure,
    ) -> Self {
        let topic = plan.sources().nth(source).unwrap_or_default();
        let origin = format!("{topic}-{partition}@{}", record.offset);
        Self { failure, record: Some(record.clone()), origin }
    }

    /// A record that another shard sent to a stage.
    pub fn of_arrival(
        plan: &Plan,
        (stage, partition): (usize, u32),
        record: &Record,
        failure: Failure,
    ) -> Self {
        let name = plan.stages().nth(stage).unwrap_or_default();
        let origin = format!("key {name}-{partition}");
        Self { failure, record: Some(record.clone()), origin }
    }

    /// A record whose blocking call failed, or what followed from its result.
    pub(super) fn of_call(plan: &Plan, line: &Line, record: Record, failure: Failure) -> Self {
        let stage = plan.stage_of_operator(line.operator);
        let stage = stage.and_then(|stage| plan.stages().nth(stage)).unwrap_or_default();
        let origin = format!("key {stage}-{}", line.partition);
        Self { failure, record: Some(record), origin }
    }

    /// A timer.
    pub fn of_timer(timer: &Timer, failure: Failure) -> Self {
        let origin = format!("timer of {:?} at {}", timer.operator, timer.time_ms);
        Self { failure, record: None, origin }
    }

    /// Bytes of the dead letter, at most.
    fn size(&self) -> usize {
        let reason = self.failure.to_string().len().min(WORDS_SIZE_MAX);
        let words = reason + self.failure.place().len() + self.origin.len() + 256;
        let record = self.record.as_ref().map_or(0, |record| {
            let value = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
            let header = |(name, it): &(Bytes, Option<Bytes>)| name.len() + value(it) + 10;
            let headers: usize = record.headers.iter().map(header).sum();
            value(&record.key) + value(&record.value) + headers
        });
        words + record
    }

    /// What is too large for one call stays where it is from, and the letter says where.
    pub fn limit(&mut self, size_max: usize) {
        if self.size() > size_max {
            self.record = None;
        }
    }

    /// The dead letter: the record as it was, with what happened in headers.
    pub fn into_letter(self) -> Emitted {
        let Self { failure, record, origin } = self;
        let (key, value, timestamp_ms, mut headers) = match record {
            Some(record) => (record.key, record.value, record.timestamp_ms, record.headers),
            None => (None, None, -1, Vec::new()),
        };
        let mut reason = failure.to_string();
        reason.truncate(reason.floor_char_boundary(WORDS_SIZE_MAX));
        let facts = [
            ("tidemill.error", reason),
            ("tidemill.operator", failure.place().to_owned()),
            ("tidemill.origin", origin),
        ];
        headers.extend(
            facts.map(|(name, words)| (Bytes::from_static(name.as_bytes()), Some(words.into()))),
        );
        Emitted { to: Destination::DeadLetter, key, value, timestamp_ms, headers }
    }
}

/// What is to go into the frame since it was last asked for.
#[derive(Debug, Default)]
pub struct Made {
    /// Entries of the shard's state that have changed, as they are now: values, or `None` for those
    /// that are gone. In the order of their first changes.
    pub changed: IndexMap<Vec<u8>, Option<Vec<u8>>>,
    /// Records, in order.
    pub emitted: Vec<Emitted>,
    /// Records that another shard made for partitions of this one, in order.
    pub sunk: Vec<(PartitionId, RecordBatch)>,
    /// For the dead-letter topic.
    pub rejected: Vec<Rejected>,
    /// Results of blocking calls that were taken, in order.
    pub called: Vec<StoredCall>,
    /// Bytes of all of it, about: no less than half of what the frame will have.
    pub size: usize,
}

impl Made {
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is done.
    Done,
    /// What it made does not fit the frame any more: it is to be made again.
    NoRoom,
}

/// What became of the timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fired {
    /// None was due.
    None,
    /// All that were due have fired.
    All,
    /// The time is over, or the frame is full.
    Cut,
    /// The same, while event time went on: what its timers are to tell of that time must not be told by
    /// a record before them.
    CutAmid,
}

/// A topology on one shard.
pub struct Task {
    plan: Arc<Plan>,
    times: EventTimes,
    monotonic_ms: u64,
    /// Of the calls of this step. Its clock is the newest of all steps: an older one that follows
    /// counts as this.
    circumstances: Circumstances,
    made: Made,
    /// A failure without a dead-letter topic.
    stuck: Option<Failure>,
    /// Operators that have seen a new event time since this was last asked for.
    seen: Vec<(usize, i64)>,
    /// Records that wait for blocking calls.
    calls: Calls,
    figures: Figures,
    sampler: Sampler,
    /// Where calls are noted.
    witness: Option<&'static Witness>,
    /// Identities of the topics that it reads, for that.
    topics: Vec<NameId>,
    /// The shard that sent the next record of a stage, and where that is in its outbox.
    arriving: (u16, Position),
    /// Of each operator, in event time and by the clock.
    first_timers: Vec<[FirstTimer; 2]>,
}

/// The time of an operator's first timer, if it has one, as long as no timers change.
#[derive(Debug, Clone, Copy)]
struct FirstTimer {
    time_ms: Option<i64>,
    /// Of the state's timers; none while nobody has looked.
    version: Option<u64>,
}

/// Where a domain's timer is in the pair of an operator.
fn place(domain: TimeDomain) -> usize {
    match domain {
        TimeDomain::Event => 0,
        TimeDomain::Processing => 1,
    }
}

impl FirstTimer {
    const UNKNOWN: Self = Self { time_ms: None, version: None };

    fn is_known(self, state: &State) -> bool {
        self.version == Some(state.timers_version())
    }
}

impl Task {
    /// As it was before, or new: nothing is known of event time. `clock_ms` is the clock of the last
    /// step, `monotonic_ms` the monotonic one of now.
    pub fn new(
        plan: Arc<Plan>,
        surroundings: Surroundings,
        clock_ms: i64,
        monotonic_ms: u64,
    ) -> Self {
        let rules = (0..plan.sources().count()).map(|source| plan.time_rules(source)).collect();
        let stage_inputs = plan.stage_inputs().map(<[_]>::to_vec).collect();
        let operator_inputs = plan.operators().map(|(_, inputs)| inputs.to_vec()).collect();
        let shard = (usize::from(surroundings.shard.0), usize::from(surroundings.shard_count));
        let mut times = EventTimes::new(rules, stage_inputs, operator_inputs, shard);
        times.tell_of(plan.timed_stages());
        let circumstances = Circumstances {
            now_ms: clock_ms,
            shard: surroundings.shard,
            shard_count: surroundings.shard_count,
            stages: surroundings.stages,
            watermarks_ms: times.operators_ms().to_vec(),
            seen_before_ms: BTreeMap::new(),
            seed: 0,
            step: 0,
            size_max: 0,
            stopwatch: None,
        };
        let (figures, made, sampler) = (Figures::new(&plan), Made::default(), Sampler::default());
        let topics = plan.sources().map(|topic| NameId::of(&[topic])).collect();
        let first_timers = plan.operators().map(|_| [FirstTimer::UNKNOWN; 2]).collect();
        Self {
            plan,
            times,
            monotonic_ms,
            circumstances,
            made,
            stuck: None,
            seen: Vec::new(),
            calls: Calls::default(),
            figures,
            sampler,
            witness: None,
            topics,
            arriving: (0, Position::default()),
            first_timers,
        }
    }

    /// Notes each call here while it runs.
    pub fn note_calls(&mut self, witness: Option<&'static Witness>) {
        self.witness = witness;
    }

    /// The next record of a stage is the one at this place of a shard's outbox.
    pub fn expect_arrival(&mut self, sender: u16, position: Position) {
        self.arriving = (sender, position);
    }

    /// Goes on counting from there, and measures calls with this.
    pub fn resume_figures(&mut self, figures: Figures, stopwatch: Option<Stopwatch>) {
        self.figures = figures;
        self.sampler.stopwatch = stopwatch;
    }

    /// Event time of an operator, as the last step left it: up to where its timers have all fired, and
    /// what it sees.
    pub fn resume_operator(&mut self, operator: usize, fired_ms: i64, seen_ms: i64) {
        self.times.set_operator(operator, fired_ms);
        self.circumstances.watermarks_ms[operator] = seen_ms;
    }

    /// What operators of a former shard saw of event time for the keys of a partition of a stage.
    /// False if those of this one see as much, and it can be forgotten.
    pub fn resume_seen(&mut self, seen_ms: SeenBefore) -> bool {
        let Circumstances { watermarks_ms, seen_before_ms, .. } = &mut self.circumstances;
        let is_ahead =
            |((operator, _), seen_ms): &((usize, u32), i64)| *seen_ms > watermarks_ms[*operator];
        let ahead: SeenBefore = seen_ms.into_iter().filter(is_ahead).collect();
        let is_any = !ahead.is_empty();
        seen_before_ms.extend(ahead);
        is_any
    }

    /// Event time that each operator sees.
    pub fn watermarks_ms(&self) -> &[i64] {
        &self.circumstances.watermarks_ms
    }

    /// A step begins: what follows is part of it. Its clock is the machine's; while that is behind,
    /// for it was set back, the clock goes on from where it was.
    pub fn begin(&mut self, step: Step) {
        let Step { now, sequence, seed, size_max } = step;
        let passed_ms = now.monotonic_ms.saturating_sub(self.monotonic_ms);
        let circumstances = &mut self.circumstances;
        let went_on_ms = circumstances.now_ms.saturating_add(passed_ms as i64);
        circumstances.now_ms = went_on_ms.max(now.wall_ms);
        (circumstances.step, circumstances.seed) = (sequence, seed);
        circumstances.size_max = size_max;
        self.monotonic_ms = now.monotonic_ms;
    }

    /// Its plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Event time, to be set up after a start.
    pub fn times_mut(&mut self) -> &mut EventTimes {
        &mut self.times
    }

    /// Event time.
    pub fn times(&self) -> &EventTimes {
        &self.times
    }

    /// The newest clock of a step.
    pub fn clock_ms(&self) -> i64 {
        self.circumstances.now_ms
    }

    /// Counts since the start.
    pub fn counts(&self) -> Counts {
        self.figures.counts
    }

    /// What it has done since the start.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Counts, to be changed.
    pub fn counts_mut(&mut self) -> &mut Counts {
        &mut self.figures.counts
    }

    /// Where the keys of a stage are.
    pub fn place(&self, stage: usize) -> StagePlace {
        self.circumstances.stages[stage]
    }

    /// The partition of a stage that a key belongs to.
    pub fn partition_of(&self, stage: usize, key: &[u8]) -> u32 {
        self.circumstances.place(stage, key).0
    }

    /// Where a partition of a stage lives.
    pub fn shard_of(&self, stage: usize, partition: u32) -> ShardId {
        let first_shard = self.circumstances.stages[stage].first_shard;
        partition_shard(first_shard, partition, self.circumstances.shard_count)
    }

    /// What could not be processed and has nowhere to go; it was not taken.
    pub fn take_stuck(&mut self) -> Option<Failure> {
        self.stuck.take()
    }

    /// Operators, by number, that saw a new event time since the last call, in the order in which they
    /// did; in milliseconds since 1970.
    pub fn take_seen(&mut self) -> Vec<(usize, i64)> {
        std::mem::take(&mut self.seen)
    }

    /// What is to go into the frame since the last call.
    pub fn take_made(&mut self) -> Made {
        std::mem::take(&mut self.made)
    }

    /// Takes records that another shard made for a partition of this one.
    pub fn sink(&mut self, id: PartitionId, batch: RecordBatch, room: usize) -> Taken {
        let size = batch.bytes().len() + ENTRY_OVERHEAD_MAX;
        if !self.fits(size, room) {
            return Taken::NoRoom;
        }
        self.made.size += size;
        self.made.sunk.push((id, batch));
        Taken::Done
    }

    /// Sets or removes an entry of the shard's state that is the task's own.
    pub fn keep(&mut self, state: &mut State, key: Vec<u8>, value: Option<Vec<u8>>) {
        let value_size = value.as_ref().map_or(0, Vec::len);
        self.made.size += key.len() + value_size + ENTRY_OVERHEAD_MAX;
        self.change(state, key, value);
    }

    /// A batch of a source cannot be read, or the rest of it: from this offset to the last.
    pub fn on_bad_batch(
        &mut self,
        place: (usize, u32),
        offsets: (u64, u64),
        reason: &str,
        room: usize,
    ) -> Taken {
        let rejected = Rejected::of_bad_batch(&self.plan, place, offsets, reason);
        self.reject(rejected, room)
    }

    /// Processes a record of a source.
    pub fn on_record(
        &mut self,
        state: &mut State,
        (source, partition): (usize, u32),
        record: &Record,
        room: usize,
    ) -> Taken {
        self.circumstances.stopwatch = self.sampler.next();
        let (topology, topic) = (self.plan.id(), self.topics[source]);
        self.enter(|| Call::record(topology, topic, partition, record.offset));
        let result = self.plan.on_record(state, &self.circumstances, (source, partition), record);
        self.leave();
        let time_ms = match &result {
            Ok(wanted) => wanted.event_time_ms.unwrap_or(record.timestamp_ms),
            // Nobody knows its time: it moves none.
            Err(_) => i64::MIN,
        };
        let taken = match result {
            Ok(wanted) => self.take(state, wanted, room),
            Err(failure) => {
                let place = (source, partition);
                let rejected = Rejected::of_record(&self.plan, place, record, failure);
                self.reject(rejected, room)
            }
        };
        if taken == Taken::Done {
            self.figures.counts.records += 1;
            self.times.on_record(source, partition, time_ms, self.monotonic_ms);
        }
        taken
    }

    /// Processes a record that another shard sent to a stage.
    pub fn on_arrival(
        &mut self,
        state: &mut State,
        (stage, partition): (usize, u32),
        record: &Record,
        room: usize,
    ) -> Taken {
        self.circumstances.stopwatch = self.sampler.next();
        let (topology, id) = (self.plan.id(), self.plan.stage_ids()[stage]);
        self.enter(|| Call::arrival(topology, (id, partition), self.arriving));
        let result = self.plan.on_arrival(state, &self.circumstances, (stage, partition), record);
        self.leave();
        let taken = match result {
            Ok(wanted) => self.take(state, wanted, room),
            Err(failure) => {
                let place = (stage, partition);
                let rejected = Rejected::of_arrival(&self.plan, place, record, failure);
                self.reject(rejected, room)
            }
        };
        self.figures.counts.arrivals += u64::from(taken == Taken::Done);
        taken
    }

    /// Fires timers whose time has come, while `goes_on` says so: by event time operator after
    /// operator, so that what one makes is there before time goes on for the next; then by the clock.
    pub fn fire(
        &mut self,
        state: &mut State,
        room: usize,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Fired {
        let count_before = self.figures.counts.timers;
        for index in 0..self.first_timers.len() {
            let seen_ms = &mut self.circumstances.watermarks_ms[index];
            let due_ms = self.calls.held_ms(index, self.times.due_ms(index)).max(*seen_ms);
            // From the first of its timers on the operator sees the new time, also if the others have to
            // wait: a record for what a timer has ended is late.
            if std::mem::replace(seen_ms, due_ms) != due_ms {
                self.seen.push((index, due_ms));
            }
            // What timers set for a time that has come fires as well.
            let due = (index, TimeDomain::Event, due_ms);
            if !self.fire_of(state, due, room, goes_on) {
                return Fired::CutAmid;
            }
            self.times.set_operator(index, due_ms);
        }
        let clock_ms = self.circumstances.now_ms;
        let has_fired = (0..self.first_timers.len()).all(|index| {
            let due = (index, TimeDomain::Processing, clock_ms);
            self.fire_of(state, due, room, goes_on)
        });
        match has_fired {
            false => Fired::Cut,
            true if self.figures.counts.timers == count_before => Fired::None,
            true => Fired::All,
        }
    }

    /// False if some are left.
    fn fire_of(
        &mut self,
        state: &mut State,
        (index, domain, due_ms): (usize, TimeDomain, i64),
        room: usize,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> bool {
        let known = self.first_timers[index][place(domain)];
        if known.is_known(state) && known.time_ms.is_none_or(|time_ms| time_ms > due_ms) {
            return true;
        }
        let prefix = self.timer_prefix(index, domain);
        loop {
            let next = first_timer(state, &prefix);
            let first = FirstTimer {
                time_ms: next.as_ref().map(|timer| timer.time_ms),
                version: Some(state.timers_version()),
            };
            self.first_timers[index][place(domain)] = first;
            let Some(timer) = next.filter(|timer| timer.time_ms <= due_ms) else { return true };
            if !goes_on() {
                return false;
            }
            self.circumstances.stopwatch = self.sampler.next();
            self.enter(|| Call::timer(&timer));
            let result = self.plan.on_timer(state, &self.circumstances, &timer);
            self.leave();
            let taken = match result {
                Ok(wanted) => self.take(state, wanted, room),
                Err(failure) => {
                    let taken = self.reject(Rejected::of_timer(&timer, failure), room);
                    if taken == Taken::Done {
                        // It would fail for ever.
                        self.change(state, timer.encode(), None);
                    }
                    taken
                }
            };
            if taken == Taken::NoRoom {
                return false;
            }
            self.figures.counts.timers += 1;
        }
    }

    fn enter(&self, call: impl FnOnce() -> Call) {
        if let Some(witness) = self.witness {
            witness.enter(call());
        }
    }

    fn leave(&self) {
        if let Some(witness) = self.witness {
            witness.leave();
        }
    }

    /// When the next timer by the clock is due, in milliseconds since 1970.
    pub fn next_timer_ms(&self, state: &State) -> Option<i64> {
        let domain = TimeDomain::Processing;
        let first = |(index, known): (usize, &[FirstTimer; 2])| {
            let known = known[place(domain)];
            if known.is_known(state) {
                return known.time_ms;
            }
            first_timer(state, &self.timer_prefix(index, domain)).map(|timer| timer.time_ms)
        };
        self.first_timers.iter().enumerate().filter_map(first).min()
    }

    fn timer_prefix(&self, index: usize, domain: TimeDomain) -> Vec<u8> {
        Timer::prefix(self.plan.id(), domain, self.plan.operator_id(index))
    }

    fn take(&mut self, state: &mut State, wanted: Wanted, room: usize) -> Taken {
        let size = wanted.size();
        if !self.fits(size, room) {
            return Taken::NoRoom;
        }
        self.made.size += size;
        let counts = &mut self.figures.counts;
        counts.misplaced += wanted.misplaced;
        counts.late += wanted.late;
        let is_sent = |it: &&Emitted| matches!(it.to, Destination::Stage { .. });
        counts.sent += wanted.emitted.iter().filter(is_sent).count() as u64;
        self.figures.add(&wanted);
        for (key, value) in wanted.changes {
            self.change(state, key, value);
        }
        self.made.emitted.extend(wanted.emitted);
        self.made.called.extend(wanted.called);
        wanted.waiting.into_iter().for_each(|waiting| self.calls.push(waiting));
        Taken::Done
    }

    /// Whether what a call made goes into the frame. The first of a step goes in even if it is more
    /// than a frame is meant to have; it is not more than a frame can have.
    fn fits(&self, size: usize, room: usize) -> bool {
        self.made.size == 0 || self.made.size + size <= room
    }

    fn change(&mut self, state: &mut State, key: Vec<u8>, value: Option<Vec<u8>>) {
        state.apply(Change { key: key.clone(), value: value.clone() });
        self.made.changed.insert(key, value);
    }

    fn reject(&mut self, mut rejected: Rejected, room: usize) -> Taken {
        if self.plan.dead_letter().is_none() {
            self.stuck = Some(rejected.failure);
            return Taken::NoRoom;
        }
        rejected.limit(self.circumstances.size_max);
        let size = rejected.size();
        if !self.fits(size, room) {
            return Taken::NoRoom;
        }
        self.made.size += size;
        self.figures.counts.rejected += 1;
        let culprit = rejected.failure.place();
        let culprit = self.plan.operator_names().iter().position(|name| name == culprit);
        if let Some(culprit) = culprit {
            self.figures.operators[culprit].failed += 1;
        }
        if !mutation::is_on(Mutation::ForgetDeadLetter) {
            self.made.rejected.push(rejected);
        }
        Taken::Done
    }
}

/// The first timer whose key begins like that.
fn first_timer(state: &State, prefix: &[u8]) -> Option<Timer> {
    let (key, _) = state.range(prefix).next()?;
    Timer::decode(key)
}
