//! What the connections of a shard share: its inbox, its ports, its ring, its budgets.
//!
//! A connection does something when the ring, a reply or the hub says so, and never waits by
//! itself. What it waits for it is told: the shard (too much to do), the receive budget, its
//! client.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use socket2::Socket;
use tidemill_wal::format::ShardId;

use super::clock::Clock;
use super::connection::{Arrival, Connection, Ended, READ_SIZE_LARGE};
use super::lines::LineLimit;
use super::mesh::{Packet, Port};
use super::tickets::{Asker, ConnectionId, Tickets};
use super::uring::Uring;
use crate::admin::telemetry::{Outcome, ShardTelemetry, Telemetry};
use crate::command::{Command, Reply, Routes, Ticket};
use crate::effect::Input;
use crate::kafka::session::{Context, DispatchId, Finished, NodeFacts};

/// Smallest share of the send budget that a fetch gets: one consumer that stalls must not stop
/// the others.
const FETCH_SIZE_MIN: u32 = 64 << 10;

/// How long a client may send nothing of an unfinished request while others wait for the receive
/// budget. They wait in a line, and each one in it that stalls holds up the others for this long, and
/// until the next look. A segment that is lost nearby is sent again in less.
const STALL_US_MAX: u64 = 250_000;

/// How often stalled clients are looked for while others wait.
const STALL_CHECK_MS: u64 = 100;

/// Limits of one shard's connections.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest request.
    pub request_size_max: usize,
    /// A connection without a request for this long is closed.
    pub connection_idle_timeout: Duration,
    /// Connections of the node; shards that let one in at the same moment may go beyond by one each.
    pub connections_max: u64,
    /// Received bytes of unfinished requests.
    pub receive_budget: usize,
    /// Bytes of responses that clients have not taken.
    pub send_budget: usize,
}

/// The connections of one shard, and what they share.
pub struct Hub {
    pub(super) shared: Shared,
    connections: HashMap<ConnectionId, Connection>,
    next_connection: u64,
    next_stall_check_ms: u64,
}

/// What all connections of a shard have in common, and the loop's own queues.
pub struct Shared {
    pub(super) facts: NodeFacts,
    pub(super) limits: Limits,
    pub(super) clock: Clock,
    pub(super) inbox: VecDeque<Input>,
    pub(super) port: Port,
    pub(super) uring: Uring,
    /// Where small requests are received.
    pub(super) scratch: BytesMut,
    /// Connections with something new to send.
    pub(super) unflushed: Vec<ConnectionId>,
    routes: Arc<Routes>,
    telemetry: Arc<Telemetry>,
    tickets: Tickets,
    /// The shard takes no commands.
    is_shut: bool,
    /// Connections that wait until it does.
    shard_waiters: VecDeque<ConnectionId>,
    unsent: usize,
    received: usize,
    /// The connection that may receive beyond the budget.
    overdraft: Option<ConnectionId>,
    budget_waiters: Vec<ConnectionId>,
    /// The receive budget has room that it had not before.
    is_budget_eased: bool,
    lines: LineLimit,
}

impl Hub {
    pub(super) fn new(
        facts: NodeFacts,
        limits: Limits,
        clock: Clock,
        port: Port,
        uring: Uring,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        let shared = Shared {
            tickets: Tickets::new(facts.shard),
            facts,
            limits,
            clock,
            inbox: VecDeque::new(),
            port,
            uring,
            scratch: BytesMut::with_capacity(READ_SIZE_LARGE),
            unflushed: Vec::new(),
            routes: Arc::default(),
            telemetry,
            is_shut: false,
            shard_waiters: VecDeque::new(),
            unsent: 0,
            received: 0,
            overdraft: None,
            budget_waiters: Vec::new(),
            is_budget_eased: false,
            lines: LineLimit::default(),
        };
        Self { shared, connections: HashMap::new(), next_connection: 0, next_stall_check_ms: 0 }
    }

    /// A ticket whose answer no connection gets.
    pub(super) fn reserve_ticket(&mut self) -> Ticket {
        self.shared.tickets.reserve()
    }

