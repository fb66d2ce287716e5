//! One shard on a disk in memory: what clients can do to its frames.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tidemill_wal::disk::{DiskOp, MemoryStorage, Storage};
use tidemill_wal::format::{PartitionId, ShardId, TopicId};
use tidemill_wal::limits::{FRAME_SIZE_MAX, SEGMENT_SIZE_MIN};
use tidemill_wal::segment;

use super::{Shard, ShardOptions};
use crate::batch::{BatchBuilder, NewRecord};
use crate::catalog::CatalogLimits;
use crate::command::{
    CatalogCommand, Command, CommittedOffset, Fetch, FetchPartition, GroupCommand, GroupReply,
    Join, MemberRef, NewTopic, OffsetCommit, Produce, Refusal, Reply, Sync, Ticket,
};
use crate::effect::{CallId, CallRequest, Effect, Input, JobId, MeshMessage, Now};
use crate::group::GroupLimits;

mod neighbours;
mod topologies;

struct World {
    disk: MemoryStorage,
    shard: Shard,
    now: Now,
    inbox: VecDeque<Input>,
    replies: BTreeMap<u64, Reply>,
    next_ticket: u64,
    frames: usize,
    /// Jobs of the disk are not done until they are let go.
    holds_jobs: bool,
    held: Vec<(JobId, Vec<DiskOp>)>,
    /// Blocking calls that were asked for, until a test takes them.
    calls: Vec<(CallId, CallRequest)>,
    /// What other shards were sent, until a test takes it.
    sent: Vec<(ShardId, MeshMessage)>,
}

fn options() -> ShardOptions {
    ShardOptions {
        id: ShardId(0),
        shard_count: 1,
        node: [7; 16],
        seed: [1, 2],
        segment_size: SEGMENT_SIZE_MIN,
        segment_count_max: 8,
        catalog: CatalogLimits {
            partition_count_default: 1,
            topic_count_max: 10,
            partition_count_max: 100,
            retention_ms: None,
            retention_bytes: None,
            batch_size_max: 1 << 20,
            batch_size_limit: 1 << 20,
        },
        group: GroupLimits { initial_rebalance_delay_ms: 0, ..GroupLimits::default() },
        idle_frame_ms: 1000,
        producer_expiry_ms: 1000,
        retention_check_ms: 1000,
        delta_size_max: 64 << 20,
        disk_reserve_size: 0,
        disk_full_retry_ms: 1000,
        scrub_rate: 0,
        settle_sync_size: 1 << 20,
        copied_at_once: 256,
        readers_max: 10,
        waiting_batches_size_max: 8 << 20,
        topologies: Vec::new(),
        state_budget: u64::MAX,
    }
}

impl World {
    fn new() -> Self {
        Self::with(options())
    }

    fn with(options: ShardOptions) -> Self {
        Self::open(MemoryStorage::new(), options, 1)
    }

    fn open(mut disk: MemoryStorage, options: ShardOptions, next_ticket: u64) -> Self {
        let now = Now { monotonic_ms: 0, wall_ms: 1_700_000_000_000 };
        let opened = Shard::open(&mut disk, options, now, &mut |_| {}).expect("a good disk");
        let (inbox, replies) = (VecDeque::new(), BTreeMap::new());
        let shard = opened.shard;
        let (frames, holds_jobs, held, calls) = (0, false, Vec::new(), Vec::new());
        let sent = Vec::new();
        Self {
            disk,
            shard,
            now,
            inbox,
            replies,
            next_ticket,
            frames,
            holds_jobs,
            held,
            calls,
            sent,
        }
    }

    /// The power goes and comes back.
    fn restart(self) -> Self {
        self.restart_with(options())
    }

    fn restart_with(self, options: ShardOptions) -> Self {
        Self::open(self.disk, options, self.next_ticket)
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket { origin: ShardId(0), id: self.next_ticket }
    }

