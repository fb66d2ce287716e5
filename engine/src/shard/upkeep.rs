//! Upkeep in the background: segments made ready, settling, snapshots, merges, retention.
//!
//! One job that changes the manifest at a time; the making of segments goes on beside it, for
//! without a ready segment nothing can be acknowledged. Jobs are lists of disk operations that the
//! runtime performs in a task queue with fewer shares than the shard's own.
//!
//! A settle round writes extents from the tail and a delta file from the changed keys, and takes
//! effect with its manifest. The changes are copied in slices between steps, and made into a file
//! elsewhere, for there may be a million of them. Their values may be newer than the frames that are
//! settled, so a round is written only when everything that its values saw is durable. Replaying the
//! frames after it then ends in the same state, for changes are absolute.

use std::collections::BTreeSet;

use tidemill_wal::delta::StateChange;
use tidemill_wal::disk::{DiskFault, DiskOp};
use tidemill_wal::extent::{BatchRef, RunData};
use tidemill_wal::format::{PartitionId, SegmentId, Sequence};
use tidemill_wal::limits::SEGMENT_READY_COUNT;
use tidemill_wal::mutation::{self, Mutation};
use tidemill_wal::scrub::Scrub;
use tidemill_wal::segment::{self, SegmentSpec};
use tidemill_wal::store::{MergePlan, PlannedDelta, PlannedExtent, PlannedFiles};
use tidemill_wal::store::{Settle, SettleFiles, Store};

use super::produce::partition_change;
use super::{Deferred, Outgoing, Shard};
use crate::effect::{Change, Effect, JobId, Notice, Now, ReadFault};
use crate::partition::producer::Producer;
use crate::partition::retention::{Piece, new_start};
use crate::state::Kind;

/// Bytes of keyed state that are copied in one slice: about a hundred microseconds of a step. For a
/// snapshot, with what the map needs for them.
const SLICE_SIZE: usize = 64 << 10;

/// Pause after a merge that could not read its files: each try is told as damage, and the drive may
/// be mended meanwhile.
const MERGE_RETRY_MS: u64 = 60_000;

/// Whether a deliberate break keeps a change from its delta file.
fn is_forgotten(key: &[u8]) -> bool {
    Kind::of(key) == Some(Kind::GroupOffset) && mutation::is_on(Mutation::ForgetGroupOffset)
}

/// What upkeep is doing.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    next_job: u64,
    preparing: Option<Preparing>,
    /// Released segments, to be put to use again under new numbers.
    spare: Vec<SegmentId>,
    work: Work,
    work_job: Option<JobId>,
    /// A round for which the disk had no room, to be tried again as it is: a new one could have to
    /// wait for a frame that finds no room before this one has made some.
    kept: Option<Box<Round>>,
    snapshot: Snapshot,
    /// Removals whose outcome nothing waits for.
    cleanups: Vec<JobId>,
    /// The disk was full at the last try.
    is_disk_full: bool,
    /// The next try is at this time.
    retry_at_ms: Option<u64>,
    /// The file that keeps room for a manifest is there.
    has_reserve: bool,
    reserve_job: Option<JobId>,
    next_retention_ms: u64,
    /// A file that a merge needs could not be read; the next merge is tried at this time.
    merge_retry_at_ms: Option<u64>,
    scrub: Scrub,
}

#[derive(Debug)]
struct Preparing {
    job: JobId,
    segment: SegmentId,
    nonce: u64,
}

/// The one job that changes the manifest.
#[derive(Debug, Default)]
enum Work {
    #[default]
    None,
    /// Copies changed keys: so many are left.
    SettleCopies(Box<Round>, usize),
    /// Waits until its files are planned and what its values saw is durable.
    SettleWaits(Box<Round>),
    Settle(Box<Round>),
    MergeRead(MergePlan),
    Merge,
    SnapshotFinish {
        first: Sequence,
    },
}

#[derive(Debug, Clone)]
struct Round {
    settle: Settle,
    /// What its extents are made of, until they are planned.
    runs: Vec<RunData>,
    /// What its delta file is made of, until it is planned.
    changes: Vec<StateChange>,
    extents: Option<Vec<PlannedExtent>>,
    delta: Option<PlannedDelta>,
    /// Bytes of the runs.
    size: u64,
}

