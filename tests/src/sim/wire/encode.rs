//! A client's request as bytes: the reference's codec, not the node's.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ApiKey, BrokerId, CreatePartitionsRequest, CreateTopicsRequest, DeleteGroupsRequest,
    DeleteRecordsRequest, DeleteTopicsRequest, FetchRequest, GroupId, HeartbeatRequest,
    IncrementalAlterConfigsRequest, InitProducerIdRequest, JoinGroupRequest, LeaveGroupRequest,
    ListOffsetsRequest, MetadataRequest, OffsetCommitRequest, OffsetDeleteRequest,
    OffsetFetchRequest, ProduceRequest, ProducerId, RequestHeader, SyncGroupRequest, TopicName,
};
use kafka_protocol::protocol::{Encodable, StrBytes};
use tidemill::command::{CatalogCommand, Command, ConfigChange, GroupCommand, OffsetAt};
use tidemill_wal::format::{PartitionId, TopicId};

use super::request::{CLIENT_ID, Request, grouped, partition_of};

/// How long the node may take for what it does not limit itself, in milliseconds.
const TIMEOUT_MS: i32 = 30_000;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn group_id(name: &str) -> GroupId {
    GroupId(text(name))
}

/// An id of the reference's own type.
fn uuid<U: TryFrom<Vec<u8>>>(id: TopicId) -> U {
    U::try_from(id.0.to_vec()).unwrap_or_else(|_| panic!("an id has 16 bytes"))
}

impl Request {
    /// The frame of the request, with its length.
    pub fn encode(&self) -> Bytes {
        let batches: usize = self.pieces.iter().map(|piece| piece.command.batches_size()).sum();
        let mut frame = BytesMut::with_capacity(512 + batches);
        frame.extend_from_slice(&[0; 4]);
        let header = RequestHeader::default()
            .with_request_api_key(self.api as i16)
            .with_request_api_version(self.version)
            .with_correlation_id(self.number as i32)
            .with_client_id(Some(StrBytes::from_static_str(CLIENT_ID)));
        let header_version = self.api.request_header_version(self.version);
        header.encode(&mut frame, header_version).expect("a header is encoded");
        self.encode_body(&mut frame);
        let size = frame.len() as u32 - 4;
        frame[..4].copy_from_slice(&size.to_be_bytes());
        frame.freeze()
    }

    fn name(&self, topic: TopicId) -> TopicName {
        TopicName(text(&self.names[&topic]))
    }

    fn encode_body(&self, frame: &mut BytesMut) {
        match self.api {
            ApiKey::Produce => self.put(frame, self.produce()),
            ApiKey::Fetch => self.put(frame, self.fetch_request()),
            ApiKey::ListOffsets => self.put(frame, self.list_offsets()),
            ApiKey::DeleteRecords => self.put(frame, self.delete_records()),
            ApiKey::Metadata => {
                // Version 0 has no other word for all of them.
                let topics = (self.version == 0).then(Vec::new);
                self.put(frame, MetadataRequest::default().with_topics(topics));
            }
            ApiKey::InitProducerId => {
                let request = InitProducerIdRequest::default()
                    .with_transactional_id(None)
                    .with_transaction_timeout_ms(i32::MAX)
                    .with_producer_id(ProducerId(-1))
                    .with_producer_epoch(-1);
                self.put(frame, request);
            }
            _ => match &self.pieces[0].command {
                Command::Catalog(command) => self.put_catalog(frame, command),
                Command::Group(command) => self.put_group(frame, command),
                command => panic!("another request than for {command:?}"),
            },
        }
    }

    fn put<R: Encodable>(&self, frame: &mut BytesMut, request: R) {
        request.encode(frame, self.version).unwrap_or_else(|error| {
            panic!("{:?} {} is not encoded: {error}", self.api, self.version)
        });
    }

