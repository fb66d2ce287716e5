//! Metadata: brokers, topics, and which broker leads which partition.
//!
//! Asking for a topic by its name makes it, if node and client allow that. The answer then comes
//! from the picture that the catalog published before it replied.

use std::collections::{BTreeSet, HashSet};

use tidemill_wal::format::{ShardId, TopicId};

use super::{
    CLUSTER_OPERATIONS, Step, TOPIC_OPERATIONS, ask, decode, first_error, head_of, is_internal,
    is_topic_name, reply_as, respond,
};
use crate::command::{CatalogCommand, Command, NewTopic, Refusal, TopicRoute};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    MetadataBroker, MetadataPartition, MetadataRequest, MetadataResponse, MetadataTopic,
    OPERATIONS_UNKNOWN,
};
use crate::kafka::session::Context;
use crate::kafka::wire::Text;

/// Topics that one request makes at most; the others are LEADER_NOT_AVAILABLE until it is repeated,
/// as clients do.
const TOPICS_CREATED_MAX: usize = 64;

/// First version that names topics by id.
const IDS_FROM: i16 = 12;

/// What the answer says about one topic.
#[derive(Debug, PartialEq, Eq, Hash, Clone)]
enum Wanted {
    Name(Text),
    Id(TopicId),
    Invalid(Option<Text>, TopicId),
}

/// What the answer needs of the request.
struct Question {
    /// `None`: all topics.
    topics: Option<Vec<Wanted>>,
    with_topic_operations: bool,
    with_cluster_operations: bool,
}

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    let wanted = decode!(cx, request, MetadataRequest);
    let is_all = wanted.topics.as_ref().is_none_or(|t| t.is_empty() && request.version == 0);
    let question = Question {
        topics: if is_all { None } else { Some(topics_of(&wanted, request.version)) },
        with_topic_operations: wanted.include_topic_authorized_operations,
        with_cluster_operations: wanted.include_cluster_authorized_operations,
    };
    let may_create = cx.facts.auto_create && wanted.allow_auto_topic_creation;
    let missing = if may_create { missing_of(cx, &question) } else { BTreeSet::new() };
    if missing.is_empty() {
        return finish(cx, request, &question, |name| missing_topic(name, may_create));
    }
    let missing: Vec<Text> = missing.into_iter().take(TOPICS_CREATED_MAX).collect();
    let topics = missing.iter().map(|name| new_topic(name)).collect();
    let create = CatalogCommand::CreateTopics { topics, validate_only: false };
    let head = head_of(request);
    ask(vec![(ShardId(0), Command::Catalog(create))], move |cx, replies| {
        let reply = replies.into_iter().next().expect("one for each command");
        let errors: Vec<ErrorCode> = match reply_as!(Catalog, reply) {
            Ok(results) => {
                assert_eq!(results.len(), missing.len(), "one result for each topic");
                results.into_iter().map(|r| creation_error(r.err().map(|r| r.refusal))).collect()
            }
            Err(refusal) => vec![creation_error(Some(refusal)); missing.len()],
        };
        finish(cx, &head, &question, |name| {
            let at = missing.iter().position(|other| other == name);
            at.map_or_else(|| missing_topic(name, true), |at| errors[at])
        })
    })
}

/// Each topic once. A topic without a name, or with an id before [`IDS_FROM`], is a mistake.
fn topics_of(wanted: &MetadataRequest, version: i16) -> Vec<Wanted> {
    let mut seen = HashSet::new();
    let mut topics = Vec::new();
    for topic in wanted.topics.iter().flatten() {
        let has_id = topic.topic_id != TopicId::default();
        let wanted = match &topic.name {
            _ if has_id && version >= IDS_FROM => Wanted::Id(topic.topic_id),
            Some(name) if !has_id => Wanted::Name(name.clone()),
            name => Wanted::Invalid(name.clone(), topic.topic_id),
        };
        if seen.insert(wanted.clone()) {
            topics.push(wanted);
        }
    }
    topics
}

