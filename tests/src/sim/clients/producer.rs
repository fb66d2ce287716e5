//! A producer, plain or idempotent. The idempotent one sends again, in order, whatever had no good
//! answer; the plain one never does. Now and then an old batch arrives once more.

use std::collections::{BTreeMap, VecDeque};

use tidemill::command::{Command, Produce, Refusal, Reply};
use tidemill_wal::format::{PartitionId, ShardId};

use super::{Asked, Context, unexpected};
use crate::sim::model::{Author, Check, Try};

/// Open batches of one partition at most, as many as are remembered of a producer.
const OPEN_MAX: usize = 5;

/// Appends to random partitions.
#[derive(Debug)]
pub struct Producer {
    number: u64,
    /// Connections so far: batches of different ones may pass each other.
    connection_count: u64,
    is_idempotent: bool,
    producer_id: Option<i64>,
    epoch: i16,
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
    /// Producer number `number`, which pauses about so long between requests.
    pub fn new(number: u64, is_idempotent: bool, batch_size_max: u64, pause_us: u64) -> Self {
        Self {
            number,
            connection_count: 0,
            is_idempotent,
            producer_id: None,
            epoch: 0,
            is_id_asked: false,
            lanes: BTreeMap::new(),
            batch_size_max,
            pause_us,
        }
    }

    /// Whether it has no id, and sends nothing again.
    pub fn is_plain(&self) -> bool {
        !self.is_idempotent
    }

    pub(super) fn act(&mut self, cx: &mut Context<'_>) -> u64 {
        let pause_us = cx.random.between(1, 2 * self.pause_us);
        self.lanes.retain(|partition, _| cx.model.topic(partition.topic).is_some());
        if !cx.is_draining {
            self.have_bad_luck(cx);
        }
        if self.is_idempotent && self.producer_id.is_none() {
            if !self.is_id_asked {
                self.is_id_asked = true;
                cx.asked.push((ShardId(0), Command::InitProducerId, Asked::ProducerId));
            }
            return pause_us;
        }
        // Not every shard has heard of every partition.
        let mut targets = match cx.random.one_in(3) {
            true => cx.model.existing(),
            false => cx.model.alive(),
        };
        targets.retain(|(partition, _)| cx.model.is_writable(*partition));
        let mut wanted = Vec::new();
        if !targets.is_empty() {
            wanted.extend((0..cx.random.between(1, 3)).map(|_| cx.random.choose(&targets)));
        }
        if cx.is_draining {
            wanted.extend(targets);
        }
        let mut requests: BTreeMap<ShardId, Vec<(PartitionId, Try)>> = BTreeMap::new();
        for (partition, shard) in wanted {
            let request = requests.entry(shard).or_default();
            if !request.iter().any(|(known, _)| *known == partition)
                && let Some(number) = self.next_batch(cx, partition)
            {
                request.push((partition, cx.model.on_tried(number, shard)));
            }
        }
        for (shard, tries) in requests {
            if !tries.is_empty() {
                let ask = ask(cx, shard, tries.into_iter().map(|(_, of)| of).collect());
                cx.asked.push(ask);
            }
        }
        pause_us
    }

    /// Its connection breaks, its process starts anew, or the network delivers something late.
    fn have_bad_luck(&mut self, cx: &mut Context<'_>) {
        if cx.random.one_in(80) {
            cx.is_disconnecting = true;
            self.on_restart();
        }
        if self.is_idempotent && cx.random.one_in(200) {
            self.begin_epoch();
        }
        if self.is_idempotent && cx.random.one_in(300) {
            self.become_new();
        }
        if cx.random.one_in(15)
            && let Some(number) = cx.model.old_batch(cx.random)
        {
            let partition = cx.model.sent[number].partition;
            let place =
                cx.model.topic(partition.topic).map(|topic| topic.shard_of(partition.index));
            if let Some(shard) = place {
                let of = cx.model.on_tried(number, shard);
                let ask = ask(cx, shard, vec![of]);
                cx.unheard.push(ask);
            }
        }
    }

