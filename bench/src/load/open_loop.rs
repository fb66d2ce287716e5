//! The loop itself.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::clock::duration_ns;
use super::connection::{Connection, Waiting};
use super::poll::{thread_cpu_seconds, wake_on_time};
use super::recorder::new_histogram;
use super::{Arrivals, Clock, Poll, Protocol, Recorder, Schedule, Taken, percentiles_us};
use crate::run::{Latency, Percentiles, Point};

/// Longest wait for a connection to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A wait this short is spent spinning: the kernel would not be back in time.
const SPIN_NS: u64 = 3_000;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where each connection goes.
    pub addresses: Vec<SocketAddr>,
    /// Requests a second; none: as many as `in_flight_max` lets, each due when it is sent.
    pub per_second: Option<f64>,
    /// How due times follow each other.
    pub arrivals: Arrivals,
    /// A request is sent this long after it is due: the time that a client gathers a batch whose
    /// first record was due then.
    pub gather: Duration,
    /// Most requests without an answer. With a rate, those beyond it wait in the client.
    pub in_flight_max: u64,
    /// Load before the measured time.
    pub warm_up: Duration,
    /// The measured time.
    pub duration: Duration,
    /// Length of a piece of the series.
    pub piece: Duration,
    /// Longest wait for answers after the last due time.
    pub drain: Duration,
    /// Spin instead of sleeping: takes a core for itself.
    pub spin: bool,
    /// The clock that others use too; none: one of its own.
    pub clock: Option<Clock>,
}

/// What the loop tells while it runs, for figures that are not its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mark {
    /// The measured time begins.
    Begin,
    /// A piece of it has ended.
    Piece(Point),
    /// It has ended; answers may still come.
    End,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// When the first request was due, by the plan's clock; warm-up included.
    pub start_ns: u64,
    /// Length of the measured time.
    pub seconds: f64,
    /// Answered well.
    pub answered: u64,
    /// Refused.
    pub refused: u64,
    /// Without an answer at the end.
    pub unanswered: u64,
    /// From due time to answer.
    pub latency: Latency,
    /// The same over time.
    pub series: Vec<Point>,
    /// From the time that a request should have been sent until it was handed to the kernel.
    pub send_delay_us: Percentiles,
    /// Processor seconds of this thread in the measured time.
    pub client_cpu_seconds: f64,
}

/// Runs a load to its end.
pub fn run(
    plan: &Plan,
    protocol: &mut impl Protocol,
    mark: &mut dyn FnMut(Mark),
) -> Result<Outcome, String> {
    let mut drive = Drive::open(plan, protocol)?;
    drive.warm_up_and_measure(protocol, mark)?;
    drive.drain(protocol)?;
    Ok(drive.finish())
}

struct Drive<'a> {
    plan: &'a Plan,
    clock: Clock,
    poll: Poll,
    connections: Vec<Connection>,
    schedule: Option<Schedule>,
    /// Number of the next request.
    next: u64,
    in_flight: u64,
    /// When the first request is due.
    start_ns: u64,
    /// The measured time.
    begin_ns: u64,
    end_ns: u64,
    recorder: Recorder,
    send_delay: Histogram<u64>,
    answered: u64,
    refused: u64,
    ready: Vec<(usize, bool, bool)>,
    dirty: Vec<usize>,
    cpu_begin: f64,
    cpu_end: f64,
}

