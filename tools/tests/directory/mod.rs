//! A small data directory, written by the real shards: with extents, delta files, snapshots, and
//! frames that have not settled. Every effect is performed at once, so it is the same each time.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tidemill::batch::{BatchBuilder, NewRecord, RecordBatch};
use tidemill::catalog::CatalogLimits;
use tidemill::command::{
    CatalogCommand, Command, CommittedOffset, Fetch, FetchPartition, GroupCommand, MemberRef,
    NewTopic, OffsetCommit, Produce, Refusal, Reply, Ticket,
};
use tidemill::effect::{Effect, ExtentRead, Input, Now, ReadFault, ReadFrom};
use tidemill::group::GroupLimits;
use tidemill::runtime::identity::{FORMAT_VERSION, Identity, shard_directory};
use tidemill::shard::{LogEnd, OpenError, Shard, ShardOptions, agree_on_ends};
use tidemill_wal::disk::{Directory, DirectoryOptions, ExtentMap, Storage};
use tidemill_wal::extent::{ExtentView, ReadFrom as Position};
use tidemill_wal::format::{FileName, PartitionId, SegmentId, ShardId, TopicId};
use tidemill_wal::manifest::{Manifest, load_manifest};
use tidemill_wal::recovery::{WalkItem, perform_write, walk};

pub const SHARDS: u16 = 2;
const SEGMENT_SIZE: u64 = 256 << 10;
const NODE: &str = "0123456789abcdef0123456789abcdef";
const START_MS: i64 = 1_700_000_000_000;

/// Shards that run in this thread.
pub struct Node {
    shards: Vec<Shard>,
    storages: Vec<Directory>,
    inputs: VecDeque<(usize, Input)>,
    replies: BTreeMap<u64, Reply>,
    next_ticket: u64,
    now_ms: u64,
}

fn options(id: u16, delta_size_max: u64) -> ShardOptions {
    ShardOptions {
        id: ShardId(id),
        shard_count: SHARDS,
        node: u128::from_str_radix(NODE, 16).unwrap().to_be_bytes(),
        seed: [7, id.into()],
        segment_size: SEGMENT_SIZE,
        segment_count_max: 16,
        catalog: CatalogLimits {
            partition_count_default: 2,
            topic_count_max: 100,
            partition_count_max: 1000,
            retention_ms: None,
            retention_bytes: None,
            batch_size_max: 1 << 20,
            batch_size_limit: 8 << 20,
        },
        group: GroupLimits::default(),
        idle_frame_ms: 20,
        producer_expiry_ms: 1_000_000_000,
        retention_check_ms: 30_000,
        delta_size_max,
        disk_reserve_size: 1 << 20,
        disk_full_retry_ms: 1000,
        scrub_rate: 0,
        settle_sync_size: 4 << 20,
        copied_at_once: usize::MAX,
        readers_max: 10,
        waiting_batches_size_max: 8 << 20,
        topologies: Vec::new(),
        state_budget: u64::MAX,
    }
}

impl Node {
    /// Opens a directory; makes it if it is not there.
    pub fn open(data: &Path) -> Result<Self, OpenError> {
        // Every delta file is worth a snapshot, so that there are snapshots.
        Self::open_with(data, 1)
    }

