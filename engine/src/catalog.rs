//! The catalog: topics, their configuration, and which shard owns which partition.
//!
//! Shard 0 decides ([`Catalog::plan`]); every shard holds a copy ([`Catalog::apply`]), which it
//! changes only by applying what shard 0 decided, in that order. Pure: a plan is a list of changes
//! of keyed state, the same on every shard.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use tidemill_wal::format::{ShardId, TopicId};

use crate::command::{
    CatalogCommand, ConfigChange, NewTopic, Refusal, Refused, Routes, TopicChange, TopicConfig,
    TopicRoute,
};
use crate::effect::Change;
use crate::state::Kind;

/// Longest topic name, as in Kafka.
const NAME_SIZE_MAX: usize = 249;

/// What a topic gets where nobody says otherwise, and how much there may be.
#[derive(Debug, Clone)]
pub struct CatalogLimits {
    /// Partitions of a topic made without a number.
    pub partition_count_default: u32,
    /// Topics of the node.
    pub topic_count_max: u32,
    /// Partitions of all topics together.
    pub partition_count_max: u32,
    /// Default of `retention.ms`.
    pub retention_ms: Option<u64>,
    /// Default of `retention.bytes`.
    pub retention_bytes: Option<u64>,
    /// Default of `max.message.bytes`.
    pub batch_size_max: u32,
    /// Largest `max.message.bytes` that a topic may ask for: it must fit a frame.
    pub batch_size_limit: u32,
}

/// Ids for new topics: random UUIDs from a seed that the runtime draws at start.
#[derive(Debug, Clone)]
pub struct IdSource {
    state: [u64; 2],
}

impl CatalogLimits {
    /// What a topic without configuration of its own is configured to.
    pub fn topic_defaults(&self) -> TopicConfig {
        TopicConfig {
            retention_ms: self.retention_ms,
            retention_bytes: self.retention_bytes,
            batch_size_max: self.batch_size_max,
            append_time: false,
            overrides: BTreeMap::new(),
        }
    }
}

impl IdSource {
    /// Two shards, or two starts, must not share a seed.
    pub fn new(seed: [u64; 2]) -> Self {
        Self { state: seed }
    }

    /// The next 64 random bits (SplitMix64 over both halves of the seed).
    pub fn next_u64(&mut self) -> u64 {
        self.state[0] = self.state[0].wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state[0];
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.state[1] = self.state[1].rotate_left(23).wrapping_add(mixed ^ (mixed >> 31));
        self.state[1] ^ mixed
    }

    /// A version 4 UUID (RFC 9562).
    pub fn next_topic(&mut self) -> TopicId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next_u64().to_be_bytes());
        id[8..].copy_from_slice(&self.next_u64().to_be_bytes());
        id[6] = (id[6] & 0x0f) | 0x40;
        id[8] = (id[8] & 0x3f) | 0x80;
        TopicId(id)
    }
}

/// What a command comes to: results for the asker, changes for every shard.
#[derive(Debug, Default)]
pub struct Plan {
    /// One for each topic asked for, in order.
    pub results: Vec<Result<TopicChange, Refused>>,
    /// To be applied on every shard; empty if nothing changes.
    pub changes: Vec<Change>,
}

/// What an applied change means for the partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicEvent {
    /// The topic is there with this many partitions and this configuration.
    Present(Arc<TopicRoute>),
    /// The topic is gone.
    Gone(TopicId),
}

/// All topics.
#[derive(Debug)]
pub struct Catalog {
    shard_count: u16,
    limits: CatalogLimits,
    routes: Routes,
    partition_count: u32,
}

impl Catalog {
    /// An empty catalog of a node with this many shards.
    pub fn new(shard_count: u16, limits: CatalogLimits) -> Self {
        assert!(shard_count > 0);
        Self { shard_count, limits, routes: Routes::default(), partition_count: 0 }
    }

    /// The picture for the protocols.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// A topic by id.
    pub fn topic(&self, id: TopicId) -> Option<&Arc<TopicRoute>> {
        self.routes.ids.get(&id)
    }

