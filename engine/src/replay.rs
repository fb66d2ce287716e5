//! Runs topologies once more over what a stopped node recorded, and compares: what differs was made of
//! something else than records and state.
//!
//! An alarm and never a condition for starting: recovery runs no operator, and this changes nothing.
//! Each step is made again from the state before it, which is what the frames say and not what was made
//! again, so that one difference does not bring forth others. What a step needs may be gone: state of
//! the time before the newest delta file, records that retention took. Such steps are counted.

mod again;
mod difference;
mod lookup;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tidemill_wal::disk::Storage;
use tidemill_wal::format::{Entry, PartitionId, Sequence, ShardId};
use tidemill_wal::limits::{SEGMENT_COUNT_MAX_DEFAULT, SEGMENT_SIZE_DEFAULT};
use tidemill_wal::manifest::Manifest;
use tidemill_wal::recovery::{self, Newest, ReplayFrame, ScanStart};
use tidemill_wal::store::Store;

use self::again::{Again, Stop};
pub use self::difference::Difference;
use self::lookup::Lookup;
use crate::catalog::{Catalog, CatalogLimits};
use crate::command::Routes;
use crate::effect::Change;
use crate::shard::{LogEnd, OpenError, agree_on_ends};
use crate::state::{Kind, State};
use crate::topology::course::StoredCourse;
use crate::topology::stored::{self, StoredStep};
use crate::topology::{Circumstances, NameId, Plan, StagePlace};

/// A shard whose files cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("shard {shard}: {source}")]
pub struct ShardError {
    /// Which.
    pub shard: u16,
    /// Why.
    pub source: OpenError,
}

/// Steps that were not made again, by the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unchecked {
    /// The state before them is not there any more, for a newer one was stored over it.
    pub state_gone: u64,
    /// Records that they took are not there any more.
    pub input_gone: u64,
    /// The release that made them did not record what they did.
    pub unrecorded: u64,
    /// Of a topology that the program does not have.
    pub unknown: u64,
    /// Of a topology with other operators or sources than the program's.
    pub other: u64,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Report {
    /// Frames that were read.
    pub frames: u64,
    /// Steps that were made again.
    pub steps: u64,
    /// Calls of operators in these: records and timers.
    pub calls: u64,
    /// Steps that were not.
    pub unchecked: Unchecked,
    /// Steps that came out otherwise.
    pub differing: u64,
    /// The first difference of each shard that has one, by shard.
    pub differences: Vec<Difference>,
}

impl Unchecked {
    fn reasons(&self) -> [(u64, &'static str); 5] {
        [
            (self.state_gone, "the state before them is not there any more"),
            (self.input_gone, "records that they took are not there any more"),
            (self.unrecorded, "they were made by a release that did not record them"),
            (self.unknown, "their topology is not one of this program"),
            (self.other, "their topology had other operators or sources"),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frames, steps, calls, .. } = self;
        writeln!(f, "{steps} steps with {calls} calls made again, out of {frames} frames")?;
        for (count, reason) in self.unchecked.reasons() {
            if count > 0 {
                writeln!(f, "{count} steps not made again: {reason}")?;
            }
        }
        for difference in &self.differences {
            writeln!(f, "difference: {difference}")?;
        }
        match self.differing {
            0 if self.steps == 0 => write!(f, "nothing was checked"),
            0 => write!(f, "no difference"),
            count => {
                write!(f, "{count} steps came out otherwise; the first of each shard is above")
            }
        }
    }
}

/// What a shard's files hold before the frames.
struct Base {
    store: Store,
    state: State,
}

impl Base {
    /// None: the shard has nothing.
    fn load(storage: &dyn Storage, shard: ShardId) -> Result<Option<Self>, OpenError> {
        let Some(loaded) = Store::load(storage, shard)? else { return Ok(None) };
        let mut state = State::default();
        loaded.store.visit_state(storage, &mut |key, value| state.load(key, value))?;
        Ok(Some(Self { store: loaded.store, state }))
    }

