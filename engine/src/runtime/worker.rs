//! One shard's thread: inputs in, steps, effects out.
//!
//! The loop takes whatever has arrived, steps through it, submits at most one frame, performs the
//! effects, and sleeps at its ring: one system call hands over what was asked and waits for what
//! comes. Nothing here waits for a disk or a client.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use socket2::Socket;
use tidemill_wal::commit::FrameWrite;
use tidemill_wal::disk::{DiskFault, DiskOp, Pace, SyncMethod};
use tidemill_wal::format::{FileName, FrameKind};
use tokio::sync::oneshot;

use super::calls::Calls;
use super::figures;
use super::helper::{Helper, Mailbox, Request};
use super::hub::Hub;
use super::inbox::next_input;
use super::jobs::Jobs;
use super::listener::Listener;
use super::log::{InFlight, LogWriter};
use super::mesh::{Arrival, Packet};
use super::tickets::ConnectionId;
use super::uring::{Completion, EventFd, Token};
use crate::admin::telemetry::{Committed, Offsets, PartitionEnd, Question};
use crate::command::{Command, Reply, StateEntry, Ticket};
use crate::effect::{Effect, Input, Notice, Now, ReadId};
use crate::exit_code::ExitCode;
use crate::shard::{Gauges, Shard};

/// A call of an operator that takes longer is told of.
const CALL_TIME_NOTABLE: Duration = Duration::from_millis(100);

/// Steps between two looks at what the disk and the sockets completed.
const STEPS_MAX: usize = 1024;

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

/// What a shard's thread has to do with other threads, the mesh aside.
pub struct Outside {
    /// Where threads beside the shard's may run.
    pub cores: Vec<usize>,
    /// Inputs from threads that are not shards.
    pub mailbox: Arc<Mailbox>,
    /// What the doorbell rings.
    pub awakener: Arc<EventFd>,
    /// The thread for cold reads.
    pub helper: Helper,
    /// The threads for blocking calls.
    pub calls: Arc<Calls>,
    /// Where the node is in its life.
    pub phase: Arc<Phase>,
}

/// How much a shard's loop may take.
#[derive(Debug, Clone, Copy)]
pub struct Budgets {
    /// Bytes that cold reads on their way may bring.
    pub cold_reads: usize,
    /// How long to look for more before sleeping.
    pub spin: Duration,
    /// How long operators may work in one step.
    pub operators: Duration,
}

/// The loop's own belongings.
pub struct Worker {
    shard: Shard,
    hub: Hub,
    log: LogWriter,
    jobs: Jobs,
    mailbox: Arc<Mailbox>,
    /// What the doorbell rings.
    awakener: Arc<EventFd>,
    helper: Helper,
    calls: Arc<Calls>,
    places: Places,
    phase: Arc<Phase>,
    shard_count: usize,
    /// How long operators may work in one step.
    operator_budget: Duration,
    /// Topologies have more to do, and are to go on at once.
    has_work: bool,
    /// Those who asked for state and wait.
    questions: HashMap<Ticket, oneshot::Sender<Option<Vec<StateEntry>>>>,
    /// How long to look for more before sleeping.
    spin: Duration,
    effects: Vec<Effect>,
    completions: Vec<Completion>,
    requests: VecDeque<Request>,
    cold_reads: ColdReads,
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
    /// Nothing is open here, or it cannot be finished; other shards may still ask. At this time it
    /// ends as it is.
    Drained {
        end_ms: u64,
    },
}

impl Worker {
    pub(super) fn new(
        shard: Shard,
        hub: Hub,
        outside: Outside,
        places: Places,
        budgets: Budgets,
    ) -> Self {
        let Outside { cores, mailbox, awakener, helper, calls, phase } = outside;
        let (wal, data) = (places.wal.clone(), places.data.clone());
        let budget = budgets.cold_reads;
        Self {
            shard_count: usize::from(hub.shared.facts.shard_count),
            log: LogWriter::new(wal.clone(), places.sync),
            jobs: Jobs::new(shard.id().0, wal, data, cores, mailbox.clone(), die_of_disk),
            shard,
            hub,
            mailbox,
            awakener,
            helper,
            calls,
            places,
            phase,
            spin: budgets.spin,
            operator_budget: budgets.operators,
            has_work: false,
            questions: HashMap::new(),
            effects: Vec::new(),
            completions: Vec::new(),
            requests: VecDeque::new(),
            cold_reads: ColdReads { open: HashMap::new(), used: 0, budget },
            next_figures_ms: 0,
            stop: Stop::No,
        }
    }

