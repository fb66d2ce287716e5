//! What is stored where: DescribeLogDirs.

use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::{Text, message};

message! {
    /// Asks for stored sizes: null means all topics.
    DescribeLogDirsRequest {
        topics: Option<Vec<DescribeLogDirsTopic>> = Some(Vec::new()),
    }

    /// Partitions of one topic.
    DescribeLogDirsTopic {
        topic: Text,
        partitions: Vec<i32>,
    }

    /// Stored sizes.
    DescribeLogDirsResponse {
        throttle_time_ms: i32,
        error_code: ErrorCode [3..],
        results: Vec<DescribeLogDirsResult>,
    }

    /// Stored sizes in one directory.
    DescribeLogDirsResult {
        error_code: ErrorCode,
        log_dir: Text,
        topics: Vec<DescribeLogDirsTopicResponse>,
        total_bytes: i64 [4..] = -1,
        usable_bytes: i64 [4..] = -1,
    }

    /// Stored sizes of one topic.
    DescribeLogDirsTopicResponse {
        name: Text,
        partitions: Vec<DescribeLogDirsPartition>,
    }

    /// Stored size of one partition.
    DescribeLogDirsPartition {
        partition_index: i32,
        partition_size: i64,
        offset_lag: i64,
        is_future_key: bool,
    }
}
