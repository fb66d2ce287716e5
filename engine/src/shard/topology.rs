//! Topologies at their shard: which records they take next, and where what they make goes.
//!
//! They run in the step of their input as long as its time lasts, so that a record, what it changed
//! and what it made are in one frame; what does not fit comes in a later one. How far each input was
//! taken is in the frame as well. What goes to another shard is an entry of the outbox; what comes
//! from one is taken in at once, and kept as state until its turn comes.

mod arrivals;
mod calls;
mod facts;
mod group;
mod inputs;
mod output;
mod query;
mod wiring;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use tidemill_wal::format::{ENTRY_OVERHEAD_MAX, PartitionId, Sequence, ShardId};
use tidemill_wal::limits::FRAME_SIZE_TARGET;

use self::arrivals::Queue;
pub use self::facts::{EdgeFacts, OperatorFacts, StageFacts, TopologyFacts};
use self::inputs::Input;
use super::{Outgoing, Shard};
use crate::command::TopicRoute;
use crate::effect::{Effect, MeshMessage, Now};
use crate::outbox::ENTRIES_MAX;
use crate::state::Kind;
use crate::topology::course::Course;
use crate::topology::{Figures, Fired, Plan, Step, Stopwatch, Task, Witness};

/// Most bytes that the records of a batch may take when they are decompressed.
pub const RECORDS_SIZE_MAX: usize = 64 << 20;

/// Entries for one shard that may be on their way before a topology that makes more of them stops
/// taking records; and bytes of them.
const ON_THEIR_WAY_MAX: usize = 256;
const ON_THEIR_WAY_SIZE_MAX: usize = 8 << 20;

/// Entries for one shard at which records of other shards wait as well, and timers that have begun to
/// fire. The rest of the outbox is for
/// what changes the catalog.
const FULL_AT: usize = 3 * ENTRIES_MAX / 4;

/// Bytes of keys of a dropped state that one step takes away, about.
const DROPPED_SIZE_MAX: usize = 16 << 10;

/// Bytes of entries that wait for their turn on this shard before the others take no more records
/// from topics; they may go on when half of them are left.
const WAITING_SIZE_MAX: usize = 8 << 20;

/// How long a topology rests whose records could not be read, before it tries again.
const RETRY_MS: u64 = 10_000;

/// What an entry of state takes in memory beside its key and value, about.
const STATE_ENTRY_OVERHEAD: usize = 128;

/// A topology of this shard.
pub(super) struct Hosted {
    plan: Arc<Plan>,
    /// None until all its topics are there.
    wired: Option<Wired>,
    /// What came from other shards and was not taken yet, in order for each.
    queues: Vec<Queue>,
    /// Shards that cannot follow: no records are taken from topics until they can.
    crowded: BTreeSet<ShardId>,
    /// Whether this one is among them, as the others were told.
    is_crowded: bool,
    pause: Option<Pause>,
    /// Blocking calls that were asked for and have not ended, of this wiring and earlier ones.
    calls_open: usize,
    /// It does not run, for a call of it has ended the process too often: which one, in words.
    culprit: Option<String>,
    /// Before it was wired.
    figures: Figures,
}

/// Why a topology does not run.
#[derive(Debug)]
struct Pause {
    why: String,
    /// When to try again, on the monotonic clock; none: when topics change, or after a restart.
    until_ms: Option<u64>,
}

impl Pause {
    /// For a while: the same may do better then.
    fn retried(why: String, now: Now) -> Self {
        Self { why, until_ms: Some(now.monotonic_ms + RETRY_MS) }
    }
}

impl std::fmt::Debug for Hosted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.plan.name();
        formatter.debug_struct("Hosted").field("name", &name).field("pause", &self.pause).finish()
    }
}

