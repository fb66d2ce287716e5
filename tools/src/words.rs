//! What stored bytes mean, in words: names, times, sizes, and entries of the keyed state.

use std::fmt;

use bytes::Bytes;
use serde_json::{Value, json};
use tidemill::catalog::{Catalog, CatalogLimits};
use tidemill::command::Routes;
use tidemill::effect::Change;
use tidemill::group::stored;
use tidemill::outbox;
use tidemill::partition::producer::{Producer, Producers};
use tidemill::state::Kind;
use tidemill::topology::course::{Leg, StoredCourse};
use tidemill::topology::declared::StoredStates;
use tidemill::topology::stored::{
    self as progress, Part, Position, StageEntry, StoredCall, StoredStep,
};
use tidemill::topology::{NameId, StagePlace, TimeDomain, Timer};
use tidemill_wal::format::{PartitionId, TopicId};

/// Longest piece of a key or value that is shown as text.
const SHOWN_SIZE_MAX: usize = 256;

/// Topics by id, so that people read names.
pub struct Names {
    catalog: Catalog,
}

impl Names {
    /// No names yet, of a node with this many shards.
    pub fn new(shard_count: u16) -> Self {
        // Reading is generous: whatever a node once allowed is understood.
        let limits = CatalogLimits {
            partition_count_default: 1,
            topic_count_max: u32::MAX,
            partition_count_max: u32::MAX,
            retention_ms: None,
            retention_bytes: None,
            batch_size_max: u32::MAX,
            batch_size_limit: u32::MAX,
        };
        Self { catalog: Catalog::new(shard_count, limits) }
    }

    /// Takes an entry of the state; ignores what is no topic.
    pub fn learn(&mut self, key: &[u8], value: Option<&[u8]>) {
        if Kind::of(key) == Some(Kind::Topic) {
            let change = Change { key: key.to_vec(), value: value.map(<[u8]>::to_vec) };
            // One that cannot be read is a fault that `--verify` names.
            let _ = self.catalog.apply(&change);
        }
    }

    /// The topics.
    pub fn routes(&self) -> &Routes {
        self.catalog.routes()
    }

    /// A topic's name, or its id if the name is not known.
    pub fn topic(&self, id: TopicId) -> String {
        self.catalog.topic(id).map_or_else(|| id.to_string(), |topic| topic.name.to_string())
    }

    /// Topic and number.
    pub fn partition(&self, id: PartitionId) -> String {
        format!("{}/{}", self.topic(id.topic), id.index)
    }
}

/// The partition that the key of a `Kind::Partition` or `Kind::Producer` entry names.
pub fn partition_of_key(key: &[u8]) -> Option<PartitionId> {
    let topic = TopicId(key.get(1..17)?.try_into().ok()?);
    let index = u32::from_be_bytes(key.get(17..21)?.try_into().ok()?);
    Some(PartitionId { topic, index })
}

/// The producer that the key of a `Kind::Producer` entry names.
pub fn producer_of_key(key: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(key.get(21..29)?.try_into().ok()?))
}

/// Start and end of a partition.
pub fn partition_value(value: &[u8]) -> Option<(u64, u64)> {
    let (start, end) = value.split_at_checked(8)?;
    Some((number(start)?, number(end)?))
}

/// A stored number.
pub fn number(value: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(value.try_into().ok()?))
}

/// The shard that an outbox key names.
pub fn shard_of_key(key: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(key.get(1..3)?.try_into().ok()?))
}

/// The sequence in the key of a `Kind::Outbox` entry.
pub fn sequence_of_key(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(3..11)?.try_into().ok()?))
}

/// An entry of the state in words; an error says what does not make sense.
pub fn entry(names: &Names, key: &[u8], value: Option<&[u8]>) -> Result<String, String> {
    let kind = Kind::of(key).ok_or_else(|| {
        format!("a state entry of unknown kind {}", key.first().copied().unwrap_or(0))
    })?;
    let subject = subject(names, kind, key)?;
    match value {
        None => Ok(format!("{subject} is removed")),
        Some(value) => Ok(format!("{subject}: {}", meaning(kind, key, value)?)),
    }
}

/// An entry of the state for programs.
pub fn entry_json(names: &Names, key: &[u8], value: Option<&[u8]>) -> Value {
    let kind = Kind::of(key).map(|kind| format!("{kind:?}"));
    json!({
        "kind": kind,
        "words": entry(names, key, value).unwrap_or_else(|why| format!("cannot be read: {why}")),
        "key": hex(key),
        "value_size": value.map(<[u8]>::len),
    })
}

