//! Requests of all APIs and versions, alone and as the stream of a connection.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use tidemill::command::{Refusal, Reply, Routes, TopicConfig, TopicRoute};
use tidemill::kafka::api_key::ApiKey;
use tidemill::kafka::frame::{Incoming, RequestFrame, encode_request, take_frame};
use tidemill::kafka::messages::*;
use tidemill::kafka::session::{Action, Advertise, Context, Endpoint, NodeFacts, Session};
use tidemill_wal::format::{ShardId, TopicId};

use super::allocation::bounded;
use super::take;

/// What decoding a request may allocate beside it.
pub(super) const MEMORY_MAX: usize = 1 << 18;

/// Room for the vectors' own heads and for what an error says.
const SLACK: usize = 1 << 10;

/// Commands and follow-ups of one request: more than any makes.
const ASKS_MAX: usize = 10_000;

/// Runs a macro with every API and its request.
macro_rules! for_each_api {
    ($run:ident) => {
        $run! {
            Produce ProduceRequest, Fetch FetchRequest, ListOffsets ListOffsetsRequest,
            Metadata MetadataRequest, OffsetCommit OffsetCommitRequest,
            OffsetFetch OffsetFetchRequest, FindCoordinator FindCoordinatorRequest,
            JoinGroup JoinGroupRequest, Heartbeat HeartbeatRequest, LeaveGroup LeaveGroupRequest,
            SyncGroup SyncGroupRequest, DescribeGroups DescribeGroupsRequest,
            ListGroups ListGroupsRequest, ApiVersions ApiVersionsRequest,
            CreateTopics CreateTopicsRequest, DeleteTopics DeleteTopicsRequest,
            DeleteRecords DeleteRecordsRequest, InitProducerId InitProducerIdRequest,
            OffsetForLeaderEpoch OffsetForLeaderEpochRequest,
            DescribeConfigs DescribeConfigsRequest, AlterConfigs AlterConfigsRequest,
            DescribeLogDirs DescribeLogDirsRequest, CreatePartitions CreatePartitionsRequest,
            DeleteGroups DeleteGroupsRequest,
            IncrementalAlterConfigs IncrementalAlterConfigsRequest,
            OffsetDelete OffsetDeleteRequest, DescribeCluster DescribeClusterRequest,
            DescribeProducers DescribeProducersRequest,
            DescribeTopicPartitions DescribeTopicPartitionsRequest,
        }
    };
}
pub(super) use for_each_api;

/// A request's frame, without its length.
pub fn request(data: &[u8]) {
    let frame = Bytes::copy_from_slice(data);
    let Ok(Incoming::Request(frame)) = bounded(SLACK, || Incoming::decode(frame)) else { return };
    macro_rules! dispatch {
        ($($api:ident $request:ident,)+) => {
            match frame.api { $(ApiKey::$api => check_again::<$request>(&frame),)+ }
        };
    }
    for_each_api!(dispatch);
}

/// What was accepted is written and read to the same, and written to the same bytes.
fn check_again<R: Request + PartialEq + std::fmt::Debug>(frame: &RequestFrame) {
    let Ok(first) = bounded(MEMORY_MAX + SLACK, || frame.decode::<R>(MEMORY_MAX)) else { return };
    let (once, second) = again(frame, &first);
    let (twice, third) = again(frame, &second);
    // The first writing may put right what only a reader forgives: a null where none may be.
    assert_eq!(once, twice, "{} {}", frame.api, frame.version);
    assert_eq!(second, third);
}

fn again<R: Request>(frame: &RequestFrame, message: &R) -> (Bytes, R) {
    let client_id = frame.client_id.as_deref();
    let pieces = encode_request(frame.version, frame.correlation_id, client_id, message);
    let mut bytes = pieces.concat();
    assert_eq!(bytes.get_i32() as usize, bytes.len());
    let Ok(Incoming::Request(read)) = Incoming::decode(bytes.clone()) else {
        panic!("{} {} is not read again", frame.api, frame.version);
    };
    assert_eq!((read.api, read.version), (frame.api, frame.version));
    assert_eq!((read.correlation_id, &read.client_id), (frame.correlation_id, &frame.client_id));
    let message = read.decode::<R>(2 * MEMORY_MAX).expect("it was just written");
    (bytes, message)
}