    /// Opens a directory whose delta files may grow to a size before there is a snapshot.
    fn open_with(data: &Path, delta_size_max: u64) -> Result<Self, OpenError> {
        if Identity::load(data).unwrap().is_none() {
            let identity =
                Identity { format: FORMAT_VERSION, node: NODE.to_owned(), shards: SHARDS };
            identity.store(data).unwrap();
        }
        let mut node = Self {
            shards: Vec::new(),
            storages: Vec::new(),
            inputs: VecDeque::new(),
            replies: BTreeMap::new(),
            next_ticket: 0,
            now_ms: 0,
        };
        let mut recovered = Vec::new();
        for shard in 0..SHARDS {
            let directory = shard_directory(data, shard);
            let places = DirectoryOptions {
                wal: directory.clone(),
                data: directory,
                // A process that another test just started has every lock until it runs.
                lock_wait: Duration::from_secs(10),
            };
            let mut storage = Directory::open(&places)?;
            let options = options(shard, delta_size_max);
            recovered.push(Shard::recover(&mut storage, options, &mut |_| ())?);
            node.storages.push(storage);
        }
        let ends: Vec<LogEnd> = recovered.iter().map(|it| it.log_end().clone()).collect();
        let cuts = agree_on_ends(&ends).map_err(OpenError::Disagree)?;
        for ((recovered, is_cut), shard) in recovered.into_iter().zip(cuts).zip(0..) {
            let now = node.now();
            let opened = recovered.open(&mut node.storages[shard], is_cut, now)?;
            node.shards.push(opened.shard);
        }
        for shard in 0..node.shards.len() {
            let mut effects = Vec::new();
            node.shards[shard].start(&mut effects);
            node.perform(shard, effects);
        }
        node.run();
        Ok(node)
    }

    fn now(&self) -> Now {
        Now { monotonic_ms: self.now_ms, wall_ms: START_MS + self.now_ms as i64 }
    }

    /// Until nobody has anything to do.
    fn run(&mut self) {
        loop {
            let mut is_busy = false;
            while let Some((shard, input)) = self.inputs.pop_front() {
                is_busy = true;
                let mut effects = Vec::new();
                let now = self.now();
                self.shards[shard].step(now, input, &mut effects);
                self.perform(shard, effects);
            }
            for shard in 0..self.shards.len() {
                let mut effects = Vec::new();
                let now = self.now();
                self.shards[shard].flush(now, &mut effects);
                is_busy |= !effects.is_empty();
                self.perform(shard, effects);
            }
            if !is_busy {
                return;
            }
        }
    }

