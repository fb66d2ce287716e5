//! Whose command a reply answers.
//!
//! A shard's connections share its tickets. A ticket is used once: it is forgotten when its reply
//! is taken, or when its asker goes, and its number is never given to another command. So a reply
//! that comes late finds nobody, instead of somebody else.

use std::collections::HashMap;

use tidemill_wal::format::ShardId;

use crate::command::{Command, Ticket};
use crate::kafka::session::DispatchId;

/// Which connection of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The connection.
    pub connection: ConnectionId,
    /// Its session's name for the command.
    pub dispatch: DispatchId,
    size: usize,
}

/// The open commands of one shard's connections.
#[derive(Debug)]
pub struct Tickets {
    origin: ShardId,
    next: u64,
    open: HashMap<u64, Asker>,
    size: usize,
}

impl Tickets {
    /// None yet, for the connections of this shard.
    pub fn new(origin: ShardId) -> Self {
        Self { origin, next: 0, open: HashMap::new(), size: 0 }
    }

    /// A ticket for a command.
    pub fn issue(
        &mut self,
        connection: ConnectionId,
        dispatch: DispatchId,
        command: &Command,
    ) -> Ticket {
        let size = command.batches_size();
        let ticket = self.reserve();
        self.open.insert(ticket.id, Asker { connection, dispatch, size });
        self.size += size;
        ticket
    }

    /// A ticket that nobody waits for.
    pub fn reserve(&mut self) -> Ticket {
        self.next += 1;
        Ticket { origin: self.origin, id: self.next }
    }

    /// Whose ticket it is, once; nobody's if the asker is gone.
    pub fn redeem(&mut self, ticket: Ticket) -> Option<Asker> {
        let asker = self.open.remove(&ticket.id)?;
        self.size -= asker.size;
        Some(asker)
    }

    /// Bytes of the batches that open commands carry, here and on their way to other shards.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Open commands.
    pub fn count(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_finds_its_asker_once_and_never_another_one() {
        let mut tickets = Tickets::new(ShardId(3));
        let command = Command::DescribeStorage;
        let mut issue = |connection, dispatch| {
            tickets.issue(ConnectionId(connection), DispatchId(dispatch), &command)
        };
        let (gone, waiting) = (issue(1, 7), issue(2, 7));
        assert_eq!(gone.origin, ShardId(3));
        tickets.redeem(gone);
        let again = tickets.issue(ConnectionId(1), DispatchId(8), &command);
        assert!(again != gone && again != waiting);
        assert_eq!(tickets.redeem(gone), None, "its asker is gone");
        let asker = Asker { connection: ConnectionId(2), dispatch: DispatchId(7), size: 0 };
        assert_eq!(tickets.redeem(waiting), Some(asker));
        assert_eq!((tickets.redeem(waiting), tickets.count()), (None, 1));
    }
}
