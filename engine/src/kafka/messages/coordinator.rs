//! Who looks after a group or a transaction: FindCoordinator.

use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::{Text, message};

message! {
    /// Asks for one key up to version 3, for many from 4 on.
    FindCoordinatorRequest {
        key: Text [..=3],
        key_type: i8 [1..],
        coordinator_keys: Vec<Text> [4..],
    }

    /// One coordinator up to version 3, many from 4 on.
    FindCoordinatorResponse {
        throttle_time_ms: i32 [1..],
        error_code: ErrorCode [..=3],
        error_message: Option<Text> [1..=3] = Some(Text::default()),
        node_id: i32 [..=3],
        host: Text [..=3],
        port: i32 [..=3],
        coordinators: Vec<Coordinator> [4..],
    }

    /// One key's coordinator.
    Coordinator {
        key: Text,
        node_id: i32,
        host: Text,
        port: i32,
        error_code: ErrorCode,
        error_message: Option<Text> = Some(Text::default()),
    }
}
