//! Group commit: the next frame fills while the one before it is written; one durable write
//! acknowledges everything in it.
//!
//! Pure: the caller performs each [`FrameWrite`] durably and comes back with
//! [`Log::on_durable`]. A failed write never comes back here; the process ends.
//!
//! Invariants:
//! - at most one frame is in flight, so a crash can tear at most one, the last;
//! - `durable < in flight < filling`, and sequences have no gaps;
//! - a frame is whole in one segment, on a block of its own, so no write touches a durable byte;
//! - segments are used in the order of their numbers, and only when they are ready;
//! - [`SEAL_RESERVE_SIZE`] bytes are left to seals, so a full log can still stop and start.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use crate::filling::Filling;
use crate::format::{
    self, BatchEntry, ENTRY_OVERHEAD_MAX, FRAME_HEADER_SIZE, FrameFields, FrameHeader, FrameKind,
    SegmentId, Sequence, ShardEpoch, ShardId, frame_size,
};
use crate::limits::{BLOCK_SIZE, FRAME_SIZE_MAX, SEAL_RESERVE_SIZE};
use crate::recovery::ScanEnd;

/// One frame to write durably, whole.
#[derive(Debug, Clone)]
pub struct FrameWrite {
    /// The frame's number.
    pub sequence: Sequence,
    /// What it holds.
    pub kind: FrameKind,
    /// The segment file.
    pub segment: SegmentId,
    /// Where in the file, in bytes; a multiple of the block size.
    pub offset: u64,
    /// Header, body and padding; a multiple of the block size.
    pub bytes: Bytes,
}

/// What a log is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    /// Whose log it is.
    pub shard: ShardId,
    /// Size of a segment file in bytes. A server uses `SEGMENT_SIZE_MIN` or more; below that
    /// frames are bounded by the segment, which is for tests.
    pub segment_size: u64,
    /// How many segments there may be, ready ones included.
    pub segment_count_max: usize,
}

/// A segment with frames in it to which no more are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedSegment {
    /// Its number.
    pub id: SegmentId,
    /// Size of its file in bytes.
    pub size: u64,
    /// Its first frame.
    pub first: Sequence,
    /// Its last frame.
    pub last: Sequence,
}

/// A segment that is no longer needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Released {
    /// Its number.
    pub id: SegmentId,
    /// Whether its file has the size of the log's segments now. If not, it is to be removed.
    pub is_recyclable: bool,
}

/// The write-ahead log of one shard.
#[derive(Debug)]
pub struct Log {
    options: LogOptions,
    epoch: ShardEpoch,
    /// Header space and entries of the next frame.
    filling: Filling,
    in_flight: Option<Sequence>,
    /// The newest frame that was submitted, whether durable or in flight.
    last: Sequence,
    last_kind: Option<FrameKind>,
    last_checksum: u32,
    durable: Sequence,
    /// Whether the seal that starts the epoch has yet to be submitted.
    needs_seal: bool,
    /// Oldest first.
    sealed: VecDeque<SealedSegment>,
    active: Option<ActiveSegment>,
    /// In the order of their numbers, which is the order of use.
    ready: VecDeque<ReadySegment>,
    /// The next number to hand out.
    next_segment: SegmentId,
}

#[derive(Debug, Clone, Copy)]
struct ActiveSegment {
    id: SegmentId,
    nonce: u64,
    size: u64,
    first: Sequence,
    /// Where the next frame goes.
    offset: u64,
}

#[derive(Debug, Clone, Copy)]
struct ReadySegment {
    id: SegmentId,
    nonce: u64,
}

/// Where a frame of some size would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    NextReady,
}

impl Log {
    /// Goes on where recovery ended. The first frame must be a seal: see [`Log::submit_seal`].
    pub fn resume(options: LogOptions, end: &ScanEnd) -> Self {
        assert!(options.segment_size.is_multiple_of(BLOCK_SIZE as u64));
        assert!(options.segment_size > SEAL_RESERVE_SIZE + BLOCK_SIZE as u64);
        let mut sealed: VecDeque<SealedSegment> = VecDeque::new();
        let mut active = None;
        if let Some((newest, older)) = end.in_use.split_last() {
            sealed.extend(older.iter().map(|found| found.sealed()));
            active = Some(ActiveSegment {
                id: newest.id,
                nonce: newest.nonce,
                size: newest.size,
                first: newest.first,
                offset: newest.end,
            });
        }
        Self {
            options,
            epoch: end.epoch,
            filling: empty_frame(),
            in_flight: None,
            last: end.last,
            last_kind: end.last_kind,
            last_checksum: end.last_checksum,
            durable: end.last,
            needs_seal: true,
            sealed,
            active,
            ready: end.spare.iter().map(|&(id, nonce)| ReadySegment { id, nonce }).collect(),
            next_segment: end.next_segment,
        }
    }

