//! The world of one seed: a node of several shards, their disks, the mesh, clients and a clock,
//! moved by one queue of events.
//!
//! Shards run as the runtime runs them: inputs are taken while the shard accepts them, one flush
//! follows, its effects are performed in order, packets leave. Everything that takes time takes a
//! random time. The machine may end before any effect and before any operation of a disk job or of
//! recovery, and any operation of a disk may fail.

mod connections;
mod damage;
mod lives;
mod mesh;
mod reads;
mod sessions;
mod shards;
mod streams;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use tidemill::command::{Routes, Ticket};
use tidemill::effect::{CallId, CallRequest, ExtentRead, Input, JobId, ReadId};
use tidemill::kafka::session::NodeFacts;
use tidemill::runtime::mesh::Port;
use tidemill::runtime::tickets::Tickets;
use tidemill::shard::Shard;
use tidemill_wal::disk::DiskOp;
use tidemill_wal::format::{FileName, ShardId};
use tidemill_wal::store::{MergePlan, SettleFiles};

use self::mesh::Bells;
use self::sessions::Open;
use super::clients::{Asked, Client};
use super::clock::Clock;
use super::disk::{Disk, Rot, Sabotage};
use super::model::{Check, Model};
use super::plan::Plan;
use super::random::Random;
use super::trace::{Sink, Trace};
use super::wire::{Connection, Habits, Way};
use super::{Counts, Failure};

/// Events in one wait: far more than any wait takes.
const EVENTS_MAX: u64 = 20_000_000;

/// How long everything is read beside new load, in microseconds; then the load ends.
const LOADED_AUDIT_US_MAX: u64 = 2_000_000;

/// How long the node may take to finish what it accepted, in microseconds.
const FINISH_US_MAX: u64 = 60_000_000;

/// How long records take to be older than any limit that topics get, in microseconds.
const RETENTION_US: u64 = 600_000;

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
    Planned(u16, SettleFiles),
    /// A blocking call of a topology ends.
    Call(u16, CallId, CallRequest),
    /// A client's time has come.
    Act(usize),
    /// A piece of what a connection carries arrives.
    Wire(u64, Way),
    /// The node looks at a connection that it did not read.
    Look(u64),
    /// A disk fills up, or gets room.
    Full(u16, bool),
    /// A disk rots.
    Rot(u16, Rot),
    /// The operator restores what a disk has lost.
    Repair(u16),
    /// Somebody sets the wall clock.
    SetClock,
    /// Somebody looks at what there is.
    Nothing,
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
    port: Port,
    /// The newest command of each shard's connections that it took.
    newest: BTreeMap<ShardId, u64>,
    /// What its connections wait for.
    tickets: Tickets,
    facts: NodeFacts,
    routes: Arc<Routes>,
    /// Something was sent since packets left last.
    is_unflushed: bool,
    /// Reads that failed and that the shard has to tell of.
    notices_due: u64,
    /// Reads that failed for a fetch or a query, whose asker may be told.
    refusals_due: u64,
    is_repair_due: bool,
}

/// Everything.
pub struct World {
    pub(super) plan: Plan,
    random: Random,
    sabotage: Option<Sabotage>,
    clock: Clock,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    bodies: BTreeMap<u64, Event>,
    event_count: u64,
    disks: Vec<Disk>,
    slots: Vec<Slot>,
    bells: Bells,
    clients: Vec<Client>,
    /// The shard that each client is connected to.
    origins: Vec<u16>,
    connections: BTreeMap<u64, Connection>,
    connection_count: u64,
    /// The connection that each client uses.
    current: Vec<u64>,
    /// What the wire makes of it; dice of its own, so that a plan stays what it was.
    dice: Random,
    habits: Habits,
    /// How long operators have; dice of its own as well.
    stream_dice: Random,
    open: BTreeMap<Ticket, Open>,
    model: Model,
    /// Effects until the machine ends; never if `None`.
    effects_until_crash: Option<u64>,
    is_crashing: bool,
    is_stopping: bool,
    is_draining: bool,
    /// Everybody is done, and event time is to come to its end.
    is_closing: bool,
    /// The clients have nothing more to do in this life.
    is_still: bool,
    /// No new faults.
    is_calm: bool,
    pub(super) counts: Counts,
    trace: Trace,
}

