//! What a shard's thread does: it takes inputs, steps, and performs effects.

use std::collections::VecDeque;

use tidemill::effect::{Effect, Input, JobId, Notice};
use tidemill::outbox::ENTRIES_MAX;
use tidemill::runtime::inbox::next_input;
use tidemill_wal::disk::{DiskFault, Storage};
use tidemill_wal::format::ShardId;

use super::{Event, Job, World, reads};
use crate::sim::disk::{Sabotage, is_injected};
use crate::sim::model::Check;

/// How much longer everything takes on the slow shard.
const SLOWNESS: u64 = 10;

/// An operation that stalls takes up to so long, in microseconds.
const STALL_US_MAX: u64 = 2_000_000;

/// Fetches that may wait at once, see the plan; those that wait for an extent come on top.
const READERS_MAX: u64 = 100;

impl World {
    pub(super) fn give(&mut self, shard: u16, input: Input) {
        self.slots[usize::from(shard)].inbox.push_back(input);
        self.wake(shard, 1);
    }

    /// How much longer than elsewhere everything takes here.
    pub(super) fn slowness(&self, shard: u16) -> u64 {
        if self.plan.slow_shard == Some(shard) { SLOWNESS } else { 1 }
    }

    pub(super) fn wake(&mut self, shard: u16, delay_us: u64) {
        let at_us = self.clock.now_us + delay_us * self.slowness(shard);
        self.wake_at(shard, at_us);
    }

    fn wake_at(&mut self, shard: u16, at_us: u64) {
        let slot = &mut self.slots[usize::from(shard)];
        if slot.run_at_us.is_none_or(|due_us| due_us > at_us) {
            slot.run_at_us = Some(at_us);
            self.schedule_at(at_us, Event::Run(shard));
        }
    }

    /// How long an operation of a disk takes.
    fn disk_us(&mut self, shard: u16, low_us: u64, high_us: u64) -> u64 {
        let usual_us = self.random.skewed(low_us, high_us) * self.slowness(shard);
        let stall_one_in = self.plan.stall_one_in;
        if stall_one_in > 0 && !self.is_calm && self.random.one_in(stall_one_in) {
            self.counts.stalls += 1;
            return usual_us.max(self.random.between(STALL_US_MAX / 100, STALL_US_MAX));
        }
        usual_us
    }

    pub(super) fn run_shard(&mut self, index: u16) -> Check {
        let now = self.clock.now();
        let now_us = self.clock.now_us;
        if self.slots[usize::from(index)].run_at_us != Some(now_us) {
            return Ok(());
        }
        self.take_packets(index)?;
        let steps_max = self.random.skewed(1, 64);
        // The real limit is a sixteenth of a frame; here frames are small.
        let filling_max = self.plan.segment_size / 8;
        let slot = &mut self.slots[usize::from(index)];
        slot.run_at_us = None;
        let mut effects = Vec::new();
        let mut steps = 0;
        if slot.shard.next_deadline_ms().is_some_and(|due_ms| due_ms <= now.monotonic_ms) {
            slot.shard.step(now, Input::Tick, &mut effects);
            steps += 1;
        }
        let mut is_stuck = false;
        while steps < steps_max {
            let accepts = slot.shard.accepts() && slot.shard.gauges().filling_size < filling_max;
            let Some(input) = next_input(&mut slot.inbox, accepts) else {
                is_stuck = true;
                break;
            };
            self.trace.say(now_us, || format!("{index} <- {input:?}"));
            if let Input::Command { ticket, .. } = &input {
                // What a connection asks in order arrives in order: a producer's batches do.
                let before = slot.newest.insert(ticket.origin, ticket.id);
                if before.is_some_and(|before| before >= ticket.id) {
                    return Err(format!("shard {index} takes {ticket:?} after {before:?}"));
                }
            }
            slot.shard.step(now, input, &mut effects);
            steps += 1;
        }
        let (late_one_in, dice) = (self.plan.streams.late_one_in, &mut self.stream_dice);
        let mut goes_on = || late_one_in == 0 || !dice.one_in(late_one_in);
        let is_late = slot.shard.process(now, &mut goes_on, &mut effects);
        slot.shard.flush(now, &mut effects);
        self.counts.operators_late += u64::from(is_late);
        let is_busy = is_late || (!is_stuck && !slot.inbox.is_empty());
        let due_us = slot.shard.next_deadline_ms().map(|due_ms| due_ms * 1000);
        self.counts.steps += steps;
        if is_busy {
            self.wake(index, 1);
        } else if let Some(due_us) = due_us {
            self.wake_at(index, due_us.max(now_us + 1000));
        }
        self.note(&[u64::from(index), now_us, steps, effects.len() as u64]);
        self.check_budgets(index)?;
        self.perform(index, effects)?;
        self.check_told(index)?;
        if self.is_crashing { Ok(()) } else { self.flush_packets(index) }
    }

