//! What the node was asked and what it promised, each tied to a moment of the recording; and the
//! verdict over what is found on a drive whose power went at some moment.
//!
//! A request is noted before it is sent, an answer after it has come. So an answer noted at a
//! moment was given at the latest then, and nothing that the request did lies before its note.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;

use super::drive::SharedDrive;

/// A partition: its topic's name and its index.
pub type Partition = (String, i32);

/// A topic's life.
#[derive(Debug, Clone, Default)]
pub struct TopicLife {
    /// When the node was asked for it.
    pub asked: usize,
    /// When it was there.
    pub made: Option<usize>,
    /// When the node was asked to delete it.
    pub deletion_asked: Option<usize>,
    /// When it was gone.
    pub deleted: Option<usize>,
}

/// A record that was acknowledged.
#[derive(Debug, Clone)]
struct Acknowledged {
    value: Bytes,
    at: usize,
}

/// A number that only grows: a start of a partition, an offset of a group.
#[derive(Debug, Clone, Copy)]
struct Raised {
    to: i64,
    asked: usize,
    answered: Option<usize>,
}

/// All that was asked and promised.
#[derive(Debug, Default)]
pub struct History {
    topics: BTreeMap<String, TopicLife>,
    records: BTreeMap<Partition, BTreeMap<i64, Acknowledged>>,
    unanswered: HashSet<Bytes>,
    starts: BTreeMap<Partition, Vec<Raised>>,
    commits: BTreeMap<String, Vec<Raised>>,
}

/// What is there after a recovery.
#[derive(Debug, Default)]
pub struct Found {
    /// Topics by name.
    pub topics: BTreeSet<String>,
    /// Values by partition and offset.
    pub records: BTreeMap<Partition, BTreeMap<i64, Bytes>>,
    /// Starts of partitions, where it can be seen.
    pub starts: BTreeMap<Partition, i64>,
    /// Committed offsets by group.
    pub committed: BTreeMap<String, i64>,
}

/// The history, written by many while the drive is recorded.
#[derive(Debug)]
pub struct Notes {
    drive: SharedDrive,
    history: Mutex<History>,
}

impl Notes {
    /// Nothing happened yet.
    pub fn new(drive: SharedDrive) -> Notes {
        Notes { drive, history: Mutex::default() }
    }

    /// Ends the notes.
    pub fn into_history(self) -> History {
        self.history.into_inner().expect("no panic while it is held")
    }

    fn now(&self) -> (usize, MutexGuard<'_, History>) {
        let moment = self.drive.lock().moment();
        (moment, self.history.lock().expect("no panic while it is held"))
    }

    /// A topic is about to be asked for.
    pub fn topic_asked(&self, name: &str) {
        let (asked, mut history) = self.now();
        history.topics.insert(name.into(), TopicLife { asked, ..TopicLife::default() });
    }

    /// It is there.
    pub fn topic_made(&self, name: &str) {
        let (moment, mut history) = self.now();
        history.topics.get_mut(name).expect("asked for").made = Some(moment);
    }

    /// Its deletion is about to be asked for.
    pub fn deletion_asked(&self, name: &str) {
        let (moment, mut history) = self.now();
        history.topics.get_mut(name).expect("made").deletion_asked = Some(moment);
    }

    /// It is gone.
    pub fn deleted(&self, name: &str) {
        let (moment, mut history) = self.now();
        history.topics.get_mut(name).expect("made").deleted = Some(moment);
    }

    /// A record is about to be sent.
    pub fn sent(&self, value: &Bytes) {
        self.now().1.unanswered.insert(value.clone());
    }

    /// It was acknowledged.
    pub fn acknowledged(&self, topic: &str, partition: i32, offset: i64, value: &Bytes) {
        let (at, mut history) = self.now();
        history.unanswered.remove(value);
        let records = history.records.entry((topic.into(), partition)).or_default();
        let before = records.insert(offset, Acknowledged { value: value.clone(), at });
        assert!(before.is_none(), "{topic}/{partition}: offset {offset} was given twice");
    }

    /// The start of a partition is about to be moved, or may be from now on.
    pub fn trim_asked(&self, topic: &str, partition: i32, to: i64) {
        let (asked, mut history) = self.now();
        let starts = history.starts.entry((topic.into(), partition)).or_default();
        starts.push(Raised { to, asked, answered: None });
    }

    /// It has moved.
    pub fn trimmed(&self, topic: &str, partition: i32) {
        let (moment, mut history) = self.now();
        let starts = history.starts.get_mut(&(topic.into(), partition)).expect("asked for");
        starts.last_mut().expect("asked for").answered = Some(moment);
    }

    /// A client was told where a partition starts, and a start does not move back.
    pub fn starts_at(&self, topic: &str, partition: i32, start: i64) {
        let (moment, mut history) = self.now();
        let starts = history.starts.entry((topic.into(), partition)).or_default();
        starts.push(Raised { to: start, asked: moment, answered: Some(moment) });
    }

