//! Event time on one shard: how far it has come for each source, stage and operator.
//!
//! A watermark of `t` says that nothing of time `t` or before is expected any more. It goes from
//! the partitions of a source, by way of stages (where those of all shards meet), from operator to
//! operator. One that was never heard of holds everything behind it back; one that is idle holds
//! back nobody.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use super::stream::{Origin, TimeRules};

/// How far event time has come somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// Nothing of this time, in milliseconds since 1970, or before is expected any more;
    /// `i64::MIN`: nothing is known.
    At(i64),
    /// Nothing came for so long that nobody waits.
    Idle,
}

impl Mark {
    /// Of the two what holds back more. `Idle` is the greatest, so it is the other one.
    fn least(self, other: Self) -> Self {
        self.min(other)
    }
}

/// One partition of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PartitionTime {
    /// The newest record's time.
    newest_ms: i64,
    /// When the last one came, on the monotonic clock; or when more of them were last seen to wait.
    active_ms: u64,
    /// Nothing came for so long, and nothing waits.
    is_silent: bool,
}

/// Event time of one topology on one shard.
#[derive(Debug)]
pub struct EventTimes {
    rules: Vec<TimeRules>,
    /// This shard's partitions of each source.
    sources: Vec<BTreeMap<u32, PartitionTime>>,
    /// The least mark of each source's partitions, while it is known: it is asked for more often than it
    /// changes.
    least: Vec<Cell<Option<Mark>>>,
    /// What each shard said of each stage's inputs; this shard's own is not among them.
    heard: Vec<Vec<Mark>>,
    stage_inputs: Vec<Vec<Origin>>,
    operator_inputs: Vec<Vec<Origin>>,
    /// Up to where each operator's timers have all fired.
    operators_ms: Vec<i64>,
    /// What the other shards were told last of each stage's inputs.
    told: Vec<Mark>,
    /// Whether they are told of each stage.
    is_told: Vec<bool>,
    /// No partition falls silent before this, on the monotonic clock.
    silent_at_ms: Option<u64>,
    /// Number of this shard among all.
    shard: usize,
}

impl EventTimes {
    /// Nothing has come. `shard` is one of `shard_count`.
    pub fn new(
        rules: Vec<TimeRules>,
        stage_inputs: Vec<Vec<Origin>>,
        operator_inputs: Vec<Vec<Origin>>,
        (shard, shard_count): (usize, usize),
    ) -> Self {
        let stage_count = stage_inputs.len();
        Self {
            sources: vec![BTreeMap::new(); rules.len()],
            least: vec![Cell::new(None); rules.len()],
            heard: vec![vec![Mark::At(i64::MIN); shard_count]; stage_count],
            operators_ms: vec![i64::MIN; operator_inputs.len()],
            told: vec![Mark::At(i64::MIN); stage_count],
            is_told: vec![true; stage_count],
            rules,
            stage_inputs,
            operator_inputs,
            silent_at_ms: None,
            shard,
        }
    }

    /// Other shards are told of these stages alone.
    pub fn tell_of(&mut self, stages: Vec<bool>) {
        assert_eq!(stages.len(), self.told.len());
        self.is_told = stages;
    }

    /// This shard reads a partition of a source, from where it got to before.
    pub fn add_partition(&mut self, source: usize, partition: u32, newest_ms: i64, now_ms: u64) {
        let time = PartitionTime { newest_ms, active_ms: now_ms, is_silent: false };
        self.sources[source].entry(partition).or_insert(time);
        self.least[source].set(None);
        self.will_be_silent(source, now_ms);
    }

    /// A record of a source, with its event time.
    pub fn on_record(&mut self, source: usize, partition: u32, time_ms: i64, now_ms: u64) {
        let new = PartitionTime { newest_ms: i64::MIN, active_ms: now_ms, is_silent: true };
        let time = self.sources[source].entry(partition).or_insert(new);
        if time_ms > time.newest_ms || time.is_silent {
            self.least[source].set(None);
        }
        time.newest_ms = time.newest_ms.max(time_ms);
        time.active_ms = now_ms;
        if std::mem::take(&mut time.is_silent) {
            self.will_be_silent(source, now_ms);
        }
    }

