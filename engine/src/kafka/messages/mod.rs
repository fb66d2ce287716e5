//! Every message that this node speaks, as tables; one file for each group of APIs.
//!
//! Field names are the protocol's. What only replicas of one partition say to each other (replica
//! state, snapshots, diverging epochs) is left out: it travels in tagged fields, which are skipped.

mod api_versions;
mod cluster;
mod configs;
mod coordinator;
mod fetch;
mod groups;
mod list_offsets;
mod log_dirs;
mod membership;
mod metadata;
mod offsets;
mod produce;
mod producers;
mod topics;

pub use api_versions::*;
pub use cluster::*;
pub use configs::*;
pub use coordinator::*;
pub use fetch::*;
pub use groups::*;
pub use list_offsets::*;
pub use log_dirs::*;
pub use membership::*;
pub use metadata::*;
pub use offsets::*;
pub use produce::*;
pub use producers::*;
pub use topics::*;

use crate::kafka::api_key::ApiKey;
use crate::kafka::wire::Wire;

/// A request's body, which names its API and what answers it.
pub trait Request: Wire {
    /// Its API.
    const API: ApiKey;
    /// Its answer's body.
    type Response: Wire;
}

macro_rules! requests {
    ($($api:ident $request:ident $response:ident;)+) => {
        $(impl Request for $request {
            const API: ApiKey = ApiKey::$api;
            type Response = $response;
        })+

        /// Runs a macro with the table of all APIs, so that no test forgets one.
        #[cfg(test)]
        macro_rules! for_each_api {
            ($run:ident) => { $($run!($api $request $response);)+ };
        }
    };
}

requests! {
    Produce                 ProduceRequest                 ProduceResponse;
    Fetch                   FetchRequest                   FetchResponse;
    ListOffsets             ListOffsetsRequest             ListOffsetsResponse;
    Metadata                MetadataRequest                MetadataResponse;
    OffsetCommit            OffsetCommitRequest            OffsetCommitResponse;
    OffsetFetch             OffsetFetchRequest             OffsetFetchResponse;
    FindCoordinator         FindCoordinatorRequest         FindCoordinatorResponse;
    JoinGroup               JoinGroupRequest               JoinGroupResponse;
    Heartbeat               HeartbeatRequest               HeartbeatResponse;
    LeaveGroup              LeaveGroupRequest              LeaveGroupResponse;
    SyncGroup               SyncGroupRequest               SyncGroupResponse;
    DescribeGroups          DescribeGroupsRequest          DescribeGroupsResponse;
    ListGroups              ListGroupsRequest              ListGroupsResponse;
    ApiVersions             ApiVersionsRequest             ApiVersionsResponse;
    CreateTopics            CreateTopicsRequest            CreateTopicsResponse;
    DeleteTopics            DeleteTopicsRequest            DeleteTopicsResponse;
    DeleteRecords           DeleteRecordsRequest           DeleteRecordsResponse;
    InitProducerId          InitProducerIdRequest          InitProducerIdResponse;
    OffsetForLeaderEpoch    OffsetForLeaderEpochRequest    OffsetForLeaderEpochResponse;
    DescribeConfigs         DescribeConfigsRequest         DescribeConfigsResponse;
    AlterConfigs            AlterConfigsRequest            AlterConfigsResponse;
    DescribeLogDirs         DescribeLogDirsRequest         DescribeLogDirsResponse;
    CreatePartitions        CreatePartitionsRequest        CreatePartitionsResponse;
    DeleteGroups            DeleteGroupsRequest            DeleteGroupsResponse;
    IncrementalAlterConfigs IncrementalAlterConfigsRequest IncrementalAlterConfigsResponse;
    OffsetDelete            OffsetDeleteRequest            OffsetDeleteResponse;
    DescribeCluster         DescribeClusterRequest         DescribeClusterResponse;
    DescribeProducers       DescribeProducersRequest       DescribeProducersResponse;
    DescribeTopicPartitions DescribeTopicPartitionsRequest DescribeTopicPartitionsResponse;
}

/// `authorized_operations` when nobody asked.
pub const OPERATIONS_UNKNOWN: i32 = i32::MIN;

#[cfg(test)]
mod tests;