    /// Takes a new connection, unless there are too many.
    pub(super) fn open(&mut self, socket: Socket) {
        let telemetry = self.shared.telemetry();
        if self.shared.telemetry.connections_open() >= self.shared.limits.connections_max {
            telemetry.connections_refused.add(1);
            if let Some(left_out) = self.shared.admit_line() {
                tracing::warn!(left_out, "a connection was refused: connections_max is reached");
            }
            return;
        }
        telemetry.connections_accepted.add(1);
        let id = ConnectionId(self.next_connection);
        self.next_connection += 1;
        match Connection::new(id, socket, self.shared.clock.monotonic_us()) {
            Ok(connection) => {
                self.connections.insert(id, connection);
                self.publish_count();
                self.with(id, Connection::on_admitted);
            }
            Err(error) => tracing::debug!(%error, "a connection ended before it began"),
        }
    }

    /// Lets a connection do something, and ends it if it says so. It may be gone.
    fn with(
        &mut self,
        id: ConnectionId,
        act: impl FnOnce(&mut Connection, &mut Shared) -> Result<(), Ended>,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Err(Ended(reason)) = act(connection, &mut self.shared) {
            self.close(id, &reason);
        }
        if self.shared.unsent > self.shared.limits.send_budget * 2 {
            self.close_largest();
        }
    }

