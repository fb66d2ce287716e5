//! What came out otherwise, in words.

use std::fmt;

use bytes::Bytes;
use tidemill_wal::format::PartitionId;

use crate::batch::Record;
use crate::command::Routes;
use crate::state::Kind;
use crate::topology::stored::{self, Position, StoredCall};
use crate::topology::{Emitted, Headers, NameId, Plan, TimeDomain, Timer};

/// Longest piece of a key or a value that is shown.
const SHOWN_SIZE_MAX: usize = 200;

/// A step that came out otherwise than it is recorded: the first thing of it that did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// The shard.
    pub shard: u16,
    /// The frame that has the step.
    pub frame: u64,
    /// The topology.
    pub topology: String,
    /// The operator, if it is known.
    pub operator: Option<String>,
    /// The record or the timer whose call made it, if it is known: the last one of the step that did.
    pub cause: Option<String>,
    /// What it is.
    pub what: String,
    /// What is recorded.
    pub recorded: String,
    /// What came out now.
    pub now: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard, frame, topology, operator, cause, what, recorded, now } = self;
        write!(f, "shard {shard}, frame {frame}, topology {topology:?}")?;
        if let Some(operator) = operator {
            write!(f, ", operator {operator:?}")?;
        }
        if let Some(cause) = cause {
            write!(f, ", at {cause}")?;
        }
        write!(f, ": {what}: recorded {recorded}; now {now}")
    }
}

/// What a call was of.
pub enum Cause {
    Record {
        source: usize,
        partition: u32,
        offset: u64,
    },
    /// Of an entry of another shard; of records for an operator the part and the number in it.
    Sent {
        sender: u16,
        sequence: u64,
        record: Option<(u32, u32)>,
    },
    Timer(Timer),
    /// The result of a blocking call.
    Result(StoredCall),
}

impl Cause {
    pub fn words(&self, plan: &Plan) -> String {
        match self {
            Self::Record { source, partition, offset } => {
                let topic = plan.sources().nth(*source).unwrap_or_default();
                format!("{topic}-{partition}@{offset}")
            }
            Self::Sent { sender, sequence, record: None } => {
                format!("entry {sequence} of shard {sender}")
            }
            Self::Sent { sender, sequence, record: Some((part, record)) } => {
                format!("record {record} of part {part} of entry {sequence} of shard {sender}")
            }
            Self::Timer(timer) => timer_in_words(timer),
            Self::Result(called) => {
                let operator = plan.operator(called.operator);
                let operator = operator.map(|index| plan.operator_names()[index].as_str());
                let key = String::from_utf8_lossy(&called.key);
                let (operator, number) = (operator.unwrap_or_default(), called.sequence);
                format!("result {number} of operator {operator:?} for key {key:?}")
            }
        }
    }
}

/// Where a record went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Topic(PartitionId),
    Stage(NameId, u32),
}

impl Place {
    pub fn words(&self, plan: &Plan, routes: &Routes) -> String {
        match self {
            Self::Topic(id) => match routes.ids.get(&id.topic) {
                Some(route) => format!("for {}-{}", route.name, id.index),
                None => format!("for partition {} of topic {}", id.index, id.topic),
            },
            Self::Stage(id, partition) => {
                let name = plan.stage(*id).and_then(|stage| plan.stages().nth(stage));
                format!("for the keys {:?} in partition {partition}", name.unwrap_or_default())
            }
        }
    }
}

/// A record that a step made.
pub struct Told {
    key: Option<Bytes>,
    value: Option<Bytes>,
    timestamp_ms: i64,
    headers: Headers,
    /// Its time is its own and not that of its appending.
    has_own_time: bool,
}

impl Told {
    pub fn of_record(record: Record, has_own_time: bool) -> Self {
        let Record { key, value, timestamp_ms, headers, offset: _ } = record;
        Self { key, value, timestamp_ms, headers, has_own_time }
    }

    pub fn of_emitted(emitted: &Emitted) -> Self {
        let Emitted { key, value, timestamp_ms, headers, to: _ } = emitted.clone();
        Self { key, value, timestamp_ms, headers, has_own_time: true }
    }

    pub fn is_same(&self, other: &Self) -> bool {
        let has_time = self.has_own_time && other.has_own_time;
        (&self.key, &self.value, &self.headers) == (&other.key, &other.value, &other.headers)
            && (!has_time || self.timestamp_ms == other.timestamp_ms)
    }

