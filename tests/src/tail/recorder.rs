//! A real shard under load, on a disk in memory, that hands each of its writes to the judge.
//!
//! One shard is enough: its log knows nothing of the others. Background jobs go on between its
//! steps, an operation at a time, so that manifests, recycled segments and temporary files are in
//! every state when a write is cut. Now and then the machine really ends there, and the shard goes
//! on from what recovery makes of it.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use bytes::Bytes;
use tidemill::batch::{BatchBuilder, NewRecord};
use tidemill::command::{CatalogCommand, Command, NewTopic, Produce, Reply, Ticket};
use tidemill::effect::{Effect, Input, JobId, Now, ReadFault};
use tidemill::shard::{Shard, ShardOptions};
use tidemill_wal::commit::{FrameWrite, LogOptions};
use tidemill_wal::disk::{DiskFault, DiskOp, MemoryStorage, Storage};
use tidemill_wal::format::{FileName, FrameHeader, PartitionId, Sequence, ShardId};
use tidemill_wal::recovery;
use tidemill_wal::segment::{self, NameKind};

use super::judge::{Judge, SECTOR_SIZE, category};
use super::{Category, Counts};
use crate::sim::plan::Plan;
use crate::sim::random::Random;

/// Rounds of one run: each is some input, some progress of the disk, perhaps an end.
const ROUNDS: u64 = 600;

/// Partitions that are written to.
const PARTITIONS: u32 = 3;

/// First offset that is not durable of each partition.
type Ends = BTreeMap<PartitionId, u64>;

/// A shard, its disk, and what is known of its log.
pub struct Recorder {
    random: Random,
    options: ShardOptions,
    batch_size_max: u64,
    storage: MemoryStorage,
    shard: Option<Shard>,
    now_ms: u64,
    next_ticket: u64,
    partitions: Vec<PartitionId>,
    jobs: VecDeque<(JobId, VecDeque<DiskOp>)>,
    in_flight: Option<FrameWrite>,
    log: Known,
}

/// What is known of the log, and what was tried.
struct Known {
    /// Durable frames by number; the bytes of some.
    frames: BTreeMap<Sequence, Bytes>,
    /// Writes that a crash cut, of frames that are not durable.
    attempts: Vec<FrameWrite>,
    counts: Counts,
    /// Writes of each category that are judged.
    writes_each: u64,
    random: Random,
}

impl Known {
    /// Judges a write if its category was not seen too often; says so.
    fn on_write(
        &mut self,
        storage: &mut MemoryStorage,
        options: LogOptions,
        write: &FrameWrite,
    ) -> Result<bool, String> {
        let category: Category = category(storage, write);
        let seen = self.counts.categories.get(&category).map_or(0, |seen| seen.0);
        if seen >= self.writes_each {
            return Ok(false);
        }
        let counts = Counts::default();
        let (frames, attempts, random) = (&self.frames, &self.attempts, &mut self.random);
        let mut judge = Judge { storage, write, options, frames, attempts, random, counts };
        judge.run()?;
        self.counts += judge.counts;
        Ok(true)
    }

    fn on_durable(&mut self, write: FrameWrite) {
        // What has a later number was cut.
        self.frames.split_off(&write.sequence);
        self.attempts.retain(|attempt| attempt.sequence > write.sequence);
        self.frames.insert(write.sequence, write.bytes);
    }
}

impl Recorder {
    /// A shard that is not started yet. Of each category of writes so many are judged.
    pub fn new(seed: u64, writes_each: u64) -> Self {
        let mut random = Random::new(seed);
        let mut plan = Plan::draw(&mut random);
        plan.shard_count = 1;
        // Small segments are recycled often; a large one takes frames of many sectors.
        plan.segment_size = random.choose(&[96 << 10, 128 << 10, 128 << 10, 1 << 20]);
        plan.segment_count_max = random.between(3, 5) as usize;
        let options = plan.options(0, &mut random);
        let log = Known {
            frames: BTreeMap::new(),
            attempts: Vec::new(),
            counts: Counts::default(),
            writes_each,
            random: Random::new(seed ^ 0x7461_696c),
        };
        Self {
            random,
            options,
            batch_size_max: plan.batch_size_max,
            storage: MemoryStorage::new(),
            shard: None,
            now_ms: 1000,
            next_ticket: 0,
            partitions: Vec::new(),
            jobs: VecDeque::new(),
            in_flight: None,
            log,
        }
    }

