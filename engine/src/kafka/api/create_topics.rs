//! CreateTopics. Partitions have one replica, and the node places them: a placement by hand is
//! taken only where there is one broker to name.

use super::ask::{ask_catalog, decoded, repeated};
use super::describe_configs::{SOURCE_DEFAULT, SOURCE_TOPIC};
use super::fault::{Fault, told};
use super::{Step, first_error, head_of, respond};
use crate::command::{CatalogCommand, NewTopic, TopicChange};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    CreateTopic, CreateTopicAssignment, CreateTopicConfigResponse, CreateTopicResponse,
    CreateTopicsRequest, CreateTopicsResponse,
};
use crate::kafka::session::{Advertise, Context, NodeFacts};
use crate::kafka::wire::Text;

/// The replicas that every partition has.
const REPLICA_COUNT: i16 = 1;

/// Where the client leaves a number to the node.
const UNSET: i32 = -1;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: CreateTopicsRequest| {
        let repeated = repeated(body.topics.iter().map(|topic| &topic.name));
        let mut topics = Vec::new();
        let mut checked = Vec::with_capacity(body.topics.len());
        for topic in &body.topics {
            let new = match repeated.contains(&topic.name) {
                true => Err(repeated_fault(&topic.name)),
                false => new_topic(cx.facts, topic),
            };
            checked.push(new.map(|topic| topics.push(topic)));
        }
        let names: Vec<_> = body.topics.into_iter().map(|topic| topic.name).collect();
        let validate_only = body.validate_only;
        let command = CatalogCommand::CreateTopics { topics, validate_only };
        let request = head_of(request);
        ask_catalog(command, checked, move |_, outcomes| {
            let topics: Vec<_> = (names.into_iter().zip(outcomes))
                .map(|(name, outcome)| created(name, outcome, validate_only))
                .collect();
            let error = first_error(topics.iter().map(|topic| topic.error_code));
            let response = CreateTopicsResponse { topics, ..CreateTopicsResponse::default() };
            respond::<CreateTopicsRequest>(&request, &response, error)
        })
    })
}

/// The topic occurs more than once, and which mention counts is anybody's guess.
pub(super) fn repeated_fault(name: &str) -> Fault {
    let message = format!("topic {name:?} is named more than once in one request");
    Fault::new(ErrorCode::InvalidRequest, message)
}

fn new_topic(facts: &NodeFacts, topic: &CreateTopic) -> Result<NewTopic, Fault> {
    let partition_count = match topic.assignments.as_slice() {
        [] => {
            check_replication_factor(topic.replication_factor)?;
            match topic.num_partitions {
                UNSET => None,
                count => Some(check_partition_count(count)?),
            }
        }
        assignments => {
            let is_unset =
                topic.num_partitions == UNSET && i32::from(topic.replication_factor) == UNSET;
            if !is_unset {
                let message = "partitions and replication factor follow from a placement by hand: \
                               both must be -1";
                return Err(Fault::new(ErrorCode::InvalidRequest, message));
            }
            Some(assigned_count(facts, assignments)?)
        }
    };
    let config = topic.configs.iter().map(|config| match &config.value {
        Some(value) => Ok((config.name.to_string(), value.to_string())),
        None => {
            let message = format!("the topic configuration {:?} has no value", config.name);
            Err(Fault::new(ErrorCode::InvalidConfig, message))
        }
    });
    Ok(NewTopic {
        name: topic.name.to_string(),
        partition_count,
        config: config.collect::<Result<_, _>>()?,
        automatic: false,
    })
}

fn check_replication_factor(factor: i16) -> Result<(), Fault> {
    if i32::from(factor) == UNSET || factor == REPLICA_COUNT {
        return Ok(());
    }
    let message = format!("the replication factor is 1 (or -1) on this node, not {factor}");
    Err(Fault::new(ErrorCode::InvalidReplicationFactor, message))
}

/// A topic has one partition or more.
pub(super) fn check_partition_count(count: i32) -> Result<u32, Fault> {
    match u32::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => {
            let message = format!("a topic has at least one partition, not {count}");
            Err(Fault::new(ErrorCode::InvalidPartitions, message))
        }
    }
}

fn assigned_count(facts: &NodeFacts, assignments: &[CreateTopicAssignment]) -> Result<u32, Fault> {
    let mut indexes: Vec<_> = assignments.iter().map(|assigned| assigned.partition_index).collect();
    indexes.sort_unstable();
    if !indexes.iter().copied().eq(0..assignments.len() as i32) {
        let message = "a placement by hand names each partition from 0 on once";
        return Err(Fault::new(ErrorCode::InvalidReplicaAssignment, message));
    }
    for assigned in assignments {
        check_assignment(facts, &assigned.broker_ids)?;
    }
    Ok(assignments.len() as u32)
}