    /// The newest frame that the state has seen something of. With all frames up to it, the state is
    /// that of one moment.
    fn seen(&self) -> Sequence {
        let manifest = self.store.manifest();
        let deltas = manifest.deltas.iter().map(|delta| delta.valid_at);
        let snapshots = manifest.snapshots.last().map(|snapshot| snapshot.last);
        deltas.chain(snapshots).max().unwrap_or(Sequence(0))
    }
}

/// Makes every step of these topologies again that the shards' frames hold. The n-th storage is that of
/// shard n; nothing is written, and nobody else may write meanwhile.
pub fn verify(storages: &[&dyn Storage], plans: &[Arc<Plan>]) -> Result<Report, ShardError> {
    let at = |shard: usize| move |source: OpenError| ShardError { shard: shard as u16, source };
    let mut report = Report::default();
    let mut lookup = Lookup::new(storages);
    let (mut bases, mut ends, mut newest) = (Vec::new(), Vec::new(), Vec::new());
    for (shard, storage) in storages.iter().enumerate() {
        let id = ShardId(shard as u16);
        let base = Base::load(*storage, id).map_err(at(shard))?;
        let mut end = LogEnd::default();
        if let Some(base) = &base {
            let unread = |why| at(shard)(OpenError::Contents(why));
            lookup.add_state(id, &base.state);
            end.add_state(&base.state).map_err(unread)?;
            let start = scan_start(base.store.manifest());
            let mut add = |frame: ReplayFrame| {
                end.add_frame(&frame)?;
                lookup.add_frame(id, &frame)
            };
            let (_, found) = recovery::scan_to_newest(*storage, &start, &mut add)
                .map_err(|error| at(shard)(error.into()))?;
            if let Some(Newest { frame, .. }) = found {
                end.set_newest(&frame).map_err(unread)?;
                newest.push((shard, frame));
            }
        }
        bases.push(base);
        ends.push(end);
    }
    // What the next start cuts is no step of anybody.
    let cuts = agree_on_ends(&ends)
        .map_err(|fault| at(usize::from(fault.own))(OpenError::Disagree(fault)))?;
    for (shard, frame) in newest.iter().filter(|(shard, _)| !cuts[*shard]) {
        let added = lookup.add_frame(ShardId(*shard as u16), frame);
        added.map_err(|why| at(*shard)(OpenError::Contents(why)))?;
    }
    for ((shard, base), is_cut) in bases.into_iter().enumerate().zip(cuts) {
        let Some(base) = base else { continue };
        let (start, seen) = (scan_start(base.store.manifest()), base.seen());
        let mut walk = Walk {
            shard: ShardId(shard as u16),
            shard_count: storages.len() as u16,
            plans,
            store: base.store,
            state: base.state,
            seen,
            catalog: None,
            lookup: &lookup,
            report: &mut report,
            has_difference: false,
        };
        let mut visit = |frame| walk.frame(frame);
        let (_, newest) = recovery::scan_to_newest(storages[shard], &start, &mut visit)
            .map_err(|error| at(shard)(error.into()))?;
        if let Some(newest) = newest.filter(|_| !is_cut) {
            newest.visit(&mut visit).map_err(|error| at(shard)(error.into()))?;
        }
    }
    Ok(report)
}

fn scan_start(manifest: &Manifest) -> ScanStart {
    ScanStart {
        shard: manifest.shard,
        first_segment: manifest.first_segment,
        replay_from: manifest.replay_from,
        known_durable: manifest.durable,
        epoch_min: manifest.epoch,
        // These decide only which spare segments stay, and nothing is removed here.
        segment_size: SEGMENT_SIZE_DEFAULT,
        segment_count_max: SEGMENT_COUNT_MAX_DEFAULT,
    }
}

/// What a frame holds.
enum Item {
    Batch(PartitionId, Bytes),
    Change(Change),
}

impl Item {
    fn change(&self) -> Option<&Change> {
        match self {
            Self::Change(change) => Some(change),
            Self::Batch(..) => None,
        }
    }
}

fn items(frame: &ReplayFrame) -> Result<Vec<Item>, String> {
    let item = |(payload, entry): (std::ops::Range<usize>, Entry<'_>)| match entry {
        Entry::Batch(entry, _) => Item::Batch(entry.partition, frame.bytes.slice(payload)),
        Entry::Put { key, value } => {
            Item::Change(Change { key: key.to_vec(), value: Some(value.to_vec()) })
        }
        Entry::Delete { key } => Item::Change(Change { key: key.to_vec(), value: None }),
    };
    let entries = frame.entries().map(|it| it.map(item).map_err(|fault| fault.to_string()));
    entries.collect()
}

/// A shard's frames, one after the other.
struct Walk<'w> {
    shard: ShardId,
    shard_count: u16,
    plans: &'w [Arc<Plan>],
    store: Store,
    state: State,
    /// From the frame after this one on the state is known.
    seen: Sequence,
    /// None: it has to be made of the state.
    catalog: Option<Catalog>,
    lookup: &'w Lookup<'w>,
    report: &'w mut Report,
    has_difference: bool,
}