    /// Forgets a connection and cancels what it waits for.
    fn close(&mut self, id: ConnectionId, reason: &str) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        for (shard, ticket) in connection.close(&mut self.shared, reason) {
            self.shared.cancel(shard, ticket);
        }
        self.publish_count();
    }

    fn publish_count(&self) {
        self.shared.telemetry().connections_open.set(self.connections.len() as u64);
    }

    pub(super) fn connection_count(&self) -> usize {
        self.connections.len()
    }

    pub(super) fn on_readable(&mut self, id: ConnectionId) {
        self.with(id, Connection::on_readable);
    }

    pub(super) fn on_writable(&mut self, id: ConnectionId) {
        self.with(id, Connection::on_writable);
    }

    /// An answer to a command of one of this shard's connections.
    pub(super) fn on_reply(&mut self, ticket: Ticket, reply: Reply) {
        // The connection may have gone meanwhile.
        let Some(Asker { connection, dispatch, .. }) = self.shared.tickets.redeem(ticket) else {
            return;
        };
        self.with(connection, |connection, shared| connection.on_reply(dispatch, reply, shared));
    }

    /// Whether the shard takes commands; if it does, those who waited for it go on.
    pub(super) fn set_shut(&mut self, is_shut: bool) {
        self.shared.is_shut = is_shut;
        let mut waiting = std::mem::take(&mut self.shared.shard_waiters);
        while !self.shared.is_shut
            && let Some(id) = waiting.pop_front()
        {
            self.with(id, Connection::on_admitted);
        }
        // Whose turn has not come is before those who wait again.
        waiting.append(&mut self.shared.shard_waiters);
        self.shared.shard_waiters = waiting;
        if std::mem::take(&mut self.shared.is_budget_eased) {
            for id in std::mem::take(&mut self.shared.budget_waiters) {
                self.with(id, Connection::on_admitted);
            }
        }
    }

    /// Sends what has gathered for all connections.
    pub(super) fn flush(&mut self) {
        for id in std::mem::take(&mut self.shared.unflushed) {
            self.with(id, Connection::send);
        }
    }

    fn ids(&self) -> Vec<ConnectionId> {
        self.connections.keys().copied().collect()
    }

    /// Lets every connection finish what is open and end.
    pub(super) fn end_connections(&mut self) {
        for id in self.ids() {
            self.with(id, |connection, _| connection.end());
        }
    }

    /// Ends every connection at once.
    pub(super) fn close_connections(&mut self) {
        for id in self.ids() {
            self.close(id, "the node stops");
        }
    }

    /// Memory is short because clients do not read: the one that holds most goes.
    fn close_largest(&mut self) {
        let largest = self.connections.values().max_by_key(|one| (one.unsent_size(), one.id));
        if let Some(connection) = largest {
            let (id, unsent) = (connection.id, connection.unsent_size());
            if let Some(left_out) = self.shared.admit_line() {
                tracing::warn!(
                    unsent,
                    left_out,
                    "send_budget is exceeded; closing the connection that holds most of it"
                );
            }
            self.close(id, "send_budget is exceeded");
        }
    }

    /// Looks after connections that do nothing; from time to time.
    pub(super) fn look_after(&mut self) {
        let now_us = self.shared.clock.monotonic_us();
        let idle_us = self.shared.limits.connection_idle_timeout.as_micros() as u64;
        for id in self.ids() {
            self.with(id, |connection, shared| connection.look_after(now_us, idle_us, shared));
        }
        self.close_slow_requests(now_us, idle_us);
    }

    /// Closes connections whose requests take longer to arrive than an idle connection is kept.
    /// Bytes that drip never stall: while others wait for the receive budget, the one that drips
    /// longest goes.
    fn close_slow_requests(&mut self, now_us: u64, idle_us: u64) {
        let mut slow = self.arriving(|arrival| now_us - arrival.began_us > idle_us);
        if slow.is_empty() && self.shared.is_waited_for_budget() {
            slow = self.arriving(|_| true);
            slow.truncate(1);
        }
        self.close_arriving(slow);
    }

    /// Closes connections that send nothing of their requests while others wait for the receive
    /// budget.
    pub(super) fn close_stalled(&mut self) {
        if !self.shared.is_waited_for_budget() {
            return;
        }
        let now_us = self.shared.clock.monotonic_us();
        if now_us / 1000 < self.next_stall_check_ms {
            return;
        }
        self.next_stall_check_ms = now_us / 1000 + STALL_CHECK_MS;
        let stalled = self.arriving(|arrival| now_us - arrival.waiting_since_us > STALL_US_MAX);
        self.close_arriving(stalled);
    }

    /// How long the loop may sleep until [`Hub::close_stalled`] has to look again, ms.
    pub(super) fn stall_check_ms(&self) -> Option<u64> {
        self.shared.is_waited_for_budget().then_some(STALL_CHECK_MS)
    }

    /// Connections with a wanted part of a request, the one that began first in front.
    fn arriving(&self, is_wanted: impl Fn(&Arrival) -> bool) -> Vec<ConnectionId> {
        let mut found: Vec<_> = (self.connections.values())
            .filter_map(|connection| {
                let arrival = connection.slow_arrival().filter(&is_wanted)?;
                Some((arrival.began_us, connection.id))
            })
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, id)| id).collect()
    }

    fn close_arriving(&mut self, ids: Vec<ConnectionId>) {
        for id in ids {
            if let Some(left_out) = self.shared.admit_line() {
                let peer = self.connections[&id].peer();
                tracing::info!(peer, left_out, "closing: its request arrives too slowly");
            }
            self.close(id, "its request arrives too slowly");
        }
    }
}

impl Shared {
    /// This shard's metrics.
    pub(super) fn telemetry(&self) -> &ShardTelemetry {
        self.telemetry.shard(self.facts.shard.0)
    }

    pub(super) fn set_routes(&mut self, routes: Arc<Routes>) {
        self.routes = routes;
    }

    pub(super) fn routes(&self) -> Arc<Routes> {
        self.routes.clone()
    }

    /// Whether a line that a client caused may be logged, and how many were not.
    pub(super) fn admit_line(&self) -> Option<Option<u64>> {
        self.lines.admit(self.clock.monotonic_us())
    }

    pub(super) fn context<'a>(&'a self, routes: &'a Arc<Routes>) -> Context<'a> {
        Context {
            facts: &self.facts,
            routes,
            wall_ms: self.clock.now().wall_ms,
            fetch_budget: self.fetch_budget(),
        }
    }

