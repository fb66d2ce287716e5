//! Blocking calls of one task: which records wait, which calls are open, which results wait for their
//! turn. All of it follows from the state, but for what is open, which is asked for again.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::{Rejected, Taken, Task, WORDS_SIZE_MAX};
use crate::effect::{CallFault, CallRequest, CallResult};
use crate::state::State;
use crate::topology::blocking::{Found, Line, Waiting};
use crate::topology::run::{Failure, NewWaiting};
use crate::topology::stored::StoredCall;
use crate::topology::witness::Call;

/// Records that wait for calls before a task is given no more of them; and bytes of these.
const WAITING_MAX: usize = 10_000;
const WAITING_SIZE_MAX: usize = 8 << 20;

/// The calls. A line with records is in one of three places: ready, open, or among the results.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Lines whose first record is to be called for, the one that waits longest first.
    ready: VecDeque<Line>,
    /// Lines whose first record is called for, by the number of the call.
    open: HashMap<u64, Line>,
    /// What came of calls, and was not taken yet.
    results: VecDeque<(Line, CallResult)>,
    /// Calls so far.
    number: u64,
    /// For each operator the times of its records that wait, with how many have it.
    times: BTreeMap<usize, BTreeMap<i64, usize>>,
    /// Records that wait.
    count: usize,
    /// Bytes of these.
    size: usize,
}

/// A call that is to be made.
#[derive(Debug)]
pub struct Asked {
    /// Its number among those of the task.
    pub number: u64,
    /// What to call.
    pub request: CallRequest,
}

impl Calls {
    /// Up to where event time of an operator may go, of where it could go: not to the time of a record
    /// that waits for the operator, for the result has that time.
    pub(super) fn held_ms(&self, operator: usize, time_ms: i64) -> i64 {
        let oldest = self.times.get(&operator).and_then(BTreeMap::first_key_value);
        oldest.map_or(time_ms, |(oldest_ms, _)| time_ms.min(oldest_ms.saturating_sub(1)))
    }

    pub(super) fn push(&mut self, waiting: NewWaiting) {
        let NewWaiting { line, time_ms, size, is_first } = waiting;
        self.count += 1;
        self.size += size;
        *self.times.entry(line.operator).or_default().entry(time_ms).or_default() += 1;
        if is_first {
            self.ready.push_back(line);
        }
    }

    /// The first record of a line waits no more.
    fn remove(&mut self, operator: usize, time_ms: i64, size: usize) {
        self.count -= 1;
        self.size -= size;
        let times = self.times.get_mut(&operator).expect("it waited");
        let count = times.get_mut(&time_ms).expect("it waited");
        *count -= 1;
        if *count == 0 {
            times.remove(&time_ms);
        }
    }
}

impl Task {
    /// Finds the records that wait since before the start.
    pub fn load_calls(&mut self, state: &State) -> Result<(), String> {
        let mut before: Option<Line> = None;
        for found in self.plan.all_waiting(state) {
            let known = found.and_then(|found| Some((found.time_ms()?, found)));
            let Some((time_ms, found)) = known else {
                return Err("a record that waits for a call cannot be read".to_owned());
            };
            let (size, line) = (found.size(), found.line);
            let is_first = before.replace(line.clone()).is_none_or(|before| before != line);
            self.calls.push(NewWaiting { line, time_ms, size, is_first });
        }
        Ok(())
    }

    /// Whether so many records wait that it is to be given no more that may wait as well.
    pub fn has_many_calls(&self) -> bool {
        self.calls.count >= WAITING_MAX || self.calls.size >= WAITING_SIZE_MAX
    }

    /// Records that wait for calls or for the results of these.
    pub fn waiting_calls(&self) -> usize {
        self.calls.count
    }

    /// Whether results wait for their turn.
    pub fn has_results(&self) -> bool {
        !self.calls.results.is_empty()
    }

    /// The next call that is to be made. What it is about has to be durable before.
    pub fn next_call(&mut self, state: &State) -> Option<Asked> {
        let line = self.calls.ready.pop_front()?;
        let (_, waiting) = self.first_of(state, &line);
        let Waiting { version, value, .. } = waiting;
        let (operator, key) = (line.operator, line.key.clone());
        self.calls.number += 1;
        let number = self.calls.number;
        self.calls.open.insert(number, line);
        Some(Asked { number, request: CallRequest { operator, key, version, value } })
    }

    /// A call has ended: its result waits for its turn.
    pub fn on_result(&mut self, number: u64, result: CallResult) {
        if let Some(line) = self.calls.open.remove(&number) {
            self.calls.results.push_back((line, result));
        }
    }

