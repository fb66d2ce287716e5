//! One connection's requests: dispatched as they come, answered in the order they came.
//!
//! Pure: frames and replies in, actions and finished requests out. Many requests may be open; their
//! commands leave at once and in order, so that appends keep the order of their requests, and an
//! answer waits until all earlier ones have left. Only a fetch that comes while another one is open
//! waits for its turn: its answer could not leave before, and so a connection never has more than
//! one fetch waiting at a shard, or the records of more than one in memory.
//!
//! Invariants: each dispatched command has one reply; after a request that ends the connection no
//! later one is taken; `next_finished` never overtakes.
//!
//! Deliberately absent: a refusal of what goes beyond the limits. The runtime stops reading there
//! ([`Session::may_read`]).

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_wal::format::ShardId;
use tidemill_wal::mutation::{self, Mutation};

use super::api::{self, Answer, Step, Then};
use super::api_key::ApiKey;
use super::error_code::ErrorCode;
use super::frame::{CloseReason, Incoming, RequestFrame, unsupported_api_versions};
use super::wire::Pieces;
use crate::command::{Command, Reply, Routes, TopicConfig};

/// Requests of one connection that may be open; then nothing more is read from it.
const REQUESTS_OPEN_MAX: usize = 128;

/// What a session knows of its node; built once.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Names the data directory to clients.
    pub cluster_id: String,
    /// The shard whose thread runs the session.
    pub shard: ShardId,
    /// How many shards the node has.
    pub shard_count: u16,
    /// Where clients are sent.
    pub advertise: Advertise,
    /// Whether asking for a topic's metadata makes it.
    pub auto_create: bool,
    /// Partitions of a topic that does not say how many.
    pub partition_count_default: u32,
    /// Configuration of a topic that overrides nothing.
    pub topic_defaults: TopicConfig,
    /// The node's own settings, for DescribeConfigs.
    pub settings: Vec<(String, String)>,
    /// Largest request, and most memory that decoding one may take beside it.
    pub request_size_max: usize,
    /// Most record bytes of one fetch.
    pub fetch_size_max: u32,
    /// The node's version.
    pub version: String,
}

/// Where clients are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advertise {
    /// To one broker, number 0; requests hop to their shards.
    Node(Endpoint),
    /// Each shard is a broker of its own, numbered by its index.
    Shards(Vec<Endpoint>),
}

/// Host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl NodeFacts {
    /// The brokers that clients see, by number.
    pub fn brokers(&self) -> impl Iterator<Item = (i32, &Endpoint)> {
        let endpoints = match &self.advertise {
            Advertise::Node(endpoint) => std::slice::from_ref(endpoint),
            Advertise::Shards(endpoints) => endpoints,
        };
        (0..).zip(endpoints)
    }

    /// The number of the broker that leads what a shard holds.
    pub fn broker_of(&self, shard: ShardId) -> i32 {
        match &self.advertise {
            Advertise::Node(_) => 0,
            Advertise::Shards(_) => i32::from(shard.0),
        }
    }
}

/// What the moment brings to a call.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The node.
    pub facts: &'a NodeFacts,
    /// Where everything is, now.
    pub routes: &'a Arc<Routes>,
    /// Milliseconds since 1970.
    pub wall_ms: i64,
    /// Record bytes that a new fetch may ask for.
    pub fetch_budget: u32,
}

/// Names one command of a session; unique in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DispatchId(pub u64);

/// What the session asks of the runtime.
#[derive(Debug)]
pub enum Action {
    /// Bring a command to a shard, and its reply back with the same id.
    Ask {
        /// Names the command.
        id: DispatchId,
        /// Whom to ask.
        shard: ShardId,
        /// What.
        command: Command,
    },
    /// An earlier fetch need not wait any longer; it is still answered.
    FetchNow {
        /// The earlier fetch.
        id: DispatchId,
        /// Whom it was asked of.
        shard: ShardId,
    },
}