    /// How much a fetch may ask for now: a quarter of what the send budget has left.
    fn fetch_budget(&self) -> u32 {
        let left = self.limits.send_budget.saturating_sub(self.unsent) / 4;
        u32::try_from(left).unwrap_or(u32::MAX).max(FETCH_SIZE_MIN)
    }

    pub(super) fn add_unsent(&mut self, size: usize) {
        self.unsent += size;
        self.telemetry().send_budget.used.set(self.unsent as u64);
    }

    pub(super) fn subtract_unsent(&mut self, size: usize) {
        self.unsent -= size;
        self.telemetry().send_budget.used.set(self.unsent as u64);
    }

    /// Whether nothing more may be read for now: the shard takes no commands.
    pub(super) fn is_shut(&self) -> bool {
        self.is_shut
    }

    /// The connection goes on when the shard takes commands again.
    pub(super) fn wait_for_shard(&mut self, id: ConnectionId) {
        self.shard_waiters.push_back(id);
    }

    /// Whether the receive budget has room for large requests.
    pub(super) fn has_room_to_receive(&self) -> bool {
        self.received < self.limits.receive_budget
    }

    /// Whether somebody waits for the receive budget.
    fn is_waited_for_budget(&self) -> bool {
        !self.has_room_to_receive() && !self.budget_waiters.is_empty()
    }

    /// While the budget is used up one connection at a time goes on beyond it, so that requests
    /// still come to their end.
    pub(super) fn may_overdraw(&mut self, id: ConnectionId) -> bool {
        *self.overdraft.get_or_insert(id) == id
    }

    /// The connection goes on when the receive budget has more room.
    pub(super) fn wait_for_budget(&mut self, id: ConnectionId) {
        self.budget_waiters.push(id);
    }

    /// The connection holds other bytes of unfinished requests than before.
    pub(super) fn charge_received(&mut self, id: ConnectionId, old: usize, new: usize) {
        if new == 0 && self.overdraft == Some(id) {
            self.overdraft = None;
        }
        self.is_budget_eased |= new < old;
        self.received = self.received + new - old;
        self.telemetry().receive_budget.used.set(self.received as u64);
    }

    /// Whether somebody can go on who waited for the receive budget.
    pub(super) fn has_eased(&self) -> bool {
        self.is_budget_eased && !self.budget_waiters.is_empty()
    }

    /// Sends a command of a connection on its way.
    pub(super) fn send_command(
        &mut self,
        connection: ConnectionId,
        dispatch: DispatchId,
        shard: ShardId,
        command: Command,
    ) -> Ticket {
        let ticket = self.tickets.issue(connection, dispatch, &command);
        // The shard's loop opens it again.
        self.is_shut |= self.has_too_much_open();
        if shard == self.facts.shard {
            self.inbox.push_back(Input::Command { ticket, command });
        } else {
            self.port.send(shard, Packet::Command { ticket, command });
        }
        ticket
    }

    pub(super) fn send_nudge(&mut self, shard: ShardId, ticket: Ticket) {
        if shard == self.facts.shard {
            self.inbox.push_back(Input::FetchNow(ticket));
        } else {
            self.port.send(shard, Packet::FetchNow(ticket));
        }
    }

    fn cancel(&mut self, shard: ShardId, ticket: Ticket) {
        self.tickets.redeem(ticket);
        if shard == self.facts.shard {
            self.inbox.push_back(Input::Cancel(ticket));
        } else {
            self.port.send(shard, Packet::Cancel(ticket));
        }
    }

    /// Whether the batches that wait for shards take all of the receive budget: then nothing more
    /// is read until some are answered.
    pub(super) fn has_too_much_open(&self) -> bool {
        self.tickets.size() >= self.limits.receive_budget
    }

    pub(super) fn on_finished(&self, finished: &Finished) {
        let latency_us = self.clock.monotonic_us().saturating_sub(finished.started);
        let outcome = match finished.error {
            None => Outcome::Good,
            Some(code) => super::outcome_of(code),
        };
        self.telemetry().api(finished.api.index()).record(latency_us, outcome);
    }
}
