//! A node's answer as the client reads it, compared with what the shards replied: each error,
//! offset and byte of it, in the order in which it was asked for.

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::{Buf, Bytes};
use kafka_protocol::messages::{
    ApiKey, CreatePartitionsResponse, CreateTopicsResponse, DeleteGroupsResponse,
    DeleteRecordsResponse, DeleteTopicsResponse, FetchResponse, HeartbeatResponse,
    IncrementalAlterConfigsResponse, InitProducerIdResponse, JoinGroupResponse, LeaveGroupResponse,
    ListOffsetsResponse, MetadataResponse, OffsetCommitResponse, OffsetDeleteResponse,
    OffsetFetchResponse, ProduceResponse, ResponseHeader, SyncGroupResponse,
};
use kafka_protocol::protocol::Decodable;
use tidemill::batch::RecordBatch;
use tidemill::command::{
    CatalogCommand, Command, CommittedOffset, GroupCommand, GroupReply, OffsetAnswer, OffsetAt,
    Refusal, Reply,
};
use tidemill::kafka::error_code::ErrorCode;
use tidemill_wal::format::{PartitionId, TopicId};

use super::request::{Piece, Request, grouped, partition_of};
use crate::sim::model::Check;

/// What a group's reply of one kind holds, with Kafka's word for a refusal; another kind is an
/// error of the function that asks.
macro_rules! result_of {
    ($reply:expr, $kind:ident) => {
        match $reply {
            Ok(GroupReply::$kind(result)) => {
                result.as_ref().map_err(|refusal| ErrorCode::for_group(*refusal))
            }
            Ok(reply) => return Err(format!("a strange reply: {reply:?}")),
            Err(error) => Err(error),
        }
    };
}

/// No batch is larger, decompressed.
const RECORDS_SIZE_MAX: usize = 1 << 20;

/// The number of an answer.
pub fn number_of(frame: &Bytes) -> Option<u64> {
    let number = frame.first_chunk::<4>()?;
    Some(u64::from(u32::from_be_bytes(*number)))
}

fn same<T: PartialEq + Debug>(what: &str, got: T, due: T) -> Check {
    if got == due { Ok(()) } else { Err(format!("{what}: the answer has {got:?}, not {due:?}")) }
}

fn in_order<A, D>(what: &str, got: Vec<A>, due: Vec<D>) -> Result<Vec<(A, D)>, String> {
    same(&format!("count of {what}"), got.len(), due.len())?;
    Ok(got.into_iter().zip(due).collect())
}

fn code(result: Result<(), ErrorCode>) -> i16 {
    result.err().map_or(0, ErrorCode::code)
}

impl Request {
    /// Compares the answer, a frame without its length, with what is due.
    pub fn check_answer(&self, mut frame: Bytes) -> Check {
        self.compare(&mut frame).map_err(|why| {
            format!("{why}; asked was {:?} {}: {:?}", self.api, self.version, self.pieces)
        })
    }

    fn compare(&self, frame: &mut Bytes) -> Check {
        let header_version = self.api.response_header_version(self.version);
        let header = ResponseHeader::decode(frame, header_version)
            .map_err(|error| format!("an unreadable header: {error}"))?;
        same("the number", header.correlation_id, self.number as i32)?;
        match self.api {
            ApiKey::Produce => self.compare_produce(&self.body(frame)?),
            ApiKey::Fetch => self.compare_fetch(&self.body(frame)?),
            ApiKey::ListOffsets => self.compare_list_offsets(&self.body(frame)?),
            ApiKey::DeleteRecords => self.compare_delete_records(&self.body(frame)?),
            ApiKey::Metadata => self.compare_metadata(&self.body(frame)?),
            ApiKey::InitProducerId => self.compare_producer_id(&self.body(frame)?),
            _ => match &self.pieces[0].command {
                Command::Catalog(command) => self.compare_catalog(frame, command),
                Command::Group(command) => self.compare_group(frame, command),
                command => Err(format!("an answer to {command:?}")),
            },
        }
    }

    fn body<R: Decodable>(&self, frame: &mut Bytes) -> Result<R, String> {
        let body = R::decode(frame, self.version)
            .map_err(|error| format!("an unreadable answer: {error}"))?;
        same("bytes behind the answer", frame.remaining(), 0)?;
        Ok(body)
    }

