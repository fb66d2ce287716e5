//! What answers tell, whoever hears them: from the moment an answer leaves its shard somebody may
//! have it, so it is checked even if its asker is gone.

use tidemill::batch::batches;
use tidemill::command::{Fetched, GroupReply, Joined, Refusal, Reply};

use super::{Asked, admin, unexpected};
use crate::sim::model::{Check, MemberAsked, Model};

/// Refusals of anything, when there is no room or no time.
fn is_overload(refusal: Refusal) -> bool {
    matches!(refusal, Refusal::Busy | Refusal::DiskFull | Refusal::Stopping)
}

/// Where to go on after one partition's part of a fetch.
pub(super) fn next_offset(offset: u64, fetched: &Fetched) -> u64 {
    match &fetched.records {
        Ok(pieces) => {
            let last = pieces.iter().flat_map(|piece| batches(piece.clone())).flatten().last();
            last.map_or(offset, |batch| batch.last_offset() + 1)
        }
        Err(Refusal::OffsetOutOfRange) => fetched.start.max(offset.min(fetched.durable_end)),
        Err(_) => offset,
    }
}

/// Compares an answer with the model, and tells it what is new.
pub(super) fn check(model: &mut Model, asked: &Asked, reply: &Reply) -> Check {
    match (asked, reply) {
        (Asked::Produce(tries), Reply::Produce(results)) => {
            if tries.len() != results.len() {
                return Err("another number of results than of batches".to_owned());
            }
            for (of, result) in tries.iter().zip(results) {
                model.on_produced(of, result)?;
            }
            Ok(())
        }
        (Asked::Produce(tries), Reply::Refused(refusal)) => {
            for of in tries {
                model.on_produced(of, &Err(*refusal))?;
            }
            Ok(())
        }
        (Asked::ProducerId, Reply::InitProducerId(Ok(id))) => model.on_producer_id(*id),
        (Asked::Commit(group, offsets, member), reply) => {
            let results = match reply {
                Reply::Group(GroupReply::OffsetCommit(results)) => results,
                Reply::Group(GroupReply::OffsetDelete(Ok(results))) => results,
                Reply::Group(GroupReply::OffsetDelete(Err(Refusal::UnknownGroup))) => {
                    for (partition, _) in offsets {
                        model.on_commit(group, *partition, None, false);
                        model.on_committed_shown(group, *partition, None)?;
                    }
                    return Ok(());
                }
                Reply::Refused(refusal) if is_overload(*refusal) => {
                    &vec![Err(*refusal); offsets.len()]
                }
                reply => return unexpected(asked, reply),
            };
            for ((partition, offset), result) in offsets.iter().zip(results) {
                match (result, member) {
                    (Ok(()), Some(member)) => {
                        model.on_member_confirmed(member)?;
                        model.counts.member_commits += 1;
                    }
                    (Err(_), Some(member)) => model.on_member_refused(member),
                    (_, None) => {}
                }
                model.on_commit(group, *partition, *offset, result.is_ok());
            }
            Ok(())
        }
        (
            Asked::Committed { group, is_all, gone_count },
            Reply::Group(GroupReply::OffsetFetch(Ok(shown))),
        ) => {
            model.check_no_offsets_of_gone(*gone_count, shown)?;
            if *is_all {
                return model.on_all_committed_shown(group, shown);
            }
            for (partition, committed) in shown {
                let offset = committed.as_ref().map(|committed| committed.offset);
                model.on_committed_shown(group, *partition, offset)?;
            }
            Ok(())
        }
        (Asked::RemoveGroup(group), Reply::Group(GroupReply::Delete(result))) => {
            let is_unknown = *result == Err(Refusal::UnknownGroup);
            model.on_removal(group, result.is_ok(), is_unknown)
        }
        (Asked::RemoveGroup(group), Reply::Refused(_)) => model.on_removal(group, false, false),
        (Asked::Member(asked), Reply::Group(reply)) => check_member(model, asked, reply),
        (Asked::Fetch(asked), Reply::Fetch(fetched)) => {
            if asked.len() != fetched.len() {
                return Err("another number of partitions than asked for".to_owned());
            }
            for ((partition, offset, known), fetched) in asked.iter().zip(fetched) {
                model.on_fetched(*partition, *offset, *known, fetched)?;
            }
            Ok(())
        }
        (asked, reply) => admin::check(model, asked, reply),
    }
}

fn check_member(model: &mut Model, asked: &MemberAsked, reply: &GroupReply) -> Check {
    match reply {
        GroupReply::Join(Ok(Joined { member_id, generation, leader, skip_assignment, .. })) => {
            let leads = leader == member_id && !skip_assignment;
            model.on_joined(asked, member_id, *generation, leads)
        }
        GroupReply::Sync(Ok(_)) => model.on_synced(asked),
        GroupReply::Heartbeat(Ok(())) => model.on_member_confirmed(asked),
        GroupReply::Sync(Err(_)) | GroupReply::Heartbeat(Err(_)) => {
            model.on_member_refused(asked);
            Ok(())
        }
        GroupReply::Leave(Ok(results)) if results.iter().all(Result::is_ok) => model.on_left(asked),
        _ => Ok(()),
    }
}
