//! The brokers: DescribeCluster.

use super::OPERATIONS_UNKNOWN;
use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::{Text, message};

message! {
    /// Asks for the brokers.
    DescribeClusterRequest {
        include_cluster_authorized_operations: bool,
        endpoint_type: i8 [1..] = 1,
        include_fenced_brokers: bool [2..],
    }

    /// The brokers.
    DescribeClusterResponse {
        throttle_time_ms: i32,
        error_code: ErrorCode,
        error_message: Option<Text>,
        endpoint_type: i8 [1..] = 1,
        cluster_id: Text,
        controller_id: i32 = -1,
        brokers: Vec<DescribeClusterBroker>,
        cluster_authorized_operations: i32 = OPERATIONS_UNKNOWN,
    }

    /// Where a broker is reached.
    DescribeClusterBroker {
        broker_id: i32,
        host: Text,
        port: i32,
        rack: Option<Text>,
        is_fenced: bool [2..],
    }
}