/// A snapshot on its way, in slices between steps.
#[derive(Debug, Default)]
enum Snapshot {
    #[default]
    None,
    Writing {
        job: JobId,
        first: Sequence,
        cursor: Option<Vec<u8>>,
    },
    /// All slices are written; waits until what they saw is durable.
    Written {
        first: Sequence,
        last: Sequence,
    },
}

impl Upkeep {
    /// A settle round copies what changed: the next slice comes as soon as the step is over.
    pub(super) fn is_copying(&self) -> bool {
        matches!(self.work, Work::SettleCopies(..))
    }

    pub(super) fn is_disk_full(&self) -> bool {
        self.is_disk_full
    }

    /// Whether the file that keeps room on a full disk is there.
    pub(super) fn set_reserve(&mut self, has_reserve: bool) {
        self.has_reserve = has_reserve;
    }

    pub(super) fn next_deadline_ms(&self, scrub_rate: u64) -> Option<u64> {
        let scrub_ms = (scrub_rate > 0).then(|| self.scrub.ready_ms());
        let due =
            [self.retry_at_ms, self.merge_retry_at_ms, Some(self.next_retention_ms), scrub_ms];
        due.into_iter().flatten().min()
    }

    fn new_job(&mut self) -> JobId {
        self.next_job += 1;
        JobId(self.next_job)
    }
}

impl Shard {
    /// Starts whatever is due.
    pub(super) fn upkeep(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.copy_changes(effects);
        // A frame that waits for room has to be written before the end, and needs it made.
        if self.is_stopping && self.wal.is_filling_empty() {
            return;
        }
        if self.upkeep.retry_at_ms.is_some_and(|at_ms| at_ms <= now.monotonic_ms) {
            self.upkeep.retry_at_ms = None;
        }
        if self.upkeep.merge_retry_at_ms.is_some_and(|at_ms| at_ms <= now.monotonic_ms) {
            self.upkeep.merge_retry_at_ms = None;
        }
        self.prepare_segment(effects);
        self.retain(now);
        if let Some(piece) =
            self.upkeep.scrub.next(&self.store, now.monotonic_ms, self.options.scrub_rate)
        {
            effects.push(Effect::Verify(piece));
        }
        // Deletions make room, so on a full disk they do not wait for the next try, as long as
        // there is the reserve to write them with.
        let makes_room =
            self.upkeep.is_disk_full && self.upkeep.has_reserve && self.store.has_pending_drops();
        if self.upkeep.retry_at_ms.is_none() || makes_room {
            self.advance_work(effects);
        }
    }

    fn start_job(&mut self, ops: Vec<DiskOp>, effects: &mut Vec<Effect>) -> JobId {
        let job = self.upkeep.new_job();
        effects.push(Effect::Disk { job, ops });
        job
    }

    fn clean_up(&mut self, ops: Vec<DiskOp>, effects: &mut Vec<Effect>) {
        if !ops.is_empty() {
            let job = self.start_job(ops, effects);
            self.upkeep.cleanups.push(job);
        }
    }

    fn prepare_segment(&mut self, effects: &mut Vec<Effect>) {
        let is_wanted = self.upkeep.preparing.is_none()
            && self.upkeep.retry_at_ms.is_none()
            && self.wal.ready_count() < SEGMENT_READY_COUNT
            && self.wal.segment_count() < self.options.segment_count_max;
        // A new segment would take the little that a round needs to make room, and fail as well.
        if !is_wanted || (self.upkeep.spare.is_empty() && self.is_making_room()) {
            return;
        }
        let segment = self.wal.next_segment();
        let nonce = self.ids.next_u64();
        let (shard, size) = (self.options.id, self.options.segment_size);
        let spec = SegmentSpec { shard, id: segment, nonce, size };
        let ops = match self.upkeep.spare.pop() {
            Some(old) => segment::recycle_ops(old, &spec),
            None => segment::prepare_ops(&spec),
        };
        let job = self.start_job(ops, effects);
        self.upkeep.preparing = Some(Preparing { job, segment, nonce });
    }

