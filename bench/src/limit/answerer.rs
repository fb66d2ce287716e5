//! The least server: takes what has arrived, writes it durably or not, answers.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};

use super::LimitFile;
use crate::load::{Poll, wake_on_time};

/// Most connections.
const CONNECTIONS_MAX: usize = 4096;

/// Bytes read from a connection at once.
const READ_SIZE: usize = 256 << 10;

/// Where the correlation id of a request is, and that of an answer.
const REQUEST_NUMBER_AT: usize = 8;
const ANSWER_NUMBER_AT: usize = 4;

const LISTENER: usize = CONNECTIONS_MAX;
const STOP: usize = CONNECTIONS_MAX + 1;

/// A thread that answers each frame of the Kafka protocol with one and the same answer.
pub struct Answerer {
    address: SocketAddr,
    task: i32,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Answerer {
    /// Starts it. With a file, what has arrived is made durable with one write before any of it is
    /// answered.
    pub fn start(file: Option<LimitFile>, answer: Vec<u8>) -> Result<Self, String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|it| it.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let (stop, stopped) = UnixStream::pair().map_err(|error| error.to_string())?;
        let (started, task) = channel();
        let thread = thread::spawn(move || {
            // SAFETY: takes nothing, returns this thread's number.
            let _ = started.send(unsafe { libc::gettid() });
            Answering::new(file, answer, listener, stopped)?.run()
        });
        let task = task.recv().map_err(|error| error.to_string())?;
        Ok(Self { address, task, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its thread's number in the kernel.
    pub fn task(&self) -> i32 {
        self.task
    }

    /// Ends it; an error is what went wrong while it ran.
    pub fn stop(mut self) -> Result<(), String> {
        self.end()
    }

    fn end(&mut self) -> Result<(), String> {
        drop(self.stop.take());
        match self.thread.take() {
            Some(thread) => {
                thread.join().map_err(|_| "the answering thread panicked".to_owned())?
            }
            None => Ok(()),
        }
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        // Who wanted to know has called `stop`.
        let _ = self.end();
    }
}

struct Answering {
    file: Option<LimitFile>,
    answer: Vec<u8>,
    listener: TcpListener,
    #[expect(dead_code, reason = "open for as long as it is waited for")]
    stopped: UnixStream,
    poll: Poll,
    connections: Vec<Option<Connection>>,
    /// What one write makes durable.
    joined: Vec<u8>,
    read: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// The begin of a request whose end has not come.
    rest: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    wants_write: bool,
}

impl Answering {
    fn new(
        file: Option<LimitFile>,
        answer: Vec<u8>,
        listener: TcpListener,
        stopped: UnixStream,
    ) -> Result<Self, String> {
        let prepared = || {
            wake_on_time();
            let poll = Poll::new()?;
            listener.set_nonblocking(true)?;
            poll.add(&listener, LISTENER)?;
            poll.add(&stopped, STOP)?;
            Ok(poll)
        };
        let poll = prepared().map_err(|error: io::Error| error.to_string())?;
        let (joined, read) = (Vec::with_capacity(1 << 20), vec![0; READ_SIZE]);
        Ok(Self { file, answer, listener, stopped, poll, connections: Vec::new(), joined, read })
    }

    fn run(mut self) -> Result<(), String> {
        let mut ready = Vec::new();
        loop {
            ready.clear();
            ready.extend(self.poll.wait(None).map_err(|error| error.to_string())?);
            let mut answers = Vec::new();
            for event in &ready {
                match event.token {
                    STOP => return Ok(()),
                    LISTENER => self.accept().map_err(|error| error.to_string())?,
                    token if event.is_readable => {
                        if self.receive(token)? {
                            answers.push(token);
                        }
                    }
                    token => answers.push(token),
                }
            }
            if let Some(file) = self.file.as_mut().filter(|_| !self.joined.is_empty()) {
                file.append(&self.joined)?;
            }
            self.joined.clear();
            for token in answers {
                self.flush(token);
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let token = self.connections.len();
            if token == CONNECTIONS_MAX {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            self.poll.add(&stream, token)?;
            let (rest, out) = (Vec::new(), Vec::new());
            let connection = Connection { stream, rest, out, sent: 0, wants_write: false };
            self.connections.push(Some(connection));
        }
    }

    /// Takes the requests that are there; says whether something is to be answered.
    fn receive(&mut self, token: usize) -> Result<bool, String> {
        let Some(connection) = &mut self.connections[token] else { return Ok(false) };
        let has_ended = loop {
            match connection.stream.read(&mut self.read) {
                Ok(0) => break true,
                Ok(size) => {
                    connection.rest.extend_from_slice(&self.read[..size]);
                    if size < self.read.len() {
                        break false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break true,
            }
        };
        if has_ended {
            self.connections[token] = None;
            return Ok(false);
        }
        let mut taken = 0;
        while let Some(length) = connection.rest[taken..].first_chunk::<4>() {
            let size = 4 + u32::from_be_bytes(*length) as usize;
            let Some(frame) = connection.rest.get(taken..taken + size) else { break };
            let number = frame
                .get(REQUEST_NUMBER_AT..REQUEST_NUMBER_AT + 4)
                .ok_or("a request without a number")?;
            let at = connection.out.len() + ANSWER_NUMBER_AT;
            connection.out.extend_from_slice(&self.answer);
            connection.out[at..at + 4].copy_from_slice(number);
            taken += size;
        }
        if self.file.is_some() {
            self.joined.extend_from_slice(&connection.rest[..taken]);
        }
        connection.rest.drain(..taken);
        Ok(!connection.out.is_empty())
    }

    /// Sends what there is room for. A client that is gone has no wish for answers.
    fn flush(&mut self, token: usize) {
        let Some(connection) = &mut self.connections[token] else { return };
        let is_left = match connection.flush() {
            Ok(is_left) => is_left,
            Err(_) => {
                self.connections[token] = None;
                return;
            }
        };
        if is_left != connection.wants_write {
            connection.wants_write = is_left;
            if self.poll.want_write(&connection.stream, token, is_left).is_err() {
                self.connections[token] = None;
            }
        }
    }
}

impl Connection {
    fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
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
}