    /// What the shard's disk holds now.
    pub fn storage(&self) -> &MemoryStorage {
        &self.storage
    }

    /// What was tried.
    pub fn into_counts(self) -> Counts {
        self.log.counts
    }

    fn log_options(&self) -> LogOptions {
        LogOptions {
            shard: ShardId(0),
            segment_size: self.options.segment_size,
            segment_count_max: self.options.segment_count_max,
        }
    }

    fn now(&self) -> Now {
        Now { monotonic_ms: self.now_ms, wall_ms: 1_700_000_000_000 + self.now_ms as i64 }
    }

    /// Runs all rounds.
    pub fn run(&mut self) -> Result<(), String> {
        self.start()?;
        let topics = vec![NewTopic {
            name: "tail".to_owned(),
            partition_count: Some(PARTITIONS),
            config: Vec::new(),
            automatic: false,
        }];
        let create = CatalogCommand::CreateTopics { topics, validate_only: false };
        self.command(Command::Catalog(create))?;
        for _ in 0..ROUNDS {
            match self.random.below(20) {
                0..9 => self.produce()?,
                9..15 => self.progress()?,
                15..18 => self.idle()?,
                18 => self.produce_much()?,
                _ if self.random.one_in(4) => self.stop()?,
                _ if self.random.one_in(3) => self.crash()?,
                _ => {}
            }
        }
        Ok(())
    }

    fn command(&mut self, command: Command) -> Result<(), String> {
        self.next_ticket += 1;
        let ticket = Ticket { origin: ShardId(0), id: self.next_ticket };
        self.step(Input::Command { ticket, command })
    }

    fn produce(&mut self) -> Result<(), String> {
        let size = self.random.skewed(16, self.batch_size_max);
        self.produce_batch(size)
    }

    /// Fills a frame while another one is in flight.
    fn produce_much(&mut self) -> Result<(), String> {
        for _ in 0..self.random.between(2, 8) {
            let size = self.random.between(4 << 10, 24 << 10);
            self.produce_batch(size)?;
        }
        Ok(())
    }

    fn produce_batch(&mut self, size: u64) -> Result<(), String> {
        let shard = self.shard.as_ref().expect("started");
        // As the world does: what is filling stays small against a segment.
        let has_room = shard.gauges().filling_size < self.options.segment_size / 4;
        if self.partitions.is_empty() || !shard.accepts() || !has_room {
            return self.progress();
        }
        let partition = self.random.choose(&self.partitions);
        let value: Vec<u8> = (0..size).map(|_| self.random.bits() as u8).collect();
        let mut batch = BatchBuilder::new();
        let timestamp_ms = self.now().wall_ms;
        batch.push(NewRecord { timestamp_ms, value: Some(&value), ..NewRecord::default() });
        let batches = vec![(partition, batch.build())];
        self.command(Command::Produce(Produce { batches }))
    }

    /// The disk gets on with what it has to do.
    fn progress(&mut self) -> Result<(), String> {
        if self.in_flight.is_some() {
            self.finish_write()?;
        }
        for _ in 0..self.random.below(6) {
            self.run_op()?;
        }
        Ok(())
    }

    fn run_op(&mut self) -> Result<(), String> {
        let Some((job, ops)) = self.jobs.front_mut() else { return Ok(()) };
        let job = *job;
        if let Some(op) = ops.pop_front() {
            self.storage.perform(&op).map_err(|fault| fault.to_string())?;
        }
        if ops.is_empty() {
            self.jobs.pop_front();
            self.step(Input::DiskDone { job, result: Ok(()) })?;
        }
        Ok(())
    }

