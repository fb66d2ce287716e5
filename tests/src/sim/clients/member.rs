//! A member of a consumer group: joins, takes its assignment, beats, commits, leaves, dies, comes
//! again. What it was before goes on asking now and then, as a process does that was only slow.

use bytes::Bytes;
use tidemill::command::{
    Command, GroupCommand, GroupReply, Join, Joined, LeavingMember, MemberRef, Refusal, Reply,
    Sync, group_shard,
};
use tidemill_wal::format::PartitionId;

use super::committer::commit;
use super::{Asked, Context, unexpected};
use crate::sim::model::Check;

/// A member's life.
#[derive(Debug)]
pub struct Member {
    group: String,
    instance_id: Option<String>,
    member_id: String,
    generation: i32,
    protocol: String,
    stage: Stage,
    /// Who it was before, if anybody.
    ghost: Option<MemberRef>,
    /// Its own numbers, so that no two members commit the same offset.
    next: u64,
    is_waiting: bool,
    pause_us: u64,
}

#[derive(Debug, Clone)]
enum Stage {
    Outside,
    /// The leader knows everybody: member id, and the name to assign to.
    Joined {
        everybody: Vec<(String, String)>,
    },
    Stable,
    Leaving,
}

impl Member {
    /// A member number `number` of a group, static or not.
    pub fn new(group: String, number: u64, is_static: bool, pause_us: u64) -> Self {
        Self {
            group,
            instance_id: is_static.then(|| format!("instance-{number}")),
            member_id: String::new(),
            generation: -1,
            protocol: String::new(),
            stage: Stage::Outside,
            ghost: None,
            next: number << 32 | 1,
            is_waiting: false,
            pause_us,
        }
    }

    fn reference(&self) -> MemberRef {
        MemberRef {
            group: self.group.clone(),
            generation: self.generation,
            member_id: self.member_id.clone(),
            instance_id: self.instance_id.clone(),
        }
    }

    pub(super) fn act(&mut self, cx: &mut Context<'_>) -> u64 {
        let pause_us = cx.random.between(1, 2 * self.pause_us);
        if cx.is_draining {
            return pause_us;
        }
        if self.ghost.is_some() && cx.random.one_in(20) {
            self.haunt(cx);
        }
        if cx.random.one_in(200) {
            cx.is_disconnecting = true;
            self.is_waiting = false;
            self.stage = Stage::Outside;
            if cx.random.one_in(2) {
                self.die();
            }
        }
        if !self.is_waiting {
            self.ask(cx);
        }
        pause_us
    }

    /// Its process ends without a word; the next one knows nothing but its name.
    fn die(&mut self) {
        if self.generation >= 0 {
            self.ghost = Some(self.reference());
        }
        self.stage = Stage::Outside;
        self.member_id = String::new();
        self.generation = -1;
    }

    /// Who it was before does not know that it is dead.
    fn haunt(&mut self, cx: &mut Context<'_>) {
        let Some(who) = self.ghost.clone() else { return };
        let asked = cx.model.on_member_asked(who.clone());
        if cx.random.one_in(3) {
            let shard = group_shard(&self.group, cx.shard_count);
            let command = Command::Group(GroupCommand::Heartbeat(who));
            return cx.unheard.push((shard, command, Asked::Member(asked)));
        }
        if let Some(offsets) = self.progress(cx) {
            let ask = commit(cx.shard_count, who, Some(asked), &offsets, cx.model);
            cx.unheard.push(ask);
        }
    }

    fn progress(&mut self, cx: &mut Context<'_>) -> Option<[(PartitionId, u64); 1]> {
        let alive = cx.model.alive();
        let (partition, _) = (!alive.is_empty()).then(|| cx.random.choose(&alive))?;
        self.next += 1;
        Some([(partition, self.next)])
    }

