//! Operators whose function may wait: for a database, a model, a slow library.
//!
//! The function runs beside the shards. Until the result of a record is taken, in a later step, the
//! record waits in the operator's state, in a line with the others of its key; the first of each line is
//! called for. So the results of a key are in order, a call whose result was in no frame is made again
//! after a crash, and no result is taken twice.

use bytes::Bytes;

use super::codec::{Codec, CodecError};
use super::context::OperatorError;
use super::key::{NameId, behind, state_prefix};
use super::keyed::{Item, Keyed, KeyedOutlet};
use super::run::{Circumstances, Failure, Headers, NewWaiting, Run, Wanted};
use super::state::{Declared, NULL, StateKind, decode_version, encode};
use super::stored::StoredCall;
use super::stream::{OperatorNode, Outlet, Receive, decode, encode as encode_record};
use super::task::Rejected;
use super::{Plan, caught};
use crate::batch::Record;
use crate::effect::{CallFault, CallRequest, CallResult};
use crate::state::{Kind, State};

/// Name of the state in which records wait.
const STATE: &str = "waiting";

/// Version and time.
const FIXED_SIZE: usize = 9;

/// In the place of a header's size: it has no value.
const NO_VALUE: u32 = u32::MAX;

/// Calls the function with bytes: a key, the version of the value's codec, the value.
type Function =
    Box<dyn Fn(&Bytes, u8, &Bytes) -> Result<Option<Bytes>, OperatorError> + Send + Sync>;

/// What is known of an operator whose function may wait, beside what is known of all.
pub(super) struct BlockingNode {
    /// The state in which its records wait.
    state: NameId,
    function: Function,
    /// Passes a result on.
    receive: Receive,
}

/// Where records wait for an operator's calls, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Line {
    /// The operator, by number.
    pub operator: usize,
    /// Partition of the key.
    pub partition: u32,
    /// The key.
    pub key: Bytes,
}

/// A record that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Version of the codec that wrote the value; 0: it is null.
    pub version: u8,
    /// Its event time, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Its headers.
    pub headers: Headers,
    /// Its value.
    pub value: Bytes,
}

impl Waiting {
    /// Its bytes: version, time, how many headers, for each the size of its name, the name, the size of
    /// its value (the greatest number: none) and the value; then the record's value. Little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.version];
        bytes.extend_from_slice(&self.timestamp_ms.to_le_bytes());
        bytes.extend_from_slice(&(self.headers.len() as u32).to_le_bytes());
        for (name, value) in &self.headers {
            bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
            bytes.extend_from_slice(name);
            let size = value.as_ref().map_or(NO_VALUE, |value| value.len() as u32);
            bytes.extend_from_slice(&size.to_le_bytes());
            bytes.extend_from_slice(value.as_deref().unwrap_or_default());
        }
        bytes.extend_from_slice(&self.value);
        bytes
    }

    /// The opposite of [`Self::encode`].
    pub fn decode(stored: &[u8]) -> Option<Self> {
        let (version, timestamp_ms) = version_and_time(stored)?;
        let mut rest = Bytes::copy_from_slice(&stored[FIXED_SIZE..]);
        let take = |rest: &mut Bytes, size: u32| {
            let size = size as usize;
            (rest.len() >= size).then(|| rest.split_to(size))
        };
        let number = |rest: &mut Bytes| {
            let bytes = take(rest, 4)?;
            Some(u32::from_le_bytes(bytes[..].try_into().ok()?))
        };
        let mut headers = Headers::new();
        for _ in 0..number(&mut rest)? {
            let size = number(&mut rest)?;
            let name = take(&mut rest, size)?;
            let value = match number(&mut rest)? {
                NO_VALUE => None,
                size => Some(take(&mut rest, size)?),
            };
            headers.push((name, value));
        }
        Some(Self { version, timestamp_ms, headers, value: rest })
    }

    /// The record that it is, as number `sequence` of its key.
    pub(super) fn record(self, key: Bytes, sequence: u64) -> Record {
        let value = (self.version != NULL).then_some(self.value);
        let (timestamp_ms, headers) = (self.timestamp_ms, self.headers);
        Record { offset: sequence, timestamp_ms, key: Some(key), value, headers }
    }
}

fn version_and_time(stored: &[u8]) -> Option<(u8, i64)> {
    let (version, rest) = stored.split_first()?;
    let (time, _) = rest.split_first_chunk::<8>()?;
    Some((*version, i64::from_le_bytes(*time)))
}

