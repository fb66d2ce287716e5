//! A node in memory to test topologies with: the real shards on disks in memory, a clock that is set
//! by hand, no threads, no sockets, and power that can go at any write.

mod restore;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidemill_wal::damage::FileFault;
use tidemill_wal::disk::{DiskOp, MemoryStorage, Storage};
use tidemill_wal::extent::{ExtentView, ReadFrom as Position, RunData};
use tidemill_wal::format::{PartitionId, ShardId};
use tidemill_wal::limits::SEGMENT_SIZE_MIN;
use tidemill_wal::segment;
use tidemill_wal::store::MergePlan;

use crate::batch::{self, BatchBuilder, NewRecord};
use crate::catalog::CatalogLimits;
use crate::command::{
    CatalogCommand, Command, Fetch, FetchPartition, NewTopic, Produce, Reply, Routes, Ticket,
    TopicRoute, key_partition,
};
use crate::effect::{Effect, ExtentRead, Input, Now, ReadFault, ReadFrom};
use crate::group::GroupLimits;
use crate::replay::{self, Report, ShardError};
use crate::reshard::ReshardError;
use crate::shard::{OpenError, Recovered, Shard, ShardOptions, agree_on_ends};
use crate::topology::{BadTopology, Plan, Topology};

/// Most that one read of a topic gets at once.
const FETCH_SIZE: u32 = 1 << 20;

/// Most bytes that a batch may have when it is decompressed.
const RECORDS_SIZE_MAX: usize = 256 << 20;

/// Rounds of all shards until a driver thinks that they will never come to rest.
const ROUNDS_MAX: usize = 1_000_000;

/// A node with topologies, in memory.
///
/// Everything runs when it is asked to, to its end: after [`Self::pipe_in`] all that follows from
/// the records has happened, on all shards. Blocking calls are made at once, on the thread of the test.
pub struct TestDriver {
    plans: Vec<Arc<Plan>>,
    shard_count: u16,
    places: Vec<Place>,
    now: Now,
    routes: Arc<Routes>,
    replies: BTreeMap<u64, Reply>,
    next_ticket: u64,
    /// How often shards were opened: no two starts share a seed.
    starts: u64,
    /// Writes that still succeed; `None`: all.
    writes_left: Option<u64>,
    is_down: bool,
    /// Where the reader of each partition is.
    read: HashMap<PartitionId, u64>,
    keyless: u32,
}

/// A shard and its disk. A shard without power is none.
struct Place {
    disk: MemoryStorage,
    shard: Option<Shard>,
    inbox: VecDeque<Input>,
}