    fn topic_name(&self, topic: TopicId) -> String {
        if self.is_by_id { String::new() } else { self.names[&topic].clone() }
    }

    fn topic_id(&self, topic: TopicId) -> TopicId {
        if self.is_by_id { topic } else { TopicId::default() }
    }

    fn compare_produce(&self, response: &ProduceResponse) -> Check {
        for (topic, (id, pieces)) in
            in_order("topics", response.responses.iter().collect(), self.by_topic())?
        {
            same("a topic", topic.name.0.as_str(), &self.topic_name(id))?;
            same("a topic's id", *topic.topic_id.as_bytes(), self.topic_id(id).0)?;
            let answers = topic.partition_responses.iter().collect();
            for (answer, piece) in in_order("partitions", answers, pieces)? {
                same("index", answer.index, partition_of(&piece.command).index as i32)?;
                let told = match &piece.told {
                    Some(Reply::Produce(results)) => results[0].map_err(ErrorCode::from),
                    told => Err(refused(piece, told.as_ref(), ErrorCode::from)?),
                };
                same("error", answer.error_code, told.err().map_or(0, ErrorCode::code))?;
                let appended = told.ok();
                let base = appended.map_or(-1, |appended| appended.base_offset as i64);
                same("base offset", answer.base_offset, base)?;
                let time_ms = appended.and_then(|appended| appended.append_time_ms);
                same("append time", answer.log_append_time_ms, time_ms.unwrap_or(-1))?;
                if self.version >= 5 {
                    let start = appended.map_or(-1, |appended| appended.start as i64);
                    same("start", answer.log_start_offset, start)?;
                }
            }
        }
        Ok(())
    }

    fn compare_fetch(&self, response: &FetchResponse) -> Check {
        same("error", response.error_code, 0)?;
        same("session", response.session_id, 0)?;
        for (topic, (id, pieces)) in
            in_order("topics", response.responses.iter().collect(), self.by_topic())?
        {
            same("a topic", topic.topic.0.as_str(), &self.topic_name(id))?;
            same("a topic's id", *topic.topic_id.as_bytes(), self.topic_id(id).0)?;
            for (answer, piece) in
                in_order("partitions", topic.partitions.iter().collect(), pieces)?
            {
                same("index", answer.partition_index, partition_of(&piece.command).index as i32)?;
                let told = match &piece.told {
                    Some(Reply::Fetch(results)) => match &results[0].records {
                        Ok(records) => Ok((&results[0], records.as_slice())),
                        Err(refusal) => Err(ErrorCode::for_read(*refusal)),
                    },
                    told => Err(refused(piece, told.as_ref(), ErrorCode::for_read)?),
                };
                let error = told.as_ref().err().map_or(0, |error| error.code());
                same("error", answer.error_code, error)?;
                let (start, end, records) = match told {
                    Ok((fetched, records)) => {
                        (fetched.start as i64, fetched.durable_end as i64, records)
                    }
                    Err(_) => (-1, -1, &[][..]),
                };
                same("high watermark", answer.high_watermark, end)?;
                if self.version >= 5 {
                    same("start", answer.log_start_offset, start)?;
                }
                let mut got = answer.records.clone().unwrap_or_default();
                let sizes = (got.len(), records.iter().map(Bytes::len).sum::<usize>());
                let is_same = sizes.0 == sizes.1
                    && records.iter().all(|piece| got.split_to(piece.len()) == *piece);
                if !is_same {
                    return Err(format!("other records: {} bytes, due are {}", sizes.0, sizes.1));
                }
            }
        }
        Ok(())
    }

    fn compare_list_offsets(&self, response: &ListOffsetsResponse) -> Check {
        for (topic, (id, pieces)) in
            in_order("topics", response.topics.iter().collect(), self.by_topic())?
        {
            same("a topic", topic.name.0.as_str(), &self.topic_name(id))?;
            for (answer, piece) in
                in_order("partitions", topic.partitions.iter().collect(), pieces)?
            {
                same("index", answer.partition_index, partition_of(&piece.command).index as i32)?;
                let due = self.offset_due(piece)?;
                same("error", answer.error_code, due.err().map_or(0, ErrorCode::code))?;
                let (offset, time_ms) = due.unwrap_or((-1, -1));
                same("offset", answer.offset, offset)?;
                same("timestamp", answer.timestamp, time_ms)?;
            }
        }
        Ok(())
    }

