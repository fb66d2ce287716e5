//! Two streams of the same keys become one.

use std::time::Duration;

use bytes::Bytes;

use super::codec::{Codec, CodecError, Int64, Time};
use super::context::{Context, FiredTimer, Operator, OperatorError};
use super::key::TimeDomain;
use super::keyed::Keyed;
use super::run::duration_ms;
use super::state::{MapState, States, ValueState};
use super::stream::SideOutput;
use super::window::{Grid, Windowed, Windows, pass_late};

/// A value of one of two streams.
#[derive(Debug, Clone)]
pub enum Either<L, R> {
    /// Of the first.
    Left(L),
    /// Of the second.
    Right(R),
}

impl<K: Codec, L: Clone + Send + Sync + 'static> Keyed<K, L> {
    /// Puts this stream beside another one, to join them with what is late in a side output.
    /// [`Self::interval_join`] and [`Self::window_join`] do without.
    pub fn join<R: Clone + Send + 'static>(&self, right: &Keyed<K, R>) -> JoinedStreams<K, L, R> {
        JoinedStreams { stream: self.either(right), late: None }
    }

    /// As [`JoinedStreams::interval_join`]; late values are dropped and counted.
    pub fn interval_join<CL, CR, U>(
        &self,
        name: &str,
        right: &Keyed<K, CR::Value>,
        (before, after): (Duration, Duration),
        codecs: (CL, CR),
        pair: impl Fn(&K::Value, &L, &CR::Value) -> U + Send + Sync + 'static,
    ) -> Keyed<K, U>
    where
        CL: Codec<Value = L>,
        CR: Codec,
        U: Clone + Send + 'static,
    {
        self.join(right).interval_join(name, (before, after), codecs, pair)
    }

    /// As [`JoinedStreams::window_join`]; late values are dropped and counted.
    pub fn window_join<CL, CR, U>(
        &self,
        name: &str,
        right: &Keyed<K, CR::Value>,
        windows: Windows,
        codecs: (CL, CR),
        pair: impl Fn(&K::Value, &L, &CR::Value) -> U + Send + Sync + 'static,
    ) -> Keyed<K, Windowed<U>>
    where
        CL: Codec<Value = L>,
        CR: Codec,
        U: Clone + Send + 'static,
    {
        self.join(right).window_join(name, windows, codecs, pair)
    }

    /// Each value with that of a table for its key, if there is one. A table is a stream of which the
    /// value of a key that came last counts, whatever the times say, as in a compacted topic; `None`
    /// takes the key out of it. A value gets what the table is when it comes.
    pub fn join_table<C, U>(
        &self,
        name: &str,
        table: &Keyed<K, Option<C::Value>>,
        codec: C,
        pair: impl Fn(&K::Value, L, Option<&C::Value>) -> Option<U> + Send + Sync + 'static,
    ) -> Keyed<K, U>
    where
        C: Codec,
        U: Clone + Send + 'static,
    {
        let newest = ValueState::new("table", codec);
        let operator = TableJoin::<K::Value, L, C, U> { newest, pair: Box::new(pair) };
        self.either(table).process(name, operator)
    }

    fn either<R: Clone + Send + 'static>(&self, right: &Keyed<K, R>) -> Keyed<K, Either<L, R>> {
        let left = self.map(|_, value| Either::Left(value));
        left.union(&right.map(|_, value| Either::Right(value)))
    }
}

/// Two keyed streams beside each other, which wait for how they are joined.
pub struct JoinedStreams<K: Codec, L, R> {
    stream: Keyed<K, Either<L, R>>,
    late: Option<SideOutput<Either<L, R>>>,
}

