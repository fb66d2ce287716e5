//! What comes of each record, and the flows that have one result for each: counts, timers, dead
//! letters.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemill::batch::Record;
use tidemill::topology::{Codec, Int64};

use super::{Records, difference, id_header};
use crate::sim::model::{Check, Model, require};
use crate::sim::streams::item::{Item, Items, Mood};
use crate::sim::streams::{Flow, Streams, partition_of};

/// Headers of dead letters, beside those of the record.
const FACTS: [&[u8]; 3] = [b"tidemill.error", b"tidemill.operator", b"tidemill.origin"];

/// A record of a source, and what it is.
#[derive(Debug)]
pub(super) struct Case {
    /// Partition of the source.
    pub(super) partition: u32,
    /// The item; none if it cannot be decoded.
    pub(super) item: Option<Item>,
    /// The record.
    pub(super) record: Record,
}

/// What happens with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes to the dead letters.
    Fails,
    /// A filter stops it.
    Stops,
    /// It comes to the end.
    Passes,
}

impl Case {
    /// What happens with it in a flow.
    pub(super) fn fate(&self, flow: Flow, streams: &Streams) -> Fate {
        let Some(item) = &self.item else { return Fate::Fails };
        let is_by_own_key = match flow {
            Flow::Count | Flow::Timers => true,
            Flow::Windows => !streams.rules.is_keyed_anew,
            Flow::Rekey | Flow::Chain => false,
        };
        if (is_by_own_key && self.record.key.is_none()) || item.mood() == Mood::PanicAtOnce {
            return Fate::Fails;
        }
        if flow == Flow::Chain && !item.passes_filter() {
            return Fate::Stops;
        }
        match item.mood() {
            Mood::Fine => Fate::Passes,
            Mood::Error | Mood::Panic | Mood::PanicAtOnce | Mood::Undecodable => Fate::Fails,
        }
    }

    /// The keys that it is counted under.
    pub(super) fn keys(&self, flow: Flow, streams: &Streams) -> Vec<Bytes> {
        let Some(item) = &self.item else { return Vec::new() };
        let new_key = |item: &Item| Bytes::from(item.new_key());
        match flow {
            Flow::Windows if streams.rules.is_keyed_anew => vec![new_key(item)],
            Flow::Count | Flow::Timers | Flow::Windows => self.record.key.iter().cloned().collect(),
            Flow::Rekey => item.clone().parts().iter().map(new_key).collect(),
            Flow::Chain => vec![new_key(item)],
        }
    }

    fn value(&self) -> Bytes {
        self.record.value.clone().unwrap_or_default()
    }
}

/// The records of a source.
fn cases(source: Records) -> Vec<Case> {
    let case = |partition: u32, record: Record| {
        let item = record.value.as_ref().and_then(|value| Items.decode(value).ok());
        Case { partition, item, record }
    };
    let of_partition = |(partition, records): (u32, Vec<Record>)| {
        records.into_iter().map(move |record| case(partition, record))
    };
    source.into_iter().flat_map(of_partition).collect()
}

impl Model {
    pub(super) fn check_flow(&mut self, flow: Flow, streams: &Streams) -> Check {
        let cases = cases(self.read_source(&flow.source())?);
        let results = self.read_placed(&flow.sink())?;
        let letters = self.read_placed(&flow.dead_letter())?;
        let others = flow.other().map(|name| self.read_placed(&name)).transpose()?;
        let others = others.unwrap_or_default();
        if !self.has_topics(flow.name()) {
            // It never ran.
            let made = [&results, &letters, &others].into_iter().flatten();
            let count: usize = made.map(|(_, records)| records.len()).sum();
            return require(count == 0, || format!("{count} records without all topics"));
        }
        self.counts.stream_records += cases.len() as u64;
        self.counts.stream_results += results.values().map(Vec::len).sum::<usize>() as u64;
        self.counts.dead_letters += letters.values().map(Vec::len).sum::<usize>() as u64;
        check_letters(flow, streams, &cases, &letters)?;
        let passing: Vec<&Case> =
            cases.iter().filter(|case| case.fate(flow, streams) == Fate::Passes).collect();
        match flow {
            Flow::Windows => return self.check_windows(&passing, &results, &others, streams),
            Flow::Timers => return check_timers(&passing, &results),
            Flow::Chain => check_middle(&cases, &others)?,
            Flow::Count | Flow::Rekey => {}
        }
        let mut expected: BTreeMap<Bytes, Vec<u64>> = BTreeMap::new();
        for case in passing {
            let id = case.item.as_ref().map(Item::id);
            for key in case.keys(flow, streams) {
                expected.entry(key).or_default().extend(id);
            }
        }
        check_counts(expected, &results)
    }

