//! Stateful processing: graphs of operators over topics, which run inside the shards.
//!
//! A [`Topology`] is put together once, by the program that embeds the node, and is the same on
//! every shard: it holds no state. A shard calls it with one record or timer after the other, and
//! gets back what the call wants, as data: state changes, records, timers. The shard puts all of
//! it into the frame of the input, so that after a crash a record was processed whole or not at
//! all.
//!
//! Pure: no clock, no dice, no file. What is not a function of records and state comes in with the
//! [`Circumstances`] of the step, which are recorded.

mod blocking;
mod codec;
#[cfg(feature = "avro")]
mod codec_avro;
#[cfg(feature = "protobuf")]
mod codec_protobuf;
mod context;
pub mod course;
pub mod declared;
mod expiry;
mod failure;
mod figures;
mod join;
mod key;
mod keyed;
mod operators;
mod run;
mod session;
mod state;
pub mod stored;
mod stream;
mod task;
#[cfg(test)]
mod tests;
mod watermark;
mod window;
mod witness;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use self::blocking::Waiting;
pub use self::codec::{Codec, CodecError, Int64, Json, Nullable, Raw, Time, Utf8};
#[cfg(feature = "avro")]
pub use self::codec_avro::Avro;
#[cfg(feature = "protobuf")]
pub use self::codec_protobuf::Protobuf;
pub use self::context::{Context, FiredTimer, Operator, OperatorError};
pub use self::figures::{CallTimes, Counts, Figures, MEASURED_ONE_IN, Stopwatch};
pub use self::join::{Either, JoinedStreams};
pub use self::key::{NameId, TimeDomain, Timer, partition_of_state, state_prefix};
pub use self::keyed::Keyed;
pub use self::run::{
    Circumstances, Destination, Emitted, Failure, Headers, OperatorCounts, StagePlace, TIME_MS_MAX,
    Wanted,
};
pub use self::state::{
    AggregatingState, Declared, Handle, ListState, MapState, StateKind, States, ValueState,
};
pub use self::stream::{Origin, SideOutput, Source, Stream, TimeRules};
pub use self::task::{Asked, Fired, Made, Rejected, Step, Surroundings, Taken, Task};
pub use self::watermark::{EventTimes, Mark};
pub use self::window::{Windowed, WindowedStream, Windows};
pub use self::witness::{Call, Witness};

use self::run::Run;
use self::stream::{Parts, Shared};
use crate::batch::Record;
use crate::state::{Kind, State};

/// Longest name of a topology, an operator or a state, in bytes.
pub const NAME_SIZE_MAX: usize = 128;

/// Partitions of the keys of a stage that is not keyed as its topic is, from the first shard on: more
/// than there are shards, and for good, since state is found by them.
pub const KEY_PARTITIONS: u32 = 256;

thread_local! {
    static IS_CALLING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside of an operator: its panic is the operator's, and is caught.
pub fn is_calling() -> bool {
    IS_CALLING.get()
}

/// A graph of operators, while it is put together.
pub struct Topology {
    shared: Shared,
}

/// A topic that is made at the start if it does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedTopic {
    /// Its name.
    pub name: String,
    /// How many partitions it gets.
    pub partition_count: u32,
    /// Configuration keys that differ from the node's defaults.
    pub config: Vec<(String, String)>,
}

/// Why a topology cannot run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topology {topology:?}: {}", faults.join("; "))]
pub struct BadTopology {
    /// Its name.
    pub topology: String,
    /// All that is wrong.
    pub faults: Vec<String>,
}

impl Topology {
    /// Of a name that stays: its state and its progress are found by it. It is seen by clients as
    /// the consumer group `tidemill.NAME`.
    pub fn new(name: &str) -> Self {
        let shared = Shared::default();
        shared.with(|parts| name.clone_into(&mut parts.name));
        Self { shared }
    }

    /// Reads a topic.
    pub fn source<C: Codec>(&self, topic: &str, codec: C) -> Source<C> {
        Source::new(&self.shared, topic, codec)
    }

    /// A topic that is made at the start if it does not exist, with so many partitions. A start is
    /// refused if a topic that the topology reads or writes neither exists nor is made like this.
    pub fn create(&self, topic: &str, partition_count: u32) {
        self.create_with(topic, partition_count, &[]);
    }

    /// The same with configuration of its own, as `("retention.ms", "60000")`. A start is refused if
    /// the node does not know a key or does not take a value; a topic that exists stays as it is.
    pub fn create_with(&self, topic: &str, partition_count: u32, config: &[(&str, &str)]) {
        let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let (name, config) = (topic.to_owned(), config.collect());
        let created = CreatedTopic { name, partition_count, config };
        self.shared.with(|parts| parts.created.push(created));
    }

    /// Records that cannot be processed go to this topic, with the reason in headers. Without it,
    /// such a record pauses the topology.
    pub fn dead_letter(&self, topic: &str) {
        self.shared.with(|parts| parts.dead_letter = Some(topic.to_owned()));
    }

