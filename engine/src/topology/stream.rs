//! The API: typed streams that are put together into a graph.
//!
//! A stream is a way out of one node to whatever is attached to it; attaching two things to one
//! stream is a branch. Values pass from node to node as Rust values, without being encoded, until
//! they reach a sink or another shard.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::CreatedTopic;
use super::blocking::BlockingNode;
use super::codec::{Codec, CodecError};
use super::key::{NameId, Timer};
use super::keyed::{Keyed, enter};
use super::run::{Destination, Emitted, Failure, Run, check_time, duration_ms};
use super::state::Declared;
use crate::batch::Record;

type Receiver<T> = Box<dyn Fn(&mut Run<'_>, T) + Send + Sync>;
type Accept = Box<dyn Fn(&mut Run<'_>, &Record) + Send + Sync>;
pub(super) type Receive = Box<dyn Fn(&mut Run<'_>, u32, Bytes, Option<Bytes>) + Send + Sync>;
pub(super) type Fire = Box<dyn Fn(&mut Run<'_>, &Timer) + Send + Sync>;

/// The way out of a node.
pub(super) struct Outlet<T> {
    attached: Mutex<Vec<Receiver<T>>>,
    /// Taken from `attached` with the first value: nothing is attached after that.
    receivers: OnceLock<Box<[Receiver<T>]>>,
}

impl<T: Clone + Send + 'static> Outlet<T> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { attached: Mutex::default(), receivers: OnceLock::new() })
    }

    pub(super) fn attach(&self, receiver: impl Fn(&mut Run<'_>, T) + Send + Sync + 'static) {
        assert!(self.receivers.get().is_none(), "a topology that runs does not grow");
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        attached.push(Box::new(receiver));
    }

    pub(super) fn send(&self, run: &mut Run<'_>, value: T) {
        let receivers = self.receivers.get_or_init(|| {
            let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *attached).into()
        });
        let Some((last, others)) = receivers.split_last() else { return };
        for receiver in others {
            if !run.has_failed() {
                receiver(run, value.clone());
            }
        }
        if !run.has_failed() {
            last(run, value);
        }
    }
}

/// Where the values of a stream come from, for event time: its watermark is the least of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// A source, by number.
    Source(usize),
    /// A stage, by number.
    Stage(usize),
    /// An operator, by number.
    Operator(usize),
}

/// A source of a topology.
pub(super) struct SourceNode {
    pub(super) topic: String,
    pub(super) accept: Accept,
    pub(super) time: TimeRules,
    /// The stage whose keys are the topic's own.
    pub(super) stage: Option<usize>,
}

/// How event time follows from the records of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeRules {
    /// How much older than the newest a record may be.
    pub lateness_ms: i64,
    /// A partition without records for this long holds nobody up; `None`: it does for ever.
    pub idle_after_ms: Option<u64>,
}

/// Where keys meet their state.
pub(super) struct StageNode {
    pub(super) name: String,
    /// Where its records come from.
    pub(super) inputs: Vec<Origin>,
    /// Takes a record from another shard.
    pub(super) receive: Receive,
}

/// A node with a name.
pub(super) struct OperatorNode {
    pub(super) id: NameId,
    /// Where its records come from.
    pub(super) inputs: Vec<Origin>,
    /// Fires a timer.
    pub(super) fire: Fire,
    pub(super) uses_event_time: bool,
}

/// What a topology is made of, as it grows.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) name: String,
    pub(super) sources: Vec<SourceNode>,
    pub(super) stages: Vec<StageNode>,
    pub(super) operators: Vec<OperatorNode>,
    /// What is known beside of operators whose function may wait, by their numbers.
    pub(super) blocking: BTreeMap<usize, BlockingNode>,
    /// The names of `operators`, in the same order.
    pub(super) names: Vec<String>,
    pub(super) states: Vec<Declared>,
    /// Pairs of stages whose keys have to be in the same places.
    pub(super) together: Vec<(usize, usize)>,
    /// Topics that are written to.
    pub(super) sinks: Vec<String>,
    pub(super) dead_letter: Option<String>,
    /// Topics that are made if they do not exist.
    pub(super) created: Vec<CreatedTopic>,
    pub(super) dropped: Vec<NameId>,
    pub(super) edges: Vec<(String, String)>,
    /// What is wrong with the graph.
    pub(super) faults: Vec<String>,
}

