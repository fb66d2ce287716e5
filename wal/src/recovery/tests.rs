mod damage;
mod life;
mod newest;
mod random;
mod torn;

use std::cell::Cell;
use std::io;

use super::*;
use crate::disk::MemoryStorage;
use crate::format::{FrameFields, SegmentHeader};

/// A segment of 31 blocks of frames, 16 of which are the reserve.
const SEGMENT_SIZE: u64 = 32 * BLOCK;
const SECTOR_SIZE: usize = 512;

fn options() -> LogOptions {
    LogOptions { shard: ShardId(3), segment_size: SEGMENT_SIZE, segment_count_max: 6 }
}

/// A shard's directory, what its manifest says, and a running log on it.
#[derive(Debug)]
struct World {
    storage: MemoryStorage,
    start: ScanStart,
    log: Log,
    nonce: Cell<u64>,
    /// Every frame that was acknowledged, by number from 1.
    acknowledged: Vec<FrameWrite>,
}

impl World {
    fn new() -> Self {
        let start = ScanStart {
            shard: ShardId(3),
            first_segment: SegmentId(1),
            replay_from: Sequence(1),
            known_durable: Sequence(0),
            epoch_min: ShardEpoch(0),
            segment_size: SEGMENT_SIZE,
            segment_count_max: 6,
        };
        let storage = MemoryStorage::new();
        let end = scan(&storage, &start, &mut |_| Ok(())).unwrap();
        let log = Log::resume(options(), &end);
        let mut world = Self { storage, start, log, nonce: Cell::new(1), acknowledged: Vec::new() };
        world.restart();
        world
    }

    /// Ends the process and starts it again; returns what recovery found.
    fn restart(&mut self) -> ScanEnd {
        let (_, end) = self.scan().unwrap();
        // A frame that was not acknowledged and is there all the same is kept.
        self.acknowledged.truncate(end.last.0 as usize);
        let nonce = &self.nonce;
        let mut next_nonce = || {
            nonce.set(nonce.get() + 1);
            nonce.get() * 0x1_0001
        };
        self.log = start(&mut self.storage, options(), &end, 2, 9, &mut next_nonce).unwrap();
        let (frames, sealed) = self.scan().unwrap();
        assert_eq!(sealed.last, end.last.next());
        assert_eq!(sealed.last_kind, Some(FrameKind::Seal));
        assert_eq!(sealed.torn, None);
        self.acknowledged = frames_from(frames, std::mem::take(&mut self.acknowledged));
        end
    }

    fn scan(&self) -> Result<(Vec<ReplayFrame>, ScanEnd), ScanError> {
        let mut frames = Vec::new();
        let end = scan(&self.storage, &self.start, &mut |frame| {
            frames.push(frame);
            Ok(())
        })?;
        Ok((frames, end))
    }

    /// Fills a frame of this many blocks and hands it out, not written.
    fn submit(&mut self, blocks: usize) -> FrameWrite {
        let size = blocks * BLOCK_SIZE - self.log.filling_size() - 56;
        let value: Vec<u8> = (0..size).map(|at| (at as u8) | 1).collect();
        self.log.append_put(b"", &value);
        self.log.submit(9).unwrap()
    }

    fn acknowledge(&mut self, write: FrameWrite) {
        perform_write(&mut self.storage, &write).unwrap();
        self.log.on_durable(write.sequence);
        self.acknowledged.push(write);
    }

    fn put(&mut self, blocks: usize) {
        let write = self.submit(blocks);
        self.acknowledge(write);
    }

    fn idle(&mut self) {
        let write = self.log.submit_idle(9).unwrap();
        self.acknowledge(write);
    }

    fn seal(&mut self) {
        let write = self.log.submit_seal(9).unwrap();
        self.acknowledge(write);
    }

    fn prepare(&mut self) {
        self.nonce.set(self.nonce.get() + 1);
        prepare(&mut self.storage, &options(), &mut self.log, self.nonce.get()).unwrap();
    }