    /// Runs until the node stops and this shard's WAL is sealed. Once the node serves, the socket
    /// listens, and that is told.
    pub fn run(mut self, socket: Socket, is_listening: impl FnOnce()) {
        if let Err(error) = self.serve(socket, is_listening) {
            die(ExitCode::Other, &format!("shard {}: {error}", self.shard.id().0));
        }
    }

    fn serve(&mut self, socket: Socket, is_listening: impl FnOnce()) -> io::Result<()> {
        self.hub.shared.port.doorbell().install(Waker::from(self.awakener.clone()));
        self.hub.shared.telemetry().install(Waker::from(self.awakener.clone()));
        self.watch_doorbell()?;
        let mut unbound = Some((socket, is_listening));
        let mut listener: Option<Listener> = None;
        self.shard.start(&mut self.effects);
        loop {
            self.take_in();
            self.step_all();
            self.perform_all()?;
            self.hub.flush();
            self.publish()?;
            // Last of all: what is read now waits for the next turn, and nothing waits for it.
            self.set_gate();
            if self.phase.is_serving.load(Ordering::Acquire)
                && let Some((socket, is_listening)) = unbound.take()
            {
                listener = Some(Listener::start(socket, &mut self.hub)?);
                self.hub.shared.telemetry().ready.set(true);
                is_listening();
            }
            if self.advance_stop() {
                return self.finish();
            }
            if self.stop != Stop::No {
                listener = None;
            }
            self.hub.shared.port.flush();
            if let Some(listener) = &mut listener {
                listener.on_time(&mut self.hub)?;
            }
            let pause_until_ms = listener.as_ref().and_then(Listener::deadline_ms);
            self.wait(pause_until_ms)?;
            self.handle_completions(&mut listener)?;
            // Not before: what had come while the shard was busy counts as sent.
            self.hub.close_stalled();
        }
    }

    fn watch_doorbell(&mut self) -> io::Result<()> {
        self.hub.shared.uring.watch_readable(self.awakener.descriptor(), Token::Doorbell)
    }