    /// A group's offset is about to be committed.
    pub fn commit_asked(&self, group: &str, to: i64) {
        let (asked, mut history) = self.now();
        let commits = history.commits.entry(group.into()).or_default();
        commits.push(Raised { to, asked, answered: None });
    }

    /// It was confirmed.
    pub fn committed(&self, group: &str) {
        let (moment, mut history) = self.now();
        let commits = history.commits.get_mut(group).expect("asked for");
        commits.last_mut().expect("asked for").answered = Some(moment);
    }
}

/// The lowest and the highest that a number may be at a moment; -1 is none.
fn bounds(raised: &[Raised], moment: usize) -> (i64, i64) {
    let by = |at: Option<usize>| at.is_some_and(|at| at <= moment);
    let low = raised.iter().filter(|raised| by(raised.answered)).map(|raised| raised.to).max();
    let high = raised.iter().filter(|raised| raised.asked <= moment).map(|raised| raised.to).max();
    (low.unwrap_or(-1), high.unwrap_or(-1))
}

impl History {
    /// How many records were acknowledged.
    pub fn record_count(&self) -> usize {
        self.records.values().map(BTreeMap::len).sum()
    }

    /// How many records were acknowledged after the range's first and by its last moment.
    pub fn acknowledged_within(&self, range: &Range<usize>) -> usize {
        let records = self.records.values().flat_map(BTreeMap::values);
        records.filter(|record| range.start < record.at && record.at <= range.end).count()
    }

    /// How many commits of offsets were confirmed.
    pub fn commit_count(&self) -> usize {
        let answered = |raised: &&Raised| raised.answered.is_some();
        self.commits.values().flatten().filter(answered).count()
    }

    /// How many topics were deleted.
    pub fn deletion_count(&self) -> usize {
        self.topics.values().filter(|life| life.deleted.is_some()).count()
    }

    /// By how many records the starts of some topics' partitions have moved, as clients know.
    pub fn moved(&self, is_meant: impl Fn(&str) -> bool) -> i64 {
        let starts = self.starts.iter().filter(|((topic, _), _)| is_meant(topic));
        starts.map(|(_, raised)| bounds(raised, usize::MAX).0.max(0)).sum()
    }

    /// Partitions with records of topics that have to be there at a moment. Others may come and
    /// go while somebody looks, for a change that was under way goes on after a restart.
    pub fn partitions_at(&self, moment: usize) -> impl Iterator<Item = &Partition> {
        let by = move |at: Option<usize>| at.is_some_and(|at| at <= moment);
        self.records.keys().filter(move |(topic, _)| {
            self.topics.get(topic).is_some_and(|life| by(life.made) && !by(life.deletion_asked))
        })
    }

    /// Groups with commits, for whoever looks.
    pub fn groups(&self) -> impl Iterator<Item = &String> {
        self.commits.keys()
    }

    /// Says what is wrong with what was found on a drive whose power went at this moment.
    pub fn judge(&self, moment: usize, found: &Found) -> Result<(), String> {
        let by = |at: Option<usize>| at.is_some_and(|at| at <= moment);
        for (name, life) in &self.topics {
            let is_there = found.topics.contains(name);
            if by(life.made) && !by(life.deletion_asked) && !is_there {
                return Err(format!("topic {name} is lost"));
            }
            if by(life.deleted) && is_there {
                return Err(format!("topic {name} was deleted and is back"));
            }
            if life.asked > moment && is_there {
                return Err(format!("topic {name} is there before anybody asked for it"));
            }
        }
        for (partition, records) in &self.records {
            let life = self.topics.get(&partition.0).cloned().unwrap_or_default();
            if !by(life.deletion_asked) {
                self.judge_partition(moment, partition, records, found)?;
            }
        }
        for (group, commits) in &self.commits {
            let (low, high) = bounds(commits, moment);
            let committed = found.committed.get(group).copied().unwrap_or(-1);
            if committed < low || committed > high {
                return Err(format!("{group} is at {committed}, not in {low}..={high}"));
            }
        }
        Ok(())
    }