    /// Whether one more entry whose bytes, or key and value, have this size fits the filling
    /// frame, and that frame the room that is left.
    pub fn fits(&self, payload_size: usize) -> bool {
        self.fits_leaving(1, payload_size, 0)
    }

    /// Whether `count` more entries of `payload_size` bytes together fit the filling frame, and
    /// that frame the room that is left, with `reserve` bytes of it to spare.
    pub fn fits_leaving(&self, count: usize, payload_size: usize, reserve: u64) -> bool {
        let overhead = count.saturating_mul(ENTRY_OVERHEAD_MAX);
        let added = overhead.saturating_add(payload_size);
        if added > FRAME_SIZE_MAX {
            return false;
        }
        let size = (self.filling.bytes().len() + added).next_multiple_of(BLOCK_SIZE);
        let reserve = reserve.saturating_add(SEAL_RESERVE_SIZE);
        size <= self.frame_size_max() && self.place(size as u64, reserve).is_some()
    }

    /// The largest frame that this log takes.
    pub fn frame_size_max(&self) -> usize {
        let room = self.options.segment_size - BLOCK_SIZE as u64;
        usize::try_from(room).map_or(FRAME_SIZE_MAX, |room| room.min(FRAME_SIZE_MAX))
    }

    /// Adds records to the filling frame, which they must fit; returns where their bytes will be
    /// in [`FrameWrite::bytes`].
    pub fn append_batch(&mut self, entry: BatchEntry, bytes: &[u8]) -> Range<usize> {
        self.filling.reserve(ENTRY_OVERHEAD_MAX + bytes.len());
        let range = format::push_batch(self.filling.bytes_mut(), &entry, bytes);
        self.assert_filling();
        range
    }