impl<K: Codec, V: Clone + Send + 'static> Keyed<K, V> {
    /// Each value becomes the result of a function that may take its time. It is called on one of the
    /// node's threads for that (`blocking_threads`), away from the shards, with nothing but key and
    /// value; the result comes in a later step, in order for each key, with the time and the headers of
    /// its record. Event time waits for it.
    ///
    /// A call is made at least once: again after a crash, if its result was in no frame, and what comes
    /// of the result is there exactly once. Calls of one key follow each other. One that never ends holds
    /// its key and its thread for ever, so the function should have a limit of its own.
    ///
    /// The codecs are for what is kept: values until their result is taken, as the state `waiting` of the
    /// operator, and results on their way. `ttl` does not hold for it.
    pub fn blocking<C, R>(
        &self,
        name: &str,
        values: C,
        results: R,
        function: impl Fn(&K::Value, &V) -> Result<R::Value, OperatorError> + Send + Sync + 'static,
    ) -> Keyed<K, R::Value>
    where
        C: Codec<Value = V>,
        R: Codec,
    {
        let outlet: KeyedOutlet<K, R::Value> = Outlet::new();
        let (index, state) = self.shared.with(|parts| {
            let (index, id) = (parts.operators.len(), NameId::of(&[&parts.name, name]));
            let state = NameId::of(&[&parts.name, name, STATE]);
            parts.edges.push((self.from.clone(), name.to_owned()));
            parts.states.push(declared(name, state, values.clone()));
            let (inputs, uses_event_time) = (self.origins.clone(), false);
            // It has no timers.
            let fire = Box::new(|_: &mut Run<'_>, _: &_| {});
            parts.add_operator(name, OperatorNode { id, inputs, fire, uses_event_time });
            let receive = receive(index, self.keys.clone(), results.clone(), outlet.clone());
            let function = on_bytes(self.keys.clone(), values.clone(), results, function);
            parts.blocking.insert(index, BlockingNode { state, function, receive });
            (index, state)
        });
        self.outlet.attach(move |run, Item { value, .. }| {
            run.counts_of(index).records += 1;
            run.named(index, |run| wait(run, index, state, &values, &value));
        });
        self.out_of(name, index, outlet)
    }
}

fn declared<C: Codec>(operator: &str, id: NameId, values: C) -> Declared {
    Declared {
        operator: operator.to_owned(),
        name: STATE.to_owned(),
        id,
        kind: StateKind::List,
        codec: format!("{} that waits", values.name()),
        version: values.version(),
        reads: Box::new(move |version| values.reads(version)),
    }
}

/// The function on bytes.
fn on_bytes<K: Codec, C: Codec, R: Codec>(
    keys: K,
    values: C,
    results: R,
    function: impl Fn(&K::Value, &C::Value) -> Result<R::Value, OperatorError> + Send + Sync + 'static,
) -> Function {
    Box::new(move |key, version, value| {
        let value = decode_version(&values, version, value)?;
        let result = function(&keys.decode(key)?, &value)?;
        Ok(encode_record(&results, &result))
    })
}

/// How a result goes on.
fn receive<K: Codec, R: Codec>(
    operator: usize,
    keys: K,
    results: R,
    outlet: KeyedOutlet<K, R::Value>,
) -> Receive {
    let decoded = move |key: &Bytes, result: Option<&Bytes>| -> Result<_, CodecError> {
        Ok(Item { key: keys.decode(key)?, value: decode(&results, result)? })
    };
    Box::new(move |run, partition, key, result| {
        run.named(operator, |run| match decoded(&key, result.as_ref()) {
            Ok(item) => {
                run.counts_of(operator).emitted += 1;
                let timestamp_ms = run.timestamp_ms();
                run.within(partition, key, timestamp_ms, |run| outlet.send(run, item));
            }
            Err(error) => run.fail_with(&error.to_string()),
        });
    })
}

/// Puts a value at the end of its key's line.
fn wait<C: Codec>(run: &mut Run<'_>, operator: usize, state: NameId, values: &C, value: &C::Value) {
    let (partition, key) = (run.partition(), run.key().cloned().unwrap_or_default());
    let mut entry = state_prefix(state, partition, &key);
    let last = run.range_backward(&entry, &behind(&entry)).next();
    let last = last.map(|(known, _)| sequence_of(&known[entry.len()..]));
    let Some(sequence) = last.map_or(Some(0), |last| last?.checked_add(1)) else {
        return run.fail_with("the key's line cannot be read");
    };
    entry.extend_from_slice(&sequence.to_be_bytes());
    let stored = encode(values, value);
    let time_ms = run.timestamp_ms();
    let waiting = Waiting {
        version: stored[0],
        timestamp_ms: time_ms,
        headers: run.headers().clone(),
        value: Bytes::from(stored).slice(1..),
    };
    let bytes = waiting.encode();
    let (line, size) = (Line { operator, partition, key }, entry.len() + bytes.len());
    run.set(entry, Some(bytes));
    run.wait(NewWaiting { line, time_ms, size, is_first: last.is_none() });
}

