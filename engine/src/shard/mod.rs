//! One shard: `step(now, input, &mut effects)`, and nothing else moves it.
//!
//! A step appends to the frame that is filling; [`Shard::flush`] submits that frame when none is in
//! flight. Whatever leaves the shard waits behind one barrier until the newest frame that it could
//! depend on is durable, whether or not its own command wrote anything. Only entries for other shards
//! leave with their frame: what those make of them waits for it (`early`).
//!
//! The parts (catalog, partitions, groups, outbox) never see each other; here their results are
//! passed between them. What is durable is either a batch or an entry of keyed state, so recovery
//! (`open`) knows nothing about the parts' rules.

mod catalog;
mod contents;
mod early;
mod open;
mod produce;
mod read;
mod room;
#[cfg(test)]
mod tests;
mod topology;
mod upkeep;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use tidemill_wal::commit::{FrameWrite, Log as Wal};
use tidemill_wal::format::{ENTRY_OVERHEAD_MAX, PartitionId, Sequence, ShardId};
use tidemill_wal::mutation::{self, Mutation};
use tidemill_wal::store::Store;

use crate::catalog::{Catalog, CatalogLimits, IdSource, TopicEvent};
use crate::command::{
    Command, GroupCommand, GroupReply, Refusal, Reply, Routes, Ticket, TopicConfig,
};
use crate::effect::{
    CallId, CallRequest, Change, Effect, Input, MeshMessage, Now, Outcome, ReadId,
};
use crate::group::{GroupLimits, Groups};
use crate::outbox::Outbox;
use crate::partition::fetch::Readers;
use crate::partition::log::{Log, TailBatch};
use crate::partition::producer::Producers;
use crate::state::State;
use crate::topology::Plan;

pub use contents::Contents;
pub use early::{LogEnd, agree_on_ends, check_ends, cut_ends};
pub use open::{OpenError, Opened, Recovered, partition_of};
pub use topology::{EdgeFacts, OperatorFacts, RECORDS_SIZE_MAX, StageFacts, TopologyFacts};

/// What a shard is told at its start.
#[derive(Debug, Clone)]
pub struct ShardOptions {
    /// Which shard of the node this is.
    pub id: ShardId,
    /// How many shards the node has.
    pub shard_count: u16,
    /// Identity of the node, drawn when the data directory was made.
    pub node: [u8; 16],
    /// Drawn anew at every start: ids and nonces come from it.
    pub seed: [u64; 2],
    /// Size of a WAL segment, in bytes.
    pub segment_size: u64,
    /// WAL segments at most.
    pub segment_count_max: usize,
    /// Topics.
    pub catalog: CatalogLimits,
    /// Groups.
    pub group: GroupLimits,
    /// A shard without work for this long writes a frame that carries its durable sequence.
    pub idle_frame_ms: u64,
    /// A producer silent for this long is forgotten.
    pub producer_expiry_ms: u64,
    /// How often retention is looked at.
    pub retention_check_ms: u64,
    /// A snapshot is due when the delta files hold this many bytes more than the state.
    pub delta_size_max: u64,
    /// Size of the file that keeps room for a manifest on a full disk, in bytes.
    pub disk_reserve_size: u64,
    /// How long to wait after a full disk before settling is tried again.
    pub disk_full_retry_ms: u64,
    /// Bytes a second that the scrub may read; 0: no scrub.
    pub scrub_rate: u64,
    /// A drain every so many bytes of a background write, so that the flush of a commit has no more to do.
    pub settle_sync_size: usize,
    /// Changed entries of state that are copied between two steps for a settle round.
    pub copied_at_once: usize,
    /// Fetches that may wait at once.
    pub readers_max: usize,
    /// Bytes of batches that may wait for room in the log.
    pub waiting_batches_size_max: usize,
    /// Topologies that run here.
    pub topologies: Vec<Arc<Plan>>,
    /// Bytes of memory that the shard's state may take before topologies rest.
    pub state_budget: u64,
}

/// Part of the WAL's capacity that only deletions, retention and settling may use, so that room
/// can be made when everything else is refused: one part in this many, and at most half a segment,
/// for no more than two are ready at a time.
const RESERVE_PART: u64 = 16;

/// One partition of this shard.
#[derive(Debug)]
struct Partition {
    log: Log,
    producers: Producers,
    config: TopicConfig,
    /// The frame with the newest change that is not an append: a moved start, a deletion.
    changed_in: Sequence,
}

