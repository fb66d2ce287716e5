//! From the elements of a request to commands for the shards that know, and back in order.
//!
//! What a request of groups or administration claims is bounded here: the memory of its elements,
//! and how many commands it has open at once. One that asks more waits for its own turns.

use std::collections::HashSet;
use std::vec;

use tidemill_wal::format::{PartitionId, ShardId};

use super::fault::Fault;
use super::scatter::{Gather, Place, Scatter};
use super::{Step, Then, ask, reply_as};
use crate::command::{
    CatalogCommand, Command, GroupCommand, GroupReply, Refusal, Refused, Reply, TOPOLOGY_GROUPS,
    TopicChange, group_shard,
};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::Request;
use crate::kafka::session::Context;
use crate::kafka::wire::Text;

/// Memory for the elements of one request, in bytes; the frame itself comes on top. Enough for
/// some 50,000 partitions, and few enough that the answer is no flood.
const ELEMENTS_SIZE_MAX: usize = 4 << 20;

/// Commands that one request has open at once: more would crowd out other connections.
const OPEN_COUNT_MAX: usize = 64;

/// Where the catalog is decided.
const CATALOG_SHARD: ShardId = ShardId(0);

/// The group's answer in the variant of its command. Another variant is a mistake of ours.
macro_rules! group_reply_as {
    ($variant:ident, $reply:expr) => {
        match $reply {
            $crate::command::GroupReply::$variant(answer) => answer,
            other => panic!(concat!("not a reply to ", stringify!($variant), ": {:?}"), other),
        }
    };
}
pub(super) use group_reply_as;

/// Most memory that the elements of a request take beside its frame.
pub(super) fn elements_size_max(cx: &Context<'_>) -> usize {
    cx.facts.request_size_max.min(ELEMENTS_SIZE_MAX)
}

/// Reads a request's body and goes on with it, or closes the connection.
pub(super) fn decoded<R: Request>(
    cx: &Context<'_>,
    request: &RequestFrame,
    go_on: impl FnOnce(R) -> Step,
) -> Step {
    match request.decode(elements_size_max(cx)) {
        Ok(body) => go_on(body),
        Err(reason) => Step::Close(reason),
    }
}

/// Names that occur more than once.
pub(super) fn repeated<'a>(names: impl Iterator<Item = &'a Text>) -> HashSet<Text> {
    let mut seen = HashSet::new();
    names.filter(|name| !seen.insert(*name)).cloned().collect()
}

/// Each element once, where it first occurs.
pub(super) fn distinct(names: Vec<Text>) -> Vec<Text> {
    let mut seen = HashSet::new();
    names.into_iter().filter(|name| seen.insert(name.clone())).collect()
}

