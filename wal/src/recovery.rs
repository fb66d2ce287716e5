//! What the WAL holds after a crash, and where it ends.
//!
//! The promise: nothing acknowledged is dropped in silence. One write is in flight at a time, so
//! a crash can damage one frame at most, the last, and only if it was never acknowledged.
//! Everything else that is damaged or missing is corruption: the shard does not start, and the
//! error says where.
//!
//! Frames are followed by number and by checksum of the header before, from the segment that the
//! manifest names. A frame is *intact* if its header, its body and its padding are, and shard,
//! segment, nonce and offset are those of its place. Say the frame numbered `n` is due at some
//! place, and `W` is the highest sequence known durable: by the manifest or by any intact frame.
//!
//! | At the place where frame `n` is due | Elsewhere | Then |
//! |---|---|---|
//! | frame `n`, intact, follows `n - 1` | | take it |
//! | frame `n`, intact, does not follow `n - 1`, or its epoch is not the current one and it is not a seal of a later one | | corruption |
//! | an intact header of a frame after `n` | | corruption: frames are missing |
//! | anything else | frame `n`, intact, is the first of a later segment | go on there |
//! | anything else | an intact header of a frame after `n`, in the rest of the segment or in a later one | corruption |
//! | anything else | none; `n <= W` | corruption |
//! | frame `n` with a damaged body | none; `n > W` | torn tail: cut |
//! | anything else | none; frame `n` with a damaged body is the first of a later segment | torn tail: cut |
//! | zeros, frames of another nonce, older frames, noise | none; `n > W` | the end |
//!
//! Segments themselves:
//!
//! | Found | Then |
//! |---|---|
//! | a temporary name; a segment before the manifest's first | stale: remove |
//! | a segment's name with a header that is damaged, or of another shard, segment or size | corruption: no crash leaves it |
//! | an intact header, no frame of the log in it, after the segment in which the log ends | ready for use |
//! | the same, of another size, or before that segment, or more than there may be | stale: remove |
//! | the manifest's first segment is missing or has no frame, though something was durable | corruption |
//! | no segment, nothing was ever durable | a new log |
//!
//! A torn tail and an end are treated alike: a seal is written over the place where `n` was due,
//! with a new epoch, durable before anything follows. The rest of a torn frame has no header of
//! its own and cannot come back.
//!
//! One case cannot be told apart: damage to exactly the last acknowledged frame looks torn. An
//! idle frame or a seal behind it makes it corruption.
//!
//! The newest frame may be one that nobody was told of. Where it rests on what other logs hold, it can
//! be cut like a torn one: see [`scan_to_newest`].

mod fault;
mod reader;

use bytes::Bytes;

pub use self::fault::ScanError;
use self::reader::{FrameRead, SegmentReader};
pub use self::reader::{Walk, WalkItem, walk};

use crate::commit::{FrameWrite, Log, LogOptions, SealedSegment};
use crate::disk::{DiskFault, DiskOp, Place, Storage};
use crate::format::{
    Entry, EntryFault, FRAME_HEADER_SIZE, FileName, FrameHeader, FrameKind, SegmentId, Sequence,
    ShardEpoch, ShardId, entries, is_zero,
};
use crate::limits::BLOCK_SIZE;
use crate::mutation::{self, Mutation};
use crate::segment::{self, NameKind, SegmentSpec};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// What the manifest and the configuration say about a shard's WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanStart {
    /// Whose WAL it is.
    pub shard: ShardId,
    /// Where the log starts. Segments before it are stale.
    pub first_segment: SegmentId,
    /// The first frame to hand out; everything before it has settled. 1 for a new log.
    pub replay_from: Sequence,
    /// The newest frame that is known to be durable; 0 if none.
    pub known_durable: Sequence,
    /// The newest epoch that is known; the new one is above it.
    pub epoch_min: ShardEpoch,
    /// Size of segments from now on.
    pub segment_size: u64,
    /// How many segments there may be.
    pub segment_count_max: usize,
}

