//! Operators that are there already, each under the name that streams and tables know it by.

use std::marker::PhantomData;
use std::time::Duration;

use super::codec::{Codec, Int64};
use super::context::{Context, FiredTimer, Operator, OperatorError};
use super::key::TimeDomain;
use super::keyed::Keyed;
use super::run::duration_ms;
use super::state::{States, ValueState};

impl<K: Codec, V: Clone + Send + Sync + 'static> Keyed<K, V>
where
    K::Value: Sync,
{
    /// How many records each key had; the new count for every record.
    pub fn count(&self, name: &str) -> Keyed<K, i64> {
        self.aggregate(name, Int64, || 0, |count, _, _| *count += 1)
    }

    /// One value for each key, made of those before: the new one for every record.
    pub fn aggregate<C: Codec>(
        &self,
        name: &str,
        codec: C,
        initial: impl Fn() -> C::Value + Send + Sync + 'static,
        add: impl Fn(&mut C::Value, &K::Value, V) + Send + Sync + 'static,
    ) -> Keyed<K, C::Value> {
        let state = ValueState::new("aggregate", codec);
        let (initial, add) = (Box::new(initial), Box::new(add));
        self.process(name, Aggregate::<K::Value, V, C> { state, initial, add })
    }

    /// Two values of a key become one: the new one for every record, the first as it is.
    pub fn reduce<C: Codec<Value = V>>(
        &self,
        name: &str,
        codec: C,
        both: impl Fn(V, V) -> V + Send + Sync + 'static,
    ) -> Keyed<K, V> {
        let state = ValueState::new("reduced", codec);
        self.process(name, Reduce::<K::Value, C> { state, both: Box::new(both), of: PhantomData })
    }

    /// Of the records of a key, those that are at least this far in event time from the last one
    /// that passed. What is remembered of a key goes when event time is as far beyond it.
    pub fn dedup(&self, name: &str, within: Duration) -> Keyed<K, V> {
        let seen = ValueState::new("seen", Int64);
        let within_ms = duration_ms(within);
        self.process(name, Dedup { seen, within_ms, of: PhantomData })
    }

    /// The records of each key that rank highest, best first and at most so many: all of them, each
    /// time that they change. Of equal ones those that came first stay.
    pub fn top_n<C: Codec<Value = Vec<V>>, R: Ord + 'static>(
        &self,
        name: &str,
        count: usize,
        codec: C,
        rank: impl Fn(&V) -> R + Send + Sync + 'static,
    ) -> Keyed<K, Vec<V>> {
        let best = ValueState::new("best", codec);
        self.process(name, TopN { best, count, rank: Box::new(rank), of: PhantomData })
    }
}

struct Dedup<K, V> {
    seen: ValueState<Int64>,
    within_ms: i64,
    of: PhantomData<fn() -> (K, V)>,
}

impl<K: 'static, V: Clone + Send + 'static> Operator for Dedup<K, V> {
    type Key = K;
    type In = V;
    type Out = V;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.seen);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, V>,
        _key: &K,
        value: V,
    ) -> Result<(), OperatorError> {
        let time_ms = context.timestamp_ms();
        let seen_ms = self.seen.get(context)?;
        let is_near =
            |seen_ms: i64| time_ms.saturating_sub(seen_ms).saturating_abs() < self.within_ms;
        if seen_ms.is_some_and(is_near) {
            return Ok(());
        }
        // An older one that is far enough passes, and says nothing of those to come.
        if seen_ms.is_none_or(|seen_ms| seen_ms < time_ms) {
            self.seen.set(context, &time_ms)?;
            context.set_timer(TimeDomain::Event, time_ms.saturating_add(self.within_ms));
        }
        context.emit(value);
        Ok(())
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, V>,
        _key: &K,
        timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        let is_over = |seen_ms: i64| seen_ms.saturating_add(self.within_ms) <= timer.time_ms;
        match self.seen.get(context)?.is_some_and(is_over) {
            true => self.seen.clear(context),
            false => Ok(()),
        }
    }
}

struct TopN<K, V, C: Codec, R> {
    best: ValueState<C>,
    count: usize,
    rank: Box<dyn Fn(&V) -> R + Send + Sync>,
    of: PhantomData<fn() -> K>,
}

impl<K, V, C, R> Operator for TopN<K, V, C, R>
where
    K: 'static,
    V: Clone + Send + Sync + 'static,
    C: Codec<Value = Vec<V>>,
    R: Ord + 'static,
{
    type Key = K;
    type In = V;
    type Out = Vec<V>;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.best);
    }

    fn uses_event_time(&self) -> bool {
        false
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, Vec<V>>,
        _key: &K,
        value: V,
    ) -> Result<(), OperatorError> {
        let mut best = self.best.get(context)?.unwrap_or_default();
        let rank = (self.rank)(&value);
        let place = best.partition_point(|other| (self.rank)(other) >= rank);
        if place >= self.count {
            return Ok(());
        }
        best.insert(place, value);
        best.truncate(self.count);
        self.best.set(context, &best)?;
        context.emit(best);
        Ok(())
    }
}

type Add<K, V, A> = Box<dyn Fn(&mut A, &K, V) + Send + Sync>;

struct Aggregate<K, V, C: Codec> {
    state: ValueState<C>,
    initial: Box<dyn Fn() -> C::Value + Send + Sync>,
    add: Add<K, V, C::Value>,
}

impl<K: 'static, V: 'static, C: Codec> Operator for Aggregate<K, V, C> {
    type Key = K;
    type In = V;
    type Out = C::Value;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.state);
    }

    fn uses_event_time(&self) -> bool {
        false
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, C::Value>,
        key: &K,
        value: V,
    ) -> Result<(), OperatorError> {
        let mut aggregate = self.state.get(context)?.unwrap_or_else(&self.initial);
        (self.add)(&mut aggregate, key, value);
        self.state.set(context, &aggregate)?;
        context.emit(aggregate);
        Ok(())
    }
}

type Both<V> = Box<dyn Fn(V, V) -> V + Send + Sync>;

struct Reduce<K, C: Codec> {
    state: ValueState<C>,
    both: Both<C::Value>,
    of: PhantomData<fn() -> K>,
}

impl<K: 'static, C: Codec> Operator for Reduce<K, C> {
    type Key = K;
    type In = C::Value;
    type Out = C::Value;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.state);
    }

    fn uses_event_time(&self) -> bool {
        false
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, C::Value>,
        _key: &K,
        value: C::Value,
    ) -> Result<(), OperatorError> {
        let reduced = match self.state.get(context)? {
            Some(before) => (self.both)(before, value),
            None => value,
        };
        self.state.set(context, &reduced)?;
        context.emit(reduced);
        Ok(())
    }
}
