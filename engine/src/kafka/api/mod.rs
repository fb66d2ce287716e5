//! What each request means: one file for each API.
//!
//! A request becomes commands for shards, and their replies the answer. No API waits, reads a clock
//! or holds state: what an answer needs of its request travels in the closure that builds it.

mod alter_configs;
mod api_versions;
mod ask;
mod create_partitions;
mod create_topics;
mod delete_groups;
mod delete_records;
mod delete_topics;
mod describe_cluster;
mod describe_configs;
mod describe_groups;
mod describe_log_dirs;
mod describe_producers;
mod describe_topic_partitions;
#[cfg(test)]
mod drive;
mod fault;
mod fetch;
mod find_coordinator;
mod heartbeat;
mod incremental_alter_configs;
mod init_producer_id;
mod join_group;
mod leave_group;
mod list_groups;
mod list_offsets;
mod metadata;
mod offset_commit;
mod offset_delete;
mod offset_fetch;
mod offset_for_leader_epoch;
mod produce;
mod scatter;
mod sync_group;
#[cfg(test)]
pub(super) mod testing;

use bytes::Bytes;
use tidemill_wal::format::{ShardId, TopicId};

use super::api_key::ApiKey;
use super::error_code::ErrorCode;
use super::frame::{CloseReason, RequestFrame};
use super::messages::Request;
use super::session::Context;
use super::wire::Pieces;
use crate::command::{Command, Reply, Routes, TopicRoute};

/// Builds the next step from the replies to all commands, in the commands' order.
pub(super) type Then = Box<dyn FnOnce(&Context<'_>, Vec<Reply>) -> Step>;

/// What handling a request came to.
pub(super) enum Step {
    /// It is done.
    Respond(Answer),
    /// Ask shards; when all have answered, go on. Without commands it goes on at once.
    Ask {
        /// What to ask, in order.
        commands: Vec<(ShardId, Command)>,
        /// How to go on.
        then: Then,
        /// For fetches: when one shard has answered with data, the others need not wait.
        hurry: bool,
    },
    /// It cannot be answered.
    Close(CloseReason),
}

/// The answer to a request.
#[derive(Debug)]
pub(super) struct Answer {
    /// What to send; `None` for a request that wants no answer.
    pub pieces: Option<Pieces>,
    /// The first error in it.
    pub error: Option<ErrorCode>,
}

/// Begins a request.
pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, peer: &str) -> Step {
    match request.api {
        ApiKey::Produce => produce::handle(cx, request, peer),
        ApiKey::Fetch => fetch::handle(cx, request, peer),
        ApiKey::ListOffsets => list_offsets::handle(cx, request, peer),
        ApiKey::Metadata => metadata::handle(cx, request, peer),
        ApiKey::OffsetCommit => offset_commit::handle(cx, request, peer),
        ApiKey::OffsetFetch => offset_fetch::handle(cx, request, peer),
        ApiKey::FindCoordinator => find_coordinator::handle(cx, request, peer),
        ApiKey::JoinGroup => join_group::handle(cx, request, peer),
        ApiKey::Heartbeat => heartbeat::handle(cx, request, peer),
        ApiKey::LeaveGroup => leave_group::handle(cx, request, peer),
        ApiKey::SyncGroup => sync_group::handle(cx, request, peer),
        ApiKey::DescribeGroups => describe_groups::handle(cx, request, peer),
        ApiKey::ListGroups => list_groups::handle(cx, request, peer),
        ApiKey::ApiVersions => api_versions::handle(cx, request, peer),
        ApiKey::CreateTopics => create_topics::handle(cx, request, peer),
        ApiKey::DeleteTopics => delete_topics::handle(cx, request, peer),
        ApiKey::DeleteRecords => delete_records::handle(cx, request, peer),
        ApiKey::InitProducerId => init_producer_id::handle(cx, request, peer),
        ApiKey::OffsetForLeaderEpoch => offset_for_leader_epoch::handle(cx, request, peer),
        ApiKey::DescribeConfigs => describe_configs::handle(cx, request, peer),
        ApiKey::AlterConfigs => alter_configs::handle(cx, request, peer),
        ApiKey::DescribeLogDirs => describe_log_dirs::handle(cx, request, peer),
        ApiKey::CreatePartitions => create_partitions::handle(cx, request, peer),
        ApiKey::DeleteGroups => delete_groups::handle(cx, request, peer),
        ApiKey::IncrementalAlterConfigs => incremental_alter_configs::handle(cx, request, peer),
        ApiKey::OffsetDelete => offset_delete::handle(cx, request, peer),
        ApiKey::DescribeCluster => describe_cluster::handle(cx, request, peer),
        ApiKey::DescribeProducers => describe_producers::handle(cx, request, peer),
        ApiKey::DescribeTopicPartitions => describe_topic_partitions::handle(cx, request, peer),
    }
}