    /// Whether a change is due or under way that a full disk waits for, and that waits for no frame.
    fn is_making_room(&self) -> bool {
        let is_next = match &self.upkeep.work {
            // See `advance_work`: what is deferred may need a segment first.
            Work::None => {
                self.deferred.is_empty()
                    && (self.upkeep.kept.is_some() || self.store.has_pending_drops())
            }
            Work::SettleWaits(round) => round.settle.valid_at <= self.wal.durable(),
            Work::Settle(_) => true,
            Work::SettleCopies(..)
            | Work::MergeRead(_)
            | Work::Merge
            | Work::SnapshotFinish { .. } => false,
        };
        self.upkeep.is_disk_full && is_next
    }

    /// Drops what retention no longer keeps, producers that were silent too long, and memory that
    /// frames have not needed since the last time.
    fn retain(&mut self, now: Now) {
        if now.monotonic_ms < self.upkeep.next_retention_ms {
            return;
        }
        self.upkeep.next_retention_ms = now.monotonic_ms + self.options.retention_check_ms;
        self.wal.release_memory();
        let mut moves = Vec::new();
        for (id, partition) in &self.partitions {
            let start = partition.log.start();
            let stored = self.store.runs(*id).map(|run| Piece {
                end: run.end,
                size: run.size,
                max_timestamp_ms: run.max_timestamp_ms,
            });
            let tail = partition.log.durable_tail().map(|batch| Piece {
                end: batch.last_offset + 1,
                size: batch.bytes.len() as u64,
                max_timestamp_ms: batch.max_timestamp_ms,
            });
            let pieces: Vec<Piece> = stored.chain(tail).filter(|piece| piece.end > start).collect();
            moves.extend(
                new_start(&partition.config, &pieces, now.wall_ms).map(|start| (*id, start)),
            );
        }
        moves.sort_unstable();
        for (id, start) in moves {
            self.advance_start(id, start);
        }
        // A producer and what is known of those that were forgotten belong into one file.
        if !self.upkeep.is_copying() {
            self.expire_producers(now);
        }
    }

    fn expire_producers(&mut self, now: Now) {
        let before_ms = now.wall_ms.saturating_sub_unsigned(self.options.producer_expiry_ms);
        // Not in the WAL: a replay that brings a silent producer back does no harm.
        for (id, partition) in &mut self.partitions {
            let expired = partition.producers.expire(before_ms);
            if expired.is_empty() {
                continue;
            }
            for producer in expired {
                self.dirty_producers.remove(&(*id, producer));
                self.state.apply(Change { key: producer_key(*id, producer), value: None });
            }
            self.state.apply(Change {
                key: Kind::ForgottenProducers.key(&[&id.topic.0, &id.index.to_be_bytes()]),
                value: Some(partition.producers.forgotten_up_to().to_le_bytes().to_vec()),
            });
        }
    }

    /// Whether a round is planned that needs this frame to be durable.
    pub(super) fn settle_waits_for(&self, sequence: Sequence) -> bool {
        matches!(&self.upkeep.work, Work::SettleWaits(round) if round.settle.valid_at >= sequence)
    }

