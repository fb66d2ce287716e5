//! IncrementalAlterConfigs: set or reset single keys of topics. No key that is honoured holds a
//! list that could be appended to or taken from.

use super::alter_configs::{ResourceChange, change_topics, check_keys, null_value};
use super::ask::decoded;
use super::fault::Fault;
use super::{Step, head_of, respond};
use crate::command::ConfigChange;
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    IncrementalAlterConfig, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};
use crate::kafka::session::Context;

const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: IncrementalAlterConfigsRequest| {
        let changes = body.resources.into_iter().map(|resource| ResourceChange {
            resource_type: resource.resource_type,
            resource_name: resource.resource_name,
            change: update(&resource.configs),
        });
        let request = head_of(request);
        change_topics(cx, changes.collect(), body.validate_only, move |responses, error| {
            let response = IncrementalAlterConfigsResponse {
                responses,
                ..IncrementalAlterConfigsResponse::default()
            };
            respond::<IncrementalAlterConfigsRequest>(&request, &response, error)
        })
    })
}

fn update(configs: &[IncrementalAlterConfig]) -> Result<ConfigChange, Fault> {
    check_keys(configs.iter().map(|config| &config.name))?;
    let values = configs.iter().map(|config| {
        let key = &config.name;
        let value = match (config.config_operation, &config.value) {
            (SET, Some(value)) => Some(value.to_string()),
            (SET, None) => return Err(null_value(key)),
            (DELETE, _) => None,
            (APPEND | SUBTRACT, _) => {
                let message = format!("the configuration {key:?} is no list: set it as a whole");
                return Err(Fault::new(ErrorCode::InvalidConfig, message));
            }
            (other, _) => {
                let message = format!("there is no operation {other} on configurations");
                return Err(Fault::new(ErrorCode::InvalidRequest, message));
            }
        };
        Ok((key.to_string(), value))
    });
    Ok(ConfigChange::Update(values.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use tidemill_wal::format::TopicId;

    use super::super::drive::Node;
    use super::*;
    use crate::command::{CatalogCommand, Command, Refusal, Reply, TopicChange};
    use crate::kafka::messages::IncrementalAlterConfigsResource;
    use crate::kafka::wire::Text;

    fn call(
        configs: &[(&str, i8, Option<&str>)],
        mut reply: impl FnMut(Vec<(TopicId, ConfigChange)>) -> Reply,
    ) -> (ErrorCode, Option<Text>) {
        let config = |(name, operation, value): &(&str, i8, Option<&str>)| IncrementalAlterConfig {
            name: (*name).into(),
            config_operation: *operation,
            value: value.map(Text::from),
        };
        let resource = IncrementalAlterConfigsResource {
            resource_type: 2,
            resource_name: "audit".into(),
            configs: configs.iter().map(config).collect(),
        };
        let request =
            IncrementalAlterConfigsRequest { resources: vec![resource], validate_only: false };
        let mut response = Node::new().call(1, request, |_, command| {
            let Command::Catalog(CatalogCommand::AlterConfigs { topics, validate_only: false }) =
                command
            else {
                panic!()
            };
            reply(topics)
        });
        let row = response.responses.remove(0);
        (row.error_code, row.error_message)
    }

    #[test]
    fn keys_are_set_and_reset() {
        let configs = [("retention.ms", SET, Some("5")), ("retention.bytes", DELETE, None)];
        let (code, _) = call(&configs, |topics| {
            let (topic, change) = topics.into_iter().next().unwrap();
            let expected = vec![
                ("retention.ms".to_owned(), Some("5".to_owned())),
                ("retention.bytes".to_owned(), None),
            ];
            assert_eq!(change, ConfigChange::Update(expected));
            Reply::Catalog(vec![Ok(TopicChange { topic, partition_count: 1, config: Vec::new() })])
        });
        assert_eq!(code, ErrorCode::None);
    }

    #[test]
    fn operations_that_make_no_sense_change_nothing() {
        let invalid = ErrorCode::InvalidRequest;
        for (configs, expected) in [
            (vec![("cleanup.policy", APPEND, Some("compact"))], ErrorCode::InvalidConfig),
            (vec![("cleanup.policy", SUBTRACT, Some("delete"))], ErrorCode::InvalidConfig),
            (vec![("retention.ms", SET, None)], invalid),
            (vec![("retention.ms", 9, Some("5"))], invalid),
            (vec![("retention.ms", SET, Some("5")), ("retention.ms", DELETE, None)], invalid),
        ] {
            let (code, message) = call(&configs, |_| panic!("nobody is asked"));
            assert_eq!(code, expected, "{configs:?}");
            assert!(message.is_some());
        }
    }

    #[test]
    fn a_topic_that_went_meanwhile_is_unknown_by_its_name() {
        let (code, _) =
            call(&[("retention.ms", SET, Some("5"))], |_| Reply::Refused(Refusal::UnknownTopicId));
        assert_eq!(code, ErrorCode::UnknownTopicOrPartition);
    }
}
