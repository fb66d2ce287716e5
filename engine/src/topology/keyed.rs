//! Streams whose values have a key, each where the key's state is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::codec::Codec;
use super::context::{Context, FiredTimer, Identity, Operator, OperatorError};
use super::expiry::{Expiry, TimeToLive};
use super::key::{NameId, TimeDomain, Timer};
use super::run::{Destination, Emitted, Failure, Run, TIME_MS_MAX, duration_ms};
use super::state::States;
use super::stream::{
    Fire, OperatorNode, Origin, Outlet, Shared, Source, StageNode, Stream, decode, emit, encode,
};
use super::window::{WindowedStream, Windows};

/// A value with its key.
#[derive(Debug, Clone)]
pub(super) struct Item<K, V> {
    pub(super) key: K,
    pub(super) value: V,
}

/// The way out of a node with keys.
pub(super) type KeyedOutlet<K, V> = Arc<Outlet<Item<<K as Codec>::Value, V>>>;

/// The way into a stage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) stage: usize,
    /// The edge of the graph.
    edge: usize,
}

/// Values by key, each where the key's state is.
pub struct Keyed<K: Codec, V> {
    pub(super) shared: Shared,
    pub(super) outlet: KeyedOutlet<K, V>,
    pub(super) keys: K,
    pub(super) stage: usize,
    /// The edge into the stage.
    edge: usize,
    pub(super) from: String,
    pub(super) origins: Vec<Origin>,
    /// Of the operators that are attached to it.
    time_to_live: Option<TimeToLive>,
}

