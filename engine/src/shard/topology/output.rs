//! What topologies made, on its way into the frame: records into partitions of this shard, entries
//! for other shards, and what changed.

use std::collections::{BTreeMap, HashMap};

use tidemill_wal::format::{ENTRY_OVERHEAD_MAX, PartitionId, ShardId};
use tidemill_wal::mutation::{self, Mutation};

use super::{ON_THEIR_WAY_MAX, Queue, Sizes, Wired};
use crate::batch::{BatchBuilder, NewRecord, RecordBatch};
use crate::command::key_partition;
use crate::effect::{Change, Effect, Now};
use crate::shard::{Outgoing, Shard};
use crate::state::Kind;
use crate::topology::course::{self, Leg, StoredCourse};
use crate::topology::stored::{self, Part, StageEntry, StoredCall, StoredStep, mark_ms};
use crate::topology::{Destination, Emitted, Made, Mark, Task};

/// How often other shards are told of event time while something is on its way to them.
const TELL_MS: u64 = 10;

/// Where records go on another shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Sink(PartitionId),
    Stage(usize, u32),
}

/// Records of a step on their way to one place, as batches.
#[derive(Default)]
struct Batches {
    full: Vec<RecordBatch>,
    open: BatchBuilder,
}

impl Batches {
    fn push(&mut self, record: &Emitted, sizes: Sizes) {
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            record.headers.iter().map(|(name, value)| (&name[..], value.as_deref())).collect();
        self.open.push(NewRecord {
            timestamp_ms: record.timestamp_ms,
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers,
        });
        if self.open.size() >= sizes.batch {
            self.full.push(std::mem::take(&mut self.open).build());
        }
    }

    fn build(mut self) -> Vec<RecordBatch> {
        if self.open.record_count() > 0 {
            self.full.push(self.open.build());
        }
        self.full
    }
}

/// Where all records of a step go.
#[derive(Default)]
struct Sorted {
    own: BTreeMap<PartitionId, Batches>,
    away: BTreeMap<ShardId, BTreeMap<Place, Batches>>,
}

/// Whether a deliberate break keeps a change from its frame.
fn is_lost(key: &[u8], value: Option<&[u8]>) -> bool {
    let loses =
        |mutation: Mutation, kind: Kind| mutation::is_on(mutation) && Kind::of(key) == Some(kind);
    let loses_removal = |mutation: Mutation, kind: Kind| value.is_none() && loses(mutation, kind);
    loses(Mutation::ForgetOperatorState, Kind::OperatorState)
        || loses_removal(Mutation::KeepFiredTimer, Kind::Timer)
        || loses_removal(Mutation::KeepTakenArrival, Kind::TopologyArrival)
        || loses_removal(Mutation::TakeArrivalAgain, Kind::TopologyArrival)
}

/// The times of a task as they are stored.
fn stored_step(task: &Task) -> StoredStep {
    let (plan, times) = (task.plan(), task.times());
    let heard = |(index, id)| (id, times.heard(index).iter().copied().map(mark_ms).collect());
    let operators = plan.operators().zip(times.operators_ms().iter().zip(task.watermarks_ms()));
    let operators = operators.filter(|_| !mutation::is_on(Mutation::ForgetEventTime));
    StoredStep {
        clock_ms: task.clock_ms(),
        operators_ms: operators.map(|((id, _), (fired, seen))| (id, *fired, *seen)).collect(),
        heard: plan.stage_ids().iter().copied().enumerate().map(heard).collect(),
    }
}

/// Legs as they are stored: partitions by their place among those that the step went on in.
fn stored_legs(mut legs: Vec<Leg>, inputs: &BTreeMap<PartitionId, usize>) -> Vec<Leg> {
    let places: HashMap<usize, usize> =
        inputs.values().enumerate().map(|(place, number)| (*number, place)).collect();
    for leg in &mut legs {
        if let Leg::Input { input, .. } = leg {
            *input = places[input];
        }
    }
    legs
}

impl Wired {
    /// The inputs that went on in this step, by the partitions that they read.
    fn moved_partitions(&self) -> BTreeMap<PartitionId, usize> {
        self.moved.iter().map(|number| (self.inputs[*number].id, *number)).collect()
    }
}

