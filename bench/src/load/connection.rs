//! Connections that never block: what waits to be sent, what was received, what has no answer.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::Which;

/// Bytes read at once at most.
const READ_SIZE: usize = 256 << 10;

/// A connection of the loop.
pub(super) struct Connection {
    pub link: Link,
    pub wants_write: bool,
    /// Number and due time of each request without an answer, in the order of sending.
    pub waiting: VecDeque<Waiting>,
}

/// A socket that never blocks, and what waits on either side of it.
pub struct Link {
    pub(super) stream: TcpStream,
    pub(super) out: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
    taken: usize,
    filled: usize,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    pub number: u64,
    pub due: u64,
}

impl Link {
    /// Takes a connected stream.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(None)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            out: Vec::with_capacity(64 << 10),
            sent: 0,
            received: vec![0; READ_SIZE],
            taken: 0,
            filled: 0,
        })
    }

    /// Connects.
    pub fn open(address: SocketAddr) -> Result<Self, String> {
        let connected = TcpStream::connect(address).and_then(Self::new);
        connected.map_err(|error| format!("{address}: {error}"))
    }

    /// To wait for.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// What is to be sent.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Sends what there is room for; says whether something is left.
    pub fn flush(&mut self) -> Result<bool, String> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err("sending: the connection is closed".to_owned()),
                Ok(size) => self.sent += size,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("sending: {error}")),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(false)
    }

    /// Reads once. False: there is nothing.
    pub fn fill(&mut self) -> Result<bool, String> {
        if self.taken == self.filled {
            (self.taken, self.filled) = (0, 0);
        } else if self.received.len() - self.filled < READ_SIZE / 2 {
            self.received.copy_within(self.taken..self.filled, 0);
            (self.taken, self.filled) = (0, self.filled - self.taken);
            if self.received.len() - self.filled < READ_SIZE / 2 {
                self.received.resize(self.received.len() * 2, 0);
            }
        }
        match self.stream.read(&mut self.received[self.filled..]) {
            Ok(0) => Err("receiving: the server closed the connection".to_owned()),
            Ok(size) => {
                self.filled += size;
                Ok(true)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(format!("receiving: {error}")),
        }
    }

    /// What was received and not yet taken.
    pub fn received(&self) -> &[u8] {
        &self.received[self.taken..self.filled]
    }

    /// The same, and where answers to it go.
    pub(super) fn both(&mut self) -> (&[u8], &mut Vec<u8>) {
        (&self.received[self.taken..self.filled], &mut self.out)
    }

    /// Passes over bytes that were taken.
    pub fn pass(&mut self, size: usize) {
        self.taken += size;
        assert!(self.taken <= self.filled, "no more than was received");
    }
}

impl Connection {
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        let waiting = VecDeque::with_capacity(1024);
        Ok(Self { link: Link::new(stream)?, wants_write: false, waiting })
    }

    /// Takes the requests that an answer is for off those that wait.
    pub fn answered(&mut self, which: Which, each: impl FnOnce(Waiting)) -> Result<(), String> {
        let nobody = || "an answer came for a request that waits for none".to_owned();
        match which {
            Which::Next => each(self.waiting.pop_front().ok_or_else(nobody)?),
            Which::Number(number) => {
                let index = self.waiting.iter().position(|waiting| waiting.number == number);
                each(index.and_then(|index| self.waiting.remove(index)).ok_or_else(nobody)?);
            }
        }
        Ok(())
    }
}