    /// The records of a topic of the topologies, each where its key belongs.
    fn read_placed(&self, name: &str) -> Result<Records, String> {
        let records = self.read_made(name)?;
        for (partition, record) in each(&records) {
            let place = record.key.as_ref().map(|key| partition_of(key, records.len() as u32));
            require(place.is_none_or(|place| place == partition), || {
                format!("{name}-{partition}@{}: its key belongs to {place:?}", record.offset)
            })?;
        }
        Ok(records)
    }
}

pub(super) fn each(records: &Records) -> impl Iterator<Item = (u32, &Record)> {
    records
        .iter()
        .flat_map(|(partition, records)| records.iter().map(move |record| (*partition, record)))
}

/// Each key's counts go up by one with each record, and each is for one record.
fn check_counts(expected: BTreeMap<Bytes, Vec<u64>>, results: &Records) -> Check {
    let mut found: BTreeMap<Bytes, Vec<u64>> = BTreeMap::new();
    for (partition, record) in each(results) {
        let at = format!("partition {partition} offset {}", record.offset);
        let key = record.key.clone().ok_or_else(|| format!("{at}: a result without a key"))?;
        let value = record.value.as_ref().and_then(|value| Int64.decode(value).ok());
        let count = value.ok_or_else(|| format!("{at}: no count"))?;
        let ids = found.entry(key.clone()).or_default();
        require(count == ids.len() as i64 + 1, || {
            format!("{at}: {key:?} has {count} after {}", ids.len())
        })?;
        let id = id_header(&record.headers);
        ids.push(id.ok_or_else(|| format!("{at}: the record's header is gone"))?);
    }
    for (key, mut ids) in expected {
        let mut counted = found.remove(&key).unwrap_or_default();
        let (due, there) = (ids.len(), counted.len());
        ids.sort_unstable();
        counted.sort_unstable();
        if let Some((due_id, there_id)) = difference(&ids, &counted) {
            return Err(format!(
                "{key:?}: {due} records, {there} counted; first difference {due_id:x?}, {there_id:x?}"
            ));
        }
    }
    match found.first_key_value() {
        Some((key, ids)) => Err(format!("{key:?} is counted {} times for nothing", ids.len())),
        None => Ok(()),
    }
}

/// Each record's timer has told once, and not too early.
fn check_timers(passing: &[&Case], results: &Records) -> Check {
    let mut expected: BTreeMap<Bytes, i64> = BTreeMap::new();
    for key in passing.iter().filter_map(|case| case.record.key.clone()) {
        *expected.entry(key).or_default() += 1;
    }
    let mut found: BTreeMap<Bytes, Vec<i64>> = BTreeMap::new();
    for (partition, record) in each(results) {
        let at = || format!("partition {partition} offset {}", record.offset);
        let numbers = numbers_of(record);
        let (Some(key), Some(&[number, due_ms, told_ms])) = (&record.key, numbers.as_deref())
        else {
            return Err(format!("{}: not what a timer tells: {record:?}", at()));
        };
        require(told_ms >= due_ms, || format!("{}: due at {due_ms}, told at {told_ms}", at()))?;
        require(record.timestamp_ms == due_ms, || {
            format!("{}: due at {due_ms}, of {}", at(), record.timestamp_ms)
        })?;
        found.entry(key.clone()).or_default().push(number);
    }
    for (key, count) in expected {
        let mut numbers = found.remove(&key).unwrap_or_default();
        numbers.sort_unstable();
        let due: Vec<i64> = (1..=count).collect();
        if let Some((due, there)) = difference(&due, &numbers) {
            return Err(format!(
                "{key:?}: {count} timers, {} told; first difference {due:?}, {there:?}",
                numbers.len()
            ));
        }
    }
    match found.first_key_value() {
        Some((key, told)) => Err(format!("{key:?}: {} timers for nothing", told.len())),
        None => Ok(()),
    }
}

