//! Produce: checked batches to their shards, and where they went.
//!
//! Every partition fails or succeeds by itself. A batch is checked here, on the connection's own
//! shard, so that damage never travels; the partition's shard decides the rest.

use std::collections::HashSet;

use bytes::Bytes;
use tidemill_wal::format::{PartitionId, TopicId};

use super::scatter::{Gather, Place, Scatter};
use super::{
    Answer, Step, ask, decode, find_partition, find_topic, first_error, head_of, is_internal,
    reply_as, respond,
};
use crate::batch::{BatchFault, Compression, RecordBatch};
use crate::command::{Appended, Command, Produce, Refusal, TopicRoute};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::{CloseReason, RequestFrame};
use crate::kafka::messages::{
    ProducePartitionResponse, ProduceRequest, ProduceResponse, ProduceTopicResponse,
};
use crate::kafka::session::Context;
use crate::kafka::wire::Text;

/// A larger request becomes several commands: a frame of the WAL aims at 1 MiB and a shard decides
/// between commands, not inside one, what fits.
const COMMAND_SIZE_MAX: usize = 4 << 20;

/// First version that names topics by id.
const IDS_FROM: i16 = 13;

/// First version whose clients can read zstd, and so may write it (KIP-110).
const ZSTD_FROM: i16 = 7;

/// Why a batch was not appended.
#[derive(Debug, Clone)]
struct Fault {
    code: ErrorCode,
    /// Words, where the code has none or says something else.
    message: Option<Text>,
}

impl Fault {
    fn new(code: ErrorCode, message: impl Into<Text>) -> Self {
        Self { code, message: Some(message.into()) }
    }
}

impl From<ErrorCode> for Fault {
    fn from(code: ErrorCode) -> Self {
        Self { code, message: None }
    }
}

impl From<BatchFault> for Fault {
    fn from(fault: BatchFault) -> Self {
        let code = match fault {
            BatchFault::Short { .. } | BatchFault::Length { .. } | BatchFault::Checksum { .. } => {
                ErrorCode::CorruptMessage
            }
            BatchFault::Magic { .. } => ErrorCode::UnsupportedForMessageFormat,
            BatchFault::Compression { .. } => ErrorCode::UnsupportedCompressionType,
            BatchFault::Transactional => ErrorCode::InvalidRequest,
            BatchFault::RecordCount { .. }
            | BatchFault::Control
            | BatchFault::Attributes { .. }
            | BatchFault::Producer { .. } => ErrorCode::InvalidRecord,
        };
        Self::new(code, fault.to_string())
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        // The codes that these have to borrow speak of replicas.
        const WORDS: [(Refusal, &str); 3] = [
            (Refusal::Busy, "too much is waiting for the disk; try again"),
            (Refusal::DiskFull, "the disk is full; try again when there is room"),
            (Refusal::Stopping, "the node is stopping"),
        ];
        let words = WORDS.iter().find(|(known, _)| *known == refusal);
        Self { code: refusal.into(), message: words.map(|(_, words)| (*words).into()) }
    }
}

