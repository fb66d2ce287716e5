//! ListOffsets: the ends of partitions, and the first record at or after a time.
//!
//! A shard finds the batch; the record in it is found here, whatever the codec, so that the offset
//! is exact.

use std::collections::HashSet;

use bytes::Bytes;
use tidemill_wal::format::TopicId;

use super::scatter::{Gather, Place, Scatter};
use super::{
    LEADER_EPOCH, Step, ask, check_leader_epoch, decode, find_partition, find_topic, first_error,
    head_of, reply_as, respond,
};
use crate::batch::{Compression, Record, RecordBatch, RecordIter};
use crate::command::{Command, OffsetAnswer, OffsetAt, OffsetQuery, Refusal};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{
    ListOffsetsPartitionResponse, ListOffsetsRequest, ListOffsetsResponse, ListOffsetsTopicResponse,
};
use crate::kafka::session::Context;
use crate::kafka::wire::Text;

/// More than this no batch is decompressed to: the answer is its first record then.
const DECOMPRESSED_SIZE_MAX: usize = 16 << 20;

/// More than this one request does not decompress in all: some 100 ms of the shard's time. The
/// answer for further batches is their first record.
const DECOMPRESSED_TOTAL_MAX: usize = 64 << 20;

/// What a time in a request means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    At(OffsetAt),
    /// An end of what is stored elsewhere: there is no tiered storage, so there is none.
    Nowhere,
}

/// A negative time stands for an end, from some version on.
fn meaning(timestamp: i64, version: i16) -> Result<Meaning, ErrorCode> {
    let (meaning, from) = match timestamp {
        0.. => (Meaning::At(OffsetAt::Time(timestamp)), 0),
        -1 => (Meaning::At(OffsetAt::Latest), 0),
        -2 => (Meaning::At(OffsetAt::Earliest), 0),
        -3 => (Meaning::At(OffsetAt::MaxTimestamp), 7),
        -4 => (Meaning::At(OffsetAt::Earliest), 8), // Of what is on this node: everything.
        -5 => (Meaning::Nowhere, 9),                // The latest that is tiered.
        -6 => (Meaning::Nowhere, 11),               // The earliest still to be tiered.
        _ => return Err(ErrorCode::UnsupportedVersion),
    };
    if version < from { Err(ErrorCode::UnsupportedVersion) } else { Ok(meaning) }
}

/// What became of one partition.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Nowhere,
    End(Place),
    /// The log's start comes along: it may lie inside the batch that is found.
    Record {
        start: Place,
        at: OffsetAt,
        place: Place,
    },
}

struct Topic {
    name: Text,
    partitions: Vec<(i32, Result<Asked, ErrorCode>)>,
}

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    let wanted = decode!(cx, request, ListOffsetsRequest);
    let mut scatter = Scatter::new();
    let mut seen = HashSet::new();
    let mut topics = Vec::with_capacity(wanted.topics.len());
    for topic in wanted.topics {
        let route = find_topic(cx.routes, false, &topic.name, TopicId::default());
        let partitions = topic.partitions.iter().map(|wanted| {
            let asked = route.and_then(|route| {
                let meaning = meaning(wanted.timestamp, request.version)?;
                let index = find_partition(route, wanted.partition_index)?;
                check_leader_epoch(wanted.current_leader_epoch)?;
                let partition = route.partition(index);
                if !seen.insert(partition) {
                    return Err(ErrorCode::InvalidRequest);
                }
                let mut ask =
                    |at| scatter.add(route.shard_of(index), OffsetQuery { partition, at });
                Ok(match meaning {
                    Meaning::Nowhere => Asked::Nowhere,
                    Meaning::At(at @ (OffsetAt::Earliest | OffsetAt::Latest)) => {
                        Asked::End(ask(at))
                    }
                    Meaning::At(at @ (OffsetAt::MaxTimestamp | OffsetAt::Time(_))) => {
                        Asked::Record { start: ask(OffsetAt::Earliest), at, place: ask(at) }
                    }
                })
            });
            (wanted.partition_index, asked)
        });
        let partitions = partitions.collect();
        topics.push(Topic { name: topic.name, partitions });
    }
    let head = head_of(request);
    ask(scatter.into_commands(Command::ListOffsets), move |_, replies| {
        let results = Gather::new(replies.into_iter().map(|reply| reply_as!(ListOffsets, reply)));
        finish(&head, topics, results)
    })
}

