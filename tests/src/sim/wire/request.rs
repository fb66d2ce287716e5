//! One request of a client: what it means, and what the node makes of it.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use kafka_protocol::messages::ApiKey;
use tidemill::command::{
    CatalogCommand, Command, Fetch, GroupCommand, OffsetAt, Produce, Refusal, Reply, Routes,
    TopicRoute,
};
use tidemill::kafka::api_key::ApiKey as Served;
use tidemill::kafka::error_code::ErrorCode;
use tidemill_wal::format::{PartitionId, ShardId, TopicId};

use super::PEER;
use crate::sim::clients::{Asked, Client};
use crate::sim::model::{Check, Model};
use crate::sim::random::Random;

/// First version of Produce and Fetch that names topics by id.
const IDS_FROM: i16 = 13;

/// What the client calls itself.
pub const CLIENT_ID: &str = "sim";

/// The part of a request that is answered by itself: a partition of those that go to several
/// shards, or all of it.
#[derive(Debug)]
pub struct Piece {
    /// Who has to answer it.
    pub shard: ShardId,
    /// What the client means.
    pub command: Command,
    /// What the answer is checked against.
    pub asked: Asked,
    /// For each element: why the node answers without asking a shard; 0 if it has to ask.
    pub refused: Vec<i16>,
    /// What the shard replied.
    pub told: Option<Reply>,
}

/// A request on its way, or waiting for its answer.
#[derive(Debug)]
pub struct Request {
    /// Its number on the connection; the answer brings it back.
    pub number: u64,
    /// Its API.
    pub api: ApiKey,
    /// Its version.
    pub version: i16,
    /// What a produce wants to hear.
    pub acks: i16,
    /// Topics are named by id.
    pub is_by_id: bool,
    /// What it asks.
    pub pieces: Vec<Piece>,
    /// Names of topics when it was sent.
    pub names: BTreeMap<TopicId, String>,
    /// The node has begun to answer it.
    pub is_dispatched: bool,
    /// What the node knew then, or when a reply came.
    pub routes: Arc<Routes>,
    /// Commands that it became.
    pub command_count: usize,
    /// The client has its answer, or gets none.
    pub is_done: bool,
}

/// The API that a command has; `None`: it has none.
fn api_of(command: &Command) -> Option<ApiKey> {
    Some(match command {
        Command::Produce(_) => ApiKey::Produce,
        Command::Fetch(_) => ApiKey::Fetch,
        Command::ListOffsets(_) => ApiKey::ListOffsets,
        Command::DeleteRecords(_) => ApiKey::DeleteRecords,
        Command::InitProducerId => ApiKey::InitProducerId,
        Command::Catalog(CatalogCommand::CreateTopics { .. }) => ApiKey::CreateTopics,
        Command::Catalog(CatalogCommand::DeleteTopics(_)) => ApiKey::DeleteTopics,
        Command::Catalog(CatalogCommand::CreatePartitions { .. }) => ApiKey::CreatePartitions,
        Command::Catalog(CatalogCommand::AlterConfigs { .. }) => ApiKey::IncrementalAlterConfigs,
        Command::Group(command) => match command {
            GroupCommand::Join(_) => ApiKey::JoinGroup,
            GroupCommand::Sync(_) => ApiKey::SyncGroup,
            GroupCommand::Heartbeat(_) => ApiKey::Heartbeat,
            GroupCommand::Leave { .. } => ApiKey::LeaveGroup,
            GroupCommand::OffsetCommit(_) => ApiKey::OffsetCommit,
            GroupCommand::OffsetFetch { .. } => ApiKey::OffsetFetch,
            GroupCommand::OffsetDelete { .. } => ApiKey::OffsetDelete,
            GroupCommand::Delete(_) => ApiKey::DeleteGroups,
            GroupCommand::Describe(_) | GroupCommand::List => return None,
        },
        Command::DescribePartitions(_)
        | Command::DescribeProducers(_)
        | Command::DescribeStorage
        | Command::ReadState(_) => return None,
    })
}

