//! The load: requests at their due times, whatever the server does.
//!
//! One thread drives all connections. A request is due at a time that is fixed beforehand and does
//! not move when answers are late; its latency runs from then. What cannot be sent in time, because
//! the client or the connection was busy, waited all the same, and that is in its latency too.

mod clock;
mod connection;
pub mod kafka;
mod open_loop;
mod poll;
mod recorder;

pub use self::clock::{Arrivals, Clock, Schedule};
pub use self::connection::Link;
pub use self::open_loop::{Mark, Outcome, Plan, run};
pub use self::poll::{Poll, thread_cpu_seconds, wake_on_time};
pub use self::recorder::{Recorder, new_histogram, percentiles_us, to_latency};

use std::net::TcpStream;

/// What is spoken on the connections. The loop decides when, the protocol what.
pub trait Protocol {
    /// Greets the server on a connection that still blocks; request and answer as it likes.
    fn open(&mut self, _connection: usize, _stream: &mut TcpStream) -> Result<(), String> {
        Ok(())
    }

    /// Adds request `number` to what is sent on `connection`. Cheap: bytes are prepared before.
    fn encode(&mut self, connection: usize, number: u64, out: &mut Vec<u8>);

    /// Looks at the front of what was received on `connection`, checks it, and says what it is.
    /// What has to be sent at once in return (a pong, a window update) goes to `out`. An error ends
    /// the run: the server said something that it must not say.
    fn take(
        &mut self,
        connection: usize,
        received: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Taken, String>;
}

/// What is at the front of the bytes received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Not yet whole.
    More,
    /// `size` bytes that answer no request.
    Other {
        /// Bytes to pass over.
        size: usize,
    },
    /// `size` bytes that answer a request well.
    Answer {
        /// Bytes of the answer.
        size: usize,
        /// Which request.
        which: Which,
    },
    /// `size` bytes that refuse a request. It is counted, and its time is no latency.
    Refused {
        /// Bytes of the answer.
        size: usize,
        /// Which request.
        which: Which,
    },
}

/// Which request of the connection an answer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The oldest without an answer: the protocol answers in order.
    Next,
    /// The one of this number.
    Number(u64),
}
