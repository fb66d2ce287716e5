//! The seam in: what the protocols ask of a shard, and its answers.
//!
//! No protocol's bytes and no shard's state pass here. A protocol turns a request into commands
//! for one or more shards (it finds the shard in [`Routes`] or by [`group_shard`]) and builds its
//! response from the replies. Every command has exactly one reply, in the same variant order.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use tidemill_wal::format::{PartitionId, ShardId, TopicId};

use crate::batch::RecordBatch;

/// Names one command on its way: the shard whose connection asked, and that shard's own number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// Where the reply goes.
    pub origin: ShardId,
    /// Unique among the origin's open commands.
    pub id: u64,
}

/// What a protocol asks of one shard.
#[derive(Debug, Clone)]
pub enum Command {
    /// Append batches; answered when they are durable.
    Produce(Produce),
    /// Read records; may wait for them.
    Fetch(Fetch),
    /// Look up offsets by time or end.
    ListOffsets(Vec<OffsetQuery>),
    /// Move the start of partitions: everything below the offset is gone (`None`: durable end).
    DeleteRecords(Vec<(PartitionId, Option<u64>)>),
    /// Start and end offset, and stored bytes, of each partition.
    DescribePartitions(Vec<PartitionId>),
    /// Active idempotent producers of each partition.
    DescribeProducers(Vec<PartitionId>),
    /// Every partition of this shard with its stored bytes.
    DescribeStorage,
    /// What an operator keeps for a key, as far as it lives on this shard.
    ReadState(StateQuery),
    /// A new producer id; shard 0 only.
    InitProducerId,
    /// Topics and their configuration; shard 0 only.
    Catalog(CatalogCommand),
    /// Consumer groups; only on the group's shard, except `List`, which every shard answers.
    Group(GroupCommand),
}

impl Command {
    /// Bytes of record batches that the command carries.
    pub fn batches_size(&self) -> usize {
        match self {
            Self::Produce(produce) => produce.size(),
            Self::Fetch(_)
            | Self::ListOffsets(_)
            | Self::DeleteRecords(_)
            | Self::DescribePartitions(_)
            | Self::DescribeProducers(_)
            | Self::DescribeStorage
            | Self::ReadState(_)
            | Self::InitProducerId
            | Self::Catalog(_)
            | Self::Group(_) => 0,
        }
    }
}

/// What a shard answers; each variant belongs to the command of the same name.
#[derive(Debug, Clone)]
pub enum Reply {
    /// One result for each batch, in order.
    Produce(Vec<Result<Appended, Refusal>>),
    /// One result for each partition, in order.
    Fetch(Vec<Fetched>),
    /// One result for each query, in order.
    ListOffsets(Vec<Result<OffsetAnswer, Refusal>>),
    /// The new start of each partition, in order.
    DeleteRecords(Vec<Result<u64, Refusal>>),
    /// One result for each partition, in order.
    DescribePartitions(Vec<Result<PartitionFacts, Refusal>>),
    /// One result for each partition, in order.
    DescribeProducers(Vec<Result<Vec<ProducerFacts>, Refusal>>),
    /// Partitions of this shard and the sizes of their stored data.
    DescribeStorage(Storage),
    /// The entries, none if the key lives elsewhere; or that there is no such state.
    ReadState(Option<Vec<StateEntry>>),
    /// A producer id that nobody else has.
    InitProducerId(Result<i64, Refusal>),
    /// One result for each topic asked for, in order.
    Catalog(Vec<Result<TopicChange, Refused>>),
    /// The group's answer.
    Group(GroupReply),
    /// The command as a whole was refused (overload, wrong shard, shutting down).
    Refused(Refusal),
}

/// Asks for an operator's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateQuery {
    /// Name of the topology.
    pub topology: String,
    /// Name of the operator.
    pub operator: String,
    /// Name of the state.
    pub state: String,
    /// The key, as the operator's stream encodes it.
    pub key: Bytes,
    /// Most entries to return.
    pub count_max: usize,
}

/// One entry of an operator's state for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateEntry {
    /// The key in a map, or the index in a list, as it is stored; empty for a value.
    pub entry: Vec<u8>,
    /// Version of the codec that wrote the value.
    pub version: u8,
    /// The value, as the codec wrote it.
    pub value: Vec<u8>,
}

/// Batches to append, at most one for each partition, of one request.
#[derive(Debug, Clone)]
pub struct Produce {
    /// Checked batches with their partitions.
    pub batches: Vec<(PartitionId, RecordBatch)>,
}

