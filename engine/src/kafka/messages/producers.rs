//! Idempotent producers: InitProducerId, DescribeProducers.

use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::{Text, message};

message! {
    /// Asks for a producer id, or the next epoch of one.
    InitProducerIdRequest {
        transactional_id: Option<Text>,
        transaction_timeout_ms: i32,
        producer_id: i64 [3..] = -1,
        producer_epoch: i16 [3..] = -1,
    }

    /// A producer id.
    InitProducerIdResponse {
        throttle_time_ms: i32,
        error_code: ErrorCode,
        producer_id: i64 = -1,
        producer_epoch: i16,
    }

    /// Asks for the producers of partitions.
    DescribeProducersRequest {
        topics: Vec<DescribeProducersTopic>,
    }

    /// Partitions of one topic.
    DescribeProducersTopic {
        name: Text,
        partition_indexes: Vec<i32>,
    }

    /// Producers of partitions.
    DescribeProducersResponse {
        throttle_time_ms: i32,
        topics: Vec<DescribeProducersTopicResponse>,
    }

    /// Producers of one topic.
    DescribeProducersTopicResponse {
        name: Text,
        partitions: Vec<DescribeProducersPartition>,
    }

    /// Producers of one partition.
    DescribeProducersPartition {
        partition_index: i32,
        error_code: ErrorCode,
        error_message: Option<Text>,
        active_producers: Vec<ActiveProducer>,
    }

    /// One producer.
    ActiveProducer {
        producer_id: i64,
        producer_epoch: i32,
        last_sequence: i32 = -1,
        last_timestamp: i64 = -1,
        coordinator_epoch: i32,
        current_txn_start_offset: i64 = -1,
    }
}
