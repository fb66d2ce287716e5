//! One round: load, faults while it runs, and the end of everything that was begun.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::committer::Committer;
use super::crowd::Crowd;
use super::ledger::first_key;
use super::plan::{Fault, Plan, Trouble};
use super::read_back::{committed, create_topic};
use super::writer::Writer;
use super::{PARTITIONS, Torture, round_topics};
use crate::clients::{Client, ClientId, Clients, Consume, Event, Produce};
use crate::volume::fill;

/// Once the faults are over, all clients finish within this.
const PATIENCE: Duration = Duration::from_secs(120);
/// Events of the libraries that are taken in a second while faults come and go, so that the
/// libraries are busy all the time: they wait when nobody listens.
const EVENTS_PER_SECOND: f64 = 4000.0;
/// What libraries that start fast may do before the others are there.
const LEAD: Duration = Duration::from_secs(3);
/// Our own producers.
const WRITERS: u64 = 2;
/// What each of them sends at most in a round.
const WRITER_SIZE_MAX: u64 = 80 << 20;
/// How often the node is looked at when its clients are silent.
const TICK: Duration = Duration::from_millis(100);

/// What a library's process is for, and how far it is.
enum Role {
    Producer {
        writer: u64,
        count: u64,
    },
    /// With the next offset of each partition that it has not read.
    Consumer {
        group: String,
        partitions: BTreeMap<u32, u64>,
    },
}

struct Process {
    id: ClientId,
    client: Client,
    role: Role,
    /// Whether it has said anything yet.
    is_at_work: bool,
    ended: Option<bool>,
}

/// Begin or end of a spell, by its index in the plan.
#[derive(Debug, Clone, Copy)]
enum Action {
    Begin(usize),
    End(usize),
}

struct Round<'a> {
    torture: &'a mut Torture,
    plan: &'a Plan,
    live: String,
    raw: String,
    begin: Instant,
    clients: Clients,
    processes: Vec<Process>,
    writers: Vec<Writer>,
    committer: Option<Committer>,
    crowds: Vec<Crowd>,
    events: u64,
}

/// Runs a round until all its clients are done: how long they took after the faults.
pub(super) fn run(torture: &mut Torture, plan: &Plan) -> Result<Duration, String> {
    let [live, raw] = round_topics(torture.report.rounds);
    let mut peer = torture.peer()?;
    create_topic(&mut peer, &live, PARTITIONS)?;
    create_topic(&mut peer, &raw, PARTITIONS)?;
    drop(peer);
    let clients = Clients::new(torture.daemon.kafka(), PATIENCE);
    let mut round = Round {
        torture,
        plan,
        live,
        raw,
        begin: Instant::now(),
        clients,
        processes: Vec::new(),
        writers: Vec::new(),
        committer: None,
        crowds: Vec::new(),
        events: 0,
    };
    round.load();
    let result = round.faults().and_then(|()| {
        let over = Instant::now();
        round.drain().map(|()| over.elapsed())
    });
    // After a failure they may still run.
    round.stop_writing();
    round.crowds.iter().for_each(Crowd::stop);
    result.map_err(|why| round.with_complaints(why))
}

