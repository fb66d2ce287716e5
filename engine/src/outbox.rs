//! The outbox: entries on their way to other shards, delivered exactly once and in order.
//!
//! An entry is part of its sender's keyed state from the frame that made it until the receiver has
//! it durable. Sequences are gapless for each ordered pair of shards and never restart. The
//! receiver's highest taken sequence is the duplicate filter; sent back, it trims the outbox.
//! Nobody sends before the receiver has announced its filter (`hello`) in this run of the process.

use std::collections::VecDeque;

use bytes::Bytes;
use tidemill_wal::format::{Sequence, ShardId};
use tidemill_wal::mutation::{self, Mutation};

use crate::effect::{Change, MeshMessage};
use crate::state::Kind;

/// Entries that may wait for one receiver; past it the maker of new ones is refused.
pub const ENTRIES_MAX: usize = 1024;

/// Entries of topologies that are durable are confirmed after so long, for a confirmation wakes its
/// receiver, who only forgets them.
const CONFIRM_WAIT_MS: u64 = 2;

/// So many are confirmed without waiting for more: a small part of what may be on its way.
const CONFIRMED_TOGETHER: u64 = 32;

#[derive(Debug)]
struct Peer {
    /// Sequence of the next entry to this peer.
    next: u64,
    /// Entries the peer has not confirmed, oldest first; the last has sequence `next - 1`.
    entries: VecDeque<Bytes>,
    /// Bytes of these.
    size: usize,
    /// The peer has announced its filter.
    is_open: bool,
    /// Entries up to this one went, or will go, with the answer to the peer's hello.
    answered: u64,
    /// That answer has not gone.
    is_answering: bool,
    /// Highest sequence taken in from this peer.
    taken: u64,
    /// Highest one of these that is durable, and highest one that the peer was told.
    durable: u64,
    confirmed: u64,
    /// When the difference is to be told at the latest.
    confirm_at_ms: Option<u64>,
}

/// Both directions of the traffic with every other shard.
#[derive(Debug)]
pub struct Outbox {
    own: ShardId,
    peers: Vec<Peer>,
}

/// A peer's claim that cannot be true: one of the two shards lost durable state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "shard {peer} says it took outbox entries of shard {own} up to {claimed}, but the last one \
     made is {last}: one of the two shards lost durable data"
)]
pub struct FilterBeyondEnd {
    /// Who claims.
    pub peer: u16,
    /// Whose entries.
    pub own: u16,
    /// The claim.
    pub claimed: u64,
    /// What was made.
    pub last: u64,
}

impl Outbox {
    /// No traffic yet.
    pub fn new(own: ShardId, shard_count: u16) -> Self {
        let peer = || Peer {
            next: 1,
            entries: VecDeque::new(),
            size: 0,
            is_open: false,
            answered: 0,
            is_answering: false,
            taken: 0,
            durable: 0,
            confirmed: 0,
            confirm_at_ms: None,
        };
        Self { own, peers: (0..shard_count).map(|_| peer()).collect() }
    }

    /// Takes one stored entry of state, in key order.
    pub fn load(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let shard = key.get(1..3).and_then(|id| id.try_into().ok()).map(u16::from_be_bytes);
        let shard = shard.ok_or("an outbox key has no shard")?;
        let peer = self
            .peers
            .get_mut(usize::from(shard))
            .ok_or_else(|| format!("an outbox entry names shard {shard}, which does not exist"))?;
        let number = || value.try_into().map(u64::from_le_bytes);
        match Kind::of(key) {
            Some(Kind::OutboxNext) if mutation::is_on(Mutation::RestartOutbox) => {}
            Some(Kind::OutboxTaken) if mutation::is_on(Mutation::ForgetOutboxFilter) => {}
            Some(Kind::OutboxNext) => {
                peer.next = number().map_err(|_| "an outbox sequence is not 8 bytes")?;
            }
            Some(Kind::OutboxTaken) => {
                peer.taken = number().map_err(|_| "an outbox filter is not 8 bytes")?;
                (peer.durable, peer.confirmed) = (peer.taken, peer.taken);
            }
            Some(Kind::Outbox) => {
                peer.size += value.len();
                peer.entries.push_back(Bytes::copy_from_slice(value));
            }
            _ => return Err("not an entry of the outbox".to_owned()),
        }
        Ok(())
    }

    /// Whether every other shard's outbox takes one more entry.
    pub fn has_room(&self) -> bool {
        self.peers.iter().all(|peer| peer.entries.len() < ENTRIES_MAX)
    }

    /// Entries that wait for one receiver, the most.
    pub fn depth(&self) -> usize {
        self.peers.iter().map(|peer| peer.entries.len()).max().unwrap_or(0)
    }

