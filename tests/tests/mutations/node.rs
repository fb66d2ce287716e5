//! One shard on a disk in memory, driven by hand: small enough that a scenario shows one promise.

use std::collections::{BTreeMap, VecDeque};

use tidemill::batch::{BatchBuilder, NewRecord, RecordBatch};
use tidemill::catalog::CatalogLimits;
use tidemill::command::{
    Appended, CatalogCommand, Command, GroupCommand, GroupReply, NewTopic, Produce, Refusal, Reply,
    Ticket,
};
use tidemill::effect::{Effect, Input, Now};
use tidemill::group::GroupLimits;
use tidemill::shard::{OpenError, Shard, ShardOptions};
use tidemill_wal::commit::FrameWrite;
use tidemill_wal::disk::{DiskOp, MemoryStorage, Storage};
use tidemill_wal::format::{FileName, PartitionId, ShardId};
use tidemill_wal::recovery::perform_write;
use tidemill_wal::segment;

/// A shard without work for this long writes an idle frame.
pub const IDLE_FRAME_MS: u64 = 100;

/// How often retention is looked at.
pub const RETENTION_CHECK_MS: u64 = 1000;

/// The node and what is on its way.
pub struct Node {
    /// Everything that is durable, for nothing here is anything else.
    pub disk: MemoryStorage,
    /// What stays on its way until this says otherwise.
    pub holds: fn(&Effect) -> bool,
    /// What is on its way.
    pub held: VecDeque<Effect>,
    /// Every frame that was written, the newest last.
    pub frames: Vec<FrameWrite>,
    shard: Shard,
    options: ShardOptions,
    now: Now,
    inbox: VecDeque<Input>,
    replies: BTreeMap<u64, Reply>,
    next_ticket: u64,
}

fn options() -> ShardOptions {
    ShardOptions {
        id: ShardId(0),
        shard_count: 1,
        node: [7; 16],
        seed: [1, 2],
        segment_size: 96 << 10,
        segment_count_max: 4,
        catalog: CatalogLimits {
            partition_count_default: 1,
            topic_count_max: 10,
            partition_count_max: 100,
            retention_ms: None,
            retention_bytes: None,
            batch_size_max: 64 << 10,
            batch_size_limit: 64 << 10,
        },
        group: GroupLimits { initial_rebalance_delay_ms: 0, ..GroupLimits::default() },
        idle_frame_ms: IDLE_FRAME_MS,
        producer_expiry_ms: 3_600_000,
        retention_check_ms: RETENTION_CHECK_MS,
        delta_size_max: 64 << 20,
        disk_reserve_size: 0,
        disk_full_retry_ms: 10,
        scrub_rate: 0,
        settle_sync_size: 1 << 20,
        copied_at_once: usize::MAX,
        readers_max: 10,
        waiting_batches_size_max: 8 << 20,
        topologies: Vec::new(),
        state_budget: u64::MAX,
    }
}

impl Node {
    /// A new node.
    pub fn new() -> Self {
        Self::open(MemoryStorage::new(), options()).expect("an empty disk")
    }

    /// A new node that makes a snapshot after every settle round.
    pub fn with_many_snapshots() -> Self {
        let options = ShardOptions { delta_size_max: 1, ..options() };
        Self::open(MemoryStorage::new(), options).expect("an empty disk")
    }

    fn open(mut disk: MemoryStorage, options: ShardOptions) -> Result<Self, OpenError> {
        let now = Now { monotonic_ms: 0, wall_ms: 1_700_000_000_000 };
        let opened = Shard::open(&mut disk, options.clone(), now, &mut |_| {})?;
        Ok(Self {
            disk,
            holds: nothing,
            held: VecDeque::new(),
            frames: Vec::new(),
            shard: opened.shard,
            options,
            now,
            inbox: VecDeque::new(),
            replies: BTreeMap::new(),
            next_ticket: 0,
        })
    }

    /// The power goes and comes back.
    pub fn restart(self) -> Result<Self, OpenError> {
        Self::open(self.disk, self.options)
    }

    /// A clean stop.
    pub fn seal(&mut self) {
        if let Some(seal) = self.shard.seal(self.now) {
            perform_write(&mut self.disk, &seal).expect("room");
            self.frames.push(seal);
        }
    }

    /// Damages one bit in the body of a frame that was written.
    pub fn flip(&mut self, frame: &FrameWrite) {
        let at = frame.offset as usize + 200;
        self.disk.file_mut(&segment::file_name(frame.segment))[at] ^= 1;
    }