impl Parts {
    pub(super) fn add_sink(&mut self, topic: &str) -> usize {
        let known = self.sinks.iter().position(|sink| sink == topic);
        known.unwrap_or_else(|| {
            self.sinks.push(topic.to_owned());
            self.sinks.len() - 1
        })
    }

    /// The number of the edge from one named thing to another.
    pub(super) fn add_edge(&mut self, from: &str, to: String) -> usize {
        self.edges.push((from.to_owned(), to));
        self.edges.len() - 1
    }

    pub(super) fn add_operator(&mut self, name: &str, operator: OperatorNode) -> usize {
        if self.names.iter().any(|known| known == name) {
            self.faults.push(format!("two operators are called {name:?}; give each its own name"));
        }
        self.names.push(name.to_owned());
        self.operators.push(operator);
        self.operators.len() - 1
    }
}

/// The parts, shared by the streams of a topology while it is put together.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Parts>>);

impl Shared {
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Parts) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the parts out.
    pub(super) fn take(&self) -> Parts {
        self.with(std::mem::take)
    }
}

/// A topic that is read.
pub struct Source<C: Codec> {
    stream: Stream<C::Value>,
    codec: C,
    index: usize,
    event_time: Arc<OnceLock<EventTime<C::Value>>>,
}

type EventTime<V> = Box<dyn Fn(&V) -> i64 + Send + Sync>;

impl<C: Codec> Source<C> {
    pub(super) fn new(shared: &Shared, topic: &str, codec: C) -> Self {
        let outlet = Outlet::new();
        let event_time: Arc<OnceLock<EventTime<C::Value>>> = Arc::default();
        let accept = {
            let (outlet, codec, time) = (outlet.clone(), codec.clone(), event_time.clone());
            let topic = topic.to_owned();
            move |run: &mut Run<'_>, record: &Record| {
                let decoded = decode(&codec, record.value.as_ref());
                let taken = decoded.map_err(|error| error.to_string()).and_then(|value| {
                    let time_ms = time.get().map(|time| time(&value));
                    check_time(time_ms.unwrap_or(record.timestamp_ms))?;
                    Ok((value, time_ms))
                });
                match taken {
                    Ok((value, time_ms)) => {
                        if let Some(time_ms) = time_ms {
                            run.set_event_time(time_ms);
                        }
                        outlet.send(run, value);
                    }
                    Err(reason) => {
                        run.fail(Failure::Decode { source_name: topic.clone(), reason });
                    }
                }
            }
        };
        let index = shared.with(|parts| {
            if parts.sources.iter().any(|source| source.topic == topic) {
                let fault = "is read by two sources; read it once and branch the stream";
                parts.faults.push(format!("topic {topic:?} {fault}"));
            }
            parts.sources.push(SourceNode {
                topic: topic.to_owned(),
                accept: Box::new(accept),
                time: TimeRules { lateness_ms: 0, idle_after_ms: None },
                stage: None,
            });
            parts.sources.len() - 1
        });
        let (from, origins) = (format!("topic {topic}"), vec![Origin::Source(index)]);
        let stream = Stream { shared: shared.clone(), outlet, from, origins };
        Self { stream, codec, index, event_time }
    }

    /// Event time comes from the values, in milliseconds since 1970, instead of from the records'
    /// timestamps. A record may be older than the newest of its partition by the bound; one that
    /// is older still is late. A partition that was silent for `idle_after` holds up nobody.
    #[must_use]
    pub fn event_time(
        self,
        time_ms: impl Fn(&C::Value) -> i64 + Send + Sync + 'static,
        bounded_lateness: Duration,
        idle_after: Option<Duration>,
    ) -> Self {
        let rules = TimeRules {
            lateness_ms: duration_ms(bounded_lateness),
            idle_after_ms: idle_after.map(|it| duration_ms(it).unsigned_abs()),
        };
        let is_new = self.event_time.set(Box::new(time_ms)).is_ok();
        self.stream.shared.with(|parts| {
            let source = &mut parts.sources[self.index];
            source.time = rules;
            if !is_new {
                let fault = format!("source {:?} is given event time twice", source.topic);
                parts.faults.push(fault);
            }
        });
        self
    }

    /// The topic's producers place records by murmur2 of the key, as Kafka's Java client does, so
    /// that keys are where their state is. Each record is checked all the same; one in the wrong
    /// place is counted and sent to the right one.
    pub fn partitioned_by_key<K: Codec>(&self, keys: K) -> Keyed<K, C::Value> {
        let name = self.stream.shared.with(|parts| {
            let topic = parts.sources[self.index].topic.clone();
            parts.sources[self.index].stage = Some(parts.stages.len());
            topic
        });
        let keyed = Keyed::stage(
            &self.stream.shared,
            self.stream.place(),
            name,
            keys.clone(),
            self.codec.clone(),
        );
        let (way, outlet) = (keyed.way(), keyed.outlet.clone());
        let codec = self.codec.clone();
        self.stream.outlet.attach(move |run, value| {
            let Some(bytes) = run.key().cloned() else {
                return run.fail_with("the record has no key, and its topic is read by key");
            };
            let key = match keys.decode(&bytes) {
                Ok(key) => key,
                Err(error) => return run.fail_with(&error.to_string()),
            };
            run.check_place(way.stage, &bytes);
            enter(run, way, &outlet, &codec, (key, bytes), value);
        });
        keyed
    }
}

