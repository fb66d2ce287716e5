//! Entries for other shards leave with their frame, and not after it.
//!
//! Two shards so write what belongs together at once, where one after the other would take twice as
//! long. The receiver's frame rests on the sender's: it counts as durable when both are, and not
//! before does anything leave that depends on it. A shard has one frame in flight until then, so
//! only its newest one can rest on a frame that a crash has taken; [`cut_ends`] finds those at the next
//! start.

use std::collections::HashMap;

use tidemill_wal::format::{Entry, Sequence, ShardId};
use tidemill_wal::mutation::{self, Mutation};
use tidemill_wal::recovery::ReplayFrame;

use super::{Outgoing, Shard};
use crate::effect::{Change, Effect, MeshMessage, Now};
use crate::state::{Kind, State};

/// What is on its way too early to count.
#[derive(Debug, Default)]
pub(super) struct Early {
    /// Entries in the filling frame: receivers and sequences.
    leaving: Vec<(ShardId, u64)>,
    /// Frames of others that were not durable when entries of theirs came.
    rests: Vec<Rest>,
    /// The frame that is written and does not count yet.
    written: Option<Sequence>,
}

/// Frames of ours that hold entries of another shard's frame.
#[derive(Debug, Clone, Copy)]
struct Rest {
    /// The first of them.
    own: Sequence,
    from: ShardId,
    frame: Sequence,
}

impl Early {
    /// Whether entries of a shard came whose frame is not durable there.
    pub(super) fn rests_on(&self, from: ShardId) -> bool {
        self.rests.iter().any(|rest| rest.from == from)
    }
}

impl Shard {
    /// An entry leaves with the frame that it is in.
    pub(super) fn leave(&mut self, to: ShardId, sequence: u64, effects: &mut Vec<Effect>) {
        match self.newest_frame() {
            Some(_) if !self.wal.is_filling_empty() => self.early.leaving.push((to, sequence)),
            Some(frame) => self.send_with(frame, &[(to, sequence)], effects),
            None => _ = self.send_entry(to, sequence, Sequence(0), effects),
        }
    }

    /// The frame was handed over to be written.
    pub(super) fn send_early(&mut self, frame: Sequence, effects: &mut Vec<Effect>) {
        let mut leaving = std::mem::take(&mut self.early.leaving);
        self.send_with(frame, &leaving, effects);
        leaving.clear();
        self.early.leaving = leaving;
    }

    fn send_with(
        &mut self,
        frame: Sequence,
        leaving: &[(ShardId, u64)],
        effects: &mut Vec<Effect>,
    ) {
        let mut told: Vec<ShardId> = Vec::new();
        for &(to, sequence) in leaving {
            if self.outbox.is_answering(to) {
                // It must not pass the older ones.
                self.barrier.push_back((frame, Outgoing::Entry(to, sequence)));
                continue;
            }
            if self.send_entry(to, sequence, frame, effects) && !told.contains(&to) {
                told.push(to);
                let message = MeshMessage::FrameDurable { through: frame };
                self.barrier.push_back((frame, Outgoing::Mesh(to, message)));
            }
        }
    }

    /// False if the receiver gets it with the answer to its hello.
    pub(super) fn send_entry(
        &mut self,
        to: ShardId,
        sequence: u64,
        frame: Sequence,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(message) = self.outbox.message(to, sequence, frame) else { return false };
        effects.push(Effect::Mesh { to, message });
        if mutation::is_on(Mutation::TrimOutboxOnSend) {
            let mut changes = Vec::new();
            let _ = self.outbox.on_confirmed(to, sequence, false, &mut changes);
            changes.into_iter().for_each(|change| self.record(change));
        }
        true
    }

    /// What comes from a frame of another shard is not durable before that is. Frame 0: it is.
    pub(super) fn rest_on(&mut self, from: ShardId, frame: Sequence) {
        if frame > Sequence(0) {
            self.early.rests.push(Rest { own: self.wal.filling(), from, frame });
        }
    }

    /// Entries that are taken now, up to this one, may be gone after a crash: the frame says so before
    /// it holds anything of theirs. What does not fit it is in a frame that follows, which is written
    /// when this one counts.
    pub(super) fn mark_early(&mut self, from: ShardId, through: u64) {
        if self.early.rests_on(from) && !mutation::is_on(Mutation::ForgetEarly) {
            let key = Kind::OutboxEarly.key(&[&from.0.to_be_bytes()]);
            self.record(Change { key, value: Some(through.to_le_bytes().to_vec()) });
        }
    }

    /// Another shard's frames up to this one are durable.
    pub(super) fn on_frame_durable(
        &mut self,
        now: Now,
        from: ShardId,
        through: Sequence,
        effects: &mut Vec<Effect>,
    ) {
        self.early.rests.retain(|rest| rest.from != from || rest.frame > through);
        self.count_written(now, effects);
    }

    /// The write of a frame came back.
    pub(super) fn on_written(&mut self, now: Now, frame: Sequence, effects: &mut Vec<Effect>) {
        self.early.written = Some(frame);
        self.count_written(now, effects);
    }

    /// The frame that was written counts when all that it rests on does.
    fn count_written(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(written) = self.early.written else { return };
        let waits = self.early.rests.iter().any(|rest| rest.own <= written);
        if waits && !mutation::is_on(Mutation::CountAlone) {
            return;
        }
        self.early.written = None;
        self.on_durable(now, written, effects);
    }
}

