//! The least that serving a batch can cost: one `writev` of an answer's header and the batch for
//! each consumer, at the times when batches come, by one thread that does nothing else.

use std::io::{self, IoSlice, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use tidemill::kafka::error_code::ErrorCode;
use tidemill::kafka::frame::encode_response;
use tidemill::kafka::messages::{
    FetchPartitionResponse, FetchRequest, FetchResponse, FetchTopicResponse,
};
use tidemill::kafka::wire::Records;

use super::consumers::FETCH_VERSION;
use crate::load::{Arrivals, Clock, Poll, Schedule, thread_cpu_seconds, wake_on_time};

/// Waits for its consumers.
pub struct Bare {
    listener: TcpListener,
    address: SocketAddr,
    consumers: usize,
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
}

impl Bare {
    /// Listens.
    pub fn start(
        consumers: usize,
        batch: Bytes,
        topic: &str,
        per_second: f64,
    ) -> Result<Self, String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|it| it.to_string())?;
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
        Ok(Self { listener, address, consumers, answer, batch, per_second })
    }

    /// Where.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends for a time.
    pub fn serve(self, duration: Duration) -> Result<Done, String> {
        let accept = || self.listener.accept().map(|(stream, _)| stream);
        let streams: io::Result<Vec<TcpStream>> = (0..self.consumers).map(|_| accept()).collect();
        let mut streams = streams.map_err(|error| error.to_string())?;
        for stream in &streams {
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
        }
        wake_on_time();
        let mut poll = Poll::new().map_err(|error| error.to_string())?;
        let clock = Clock::start();
        let mut schedule = Schedule::new(self.per_second, Arrivals::Even, 0);
        let began = thread_cpu_seconds();
        let mut calls = 0;
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
            for stream in &mut streams {
                let pieces = [head, &self.batch, tail].map(IoSlice::new);
                write_all(stream, pieces).map_err(|error| error.to_string())?;
                calls += 1;
            }
        }
        Ok(Done { cpu_seconds: thread_cpu_seconds() - began, calls })
    }
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
