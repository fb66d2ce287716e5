//! The least that serving a batch can cost: one `writev` of an answer's header and the batch for
//! each consumer, at the times when batches come, by one thread that does nothing else. And the
//! least where consumers ask, as Kafka's do: the same after one read of a request.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use socket2::{Domain, SockRef, Socket, Type};
use tidemill::kafka::error_code::ErrorCode;
use tidemill::kafka::frame::encode_response;
use tidemill::kafka::messages::{
    FetchPartitionResponse, FetchRequest, FetchResponse, FetchTopicResponse,
};
use tidemill::kafka::wire::Records;

use super::consumers::FETCH_VERSION;
use crate::load::{Arrivals, Clock, Poll, Schedule, thread_cpu_seconds, wake_on_time};

/// Room for a request: a fetch of some partitions of one topic.
const REQUEST_SIZE_MAX: usize = 16 << 10;

/// Connections that may wait to be accepted; the kernel's own limit is as high.
const BACKLOG: i32 = 4096;

/// Waits for its consumers.
pub struct Bare {
    listener: TcpListener,
    address: SocketAddr,
    connections: usize,
    brokers: usize,
    answer: Bytes,
    batch: Bytes,
    per_second: f64,
}

/// What it did.
#[derive(Debug)]
pub struct Done {
    /// Processor seconds.
    pub cpu_seconds: f64,
    /// Calls of `writev`.
    pub calls: u64,
    /// Times that a consumer had not asked yet, and got nothing. Each cost a read.
    pub skipped: u64,
}

/// What a `writev` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// For the time of a batch alone.
    Unasked,
    /// For a request as well, which is read and not looked at. A consumer that has not asked yet
    /// gets nothing at that time.
    Asked,
}

impl Bare {
    /// Listens for as many connections of each consumer as there are brokers.
    pub fn start(
        (consumers, brokers): (usize, usize),
        batch: Bytes,
        topic: &str,
        per_second: f64,
    ) -> Result<Self, String> {
        let listener = listen().map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let partition = FetchPartitionResponse {
            error_code: ErrorCode::None,
            records: Records(vec![batch.clone()]),
            ..FetchPartitionResponse::default()
        };
        let topic = FetchTopicResponse {
            topic: topic.into(),
            partitions: vec![partition],
            ..FetchTopicResponse::default()
        };
        let response = FetchResponse { responses: vec![topic], ..FetchResponse::default() };
        let answer = encode_response::<FetchRequest>(FETCH_VERSION, 0, &response).concat();
        let connections = consumers * brokers;
        Ok(Self { listener, address, connections, brokers, answer, batch, per_second })
    }

    /// Where.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends for a time.
    pub fn serve(self, writes: Writes, duration: Duration) -> Result<Done, String> {
        let accept = || self.listener.accept().map(|(stream, _)| stream);
        let streams: io::Result<Vec<TcpStream>> = (0..self.connections).map(|_| accept()).collect();
        let mut streams = streams.map_err(|error| error.to_string())?;
        for stream in &streams {
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
        }
        wake_on_time();
        let mut poll = Poll::new().map_err(|error| error.to_string())?;
        let clock = Clock::start();
        let mut schedule = Schedule::new(self.per_second, Arrivals::Even, 0);
        let began = thread_cpu_seconds();
        let (mut calls, mut skipped, mut batches) = (0, 0, 0);
        // The batch lies in the middle of the answer; it is sent from its own memory, as a server
        // that copies nothing sends it.
        let at = find(&self.answer, &self.batch);
        let (head, tail) = (&self.answer[..at], &self.answer[at + self.batch.len()..]);
        while schedule.due() < duration.as_nanos() as u64 {
            let left = schedule.due().saturating_sub(clock.now());
            if left > 0 {
                let timeout = Duration::from_nanos(left);
                poll.wait(Some(timeout)).map_err(|error| error.to_string())?.for_each(drop);
                continue;
            }
            schedule.advance();
            // Each consumer gets it from the broker that leads its partition.
            for stream in streams.iter_mut().skip(batches % self.brokers).step_by(self.brokers) {
                if writes == Writes::Asked && !has_asked(stream).map_err(|it| it.to_string())? {
                    skipped += 1;
                    continue;
                }
                let pieces = [head, &self.batch, tail].map(IoSlice::new);
                write_all(stream, pieces).map_err(|error| error.to_string())?;
                calls += 1;
            }
            batches += 1;
        }
        let cpu_seconds = thread_cpu_seconds() - began;
        if writes == Writes::Asked {
            // Their last requests, so that closing does not reset what they have not read yet.
            for stream in &mut streams {
                stream.read(&mut [0; REQUEST_SIZE_MAX]).map_err(|error| error.to_string())?;
            }
        }
        Ok(Done { cpu_seconds, calls, skipped })
    }
}

/// Reads a request, if one is there. One read takes it: it was sent by one write, and it is alone.
fn has_asked(stream: &TcpStream) -> io::Result<bool> {
    let mut request = [MaybeUninit::uninit(); REQUEST_SIZE_MAX];
    match SockRef::from(stream).recv_with_flags(&mut request, libc::MSG_DONTWAIT) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(REQUEST_SIZE_MAX) => Err(io::Error::other("a request is larger than a read")),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// All consumers connect before the first is accepted.
fn listen() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn find(answer: &[u8], batch: &[u8]) -> usize {
    answer.windows(batch.len()).position(|window| window == batch).expect("it was put there")
}

/// Mostly one call; a full socket takes the rest when it has room.
fn write_all(stream: &mut TcpStream, mut pieces: [IoSlice<'_>; 3]) -> io::Result<()> {
    let mut rest = &mut pieces[..];
    while !rest.is_empty() {
        let written = stream.write_vectored(rest)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}