    /// Bytes of the entries that wait for one receiver, the most.
    pub fn size(&self) -> usize {
        self.peers.iter().map(|peer| peer.size).max().unwrap_or(0)
    }

    /// The other shards.
    pub fn others(&self) -> impl Iterator<Item = ShardId> + use<> {
        let own = self.own;
        (0..self.peers.len() as u16).map(ShardId).filter(move |shard| *shard != own)
    }

    /// Makes an entry: its sequence, and what to record.
    pub fn push(&mut self, to: ShardId, entry: Bytes, changes: &mut Vec<Change>) -> u64 {
        assert!(to != self.own, "a shard sends nothing to itself");
        let peer = &mut self.peers[usize::from(to.0)];
        let sequence = peer.next;
        peer.next += 1;
        changes.push(Change { key: entry_key(to, sequence), value: Some(entry.to_vec()) });
        changes.push(Change {
            key: Kind::OutboxNext.key(&[&to.0.to_be_bytes()]),
            value: Some(peer.next.to_le_bytes().to_vec()),
        });
        peer.size += entry.len();
        peer.entries.push_back(entry);
        sequence
    }

    /// The message that carries one entry, unless the receiver has not announced itself: then its
    /// hello will fetch everything. To be sent when the entry's frame is handed over to be written; 0:
    /// it is durable.
    pub fn message(&self, to: ShardId, sequence: u64, frame: Sequence) -> Option<MeshMessage> {
        let peer = &self.peers[usize::from(to.0)];
        let first = peer.next - peer.entries.len() as u64;
        let entry = peer.entries.get(usize::try_from(sequence.checked_sub(first)?).ok()?)?;
        let is_due = (peer.is_open && sequence > peer.answered)
            || mutation::is_on(Mutation::SendBeforeHello);
        let entries = || vec![entry.clone()];
        is_due.then(|| MeshMessage::Outbox { first: sequence, entries: entries(), frame })
    }

    /// The receiver has everything up to `through` durable: those entries go. Answers a hello with
    /// all that is left.
    pub fn on_confirmed(
        &mut self,
        from: ShardId,
        through: u64,
        hello: bool,
        changes: &mut Vec<Change>,
    ) -> Result<Option<MeshMessage>, FilterBeyondEnd> {
        let own = self.own.0;
        let peer = &mut self.peers[usize::from(from.0)];
        if through >= peer.next {
            let last = peer.next - 1;
            return Err(FilterBeyondEnd { peer: from.0, own, claimed: through, last });
        }
        if hello {
            peer.is_open = true;
            peer.answered = peer.next - 1;
        }
        let mut first = peer.next - peer.entries.len() as u64;
        while first <= through {
            peer.size -= peer.entries.pop_front().map_or(0, |entry| entry.len());
            changes.push(Change { key: entry_key(from, first), value: None });
            first += 1;
        }
        let resend = hello && !peer.entries.is_empty();
        peer.is_answering |= resend;
        Ok(resend.then(|| MeshMessage::Outbox {
            first,
            entries: peer.entries.iter().cloned().collect(),
            frame: Sequence(0),
        }))
    }

    /// Whether the answer to the receiver's hello waits for its frame: no entry may pass it.
    pub fn is_answering(&self, to: ShardId) -> bool {
        self.peers[usize::from(to.0)].is_answering
    }

    /// That answer went.
    pub fn on_answered(&mut self, to: ShardId) {
        self.peers[usize::from(to.0)].is_answering = false;
    }

    /// Takes entries in: the new ones among them, and what to record. A gap is our own mistake.
    pub fn take(
        &mut self,
        from: ShardId,
        first: u64,
        entries: Vec<Bytes>,
        changes: &mut Vec<Change>,
    ) -> Vec<(u64, Bytes)> {
        let peer = &mut self.peers[usize::from(from.0)];
        assert!(first <= peer.taken + 1, "outbox entries of shard {} arrive with a gap", from.0);
        let known = usize::try_from(peer.taken + 1 - first).unwrap_or(usize::MAX);
        let new: Vec<(u64, Bytes)> = (first..).zip(entries).skip(known).collect();
        if !new.is_empty() {
            peer.taken += new.len() as u64;
            changes.push(Change {
                key: Kind::OutboxTaken.key(&[&from.0.to_be_bytes()]),
                value: Some(peer.taken.to_le_bytes().to_vec()),
            });
        }
        new
    }

    /// What to tell a peer about its entries at the start, once everything recorded so far is durable.
    pub fn hello(&self, to: ShardId) -> MeshMessage {
        MeshMessage::OutboxDurable { through: self.taken(to), hello: true }
    }

