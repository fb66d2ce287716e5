//! A group's offset that is committed again and again, one commit at a time.
//!
//! Libraries may read and commit again what they did before, so their groups may go back for
//! reasons of their own. This client never does: whenever it connects, the node must have stored
//! the last offset that it confirmed, or the one that was on its way when the connection broke.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tidemill::kafka::error_code::ErrorCode;
use tidemill::kafka::messages::{OffsetCommitPartition, OffsetCommitRequest, OffsetCommitTopic};

use super::read_back::committed;
use crate::peer::Peer;

/// Pause between commits, and without a node.
const PAUSE: Duration = Duration::from_millis(5);
/// A node in peace confirms a commit within this.
const PATIENCE: Duration = Duration::from_secs(120);

/// A committer that runs.
#[derive(Debug)]
pub struct Committer {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64, String>>,
}

impl Committer {
    /// Commits as a group of this name for partition 0 of a topic.
    pub fn start(address: SocketAddr, group: &str, topic: &str) -> Committer {
        let is_over = Arc::new(AtomicBool::new(false));
        let commits = Commits {
            address,
            group: group.into(),
            topic: topic.into(),
            is_over: is_over.clone(),
            confirmed: 0,
        };
        Committer { is_over, thread: thread::spawn(|| commits.run()) }
    }

    /// Begins no more commits.
    pub fn stop(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Waits for the last one: how many were confirmed.
    pub fn finish(self) -> Result<u64, String> {
        self.stop();
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

struct Commits {
    address: SocketAddr,
    group: String,
    topic: String,
    is_over: Arc<AtomicBool>,
    confirmed: u64,
}

impl Commits {
    fn run(mut self) -> Result<u64, String> {
        let mut over_since = None;
        let mut complaint = String::new();
        loop {
            if let Ok(mut peer) = Peer::try_connect(self.address) {
                match self.check(&mut peer) {
                    Ok(true) => match self.commit_all(&mut peer) {
                        Ok(()) => return Ok(self.confirmed),
                        Err(error) => complaint = error.to_string(),
                    },
                    Ok(false) => complaint = "it is not said what is stored".into(),
                    Err(why) => return Err(why),
                }
            }
            if self.is_over.load(Ordering::Relaxed) {
                let since: &mut Instant = over_since.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    return Err(format!("no commit is confirmed in time: {complaint}"));
                }
            }
            thread::park_timeout(PAUSE);
        }
    }

    /// Whether what is stored is as it should be; false if the node does not say.
    fn check(&mut self, peer: &mut Peer) -> Result<bool, String> {
        let Ok(stored) = committed(peer, &self.group, &self.topic, 0) else { return Ok(false) };
        let stored = stored.unwrap_or(0);
        if stored != self.confirmed && stored != self.confirmed + 1 {
            return Err(format!(
                "group {} of {}: {} was confirmed, {stored} is stored",
                self.group, self.topic, self.confirmed
            ));
        }
        self.confirmed = stored;
        Ok(true)
    }

    fn commit_all(&mut self, peer: &mut Peer) -> io::Result<()> {
        while !self.is_over.load(Ordering::Relaxed) {
            let partition = OffsetCommitPartition {
                partition_index: 0,
                committed_offset: self.confirmed as i64 + 1,
                ..Default::default()
            };
            let topic = OffsetCommitTopic {
                name: self.topic.as_str().into(),
                partitions: vec![partition],
                ..Default::default()
            };
            let request = OffsetCommitRequest {
                group_id: self.group.as_str().into(),
                topics: vec![topic],
                ..Default::default()
            };
            let response = peer.try_ask(8, &request)?;
            match response.topics[0].partitions[0].error_code {
                ErrorCode::None => self.confirmed += 1,
                // It may be tried again on this connection, or the next one.
                code => return Err(io::Error::other(format!("{code:?}"))),
            }
            thread::park_timeout(PAUSE);
        }
        Ok(())
    }
}