impl<K, L, R> JoinedStreams<K, L, R>
where
    K: Codec,
    L: Clone + Send + Sync + 'static,
    R: Clone + Send + 'static,
{
    /// Late values of either stream go there, instead of being dropped; they are counted in either
    /// case.
    #[must_use]
    pub fn late_to(mut self, side: &SideOutput<Either<L, R>>) -> Self {
        self.late = Some(side.clone());
        self
    }

    /// Each pair of values of a key whose times are near: the right one's from `before` the left
    /// one's to `after` it, borders included. A pair has the later time of the two. Values that no
    /// other may come for any more are late.
    pub fn interval_join<CL, CR, U>(
        self,
        name: &str,
        (before, after): (Duration, Duration),
        (left_codec, right_codec): (CL, CR),
        pair: impl Fn(&K::Value, &L, &R) -> U + Send + Sync + 'static,
    ) -> Keyed<K, U>
    where
        CL: Codec<Value = L>,
        CR: Codec<Value = R>,
        U: Clone + Send + 'static,
    {
        let operator = IntervalJoin::<K::Value, CL, CR, U> {
            before_ms: duration_ms(before),
            after_ms: duration_ms(after),
            sides: Sides::new(left_codec, right_codec),
            late: self.late,
            pair: Box::new(pair),
        };
        self.stream.process(name, operator)
    }

    /// Each pair of values of a key that are in one window, told when event time is past the window's
    /// end; one that is in several windows, once for each. Windows have one length: sessions are
    /// refused. Values that come when their last window has been told are late. All pairs of a window
    /// have to fit a frame.
    pub fn window_join<CL, CR, U>(
        self,
        name: &str,
        windows: Windows,
        (left_codec, right_codec): (CL, CR),
        pair: impl Fn(&K::Value, &L, &R) -> U + Send + Sync + 'static,
    ) -> Keyed<K, Windowed<U>>
    where
        CL: Codec<Value = L>,
        CR: Codec<Value = R>,
        U: Clone + Send + 'static,
    {
        let grid = windows.grid().unwrap_or_else(|| {
            let fault = format!("operator {name:?}: streams are not joined by sessions");
            self.stream.fault(fault);
            Grid { size_ms: 1, hop_ms: 1 }
        });
        if let Some(fault) = windows.fault() {
            self.stream.fault(fault);
        }
        let (sides, late) = (Sides::new(left_codec, right_codec), self.late);
        let pair = Box::new(pair);
        let operator = WindowJoin::<K::Value, CL, CR, U> { grid, sides, late, pair };
        self.stream.process(name, operator)
    }
}

/// A time with a number that tells records of one time apart; sorts by time, then by number.
#[derive(Debug, Clone, Copy)]
struct Moment;

impl Codec for Moment {
    type Value = (i64, i64);

    fn name(&self) -> String {
        "moment".to_owned()
    }

    fn encode(&self, (time, number): &(i64, i64), to: &mut Vec<u8>) {
        Time.encode(time, to);
        Time.encode(number, to);
    }

    fn decode(&self, bytes: &Bytes) -> Result<(i64, i64), CodecError> {
        let half = bytes.len().min(8);
        Ok((Time.decode(&bytes.slice(..half))?, Time.decode(&bytes.slice(half..))?))
    }
}

/// The first moment of a time; no record has a lower number.
fn first_of(time_ms: i64) -> (i64, i64) {
    (time_ms, 0)
}

/// What waits for the other side.
struct Sides<CL, CR> {
    left: MapState<Moment, CL>,
    right: MapState<Moment, CR>,
    /// The next record's number.
    next: ValueState<Int64>,
}

impl<CL: Codec, CR: Codec> Sides<CL, CR> {
    fn new(left: CL, right: CR) -> Self {
        Self {
            left: MapState::new("left", Moment, left),
            right: MapState::new("right", Moment, right),
            next: ValueState::new("next", Int64),
        }
    }

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.left);
        states.declare(&self.right);
        states.declare(&self.next);
    }

    /// Keeps a value at the time of its record.
    fn keep<O>(
        &self,
        context: &mut Context<'_, '_, O>,
        value: &Either<CL::Value, CR::Value>,
    ) -> Result<(), OperatorError> {
        let number = self.next.get(context)?.unwrap_or(0);
        self.next.set(context, &(number + 1))?;
        let at = (context.timestamp_ms(), number);
        match value {
            Either::Left(left) => self.left.insert(context, &at, left),
            Either::Right(right) => self.right.insert(context, &at, right),
        }
    }

    /// Removes what is before a time, of each side its own.
    fn remove_before<O>(
        &self,
        context: &mut Context<'_, '_, O>,
        (left_ms, right_ms): (i64, i64),
    ) -> Result<(), OperatorError> {
        self.left.remove_before(context, &first_of(left_ms))?;
        self.right.remove_before(context, &first_of(right_ms))?;
        if self.left.is_empty(context)? && self.right.is_empty(context)? {
            self.next.clear(context)?;
        }
        Ok(())
    }
}

/// Where late values of two streams go.
type Late<CL, CR> = Option<SideOutput<Either<<CL as Codec>::Value, <CR as Codec>::Value>>>;

type Pair<K, L, R, U> = Box<dyn Fn(&K, &L, &R) -> U + Send + Sync>;

