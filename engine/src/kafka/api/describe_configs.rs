//! DescribeConfigs: what topics and this node are configured to.
//!
//! A broker's configuration is read from a file at start: it can be read here, not changed. There
//! is no configuration that all brokers share and that could change, so the one without a name is
//! empty. Other kinds of resource have no configuration here.

use std::collections::HashSet;

use super::ask::decoded;
use super::fault::{Fault, told};
use super::{Step, first_error, respond};
use crate::command::TopicConfig;
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    ConfigSynonym, DescribeConfigsRequest, DescribeConfigsResource, DescribeConfigsResponse,
    DescribeConfigsResult, DescribedConfig,
};
use crate::kafka::session::{Context, NodeFacts};
use crate::kafka::wire::Text;

/// A topic, as a kind of resource.
pub(super) const RESOURCE_TOPIC: i8 = 2;

/// A broker, as a kind of resource.
pub(super) const RESOURCE_BROKER: i8 = 4;

/// Set for this topic.
pub(super) const SOURCE_TOPIC: i8 = 1;

/// Set in the node's file.
const SOURCE_FILE: i8 = 4;

/// What holds where nothing is set for the topic.
pub(super) const SOURCE_DEFAULT: i8 = 5;

const TYPE_UNKNOWN: i8 = 0;
const TYPE_STRING: i8 = 2;
const TYPE_INT: i8 = 3;
const TYPE_LONG: i8 = 5;
const TYPE_LIST: i8 = 7;

/// A configuration key of topics, as clients see it.
#[derive(Debug)]
struct TopicKey {
    name: &'static str,
    /// What Kafka calls the broker's key that it falls back to.
    broker_name: &'static str,
    config_type: i8,
    documentation: &'static str,
}

/// Every key that is honoured, in the order of [`TopicConfig::values`].
const TOPIC_KEYS: [TopicKey; 7] = [
    TopicKey {
        name: "cleanup.policy",
        broker_name: "log.cleanup.policy",
        config_type: TYPE_LIST,
        documentation: "What becomes of old records: they are deleted. Compaction is not supported.",
    },
    TopicKey {
        name: "compression.type",
        broker_name: "compression.type",
        config_type: TYPE_STRING,
        documentation: "Batches are stored as the producer sent them.",
    },
    TopicKey {
        name: "max.message.bytes",
        broker_name: "message.max.bytes",
        config_type: TYPE_INT,
        documentation: "The largest record batch, in bytes.",
    },
    TopicKey {
        name: "message.timestamp.type",
        broker_name: "log.message.timestamp.type",
        config_type: TYPE_STRING,
        documentation: "Whose clock stamps records: the producer's (CreateTime) or this node's \
                        when it appends them (LogAppendTime).",
    },
    TopicKey {
        name: "min.insync.replicas",
        broker_name: "min.insync.replicas",
        config_type: TYPE_INT,
        documentation: "There is one replica, and what it acknowledges is on its disk.",
    },
    TopicKey {
        name: "retention.bytes",
        broker_name: "log.retention.bytes",
        config_type: TYPE_LONG,
        documentation: "A partition larger than this loses its oldest records; -1 is no limit.",
    },
    TopicKey {
        name: "retention.ms",
        broker_name: "log.retention.ms",
        config_type: TYPE_LONG,
        documentation: "Records older than this are deleted, in milliseconds; -1 is no limit.",
    },
];

/// What the client wants to hear of each key beside its value.
#[derive(Debug, Clone, Copy)]
struct Detail {
    synonyms: bool,
    documentation: bool,
}

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: DescribeConfigsRequest| {
        let detail =
            Detail { synonyms: body.include_synonyms, documentation: body.include_documentation };
        // A resource named twice is described once: each mention would bring all its keys.
        let mut seen = HashSet::new();
        let results: Vec<_> = (body.resources.into_iter())
            .filter(|asked| seen.insert((asked.resource_type, asked.resource_name.clone())))
            .map(|asked| describe(cx, asked, detail))
            .collect();
        let error = first_error(results.iter().map(|result| result.error_code));
        let response = DescribeConfigsResponse { results, ..DescribeConfigsResponse::default() };
        respond::<DescribeConfigsRequest>(request, &response, error)
    })
}

