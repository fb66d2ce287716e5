//! Two shards: when they tell each other, and what that costs in frames.

use tidemill_wal::commit::FrameWrite;
use tidemill_wal::format::Sequence;
use tidemill_wal::recovery::perform_write;

use super::super::{LogEnd, Recovered, UNHURRIED_MS, cut_ends};
use super::*;
use crate::topology::{Topology, Utf8};

const US: ShardId = ShardId(0);
const NEIGHBOUR: ShardId = ShardId(1);

fn pair(id: ShardId) -> ShardOptions {
    let topology = Topology::new("counting");
    let records = topology.source("in", Utf8).key_by("words", Utf8, Utf8, String::clone);
    records.count("count").map(|_, count| count.to_string()).sink("out", Utf8);
    topology.dead_letter("dead");
    let topologies = vec![topology.build().expect("good").into()];
    ShardOptions { id, shard_count: 2, topologies, ..options() }
}

impl World {
    /// A start of one of two shards, which has said hello and heard the other's.
    fn of_pair(id: ShardId) -> Self {
        let mut world = Self::with(pair(id));
        let mut effects = Vec::new();
        world.shard.start(&mut effects);
        effects.into_iter().for_each(|effect| world.perform(effect));
        world.hear(ShardId(1 - id.0), MeshMessage::OutboxDurable { through: 0, hello: true });
        world.sent.clear();
        world
    }

    fn hear(&mut self, from: ShardId, message: MeshMessage) {
        self.hear_all(from, [message]);
    }

    /// Entries are durable at once where they come from.
    fn hear_all(&mut self, from: ShardId, messages: impl IntoIterator<Item = MeshMessage>) {
        let mut through = Sequence(0);
        for message in messages {
            if let MeshMessage::Outbox { frame, .. } = message {
                through = frame;
            }
            self.inbox.push_back(Input::Mesh { from, message });
        }
        let message = MeshMessage::FrameDurable { through };
        self.inbox.push_back(Input::Mesh { from, message });
        self.run();
    }

    /// One input, nothing of which is performed.
    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.shard.step(self.now, input, &mut effects);
        self.shard.process(self.now, &mut || true, &mut effects);
        self.shard.flush(self.now, &mut effects);
        effects
    }

    fn pass_ms(&mut self, passed_ms: u64) {
        self.now.monotonic_ms += passed_ms;
        self.run();
    }

    /// The entry that went out since this was called last.
    fn take_entry(&mut self) -> Option<MeshMessage> {
        let mut entries = std::mem::take(&mut self.sent);
        entries.retain(|(_, message)| matches!(message, MeshMessage::Outbox { .. }));
        assert!(entries.len() < 2, "{entries:?}");
        entries.pop().map(|(_, message)| message)
    }

    /// How far entries were confirmed since this was called last.
    fn take_confirmation(&mut self) -> Option<u64> {
        let confirmed = |(_, message)| match message {
            MeshMessage::OutboxDurable { through, .. } => Some(through),
            MeshMessage::Outbox { .. }
            | MeshMessage::FrameDurable { .. }
            | MeshMessage::TopologyFlow { .. } => None,
        };
        std::mem::take(&mut self.sent).into_iter().filter_map(confirmed).max()
    }
}

/// Makes the topics of the counting on both shards; the first one's world, and the second one's.
fn counting_pair() -> (World, World, PartitionId) {
    let [mut first, mut second] = [US, NEIGHBOUR].map(World::of_pair);
    let topics = ["in", "out", "dead"].map(|name| NewTopic {
        name: name.to_owned(),
        partition_count: Some(2),
        config: Vec::new(),
        automatic: false,
    });
    let create = CatalogCommand::CreateTopics { topics: topics.to_vec(), validate_only: false };
    let ticket = first.ask(Command::Catalog(create));
    let entry = first.take_entry().expect("the other one is told");
    assert!(!first.replies.contains_key(&ticket.id));
    second.hear(US, entry);
    let through = second.take_confirmation().expect("somebody waits for a change of the catalog");
    let frames = first.frames;
    first.hear(NEIGHBOUR, MeshMessage::OutboxDurable { through, hello: false });
    let Some(Reply::Catalog(made)) = first.replies.remove(&ticket.id) else { panic!("made") };
    assert_eq!(first.frames, frames, "it is durable on both shards");
    let topic = made[0].as_ref().expect("made").topic;
    let mut partitions = first.shard.partitions.keys();
    let partition = *partitions.find(|id| id.topic == topic).expect("one of two");
    first.pass_ms(UNHURRIED_MS);
    (first, second, partition)
}

fn produce(partition: PartitionId, words: &[&str]) -> Command {
    let mut builder = BatchBuilder::new();
    for word in words {
        let (key, value) = (None, Some(word.as_bytes()));
        builder.push(NewRecord { timestamp_ms: 1, key, value, headers: &[] });
    }
    Command::Produce(Produce { batches: vec![(partition, builder.build())] })
}