    /// Nothing happens for a while.
    fn idle(&mut self) -> Result<(), String> {
        self.progress()?;
        let due_ms = self.shard.as_ref().expect("started").next_deadline_ms();
        self.now_ms = due_ms.unwrap_or(0).max(self.now_ms + 1);
        self.step(Input::Tick)
    }

    fn finish_write(&mut self) -> Result<(), String> {
        let write = self.in_flight.take().expect("the caller looked");
        recovery::perform_write(&mut self.storage, &write).map_err(|fault| fault.to_string())?;
        let sequence = write.sequence;
        self.log.on_durable(write);
        self.step(Input::Durable(sequence))
    }

    fn step(&mut self, input: Input) -> Result<(), String> {
        let (now, mut effects) = (self.now(), Vec::new());
        let shard = self.shard.as_mut().expect("started");
        shard.step(now, input, &mut effects);
        shard.flush(now, &mut effects);
        self.perform(effects)
    }

    fn perform(&mut self, effects: Vec<Effect>) -> Result<(), String> {
        for effect in effects {
            match effect {
                Effect::Write(write) => self.on_write(write)?,
                Effect::Disk { job, ops } => self.jobs.push_back((job, ops.into())),
                Effect::Plan(files) => self.step(Input::Planned(files.plan()))?,
                Effect::ReadMerge(plan) => {
                    let storage = &self.storage;
                    let mut open = |file: &FileName| {
                        let bytes = storage.file(file).ok_or(io::ErrorKind::NotFound)?;
                        Ok(Bytes::copy_from_slice(bytes))
                    };
                    let read = plan.read(&mut open);
                    let result = read
                        .map_err(|(file, fault)| ReadFault::Corrupt(format!("{file}: {fault}")));
                    self.step(Input::MergeRead(result))?;
                }
                Effect::Routes(routes) => {
                    let ids = routes.ids.values().flat_map(|topic| {
                        (0..topic.partition_count)
                            .map(|index| PartitionId { topic: topic.id, index })
                    });
                    self.partitions = ids.collect();
                }
                Effect::Halt(why) => return Err(format!("the shard halts: {why}")),
                Effect::Reply { reply: Reply::Produce(_) | Reply::Refused(_), .. }
                | Effect::Reply { reply: Reply::Catalog(_), .. } => {}
                Effect::Verify(_) | Effect::Notice(_) => {}
                Effect::Reply { .. }
                | Effect::Mesh { .. }
                | Effect::Read { .. }
                | Effect::Call { .. } => {
                    return Err(format!("nobody asked for {effect:?}"));
                }
            }
        }
        Ok(())
    }

    /// A frame is on its way: what if the machine ended now?
    fn on_write(&mut self, write: FrameWrite) -> Result<(), String> {
        let options = self.log_options();
        if self.log.on_write(&mut self.storage, options, &write)? {
            self.open_torn(&write)?;
        }
        self.in_flight = Some(write);
        Ok(())
    }

    /// Opens the whole shard on one image that lost the write.
    fn open_torn(&mut self, write: &FrameWrite) -> Result<(), String> {
        let mut storage = self.storage.clone();
        let sectors = write.bytes.len() / SECTOR_SIZE;
        let missing = self.random.below(sectors as u64) as usize;
        if !tear(&mut storage, write, |at| at != missing) {
            return Ok(());
        }
        let wanted = ends(self.shard.as_ref().expect("it wrote this"));
        let opened = Shard::open(&mut storage, self.options.clone(), self.now(), &mut |_| {})
            .map_err(|error| format!("frame {}, sector {missing}: {error}", write.sequence))?;
        let found = ends(&opened.shard);
        if found != wanted {
            return Err(format!(
                "frame {} without sector {missing}: ends {found:?}, acknowledged {wanted:?}",
                write.sequence
            ));
        }
        self.log.counts.opened += 1;
        Ok(())
    }

