//! From the first record that a topology takes to the last result that is durable.

use std::time::{Duration, Instant};

use tidemill::kafka::messages::OffsetFetchRequest;

use crate::client::Client;
use crate::load::Poll;
use crate::machine;
use crate::measure::{Reading, Target};
use crate::node::{Metrics, Node};
use crate::run::{Measured, Run};

/// From one look at a topology to the next.
const TICK: Duration = Duration::from_millis(10);

/// A topology that takes nothing for this long is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where not each record has a result, no more come when none came for this long after the last
/// record.
const QUIET: Duration = Duration::from_millis(500);

/// Longest wait until the figures of a topology, which are told each second, are those of the end.
const FIGURES_PATIENCE: Duration = Duration::from_secs(10);

/// How names of the threads begin in which shards do their steps.
const SHARD_THREADS: &str = "shard-";

/// Names topics by name, and can ask for all of them.
const OFFSETS_VERSION: i16 = 6;

/// A topology that is watched.
pub struct Watched<'a> {
    target: &'a Target,
    topology: &'a str,
    results: Results<'a>,
    client: Client,
}

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub struct Results<'a> {
    /// The topic.
    pub topic: &'a str,
    /// Its partitions.
    pub partitions: u32,
    /// Whether each record has one.
    pub is_each: bool,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Drained {
    /// Records that were taken between the first and the last look.
    pub records: u64,
    /// Between these.
    pub seconds: f64,
    /// Records a second of the second half of all records: what was made at first is there.
    pub second_half: f64,
    /// All records that were taken.
    pub taken: u64,
    /// Results in the end.
    pub results: u64,
    /// The node at the begin and at the end.
    spent: (Look, Look),
    metrics: Option<Metrics>,
}

/// One look at the node.
#[derive(Debug, Clone)]
pub struct Look {
    at: Instant,
    taken: u64,
    reading: Reading,
    /// Processor seconds of the shards' threads.
    shards_cpu: Option<f64>,
    metrics: Option<Metrics>,
}

impl Look {
    /// At a node that is not started yet.
    pub fn before(target: &Target) -> Self {
        let reading = Reading { cpu_seconds: Some(0.0), ..target.reading() };
        Self { at: Instant::now(), taken: 0, reading, shards_cpu: Some(0.0), metrics: None }
    }

    /// At a node whose topology has taken nothing yet.
    pub fn now(target: &Target) -> Self {
        Self::at(target, Instant::now(), 0)
    }

    fn at(target: &Target, at: Instant, taken: u64) -> Self {
        let shards_cpu = |pid| machine::threads_cpu_seconds(pid, SHARD_THREADS);
        Self {
            at,
            taken,
            reading: target.reading(),
            shards_cpu: target.pid().and_then(shards_cpu),
            metrics: target.node.as_ref().and_then(Node::metrics),
        }
    }

    fn metric(&self, name: &str) -> f64 {
        self.metrics.as_ref().and_then(|metrics| metrics.sum(name)).unwrap_or_default()
    }
}

impl<'a> Watched<'a> {
    /// Of a node that runs.
    pub fn open(
        target: &'a Target,
        topology: &'a str,
        results: Results<'a>,
    ) -> Result<Self, String> {
        let client = Client::open(target.address()).map_err(|error| error.to_string())?;
        Ok(Self { target, topology, results, client })
    }

    /// Watches until so many records are taken and their results durable. If the first look comes too
    /// late to measure anything, it counts from `before` on.
    pub fn drain(&mut self, before: Look, total: u64) -> Result<Drained, String> {
        let mut nothing = Poll::new().map_err(|error| error.to_string())?;
        let mut begin: Option<Look> = None;
        let mut looks: Vec<(Instant, u64)> = vec![(before.at, before.taken)];
        let mut moved = Instant::now();
        // The newest number of results after all was taken, and when it was new.
        let mut last: Option<(u64, Look)> = None;
        loop {
            let taken = self.taken()?;
            let at = Instant::now();
            if looks.last().is_some_and(|(_, known)| *known < taken) {
                moved = at;
                looks.push((at, taken));
                begin = begin.or_else(|| Some(Look::at(self.target, at, taken)));
            }
            if taken == total {
                let results = self.results()?;
                if last.as_ref().is_none_or(|(known, _)| *known != results) {
                    moved = Instant::now();
                    last = Some((results, Look::at(self.target, moved, taken)));
                }
                if self.is_whole(results, taken, moved)?
                    && let Some((_, end)) = last.take()
                {
                    let is_early = |begin: &Look| begin.taken < taken / 2;
                    let begin = begin.filter(is_early).unwrap_or(before);
                    return self.finish((begin, end), &looks, results);
                }
            }
            if moved.elapsed() > PATIENCE {
                return Err(self.stuck(taken, total));
            }
            nothing.wait(Some(TICK)).map_err(|error| error.to_string())?.for_each(drop);
        }
    }