/// An intact frame.
#[derive(Debug, Clone)]
pub struct ReplayFrame {
    /// What it says about itself.
    pub header: FrameHeader,
    /// The segment that it is in.
    pub segment: SegmentId,
    /// Where in the segment's file, in bytes.
    pub offset: u64,
    /// Header, body and padding: a copy of exactly this frame, so that slices of it may be kept.
    pub bytes: Bytes,
}

impl ReplayFrame {
    /// The entries, each with where its batch bytes or its value are in [`ReplayFrame::bytes`].
    pub fn entries(
        &self,
    ) -> impl Iterator<Item = Result<(std::ops::Range<usize>, Entry<'_>), EntryFault>> {
        let body = &self.bytes[FRAME_HEADER_SIZE..][..self.header.body_size()];
        entries(body).map(|item| {
            let (range, entry) = item?;
            let range = range.start + FRAME_HEADER_SIZE..range.end + FRAME_HEADER_SIZE;
            Ok((range, entry))
        })
    }
}

/// A segment that holds a frame of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundSegment {
    /// Its number.
    pub id: SegmentId,
    /// Its nonce.
    pub nonce: u64,
    /// Size of its file in bytes.
    pub size: u64,
    /// Its first frame.
    pub first: Sequence,
    /// Its last frame.
    pub last: Sequence,
    /// Where its last frame ends, in bytes.
    pub end: u64,
}

impl FoundSegment {
    pub(crate) fn sealed(&self) -> SealedSegment {
        SealedSegment { id: self.id, size: self.size, first: self.first, last: self.last }
    }
}

/// The end of a log that a crash cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Torn {
    /// The segment.
    pub segment: SegmentId,
    /// Where the frame starts that is not whole, in bytes.
    pub offset: u64,
    /// How many bytes were dropped, padding included; none of them was acknowledged.
    pub size: u64,
}

/// What [`scan`] found: all that [`Log::resume`] needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanEnd {
    /// The newest frame; it and all before it are durable.
    pub last: Sequence,
    /// What that frame is, if it is there.
    pub last_kind: Option<FrameKind>,
    /// Checksum of its header, which the next frame repeats.
    pub last_checksum: u32,
    /// The epoch of the start: above every epoch seen.
    pub epoch: ShardEpoch,
    /// What was cut off, if anything recognisable was.
    pub torn: Option<Torn>,
    /// Segments with frames, oldest first; the last one is written on.
    pub in_use: Vec<FoundSegment>,
    /// Segments that are ready for use, in order, with their nonces.
    pub spare: Vec<(SegmentId, u64)>,
    /// Files to remove.
    pub stale: Vec<FileName>,
    /// The next number for a segment.
    pub next_segment: SegmentId,
    /// How many frames were checked.
    pub frames: u64,
    /// How many bytes they have.
    pub bytes: u64,
}

impl ScanEnd {
    /// The end of a log none of whose frames is needed any more: `last` is settled, and the first
    /// segment to come is `first_segment`. For [`start`] where a log is made behind settled data.
    pub fn settled(last: Sequence, epoch: ShardEpoch, first_segment: SegmentId) -> Self {
        Self {
            last,
            last_kind: None,
            last_checksum: 0,
            epoch,
            torn: None,
            in_use: Vec::new(),
            spare: Vec::new(),
            stale: Vec::new(),
            next_segment: first_segment,
            frames: 0,
            bytes: 0,
        }
    }
}

/// The newest frame, if nothing says that it was known to be durable.
#[derive(Debug, Clone)]
pub struct Newest {
    /// The frame.
    pub frame: ReplayFrame,
    /// What the scan had found without it. Nothing else of the log is given up by a start from this.
    pub without: ScanEnd,
}

impl Newest {
    /// Hands the frame out after the others.
    pub fn visit(
        self,
        visit: &mut dyn FnMut(ReplayFrame) -> Result<(), String>,
    ) -> Result<(), ScanError> {
        hand_out(self.frame, visit)
    }
}

/// Checks the WAL from its first segment to its end, and hands out the frames that have not
/// settled, in order. Reads only.
pub fn scan(
    storage: &dyn Storage,
    start: &ScanStart,
    visit: &mut dyn FnMut(ReplayFrame) -> Result<(), String>,
) -> Result<ScanEnd, ScanError> {
    let (end, newest) = scan_to_newest(storage, start, visit)?;
    if let Some(newest) = newest {
        newest.visit(visit)?;
    }
    Ok(end)
}

