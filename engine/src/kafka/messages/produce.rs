//! Appending records: Produce.

use bytes::Bytes;
use tidemill_wal::format::TopicId;

use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::{Text, message};

message! {
    /// Record batches to append.
    ProduceRequest {
        transactional_id: Option<Text>,
        acks: i16,
        timeout_ms: i32,
        topic_data: Vec<ProduceTopic>,
    }

    /// Record batches for one topic.
    ProduceTopic {
        name: Text [..=12],
        topic_id: TopicId [13..],
        partition_data: Vec<ProducePartition>,
    }

    /// One record batch for one partition.
    ProducePartition {
        index: i32,
        records: Option<Bytes>,
    }

    /// Where record batches went.
    ProduceResponse {
        responses: Vec<ProduceTopicResponse>,
        throttle_time_ms: i32,
        node_endpoints: Vec<NodeEndpoint> [10.., tag 0],
    }

    /// Where one topic's record batches went.
    ProduceTopicResponse {
        name: Text [..=12],
        topic_id: TopicId [13..],
        partition_responses: Vec<ProducePartitionResponse>,
    }

    /// Where one record batch went, or why not.
    ProducePartitionResponse {
        index: i32,
        error_code: ErrorCode,
        base_offset: i64,
        log_append_time_ms: i64 = -1,
        log_start_offset: i64 [5..] = -1,
        record_errors: Vec<RecordError> [8..],
        error_message: Option<Text> [8..],
        current_leader: CurrentLeader [10.., tag 0],
    }

    /// A record that made its batch fail.
    RecordError {
        batch_index: i32,
        batch_index_error_message: Option<Text>,
    }

    /// Where a partition lives, told with an error that says: not here (KIP-951).
    CurrentLeader {
        leader_id: i32 = -1,
        leader_epoch: i32 = -1,
    }

    /// Where a node named in [`CurrentLeader`] is reached.
    NodeEndpoint {
        node_id: i32,
        host: Text,
        port: i32,
        rack: Option<Text>,
    }
}
