//! What one shard's tasks share: connections, tickets, budgets, and the way to the shard.
//!
//! Everything here belongs to one thread. Borrows never live across an await.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::clock::Clock;
use super::connection::Connection;
use super::event::{Event, Gate};
use super::lines::LineLimit;
use super::mesh::{Packet, Port};
use super::tickets::{Asker, ConnectionId, Tickets};
use crate::admin::telemetry::{Outcome, ShardTelemetry, Telemetry};
use crate::command::{Command, Reply, Routes, Ticket};
use crate::effect::Input;
use crate::kafka::frame::CloseReason;
use crate::kafka::session::{Action, Context, Finished, NodeFacts};
use tidemill_wal::format::ShardId;

/// Smallest share of the send budget that a fetch gets: one consumer that stalls must not stop
/// the others.
const FETCH_SIZE_MIN: u32 = 64 << 10;

/// How long a client may leave a request unfinished while others wait for the receive budget.
const STALL_US_MAX: u64 = 500_000;

/// Limits of one shard's connections.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest request.
    pub request_size_max: usize,
    /// A connection without a request for this long is closed.
    pub connection_idle_timeout: Duration,
    /// Connections of this shard.
    pub connections_max: usize,
    /// Received bytes of unfinished requests.
    pub receive_budget: usize,
    /// Bytes of responses that clients have not taken.
    pub send_budget: usize,
}

/// Shared by the tasks of one shard.
#[derive(Debug)]
pub struct Hub {
    pub(super) facts: NodeFacts,
    pub(super) limits: Limits,
    pub(super) clock: Clock,
    pub(super) inbox: RefCell<VecDeque<Input>>,
    pub(super) port: RefCell<Port>,
    pub(super) wake: Event,
    /// Shut while the shard takes no commands.
    pub(super) gate: Gate,
    routes: RefCell<Arc<Routes>>,
    telemetry: Arc<Telemetry>,
    connections: RefCell<HashMap<ConnectionId, Rc<Connection>>>,
    tickets: RefCell<Tickets>,
    /// Connections with something new to send.
    unflushed: RefCell<Vec<Rc<Connection>>>,
    next_connection: Cell<u64>,
    unsent: Cell<usize>,
    received: Cell<usize>,
    /// The connection that may receive beyond the budget.
    overdraft: Cell<Option<ConnectionId>>,
    receive_gate: Gate,
    lines: LineLimit,
}

impl Hub {
    pub(super) fn new(
        facts: NodeFacts,
        limits: Limits,
        clock: Clock,
        port: Port,
        telemetry: Arc<Telemetry>,
    ) -> Rc<Self> {
        Rc::new(Self {
            tickets: RefCell::new(Tickets::new(facts.shard)),
            facts,
            limits,
            clock,
            inbox: RefCell::default(),
            port: RefCell::new(port),
            wake: Event::default(),
            gate: Gate::default(),
            routes: RefCell::default(),
            telemetry,
            connections: RefCell::default(),
            unflushed: RefCell::default(),
            next_connection: Cell::new(0),
            unsent: Cell::new(0),
            received: Cell::new(0),
            overdraft: Cell::new(None),
            receive_gate: Gate::default(),
            lines: LineLimit::default(),
        })
    }

    /// This shard's metrics.
    pub(super) fn telemetry(&self) -> &ShardTelemetry {
        self.telemetry.shard(self.facts.shard.0)
    }

    /// Whether a line that a client caused may be logged, and how many were not.
    pub(super) fn admit_line(&self) -> Option<Option<u64>> {
        self.lines.admit(self.clock.monotonic_us())
    }

    pub(super) fn next_connection(&self) -> ConnectionId {
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        ConnectionId(id)
    }

    pub(super) fn open(&self, connection: Rc<Connection>) {
        self.connections.borrow_mut().insert(connection.id, connection);
        self.telemetry().connections_open.set(self.connections.borrow().len() as u64);
    }

