use expect_test::expect;
use proptest::prelude::*;

use bytes::BytesMut;

use super::*;

fn fields() -> FrameFields {
    FrameFields {
        kind: FrameKind::Steps,
        shard: ShardId(0x0102),
        shard_epoch: ShardEpoch(0x1112_1314_1516_1718),
        segment: SegmentId(0x2122_2324_2526_2728),
        nonce: 0x3132_3334_3536_3738,
        offset: 0x4142_4344_4546_4000,
        sequence: Sequence(0x5152_5354_5556_5758),
        durable: Sequence(0x5152_5354_5556_5757),
        previous: 0x6162_6364,
        clock_ms: -0x7172_7374_7576_7778,
    }
}

fn hex(bytes: &[u8]) -> String {
    let lines = bytes.chunks(16).map(|line| {
        let words = line.chunks(4);
        let words = words.map(|word| word.iter().map(|b| format!("{b:02x}")).collect());
        words.collect::<Vec<String>>().join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_frame_header_has_these_bytes_for_ever() {
    let header = FrameHeader::new(&fields(), b"body");
    expect![[r#"
        ea7f16f1 544d4652 01000100 02010000
        04000000 50c93f26 64636261 00000000
        58575655 54535251 18171615 14131211
        28272625 24232221 38373635 34333231
        00404645 44434241 57575655 54535251
        8888898a 8b8c8d8e 00000000 00000000
        00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000"#]]
    .assert_eq(&hex(header.encode()));
    assert_eq!(FrameHeader::decode(header.encode()), Ok(header));
}

#[test]
fn a_segment_header_has_these_bytes_for_ever() {
    let header =
        SegmentHeader::new(ShardId(0x0102), SegmentId(0x1112_1314), 0x2122_2324, 1 << 26, true);
    let block = header.encode();
    expect![[r#"
        5ef80af0 544d5347 01000201 01000000
        14131211 00000000 24232221 00000000
        00000004 00000000 00000000 00000000
        00000000 00000000 00000000 00000000"#]]
    .assert_eq(&hex(&block[..size_of::<SegmentHeader>()]));
    assert!(is_zero(&block[size_of::<SegmentHeader>()..]));
    let read = SegmentHeader::decode(&block).unwrap();
    assert_eq!(read.encode(), block);
    assert_eq!(read.segment(), SegmentId(0x1112_1314));
    assert!(read.is_recycled());
}

#[test]
fn entries_have_these_bytes_for_ever_and_are_read_back_in_order() {
    let entry = BatchEntry {
        partition: PartitionId { topic: TopicId(*b"0123456789abcdef"), index: 3 },
        base_offset: 17,
        last_offset: 18,
        max_timestamp_ms: -1,
    };
    let mut body = BytesMut::new();
    assert_eq!(push_batch(&mut body, &entry, b"two records"), 56..67);
    push_put(&mut body, b"key", b"value");
    push_delete(&mut body, b"gone");
    push_put(&mut body, b"", b"");
    expect![[r#"
        01000000 0b000000 30313233 34353637
        38396162 63646566 03000000 00000000
        11000000 00000000 12000000 00000000
        ffffffff ffffffff 74776f20 7265636f
        72647302 00030005 0000006b 65797661
        6c756503 00040000 00000067 6f6e6502
        00000000 000000"#]]
    .assert_eq(&hex(&body));
    let read: Vec<_> = entries(&body).collect();
    assert_eq!(
        read,
        [
            Ok((56..67, Entry::Batch(entry, b"two records"))),
            Ok((78..83, Entry::Put { key: b"key", value: b"value" })),
            Ok((95..95, Entry::Delete { key: b"gone" })),
            Ok((103..103, Entry::Put { key: b"", value: b"" })),
        ]
    );
}

#[test]
fn every_flipped_bit_of_a_header_is_found() {
    let frame = FrameHeader::new(&fields(), b"body");
    for bit in 0..FRAME_HEADER_SIZE * 8 {
        let mut bytes = frame.encode().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        FrameHeader::decode(&bytes).unwrap_err();
    }
    let block = SegmentHeader::new(ShardId(1), SegmentId(2), 3, 1 << 20, false).encode();
    for bit in 0..BLOCK_SIZE * 8 {
        let mut bytes = block.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(SegmentHeader::decode(&bytes), Err(HeaderFault::Checksum));
    }
}

/// An intact header with a value that this build does not write.
fn frame_with(change: impl FnOnce(&mut FrameHeader)) -> Result<FrameHeader, HeaderFault> {
    let mut header = FrameHeader::new(&fields(), b"body");
    change(&mut header);
    header.checksum = header.compute_checksum().into();
    FrameHeader::decode(header.encode())
}

#[test]
fn an_intact_header_with_a_strange_value_is_refused_by_name() {
    let field = |name| Err(HeaderFault::Field(name));
    assert_eq!(frame_with(|h| h.version = 2.into()), Err(HeaderFault::TooNew(2)));
    assert_eq!(frame_with(|h| h.version = 0.into()), field("version"));
    assert_eq!(frame_with(|h| h.magic = 1.into()), Err(HeaderFault::Magic));
    assert_eq!(frame_with(|h| h.kind = 4), field("kind"));
    assert_eq!(frame_with(|h| h.kind = 2), field("body size"));
    assert_eq!(frame_with(|h| h.body_size = u32::MAX.into()), field("body size"));
    assert_eq!(frame_with(|h| h.sequence = 0.into()), field("sequence"));
    assert_eq!(frame_with(|h| h.shard_epoch = u64::MAX.into()), field("shard epoch"));
    assert_eq!(frame_with(|h| h.durable = h.sequence), field("durable sequence"));
    assert_eq!(frame_with(|h| h.offset = 4097.into()), field("offset"));
    assert_eq!(frame_with(|h| h.reserved_end[39] = 1), field("reserved"));
    assert_eq!(frame_with(|h| h.reserved = 1), field("reserved"));
    assert_eq!(FrameHeader::decode(&[0; 127]), Err(HeaderFault::Short));
    assert_eq!(SegmentHeader::decode(&[0; 4095]), Err(HeaderFault::Short));
}

#[test]
fn a_frame_is_whole_only_with_its_body_and_zeros_behind_it() {
    let header = FrameHeader::new(&fields(), b"body");
    let mut frame = header.encode().to_vec();
    frame.extend_from_slice(b"body");
    frame.resize(BLOCK_SIZE, 0);
    assert_eq!(header.check_frame(&frame), Ok(()));
    for at in FRAME_HEADER_SIZE..BLOCK_SIZE {
        let mut damaged = frame.clone();
        damaged[at] ^= 0x10;
        let body = at < FRAME_HEADER_SIZE + 4;
        let fault = if body { BodyFault::Checksum } else { BodyFault::Padding };
        assert_eq!(header.check_frame(&damaged), Err(fault));
    }
}

#[test]
fn a_body_ends_at_its_first_bad_entry() {
    let mut body = BytesMut::new();
    push_put(&mut body, b"key", b"value");
    let good = body.len();
    push_delete(&mut body, b"key");
    body[good + 4] = 9;
    let read: Vec<_> = entries(&body).collect();
    assert_eq!(read.len(), 2);
    assert_eq!(read[1], Err(EntryFault { at: good, why: "an entry is cut short" }));
    let zeros: Vec<_> = entries(&[0; 8]).collect();
    assert_eq!(zeros, [Err(EntryFault { at: 0, why: "no such kind of entry" })]);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let count = entries(&bytes).count();
        prop_assert!(count <= bytes.len());
        let _ = FrameHeader::decode(&bytes);
        let _ = SegmentHeader::decode(&bytes);
    }

    #[test]
    fn damaged_entries_are_read_without_a_panic(
        sizes in prop::collection::vec((0usize..40, 0usize..40, 0u8..3), 1..8),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let mut body = BytesMut::new();
        for (key, value, kind) in sizes {
            match kind {
                0 => push_put(&mut body, &vec![1; key], &vec![2; value]),
                1 => push_delete(&mut body, &vec![1; key]),
                _ => {
                    let entry = BatchEntry {
                        partition: PartitionId { topic: TopicId([7; 16]), index: 0 },
                        base_offset: 0,
                        last_offset: 0,
                        max_timestamp_ms: 0,
                    };
                    push_batch(&mut body, &entry, &vec![3; value]);
                }
            }
        }
        prop_assert!(entries(&body).all(|entry| entry.is_ok()));
        let at = at.index(body.len());
        body[at] = value;
        for (range, entry) in entries(&body).flatten() {
            if let Entry::Batch(_, bytes) | Entry::Put { value: bytes, .. } = entry {
                prop_assert_eq!(bytes, &body[range]);
            }
        }
    }
}
