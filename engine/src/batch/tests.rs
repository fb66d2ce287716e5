//! Batches against the `kafka-protocol` crate, against damage and against garbage.

use std::io::Write;

use bytes::BytesMut;
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    self as reference, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use proptest::prelude::*;

use super::*;

const SIZE_MAX: usize = 1 << 20;

/// A batch of the reference's making, without a producer id.
fn of_the_reference(values: &[&str]) -> Bytes {
    let records: Vec<_> = values
        .iter()
        .enumerate()
        .map(|(index, value)| reference::Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: -1,
            producer_epoch: -1,
            timestamp_type: TimestampType::Creation,
            offset: index as i64,
            sequence: index as i32 - 1,
            timestamp: 1000 + 10 * index as i64,
            key: (index % 2 == 0).then(|| Bytes::from(format!("key {index}"))),
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
            headers: IndexMap::from([
                (StrBytes::from_static_str("a"), Some(Bytes::from_static(b"b"))),
                (StrBytes::from_static_str("null"), None),
            ]),
        })
        .collect();
    let mut bytes = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: reference::Compression::None };
    RecordBatchEncoder::encode(&mut bytes, &records, &options).unwrap();
    bytes.freeze()
}

fn built(values: &[&str]) -> RecordBatch {
    let mut builder = BatchBuilder::new();
    for (index, value) in values.iter().enumerate() {
        let key = format!("key {index}");
        builder.push(NewRecord {
            timestamp_ms: 1000 + 10 * index as i64,
            key: (index % 2 == 0).then_some(key.as_bytes()),
            value: Some(value.as_bytes()),
            headers: &[(b"a", Some(b"b")), (b"null", None)],
        });
    }
    builder.build()
}

#[test]
fn a_built_batch_is_the_references_byte_for_byte() {
    let reference = RecordBatch::check(of_the_reference(&["x", "y"])).unwrap();
    assert_eq!(reference, built(&["x", "y"]));
}

/// The values of these batches; compressed, they are golden bytes of the C libraries and of Java's
/// framing, so that no test depends on building those.
const VALUES: [&str; 4] = ["x", "", TIDES, "z"];
const TIDES: &str = "tide tide tide tide tide tide tide tide tide tide \
    tide tide tide tide tide tide tide tide tide tide \
    tide tide tide tide tide tide tide tide tide tide \
    tide tide tide tide tide tide tide tide tide tide ";
const GZIP: &str = "\
     000000000000000000000092ffffffff02ac82ecae00010000000300000000000003e80000000000000406ff\
     ffffffffffffffffffffffffff000000041f8b08000000000000ffdd8fb10980301405df7f0922d60ef0b1b2\
     b0106b97514c21062b05750a07723821d59f21cd15c735d701a8b6706bcfcb73e25cee678ca2a82930e27368\
     7d0a87d71deb12340398bf0663217c8cf901c83d253d1a010000";
const SNAPPY: &str = "\
     000000000000000000000098ffffffff027514c39d00020000000300000000000003e80000000000000406ff\
     ffffffffffffffffffffffffff0000000482534e41505059000000000100000001000000539a02702c000000\
     0a6b6579203002780402610262086e756c6c012000140201001d1110bc0300280405291c3290037469646520\
     fe0500fe0500ee05000d051de04422003c0601027a0402610262086e756c6c01";
const LZ4: &str = "\
     000000000000000000000094ffffffff025dd974d000030000000300000000000003e80000000000000406ff\
     ffffffffffffffffffffffffff0000000404224d187440bd4c000000f70e2c0000000a6b6579203002780402\
     610262086e756c6c01200014020100110051bc0300280429008f32900374696465200500b007e000f0032200\
     3c0601027a0402610262086e756c6c0124a753fc00000000e39eda42";