    fn advance_work(&mut self, effects: &mut Vec<Effect>) {
        if let Work::SettleWaits(round) = &self.upkeep.work {
            if round.settle.valid_at > self.wal.durable() || round.extents.is_none() {
                return;
            }
            let Work::SettleWaits(mut round) = std::mem::take(&mut self.upkeep.work) else {
                return;
            };
            round.settle.durable = self.wal.durable();
            let extents = round.extents.clone().expect("checked above");
            let planned = PlannedFiles { extents, delta: round.delta.clone() };
            let mut ops = Vec::new();
            if self.upkeep.is_disk_full && std::mem::take(&mut self.upkeep.has_reserve) {
                ops = Store::release_reserve_ops();
            }
            ops.extend(self.store.settle_planned(round.settle.clone(), planned));
            if mutation::is_on(Mutation::RecycleEarly) {
                let released = self.wal.release_before(round.settle.first_segment);
                self.upkeep.spare.extend(released.iter().map(|released| released.id));
            }
            let job = self.start_job(ops, effects);
            self.upkeep.work = Work::Settle(round);
            self.upkeep.work_job = Some(job);
        }
        // What a failed change left behind may have the names of what the next one writes, so it
        // goes first.
        if !matches!(self.upkeep.work, Work::None)
            || !self.upkeep.cleanups.is_empty()
            || !self.deferred.is_empty()
        {
            return;
        }
        // On a full disk the drops come first, for nothing else fits.
        if self.upkeep.is_disk_full && self.store.has_pending_drops() {
            return self.plan_drops();
        }
        if let Some(mut round) = self.upkeep.kept.take() {
            self.leave_out_deleted(&mut round, effects);
            self.upkeep.work = Work::SettleWaits(round);
            return self.advance_work(effects);
        }
        if let Snapshot::Written { first, last } = self.upkeep.snapshot
            && last <= self.wal.durable()
        {
            self.upkeep.snapshot = Snapshot::None;
            let ops = self.store.snapshot_finish(last, self.wal.durable());
            let job = self.start_job(ops, effects);
            self.upkeep.work = Work::SnapshotFinish { first };
            self.upkeep.work_job = Some(job);
        } else if let Some(through) = self.settle_target() {
            self.plan_settle(through, effects);
        } else if self.upkeep.merge_retry_at_ms.is_none()
            && let Some(plan) = self.store.due_merge()
        {
            effects.push(Effect::ReadMerge(plan.clone()));
            self.upkeep.work = Work::MergeRead(plan);
        } else if matches!(self.upkeep.snapshot, Snapshot::None)
            && self.store.due_snapshot(self.state.size(), self.options.delta_size_max)
        {
            // Delta files from before `first` are not read with this snapshot, so it must hold
            // what follows from the batches before it.
            if !mutation::is_on(Mutation::SnapshotOldEnds) {
                self.refresh_state();
            }
            let first = self.wal.filling();
            let ops = self.store.snapshot_begin(first);
            let job = self.start_job(ops, effects);
            self.upkeep.snapshot = Snapshot::Writing { job, first, cursor: None };
        }
    }

    /// The last frame of the sealed segments, if that is more than what is settled; or what is
    /// settled, if dropped data wait for a new manifest.
    fn settle_target(&self) -> Option<Sequence> {
        let durable = self.wal.durable();
        let sealed = self.wal.sealed().map(|segment| segment.last);
        let settled = settled(&self.store);
        // The manifest names a segment with a durable frame: once the active one has one, a round
        // frees every segment before it.
        let is_active_named = self.wal.first_sequence_of_active().is_some_and(|at| at <= durable);
        match sealed.take_while(|last| *last <= durable).last() {
            Some(last) if last > settled && is_active_named => Some(last),
            _ => self.store.has_pending_drops().then_some(settled),
        }
    }

    /// Frames that are written but not settled.
    pub(super) fn settle_lag_frames(&self) -> u64 {
        self.wal.durable().0.saturating_sub(settled(&self.store).0)
    }

    /// A round that makes drops durable and moves nothing, so that it waits for no frame.
    fn plan_drops(&mut self) {
        let through = settled(&self.store);
        let settle = Settle {
            through,
            valid_at: self.wal.durable(),
            first_segment: self.store.manifest().first_segment,
            runs: Vec::new(),
            changes: Vec::new(),
            epoch: self.wal.epoch(),
            durable: self.wal.durable(),
        };
        self.upkeep.work = Work::SettleWaits(Box::new(Round {
            settle,
            runs: Vec::new(),
            changes: Vec::new(),
            extents: Some(Vec::new()),
            delta: None,
            size: 0,
        }));
    }

    fn plan_settle(&mut self, through: Sequence, effects: &mut Vec<Effect>) {
        let (runs, size) = self.unsettled_runs(through);
        self.refresh_state();
        let settle = Settle {
            through,
            valid_at: through,
            first_segment: self
                .wal
                .first_segment_after(through)
                .expect("the start's seal made a segment active"),
            runs: Vec::new(),
            changes: Vec::new(),
            epoch: self.wal.epoch(),
            durable: self.wal.durable(),
        };
        let (changes, extents, delta) = (Vec::new(), None, None);
        let round = Round { settle, runs, changes, extents, delta, size };
        // What changes from here on is for the next round.
        let count = self.state.changed_count();
        self.upkeep.work = Work::SettleCopies(Box::new(round), count);
        self.copy_changes(effects);
    }