impl<C: Codec> std::ops::Deref for Source<C> {
    type Target = Stream<C::Value>;

    fn deref(&self) -> &Self::Target {
        &self.stream
    }
}

/// Values without a key of their own.
pub struct Stream<V> {
    pub(super) shared: Shared,
    pub(super) outlet: Arc<Outlet<V>>,
    /// What it comes out of, for the graph's picture.
    pub(super) from: String,
    pub(super) origins: Vec<Origin>,
}

impl<V> Clone for Stream<V> {
    fn clone(&self) -> Self {
        let (shared, outlet) = (self.shared.clone(), self.outlet.clone());
        Self { shared, outlet, from: self.from.clone(), origins: self.origins.clone() }
    }
}

impl<V: Clone + Send + 'static> Stream<V> {
    /// What it comes out of.
    pub(super) fn place(&self) -> (&str, &[Origin]) {
        (&self.from, &self.origins)
    }

    fn after<U: Clone + Send + 'static>(&self, outlet: Arc<Outlet<U>>) -> Stream<U> {
        let (from, origins) = (self.from.clone(), self.origins.clone());
        Stream { shared: self.shared.clone(), outlet, from, origins }
    }

    /// Each value becomes another.
    pub fn map<U: Clone + Send + 'static>(
        &self,
        with: impl Fn(V) -> U + Send + Sync + 'static,
    ) -> Stream<U> {
        let outlet = Outlet::new();
        let next = outlet.clone();
        self.outlet.attach(move |run, value| next.send(run, with(value)));
        self.after(outlet)
    }

    /// Values of which it is true stay.
    pub fn filter(&self, keeps: impl Fn(&V) -> bool + Send + Sync + 'static) -> Stream<V> {
        let outlet = Outlet::new();
        let next = outlet.clone();
        self.outlet.attach(move |run, value| {
            if keeps(&value) {
                next.send(run, value);
            }
        });
        self.after(outlet)
    }

    /// Each value becomes none, one or several.
    pub fn flat_map<U, I>(&self, with: impl Fn(V) -> I + Send + Sync + 'static) -> Stream<U>
    where
        U: Clone + Send + 'static,
        I: IntoIterator<Item = U>,
    {
        let outlet = Outlet::new();
        let next = outlet.clone();
        self.outlet.attach(move |run, value| {
            for item in with(value) {
                next.send(run, item);
            }
        });
        self.after(outlet)
    }

    /// Looks at each value; for debugging.
    pub fn inspect(&self, look: impl Fn(&V) + Send + Sync + 'static) -> Stream<V> {
        self.map(move |value| {
            look(&value);
            value
        })
    }

    /// The values of which it is true, and the rest, which may be split again.
    pub fn split(
        &self,
        is_first: impl Fn(&V) -> bool + Send + Sync + 'static,
    ) -> (Stream<V>, Stream<V>) {
        let outlets = (Outlet::new(), Outlet::new());
        let (first, rest) = outlets.clone();
        self.outlet.attach(move |run, value| {
            let outlet = if is_first(&value) { &first } else { &rest };
            outlet.send(run, value);
        });
        (self.after(outlets.0), self.after(outlets.1))
    }

    /// The values of both, as they come.
    pub fn union(&self, other: &Stream<V>) -> Stream<V> {
        let outlet = Outlet::new();
        for stream in [self, other] {
            let next = outlet.clone();
            stream.outlet.attach(move |run, value| next.send(run, value));
        }
        let origins = [&self.origins[..], &other.origins[..]].concat();
        Stream { from: format!("{} + {}", self.from, other.from), origins, ..self.after(outlet) }
    }

    /// Gives each value a key. Values whose key lives on another shard go there; the codecs are
    /// for that way, and `name` is where they arrive.
    pub fn key_by<K: Codec, C: Codec<Value = V>>(
        &self,
        name: &str,
        keys: K,
        values: C,
        key: impl Fn(&V) -> K::Value + Send + Sync + 'static,
    ) -> Keyed<K, V> {
        let (shared, name) = (&self.shared, name.to_owned());
        let keyed = Keyed::stage(shared, self.place(), name, keys.clone(), values.clone());
        let (way, outlet) = (keyed.way(), keyed.outlet.clone());
        self.outlet.attach(move |run, value| {
            let key = key(&value);
            let mut bytes = Vec::new();
            keys.encode(&key, &mut bytes);
            enter(run, way, &outlet, &values, (key, bytes.into()), value);
        });
        keyed
    }

    /// Writes to a topic and goes on with what is read from it.
    pub fn through<C: Codec<Value = V>>(&self, topic: &str, codec: C) -> Source<C> {
        self.sink(topic, codec.clone());
        Source::new(&self.shared, topic, codec)
    }

    /// Writes the values to a topic, each with the key of the record that it is made of.
    pub fn sink<C: Codec<Value = V>>(&self, topic: &str, codec: C) {
        let (sink, edge) = self.shared.with(|parts| {
            let edge = parts.add_edge(&self.from, format!("topic {topic}"));
            (parts.add_sink(topic), edge)
        });
        self.outlet.attach(move |run, value| {
            run.count_edge(edge);
            emit(run, sink, &codec, &value);
        });
    }
}