    /// Gives up what a state holds that the topology does not have any more: its entries are taken
    /// away, a few with each step.
    pub fn drop_state(&self, operator: &str, state: &str) {
        self.shared.with(|parts| {
            let id = NameId::of(&[&parts.name, operator, state]);
            parts.dropped.push(id);
        });
    }

    /// The graph as it will run, or all that is wrong with it.
    pub fn build(self) -> Result<Plan, BadTopology> {
        let mut parts = self.shared.take();
        let mut faults = std::mem::take(&mut parts.faults);
        let mut check = |what: &str, name: &str| {
            if name.is_empty() || name.len() > NAME_SIZE_MAX || name.contains('\0') {
                faults.push(format!("{what} {name:?}: a name has 1 to {NAME_SIZE_MAX} bytes"));
            }
        };
        check("the name", &parts.name);
        parts.names.iter().for_each(|name| check("operator", name));
        parts.states.iter().for_each(|state| check("state", &state.name));
        if parts.sources.is_empty() {
            faults.push("it reads no topic; begin with `source`".to_owned());
        }
        for (index, state) in parts.states.iter().enumerate() {
            if parts.states[..index].iter().any(|other| other.id == state.id) {
                let Parts { states, .. } = &parts;
                let (operator, name) = (&states[index].operator, &states[index].name);
                faults.push(format!("operator {operator:?} has two states {name:?}"));
            }
        }
        for state in parts.states.iter().filter(|state| parts.dropped.contains(&state.id)) {
            let (operator, name) = (&state.operator, &state.name);
            faults.push(format!("operator {operator:?} has the state {name:?} that is dropped"));
        }
        if !faults.is_empty() {
            return Err(BadTopology { topology: parts.name, faults });
        }
        let operators = parts.operators.iter().zip(0..).map(|(it, index)| (it.id, index)).collect();
        let stage_ids: Vec<NameId> =
            parts.stages.iter().map(|stage| NameId::of(&[&parts.name, &stage.name])).collect();
        Ok(Plan { id: NameId::of(&[&parts.name]), parts, operators, stage_ids })
    }
}

/// Event times by operator and partition, see [`Plan::seen_before`].
pub type SeenBefore = BTreeMap<(usize, u32), i64>;

/// A topology that runs: the same for all shards, without state.
pub struct Plan {
    id: NameId,
    parts: Parts,
    operators: HashMap<NameId, usize>,
    /// Identities of the stages, in the order of their numbers.
    stage_ids: Vec<NameId>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Plan").field("name", &self.parts.name).finish_non_exhaustive()
    }
}

