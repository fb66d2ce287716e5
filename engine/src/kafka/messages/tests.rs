//! Every message in every version, against the `kafka-protocol` crate and against garbage.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages as reference;
use kafka_protocol::protocol::{Decodable, Encodable};
use proptest::prelude::*;

use super::*;
use crate::kafka::wire::{DecodeError, Reader, Records, Sampler, Writer};

const MEMORY_MAX: usize = 1 << 20;

/// Samples of each message and version; each fills every array with up to three elements.
const SAMPLE_COUNT: u64 = 12;

fn encode<T: Wire>(message: &T, version: i16, flexible: bool) -> Bytes {
    let mut writer = Writer::new(version, flexible);
    message.write(&mut writer);
    writer.finish().concat()
}

fn decode<T: Wire>(bytes: Bytes, version: i16, flexible: bool) -> Result<T, DecodeError> {
    let mut reader = Reader::new(bytes, version, flexible, MEMORY_MAX);
    let message = T::read(&mut reader)?;
    assert_eq!(reader.remaining(), 0, "a message is read to its end");
    Ok(message)
}

/// What we write the reference reads and writes again the same, and so do we.
fn agree<Ours: Wire, Reference: Decodable + Encodable>(api: ApiKey, versions: &[i16]) {
    for &version in versions {
        let flexible = api.is_flexible(version);
        for seed in 0..SAMPLE_COUNT {
            let what = format!("{api} version {version} seed {seed}");
            let sample = Ours::sample(&mut Sampler(seed));
            let bytes = encode(&sample, version, flexible);

            let mut rest = bytes.clone();
            let theirs = Reference::decode(&mut rest, version).expect(&what);
            assert!(rest.is_empty(), "{what}: the reference leaves {} bytes", rest.len());
            let mut again = BytesMut::new();
            theirs.encode(&mut again, version).expect(&what);
            assert_eq!(bytes, again.freeze(), "{what}");

            let ours: Ours = decode(bytes.clone(), version, flexible).expect(&what);
            assert_eq!(bytes, encode(&ours, version, flexible), "{what}");
        }
    }
}

/// Versions that are served but newer than the reference has them.
fn beyond_the_reference(api: ApiKey, request: bool) -> i16 {
    match (api, request) {
        (ApiKey::OffsetCommit | ApiKey::OffsetFetch, true) => 10,
        (ApiKey::ListOffsets, _) => 11,
        _ => i16::MAX,
    }
}

fn versions(api: ApiKey, request: bool) -> Vec<i16> {
    api.served().filter(|&version| version < beyond_the_reference(api, request)).collect()
}

#[test]
fn every_message_in_every_version_is_the_references_byte_for_byte() {
    macro_rules! run {
        ($api:ident $request:ident $response:ident) => {
            agree::<$request, reference::$request>(ApiKey::$api, &versions(ApiKey::$api, true));
            agree::<$response, reference::$response>(ApiKey::$api, &versions(ApiKey::$api, false));
        };
    }
    for_each_api!(run);
}

#[test]
fn list_offsets_11_is_10_in_other_words() {
    for seed in 0..SAMPLE_COUNT {
        let request = ListOffsetsRequest::sample(&mut Sampler(seed));
        assert_eq!(encode(&request, 10, true), encode(&request, 11, true));
        let response = ListOffsetsResponse::sample(&mut Sampler(seed));
        assert_eq!(encode(&response, 10, true), encode(&response, 11, true));
    }
}

/// Version 10 has the topic's id where version 9 has its name.
#[test]
fn offset_requests_10_name_topics_by_id() {
    let id = tidemill_wal::format::TopicId([7; 16]);
    let topic = OffsetCommitTopic { name: "t".into(), topic_id: id, partitions: Vec::new() };
    assert_eq!(encode(&topic, 9, true)[..], b"\x02t\x01\x00"[..]);
    assert_eq!(encode(&topic, 10, true)[..], [&[7; 16][..], &[1, 0]].concat());
    let topic = OffsetFetchTopic { name: "t".into(), topic_id: id, partition_indexes: Vec::new() };
    assert_eq!(encode(&topic, 9, true)[..], b"\x02t\x01\x00"[..]);
    assert_eq!(encode(&topic, 10, true)[..], [&[7; 16][..], &[1, 0]].concat());
}

#[test]
fn a_field_that_the_version_lacks_is_left_out_and_reads_as_its_default() {
    let partition =
        FetchPartition { current_leader_epoch: 5, fetch_offset: 9, ..Default::default() };
    let old: FetchPartition = decode(encode(&partition, 8, false), 8, false).unwrap();
    assert_eq!((old.current_leader_epoch, old.fetch_offset), (-1, 9));
    let new: FetchPartition = decode(encode(&partition, 9, false), 9, false).unwrap();
    assert_eq!((new.current_leader_epoch, new.fetch_offset), (5, 9));
}

#[test]
fn null_where_the_version_has_none_is_sent_empty() {
    let topic = MetadataTopic { name: None, ..Default::default() };
    let old: MetadataTopic = decode(encode(&topic, 11, true), 11, true).unwrap();
    assert_eq!(old.name.as_deref(), Some(""));
    let new: MetadataTopic = decode(encode(&topic, 12, true), 12, true).unwrap();
    assert_eq!(new.name, None);
}