/// With its topics.
struct Wired {
    task: Task,
    sources: Vec<Arc<TopicRoute>>,
    sinks: Vec<Arc<TopicRoute>>,
    dead_letter: Option<Arc<TopicRoute>>,
    inputs: Vec<Input>,
    /// Inputs that may have records, in the order of their turns.
    ready: VecDeque<usize>,
    /// Inputs that have to be read from the disk, and wait for one of those that are.
    to_read: VecDeque<usize>,
    /// Inputs that are read from the disk, or whose batches from there were not all taken.
    reading: usize,
    /// Inputs that went on in this step.
    moved: Vec<usize>,
    /// What this step did.
    course: Course,
    /// When other shards were told of event time last, on the monotonic clock.
    told_ms: u64,
    /// Which wiring this is: a read that an older one asked for is not this one's.
    number: u64,
    /// What comes next.
    phase: Phase,
    /// Timers of an event time that has come are firing: nothing else is taken before they have.
    is_amid: bool,
    /// The shard whose entries come next.
    sender: usize,
    /// Records without a key so far: they go round the partitions.
    keyless: u32,
    /// What is to be stored once: keys and values.
    news: Vec<(Vec<u8>, Vec<u8>)>,
    /// States and timers whose entries are given up and not all gone: how their keys begin.
    dropping: Vec<Vec<u8>>,
}

/// Each takes its turn, so that none can keep the others from theirs.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Arrivals,
    Inputs,
    Calls,
    Timers,
}

impl Phase {
    const COUNT: usize = 4;

    fn next(self) -> Self {
        match self {
            Self::Arrivals => Self::Inputs,
            Self::Inputs => Self::Calls,
            Self::Calls => Self::Timers,
            Self::Timers => Self::Arrivals,
        }
    }
}

/// Sizes that follow from how much a frame may hold. What a step is estimated to make is never less
/// than half of what it makes, so with these it fits its frame, whatever commands put there before.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Bytes of a frame beyond which topologies put nothing more into it. Commands stop before, so
    /// that they cannot keep topologies from their share.
    frame: usize,
    /// Most that one call may make: less than a value of the log, for it may be one entry.
    call: usize,
    /// An entry for another shard, about: a single batch may be more.
    entry: usize,
    /// Records that one batch holds, about; a consumer gets it whole.
    batch: usize,
}

impl Sizes {
    fn new(frame_size_max: usize) -> Self {
        Self {
            frame: (2 * FRAME_SIZE_TARGET).min(frame_size_max / 4),
            call: (3 << 20).min(frame_size_max / 6),
            entry: (1 << 20).min(frame_size_max / 8),
            batch: (256 << 10).min(frame_size_max / 16),
        }
    }
}

/// What was done in a turn.
enum Turn {
    /// Something, and there may be more.
    Took,
    /// There is nothing to do.
    Nothing,
    /// The frame is full, or the time is over.
    Full,
    /// It cannot go on.
    Fault(String),
}

/// What the shard keeps for all its topologies.
#[derive(Debug, Default)]
pub(super) struct Topologies {
    hosted: Vec<Hosted>,
    /// The one that comes first in the next step.
    turn: usize,
    /// Inputs by what they read: topology and input, by number.
    readers: HashMap<PartitionId, Vec<(usize, usize)>>,
    /// Partitions with new batches, each with where its batch is: the frame, and its number in it.
    appended: Vec<(PartitionId, Sequence, usize)>,
    /// Shards whose entries came in this step, with the filter that says so.
    arrived: Vec<arrivals::Arrived>,
    /// Bytes of entries that came in this step, and are not in its frame yet.
    arrived_size: usize,
    /// Senders of some of these wait for word of them.
    is_awaited: bool,
    /// Shards tell each other of event time, each as soon as all that it sent before has arrived.
    tells_time: bool,
    /// Entries for which the log had no room.
    held: VecDeque<arrivals::Held>,
    /// Topics have come or gone since topologies were wired.
    needs_wiring: bool,
    /// How many wirings there were.
    wirings: u64,
    /// When topologies have to be looked at, on the monotonic clock.
    due_ms: Option<u64>,
    /// All state is more than its budget.
    is_over_budget: bool,
    /// What calls are measured with.
    stopwatch: Option<Stopwatch>,
    /// Where calls are noted.
    witness: Option<&'static Witness>,
}

impl Topologies {
    pub(super) fn due_ms(&self) -> Option<u64> {
        self.due_ms
    }