    /// Offset and timestamp that answer an offset query.
    fn offset_due(&self, piece: &Piece) -> Result<Result<(i64, i64), ErrorCode>, String> {
        let Command::ListOffsets(queries) = &piece.command else {
            return Err(format!("no offset query: {piece:?}"));
        };
        let results = match &piece.told {
            Some(Reply::ListOffsets(results)) => results,
            told => return Ok(Err(refused(piece, told.as_ref(), ErrorCode::for_read)?)),
        };
        if let Some(Err(refusal)) = results.iter().find(|result| result.is_err()) {
            return Ok(Err(ErrorCode::for_read(*refusal)));
        }
        let answers: Vec<&OffsetAnswer> = results.iter().flatten().collect();
        Ok(Ok(match (queries[0].at, answers.as_slice()) {
            (_, [.., OffsetAnswer::None]) => (-1, -1),
            (_, [.., OffsetAnswer::Offset(offset)]) => (*offset as i64, -1),
            (at, [OffsetAnswer::Offset(start), OffsetAnswer::InBatch(batch)]) => {
                record_due(batch, at, *start)?
            }
            (_, answers) => return Err(format!("a strange reply: {answers:?}")),
        }))
    }

    fn compare_delete_records(&self, response: &DeleteRecordsResponse) -> Check {
        for (topic, (id, pieces)) in
            in_order("topics", response.topics.iter().collect(), self.by_topic())?
        {
            same("a topic", topic.name.0.as_str(), &self.topic_name(id))?;
            for (answer, piece) in
                in_order("partitions", topic.partitions.iter().collect(), pieces)?
            {
                same("index", answer.partition_index, partition_of(&piece.command).index as i32)?;
                let told = match &piece.told {
                    Some(Reply::DeleteRecords(results)) => results[0].map_err(ErrorCode::for_read),
                    told => Err(refused(piece, told.as_ref(), ErrorCode::for_read)?),
                };
                same("error", answer.error_code, told.err().map_or(0, ErrorCode::code))?;
                same("start", answer.low_watermark, told.map_or(-1, |start| start as i64))?;
            }
        }
        Ok(())
    }

    /// All topics are told as the shard knew them when it took the request.
    fn compare_metadata(&self, response: &MetadataResponse) -> Check {
        let due: Vec<_> = self.routes.topics.values().collect();
        for (topic, due) in in_order("topics", response.topics.iter().collect(), due)? {
            same("error", topic.error_code, 0)?;
            let name = topic.name.as_ref().map(|name| name.0.as_str());
            same("a topic", name, Some(&*due.name))?;
            if self.version >= 10 {
                same("a topic's id", *topic.topic_id.as_bytes(), due.id.0)?;
            }
            let indexes: Vec<_> =
                topic.partitions.iter().map(|partition| partition.partition_index).collect();
            same("partitions", indexes, (0..due.partition_count as i32).collect())?;
        }
        same("brokers", response.brokers.len(), 1)
    }

    fn compare_producer_id(&self, response: &InitProducerIdResponse) -> Check {
        let piece = &self.pieces[0];
        let told = match &piece.told {
            Some(Reply::InitProducerId(result)) => result.map_err(producer_id_refusal),
            told => Err(refused(piece, told.as_ref(), producer_id_refusal)?),
        };
        same("error", response.error_code, told.err().map_or(0, ErrorCode::code))?;
        same("producer id", response.producer_id.0, told.unwrap_or(-1))?;
        same("producer epoch", response.producer_epoch, if told.is_ok() { 0 } else { -1 })
    }