impl Produce {
    /// Bytes of all its batches.
    pub fn size(&self) -> usize {
        self.batches.iter().map(|(_, batch)| batch.size()).sum()
    }
}

/// Where a batch went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the batch's first record.
    pub base_offset: u64,
    /// Milliseconds since 1970 if the topic stamps append time.
    pub append_time_ms: Option<i64>,
    /// First offset that can be read.
    pub start: u64,
}

/// Reads from partitions of one shard.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// Partitions in the client's order.
    pub partitions: Vec<FetchPartition>,
    /// Answer at once when this many bytes are there.
    pub bytes_min: u32,
    /// Stop adding batches past this; the first batch is returned whole all the same (KIP-74).
    pub bytes_max: u32,
    /// Longest wait for `bytes_min`, in milliseconds.
    pub wait_ms: u32,
}

/// One partition of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchPartition {
    /// Which partition.
    pub partition: PartitionId,
    /// First offset wanted.
    pub offset: u64,
    /// Bytes wanted at most from this partition.
    pub bytes_max: u32,
}

/// One partition's part of a fetch reply.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// First offset that can be read; 0 when the partition is unknown.
    pub start: u64,
    /// First offset not yet durable; 0 when the partition is unknown.
    pub durable_end: u64,
    /// Whole record batches in order, as stored; the first may begin before the offset asked for.
    pub records: Result<Vec<Bytes>, Refusal>,
}

/// Asks one partition for one offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetQuery {
    /// Which partition.
    pub partition: PartitionId,
    /// Which offset of it.
    pub at: OffsetAt,
}

/// Which offset is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetAt {
    /// First offset that can be read.
    Earliest,
    /// The durable end.
    Latest,
    /// Of the record with the largest timestamp.
    MaxTimestamp,
    /// Of the first record whose timestamp is at least this, in milliseconds since 1970.
    Time(i64),
}

/// Where an offset query led.
#[derive(Debug, Clone)]
pub enum OffsetAnswer {
    /// An end of the log.
    Offset(u64),
    /// The record is in this batch; the protocol looks inside.
    InBatch(RecordBatch),
    /// No record fits.
    None,
}

/// Facts about one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionFacts {
    /// First offset that can be read.
    pub start: u64,
    /// First offset not yet durable.
    pub durable_end: u64,
    /// Stored bytes of record batches.
    pub size: u64,
}

/// One idempotent producer of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerFacts {
    /// Its id.
    pub producer_id: i64,
    /// Its epoch.
    pub producer_epoch: i16,
    /// Last sequence number appended.
    pub last_sequence: i32,
    /// When its last batch came, in milliseconds since 1970.
    pub last_timestamp_ms: i64,
}

/// What one shard stores.
#[derive(Debug, Clone)]
pub struct Storage {
    /// Directory of the data.
    pub directory: String,
    /// Size of its file system, in bytes.
    pub total: u64,
    /// Free bytes for an unprivileged user.
    pub usable: u64,
    /// Partitions with their stored bytes.
    pub partitions: Vec<(PartitionId, u64)>,
}

/// Changes of the catalog. `validate_only` checks and changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogCommand {
    /// New topics.
    CreateTopics {
        /// What to make.
        topics: Vec<NewTopic>,
        /// Check only.
        validate_only: bool,
    },
    /// Remove topics, by id; names are resolved by the protocol.
    DeleteTopics(Vec<TopicId>),
    /// Raise the number of partitions.
    CreatePartitions {
        /// Topic and its new total.
        topics: Vec<(TopicId, u32)>,
        /// Check only.
        validate_only: bool,
    },
    /// Change configuration keys of topics.
    AlterConfigs {
        /// Topic and its changes.
        topics: Vec<(TopicId, ConfigChange)>,
        /// Check only.
        validate_only: bool,
    },
}

/// A topic to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTopic {
    /// Name: 1 to 249 of `[a-zA-Z0-9._-]`, neither `.` nor `..`.
    pub name: String,
    /// How many partitions; `None` is the node's default.
    pub partition_count: Option<u32>,
    /// Configuration keys that differ from the defaults.
    pub config: Vec<(String, String)>,
    /// Made because a client asked for metadata, not by an explicit request: an existing topic of
    /// that name is then no error.
    pub automatic: bool,
}

/// How a topic's configuration changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigChange {
    /// These are all overrides there are; others go back to their defaults.
    Replace(Vec<(String, String)>),
    /// Set (`Some`) or reset (`None`) single keys.
    Update(Vec<(String, Option<String>)>),
}

