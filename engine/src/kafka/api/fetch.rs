//! Fetch: records from one or more shards, now or when there are some.
//!
//! Without sessions (KIP-227): every answer has session id 0, so that clients name all their
//! partitions each time.

use std::collections::HashSet;

use tidemill_wal::format::{PartitionId, TopicId};

use super::scatter::{Gather, Place, Scatter};
use super::{
    Step, check_leader_epoch, decode, find_partition, find_topic, first_error, head_of, reply_as,
    respond,
};
use crate::command::{Command, Fetch, FetchPartition, Fetched};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    FetchPartition as WantedPartition, FetchPartitionResponse, FetchRequest, FetchResponse,
    FetchTopicResponse,
};
use crate::kafka::session::Context;
use crate::kafka::wire::{Records, Text};

/// First version that names topics by id.
const IDS_FROM: i16 = 13;

/// `isolation_level` of a reader that skips what was aborted.
const READ_COMMITTED: i8 = 1;

/// `session_epoch` of the first request of a session, or of one without.
const FULL: [i32; 2] = [0, -1];

/// One topic of the request, with what became of its partitions.
struct Topic {
    name: Text,
    id: TopicId,
    partitions: Vec<(i32, Result<Place, ErrorCode>)>,
}

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    let wanted = decode!(cx, request, FetchRequest);
    if !FULL.contains(&wanted.session_epoch) {
        let error_code = ErrorCode::FetchSessionIdNotFound;
        let response = FetchResponse { error_code, ..Default::default() };
        return respond::<FetchRequest>(request, &response, Some(error_code));
    }
    let is_committed = wanted.isolation_level == READ_COMMITTED;
    let mut limits = Limits {
        bytes_max: at_least_0(wanted.max_bytes).min(cx.facts.fetch_size_max).min(cx.fetch_budget),
        bytes_min: at_least_0(wanted.min_bytes),
        wait_ms: at_least_0(wanted.max_wait_ms),
        wanted: 0,
    };
    let mut scatter = Scatter::new();
    let mut seen = HashSet::new();
    let mut topics = Vec::with_capacity(wanted.topics.len());
    for topic in wanted.topics {
        let by_id = request.version >= IDS_FROM;
        let route = find_topic(cx.routes, by_id, &topic.topic, topic.topic_id);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in topic.partitions {
            let element = route.and_then(|route| {
                let index = find_partition(route, wanted.partition)?;
                let partition = route.partition(index);
                let element = check(partition, &wanted)?;
                let is_new = seen.insert(partition);
                is_new.then_some((route.shard_of(index), element)).ok_or(ErrorCode::InvalidRequest)
            });
            let place = element.map(|(shard, element)| {
                limits.wanted += u64::from(element.bytes_max);
                scatter.add(shard, element)
            });
            if place.is_err() {
                // An error is told at once; records come along if there are some.
                limits.wait_ms = 0;
            }
            partitions.push((wanted.partition, place));
        }
        topics.push(Topic { name: topic.topic, id: topic.topic_id, partitions });
    }
    let command_count = scatter.command_count();
    let commands =
        scatter.into_commands(|partitions| Command::Fetch(limits.share(partitions, command_count)));
    let head = head_of(request);
    let then = Box::new(move |_: &Context<'_>, replies: Vec<_>| {
        let results = Gather::new(replies.into_iter().map(|reply| reply_as!(Fetch, reply)));
        finish(&head, is_committed, topics, results)
    });
    Step::Ask { commands, then, hurry: true }
}

fn at_least_0(number: i32) -> u32 {
    number.max(0) as u32
}

fn check(partition: PartitionId, wanted: &WantedPartition) -> Result<FetchPartition, ErrorCode> {
    check_leader_epoch(wanted.current_leader_epoch)?;
    let offset = u64::try_from(wanted.fetch_offset).map_err(|_| ErrorCode::OffsetOutOfRange)?;
    Ok(FetchPartition { partition, offset, bytes_max: at_least_0(wanted.partition_max_bytes) })
}

/// What the whole answer may weigh and wait for.
struct Limits {
    bytes_max: u32,
    bytes_min: u32,
    wait_ms: u32,
    /// Bytes wanted at most from all partitions.
    wanted: u64,
}