/// Oldest version that can say what a command means.
fn version_min(command: &Command) -> i16 {
    let command = match command {
        Command::ListOffsets(queries) if queries[0].at == OffsetAt::MaxTimestamp => return 7,
        Command::Group(command) => command,
        _ => return 0,
    };
    match command {
        GroupCommand::Join(join) if join.instance_id.is_some() => 5,
        GroupCommand::Sync(sync) if sync.member.instance_id.is_some() => 3,
        GroupCommand::Heartbeat(who) if who.instance_id.is_some() => 3,
        GroupCommand::Leave { members, .. } if members.iter().any(|m| m.instance_id.is_some()) => 3,
        GroupCommand::OffsetCommit(commit) if commit.member.instance_id.is_some() => 7,
        GroupCommand::OffsetFetch { partitions: None, .. } => 2,
        GroupCommand::Join(_)
        | GroupCommand::Sync(_)
        | GroupCommand::Heartbeat(_)
        | GroupCommand::Leave { .. }
        | GroupCommand::OffsetCommit(_)
        | GroupCommand::OffsetFetch { .. }
        | GroupCommand::OffsetDelete { .. }
        | GroupCommand::Describe(_)
        | GroupCommand::List
        | GroupCommand::Delete(_) => 0,
    }
}

/// What old versions leave out.
fn as_of_version(command: &mut Command, version: i16) {
    match command {
        Command::Group(GroupCommand::Join(join)) => {
            join.client_id = CLIENT_ID.to_owned();
            join.client_host = PEER.to_owned();
            join.member_id_required = version >= 4;
            join.can_skip_assignment = version >= 9;
            if version == 0 {
                join.rebalance_timeout_ms = join.session_timeout_ms;
            }
        }
        Command::Group(GroupCommand::Sync(sync)) if version < 5 => {
            sync.protocol_type = None;
            sync.protocol = None;
        }
        _ => {}
    }
}

/// A request names each topic once, with all its partitions.
fn sort_by_topic(command: &mut Command, asked: &mut Asked) {
    let Command::Group(group) = command else { return };
    let partitions = group_partitions(group);
    let order: Vec<usize> =
        grouped(&partitions).into_iter().flat_map(|(_, places)| places).collect();
    fn sort<T: Clone>(elements: &mut Vec<T>, order: &[usize]) {
        *elements = order.iter().map(|place| elements[*place].clone()).collect();
    }
    match group {
        GroupCommand::OffsetCommit(commit) => sort(&mut commit.offsets, &order),
        GroupCommand::OffsetFetch { partitions: Some(partitions), .. } => sort(partitions, &order),
        _ => return,
    }
    if let Asked::Commit(_, offsets, _) = asked {
        sort(offsets, &order);
    }
}

/// Splits what goes by partition.
fn pieces_of(shard: ShardId, mut command: Command, mut asked: Asked) -> Vec<Piece> {
    sort_by_topic(&mut command, &mut asked);
    let piece = |command, asked, count| Piece {
        shard,
        command,
        asked,
        refused: vec![0; count],
        told: None,
    };
    match (command, asked) {
        (Command::Produce(produce), Asked::Produce(tries)) => (produce.batches.into_iter())
            .zip(tries)
            .map(|(batch, of)| {
                let command = Command::Produce(Produce { batches: vec![batch] });
                piece(command, Asked::Produce(vec![of]), 1)
            })
            .collect(),
        (Command::Fetch(fetch), Asked::Fetch(asked)) => (fetch.partitions.iter().zip(asked))
            .map(|(partition, asked)| {
                let command = Command::Fetch(Fetch { partitions: vec![*partition], ..fetch });
                piece(command, Asked::Fetch(vec![asked]), 1)
            })
            .collect(),
        (command, asked) => {
            let count = match &command {
                Command::Group(GroupCommand::OffsetCommit(commit)) => commit.offsets.len(),
                Command::Group(GroupCommand::OffsetDelete { partitions, .. }) => partitions.len(),
                _ => 1,
            };
            vec![piece(command, asked, count)]
        }
    }
}

