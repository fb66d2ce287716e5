//! What topologies read: records by key, or the events of Nexmark, made while they are sent.

use bytes::Bytes;
use tidemill::batch::{BatchBuilder, NewRecord};
use tidemill::command::key_partition;
use tidemill::nexmark::{INPUT_TOPICS, generate};

use crate::fill::{Addressed, BATCH_SIZE};
use crate::load::kafka::{KEY_SIZE, fill_with_text, key_text};
use crate::{now_ms, random};

/// Bytes of text that values are cut from.
const TEXT_SIZE: usize = 1 << 20;

/// From one value to the next in the text.
const TEXT_STEP: usize = 257;

/// A record and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Which of the topics.
    pub topic: usize,
    /// The partition's index.
    pub partition: u32,
    /// In milliseconds since 1970.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Option<String>,
    /// The value.
    pub value: Bytes,
}

/// Gathers records into batches, those of each partition in their order.
pub struct Batches<'t, I> {
    topics: &'t [&'t str],
    records: I,
    /// Of each topic's partitions.
    open: Vec<Vec<BatchBuilder>>,
}

impl<'t, I: Iterator<Item = Placed>> Batches<'t, I> {
    /// Of records for these topics, which have so many partitions each.
    pub fn new(topics: &'t [&'t str], partitions: u32, records: I) -> Self {
        let open = vec![vec![BatchBuilder::new(); partitions as usize]; topics.len()];
        Self { topics, records, open }
    }

    fn take(&mut self, topic: usize, partition: usize) -> Addressed<'t> {
        let batch = std::mem::take(&mut self.open[topic][partition]).build();
        let records = batch.record_count().into();
        let (topic, partition) = (self.topics[topic], partition as u32);
        Addressed { topic, partition, batch: batch.into_bytes(), records }
    }

    /// A batch that was begun.
    fn begun(&self) -> Option<(usize, usize)> {
        self.open.iter().enumerate().find_map(|(topic, open)| {
            Some((topic, open.iter().position(|batch| batch.record_count() > 0)?))
        })
    }
}

impl<'t, I: Iterator<Item = Placed>> Iterator for Batches<'t, I> {
    type Item = Addressed<'t>;

    fn next(&mut self) -> Option<Addressed<'t>> {
        while let Some(Placed { topic, partition, timestamp_ms, key, value }) = self.records.next()
        {
            let partition = partition as usize;
            let batch = &mut self.open[topic][partition];
            let key = key.as_ref().map(String::as_bytes);
            let value = Some(&value[..]);
            batch.push(NewRecord { timestamp_ms, key, value, ..NewRecord::default() });
            if batch.size() >= BATCH_SIZE {
                return Some(self.take(topic, partition));
            }
        }
        let (topic, partition) = self.begun()?;
        Some(self.take(topic, partition))
    }
}

/// Records whose keys are the numbers below `keys` in turn, each in the partition of its key; `size`
/// bytes of key and value.
pub fn keyed(
    (records, keys): (u64, u64),
    size: usize,
    partitions: u32,
) -> impl Iterator<Item = Placed> {
    let mut text = vec![0; TEXT_SIZE + size];
    fill_with_text(&mut text, &mut random());
    let text = Bytes::from(text);
    let timestamp_ms = now_ms();
    let numbers = (0..records.div_ceil(keys)).flat_map(move |_| shuffled(keys));
    numbers.take(records as usize).enumerate().map(move |(index, number)| {
        let key = key_text(number);
        let partition = key_partition(key.as_bytes(), partitions);
        let at = index * TEXT_STEP % TEXT_SIZE;
        let value = text.slice(at..at + size.saturating_sub(KEY_SIZE));
        Placed { topic: 0, partition, timestamp_ms, key: Some(key), value }
    })
}

