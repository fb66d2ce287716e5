//! What clients were told, and whether the node still holds to it.
//!
//! Every record of the torture has a key that tells who wrote it and as which: the writer in the
//! upper half, its number in the lower. A writer numbers its records without gaps, sends each
//! partition's in order, and is idempotent. So a log that is read back says by itself what is lost,
//! doubled or out of order; the ledger adds what was acknowledged, read and committed on the way.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::clients::VALUE_SIZE;

/// The keys of one partition; the index is the offset.
pub type Keys = Vec<u64>;

/// Records of a batch that was acknowledged: these keys from some offset on.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// The first key; kcat does not say which record it was.
    first_key: Option<u64>,
    count: u64,
}

#[derive(Debug, Default)]
struct Topic {
    /// By partition and first offset.
    acknowledged: BTreeMap<(u32, u64), Run>,
    /// By partition and offset, what any consumer saw.
    seen: HashMap<(u32, u64), u64>,
    /// Writers of which every record was acknowledged, and how many those are.
    finished: BTreeMap<u64, u64>,
    /// The end of each partition when it was last read back.
    ends: BTreeMap<u32, u64>,
}

/// All that was promised and is not yet forgotten.
#[derive(Debug, Default)]
pub struct Ledger {
    topics: BTreeMap<String, Topic>,
    /// By topic, group and partition.
    committed: BTreeMap<(String, String, u32), u64>,
    acknowledged_count: u64,
}

/// The first key of a writer.
pub fn first_key(writer: u64) -> u64 {
    writer << 32
}

/// Who wrote a key.
pub fn writer_of(key: u64) -> u64 {
    key >> 32
}

/// Size of the value of one of our own producers' records: mostly small, a few large.
pub fn value_size(key: u64) -> usize {
    let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    if mixed.is_multiple_of(1000) { 300_000 } else { VALUE_SIZE + (mixed % 600) as usize }
}

/// The value of a record: its key and dots.
pub fn value_of(key: u64, size: usize) -> Vec<u8> {
    let mut value = key.to_string().into_bytes();
    value.resize(size, b'.');
    value
}

/// Whether these are the bytes of a record that was sent: of a library, or of our own producers.
pub fn is_value(key: u64, value: &[u8]) -> bool {
    let name = key.to_string();
    let is_sized = value.len() == VALUE_SIZE || value.len() == value_size(key);
    is_sized
        && value.starts_with(name.as_bytes())
        && value[name.len()..].iter().all(|byte| *byte == b'.')
}

impl Ledger {
    /// Records acknowledged so far, those of forgotten topics too.
    pub fn acknowledged_count(&self) -> u64 {
        self.acknowledged_count
    }