/// A batch in the filling frame.
#[derive(Debug)]
struct Appending {
    partition: PartitionId,
    base_offset: u64,
    last_offset: u64,
    max_timestamp_ms: i64,
    range: Range<usize>,
}

/// What waits behind the barrier.
#[derive(Debug)]
enum Outgoing {
    Reply(Ticket, Reply),
    Mesh(ShardId, MeshMessage),
    /// An outbox entry. It leaves with its frame, and waits here only behind the answer to a hello.
    Entry(ShardId, u64),
    /// Older entries, which answer a hello.
    Resend(ShardId, MeshMessage),
    /// Entries of a shard that were taken: it is told, soon or at once.
    Confirmation {
        to: ShardId,
        through: u64,
        at_once: bool,
    },
    Routes(Arc<Routes>),
    /// A blocking call of a topology.
    Call(CallId, CallRequest),
    /// Stored records below an offset go: a manifest must not forget what a replay still shows.
    Drop(PartitionId, u64),
}

/// What did not fit the filling frame and goes into the next one.
#[derive(Debug)]
enum Deferred {
    Change(Change),
    /// It may depend on a change before it.
    Outgoing(Outgoing),
}

/// How long the filling frame waits for something else if all of it is what nobody waits for.
const UNHURRIED_MS: u64 = 10;

/// The filling frame holds nothing that anybody waits for, as long as it has this size.
#[derive(Debug, Clone, Copy)]
struct Unhurried {
    size: usize,
    /// It is written then all the same.
    until_ms: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Shard {
    options: ShardOptions,
    wal: Wal,
    store: Store,
    state: State,
    catalog: Catalog,
    partitions: HashMap<PartitionId, Partition>,
    groups: Groups,
    outbox: Outbox,
    ids: IdSource,
    readers: Readers,
    reads: HashMap<ReadId, read::Purpose>,
    queries: HashMap<Ticket, read::Queries>,
    next_read: u64,
    producer_ids: catalog::ProducerIds,
    changes_open: VecDeque<catalog::OpenChange>,
    appending: Vec<Appending>,
    /// Batches that wait for room in the log, in order.
    for_room: room::WaitingBatches,
    in_flight: Vec<PartitionId>,
    barrier: VecDeque<(Sequence, Outgoing)>,
    /// In order; while there is anything, the filling frame is full and no command comes in.
    deferred: VecDeque<Deferred>,
    dirty_partitions: BTreeSet<PartitionId>,
    dirty_producers: BTreeSet<(PartitionId, i64)>,
    upkeep: upkeep::Upkeep,
    topologies: topology::Topologies,
    unhurried: Option<Unhurried>,
    early: early::Early,
    last_activity_ms: u64,
    is_stopping: bool,
}

/// Figures for metrics; read by the runtime between steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Bytes of the filling frame.
    pub filling_size: u64,
    /// Bytes of the WAL in use.
    pub wal_used: u64,
    /// Bytes that the WAL may hold.
    pub wal_capacity: u64,
    /// Frames written but not settled.
    pub settle_lag_frames: u64,
    /// Replies and messages behind the barrier.
    pub barrier_depth: u64,
    /// Outbox entries that wait for one receiver, the most.
    pub outbox_depth: u64,
    /// Fetches that wait.
    pub readers: u64,
    /// Bytes of batches that wait for room in the log.
    pub waiting_batches_size: u64,
    /// Bytes of keyed state.
    pub state_size: u64,
    /// Entries of keyed state.
    pub state_count: u64,
    /// Changes of it that no settle round has taken yet: a key that went and came is several.
    pub changed_count: u64,
    /// The disk was full at the last try.
    pub is_disk_full: bool,
}

impl Shard {
    /// Which shard this is.
    pub fn id(&self) -> ShardId {
        self.options.id
    }