/// Why a driver cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The topology itself.
    #[error(transparent)]
    Topology(#[from] BadTopology),
    /// What it left before.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What was on its way between its shards when their number was to change.
    #[error(transparent)]
    Reshard(#[from] ReshardError),
}

/// Why nothing can be run once more.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The topology itself.
    #[error(transparent)]
    Topology(#[from] BadTopology),
    /// What is on the disks.
    #[error(transparent)]
    Shard(#[from] ShardError),
}

/// A record to be written, or one that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TestRecord {
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Its time, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Its headers, in order.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

impl TestRecord {
    /// Of text.
    pub fn new(key: &str, value: &str, timestamp_ms: i64) -> Self {
        let bytes = |text: &str| Some(Bytes::copy_from_slice(text.as_bytes()));
        Self { key: bytes(key), value: bytes(value), timestamp_ms, headers: Vec::new() }
    }

    /// Key and value as text, `key=value`; a missing one is empty.
    pub fn text(&self) -> String {
        let text = |bytes: &Option<Bytes>| {
            String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()).into_owned()
        };
        format!("{}={}", text(&self.key), text(&self.value))
    }
}

/// The power went while records were written: those that were not acknowledged may be there or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the power went; {acknowledged} of {asked} records were acknowledged")]
pub struct PowerWent {
    /// Records that are there for good.
    pub acknowledged: usize,
    /// Records that were to be written.
    pub asked: usize,
}

impl TestDriver {
    /// A new node of so many shards. Its clock stands at one second after 1970.
    pub fn new(shard_count: u16, topologies: Vec<Topology>) -> Result<Self, DriverError> {
        let place = || Place { disk: MemoryStorage::new(), shard: None, inbox: VecDeque::new() };
        let mut driver = Self {
            plans: Vec::new(),
            shard_count,
            places: (0..shard_count).map(|_| place()).collect(),
            now: Now { monotonic_ms: 0, wall_ms: 1000 },
            routes: Arc::default(),
            replies: BTreeMap::new(),
            next_ticket: 0,
            starts: 0,
            writes_left: None,
            is_down: true,
            read: HashMap::new(),
            keyless: 0,
        };
        driver.restart_with(topologies)?;
        Ok(driver)
    }

    /// The power goes, if it is not gone already, and comes back with the same topologies.
    pub fn restart(&mut self) -> Result<(), DriverError> {
        self.power_off();
        self.starts += 1;
        let options: Vec<_> = (0..self.shard_count).map(|index| self.options(index)).collect();
        let disks = self.places.iter_mut().map(|place| &mut place.disk).zip(options);
        let recovered: Vec<Recovered> = disks
            .map(|(disk, options)| Shard::recover(disk, options, &mut |_| {}))
            .collect::<Result<_, OpenError>>()?;
        let ends: Vec<_> = recovered.iter().map(|it| it.log_end().clone()).collect();
        let cuts = agree_on_ends(&ends).map_err(OpenError::Disagree)?;
        let places = self.places.iter_mut().zip(recovered).zip(cuts);
        for ((place, recovered), is_cut) in places {
            place.shard = Some(recovered.open(&mut place.disk, is_cut, self.now)?.shard);
        }
        self.is_down = false;
        for index in 0..self.places.len() {
            let mut effects = Vec::new();
            if let Some(shard) = &mut self.places[index].shard {
                shard.start(&mut effects);
            }
            effects.into_iter().for_each(|effect| self.perform(index, effect));
        }
        self.run();
        Ok(())
    }

    /// The power goes and comes back with other topologies, or other versions of them.
    pub fn restart_with(&mut self, topologies: Vec<Topology>) -> Result<(), DriverError> {
        let plans: Result<Vec<_>, _> =
            topologies.into_iter().map(|it| it.build().map(Arc::new)).collect();
        self.plans = plans?;
        self.restart()
    }

    fn power_off(&mut self) {
        for place in &mut self.places {
            place.shard = None;
            place.inbox.clear();
        }
        self.replies.clear();
        self.writes_left = None;
        self.is_down = true;
    }

    /// The power goes at this write of the log from now on, counted from 1 and over all shards: it
    /// is not made, and nothing after it. [`Self::restart`] brings the power back.
    pub fn crash_at_write(&mut self, number: u64) {
        self.writes_left = Some(number.saturating_sub(1));
    }

    /// Whether the power is gone.
    pub fn is_down(&self) -> bool {
        self.is_down
    }

    /// Time passes, by both clocks; what is due happens on the way.
    pub fn advance(&mut self, by: Duration) {
        let end_ms = self.now.monotonic_ms + by.as_millis() as u64;
        loop {
            let due = self.shards().filter_map(Shard::next_deadline_ms).min();
            let due_ms = due.unwrap_or(end_ms).max(self.now.monotonic_ms + 1).min(end_ms);
            let passed_ms = due_ms.saturating_sub(self.now.monotonic_ms);
            self.now.monotonic_ms += passed_ms;
            self.now.wall_ms += passed_ms as i64;
            for place in self.places.iter_mut().filter(|place| place.shard.is_some()) {
                place.inbox.push_back(Input::Tick);
            }
            self.run();
            if self.now.monotonic_ms >= end_ms || self.is_down {
                return;
            }
        }
    }

    /// The machine's clock is set, forward or back; time does not pass.
    pub fn set_clock(&mut self, wall_ms: i64) {
        self.now.wall_ms = wall_ms;
    }

    /// Makes a topic, if there is none of that name.
    pub fn create_topic(&mut self, name: &str, partition_count: u32) {
        let topic = NewTopic {
            name: name.to_owned(),
            partition_count: Some(partition_count),
            config: Vec::new(),
            automatic: true,
        };
        let command = CatalogCommand::CreateTopics { topics: vec![topic], validate_only: false };
        match self.answer(ShardId(0), Command::Catalog(command)) {
            Some(Reply::Catalog(made)) => {
                assert!(made.iter().all(Result::is_ok), "topic {name:?}: {made:?}");
            }
            other => panic!("topic {name:?} was not made: {other:?}"),
        }
    }

    /// Writes records to a topic, each to the partition of its key as Kafka's Java client does, and
    /// lets everything happen that follows. The error says how far it came before the power went.
    pub fn pipe_in(&mut self, topic: &str, records: &[TestRecord]) -> Result<(), PowerWent> {
        for (acknowledged, record) in records.iter().enumerate() {
            if !self.append(topic, record) {
                return Err(PowerWent { acknowledged, asked: records.len() });
            }
        }
        if self.is_down {
            return Err(PowerWent { acknowledged: records.len(), asked: records.len() });
        }
        Ok(())
    }

    fn append(&mut self, topic: &str, record: &TestRecord) -> bool {
        if self.is_down {
            return false;
        }
        let route = self.route(topic);
        let index = match &record.key {
            Some(key) => key_partition(key, route.partition_count),
            None => {
                self.keyless += 1;
                self.keyless % route.partition_count
            }
        };
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            record.headers.iter().map(|(name, value)| (&name[..], value.as_deref())).collect();
        let mut builder = BatchBuilder::new();
        builder.push(NewRecord {
            timestamp_ms: record.timestamp_ms,
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers,
        });
        let produce = Produce { batches: vec![(route.partition(index), builder.build())] };
        match self.answer(route.shard_of(index), Command::Produce(produce)) {
            Some(Reply::Produce(results)) => {
                assert!(results.iter().all(Result::is_ok), "{topic:?} took no record: {results:?}");
                true
            }
            Some(other) => panic!("{topic:?} took no record: {other:?}"),
            None => false,
        }
    }

    /// The records of a topic that were not given out before: partition by partition, in order.
    pub fn pipe_out(&mut self, topic: &str) -> Vec<TestRecord> {
        let route = self.route(topic);
        let mut records = Vec::new();
        for index in 0..route.partition_count {
            let (partition, shard) = (route.partition(index), route.shard_of(index));
            loop {
                let offset = self.read.get(&partition).copied().unwrap_or(0);
                let wanted = FetchPartition { partition, offset, bytes_max: FETCH_SIZE };
                let (partitions, bytes_max) = (vec![wanted], FETCH_SIZE);
                let fetch = Fetch { partitions, bytes_min: 0, bytes_max, wait_ms: 0 };
                let reply = self.answer(shard, Command::Fetch(fetch));
                let Some(Reply::Fetch(mut fetched)) = reply else {
                    panic!("topic {topic:?} cannot be read: {reply:?}")
                };
                let fetched = fetched.pop().expect("one partition was asked for");
                let batches = fetched.records.unwrap_or_else(|why| panic!("{topic:?}: {why:?}"));
                if batches.is_empty() {
                    break;
                }
                // What is read from the disk is several batches, one behind the other.
                for batch in batches.into_iter().flat_map(batch::batches) {
                    let batch = batch.expect("batches are stored whole");
                    for record in batch.records(RECORDS_SIZE_MAX).expect("it decompresses") {
                        let record = record.expect("records are stored whole");
                        if record.offset < offset {
                            continue;
                        }
                        let (key, value, headers) = (record.key, record.value, record.headers);
                        let timestamp_ms = record.timestamp_ms;
                        records.push(TestRecord { key, value, timestamp_ms, headers });
                    }
                    self.read.insert(partition, batch.last_offset() + 1);
                }
            }
        }
        records
    }

    /// Forgets what was read: [`Self::pipe_out`] begins anew.
    pub fn rewind(&mut self) {
        self.read.clear();
    }

    /// Why a topology does not run, for each that does not, on any shard.
    pub fn paused(&self) -> Vec<(String, String)> {
        let paused = self.shards().flat_map(Shard::paused_topologies);
        paused.map(|(name, why)| (name.to_owned(), why.to_owned())).collect()
    }

    /// Runs topologies once more over what the log has of them, and says what came out otherwise: the
    /// same topologies, to see whether they look at something else than records and state; or changed
    /// ones.
    pub fn verify_replay(&self, topologies: Vec<Topology>) -> Result<Report, ReplayError> {
        let plans: Result<Vec<Arc<Plan>>, _> =
            topologies.into_iter().map(|it| it.build().map(Arc::new)).collect();
        let disks: Vec<&dyn Storage> =
            self.places.iter().map(|place| &place.disk as &dyn Storage).collect();
        Ok(replay::verify(&disks, &plans?)?)
    }

    fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.places.iter().filter_map(|place| place.shard.as_ref())
    }

    fn route(&self, topic: &str) -> Arc<TopicRoute> {
        assert!(!self.is_down, "the power is gone; call `restart`");
        let route = self.routes.topics.get(topic).cloned();
        route.unwrap_or_else(|| panic!("there is no topic {topic:?}; call `create_topic`"))
    }

    fn answer(&mut self, shard: ShardId, command: Command) -> Option<Reply> {
        self.next_ticket += 1;
        let ticket = Ticket { origin: shard, id: self.next_ticket };
        self.places[usize::from(shard.0)].inbox.push_back(Input::Command { ticket, command });
        self.run();
        self.replies.remove(&ticket.id)
    }

    /// Lets all shards work until none has anything to do, or the power goes.
    fn run(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut is_at_rest = true;
            for index in 0..self.places.len() {
                is_at_rest &= !self.turn(index);
                if self.is_down {
                    return;
                }
            }
            if is_at_rest {
                return;
            }
        }
        panic!("the shards do not come to rest");
    }

    /// One shard takes its inputs and works. False if it had nothing to do.
    fn turn(&mut self, index: usize) -> bool {
        let now = self.now;
        let place = &mut self.places[index];
        let Some(shard) = &mut place.shard else { return false };
        let mut effects = Vec::new();
        while shard.accepts() || !matches!(place.inbox.front(), Some(Input::Command { .. })) {
            let Some(input) = place.inbox.pop_front() else { break };
            shard.step(now, input, &mut effects);
        }
        let has_more = shard.process(now, &mut || true, &mut effects);
        shard.flush(now, &mut effects);
        let has_worked = has_more || !effects.is_empty() || !place.inbox.is_empty();
        for effect in effects {
            self.perform(index, effect);
            if self.is_down {
                break;
            }
        }
        has_worked
    }

    fn perform(&mut self, index: usize, effect: Effect) {
        let place = &mut self.places[index];
        match effect {
            Effect::Write(write) => {
                if let Some(left) = &mut self.writes_left {
                    let Some(fewer) = left.checked_sub(1) else {
                        return self.power_off();
                    };
                    *left = fewer;
                }
                let file = segment::file_name(write.segment);
                let (offset, pieces) = (write.offset, vec![write.bytes]);
                place.disk.perform(&DiskOp::Write { file, offset, pieces }).expect("room");
                place.inbox.push_front(Input::Durable(write.sequence));
            }
            Effect::Disk { job, ops } => {
                let result = ops.iter().try_for_each(|op| place.disk.perform(op));
                place.inbox.push_back(Input::DiskDone { job, result });
            }
            Effect::Reply { ticket, reply } => {
                self.replies.insert(ticket.id, reply);
            }
            Effect::Plan(files) => place.inbox.push_back(Input::Planned(files.plan())),
            Effect::Mesh { to, message } => {
                let from = ShardId(index as u16);
                let other = &mut self.places[usize::from(to.0)];
                other.inbox.push_back(Input::Mesh { from, message });
            }
            Effect::Read { read, request } => {
                let result = read_extent(&place.disk, ShardId(index as u16), &request);
                place.inbox.push_back(Input::ReadDone { read, result });
            }
            Effect::ReadMerge(plan) => {
                let result = read_merge(&place.disk, &plan);
                place.inbox.push_back(Input::MergeRead(result));
            }
            Effect::Call { call, request } => {
                let result = self.plans[call.topology].make_call(&request);
                place.inbox.push_back(Input::Called { call, result });
            }
            Effect::Routes(routes) => self.routes = routes,
            Effect::Notice(_) | Effect::Verify(_) => {}
            Effect::Halt(why) => panic!("shard {index} ends the process: {why}"),
        }
    }

    fn options(&self, index: u16) -> ShardOptions {
        ShardOptions {
            id: ShardId(index),
            shard_count: self.shard_count,
            node: [1; 16],
            seed: [u64::from(index), self.starts],
            segment_size: SEGMENT_SIZE_MIN,
            segment_count_max: 8,
            catalog: CatalogLimits {
                partition_count_default: 1,
                topic_count_max: 1000,
                partition_count_max: 10_000,
                retention_ms: None,
                retention_bytes: None,
                batch_size_max: 1 << 20,
                batch_size_limit: 1 << 20,
            },
            group: GroupLimits::default(),
            idle_frame_ms: 1000,
            producer_expiry_ms: 86_400_000,
            retention_check_ms: 1000,
            delta_size_max: 64 << 20,
            disk_reserve_size: 0,
            disk_full_retry_ms: 1000,
            scrub_rate: 0,
            settle_sync_size: 1 << 20,
            copied_at_once: 256,
            readers_max: 1000,
            waiting_batches_size_max: 16 << 20,
            topologies: self.plans.clone(),
            state_budget: u64::MAX,
        }
    }
}

