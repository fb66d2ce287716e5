//! The node's ends of connections: what the runtime does around each session, without its sockets.

use std::sync::Arc;

use bytes::Bytes;
use tidemill::command::{Refusal, Reply, Routes, Ticket};
use tidemill::kafka::frame::{CloseReason, take_frame};
use tidemill::kafka::session::{Action, Advertise, Context, Endpoint, NodeFacts};
use tidemill::runtime::mesh::Packet;
use tidemill::runtime::tickets::{Asker, ConnectionId};
use tidemill_wal::format::ShardId;

use super::{Event, World};
use crate::sim::clients::{Asked, Client};
use crate::sim::model::Check;
use crate::sim::wire::{Connection, Request, Way};

/// Inputs that wait at a shard before its connections are not read any more.
const INBOX_MAX: usize = 1024;

/// How long a connection that is not read waits before it is looked at again, in microseconds.
const GATE_PAUSE_US_MAX: u64 = 1000;

/// Longest request: far more than any client sends.
const REQUEST_SIZE_MAX: usize = 16 << 20;

/// Most record bytes of a fetch: more than any client asks for.
const FETCH_SIZE_MAX: u32 = 4 << 20;

/// An open command.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) client: usize,
    /// `None`: nobody's connection.
    pub(super) connection: Option<u64>,
    request: u64,
    /// The pieces of the request that the reply's results are for.
    claims: Vec<usize>,
    pub(super) asked: Asked,
    is_member: bool,
    pub(super) is_fetch: bool,
    /// Its connection is gone: it is answered nonetheless.
    pub(super) is_lost: bool,
}

impl Open {
    /// A command that no connection brought.
    pub(super) fn direct(client: usize, asked: Asked) -> Self {
        Self {
            client,
            connection: None,
            request: 0,
            claims: Vec::new(),
            asked,
            is_member: false,
            is_fetch: false,
            is_lost: false,
        }
    }
}

/// What the sessions of a shard know of their node.
pub(super) fn facts(shard: u16, shard_count: u16) -> NodeFacts {
    NodeFacts {
        cluster_id: "sim".to_owned(),
        shard: ShardId(shard),
        shard_count,
        advertise: Advertise::Node(Endpoint { host: "sim".to_owned(), port: 9092 }),
        auto_create: true,
        partition_count_default: 1,
        topic_defaults: tidemill::command::TopicConfig {
            retention_ms: None,
            retention_bytes: None,
            batch_size_max: 64 << 10,
            append_time: false,
            overrides: Default::default(),
        },
        settings: Vec::new(),
        request_size_max: REQUEST_SIZE_MAX,
        fetch_size_max: FETCH_SIZE_MAX,
        version: "sim".to_owned(),
    }
}

fn moment<'a>(facts: &'a NodeFacts, routes: &'a Arc<Routes>, wall_ms: i64) -> Context<'a> {
    Context { facts, routes, wall_ms, fetch_budget: FETCH_SIZE_MAX }
}

impl World {
    /// Whether the shard's connections are not read for now, as the runtime decides it.
    pub(super) fn is_gate_shut(&self, origin: u16) -> bool {
        let slot = &self.slots[usize::from(origin)];
        !slot.shard.accepts() || slot.inbox.len() > INBOX_MAX || slot.port.is_congested()
    }

    /// The node reads what it may of a connection.
    pub(super) fn look(&mut self, id: u64) -> Check {
        loop {
            let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
            if !connection.has_node {
                return Ok(());
            }
            if connection.is_ending {
                let is_over = connection.session.open_count() == 0 && connection.unsent_size == 0;
                return if is_over { self.close_node(id) } else { Ok(()) };
            }
            if !connection.session.may_read(connection.unsent_size, self.habits.unsent_max) {
                self.counts.unread_connections += 1;
                return Ok(());
            }
            let origin = connection.origin;
            if connection.is_look_due {
                return Ok(());
            }
            if self.is_gate_shut(origin) {
                self.counts.gates_shut += 1;
                let pause_us = self.dice.between(1, GATE_PAUSE_US_MAX);
                self.connection(id).is_look_due = true;
                self.schedule(pause_us, Event::Look(id));
                return Ok(());
            }
            if self.is_mistaken(id) {
                return self.break_before_mistake(id);
            }
            let connection = self.connection(id);
            match take_frame(&mut connection.received, REQUEST_SIZE_MAX) {
                Ok(Some(frame)) => self.on_request(id, frame.freeze())?,
                Ok(None) => {
                    let is_over = !connection.has_client && connection.to_node.size() == 0;
                    if is_over {
                        self.counts.broken_requests += u64::from(!connection.received.is_empty());
                        return self.close_node(id);
                    }
                    return Ok(());
                }
                Err(reason) => return Err(format!("connection {id} is not understood: {reason}")),
            }
        }
    }

