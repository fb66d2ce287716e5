//! The node's threads for blocking calls of topologies.
//!
//! They are shared by all shards, are started when there is something to call, and stay. Each shard has
//! a bounded number of calls open, so the queue is bounded by that. A call may take for ever: nobody
//! waits for a thread, and one that is inside a call ends with the process.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::helper::Mailbox;
use super::placement;
use crate::effect::{CallId, CallRequest, Input};
use crate::topology::Plan;

/// A call, and who gets its result.
struct Job {
    call: CallId,
    request: CallRequest,
    mailbox: Arc<Mailbox>,
}

/// The threads, and what waits for them.
pub struct Calls {
    plans: Vec<Arc<Plan>>,
    /// Where the threads may run.
    cores: Vec<usize>,
    thread_count_max: usize,
    thread_count: Mutex<usize>,
    /// Calls that have not ended.
    open_count: Arc<AtomicUsize>,
    queue: Sender<Job>,
    received: Receiver<Job>,
}

impl Calls {
    /// For the topologies of a node, as all shards number them.
    pub fn new(plans: Vec<Arc<Plan>>, cores: Vec<usize>, thread_count_max: usize) -> Arc<Self> {
        let (queue, received) = unbounded();
        Arc::new(Self {
            plans,
            cores,
            thread_count_max,
            thread_count: Mutex::new(0),
            open_count: Arc::default(),
            queue,
            received,
        })
    }

    /// Begins a call, as soon as a thread is free; its end comes as [`Input::Called`].
    pub fn start(
        &self,
        call: CallId,
        request: CallRequest,
        mailbox: &Arc<Mailbox>,
    ) -> io::Result<()> {
        let open_count = self.open_count.fetch_add(1, Ordering::Relaxed) + 1;
        let mut thread_count = self.thread_count.lock().unwrap_or_else(PoisonError::into_inner);
        if *thread_count < open_count.min(self.thread_count_max) {
            match self.start_thread(*thread_count) {
                Ok(()) => *thread_count += 1,
                Err(error) if *thread_count > 0 => {
                    let threads = *thread_count;
                    tracing::warn!(%error, threads, "no more threads for blocking calls");
                }
                Err(error) => return Err(error),
            }
        }
        drop(thread_count);
        let job = Job { call, request, mailbox: mailbox.clone() };
        assert!(self.queue.send(job).is_ok(), "the other end is ours");
        Ok(())
    }

    fn start_thread(&self, number: usize) -> io::Result<()> {
        let (plans, cores) = (self.plans.clone(), self.cores.clone());
        let (received, open_count) = (self.received.clone(), self.open_count.clone());
        let run = move || {
            placement::keep_on(&cores);
            placement::give_way();
            while let Ok(Job { call, request, mailbox }) = received.recv() {
                let result = plans[call.topology].make_call(&request);
                open_count.fetch_sub(1, Ordering::Relaxed);
                mailbox.put(Input::Called { call, result });
            }
        };
        thread::Builder::new().name(format!("blocking-{number}")).spawn(run).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use bytes::Bytes;
    use tidemill_wal::format::ShardId;

    use super::*;
    use crate::effect::CallFault;
    use crate::runtime::mesh::{RING_CAPACITY, connect};
    use crate::topology::{Topology, Utf8};

    /// Two threads for a function, which fails or panics if its value says so.
    fn calls(meet: &Arc<Barrier>) -> Arc<Calls> {
        let topology = Topology::new("calls");
        let keyed = topology.source("in", Utf8).partitioned_by_key(Utf8);
        let meet = meet.clone();
        keyed
            .blocking("call", Utf8, Utf8, move |key, value| match value.as_str() {
                "fail" => Err("as asked".into()),
                "panic" => panic!("as asked"),
                _ => {
                    meet.wait();
                    Ok(format!("{key} {value}"))
                }
            })
            .sink("out", Utf8);
        let plan = topology.build().expect("good");
        Calls::new(vec![plan.into()], placement::allowed_cores(), 2)
    }

    fn start(calls: &Calls, mailbox: &Arc<Mailbox>, number: u64, value: &'static str) {
        let call = CallId { topology: 0, wiring: 1, number };
        let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(value.as_bytes()));
        let request = CallRequest { operator: 0, key, version: 1, value };
        calls.start(call, request, mailbox).expect("threads");
    }

    fn result(mailbox: &Mailbox) -> Option<(u64, Result<Option<Bytes>, CallFault>)> {
        let mut inputs = mailbox.take();
        assert!(inputs.len() < 2, "{inputs:?}");
        match inputs.pop()? {
            Input::Called { call, result } => Some((call.number, result)),
            other => panic!("not a result: {other:?}"),
        }
    }

    #[test]
    fn calls_run_at_once_and_their_failures_and_panics_are_results() {
        let meet = Arc::new(Barrier::new(3));
        let calls = calls(&meet);
        let ports = connect(1, RING_CAPACITY);
        let mailboxes = [0, 1].map(|_| Mailbox::new(ports[0].doorbells(), ShardId(0)));
        let wait = |mailbox: &Mailbox| loop {
            match result(mailbox) {
                Some(result) => return result,
                None => thread::yield_now(),
            }
        };
        // None ends before both have begun.
        start(&calls, &mailboxes[0], 1, "a");
        start(&calls, &mailboxes[1], 2, "b");
        meet.wait();
        assert_eq!(wait(&mailboxes[0]), (1, Ok(Some(Bytes::from_static(b"k a")))));
        assert_eq!(wait(&mailboxes[1]), (2, Ok(Some(Bytes::from_static(b"k b")))));
        start(&calls, &mailboxes[0], 3, "fail");
        let failed = Err(CallFault::Failed("as asked".to_owned()));
        assert_eq!(wait(&mailboxes[0]), (3, failed));
        start(&calls, &mailboxes[0], 4, "panic");
        let panicked = Err(CallFault::Panicked("as asked".to_owned()));
        assert_eq!(wait(&mailboxes[0]), (4, panicked));
    }

    #[test]
    fn nobody_waits_for_a_call_that_does_not_end() {
        // Nobody else comes to it.
        let meet = Arc::new(Barrier::new(2));
        let calls = calls(&meet);
        let ports = connect(1, RING_CAPACITY);
        let mailbox = Mailbox::new(ports[0].doorbells(), ShardId(0));
        start(&calls, &mailbox, 1, "for ever");
        drop(calls);
        assert!(mailbox.is_empty());
    }
}