    fn handle_completions(&mut self, listener: &mut Option<Listener>) -> io::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            match completion.token {
                Token::Doorbell => {
                    self.awakener.silence();
                    self.watch_doorbell()?;
                }
                Token::Listener => {
                    if let Some(listener) = listener {
                        listener.on_readable(&mut self.hub)?;
                    }
                }
                Token::Readable(id) => self.hub.on_readable(ConnectionId(id)),
                Token::Writable(id) => self.hub.on_writable(ConnectionId(id)),
                Token::Frame | Token::Sync => self.on_written(completion),
            }
        }
        self.completions = completions;
        Ok(())
    }

    /// Moves what other threads sent into the inbox.
    fn take_in(&mut self) {
        for Question { query, answer } in self.hub.shared.telemetry().take_questions() {
            let ticket = self.hub.reserve_ticket();
            self.questions.insert(ticket, answer);
            let command = Command::ReadState(query);
            self.hub.shared.inbox.push_back(Input::Command { ticket, command });
        }
        for input in self.mailbox.take() {
            match &input {
                Input::ReadDone { read, .. } => self.cold_reads.finish(*read),
                Input::DiskDone { .. } => self.jobs.on_done(),
                _ => {}
            }
            self.hub.shared.inbox.push_back(input);
        }
        for fault in self.mailbox.take_reports() {
            self.hub.shared.telemetry().damage.add(1);
            tracing::error!(
                shard = self.shard.id().0,
                fault,
                "the scrub found damage; run tidemill-dump --verify"
            );
        }
        let mut arrived = Vec::new();
        self.hub.shared.port.drain(&mut |from, packet| arrived.push((from, packet)));
        for (from, packet) in arrived {
            match packet.arrive(from) {
                Arrival::Input(input) => self.hub.shared.inbox.push_back(input),
                Arrival::Reply(ticket, reply) => self.hub.on_reply(ticket, reply),
            }
        }
    }

    fn step_all(&mut self) {
        let now = self.hub.shared.clock.now();
        if self.shard.next_deadline_ms().is_some_and(|due_ms| due_ms <= now.monotonic_ms) {
            self.shard.step(now, Input::Tick, &mut self.effects);
        }
        for _ in 0..STEPS_MAX {
            let input = next_input(&mut self.hub.shared.inbox, self.shard.accepts());
            let Some(input) = input else { break };
            self.shard.step(now, input, &mut self.effects);
        }
        self.process(now);
        self.shard.flush(now, &mut self.effects);
    }

    /// Lets topologies work for their time, and measures how long one call of theirs holds up
    /// everybody else.
    fn process(&mut self, now: Now) {
        if !self.shard.has_topologies() {
            self.has_work = self.shard.process(now, &mut || true, &mut self.effects);
            return;
        }
        let started = Instant::now();
        let (mut last, mut longest) = (started, Duration::ZERO);
        let budget = self.operator_budget;
        let mut goes_on = || {
            let asked = Instant::now();
            longest = longest.max(asked - last);
            last = asked;
            asked - started < budget
        };
        self.has_work = self.shard.process(now, &mut goes_on, &mut self.effects);
        if last == started {
            return;
        }
        let longest = longest.max(last.elapsed());
        self.hub.shared.telemetry().longest_call.record(longest.as_micros() as u64);
        if longest >= CALL_TIME_NOTABLE {
            tracing::warn!(
                shard = self.shard.id().0,
                took_ms = longest.as_millis() as u64,
                "an operator held up its shard; do long work elsewhere"
            );
        }
    }

    /// Lets connections be read, or not.
    fn set_gate(&mut self) {
        let shared = &self.hub.shared;
        let inbox_is_long = shared.inbox.len() > STEPS_MAX;
        let is_shut = !self.shard.accepts()
            || inbox_is_long
            || shared.port.is_congested()
            || shared.has_too_much_open();
        self.hub.set_shut(is_shut);
    }

    fn perform_all(&mut self) -> io::Result<()> {
        let mut is_writing = false;
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Write(write) => {
                    self.write(write);
                    is_writing = true;
                }
                Effect::Reply { ticket, reply: Reply::ReadState(entries) } => {
                    // Who asked may have gone.
                    if let Some(answer) = self.questions.remove(&ticket) {
                        let _ = answer.send(entries);
                    }
                }
                Effect::Reply { ticket, mut reply } => {
                    if !self.questions.is_empty() {
                        // Refused; who asked hears it by that.
                        self.questions.remove(&ticket);
                    }
                    self.complete_storage(&mut reply);
                    if ticket.origin == self.shard.id() {
                        self.hub.on_reply(ticket, reply);
                    } else {
                        let packet = Packet::Reply { ticket, reply };
                        self.hub.shared.port.send(ticket.origin, packet);
                    }
                }
                Effect::Mesh { to, message } => {
                    self.hub.shared.port.send(to, Packet::Message(message));
                }
                Effect::Disk { job, ops } => {
                    self.forget_removed(&ops);
                    self.jobs.start(job, ops)?;
                }
                Effect::Read { read, request } => {
                    self.requests.push_back(Request::Read(read, request));
                }
                Effect::Plan(files) => self.requests.push_back(Request::Plan(files)),
                Effect::ReadMerge(plan) => self.requests.push_back(Request::Merge(plan)),
                Effect::Verify(piece) => self.requests.push_back(Request::Verify(piece)),
                Effect::Call { call, request } => {
                    self.calls.start(call, request, &self.mailbox)?;
                }
                Effect::Routes(routes) => self.hub.shared.set_routes(routes),
                Effect::Notice(notice) => self.on_notice(&notice),
                Effect::Halt(reason) => die(ExitCode::Corruption, &reason),
            }
        }
        // Other shards work while this one writes and sends.
        self.hub.shared.port.flush();
        if is_writing && !self.hub.shared.unflushed.is_empty() {
            // The disk works while answers are sent.
            self.hub.shared.uring.submit()?;
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
        let telemetry = self.hub.shared.telemetry();
        telemetry.cold_read_budget.used.set(self.cold_reads.used as u64);
        Ok(())
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

    fn write(&mut self, write: FrameWrite) {
        let shared = &mut self.hub.shared;
        match write.kind {
            FrameKind::Steps => {
                shared.telemetry().frames.add(1);
                shared.telemetry().frame_size.record(write.bytes.len() as u64);
            }
            FrameKind::Idle | FrameKind::Seal => shared.telemetry().idle_frames.add(1),
        }
        let started_us = shared.clock.monotonic_us();
        if let Err(fault) = self.log.begin(&mut shared.uring, write, started_us) {
            die_of_disk(&fault);
        }
    }

    fn on_written(&mut self, completion: Completion) {
        let shared = &mut self.hub.shared;
        match self.log.on_completion(&mut shared.uring, completion) {
            Err(fault) => die_of_disk(&fault),
            Ok(None) => {}
            Ok(Some(InFlight { sequence, kind, started_us, .. })) => {
                if kind == FrameKind::Steps {
                    let latency_us = shared.clock.monotonic_us() - started_us;
                    shared.telemetry().commit_latency.record(latency_us);
                }
                shared.inbox.push_front(Input::Durable(sequence));
            }
        }
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
                self.hub.shared.telemetry().damage.add(1);
                tracing::error!(shard, fault, "stored data cannot be read");
            }
        }
    }

    fn publish(&mut self) -> io::Result<()> {
        let telemetry = self.hub.shared.telemetry();
        let gauges = self.shard.gauges();
        telemetry.inbox_depth.set(self.hub.shared.inbox.len() as u64);
        telemetry.filling.set(gauges.filling_size);
        telemetry.waiting_batches.set(gauges.waiting_batches_size);
        telemetry.wal_used.set(gauges.wal_used);
        telemetry.wal_capacity.set(gauges.wal_capacity);
        telemetry.state.set(gauges.state_size);
        telemetry.disk_full.set(gauges.is_disk_full);
        self.jobs.set_pace(pace(self.places.settle_rate, &gauges));
        let now_ms = self.hub.shared.clock.monotonic_ms();
        if now_ms < self.next_figures_ms {
            return Ok(());
        }
        self.next_figures_ms = now_ms + FIGURES_INTERVAL_MS;
        // A frame does not wait for figures.
        self.hub.shared.uring.submit()?;
        self.hub.look_after();
        let telemetry = self.hub.shared.telemetry();
        let tail = self.shard.tail_size();
        telemetry.tail.set(tail);
        telemetry.settle_lag.set(tail);
        telemetry.recovery_estimate_ms.set(super::recovery_estimate_ms(&gauges));
        let routes = self.hub.shared.routes();
        let ends = self.shard.partition_ends().filter_map(|(partition, durable_end)| {
            let topic = routes.ids.get(&partition.topic)?.name.clone();
            Some(PartitionEnd { topic, partition, durable_end })
        });
        let committed = self.shard.committed().map(|(group, partition, offset)| Committed {
            group: group.into(),
            partition,
            offset,
        });
        let read = self.shard.topology_progress().map(|(name, partition, offset)| Committed {
            group: format!("tidemill.{name}").into(),
            partition,
            offset,
        });
        let committed = committed.chain(read).collect();
        telemetry.publish_offsets(Offsets { committed, ends: ends.collect() });
        let wall_ms = self.hub.shared.clock.now().wall_ms;
        let topologies = self.shard.topologies();
        let topologies = topologies.map(|facts| figures::of_topology(facts, wall_ms));
        telemetry.publish_topologies(topologies.collect());
        Ok(())
    }

    /// True when this shard may seal and end.
    fn advance_stop(&mut self) -> bool {
        if self.stop == Stop::No && !self.phase.is_stopping.load(Ordering::Acquire) {
            return false;
        }
        let now_ms = self.hub.shared.clock.monotonic_ms();
        let is_quiet = self.shard.is_quiet() && self.hub.shared.inbox.is_empty();
        match self.stop {
            Stop::No => {
                self.hub.shared.inbox.push_back(Input::Stop);
                self.hub.end_connections();
                self.stop = Stop::Draining { until_ms: now_ms + DRAIN_MS_MAX };
                false
            }
            Stop::Draining { until_ms } => {
                if now_ms >= until_ms {
                    self.hub.close_connections();
                }
                let end_ms = until_ms + DRAIN_MS_MAX;
                if now_ms >= end_ms || self.hub.connection_count() == 0 && is_quiet {
                    self.stop = Stop::Drained { end_ms };
                    self.phase.drained.fetch_add(1, Ordering::AcqRel);
                    for doorbell in self.hub.shared.port.doorbells().iter() {
                        doorbell.ring();
                    }
                }
                false
            }
            Stop::Drained { end_ms } => {
                let is_all = self.phase.drained.load(Ordering::Acquire) == self.shard_count;
                // What the others said before they were drained is there, if not in the inbox.
                let has_heard = self.hub.shared.port.is_empty();
                is_all && (is_quiet && has_heard || now_ms >= end_ms)
            }
        }
    }

    /// Waits for something to do. The order (say that we sleep, look once more, sleep) is the
    /// doorbell's protocol, see `ring.rs`.
    fn wait(&mut self, pause_until_ms: Option<u64>) -> io::Result<()> {
        let stall_check_ms = self.hub.stall_check_ms();
        let shared = &mut self.hub.shared;
        let has_input = !shared.inbox.is_empty() && self.shard.accepts();
        let may_sleep =
            !has_input && !self.has_work && shared.unflushed.is_empty() && !shared.has_eased();
        if !may_sleep {
            return shared.uring.wait(Duration::ZERO, &mut self.completions);
        }
        let spin_end = (!self.spin.is_zero()).then(|| Instant::now() + self.spin);
        while spin_end.is_some_and(|end| Instant::now() < end) {
            shared.uring.wait(Duration::ZERO, &mut self.completions)?;
            let is_quiet = shared.port.is_empty() && self.mailbox.is_empty();
            if !self.completions.is_empty() || !is_quiet {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        let now_ms = shared.clock.monotonic_ms();
        let due_ms = self.shard.next_deadline_ms().into_iter().chain(pause_until_ms).min();
        let mut wait_ms = due_ms.map_or(FIGURES_INTERVAL_MS, |due_ms| {
            due_ms.saturating_sub(now_ms).clamp(1, FIGURES_INTERVAL_MS)
        });
        wait_ms = wait_ms.min(stall_check_ms.unwrap_or(FIGURES_INTERVAL_MS));
        if self.stop != Stop::No {
            wait_ms = wait_ms.min(STOP_POLL_MS);
        }
        shared.port.doorbell().bell.lie_down();
        let is_awaited =
            shared.port.is_empty() && !shared.port.has_backlog() && self.mailbox.is_empty();
        let timeout = if is_awaited { Duration::from_millis(wait_ms) } else { Duration::ZERO };
        let result = shared.uring.wait(timeout, &mut self.completions);
        shared.port.doorbell().bell.get_up();
        result
    }

    fn finish(&mut self) -> io::Result<()> {
        let now = self.hub.shared.clock.now();
        if !self.shard.is_quiet() {
            tracing::warn!(
                shard = self.shard.id().0,
                "the log has no room for what is open, or another shard has not written what it \
                 rests on; it was not acknowledged, and this shard ends without a seal, as after a \
                 crash"
            );
        } else if let Some(seal) = self.shard.seal(now) {
            self.write(seal);
            let is_sealed = |input: &Input| matches!(input, Input::Durable(_));
            while !self.hub.shared.inbox.iter().any(is_sealed) {
                let timeout = Duration::from_millis(FIGURES_INTERVAL_MS);
                self.hub.shared.uring.wait(timeout, &mut self.completions)?;
                self.handle_completions(&mut None)?;
            }
        }
        self.shard.forget_ends();
        // Dropping the jobs waits for those that are open.
        Ok(())
    }
}

/// Settling keeps its rate, if it has one, while the WAL is at most half full, goes faster above, and
/// hurries when more than three quarters are used.
fn pace(settle_rate: Option<u64>, gauges: &Gauges) -> u64 {
    let rate = settle_rate.unwrap_or(0);
    if gauges.wal_used * 2 <= gauges.wal_capacity {
        rate
    } else if gauges.wal_used * 4 <= gauges.wal_capacity * 3 {
        rate * 4
    } else {
        Pace::HURRY
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
