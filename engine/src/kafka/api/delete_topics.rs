//! DeleteTopics: by name up to version 5, by name or id from 6 on.

use std::collections::HashSet;

use tidemill_wal::format::TopicId;

use super::ask::{ask_catalog, decoded};
use super::fault::{Fault, told};
use super::{Step, first_error, head_of, respond};
use crate::command::{CatalogCommand, Routes};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    DeleteTopic, DeleteTopicResponse, DeleteTopicsRequest, DeleteTopicsResponse,
};
use crate::kafka::session::Context;
use crate::kafka::wire::Text;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: DeleteTopicsRequest| {
        let mut asked = body.topics;
        if request.version < 6 {
            let by_name = |name| DeleteTopic { name: Some(name), topic_id: TopicId::default() };
            asked = body.topic_names.into_iter().map(by_name).collect();
        }
        let mut seen = HashSet::new();
        let mut topics = Vec::new();
        let mut checked = Vec::with_capacity(asked.len());
        let mut responses = Vec::with_capacity(asked.len());
        for DeleteTopic { name, topic_id } in asked {
            let found = find(cx.routes, name.as_deref(), topic_id);
            let by_id = name.is_none();
            let mut response =
                DeleteTopicResponse { name, topic_id, ..DeleteTopicResponse::default() };
            checked.push(found.and_then(|(name, id)| {
                (response.name, response.topic_id) = (Some(name), id);
                if !seen.insert(id) {
                    let message = "the topic is named more than once in one request";
                    return Err(Fault::new(ErrorCode::InvalidRequest, message));
                }
                topics.push(id);
                Ok(())
            }));
            responses.push((response, by_id));
        }
        let request = head_of(request);
        ask_catalog(CatalogCommand::DeleteTopics(topics), checked, move |_, outcomes| {
            let responses: Vec<_> = (responses.into_iter().zip(outcomes))
                .map(|((response, by_id), outcome)| {
                    let (code, error_message) = told(outcome);
                    let error_code = by_name_code(code, by_id);
                    DeleteTopicResponse { error_code, error_message, ..response }
                })
                .collect();
            let error = first_error(responses.iter().map(|response| response.error_code));
            let response = DeleteTopicsResponse { responses, ..DeleteTopicsResponse::default() };
            respond::<DeleteTopicsRequest>(&request, &response, error)
        })
    })
}

/// The catalog knows ids only; who asked by name wants to hear of the name.
fn by_name_code(code: ErrorCode, by_id: bool) -> ErrorCode {
    match code {
        ErrorCode::UnknownTopicId if !by_id => ErrorCode::UnknownTopicOrPartition,
        code => code,
    }
}

fn find(routes: &Routes, name: Option<&str>, id: TopicId) -> Result<(Text, TopicId), Fault> {
    let has_id = id != TopicId::default();
    let route = match name {
        Some(name) if !has_id => {
            routes.topics.get(name).ok_or_else(|| Fault::unknown_topic(name))?
        }
        None if has_id => routes.ids.get(&id).ok_or_else(|| {
            Fault::new(ErrorCode::UnknownTopicId, format!("there is no topic with the id {id}"))
        })?,
        _ => {
            let message = "a topic is named by either its name or its id";
            return Err(Fault::new(ErrorCode::InvalidRequest, message));
        }
    };
    Ok((Text::from(&*route.name), route.id))
}

#[cfg(test)]
mod tests {
    use super::super::drive::Node;
    use super::*;
    use crate::command::{Command, Refusal, Refused, Reply, TopicChange};

    fn delete(name: Option<&str>, topic_id: TopicId) -> DeleteTopic {
        DeleteTopic { name: name.map(Text::from), topic_id }
    }

    fn removed(command: Command) -> Reply {
        let Command::Catalog(CatalogCommand::DeleteTopics(topics)) = command else { panic!() };
        let change = |topic| Ok(TopicChange { topic, partition_count: 1, config: Vec::new() });
        Reply::Catalog(topics.into_iter().map(change).collect())
    }

    #[test]
    fn topics_go_by_name_or_id_and_only_once() {
        let node = Node::new();
        let (orders, audit) = (node.topic("orders").id, node.topic("audit").id);
        let (none, gone) = (TopicId::default(), TopicId([9; 16]));
        let topics = vec![
            delete(Some("orders"), none),
            delete(None, audit),
            delete(Some("gone"), none),
            delete(None, gone),
            delete(None, orders),
            delete(None, none),
            delete(Some("audit"), audit),
        ];
        let request = DeleteTopicsRequest { topics, ..DeleteTopicsRequest::default() };
        let response = node.call(6, request, |_, command| {
            let Command::Catalog(CatalogCommand::DeleteTopics(topics)) = &command else { panic!() };
            assert_eq!(topics, &[orders, audit]);
            removed(command)
        });
        let rows: Vec<_> = (response.responses.iter())
            .map(|row| (row.name.as_deref(), row.topic_id, row.error_code))
            .collect();
        let invalid = ErrorCode::InvalidRequest;
        assert_eq!(
            rows,
            [
                (Some("orders"), orders, ErrorCode::None),
                (Some("audit"), audit, ErrorCode::None),
                (Some("gone"), none, ErrorCode::UnknownTopicOrPartition),
                (None, gone, ErrorCode::UnknownTopicId),
                (Some("orders"), orders, invalid),
                (None, none, invalid),
                (Some("audit"), audit, invalid),
            ]
        );
    }

    #[test]
    fn older_versions_name_topics() {
        for version in 1..=5 {
            let request = DeleteTopicsRequest {
                topic_names: ["gone", "orders"].map(Text::from).to_vec(),
                ..DeleteTopicsRequest::default()
            };
            let response = Node::new().call(version, request, |_, command| removed(command));
            let codes: Vec<_> = response.responses.iter().map(|row| row.error_code).collect();
            assert_eq!(codes, [ErrorCode::UnknownTopicOrPartition, ErrorCode::None]);
            assert_eq!(response.responses[0].error_message.is_some(), version >= 5);
        }
    }

    #[test]
    fn a_topic_that_went_meanwhile_is_unknown_the_way_it_was_asked_for() {
        let node = Node::new();
        let none = TopicId::default();
        let topics = vec![delete(Some("orders"), none), delete(None, node.topic("audit").id)];
        let request = DeleteTopicsRequest { topics, ..DeleteTopicsRequest::default() };
        let response = node.call(6, request, |_, _| {
            let refused = Refused { refusal: Refusal::UnknownTopicId, message: "gone".into() };
            Reply::Catalog(vec![Err(refused.clone()), Err(refused)])
        });
        let codes: Vec<_> = response.responses.iter().map(|row| row.error_code).collect();
        assert_eq!(codes, [ErrorCode::UnknownTopicOrPartition, ErrorCode::UnknownTopicId]);
    }
}
