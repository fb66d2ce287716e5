//! What windows have to tell.
//!
//! Which records are late goes by how far the other partitions were, which no log says. A record that
//! is not too far behind its own partition is on time in any case, unless the partition was idle;
//! the others are late or not, and the topic of late records says which.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemill::topology::{Codec, Windows};

use super::Records;
use super::expected::{Case, each, numbers_of};
use crate::sim::model::{Check, Model, require};
use crate::sim::streams::item::{Item, Items};
use crate::sim::streams::{Flow, Streams, WindowRules};

/// A record of a key.
#[derive(Debug)]
struct Event {
    time_ms: i64,
    id: u64,
    /// It cannot be late.
    is_safe: bool,
}

/// What a window told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    start_ms: i64,
    end_ms: i64,
    count: i64,
}

/// How far event time has come at least and at most.
#[derive(Debug, Clone, Copy)]
struct Watermark {
    least_ms: i64,
    most_ms: i64,
}

/// How many records a window may have.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    all: i64,
    safe: i64,
    late: i64,
}

type ByKey<T> = BTreeMap<Bytes, Vec<T>>;

impl Model {
    pub(super) fn check_windows(
        &mut self,
        passing: &[&Case],
        results: &Records,
        late: &Records,
        streams: &Streams,
    ) -> Check {
        let rules = &streams.rules;
        let partition_count =
            self.route(&Flow::Windows.source()).map_or(0, |route| route.partition_count);
        let (events, watermark) = events_of(passing, partition_count, streams);
        let told = told_by_key(results)?;
        let late = late_by_key(late)?;
        self.counts.windows_told += told.values().map(Vec::len).sum::<usize>() as u64;
        self.counts.late_records += late.values().map(Vec::len).sum::<usize>() as u64;
        check_late(&events, &late)?;
        if let Some((key, _)) = told.iter().find(|(key, _)| !events.contains_key(*key)) {
            return Err(format!("{key:?} has windows and no records"));
        }
        for (key, events) in &events {
            let told = told.get(key).map_or(&[][..], Vec::as_slice);
            let late = late.get(key).map_or(&[][..], Vec::as_slice);
            let checked = match rules.windows {
                Windows::Tumbling { size_ms } => {
                    check_grid((size_ms, size_ms), rules, watermark, events, told, late)
                }
                Windows::Hopping { size_ms, hop_ms } => {
                    check_grid((size_ms, hop_ms), rules, watermark, events, told, late)
                }
                Windows::Session { gap_ms } => {
                    check_sessions(gap_ms, rules, watermark, events, told, late)
                }
            };
            checked.map_err(|why| format!("{key:?}: {why}; {rules:?}, {watermark:?}"))?;
        }
        Ok(())
    }
}

/// The records by key, and how far event time has come with them.
fn events_of(
    passing: &[&Case],
    partition_count: u32,
    streams: &Streams,
) -> (ByKey<Event>, Watermark) {
    let rules = &streams.rules;
    let mark_of = |newest_ms: i64| newest_ms.saturating_sub(rules.lateness_ms).saturating_sub(1);
    let mut newest: BTreeMap<u32, i64> = (0..partition_count).map(|it| (it, i64::MIN)).collect();
    let mut events: ByKey<Event> = ByKey::new();
    for case in passing {
        let Some(item) = &case.item else { continue };
        let newest_ms = newest.entry(case.partition).or_insert(i64::MIN);
        let (time_ms, id) = (item.time_ms(), item.id());
        let is_safe = rules.idle_after_ms.is_none() && time_ms > mark_of(*newest_ms);
        *newest_ms = (*newest_ms).max(time_ms);
        for key in case.keys(Flow::Windows, streams) {
            let event = Event { time_ms, id, is_safe };
            events.entry(key).or_default().push(event);
        }
    }
    let marks = || newest.values().map(|newest_ms| mark_of(*newest_ms));
    let least_ms = marks().min().unwrap_or(i64::MIN);
    let most_ms = match rules.idle_after_ms {
        // Who is idle holds nobody up.
        Some(_) => marks().max().unwrap_or(i64::MIN),
        None => least_ms,
    };
    (events, Watermark { least_ms, most_ms })
}

fn told_by_key(results: &Records) -> Result<ByKey<Told>, String> {
    let mut told: ByKey<Told> = ByKey::new();
    for (partition, record) in each(results) {
        let numbers = numbers_of(record);
        let (Some(key), Some(&[start_ms, end_ms, count])) = (&record.key, numbers.as_deref())
        else {
            return Err(format!("partition {partition}: not what a window tells: {record:?}"));
        };
        require(record.timestamp_ms == end_ms - 1, || {
            format!("the window {start_ms} to {end_ms} tells at {}", record.timestamp_ms)
        })?;
        told.entry(key.clone()).or_default().push(Told { start_ms, end_ms, count });
    }
    Ok(told)
}

