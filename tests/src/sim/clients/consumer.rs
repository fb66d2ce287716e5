//! A consumer: follows the tail, goes back to the start now and then, and polls long.

use std::collections::BTreeMap;

use tidemill::command::{Command, Fetch, FetchPartition, Reply};
use tidemill_wal::format::{PartitionId, ShardId};

use super::answer::next_offset;
use super::{Asked, Context, unexpected};
use crate::sim::model::Check;

/// Partitions in one fetch at most.
const PARTITIONS_MAX: usize = 3;

/// Reads random partitions.
#[derive(Debug)]
pub struct Consumer {
    positions: BTreeMap<PartitionId, u64>,
    /// Partitions that it waits for.
    waiting: usize,
    pause_us: u64,
}

impl Consumer {
    /// A consumer that pauses about so long between requests.
    pub fn new(pause_us: u64) -> Self {
        Self { positions: BTreeMap::new(), waiting: 0, pause_us }
    }

    pub(super) fn act(&mut self, cx: &mut Context<'_>) -> u64 {
        let pause_us = cx.random.between(1, 2 * self.pause_us);
        let alive = cx.model.alive();
        if self.waiting > 0 && cx.random.one_in(50) {
            self.waiting = 0;
            cx.is_disconnecting = true;
        }
        // Now and then it does not wait for one answer before it asks for more.
        let is_eager = self.waiting <= PARTITIONS_MAX && cx.random.one_in(20);
        if (self.waiting > 0 && !is_eager) || alive.is_empty() || cx.is_draining {
            return pause_us;
        }
        let mut wanted = vec![cx.random.choose(&alive)];
        for _ in 1..PARTITIONS_MAX {
            let other = cx.random.choose(&alive);
            if !wanted.contains(&other) {
                wanted.push(other);
            }
        }
        let limits = Fetch {
            partitions: Vec::new(),
            bytes_min: cx.random.skewed(1, 4096) as u32,
            bytes_max: cx.random.skewed(1, 128 << 10) as u32,
            wait_ms: cx.random.choose(&[0, 1, 10, 50]),
        };
        let mut fetches: BTreeMap<ShardId, (Vec<FetchPartition>, Vec<_>)> = BTreeMap::new();
        for (partition, shard) in wanted {
            let (partitions, asked) = fetches.entry(shard).or_default();
            let known = cx.model.known(partition);
            let offset = self.positions.get(&partition).copied().unwrap_or(0);
            let offset = if cx.random.one_in(20) { known.start() } else { offset };
            let bytes_max = cx.random.skewed(1, 64 << 10) as u32;
            partitions.push(FetchPartition { partition, offset, bytes_max });
            asked.push((partition, offset, known));
        }
        for (shard, (partitions, asked)) in fetches {
            self.waiting += asked.len();
            let fetch = Fetch { partitions, ..limits };
            cx.asked.push((shard, Command::Fetch(fetch), Asked::Fetch(asked)));
        }
        pause_us
    }

    pub(super) fn on_reply(&mut self, _: &mut Context<'_>, asked: Asked, reply: Reply) -> Check {
        match (asked, reply) {
            (Asked::Fetch(asked), Reply::Fetch(fetched)) => {
                self.waiting -= asked.len();
                for ((partition, offset, _), fetched) in asked.into_iter().zip(&fetched) {
                    self.positions.insert(partition, next_offset(offset, fetched));
                }
            }
            (Asked::Fetch(asked), Reply::Refused(_)) => self.waiting -= asked.len(),
            (asked, reply) => return unexpected(&asked, &reply),
        }
        Ok(())
    }

    pub(super) fn on_restart(&mut self) {
        self.waiting = 0;
    }
}
