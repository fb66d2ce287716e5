//! CreatePartitions: more partitions for a topic; never fewer.

use tidemill_wal::format::TopicId;

use super::ask::{ask_catalog, decoded, repeated};
use super::create_topics::{check_assignment, check_partition_count, repeated_fault};
use super::fault::{Fault, told};
use super::{Step, first_error, head_of, respond};
use crate::command::CatalogCommand;
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreatePartitionsTopic,
    CreatePartitionsTopicResponse,
};
use crate::kafka::session::Context;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: CreatePartitionsRequest| {
        let repeated = repeated(body.topics.iter().map(|topic| &topic.name));
        let mut topics = Vec::new();
        let mut checked = Vec::with_capacity(body.topics.len());
        for topic in &body.topics {
            let grown = match repeated.contains(&topic.name) {
                true => Err(repeated_fault(&topic.name)),
                false => check(cx, topic),
            };
            checked.push(grown.map(|grown| topics.push(grown)));
        }
        let names: Vec<_> = body.topics.into_iter().map(|topic| topic.name).collect();
        let validate_only = body.validate_only;
        let command = CatalogCommand::CreatePartitions { topics, validate_only };
        let request = head_of(request);
        ask_catalog(command, checked, move |_, outcomes| {
            let results: Vec<_> = (names.into_iter().zip(outcomes))
                .map(|(name, outcome)| {
                    let (error_code, error_message) = told(outcome);
                    CreatePartitionsTopicResponse { name, error_code, error_message }
                })
                .collect();
            let error = first_error(results.iter().map(|result| result.error_code));
            let response =
                CreatePartitionsResponse { results, ..CreatePartitionsResponse::default() };
            respond::<CreatePartitionsRequest>(&request, &response, error)
        })
    })
}

fn check(cx: &Context<'_>, topic: &CreatePartitionsTopic) -> Result<(TopicId, u32), Fault> {
    let name = topic.name.as_str();
    let route = cx.routes.topics.get(name).ok_or_else(|| Fault::unknown_topic(name))?;
    let count = check_partition_count(topic.count)?;
    if let Some(assignments) = &topic.assignments {
        let added = count.saturating_sub(route.partition_count);
        if assignments.len() != added as usize {
            let message =
                format!("{added} partitions are added, but {} are placed", assignments.len());
            return Err(Fault::new(ErrorCode::InvalidReplicaAssignment, message));
        }
        for assigned in assignments {
            check_assignment(cx.facts, &assigned.broker_ids)?;
        }
    }
    Ok((route.id, count))
}

#[cfg(test)]
mod tests {
    use super::super::drive::Node;
    use super::*;
    use crate::command::{Command, Refusal, Refused, Reply, TopicChange};
    use crate::kafka::messages::CreatePartitionsAssignment;

    fn grow(name: &str, count: i32, brokers: Option<&[i32]>) -> CreatePartitionsTopic {
        let assigned = |broker: &i32| CreatePartitionsAssignment { broker_ids: vec![*broker] };
        let assignments = brokers.map(|brokers| brokers.iter().map(assigned).collect());
        CreatePartitionsTopic { name: name.into(), count, assignments }
    }

    fn codes(topics: Vec<CreatePartitionsTopic>, asked: &[u32]) -> Vec<ErrorCode> {
        let request = CreatePartitionsRequest { topics, ..CreatePartitionsRequest::default() };
        let response = Node::new().call(3, request, |_, command| {
            let Command::Catalog(CatalogCommand::CreatePartitions { topics, .. }) = command else {
                panic!()
            };
            let counts: Vec<_> = topics.iter().map(|(_, count)| *count).collect();
            assert_eq!(counts, asked);
            let change = |(topic, count)| {
                if count < 3 {
                    let refusal = Refusal::InvalidPartitionCount;
                    return Err(Refused { refusal, message: "cannot shrink".into() });
                }
                Ok(TopicChange { topic, partition_count: count, config: Vec::new() })
            };
            Reply::Catalog(topics.into_iter().map(change).collect())
        });
        response.results.iter().map(|result| result.error_code).collect()
    }

    #[test]
    fn what_can_grow_is_asked_for_and_the_rest_keeps_its_place() {
        let (none, invalid) = (ErrorCode::None, ErrorCode::InvalidPartitions);
        assert_eq!(
            codes(
                vec![grow("gone", 4, None), grow("orders", 5, None), grow("audit", 2, None)],
                &[5, 2]
            ),
            [ErrorCode::UnknownTopicOrPartition, none, invalid]
        );
        assert_eq!(codes(vec![grow("orders", 0, None)], &[]), [invalid]);
        let twice = ErrorCode::InvalidRequest;
        let topics = vec![grow("orders", 5, None), grow("orders", 6, None)];
        assert_eq!(codes(topics, &[]), [twice, twice]);
    }

    #[test]
    fn a_placement_by_hand_covers_the_new_partitions_on_the_only_broker() {
        let wrong = ErrorCode::InvalidReplicaAssignment;
        assert_eq!(codes(vec![grow("orders", 5, Some(&[0, 0]))], &[5]), [ErrorCode::None]);
        assert_eq!(codes(vec![grow("orders", 5, Some(&[0]))], &[]), [wrong]);
        assert_eq!(codes(vec![grow("orders", 5, Some(&[0, 1]))], &[]), [wrong]);
    }
}