/// A step as a frame has it.
struct Recorded<'r> {
    plan: &'r Plan,
    frame: Sequence,
    course: StoredCourse,
    step: StoredStep,
    batches: Vec<(PartitionId, Bytes)>,
    changes: Vec<&'r Change>,
}

impl Walk<'_> {
    fn frame(&mut self, frame: ReplayFrame) -> Result<(), String> {
        self.report.frames += 1;
        let sequence = frame.header.sequence();
        let items = items(&frame)?;
        self.lookup.keep_recent(self.shard, frame);
        let is_course = |change: &Change| Kind::of(&change.key) == Some(Kind::TopologyCourse);
        let is_step = |change: &Change| Kind::of(&change.key) == Some(Kind::TopologyStep);
        // Behind the entries of a step whose course is known.
        let mut known = 0;
        for (index, item) in items.iter().enumerate() {
            let Some(change) = item.change() else { continue };
            if let (true, Some(course)) = (is_course(change), &change.value) {
                let course = StoredCourse::decode(course)?;
                let (batches, changes) = around(&items, index, &course)
                    .ok_or("a step says that it made more than its frame holds")?;
                known = index + 1 + changes.len();
                self.step(sequence, (&change.key, course), batches, changes)?;
            } else if is_step(change) && index >= known {
                self.report.unchecked.unrecorded += 1;
            }
            if matches!(Kind::of(&change.key), Some(Kind::Topic | Kind::CatalogVersion)) {
                self.catalog = None;
            }
            self.state.load(&change.key, change.value.as_deref());
        }
        Ok(())
    }

    /// Makes a step again, if that can be done.
    fn step(
        &mut self,
        frame: Sequence,
        (key, course): (&[u8], StoredCourse),
        batches: &[Item],
        changes: &[Item],
    ) -> Result<(), String> {
        let topology = stored::decode_step_key(key).ok_or("the key of a course is short")?;
        if frame <= self.seen {
            self.report.unchecked.state_gone += 1;
            return Ok(());
        }
        let plans = self.plans;
        let Some(plan) = plans.iter().find(|plan| plan.id() == topology) else {
            self.report.unchecked.unknown += 1;
            return Ok(());
        };
        let changes: Vec<&Change> = changes.iter().filter_map(Item::change).collect();
        let step_key = stored::step_key(topology);
        let step = changes.iter().find(|change| change.key == step_key);
        let step = step.and_then(|change| change.value.as_deref());
        let step = StoredStep::decode(step.ok_or("a course without its step")?)?;
        let batch = |item: &Item| match item {
            Item::Batch(id, bytes) => Some((*id, bytes.clone())),
            Item::Change(_) => None,
        };
        let batches = batches.iter().filter_map(batch).collect();
        let recorded = Recorded { plan, frame, course, step, batches, changes };
        let Some(circumstances) = self.circumstances(&recorded)? else {
            self.report.unchecked.other += 1;
            return Ok(());
        };
        let routes = routes_of(&mut self.catalog, &self.state, self.shard_count)?;
        let Some(mut again) = Again::new(
            &recorded,
            circumstances,
            (self.shard, routes),
            &mut self.state,
            (self.lookup, &self.store),
        )?
        else {
            self.report.unchecked.other += 1;
            return Ok(());
        };
        let result = again.make().and_then(|()| again.compare());
        let calls = again.calls();
        again.take_back();
        let difference = match result {
            Ok(difference) => difference,
            Err(Stop::Differs(difference)) => Some(*difference),
            Err(Stop::Gone) => {
                self.report.unchecked.input_gone += 1;
                return Ok(());
            }
            Err(Stop::Unreadable(why)) => return Err(why),
        };
        self.report.steps += 1;
        self.report.calls += calls;
        if let Some(difference) = difference {
            self.report.differing += 1;
            if !std::mem::replace(&mut self.has_difference, true) {
                self.report.differences.push(difference);
            }
        }
        Ok(())
    }

    /// What held for the step. None if the topology that made it had other operators or stages.
    fn circumstances(&self, recorded: &Recorded<'_>) -> Result<Option<Circumstances>, String> {
        let Recorded { plan, frame, course, step, changes, .. } = recorded;
        let operators = step.operators_ms.iter().map(|(id, ..)| *id);
        let stages = step.heard.iter().map(|(id, _)| *id);
        if !operators.eq(plan.operators().map(|(id, _)| id))
            || !stages.eq(plan.stage_ids().iter().copied())
        {
            return Ok(None);
        }
        // The first step brings them along.
        let key = stored::places_key(plan.id());
        let new = changes.iter().find(|change| change.key == key);
        let places = new.and_then(|change| change.value.as_deref());
        let places = match places.or_else(|| self.state.value(&key)) {
            Some(bytes) => stored::decode_places(bytes).ok_or("stages cannot be read")?,
            None => BTreeMap::new(),
        };
        let place = |id: &NameId| places.get(id).copied();
        let stages: Option<Vec<StagePlace>> = plan.stage_ids().iter().map(place).collect();
        let Some(stages) = stages else { return Ok(None) };
        let before = self.state.value(&stored::step_key(plan.id())).map(StoredStep::decode);
        let before = before.transpose()?.unwrap_or_default();
        let seen_ms = |(id, _)| {
            let known = before.operators_ms.iter().find(|(known, ..)| *known == id);
            known.map_or(i64::MIN, |(.., seen_ms)| *seen_ms)
        };
        let seen_before = plan.seen_before(&self.state)?.into_iter();
        let seen_before_ms = seen_before.flat_map(|(_, seen_ms)| seen_ms).collect();
        Ok(Some(Circumstances {
            now_ms: step.clock_ms,
            shard: self.shard,
            shard_count: self.shard_count,
            stages,
            watermarks_ms: plan.operators().map(seen_ms).collect(),
            seed: course.seed,
            step: frame.0,
            size_max: course.size_max as usize,
            seen_before_ms,
            stopwatch: None,
        }))
    }
}

