//! The world of one seed: a node of several shards, their disks, the mesh, clients and a clock,
//! moved by one queue of events.
//!
//! Shards run as the runtime runs them: inputs are taken while the shard accepts them, one flush
//! follows, its effects are performed in order. Everything that takes time takes a random time. The
//! machine may end before any effect and before any operation of a disk job or of recovery.

mod reads;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use tidemill::command::{Command, Reply, Ticket};
use tidemill::effect::{Effect, ExtentRead, Input, JobId, MeshMessage, Notice, Now, ReadId};
use tidemill::shard::{OpenError, Shard};
use tidemill_wal::disk::{DiskFault, DiskOp, Storage};
use tidemill_wal::extent::{ExtentSpec, plan_extent};
use tidemill_wal::format::{FileName, ShardId};
use tidemill_wal::store::MergePlan;

use super::clients::{Asked, Auditor, Client, Context};
use super::disk::{Crash, Disk, Opening, Sabotage};
use super::model::{Check, Model};
use super::plan::Plan;
use super::random::Random;
use super::{Counts, Failure};

/// When every run begins, in milliseconds since 1970.
const WALL_MS: i64 = 1_700_000_000_000;

/// Events in one wait: far more than any wait takes.
const EVENTS_MAX: u64 = 2_000_000;

/// How long the node may take to finish what it accepted, in microseconds.
const FINISH_US_MAX: u64 = 60_000_000;

#[derive(Debug)]
enum Event {
    /// The shard's loop runs.
    Run(u16),
    /// The frame in flight is durable.
    Written(u16),
    /// The next operation of a disk job.
    Job(u16, JobId),
    Read(u16, ReadId, ExtentRead),
    ReadMerge(u16, MergePlan),
    Planned(u16, Vec<ExtentSpec>, usize),
    Mesh {
        from: u16,
        to: u16,
        message: MeshMessage,
    },
    /// A client's time has come.
    Act(usize),
    /// A disk fills up, or gets room.
    Full(u16, bool),
}

#[derive(Debug)]
struct Job {
    ops: VecDeque<DiskOp>,
    is_reported: bool,
}

/// A running shard and what is on its way for it.
struct Slot {
    shard: Shard,
    inbox: VecDeque<Input>,
    run_at_us: Option<u64>,
    jobs: BTreeMap<JobId, Job>,
    maps: BTreeMap<FileName, Arc<Vec<u8>>>,
}

#[derive(Debug)]
struct Open {
    client: usize,
    asked: Asked,
    is_member: bool,
    is_fetch: bool,
    shard: u16,
}

/// Everything.
pub struct World {
    pub(super) plan: Plan,
    random: Random,
    sabotage: Option<Sabotage>,
    now_us: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    bodies: BTreeMap<u64, Event>,
    event_count: u64,
    disks: Vec<Disk>,
    slots: Vec<Slot>,
    mesh_until_us: Vec<u64>,
    clients: Vec<Client>,
    open: BTreeMap<u64, Open>,
    cancelled: BTreeMap<u64, ()>,
    next_ticket: u64,
    model: Model,
    /// Effects until the machine ends; never if `None`.
    effects_until_crash: Option<u64>,
    is_crashing: bool,
    is_stopping: bool,
    is_draining: bool,
    pub(super) counts: Counts,
    trace: u64,
    is_traced: bool,
}