    fn compare_catalog(&self, frame: &mut Bytes, command: &CatalogCommand) -> Check {
        let piece = &self.pieces[0];
        let change = match &piece.told {
            Some(Reply::Catalog(results)) => results[0].as_ref().map_err(|refused| {
                let code = ErrorCode::for_admin(refused.refusal);
                match code {
                    ErrorCode::UnknownTopicId if !self.is_by_id => {
                        ErrorCode::UnknownTopicOrPartition
                    }
                    code => code,
                }
            }),
            told => Err(refused(piece, told.as_ref(), ErrorCode::for_admin)?),
        };
        let error = change.as_ref().err().map_or(0, |error| error.code());
        match command {
            CatalogCommand::CreateTopics { topics, .. } => {
                let response: CreateTopicsResponse = self.body(frame)?;
                same("count of topics", response.topics.len(), 1)?;
                let made = &response.topics[0];
                same("a topic", made.name.0.as_str(), topics[0].name.as_str())?;
                same("error", made.error_code, error)?;
                if let Ok(change) = change {
                    if self.version >= 5 {
                        same("partitions", made.num_partitions, change.partition_count as i32)?;
                    }
                    if self.version >= 7 {
                        same("a topic's id", *made.topic_id.as_bytes(), change.topic.0)?;
                    }
                }
                Ok(())
            }
            CatalogCommand::DeleteTopics(topics) => {
                let response: DeleteTopicsResponse = self.body(frame)?;
                same("count of topics", response.responses.len(), 1)?;
                let gone = &response.responses[0];
                if !self.is_by_id {
                    let name = gone.name.as_ref().map(|name| name.0.as_str());
                    same("a topic", name, Some(&self.topic_name(topics[0])))?;
                }
                same("error", gone.error_code, error)
            }
            CatalogCommand::CreatePartitions { topics, .. } => {
                let response: CreatePartitionsResponse = self.body(frame)?;
                same("count of topics", response.results.len(), 1)?;
                let grown = &response.results[0];
                same("a topic", grown.name.0.as_str(), &self.topic_name(topics[0].0))?;
                same("error", grown.error_code, error)
            }
            CatalogCommand::AlterConfigs { topics, .. } => {
                let response: IncrementalAlterConfigsResponse = self.body(frame)?;
                same("count of topics", response.responses.len(), 1)?;
                let changed = &response.responses[0];
                same("a topic", changed.resource_name.as_str(), &self.topic_name(topics[0].0))?;
                same("error", changed.error_code, error)
            }
        }
    }

    fn compare_group(&self, frame: &mut Bytes, command: &GroupCommand) -> Check {
        let piece = &self.pieces[0];
        let reply = match &piece.told {
            Some(Reply::Group(reply)) => Ok(reply),
            Some(Reply::Refused(refusal)) => Err(ErrorCode::for_group(*refusal)),
            None => Err(ErrorCode::None),
            told => return Err(format!("a strange reply: {told:?}")),
        };
        match command {
            GroupCommand::Join(join) => self.compare_join(frame, &join.member_id, reply),
            GroupCommand::Sync(_) => {
                let response: SyncGroupResponse = self.body(frame)?;
                let synced = result_of!(reply, Sync);
                let error = synced.as_ref().err().map_or(0, |error| error.code());
                same("error", response.error_code, error)?;
                let assignment =
                    synced.as_ref().map_or(Bytes::new(), |synced| synced.assignment.clone());
                same("assignment", response.assignment, assignment)?;
                if self.version >= 5
                    && let Ok(synced) = synced
                {
                    let name = response.protocol_name.as_ref().map(|name| name.as_str());
                    same("protocol", name, Some(&synced.protocol))?;
                }
                Ok(())
            }
            GroupCommand::Heartbeat(_) => {
                let response: HeartbeatResponse = self.body(frame)?;
                let result = result_of!(reply, Heartbeat).copied();
                same("error", response.error_code, code(result))
            }
            GroupCommand::Leave { .. } => {
                let response: LeaveGroupResponse = self.body(frame)?;
                let results = result_of!(reply, Leave);
                let codes: Vec<i16> = (results.iter().flat_map(|results| results.iter()))
                    .map(|result| code(result.map_err(ErrorCode::for_group)))
                    .collect();
                let whole = results.as_ref().err().map_or(0, |error| error.code());
                if self.version < 3 {
                    let error = codes.first().copied().unwrap_or(whole);
                    return same("error", response.error_code, error);
                }
                same("error", response.error_code, whole)?;
                let got = response.members.iter().map(|member| member.error_code).collect();
                same("members' errors", got, codes)
            }
            GroupCommand::OffsetCommit(commit) => {
                let response: OffsetCommitResponse = self.body(frame)?;
                let partitions: Vec<PartitionId> =
                    commit.offsets.iter().map(|(partition, _)| *partition).collect();
                let told = match reply {
                    Ok(GroupReply::OffsetCommit(results)) => {
                        results.iter().map(|it| it.map_err(ErrorCode::for_group)).collect()
                    }
                    Ok(reply) => return Err(format!("a strange reply: {reply:?}")),
                    Err(error) => vec![Err(error); partitions.len()],
                };
                let mut due = filled(piece, told).into_iter();
                for (topic, (id, places)) in
                    in_order("topics", response.topics.iter().collect(), grouped(&partitions))?
                {
                    same("a topic", topic.name.0.as_str(), &self.topic_name(id))?;
                    for (answer, place) in
                        in_order("partitions", topic.partitions.iter().collect(), places)?
                    {
                        same("index", answer.partition_index, partitions[place].index as i32)?;
                        same("error", Some(answer.error_code), due.next())?;
                    }
                }
                Ok(())
            }
            GroupCommand::OffsetFetch { partitions, .. } => {
                let offsets = result_of!(reply, OffsetFetch);
                self.compare_committed(frame, partitions.as_deref(), offsets)
            }
            GroupCommand::OffsetDelete { partitions, .. } => {
                let response: OffsetDeleteResponse = self.body(frame)?;
                let results = result_of!(reply, OffsetDelete);
                let error = results.as_ref().err().map_or(0, |error| error.code());
                same("error", response.error_code, error)?;
                let Ok(results) = results else { return Ok(()) };
                let told = results.iter().map(|it| it.map_err(ErrorCode::for_group)).collect();
                let got = (response.topics.iter().flat_map(|topic| &topic.partitions))
                    .map(|partition| (partition.partition_index, partition.error_code))
                    .collect::<Vec<_>>();
                let due = partitions.iter().map(|id| id.index as i32).zip(filled(piece, told));
                same("partitions", got, due.collect())
            }
            GroupCommand::Delete(group) => {
                let response: DeleteGroupsResponse = self.body(frame)?;
                let result = result_of!(reply, Delete).copied();
                let got: Vec<_> = (response.results.iter())
                    .map(|result| (result.group_id.0.as_str(), result.error_code))
                    .collect();
                same("groups", got, vec![(group.as_str(), code(result))])
            }
            GroupCommand::Describe(_) | GroupCommand::List => {
                Err(format!("an answer to {command:?}"))
            }
        }
    }