    /// Records that the topology took so far: its offsets as a consumer group.
    fn taken(&mut self) -> Result<u64, String> {
        let group_id = format!("tidemill.{}", self.topology);
        let request = OffsetFetchRequest {
            group_id: group_id.as_str().into(),
            topics: None,
            ..OffsetFetchRequest::default()
        };
        let answer = self.client.ask(OFFSETS_VERSION, &request)?;
        if !answer.error_code.is_none() {
            return Err(format!("the offsets of {group_id}: {:?}", answer.error_code));
        }
        let found = answer.topics.iter().flat_map(|topic| &topic.partitions);
        Ok(found.filter_map(|found| u64::try_from(found.committed_offset).ok()).sum())
    }

    /// Whether so many results are all: one of each record, or no more come.
    fn is_whole(&self, results: u64, taken: u64, moved: Instant) -> Result<bool, String> {
        match self.results.is_each {
            true if results > taken => Err(format!("{results} results of {taken} records")),
            true => Ok(results == taken),
            false => Ok(moved.elapsed() > QUIET),
        }
    }

    /// How many are durable.
    fn results(&mut self) -> Result<u64, String> {
        let ends = self.client.ends(self.results.topic, self.results.partitions)?;
        Ok(ends.iter().sum())
    }

    fn finish(
        &self,
        spent: (Look, Look),
        looks: &[(Instant, u64)],
        results: u64,
    ) -> Result<Drained, String> {
        let (begin, end) = &spent;
        let seconds = end.at.duration_since(begin.at).as_secs_f64();
        let half = looks.iter().find(|(_, taken)| *taken >= end.taken / 2);
        let second_half = half.map_or(0.0, |(at, taken)| {
            (end.taken - taken) as f64 / end.at.duration_since(*at).as_secs_f64()
        });
        Ok(Drained {
            records: end.taken - begin.taken,
            seconds,
            second_half,
            taken: end.taken,
            results,
            metrics: self.last_metrics(end.taken)?,
            spent,
        })
    }

    /// The metrics when they know all that was taken.
    fn last_metrics(&self, taken: u64) -> Result<Option<Metrics>, String> {
        let Some(node) = &self.target.node else { return Ok(None) };
        let mut nothing = Poll::new().map_err(|error| error.to_string())?;
        let until = Instant::now() + FIGURES_PATIENCE;
        loop {
            let metrics = node.metrics();
            let known = metrics.as_ref().and_then(|it| it.sum("tidemill_topology_records_total"));
            if known.is_some_and(|known| known >= taken as f64) || Instant::now() > until {
                return Ok(metrics);
            }
            nothing.wait(Some(TICK)).map_err(|error| error.to_string())?.for_each(drop);
        }
    }

    fn stuck(&self, taken: u64, total: u64) -> String {
        let page = self.target.node.as_ref().and_then(|node| node.page("/topologies"));
        let topology = self.topology;
        format!(
            "{topology} took {taken} of {total} records and then none for {PATIENCE:?}: {}",
            page.unwrap_or_default()
        )
    }
}

impl Drained {
    /// Fills a run with it. `record_size` is that of a record as sent, batches included.
    pub fn tell(&self, target: &Target, record_size: f64, shards: u16, run: &mut Run) {
        let (begin, end) = &self.spent;
        let accepted_bytes = (self.records as f64 * record_size) as u64;
        let spent = (&begin.reading, &end.reading);
        let cost = target.cost(spent, (self.records, accepted_bytes), 0.0);
        let per_second = self.records as f64 / self.seconds;
        let per_record = |of: f64| of / self.records.max(1) as f64;
        let spent = |name: &str| end.metric(name) - begin.metric(name);
        let frames = spent("tidemill_frames_total");
        let shards_cpu = end.shards_cpu.zip(begin.shards_cpu).map(|(end, begin)| end - begin);
        let last = |name: &str| self.metrics.as_ref().and_then(|metrics| metrics.sum(name));
        let figures = [
            ("records_per_second_and_shard", Some(per_second / f64::from(shards))),
            ("records_per_second_of_the_second_half", Some(self.second_half)),
            ("shard_threads_busy", shards_cpu.map(|cpu| cpu / self.seconds / f64::from(shards))),
            ("node_cores_busy", cost.server_cpu_seconds.map(|cpu| cpu / self.seconds)),
            ("frames", Some(frames)),
            ("records_per_frame", (frames > 0.0).then(|| self.records as f64 / frames)),
            ("frame_bytes_per_record", Some(per_record(spent("tidemill_frame_size_bytes_sum")))),
            ("device_bytes_per_record", cost.device_written_bytes.map(|it| per_record(it as f64))),
            ("results", Some(self.results as f64)),
            ("late", last("tidemill_topology_late_total")),
            ("rejected", last("tidemill_topology_rejected_total")),
            ("state_bytes", last("tidemill_state_bytes")),
            ("resident_bytes", target.pid().and_then(machine::resident_bytes).map(|it| it as f64)),
        ];
        let known = figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        run.figures.extend(known);
        run.result = Measured {
            seconds: self.seconds,
            records: self.records,
            accepted_bytes,
            records_per_second: per_second,
            cost,
            ..Measured::default()
        };
    }
}
