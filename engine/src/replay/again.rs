//! One step, made again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tidemill_wal::format::{PartitionId, ShardId};
use tidemill_wal::store::Store;

use super::Recorded;
use super::difference::{self, Cause, Difference, Place, Told};
use super::lookup::Lookup;
use crate::batch::{Record, RecordBatch};
use crate::command::{Routes, TopicRoute, key_partition};
use crate::effect::Change;
use crate::shard::RECORDS_SIZE_MAX;
use crate::state::{Kind, State};
use crate::topology::course::Leg;
use crate::topology::stored::{self, Part, Position, StageEntry, StoredCall};
use crate::topology::{
    Circumstances, Destination, Emitted, NameId, Plan, Rejected, TimeDomain, Timer, Wanted,
};

/// Why a step was not made to its end.
pub enum Stop {
    /// What it took is not there any more.
    Gone,
    /// What it did cannot be done.
    Differs(Box<Difference>),
    /// What is stored makes no sense.
    Unreadable(String),
}

impl From<String> for Stop {
    fn from(why: String) -> Self {
        Self::Unreadable(why)
    }
}

/// An entry of the state that the step has changed.
struct Touched {
    /// Its value before the step.
    before: Option<Vec<u8>>,
    /// The last call that changed it.
    call: usize,
}

/// A partition that the step read.
struct Input {
    source: usize,
    id: PartitionId,
    next_offset: u64,
    newest_ms: i64,
    /// The last call of it.
    call: usize,
}

/// A step on its way.
pub struct Again<'a> {
    recorded: &'a Recorded<'a>,
    circumstances: Circumstances,
    shard: ShardId,
    routes: &'a Routes,
    state: &'a mut State,
    lookup: &'a Lookup<'a>,
    store: &'a Store,
    inputs: Vec<Input>,
    /// What each call was of.
    causes: Vec<Cause>,
    touched: BTreeMap<Vec<u8>, Touched>,
    emitted: Vec<(Emitted, usize)>,
    letters: Vec<(Emitted, usize)>,
    sunk: Vec<(PartitionId, RecordBatch, usize)>,
    taken: BTreeMap<u16, (Position, usize)>,
    /// Results of blocking calls that the step took, in order.
    results: std::vec::IntoIter<&'a [u8]>,
}

