//! One connection that never blocks: what waits to be sent, what was received, what has no answer.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::Which;

/// Bytes read at once at most.
const READ_SIZE: usize = 256 << 10;

pub(super) struct Connection {
    pub stream: TcpStream,
    pub out: Vec<u8>,
    sent: usize,
    pub wants_write: bool,
    received: Vec<u8>,
    taken: usize,
    filled: usize,
    /// Number and due time of each request without an answer, in the order of sending.
    pub waiting: VecDeque<Waiting>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    pub number: u64,
    pub due: u64,
}

impl Connection {
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(None)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            out: Vec::with_capacity(64 << 10),
            sent: 0,
            wants_write: false,
            received: vec![0; READ_SIZE],
            taken: 0,
            filled: 0,
            waiting: VecDeque::with_capacity(1024),
        })
    }

    /// Sends what there is room for; says whether something is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(size) => self.sent += size,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(false)
    }

    /// Reads once. False: there is nothing.
    pub fn fill(&mut self) -> io::Result<bool> {
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
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
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
            Err(error) => Err(error),
        }
    }

    /// What was received and not yet taken, and where answers to it go.
    pub fn received(&mut self) -> (&[u8], &mut Vec<u8>) {
        (&self.received[self.taken..self.filled], &mut self.out)
    }

    pub fn pass(&mut self, size: usize) {
        self.taken += size;
        assert!(self.taken <= self.filled, "no more than was received");
    }

    /// Takes the requests that an answer is for off those that wait.
    pub fn answered(&mut self, which: Which, mut each: impl FnMut(Waiting)) -> Result<(), String> {
        let nobody = || "an answer came for a request that waits for none".to_owned();
        match which {
            Which::Next => each(self.waiting.pop_front().ok_or_else(nobody)?),
            Which::Number(number) => {
                let index = self.waiting.iter().position(|waiting| waiting.number == number);
                each(index.and_then(|index| self.waiting.remove(index)).ok_or_else(nobody)?);
            }
            Which::UpTo(number) => {
                let mut count = 0;
                while let Some(waiting) = self.waiting.pop_front_if(|next| next.number <= number) {
                    each(waiting);
                    count += 1;
                }
                if count == 0 {
                    return Err(nobody());
                }
            }
        }
        Ok(())
    }
}