impl Limits {
    /// A shard's part of a fetch: of the bytes as much as its partitions are of all, and its share
    /// of the least that is worth an answer.
    fn share(&self, partitions: Vec<FetchPartition>, command_count: usize) -> Fetch {
        let bytes_max = u64::from(self.bytes_max);
        let wanted: u64 = partitions.iter().map(|wanted| u64::from(wanted.bytes_max)).sum();
        let bytes_max = if self.wanted <= bytes_max {
            wanted
        } else {
            (u128::from(bytes_max) * u128::from(wanted) / u128::from(self.wanted)) as u64
        };
        let bytes_max = bytes_max as u32; // At most `self.bytes_max`.
        let bytes_min = match self.bytes_min {
            0 => 0,
            // Waiting for more than may be answered would be waiting for nothing.
            bytes_min => bytes_min.div_ceil(command_count as u32).min(bytes_max).max(1),
        };
        Fetch { partitions, bytes_min, bytes_max, wait_ms: self.wait_ms }
    }
}

fn finish(
    request: &RequestFrame,
    is_committed: bool,
    topics: Vec<Topic>,
    mut results: Gather<Fetched>,
) -> Step {
    let mut responses = Vec::with_capacity(topics.len());
    let mut error = None;
    for topic in topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for (index, place) in topic.partitions {
            let fetched = place.and_then(|place| results.take(place).map_err(ErrorCode::for_read));
            let response = partition_response(index, is_committed, fetched);
            error = error.or_else(|| first_error([response.error_code]));
            partitions.push(response);
        }
        responses.push(FetchTopicResponse { topic: topic.name, topic_id: topic.id, partitions });
    }
    let response = FetchResponse { responses, ..Default::default() };
    respond::<FetchRequest>(request, &response, error)
}

