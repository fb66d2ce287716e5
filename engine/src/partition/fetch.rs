//! Waiting readers: fetches that wait for records (long poll) or for a cold read.
//!
//! Holds who waits for what until when; what they get is the shard's business.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use tidemill_wal::format::PartitionId;

use crate::command::{Fetch, Fetched, Ticket};

/// A fetch that cannot be answered yet.
#[derive(Debug)]
pub struct Waiting {
    /// What was asked.
    pub fetch: Fetch,
    /// Answer no later than this, on the monotonic clock.
    pub deadline_ms: u64,
    /// Cold reads on their way; while there are any, nothing else ends the wait.
    pub reads_open: usize,
    /// Results so far, one for each partition; empty for a long poll, which starts over.
    pub results: Vec<Option<Fetched>>,
}

/// All waiting fetches of a shard.
#[derive(Debug, Default)]
pub struct Readers {
    waiting: BTreeMap<Ticket, Waiting>,
    by_partition: HashMap<PartitionId, HashSet<Ticket>>,
    deadlines: BTreeSet<(u64, Ticket)>,
}

impl Readers {
    /// Lets a fetch wait.
    pub fn insert(&mut self, ticket: Ticket, waiting: Waiting) {
        if waiting.reads_open == 0 {
            self.deadlines.insert((waiting.deadline_ms, ticket));
            for wanted in &waiting.fetch.partitions {
                self.by_partition.entry(wanted.partition).or_default().insert(ticket);
            }
        }
        let old = self.waiting.insert(ticket, waiting);
        assert!(old.is_none(), "a ticket waits once");
    }

    /// Ends a wait.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Waiting> {
        let waiting = self.waiting.remove(&ticket)?;
        self.deadlines.remove(&(waiting.deadline_ms, ticket));
        for wanted in &waiting.fetch.partitions {
            if let Some(tickets) = self.by_partition.get_mut(&wanted.partition) {
                tickets.remove(&ticket);
                if tickets.is_empty() {
                    self.by_partition.remove(&wanted.partition);
                }
            }
        }
        Some(waiting)
    }

    /// A fetch that waits for cold reads, to take one more result.
    pub fn waiting_mut(&mut self, ticket: Ticket) -> Option<&mut Waiting> {
        self.waiting.get_mut(&ticket)
    }

    /// Who waits for records of this partition, in ticket order.
    pub fn on_partition(&self, partition: PartitionId) -> Vec<Ticket> {
        let mut tickets: Vec<Ticket> =
            self.by_partition.get(&partition).into_iter().flatten().copied().collect();
        tickets.sort_unstable();
        tickets
    }

    /// What a waiting fetch asked for.
    pub fn fetch(&self, ticket: Ticket) -> Option<&Fetch> {
        self.waiting.get(&ticket).map(|waiting| &waiting.fetch)
    }

    /// Whether the fetch is a long poll: it waits for records, not for the disk.
    pub fn is_long_poll(&self, ticket: Ticket) -> bool {
        self.waiting.get(&ticket).is_some_and(|waiting| waiting.reads_open == 0)
    }

    /// Long polls whose time is over.
    pub fn expired(&self, now_ms: u64) -> Vec<Ticket> {
        self.deadlines
            .iter()
            .take_while(|(deadline_ms, _)| *deadline_ms <= now_ms)
            .map(|(_, ticket)| *ticket)
            .collect()
    }

    /// When the next long poll ends, on the monotonic clock.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline_ms, _)| *deadline_ms)
    }

    /// How many fetches wait.
    pub fn count(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use tidemill_wal::format::{ShardId, TopicId};

    use super::*;
    use crate::command::FetchPartition;

    fn partition(index: u32) -> PartitionId {
        PartitionId { topic: TopicId([1; 16]), index }
    }

    fn ticket(id: u64) -> Ticket {
        Ticket { origin: ShardId(0), id }
    }

    fn waiting(partitions: &[u32], deadline_ms: u64) -> Waiting {
        let partitions = partitions
            .iter()
            .map(|index| FetchPartition { partition: partition(*index), offset: 0, bytes_max: 1 })
            .collect();
        Waiting {
            fetch: Fetch { partitions, bytes_min: 1, bytes_max: 1, wait_ms: 1 },
            deadline_ms,
            reads_open: 0,
            results: Vec::new(),
        }
    }

    #[test]
    fn readers_are_found_by_partition_and_by_time_until_they_leave() {
        let mut readers = Readers::default();
        readers.insert(ticket(1), waiting(&[0, 1], 50));
        readers.insert(ticket(2), waiting(&[1], 40));
        assert_eq!(readers.on_partition(partition(1)), [ticket(1), ticket(2)]);
        assert_eq!(readers.next_deadline_ms(), Some(40));
        assert_eq!(readers.expired(45), [ticket(2)]);
        assert!(readers.remove(ticket(2)).is_some());
        assert_eq!(readers.on_partition(partition(1)), [ticket(1)]);
        assert!(readers.remove(ticket(1)).is_some());
        assert!(readers.remove(ticket(1)).is_none());
        assert_eq!((readers.count(), readers.next_deadline_ms()), (0, None));
        assert!(readers.by_partition.is_empty());
    }
}
