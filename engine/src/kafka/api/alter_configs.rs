//! AlterConfigs: all keys of a topic at once; those not named go back to their defaults.

use std::collections::HashSet;

use tidemill_wal::format::TopicId;

use super::ask::{ask_catalog, decoded};
use super::describe_configs::{RESOURCE_BROKER, RESOURCE_TOPIC, unknown_resource};
use super::fault::{Fault, told};
use super::{Step, first_error, head_of, respond};
use crate::command::{CatalogCommand, ConfigChange, Routes};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    AlterConfig, AlterConfigsRequest, AlterConfigsResourceResponse, AlterConfigsResponse,
};
use crate::kafka::session::Context;
use crate::kafka::wire::Text;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: AlterConfigsRequest| {
        let changes = body.resources.into_iter().map(|resource| ResourceChange {
            resource_type: resource.resource_type,
            resource_name: resource.resource_name,
            change: replacement(&resource.configs),
        });
        let request = head_of(request);
        change_topics(cx, changes.collect(), body.validate_only, move |responses, error| {
            let response = AlterConfigsResponse { responses, ..AlterConfigsResponse::default() };
            respond::<AlterConfigsRequest>(&request, &response, error)
        })
    })
}

fn replacement(configs: &[AlterConfig]) -> Result<ConfigChange, Fault> {
    check_keys(configs.iter().map(|config| &config.name))?;
    let values = configs.iter().map(|config| match &config.value {
        Some(value) => Ok((config.name.to_string(), value.to_string())),
        None => Err(null_value(&config.name)),
    });
    Ok(ConfigChange::Replace(values.collect::<Result<_, _>>()?))
}

/// A key that is to be set to nothing.
pub(super) fn null_value(key: &str) -> Fault {
    Fault::new(ErrorCode::InvalidRequest, format!("the configuration {key:?} has no value"))
}

/// A key that occurs twice has no value that anybody could tell.
pub(super) fn check_keys<'a>(keys: impl Iterator<Item = &'a Text>) -> Result<(), Fault> {
    let mut seen = HashSet::new();
    for key in keys {
        if !seen.insert(key) {
            let message = format!("the configuration {key:?} is named more than once");
            return Err(Fault::new(ErrorCode::InvalidRequest, message));
        }
    }
    Ok(())
}

/// One resource with what is to become of it.
#[derive(Debug)]
pub(super) struct ResourceChange {
    /// Its kind.
    pub resource_type: i8,
    /// Its name.
    pub resource_name: Text,
    /// The change, unless it makes no sense by itself.
    pub change: Result<ConfigChange, Fault>,
}

/// Changes topics and goes on with one response for each resource and the first error.
pub(super) fn change_topics(
    cx: &Context<'_>,
    changes: Vec<ResourceChange>,
    validate_only: bool,
    then: impl FnOnce(Vec<AlterConfigsResourceResponse>, Option<ErrorCode>) -> Step + 'static,
) -> Step {
    let mut seen = HashSet::new();
    let mut topics = Vec::new();
    let mut checked = Vec::with_capacity(changes.len());
    let mut responses = Vec::with_capacity(changes.len());
    for ResourceChange { resource_type, resource_name, change } in changes {
        let found = find(cx.routes, resource_type, &resource_name).and_then(|topic| {
            if seen.insert(topic) {
                return Ok(topic);
            }
            let message = "the resource is named more than once in one request";
            Err(Fault::new(ErrorCode::InvalidRequest, message))
        });
        checked.push(found.and_then(|topic| {
            topics.push((topic, change?));
            Ok(())
        }));
        let response = AlterConfigsResourceResponse {
            resource_type,
            resource_name,
            ..AlterConfigsResourceResponse::default()
        };
        responses.push(response);
    }
    let command = CatalogCommand::AlterConfigs { topics, validate_only };
    ask_catalog(command, checked, move |_, outcomes| {
        for (response, outcome) in responses.iter_mut().zip(outcomes) {
            (response.error_code, response.error_message) = told(outcome);
            if response.error_code == ErrorCode::UnknownTopicId {
                // The catalog knows ids only; the client asked by name.
                response.error_code = ErrorCode::UnknownTopicOrPartition;
            }
        }
        let error = first_error(responses.iter().map(|response| response.error_code));
        then(responses, error)
    })
}

fn find(routes: &Routes, resource_type: i8, name: &str) -> Result<TopicId, Fault> {
    match resource_type {
        RESOURCE_TOPIC => {
            let topic = routes.topics.get(name).ok_or_else(|| Fault::unknown_topic(name))?;
            Ok(topic.id)
        }
        RESOURCE_BROKER => {
            let message = "the node's settings are read at its start: change tidemill.toml";
            Err(Fault::new(ErrorCode::InvalidRequest, message))
        }
        other => Err(unknown_resource(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::drive::Node;
    use super::*;
    use crate::command::{Command, Refusal, Refused, Reply};
    use crate::kafka::messages::AlterConfigsResource;

    fn resource(
        resource_type: i8,
        name: &str,
        configs: &[(&str, Option<&str>)],
    ) -> AlterConfigsResource {
        let config = |(name, value): &(&str, Option<&str>)| AlterConfig {
            name: (*name).into(),
            value: value.map(Text::from),
        };
        AlterConfigsResource {
            resource_type,
            resource_name: name.into(),
            configs: configs.iter().map(config).collect(),
        }
    }

    #[test]
    fn topics_are_replaced_and_everything_else_is_refused_in_words() {
        for version in 0..=2 {
            let request = AlterConfigsRequest {
                resources: vec![
                    resource(RESOURCE_BROKER, "0", &[("log.retention.ms", Some("5"))]),
                    resource(RESOURCE_TOPIC, "audit", &[("retention.ms", Some("5"))]),
                    resource(RESOURCE_TOPIC, "gone", &[]),
                    resource(8, "0", &[]),
                    resource(RESOURCE_TOPIC, "orders", &[("retention.ms", None)]),
                    resource(RESOURCE_TOPIC, "audit", &[]),
                ],
                validate_only: true,
            };
            let node = Node::new();
            let audit = node.topic("audit").id;
            let response = node.call(version, request, |_, command| {
                let Command::Catalog(CatalogCommand::AlterConfigs { topics, validate_only: true }) =
                    command
                else {
                    panic!()
                };
                let values = vec![("retention.ms".to_owned(), "5".to_owned())];
                assert_eq!(topics, [(audit, ConfigChange::Replace(values))]);
                let message = "not allowed".to_owned();
                Reply::Catalog(vec![Err(Refused { refusal: Refusal::InvalidConfig, message })])
            });
            let codes: Vec<_> = response.responses.iter().map(|row| row.error_code).collect();
            let invalid = ErrorCode::InvalidRequest;
            let unknown = ErrorCode::UnknownTopicOrPartition;
            let config = ErrorCode::InvalidConfig;
            assert_eq!(codes, [invalid, config, unknown, invalid, invalid, invalid]);
            assert!(response.responses.iter().all(|row| row.error_message.is_some()));
            assert_eq!(response.responses[1].error_message, Some("not allowed".into()));
        }
    }
}
