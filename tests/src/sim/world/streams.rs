//! When topologies have come to rest: everything is read and processed, and nothing waits for a time.

use std::collections::BTreeMap;

use tidemill::effect::{CallId, CallRequest, Input};
use tidemill::replay;
use tidemill_wal::disk::Storage;
use tidemill_wal::format::PartitionId;

use super::{Event, FINISH_US_MAX, World};
use crate::sim::clients::Client;
use crate::sim::model::Check;
use crate::sim::streams::TIMER_MS_MAX;

/// How long topologies have to be at rest, in microseconds: timers by the clock are due by then, and
/// partitions have fallen silent.
const REST_US: u64 = 3 * TIMER_MS_MAX as u64 * 1000;

/// Starts of the node until nothing keeps topologies from their records any more.
const STARTS_MAX: u64 = 30;

/// The longest that a blocking call takes, in microseconds.
const CALL_US_MAX: u64 = 5000;

/// How often it is looked at whether topologies are at rest, in microseconds.
const LOOK_US: u64 = 2000;

/// Why a topology stands that a start helps: what it reads was damaged, and is restored.
const UNREADABLE: &str = "records of ";

impl World {
    /// A blocking call takes any time, so calls end in any order; one that has not ended when the node
    /// does is made again.
    pub(super) fn begin_call(&mut self, shard: u16, call: CallId, request: CallRequest) {
        let delay_us = self.stream_dice.skewed(1, CALL_US_MAX);
        self.schedule(delay_us, Event::Call(shard, call, request));
    }

    pub(super) fn end_call(&mut self, shard: u16, call: CallId, request: &CallRequest) {
        self.counts.calls += 1;
        let result = self.plan.topologies[call.topology].make_call(request);
        self.say(|| format!("{shard} {call:?} ends"));
        self.give(shard, Input::Called { call, result });
    }

    /// Everybody is done, event time comes to its end, and topologies come to rest; a crash between
    /// is one more start. False if there are none.
    pub(super) fn finish_streams(&mut self) -> Result<bool, String> {
        if self.plan.streams.flows.is_empty() {
            return Ok(false);
        }
        for _ in 0..STARTS_MAX {
            if !self.is_crashing && self.come_to_rest()? {
                return Ok(true);
            }
            match self.is_crashing {
                true => self.crash(),
                false => self.stop()?,
            }
            self.recover()?;
        }
        Err(format!("topologies never come to rest: {}", self.stream_facts()))
    }

    /// False if the machine ended, or records could not be read.
    fn come_to_rest(&mut self) -> Result<bool, String> {
        self.wait_until("the clients are never done", |world| {
            world.clients.iter().all(Client::is_done) && world.are_connections_quiet()
        })?;
        self.is_closing = true;
        self.wait_until("event time never ends", |world| {
            world.clients.iter().all(|client| client.is_done() && client.is_closed())
                && world.are_connections_quiet()
        })?;
        if self.is_crashing {
            return Ok(false);
        }
        if self.plan.has_clock_jumps {
            // A timer may wait for what the clock showed before it was set back.
            self.clock.set_forward(self.model.wall_ms_max() + 1000);
            self.model.on_clock(self.clock.now_us, self.clock.wall_ms());
            for shard in 0..self.plan.shard_count {
                self.wake(shard, 1);
            }
        }
        let until_us = self.clock.now_us + FINISH_US_MAX;
        let mut rested_us = 0;
        let mut is_unreadable = false;
        while rested_us < REST_US && !is_unreadable && !self.is_crashing {
            let from_us = self.clock.now_us;
            self.wait_until("topologies never come to rest", |world| {
                is_unreadable = world.stands_unreadable();
                is_unreadable || world.are_streams_at_rest()
            })?;
            if self.clock.now_us > until_us {
                return Err(format!("topologies never stay at rest: {}", self.stream_facts()));
            }
            if self.clock.now_us > from_us {
                rested_us = 0;
            }
            let look_us = self.clock.now_us + LOOK_US;
            self.schedule(LOOK_US, Event::Nothing);
            self.wait(&mut |world| world.clock.now_us >= look_us)?;
            rested_us += LOOK_US;
        }
        if is_unreadable {
            // The operator hears of it, and restores it.
            let repaired_us = self.clock.now_us + LOOK_US;
            self.schedule(LOOK_US, Event::Nothing);
            self.wait(&mut |world| world.clock.now_us >= repaired_us)?;
        } else if !self.is_crashing {
            self.check_pauses()?;
            self.check_arrivals()?;
        }
        Ok(!is_unreadable && !self.is_crashing)
    }

