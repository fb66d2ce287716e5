//! What limits of age and size may take away, and what they have to.

use std::collections::BTreeMap;

use tidemill::command::{Routes, TopicConfig};
use tidemill_wal::format::{PartitionId, TopicId};

use super::{Check, Model, Partition, Sent, require};

/// Every configuration that each topic had, and until when it may have been in force.
#[derive(Debug, Default)]
pub(super) struct Settings {
    topics: BTreeMap<TopicId, Vec<Setting>>,
}

#[derive(Debug)]
struct Setting {
    config: TopicConfig,
    until_us: Option<u64>,
}

impl Settings {
    /// A new picture of the catalog.
    pub(super) fn on_picture(&mut self, routes: &Routes) {
        self.topics.retain(|topic, _| routes.ids.contains_key(topic));
        for (id, topic) in &routes.ids {
            let settings = self.topics.entry(*id).or_default();
            if settings.last().is_none_or(|last| last.config != topic.config) {
                settings.push(Setting { config: topic.config.clone(), until_us: None });
            }
        }
    }

    /// Every shard has the newest picture.
    pub(super) fn on_everywhere(&mut self, now_us: u64) {
        for settings in self.topics.values_mut() {
            let Some((_, older)) = settings.split_last_mut() else { continue };
            for setting in older {
                setting.until_us.get_or_insert(now_us);
            }
        }
    }

    /// What may have been in force at a time since then.
    pub(super) fn since(&self, topic: TopicId, from_us: u64) -> impl Iterator<Item = &TopicConfig> {
        (self.topics.get(&topic).into_iter().flatten())
            .filter(move |setting| setting.until_us.is_none_or(|until_us| until_us >= from_us))
            .map(|setting| &setting.config)
    }

    /// The only one that can be in force now.
    fn settled(&self, topic: TopicId) -> Option<&TopicConfig> {
        let (last, older) = self.topics.get(&topic)?.split_last()?;
        older.iter().all(|setting| setting.until_us.is_some()).then_some(&last.config)
    }
}

impl Model {
    /// Whether some limit in force since the start was last confirmed takes everything below
    /// `start`, and leaves what has to stay.
    pub(super) fn check_drop(&mut self, id: PartitionId, start: u64) -> Check {
        let Some(partition) = self.partitions.get(&id) else { return Ok(()) };
        if start <= partition.start || start <= partition.start_asked {
            return Ok(());
        }
        let is_allowed = self.settings.since(id.topic, partition.confirmed_us).any(|config| {
            let is_old = config.retention_ms.is_some_and(|retention_ms| {
                let dropped = partition.log.range(..start).rev();
                dropped
                    .take_while(|(_, (end, _))| *end > partition.start)
                    .all(|(_, (_, number))| self.may_be_older(&self.sent[*number], retention_ms))
            });
            let stays = || -> u64 {
                let placed = partition.log.range(start..);
                let size: u64 =
                    placed.map(|(_, (_, number))| self.sent[*number].batch.size() as u64).sum();
                size + partition.unplaced_size
            };
            // What a forgotten producer sent again may be there twice.
            let may_be_more = self.may_any_be_forgotten();
            is_old || config.retention_bytes.is_some_and(|bytes| may_be_more || stays() >= bytes)
        });
        self.counts.retention_moves += 1;
        require(is_allowed, || {
            let (known, asked) = (partition.start, partition.start_asked);
            format!("{id:?} starts at {start}, known was {known}, asked {asked}, no limit says so")
        })
    }

    fn may_be_older(&self, sent: &Sent, retention_ms: u64) -> bool {
        let appended_ms = self.clock.wall_ms_min(sent.first_tried);
        let oldest_ms = sent.batch.max_timestamp_ms().min(appended_ms);
        oldest_ms < self.clock.wall_ms_max().saturating_sub_unsigned(retention_ms)
    }

    /// The clients are done; from now on limits only take away.
    pub fn on_load_ended(&mut self) {
        self.load_ended = self.clock;
    }

    /// After a time without load and faults, limits that nothing can satisfy have taken all. The
    /// starts and ends have just been read.
    pub fn check_retention_is_done(&self) -> Check {
        for (id, partition) in &self.partitions {
            if !self.is_alive(*id) {
                continue;
            }
            let Some(config) = self.settings.settled(id.topic) else { continue };
            let is_all_old = config.retention_ms.is_some_and(|retention_ms| {
                let newest_ms = self.newest_timestamp_ms(partition);
                newest_ms < self.expired_at_ms.saturating_sub_unsigned(retention_ms)
            });
            let is_all_too_much = config.retention_bytes == Some(0);
            require(!(is_all_old || is_all_too_much) || partition.start == partition.end, || {
                let (start, end) = (partition.start, partition.end);
                format!("{id:?} keeps {start} to {end} against its limits: {config:?}")
            })?;
        }
        Ok(())
    }

    /// Retention had its time at this time of the machine's clock.
    pub fn on_retention_due(&mut self, wall_ms: i64) {
        self.expired_at_ms = wall_ms;
    }

    fn newest_timestamp_ms(&self, partition: &Partition) -> i64 {
        let stored =
            partition.log.values().map(|(_, number)| self.sent[*number].batch.max_timestamp_ms());
        // A topic that stamps batches itself used what the clock showed while there was load.
        stored.max().unwrap_or(0).max(self.load_ended.wall_ms_max())
    }
}
