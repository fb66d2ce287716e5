//! One client connection: reading whole requests, sending responses without copying records.
//!
//! Requests are pipelined into the session as they arrive; responses leave in request order. The
//! shard's loop sends at once what the socket takes, several pieces with one `sendmsg`; only what
//! the socket refuses is left to the connection's writer task. A client that does not read holds
//! at most what it asked for so far, for nothing more is read from it then.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::TcpStream;

use super::event::Event;
use super::hub::Hub;
use super::tickets::ConnectionId;
use crate::command::Ticket;
use crate::kafka::frame::{CloseReason, take_frame};
use crate::kafka::session::{DispatchId, Session};

/// Unsent bytes past which nothing more is read from a connection.
const UNSENT_MAX: usize = 1 << 20;

/// First read of a request: most requests fit, and an idle connection holds no more.
const READ_SIZE: usize = 4096;

/// Growth of the buffer for larger requests, as they arrive.
const READ_SIZE_LARGE: usize = 256 << 10;

/// Pieces of one `sendmsg`, below the system's limit of 1024.
const SEND_PIECES_MAX: usize = 64;

/// How long a send waits before what is left of a response is made independent of the frames.
const SEND_WAIT: Duration = Duration::from_secs(1);

/// A client that takes nothing for this many waits, though there is something for it, is gone.
const SEND_WAITS_MAX: u32 = 60;

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

/// The part of a connection that the shard's loop knows.
#[derive(Debug)]
pub struct Connection {
    pub(super) id: ConnectionId,
    pub(super) session: RefCell<Session>,
    /// Tickets of open dispatches.
    pub(super) tickets: RefCell<HashMap<DispatchId, Ticket>>,
    peer: String,
    socket: RawFd,
    unsent: RefCell<VecDeque<Bytes>>,
    unsent_size: Cell<usize>,
    /// The writer task waits for the socket; nobody else sends meanwhile.
    is_blocked: Cell<bool>,
    is_closed: Cell<bool>,
    /// Nothing more is read; close when everything is answered.
    is_ending: Cell<bool>,
    /// When the first byte of a request came that is not whole yet.
    began_us: Cell<Option<u64>>,
    /// Since when the client is to send more, as opposed to this side to take more.
    waiting_since_us: Cell<Option<u64>>,
    can_read: Event,
    must_write: Event,
}

impl Connection {
    /// Takes finished responses from the session, to be sent.
    pub(super) fn collect(&self, hub: &Hub) {
        let mut session = self.session.borrow_mut();
        let mut size = 0;
        while let Some(finished) = session.next_finished() {
            hub.on_finished(&finished);
            // What a closed connection is still answered is not sent, nor counted as waiting to be.
            if let Some(pieces) = finished.pieces.filter(|_| !self.is_closed.get()) {
                size += pieces.size();
                self.unsent.borrow_mut().extend(pieces.pieces);
            }
            if let Some(reason) = finished.close {
                self.log_closing(hub, &reason);
                self.is_ending.set(true);
            }
        }
        if size > 0 {
            self.unsent_size.set(self.unsent_size.get() + size);
            hub.add_unsent(size);
        }
        self.can_read.set();
    }

    /// Says what the client did that ends its connection.
    fn log_closing(&self, hub: &Hub, reason: &CloseReason) {
        if let Some(left_out) = hub.admit_line() {
            tracing::info!(peer = %self.peer, %reason, left_out, "closing the connection");
        }
    }

    /// Sends what the socket takes now.
    pub(super) fn send(&self, hub: &Hub) {
        if self.is_blocked.get() || self.is_closed.get() {
            return;
        }
        match self.try_send(hub) {
            Ok(true) => self.can_read.set(),
            Ok(false) => {
                self.is_blocked.set(true);
                self.must_write.set();
            }
            Err(error) => self.close(hub, &format!("sending failed: {error}")),
        }
        if self.is_ending.get() && self.unsent_size.get() == 0 {
            self.shut_down();
        }
    }

