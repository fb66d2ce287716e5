//! Progress of consumer groups: OffsetCommit, OffsetFetch, OffsetDelete.

use tidemill_wal::format::TopicId;

use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::{Text, message};

message! {
    /// Offsets to store.
    OffsetCommitRequest {
        group_id: Text,
        generation_id_or_member_epoch: i32 = -1,
        member_id: Text,
        group_instance_id: Option<Text> [7..],
        retention_time_ms: i64 [2..=4] = -1,
        topics: Vec<OffsetCommitTopic>,
    }

    /// Offsets of one topic.
    OffsetCommitTopic {
        name: Text [..=9],
        topic_id: TopicId [10..],
        partitions: Vec<OffsetCommitPartition>,
    }

    /// One offset.
    OffsetCommitPartition {
        partition_index: i32,
        committed_offset: i64,
        committed_leader_epoch: i32 [6..] = -1,
        committed_metadata: Option<Text> = Some(Text::default()),
    }

    /// Which offsets are stored.
    OffsetCommitResponse {
        throttle_time_ms: i32 [3..],
        topics: Vec<OffsetCommitTopicResponse>,
    }

    /// Which offsets of one topic are stored.
    OffsetCommitTopicResponse {
        name: Text [..=9],
        topic_id: TopicId [10..],
        partitions: Vec<OffsetCommitPartitionResponse>,
    }

    /// Whether one offset is stored.
    OffsetCommitPartitionResponse {
        partition_index: i32,
        error_code: ErrorCode,
    }

    /// Asks for stored offsets: of one group up to version 7, of many from 8 on. No topics (null)
    /// means all.
    OffsetFetchRequest {
        group_id: Text [..=7],
        topics: Option<Vec<OffsetFetchTopic>> [..=7, null 2..] = Some(Vec::new()),
        groups: Vec<OffsetFetchGroup> [8..],
        require_stable: bool [7..],
    }

    /// One group's offsets wanted.
    OffsetFetchGroup {
        group_id: Text,
        member_id: Option<Text> [9..],
        member_epoch: i32 [9..] = -1,
        topics: Option<Vec<OffsetFetchTopic>> = Some(Vec::new()),
    }

    /// Partitions of one topic.
    OffsetFetchTopic {
        name: Text [..=9],
        topic_id: TopicId [10..],
        partition_indexes: Vec<i32>,
    }

    /// Stored offsets: of one group up to version 7, of many from 8 on.
    OffsetFetchResponse {
        throttle_time_ms: i32 [3..],
        topics: Vec<OffsetFetchTopicResponse> [..=7],
        error_code: ErrorCode [2..=7],
        groups: Vec<OffsetFetchGroupResponse> [8..],
    }

    /// One group's stored offsets.
    OffsetFetchGroupResponse {
        group_id: Text,
        topics: Vec<OffsetFetchTopicResponse>,
        error_code: ErrorCode,
    }

    /// Stored offsets of one topic.
    OffsetFetchTopicResponse {
        name: Text [..=9],
        topic_id: TopicId [10..],
        partitions: Vec<OffsetFetchPartitionResponse>,
    }

    /// A stored offset; -1 where there is none.
    OffsetFetchPartitionResponse {
        partition_index: i32,
        committed_offset: i64,
        committed_leader_epoch: i32 [5..] = -1,
        metadata: Option<Text> = Some(Text::default()),
        error_code: ErrorCode,
    }

    /// Offsets to forget.
    OffsetDeleteRequest {
        group_id: Text,
        topics: Vec<OffsetDeleteTopic>,
    }

    /// Offsets of one topic.
    OffsetDeleteTopic {
        name: Text,
        partitions: Vec<OffsetDeletePartition>,
    }

    /// One partition's offset.
    OffsetDeletePartition {
        partition_index: i32,
    }

    /// Which offsets are forgotten.
    OffsetDeleteResponse {
        error_code: ErrorCode,
        throttle_time_ms: i32,
        topics: Vec<OffsetDeleteTopicResponse>,
    }

    /// Which offsets of one topic are forgotten.
    OffsetDeleteTopicResponse {
        name: Text,
        partitions: Vec<OffsetDeletePartitionResponse>,
    }

    /// Whether one offset is forgotten.
    OffsetDeletePartitionResponse {
        partition_index: i32,
        error_code: ErrorCode,
    }
}
