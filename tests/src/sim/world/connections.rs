//! Clients' commands on their way to a shard, and the answers on their way back.

use tidemill::command::{Command, Refusal, Reply, Ticket};
use tidemill::runtime::mesh::Packet;
use tidemill_wal::format::ShardId;

use super::{Event, World};
use crate::sim::clients::{Asked, Auditor, Client, Context};
use crate::sim::model::Check;

/// Inputs that wait at a shard before its connections are not read any more.
const INBOX_MAX: usize = 1024;

/// How long a connection that is not read waits before it is looked at again, in microseconds.
const GATE_PAUSE_US_MAX: u64 = 1000;

/// An open command.
#[derive(Debug)]
pub(super) struct Open {
    client: usize,
    pub(super) asked: Asked,
    is_member: bool,
    pub(super) is_fetch: bool,
    /// Its connection is gone: it is answered nonetheless.
    is_lost: bool,
    /// Whose connection asks.
    origin: u16,
    /// Who is asked.
    shard: u16,
}

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

    pub(super) fn act(&mut self, index: usize) {
        if self.is_stopping || self.is_still {
            return;
        }
        let pause_us = match self.is_gate_shut(self.origins[index]) {
            true => {
                self.counts.gates_shut += 1;
                self.random.between(1, GATE_PAUSE_US_MAX)
            }
            false => self.with_client(index, |client, cx| client.act(cx)),
        };
        self.schedule(pause_us, Event::Act(index));
    }

    /// Whether the shard's connections are not read for now, as the runtime decides it.
    fn is_gate_shut(&self, origin: u16) -> bool {
        let slot = &self.slots[usize::from(origin)];
        !slot.shard.accepts() || slot.inbox.len() > INBOX_MAX || slot.port.is_congested()
    }

    /// Lets a client do something, and sends what it asks through its connection.
    pub(super) fn with_client<R>(
        &mut self,
        index: usize,
        run: impl FnOnce(&mut Client, &mut Context<'_>) -> R,
    ) -> R {
        let nobody = Client::Auditor(Auditor::default());
        let mut client = std::mem::replace(&mut self.clients[index], nobody);
        let mut cx = self.context();
        let result = run(&mut client, &mut cx);
        let Context { asked, unheard, is_disconnecting, .. } = cx;
        self.clients[index] = client;
        if is_disconnecting {
            self.disconnect(index);
        }
        let heard = asked.into_iter().map(|request| (request, false));
        let unheard = unheard.into_iter().map(|request| (request, true));
        for ((shard, command, asked), is_lost) in heard.chain(unheard) {
            self.send(index, shard, command, asked, is_lost);
        }
        result
    }

    /// A client's connection is gone: nobody hears the answers, and waiting for it ends. The next
    /// one is to the same shard, for across two of them there is no order.
    fn disconnect(&mut self, client: usize) {
        self.counts.disconnections += 1;
        let mut lost = Vec::new();
        for (id, open) in &mut self.open {
            if open.client == client && !open.is_lost {
                open.is_lost = true;
                lost.push((*id, open.origin, open.shard));
            }
        }
        for (id, origin, shard) in lost {
            self.cancel(id, origin, shard);
        }
    }

    fn cancel(&mut self, id: u64, origin: u16, shard: u16) {
        let ticket = Ticket { origin: ShardId(origin), id };
        self.send_packet(origin, shard, Packet::Cancel(ticket));
    }

    fn send(
        &mut self,
        client: usize,
        shard: ShardId,
        command: Command,
        asked: Asked,
        is_lost: bool,
    ) {
        let origin = self.origins[client];
        self.next_ticket += 1;
        let ticket = Ticket { origin: ShardId(origin), id: self.next_ticket };
        let is_fetch = matches!(asked, Asked::Fetch(_));
        let is_member = matches!(asked, Asked::Member(_));
        let open = Open { client, asked, is_member, is_fetch, is_lost, origin, shard: shard.0 };
        self.open.insert(ticket.id, open);
        self.counts.commands += 1;
        self.send_packet(origin, shard.0, Packet::Command { ticket, command });
        if is_fetch && self.random.one_in(40) {
            self.send_packet(origin, shard.0, Packet::FetchNow(ticket));
        }
    }

    /// An answer leaves its shard: from now on a client may have it.
    pub(super) fn answer(&mut self, from: u16, ticket: Ticket, reply: Reply) -> Check {
        self.note(&[6, ticket.id, self.clock.now_us]);
        self.say(|| format!("reply {} {reply:?}", ticket.id));
        if ticket.origin.0 != from {
            self.send_reply(from, ticket);
        }
        let Some(open) = self.open.remove(&ticket.id) else {
            let is_cancelled = self.cancelled.contains_key(&ticket.id);
            return match is_cancelled {
                true => Ok(()),
                false => Err(format!("a second reply to {ticket:?}: {reply:?}")),
            };
        };
        if self.is_stopping {
            // The connection ends, but what left the shard counts.
            let is_refused = matches!(reply, Reply::Refused(_));
            if is_refused {
                return Ok(());
            }
        }
        let reply = self.without_storage_refusals(from, reply)?;
        if open.is_lost {
            self.counts.lost_answers += 1;
            return Client::on_lost_reply(&mut self.model, &open.asked, &reply);
        }
        self.with_client(open.client, |client, cx| client.on_reply(cx, open.asked, reply))
    }

    /// Connections end: whoever waits is forgotten.
    pub(super) fn cancel_waits(&mut self) {
        let waiting: Vec<(u64, u16, u16)> = (self.open.iter())
            .filter(|(_, open)| open.is_member || open.is_fetch)
            .map(|(id, open)| (*id, open.origin, open.shard))
            .collect();
        for (id, origin, shard) in waiting {
            self.open.remove(&id);
            self.cancelled.insert(id, ());
            self.cancel(id, origin, shard);
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