    /// A manifest that says that everything up to `through` has settled; returns what is free.
    fn settle(&mut self, through: Sequence) -> Vec<SegmentId> {
        self.start.first_segment = self.log.first_segment_after(through).unwrap();
        self.start.replay_from = through.next();
        self.start.known_durable = self.log.durable();
        let released = self.log.release_before(self.start.first_segment);
        released.iter().map(|released| released.id).collect()
    }

    fn recycle(&mut self, old: SegmentId) -> Vec<DiskOp> {
        let id = self.log.next_segment();
        self.nonce.set(self.nonce.get() + 1);
        let spec = self.spec(id, self.nonce.get());
        segment::recycle_ops(old, &spec)
    }

    fn spec(&self, id: SegmentId, nonce: u64) -> SegmentSpec {
        SegmentSpec { shard: ShardId(3), id, nonce, size: SEGMENT_SIZE }
    }

    fn bytes_mut(&mut self, write: &FrameWrite) -> &mut [u8] {
        let file = self.storage.file_mut(&segment::file_name(write.segment));
        &mut file[write.offset as usize..][..write.bytes.len()]
    }

    /// Writes those sectors of a frame for which `is_written` says so.
    fn tear(&mut self, write: &FrameWrite, is_written: impl Fn(usize) -> bool) {
        let target = self.bytes_mut(write);
        for (index, sector) in write.bytes.chunks(SECTOR_SIZE).enumerate() {
            if is_written(index) {
                target[index * SECTOR_SIZE..][..SECTOR_SIZE].copy_from_slice(sector);
            }
        }
    }

    fn expect_corrupt(&self, text: &str) {
        match self.scan() {
            Err(error @ ScanError::Corrupt { .. }) => {
                let message = error.to_string();
                assert!(message.contains(text), "{message}");
                assert!(message.contains("quarantine"), "{message}");
            }
            other => panic!("expected corruption, not {other:?}"),
        }
    }

    /// The acknowledged frames are there, and nothing but unacknowledged ones is not.
    fn expect_all(&self) -> ScanEnd {
        let (frames, end) = self.scan().unwrap();
        let wanted = &self.acknowledged[self.start.replay_from.0 as usize - 1..];
        assert!(frames.len() >= wanted.len());
        for (frame, write) in frames.iter().zip(wanted) {
            assert_eq!(frame.header.sequence(), write.sequence);
            assert_eq!((frame.segment, frame.offset), (write.segment, write.offset));
            assert_eq!(frame.bytes, write.bytes);
        }
        end
    }
}

fn frames_from(frames: Vec<ReplayFrame>, mut known: Vec<FrameWrite>) -> Vec<FrameWrite> {
    for frame in frames {
        let sequence = frame.header.sequence();
        if sequence.0 as usize > known.len() {
            known.push(FrameWrite {
                sequence,
                kind: frame.header.kind(),
                segment: frame.segment,
                offset: frame.offset,
                bytes: frame.bytes,
            });
        }
    }
    known
}

/// A seal and frames 2 to 4, of 1, 3 and 2 blocks.
fn small_world() -> World {
    let mut world = World::new();
    world.put(1);
    world.put(3);
    world.put(2);
    world
}

/// Frames in three segments; the newest has three.
fn large_world() -> World {
    let mut world = World::new();
    for blocks in [20, 3, 12, 9, 15, 2, 1] {
        world.put(blocks);
        world.prepare();
    }
    assert_eq!(world.log.sealed().count(), 2);
    world
}

#[test]
fn a_new_directory_starts_with_a_seal_and_two_ready_segments() {
    let world = World::new();
    let (frames, end) = world.scan().unwrap();
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].header.kind(), FrameKind::Seal);
    assert_eq!(frames[0].header.shard_epoch(), ShardEpoch(1));
    assert_eq!(end.last, Sequence(1));
    assert_eq!(end.epoch, ShardEpoch(2));
    assert_eq!(end.in_use.len(), 1);
    assert_eq!(end.spare.len(), 1);
    assert_eq!(end.next_segment, SegmentId(3));
    assert_eq!((end.torn, end.stale), (None, vec![]));
}

