//! A consumer: follows the tail, goes back to the start now and then, and polls long.

use std::collections::BTreeMap;

use tidemill::command::{Command, Fetch, FetchPartition, Reply};
use tidemill_wal::format::PartitionId;

use super::{Asked, Context, unexpected};
use crate::sim::model::Check;

/// Partitions in one fetch at most.
const PARTITIONS_MAX: usize = 3;

/// Reads random partitions.
#[derive(Debug)]
pub struct Consumer {
    positions: BTreeMap<PartitionId, u64>,
    is_waiting: bool,
    pause_us: u64,
}

impl Consumer {
    /// A consumer that pauses about so long between requests.
    pub fn new(pause_us: u64) -> Self {
        Self { positions: BTreeMap::new(), is_waiting: false, pause_us }
    }

    pub(super) fn act(&mut self, cx: &mut Context<'_>) -> u64 {
        let pause_us = cx.random.between(1, 2 * self.pause_us);
        let alive = cx.model.alive();
        if self.is_waiting && cx.random.one_in(50) {
            self.is_waiting = false;
            cx.is_disconnecting = true;
        }
        if self.is_waiting || alive.is_empty() || cx.is_draining {
            return pause_us;
        }
        let (first, shard) = cx.random.choose(&alive);
        let mut wanted = vec![first];
        for _ in 1..PARTITIONS_MAX {
            let (other, its_shard) = cx.random.choose(&alive);
            if its_shard == shard && !wanted.contains(&other) {
                wanted.push(other);
            }
        }
        let mut partitions = Vec::new();
        let mut asked = Vec::new();
        for partition in wanted {
            let known = cx.model.known(partition);
            let offset = self.positions.get(&partition).copied().unwrap_or(0);
            let offset = if cx.random.one_in(20) { known.start() } else { offset };
            let bytes_max = cx.random.skewed(1, 64 << 10) as u32;
            partitions.push(FetchPartition { partition, offset, bytes_max });
            asked.push((partition, offset, known));
        }
        let fetch = Fetch {
            partitions,
            bytes_min: cx.random.skewed(1, 4096) as u32,
            bytes_max: cx.random.skewed(1, 128 << 10) as u32,
            wait_ms: cx.random.choose(&[0, 1, 10, 50]),
        };
        self.is_waiting = true;
        cx.asked.push((shard, Command::Fetch(fetch), Asked::Fetch(asked)));
        pause_us
    }

    pub(super) fn on_reply(&mut self, cx: &mut Context<'_>, asked: Asked, reply: Reply) -> Check {
        self.is_waiting = false;
        match (asked, reply) {
            (Asked::Fetch(asked), Reply::Fetch(fetched)) => {
                if asked.len() != fetched.len() {
                    return Err("another number of partitions than asked for".to_owned());
                }
                for ((partition, offset, known), fetched) in asked.into_iter().zip(&fetched) {
                    let next = cx.model.on_fetched(partition, offset, known, fetched)?;
                    self.positions.insert(partition, next);
                }
            }
            (Asked::Fetch(_), Reply::Refused(_)) => {}
            (asked, reply) => return unexpected(&asked, &reply),
        }
        Ok(())
    }

    pub(super) fn on_restart(&mut self) {
        self.is_waiting = false;
    }
}