    fn perform(&mut self, shard: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Write(write) => {
                    perform_write(&mut self.storages[shard], &write).unwrap();
                    self.inputs.push_back((shard, Input::Durable(write.sequence)));
                }
                Effect::Reply { ticket, reply } => _ = self.replies.insert(ticket.id, reply),
                Effect::Mesh { to, message } => {
                    let from = ShardId(shard as u16);
                    self.inputs.push_back((usize::from(to.0), Input::Mesh { from, message }));
                }
                Effect::Disk { job, ops } => {
                    for op in ops {
                        self.storages[shard].perform(&op).unwrap();
                    }
                    self.inputs.push_back((shard, Input::DiskDone { job, result: Ok(()) }));
                }
                Effect::Read { read, request } => {
                    let result = self.read(shard, &request);
                    self.inputs.push_back((shard, Input::ReadDone { read, result }));
                }
                Effect::Plan(files) => self.inputs.push_back((shard, Input::Planned(files.plan()))),
                Effect::ReadMerge(plan) => {
                    let storage = &self.storages[shard];
                    let runs = plan.read(&mut |file| storage.read(file, 0, 64 << 20)).unwrap();
                    self.inputs.push_back((shard, Input::MergeRead(Ok(runs))));
                }
                Effect::Halt(why) => panic!("shard {shard} halts: {why}"),
                Effect::Call { call, .. } => panic!("{call:?}, and there is no topology"),
                Effect::Verify(_) | Effect::Routes(_) | Effect::Notice(_) => {}
            }
        }
    }

    fn read(&self, shard: usize, request: &ExtentRead) -> Result<Vec<Bytes>, ReadFault> {
        let map = ExtentMap::open(&self.storages[shard].path(&request.file)).unwrap();
        let view = ExtentView::open(map.bytes()).unwrap();
        let from = match request.from {
            ReadFrom::Offset(offset) => Position::Offset(offset),
            ReadFrom::Time(time_ms) => Position::Time(time_ms),
        };
        let found = view.read(request.partition, from, request.bytes_max as usize);
        match found.map_err(|damage| ReadFault::Corrupt(damage.to_string()))? {
            Some(range) => Ok(vec![Bytes::copy_from_slice(&map.bytes()[range])]),
            None => Err(ReadFault::Nothing),
        }
    }

    /// Asks a shard and waits for the answer.
    pub fn ask(&mut self, shard: u16, command: Command) -> Reply {
        self.next_ticket += 1;
        let ticket = Ticket { origin: ShardId(shard), id: self.next_ticket };
        self.inputs.push_back((usize::from(shard), Input::Command { ticket, command }));
        self.run();
        self.replies.remove(&ticket.id).expect("every command is answered")
    }

    pub fn create_topic(&mut self, name: &str) -> TopicId {
        let topic = NewTopic {
            name: name.to_owned(),
            partition_count: Some(2),
            config: Vec::new(),
            automatic: false,
        };
        let command = CatalogCommand::CreateTopics { topics: vec![topic], validate_only: false };
        match self.ask(0, Command::Catalog(command)) {
            Reply::Catalog(results) => results[0].as_ref().unwrap().topic,
            other => panic!("{other:?}"),
        }
    }

    /// The shard that owns a partition.
    fn owner(&mut self, partition: PartitionId) -> u16 {
        let is_owner = |reply| match reply {
            Reply::DescribePartitions(results) => results[0].is_ok(),
            other => panic!("{other:?}"),
        };
        (0..SHARDS)
            .find(|shard| is_owner(self.ask(*shard, Command::DescribePartitions(vec![partition]))))
            .expect("some shard owns it")
    }

    /// Appends a batch; returns its first offset.
    pub fn produce(&mut self, partition: PartitionId, batch: RecordBatch) -> Result<u64, Refusal> {
        let shard = self.owner(partition);
        let produce = Produce { batches: vec![(partition, batch)] };
        match self.ask(shard, Command::Produce(produce)) {
            Reply::Produce(results) => results[0].map(|appended| appended.base_offset),
            other => panic!("{other:?}"),
        }
    }

    /// Every offset of a partition: whether its record is there, or what is said instead.
    pub fn offsets(&mut self, partition: PartitionId) -> Vec<Result<(), Refusal>> {
        let shard = self.owner(partition);
        let mut found = Vec::new();
        loop {
            let offset = found.len() as u64;
            let wanted = FetchPartition { partition, offset, bytes_max: 1 << 20 };
            let fetch =
                Fetch { partitions: vec![wanted], bytes_min: 0, bytes_max: 1 << 20, wait_ms: 0 };
            let Reply::Fetch(mut fetched) = self.ask(shard, Command::Fetch(fetch)) else {
                panic!("not an answer to a fetch");
            };
            let fetched = fetched.remove(0);
            if offset == fetched.durable_end {
                return found;
            }
            match fetched.records {
                Err(refusal) => found.push(Err(refusal)),
                Ok(pieces) => {
                    assert!(!pieces.is_empty(), "offset {offset} of {}", fetched.durable_end);
                    for piece in pieces {
                        for batch in tidemill::batch::batches(piece) {
                            let batch = batch.unwrap();
                            assert!(batch.base_offset() <= found.len() as u64, "a gap in silence");
                            while (found.len() as u64) <= batch.last_offset() {
                                found.push(Ok(()));
                            }
                        }
                    }
                }
            }
        }
    }

    pub fn commit_offset(&mut self, group: &str, partition: PartitionId, offset: u64) {
        let member = MemberRef {
            group: group.to_owned(),
            member_id: String::new(),
            instance_id: None,
            generation: -1,
        };
        let committed = CommittedOffset { offset, leader_epoch: -1, metadata: String::new() };
        let commit = OffsetCommit { member, offsets: vec![(partition, committed)] };
        let shard = tidemill::command::group_shard(group, SHARDS).0;
        self.ask(shard, Command::Group(GroupCommand::OffsetCommit(commit)));
    }

    pub fn committed_offset(&mut self, group: &str) -> Option<u64> {
        let shard = usize::from(tidemill::command::group_shard(group, SHARDS).0);
        self.shards[shard].committed().find(|(of, ..)| *of == group).map(|(_, _, offset)| offset)
    }

    /// Time passes: shards become idle.
    pub fn idle(&mut self) {
        self.now_ms += 100;
        for shard in 0..self.shards.len() {
            self.inputs.push_back((shard, Input::Tick));
        }
        self.run();
    }
}

