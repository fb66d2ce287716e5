//! Every client produces, reads in a group of two, and survives a `kill -9` of the daemon.
//!
//! What the broker acknowledged is what counts: it is at its offset afterwards, once, in order, and
//! a group goes on where it committed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidemill_tests::clients::{Client, ClientId, Clients, Consume, Event, Produce, create_topic};
use tidemill_tests::daemon::{Daemon, Options};

const PARTITIONS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn kcat_reads_all_in_a_group_of_two() {
    reads_all_in_a_group_of_two(Client::Kcat);
}

#[test]
fn confluent_reads_all_in_a_group_of_two() {
    reads_all_in_a_group_of_two(Client::Confluent);
}

#[test]
fn kafka_python_reads_all_in_a_group_of_two() {
    reads_all_in_a_group_of_two(Client::KafkaPython);
}

#[test]
fn aiokafka_reads_all_in_a_group_of_two() {
    reads_all_in_a_group_of_two(Client::Aiokafka);
}

#[test]
fn java_reads_all_in_a_group_of_two() {
    reads_all_in_a_group_of_two(Client::Java);
}

#[test]
fn franz_go_reads_all_in_a_group_of_two() {
    reads_all_in_a_group_of_two(Client::FranzGo);
}

#[test]
fn kcat_loses_nothing_when_the_daemon_is_killed() {
    loses_nothing_when_the_daemon_is_killed(Client::Kcat);
}

#[test]
fn confluent_loses_nothing_when_the_daemon_is_killed() {
    loses_nothing_when_the_daemon_is_killed(Client::Confluent);
}

#[test]
fn kafka_python_loses_nothing_when_the_daemon_is_killed() {
    loses_nothing_when_the_daemon_is_killed(Client::KafkaPython);
}

#[test]
fn aiokafka_loses_nothing_when_the_daemon_is_killed() {
    loses_nothing_when_the_daemon_is_killed(Client::Aiokafka);
}

#[test]
fn java_loses_nothing_when_the_daemon_is_killed() {
    loses_nothing_when_the_daemon_is_killed(Client::Java);
}

#[test]
fn franz_go_loses_nothing_when_the_daemon_is_killed() {
    loses_nothing_when_the_daemon_is_killed(Client::FranzGo);
}

/// Two members share the partitions and read everything in order; a third one, later, goes on where
/// they committed.
fn reads_all_in_a_group_of_two(client: Client) {
    let daemon = Daemon::start(Options::default());
    create_topic(daemon.kafka(), "orders", PARTITIONS);
    let mut run = Run::new(&daemon);

    let first = run.clients.consume(client, &member("readers"));
    run.until(|run| run.assigned(&[first]).len() == PARTITIONS as usize);
    let second = run.clients.consume(client, &member("readers"));
    run.until(|run| {
        run.assigned(&[first, second]).len() == PARTITIONS as usize
            && !run.assigned(&[first]).is_empty()
            && !run.assigned(&[second]).is_empty()
            && run.assigned(&[first]).is_disjoint(&run.assigned(&[second]))
    });
    let producer = run.clients.produce(client, &records(0, 4000));
    run.until(|run| run.ended.contains_key(&producer) && run.keys().len() == 4000);
    run.stop(&[first, second]);
    assert!(run.ended.values().all(|success| *success), "a client failed: {:?}", run.ended);
    run.check_log(0..4000);
    let committed = run.committed.clone();
    assert_eq!(committed, run.ends(), "all that was read is committed");

    let mut run = Run::new(&daemon);
    let producer = run.clients.produce(client, &records(4000, 400));
    let third = run.clients.consume(client, &member("readers"));
    run.until(|run| run.ended.contains_key(&producer) && run.keys().len() == 400);
    run.stop(&[third]);
    run.check_log(4000..4400);
    run.check_goes_on_from(&committed);
}