    /// Copies a slice of what changed for the round that is at that.
    fn copy_changes(&mut self, effects: &mut Vec<Effect>) {
        // What the round's values saw has to find room: when only the reserve is left, the rest is
        // copied before another frame fills.
        let is_tight = !self.has_room(0);
        let Work::SettleCopies(round, left) = &mut self.upkeep.work else { return };
        let count_max = if is_tight { *left } else { self.options.copied_at_once.min(*left) };
        let size_max = if is_tight { usize::MAX } else { SLICE_SIZE };
        let changes = self.state.take_changes(count_max, size_max);
        *left -= changes.len();
        round.changes.extend(changes.into_iter().filter(|(key, _)| !is_forgotten(key)));
        if *left > 0 {
            return;
        }
        let newest = self.newest_frame().unwrap_or(self.wal.durable());
        let Work::SettleCopies(mut round, _) = std::mem::take(&mut self.upkeep.work) else {
            return;
        };
        round.settle.valid_at = newest;
        self.plan_files(&mut round, effects);
        self.upkeep.work = Work::SettleWaits(round);
    }

    /// Takes out of a round what was deleted after it was planned: without that it may fit the
    /// disk. A deletion that is not durable takes nothing out, for a crash takes it back.
    fn leave_out_deleted(&mut self, round: &mut Round, effects: &mut Vec<Effect>) {
        let (runs, size) = self.unsettled_runs(round.settle.through);
        if size < round.size && !self.waits_to_drop(|_| true) {
            (round.runs, round.size) = (runs, size);
            self.plan_files(round, effects);
        }
    }

    /// What the tail holds up to a frame and is to be kept, with its size in bytes.
    pub(super) fn unsettled_runs(&self, through: Sequence) -> (Vec<RunData>, u64) {
        let mut ids: Vec<PartitionId> = self
            .partitions
            .iter()
            .filter(|(_, partition)| partition.log.tail_size() > 0)
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        let mut size = 0;
        let mut runs = Vec::new();
        for partition in ids {
            let batches: Vec<BatchRef> = self.partitions[&partition]
                .log
                .unsettled(through)
                .map(|batch| BatchRef {
                    base_offset: batch.base_offset,
                    last_offset: batch.last_offset,
                    max_timestamp_ms: batch.max_timestamp_ms,
                    bytes: batch.bytes.clone(),
                })
                .collect();
            if !batches.is_empty() {
                size += batches.iter().map(|batch| batch.bytes.len() as u64).sum::<u64>();
                runs.push(RunData { partition, batches });
            }
        }
        (runs, size)
    }

    /// Has the files of a round planned, those of them that are not.
    fn plan_files(&mut self, round: &mut Round, effects: &mut Vec<Effect>) {
        let extents = self.store.extents_for(std::mem::take(&mut round.runs));
        let changes = std::mem::take(&mut round.changes);
        let delta = (!changes.is_empty()).then(|| (self.store.delta_for(&round.settle), changes));
        if extents.is_empty() && delta.is_none() {
            round.extents = Some(Vec::new());
            return;
        }
        round.extents = None;
        let drain_size = self.options.settle_sync_size;
        effects.push(Effect::Plan(SettleFiles { extents, delta, drain_size }));
    }

    pub(super) fn on_planned(&mut self, planned: PlannedFiles) {
        match &mut self.upkeep.work {
            Work::SettleWaits(round) => {
                round.extents = Some(planned.extents);
                round.delta = planned.delta.or_else(|| round.delta.take());
            }
            work => panic!("files were planned that nobody asked for: {work:?}"),
        }
    }

