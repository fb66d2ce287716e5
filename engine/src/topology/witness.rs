//! Which call of user code runs now, written where it outlives the process.
//!
//! A record can end the process: a stack that overflows, an abort in a C library, memory that runs out.
//! It would do so again at each start. A call is noted before it begins and taken back when it has
//! ended, so what is still there at a start ended the process before. If that was the same call
//! [`ENDS_MAX`] times in a row, its topology is not to run.
//!
//! A note is a few stores into memory. The runtime lends a page of a file that is mapped; what is in it
//! outlives the process, though not the power, and need not: a machine that fails is not the record's
//! fault. Others than the runtime have none. Persisted: see `docs/FORMAT.md`.

use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use super::key::{NameId, Timer};
use super::stored::{Position, StoredCall};
use super::{Plan, TimeDomain};

/// Ends in a row at the same call after which its topology does not run.
pub const ENDS_MAX: u64 = 3;

/// How the memory begins that holds a witness: a name, and the version of what follows.
const MAGIC: [u64; 2] = [u64::from_le_bytes(*b"TMWITNES"), 1];

/// Calls that are known to end the process beside the last one that does. The topology of one more runs
/// again when another is counted.
const STOPPED_MAX: usize = 8;

/// Numbers that tell a call apart.
const CALL_WORDS: usize = 6;
/// No call.
const NONE: [u64; CALL_WORDS] = [0; CALL_WORDS];

const RECORD: u64 = 1;
const ARRIVAL: u64 = 2;
const TIMER: u64 = 3;
const RESULT: u64 = 4;

/// A call of user code: kind, topology, place, partition, number, more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call([u64; CALL_WORDS]);

impl Call {
    /// Of a record of a source.
    pub fn record(topology: NameId, topic: NameId, partition: u32, offset: u64) -> Self {
        Self([RECORD, topology.0, topic.0, partition.into(), offset, 0])
    }

    /// Of a record that a shard sent to a stage, by where it is in the sender's outbox.
    pub fn arrival(
        topology: NameId,
        (stage, partition): (NameId, u32),
        (sender, position): (u16, Position),
    ) -> Self {
        let place = u64::from(sender) << 32 | u64::from(partition);
        let record = u64::from(position.part) << 32 | u64::from(position.record);
        Self([ARRIVAL, topology.0, stage.0, place, position.sequence, record])
    }

    /// Of a timer.
    pub fn timer(timer: &Timer) -> Self {
        let place = u64::from(timer.domain as u8) << 32 | u64::from(timer.partition);
        let (topology, operator) = (timer.topology.0, timer.operator.0);
        Self([TIMER, topology, operator, place, timer.time_ms as u64, hash(&timer.key)])
    }

    /// Of the result of a blocking call.
    pub fn result(topology: NameId, called: &StoredCall) -> Self {
        let (operator, partition) = (called.operator.0, called.partition.into());
        Self([RESULT, topology.0, operator, partition, called.sequence, hash(&called.key)])
    }

    /// Its topology.
    pub fn topology(&self) -> NameId {
        NameId(self.0[1])
    }

    /// What is called, for people.
    pub fn shown(&self, plan: &Plan) -> String {
        let [kind, _, place, partition, number, _] = self.0;
        let index = partition as u32;
        match kind {
            RECORD => {
                let topic = plan.sources().find(|topic| NameId::of(&[topic]).0 == place);
                format!("the record {}-{index}@{number}", topic.unwrap_or("(unknown topic)"))
            }
            ARRIVAL => {
                let stage = plan.stage(NameId(place)).and_then(|stage| plan.stages().nth(stage));
                let (stage, sender) = (stage.unwrap_or("(unknown)"), partition >> 32);
                format!("a record for key {stage}-{index} in entry {number} of shard {sender}")
            }
            _ => {
                let operator = plan.operator(NameId(place));
                let operator = operator.map_or("(unknown)", |it| &plan.operator_names()[it]);
                if kind == RESULT {
                    return format!("result {number} of operator {operator} in partition {index}");
                }
                let is_event = partition >> 32 == u64::from(TimeDomain::Event as u8);
                let domain = if is_event { "event time" } else { "the clock" };
                format!("a timer of operator {operator} at {} ms by {domain}", number as i64)
            }
        }
    }
}