    fn ask(&mut self, command: Command) -> Ticket {
        let ticket = self.ticket();
        self.inbox.push_back(Input::Command { ticket, command });
        self.run();
        ticket
    }

    fn answer(&mut self, command: Command) -> Reply {
        let ticket = self.ask(command);
        self.replies.remove(&ticket.id).expect("it is answered")
    }

    fn group(&mut self, command: GroupCommand) -> GroupReply {
        match self.answer(Command::Group(command)) {
            Reply::Group(reply) => reply,
            other => panic!("not from a group: {other:?}"),
        }
    }

    /// Steps and performs until nothing happens any more.
    fn run(&mut self) {
        loop {
            let mut effects = Vec::new();
            while self.shard.accepts() || !matches!(self.inbox.front(), Some(Input::Command { .. }))
            {
                let Some(input) = self.inbox.pop_front() else { break };
                self.shard.step(self.now, input, &mut effects);
            }
            let has_more = self.shard.process(self.now, &mut || true, &mut effects);
            self.shard.flush(self.now, &mut effects);
            if !has_more && effects.is_empty() && self.inbox.is_empty() {
                return;
            }
            for effect in effects {
                self.perform(effect);
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Write(write) => {
                assert!(write.bytes.len() <= FRAME_SIZE_MAX);
                self.frames += 1;
                let file = segment::file_name(write.segment);
                let (offset, pieces) = (write.offset, vec![write.bytes]);
                self.disk.perform(&DiskOp::Write { file, offset, pieces }).expect("room");
                self.inbox.push_front(Input::Durable(write.sequence));
            }
            Effect::Disk { job, ops } if self.holds_jobs => self.held.push((job, ops)),
            Effect::Disk { job, ops } => {
                let result = ops.iter().try_for_each(|op| self.disk.perform(op));
                self.inbox.push_back(Input::DiskDone { job, result });
            }
            Effect::Reply { ticket, reply } => {
                let old = self.replies.insert(ticket.id, reply);
                assert!(old.is_none(), "one reply to each command");
            }
            Effect::Plan(files) => self.inbox.push_back(Input::Planned(files.plan())),
            Effect::Call { call, request } => self.calls.push((call, request)),
            Effect::Routes(_) | Effect::Notice(_) | Effect::Verify(_) => {}
            Effect::Mesh { to, message } => self.sent.push((to, message)),
            Effect::Read { .. } | Effect::ReadMerge(_) | Effect::Halt(_) => {
                panic!("not in these tests: {effect:?}")
            }
        }
    }

    /// The disk does its work again, and what it was asked meanwhile.
    fn let_jobs_go(&mut self) {
        self.holds_jobs = false;
        for (job, ops) in std::mem::take(&mut self.held) {
            self.perform(Effect::Disk { job, ops });
        }
        self.run();
    }

    fn make_topic(&mut self) -> TopicId {
        let topic = NewTopic {
            name: "a".into(),
            partition_count: Some(1),
            config: Vec::new(),
            automatic: false,
        };
        let create = CatalogCommand::CreateTopics { topics: vec![topic], validate_only: false };
        match self.answer(Command::Catalog(create)) {
            Reply::Catalog(results) => results[0].as_ref().expect("a new topic").topic,
            other => panic!("{other:?}"),
        }
    }
}

fn member(generation: i32, member_id: &str) -> MemberRef {
    MemberRef { group: "g".into(), generation, member_id: member_id.into(), instance_id: None }
}

fn join(member_id: &str) -> Join {
    Join {
        group: "g".into(),
        member_id: member_id.into(),
        instance_id: None,
        client_id: "c".into(),
        client_host: "h".into(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 10_000,
        protocol_type: "consumer".into(),
        protocols: vec![("range".into(), Bytes::from_static(b"s"))],
        member_id_required: false,
        can_skip_assignment: false,
    }
}

#[test]
fn a_commit_larger_than_a_frame_takes_several_and_is_whole_after_a_restart() {
    let mut world = World::new();
    let topic = world.make_topic();
    let partition = PartitionId { topic, index: 0 };
    let offset = |offset| CommittedOffset { offset, leader_epoch: -1, metadata: "m".repeat(4096) };
    let count = FRAME_SIZE_MAX as u64 / 4096 + 100;
    let offsets = (0..count).map(|number| (partition, offset(number))).collect();
    let commit = OffsetCommit { member: member(-1, ""), offsets };
    let frames = world.frames;
    let GroupReply::OffsetCommit(results) = world.group(GroupCommand::OffsetCommit(commit)) else {
        panic!("a reply to a commit");
    };
    assert!(results.len() as u64 == count && results.iter().all(Result::is_ok));
    assert_eq!(world.frames, frames + 2);
    let mut world = world.restart();
    let fetch = GroupCommand::OffsetFetch { group: "g".into(), partitions: None };
    let last = vec![(partition, Some(offset(count - 1)))];
    assert_eq!(world.group(fetch), GroupReply::OffsetFetch(Ok(last)));
}

#[test]
fn what_follows_a_full_frame_waits_for_the_one_that_it_depends_on() {
    let mut world = World::new();
    let topic = world.make_topic();
    let partition = PartitionId { topic, index: 0 };
    let offset = CommittedOffset { offset: 1, leader_epoch: -1, metadata: "m".repeat(4096) };
    let offsets = vec![(partition, offset); FRAME_SIZE_MAX / 4096];
    let commit = OffsetCommit { member: member(-1, ""), offsets };
    let mut effects = Vec::new();
    let ticket = world.ticket();
    let command = Command::Group(GroupCommand::OffsetCommit(commit));
    world.shard.step(world.now, Input::Command { ticket, command }, &mut effects);
    assert!(!world.shard.accepts() && !world.shard.is_quiet());
    for frame in 0..2 {
        assert!(effects.is_empty(), "nothing is answered before frame {frame} is durable");
        world.shard.flush(world.now, &mut effects);
        let write = effects.iter().find_map(|effect| match effect {
            Effect::Write(write) => Some(write.sequence),
            _ => None,
        });
        effects.clear();
        let durable = Input::Durable(write.expect("a frame"));
        world.shard.step(world.now, durable, &mut effects);
    }
    assert!(matches!(effects[..], [Effect::Reply { .. }]), "{effects:?}");
    assert!(world.shard.accepts() && world.shard.is_quiet());
}

#[test]
fn a_group_that_would_not_fit_one_entry_of_state_is_refused() {
    let mut world = World::new();
    let GroupReply::Join(Ok(joined)) = world.group(GroupCommand::Join(join(""))) else {
        panic!("the first member joins at once");
    };
    let id = joined.member_id;
    let sync = |size: usize| {
        GroupCommand::Sync(Sync {
            member: member(joined.generation, &id),
            protocol_type: None,
            protocol: None,
            assignments: vec![(id.clone(), vec![b'a'; size].into())],
        })
    };
    let refused = GroupReply::Sync(Err(Refusal::PolicyViolation));
    assert_eq!(world.group(sync(4 << 20)), refused);
    assert!(matches!(world.group(sync(2 << 20)), GroupReply::Sync(Ok(_))));
    assert!(matches!(world.restart().group(sync(0)), GroupReply::Sync(Ok(_))));
}

#[test]
fn a_command_that_is_cancelled_while_it_waits_still_has_its_one_reply() {
    let mut world = World::new();
    let topic = world.make_topic();
    let wanted =
        FetchPartition { partition: PartitionId { topic, index: 0 }, offset: 0, bytes_max: 100 };
    let fetch = Fetch { partitions: vec![wanted], bytes_min: 1, bytes_max: 100, wait_ms: 1000 };
    let fetch = world.ask(Command::Fetch(fetch));
    let GroupReply::Join(Ok(_)) = world.group(GroupCommand::Join(join(""))) else {
        panic!("the first member joins at once");
    };
    // The first member has not joined the next generation yet.
    let held = world.ask(Command::Group(GroupCommand::Join(join(""))));
    for ticket in [fetch, held] {
        assert!(!world.replies.contains_key(&ticket.id), "it waits");
        world.inbox.push_back(Input::Cancel(ticket));
        world.inbox.push_back(Input::Cancel(ticket));
        world.run();
        assert!(matches!(world.replies[&ticket.id], Reply::Refused(_)));
    }
}

#[test]
fn no_batch_passes_a_first_one_that_was_refused() {
    let mut world = World::new();
    let topic = world.make_topic();
    let mut produce = |sequence| {
        let mut builder = BatchBuilder::new().producer(7, 0, sequence);
        builder.push(NewRecord { value: Some(b"v"), ..NewRecord::default() });
        let batches = vec![(PartitionId { topic, index: 0 }, builder.build())];
        match world.answer(Command::Produce(Produce { batches })) {
            Reply::Produce(results) => results[0].map(|appended| appended.base_offset),
            other => panic!("{other:?}"),
        }
    };
    // Its first batch came before its partition, or found no room.
    assert_eq!(produce(1), Err(Refusal::OutOfOrderSequence));
    for sequence in 0..3 {
        assert_eq!(produce(sequence), Ok(sequence as u64));
    }
}

#[test]
fn what_is_deleted_before_it_settles_makes_room_on_a_full_disk() {
    let mut world = World::new();
    let partition = PartitionId { topic: world.make_topic(), index: 0 };
    let batch = || {
        let mut builder = BatchBuilder::new();
        let value = vec![7; 1000 << 10];
        builder.push(NewRecord { value: Some(&value), ..NewRecord::default() });
        builder.build()
    };
    let produce = |world: &mut World| {
        let produce = Produce { batches: vec![(partition, batch())] };
        match world.answer(Command::Produce(produce)) {
            Reply::Produce(results) => results[0].map(|appended| appended.base_offset),
            other => panic!("{other:?}"),
        }
    };
    // Room for one more segment, and not for what has to settle then.
    let used: u64 = world.disk.list().expect("in memory").iter().map(|(_, size)| size).sum();
    world.disk.limit((used + SEGMENT_SIZE_MIN + (4 << 20)) as usize);
    let mut end = 0;
    let refusal = loop {
        match produce(&mut world) {
            Ok(offset) => end = offset + 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, Refusal::DiskFull);
    let delete = Command::DeleteRecords(vec![(partition, Some(end - 1))]);
    let Reply::DeleteRecords(deleted) = world.answer(delete) else { panic!("a deletion") };
    assert_eq!(deleted, [Ok(end - 1)]);
    // One try plans what is left of the round, the next one writes it and has segments again.
    for _ in 0..2 {
        world.now.monotonic_ms += 1000;
        world.run();
    }
    assert_eq!(produce(&mut world), Ok(end));
    let mut world = world.restart();
    assert_eq!(produce(&mut world), Ok(end + 1));
}

/// Asks for a batch with a value of this size.
fn batch_of(partition: PartitionId, size: usize) -> Command {
    let mut builder = BatchBuilder::new();
    let value = vec![7; size];
    builder.push(NewRecord { value: Some(&value), ..NewRecord::default() });
    Command::Produce(Produce { batches: vec![(partition, builder.build())] })
}

const LARGE: usize = 1000 << 10;

/// What became of a produce: its offset or its refusal; none yet.
fn outcome(world: &mut World, ticket: Ticket) -> Option<Result<u64, Refusal>> {
    match world.replies.remove(&ticket.id) {
        Some(Reply::Produce(results)) => Some(results[0].map(|appended| appended.base_offset)),
        Some(Reply::Refused(refusal)) => Some(Err(refusal)),
        None => None,
        Some(other) => panic!("{other:?}"),
    }
}

/// Fills the log, while nothing makes room, until a large batch waits; `end` is where it will be.
fn fill_until_one_waits(world: &mut World, partition: PartitionId, end: &mut u64) -> Ticket {
    world.holds_jobs = true;
    loop {
        let ticket = world.ask(batch_of(partition, LARGE));
        match outcome(world, ticket) {
            Some(result) => assert_eq!(result, Ok(*end)),
            None => return ticket,
        }
        *end += 1;
    }
}

#[test]
fn batches_wait_in_order_for_room_that_settling_makes_and_are_refused_after_a_while() {
    let mut world = World::new();
    let partition = PartitionId { topic: world.make_topic(), index: 0 };
    let mut end = 0;
    for round in 0..2 {
        let first = fill_until_one_waits(&mut world, partition, &mut end);
        // There is room for the small one, which must not pass the first all the same.
        let [small, left, last] =
            [1, LARGE, LARGE].map(|size| world.ask(batch_of(partition, size)));
        let all = [first, small, left, last];
        let other = world.answer(Command::DescribeStorage);
        assert!(matches!(other, Reply::DescribeStorage(_)), "others do not wait: {other:?}");
        // It was sent, and whoever sent it is gone: as if it had been appended at once.
        world.inbox.push_back(Input::Cancel(left));
        world.now.monotonic_ms = world.shard.room_deadline_ms().expect("some wait") - 1;
        world.run();
        assert_eq!(all.map(|ticket| outcome(&mut world, ticket)), [None; 4]);
        let expected = if round == 0 {
            world.let_jobs_go();
            [end, end + 1, end + 2, end + 3].map(|offset| Some(Ok(offset)))
        } else {
            world.now.monotonic_ms += 1;
            world.run();
            // Nothing is in front of the small one any more.
            [Err(Refusal::Busy), Ok(end), Err(Refusal::Busy), Err(Refusal::Busy)].map(Some)
        };
        assert_eq!(all.map(|ticket| outcome(&mut world, ticket)), expected);
        end += 4;
    }
}

#[test]
fn more_batches_than_may_wait_are_refused_at_once() {
    let mut world = World::new();
    let partition = PartitionId { topic: world.make_topic(), index: 0 };
    let _first = fill_until_one_waits(&mut world, partition, &mut 0);
    let waiting = options().waiting_batches_size_max / LARGE;
    for _ in 1..waiting {
        let ticket = world.ask(batch_of(partition, LARGE));
        assert_eq!(outcome(&mut world, ticket), None);
    }
    let ticket = world.ask(batch_of(partition, LARGE));
    assert_eq!(outcome(&mut world, ticket), Some(Err(Refusal::Busy)));
    assert_eq!(world.shard.gauges().waiting_batches_size as usize / LARGE, waiting);
}

#[test]
fn a_stop_refuses_the_batches_that_wait() {
    let mut world = World::new();
    let partition = PartitionId { topic: world.make_topic(), index: 0 };
    let first = fill_until_one_waits(&mut world, partition, &mut 0);
    world.inbox.push_back(Input::Stop);
    world.run();
    assert_eq!(outcome(&mut world, first), Some(Err(Refusal::Stopping)));
    world.let_jobs_go();
    assert!(world.shard.is_quiet());
}

#[test]
fn a_log_of_many_segments_takes_batches_though_two_are_ready_at_a_time() {
    for segment_count_max in [31, 32, 48, 1024] {
        let mut world = World::with(ShardOptions { segment_count_max, ..options() });
        let partition = PartitionId { topic: world.make_topic(), index: 0 };
        // More than two segments of the least size hold.
        for offset in 0..60 {
            let ticket = world.ask(batch_of(partition, LARGE));
            assert_eq!(outcome(&mut world, ticket), Some(Ok(offset)), "of {segment_count_max}");
        }
    }
}
