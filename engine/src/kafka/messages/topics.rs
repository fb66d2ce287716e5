//! Changing topics: CreateTopics, DeleteTopics, CreatePartitions, DeleteRecords.

use tidemill_wal::format::TopicId;

use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::{Text, message};

message! {
    /// Topics to make.
    CreateTopicsRequest {
        topics: Vec<CreateTopic>,
        timeout_ms: i32 = 60_000,
        validate_only: bool,
    }

    /// One topic; -1 leaves a number to the node.
    CreateTopic {
        name: Text,
        num_partitions: i32,
        replication_factor: i16,
        assignments: Vec<CreateTopicAssignment>,
        configs: Vec<CreateTopicConfig>,
    }

    /// Brokers of one partition, chosen by hand.
    CreateTopicAssignment {
        partition_index: i32,
        broker_ids: Vec<i32>,
    }

    /// A configuration key of a new topic.
    CreateTopicConfig {
        name: Text,
        value: Option<Text>,
    }

    /// Which topics are made.
    CreateTopicsResponse {
        throttle_time_ms: i32,
        topics: Vec<CreateTopicResponse>,
    }

    /// What one topic became, or why not.
    CreateTopicResponse {
        name: Text,
        topic_id: TopicId [7..],
        error_code: ErrorCode,
        error_message: Option<Text>,
        topic_config_error_code: ErrorCode [5.., tag 0],
        num_partitions: i32 [5..] = -1,
        replication_factor: i16 [5..] = -1,
        configs: Option<Vec<CreateTopicConfigResponse>> [5..] = Some(Vec::new()),
    }

    /// A configuration key in force.
    CreateTopicConfigResponse {
        name: Text,
        value: Option<Text>,
        read_only: bool,
        config_source: i8 = -1,
        is_sensitive: bool,
    }

    /// Topics to remove: by name up to version 5, by name or id from 6 on.
    DeleteTopicsRequest {
        topics: Vec<DeleteTopic> [6..],
        topic_names: Vec<Text> [..=5],
        timeout_ms: i32,
    }

    /// One topic.
    DeleteTopic {
        name: Option<Text>,
        topic_id: TopicId,
    }

    /// Which topics are removed.
    DeleteTopicsResponse {
        throttle_time_ms: i32,
        responses: Vec<DeleteTopicResponse>,
    }

    /// Whether one topic is removed.
    DeleteTopicResponse {
        name: Option<Text> [0.., null 6..] = Some(Text::default()),
        topic_id: TopicId [6..],
        error_code: ErrorCode,
        error_message: Option<Text> [5..],
    }

    /// Topics to get more partitions.
    CreatePartitionsRequest {
        topics: Vec<CreatePartitionsTopic>,
        timeout_ms: i32,
        validate_only: bool,
    }

    /// One topic and its new total.
    CreatePartitionsTopic {
        name: Text,
        count: i32,
        assignments: Option<Vec<CreatePartitionsAssignment>>,
    }

    /// Brokers of one partition, chosen by hand.
    CreatePartitionsAssignment {
        broker_ids: Vec<i32>,
    }

    /// Which topics got more partitions.
    CreatePartitionsResponse {
        throttle_time_ms: i32,
        results: Vec<CreatePartitionsTopicResponse>,
    }

    /// Whether one topic got more partitions.
    CreatePartitionsTopicResponse {
        name: Text,
        error_code: ErrorCode,
        error_message: Option<Text>,
    }

    /// Partitions to lose their oldest records.
    DeleteRecordsRequest {
        topics: Vec<DeleteRecordsTopic>,
        timeout_ms: i32,
    }

    /// Partitions of one topic.
    DeleteRecordsTopic {
        name: Text,
        partitions: Vec<DeleteRecordsPartition>,
    }

    /// The new start of one partition; -1 is its end.
    DeleteRecordsPartition {
        partition_index: i32,
        offset: i64,
    }

    /// Where partitions begin now.
    DeleteRecordsResponse {
        throttle_time_ms: i32,
        topics: Vec<DeleteRecordsTopicResponse>,
    }

    /// Where one topic's partitions begin now.
    DeleteRecordsTopicResponse {
        name: Text,
        partitions: Vec<DeleteRecordsPartitionResponse>,
    }

    /// Where one partition begins now.
    DeleteRecordsPartitionResponse {
        partition_index: i32,
        low_watermark: i64,
        error_code: ErrorCode,
    }
}