/// What the first part of the chain made is what the second had.
fn check_middle(cases: &[Case], middle: &Records) -> Check {
    let comes = |case: &&Case| {
        let item = case.item.as_ref();
        item.is_some_and(|item| item.mood() != Mood::PanicAtOnce && item.passes_filter())
    };
    let mut expected: Vec<(Option<Bytes>, Bytes)> =
        (cases.iter().filter(comes)).map(|case| (case.record.key.clone(), case.value())).collect();
    let mut found: Vec<(Option<Bytes>, Bytes)> = each(middle)
        .map(|(_, record)| (record.key.clone(), record.value.clone().unwrap_or_default()))
        .collect();
    expected.sort_unstable();
    found.sort_unstable();
    match difference(&expected, &found) {
        Some((due, there)) => {
            let shown = |it: Option<(Option<Bytes>, Bytes)>| {
                it.map(|(key, value)| (key, Item::id_of(&value)))
            };
            Err(format!(
                "{} records for the middle, {} there; first difference {:x?}, {:x?}",
                expected.len(),
                found.len(),
                shown(due),
                shown(there)
            ))
        }
        None => Ok(()),
    }
}

/// What failed is among the dead letters, once, with the reason; nothing else is.
fn check_letters(flow: Flow, streams: &Streams, cases: &[Case], letters: &Records) -> Check {
    let mut expected: Vec<(u64, Bytes)> = Vec::new();
    for case in cases.iter().filter(|case| case.fate(flow, streams) == Fate::Fails) {
        let value = case.value();
        expected.push((Item::id_of(&value).unwrap_or(u64::MAX), value));
    }
    let mut found: Vec<(u64, Bytes)> = Vec::new();
    for (partition, record) in each(letters) {
        let at = || format!("dead letter {partition}@{}", record.offset);
        let value = record.value.clone().unwrap_or_default();
        let id = Item::id_of(&value).unwrap_or(u64::MAX);
        require(id_header(&record.headers) == Some(id), || {
            format!("{}: the headers of another record: {:?}", at(), record.headers)
        })?;
        let has_fact = |fact: &&[u8]| {
            record.headers.iter().any(|(name, value)| name[..] == **fact && value.is_some())
        };
        require(FACTS.iter().all(has_fact), || format!("{}: headers {:?}", at(), record.headers))?;
        found.push((id, value));
    }
    expected.sort_unstable();
    found.sort_unstable();
    match difference(&expected, &found) {
        Some((due, there)) => Err(format!(
            "{} records fail, {} dead letters; first difference {}, {}",
            expected.len(),
            found.len(),
            places(cases, due.map(|(id, _)| id)),
            places(cases, there.map(|(id, _)| id))
        )),
        None => Ok(()),
    }
}

/// Where a record of this number is in the source, for people.
fn places(cases: &[Case], id: Option<u64>) -> String {
    let Some(id) = id else { return "none".to_owned() };
    let is_it = |case: &&Case| Item::id_of(&case.value()) == Some(id);
    let places: Vec<String> = (cases.iter().filter(is_it))
        .map(|case| {
            let (partition, offset) = (case.partition, case.record.offset);
            let mood = case.item.as_ref().map(Item::mood);
            format!("{partition}@{offset} {mood:?} key {:?}", case.record.key)
        })
        .collect();
    format!("{id:x} at {places:?}")
}

/// The numbers of a result that is text.
pub(super) fn numbers_of(record: &Record) -> Option<Vec<i64>> {
    let text = std::str::from_utf8(record.value.as_deref()?).ok()?;
    text.split(' ').map(|number| number.parse().ok()).collect()
}