/// Whether the brokers chosen for a partition are where it goes anyway.
pub(super) fn check_assignment(facts: &NodeFacts, brokers: &[i32]) -> Result<(), Fault> {
    let is_alone = match &facts.advertise {
        Advertise::Node(_) => true,
        Advertise::Shards(endpoints) => endpoints.len() == 1,
    };
    let message = match brokers {
        [0] if is_alone => return Ok(()),
        [_] if !is_alone => "the node places partitions itself; leave the placement out",
        [_] => "there is no broker but broker 0",
        _ => "each partition has one replica",
    };
    Err(Fault::new(ErrorCode::InvalidReplicaAssignment, message))
}

fn created(
    name: Text,
    outcome: Result<TopicChange, Fault>,
    validate_only: bool,
) -> CreateTopicResponse {
    let change = match outcome {
        Ok(change) => change,
        fault => {
            let (error_code, error_message) = told(fault);
            let response = CreateTopicResponse {
                name,
                error_code,
                error_message,
                ..CreateTopicResponse::default()
            };
            return response;
        }
    };
    let configs =
        change.config.into_iter().map(|(name, value, is_overridden)| CreateTopicConfigResponse {
            name: name.into(),
            value: Some(value.into()),
            config_source: if is_overridden { SOURCE_TOPIC } else { SOURCE_DEFAULT },
            ..CreateTopicConfigResponse::default()
        });
    CreateTopicResponse {
        name,
        // Nothing was made that an id could name.
        topic_id: if validate_only { Default::default() } else { change.topic },
        num_partitions: change.partition_count as i32,
        replication_factor: REPLICA_COUNT,
        configs: Some(configs.collect()),
        ..CreateTopicResponse::default()
    }
}

#[cfg(test)]
mod tests {
    use tidemill_wal::format::{ShardId, TopicId};

    use super::super::drive::Node;
    use super::*;
    use crate::command::{Command, Refusal, Refused, Reply};
    use crate::kafka::messages::CreateTopicConfig;

    fn topic(name: &str) -> CreateTopic {
        CreateTopic {
            name: name.into(),
            num_partitions: -1,
            replication_factor: -1,
            ..CreateTopic::default()
        }
    }

    fn assigned(partition_index: i32, broker_ids: &[i32]) -> CreateTopicAssignment {
        CreateTopicAssignment { partition_index, broker_ids: broker_ids.to_vec() }
    }

    fn request(topics: Vec<CreateTopic>) -> CreateTopicsRequest {
        CreateTopicsRequest { topics, ..CreateTopicsRequest::default() }
    }

    /// Makes what is asked, except the topic `taken`.
    fn made(shard: ShardId, command: Command) -> Reply {
        assert_eq!(shard, ShardId(0));
        let Command::Catalog(CatalogCommand::CreateTopics { topics, .. }) = command else {
            panic!("{command:?}")
        };
        let change = |topic: NewTopic| match topic.name.as_str() {
            "taken" => Err(Refused { refusal: Refusal::TopicExists, message: "exists".into() }),
            _ => Ok(TopicChange {
                topic: TopicId([5; 16]),
                partition_count: topic.partition_count.unwrap_or(8),
                config: vec![
                    ("retention.bytes".into(), "-1".into(), false),
                    ("retention.ms".into(), "5".into(), true),
                ],
            }),
        };
        Reply::Catalog(topics.into_iter().map(change).collect())
    }

    /// The codes of topics that are wrong by themselves, so that nobody is asked.
    fn code_alone(node: &Node, topic: CreateTopic) -> ErrorCode {
        let response = node.answer(7, request(vec![topic]));
        assert!(response.topics[0].error_message.is_some());
        response.topics[0].error_code
    }