const ZSTD: &str = "\
     00000000000000000000007dffffffff0218bd806700040000000300000000000003e80000000000000406ff\
     ffffffffffffffffffffffffff0000000428b52ffd00581d020014032c0000000a6b65792030027804026102\
     62086e756c6c01200014020100bc03002804329003746964652022003c0601027a050035c6c6cf004014e24c\
     351dc5d309";

fn golden(hex: &str) -> RecordBatch {
    let digits = hex.as_bytes().chunks_exact(2);
    let bytes: Bytes = digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    RecordBatch::check(bytes).unwrap()
}

#[test]
fn records_of_every_codec_read_alike() {
    let plain: Vec<_> = built(&VALUES).records(SIZE_MAX).unwrap().map(Result::unwrap).collect();
    let size = built(&VALUES).size() - HEADER_SIZE;
    for (batch, codec) in [
        (built(&VALUES), Compression::None),
        (golden(GZIP), Compression::Gzip),
        (golden(SNAPPY), Compression::Snappy),
        (golden(LZ4), Compression::Lz4),
        (golden(ZSTD), Compression::Zstd),
    ] {
        assert_eq!((batch.compression(), batch.record_count()), (codec, 4));
        let records: Vec<_> = batch.records(size).unwrap().map(Result::unwrap).collect();
        assert_eq!(records, plain, "{codec:?}");
        let too_large = RecordFault::TooLarge { size_max: size - 1 };
        assert_eq!(batch.records(size - 1).unwrap_err(), too_large, "{codec:?}");
    }
    assert_eq!((plain[3].offset, plain[3].timestamp_ms), (3, 1030));
    assert_eq!(plain[0].key.as_deref(), Some(&b"key 0"[..]));
    assert_eq!(plain[1].key, None);
}

#[test]
fn the_reference_reads_what_is_built_and_stamped() {
    let mut bytes = built(&["x", "y", "z"]).into_bytes().to_vec();
    stamp(&mut bytes, 1 << 40, 7);
    stamp_append_time(&mut bytes, 9999);
    let records = RecordBatchDecoder::decode(&mut Bytes::from(bytes.clone())).unwrap().records;
    assert_eq!(records.len(), 3);
    assert_eq!(records[2].offset, (1 << 40) + 2);
    assert_eq!(records[2].partition_leader_epoch, 7);
    assert_eq!(records[2].timestamp_type, TimestampType::LogAppend);
    assert_eq!(records[2].value.as_deref(), Some(&b"z"[..]));

    let batch = RecordBatch::stored(bytes.into()).unwrap();
    assert_eq!((batch.base_offset(), batch.last_offset()), (1 << 40, (1 << 40) + 2));
    assert_eq!((batch.leader_epoch(), batch.max_timestamp_ms()), (7, 9999));
    assert_eq!(batch.base_timestamp_ms(), 1000);
    let records: Vec<_> = batch.records(SIZE_MAX).unwrap().map(Result::unwrap).collect();
    assert_eq!(records[0].offset, 1 << 40);
    assert!(records.iter().all(|record| record.timestamp_ms == 9999));
}

#[test]
fn stamping_a_place_leaves_the_checksum_right() {
    let mut bytes = built(&["x"]).into_bytes().to_vec();
    stamp(&mut bytes, 12345, 6);
    let batch = RecordBatch::check(bytes.into()).unwrap();
    assert_eq!((batch.base_offset(), batch.leader_epoch()), (12345, 6));
}

/// A batch with its header changed and its checksum right again.
fn changed(change: impl FnOnce(&mut Header)) -> Result<RecordBatch, BatchFault> {
    let mut bytes = built(&["x", "y"]).into_bytes().to_vec();
    change(header_mut(&mut bytes));
    seal(&mut bytes);
    RecordBatch::check(bytes.into())
}

