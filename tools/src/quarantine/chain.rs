//! The longest unbroken chain of frames in a damaged WAL, and what is known of frames behind it.
//!
//! Where recovery refuses, this goes on: a frame counts if it is intact and names the one before
//! it by its checksum, even if the header of its segment is gone.

use std::collections::BTreeMap;

use tidemill_wal::disk::{Directory, Storage};
use tidemill_wal::format::{
    Entry, FRAME_HEADER_SIZE, FileName, FrameHeader, PartitionId, SegmentHeader, SegmentId,
    Sequence, ShardEpoch, ShardId, entries,
};
use tidemill_wal::limits::{BLOCK_SIZE, SCAN_READ_SIZE};
use tidemill_wal::recovery::ReplayFrame;

use crate::place::FileKind;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// What is left of a WAL.
#[derive(Debug, Default)]
pub struct Chain {
    /// Frames in order, without a gap, from where replay begins.
    pub frames: Vec<ReplayFrame>,
    /// Highest sequence that any header names.
    pub newest: Sequence,
    /// Highest epoch.
    pub epoch: ShardEpoch,
    /// Highest sequence known durable.
    pub durable: Sequence,
    /// Highest number of a segment; 0 if there is none.
    pub segment: u64,
    /// Segments that hold something behind the chain, or cannot be read.
    pub cut: Vec<FileName>,
    /// One past the last offset of each partition in frames behind the chain.
    pub ends: BTreeMap<PartitionId, u64>,
    /// Intact frames behind the chain.
    pub frames_cut: u64,
    /// Changes of the state in them.
    pub changes_cut: u64,
    /// Largest producer id in them.
    pub producer_id_max: Option<i64>,
    /// Size of the segments' files; `None` if no header can be read.
    pub segment_size: Option<u64>,
}

/// A header that belongs where it is.
struct Candidate {
    file: FileName,
    segment: SegmentId,
    offset: u64,
    header: FrameHeader,
}

/// Reads the WAL from `replay_from` on; `None`: from the earliest frame that leads to the end.
pub fn read(
    directory: &Directory,
    shard: ShardId,
    files: &[(FileName, u64)],
    first_segment: SegmentId,
    replay_from: Option<Sequence>,
) -> Chain {
    let mut chain = Chain::default();
    let mut candidates = Vec::new();
    for (file, size) in files {
        let FileKind::Segment(id) = FileKind::of(file) else { continue };
        chain.segment = chain.segment.max(id.0);
        if id >= first_segment {
            let nonce = head(directory, file, id, &mut chain);
            find(directory, shard, file, id, nonce, *size, &mut candidates);
        }
    }
    for candidate in &candidates {
        chain.newest = chain.newest.max(candidate.header.sequence());
        chain.epoch = chain.epoch.max(candidate.header.shard_epoch());
        chain.durable = chain.durable.max(candidate.header.durable());
    }
    let mut by_sequence: BTreeMap<Sequence, Vec<Candidate>> = BTreeMap::new();
    for candidate in candidates {
        by_sequence.entry(candidate.header.sequence()).or_default().push(candidate);
    }
    follow(directory, &by_sequence, replay_from, &mut chain);
    look_behind(directory, &by_sequence, &mut chain);
    chain.cut.sort();
    chain.cut.dedup();
    chain
}

/// The nonce in a segment's header, if it can be read.
fn head(directory: &Directory, file: &FileName, id: SegmentId, chain: &mut Chain) -> Option<u64> {
    let block = directory.read(file, 0, BLOCK_SIZE).unwrap_or_default();
    match SegmentHeader::decode(&block) {
        Ok(header) if header.segment() == id => {
            chain.segment_size = Some(header.size());
            Some(header.nonce())
        }
        Ok(_) | Err(_) => {
            chain.cut.push(file.clone());
            None
        }
    }
}