    #[test]
    fn a_topic_comes_with_its_id_numbers_and_configuration() {
        for version in 2..=7 {
            let with_config = CreateTopic {
                num_partitions: 3,
                replication_factor: 1,
                configs: vec![CreateTopicConfig {
                    name: "retention.ms".into(),
                    value: Some("5".into()),
                }],
                ..topic("new")
            };
            let by_hand = CreateTopic {
                assignments: vec![assigned(1, &[0]), assigned(0, &[0])],
                ..topic("by-hand")
            };
            let asked = vec![with_config, topic("taken"), by_hand, topic("plain")];
            let response = Node::new().call(version, request(asked), |shard, command| {
                if let Command::Catalog(CatalogCommand::CreateTopics { topics, .. }) = &command {
                    let config = [("retention.ms".to_owned(), "5".to_owned())];
                    assert_eq!(topics[0].config, config);
                    assert!(topics.iter().all(|topic| !topic.automatic));
                }
                made(shard, command)
            });
            let rows: Vec<_> = (response.topics.iter())
                .map(|topic| (topic.name.as_str(), topic.error_code, topic.num_partitions))
                .collect();
            let count = |count| if version >= 5 { count } else { -1 };
            assert_eq!(
                rows,
                [
                    ("new", ErrorCode::None, count(3)),
                    ("taken", ErrorCode::TopicAlreadyExists, -1),
                    ("by-hand", ErrorCode::None, count(2)),
                    ("plain", ErrorCode::None, count(8)),
                ]
            );
            assert_eq!(response.topics[1].error_message, Some("exists".into()));
            let new = &response.topics[0];
            assert_eq!(new.topic_id, TopicId(if version >= 7 { [5; 16] } else { [0; 16] }));
            if version >= 5 {
                let sources: Vec<_> =
                    new.configs.iter().flatten().map(|config| config.config_source).collect();
                assert_eq!(sources, [SOURCE_DEFAULT, SOURCE_TOPIC]);
            }
        }
    }

    #[test]
    fn validation_alone_makes_no_id() {
        let asked = CreateTopicsRequest { validate_only: true, ..request(vec![topic("new")]) };
        let response = Node::new().call(7, asked, |shard, command| {
            let Command::Catalog(CatalogCommand::CreateTopics { validate_only: true, .. }) =
                command
            else {
                panic!("{command:?}")
            };
            made(shard, command)
        });
        assert_eq!(response.topics[0].topic_id, TopicId::default());
        assert_eq!(response.topics[0].num_partitions, 8);
    }

    #[test]
    fn a_name_that_occurs_twice_is_made_by_neither_mention() {
        let asked = request(vec![topic("twice"), topic("once"), topic("twice")]);
        let response = Node::new().call(7, asked, |shard, command| {
            let Command::Catalog(CatalogCommand::CreateTopics { topics, .. }) = &command else {
                panic!("{command:?}")
            };
            assert_eq!(topics.len(), 1);
            made(shard, command)
        });
        let codes: Vec<_> = response.topics.iter().map(|topic| topic.error_code).collect();
        let twice = ErrorCode::InvalidRequest;
        assert_eq!(codes, [twice, ErrorCode::None, twice]);
    }

    #[test]
    fn counts_that_cannot_be_are_refused() {
        let node = Node::new();
        for num_partitions in [0, -2, i32::MIN] {
            let wrong = CreateTopic { num_partitions, ..topic("t") };
            assert_eq!(code_alone(&node, wrong), ErrorCode::InvalidPartitions);
        }
        for replication_factor in [0, 2, 3, -2] {
            let wrong = CreateTopic { replication_factor, ..topic("t") };
            assert_eq!(code_alone(&node, wrong), ErrorCode::InvalidReplicationFactor);
        }
        let null = CreateTopicConfig { name: "retention.ms".into(), value: None };
        let wrong = CreateTopic { configs: vec![null], ..topic("t") };
        assert_eq!(code_alone(&node, wrong), ErrorCode::InvalidConfig);
    }

    #[test]
    fn a_placement_that_would_not_be_honoured_is_refused() {
        let node = Node::new();
        for assignments in [
            vec![assigned(0, &[1])],
            vec![assigned(0, &[0, 1])],
            vec![assigned(0, &[])],
            vec![assigned(1, &[0])],
            vec![assigned(0, &[0]), assigned(0, &[0])],
        ] {
            let wrong = CreateTopic { assignments, ..topic("t") };
            assert_eq!(code_alone(&node, wrong), ErrorCode::InvalidReplicaAssignment);
        }
        let by_hand = CreateTopic { assignments: vec![assigned(0, &[0])], ..topic("t") };
        let counted = CreateTopic { num_partitions: 1, ..by_hand.clone() };
        assert_eq!(code_alone(&node, counted), ErrorCode::InvalidRequest);
        let code = code_alone(&Node::with_ports(), by_hand);
        assert_eq!(code, ErrorCode::InvalidReplicaAssignment);
    }

    #[test]
    fn a_refused_command_is_told_for_each_topic() {
        let asked = request(vec![topic("a"), topic("b")]);
        let response = Node::new().call(7, asked, |_, _| Reply::Refused(Refusal::Busy));
        for topic in response.topics {
            assert_eq!(topic.error_code, ErrorCode::RequestTimedOut);
        }
    }
}