#[test]
fn what_a_client_may_not_send_is_refused() {
    use BatchFault::*;
    let size = built(&["x", "y"]).size();
    assert!(changed(|_| ()).is_ok());
    assert_eq!(changed(|header| header.magic = 1), Err(Magic { found: 1 }));
    let length = |length| changed(|header| header.length = I32::new(length));
    assert_eq!(length(size as i32), Err(Length { claimed: size as i64 + 12, size }));
    assert_eq!(length(48), Err(Length { claimed: 60, size }));
    assert_eq!(length(-1), Err(Length { claimed: 11, size }));
    assert_eq!(length(i32::MIN), Err(Length { claimed: i64::from(i32::MIN) + 12, size }));

    let attributes = |found| changed(|header| header.attributes = U16::new(found));
    assert_eq!(attributes(5), Err(Compression { codec: 5 }));
    assert_eq!(attributes(7), Err(Compression { codec: 7 }));
    assert_eq!(attributes(1 << 3), Err(Attributes { found: 1 << 3 }));
    assert_eq!(attributes(1 << 4), Err(Transactional));
    assert_eq!(attributes(1 << 5), Err(Control));
    assert_eq!(attributes(1 << 6), Err(Attributes { found: 1 << 6 }));
    assert_eq!(attributes(1 << 15), Err(Attributes { found: 1 << 15 }));

    let count = |count, last_offset_delta| {
        changed(|header| {
            header.record_count = I32::new(count);
            header.last_offset_delta = I32::new(last_offset_delta);
        })
    };
    for (count_, last_offset_delta) in
        [(0, -1), (-1, -2), (2, 2), (3, 1), (i32::MIN, i32::MAX), (i32::MAX, i32::MAX - 1)]
    {
        let fault = RecordCount { count: count_, last_offset_delta };
        assert_eq!(count(count_, last_offset_delta), Err(fault));
    }

    let producer = |id, epoch, sequence| {
        changed(|header| {
            header.producer_id = I64::new(id);
            header.producer_epoch = I16::new(epoch);
            header.base_sequence = I32::new(sequence);
        })
    };
    assert!(producer(0, 0, 0).is_ok());
    for (epoch, sequence) in [(-1, 0), (0, -1)] {
        let fault = Producer { id: 7, epoch, sequence };
        assert_eq!(producer(7, epoch, sequence), Err(fault));
    }
}

#[test]
fn every_flipped_bit_that_the_checksum_covers_is_found() {
    let good = built(&["x"]).into_bytes();
    for at in 17..good.len() {
        let mut bytes = good.to_vec();
        bytes[at] ^= 1;
        let fault = RecordBatch::check(bytes.into()).unwrap_err();
        assert!(matches!(fault, BatchFault::Checksum { .. }), "byte {at}: {fault}");
    }
}

#[test]
fn a_batch_cut_short_or_followed_by_another_is_not_one_batch() {
    let good = built(&["x"]).into_bytes();
    for size in 0..good.len() {
        assert!(RecordBatch::check(good.slice(..size)).is_err(), "{size} bytes");
    }
    let two = Bytes::from([&good[..], &good[..]].concat());
    let fault = BatchFault::Length { claimed: good.len() as i64, size: two.len() };
    assert_eq!(RecordBatch::check(two), Err(fault));
}

#[test]
fn batches_back_to_back_are_cut_apart_until_one_is_broken() {
    let (one, two) = (built(&["x"]), built(&["y", "z"]));
    let mut bytes = [&one.bytes()[..], two.bytes()].concat();
    let cut: Vec<_> = batches(bytes.clone().into()).collect();
    assert_eq!(cut, [Ok(one.clone()), Ok(two)]);

    bytes.pop();
    let size = bytes.len() - one.size();
    let cut: Vec<_> = batches(bytes.into()).collect();
    let fault = BatchFault::Length { claimed: size as i64 + 1, size };
    assert_eq!(cut, [Ok(one.clone()), Err(fault)]);

    let cut: Vec<_> = batches([&one.bytes()[..], b"?"].concat().into()).collect();
    assert_eq!(cut, [Ok(one), Err(BatchFault::Short { size: 1 })]);
}

