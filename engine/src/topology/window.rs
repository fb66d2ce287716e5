//! Windows over event time: one aggregate for each key and window, told when the watermark has
//! passed the window's end, and again for each late record that is still allowed.
//!
//! Hopping windows keep panes, the longest pieces that no window's border cuts, and not a copy for
//! each window that a record falls into. Sessions grow and run together as records come.

use std::marker::PhantomData;
use std::time::Duration;

use super::codec::{Codec, Int64, Time};
use super::context::{Context, FiredTimer, Operator, OperatorError};
use super::key::TimeDomain;
use super::keyed::Keyed;
use super::run::{TIME_MS_MAX, duration_ms};
use super::session::{Ended, Sessions};
use super::state::{MapState, States};
use super::stream::SideOutput;

/// How event time is cut, in milliseconds: lengths from 1 to [`TIME_MS_MAX`]. A topology with another
/// one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// One after the other.
    Tumbling {
        /// Length of each.
        size_ms: i64,
    },
    /// Of one length, a new one each `hop`.
    Hopping {
        /// Length of each.
        size_ms: i64,
        /// From the beginning of one to that of the next.
        hop_ms: i64,
    },
    /// From a key's first record to its last before a gap.
    Session {
        /// Length of the gap.
        gap_ms: i64,
    },
}

impl Windows {
    /// One after the other; windows begin at whole multiples since 1970.
    pub fn tumbling(size: Duration) -> Self {
        Self::Tumbling { size_ms: whole_ms(size) }
    }

    /// Overlapping ones.
    pub fn hopping(size: Duration, hop: Duration) -> Self {
        Self::Hopping { size_ms: whole_ms(size), hop_ms: whole_ms(hop) }
    }

    /// Sessions that end when a key was silent for the gap.
    pub fn session(gap: Duration) -> Self {
        Self::Session { gap_ms: whole_ms(gap) }
    }

    /// Why there are no such windows.
    pub(super) fn fault(self) -> Option<String> {
        let (one, other) = match self {
            Self::Tumbling { size_ms } => (size_ms, size_ms),
            Self::Hopping { size_ms, hop_ms } => (size_ms, hop_ms),
            Self::Session { gap_ms } => (gap_ms, gap_ms),
        };
        let is_good = |length: i64| (1..=TIME_MS_MAX).contains(&length);
        let fault = || format!("{self:?}: a window has 1 to {TIME_MS_MAX} ms");
        (!is_good(one) || !is_good(other)).then(fault)
    }

    /// Where windows of one length begin and end; sessions have no such places.
    pub(super) fn grid(self) -> Option<Grid> {
        match self {
            Self::Tumbling { size_ms } => Some(Grid { size_ms, hop_ms: size_ms }),
            Self::Hopping { size_ms, hop_ms } => Some(Grid { size_ms, hop_ms }),
            Self::Session { .. } => None,
        }
    }
}

/// As it is, for [`Windows::fault`] to judge.
fn whole_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// An aggregate with its window: from `start_ms` on, before `end_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windowed<A> {
    /// The first millisecond since 1970.
    pub start_ms: i64,
    /// The first after it.
    pub end_ms: i64,
    /// Of the records in it.
    pub value: A,
}

/// A keyed stream that is cut into windows and waits for what to do with them.
pub struct WindowedStream<K: Codec, V> {
    pub(super) stream: Keyed<K, V>,
    pub(super) windows: Windows,
    pub(super) lateness_ms: i64,
    pub(super) late: Option<SideOutput<V>>,
}