    fn produce(&self) -> ProduceRequest {
        let topics = self.by_topic().into_iter().map(|(topic, pieces)| {
            let partitions = pieces.into_iter().map(|piece| {
                let Command::Produce(produce) = &piece.command else { panic!("{piece:?}") };
                let (partition, batch) = &produce.batches[0];
                PartitionProduceData::default()
                    .with_index(partition.index as i32)
                    .with_records(Some(batch.bytes().clone()))
            });
            let data = TopicProduceData::default().with_partition_data(partitions.collect());
            match self.is_by_id {
                true => data.with_topic_id(uuid(topic)),
                false => data.with_name(self.name(topic)),
            }
        });
        ProduceRequest::default()
            .with_acks(self.acks)
            .with_timeout_ms(TIMEOUT_MS)
            .with_topic_data(topics.collect())
    }

    fn fetch_request(&self) -> FetchRequest {
        let topics = self.by_topic().into_iter().map(|(topic, pieces)| {
            let partitions = pieces.into_iter().map(|piece| {
                let Command::Fetch(fetch) = &piece.command else { panic!("{piece:?}") };
                let wanted = fetch.partitions[0];
                FetchPartition::default()
                    .with_partition(wanted.partition.index as i32)
                    .with_fetch_offset(wanted.offset as i64)
                    .with_partition_max_bytes(wanted.bytes_max as i32)
            });
            let data = FetchTopic::default().with_partitions(partitions.collect());
            match self.is_by_id {
                true => data.with_topic_id(uuid(topic)),
                false => data.with_topic(self.name(topic)),
            }
        });
        let limits = self.fetch().expect("a fetch has limits");
        FetchRequest::default()
            .with_max_wait_ms(limits.wait_ms as i32)
            .with_min_bytes(limits.bytes_min as i32)
            .with_max_bytes(limits.bytes_max as i32)
            .with_session_epoch(-1)
            .with_topics(topics.collect())
    }

    fn list_offsets(&self) -> ListOffsetsRequest {
        let topics = self.by_topic().into_iter().map(|(topic, pieces)| {
            let partitions = pieces.into_iter().map(|piece| {
                let Command::ListOffsets(queries) = &piece.command else { panic!("{piece:?}") };
                let timestamp = match queries[0].at {
                    OffsetAt::Latest => -1,
                    OffsetAt::Earliest => -2,
                    OffsetAt::MaxTimestamp => -3,
                    OffsetAt::Time(time_ms) => time_ms,
                };
                ListOffsetsPartition::default()
                    .with_partition_index(queries[0].partition.index as i32)
                    .with_timestamp(timestamp)
            });
            ListOffsetsTopic::default()
                .with_name(self.name(topic))
                .with_partitions(partitions.collect())
        });
        ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(topics.collect())
    }

    fn delete_records(&self) -> DeleteRecordsRequest {
        let topics = self.by_topic().into_iter().map(|(topic, pieces)| {
            let partitions = pieces.into_iter().map(|piece| {
                let Command::DeleteRecords(wanted) = &piece.command else { panic!("{piece:?}") };
                DeleteRecordsPartition::default()
                    .with_partition_index(partition_of(&piece.command).index as i32)
                    .with_offset(wanted[0].1.map_or(-1, |offset| offset as i64))
            });
            DeleteRecordsTopic::default()
                .with_name(self.name(topic))
                .with_partitions(partitions.collect())
        });
        DeleteRecordsRequest::default().with_topics(topics.collect()).with_timeout_ms(TIMEOUT_MS)
    }

