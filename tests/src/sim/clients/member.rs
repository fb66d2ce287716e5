//! A member of a consumer group: joins, takes its assignment, beats, commits, leaves, comes again.

use bytes::Bytes;
use tidemill::command::{
    Command, GroupCommand, GroupReply, Join, LeavingMember, MemberRef, Refusal, Reply, Sync,
    group_shard,
};

use super::committer::{commit, on_committed};
use super::{Asked, Context, unexpected};
use crate::sim::model::Check;

/// A member's life.
#[derive(Debug)]
pub struct Member {
    group: String,
    instance_id: Option<String>,
    member_id: String,
    generation: i32,
    stage: Stage,
    /// Its own numbers, so that no two members commit the same offset.
    next: u64,
    is_waiting: bool,
    pause_us: u64,
}

#[derive(Debug, Clone)]
enum Stage {
    Outside,
    Joined { everybody: Vec<String> },
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
            stage: Stage::Outside,
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
        if self.is_waiting || cx.is_draining {
            return pause_us;
        }
        let command = match &self.stage {
            Stage::Outside => GroupCommand::Join(Join {
                group: self.group.clone(),
                member_id: self.member_id.clone(),
                instance_id: self.instance_id.clone(),
                client_id: "sim".to_owned(),
                client_host: "/127.0.0.1".to_owned(),
                session_timeout_ms: 200,
                rebalance_timeout_ms: 100,
                protocol_type: "consumer".to_owned(),
                protocols: vec![("range".to_owned(), Bytes::from_static(b"topics"))],
                member_id_required: cx.random.one_in(2),
                can_skip_assignment: true,
            }),
            Stage::Joined { everybody } => GroupCommand::Sync(Sync {
                member: self.reference(),
                protocol_type: Some("consumer".to_owned()),
                protocol: Some("range".to_owned()),
                assignments: (everybody.iter())
                    .map(|member| (member.clone(), Bytes::from(member.clone())))
                    .collect(),
            }),
            Stage::Stable if cx.random.one_in(30) => {
                self.stage = Stage::Leaving;
                let leaving = LeavingMember {
                    member_id: self.member_id.clone(),
                    instance_id: self.instance_id.clone(),
                };
                GroupCommand::Leave { group: self.group.clone(), members: vec![leaving] }
            }
            Stage::Stable if cx.random.one_in(2) => {
                let alive = cx.model.alive();
                if alive.is_empty() {
                    return pause_us;
                }
                self.is_waiting = true;
                let offsets = [(cx.random.choose(&alive).0, self.next)];
                self.next += 1;
                cx.asked.push(commit(cx.shard_count, self.reference(), &offsets, cx.model));
                return pause_us;
            }
            Stage::Stable => GroupCommand::Heartbeat(self.reference()),
            Stage::Leaving => return pause_us,
        };
        self.is_waiting = true;
        let shard = group_shard(&self.group, cx.shard_count);
        cx.asked.push((shard, Command::Group(command), Asked::Member));
        pause_us
    }

    pub(super) fn on_reply(&mut self, cx: &mut Context<'_>, asked: Asked, reply: Reply) -> Check {
        self.is_waiting = false;
        match (asked, reply) {
            (asked @ Asked::Commit(..), reply) => {
                if let Reply::Group(GroupReply::OffsetCommit(results)) = &reply {
                    results.iter().for_each(|result| self.on_result(result));
                }
                return on_committed(cx, asked, reply);
            }
            (Asked::Member, Reply::Group(reply)) => match reply {
                GroupReply::Join(Ok(joined)) => {
                    self.member_id = joined.member_id;
                    self.generation = joined.generation;
                    let everybody = match joined.skip_assignment {
                        true => Vec::new(),
                        false => joined.members.into_iter().map(|m| m.member_id).collect(),
                    };
                    self.stage = Stage::Joined { everybody };
                }
                GroupReply::Join(Err(refused)) => match refused.refusal {
                    Refusal::MemberIdRequired => self.member_id = refused.member_id,
                    refusal => self.on_result(&Err(refusal)),
                },
                GroupReply::Sync(Ok(synced)) => {
                    let own = synced.assignment.is_empty()
                        || synced.assignment == self.member_id.as_bytes()
                        || self.instance_id.is_some();
                    if !own {
                        return Err(format!("{} got another's assignment", self.member_id));
                    }
                    self.stage = Stage::Stable;
                }
                GroupReply::Sync(Err(refusal)) => self.on_result(&Err(refusal)),
                GroupReply::Heartbeat(result) => self.on_result(&result),
                GroupReply::Leave(_) => {
                    self.stage = Stage::Outside;
                    self.member_id = String::new();
                }
                reply => return Err(format!("a member is answered {reply:?}")),
            },
            (Asked::Member, Reply::Refused(_)) => {
                if matches!(self.stage, Stage::Leaving) {
                    self.stage = Stage::Stable;
                }
            }
            (asked, reply) => return unexpected(&asked, &reply),
        }
        Ok(())
    }

    fn on_result(&mut self, result: &Result<(), Refusal>) {
        match result {
            Ok(()) => {}
            Err(Refusal::RebalanceInProgress) => self.stage = Stage::Outside,
            Err(Refusal::Busy | Refusal::DiskFull | Refusal::Stopping) => {}
            Err(_) => {
                self.stage = Stage::Outside;
                self.member_id = String::new();
                self.generation = -1;
            }
        }
    }

    pub(super) fn on_restart(&mut self) {
        self.is_waiting = false;
        if matches!(self.stage, Stage::Leaving) {
            self.stage = Stage::Outside;
        }
    }
}
