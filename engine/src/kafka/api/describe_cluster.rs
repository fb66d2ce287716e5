//! DescribeCluster: the brokers that clients see.

use super::{CLUSTER_OPERATIONS, Step, decode, first_error, respond};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    DescribeClusterBroker, DescribeClusterRequest, DescribeClusterResponse, OPERATIONS_UNKNOWN,
};
use crate::kafka::session::{Context, Endpoint};

/// `endpoint_type` of brokers.
const BROKERS: i8 = 1;
/// `endpoint_type` of controllers, which have listeners of their own in Kafka and none here.
const CONTROLLERS: i8 = 2;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    let wanted = decode!(cx, request, DescribeClusterRequest);
    let (error_code, message) = match wanted.endpoint_type {
        BROKERS => (ErrorCode::None, None),
        CONTROLLERS => {
            (ErrorCode::MismatchedEndpointType, Some("this endpoint is a broker's".into()))
        }
        _ => (ErrorCode::UnsupportedEndpointType, Some("an unknown type of endpoint".into())),
    };
    let mut response = DescribeClusterResponse {
        error_code,
        error_message: message,
        endpoint_type: wanted.endpoint_type,
        ..Default::default()
    };
    if error_code.is_none() {
        response.cluster_id = cx.facts.cluster_id.as_str().into();
        response.controller_id = 0;
        response.brokers = cx.facts.brokers().map(broker).collect();
        response.cluster_authorized_operations = if wanted.include_cluster_authorized_operations {
            CLUSTER_OPERATIONS
        } else {
            OPERATIONS_UNKNOWN
        };
    }
    let error = first_error([error_code]);
    respond::<DescribeClusterRequest>(request, &response, error)
}

fn broker((broker_id, endpoint): (i32, &Endpoint)) -> DescribeClusterBroker {
    DescribeClusterBroker {
        broker_id,
        host: endpoint.host.as_str().into(),
        port: endpoint.port.into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;

    #[test]
    fn brokers_are_the_node_or_its_shards() {
        let brokers = |world: World| {
            let response = world.answer(2, &DescribeClusterRequest::default());
            assert_eq!((&*response.cluster_id, response.controller_id), ("tide", 0));
            assert_eq!(response.cluster_authorized_operations, OPERATIONS_UNKNOWN);
            let brokers = response.brokers.into_iter();
            brokers.map(|b| (b.broker_id, b.host.to_string(), b.port)).collect::<Vec<_>>()
        };
        assert_eq!(brokers(World::new()), [(0, "mill".into(), 9092)]);
        let shards = [(0, "mill".into(), 9092), (1, "mill".into(), 9093)];
        assert_eq!(brokers(World::new().advertise_shards()), shards);
    }

    #[test]
    fn controllers_are_asked_for_elsewhere() {
        for (endpoint_type, error_code) in
            [(2, ErrorCode::MismatchedEndpointType), (3, ErrorCode::UnsupportedEndpointType)]
        {
            let wanted = DescribeClusterRequest { endpoint_type, ..Default::default() };
            let response = World::new().answer(1, &wanted);
            assert_eq!(response.error_code, error_code);
            assert!(response.brokers.is_empty());
        }
    }

    #[test]
    fn whoever_asks_may_do_everything() {
        let wanted = DescribeClusterRequest {
            include_cluster_authorized_operations: true,
            ..Default::default()
        };
        let response = World::new().answer(0, &wanted);
        assert_eq!(response.cluster_authorized_operations, CLUSTER_OPERATIONS);
    }
}