fn describe(
    cx: &Context<'_>,
    asked: DescribeConfigsResource,
    detail: Detail,
) -> DescribeConfigsResult {
    let name = asked.resource_name.as_str();
    let configs = match asked.resource_type {
        RESOURCE_TOPIC => match cx.routes.topics.get(name) {
            Some(topic) => Ok(topic_configs(&topic.config, &cx.facts.topic_defaults, detail)),
            None => Err(Fault::unknown_topic(name)),
        },
        RESOURCE_BROKER if name.is_empty() => Ok(Vec::new()),
        RESOURCE_BROKER => check_broker(cx.facts, name).map(|()| broker_configs(cx.facts, detail)),
        other => Err(unknown_resource(other)),
    };
    let (configs, outcome) = match configs {
        Ok(configs) => (configs, Ok(())),
        Err(fault) => (Vec::new(), Err(fault)),
    };
    let (error_code, error_message) = told(outcome);
    // No key asked for means every key: some clients send an empty list for that.
    let keys = asked.configuration_keys.filter(|keys| !keys.is_empty());
    let is_wanted = |config: &DescribedConfig| {
        keys.as_ref().is_none_or(|keys: &Vec<Text>| keys.contains(&config.name))
    };
    DescribeConfigsResult {
        error_code,
        error_message,
        resource_type: asked.resource_type,
        resource_name: asked.resource_name,
        configs: configs.into_iter().filter(is_wanted).collect(),
    }
}

/// A kind of resource that has no configuration here.
pub(super) fn unknown_resource(resource_type: i8) -> Fault {
    let message = format!("only topics (2) and brokers (4) are configured, not {resource_type}");
    Fault::new(ErrorCode::InvalidRequest, message)
}

fn check_broker(facts: &NodeFacts, name: &str) -> Result<(), Fault> {
    if facts.brokers().any(|(number, _)| name.parse() == Ok(number)) {
        return Ok(());
    }
    Err(Fault::new(ErrorCode::InvalidRequest, format!("there is no broker {name:?}")))
}

fn topic_configs(
    config: &TopicConfig,
    defaults: &TopicConfig,
    detail: Detail,
) -> Vec<DescribedConfig> {
    let mut configs = Vec::with_capacity(TOPIC_KEYS.len());
    let values = config.values().into_iter().zip(defaults.values());
    for (key, ((name, value), (_, default))) in TOPIC_KEYS.iter().zip(values) {
        assert_eq!(key.name, name, "the keys have the order of their values");
        let is_overridden = config.overrides.contains_key(key.name);
        let synonym = |name: &str, value: &str, source| ConfigSynonym {
            name: name.into(),
            value: Some(value.into()),
            source,
        };
        let mut synonyms = Vec::new();
        if detail.synonyms {
            synonyms.extend(is_overridden.then(|| synonym(key.name, &value, SOURCE_TOPIC)));
            synonyms.push(synonym(key.broker_name, &default, SOURCE_DEFAULT));
        }
        configs.push(DescribedConfig {
            name: key.name.into(),
            value: Some(value.into()),
            config_source: if is_overridden { SOURCE_TOPIC } else { SOURCE_DEFAULT },
            synonyms,
            config_type: key.config_type,
            documentation: detail.documentation.then(|| key.documentation.into()),
            ..DescribedConfig::default()
        });
    }
    configs
}