/// Outcome of one change of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicChange {
    /// The topic.
    pub topic: TopicId,
    /// Its partitions after the change.
    pub partition_count: u32,
    /// All values in force after the change, key by key, with whether the key is overridden.
    pub config: Vec<(String, String, bool)>,
}

/// A refusal with words for the person who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The kind.
    pub refusal: Refusal,
    /// What was wrong and what to do.
    pub message: String,
}

/// Asked of the shard that holds a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupCommand {
    /// Become or stay a member; answered when the rebalance has gathered all members.
    Join(Join),
    /// Fetch the assignment; the leader brings everybody's.
    Sync(Sync),
    /// Stay a member.
    Heartbeat(MemberRef),
    /// Members that go, each by id or instance id.
    Leave {
        /// The group.
        group: String,
        /// Who leaves.
        members: Vec<LeavingMember>,
    },
    /// Store offsets.
    OffsetCommit(OffsetCommit),
    /// Read offsets of one group.
    OffsetFetch {
        /// The group.
        group: String,
        /// Which partitions; `None`: all that have one.
        partitions: Option<Vec<PartitionId>>,
    },
    /// Forget offsets of partitions that the group does not consume any more.
    OffsetDelete {
        /// The group.
        group: String,
        /// Which partitions; runs in parallel with `topics`.
        partitions: Vec<PartitionId>,
        /// The name of each partition's topic, in the same order: a subscription is by name.
        topics: Vec<String>,
    },
    /// Members and state.
    Describe(String),
    /// All groups of this shard.
    List,
    /// Remove empty groups.
    Delete(String),
}

/// The answers to [`GroupCommand`], in the same order of variants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupReply {
    /// To `Join`.
    Join(Result<Joined, JoinRefused>),
    /// To `Sync`.
    Sync(Result<Synced, Refusal>),
    /// To `Heartbeat`.
    Heartbeat(Result<(), Refusal>),
    /// To `Leave`: one result for each member, in order.
    Leave(Result<Vec<Result<(), Refusal>>, Refusal>),
    /// To `OffsetCommit`: one result for each offset, in order.
    OffsetCommit(Vec<Result<(), Refusal>>),
    /// To `OffsetFetch`.
    OffsetFetch(Result<Vec<(PartitionId, Option<CommittedOffset>)>, Refusal>),
    /// To `OffsetDelete`: one result for each partition, in order.
    OffsetDelete(Result<Vec<Result<(), Refusal>>, Refusal>),
    /// To `Describe`.
    Describe(GroupDescription),
    /// To `List`.
    List(Vec<GroupListing>),
    /// To `Delete`.
    Delete(Result<(), Refusal>),
}

/// A member's wish to join. See KIP-345 (static members) and KIP-394 (member id first).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The group.
    pub group: String,
    /// Empty on the first join.
    pub member_id: String,
    /// Set by static members.
    pub instance_id: Option<String>,
    /// The connection's client id, for naming the member.
    pub client_id: String,
    /// The connection's address, for people.
    pub client_host: String,
    /// A member unheard for this long is out.
    pub session_timeout_ms: i32,
    /// How long a rebalance waits for this member.
    pub rebalance_timeout_ms: i32,
    /// `consumer`, `connect`, …; equal for all members.
    pub protocol_type: String,
    /// Assignors in order of preference, each with its opaque subscription.
    pub protocols: Vec<(String, Bytes)>,
    /// A dynamic first join gets MEMBER_ID_REQUIRED and an id (JoinGroup 4 and later).
    pub member_id_required: bool,
    /// The client knows `skip_assignment` (JoinGroup 9 and later, KIP-814).
    pub can_skip_assignment: bool,
}

/// A finished join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Version of the group's assignment.
    pub generation: i32,
    /// The group's protocol type.
    pub protocol_type: String,
    /// The assignor that all members know.
    pub protocol: String,
    /// Member id of the leader.
    pub leader: String,
    /// The asker's own id.
    pub member_id: String,
    /// The leader must not compute an assignment: the old one stands.
    pub skip_assignment: bool,
    /// All members with their subscriptions, for the leader; empty for others.
    pub members: Vec<JoinedMember>,
}

/// A member as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedMember {
    /// Its id.
    pub member_id: String,
    /// Its instance id if it is static.
    pub instance_id: Option<String>,
    /// Its opaque subscription for the chosen protocol.
    pub metadata: Bytes,
}

/// A refused join; MEMBER_ID_REQUIRED hands out an id with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRefused {
    /// Why.
    pub refusal: Refusal,
    /// The id to come back with, or the one that was sent.
    pub member_id: String,
}