    /// Takes one change that shard 0 decided, or that recovery found. Other kinds are not ours.
    pub fn apply(&mut self, change: &Change) -> Result<Option<TopicEvent>, String> {
        match Kind::of(&change.key) {
            Some(Kind::CatalogVersion) => {
                let bytes = change.value.as_deref().and_then(|value| value.try_into().ok());
                self.routes.version =
                    u64::from_le_bytes(bytes.ok_or("the catalog version is not 8 bytes")?);
                Ok(None)
            }
            Some(Kind::Topic) => {
                let id = change.key.get(1..).and_then(|id| id.try_into().ok()).map(TopicId);
                let id = id.ok_or("a topic's key is not 17 bytes")?;
                self.remove(id);
                let Some(value) = &change.value else { return Ok(Some(TopicEvent::Gone(id))) };
                let topic = self
                    .decode_topic(id, value)
                    .ok_or_else(|| format!("the entry of topic {id} cannot be read"))?;
                let topic = Arc::new(topic);
                self.partition_count += topic.partition_count;
                self.routes.topics.insert(topic.name.clone(), topic.clone());
                self.routes.ids.insert(id, topic.clone());
                Ok(Some(TopicEvent::Present(topic)))
            }
            _ => Err("not an entry of the catalog".to_owned()),
        }
    }

    fn remove(&mut self, id: TopicId) {
        if let Some(topic) = self.routes.ids.remove(&id) {
            self.routes.topics.remove(&topic.name);
            self.partition_count -= topic.partition_count;
        }
    }

    /// Whether a topic may be configured like this.
    pub fn check_config(&self, config: &[(String, String)]) -> Result<(), Refused> {
        resolve_config(config.iter().cloned().collect(), &self.limits).map(|_| ())
    }

    /// Decides a command. Changes nothing here: apply the plan's changes to do so.
    pub fn plan(&self, command: &CatalogCommand, ids: &mut IdSource) -> Plan {
        let mut plan = Plan::default();
        let validate_only = match command {
            CatalogCommand::CreateTopics { topics, validate_only } => {
                self.plan_creation(topics, ids, &mut plan);
                *validate_only
            }
            CatalogCommand::DeleteTopics(topics) => {
                for id in topics {
                    let result = self.require(*id).map(outcome);
                    if result.is_ok() {
                        plan.changes.push(Change { key: topic_key(*id), value: None });
                    }
                    plan.results.push(result);
                }
                false
            }
            CatalogCommand::CreatePartitions { topics, validate_only } => {
                let mut added = 0;
                for (id, count) in topics {
                    let result = self.grown(*id, *count, &mut added);
                    plan.take(result);
                }
                *validate_only
            }
            CatalogCommand::AlterConfigs { topics, validate_only } => {
                for (id, change) in topics {
                    plan.take(self.altered(*id, change));
                }
                *validate_only
            }
        };
        if validate_only {
            plan.changes.clear();
        }
        if !plan.changes.is_empty() {
            plan.changes.push(Change {
                key: Kind::CatalogVersion.key(&[]),
                value: Some((self.routes.version + 1).to_le_bytes().to_vec()),
            });
        }
        plan
    }

    fn plan_creation(&self, topics: &[NewTopic], ids: &mut IdSource, plan: &mut Plan) {
        let mut names = HashSet::new();
        let mut added = 0;
        for topic in topics {
            let result = match names.insert(topic.name.as_str()) {
                true => self.created(topic, ids, plan.changes.len() as u64, &mut added),
                false => Err(refused(
                    Refusal::InvalidRequest,
                    format!("topic {:?} is named twice in one request", topic.name),
                )),
            };
            match result {
                Ok(Creation::New(route)) => plan.take(Ok(route)),
                Ok(Creation::Existing(route)) => {
                    plan.results.push(Ok(outcome(&route)));
                }
                Err(refused) => plan.results.push(Err(refused)),
            }
        }
    }

    fn created(
        &self,
        topic: &NewTopic,
        ids: &mut IdSource,
        number: u64,
        added: &mut u32,
    ) -> Result<Creation, Refused> {
        check_name(&topic.name)?;
        if let Some(existing) = self.routes.topics.get(topic.name.as_str()) {
            return match topic.automatic {
                true => Ok(Creation::Existing(existing.clone())),
                false => Err(refused(
                    Refusal::TopicExists,
                    // Kafka's words: scripts look for them.
                    format!("Topic '{}' already exists.", topic.name),
                )),
            };
        }
        let topic_count = self.routes.topics.len() as u64 + number;
        if topic_count >= u64::from(self.limits.topic_count_max) {
            let message = format!(
                "the node holds {topic_count} topics, its limit; delete some, or raise topics_max"
            );
            return Err(refused(Refusal::PolicyViolation, message));
        }
        let partition_count = topic.partition_count.unwrap_or(self.limits.partition_count_default);
        self.check_partition_count(partition_count, added)?;
        let overrides: BTreeMap<String, String> = topic.config.iter().cloned().collect();
        let config = resolve_config(overrides, &self.limits)?;
        // Topics start on different shards in turn, so that many small ones spread.
        let spread = self.routes.version.wrapping_add(number) % u64::from(self.shard_count);
        Ok(Creation::New(TopicRoute {
            name: topic.name.as_str().into(),
            id: ids.next_topic(),
            partition_count,
            first_shard: ShardId(spread as u16),
            shard_count: self.shard_count,
            config,
        }))
    }