fn hash(key: &[u8]) -> u64 {
    key.iter().fold(key.len() as u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The note of one shard. Numbers are little-endian.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Witness {
    magic: [AtomicU64; 2],
    /// The call that runs. Its kind is written last and taken back first.
    running: [AtomicU64; CALL_WORDS],
    /// The call that ended the process last.
    counted: [AtomicU64; CALL_WORDS],
    /// How often in a row it did.
    ends: AtomicU64,
    /// Calls that did so too often before it.
    stopped: [[AtomicU64; CALL_WORDS]; STOPPED_MAX],
}

const _: () = assert!(size_of::<Witness>() == 504);

fn load(word: &AtomicU64) -> u64 {
    u64::from_le(word.load(Ordering::Relaxed))
}

fn store(word: &AtomicU64, value: u64) {
    word.store(value.to_le(), Ordering::Relaxed);
}

fn load_all(words: &[AtomicU64; CALL_WORDS]) -> [u64; CALL_WORDS] {
    std::array::from_fn(|index| load(&words[index]))
}

fn store_all(words: &[AtomicU64; CALL_WORDS], values: [u64; CALL_WORDS]) {
    for (word, value) in words.iter().zip(values) {
        store(word, value);
    }
}

impl Witness {
    /// A call begins.
    #[inline]
    pub fn enter(&self, call: Call) {
        for (word, value) in self.running.iter().zip(call.0).skip(1) {
            store(word, value);
        }
        // What the kernel keeps of a process that dies is what the processor had done, in this order.
        compiler_fence(Ordering::SeqCst);
        store(&self.running[0], call.0[0]);
        compiler_fence(Ordering::SeqCst);
    }

    /// The call has ended.
    #[inline]
    pub fn leave(&self) {
        compiler_fence(Ordering::SeqCst);
        store(&self.running[0], 0);
        compiler_fence(Ordering::SeqCst);
    }

    /// A process starts: counts the call that the one before ended in, if it did. The calls that have
    /// ended so many processes in a row that their topologies are not to run, and how many.
    pub fn start(&self) -> Vec<(Call, u64)> {
        if [load(&self.magic[0]), load(&self.magic[1])] != MAGIC {
            // New, or written by a build that knows more: nothing is lost by beginning anew.
            store_all(&self.running, NONE);
            self.forget();
            store(&self.magic[0], MAGIC[0]);
            store(&self.magic[1], MAGIC[1]);
        }
        let ended = load_all(&self.running);
        if ended[0] != 0 {
            let counted = load_all(&self.counted);
            let is_same = ended == counted;
            if !is_same && load(&self.ends) >= ENDS_MAX {
                // Another topology goes on without that one, and ends the process as well.
                if let Some(free) = self.stopped.iter().find(|call| load(&call[0]) == 0) {
                    store_all(free, counted);
                }
            }
            store(&self.ends, if is_same { load(&self.ends).saturating_add(1) } else { 1 });
            store_all(&self.counted, ended);
            store_all(&self.running, NONE);
        }
        let stopped = self.stopped.iter().map(load_all).filter(|call| call[0] != 0);
        let stopped = stopped.map(|call| (Call(call), ENDS_MAX));
        let ends = load(&self.ends);
        let counted = (ends >= ENDS_MAX).then(|| (Call(load_all(&self.counted)), ends));
        stopped.chain(counted).collect()
    }

    /// The process ends as it should: all counts begin anew.
    pub fn forget(&self) {
        store(&self.ends, 0);
        store_all(&self.counted, NONE);
        self.stopped.iter().for_each(|call| store_all(call, NONE));
    }
}

#[cfg(test)]
impl Witness {
    /// What a process would find that starts now.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::default();
        store(&copy.magic[0], load(&self.magic[0]));
        store(&copy.magic[1], load(&self.magic[1]));
        store_all(&copy.running, load_all(&self.running));
        store_all(&copy.counted, load_all(&self.counted));
        store(&copy.ends, load(&self.ends));
        for (copy, call) in copy.stopped.iter().zip(&self.stopped) {
            store_all(copy, load_all(call));
        }
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(offset: u64) -> Call {
        Call::record(NameId(1), NameId(2), 3, offset)
    }

    /// Runs the script: `die N` is an end inside of the call of offset N, `pass N` a call that returns,
    /// `die` an end outside of all calls, `stop` a clean one. How often the calls ended the process
    /// that the starts found to be too often.
    fn check(script: &str, expected: &[Option<(u64, u64)>]) {
        let mut witness = Witness::default();
        assert_eq!(witness.start(), [], "a new one");
        let mut found = Vec::new();
        for step in script.split(", ") {
            let (verb, offset) = step.split_once(' ').unwrap_or((step, ""));
            match (verb, offset.parse()) {
                ("pass", Ok(offset)) => {
                    witness.enter(call(offset));
                    witness.leave();
                    continue;
                }
                ("die", Ok(offset)) => witness.enter(call(offset)),
                ("die", Err(_)) => {}
                _ => witness.forget(),
            }
            witness = witness.copy();
            let too_often = witness.start();
            let offset = |call: Call| (0..9).find(|it| self::call(*it) == call).expect("ours");
            found.push(too_often.first().map(|(call, ends)| (offset(*call), *ends)));
        }
        assert_eq!(found, expected, "{script}");
    }

    #[test]
    fn a_call_that_ended_three_processes_in_a_row_is_told() {
        check("die 7, die 7, die 7", &[None, None, Some((7, 3))]);
        check("pass 6, die 7, pass 6, die 7, pass 6, die 7", &[None, None, Some((7, 3))]);
        // It is told until a clean stop, for nothing was mended.
        check("die 7, die 7, die 7, die", &[None, None, Some((7, 3)), Some((7, 3))]);
        check("die 7, die 7, die 7, die 7", &[None, None, Some((7, 3)), Some((7, 4))]);
    }

    #[test]
    fn another_call_or_a_clean_stop_begins_anew_and_an_end_elsewhere_does_not_count() {
        check("die 7, die 7, die 6, die 7, die 7", &[None; 5]);
        check("die 7, die 7, stop, die 7, die 7", &[None; 5]);
        check("die 7, die 7, die, die 7", &[None, None, None, Some((7, 3))]);
        check("pass 7, die, pass 7, die, pass 7, die", &[None; 3]);
        check("die 7, die 7, die 7, stop, die 7", &[None, None, Some((7, 3)), None, None]);
    }

    #[test]
    fn one_that_is_told_stays_told_while_another_is_counted() {
        let told = Some((7, 3));
        check("die 7, die 7, die 7, die 6, die 6", &[None, None, told, told, told]);
        let mut witness = Witness::default();
        for offset in [7, 7, 7, 6, 6, 6] {
            witness.start();
            witness.enter(call(offset));
            witness = witness.copy();
        }
        assert_eq!(witness.start(), [(call(7), 3), (call(6), 3)]);
        witness.forget();
        assert_eq!(witness.start(), []);
    }

    #[test]
    fn calls_differ_by_all_that_tells_inputs_apart() {
        let timer = |domain, time_ms, key: &[u8]| Timer {
            topology: NameId(1),
            domain,
            operator: NameId(2),
            time_ms,
            partition: 3,
            key: key.to_vec(),
        };
        let at = |part, record| Position { sequence: 4, part, record };
        let stage = (NameId(2), 3);
        let calls = [
            call(4),
            call(5),
            Call::record(NameId(1), NameId(2), 2, 4),
            Call::record(NameId(1), NameId(3), 3, 4),
            Call::record(NameId(2), NameId(2), 3, 4),
            Call::arrival(NameId(1), stage, (0, at(0, 0))),
            Call::arrival(NameId(1), stage, (1, at(0, 0))),
            Call::arrival(NameId(1), stage, (0, at(0, 1))),
            Call::arrival(NameId(1), stage, (0, at(1, 0))),
            Call::arrival(NameId(1), (NameId(2), 4), (0, at(0, 0))),
            Call::timer(&timer(TimeDomain::Event, 4, b"k")),
            Call::timer(&timer(TimeDomain::Processing, 4, b"k")),
            Call::timer(&timer(TimeDomain::Event, 5, b"k")),
            Call::timer(&timer(TimeDomain::Event, 4, b"l")),
            Call::timer(&timer(TimeDomain::Event, 4, b"")),
        ];
        for (index, call) in calls.iter().enumerate() {
            assert!(!calls[..index].contains(call), "{call:?}");
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let witness = Witness::default();
        witness.start();
        witness.enter(call(7));
        let witness = witness.copy();
        witness.start();
        witness.enter(call(8));
        let words = [&witness.magic[..], &witness.running, &witness.counted];
        let mut bytes: Vec<u8> = words
            .into_iter()
            .flatten()
            .flat_map(|it| it.load(Ordering::Relaxed).to_ne_bytes())
            .collect();
        bytes.extend(witness.ends.load(Ordering::Relaxed).to_ne_bytes());
        let mut expected = b"TMWITNES".to_vec();
        for word in [1_u64, 1, 1, 2, 3, 8, 0, 1, 1, 2, 3, 7, 0, 1] {
            expected.extend(word.to_le_bytes());
        }
        assert_eq!(bytes, expected);
    }

    #[test]
    fn what_is_not_ours_begins_anew() {
        let witness = Witness::default();
        store_all(&witness.running, call(7).0);
        store_all(&witness.counted, call(7).0);
        store(&witness.ends, 9);
        assert_eq!(witness.start(), []);
        assert_eq!(load(&witness.ends), 0);
    }
}
