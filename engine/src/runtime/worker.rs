//! One shard's thread: inputs in, steps, effects out.
//!
//! The loop takes whatever has arrived, steps through it, submits at most one frame, performs the
//! effects, and sleeps. Disk jobs run in a task queue with fewer shares, so that settling does not
//! take the shard's time.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use glommio::timer::Timer;
use glommio::{Latency, Shares, TaskQueueHandle};
use socket2::Socket;
use tidemill_wal::commit::FrameWrite;
use tidemill_wal::disk::{Background, DiskFault, DiskOp, Pace, SegmentWriter, SyncMethod};
use tidemill_wal::format::{FileName, FrameKind, SegmentId};

use super::helper::{Helper, Mailbox, Request};
use super::hub::Hub;
use super::inbox::next_input;
use super::listener;
use super::mesh::{Arrival, Packet};
use crate::admin::telemetry::{Committed, Offsets, PartitionEnd};
use crate::command::Reply;
use crate::effect::{Effect, Input, JobId, Notice, ReadId};
use crate::exit_code::ExitCode;
use crate::shard::{Gauges, Shard};

/// Steps between two looks at what the disk and the sockets completed.
const STEPS_MAX: usize = 1024;

/// Shares of the settling queue against 1000 of the shard's own.
const SETTLE_SHARES: usize = 100;

/// How often the figures that need a walk over all partitions are published.
const FIGURES_INTERVAL_MS: u64 = 1000;

/// How often a stopping shard looks whether the others are done.
const STOP_POLL_MS: u64 = 50;

/// How long open requests may take to finish once the node stops.
const DRAIN_MS_MAX: u64 = 5000;

/// What the threads of a node tell each other outside the mesh.
#[derive(Debug, Default)]
pub struct Phase {
    /// Listeners may take connections.
    pub is_serving: AtomicBool,
    /// The node stops.
    pub is_stopping: AtomicBool,
    /// Shards that have nothing open any more. When all are here, each seals its WAL.
    pub drained: AtomicUsize,
}

/// Where a shard's files are.
#[derive(Debug, Clone)]
pub struct Places {
    /// Directory of the WAL.
    pub wal: PathBuf,
    /// Directory of everything else.
    pub data: PathBuf,
    /// How a write becomes durable.
    pub sync: SyncMethod,
    /// Bytes that background writes may write in a second.
    pub settle_rate: Option<u64>,
}

/// The loop's own belongings.
pub struct Worker {
    shard: Shard,
    hub: Rc<Hub>,
    mailbox: Arc<Mailbox>,
    helper: Helper,
    places: Places,
    phase: Arc<Phase>,
    shard_count: usize,
    effects: Vec<Effect>,
    requests: VecDeque<Request>,
    cold_reads: ColdReads,
    writers: Rc<RefCell<HashMap<SegmentId, Rc<SegmentWriter>>>>,
    settle_queue: TaskQueueHandle,
    jobs_open: Rc<Cell<usize>>,
    pace: Pace,
    next_figures_ms: u64,
    stop: Stop,
}

/// Bytes that cold reads on their way may bring. One read is let through whatever it asks for.
struct ColdReads {
    open: HashMap<ReadId, usize>,
    used: usize,
    budget: usize,
}

impl ColdReads {
    fn charge(&mut self, request: &Request) -> bool {
        let Request::Read(read, request) = request else { return true };
        let size = request.bytes_max as usize;
        if self.used > 0 && self.used + size > self.budget {
            return false;
        }
        self.used += size;
        self.open.insert(*read, size);
        true
    }

    fn release(&mut self, request: &Request) {
        if let Request::Read(read, _) = request {
            self.finish(*read);
        }
    }

