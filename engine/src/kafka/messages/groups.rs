//! Consumer groups seen from outside: DescribeGroups, ListGroups, DeleteGroups.

use bytes::Bytes;

use super::OPERATIONS_UNKNOWN;
use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::{Text, message};

message! {
    /// Asks for groups by name.
    DescribeGroupsRequest {
        groups: Vec<Text>,
        include_authorized_operations: bool [3..],
    }

    /// Groups.
    DescribeGroupsResponse {
        throttle_time_ms: i32 [1..],
        groups: Vec<DescribedGroup>,
    }

    /// One group.
    DescribedGroup {
        error_code: ErrorCode,
        error_message: Option<Text> [6..],
        group_id: Text,
        group_state: Text,
        protocol_type: Text,
        protocol_data: Text,
        members: Vec<DescribedGroupMember>,
        authorized_operations: i32 [3..] = OPERATIONS_UNKNOWN,
    }

    /// One member.
    DescribedGroupMember {
        member_id: Text,
        group_instance_id: Option<Text> [4..],
        client_id: Text,
        client_host: Text,
        member_metadata: Bytes,
        member_assignment: Bytes,
    }

    /// Asks for all groups in some states, of some types; empty means all.
    ListGroupsRequest {
        states_filter: Vec<Text> [4..],
        types_filter: Vec<Text> [5..],
    }

    /// All groups.
    ListGroupsResponse {
        throttle_time_ms: i32 [1..],
        error_code: ErrorCode,
        groups: Vec<ListedGroup>,
    }

    /// One group.
    ListedGroup {
        group_id: Text,
        protocol_type: Text,
        group_state: Text [4..],
        group_type: Text [5..],
    }

    /// Groups to remove.
    DeleteGroupsRequest {
        groups_names: Vec<Text>,
    }

    /// Which groups are removed.
    DeleteGroupsResponse {
        throttle_time_ms: i32,
        results: Vec<DeletedGroup>,
    }

    /// Whether one group is removed.
    DeletedGroup {
        group_id: Text,
        error_code: ErrorCode,
    }
}
