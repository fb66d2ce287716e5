//! The ends of all shards' logs, as the next start would have them.

use tidemill::outbox::FilterBeyondEnd;
use tidemill::shard::{LogEnd, check_ends, cut_ends};
use tidemill_wal::format::ShardId;

use super::rebuild::Peer;
use crate::picture::{Keep, Picture};
use crate::place::Node;

/// All shards of a node that does not run, and which of them lose their newest frame.
pub struct Ends {
    pictures: Vec<Picture>,
    ends: Vec<LogEnd>,
    cuts: Vec<bool>,
}

impl Ends {
    /// Reads all of them.
    pub fn load(node: &Node, shard_count: u16) -> Self {
        let load = |shard: &u16| Picture::load(node, *shard, Keep::Numbers);
        let pictures: Vec<Picture> = node.shards.iter().map(load).collect();
        // One that is not there at all has lost everything.
        let mut ends = vec![LogEnd::default(); shard_count.into()];
        for picture in &pictures {
            if let Some(end) = ends.get_mut(usize::from(picture.shard)) {
                *end = end_of(picture, shard_count);
            }
        }
        let cuts = cut_ends(&ends);
        Self { pictures, ends, cuts }
    }

    /// What they do not agree on, if anything.
    pub fn fault(&self) -> Option<FilterBeyondEnd> {
        check_ends(&self.ends, &self.cuts).err()
    }

    /// Whether the newest frame of a shard goes.
    pub fn is_cut(&self, shard: u16) -> bool {
        self.cuts.get(usize::from(shard)).copied().unwrap_or(false)
    }

    /// The other shards.
    pub fn peers(self, node: &Node, shard: u16) -> Vec<Peer> {
        let Self { pictures, cuts, .. } = self;
        let others = pictures.into_iter().filter(|picture| picture.shard != shard);
        let peer = |picture: Picture| match cuts.get(usize::from(picture.shard)) {
            Some(true) => Picture::load_cut(node, picture.shard, Keep::Numbers),
            Some(false) | None => picture,
        };
        others.map(peer).map(|it| Peer { shard: it.shard, state: it.state }).collect()
    }
}

/// Of a damaged shard some numbers are not known: what others have taken of it may have been made, and
/// what it has taken itself is not held against them.
fn end_of(picture: &Picture, shard_count: u16) -> LogEnd {
    if picture.wal_end.is_none() {
        return LogEnd::of_damaged(shard_count);
    }
    let mut end = picture.log_end.clone();
    if picture.faults.is_empty() {
        return end;
    }
    for shard in (0..shard_count).map(ShardId) {
        end.made.entry(shard).or_insert(u64::MAX);
        end.made_before.entry(shard).or_insert(u64::MAX);
    }
    (end.taken, end.taken_before) = Default::default();
    end
}