/// The batches before a course and the changes behind it that are the step's.
fn around<'i>(
    items: &'i [Item],
    index: usize,
    course: &StoredCourse,
) -> Option<(&'i [Item], &'i [Item])> {
    let first = index.checked_sub(usize::try_from(course.batches).ok()?)?;
    let end = (index + 1).checked_add(usize::try_from(course.changes).ok()?)?;
    let (batches, changes) = (items.get(first..index)?, items.get(index + 1..end)?);
    let are_such = batches.iter().all(|item| item.change().is_none())
        && changes.iter().all(|item| item.change().is_some());
    are_such.then_some((batches, changes))
}

fn routes_of<'c>(
    catalog: &'c mut Option<Catalog>,
    state: &State,
    shard_count: u16,
) -> Result<&'c Routes, String> {
    let made = match catalog.take() {
        Some(catalog) => catalog,
        None => {
            // Reading is generous: whatever a node once allowed is understood.
            let limits = CatalogLimits {
                partition_count_default: 1,
                topic_count_max: u32::MAX,
                partition_count_max: u32::MAX,
                retention_ms: None,
                retention_bytes: None,
                batch_size_max: u32::MAX,
                batch_size_limit: u32::MAX,
            };
            let mut catalog = Catalog::new(shard_count, limits);
            for (key, value) in state.range(&[Kind::Topic as u8]) {
                let change = Change { key: key.to_vec(), value: Some(value.to_vec()) };
                catalog.apply(&change)?;
            }
            catalog
        }
    };
    Ok(catalog.insert(made).routes())
}