impl World {
    /// A world before its first start.
    pub fn new(seed: u64, sabotage: Option<Sabotage>, is_traced: bool) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        if is_traced {
            println!("{plan:#?}");
        }
        let count = usize::from(plan.shard_count);
        let clients = Client::draw_all(&plan, &mut random);
        Self {
            disks: (0..count).map(|_| Disk::new(sabotage)).collect(),
            model: Model::new(plan.shard_count),
            mesh_until_us: vec![0; count * count],
            plan,
            random,
            sabotage,
            now_us: 1_000_000,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            event_count: 0,
            slots: Vec::new(),
            clients,
            open: BTreeMap::new(),
            cancelled: BTreeMap::new(),
            next_ticket: 0,
            effects_until_crash: None,
            is_crashing: false,
            is_stopping: false,
            is_draining: false,
            counts: Counts::default(),
            trace: 0xcbf2_9ce4_8422_2325,
            is_traced,
        }
    }

    /// What happened so far, as one number: the same seed gives the same one.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// Runs all lives and the checks between them.
    pub fn run(&mut self) -> Result<(), Failure> {
        self.run_lives().map_err(|why| Failure { step: self.counts.steps, why })
    }

    fn run_lives(&mut self) -> Check {
        self.recover()?;
        for life in 0..self.plan.lives {
            let effects = self.random.skewed(1, self.plan.effects.max(1)) * 2;
            let is_clean = self.random.one_in(5);
            self.set_disks_full(life);
            if !is_clean {
                self.effects_until_crash = Some(effects);
            }
            let end = self.counts.effects + effects;
            self.wait(&mut |world| world.counts.effects >= end)?;
            if self.is_crashing {
                self.crash();
            } else {
                self.stop()?;
            }
            self.recover()?;
            self.audit(life)?;
        }
        self.finish()
    }

    fn set_disks_full(&mut self, life: u64) {
        let count = self.plan.shard_count;
        if !self.plan.has_full_disks || life == 0 {
            return;
        }
        for shard in 0..count {
            let from_us = self.random.skewed(10, 30_000);
            let to_us = from_us + self.random.skewed(10, 60_000);
            self.schedule(from_us, Event::Full(shard, true));
            self.schedule(to_us, Event::Full(shard, false));
        }
    }

    /// All that was begun is finished, and then everything is there, even without power.
    fn finish(&mut self) -> Check {
        self.is_draining = true;
        for disk in &mut self.disks {
            disk.set_full(false);
        }
        let until_us = self.now_us + FINISH_US_MAX;
        self.wait(&mut |world| {
            let is_done = world.clients.iter().all(Client::is_done)
                && world.open.is_empty()
                && world.slots.iter().all(|slot| slot.shard.is_quiet());
            is_done || world.now_us > until_us
        })?;
        if self.now_us > until_us {
            let open: Vec<String> =
                self.open.values().map(|open| format!("{:?}", open.asked)).collect();
            let clients: Vec<String> = (self.clients.iter().filter(|client| !client.is_done()))
                .map(|client| format!("{client:?}"))
                .collect();
            return Err(format!("never finished: {open:?} {clients:?}"));
        }
        match self.random.one_in(2) {
            true => self.crash(),
            false => self.stop()?,
        }
        self.recover()?;
        self.audit(0)
    }

    /// Everything acknowledged is read, alone or beside new load.
    fn audit(&mut self, life: u64) -> Check {
        let was_draining = self.is_draining;
        self.is_draining |= !self.random.one_in(4) || life == 0;
        let (is_draining, mut auditor) = (self.is_draining, Auditor::default());
        let cx = Context {
            random: &mut self.random,
            model: &mut self.model,
            shard_count: self.plan.shard_count,
            now_us: self.now_us,
            wall_ms: WALL_MS + (self.now_us / 1000) as i64,
            is_draining,
            asked: Vec::new(),
        };
        auditor.begin(&cx);
        self.clients[0] = Client::Auditor(auditor);
        let until_us = self.now_us + FINISH_US_MAX;
        self.wait(&mut |world| world.clients[0].is_done() || world.now_us > until_us)?;
        if self.now_us > until_us {
            return Err(format!("the audit never ends: {:?}", self.clients[0]));
        }
        self.is_draining = was_draining;
        self.counts.audits += 1;
        Ok(())
    }

    /// Handles events until something is so, or the machine ends.
    fn wait(&mut self, is_over: &mut dyn FnMut(&Self) -> bool) -> Check {
        let last = self.counts.events + EVENTS_MAX;
        while !self.is_crashing && !is_over(self) {
            let Some(Reverse((at_us, number))) = self.events.pop() else {
                return Err("nothing will ever happen again".to_owned());
            };
            let event = self.bodies.remove(&number).expect("every event has a body");
            assert!(at_us >= self.now_us);
            self.now_us = at_us;
            self.counts.events += 1;
            if self.counts.events > last {
                let shards: Vec<String> = (self.slots.iter())
                    .map(|slot| {
                        let (inbox, jobs) = (slot.inbox.len(), slot.jobs.len());
                        let (due, gauges) = (slot.shard.next_deadline_ms(), slot.shard.gauges());
                        format!(
                            "runs {:?}, inbox {inbox}, jobs {jobs}, due {due:?}, {gauges:?}",
                            slot.run_at_us
                        )
                    })
                    .collect();
                return Err(format!("busy without end at {}: {shards:?}", self.now_us));
            }
            self.handle(event)?;
        }
        Ok(())
    }

    fn schedule(&mut self, delay_us: u64, event: Event) {
        self.schedule_at(self.now_us + delay_us, event);
    }

    fn schedule_at(&mut self, at_us: u64, event: Event) {
        self.event_count += 1;
        self.events.push(Reverse((at_us, self.event_count)));
        self.bodies.insert(self.event_count, event);
    }

    fn now(&self) -> Now {
        Now { monotonic_ms: self.now_us / 1000, wall_ms: WALL_MS + (self.now_us / 1000) as i64 }
    }

    fn note(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.trace = (self.trace ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
        }
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{:>10} {}", self.now_us, text());
        }
    }

    fn handle(&mut self, event: Event) -> Check {
        match event {
            Event::Run(shard) => self.run_shard(shard),
            Event::Written(shard) => self.on_written(shard),
            Event::Job(shard, job) => self.run_job(shard, job),
            Event::Read(shard, read, request) => self.on_read(shard, read, &request),
            Event::ReadMerge(shard, plan) => self.on_read_merge(shard, &plan),
            Event::Planned(shard, specs, sync_size) => {
                let plan = |spec| plan_extent(spec, sync_size);
                self.give(shard, Input::Planned(specs.into_iter().map(plan).collect()));
                Ok(())
            }
            Event::Mesh { from, to, message } => {
                self.say(|| format!("{from} -> {to} {message:?}"));
                self.give(to, Input::Mesh { from: ShardId(from), message });
                Ok(())
            }
            Event::Act(client) => {
                self.act(client);
                Ok(())
            }
            Event::Full(shard, is_full) => {
                self.say(|| format!("disk {shard} full: {is_full}"));
                let is_full = is_full && !self.is_draining;
                self.disks[usize::from(shard)].set_full(is_full);
                Ok(())
            }
        }
    }

    fn give(&mut self, shard: u16, input: Input) {
        self.slots[usize::from(shard)].inbox.push_back(input);
        self.wake(shard, 1);
    }

    fn wake(&mut self, shard: u16, delay_us: u64) {
        let at_us = self.now_us + delay_us;
        let slot = &mut self.slots[usize::from(shard)];
        if slot.run_at_us.is_none_or(|due_us| due_us > at_us) {
            slot.run_at_us = Some(at_us);
            self.schedule_at(at_us, Event::Run(shard));
        }
    }

    fn run_shard(&mut self, index: u16) -> Check {
        let now = self.now();
        let steps_max = self.random.skewed(1, 64);
        // The real limit is a sixteenth of a frame; here frames are small.
        let filling_max = self.plan.segment_size / 8;
        let slot = &mut self.slots[usize::from(index)];
        if slot.run_at_us != Some(self.now_us) {
            return Ok(());
        }
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
            let input = match accepts {
                true => slot.inbox.pop_front(),
                false => (slot.inbox.iter())
                    .position(|input| !matches!(input, Input::Command { .. }))
                    .and_then(|at| slot.inbox.remove(at)),
            };
            let Some(input) = input else {
                is_stuck = true;
                break;
            };
            if self.is_traced {
                println!("{:>10} {index} <- {input:?}", self.now_us);
            }
            slot.shard.step(now, input, &mut effects);
            steps += 1;
        }
        slot.shard.flush(now, &mut effects);
        self.counts.steps += steps;
        let due_ms = slot.shard.next_deadline_ms();
        let is_busy = !is_stuck && !slot.inbox.is_empty();
        if is_busy {
            self.wake(index, 1);
        } else if let Some(due_ms) = due_ms {
            let at_us = (due_ms * 1000).max(self.now_us + 1000);
            self.wake(index, at_us - self.now_us);
        }
        self.note(&[u64::from(index), self.now_us, steps, effects.len() as u64]);
        self.perform(index, effects)
    }

    /// Performs effects in order; false if the machine ended before one.
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

    fn perform_one(&mut self, index: u16, effect: Effect) -> Check {
        let shard = usize::from(index);
        match effect {
            Effect::Write(write) => {
                self.note(&[1, write.sequence.0, write.offset, write.bytes.len() as u64]);
                self.say(|| {
                    let (segment, offset) = (write.segment.0, write.offset);
                    format!(
                        "{index} frame {} at {segment}:{offset}+{}",
                        write.sequence,
                        write.bytes.len()
                    )
                });
                self.counts.frames += 1;
                if self.sabotage == Some(Sabotage::AcknowledgeAtSubmit) {
                    self.disks[shard].cache_frame(&write)?;
                    self.give(index, Input::Durable(write.sequence));
                } else {
                    self.disks[shard].begin_frame(write);
                    let delay_us = self.random.skewed(20, self.plan.frame_us_max);
                    self.schedule(delay_us, Event::Written(index));
                }
                Ok(())
            }
            Effect::Reply { ticket, reply } => self.on_reply(ticket, reply),
            Effect::Mesh { to, message } => {
                self.note(&[2, u64::from(to.0)]);
                let delay_us = self.random.skewed(1, 500);
                let lane = shard * self.slots.len() + usize::from(to.0);
                let at_us = (self.now_us + delay_us).max(self.mesh_until_us[lane]);
                self.mesh_until_us[lane] = at_us;
                self.schedule_at(at_us, Event::Mesh { from: index, to: to.0, message });
                Ok(())
            }
            Effect::Disk { job, ops } => {
                self.note(&[3, job.0, ops.len() as u64]);
                self.say(|| format!("{index} job {} of {} operations", job.0, ops.len()));
                let mut state = Job { ops: ops.into(), is_reported: false };
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
                let delay_us = self.random.skewed(5, 2000);
                self.schedule(delay_us, Event::Read(index, read, request));
                Ok(())
            }
            Effect::ReadMerge(plan) => {
                self.counts.merges += 1;
                let delay_us = self.random.skewed(5, 2000);
                self.schedule(delay_us, Event::ReadMerge(index, plan));
                Ok(())
            }
            Effect::Plan { specs, sync_size } => {
                let delay_us = self.random.skewed(5, 2000);
                self.schedule(delay_us, Event::Planned(index, specs, sync_size));
                Ok(())
            }
            Effect::Verify(piece) => self.verify(shard, &piece),
            Effect::Routes(routes) => {
                self.note(&[5, routes.version]);
                self.say(|| format!("{index} catalog {}", routes.version));
                self.model.on_routes(ShardId(index), &routes, false)
            }
            Effect::Notice(notice) => {
                self.say(|| format!("{index} {notice:?}"));
                match notice {
                    Notice::Settled { .. } => self.counts.settles += 1,
                    Notice::Snapshot { .. } => self.counts.snapshots += 1,
                    Notice::DiskFull => self.counts.full_disks += 1,
                    Notice::DiskHasRoom => {}
                    Notice::Damaged(why) => return Err(format!("shard {index}: {why}")),
                }
                Ok(())
            }
            Effect::Halt(why) => Err(format!("shard {index} halts: {why}")),
        }
    }

    fn on_written(&mut self, index: u16) -> Check {
        if self.ends_here() {
            return Ok(());
        }
        let write = self.disks[usize::from(index)].finish_frame()?;
        self.slots[usize::from(index)].inbox.push_front(Input::Durable(write.sequence));
        self.wake(index, 1);
        Ok(())
    }

    fn schedule_op(&mut self, index: u16, job: JobId) {
        let delay_us = self.random.skewed(2, self.plan.op_us_max);
        self.schedule(delay_us, Event::Job(index, job));
    }

    fn run_job(&mut self, index: u16, job: JobId) -> Check {
        if self.ends_here() {
            return Ok(());
        }
        let slot = &mut self.slots[usize::from(index)];
        let state = slot.jobs.get_mut(&job).expect("a job has operations until it is done");
        let result = match state.ops.pop_front() {
            Some(op) => {
                if self.is_traced {
                    println!("{:>10} {index} job {} {}", self.now_us, job.0, reads::brief(&op));
                }
                self.disks[usize::from(index)].perform(&op)
            }
            None => Ok(()),
        };
        match result {
            Ok(()) if !state.ops.is_empty() => {
                self.schedule_op(index, job);
                return Ok(());
            }
            Err(fault @ DiskFault::Failed { .. }) => {
                return Err(format!("shard {index}, job {}: {fault}", job.0));
            }
            Ok(()) | Err(DiskFault::Full { .. }) => {}
        }
        let is_reported = state.is_reported;
        slot.jobs.remove(&job);
        if !is_reported {
            self.give(index, Input::DiskDone { job, result });
        }
        Ok(())
    }

    fn act(&mut self, index: usize) {
        if self.is_stopping {
            return;
        }
        let pause_us = self.with_client(index, |client, cx| client.act(cx));
        self.schedule(pause_us, Event::Act(index));
    }

    /// Lets a client do something, and sends what it asks.
    fn with_client<R>(
        &mut self,
        index: usize,
        run: impl FnOnce(&mut Client, &mut Context<'_>) -> R,
    ) -> R {
        let mut cx = Context {
            random: &mut self.random,
            model: &mut self.model,
            shard_count: self.plan.shard_count,
            now_us: self.now_us,
            wall_ms: WALL_MS + (self.now_us / 1000) as i64,
            is_draining: self.is_draining,
            asked: Vec::new(),
        };
        let result = run(&mut self.clients[index], &mut cx);
        for (shard, command, asked) in cx.asked {
            self.send(index, shard, command, asked);
        }
        result
    }

    fn send(&mut self, client: usize, shard: ShardId, command: Command, asked: Asked) {
        self.next_ticket += 1;
        let origin = ShardId(self.random.below(self.slots.len() as u64) as u16);
        let ticket = Ticket { origin, id: self.next_ticket };
        let is_fetch = matches!(asked, Asked::Fetch(_));
        let is_member = matches!(asked, Asked::Member);
        let open = Open { client, asked, is_member, is_fetch, shard: shard.0 };
        self.open.insert(ticket.id, open);
        self.counts.commands += 1;
        self.give(shard.0, Input::Command { ticket, command });
        if is_fetch && self.random.one_in(40) {
            self.give(shard.0, Input::FetchNow(ticket));
        }
    }

    fn on_reply(&mut self, ticket: Ticket, reply: Reply) -> Check {
        self.note(&[6, ticket.id, self.now_us]);
        self.say(|| format!("reply {} {reply:?}", ticket.id));
        let Some(open) = self.open.remove(&ticket.id) else {
            let is_cancelled = self.cancelled.contains_key(&ticket.id);
            return match is_cancelled {
                true => Ok(()),
                false => Err(format!("a second reply to {ticket:?}: {reply:?}")),
            };
        };
        if self.is_stopping {
            // The connection ends, but what left the shard counts.
            let is_refused = matches!(reply, Reply::Refused(_));
            if is_refused {
                return Ok(());
            }
        }
        self.with_client(open.client, |client, cx| client.on_reply(cx, open.asked, reply))
    }

    /// A clean stop: open commands are answered or cancelled, then every shard is sealed.
    fn stop(&mut self) -> Check {
        self.say(|| "clean stop".to_owned());
        self.is_stopping = true;
        for shard in 0..self.plan.shard_count {
            self.give(shard, Input::Stop);
        }
        let cancelled: Vec<(u64, u16)> = (self.open.iter())
            .filter(|(_, open)| open.is_member || open.is_fetch)
            .map(|(id, open)| (*id, open.shard))
            .collect();
        for (id, shard) in cancelled {
            self.open.remove(&id);
            self.cancelled.insert(id, ());
            // The origin does not matter to a shard; the number names the command.
            let ticket = Ticket { origin: ShardId(0), id };
            self.give(shard, Input::Cancel(ticket));
        }
        let until_us = self.now_us + FINISH_US_MAX;
        self.wait(&mut |world| {
            let is_quiet =
                world.slots.iter().all(|slot| slot.shard.is_quiet() && slot.inbox.is_empty())
                    && !world.bodies.values().any(|event| matches!(event, Event::Mesh { .. }));
            is_quiet || world.now_us > until_us
        })?;
        if self.now_us > until_us {
            return Err("a stop never ends".to_owned());
        }
        if self.is_crashing {
            self.crash();
            return Ok(());
        }
        let now = self.now();
        for index in 0..self.slots.len() {
            if let Some(seal) = self.slots[index].shard.seal(now) {
                self.disks[index].begin_frame(seal);
                self.disks[index].finish_frame()?;
            }
            // Jobs under way are finished, but nobody hears of it.
            let jobs = std::mem::take(&mut self.slots[index].jobs);
            for job in jobs.into_values() {
                for op in job.ops {
                    match self.disks[index].perform(&op) {
                        Ok(()) => {}
                        Err(DiskFault::Full { .. }) => break,
                        Err(fault @ DiskFault::Failed { .. }) => {
                            return Err(format!("while stopping: {fault}"));
                        }
                    }
                }
            }
        }
        self.counts.stops += 1;
        let crash = self.random.choose(&[Crash::Kill, Crash::Power]);
        self.end(crash);
        Ok(())
    }

    fn crash(&mut self) {
        let crash = self.random.choose(&[Crash::Power, Crash::Power, Crash::Kill]);
        self.counts.crashes += 1;
        self.end(crash);
    }

    fn end(&mut self, crash: Crash) {
        self.say(|| format!("the end: {crash:?}"));
        for disk in &mut self.disks {
            disk.crash(crash, &mut self.random);
        }
        self.slots.clear();
        self.open.clear();
        self.cancelled.clear();
        self.events.clear();
        self.bodies.clear();
        self.mesh_until_us.fill(0);
        self.effects_until_crash = None;
        self.is_crashing = false;
        self.is_stopping = false;
    }

    /// Opens every shard, through as many crashes as the dice want, and starts the clients.
    fn recover(&mut self) -> Check {
        loop {
            self.now_us += self.random.skewed(1, 1_000_000);
            let is_cut = self.random.one_in(4);
            let mut ops_until_crash = is_cut.then(|| self.random.below(40));
            match self.open_all(&mut ops_until_crash)? {
                true => break,
                false => self.crash(),
            }
        }
        self.counts.recoveries += 1;
        let mut effects = Vec::new();
        for index in 0..self.plan.shard_count {
            self.slots[usize::from(index)].shard.start(&mut effects);
            for effect in std::mem::take(&mut effects) {
                match effect {
                    Effect::Routes(routes) => {
                        self.model.on_routes(ShardId(index), &routes, true)?;
                    }
                    effect => self.perform_one(index, effect)?,
                }
            }
            self.wake(index, 1);
        }
        for shard in 0..self.plan.shard_count {
            if self.disks[usize::from(shard)].is_full() {
                let delay_us = self.random.skewed(10, 60_000);
                self.schedule(delay_us, Event::Full(shard, false));
            }
        }
        for client in 0..self.clients.len() {
            self.with_client(client, |client, cx| client.on_restart(cx));
            let delay_us = self.random.below(1000);
            self.schedule(delay_us, Event::Act(client));
        }
        Ok(())
    }

    fn open_all(&mut self, ops_until_crash: &mut Option<u64>) -> Result<bool, String> {
        self.slots.clear();
        for index in 0..self.plan.shard_count {
            let options = self.plan.options(index, &mut self.random);
            let now = self.now();
            let disk = &mut self.disks[usize::from(index)];
            disk.prepare_open();
            let mut storage =
                Opening { disk, ops_until_crash: *ops_until_crash, read: Default::default() };
            let opened = Shard::open(&mut storage, options, now, &mut |_| {});
            let is_crashed = storage.is_crashed();
            *ops_until_crash = storage.ops_until_crash;
            let opened = match opened {
                Ok(opened) => opened,
                Err(OpenError::Disk(DiskFault::Failed { .. })) if is_crashed => return Ok(false),
                Err(OpenError::Disk(DiskFault::Full { .. }))
                    if self.disks[usize::from(index)].is_full() =>
                {
                    // The operator makes room.
                    self.disks[usize::from(index)].set_full(false);
                    return Ok(false);
                }
                Err(error) => return Err(format!("shard {index} does not start: {error}")),
            };
            self.say(|| {
                let (frames, torn) = (opened.frames, &opened.torn);
                format!("{index} opened: {frames} frames, torn {torn:?}")
            });
            self.note(&[7, opened.frames, opened.bytes, u64::from(opened.torn.is_some())]);
            self.counts.torn += u64::from(opened.torn.is_some());
            self.counts.replayed += opened.frames;
            self.slots.push(Slot {
                shard: opened.shard,
                inbox: VecDeque::new(),
                run_at_us: None,
                jobs: BTreeMap::new(),
                maps: BTreeMap::new(),
            });
        }
        Ok(true)
    }

    /// Figures of the run so far.
    pub fn counts(&self) -> Counts {
        Counts {
            records: self.model.records_acknowledged,
            bytes_compared: self.model.bytes_compared,
            ..self.counts
        }
    }
}
