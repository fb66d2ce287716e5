//! What an operator is, and what it sees of the world: its key's state, event time, timers, the
//! step's clock and random numbers, and a way out for what it makes. Nothing else may decide what it
//! does, or a replay would do something else.

use std::error::Error;
use std::fmt;

use bytes::Bytes;

use super::key::{NameId, TimeDomain, Timer, state_prefix};
use super::run::{Headers, Run, check_time};
use super::state::States;
use super::stream::SideOutput;

/// An operator's error, of any type; the record that led to it goes to the dead-letter topic.
pub struct OperatorError(Box<dyn Error + Send + Sync>);

// It is no `Error` itself, as `anyhow::Error` is none, so that every error becomes one by `?`.
impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for OperatorError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl fmt::Debug for OperatorError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

impl fmt::Display for OperatorError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

/// Takes the records of one key after the other, with state for each key.
///
/// It has no state of its own: `&self` holds handles and settings. What it does may depend on the
/// record, the key's state and the context alone.
pub trait Operator: Send + Sync + 'static {
    /// Key of the stream.
    type Key;
    /// Values of the stream.
    type In;
    /// Values that it makes.
    type Out: Clone + Send + 'static;

    /// Declares all states that it uses.
    fn declare(&self, _states: &mut States<'_>) {}

    /// Whether it looks at the watermark or sets timers by event time. Shards do not tell each other
    /// how far event time is where nobody does.
    fn uses_event_time(&self) -> bool {
        true
    }

    /// A record of a key.
    fn on_record(
        &self,
        context: &mut Context<'_, '_, Self::Out>,
        key: &Self::Key,
        value: Self::In,
    ) -> Result<(), OperatorError>;

    /// A timer of the key that was set and is due.
    fn on_timer(
        &self,
        _context: &mut Context<'_, '_, Self::Out>,
        _key: &Self::Key,
        _timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        Ok(())
    }
}

/// A timer that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FiredTimer {
    /// Which time it goes by.
    pub domain: TimeDomain,
    /// The time that it was set for, in milliseconds since 1970.
    pub time_ms: i64,
}

/// What is known of an operator in its topology.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) topology: NameId,
    pub(super) operator: NameId,
    pub(super) name: String,
    /// Its number.
    pub(super) index: usize,
}

/// A call of an operator.
pub struct Context<'c, 'r, O> {
    pub(super) run: &'c mut Run<'r>,
    pub(super) identity: &'c Identity,
    pub(super) key: &'c Bytes,
    pub(super) out: &'c dyn Fn(&mut Run<'_>, O),
}

impl<O> Context<'_, '_, O> {
    /// Passes a value on, with the time of the record or timer.
    pub fn emit(&mut self, value: O) {
        (self.out)(self.run, value);
    }

    /// Passes a value on with a time of its own, in milliseconds since 1970. One beyond
    /// [`TIME_MS_MAX`](super::TIME_MS_MAX) fails the call.
    pub fn emit_at(&mut self, value: O, timestamp_ms: i64) {
        if let Err(reason) = check_time(timestamp_ms) {
            return self.run.fail_with(&reason);
        }
        let (partition, key) = (self.run.partition(), self.key.clone());
        let out = self.out;
        self.run.within(partition, key, timestamp_ms, |run| out(run, value));
    }

    /// Passes a value to a side output.
    pub fn emit_to<T: Clone + Send + 'static>(&mut self, side: &SideOutput<T>, value: T) {
        side.send(self.run, value);
    }

    /// Counts the record as one that came too late.
    pub fn count_late(&mut self) {
        self.run.count_late();
    }

    /// The step's clock, in milliseconds since 1970: the same for all records of a step.
    pub fn now_ms(&self) -> i64 {
        self.run.circumstances().now_ms
    }

    /// A random number; a replay draws the same one.
    pub fn random(&mut self) -> u64 {
        self.run.draw()
    }

    /// The sequence of the frame that this is part of.
    pub fn step(&self) -> u64 {
        self.run.circumstances().step
    }

    /// Event time of the record, or of the timer, in milliseconds since 1970.
    pub fn timestamp_ms(&self) -> i64 {
        self.run.timestamp_ms()
    }

    /// Event time up to which everything is thought to have come; `i64::MIN` at first.
    pub fn watermark_ms(&self) -> i64 {
        self.run.circumstances().watermark_ms(self.identity.index, self.run.partition())
    }

    /// Headers of the record that led here; none in a timer.
    pub fn headers(&self) -> &Headers {
        self.run.headers()
    }

    /// Sets a timer for this key, once for each time and domain however often it is set. One that
    /// is due already fires right after this record.
    pub fn set_timer(&mut self, domain: TimeDomain, time_ms: i64) {
        let timer = self.timer(domain, time_ms);
        self.run.set_timer(&timer);
    }

    /// Forgets a timer of this key, if it is set.
    pub fn forget_timer(&mut self, domain: TimeDomain, time_ms: i64) {
        let timer = self.timer(domain, time_ms);
        self.run.forget_timer(&timer);
    }

    fn timer(&self, domain: TimeDomain, time_ms: i64) -> Timer {
        Timer {
            topology: self.identity.topology,
            domain,
            time_ms,
            operator: self.identity.operator,
            partition: self.run.partition(),
            key: self.key.to_vec(),
        }
    }

    pub(super) fn state_key(&self, state: NameId) -> Vec<u8> {
        state_prefix(state, self.run.partition(), self.key)
    }

    pub(super) fn stored(&self, key: &[u8]) -> Option<&[u8]> {
        self.run.value(key)
    }

    pub(super) fn store(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.run.set(key, value);
    }
}