fn subject(names: &Names, kind: Kind, key: &[u8]) -> Result<String, String> {
    let short = || format!("the key of a {kind:?} entry has {} bytes", key.len());
    let exactly = |size: usize| if key.len() == size { Ok(()) } else { Err(short()) };
    Ok(match kind {
        Kind::Topic => {
            exactly(17)?;
            let id = TopicId(key[1..].try_into().map_err(|_| short())?);
            format!("topic {id}")
        }
        Kind::CatalogVersion => {
            exactly(1)?;
            "catalog version".to_owned()
        }
        Kind::Partition => {
            exactly(21)?;
            format!("partition {}", names.partition(partition_of_key(key).ok_or_else(short)?))
        }
        Kind::Producer => {
            exactly(29)?;
            let partition = partition_of_key(key).ok_or_else(short)?;
            let producer = producer_of_key(key).ok_or_else(short)?;
            format!("producer {producer} of partition {}", names.partition(partition))
        }
        Kind::ForgottenProducers => {
            exactly(21)?;
            let partition = partition_of_key(key).ok_or_else(short)?;
            format!("producers forgotten in partition {}", names.partition(partition))
        }
        Kind::Group => format!("group {:?}", stored::decode_group_key(key)?),
        Kind::GroupOffset => {
            let (group, partition) = stored::decode_offset_key(key)?;
            format!("offset of group {group:?} in {}", names.partition(partition))
        }
        Kind::ProducerIdBlock => {
            exactly(1)?;
            "producer ids granted".to_owned()
        }
        Kind::Outbox => {
            exactly(11)?;
            let to = shard_of_key(key).ok_or_else(short)?;
            let sequence = sequence_of_key(key).ok_or_else(short)?;
            format!("outbox entry {sequence} to shard {to}")
        }
        Kind::OutboxNext => {
            exactly(3)?;
            format!("next outbox sequence to shard {}", shard_of_key(key).ok_or_else(short)?)
        }
        Kind::OutboxTaken => {
            exactly(3)?;
            format!("outbox of shard {} taken through", shard_of_key(key).ok_or_else(short)?)
        }
        Kind::OutboxEarly => {
            exactly(3)?;
            format!("outbox of shard {} heard through", shard_of_key(key).ok_or_else(short)?)
        }
        Kind::OperatorState => {
            let (state, partition, rest) = state_of_key(key).ok_or_else(short)?;
            format!("state {} of key {} in partition {partition}", Id(state), Shown(Some(rest)))
        }
        Kind::Timer => {
            let timer = Timer::decode(key).ok_or_else(short)?;
            let domain = match timer.domain {
                TimeDomain::Event => "event time",
                TimeDomain::Processing => "processing time",
            };
            format!(
                "timer of operator {} of topology {} by {domain} {} for key {} in partition {}",
                Id(timer.operator),
                Id(timer.topology),
                Time(timer.time_ms),
                Shown(Some(&timer.key)),
                timer.partition
            )
        }
        Kind::TopologyStep => {
            let topology = progress::decode_step_key(key).ok_or_else(short)?;
            format!("newest step of topology {}", Id(topology))
        }
        Kind::TopologyProgress => {
            let (topology, partition) = progress::decode_progress_key(key).ok_or_else(short)?;
            format!("topology {} in {}", Id(topology), names.partition(partition))
        }
        Kind::TopologyArrival => {
            let (topology, sender, sequence) =
                progress::decode_arrival_key(key).ok_or_else(short)?;
            format!("entry {sequence} of shard {sender} for topology {}", Id(topology))
        }
        Kind::TopologyStates => {
            let topology = progress::decode_step_key(key).ok_or_else(short)?;
            format!("states of topology {}", Id(topology))
        }
        Kind::TopologyTaken => {
            let (topology, sender) = progress::decode_position_key(key).ok_or_else(short)?;
            format!("entries of shard {sender} for topology {}", Id(topology))
        }
        Kind::TopologyPlaces => {
            let topology = progress::decode_step_key(key).ok_or_else(short)?;
            format!("stages of topology {}", Id(topology))
        }
        Kind::TopologyCalled => {
            let topology = progress::decode_step_key(key).ok_or_else(short)?;
            format!("blocking call of topology {}", Id(topology))
        }
        Kind::TopologySeen => {
            let (topology, stage, partition) = progress::decode_seen_key(key).ok_or_else(short)?;
            format!("former times of topology {}, stage {}-{partition}", Id(topology), Id(stage))
        }
        Kind::TopologyCourse => {
            let topology = progress::decode_step_key(key).ok_or_else(short)?;
            format!("course of the newest step of topology {}", Id(topology))
        }
    })
}