    /// Nothing holds more than it may.
    fn check_budgets(&self, index: u16) -> Check {
        let slot = &self.slots[usize::from(index)];
        let gauges = slot.shard.gauges();
        let tail_size = slot.shard.tail_size();
        let fetches = self.open.values().filter(|open| open.is_fetch).count() as u64;
        for (what, size, size_max) in [
            ("the log", gauges.wal_used, gauges.wal_capacity),
            ("the tail", tail_size, gauges.wal_capacity),
            ("the filling frame", gauges.filling_size, self.plan.segment_size),
            ("entries for another shard", gauges.outbox_depth, ENTRIES_MAX as u64),
            ("waiting fetches", gauges.readers, READERS_MAX.max(fetches)),
        ] {
            if size > size_max {
                return Err(format!("shard {index}: {what} hold {size}, allowed are {size_max}"));
            }
        }
        Ok(())
    }

    /// Performs effects in order, until the machine ends before one.
    fn perform(&mut self, index: u16, effects: Vec<Effect>) -> Check {
        for effect in effects {
            if self.ends_here() {
                return Ok(());
            }
            self.perform_one(index, effect)?;
        }
        Ok(())
    }

    /// Whether the machine ends before what would come next.
    fn ends_here(&mut self) -> bool {
        self.counts.effects += 1;
        match &mut self.effects_until_crash {
            Some(0) => self.is_crashing = true,
            Some(left) => *left -= 1,
            None => {}
        }
        self.is_crashing
    }

    /// The process ends with a reason, as the runtime ends it.
    pub(super) fn die(&mut self, index: u16, fault: &DiskFault) -> Check {
        if !is_injected(fault) {
            return Err(format!("shard {index}: {fault}"));
        }
        self.say(|| format!("{index} ends the node: {fault}"));
        self.counts.disk_failures += 1;
        self.is_crashing = true;
        Ok(())
    }

