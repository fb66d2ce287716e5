//! One client connection: reading whole requests, sending responses without copying records.
//!
//! Requests are pipelined into the session as they arrive; responses leave in request order. What
//! the socket takes is sent at once, several pieces with one `sendmsg`; for the rest the ring says
//! when there is room. A client that does not read holds at most what it asked for so far, for
//! nothing more is read from it then.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::Socket;
use tidemill_wal::format::ShardId;

use super::hub::Shared;
use super::tickets::ConnectionId;
use super::uring::Token;
use crate::command::{Reply, Ticket};
use crate::kafka::frame::{CloseReason, LENGTH_SIZE, frame_size, take_frame};
use crate::kafka::session::{Action, DispatchId, Session};

/// Unsent bytes past which nothing more is read from a connection.
const UNSENT_MAX: usize = 1 << 20;

/// What a connection may have received of a request whatever the receive budget: most requests
/// fit.
const READ_SIZE: usize = 4096;

/// Most that one call receives, and how the buffer of a large request grows as it arrives.
pub(super) const READ_SIZE_LARGE: usize = 256 << 10;

/// Received in one go before it is another connection's turn.
const TURN_SIZE: usize = 1 << 20;

/// Pieces of one `sendmsg`, below the system's limit of 1024.
const SEND_PIECES_MAX: usize = 64;

/// How long a send waits before what is left of a response is made independent of the frames.
const SEND_WAIT_US: u64 = 1_000_000;

/// A client that takes nothing for so long, though there is something for it, is gone.
const SEND_WAIT_US_MAX: u64 = 60 * SEND_WAIT_US;

/// Smaller remainders of responses are copied when a client stalls, so that a few bytes do not
/// hold whole frames in memory.
const COMPACT_SIZE_MAX: usize = 256 << 10;

/// How far a request has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    /// When its first byte came.
    pub(super) began_us: u64,
    /// When its newest bytes came.
    pub(super) waiting_since_us: u64,
}

/// What reading waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// The client: the ring says when something came.
    Client,
    /// Answers that have to leave first.
    Answers,
    /// The shard, or the receive budget: the hub says when to go on.
    Hub,
}

/// A socket that takes nothing.
#[derive(Debug, Clone, Copy)]
struct Blocked {
    since_us: u64,
    /// What is unsent holds no more memory than it has bytes.
    is_compact: bool,
}

/// A connection as its shard's loop knows it.
#[derive(Debug)]
pub struct Connection {
    pub(super) id: ConnectionId,
    session: Session,
    /// Tickets of open dispatches.
    tickets: HashMap<DispatchId, Ticket>,
    peer: String,
    socket: Socket,
    received: BytesMut,
    /// The part of `received` that counts against the receive budget.
    charged: usize,
    reading: Reading,
    /// The socket had something, as far as is known.
    is_readable: bool,
    unsent: VecDeque<Bytes>,
    unsent_size: usize,
    /// The socket is full: the ring says when it has room.
    blocked: Option<Blocked>,
    /// It is among those that the next flush sends for.
    pub(super) is_unflushed: bool,
    /// Nothing more is read; it ends when everything is answered.
    is_ending: bool,
    /// When the first byte of a request came that is not whole yet.
    began_us: Option<u64>,
    /// Since when the client is to send more.
    heard_us: u64,
    /// Since when nothing is to be done for the client.
    idle_since_us: u64,
}

/// A connection has to end, and why.
#[derive(Debug)]
pub(super) struct Ended(pub(super) String);

