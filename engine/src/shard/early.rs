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
use crate::outbox::FilterBeyondEnd;
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
    pub(super) fn leave(&mut self, to: ShardId, sequence: u64) {
        assert!(!self.wal.is_filling_empty(), "an entry is in the filling frame");
        self.early.leaving.push((to, sequence));
    }

    /// The frame was handed over to be written.
    pub(super) fn send_early(&mut self, frame: Sequence, effects: &mut Vec<Effect>) {
        let mut told: Vec<ShardId> = Vec::new();
        for (to, sequence) in std::mem::take(&mut self.early.leaving) {
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
        if frame == Sequence(0) {
            return;
        }
        let own = self.wal.filling();
        let same = self.early.rests.iter_mut().find(|rest| rest.own == own && rest.from == from);
        match same {
            Some(rest) => rest.frame = rest.frame.max(frame),
            None => self.early.rests.push(Rest { own, from, frame }),
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
    /// Of other shards, the newest entry that is known to be taken.
    pub taken: HashMap<ShardId, u64>,
    /// The same without the newest frame.
    pub taken_before: HashMap<ShardId, u64>,
    /// Entries of other shards, up to these, that the newest frame may hold, and that may be gone.
    pub rests: Vec<(ShardId, u64)>,
}

impl LogEnd {
    /// Of a log that cannot be read to its end: whatever others have taken may have been made there.
    pub fn of_damaged(shard_count: u16) -> Self {
        let made: HashMap<ShardId, u64> =
            (0..shard_count).map(|it| (ShardId(it), u64::MAX)).collect();
        Self { made_before: made.clone(), made, ..Self::default() }
    }

    /// What was made and taken up to a state.
    pub fn add_state(&mut self, state: &State) -> Result<(), String> {
        for kind in [Kind::OutboxNext, Kind::OutboxTaken] {
            for (key, value) in state.range(&kind.key(&[])) {
                self.add(kind, decode(key, value)?, true);
            }
        }
        Ok(())
    }

    /// What was in a frame after that, which stays in any case.
    pub fn add_frame(&mut self, frame: &ReplayFrame) -> Result<(), String> {
        self.add_numbers(frame, true)
    }

    /// The newest frame, which nobody may have been told of.
    pub fn set_newest(&mut self, frame: &ReplayFrame) -> Result<(), String> {
        self.add_numbers(frame, false)
    }

    fn add_numbers(&mut self, frame: &ReplayFrame, stays: bool) -> Result<(), String> {
        for item in frame.entries() {
            let (_, entry) = item.map_err(|fault| fault.to_string())?;
            let Entry::Put { key, value } = entry else { continue };
            match Kind::of(key) {
                Some(kind @ (Kind::OutboxNext | Kind::OutboxTaken)) => {
                    self.add(kind, decode(key, value)?, stays);
                }
                Some(Kind::OutboxEarly) if !stays => self.rests.push(decode(key, value)?),
                _ => {}
            }
        }
        Ok(())
    }

    fn add(&mut self, kind: Kind, (shard, number): (ShardId, u64), stays: bool) {
        let (all, before, number) = match kind {
            Kind::OutboxTaken => (&mut self.taken, &mut self.taken_before, number),
            _ => (&mut self.made, &mut self.made_before, number - 1),
        };
        all.insert(shard, number);
        if stays {
            before.insert(shard, number);
        }
    }
}

fn decode(key: &[u8], value: &[u8]) -> Result<(ShardId, u64), String> {
    let shard = key.get(1..).and_then(|shard| shard.try_into().ok()).map(u16::from_be_bytes);
    let number = value.try_into().ok().map(u64::from_le_bytes).filter(|number| *number > 0);
    match (shard, number) {
        (Some(shard), Some(number)) => Ok((ShardId(shard), number)),
        _ => Err("an outbox sequence cannot be read".to_owned()),
    }
}

/// What the shards of a node agree on at a start: [`cut_ends`], if [`check_ends`] finds nothing.
pub fn agree_on_ends(ends: &[LogEnd]) -> Result<Vec<bool>, FilterBeyondEnd> {
    let cuts = cut_ends(ends);
    check_ends(ends, &cuts)?;
    Ok(cuts)
}

/// Refuses shards one of which has taken what the other has not made: their directories do not belong
/// together, or one has lost what was durable. To be asked before any log is written to.
pub fn check_ends(ends: &[LogEnd], is_cut: &[bool]) -> Result<(), FilterBeyondEnd> {
    for (shard, (end, cut)) in (0..).zip(ends.iter().zip(is_cut)) {
        let taken = if *cut { &end.taken_before } else { &end.taken };
        for (&from, &claimed) in taken {
            let Some(sender) = ends.get(usize::from(from.0)) else { continue };
            let made = if is_cut[usize::from(from.0)] { &sender.made_before } else { &sender.made };
            let last = made.get(&ShardId(shard)).copied().unwrap_or(0);
            if claimed > last {
                return Err(FilterBeyondEnd { peer: shard, own: from.0, claimed, last });
            }
        }
    }
    Ok(())
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
            ..LogEnd::default()
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

    #[test]
    fn what_was_taken_and_never_made_is_refused_before_anything_is_cut() {
        let sender = end(&[(B, 6)], &[(B, 7)], &[]);
        let mut receiver = end(&[], &[], &[(A, 8)]);
        (receiver.taken, receiver.taken_before) = ([(A, 8)].into(), [(A, 6)].into());
        let cuts = cut_ends(&[sender.clone(), receiver.clone()]);
        assert_eq!(cuts, [false, true]);
        assert_eq!(check_ends(&[sender.clone(), receiver.clone()], &cuts), Ok(()));
        // An older copy of the sender, whose newest entry is one that was durable before.
        let fault = FilterBeyondEnd { peer: 1, own: 0, claimed: 6, last: 5 };
        let old = end(&[(B, 4)], &[(B, 5)], &[]);
        let cuts = cut_ends(&[old.clone(), receiver.clone()]);
        assert_eq!(check_ends(&[old, receiver.clone()], &cuts), Err(fault));
        // The receiver keeps its newest frame, for it rests on nothing.
        receiver.rests.clear();
        let fault = FilterBeyondEnd { peer: 1, own: 0, claimed: 8, last: 7 };
        assert_eq!(check_ends(&[sender, receiver], &[false, false]), Err(fault));
    }
}