impl<K: Codec, V: Clone + Send + 'static> WindowedStream<K, V> {
    /// A window stays for so long after its end: a record that comes by then changes it, and the
    /// new value is told. What comes later still is late.
    #[must_use]
    pub fn allowed_lateness(mut self, lateness: Duration) -> Self {
        self.lateness_ms = duration_ms(lateness);
        self
    }

    /// Late values go there, instead of being dropped; they are counted in either case.
    #[must_use]
    pub fn late_to(mut self, side: &SideOutput<V>) -> Self {
        self.late = Some(side.clone());
        self
    }

    /// How many records each window has.
    pub fn count(self, name: &str) -> Keyed<K, Windowed<i64>> {
        self.aggregate(name, Int64, || 0, |count, _| *count += 1, |count, more| *count += more)
    }

    /// One aggregate for each window. `merge` puts those of two parts together: of panes of a
    /// hopping window, of sessions that run together.
    pub fn aggregate<C: Codec>(
        self,
        name: &str,
        codec: C,
        initial: impl Fn() -> C::Value + Send + Sync + 'static,
        add: impl Fn(&mut C::Value, V) + Send + Sync + 'static,
        merge: impl Fn(&mut C::Value, C::Value) + Send + Sync + 'static,
    ) -> Keyed<K, Windowed<C::Value>> {
        let aggregate =
            Aggregator { initial: Box::new(initial), add: Box::new(add), merge: Box::new(merge) };
        let (lateness_ms, late, of) = (self.lateness_ms, self.late, PhantomData);
        match self.windows {
            Windows::Session { gap_ms } => {
                let sessions = MapState::new("sessions", Time, Ended(codec));
                let operator = Sessions { gap_ms, lateness_ms, late, aggregate, sessions, of };
                self.stream.process(name, operator)
            }
            windows @ (Windows::Tumbling { .. } | Windows::Hopping { .. }) => {
                let grid = windows.grid().expect("only sessions have none");
                let panes = MapState::new("panes", Time, codec);
                let operator = Panes { grid, lateness_ms, late, aggregate, panes, of };
                self.stream.process(name, operator)
            }
        }
    }
}

type Initial<A> = Box<dyn Fn() -> A + Send + Sync>;
type Add<A, V> = Box<dyn Fn(&mut A, V) + Send + Sync>;
type Merge<A> = Box<dyn Fn(&mut A, A) + Send + Sync>;

pub(super) struct Aggregator<V, A> {
    pub(super) initial: Initial<A>,
    pub(super) add: Add<A, V>,
    pub(super) merge: Merge<A>,
}

/// A value that came too late is counted, and goes to the side output if there is one.
pub(super) fn pass_late<V: Clone + Send + 'static, O>(
    context: &mut Context<'_, '_, O>,
    late: Option<&SideOutput<V>>,
    value: V,
) {
    context.count_late();
    if let Some(late) = late {
        context.emit_to(late, value);
    }
}

/// Where windows of one length begin and end: at multiples of the hop. Times and lengths are at most
/// [`TIME_MS_MAX`], so that sums of a few are exact; only a watermark may be at the end of the
/// numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    pub(super) size_ms: i64,
    pub(super) hop_ms: i64,
}

impl Grid {
    /// Length of the longest pieces that no border cuts.
    fn pane_ms(self) -> i64 {
        let (mut a, mut b) = (self.size_ms, self.hop_ms);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    }

    /// The pane of a time.
    pub(super) fn pane(self, time_ms: i64) -> i64 {
        let pane_ms = self.pane_ms();
        time_ms.div_euclid(pane_ms).saturating_mul(pane_ms)
    }

    /// End of the first window after the time `after_ms` that the pane is in: the ends of its
    /// windows are `size` after multiples of the hop.
    pub(super) fn next_end(self, pane: i64, after_ms: i64) -> Option<i64> {
        let least = pane.saturating_add(self.pane_ms()).max(after_ms.saturating_add(1));
        // The least multiple of the hop from which a window of that length ends at `least` or later.
        let hops = self.size_ms.saturating_sub(least).div_euclid(self.hop_ms).saturating_neg();
        let start = hops.saturating_mul(self.hop_ms);
        (start <= pane).then_some(start.saturating_add(self.size_ms))
    }

    /// End of the last window that the pane is in; none if it lies between two.
    pub(super) fn last_end(self, pane: i64) -> Option<i64> {
        let start = pane.div_euclid(self.hop_ms).saturating_mul(self.hop_ms);
        let end = start.saturating_add(self.size_ms);
        (end > pane).then_some(end)
    }