impl Connection {
    /// Takes a connection over.
    pub(super) fn new(id: ConnectionId, socket: Socket, now_us: u64) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        keep_alive(&socket)?;
        let peer = socket.peer_addr().ok().and_then(|peer| peer.as_socket());
        let peer = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
        Ok(Self {
            id,
            session: Session::new(peer.clone()),
            tickets: HashMap::new(),
            peer,
            socket,
            received: BytesMut::new(),
            charged: 0,
            reading: Reading::Hub,
            is_readable: false,
            unsent: VecDeque::new(),
            unsent_size: 0,
            blocked: None,
            is_unflushed: false,
            is_ending: false,
            began_us: None,
            heard_us: now_us,
            idle_since_us: now_us,
        })
    }

    /// The ring says that something came.
    pub(super) fn on_readable(&mut self, shared: &mut Shared) -> Result<(), Ended> {
        self.is_readable = true;
        self.advance(shared)
    }

    /// The hub says that reading may go on.
    pub(super) fn on_admitted(&mut self, shared: &mut Shared) -> Result<(), Ended> {
        if self.reading == Reading::Hub { self.advance(shared) } else { Ok(()) }
    }

    /// The reply to a command of this connection.
    pub(super) fn on_reply(
        &mut self,
        dispatch: DispatchId,
        reply: Reply,
        shared: &mut Shared,
    ) -> Result<(), Ended> {
        self.tickets.remove(&dispatch);
        let mut actions = Vec::new();
        let routes = shared.routes();
        self.session.on_reply(&shared.context(&routes), dispatch, reply, &mut actions);
        self.dispatch(actions, shared);
        self.collect(shared);
        if self.reading == Reading::Answers { self.advance(shared) } else { Ok(()) }
    }

    /// Reads and takes requests for as long as it may, then waits for what is missing.
    fn advance(&mut self, shared: &mut Shared) -> Result<(), Ended> {
        let mut turn = 0;
        loop {
            if self.is_ending {
                self.reading = Reading::Answers;
                return self.end_if_answered();
            }
            if !self.may_read() {
                self.reading = Reading::Answers;
                return Ok(());
            }
            if shared.is_shut() {
                self.reading = Reading::Hub;
                shared.wait_for_shard(self.id);
                return Ok(());
            }
            match take_frame(&mut self.received, shared.limits.request_size_max) {
                Ok(Some(frame)) => {
                    let now_us = shared.clock.monotonic_us();
                    self.began_us = (!self.received.is_empty()).then_some(now_us);
                    self.on_request(frame.freeze(), shared);
                    self.charge(shared);
                    continue;
                }
                Ok(None) => {}
                Err(reason) => {
                    self.log_closing(shared, &reason);
                    return Err(Ended(reason.to_string()));
                }
            }
            if !self.is_readable || turn >= TURN_SIZE {
                self.is_readable = false;
                self.reading = Reading::Client;
                self.heard_us = shared.clock.monotonic_us();
                self.idle_since_us = self.heard_us;
                return shared
                    .uring
                    .watch_readable(self.socket.as_raw_fd(), Token::Readable(self.id.0))
                    .map_err(|error| Ended(format!("watching failed: {error}")));
            }
            let is_large = self.received.len() >= READ_SIZE;
            let is_within_budget =
                shared.has_room_to_receive() || (is_large && shared.may_overdraw(self.id));
            if is_large && !is_within_budget {
                self.reading = Reading::Hub;
                shared.wait_for_budget(self.id);
                return Ok(());
            }
            turn += self.receive(is_within_budget, shared)?;
            self.charge(shared);
        }
    }

    fn on_request(&mut self, frame: Bytes, shared: &mut Shared) {
        let mut actions = Vec::new();
        let started_us = shared.clock.monotonic_us();
        let routes = shared.routes();
        let result =
            self.session.on_request(&shared.context(&routes), started_us, frame, &mut actions);
        self.dispatch(actions, shared);
        self.collect(shared);
        if let Err(reason) = result {
            self.log_closing(shared, &reason);
            self.is_ending = true;
        }
    }

    fn dispatch(&mut self, actions: Vec<Action>, shared: &mut Shared) {
        for action in actions {
            match action {
                Action::Ask { id, shard, command } => {
                    let ticket = shared.send_command(self.id, id, shard, command);
                    self.tickets.insert(id, ticket);
                }
                Action::FetchNow { id, shard } => {
                    if let Some(ticket) = self.tickets.get(&id) {
                        shared.send_nudge(shard, *ticket);
                    }
                }
            }
        }
    }

    /// Takes finished responses from the session, to be sent with the next flush.
    fn collect(&mut self, shared: &mut Shared) {
        let mut size = 0;
        while let Some(finished) = self.session.next_finished() {
            shared.on_finished(&finished);
            if let Some(pieces) = finished.pieces {
                size += pieces.size();
                self.unsent.extend(pieces.pieces);
            }
            if let Some(reason) = finished.close {
                self.log_closing(shared, &reason);
                self.is_ending = true;
            }
        }
        self.unsent_size += size;
        shared.add_unsent(size);
        if let Some(blocked) = &mut self.blocked
            && size > 0
        {
            blocked.is_compact = false;
        }
        if (size > 0 || self.is_ending) && !self.is_unflushed {
            self.is_unflushed = true;
            shared.unflushed.push(self.id);
        }
    }

    /// Says what the client did that ends its connection.
    fn log_closing(&self, shared: &Shared, reason: &CloseReason) {
        if let Some(left_out) = shared.admit_line() {
            tracing::info!(peer = %self.peer, %reason, left_out, "closing the connection");
        }
    }

    /// Receives what there is, up to a limit; the number of bytes.
    fn receive(&mut self, is_within_budget: bool, shared: &mut Shared) -> Result<usize, Ended> {
        let wanted = match self.received.first_chunk::<LENGTH_SIZE>() {
            // The size is good, or `take_frame` would have refused it.
            Some(length) => frame_size(*length, usize::MAX).unwrap_or(0) + LENGTH_SIZE,
            None => 0,
        };
        let size = if !is_within_budget {
            READ_SIZE - self.received.len()
        } else if wanted > READ_SIZE {
            (wanted - self.received.len()).min(READ_SIZE_LARGE)
        } else {
            READ_SIZE_LARGE
        };
        let result = if wanted > READ_SIZE {
            receive(&self.socket, &mut self.received, size)
        } else {
            // Mostly small: what is kept takes no more memory than it has bytes.
            shared.scratch.clear();
            let result = receive(&self.socket, &mut shared.scratch, size);
            self.received.extend_from_slice(&shared.scratch);
            result
        };
        match result {
            Ok(0) => Err(Ended("closed by the client".to_owned())),
            Ok(count) => {
                self.began_us.get_or_insert_with(|| shared.clock.monotonic_us());
                self.is_readable = count == size;
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_readable = false;
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(Ended(format!("receiving failed: {error}"))),
        }
    }

    /// Keeps the receive budget's account of what is held of unfinished requests.
    fn charge(&mut self, shared: &mut Shared) {
        let size = self.received.len();
        if size == 0 {
            // An idle connection holds no memory.
            self.received = BytesMut::new();
        }
        if size != self.charged {
            shared.charge_received(self.id, self.charged, size);
            self.charged = size;
        }
    }

    /// Sends what the socket takes now.
    pub(super) fn send(&mut self, shared: &mut Shared) -> Result<(), Ended> {
        self.is_unflushed = false;
        if self.blocked.is_none() {
            self.try_send(shared)?;
        }
        self.end_if_answered()?;
        if self.reading == Reading::Answers { self.advance(shared) } else { Ok(()) }
    }

    /// The ring says that the socket has room.
    pub(super) fn on_writable(&mut self, shared: &mut Shared) -> Result<(), Ended> {
        self.blocked = None;
        self.send(shared)
    }

    fn try_send(&mut self, shared: &mut Shared) -> Result<(), Ended> {
        self.send_some(shared)?;
        let now_us = shared.clock.monotonic_us();
        if self.unsent.is_empty() {
            self.idle_since_us = now_us;
            return Ok(());
        }
        self.blocked = Some(Blocked { since_us: now_us, is_compact: false });
        shared
            .uring
            .watch_writable(self.socket.as_raw_fd(), Token::Writable(self.id.0))
            .map_err(|error| Ended(format!("watching failed: {error}")))
    }

    /// Sends as much as the socket takes.
    fn send_some(&mut self, shared: &mut Shared) -> Result<(), Ended> {
        while !self.unsent.is_empty() {
            match send_pieces(self.socket.as_raw_fd(), &self.unsent) {
                Ok(size) => self.on_sent(size, shared),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Ended(format!("sending failed: {error}"))),
            }
        }
        Ok(())
    }

    fn on_sent(&mut self, size: usize, shared: &mut Shared) {
        let mut rest = size;
        while rest > 0 {
            let front = self.unsent.front_mut().expect("no more is sent than there is");
            if front.len() > rest {
                front.advance(rest);
                rest = 0;
            } else {
                rest -= front.len();
                self.unsent.pop_front();
            }
        }
        while self.unsent.front().is_some_and(Bytes::is_empty) {
            self.unsent.pop_front();
        }
        self.unsent_size -= size;
        shared.subtract_unsent(size);
    }

    /// Looks after a client that is slow: what is left for it is kept small, and after a while it
    /// is given up.
    pub(super) fn look_after(
        &mut self,
        now_us: u64,
        idle_us_max: u64,
        shared: &mut Shared,
    ) -> Result<(), Ended> {
        if self.blocked.is_some() {
            // The ring speaks only when there is much room; a slow reader makes a little.
            let before = self.unsent_size;
            self.send_some(shared)?;
            if let Some(blocked) = &mut self.blocked
                && self.unsent_size < before
            {
                blocked.since_us = now_us;
            }
        }
        if let Some(blocked) = self.blocked {
            let waited_us = now_us.saturating_sub(blocked.since_us);
            if waited_us >= SEND_WAIT_US_MAX {
                return Err(Ended("sending failed: the client takes nothing".to_owned()));
            }
            if waited_us >= SEND_WAIT_US && !blocked.is_compact {
                self.compact();
                self.blocked = Some(Blocked { is_compact: true, ..blocked });
            }
        }
        let is_idle = self.reading == Reading::Client
            && self.session.open_count() == 0
            && self.unsent_size == 0;
        if is_idle && now_us.saturating_sub(self.idle_since_us) > idle_us_max {
            return Err(Ended("nothing came for connection_idle_timeout".to_owned()));
        }
        Ok(())
    }

    /// Copies a small remainder, so that it does not hold the frames that it is a slice of.
    fn compact(&mut self) {
        if self.unsent_size <= COMPACT_SIZE_MAX && !self.unsent.is_empty() {
            let mut copy = BytesMut::with_capacity(self.unsent_size);
            for piece in self.unsent.drain(..) {
                copy.extend_from_slice(&piece);
            }
            self.unsent.push_back(copy.freeze());
        }
    }

    /// Reads nothing more, answers what is open, then ends.
    pub(super) fn end(&mut self) -> Result<(), Ended> {
        self.is_ending = true;
        self.end_if_answered()
    }

    fn end_if_answered(&self) -> Result<(), Ended> {
        if self.is_ending && self.unsent_size == 0 && self.session.open_count() == 0 {
            return Err(Ended("finished".to_owned()));
        }
        Ok(())
    }

    /// Ends the session and takes its bytes off the accounts: the commands to be cancelled. The
    /// socket is closed when this is dropped.
    pub(super) fn close(&mut self, shared: &mut Shared, reason: &str) -> Vec<(ShardId, Ticket)> {
        tracing::debug!(peer = %self.peer, reason, "connection closed");
        shared.subtract_unsent(self.unsent_size);
        self.unsent_size = 0;
        self.received.clear();
        self.charge(shared);
        // A watch is for a descriptor's number, which may be another's soon: the kernel gets it
        // while it is ours. It would then keep the socket open behind the descriptor's back.
        let _ = shared.uring.submit();
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let open = self.session.close().into_iter();
        open.filter_map(|(shard, id)| Some((shard, self.tickets.remove(&id)?))).collect()
    }

    fn may_read(&self) -> bool {
        self.session.may_read(self.unsent_size, UNSENT_MAX)
    }

    /// A request that is not whole, and whose rest the client has to send.
    pub(super) fn slow_arrival(&self) -> Option<Arrival> {
        let began_us = self.began_us.filter(|_| self.reading == Reading::Client)?;
        Some(Arrival { began_us, waiting_since_us: self.heard_us })
    }

    pub(super) fn peer(&self) -> &str {
        &self.peer
    }

    pub(super) fn unsent_size(&self) -> usize {
        self.unsent_size
    }
}