impl World {
    /// A world before its first start.
    pub fn new(seed: u64, sabotage: Option<Sabotage>, sink: Option<Sink>) -> Self {
        let (plan, mut random, stream_dice) = Plan::of_seed(seed);
        let mut trace = Trace::new(sink);
        trace.say(0, || format!("{plan:#?}"));
        let clients = Client::draw_all(&plan, &mut random);
        // A sabotage has to be found without the help of a fault.
        let faults = if sabotage.is_none() { plan.faults } else { Default::default() };
        let dice = |shard| Random::new(seed ^ (u64::from(shard) + 1) << 48);
        let mut wire_dice = Random::new(seed ^ 0xff << 48);
        let habits = Habits::draw(&mut wire_dice);
        trace.say(0, || format!("{habits:#?}"));
        Self {
            disks: (0..plan.shard_count)
                .map(|shard| Disk::new(sabotage, faults, dice(shard)))
                .collect(),
            model: Model::new(&plan),
            clock: Clock::new(plan.clock_drift_ppm),
            bells: Bells::default(),
            plan,
            random,
            sabotage,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            event_count: 0,
            slots: Vec::new(),
            origins: vec![0; clients.len()],
            current: vec![0; clients.len()],
            clients,
            connections: BTreeMap::new(),
            connection_count: 0,
            dice: wire_dice,
            habits,
            stream_dice,
            open: BTreeMap::new(),
            effects_until_crash: None,
            is_crashing: false,
            is_stopping: false,
            is_draining: false,
            is_closing: false,
            is_still: false,
            is_calm: true,
            counts: Counts::default(),
            trace,
        }
    }

    /// What happened so far, as one number: the same seed gives the same one.
    pub fn trace(&self) -> u64 {
        self.trace.number()
    }

    /// Runs all lives and the checks between them.
    pub fn run(&mut self) -> Result<(), Failure> {
        self.run_lives().map_err(|why| Failure { step: self.counts.steps, why })
    }

    fn run_lives(&mut self) -> Check {
        self.set_calm(false);
        self.recover()?;
        for life in 0..self.plan.lives {
            let effects = self.random.skewed(1, self.plan.effects.max(1)) * 2;
            let is_clean = self.random.one_in(5);
            self.draw_bad_luck(life);
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
            self.set_calm(true);
            self.audit(life)?;
            self.set_calm(false);
        }
        self.finish()
    }

    fn set_calm(&mut self, is_calm: bool) {
        self.is_calm = is_calm;
        for disk in &mut self.disks {
            disk.set_calm(is_calm);
        }
    }

    /// What happens to this life beside its end.
    fn draw_bad_luck(&mut self, life: u64) {
        for shard in 0..self.plan.shard_count {
            if self.plan.has_full_disks && life > 0 {
                let from_us = self.random.skewed(10, 30_000);
                let to_us = from_us + self.random.skewed(10, 60_000);
                self.schedule(from_us, Event::Full(shard, true));
                self.schedule(to_us, Event::Full(shard, false));
            }
            if self.plan.has_rot && self.random.one_in(2) {
                let delay_us = self.random.skewed(100, 200_000);
                let rot = self.random.choose(&[Rot::Flip, Rot::Flip, Rot::Unreadable]);
                self.schedule(delay_us, Event::Rot(shard, rot));
            }
        }
        if self.plan.has_clock_jumps {
            for _ in 0..self.random.between(1, 3) {
                let delay_us = self.random.skewed(100, 100_000);
                self.schedule(delay_us, Event::SetClock);
            }
        }
    }

    /// All that was begun is finished, and then everything is there, even without power.
    fn finish(&mut self) -> Check {
        self.is_draining = true;
        self.set_calm(true);
        for disk in &mut self.disks {
            disk.set_full(false);
        }
        let until_us = self.clock.now_us + FINISH_US_MAX;
        self.wait(&mut |world| {
            let is_done = world.clients.iter().all(Client::is_done)
                && world.open.is_empty()
                && world.are_connections_quiet()
                && world.slots.iter().all(|slot| slot.shard.is_quiet());
            is_done || world.clock.now_us > until_us
        })?;
        if self.clock.now_us > until_us {
            return Err(format!("never finished: {}", self.unfinished()));
        }
        self.finish_streams()?;
        self.wait_for_retention()?;
        let had_its_time = !self.is_crashing;
        match self.random.one_in(2) {
            true => self.crash(),
            false => self.stop()?,
        }
        self.recover()?;
        let is_all_there = self.finish_streams()?;
        self.audit(0)?;
        if is_all_there {
            self.model.check_streams()?;
            self.verify_replay()?;
        }
        if had_its_time { self.model.check_retention_is_done() } else { Ok(()) }
    }

    /// What waits for something.
    fn unfinished(&self) -> String {
        let open: Vec<&Asked> = self.open.values().map(|open| &open.asked).collect();
        let clients: Vec<&Client> =
            self.clients.iter().filter(|client| !client.is_done()).collect();
        let waiting: Vec<(&u64, &Connection)> =
            self.connections.iter().filter(|(_, connection)| !connection.is_quiet()).collect();
        format!("open {open:?}, clients {clients:?}, connections {waiting:?}")
    }