impl<K: Codec, V: Clone + Send + 'static> Keyed<K, V> {
    /// A stage of its own, whose values come out of something.
    pub(super) fn stage<C: Codec<Value = V>>(
        shared: &Shared,
        (from, inputs): (&str, &[Origin]),
        name: String,
        keys: K,
        values: C,
    ) -> Self {
        let outlet: KeyedOutlet<K, V> = Outlet::new();
        let receive = {
            let (outlet, keys) = (outlet.clone(), keys.clone());
            move |run: &mut Run<'_>, partition: u32, bytes: Bytes, value: Option<Bytes>| {
                let decoded = keys
                    .decode(&bytes)
                    .and_then(|key| Ok(Item { key, value: decode(&values, value.as_ref())? }));
                match decoded {
                    Ok(item) => {
                        let timestamp_ms = run.timestamp_ms();
                        run.within(partition, bytes, timestamp_ms, |run| outlet.send(run, item));
                    }
                    Err(error) => run.fail_with(&error.to_string()),
                }
            }
        };
        let (stage, edge) = shared.with(|parts| {
            if parts.stages.iter().any(|stage| stage.name == name) {
                let fault = "give each a name of its own";
                parts.faults.push(format!("two streams are keyed as {name:?}; {fault}"));
            }
            let edge = parts.add_edge(from, format!("key {name}"));
            let (inputs, receive) = (inputs.to_vec(), Box::new(receive));
            parts.stages.push(StageNode { name: name.clone(), inputs, receive });
            (parts.stages.len() - 1, edge)
        });
        let (from, origins) = (format!("key {name}"), vec![Origin::Stage(stage)]);
        let (shared, time_to_live) = (shared.clone(), None);
        Self { shared, outlet, keys, stage, edge, from, origins, time_to_live }
    }

    /// The way into its stage.
    pub(super) fn way(&self) -> Way {
        Way { stage: self.stage, edge: self.edge }
    }

    fn after<U: Clone + Send + 'static>(&self, outlet: KeyedOutlet<K, U>) -> Keyed<K, U> {
        Keyed {
            shared: self.shared.clone(),
            outlet,
            keys: self.keys.clone(),
            stage: self.stage,
            edge: self.edge,
            from: self.from.clone(),
            origins: self.origins.clone(),
            time_to_live: self.time_to_live,
        }
    }

    /// What comes out of an operator that is attached to it: its name, its number, its outlet.
    pub(super) fn out_of<U: Clone + Send + 'static>(
        &self,
        name: &str,
        operator: usize,
        outlet: KeyedOutlet<K, U>,
    ) -> Keyed<K, U> {
        let origins = vec![Origin::Operator(operator)];
        Keyed { from: name.to_owned(), origins, time_to_live: None, ..self.after(outlet) }
    }

    /// The graph is refused, for this reason.
    pub(super) fn fault(&self, fault: String) {
        self.shared.with(|parts| parts.faults.push(fault));
    }

    /// Each value becomes another; keys stay.
    pub fn map<U: Clone + Send + 'static>(
        &self,
        with: impl Fn(&K::Value, V) -> U + Send + Sync + 'static,
    ) -> Keyed<K, U> {
        let outlet = Outlet::new();
        let next = outlet.clone();
        self.outlet.attach(move |run, Item { key, value }| {
            let value = with(&key, value);
            next.send(run, Item { key, value });
        });
        self.after(outlet)
    }

    /// Values of which it is true stay.
    pub fn filter(
        &self,
        keeps: impl Fn(&K::Value, &V) -> bool + Send + Sync + 'static,
    ) -> Keyed<K, V> {
        let outlet = Outlet::new();
        let next = outlet.clone();
        self.outlet.attach(move |run, item| {
            if keeps(&item.key, &item.value) {
                next.send(run, item);
            }
        });
        self.after(outlet)
    }

    /// Each value becomes none, one or several, of the same key.
    pub fn flat_map<U, I>(
        &self,
        with: impl Fn(&K::Value, V) -> I + Send + Sync + 'static,
    ) -> Keyed<K, U>
    where
        U: Clone + Send + 'static,
        I: IntoIterator<Item = U>,
    {
        let outlet = Outlet::new();
        let next = outlet.clone();
        self.outlet.attach(move |run, Item { key, value }| {
            for value in with(&key, value) {
                next.send(run, Item { key: key.clone(), value });
            }
        });
        self.after(outlet)
    }

    /// Looks at each value; for debugging.
    pub fn inspect(&self, look: impl Fn(&K::Value, &V) + Send + Sync + 'static) -> Keyed<K, V> {
        self.map(move |key, value| {
            look(key, &value);
            value
        })
    }

    /// The values of which it is true, and the rest, which may be split again.
    pub fn split(
        &self,
        is_first: impl Fn(&K::Value, &V) -> bool + Send + Sync + 'static,
    ) -> (Keyed<K, V>, Keyed<K, V>) {
        let outlets = (Outlet::new(), Outlet::new());
        let (first, rest) = outlets.clone();
        self.outlet.attach(move |run, item| {
            let outlet = if is_first(&item.key, &item.value) { &first } else { &rest };
            outlet.send(run, item);
        });
        (self.after(outlets.0), self.after(outlets.1))
    }

    /// The values of both, as they come. Both have to have their keys in the same places, and the same
    /// time to live.
    pub fn union(&self, other: &Keyed<K, V>) -> Keyed<K, V> {
        if self.time_to_live != other.time_to_live {
            let fault = format!(
                "{:?} and {:?} are put together and live for different times; say `ttl` behind that",
                self.from, other.from
            );
            self.shared.with(|parts| parts.faults.push(fault));
        }
        let outlet = Outlet::new();
        for stream in [self, other] {
            let next = outlet.clone();
            stream.outlet.attach(move |run, item| next.send(run, item));
        }
        if self.stage != other.stage {
            self.shared.with(|parts| parts.together.push((self.stage, other.stage)));
        }
        let origins = [&self.origins[..], &other.origins[..]].concat();
        Keyed { from: format!("{} + {}", self.from, other.from), origins, ..self.after(outlet) }
    }

    /// Gives each value another key. Values whose new key lives on another shard go there; the codecs
    /// are for that way, and `name` is where they arrive.
    pub fn key_by<L: Codec, C: Codec<Value = V>>(
        &self,
        name: &str,
        keys: L,
        values: C,
        key: impl Fn(&K::Value, &V) -> L::Value + Send + Sync + 'static,
    ) -> Keyed<L, V> {
        let from = (&self.from[..], &self.origins[..]);
        let (shared, name) = (&self.shared, name.to_owned());
        let keyed = Keyed::stage(shared, from, name, keys.clone(), values.clone());
        let (way, outlet) = (keyed.way(), keyed.outlet.clone());
        self.outlet.attach(move |run, Item { key: before, value }| {
            let key = key(&before, &value);
            let mut bytes = Vec::new();
            keys.encode(&key, &mut bytes);
            enter(run, way, &outlet, &values, (key, bytes.into()), value);
        });
        keyed
    }

    /// The state that operators have for a key goes when the key had no record for so long: by event
    /// time, or by the clock. It holds for the operators that are attached to this stream, and to
    /// what `map`, `filter` and the like make of it, but not for those that follow an operator.
    ///
    /// The key begins anew then: nothing is told, timers of the operator stay, and what had no end
    /// yet, a window for one, is gone untold. A record that is older than that, by event time, leaves
    /// no state. The times are kept as the state `touched` of the operator, which `drop_state` gives up.
    #[must_use]
    pub fn ttl(&self, domain: TimeDomain, after: Duration) -> Keyed<K, V> {
        let time_to_live = Some(TimeToLive { domain, after_ms: duration_ms(after) });
        Keyed { time_to_live, ..self.after(self.outlet.clone()) }
    }

    /// Cuts the stream into windows over event time.
    pub fn window(&self, windows: Windows) -> WindowedStream<K, V> {
        if let Some(fault) = windows.fault() {
            self.fault(fault);
        }
        let stream = self.after(self.outlet.clone());
        WindowedStream { stream, windows, lateness_ms: 0, late: None }
    }

    /// Keys and values as a stream of pairs, for another key.
    pub fn pairs(&self) -> Stream<(K::Value, V)> {
        let outlet = Outlet::new();
        let next = outlet.clone();
        self.outlet.attach(move |run, Item { key, value }| next.send(run, (key, value)));
        let (from, origins) = (self.from.clone(), self.origins.clone());
        Stream { shared: self.shared.clone(), outlet, from, origins }
    }

    /// An operator with state and timers for each key.
    pub fn process<O>(&self, name: &str, operator: O) -> Keyed<K, O::Out>
    where
        O: Operator<Key = K::Value, In = V>,
    {
        let outlet: KeyedOutlet<K, O::Out> = Outlet::new();
        let operator = Arc::new(operator);
        let (identity, edge, expiry) = self.shared.with(|parts| {
            let topology = parts.name.clone();
            let identity = Arc::new(Identity {
                topology: NameId::of(&[&topology]),
                operator: NameId::of(&[&topology, name]),
                name: name.to_owned(),
                index: parts.operators.len(),
            });
            let first_state = parts.states.len();
            operator.declare(&mut States {
                topology: &topology,
                operator: name,
                declared: &mut parts.states,
            });
            let states = parts.states[first_state..].iter().map(|state| state.id).collect();
            let edge = parts.add_edge(&self.from, name.to_owned());
            let fire = fire(&identity, self.keys.clone(), operator.clone(), outlet.clone());
            let (id, inputs) = (identity.operator, self.origins.clone());
            let uses_event_time = operator.uses_event_time();
            parts.add_operator(name, OperatorNode { id, inputs, fire, uses_event_time });
            let expiry = self.time_to_live.map(|time_to_live| {
                Expiry::add(parts, name, time_to_live, states, self.origins.clone())
            });
            (identity, edge, expiry)
        });
        let next = outlet.clone();
        let index = identity.index;
        self.outlet.attach(move |run, Item { key, value }| {
            let bytes = run.key().cloned().unwrap_or_default();
            run.count_edge(edge);
            run.counts_of(identity.index).records += 1;
            call(run, &identity, (&key, &bytes), &next, |context| {
                operator.on_record(context, &key, value)
            });
            if let Some(expiry) = expiry.as_ref().filter(|_| !run.has_failed()) {
                expiry.on_record(run, &bytes);
            }
        });
        self.out_of(name, index, outlet)
    }

    /// Writes to a topic and goes on with what is read from it.
    pub fn through<C: Codec<Value = V>>(&self, topic: &str, codec: C) -> Source<C> {
        self.sink(topic, codec.clone());
        Source::new(&self.shared, topic, codec)
    }

    /// Writes keys and values to a topic.
    pub fn sink<C: Codec<Value = V>>(&self, topic: &str, codec: C) {
        let (sink, edge) = self.shared.with(|parts| {
            let edge = parts.add_edge(&self.from, format!("topic {topic}"));
            (parts.add_sink(topic), edge)
        });
        self.outlet.attach(move |run, Item { value, .. }| {
            run.count_edge(edge);
            emit(run, sink, &codec, &value);
        });
    }
}