    /// The node looks at a connection again.
    pub(super) fn look_again(&mut self, id: u64) -> Check {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.is_look_due = false;
        }
        self.look(id)
    }

    /// Whether the next request names a topic whose name is another one's by now.
    fn is_mistaken(&mut self, id: u64) -> bool {
        let connection = self.connections.get_mut(&id).expect("it is open");
        let routes = &self.slots[usize::from(connection.origin)].routes;
        let taken = connection.taken;
        connection.request(taken).is_some_and(|request| request.is_mistaken(routes))
    }

    /// By luck its connection breaks: who names a topic gets what has that name.
    fn break_before_mistake(&mut self, id: u64) -> Check {
        self.close_node(id)
    }

    fn on_request(&mut self, id: u64, frame: Bytes) -> Check {
        let wall_ms = self.clock.wall_ms();
        let connection = self.connections.get_mut(&id).expect("it is open");
        let slot = &self.slots[usize::from(connection.origin)];
        let number = connection.taken;
        connection.taken += 1;
        let mut actions = Vec::new();
        let cx = moment(&slot.facts, &slot.routes, wall_ms);
        let open_count = connection.session.open_count();
        connection
            .session
            .on_request(&cx, number, frame, &mut actions)
            .map_err(|reason| format!("connection {id} request {number}: {reason}"))?;
        if connection.session.open_count() == open_count {
            // A request before it ends the connection, and nothing is taken any more.
            return Ok(());
        }
        // A fetch may have to wait for its turn.
        let is_held = actions.is_empty()
            && connection.request(number).is_some_and(|request| request.fetch().is_some())
            && !connection.session.may_read(0, usize::MAX);
        if is_held {
            self.counts.held_fetches += 1;
        } else {
            self.dispatch(id, Some(number), actions)?;
        }
        self.collect(id)
    }

    /// Does what the session asks for. All commands are for one request: the one that was just
    /// taken, or the fetch whose turn it is.
    fn dispatch(&mut self, id: u64, number: Option<u64>, actions: Vec<Action>) -> Check {
        let connection = self.connections.get_mut(&id).expect("it is open");
        let (client, origin, is_lost) =
            (connection.client, connection.origin, !connection.has_client);
        let slot = &mut self.slots[usize::from(origin)];
        let number = number.or_else(|| {
            let is_asking = actions.iter().any(|action| matches!(action, Action::Ask { .. }));
            let (first, taken) = (connection.first, connection.taken);
            let is_due = |request: &&Request| {
                is_asking
                    && !request.is_dispatched
                    && request.number < taken
                    && request.fetch().is_some()
            };
            let due = connection.requests.iter().find(is_due);
            due.map(|request| request.number).filter(|number| *number >= first)
        });
        let mut asks = Vec::new();
        if let Some(request) = number.and_then(|number| connection.request(number)) {
            request.dispatch(&slot.routes);
        }
        let mut packets = Vec::new();
        for action in actions {
            match action {
                Action::Ask { id: dispatch, shard, command } => {
                    let request = number.and_then(|number| connection.request(number));
                    let request = request
                        .ok_or_else(|| format!("connection {id}: {command:?}, for no request"))?;
                    let (claims, asked) = request.claim(shard, &command)?;
                    let number = request.number;
                    asks.push(claims.clone());
                    let ticket = slot.tickets.issue(ConnectionId(id), dispatch, &command);
                    connection.tickets.insert(dispatch, ticket);
                    let open = Open {
                        client,
                        connection: Some(id),
                        request: number,
                        claims,
                        is_member: matches!(asked, Asked::Member(_)),
                        is_fetch: matches!(asked, Asked::Fetch(_)),
                        asked,
                        is_lost,
                    };
                    self.open.insert(ticket, open);
                    packets.push((shard, Packet::Command { ticket, command }));
                }
                Action::FetchNow { id: dispatch, shard } => {
                    self.counts.hurried_fetches += 1;
                    let ticket = connection.tickets.get(&dispatch).copied();
                    packets.extend(ticket.map(|ticket| (shard, Packet::FetchNow(ticket))));
                }
            }
        }
        if let Some(request) = number.and_then(|number| connection.request(number)) {
            request.check_asked(&asks)?;
            request.give_up(&mut self.model)?;
            let refusals = request.pieces.iter().flat_map(|piece| &piece.refused);
            self.counts.node_refusals += refusals.filter(|code| **code != 0).count() as u64;
            self.counts.split_requests += u64::from(asks.len() > 1);
        }
        for (shard, packet) in packets {
            self.send_packet(origin, shard.0, packet);
        }
        Ok(())
    }

    /// A reply is back at the shard whose connection asked.
    pub(super) fn on_reply(&mut self, origin: u16, ticket: Ticket, reply: Reply) -> Check {
        let wall_ms = self.clock.wall_ms();
        let slot = &mut self.slots[usize::from(origin)];
        let Some(Asker { connection: id, dispatch, .. }) = slot.tickets.redeem(ticket) else {
            return Ok(());
        };
        let ConnectionId(id) = id;
        let connection = self.connections.get_mut(&id).expect("a ticket goes with its connection");
        connection.tickets.remove(&dispatch);
        if let Some((number, claims)) = connection.claims.remove(&ticket)
            && let Some(request) = connection.request(number)
        {
            request.tell(&claims, &reply, &slot.routes);
        }
        let mut actions = Vec::new();
        let cx = moment(&slot.facts, &slot.routes, wall_ms);
        connection.session.on_reply(&cx, dispatch, reply, &mut actions);
        let open_before = connection.session.open_count();
        self.dispatch(id, None, actions)?;
        self.collect(id)?;
        let is_kept = self.connections.get(&id).is_some_and(|connection| {
            connection.session.open_count() == open_before && open_before > 1
        });
        self.counts.answers_kept += u64::from(is_kept);
        Ok(())
    }

    /// Takes what the session is done with, to be sent.
    fn collect(&mut self, id: u64) -> Check {
        let connection = self.connections.get_mut(&id).expect("it is open");
        let routes = &self.slots[usize::from(connection.origin)].routes;
        while let Some(finished) = connection.session.next_finished() {
            if finished.started != connection.finished {
                let (due, got) = (connection.finished, finished.started);
                return Err(format!("connection {id}: request {due} is due, {got} is finished"));
            }
            connection.finished += 1;
            if let Some(request) = connection.request(finished.started) {
                if !request.is_dispatched {
                    // A fetch whose turn came, and that no shard is asked for.
                    request.dispatch(routes);
                    request.check_asked(&[])?;
                    request.give_up(&mut self.model)?;
                }
                if request.is_answered() == finished.pieces.is_none() {
                    return Err(format!("connection {id}: {finished:?} for {request:?}"));
                }
                request.is_done |= !request.is_answered();
            }
            match finished.close {
                Some(CloseReason::Unacknowledged { .. }) => {
                    self.counts.unacknowledged_ends += 1;
                    connection.is_ending = true;
                }
                Some(reason) => return Err(format!("connection {id} ends: {reason}")),
                None => {}
            }
            if connection.has_client {
                for piece in finished.pieces.into_iter().flat_map(|pieces| pieces.pieces) {
                    connection.unsent_size += piece.len();
                    connection.unsent.push_back(piece);
                }
            }
        }
        connection.forget_done();
        self.pump(id);
        self.look(id)
    }

    /// The node sends what there is room for.
    pub(super) fn pump(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let room = self.habits.room.saturating_sub(connection.to_client.size());
        if room < connection.unsent_size && room < self.habits.room / 2 {
            return; // Else pieces would only become smaller and smaller.
        }
        let mut bytes = Vec::with_capacity(room.min(connection.unsent_size));
        while bytes.len() < room
            && let Some(front) = connection.unsent.front_mut()
        {
            let count = front.len().min(room - bytes.len());
            bytes.extend_from_slice(&front.split_to(count));
            if front.is_empty() {
                connection.unsent.pop_front();
            }
        }
        connection.unsent_size -= bytes.len();
        self.counts.wire_bytes += bytes.len() as u64;
        if !bytes.is_empty() {
            let cut_one_in = self.habits.cut_one_in;
            connection.to_client.push(bytes.into(), cut_one_in, &mut self.dice);
            self.start(id, Way::ToClient);
        }
    }

    /// The node's end of a connection is gone: what it waits for is cancelled, what it has not
    /// taken never happens.
    pub(super) fn close_node(&mut self, id: u64) -> Check {
        let connection = self.connections.get_mut(&id).expect("it is open");
        if !std::mem::replace(&mut connection.has_node, false) {
            return Ok(());
        }
        let origin = connection.origin;
        let mut cancelled = Vec::new();
        for (shard, dispatch) in connection.session.close() {
            let Some(ticket) = connection.tickets.remove(&dispatch) else { continue };
            self.slots[usize::from(origin)].tickets.redeem(ticket);
            cancelled.push((shard, ticket));
        }
        for request in &mut connection.requests {
            if !request.is_dispatched {
                request.give_up(&mut self.model)?;
            }
        }
        for open in self.open.values_mut() {
            open.is_lost |= open.connection == Some(id);
        }
        for (shard, ticket) in cancelled {
            self.send_packet(origin, shard.0, Packet::Cancel(ticket));
        }
        let followers: Vec<u64> = (self.connections.iter())
            .filter(|(_, connection)| connection.after == Some(id))
            .map(|(follower, _)| *follower)
            .collect();
        for follower in followers {
            self.connection(follower).after = None;
            self.start(follower, Way::ToNode);
        }
        self.forget_if_over(id)
    }

    /// A connection whose ends are both gone is forgotten; the client notices that the node's end
    /// is gone when it has read everything.
    pub(super) fn forget_if_over(&mut self, id: u64) -> Check {
        let Some(connection) = self.connections.get(&id) else { return Ok(()) };
        let has_all_read = connection.to_client.size() == 0 && connection.unsent_size == 0;
        if connection.has_node || (connection.has_client && !has_all_read) {
            return Ok(());
        }
        let (client, has_client, is_deaf) =
            (connection.client, connection.has_client, connection.is_deaf);
        self.connections.remove(&id);
        if has_client && !is_deaf && !self.is_stopping {
            self.counts.disconnections += 1;
            self.current[client] = self.open_connection(client, None);
            self.with_client(client, |client, _| client.on_disconnect())?;
        }
        Ok(())
    }

    /// The node stops: nothing more is read, and whoever only waits is cut off.
    pub(super) fn end_connections(&mut self) -> Check {
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            let is_waiting = self
                .open
                .values()
                .any(|open| open.connection == Some(id) && (open.is_member || open.is_fetch));
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.is_ending = true;
            if is_waiting {
                self.close_node(id)?;
            }
        }
        Ok(())
    }

    /// Whether everything that was asked is answered.
    pub(super) fn are_connections_quiet(&self) -> bool {
        self.connections.values().all(Connection::is_quiet)
    }

    /// An answer leaves its shard: from now on a client may have it.
    pub(super) fn answer(&mut self, from: u16, ticket: Ticket, reply: Reply) -> Check {
        self.note(&[6, ticket.id, self.clock.now_us]);
        self.say(|| format!("reply {}.{} {reply:?}", ticket.origin.0, ticket.id));
        let Some(open) = self.open.remove(&ticket) else {
            return Err(format!("a second reply to {ticket:?}: {reply:?}"));
        };
        // The connection ends with the node, but what left the shard counts.
        let is_told = !self.is_stopping || !matches!(reply, Reply::Refused(_));
        if is_told {
            let told = self.without_storage_refusals(from, reply.clone())?;
            self.counts.lost_answers += u64::from(open.is_lost);
            Client::on_told(&mut self.model, &open.asked, &told)?;
        }
        match open.connection {
            Some(id) => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.claims.insert(ticket, (open.request, open.claims));
                }
            }
            None if is_told && !open.is_lost => {
                let reply = reply.clone();
                self.with_client(open.client, |client, cx| {
                    client.on_reply(cx, open.asked, reply)
                })??;
            }
            None => {}
        }
        if ticket.origin.0 == from {
            self.on_reply(from, ticket, reply)
        } else {
            self.send_reply(from, ticket, reply);
            Ok(())
        }
    }

    /// Takes back the refusals that damage explains: the client asks again.
    fn without_storage_refusals(&mut self, from: u16, mut reply: Reply) -> Result<Reply, String> {
        let mut refusals = 0;
        if let Reply::Fetch(results) = &mut reply {
            for fetched in results {
                if matches!(fetched.records, Err(Refusal::Storage)) {
                    fetched.records = Ok(Vec::new());
                    refusals += 1;
                }
            }
        } else if let Reply::ListOffsets(results) = &reply {
            refusals = results.iter().filter(|it| matches!(it, Err(Refusal::Storage))).count();
            if refusals > 0 {
                reply = Reply::Refused(Refusal::Busy);
            }
        }
        let due = &mut self.slots[usize::from(from)].refusals_due;
        match due.checked_sub(refusals as u64) {
            Some(left) => *due = left,
            None => return Err(format!("shard {from} refuses what it could read: {reply:?}")),
        }
        self.counts.storage_refusals += refusals as u64;
        Ok(reply)
    }
}