#[test]
fn unknown_tagged_fields_are_skipped_and_known_ones_read() {
    let mut bytes = vec![0, 0, 0, 1, 0, 0, 0, 2]; // A `CurrentLeader` with two tagged fields.
    bytes.extend([2, 0, 3, b'a', b'b', b'c', 200, 1, 0]);
    let leader: CurrentLeader = decode(bytes.into(), 12, true).unwrap();
    assert_eq!(leader, CurrentLeader { leader_id: 1, leader_epoch: 2 });

    let partition = ProducePartitionResponse { current_leader: leader, ..Default::default() };
    let bytes = encode(&partition, 10, true);
    assert_eq!(decode::<ProducePartitionResponse>(bytes, 10, true).unwrap(), partition);
    // Unset, it takes no bytes but the count of tags.
    let unset = encode(&ProducePartitionResponse::default(), 10, true);
    assert_eq!(unset.last(), Some(&0));
}

#[test]
fn records_are_sent_as_they_are_stored_and_never_null() {
    let batches = [Bytes::from(vec![1; 1000]), Bytes::from(vec![2; 2000])];
    let partition =
        FetchPartitionResponse { records: Records(batches.to_vec()), ..Default::default() };
    let mut writer = Writer::new(12, true);
    partition.write(&mut writer);
    let pieces = writer.finish().pieces;
    assert_eq!(pieces.len(), 4);
    assert_eq!(pieces[1].as_ptr(), batches[0].as_ptr());
    assert_eq!(pieces[2].as_ptr(), batches[1].as_ptr());
    assert_eq!(pieces[3][..], [0]); // No tagged fields.

    let empty = FetchPartitionResponse::default();
    assert!(encode(&empty, 4, false).ends_with(&0_i32.to_be_bytes()));
}

#[test]
fn records_of_a_request_are_a_slice_of_it() {
    let records = Bytes::from(vec![3; 1000]);
    let partition = ProducePartition { index: 1, records: Some(records) };
    let frame = encode(&partition, 9, true);
    let read: ProducePartition = decode(frame.clone(), 9, true).unwrap();
    let slice = read.records.unwrap();
    assert!(frame.as_ptr_range().contains(&slice.as_ptr()));
}

/// Twelve bytes that claim 2,147,483,647 topics: 200 GB for a codec that believes them.
#[test]
fn a_count_larger_than_the_message_is_refused_before_anything_is_allocated() {
    let mut bytes = Vec::new();
    bytes.extend((-1_i16).to_be_bytes()); // transactional_id
    bytes.extend(1_i16.to_be_bytes()); // acks
    bytes.extend(1000_i32.to_be_bytes()); // timeout_ms
    bytes.extend(0x7fff_ffff_i32.to_be_bytes()); // topic_data
    assert_eq!(bytes.len(), 12);
    let mut reader = Reader::new(bytes.into(), 3, false, MEMORY_MAX);
    assert_eq!(ProduceRequest::read(&mut reader), Err(DecodeError::Length));
}

#[test]
fn elements_that_outgrow_the_memory_are_refused() {
    // One byte each on the wire, more than a hundred in memory: a small message, a large array.
    let count = MEMORY_MAX / size_of::<ProduceTopic>() + 1;
    let mut bytes = Vec::new();
    bytes.extend((-1_i16).to_be_bytes());
    bytes.extend(1_i16.to_be_bytes());
    bytes.extend(1000_i32.to_be_bytes());
    bytes.extend((count as i32).to_be_bytes());
    bytes.extend(vec![0; count]);
    let mut reader = Reader::new(bytes.into(), 3, false, MEMORY_MAX);
    assert_eq!(ProduceRequest::read(&mut reader), Err(DecodeError::Memory));
}

/// Whatever the bytes: an answer, no panic, and never more memory than allowed, which the reader
/// counts before it allocates.
fn read_all(bytes: &Bytes) {
    macro_rules! run {
        ($api:ident $request:ident $response:ident) => {
            for version in ApiKey::$api.served() {
                let flexible = ApiKey::$api.is_flexible(version);
                for memory_max in [64, MEMORY_MAX] {
                    let mut reader = Reader::new(bytes.clone(), version, flexible, memory_max);
                    let _ = $request::read(&mut reader);
                    let mut reader = Reader::new(bytes.clone(), version, flexible, memory_max);
                    let _ = $response::read(&mut reader);
                }
            }
        };
    }
    for_each_api!(run);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        read_all(&bytes.into());
    }

    /// Mostly zeros and small numbers get further than noise does.
    #[test]
    fn small_numbers_never_panic(
        bytes in prop::collection::vec(prop_oneof![4 => Just(0), 2 => 0..4_u8, 1 => any::<u8>()], 0..400)
    ) {
        read_all(&bytes.into());
    }

    /// A message with one byte changed or cut short is read or refused.
    #[test]
    fn damaged_messages_never_panic(seed: u64, at: prop::sample::Index, value: u8, cut: bool) {
        macro_rules! run {
            ($api:ident $request:ident $response:ident) => {
                for version in ApiKey::$api.served() {
                    let flexible = ApiKey::$api.is_flexible(version);
                    let sample = $request::sample(&mut Sampler(seed));
                    let mut bytes = encode(&sample, version, flexible).to_vec();
                    if !bytes.is_empty() {
                        let at = at.index(bytes.len());
                        bytes[at] = value;
                        if cut {
                            bytes.truncate(at);
                        }
                    }
                    let mut reader = Reader::new(bytes.into(), version, flexible, MEMORY_MAX);
                    let _ = $request::read(&mut reader);
                }
            };
        }
        for_each_api!(run);
    }
}
