//! Scripts against [`Groups`]: one line is one step, and the trace shows what left it.
//!
//! Names: a client `a` becomes member `a.1`, after it came back without an id `a.2`; a static
//! member is named by its instance. Partition `p3` is number 3 of topic `p`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use bytes::Bytes;
use expect_test::{Expect, expect};
use tidemill_wal::format::{PartitionId, ShardId, TopicId};

use super::stored;
use super::{GroupLimits, Groups, Timer};
use crate::command::{
    CommittedOffset, GroupCommand, GroupReply, GroupState, Join, LeavingMember, MemberRef,
    OffsetCommit, Refusal, Reply, Sync, Ticket,
};
use crate::effect::{Now, Outcome};
use crate::state::Kind;

fn limits() -> GroupLimits {
    GroupLimits { initial_rebalance_delay_ms: 0, ..GroupLimits::default() }
}

/// Runs the script, a step a line, and compares the trace; what precedes `---` is not traced.
#[track_caller]
fn check(script: &str, expect: Expect) {
    check_with(limits(), script, expect);
}

#[track_caller]
fn check_with(limits: GroupLimits, script: &str, expect: Expect) {
    let mut world = World::new(limits);
    let mut trace = String::new();
    let (preamble, script) = script.split_once("---").unwrap_or(("", script));
    for line in lines(preamble) {
        world.step(line);
    }
    for line in lines(script) {
        let effects = world.step(line);
        writeln!(trace, "{line:<32} -> {}", effects.join(", ")).unwrap();
    }
    let trace: Vec<&str> = trace.lines().map(str::trim_end).collect();
    expect.assert_eq(&(trace.join("\n") + "\n"));
}

fn lines(script: &str) -> impl Iterator<Item = &str> {
    script.lines().map(str::trim).filter(|line| !line.is_empty())
}

struct World {
    limits: GroupLimits,
    groups: Groups,
    seed: u64,
    now: Now,
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Who sent each ticket.
    senders: Vec<String>,
    /// Tickets answered or cancelled.
    closed: BTreeSet<Ticket>,
    clients: BTreeMap<String, Client>,
    /// Member ids with their short names.
    names: BTreeMap<String, String>,
}

#[derive(Default, Clone)]
struct Client {
    member_id: String,
    generation: i32,
    instance_id: Option<String>,
}

/// The words of a line after the first: plain ones, and `key=value`.
struct Words<'a> {
    plain: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn has(&self, word: &str) -> bool {
        self.plain.contains(&word)
    }

    fn number<N: std::str::FromStr<Err: std::fmt::Debug>>(&self, name: &str, default: N) -> N {
        self.named.get(name).map_or(default, |value| value.parse().unwrap())
    }

    fn text(&self, name: &str, default: &'a str) -> String {
        self.named.get(name).unwrap_or(&default).to_string()
    }
}

