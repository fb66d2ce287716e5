//! From the names in a topology to the topics and the state of this shard.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use tidemill_wal::format::ShardId;

use super::{Hosted, Input, Pause, Phase, Queue, Wired};
use crate::command::{CatalogCommand, NewTopic, Ticket, TopicRoute};
use crate::effect::{Effect, Now};
use crate::shard::{OpenError, Shard};
use crate::state::Kind;
use crate::topology::course::Course;
use crate::topology::declared::{StoredStates, states_key};
use crate::topology::stored::{self, StoredStep, mark_of};
use crate::topology::{
    CreatedTopic, Figures, KEY_PARTITIONS, NameId, Plan, StagePlace, Surroundings, Task,
    TimeDomain, Timer,
};

impl Wired {
    fn topics(&self) -> impl Iterator<Item = &Arc<TopicRoute>> {
        self.sources.iter().chain(&self.sinks).chain(&self.dead_letter)
    }
}

/// Goes on with the times of the last step; what is new among operators and stages begins anew.
fn resume(stored: &StoredStep, task: &mut Task) {
    for (id, fired_ms, seen_ms) in &stored.operators_ms {
        if let Some(operator) = task.plan().operator(*id) {
            task.resume_operator(operator, *fired_ms, *seen_ms);
        }
    }
    for (id, marks) in &stored.heard {
        let Some(stage) = task.plan().stage(*id) else { continue };
        for (shard, mark) in marks.iter().enumerate().take(task.times().heard(stage).len()) {
            task.times_mut().on_told(stage, shard, mark_of(*mark));
        }
    }
}

impl Shard {
    /// Takes up the topologies that the shard is to run, with what waited for them before the start.
    pub(in crate::shard) fn host(&mut self) -> Result<(), OpenError> {
        for plan in &self.options.topologies {
            self.check_created(plan)?;
            self.compared(plan).map_err(|why| OpenError::Topology(plan.name().to_owned(), why))?;
            let queues = (0..self.options.shard_count)
                .map(|sender| Queue::load(&self.state, plan, sender))
                .collect::<Result<_, _>>()
                .map_err(OpenError::Contents)?;
            self.topologies.hosted.push(Hosted {
                plan: plan.clone(),
                wired: None,
                queues,
                crowded: BTreeSet::new(),
                is_crowded: false,
                pause: None,
                calls_open: 0,
                culprit: None,
                figures: Figures::new(plan),
            });
            self.topologies.tells_time |= plan.timed_stages().contains(&true);
        }
        self.topologies.needs_wiring = true;
        Ok(())
    }

    /// Refuses topologies with topics that neither exist nor are made by one of them. For a start: a
    /// topic that goes later makes its topology rest.
    pub fn check_topics(&self) -> Result<(), OpenError> {
        let plans = &self.options.topologies;
        let is_made =
            |topic: &str| plans.iter().flat_map(|plan| plan.created()).any(|it| it.name == topic);
        let is_known = |topic: &str| self.catalog.routes().topics.contains_key(topic);
        for plan in plans {
            let unknown = plan.topics().find(|topic| !is_known(topic) && !is_made(topic));
            if let Some(topic) = unknown {
                let why = format!(
                    "there is no topic {topic:?}; create it with any Kafka client while a node \
                     without this topology runs, or let the program make it with \
                     `Topology::create`"
                );
                return Err(OpenError::Topology(plan.name().to_owned(), why));
            }
        }
        Ok(())
    }

    /// Makes the topics that topologies want to be made, as far as they do not exist.
    pub(in crate::shard) fn create_topics(&mut self, effects: &mut Vec<Effect>) {
        let plans = &self.options.topologies;
        let wanted: BTreeMap<&str, &CreatedTopic> = (plans.iter().flat_map(|plan| plan.created()))
            .map(|topic| (topic.name.as_str(), topic))
            .collect();
        let topics: Vec<NewTopic> = (wanted.into_values())
            .filter(|topic| !self.catalog.routes().topics.contains_key(topic.name.as_str()))
            .map(|topic| NewTopic {
                name: topic.name.clone(),
                partition_count: Some(topic.partition_count),
                config: topic.config.clone(),
                automatic: true,
            })
            .collect();
        if !topics.is_empty() {
            // Nobody waits for the answer; a topology without its topics says so.
            let ticket = Ticket { origin: self.options.id, id: u64::MAX };
            let command = CatalogCommand::CreateTopics { topics, validate_only: false };
            self.change_catalog(ticket, &command, effects);
        }
    }

    /// Refuses a topology that makes a topic with configuration that there is not.
    fn check_created(&self, plan: &Plan) -> Result<(), OpenError> {
        for topic in plan.created() {
            self.catalog.check_config(&topic.config).map_err(|refused| {
                let why = format!("topic {:?} cannot be made: {}", topic.name, refused.message);
                OpenError::Topology(plan.name().to_owned(), why)
            })?;
        }
        Ok(())
    }

