//! The write-ahead log: bodies of frames, and whole segments with anything in them.

use bytes::BytesMut;
use tidemill_wal::commit::LogOptions;
use tidemill_wal::disk::MemoryStorage;
use tidemill_wal::format::{
    self, Entry, FrameFields, FrameHeader, FrameKind, SegmentHeader, SegmentId, Sequence,
    ShardEpoch, ShardId,
};
use tidemill_wal::limits::BLOCK_SIZE;
use tidemill_wal::recovery::{self, ReplayFrame, ScanEnd, ScanStart, WalkItem};
use tidemill_wal::segment;

use super::allocation::bounded;
use super::{take, take_byte};
use crate::tail::judge::scan;

const SHARD: ShardId = ShardId(3);

/// Blocks of a segment: one for its header, and more than the reserve.
const BLOCKS: usize = 24;

const SEGMENT_SIZE: usize = BLOCKS * BLOCK_SIZE;

/// Entries of a body: what is accepted is written to the same bytes.
pub fn entries(body: &[u8]) {
    let mut again = BytesMut::new();
    let mut accepted = 0;
    let mut fault = None;
    for item in format::entries(body) {
        assert!(fault.is_none(), "nothing comes after a fault");
        let (payload, entry) = match item {
            Ok(item) => item,
            Err(error) => {
                fault = Some(error);
                continue;
            }
        };
        match entry {
            Entry::Batch(entry, bytes) => {
                assert_eq!(&body[payload], bytes);
                format::push_batch(&mut again, &entry, bytes);
            }
            Entry::Put { key, value } => {
                assert_eq!(&body[payload], value);
                format::push_put(&mut again, key, value);
            }
            Entry::Delete { key } => {
                assert!(payload.is_empty());
                format::push_delete(&mut again, key);
            }
        }
        accepted = again.len();
    }
    assert_eq!(again, body[..accepted]);
    assert_eq!(fault.map_or(body.len(), |fault| fault.at), accepted);
}

/// What [`log`]'s bytes stand for.
struct Script {
    storage: MemoryStorage,
    /// Frames that are as a shard would have written them, if nothing but that was done.
    frames: Option<u64>,
    known_durable: Sequence,
}

/// Two segments, made by a small program: frames of the log, frames that are wrong in one field,
/// any bytes, and damage. Recovery never panics; if it finds an end, a seal can be written there,
/// and it finds that.
pub fn log(data: &[u8]) {
    let script = run(data);
    let start = ScanStart {
        shard: SHARD,
        first_segment: SegmentId(1),
        replay_from: Sequence(1),
        known_durable: script.known_durable,
        epoch_min: ShardEpoch(0),
        segment_size: SEGMENT_SIZE as u64,
        segment_count_max: 4,
    };
    for id in [1, 2] {
        check_walk(&script.storage, SegmentId(id));
    }
    // A piece that was read, and one copy of each frame.
    let scanned = bounded(5 * SEGMENT_SIZE, || scan(&script.storage, &start));
    let (frames, end) = match scanned {
        Ok(found) => found,
        Err(error) => {
            assert!(script.frames.is_none(), "a log without a fault is refused: {error}");
            return;
        }
    };
    if let Some(count) = script.frames {
        assert_eq!((end.frames, end.last), (count, Sequence(count)));
        assert_eq!(end.torn, None);
    }
    assert!(end.last >= script.known_durable, "what was durable is cut");
    for (index, frame) in frames.iter().enumerate() {
        assert_eq!(frame.header.sequence().0, index as u64 + 1);
        assert_eq!(frame.header.check_frame(&frame.bytes), Ok(()));
        assert!(frame.header.shard_epoch() < end.epoch);
        frame.entries().for_each(drop);
    }
    check_sealed(script.storage, &start, &frames, &end);
}

fn check_sealed(
    mut storage: MemoryStorage,
    start: &ScanStart,
    frames: &[ReplayFrame],
    end: &ScanEnd,
) {
    if end.last.0 >= u64::MAX - 2 || end.epoch.0 >= u64::MAX - 2 {
        return;
    }
    let options =
        LogOptions { shard: SHARD, segment_size: SEGMENT_SIZE as u64, segment_count_max: 4 };
    let mut nonce = 0x5ea1;
    let mut next_nonce = || {
        nonce += 1;
        nonce
    };
    recovery::start(&mut storage, options, end, 1, 9, &mut next_nonce).expect("memory takes all");
    let (again, sealed) = scan(&storage, start).expect("what was sealed is a log");
    assert_eq!((sealed.last, sealed.last_kind), (end.last.next(), Some(FrameKind::Seal)));
    assert!(sealed.epoch > end.epoch);
    assert!(frames.iter().zip(&again).all(|(one, two)| one.bytes == two.bytes));
    assert_eq!(again.len(), frames.len() + 1);
}

fn check_walk(storage: &MemoryStorage, id: SegmentId) {
    let Ok(walk) = recovery::walk(storage, id) else { return };
    let mut at = BLOCK_SIZE as u64;
    for item in walk {
        match item {
            Ok(WalkItem::Frame(frame)) => {
                assert_eq!(frame.offset, at);
                assert_eq!(frame.header.check_frame(&frame.bytes), Ok(()));
                at += frame.bytes.len() as u64;
            }
            Ok(WalkItem::Damage { offset, size, .. }) => {
                assert_eq!(offset, at);
                at += size;
            }
            Ok(WalkItem::End { offset, .. }) => {
                assert_eq!(offset, at);
                return;
            }
            Err(_) => return,
        }
        assert!(at <= SEGMENT_SIZE as u64);
    }
    panic!("a walk ends with its end");
}

