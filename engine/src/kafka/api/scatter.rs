//! One request's elements, spread over the shards that answer for them, and the way back.

use std::mem;

use tidemill_wal::format::ShardId;
use tidemill_wal::mutation::{self, Mutation};

use crate::command::{Command, Refusal};

/// Elements by shard, in the order they were added.
#[derive(Debug)]
pub(super) struct Scatter<T> {
    commands: Vec<(ShardId, Vec<T>)>,
    /// Index in `commands` of the one that a shard's next element joins.
    places: Vec<Option<usize>>,
}

/// Where the result of one element will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    command: usize,
    index: usize,
}

impl<T> Scatter<T> {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { commands: Vec::new(), places: Vec::new() }
    }

    /// Adds an element for a shard.
    pub fn add(&mut self, shard: ShardId, element: T) -> Place {
        let at = usize::from(shard.0);
        if self.places.len() <= at {
            self.places.resize(at + 1, None);
        }
        let command = *self.places[at].get_or_insert_with(|| {
            self.commands.push((shard, Vec::new()));
            self.commands.len() - 1
        });
        let elements = &mut self.commands[command].1;
        elements.push(element);
        Place { command, index: elements.len() - 1 }
    }

    /// The next element for this shard begins another command.
    pub fn cut(&mut self, shard: ShardId) {
        if let Some(place) = self.places.get_mut(usize::from(shard.0)) {
            *place = None;
        }
    }

    /// How many commands there are.
    pub fn command_count(&self) -> usize {
        self.commands.len()
    }

    /// One command for each shard, or more where it was cut, in order.
    pub fn into_commands(
        self,
        mut command: impl FnMut(Vec<T>) -> Command,
    ) -> Vec<(ShardId, Command)> {
        let commands = self.commands.into_iter();
        commands.map(|(shard, elements)| (shard, command(elements))).collect()
    }
}

/// The results of all commands, to be taken one by one.
#[derive(Debug)]
pub(super) struct Gather<R> {
    commands: Vec<Result<Vec<Option<R>>, Refusal>>,
}

impl<R> Gather<R> {
    /// From the replies, in the order of the commands.
    pub fn new(replies: impl Iterator<Item = Result<Vec<R>, Refusal>>) -> Self {
        let commands = replies.map(|reply| Ok(reply?.into_iter().map(Some).collect()));
        Self { commands: commands.collect() }
    }

    /// The result of one element, once; or why its whole command was refused.
    pub fn take(&mut self, place: Place) -> Result<R, Refusal> {
        let results = self.commands[place.command].as_mut().map_err(|refusal| *refusal)?;
        let index = match mutation::is_on(Mutation::MixResults) {
            true => results.len() - 1 - place.index,
            false => place.index,
        };
        let result = results.get_mut(index).and_then(mem::take);
        Ok(result.expect("a reply has one result for each element, taken once"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_a_cut_is_another_command_of_the_same_shard() {
        let mut scatter = Scatter::new();
        scatter.cut(ShardId(1));
        scatter.add(ShardId(1), 'a');
        scatter.cut(ShardId(1));
        let place = scatter.add(ShardId(1), 'b');
        assert_eq!((scatter.command_count(), place), (2, Place { command: 1, index: 0 }));
    }

    #[test]
    fn results_find_the_way_back_to_their_elements() {
        let mut scatter = Scatter::new();
        let shards = [3, 0, 3, 1, 0];
        let places: Vec<_> =
            (0..5).map(|element| scatter.add(ShardId(shards[element]), element)).collect();
        let mut asked = Vec::new();
        let commands = scatter.into_commands(|elements| {
            asked.push(elements);
            Command::DescribeStorage
        });
        let order: Vec<_> = commands.iter().map(|(shard, _)| shard.0).collect();
        assert_eq!(order, [3, 0, 1]);
        assert_eq!(asked, [vec![0, 2], vec![1, 4], vec![3]]);

        let replies = [Ok(asked[0].clone()), Err(Refusal::Busy), Ok(asked[2].clone())];
        let mut gather = Gather::new(replies.into_iter());
        let results: Vec<_> = places.into_iter().map(|place| gather.take(place)).collect();
        let busy = Err(Refusal::Busy);
        assert_eq!(results, [Ok(0), busy, Ok(2), Ok(3), busy]);
    }
}
