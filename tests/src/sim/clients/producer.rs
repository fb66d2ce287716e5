//! A producer, plain or idempotent. The idempotent one sends again, in order, whatever had no
//! answer; the plain one never does.

use std::collections::{BTreeMap, VecDeque};

use tidemill::command::{Appended, Command, Produce, Refusal, Reply};
use tidemill_wal::format::{PartitionId, ShardId};

use super::{Asked, Context, unexpected};
use crate::sim::model::Check;

/// Open batches of one partition at most, as many as are remembered of a producer.
const OPEN_MAX: usize = 5;

/// Appends to random partitions.
#[derive(Debug)]
pub struct Producer {
    is_idempotent: bool,
    producer_id: Option<i64>,
    is_id_asked: bool,
    lanes: BTreeMap<PartitionId, Lane>,
    batch_size_max: u64,
    pause_us: u64,
}

#[derive(Debug, Default)]
struct Lane {
    next_sequence: i32,
    /// Batches without a good answer, oldest first.
    open: VecDeque<Open>,
}

#[derive(Debug)]
struct Open {
    number: usize,
    is_in_flight: bool,
}

impl Producer {
    /// A producer that pauses about so long between requests.
    pub fn new(is_idempotent: bool, batch_size_max: u64, pause_us: u64) -> Self {
        Self {
            is_idempotent,
            producer_id: None,
            is_id_asked: false,
            lanes: BTreeMap::new(),
            batch_size_max,
            pause_us,
        }
    }

    pub(super) fn act(&mut self, cx: &mut Context<'_>) -> u64 {
        let pause_us = cx.random.between(1, 2 * self.pause_us);
        if self.is_idempotent && self.producer_id.is_none() {
            if !self.is_id_asked {
                self.is_id_asked = true;
                cx.asked.push((ShardId(0), Command::InitProducerId, Asked::ProducerId));
            }
            return pause_us;
        }
        self.lanes.retain(|partition, _| cx.model.topic(partition.topic).is_some());
        let alive = cx.model.alive();
        let wanted = cx.random.between(1, 3);
        let mut requests: BTreeMap<ShardId, Vec<(PartitionId, usize)>> = BTreeMap::new();
        for _ in 0..wanted {
            if alive.is_empty() {
                break;
            }
            let (partition, shard) = cx.random.choose(&alive);
            let request = requests.entry(shard).or_default();
            if !request.iter().any(|(known, _)| *known == partition)
                && let Some(number) = self.next_batch(cx, partition)
            {
                request.push((partition, number));
            }
        }
        if cx.is_draining {
            for (partition, shard) in alive {
                let request = requests.entry(shard).or_default();
                if !request.iter().any(|(known, _)| *known == partition)
                    && let Some(number) = self.next_batch(cx, partition)
                {
                    request.push((partition, number));
                }
            }
        }
        for (shard, batches) in requests {
            if batches.is_empty() {
                continue;
            }
            let numbers = batches.iter().map(|(_, number)| *number).collect();
            let batches = (batches.into_iter())
                .map(|(partition, number)| (partition, cx.model.sent[number].batch.clone()))
                .collect();
            let command = Command::Produce(Produce { batches });
            cx.asked.push((shard, command, Asked::Produce(numbers)));
        }
        pause_us
    }

    /// What to send next to a partition: the oldest that has to go again, alone, or a new one.
    fn next_batch(&mut self, cx: &mut Context<'_>, partition: PartitionId) -> Option<usize> {
        let lane = self.lanes.entry(partition).or_default();
        if lane.open.iter().any(|open| !open.is_in_flight) {
            let is_quiet = lane.open.iter().all(|open| !open.is_in_flight);
            let oldest = lane.open.front_mut().filter(|_| is_quiet)?;
            oldest.is_in_flight = true;
            return Some(oldest.number);
        }
        if lane.open.len() >= OPEN_MAX || cx.is_draining {
            return None;
        }
        let count = cx.random.skewed(1, 20);
        let size = (cx.random.skewed(64, self.batch_size_max) / count).max(8);
        let producer = self.producer_id.map(|id| (id, lane.next_sequence));
        let shape = (count, size);
        let number = cx.model.make_batch(cx.random, partition, producer, shape, cx.wall_ms);
        lane.next_sequence += count as i32;
        lane.open.push_back(Open { number, is_in_flight: true });
        Some(number)
    }

    pub(super) fn on_reply(&mut self, cx: &mut Context<'_>, asked: Asked, reply: Reply) -> Check {
        match (asked, reply) {
            (Asked::ProducerId, Reply::InitProducerId(Ok(id))) => {
                cx.model.on_producer_id(id)?;
                self.producer_id = Some(id);
                self.is_id_asked = false;
            }
            (Asked::ProducerId, Reply::InitProducerId(Err(_)) | Reply::Refused(_)) => {
                self.is_id_asked = false;
            }
            (Asked::Produce(numbers), Reply::Produce(results)) => {
                if numbers.len() != results.len() {
                    return Err("another number of results than of batches".to_owned());
                }
                for (number, result) in numbers.into_iter().zip(results) {
                    self.on_result(cx, number, result)?;
                }
            }
            (Asked::Produce(numbers), Reply::Refused(refusal)) => {
                for number in numbers {
                    self.on_result(cx, number, Err(refusal))?;
                }
            }
            (asked, reply) => return unexpected(&asked, &reply),
        }
        Ok(())
    }

    fn on_result(
        &mut self,
        cx: &mut Context<'_>,
        number: usize,
        result: Result<Appended, Refusal>,
    ) -> Check {
        let partition = cx.model.sent[number].partition;
        let lane = self.lanes.entry(partition).or_default();
        let index = lane.open.iter().position(|open| open.number == number);
        let refusal = match result {
            Ok(appended) => {
                cx.model.on_acknowledged(number, appended.base_offset)?;
                index.map(|index| lane.open.remove(index));
                return Ok(());
            }
            Err(refusal) => refusal,
        };
        match refusal {
            Refusal::Busy | Refusal::DiskFull | Refusal::Stopping => {}
            Refusal::UnknownPartition if cx.model.is_deleting(partition.topic) => {}
            // One before it was refused; all go again. Unless the topic went meanwhile, and with
            // it what is known of its batches.
            Refusal::OutOfOrderSequence if index.is_none_or(|index| index > 0) => {}
            refusal => {
                return Err(format!("batch {number} for {partition:?} is refused: {refusal:?}"));
            }
        }
        if !self.is_idempotent {
            cx.model.on_refused(number)?;
            index.map(|index| lane.open.remove(index));
        } else if let Some(index) = index {
            lane.open[index].is_in_flight = false;
        }
        Ok(())
    }

    pub(super) fn on_restart(&mut self) {
        self.is_id_asked = false;
        for lane in self.lanes.values_mut() {
            match self.is_idempotent {
                true => lane.open.iter_mut().for_each(|open| open.is_in_flight = false),
                false => lane.open.clear(),
            }
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.lanes.values().all(|lane| lane.open.is_empty())
    }
}