impl Request {
    /// The request that asks for all of this; nothing if it cannot be asked for. `has_fetch`: it
    /// comes behind another fetch.
    pub fn new(
        parts: Vec<(ShardId, Command, Asked)>,
        number: u64,
        has_fetch: bool,
        random: &mut Random,
        model: &Model,
    ) -> Option<Self> {
        let api = api_of(&parts.first()?.1)?;
        let served = Served::from_number(api as i16).expect("all of these are served").served();
        let known = api.valid_versions();
        // The reference knows more of these, but does not encode them yet.
        let known_max = match api {
            ApiKey::ListOffsets => 10,
            ApiKey::OffsetCommit | ApiKey::OffsetFetch => 9,
            _ => known.max,
        };
        let low = parts.iter().map(|(_, command, _)| version_min(command)).max().unwrap_or(0);
        let low = if has_fetch && api == ApiKey::Fetch { IDS_FROM } else { low };
        let (low, high) = (low.max(*served.start()).max(known.min), known_max.min(*served.end()));
        let version = random.between(low as u64, high as u64) as i16;
        let mut pieces = Vec::new();
        for (shard, mut command, asked) in parts {
            as_of_version(&mut command, version);
            pieces.extend(pieces_of(shard, command, asked));
        }
        let is_by_id = match api {
            ApiKey::Produce | ApiKey::Fetch => version >= IDS_FROM,
            ApiKey::DeleteTopics => version >= 6 && random.one_in(2),
            _ => false,
        };
        let mut names = BTreeMap::new();
        for topic in pieces.iter().flat_map(|piece| topics_of(&piece.command)) {
            let name = model.topic(topic).map_or("gone".to_owned(), |known| known.name.to_string());
            names.insert(topic, name);
        }
        Some(Self {
            number,
            api,
            version,
            acks: random.choose(&[-1, 1]),
            is_by_id,
            pieces,
            names,
            is_dispatched: false,
            routes: Arc::default(),
            command_count: 0,
            is_done: false,
        })
    }

    /// Asks for the metadata of all topics.
    pub fn metadata(number: u64, random: &mut Random) -> Self {
        Self {
            number,
            api: ApiKey::Metadata,
            version: random.between(0, 13) as i16,
            acks: 0,
            is_by_id: false,
            pieces: Vec::new(),
            names: BTreeMap::new(),
            is_dispatched: false,
            routes: Arc::default(),
            command_count: 0,
            is_done: false,
        }
    }

    /// Whether the node sends anything back.
    pub fn is_answered(&self) -> bool {
        self.api != ApiKey::Produce || self.acks != 0
    }

    /// The topic that the node finds for one that the client means.
    pub fn known_topic(&self, id: &TopicId) -> Option<&TopicRoute> {
        known_topic(&self.routes, &self.names, self.is_by_id, id)
    }

    /// Whether a name in it is that of another topic by now: the client would ask for what it does
    /// not mean.
    pub fn is_mistaken(&self, routes: &Routes) -> bool {
        let is_other = |(id, name): (&TopicId, &String)| {
            routes.topics.get(name.as_str()).is_some_and(|found| found.id != *id)
        };
        !self.is_by_id && self.names.iter().any(is_other)
    }

    /// The node begins to answer, and knows this: what it will not ask shards for.
    pub fn dispatch(&mut self, routes: &Arc<Routes>) {
        self.is_dispatched = true;
        self.routes = routes.clone();
        for piece in &mut self.pieces {
            let known = |id: &TopicId| known_topic(routes, &self.names, self.is_by_id, id);
            let due = refusals_due(&known, &piece.command, self.is_by_id);
            if !due.is_empty() {
                piece.refused = due;
            }
        }
    }

