//! Idempotence: what each producer last appended to a partition (KIP-98, KIP-192, KIP-360).
//!
//! The state is a function of the appended batches and the clock, so the WAL needs no entry of its
//! own for it; delta files and snapshots carry it as [`crate::state::Kind::Producer`].

use std::collections::{BTreeMap, VecDeque};

use tidemill_wal::mutation::{self, Mutation};

use crate::batch::RecordBatch;
use crate::command::{ProducerFacts, Refusal};

/// Batches remembered for each producer, as many as Kafka clients keep in flight with idempotence.
pub const BATCHES_MAX: usize = 5;

/// Size of one remembered batch in an encoded producer.
const ENCODED_BATCH_SIZE: usize = 16;

/// What to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Append it.
    Append,
    /// It was appended before, at this offset.
    Duplicate {
        /// Offset of its first record.
        base_offset: u64,
    },
    /// Answer with this.
    Refuse(Refusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Remembered {
    first_sequence: i32,
    last_sequence: i32,
    base_offset: u64,
}

/// What one producer did in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Producer {
    producer_epoch: i16,
    last_timestamp_ms: i64,
    batches: VecDeque<Remembered>,
}

impl Producer {
    /// Fixed layout, little-endian: version 1, count of batches, epoch, zero, time, batches.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![1, self.batches.len() as u8];
        bytes.extend_from_slice(&self.producer_epoch.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.last_timestamp_ms.to_le_bytes());
        for batch in &self.batches {
            bytes.extend_from_slice(&batch.first_sequence.to_le_bytes());
            bytes.extend_from_slice(&batch.last_sequence.to_le_bytes());
            bytes.extend_from_slice(&batch.base_offset.to_le_bytes());
        }
        bytes
    }

    /// The opposite of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(16)?;
        let count = usize::from(head[1]);
        if head[0] != 1 || count > BATCHES_MAX || rest.len() != count * ENCODED_BATCH_SIZE {
            return None;
        }
        let batches = rest
            .chunks_exact(ENCODED_BATCH_SIZE)
            .map(|chunk| {
                Some(Remembered {
                    first_sequence: i32::from_le_bytes(chunk[0..4].try_into().ok()?),
                    last_sequence: i32::from_le_bytes(chunk[4..8].try_into().ok()?),
                    base_offset: u64::from_le_bytes(chunk[8..16].try_into().ok()?),
                })
            })
            .collect::<Option<VecDeque<_>>>()?;
        Some(Self {
            producer_epoch: i16::from_le_bytes(head[2..4].try_into().ok()?),
            last_timestamp_ms: i64::from_le_bytes(head[8..16].try_into().ok()?),
            batches,
        })
    }
}

/// All producers of one partition.
#[derive(Debug)]
pub struct Producers {
    producers: BTreeMap<i64, Producer>,
    /// The highest id of those that were forgotten; ids are granted in order.
    forgotten_up_to: i64,
}

impl Default for Producers {
    fn default() -> Self {
        Self { producers: BTreeMap::new(), forgotten_up_to: -1 }
    }
}

impl Producers {
    /// Takes one producer from stored state.
    pub fn load(&mut self, producer_id: i64, producer: Producer) {
        self.producers.insert(producer_id, producer);
    }

    /// One producer, to be stored.
    pub fn producer(&self, producer_id: i64) -> Option<&Producer> {
        self.producers.get(&producer_id)
    }

    /// What to do with a batch that just arrived. Batches without producer id are always appended.
    pub fn check(&self, batch: &RecordBatch) -> Verdict {
        let producer_id = batch.producer_id();
        if producer_id < 0 {
            return Verdict::Append;
        }
        let Some(producer) = self.producers.get(&producer_id) else {
            // One that was forgotten goes on with any sequence (KIP-360). A new one begins at its
            // beginning: clients send ahead, and what follows a refused first batch must not pass it.
            let may_go_on = producer_id <= self.forgotten_up_to;
            let may_begin = mutation::is_on(Mutation::BeginAnywhere);
            return match batch.base_sequence() {
                0 => Verdict::Append,
                _ if may_go_on || may_begin => Verdict::Append,
                _ => Verdict::Refuse(Refusal::OutOfOrderSequence),
            };
        };
        let takes_old = mutation::is_on(Mutation::TakeOldProducerEpoch);
        if batch.producer_epoch() < producer.producer_epoch && !takes_old {
            return Verdict::Refuse(Refusal::InvalidProducerEpoch);
        }
        let first = batch.base_sequence();
        if batch.producer_epoch() > producer.producer_epoch {
            return match first {
                0 => Verdict::Append,
                _ => Verdict::Refuse(Refusal::OutOfOrderSequence),
            };
        }
        let last = batch.last_sequence();
        let same =
            |known: &&Remembered| known.first_sequence == first && known.last_sequence == last;
        if let Some(known) = producer.batches.iter().find(same) {
            return Verdict::Duplicate { base_offset: known.base_offset };
        }
        let (Some(oldest), Some(newest)) = (producer.batches.front(), producer.batches.back())
        else {
            return Verdict::Append;
        };
        if first == next_sequence(newest.last_sequence) {
            return Verdict::Append;
        }
        // Sequences wrap at i32::MAX, so the distance decides what is older. What is older than
        // all that is remembered was appended only if something was forgotten: to call another
        // batch a duplicate would lose it, for clients take that for success.
        let has_forgotten = producer.batches.len() == BATCHES_MAX;
        let is_remembered = is_before(oldest.first_sequence, first);
        let is_old = is_before(first, newest.last_sequence) && (has_forgotten || is_remembered);
        Verdict::Refuse(match is_old {
            true => Refusal::DuplicateSequence,
            false => Refusal::OutOfOrderSequence,
        })
    }