    fn check_partition_count(&self, count: u32, added: &mut u32) -> Result<(), Refused> {
        if count == 0 {
            let message = "a topic has at least one partition".to_owned();
            return Err(refused(Refusal::InvalidPartitionCount, message));
        }
        let total = u64::from(self.partition_count) + u64::from(*added) + u64::from(count);
        if total > u64::from(self.limits.partition_count_max) {
            let message = format!(
                "the node would hold {total} partitions, its limit is {}; raise partitions_max",
                self.limits.partition_count_max
            );
            return Err(refused(Refusal::PolicyViolation, message));
        }
        *added += count;
        Ok(())
    }

    fn grown(&self, id: TopicId, count: u32, added: &mut u32) -> Result<TopicRoute, Refused> {
        let topic = self.require(id)?;
        if count <= topic.partition_count {
            let message = format!(
                "topic {:?} has {} partitions already and cannot shrink to {count}",
                topic.name, topic.partition_count
            );
            return Err(refused(Refusal::InvalidPartitionCount, message));
        }
        self.check_partition_count(count - topic.partition_count, added)?;
        Ok(TopicRoute { partition_count: count, ..topic.clone() })
    }

    fn altered(&self, id: TopicId, change: &ConfigChange) -> Result<TopicRoute, Refused> {
        let topic = self.require(id)?;
        let overrides = match change {
            ConfigChange::Replace(values) => values.iter().cloned().collect(),
            ConfigChange::Update(updates) => {
                let mut overrides = topic.config.overrides.clone();
                for (key, value) in updates {
                    match value {
                        Some(value) => {
                            overrides.insert(key.clone(), value.clone());
                        }
                        None => {
                            check_key(key)?;
                            overrides.remove(key);
                        }
                    }
                }
                overrides
            }
        };
        let config = resolve_config(overrides, &self.limits)?;
        Ok(TopicRoute { config, ..topic.clone() })
    }

    fn require(&self, id: TopicId) -> Result<&TopicRoute, Refused> {
        self.routes.ids.get(&id).map(Arc::as_ref).ok_or_else(|| {
            refused(Refusal::UnknownTopicId, format!("there is no topic with the id {id}"))
        })
    }

    fn decode_topic(&self, id: TopicId, value: &[u8]) -> Option<TopicRoute> {
        let mut bytes = Bytes(value);
        if bytes.take(1)? != [1] {
            return None;
        }
        let partition_count = u32::from_le_bytes(bytes.take(4)?.try_into().ok()?);
        let first_shard = u16::from_le_bytes(bytes.take(2)?.try_into().ok()?);
        let name = bytes.text()?;
        let count = u16::from_le_bytes(bytes.take(2)?.try_into().ok()?);
        let mut overrides = BTreeMap::new();
        for _ in 0..count {
            let key = bytes.text()?.to_owned();
            overrides.insert(key, bytes.text()?.to_owned());
        }
        let config = resolve_config(overrides, &self.limits).ok()?;
        bytes.0.is_empty().then(|| TopicRoute {
            name: name.into(),
            id,
            partition_count,
            first_shard: ShardId(first_shard),
            shard_count: self.shard_count,
            config,
        })
    }
}

/// A topic's entry, as far as it says where the topic is.
#[derive(Debug)]
pub struct StoredTopic {
    bytes: Vec<u8>,
    name: std::ops::Range<usize>,
}

/// Where its first shard is in a topic's entry; see [`encode_topic`].
const FIRST_SHARD: std::ops::Range<usize> = 5..7;