    fn put_catalog(&self, frame: &mut BytesMut, command: &CatalogCommand) {
        match command {
            CatalogCommand::CreateTopics { topics, validate_only } => {
                let topics = topics.iter().map(|topic| {
                    let configs = topic.config.iter().map(|(key, value)| {
                        CreatableTopicConfig::default()
                            .with_name(text(key))
                            .with_value(Some(text(value)))
                    });
                    CreatableTopic::default()
                        .with_name(TopicName(text(&topic.name)))
                        .with_num_partitions(topic.partition_count.map_or(-1, |count| count as i32))
                        .with_replication_factor(1)
                        .with_configs(configs.collect())
                });
                let request = CreateTopicsRequest::default()
                    .with_topics(topics.collect())
                    .with_timeout_ms(TIMEOUT_MS)
                    .with_validate_only(*validate_only);
                self.put(frame, request);
            }
            CatalogCommand::DeleteTopics(topics) => {
                let request = DeleteTopicsRequest::default().with_timeout_ms(TIMEOUT_MS);
                let topics = topics.iter();
                let request = match self.version {
                    ..6 => request.with_topic_names(topics.map(|id| self.name(*id)).collect()),
                    _ => {
                        let state = |id: &TopicId| match self.is_by_id {
                            true => DeleteTopicState::default().with_topic_id(uuid(*id)),
                            false => DeleteTopicState::default().with_name(Some(self.name(*id))),
                        };
                        request.with_topics(topics.map(state).collect())
                    }
                };
                self.put(frame, request);
            }
            CatalogCommand::CreatePartitions { topics, validate_only } => {
                let topics = topics.iter().map(|(id, count)| {
                    CreatePartitionsTopic::default()
                        .with_name(self.name(*id))
                        .with_count(*count as i32)
                        .with_assignments(None)
                });
                let request = CreatePartitionsRequest::default()
                    .with_topics(topics.collect())
                    .with_timeout_ms(TIMEOUT_MS)
                    .with_validate_only(*validate_only);
                self.put(frame, request);
            }
            CatalogCommand::AlterConfigs { topics, validate_only } => {
                const TOPIC: i8 = 2;
                const SET: i8 = 0;
                const DELETE: i8 = 1;
                let resources = topics.iter().map(|(id, change)| {
                    let ConfigChange::Update(updates) = change else { panic!("{change:?}") };
                    let configs = updates.iter().map(|(key, value)| {
                        AlterableConfig::default()
                            .with_name(text(key))
                            .with_config_operation(if value.is_some() { SET } else { DELETE })
                            .with_value(value.as_deref().map(text))
                    });
                    AlterConfigsResource::default()
                        .with_resource_type(TOPIC)
                        .with_resource_name(text(&self.names[id]))
                        .with_configs(configs.collect())
                });
                let request = IncrementalAlterConfigsRequest::default()
                    .with_resources(resources.collect())
                    .with_validate_only(*validate_only);
                self.put(frame, request);
            }
        }
    }