    /// Where the first window begins that ends after `end_ms`: all that is in a window, and before
    /// this, is in none that ends later.
    pub(super) fn first_after(self, end_ms: i64) -> i64 {
        let hops = end_ms.saturating_sub(self.size_ms).div_euclid(self.hop_ms);
        hops.saturating_add(1).saturating_mul(self.hop_ms)
    }

    /// Whether a window ends there.
    pub(super) fn is_end(self, end_ms: i64) -> bool {
        end_ms.saturating_sub(self.size_ms).rem_euclid(self.hop_ms) == 0
    }
}

struct Panes<K, V, C: Codec> {
    grid: Grid,
    lateness_ms: i64,
    late: Option<SideOutput<V>>,
    aggregate: Aggregator<V, C::Value>,
    panes: MapState<Time, C>,
    of: PhantomData<fn() -> K>,
}

impl<K, V: Clone + Send + 'static, C: Codec> Panes<K, V, C> {
    /// Tells the window that ends there, if anything is in it.
    fn tell(
        &self,
        context: &mut Context<'_, '_, Windowed<C::Value>>,
        end_ms: i64,
    ) -> Result<(), OperatorError> {
        let start_ms = end_ms.saturating_sub(self.grid.size_ms);
        let mut whole: Option<C::Value> = None;
        for (_, value) in self.panes.between(context, &start_ms, &end_ms)? {
            match &mut whole {
                Some(whole) => (self.aggregate.merge)(whole, value),
                None => whole = Some(value),
            }
        }
        if let Some(value) = whole {
            context.emit_at(Windowed { start_ms, end_ms, value }, end_ms - 1);
        }
        Ok(())
    }
}

impl<K: 'static, V: Clone + Send + 'static, C: Codec> Operator for Panes<K, V, C> {
    type Key = K;
    type In = V;
    type Out = Windowed<C::Value>;

    fn declare(&self, states: &mut States<'_>) {
        states.declare(&self.panes);
    }