impl StoredTopic {
    /// Of an entry's value.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let rest = value.get(FIRST_SHARD.end..).filter(|_| value[0] == 1)?;
        let size = Bytes(rest).text()?.len();
        let start = FIRST_SHARD.end + 2;
        Some(Self { bytes: value.to_vec(), name: start..start + size })
    }

    /// The topic's name.
    pub fn name(&self) -> &str {
        std::str::from_utf8(&self.bytes[self.name.clone()]).unwrap_or_default()
    }

    /// The shard of its first partition.
    pub fn first_shard(&self) -> ShardId {
        let bytes = [self.bytes[FIRST_SHARD.start], self.bytes[FIRST_SHARD.start + 1]];
        ShardId(u16::from_le_bytes(bytes))
    }

    /// Moves its first partition to a shard, and the others after it.
    pub fn set_first_shard(&mut self, shard: ShardId) {
        self.bytes[FIRST_SHARD].copy_from_slice(&shard.0.to_le_bytes());
    }

    /// The entry's value.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

enum Creation {
    New(TopicRoute),
    Existing(Arc<TopicRoute>),
}

impl Plan {
    fn take(&mut self, result: Result<TopicRoute, Refused>) {
        self.results.push(result.map(|topic| {
            let value = Some(encode_topic(&topic));
            self.changes.push(Change { key: topic_key(topic.id), value });
            outcome(&topic)
        }));
    }
}

/// Little-endian: version 1, partitions, first shard, name, count of overrides, key and value each.
fn encode_topic(topic: &TopicRoute) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend_from_slice(&topic.partition_count.to_le_bytes());
    bytes.extend_from_slice(&topic.first_shard.0.to_le_bytes());
    put_text(&mut bytes, &topic.name);
    bytes.extend_from_slice(&(topic.config.overrides.len() as u16).to_le_bytes());
    for (key, value) in &topic.config.overrides {
        put_text(&mut bytes, key);
        put_text(&mut bytes, value);
    }
    bytes
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn text(&mut self) -> Option<&'a str> {
        let size = u16::from_le_bytes(self.take(2)?.try_into().ok()?);
        std::str::from_utf8(self.take(usize::from(size))?).ok()
    }
}

fn topic_key(id: TopicId) -> Vec<u8> {
    Kind::Topic.key(&[&id.0])
}

fn outcome(topic: &TopicRoute) -> TopicChange {
    TopicChange {
        topic: topic.id,
        partition_count: topic.partition_count,
        config: describe_config(&topic.config),
    }
}

fn refused(refusal: Refusal, message: String) -> Refused {
    Refused { refusal, message }
}

/// Names as Kafka allows them, so that every client and tool can use every topic.
fn check_name(name: &str) -> Result<(), Refused> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let fault = if name.is_empty() {
        "is empty"
    } else if name == "." || name == ".." {
        "must not be \".\" or \"..\""
    } else if name.len() > NAME_SIZE_MAX {
        "is longer than 249 characters"
    } else if !name.chars().all(is_allowed) {
        "holds other characters than ASCII letters, digits, '.', '_' and '-'"
    } else {
        return Ok(());
    };
    Err(refused(Refusal::InvalidTopic, format!("the topic name {name:?} {fault}")))
}

/// The topic configuration keys that are honoured.
pub const CONFIG_KEYS: [&str; 7] = [
    "cleanup.policy",
    "compression.type",
    "max.message.bytes",
    "message.timestamp.type",
    "min.insync.replicas",
    "retention.bytes",
    "retention.ms",
];

fn check_key(key: &str) -> Result<(), Refused> {
    if CONFIG_KEYS.contains(&key) {
        return Ok(());
    }
    let message = format!(
        "the topic configuration {key:?} is not honoured by this node; known are {}",
        CONFIG_KEYS.join(", ")
    );
    Err(refused(Refusal::InvalidConfig, message))
}

