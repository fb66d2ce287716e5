//! What one shard promises, each as a scenario that a break of it ends badly.

use tidemill::command::{
    CatalogCommand, Command, CommittedOffset, Fetch, FetchPartition, GroupCommand, GroupReply,
    Join, Joined, MemberRef, OffsetCommit, Produce, Refusal, Reply, Sync,
};
use tidemill::outbox::Outbox;
use tidemill_wal::disk::Storage;
use tidemill_wal::format::{FrameKind, PartitionId, Sequence, ShardId, TopicId};
use tidemill_wal::manifest::{Manifest, load_manifest};

use super::node::{
    IDLE_FRAME_MS, Node, RETENTION_CHECK_MS, batch_of, is_frame, is_job, is_merge, is_plan, nothing,
};

/// Batches that fill several times what a log holds.
const BATCHES_MAX: i32 = 1000;

fn fetch(partition: PartitionId, offset: u64) -> Command {
    let partitions = vec![FetchPartition { partition, offset, bytes_max: 1 << 20 }];
    Command::Fetch(Fetch { partitions, bytes_min: 1, bytes_max: 1 << 20, wait_ms: 1_000_000 })
}

fn manifest(node: &Node) -> Manifest {
    let files = node.disk.list().expect("memory");
    load_manifest(&node.disk, ShardId(0), &files).expect("whole").expect("it was made")
}

/// An acknowledged frame is damaged after something that says that it was durable.
fn expect_told(say: impl FnOnce(&mut Node)) {
    let mut node = Node::new();
    let partition = node.make_topic("a", &[]);
    node.produce(partition, batch_of(0, 0, 100)).expect("room");
    let acknowledged = node.newest_frame();
    assert_eq!(acknowledged.kind, FrameKind::Steps);
    say(&mut node);
    node.flip(&acknowledged);
    assert!(node.restart().is_err(), "an acknowledged batch is gone in silence");
}

pub fn damage_before_an_idle_time_is_told() {
    expect_told(|node| node.pass(IDLE_FRAME_MS));
}

pub fn damage_before_a_stop_is_told() {
    expect_told(Node::seal);
}

pub fn a_duplicate_waits_for_its_frame() {
    let mut node = Node::new();
    let partition = node.make_topic("a", &[]);
    node.holds = is_frame;
    let produce = || Command::Produce(Produce { batches: vec![(partition, batch_of(0, 0, 100))] });
    let (first, again) = (node.ask(produce()), node.ask(produce()));
    assert!(node.reply(again).is_none(), "a crash now would lose what was acknowledged");
    node.holds = nothing;
    node.run();
    let (first, again) = (node.reply(first), node.reply(again));
    assert!(matches!(&first, Some(Reply::Produce(results)) if results[0].is_ok()));
    assert_eq!(format!("{first:?}"), format!("{again:?}"));
}

pub fn a_reader_is_woken() {
    let mut node = Node::new();
    let partition = node.make_topic("a", &[]);
    let waiting = node.ask(fetch(partition, 0));
    assert!(node.reply(waiting).is_none(), "there is nothing yet");
    node.produce(partition, batch_of(0, 0, 100)).expect("room");
    assert!(node.reply(waiting).is_some(), "the reader sleeps on");
}

pub fn an_old_producer_epoch_is_refused() {
    let mut node = Node::new();
    let partition = node.make_topic("a", &[]);
    node.produce(partition, batch_of(0, 0, 100)).expect("room");
    node.produce(partition, batch_of(1, 0, 100)).expect("room");
    let fenced = node.produce(partition, batch_of(0, 1, 100));
    assert_eq!(fenced.err(), Some(Refusal::InvalidProducerEpoch));
}

fn member(generation: i32, member_id: &str) -> MemberRef {
    MemberRef { group: "g".into(), generation, member_id: member_id.into(), instance_id: None }
}