    pub fn words(&self) -> String {
        let value = |bytes: &Option<Bytes>| match bytes {
            Some(bytes) => shown(bytes),
            None => "null".to_owned(),
        };
        let mut words =
            format!("{} = {} of time {}", value(&self.key), value(&self.value), self.timestamp_ms);
        for (name, header) in &self.headers {
            words += &format!(", {} = {}", shown(name), value(header));
        }
        words
    }
}

/// What an entry of the state is: the operator whose it is, if it is one's, and its words.
pub fn subject(plan: &Plan, key: &[u8]) -> (Option<String>, String) {
    let words = || -> Option<(Option<String>, String)> {
        Some(match Kind::of(key)? {
            Kind::OperatorState => {
                let (state, rest) = key.get(1..)?.split_first_chunk::<8>()?;
                let (_, rest) = rest.split_first_chunk::<4>()?;
                let (size, rest) = rest.split_first_chunk::<4>()?;
                let (key, entry) = rest.split_at_checked(u32::from_be_bytes(*size) as usize)?;
                let state = NameId(u64::from_be_bytes(*state));
                let declared = plan.states().iter().find(|it| it.id == state);
                let name = declared.map_or("?", |it| &it.name);
                let entry = match entry {
                    [] => String::new(),
                    entry => format!(", entry {}", shown(entry)),
                };
                let operator = declared.map(|it| it.operator.clone());
                (operator, format!("state {name:?} of key {}{entry}", shown(key)))
            }
            Kind::Timer => {
                let timer = Timer::decode(key)?;
                let operator = plan.operator(timer.operator);
                let operator = operator.and_then(|index| plan.operator_names().get(index));
                (operator.cloned(), timer_in_words(&timer))
            }
            Kind::TopologyProgress => {
                let (_, id) = stored::decode_progress_key(key)?;
                (None, format!("the progress in partition {} of topic {}", id.index, id.topic))
            }
            Kind::TopologyTaken => {
                let (_, sender) = stored::decode_position_key(key)?;
                (None, format!("what was taken of shard {sender}"))
            }
            Kind::TopologyArrival => {
                let (_, sender, sequence) = stored::decode_arrival_key(key)?;
                (None, format!("entry {sequence} of shard {sender}"))
            }
            _ => return None,
        })
    };
    words().unwrap_or_else(|| (None, format!("the entry {}", shown(key))))
}

/// What became of an entry; none: it was not changed.
pub fn change_in_words(key: &[u8], change: Option<Option<&[u8]>>) -> String {
    let value = match change {
        None => return "not changed".to_owned(),
        Some(None) => return "removed".to_owned(),
        Some(Some(value)) => value,
    };
    let words = || match Kind::of(key)? {
        Kind::OperatorState => {
            let (version, value) = value.split_first()?;
            Some(format!("{} by version {version} of its codec", shown(value)))
        }
        Kind::Timer => Some("set".to_owned()),
        Kind::TopologyProgress => {
            let (next_offset, newest_ms) = stored::decode_progress(value).ok()?;
            Some(format!("next offset {next_offset}, newest event time {newest_ms}"))
        }
        Kind::TopologyTaken => {
            let Position { sequence, part, record } = Position::decode(value)?;
            Some(format!("up to entry {sequence}, part {part}, record {record}"))
        }
        _ => None,
    };
    words().unwrap_or_else(|| shown(value))
}

fn timer_in_words(timer: &Timer) -> String {
    let domain = match timer.domain {
        TimeDomain::Event => "event time",
        TimeDomain::Processing => "the clock",
    };
    format!("the timer of key {} by {domain} {}", shown(&timer.key), timer.time_ms)
}

/// Bytes as text, or in hexadecimal if they are none.
fn shown(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(SHOWN_SIZE_MAX)];
    let more = if cut.len() < bytes.len() {
        format!("... ({} bytes)", bytes.len())
    } else {
        String::new()
    };
    match std::str::from_utf8(cut) {
        Ok(text) if !text.chars().any(char::is_control) => format!("{text:?}{more}"),
        _ => {
            let digits: String = cut.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("0x{digits}{more}")
        }
    }
}