fn resolve_config(
    overrides: BTreeMap<String, String>,
    limits: &CatalogLimits,
) -> Result<TopicConfig, Refused> {
    let mut config = limits.topic_defaults();
    for (key, value) in &overrides {
        check_key(key)?;
        let allowed = match key.as_str() {
            "retention.ms" => parse_limit(value).map(|limit| config.retention_ms = limit),
            "retention.bytes" => parse_limit(value).map(|limit| config.retention_bytes = limit),
            "max.message.bytes" => value
                .parse()
                .ok()
                .filter(|size| (1..=limits.batch_size_limit).contains(size))
                .map(|size| config.batch_size_max = size),
            "message.timestamp.type" => match value.as_str() {
                "CreateTime" => Some(false),
                "LogAppendTime" => Some(true),
                _ => None,
            }
            .map(|append_time| config.append_time = append_time),
            "cleanup.policy" => (value == "delete").then_some(()),
            "compression.type" => (value == "producer").then_some(()),
            "min.insync.replicas" => (value == "1").then_some(()),
            _ => None,
        };
        if allowed.is_none() {
            let hint = match key.as_str() {
                "retention.ms" | "retention.bytes" => "a whole number of at least -1".to_owned(),
                "max.message.bytes" => format!("1 to {}", limits.batch_size_limit),
                "message.timestamp.type" => "CreateTime or LogAppendTime".to_owned(),
                "cleanup.policy" => "delete (compaction is not supported)".to_owned(),
                "compression.type" => "producer (batches are stored as sent)".to_owned(),
                _ => "1 (there is one replica)".to_owned(),
            };
            let message = format!("the topic configuration {key}={value} is not allowed: {hint}");
            return Err(refused(Refusal::InvalidConfig, message));
        }
    }
    config.overrides = overrides;
    Ok(config)
}

/// -1 means no limit.
fn parse_limit(value: &str) -> Option<Option<u64>> {
    match value.parse::<i64>().ok()? {
        -1 => Some(None),
        limit => u64::try_from(limit).ok().map(Some),
    }
}