/// Ends a request with an answer.
fn respond<R: Request>(
    request: &RequestFrame,
    response: &R::Response,
    error: Option<ErrorCode>,
) -> Step {
    Step::Respond(Answer { pieces: Some(request.encode_response::<R>(response)), error })
}

/// Asks shards and goes on when all have answered.
fn ask(
    commands: Vec<(ShardId, Command)>,
    then: impl FnOnce(&Context<'_>, Vec<Reply>) -> Step + 'static,
) -> Step {
    Step::Ask { commands, then: Box::new(then), hurry: false }
}

/// What encoding the answer needs of a request, without what keeps its frame in memory.
fn head_of(request: &RequestFrame) -> RequestFrame {
    RequestFrame {
        api: request.api,
        version: request.version,
        correlation_id: request.correlation_id,
        client_id: None,
        body: Bytes::new(),
    }
}

/// Decodes a request or ends its connection.
macro_rules! decode {
    ($cx:expr, $request:expr, $type:ty) => {
        match $request.decode::<$type>($crate::kafka::api::ask::elements_size_max($cx)) {
            Ok(decoded) => decoded,
            Err(reason) => return $crate::kafka::api::Step::Close(reason),
        }
    };
}
use decode;

/// The reply in the variant of its command, or the refusal of the whole command.
macro_rules! reply_as {
    ($variant:ident, $reply:expr) => {
        match $reply {
            $crate::command::Reply::$variant(results) => Ok(results),
            $crate::command::Reply::Refused(refusal) => Err(refusal),
            other => panic!(concat!("not a reply to ", stringify!($variant), ": {:?}"), other),
        }
    };
}
use reply_as;

/// The first error of an answer, if there is one.
fn first_error(codes: impl IntoIterator<Item = ErrorCode>) -> Option<ErrorCode> {
    codes.into_iter().find(|code| !code.is_none())
}

/// Finds the topic that a request names by id from some version on, by name before.
fn find_topic<'a>(
    routes: &'a Routes,
    by_id: bool,
    name: &str,
    id: TopicId,
) -> Result<&'a TopicRoute, ErrorCode> {
    if by_id {
        routes.ids.get(&id).map(AsRef::as_ref).ok_or(ErrorCode::UnknownTopicId)
    } else {
        let topic = routes.topics.get(name);
        topic.map(AsRef::as_ref).ok_or(ErrorCode::UnknownTopicOrPartition)
    }
}

/// A partition's index as the client sent it, if the topic has such a partition.
fn find_partition(topic: &TopicRoute, index: i32) -> Result<u32, ErrorCode> {
    match u32::try_from(index) {
        Ok(index) if index < topic.partition_count => Ok(index),
        _ => Err(ErrorCode::UnknownTopicOrPartition),
    }
}

/// The one epoch that any partition's leader has: this node never loses what it acknowledged, so
/// no log is ever truncated below a new leader.
const LEADER_EPOCH: i32 = 0;

/// Checks the epoch that a client believes its leader to have; -1: it does not know.
fn check_leader_epoch(epoch: i32) -> Result<(), ErrorCode> {
    match epoch {
        -1 | LEADER_EPOCH => Ok(()),
        ..LEADER_EPOCH => Err(ErrorCode::FencedLeaderEpoch),
        _ => Err(ErrorCode::UnknownLeaderEpoch),
    }
}

/// The topic in which Apache Kafka keeps what groups committed. Here it is always empty: groups are
/// state of their shards. It is there because clients and tools look for it.
const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// Whether a topic is the node's own, by Kafka's names: consumers of patterns leave it out, and
/// clients cannot write to it.
fn is_internal(name: &str) -> bool {
    name == OFFSETS_TOPIC || name == "__transaction_state"
}

/// Whether a topic may have that name.
fn is_topic_name(name: &str) -> bool {
    const SIZE_MAX: usize = 249;
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=SIZE_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(is_allowed)
}

/// All operations on a topic that Kafka knows, for whoever asks what it may do: there is no
/// authorization yet. Bits are the codes of `AclOperation`: READ, WRITE, CREATE, DELETE, ALTER,
/// DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS.
const TOPIC_OPERATIONS: i32 =
    1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11;

/// The same for the cluster: CREATE, ALTER, DESCRIBE, CLUSTER_ACTION, DESCRIBE_CONFIGS,
/// ALTER_CONFIGS, IDEMPOTENT_WRITE.
const CLUSTER_OPERATIONS: i32 = 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12;