    fn finish(&mut self, read: ReadId) {
        self.used -= self.open.remove(&read).unwrap_or(0);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    /// Open requests are being finished; at this time what is left is cut off.
    Draining {
        until_ms: u64,
    },
    /// Nothing is open here, or it cannot be finished; other shards may still ask.
    Drained {
        is_overdue: bool,
    },
}

impl Worker {
    pub(super) fn new(
        shard: Shard,
        hub: Rc<Hub>,
        mailbox: Arc<Mailbox>,
        helper: Helper,
        places: Places,
        phase: Arc<Phase>,
        cold_read_budget: usize,
    ) -> Self {
        let settle_queue = glommio::executor().create_task_queue(
            Shares::Static(SETTLE_SHARES),
            Latency::NotImportant,
            "settle",
        );
        Self {
            shard_count: usize::from(hub.facts.shard_count),
            shard,
            hub,
            mailbox,
            helper,
            places,
            phase,
            effects: Vec::new(),
            requests: VecDeque::new(),
            cold_reads: ColdReads { open: HashMap::new(), used: 0, budget: cold_read_budget },
            writers: Rc::default(),
            settle_queue,
            jobs_open: Rc::default(),
            pace: Pace::default(),
            next_figures_ms: 0,
            stop: Stop::No,
        }
    }

    /// Runs until the node stops and this shard's WAL is sealed.
    pub async fn run(mut self, socket: Socket) {
        self.install_waker().await;
        let mut listener = Some(socket);
        let mut accepting = None;
        self.shard.start(&mut self.effects);
        loop {
            self.take_in();
            self.step_all();
            self.perform_all();
            self.hub.flush();
            self.hub.port.borrow_mut().flush();
            self.publish();
            if self.phase.is_serving.load(Ordering::Acquire)
                && let Some(socket) = listener.take()
            {
                self.hub.telemetry().ready.set(true);
                let hub = self.hub.clone();
                accepting = Some(glommio::spawn_local(async move {
                    if let Err(error) = listener::accept(hub, socket).await {
                        die(ExitCode::Other, &format!("listening failed: {error}"));
                    }
                }));
            }
            if self.stop != Stop::No
                && let Some(task) = accepting.take()
            {
                task.cancel().await;
            }
            if self.advance_stop() {
                break;
            }
            if self.hub.inbox.borrow().is_empty() || !self.shard.accepts() {
                self.sleep().await;
            } else {
                glommio::executor().yield_now().await;
            }
        }
        self.finish().await;
    }

    async fn install_waker(&self) {
        let hub = self.hub.clone();
        poll_fn(move |context| {
            hub.port.borrow().doorbell().install(context.waker().clone());
            Poll::Ready(())
        })
        .await;
    }

    /// Moves what other threads sent into the inbox.
    fn take_in(&mut self) {
        for input in self.mailbox.take() {
            if let Input::ReadDone { read, .. } = &input {
                self.cold_reads.finish(*read);
            }
            self.hub.inbox.borrow_mut().push_back(input);
        }
        for fault in self.mailbox.take_reports() {
            self.hub.telemetry().damage.add(1);
            tracing::error!(
                shard = self.shard.id().0,
                fault,
                "the scrub found damage; run tidemill-dump --verify"
            );
        }
        let mut arrived = Vec::new();
        self.hub.port.borrow_mut().drain(&mut |from, packet| arrived.push((from, packet)));
        for (from, packet) in arrived {
            match packet.arrive(from) {
                Arrival::Input(input) => self.hub.inbox.borrow_mut().push_back(input),
                Arrival::Reply(ticket, reply) => self.hub.on_reply(ticket, reply),
            }
        }
    }