/// A directory with two topics, each with a partition on each shard.
pub struct Golden {
    pub directory: TempDir,
    pub orders: TopicId,
    pub small: TopicId,
}

pub fn partition(topic: TopicId, index: u32) -> PartitionId {
    PartitionId { topic, index }
}

/// A batch of three records and about 12 KB, as an idempotent producer sends it.
pub fn batch(number: i32) -> RecordBatch {
    let mut builder = BatchBuilder::new().producer(11, 0, number * 3);
    for record in 0..3 {
        let value = format!("{number}-{record}-{}", "x".repeat(4000));
        builder.push(NewRecord {
            timestamp_ms: START_MS + i64::from(number),
            key: Some(b"key"),
            value: Some(value.as_bytes()),
            headers: &[(b"origin", Some(b"test"))],
        });
    }
    builder.build()
}

impl Golden {
    /// Writes one, and ends without a clean stop.
    pub fn new() -> Self {
        Self::with(1)
    }

    /// One whose state is in delta files alone.
    pub fn without_snapshots() -> Self {
        Self::with(u64::MAX)
    }

    /// Two topics without records: nothing has settled.
    pub fn with_catalog_in_the_wal() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut node = Node::open(directory.path()).unwrap();
        let orders = node.create_topic("orders");
        let small = node.create_topic("small");
        node.idle();
        Self { directory, orders, small }
    }

    fn with(delta_size_max: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut node = Node::open_with(directory.path(), delta_size_max).unwrap();
        let orders = node.create_topic("orders");
        let small = node.create_topic("small");
        for number in 0..60 {
            for index in 0..2 {
                node.produce(partition(orders, index), batch(number)).unwrap();
                if number % 10 == 0 {
                    node.produce(partition(small, index), batch(number / 10)).unwrap();
                }
            }
            node.commit_offset("readers", partition(orders, 0), number as u64 * 3);
        }
        node.idle();
        Self { directory, orders, small }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn shard(&self, shard: u16) -> PathBuf {
        shard_directory(self.path(), shard)
    }

    pub fn manifest(&self, shard: u16) -> Manifest {
        let directory = Directory::open_read_only(self.shard(shard), self.shard(shard));
        let files = directory.list().unwrap();
        load_manifest(&directory, ShardId(shard), &files).unwrap().expect("a shard that ran")
    }

    /// Where the frames of a segment begin.
    pub fn frames(&self, shard: u16, segment: SegmentId) -> Vec<u64> {
        let directory = Directory::open_read_only(self.shard(shard), self.shard(shard));
        let items = walk(&directory, segment).unwrap().map(Result::unwrap);
        items
            .filter_map(|item| match item {
                WalkItem::Frame(frame) => Some(frame.offset),
                WalkItem::Damage { .. } | WalkItem::End { .. } => None,
            })
            .collect()
    }

    /// Flips one bit.
    pub fn damage(&self, shard: u16, file: &FileName, position: u64) {
        use std::os::unix::fs::FileExt;
        let path = self.shard(shard).join(&*file.0);
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, position).unwrap();
        file.write_all_at(&[byte[0] ^ 4], position).unwrap();
    }
}

/// Runs the tool; its exit code and what it printed.
pub fn dump(arguments: &[&str]) -> (i32, String) {
    end(start(arguments))
}

/// Starts the tool.
pub fn start(arguments: &[&str]) -> Child {
    Process::new(env!("CARGO_BIN_EXE_tidemill-dump"))
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for the tool.
pub fn end(tool: Child) -> (i32, String) {
    let output = tool.wait_with_output().unwrap();
    let code = output.status.code().expect("it was not killed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (code, text + &String::from_utf8_lossy(&output.stderr))
}