    /// Topics have come or gone.
    pub(super) fn on_topics_changed(&mut self) {
        self.needs_wiring = true;
    }

    /// Whether entries of a shard came in this step, and the filter that says so is not recorded.
    pub(super) fn has_arrived(&self, from: ShardId) -> bool {
        self.arrived.iter().any(|arrived| arrived.is_from(from))
    }

    /// Bytes that the filling frame is to have beside those that it has: of what other shards sent.
    pub(super) fn arrived_size(&self) -> usize {
        self.arrived_size
    }

    /// A batch is in the filling frame.
    pub(super) fn on_appended(&mut self, partition: PartitionId, frame: Sequence, number: usize) {
        if self.readers.contains_key(&partition) {
            self.appended.push((partition, frame, number));
        }
    }
}

const OVER_BUDGET: &str = "the state of this shard is at its budget; raise `state_budget`, or let \
                           operators forget";

impl Shard {
    /// Whether it was told to run any.
    pub fn has_topologies(&self) -> bool {
        !self.topologies.hosted.is_empty()
    }

    /// Measures calls of operators with this from now on; to be said before they first work.
    pub fn measure_calls(&mut self, stopwatch: Stopwatch) {
        self.topologies.stopwatch = Some(stopwatch);
    }

    /// Notes each call of operators here while it runs; to be said before they first work. A topology
    /// whose call ended the processes before this one too often does not run.
    pub fn note_calls(&mut self, witness: &'static Witness) {
        self.topologies.witness = Some(witness);
        for (call, ends) in witness.start() {
            let hosted = self.topologies.hosted.iter_mut();
            for hosted in hosted.filter(|it| it.plan.id() == call.topology()) {
                let shown = call.shown(&hosted.plan);
                hosted.culprit = Some(format!(
                    "the process ended {ends} times in a row inside of it, at {shown}; nothing is \
                     lost. Mend the program, stop the node and start it again: a stop that is asked \
                     for forgets this"
                ));
            }
        }
    }

    /// The node ends as it should: no call is to blame any more.
    pub fn forget_ends(&self) {
        if let Some(witness) = self.topologies.witness {
            witness.forget();
        }
    }

    /// Entries of other shards that are stored for topologies.
    pub fn stored_arrivals(&self) -> usize {
        self.state.range(&Kind::TopologyArrival.key(&[])).count()
    }

    /// Lets topologies work until nothing is left, the frame is full, or `goes_on` says no, which
    /// is asked between records. True if there is more to do at once: for them, or for upkeep, which
    /// [`Self::flush`] does.
    pub fn process(
        &mut self,
        now: Now,
        goes_on: &mut dyn FnMut() -> bool,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let has_more = self.process_topologies(now, goes_on, effects);
        has_more || self.upkeep.is_copying()
    }

    fn process_topologies(
        &mut self,
        now: Now,
        goes_on: &mut dyn FnMut() -> bool,
        effects: &mut Vec<Effect>,
    ) -> bool {
        // What came in this step is stored at its end; a node that stops begins nothing.
        if self.is_stopping {
            self.topologies.due_ms = None;
            return false;
        }
        self.take_held(effects);
        if self.topologies.hosted.is_empty() {
            return false;
        }
        if std::mem::take(&mut self.topologies.needs_wiring) {
            self.wire(now);
        }
        self.spread_news();
        let mut is_late = false;
        let mut has_begun = false;
        let mut goes_on = || {
            let has_time = goes_on();
            // One call is made in any case, so that there is progress however short the time is.
            is_late = std::mem::replace(&mut has_begun, true) && (is_late || !has_time);
            !is_late
        };
        self.topologies.is_over_budget = self.state_memory() > self.options.state_budget;
        let count = self.topologies.hosted.len();
        let first = self.topologies.turn;
        self.topologies.turn = (first + 1) % count;
        let mut has_more = false;
        for turn in 0..count {
            let index = (first + turn) % count;
            has_more |= self.process_one(now, index, &mut goes_on, effects);
            self.control_flow(index, effects);
        }
        self.topologies.due_ms = self.topologies_due(now);
        is_late || has_more || !self.topologies.appended.is_empty()
    }

