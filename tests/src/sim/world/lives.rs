//! How a life of the node ends, and how the next one begins.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tidemill::effect::{Effect, Input};
use tidemill::runtime::tickets::Tickets;
use tidemill::shard::{LogEnd, OpenError, Shard, agree_on_ends};
use tidemill_wal::disk::{DiskFault, Storage};
use tidemill_wal::format::ShardId;

use super::sessions::facts;
use super::{Event, FINISH_US_MAX, Slot, World};
use crate::sim::disk::{Crash, Opening};
use crate::sim::model::Check;

/// Starts in a row that may fail for one reason or another, before the faults stop.
const STARTS_MAX: u64 = 30;

/// What came of a start.
#[derive(Debug, PartialEq, Eq)]
enum Start {
    Ready,
    /// The machine ended meanwhile.
    Crashed,
    /// The node says why it does not start; what it says was dealt with, as far as it can be.
    Refused,
}

impl World {
    /// A clean stop: open commands are answered or cancelled, then every shard is sealed.
    pub(super) fn stop(&mut self) -> Check {
        self.say(|| "clean stop".to_owned());
        self.is_stopping = true;
        if !self.is_calm && self.random.one_in(4) {
            self.effects_until_crash = Some(self.random.below(60));
        }
        for shard in 0..self.plan.shard_count {
            self.give(shard, Input::Stop);
        }
        self.end_connections()?;
        let until_us = self.clock.now_us + FINISH_US_MAX;
        self.wait(&mut |world| {
            let is_quiet = |slot: &mut Slot| {
                slot.shard.is_quiet()
                    && slot.inbox.is_empty()
                    && slot.port.is_empty()
                    && !slot.port.has_backlog()
            };
            world.slots.iter_mut().all(is_quiet) || world.clock.now_us > until_us
        })?;
        if self.clock.now_us > until_us {
            return Err("a stop never ends".to_owned());
        }
        if self.is_crashing {
            self.crash();
            return Ok(());
        }
        for index in 0..self.plan.shard_count {
            self.seal(index)?;
            if self.is_crashing {
                self.crash();
                return Ok(());
            }
        }
        self.counts.stops += 1;
        let crash = self.random.choose(&[Crash::Kill, Crash::Power]);
        self.end(crash);
        Ok(())
    }

    /// One shard ends: its seal is written, and jobs under way are finished, though nobody hears.
    fn seal(&mut self, index: u16) -> Check {
        let shard = usize::from(index);
        let now = self.clock.now();
        if let Some(seal) = self.slots[shard].shard.seal(now) {
            self.disks[shard].begin_frame(seal);
            self.is_crashing |= !self.is_calm && self.random.one_in(16);
            if self.is_crashing {
                return Ok(());
            }
            if let Err(fault) = self.disks[shard].finish_frame()? {
                return self.die(index, &fault);
            }
        }
        let jobs = std::mem::take(&mut self.slots[shard].jobs);
        for job in jobs.into_values() {
            for op in job.ops {
                match self.disks[shard].perform(&op) {
                    Ok(()) => {}
                    Err(DiskFault::Full { .. }) => break,
                    Err(fault @ DiskFault::Failed { .. }) => return self.die(index, &fault),
                }
            }
        }
        Ok(())
    }

    pub(super) fn crash(&mut self) {
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
        self.connections.clear();
        self.events.clear();
        self.bodies.clear();
        self.effects_until_crash = None;
        self.is_crashing = false;
        self.is_stopping = false;
        self.is_still = false;
    }

    /// Opens every shard, through as many crashes as the dice want, and starts the clients.
    pub(super) fn recover(&mut self) -> Check {
        let was_calm = self.is_calm;
        let mut starts = 0;
        let mut crashes = 0;
        loop {
            self.clock.now_us += self.random.skewed(1, 1_000_000);
            self.model.on_clock(self.clock.now_us, self.clock.wall_ms());
            if self.plan.has_clock_jumps && self.random.one_in(4) {
                self.set_clock();
            }
            let is_cut = self.random.one_in(4);
            let mut ops_until_crash = is_cut.then(|| self.random.below(40));
            match self.open_all(&mut ops_until_crash)? {
                Start::Ready => break,
                Start::Crashed => {
                    crashes += 1;
                    self.counts.crashes_in_recovery += 1;
                    self.counts.crashes_in_second_recovery += u64::from(crashes == 2);
                    self.crash();
                }
                Start::Refused => self.end(Crash::Kill),
            }
            starts += 1;
            self.set_calm(was_calm || starts >= STARTS_MAX);
        }
        self.set_calm(was_calm);
        self.counts.recoveries += 1;
        self.model.on_restart();
        self.start_all()
    }