    fn compare_join(
        &self,
        frame: &mut Bytes,
        member_id: &str,
        reply: Result<&GroupReply, ErrorCode>,
    ) -> Check {
        let response: JoinGroupResponse = self.body(frame)?;
        let joined = match reply {
            Ok(GroupReply::Join(Ok(joined))) => joined,
            Ok(GroupReply::Join(Err(refused))) => {
                same("error", response.error_code, ErrorCode::for_group(refused.refusal).code())?;
                return same("member id", response.member_id.as_str(), &refused.member_id);
            }
            Ok(reply) => return Err(format!("a strange reply: {reply:?}")),
            Err(error) => {
                same("error", response.error_code, error.code())?;
                return same("member id", response.member_id.as_str(), member_id);
            }
        };
        same("error", response.error_code, 0)?;
        same("generation", response.generation_id, joined.generation)?;
        let protocol = response.protocol_name.as_ref().map(|name| name.as_str());
        same("protocol", protocol, Some(&joined.protocol))?;
        same("leader", response.leader.as_str(), &joined.leader)?;
        same("member id", response.member_id.as_str(), &joined.member_id)?;
        same("skip", response.skip_assignment, joined.skip_assignment)?;
        let got: Vec<_> = (response.members.iter())
            .map(|member| {
                let instance_id = member.group_instance_id.as_ref().map(|id| id.as_str());
                (member.member_id.as_str(), instance_id, member.metadata.clone())
            })
            .collect();
        let due: Vec<_> = (joined.members.iter())
            .map(|member| {
                let instance_id = member.instance_id.as_deref().filter(|_| self.version >= 5);
                (member.member_id.as_str(), instance_id, member.metadata.clone())
            })
            .collect();
        same("members", got, due)
    }