    fn on_record(
        &self,
        context: &mut Context<'_, '_, Self::Out>,
        _key: &K,
        value: V,
    ) -> Result<(), OperatorError> {
        let (grid, watermark_ms) = (self.grid, context.watermark_ms());
        let pane = grid.pane(context.timestamp_ms());
        // Between two windows that are shorter than their hop: it is in none.
        let Some(last_end) = grid.last_end(pane) else { return Ok(()) };
        let closes_ms = (last_end - 1).saturating_add(self.lateness_ms);
        if closes_ms <= watermark_ms {
            pass_late(context, self.late.as_ref(), value);
            return Ok(());
        }
        let mut aggregate = match self.panes.get(context, &pane)? {
            Some(aggregate) => aggregate,
            None => (self.aggregate.initial)(),
        };
        (self.aggregate.add)(&mut aggregate, value);
        self.panes.insert(context, &pane, &aggregate)?;
        // Windows that were told already and are not closed yet are told again.
        let oldest_open = watermark_ms.saturating_sub(self.lateness_ms).saturating_add(1);
        let mut told = grid.next_end(pane, oldest_open);
        while let Some(end_ms) = told.filter(|end_ms| end_ms - 1 <= watermark_ms) {
            self.tell(context, end_ms)?;
            told = grid.next_end(pane, end_ms);
        }
        if let Some(end_ms) = grid.next_end(pane, watermark_ms.saturating_add(1)) {
            context.set_timer(TimeDomain::Event, end_ms - 1);
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
        let (grid, end_ms) = (self.grid, timer.time_ms.saturating_add(1));
        if grid.is_end(end_ms) {
            self.tell(context, end_ms)?;
        }
        // The first pane that is in a later window says when the next one ends.
        let next = self.panes.first_from(context, &grid.first_after(end_ms))?;
        if let Some(next_end) = next.and_then(|(pane, _)| grid.next_end(pane, end_ms)) {
            context.set_timer(TimeDomain::Event, next_end - 1);
        }
        let closed_ms = end_ms.saturating_sub(self.lateness_ms);
        self.panes.remove_before(context, &grid.first_after(closed_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Trial;
    use super::*;
    use crate::effect::Change;
    use crate::topology::key::state_prefix;
    use crate::topology::{NameId, Topology, Utf8};

    #[test]
    fn windows_end_where_they_should_for_every_pane() {
        for (size_ms, hop_ms) in [(10, 10), (10, 5), (10, 4), (3, 10), (7, 3)] {
            let grid = Grid { size_ms, hop_ms };
            for time in -40..40 {
                let pane = grid.pane(time);
                // By trying all windows around.
                let ends: Vec<i64> = (-30..30)
                    .map(|k| k * hop_ms + size_ms)
                    .filter(|end| (end - size_ms..*end).contains(&time))
                    .collect();
                assert_eq!(grid.last_end(pane), ends.last().copied(), "{grid:?} {time}");
                for after in -60..60 {
                    let expected = ends.iter().copied().find(|end| *end > after);
                    assert_eq!(grid.next_end(pane, after), expected, "{grid:?} {time} {after}");
                    if !ends.is_empty() {
                        let is_in_later = pane >= grid.first_after(after);
                        assert_eq!(is_in_later, expected.is_some(), "{grid:?} {time} {after}");
                    }
                }
                let is_end = (-30..30).any(|k| k * hop_ms + size_ms == time);
                assert_eq!(grid.is_end(time), is_end, "{grid:?} {time}");
            }
        }
    }

    #[test]
    fn the_ends_of_the_numbers_are_no_trap() {
        let far = [i64::MIN, -TIME_MS_MAX, -1, 0, 1, TIME_MS_MAX, i64::MAX];
        for (size_ms, hop_ms) in [(1, 1), (10, 4), (TIME_MS_MAX, 7), (TIME_MS_MAX, TIME_MS_MAX)] {
            let grid = Grid { size_ms, hop_ms };
            for time in far {
                let pane = grid.pane(time);
                for after in far {
                    // That none of these panics is what is tested.
                    let _ = (grid.next_end(pane, after), grid.last_end(pane));
                    let _ = (grid.first_after(after), grid.is_end(after));
                }
            }
            assert_eq!(grid.next_end(0, i64::MAX), None, "{grid:?}");
            assert!(grid.next_end(0, i64::MIN).is_some(), "{grid:?}");
        }
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn trial(windows: Windows, lateness: Duration) -> Trial {
        let topology = Topology::new("windows");
        let late = SideOutput::new();
        let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
        let windowed = keyed.window(windows).allowed_lateness(lateness).late_to(&late).aggregate(
            "window",
            Utf8,
            String::new,
            |all, value: String| all.push_str(&value),
            |all, more| all.push_str(&more),
        );
        windowed
            .map(|_, it| format!("[{}, {}) {}", it.start_ms, it.end_ms, it.value))
            .sink("out", Utf8);
        late.stream(&windowed).map(|value| format!("late {value}")).sink("late", Utf8);
        Trial::new(topology)
    }

    /// A record of a key, `a 5` for the value a at 5, or a watermark, `to 9`; then what it tells.
    fn run(trial: &mut Trial, step: &str) -> String {
        let (word, time) = step.split_once(' ').expect("two words");
        let time_ms = time.parse().expect("a time");
        let told = match word {
            "to" => trial.watermark(time_ms),
            value => trial.record("k", value, time_ms),
        };
        let short = |line: String| {
            let (_, line) = line.split_once(" k=").expect("of the key");
            let (line, _) = line.rsplit_once(" at ").expect("with a time");
            line.to_owned()
        };
        told.into_iter().map(short).collect::<Vec<String>>().join(", ")
    }

    /// Runs steps, each with what it tells. Nothing is left of the key in the end.
    fn check(windows: Windows, lateness: Duration, steps: &[(&str, &str)]) {
        let mut trial = trial(windows, lateness);
        for (step, told) in steps {
            assert_eq!(run(&mut trial, step), *told, "{step}");
        }
        assert_eq!(trial.entry_count(), 0, "it is all gone");
    }

    #[test]
    fn a_window_is_told_at_its_end_and_again_while_it_may_be_late() {
        check(
            Windows::tumbling(ms(10)),
            ms(5),
            &[
                ("a 1", ""),
                ("x 12", ""),
                ("to 8", ""),
                ("to 9", "[0, 10) a"),
                ("b 2", "[0, 10) ab"),
                ("to 13", ""),
                ("c 3", "[0, 10) abc"),
                ("to 14", ""),
                ("d 4", "late d"),
                ("to 24", "[10, 20) x"),
            ],
        );
    }

    #[test]
    fn a_result_has_the_last_time_of_its_window() {
        let mut trial = trial(Windows::tumbling(ms(10)), Duration::ZERO);
        trial.record("k", "a", 1);
        assert_eq!(trial.watermark(9), ["Sink(0) k=[0, 10) a at 9"]);
    }

    #[test]
    fn a_window_that_is_closed_is_not_told_again_for_a_record_that_is_in_an_open_one() {
        check(
            Windows::hopping(ms(10), ms(5)),
            Duration::ZERO,
            &[
                ("a 12", ""),
                ("b 17", ""),
                ("to 19", "[5, 15) a, [10, 20) ab"),
                ("c 17", ""),
                ("to 24", "[15, 25) bc"),
            ],
        );
        check(
            Windows::hopping(ms(10), ms(5)),
            ms(3),
            &[
                ("b 17", ""),
                ("to 21", "[10, 20) b"),
                ("c 17", "[10, 20) bc"),
                // The end, less one, and the lateness: closed.
                ("to 22", ""),
                ("d 17", ""),
                ("to 24", "[15, 25) bcd"),
                ("to 27", ""),
            ],
        );
    }

    #[test]
    fn windows_that_are_shorter_than_their_hop_leave_out_what_is_between() {
        check(
            Windows::hopping(ms(3), ms(10)),
            Duration::ZERO,
            &[("a 2", ""), ("b 3", ""), ("c 11", ""), ("to 30", "[0, 3) a, [10, 13) c")],
        );
    }

    #[test]
    fn windows_and_sessions_go_across_1970() {
        check(
            Windows::tumbling(ms(10)),
            Duration::ZERO,
            &[("a -3", ""), ("b 3", ""), ("to -1", "[-10, 0) a"), ("to 9", "[0, 10) b")],
        );
        check(
            Windows::hopping(ms(10), ms(5)),
            Duration::ZERO,
            &[("a -1", ""), ("b 1", ""), ("to 4", "[-10, 0) a, [-5, 5) ab"), ("to 9", "[0, 10) b")],
        );
        check(
            Windows::session(ms(5)),
            Duration::ZERO,
            &[
                ("a -20", ""),
                ("b -3", ""),
                ("c 1", ""),
                ("d 30", ""),
                ("to 34", "[-20, -15) a, [-3, 6) bc, [30, 35) d"),
            ],
        );
    }

    #[test]
    fn sessions_run_together_when_the_gap_is_filled() {
        check(
            Windows::session(ms(10)),
            Duration::ZERO,
            &[
                ("a 0", ""),
                ("c 20", ""),
                ("x 50", ""),
                ("b 10", ""),
                ("to 29", "[0, 30) acb"),
                ("d 19", "late d"),
                ("to 59", "[50, 60) x"),
            ],
        );
    }

    #[test]
    fn a_session_is_told_although_another_of_its_key_gave_up_a_timer_of_the_same_time() {
        // The first closes at 29, when the second ends.
        check(
            Windows::session(ms(10)),
            ms(20),
            &[
                ("a 0", ""),
                ("b 20", ""),
                ("to 9", "[0, 10) a"),
                ("c 1", ""),
                ("to 10", "[0, 11) ac"),
                ("to 29", "[20, 30) b"),
                ("to 49", ""),
            ],
        );
        // The second grows, and the first still closes at 29.
        let mut trial = trial(Windows::session(ms(10)), ms(20));
        for step in ["a 0", "b 20", "c 25"] {
            assert_eq!(run(&mut trial, step), "");
        }
        let before = trial.entry_count();
        assert_eq!(run(&mut trial, "to 29"), "[0, 10) a");
        assert_eq!(trial.entry_count(), before - 3, "a session and its two timers");
    }

    #[test]
    fn only_what_is_near_is_read() {
        for windows in [Windows::tumbling(ms(10)), Windows::session(ms(10))] {
            let mut trial = trial(windows, Duration::ZERO);
            run(&mut trial, "x 30");
            // Nobody can read this one.
            let name = if windows.grid().is_some() { "panes" } else { "sessions" };
            let mut key = state_prefix(NameId::of(&["windows", "window", name]), 0, b"k");
            Time.encode(&1000, &mut key);
            trial.state.apply(Change { key, value: Some(vec![99]) });
            for (step, told) in [("a 1", ""), ("b 2", ""), ("to 12", "a"), ("c 15", "")] {
                assert!(run(&mut trial, step).contains(told), "{windows:?}: {step}");
            }
        }
    }

    #[test]
    fn the_first_and_the_last_time_are_times_as_others() {
        for windows in [
            Windows::tumbling(ms(1)),
            Windows::tumbling(ms(TIME_MS_MAX as u64)),
            Windows::hopping(ms(7), ms(3)),
            Windows::hopping(ms(TIME_MS_MAX as u64), ms(TIME_MS_MAX as u64 - 1)),
            Windows::session(ms(1)),
            Windows::session(ms(TIME_MS_MAX as u64)),
        ] {
            for lateness in [Duration::ZERO, Duration::MAX] {
                let mut trial = trial(windows, lateness);
                run(&mut trial, &format!("a {}", -TIME_MS_MAX));
                run(&mut trial, "b 0");
                run(&mut trial, &format!("c {TIME_MS_MAX}"));
                // No watermark is higher.
                let told = run(&mut trial, &format!("to {}", TIME_MS_MAX - 1));
                let is_told =
                    told.contains(") a") || windows == Windows::session(ms(TIME_MS_MAX as u64));
                assert!(is_told, "{windows:?}: {told}");
            }
        }
    }

    #[test]
    fn times_beyond_all_times_are_refused_with_their_record() {
        for time_ms in [i64::MIN, -TIME_MS_MAX - 1, TIME_MS_MAX + 1, i64::MAX] {
            let refusal =
                format!("source in: the time {time_ms} is farther from 1970 than {TIME_MS_MAX} ms");
            let mut trial = trial(Windows::tumbling(ms(10)), Duration::ZERO);
            assert_eq!(trial.try_record(0, "k", "a", time_ms), Err(refusal.clone()));
            let topology = Topology::new("times");
            let time = |value: &String| value.parse::<i64>().expect("a number");
            let source = topology.source("in", Utf8).event_time(time, Duration::MAX, None);
            source.partitioned_by_key(Utf8).count("count");
            let mut trial = Trial::new(topology);
            assert_eq!(trial.try_record(0, "k", &time_ms.to_string(), 0), Err(refusal));
            // The record's own time does not matter then.
            assert_eq!(trial.try_record(0, "k", "5", time_ms), Ok(Vec::new()));
        }
    }

    #[test]
    fn windows_without_length_or_longer_than_time_are_refused() {
        for windows in [
            Windows::tumbling(Duration::ZERO),
            Windows::tumbling(Duration::from_micros(999)),
            Windows::tumbling(Duration::MAX),
            Windows::hopping(ms(10), Duration::ZERO),
            Windows::hopping(Duration::MAX, ms(10)),
            Windows::session(Duration::ZERO),
            Windows::session(ms(TIME_MS_MAX as u64 + 1)),
            Windows::Tumbling { size_ms: -1 },
        ] {
            let topology = Topology::new("windows");
            let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
            keyed.window(windows).count("count");
            let refusal = topology.build().expect_err("no such windows").to_string();
            assert!(refusal.contains("a window has 1 to"), "{refusal}");
        }
    }
}