    fn step_all(&mut self) {
        let now = self.hub.clock.now();
        if self.shard.next_deadline_ms().is_some_and(|due_ms| due_ms <= now.monotonic_ms) {
            self.shard.step(now, Input::Tick, &mut self.effects);
        }
        for _ in 0..STEPS_MAX {
            let input = {
                let mut inbox = self.hub.inbox.borrow_mut();
                next_input(&mut inbox, self.shard.accepts())
            };
            let Some(input) = input else { break };
            self.shard.step(now, input, &mut self.effects);
        }
        self.shard.flush(now, &mut self.effects);
        let inbox_is_long = self.hub.inbox.borrow().len() > STEPS_MAX;
        let is_congested = self.hub.port.borrow().is_congested();
        let is_shut =
            !self.shard.accepts() || inbox_is_long || is_congested || self.hub.has_too_much_open();
        self.hub.gate.set_shut(is_shut);
    }

    fn perform_all(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Write(write) => self.write(write),
                Effect::Reply { ticket, mut reply } => {
                    self.complete_storage(&mut reply);
                    if ticket.origin == self.shard.id() {
                        self.hub.on_reply(ticket, reply);
                    } else {
                        let packet = Packet::Reply { ticket, reply };
                        self.hub.port.borrow_mut().send(ticket.origin, packet);
                    }
                }
                Effect::Mesh { to, message } => {
                    self.hub.port.borrow_mut().send(to, Packet::Message(message));
                }
                Effect::Disk { job, ops } => {
                    self.forget_removed(&ops);
                    self.start_job(job, ops);
                }
                Effect::Read { read, request } => {
                    self.requests.push_back(Request::Read(read, request));
                }
                Effect::Plan { specs, sync_size } => {
                    self.requests.push_back(Request::Plan(specs, sync_size));
                }
                Effect::ReadMerge(plan) => self.requests.push_back(Request::Merge(plan)),
                Effect::Verify(piece) => self.requests.push_back(Request::Verify(piece)),
                Effect::Routes(routes) => self.hub.set_routes(routes),
                Effect::Notice(notice) => self.on_notice(&notice),
                Effect::Halt(reason) => die(ExitCode::Corruption, &reason),
            }
        }
        while let Some(request) = self.requests.pop_front() {
            if !self.cold_reads.charge(&request) {
                self.requests.push_front(request);
                break;
            }
            if let Err(waiting) = self.helper.ask(request) {
                self.cold_reads.release(&waiting);
                self.requests.push_front(waiting);
                break;
            }
        }
        self.hub.telemetry().cold_read_budget.used.set(self.cold_reads.used as u64);
    }

    /// The shard knows no file system; what it says about storage is completed here.
    fn complete_storage(&self, reply: &mut Reply) {
        if let Reply::DescribeStorage(storage) = reply {
            storage.directory = self.places.data.display().to_string();
            if let Ok((total, usable)) = super::disk_space(&self.places.data) {
                (storage.total, storage.usable) = (total, usable);
            }
        }
    }

    fn write(&self, write: FrameWrite) {
        let (hub, writers) = (self.hub.clone(), self.writers.clone());
        let directory = self.places.wal.clone();
        let sync = self.places.sync;
        let started_us = hub.clock.monotonic_us();
        match write.kind {
            FrameKind::Steps => {
                hub.telemetry().frames.add(1);
                hub.telemetry().frame_size.record(write.bytes.len() as u64);
            }
            FrameKind::Idle | FrameKind::Seal => hub.telemetry().idle_frames.add(1),
        }
        glommio::spawn_local(async move {
            let known = writers.borrow().get(&write.segment).cloned();
            let writer = match known {
                Some(writer) => writer,
                None => {
                    let writer = match SegmentWriter::open(&directory, write.segment, sync).await {
                        Ok(writer) => Rc::new(writer),
                        Err(fault) => die_of_disk(&fault),
                    };
                    // Only the active segment is written; older handles close.
                    let mut writers = writers.borrow_mut();
                    writers.clear();
                    writers.insert(write.segment, writer.clone());
                    writer
                }
            };
            if let Err(fault) = writer.write(write.offset, &write.bytes).await {
                die_of_disk(&fault);
            }
            if write.kind == FrameKind::Steps {
                let latency_us = hub.clock.monotonic_us() - started_us;
                hub.telemetry().commit_latency.record(latency_us);
            }
            hub.inbox.borrow_mut().push_front(Input::Durable(write.sequence));
            hub.wake.set();
        })
        .detach();
    }

    /// Reads of these files that were asked for are before this in the helper's queue, and no
    /// later ones come: nothing names the files any more.
    fn forget_removed(&mut self, ops: &[DiskOp]) {
        let removed: Vec<FileName> = ops
            .iter()
            .filter_map(|op| match op {
                DiskOp::Remove { file } if !file.is_wal() => Some(file.clone()),
                _ => None,
            })
            .collect();
        if !removed.is_empty() {
            self.requests.push_back(Request::Forget(removed));
        }
    }

    fn start_job(&self, job: JobId, ops: Vec<DiskOp>) {
        let (hub, jobs_open) = (self.hub.clone(), self.jobs_open.clone());
        jobs_open.set(jobs_open.get() + 1);
        let background =
            Background::new(self.places.wal.clone(), self.places.data.clone(), self.pace.clone());
        let task = glommio::spawn_local_into(
            async move {
                let result = background.run(ops).await;
                if let Err(fault @ DiskFault::Failed { .. }) = &result {
                    die_of_disk(fault);
                }
                jobs_open.set(jobs_open.get() - 1);
                hub.inbox.borrow_mut().push_back(Input::DiskDone { job, result });
                hub.wake.set();
            },
            self.settle_queue,
        );
        match task {
            Ok(task) => drop(task.detach()),
            Err(error) => die(ExitCode::Other, &format!("the settling queue is gone: {error}")),
        }
    }

    fn on_notice(&self, notice: &Notice) {
        let shard = self.shard.id().0;
        match notice {
            Notice::Settled { through, bytes } => {
                tracing::debug!(shard, through = through.0, bytes, "settled");
            }
            Notice::Snapshot { first } => tracing::info!(shard, first = first.0, "snapshot"),
            Notice::DiskFull => tracing::error!(
                shard,
                "the disk is full: settling waits; make room, or lower retention"
            ),
            Notice::DiskHasRoom => tracing::info!(shard, "the disk has room again"),
            Notice::Damaged(fault) => {
                self.hub.telemetry().damage.add(1);
                tracing::error!(shard, fault, "stored data cannot be read");
            }
        }
    }

    fn publish(&mut self) {
        let telemetry = self.hub.telemetry();
        let gauges = self.shard.gauges();
        telemetry.inbox_depth.set(self.hub.inbox.borrow().len() as u64);
        telemetry.filling.set(gauges.filling_size);
        telemetry.wal_used.set(gauges.wal_used);
        telemetry.wal_capacity.set(gauges.wal_capacity);
        telemetry.disk_full.set(gauges.is_disk_full);
        self.pace.set(pace(self.places.settle_rate, &gauges));
        let now_ms = self.hub.clock.now().monotonic_ms;
        if now_ms < self.next_figures_ms {
            return;
        }
        self.next_figures_ms = now_ms + FIGURES_INTERVAL_MS;
        self.hub.close_slow_requests();
        let tail = self.shard.tail_size();
        telemetry.tail.set(tail);
        telemetry.settle_lag.set(tail);
        telemetry.recovery_estimate_ms.set(super::recovery_estimate_ms(&gauges));
        let routes = self.hub.routes();
        let ends = self.shard.partition_ends().filter_map(|(partition, durable_end)| {
            let topic = routes.ids.get(&partition.topic)?.name.clone();
            Some(PartitionEnd { topic, partition, durable_end })
        });
        let committed = self.shard.committed().map(|(group, partition, offset)| Committed {
            group: group.into(),
            partition,
            offset,
        });
        telemetry.publish_offsets(Offsets { committed: committed.collect(), ends: ends.collect() });
    }

    /// True when this shard may seal and end.
    fn advance_stop(&mut self) -> bool {
        let now_ms = self.hub.clock.now().monotonic_ms;
        match self.stop {
            Stop::No if self.phase.is_stopping.load(Ordering::Acquire) => {
                self.hub.inbox.borrow_mut().push_back(Input::Stop);
                self.hub.end_connections();
                self.stop = Stop::Draining { until_ms: now_ms + DRAIN_MS_MAX };
            }
            Stop::No => {}
            Stop::Draining { until_ms } => {
                if now_ms >= until_ms {
                    self.hub.close_connections();
                }
                let is_overdue = now_ms >= until_ms + DRAIN_MS_MAX;
                if is_overdue || self.hub.connection_count() == 0 && self.shard.is_quiet() {
                    self.stop = Stop::Drained { is_overdue };
                    self.phase.drained.fetch_add(1, Ordering::AcqRel);
                    for doorbell in self.hub.port.borrow().doorbells().iter() {
                        doorbell.ring();
                    }
                }
            }
            Stop::Drained { .. } => {}
        }
        let Stop::Drained { is_overdue } = self.stop else { return false };
        let is_finished = self.shard.is_quiet() && self.hub.inbox.borrow().is_empty();
        self.phase.drained.load(Ordering::Acquire) == self.shard_count
            && (is_finished || is_overdue)
    }

    /// Waits for something to do. The order (say that we sleep, look once more, sleep) is the
    /// doorbell's protocol, see `ring.rs`.
    async fn sleep(&self) {
        let now_ms = self.hub.clock.now().monotonic_ms;
        let mut wait_ms = self.shard.next_deadline_ms().map_or(FIGURES_INTERVAL_MS, |due_ms| {
            due_ms.saturating_sub(now_ms).clamp(1, FIGURES_INTERVAL_MS)
        });
        if self.stop != Stop::No {
            wait_ms = wait_ms.min(STOP_POLL_MS);
        }
        let mut timer = Timer::new(Duration::from_millis(wait_ms));
        poll_fn(|context| {
            if self.hub.wake.take() || Pin::new(&mut timer).poll(context).is_ready() {
                return Poll::Ready(());
            }
            self.hub.wake.register(context.waker());
            let mut port = self.hub.port.borrow_mut();
            port.doorbell().bell.lie_down();
            if !port.is_empty() || port.has_backlog() || !self.mailbox.is_empty() {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
        self.hub.port.borrow().doorbell().bell.get_up();
    }

    async fn finish(mut self) {
        let now = self.hub.clock.now();
        if !self.shard.is_quiet() {
            tracing::warn!(
                shard = self.shard.id().0,
                "the log has no room for what is open, which was not acknowledged; this shard ends \
                 without a seal, as after a crash"
            );
        } else if let Some(seal) = self.shard.seal(now) {
            self.write(seal);
            while !self.hub.inbox.borrow().iter().any(|input| matches!(input, Input::Durable(_))) {
                self.hub.wake.wait().await;
            }
        }
        while self.jobs_open.get() > 0 {
            self.hub.wake.wait().await;
        }
    }
}

/// Settling keeps its rate while the WAL is at most half full, goes faster above, and as fast as
/// it can when three quarters are used. Zero: no limit.
fn pace(settle_rate: Option<u64>, gauges: &Gauges) -> u64 {
    let Some(rate) = settle_rate else { return 0 };
    if gauges.wal_used * 2 <= gauges.wal_capacity {
        rate
    } else if gauges.wal_used * 4 <= gauges.wal_capacity * 3 {
        rate * 4
    } else {
        0
    }
}

/// Only a restart with replay trusts the disk again.
fn die_of_disk(fault: &DiskFault) -> ! {
    die(ExitCode::DiskFailed, &format!("{fault}; nothing unsynced was acknowledged"))
}

fn die(code: ExitCode, reason: &str) -> ! {
    tracing::error!(reason, exit_code = code.number(), "the node ends");
    std::process::exit(i32::from(code.number()))
}