/// The daemon is killed twice under a producer and a consumer, which go on by themselves.
fn loses_nothing_when_the_daemon_is_killed(client: Client) {
    let mut daemon = Daemon::start(Options::default());
    create_topic(daemon.kafka(), "orders", PARTITIONS);

    // A group that commits and goes away before the crash.
    let mut run = Run::new(&daemon);
    let producer = run.clients.produce(client, &records(0, 1000));
    let early = run.clients.consume(client, &member("early"));
    run.until(|run| run.ended.contains_key(&producer) && run.keys().len() == 1000);
    run.stop(&[early]);
    let before = run;

    let mut run = Run::new(&daemon);
    let live = run.clients.consume(client, &member("live"));
    run.until(|run| run.assigned(&[live]).len() == PARTITIONS as usize);
    let producer = run.clients.produce(client, &records(1000, 20_000));
    for acks in [2000, 9000] {
        run.until(|run| run.ack_count >= acks);
        assert!(!run.ended.contains_key(&producer), "the kill is in the middle");
        daemon.kill();
        run.restarted_from = run.committed.clone();
        daemon.restart();
    }
    run.until(|run| run.ended.contains_key(&producer) && run.keys().len() == 21_000);
    run.stop(&[live]);
    assert!(run.ended.values().all(|success| *success), "a client failed: {:?}", run.ended);
    assert_eq!(run.ack_count, 20_000, "every record is acknowledged in the end");
    run.check_log(0..21_000);
    let live_committed = run.committed.clone();

    // Both groups go on where they committed, the early one over all that the crash touched.
    let mut after = Run::new(&daemon);
    let early = after.clients.consume(client, &member("early"));
    after.until(|after| after.keys().len() == 20_000);
    after.stop(&[early]);
    after.check_log(1000..21_000);
    after.check_goes_on_from(&before.committed);
    for (place, key) in run.acks.iter().chain(&before.acks) {
        let found = run.log.get(place);
        assert!(found.is_some(), "acknowledged and gone: partition and offset {place:?}");
        assert!(key.is_none_or(|key| found == Some(&key)), "another record is at {place:?}");
    }
    let mut last = Run::new(&daemon);
    let producer = last.clients.produce(client, &records(21_000, 40));
    let live = last.clients.consume(client, &member("live"));
    last.until(|last| last.ended.contains_key(&producer) && last.keys().len() == 40);
    last.stop(&[live]);
    last.check_goes_on_from(&live_committed);
    assert!(daemon.terminate().success(), "SIGTERM ends it cleanly");
}

#[test]
fn every_codec_passes_through_as_it_was_sent() {
    let daemon = Daemon::start(Options::default());
    create_topic(daemon.kafka(), "orders", PARTITIONS);
    let mut first = 0;
    let mut run = Run::new(&daemon);
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        for client in [Client::Confluent, Client::Java, Client::FranzGo] {
            let produce = Produce { codec: Some(codec), ..records(first, 500) };
            let producer = run.clients.produce(client, &produce);
            run.until(|run| run.ended.contains_key(&producer));
            assert!(run.ended[&producer], "{client:?} with {codec}");
            first += 500;
        }
    }
    for client in [Client::Confluent, Client::Java, Client::FranzGo] {
        let mut run = Run::new(&daemon);
        let reader = run.clients.consume(client, &member(&format!("{client:?}")));
        run.until(|run| run.keys().len() as u64 == first);
        run.stop(&[reader]);
        run.check_log(0..first);
    }
}

/// Static membership (KIP-345): a member that dies and comes back in time gets its partitions
/// again, and the others do not notice.
#[test]
fn a_static_member_comes_back_without_a_rebalance() {
    for client in [Client::Confluent, Client::Java] {
        let daemon = Daemon::start(Options::default());
        create_topic(daemon.kafka(), "orders", PARTITIONS);
        let mut run = Run::new(&daemon);
        let named = |instance| Consume { instance: Some(instance), ..member("static") };
        let stays = run.clients.consume(client, &named("stays"));
        let dies = run.clients.consume(client, &named("dies"));
        run.until(|run| {
            run.assigned(&[stays]).len() == 2
                && run.assigned(&[dies]).len() == 2
                && run.assigned(&[stays, dies]).len() == 4
        });
        let (before, rebalances) = (run.assigned(&[dies]), run.rebalances[&stays]);
        run.clients.kill(dies);
        run.until(|run| run.ended.contains_key(&dies));
        let back = run.clients.consume(client, &named("dies"));
        run.until(|run| !run.assigned(&[back]).is_empty());
        assert_eq!(run.assigned(&[back]), before, "{client:?}");
        let producer = run.clients.produce(Client::FranzGo, &records(0, 400));
        run.until(|run| run.ended.contains_key(&producer) && run.keys().len() == 400);
        run.stop(&[stays, back]);
        assert_eq!(run.rebalances[&stays], rebalances, "{client:?} saw a rebalance");
    }
}

/// Cooperative rebalancing (KIP-429): who joins takes partitions over, the rest stay where they are.
#[test]
fn a_cooperative_group_moves_only_what_it_must() {
    for client in [Client::Confluent, Client::Java, Client::FranzGo] {
        let daemon = Daemon::start(Options::default());
        create_topic(daemon.kafka(), "orders", PARTITIONS);
        let mut run = Run::new(&daemon);
        let sticky = Consume { assignor: Some("cooperative-sticky"), ..member("cooperative") };
        let first = run.clients.consume(client, &sticky);
        run.until(|run| run.assigned(&[first]).len() == PARTITIONS as usize);
        let second = run.clients.consume(client, &sticky);
        run.until(|run| run.assigned(&[second]).len() == 2);
        let producer = run.clients.produce(Client::FranzGo, &records(0, 400));
        run.until(|run| run.ended.contains_key(&producer) && run.keys().len() == 400);
        run.stop(&[first, second]);
        run.check_log(0..400);
        let moved = run.assigned(&[second]);
        let read = |id| run.read_by[&id].keys().copied().collect::<BTreeSet<u32>>();
        assert_eq!(read(second), moved, "{client:?}");
        assert_eq!(read(first), (0..PARTITIONS).filter(|p| !moved.contains(p)).collect());
    }
}