/// Numbers of records that were late, with their times.
fn late_by_key(late: &Records) -> Result<ByKey<(u64, i64)>, String> {
    let mut by_key: ByKey<(u64, i64)> = ByKey::new();
    for (partition, record) in each(late) {
        let item: Option<Item> = record.value.as_ref().and_then(|it| Items.decode(it).ok());
        let (Some(key), Some(item)) = (&record.key, item) else {
            return Err(format!("partition {partition}: not a late record: {record:?}"));
        };
        by_key.entry(key.clone()).or_default().push((item.id(), item.time_ms()));
    }
    Ok(by_key)
}

/// What was late is there, each once, and may have been late.
fn check_late(events: &ByKey<Event>, late: &ByKey<(u64, i64)>) -> Check {
    for (key, late) in late {
        let events = events.get(key).map_or(&[][..], Vec::as_slice);
        let mut unsafe_ids: BTreeMap<u64, i64> = BTreeMap::new();
        for event in events.iter().filter(|event| !event.is_safe) {
            *unsafe_ids.entry(event.id).or_default() += 1;
        }
        for (id, time_ms) in late {
            let left = unsafe_ids.entry(*id).or_default();
            *left -= 1;
            require(*left >= 0, || {
                let known = events.iter().find(|event| event.id == *id);
                format!(
                    "{key:?}: record {id:x} of {time_ms} is late, which it cannot be: {known:?}"
                )
            })?;
        }
    }
    Ok(())
}

fn check_grid(
    (size_ms, hop_ms): (i64, i64),
    rules: &WindowRules,
    watermark: Watermark,
    events: &[Event],
    told: &[Told],
    late: &[(u64, i64)],
) -> Check {
    let starts = |time_ms: i64| {
        let last = time_ms.div_euclid(hop_ms) * hop_ms;
        (0..)
            .map(move |back| last - back * hop_ms)
            .take_while(move |start| *start + size_ms > time_ms)
    };
    let mut windows: BTreeMap<i64, Tally> = BTreeMap::new();
    for event in events {
        for start_ms in starts(event.time_ms) {
            let tally = windows.entry(start_ms).or_default();
            tally.all += 1;
            tally.safe += i64::from(event.is_safe);
        }
    }
    for (_, time_ms) in late {
        for start_ms in starts(*time_ms) {
            windows.entry(start_ms).or_default().late += 1;
        }
    }
    let mut newest: BTreeMap<i64, i64> = BTreeMap::new();
    for Told { start_ms, end_ms, count } in told.iter().copied() {
        let is_window = windows.contains_key(&start_ms) && end_ms == start_ms + size_ms;
        require(is_window, || format!("{start_ms} to {end_ms} is told and has no records"))?;
        if let Some(before) = newest.insert(start_ms, count) {
            require(rules.allowed_lateness_ms > 0 && count > before, || {
                format!("{start_ms} to {end_ms} has {before}, and then {count}")
            })?;
        }
    }
    for (start_ms, Tally { all, safe, late }) in windows {
        let last_ms = start_ms + size_ms - 1;
        let found = newest.get(&start_ms).copied().unwrap_or(0);
        // A record of several windows may be late for some of them only.
        let low = if hop_ms >= size_ms { all - late } else { safe };
        let is_good = if last_ms <= watermark.least_ms {
            (low..=all - late).contains(&found)
        } else if last_ms > watermark.most_ms {
            found == 0
        } else {
            found <= all - late
        };
        require(is_good, || {
            format!("from {start_ms}: {all} records, {safe} on time, {late} late, told {found}")
        })?;
    }
    Ok(())
}

fn check_sessions(
    gap_ms: i64,
    rules: &WindowRules,
    watermark: Watermark,
    events: &[Event],
    told: &[Told],
    late: &[(u64, i64)],
) -> Check {
    let mut times: Vec<i64> = events.iter().map(|event| event.time_ms).collect();
    times.sort_unstable();
    if events.iter().all(|event| event.is_safe) {
        let mut sessions: Vec<Told> = Vec::new();
        for time_ms in times {
            let end_ms = time_ms + gap_ms;
            match sessions.last_mut().filter(|session| time_ms <= session.end_ms) {
                Some(session) => (session.end_ms, session.count) = (end_ms, session.count + 1),
                None => sessions.push(Told { start_ms: time_ms, end_ms, count: 1 }),
            }
        }
        sessions.retain(|session| session.end_ms - 1 <= watermark.least_ms);
        let mut found = told.to_vec();
        found.sort_unstable();
        return match super::difference(&sessions, &found) {
            Some((due, there)) => Err(format!(
                "{} sessions, {} told; first difference {due:?}, {there:?}",
                sessions.len(),
                found.len()
            )),
            None => Ok(()),
        };
    }
    let is_over = times.last().is_none_or(|last| last + gap_ms - 1 <= watermark.least_ms);
    if !is_over || rules.allowed_lateness_ms > 0 {
        return Ok(());
    }
    // Each record was in one session that ended, or was late.
    let sum: i64 = told.iter().map(|session| session.count).sum();
    require(sum + late.len() as i64 == events.len() as i64, || {
        format!("{} records, {sum} in sessions, {} late", events.len(), late.len())
    })
}
