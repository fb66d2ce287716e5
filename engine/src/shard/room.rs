//! Batches that wait for room in the log. Settling makes room within a second or two, and a client
//! that is refused may stay away for longer than that.
//!
//! They keep their order: a later batch of a producer must not pass an earlier one. What waits is
//! bounded in time, in bytes, and in commands of one origin, whose lane would be full of them; past
//! that it is refused at once. Nobody's leaving takes them out: they are on their way as if they
//! had been appended.

use std::collections::VecDeque;

use tidemill_wal::format::{ENTRY_OVERHEAD_MAX, ShardId};

use super::{Outgoing, Shard};
use crate::batch::RecordBatch;
use crate::command::{Produce, Refusal, Reply, Ticket};
use crate::effect::{Effect, Now};

/// Longest that batches wait before they are refused.
const WAIT_MS_MAX: u64 = 5_000;

/// Commands of one shard's connections that may wait: a quarter of what its lane holds, so that
/// other commands of these connections come through.
const COMMANDS_MAX: usize = 256;

/// A command with batches that wait.
#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    produce: Produce,
    size: usize,
    /// Then they are refused, on the monotonic clock.
    until_ms: u64,
}

/// Those that wait, in the order in which they came.
#[derive(Debug)]
pub(super) struct WaitingBatches {
    queue: VecDeque<Waiting>,
    /// Bytes of all batches in it.
    size: usize,
    size_max: usize,
    /// How many commands of each origin.
    counts: Vec<usize>,
}

impl WaitingBatches {
    pub(super) fn new(size_max: usize, shard_count: u16) -> Self {
        let counts = vec![0; shard_count.into()];
        Self { queue: VecDeque::new(), size: 0, size_max, counts }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes of the batches that wait.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    fn takes(&self, origin: ShardId, size: usize) -> bool {
        self.counts[usize::from(origin.0)] < COMMANDS_MAX && self.size + size <= self.size_max
    }

    fn push(&mut self, waiting: Waiting) {
        self.size += waiting.size;
        self.counts[usize::from(waiting.ticket.origin.0)] += 1;
        self.queue.push_back(waiting);
    }

    fn pop(&mut self) -> Option<Waiting> {
        let first = self.queue.pop_front()?;
        self.size -= first.size;
        self.counts[usize::from(first.ticket.origin.0)] -= 1;
        Some(first)
    }
}

impl Shard {
    /// Appends batches, or lets them wait until there is room.
    pub(super) fn on_produce(
        &mut self,
        now: Now,
        ticket: Ticket,
        produce: Produce,
        effects: &mut Vec<Effect>,
    ) {
        if self.for_room.is_empty() && !self.awaits_room_for(&produce) {
            return self.produce(now, ticket, produce, effects);
        }
        let size = produce.size();
        if !self.for_room.takes(ticket.origin, size) {
            let refusal = self.refusal_of_room();
            let results = produce.batches.iter().map(|_| Err(refusal)).collect();
            return self.hold(Outgoing::Reply(ticket, Reply::Produce(results)), effects);
        }
        // A copy, for a batch is a slice of its request, which may be far larger.
        let copy = |(partition, batch): &(_, RecordBatch)| (*partition, batch.copy());
        let produce = Produce { batches: produce.batches.iter().map(copy).collect() };
        let until_ms = now.monotonic_ms + WAIT_MS_MAX;
        self.for_room.push(Waiting { ticket, produce, size, until_ms });
    }

    /// Appends what waited for room, if there is some or if it waited long enough.
    pub(super) fn admit_batches(&mut self, now: Now, effects: &mut Vec<Effect>) {
        while self.accepts()
            && let Some(first) = self.for_room.queue.front()
        {
            if now.monotonic_ms < first.until_ms && self.awaits_room_for(&first.produce) {
                return;
            }
            if let Some(Waiting { ticket, produce, .. }) = self.for_room.pop() {
                self.produce(now, ticket, produce, effects);
            }
        }
    }

    /// Whether settling has to make room first. A full disk keeps it from doing so.
    fn awaits_room_for(&self, produce: &Produce) -> bool {
        let size = produce.size() + produce.batches.len() * ENTRY_OVERHEAD_MAX;
        !self.upkeep.is_disk_full() && !self.has_room(size)
    }

    /// When the first of those that wait has waited long enough. While a frame's worth waits for
    /// the disk, that has to come back first, and wakes the shard.
    pub(super) fn room_deadline_ms(&self) -> Option<u64> {
        self.for_room.queue.front().filter(|_| self.accepts()).map(|first| first.until_ms)
    }

    /// All that wait are refused: the shard stops.
    pub(super) fn refuse_waiting_batches(&mut self, effects: &mut Vec<Effect>) {
        while let Some(waiting) = self.for_room.pop() {
            let refused = Reply::Refused(Refusal::Stopping);
            self.hold(Outgoing::Reply(waiting.ticket, refused), effects);
        }
    }
}