    /// Handles one input.
    pub fn step(&mut self, now: Now, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Command { ticket, command } => self.on_command(now, ticket, command, effects),
            Input::FetchNow(ticket) => self.fetch_now(ticket, effects),
            Input::Cancel(ticket) => self.on_cancel(now, ticket, effects),
            Input::Mesh { from, message } => self.on_mesh(now, from, message, effects),
            Input::Durable(sequence) => self.on_written(now, sequence, effects),
            Input::DiskDone { job, result } => self.on_disk_done(now, job, result, effects),
            Input::ReadDone { read, result } => self.on_read_done(now, read, result, effects),
            Input::Planned(planned) => self.on_planned(planned),
            Input::MergeRead(result) => self.on_merge_read(now, result, effects),
            Input::Called { call, result } => self.on_called(call, result),
            Input::Tick => self.on_tick(now, effects),
            Input::Stop => self.stop(effects),
        }
    }

    /// Submits the filling frame if none is in flight, and starts upkeep that is due. Called by
    /// the runtime after every batch of steps.
    pub fn flush(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.store_arrivals(effects);
        self.upkeep(now, effects);
        self.admit_batches(now, effects);
        if !self.wal.is_filling_empty() {
            self.last_activity_ms = now.monotonic_ms;
        }
        for (shard, message) in self.outbox.confirmations(now.monotonic_ms, self.is_stopping) {
            self.release(Outgoing::Mesh(shard, message), effects);
        }
        if self.may_frame_wait(now) {
            return;
        }
        let Some(write) = self.submit(now) else { return };
        for batch in self.appending.drain(..) {
            // A topic that was deleted in the same frame has no log any more.
            if let Some(partition) = self.partitions.get_mut(&batch.partition) {
                partition.log.push(TailBatch {
                    base_offset: batch.base_offset,
                    last_offset: batch.last_offset,
                    max_timestamp_ms: batch.max_timestamp_ms,
                    sequence: write.sequence,
                    bytes: write.bytes.slice(batch.range),
                });
                self.in_flight.push(batch.partition);
            }
        }
        let frame = write.sequence;
        effects.push(Effect::Write(write));
        self.send_early(frame, effects);
        self.record_deferred(effects);
    }

    /// When the log is full, a settle round that waits for the filling frame gets it written from
    /// the reserve, for nothing else makes room.
    fn submit(&mut self, now: Now) -> Option<FrameWrite> {
        self.unhurried = None;
        let write = self.wal.submit(now.wall_ms);
        match write {
            None if self.settle_waits_for(self.wal.filling()) => {
                self.wal.submit_from_reserve(now.wall_ms)
            }
            write => write,
        }
    }

    /// Whether commands may come in. False while a frame's worth waits for the disk; the runtime
    /// then leaves commands where they are, down to the sockets.
    pub fn accepts(&self) -> bool {
        self.deferred.is_empty()
            && self.wal.filling_size() < tidemill_wal::limits::FRAME_SIZE_TARGET
    }

    /// Whether everything begun is finished: nothing filling, in flight, or behind the barrier.
    pub fn is_quiet(&self) -> bool {
        self.wal.is_filling_empty()
            && self.wal.in_flight().is_none()
            && self.barrier.is_empty()
            && self.for_room.is_empty()
    }

    /// The frame that says this shard ended cleanly. Only when quiet.
    pub fn seal(&mut self, now: Now) -> Option<FrameWrite> {
        assert!(self.is_quiet(), "a seal is the last frame");
        if mutation::is_on(Mutation::SkipStopSeal) {
            return None;
        }
        self.wal.submit_seal(now.wall_ms)
    }

    /// When `Input::Tick` is due at the latest, on the monotonic clock.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        [
            self.readers.next_deadline_ms(),
            self.groups.next_deadline_ms(),
            self.upkeep.next_deadline_ms(self.options.scrub_rate),
            self.idle_deadline_ms(),
            self.room_deadline_ms(),
            self.topologies.due_ms(),
            self.outbox.confirm_at_ms(),
            self.unhurried.map(|unhurried| unhurried.until_ms),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// No more commands: whoever waits for records gets what there is.
    fn stop(&mut self, effects: &mut Vec<Effect>) {
        self.is_stopping = true;
        self.refuse_waiting_batches(effects);
        self.end_all_waits(effects);
    }

    fn idle_deadline_ms(&self) -> Option<u64> {
        let is_due = self.is_quiet() && self.wal.wants_idle();
        is_due.then(|| self.last_activity_ms + self.options.idle_frame_ms)
    }

    fn on_command(
        &mut self,
        now: Now,
        ticket: Ticket,
        command: Command,
        effects: &mut Vec<Effect>,
    ) {
        if self.is_stopping {
            return self.hold(Outgoing::Reply(ticket, Reply::Refused(Refusal::Stopping)), effects);
        }
        let reply = match command {
            Command::Produce(produce) => return self.on_produce(now, ticket, produce, effects),
            Command::Fetch(fetch) => return self.fetch(now, ticket, fetch, effects),
            Command::ListOffsets(queries) => {
                return self.list_offsets(ticket, queries, effects);
            }
            Command::DeleteRecords(partitions) => self.delete_records(partitions),
            Command::DescribePartitions(partitions) => self.describe_partitions(&partitions),
            Command::DescribeProducers(partitions) => self.describe_producers(&partitions),
            Command::DescribeStorage => self.describe_storage(),
            Command::ReadState(query) => Reply::ReadState(self.read_state(&query)),
            Command::InitProducerId => self.init_producer_id(),
            Command::Catalog(command) => {
                return self.change_catalog(ticket, &command, effects);
            }
            Command::Group(command) => return self.ask_groups(now, ticket, command, effects),
        };
        self.hold(Outgoing::Reply(ticket, reply), effects);
    }

    fn ask_groups(
        &mut self,
        now: Now,
        ticket: Ticket,
        command: GroupCommand,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(reply) = self.ask_topology(&command) {
            return self.hold(Outgoing::Reply(ticket, Reply::Group(reply)), effects);
        }
        if matches!(command, GroupCommand::OffsetCommit(_)) && !self.has_room(0) {
            let reply = Reply::Refused(self.refusal_of_room());
            return self.hold(Outgoing::Reply(ticket, reply), effects);
        }
        let (command, unknown) = self.without_unknown_topics(command);
        let mut outcome = Outcome::default();
        self.groups.handle(now, ticket, command, &mut outcome);
        for (_, reply) in &mut outcome.replies {
            match reply {
                Reply::Group(GroupReply::OffsetCommit(results)) => {
                    for index in &unknown {
                        results.insert(*index, Err(Refusal::UnknownPartition));
                    }
                }
                Reply::Group(GroupReply::List(groups)) => groups.extend(self.topology_listings()),
                _ => {}
            }
        }
        self.settle_outcome(outcome, effects);
    }

    /// Offsets of topics that this shard does not know (not yet, or not any more) are not stored:
    /// the next start would drop them. Returns where they were, in order.
    fn without_unknown_topics(&self, command: GroupCommand) -> (GroupCommand, Vec<usize>) {
        let GroupCommand::OffsetCommit(mut commit) = command else { return (command, Vec::new()) };
        let mut unknown = Vec::new();
        let mut index = 0;
        commit.offsets.retain(|(partition, _)| {
            let is_known = self.catalog.topic(partition.topic).is_some()
                || mutation::is_on(Mutation::TakeOffsetsOfUnknown);
            if !is_known {
                unknown.push(index);
            }
            index += 1;
            is_known
        });
        (GroupCommand::OffsetCommit(commit), unknown)
    }

    /// Records what a part changed and lets its answers wait for it.
    fn settle_outcome(&mut self, outcome: Outcome, effects: &mut Vec<Effect>) {
        for change in outcome.changes {
            self.record(change);
        }
        for (ticket, reply) in outcome.replies {
            self.hold(Outgoing::Reply(ticket, reply), effects);
        }
    }

    /// One entry of keyed state changes: in the frame, and in memory. One that a full frame has no
    /// room for waits for the next frame, and everything after it with it. So what a step changes
    /// may be in two frames when it is larger than one: each change stands for itself.
    fn record(&mut self, change: Change) {
        if self.deferred.is_empty() && self.fits_frame(&change) {
            self.record_now(change);
        } else {
            self.deferred.push_back(Deferred::Change(change));
        }
    }

    fn fits_frame(&self, change: &Change) -> bool {
        let value_size = change.value.as_ref().map_or(0, Vec::len);
        let size = ENTRY_OVERHEAD_MAX + change.key.len() + value_size;
        self.wal.is_filling_empty() || self.wal.filling_size() + size <= self.wal.frame_size_max()
    }

    /// A frame was submitted: what did not fit it goes into the next one.
    fn record_deferred(&mut self, effects: &mut Vec<Effect>) {
        while let Some(deferred) = self.deferred.pop_front() {
            match deferred {
                Deferred::Change(change) if self.fits_frame(&change) => self.record_now(change),
                Deferred::Change(change) => {
                    return self.deferred.push_front(Deferred::Change(change));
                }
                Deferred::Outgoing(outgoing) => self.hold_now(outgoing, effects),
            }
        }
    }

    /// The same for changes that nobody waits for, and nothing that leaves depends on: they go with
    /// others, and alone only after a while.
    fn record_unhurried(&mut self, now: Now, changes: Vec<Change>) {
        let until_ms = match self.unhurried {
            Some(unhurried) if self.is_unhurried() => unhurried.until_ms,
            _ if self.wal.is_filling_empty() => now.monotonic_ms + UNHURRIED_MS,
            _ => 0,
        };
        changes.into_iter().for_each(|change| self.record(change));
        let size = self.wal.filling_size();
        let is_alone = !self.wal.is_filling_empty() && self.deferred.is_empty();
        self.unhurried = (until_ms > 0 && is_alone).then_some(Unhurried { size, until_ms });
    }

    /// Whether the filling frame has such changes and nothing else.
    fn is_unhurried(&self) -> bool {
        let size = self.wal.filling_size();
        self.deferred.is_empty() && self.unhurried.is_some_and(|unhurried| unhurried.size == size)
    }

    /// Whether the filling frame can wait for more.
    fn may_frame_wait(&self, now: Now) -> bool {
        let is_early = self.unhurried.is_some_and(|it| now.monotonic_ms < it.until_ms);
        let is_waited_for = self.settle_waits_for(self.wal.filling());
        is_early && self.is_unhurried() && !is_waited_for && !self.is_stopping
    }

    fn record_now(&mut self, change: Change) {
        match &change.value {
            Some(value) => self.wal.append_put(&change.key, value),
            None => self.wal.append_delete(&change.key),
        }
        self.state.apply(change);
    }

    /// The one barrier: lets something leave when every frame it could depend on is durable.
    fn hold(&mut self, outgoing: Outgoing, effects: &mut Vec<Effect>) {
        if self.deferred.is_empty() {
            self.hold_now(outgoing, effects);
        } else {
            self.deferred.push_back(Deferred::Outgoing(outgoing));
        }
    }

    fn hold_now(&mut self, outgoing: Outgoing, effects: &mut Vec<Effect>) {
        if let Outgoing::Entry(to, sequence) = outgoing {
            return self.leave(to, sequence);
        }
        let newest = if self.is_unhurried() { self.wal.in_flight() } else { self.newest_frame() };
        match newest {
            Some(_) if mutation::is_on(Mutation::AnswerBeforeDurable) => {
                self.release(outgoing, effects);
            }
            Some(sequence) => self.barrier.push_back((sequence, outgoing)),
            None => self.release(outgoing, effects),
        }
    }

    /// The newest frame that is not durable.
    fn newest_frame(&self) -> Option<Sequence> {
        if self.wal.is_filling_empty() { self.wal.in_flight() } else { Some(self.wal.filling()) }
    }

    fn release(&mut self, outgoing: Outgoing, effects: &mut Vec<Effect>) {
        match outgoing {
            Outgoing::Reply(ticket, reply) => effects.push(Effect::Reply { ticket, reply }),
            Outgoing::Mesh(to, message) => effects.push(Effect::Mesh { to, message }),
            Outgoing::Entry(to, sequence) => {
                self.send_entry(to, sequence, Sequence(0), effects);
            }
            Outgoing::Resend(to, message) => {
                self.outbox.on_answered(to);
                effects.push(Effect::Mesh { to, message });
            }
            Outgoing::Confirmation { to, through, at_once } => {
                self.outbox.on_durable(to, through, at_once);
            }
            Outgoing::Routes(routes) => effects.push(Effect::Routes(routes)),
            // It is made after the next start.
            Outgoing::Call(..) if self.is_stopping => {}
            Outgoing::Call(call, request) => effects.push(Effect::Call { call, request }),
            Outgoing::Drop(partition, below) => self.store.drop_below(partition, below),
        }
    }

    fn on_durable(&mut self, now: Now, sequence: Sequence, effects: &mut Vec<Effect>) {
        self.wal.on_durable(sequence);
        self.last_activity_ms = now.monotonic_ms;
        let mut moved = Vec::new();
        for id in std::mem::take(&mut self.in_flight) {
            if let Some(partition) = self.partitions.get_mut(&id)
                && partition.log.on_durable(sequence)
            {
                moved.push(id);
            }
        }
        while let Some((_, outgoing)) =
            self.barrier.pop_front_if(|(waits_for, _)| *waits_for <= sequence)
        {
            self.release(outgoing, effects);
        }
        if mutation::is_on(Mutation::ForgetReader) {
            return;
        }
        for partition in moved {
            self.wake_readers(partition, effects);
        }
    }

    /// Whoever waited is answered nonetheless: the mesh counts the commands that are open.
    fn on_cancel(&mut self, now: Now, ticket: Ticket, effects: &mut Vec<Effect>) {
        let mut has_waited = self.readers.remove(ticket).is_some();
        has_waited |= self.queries.remove(&ticket).is_some();
        let mut outcome = Outcome::default();
        has_waited |= self.groups.cancel(now, ticket, &mut outcome);
        self.settle_outcome(outcome, effects);
        if has_waited {
            self.release(Outgoing::Reply(ticket, Reply::Refused(Refusal::Busy)), effects);
        }
    }

    fn on_tick(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.expire_readers(now, effects);
        let mut outcome = Outcome::default();
        self.groups.tick(now, &mut outcome);
        self.settle_outcome(outcome, effects);
        let is_idle = self.idle_deadline_ms().is_some_and(|due_ms| due_ms <= now.monotonic_ms);
        let is_idle = is_idle && !mutation::is_on(Mutation::SkipIdleFrame);
        if is_idle && let Some(write) = self.wal.submit_idle(now.wall_ms) {
            effects.push(Effect::Write(write));
        }
    }

    /// Whether `size` more bytes of ordinary work fit, leaving the reserve alone.
    fn has_room(&self, size: usize) -> bool {
        let size = size + self.topologies.arrived_size();
        let spends = mutation::is_on(Mutation::SpendReserve);
        let part = (self.wal.capacity() / RESERVE_PART).min(self.options.segment_size / 2);
        let reserve = if spends { 0 } else { part };
        self.wal.fits(size)
            && self.wal.room() >= reserve + self.wal.filling_size() as u64 + size as u64
    }

    fn refusal_of_room(&self) -> Refusal {
        if self.upkeep.is_disk_full() { Refusal::DiskFull } else { Refusal::Busy }
    }

    /// A topic came, changed or went: partitions follow.
    fn on_topic(&mut self, event: TopicEvent, effects: &mut Vec<Effect>) {
        self.topologies.on_topics_changed();
        match event {
            TopicEvent::Present(topic) => {
                for index in 0..topic.partition_count {
                    if topic.shard_of(index) != self.options.id {
                        continue;
                    }
                    let id = topic.partition(index);
                    let partition = self.partitions.entry(id).or_insert_with(|| Partition {
                        log: Log::default(),
                        producers: Producers::default(),
                        config: topic.config.clone(),
                        changed_in: Sequence(0),
                    });
                    if partition.config != topic.config {
                        partition.config = topic.config.clone();
                    }
                }
            }
            TopicEvent::Gone(topic) => self.forget_topic(topic, effects),
        }
    }

    /// Figures for metrics.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            filling_size: self.wal.filling_size() as u64,
            wal_used: self.wal.used(),
            wal_capacity: self.wal.capacity(),
            settle_lag_frames: self.settle_lag_frames(),
            barrier_depth: self.barrier.len() as u64,
            outbox_depth: self.outbox.depth() as u64,
            readers: self.readers.count() as u64,
            waiting_batches_size: self.for_room.size() as u64,
            state_size: self.state.size() as u64,
            state_count: self.state.count() as u64,
            changed_count: self.state.changed_count() as u64,
            is_disk_full: self.upkeep.is_disk_full(),
        }
    }

    /// How far groups are behind: group, partition, records between the committed offset and the
    /// end, for partitions of this shard.
    pub fn partition_ends(&self) -> impl Iterator<Item = (PartitionId, u64)> {
        self.partitions.iter().map(|(id, partition)| (*id, partition.log.durable_end()))
    }

    /// Committed offsets of this shard's groups.
    pub fn committed(&self) -> impl Iterator<Item = (&str, PartitionId, u64)> {
        self.groups.committed()
    }

    /// Bytes of batches that only memory and the WAL hold.
    pub fn tail_size(&self) -> u64 {
        self.partitions.values().map(|partition| partition.log.tail_size()).sum()
    }
}