#[test]
fn sequences_wrap_from_the_largest_to_zero() {
    let last = |base| {
        let mut builder = BatchBuilder::new().producer(7, 0, base);
        for _ in 0..3 {
            builder.push(NewRecord::default());
        }
        let batch = RecordBatch::check(builder.build().into_bytes()).unwrap();
        assert_eq!((batch.producer_id(), batch.producer_epoch()), (7, 0));
        batch.last_sequence()
    };
    assert_eq!(last(0), 2);
    assert_eq!(last(i32::MAX - 2), i32::MAX);
    assert_eq!(last(i32::MAX - 1), 0);
    assert_eq!(last(i32::MAX), 1);
    assert_eq!(built(&["x"]).last_sequence(), -1);
}

#[test]
fn the_largest_timestamp_is_found_whatever_the_order() {
    let mut builder = BatchBuilder::new();
    for timestamp_ms in [20, 30, 10] {
        builder.push(NewRecord { timestamp_ms, ..NewRecord::default() });
    }
    let batch = builder.build();
    assert_eq!((batch.base_timestamp_ms(), batch.max_timestamp_ms()), (20, 30));
    let records: Vec<_> = batch.records(SIZE_MAX).unwrap().map(Result::unwrap).collect();
    let timestamps: Vec<_> = records.iter().map(|record| record.timestamp_ms).collect();
    assert_eq!(timestamps, [20, 30, 10]);
}

/// A batch that says it has `count` records in `codec`, and whatever bytes for them.
fn with_records(codec: u16, count: i32, records: &[u8]) -> RecordBatch {
    let mut bytes = built(&["x"]).into_bytes()[..HEADER_SIZE].to_vec();
    bytes.extend_from_slice(records);
    let length = I32::new((bytes.len() - UNCOUNTED_SIZE) as i32);
    let header = header_mut(&mut bytes);
    header.length = length;
    header.attributes = U16::new(codec);
    header.record_count = I32::new(count);
    header.last_offset_delta = I32::new(count - 1);
    seal(&mut bytes);
    RecordBatch::stored(bytes.into()).unwrap()
}

#[test]
fn malformed_records_end_the_reading_where_they_are() {
    let good = built(&["x", "y"]).bytes().slice(HEADER_SIZE..);
    let first = |bytes: &[u8], count| -> Vec<_> {
        let batch = with_records(0, count, bytes);
        batch.records(SIZE_MAX).unwrap().map(|record| record.map(|record| record.offset)).collect()
    };
    let malformed = |index| Err(RecordFault::Malformed { index });
    assert_eq!(first(&good, 2), [Ok(0), Ok(1)]);
    assert_eq!(first(&good, 3), [Ok(0), Ok(1), malformed(2)]);
    assert_eq!(first(&good, 1), [Ok(0), malformed(1)]);
    assert_eq!(first(&good[..good.len() - 1], 2), [Ok(0), malformed(1)]);
    assert_eq!(first(&[], 1), [malformed(0)]);
    // Sizes and counts without the bytes for them.
    assert_eq!(first(&[0xfe, 0xff, 0xff, 0xff, 0x0f], 1), [malformed(0)]);
    assert_eq!(first(&[14, 0, 0, 0, 1, 1, 0xfe, 0x0f], 1), [malformed(0)]);
}

#[test]
fn snappy_is_read_raw_and_in_xerial_blocks() {
    let good = built(&["x"]).bytes().slice(HEADER_SIZE..);
    let block = |bytes: &[u8]| snap::raw::Encoder::new().compress_vec(bytes).unwrap();
    let raw = with_records(2, 1, &block(&good));
    assert_eq!(raw.decompress(SIZE_MAX).unwrap(), good);

    let mut framed = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
    for half in [&good[..3], &good[3..]] {
        let block = block(half);
        framed.extend((block.len() as u32).to_be_bytes());
        framed.extend(block);
    }
    assert_eq!(with_records(2, 1, &framed).decompress(SIZE_MAX).unwrap(), good);

    let fault = RecordFault::Compression { codec: Compression::Snappy };
    for size in [8, 15, 17, framed.len() - 1] {
        let cut = with_records(2, 1, &framed[..size]);
        assert_eq!(cut.decompress(SIZE_MAX), Err(fault), "{size} bytes");
    }
}