fn sequence_of(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// A record that waits, as the state has it.
pub(super) struct Found {
    pub(super) line: Line,
    pub(super) sequence: u64,
    /// Key of its entry.
    pub(super) entry: Vec<u8>,
    pub(super) stored: Vec<u8>,
}

impl Found {
    /// Bytes of its entry of state.
    pub(super) fn size(&self) -> usize {
        self.entry.len() + self.stored.len()
    }

    /// Its event time, in milliseconds since 1970.
    pub(super) fn time_ms(&self) -> Option<i64> {
        version_and_time(&self.stored).map(|(_, time_ms)| time_ms)
    }
}

impl Plan {
    /// Makes a blocking call: on a thread that may wait.
    pub fn make_call(&self, request: &CallRequest) -> CallResult {
        let CallRequest { operator, key, version, value } = request;
        let Some(node) = self.parts.blocking.get(operator) else {
            return Err(CallFault::Failed("the operator has no function that may wait".to_owned()));
        };
        // The words of an error are the user's code too.
        match caught(|| (node.function)(key, *version, value).map_err(|error| error.to_string())) {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(words)) => Err(CallFault::Failed(words)),
            Err(words) => Err(CallFault::Panicked(words)),
        }
    }

    /// Processes the result of a call: the record does not wait any more.
    pub(super) fn on_called(
        &self,
        state: &State,
        circumstances: &Circumstances,
        found: &Found,
        record: &Record,
        called: StoredCall,
    ) -> Result<Wanted, Failure> {
        let Line { operator, partition, key } = &found.line;
        let result = called.result.clone().unwrap_or_default();
        self.call(state, circumstances, |run| {
            run.begin_result(record, *partition, called);
            run.named(*operator, |run| run.set(found.entry.clone(), None));
            (self.parts.blocking[operator].receive)(run, *partition, key.clone(), result);
        })
    }

    /// Takes a result that a frame has as the step took it: what follows from it; or the failure, and the
    /// key of the entry of its record. `None` if the record does not wait, or if what the frame has of the
    /// result is not enough.
    pub fn on_called_again(
        &self,
        state: &State,
        circumstances: &Circumstances,
        called: &StoredCall,
    ) -> Option<Result<Wanted, (Rejected, Vec<u8>)>> {
        let operator = self.operator(called.operator)?;
        let line = Line { operator, partition: called.partition, key: called.key.clone() };
        let found = self.first_waiting(state, &line);
        let found = found.filter(|found| found.sequence == called.sequence)?;
        let waiting = Waiting::decode(&found.stored)?;
        let record = waiting.record(line.key.clone(), found.sequence);
        let outcome = match &called.result {
            Ok(_) => self.on_called(state, circumstances, &found, &record, called.clone()),
            Err(words) => Err(Failure::of_words(&self.operator_names()[operator], words)?),
        };
        Some(outcome.map_err(|failure| {
            (Rejected::of_call(self, &line, record, failure), found.entry.clone())
        }))
    }

    /// The first record of a line.
    pub(super) fn first_waiting(&self, state: &State, line: &Line) -> Option<Found> {
        let node = self.parts.blocking.get(&line.operator)?;
        let prefix = state_prefix(node.state, line.partition, &line.key);
        let (entry, stored) = state.range(&prefix).next()?;
        let sequence = sequence_of(&entry[prefix.len()..])?;
        let (entry, stored) = (entry.to_vec(), stored.to_vec());
        Some(Found { line: line.clone(), sequence, entry, stored })
    }

    /// All records that wait, line by line, in order; `None` for one that cannot be read.
    pub(super) fn all_waiting(&self, state: &State) -> Vec<Option<Found>> {
        let of_node = |(operator, node): (&usize, &BlockingNode)| {
            let prefix = Kind::OperatorState.key(&[&node.state.0.to_be_bytes()]);
            let found = |(entry, stored): (&[u8], &[u8])| {
                let (partition, rest) = entry.get(prefix.len()..)?.split_first_chunk::<4>()?;
                let (size, rest) = rest.split_first_chunk::<4>()?;
                let size = u32::from_be_bytes(*size) as usize;
                let (key, sequence) = rest.split_at_checked(size)?;
                let line = Line {
                    operator: *operator,
                    partition: u32::from_be_bytes(*partition),
                    key: Bytes::copy_from_slice(key),
                };
                let sequence = sequence_of(sequence)?;
                Waiting::decode(stored)?;
                Some(Found { line, sequence, entry: entry.to_vec(), stored: stored.to_vec() })
            };
            state.range(&prefix).map(found).collect::<Vec<_>>()
        };
        self.parts.blocking.iter().flat_map(of_node).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_wait_come_back_as_they_were_and_nothing_else_does() {
        let header = |name: &'static str, value: Option<&'static [u8]>| {
            (Bytes::from_static(name.as_bytes()), value.map(Bytes::from_static))
        };
        let headers = vec![header("a", Some(b"1")), header("", None), header("b", Some(b""))];
        let waiting =
            Waiting { version: 3, timestamp_ms: -5, headers, value: Bytes::from_static(b"value") };
        let bytes = waiting.encode();
        assert_eq!(Waiting::decode(&bytes).as_ref(), Some(&waiting));
        for size in 0..bytes.len() {
            let cut = Waiting::decode(&bytes[..size]);
            let is_value_cut = cut.as_ref().is_some_and(|cut| cut.headers == waiting.headers);
            assert_eq!(cut.is_some(), is_value_cut && size >= bytes.len() - 5, "{size} bytes");
        }
    }
}
