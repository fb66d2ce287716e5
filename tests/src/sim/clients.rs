//! Clients: what they ask, and how they go on with each answer, a crash included.

mod admin;
mod answer;
mod auditor;
mod closer;
mod committer;
mod consumer;
mod member;
mod producer;

use tidemill::command::{CatalogCommand, Command, OffsetAt, Reply};
use tidemill_wal::format::{PartitionId, ShardId};

pub use self::admin::Admin;
pub use self::auditor::Auditor;
pub use self::closer::Closer;
pub use self::committer::Committer;
pub use self::consumer::Consumer;
pub use self::member::Member;
pub use self::producer::Producer;
use super::model::{Check, Known, MemberAsked, Model, Try};
use super::plan::Plan;
use super::random::Random;
use super::streams::Flow;

/// What a client has at hand.
pub struct Context<'a> {
    /// The seed's dice.
    pub random: &'a mut Random,
    /// What is known.
    pub model: &'a mut Model,
    /// Shards of the node.
    pub shard_count: u16,
    /// The clock that only goes forward, in microseconds.
    pub now_us: u64,
    /// The machine's clock, in milliseconds since 1970.
    pub wall_ms: i64,
    /// No new load: finish what was begun.
    pub is_draining: bool,
    /// Everybody is done, and event time is to come to its end.
    pub is_closing: bool,
    /// What the client asks now, in order.
    pub asked: Vec<(ShardId, Command, Asked)>,
    /// What somebody asks who does not listen: a client that is thought dead, or was.
    pub unheard: Vec<(ShardId, Command, Asked)>,
    /// The connection breaks before that: what was open has no answer that anybody hears.
    pub is_disconnecting: bool,
}

/// An open command, with what its answer is checked against.
#[derive(Debug, Clone)]
pub enum Asked {
    /// Batches.
    Produce(Vec<Try>),
    /// Partitions with their offsets.
    Fetch(Vec<(PartitionId, u64, Known)>),
    /// Offset queries.
    ListOffsets(Vec<(PartitionId, OffsetAt, Known)>),
    /// New starts.
    DeleteRecords(Vec<(PartitionId, Option<u64>)>),
    /// Bounds.
    Describe(Vec<(PartitionId, Known)>),
    /// A producer id.
    ProducerId,
    /// A change of the catalog.
    Catalog(CatalogCommand),
    /// Offsets of a group, by a member or from outside; `None` removes.
    Commit(String, Vec<(PartitionId, Option<u64>)>, Option<MemberAsked>),
    /// Reads offsets of a group; all there are, or some.
    Committed {
        /// The group.
        group: String,
        /// Whether all are read.
        is_all: bool,
        /// How many topics were known to be gone.
        gone_count: usize,
    },
    /// A group goes, with all that it has.
    RemoveGroup(String),
    /// Anything else of a member's life.
    Member(MemberAsked),
}

/// One client.
#[derive(Debug)]
pub enum Client {
    /// Appends.
    Producer(Producer),
    /// Reads.
    Consumer(Consumer),
    /// Commits offsets outside a membership.
    Committer(Committer),
    /// Lives in a group.
    Member(Member),
    /// Changes topics.
    Admin(Admin),
    /// Reads everything after a recovery.
    Auditor(Auditor),
    /// Takes event time ahead.
    Closer(Closer),
}

impl Client {
    /// The clients of a plan; the auditor is the first.
    pub fn draw_all(plan: &Plan, random: &mut Random) -> Vec<Self> {
        let pause_us = plan.pause_us;
        let mut clients = vec![
            Client::Auditor(Auditor::default()),
            Client::Admin(Admin::new(pause_us * 8, plan.has_retention)),
            Client::Committer(Committer::new(
                "progress".to_owned(),
                "members".to_owned(),
                pause_us * 4,
            )),
        ];
        let (plain, idempotent) = plan.producers;
        for number in 0..plain + idempotent {
            let size = plan.batch_size_max;
            let is_idempotent = number < idempotent;
            clients.push(Client::Producer(Producer::new(number, is_idempotent, size, pause_us)));
        }
        for _ in 0..plan.consumers {
            clients.push(Client::Consumer(Consumer::new(pause_us * 2)));
        }
        for number in 0..plan.members {
            let is_static = random.one_in(3);
            let member = Member::new("members".to_owned(), number, is_static, pause_us * 4);
            clients.push(Client::Member(member));
        }
        if plan.streams.flows.contains(&Flow::Windows) {
            clients.push(Client::Closer(Closer::new(pause_us * 2)));
        }
        clients
    }

    /// Its time has come. Returns when it comes again, in microseconds from now.
    pub fn act(&mut self, cx: &mut Context<'_>) -> u64 {
        match self {
            Self::Producer(client) => client.act(cx),
            Self::Consumer(client) => client.act(cx),
            Self::Committer(client) => client.act(cx),
            Self::Member(client) => client.act(cx),
            Self::Admin(client) => client.act(cx),
            Self::Auditor(client) => client.act(cx),
            Self::Closer(client) => client.act(cx),
        }
    }

    /// A reply leaves its shard: it is checked, whoever hears it.
    pub fn on_told(model: &mut Model, asked: &Asked, reply: &Reply) -> Check {
        answer::check(model, asked, reply)
    }

    /// Takes in an answer, which was checked when it left its shard.
    pub fn on_reply(&mut self, cx: &mut Context<'_>, asked: Asked, reply: Reply) -> Check {
        match self {
            Self::Producer(client) => client.on_reply(cx, asked, reply),
            Self::Consumer(client) => client.on_reply(cx, asked, reply),
            Self::Committer(client) => client.on_reply(cx, asked, reply),
            Self::Member(client) => client.on_reply(cx, asked, reply),
            Self::Admin(client) => client.on_reply(cx, asked, reply),
            Self::Auditor(client) => client.on_reply(cx, asked, reply),
            Self::Closer(client) => client.on_reply(cx, asked, reply),
        }
    }

    /// Its connection is another one; what was open has no answer.
    pub fn on_disconnect(&mut self) {
        match self {
            Self::Producer(client) => client.on_restart(),
            Self::Consumer(client) => client.on_restart(),
            Self::Committer(client) => client.on_restart(),
            Self::Member(client) => client.on_restart(),
            Self::Admin(client) => client.on_disconnect(),
            Self::Auditor(client) => client.on_disconnect(),
            Self::Closer(client) => client.on_restart(),
        }
    }

    /// The node is back; what was open has no answer.
    pub fn on_restart(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::Producer(client) => client.on_restart(),
            Self::Consumer(client) => client.on_restart(),
            Self::Committer(client) => client.on_restart(),
            Self::Member(client) => client.on_restart(),
            Self::Admin(client) => client.on_restart(cx),
            Self::Auditor(client) => client.on_restart(),
            Self::Closer(client) => client.on_restart(),
        }
    }

    /// Whether nothing that it began is unfinished.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Producer(client) => client.is_done(),
            Self::Auditor(client) => client.is_done(),
            Self::Closer(client) => client.is_done(),
            Self::Consumer(_) | Self::Committer(_) | Self::Member(_) | Self::Admin(_) => true,
        }
    }

    /// Whether event time has come to its end, as far as it is this one's to say.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Closer(client) => client.is_closed(),
            Self::Producer(_)
            | Self::Consumer(_)
            | Self::Committer(_)
            | Self::Member(_)
            | Self::Admin(_)
            | Self::Auditor(_) => true,
        }
    }
}

fn unexpected(asked: &Asked, reply: &Reply) -> Check {
    Err(format!("asked {asked:?}, answered {reply:?}"))
}