/// Frames of one connection, each with a length of two bytes before it. Shards refuse everything.
pub fn session(mut data: &[u8]) {
    let (facts, routes) = (facts(), routes());
    let cx = Context {
        facts: &facts,
        routes: &routes,
        wall_ms: 1_700_000_000_000,
        fetch_budget: 1 << 20,
    };
    let mut session = Session::new("127.0.0.1".to_owned());
    let mut received = BytesMut::new();
    let mut correlation_ids = Vec::new();
    let mut ended = 0;
    while !data.is_empty() {
        let length = take(&mut data, 2);
        let size = length.iter().fold(0, |size, byte| size << 8 | usize::from(*byte));
        let frame = take(&mut data, size);
        received.extend_from_slice(&(frame.len() as i32).to_be_bytes());
        received.extend_from_slice(frame);
        let taken = take_frame(&mut received, facts.request_size_max);
        let Ok(Some(taken)) = taken else {
            panic!("a whole frame of {} bytes is {taken:?}", frame.len());
        };
        assert!(received.is_empty());
        let id = taken.get(4..8).map(|id| id.try_into().expect("four bytes"));
        correlation_ids.push(id.map(i32::from_be_bytes));
        let started = correlation_ids.len() as u64 - 1;
        let mut actions = Vec::new();
        if session.on_request(&cx, started, taken.freeze(), &mut actions).is_err() {
            session.close();
            return;
        }
        refuse_all(&mut session, &cx, actions);
        while let Some(finished) = session.next_finished() {
            assert_eq!(finished.started, ended, "answers leave in the order of their requests");
            ended += 1;
            if let Some(pieces) = finished.pieces {
                let mut answer = pieces.concat();
                assert_eq!(answer.get_i32() as usize, answer.len());
                assert_eq!(Some(answer.get_i32()), correlation_ids[finished.started as usize]);
            }
            if finished.close.is_some() {
                assert!(session.next_finished().is_none());
                return;
            }
        }
        assert_eq!(session.open_count(), 0, "every command was answered");
    }
}

fn refuse_all(session: &mut Session, cx: &Context<'_>, actions: Vec<Action>) {
    let refusals = [Refusal::Busy, Refusal::UnknownPartition, Refusal::Storage];
    let mut waiting = actions;
    let mut asks = 0;
    // The last one first: shards answer in any order.
    while let Some(action) = waiting.pop() {
        asks += 1;
        assert!(asks < ASKS_MAX, "a request asks without end");
        match action {
            Action::Ask { id, .. } => {
                let refusal = refusals[id.0 as usize % refusals.len()];
                session.on_reply(cx, id, Reply::Refused(refusal), &mut waiting);
            }
            Action::FetchNow { .. } => {}
        }
    }
}

fn facts() -> NodeFacts {
    NodeFacts {
        cluster_id: "tide".into(),
        shard: ShardId(0),
        shard_count: 2,
        advertise: Advertise::Node(Endpoint { host: "mill".into(), port: 9092 }),
        auto_create: true,
        partition_count_default: 2,
        topic_defaults: topic_config(),
        settings: vec![("node.host".into(), "mill".into())],
        request_size_max: 1 << 17,
        fetch_size_max: 1 << 20,
        version: "0.1.0".into(),
    }
}

fn topic_config() -> TopicConfig {
    TopicConfig {
        retention_ms: None,
        retention_bytes: None,
        batch_size_max: 1 << 20,
        append_time: false,
        overrides: BTreeMap::new(),
    }
}

/// Topics that requests can name; their ids repeat the first letter of their names.
fn routes() -> Arc<Routes> {
    let mut routes = Routes { version: 1, ..Routes::default() };
    for (name, partition_count) in [("tide", 4), ("mill", 1), ("a", 2)] {
        let topic = Arc::new(TopicRoute {
            name: name.into(),
            id: TopicId([name.as_bytes()[0]; 16]),
            partition_count,
            first_shard: ShardId(0),
            shard_count: 2,
            config: topic_config(),
        });
        routes.ids.insert(topic.id, topic.clone());
        routes.topics.insert(topic.name.clone(), topic);
    }
    Arc::new(routes)
}