impl Shard {
    /// Puts what was made into the frame: records into partitions and entries, and what changed.
    /// False if there was nothing.
    ///
    /// All of it is in one frame, or the process ends: a part of it would be done twice after a
    /// crash.
    pub(super) fn put_away(
        &mut self,
        now: Now,
        wired: &mut Wired,
        queues: &mut [Queue],
        effects: &mut Vec<Effect>,
    ) -> bool {
        let inputs = wired.moved_partitions();
        if !mutation::is_on(Mutation::SplitStep) {
            self.keep_progress(wired, queues);
        }
        // While something is on its way others are told of time now and then only: each word costs them
        // a frame, and when all has arrived the confirmation makes this shard look again.
        let depth = self.outbox.depth();
        let is_due = now.monotonic_ms >= wired.told_ms + TELL_MS && depth < ON_THEIR_WAY_MAX;
        let is_told = self.options.shard_count > 1 && (depth == 0 || is_due);
        let marks = if is_told { wired.task.times_mut().to_tell() } else { Vec::new() };
        if !marks.is_empty() {
            wired.told_ms = now.monotonic_ms;
        }
        let made = wired.task.take_made();
        if mutation::is_on(Mutation::SplitStep) {
            self.keep_progress(wired, queues);
        }
        if made.is_empty() && marks.is_empty() {
            return false;
        }
        let Made { changed, emitted, sunk, rejected, called, .. } = made;
        let sizes = self.sizes();
        let keyless = wired.keyless;
        let mut sorted = Sorted::default();
        for record in emitted {
            self.sort(wired, &record, sizes, &mut sorted);
        }
        for rejected in rejected {
            self.sort(wired, &rejected.into_letter(), sizes, &mut sorted);
        }
        let built = sorted
            .own
            .into_iter()
            .flat_map(|(id, batches)| batches.build().into_iter().map(move |batch| (id, batch)));
        // A topic that is gone takes nothing.
        let is_there = |(id, _): &(PartitionId, RecordBatch)| self.partitions.contains_key(id);
        let batches: Vec<(PartitionId, RecordBatch)> =
            sunk.into_iter().chain(built).filter(is_there).collect();
        // The course comes first, and says how many others do.
        let key = course::course_key(wired.task.plan().id());
        let mut changes = vec![Change { key, value: None }];
        let sent = self.entries(wired, sorted.away, &marks, &mut changes);
        let step = stored_step(&wired.task).encode();
        let step_key = stored::step_key(wired.task.plan().id());
        changes.push(Change { key: step_key, value: Some(step) });
        let course = StoredCourse {
            seed: self.step_seed(),
            size_max: sizes.call as u64,
            keyless: if wired.keyless == keyless { 0 } else { keyless },
            batches: batches.len() as u64,
            changes: (changes.len() - 1 + changed.len() + 2 * called.len()) as u64,
            legs: stored_legs(wired.course.take(), &inputs),
        };
        changes[0].value = Some(course.encode());

        let value_size = |value: Option<&[u8]>| value.map_or(0, <[u8]>::len);
        let size = batches.iter().map(|(_, batch)| batch.bytes().len()).sum::<usize>()
            + changes
                .iter()
                .map(|it| it.key.len() + value_size(it.value.as_deref()))
                .sum::<usize>()
            + changed
                .iter()
                .map(|(key, value)| key.len() + value_size(value.as_deref()))
                .sum::<usize>();
        let count = batches.len() + changes.len() + changed.len();
        let called_size: usize = called.iter().map(StoredCall::size).sum();
        let added = size + count * ENTRY_OVERHEAD_MAX + called_size;
        assert!(
            self.deferred.is_empty()
                && self.wal.filling_size() + added <= self.wal.frame_size_max(),
            "a step made {added} bytes, more than its frame has room for"
        );
        for (id, batch) in batches {
            let filled = self.fill(now, id, &batch);
            assert!(filled.is_some(), "its partition is there");
        }
        let mut changes = changes.into_iter();
        changes.next().into_iter().for_each(|course| self.record(course));
        // The state needs no results that were taken: they are there for those who read the log.
        let called_key = stored::called_key(wired.task.plan().id());
        for called in called {
            self.wal.append_put(&called_key, &called.encode());
            self.wal.append_delete(&called_key);
        }
        changes.for_each(|change| self.record(change));
        for (key, value) in changed {
            match value.as_deref() {
                value if is_lost(&key, value) => {}
                Some(value) => self.wal.append_put(&key, value),
                None => self.wal.append_delete(&key),
            }
        }
        for (shard, sequence) in sent {
            self.hold(Outgoing::Entry(shard, sequence), effects);
        }
        true
    }