/// One `sendmsg` of the first pieces.
fn send_pieces(socket: RawFd, pieces: &VecDeque<Bytes>) -> io::Result<usize> {
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; SEND_PIECES_MAX];
    let count = pieces.len().min(SEND_PIECES_MAX);
    for (vector, piece) in vectors.iter_mut().zip(pieces) {
        vector.iov_base = piece.as_ptr().cast_mut().cast();
        vector.iov_len = piece.len();
    }
    // SAFETY: all-zero is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = count;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the vectors point into `pieces`, which outlive the call, and the kernel only reads.
    let sent = unsafe { libc::sendmsg(socket, &message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives at most `size` bytes, which is not 0, behind what a buffer holds, without waiting.
fn receive(socket: &Socket, buffer: &mut BytesMut, size: usize) -> io::Result<usize> {
    buffer.reserve(size);
    let room = &mut buffer.spare_capacity_mut()[..size];
    let count = socket.recv_with_flags(room, libc::MSG_DONTWAIT)?;
    // SAFETY: that many bytes after the old length are written now.
    unsafe { buffer.set_len(buffer.len() + count) };
    Ok(count)
}

/// A half-open connection is noticed within minutes.
fn keep_alive(socket: &Socket) -> io::Result<()> {
    let settings = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(20))
        .with_retries(3);
    socket.set_tcp_keepalive(&settings)
}