/// Names that could become topics.
fn missing_of(cx: &Context<'_>, question: &Question) -> BTreeSet<Text> {
    let mut missing = BTreeSet::new();
    for wanted in question.topics.iter().flatten() {
        if let Wanted::Name(name) = wanted
            && !cx.routes.topics.contains_key(name.as_str())
            && is_topic_name(name)
        {
            missing.insert(name.clone());
        }
    }
    missing
}

fn new_topic(name: &str) -> NewTopic {
    let name = name.to_owned();
    NewTopic { name, partition_count: None, config: Vec::new(), automatic: true }
}

/// What a topic that is not there is told as, when it was not tried to make it.
fn missing_topic(name: &str, may_create: bool) -> ErrorCode {
    if !is_topic_name(name) {
        ErrorCode::InvalidTopic
    } else if may_create {
        ErrorCode::LeaderNotAvailable
    } else {
        ErrorCode::UnknownTopicOrPartition
    }
}

/// What a topic that is still not there is told as, after the catalog has answered.
fn creation_error(refusal: Option<Refusal>) -> ErrorCode {
    match refusal {
        None
        | Some(Refusal::Busy | Refusal::DiskFull | Refusal::Stopping | Refusal::WrongShard) => {
            ErrorCode::LeaderNotAvailable
        }
        Some(refusal) => ErrorCode::for_admin(refusal),
    }
}

fn finish(
    cx: &Context<'_>,
    request: &RequestFrame,
    question: &Question,
    error_of: impl Fn(&str) -> ErrorCode,
) -> Step {
    let operations =
        if question.with_topic_operations { TOPIC_OPERATIONS } else { OPERATIONS_UNKNOWN };
    let describe = |topic: &TopicRoute| found(cx, topic, operations);
    let topics: Vec<MetadataTopic> = match &question.topics {
        None => cx.routes.topics.values().map(|topic| describe(topic)).collect(),
        Some(topics) => topics
            .iter()
            .map(|wanted| match wanted {
                Wanted::Name(name) => match cx.routes.topics.get(name.as_str()) {
                    Some(topic) => describe(topic),
                    None => not_found(error_of(name), Some(name.clone()), TopicId::default()),
                },
                Wanted::Id(id) => match cx.routes.ids.get(id) {
                    Some(topic) => describe(topic),
                    None => not_found(ErrorCode::UnknownTopicId, None, *id),
                },
                Wanted::Invalid(name, id) => {
                    not_found(ErrorCode::InvalidRequest, name.clone(), *id)
                }
            })
            .collect(),
    };
    let error = first_error(topics.iter().map(|topic| topic.error_code));
    let brokers = cx.facts.brokers().map(|(node_id, endpoint)| MetadataBroker {
        node_id,
        host: endpoint.host.as_str().into(),
        port: endpoint.port.into(),
        rack: None,
    });
    let response = MetadataResponse {
        brokers: brokers.collect(),
        cluster_id: Some(cx.facts.cluster_id.as_str().into()),
        controller_id: 0,
        topics,
        cluster_authorized_operations: if question.with_cluster_operations {
            CLUSTER_OPERATIONS
        } else {
            OPERATIONS_UNKNOWN
        },
        ..Default::default()
    };
    respond::<MetadataRequest>(request, &response, error)
}

fn found(cx: &Context<'_>, topic: &TopicRoute, operations: i32) -> MetadataTopic {
    let partitions = (0..topic.partition_count).map(|index| {
        let leader_id = cx.facts.broker_of(topic.shard_of(index));
        MetadataPartition {
            error_code: ErrorCode::None,
            partition_index: index as i32,
            leader_id,
            leader_epoch: super::LEADER_EPOCH,
            replica_nodes: vec![leader_id],
            isr_nodes: vec![leader_id],
            offline_replicas: Vec::new(),
        }
    });
    MetadataTopic {
        error_code: ErrorCode::None,
        name: Some((&*topic.name).into()),
        topic_id: topic.id,
        is_internal: is_internal(&topic.name),
        partitions: partitions.collect(),
        topic_authorized_operations: operations,
    }
}

