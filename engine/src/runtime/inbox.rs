//! What waits for a shard's step, and what it takes next.

use std::collections::VecDeque;

use crate::effect::Input;

/// What the shard takes next. Completions pass commands that wait for the disk, or the disk would
/// wait for them. What is said about a command does not pass it: it would find nothing.
pub fn next_input(inbox: &mut VecDeque<Input>, accepts: bool) -> Option<Input> {
    if accepts {
        return inbox.pop_front();
    }
    let may_pass = |input: &Input| match input {
        Input::Command { .. } | Input::FetchNow(_) | Input::Cancel(_) => false,
        Input::Mesh { .. }
        | Input::Durable(_)
        | Input::DiskDone { .. }
        | Input::ReadDone { .. }
        | Input::Planned(_)
        | Input::MergeRead(_)
        | Input::Called { .. }
        | Input::Tick
        | Input::Stop => true,
    };
    let index = inbox.iter().position(may_pass)?;
    inbox.remove(index)
}

#[cfg(test)]
mod tests {
    use tidemill_wal::format::{Sequence, ShardId};

    use super::*;
    use crate::command::{Command, Ticket};

    #[test]
    fn completions_pass_what_waits_for_the_disk_and_a_cancellation_does_not_pass_its_command() {
        let ticket = Ticket { origin: ShardId(0), id: 1 };
        let command = Input::Command { ticket, command: Command::DescribeStorage };
        let durable = Input::Durable(Sequence(1));
        let inputs = [command, Input::FetchNow(ticket), Input::Cancel(ticket), durable];
        let mut inbox = VecDeque::from(inputs);
        assert!(matches!(next_input(&mut inbox, false), Some(Input::Durable(_))));
        assert!(next_input(&mut inbox, false).is_none());
        assert!(matches!(next_input(&mut inbox, true), Some(Input::Command { .. })));
        assert!(matches!(next_input(&mut inbox, true), Some(Input::FetchNow(_))));
        assert!(matches!(next_input(&mut inbox, true), Some(Input::Cancel(_))));
    }
}
