//! The catalog's traffic: shard 0 decides, every shard applies, the asker hears when all have it
//! durable. And producer ids, which shard 0 grants from durable blocks.

use bytes::Bytes;
use tidemill_wal::format::{PartitionId, ShardId, TopicId};
use tidemill_wal::limits::VALUE_SIZE_MAX;
use tidemill_wal::mutation::{self, Mutation};

use super::{Outgoing, Shard};
use crate::command::{CatalogCommand, Refusal, Refused, Reply, Ticket};
use crate::effect::{Change, Effect, MeshMessage, Now, Outcome};
use crate::outbox::{decode_changes, encode_changes};
use crate::state::Kind;
use crate::topology::stored::{ENTRY_MARK, decode_progress_key};

/// Ids that one durable block grants: a crash wastes at most so many.
const PRODUCER_ID_BLOCK: i64 = 1000;

/// Catalog changes that may wait for other shards.
const CHANGES_OPEN_MAX: usize = 512;

/// Producer ids of shard 0.
#[derive(Debug, Default)]
pub(super) struct ProducerIds {
    next: i64,
    /// Ids below this are granted durably.
    granted: i64,
}

impl ProducerIds {
    /// Goes on after everything that was ever granted.
    pub(super) fn resume(granted: i64) -> Self {
        Self { next: granted, granted }
    }
}

/// A change that some shards do not have durable yet.
#[derive(Debug)]
pub(super) struct OpenChange {
    ticket: Ticket,
    reply: Reply,
    /// Outbox sequence of the change for each shard that has not confirmed it.
    missing: Vec<(ShardId, u64)>,
}

impl Shard {
    pub(super) fn init_producer_id(&mut self) -> Reply {
        if self.options.id != ShardId(0) {
            return Reply::Refused(Refusal::WrongShard);
        }
        if self.producer_ids.next == self.producer_ids.granted {
            if !self.has_room(0) {
                return Reply::InitProducerId(Err(self.refusal_of_room()));
            }
            self.producer_ids.granted += PRODUCER_ID_BLOCK;
            if !mutation::is_on(Mutation::ForgetGrantedIds) {
                self.record(Change {
                    key: Kind::ProducerIdBlock.key(&[]),
                    value: Some(self.producer_ids.granted.to_le_bytes().to_vec()),
                });
            }
        }
        let id = self.producer_ids.next;
        self.producer_ids.next += 1;
        Reply::InitProducerId(Ok(id))
    }

    pub(super) fn change_catalog(
        &mut self,
        ticket: Ticket,
        command: &CatalogCommand,
        effects: &mut Vec<Effect>,
    ) {
        let refusal = if self.options.id != ShardId(0) {
            Some(Refusal::WrongShard)
        } else if self.changes_open.len() >= CHANGES_OPEN_MAX || !self.outbox.has_room() {
            Some(Refusal::Busy)
        } else if !matches!(command, CatalogCommand::DeleteTopics(_)) && !self.has_room(0) {
            Some(self.refusal_of_room())
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return self.hold(Outgoing::Reply(ticket, Reply::Refused(refusal)), effects);
        }
        let mut plan = self.catalog.plan(command, &mut self.ids);
        let packed = encode_changes(&plan.changes);
        // The frame holds the changes once for this shard and once for each other.
        let shard_count = usize::from(self.options.shard_count);
        let size = packed.len() * shard_count;
        let count = plan.changes.len() + 2 * shard_count;
        if packed.len() > VALUE_SIZE_MAX || size > self.wal.frame_size_max() / 2 {
            let message = "too many topics in one request; send fewer at a time".to_owned();
            let refused = Refused { refusal: Refusal::PolicyViolation, message };
            plan.results = plan.results.iter().map(|_| Err(refused.clone())).collect();
            plan.changes.clear();
        } else if !plan.changes.is_empty() && !self.wal.fits_leaving(count, size, 0) {
            let refused = Reply::Refused(self.refusal_of_room());
            return self.hold(Outgoing::Reply(ticket, refused), effects);
        }
        let reply = Reply::Catalog(plan.results);
        if plan.changes.is_empty() {
            return self.hold(Outgoing::Reply(ticket, reply), effects);
        }
        let mut missing = Vec::new();
        let mut changes = Vec::new();
        for shard in self.outbox.others() {
            let sequence = self.outbox.push(shard, packed.clone(), &mut changes);
            missing.push((shard, sequence));
        }
        for change in changes {
            self.record(change);
        }
        self.apply_catalog(plan.changes, effects);
        for (shard, sequence) in &missing {
            self.hold(Outgoing::Entry(*shard, *sequence), effects);
        }
        if missing.is_empty() || mutation::is_on(Mutation::AnswerCatalogEarly) {
            self.hold(Outgoing::Reply(ticket, reply), effects);
        } else {
            self.changes_open.push_back(OpenChange { ticket, reply, missing });
        }
    }

    /// Applies changes that shard 0 decided, and publishes the new picture when they are durable.
    fn apply_catalog(&mut self, changes: Vec<Change>, effects: &mut Vec<Effect>) {
        for change in changes {
            let event = match self.catalog.apply(&change) {
                Ok(event) => event,
                Err(why) => panic!("shard 0 decided a change that cannot be applied: {why}"),
            };
            self.record(change);
            if let Some(event) = event {
                self.on_topic(event, effects);
            }
        }
        let routes = self.catalog.routes().clone().into();
        self.hold(Outgoing::Routes(routes), effects);
    }