struct IntervalJoin<K, CL: Codec, CR: Codec, U> {
    before_ms: i64,
    after_ms: i64,
    sides: Sides<CL, CR>,
    late: Late<CL, CR>,
    pair: Pair<K, CL::Value, CR::Value, U>,
}

impl<K, CL, CR, U> Operator for IntervalJoin<K, CL, CR, U>
where
    K: 'static,
    CL: Codec,
    CR: Codec,
    U: Clone + Send + 'static,
{
    type Key = K;
    type In = Either<CL::Value, CR::Value>;
    type Out = U;

    fn declare(&self, states: &mut States<'_>) {
        self.sides.declare(states);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, U>,
        key: &K,
        value: Self::In,
    ) -> Result<(), OperatorError> {
        let (time_ms, watermark_ms) = (context.timestamp_ms(), context.watermark_ms());
        let (before_ms, after_ms) = match &value {
            Either::Left(_) => (self.before_ms, self.after_ms),
            Either::Right(_) => (self.after_ms, self.before_ms),
        };
        // Until when something of the other side may still come that it pairs with.
        let waits_ms = time_ms.saturating_add(after_ms);
        if waits_ms <= watermark_ms {
            pass_late(context, self.late.as_ref(), value);
            return Ok(());
        }
        let from = first_of(time_ms.saturating_sub(before_ms));
        let to = first_of(waits_ms.saturating_add(1));
        match &value {
            Either::Left(left) => {
                for ((other_ms, _), right) in self.sides.right.between(context, &from, &to)? {
                    context.emit_at((self.pair)(key, left, &right), time_ms.max(other_ms));
                }
            }
            Either::Right(right) => {
                for ((other_ms, _), left) in self.sides.left.between(context, &from, &to)? {
                    context.emit_at((self.pair)(key, &left, right), time_ms.max(other_ms));
                }
            }
        }
        self.sides.keep(context, &value)?;
        context.set_timer(TimeDomain::Event, waits_ms);
        Ok(())
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, U>,
        _key: &K,
        timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        let waiting = |after_ms| timer.time_ms.saturating_sub(after_ms).saturating_add(1);
        self.sides.remove_before(context, (waiting(self.after_ms), waiting(self.before_ms)))
    }
}

struct WindowJoin<K, CL: Codec, CR: Codec, U> {
    grid: Grid,
    sides: Sides<CL, CR>,
    late: Late<CL, CR>,
    pair: Pair<K, CL::Value, CR::Value, U>,
}

impl<K, CL, CR, U> Operator for WindowJoin<K, CL, CR, U>
where
    K: 'static,
    CL: Codec,
    CR: Codec,
    U: Clone + Send + 'static,
{
    type Key = K;
    type In = Either<CL::Value, CR::Value>;
    type Out = Windowed<U>;

    fn declare(&self, states: &mut States<'_>) {
        self.sides.declare(states);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, Self::Out>,
        _key: &K,
        value: Self::In,
    ) -> Result<(), OperatorError> {
        let pane = self.grid.pane(context.timestamp_ms());
        // Between two windows that are shorter than their hop: it is in none.
        if self.grid.last_end(pane).is_none() {
            return Ok(());
        }
        let first_open = context.watermark_ms().saturating_add(1);
        let Some(end_ms) = self.grid.next_end(pane, first_open) else {
            pass_late(context, self.late.as_ref(), value);
            return Ok(());
        };
        self.sides.keep(context, &value)?;
        context.set_timer(TimeDomain::Event, end_ms - 1);
        Ok(())
    }

    fn on_timer(
        &self,
        context: &mut Context<'_, '_, Self::Out>,
        key: &K,
        timer: FiredTimer,
    ) -> Result<(), OperatorError> {
        let end_ms = timer.time_ms.saturating_add(1);
        let start_ms = end_ms.saturating_sub(self.grid.size_ms);
        let (from, to) = (first_of(start_ms), first_of(end_ms));
        let lefts = self.sides.left.between(context, &from, &to)?;
        let rights = match lefts.is_empty() {
            true => Vec::new(),
            false => self.sides.right.between(context, &from, &to)?,
        };
        for (_, left) in &lefts {
            for (_, right) in &rights {
                let value = (self.pair)(key, left, right);
                context.emit_at(Windowed { start_ms, end_ms, value }, timer.time_ms);
            }
        }
        let stays_ms = self.grid.first_after(end_ms);
        self.sides.remove_before(context, (stays_ms, stays_ms))?;
        let left = self.sides.left.first(context)?.map(|((time_ms, _), _)| time_ms);
        let right = self.sides.right.first(context)?.map(|((time_ms, _), _)| time_ms);
        let next_ms = left.into_iter().chain(right).min();
        let next_end =
            next_ms.and_then(|next_ms| self.grid.next_end(self.grid.pane(next_ms), end_ms));
        if let Some(next_end) = next_end {
            context.set_timer(TimeDomain::Event, next_end - 1);
        }
        Ok(())
    }
}