impl<'a> Drive<'a> {
    fn open(plan: &'a Plan, protocol: &mut impl Protocol) -> Result<Self, String> {
        assert!(!plan.addresses.is_empty() && plan.in_flight_max > 0, "the caller checks the plan");
        wake_on_time();
        let poll = Poll::new().map_err(|error| error.to_string())?;
        let mut connections = Vec::new();
        for (token, address) in plan.addresses.iter().enumerate() {
            let says = |error: io::Error| format!("{address}: {error}");
            let mut stream = TcpStream::connect_timeout(address, CONNECT_TIMEOUT).map_err(says)?;
            stream.set_nodelay(true).map_err(says)?;
            stream.set_read_timeout(Some(CONNECT_TIMEOUT)).map_err(says)?;
            protocol.open(token, &mut stream)?;
            let connection = Connection::new(stream).map_err(says)?;
            poll.add(connection.link.stream(), token).map_err(says)?;
            connections.push(connection);
        }
        let clock = plan.clock.unwrap_or_else(Clock::start);
        let start_ns = clock.now() + 1_000_000;
        let begin_ns = start_ns + duration_ns(plan.warm_up);
        let schedule = plan.per_second.map(|rate| Schedule::new(rate, plan.arrivals, start_ns));
        Ok(Self {
            plan,
            clock,
            poll,
            connections,
            schedule,
            next: 0,
            in_flight: 0,
            start_ns,
            begin_ns,
            end_ns: begin_ns + duration_ns(plan.duration),
            recorder: Recorder::new(begin_ns, duration_ns(plan.piece)),
            send_delay: new_histogram(),
            answered: 0,
            refused: 0,
            ready: Vec::with_capacity(256),
            dirty: Vec::with_capacity(256),
            cpu_begin: 0.0,
            cpu_end: 0.0,
        })
    }

    fn warm_up_and_measure(
        &mut self,
        protocol: &mut impl Protocol,
        mark: &mut dyn FnMut(Mark),
    ) -> Result<(), String> {
        let mut has_begun = false;
        let mut told = 0;
        loop {
            let now = self.clock.now();
            if !has_begun && now >= self.begin_ns {
                has_begun = true;
                mark(Mark::Begin);
                self.cpu_begin = thread_cpu_seconds();
            }
            if now >= self.end_ns {
                self.cpu_end = thread_cpu_seconds();
                mark(Mark::End);
                return Ok(());
            }
            while let Some(point) = self.recorder.point(told) {
                mark(Mark::Piece(point));
                told += 1;
            }
            self.send_due(protocol, now)?;
            let until = self.next_send().unwrap_or(u64::MAX).min(self.end_ns);
            let until = if has_begun { until } else { until.min(self.begin_ns) };
            self.receive(protocol, until)?;
        }
    }

    /// When the next request has to leave, if it is known and may.
    fn next_send(&self) -> Option<u64> {
        if self.in_flight >= self.plan.in_flight_max {
            return None;
        }
        let schedule = self.schedule.as_ref()?;
        Some(schedule.due() + duration_ns(self.plan.gather))
    }

    fn send_due(&mut self, protocol: &mut impl Protocol, now: u64) -> Result<(), String> {
        let gather = duration_ns(self.plan.gather);
        while self.in_flight < self.plan.in_flight_max {
            let due = match &mut self.schedule {
                Some(schedule) => {
                    let due = schedule.due();
                    if due + gather > now || due >= self.end_ns {
                        break;
                    }
                    schedule.advance();
                    due
                }
                None => now,
            };
            if due >= self.begin_ns {
                self.send_delay.saturating_record(now - (due + gather).min(now));
            }
            let token = (self.next % self.connections.len() as u64) as usize;
            let connection = &mut self.connections[token];
            if connection.link.out.is_empty() {
                self.dirty.push(token);
            }
            protocol.encode(token, self.next, &mut connection.link.out);
            connection.waiting.push_back(Waiting { number: self.next, due });
            self.next += 1;
            self.in_flight += 1;
        }
        while let Some(token) = self.dirty.pop() {
            self.flush(token)?;
        }
        Ok(())
    }