fn join(node: &mut Node, member_id: &str) -> Joined {
    let join = Join {
        group: "g".into(),
        member_id: member_id.into(),
        instance_id: None,
        client_id: "c".into(),
        client_host: "h".into(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 10_000,
        protocol_type: "consumer".into(),
        protocols: vec![("range".into(), b"s".as_slice().into())],
        member_id_required: false,
        can_skip_assignment: false,
    };
    match node.group(GroupCommand::Join(join)) {
        GroupReply::Join(Ok(joined)) => joined,
        reply => panic!("alone, it joins at once: {reply:?}"),
    }
}

pub fn an_old_generation_is_refused() {
    let mut node = Node::new();
    let partition = node.make_topic("a", &[]);
    let old = join(&mut node, "");
    let member = member(old.generation, &old.member_id);
    let sync = Sync {
        member: member.clone(),
        protocol_type: None,
        protocol: None,
        assignments: Vec::new(),
    };
    assert!(matches!(node.group(GroupCommand::Sync(sync)), GroupReply::Sync(Ok(_))));
    let new = join(&mut node, &old.member_id);
    assert!(new.generation > old.generation);
    let offset = CommittedOffset { offset: 1, leader_epoch: -1, metadata: String::new() };
    let commit = OffsetCommit { member, offsets: vec![(partition, offset)] };
    let refused = GroupReply::OffsetCommit(vec![Err(Refusal::IllegalGeneration)]);
    assert_eq!(node.group(GroupCommand::OffsetCommit(commit)), refused);
}

pub fn retention_keeps_the_newest() {
    let mut node = Node::new();
    let partition = node.make_topic("a", &[("retention.bytes", "4000")]);
    let mut newest = 0;
    for sequence in 0..10 {
        let appended = node.produce(partition, batch_of(0, sequence, 1000)).expect("room");
        newest = appended.base_offset;
    }
    node.pass(RETENTION_CHECK_MS);
    let Reply::Fetch(fetched) = node.answer(fetch(partition, newest)) else {
        panic!("a reply to a fetch");
    };
    assert!(fetched[0].start > 0, "retention does nothing");
    assert!(fetched[0].records.is_ok(), "the newest record is gone: {fetched:?}");
}

pub fn nothing_of_a_deleted_topic_is_settled() {
    let mut node = Node::new();
    let partition = node.make_topic("a", &[]);
    node.holds = is_plan;
    fill(&mut node, partition);
    let delete = CatalogCommand::DeleteTopics(vec![partition.topic]);
    assert!(matches!(node.answer(Command::Catalog(delete)), Reply::Catalog(_)));
    node.holds = nothing;
    node.run();
    node.pass(1);
    let manifest = manifest(&node);
    assert!(manifest.replay_from.0 > 2, "nothing was settled");
    assert!(manifest.extents.is_empty(), "{:?}", manifest.extents);
}

/// Appends until something is held; returns the next sequence.
fn fill(node: &mut Node, partition: PartitionId) -> i32 {
    for sequence in 0..BATCHES_MAX {
        node.produce(partition, batch_of(0, sequence, 8000)).expect("room");
        if !node.held.is_empty() {
            return sequence + 1;
        }
    }
    panic!("nothing was held");
}

pub fn a_full_log_takes_deletions() {
    let mut node = Node::new();
    let partition = node.make_topic("a", &[]);
    // Nothing that was begun ends: the log fills up.
    node.holds = is_job;
    let refused = (0..BATCHES_MAX).find_map(|sequence| {
        let batches = vec![(partition, batch_of(0, sequence, 3000))];
        let ticket = node.ask(Command::Produce(Produce { batches }));
        let reply = node.reply(ticket).or_else(|| {
            // It waits for room, and not for ever.
            node.pass(5_000);
            node.reply(ticket)
        });
        match reply {
            Some(Reply::Produce(results)) => results[0].err(),
            reply => panic!("{reply:?}"),
        }
    });
    assert_eq!(refused, Some(Refusal::Busy));
    let delete = CatalogCommand::DeleteTopics(vec![partition.topic]);
    let deleted = node.answer(Command::Catalog(delete));
    assert!(matches!(deleted, Reply::Catalog(_)), "{deleted:?}");
}

/// A snapshot begins after a settle round, and no frame lies between it and the next round: the
/// delta file of that one is not read with it.
pub fn a_snapshot_has_the_ends_of_now() {
    let mut node = Node::with_many_snapshots();
    let (own, other) = (node.make_topic("a", &[]), node.make_topic("b", &[]));
    node.holds = is_plan;
    let sequence = fill(&mut node, own);
    // The next segment begins with a frame that has no record of the partition; it stays in flight.
    for number in 0.. {
        node.produce(own, batch_of(0, sequence + number, 100)).expect("room");
        node.holds = |effect| is_plan(effect) || is_frame(effect);
        node.ask(Command::Produce(Produce { batches: vec![(other, batch_of(0, number, 20_000))] }));
        let segment = node.newest_frame().segment;
        if node.held_frame().is_some_and(|held| held.segment != segment) {
            break;
        }
        node.holds = is_plan;
        node.run();
    }
    node.holds = is_frame;
    node.run();
    node.holds = nothing;
    let end = node.newest_end(own);
    assert!(!manifest(&node).snapshots.is_empty(), "there is no snapshot");
    let mut node = node.restart().expect("a good disk");
    assert_eq!(node.newest_end(own), end, "offsets are given again");
}

/// A merge ends while a deletion is on its way to the log, and then the power goes.
pub fn records_stay_until_their_deletion_is_durable() {
    let mut node = Node::new();
    let partition = node.make_topic("a", &[]);
    node.holds = is_merge;
    fill(&mut node, partition);
    let end = node.newest_end(partition);
    node.holds = |effect| is_merge(effect) || is_frame(effect);
    node.ask(Command::DeleteRecords(vec![(partition, Some(end - 1))]));
    node.holds = is_frame;
    node.run();
    let node = node.restart().expect("a good disk");
    let extents = manifest(&node).extents;
    let first = extents.iter().flat_map(|extent| &extent.runs).map(|run| run.base).min();
    assert_eq!(first, Some(0), "records are gone that nobody deleted durably");
    assert!(extents.iter().any(|extent| extent.level > 0), "nothing was merged");
}

pub fn a_new_producer_begins_at_zero() {
    let mut node = Node::new();
    let partition = node.make_topic("a", &[]);
    let ahead = node.produce(partition, batch_of(0, 1, 100));
    assert_eq!(ahead.err(), Some(Refusal::OutOfOrderSequence), "it passes the one before it");
}

pub fn nothing_is_sent_before_the_hello() {
    let mut outbox = Outbox::new(ShardId(0), 2);
    let sequence = outbox.push(ShardId(1), b"entry".as_slice().into(), &mut Vec::new());
    assert!(
        outbox.message(ShardId(1), sequence, Sequence(0)).is_none(),
        "older entries may be on their way"
    );
}

pub fn offsets_that_were_taken_stay() {
    let mut node = Node::new();
    // A client may know of a topic before the shard of its group does.
    let partition = PartitionId { topic: TopicId([1; 16]), index: 0 };
    let member = member(-1, "");
    let offset = CommittedOffset { offset: 1, leader_epoch: -1, metadata: String::new() };
    let commit = OffsetCommit { member, offsets: vec![(partition, offset)] };
    let GroupReply::OffsetCommit(taken) = node.group(GroupCommand::OffsetCommit(commit)) else {
        panic!("a reply to a commit");
    };
    let mut node = node.restart().expect("a good disk");
    let fetch = GroupCommand::OffsetFetch { group: "g".into(), partitions: Some(vec![partition]) };
    let GroupReply::OffsetFetch(Ok(shown)) = node.group(fetch) else {
        panic!("a reply to a fetch of offsets");
    };
    assert_eq!(shown[0].1.is_some(), taken[0].is_ok(), "an acknowledged offset is gone");
}