impl<'a> Again<'a> {
    /// Before its first call. None if the program does not read a topic that the step did.
    pub fn new(
        recorded: &'a Recorded<'a>,
        circumstances: Circumstances,
        (shard, routes): (ShardId, &'a Routes),
        state: &'a mut State,
        (lookup, store): (&'a Lookup<'a>, &'a Store),
    ) -> Result<Option<Self>, String> {
        let is_result = |change: &&&Change| Kind::of(&change.key) == Some(Kind::TopologyCalled);
        let results = recorded.changes.iter().filter(is_result);
        let results: Vec<&[u8]> = results.filter_map(|change| change.value.as_deref()).collect();
        let mut inputs = Vec::new();
        for change in &recorded.changes {
            if Kind::of(&change.key) != Some(Kind::TopologyProgress) {
                continue;
            }
            let key = stored::decode_progress_key(&change.key);
            let (_, id) = key.ok_or("the key of a progress is short")?;
            let name = routes.ids.get(&id.topic).map(|route| &*route.name);
            let source = name.and_then(|name| recorded.plan.sources().position(|it| it == name));
            let Some(source) = source else { return Ok(None) };
            let (next_offset, newest_ms) = match state.value(&change.key) {
                Some(bytes) => stored::decode_progress(bytes)?,
                None => (0, i64::MIN),
            };
            inputs.push(Input { source, id, next_offset, newest_ms, call: usize::MAX });
        }
        // Legs name them by this order.
        inputs.sort_by_key(|input| input.id);
        Ok(Some(Self {
            recorded,
            circumstances,
            shard,
            routes,
            state,
            lookup,
            store,
            inputs,
            causes: Vec::new(),
            touched: BTreeMap::new(),
            emitted: Vec::new(),
            letters: Vec::new(),
            sunk: Vec::new(),
            taken: BTreeMap::new(),
            results: results.into_iter(),
        }))
    }

    fn plan(&self) -> &'a Plan {
        self.recorded.plan
    }

    /// Calls that were made.
    pub fn calls(&self) -> u64 {
        self.causes.len() as u64
    }

    /// Does all that the step did.
    pub fn make(&mut self) -> Result<(), Stop> {
        let recorded = self.recorded;
        for leg in &recorded.course.legs {
            match leg {
                Leg::Input { input, from, to } => self.input(*input, *from, *to)?,
                Leg::Arrivals { sender, from, to } => self.arrivals(*sender, *from, *to)?,
                Leg::Timers { seen, fired } => self.timers(seen, *fired)?,
                Leg::Calls(count) => self.results(*count)?,
            }
        }
        let topology = self.plan().id();
        for index in 0..self.inputs.len() {
            let Input { id, next_offset, newest_ms, call, .. } = self.inputs[index];
            let value = stored::encode_progress(next_offset, newest_ms);
            self.change(stored::progress_key(topology, id), Some(value), call);
        }
        for (sender, (position, call)) in std::mem::take(&mut self.taken) {
            let key = stored::position_key(topology, sender);
            self.change(key, Some(position.encode()), call);
        }
        Ok(())
    }

    /// The state is again what it was before the step.
    pub fn take_back(self) {
        for (key, touched) in self.touched {
            self.state.load(&key, touched.before.as_deref());
        }
    }

    fn change(&mut self, key: Vec<u8>, value: Option<Vec<u8>>, call: usize) {
        let touched = self.touched.entry(key.clone()).or_insert_with(|| Touched {
            before: self.state.value(&key).map(<[u8]>::to_vec),
            call,
        });
        touched.call = call;
        self.state.load(&key, value.as_deref());
    }

    fn begin(&mut self, cause: Cause) -> usize {
        self.causes.push(cause);
        self.causes.len() - 1
    }

    /// What a call wanted is done.
    fn take(&mut self, wanted: Wanted, call: usize) {
        for (key, value) in wanted.changes {
            self.change(key, value, call);
        }
        self.emitted.extend(wanted.emitted.into_iter().map(|emitted| (emitted, call)));
    }

    /// A call failed; when the step was made, it cannot have, if there is no topic for such records.
    fn reject(&mut self, mut rejected: Rejected, call: usize) -> Result<(), Stop> {
        if self.plan().dead_letter().is_none() {
            return Err(self.differs(Difference {
                operator: Some(rejected.failure.place().to_owned()),
                what: "the call".to_owned(),
                recorded: "done".to_owned(),
                now: format!("refused: {}", rejected.failure),
                ..self.difference(Some(call))
            }));
        }
        rejected.limit(self.circumstances.size_max);
        self.letters.push((rejected.into_letter(), call));
        Ok(())
    }

    fn differs(&self, difference: Difference) -> Stop {
        Stop::Differs(Box::new(difference))
    }

    /// Of this step, made by a call, if that is known.
    fn difference(&self, call: Option<usize>) -> Difference {
        // Of one call it is in any case.
        let only = (self.causes.len() == 1).then_some(0);
        let cause = call.filter(|call| *call < self.causes.len()).or(only);
        let cause = cause.map(|call| self.causes[call].words(self.plan()));
        let (topology, frame) = (self.plan().name().to_owned(), self.recorded.frame.0);
        Difference { shard: self.shard.0, frame, topology, cause, ..Difference::default() }
    }

    /// Records of a partition, from one offset on and before another.
    fn input(&mut self, index: usize, from: u64, to: u64) -> Result<(), Stop> {
        let input = self.inputs.get(index).ok_or_else(|| "a leg without its input".to_owned())?;
        let (id, source) = (input.id, input.source);
        let place = (source, id.index);
        let mut next = from;
        while next < to {
            let found = self.lookup.batch(self.shard, self.store, id, next)?.ok_or(Stop::Gone)?;
            let last = found.last;
            let batch = match RecordBatch::stored(found.bytes) {
                Ok(batch) => batch,
                Err(fault) => {
                    self.bad_batch(place, (next, next), &fault.to_string())?;
                    next += 1;
                    continue;
                }
            };
            match batch.records(RECORDS_SIZE_MAX) {
                Ok(records) => {
                    for record in records {
                        match record {
                            _ if next >= to => break,
                            Ok(record) if record.offset < next => {}
                            Ok(record) if record.offset >= to => break,
                            Ok(record) => {
                                self.record(index, &record)?;
                                next = record.offset + 1;
                            }
                            Err(fault) => {
                                self.bad_batch(place, (next, last), &fault.to_string())?;
                                next = last + 1;
                            }
                        }
                    }
                }
                Err(fault) => {
                    let first = found.base.max(next);
                    self.bad_batch(place, (first, last), &fault.to_string())?;
                }
            }
            next = next.max(last + 1);
        }
        let input = &mut self.inputs[index];
        input.next_offset = input.next_offset.max(to);
        Ok(())
    }

    fn bad_batch(
        &mut self,
        place: (usize, u32),
        offsets: (u64, u64),
        reason: &str,
    ) -> Result<(), Stop> {
        let (source, partition) = place;
        let call = self.begin(Cause::Record { source, partition, offset: offsets.0 });
        self.reject(Rejected::of_bad_batch(self.plan(), place, offsets, reason), call)
    }

    fn record(&mut self, index: usize, record: &Record) -> Result<(), Stop> {
        let (source, partition) = (self.inputs[index].source, self.inputs[index].id.index);
        let call = self.begin(Cause::Record { source, partition, offset: record.offset });
        let place = (source, partition);
        let plan = self.plan();
        let time_ms = match plan.on_record(self.state, &self.circumstances, place, record) {
            Ok(wanted) => {
                let time_ms = wanted.event_time_ms.unwrap_or(record.timestamp_ms);
                self.take(wanted, call);
                time_ms
            }
            Err(failure) => {
                self.reject(Rejected::of_record(plan, place, record, failure), call)?;
                i64::MIN
            }
        };
        let input = &mut self.inputs[index];
        (input.newest_ms, input.call) = (input.newest_ms.max(time_ms), call);
        Ok(())
    }

    /// What a shard sent, from one position on and before another.
    fn arrivals(&mut self, sender: u16, from: Position, to: Position) -> Result<(), Stop> {
        let topology = self.plan().id();
        let mut at = from;
        while at < to {
            let key = stored::arrival_key(topology, sender, at.sequence);
            let held = self.state.value(&key).map(Bytes::copy_from_slice);
            let is_held = held.is_some();
            let bytes = match held {
                Some(bytes) => bytes,
                None => {
                    let sent = self.lookup.entry(ShardId(sender), self.shard, at.sequence)?;
                    sent.ok_or(Stop::Gone)?
                }
            };
            let entry = StageEntry::decode(&bytes);
            let entry = entry.ok_or_else(|| "an entry of a topology cannot be read".to_owned())?;
            if entry.topology != topology {
                return Err(format!("entry {} of shard {sender} is another's", at.sequence).into());
            }
            while at < to
                && let Some(part) = entry.parts.get(at.part as usize)
            {
                if !self.part(sender, part, &mut at, to)? {
                    break;
                }
                at = Position { part: at.part + 1, record: 0, ..at };
            }
            if at < to {
                at = Position { sequence: at.sequence + 1, part: 0, record: 0 };
                if is_held {
                    self.change(key, None, self.causes.len().wrapping_sub(1));
                }
            }
        }
        self.taken.insert(sender, (to, self.causes.len().wrapping_sub(1)));
        Ok(())
    }

    /// False if the position is inside of this part.
    fn part(
        &mut self,
        sender: u16,
        part: &Part,
        at: &mut Position,
        to: Position,
    ) -> Result<bool, Stop> {
        let unreadable = |fault: &dyn std::fmt::Display| {
            Stop::Unreadable(format!("what shard {sender} sent cannot be read: {fault}"))
        };
        match part {
            // What is seen of event time is in the course.
            Part::Mark { .. } => {}
            Part::Sink { id, batch } => {
                if self.is_here(*id) {
                    let batch =
                        RecordBatch::stored(batch.clone()).map_err(|fault| unreadable(&fault))?;
                    let cause = Cause::Sent { sender, sequence: at.sequence, record: None };
                    let call = self.begin(cause);
                    self.sunk.push((*id, batch, call));
                }
            }
            Part::Stage { stage, partition, batch, .. } => {
                let stage = self.plan().stage(*stage);
                let stage = stage.ok_or_else(|| unreadable(&"its stage is gone"))?;
                let batch = RecordBatch::stored(batch.clone()).map_err(|it| unreadable(&it))?;
                let records = batch.records(RECORDS_SIZE_MAX).map_err(|it| unreadable(&it))?;
                for record in records.skip(at.record as usize) {
                    if *at >= to {
                        return Ok(false);
                    }
                    let record = record.map_err(|fault| unreadable(&fault))?;
                    self.arrival((stage, *partition), &record, (sender, *at))?;
                    at.record += 1;
                }
            }
        }
        Ok(true)
    }

    /// Whether a partition is one of this shard.
    fn is_here(&self, id: PartitionId) -> bool {
        self.routes.ids.get(&id.topic).is_some_and(|route| {
            id.index < route.partition_count && route.shard_of(id.index) == self.shard
        })
    }

    fn arrival(
        &mut self,
        place: (usize, u32),
        record: &Record,
        (sender, at): (u16, Position),
    ) -> Result<(), Stop> {
        let record_number = Some((at.part, at.record));
        let cause = Cause::Sent { sender, sequence: at.sequence, record: record_number };
        let call = self.begin(cause);
        let plan = self.plan();
        match plan.on_arrival(self.state, &self.circumstances, place, record) {
            Ok(wanted) => self.take(wanted, call),
            Err(failure) => {
                self.reject(Rejected::of_arrival(plan, place, record, failure), call)?;
            }
        }
        Ok(())
    }

    /// The next results of blocking calls: so many of those that the frame has.
    fn results(&mut self, count: u64) -> Result<(), Stop> {
        for _ in 0..count {
            let called = self.results.next();
            let called = called.ok_or_else(|| "a result is not in its frame".to_owned())?;
            let called = StoredCall::decode(called)
                .ok_or_else(|| "the result of a blocking call cannot be read".to_owned())?;
            let call = self.begin(Cause::Result(called.clone()));
            let again = self.plan().on_called_again(self.state, &self.circumstances, &called);
            match again.ok_or(Stop::Gone)? {
                Ok(wanted) => self.take(wanted, call),
                Err((rejected, entry)) => {
                    self.reject(rejected, call)?;
                    self.change(entry, None, call);
                }
            }
        }
        Ok(())
    }

    /// Timers that are due, after operators have seen these event times: so many of them.
    fn timers(&mut self, seen: &[(usize, i64)], fired: u64) -> Result<(), Stop> {
        let mut left = fired;
        let mut seen = seen.iter().copied().peekable();
        let operators: Vec<NameId> = self.plan().operators().map(|(id, _)| id).collect();
        for (index, operator) in operators.iter().enumerate() {
            if let Some((_, seen_ms)) = seen.next_if(|(of, _)| *of == index) {
                self.circumstances.watermarks_ms[index] = seen_ms;
            }
            let due_ms = self.circumstances.watermarks_ms[index];
            self.timers_of((*operator, TimeDomain::Event, due_ms), &mut left)?;
        }
        for operator in operators {
            let due_ms = self.circumstances.now_ms;
            self.timers_of((operator, TimeDomain::Processing, due_ms), &mut left)?;
        }
        match left {
            0 => Ok(()),
            _ => Err(self.differs(Difference {
                what: "the number of timers that fired".to_owned(),
                recorded: fired.to_string(),
                now: (fired - left).to_string(),
                ..self.difference(None)
            })),
        }
    }

    fn timers_of(
        &mut self,
        (operator, domain, due_ms): (NameId, TimeDomain, i64),
        left: &mut u64,
    ) -> Result<(), Stop> {
        let plan = self.plan();
        let prefix = Timer::prefix(plan.id(), domain, operator);
        while *left > 0 {
            let next = self.state.range(&prefix).next().and_then(|(key, _)| Timer::decode(key));
            let Some(timer) = next.filter(|timer| timer.time_ms <= due_ms) else { break };
            let call = self.begin(Cause::Timer(timer.clone()));
            match plan.on_timer(self.state, &self.circumstances, &timer) {
                Ok(wanted) => self.take(wanted, call),
                Err(failure) => {
                    self.reject(Rejected::of_timer(&timer, failure), call)?;
                    self.change(timer.encode(), None, call);
                }
            }
            *left -= 1;
        }
        Ok(())
    }

    /// The first thing that came out otherwise than it is recorded.
    pub fn compare(&self) -> Result<Option<Difference>, Stop> {
        let state = self.compare_state();
        let records = self.compare_records()?;
        // Of one call what it changed comes before what it made.
        let first = match (state, records) {
            (Some(state), Some(records)) if records.0 < state.0 => Some(records),
            (Some(first), _) | (None, Some(first)) => Some(first),
            (None, None) => None,
        };
        Ok(first.map(|(_, difference)| difference))
    }

    fn compare_state(&self) -> Option<(usize, Difference)> {
        let plan = self.plan();
        let recorded: BTreeMap<&[u8], Option<&[u8]>> = (self.recorded.changes.iter())
            .filter(|change| is_made_by_calls(plan, &change.key))
            .map(|change| (change.key.as_slice(), change.value.as_deref()))
            .collect();
        let keys: BTreeSet<&[u8]> =
            recorded.keys().copied().chain(self.touched.keys().map(Vec::as_slice)).collect();
        let differs = |key: &&[u8]| {
            let now = self.touched.contains_key(*key).then(|| self.state.value(key));
            recorded.get(*key).copied() != now
        };
        let call = |key: &[u8]| self.touched.get(key).map_or(usize::MAX, |it| it.call);
        let key = keys.into_iter().filter(differs).min_by_key(|key| call(key))?;
        let (operator, what) = difference::subject(plan, key);
        let now = self.touched.contains_key(key).then(|| self.state.value(key));
        let words = |value: Option<Option<&[u8]>>| difference::change_in_words(key, value);
        let difference = Difference {
            operator,
            what,
            recorded: words(recorded.get(key).copied()),
            now: words(now),
            ..self.difference(Some(call(key)))
        };
        Some((call(key), difference))
    }

    fn compare_records(&self) -> Result<Option<(usize, Difference)>, Stop> {
        let recorded = self.recorded_records()?;
        let now = self.made_records()?;
        let places: BTreeSet<Place> = recorded.keys().chain(now.keys()).copied().collect();
        let mut first: Option<(usize, Difference)> = None;
        for place in places {
            let (before, now) = (recorded.get(&place), now.get(&place));
            let (before, now) =
                (before.map_or(&[][..], Vec::as_slice), now.map_or(&[][..], Vec::as_slice));
            let is_same = |index: &usize| match (before.get(*index), now.get(*index)) {
                (Some(before), Some((now, _))) => before.is_same(now),
                _ => false,
            };
            let Some(index) = (0..before.len().max(now.len())).find(|index| !is_same(index)) else {
                continue;
            };
            let call = now.get(index).map_or(usize::MAX, |(_, call)| *call);
            if first.as_ref().is_none_or(|(before, _)| call < *before) {
                let words = |told: Option<&Told>| told.map_or("nothing".to_owned(), Told::words);
                let difference = Difference {
                    what: format!("a record {}", place.words(self.plan(), self.routes)),
                    recorded: words(before.get(index)),
                    now: words(now.get(index).map(|(told, _)| told)),
                    ..self.difference(Some(call))
                };
                first = Some((call, difference));
            }
        }
        Ok(first)
    }

    /// The records that the frame has of this step, by where they went, in order.
    fn recorded_records(&self) -> Result<BTreeMap<Place, Vec<Told>>, Stop> {
        let mut told: BTreeMap<Place, Vec<Told>> = BTreeMap::new();
        for (id, bytes) in &self.recorded.batches {
            told.entry(Place::Topic(*id)).or_default().extend(records_of(bytes.clone())?);
        }
        for change in &self.recorded.changes {
            let Some(value) = &change.value else { continue };
            if Kind::of(&change.key) != Some(Kind::Outbox) {
                continue;
            }
            let entry = StageEntry::decode(&Bytes::copy_from_slice(value));
            let entry = entry.ok_or_else(|| "an entry of a topology cannot be read".to_owned())?;
            for part in entry.parts {
                let (place, batch) = match part {
                    Part::Sink { id, batch } => (Place::Topic(id), batch),
                    Part::Stage { stage, partition, batch, .. } => {
                        (Place::Stage(stage, partition), batch)
                    }
                    // Event time is what the records of all partitions make of it, and of waiting.
                    Part::Mark { .. } => continue,
                };
                told.entry(place).or_default().extend(records_of(batch)?);
            }
        }
        Ok(told)
    }

    /// The same as they came out now, each with its call.
    fn made_records(&self) -> Result<BTreeMap<Place, Vec<(Told, usize)>>, Stop> {
        let mut told: BTreeMap<Place, Vec<(Told, usize)>> = BTreeMap::new();
        for (id, batch, call) in &self.sunk {
            let records = records_of(batch.bytes().clone())?.into_iter();
            told.entry(Place::Topic(*id)).or_default().extend(records.map(|it| (it, *call)));
        }
        let mut keyless = self.recorded.course.keyless;
        for (emitted, call) in self.emitted.iter().chain(&self.letters) {
            let place = match emitted.to {
                Destination::Stage { stage, partition } => {
                    Some(Place::Stage(self.plan().stage_ids()[stage], partition))
                }
                Destination::Sink(sink) => self.topic(self.plan().sinks().nth(sink), |route| {
                    partition_of(emitted, route, &mut keyless)
                }),
                Destination::DeadLetter => self.topic(self.plan().dead_letter(), |route| {
                    partition_of(emitted, route, &mut keyless)
                }),
            };
            let Some(place) = place else { continue };
            told.entry(place).or_default().push((Told::of_emitted(emitted), *call));
        }
        Ok(told)
    }

    /// A partition of a topic, if the topic is there.
    fn topic(
        &self,
        name: Option<&str>,
        partition: impl FnOnce(&TopicRoute) -> u32,
    ) -> Option<Place> {
        let route = self.routes.topics.get(name?)?;
        Some(Place::Topic(route.partition(partition(route))))
    }
}

fn partition_of(emitted: &Emitted, route: &TopicRoute, keyless: &mut u32) -> u32 {
    match &emitted.key {
        Some(key) => key_partition(key, route.partition_count),
        None => {
            *keyless = keyless.wrapping_add(1);
            *keyless % route.partition_count
        }
    }
}

fn records_of(bytes: Bytes) -> Result<Vec<Told>, Stop> {
    let unreadable =
        |fault: &dyn std::fmt::Display| Stop::Unreadable(format!("what a step made: {fault}"));
    let batch = RecordBatch::stored(bytes).map_err(|fault| unreadable(&fault))?;
    let has_own_time = !batch.is_append_time();
    let records = batch.records(RECORDS_SIZE_MAX).map_err(|fault| unreadable(&fault))?;
    let told = |record: Record| Told::of_record(record, has_own_time);
    records.map(|record| record.map(told).map_err(|fault| unreadable(&fault))).collect()
}

/// Whether an entry of a step is of what its calls did, and of how far they came. Not so: what is stored
/// once about the topology, the step itself, its entries for other shards, and what is given up.
fn is_made_by_calls(plan: &Plan, key: &[u8]) -> bool {
    match Kind::of(key) {
        Some(Kind::OperatorState) => {
            let state = key.get(1..9).and_then(|id| id.try_into().ok()).map(u64::from_be_bytes);
            !state.is_some_and(|state| plan.may_drop(NameId(state)))
        }
        Some(Kind::Timer) => {
            Timer::decode(key).is_none_or(|timer| plan.operator(timer.operator).is_some())
        }
        Some(Kind::TopologyProgress | Kind::TopologyTaken | Kind::TopologyArrival) => true,
        _ => false,
    }
}