/// The same, but keeps the newest frame back if it may be one that nobody was told of: no other frame
/// and no manifest says that it was durable. Whoever asks hands it out, or starts without it.
pub fn scan_to_newest(
    storage: &dyn Storage,
    start: &ScanStart,
    visit: &mut dyn FnMut(ReplayFrame) -> Result<(), String>,
) -> Result<(ScanEnd, Option<Newest>), ScanError> {
    assert!(start.replay_from > Sequence(0), "sequences start at 1");
    let mut scan = Scan::open(storage, start)?;
    let mut checked = scan.walk(visit);
    checked = checked.and_then(|()| scan.refuse_if_frames_follow());
    checked = checked.and_then(|()| scan.refuse_if_durable_is_missing());
    if let Err(error) = checked {
        // Those who look at damage want what is before it.
        if let Some(frame) = scan.held.take() {
            hand_out(frame, visit)?;
        }
        return Err(error);
    }
    let end = scan.end();
    let Some(frame) = scan.held.take() else { return Ok((end, None)) };
    if frame.header.sequence() <= scan.durable || !scan.cut(&frame) {
        hand_out(frame, visit)?;
        return Ok((end, None));
    }
    Ok((end, Some(Newest { frame, without: scan.end() })))
}

fn hand_out(
    frame: ReplayFrame,
    visit: &mut dyn FnMut(ReplayFrame) -> Result<(), String>,
) -> Result<(), ScanError> {
    let (segment, offset) = (frame.segment, frame.offset);
    let sequence = frame.header.sequence();
    visit(frame).map_err(|why| ScanError::Rejected {
        file: segment::file_name(segment),
        offset,
        sequence,
        why,
    })
}

/// Makes a scanned WAL ready to be written: removes stale files, prepares `ready_count` segments
/// and writes the seal that starts the epoch, durably. What a full disk prevents is left out, but
/// for the seal.
pub fn start(
    storage: &mut dyn Storage,
    options: LogOptions,
    end: &ScanEnd,
    ready_count: usize,
    clock_ms: i64,
    nonce: &mut dyn FnMut() -> u64,
) -> Result<Log, DiskFault> {
    for file in &end.stale {
        storage.perform(&DiskOp::Remove { file: file.clone() })?;
    }
    storage.perform(&DiskOp::SyncDirectory { place: Place::Wal })?;
    let mut log = Log::resume(options, end);
    while log.ready_count() < ready_count && log.segment_count() < log.segment_count_max() {
        match prepare(storage, &options, &mut log, nonce()) {
            Ok(()) => {}
            Err(DiskFault::Full { .. }) => break,
            Err(fault @ DiskFault::Failed { .. }) => return Err(fault),
        }
    }
    let seal = match log.submit_seal(clock_ms) {
        Some(seal) => seal,
        None => {
            // Not one block is left: a start goes above the limit rather than not at all.
            prepare(storage, &options, &mut log, nonce())?;
            log.submit_seal(clock_ms).expect("a ready segment has room for a seal")
        }
    };
    if !mutation::is_on(Mutation::SkipStartSeal) {
        perform_write(storage, &seal)?;
    }
    log.on_durable(seal.sequence);
    Ok(log)
}

/// Writes a frame durably through [`Storage`].
pub fn perform_write(storage: &mut dyn Storage, write: &FrameWrite) -> Result<(), DiskFault> {
    let file = segment::file_name(write.segment);
    let pieces = vec![write.bytes.clone()];
    storage.perform(&DiskOp::Write { file: file.clone(), offset: write.offset, pieces })?;
    storage.perform(&DiskOp::Sync { file })
}

fn prepare(
    storage: &mut dyn Storage,
    options: &LogOptions,
    log: &mut Log,
    nonce: u64,
) -> Result<(), DiskFault> {
    let id = log.next_segment();
    let spec = SegmentSpec { shard: options.shard, id, nonce, size: options.segment_size };
    for op in segment::prepare_ops(&spec) {
        if let Err(fault) = storage.perform(&op) {
            if matches!(fault, DiskFault::Full { .. }) {
                storage.perform(&DiskOp::Remove { file: segment::temporary_name(id) })?;
            }
            return Err(fault);
        }
    }
    log.add_ready(id, nonce);
    Ok(())
}