impl Round<'_> {
    /// Starts all clients.
    fn load(&mut self) {
        let address = self.torture.daemon.kafka();
        for _ in 0..WRITERS {
            let writer = self.next_writer();
            let ledger = &self.torture.ledger;
            let Plan { rate, .. } = *self.plan;
            let size_max = WRITER_SIZE_MAX;
            let writer =
                Writer::start(address, &self.raw, PARTITIONS, writer, rate, size_max, ledger);
            self.writers.push(writer);
        }
        self.committer = Some(Committer::start(address, "committer", &self.raw));
        let Plan { producers, consumers, .. } = self.plan;
        for &client in consumers {
            let group = format!("group-{client:?}");
            let consume =
                Consume { topic: &self.live, group: &group, instance: None, assignor: None };
            let id = self.clients.consume(client, &consume);
            let partitions = (0..PARTITIONS).map(|index| (index, 0)).collect();
            let role = Role::Consumer { group, partitions };
            self.processes.push(Process { id, client, role, is_at_work: false, ended: None });
        }
        // Each record is an event when it is acknowledged, and one in each group.
        let events = (LEAD + self.plan.end()).as_secs_f64() * EVENTS_PER_SECOND;
        let count = events / (1 + consumers.len()) as f64 / producers.len() as f64;
        for &client in producers {
            let (writer, count) = (self.next_writer(), count as u64);
            let produce = Produce {
                topic: &self.live,
                first: first_key(writer),
                count,
                partitions: PARTITIONS,
                codec: None,
            };
            let id = self.clients.produce(client, &produce);
            let role = Role::Producer { writer, count };
            self.processes.push(Process { id, client, role, is_at_work: false, ended: None });
        }
    }

    fn next_writer(&mut self) -> u64 {
        self.torture.writers += 1;
        self.torture.writers
    }

    /// All spells of the plan, each at its time, once the clients are at work: some libraries give
    /// up if there is no node when they start.
    fn faults(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !self.processes.iter().all(|process| process.is_at_work) {
            if Instant::now() > deadline {
                return Err(format!("the clients are not at work within {PATIENCE:?}"));
            }
            self.take_events_until(Instant::now() + TICK)?;
        }
        (self.begin, self.events) = (Instant::now(), 0);
        let mut actions = Vec::new();
        for (index, spell) in self.plan.spells.iter().enumerate() {
            actions.push((spell.from, Action::Begin(index)));
            if spell.trouble.fault() != Fault::Kill {
                actions.push((spell.to, Action::End(index)));
            }
        }
        actions.sort_by_key(|(at, _)| *at);
        for (at, action) in actions {
            self.take_events_until(self.begin + at)?;
            match action {
                Action::Begin(index) => self.begin_trouble(&self.plan.spells[index].trouble)?,
                Action::End(index) => self.end_trouble(&self.plan.spells[index].trouble)?,
            }
        }
        Ok(())
    }

    fn begin_trouble(&mut self, trouble: &Trouble) -> Result<(), String> {
        let address = self.torture.daemon.kafka();
        *self.torture.report.faults.entry(trouble.fault()).or_default() += 1;
        match trouble {
            Trouble::Kill { starts } => {
                self.torture.kill();
                for given in starts {
                    self.torture.spawn()?;
                    self.torture.report.starts_killed += 1;
                    self.take_events_until(Instant::now() + *given)?;
                    self.torture.kill();
                }
                self.torture.start()
            }
            Trouble::Stop => {
                self.torture.daemon.signal(libc::SIGSTOP);
                Ok(())
            }
            Trouble::Full => {
                fill(&self.ballast()).map_err(|error| format!("filling the disk: {error}"))?;
                // The log has room for a while; it is to be used up.
                self.writers.iter().for_each(|writer| writer.set_rate(u64::MAX));
                Ok(())
            }
            Trouble::Slow { writes_per_second } => self.set_throttle(Some(*writes_per_second)),
            Trouble::Flood { connections } => {
                let seed = self.torture.random.bits();
                self.crowds.push(Crowd::flood(address, *connections, seed));
                Ok(())
            }
            Trouble::HalfOpen { connections } => {
                let seed = self.torture.random.bits();
                self.crowds.push(Crowd::half_open(address, *connections, seed, &self.raw));
                Ok(())
            }
        }
    }

    fn end_trouble(&mut self, trouble: &Trouble) -> Result<(), String> {
        match trouble {
            Trouble::Kill { .. } => Ok(()),
            Trouble::Stop => {
                self.torture.daemon.signal(libc::SIGCONT);
                Ok(())
            }
            Trouble::Full => {
                self.writers.iter().for_each(|writer| writer.set_rate(self.plan.rate));
                std::fs::remove_file(self.ballast())
                    .map_err(|error| format!("making room on the disk: {error}"))
            }
            Trouble::Slow { .. } => self.set_throttle(None),
            Trouble::Flood { .. } | Trouble::HalfOpen { .. } => {
                // Those of the other kind, if they overlap, go a little early.
                self.crowds.iter().for_each(Crowd::stop);
                Ok(())
            }
        }
    }

    fn ballast(&self) -> PathBuf {
        let volume = self.torture.volume.as_ref().expect("full is skipped without a volume");
        volume.path().join("ballast")
    }

    fn set_throttle(&self, writes_per_second: Option<u64>) -> Result<(), String> {
        let throttle = self.torture.throttle.as_ref().expect("slow is skipped without it");
        throttle.set(writes_per_second).map_err(|error| format!("limiting the disk: {error}"))
    }

    /// The faults are over: everything that was begun ends, and well.
    fn drain(&mut self) -> Result<(), String> {
        for crowd in self.crowds.drain(..) {
            self.torture.report.crowd += crowd.finish();
        }
        self.stop_writing();
        let deadline = Instant::now() + PATIENCE;
        self.until(deadline, "the producers are not done", |round| {
            round.is_ended(|role| matches!(role, Role::Producer { .. }))
        })?;
        self.until(deadline, "the consumers have not read all", |round| round.is_all_read())?;
        let is_consumer = |process: &&Process| matches!(process.role, Role::Consumer { .. });
        let consumers: Vec<ClientId> =
            self.processes.iter().filter(is_consumer).map(|process| process.id).collect();
        consumers.into_iter().for_each(|id| self.clients.stop(id));
        self.until(deadline, "the consumers do not leave", |round| round.is_ended(|_| true))?;
        self.writers.drain(..).try_for_each(Writer::finish)?;
        if let Some(committer) = self.committer.take() {
            self.torture.report.commits += committer.finish()?;
        }
        Ok(())
    }

    fn stop_writing(&self) {
        self.writers.iter().for_each(Writer::stop);
        self.committer.iter().for_each(Committer::stop);
    }

    fn until(
        &mut self,
        deadline: Instant,
        what: &str,
        is_done: impl Fn(&Round<'_>) -> bool,
    ) -> Result<(), String> {
        while !is_done(self) {
            if Instant::now() > deadline {
                let since = self.begin.elapsed();
                return Err(format!("{what} within {PATIENCE:?}, {since:?} after the beginning"));
            }
            self.take_event(Instant::now() + TICK)?;
        }
        Ok(())
    }

    /// Takes events at a walking pace until a moment.
    fn take_events_until(&mut self, until: Instant) -> Result<(), String> {
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let due = self.begin + Duration::from_secs_f64(self.events as f64 / EVENTS_PER_SECOND);
            let early = due.saturating_duration_since(Instant::now());
            if early.is_zero() {
                self.take_event(until.min(Instant::now() + TICK))?;
            } else {
                thread::park_timeout(early.min(left));
            }
        }
        Ok(())
    }

    fn take_event(&mut self, until: Instant) -> Result<(), String> {
        if let Some(status) = self.torture.daemon.ended() {
            return Err(format!("the node ended by itself: {status}"));
        }
        let Some((id, event)) = self.clients.poll(until) else { return Ok(()) };
        self.events += 1;
        let process = self.processes.iter_mut().find(|process| process.id == id);
        let process = process.expect("every client has a role");
        process.is_at_work = true;
        let topic = &self.live;
        let mut ledger = self.torture.ledger.lock().expect("no panic while it is held");
        match (event, &mut process.role) {
            (Event::Ack { partition, offset, key }, Role::Producer { .. }) => {
                ledger.on_acknowledged(topic, partition, offset, key, 1)
            }
            (Event::Record { partition, offset, key }, Role::Consumer { group, partitions }) => {
                let next = partitions.entry(partition).or_default();
                if offset > *next {
                    return Err(format!(
                        "{group} reads offset {offset} of {topic}/{partition}, and never read from \
                         {next} on"
                    ));
                }
                if offset < *next {
                    ledger.on_going_back(topic, group, partition, offset);
                }
                *next = offset + 1;
                ledger.on_read(topic, partition, offset, key)
            }
            (Event::Committed { partition, offset }, Role::Consumer { group, .. }) => {
                // kcat does not say whether its last commit was refused.
                if process.client != Client::Kcat {
                    ledger.on_committed(topic, group, partition, offset);
                }
                Ok(())
            }
            (Event::Assigned(_), Role::Consumer { .. }) => Ok(()),
            (Event::Changed(line), _) => Err(format!("a record came back changed: {line}")),
            (Event::Ended(success), role) => {
                process.ended = Some(success);
                match role {
                    _ if !success => Err(format!("{:?} failed", process.client)),
                    Role::Producer { writer, count } => {
                        ledger.on_finished(topic, *writer, *count);
                        Ok(())
                    }
                    Role::Consumer { .. } => Ok(()),
                }
            }
            (event, _) => Err(format!("{:?} says {event:?}", process.client)),
        }
    }

    fn is_ended(&self, of: impl Fn(&Role) -> bool) -> bool {
        self.processes.iter().filter(|process| of(&process.role)).all(|p| p.ended.is_some())
    }

    /// Every consumer has read up to the last record that was acknowledged.
    fn is_all_read(&self) -> bool {
        let ledger = self.torture.ledger();
        let ends: Vec<u64> =
            (0..PARTITIONS).map(|partition| ledger.end(&self.live, partition)).collect();
        self.processes.iter().all(|process| match &process.role {
            Role::Producer { .. } => true,
            Role::Consumer { partitions, .. } => {
                partitions.iter().all(|(index, next)| *next >= ends[*index as usize])
            }
        })
    }

    /// The failure with what the clients say and what the node has stored for their groups.
    fn with_complaints(&self, why: String) -> String {
        let mut text = why;
        if let Ok(mut peer) = self.torture.peer() {
            for process in &self.processes {
                let Role::Consumer { group, .. } = &process.role else { continue };
                for partition in 0..PARTITIONS {
                    let stored = committed(&mut peer, group, &self.live, partition);
                    text += &format!("\n{group}, partition {partition}: {stored:?} is stored");
                }
            }
        }
        for Process { id, client, role, ended, .. } in &self.processes {
            let state = match role {
                Role::Producer { count, .. } => format!("producer of {count}"),
                Role::Consumer { partitions, .. } => format!("consumer at {partitions:?}"),
            };
            text += &format!("\n--- {client:?}, {state}, ended {ended:?}");
            for line in self.clients.complaints(*id) {
                text += &format!("\n{line}");
            }
        }
        text
    }
}