/// One segment that is being written.
struct Writer {
    bytes: Vec<u8>,
    id: SegmentId,
    nonce: u64,
}

impl Writer {
    fn new(id: u64, is_recycled: bool) -> Self {
        let (id, nonce) = (SegmentId(id), 0x1234_5678 * id);
        let header = SegmentHeader::new(SHARD, id, nonce, SEGMENT_SIZE as u64, is_recycled);
        Self { bytes: header.encode(), id, nonce }
    }

    fn room(&self) -> usize {
        SEGMENT_SIZE - self.bytes.len()
    }

    fn finish(mut self, storage: &mut MemoryStorage) {
        self.bytes.resize(SEGMENT_SIZE, 0);
        *storage.file_mut(&segment::file_name(self.id)) = self.bytes;
    }
}

fn run(mut data: &[u8]) -> Script {
    let mut storage = MemoryStorage::new();
    let flags = take_byte(&mut data);
    let mut writer = Writer::new(1, flags & 1 == 1);
    let mut next = Some(Writer::new(2, flags & 2 == 2));
    let mut last: Option<FrameHeader> = None;
    let mut is_intact = true;
    let mut damage = Vec::new();
    while !data.is_empty() {
        match take_byte(&mut data) % 8 {
            // A frame of the log, or one with something wrong.
            op @ 0..=3 => {
                let kind =
                    [FrameKind::Steps, FrameKind::Idle, FrameKind::Seal][usize::from(op) % 3];
                let is_wrong = op == 3;
                let size = usize::from(take_byte(&mut data));
                let body = if kind == FrameKind::Steps { take(&mut data, size) } else { &[] };
                let padding = if op == 0 && size % 5 == 4 { 2 * BLOCK_SIZE } else { 0 };
                let body = [body, &vec![7; if body.is_empty() { 0 } else { padding }]].concat();
                if format::frame_size(body.len()) > writer.room() {
                    continue;
                }
                let mut fields = fields_after(last.as_ref(), &writer, kind);
                if is_wrong {
                    is_intact = false;
                    bend(&mut fields, take_byte(&mut data), take_byte(&mut data));
                }
                if fields.sequence <= fields.durable || !fields.offset.is_multiple_of(4096) {
                    continue;
                }
                let header = FrameHeader::new(&fields, &body);
                writer.bytes.extend_from_slice(header.encode());
                writer.bytes.extend_from_slice(&body);
                super::pad(&mut writer.bytes);
                if !is_wrong {
                    last = Some(header);
                }
            }
            // Any bytes, at the start of a block.
            4 if writer.room() > 0 => {
                is_intact = false;
                let size = usize::from(take_byte(&mut data));
                let raw = take(&mut data, size);
                let end = writer.bytes.len() + BLOCK_SIZE;
                writer.bytes.extend_from_slice(raw);
                writer.bytes.resize(end, 0);
            }
            // Damage, once all is written.
            5 => {
                let (high, low) = (take_byte(&mut data), take_byte(&mut data));
                damage.push((usize::from(high) << 9 | usize::from(low) << 1, take_byte(&mut data)));
            }
            // On to the next segment.
            6 => {
                if let Some(next) = next.take() {
                    std::mem::replace(&mut writer, next).finish(&mut storage);
                }
            }
            _ => {}
        }
    }
    let is_first_empty = next.is_none() && last.is_some_and(|last| last.segment() != SegmentId(1));
    writer.finish(&mut storage);
    if let Some(next) = next {
        next.finish(&mut storage);
    }
    for (at, bits) in damage {
        let file = storage.file_mut(&segment::file_name(SegmentId(1 + (at % 2) as u64)));
        if let Some(byte) = file.get_mut(at) {
            *byte ^= bits;
            is_intact &= bits == 0;
        }
    }
    let written = last.map_or(0, |last| last.sequence().0);
    let known_durable = if flags & 4 == 4 { written / 2 } else { 0 };
    // A log whose manifest names a segment without a frame is none that a shard writes.
    let is_log = is_intact && !(is_first_empty && known_durable > 0);
    Script { storage, frames: is_log.then_some(written), known_durable: Sequence(known_durable) }
}

fn fields_after(last: Option<&FrameHeader>, writer: &Writer, kind: FrameKind) -> FrameFields {
    let sequence = last.map_or(1, |last| last.sequence().0 + 1);
    let epoch = last.map_or(1, |last| last.shard_epoch().0);
    FrameFields {
        kind,
        shard: SHARD,
        shard_epoch: ShardEpoch(epoch + u64::from(kind == FrameKind::Seal)),
        segment: writer.id,
        nonce: writer.nonce,
        offset: writer.bytes.len() as u64,
        sequence: Sequence(sequence),
        durable: Sequence(sequence - 1),
        previous: last.map_or(0, FrameHeader::checksum),
        clock_ms: 7,
    }
}

/// Makes one field wrong.
fn bend(fields: &mut FrameFields, which: u8, by: u8) {
    let by = i64::from(by as i8);
    let add = |number: u64| number.saturating_add_signed(by);
    match which % 8 {
        0 => fields.sequence = Sequence(add(fields.sequence.0).max(1)),
        1 => fields.shard_epoch = ShardEpoch(add(fields.shard_epoch.0)),
        2 => fields.nonce ^= by as u64,
        3 => fields.segment = SegmentId(add(fields.segment.0)),
        4 => fields.offset = add(fields.offset / 4096).max(1) * 4096,
        5 => fields.previous ^= by as u32,
        6 => fields.shard = ShardId(by as u16),
        _ => fields.shard_epoch = ShardEpoch(u64::MAX - by.unsigned_abs()),
    }
    fields.durable = Sequence(fields.durable.0.min(fields.sequence.0 - 1));
}