struct Scan<'a> {
    start: ScanStart,
    /// Every segment from the manifest's first on, by number.
    segments: Vec<SegmentReader<'a>>,
    stale: Vec<FileName>,
    next_segment: SegmentId,
    /// Index of the segment in which the next frame is due, and where; none before the first.
    at: Option<(usize, u64)>,
    last: Option<FrameHeader>,
    before_last: Option<FrameHeader>,
    /// The newest frame that is to be handed out, once there is a newer one.
    held: Option<ReplayFrame>,
    in_use: Vec<FoundSegment>,
    epoch: ShardEpoch,
    durable: Sequence,
    torn: Option<Torn>,
    frames: u64,
    bytes: u64,
}

impl<'a> Scan<'a> {
    fn open(storage: &'a dyn Storage, start: &ScanStart) -> Result<Self, ScanError> {
        let list = storage.list().map_err(|source| ScanError::Io {
            file: FileName("the WAL directory".into()),
            offset: 0,
            source,
        })?;
        let mut stale = Vec::new();
        let mut segments = Vec::new();
        let mut next_segment = SegmentId(start.first_segment.0.max(1));
        for (file, size) in list {
            match segment::parse_name(&file) {
                NameKind::Other => {}
                NameKind::Temporary => stale.push(file),
                NameKind::Segment(id) => {
                    next_segment = next_segment.max(SegmentId(id.0.saturating_add(1)));
                    if id < start.first_segment {
                        stale.push(file);
                    } else {
                        segments.push(SegmentReader::open(storage, start.shard, id, size)?);
                    }
                }
            }
        }
        segments.sort_by_key(|segment| segment.id);
        // What has settled was durable.
        let durable = start.known_durable.max(Sequence(start.replay_from.0 - 1));
        let mut at = None;
        if durable > Sequence(0) {
            if segments.first().map(|segment| segment.id) != Some(start.first_segment) {
                return Err(ScanError::Missing {
                    file: segment::file_name(start.first_segment),
                    segment: start.first_segment,
                    sequence: durable,
                });
            }
            at = Some((0, BLOCK));
        }
        Ok(Self {
            start: *start,
            segments,
            stale,
            next_segment,
            at,
            last: None,
            before_last: None,
            held: None,
            in_use: Vec::new(),
            epoch: start.epoch_min,
            durable,
            torn: None,
            frames: 0,
            bytes: 0,
        })
    }

    /// The frame that is due, if that is known: not before the first one of an old log.
    fn due(&self) -> Option<Sequence> {
        match (&self.last, self.at) {
            (Some(last), _) => Some(last.sequence().next()),
            (None, None) => Some(Sequence(1)),
            (None, Some(_)) => None,
        }
    }

    /// Takes frames until the one that is due is nowhere.
    fn walk(
        &mut self,
        visit: &mut dyn FnMut(ReplayFrame) -> Result<(), String>,
    ) -> Result<(), ScanError> {
        loop {
            if let Some((index, offset)) = self.at
                && let Some((header, frame)) = self.take(index, offset)?
            {
                self.accept(index, header);
                if header.sequence() >= self.start.replay_from {
                    let segment = self.segments[index].id;
                    let replay = ReplayFrame { header, segment, offset, bytes: frame };
                    if let Some(before) = self.held.replace(replay) {
                        hand_out(before, visit)?;
                    }
                }
                self.at = Some((index, offset + header.frame_size() as u64));
                continue;
            }
            match self.find_later_segment()? {
                Some(next) => {
                    if let Some((index, _)) = self.at {
                        self.segments[index].forget();
                    }
                    self.at = Some((next, BLOCK));
                }
                None => return Ok(()),
            }
        }
    }

