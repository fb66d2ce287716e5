//! A small node for the tests of APIs: facts, topics, requests in, answers out.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tidemill_wal::format::{ShardId, TopicId};

use super::{Answer, Step, Then, handle};
use crate::command::{Command, Routes, TopicConfig, TopicRoute};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::{Incoming, RequestFrame, decode_response, encode_request};
use crate::kafka::messages::Request;
use crate::kafka::session::{Advertise, Context, Endpoint, NodeFacts};

/// Room for what tests decode.
pub const MEMORY_MAX: usize = 1 << 24;

/// A node with two shards.
pub struct World {
    /// The node.
    pub facts: NodeFacts,
    /// Its topics.
    pub routes: Arc<Routes>,
    /// What a new fetch may ask for.
    pub fetch_budget: u32,
}

impl World {
    /// Without topics.
    pub fn new() -> Self {
        let endpoint = Endpoint { host: "mill".into(), port: 9092 };
        let facts = NodeFacts {
            cluster_id: "tide".into(),
            shard: ShardId(0),
            shard_count: 2,
            advertise: Advertise::Node(endpoint),
            auto_create: true,
            partition_count_default: 2,
            topic_defaults: topic_config(),
            settings: vec![("node.host".into(), "mill".into())],
            request_size_max: MEMORY_MAX,
            fetch_size_max: 1 << 24,
            version: "0.1.0".into(),
        };
        Self { facts, routes: Arc::default(), fetch_budget: u32::MAX }
    }

    /// With another number of shards; topics come after.
    pub fn with_shards(mut self, shard_count: u16) -> Self {
        self.facts.shard_count = shard_count;
        self
    }

    /// Each of two shards a broker of its own.
    pub fn advertise_shards(mut self) -> Self {
        let endpoint = |port| Endpoint { host: "mill".into(), port };
        self.facts.advertise = Advertise::Shards(vec![endpoint(9092), endpoint(9093)]);
        self
    }

    /// Adds a topic whose id is its name, cut or filled up with zeros, and whose partition 0 is on shard 0.
    pub fn with_topic(mut self, name: &str, partition_count: u32) -> Self {
        let topic = Arc::new(TopicRoute {
            name: name.into(),
            id: topic_id(name),
            partition_count,
            first_shard: ShardId(0),
            shard_count: self.facts.shard_count,
            config: topic_config(),
        });
        let routes = Arc::make_mut(&mut self.routes);
        routes.version += 1;
        routes.ids.insert(topic.id, topic.clone());
        routes.topics.insert(topic.name.clone(), topic);
        self
    }

    /// The moment of a call.
    pub fn context(&self) -> Context<'_> {
        Context {
            facts: &self.facts,
            routes: &self.routes,
            wall_ms: 1_700_000_000_000,
            fetch_budget: self.fetch_budget,
        }
    }

    /// Begins a request.
    pub fn handle<R: Request>(&self, version: i16, request: &R) -> Step {
        handle(&self.context(), &frame(version, request), "127.0.0.1")
    }

    /// Begins a request that no shard is needed for.
    pub fn answer<R: Request>(&self, version: i16, request: &R) -> R::Response {
        answer::<R>(version, self.handle(version, request)).0
    }
}

/// Every topic of a [`World`] has it.
pub fn topic_config() -> TopicConfig {
    TopicConfig {
        retention_ms: None,
        retention_bytes: None,
        batch_size_max: 1 << 20,
        append_time: false,
        overrides: BTreeMap::new(),
    }
}

/// The id of a topic of a [`World`].
pub fn topic_id(name: &str) -> TopicId {
    let mut id = [0; 16];
    let size = name.len().min(id.len());
    id[..size].copy_from_slice(&name.as_bytes()[..size]);
    TopicId(id)
}

/// A request's frame without its length; correlation id 7.
pub fn frame_bytes<R: Request>(version: i16, request: &R) -> Bytes {
    let mut frame = encode_request(version, 7, Some("client"), request).concat();
    frame.advance(4);
    frame
}

/// A request as it comes from the wire.
pub fn frame<R: Request>(version: i16, request: &R) -> RequestFrame {
    match Incoming::decode(frame_bytes(version, request)) {
        Ok(Incoming::Request(request)) => request,
        other => panic!("{} {version} is served: {other:?}", R::API),
    }
}

/// The answer that a step is, and its first error.
pub fn answer<R: Request>(version: i16, step: Step) -> (R::Response, Option<ErrorCode>) {
    let Step::Respond(Answer { pieces: Some(pieces), error }) = step else {
        panic!("an answer");
    };
    let mut frame = pieces.concat();
    assert_eq!(frame.get_i32() as usize, frame.len());
    let (correlation_id, response) = decode_response::<R>(version, frame, MEMORY_MAX).unwrap();
    assert_eq!(correlation_id, 7);
    (response, error)
}

/// The commands that a step asks, and how it goes on.
pub fn asked(step: Step) -> (Vec<(ShardId, Command)>, Then) {
    let Step::Ask { commands, then, .. } = step else { panic!("commands") };
    (commands, then)
}
