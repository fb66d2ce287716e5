//! Topics and where their partitions are: Metadata, DescribeTopicPartitions.

use tidemill_wal::format::TopicId;

use super::OPERATIONS_UNKNOWN;
use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::{DecodeError, Reader, Text, Wire, Writer, message};

message! {
    /// Asks for topics: null means all; in version 0 an empty list does.
    MetadataRequest {
        topics: Option<Vec<MetadataRequestTopic>> [0.., null 1..] = Some(Vec::new()),
        allow_auto_topic_creation: bool [4..] = true,
        include_cluster_authorized_operations: bool [8..=10],
        include_topic_authorized_operations: bool [8..],
    }

    /// A topic, by name or by id.
    MetadataRequestTopic {
        topic_id: TopicId [10..],
        name: Option<Text> [0.., null 10..] = Some(Text::default()),
    }

    /// Brokers and topics.
    MetadataResponse {
        throttle_time_ms: i32 [3..],
        brokers: Vec<MetadataBroker>,
        cluster_id: Option<Text> [2..],
        controller_id: i32 [1..] = -1,
        topics: Vec<MetadataTopic>,
        cluster_authorized_operations: i32 [8..=10] = OPERATIONS_UNKNOWN,
        error_code: ErrorCode [13..],
    }

    /// Where a broker is reached.
    MetadataBroker {
        node_id: i32,
        host: Text,
        port: i32,
        rack: Option<Text> [1..],
    }

    /// One topic.
    MetadataTopic {
        error_code: ErrorCode,
        name: Option<Text> [0.., null 12..] = Some(Text::default()),
        topic_id: TopicId [10..],
        is_internal: bool [1..],
        partitions: Vec<MetadataPartition>,
        topic_authorized_operations: i32 [8..] = OPERATIONS_UNKNOWN,
    }

    /// One partition and its broker.
    MetadataPartition {
        error_code: ErrorCode,
        partition_index: i32,
        leader_id: i32,
        leader_epoch: i32 [7..] = -1,
        replica_nodes: Vec<i32>,
        isr_nodes: Vec<i32>,
        offline_replicas: Vec<i32> [5..],
    }

    /// Asks for partitions, page by page.
    DescribeTopicPartitionsRequest {
        topics: Vec<DescribeTopicPartitionsTopic>,
        response_partition_limit: i32 = 2000,
        cursor: Option<PartitionCursor>,
    }

    /// A topic, by name.
    DescribeTopicPartitionsTopic {
        name: Text,
    }

    /// Where a page begins.
    PartitionCursor {
        topic_name: Text,
        partition_index: i32,
    }

    /// A page of partitions.
    DescribeTopicPartitionsResponse {
        throttle_time_ms: i32,
        topics: Vec<DescribeTopicPartitionsTopicResponse>,
        next_cursor: Option<PartitionCursor>,
    }

    /// One topic's partitions.
    DescribeTopicPartitionsTopicResponse {
        error_code: ErrorCode,
        name: Option<Text> = Some(Text::default()),
        topic_id: TopicId,
        is_internal: bool,
        partitions: Vec<DescribeTopicPartitionsPartition>,
        topic_authorized_operations: i32 = OPERATIONS_UNKNOWN,
    }

    /// One partition and its broker.
    DescribeTopicPartitionsPartition {
        error_code: ErrorCode,
        partition_index: i32,
        leader_id: i32,
        leader_epoch: i32 = -1,
        replica_nodes: Vec<i32>,
        isr_nodes: Vec<i32>,
        eligible_leader_replicas: Option<Vec<i32>>,
        last_known_elr: Option<Vec<i32>>,
        offline_replicas: Vec<i32>,
    }
}

/// A struct that may be null has a byte before it: 1, or -1 for null.
impl Wire for Option<PartitionCursor> {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        if i8::read(reader)? < 0 {
            return Ok(None);
        }
        Ok(Some(PartitionCursor::read(reader)?))
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Some(cursor) => {
                1_i8.write(writer);
                cursor.write(writer);
            }
            None => (-1_i8).write(writer),
        }
    }

    #[cfg(test)]
    fn sample(sampler: &mut crate::kafka::wire::Sampler) -> Self {
        (sampler.below(2) > 0).then(|| PartitionCursor::sample(sampler))
    }
}