/// Every header of this place. Without the segment's own nonce that of its first frame counts.
fn find(
    directory: &Directory,
    shard: ShardId,
    file: &FileName,
    id: SegmentId,
    mut nonce: Option<u64>,
    size: u64,
    found: &mut Vec<Candidate>,
) {
    let mut offset = BLOCK;
    while offset < size {
        let piece = directory.read(file, offset, SCAN_READ_SIZE).unwrap_or_default();
        for (number, block) in piece.chunks_exact(BLOCK_SIZE).enumerate() {
            let at = offset + (number * BLOCK_SIZE) as u64;
            let Ok(header) = FrameHeader::decode(block) else { continue };
            let is_here =
                header.shard() == shard && header.segment() == id && header.offset() == at;
            if is_here && *nonce.get_or_insert(header.nonce()) == header.nonce() {
                found.push(Candidate { file: file.clone(), segment: id, offset: at, header });
            }
        }
        // A piece that cannot be read is skipped like any other damage.
        offset += SCAN_READ_SIZE as u64;
    }
}

/// The whole frame, if it is intact.
fn load(directory: &Directory, candidate: &Candidate) -> Option<ReplayFrame> {
    let size = candidate.header.frame_size();
    let bytes = directory.read(&candidate.file, candidate.offset, size).ok()?;
    (bytes.len() == size && candidate.header.check_frame(&bytes).is_ok()).then(|| ReplayFrame {
        header: candidate.header,
        segment: candidate.segment,
        offset: candidate.offset,
        bytes,
    })
}

fn follow(
    directory: &Directory,
    by_sequence: &BTreeMap<Sequence, Vec<Candidate>>,
    replay_from: Option<Sequence>,
    chain: &mut Chain,
) {
    let mut due = match replay_from {
        Some(sequence) => sequence,
        None => match by_sequence.keys().next() {
            Some(first) => *first,
            None => return,
        },
    };
    while let Some(candidates) = by_sequence.get(&due) {
        let last = chain.frames.last().map(|frame: &ReplayFrame| frame.header.checksum());
        let next = candidates
            .iter()
            .filter(|next| last.is_none_or(|last| next.header.previous() == last))
            .filter_map(|next| load(directory, next))
            .max_by_key(|next| next.header.shard_epoch());
        match next {
            Some(frame) => chain.frames.push(frame),
            // The oldest frames of the WAL have settled: what is broken there is not needed.
            None if replay_from.is_none() => {
                chain.frames.clear();
                let later = by_sequence.range(due.next()..).next();
                match later {
                    Some((later, _)) => {
                        due = *later;
                        continue;
                    }
                    None => return,
                }
            }
            None => return,
        }
        due = due.next();
    }
}

fn look_behind(
    directory: &Directory,
    by_sequence: &BTreeMap<Sequence, Vec<Candidate>>,
    chain: &mut Chain,
) {
    let Some(end) = chain.frames.last().map(|frame| frame.header.sequence()) else {
        // Nothing could be replayed: all that is here is behind.
        return look_at(directory, by_sequence.values().flatten(), chain);
    };
    let later = by_sequence.range(end.next()..);
    look_at(directory, later.flat_map(|(_, candidates)| candidates), chain);
}

fn look_at<'a>(
    directory: &Directory,
    candidates: impl Iterator<Item = &'a Candidate>,
    chain: &mut Chain,
) {
    for candidate in candidates {
        chain.cut.push(candidate.file.clone());
        let Some(frame) = load(directory, candidate) else { continue };
        chain.frames_cut += 1;
        let body = &frame.bytes[FRAME_HEADER_SIZE..][..frame.header.body_size()];
        for (_, entry) in entries(body).flatten() {
            match entry {
                Entry::Batch(batch, bytes) => {
                    let end = chain.ends.entry(batch.partition).or_default();
                    *end = (*end).max(batch.last_offset + 1);
                    let bytes = bytes::Bytes::copy_from_slice(bytes);
                    let producer = tidemill::batch::RecordBatch::stored(bytes);
                    let producer = producer.ok().map(|batch| batch.producer_id());
                    chain.producer_id_max = chain.producer_id_max.max(producer);
                }
                Entry::Put { .. } | Entry::Delete { .. } => chain.changes_cut += 1,
            }
        }
    }
}