/// Asks any number of commands, some at a time, and goes on with all replies in order.
pub(super) fn ask_in_turns(
    commands: Vec<(ShardId, Command)>,
    then: impl FnOnce(&Context<'_>, Vec<Reply>) -> Step + 'static,
) -> Step {
    let replies = Vec::with_capacity(commands.len());
    turn(commands.into_iter(), replies, Box::new(then))
}

fn turn(mut left: vec::IntoIter<(ShardId, Command)>, mut replies: Vec<Reply>, then: Then) -> Step {
    let commands = left.by_ref().take(OPEN_COUNT_MAX).collect();
    ask(commands, move |cx, more| {
        replies.extend(more);
        if left.as_slice().is_empty() { then(cx, replies) } else { turn(left, replies, then) }
    })
}

/// The shards that answer a command for a group: the group's own, but all of them for the progress of
/// a topology.
fn shards_of(cx: &Context<'_>, group: &str, command: &GroupCommand) -> Vec<ShardId> {
    let is_spread =
        group.starts_with(TOPOLOGY_GROUPS) && matches!(command, GroupCommand::OffsetFetch { .. });
    match is_spread {
        true => (0..cx.facts.shard_count).map(ShardId).collect(),
        false => vec![group_shard(group, cx.facts.shard_count)],
    }
}

/// One answer of those of several shards, each of which knows some of the offsets.
fn joined(
    first: Result<GroupReply, Refusal>,
    second: Result<GroupReply, Refusal>,
) -> Result<GroupReply, Refusal> {
    let offsets = |reply| group_reply_as!(OffsetFetch, reply);
    let (first, second) = (offsets(first?)?, offsets(second?)?);
    let (known, unknown): (Vec<_>, Vec<_>) =
        first.into_iter().chain(second).partition(|(_, committed)| committed.is_some());
    let mut named: HashSet<PartitionId> = known.iter().map(|(partition, _)| *partition).collect();
    let missing = unknown.into_iter().filter(|(partition, _)| named.insert(*partition));
    Ok(GroupReply::OffsetFetch(Ok(known.into_iter().chain(missing).collect())))
}

/// Asks every group's own shard something, and goes on with one answer for each.
pub(super) fn ask_groups(
    cx: &Context<'_>,
    asks: Vec<(Text, GroupCommand)>,
    then: impl FnOnce(&Context<'_>, Vec<(Text, Result<GroupReply, Refusal>)>) -> Step + 'static,
) -> Step {
    let mut commands = Vec::with_capacity(asks.len());
    let mut groups = Vec::with_capacity(asks.len());
    for (group, command) in asks {
        let shards = shards_of(cx, &group, &command);
        groups.push((group, shards.len()));
        commands.extend(shards.into_iter().map(|shard| (shard, Command::Group(command.clone()))));
    }
    ask_in_turns(commands, move |cx, replies| {
        let mut replies = replies.into_iter().map(|reply| reply_as!(Group, reply));
        let answer = |(group, count): (Text, usize)| {
            let reply = replies.by_ref().take(count).reduce(joined);
            (group, reply.expect("a group has a shard"))
        };
        let answers = groups.into_iter().map(answer).collect();
        then(cx, answers)
    })
}

/// Asks one group's shard something. What waits for the answer, which a rebalance may hold back
/// for minutes, keeps nothing of the request's frame.
pub(super) fn ask_group(
    cx: &Context<'_>,
    group: &str,
    command: GroupCommand,
    then: impl FnOnce(&Context<'_>, Result<GroupReply, Refusal>) -> Step + 'static,
) -> Step {
    let shard = group_shard(group, cx.facts.shard_count);
    ask(vec![(shard, Command::Group(command))], move |cx, mut replies| {
        let reply = replies.pop().expect("one group was asked for");
        then(cx, reply_as!(Group, reply))
    })
}

/// Asks for changes of topics. `checked` has one entry for each element of the request: `Ok` for
/// those that are in the command, in order. Goes on with one outcome for each element.
pub(super) fn ask_catalog(
    command: CatalogCommand,
    checked: Vec<Result<(), Fault>>,
    then: impl FnOnce(&Context<'_>, Vec<Result<TopicChange, Fault>>) -> Step + 'static,
) -> Step {
    let is_needed = checked.iter().any(Result::is_ok);
    let command = is_needed.then_some((CATALOG_SHARD, Command::Catalog(command)));
    ask_in_turns(command.into_iter().collect(), move |cx, mut replies| {
        let refused = |refusal| Err(Refused { refusal, message: String::new() });
        let results = match replies.pop() {
            Some(reply) => reply_as!(Catalog, reply)
                .unwrap_or_else(|refusal| vec![refused(refusal); checked.len()]),
            None => Vec::new(),
        };
        let mut results = results.into_iter();
        let outcomes = checked.into_iter().map(|checked| {
            checked?;
            Ok(results.next().expect("one result for each topic asked for")?)
        });
        then(cx, outcomes.collect())
    })
}

/// Asks each query of its shard, and goes on with one answer for each place, in order.
pub(super) fn ask_scattered<Q, A: 'static>(
    scatter: Scatter<Q>,
    places: Vec<Result<Place, ErrorCode>>,
    command: impl Fn(Vec<Q>) -> Command,
    results: impl Fn(Reply) -> Result<Vec<Result<A, Refusal>>, Refusal> + 'static,
    then: impl FnOnce(&Context<'_>, Vec<Result<A, ErrorCode>>) -> Step + 'static,
) -> Step {
    ask_in_turns(scatter.into_commands(command), move |cx, replies| {
        let mut gather = Gather::new(replies.into_iter().map(results));
        let taken = places.into_iter().map(|place| {
            let result = gather.take(place?).flatten();
            result.map_err(ErrorCode::for_read)
        });
        then(cx, taken.collect())
    })
}

#[cfg(test)]
mod tests {
    use super::super::handle;
    use super::super::testing::{World, asked, frame};
    use super::*;
    use crate::kafka::messages::{
        DeleteGroupsRequest, JoinGroupProtocol, JoinGroupRequest, SyncGroupAssignment,
        SyncGroupRequest,
    };

    #[test]
    fn a_request_has_a_bounded_number_of_commands_open() {
        let world = World::new();
        let groups_names = (0..150).map(|n| Text::from(format!("g{n}"))).collect();
        let mut step = world.handle(2, &DeleteGroupsRequest { groups_names });
        let mut turns = Vec::new();
        while let Step::Ask { .. } = step {
            let (commands, then) = asked(step);
            turns.push(commands.len());
            let replies = commands.iter().map(|_| Reply::Refused(Refusal::Busy)).collect();
            step = then(&world.context(), replies);
        }
        assert_eq!(turns, [64, 64, 22]);
    }

    #[test]
    fn a_request_of_too_many_elements_ends_the_connection() {
        let world = World::new();
        let names = |count| vec![Text::from("g"); count];
        let size = size_of::<Text>();
        let too_many = ELEMENTS_SIZE_MAX / size + 1;
        let step = world.handle(2, &DeleteGroupsRequest { groups_names: names(too_many) });
        assert!(matches!(step, Step::Close(_)));
        let step = world.handle(2, &DeleteGroupsRequest { groups_names: names(too_many - 1) });
        assert!(matches!(step, Step::Ask { .. }));
    }

    #[test]
    fn what_a_rebalance_holds_back_keeps_nothing_of_its_frame() {
        check_frame(JoinGroupRequest {
            group_id: "g".into(),
            protocols: vec![JoinGroupProtocol { name: "range".into(), metadata: "sub".into() }],
            ..JoinGroupRequest::default()
        });
        check_frame(SyncGroupRequest {
            group_id: "g".into(),
            member_id: "m".into(),
            assignments: vec![SyncGroupAssignment { member_id: "m".into(), ..Default::default() }],
            ..SyncGroupRequest::default()
        });
    }

    fn check_frame<R: Request>(request: R) {
        let world = World::new();
        let frame = frame(0, &request);
        let body = frame.body.clone();
        let step = handle(&world.context(), &frame, "127.0.0.1");
        drop(frame);
        assert!(matches!(step, Step::Ask { .. }));
        assert!(body.is_unique(), "{} keeps its frame", R::API);
    }
}
