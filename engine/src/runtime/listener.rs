//! Listening sockets: bound early, so that a port in use is said before anything is written;
//! listening late, when the node is ready.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::hub::Hub;
use super::uring::Token;

/// Connections that wait to be taken.
const BACKLOG: i32 = 1024;

/// How long to wait after a failed accept: the process is out of descriptors, say.
const ACCEPT_PAUSE_MS: u64 = 100;

/// Connections taken in one go.
const ACCEPTS_MAX: usize = 64;

/// How long a killed predecessor's sockets may outlive it: the kernel ends its io_uring late.
const PORT_WAIT: Duration = Duration::from_secs(3);

/// How often a taken port is tried again.
const PORT_RETRY: Duration = Duration::from_millis(5);

/// Whether an address is free, checked without sharing: sockets that share a port among shards
/// would join another process's in silence. Waits a little for a predecessor that was killed.
pub fn check_free(address: SocketAddr) -> io::Result<()> {
    let started = Instant::now();
    loop {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        match socket.bind(&address.into()) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && started.elapsed() < PORT_WAIT => {}
            result => return result,
        }
        pause(PORT_RETRY);
    }
}

/// The one wait of a start that has no event to wait for.
#[expect(clippy::disallowed_methods, reason = "the kernel does not say when a port gets free")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// A socket that is bound and does not listen yet. Sockets of one address share its connections.
pub fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A shard's listening socket.
pub(super) struct Listener {
    socket: Socket,
    /// After a failure nothing is taken before this time.
    paused_until_ms: Option<u64>,
}

impl Listener {
    /// Begins to listen.
    pub(super) fn start(socket: Socket, hub: &mut Hub) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.listen(BACKLOG)?;
        let listener = Self { socket, paused_until_ms: None };
        listener.watch(hub)?;
        Ok(listener)
    }

    fn watch(&self, hub: &mut Hub) -> io::Result<()> {
        hub.shared.uring.watch_readable(self.socket.as_raw_fd(), Token::Listener)
    }

    /// Takes the connections that wait.
    pub(super) fn on_readable(&mut self, hub: &mut Hub) -> io::Result<()> {
        for _ in 0..ACCEPTS_MAX {
            match self.socket.accept() {
                Ok((socket, _)) => hub.open(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // It went away before it was taken.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if let Some(left_out) = hub.shared.admit_line() {
                        tracing::warn!(%error, left_out, "a connection could not be taken");
                    }
                    let now_ms = hub.shared.clock.monotonic_ms();
                    self.paused_until_ms = Some(now_ms + ACCEPT_PAUSE_MS);
                    return Ok(());
                }
            }
        }
        self.watch(hub)
    }

    /// When it has to be looked at again, in milliseconds of the clock.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        self.paused_until_ms
    }

    /// Goes on after a pause.
    pub(super) fn on_time(&mut self, hub: &mut Hub) -> io::Result<()> {
        let clock = &hub.shared.clock;
        if self.paused_until_ms.is_none_or(|until_ms| clock.monotonic_ms() < until_ms) {
            return Ok(());
        }
        self.paused_until_ms = None;
        self.watch(hub)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The ring's watch would keep it listening behind the back of its descriptor.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}
