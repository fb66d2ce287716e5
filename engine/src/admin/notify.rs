//! Word to systemd: ready, stopping, how recovery goes.
//!
//! The protocol is one datagram of `KEY=value` lines to the socket that `NOTIFY_SOCKET` names.
//! Without that variable nothing is sent. Telling is best effort: a node does not fail because
//! its service manager does not listen.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Variable that names the socket.
pub const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Notify {
    target: Option<(UnixDatagram, SocketAddr)>,
}

impl Notify {
    /// Reads the value of [`SOCKET_VARIABLE`].
    pub fn new(socket: Option<OsString>) -> Self {
        let Some(name) = socket.filter(|name| !name.is_empty()) else {
            return Self { target: None };
        };
        match Self::open(&name) {
            Ok(target) => Self { target: Some(target) },
            Err(error) => {
                tracing::warn!(%error, socket = ?name, "the service manager cannot be told");
                Self { target: None }
            }
        }
    }

    fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold us up.
        socket.set_nonblocking(true)?;
        Ok((socket, address))
    }

    /// The node takes requests.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The node is about to stop.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// One line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", status.replace('\n', " ")));
    }

    /// Recovery makes progress: the start may take this much longer from now on.
    pub fn extend_timeout(&self, by: Duration) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", by.as_micros()));
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.target
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            tracing::debug!(%error, message, "the service manager was not told");
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn conversation(manager: &UnixDatagram, name: OsString) -> String {
        let notify = Notify::new(Some(name));
        notify.extend_timeout(Duration::from_secs(30));
        notify.status("recovering\n50 %");
        notify.ready();
        notify.stopping();
        let mut heard = String::new();
        for _ in 0..4 {
            let mut message = [0; 128];
            let size = manager.recv(&mut message).expect("a datagram");
            heard.push_str(&String::from_utf8_lossy(&message[..size]));
            heard.push('\n');
        }
        heard
    }

    #[test]
    fn the_service_manager_hears_each_change() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("a socket");
        let by_path = conversation(&manager, path.into_os_string());
        expect![[r#"
            EXTEND_TIMEOUT_USEC=30000000
            STATUS=recovering 50 %
            READY=1
            STOPPING=1
        "#]]
        .assert_eq(&by_path);

        let name = format!("tidemill-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("an address");
        let manager = UnixDatagram::bind_addr(&address).expect("a socket");
        let by_abstract_name = conversation(&manager, format!("@{name}").into());
        assert_eq!(by_abstract_name, by_path);
    }

    #[test]
    fn without_a_manager_nothing_is_sent_and_nothing_fails() {
        for socket in [None, Some(""), Some("/nonexistent/notify"), Some("relative")] {
            let notify = Notify::new(socket.map(OsString::from));
            notify.ready();
        }
    }
}