/// A request that is done with.
#[derive(Debug)]
pub struct Finished {
    /// What was asked.
    pub api: ApiKey,
    /// The first error in the answer.
    pub error: Option<ErrorCode>,
    /// What to send; `None` for a request that wants no answer.
    pub pieces: Option<Pieces>,
    /// The token that came with the request.
    pub started: u64,
    /// The connection ends with this request, and why.
    pub close: Option<CloseReason>,
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    peer: String,
    /// In request order.
    open: VecDeque<Open>,
    /// Number of the request at the front of `open`.
    first: u64,
    /// Unanswered commands with the numbers of their requests.
    asks: HashMap<DispatchId, u64>,
    next_id: u64,
    /// A request has ended the connection: no later one is taken.
    is_ending: bool,
    /// That request was handed out, or the connection is gone: nothing is handed out any more.
    is_ended: bool,
}

#[derive(Debug)]
struct Open {
    api: ApiKey,
    started: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// A fetch whose turn has not come.
    Held(RequestFrame),
    Waiting(Waiting),
    Answered(Answer),
    Ending(CloseReason),
}

impl State {
    fn is_done(&self) -> bool {
        match self {
            Self::Held(_) | Self::Waiting(_) => false,
            Self::Answered(_) | Self::Ending(_) => true,
        }
    }
}

/// Commands of one step of a request.
struct Waiting {
    /// The commands have consecutive ids, from this one on.
    first_id: u64,
    shards: Vec<ShardId>,
    replies: Vec<Option<Reply>>,
    missing: usize,
    then: Then,
    hurry: bool,
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Waiting for {} of {:?} from {}", self.missing, self.shards, self.first_id)
    }
}

impl Waiting {
    fn missing(&self) -> impl Iterator<Item = (ShardId, DispatchId)> {
        let ids = (self.first_id..).map(DispatchId);
        let all = self.shards.iter().copied().zip(ids).zip(&self.replies);
        all.filter(|(_, reply)| reply.is_none()).map(|(ask, _)| ask)
    }
}

impl Session {
    /// A connection from this address.
    pub fn new(peer: String) -> Self {
        Self {
            peer,
            open: VecDeque::new(),
            first: 0,
            asks: HashMap::new(),
            next_id: 0,
            is_ending: false,
            is_ended: false,
        }
    }

    /// Takes a request: a frame without its length. `started` comes back when it is finished. An
    /// error ends the connection at once, without an answer to what is still open.
    pub fn on_request(
        &mut self,
        cx: &Context<'_>,
        started: u64,
        frame: Bytes,
        actions: &mut Vec<Action>,
    ) -> Result<(), CloseReason> {
        if self.is_ending {
            return Ok(());
        }
        let (api, step) = match Incoming::decode(frame)? {
            Incoming::Request(request) if request.api == ApiKey::Fetch && self.has_open_fetch() => {
                let state = State::Held(request);
                self.open.push_back(Open { api: ApiKey::Fetch, started, state });
                return Ok(());
            }
            Incoming::Request(request) => (request.api, api::handle(cx, &request, &self.peer)),
            Incoming::UnsupportedApiVersions { correlation_id } => {
                let pieces = Some(unsupported_api_versions(correlation_id));
                let error = Some(ErrorCode::UnsupportedVersion);
                (ApiKey::ApiVersions, Step::Respond(Answer { pieces, error }))
            }
        };
        let number = self.first + self.open.len() as u64;
        let state = self.settle(cx, number, step, actions);
        self.open.push_back(Open { api, started, state });
        Ok(())
    }

