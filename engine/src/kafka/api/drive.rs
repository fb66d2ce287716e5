//! Runs whole requests against a [`World`] of two topics: request in, commands answered by the
//! test, response out.

use std::sync::Arc;

use tidemill_wal::format::ShardId;

use super::Step;
use super::testing::{World, answer};
use crate::command::{Command, GroupCommand, Reply, TopicRoute};
use crate::kafka::messages::Request;

/// A node with the topics `orders` (3 partitions) and `audit` (1 partition).
pub struct Node {
    /// Facts and topics.
    pub world: World,
}

impl Node {
    /// One broker of two shards.
    pub fn new() -> Self {
        Self { world: World::new().with_topic("orders", 3).with_topic("audit", 1) }
    }

    /// Two brokers, one for each shard.
    pub fn with_ports() -> Self {
        Self { world: Self::new().world.advertise_shards() }
    }

    /// One of the topics.
    pub fn topic(&self, name: &str) -> Arc<TopicRoute> {
        self.world.routes.topics[name].clone()
    }

    /// The answer to a request that no shard is needed for.
    pub fn answer<R: Request>(&self, version: i16, request: R) -> R::Response {
        self.call(version, request, |shard, command| panic!("{shard:?} is asked {command:?}"))
    }

    /// The answer to a request whose commands get these replies.
    pub fn call<R: Request>(
        &self,
        version: i16,
        request: R,
        mut reply: impl FnMut(ShardId, Command) -> Reply,
    ) -> R::Response {
        let mut step = self.world.handle(version, &request);
        while let Step::Ask { commands, then, .. } = step {
            let replies = commands.into_iter().map(|(shard, command)| reply(shard, command));
            step = then(&self.world.context(), replies.collect());
        }
        answer::<R>(version, step).0
    }
}

/// The command to a group that this is.
pub fn group(command: Command) -> GroupCommand {
    match command {
        Command::Group(command) => command,
        command => panic!("not for a group: {command:?}"),
    }
}