    /// It gives up what is open and goes on with a new epoch, as Kafka's client does (KIP-360).
    fn begin_epoch(&mut self) {
        self.epoch += 1;
        self.lanes.clear();
    }

    /// It gives up what is open and comes back as another producer.
    fn become_new(&mut self) {
        self.producer_id = None;
        self.epoch = 0;
        self.lanes.clear();
    }

    /// What to send next to a partition: the oldest that has to go again, or a new one.
    fn next_batch(&mut self, cx: &mut Context<'_>, partition: PartitionId) -> Option<usize> {
        let lane = self.lanes.entry(partition).or_default();
        if let Some(oldest) = lane.open.iter_mut().find(|open| !open.is_in_flight) {
            oldest.is_in_flight = true;
            return Some(oldest.number);
        }
        if lane.open.len() >= OPEN_MAX || cx.is_draining {
            return None;
        }
        let count = cx.random.skewed(1, 20);
        let size = (cx.random.skewed(64, self.batch_size_max) / count).max(8);
        let author = match self.producer_id {
            Some(id) => Author::Idempotent { id, epoch: self.epoch, sequence: lane.next_sequence },
            None => Author::Plain(self.connection_count << 16 | self.number),
        };
        let shape = (count, size);
        let number = cx.model.make_batch(cx.random, partition, author, shape, cx.wall_ms);
        lane.next_sequence += count as i32;
        lane.open.push_back(Open { number, is_in_flight: true });
        Some(number)
    }

    pub(super) fn on_reply(&mut self, cx: &mut Context<'_>, asked: Asked, reply: Reply) -> Check {
        match (asked, reply) {
            (Asked::ProducerId, Reply::InitProducerId(Ok(id))) => {
                self.producer_id = Some(id);
                self.is_id_asked = false;
            }
            (Asked::ProducerId, Reply::InitProducerId(Err(_)) | Reply::Refused(_)) => {
                self.is_id_asked = false;
            }
            (Asked::Produce(tries), Reply::Produce(results)) => {
                for (of, result) in tries.into_iter().zip(results) {
                    self.on_result(cx, of, result.err());
                }
            }
            (Asked::Produce(tries), Reply::Refused(refusal)) => {
                for of in tries {
                    self.on_result(cx, of, Some(refusal));
                }
            }
            (asked, reply) => return unexpected(&asked, &reply),
        }
        Ok(())
    }

    fn on_result(&mut self, cx: &mut Context<'_>, of: Try, refusal: Option<Refusal>) {
        let partition = cx.model.sent[of.number].partition;
        let Some(lane) = self.lanes.get_mut(&partition) else { return };
        let Some(index) = lane.open.iter().position(|open| open.number == of.number) else {
            return;
        };
        match refusal {
            // A producer that was forgotten meanwhile is out of step.
            Some(Refusal::OutOfOrderSequence) if index == 0 => self.begin_epoch(),
            Some(Refusal::InvalidProducerEpoch) => self.become_new(),
            Some(Refusal::BatchTooLarge) if self.is_idempotent => self.begin_epoch(),
            Some(Refusal::DuplicateSequence) | None => {
                lane.open.remove(index);
            }
            Some(_) if self.is_idempotent => lane.open[index].is_in_flight = false,
            Some(_) => {
                lane.open.remove(index);
            }
        }
    }

    pub(super) fn on_restart(&mut self) {
        self.connection_count += 1;
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

pub(super) fn ask(cx: &Context<'_>, shard: ShardId, tries: Vec<Try>) -> (ShardId, Command, Asked) {
    let batches = (tries.iter())
        .map(|of| {
            let sent = &cx.model.sent[of.number];
            (sent.partition, sent.batch.clone())
        })
        .collect();
    (shard, Command::Produce(Produce { batches }), Asked::Produce(tries))
}