/// A few bytes that claim or unfold to far more than the limit.
#[test]
fn decompression_bombs_are_refused_at_the_limit() {
    let zeros = vec![0; 4 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&zeros).unwrap();
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(&zeros).unwrap();
    let fastest = ruzstd::encoding::CompressionLevel::Fastest;
    let limit = RecordFault::TooLarge { size_max: SIZE_MAX };
    for (codec, bomb) in [
        (1, gzip.finish().unwrap()),
        (2, snap::raw::Encoder::new().compress_vec(&zeros).unwrap()),
        (3, lz4.finish().unwrap()),
        (4, ruzstd::encoding::compress_to_vec(&zeros[..], fastest)),
    ] {
        assert!(bomb.len() < 300_000);
        assert_eq!(with_records(codec, 1, &bomb).decompress(SIZE_MAX), Err(limit), "{codec}");
    }
    // Snappy begins with the size that it claims.
    let claim = with_records(2, 1, &[0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert_eq!(claim.decompress(SIZE_MAX), Err(limit));
    let claim = with_records(2, 1, &[0xff, 0xff, 0x1f]);
    let fault = RecordFault::Compression { codec: Compression::Snappy };
    assert_eq!(claim.decompress(SIZE_MAX), Err(fault));
}

proptest! {
    #[test]
    fn garbage_is_no_batch_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(RecordBatch::check(bytes.clone().into()).is_err());
        for batch in batches(bytes.into()).flatten() {
            let _ = batch.records(SIZE_MAX).map(|records| records.count());
        }
    }

    #[test]
    fn garbage_inside_a_batch_never_panics(
        codec in 0..8_u16,
        count: i32,
        records in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let batch = with_records(codec, count.max(i32::MIN + 1), &records);
        let _ = RecordBatch::check(batch.bytes().clone());
        let _ = batch.last_sequence();
        if let Ok(records) = batch.records(SIZE_MAX) {
            let mut faults = 0;
            for record in records {
                faults += usize::from(record.is_err());
            }
            prop_assert!(faults <= 1);
        }
    }

    #[test]
    fn what_is_pushed_is_read(
        pushed in prop::collection::vec(
            (any::<i32>(), any::<Option<Vec<u8>>>(), any::<Option<Vec<u8>>>()), 1..20),
        base_offset in 0..u64::MAX / 4,
    ) {
        let mut builder = BatchBuilder::new();
        for (timestamp, key, value) in &pushed {
            builder.push(NewRecord {
                timestamp_ms: i64::from(*timestamp),
                key: key.as_deref(),
                value: value.as_deref(),
                headers: &[],
            });
        }
        prop_assert_eq!(builder.record_count() as usize, pushed.len());
        let mut bytes = builder.build().into_bytes().to_vec();
        stamp(&mut bytes, base_offset, 0);
        let batch = RecordBatch::check(bytes.into()).unwrap();
        let read: Vec<_> = batch.records(SIZE_MAX).unwrap().map(Result::unwrap).collect();
        prop_assert_eq!(read.len(), pushed.len());
        for (index, (record, (timestamp, key, value))) in read.iter().zip(&pushed).enumerate() {
            prop_assert_eq!(record.offset, base_offset + index as u64);
            prop_assert_eq!(record.timestamp_ms, i64::from(*timestamp));
            prop_assert_eq!(record.key.as_deref(), key.as_deref());
            prop_assert_eq!(record.value.as_deref(), value.as_deref());
        }
    }
}