    pub(super) fn perform_one(&mut self, index: u16, effect: Effect) -> Check {
        let shard = usize::from(index);
        match effect {
            Effect::Write(write) => {
                self.note(&[1, write.sequence.0, write.offset, write.bytes.len() as u64]);
                self.say(|| {
                    let (segment, offset) = (write.segment.0, write.offset);
                    let (sequence, size) = (write.sequence, write.bytes.len());
                    format!("{index} frame {sequence} at {segment}:{offset}+{size}")
                });
                self.counts.frames += 1;
                if self.sabotage == Some(Sabotage::AcknowledgeAtSubmit) {
                    self.disks[shard].cache_frame(&write)?;
                    self.give(index, Input::Durable(write.sequence));
                } else {
                    self.disks[shard].begin_frame(write);
                    let delay_us = self.disk_us(index, 20, self.plan.frame_us_max);
                    self.schedule(delay_us, Event::Written(index));
                }
                Ok(())
            }
            Effect::Reply { ticket, reply } => self.answer(index, ticket, reply),
            Effect::Mesh { to, message } => {
                self.note(&[2, u64::from(to.0)]);
                self.send_message(index, to, message);
                Ok(())
            }
            Effect::Disk { job, ops } => {
                self.note(&[3, job.0, ops.len() as u64]);
                self.say(|| format!("{index} job {} of {} operations", job.0, ops.len()));
                let mut state = Job { ops: VecDeque::from(ops), is_reported: false };
                if self.sabotage == Some(Sabotage::ReportJobsEarly) {
                    state.is_reported = true;
                    self.give(index, Input::DiskDone { job, result: Ok(()) });
                }
                self.slots[shard].jobs.insert(job, state);
                self.schedule_op(index, job);
                Ok(())
            }
            Effect::Read { read, request } => {
                self.note(&[4, read.0]);
                let delay_us = self.disk_us(index, 5, 2000);
                self.schedule(delay_us, Event::Read(index, read, request));
                Ok(())
            }
            Effect::ReadMerge(plan) => {
                self.counts.merges += 1;
                let delay_us = self.disk_us(index, 5, 2000);
                self.schedule(delay_us, Event::ReadMerge(index, plan));
                Ok(())
            }
            Effect::Plan(files) => {
                let delay_us = self.random.skewed(5, 2000);
                self.schedule(delay_us, Event::Planned(index, files));
                Ok(())
            }
            Effect::Verify(piece) => self.verify(index, &piece),
            Effect::Call { call, request } => {
                self.note(&[6, call.wiring, call.number]);
                self.begin_call(index, call, request);
                Ok(())
            }
            Effect::Routes(routes) => {
                self.note(&[5, routes.version]);
                self.say(|| format!("{index} catalog {}", routes.version));
                self.slots[shard].routes = routes.clone();
                self.model.on_routes(ShardId(index), &routes, false)
            }
            Effect::Notice(notice) => {
                self.say(|| format!("{index} {notice:?}"));
                match notice {
                    Notice::Settled { .. } => self.counts.settles += 1,
                    Notice::Snapshot { .. } => self.counts.snapshots += 1,
                    Notice::DiskFull => self.counts.full_disks += 1,
                    Notice::DiskHasRoom => {}
                    Notice::Damaged(why) => return self.on_damage_told(index, &why),
                }
                Ok(())
            }
            Effect::Halt(why) => Err(format!("shard {index} halts: {why}")),
        }
    }

    pub(super) fn on_written(&mut self, index: u16) -> Check {
        if self.ends_here() {
            return Ok(());
        }
        match self.disks[usize::from(index)].finish_frame()? {
            Ok(write) => {
                let inbox = &mut self.slots[usize::from(index)].inbox;
                inbox.push_front(Input::Durable(write.sequence));
                self.wake(index, 1);
                Ok(())
            }
            Err(fault) => self.die(index, &fault),
        }
    }

    fn schedule_op(&mut self, index: u16, job: JobId) {
        let delay_us = self.disk_us(index, 2, self.plan.op_us_max);
        self.schedule(delay_us, Event::Job(index, job));
    }

    pub(super) fn run_job(&mut self, index: u16, job: JobId) -> Check {
        if self.ends_here() {
            return Ok(());
        }
        let now_us = self.clock.now_us;
        let slot = &mut self.slots[usize::from(index)];
        let state = slot.jobs.get_mut(&job).expect("a job has operations until it is done");
        let result = match state.ops.pop_front() {
            Some(op) => {
                self.trace.say(now_us, || format!("{index} job {} {}", job.0, reads::brief(&op)));
                self.disks[usize::from(index)].perform(&op)
            }
            None => Ok(()),
        };
        match result {
            Ok(()) if !state.ops.is_empty() => {
                self.schedule_op(index, job);
                return Ok(());
            }
            Err(fault @ DiskFault::Failed { .. }) => return self.die(index, &fault),
            Ok(()) | Err(DiskFault::Full { .. }) => {}
        }
        let is_reported = state.is_reported;
        slot.jobs.remove(&job);
        if !is_reported {
            self.give(index, Input::DiskDone { job, result });
        }
        Ok(())
    }
}
