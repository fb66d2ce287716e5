//! What topologies do here, for people.

use tidemill_wal::format::PartitionId;

use super::{Hosted, Input, OVER_BUDGET, Queue};
use crate::shard::Shard;
use crate::state::StateSize;
use crate::topology::{CallTimes, Counts, OperatorCounts, Plan, Task};

/// A topology on this shard, for people.
#[derive(Debug)]
pub struct TopologyFacts<'s> {
    /// The topology.
    pub plan: &'s Plan,
    /// Why it does not run.
    pub pause: Option<&'s str>,
    /// What it has done since the start.
    pub counts: Counts,
    /// The oldest event time of an operator, in milliseconds since 1970; none if it has no topics.
    pub watermark_ms: Option<i64>,
    /// Entries of other shards that wait for their turn.
    pub waiting: u64,
    /// Bytes of these.
    pub waiting_size: u64,
    /// Records that wait for blocking calls.
    pub calls_waiting: u64,
    /// Blocking calls that are being made.
    pub calls_open: u64,
    /// Its operators.
    pub operators: Vec<OperatorFacts<'s>>,
    /// The edges of its graph.
    pub edges: Vec<EdgeFacts<'s>>,
    /// Where its keys meet their state.
    pub stages: Vec<StageFacts<'s>>,
}

/// An operator on this shard.
#[derive(Debug)]
pub struct OperatorFacts<'s> {
    /// Its name.
    pub operator: &'s str,
    /// What it has done since the start.
    pub counts: OperatorCounts,
    /// How long its calls took since the start, if they are measured.
    pub call_times: &'s CallTimes,
    /// Its event time, in milliseconds since 1970, if it has one.
    pub watermark_ms: Option<i64>,
    /// What it keeps.
    pub state: StateSize,
}

/// An edge of a graph on this shard.
#[derive(Debug)]
pub struct EdgeFacts<'s> {
    /// What it comes from, by name.
    pub from: &'s str,
    /// What it leads to, by name.
    pub to: &'s str,
    /// Values that passed it since the start.
    pub records: u64,
}

/// A stage on this shard.
#[derive(Debug)]
pub struct StageFacts<'s> {
    /// Its name.
    pub stage: &'s str,
    /// Records of other shards that wait for their turn.
    pub waiting: u64,
    /// Bytes of the batches that they are in.
    pub waiting_size: u64,
}

impl Hosted {
    fn task(&self) -> Option<&Task> {
        self.wired.as_ref().map(|wired| &wired.task)
    }

    /// The edges of its graph; those with the same ends are one.
    fn edges(&self) -> Vec<EdgeFacts<'_>> {
        let counts = &self.task().map_or(&self.figures, Task::figures).edges;
        let mut edges: Vec<EdgeFacts<'_>> = Vec::new();
        for ((from, to), records) in self.plan.edges().iter().zip(counts) {
            match edges.iter_mut().find(|edge| edge.from == from && edge.to == to) {
                Some(edge) => edge.records += records,
                None => edges.push(EdgeFacts { from, to, records: *records }),
            }
        }
        edges
    }

    fn stages(&self) -> Vec<StageFacts<'_>> {
        let stage = |(stage, id)| {
            let waiting = self.queues.iter().map(|queue| queue.waiting_for(id));
            let (waiting, waiting_size) =
                waiting.fold((0, 0), |sums, it| (sums.0 + it.records, sums.1 + it.size));
            StageFacts { stage, waiting, waiting_size }
        };
        self.plan.stages().zip(self.plan.stage_ids().iter().copied()).map(stage).collect()
    }
}

impl Shard {
    /// Why a topology does not run, for each that does not.
    pub fn paused_topologies(&self) -> impl Iterator<Item = (&str, &str)> {
        self.topologies.hosted.iter().filter_map(|it| Some((it.plan.name(), self.pause_of(it)?)))
    }

    fn pause_of<'s>(&self, hosted: &'s Hosted) -> Option<&'s str> {
        let over_budget = self.topologies.is_over_budget.then_some(OVER_BUDGET);
        let pause = hosted.pause.as_ref().map(|pause| pause.why.as_str());
        hosted.culprit.as_deref().or(pause).or(over_budget)
    }

    /// What each topology has done here since the start, and how it is.
    pub fn topologies(&self) -> impl Iterator<Item = TopologyFacts<'_>> {
        self.topologies.hosted.iter().map(|hosted| {
            let task = hosted.task();
            TopologyFacts {
                plan: &hosted.plan,
                pause: self.pause_of(hosted),
                counts: task.map_or(&hosted.figures, Task::figures).counts,
                watermark_ms: task
                    .and_then(|task| task.times().operators_ms().iter().min().copied()),
                waiting: hosted.queues.iter().map(Queue::waiting).sum::<usize>() as u64,
                waiting_size: hosted.queues.iter().map(Queue::size).sum::<usize>() as u64,
                calls_waiting: task.map_or(0, Task::waiting_calls) as u64,
                calls_open: hosted.calls_open as u64,
                operators: self.operators(hosted),
                edges: hosted.edges(),
                stages: hosted.stages(),
            }
        })
    }

    fn operators<'s>(&self, hosted: &'s Hosted) -> Vec<OperatorFacts<'s>> {
        let plan = &*hosted.plan;
        let figures = hosted.task().map_or(&hosted.figures, Task::figures);
        let times = hosted.task().map_or(&[][..], Task::watermarks_ms);
        let operator = |(index, name): (usize, &'s String)| {
            let states = plan.states().iter().filter(|state| state.operator == *name);
            let state = states.fold(StateSize::default(), |sum, state| {
                let StateSize { count, size } = self.state.of_operator_state(state.id.0);
                StateSize { count: sum.count + count, size: sum.size + size }
            });
            OperatorFacts {
                operator: name,
                counts: figures.operators[index],
                call_times: &figures.call_times[index],
                watermark_ms: times.get(index).copied().filter(|time_ms| *time_ms != i64::MIN),
                state,
            }
        };
        plan.operator_names().iter().enumerate().map(operator).collect()
    }

    /// How many entries of the state have keys that begin like one of these, and their bytes.
    #[cfg(test)]
    pub(crate) fn state_entries(&self, prefixes: &[Vec<u8>]) -> (usize, usize) {
        let entries = prefixes.iter().flat_map(|prefix| self.state.range(prefix));
        entries
            .fold((0, 0), |(count, size), (key, value)| (count + 1, size + key.len() + value.len()))
    }

    /// How far each topology has read the partitions of this shard: its name, the next offset.
    pub fn topology_progress(&self) -> impl Iterator<Item = (&str, PartitionId, u64)> {
        fn inputs(hosted: &Hosted) -> &[Input] {
            hosted.wired.as_ref().map_or(&[], |wired| &wired.inputs)
        }
        self.topologies.hosted.iter().flat_map(move |hosted| {
            let name = hosted.plan.name();
            inputs(hosted).iter().map(move |input| (name, input.id, input.next_offset))
        })
    }
}