    /// The frame that is due, if it is here.
    fn take(
        &mut self,
        index: usize,
        offset: u64,
    ) -> Result<Option<(FrameHeader, Bytes)>, ScanError> {
        let due = self.due();
        let header = match self.segments[index].frame_at(offset)? {
            FrameRead::Intact(header) => header,
            FrameRead::Damaged(header, _) => {
                if due.is_some_and(|due| header.sequence() > due) {
                    return Err(self.missing_before(&header));
                }
                return Ok(None);
            }
            FrameRead::TooNew(found) => return Err(self.segments[index].too_new(offset, found)),
            FrameRead::Nothing(_) => return Ok(None),
        };
        match due {
            Some(due) if header.sequence() < due => return Ok(None),
            Some(due) if header.sequence() > due => return Err(self.missing_before(&header)),
            Some(_) => self.check_follows(index, &header)?,
            None if header.sequence() > self.start.replay_from => {
                return Err(self.missing_before(&header));
            }
            None => {}
        }
        let frame = self.segments[index].bytes(offset, header.frame_size())?;
        // A copy for a frame that is handed out; the piece that was read is much larger.
        let is_wanted = header.sequence() >= self.start.replay_from;
        let frame = if is_wanted { Bytes::copy_from_slice(&frame) } else { Bytes::new() };
        Ok(Some((header, frame)))
    }

    fn check_follows(&self, index: usize, header: &FrameHeader) -> Result<(), ScanError> {
        let why = match &self.last {
            // A start cut that frame whole and wrote its seal there.
            Some(last)
                if header.previous() != last.checksum()
                    && header.shard_epoch() > last.shard_epoch() =>
            {
                let why = format!(
                    "frame {} is here, which a later start cut, and not its seal, which frame {} \
                     follows",
                    last.sequence(),
                    header.sequence()
                );
                let segment = &self.segments[self.index_of(last.segment())];
                return Err(segment.corrupt(last.offset(), last.sequence(), why));
            }
            Some(last) if header.previous() != last.checksum() => {
                format!("frame {} does not follow the frame before it", header.sequence())
            }
            None if header.previous() != 0 => {
                format!("frame {} is the first and names one before it", header.sequence())
            }
            Some(last) if !Self::epoch_follows(last, header) => format!(
                "frame {} is of epoch {} after a frame of epoch {}",
                header.sequence(),
                header.shard_epoch(),
                last.shard_epoch()
            ),
            Some(_) | None => return Ok(()),
        };
        Err(self.segments[index].corrupt(header.offset(), header.sequence(), why))
    }

    /// Only a seal starts an epoch.
    fn epoch_follows(last: &FrameHeader, header: &FrameHeader) -> bool {
        match header.kind() {
            FrameKind::Seal => header.shard_epoch() >= last.shard_epoch(),
            FrameKind::Steps | FrameKind::Idle => header.shard_epoch() == last.shard_epoch(),
        }
    }

    fn accept(&mut self, index: usize, header: FrameHeader) {
        let segment = &self.segments[index];
        let end = header.offset() + header.frame_size() as u64;
        match self.in_use.last_mut() {
            Some(found) if found.id == segment.id => {
                found.last = header.sequence();
                found.end = end;
            }
            Some(_) | None => self.in_use.push(FoundSegment {
                id: segment.id,
                nonce: segment.header.nonce(),
                size: segment.header.size(),
                first: header.sequence(),
                last: header.sequence(),
                end,
            }),
        }
        self.durable = self.durable.max(header.durable());
        self.epoch = self.epoch.max(header.shard_epoch());
        self.frames += 1;
        self.bytes += header.frame_size() as u64;
        self.before_last = self.last.replace(header);
    }

    /// Forgets the newest frame, as if it were torn. False if it is the first of the log, which
    /// somebody was told of: segments before it went for it.
    fn cut(&mut self, newest: &ReplayFrame) -> bool {
        let Some(before) = self.before_last.take() else { return false };
        let found = self.in_use.last_mut().expect("the newest frame is in it");
        // Also if it is the first of its segment: the seal goes over it, so that it cannot come back.
        (found.last, found.end) = (before.sequence(), newest.offset);
        let size = newest.header.frame_size() as u64;
        self.last = Some(before);
        self.frames -= 1;
        self.bytes -= size;
        self.torn = Some(Torn { segment: newest.segment, offset: newest.offset, size });
        true
    }