    fn judge_partition(
        &self,
        moment: usize,
        partition: &Partition,
        acknowledged: &BTreeMap<i64, Acknowledged>,
        found: &Found,
    ) -> Result<(), String> {
        let (name, index) = partition;
        let raised = self.starts.get(partition).map_or(&[][..], Vec::as_slice);
        let (start_min, start_max) = bounds(raised, moment);
        if let Some(start) = found.starts.get(partition)
            && (*start < start_min || *start > start_max.max(0))
        {
            return Err(format!(
                "{name}/{index} starts at {start}, not in {start_min}..={start_max}"
            ));
        }
        let none = BTreeMap::new();
        let there = found.records.get(partition).unwrap_or(&none);
        for (offset, record) in acknowledged.range(start_max.max(0)..) {
            if record.at <= moment && !there.contains_key(offset) {
                return Err(format!(
                    "{name}/{index}: the record at offset {offset} was acknowledged at {} and is \
                     lost; there are {:?}",
                    record.at,
                    there.keys().next().zip(there.keys().next_back()),
                ));
            }
        }
        let mut expected = None;
        for (offset, value) in there {
            if expected.is_some_and(|expected| expected != *offset) {
                return Err(format!("{name}/{index}: a gap before offset {offset}"));
            }
            expected = Some(offset + 1);
            let is_right = match acknowledged.get(offset) {
                Some(record) if record.at <= moment => record.value == value,
                Some(record) => record.value == value || self.unanswered.contains(value),
                None => self.unanswered.contains(value),
            };
            if !is_right {
                let shown = String::from_utf8_lossy(&value[..value.len().min(40)]);
                return Err(format!("{name}/{index}: offset {offset} holds {shown:?}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A topic with records at offsets 0 and 1, acknowledged at moments 10 and 20; one more was
    /// sent and never answered. The start was moved to 1 between 30 and 40, a group committed 1
    /// at 15.
    fn history() -> History {
        let mut history = History::default();
        let life = TopicLife { asked: 1, made: Some(5), ..Default::default() };
        history.topics.insert("t".into(), life);
        let record = |value: &'static [u8], at| Acknowledged { value: value.into(), at };
        let records = [(0, record(b"zero", 10)), (1, record(b"one", 20))].into();
        history.records.insert(("t".into(), 0), records);
        history.unanswered.insert(Bytes::from_static(b"two"));
        let raised = |to, asked, answered| Raised { to, asked, answered: Some(answered) };
        history.starts.insert(("t".into(), 0), vec![raised(1, 30, 40)]);
        history.commits.insert("g".into(), vec![raised(1, 12, 15)]);
        history
    }

    fn found(values: &[(i64, &'static [u8])], start: i64, committed: Option<i64>) -> Found {
        let values = values.iter().map(|(offset, value)| (*offset, Bytes::from_static(value)));
        Found {
            topics: [String::from("t")].into(),
            records: [(("t".into(), 0), values.collect())].into(),
            starts: [(("t".into(), 0), start)].into(),
            committed: committed.map(|to| ("g".into(), to)).into_iter().collect(),
        }
    }

    #[track_caller]
    fn check(moment: usize, found: &Found, verdict: &str) {
        let result = history().judge(moment, found);
        match verdict {
            "" => assert_eq!(result, Ok(())),
            words => assert!(result.as_ref().is_err_and(|why| why.contains(words)), "{result:?}"),
        }
    }

    #[test]
    fn what_was_acknowledged_by_then_is_owed() {
        check(9, &found(&[], 0, None), "");
        check(10, &found(&[], 0, None), "offset 0 was acknowledged at 10 and is lost");
        check(15, &found(&[(0, b"zero")], 0, None), "g is at -1, not in 1..=1");
        check(15, &found(&[(0, b"zero")], 0, Some(1)), "");
        check(20, &found(&[(0, b"zero")], 0, Some(1)), "offset 1");
        check(4, &Found::default(), "");
        check(5, &Found::default(), "topic t is lost");
    }

    #[test]
    fn what_was_sent_may_be_there_and_nothing_else() {
        let longer = found(&[(0, b"zero"), (1, b"one"), (2, b"two")], 0, Some(1));
        check(20, &longer, "");
        check(11, &longer, "g is at 1, not in -1..=-1");
        check(20, &found(&[(0, b"zero"), (1, b"two")], 0, Some(1)), "offset 1 holds \"two\"");
        check(15, &found(&[(0, b"zero"), (1, b"two")], 0, Some(1)), "");
        check(20, &found(&[(0, b"zero"), (1, b"own")], 0, Some(1)), "offset 1 holds \"own\"");
        check(20, &found(&[(0, b"zero"), (1, b"one"), (2, b"odd")], 0, Some(1)), "offset 2");
        check(15, &found(&[(0, b"zero"), (2, b"two")], 0, Some(1)), "a gap before offset 2");
    }

    #[test]
    fn what_was_trimmed_may_go_once_asked_and_is_gone_once_answered() {
        check(29, &found(&[(1, b"one")], 1, Some(1)), "starts at 1, not in -1..=-1");
        check(30, &found(&[(1, b"one")], 1, Some(1)), "");
        check(30, &found(&[(0, b"zero"), (1, b"one")], 0, Some(1)), "");
        check(40, &found(&[(0, b"zero"), (1, b"one")], 0, Some(1)), "starts at 0, not in 1..=1");
        check(40, &found(&[], 1, Some(1)), "offset 1");
    }
}