fn member(group: &str) -> Consume<'_> {
    Consume { topic: "orders", group, instance: None, assignor: None }
}

fn records(first: u64, count: u64) -> Produce<'static> {
    Produce { topic: "orders", first, count, partitions: PARTITIONS, codec: None }
}

/// Partition and offset.
type Place = (u32, u64);

/// Clients and all that they said.
struct Run {
    clients: Clients,
    ack_count: usize,
    acks: BTreeMap<Place, Option<u64>>,
    /// Every record that was read; one key for each place, or the run fails.
    log: BTreeMap<Place, u64>,
    keys: BTreeSet<u64>,
    assigned: BTreeMap<ClientId, BTreeSet<u32>>,
    rebalances: BTreeMap<ClientId, usize>,
    /// First offset that each member read of each partition.
    read_by: BTreeMap<ClientId, BTreeMap<u32, u64>>,
    committed: BTreeMap<u32, u64>,
    /// What was committed when the daemon was killed; nothing below it may be read again.
    restarted_from: BTreeMap<u32, u64>,
    ended: BTreeMap<ClientId, bool>,
}

impl Run {
    fn new(daemon: &Daemon) -> Run {
        Run {
            clients: Clients::new(daemon.kafka(), PATIENCE),
            ack_count: 0,
            acks: BTreeMap::new(),
            log: BTreeMap::new(),
            keys: BTreeSet::new(),
            assigned: BTreeMap::new(),
            rebalances: BTreeMap::new(),
            read_by: BTreeMap::new(),
            committed: BTreeMap::new(),
            restarted_from: BTreeMap::new(),
            ended: BTreeMap::new(),
        }
    }

    /// Takes events until the condition holds.
    fn until(&mut self, is_done: impl Fn(&Run) -> bool) {
        while !is_done(self) {
            let (id, event) = self.clients.next_event();
            self.on_event(id, event);
        }
    }

    fn on_event(&mut self, id: ClientId, event: Event) {
        match event {
            Event::Ack { partition, offset, key } => {
                self.ack_count += 1;
                let before = self.acks.insert((partition, offset), key);
                assert_eq!(
                    before, None,
                    "partition {partition} offset {offset} acknowledged twice"
                );
            }
            Event::Assigned(partitions) => {
                self.assigned.insert(id, partitions.into_iter().collect());
                *self.rebalances.entry(id).or_default() += 1;
            }
            Event::Record { partition, offset, key } => {
                let floor = self.restarted_from.get(&partition).copied().unwrap_or_default();
                assert!(offset >= floor, "partition {partition}: {offset} read, {floor} committed");
                let before = self.log.insert((partition, offset), key);
                assert!(before.is_none_or(|before| before == key), "a record changed");
                self.keys.insert(key);
                self.read_by.entry(id).or_default().entry(partition).or_insert(offset);
            }
            Event::Committed { partition, offset } => {
                self.committed.insert(partition, offset);
            }
            Event::Changed(line) => panic!("a record came back changed: {line}"),
            Event::Ended(success) => {
                self.assigned.remove(&id);
                self.ended.insert(id, success);
            }
        }
    }

    /// Stops consumers and waits until they have ended well.
    fn stop(&mut self, ids: &[ClientId]) {
        let assigned = self.assigned.clone();
        for id in ids {
            self.clients.stop(*id);
            self.until(|run| run.ended.contains_key(id));
            assert!(self.ended[id], "a consumer failed");
        }
        self.assigned = assigned;
    }

    /// Partitions of these members together.
    fn assigned(&self, ids: &[ClientId]) -> BTreeSet<u32> {
        ids.iter().filter_map(|id| self.assigned.get(id)).flatten().copied().collect()
    }

    fn keys(&self) -> &BTreeSet<u64> {
        &self.keys
    }

    /// One past the last offset read of each partition.
    fn ends(&self) -> BTreeMap<u32, u64> {
        self.log.keys().map(|(partition, offset)| (*partition, offset + 1)).collect()
    }

    /// Each of these keys was read, at one place only, in the order in which it was sent.
    fn check_log(&self, keys: std::ops::Range<u64>) {
        assert_eq!(self.log.len(), self.keys.len(), "a record is there twice");
        assert!(self.keys.iter().copied().eq(keys), "exactly the records that were sent");
        let mut last = BTreeMap::new();
        for ((partition, offset), key) in &self.log {
            let before = last.insert(*partition, (*offset, *key));
            let Some((offset_before, key_before)) = before else { continue };
            assert_eq!(*offset, offset_before + 1, "partition {partition} has a gap");
            assert!(*key > key_before, "partition {partition} is out of order at {offset}");
        }
    }

    /// Every partition that was read was read from this offset on.
    fn check_goes_on_from(&self, committed: &BTreeMap<u32, u64>) {
        for (partition, first) in self.read_by.values().flatten() {
            let expected = committed.get(partition).copied().unwrap_or_default();
            assert_eq!(*first, expected, "partition {partition}: goes on where it committed");
        }
    }
}