    fn will_be_silent(&mut self, source: usize, now_ms: u64) {
        let at_ms =
            self.rules[source].idle_after_ms.map(|after_ms| now_ms.saturating_add(after_ms));
        self.silent_at_ms = self.silent_at_ms.into_iter().chain(at_ms).min();
    }

    /// When a partition may fall silent next, on the monotonic clock: [`Self::fall_silent`] is to be
    /// called then.
    pub fn silent_at_ms(&self) -> Option<u64> {
        self.silent_at_ms
    }

    /// Partitions of which nothing came for long are idle, but for those with records that wait to be
    /// read.
    pub fn fall_silent(&mut self, now_ms: u64, waiting: &BTreeSet<(usize, u32)>) {
        self.silent_at_ms = None;
        for (source, partitions) in self.sources.iter_mut().enumerate() {
            let Some(after_ms) = self.rules[source].idle_after_ms else { continue };
            self.least[source].set(None);
            for (partition, time) in partitions.iter_mut().filter(|(_, time)| !time.is_silent) {
                if waiting.contains(&(source, *partition)) {
                    time.active_ms = now_ms;
                }
                let at_ms = time.active_ms.saturating_add(after_ms);
                if at_ms <= now_ms {
                    time.is_silent = true;
                } else {
                    self.silent_at_ms = Some(self.silent_at_ms.map_or(at_ms, |it| it.min(at_ms)));
                }
            }
        }
    }

    /// The newest time of a partition's records; `i64::MIN`: none came.
    pub fn newest_ms(&self, source: usize, partition: u32) -> i64 {
        self.sources[source].get(&partition).map_or(i64::MIN, |time| time.newest_ms)
    }

    /// Another shard says how far its inputs of a stage are. It is never taken back.
    pub fn on_told(&mut self, stage: usize, shard: usize, mark: Mark) {
        let heard = &mut self.heard[stage][shard];
        *heard = match (*heard, mark) {
            (Mark::At(before), Mark::At(now)) => Mark::At(before.max(now)),
            (_, mark) => mark,
        };
    }

    /// What each shard said of a stage.
    pub fn heard(&self, stage: usize) -> &[Mark] {
        &self.heard[stage]
    }

    /// What the other shards are to be told of each stage since the last time: stages whose inputs
    /// on this shard have come further, or fell silent.
    pub fn to_tell(&mut self) -> Vec<(usize, Mark)> {
        let mut news = Vec::new();
        for stage in 0..self.told.len() {
            let mark = self.of_all(&self.stage_inputs[stage]);
            if self.is_told[stage] && mark != self.told[stage] {
                self.told[stage] = mark;
                news.push((stage, mark));
            }
        }
        news
    }

    /// Up to where timers of an operator may fire: the least of its inputs, and never less than
    /// before.
    pub fn due_ms(&self, operator: usize) -> i64 {
        let before = self.operators_ms[operator];
        match self.of_all(&self.operator_inputs[operator]) {
            Mark::At(time_ms) => before.max(time_ms),
            Mark::Idle => before,
        }
    }

    /// All timers of an operator up to this time have fired, and what they made is made.
    pub fn set_operator(&mut self, operator: usize, time_ms: i64) {
        self.operators_ms[operator] = self.operators_ms[operator].max(time_ms);
    }

    /// Event time of each operator.
    pub fn operators_ms(&self) -> &[i64] {
        &self.operators_ms
    }

    fn of_all(&self, origins: &[Origin]) -> Mark {
        let marks = origins.iter().map(|origin| match origin {
            Origin::Source(source) => self.of_source(*source),
            Origin::Operator(operator) => Mark::At(self.operators_ms[*operator]),
            Origin::Stage(stage) => self.of_stage(*stage),
        });
        marks.fold(Mark::Idle, Mark::least)
    }

    /// A shard without partitions of a source waits for none of it.
    fn of_source(&self, source: usize) -> Mark {
        let lateness_ms = self.rules[source].lateness_ms;
        let mark = |time: &PartitionTime| match time.newest_ms {
            _ if time.is_silent => Mark::Idle,
            i64::MIN => Mark::At(i64::MIN),
            newest_ms => Mark::At(newest_ms.saturating_sub(lateness_ms).saturating_sub(1)),
        };
        let least = self.least[source].get().unwrap_or_else(|| {
            self.sources[source].values().map(mark).fold(Mark::Idle, Mark::least)
        });
        self.least[source].set(Some(least));
        least
    }