    /// Records grow old, and what their topics' limits say is done.
    fn wait_for_retention(&mut self) -> Check {
        if !self.plan.has_retention {
            return Ok(());
        }
        self.is_still = true;
        self.model.on_load_ended();
        let due_us = self.clock.now_us + RETENTION_US;
        self.wait(&mut |world| world.clock.now_us > due_us)?;
        self.model.on_retention_due(self.clock.wall_ms());
        let until_us = self.clock.now_us + FINISH_US_MAX;
        self.wait(&mut |world| {
            let is_quiet = world.slots.iter().all(|slot| slot.shard.is_quiet());
            (is_quiet && world.clock.now_us > due_us + RETENTION_US)
                || world.clock.now_us > until_us
        })?;
        if self.clock.now_us > until_us {
            return Err("retention never ends".to_owned());
        }
        Ok(())
    }

    /// Everything acknowledged is read, alone or beside new load.
    fn audit(&mut self, life: u64) -> Check {
        let was_draining = self.is_draining;
        self.is_draining |= self.random.one_in(3) || life == 0;
        let is_alone = self.is_draining;
        self.begin_audit();
        // Beside more load than a slow shard can take it would wait for ever.
        let load_until_us = self.clock.now_us + LOADED_AUDIT_US_MAX;
        self.wait(&mut |world| world.clients[0].is_done() || world.clock.now_us > load_until_us)?;
        self.is_draining |= !self.clients[0].is_done();
        let until_us = self.clock.now_us + FINISH_US_MAX;
        self.wait(&mut |world| world.clients[0].is_done() || world.clock.now_us > until_us)?;
        if self.clock.now_us > until_us {
            return Err(format!("the audit never ends: {:?}", self.clients[0]));
        }
        self.is_draining = was_draining;
        self.counts.audits += 1;
        // Beside load, answers tell of what came after the audit's end.
        if self.is_crashing || !is_alone { Ok(()) } else { self.model.check_producers() }
    }

    /// Handles events until something is so, or the machine ends.
    fn wait(&mut self, is_over: &mut dyn FnMut(&mut Self) -> bool) -> Check {
        let last = self.counts.events + EVENTS_MAX;
        while !self.is_crashing && !is_over(self) {
            let Some(Reverse((at_us, number))) = self.events.pop() else {
                return Err("nothing will ever happen again".to_owned());
            };
            let event = self.bodies.remove(&number).expect("every event has a body");
            assert!(at_us >= self.clock.now_us);
            self.clock.now_us = at_us;
            self.model.on_clock(at_us, self.clock.wall_ms());
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
                let now_us = self.clock.now_us;
                let unfinished = self.unfinished();
                return Err(format!("busy without end at {now_us}: {unfinished}; {shards:?}"));
            }
            self.handle(event)?;
        }
        Ok(())
    }

    fn schedule(&mut self, delay_us: u64, event: Event) {
        self.schedule_at(self.clock.now_us + delay_us, event);
    }

    fn schedule_at(&mut self, at_us: u64, event: Event) {
        self.event_count += 1;
        self.events.push(Reverse((at_us, self.event_count)));
        self.bodies.insert(self.event_count, event);
    }

    fn note(&mut self, numbers: &[u64]) {
        self.trace.note(numbers);
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        self.trace.say(self.clock.now_us, text);
    }

    fn handle(&mut self, event: Event) -> Check {
        match event {
            Event::Run(shard) => self.run_shard(shard),
            Event::Written(shard) => self.on_written(shard),
            Event::Job(shard, job) => self.run_job(shard, job),
            Event::Read(shard, read, request) => self.on_read(shard, read, &request),
            Event::ReadMerge(shard, plan) => self.on_read_merge(shard, &plan),
            Event::Planned(shard, files) => {
                self.give(shard, Input::Planned(files.plan()));
                Ok(())
            }
            Event::Call(shard, call, request) => {
                self.end_call(shard, call, &request);
                Ok(())
            }
            Event::Act(client) => self.act(client),
            Event::Wire(connection, way) => self.on_wire(connection, way),
            Event::Look(connection) => self.look_again(connection),
            Event::Full(shard, is_full) => {
                self.say(|| format!("disk {shard} full: {is_full}"));
                let is_full = is_full && !self.is_draining;
                self.disks[usize::from(shard)].set_full(is_full);
                Ok(())
            }
            Event::Rot(shard, rot) => {
                let place = self.disks[usize::from(shard)].rot(rot);
                self.say(|| format!("{shard} rots: {rot:?} {place:?}"));
                Ok(())
            }
            Event::Repair(shard) => {
                self.repair(shard);
                Ok(())
            }
            Event::SetClock => {
                self.set_clock();
                Ok(())
            }
            Event::Nothing => Ok(()),
        }
    }

    /// Figures of the run so far.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { simulated_us: self.clock.now_us, ..self.counts };
        counts += self.model.counts;
        for disk in &self.disks {
            counts += disk.counts();
        }
        counts
    }
}