    fn wait_until(&mut self, why: &str, mut is_so: impl FnMut(&mut Self) -> bool) -> Check {
        let until_us = self.clock.now_us + FINISH_US_MAX;
        self.wait(&mut |world| is_so(world) || world.clock.now_us > until_us)?;
        if !self.is_crashing && self.clock.now_us > until_us {
            let (facts, unfinished) = (self.stream_facts(), self.unfinished());
            return Err(format!("{why}: {facts}; {unfinished}"));
        }
        Ok(())
    }

    fn are_streams_at_rest(&mut self) -> bool {
        let mut ends: BTreeMap<PartitionId, u64> = BTreeMap::new();
        for slot in &mut self.slots {
            let is_quiet = slot.shard.is_quiet()
                && slot.inbox.is_empty()
                && slot.port.is_empty()
                && !slot.port.has_backlog()
                && slot.shard.gauges().outbox_depth == 0
                && slot.shard.topologies().all(|it| it.waiting == 0 && it.calls_waiting == 0);
            if !is_quiet {
                return false;
            }
            ends.extend(slot.shard.partition_ends());
        }
        let mut progress = self.slots.iter().flat_map(|slot| slot.shard.topology_progress());
        progress.all(|(_, partition, next)| ends.get(&partition) == Some(&next))
    }

    /// Whether a topology stands because its records could not be read.
    fn stands_unreadable(&self) -> bool {
        let mut paused = self.slots.iter().flat_map(|slot| slot.shard.paused_topologies());
        paused.any(|(_, why)| why.starts_with(UNREADABLE))
    }

    /// At rest no topology stands that has all its topics, and each reads all of its source.
    fn check_pauses(&self) -> Check {
        for slot in &self.slots {
            let mut paused = slot.shard.paused_topologies();
            if let Some((name, why)) = paused.find(|(name, _)| self.model.has_topics(name)) {
                return Err(format!("topology {name} stands on {:?}: {why}", slot.shard.id()));
            }
        }
        for flow in &self.plan.streams.flows {
            if !self.model.has_topics(flow.name()) {
                continue;
            }
            for (partition, shard) in self.model.source_partitions(*flow) {
                let mut progress = self.slots[usize::from(shard.0)].shard.topology_progress();
                if !progress.any(|(name, id, _)| name == flow.name() && id == partition) {
                    return Err(format!("nobody reads {partition:?} of {flow:?} on {shard:?}"));
                }
            }
        }
        Ok(())
    }

    /// At rest nothing is stored that came from another shard: all of it was taken.
    fn check_arrivals(&self) -> Check {
        for slot in &self.slots {
            let count = slot.shard.stored_arrivals();
            if count > 0 {
                let shard = slot.shard.id();
                return Err(format!("{count} entries that were taken stay stored on {shard:?}"));
            }
        }
        Ok(())
    }

    /// What the disks hold of topologies comes out the same when it is run once more.
    pub(super) fn verify_replay(&mut self) -> Check {
        let disks: Vec<&dyn Storage> = self.disks.iter().map(|disk| disk as &dyn Storage).collect();
        match replay::verify(&disks, &self.plan.topologies) {
            Ok(report) if report.differing > 0 => Err(format!("run once more: {report}")),
            Ok(report) => {
                self.counts.steps_again += report.steps;
                Ok(())
            }
            // What a start says to damage is judged elsewhere.
            Err(_) => Ok(()),
        }
    }

    /// How topologies are, for people.
    fn stream_facts(&self) -> String {
        let of_slot = |slot: &super::Slot| {
            let topologies: Vec<String> =
                slot.shard.topologies().map(|it| format!("{it:?}")).collect();
            let mut ends: Vec<(PartitionId, u64)> = slot.shard.partition_ends().collect();
            ends.sort_unstable();
            let progress: Vec<_> = slot.shard.topology_progress().collect();
            let (due, gauges) = (slot.shard.next_deadline_ms(), slot.shard.gauges());
            format!("{topologies:?}, progress {progress:?}, ends {ends:?}, due {due:?}, {gauges:?}")
        };
        self.slots.iter().map(of_slot).collect::<Vec<_>>().join("\n")
    }
}