#[test]
fn every_acknowledged_frame_comes_back_in_order_and_unchanged() {
    let mut world = large_world();
    let end = world.expect_all();
    assert_eq!(end.last, Sequence(8));
    assert_eq!(end.in_use.len(), 3);
    assert_eq!(end.frames, 8);
    world.restart();
    world.put(4);
    world.restart();
    let end = world.expect_all();
    assert_eq!(end.last, Sequence(11));
    assert_eq!(end.epoch, ShardEpoch(4));
}

#[test]
fn the_new_epoch_is_above_the_manifests() {
    let mut world = small_world();
    world.start.epoch_min = ShardEpoch(40);
    assert_eq!(world.scan().unwrap().1.epoch, ShardEpoch(41));
}

#[test]
fn a_replayed_frame_shares_no_memory_with_the_piece_that_was_read() {
    let world = small_world();
    for frame in world.scan().unwrap().0 {
        assert_eq!(frame.bytes.len(), frame.header.frame_size());
        assert!(frame.bytes.is_unique());
        let (range, entry) = match frame.entries().next() {
            Some(entry) => entry.unwrap(),
            None => continue,
        };
        let Entry::Put { value, .. } = entry else { panic!("{entry:?}") };
        assert_eq!(&frame.bytes[range], value);
    }
}

#[test]
fn settled_frames_are_checked_and_not_handed_out() {
    let mut world = small_world();
    world.settle(Sequence(2));
    let (frames, end) = world.scan().unwrap();
    let sequences: Vec<u64> = frames.iter().map(|frame| frame.header.sequence().0).collect();
    assert_eq!((sequences, end.last, end.frames), (vec![3, 4], Sequence(4), 4));

    let write = world.acknowledged[1].clone();
    world.bytes_mut(&write)[200] ^= 1;
    world.expect_corrupt("frame 2 is due here");
}

#[test]
fn the_visitors_refusal_names_the_frame() {
    let world = small_world();
    let mut visit = |frame: ReplayFrame| match frame.header.sequence() {
        Sequence(3) => Err("no such topic".to_owned()),
        _ => Ok(()),
    };
    let error = scan(&world.storage, &world.start, &mut visit).unwrap_err();
    assert_eq!(
        error.to_string(),
        "wal-00000000000000000001.seg, byte 12288: frame 3 cannot be replayed: no such topic"
    );
}

/// Writes a frame that is intact by itself over the place where the next one is due.
fn forge(world: &mut World, change: impl FnOnce(&mut FrameFields)) {
    let last = world.acknowledged.last().unwrap().clone();
    let header = FrameHeader::decode(&last.bytes).unwrap();
    let mut fields = FrameFields {
        kind: FrameKind::Steps,
        shard: header.shard(),
        shard_epoch: header.shard_epoch(),
        segment: header.segment(),
        nonce: header.nonce(),
        offset: header.offset() + last.bytes.len() as u64,
        sequence: header.sequence().next(),
        durable: header.sequence(),
        previous: header.checksum(),
        clock_ms: 9,
    };
    let place = fields.offset;
    change(&mut fields);
    let mut bytes = FrameHeader::new(&fields, b"").encode().to_vec();
    bytes.resize(BLOCK_SIZE, 0);
    let write = FrameWrite {
        sequence: fields.sequence,
        kind: fields.kind,
        segment: last.segment,
        offset: place,
        bytes: bytes.into(),
    };
    perform_write(&mut world.storage, &write).unwrap();
}

#[test]
fn a_forged_frame_without_a_change_is_taken() {
    let mut world = small_world();
    forge(&mut world, |_| {});
    assert_eq!(world.expect_all().last, Sequence(5));
}