/// One topic of the request, with what became of its partitions.
struct Topic {
    name: Text,
    id: TopicId,
    partitions: Vec<(i32, Result<Place, Fault>)>,
}

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    let wanted = decode!(cx, request, ProduceRequest);
    let fault_of_all = if !matches!(wanted.acks, -1..=1) {
        Some(ErrorCode::InvalidRequiredAcks.into())
    } else if wanted.transactional_id.is_some() {
        Some(Fault::new(ErrorCode::InvalidRequest, "transactions are not supported"))
    } else {
        None
    };
    let version = request.version;
    let mut plan = Plan::default();
    let mut topics = Vec::with_capacity(wanted.topic_data.len());
    for topic in wanted.topic_data {
        let route = find_topic(cx.routes, version >= IDS_FROM, &topic.name, topic.topic_id);
        let partitions = topic.partition_data.into_iter().map(|partition| {
            let place = match (&fault_of_all, route) {
                (Some(fault), _) => Err(fault.clone()),
                (None, Ok(route)) if is_internal(&route.name) => {
                    Err(Fault::new(ErrorCode::InvalidTopic, "clients cannot write to this topic"))
                }
                (None, Err(code)) => Err(code.into()),
                (None, Ok(route)) => plan.add(version, route, partition.index, partition.records),
            };
            (partition.index, place)
        });
        let partitions = partitions.collect();
        topics.push(Topic { name: topic.name, id: topic.topic_id, partitions });
    }
    let is_answered = wanted.acks != 0;
    let head = head_of(request);
    let commands = plan.scatter.into_commands(|batches| Command::Produce(Produce { batches }));
    ask(commands, move |_, replies| {
        let results = Gather::new(replies.into_iter().map(|reply| reply_as!(Produce, reply)));
        finish(&head, is_answered, topics, results)
    })
}

/// What goes to which shard.
struct Plan {
    scatter: Scatter<(PartitionId, RecordBatch)>,
    /// Bytes of the newest command of each shard, by its index.
    sizes: Vec<usize>,
    seen: HashSet<PartitionId>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { scatter: Scatter::new(), sizes: Vec::new(), seen: HashSet::new() }
    }
}

impl Plan {
    fn add(
        &mut self,
        version: i16,
        route: &TopicRoute,
        index: i32,
        records: Option<Bytes>,
    ) -> Result<Place, Fault> {
        let index = find_partition(route, index)?;
        let partition = route.partition(index);
        if self.seen.contains(&partition) {
            let message = "the request names this partition twice";
            return Err(Fault::new(ErrorCode::InvalidRequest, message));
        }
        let Some(records) = records else {
            return Err(Fault::new(ErrorCode::InvalidRecord, "no record batch"));
        };
        let (size, size_max) = (records.len(), route.config.batch_size_max as usize);
        if size > size_max {
            let message = format!("{size} bytes, max.message.bytes of the topic is {size_max}");
            return Err(Fault::new(ErrorCode::MessageTooLarge, message));
        }
        let batch = RecordBatch::check(records)?;
        if batch.compression() == Compression::Zstd && version < ZSTD_FROM {
            let message = "zstd needs version 7 of Produce";
            return Err(Fault::new(ErrorCode::UnsupportedCompressionType, message));
        }
        self.seen.insert(partition);
        let shard = route.shard_of(index);
        let at = usize::from(shard.0);
        if self.sizes.len() <= at {
            self.sizes.resize(at + 1, 0);
        }
        if self.sizes[at] + size > COMMAND_SIZE_MAX {
            self.scatter.cut(shard);
            self.sizes[at] = 0;
        }
        self.sizes[at] += size;
        Ok(self.scatter.add(shard, (partition, batch)))
    }
}

fn finish(
    request: &RequestFrame,
    is_answered: bool,
    topics: Vec<Topic>,
    mut results: Gather<Result<Appended, Refusal>>,
) -> Step {
    let mut responses = Vec::with_capacity(topics.len());
    let mut error = None;
    for topic in topics {
        let mut partition_responses = Vec::with_capacity(topic.partitions.len());
        for (index, place) in topic.partitions {
            let result = place.and_then(|place| results.take(place).flatten().map_err(Fault::from));
            let response = partition_response(index, result);
            error = error.or_else(|| first_error([response.error_code]));
            partition_responses.push(response);
        }
        let (name, topic_id) = (topic.name, topic.id);
        responses.push(ProduceTopicResponse { name, topic_id, partition_responses });
    }
    match error {
        _ if is_answered => {
            let response = ProduceResponse { responses, ..Default::default() };
            respond::<ProduceRequest>(request, &response, error)
        }
        None => Step::Respond(Answer { pieces: None, error }),
        Some(error) => Step::Close(CloseReason::Unacknowledged { error }),
    }
}

