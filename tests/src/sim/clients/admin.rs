//! Makes, changes and deletes topics, moves starts, and asks for offsets; one request at a time.

use tidemill::command::{
    CatalogCommand, Command, ConfigChange, NewTopic, OffsetAnswer, OffsetAt, OffsetQuery, Refusal,
    Reply,
};
use tidemill_wal::format::{PartitionId, ShardId, TopicId};

use super::{Asked, Context, unexpected};
use crate::sim::model::{Check, Known, Model};

/// Topics at most.
const TOPICS_MAX: usize = 6;

/// Partitions of a topic at most.
const PARTITIONS_MAX: u32 = 6;

/// A configuration that is not honoured.
const REFUSED: (&str, &str) = ("cleanup.policy", "compact");

/// Changes the catalog.
#[derive(Debug)]
pub struct Admin {
    next_name: u64,
    /// Names of topics that were deleted.
    free_names: Vec<String>,
    is_waiting: bool,
    /// Topics whose deletion it asked for, and has not seen the end of.
    deleting: Vec<TopicId>,
    pause_us: u64,
    /// Whether topics may get limits of age and size.
    has_retention: bool,
}

impl Admin {
    /// An administrator that pauses about so long between requests.
    pub fn new(pause_us: u64, has_retention: bool) -> Self {
        Self {
            next_name: 0,
            free_names: Vec::new(),
            is_waiting: false,
            deleting: Vec::new(),
            pause_us,
            has_retention,
        }
    }

    pub(super) fn act(&mut self, cx: &mut Context<'_>) -> u64 {
        let pause_us = cx.random.between(1, 2 * self.pause_us);
        if self.is_waiting {
            return pause_us;
        }
        self.end_deletions(cx.model);
        if cx.is_draining {
            return pause_us;
        }
        if !cx.random.one_in(3)
            && let Some((name, partition_count)) = cx.model.missing_topic()
        {
            self.create_topic(cx, name, partition_count, Vec::new());
            return cx.random.between(1, 400);
        }
        let alive = cx.model.alive();
        let topic_count = cx.model.plain_topic_count();
        if topic_count < 2 || (topic_count < TOPICS_MAX && cx.random.one_in(12)) {
            self.create(cx);
            return pause_us;
        }
        let Some((partition, shard)) = (!alive.is_empty()).then(|| cx.random.choose(&alive)) else {
            return pause_us;
        };
        let is_kept = cx.model.is_of_stream(partition);
        match cx.random.below(12) {
            // What becomes of a topic that a topology has is the topology's to say.
            0..=5 if is_kept => self.list_offsets(cx, partition, shard),
            0 => self.delete(cx, partition.topic),
            1 => self.grow(cx, partition.topic),
            2 | 3 => self.configure(cx, partition.topic),
            4 | 5 => self.delete_records(cx, partition, shard),
            6 => {
                let asked = Asked::Describe(vec![(partition, cx.model.known(partition))]);
                let command = Command::DescribePartitions(vec![partition]);
                self.ask(cx, shard, command, asked);
            }
            _ => self.list_offsets(cx, partition, shard),
        }
        pause_us
    }

    fn ask(&mut self, cx: &mut Context<'_>, shard: ShardId, command: Command, asked: Asked) {
        self.is_waiting = true;
        cx.asked.push((shard, command, asked));
    }

    fn change(&mut self, cx: &mut Context<'_>, command: CatalogCommand) {
        let asked = Asked::Catalog(command.clone());
        self.ask(cx, ShardId(0), Command::Catalog(command), asked);
    }

    fn create(&mut self, cx: &mut Context<'_>) {
        let is_reused = !self.free_names.is_empty() && cx.random.one_in(2);
        let name = match is_reused {
            true => self.free_names.remove(0),
            false => {
                self.next_name += 1;
                format!("topic-{}", self.next_name)
            }
        };
        let partition_count = cx.random.skewed(1, u64::from(PARTITIONS_MAX)) as u32;
        let mut config = Vec::new();
        if cx.random.one_in(4) {
            config.push(("message.timestamp.type".to_owned(), "LogAppendTime".to_owned()));
        }
        if self.has_retention && cx.random.one_in(2) {
            config.push(("retention.bytes".to_owned(), "40000".to_owned()));
        }
        if cx.random.one_in(8) {
            config.push(("max.message.bytes".to_owned(), "2000".to_owned()));
        }
        self.create_topic(cx, name, partition_count, config);
    }

    fn create_topic(
        &mut self,
        cx: &mut Context<'_>,
        name: String,
        partition_count: u32,
        config: Vec<(String, String)>,
    ) {
        let partition_count = Some(partition_count);
        let topics = vec![NewTopic { name, partition_count, config, automatic: false }];
        self.change(cx, CatalogCommand::CreateTopics { topics, validate_only: false });
    }

    fn delete(&mut self, cx: &mut Context<'_>, topic: TopicId) {
        cx.model.on_deletion_asked(topic);
        self.free_names.extend(cx.model.topic(topic).map(|topic| topic.name.to_string()));
        self.deleting.push(topic);
        self.change(cx, CatalogCommand::DeleteTopics(vec![topic]));
    }

