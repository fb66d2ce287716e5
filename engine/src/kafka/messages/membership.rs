//! Members of consumer groups: JoinGroup, SyncGroup, Heartbeat, LeaveGroup.

use bytes::Bytes;

use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::{Text, message};

message! {
    /// Asks to become or stay a member.
    JoinGroupRequest {
        group_id: Text,
        session_timeout_ms: i32,
        rebalance_timeout_ms: i32 [1..] = -1,
        member_id: Text,
        group_instance_id: Option<Text> [5..],
        protocol_type: Text,
        protocols: Vec<JoinGroupProtocol>,
        reason: Option<Text> [8..],
    }

    /// An assignor that the member knows, with its subscription.
    JoinGroupProtocol {
        name: Text,
        metadata: Bytes,
    }

    /// A finished join.
    JoinGroupResponse {
        throttle_time_ms: i32 [2..],
        error_code: ErrorCode,
        generation_id: i32 = -1,
        protocol_type: Option<Text> [7..],
        protocol_name: Option<Text> [0.., null 7..] = Some(Text::default()),
        leader: Text,
        skip_assignment: bool [9..],
        member_id: Text,
        members: Vec<JoinGroupMember>,
    }

    /// A member as the leader sees it.
    JoinGroupMember {
        member_id: Text,
        group_instance_id: Option<Text> [5..],
        metadata: Bytes,
    }

    /// Asks for the assignment; the leader brings everybody's.
    SyncGroupRequest {
        group_id: Text,
        generation_id: i32,
        member_id: Text,
        group_instance_id: Option<Text> [3..],
        protocol_type: Option<Text> [5..],
        protocol_name: Option<Text> [5..],
        assignments: Vec<SyncGroupAssignment>,
    }

    /// One member's assignment.
    SyncGroupAssignment {
        member_id: Text,
        assignment: Bytes,
    }

    /// The asker's assignment.
    SyncGroupResponse {
        throttle_time_ms: i32 [1..],
        error_code: ErrorCode,
        protocol_type: Option<Text> [5..],
        protocol_name: Option<Text> [5..],
        assignment: Bytes,
    }

    /// A sign of life.
    HeartbeatRequest {
        group_id: Text,
        generation_id: i32,
        member_id: Text,
        group_instance_id: Option<Text> [3..],
    }

    /// Whether the member is still one.
    HeartbeatResponse {
        throttle_time_ms: i32 [1..],
        error_code: ErrorCode,
    }

    /// Members that go: one up to version 2, many from 3 on.
    LeaveGroupRequest {
        group_id: Text,
        member_id: Text [..=2],
        members: Vec<LeaveGroupMember> [3..],
    }

    /// A member that goes.
    LeaveGroupMember {
        member_id: Text,
        group_instance_id: Option<Text>,
        reason: Option<Text> [5..],
    }

    /// Who went.
    LeaveGroupResponse {
        throttle_time_ms: i32 [1..],
        error_code: ErrorCode,
        members: Vec<LeaveGroupMemberResponse> [3..],
    }

    /// Whether one member went.
    LeaveGroupMemberResponse {
        member_id: Text,
        group_instance_id: Option<Text>,
        error_code: ErrorCode,
    }
}