#[test]
fn an_intact_frame_that_does_not_follow_is_corruption() {
    let mut world = small_world();
    forge(&mut world, |fields| fields.previous ^= 1);
    world.expect_corrupt("frame 5 does not follow the frame before it");

    let mut world = small_world();
    forge(&mut world, |fields| fields.sequence = Sequence(6));
    world.expect_corrupt("frame 5 is due here and frame 6 is here");

    let mut world = small_world();
    forge(&mut world, |fields| fields.shard_epoch = ShardEpoch(2));
    world.expect_corrupt("frame 5 is of epoch 2 after a frame of epoch 1");

    let mut world = small_world();
    world.restart();
    forge(&mut world, |fields| {
        fields.kind = FrameKind::Seal;
        fields.shard_epoch = ShardEpoch(1);
    });
    world.expect_corrupt("frame 6 is of epoch 1 after a frame of epoch 2");
}

#[test]
fn an_intact_frame_of_another_place_or_time_is_nothing() {
    let changes: [fn(&mut FrameFields); 5] = [
        |fields| fields.offset += BLOCK,
        |fields| fields.nonce ^= 1,
        |fields| fields.segment = SegmentId(9),
        |fields| fields.shard = ShardId(4),
        |fields| {
            fields.sequence = Sequence(2);
            fields.durable = Sequence(1);
        },
    ];
    for change in changes {
        let mut world = small_world();
        forge(&mut world, change);
        let end = world.expect_all();
        assert_eq!(end.last, Sequence(4));
        world.restart();
        world.expect_all();
    }
}

#[test]
fn a_segment_header_that_no_crash_leaves_is_corruption() {
    let name = segment::file_name(SegmentId(1));
    let replace = |header: SegmentHeader| {
        let mut world = small_world();
        world.storage.file_mut(&name)[..BLOCK_SIZE].copy_from_slice(&header.encode());
        world
    };
    let mut world = small_world();
    world.storage.file_mut(&name)[20] ^= 1;
    world.expect_corrupt("the segment's header: the header does not match its checksum");

    replace(SegmentHeader::new(ShardId(4), SegmentId(1), 2, SEGMENT_SIZE, false))
        .expect_corrupt("the segment belongs to shard 4");
    replace(SegmentHeader::new(ShardId(3), SegmentId(2), 2, SEGMENT_SIZE, false))
        .expect_corrupt("the header is that of segment 2");
    replace(SegmentHeader::new(ShardId(3), SegmentId(1), 2, SEGMENT_SIZE * 2, false))
        .expect_corrupt("the file has 131072 bytes, its header says 262144");

    let mut world = small_world();
    world.storage.file_mut(&name).truncate(SEGMENT_SIZE as usize - BLOCK_SIZE);
    world.expect_corrupt("the file has 126976 bytes");
    world.storage.file_mut(&name).truncate(100);
    world.expect_corrupt("too short for a header");

    // Even of a segment that is not in use yet: whether it is cannot be known.
    let mut world = small_world();
    world.storage.file_mut(&segment::file_name(SegmentId(2)))[9] ^= 1;
    world.expect_corrupt("wal-00000000000000000002.seg, byte 0");
}