    /// Takes the next result: its record waits no more, and what follows from the result is made.
    /// `None` if there is no result.
    pub fn take_result(&mut self, state: &mut State, room: usize) -> Option<Taken> {
        let (line, result) = self.calls.results.pop_front()?;
        let (found, waiting) = self.first_of(state, &line);
        let (operator, time_ms, size) = (line.operator, waiting.timestamp_ms, found.size());
        let record = waiting.record(line.key.clone(), found.sequence);
        let mut called = self.stored(&found, &result);
        let outcome = match &result {
            Ok(_) => {
                let circumstances = &self.circumstances;
                self.enter(|| Call::result(self.plan.id(), &called));
                let outcome =
                    self.plan.on_called(state, circumstances, &found, &record, called.clone());
                self.leave();
                outcome
            }
            Err(fault) => Err(self.failure(operator, fault)),
        };
        let taken = match outcome {
            Ok(wanted) => self.take(state, wanted, room),
            Err(failure) => {
                if called.size() > self.circumstances.size_max {
                    called.result = Err(shortened(failure.to_string()));
                }
                let rejected = Rejected::of_call(&self.plan, &line, record, failure);
                let taken = self.reject(rejected, room);
                if taken == Taken::Done {
                    self.made.size += called.size();
                    self.made.called.push(called);
                    self.change(state, found.entry, None);
                }
                taken
            }
        };
        match taken {
            Taken::Done => {
                self.figures.counts.calls += 1;
                self.calls.remove(operator, time_ms, size);
                if self.plan.first_waiting(state, &line).is_some() {
                    self.calls.ready.push_back(line);
                }
            }
            // It rests, and then the call may do better.
            Taken::NoRoom if self.stuck.is_some() => self.calls.ready.push_front(line),
            Taken::NoRoom => self.calls.results.push_front((line, result)),
        }
        Some(taken)
    }

    /// The first record of a line that has one.
    fn first_of(&self, state: &State, line: &Line) -> (Found, Waiting) {
        let found = self.plan.first_waiting(state, line);
        let found = found.and_then(|found| Some((Waiting::decode(&found.stored)?, found)));
        let (waiting, found) = found.expect("a line is known while it has records");
        (found, waiting)
    }

    fn failure(&self, operator: usize, fault: &CallFault) -> Failure {
        let operator = self.plan.operator_names()[operator].clone();
        match fault {
            CallFault::Failed(reason) => Failure::Operator { operator, reason: reason.clone() },
            CallFault::Panicked(reason) => Failure::Panic { operator, reason: reason.clone() },
        }
    }

    /// What the frame is to say of a result.
    fn stored(&self, found: &Found, result: &CallResult) -> StoredCall {
        let Found { line, sequence, .. } = found;
        let words = |fault: CallFault| shortened(self.failure(line.operator, &fault).to_string());
        StoredCall {
            operator: self.plan.operator_id(line.operator),
            partition: line.partition,
            sequence: *sequence,
            key: line.key.clone(),
            result: result.clone().map_err(words),
        }
    }
}

fn shortened(mut words: String) -> String {
    words.truncate(words.floor_char_boundary(WORDS_SIZE_MAX));
    words
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn waiting(key: &'static str, time_ms: i64, is_first: bool) -> NewWaiting {
        let line = Line { operator: 1, partition: 0, key: Bytes::from_static(key.as_bytes()) };
        NewWaiting { line, time_ms, size: 10, is_first }
    }

    #[test]
    fn event_time_stays_before_the_oldest_record_that_waits() {
        let mut calls = Calls::default();
        assert_eq!(calls.held_ms(1, 100), 100);
        for (key, time_ms, is_first) in [("a", 50, true), ("b", 30, true), ("a", 30, false)] {
            calls.push(waiting(key, time_ms, is_first));
        }
        assert_eq!((calls.held_ms(1, 100), calls.held_ms(1, 20)), (29, 20));
        assert_eq!(calls.held_ms(0, 100), 100, "another operator has none");
        assert_eq!(calls.ready.len(), 2, "the second of a key comes after the first");
        calls.remove(1, 30, 10);
        assert_eq!(calls.held_ms(1, 100), 29, "one more has that time");
        calls.remove(1, 30, 10);
        assert_eq!(calls.held_ms(1, 100), 49);
        calls.remove(1, 50, 10);
        assert_eq!((calls.held_ms(1, 100), calls.count, calls.size), (100, 0, 0));
    }

    #[test]
    fn a_record_of_the_oldest_time_holds_it_there() {
        let mut calls = Calls::default();
        calls.push(waiting("a", i64::MIN, true));
        assert_eq!(calls.held_ms(1, 5), i64::MIN);
    }
}
