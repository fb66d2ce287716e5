//! Where the fuzzers begin: requests of every API and version, and files that a shard wrote.

use bytes::Bytes;
use tidemill::batch::{BatchBuilder, NewRecord, stamp};
use tidemill::config::Config;
use tidemill::kafka::api_key::ApiKey;
use tidemill::kafka::frame::{Incoming, encode_request};
use tidemill::kafka::messages::*;
use tidemill_wal::disk::{MemoryStorage, Storage};
use tidemill_wal::extent::{BatchRef, ExtentSpec, RunData, plan_extent};
use tidemill_wal::format::{
    FRAME_HEADER_SIZE, FileName, FrameHeader, PartitionId, ShardId, TopicId,
};
use tidemill_wal::limits::BLOCK_SIZE;
use tidemill_wal::segment::{NameKind, parse_name};

use super::extents;
use super::requests::{MEMORY_MAX, for_each_api};
use super::state::END_SIZE;
use crate::sim::random::Random;
use crate::tail::recorder::Recorder;

/// Larger ones teach a fuzzer nothing.
const SIZE_MAX: usize = 4096;

/// How many files of one kind are taken from a shard.
const FILES_EACH: usize = 6;

/// One input with the name of its target and its own.
pub type Seed = (&'static str, String, Vec<u8>);

/// Every seed; always the same ones.
pub fn all() -> Vec<Seed> {
    let mut seeds = requests();
    seeds.extend(batches());
    seeds.extend(logs());
    seeds.extend(small_extents());
    for seed in [1, 2, 3, 5] {
        let mut recorder = Recorder::new(seed, 0);
        recorder.run().expect("the shard runs");
        seeds.extend(files(seed, recorder.storage()));
    }
    let settings: String = Config::default()
        .values()
        .iter()
        .map(|(key, value)| format!("{key} = \"{value}\"\n"))
        .collect();
    let default = Config::default_file();
    let lines: Vec<&str> = default.lines().filter(|line| line.starts_with('#')).collect();
    let uncommented: String = (lines.iter())
        .filter(|line| line.contains(" = "))
        .map(|line| format!("{}\n", &line[1..]))
        .collect();
    seeds.push(("configuration", "values".into(), settings.into()));
    seeds.push(("configuration", "assignments".into(), uncommented.into()));
    seeds.push(("configuration", "table".into(), b"[node]\nshards = 0x10\nsync = ['a']\n".into()));
    seeds.retain(|(_, _, bytes)| bytes.len() <= SIZE_MAX);
    seeds
}

/// Any message that a reader accepts, of the most elements that a few random tries give.
fn any<R: Request + Default>(version: i16, random: &mut Random) -> R {
    let mut best = R::default();
    let mut size = 0;
    for _ in 0..200 {
        let count = random.between(20, 300);
        let likely_max = random.choose(&[2, 3, 4]);
        let body: Bytes = (0..count)
            .map(|_| match random.below(10) {
                0 => b"tidemill"[random.below(8) as usize],
                _ => random.below(likely_max) as u8,
            })
            .collect();
        let incoming = tidemill::kafka::frame::RequestFrame {
            api: R::API,
            version,
            correlation_id: 7,
            client_id: None,
            body,
        };
        if let Ok(message) = incoming.decode::<R>(MEMORY_MAX) {
            let encoded = encode_request(version, 7, None, &message).size();
            if encoded > size {
                (best, size) = (message, encoded);
            }
        }
    }
    best
}

fn requests() -> Vec<Seed> {
    let mut seeds: Vec<Seed> = Vec::new();
    let mut random = Random::new(1);
    let mut add = |api: ApiKey, version: i16, name: &str, frame: Bytes| {
        let frame = frame.slice(4..);
        assert!(matches!(Incoming::decode(frame.clone()), Ok(Incoming::Request(_))));
        seeds.push(("request", format!("{api}-{version:02}-{name}"), frame.to_vec()));
        let length = (frame.len() as u16).to_be_bytes();
        let stream = [&length[..], &frame].concat();
        seeds.push(("session", format!("{api}-{version:02}-{name}"), stream));
    };
    macro_rules! run {
        ($($api:ident $request:ident,)+) => {
            $(for version in ApiKey::$api.served() {
                let empty = encode_request(version, 7, Some("tide"), &$request::default());
                add(ApiKey::$api, version, "empty", empty.concat());
                let any: $request = any(version, &mut random);
                add(ApiKey::$api, version, "any", encode_request(version, 7, None, &any).concat());
            })+
        };
    }
    for_each_api!(run);
    seeds
}

fn batches() -> Vec<Seed> {
    let mut one = BatchBuilder::new();
    one.push(NewRecord {
        timestamp_ms: 1_700_000_000_000,
        value: Some(b"tide"),
        ..Default::default()
    });
    let mut three = BatchBuilder::new().producer(7, 0, 3);
    for number in 0..3 {
        let headers: [(&[u8], Option<&[u8]>); 2] = [(b"h", Some(b"v")), (b"", None)];
        three.push(NewRecord {
            timestamp_ms: 1000 - number,
            key: Some(b"key"),
            value: (number != 1).then_some(b"value".as_slice()),
            headers: &headers,
        });
    }
    // The records of one small batch, as each codec of the clients packs them.
    let records = b"\x14\0\0\0\x01\x08tide\0";
    let packed: [(u8, &[u8], &str); 5] = [
        (1, b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x13a```\xe4()\xcaLI\x65\x00\x00", "gzip"),
        (2, b"\x0b\x28\x14\0\0\0\x01\x08tide\0", "snappy"),
        (
            2,
            b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01\0\0\0\x0d\x0b\x28\x14\0\0\0\x01\x08tide\0",
            "xerial",
        ),
        (3, b"\x04\"M\x18`@\x82\x0b\0\0\x80\x14\0\0\0\x01\x08tide\0\0\0\0\0", "lz4"),
        (4, b"(\xb5/\xfd \x0bY\0\0\x14\0\0\0\x01\x08tide\0", "zstd"),
    ];
    let plain = one.clone().build();
    let mut seeds: Vec<Seed> = vec![
        ("batch", "one".into(), plain.bytes().to_vec()),
        ("batch", "three".into(), three.build().bytes().to_vec()),
        ("batch", "two-batches".into(), [&plain.bytes()[..], plain.bytes()].concat()),
    ];
    for (codec, bytes, name) in packed {
        let mut batch = plain.bytes()[..61].to_vec();
        batch[22] = codec;
        batch.extend_from_slice(bytes);
        seeds.push(("batch", name.into(), batch));
    }
    let mut batch = plain.bytes()[..61].to_vec();
    batch.extend_from_slice(records);
    seeds.push(("batch", "plain".into(), batch));
    seeds
}

/// Extents of few batches; those of a shard are larger.
fn small_extents() -> Vec<Seed> {
    let shapes: [&[(u8, u32, u64)]; 3] =
        [&[(1, 0, 1)], &[(1, 0, 3), (1, 1, 2)], &[(1, 0, 2), (2, 0, 1), (2, 7, 2)]];
    let mut seeds: Vec<Seed> = Vec::new();
    for (index, shape) in shapes.into_iter().enumerate() {
        let runs = shape.iter().map(|&(topic, partition, count)| RunData {
            partition: PartitionId { topic: TopicId([topic; 16]), index: partition },
            batches: (0..count).map(|number| batch_ref(10 + 2 * number)).collect(),
        });
        let spec =
            ExtentSpec { id: 9, generation: 1, level: 0, shard: ShardId(3), runs: runs.collect() };
        let (extent, ops) = plan_extent(spec, 1 << 20);
        let mut storage = MemoryStorage::new();
        for op in ops {
            storage.perform(&op).expect("memory takes all");
        }
        seeds.push(("extent", format!("small-{index}"), extent_seed(&storage, &extent.file)));
    }
    seeds
}

fn batch_ref(base_offset: u64) -> BatchRef {
    let mut batch = BatchBuilder::new();
    let timestamp_ms = 1000 + base_offset as i64;
    batch.push(NewRecord { timestamp_ms, value: Some(b"tide"), ..NewRecord::default() });
    let mut bytes = batch.build().bytes().to_vec();
    stamp(&mut bytes, base_offset, 0);
    BatchRef {
        base_offset,
        last_offset: base_offset,
        max_timestamp_ms: timestamp_ms,
        bytes: bytes.into(),
    }
}

/// The header without its padding, and what follows its block.
fn extent_seed(storage: &MemoryStorage, file: &FileName) -> Vec<u8> {
    let bytes = storage.file(file).expect("it was written");
    [&bytes[..extents::HEADER_SIZE], &trim(&bytes[BLOCK_SIZE..])].concat()
}

/// Without the zeros at the end.
fn trim(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    bytes[..end].to_vec()
}

/// Programs for the target `log`.
fn logs() -> Vec<Seed> {
    let programs: [(&str, &[u8]); 10] = [
        ("seal-and-steps", b"\x04\x02\0\0\x05hello\0\x04tide\x01\0"),
        ("two-segments", b"\x04\x02\0\0\x05hello\x06\0\x04tide\x01\0"),
        ("recycled", b"\x03\x02\0\0\x05hello\x04\x08anything\x06\0\x04tide"),
        ("missing-frame", b"\x04\x02\0\0\x05hello\x03\0\0\x02\x01\0"),
        ("old-frame", b"\0\x02\0\0\x05hello\x03\0\0\xfe"),
        ("other-nonce", b"\0\x02\0\0\x05hello\x03\0\x02\x09"),
        ("damaged-body", b"\0\x02\0\0\x05hello\x05\x10\x50\x01"),
        ("damaged-header", b"\x04\x02\0\0\x05hello\0\x04tide\x05\x10\x04\x01"),
        ("large-frames", b"\x04\x02\0\0\x04big!\0\x04big!\0\x04big!\x06\0\x04big!\x02\0"),
        ("newest-epoch", b"\0\x02\0\x03\0\x07\0"),
    ];
    programs.iter().map(|(name, program)| ("log", (*name).to_owned(), program.to_vec())).collect()
}

/// Files of a shard, in the form that their targets take.
fn files(seed: u64, storage: &MemoryStorage) -> Vec<Seed> {
    let mut seeds: Vec<Seed> = Vec::new();
    for name in storage.names() {
        let bytes = storage.file(name).expect("it has a name");
        let mut add = |target: &'static str, bytes: Vec<u8>| {
            let is_small = bytes.len() <= SIZE_MAX;
            let known = seeds.iter().filter(|(known, _, _)| *known == target).count();
            if is_small && known < FILES_EACH {
                seeds.push((target, format!("{seed}-{known}"), bytes));
            }
        };
        // A file that is still being written has fewer; it is no seed.
        if bytes.len() < 2 * BLOCK_SIZE && !name.0.starts_with("manifest-") {
            continue;
        }
        let text = &*name.0;
        if text.starts_with("manifest-") {
            add("manifest", trim(bytes));
        } else if text.ends_with(".dlt") || text.ends_with(".snap") {
            let (blocks, footer) = bytes.split_at(bytes.len() - BLOCK_SIZE);
            let payload = trim(&blocks[BLOCK_SIZE..]);
            add("state_file", [&bytes[..END_SIZE], &footer[..END_SIZE], &payload].concat());
        } else if text.ends_with(".ext") {
            add("extent", extent_seed(storage, name));
        } else if let NameKind::Segment(_) = parse_name(name) {
            let mut at = BLOCK_SIZE;
            while let Some(Ok(header)) = bytes.get(at..).map(FrameHeader::decode) {
                if let Some(frame) = bytes.get(at..at + header.frame_size()) {
                    add("entries", frame[FRAME_HEADER_SIZE..][..header.body_size()].to_vec());
                }
                at += header.frame_size();
            }
        }
    }
    seeds
}