impl Plan {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.parts.name
    }

    /// Its identity.
    pub fn id(&self) -> NameId {
        self.id
    }

    /// Topics that it reads, in the order of their numbers.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.parts.sources.iter().map(|source| source.topic.as_str())
    }

    /// Topics that it writes, in the order of their numbers.
    pub fn sinks(&self) -> impl Iterator<Item = &str> {
        self.parts.sinks.iter().map(String::as_str)
    }

    /// Where its keys meet their state, in the order of their numbers.
    pub fn stages(&self) -> impl Iterator<Item = &str> {
        self.parts.stages.iter().map(|stage| stage.name.as_str())
    }

    /// Identities of the stages, in the order of their numbers.
    pub fn stage_ids(&self) -> &[NameId] {
        &self.stage_ids
    }

    /// The number of a stage.
    pub fn stage(&self, id: NameId) -> Option<usize> {
        self.stage_ids.iter().position(|stage| *stage == id)
    }

    /// The number of an operator.
    pub fn operator(&self, id: NameId) -> Option<usize> {
        self.operators.get(&id).copied()
    }

    /// Topics that are made at the start if they do not exist.
    pub fn created(&self) -> &[CreatedTopic] {
        &self.parts.created
    }

    /// Every topic of it, by name.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.sources().chain(self.sinks()).chain(self.dead_letter())
    }

    /// How event time follows from the records of a source.
    pub fn time_rules(&self, source: usize) -> TimeRules {
        self.parts.sources[source].time
    }

    /// The stage that has the keys of a source's topic, if its keys are read as they are.
    pub fn stage_of_source(&self, source: usize) -> Option<usize> {
        self.parts.sources[source].stage
    }

    /// Where the records of each stage come from.
    pub fn stage_inputs(&self) -> impl Iterator<Item = &[Origin]> {
        self.parts.stages.iter().map(|stage| &stage.inputs[..])
    }

    /// Whether somebody behind each stage uses event time.
    pub fn timed_stages(&self) -> Vec<bool> {
        let parts = &self.parts;
        let mut is_timed = vec![false; parts.stages.len()];
        let users = parts.operators.iter().filter(|operator| operator.uses_event_time);
        let mut left: Vec<Origin> = users.flat_map(|user| user.inputs.iter().copied()).collect();
        while let Some(origin) = left.pop() {
            match origin {
                Origin::Stage(stage) if !is_timed[stage] => {
                    is_timed[stage] = true;
                    left.extend(&parts.stages[stage].inputs);
                }
                // An operator comes after those that it reads, so this ends.
                Origin::Operator(operator) => left.extend(&parts.operators[operator].inputs),
                Origin::Stage(_) | Origin::Source(_) => {}
            }
        }
        is_timed
    }

    /// Pairs of stages whose keys have to be in the same places.
    pub fn together(&self) -> impl Iterator<Item = (usize, usize)> {
        self.parts.together.iter().copied()
    }

    /// Event times that operators of a former shard had seen for the keys of a partition: for each
    /// entry of the state its key, and for each operator, by number, and partition the time in
    /// milliseconds since 1970. A stage that is gone may come back, so its entries are left out.
    pub fn seen_before(&self, state: &State) -> Result<Vec<(Vec<u8>, SeenBefore)>, String> {
        let mut all = Vec::new();
        for (key, value) in state.range(&Kind::TopologySeen.key(&[&self.id.0.to_be_bytes()])) {
            let seen = stored::decode_seen_key(key).zip(stored::decode_seen(value));
            let ((_, stage, partition), seen_ms) = seen.ok_or("its former times cannot be read")?;
            let Some(stage) = self.stage(stage) else { continue };
            let of_stage = |(id, seen_ms): (NameId, i64)| {
                let operator = self.operator(id)?;
                let is_ours = self.stage_of_operator(operator) == Some(stage);
                is_ours.then_some(((operator, partition), seen_ms))
            };
            all.push((key.to_vec(), seen_ms.into_iter().filter_map(of_stage).collect()));
        }
        Ok(all)
    }

    /// Names of the operators, in the order of their numbers.
    pub fn operator_names(&self) -> &[String] {
        &self.parts.names
    }

    /// The identity of an operator.
    pub fn operator_id(&self, operator: usize) -> NameId {
        self.parts.operators[operator].id
    }

    /// Each operator with where its records come from. An operator comes after all of these.
    pub fn operators(&self) -> impl Iterator<Item = (NameId, &[Origin])> {
        self.parts.operators.iter().map(|operator| (operator.id, &operator.inputs[..]))
    }

    /// The stage whose keys an operator has.
    pub fn stage_of_operator(&self, operator: usize) -> Option<usize> {
        match self.parts.operators[operator].inputs.first()? {
            Origin::Stage(stage) => Some(*stage),
            Origin::Operator(before) => self.stage_of_operator(*before),
            Origin::Source(_) => None,
        }
    }

    /// Every state of its operators.
    pub fn states(&self) -> &[Declared] {
        &self.parts.states
    }

    /// What follows what: pairs of names, for people.
    pub fn edges(&self) -> &[(String, String)] {
        &self.parts.edges
    }

    /// States whose entries are given up.
    pub fn dropped(&self) -> &[NameId] {
        &self.parts.dropped
    }

    /// Whether a state's entries are given up.
    pub fn may_drop(&self, state: NameId) -> bool {
        self.parts.dropped.contains(&state)
    }

    /// Where what cannot be processed goes.
    pub fn dead_letter(&self) -> Option<&str> {
        self.parts.dead_letter.as_deref()
    }

    /// Processes one record of a partition of a source.
    pub fn on_record(
        &self,
        state: &State,
        circumstances: &Circumstances,
        (source, partition): (usize, u32),
        record: &Record,
    ) -> Result<Wanted, Failure> {
        self.call(state, circumstances, |run| {
            run.begin(record, partition);
            (self.parts.sources[source].accept)(run, record);
        })
    }

    /// Processes one record that another shard sent to a stage.
    pub fn on_arrival(
        &self,
        state: &State,
        circumstances: &Circumstances,
        (stage, partition): (usize, u32),
        record: &Record,
    ) -> Result<Wanted, Failure> {
        self.call(state, circumstances, |run| {
            run.begin(record, partition);
            let key = record.key.clone().unwrap_or_default();
            (self.parts.stages[stage].receive)(run, partition, key, record.value.clone());
        })
    }

    /// Fires one timer. It is gone then, even if nobody knows its operator any more.
    pub fn on_timer(
        &self,
        state: &State,
        circumstances: &Circumstances,
        timer: &Timer,
    ) -> Result<Wanted, Failure> {
        self.call(state, circumstances, |run| {
            run.forget_timer(timer);
            let operator = self.operators.get(&timer.operator);
            let node = operator.map(|index| &self.parts.operators[*index]);
            if let Some(node) = node {
                (node.fire)(run, timer);
            }
        })
    }

    /// A call of user code, which may panic: what it wanted until then is forgotten with it.
    fn call(
        &self,
        state: &State,
        circumstances: &Circumstances,
        act: impl FnOnce(&mut Run<'_>),
    ) -> Result<Wanted, Failure> {
        let mut run = Run::new(state, circumstances, &self.parts.names);
        match caught(|| act(&mut run)) {
            Ok(()) => run.end(),
            Err(reason) => Err(Failure::Panic { operator: run.operator().to_owned(), reason }),
        }
    }
}

/// Calls user code; the words of its panic if it panics.
fn caught<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    IS_CALLING.set(true);
    let result = catch_unwind(AssertUnwindSafe(act));
    IS_CALLING.set(false);
    result.map_err(|panic| {
        let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned());
        let words = words.or_else(|| panic.downcast_ref::<String>().cloned());
        words.unwrap_or_else(|| "no words".to_owned())
    })
}