    fn ask(&mut self, cx: &mut Context<'_>) {
        let command = match &self.stage {
            Stage::Outside => GroupCommand::Join(self.join(cx)),
            Stage::Joined { everybody } => GroupCommand::Sync(Sync {
                member: self.reference(),
                protocol_type: Some("consumer".to_owned()),
                protocol: Some(self.protocol.clone()),
                assignments: (everybody.iter())
                    .map(|(id, name)| (id.clone(), assignment(self.generation, name)))
                    .collect(),
            }),
            Stage::Stable if cx.random.one_in(50) => {
                self.stage = Stage::Leaving;
                let leaving = LeavingMember {
                    member_id: self.member_id.clone(),
                    instance_id: self.instance_id.clone(),
                };
                GroupCommand::Leave { group: self.group.clone(), members: vec![leaving] }
            }
            Stage::Stable if cx.random.one_in(2) => {
                let Some(offsets) = self.progress(cx) else { return };
                self.is_waiting = true;
                let who = self.reference();
                let asked = cx.model.on_member_asked(who.clone());
                return cx.asked.push(commit(cx.shard_count, who, Some(asked), &offsets, cx.model));
            }
            Stage::Stable => GroupCommand::Heartbeat(self.reference()),
            Stage::Leaving => return,
        };
        self.is_waiting = true;
        let shard = group_shard(&self.group, cx.shard_count);
        let asked = cx.model.on_member_asked(self.reference());
        cx.asked.push((shard, Command::Group(command), Asked::Member(asked)));
    }

    fn join(&self, cx: &mut Context<'_>) -> Join {
        let subscription = Bytes::from_static(b"topics");
        let mut protocols = vec![("range".to_owned(), subscription.clone())];
        if cx.random.one_in(4) {
            protocols.push(("sticky".to_owned(), subscription));
        }
        Join {
            group: self.group.clone(),
            member_id: self.member_id.clone(),
            instance_id: self.instance_id.clone(),
            client_id: "sim".to_owned(),
            client_host: "/127.0.0.1".to_owned(),
            session_timeout_ms: cx.random.choose(&[30, 30, 200]),
            rebalance_timeout_ms: 100,
            protocol_type: "consumer".to_owned(),
            protocols,
            member_id_required: cx.random.one_in(2),
            can_skip_assignment: cx.random.one_in(2),
        }
    }

    pub(super) fn on_reply(&mut self, _: &mut Context<'_>, asked: Asked, reply: Reply) -> Check {
        self.is_waiting = false;
        match (asked, reply) {
            (Asked::Commit(..), Reply::Group(GroupReply::OffsetCommit(results))) => {
                results.iter().for_each(|result| self.on_result(result));
            }
            (Asked::Commit(..), Reply::Refused(_)) => {}
            (Asked::Member(_), Reply::Group(reply)) => match reply {
                GroupReply::Join(Ok(joined)) => self.on_joined(joined),
                GroupReply::Join(Err(refused)) => match refused.refusal {
                    Refusal::MemberIdRequired => self.member_id = refused.member_id,
                    refusal => self.on_result(&Err(refusal)),
                },
                GroupReply::Sync(Ok(synced)) => {
                    let name = self.instance_id.as_ref().unwrap_or(&self.member_id);
                    let due = assignment(self.generation, name);
                    if synced.assignment != due {
                        let got = synced.assignment;
                        return Err(format!("{name} got the assignment {got:?}, not {due:?}"));
                    }
                    self.stage = Stage::Stable;
                }
                GroupReply::Sync(Err(refusal)) => self.on_result(&Err(refusal)),
                GroupReply::Heartbeat(result) => self.on_result(&result),
                GroupReply::Leave(_) => self.die(),
                reply => return Err(format!("a member is answered {reply:?}")),
            },
            (Asked::Member(_), Reply::Refused(_)) => {
                if matches!(self.stage, Stage::Leaving) {
                    self.stage = Stage::Stable;
                }
            }
            (asked, reply) => return unexpected(&asked, &reply),
        }
        Ok(())
    }

    fn on_joined(&mut self, joined: Joined) {
        self.member_id = joined.member_id;
        self.generation = joined.generation;
        self.protocol = joined.protocol;
        let everybody = match joined.skip_assignment {
            true => Vec::new(),
            false => (joined.members.into_iter())
                .map(|member| {
                    let name = member.instance_id.unwrap_or_else(|| member.member_id.clone());
                    (member.member_id, name)
                })
                .collect(),
        };
        self.stage = Stage::Joined { everybody };
    }

    fn on_result(&mut self, result: &Result<(), Refusal>) {
        match result {
            Ok(()) => {}
            Err(Refusal::RebalanceInProgress) => self.stage = Stage::Outside,
            Err(Refusal::Busy | Refusal::DiskFull | Refusal::Stopping) => {}
            Err(_) => self.die(),
        }
    }

    pub(super) fn on_restart(&mut self) {
        self.is_waiting = false;
        if matches!(self.stage, Stage::Leaving) {
            self.stage = Stage::Outside;
        }
    }
}

/// What a leader assigns: whoever gets it can tell whether it is its own, and new.
fn assignment(generation: i32, name: &str) -> Bytes {
    Bytes::from(format!("{generation} {name}"))
}