    fn flush(&mut self, token: usize) -> Result<(), String> {
        let connection = &mut self.connections[token];
        let is_left = connection.link.flush()?;
        if is_left != connection.wants_write {
            connection.wants_write = is_left;
            self.poll
                .want_write(connection.link.stream(), token, is_left)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Waits for answers until a time, and takes what came.
    fn receive(&mut self, protocol: &mut impl Protocol, until: u64) -> Result<(), String> {
        let left = until.saturating_sub(self.clock.now());
        let is_spinning = self.plan.spin || left < SPIN_NS;
        let timeout = Duration::from_nanos(if is_spinning { 0 } else { left });
        self.ready.clear();
        let events = self.poll.wait(Some(timeout)).map_err(|error| error.to_string())?;
        self.ready.extend(events.map(|event| (event.token, event.is_readable, event.is_writable)));
        for index in 0..self.ready.len() {
            let (token, is_readable, is_writable) = self.ready[index];
            if is_writable {
                self.flush(token)?;
            }
            if is_readable {
                self.read(protocol, token)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, protocol: &mut impl Protocol, token: usize) -> Result<(), String> {
        let connection = &mut self.connections[token];
        if !connection.link.fill()? {
            return Ok(());
        }
        let now = self.clock.now();
        let was_idle = connection.link.out.is_empty();
        loop {
            let (received, out) = connection.link.both();
            let (size, which, is_good) = match protocol.take(token, received, out)? {
                Taken::More => break,
                Taken::Other { size } => {
                    connection.link.pass(size);
                    continue;
                }
                Taken::Answer { size, which } => (size, which, true),
                Taken::Refused { size, which } => (size, which, false),
            };
            connection.link.pass(size);
            let measured = self.begin_ns..self.end_ns;
            connection.answered(which, |waiting| {
                self.in_flight -= 1;
                if !measured.contains(&waiting.due) {
                } else if is_good {
                    self.answered += 1;
                    self.recorder.record(waiting.due, now);
                } else {
                    self.refused += 1;
                }
            })?;
        }
        if was_idle && !connection.link.out.is_empty() {
            self.flush(token)?;
        }
        Ok(())
    }

    /// Sends what was due and takes answers until all are there or patience is over.
    fn drain(&mut self, protocol: &mut impl Protocol) -> Result<(), String> {
        let until = self.end_ns + duration_ns(self.plan.gather) + duration_ns(self.plan.drain);
        loop {
            let now = self.clock.now();
            let is_open = self.schedule.as_ref().is_some_and(|next| next.due() < self.end_ns);
            if now >= until || (self.in_flight == 0 && !is_open) {
                return Ok(());
            }
            let next = if is_open {
                self.send_due(protocol, now)?;
                self.next_send().unwrap_or(u64::MAX)
            } else {
                u64::MAX
            };
            self.receive(protocol, until.min(next))?;
        }
    }

    /// Requests without an answer count with the time that they have waited: at least that long.
    fn finish(mut self) -> Outcome {
        let now = self.clock.now();
        let mut unanswered = 0;
        let measured = self.begin_ns..self.end_ns;
        let waiting = self.connections.iter().flat_map(|connection| &connection.waiting);
        let mut dues: Vec<u64> = waiting.map(|waiting| waiting.due).collect();
        while let Some(schedule) = self.schedule.as_mut().filter(|next| next.due() < self.end_ns) {
            dues.push(schedule.due());
            schedule.advance();
        }
        for due in dues.into_iter().filter(|due| measured.contains(due)) {
            unanswered += 1;
            self.recorder.record(due, now);
        }
        let (latency, series) = self.recorder.finish();
        Outcome {
            start_ns: self.start_ns,
            seconds: (self.end_ns - self.begin_ns) as f64 / 1e9,
            answered: self.answered,
            refused: self.refused,
            unanswered,
            latency,
            series,
            send_delay_us: percentiles_us(&self.send_delay),
            client_cpu_seconds: self.cpu_end - self.cpu_begin,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::load::Which;

    /// Eight bytes: the number of the request, sent back as it came.
    struct Numbers;

    impl Protocol for Numbers {
        fn encode(&mut self, _connection: usize, number: u64, out: &mut Vec<u8>) {
            out.extend_from_slice(&number.to_be_bytes());
        }

        fn take(
            &mut self,
            _connection: usize,
            received: &[u8],
            _out: &mut Vec<u8>,
        ) -> Result<Taken, String> {
            let Some(bytes) = received.first_chunk::<8>() else { return Ok(Taken::More) };
            let which = Which::Number(u64::from_be_bytes(*bytes));
            Ok(Taken::Answer { size: 8, which })
        }
    }

    /// A server that sends back all but what `keeps` says, and stands still once for `stall`
    /// before it answers request `stall_at`.
    fn serve(stall_at: u64, stall: Duration, keeps: fn(u64) -> bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut bytes = [0; 8];
            while stream.read_exact(&mut bytes).is_ok() {
                let number = u64::from_be_bytes(bytes);
                if number == stall_at {
                    let mut nothing = Poll::new().expect("a set");
                    nothing.wait(Some(stall)).expect("waits").for_each(drop);
                }
                if !keeps(number) && stream.write_all(&bytes).is_err() {
                    return;
                }
            }
        });
        address
    }

    fn plan(address: SocketAddr) -> Plan {
        Plan {
            addresses: vec![address],
            per_second: Some(1000.0),
            arrivals: Arrivals::Even,
            gather: Duration::ZERO,
            in_flight_max: 1_000_000,
            warm_up: Duration::from_millis(100),
            duration: Duration::from_secs(1),
            piece: Duration::from_millis(100),
            drain: Duration::from_secs(10),
            spin: false,
            clock: None,
        }
    }

    #[test]
    fn a_server_that_stands_still_is_late_for_every_request_that_was_due_meanwhile() {
        // 300 ms at 1,000 a second: 300 requests wait, 150 of them longer than 150 ms. A client
        // that waits for answers would have seen one.
        let address = serve(400, Duration::from_millis(300), |_| false);
        let outcome = run(&plan(address), &mut Numbers, &mut |_| ()).expect("it runs");
        assert_eq!((outcome.answered, outcome.refused, outcome.unanswered), (1000, 0, 0));
        let late =
            1.0 - outcome.latency.curve.iter().rfind(|at| at.1 < 150e3).map_or(0.0, |at| at.0);
        assert!(late > 0.10, "{late} of the requests were late: {:?}", outcome.latency);
        assert!(outcome.latency.percentiles.max >= 295e3, "{:?}", outcome.latency.percentiles);
    }

    #[test]
    fn requests_without_an_answer_count_with_the_time_that_they_waited() {
        let address = serve(u64::MAX, Duration::ZERO, |number| number % 10 == 9);
        let short = Plan { drain: Duration::from_secs(2), ..plan(address) };
        let outcome = run(&short, &mut Numbers, &mut |_| ()).expect("it runs");
        assert_eq!((outcome.answered, outcome.unanswered), (900, 100));
        assert_eq!(outcome.latency.count, 1000, "they are among the latencies");
        assert!(outcome.latency.percentiles.p99 >= 2e6, "at least the drain: {outcome:?}");
    }

    #[test]
    fn with_few_requests_in_flight_those_that_wait_in_the_client_wait_all_the_same() {
        let address = serve(400, Duration::from_millis(300), |_| false);
        let few = Plan { in_flight_max: 1, ..plan(address) };
        let outcome = run(&few, &mut Numbers, &mut |_| ()).expect("it runs");
        assert_eq!(outcome.answered + outcome.unanswered, 1000);
        assert!(outcome.latency.percentiles.p90 >= 100e3, "{:?}", outcome.latency.percentiles);
    }

    #[test]
    fn without_a_rate_as_many_are_in_flight_as_may_be() {
        let address = serve(u64::MAX, Duration::ZERO, |_| false);
        let closed = Plan { per_second: None, in_flight_max: 8, ..plan(address) };
        let mut marks = Vec::new();
        let outcome = run(&closed, &mut Numbers, &mut |mark| marks.push(mark)).expect("it runs");
        assert!(outcome.answered >= 8, "{outcome:?}");
        assert_eq!(outcome.unanswered, 0);
        assert_eq!((marks.first(), marks.last()), (Some(&Mark::Begin), Some(&Mark::End)));
    }
}
