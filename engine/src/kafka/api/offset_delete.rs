//! OffsetDelete: forget a group's progress in partitions that it does not consume.

use super::ask::{ask_group, decoded, group_reply_as};
use super::{Step, find_partition, find_topic, first_error, head_of, respond};
use crate::command::{GroupCommand, Refusal};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    OffsetDeletePartitionResponse, OffsetDeleteRequest, OffsetDeleteResponse,
    OffsetDeleteTopicResponse,
};
use crate::kafka::session::Context;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: OffsetDeleteRequest| {
        let mut partitions = Vec::new();
        let mut names = Vec::new();
        let mut topics = Vec::with_capacity(body.topics.len());
        for topic in body.topics {
            let route = find_topic(cx.routes, false, &topic.name, Default::default());
            let checked = topic.partitions.iter().map(|asked| {
                let partition_index = asked.partition_index;
                let found = route
                    .and_then(|route| Ok(route.partition(find_partition(route, partition_index)?)));
                let error_code = match found {
                    Ok(partition) => {
                        partitions.push(partition);
                        names.push(topic.name.to_string());
                        ErrorCode::None
                    }
                    Err(code) => code,
                };
                OffsetDeletePartitionResponse { partition_index, error_code }
            });
            let partitions = checked.collect();
            topics.push(OffsetDeleteTopicResponse { partitions, name: topic.name });
        }
        let group = body.group_id.to_string();
        let command = GroupCommand::OffsetDelete { group, partitions, topics: names };
        let request = head_of(request);
        ask_group(cx, &body.group_id, command, move |_, reply| {
            finish(&request, topics, reply.and_then(|reply| group_reply_as!(OffsetDelete, reply)))
        })
    })
}

/// Puts the group's results where no error is yet, in order.
fn finish(
    request: &RequestFrame,
    mut topics: Vec<OffsetDeleteTopicResponse>,
    result: Result<Vec<Result<(), Refusal>>, Refusal>,
) -> Step {
    let mut results = match result {
        Ok(results) => results.into_iter(),
        Err(refusal) => {
            let error_code = ErrorCode::for_group(refusal);
            let response = OffsetDeleteResponse { error_code, ..OffsetDeleteResponse::default() };
            return respond::<OffsetDeleteRequest>(request, &response, Some(error_code));
        }
    };
    let mut error = None;
    for partition in topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
        if partition.error_code.is_none() {
            let result = results.next().expect("one result for each partition");
            partition.error_code = result.err().map(ErrorCode::for_group).unwrap_or_default();
        }
        error = error.or(first_error([partition.error_code]));
    }
    let response = OffsetDeleteResponse { topics, ..OffsetDeleteResponse::default() };
    respond::<OffsetDeleteRequest>(request, &response, error)
}

#[cfg(test)]
mod tests {
    use super::super::drive::{Node, group};
    use super::*;
    use crate::command::{GroupReply, Reply};
    use crate::kafka::messages::{OffsetDeletePartition, OffsetDeleteTopic};

    fn request() -> OffsetDeleteRequest {
        let topic = |name: &str, indexes: &[i32]| OffsetDeleteTopic {
            name: name.into(),
            partitions: indexes
                .iter()
                .map(|index| OffsetDeletePartition { partition_index: *index })
                .collect(),
        };
        OffsetDeleteRequest {
            group_id: "g".into(),
            topics: vec![topic("orders", &[0, 7, 1]), topic("gone", &[0]), topic("audit", &[0])],
        }
    }

    #[test]
    fn each_partition_has_its_result_and_its_topic_s_name_goes_along() {
        let node = Node::new();
        let (orders, audit) = (node.topic("orders"), node.topic("audit"));
        let response = node.call(0, request(), |_, command| {
            let GroupCommand::OffsetDelete { partitions, topics, .. } = group(command) else {
                panic!()
            };
            let expected = [orders.partition(0), orders.partition(1), audit.partition(0)];
            assert_eq!(partitions, expected);
            assert_eq!(topics, ["orders", "orders", "audit"]);
            let results = vec![Ok(()), Err(Refusal::SubscribedTopic), Ok(())];
            Reply::Group(GroupReply::OffsetDelete(Ok(results)))
        });
        let codes: Vec<_> = (response.topics.iter())
            .flat_map(|topic| topic.partitions.iter().map(|partition| partition.error_code))
            .collect();
        let unknown = ErrorCode::UnknownTopicOrPartition;
        let subscribed = ErrorCode::GroupSubscribedToTopic;
        assert_eq!(codes, [ErrorCode::None, unknown, subscribed, unknown, ErrorCode::None]);
        assert_eq!(response.error_code, ErrorCode::None);
    }

    #[test]
    fn a_refused_group_is_told_once() {
        for (reply, code) in [
            (
                Reply::Group(GroupReply::OffsetDelete(Err(Refusal::UnknownGroup))),
                ErrorCode::GroupIdNotFound,
            ),
            (Reply::Refused(Refusal::Busy), ErrorCode::CoordinatorNotAvailable),
        ] {
            let response = Node::new().call(0, request(), |_, _| reply.clone());
            assert_eq!((response.error_code, response.topics.len()), (code, 0));
        }
    }
}