fn read_extent(
    disk: &MemoryStorage,
    shard: ShardId,
    request: &ExtentRead,
) -> Result<Vec<Bytes>, ReadFault> {
    let file = &request.file;
    let bytes = disk.file(file).ok_or(ReadFault::Gone)?;
    let corrupt = |damage: &dyn std::fmt::Display| ReadFault::Corrupt(format!("{file}: {damage}"));
    let view =
        ExtentView::open_named(bytes, &|_| Ok(()), shard, file).map_err(|it| corrupt(&it))?;
    let from = match request.from {
        ReadFrom::Offset(offset) => Position::Offset(offset),
        ReadFrom::Time(time_ms) => Position::Time(time_ms),
    };
    let bytes_max = request.bytes_max as usize;
    match view.read(request.partition, from, bytes_max).map_err(|it| corrupt(&it))? {
        Some(range) => Ok(vec![Bytes::copy_from_slice(&bytes[range])]),
        None => Err(ReadFault::Nothing),
    }
}

fn read_merge(disk: &MemoryStorage, plan: &MergePlan) -> Result<Vec<RunData>, ReadFault> {
    let mut open = |file: &_| {
        let bytes = disk.file(file).ok_or(std::io::ErrorKind::NotFound)?;
        Ok(Bytes::copy_from_slice(bytes))
    };
    plan.read(&mut open).map_err(|(file, fault)| match fault {
        FileFault::Read { .. } => ReadFault::Gone,
        fault => ReadFault::Corrupt(format!("{file}: {fault}")),
    })
}

#[cfg(test)]
mod figures;
#[cfg(test)]
mod hops;
#[cfg(test)]
mod replayed;
#[cfg(test)]
mod restores;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod witness;