    /// How far inputs and entries of other shards were taken becomes part of what is made.
    fn keep_progress(&mut self, wired: &mut Wired, queues: &mut [Queue]) {
        let Wired { task, inputs, moved, news, .. } = wired;
        let topology = task.plan().id();
        for number in moved.drain(..) {
            let input = &mut inputs[number];
            input.is_moved = false;
            if mutation::is_on(Mutation::ForgetProgress) {
                continue;
            }
            let newest_ms = task.times().newest_ms(input.source, input.id.index);
            let value = stored::encode_progress(input.next_offset, newest_ms);
            task.keep(&mut self.state, stored::progress_key(topology, input.id), Some(value));
        }
        for (queue, sender) in queues.iter_mut().zip(0..) {
            if std::mem::take(&mut queue.is_moved) && !mutation::is_on(Mutation::ForgetPosition) {
                let value = queue.position().encode();
                task.keep(&mut self.state, stored::position_key(topology, sender), Some(value));
            }
        }
        for (key, value) in news.drain(..) {
            task.keep(&mut self.state, key, Some(value));
        }
    }

    /// Finds where a record goes.
    fn sort(&self, wired: &mut Wired, record: &Emitted, sizes: Sizes, sorted: &mut Sorted) {
        let route = match record.to {
            Destination::DeadLetter => wired.dead_letter.as_ref(),
            Destination::Sink(sink) => wired.sinks.get(sink),
            Destination::Stage { stage, partition } => {
                let shard = wired.task.shard_of(stage, partition);
                let place = Place::Stage(stage, partition);
                let places = sorted.away.entry(shard).or_default();
                return places.entry(place).or_default().push(record, sizes);
            }
        };
        let Some(route) = route else { return };
        let partition = match &record.key {
            Some(key) => key_partition(key, route.partition_count),
            None => {
                wired.keyless = wired.keyless.wrapping_add(1);
                wired.keyless % route.partition_count
            }
        };
        let id = route.partition(partition);
        let shard = route.shard_of(partition);
        if shard == self.options.id {
            sorted.own.entry(id).or_default().push(record, sizes);
        } else {
            let places = sorted.away.entry(shard).or_default();
            places.entry(Place::Sink(id)).or_default().push(record, sizes);
        }
    }

    /// Makes the entries for other shards: what to record, and which entries they are.
    fn entries(
        &mut self,
        wired: &Wired,
        mut away: BTreeMap<ShardId, BTreeMap<Place, Batches>>,
        marks: &[(usize, Mark)],
        changes: &mut Vec<Change>,
    ) -> Vec<(ShardId, u64)> {
        let plan = wired.task.plan();
        let (topology, version) = (plan.id(), self.catalog.routes().version);
        let ids = plan.stage_ids();
        let size_max = self.sizes().entry;
        let others: Vec<ShardId> = self.outbox.others().collect();
        let mut sent = Vec::new();
        for shard in others {
            let mut send = |parts: &mut Vec<Part>| {
                let entry = StageEntry { topology, version, parts: std::mem::take(parts) };
                sent.push((shard, self.outbox.push(shard, entry.encode(), changes)));
            };
            let marks = marks.iter();
            let marks = marks.map(|(stage, mark)| Part::Mark { stage: ids[*stage], mark: *mark });
            let mut parts = Vec::new();
            let mut size = 0;
            if mutation::is_on(Mutation::MarkBeforeRecords) && marks.len() > 0 {
                send(&mut marks.clone().collect());
            }
            for (place, batches) in away.remove(&shard).unwrap_or_default() {
                for batch in batches.build() {
                    let batch = batch.into_bytes();
                    if size + batch.len() > size_max && !parts.is_empty() {
                        send(&mut parts);
                        size = 0;
                    }
                    size += batch.len();
                    parts.push(match place {
                        Place::Sink(id) => Part::Sink { id, batch },
                        Place::Stage(stage, partition) => {
                            let (stage, place) = (ids[stage], wired.task.place(stage));
                            Part::Stage { stage, place, partition, batch }
                        }
                    });
                }
            }
            // Time goes on after the records that were made before it did.
            parts.extend(marks);
            if !parts.is_empty() {
                send(&mut parts);
            }
        }
        sent
    }
}