    /// Asks something, and waits until nothing happens any more.
    pub fn ask(&mut self, command: Command) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket { origin: ShardId(0), id: self.next_ticket };
        self.inbox.push_back(Input::Command { ticket, command });
        self.run();
        ticket
    }

    /// The answer, if it is there.
    pub fn reply(&mut self, ticket: Ticket) -> Option<Reply> {
        self.replies.remove(&ticket.id)
    }

    /// Asks something that is answered at once.
    pub fn answer(&mut self, command: Command) -> Reply {
        let ticket = self.ask(command);
        self.reply(ticket).expect("it is answered")
    }

    /// Asks a group.
    pub fn group(&mut self, command: GroupCommand) -> GroupReply {
        match self.answer(Command::Group(command)) {
            Reply::Group(reply) => reply,
            reply => panic!("not from a group: {reply:?}"),
        }
    }

    /// Makes a topic of one partition.
    pub fn make_topic(&mut self, name: &str, config: &[(&str, &str)]) -> PartitionId {
        let config = config.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        let topic = NewTopic {
            name: name.into(),
            partition_count: Some(1),
            config: config.collect(),
            automatic: false,
        };
        let create = CatalogCommand::CreateTopics { topics: vec![topic], validate_only: false };
        match self.answer(Command::Catalog(create)) {
            Reply::Catalog(results) => {
                let topic = results[0].as_ref().expect("a new topic").topic;
                PartitionId { topic, index: 0 }
            }
            reply => panic!("{reply:?}"),
        }
    }

    /// Appends a batch.
    pub fn produce(&mut self, id: PartitionId, batch: RecordBatch) -> Result<Appended, Refusal> {
        match self.answer(Command::Produce(Produce { batches: vec![(id, batch)] })) {
            Reply::Produce(mut results) => results.remove(0),
            reply => panic!("{reply:?}"),
        }
    }

    /// The frame that is on its way.
    pub fn held_frame(&self) -> Option<&FrameWrite> {
        self.held.iter().find_map(|effect| match effect {
            Effect::Write(write) => Some(write),
            _ => None,
        })
    }

    /// Where a partition ends.
    pub fn newest_end(&mut self, partition: PartitionId) -> u64 {
        match self.answer(Command::DescribePartitions(vec![partition])) {
            Reply::DescribePartitions(facts) => facts[0].as_ref().expect("it is there").durable_end,
            reply => panic!("{reply:?}"),
        }
    }

    /// Time passes.
    pub fn pass(&mut self, ms: u64) {
        self.now.monotonic_ms += ms;
        self.now.wall_ms += ms as i64;
        self.inbox.push_back(Input::Tick);
        self.run();
    }

    /// Steps and performs until nothing happens any more.
    pub fn run(&mut self) {
        loop {
            let mut effects = Vec::new();
            while self.shard.accepts() || !matches!(self.inbox.front(), Some(Input::Command { .. }))
            {
                let Some(input) = self.inbox.pop_front() else { break };
                self.shard.step(self.now, input, &mut effects);
            }
            self.shard.flush(self.now, &mut effects);
            let held = std::mem::take(&mut self.held);
            effects.splice(0..0, held);
            let count = effects.len();
            effects.into_iter().for_each(|effect| self.perform(effect));
            if self.inbox.is_empty() && self.held.len() == count {
                return;
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            effect if (self.holds)(&effect) => self.held.push_back(effect),
            Effect::Write(write) => {
                perform_write(&mut self.disk, &write).expect("room");
                self.inbox.push_front(Input::Durable(write.sequence));
                self.frames.push(write);
            }
            Effect::Disk { job, ops } => {
                let result = ops.iter().try_for_each(|op: &DiskOp| self.disk.perform(op));
                self.inbox.push_back(Input::DiskDone { job, result });
            }
            Effect::Reply { ticket, reply } => {
                let old = self.replies.insert(ticket.id, reply);
                assert!(old.is_none(), "one reply to each command");
            }
            Effect::Plan(files) => self.inbox.push_back(Input::Planned(files.plan())),
            Effect::ReadMerge(plan) => {
                let mut open = |file: &FileName| self.disk.read(file, 0, usize::MAX);
                let runs = plan.read(&mut open).expect("whole");
                self.inbox.push_back(Input::MergeRead(Ok(runs)));
            }
            Effect::Routes(_) | Effect::Notice(_) | Effect::Verify(_) => {}
            Effect::Mesh { .. } | Effect::Read { .. } | Effect::Call { .. } | Effect::Halt(_) => {
                panic!("not in these scenarios: {effect:?}")
            }
        }
    }

    /// The newest frame that was written.
    pub fn newest_frame(&self) -> FrameWrite {
        self.frames.last().expect("a frame").clone()
    }
}

/// Nothing is held.
pub fn nothing(_: &Effect) -> bool {
    false
}

/// Writes of frames.
pub fn is_frame(effect: &Effect) -> bool {
    matches!(effect, Effect::Write(_))
}

/// Jobs of the disk.
pub fn is_job(effect: &Effect) -> bool {
    matches!(effect, Effect::Disk { .. })
}

/// Plans of settle rounds.
pub fn is_plan(effect: &Effect) -> bool {
    matches!(effect, Effect::Plan(_))
}

/// Reads for merges.
pub fn is_merge(effect: &Effect) -> bool {
    matches!(effect, Effect::ReadMerge(_))
}

/// A batch of one record, of a producer with this epoch and sequence.
pub fn batch_of(producer_epoch: i16, sequence: i32, size: usize) -> RecordBatch {
    let mut builder = BatchBuilder::new().producer(7, producer_epoch, sequence);
    builder.push(NewRecord { value: Some(&vec![b'v'; size]), ..NewRecord::default() });
    builder.build()
}