fn finish(
    request: &RequestFrame,
    topics: Vec<Topic>,
    mut results: Gather<Result<OffsetAnswer, Refusal>>,
) -> Step {
    let mut responses = Vec::with_capacity(topics.len());
    let mut error = None;
    let mut room = DECOMPRESSED_TOTAL_MAX;
    for topic in topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for (index, asked) in topic.partitions {
            let found = asked.and_then(|asked| {
                found(asked, &mut results, &mut room).map_err(ErrorCode::for_read)
            });
            let response = partition_response(index, found);
            error = error.or_else(|| first_error([response.error_code]));
            partitions.push(response);
        }
        responses.push(ListOffsetsTopicResponse { name: topic.name, partitions });
    }
    let response = ListOffsetsResponse { topics: responses, ..Default::default() };
    respond::<ListOffsetsRequest>(request, &response, error)
}

/// An offset, with the timestamp of its record or -1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    offset: u64,
    timestamp_ms: i64,
}

fn found(
    asked: Asked,
    results: &mut Gather<Result<OffsetAnswer, Refusal>>,
    room: &mut usize,
) -> Result<Option<Found>, Refusal> {
    let mut take = |place| results.take(place).flatten();
    let (answer, start, at) = match asked {
        Asked::Nowhere => return Ok(None),
        Asked::End(place) => (take(place)?, 0, None),
        Asked::Record { start, at, place } => {
            let start = match take(start)? {
                OffsetAnswer::Offset(start) => start,
                OffsetAnswer::InBatch(_) | OffsetAnswer::None => 0,
            };
            (take(place)?, start, Some(at))
        }
    };
    Ok(match (answer, at) {
        (OffsetAnswer::None, _) => None,
        (OffsetAnswer::Offset(offset), _) => Some(Found { offset, timestamp_ms: -1 }),
        (OffsetAnswer::InBatch(batch), Some(at)) => Some(look_inside(&batch, at, start, room)),
        (OffsetAnswer::InBatch(batch), None) => Some(first_of(&batch, start)),
    })
}

/// The record in a batch that was asked for. Whatever cannot be read or found leads to the batch's
/// first: who begins there misses nothing. What is decompressed, or tried to be, is taken off
/// `room`.
fn look_inside(batch: &RecordBatch, at: OffsetAt, start: u64, room: &mut usize) -> Found {
    let size_max = match batch.compression() {
        Compression::None => DECOMPRESSED_SIZE_MAX,
        _ => DECOMPRESSED_SIZE_MAX.min(*room),
    };
    let decompressed = batch.decompress(size_max);
    if batch.compression() != Compression::None {
        *room -= decompressed.as_ref().map_or(size_max, Bytes::len);
    }
    let Ok(decompressed) = decompressed else { return first_of(batch, start) };
    let records = RecordIter::new(batch, decompressed);
    let mut records = records.map_while(Result::ok).filter(|record| record.offset >= start);
    let record: Option<Record> = match at {
        OffsetAt::Time(time_ms) => records.find(|record| record.timestamp_ms >= time_ms),
        // The first of several: `max_by_key` would be the last.
        OffsetAt::MaxTimestamp => {
            records.reduce(
                |max, record| {
                    if record.timestamp_ms > max.timestamp_ms { record } else { max }
                },
            )
        }
        OffsetAt::Earliest | OffsetAt::Latest => None,
    };
    let found = |record: Record| Found { offset: record.offset, timestamp_ms: record.timestamp_ms };
    record.map_or_else(|| first_of(batch, start), found)
}

fn first_of(batch: &RecordBatch, start: u64) -> Found {
    Found { offset: batch.base_offset().max(start), timestamp_ms: batch.base_timestamp_ms() }
}