    fn of_stage(&self, stage: usize) -> Mark {
        let others = self.heard[stage].iter().enumerate();
        let others = others.filter(|(shard, _)| *shard != self.shard).map(|(_, mark)| *mark);
        others.fold(self.of_all(&self.stage_inputs[stage]), Mark::least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE_MS: u64 = 100;

    /// A source, keyed, with two operators one after the other; shard 0 of so many.
    fn times(shard_count: usize) -> EventTimes {
        EventTimes::new(
            vec![TimeRules { lateness_ms: 10, idle_after_ms: Some(IDLE_MS) }],
            vec![vec![Origin::Source(0)]],
            vec![vec![Origin::Stage(0)], vec![Origin::Operator(0)]],
            (0, shard_count),
        )
    }

    fn nobody() -> BTreeSet<(usize, u32)> {
        BTreeSet::new()
    }

    #[test]
    fn the_slowest_partition_decides_until_it_is_idle() {
        let mut times = times(1);
        times.add_partition(0, 0, i64::MIN, 0);
        times.add_partition(0, 1, i64::MIN, 0);
        times.on_record(0, 0, 1000, 0);
        assert_eq!(times.due_ms(0), i64::MIN, "nothing of the other one");
        times.on_record(0, 1, 500, 10);
        assert_eq!(times.due_ms(0), 489);
        times.on_record(0, 0, 2000, 105);
        assert_eq!(times.silent_at_ms(), Some(100), "at the earliest");
        times.fall_silent(105, &nobody());
        assert_eq!((times.silent_at_ms(), times.due_ms(0)), (Some(110), 489));
        times.fall_silent(110, &nobody());
        assert_eq!(times.due_ms(0), 1989, "the other one is silent");
        times.fall_silent(300, &nobody());
        assert_eq!(times.due_ms(0), i64::MIN, "all are: time stands");
        times.set_operator(0, 1989);
        assert_eq!(times.due_ms(0), 1989, "and does not go back");
        assert_eq!(times.silent_at_ms(), None);
        times.on_record(0, 1, 600, 400);
        assert_eq!(times.silent_at_ms(), Some(500), "it speaks again");
    }

    #[test]
    fn a_partition_with_records_that_wait_is_not_idle() {
        let mut times = times(1);
        times.on_record(0, 0, 1000, 0);
        times.on_record(0, 1, 500, 0);
        times.fall_silent(100, &BTreeSet::from([(0, 1)]));
        assert_eq!(times.due_ms(0), 489);
        assert_eq!(times.silent_at_ms(), Some(200), "as long after they were last seen to wait");
        times.on_record(0, 0, 2000, 150);
        times.fall_silent(200, &nobody());
        assert_eq!(times.due_ms(0), 1989);
    }

    #[test]
    fn an_operator_waits_for_the_timers_of_the_one_before_it() {
        let mut times = times(1);
        times.on_record(0, 0, 1000, 0);
        assert_eq!((times.due_ms(0), times.due_ms(1)), (989, i64::MIN));
        times.set_operator(0, 989);
        assert_eq!(times.due_ms(1), 989);
        assert_eq!(times.operators_ms(), [989, i64::MIN]);
    }

    #[test]
    fn a_stage_waits_for_every_shard_that_it_has_not_heard_of() {
        let mut times = times(3);
        times.on_record(0, 0, 1000, 0);
        assert_eq!(times.to_tell(), [(0, Mark::At(989))]);
        assert_eq!(times.to_tell(), [], "nothing new");
        assert_eq!(times.due_ms(0), i64::MIN);
        times.on_told(0, 1, Mark::At(700));
        assert_eq!(times.due_ms(0), i64::MIN, "one is missing");
        times.on_told(0, 2, Mark::Idle);
        assert_eq!(times.due_ms(0), 700);
        times.on_told(0, 1, Mark::At(600));
        assert_eq!(times.due_ms(0), 700, "an older word changes nothing");
        times.on_told(0, 2, Mark::At(650));
        assert_eq!(times.due_ms(0), 650, "it speaks again");
    }

    #[test]
    fn a_shard_without_partitions_holds_back_nobody() {
        let mut times = times(2);
        assert_eq!(times.to_tell(), [(0, Mark::Idle)]);
        times.on_told(0, 1, Mark::At(5));
        assert_eq!(times.due_ms(0), 5);
    }
}