fn meaning(kind: Kind, key: &[u8], value: &[u8]) -> Result<String, String> {
    let wrong = || format!("the value of a {kind:?} entry cannot be read");
    Ok(match kind {
        Kind::Topic => {
            let mut names = Names::new(1);
            names.learn(key, Some(value));
            let topic = names.routes().topics.values().next().ok_or_else(wrong)?;
            let overrides: Vec<String> = topic
                .config
                .overrides
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            format!(
                "{:?}, {} partitions from shard {} on {}",
                topic.name,
                topic.partition_count,
                topic.first_shard,
                overrides.join(" ")
            )
        }
        Kind::ForgottenProducers => format!("up to {}", number(value).ok_or_else(wrong)?),
        Kind::CatalogVersion
        | Kind::ProducerIdBlock
        | Kind::OutboxNext
        | Kind::OutboxTaken
        | Kind::OutboxEarly => number(value).ok_or_else(wrong)?.to_string(),
        Kind::Partition => {
            let (start, end) = partition_value(value).ok_or_else(wrong)?;
            if start > end {
                return Err(format!("a partition starts at {start}, after its end {end}"));
            }
            format!("offsets {start} to {end}")
        }
        Kind::Producer => {
            let id = producer_of_key(key).ok_or_else(wrong)?;
            let mut producers = Producers::default();
            producers.load(id, Producer::decode(value).ok_or_else(wrong)?);
            let facts = producers.facts();
            let facts = facts.first().ok_or_else(wrong)?;
            format!(
                "epoch {}, last sequence {}, last heard {}",
                facts.producer_epoch,
                facts.last_sequence,
                Time(facts.last_timestamp_ms)
            )
        }
        Kind::Group => {
            let (facts, members) = stored::decode_group(value)?;
            let ids: Vec<&str> = members.iter().map(|(id, _)| id.as_str()).collect();
            format!(
                "generation {}, protocol {}, leader {}, members [{}]",
                facts.generation,
                facts.protocol.as_deref().unwrap_or("none"),
                facts.leader.as_deref().unwrap_or("none"),
                ids.join(", ")
            )
        }
        Kind::GroupOffset => {
            let stored = stored::decode_offset(value)?;
            format!("{} committed {}", stored.committed.offset, Time(stored.commit_ms))
        }
        Kind::Outbox => {
            if value.starts_with(&progress::ENTRY_MARK) {
                let entry = Bytes::copy_from_slice(value);
                return entry_in_words(&entry).ok_or_else(wrong);
            }
            let changes = outbox::decode_changes(value).ok_or_else(wrong)?;
            format!("{} changes of the catalog", changes.len())
        }
        Kind::OperatorState => {
            let (version, value) = value.split_first().ok_or_else(wrong)?;
            format!("{}, by version {version} of its codec", Shown(Some(value)))
        }
        Kind::Timer => match value.is_empty() {
            true => "set".to_owned(),
            false => return Err(wrong()),
        },
        Kind::TopologyStep => {
            let step = StoredStep::decode(value)?;
            let operators = step.operators_ms.iter();
            let operators: Vec<String> = operators
                .map(|(id, _, seen_ms)| format!("{}: {}", Id(*id), event_time(*seen_ms)))
                .collect();
            let marks = |marks: &[i64]| {
                marks.iter().map(|mark_ms| mark(*mark_ms)).collect::<Vec<_>>().join(" ")
            };
            let heard: Vec<String> = (step.heard.iter())
                .map(|(id, heard)| format!("{}: {}", Id(*id), marks(heard)))
                .collect();
            format!(
                "clock {}, watermarks of operators [{}], heard of stages [{}]",
                Time(step.clock_ms),
                operators.join(", "),
                heard.join(", ")
            )
        }
        Kind::TopologyProgress => {
            let (next_offset, newest_ms) = progress::decode_progress(value)?;
            format!("next offset {next_offset}, newest event time {}", event_time(newest_ms))
        }
        Kind::TopologyArrival => {
            entry_in_words(&Bytes::copy_from_slice(value)).ok_or_else(wrong)?
        }
        Kind::TopologyTaken => {
            let Position { sequence, part, record } = Position::decode(value).ok_or_else(wrong)?;
            format!("taken up to entry {sequence}, part {part}, record {record}")
        }
        Kind::TopologyPlaces => {
            let places = progress::decode_places(value).ok_or_else(wrong)?;
            let place = |(id, place): (&NameId, &StagePlace)| {
                let StagePlace { partition_count, first_shard } = place;
                format!("{}: {partition_count} partitions from shard {}", Id(*id), first_shard.0)
            };
            places.iter().map(place).collect::<Vec<_>>().join(", ")
        }
        Kind::TopologyCalled => {
            let StoredCall { operator, partition, sequence, key, result } =
                StoredCall::decode(value).ok_or_else(wrong)?;
            let result = match &result {
                Ok(value) => Shown(value.as_deref()).to_string(),
                Err(words) => format!("failed: {words}"),
            };
            format!(
                "operator {}, key {} in partition {partition}, number {sequence}: {result}",
                Id(operator),
                Shown(Some(&key))
            )
        }
        Kind::TopologySeen => {
            let seen_ms = progress::decode_seen(value).ok_or_else(wrong)?;
            let operator =
                |(id, seen_ms): (&NameId, &i64)| format!("{}: {}", Id(*id), event_time(*seen_ms));
            seen_ms.iter().map(operator).collect::<Vec<_>>().join(", ")
        }
        Kind::TopologyCourse => course_in_words(&StoredCourse::decode(value)?),
        Kind::TopologyStates => {
            let stored = StoredStates::decode(value).ok_or_else(wrong)?;
            let states: Vec<String> = (stored.states.iter())
                .map(|it| format!("{}/{} ({:?} of {})", it.operator, it.name, it.kind, it.codec))
                .collect();
            format!("{:?}: [{}]", stored.topology, states.join(", "))
        }
    })
}