/// How timers of an operator fire.
fn fire<K: Codec, O: Operator<Key = K::Value>>(
    identity: &Arc<Identity>,
    keys: K,
    operator: Arc<O>,
    next: KeyedOutlet<K, O::Out>,
) -> Fire {
    let identity = identity.clone();
    Box::new(move |run: &mut Run<'_>, timer: &Timer| {
        let bytes = Bytes::copy_from_slice(&timer.key);
        let key = match keys.decode(&bytes) {
            Ok(key) => key,
            Err(error) => return run.fail_with(&error.to_string()),
        };
        let fired = FiredTimer { domain: timer.domain, time_ms: timer.time_ms };
        // A timer may be set for any time; what it makes has a time that records may have.
        let time_ms = timer.time_ms.clamp(-TIME_MS_MAX, TIME_MS_MAX);
        run.begin_timer(timer);
        run.counts_of(identity.index).timers += 1;
        run.within(timer.partition, bytes.clone(), time_ms, |run| {
            call(run, &identity, (&key, &bytes), &next, |context| {
                operator.on_timer(context, &key, fired)
            });
        });
    })
}

/// A value with its key comes to a stage: here, or on the shard where the key lives.
pub(super) fn enter<K: Clone + Send + 'static, C: Codec>(
    run: &mut Run<'_>,
    Way { stage, edge }: Way,
    outlet: &Outlet<Item<K, C::Value>>,
    values: &C,
    (key, bytes): (K, Bytes),
    value: C::Value,
) {
    run.count_edge(edge);
    let (partition, shard) = run.circumstances().place(stage, &bytes);
    let timestamp_ms = run.timestamp_ms();
    if shard == run.circumstances().shard {
        run.within(partition, bytes, timestamp_ms, |run| outlet.send(run, Item { key, value }));
        return;
    }
    let value = encode(values, &value);
    let headers = run.headers().clone();
    let to = Destination::Stage { stage, partition };
    run.emit(Emitted { to, key: Some(bytes), value, timestamp_ms, headers });
}

/// Calls an operator; its error is the call's.
fn call<K: Clone + Send + 'static, O: Clone + Send + 'static>(
    run: &mut Run<'_>,
    identity: &Identity,
    (key, bytes): (&K, &Bytes),
    next: &Outlet<Item<K, O>>,
    act: impl FnOnce(&mut Context<'_, '_, O>) -> Result<(), OperatorError>,
) {
    let out = |run: &mut Run<'_>, value: O| {
        run.counts_of(identity.index).emitted += 1;
        next.send(run, Item { key: key.clone(), value });
    };
    run.named(identity.index, |run| {
        let result = act(&mut Context { run, identity, key: bytes, out: &out });
        if let Err(error) = result {
            let (operator, reason) = (identity.name.clone(), error.to_string());
            run.fail(Failure::Operator { operator, reason });
        }
    });
}