    /// Bytes of the filling frame, by a range from [`Log::append_batch`], to stamp them in place.
    pub fn filling_bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start >= FRAME_HEADER_SIZE);
        &mut self.filling.bytes_mut()[range]
    }

    /// Adds a new value of a key to the filling frame, which it must fit.
    pub fn append_put(&mut self, key: &[u8], value: &[u8]) {
        self.filling.reserve(ENTRY_OVERHEAD_MAX + key.len() + value.len());
        format::push_put(self.filling.bytes_mut(), key, value);
        self.assert_filling();
    }

    /// Adds the end of a key to the filling frame, which it must fit.
    pub fn append_delete(&mut self, key: &[u8]) {
        self.filling.reserve(ENTRY_OVERHEAD_MAX + key.len());
        format::push_delete(self.filling.bytes_mut(), key);
        self.assert_filling();
    }

    /// Gives memory of earlier frames back that was not needed since this was called last.
    pub fn release_memory(&mut self) {
        self.filling.release();
    }

    /// The number that the filling frame will get. While it is empty, an idle frame or a seal may
    /// take that number, and the filling frame moves on.
    pub fn filling(&self) -> Sequence {
        self.last.next()
    }

    /// Size of the filling frame so far, header included and padding not.
    pub fn filling_size(&self) -> usize {
        self.filling.bytes().len()
    }

    /// Whether the filling frame has no entries.
    pub fn is_filling_empty(&self) -> bool {
        self.filling.bytes().len() == FRAME_HEADER_SIZE
    }

    /// The frame that is not durable yet: its write has not come back, or it rests on something else.
    pub fn in_flight(&self) -> Option<Sequence> {
        self.in_flight
    }

    /// The newest frame that survives a crash, and with it all before it.
    pub fn durable(&self) -> Sequence {
        self.durable
    }

    /// The shard's incarnation, as it is stamped into frames.
    pub fn epoch(&self) -> ShardEpoch {
        self.epoch
    }

    /// The filling frame as a write, and an empty one in its place. `None` while a frame is in
    /// flight, if nothing is filled, or if the frame has to wait for a ready segment.
    pub fn submit(&mut self, clock_ms: i64) -> Option<FrameWrite> {
        if self.is_filling_empty() {
            return None;
        }
        self.submit_frame(FrameKind::Steps, SEAL_RESERVE_SIZE, clock_ms)
    }

    /// The same when nothing but this frame can make room again: takes from the reserve, of which
    /// half is left to seals.
    pub fn submit_from_reserve(&mut self, clock_ms: i64) -> Option<FrameWrite> {
        if self.is_filling_empty() {
            return None;
        }
        self.submit_frame(FrameKind::Steps, SEAL_RESERVE_SIZE / 2, clock_ms)
    }

    /// Whether the newest frame is one that an idle frame should follow.
    pub fn wants_idle(&self) -> bool {
        self.last_kind == Some(FrameKind::Steps)
    }

    /// A frame that says what is durable, so that damage to the frames before it cannot look like
    /// a torn tail. `None` if the last frame says so already, if something is filled or in flight,
    /// or if there is no room.
    pub fn submit_idle(&mut self, clock_ms: i64) -> Option<FrameWrite> {
        match self.last_kind {
            None | Some(FrameKind::Idle | FrameKind::Seal) => return None,
            Some(FrameKind::Steps) => {}
        }
        if self.needs_seal || !self.is_filling_empty() {
            return None;
        }
        self.submit_frame(FrameKind::Idle, SEAL_RESERVE_SIZE, clock_ms)
    }

    /// The first frame of a start, over whatever a crash left in its place, and the last frame of
    /// a clean stop. Takes from the reserve. `None` if something is filled or in flight, or if
    /// there is not even one ready block: then prepare a segment and try again.
    pub fn submit_seal(&mut self, clock_ms: i64) -> Option<FrameWrite> {
        if !self.is_filling_empty() {
            return None;
        }
        self.submit_frame(FrameKind::Seal, 0, clock_ms)
    }

    /// The write of this frame came back, and what it rests on is durable: it and everything before it
    /// survives a crash.
    pub fn on_durable(&mut self, sequence: Sequence) {
        assert_eq!(self.in_flight.take(), Some(sequence), "one frame at a time is in flight");
        self.durable = sequence;
    }

    /// A number for a segment that is about to be prepared. Segments become ready in the order of
    /// their numbers; one whose preparation failed is never added.
    pub fn next_segment(&mut self) -> SegmentId {
        let id = self.next_segment;
        self.next_segment = SegmentId(id.0 + 1);
        id
    }

    /// A segment of the log's size is durable on disk, header included.
    pub fn add_ready(&mut self, id: SegmentId, nonce: u64) {
        assert!(id < self.next_segment, "numbers come from next_segment");
        let newest = self.ready.back().map(|ready| ready.id);
        let newest = newest.or(self.active.map(|active| active.id));
        assert!(newest.is_none_or(|newest| newest < id), "segments become ready in order");
        self.ready.push_back(ReadySegment { id, nonce });
    }

    /// How many segments are ready for use.
    pub fn ready_count(&self) -> usize {
        self.ready.len()
    }

    /// How many segments there are: ready, active, and sealed ones that were not released.
    pub fn segment_count(&self) -> usize {
        self.ready.len() + usize::from(self.active.is_some()) + self.sealed.len()
    }

    /// How many segments there may be.
    pub fn segment_count_max(&self) -> usize {
        self.options.segment_count_max
    }

    /// Bytes of frames that still fit, if they pack well: the rest of the active segment and the
    /// ready ones, without the reserve.
    pub fn room(&self) -> u64 {
        self.room_total().saturating_sub(SEAL_RESERVE_SIZE)
    }

    /// Bytes of frames that the log may hold at most.
    pub fn capacity(&self) -> u64 {
        self.options.segment_count_max as u64 * self.segment_room()
    }

    /// Bytes in the active segment and the sealed ones that were not released.
    pub fn used(&self) -> u64 {
        let sealed = self.sealed.iter().map(|sealed| sealed.size - BLOCK_SIZE as u64).sum::<u64>();
        sealed + self.active.map_or(0, |active| active.offset - BLOCK_SIZE as u64)
    }

    /// Segments with frames to which no more are added, oldest first.
    pub fn sealed(&self) -> impl Iterator<Item = &SealedSegment> {
        self.sealed.iter()
    }

    /// First frame of the segment that is written to.
    pub fn first_sequence_of_active(&self) -> Option<Sequence> {
        self.active.map(|active| active.first)
    }

    /// The oldest segment with frames.
    pub fn oldest_segment(&self) -> Option<SegmentId> {
        let sealed = self.sealed.front().map(|sealed| sealed.id);
        sealed.or(self.active.map(|active| active.id))
    }

    /// Where the log may start once nothing up to `through` is needed: what the manifest is to
    /// name. That segment holds a durable frame, so that recovery can insist on finding one.
    pub fn first_segment_after(&self, through: Sequence) -> Option<SegmentId> {
        assert!(through <= self.durable, "only what is durable settles");
        let active = self.active?;
        let needed = self.sealed.iter().find(|sealed| sealed.last > through);
        match needed {
            Some(needed) => Some(needed.id),
            None if active.first <= self.durable => Some(active.id),
            // The first frame of the active segment is in flight: keep the segment before it.
            None => Some(self.sealed.back().map_or(active.id, |newest| newest.id)),
        }
    }

    /// A durable manifest says that the log starts at `first`: the segments before it are free.
    pub fn release_before(&mut self, first: SegmentId) -> Vec<Released> {
        let active = self.active.expect("the manifest names a segment with a frame");
        assert!(first <= active.id, "the manifest names a segment with a frame");
        let mut released = Vec::new();
        while let Some(sealed) = self.sealed.pop_front_if(|sealed| sealed.id < first) {
            let is_recyclable = sealed.size == self.options.segment_size;
            released.push(Released { id: sealed.id, is_recyclable });
        }
        released
    }

    fn submit_frame(&mut self, kind: FrameKind, reserve: u64, clock_ms: i64) -> Option<FrameWrite> {
        if self.in_flight.is_some() {
            return None;
        }
        assert!(!self.needs_seal || kind == FrameKind::Seal, "an epoch starts with a seal");
        let size = self.filling.bytes().len().next_multiple_of(BLOCK_SIZE);
        match self.place(size as u64, reserve)? {
            Place::Active => {}
            Place::NextReady => self.move_to_next_segment(),
        }
        let active = self.active.as_mut().expect("placed");
        let fields = FrameFields {
            kind,
            shard: self.options.shard,
            shard_epoch: self.epoch,
            segment: active.id,
            nonce: active.nonce,
            offset: active.offset,
            sequence: self.last.next(),
            durable: self.durable,
            previous: self.last_checksum,
            clock_ms,
        };
        let header = FrameHeader::new(&fields, &self.filling.bytes()[FRAME_HEADER_SIZE..]);
        self.filling.bytes_mut()[..FRAME_HEADER_SIZE].copy_from_slice(header.encode());
        assert_eq!(header.frame_size(), size);
        let frame = self.filling.take();
        begin_frame(&mut self.filling);

        let write = FrameWrite {
            sequence: fields.sequence,
            kind,
            segment: active.id,
            offset: active.offset,
            bytes: frame.freeze(),
        };
        active.offset += size as u64;
        assert!(active.offset <= active.size);
        self.last = fields.sequence;
        self.last_kind = Some(kind);
        self.needs_seal = false;
        self.last_checksum = header.checksum();
        self.in_flight = Some(fields.sequence);
        Some(write)
    }

    fn move_to_next_segment(&mut self) {
        let ready = self.ready.pop_front().expect("placed");
        let next = ActiveSegment {
            id: ready.id,
            nonce: ready.nonce,
            size: self.options.segment_size,
            first: self.last.next(),
            offset: BLOCK_SIZE as u64,
        };
        if let Some(full) = self.active.replace(next) {
            assert!(full.id < next.id);
            assert!(full.first <= self.last, "a segment is active from its first frame on");
            self.sealed.push_back(SealedSegment {
                id: full.id,
                size: full.size,
                first: full.first,
                last: self.last,
            });
        }
    }

    /// Where a frame of this size goes such that `reserve` bytes are left after it.
    fn place(&self, size: u64, reserve: u64) -> Option<Place> {
        let rest = self.active.map_or(0, |active| active.size - active.offset);
        if size <= rest {
            return (self.room_total() - size >= reserve).then_some(Place::Active);
        }
        // The rest of the active segment is lost by moving on.
        let ready = self.room_total() - rest;
        let fits = size <= self.segment_room() && ready >= size && ready - size >= reserve;
        fits.then_some(Place::NextReady)
    }

    fn room_total(&self) -> u64 {
        let rest = self.active.map_or(0, |active| active.size - active.offset);
        rest + self.ready.len() as u64 * self.segment_room()
    }

    /// Bytes of frames that one segment takes.
    fn segment_room(&self) -> u64 {
        self.options.segment_size - BLOCK_SIZE as u64
    }

    fn assert_filling(&self) {
        assert!(
            frame_size(self.filling.bytes().len() - FRAME_HEADER_SIZE) <= self.frame_size_max()
        );
    }
}

fn empty_frame() -> Filling {
    let mut filling = Filling::new();
    begin_frame(&mut filling);
    filling
}

/// The header is known when the frame is whole.
fn begin_frame(filling: &mut Filling) {
    filling.reserve(FRAME_HEADER_SIZE);
    filling.bytes_mut().resize(FRAME_HEADER_SIZE, 0);
}

#[cfg(test)]
mod tests;