    /// The node asks a shard: that has to be what the client means. Returns the pieces that the
    /// reply's results are for, in order, and what they are checked against.
    pub fn claim(
        &mut self,
        shard: ShardId,
        command: &Command,
    ) -> Result<(Vec<usize>, Asked), String> {
        self.command_count += 1;
        let mut claims = Vec::new();
        let mut claim =
            |pieces: &[Piece], what: &dyn Fn(&Piece) -> bool| -> Result<usize, String> {
                let is_it =
                    |piece: &Piece| piece.shard == shard && piece.refused[0] == 0 && what(piece);
                let index = pieces.iter().position(is_it).ok_or_else(|| {
                    format!("{shard:?} is asked {command:?}, nobody means that: {pieces:?}")
                })?;
                claims.push(index);
                Ok(index)
            };
        let asked = match command {
            Command::Produce(produce) => {
                let mut tries = Vec::new();
                for (partition, batch) in &produce.batches {
                    let index = claim(&self.pieces, &|piece| {
                        let Command::Produce(meant) = &piece.command else { return false };
                        let (id, sent) = &meant.batches[0];
                        id == partition && sent.bytes() == batch.bytes()
                    })?;
                    let Asked::Produce(of) = &self.pieces[index].asked else {
                        return Err("no batch was asked for".to_owned());
                    };
                    tries.extend(of);
                }
                Asked::Produce(tries)
            }
            Command::Fetch(fetch) => {
                let mut asked = Vec::new();
                for wanted in &fetch.partitions {
                    let index = claim(&self.pieces, &|piece| {
                        let Command::Fetch(meant) = &piece.command else { return false };
                        meant.partitions[0] == *wanted && is_within(fetch, meant)
                    })?;
                    let Asked::Fetch(of) = &self.pieces[index].asked else {
                        return Err("no records were asked for".to_owned());
                    };
                    asked.extend(of);
                }
                Asked::Fetch(asked)
            }
            Command::ListOffsets(queries) => {
                let mut asked = Vec::new();
                for query in queries {
                    let index = claim(&self.pieces, &|piece| {
                        let Command::ListOffsets(meant) = &piece.command else { return false };
                        let by_record =
                            !matches!(meant[0].at, OffsetAt::Earliest | OffsetAt::Latest);
                        // Where the log starts tells where in a batch to look.
                        let is_start = by_record && query.at == OffsetAt::Earliest;
                        meant[0].partition == query.partition
                            && (meant[0].at == query.at || is_start)
                    })?;
                    let Asked::ListOffsets(of) = &self.pieces[index].asked else {
                        return Err("no offset was asked for".to_owned());
                    };
                    let (partition, _, known) = of[0];
                    asked.push((partition, query.at, known));
                }
                Asked::ListOffsets(asked)
            }
            Command::DeleteRecords(wanted) => {
                let mut asked = Vec::new();
                for wanted in wanted {
                    claim(
                        &self.pieces,
                        &|piece| matches!(&piece.command, Command::DeleteRecords(meant) if meant[0] == *wanted),
                    )?;
                    asked.push(*wanted);
                }
                Asked::DeleteRecords(asked)
            }
            command => {
                let piece = self.pieces.first().ok_or("nothing was asked for")?;
                let (meant, asked) = narrowed(piece, &|id| self.known_topic(id));
                let is_it = match (command, &meant) {
                    (Command::InitProducerId, Command::InitProducerId) => true,
                    (Command::Catalog(command), Command::Catalog(meant)) => command == meant,
                    (Command::Group(command), Command::Group(meant)) => command == meant,
                    _ => false,
                };
                if piece.shard != shard || !is_it {
                    return Err(format!("{shard:?} is asked {command:?}, meant is {meant:?}"));
                }
                claims.push(0);
                asked
            }
        };
        Ok((claims, asked))
    }

    /// All commands of a request are out, or none were needed: nothing is left that a shard has to
    /// be asked for. `asks` has the pieces of each command.
    pub fn check_asked(&self, asks: &[Vec<usize>]) -> Check {
        for (index, piece) in self.pieces.iter().enumerate() {
            // A removal of offsets asks whether there is the group, even if it is for nothing.
            let is_asked_anyway =
                matches!(piece.command, Command::Group(GroupCommand::OffsetDelete { .. }));
            let is_due = piece.refused.contains(&0) || is_asked_anyway;
            let count = asks.iter().filter(|claims| claims.contains(&index)).count();
            if count != usize::from(is_due) {
                let (api, version) = (self.api, self.version);
                return Err(format!("{api:?} {version} asks {count} times for {piece:?}"));
            }
        }
        Ok(())
    }

    /// A shard's reply to one of the commands comes back, and the node knows this by then.
    pub fn tell(&mut self, claims: &[usize], reply: &Reply, routes: &Arc<Routes>) {
        self.routes = routes.clone();
        fn each<T: Clone>(
            pieces: &mut [Piece],
            claims: &[usize],
            results: &[T],
            reply: impl Fn(Vec<T>) -> Reply,
        ) {
            for (index, result) in claims.iter().zip(results) {
                pieces[*index].told = Some(reply(vec![result.clone()]));
            }
        }
        let pieces = &mut self.pieces;
        match reply {
            Reply::Produce(results) => each(pieces, claims, results, Reply::Produce),
            Reply::Fetch(results) => each(pieces, claims, results, Reply::Fetch),
            Reply::DeleteRecords(results) => each(pieces, claims, results, Reply::DeleteRecords),
            Reply::ListOffsets(results) => {
                for (index, result) in claims.iter().zip(results) {
                    let told = &mut pieces[*index].told;
                    match told {
                        Some(Reply::ListOffsets(known)) => known.push(result.clone()),
                        _ => *told = Some(Reply::ListOffsets(vec![result.clone()])),
                    }
                }
            }
            reply => claims.iter().for_each(|index| pieces[*index].told = Some(reply.clone())),
        }
    }

    /// Whether it appends.
    pub fn is_produce(&self) -> bool {
        self.api == ApiKey::Produce
    }

