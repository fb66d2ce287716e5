//! Finding offsets: ListOffsets, OffsetForLeaderEpoch.

use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::{Text, message};

message! {
    /// Asks for offsets by time or end. Version 11 differs from 10 only in what times may mean.
    ListOffsetsRequest {
        replica_id: i32 = -1,
        isolation_level: i8 [2..],
        topics: Vec<ListOffsetsTopic>,
        timeout_ms: i32 [10..],
    }

    /// Partitions of one topic.
    ListOffsetsTopic {
        name: Text,
        partitions: Vec<ListOffsetsPartition>,
    }

    /// The time, or a negative number that stands for an end.
    ListOffsetsPartition {
        partition_index: i32,
        current_leader_epoch: i32 [4..] = -1,
        timestamp: i64,
    }

    /// Offsets.
    ListOffsetsResponse {
        throttle_time_ms: i32 [2..],
        topics: Vec<ListOffsetsTopicResponse>,
    }

    /// Offsets of one topic.
    ListOffsetsTopicResponse {
        name: Text,
        partitions: Vec<ListOffsetsPartitionResponse>,
    }

    /// One partition's offset and the timestamp of its record; -1 where there is none.
    ListOffsetsPartitionResponse {
        partition_index: i32,
        error_code: ErrorCode,
        timestamp: i64 = -1,
        offset: i64 = -1,
        leader_epoch: i32 [4..] = -1,
    }

    /// Asks where a leader's records end.
    OffsetForLeaderEpochRequest {
        replica_id: i32 [3..] = -2,
        topics: Vec<OffsetForLeaderTopic>,
    }

    /// Partitions of one topic.
    OffsetForLeaderTopic {
        topic: Text,
        partitions: Vec<OffsetForLeaderPartition>,
    }

    /// The epoch in question.
    OffsetForLeaderPartition {
        partition: i32,
        current_leader_epoch: i32 = -1,
        leader_epoch: i32,
    }

    /// Where leaders' records end.
    OffsetForLeaderEpochResponse {
        throttle_time_ms: i32,
        topics: Vec<OffsetForLeaderTopicResponse>,
    }

    /// The ends in one topic.
    OffsetForLeaderTopicResponse {
        topic: Text,
        partitions: Vec<EpochEndOffset>,
    }

    /// The largest epoch up to the one in question and the offset after its last record.
    EpochEndOffset {
        error_code: ErrorCode,
        partition: i32,
        leader_epoch: i32 = -1,
        end_offset: i64 = -1,
    }
}