type TablePair<K, L, R, U> = Box<dyn Fn(&K, L, Option<&R>) -> Option<U> + Send + Sync>;

struct TableJoin<K, L, C: Codec, U> {
    newest: ValueState<C>,
    pair: TablePair<K, L, C::Value, U>,
}

impl<K, L, C, U> Operator for TableJoin<K, L, C, U>
where
    K: 'static,
    L: Clone + Send + 'static,
    C: Codec,
    U: Clone + Send + 'static,
{
    type Key = K;
    type In = Either<L, Option<C::Value>>;
    type Out = U;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.newest);
    }

    fn uses_event_time(&self) -> bool {
        false
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, U>,
        key: &K,
        value: Self::In,
    ) -> Result<(), OperatorError> {
        match value {
            Either::Left(left) => {
                let newest = self.newest.get(context)?;
                if let Some(pair) = (self.pair)(key, left, newest.as_ref()) {
                    context.emit(pair);
                }
            }
            Either::Right(Some(newest)) => self.newest.set(context, &newest)?,
            Either::Right(None) => self.newest.clear(context)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Trial;
    use super::*;
    use crate::effect::Change;
    use crate::topology::key::state_prefix;
    use crate::topology::{NameId, Nullable, Topology, Utf8};

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// How two streams are joined.
    #[derive(Debug, Clone, Copy)]
    enum Join {
        Interval(u64, u64),
        Window(Windows),
        Table,
    }

    fn trial(join: Join) -> Trial {
        let topology = Topology::new("joins");
        let left = topology.source("left", Utf8).partitioned_by_key(Utf8);
        let right = topology.source("right", Nullable(Utf8)).partitioned_by_key(Utf8);
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let late = SideOutput::new();
        let (codecs, times) = ((Utf8, Nullable(Utf8)), |before, after| (ms(before), ms(after)));
        let joined = match join {
            Join::Interval(before, after) => {
                let pair = move |_: &String, left: &String, right: &Option<String>| {
                    format!("{left}{}", text(right))
                };
                let streams = left.join(&right).late_to(&late);
                streams.interval_join("join", times(before, after), codecs, pair)
            }
            Join::Window(windows) => {
                let pair = move |_: &String, left: &String, right: &Option<String>| {
                    format!("{left}{}", text(right))
                };
                let streams = left.join(&right).late_to(&late);
                streams
                    .window_join("join", windows, codecs, pair)
                    .map(|_, it| format!("[{}, {}) {}", it.start_ms, it.end_ms, it.value))
            }
            Join::Table => left.join_table("join", &right, Utf8, |_, left, right| {
                Some(format!("{left}{}", right.map_or("-", String::as_str)))
            }),
        };
        joined.sink("out", Utf8);
        let told = move |value: Either<String, Option<String>>| match value {
            Either::Left(left) => format!("late left {left}"),
            Either::Right(right) => format!("late right {}", text(&right)),
        };
        late.stream(&joined).map(told).sink("late", Utf8);
        Trial::new(topology)
    }

    /// A record of a key, `left a 5` for the value a at 5, a tombstone, `null 5`, or a watermark,
    /// `to 9`; then what it tells.
    fn run(trial: &mut Trial, step: &str) -> String {
        let words: Vec<&str> = step.split(' ').collect();
        let time_ms = words[words.len() - 1].parse().expect("a time");
        let told = match words[0] {
            "left" => trial.try_record(0, "k", words[1], time_ms).expect("good"),
            "right" => trial.try_record(1, "k", words[1], time_ms).expect("good"),
            "null" => trial.tombstone(1, "k", time_ms),
            "to" => trial.watermark(time_ms),
            other => panic!("no such word: {other}"),
        };
        told.join(", ").replace("Sink(0) k=", "").replace("Sink(1) k=", "")
    }

    /// Runs steps, each with what it tells. So many entries are left of the key in the end.
    fn check(join: Join, steps: &[(&str, &str)], left: usize) {
        let mut trial = trial(join);
        for (step, told) in steps {
            assert_eq!(run(&mut trial, step), *told, "{join:?}: {step}");
        }
        assert_eq!(trial.entry_count(), left, "{join:?}");
    }

    #[test]
    fn what_is_near_is_paired_and_forgotten_when_nothing_may_come_for_it() {
        check(
            Join::Interval(2, 5),
            &[
                ("left a 10", ""),
                ("right v 7", ""),
                ("right w 8", "aw at 10"),
                ("right x 15", "ax at 15"),
                ("right y 16", ""),
                ("left b 10", "bw at 10, bx at 15"),
                ("to 9", ""),
                // Nothing of 7 or before pairs with what may still come.
                ("right u 7", "late right u at 7"),
                ("right z 9", "az at 10, bz at 10"),
                ("to 15", ""),
                ("left c 10", "late left c at 10"),
                ("left d 14", "dx at 15, dy at 16"),
                ("to 19", ""),
            ],
            0,
        );
    }

    #[test]
    fn pairs_go_across_1970() {
        check(
            Join::Interval(5, 5),
            &[
                ("left a -3", ""),
                ("left b -20", ""),
                ("right x 2", "ax at 2"),
                ("right y -8", "ay at -3"),
                ("to 7", ""),
            ],
            0,
        );
    }

    #[test]
    fn all_pairs_of_a_window_are_told_at_its_end() {
        check(
            Join::Window(Windows::tumbling(ms(10))),
            &[
                ("left a 1", ""),
                ("right x 9", ""),
                ("left b 3", ""),
                ("left c 12", ""),
                ("right y 25", ""),
                ("to 8", ""),
                ("to 9", "[0, 10) ax at 9, [0, 10) bx at 9"),
                ("right z 9", "late right z at 9"),
                ("null 9", "late right  at 9"),
                ("left d 0", "late left d at 0"),
                ("to 29", ""),
            ],
            0,
        );
    }

    #[test]
    fn a_pair_is_told_for_each_window_that_both_are_in() {
        check(
            Join::Window(Windows::hopping(ms(10), ms(5))),
            &[
                ("left a -2", ""),
                ("right x 1", ""),
                ("to -1", ""),
                ("to 4", "[-5, 5) ax at 4"),
                ("right y 3", ""),
                ("left b 3", ""),
                ("to 9", "[0, 10) bx at 9, [0, 10) by at 9"),
            ],
            0,
        );
        check(
            Join::Window(Windows::hopping(ms(3), ms(10))),
            &[
                ("left a 5", ""),
                ("left b 12", ""),
                ("right x 11", ""),
                ("to 12", "[10, 13) bx at 12"),
            ],
            0,
        );
    }

    #[test]
    fn a_table_is_what_came_last_whatever_its_times() {
        check(
            Join::Table,
            &[
                ("left a 1", "a- at 1"),
                ("right x 9", ""),
                ("right y 5", ""),
                ("left b 2", "by at 2"),
                ("null 7", ""),
                ("left c 3", "c- at 3"),
            ],
            0,
        );
    }

    #[test]
    fn only_what_is_near_is_read() {
        for join in [Join::Interval(5, 5), Join::Window(Windows::tumbling(ms(10)))] {
            let mut trial = trial(join);
            run(&mut trial, "left c 40");
            run(&mut trial, "right z 40");
            for side in ["left", "right"] {
                // Nobody can read this one.
                let mut key = state_prefix(NameId::of(&["joins", "join", side]), 0, b"k");
                Moment.encode(&(1000, 0), &mut key);
                trial.state.apply(Change { key, value: Some(vec![99]) });
            }
            run(&mut trial, "left a 1");
            let paired = run(&mut trial, "right x 2") + &run(&mut trial, "to 20");
            assert!(paired.contains("ax at"), "{join:?}: {paired}");
        }
    }

    #[test]
    fn sessions_and_windows_without_length_are_refused() {
        for windows in [Windows::session(ms(5)), Windows::tumbling(ms(0))] {
            let topology = Topology::new("joins");
            let left = topology.source("left", Utf8).partitioned_by_key(Utf8);
            let right = topology.source("right", Utf8).partitioned_by_key(Utf8);
            left.window_join("join", &right, windows, (Utf8, Utf8), |_, _, _| String::new());
            assert_eq!(topology.build().expect_err("no such windows").faults.len(), 1);
        }
    }
}