/// The state, the partition and the key in the key of an operator's state.
fn state_of_key(key: &[u8]) -> Option<(NameId, u32, &[u8])> {
    let (state, rest) = key.get(1..)?.split_first_chunk::<8>()?;
    let (partition, rest) = rest.split_first_chunk::<4>()?;
    let (size, rest) = rest.split_first_chunk::<4>()?;
    let key = rest.get(..u32::from_be_bytes(*size) as usize)?;
    Some((NameId(u64::from_be_bytes(*state)), u32::from_be_bytes(*partition), key))
}

/// What a step did, in order. Inputs are numbered in the order of the keys of their progress.
fn course_in_words(course: &StoredCourse) -> String {
    let StoredCourse { seed, size_max, keyless, batches, changes, legs } = course;
    let place = |at: &Position| format!("{}/{}/{}", at.sequence, at.part, at.record);
    let leg = |leg: &Leg| match leg {
        Leg::Input { input, from, to } => format!("input {input}: {from} to {to}"),
        Leg::Arrivals { sender, from, to } => {
            format!("entries of shard {sender}: {} to {}", place(from), place(to))
        }
        Leg::Timers { seen, fired } => {
            let seen = seen.iter().map(|(operator, seen_ms)| {
                format!("event time of operator {operator}: {}, ", event_time(*seen_ms))
            });
            format!("{}{fired} timers fired", seen.collect::<String>())
        }
        Leg::Calls(count) => format!("{count} results of blocking calls"),
    };
    let legs: Vec<String> = legs.iter().map(leg).collect();
    format!(
        "seed {seed:016x}, calls of up to {size_max} bytes, {keyless} records without a key before, \
         {batches} batches and {changes} entries made; [{}]",
        legs.join("; ")
    )
}

fn entry_in_words(entry: &Bytes) -> Option<String> {
    let StageEntry { topology, version, parts } = StageEntry::decode(entry)?;
    let parts = parts_in_words(&parts);
    Some(format!("of topology {}, catalog version {version}: {parts}", Id(topology)))
}

