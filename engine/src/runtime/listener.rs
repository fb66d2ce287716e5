//! Listening sockets: bound early, so that a port in use is said before anything is written;
//! listening late, when the node is ready.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use glommio::net::TcpListener;
use socket2::{Domain, Protocol, Socket, Type};

use super::connection;
use super::hub::Hub;

/// Connections that wait to be taken.
const BACKLOG: i32 = 1024;

/// How long to wait after a failed accept: the process is out of descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// Takes connections until the task is cancelled.
pub(super) async fn accept(hub: Rc<Hub>, socket: Socket) -> io::Result<()> {
    socket.listen(BACKLOG)?;
    // SAFETY: the descriptor is ours, a socket that listens.
    let listener = unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) };
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                glommio::timer::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if hub.connection_count() >= hub.limits.connections_max {
            hub.telemetry().connections_refused.add(1);
            if let Some(left_out) = hub.admit_line() {
                tracing::warn!(left_out, "a connection was refused: connections_max is reached");
            }
            continue;
        }
        hub.telemetry().connections_accepted.add(1);
        if let Err(error) = connection::serve(&hub, stream) {
            tracing::debug!(%error, "a connection ended before it began");
        }
    }
}