    fn put_group(&self, frame: &mut BytesMut, command: &GroupCommand) {
        match command {
            GroupCommand::Join(join) => {
                let protocols = join.protocols.iter().map(|(name, metadata)| {
                    JoinGroupRequestProtocol::default()
                        .with_name(text(name))
                        .with_metadata(metadata.clone())
                });
                let request = JoinGroupRequest::default()
                    .with_group_id(group_id(&join.group))
                    .with_session_timeout_ms(join.session_timeout_ms)
                    .with_rebalance_timeout_ms(join.rebalance_timeout_ms)
                    .with_member_id(text(&join.member_id))
                    .with_group_instance_id(join.instance_id.as_deref().map(text))
                    .with_protocol_type(text(&join.protocol_type))
                    .with_protocols(protocols.collect());
                self.put(frame, request);
            }
            GroupCommand::Sync(sync) => {
                let assignments = sync.assignments.iter().map(|(member_id, assignment)| {
                    SyncGroupRequestAssignment::default()
                        .with_member_id(text(member_id))
                        .with_assignment(assignment.clone())
                });
                let request = SyncGroupRequest::default()
                    .with_group_id(group_id(&sync.member.group))
                    .with_generation_id(sync.member.generation)
                    .with_member_id(text(&sync.member.member_id))
                    .with_group_instance_id(sync.member.instance_id.as_deref().map(text))
                    .with_protocol_type(sync.protocol_type.as_deref().map(text))
                    .with_protocol_name(sync.protocol.as_deref().map(text))
                    .with_assignments(assignments.collect());
                self.put(frame, request);
            }
            GroupCommand::Heartbeat(who) => {
                let request = HeartbeatRequest::default()
                    .with_group_id(group_id(&who.group))
                    .with_generation_id(who.generation)
                    .with_member_id(text(&who.member_id))
                    .with_group_instance_id(who.instance_id.as_deref().map(text));
                self.put(frame, request);
            }
            GroupCommand::Leave { group, members } => {
                let request = LeaveGroupRequest::default().with_group_id(group_id(group));
                let identities = members.iter().map(|member| {
                    MemberIdentity::default()
                        .with_member_id(text(&member.member_id))
                        .with_group_instance_id(member.instance_id.as_deref().map(text))
                });
                let request = match self.version {
                    ..3 => request.with_member_id(text(&members[0].member_id)),
                    _ => request.with_members(identities.collect()),
                };
                self.put(frame, request);
            }
            GroupCommand::OffsetCommit(commit) => {
                let partitions: Vec<PartitionId> =
                    commit.offsets.iter().map(|(partition, _)| *partition).collect();
                let topics = grouped(&partitions).into_iter().map(|(topic, places)| {
                    let partitions = places.into_iter().map(|place| {
                        let (partition, committed) = &commit.offsets[place];
                        OffsetCommitRequestPartition::default()
                            .with_partition_index(partition.index as i32)
                            .with_committed_offset(committed.offset as i64)
                            .with_committed_leader_epoch(committed.leader_epoch)
                            .with_committed_metadata(Some(text(&committed.metadata)))
                    });
                    OffsetCommitRequestTopic::default()
                        .with_name(self.name(topic))
                        .with_partitions(partitions.collect())
                });
                let who = &commit.member;
                let request = OffsetCommitRequest::default()
                    .with_group_id(group_id(&who.group))
                    .with_generation_id_or_member_epoch(who.generation)
                    .with_member_id(text(&who.member_id))
                    .with_group_instance_id(who.instance_id.as_deref().map(text))
                    .with_topics(topics.collect());
                self.put(frame, request);
            }
            GroupCommand::OffsetFetch { group, partitions } => {
                let request = self.offset_fetch(group, partitions.as_deref());
                self.put(frame, request);
            }
            GroupCommand::OffsetDelete { group, partitions, .. } => {
                let topics = grouped(partitions).into_iter().map(|(topic, places)| {
                    let indexes = places.into_iter().map(|place| {
                        OffsetDeleteRequestPartition::default()
                            .with_partition_index(partitions[place].index as i32)
                    });
                    OffsetDeleteRequestTopic::default()
                        .with_name(self.name(topic))
                        .with_partitions(indexes.collect())
                });
                let request = OffsetDeleteRequest::default()
                    .with_group_id(group_id(group))
                    .with_topics(topics.collect());
                self.put(frame, request);
            }
            GroupCommand::Delete(group) => {
                let request =
                    DeleteGroupsRequest::default().with_groups_names(vec![group_id(group)]);
                self.put(frame, request);
            }
            GroupCommand::Describe(_) | GroupCommand::List => panic!("nobody asks {command:?}"),
        }
    }

    fn offset_fetch(&self, group: &str, partitions: Option<&[PartitionId]>) -> OffsetFetchRequest {
        let topics: Option<Vec<(TopicName, Vec<i32>)>> = partitions.map(|partitions| {
            let topics = grouped(partitions).into_iter().map(|(topic, places)| {
                let indexes = places.into_iter().map(|place| partitions[place].index as i32);
                (self.name(topic), indexes.collect())
            });
            topics.collect()
        });
        if self.version < 8 {
            let topics = topics.map(|topics| {
                let topics = topics.into_iter().map(|(name, indexes)| {
                    OffsetFetchRequestTopic::default()
                        .with_name(name)
                        .with_partition_indexes(indexes)
                });
                topics.collect()
            });
            return OffsetFetchRequest::default()
                .with_group_id(group_id(group))
                .with_topics(topics);
        }
        let topics = topics.map(|topics| {
            let topics = topics.into_iter().map(|(name, indexes)| {
                OffsetFetchRequestTopics::default().with_name(name).with_partition_indexes(indexes)
            });
            topics.collect()
        });
        let group =
            OffsetFetchRequestGroup::default().with_group_id(group_id(group)).with_topics(topics);
        OffsetFetchRequest::default().with_groups(vec![group])
    }
}