/// The first events of Nexmark, those of the wanted ones of [`INPUT_TOPICS`]; the events of a topic go
/// round its partitions.
pub fn events(
    count: u64,
    wanted: [bool; INPUT_TOPICS.len()],
    partitions: u32,
) -> impl Iterator<Item = Placed> {
    let mut turns = [0_u32; INPUT_TOPICS.len()];
    let ours = generate().take(count as usize).filter(move |event| wanted[event.topic]);
    ours.map(move |event| {
        let turn = &mut turns[event.topic];
        let partition = *turn;
        *turn = (*turn + 1) % partitions;
        let (topic, timestamp_ms) = (event.topic, event.time_ms);
        Placed { topic, partition, timestamp_ms, key: None, value: event.value.into() }
    })
}

/// The numbers below `count`, each once, so that neighbours are far from each other.
pub fn shuffled(count: u64) -> impl Iterator<Item = u64> {
    let bits = (u64::BITS - count.saturating_sub(1).leading_zeros()).max(2);
    (0..1 << bits).map(move |number| scramble(number, bits)).filter(move |number| *number < count)
}

/// Another number of so many bits for each. Each line can be undone, so no two become the same.
fn scramble(number: u64, bits: u32) -> u64 {
    let (mask, half) = ((1 << bits) - 1, bits / 2);
    [0x9e37_79b9_7f4a_7c15_u64, 0xd1b5_4a32_d192_ed03].iter().fold(number, |number, odd| {
        let number = (number ^ number >> half).wrapping_mul(*odd) & mask;
        number ^ number >> half
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use tidemill::batch::RecordBatch;

    use super::*;
    use crate::load::kafka::key_number;

    #[test]
    fn each_number_comes_once_and_not_in_order() {
        for count in [1, 2, 3, 1000, 1024, 1025] {
            let numbers: Vec<u64> = shuffled(count).collect();
            let different: BTreeSet<u64> = numbers.iter().copied().collect();
            assert_eq!((numbers.len() as u64, different.len() as u64), (count, count));
            assert_eq!(different.last(), Some(&(count - 1)));
        }
        let near = shuffled(1024).zip(shuffled(1024).skip(1)).filter(|(a, b)| a.abs_diff(*b) < 8);
        assert!(near.count() < 64, "neighbours are far from each other");
    }

    /// Keys and times of records, by topic and partition, in their order.
    type Gathered = BTreeMap<(&'static str, u32), Vec<(Option<Bytes>, i64)>>;

    /// Those of the batches.
    fn gathered(
        topics: &'static [&'static str],
        partitions: u32,
        records: impl Iterator<Item = Placed>,
    ) -> Gathered {
        let mut found = Gathered::new();
        for Addressed { topic, partition, batch, records } in
            Batches::new(topics, partitions, records)
        {
            let batch = RecordBatch::check(batch).expect("good");
            assert_eq!(u64::from(batch.record_count()), records);
            for record in batch.records(1 << 20).expect("not compressed") {
                let record = record.expect("whole");
                let found = found.entry((topic, partition)).or_default();
                found.push((record.key, record.timestamp_ms));
            }
        }
        found
    }

    #[test]
    fn keyed_records_come_to_the_partitions_of_their_keys_each_key_as_often() {
        let found = gathered(&["in"], 3, keyed((5000, 1000), 100, 3));
        let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
        for ((_, partition), records) in &found {
            for (key, _) in records {
                let key = key.as_ref().expect("a key");
                assert_eq!(key_partition(key, 3), *partition);
                *counts.entry(key_number(key).expect("ours")).or_default() += 1;
            }
        }
        assert_eq!(counts.len(), 1000);
        assert!(counts.values().all(|count| *count == 5), "{counts:?}");
    }

    #[test]
    fn events_of_wanted_topics_alone_go_round_the_partitions_in_the_order_of_their_times() {
        let found = gathered(&INPUT_TOPICS, 2, events(5000, [true, true, false], 2));
        let sizes: Vec<_> = found.iter().map(|(place, records)| (*place, records.len())).collect();
        let (person, auction) = (INPUT_TOPICS[0], INPUT_TOPICS[1]);
        let expected =
            [((auction, 0), 150), ((auction, 1), 150), ((person, 0), 50), ((person, 1), 50)];
        assert_eq!(sizes, expected);
        for records in found.values() {
            assert!(records.is_sorted_by_key(|(_, time_ms)| *time_ms));
        }
    }
}