fn send(world: &mut World, partition: PartitionId, words: &[&str]) {
    let Reply::Produce(results) = world.answer(produce(partition, words)) else { panic!("sent") };
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// Words until one is counted on the other shard: what that is sent, and its number.
fn send_away(world: &mut World, partition: PartitionId) -> (MeshMessage, u64) {
    for number in 0..100 {
        send(world, partition, &[&format!("word {number}")]);
        if let Some(entry @ MeshMessage::Outbox { first, .. }) = world.take_entry() {
            return (entry, first);
        }
    }
    panic!("every word is counted here");
}

/// The same, and the other shard has it.
fn send_away_and_confirm(world: &mut World, partition: PartitionId) -> u64 {
    let (_, through) = send_away(world, partition);
    assert_eq!(world.shard.gauges().outbox_depth, 1);
    world.hear(NEIGHBOUR, MeshMessage::OutboxDurable { through, hello: false });
    assert_eq!(world.shard.gauges().outbox_depth, 0);
    through
}

#[test]
fn what_the_neighbour_confirmed_is_forgotten_in_a_frame_that_somebody_waits_for() {
    let (mut first, _, partition) = counting_pair();
    send_away_and_confirm(&mut first, partition);
    let frames = first.frames;
    assert!(!first.shard.is_quiet(), "it is not recorded yet");
    first.pass_ms(UNHURRIED_MS - 1);
    assert_eq!(first.frames, frames, "nobody waits for it");
    send(&mut first, partition, &["another"]);
    assert_eq!(first.frames, frames + 1, "it went with what somebody waits for");
    assert!(first.shard.is_quiet());
}

#[test]
fn what_nobody_waits_for_is_written_after_a_while_or_when_the_node_stops() {
    for stops in [false, true] {
        let (mut first, _, partition) = counting_pair();
        send_away_and_confirm(&mut first, partition);
        let frames = first.frames;
        let due_ms = first.shard.next_deadline_ms().expect("it is to be written");
        assert!(due_ms <= first.now.monotonic_ms + UNHURRIED_MS);
        if stops {
            first.inbox.push_back(Input::Stop);
            first.run();
        } else {
            first.pass_ms(UNHURRIED_MS);
        }
        assert_eq!(first.frames, frames + 1);
        assert!(first.shard.is_quiet());
        let again = World::open(first.disk, pair(US), 0);
        assert_eq!(again.shard.gauges().outbox_depth, 0, "it is forgotten for good");
    }
}

#[test]
fn an_entry_whose_end_was_not_written_is_known_to_be_taken() {
    let (mut first, _, partition) = counting_pair();
    let through = send_away_and_confirm(&mut first, partition);
    let mut again = World::open(first.disk, pair(US), 0);
    assert_eq!(again.shard.gauges().outbox_depth, 1);
    again.hear(NEIGHBOUR, MeshMessage::OutboxDurable { through, hello: true });
    assert_eq!((again.take_entry().map(drop), again.shard.gauges().outbox_depth), (None, 0));
}

#[test]
fn an_answer_does_not_wait_for_what_nobody_waits_for() {
    let (mut first, _, partition) = counting_pair();
    send_away_and_confirm(&mut first, partition);
    let frames = first.frames;
    first.answer(Command::DescribePartitions(vec![partition]));
    assert_eq!(first.frames, frames);
}

#[test]
fn a_change_of_the_catalog_behind_a_topologys_entries_is_confirmed_at_once() {
    let (mut first, mut second, partition) = counting_pair();
    let (entry, sequence) = send_away(&mut first, partition);
    let topic = NewTopic {
        name: "b".to_owned(),
        partition_count: Some(1),
        config: Vec::new(),
        automatic: false,
    };
    let create = CatalogCommand::CreateTopics { topics: vec![topic], validate_only: false };
    first.ask(Command::Catalog(create));
    let change = first.take_entry().expect("the other one is told");
    second.hear_all(US, [entry, change]);
    assert_eq!(second.take_confirmation(), Some(sequence + 1));
}

#[test]
fn entries_of_a_topology_are_confirmed_together_and_later_than_their_results() {
    let (mut first, mut second, partition) = counting_pair();
    let (entry, sequence) = send_away(&mut first, partition);
    let frames = second.frames;
    second.hear(US, entry);
    assert_eq!(second.frames, frames + 1, "taken, counted and stored in one frame");
    assert_eq!(second.take_confirmation(), None, "its sender need not be woken for that alone");
    let (entry, next) = send_away(&mut first, partition);
    second.hear(US, entry);
    assert_eq!((second.take_confirmation(), next), (None, sequence + 1));
    let due_ms = second.shard.next_deadline_ms().expect("it is to be told");
    second.pass_ms(due_ms - second.now.monotonic_ms);
    assert_eq!(second.take_confirmation(), Some(next));
    let (entry, last) = send_away(&mut first, partition);
    second.hear(US, entry);
    assert_eq!(second.take_confirmation(), None);
    second.inbox.push_back(Input::Stop);
    second.run();
    assert_eq!(second.take_confirmation(), Some(last), "a stop leaves nothing");
    assert_eq!(ends(&second.shard), 3, "all were counted");
}

/// Records that readers may have, of all partitions.
fn ends(shard: &Shard) -> u64 {
    shard.partition_ends().map(|(_, end)| end).sum()
}

/// A word that the first shard takes and the second one counts.
fn word_counted_away() -> String {
    let (mut first, _, partition) = counting_pair();
    let mut words = (0..100).map(|number| format!("word {number}"));
    let is_away = |word: &String| {
        send(&mut first, partition, &[word]);
        first.take_entry().is_some()
    };
    words.find(is_away).expect("every word is counted here")
}

/// The first shard has handed a frame over, which holds an entry for the second one: the pair, that
/// write, and the entry.
fn entry_under_way() -> (World, World, FrameWrite, MeshMessage) {
    let word = word_counted_away();
    let (mut first, second, partition) = counting_pair();
    let ticket = first.ticket();
    let command = produce(partition, &[&word]);
    let mut effects = first.step(Input::Command { ticket, command });
    let Some(Effect::Mesh { to: NEIGHBOUR, message }) = effects.pop() else { panic!("sent") };
    let Some(Effect::Write(write)) = effects.pop() else { panic!("written before that") };
    let frame = match &message {
        MeshMessage::Outbox { frame, .. } => *frame,
        other => panic!("no entry: {other:?}"),
    };
    assert_eq!(frame, write.sequence);
    (first, second, write, message)
}

#[test]
fn a_frame_counts_when_the_one_that_its_entries_came_from_does() {
    let (mut first, mut second, write, message) = entry_under_way();
    let frame = write.sequence;
    let frames = second.frames;
    second.inbox.push_back(Input::Mesh { from: US, message });
    second.run();
    assert_eq!(second.frames, frames + 1, "it is written at the same time");
    assert_eq!(ends(&second.shard), 0, "nobody reads what may be gone");
    let asked = second.ask(Command::DescribeStorage);
    assert!(!second.replies.contains_key(&asked.id), "it may depend on that");
    assert!(!second.shard.is_quiet());
    let effects = first.step(Input::Durable(frame));
    let is_told = |effect: &Effect| {
        let Effect::Mesh { to: NEIGHBOUR, message } = effect else { return false };
        matches!(message, MeshMessage::FrameDurable { through } if *through == frame)
    };
    assert!(effects.iter().any(is_told), "{effects:?}");
    second.hear(US, MeshMessage::FrameDurable { through: frame });
    assert_eq!(ends(&second.shard), 1);
    assert!(second.replies.contains_key(&asked.id));
    assert!(second.shard.is_quiet());
}

#[test]
fn a_frame_goes_with_the_one_that_its_entries_came_from() {
    for is_written in [false, true] {
        let (mut first, mut second, write, message) = entry_under_way();
        second.inbox.push_back(Input::Mesh { from: US, message });
        second.run();
        if is_written {
            // And the power goes before anybody hears of it.
            perform_write(&mut first.disk, &write).expect("memory takes all");
        }
        let mut disks = [first.disk, second.disk];
        let recovered: Vec<Recovered> = (0..2)
            .map(|id| {
                let options = pair(ShardId(id));
                Shard::recover(&mut disks[usize::from(id)], options, &mut |_| {}).expect("good")
            })
            .collect();
        let log_ends: Vec<LogEnd> = recovered.iter().map(|it| it.log_end().clone()).collect();
        let cuts = cut_ends(&log_ends);
        assert_eq!(cuts, [false, !is_written]);
        let now = first.now;
        // The first has the record, the second its count.
        for ((found, disk), is_cut) in recovered.into_iter().zip(&mut disks).zip(cuts) {
            let opened = found.open(disk, is_cut, now).expect("good");
            assert_eq!(opened.torn.is_some(), is_cut);
            assert_eq!(ends(&opened.shard), u64::from(is_written));
        }
        // The cut is for good, and what follows it is not taken for damage.
        let mut again = World::open(std::mem::take(&mut disks[1]), pair(NEIGHBOUR), 0);
        assert_eq!(ends(&again.shard), u64::from(is_written));
        again.shard.start(&mut Vec::new());
        again.run();
        let frames = again.frames;
        again.pass_ms(1000);
        assert!(again.frames <= frames + 1);
        let again = World::open(again.disk, pair(NEIGHBOUR), 0);
        assert_eq!(ends(&again.shard), u64::from(is_written));
    }
}
