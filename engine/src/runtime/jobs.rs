//! Threads for a shard's disk jobs: making segments, settling, merging, removing.
//!
//! A job waits for the disk and keeps a pace, and commits may wait for one of them (a new segment)
//! while another one is slow (settling), so each job that is open has a thread of its own. Threads
//! stay for the next job. Their priority is low: settling does not take the shard's time.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};
use tidemill_wal::disk::{Background, DiskFault, DiskOp, Pace};

use super::helper::Mailbox;
use super::placement;
use crate::effect::{Input, JobId};

type Job = (JobId, Vec<DiskOp>);

/// The jobs of one shard.
pub struct Jobs {
    shard: u16,
    wal: PathBuf,
    data: PathBuf,
    /// Where the threads may run.
    cores: Vec<usize>,
    pace: Pace,
    mailbox: Arc<Mailbox>,
    /// What a job is that failed for another reason than a full disk.
    on_fault: fn(&DiskFault) -> !,
    queue: Sender<Job>,
    received: Receiver<Job>,
    threads: Vec<JoinHandle<()>>,
    open_count: usize,
}

impl Jobs {
    /// For a shard's two directories, which this process holds.
    pub fn new(
        shard: u16,
        wal: PathBuf,
        data: PathBuf,
        cores: Vec<usize>,
        mailbox: Arc<Mailbox>,
        on_fault: fn(&DiskFault) -> !,
    ) -> Self {
        let (queue, received) = unbounded();
        let (pace, threads) = (Pace::default(), Vec::new());
        Self {
            shard,
            wal,
            data,
            cores,
            pace,
            mailbox,
            on_fault,
            queue,
            received,
            threads,
            open_count: 0,
        }
    }

    /// How fast data may be written beside commits, as for [`Pace::set`].
    pub fn set_pace(&self, bytes_per_second: u64) {
        self.pace.set(bytes_per_second);
    }

    /// Begins a job; its end comes as [`Input::DiskDone`].
    pub fn start(&mut self, id: JobId, ops: Vec<DiskOp>) -> io::Result<()> {
        self.open_count += 1;
        if self.threads.len() < self.open_count {
            let thread = self.start_thread()?;
            self.threads.push(thread);
        }
        self.queue.send((id, ops)).expect("the other end is ours");
        Ok(())
    }

    /// The shard heard of a job's end.
    pub fn on_done(&mut self) {
        self.open_count -= 1;
    }

    fn start_thread(&self) -> io::Result<JoinHandle<()>> {
        let mut background =
            Background::new(self.wal.clone(), self.data.clone(), self.pace.clone());
        let (received, mailbox) = (self.received.clone(), self.mailbox.clone());
        let (on_fault, cores) = (self.on_fault, self.cores.clone());
        let name = format!("disk-{}-{}", self.shard, self.threads.len());
        thread::Builder::new().name(name).spawn(move || {
            placement::keep_on(&cores);
            placement::give_way();
            while let Ok((job, ops)) = received.recv() {
                let result = background.run(&ops);
                if let Err(fault @ DiskFault::Failed { .. }) = &result {
                    on_fault(fault);
                }
                mailbox.put(Input::DiskDone { job, result });
            }
        })
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        // A stop waits for what is open, which needs no pace any more.
        self.pace.set(Pace::HURRY);
        // Without a sender each thread ends after the job at hand.
        self.queue = unbounded().0;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