    /// Takes the reply to a command.
    pub fn on_reply(
        &mut self,
        cx: &Context<'_>,
        id: DispatchId,
        reply: Reply,
        actions: &mut Vec<Action>,
    ) {
        let Some(number) = self.asks.remove(&id) else {
            assert!(self.is_ended, "a reply to a command that nobody waits for");
            return;
        };
        let index = usize::try_from(number - self.first).expect("as many fit in memory");
        let open = &mut self.open[index];
        let State::Waiting(waiting) = &mut open.state else {
            panic!("a request with open commands waits for them");
        };
        let has_data = waiting.hurry && is_worth_answering(&reply);
        waiting.replies[(id.0 - waiting.first_id) as usize] = Some(reply);
        waiting.missing -= 1;
        if waiting.missing > 0 {
            if has_data {
                waiting.hurry = false;
                let others = waiting.missing();
                actions.extend(others.map(|(shard, id)| Action::FetchNow { id, shard }));
            }
            return;
        }
        let placeholder = State::Answered(Answer { pieces: None, error: None });
        let State::Waiting(waiting) = std::mem::replace(&mut open.state, placeholder) else {
            unreachable!("matched above");
        };
        let replies = waiting.replies.into_iter().flatten().collect();
        let step = (waiting.then)(cx, replies);
        self.open[index].state = self.settle(cx, number, step, actions);
        let is_forgotten = mutation::is_on(Mutation::ForgetHeldFetch);
        if self.open[index].api == ApiKey::Fetch && !is_forgotten {
            self.start_held(cx, actions);
        }
    }

    fn has_open_fetch(&self) -> bool {
        let is_open = |state: &State| matches!(state, State::Held(_) | State::Waiting(_));
        self.open.iter().any(|open| open.api == ApiKey::Fetch && is_open(&open.state))
    }

    /// The fetch before has its answer: the next one begins.
    fn start_held(&mut self, cx: &Context<'_>, actions: &mut Vec<Action>) {
        for index in 0..self.open.len() {
            match &self.open[index].state {
                State::Waiting(_) if self.open[index].api == ApiKey::Fetch => return,
                State::Held(request) => {
                    let step = api::handle(cx, request, &self.peer);
                    let number = self.first + index as u64;
                    self.open[index].state = self.settle(cx, number, step, actions);
                    if matches!(self.open[index].state, State::Waiting(_)) {
                        return;
                    }
                }
                State::Waiting(_) | State::Answered(_) | State::Ending(_) => {}
            }
        }
    }

    /// Follows the steps of a request up to where it waits or ends.
    fn settle(
        &mut self,
        cx: &Context<'_>,
        number: u64,
        mut step: Step,
        actions: &mut Vec<Action>,
    ) -> State {
        loop {
            match step {
                Step::Respond(answer) => return State::Answered(answer),
                Step::Close(reason) => {
                    self.is_ending = true;
                    return State::Ending(reason);
                }
                Step::Ask { commands, then, .. } if commands.is_empty() => {
                    step = then(cx, Vec::new());
                }
                Step::Ask { commands, then, hurry } => {
                    let count = commands.len();
                    let first_id = self.next_id;
                    self.next_id += count as u64;
                    let mut shards = Vec::with_capacity(count);
                    for (id, (shard, command)) in (first_id..).map(DispatchId).zip(commands) {
                        shards.push(shard);
                        self.asks.insert(id, number);
                        actions.push(Action::Ask { id, shard, command });
                    }
                    let replies = (0..count).map(|_| None).collect();
                    let missing = count;
                    return State::Waiting(Waiting {
                        first_id,
                        shards,
                        replies,
                        missing,
                        then,
                        hurry,
                    });
                }
            }
        }
    }

    /// The next request that is done with, strictly in the order in which they came.
    pub fn next_finished(&mut self) -> Option<Finished> {
        if mutation::is_on(Mutation::AnswerOutOfOrder)
            && let Some(done) = self.open.iter().position(|open| open.state.is_done())
        {
            self.open.swap(0, done);
        }
        if self.is_ended || !self.open.front()?.state.is_done() {
            return None;
        }
        let Open { api, started, state } = self.open.pop_front()?;
        self.first += 1;
        match state {
            State::Held(_) | State::Waiting(_) => unreachable!("looked at above"),
            State::Answered(Answer { pieces, error }) => {
                Some(Finished { api, error, pieces, started, close: None })
            }
            State::Ending(reason) => {
                self.is_ended = true;
                let error = Some(reason.error_code());
                Some(Finished { api, error, pieces: None, started, close: Some(reason) })
            }
        }
    }