    /// Index of a later segment whose first frame is the one that is due.
    fn find_later_segment(&mut self) -> Result<Option<usize>, ScanError> {
        let Some(due) = self.due() else { return Ok(None) };
        for index in self.later_segments() {
            match self.segments[index].frame_at(BLOCK)? {
                FrameRead::Intact(header) if header.sequence() == due => return Ok(Some(index)),
                FrameRead::TooNew(found) => return Err(self.segments[index].too_new(BLOCK, found)),
                FrameRead::Intact(_) | FrameRead::Damaged(..) | FrameRead::Nothing(_) => {}
            }
            self.segments[index].forget();
        }
        Ok(None)
    }

    fn later_segments(&self) -> std::ops::Range<usize> {
        self.at.map_or(0, |(index, _)| index + 1)..self.segments.len()
    }

    /// A frame that was submitted after the one that is due says that the latter was durable.
    fn refuse_if_frames_follow(&mut self) -> Result<(), ScanError> {
        let due = self.due();
        self.torn = self.torn_in_place()?;
        if mutation::is_on(Mutation::CutBeforeOthers) {
            return Ok(());
        }
        let rest = self.at.map(|(index, offset)| (index, offset + BLOCK));
        let later = self.later_segments().map(|index| (index, BLOCK));
        let places: Vec<(usize, u64)> = rest.into_iter().chain(later).collect();
        for (index, mut offset) in places {
            while let Some((found, header)) = self.segments[index].next_header(offset)? {
                let is_first_of_later = found == BLOCK && Some(index) != self.at.map(|at| at.0);
                if due.is_none_or(|due| header.sequence() > due) {
                    return Err(self.missing_before(&header));
                }
                if due == Some(header.sequence()) {
                    if !is_first_of_later {
                        return Err(self.missing_before(&header));
                    }
                    // It did not fit the segment before, and it is not intact: see `walk`.
                    self.epoch = self.epoch.max(header.shard_epoch());
                    self.durable = self.durable.max(header.durable());
                    self.torn = Some(Torn {
                        segment: header.segment(),
                        offset: found,
                        size: header.frame_size() as u64,
                    });
                }
                offset = found + BLOCK;
            }
            self.segments[index].forget();
        }
        Ok(())
    }

    /// What a write left behind where the next frame is due.
    fn torn_in_place(&mut self) -> Result<Option<Torn>, ScanError> {
        let Some((index, offset)) = self.at else { return Ok(None) };
        let segment = &mut self.segments[index];
        if offset >= segment.header.size() {
            return Ok(None);
        }
        let id = segment.id;
        let torn = |size: usize| Some(Torn { segment: id, offset, size: size as u64 });
        match segment.frame_at(offset)? {
            FrameRead::Damaged(header, _) => {
                self.epoch = self.epoch.max(header.shard_epoch());
                let is_due = self.last.is_none_or(|last| header.sequence() > last.sequence());
                if !is_due {
                    return Ok(None);
                }
                // Its header is whole.
                self.durable = self.durable.max(header.durable());
                Ok(torn(header.frame_size()))
            }
            FrameRead::Nothing(_) => {
                // Without a header only a file that was all zeros can tell, and only if no torn
                // frame was cut here before, the rest of which is still there.
                let is_after_seal = self.last.is_some_and(|last| last.kind() == FrameKind::Seal);
                let is_zero = is_zero(&segment.bytes(offset, BLOCK_SIZE)?);
                let is_told = !segment.header.is_recycled() && !is_after_seal && !is_zero;
                Ok(if is_told { torn(BLOCK_SIZE) } else { None })
            }
            FrameRead::Intact(_) | FrameRead::TooNew(_) => Ok(None),
        }
    }

    fn refuse_if_durable_is_missing(&mut self) -> Result<(), ScanError> {
        let Some((index, offset)) = self.at else { return Ok(()) };
        let due = self.due();
        let is_cut = mutation::is_on(Mutation::CutKnownDurable);
        if due.is_some_and(|due| due > self.durable) || is_cut {
            return Ok(());
        }
        let torn = self.torn.map(|torn| (torn.segment, torn.offset));
        let place = torn.map(|(id, offset)| (self.index_of(id), offset));
        let (index, offset) = place.unwrap_or((index, offset));
        let why = self.describe(index, offset)?;
        let durable = self.durable;
        let why = match due {
            Some(due) => format!("frame {due} is due here, frame {durable} was durable, and {why}"),
            None => format!("the log starts here, frame {durable} was durable, and {why}"),
        };
        Err(self.segments[index].corrupt(offset, due.unwrap_or_default(), why))
    }