    /// The highest id of the producers that were forgotten; -1 if none was.
    pub fn forgotten_up_to(&self) -> i64 {
        self.forgotten_up_to
    }

    /// Takes what [`Self::forgotten_up_to`] was from stored state.
    pub fn load_forgotten_up_to(&mut self, producer_id: i64) {
        self.forgotten_up_to = producer_id;
    }

    /// Remembers an appended or replayed batch. Replaying one that is known already changes
    /// nothing, for stored state may be ahead of the frame that is replayed.
    pub fn on_appended(&mut self, batch: &RecordBatch, base_offset: u64, now_ms: i64) {
        if batch.producer_id() < 0 {
            return;
        }
        let producer = self.producers.entry(batch.producer_id()).or_insert_with(|| Producer {
            producer_epoch: batch.producer_epoch(),
            last_timestamp_ms: now_ms,
            batches: VecDeque::with_capacity(BATCHES_MAX),
        });
        if producer.batches.back().is_some_and(|newest| newest.base_offset >= base_offset) {
            return;
        }
        if batch.producer_epoch() != producer.producer_epoch {
            producer.producer_epoch = batch.producer_epoch();
            producer.batches.clear();
        }
        if producer.batches.len() == BATCHES_MAX {
            producer.batches.pop_front();
        }
        producer.batches.push_back(Remembered {
            first_sequence: batch.base_sequence(),
            last_sequence: batch.last_sequence(),
            base_offset,
        });
        producer.last_timestamp_ms = now_ms;
    }

    /// Forgets producers that were silent since `before_ms`; returns their ids.
    pub fn expire(&mut self, before_ms: i64) -> Vec<i64> {
        let expired: Vec<i64> = self
            .producers
            .iter()
            .filter(|(_, producer)| producer.last_timestamp_ms < before_ms)
            .map(|(id, _)| *id)
            .collect();
        for id in &expired {
            self.producers.remove(id);
            self.forgotten_up_to = self.forgotten_up_to.max(*id);
        }
        expired
    }

    /// Ids of all producers.
    pub fn ids(&self) -> impl Iterator<Item = i64> {
        self.producers.keys().copied()
    }

    /// How many producers are remembered.
    pub fn count(&self) -> usize {
        self.producers.len()
    }

    /// For people.
    pub fn facts(&self) -> Vec<ProducerFacts> {
        self.producers
            .iter()
            .map(|(id, producer)| ProducerFacts {
                producer_id: *id,
                producer_epoch: producer.producer_epoch,
                last_sequence: producer.batches.back().map_or(-1, |batch| batch.last_sequence),
                last_timestamp_ms: producer.last_timestamp_ms,
            })
            .collect()
    }
}

/// Sequence numbers wrap from `i32::MAX` to 0.
fn next_sequence(sequence: i32) -> i32 {
    sequence.checked_add(1).unwrap_or(0)
}