/// Makes an intact header one of a newer format.
fn as_newer(bytes: &mut [u8], checked: usize) {
    bytes[8] = 2;
    let checksum = crc32c::crc32c(&bytes[4..checked]);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn a_newer_format_is_said_to_be_newer_not_damaged() {
    let mut world = small_world();
    let write = world.acknowledged[2].clone();
    as_newer(world.bytes_mut(&write), 128);
    let error = world.scan().unwrap_err();
    assert!(matches!(error, ScanError::TooNew { offset: 12288, found: 2, .. }), "{error:?}");

    let mut world = small_world();
    as_newer(world.storage.file_mut(&segment::file_name(SegmentId(1))), BLOCK_SIZE);
    let error = world.scan().unwrap_err();
    assert!(matches!(error, ScanError::TooNew { offset: 0, found: 2, .. }), "{error:?}");
    assert!(error.to_string().contains("upgrade"), "{error}");
}

#[test]
fn records_that_look_like_frames_are_not_taken_for_frames() {
    // A client fills a record with headers, in every alignment of a block, of all kinds that it
    // can make: it knows everything but the nonce.
    for version in [1, 2] {
        let mut world = small_world();
        let header = FrameHeader::decode(&world.acknowledged[3].bytes).unwrap();
        let mut value = Vec::new();
        // The value starts 136 bytes into the frame, the next block 4096 bytes into it.
        value.resize(BLOCK_SIZE - 136, 1);
        for block in 1..4 {
            let fields = FrameFields {
                kind: FrameKind::Steps,
                shard: ShardId(3),
                shard_epoch: ShardEpoch(1),
                segment: header.segment(),
                nonce: header.nonce() ^ 0xff,
                offset: header.offset() + header.frame_size() as u64 + block * BLOCK,
                sequence: Sequence(100),
                durable: Sequence(99),
                previous: 0,
                clock_ms: 0,
            };
            let mut bytes = FrameHeader::new(&fields, b"").encode().to_vec();
            if version == 2 {
                as_newer(&mut bytes, 128);
            }
            bytes.resize(BLOCK_SIZE, 0);
            value.extend_from_slice(&bytes);
        }
        world.log.append_put(b"", &value);
        let write = world.log.submit(9).unwrap();
        assert_eq!(write.bytes[BLOCK_SIZE..][4..8], *b"TMFR", "the forgery is on a block");
        world.tear(&write, |sector| sector != 1);
        assert_eq!(world.expect_all().last, Sequence(4));
        world.tear(&write, |sector| sector < 1000);
        assert_eq!(world.expect_all().last, Sequence(5));
        // Under a seal, what is left of them is where the next frame is due.
        world.tear(&write, |sector| sector != 1);
        world.bytes_mut(&write)[SECTOR_SIZE..][..SECTOR_SIZE].fill(0);
        assert_eq!(world.restart().last, Sequence(4));
        world.put(1);
        world.put(1);
        assert_eq!(world.expect_all().last, Sequence(7));
    }
}

/// Fails every read that touches one byte of one file.
struct BadSector<'a> {
    storage: &'a MemoryStorage,
    file: FileName,
    at: u64,
}

impl Storage for BadSector<'_> {
    fn list(&self) -> io::Result<Vec<(FileName, u64)>> {
        self.storage.list()
    }

    fn read(&self, file: &FileName, offset: u64, size: usize) -> io::Result<Bytes> {
        if *file == self.file && (offset..offset + size as u64).contains(&self.at) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.storage.read(file, offset, size)
    }

    fn perform(&mut self, op: &DiskOp) -> Result<(), DiskFault> {
        panic!("a scan only reads, not {op:?}");
    }
}

#[test]
fn a_read_error_is_never_taken_for_a_torn_tail() {
    let world = small_world();
    let (_, end) = world.scan().unwrap();
    for at in [end.in_use[0].end, end.in_use[0].end - 1, SEGMENT_SIZE - 1] {
        let file = segment::file_name(SegmentId(1));
        let bad = BadSector { storage: &world.storage, file, at };
        let error = scan(&bad, &world.start, &mut |_| Ok(())).unwrap_err();
        assert!(matches!(error, ScanError::Io { .. }), "{error:?}");
    }
}

