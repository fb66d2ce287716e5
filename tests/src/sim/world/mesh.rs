//! How packets travel between shards: through the runtime's own ports, over small rings.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use tidemill::command::{Reply, Ticket};
use tidemill::effect::MeshMessage;
use tidemill::outbox::ENTRIES_MAX;
use tidemill::runtime::mesh::{Arrival, Packet, Port, connect};
use tidemill_wal::format::ShardId;

use super::World;
use crate::sim::model::Check;

/// How long a sleeping shard takes to wake up, in microseconds.
const WAKE_US_MAX: u64 = 500;

/// Doorbells that rang.
#[derive(Debug, Clone, Default)]
pub(super) struct Bells(Arc<Mutex<Vec<u16>>>);

impl Bells {
    fn take(&self) -> Vec<u16> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Wakes one shard.
struct Ringer {
    shard: u16,
    bells: Bells,
}

impl Wake for Ringer {
    fn wake(self: Arc<Self>) {
        self.bells.0.lock().unwrap_or_else(PoisonError::into_inner).push(self.shard);
    }
}

impl World {
    /// A new mesh, as at each start of the process.
    pub(super) fn connect(&self) -> Vec<Port> {
        let ports = connect(self.plan.shard_count, self.plan.ring_capacity);
        for port in &ports {
            let ringer = Ringer { shard: port.own().0, bells: self.bells.clone() };
            port.doorbell().install(Waker::from(Arc::new(ringer)));
        }
        ports
    }

    pub(super) fn send_message(&mut self, from: u16, to: ShardId, message: MeshMessage) {
        self.say(|| format!("{from} -> {} {message:?}", to.0));
        self.push(from, to, Packet::Message(message));
    }

    pub(super) fn send_reply(&mut self, from: u16, ticket: Ticket, reply: Reply) {
        self.push(from, ticket.origin, Packet::Reply { ticket, reply });
    }

    /// A connection of a shard says something to a shard, perhaps its own.
    pub(super) fn send_packet(&mut self, from: u16, to: u16, packet: Packet) {
        if from != to {
            self.push(from, ShardId(to), packet);
            self.wake(from, 1);
        } else if let Arrival::Input(input) = packet.arrive(ShardId(from)) {
            self.give(to, input);
        }
    }

    fn push(&mut self, from: u16, to: ShardId, packet: Packet) {
        let slot = &mut self.slots[usize::from(from)];
        slot.is_unflushed = true;
        slot.port.send(to, packet);
    }

    /// Moves what has arrived into the inbox, and replies to the connections that asked.
    pub(super) fn take_packets(&mut self, index: u16) -> Check {
        let slot = &mut self.slots[usize::from(index)];
        slot.port.doorbell().bell.get_up();
        let (inbox, packets) = (&mut slot.inbox, &mut self.counts.packets);
        let mut replies = Vec::new();
        slot.port.drain(&mut |from, packet| {
            *packets += 1;
            match packet.arrive(from) {
                Arrival::Input(input) => inbox.push_back(input),
                Arrival::Reply(ticket, reply) => replies.push((ticket, reply)),
            }
        });
        for (ticket, reply) in replies {
            self.on_reply(index, ticket, reply)?;
        }
        Ok(())
    }

    /// Packets leave, and the shard sleeps unless there is more to do.
    pub(super) fn flush_packets(&mut self, index: u16) -> Check {
        let slot = &mut self.slots[usize::from(index)];
        slot.is_unflushed = false;
        let port = &mut slot.port;
        port.flush();
        let backlog = port.backlog();
        port.doorbell().bell.lie_down();
        let is_awake = !port.is_empty() || port.has_backlog();
        if backlog > 0 {
            self.counts.full_rings += 1;
        }
        // Entries and what confirms them; commands, their ends and their answers.
        let waiting: usize = self.slots.iter().map(|slot| slot.tickets.count()).sum();
        let open = self.open.len() + waiting;
        let backlog_max = 2 * ENTRIES_MAX + 3 * open.max(self.plan.ring_capacity);
        if backlog > backlog_max {
            return Err(format!("shard {index} keeps {backlog} packets for another"));
        }
        for shard in self.bells.take() {
            let delay_us = self.random.skewed(1, WAKE_US_MAX);
            self.wake(shard, delay_us);
        }
        if is_awake {
            let delay_us = self.random.skewed(1, 20);
            self.wake(index, delay_us);
        }
        self.check_awake()
    }

    /// Nobody sleeps while something waits for him.
    fn check_awake(&mut self) -> Check {
        if self.slots.iter().any(|slot| slot.is_unflushed) {
            return Ok(()); // What is in a ring has not been rung for.
        }
        for index in 0..self.slots.len() {
            let by_us = self.clock.now_us + WAKE_US_MAX * self.slowness(index as u16);
            let slot = &mut self.slots[index];
            let is_woken = slot.run_at_us.is_some_and(|at_us| at_us <= by_us);
            if !is_woken && !slot.port.is_empty() {
                return Err(format!("shard {index} sleeps, and a packet waits for it"));
            }
        }
        Ok(())
    }
}