    pub(super) fn connection_count(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Forgets a connection and cancels what it waits for.
    pub(super) fn remove(&self, connection: &Connection) {
        self.connections.borrow_mut().remove(&connection.id);
        self.telemetry().connections_open.set(self.connections.borrow().len() as u64);
        let open = connection.session.borrow_mut().close();
        for (shard, dispatch) in open {
            let Some(ticket) = connection.tickets.borrow_mut().remove(&dispatch) else { continue };
            self.tickets.borrow_mut().redeem(ticket);
            if shard == self.facts.shard {
                self.inbox.borrow_mut().push_back(Input::Cancel(ticket));
            } else {
                self.port.borrow_mut().send(shard, Packet::Cancel(ticket));
            }
        }
        self.wake.set();
    }

    /// Lets every connection finish what is open and end.
    pub(super) fn end_connections(&self) {
        let connections: Vec<_> = self.connections.borrow().values().cloned().collect();
        for connection in connections {
            connection.end();
        }
    }

    /// Ends every connection at once.
    pub(super) fn close_connections(&self) {
        let connections: Vec<_> = self.connections.borrow().values().cloned().collect();
        for connection in connections {
            connection.close(self, "the node stops");
        }
    }

    pub(super) fn set_routes(&self, routes: Arc<Routes>) {
        *self.routes.borrow_mut() = routes;
    }

    pub(super) fn routes(&self) -> Arc<Routes> {
        self.routes.borrow().clone()
    }

    /// How much a fetch may ask for now: a quarter of what the send budget has left.
    fn fetch_budget(&self) -> u32 {
        let left = self.limits.send_budget.saturating_sub(self.unsent.get()) / 4;
        u32::try_from(left).unwrap_or(u32::MAX).max(FETCH_SIZE_MIN)
    }

    pub(super) fn add_unsent(&self, size: usize) {
        self.unsent.set(self.unsent.get() + size);
        self.telemetry().send_budget.used.set(self.unsent.get() as u64);
        if self.unsent.get() > self.limits.send_budget * 2 {
            self.close_largest();
        }
    }

    pub(super) fn subtract_unsent(&self, size: usize) {
        self.unsent.set(self.unsent.get() - size);
        self.telemetry().send_budget.used.set(self.unsent.get() as u64);
    }

    /// Memory is short because clients do not read: the one that holds most goes.
    fn close_largest(&self) {
        let largest =
            self.connections.borrow().values().max_by_key(|c| (c.unsent_size(), c.id)).cloned();
        if let Some(connection) = largest {
            if let Some(left_out) = self.admit_line() {
                tracing::warn!(
                    unsent = connection.unsent_size(),
                    left_out,
                    "send_budget is exceeded; closing the connection that holds most of it"
                );
            }
            connection.close(self, "send_budget is exceeded");
        }
    }

    /// Waits until a connection may receive more of a large request. While the budget is used up
    /// one connection at a time goes on beyond it, so that requests still come to their end.
    pub(super) async fn wait_for_receive_budget(&self, connection: ConnectionId) {
        while self.received.get() >= self.limits.receive_budget {
            match self.overdraft.get() {
                None => self.overdraft.set(Some(connection)),
                Some(owner) if owner == connection => return,
                Some(_) => {
                    self.receive_gate.set_shut(true);
                    self.receive_gate.pass().await;
                }
            }
        }
    }

    /// The connection holds other bytes of unfinished requests than before.
    pub(super) fn charge_received(&self, connection: ConnectionId, old: usize, new: usize) {
        if new == 0 && self.overdraft.get() == Some(connection) {
            self.overdraft.set(None);
        }
        if new < old {
            self.receive_gate.set_shut(false);
        }
        self.received.set(self.received.get() + new - old);
        self.telemetry().receive_budget.used.set(self.received.get() as u64);
    }

    /// Closes connections whose requests take too long to arrive: longer than an idle connection
    /// is kept, or too long for the others who wait for the receive budget.
    pub(super) fn close_slow_requests(&self) {
        let now_us = self.clock.monotonic_us();
        let is_used_up = self.received.get() >= self.limits.receive_budget;
        let idle_us = self.limits.connection_idle_timeout.as_micros() as u64;
        let connections = self.connections.borrow();
        let mut slow: Vec<_> = connections
            .values()
            .filter_map(|connection| {
                let arrival = connection.slow_arrival()?;
                let is_stalled = is_used_up && now_us - arrival.waiting_since_us > STALL_US_MAX;
                let is_late = now_us - arrival.began_us > idle_us || is_stalled;
                (is_late || is_used_up).then(|| (arrival.began_us, is_late, connection.clone()))
            })
            .collect();
        drop(connections);
        slow.sort_unstable_by_key(|(began_us, _, connection)| (*began_us, connection.id));
        // Bytes that drip never stall; while others wait, the one that drips longest goes.
        let is_first_for_all = slow.iter().all(|(_, is_late, _)| !is_late);
        for (index, (_, is_late, connection)) in slow.into_iter().enumerate() {
            if is_late || (index == 0 && is_first_for_all) {
                if let Some(left_out) = self.admit_line() {
                    let peer = connection.peer();
                    tracing::info!(peer, left_out, "closing: its request arrives too slowly");
                }
                connection.close(self, "its request arrives too slowly");
            }
        }
    }

    /// A whole request of a connection.
    pub(super) fn on_request(
        &self,
        connection: &Rc<Connection>,
        frame: Bytes,
    ) -> Result<(), CloseReason> {
        let mut actions = Vec::new();
        let started = self.clock.monotonic_us();
        let routes = self.routes();
        let result = connection.session.borrow_mut().on_request(
            &self.context(&routes),
            started,
            frame,
            &mut actions,
        );
        self.dispatch(connection, actions);
        connection.collect(self);
        self.flush_later(connection);
        result
    }

    fn context<'a>(&'a self, routes: &'a Arc<Routes>) -> Context<'a> {
        Context {
            facts: &self.facts,
            routes,
            wall_ms: self.clock.now().wall_ms,
            fetch_budget: self.fetch_budget(),
        }
    }

    fn dispatch(&self, connection: &Connection, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Ask { id, shard, command } => {
                    let ticket = self.tickets.borrow_mut().issue(connection.id, id, &command);
                    if self.has_too_much_open() {
                        // The shard's loop opens it again.
                        self.gate.set_shut(true);
                    }
                    connection.tickets.borrow_mut().insert(id, ticket);
                    self.send_command(shard, ticket, command);
                }
                Action::FetchNow { id, shard } => {
                    let ticket = connection.tickets.borrow().get(&id).copied();
                    if let Some(ticket) = ticket {
                        self.send_nudge(shard, ticket);
                    }
                }
            }
        }
        self.wake.set();
    }

    /// Whether the batches that wait for shards take all of the receive budget: then nothing more
    /// is read until some are answered.
    pub(super) fn has_too_much_open(&self) -> bool {
        self.tickets.borrow().size() >= self.limits.receive_budget
    }

    fn send_command(&self, shard: ShardId, ticket: Ticket, command: Command) {
        if shard == self.facts.shard {
            self.inbox.borrow_mut().push_back(Input::Command { ticket, command });
        } else {
            self.port.borrow_mut().send(shard, Packet::Command { ticket, command });
        }
    }

    fn send_nudge(&self, shard: ShardId, ticket: Ticket) {
        if shard == self.facts.shard {
            self.inbox.borrow_mut().push_back(Input::FetchNow(ticket));
        } else {
            self.port.borrow_mut().send(shard, Packet::FetchNow(ticket));
        }
    }

    /// An answer to a command of one of this shard's connections.
    pub(super) fn on_reply(&self, ticket: Ticket, reply: Reply) {
        // The connection may have gone meanwhile.
        let redeemed = self.tickets.borrow_mut().redeem(ticket);
        let Some(Asker { connection, dispatch, .. }) = redeemed else { return };
        let connection = self.connections.borrow().get(&connection).cloned();
        let Some(connection) = connection else { return };
        connection.tickets.borrow_mut().remove(&dispatch);
        let mut actions = Vec::new();
        let routes = self.routes();
        let context = self.context(&routes);
        connection.session.borrow_mut().on_reply(&context, dispatch, reply, &mut actions);
        self.dispatch(&connection, actions);
        connection.collect(self);
        self.flush_later(&connection);
    }

    fn flush_later(&self, connection: &Rc<Connection>) {
        let mut unflushed = self.unflushed.borrow_mut();
        if !unflushed.last().is_some_and(|last| Rc::ptr_eq(last, connection)) {
            unflushed.push(connection.clone());
        }
        self.wake.set();
    }

    /// Sends what has gathered for all connections.
    pub(super) fn flush(&self) {
        for connection in self.unflushed.take() {
            connection.send(self);
        }
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