    /// Brings what follows from batches alone (ends of logs, producers) into the keyed state.
    pub(super) fn refresh_state(&mut self) {
        for id in std::mem::take(&mut self.dirty_partitions) {
            if mutation::is_on(Mutation::ForgetLogEnd) {
                continue;
            }
            if let Some(partition) = self.partitions.get(&id) {
                let (start, end) = (partition.log.start(), partition.log.end());
                self.state.apply(partition_change(id, start, end));
            }
        }
        for (id, producer_id) in std::mem::take(&mut self.dirty_producers) {
            if mutation::is_on(Mutation::ForgetProducer) {
                continue;
            }
            let producer = self.partitions.get(&id).and_then(|p| p.producers.producer(producer_id));
            if let Some(producer) = producer {
                let key = producer_key(id, producer_id);
                self.state.apply(Change { key, value: Some(Producer::encode(producer)) });
            }
        }
    }

    pub(super) fn on_merge_read(
        &mut self,
        now: Now,
        result: Result<Vec<RunData>, ReadFault>,
        effects: &mut Vec<Effect>,
    ) {
        let Work::MergeRead(plan) = std::mem::take(&mut self.upkeep.work) else {
            panic!("a merge was read that nobody asked for");
        };
        match result {
            Ok(runs) => {
                let ops = self.store.merge(plan, runs);
                let job = self.start_job(ops, effects);
                self.upkeep.work = Work::Merge;
                self.upkeep.work_job = Some(job);
            }
            Err(ReadFault::Gone | ReadFault::Nothing) => {}
            Err(ReadFault::Corrupt(why) | ReadFault::Failed(why)) => {
                self.upkeep.merge_retry_at_ms = Some(now.monotonic_ms + MERGE_RETRY_MS);
                effects.push(Effect::Notice(Notice::Damaged(why)));
            }
        }
    }

    pub(super) fn on_disk_done(
        &mut self,
        now: Now,
        job: JobId,
        result: Result<(), DiskFault>,
        effects: &mut Vec<Effect>,
    ) {
        let is_done = result.is_ok();
        if self.upkeep.reserve_job.take_if(|own| *own == job).is_some() {
            self.upkeep.has_reserve = is_done;
            if !is_done {
                self.clean_up(Store::release_reserve_ops(), effects);
            }
            return;
        }
        if !is_done {
            self.upkeep.retry_at_ms = Some(now.monotonic_ms + self.options.disk_full_retry_ms);
            if !std::mem::replace(&mut self.upkeep.is_disk_full, true) {
                effects.push(Effect::Notice(Notice::DiskFull));
            }
        }
        if let Some(preparing) = self.upkeep.preparing.take_if(|preparing| preparing.job == job) {
            return match is_done {
                true => self.wal.add_ready(preparing.segment, preparing.nonce),
                false => {
                    let file = segment::temporary_name(preparing.segment);
                    self.clean_up(vec![DiskOp::Remove { file }], effects);
                }
            };
        }
        if let Some(index) = self.upkeep.cleanups.iter().position(|cleanup| *cleanup == job) {
            self.upkeep.cleanups.swap_remove(index);
            return;
        }
        if matches!(&self.upkeep.snapshot, Snapshot::Writing { job: own, .. } if *own == job) {
            return self.on_slice_written(is_done, effects);
        }
        assert_eq!(self.upkeep.work_job.take(), Some(job), "a job ended that nobody started");
        self.on_work_done(is_done, effects);
    }

    fn on_slice_written(&mut self, is_done: bool, effects: &mut Vec<Effect>) {
        let Snapshot::Writing { first, cursor, .. } = std::mem::take(&mut self.upkeep.snapshot)
        else {
            return;
        };
        if !is_done {
            let ops = self.store.snapshot_abandon();
            return self.clean_up(ops, effects);
        }
        let mut last_key = None;
        let slice = self.state.slice(cursor.as_deref(), SLICE_SIZE);
        let ops = self.store.snapshot_add(slice.inspect(|(key, _)| last_key = Some(*key)));
        self.upkeep.snapshot = match last_key.map(<[u8]>::to_vec) {
            None => {
                let last = self.newest_frame().unwrap_or(self.wal.durable());
                Snapshot::Written { first, last }
            }
            cursor => {
                let job = self.start_job(ops, effects);
                Snapshot::Writing { job, first, cursor }
            }
        };
    }