/// What the end of a shard's log says about entries of outboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// For other shards, the newest entry that was made for them.
    pub made: HashMap<ShardId, u64>,
    /// The same without the newest frame.
    pub made_before: HashMap<ShardId, u64>,
    /// Entries of other shards, up to these, that the newest frame may hold, and that may be gone.
    pub rests: Vec<(ShardId, u64)>,
}

impl LogEnd {
    /// Entries that were made up to a state.
    pub(crate) fn add_state(&mut self, state: &State) -> Result<(), String> {
        for (key, value) in state.range(&Kind::OutboxNext.key(&[])) {
            self.add_made(decode(key, value)?);
        }
        Ok(())
    }

    /// Entries that were made in a frame after that, which stays in any case.
    pub(crate) fn add_frame(&mut self, frame: &ReplayFrame) -> Result<(), String> {
        numbers(frame, Kind::OutboxNext, |next| self.add_made(next))
    }

    /// The newest frame, which nobody may have been told of.
    pub(crate) fn set_newest(&mut self, frame: &ReplayFrame) -> Result<(), String> {
        let (made, rests) = (&mut self.made, &mut self.rests);
        numbers(frame, Kind::OutboxNext, |(to, next)| _ = made.insert(to, next - 1))?;
        numbers(frame, Kind::OutboxEarly, |rest| rests.push(rest))
    }

    fn add_made(&mut self, (to, next): (ShardId, u64)) {
        self.made.insert(to, next - 1);
        self.made_before.insert(to, next - 1);
    }
}

/// Values of a kind in a frame, with the shards that their keys name.
fn numbers(
    frame: &ReplayFrame,
    kind: Kind,
    mut found: impl FnMut((ShardId, u64)),
) -> Result<(), String> {
    for item in frame.entries() {
        let (_, entry) = item.map_err(|fault| fault.to_string())?;
        if let Entry::Put { key, value } = entry
            && Kind::of(key) == Some(kind)
        {
            found(decode(key, value)?);
        }
    }
    Ok(())
}

fn decode(key: &[u8], value: &[u8]) -> Result<(ShardId, u64), String> {
    let shard = key.get(1..).and_then(|shard| shard.try_into().ok()).map(u16::from_be_bytes);
    let number = value.try_into().ok().map(u64::from_le_bytes).filter(|number| *number > 0);
    match (shard, number) {
        (Some(shard), Some(number)) => Ok((ShardId(shard), number)),
        _ => Err("an outbox sequence cannot be read".to_owned()),
    }
}

/// Which shards begin without their newest frame, for it holds entries that their senders do not
/// have; the n-th is that of shard n. Nobody was told of such a frame. One that is cut may have made
/// entries itself.
pub fn cut_ends(ends: &[LogEnd]) -> Vec<bool> {
    let mut is_cut = vec![false; ends.len()];
    if mutation::is_on(Mutation::KeepEnds) {
        return is_cut;
    }
    let is_lost = |is_cut: &[bool], to: usize, (from, sequence): (ShardId, u64)| {
        let from = usize::from(from.0);
        let Some(end) = ends.get(from) else { return false };
        let made = if is_cut[from] { &end.made_before } else { &end.made };
        made.get(&ShardId(to as u16)).copied().unwrap_or(0) < sequence
    };
    loop {
        let next = (0..ends.len()).find(|&shard| {
            let mut rests = ends[shard].rests.iter();
            !is_cut[shard] && rests.any(|rest| is_lost(&is_cut, shard, *rest))
        });
        match next {
            Some(shard) => is_cut[shard] = true,
            None => return is_cut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ShardId = ShardId(0);
    const B: ShardId = ShardId(1);
    const C: ShardId = ShardId(2);

    fn end(before: &[(ShardId, u64)], made: &[(ShardId, u64)], rests: &[(ShardId, u64)]) -> LogEnd {
        LogEnd {
            made: made.iter().copied().collect(),
            made_before: before.iter().copied().collect(),
            rests: rests.to_vec(),
        }
    }

    #[test]
    fn a_frame_stays_if_its_entries_are_there_and_goes_if_not() {
        let sender = |made| end(&[(B, 6)], &[(B, made)], &[]);
        let receiver = end(&[], &[], &[(A, 7)]);
        assert_eq!(cut_ends(&[sender(7), receiver.clone()]), [false, false]);
        assert_eq!(cut_ends(&[sender(6), receiver.clone()]), [false, true]);
        assert_eq!(cut_ends(&[LogEnd::default(), receiver]), [false, true]);
    }

    #[test]
    fn what_a_frame_that_goes_has_made_goes_with_it() {
        // The frame of C is lost, that of A rests on it, and that of B on the one of A.
        let c = end(&[(A, 2)], &[(A, 2)], &[]);
        let a = end(&[(B, 6)], &[(B, 7)], &[(C, 3)]);
        let b = end(&[(C, 9)], &[(C, 10)], &[(A, 7)]);
        assert_eq!(cut_ends(&[a.clone(), b, c.clone()]), [true, true, false]);
        // One that rests on an older frame of A stays.
        let b = end(&[(C, 9)], &[(C, 10)], &[(A, 6)]);
        assert_eq!(cut_ends(&[a, b, c]), [true, false, false]);
    }

    #[test]
    fn frames_that_rest_on_each_others_older_ones_stay() {
        let a = end(&[(B, 4)], &[(B, 5)], &[(B, 8)]);
        let b = end(&[(A, 8)], &[(A, 9)], &[(A, 5)]);
        assert_eq!(cut_ends(&[a, b]), [false, false]);
    }
}