    fn sizes(&self) -> Sizes {
        Sizes::new(self.wal.frame_size_max())
    }

    fn state_memory(&self) -> u64 {
        (self.state.size() + self.state.count() * STATE_ENTRY_OVERHEAD) as u64
    }

    /// True if it has more to do at once.
    fn process_one(
        &mut self,
        now: Now,
        index: usize,
        goes_on: &mut dyn FnMut() -> bool,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let sizes = self.sizes();
        let has_room = self.deferred.is_empty() && self.has_room(sizes.frame + 2 * sizes.call);
        // Apart from the shard while it works on it.
        let hosted = &mut self.topologies.hosted[index];
        let is_due = |pause: &Pause| pause.until_ms.is_some_and(|at_ms| at_ms <= now.monotonic_ms);
        hosted.pause.take_if(|pause| is_due(pause));
        if hosted.pause.is_some() || hosted.culprit.is_some() || !has_room {
            return false;
        }
        let Some(mut wired) = hosted.wired.take() else { return false };
        let mut queues = std::mem::take(&mut hosted.queues);
        let has_more = self.work(now, index, &mut wired, &mut queues, goes_on, effects);
        let hosted = &mut self.topologies.hosted[index];
        (hosted.wired, hosted.queues) = (Some(wired), queues);
        has_more
    }

    /// Whether the topology may make what goes to other shards. What comes from there is taken in any
    /// case: if that waited as well, two shards could wait for each other.
    fn may_send(&self, index: usize) -> bool {
        let hosted = &self.topologies.hosted[index];
        hosted.crowded.is_empty()
            && !hosted.is_crowded
            && self.outbox.depth() < ON_THEIR_WAY_MAX
            && self.outbox.size() < ON_THEIR_WAY_SIZE_MAX
    }

    /// When a timer by the clock is due next, a source falls silent, or a pause ends, on the
    /// monotonic clock. What is due and waits for something else has no time.
    fn topologies_due(&self, now: Now) -> Option<u64> {
        let due_ms = |hosted: &Hosted| {
            if hosted.culprit.is_some() {
                return None;
            }
            if let Some(pause) = &hosted.pause {
                return pause.until_ms;
            }
            let wired = hosted.wired.as_ref()?;
            let task = &wired.task;
            let left_ms = |time_ms: i64| time_ms.saturating_sub(task.clock_ms());
            let timer_ms = task.next_timer_ms(&self.state).map(left_ms).filter(|left| *left > 0);
            let timer_ms = timer_ms.map(|left| now.monotonic_ms.saturating_add(left as u64));
            let silent_ms = task.times().silent_at_ms().filter(|at_ms| *at_ms > now.monotonic_ms);
            timer_ms.into_iter().chain(silent_ms).min()
        };
        self.topologies.hosted.iter().filter_map(due_ms).min()
    }