    /// The machine ends with any sectors of the write in flight.
    fn crash(&mut self) -> Result<(), String> {
        if let Some(write) = self.in_flight.take() {
            let percent = self.random.choose(&[0, 50, 90, 100]);
            let random = &mut self.random;
            match tear(&mut self.storage, &write, |_| random.percent(percent)) {
                true => self.log.attempts.push(write),
                false => self.log.on_durable(write),
            }
        }
        self.start()
    }

    /// A clean stop, if nothing is open; else an end like any other.
    fn stop(&mut self) -> Result<(), String> {
        let now = self.now();
        let shard = self.shard.as_mut().expect("started");
        if shard.is_quiet()
            && let Some(seal) = shard.seal(now)
        {
            self.on_write(seal)?;
            let seal = self.in_flight.take().expect("it was just submitted");
            recovery::perform_write(&mut self.storage, &seal).map_err(|fault| fault.to_string())?;
            self.log.on_durable(seal);
            return self.start();
        }
        self.crash()
    }

    fn start(&mut self) -> Result<(), String> {
        self.jobs.clear();
        self.in_flight = None;
        self.shard = None;
        self.now_ms += 1000;
        let (options, now) = (self.log_options(), self.now());
        let mut storage =
            Starting { storage: &mut self.storage, options, log: &mut self.log, fault: None };
        // A start draws new nonces.
        self.options.seed = [self.random.bits(), self.random.bits()];
        let opened = Shard::open(&mut storage, self.options.clone(), now, &mut |_| {});
        if let Some(why) = storage.fault {
            return Err(format!("the seal of a start: {why}"));
        }
        let mut shard = opened.map_err(|error| format!("no start: {error}"))?.shard;
        let mut effects = Vec::new();
        shard.start(&mut effects);
        self.shard = Some(shard);
        self.perform(effects)
    }
}

/// Without partitions that have nothing durable: their topic may be in the frame in flight.
fn ends(shard: &Shard) -> Ends {
    shard.partition_ends().filter(|(_, end)| *end > 0).collect()
}

/// Writes those sectors for which `is_written` says so; false if the frame is whole all the same.
fn tear(
    storage: &mut MemoryStorage,
    write: &FrameWrite,
    mut is_written: impl FnMut(usize) -> bool,
) -> bool {
    let file = storage.file_mut(&segment::file_name(write.segment));
    let place = &mut file[write.offset as usize..][..write.bytes.len()];
    for (at, sector) in write.bytes.chunks(SECTOR_SIZE).enumerate() {
        if is_written(at) {
            place[at * SECTOR_SIZE..][..SECTOR_SIZE].copy_from_slice(sector);
        }
    }
    *place != *write.bytes
}

/// The disk during a start, whose one write to a segment is the seal.
struct Starting<'a> {
    storage: &'a mut MemoryStorage,
    options: LogOptions,
    log: &'a mut Known,
    fault: Option<String>,
}

impl Storage for Starting<'_> {
    fn list(&self) -> io::Result<Vec<(FileName, u64)>> {
        self.storage.list()
    }

    fn read(&self, file: &FileName, offset: u64, size: usize) -> io::Result<Bytes> {
        self.storage.read(file, offset, size)
    }

    fn perform(&mut self, op: &DiskOp) -> Result<(), DiskFault> {
        if let DiskOp::Write { file, offset, pieces } = op
            && let NameKind::Segment(id) = segment::parse_name(file)
        {
            let bytes = Bytes::from(pieces.concat());
            let header = FrameHeader::decode(&bytes).expect("only frames are written to segments");
            let sequence = header.sequence();
            let write =
                FrameWrite { sequence, kind: header.kind(), segment: id, offset: *offset, bytes };
            if let Err(why) = self.log.on_write(self.storage, self.options, &write) {
                self.fault.get_or_insert(why);
            }
            self.log.on_durable(write);
        }
        self.storage.perform(op)
    }
}