    fn grow(&mut self, cx: &mut Context<'_>, id: TopicId) {
        let Some(count) = cx.model.topic(id).map(|topic| topic.partition_count) else { return };
        if count < PARTITIONS_MAX {
            let topics = vec![(id, count + 1)];
            self.change(cx, CatalogCommand::CreatePartitions { topics, validate_only: false });
        }
    }

    fn configure(&mut self, cx: &mut Context<'_>, id: TopicId) {
        let mut updates = Vec::new();
        if cx.random.one_in(2) {
            let kind = cx.random.choose(&["CreateTime", "LogAppendTime"]);
            updates.push(("message.timestamp.type".to_owned(), Some(kind.to_owned())));
        }
        if self.has_retention && cx.random.one_in(2) {
            let (key, values) = match cx.random.one_in(2) {
                true => ("retention.bytes", ["0", "20000", "100000", "-1"]),
                false => ("retention.ms", ["50", "50", "500", "-1"]),
            };
            let value = (!cx.random.one_in(4)).then(|| cx.random.choose(&values).to_owned());
            updates.push((key.to_owned(), value));
        }
        if cx.random.one_in(6) {
            let size = cx.random.choose(&["700", "3000", "65536"]);
            updates.push(("max.message.bytes".to_owned(), Some(size.to_owned())));
        }
        if cx.random.one_in(10) {
            updates.push((REFUSED.0.to_owned(), Some(REFUSED.1.to_owned())));
        }
        let topics = vec![(id, ConfigChange::Update(updates))];
        self.change(cx, CatalogCommand::AlterConfigs { topics, validate_only: false });
    }

    fn delete_records(&mut self, cx: &mut Context<'_>, partition: PartitionId, shard: ShardId) {
        let known = cx.model.known(partition);
        let offset = match cx.random.one_in(4) {
            true => None,
            false => Some(cx.random.between(known.start(), known.end().max(known.start()))),
        };
        cx.model.on_start_asked(partition, offset);
        let wanted = vec![(partition, offset)];
        self.ask(cx, shard, Command::DeleteRecords(wanted.clone()), Asked::DeleteRecords(wanted));
    }

    fn list_offsets(&mut self, cx: &mut Context<'_>, partition: PartitionId, shard: ShardId) {
        let at = match cx.random.below(4) {
            0 => OffsetAt::Earliest,
            1 => OffsetAt::Latest,
            2 => OffsetAt::MaxTimestamp,
            _ => OffsetAt::Time(cx.wall_ms - cx.random.skewed(1, 2000) as i64),
        };
        let asked = Asked::ListOffsets(vec![(partition, at, cx.model.known(partition))]);
        self.ask(cx, shard, Command::ListOffsets(vec![OffsetQuery { partition, at }]), asked);
    }

    pub(super) fn on_reply(&mut self, _: &mut Context<'_>, asked: Asked, reply: Reply) -> Check {
        self.is_waiting = false;
        match asked {
            Asked::Catalog(_)
            | Asked::DeleteRecords(_)
            | Asked::Describe(_)
            | Asked::ListOffsets(_) => Ok(()),
            asked => unexpected(&asked, &reply),
        }
    }

    /// What it asked has happened by now, or never will: topics that are there stay.
    fn end_deletions(&mut self, model: &mut Model) {
        for topic in self.deleting.drain(..) {
            model.on_deletion_undone(topic);
        }
    }

    pub(super) fn on_restart(&mut self, cx: &mut Context<'_>) {
        self.is_waiting = false;
        // Shard 0 has said by now whether the topics are still there.
        self.end_deletions(cx.model);
    }

    /// What it asked may happen, or not.
    pub(super) fn on_disconnect(&mut self) {
        self.is_waiting = false;
    }
}

