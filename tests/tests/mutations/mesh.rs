//! Two shards whose rings to each other are full.

use tidemill::command::Ticket;
use tidemill::runtime::mesh::{Packet, connect};
use tidemill_wal::format::ShardId;

/// Slots of a ring.
const RING_CAPACITY: usize = 16;

/// More than a ring holds.
const PACKETS: u64 = 40;

/// How often each shard takes its turn; the packets need three turns.
const TURNS: usize = 10;

pub fn full_rings_are_drained() {
    let mut ports = connect(2, RING_CAPACITY);
    let mut arrived = [0, 0];
    for (port, to) in ports.iter_mut().zip([1, 0]) {
        for id in 0..PACKETS {
            port.send(ShardId(to), Packet::Cancel(Ticket { origin: port.own(), id }));
        }
    }
    for _ in 0..TURNS {
        for (port, arrived) in ports.iter_mut().zip(&mut arrived) {
            port.drain(&mut |_, _| *arrived += 1);
            port.flush();
        }
    }
    assert_eq!(arrived, [PACKETS; 2], "the shards wait for each other");
}