/// Offsets are told with records only: with an error, Kafka sends -1, whatever is known.
fn partition_response(
    partition_index: i32,
    is_committed: bool,
    fetched: Result<Fetched, ErrorCode>,
) -> FetchPartitionResponse {
    let fetched = fetched.and_then(|fetched| {
        let records = fetched.records.map_err(ErrorCode::for_read)?;
        Ok((fetched.start as i64, fetched.durable_end as i64, records))
    });
    // There are no transactions, so nothing was aborted; null is for readers that do not ask.
    let aborted_transactions = is_committed.then(Vec::new);
    match fetched {
        Ok((start, durable_end, records)) => FetchPartitionResponse {
            partition_index,
            high_watermark: durable_end,
            last_stable_offset: durable_end,
            log_start_offset: start,
            aborted_transactions,
            records: Records(records),
            ..Default::default()
        },
        Err(error_code) => FetchPartitionResponse {
            partition_index,
            error_code,
            high_watermark: -1,
            aborted_transactions,
            ..Default::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidemill_wal::format::ShardId;

    use super::super::testing::{World, answer, asked, topic_id};
    use super::*;
    use crate::command::{Refusal, Reply};
    use crate::kafka::messages::FetchTopic;

    fn partition(partition: i32, fetch_offset: i64, partition_max_bytes: i32) -> WantedPartition {
        WantedPartition { partition, fetch_offset, partition_max_bytes, ..Default::default() }
    }

    fn request(name: &str, partitions: Vec<WantedPartition>) -> FetchRequest {
        let topic = FetchTopic { topic: name.into(), topic_id: topic_id(name), partitions };
        FetchRequest { max_wait_ms: 500, min_bytes: 1, topics: vec![topic], ..Default::default() }
    }

    fn world() -> World {
        World::new().with_topic("a", 4)
    }

    fn fetches(commands: Vec<(ShardId, Command)>) -> Vec<(u16, Fetch)> {
        let commands = commands.into_iter().map(|(shard, command)| match command {
            Command::Fetch(fetch) => (shard.0, fetch),
            other => panic!("{other:?}"),
        });
        commands.collect()
    }

    fn fetched(records: &'static str) -> Fetched {
        Fetched { start: 2, durable_end: 9, records: Ok(vec![Bytes::from(records)]) }
    }

    fn refused(refusal: Refusal) -> Fetched {
        Fetched { start: 2, durable_end: 9, records: Err(refusal) }
    }

    /// Index, error and records, or else the high watermark.
    fn outcome(response: &FetchResponse) -> Vec<(i32, ErrorCode, i64, Vec<u8>)> {
        let partitions = response.responses.iter().flat_map(|topic| &topic.partitions);
        let partitions = partitions.map(|p| {
            assert_eq!(p.preferred_read_replica, -1);
            let records = p.records.0.concat();
            (p.partition_index, p.error_code, p.high_watermark, records)
        });
        partitions.collect()
    }

    #[test]
    fn each_shard_is_asked_once_and_records_come_back_in_the_clients_order() {
        let world = world();
        for version in 4..=18 {
            let partitions = vec![partition(1, 5, 100), partition(2, 6, 100), partition(3, 7, 100)];
            let step = world.handle(version, &request("a", partitions));
            assert!(matches!(step, Step::Ask { hurry: true, .. }));
            let (commands, then) = asked(step);
            let asked: Vec<_> = fetches(commands)
                .into_iter()
                .map(|(shard, fetch)| {
                    assert_eq!((fetch.bytes_min, fetch.wait_ms), (1, 500));
                    let partitions = fetch.partitions.iter();
                    let partitions: Vec<_> =
                        partitions.map(|p| (p.partition.index, p.offset, p.bytes_max)).collect();
                    (shard, fetch.bytes_max, partitions)
                })
                .collect();
            let expected = [(1, 200, vec![(1, 5, 100), (3, 7, 100)]), (0, 100, vec![(2, 6, 100)])];
            assert_eq!(asked, expected);
            let replies = vec![
                Reply::Fetch(vec![fetched("one"), fetched("three")]),
                Reply::Fetch(vec![fetched("two")]),
            ];
            let (response, error) =
                answer::<FetchRequest>(version, then(&world.context(), replies));
            let ok = ErrorCode::None;
            let expected = [
                (1, ok, 9, b"one".to_vec()),
                (2, ok, 9, b"two".to_vec()),
                (3, ok, 9, b"three".to_vec()),
            ];
            assert_eq!(outcome(&response), expected);
            assert_eq!((error, response.session_id), (None, 0));
            let first = &response.responses[0].partitions[0];
            assert_eq!((first.last_stable_offset, &first.aborted_transactions), (9, &None));
            if version >= 5 {
                assert_eq!(first.log_start_offset, 2);
            }
        }
    }

    #[test]
    fn read_committed_is_the_same_with_a_list_of_nothing_aborted() {
        let world = world();
        let mut wanted = request("a", vec![partition(0, 5, 100)]);
        wanted.isolation_level = READ_COMMITTED;
        let (_, then) = asked(world.handle(12, &wanted));
        let step = then(&world.context(), vec![Reply::Fetch(vec![fetched("one")])]);
        let (response, _) = answer::<FetchRequest>(12, step);
        let first = &response.responses[0].partitions[0];
        assert_eq!((first.last_stable_offset, &first.aborted_transactions), (9, &Some(vec![])));
    }

    #[test]
    fn what_cannot_be_read_is_told_at_once_beside_what_can() {
        let world = world();
        let fenced = WantedPartition { current_leader_epoch: -2, ..partition(1, 0, 9) };
        let future = WantedPartition { current_leader_epoch: 1, ..partition(1, 0, 9) };
        let partitions = vec![
            partition(0, 0, 9),
            partition(2, 99, 9),
            partition(2, 0, 9),
            partition(9, 0, 9),
            partition(3, -1, 9),
            fenced,
            future,
        ];
        let (commands, then) = asked(world.handle(12, &request("a", partitions)));
        let fetch = fetches(commands).remove(0).1;
        assert_eq!((fetch.partitions.len(), fetch.wait_ms), (2, 0));
        let replies = vec![Reply::Fetch(vec![fetched("r"), refused(Refusal::OffsetOutOfRange)])];
        let (response, error) = answer::<FetchRequest>(12, then(&world.context(), replies));
        let expected = [
            (0, ErrorCode::None, 9, b"r".to_vec()),
            (2, ErrorCode::OffsetOutOfRange, -1, vec![]),
            (2, ErrorCode::InvalidRequest, -1, vec![]),
            (9, ErrorCode::UnknownTopicOrPartition, -1, vec![]),
            (3, ErrorCode::OffsetOutOfRange, -1, vec![]),
            (1, ErrorCode::FencedLeaderEpoch, -1, vec![]),
            (1, ErrorCode::UnknownLeaderEpoch, -1, vec![]),
        ];
        assert_eq!(outcome(&response), expected);
        assert_eq!(error, Some(ErrorCode::OffsetOutOfRange));
    }

    #[test]
    fn unknown_topics_are_told_by_name_or_by_id() {
        for (version, code) in
            [(12, ErrorCode::UnknownTopicOrPartition), (13, ErrorCode::UnknownTopicId)]
        {
            let (commands, then) =
                asked(world().handle(version, &request("b", vec![partition(0, 0, 9)])));
            assert!(commands.is_empty());
            let (response, error) =
                answer::<FetchRequest>(version, then(&world().context(), Vec::new()));
            assert_eq!((outcome(&response)[0].1, error), (code, Some(code)));
        }
    }

    #[test]
    fn a_refused_command_is_told_for_all_its_partitions() {
        let world = world();
        let wanted = request("a", vec![partition(0, 0, 9), partition(1, 0, 9)]);
        let (_, then) = asked(world.handle(11, &wanted));
        let replies =
            vec![Reply::Refused(Refusal::Busy), Reply::Fetch(vec![refused(Refusal::Storage)])];
        let (response, _) = answer::<FetchRequest>(11, then(&world.context(), replies));
        let codes: Vec<_> = outcome(&response).into_iter().map(|p| p.1).collect();
        assert_eq!(codes, [ErrorCode::NotLeaderOrFollower, ErrorCode::KafkaStorageError]);
    }

    #[test]
    fn only_full_fetches_are_served() {
        let world = world();
        for (session_epoch, is_served) in [(0, true), (-1, true), (1, false), (-2, false)] {
            let mut wanted = request("a", vec![partition(0, 0, 9)]);
            (wanted.session_id, wanted.session_epoch) = (77, session_epoch);
            let step = world.handle(12, &wanted);
            assert_eq!(matches!(step, Step::Ask { .. }), is_served, "{session_epoch}");
            if !is_served {
                let (response, error) = answer::<FetchRequest>(12, step);
                assert_eq!(response.error_code, ErrorCode::FetchSessionIdNotFound);
                assert_eq!(error, Some(response.error_code));
                assert!(response.responses.is_empty());
            }
        }
    }

    /// Bytes at most and at least for each shard.
    fn shares(world: &World, change: impl FnOnce(&mut FetchRequest)) -> Vec<(u16, u32, u32)> {
        let mut wanted =
            request("a", vec![partition(0, 0, 1000), partition(1, 0, 1000), partition(3, 0, 1000)]);
        change(&mut wanted);
        let (commands, _) = asked(world.handle(12, &wanted));
        let fetches = fetches(commands).into_iter();
        fetches.map(|(shard, fetch)| (shard, fetch.bytes_max, fetch.bytes_min)).collect()
    }

    #[test]
    fn shards_share_what_the_client_the_node_and_the_moment_allow() {
        let mut world = world();
        assert_eq!(shares(&world, |_| {}), [(0, 1000, 1), (1, 2000, 1)]);
        assert_eq!(shares(&world, |wanted| wanted.max_bytes = 300), [(0, 100, 1), (1, 200, 1)]);
        assert_eq!(shares(&world, |wanted| wanted.max_bytes = -1), [(0, 0, 1), (1, 0, 1)]);
        assert_eq!(shares(&world, |wanted| wanted.min_bytes = 0), [(0, 1000, 0), (1, 2000, 0)]);
        let min = |wanted: &mut FetchRequest| wanted.min_bytes = 2001;
        assert_eq!(shares(&world, min), [(0, 1000, 1000), (1, 2000, 1001)]);
        world.facts.fetch_size_max = 600;
        assert_eq!(shares(&world, |_| {}), [(0, 200, 1), (1, 400, 1)]);
        world.fetch_budget = 0;
        assert_eq!(shares(&world, |_| {}), [(0, 0, 1), (1, 0, 1)]);
    }
}