    fn start_all(&mut self) -> Check {
        let mut effects = Vec::new();
        for index in 0..self.plan.shard_count {
            self.slots[usize::from(index)].shard.start(&mut effects);
            for effect in std::mem::take(&mut effects) {
                match effect {
                    Effect::Routes(routes) => {
                        self.slots[usize::from(index)].routes = routes.clone();
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
            self.origins[client] = self.random.below(self.slots.len() as u64) as u16;
            self.current[client] = self.open_connection(client, None);
            self.with_client(client, |client, cx| client.on_restart(cx))?;
            let delay_us = self.random.below(1000);
            self.schedule(delay_us, Event::Act(client));
        }
        Ok(())
    }

    fn open_all(&mut self, ops_until_crash: &mut Option<u64>) -> Result<Start, String> {
        self.slots.clear();
        let mut recovered = Vec::new();
        for index in 0..self.plan.shard_count {
            let options = self.plan.options(index, &mut self.random);
            self.disks[usize::from(index)].prepare_open();
            let found = self.opening(index, ops_until_crash, |storage| {
                Shard::recover(storage, options, &mut |_| {})
            })?;
            match found {
                Ok(found) => recovered.push(found),
                Err(start) => return Ok(start),
            }
        }
        let ends: Vec<LogEnd> = recovered.iter().map(|found| found.log_end().clone()).collect();
        let cuts = agree_on_ends(&ends).map_err(|fault| fault.to_string())?;
        let ports = self.connect();
        for (((index, port), found), is_cut) in (0..).zip(ports).zip(recovered).zip(cuts) {
            let now = self.clock.now();
            let opened =
                self.opening(index, ops_until_crash, |storage| found.open(storage, is_cut, now))?;
            let opened = match opened {
                Ok(opened) => opened,
                Err(start) => return Ok(start),
            };
            self.say(|| {
                let (frames, torn) = (opened.frames, &opened.torn);
                format!("{index} opened: {frames} frames, torn {torn:?}, cut {is_cut}")
            });
            self.counts.cut_ends += u64::from(is_cut);
            self.note(&[7, opened.frames, opened.bytes, u64::from(opened.torn.is_some())]);
            self.counts.torn += u64::from(opened.torn.is_some());
            self.counts.replayed += opened.frames;
            self.slots.push(Slot {
                shard: opened.shard,
                inbox: VecDeque::new(),
                run_at_us: None,
                jobs: BTreeMap::new(),
                maps: BTreeMap::new(),
                port,
                newest: BTreeMap::new(),
                tickets: Tickets::new(ShardId(index)),
                facts: facts(index, self.plan.shard_count),
                routes: Arc::default(),
                is_unflushed: false,
                notices_due: 0,
                refusals_due: 0,
                is_repair_due: false,
            });
        }
        Ok(Start::Ready)
    }

    /// Part of the opening of a shard. `Err` in the result: why the node does not start.
    fn opening<T>(
        &mut self,
        index: u16,
        ops_until_crash: &mut Option<u64>,
        open: impl FnOnce(&mut Opening<'_>) -> Result<T, OpenError>,
    ) -> Result<Result<T, Start>, String> {
        let disk = &mut self.disks[usize::from(index)];
        let mut storage = Opening::new(disk, *ops_until_crash);
        let opened = open(&mut storage);
        let (is_crashed, has_failed) = (storage.is_crashed(), storage.has_failed());
        *ops_until_crash = storage.ops_until_crash();
        match opened {
            Ok(opened) => {
                storage.sync_read();
                Ok(Ok(opened))
            }
            Err(OpenError::Disk(DiskFault::Failed { .. })) if is_crashed => Ok(Err(Start::Crashed)),
            Err(error) => {
                self.say(|| format!("{index} does not start: {error}"));
                self.judge_refusal(index, &error, has_failed)?;
                Ok(Err(Start::Refused))
            }
        }
    }

    /// Somebody sets the wall clock.
    pub(super) fn set_clock(&mut self) {
        let by_ms = self.clock.jump(&mut self.random);
        self.counts.clock_jumps += 1;
        self.model.on_clock(self.clock.now_us, self.clock.wall_ms());
        self.say(|| format!("the wall clock jumps by {by_ms} ms"));
    }
}