fn broker_configs(facts: &NodeFacts, detail: Detail) -> Vec<DescribedConfig> {
    let described = |(name, value): &(String, String)| {
        let name = Text::from(name.as_str());
        let value = Some(Text::from(value.as_str()));
        let synonym =
            ConfigSynonym { name: name.clone(), value: value.clone(), source: SOURCE_FILE };
        DescribedConfig {
            name,
            value,
            read_only: true,
            config_source: SOURCE_FILE,
            synonyms: detail.synonyms.then_some(synonym).into_iter().collect(),
            config_type: TYPE_UNKNOWN,
            ..DescribedConfig::default()
        }
    };
    facts.settings.iter().map(described).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::drive::Node;
    use super::*;

    /// The topic `audit` keeps its records for 5 ms.
    fn node() -> Node {
        let mut node = Node::new();
        let mut audit = (*node.topic("audit")).clone();
        audit.config.retention_ms = Some(5);
        audit.config.overrides.insert("retention.ms".into(), "5".into());
        let routes = Arc::make_mut(&mut node.world.routes);
        routes.topics.insert("audit".into(), Arc::new(audit));
        node
    }

    fn resource(resource_type: i8, name: &str, keys: Option<&[&str]>) -> DescribeConfigsResource {
        DescribeConfigsResource {
            resource_type,
            resource_name: name.into(),
            configuration_keys: keys.map(|keys| keys.iter().map(|key| Text::from(*key)).collect()),
        }
    }

    fn request(resources: Vec<DescribeConfigsResource>) -> DescribeConfigsRequest {
        DescribeConfigsRequest { resources, include_synonyms: true, include_documentation: true }
    }

    fn values(result: &DescribeConfigsResult) -> Vec<(&str, &str, i8)> {
        (result.configs.iter())
            .map(|config| {
                let value = config.value.as_ref().map_or("null", Text::as_str);
                (config.name.as_str(), value, config.config_source)
            })
            .collect()
    }

    #[test]
    fn a_topic_tells_every_key_and_where_its_value_is_from() {
        for version in 1..=4 {
            let asked = request(vec![resource(RESOURCE_TOPIC, "audit", None)]);
            let response = node().answer(version, asked);
            let result = &response.results[0];
            assert_eq!(
                values(result),
                [
                    ("cleanup.policy", "delete", SOURCE_DEFAULT),
                    ("compression.type", "producer", SOURCE_DEFAULT),
                    ("max.message.bytes", "1048576", SOURCE_DEFAULT),
                    ("message.timestamp.type", "CreateTime", SOURCE_DEFAULT),
                    ("min.insync.replicas", "1", SOURCE_DEFAULT),
                    ("retention.bytes", "-1", SOURCE_DEFAULT),
                    ("retention.ms", "5", SOURCE_TOPIC),
                ]
            );
            let retention = &result.configs[6];
            let synonyms: Vec<_> = (retention.synonyms.iter())
                .map(|synonym| (synonym.name.as_str(), synonym.value.as_deref(), synonym.source))
                .collect();
            assert_eq!(
                synonyms,
                [
                    ("retention.ms", Some("5"), SOURCE_TOPIC),
                    ("log.retention.ms", Some("-1"), SOURCE_DEFAULT),
                ]
            );
            assert_eq!(retention.documentation.is_some(), version >= 3);
            assert_eq!(retention.config_type, if version >= 3 { TYPE_LONG } else { 0 });
        }
    }

    #[test]
    fn keys_are_chosen_and_an_empty_choice_means_all() {
        let chosen: &[&str] = &["retention.ms", "unheard.of"];
        let asked = DescribeConfigsRequest {
            include_synonyms: false,
            include_documentation: false,
            ..request(vec![
                resource(RESOURCE_TOPIC, "orders", Some(chosen)),
                resource(RESOURCE_TOPIC, "audit", Some(&[])),
            ])
        };
        let response = node().answer(4, asked);
        assert_eq!(values(&response.results[0]), [("retention.ms", "-1", SOURCE_DEFAULT)]);
        assert_eq!(response.results[0].configs[0].synonyms, []);
        assert_eq!(response.results[0].configs[0].documentation, None);
        assert_eq!(response.results[1].configs.len(), TOPIC_KEYS.len());
    }

    #[test]
    fn a_broker_tells_its_settings_read_only() {
        let asked = ["0", "", "1", "x"].map(|name| resource(RESOURCE_BROKER, name, None)).to_vec();
        let response = node().answer(4, request(asked));
        assert_eq!(values(&response.results[0]), [("node.host", "mill", SOURCE_FILE)]);
        assert!(response.results[0].configs[0].read_only);
        let rows: Vec<_> = (response.results.iter())
            .map(|result| (result.error_code, result.configs.len()))
            .collect();
        let invalid = (ErrorCode::InvalidRequest, 0);
        assert_eq!(rows, [(ErrorCode::None, 1), (ErrorCode::None, 0), invalid, invalid]);
    }

    #[test]
    fn unknown_resources_are_refused_in_words_and_repeated_ones_told_once() {
        let asked = vec![
            resource(RESOURCE_TOPIC, "gone", None),
            resource(8, "0", None),
            resource(RESOURCE_TOPIC, "gone", None),
        ];
        let response = node().answer(4, request(asked));
        let codes: Vec<_> = response.results.iter().map(|result| result.error_code).collect();
        assert_eq!(codes, [ErrorCode::UnknownTopicOrPartition, ErrorCode::InvalidRequest]);
        assert!(response.results.iter().all(|result| result.error_message.is_some()));
    }
}
