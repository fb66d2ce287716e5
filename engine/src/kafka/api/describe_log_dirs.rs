//! DescribeLogDirs: what is stored where.
//!
//! Shards that keep their data in one directory are one directory to clients. As with groups, a
//! client that asks every broker must not be told the same bytes twice: see `list_groups`.

use std::collections::{BTreeMap, HashSet};

use tidemill_wal::format::PartitionId;

use super::ask::{ask_in_turns, decoded};
use super::list_groups::broker_shards;
use super::{Step, find_partition, first_error, head_of, reply_as, respond};
use crate::command::{Command, Refusal, Reply, Routes, Storage};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    DescribeLogDirsPartition, DescribeLogDirsRequest, DescribeLogDirsResponse,
    DescribeLogDirsResult, DescribeLogDirsTopic, DescribeLogDirsTopicResponse,
};
use crate::kafka::session::Context;
use crate::kafka::wire::Text;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decoded(cx, request, |body: DescribeLogDirsRequest| {
        let wanted = body.topics.map(|topics| wanted_partitions(cx.routes, &topics));
        let shards = broker_shards(cx.facts);
        let commands = shards.into_iter().map(|shard| (shard, Command::DescribeStorage)).collect();
        let request = head_of(request);
        ask_in_turns(commands, move |cx, replies| {
            let response = match storages(replies) {
                Ok(storages) => DescribeLogDirsResponse {
                    results: results(cx.routes, storages, wanted.as_ref()),
                    ..DescribeLogDirsResponse::default()
                },
                Err(refusal) => refused(ErrorCode::for_admin(refusal)),
            };
            let error = first_error([response.error_code]);
            respond::<DescribeLogDirsRequest>(&request, &response, error)
        })
    })
}

fn wanted_partitions(routes: &Routes, topics: &[DescribeLogDirsTopic]) -> HashSet<PartitionId> {
    let mut wanted = HashSet::new();
    for asked in topics {
        let Some(topic) = routes.topics.get(asked.topic.as_str()) else { continue };
        let indexes =
            asked.partitions.iter().filter_map(|index| find_partition(topic, *index).ok());
        wanted.extend(indexes.map(|index| topic.partition(index)));
    }
    wanted
}

fn storages(replies: Vec<Reply>) -> Result<Vec<Storage>, Refusal> {
    replies.into_iter().map(|reply| reply_as!(DescribeStorage, reply)).collect()
}

/// A part of the directories would look like all of them. Versions 1 and 2 have a place for an
/// error only in a directory.
fn refused(error_code: ErrorCode) -> DescribeLogDirsResponse {
    let result = DescribeLogDirsResult { error_code, ..DescribeLogDirsResult::default() };
    DescribeLogDirsResponse {
        error_code,
        results: vec![result],
        ..DescribeLogDirsResponse::default()
    }
}

#[derive(Debug)]
struct Directory<'a> {
    total: u64,
    usable: u64,
    /// Sizes by topic name and partition index.
    topics: BTreeMap<&'a str, BTreeMap<u32, u64>>,
}

fn results(
    routes: &Routes,
    storages: Vec<Storage>,
    wanted: Option<&HashSet<PartitionId>>,
) -> Vec<DescribeLogDirsResult> {
    let mut directories: BTreeMap<String, Directory<'_>> = BTreeMap::new();
    for storage in storages {
        let Storage { directory, total, usable, partitions } = storage;
        let directory = directories.entry(directory).or_insert_with(|| Directory {
            total,
            usable,
            topics: BTreeMap::new(),
        });
        for (partition, size) in partitions {
            let is_wanted = wanted.is_none_or(|wanted| wanted.contains(&partition));
            if let Some(topic) = routes.ids.get(&partition.topic).filter(|_| is_wanted) {
                let topic = directory.topics.entry(&topic.name).or_default();
                topic.insert(partition.index, size);
            }
        }
    }
    directories.into_iter().map(|(name, directory)| result(name, directory)).collect()
}