/// A way out of an operator beside its main one, with a type of its own.
pub struct SideOutput<T> {
    outlet: Arc<Outlet<T>>,
}

impl<T> Clone for SideOutput<T> {
    fn clone(&self) -> Self {
        Self { outlet: self.outlet.clone() }
    }
}

impl<T: Clone + Send + 'static> SideOutput<T> {
    /// An operator keeps a clone, to send to it.
    pub fn new() -> Self {
        Self { outlet: Outlet::new() }
    }

    /// The values that come out beside that stream, which is the operator's main way out.
    pub fn stream<K: Codec, V>(&self, of: &Keyed<K, V>) -> Stream<T> {
        Stream {
            shared: of.shared.clone(),
            outlet: self.outlet.clone(),
            from: format!("{} (side)", of.from),
            origins: of.origins.clone(),
        }
    }

    pub(super) fn send(&self, run: &mut Run<'_>, value: T) {
        self.outlet.send(run, value);
    }
}

impl<T: Clone + Send + 'static> Default for SideOutput<T> {
    fn default() -> Self {
        Self::new()
    }
}

pub(super) fn emit<C: Codec>(run: &mut Run<'_>, sink: usize, codec: &C, value: &C::Value) {
    let value = encode(codec, value);
    let (key, headers) = (run.key().cloned(), run.headers().clone());
    let timestamp_ms = run.timestamp_ms();
    run.emit(Emitted { to: Destination::Sink(sink), key, value, timestamp_ms, headers });
}

pub(super) fn encode<C: Codec>(codec: &C, value: &C::Value) -> Option<Bytes> {
    (!codec.is_null(value)).then(|| {
        let mut bytes = Vec::new();
        codec.encode(value, &mut bytes);
        bytes.into()
    })
}

pub(super) fn decode<C: Codec>(codec: &C, value: Option<&Bytes>) -> Result<C::Value, CodecError> {
    match value {
        Some(bytes) => codec.decode(bytes),
        None => codec.decode_null(),
    }
}