    /// The frame that is due is not where it should be, and a later one is there.
    fn missing_before(&mut self, later: &FrameHeader) -> ScanError {
        match self.place_of_missing(later).and_then(|(index, offset)| {
            let here = self.describe(index, offset)?;
            Ok((index, offset, here))
        }) {
            Ok((index, offset, here)) => {
                let due = self.due();
                let mut why = match due {
                    Some(due) => format!("frame {due} is due here and {here}"),
                    None => format!(
                        "the log starts here, no later than with frame {}, and {here}",
                        self.start.replay_from
                    ),
                };
                if (self.segments[index].id, offset) != (later.segment(), later.offset()) {
                    why += &format!(
                        ", while frame {} at byte {} of {} is there",
                        later.sequence(),
                        later.offset(),
                        segment::file_name(later.segment())
                    );
                }
                self.segments[index].corrupt(offset, due.unwrap_or_default(), why)
            }
            Err(error) => error,
        }
    }

    /// Where the frame that is due was, most likely: right behind the one before it, or first in
    /// the segment of the later one, if that has another first frame or none.
    fn place_of_missing(&mut self, later: &FrameHeader) -> Result<(usize, u64), ScanError> {
        let first_of_later = (self.index_of(later.segment()), BLOCK);
        let Some((index, offset)) = self.at else { return Ok(first_of_later) };
        if later.segment() == self.segments[index].id || later.offset() == BLOCK {
            return Ok((index, offset));
        }
        let segment = &mut self.segments[index];
        if offset < segment.header.size() {
            let block = segment.bytes(offset, BLOCK_SIZE)?;
            if segment.is_of_this_life(&block) {
                return Ok((index, offset));
            }
        }
        Ok(first_of_later)
    }

    fn index_of(&self, id: SegmentId) -> usize {
        let index = self.segments.iter().position(|segment| segment.id == id);
        index.expect("a frame was found in it")
    }

    fn describe(&mut self, index: usize, offset: u64) -> Result<String, ScanError> {
        let segment = &mut self.segments[index];
        if offset >= segment.header.size() {
            return Ok("the segment ends".to_owned());
        }
        Ok(match segment.frame_at(offset)? {
            FrameRead::Intact(header) => format!("frame {} is here", header.sequence()),
            FrameRead::Damaged(header, why) => {
                format!("frame {} is damaged: {why}", header.sequence())
            }
            FrameRead::TooNew(found) => format!("format {found} is here"),
            FrameRead::Nothing(why) => format!("no frame is here: {why}"),
        })
    }

    fn end(&self) -> ScanEnd {
        let newest_in_use = self.in_use.last().map(|found| found.id);
        let spare_count_max = self.start.segment_count_max.saturating_sub(self.in_use.len());
        let (mut spare, mut stale) = (Vec::new(), self.stale.clone());
        for segment in &self.segments {
            if self.in_use.iter().any(|found| found.id == segment.id) {
                continue;
            }
            let is_usable = segment.header.size() == self.start.segment_size
                && newest_in_use.is_none_or(|newest| newest < segment.id)
                && spare.len() < spare_count_max;
            if is_usable {
                spare.push((segment.id, segment.header.nonce()));
            } else {
                stale.push(segment::file_name(segment.id));
            }
        }
        ScanEnd {
            last: self.last.map_or(Sequence(0), |last| last.sequence()),
            last_kind: self.last.map(|last| last.kind()),
            last_checksum: self.last.map_or(0, |last| last.checksum()),
            epoch: ShardEpoch(self.epoch.0 + 1),
            torn: self.torn,
            in_use: self.in_use.clone(),
            spare,
            stale,
            next_segment: self.next_segment,
            frames: self.frames,
            bytes: self.bytes,
        }
    }
}

#[cfg(test)]
mod tests;
