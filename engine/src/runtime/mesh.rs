//! The mesh: one ring for each ordered pair of shards, one doorbell for each shard.
//!
//! Taking packets out never waits for an outgoing ring. What does not fit a ring waits in its
//! lane's backlog, which is bounded because a shard has a limited number of commands open at each
//! other shard (a quarter of a ring) and every other packet answers or confirms something: the ring
//! has a slot for the reply of each command that may be open.
//!
//! Nothing here waits or knows the time, so the simulator connects its shards with the same ports,
//! over rings of a few slots.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use tidemill_wal::format::ShardId;
use tidemill_wal::mutation::{self, Mutation};

use super::ring::{Bell, Consumer, Producer, ring};
use crate::command::{Command, Reply, Ticket};
use crate::effect::{Input, MeshMessage};

/// Slots of one ring of a node.
pub const RING_CAPACITY: usize = 4096;

/// The part of a ring's slots that may be commands. The rest is for replies in the other
/// direction's sense, cancellations and confirmations.
const COMMANDS_PART: usize = 4;

/// What travels between shards.
#[derive(Debug)]
pub enum Packet {
    /// A connection of the sender asks.
    Command {
        /// Names it.
        ticket: Ticket,
        /// What.
        command: Command,
    },
    /// The asker of a fetch wants what there is.
    FetchNow(Ticket),
    /// The asker is gone.
    Cancel(Ticket),
    /// The answer to a command of the receiver.
    Reply {
        /// The command.
        ticket: Ticket,
        /// The answer.
        reply: Reply,
    },
    /// The shards themselves talk.
    Message(MeshMessage),
}

impl Packet {
    /// What it is for whom, on the shard that takes it.
    pub fn arrive(self, from: ShardId) -> Arrival {
        match self {
            Self::Command { ticket, command } => Arrival::Input(Input::Command { ticket, command }),
            Self::FetchNow(ticket) => Arrival::Input(Input::FetchNow(ticket)),
            Self::Cancel(ticket) => Arrival::Input(Input::Cancel(ticket)),
            Self::Message(message) => Arrival::Input(Input::Mesh { from, message }),
            Self::Reply { ticket, reply } => Arrival::Reply(ticket, reply),
        }
    }
}

/// A packet where it was sent to.
#[derive(Debug)]
pub enum Arrival {
    /// For the shard.
    Input(Input),
    /// For the connection that asked.
    Reply(Ticket, Reply),
}

/// Wakes one shard's thread from any thread: a bell, and the waker of what the thread sleeps at.
#[derive(Debug, Default)]
pub struct Doorbell {
    /// Whether the shard sleeps.
    pub bell: Bell,
    waker: OnceLock<Waker>,
}

impl Doorbell {
    /// The shard's loop says how it is woken; once, before anyone rings.
    pub fn install(&self, waker: Waker) {
        let _ = self.waker.set(waker);
    }

    /// Wakes the shard if it sleeps. After pushing a batch.
    pub fn ring(&self) {
        if self.bell.must_wake()
            && let Some(waker) = self.waker.get()
        {
            waker.wake_by_ref();
        }
    }
}

#[derive(Debug)]
struct Lane {
    producer: Producer<Packet>,
    backlog: VecDeque<Packet>,
    commands_open: usize,
    /// Something was pushed since the last ring of the doorbell.
    is_dirty: bool,
}

/// One shard's end of the mesh.
#[derive(Debug)]
pub struct Port {
    own: ShardId,
    lanes: Vec<Option<Lane>>,
    incoming: Vec<Option<Consumer<Packet>>>,
    doorbells: Arc<[Doorbell]>,
    ring_capacity: usize,
}

/// Builds the mesh: a port for each shard. Rings have so many slots, a power of two.
pub fn connect(shard_count: u16, ring_capacity: usize) -> Vec<Port> {
    let count = usize::from(shard_count);
    let doorbells: Arc<[Doorbell]> = (0..count).map(|_| Doorbell::default()).collect();
    let mut ports: Vec<Port> = (0..shard_count)
        .map(|own| Port {
            own: ShardId(own),
            lanes: (0..count).map(|_| None).collect(),
            incoming: (0..count).map(|_| None).collect(),
            doorbells: doorbells.clone(),
            ring_capacity,
        })
        .collect();
    for from in 0..count {
        for to in (0..count).filter(|to| *to != from) {
            let (producer, consumer) = ring(ring_capacity);
            let backlog = VecDeque::new();
            ports[from].lanes[to] =
                Some(Lane { producer, backlog, commands_open: 0, is_dirty: false });
            ports[to].incoming[from] = Some(consumer);
        }
    }
    ports
}

impl Port {
    /// Whose port this is.
    pub fn own(&self) -> ShardId {
        self.own
    }