/// Whether `first` lies at or before `last` on the wrapping circle of sequence numbers.
fn is_before(first: i32, last: i32) -> bool {
    let distance = (i64::from(last) - i64::from(first)).rem_euclid(1 << 31);
    distance < 1 << 30
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, NewRecord};

    fn batch(producer_epoch: i16, base_sequence: i32, count: usize) -> RecordBatch {
        let mut builder = BatchBuilder::new().producer(7, producer_epoch, base_sequence);
        for _ in 0..count {
            builder.push(NewRecord { value: Some(b"v"), ..NewRecord::default() });
        }
        builder.build()
    }

    fn append(producers: &mut Producers, batch: &RecordBatch, base_offset: u64) {
        assert_eq!(producers.check(batch), Verdict::Append);
        producers.on_appended(batch, base_offset, 1_000);
    }

    #[test]
    fn a_repeated_batch_is_answered_with_its_first_offset() {
        let mut producers = Producers::default();
        append(&mut producers, &batch(0, 0, 3), 100);
        append(&mut producers, &batch(0, 3, 2), 103);
        let repeated = producers.check(&batch(0, 0, 3));
        assert_eq!(repeated, Verdict::Duplicate { base_offset: 100 });
        // The same first sequence with another count is not the same batch.
        let other = producers.check(&batch(0, 0, 2));
        assert_eq!(other, Verdict::Refuse(Refusal::DuplicateSequence));
    }

    #[test]
    fn a_gap_is_refused_and_an_old_batch_is_a_duplicate() {
        let mut producers = Producers::default();
        for number in 0..7 {
            append(&mut producers, &batch(0, number, 1), number as u64);
        }
        let gap = producers.check(&batch(0, 8, 1));
        assert_eq!(gap, Verdict::Refuse(Refusal::OutOfOrderSequence));
        // Five are remembered, 2 to 6; 1 is older.
        assert_eq!(producers.check(&batch(0, 2, 1)), Verdict::Duplicate { base_offset: 2 });
        let old = producers.check(&batch(0, 1, 1));
        assert_eq!(old, Verdict::Refuse(Refusal::DuplicateSequence));
    }

    #[test]
    fn a_new_epoch_starts_at_zero_and_fences_the_old_one() {
        let mut producers = Producers::default();
        append(&mut producers, &batch(0, 0, 5), 0);
        let late = producers.check(&batch(1, 5, 1));
        assert_eq!(late, Verdict::Refuse(Refusal::OutOfOrderSequence));
        append(&mut producers, &batch(1, 0, 1), 5);
        let fenced = producers.check(&batch(0, 5, 1));
        assert_eq!(fenced, Verdict::Refuse(Refusal::InvalidProducerEpoch));
    }

    #[test]
    fn a_new_producer_begins_at_zero_so_that_nothing_passes_its_first_batch() {
        let producers = Producers::default();
        let ahead = producers.check(&batch(0, 3, 1));
        assert_eq!(ahead, Verdict::Refuse(Refusal::OutOfOrderSequence));
        assert_eq!(producers.check(&batch(0, 0, 3)), Verdict::Append);
    }

    #[test]
    fn a_batch_that_was_passed_is_not_a_duplicate() {
        let mut producers = Producers::default();
        producers.load_forgotten_up_to(7);
        append(&mut producers, &batch(0, 3, 1), 0);
        let passed = producers.check(&batch(0, 0, 3));
        assert_eq!(passed, Verdict::Refuse(Refusal::OutOfOrderSequence));
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let mut producers = Producers::default();
        producers.load_forgotten_up_to(7);
        append(&mut producers, &batch(0, i32::MAX, 1), 0);
        append(&mut producers, &batch(0, 0, 1), 1);
        assert_eq!(producers.check(&batch(0, i32::MAX, 1)), Verdict::Duplicate { base_offset: 0 });
        let gap = producers.check(&batch(0, 2, 1));
        assert_eq!(gap, Verdict::Refuse(Refusal::OutOfOrderSequence));
    }

    #[test]
    fn state_survives_encoding_and_a_replay_of_what_it_knows() {
        let mut producers = Producers::default();
        append(&mut producers, &batch(0, 0, 3), 100);
        append(&mut producers, &batch(0, 3, 2), 103);
        let stored = producers.producer(7).map(Producer::encode).unwrap_or_default();
        let mut restored = Producers::default();
        restored.load(7, Producer::decode(&stored).expect("just encoded"));
        restored.on_appended(&batch(0, 0, 3), 100, 1_000);
        assert_eq!(restored.producer(7), producers.producer(7));
        for end in 0..stored.len() {
            assert_eq!(Producer::decode(&stored[..end]), None);
        }
    }

    #[test]
    fn silent_producers_expire_and_may_go_on() {
        let mut producers = Producers::default();
        append(&mut producers, &batch(0, 0, 1), 0);
        assert_eq!(producers.expire(1_000), [0_i64; 0]);
        assert_eq!(producers.expire(1_001), [7]);
        assert_eq!(producers.check(&batch(0, 99, 1)), Verdict::Append);
        // Ids are granted in order, so one that is higher is not among the forgotten.
        let mut newer = BatchBuilder::new().producer(8, 0, 99);
        newer.push(NewRecord { value: Some(b"v"), ..NewRecord::default() });
        let verdict = producers.check(&newer.build());
        assert_eq!(verdict, Verdict::Refuse(Refusal::OutOfOrderSequence));
    }
}