/// Who asks, checked against the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRef {
    /// The group.
    pub group: String,
    /// The generation the member believes in.
    pub generation: i32,
    /// The member.
    pub member_id: String,
    /// Its instance id if it is static.
    pub instance_id: Option<String>,
}

/// Second half of a rebalance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sync {
    /// Who asks.
    pub member: MemberRef,
    /// Protocol type, if the client sends it (SyncGroup 5 and later).
    pub protocol_type: Option<String>,
    /// Protocol, if the client sends it.
    pub protocol: Option<String>,
    /// From the leader: everybody's assignment.
    pub assignments: Vec<(String, Bytes)>,
}

/// An assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synced {
    /// The group's protocol type.
    pub protocol_type: String,
    /// The chosen protocol.
    pub protocol: String,
    /// Opaque; empty if the leader gave this member nothing.
    pub assignment: Bytes,
}

/// A member that leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeavingMember {
    /// Its id; may be empty for a static member.
    pub member_id: String,
    /// Its instance id.
    pub instance_id: Option<String>,
}

/// Offsets to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetCommit {
    /// Who commits; generation -1 and an empty member id outside a membership.
    pub member: MemberRef,
    /// Partition and what to store.
    pub offsets: Vec<(PartitionId, CommittedOffset)>,
}

/// A group's progress in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// Next offset to consume.
    pub offset: u64,
    /// Leader epoch of the last consumed record, -1 if unknown.
    pub leader_epoch: i32,
    /// The client's own words, at most 4096 bytes.
    pub metadata: String,
}

/// A group for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDescription {
    /// `Dead` for a group that does not exist.
    pub state: GroupState,
    /// Protocol type; empty if it never had a member.
    pub protocol_type: String,
    /// Chosen protocol; empty unless stable.
    pub protocol: String,
    /// Members.
    pub members: Vec<MemberDescription>,
}

/// A member for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberDescription {
    /// Its id.
    pub member_id: String,
    /// Its instance id if it is static.
    pub instance_id: Option<String>,
    /// Its client id.
    pub client_id: String,
    /// Its address.
    pub client_host: String,
    /// Its opaque subscription.
    pub metadata: Bytes,
    /// Its opaque assignment.
    pub assignment: Bytes,
}

/// A row of a group listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupListing {
    /// The group.
    pub group: String,
    /// Its protocol type.
    pub protocol_type: String,
    /// Its state.
    pub state: GroupState,
}

/// States of a classic group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GroupState {
    /// No members; offsets may remain.
    Empty,
    /// Gathering members.
    PreparingRebalance,
    /// Waiting for the leader's assignment.
    CompletingRebalance,
    /// Everybody has an assignment.
    Stable,
    /// Does not exist.
    Dead,
}

/// Why a shard says no. The protocols translate; nothing else in the shard knows their codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No such topic or partition here.
    UnknownPartition,
    /// No topic with that id.
    UnknownTopicId,
    /// The partition lives on another shard.
    WrongShard,
    /// The offset is below the start or past the end.
    OffsetOutOfRange,
    /// Stored data are damaged or gone; see the log and the dump tool.
    Storage,
    /// No room or too much load; try again.
    Busy,
    /// The disk is full; try again when there is room.
    DiskFull,
    /// A batch larger than the topic allows.
    BatchTooLarge,
    /// A batch that breaks the format.
    InvalidBatch,
    /// A timestamp that the topic does not take.
    InvalidTimestamp,
    /// A gap in a producer's sequence numbers.
    OutOfOrderSequence,
    /// A batch older than the five that are remembered.
    DuplicateSequence,
    /// A producer epoch older than the current one.
    InvalidProducerEpoch,
    /// The producer's state is gone.
    UnknownProducerId,
    /// A topic of that name exists.
    TopicExists,
    /// A name that is not allowed.
    InvalidTopic,
    /// A number of partitions that is not allowed.
    InvalidPartitionCount,
    /// A configuration key or value that is not honoured.
    InvalidConfig,
    /// A request that makes no sense here.
    InvalidRequest,
    /// A policy or limit of the node forbids it.
    PolicyViolation,
    /// No member with that id.
    UnknownMember,
    /// Come back with the id that is handed out.
    MemberIdRequired,
    /// Another generation is current.
    IllegalGeneration,
    /// Join again.
    RebalanceInProgress,
    /// No protocol that all members know, or another protocol type.
    InconsistentProtocol,
    /// Session timeout outside the node's bounds.
    InvalidSessionTimeout,
    /// Another member holds the instance id.
    FencedInstance,
    /// The group is full.
    GroupFull,
    /// Empty or too long.
    InvalidGroup,
    /// The group has members.
    NonEmptyGroup,
    /// No such group.
    UnknownGroup,
    /// The group consumes that topic.
    SubscribedTopic,
    /// Offset metadata longer than allowed.
    OffsetMetadataTooLarge,
    /// The group's state is being loaded.
    Loading,
    /// The node is stopping.
    Stopping,
}