    /// Removes everything of a topic that this shard holds.
    pub(super) fn forget_topic(&mut self, topic: TopicId, effects: &mut Vec<Effect>) {
        let mut gone: Vec<PartitionId> =
            self.partitions.keys().filter(|id| id.topic == topic).copied().collect();
        gone.sort_unstable();
        for id in &gone {
            self.partitions.remove(id);
            self.hold(Outgoing::Drop(*id, u64::MAX), effects);
            self.dirty_partitions.remove(id);
        }
        self.wake_readers_of_gone(&gone, effects);
        self.dirty_producers.retain(|(id, _)| id.topic != topic);
        let mut keys = Vec::new();
        for kind in [Kind::Partition, Kind::Producer, Kind::ForgottenProducers] {
            let prefix = kind.key(&[&topic.0]);
            keys.extend(self.state.range(&prefix).map(|(key, _)| key.to_vec()));
        }
        let progress = Kind::TopologyProgress.key(&[]);
        let is_of_topic = |key: &[u8]| {
            decode_progress_key(key).is_some_and(|(_, partition)| partition.topic == topic)
        };
        let read = self.state.range(&progress).map(|(key, _)| key).filter(|key| is_of_topic(key));
        keys.extend(read.map(<[u8]>::to_vec));
        for key in keys {
            // Found in the frame by whoever replays it: the topic's own tombstone says it all, so
            // these need no entry in the WAL, only in the next delta file.
            self.state.apply(Change { key, value: None });
        }
        let mut outcome = Outcome::default();
        self.groups.on_topic_deleted(topic, &mut outcome);
        for change in outcome.changes {
            self.state.apply(change);
        }
    }

    pub(super) fn on_mesh(
        &mut self,
        now: Now,
        from: ShardId,
        message: MeshMessage,
        effects: &mut Vec<Effect>,
    ) {
        match message {
            MeshMessage::Outbox { first, entries, frame } => {
                self.rest_on(from, frame);
                if self.must_hold(from, &entries) {
                    return self.hold_entries(from, first, entries);
                }
                self.take_held_of(from, effects);
                self.take_entries(from, first, entries, effects);
            }
            MeshMessage::FrameDurable { through } => {
                self.on_frame_durable(now, from, through, effects);
            }
            MeshMessage::TopologyFlow { topology, stops } => self.on_flow(from, topology, stops),
            MeshMessage::OutboxDurable { through, hello } => {
                let mut changes = Vec::new();
                match self.outbox.on_confirmed(from, through, hello, &mut changes) {
                    Ok(resend) => {
                        // They depend on what is durable there, and not on what is forgotten here.
                        self.confirm_changes(from, through, effects);
                        self.record_unhurried(now, changes);
                        if let Some(message) = resend {
                            self.hold(Outgoing::Resend(from, message), effects);
                        }
                    }
                    Err(fault) => effects.push(Effect::Halt(fault.to_string())),
                }
            }
        }
    }

    pub(super) fn take_entries(
        &mut self,
        from: ShardId,
        first: u64,
        entries: Vec<Bytes>,
        effects: &mut Vec<Effect>,
    ) {
        let mut changes = Vec::new();
        let new = self.outbox.take(from, first, entries, &mut changes);
        if let Some((through, _)) = new.last() {
            self.mark_early(from, *through);
        }
        let (mut has_arrivals, mut has_changes) = (false, false);
        for (sequence, entry) in new {
            if entry.starts_with(&ENTRY_MARK) {
                self.take_topology_entry(from, sequence, &entry);
                has_arrivals = true;
                continue;
            }
            let Some(changes) = decode_changes(&entry) else {
                panic!("an outbox entry of shard {} cannot be read", from.0);
            };
            self.apply_catalog(changes, effects);
            has_changes = true;
        }
        // The filter comes last: if all this takes two frames, the first one alone must not say
        // that everything was taken. To apply an entry of the catalog again changes nothing; one for
        // a topology may be taken in this step, or is recorded at its end.
        if has_arrivals || self.topologies.has_arrived(from) {
            // A client waits for the answer to a change.
            self.on_arrived(from, changes, has_changes);
        } else {
            self.confirm_entries(from, changes, true, effects);
        }
    }

    /// Records how far another shard's entries were taken, and tells it once that is durable.
    pub(super) fn confirm_entries(
        &mut self,
        from: ShardId,
        filter: Vec<Change>,
        at_once: bool,
        effects: &mut Vec<Effect>,
    ) {
        for change in filter {
            self.record(change);
        }
        let through = self.outbox.taken(from);
        if mutation::is_on(Mutation::ConfirmEntryEarly) {
            let message = MeshMessage::OutboxDurable { through, hello: false };
            return self.release(Outgoing::Mesh(from, message), effects);
        }
        self.hold(Outgoing::Confirmation { to: from, through, at_once }, effects);
    }

    fn confirm_changes(&mut self, from: ShardId, through: u64, effects: &mut Vec<Effect>) {
        for change in &mut self.changes_open {
            change.missing.retain(|(shard, sequence)| *shard != from || *sequence > through);
        }
        while let Some(change) = self.changes_open.pop_front_if(|c| c.missing.is_empty()) {
            self.hold(Outgoing::Reply(change.ticket, change.reply), effects);
        }
    }
}