    /// The states of a topology as they are to be stored, if it may run on what is there.
    fn compared(&self, plan: &Plan) -> Result<StoredStates, String> {
        let stored = match self.state.value(&states_key(plan.id())) {
            Some(bytes) => StoredStates::decode(bytes).ok_or("its states cannot be read")?,
            None => StoredStates::new(plan.name()),
        };
        let holds = |state: NameId| {
            let prefix = Kind::OperatorState.key(&[&state.0.to_be_bytes()]);
            self.state.range(&prefix).next().is_some()
        };
        stored.compare(plan, &holds).map_err(|faults| faults.join("; "))
    }

    /// Topics have come, changed or gone: topologies whose topics are all there can run.
    pub(super) fn wire(&mut self, now: Now) {
        let routes = self.catalog.routes();
        for hosted in &mut self.topologies.hosted {
            let is_same = |route: &Arc<TopicRoute>| {
                let known = routes.ids.get(&route.id);
                known.is_some_and(|it| it.partition_count == route.partition_count)
            };
            if let Some(wired) = hosted.wired.take_if(|wired| !wired.topics().all(is_same)) {
                hosted.figures = wired.task.figures().clone();
            }
        }
        for index in 0..self.topologies.hosted.len() {
            let hosted = &self.topologies.hosted[index];
            if hosted.wired.is_some() {
                continue;
            }
            let (plan, figures) = (hosted.plan.clone(), hosted.figures.clone());
            let wired = self.wired(plan, figures, now);
            let hosted = &mut self.topologies.hosted[index];
            match wired {
                Ok(wired) => (hosted.wired, hosted.pause) = (Some(wired), None),
                Err(why) => hosted.pause = Some(Pause { why, until_ms: None }),
            }
        }
        self.topologies.readers.clear();
        for (index, hosted) in self.topologies.hosted.iter().enumerate() {
            let inputs = hosted.wired.iter().flat_map(|wired| &wired.inputs).enumerate();
            for (number, input) in inputs {
                self.topologies.readers.entry(input.id).or_default().push((index, number));
            }
        }
    }

    fn wired(&mut self, plan: Arc<Plan>, figures: Figures, now: Now) -> Result<Wired, String> {
        let routes = self.catalog.routes();
        let topic = |name: &str| {
            let missing = || format!("there is no topic {name:?}; create it");
            routes.topics.get(name).cloned().ok_or_else(missing)
        };
        let sources: Vec<Arc<TopicRoute>> = plan.sources().map(topic).collect::<Result<_, _>>()?;
        let sinks: Vec<Arc<TopicRoute>> = plan.sinks().map(topic).collect::<Result<_, _>>()?;
        let dead_letter = plan.dead_letter().map(topic).transpose()?;
        let mut news = Vec::new();
        let stages = self.places(&plan, &sources, &mut news)?;
        let states = self.compared(&plan)?.encode();
        if self.state.value(&states_key(plan.id())) != Some(&states[..]) {
            news.push((states_key(plan.id()), states));
        }
        let (shard, shard_count) = (self.options.id, self.options.shard_count);
        let surroundings = Surroundings { shard, shard_count, stages };
        let stored = self.state.value(&stored::step_key(plan.id())).map(StoredStep::decode);
        let stored = stored.transpose()?.unwrap_or_default();
        let mut task = Task::new(plan.clone(), surroundings, stored.clock_ms, now.monotonic_ms);
        task.resume_figures(figures, self.topologies.stopwatch);
        task.note_calls(self.topologies.witness);
        resume(&stored, &mut task);
        let mut dropping = self.given_up(&plan);
        dropping.extend(self.resume_seen(&plan, &mut task)?);
        task.load_calls(&self.state)?;
        let mut inputs = Vec::new();
        for (source, route) in sources.iter().enumerate() {
            let own = (0..route.partition_count).filter(|index| route.shard_of(*index) == shard);
            for index in own {
                let id = route.partition(index);
                let progress = self.state.value(&stored::progress_key(plan.id(), id));
                let (next_offset, newest_ms) = match progress {
                    Some(bytes) => stored::decode_progress(bytes)?,
                    None => (0, i64::MIN),
                };
                task.times_mut().add_partition(source, index, newest_ms, now.monotonic_ms);
                inputs.push(Input::new(source, id, next_offset));
            }
        }
        self.topologies.wirings += 1;
        let count = inputs.len();
        let mut wired = Wired {
            task,
            sources,
            sinks,
            dead_letter,
            inputs,
            ready: VecDeque::new(),
            to_read: VecDeque::new(),
            reading: 0,
            moved: Vec::new(),
            course: Course::default(),
            told_ms: 0,
            number: self.topologies.wirings,
            // What the last step began is ended before anything else.
            phase: Phase::Timers,
            is_amid: stored.operators_ms.iter().any(|(_, fired_ms, seen_ms)| seen_ms > fired_ms),
            sender: 0,
            keyless: 0,
            news,
            dropping,
        };
        (0..count).for_each(|number| wired.set_ready(number));
        Ok(wired)
    }

