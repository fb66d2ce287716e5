//! Clients' ends of their connections: requests leave, answers come, connections break.

use tidemill::command::{Command, Refusal, Reply};
use tidemill::runtime::mesh::Packet;
use tidemill_wal::format::ShardId;

use super::sessions::Open;
use super::{Event, World};
use crate::sim::clients::{Asked, Auditor, Client, Context};
use crate::sim::model::Check;
use crate::sim::wire::{Connection, Request, Way, answer};

/// A client that does not read for a while takes up to so long, in microseconds.
const PAUSE_US_MAX: u64 = 30_000;

/// How long a client waits before it looks whether its socket takes more, in microseconds.
const BLOCKED_US_MAX: u64 = 1000;

/// A produce of a plain producer wants no answer in one case of so many.
const UNANSWERED_ONE_IN: u64 = 6;

/// One request of a client.
type Part = (ShardId, Command, Asked);

impl World {
    /// What a client has at hand now.
    fn context(&mut self) -> Context<'_> {
        Context {
            random: &mut self.random,
            model: &mut self.model,
            shard_count: self.plan.shard_count,
            now_us: self.clock.now_us,
            wall_ms: self.clock.wall_ms(),
            is_draining: self.is_draining,
            is_closing: self.is_closing,
            asked: Vec::new(),
            unheard: Vec::new(),
            is_disconnecting: false,
        }
    }

    /// An auditor begins to read everything.
    pub(super) fn begin_audit(&mut self) {
        let mut auditor = Auditor::default();
        auditor.begin(&self.context());
        self.clients[0] = Client::Auditor(auditor);
    }

    /// A client's time has come.
    pub(super) fn act(&mut self, index: usize) -> Check {
        if self.is_stopping || self.is_still {
            return Ok(());
        }
        // What it asked on a connection that broke is done, or never will be, before the
        // administrator goes on: its changes are checked one by one.
        let has_lost = || {
            let is_waiting = |it: &Connection| it.after.is_some();
            self.connections.get(&self.current[index]).is_some_and(is_waiting)
                || self.open.values().any(|open| open.client == index && open.is_lost)
        };
        let pause_us = match self.clients[index] {
            Client::Admin(_) if has_lost() => 1000,
            _ if self.is_blocked(index) => self.dice.between(1, BLOCKED_US_MAX),
            _ => self.with_client(index, |client, cx| client.act(cx))?,
        };
        self.schedule(pause_us, Event::Act(index));
        Ok(())
    }

    /// Whether the node does not read what the client has sent: its socket takes no more.
    fn is_blocked(&self, client: usize) -> bool {
        let unread_size = |connection: &Connection| {
            connection.to_node.size() + connection.received.len() > self.habits.room
        };
        self.is_gate_shut(self.origins[client])
            || self.connections.get(&self.current[client]).is_some_and(unread_size)
    }

    /// Lets a client do something, and sends what it asks through its connection.
    pub(super) fn with_client<R>(
        &mut self,
        index: usize,
        run: impl FnOnce(&mut Client, &mut Context<'_>) -> R,
    ) -> Result<R, String> {
        let nobody = Client::Auditor(Auditor::default());
        let mut client = std::mem::replace(&mut self.clients[index], nobody);
        let mut cx = self.context();
        let result = run(&mut client, &mut cx);
        let Context { asked, unheard, is_disconnecting, .. } = cx;
        self.clients[index] = client;
        if is_disconnecting {
            self.disconnect(index)?;
        }
        self.ask(index, asked)?;
        for part in unheard {
            // Of somebody whom nobody expects any more: on a connection of its own.
            let id = self.open_connection(index, None);
            self.connection(id).is_deaf = true;
            self.send(id, vec![part])?;
        }
        Ok(result)
    }

    /// Sends what a client asks: what is of one kind may be one request.
    fn ask(&mut self, client: usize, parts: Vec<Part>) -> Check {
        let id = self.current[client];
        if !parts.is_empty() && self.dice.one_in(60) {
            let number = self.next_number(id);
            let request = Request::metadata(number, &mut self.dice);
            self.put(id, request);
        }
        let mut together: Vec<Part> = Vec::new();
        for part in parts {
            let joins = together.first().is_some_and(|(_, first, _)| match (first, &part.1) {
                // A consumer waits for one answer.
                (Command::Fetch(_), Command::Fetch(_)) => true,
                (Command::Produce(_), Command::Produce(_)) => !self.dice.one_in(4),
                _ => false,
            });
            if !joins && !together.is_empty() {
                self.send(id, std::mem::take(&mut together))?;
            }
            together.push(part);
        }
        if together.is_empty() { Ok(()) } else { self.send(id, together) }
    }

    fn next_number(&mut self, id: u64) -> u64 {
        let connection = self.connection(id);
        connection.first + connection.requests.len() as u64
    }

    fn send(&mut self, id: u64, mut parts: Vec<Part>) -> Check {
        self.counts.commands += parts.len() as u64;
        if let [(_, Command::DescribePartitions(_), _)] = parts.as_slice() {
            let part = parts.pop().expect("looked at above");
            self.ask_directly(id, part);
            return Ok(());
        }
        let number = self.next_number(id);
        // A name may be another topic's when a fetch's turn comes.
        let has_fetch = self.connection(id).requests.iter().any(|it| it.fetch().is_some());
        let request = Request::new(parts, number, has_fetch, &mut self.dice, &self.model);
        let Some(mut request) = request else {
            return Err("a client asks for what no request is for".to_owned());
        };
        let client = self.connection(id).client;
        let is_plain = matches!(&self.clients[client], Client::Producer(it) if it.is_plain());
        let is_deaf = self.connection(id).is_deaf;
        let is_produce = request.fetch().is_none() && request.is_produce();
        if is_plain && !is_deaf && is_produce && self.dice.one_in(UNANSWERED_ONE_IN) {
            request.acks = 0;
            self.counts.unanswered_requests += 1;
        }
        let unheard: Vec<Asked> = match request.is_answered() {
            true => Vec::new(),
            false => request.pieces.iter().map(|piece| piece.asked.clone()).collect(),
        };
        self.put(id, request);
        for asked in unheard {
            // It hears nothing more of it, and goes on.
            let reply = Reply::Refused(Refusal::Busy);
            self.with_client(client, |client, cx| client.on_reply(cx, asked, reply))??;
        }
        Ok(())
    }

    /// A request leaves its client.
    fn put(&mut self, id: u64, request: Request) {
        let bytes = request.encode();
        self.counts.requests += 1;
        self.note(&[8, id, request.number, bytes.len() as u64]);
        self.counts.wire_bytes += bytes.len() as u64;
        self.say(|| {
            let (api, version, number) = (request.api, request.version, request.number);
            format!("connection {id} asks {number}: {api:?} {version}, {} bytes", bytes.len())
        });
        let cut_one_in = self.habits.cut_one_in;
        let connection = self.connections.get_mut(&id).expect("it is open");
        connection.requests.push_back(request);
        connection.to_node.push(bytes, cut_one_in, &mut self.dice);
        self.start(id, Way::ToNode);
    }

    /// What no request is for: the administrator asks a shard itself.
    fn ask_directly(&mut self, id: u64, (shard, command, asked): Part) {
        let (client, origin) = (self.connection(id).client, self.connection(id).origin);
        let ticket = self.slots[usize::from(origin)].tickets.reserve();
        self.open.insert(ticket, Open::direct(client, asked));
        self.send_packet(origin, shard.0, Packet::Command { ticket, command });
    }

    /// A new connection of a client, to the shard that it is connected to in this life.
    pub(super) fn open_connection(&mut self, client: usize, after: Option<u64>) -> u64 {
        self.connection_count += 1;
        let id = self.connection_count;
        self.connections.insert(id, Connection::new(client, self.origins[client], after));
        id
    }

    pub(super) fn connection(&mut self, id: u64) -> &mut Connection {
        self.connections.get_mut(&id).expect("it is open")
    }

    /// Bytes begin to move, if there are any and nobody moves them.
    pub(super) fn start(&mut self, id: u64, way: Way) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let has_end = !connection.has_client;
        let pipe = match way {
            Way::ToNode => &mut connection.to_node,
            Way::ToClient => &mut connection.to_client,
        };
        let has_more = pipe.size() > 0 || (way == Way::ToNode && has_end);
        if pipe.is_moving || !has_more || connection.after.is_some() {
            return;
        }
        pipe.is_moving = true;
        let mut delay_us = self.dice.skewed(1, self.habits.piece_us_max);
        if way == Way::ToClient && !self.is_calm && self.dice.one_in(self.habits.pause_one_in) {
            self.counts.reading_pauses += 1;
            delay_us = self.dice.skewed(1000, PAUSE_US_MAX);
        }
        self.schedule(delay_us, Event::Wire(id, way));
    }

    /// The next piece arrives.
    pub(super) fn on_wire(&mut self, id: u64, way: Way) -> Check {
        let break_one_in = self.habits.break_one_in;
        let is_breaking = !self.is_calm
            && !self.is_draining
            && break_one_in > 0
            && self.connections.get(&id).is_some_and(|it| it.has_client && !it.is_deaf)
            && self.dice.one_in(break_one_in);
        if is_breaking {
            let client = self.connection(id).client;
            self.disconnect(client)?;
            self.with_client(client, |client, _| client.on_disconnect())?;
        }
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        match way {
            Way::ToNode => {
                connection.to_node.is_moving = false;
                if let Some(piece) = connection.to_node.pop() {
                    connection.received.extend_from_slice(&piece);
                }
                if connection.to_node.size() > 0 {
                    self.start(id, way);
                }
                self.look(id)
            }
            Way::ToClient => {
                connection.to_client.is_moving = false;
                if let Some(piece) = connection.to_client.pop() {
                    connection.arrived.extend_from_slice(&piece);
                }
                self.take_answers(id)?;
                self.pump(id);
                self.start(id, way);
                self.look(id)?;
                self.forget_if_over(id)
            }
        }
    }

    /// The client takes the answers that are whole.
    fn take_answers(&mut self, id: u64) -> Check {
        loop {
            let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
            if !connection.has_client {
                return Ok(());
            }
            let Some(frame) = connection.take_answer() else { return Ok(()) };
            connection.forget_done();
            let (client, is_deaf) = (connection.client, connection.is_deaf);
            let index = connection.requests.iter().position(Request::is_answered);
            let Some(request) = index.and_then(|index| connection.requests.get_mut(index)) else {
                return Err(format!("connection {id}: an answer that nobody waits for"));
            };
            if answer::number_of(&frame) != Some(request.number) {
                let (number, got) = (request.number, answer::number_of(&frame));
                return Err(format!("connection {id}: request {number} is due, {got:?} comes"));
            }
            let (number, size) = (request.number, frame.len() as u64);
            request.check_answer(frame)?;
            request.is_done = true;
            let replies = request.take_replies();
            connection.forget_done();
            self.counts.answers += 1;
            self.note(&[9, id, number, size]);
            self.say(|| format!("connection {id} reads the answer to {number}, {size} bytes"));
            if is_deaf {
                return self.end_client(id, false);
            }
            for (asked, reply) in replies {
                self.with_client(client, |client, cx| client.on_reply(cx, asked, reply))??;
            }
        }
    }

    /// A client's connection is gone: nobody hears the answers. The next one is to the same shard,
    /// and nothing of it arrives before the node has done with the one before, for across two of
    /// them there is no order.
    fn disconnect(&mut self, client: usize) -> Check {
        self.counts.disconnections += 1;
        let id = self.current[client];
        let Some(connection) = self.connections.get(&id) else {
            self.current[client] = self.open_connection(client, None);
            return Ok(());
        };
        let after = connection.after.or(connection.has_node.then_some(id));
        self.current[client] = self.open_connection(client, after);
        self.end_client(id, true)
    }

    /// The client's end of a connection is gone. What is on its way to the node arrives, or is cut
    /// at any byte.
    fn end_client(&mut self, id: u64, may_cut: bool) -> Check {
        let cut = may_cut && self.dice.one_in(2);
        let connection = self.connections.get_mut(&id).expect("it is open");
        let was_waiting = connection.after.is_some();
        let size = connection.to_node.size();
        if cut && size > 0 {
            let left = self.dice.below(size as u64) as usize;
            connection.to_node.truncate(left);
        }
        connection.has_client = false;
        self.counts.broken_answers += u64::from(!connection.arrived.is_empty());
        connection.arrived.clear();
        connection.to_client.truncate(0);
        connection.unsent.clear();
        connection.unsent_size = 0;
        for open in self.open.values_mut() {
            open.is_lost |= open.connection == Some(id);
        }
        if was_waiting {
            // The node has not heard of it yet.
            connection.to_node.truncate(0);
            return self.close_node(id);
        }
        self.start(id, Way::ToNode);
        self.forget_if_over(id)
    }
}