impl World {
    fn new(limits: GroupLimits) -> Self {
        Self {
            groups: Groups::new(limits.clone(), 1),
            limits,
            seed: 1,
            now: Now { monotonic_ms: 1_000, wall_ms: 1_000_000 },
            state: BTreeMap::new(),
            senders: Vec::new(),
            closed: BTreeSet::new(),
            clients: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }

    fn step(&mut self, line: &str) -> Vec<String> {
        let mut words = line.split_whitespace();
        let verb = words.next().unwrap();
        let (named, plain): (Vec<&str>, Vec<&str>) = words.partition(|word| word.contains('='));
        let named = named.iter().map(|word| word.split_once('=').unwrap()).collect();
        let words = Words { plain, named };
        let mut out = Outcome::default();
        match verb {
            "wait" => {
                let ms: u64 = words.plain[0].parse().unwrap();
                self.now.monotonic_ms += ms;
                self.now.wall_ms += ms as i64;
                self.groups.tick(self.now, &mut out);
            }
            "deadline" => {
                let due = self.groups.next_deadline_ms();
                let wait = due.map(|due| due - self.now.monotonic_ms);
                return vec![format!("{wait:?}")];
            }
            "cancel" => {
                let sender = self.senders.iter().rposition(|who| who == words.plain[0]);
                let Some(ticket) = sender.map(ticket) else { return Vec::new() };
                self.closed.insert(ticket);
                self.groups.cancel(self.now, ticket, &mut out);
            }
            "restart" => self.restart(),
            "drop-topic" => {
                let topic = partition(&format!("{}0", words.plain[0])).topic;
                self.groups.on_topic_deleted(topic, &mut out);
            }
            "lag" => {
                let show =
                    |(group, partition, offset)| format!("{group} {}={offset}", name(partition));
                return self.groups.committed().map(show).collect();
            }
            _ => {
                let (who, command) = self.command(verb, &words);
                let ticket = ticket(self.senders.len());
                self.senders.push(who);
                self.groups.handle(self.now, ticket, command, &mut out);
            }
        }
        self.effects(out)
    }

    /// A new process with the same state.
    fn restart(&mut self) {
        self.seed += 1;
        self.now.monotonic_ms = 5_000;
        self.groups = Groups::new(self.limits.clone(), self.seed);
        self.closed.extend((0..self.senders.len()).map(ticket));
        for (key, value) in &self.state {
            self.groups.load(self.now, key, value).unwrap();
        }
    }

    fn command(&mut self, verb: &str, words: &Words) -> (String, GroupCommand) {
        let group = words.text("group", "g");
        let who = words.plain.first().copied().unwrap_or("-").to_owned();
        let partitions = || words.plain.iter().map(|word| partition(word)).collect::<Vec<_>>();
        let command = match verb {
            "join" => GroupCommand::Join(self.join(&who, words)),
            "sync" => GroupCommand::Sync(Sync {
                member: self.member(&who, words),
                protocol_type: words.named.get("type").map(|text| text.to_string()),
                protocol: words.named.get("protocol").map(|text| text.to_string()),
                assignments: self.assignments(words),
            }),
            "beat" => GroupCommand::Heartbeat(self.member(&who, words)),
            "leave" => GroupCommand::Leave { group, members: self.leaving(words) },
            "commit" => GroupCommand::OffsetCommit(OffsetCommit {
                member: self.member(&who, words),
                offsets: self.offsets(words),
            }),
            "fetch" => GroupCommand::OffsetFetch {
                group,
                partitions: Some(partitions()).filter(|partitions| !partitions.is_empty()),
            },
            "forget" => GroupCommand::OffsetDelete {
                group,
                partitions: partitions(),
                topics: words.plain.iter().map(|word| word[..1].to_owned()).collect(),
            },
            "describe" => GroupCommand::Describe(group),
            "list" => GroupCommand::List,
            "delete" => GroupCommand::Delete(group),
            other => panic!("no step is called {other}"),
        };
        (if verb == "fetch" || verb == "forget" { "-".into() } else { who }, command)
    }

    fn join(&mut self, who: &str, words: &Words) -> Join {
        let client = self.clients.entry(who.to_owned()).or_default();
        if let Some(instance_id) = words.named.get("instance") {
            client.instance_id = Some(instance_id.to_string());
        }
        let subscription = |protocol: &str| {
            let (name, topics) = protocol.split_once(':').unwrap_or((protocol, "p"));
            (name.to_owned(), subscription(topics))
        };
        let client = client.clone();
        Join {
            group: words.text("group", "g"),
            member_id: if words.has("anew") { String::new() } else { client.member_id },
            instance_id: client.instance_id,
            client_id: who.to_owned(),
            client_host: "host".into(),
            session_timeout_ms: words.number("session", 10_000),
            rebalance_timeout_ms: words.number("rebalance", 60_000),
            protocol_type: words.text("type", "consumer"),
            protocols: words
                .text("protocols", "range")
                .split(',')
                .filter(|protocol| !protocol.is_empty())
                .map(subscription)
                .collect(),
            member_id_required: words.has("modern"),
            can_skip_assignment: words.has("skipping"),
        }
    }

    fn member(&self, who: &str, words: &Words) -> MemberRef {
        let outsider = Client { generation: -1, ..Client::default() };
        let client = self.clients.get(who).unwrap_or(&outsider);
        MemberRef {
            group: words.text("group", "g"),
            generation: words.number("generation", client.generation),
            member_id: client.member_id.clone(),
            instance_id: client.instance_id.clone(),
        }
    }

    fn assignments(&self, words: &Words) -> Vec<(String, Bytes)> {
        let known = words.named.iter().filter_map(|(who, text)| {
            let client = self.clients.get(*who)?;
            Some((client.member_id.clone(), Bytes::from(text.to_string())))
        });
        known.collect()
    }

    fn leaving(&self, words: &Words) -> Vec<LeavingMember> {
        let mut members: Vec<LeavingMember> = (words.plain.iter())
            .map(|who| self.clients.get(*who).cloned().unwrap_or_default())
            .map(|Client { member_id, instance_id, .. }| LeavingMember { member_id, instance_id })
            .collect();
        if let Some(instance_id) = words.named.get("instance") {
            let instance_id = Some(instance_id.to_string());
            members.push(LeavingMember { member_id: String::new(), instance_id });
        }
        members
    }

    fn offsets(&self, words: &Words) -> Vec<(PartitionId, CommittedOffset)> {
        let is_partition = |(key, _): &(&&str, &&str)| key.len() == 2;
        let offset = |(key, value): (&&str, &&str)| {
            let metadata = words.text("metadata", "");
            let offset = value.parse().unwrap();
            (partition(key), CommittedOffset { offset, leader_epoch: -1, metadata })
        };
        words.named.iter().filter(is_partition).map(offset).collect()
    }

    /// Applies the changes, learns from the replies, and shows both.
    fn effects(&mut self, out: Outcome) -> Vec<String> {
        let mut effects = Vec::new();
        for change in out.changes {
            effects.push(self.show_change(&change.key, change.value.as_deref()));
            match change.value {
                Some(value) => self.state.insert(change.key, value),
                None => self.state.remove(&change.key),
            };
        }
        for (ticket, reply) in out.replies {
            assert!(self.closed.insert(ticket), "{ticket:?} is answered once");
            let who = self.senders[ticket.id as usize].clone();
            let Reply::Group(reply) = reply else { panic!("groups answer for groups") };
            let shown = self.show_reply(&who, reply);
            effects.push(if who == "-" { shown } else { format!("{who}: {shown}") });
        }
        effects
    }

    fn show_change(&mut self, key: &[u8], value: Option<&[u8]>) -> String {
        if Kind::of(key) == Some(Kind::GroupOffset) {
            let (_, partition) = stored::decode_offset_key(key).unwrap();
            let partition = name(partition);
            return match value.map(|value| stored::decode_offset(value).unwrap()) {
                Some(offset) => format!("store {partition}={}", offset.committed.offset),
                None => format!("drop {partition}"),
            };
        }
        let group = stored::decode_group_key(key).unwrap();
        let Some(value) = value else { return format!("drop {group}") };
        let (facts, members) = stored::decode_group(value).unwrap();
        let members: Vec<String> = members.iter().map(|(id, _)| self.name(id)).collect();
        let rebalancing = if facts.rebalancing { " rebalancing" } else { "" };
        format!(
            "store {group} generation {}{rebalancing} [{}]",
            facts.generation,
            members.join(" ")
        )
    }

    fn show_reply(&mut self, who: &str, reply: GroupReply) -> String {
        match reply {
            GroupReply::Join(Ok(joined)) => {
                let client = self.clients.get_mut(who).unwrap();
                client.member_id.clone_from(&joined.member_id);
                client.generation = joined.generation;
                let (id, leader) = (self.name(&joined.member_id), self.name(&joined.leader));
                let members: Vec<String> =
                    joined.members.iter().map(|member| self.name(&member.member_id)).collect();
                let members = match members.is_empty() {
                    true => String::new(),
                    false => format!(" of [{}]", members.join(" ")),
                };
                let skip = if joined.skip_assignment { " skipping" } else { "" };
                let (generation, protocol) = (joined.generation, joined.protocol);
                format!("{id} joined {generation} {protocol} led by {leader}{members}{skip}")
            }
            GroupReply::Join(Err(refused)) => {
                if refused.refusal == Refusal::MemberIdRequired {
                    self.clients.get_mut(who).unwrap().member_id.clone_from(&refused.member_id);
                    return format!("MemberIdRequired {}", self.name(&refused.member_id));
                }
                format!("{:?}", refused.refusal)
            }
            GroupReply::Sync(Ok(synced)) => {
                format!("assigned {:?}", std::str::from_utf8(&synced.assignment).unwrap())
            }
            GroupReply::Sync(Err(refusal)) => format!("{refusal:?}"),
            GroupReply::Heartbeat(result) | GroupReply::Delete(result) => show(&result),
            GroupReply::Leave(Ok(results)) | GroupReply::OffsetDelete(Ok(results)) => {
                results.iter().map(show).collect::<Vec<_>>().join(" ")
            }
            GroupReply::OffsetCommit(results) => {
                results.iter().map(show).collect::<Vec<_>>().join(" ")
            }
            GroupReply::Leave(Err(refusal)) | GroupReply::OffsetDelete(Err(refusal)) => {
                format!("{refusal:?}")
            }
            GroupReply::OffsetFetch(offsets) => (offsets.unwrap().into_iter())
                .map(|(partition, offset)| match offset {
                    Some(CommittedOffset { offset, metadata, .. }) => {
                        format!("{}={offset}{metadata}", name(partition))
                    }
                    None => format!("{} none", name(partition)),
                })
                .collect::<Vec<_>>()
                .join(" "),
            GroupReply::Describe(group) => {
                let mut text = format!("{:?}", group.state);
                for word in [group.protocol_type, group.protocol] {
                    write!(text, " {}", if word.is_empty() { "-" } else { &word }).unwrap();
                }
                for member in group.members {
                    let assignment = std::str::from_utf8(&member.assignment).unwrap();
                    let (id, size) = (self.name(&member.member_id), member.metadata.len());
                    let (client, host) = (member.client_id, member.client_host);
                    write!(text, "; {id} {client}@{host} {size} {assignment:?}").unwrap();
                }
                text
            }
            GroupReply::List(groups) => (groups.iter())
                .map(|row| format!("{} {:?} {:?}", row.group, row.protocol_type, row.state))
                .collect::<Vec<_>>()
                .join("; "),
        }
    }

    /// Counts and timers agree with what they count and time, and everybody waits for something.
    fn assert_consistent(&self) {
        let groups = &self.groups;
        let mut due = BTreeSet::new();
        let mut waiting = BTreeSet::new();
        for group in groups.groups.values() {
            let name = || group.name.clone();
            assert!(!group.is_vacant());
            due.extend(group.timer_ms.map(|at_ms| (at_ms, Timer::Group(name()))));
            for (id, at_ms) in &group.pending {
                due.extend(at_ms.map(|at_ms| (at_ms, Timer::Member(name(), id.clone()))));
            }
            for (id, member) in &group.members {
                due.extend(member.timer_ms.map(|at_ms| (at_ms, Timer::Member(name(), id.clone()))));
                assert!(member.timer_ms.is_none_or(|at_ms| at_ms <= member.deadline_ms));
                let held: Vec<Ticket> = member.joining.into_iter().chain(member.syncing).collect();
                assert!(held.len() < 2 && (held.len() == 1 || member.timer_ms.is_some()));
                waiting.extend(held);
            }
            let members = || group.members.values();
            assert_eq!(group.joining_count, members().filter(|m| m.joining.is_some()).count());
            assert_eq!(group.unsynced_count, members().filter(|m| !m.synced).count());
            assert_eq!(group.members_size, members().map(|m| m.facts.size()).sum::<usize>());
            assert_eq!(
                group.statics.len(),
                members().filter(|m| m.facts.instance_id.is_some()).count()
            );
            assert!(group.members.is_empty() || group.state != GroupState::Empty);
        }
        assert_eq!(groups.timers.due, due);
        assert!(groups.waiting.keys().eq(&waiting));
        assert_eq!(groups.size, groups.groups.values().map(|group| group.size()).sum::<usize>());
        let open =
            (0..self.senders.len()).map(ticket).filter(|ticket| !self.closed.contains(ticket));
        assert!(open.eq(waiting), "whoever is not answered waits");
    }

    /// `a-6e78…` becomes `a.1`.
    fn name(&mut self, id: &str) -> String {
        if let Some(name) = self.names.get(id) {
            return name.clone();
        }
        let Some((prefix, _)) = id.split_once('-') else { return id.to_owned() };
        let earlier = self.names.values().filter(|name| name.split('.').next() == Some(prefix));
        let name = format!("{prefix}.{}", earlier.count() + 1);
        self.names.insert(id.to_owned(), name.clone());
        name
    }
}

fn show(result: &Result<(), Refusal>) -> String {
    result.map_or_else(|refusal| format!("{refusal:?}"), |()| "ok".into())
}

fn ticket(index: usize) -> Ticket {
    Ticket { origin: ShardId(0), id: index as u64 }
}

/// `p3` is partition 3 of the topic whose id is all `p`.
fn partition(word: &str) -> PartitionId {
    let topic = TopicId([word.as_bytes()[0]; 16]);
    PartitionId { topic, index: word[1..].parse().unwrap() }
}

fn name(partition: PartitionId) -> String {
    format!("{}{}", char::from(partition.topic.0[0]), partition.index)
}

/// A subscription of the consumer protocol to topics like `p/q`; `!` is none at all.
fn subscription(topics: &str) -> Bytes {
    if topics == "!" {
        return Bytes::from_static(b"!");
    }
    let topics: Vec<&str> = topics.split('/').collect();
    let mut metadata = vec![0, 1];
    metadata.extend_from_slice(&(topics.len() as i32).to_be_bytes());
    for topic in topics {
        metadata.extend_from_slice(&(topic.len() as i16).to_be_bytes());
        metadata.extend_from_slice(topic.as_bytes());
    }
    Bytes::from(metadata)
}

/// Two members, `a` leading, in generation 2, and stable.
const PAIR: &str = "
    join a
    sync a a=0
    join b
    join a
    sync a a=0 b=1
    sync b
";

fn after_pair(script: &str) -> String {
    format!("{PAIR}---\n{script}")
}

#[test]
fn the_first_member_leads_and_gets_its_own_assignment() {
    check(
        "describe
         join a
         describe
         sync a a=0
         beat a
         describe
         list",
        expect![[r#"
            describe                         -> Dead - -
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            describe                         -> CompletingRebalance consumer -; a.1 a@host 0 ""
            sync a a=0                       -> store g generation 1 [a.1], a: assigned "0"
            beat a                           -> a: ok
            describe                         -> Stable consumer range; a.1 a@host 9 "0"
            list                             -> g "consumer" Stable
        "#]],
    );
}

#[test]
fn a_second_member_makes_everybody_join_again() {
    check(
        "join a
         sync a a=0
         join b
         beat a
         join a
         sync b
         describe
         sync a a=0 b=1
         beat a
         beat b",
        expect![[r#"
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            sync a a=0                       -> store g generation 1 [a.1], a: assigned "0"
            join b                           ->
            beat a                           -> a: RebalanceInProgress
            join a                           -> a: a.1 joined 2 range led by a.1 of [a.1 b.1], b: b.1 joined 2 range led by a.1
            sync b                           ->
            describe                         -> CompletingRebalance consumer -; a.1 a@host 0 ""; b.1 b@host 0 ""
            sync a a=0 b=1                   -> store g generation 2 [a.1 b.1], a: assigned "0", b: assigned "1"
            beat a                           -> a: ok
            beat b                           -> b: ok
        "#]],
    );
}

#[test]
fn a_modern_client_is_handed_its_id_first() {
    check(
        "join a modern
         list
         join a modern
         sync a a=0
         join b modern
         beat b
         join b modern
         beat a
         join a",
        expect![[r#"
            join a modern                    -> a: MemberIdRequired a.1
            list                             -> g "" Empty
            join a modern                    -> a: a.1 joined 1 range led by a.1 of [a.1]
            sync a a=0                       -> store g generation 1 [a.1], a: assigned "0"
            join b modern                    -> b: MemberIdRequired b.1
            beat b                           -> b: UnknownMember
            join b modern                    ->
            beat a                           -> a: RebalanceInProgress
            join a                           -> a: a.1 joined 2 range led by a.1 of [a.1 b.1], b: b.1 joined 2 range led by a.1
        "#]],
    );
}

#[test]
fn an_id_that_is_not_used_expires_and_holds_nothing_up_any_longer() {
    check(
        &after_pair(
            "join c modern
             join d
             join a
             join b
             wait 9999
             wait 1
             join c",
        ),
        expect![[r#"
            join c modern                    -> c: MemberIdRequired c.1
            join d                           ->
            join a                           ->
            join b                           ->
            wait 9999                        ->
            wait 1                           -> a: a.1 joined 3 range led by a.1 of [a.1 b.1 d.1], b: b.1 joined 3 range led by a.1, d: d.1 joined 3 range led by a.1
            join c                           -> c: UnknownMember
        "#]],
    );
    check(
        "join a modern
         wait 10000
         list
         join a modern
         deadline",
        expect![[r#"
            join a modern                    -> a: MemberIdRequired a.1
            wait 10000                       ->
            list                             ->
            join a modern                    -> a: UnknownMember
            deadline                         -> None
        "#]],
    );
}

#[test]
fn a_first_rebalance_waits_for_more_members_but_not_for_ever() {
    check_with(
        GroupLimits { initial_rebalance_delay_ms: 3_000, ..limits() },
        "join a rebalance=8000
         wait 2000
         join b
         wait 1000
         wait 2000
         join c
         wait 1000
         wait 1999
         join d
         wait 1
         beat a",
        expect![[r#"
            join a rebalance=8000            ->
            wait 2000                        ->
            join b                           ->
            wait 1000                        ->
            wait 2000                        ->
            join c                           ->
            wait 1000                        ->
            wait 1999                        ->
            join d                           ->
            wait 1                           -> a: a.1 joined 1 range led by a.1 of [a.1 b.1 c.1 d.1], b: b.1 joined 1 range led by a.1, c: c.1 joined 1 range led by a.1, d: d.1 joined 1 range led by a.1
            beat a                           -> a: ok
        "#]],
    );
    check_with(
        GroupLimits { initial_rebalance_delay_ms: 3_000, ..limits() },
        "join a
         wait 3000
         sync a a=0
         leave a
         join b",
        expect![[r#"
            join a                           ->
            wait 3000                        -> a: a.1 joined 1 range led by a.1 of [a.1]
            sync a a=0                       -> store g generation 1 [a.1], a: assigned "0"
            leave a                          -> store g generation 2 [], a: ok
            join b                           -> b: b.1 joined 3 range led by b.1 of [b.1]
        "#]],
    );
}

#[test]
fn members_that_do_not_rejoin_in_time_are_out() {
    check(
        &after_pair(
            "join c rebalance=1000
             beat b
             wait 9000
             beat b
             wait 9000
             beat b
             wait 9000
             beat b
             wait 9000
             beat b
             wait 9000
             beat b
             wait 9000
             beat b
             wait 6000
             beat b
             beat a
             beat c",
        ),
        expect![[r#"
            join c rebalance=1000            ->
            beat b                           -> b: RebalanceInProgress
            wait 9000                        ->
            beat b                           -> b: RebalanceInProgress
            wait 9000                        ->
            beat b                           -> b: RebalanceInProgress
            wait 9000                        ->
            beat b                           -> b: RebalanceInProgress
            wait 9000                        ->
            beat b                           -> b: RebalanceInProgress
            wait 9000                        ->
            beat b                           -> b: RebalanceInProgress
            wait 9000                        ->
            beat b                           -> b: RebalanceInProgress
            wait 6000                        -> c: c.1 joined 3 range led by c.1 of [c.1]
            beat b                           -> b: UnknownMember
            beat a                           -> a: UnknownMember
            beat c                           -> c: ok
        "#]],
    );
}

#[test]
fn members_waiting_in_a_held_join_do_not_expire() {
    check(
        "join a rebalance=200000
         sync a a=0
         join b
         join a
         sync a a=0 b=1
         sync b
         join a
         wait 9000
         beat b
         wait 9000
         beat b
         wait 9000
         join b",
        expect![[r#"
            join a rebalance=200000          -> a: a.1 joined 1 range led by a.1 of [a.1]
            sync a a=0                       -> store g generation 1 [a.1], a: assigned "0"
            join b                           ->
            join a                           -> a: a.1 joined 2 range led by a.1 of [a.1 b.1], b: b.1 joined 2 range led by a.1
            sync a a=0 b=1                   -> store g generation 2 [a.1 b.1], a: assigned "0"
            sync b                           -> b: assigned "1"
            join a                           ->
            wait 9000                        ->
            beat b                           -> b: RebalanceInProgress
            wait 9000                        ->
            beat b                           -> b: RebalanceInProgress
            wait 9000                        ->
            join b                           -> a: a.1 joined 3 range led by a.1 of [a.1 b.1], b: b.1 joined 3 range led by a.1
        "#]],
    );
}

#[test]
fn a_first_join_is_not_held_for_ever() {
    check_with(
        GroupLimits { new_member_join_ms: 20_000, ..limits() },
        "join a rebalance=300000
         sync a a=0
         join b
         wait 9000
         beat a
         wait 9000
         beat a
         wait 1999
         wait 1
         describe",
        expect![[r#"
            join a rebalance=300000          -> a: a.1 joined 1 range led by a.1 of [a.1]
            sync a a=0                       -> store g generation 1 [a.1], a: assigned "0"
            join b                           ->
            wait 9000                        ->
            beat a                           -> a: RebalanceInProgress
            wait 9000                        ->
            beat a                           -> a: RebalanceInProgress
            wait 1999                        ->
            wait 1                           -> b: UnknownMember
            describe                         -> PreparingRebalance consumer -; a.1 a@host 0 ""
        "#]],
    );
}

#[test]
fn an_expired_session_starts_a_rebalance() {
    check(
        &after_pair(
            "wait 6000
             beat a
             wait 3999
             beat a
             wait 1
             beat b
             beat a
             join a
             sync a a=0,1
             wait 10000
             list
             deadline",
        ),
        expect![[r#"
            wait 6000                        ->
            beat a                           -> a: ok
            wait 3999                        ->
            beat a                           -> a: ok
            wait 1                           ->
            beat b                           -> b: UnknownMember
            beat a                           -> a: RebalanceInProgress
            join a                           -> a: a.1 joined 3 range led by a.1 of [a.1]
            sync a a=0,1                     -> store g generation 3 [a.1], a: assigned "0,1"
            wait 10000                       -> store g generation 4 []
            list                             -> g "consumer" Empty
            deadline                         -> Some(600000)
        "#]],
    );
}

#[test]
fn heartbeats_and_syncs_and_commits_keep_a_session() {
    check(
        "join a
         wait 9000
         sync a a=0
         wait 9000
         beat a
         wait 9000
         commit a p0=1
         wait 9000
         sync a
         wait 9999
         wait 1",
        expect![[r#"
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            wait 9000                        ->
            sync a a=0                       -> store g generation 1 [a.1], a: assigned "0"
            wait 9000                        ->
            beat a                           -> a: ok
            wait 9000                        ->
            commit a p0=1                    -> store p0=1, a: ok
            wait 9000                        ->
            sync a                           -> a: assigned "0"
            wait 9999                        ->
            wait 1                           -> store g generation 2 []
        "#]],
    );
}

#[test]
fn heartbeats_are_checked() {
    check(
        &after_pair(
            "beat a generation=1
             beat stranger
             beat a group=other
             join c
             beat a generation=1
             beat a",
        ),
        expect![[r#"
            beat a generation=1              -> a: IllegalGeneration
            beat stranger                    -> stranger: UnknownMember
            beat a group=other               -> a: UnknownMember
            join c                           ->
            beat a generation=1              -> a: IllegalGeneration
            beat a                           -> a: RebalanceInProgress
        "#]],
    );
}

#[test]
fn a_leader_that_rejoins_starts_a_rebalance_and_a_follower_without_news_does_not() {
    check(
        &after_pair(
            "join b
             beat a
             join b protocols=range:p/q
             beat a
             join a
             sync b
             sync a a=0 b=1
             join a
             join b",
        ),
        expect![[r#"
            join b                           -> b: b.1 joined 2 range led by a.1
            beat a                           -> a: ok
            join b protocols=range:p/q       ->
            beat a                           -> a: RebalanceInProgress
            join a                           -> a: a.1 joined 3 range led by a.1 of [a.1 b.1], b: b.1 joined 3 range led by a.1
            sync b                           ->
            sync a a=0 b=1                   -> store g generation 3 [a.1 b.1], a: assigned "0", b: assigned "1"
            join a                           ->
            join b                           -> a: a.1 joined 4 range led by a.1 of [a.1 b.1], b: b.1 joined 4 range led by a.1
        "#]],
    );
}

#[test]
fn a_join_repeated_before_the_assignment_is_answered_again() {
    check(
        "join a
         join a
         join b
         join a
         join b
         join a
         join b protocols=range:q
         beat a",
        expect![[r#"
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            join b                           ->
            join a                           -> a: a.1 joined 2 range led by a.1 of [a.1 b.1], b: b.1 joined 2 range led by a.1
            join b                           -> b: b.1 joined 2 range led by a.1
            join a                           -> a: a.1 joined 2 range led by a.1 of [a.1 b.1]
            join b protocols=range:q         ->
            beat a                           -> a: RebalanceInProgress
        "#]],
    );
}

#[test]
fn a_join_repeated_while_held_replaces_the_first() {
    check(
        &after_pair(
            "join a
             join a
             join b",
        ),
        expect![[r#"
            join a                           ->
            join a                           -> a: RebalanceInProgress
            join b                           -> a: a.1 joined 3 range led by a.1 of [a.1 b.1], b: b.1 joined 3 range led by a.1
        "#]],
    );
}

#[test]
fn syncs_wait_for_the_leader_and_are_cut_off_by_a_new_rebalance() {
    check(
        &after_pair(
            "join a
             join b
             sync b
             join c
             sync a
             join b
             join a
             sync c
             sync c
             sync b
             sync a a=0 c=2",
        ),
        expect![[r#"
            join a                           ->
            join b                           -> a: a.1 joined 3 range led by a.1 of [a.1 b.1], b: b.1 joined 3 range led by a.1
            sync b                           ->
            join c                           -> b: RebalanceInProgress
            sync a                           -> a: RebalanceInProgress
            join b                           ->
            join a                           -> a: a.1 joined 4 range led by a.1 of [a.1 b.1 c.1], b: b.1 joined 4 range led by a.1, c: c.1 joined 4 range led by a.1
            sync c                           ->
            sync c                           -> c: RebalanceInProgress
            sync b                           ->
            sync a a=0 c=2                   -> store g generation 4 [a.1 b.1 c.1], a: assigned "0", b: assigned "", c: assigned "2"
        "#]],
    );
}

#[test]
fn syncs_are_checked() {
    check(
        &after_pair(
            "sync a generation=1
             sync stranger
             sync a type=connect
             sync a protocol=sticky
             sync a type=consumer protocol=range
             sync a group=other
             join c
             sync a",
        ),
        expect![[r#"
            sync a generation=1              -> a: IllegalGeneration
            sync stranger                    -> stranger: UnknownMember
            sync a type=connect              -> a: InconsistentProtocol
            sync a protocol=sticky           -> a: InconsistentProtocol
            sync a type=consumer protocol=range -> a: assigned "0"
            sync a group=other               -> a: UnknownMember
            join c                           ->
            sync a                           -> a: RebalanceInProgress
        "#]],
    );
}

#[test]
fn members_that_do_not_fetch_their_assignment_in_time_are_out() {
    check(
        "join a
         sync a a=0
         join b rebalance=15000 session=60000
         join a rebalance=15000 session=60000
         sync a a=0 b=1
         wait 14999
         beat b
         wait 1
         beat b
         join a
         wait 15000
         beat a",
        expect![[r#"
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            sync a a=0                       -> store g generation 1 [a.1], a: assigned "0"
            join b rebalance=15000 session=60000 ->
            join a rebalance=15000 session=60000 -> a: a.1 joined 2 range led by a.1 of [a.1 b.1], b: b.1 joined 2 range led by a.1
            sync a a=0 b=1                   -> store g generation 2 [a.1 b.1], a: assigned "0"
            wait 14999                       ->
            beat b                           -> b: ok
            wait 1                           ->
            beat b                           -> b: UnknownMember
            join a                           -> a: a.1 joined 3 range led by a.1 of [a.1]
            wait 15000                       -> store g generation 4 []
            beat a                           -> a: UnknownMember
        "#]],
    );
}

#[test]
fn a_leader_that_never_assigns_is_out() {
    check(
        "join a session=60000 rebalance=15000
         join b session=60000 rebalance=15000
         join a session=60000 rebalance=15000
         sync b
         wait 15000
         beat a
         join b
         sync b b=0",
        expect![[r#"
            join a session=60000 rebalance=15000 -> a: a.1 joined 1 range led by a.1 of [a.1]
            join b session=60000 rebalance=15000 ->
            join a session=60000 rebalance=15000 -> a: a.1 joined 2 range led by a.1 of [a.1 b.1], b: b.1 joined 2 range led by a.1
            sync b                           ->
            wait 15000                       -> b: RebalanceInProgress
            beat a                           -> a: UnknownMember
            join b                           -> b: b.1 joined 3 range led by b.1 of [b.1]
            sync b b=0                       -> store g generation 3 [b.1], b: assigned "0"
        "#]],
    );
}

#[test]
fn the_protocol_is_the_favourite_among_those_that_all_know() {
    check(
        "join a protocols=range,sticky
         join b protocols=robin
         join b protocols=sticky,robin,range
         join a protocols=range,sticky
         join c protocols=sticky,range
         join a protocols=range,sticky
         join b protocols=sticky,robin,range
         sync a a=0
         leave a
         join b protocols=robin,sticky
         join c protocols=robin,sticky",
        expect![[r#"
            join a protocols=range,sticky    -> a: a.1 joined 1 range led by a.1 of [a.1]
            join b protocols=robin           -> b: InconsistentProtocol
            join b protocols=sticky,robin,range ->
            join a protocols=range,sticky    -> a: a.1 joined 2 range led by a.1 of [a.1 b.1], b: b.1 joined 2 range led by a.1
            join c protocols=sticky,range    ->
            join a protocols=range,sticky    ->
            join b protocols=sticky,robin,range -> a: a.1 joined 3 sticky led by a.1 of [a.1 b.1 c.1], b: b.1 joined 3 sticky led by a.1, c: c.1 joined 3 sticky led by a.1
            sync a a=0                       -> store g generation 3 [a.1 b.1 c.1], a: assigned "0"
            leave a                          -> a: ok
            join b protocols=robin,sticky    ->
            join c protocols=robin,sticky    -> b: b.1 joined 4 robin led by b.1 of [b.1 c.1], c: c.1 joined 4 robin led by b.1
        "#]],
    );
}

#[test]
fn another_protocol_type_is_refused_until_the_group_is_empty() {
    check(
        "join a
         join b type=connect
         join b type= protocols=range
         leave a
         join b type=connect protocols=
         join b type=connect
         sync b b=0
         describe",
        expect![[r#"
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            join b type=connect              -> b: InconsistentProtocol
            join b type= protocols=range     -> b: InconsistentProtocol
            leave a                          -> store g generation 2 [], a: ok
            join b type=connect protocols=   -> b: InconsistentProtocol
            join b type=connect              -> b: b.1 joined 3 range led by b.1 of [b.1]
            sync b b=0                       -> store g generation 3 [b.1], b: assigned "0"
            describe                         -> Stable connect range; b.1 b@host 9 "0"
        "#]],
    );
}

#[test]
fn the_session_timeout_has_bounds() {
    check(
        "join a session=5999
         join a session=1800001
         join a session=-1
         join a session=6000
         join b session=1800000 group=h",
        expect![[r#"
            join a session=5999              -> a: InvalidSessionTimeout
            join a session=1800001           -> a: InvalidSessionTimeout
            join a session=-1                -> a: InvalidSessionTimeout
            join a session=6000              -> a: a.1 joined 1 range led by a.1 of [a.1]
            join b session=1800000 group=h   -> b: b.1 joined 1 range led by b.1 of [b.1]
        "#]],
    );
}

#[test]
fn a_full_group_takes_nobody_else() {
    check_with(
        GroupLimits { member_count_max: 2, ..limits() },
        "join a
         join b modern
         join b modern
         join a
         join c modern
         sync a a=0
         join c
         join b protocols=range:q
         join c
         join a",
        expect![[r#"
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            join b modern                    -> b: MemberIdRequired b.1
            join b modern                    ->
            join a                           -> a: a.1 joined 2 range led by a.1 of [a.1 b.1], b: b.1 joined 2 range led by a.1
            join c modern                    -> c: GroupFull
            sync a a=0                       -> store g generation 2 [a.1 b.1], a: assigned "0"
            join c                           -> c: GroupFull
            join b protocols=range:q         ->
            join c                           ->
            join a                           -> a: GroupFull, b: b.1 joined 3 range led by b.1 of [b.1 c.1], c: c.1 joined 3 range led by b.1
        "#]],
    );
}

#[test]
fn a_static_member_comes_back_to_a_full_group() {
    check_with(
        GroupLimits { member_count_max: 2, ..limits() },
        &after_static_pair(
            "join b anew
             join c instance=z",
        ),
        expect![[r#"
            join b anew                      -> store g generation 2 [x.1 y.2], b: y.2 joined 2 range led by x.1
            join c instance=z                -> c: GroupFull
        "#]],
    );
}

#[test]
fn a_group_above_a_lowered_limit_turns_away_who_rejoins_last() {
    let mut world = World::new(limits());
    for line in lines(PAIR) {
        world.step(line);
    }
    world.limits.member_count_max = 1;
    world.step("restart");
    let steps = ["beat a", "join a", "join b", "beat b"];
    let trace: Vec<String> = steps.iter().map(|line| world.step(line).join(", ")).collect();
    expect![[r#"
        a: ok

        b: GroupFull, a: a.1 joined 3 range led by a.1 of [a.1]
        b: UnknownMember"#]]
    .assert_eq(&trace.join("\n"));
}

#[test]
fn leaving_starts_one_rebalance() {
    check(
        &after_pair(
            "join c
             join a
             join b
             sync a a=0
             leave stranger
             beat a
             leave b c stranger
             beat a
             join a
             sync a a=0
             leave a
             describe
             leave a
             leave a group=other",
        ),
        expect![[r#"
            join c                           ->
            join a                           ->
            join b                           -> a: a.1 joined 3 range led by a.1 of [a.1 b.1 c.1], b: b.1 joined 3 range led by a.1, c: c.1 joined 3 range led by a.1
            sync a a=0                       -> store g generation 3 [a.1 b.1 c.1], a: assigned "0"
            leave stranger                   -> stranger: UnknownMember
            beat a                           -> a: ok
            leave b c stranger               -> b: ok ok UnknownMember
            beat a                           -> a: RebalanceInProgress
            join a                           -> a: a.1 joined 4 range led by a.1 of [a.1]
            sync a a=0                       -> store g generation 4 [a.1], a: assigned "0"
            leave a                          -> store g generation 5 [], a: ok
            describe                         -> Empty consumer -
            leave a                          -> a: UnknownMember
            leave a group=other              -> a: UnknownMember
        "#]],
    );
}

#[test]
fn leaving_ends_waiting() {
    check(
        &after_pair(
            "join c
             join d modern
             join a
             leave c d
             join b
             sync b
             leave b
             sync a a=0",
        ),
        expect![[r#"
            join c                           ->
            join d modern                    -> d: MemberIdRequired d.1
            join a                           ->
            leave c d                        -> c: UnknownMember ok
            join b                           -> a: a.1 joined 3 range led by a.1 of [a.1 b.1 c.1], b: b.1 joined 3 range led by a.1, c: c.1 joined 3 range led by a.1
            sync b                           ->
            leave b                          -> b: UnknownMember, b: ok
            sync a a=0                       -> a: RebalanceInProgress
        "#]],
    );
}

#[test]
fn a_leader_that_leaves_is_followed_by_one_that_joins() {
    check(
        &after_pair(
            "join b protocols=range:q
             leave a
             sync b b=0",
        ),
        expect![[r#"
            join b protocols=range:q         ->
            leave a                          -> b: b.1 joined 3 range led by b.1 of [b.1], a: ok
            sync b b=0                       -> store g generation 3 [b.1], b: assigned "0"
        "#]],
    );
    check(
        &after_pair(
            "leave a
             join b
             sync b b=0,1",
        ),
        expect![[r#"
            leave a                          -> a: ok
            join b                           -> b: b.1 joined 3 range led by b.1 of [b.1]
            sync b b=0,1                     -> store g generation 3 [b.1], b: assigned "0,1"
        "#]],
    );
}

const STATIC_PAIR: &str = "
    join a instance=x
    join b instance=y
    join a
    sync a a=0 b=1
    sync b
";

fn after_static_pair(script: &str) -> String {
    format!("{STATIC_PAIR}---\n{script}")
}

#[test]
fn a_static_member_comes_back_without_a_rebalance() {
    check(
        &after_static_pair(
            "join b anew
             sync b
             beat a
             describe",
        ),
        expect![[r#"
            join b anew                      -> store g generation 2 [x.1 y.2], b: y.2 joined 2 range led by x.1
            sync b                           -> b: assigned "1"
            beat a                           -> a: ok
            describe                         -> Stable consumer range; x.1 a@host 9 "0"; y.2 b@host 9 "1"
        "#]],
    );
}

#[test]
fn a_static_leader_comes_back_without_assigning_anew() {
    check(
        &after_static_pair(
            "join a anew skipping
             sync a
             join a anew
             sync a
             join a",
        ),
        expect![[r#"
            join a anew skipping             -> store g generation 2 [x.2 y.1], a: x.2 joined 2 range led by x.2 of [x.2 y.1] skipping
            sync a                           -> a: assigned "0"
            join a anew                      -> store g generation 2 [x.3 y.1], a: x.3 joined 2 range led by x.2
            sync a                           -> a: assigned "0"
            join a                           ->
        "#]],
    );
}

#[test]
fn a_static_member_that_comes_back_with_another_protocol_starts_a_rebalance() {
    check(
        "join a instance=x protocols=range,sticky
         join b instance=y protocols=range,sticky
         join a protocols=range,sticky
         sync a a=0 b=1
         sync b
         join b anew protocols=sticky
         join a protocols=range,sticky
         sync a a=0 b=1
         sync b",
        expect![[r#"
            join a instance=x protocols=range,sticky -> store g generation 1 rebalancing [x.1], a: x.1 joined 1 range led by x.1 of [x.1]
            join b instance=y protocols=range,sticky ->
            join a protocols=range,sticky    -> store g generation 2 rebalancing [x.1 y.1], a: x.1 joined 2 range led by x.1 of [x.1 y.1], b: y.1 joined 2 range led by x.1
            sync a a=0 b=1                   -> store g generation 2 [x.1 y.1], a: assigned "0"
            sync b                           -> b: assigned "1"
            join b anew protocols=sticky     ->
            join a protocols=range,sticky    -> store g generation 3 rebalancing [x.1 y.2], a: x.1 joined 3 sticky led by x.1 of [x.1 y.2], b: y.2 joined 3 sticky led by x.1
            sync a a=0 b=1                   -> store g generation 3 [x.1 y.2], a: assigned "0"
            sync b                           -> b: assigned "1"
        "#]],
    );
}

#[test]
fn a_static_member_that_comes_back_during_a_rebalance_takes_part_in_it() {
    check(
        &after_static_pair(
            "join a
             join b anew
             join b anew
             join a
             sync b
             sync a a=0 b=1",
        ),
        expect![[r#"
            join a                           ->
            join b anew                      -> store g generation 3 rebalancing [x.1 y.2], a: x.1 joined 3 range led by x.1 of [x.1 y.2], b: y.2 joined 3 range led by x.1
            join b anew                      ->
            join a                           -> store g generation 4 rebalancing [x.1 y.3], a: x.1 joined 4 range led by x.1 of [x.1 y.3], b: y.3 joined 4 range led by x.1
            sync b                           ->
            sync a a=0 b=1                   -> store g generation 4 [x.1 y.3], a: assigned "0", b: assigned "1"
        "#]],
    );
}

#[test]
fn the_former_holder_of_an_instance_id_is_fenced() {
    check(
        &after_static_pair(
            "join c instance=y
             beat b
             sync b
             commit b p0=1
             join b
             leave b
             beat c
             join d instance=z
             join e instance=z",
        ),
        expect![[r#"
            join c instance=y                -> store g generation 2 [x.1 y.2], c: y.2 joined 2 range led by x.1
            beat b                           -> b: FencedInstance
            sync b                           -> b: FencedInstance
            commit b p0=1                    -> b: FencedInstance
            join b                           -> b: FencedInstance
            leave b                          -> b: FencedInstance
            beat c                           -> c: ok
            join d instance=z                ->
            join e instance=z                -> d: FencedInstance
        "#]],
    );
}

#[test]
fn a_static_member_keeps_its_place_until_its_session_ends() {
    check(
        "join a instance=x session=30000 rebalance=5000
         join b instance=y session=30000 rebalance=5000
         join a rebalance=5000 session=30000
         sync a a=0 b=1
         sync b
         join c session=60000 rebalance=5000
         join a session=30000 rebalance=5000
         wait 5000
         sync a a=0 b=1
         sync c
         wait 24999
         beat a
         wait 1
         beat a
         join a session=30000 rebalance=5000
         join c session=60000 rebalance=5000",
        expect![[r#"
            join a instance=x session=30000 rebalance=5000 -> store g generation 1 rebalancing [x.1], a: x.1 joined 1 range led by x.1 of [x.1]
            join b instance=y session=30000 rebalance=5000 ->
            join a rebalance=5000 session=30000 -> store g generation 2 rebalancing [x.1 y.1], a: x.1 joined 2 range led by x.1 of [x.1 y.1], b: y.1 joined 2 range led by x.1
            sync a a=0 b=1                   -> store g generation 2 [x.1 y.1], a: assigned "0"
            sync b                           -> b: assigned "1"
            join c session=60000 rebalance=5000 ->
            join a session=30000 rebalance=5000 ->
            wait 5000                        -> store g generation 3 rebalancing [c.1 x.1 y.1], c: c.1 joined 3 range led by x.1, a: x.1 joined 3 range led by x.1 of [c.1 x.1 y.1]
            sync a a=0 b=1                   -> store g generation 3 [c.1 x.1 y.1], a: assigned "0"
            sync c                           -> c: assigned ""
            wait 24999                       ->
            beat a                           -> a: ok
            wait 1                           ->
            beat a                           -> a: RebalanceInProgress
            join a session=30000 rebalance=5000 ->
            join c session=60000 rebalance=5000 -> store g generation 4 rebalancing [c.1 x.1], c: c.1 joined 4 range led by x.1, a: x.1 joined 4 range led by x.1 of [c.1 x.1]
        "#]],
    );
}

#[test]
fn a_group_of_absent_static_members_waits_for_their_sessions() {
    check(
        "join a instance=x session=30000 rebalance=5000
         join b instance=y session=30000 rebalance=5000
         join a session=30000 rebalance=5000
         sync a a=0 b=1
         sync b
         leave instance=x
         wait 5000
         describe
         wait 5000
         wait 20000",
        expect![[r#"
            join a instance=x session=30000 rebalance=5000 -> store g generation 1 rebalancing [x.1], a: x.1 joined 1 range led by x.1 of [x.1]
            join b instance=y session=30000 rebalance=5000 ->
            join a session=30000 rebalance=5000 -> store g generation 2 rebalancing [x.1 y.1], a: x.1 joined 2 range led by x.1 of [x.1 y.1], b: y.1 joined 2 range led by x.1
            sync a a=0 b=1                   -> store g generation 2 [x.1 y.1], a: assigned "0"
            sync b                           -> b: assigned "1"
            leave instance=x                 -> ok
            wait 5000                        ->
            describe                         -> PreparingRebalance consumer -; y.1 b@host 0 ""
            wait 5000                        ->
            wait 20000                       -> store g generation 3 []
        "#]],
    );
}

#[test]
fn an_operator_removes_static_members_by_instance_id() {
    check(
        &after_static_pair(
            "leave instance=z
             leave instance=y
             beat b
             join a",
        ),
        expect![[r#"
            leave instance=z                 -> UnknownMember
            leave instance=y                 -> ok
            beat b                           -> b: UnknownMember
            join a                           -> store g generation 3 rebalancing [x.1], a: x.1 joined 3 range led by x.1 of [x.1]
        "#]],
    );
}

#[test]
fn a_lost_connection_ends_waiting() {
    check(
        &after_pair(
            "join c
             cancel c
             join a
             join b
             sync b
             cancel b
             sync a a=0 b=1
             sync b
             join a
             cancel a
             join b
             join a
             join b
             cancel b
             wait 10000",
        ),
        expect![[r#"
            join c                           ->
            cancel c                         ->
            join a                           ->
            join b                           -> a: a.1 joined 3 range led by a.1 of [a.1 b.1], b: b.1 joined 3 range led by a.1
            sync b                           ->
            cancel b                         ->
            sync a a=0 b=1                   -> store g generation 3 [a.1 b.1], a: assigned "0"
            sync b                           -> b: assigned "1"
            join a                           ->
            cancel a                         ->
            join b                           ->
            join a                           -> a: a.1 joined 4 range led by a.1 of [a.1 b.1], b: b.1 joined 4 range led by a.1
            join b                           -> b: b.1 joined 4 range led by a.1
            cancel b                         ->
            wait 10000                       -> store g generation 5 []
        "#]],
    );
}

#[test]
fn a_group_whose_only_member_vanishes_while_joining_leaves_nothing() {
    check_with(
        GroupLimits { initial_rebalance_delay_ms: 100, ..limits() },
        "join a
         cancel a
         wait 100
         list
         deadline",
        expect![[r#"
            join a                           ->
            cancel a                         ->
            wait 100                         ->
            list                             ->
            deadline                         -> None
        "#]],
    );
}

#[test]
fn commits_are_checked_against_the_generation() {
    check(
        &after_pair(
            "commit a p0=5 p1=6
             commit a p0=5 generation=1
             commit stranger p0=5
             commit stranger p0=5 generation=2
             commit a p0=9 group=other
             commit a p0=1 group=
             join c
             commit a p0=7
             join a
             join b
             commit a p0=8
             fetch
             fetch p0 p9",
        ),
        expect![[r#"
            commit a p0=5 p1=6               -> store p0=5, store p1=6, a: ok ok
            commit a p0=5 generation=1       -> a: IllegalGeneration
            commit stranger p0=5             -> stranger: UnknownMember
            commit stranger p0=5 generation=2 -> stranger: UnknownMember
            commit a p0=9 group=other        -> a: IllegalGeneration
            commit a p0=1 group=             -> a: InvalidGroup
            join c                           ->
            commit a p0=7                    -> store p0=7, a: ok
            join a                           ->
            join b                           -> a: a.1 joined 3 range led by a.1 of [a.1 b.1 c.1], b: b.1 joined 3 range led by a.1, c: c.1 joined 3 range led by a.1
            commit a p0=8                    -> a: RebalanceInProgress
            fetch                            -> p0=7 p1=6
            fetch p0 p9                      -> p0=7 p9 none
        "#]],
    );
}

#[test]
fn anybody_commits_to_a_group_without_members() {
    check(
        "commit - p0=5
         describe
         list
         fetch
         join a
         commit - p0=6
         leave a
         commit - p0=7
         commit a p0=8
         fetch p0",
        expect![[r#"
            commit - p0=5                    -> store p0=5, ok
            describe                         -> Empty - -
            list                             -> g "" Empty
            fetch                            -> p0=5
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            commit - p0=6                    -> UnknownMember
            leave a                          -> store g generation 2 [], a: ok
            commit - p0=7                    -> store p0=7, ok
            commit a p0=8                    -> a: UnknownMember
            fetch p0                         -> p0=7
        "#]],
    );
}

#[test]
fn offset_metadata_has_a_limit() {
    check_with(
        GroupLimits { offset_metadata_size_max: 3, ..limits() },
        "commit - p0=5 metadata=abcd
         list
         commit - p0=5 metadata=abc
         fetch",
        expect![[r#"
            commit - p0=5 metadata=abcd      -> OffsetMetadataTooLarge
            list                             ->
            commit - p0=5 metadata=abc       -> store p0=5, ok
            fetch                            -> p0=5abc
        "#]],
    );
}

#[test]
fn all_groups_together_have_a_limit() {
    check_with(
        GroupLimits { state_size_max: 1_000, ..limits() },
        "commit - p0=5
         commit - p1=6 p2=7
         commit - p1=8 p3=6
         commit - p1=6
         commit - p2=7
         commit - p1=6 group=h
         join a
         drop-topic p
         join a group=h
         join b group=h",
        expect![[r#"
            commit - p0=5                    -> store p0=5, ok
            commit - p1=6 p2=7               -> store p1=6, store p2=7, ok ok
            commit - p1=8 p3=6               -> Busy Busy
            commit - p1=6                    -> store p1=6, ok
            commit - p2=7                    -> store p2=7, ok
            commit - p1=6 group=h            -> Busy
            join a                           -> a: Busy
            drop-topic p                     -> drop p0, drop p1, drop p2
            join a group=h                   -> a: Busy
            join b group=h                   -> b: Busy
        "#]],
    );
    check_with(
        GroupLimits { group_count_max: 1, ..limits() },
        "commit - p0=5
         commit - p0=5 group=h
         join a group=h
         delete
         join a group=h",
        expect![[r#"
            commit - p0=5                    -> store p0=5, ok
            commit - p0=5 group=h            -> PolicyViolation
            join a group=h                   -> a: PolicyViolation
            delete                           -> drop p0, ok
            join a group=h                   -> a: a.1 joined 1 range led by a.1 of [a.1]
        "#]],
    );
    check_with(
        GroupLimits { member_metadata_size_max: 30, members_size_max: 610, ..limits() },
        "join a protocols=range:p/q/r/s/t/u/v/w/x/y
         join a
         join b
         join a
         sync a a=01234567890123456789
         sync a a=0123456789
         join a
         sync a a=9876543210",
        expect![[r#"
            join a protocols=range:p/q/r/s/t/u/v/w/x/y -> a: PolicyViolation
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            join b                           -> b: GroupFull
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            sync a a=01234567890123456789    -> a: PolicyViolation
            sync a a=0123456789              -> store g generation 1 [a.1], a: assigned "0123456789"
            join a                           -> a: a.1 joined 2 range led by a.1 of [a.1]
            sync a a=9876543210              -> store g generation 2 [a.1], a: assigned "9876543210"
        "#]],
    );
}

#[test]
fn offsets_go_when_a_group_was_empty_for_the_retention() {
    check_with(
        GroupLimits { offsets_retention_ms: 100_000, empty_group_ms: 20_000, ..limits() },
        "join a
         sync a a=0
         commit a p0=5
         wait 9000
         beat a
         leave a
         wait 50000
         commit - p1=6
         wait 49999
         wait 1
         fetch
         wait 49999
         wait 1
         list
         deadline",
        expect![[r#"
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            sync a a=0                       -> store g generation 1 [a.1], a: assigned "0"
            commit a p0=5                    -> store p0=5, a: ok
            wait 9000                        ->
            beat a                           -> a: ok
            leave a                          -> store g generation 2 [], a: ok
            wait 50000                       ->
            commit - p1=6                    -> store p1=6, ok
            wait 49999                       ->
            wait 1                           -> drop p0
            fetch                            -> p1=6
            wait 49999                       ->
            wait 1                           -> drop p1, drop g
            list                             ->
            deadline                         -> None
        "#]],
    );
}

#[test]
fn offsets_of_a_group_with_members_stay() {
    check_with(
        GroupLimits { offsets_retention_ms: 15_000, ..limits() },
        "commit - p0=5
         wait 9000
         join a
         sync a a=0
         wait 9000
         beat a
         wait 9000
         fetch
         leave a
         wait 14999
         wait 1",
        expect![[r#"
            commit - p0=5                    -> store p0=5, ok
            wait 9000                        ->
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            sync a a=0                       -> store g generation 1 [a.1], a: assigned "0"
            wait 9000                        ->
            beat a                           -> a: ok
            wait 9000                        ->
            fetch                            -> p0=5
            leave a                          -> store g generation 2 [], a: ok
            wait 14999                       ->
            wait 1                           -> drop p0
        "#]],
    );
}

#[test]
fn a_group_without_members_and_offsets_goes_soon() {
    check(
        "join a
         sync a a=0
         leave a
         deadline
         wait 599999
         wait 1
         list
         deadline",
        expect![[r#"
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            sync a a=0                       -> store g generation 1 [a.1], a: assigned "0"
            leave a                          -> store g generation 2 [], a: ok
            deadline                         -> Some(600000)
            wait 599999                      ->
            wait 1                           -> drop g
            list                             ->
            deadline                         -> None
        "#]],
    );
}

#[test]
fn offsets_of_topics_that_nobody_subscribes_to_can_be_deleted() {
    check(
        "join a protocols=range:p
         sync a a=0
         commit a p0=5 q0=6 q1=7
         forget p0 q0 q9
         fetch
         forget p0 group=other
         join a protocols=range:!
         sync a a=0
         forget q1
         leave a
         forget p0
         fetch
         join b type=connect
         forget q1",
        expect![[r#"
            join a protocols=range:p         -> a: a.1 joined 1 range led by a.1 of [a.1]
            sync a a=0                       -> store g generation 1 [a.1], a: assigned "0"
            commit a p0=5 q0=6 q1=7          -> store p0=5, store q0=6, store q1=7, a: ok ok ok
            forget p0 q0 q9                  -> drop q0, SubscribedTopic ok ok
            fetch                            -> p0=5 q1=7
            forget p0 group=other            -> UnknownGroup
            join a protocols=range:!         -> a: a.1 joined 2 range led by a.1 of [a.1]
            sync a a=0                       -> store g generation 2 [a.1], a: assigned "0"
            forget q1                        -> SubscribedTopic
            leave a                          -> store g generation 3 [], a: ok
            forget p0                        -> drop p0, ok
            fetch                            -> q1=7
            join b type=connect              -> b: b.1 joined 4 range led by b.1 of [b.1]
            forget q1                        -> NonEmptyGroup
        "#]],
    );
}

#[test]
fn only_empty_groups_can_be_deleted() {
    check(
        "delete
         commit - p0=5 p1=6
         delete
         join a
         sync a a=0
         commit a p0=5
         delete
         leave a
         join b modern
         delete
         join b
         list
         deadline",
        expect![[r#"
            delete                           -> UnknownGroup
            commit - p0=5 p1=6               -> store p0=5, store p1=6, ok ok
            delete                           -> drop p0, drop p1, ok
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            sync a a=0                       -> store g generation 1 [a.1], a: assigned "0"
            commit a p0=5                    -> store p0=5, a: ok
            delete                           -> NonEmptyGroup
            leave a                          -> store g generation 2 [], a: ok
            join b modern                    -> b: MemberIdRequired b.1
            delete                           -> drop p0, drop g, ok
            join b                           -> b: UnknownMember
            list                             ->
            deadline                         -> None
        "#]],
    );
}

#[test]
fn offsets_of_a_deleted_topic_go() {
    check(
        "commit - p0=5 p7=6 q0=7
         commit - p0=1 group=h
         lag
         drop-topic p
         lag
         list",
        expect![[r#"
            commit - p0=5 p7=6 q0=7          -> store p0=5, store p7=6, store q0=7, ok ok ok
            commit - p0=1 group=h            -> store p0=1, ok
            lag                              -> g p0=5, g p7=6, g q0=7, h p0=1
            drop-topic p                     -> drop p0, drop p7, drop p0
            lag                              -> g q0=7
            list                             -> g "" Empty
        "#]],
    );
}

#[test]
fn group_names_are_neither_empty_nor_endless() {
    check(
        "join a group=
         beat a group=
         sync a group=
         leave a group=
         commit - p0=1 group=",
        expect![[r#"
            join a group=                    -> a: InvalidGroup
            beat a group=                    -> a: InvalidGroup
            sync a group=                    -> a: InvalidGroup
            leave a group=                   -> a: InvalidGroup
            commit - p0=1 group=             -> InvalidGroup
        "#]],
    );
    let name = "x".repeat(super::NAME_SIZE_MAX + 1);
    let mut world = World::new(limits());
    assert_eq!(world.step(&format!("join a group={name}")), ["a: InvalidGroup"]);
    assert_eq!(world.step(&format!("join a instance={name}")), ["a: InvalidRequest"]);
}

#[test]
fn protocols_of_one_member_are_few_and_differ() {
    let many: Vec<String> = (0..65).map(|number| format!("protocol{number}")).collect();
    let mut world = World::new(limits());
    assert_eq!(world.step("join a protocols=range,range"), ["a: InvalidRequest"]);
    let join = format!("join a protocols={}", many.join(","));
    assert_eq!(world.step(&join), ["a: InvalidRequest"]);
}

#[test]
fn after_a_restart_members_go_on_without_a_rebalance() {
    check(
        &after_pair(
            "commit a p0=5
             commit b p1=6
             restart
             describe
             beat a
             beat b
             commit a p0=7
             sync b
             fetch
             join b
             wait 9000
             beat a
             wait 1000
             beat a
             join a
             join c",
        ),
        expect![[r#"
            commit a p0=5                    -> store p0=5, a: ok
            commit b p1=6                    -> store p1=6, b: ok
            restart                          ->
            describe                         -> Stable consumer range; a.1 a@host 9 "0"; b.1 b@host 9 "1"
            beat a                           -> a: ok
            beat b                           -> b: ok
            commit a p0=7                    -> store p0=7, a: ok
            sync b                           -> b: assigned "1"
            fetch                            -> p0=7 p1=6
            join b                           -> b: b.1 joined 2 range led by a.1
            wait 9000                        ->
            beat a                           -> a: ok
            wait 1000                        ->
            beat a                           -> a: RebalanceInProgress
            join a                           -> a: a.1 joined 3 range led by a.1 of [a.1]
            join c                           ->
        "#]],
    );
}

#[test]
fn a_restart_during_a_rebalance_leads_back_to_the_last_assignment() {
    check(
        &after_pair(
            "join c
             join a
             join b
             restart
             beat c
             beat a
             beat a generation=2
             join a
             join b
             join c anew",
        ),
        expect![[r#"
            join c                           ->
            join a                           ->
            join b                           -> a: a.1 joined 3 range led by a.1 of [a.1 b.1 c.1], b: b.1 joined 3 range led by a.1, c: c.1 joined 3 range led by a.1
            restart                          ->
            beat c                           -> c: UnknownMember
            beat a                           -> a: IllegalGeneration
            beat a generation=2              -> a: ok
            join a                           ->
            join b                           -> a: a.1 joined 3 range led by a.1 of [a.1 b.1], b: b.1 joined 3 range led by a.1
            join c anew                      ->
        "#]],
    );
}

#[test]
fn after_a_restart_during_a_rebalance_static_members_are_not_fenced() {
    check(
        &after_static_pair(
            "join a
             join b anew
             restart
             describe
             beat b
             sync a
             join b
             join a
             sync a a=0 b=1",
        ),
        expect![[r#"
            join a                           ->
            join b anew                      -> store g generation 3 rebalancing [x.1 y.2], a: x.1 joined 3 range led by x.1 of [x.1 y.2], b: y.2 joined 3 range led by x.1
            restart                          ->
            describe                         -> PreparingRebalance consumer -; x.1 a@host 0 ""; y.2 b@host 0 ""
            beat b                           -> b: RebalanceInProgress
            sync a                           -> a: RebalanceInProgress
            join b                           ->
            join a                           -> store g generation 4 rebalancing [x.1 y.2], a: x.1 joined 4 range led by x.1 of [x.1 y.2], b: y.2 joined 4 range led by x.1
            sync a a=0 b=1                   -> store g generation 4 [x.1 y.2], a: assigned "0"
        "#]],
    );
}

#[test]
fn a_static_member_replaced_before_a_restart_is_still_known() {
    check(
        &after_static_pair(
            "join b anew
             restart
             sync b
             beat a",
        ),
        expect![[r#"
            join b anew                      -> store g generation 2 [x.1 y.2], b: y.2 joined 2 range led by x.1
            restart                          ->
            sync b                           -> b: assigned "1"
            beat a                           -> a: ok
        "#]],
    );
}

#[test]
fn after_a_restart_offsets_keep_their_age() {
    check_with(
        GroupLimits { offsets_retention_ms: 100_000, ..limits() },
        "commit - p0=5 group=h
         join a
         sync a a=0
         commit a p1=6
         leave a
         wait 60000
         restart
         commit - p2=7 group=h
         wait 39999
         wait 1
         lag
         wait 60000
         list
         wait 500000
         list
         deadline",
        expect![[r#"
            commit - p0=5 group=h            -> store p0=5, ok
            join a                           -> a: a.1 joined 1 range led by a.1 of [a.1]
            sync a a=0                       -> store g generation 1 [a.1], a: assigned "0"
            commit a p1=6                    -> store p1=6, a: ok
            leave a                          -> store g generation 2 [], a: ok
            wait 60000                       ->
            restart                          ->
            commit - p2=7 group=h            -> store p2=7, ok
            wait 39999                       ->
            wait 1                           -> drop p1, drop p0
            lag                              -> h p2=7
            wait 60000                       -> drop p2
            list                             -> g "consumer" Empty
            wait 500000                      -> drop g
            list                             ->
            deadline                         -> None
        "#]],
    );
}

#[test]
fn member_ids_differ_after_a_restart() {
    let mut seen = BTreeSet::new();
    for seed in 0..10 {
        let mut ids = super::MemberIds { seed, count: 0 };
        for _ in 0..1_000 {
            assert!(seen.insert(ids.next("a")));
        }
    }
}

#[test]
fn what_cannot_be_a_group_is_refused_at_recovery() {
    let mut world = World::new(limits());
    for line in lines(PAIR) {
        world.step(line);
    }
    let (key, value) = world.state.first_key_value().unwrap();
    let (facts, members) = stored::decode_group(value).unwrap();
    let refused = |facts: &stored::GroupFacts, members: &[(String, stored::MemberFacts)]| {
        let members = members.iter().map(|(id, member)| (id.as_str(), member));
        let value = stored::encode_group(facts, members);
        Groups::new(limits(), 1).load(world.now, key, &value).unwrap_err()
    };
    let mut strange = facts.clone();
    strange.leader = Some("nobody".into());
    let mut foreign = facts.clone();
    foreign.protocol = Some("unknown".into());
    let mut twice = members.clone();
    twice[1] = twice[0].clone();
    let errors = [
        refused(&strange, &members),
        refused(&foreign, &members),
        refused(&facts, &twice).replace(&members[0].0, "a"),
        Groups::new(limits(), 1).load(world.now, key, &value[..9]).unwrap_err(),
        Groups::new(limits(), 1).load(world.now, b"\x01", value).unwrap_err(),
    ];
    expect![[r#"
        group g has no leader or no shared protocol
        group g has no leader or no shared protocol
        group g has member a twice
        group state is cut short: 4 bytes wanted, 1 left
        not the key of a committed offset"#]]
    .assert_eq(&errors.join("\n"));
}

#[test]
fn a_large_group_rebalances_and_restarts() {
    let mut world = World::new(limits());
    let count = 1_000;
    for number in 0..count {
        world.step(&format!("join c{number}"));
    }
    world.step("join c0");
    let mut assigned = 0;
    for number in (0..count).rev() {
        let effects = world.step(&format!("sync c{number} c0=0"));
        assigned += effects.iter().filter(|effect| effect.contains("assigned")).count();
    }
    assert_eq!(assigned, count);
    world.step("restart");
    for number in 0..count {
        assert_eq!(world.step(&format!("beat c{number}")), [format!("c{number}: ok")]);
    }
    let listed = &world.step("list")[0];
    assert_eq!(listed, &format!("g \"consumer\" {:?}", GroupState::Stable));
    let gone = [world.step("wait 10000"), world.step("wait 0")].concat();
    assert_eq!(gone, ["store g generation 3 []"]);
    world.assert_consistent();
}

/// Long random scripts: nothing panics, nobody is answered twice or never, and a restart at any
/// point finds a state that it can go on from.
#[test]
fn random_scripts_keep_everything_consistent() {
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let delay = [0, 500][dice.roll(2)];
        let mut world = World::new(GroupLimits {
            initial_rebalance_delay_ms: delay,
            new_member_join_ms: 20_000,
            offsets_retention_ms: 60_000,
            empty_group_ms: 30_000,
            member_count_max: 4,
            ..limits()
        });
        for _ in 0..400 {
            let line = random_line(&mut dice);
            world.step(&line);
            world.assert_consistent();
        }
        // Everybody is silent: in the end nothing is left, and nothing is due.
        for _ in 0..100 {
            world.step("wait 10000");
        }
        world.assert_consistent();
        assert_eq!(world.groups.next_deadline_ms(), None, "seed {seed}");
        assert!(world.state.is_empty(), "seed {seed}");
    }
}

fn random_line(dice: &mut Dice) -> String {
    let who = ["a", "b", "c", "x", "y", "z"][dice.roll(6)];
    // Some are static: `z` and `y` fight for one instance id.
    let instance = match who {
        "x" => " instance=i",
        "y" | "z" => " instance=k",
        _ => "",
    };
    let protocols = ["range", "range,sticky", "sticky,range", "range:q,sticky"][dice.roll(4)];
    let group = ["g", "g", "g", "h"][dice.roll(4)];
    match dice.roll(24) {
        0..=5 => {
            let flags = ["", " modern", " anew skipping", " anew modern"][dice.roll(4)];
            let rebalance = [2_000, 30_000][dice.roll(2)];
            format!(
                "join {who}{instance}{flags} protocols={protocols} rebalance={rebalance} group={group}"
            )
        }
        6..=10 => format!("sync {who} a=1 b=22 x=333 group={group}"),
        11..=13 => format!("beat {who} group={group}"),
        14 => format!("leave {who} group={group}"),
        15 => format!("leave instance=k group={group}"),
        16 => format!("commit {who} p0=1 q1=2 group={group}"),
        17 => format!("commit - p1=3 group={group}"),
        18 => format!("forget p0 q1 group={group}"),
        19 => format!("cancel {who}"),
        20..=21 => format!("wait {}", [1, 700, 3_000, 9_000][dice.roll(4)]),
        22 => ["describe", "delete", "drop-topic q", "list"][dice.roll(4)].to_owned(),
        _ => ["restart", "wait 100"][dice.roll(2)].to_owned(),
    }
}

/// A small generator of numbers, for scripts only.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = super::mix(self.0);
        (self.0 % sides as u64) as usize
    }
}