    /// True when nothing is left, false when the socket is full.
    fn try_send(&self, hub: &Hub) -> io::Result<bool> {
        loop {
            let sent = {
                let unsent = self.unsent.borrow();
                if unsent.is_empty() {
                    return Ok(true);
                }
                send_pieces(self.socket, &unsent)
            };
            match sent {
                Ok(size) => self.on_sent(size, hub),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn on_sent(&self, size: usize, hub: &Hub) {
        let mut unsent = self.unsent.borrow_mut();
        let mut rest = size;
        while rest > 0 {
            let front = unsent.front_mut().expect("no more is sent than there is");
            if front.len() > rest {
                front.advance(rest);
                rest = 0;
            } else {
                rest -= front.len();
                unsent.pop_front();
            }
        }
        while unsent.front().is_some_and(Bytes::is_empty) {
            unsent.pop_front();
        }
        self.unsent_size.set(self.unsent_size.get() - size);
        hub.subtract_unsent(size);
    }

    /// Copies a small remainder, so that it does not hold the frames that it is a slice of.
    fn compact(&self) {
        let mut unsent = self.unsent.borrow_mut();
        if self.unsent_size.get() <= COMPACT_SIZE_MAX {
            let mut copy = BytesMut::with_capacity(self.unsent_size.get());
            for piece in unsent.drain(..) {
                copy.extend_from_slice(&piece);
            }
            unsent.push_back(copy.freeze());
        }
    }

    /// Ends the connection at once.
    pub(super) fn close(&self, hub: &Hub, reason: &str) {
        if self.is_closed.replace(true) {
            return;
        }
        tracing::debug!(peer = %self.peer, reason, "connection closed");
        hub.subtract_unsent(self.unsent_size.replace(0));
        self.unsent.borrow_mut().clear();
        self.shut_down();
        self.can_read.set();
        self.must_write.set();
    }

    /// Reads nothing more, answers what is open, then ends.
    pub(super) fn end(&self) {
        self.is_ending.set(true);
        self.can_read.set();
        if self.unsent_size.get() == 0 && self.session.borrow().open_count() == 0 {
            self.shut_down();
        }
    }

    /// Wakes the tasks that wait on the socket.
    fn shut_down(&self) {
        // SAFETY: no memory is involved. The descriptor is this connection's: it is closed after
        // `is_closed` is set, and nothing touches the socket then.
        unsafe { libc::shutdown(self.socket, libc::SHUT_RDWR) };
    }

    fn may_read(&self) -> bool {
        self.session.borrow().may_read(self.unsent_size.get(), UNSENT_MAX)
    }

    /// A request that is not whole, and whose rest the client has to send.
    pub(super) fn slow_arrival(&self) -> Option<Arrival> {
        let (began_us, waiting_since_us) = (self.began_us.get()?, self.waiting_since_us.get()?);
        (!self.is_closed.get()).then_some(Arrival { began_us, waiting_since_us })
    }

    pub(super) fn peer(&self) -> &str {
        &self.peer
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    pub(super) fn unsent_size(&self) -> usize {
        self.unsent_size.get()
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

/// Receives into the spare room of a buffer without waiting.
fn receive(socket: RawFd, buffer: &mut BytesMut) -> io::Result<usize> {
    let spare = buffer.spare_capacity_mut();
    // SAFETY: the kernel writes at most `spare.len()` bytes into memory that is ours.
    let received =
        unsafe { libc::recv(socket, spare.as_mut_ptr().cast(), spare.len(), libc::MSG_DONTWAIT) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: that many bytes after the old length are written now.
    unsafe { buffer.set_len(buffer.len() + received) };
    Ok(received)
}

/// Serves a connection until either side ends it.
pub(super) fn serve(hub: &Rc<Hub>, mut stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr().map_or_else(|_| "unknown".to_owned(), |peer| peer.to_string());
    stream.set_nodelay(true).map_err(io::Error::from)?;
    keep_alive(stream.as_raw_fd())?;
    let writer = duplicate(&stream)?;
    stream.set_read_timeout(Some(hub.limits.connection_idle_timeout)).map_err(io::Error::from)?;
    writer.set_write_timeout(Some(SEND_WAIT)).map_err(io::Error::from)?;
    let connection = Rc::new(Connection {
        id: hub.next_connection(),
        session: RefCell::new(Session::new(peer.clone())),
        tickets: RefCell::default(),
        peer,
        socket: stream.as_raw_fd(),
        unsent: RefCell::default(),
        unsent_size: Cell::new(0),
        is_blocked: Cell::new(false),
        is_closed: Cell::new(false),
        is_ending: Cell::new(false),
        began_us: Cell::new(None),
        waiting_since_us: Cell::new(None),
        can_read: Event::default(),
        must_write: Event::default(),
    });
    hub.open(connection.clone());
    let write_hub = hub.clone();
    let write_connection = connection.clone();
    glommio::spawn_local(async move { write(&write_hub, &write_connection, writer).await })
        .detach();
    let hub = hub.clone();
    glommio::spawn_local(async move {
        let reason = read(&hub, &connection, &mut stream).await;
        hub.remove(&connection);
        connection.close(&hub, &reason);
        // Not before: a closed descriptor's number may be another connection's at once, and what
        // is done to this one's would be done to that.
        drop(stream);
    })
    .detach();
    Ok(())
}

/// A second handle, so that reading and writing wait independently.
fn duplicate(stream: &TcpStream) -> io::Result<TcpStream> {
    use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};
    // SAFETY: the stream is open for the length of this call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    let owned = borrowed.try_clone_to_owned()?;
    // SAFETY: the descriptor is ours and a socket.
    Ok(unsafe { TcpStream::from_raw_fd(owned.into_raw_fd()) })
}

/// A half-open connection is noticed within minutes.
fn keep_alive(socket: RawFd) -> io::Result<()> {
    use std::os::fd::BorrowedFd;
    // SAFETY: the stream is open for the length of this call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(socket) };
    let settings = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(20))
        .with_retries(3);
    socket2::SockRef::from(&borrowed).set_tcp_keepalive(&settings)
}

async fn read(hub: &Rc<Hub>, connection: &Rc<Connection>, stream: &mut TcpStream) -> String {
    let mut received = BytesMut::new();
    let mut charged = Charge { hub: hub.clone(), connection: connection.id, size: 0 };
    loop {
        while !connection.may_read() && !connection.is_closed() {
            connection.can_read.wait().await;
        }
        hub.gate.pass().await;
        if connection.is_closed() {
            return "closed by this side".to_owned();
        }
        if connection.is_ending.get() {
            // The open requests are answered; the last answer shuts the socket down.
            if connection.session.borrow().open_count() == 0 && connection.unsent_size() == 0 {
                return "finished".to_owned();
            }
            connection.can_read.wait().await;
            continue;
        }
        match take_frame(&mut received, hub.limits.request_size_max) {
            Ok(Some(frame)) => {
                connection.began_us.set(None);
                if let Err(reason) = hub.on_request(connection, frame.freeze()) {
                    connection.log_closing(hub, &reason);
                    connection.end();
                    continue;
                }
                charged.resize(received.len());
                if received.is_empty() {
                    received = BytesMut::new();
                }
                continue;
            }
            Ok(None) => {}
            Err(reason) => {
                connection.log_closing(hub, &reason);
                return reason.to_string();
            }
        }
        if let Err(reason) = receive_more(hub, connection, stream, &mut received).await {
            return reason;
        }
        charged.resize(received.len());
    }
}

/// Waits for bytes and takes what is there, within the receive budget.
async fn receive_more(
    hub: &Rc<Hub>,
    connection: &Connection,
    stream: &mut TcpStream,
    received: &mut BytesMut,
) -> Result<(), String> {
    let mut first = [0; READ_SIZE];
    connection.waiting_since_us.set(Some(hub.clock.monotonic_us()));
    let count = loop {
        match stream.read(&mut first).await {
            Ok(0) => return Err("closed by the client".to_owned()),
            Ok(count) => break count,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                if connection.session.borrow().open_count() == 0 {
                    return Err("nothing came for connection_idle_timeout".to_owned());
                }
            }
            Err(error) => return Err(format!("receiving failed: {error}")),
        }
    };
    connection.waiting_since_us.set(None);
    received.extend_from_slice(&first[..count]);
    if connection.began_us.get().is_none() {
        connection.began_us.set(Some(hub.clock.monotonic_us()));
    }
    if count < READ_SIZE {
        return Ok(());
    }
    hub.wait_for_receive_budget(connection.id).await;
    if connection.is_closed() {
        return Err("closed by this side".to_owned());
    }
    received.reserve(READ_SIZE_LARGE);
    match receive(connection.socket, received) {
        Ok(0) => Err("closed by the client".to_owned()),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(format!("receiving failed: {error}")),
    }
}

/// Received bytes that a connection holds, counted against the budget.
struct Charge {
    hub: Rc<Hub>,
    connection: ConnectionId,
    size: usize,
}

impl Charge {
    fn resize(&mut self, size: usize) {
        self.hub.charge_received(self.connection, self.size, size);
        self.size = size;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.resize(0);
    }
}

/// Sends what the socket did not take at once.
async fn write(hub: &Rc<Hub>, connection: &Rc<Connection>, mut stream: TcpStream) {
    let mut waits = 0;
    loop {
        connection.must_write.wait().await;
        while !connection.is_closed() {
            let next = connection.unsent.borrow().front().cloned();
            let Some(next) = next else { break };
            match stream.write(&next).await {
                Ok(_) if connection.is_closed() => break,
                Ok(size) => {
                    connection.on_sent(size, hub);
                    waits = 0;
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut && waits < SEND_WAITS_MAX => {
                    drop(next);
                    connection.compact();
                    waits += 1;
                    continue;
                }
                Err(error) => {
                    connection.close(hub, &format!("sending failed: {error}"));
                    break;
                }
            }
            match connection.try_send(hub) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => connection.close(hub, &format!("sending failed: {error}")),
            }
        }
        if connection.is_closed() {
            return;
        }
        connection.is_blocked.set(false);
        connection.can_read.set();
        if connection.is_ending.get() && connection.session.borrow().open_count() == 0 {
            connection.shut_down();
        }
    }
}