    /// What the client goes on with, piece by piece.
    pub fn take_replies(&mut self) -> Vec<(Asked, Reply)> {
        let reply = |piece: Piece| {
            let own = || own_reply(&piece);
            (piece.asked.clone(), piece.told.clone().unwrap_or_else(own))
        };
        mem::take(&mut self.pieces).into_iter().map(reply).collect()
    }

    /// What no shard is ever asked: the node has refused it, or never got the request. From now on
    /// it cannot happen any more.
    pub fn give_up(&mut self, model: &mut Model) -> Check {
        for piece in &mut self.pieces {
            let asked = match &mut piece.asked {
                _ if piece.refused.iter().all(|code| *code == 0) && self.is_dispatched => continue,
                Asked::Commit(group, offsets, member) if self.is_dispatched => {
                    let mut codes = piece.refused.iter();
                    let refused = offsets
                        .iter()
                        .filter(|_| codes.next().is_some_and(|code| *code != 0))
                        .copied();
                    Asked::Commit(group.clone(), refused.collect(), member.clone())
                }
                asked => asked.clone(),
            };
            Client::on_told(model, &asked, &own_reply(piece))?;
        }
        Ok(())
    }

    /// The first piece's fetch: the limits of all.
    pub fn fetch(&self) -> Option<&Fetch> {
        match &self.pieces.first()?.command {
            Command::Fetch(fetch) => Some(fetch),
            _ => None,
        }
    }

    /// Pieces by topic, in the order in which the request names them.
    pub fn by_topic(&self) -> Vec<(TopicId, Vec<&Piece>)> {
        let mut topics: Vec<(TopicId, Vec<&Piece>)> = Vec::new();
        for piece in &self.pieces {
            let topic = partition_of(&piece.command).topic;
            match topics.iter_mut().find(|(known, _)| *known == topic) {
                Some((_, pieces)) => pieces.push(piece),
                None => topics.push((topic, vec![piece])),
            }
        }
        topics
    }
}

/// What the node's own answer means to the client: it may try again, unless a batch is too large.
fn own_reply(piece: &Piece) -> Reply {
    match piece.refused[0] == ErrorCode::MessageTooLarge.code() {
        true => Reply::Produce(vec![Err(Refusal::BatchTooLarge)]),
        false => Reply::Refused(Refusal::Busy),
    }
}

/// The partition of a piece that is one.
pub fn partition_of(command: &Command) -> PartitionId {
    match command {
        Command::Produce(produce) => produce.batches[0].0,
        Command::Fetch(fetch) => fetch.partitions[0].partition,
        Command::ListOffsets(queries) => queries[0].partition,
        Command::DeleteRecords(wanted) => wanted[0].0,
        command => panic!("not for one partition: {command:?}"),
    }
}

/// Partitions by topic, in the order of their first mention, each with its place.
pub fn grouped(partitions: &[PartitionId]) -> Vec<(TopicId, Vec<usize>)> {
    let mut topics: Vec<(TopicId, Vec<usize>)> = Vec::new();
    for (place, partition) in partitions.iter().enumerate() {
        match topics.iter_mut().find(|(known, _)| *known == partition.topic) {
            Some((_, places)) => places.push(place),
            None => topics.push((partition.topic, vec![place])),
        }
    }
    topics
}

/// The partitions that a command of a group names.
pub fn group_partitions(command: &GroupCommand) -> Vec<PartitionId> {
    match command {
        GroupCommand::OffsetCommit(commit) => {
            commit.offsets.iter().map(|(partition, _)| *partition).collect()
        }
        GroupCommand::OffsetDelete { partitions, .. } => partitions.clone(),
        GroupCommand::OffsetFetch { partitions, .. } => partitions.clone().unwrap_or_default(),
        GroupCommand::Join(_)
        | GroupCommand::Sync(_)
        | GroupCommand::Heartbeat(_)
        | GroupCommand::Leave { .. }
        | GroupCommand::Describe(_)
        | GroupCommand::List
        | GroupCommand::Delete(_) => Vec::new(),
    }
}