#[test]
fn segments_of_another_size_are_read_but_not_used_again() {
    let mut world = large_world();
    world.start.segment_size = SEGMENT_SIZE * 2;
    let (_, end) = world.scan().unwrap();
    assert_eq!(end.in_use.len(), 3);
    assert_eq!(end.spare, []);
    assert!(!end.stale.is_empty());
    let options = LogOptions { segment_size: SEGMENT_SIZE * 2, ..options() };
    let mut nonce = 900;
    let mut log = start(&mut world.storage, options, &end, 2, 9, &mut || {
        nonce += 1;
        nonce
    })
    .unwrap();
    assert_eq!(log.ready_count(), 2);
    // The old segment is written to its end, then one of the new size.
    log.append_put(b"", &vec![1; 40 * BLOCK_SIZE]);
    let write = log.submit(9).unwrap();
    assert_eq!(write.offset, BLOCK);
    perform_write(&mut world.storage, &write).unwrap();
    log.on_durable(write.sequence);
    let released = log.release_before(log.first_segment_after(log.durable()).unwrap());
    assert_eq!(released.len(), 3);
    assert!(released.iter().all(|released| !released.is_recyclable));
    assert_eq!(world.scan().unwrap().1.last, write.sequence);
}

#[test]
fn a_lower_limit_removes_segments_that_are_not_in_use() {
    let mut world = large_world();
    let (_, before) = world.scan().unwrap();
    assert!(before.spare.len() > 1);
    world.start.segment_count_max = 4;
    let (_, end) = world.scan().unwrap();
    assert_eq!(end.spare, before.spare[..1]);
    assert_eq!(end.stale.len(), before.spare.len() - 1 + before.stale.len());
}

#[test]
fn a_full_log_starts_again_and_again() {
    let mut world = World::new();
    while world.log.segment_count() < world.log.segment_count_max() {
        world.prepare();
    }
    while world.log.fits(0) {
        world.put(1);
    }
    assert_eq!(world.log.room(), 0);
    let full = world.log.segment_count();
    for _ in 0..20 {
        world.restart();
    }
    world.expect_all();
    assert_eq!(world.log.segment_count(), full + 1, "above the limit rather than not at all");
}

#[test]
fn a_full_disk_does_not_prevent_a_start() {
    let mut world = small_world();
    let (_, end) = world.scan().unwrap();
    let used: u64 = world.storage.list().unwrap().iter().map(|(_, size)| size).sum();
    world.storage.limit(used as usize + 3 * BLOCK_SIZE);
    let log = start(&mut world.storage, options(), &end, 4, 9, &mut || 77).unwrap();
    assert_eq!(log.ready_count(), 1);
    assert_eq!(log.durable(), Sequence(5));
    assert!(world.storage.names().all(|name| !name.0.contains("tmp")));
}

#[test]
fn a_walk_shows_every_frame_what_is_between_them_and_the_end() {
    let mut world = small_world();
    let trace = |world: &World| -> Vec<String> {
        let items = walk(&world.storage, SegmentId(1)).unwrap();
        items
            .map(|item| match item.unwrap() {
                WalkItem::Frame(frame) => {
                    assert_eq!(frame.bytes.len(), frame.header.frame_size());
                    format!("{} {}", frame.header.kind(), frame.header.sequence())
                }
                WalkItem::Damage { offset, size, why } => format!("{offset}+{size}: {why}"),
                WalkItem::End { offset, torn } => format!("end {offset} {torn:?}"),
            })
            .collect()
    };
    assert_eq!(trace(&world), ["seal 1", "steps 2", "steps 3", "steps 4", "end 32768 None"]);

    let write = world.submit(2);
    world.tear(&write, |sector| sector < 3);
    let damaged = world.acknowledged[2].clone();
    world.bytes_mut(&damaged)[5000] ^= 1;
    assert_eq!(
        trace(&world),
        [
            "seal 1",
            "steps 2",
            "12288+12288: the body does not match its checksum",
            "steps 4",
            "end 32768 Some(\"the body does not match its checksum\")",
        ]
    );
    let error = walk(&world.storage, SegmentId(77)).err().unwrap();
    assert!(matches!(error, ScanError::Io { .. }), "{error:?}");
}