/// Compares an answer with the model.
pub(super) fn check(model: &mut Model, asked: &Asked, reply: &Reply) -> Check {
    match (asked, reply) {
        (Asked::Catalog(command), Reply::Catalog(results)) => {
            for result in results {
                match result {
                    Ok(_) if is_wrong(command) => {
                        return Err(format!("{command:?} is not refused"));
                    }
                    Err(refused) if !is_wrong(command) && !is_done(model, command) => {
                        return Err(format!("{command:?} is refused: {}", refused.message));
                    }
                    Err(_) => return Ok(()),
                    Ok(_) => {}
                }
            }
            model.on_catalog_acknowledged();
            check_change(model, command)
        }
        (Asked::Catalog(CatalogCommand::DeleteTopics(topics)), Reply::Refused(_)) => {
            topics.iter().for_each(|topic| model.on_deletion_undone(*topic));
            Ok(())
        }
        (Asked::DeleteRecords(asked), Reply::DeleteRecords(results)) => {
            for ((partition, _), result) in asked.iter().zip(results) {
                match result {
                    Ok(start) => model.on_start(*partition, *start),
                    Err(Refusal::OffsetOutOfRange) => {}
                    Err(Refusal::UnknownPartition) if model.is_deleting(partition.topic) => {}
                    Err(refusal) => return Err(format!("DeleteRecords: {refusal:?}")),
                }
            }
            Ok(())
        }
        (Asked::Describe(asked), Reply::DescribePartitions(results)) => {
            for ((partition, known), result) in asked.iter().zip(results) {
                match result {
                    Ok(facts) => {
                        let bounds = (facts.start, facts.durable_end);
                        model.on_bounds(*partition, *known, bounds)?;
                    }
                    Err(Refusal::UnknownPartition) if model.is_deleting(partition.topic) => {}
                    Err(refusal) => return Err(format!("DescribePartitions: {refusal:?}")),
                }
            }
            Ok(())
        }
        (Asked::ListOffsets(asked), Reply::ListOffsets(results)) => {
            for ((partition, at, known), result) in asked.iter().zip(results) {
                check_answer(model, *partition, *at, *known, result)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whether a change asks for something that is not honoured.
fn is_wrong(command: &CatalogCommand) -> bool {
    let CatalogCommand::AlterConfigs { topics, .. } = command else { return false };
    let is_wrong = |change: &ConfigChange| match change {
        ConfigChange::Update(updates) => updates.iter().any(|(key, _)| key == REFUSED.0),
        ConfigChange::Replace(values) => values.iter().any(|(key, _)| key == REFUSED.0),
    };
    topics.iter().any(|(_, change)| is_wrong(change))
}

/// Whether what a change is for is so already, or cannot be any more: of a life before, or asked
/// for on a connection before.
fn is_done(model: &Model, command: &CatalogCommand) -> bool {
    let Some(picture) = model.picture() else { return false };
    match command {
        CatalogCommand::CreateTopics { topics, .. } => {
            topics.iter().all(|topic| picture.topics.contains_key(topic.name.as_str()))
        }
        CatalogCommand::DeleteTopics(topics) => {
            topics.iter().all(|topic| !picture.ids.contains_key(topic))
        }
        CatalogCommand::CreatePartitions { topics, .. } => topics.iter().all(|(id, count)| {
            picture.ids.get(id).is_none_or(|found| found.partition_count >= *count)
        }),
        CatalogCommand::AlterConfigs { topics, .. } => {
            topics.iter().all(|(id, _)| !picture.ids.contains_key(id))
        }
    }
}

/// What was acknowledged is in the catalog that everybody has.
fn check_change(model: &Model, command: &CatalogCommand) -> Check {
    let picture = model.picture().ok_or("a change without a catalog")?;
    let holds = match command {
        CatalogCommand::CreateTopics { topics, .. } => topics.iter().all(|topic| {
            picture.topics.get(topic.name.as_str()).is_some_and(|found| {
                Some(found.partition_count) == topic.partition_count
                    && topic
                        .config
                        .iter()
                        .all(|(key, value)| found.config.overrides.get(key) == Some(value))
            })
        }),
        CatalogCommand::DeleteTopics(topics) => {
            topics.iter().all(|topic| !picture.ids.contains_key(topic))
        }
        CatalogCommand::CreatePartitions { topics, .. } => topics.iter().all(|(id, count)| {
            picture.ids.get(id).is_some_and(|found| found.partition_count == *count)
        }),
        CatalogCommand::AlterConfigs { topics, .. } => topics.iter().all(|(id, change)| {
            let ConfigChange::Update(updates) = change else { return true };
            picture.ids.get(id).is_some_and(|found| {
                updates.iter().all(|(key, value)| found.config.overrides.get(key) == value.as_ref())
            })
        }),
    };
    if holds { Ok(()) } else { Err(format!("{command:?} is acknowledged and not there")) }
}

fn check_answer(
    model: &mut Model,
    partition: PartitionId,
    at: OffsetAt,
    known: Known,
    result: &Result<OffsetAnswer, Refusal>,
) -> Check {
    let answer = match result {
        Ok(answer) => answer,
        Err(Refusal::UnknownPartition) if model.is_deleting(partition.topic) => return Ok(()),
        // The file went while it was read; the client asks again.
        Err(Refusal::Busy) => return Ok(()),
        Err(refusal) => return Err(format!("{partition:?} {at:?}: {refusal:?}")),
    };
    match (at, answer) {
        (OffsetAt::Earliest, OffsetAnswer::Offset(start)) => {
            model.on_bounds(partition, known, (*start, known.end().max(*start)))
        }
        (OffsetAt::Latest, OffsetAnswer::Offset(end)) => model.on_end(partition, known, *end),
        (_, OffsetAnswer::InBatch(batch)) => {
            if let OffsetAt::Time(time_ms) = at {
                model.check_time(partition, known, time_ms, Some(batch.base_offset()))?;
            }
            if let OffsetAt::Time(time_ms) = at
                && batch.max_timestamp_ms() < time_ms
            {
                return Err(format!("{partition:?}: a batch from before {time_ms}"));
            }
            model.on_found(partition, batch)
        }
        (OffsetAt::Time(time_ms), OffsetAnswer::None) => {
            model.check_time(partition, known, time_ms, None)
        }
        (OffsetAt::Time(_) | OffsetAt::MaxTimestamp, _) => Ok(()),
        (at, answer) => Err(format!("{partition:?} {at:?}: {answer:?}")),
    }
}