    /// Highest sequence taken in from a peer.
    pub fn taken(&self, from: ShardId) -> u64 {
        self.peers[usize::from(from.0)].taken
    }

    /// What was taken in up to `through` is durable: the peer is to be told, soon or at once.
    pub fn on_durable(&mut self, from: ShardId, through: u64, at_once: bool) {
        let peer = &mut self.peers[usize::from(from.0)];
        peer.durable = peer.durable.max(through);
        if at_once {
            peer.confirm_at_ms = Some(0);
        }
    }

    /// What peers are to be told now about their entries: everything if the shard stops, for then
    /// nothing is to be left. Otherwise some of it can wait for more.
    pub fn confirmations(&mut self, now_ms: u64, is_stopping: bool) -> Vec<(ShardId, MeshMessage)> {
        let mut messages = Vec::new();
        for (peer, shard) in self.peers.iter_mut().zip(0..) {
            let count = peer.durable - peer.confirmed;
            if count == 0 {
                peer.confirm_at_ms = None;
                continue;
            }
            let at_ms = *peer.confirm_at_ms.get_or_insert(now_ms + CONFIRM_WAIT_MS);
            if is_stopping || at_ms <= now_ms || count >= CONFIRMED_TOGETHER {
                (peer.confirmed, peer.confirm_at_ms) = (peer.durable, None);
                let through = peer.durable;
                let message = MeshMessage::OutboxDurable { through, hello: false };
                messages.push((ShardId(shard), message));
            }
        }
        messages
    }

    /// When [`Self::confirmations`] has something, on the monotonic clock.
    pub fn confirm_at_ms(&self) -> Option<u64> {
        self.peers.iter().filter_map(|peer| peer.confirm_at_ms).min()
    }
}

/// Big-endian, so that keys are in sequence order.
fn entry_key(to: ShardId, sequence: u64) -> Vec<u8> {
    Kind::Outbox.key(&[&to.0.to_be_bytes(), &sequence.to_be_bytes()])
}

/// Packs changes of keyed state into one entry: count, then for each the key's size, the value's
/// size plus one (zero: a tombstone), key, value; sizes little-endian.
pub fn encode_changes(changes: &[Change]) -> Bytes {
    let mut bytes = (changes.len() as u32).to_le_bytes().to_vec();
    for change in changes {
        bytes.extend_from_slice(&(change.key.len() as u32).to_le_bytes());
        let value_size = change.value.as_ref().map_or(0, |value| value.len() as u32 + 1);
        bytes.extend_from_slice(&value_size.to_le_bytes());
        bytes.extend_from_slice(&change.key);
        bytes.extend_from_slice(change.value.as_deref().unwrap_or_default());
    }
    bytes.into()
}