    /// Topics that are not forgotten.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.topics.keys().map(String::as_str)
    }

    /// A batch was acknowledged.
    pub fn on_acknowledged(
        &mut self,
        topic: &str,
        partition: u32,
        offset: u64,
        first_key: Option<u64>,
        count: u64,
    ) -> Result<(), String> {
        self.acknowledged_count += count;
        let known = &mut self.topics.entry(topic.into()).or_default().acknowledged;
        let below = known.range(..(partition, offset + count)).next_back();
        if let Some((&(other, at), run)) = below
            && other == partition
            && at + run.count > offset
        {
            return Err(format!("{topic}/{partition}: offset {offset} is acknowledged twice"));
        }
        known.insert((partition, offset), Run { first_key, count });
        Ok(())
    }

    /// A consumer read a record.
    pub fn on_read(
        &mut self,
        topic: &str,
        partition: u32,
        offset: u64,
        key: u64,
    ) -> Result<(), String> {
        let seen = &mut self.topics.entry(topic.into()).or_default().seen;
        match seen.insert((partition, offset), key) {
            Some(before) if before != key => Err(format!(
                "{topic}/{partition}: {key} is read at offset {offset}, before it was {before}"
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// A group's commit was confirmed.
    pub fn on_committed(&mut self, topic: &str, group: &str, partition: u32, offset: u64) {
        self.committed.insert((topic.to_owned(), group.to_owned(), partition), offset);
    }

    /// A group reads again from an offset that it has read, and so may commit again what it
    /// committed from there on: a library that lost its place takes what was stored before its last
    /// commit came through. Below that place it commits nothing.
    pub fn on_going_back(&mut self, topic: &str, group: &str, partition: u32, to: u64) {
        let place = (topic.to_owned(), group.to_owned(), partition);
        if let Some(known) = self.committed.get_mut(&place) {
            *known = to.min(*known);
        }
    }

    /// All records of a writer were acknowledged.
    pub fn on_finished(&mut self, topic: &str, writer: u64, count: u64) {
        self.topics.entry(topic.into()).or_default().finished.insert(writer, count);
    }

    /// The topic is deleted.
    pub fn forget(&mut self, topic: &str) {
        self.topics.remove(topic);
        self.committed.retain(|(of, _, _), _| of != topic);
    }

    /// The offset that a group was told is committed, and did not go back from.
    pub fn committed(&self, topic: &str, group: &str, partition: u32) -> u64 {
        let place = (topic.to_owned(), group.to_owned(), partition);
        self.committed.get(&place).copied().unwrap_or(0)
    }

    /// Groups that committed in a topic.
    pub fn groups(&self, topic: &str) -> HashSet<&str> {
        let of_topic = self.committed.keys().filter(|(of, _, _)| of == topic);
        of_topic.map(|(_, group, _)| group.as_str()).collect()
    }

    /// One past the last offset that was acknowledged.
    pub fn end(&self, topic: &str, partition: u32) -> u64 {
        let known = self.topics.get(topic).map(|topic| &topic.acknowledged);
        let last =
            known.and_then(|known| known.range((partition, 0)..=(partition, u64::MAX)).next_back());
        last.map_or(0, |((_, offset), run)| offset + run.count)
    }

    /// Compares what was promised with what is there, partition by partition.
    pub fn check(&mut self, name: &str, log: &[Keys]) -> Result<(), String> {
        let Some(topic) = self.topics.get_mut(name) else { return Ok(()) };
        let at = |partition: u32, offset: u64| {
            log.get(partition as usize).and_then(|keys| keys.get(offset as usize)).copied()
        };
        for (&(partition, first), run) in &topic.acknowledged {
            for index in 0..run.count {
                let (offset, wanted) = (first + index, run.first_key.map(|key| key + index));
                match at(partition, offset) {
                    None => {
                        return Err(format!(
                            "{name}/{partition}: offset {offset} was acknowledged and is gone"
                        ));
                    }
                    Some(found) if wanted.is_some_and(|wanted| wanted != found) => {
                        return Err(format!(
                            "{name}/{partition}: {found} is at offset {offset}, {wanted:?} was \
                             acknowledged"
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
        for (&(partition, offset), &key) in &topic.seen {
            let found = at(partition, offset);
            if found != Some(key) {
                return Err(format!(
                    "{name}/{partition}: a consumer saw {key} at offset {offset}, now it is \
                     {found:?}"
                ));
            }
        }
        for (partition, keys) in (0..).zip(log) {
            let end = topic.ends.insert(partition, keys.len() as u64).unwrap_or(0);
            if end > keys.len() as u64 {
                return Err(format!("{name}/{partition} ended at {end}, now at {}", keys.len()));
            }
        }
        check_keys(name, log, &topic.finished)
    }
}

/// Every key once; each writer's in order; all of those that have finished.
fn check_keys(name: &str, log: &[Keys], finished: &BTreeMap<u64, u64>) -> Result<(), String> {
    let mut once = HashSet::new();
    let mut counts: HashMap<u64, u64> = HashMap::new();
    for (partition, keys) in log.iter().enumerate() {
        let mut last: HashMap<u64, u64> = HashMap::new();
        for (offset, &key) in keys.iter().enumerate() {
            if !once.insert(key) {
                return Err(format!("{name}/{partition}: {key} at offset {offset} is there twice"));
            }
            let before = last.insert(writer_of(key), key);
            if before.is_some_and(|before| before > key) {
                return Err(format!(
                    "{name}/{partition}: {key} at offset {offset} comes after {before:?}"
                ));
            }
            *counts.entry(writer_of(key)).or_default() += 1;
        }
    }
    for (writer, count) in finished {
        let missing = (0..*count).find(|number| !once.contains(&(first_key(*writer) + number)));
        if let Some(number) = missing {
            return Err(format!("{name}: record {number} of writer {writer} is not there"));
        }
        if counts.get(writer).copied().unwrap_or(0) != *count {
            return Err(format!("{name}: writer {writer} has more records than it sent"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITER: u64 = 3;

    fn keys(numbers: &[u64]) -> Keys {
        numbers.iter().map(|number| first_key(WRITER) + number).collect()
    }

    /// A writer sent 0 to 5 to two partitions; all is acknowledged, one record was read.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        let first = first_key(WRITER);
        ledger.on_acknowledged("t", 0, 0, Some(first), 2).expect("new");
        ledger.on_acknowledged("t", 0, 2, Some(first + 4), 2).expect("new");
        ledger.on_acknowledged("t", 1, 0, Some(first + 2), 2).expect("new");
        ledger.on_read("t", 1, 1, first + 3).expect("new");
        ledger.on_finished("t", WRITER, 6);
        ledger
    }

    fn check(log: &[&[u64]]) -> String {
        let log: Vec<Keys> = log.iter().map(|numbers| keys(numbers)).collect();
        ledger().check("t", &log).err().unwrap_or_default()
    }

    #[test]
    fn what_is_not_as_promised_is_named() {
        for (log, expected) in [
            (&[&[0_u64, 1, 4, 5][..], &[2, 3]][..], ""),
            (&[&[0, 1, 4], &[2, 3]], "t/0: offset 3 was acknowledged and is gone"),
            (&[&[0, 1, 5, 4], &[2, 3]], "is at offset 2"),
            (&[&[0, 1, 4, 5], &[2, 3, 3]], "is there twice"),
            (&[&[0, 1, 4, 5], &[2, 3, 6]], "more records than it sent"),
        ] {
            let found = check(log);
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{found}");
        }
    }

    #[test]
    fn what_nobody_acknowledged_is_checked_as_well() {
        let mut ledger = Ledger::default();
        ledger.on_read("t", 0, 1, first_key(1)).expect("new");
        assert!(ledger.on_read("t", 0, 1, first_key(2)).is_err(), "another record");
        let mut ledger = Ledger::default();
        ledger.on_read("t", 0, 1, first_key(1)).expect("new");
        assert!(ledger.check("t", &[vec![]]).expect_err("gone").contains("a consumer saw"));
        let mut ledger = Ledger::default();
        ledger.on_finished("t", WRITER, 2);
        let gone = ledger.check("t", &[keys(&[1])]).expect_err("number 0 is missing");
        assert!(gone.contains("record 0 of writer"), "{gone}");
        let mut ledger = Ledger::default();
        ledger.on_acknowledged("t", 0, 0, None, 1).expect("new");
        ledger.check("t", &[keys(&[3, 4])]).expect("in order");
        let shorter = ledger.check("t", &[keys(&[3])]).expect_err("it was longer");
        assert!(shorter.contains("ended at 2, now at 1"), "{shorter}");
        let order = ledger.check("t", &[keys(&[4, 3])]).expect_err("they are swapped");
        assert!(order.contains("comes after"), "{order}");
    }

    #[test]
    fn a_group_that_goes_back_keeps_what_it_committed_below() {
        let mut ledger = Ledger::default();
        ledger.on_going_back("t", "g", 0, 3);
        assert_eq!(ledger.committed("t", "g", 0), 0, "nothing was committed");
        ledger.on_committed("t", "g", 0, 10);
        ledger.on_going_back("t", "g", 0, 20);
        assert_eq!(ledger.committed("t", "g", 0), 10, "it was committed before that place");
        ledger.on_going_back("t", "g", 0, 7);
        assert_eq!(ledger.committed("t", "g", 0), 7);
    }

    #[test]
    fn an_offset_is_given_once() {
        let mut ledger = ledger();
        for (offset, count) in [(0, 1), (1, 1), (3, 2), (1, 3)] {
            let again = ledger.on_acknowledged("t", 0, offset, None, count);
            assert!(again.is_err(), "{offset} and {count} records");
        }
        assert!(ledger.on_acknowledged("t", 0, 4, None, 1).is_ok());
        assert_eq!((ledger.end("t", 0), ledger.end("t", 1), ledger.end("t", 2)), (5, 2, 0));
    }

    #[test]
    fn a_value_belongs_to_its_key() {
        for size in [VALUE_SIZE, value_size(77)] {
            assert!(is_value(77, &value_of(77, size)));
            assert!(!is_value(78, &value_of(77, size)));
        }
        assert!(!is_value(77, &value_of(77, 50)));
    }
}