    /// How other threads wake this shard.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbells[usize::from(self.own.0)]
    }

    /// All doorbells, for threads that are not shards.
    pub fn doorbells(&self) -> Arc<[Doorbell]> {
        self.doorbells.clone()
    }

    /// Sends a packet; it leaves with the next [`Self::flush`].
    pub fn send(&mut self, to: ShardId, packet: Packet) {
        let lane = self.lanes[usize::from(to.0)].as_mut().expect("a shard has no lane to itself");
        if matches!(packet, Packet::Command { .. }) {
            lane.commands_open += 1;
        }
        lane.is_dirty = true;
        if lane.backlog.is_empty() {
            if let Err(packet) = lane.producer.push(packet) {
                lane.backlog.push_back(packet);
            }
        } else {
            lane.backlog.push_back(packet);
        }
    }

    /// Pushes what waited for room, and rings the doorbells of all that got something.
    pub fn flush(&mut self) {
        for (to, lane) in self.lanes.iter_mut().enumerate() {
            let Some(lane) = lane else { continue };
            while let Some(packet) = lane.backlog.pop_front() {
                if let Err(packet) = lane.producer.push(packet) {
                    lane.backlog.push_front(packet);
                    break;
                }
                lane.is_dirty = true;
            }
            if std::mem::take(&mut lane.is_dirty) {
                self.doorbells[to].ring();
            }
        }
    }

    /// Takes everything that has arrived, in order for each sender.
    pub fn drain(&mut self, take: &mut dyn FnMut(ShardId, Packet)) {
        if mutation::is_on(Mutation::DrainOnlyWithRoom) && self.has_backlog() {
            return;
        }
        for from in 0..self.incoming.len() {
            let Some(consumer) = &mut self.incoming[from] else { continue };
            // At most a ring's worth, so that one busy sender does not hold up the others.
            for _ in 0..self.ring_capacity {
                let Some(packet) = consumer.pop() else { break };
                if matches!(packet, Packet::Reply { .. })
                    && let Some(lane) = &mut self.lanes[from]
                {
                    lane.commands_open = lane.commands_open.saturating_sub(1);
                }
                take(ShardId(from as u16), packet);
            }
        }
    }

    /// Whether nothing has arrived.
    pub fn is_empty(&mut self) -> bool {
        self.incoming.iter_mut().flatten().all(Consumer::is_empty)
    }

    /// Whether new commands must wait: too many are open at some shard, or a ring is full.
    pub fn is_congested(&self) -> bool {
        let open_max = (self.ring_capacity / COMMANDS_PART).max(1);
        self.lanes
            .iter()
            .flatten()
            .any(|lane| lane.commands_open >= open_max || !lane.backlog.is_empty())
    }

    /// Whether a packet could not be pushed yet.
    pub fn has_backlog(&self) -> bool {
        self.lanes.iter().flatten().any(|lane| !lane.backlog.is_empty())
    }

    /// The longest queue of packets that could not be pushed yet.
    pub fn backlog(&self) -> usize {
        self.lanes.iter().flatten().map(|lane| lane.backlog.len()).max().unwrap_or(0)
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    fn packet(id: u64) -> Packet {
        Packet::Cancel(Ticket { origin: ShardId(0), id })
    }

    fn drained(port: &mut Port) -> Vec<u64> {
        let mut ids = Vec::new();
        port.drain(&mut |_, packet| {
            if let Packet::Cancel(ticket) = packet {
                ids.push(ticket.id);
            }
        });
        ids
    }

    #[test]
    fn packets_arrive_in_order_even_through_a_full_ring() {
        let mut ports = connect(2, RING_CAPACITY);
        let (mut receiver, mut sender) = (ports.remove(1), ports.remove(0));
        let count = RING_CAPACITY as u64 + 10;
        for id in 0..count {
            sender.send(ShardId(1), packet(id));
        }
        sender.flush();
        assert!(sender.is_congested());
        let mut seen = drained(&mut receiver);
        sender.flush();
        seen.extend(drained(&mut receiver));
        assert_eq!(seen, (0..count).collect::<Vec<u64>>());
        assert!(!sender.is_congested() && receiver.is_empty());
    }

    #[test]
    fn what_waited_for_room_wakes_its_receiver_too() {
        let mut ports = connect(2, RING_CAPACITY);
        let (mut receiver, mut sender) = (ports.remove(1), ports.remove(0));
        for id in 0..=RING_CAPACITY as u64 {
            sender.send(ShardId(1), packet(id));
        }
        sender.flush();
        drained(&mut receiver);
        receiver.doorbell().bell.lie_down();
        sender.flush();
        assert!(!receiver.is_empty());
        assert!(!receiver.doorbell().bell.must_wake(), "the sender has rung already");
    }

    #[test]
    fn open_commands_are_bounded_until_their_replies_come() {
        let mut ports = connect(2, RING_CAPACITY);
        let (mut other, mut own) = (ports.remove(1), ports.remove(0));
        for id in 0..(RING_CAPACITY / COMMANDS_PART) as u64 {
            assert!(!own.is_congested());
            let ticket = Ticket { origin: ShardId(0), id };
            own.send(ShardId(1), Packet::Command { ticket, command: Command::DescribeStorage });
        }
        assert!(own.is_congested());
        let ticket = Ticket { origin: ShardId(0), id: 0 };
        other.send(ShardId(0), Packet::Reply { ticket, reply: Reply::Fetch(Vec::new()) });
        other.flush();
        own.drain(&mut |_, _| {});
        assert!(!own.is_congested());
    }
}