fn describe_config(config: &TopicConfig) -> Vec<(String, String, bool)> {
    config
        .values()
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value, config.overrides.contains_key(key)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> CatalogLimits {
        CatalogLimits {
            partition_count_default: 2,
            partition_count_max: 10,
            topic_count_max: 5,
            retention_ms: Some(1000),
            retention_bytes: None,
            batch_size_max: 1 << 20,
            batch_size_limit: 15 << 20,
        }
    }

    fn new_topic(name: &str, partition_count: Option<u32>, config: &[(&str, &str)]) -> NewTopic {
        NewTopic {
            name: name.to_owned(),
            partition_count,
            config: config.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            automatic: false,
        }
    }

    fn create(topics: Vec<NewTopic>) -> CatalogCommand {
        CatalogCommand::CreateTopics { topics, validate_only: false }
    }

    fn run(catalog: &mut Catalog, command: &CatalogCommand) -> Vec<Result<TopicChange, Refused>> {
        let plan = catalog.plan(command, &mut IdSource::new([catalog.routes.version, 2]));
        for change in &plan.changes {
            catalog.apply(change).expect("a planned change applies");
        }
        plan.results
    }

    fn refusals(results: &[Result<TopicChange, Refused>]) -> Vec<Option<Refusal>> {
        results.iter().map(|r| r.as_ref().err().map(|refused| refused.refusal)).collect()
    }

    #[test]
    fn a_copy_that_applies_the_changes_is_equal() {
        let mut leader = Catalog::new(2, limits());
        let mut copy = Catalog::new(2, limits());
        let command = create(vec![
            new_topic("a", None, &[("retention.ms", "-1")]),
            new_topic("b", Some(3), &[("message.timestamp.type", "LogAppendTime")]),
        ]);
        let plan = leader.plan(&command, &mut IdSource::new([1, 2]));
        for change in &plan.changes {
            leader.apply(change).expect("a planned change applies");
            copy.apply(change).expect("a planned change applies");
        }
        assert_eq!(copy.routes.version, 1);
        assert_eq!(copy.routes.topics, leader.routes.topics);
        let b = &copy.routes.topics["b"];
        assert_eq!((b.partition_count, b.first_shard), (3, ShardId(1)));
        assert!(b.config.append_time);
        assert_eq!(copy.routes.topics["a"].config.retention_ms, None);
    }

    #[test]
    fn a_stored_topic_can_begin_on_another_shard_and_is_the_same_otherwise() {
        let mut catalog = Catalog::new(9, limits());
        run(&mut catalog, &create(vec![new_topic("a", None, &[])]));
        run(&mut catalog, &create(vec![new_topic("b", Some(3), &[("retention.ms", "5")])]));
        let before = (*catalog.routes.topics["b"]).clone();
        let value = encode_topic(&before);
        let mut stored = StoredTopic::decode(&value).expect("ours");
        assert_eq!((stored.name(), stored.first_shard()), ("b", ShardId(1)));
        stored.set_first_shard(ShardId(0x0102));
        let after = catalog.decode_topic(before.id, &stored.into_bytes()).expect("ours");
        assert_eq!(after, TopicRoute { first_shard: ShardId(0x0102), ..before });
        for size in 0..10 {
            assert!(StoredTopic::decode(&value[..size]).is_none(), "{size} bytes");
        }
    }

    #[test]
    fn names_counts_and_keys_are_checked() {
        let mut catalog = Catalog::new(2, limits());
        let long = "x".repeat(250);
        let results = run(
            &mut catalog,
            &create(vec![
                new_topic("ok", None, &[]),
                new_topic("ok", None, &[]),
                new_topic("", None, &[]),
                new_topic("..", None, &[]),
                new_topic("sla/sh", None, &[]),
                new_topic(&long, None, &[]),
                new_topic("none", Some(0), &[]),
                new_topic("many", Some(9), &[]),
                new_topic("compacted", None, &[("cleanup.policy", "compact")]),
                new_topic("odd", None, &[("segment.bytes", "1")]),
                new_topic("large", None, &[("max.message.bytes", "999999999")]),
            ]),
        );
        assert_eq!(
            refusals(&results),
            [
                None,
                Some(Refusal::InvalidRequest),
                Some(Refusal::InvalidTopic),
                Some(Refusal::InvalidTopic),
                Some(Refusal::InvalidTopic),
                Some(Refusal::InvalidTopic),
                Some(Refusal::InvalidPartitionCount),
                Some(Refusal::PolicyViolation),
                Some(Refusal::InvalidConfig),
                Some(Refusal::InvalidConfig),
                Some(Refusal::InvalidConfig),
            ]
        );
        let again = run(&mut catalog, &create(vec![new_topic("ok", None, &[])]));
        assert_eq!(refusals(&again), [Some(Refusal::TopicExists)]);
        let automatic = NewTopic { automatic: true, ..new_topic("ok", None, &[]) };
        assert_eq!(refusals(&run(&mut catalog, &create(vec![automatic]))), [None]);
    }

    #[test]
    fn a_refused_key_is_named() {
        let catalog = Catalog::new(2, limits());
        let command = create(vec![new_topic("odd", None, &[("segment.bytes", "1")])]);
        let plan = catalog.plan(&command, &mut IdSource::new([1, 2]));
        let refused = plan.results[0].as_ref().expect_err("not honoured");
        assert!(refused.message.contains("\"segment.bytes\""), "{}", refused.message);
        assert!(plan.changes.is_empty());
    }

    #[test]
    fn topics_grow_change_and_go() {
        let mut catalog = Catalog::new(2, limits());
        run(&mut catalog, &create(vec![new_topic("a", Some(2), &[])]));
        let id = catalog.routes.topics["a"].id;
        let grow = |count| CatalogCommand::CreatePartitions {
            topics: vec![(id, count)],
            validate_only: false,
        };
        assert_eq!(refusals(&run(&mut catalog, &grow(4))), [None]);
        let shrunk = run(&mut catalog, &grow(3));
        assert_eq!(refusals(&shrunk), [Some(Refusal::InvalidPartitionCount)]);
        let alter = |change| CatalogCommand::AlterConfigs {
            topics: vec![(id, change)],
            validate_only: false,
        };
        let set = ConfigChange::Update(vec![("retention.ms".into(), Some("5".into()))]);
        run(&mut catalog, &alter(set));
        assert_eq!(catalog.routes.topics["a"].config.retention_ms, Some(5));
        run(&mut catalog, &alter(ConfigChange::Replace(vec![])));
        assert_eq!(catalog.routes.topics["a"].config.retention_ms, Some(1000));
        assert_eq!(catalog.routes.topics["a"].partition_count, 4);
        run(&mut catalog, &CatalogCommand::DeleteTopics(vec![id]));
        assert!(catalog.routes.topics.is_empty() && catalog.routes.ids.is_empty());
        assert_eq!(catalog.partition_count, 0);
        let gone = run(&mut catalog, &grow(9));
        assert_eq!(refusals(&gone), [Some(Refusal::UnknownTopicId)]);
    }

    #[test]
    fn ids_do_not_repeat() {
        let mut ids = IdSource::new([0, 0]);
        let drawn: HashSet<TopicId> = (0..10_000).map(|_| ids.next_topic()).collect();
        assert_eq!(drawn.len(), 10_000);
        assert!(drawn.iter().all(|id| id.0[6] >> 4 == 4 && id.0[8] >> 6 == 2));
    }
}