fn partition_response(
    partition_index: i32,
    found: Result<Option<Found>, ErrorCode>,
) -> ListOffsetsPartitionResponse {
    let response = ListOffsetsPartitionResponse { partition_index, ..Default::default() };
    match found {
        Ok(Some(found)) => ListOffsetsPartitionResponse {
            timestamp: found.timestamp_ms,
            offset: found.offset as i64,
            leader_epoch: LEADER_EPOCH,
            ..response
        },
        Ok(None) => response,
        Err(error_code) => ListOffsetsPartitionResponse { error_code, ..response },
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{World, answer, asked};
    use super::*;
    use crate::batch::{BatchBuilder, HEADER_SIZE, NewRecord, stamp, stamp_append_time};
    use crate::command::Reply;
    use crate::kafka::messages::{ListOffsetsPartition, ListOffsetsTopic};

    fn request(name: &str, partitions: &[(i32, i64)]) -> ListOffsetsRequest {
        let partitions = partitions.iter().map(|&(partition_index, timestamp)| {
            ListOffsetsPartition { partition_index, timestamp, ..Default::default() }
        });
        let topic = ListOffsetsTopic { name: name.into(), partitions: partitions.collect() };
        ListOffsetsRequest { topics: vec![topic], ..Default::default() }
    }

    /// Three records at offset 10, in the order 100, 300, 300 ms.
    fn batch() -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        for timestamp_ms in [100, 300, 300] {
            let value = Some(&b"value"[..]);
            builder.push(NewRecord { timestamp_ms, value, ..Default::default() });
        }
        let mut bytes = builder.build().into_bytes().to_vec();
        stamp(&mut bytes, 10, 0);
        bytes
    }

    fn in_batch(bytes: Vec<u8>) -> OffsetAnswer {
        OffsetAnswer::InBatch(RecordBatch::stored(bytes.into()).unwrap())
    }

    /// The answer's error, offset and timestamp for one query.
    fn check(version: i16, timestamp: i64, replies: Vec<OffsetAnswer>) -> (ErrorCode, i64, i64) {
        let world = World::new().with_topic("a", 1);
        let (commands, then) = asked(world.handle(version, &request("a", &[(0, timestamp)])));
        let reply = Reply::ListOffsets(replies.into_iter().map(Ok).collect());
        let replies = commands.iter().map(|_| reply.clone()).collect();
        let (response, _) = answer::<ListOffsetsRequest>(version, then(&world.context(), replies));
        let partition = &response.topics[0].partitions[0];
        if version >= 4 {
            let is_found = partition.offset >= 0;
            assert_eq!(partition.leader_epoch, if is_found { 0 } else { -1 });
        }
        (partition.error_code, partition.offset, partition.timestamp)
    }

    #[test]
    fn ends_are_offsets_without_a_time() {
        for version in 1..=11 {
            for timestamp in [-1, -2] {
                let end = vec![OffsetAnswer::Offset(7)];
                assert_eq!(check(version, timestamp, end), (ErrorCode::None, 7, -1), "{version}");
            }
        }
        assert_eq!(check(8, -4, vec![OffsetAnswer::Offset(7)]), (ErrorCode::None, 7, -1));
    }

    #[test]
    fn what_would_be_tiered_is_nowhere() {
        assert_eq!(check(9, -5, vec![]), (ErrorCode::None, -1, -1));
        assert_eq!(check(11, -6, vec![]), (ErrorCode::None, -1, -1));
    }

    #[test]
    fn a_negative_time_means_something_only_from_its_version_on() {
        let unsupported = (ErrorCode::UnsupportedVersion, -1, -1);
        for (version, timestamp) in [(6, -3), (7, -4), (8, -5), (10, -6), (11, -7), (11, i64::MIN)]
        {
            assert_eq!(check(version, timestamp, vec![]), unsupported, "{timestamp}");
        }
    }

    #[test]
    fn a_time_is_the_first_record_in_the_batch_that_is_not_older() {
        for (time, start, offset, timestamp) in [
            (50, 0, 10, 100),
            (100, 0, 10, 100),
            (101, 0, 11, 300),
            (300, 0, 11, 300),
            (50, 12, 12, 300),
        ] {
            let answers = vec![OffsetAnswer::Offset(start), in_batch(batch())];
            assert_eq!(check(1, time, answers), (ErrorCode::None, offset, timestamp), "{time}");
        }
        let none = vec![OffsetAnswer::Offset(0), OffsetAnswer::None];
        assert_eq!(check(1, 301, none), (ErrorCode::None, -1, -1));
    }

    #[test]
    fn the_largest_time_is_its_first_record() {
        for (start, offset) in [(0, 11), (12, 12)] {
            let answers = vec![OffsetAnswer::Offset(start), in_batch(batch())];
            assert_eq!(check(7, -3, answers), (ErrorCode::None, offset, 300));
        }
        let empty = vec![OffsetAnswer::Offset(0), OffsetAnswer::None];
        assert_eq!(check(7, -3, empty), (ErrorCode::None, -1, -1));
    }

    #[test]
    fn the_time_of_appending_is_that_of_all_records() {
        let mut bytes = batch();
        stamp_append_time(&mut bytes, 5000);
        let answers = vec![OffsetAnswer::Offset(0), in_batch(bytes)];
        assert_eq!(check(1, 400, answers), (ErrorCode::None, 10, 5000));
    }

    #[test]
    fn compressed_batches_are_looked_into() {
        let plain = batch();
        let snappy = snap::raw::Encoder::new().compress_vec(&plain[HEADER_SIZE..]).unwrap();
        let mut bytes = [&plain[..HEADER_SIZE], &snappy].concat();
        bytes[22] = 2; // Codec, in the attributes.
        let length = (bytes.len() - 12) as i32;
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        let answers = vec![OffsetAnswer::Offset(0), in_batch(bytes.clone())];
        assert_eq!(check(1, 200, answers), (ErrorCode::None, 11, 300));

        // What a client compressed wrongly is led to its beginning.
        bytes[22] = 4;
        let answers = vec![OffsetAnswer::Offset(0), in_batch(bytes)];
        assert_eq!(check(1, 200, answers), (ErrorCode::None, 10, 100));
    }

    #[test]
    fn faults_are_told_for_each_partition() {
        let world = World::new().with_topic("a", 4);
        let mut wanted = request("a", &[(0, -1), (1, -1), (2, -1), (2, -1), (9, -1), (3, -1)]);
        wanted.topics[0].partitions[5].current_leader_epoch = 4;
        wanted.topics.extend(request("b", &[(0, -1)]).topics);
        let (commands, then) = asked(world.handle(5, &wanted));
        assert_eq!(commands.len(), 2);
        let replies = vec![
            Reply::ListOffsets(vec![Ok(OffsetAnswer::Offset(1)), Err(Refusal::Storage)]),
            Reply::Refused(Refusal::Busy),
        ];
        let (response, error) = answer::<ListOffsetsRequest>(5, then(&world.context(), replies));
        let partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
        let trace: Vec<_> =
            partitions.map(|p| (p.partition_index, p.error_code, p.offset)).collect();
        let expected = [
            (0, ErrorCode::None, 1),
            (1, ErrorCode::NotLeaderOrFollower, -1),
            (2, ErrorCode::KafkaStorageError, -1),
            (2, ErrorCode::InvalidRequest, -1),
            (9, ErrorCode::UnknownTopicOrPartition, -1),
            (3, ErrorCode::UnknownLeaderEpoch, -1),
            (0, ErrorCode::UnknownTopicOrPartition, -1),
        ];
        assert_eq!(trace, expected);
        assert_eq!(error, Some(ErrorCode::NotLeaderOrFollower));
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let zeros = vec![0; DECOMPRESSED_SIZE_MAX + 1];
        let snappy = snap::raw::Encoder::new().compress_vec(&zeros).unwrap();
        let mut bytes = [&batch()[..HEADER_SIZE], &snappy].concat();
        bytes[22] = 2;
        let length = (bytes.len() - 12) as i32;
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        let batch = RecordBatch::stored(Bytes::from(bytes)).unwrap();
        let mut room = DECOMPRESSED_TOTAL_MAX;
        let found = look_inside(&batch, OffsetAt::Time(200), 0, &mut room);
        assert_eq!(found, Found { offset: 10, timestamp_ms: 100 });
        assert_eq!(room, DECOMPRESSED_TOTAL_MAX - DECOMPRESSED_SIZE_MAX, "trying is paid for");
    }
}
