//! Record batches as clients send them, and what readers find in them.

use bytes::Bytes;
use tidemill::batch::{
    BatchBuilder, Compression, HEADER_SIZE, NewRecord, Record, RecordBatch, batches, stamp,
    stamp_append_time,
};
use tidemill_wal::batch::BatchHead;

use super::allocation::bounded;

/// What a decompressed batch may have.
const SIZE_MAX: usize = 1 << 20;

/// What a codec may hold beside what it writes: a window of zstd above all.
const CODEC_SIZE: usize = 24 << 20;

/// One batch, as it is and with length, format and checksum put right.
pub fn batch(data: &[u8]) {
    for batch in batches(Bytes::copy_from_slice(data)).flatten() {
        check_records(&batch);
    }
    check(Bytes::copy_from_slice(data));
    if data.len() < HEADER_SIZE {
        return;
    }
    let mut bytes = data.to_vec();
    let length = (data.len() - 12) as i32;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    bytes[16] = 2;
    let checksum = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
    check(bytes.into());
}

fn check(bytes: Bytes) {
    let Ok(batch) = RecordBatch::check(bytes.clone()) else { return };
    assert_eq!(*batch.bytes(), bytes);
    assert!(batch.record_count() > 0 && batch.base_sequence() >= -1 || batch.producer_id() < 0);
    check_records(&batch);
    check_stamps(&batch);
    check_alike(&batch);
}

/// Records are inside their batch, and no more than it says.
fn check_records(batch: &RecordBatch) {
    let records: Vec<Record> = bounded(2 * SIZE_MAX + CODEC_SIZE, || {
        let Ok(records) = batch.records(SIZE_MAX) else { return Vec::new() };
        // Records may be many and tiny: what is kept of them is not the reader's.
        records.take(1000).map_while(Result::ok).collect()
    });
    for record in &records {
        assert!((batch.base_offset()..=batch.last_offset()).contains(&record.offset));
    }
    assert!(records.len() <= batch.record_count() as usize);
    let is_whole = records.len() < 1000
        && records.len() == batch.record_count() as usize
        && batch.records(SIZE_MAX).is_ok_and(|mut records| records.all(|record| record.is_ok()));
    if is_whole && !records.is_empty() {
        check_built(&records);
    }
}

/// A batch that is built of them holds them.
fn check_built(records: &[Record]) {
    let mut builder = BatchBuilder::new();
    for record in records {
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            record.headers.iter().map(|(key, value)| (&key[..], value.as_deref())).collect();
        builder.push(NewRecord {
            timestamp_ms: record.timestamp_ms,
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers,
        });
    }
    let built = builder.build();
    RecordBatch::check(built.bytes().clone()).expect("what is built may be sent");
    let again: Vec<Record> = built
        .records(usize::MAX)
        .expect("nothing is compressed")
        .map(|record| record.expect("what is built can be read"))
        .collect();
    assert_eq!(again.len(), records.len());
    for (index, (one, two)) in records.iter().zip(&again).enumerate() {
        assert_eq!(two.offset, index as u64);
        assert_eq!(one.timestamp_ms, two.timestamp_ms);
        assert_eq!((&one.key, &one.value, &one.headers), (&two.key, &two.value, &two.headers));
    }
}

/// Its place in the log changes nothing else.
fn check_stamps(batch: &RecordBatch) {
    let mut bytes = batch.bytes().to_vec();
    stamp(&mut bytes, 77, 3);
    let stamped = RecordBatch::check(bytes.clone().into()).expect("the checksum stays right");
    assert_eq!((stamped.base_offset(), stamped.leader_epoch()), (77, 3));
    assert_eq!(stamped.record_count(), batch.record_count());
    stamp_append_time(&mut bytes, 1_700_000_000_000);
    let stamped = RecordBatch::stored_intact(bytes.into()).expect("the checksum is made anew");
    assert!(stamped.is_append_time());
    assert_eq!(stamped.max_timestamp_ms(), 1_700_000_000_000);
    let two = [batch.bytes().clone(), batch.bytes().clone()].concat();
    assert!(batches(two.into()).map(Result::ok).eq([Some(batch.clone()), Some(batch.clone())]));
}

/// The log, which knows only the head, sees the same batch.
fn check_alike(batch: &RecordBatch) {
    let mut bytes = batch.bytes().to_vec();
    stamp(&mut bytes, 5, 0);
    let head = BatchHead::parse(&bytes).expect("a batch that clients may send has a head");
    let batch = RecordBatch::stored(bytes.into()).expect("its length is right");
    assert_eq!((head.base_offset, head.last_offset), (batch.base_offset(), batch.last_offset()));
    assert_eq!((head.size, head.max_timestamp_ms), (batch.size(), batch.max_timestamp_ms()));
    if batch.compression() == Compression::None {
        assert_eq!(
            batch.decompress(SIZE_MAX).map(|bytes| bytes.len()),
            Ok(head.size - HEADER_SIZE)
        );
    }
}