    /// What operators of former shards saw of event time. Returns the keys of what is of no use any
    /// more.
    fn resume_seen(&self, plan: &Plan, task: &mut Task) -> Result<Vec<Vec<u8>>, String> {
        let mut useless = Vec::new();
        for (key, seen_ms) in plan.seen_before(&self.state)? {
            if !task.resume_seen(seen_ms) {
                useless.push(key);
            }
        }
        Ok(useless)
    }

    /// Where the keys of each stage are. It stays so for good, for their state is there: a topic that
    /// gets more partitions, or is made anew, has its records sent to where their keys are.
    fn places(
        &self,
        plan: &Plan,
        sources: &[Arc<TopicRoute>],
        news: &mut Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<Vec<StagePlace>, String> {
        let key = stored::places_key(plan.id());
        let stored = match self.state.value(&key) {
            Some(bytes) => stored::decode_places(bytes).ok_or("its stages cannot be read")?,
            None => BTreeMap::new(),
        };
        let ids = plan.stage_ids();
        let mut places: Vec<Option<StagePlace>> =
            ids.iter().map(|id| stored.get(id).copied()).collect();
        let mut is_kept: Vec<bool> = places.iter().map(Option::is_some).collect();
        for (source, route) in sources.iter().enumerate() {
            if let Some(stage) = plan.stage_of_source(source) {
                let (partition_count, first_shard) = (route.partition_count, route.first_shard);
                places[stage].get_or_insert(StagePlace { partition_count, first_shard });
            }
        }
        let elsewhere = StagePlace { partition_count: KEY_PARTITIONS, first_shard: ShardId(0) };
        let mut places: Vec<StagePlace> =
            places.into_iter().map(|place| place.unwrap_or(elsewhere)).collect();
        // Stages that are joined are in one place: that of one whose state is somewhere already.
        let pairs: Vec<(usize, usize)> = plan.together().collect();
        for _ in 0..places.len() {
            for (one, other) in &pairs {
                let (from, to) = if is_kept[*other] { (*other, *one) } else { (*one, *other) };
                if !is_kept[to] {
                    (places[to], is_kept[to]) = (places[from], is_kept[from]);
                }
            }
        }
        if let Some((one, other)) = pairs.iter().find(|(one, other)| places[*one] != places[*other])
        {
            let name = |stage: usize| plan.stages().nth(stage).unwrap_or_default();
            return Err(format!(
                "{:?} and {:?} are joined, and the state of their keys is in different places; give \
                 one of them its keys by `key_by` under a new name",
                name(*one),
                name(*other)
            ));
        }
        let all: BTreeMap<NameId, StagePlace> = ids.iter().copied().zip(places.clone()).collect();
        let all: BTreeMap<NameId, StagePlace> = stored.clone().into_iter().chain(all).collect();
        if all != stored {
            news.push((key, stored::encode_places(&all)));
        }
        Ok(places)
    }

    /// How the keys begin of what is given up: dropped states, and timers of operators that are gone.
    fn given_up(&self, plan: &Plan) -> Vec<Vec<u8>> {
        let state = |id: &NameId| Kind::OperatorState.key(&[&id.0.to_be_bytes()]);
        let mut prefixes: Vec<Vec<u8>> = plan.dropped().iter().map(state).collect();
        for domain in [TimeDomain::Event, TimeDomain::Processing] {
            let mut next = Timer::prefix(plan.id(), domain, NameId(0));
            let of_topology = next[..next.len() - 8].to_vec();
            while let Some(timer) = self.first_timer(&next, &of_topology) {
                if plan.operator(timer.operator).is_none() {
                    prefixes.push(Timer::prefix(plan.id(), domain, timer.operator));
                }
                let Some(after) = timer.operator.0.checked_add(1) else { break };
                next = Timer::prefix(plan.id(), domain, NameId(after));
            }
        }
        prefixes
    }

    /// The first timer from a key on, if its key begins like that.
    fn first_timer(&self, from: &[u8], prefix: &[u8]) -> Option<Timer> {
        let mut rest = self.state.range_between(Bound::Included(from), Bound::Unbounded);
        let (key, _) = rest.next().filter(|(key, _)| key.starts_with(prefix))?;
        Timer::decode(key)
    }
}