    fn work(
        &mut self,
        now: Now,
        index: usize,
        wired: &mut Wired,
        queues: &mut [Queue],
        goes_on: &mut dyn FnMut() -> bool,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let sizes = self.sizes();
        let Some(room) = sizes.frame.checked_sub(self.wal.filling_size()) else { return false };
        self.fall_silent(now, wired);
        let sequence = self.wal.filling().0;
        wired.task.begin(Step { now, sequence, seed: self.step_seed(), size_max: sizes.call });
        self.drop_entries(wired);
        let may_send = self.may_send(index);
        // Time goes on and makes the state smaller, if anything does.
        let may_grow = !self.topologies.is_over_budget;
        let is_filled =
            self.outbox.depth() >= FULL_AT || self.outbox.size() >= 2 * ON_THEIR_WAY_SIZE_MAX;
        let mut is_full = false;
        let mut resting = 0;
        while resting < Phase::COUNT && !is_full {
            let turn = match wired.phase {
                Phase::Arrivals => {
                    // The outbox empties when its entries are stored, not when they are taken, so no
                    // two shards wait for each other with this.
                    let may_take = may_grow && !is_filled && !wired.task.has_many_calls();
                    self.take_arrivals(wired, queues, (room, may_take), goes_on)
                }
                Phase::Inputs if !may_send || !may_grow || wired.task.has_many_calls() => {
                    Turn::Nothing
                }
                Phase::Inputs => self.take_input(index, wired, room, goes_on, effects),
                Phase::Calls if is_filled => Turn::Nothing,
                Phase::Calls => self.take_results(wired, room, goes_on),
                Phase::Timers if !may_send && (!wired.is_amid || is_filled) => Turn::Nothing,
                // Timers that have begun to fire are not held up, for results wait for them.
                Phase::Timers if wired.task.has_many_calls() && !wired.is_amid => Turn::Nothing,
                Phase::Timers => {
                    let before = wired.task.figures().counts.timers;
                    let fired = wired.task.fire(&mut self.state, room, goes_on);
                    let count = wired.task.figures().counts.timers - before;
                    wired.course.on_timers(wired.task.take_seen(), count);
                    wired.is_amid = fired == Fired::CutAmid;
                    match fired {
                        Fired::None => Turn::Nothing,
                        Fired::All => Turn::Took,
                        Fired::Cut | Fired::CutAmid => Turn::Full,
                    }
                }
            };
            if !wired.is_amid {
                wired.phase = wired.phase.next();
            }
            match turn {
                Turn::Took => (resting, is_full) = (0, wired.course.is_full()),
                Turn::Nothing => resting += 1,
                Turn::Full => is_full = true,
                Turn::Fault(why) => {
                    self.topologies.hosted[index].pause = Some(Pause::retried(why, now));
                    break;
                }
            }
        }
        if let Some(failure) = wired.task.take_stuck() {
            // It may be deleted meanwhile, or the operator does better with it.
            let why = format!("{failure}; there is no dead-letter topic for the record");
            self.topologies.hosted[index].pause = Some(Pause::retried(why, now));
        }
        let has_made = self.put_away(now, wired, queues, effects);
        if self.topologies.hosted[index].pause.is_none() {
            self.ask_calls(index, wired, effects);
        }
        has_made && (is_full || !wired.dropping.is_empty())
    }

    /// Seed of the random numbers of the steps that go into the filling frame.
    fn step_seed(&self) -> u64 {
        self.options.seed[1] ^ self.wal.filling().0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Takes away some entries of what was given up.
    fn drop_entries(&mut self, wired: &mut Wired) {
        let Some(prefix) = wired.dropping.last() else { return };
        let mut keys: Vec<Vec<u8>> = Vec::new();
        let mut size = 0;
        let mut is_all = true;
        for (key, _) in self.state.range(prefix) {
            if size > DROPPED_SIZE_MAX {
                is_all = false;
                break;
            }
            size += key.len() + ENTRY_OVERHEAD_MAX;
            keys.push(key.to_vec());
        }
        if is_all {
            wired.dropping.pop();
        }
        for key in keys {
            wired.task.keep(&mut self.state, key, None);
        }
    }

    /// Tells the other shards that this one cannot follow with a topology, or can again. All of them,
    /// for what one sends may come of what another one sent to it.
    fn control_flow(&mut self, index: usize, effects: &mut Vec<Effect>) {
        let hosted = &mut self.topologies.hosted[index];
        let size: usize = hosted.queues.iter().map(Queue::size).sum();
        let size_max = if hosted.is_crowded { WAITING_SIZE_MAX / 2 } else { WAITING_SIZE_MAX };
        let stops = size > size_max;
        if std::mem::replace(&mut hosted.is_crowded, stops) == stops {
            return;
        }
        let topology = hosted.plan.id().0;
        for other in self.outbox.others() {
            let message = MeshMessage::TopologyFlow { topology, stops };
            self.release(Outgoing::Mesh(other, message), effects);
        }
    }

    /// Another shard cannot follow with a topology, or can again.
    pub(super) fn on_flow(&mut self, from: ShardId, topology: u64, stops: bool) {
        let hosted = self.topologies.hosted.iter_mut().find(|it| it.plan.id().0 == topology);
        if let Some(hosted) = hosted {
            match stops {
                true => _ = hosted.crowded.insert(from),
                false => _ = hosted.crowded.remove(&from),
            }
        }
    }
}