/// What an entry for a topology holds, by kind.
fn parts_in_words<'a>(parts: impl IntoIterator<Item = &'a Part>) -> String {
    let words = |part: &Part| match part {
        Part::Sink { id, batch } => {
            format!("{} bytes for a sink, partition {}", batch.len(), id.index)
        }
        Part::Stage { stage, partition, batch, .. } => {
            let size = batch.len();
            format!("{size} bytes for stage {}, partition {partition}", Id(*stage))
        }
        Part::Mark { stage, mark } => {
            format!("stage {} at {}", Id(*stage), self::mark(progress::mark_ms(*mark)))
        }
    };
    parts.into_iter().map(words).collect::<Vec<_>>().join(", ")
}

/// A time of records, which may be before all times.
fn event_time(time_ms: i64) -> String {
    if time_ms == i64::MIN { "none".to_owned() } else { Time(time_ms).to_string() }
}

/// A stored mark: a time of records, or idle.
fn mark(mark_ms: i64) -> String {
    if mark_ms == i64::MAX { "idle".to_owned() } else { event_time(mark_ms) }
}

/// An identity that was made of names, which are in the topology's states.
struct Id(NameId);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0.0)
    }
}

/// Milliseconds since 1970 as a date and a time in UTC (RFC 3339).
#[derive(Debug, Clone, Copy)]
pub struct Time(pub i64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DAY_MS: i64 = 86_400_000;
        let (days, ms) = (self.0.div_euclid(DAY_MS), self.0.rem_euclid(DAY_MS));
        // Years of 400 have 146,097 days each; counted from 1 March of year 0, so that the day
        // that leap years add is the last of a year.
        let days = days + 719_468;
        let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        let (hours, minutes) = (ms / 3_600_000, ms / 60_000 % 60);
        let (seconds, rest) = (ms / 1000 % 60, ms % 1000);
        write!(
            f,
            "{year:04}-{month:02}-{day_of_month:02}T{hours:02}:{minutes:02}:{seconds:02}.{rest:03}Z"
        )
    }
}

/// Bytes, for people.
#[derive(Debug, Clone, Copy)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(shift, _)| self.0 >> shift > 0) {
            Some((shift, unit)) => write!(f, "{:.1} {unit}", self.0 as f64 / f64::from(1 << shift)),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// A key or a value: text if it is, else hexadecimal; cut where it is long.
pub struct Shown<'a>(pub Option<&'a [u8]>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(bytes) = self.0 else { return f.write_str("null") };
        match std::str::from_utf8(bytes) {
            Ok(text) => write!(f, "{text:?}"),
            Err(_) => {
                let cut = &bytes[..bytes.len().min(SHOWN_SIZE_MAX)];
                let more = if cut.len() < bytes.len() { "…" } else { "" };
                write!(f, "0x{}{more}", hex(cut))
            }
        }
    }
}

/// A key or a value for programs: a string, or an object with hexadecimal digits.
pub fn bytes_json(bytes: Option<&[u8]>) -> Value {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => Value::Null,
        Some((_, Ok(text))) => json!(text),
        Some((bytes, Err(_))) => json!({ "hex": hex(bytes) }),
    }
}

/// Hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        let check = |ms: i64, expected: &str| assert_eq!(Time(ms).to_string(), expected);
        check(0, "1970-01-01T00:00:00.000Z");
        check(-1, "1969-12-31T23:59:59.999Z");
        check(951_782_400_000, "2000-02-29T00:00:00.000Z");
        check(1_709_251_199_999, "2024-02-29T23:59:59.999Z");
        check(4_107_542_400_000, "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn sizes_have_the_largest_unit_that_fits() {
        assert_eq!(Size(1023).to_string(), "1023 B");
        assert_eq!(Size(1536).to_string(), "1.5 KiB");
        assert_eq!(Size(20 << 30).to_string(), "20.0 GiB");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_in_hexadecimal() {
        assert_eq!(Shown(None).to_string(), "null");
        assert_eq!(Shown(Some(b"a\n")).to_string(), r#""a\n""#);
        assert_eq!(Shown(Some(&[0xff, 0])).to_string(), "0xff00");
    }

    #[test]
    fn an_entry_of_the_state_is_put_in_words_or_refused() {
        let names = Names::new(2);
        let key = Kind::OutboxTaken.key(&[&1_u16.to_be_bytes()]);
        let words = entry(&names, &key, Some(&7_u64.to_le_bytes()));
        assert_eq!(words.as_deref(), Ok("outbox of shard 1 taken through: 7"));
        assert!(entry(&names, &key, Some(&[1])).is_err());
        assert!(entry(&names, &key[..2], None).is_err());
        assert!(entry(&names, &[200], None).is_err());
    }
}