/// The opposite of [`encode_changes`].
pub fn decode_changes(bytes: &[u8]) -> Option<Vec<Change>> {
    let mut rest = bytes;
    let mut take = |count: usize| {
        let (taken, after) = rest.split_at_checked(count)?;
        rest = after;
        Some(taken)
    };
    let count = u32::from_le_bytes(take(4)?.try_into().ok()?);
    let mut changes = Vec::new();
    for _ in 0..count {
        let key_size = u32::from_le_bytes(take(4)?.try_into().ok()?) as usize;
        let value_size = u32::from_le_bytes(take(4)?.try_into().ok()?) as usize;
        let key = take(key_size)?.to_vec();
        let value = match value_size.checked_sub(1) {
            Some(size) => Some(take(size)?.to_vec()),
            None => None,
        };
        changes.push(Change { key, value });
    }
    rest.is_empty().then_some(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ShardId = ShardId(0);
    const B: ShardId = ShardId(1);

    fn open_pair() -> (Outbox, Outbox) {
        let mut a = Outbox::new(A, 2);
        let mut b = Outbox::new(B, 2);
        for (to, from) in [(&mut a, B), (&mut b, A)] {
            let opened = to.on_confirmed(from, 0, true, &mut Vec::new());
            assert!(matches!(opened, Ok(None)));
        }
        (a, b)
    }

    fn entries(message: Option<MeshMessage>) -> (u64, Vec<Bytes>) {
        match message {
            Some(MeshMessage::Outbox { first, entries, .. }) => (first, entries),
            other => panic!("no entries: {other:?}"),
        }
    }

    #[test]
    fn a_repeated_entry_is_taken_once() {
        let (mut a, mut b) = open_pair();
        let sequence = a.push(B, Bytes::from_static(b"x"), &mut Vec::new());
        let (first, sent) = entries(a.message(B, sequence, Sequence(0)));
        let taken = b.take(A, first, sent.clone(), &mut Vec::new());
        assert_eq!(taken, [(first, sent[0].clone())]);
        let mut changes = Vec::new();
        assert!(b.take(A, first, sent, &mut changes).is_empty());
        assert!(changes.is_empty());
    }

    #[test]
    fn nothing_is_sent_before_the_receiver_announced_its_filter() {
        let mut a = Outbox::new(A, 2);
        let mut changes = Vec::new();
        for entry in ["x", "y", "z"] {
            let sequence = a.push(B, Bytes::from_static(entry.as_bytes()), &mut changes);
            assert!(a.message(B, sequence, Sequence(0)).is_none());
        }
        let resent = a.on_confirmed(B, 1, true, &mut changes).expect("a possible filter");
        let (first, sent) = entries(resent);
        assert_eq!((first, sent.len()), (2, 2));
    }

    #[test]
    fn an_entry_made_before_the_hello_does_not_pass_the_older_ones() {
        let mut a = Outbox::new(A, 2);
        let mut changes = Vec::new();
        a.push(B, Bytes::from_static(b"old"), &mut changes);
        let new = a.push(B, Bytes::from_static(b"new"), &mut changes);
        let resent = a.on_confirmed(B, 0, true, &mut changes).expect("a possible filter");
        // Its frame becomes durable only now; the answer to the hello holds it already.
        assert!(a.message(B, new, Sequence(0)).is_none());
        assert_eq!(entries(resent).1.len(), 2);
        let next = a.push(B, Bytes::from_static(b"next"), &mut changes);
        assert_eq!(entries(a.message(B, next, Sequence(0))).0, next);
    }

    #[test]
    fn sequences_go_on_after_a_restart_even_when_everything_was_confirmed() {
        let (mut a, _) = open_pair();
        let mut changes = Vec::new();
        a.push(B, Bytes::from_static(b"x"), &mut changes);
        a.on_confirmed(B, 1, false, &mut changes).expect("a possible filter");
        let mut state = crate::state::State::default();
        for change in changes {
            state.apply(change);
        }
        let mut restarted = Outbox::new(A, 2);
        for (key, value) in state.range(&[]) {
            restarted.load(key, value).expect("just stored");
        }
        assert_eq!(restarted.push(B, Bytes::from_static(b"y"), &mut Vec::new()), 2);
    }

    #[test]
    fn a_filter_beyond_the_end_is_corruption() {
        let (mut a, _) = open_pair();
        a.push(B, Bytes::from_static(b"x"), &mut Vec::new());
        let refused = a.on_confirmed(B, 2, true, &mut Vec::new());
        let claim = FilterBeyondEnd { peer: 1, own: 0, claimed: 2, last: 1 };
        assert_eq!(refused.map(|_| ()), Err(claim));
    }

    #[test]
    fn what_is_durable_is_confirmed_together_soon_or_when_it_is_much_or_at_once() {
        let (_, mut b) = open_pair();
        let mut confirmed = |taken: Option<(u64, bool)>, now_ms| {
            if let Some((through, at_once)) = taken {
                b.on_durable(A, through, at_once);
            }
            let through = match &b.confirmations(now_ms, false)[..] {
                [] => None,
                [(A, MeshMessage::OutboxDurable { through, hello: false })] => Some(*through),
                other => panic!("{other:?}"),
            };
            (through, b.confirm_at_ms())
        };
        assert_eq!(confirmed(None, 10), (None, None));
        assert_eq!(confirmed(Some((1, false)), 10), (None, Some(12)));
        assert_eq!(confirmed(Some((3, false)), 11), (None, Some(12)));
        assert_eq!(confirmed(None, 12), (Some(3), None));
        assert_eq!(confirmed(Some((3 + CONFIRMED_TOGETHER - 1, false)), 12), (None, Some(14)));
        assert_eq!(confirmed(Some((3 + CONFIRMED_TOGETHER, false)), 13), (Some(35), None));
        assert_eq!(confirmed(Some((36, true)), 13), (Some(36), None));
        assert_eq!(confirmed(None, 99), (None, None));
        b.on_durable(A, 37, false);
        assert_eq!(b.confirmations(99, true).len(), 1);
    }

    #[test]
    fn changes_survive_packing_and_a_cut_is_noticed() {
        let changes = vec![
            Change { key: b"k".to_vec(), value: Some(vec![]) },
            Change { key: b"gone".to_vec(), value: None },
        ];
        let packed = encode_changes(&changes);
        assert_eq!(decode_changes(&packed), Some(changes));
        for end in 0..packed.len() {
            assert_eq!(decode_changes(&packed[..end]), None);
        }
    }
}
