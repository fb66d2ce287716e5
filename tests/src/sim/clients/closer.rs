//! Takes event time far ahead in all partitions of the windows' source, so that windows end: now and
//! then, and when everybody else is done.

use std::collections::{BTreeMap, BTreeSet};

use tidemill::command::Reply;
use tidemill_wal::format::{PartitionId, ShardId};

use super::{Asked, Context, producer, unexpected};
use crate::sim::model::{Author, Check, Try};
use crate::sim::streams::Flow;

/// Its number among the plain producers: no other has it.
const NUMBER: u64 = 0xffff;

/// It begins by itself at one time in so many.
const BEGIN_ONE_IN: u64 = 60;

/// Writes one record into each partition.
#[derive(Debug)]
pub struct Closer {
    /// Partitions that have no record of this time.
    left: BTreeMap<PartitionId, ShardId>,
    /// Those whose record is on its way.
    open: BTreeSet<PartitionId>,
    /// Where event time goes.
    time_ms: i64,
    /// The record is the last of its partition.
    is_last: bool,
    is_closed: bool,
    /// Connections so far: batches of different ones may pass each other.
    connection_count: u64,
    pause_us: u64,
}

impl Closer {
    /// One that pauses about so long between requests.
    pub fn new(pause_us: u64) -> Self {
        Self {
            left: BTreeMap::new(),
            open: BTreeSet::new(),
            time_ms: 0,
            is_last: false,
            is_closed: false,
            connection_count: 0,
            pause_us,
        }
    }

    pub(super) fn act(&mut self, cx: &mut Context<'_>) -> u64 {
        let pause_us = cx.random.between(1, 2 * self.pause_us);
        if self.is_done() {
            self.is_closed |= self.is_last;
            let is_due = cx.is_closing && !self.is_closed;
            if is_due || (!cx.is_draining && cx.random.one_in(BEGIN_ONE_IN)) {
                self.left = cx.model.source_partitions(Flow::Windows).into_iter().collect();
                self.time_ms = cx.model.close_windows();
                self.is_last = is_due;
            }
        }
        let is_ready = |partition: &PartitionId, shard: ShardId| {
            !self.open.contains(partition) && cx.model.is_current(shard)
        };
        let ready: Vec<(PartitionId, ShardId)> = (self.left.iter())
            .filter(|(partition, shard)| is_ready(partition, **shard))
            .map(|(partition, shard)| (*partition, *shard))
            .collect();
        for (partition, shard) in ready {
            self.open.insert(partition);
            let author = Author::Plain(self.connection_count << 16 | NUMBER);
            let number = cx.model.make_closing(partition, author, self.time_ms);
            let of = cx.model.on_tried(number, shard);
            let ask = producer::ask(cx, shard, vec![of]);
            cx.asked.push(ask);
        }
        pause_us
    }

    pub(super) fn on_reply(&mut self, cx: &mut Context<'_>, asked: Asked, reply: Reply) -> Check {
        match (asked, reply) {
            (Asked::Produce(tries), Reply::Produce(results)) => {
                for (of, result) in tries.into_iter().zip(results) {
                    self.on_result(cx, of, result.is_ok());
                }
            }
            (Asked::Produce(tries), Reply::Refused(_)) => {
                tries.into_iter().for_each(|of| self.on_result(cx, of, false));
            }
            (asked, reply) => return unexpected(&asked, &reply),
        }
        Ok(())
    }

    fn on_result(&mut self, cx: &Context<'_>, of: Try, is_there: bool) {
        let partition = cx.model.sent[of.number].partition;
        self.open.remove(&partition);
        if is_there {
            self.left.remove(&partition);
        }
    }

    /// What was on its way may be there or not; another record does no harm.
    pub(super) fn on_restart(&mut self) {
        self.open.clear();
        self.connection_count += 1;
    }

    pub(super) fn is_done(&self) -> bool {
        self.left.is_empty() && self.open.is_empty()
    }

    /// Whether everything was closed, after everybody else was done.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }
}