    fn compare_committed(
        &self,
        frame: &mut Bytes,
        wanted: Option<&[PartitionId]>,
        told: Result<&Vec<(PartitionId, Option<CommittedOffset>)>, ErrorCode>,
    ) -> Check {
        let mut response: OffsetFetchResponse = self.body(frame)?;
        type Row = (String, i32, i64, i16);
        let mut got: Vec<Row> = Vec::new();
        let error = if self.version >= 8 {
            same("count of groups", response.groups.len(), 1)?;
            let group = response.groups.remove(0);
            for topic in &group.topics {
                got.extend(topic.partitions.iter().map(|it| {
                    let name = topic.name.0.as_str().to_owned();
                    (name, it.partition_index, it.committed_offset, it.error_code)
                }));
            }
            group.error_code
        } else {
            for topic in &response.topics {
                got.extend(topic.partitions.iter().map(|it| {
                    let name = topic.name.0.as_str().to_owned();
                    (name, it.partition_index, it.committed_offset, it.error_code)
                }));
            }
            response.error_code
        };
        let due_error = told.as_ref().err().map_or(0, |error| error.code());
        let row = |id: &PartitionId, name: &str, offset: i64, code: i16| -> Row {
            (name.to_owned(), id.index as i32, offset, code)
        };
        let mut due: Vec<Row> = match (told, wanted) {
            (Err(error), Some(wanted)) if self.version < 2 => {
                wanted.iter().map(|id| row(id, &self.names[&id.topic], -1, error.code())).collect()
            }
            (Err(_), _) => Vec::new(),
            (Ok(told), Some(wanted)) => {
                let told = offsets_of(told);
                let offset = |id: &PartitionId| {
                    let is_known = self.known_topic(&id.topic).is_some();
                    told.get(id).copied().filter(|_| is_known).unwrap_or(-1)
                };
                let due = |id| row(id, &self.names[&id.topic], offset(id), 0);
                wanted.iter().map(due).collect()
            }
            (Ok(told), None) => {
                let due = |(id, offset): (PartitionId, i64)| {
                    Some(row(&id, &self.routes.ids.get(&id.topic)?.name, offset, 0))
                };
                offsets_of(told).into_iter().filter_map(due).collect()
            }
        };
        same("error", error, if self.version >= 2 { due_error } else { 0 })?;
        if wanted.is_none() {
            due.sort();
        }
        same("offsets", got, due)
    }
}

fn offsets_of(told: &[(PartitionId, Option<CommittedOffset>)]) -> BTreeMap<PartitionId, i64> {
    let offset = |(id, committed): &(PartitionId, Option<CommittedOffset>)| {
        Some((*id, committed.as_ref()?.offset as i64))
    };
    told.iter().filter_map(offset).collect()
}

/// What is due where no shard's results are: the refusal of the whole command, or the node's own.
fn refused(
    piece: &Piece,
    told: Option<&Reply>,
    translate: impl Fn(Refusal) -> ErrorCode,
) -> Result<ErrorCode, String> {
    match told {
        Some(Reply::Refused(refusal)) => Ok(translate(*refusal)),
        None if piece.refused[0] != 0 => Ok(ErrorCode::from(piece.refused[0])),
        told => Err(format!("an answer, but what was told is {told:?}")),
    }
}

/// A code for each element: the node's own, or the next of the group's.
fn filled(piece: &Piece, told: Vec<Result<(), ErrorCode>>) -> Vec<i16> {
    let mut told = told.into_iter();
    let fill = |refused: &i16| match refused {
        0 => told.next().map_or(ErrorCode::UnknownServerError.code(), code),
        refused => *refused,
    };
    piece.refused.iter().map(fill).collect()
}

/// The record that an offset query means, looked for in the batch that the shard found.
fn record_due(batch: &RecordBatch, at: OffsetAt, start: u64) -> Result<(i64, i64), String> {
    let records = batch.records(RECORDS_SIZE_MAX).map_err(|fault| fault.to_string())?;
    let mut found: Option<(u64, i64)> = None;
    for record in records {
        let record = record.map_err(|fault| fault.to_string())?;
        let is_better = match (at, found) {
            (OffsetAt::Time(time_ms), None) => record.timestamp_ms >= time_ms,
            (OffsetAt::MaxTimestamp, None) => true,
            (OffsetAt::MaxTimestamp, Some((_, best_ms))) => record.timestamp_ms > best_ms,
            _ => false,
        };
        if record.offset >= start && is_better {
            found = Some((record.offset, record.timestamp_ms));
        }
    }
    // Nothing of it is left that fits: who begins at its first record misses nothing.
    let (offset, time_ms) =
        found.unwrap_or((batch.base_offset().max(start), batch.base_timestamp_ms()));
    Ok((offset as i64, time_ms))
}

fn producer_id_refusal(refusal: Refusal) -> ErrorCode {
    match ErrorCode::for_admin(refusal) {
        ErrorCode::RequestTimedOut => ErrorCode::CoordinatorLoadInProgress,
        code => code,
    }
}