fn not_found(error_code: ErrorCode, name: Option<Text>, topic_id: TopicId) -> MetadataTopic {
    MetadataTopic { error_code, name, topic_id, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{World, answer, asked, topic_id};
    use super::*;
    use crate::command::{Refused, Reply, TopicChange};
    use crate::kafka::messages::MetadataRequestTopic;

    fn by_name(names: &[&str]) -> MetadataRequest {
        let topics = names
            .iter()
            .map(|&name| MetadataRequestTopic { name: Some(name.into()), ..Default::default() });
        MetadataRequest { topics: Some(topics.collect()), ..Default::default() }
    }

    fn trace(response: &MetadataResponse) -> Vec<(String, ErrorCode, Vec<i32>)> {
        let topics = response.topics.iter().map(|topic| {
            let leaders = topic.partitions.iter().map(|partition| partition.leader_id);
            let name = topic.name.as_deref().unwrap_or("-").to_owned();
            (name, topic.error_code, leaders.collect())
        });
        topics.collect()
    }

    #[test]
    fn all_topics_are_null_and_in_version_0_an_empty_list() {
        let world = World::new().with_topic("b", 2).with_topic("a", 1);
        let all =
            [("a".into(), ErrorCode::None, vec![0]), ("b".into(), ErrorCode::None, vec![0, 0])];
        assert_eq!(trace(&world.answer(0, &by_name(&[]))), all);
        assert_eq!(trace(&world.answer(1, &by_name(&[]))), []);
        let null = MetadataRequest { topics: None, ..Default::default() };
        for version in 1..=13 {
            let response = world.answer(version, &null);
            assert_eq!(trace(&response), all, "{version}");
            assert_eq!(response.controller_id, 0);
            if version >= 2 {
                assert_eq!(response.cluster_id.as_deref(), Some("tide"));
            }
            if version >= 10 {
                assert_eq!(response.topics[0].topic_id, topic_id("a"));
            }
        }
    }

    #[test]
    fn each_partition_is_led_by_its_shards_broker() {
        let world = World::new().with_topic("a", 3).advertise_shards();
        let response = world.answer(12, &by_name(&["a", "a"]));
        assert_eq!(trace(&response), [("a".into(), ErrorCode::None, vec![0, 1, 0])]);
        let ports: Vec<_> = response.brokers.iter().map(|b| (b.node_id, b.port)).collect();
        assert_eq!(ports, [(0, 9092), (1, 9093)]);
        assert_eq!(response.topics[0].partitions[1].isr_nodes, [1]);
        assert_eq!(response.topics[0].partitions[1].leader_epoch, 0);
    }

    #[test]
    fn topics_of_the_node_itself_are_told_by_their_names() {
        let world = World::new().with_topic("__a", 1).with_topic("__consumer_off", 1);
        let world = world.with_topic("__consumer_offsets", 1);
        let response = world.answer(12, &MetadataRequest { topics: None, ..Default::default() });
        let internal: Vec<_> = response.topics.iter().map(|topic| topic.is_internal).collect();
        assert_eq!(internal, [false, false, true]);
    }

    #[test]
    fn topics_are_named_by_id_from_version_12_on() {
        let world = World::new().with_topic("a", 1);
        let by_id = |name: &str| MetadataRequestTopic { topic_id: topic_id(name), name: None };
        let wanted =
            MetadataRequest { topics: Some(vec![by_id("a"), by_id("b")]), ..Default::default() };
        let response = world.answer(12, &wanted);
        let unknown = ("-".into(), ErrorCode::UnknownTopicId, vec![]);
        assert_eq!(trace(&response), [("a".into(), ErrorCode::None, vec![0]), unknown]);
        assert_eq!(response.topics[1].topic_id, topic_id("b"));

        let response = world.answer(11, &wanted);
        assert!(response.topics.iter().all(|t| t.error_code == ErrorCode::InvalidRequest));
    }

    #[test]
    fn unknown_topics_stay_so_if_node_or_client_says_so() {
        let mut world = World::new();
        let unknown = [
            ("new".into(), ErrorCode::UnknownTopicOrPartition, vec![]),
            ("no/name".into(), ErrorCode::InvalidTopic, vec![]),
        ];
        let mut wanted = by_name(&["new", "no/name"]);
        wanted.allow_auto_topic_creation = false;
        assert_eq!(trace(&world.answer(4, &wanted)), unknown);
        world.facts.auto_create = false;
        wanted.allow_auto_topic_creation = true;
        assert_eq!(trace(&world.answer(4, &wanted)), unknown);
    }

    fn create(wanted: &MetadataRequest, before: &World) -> (Vec<String>, super::super::Then) {
        let (mut commands, then) = asked(before.handle(12, wanted));
        let Some((ShardId(0), Command::Catalog(CatalogCommand::CreateTopics { topics, .. }))) =
            commands.pop()
        else {
            panic!("{commands:?}");
        };
        assert!(commands.is_empty());
        assert!(topics.iter().all(|topic| topic.automatic && topic.partition_count.is_none()));
        (topics.into_iter().map(|topic| topic.name).collect(), then)
    }

    fn created(name: &str) -> TopicChange {
        TopicChange { topic: topic_id(name), partition_count: 2, config: Vec::new() }
    }

    #[test]
    fn an_unknown_topic_is_made_and_then_described() {
        let before = World::new().with_topic("old", 1);
        let (names, then) = create(&by_name(&["new", "old", "no/name", "late", "bad"]), &before);
        assert_eq!(names, ["bad", "late", "new"]);
        let refused = Refused { refusal: Refusal::PolicyViolation, message: String::new() };
        let reply = Reply::Catalog(vec![Err(refused), Ok(created("late")), Ok(created("new"))]);
        let after = World::new().with_topic("old", 1).with_topic("new", 2);
        let (response, error) = answer::<MetadataRequest>(12, then(&after.context(), vec![reply]));
        let expected = [
            ("new".into(), ErrorCode::None, vec![0, 0]),
            ("old".into(), ErrorCode::None, vec![0]),
            ("no/name".into(), ErrorCode::InvalidTopic, vec![]),
            // Its picture has not come to this shard yet.
            ("late".into(), ErrorCode::LeaderNotAvailable, vec![]),
            ("bad".into(), ErrorCode::PolicyViolation, vec![]),
        ];
        assert_eq!(trace(&response), expected);
        assert_eq!(error, Some(ErrorCode::InvalidTopic));
    }

    #[test]
    fn a_busy_catalog_lets_the_client_ask_again() {
        let world = World::new();
        let (_, then) = create(&by_name(&["new"]), &world);
        let step = then(&world.context(), vec![Reply::Refused(Refusal::Busy)]);
        let (response, _) = answer::<MetadataRequest>(12, step);
        assert_eq!(trace(&response), [("new".into(), ErrorCode::LeaderNotAvailable, vec![])]);
    }

    #[test]
    fn one_request_makes_a_bounded_number_of_topics() {
        let world = World::new();
        let names: Vec<String> = (0..TOPICS_CREATED_MAX + 1).map(|n| format!("t{n:03}")).collect();
        let wanted = by_name(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let (asked, then) = create(&wanted, &world);
        assert_eq!(asked, names[..TOPICS_CREATED_MAX]);
        let reply = Reply::Catalog(asked.iter().map(|name| Ok(created(name))).collect());
        let (response, _) = answer::<MetadataRequest>(12, then(&world.context(), vec![reply]));
        assert_eq!(response.topics.len(), names.len());
        assert_eq!(response.topics[TOPICS_CREATED_MAX].error_code, ErrorCode::LeaderNotAvailable);
    }
}