fn result(name: String, directory: Directory<'_>) -> DescribeLogDirsResult {
    let partition = |(index, size)| DescribeLogDirsPartition {
        partition_index: index as i32,
        partition_size: clamp(size),
        ..DescribeLogDirsPartition::default()
    };
    let topics =
        directory.topics.into_iter().map(|(name, partitions): (&str, BTreeMap<u32, u64>)| {
            DescribeLogDirsTopicResponse {
                name: Text::from(name),
                partitions: partitions.into_iter().map(partition).collect(),
            }
        });
    DescribeLogDirsResult {
        error_code: ErrorCode::None,
        log_dir: name.into(),
        topics: topics.collect(),
        total_bytes: clamp(directory.total),
        usable_bytes: clamp(directory.usable),
    }
}

fn clamp(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use tidemill_wal::format::{ShardId, TopicId};

    use super::super::drive::Node;
    use super::*;

    fn reply(node: &Node, directory: &str, shard: ShardId) -> Reply {
        let (orders, audit) = (node.topic("orders"), node.topic("audit"));
        let gone = PartitionId { topic: TopicId([9; 16]), index: 0 };
        let partitions = match shard.0 {
            0 => vec![(orders.partition(0), 10), (orders.partition(2), 30), (gone, 1)],
            _ => vec![(orders.partition(1), 20), (audit.partition(0), 5)],
        };
        let directory = directory.to_owned();
        Reply::DescribeStorage(Storage { directory, total: 1000, usable: 900, partitions })
    }

    fn rows(result: &DescribeLogDirsResult) -> Vec<(&str, i32, i64)> {
        (result.topics.iter())
            .flat_map(|topic| topic.partitions.iter().map(|row| (topic.name.as_str(), row)))
            .map(|(name, row)| (name, row.partition_index, row.partition_size))
            .collect()
    }

    #[test]
    fn shards_in_one_directory_are_told_as_one() {
        let node = Node::new();
        for version in 1..=4 {
            let request = DescribeLogDirsRequest { topics: None };
            let response = node.call(version, request, |shard, _| reply(&node, "data", shard));
            assert_eq!(response.results.len(), 1);
            let result = &response.results[0];
            let expected =
                [("audit", 0, 5), ("orders", 0, 10), ("orders", 1, 20), ("orders", 2, 30)];
            assert_eq!(rows(result), expected);
            assert_eq!(result.log_dir, "data");
            assert_eq!(result.total_bytes, if version >= 4 { 1000 } else { -1 });
        }
    }

    #[test]
    fn only_partitions_asked_for_are_told() {
        let node = Node::new();
        let topic = |name: &str, partitions: &[i32]| DescribeLogDirsTopic {
            topic: name.into(),
            partitions: partitions.to_vec(),
        };
        let topics = Some(vec![topic("orders", &[1, 2, 8]), topic("gone", &[0])]);
        let response = node.call(4, DescribeLogDirsRequest { topics }, |shard, _| {
            reply(&node, if shard.0 == 0 { "a" } else { "b" }, shard)
        });
        assert_eq!(rows(&response.results[0]), [("orders", 2, 30)]);
        assert_eq!(rows(&response.results[1]), [("orders", 1, 20)]);
    }

    #[test]
    fn a_broker_of_one_shard_tells_what_that_shard_stores() {
        let node = Node::with_ports();
        let request = DescribeLogDirsRequest { topics: None };
        let response = node.call(4, request, |shard, _| {
            assert_eq!(shard, node.world.facts.shard);
            reply(&node, "data", shard)
        });
        assert_eq!(rows(&response.results[0]).len(), 2);
    }

    #[test]
    fn a_refusal_has_a_place_in_every_version() {
        for version in 1..=4 {
            let request = DescribeLogDirsRequest { topics: None };
            let response = Node::new().call(version, request, |_, _| Reply::Refused(Refusal::Busy));
            assert_eq!(response.results[0].error_code, ErrorCode::RequestTimedOut);
            if version >= 3 {
                assert_eq!(response.error_code, ErrorCode::RequestTimedOut);
            }
        }
    }
}