/// The topics that a command names.
fn topics_of(command: &Command) -> Vec<TopicId> {
    match command {
        Command::Catalog(CatalogCommand::CreateTopics { .. }) => Vec::new(),
        Command::Catalog(CatalogCommand::DeleteTopics(topics)) => topics.clone(),
        Command::Catalog(CatalogCommand::CreatePartitions { topics, .. }) => {
            topics.iter().map(|(topic, _)| *topic).collect()
        }
        Command::Catalog(CatalogCommand::AlterConfigs { topics, .. }) => {
            topics.iter().map(|(topic, _)| *topic).collect()
        }
        Command::Group(command) => {
            group_partitions(command).iter().map(|partition| partition.topic).collect()
        }
        Command::InitProducerId => Vec::new(),
        command => vec![partition_of(command).topic],
    }
}

/// Whether the node asks a shard for no more than the client allows.
fn is_within(asked: &Fetch, meant: &Fetch) -> bool {
    asked.bytes_max <= meant.bytes_max
        && asked.bytes_min <= meant.bytes_min
        && (asked.bytes_min > 0 || meant.bytes_min == 0)
        && asked.wait_ms <= meant.wait_ms
}

/// What the node has to answer by itself, from what it knows: a code for each element, 0 where it
/// has to ask. Nothing if it has to ask in any case.
fn refusals_due<'a>(
    known: &dyn Fn(&TopicId) -> Option<&'a TopicRoute>,
    command: &Command,
    is_by_id: bool,
) -> Vec<i16> {
    let unknown_topic = match is_by_id {
        true => ErrorCode::UnknownTopicId.code(),
        false => ErrorCode::UnknownTopicOrPartition.code(),
    };
    let of_topic = |id: &TopicId| if known(id).is_some() { 0 } else { unknown_topic };
    let of_partition = |id: &PartitionId| match known(&id.topic) {
        Some(topic) if id.index < topic.partition_count => 0,
        Some(_) => ErrorCode::UnknownTopicOrPartition.code(),
        None => unknown_topic,
    };
    match command {
        Command::Produce(produce) => {
            let (id, batch) = &produce.batches[0];
            let code = of_partition(id);
            let size_max = known(&id.topic).map(|topic| topic.config.batch_size_max);
            let is_large = size_max.is_some_and(|size_max| batch.size() > size_max as usize);
            let too_large = if is_large { ErrorCode::MessageTooLarge.code() } else { 0 };
            vec![if code == 0 { too_large } else { code }]
        }
        Command::Fetch(_) | Command::ListOffsets(_) | Command::DeleteRecords(_) => {
            vec![of_partition(&partition_of(command))]
        }
        Command::Catalog(CatalogCommand::CreateTopics { .. }) => Vec::new(),
        Command::Catalog(_) => topics_of(command).iter().map(of_topic).collect(),
        Command::Group(command) => match command {
            GroupCommand::OffsetCommit(_) | GroupCommand::OffsetDelete { .. } => {
                group_partitions(command).iter().map(of_partition).collect()
            }
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// The topic of an id, or of the name that the client has for it.
fn known_topic<'a>(
    routes: &'a Routes,
    names: &BTreeMap<TopicId, String>,
    is_by_id: bool,
    id: &TopicId,
) -> Option<&'a TopicRoute> {
    match is_by_id {
        true => routes.ids.get(id).map(AsRef::as_ref),
        false => {
            let found = routes.topics.get(names.get(id)?.as_str())?;
            (found.id == *id).then_some(found.as_ref())
        }
    }
}

/// A piece without what the node answers by itself.
fn narrowed<'a>(
    piece: &Piece,
    known: &dyn Fn(&TopicId) -> Option<&'a TopicRoute>,
) -> (Command, Asked) {
    let mut command = piece.command.clone();
    let mut asked = piece.asked.clone();
    let keep: Vec<bool> = piece.refused.iter().map(|code| *code == 0).collect();
    fn retain<T>(elements: &mut Vec<T>, keep: &[bool]) {
        let mut keep = keep.iter();
        elements.retain(|_| keep.next().copied().unwrap_or(true));
    }
    match &mut command {
        Command::Group(GroupCommand::OffsetCommit(commit)) => retain(&mut commit.offsets, &keep),
        Command::Group(GroupCommand::OffsetDelete { partitions, topics, .. }) => {
            retain(partitions, &keep);
            retain(topics, &keep);
        }
        Command::Group(GroupCommand::OffsetFetch { partitions: Some(partitions), .. }) => {
            partitions.retain(|id| {
                known(&id.topic).is_some_and(|topic| id.index < topic.partition_count)
            });
        }
        _ => {}
    }
    if let Asked::Commit(_, offsets, _) = &mut asked {
        retain(offsets, &keep);
    }
    (command, asked)
}
