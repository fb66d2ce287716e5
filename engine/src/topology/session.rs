//! Session windows: they grow and run together as records come.

use std::marker::PhantomData;

use bytes::Bytes;

use super::codec::{Codec, CodecError, Time};
use super::context::{Context, FiredTimer, Operator, OperatorError};
use super::key::TimeDomain;
use super::state::{MapState, States};
use super::stream::SideOutput;
use super::window::{Aggregator, Windowed, pass_late};

/// A session's aggregate after its end, as eight bytes, and whether it is null, as one.
#[derive(Debug, Clone)]
pub(super) struct Ended<C>(pub(super) C);

/// An end and an aggregate.
type EndedValue<C> = (i64, <C as Codec>::Value);

impl<C: Codec> Codec for Ended<C> {
    type Value = EndedValue<C>;

    fn name(&self) -> String {
        format!("ended {}", self.0.name())
    }

    fn encode(&self, (end, value): &Self::Value, to: &mut Vec<u8>) {
        to.extend_from_slice(&end.to_be_bytes());
        let is_null = self.0.is_null(value);
        to.push(is_null.into());
        if !is_null {
            self.0.encode(value, to);
        }
    }

    fn decode(&self, bytes: &Bytes) -> Result<Self::Value, CodecError> {
        self.decode_version(self.version(), bytes)
    }

    fn version(&self) -> u8 {
        self.0.version()
    }

    fn reads(&self, version: u8) -> bool {
        self.0.reads(version)
    }

    fn decode_version(&self, version: u8, bytes: &Bytes) -> Result<Self::Value, CodecError> {
        let Some(([end @ .., is_null], _)) = bytes.split_first_chunk::<9>() else {
            let reason = format!("{} bytes", bytes.len());
            return Err(CodecError::Malformed { codec: self.name(), reason });
        };
        let value = match *is_null {
            0 => self.0.decode_version(version, &bytes.slice(9..)),
            _ => self.0.decode_null(),
        };
        Ok((i64::from_be_bytes(*end), value?))
    }
}

/// Sessions of a key never touch, so their ends are in the order of their starts.
pub(super) struct Sessions<K, V, C: Codec> {
    pub(super) gap_ms: i64,
    pub(super) lateness_ms: i64,
    pub(super) late: Option<SideOutput<V>>,
    pub(super) aggregate: Aggregator<V, C::Value>,
    /// By their first record's time.
    pub(super) sessions: MapState<Time, Ended<C>>,
    pub(super) of: PhantomData<fn() -> K>,
}

impl<K, V, C: Codec> Sessions<K, V, C> {
    /// When a session is told, and when it closes.
    fn due_ms(&self, end_ms: i64) -> [i64; 2] {
        [end_ms - 1, (end_ms - 1).saturating_add(self.lateness_ms)]
    }

    /// The sessions that a stretch of time touches, the last one first.
    fn touched(
        &self,
        context: &Context<'_, '_, Windowed<C::Value>>,
        (start_ms, end_ms): (i64, i64),
    ) -> Result<Vec<(i64, EndedValue<C>)>, OperatorError> {
        let mut touched = Vec::new();
        let mut before_ms = end_ms.saturating_add(1);
        while let Some((start, (end, value))) = self.sessions.last_before(context, &before_ms)?
            && end >= start_ms
        {
            touched.push((start, (end, value)));
            before_ms = start;
        }
        Ok(touched)
    }

    /// Forgets the timers of a session that is gone, except those that another of the key needs:
    /// there is one timer for a key and a time.
    fn forget_timers(
        &self,
        context: &mut Context<'_, '_, Windowed<C::Value>>,
        end_ms: i64,
    ) -> Result<(), OperatorError> {
        for due_ms in self.due_ms(end_ms) {
            let mut is_needed = false;
            for other_ms in [due_ms, due_ms.saturating_sub(self.lateness_ms)] {
                let last = self.sessions.last_before(context, &other_ms.saturating_add(1))?;
                is_needed |= last.is_some_and(|(_, (end, _))| self.due_ms(end).contains(&due_ms));
            }
            if !is_needed {
                context.forget_timer(TimeDomain::Event, due_ms);
            }
        }
        Ok(())
    }
}

impl<K: 'static, V: Clone + Send + 'static, C: Codec> Operator for Sessions<K, V, C> {
    type Key = K;
    type In = V;
    type Out = Windowed<C::Value>;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.sessions);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, Self::Out>,
        _key: &K,
        value: V,
    ) -> Result<(), OperatorError> {
        let (time_ms, watermark_ms) = (context.timestamp_ms(), context.watermark_ms());
        let (mut start_ms, mut end_ms) = (time_ms, time_ms.saturating_add(self.gap_ms));
        let touched = self.touched(context, (start_ms, end_ms))?;
        for (start, (end, _)) in &touched {
            start_ms = start_ms.min(*start);
            end_ms = end_ms.max(*end);
        }
        let [told_ms, closes_ms] = self.due_ms(end_ms);
        if closes_ms <= watermark_ms {
            pass_late(context, self.late.as_ref(), value);
            return Ok(());
        }
        let mut whole: Option<C::Value> = None;
        // The earliest first, as its records came.
        for (start, (end, before)) in touched.into_iter().rev() {
            self.sessions.remove(context, &start)?;
            self.forget_timers(context, end)?;
            match &mut whole {
                Some(whole) => (self.aggregate.merge)(whole, before),
                None => whole = Some(before),
            }
        }
        let mut whole = whole.unwrap_or_else(&self.aggregate.initial);
        (self.aggregate.add)(&mut whole, value);
        self.sessions.insert(context, &start_ms, &(end_ms, whole.clone()))?;
        if told_ms > watermark_ms {
            context.set_timer(TimeDomain::Event, told_ms);
        } else {
            context.emit_at(Windowed { start_ms, end_ms, value: whole }, told_ms);
        }
        context.set_timer(TimeDomain::Event, closes_ms);
        Ok(())
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, Self::Out>,
        _key: &K,
        timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        let ended_ms = timer.time_ms.saturating_add(1);
        // The last that begins before this is the only one that may end here.
        if let Some((start_ms, (end_ms, value))) = self.sessions.last_before(context, &ended_ms)?
            && end_ms == ended_ms
        {
            context.emit_at(Windowed { start_ms, end_ms, value }, end_ms - 1);
        }
        while let Some((start_ms, (end_ms, _))) = self.sessions.first(context)?
            && self.due_ms(end_ms)[1] <= timer.time_ms
        {
            self.sessions.remove(context, &start_ms)?;
        }
        Ok(())
    }
}