/// Where everything is: an immutable picture of the catalog, published by each shard when the
/// change is durable. Protocols route and describe with it and never ask a shard for names.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    /// Version of the catalog; grows with each change.
    pub version: u64,
    /// Topics by name.
    pub topics: BTreeMap<Arc<str>, Arc<TopicRoute>>,
    /// The same topics by id.
    pub ids: HashMap<TopicId, Arc<TopicRoute>>,
}

/// One topic in [`Routes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRoute {
    /// Its name.
    pub name: Arc<str>,
    /// Its id.
    pub id: TopicId,
    /// How many partitions.
    pub partition_count: u32,
    /// Shard of partition 0.
    pub first_shard: ShardId,
    /// How many shards the node has.
    pub shard_count: u16,
    /// What it is configured to.
    pub config: TopicConfig,
}

impl TopicRoute {
    /// The shard that owns a partition.
    pub fn shard_of(&self, partition: u32) -> ShardId {
        partition_shard(self.first_shard, partition, self.shard_count)
    }

    /// The full name of a partition.
    pub fn partition(&self, index: u32) -> PartitionId {
        PartitionId { topic: self.id, index }
    }
}

/// `(first_shard + partition) mod shards`.
pub fn partition_shard(first_shard: ShardId, partition: u32, shard_count: u16) -> ShardId {
    ShardId(((u64::from(first_shard.0) + u64::from(partition)) % u64::from(shard_count)) as u16)
}

/// How the names of groups begin that are topologies. Each shard knows the progress of its own
/// partitions.
pub const TOPOLOGY_GROUPS: &str = "tidemill.";

/// The partition of a key, as Kafka's Java client chooses it: `murmur2(key)` without its sign,
/// `mod partitions`.
pub fn key_partition(key: &[u8], partition_count: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partition_count
}

/// The shard that holds a consumer group: as if the shards were partitions and the group a key.
pub fn group_shard(group: &str, shard_count: u16) -> ShardId {
    ShardId(key_partition(group.as_bytes(), shard_count.into()) as u16)
}

/// MurmurHash2 with the seed and the tail handling of Kafka's Java client, which picks partitions
/// of keyed records with it (`org.apache.kafka.common.utils.Utils.murmur2`).
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        k = k.wrapping_mul(M);
        k ^= k >> 24;
        k = k.wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let tail = chunks.remainder();
    if tail.len() > 2 {
        hash ^= u32::from(tail[2]) << 16;
    }
    if tail.len() > 1 {
        hash ^= u32::from(tail[1]) << 8;
    }
    if !tail.is_empty() {
        hash ^= u32::from(tail[0]);
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// What a topic is configured to; every key that Tidemill honours, with its value in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfig {
    /// `retention.ms`: records older than this go; `None` (-1) keeps them.
    pub retention_ms: Option<u64>,
    /// `retention.bytes`: a partition larger than this loses its oldest; `None` (-1) keeps all.
    pub retention_bytes: Option<u64>,
    /// `max.message.bytes`: largest batch, in bytes.
    pub batch_size_max: u32,
    /// `message.timestamp.type`: whether the shard stamps batches itself (`LogAppendTime`).
    pub append_time: bool,
    /// Keys that differ from the node's defaults, as they were given.
    pub overrides: BTreeMap<String, String>,
}

impl TopicConfig {
    /// Every honoured key with its value in force, in key order.
    pub fn values(&self) -> [(&'static str, String); 7] {
        let limit = |limit: Option<u64>| limit.map_or("-1".to_owned(), |limit| limit.to_string());
        let timestamp_type = if self.append_time { "LogAppendTime" } else { "CreateTime" };
        [
            ("cleanup.policy", "delete".to_owned()),
            ("compression.type", "producer".to_owned()),
            ("max.message.bytes", self.batch_size_max.to_string()),
            ("message.timestamp.type", timestamp_type.to_owned()),
            ("min.insync.replicas", "1".to_owned()),
            ("retention.bytes", limit(self.retention_bytes)),
            ("retention.ms", limit(self.retention_ms)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_agrees_with_the_java_client() {
        // Vectors of org.apache.kafka.common.utils.UtilsTest.
        for (key, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }
}