fn partition_response(index: i32, result: Result<Appended, Fault>) -> ProducePartitionResponse {
    match result {
        Ok(appended) => ProducePartitionResponse {
            index,
            base_offset: appended.base_offset as i64,
            log_append_time_ms: appended.append_time_ms.unwrap_or(-1),
            log_start_offset: appended.start as i64,
            ..Default::default()
        },
        Err(fault) => ProducePartitionResponse {
            index,
            error_code: fault.code,
            base_offset: -1,
            error_message: fault.message,
            ..Default::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use tidemill_wal::format::ShardId;

    use super::super::OFFSETS_TOPIC;
    use super::super::testing::{World, answer, asked, topic_id};
    use super::*;
    use crate::batch::{BatchBuilder, NewRecord};
    use crate::command::Reply;
    use crate::kafka::messages::{ProducePartition, ProduceTopic};

    fn batch(size: usize) -> Bytes {
        let mut builder = BatchBuilder::new();
        builder.push(NewRecord { value: Some(&vec![b'x'; size]), ..Default::default() });
        builder.build().into_bytes()
    }

    /// Partitions of a topic with what is sent to them.
    type Batches<'a> = &'a [(i32, Option<Bytes>)];

    fn request(acks: i16, topics: &[(&str, Batches<'_>)]) -> ProduceRequest {
        let topics = topics.iter().map(|(name, partitions)| ProduceTopic {
            name: (*name).into(),
            topic_id: topic_id(name),
            partition_data: partitions
                .iter()
                .map(|(index, records)| ProducePartition {
                    index: *index,
                    records: records.clone(),
                })
                .collect(),
        });
        let topic_data = topics.collect();
        ProduceRequest { acks, timeout_ms: 1000, topic_data, ..Default::default() }
    }

    fn world() -> World {
        World::new().with_topic("a", 4)
    }

    /// Shards and partition indexes of commands.
    fn trace(commands: &[(ShardId, Command)]) -> Vec<(u16, Vec<u32>)> {
        let commands = commands.iter().map(|(shard, command)| {
            let Command::Produce(produce) = command else { panic!("{command:?}") };
            (shard.0, produce.batches.iter().map(|(partition, _)| partition.index).collect())
        });
        commands.collect()
    }

    fn appended(base_offset: u64) -> Result<Appended, Refusal> {
        Ok(Appended { base_offset, append_time_ms: None, start: 3 })
    }

    /// Error codes and base offsets in the order of the answer.
    fn outcome(response: &ProduceResponse) -> Vec<(i32, ErrorCode, i64)> {
        let partitions = response.responses.iter().flat_map(|topic| &topic.partition_responses);
        partitions.map(|p| (p.index, p.error_code, p.base_offset)).collect()
    }

    #[test]
    fn batches_go_to_their_shards_and_offsets_come_back_in_the_clients_order() {
        let world = world();
        for version in 3..=13 {
            let partitions = [(3, Some(batch(1))), (0, Some(batch(2))), (1, Some(batch(3)))];
            let wanted = request(-1, &[("a", &partitions)]);
            let (commands, then) = asked(world.handle(version, &wanted));
            assert_eq!(trace(&commands), [(1, vec![3, 1]), (0, vec![0])]);
            let replies = vec![
                Reply::Produce(vec![appended(30), appended(10)]),
                Reply::Produce(vec![appended(5)]),
            ];
            let step = then(&world.context(), replies);
            let (response, error) = answer::<ProduceRequest>(version, step);
            let ok = ErrorCode::None;
            assert_eq!(outcome(&response), [(3, ok, 30), (0, ok, 5), (1, ok, 10)]);
            assert_eq!(error, None);
            let first = &response.responses[0];
            assert_eq!(first.partition_responses[0].log_append_time_ms, -1);
            if version >= 5 {
                assert_eq!(first.partition_responses[0].log_start_offset, 3);
            }
            match version {
                13 => assert_eq!(first.topic_id, topic_id("a")),
                _ => assert_eq!(&*first.name, "a"),
            }
        }
    }

    #[test]
    fn one_partitions_fault_does_not_keep_the_others() {
        let world = world();
        let mut damaged = batch(9).to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        let partitions = [
            (0, Some(damaged.into())),
            (1, Some(batch(1))),
            (1, Some(batch(1))),
            (2, None),
            (3, Some(Bytes::new())),
            (4, Some(batch(1))),
            (-1, Some(batch(1))),
        ];
        let unknown = [(0, Some(batch(1)))];
        let wanted = request(1, &[("a", &partitions), ("b", &unknown)]);
        let (commands, then) = asked(world.handle(8, &wanted));
        assert_eq!(trace(&commands), [(1, vec![1])]);
        let step = then(&world.context(), vec![Reply::Produce(vec![appended(7)])]);
        let (response, error) = answer::<ProduceRequest>(8, step);
        let expected = [
            (0, ErrorCode::CorruptMessage, -1),
            (1, ErrorCode::None, 7),
            (1, ErrorCode::InvalidRequest, -1),
            (2, ErrorCode::InvalidRecord, -1),
            (3, ErrorCode::CorruptMessage, -1),
            (4, ErrorCode::UnknownTopicOrPartition, -1),
            (-1, ErrorCode::UnknownTopicOrPartition, -1),
            (0, ErrorCode::UnknownTopicOrPartition, -1),
        ];
        assert_eq!(outcome(&response), expected);
        assert_eq!(error, Some(ErrorCode::CorruptMessage));
        let message = response.responses[0].partition_responses[0].error_message.as_deref();
        assert!(message.unwrap().starts_with("checksum"), "{message:?}");
        assert_eq!(response.responses[0].partition_responses[1].error_message, None);
    }

    #[test]
    fn the_nodes_own_topics_take_no_records() {
        let world = World::new().with_topic(OFFSETS_TOPIC, 1);
        let partitions = [(0, Some(batch(1)))];
        let wanted = request(1, &[(OFFSETS_TOPIC, &partitions)]);
        let (commands, then) = asked(world.handle(8, &wanted));
        assert!(commands.is_empty());
        let (response, _) = answer::<ProduceRequest>(8, then(&world.context(), Vec::new()));
        assert_eq!(outcome(&response), [(0, ErrorCode::InvalidTopic, -1)]);
    }

    #[test]
    fn an_unknown_id_is_told_apart_from_an_unknown_name() {
        let response = world().handle(13, &request(1, &[("b", &[(0, Some(batch(1)))])]));
        let (commands, then) = asked(response);
        assert!(commands.is_empty());
        let (response, _) = answer::<ProduceRequest>(13, then(&world().context(), Vec::new()));
        assert_eq!(outcome(&response), [(0, ErrorCode::UnknownTopicId, -1)]);
    }

    fn refused(version: i16, wanted: &ProduceRequest, replies: Vec<Reply>) -> (ErrorCode, String) {
        let world = world();
        let (commands, then) = asked(world.handle(version, wanted));
        assert_eq!(commands.len(), replies.len());
        let (response, error) = answer::<ProduceRequest>(version, then(&world.context(), replies));
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!(error, Some(partition.error_code));
        let message = partition.error_message.as_deref().unwrap_or("").to_owned();
        (partition.error_code, message)
    }

    #[test]
    fn a_shards_refusal_is_told_for_each_batch_or_for_all() {
        let wanted = request(1, &[("a", &[(0, Some(batch(1)))])]);
        let full = Reply::Produce(vec![Err(Refusal::DiskFull)]);
        let told = (ErrorCode::NotEnoughReplicas, "the disk is full; try again when there is room");
        assert_eq!(refused(8, &wanted, vec![full]), (told.0, told.1.into()));
        let gap = Reply::Produce(vec![Err(Refusal::OutOfOrderSequence)]);
        let told = (ErrorCode::OutOfOrderSequenceNumber, String::new());
        assert_eq!(refused(8, &wanted, vec![gap]), told);
        let stopping = vec![Reply::Refused(Refusal::Stopping)];
        let told = (ErrorCode::NotLeaderOrFollower, "the node is stopping".into());
        assert_eq!(refused(8, &wanted, stopping), told);
    }

    #[test]
    fn what_is_not_served_is_refused_before_a_shard_is_asked() {
        let wanted = request(2, &[("a", &[(0, Some(batch(1)))])]);
        assert_eq!(refused(3, &wanted, vec![]).0, ErrorCode::InvalidRequiredAcks);
        let mut wanted = request(-1, &[("a", &[(0, Some(batch(1)))])]);
        wanted.transactional_id = Some("t".into());
        assert_eq!(refused(3, &wanted, vec![]).0, ErrorCode::InvalidRequest);
        let wanted = request(-1, &[("a", &[(0, Some(batch(1 << 20)))])]);
        assert_eq!(refused(3, &wanted, vec![]).0, ErrorCode::MessageTooLarge);
    }

    #[test]
    fn zstd_needs_a_version_whose_clients_can_read_it() {
        let mut zstd = batch(10).to_vec();
        zstd[22] = 4; // Codec, in the attributes.
        let checksum = crc32c::crc32c(&zstd[21..]);
        zstd[17..21].copy_from_slice(&checksum.to_be_bytes());
        let wanted = request(-1, &[("a", &[(0, Some(zstd.into()))])]);
        assert_eq!(refused(6, &wanted, vec![]).0, ErrorCode::UnsupportedCompressionType);
        let (commands, _) = asked(world().handle(7, &wanted));
        assert_eq!(commands.len(), 1);
    }

    #[test]
    fn a_large_request_becomes_several_commands_for_a_shard_in_order() {
        let world = World::new().with_topic("a", 20);
        let partitions: Vec<_> = (0..20).map(|index| (index, Some(batch(1_000_000)))).collect();
        let (commands, _) = asked(world.handle(9, &request(1, &[("a", &partitions)])));
        let expected = [
            (0, vec![0, 2, 4, 6]),
            (1, vec![1, 3, 5, 7]),
            (0, vec![8, 10, 12, 14]),
            (1, vec![9, 11, 13, 15]),
            (0, vec![16, 18]),
            (1, vec![17, 19]),
        ];
        assert_eq!(trace(&commands), expected);
    }

    #[test]
    fn without_acknowledgement_there_is_no_answer_but_the_end_of_the_connection() {
        let world = world();
        let wanted = request(0, &[("a", &[(0, Some(batch(1)))])]);
        let (_, then) = asked(world.handle(9, &wanted));
        let step = then(&world.context(), vec![Reply::Produce(vec![appended(1)])]);
        assert!(matches!(step, Step::Respond(Answer { pieces: None, error: None })));
        let (_, then) = asked(world.handle(9, &wanted));
        let step = then(&world.context(), vec![Reply::Produce(vec![Err(Refusal::Busy)])]);
        let error = ErrorCode::NotEnoughReplicas;
        assert!(
            matches!(step, Step::Close(reason) if reason == CloseReason::Unacknowledged { error })
        );
    }

    #[test]
    fn the_time_of_appending_is_told() {
        let world = world();
        let (_, then) = asked(world.handle(9, &request(1, &[("a", &[(0, Some(batch(1)))])])));
        let result = Appended { base_offset: 0, append_time_ms: Some(1234), start: 0 };
        let step = then(&world.context(), vec![Reply::Produce(vec![Ok(result)])]);
        let (response, _) = answer::<ProduceRequest>(9, step);
        assert_eq!(response.responses[0].partition_responses[0].log_append_time_ms, 1234);
    }
}