    /// Requests that [`Session::next_finished`] will still hand out.
    pub fn open_count(&self) -> usize {
        if self.is_ended { 0 } else { self.open.len() }
    }

    /// Whether more may be read from the connection, with so much for it that is not sent: not if
    /// too many requests are open, if it does not take its answers, or if a fetch waits for its
    /// turn; one is enough to keep from memory what comes after it.
    pub fn may_read(&self, unsent_size: usize, unsent_size_max: usize) -> bool {
        let holds_fetch = || self.open.iter().any(|open| matches!(open.state, State::Held(_)));
        unsent_size < unsent_size_max && self.open_count() < REQUESTS_OPEN_MAX && !holds_fetch()
    }

    /// Ends the session: the commands still open, to be cancelled. Late replies are ignored.
    pub fn close(&mut self) -> Vec<(ShardId, DispatchId)> {
        self.is_ending = true;
        self.is_ended = true;
        self.asks.clear();
        let mut open = Vec::new();
        for request in self.open.drain(..) {
            if let State::Waiting(waiting) = request.state {
                open.extend(waiting.missing());
            }
        }
        open
    }
}

/// Whether a fetch's reply has anything that a client should not be kept waiting for.
fn is_worth_answering(reply: &Reply) -> bool {
    let Reply::Fetch(partitions) = reply else { return true };
    let has_records = |batches: &Vec<Bytes>| !batches.is_empty();
    partitions.iter().any(|fetched| fetched.records.as_ref().map_or(true, has_records))
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::super::api::testing::{MEMORY_MAX, World, frame_bytes, topic_id};
    use super::*;
    use crate::batch::{BatchBuilder, NewRecord};
    use crate::command::{Appended, Fetched, Refusal};
    use crate::kafka::frame::decode_response;
    use crate::kafka::messages::{
        ApiVersionsRequest, FetchPartition, FetchRequest, FetchTopic, MetadataRequest,
        MetadataRequestTopic, ProducePartition, ProduceRequest, ProduceTopic, Request,
    };

    /// One connection to a node with topic `a` of four partitions on two shards.
    struct Wire {
        world: World,
        session: Session,
        started: u64,
    }

    impl Wire {
        fn new() -> Self {
            let world = World::new().with_topic("a", 4);
            Self { world, session: Session::new("127.0.0.1".into()), started: 0 }
        }

        /// What the session does with a frame, as text.
        fn send_bytes(&mut self, frame: Bytes) -> Result<String, CloseReason> {
            let mut actions = Vec::new();
            let started = self.started;
            self.started += 1;
            self.session.on_request(&self.world.context(), started, frame, &mut actions)?;
            Ok(trace(&actions))
        }

        fn send<R: Request>(&mut self, version: i16, request: &R) -> String {
            let frame = frame_bytes(version, request);
            self.send_bytes(frame).expect("a good request")
        }

        fn reply(&mut self, id: u64, reply: Reply) -> String {
            let mut actions = Vec::new();
            let cx = self.world.context();
            self.session.on_reply(&cx, DispatchId(id), reply, &mut actions);
            trace(&actions)
        }

        /// All that is finished: token, API, error, and whether it is answered or ends.
        fn finished(&mut self) -> String {
            let finished = std::iter::from_fn(|| self.session.next_finished()).map(|finished| {
                let Finished { api, error, pieces, started, close } = finished;
                let how = match (pieces, close) {
                    (Some(_), None) => "answered",
                    (None, None) => "silent",
                    (None, Some(_)) => "closes",
                    (Some(_), Some(_)) => panic!("an answer and an end"),
                };
                let error = error.map_or(String::new(), |error| format!(" {error:?}"));
                format!("{started} {api} {how}{error}")
            });
            finished.collect::<Vec<_>>().join(", ")
        }
    }

    fn trace(actions: &[Action]) -> String {
        let actions = actions.iter().map(|action| match action {
            Action::Ask { id, shard, command } => {
                let command = format!("{command:?}");
                let name = command.split(['(', ' ']).next().unwrap_or_default();
                format!("{name} {} at {}", id.0, shard.0)
            }
            Action::FetchNow { id, shard } => format!("now {} at {}", id.0, shard.0),
        });
        actions.collect::<Vec<_>>().join(", ")
    }

    fn produce(acks: i16, partitions: &[i32]) -> ProduceRequest {
        let mut builder = BatchBuilder::new();
        builder.push(NewRecord { value: Some(b"tide"), ..Default::default() });
        let records = Some(builder.build().into_bytes());
        let partitions =
            partitions.iter().map(|&index| ProducePartition { index, records: records.clone() });
        let topic = ProduceTopic {
            name: "a".into(),
            topic_id: topic_id("a"),
            partition_data: partitions.collect(),
        };
        ProduceRequest { acks, topic_data: vec![topic], ..Default::default() }
    }

    fn fetch(partitions: &[i32]) -> FetchRequest {
        let partitions = partitions.iter().map(|&partition| FetchPartition {
            partition,
            partition_max_bytes: 100,
            ..Default::default()
        });
        let topic = FetchTopic {
            topic: "a".into(),
            topic_id: topic_id("a"),
            partitions: partitions.collect(),
        };
        FetchRequest { max_wait_ms: 500, min_bytes: 1, topics: vec![topic], ..Default::default() }
    }

    fn metadata(name: &str) -> MetadataRequest {
        let topic = MetadataRequestTopic { name: Some(name.into()), ..Default::default() };
        MetadataRequest { topics: Some(vec![topic]), ..Default::default() }
    }

    fn appended(offset: u64) -> Reply {
        let appended = Appended { base_offset: offset, append_time_ms: None, start: 0 };
        Reply::Produce(vec![Ok(appended)])
    }

    fn fetched(records: &[&'static str]) -> Reply {
        let records = records.iter().map(|&records| Bytes::from(records)).collect();
        Reply::Fetch(vec![Fetched { start: 0, durable_end: 9, records: Ok(records) }])
    }

    #[test]
    fn commands_leave_at_once_and_answers_in_the_order_of_the_requests() {
        let mut wire = Wire::new();
        assert_eq!(wire.send(9, &produce(-1, &[0])), "Produce 0 at 0");
        assert_eq!(wire.send(9, &produce(-1, &[1])), "Produce 1 at 1");
        assert_eq!(wire.send(4, &ApiVersionsRequest::default()), "");
        assert_eq!(wire.send(9, &produce(1, &[0])), "Produce 2 at 0");
        assert_eq!((wire.finished(), wire.session.open_count()), (String::new(), 4));
        wire.reply(1, appended(5));
        assert_eq!(wire.finished(), "");
        wire.reply(0, appended(4));
        let first = "0 Produce answered, 1 Produce answered, 2 ApiVersions answered";
        assert_eq!((&*wire.finished(), wire.session.open_count()), (first, 1));
        wire.reply(2, Reply::Refused(Refusal::Busy));
        assert_eq!(wire.finished(), "3 Produce answered NotEnoughReplicas");
        assert_eq!(wire.session.open_count(), 0);
    }

    #[test]
    fn an_answer_waits_for_all_its_shards() {
        let mut wire = Wire::new();
        assert_eq!(wire.send(9, &produce(-1, &[1, 0])), "Produce 0 at 1, Produce 1 at 0");
        wire.reply(1, appended(5));
        assert_eq!(wire.finished(), "");
        wire.reply(0, appended(4));
        assert_eq!(wire.finished(), "0 Produce answered");
    }

    #[test]
    fn one_shards_records_end_the_waiting_of_the_others_once() {
        let mut wire = Wire::new();
        wire.world = World::new().with_shards(3).with_topic("a", 3);
        let asks = "Fetch 0 at 0, Fetch 1 at 1, Fetch 2 at 2";
        assert_eq!(wire.send(12, &fetch(&[0, 1, 2])), asks);
        assert_eq!(wire.reply(1, fetched(&["records"])), "now 0 at 0, now 2 at 2");
        assert_eq!(wire.reply(2, fetched(&["more"])), "");
        assert_eq!(wire.reply(0, fetched(&[])), "");
        assert_eq!(wire.finished(), "0 Fetch answered");
    }

    #[test]
    fn a_shard_without_records_hurries_nobody_and_a_refusal_does() {
        let mut wire = Wire::new();
        assert_eq!(wire.send(12, &fetch(&[0, 1])), "Fetch 0 at 0, Fetch 1 at 1");
        assert_eq!(wire.reply(0, fetched(&[])), "");
        let mut wire = Wire::new();
        wire.send(12, &fetch(&[0, 1]));
        assert_eq!(wire.reply(0, Reply::Refused(Refusal::Busy)), "now 1 at 1");
    }

    #[test]
    fn a_request_may_ask_again_while_later_ones_wait_for_it() {
        let mut wire = Wire::new();
        assert_eq!(wire.send(12, &metadata("new")), "Catalog 0 at 0");
        assert_eq!(wire.send(4, &ApiVersionsRequest::default()), "");
        assert_eq!(wire.finished(), "");
        wire.world = World::new().with_topic("a", 4).with_topic("new", 2);
        wire.reply(0, Reply::Refused(Refusal::Busy));
        assert_eq!(wire.finished(), "0 Metadata answered, 1 ApiVersions answered");
    }

    #[test]
    fn acks_0_is_silent_and_its_failure_ends_the_connection_in_its_turn() {
        let mut wire = Wire::new();
        wire.send(9, &produce(-1, &[0]));
        wire.send(9, &produce(0, &[0]));
        wire.send(9, &produce(0, &[0]));
        wire.send(9, &produce(-1, &[0]));
        wire.reply(1, appended(1));
        wire.reply(2, Reply::Refused(Refusal::DiskFull));
        assert_eq!(wire.finished(), "");
        wire.reply(0, appended(0));
        let expected = "0 Produce answered, 1 Produce silent, 2 Produce closes NotEnoughReplicas";
        assert_eq!(wire.finished(), expected);
        // What is open behind it keeps nobody waiting.
        assert_eq!(wire.session.open_count(), 0);
        assert_eq!(wire.session.close(), [(ShardId(0), DispatchId(3))]);
        wire.reply(3, appended(2));
        assert_eq!(wire.finished(), "");
    }

    #[test]
    fn a_body_that_cannot_be_read_ends_the_connection_after_what_came_before() {
        let mut wire = Wire::new();
        wire.send(9, &produce(-1, &[0]));
        let frame = frame_bytes(9, &produce(-1, &[0]));
        assert_eq!(wire.send_bytes(frame.slice(..frame.len() - 9)), Ok(String::new()));
        // Nothing is taken after it.
        assert_eq!(wire.send(9, &produce(-1, &[0])), "");
        assert_eq!(wire.session.open_count(), 2);
        wire.reply(0, appended(0));
        assert_eq!(wire.finished(), "0 Produce answered, 1 Produce closes InvalidRequest");
    }

    #[test]
    fn unknown_apis_and_versions_and_garbage_end_the_connection_at_once() {
        let mut wire = Wire::new();
        let mut unknown = frame_bytes(4, &ApiVersionsRequest::default()).to_vec();
        unknown[1] = 17;
        let reason = CloseReason::UnknownApi { key: 17, version: 4 };
        assert_eq!(wire.send_bytes(unknown.into()), Err(reason));
        let mut too_new = frame_bytes(9, &produce(1, &[0])).to_vec();
        too_new[3] = 99;
        let reason = CloseReason::UnsupportedVersion { api: ApiKey::Produce, version: 99 };
        assert_eq!(wire.send_bytes(too_new.into()), Err(reason));
        for garbage in [&b""[..], b"\0", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 64], &[0; 7]] {
            assert!(wire.send_bytes(Bytes::from_static(garbage)).is_err(), "{garbage:?}");
        }
        assert_eq!((wire.finished(), wire.session.open_count()), (String::new(), 0));
    }

    #[test]
    fn an_unknown_version_of_api_versions_is_answered_in_its_turn() {
        let mut wire = Wire::new();
        let mut frame = frame_bytes(4, &ApiVersionsRequest::default()).to_vec();
        frame[3] = 5;
        assert_eq!(wire.send_bytes(frame.into()), Ok(String::new()));
        let finished = wire.session.next_finished().expect("at once");
        assert_eq!(finished.error, Some(ErrorCode::UnsupportedVersion));
        let mut frame = finished.pieces.expect("an answer").concat();
        frame.advance(4);
        let (correlation_id, response) =
            decode_response::<ApiVersionsRequest>(0, frame, MEMORY_MAX).unwrap();
        assert_eq!((correlation_id, response.error_code.code()), (7, 35));
    }

    #[test]
    fn a_fetch_behind_a_fetch_is_asked_when_its_turn_has_come() {
        let mut wire = Wire::new();
        assert_eq!(wire.send(12, &fetch(&[0])), "Fetch 0 at 0");
        assert_eq!(wire.send(12, &fetch(&[1])), "");
        assert_eq!(wire.send(9, &produce(-1, &[0])), "Produce 1 at 0");
        assert!(!wire.session.may_read(0, 1));
        assert_eq!(wire.reply(1, appended(0)), "");
        assert_eq!(wire.reply(0, fetched(&[])), "Fetch 2 at 1");
        assert!(wire.session.may_read(0, 1));
        assert_eq!(wire.finished(), "0 Fetch answered");
        assert_eq!(wire.send(12, &fetch(&[2])), "");
        assert_eq!(wire.reply(2, fetched(&[])), "Fetch 3 at 0");
        assert_eq!(wire.finished(), "1 Fetch answered, 2 Produce answered");
        assert_eq!(wire.session.close(), [(ShardId(0), DispatchId(3))]);
    }

    #[test]
    fn a_held_fetch_that_needs_no_shard_lets_the_next_one_begin() {
        let mut wire = Wire::new();
        wire.send(12, &fetch(&[0]));
        let mut nowhere = fetch(&[0]);
        nowhere.topics[0].topic = "gone".into();
        assert_eq!(wire.send(12, &nowhere), "");
        assert_eq!(wire.send(12, &fetch(&[1])), "");
        assert_eq!(wire.reply(0, fetched(&[])), "Fetch 1 at 1");
        assert_eq!(wire.reply(1, fetched(&[])), "");
        let answered = "0 Fetch answered, 1 Fetch answered UnknownTopicOrPartition, \
                        2 Fetch answered";
        assert_eq!(wire.finished(), answered);
    }

    #[test]
    fn closing_names_what_is_still_open() {
        let mut wire = Wire::new();
        wire.send(9, &produce(-1, &[0, 1]));
        wire.send(12, &fetch(&[1]));
        wire.reply(0, appended(0));
        let open = wire.session.close();
        assert_eq!(open, [(ShardId(1), DispatchId(1)), (ShardId(1), DispatchId(2))]);
        assert_eq!((wire.session.close(), wire.session.open_count()), (vec![], 0));
        wire.reply(1, appended(0));
        assert_eq!(wire.send(9, &produce(-1, &[0])), "");
    }
}
