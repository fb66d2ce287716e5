//! Reading records: Fetch.

use tidemill_wal::format::TopicId;

use super::{CurrentLeader, NodeEndpoint};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::{Records, Text, message};

message! {
    /// Asks for records.
    FetchRequest {
        replica_id: i32 [..=14] = -1,
        max_wait_ms: i32,
        min_bytes: i32,
        max_bytes: i32 = i32::MAX,
        isolation_level: i8,
        session_id: i32 [7..],
        session_epoch: i32 [7..] = -1,
        topics: Vec<FetchTopic>,
        forgotten_topics_data: Vec<ForgottenTopic> [7..],
        rack_id: Text [11..],
    }

    /// Partitions wanted of one topic.
    FetchTopic {
        topic: Text [..=12],
        topic_id: TopicId [13..],
        partitions: Vec<FetchPartition>,
    }

    /// From where on, and how much of one partition.
    FetchPartition {
        partition: i32,
        current_leader_epoch: i32 [9..] = -1,
        fetch_offset: i64,
        last_fetched_epoch: i32 [12..] = -1,
        log_start_offset: i64 [5..] = -1,
        partition_max_bytes: i32,
    }

    /// Partitions that leave a fetch session.
    ForgottenTopic {
        topic: Text [..=12],
        topic_id: TopicId [13..],
        partitions: Vec<i32>,
    }

    /// Records.
    FetchResponse {
        throttle_time_ms: i32,
        error_code: ErrorCode [7..],
        session_id: i32 [7..],
        responses: Vec<FetchTopicResponse>,
        node_endpoints: Vec<NodeEndpoint> [16.., tag 0],
    }

    /// Records of one topic.
    FetchTopicResponse {
        topic: Text [..=12],
        topic_id: TopicId [13..],
        partitions: Vec<FetchPartitionResponse>,
    }

    /// Records of one partition, or why none.
    FetchPartitionResponse {
        partition_index: i32,
        error_code: ErrorCode,
        high_watermark: i64,
        last_stable_offset: i64 = -1,
        log_start_offset: i64 [5..] = -1,
        current_leader: CurrentLeader [12.., tag 1],
        aborted_transactions: Option<Vec<AbortedTransaction>>,
        preferred_read_replica: i32 [11..] = -1,
        records: Records,
    }

    /// Records of this producer from this offset on are void.
    AbortedTransaction {
        producer_id: i64,
        first_offset: i64,
    }
}