    /// Data could be written: a full disk has room again, and the reserve is made again.
    fn on_room(&mut self, size: u64, effects: &mut Vec<Effect>) {
        if size > 0 && std::mem::take(&mut self.upkeep.is_disk_full) {
            self.upkeep.retry_at_ms = None;
            effects.push(Effect::Notice(Notice::DiskHasRoom));
        }
        if !self.upkeep.is_disk_full
            && !self.upkeep.has_reserve
            && self.upkeep.reserve_job.is_none()
            && self.upkeep.cleanups.is_empty()
        {
            let ops = Store::reserve_ops(self.options.disk_reserve_size);
            self.upkeep.reserve_job = Some(self.start_job(ops, effects));
        }
    }

    /// What was dropped while the round was on its way was not there yet to be dropped.
    fn drop_again(&mut self, round: &Round) {
        if mutation::is_on(Mutation::SettleDeletedTopic) {
            return;
        }
        let runs = round.extents.iter().flatten().flat_map(|(extent, _)| &extent.runs);
        let partitions: BTreeSet<PartitionId> = runs.map(|run| run.partition).collect();
        for id in partitions {
            if self.waits_to_drop(|of| of == id) {
                continue; // Not durable yet.
            }
            match self.partitions.get(&id) {
                Some(partition) => self.store.drop_below(id, partition.log.start()),
                None => self.store.drop_partition(id),
            }
        }
    }

    /// Whether the deletion of something that is wanted is not durable yet.
    fn waits_to_drop(&self, is_wanted: impl Fn(PartitionId) -> bool) -> bool {
        let is_drop = |held: &Outgoing| matches!(held, Outgoing::Drop(id, _) if is_wanted(*id));
        let is_deferred = |held: &Deferred| matches!(held, Deferred::Outgoing(out) if is_drop(out));
        self.barrier.iter().any(|(_, held)| is_drop(held)) || self.deferred.iter().any(is_deferred)
    }

    fn on_work_done(&mut self, is_done: bool, effects: &mut Vec<Effect>) {
        let cleanup = match std::mem::take(&mut self.upkeep.work) {
            Work::Settle(round) if is_done => {
                let (through, size) = (round.settle.through, round.size);
                self.on_room(size, effects);
                let mut cleanup = self.store.on_settled();
                self.drop_again(&round);
                for partition in self.partitions.values_mut() {
                    partition.log.drop_settled(through);
                }
                effects.push(Effect::Notice(Notice::Settled { through, bytes: size }));
                let first_segment = self.store.manifest().first_segment;
                for released in self.wal.release_before(first_segment) {
                    match released.is_recyclable {
                        true => self.upkeep.spare.push(released.id),
                        false => cleanup.extend(segment::remove_ops(released.id)),
                    }
                }
                cleanup
            }
            Work::Settle(round) => {
                if !is_drops_only(&round) {
                    self.upkeep.kept = Some(round);
                }
                self.store.on_settle_failed()
            }
            Work::Merge if is_done => self.store.on_merged(),
            Work::Merge => self.store.on_merge_failed(),
            Work::SnapshotFinish { first, .. } if is_done => {
                effects.push(Effect::Notice(Notice::Snapshot { first }));
                self.store.on_snapshot()
            }
            Work::SnapshotFinish { .. } => self.store.on_snapshot_failed(),
            work @ (Work::None
            | Work::SettleCopies(..)
            | Work::SettleWaits(_)
            | Work::MergeRead(_)) => {
                panic!("a job ended that nobody started: {work:?}")
            }
        };
        self.clean_up(cleanup, effects);
    }
}

/// Whether a round brings nothing but drops.
fn is_drops_only(round: &Round) -> bool {
    round.delta.is_none() && round.extents.as_ref().is_some_and(Vec::is_empty)
}

/// The last frame that is in extents and delta files.
fn settled(store: &Store) -> Sequence {
    Sequence(store.manifest().replay_from.0 - 1)
}

fn producer_key(id: PartitionId, producer_id: i64) -> Vec<u8> {
    Kind::Producer.key(&[&id.topic.0, &id.index.to_be_bytes(), &producer_id.to_be_bytes()])
}
