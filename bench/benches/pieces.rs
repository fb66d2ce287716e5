//! Single pieces of the produce and fetch paths, without disk or network.
//!
//! `cargo bench -p tidemill-bench` measures them; `cargo test` runs each once, so that they stay
//! whole.

#![expect(missing_docs, reason = "criterion's macro writes a public function")]

use std::collections::VecDeque;
use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidemill::batch::{BatchBuilder, NewRecord, RecordBatch};
use tidemill::catalog::CatalogLimits;
use tidemill::command::{CatalogCommand, Command, NewTopic, Produce, Reply, Ticket};
use tidemill::effect::{Effect, Input, Now};
use tidemill::group::GroupLimits;
use tidemill::kafka::frame::{Incoming, encode_request, encode_response};
use tidemill::kafka::messages::{
    FetchPartitionResponse, FetchRequest, FetchResponse, FetchTopicResponse, ProducePartition,
    ProduceRequest, ProduceTopic,
};
use tidemill::kafka::wire::Records;
use tidemill::runtime::ring::ring;
use tidemill::shard::{Shard, ShardOptions};
use tidemill_wal::commit::{Log, LogOptions};
use tidemill_wal::disk::MemoryStorage;
use tidemill_wal::extent::{BatchRef, ExtentSpec, RunData, plan_extent};
use tidemill_wal::format::{
    BatchEntry, FRAME_HEADER_SIZE, FrameFields, FrameHeader, FrameKind, PartitionId, SegmentId,
    Sequence, ShardEpoch, ShardId, TopicId, frame_size,
};
use tidemill_wal::limits::BLOCK_SIZE;
use tidemill_wal::recovery::{ScanStart, scan};

const NOW: Now = Now { monotonic_ms: 0, wall_ms: 1_700_000_000_000 };

/// One small record, and a batch as a busy client sends it.
const RECORD_COUNTS: [usize; 2] = [1, 240];

const RECORD_SIZE: usize = 256;

fn batch(records: usize) -> RecordBatch {
    let mut builder = BatchBuilder::new();
    let value = vec![b'v'; RECORD_SIZE];
    for _ in 0..records {
        let (timestamp_ms, value) = (NOW.wall_ms, Some(&value[..]));
        builder.push(NewRecord { timestamp_ms, value, ..NewRecord::default() });
    }
    builder.build()
}

fn checksum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for size in [256, 4096, 65536] {
        let bytes = vec![7_u8; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::from_parameter(size), &bytes, |bencher, bytes| {
            bencher.iter(|| crc32c::crc32c(black_box(bytes)));
        });
    }
}

fn batch_check(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batch_check");
    for records in RECORD_COUNTS {
        let bytes = batch(records).into_bytes();
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_with_input(BenchmarkId::from_parameter(records), &bytes, |bencher, bytes| {
            bencher.iter(|| RecordBatch::check(black_box(bytes.clone())).expect("good"));
        });
    }
}

fn frame(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    for size in [300, 65_000] {
        let body = vec![7_u8; size];
        let fields = FrameFields {
            kind: FrameKind::Steps,
            shard: ShardId(0),
            shard_epoch: ShardEpoch(1),
            segment: SegmentId(1),
            nonce: 7,
            offset: BLOCK_SIZE as u64,
            sequence: Sequence(2),
            durable: Sequence(1),
            previous: 9,
            clock_ms: NOW.wall_ms,
        };
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::new("encode", size), &body, |bencher, body| {
            bencher.iter(|| FrameHeader::new(black_box(&fields), black_box(body)));
        });
        let mut whole = vec![0; frame_size(size)];
        whole[..FRAME_HEADER_SIZE].copy_from_slice(FrameHeader::new(&fields, &body).encode());
        whole[FRAME_HEADER_SIZE..FRAME_HEADER_SIZE + size].copy_from_slice(&body);
        group.bench_with_input(BenchmarkId::new("check", size), &whole, |bencher, whole| {
            bencher.iter(|| {
                let header = FrameHeader::decode(black_box(whole)).expect("a header");
                header.check_frame(whole).expect("whole");
            });
        });
    }
}

/// A log with room for as many frames as a run may write; nothing is allocated for that.
fn log() -> Log {
    let (segment_size, segment_count_max) = (4 << 30, 1024);
    let start = ScanStart {
        shard: ShardId(0),
        first_segment: SegmentId(1),
        replay_from: Sequence(1),
        known_durable: Sequence(0),
        epoch_min: ShardEpoch(0),
        segment_size,
        segment_count_max,
    };
    let end = scan(&MemoryStorage::new(), &start, &mut |_| Ok(())).expect("an empty disk");
    let mut log =
        Log::resume(LogOptions { shard: ShardId(0), segment_size, segment_count_max }, &end);
    make_ready(&mut log);
    let seal = log.submit_seal(NOW.wall_ms).expect("room");
    log.on_durable(seal.sequence);
    log
}

fn make_ready(log: &mut Log) {
    while log.ready_count() < 2 && log.segment_count() < log.segment_count_max() {
        let id = log.next_segment();
        log.add_ready(id, id.0);
    }
}

fn group_commit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("group_commit");
    let batch = batch(1);
    for count in [1, 100] {
        let mut log = log();
        let mut offset = 0;
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                for _ in 0..count {
                    let entry = BatchEntry {
                        partition: PartitionId { topic: TopicId([1; 16]), index: 0 },
                        base_offset: offset,
                        last_offset: offset,
                        max_timestamp_ms: NOW.wall_ms,
                    };
                    log.append_batch(entry, batch.bytes());
                    offset += 1;
                }
                let write = log.submit(NOW.wall_ms).expect("room");
                log.on_durable(write.sequence);
                make_ready(&mut log);
                write
            });
        });
    }
}

/// A shard whose disk does everything at once and keeps nothing.
struct World {
    shard: Shard,
    inbox: VecDeque<Input>,
    effects: Vec<Effect>,
    replies: u64,
    topic: Option<TopicId>,
}

impl World {
    fn new() -> Self {
        let options = ShardOptions {
            id: ShardId(0),
            shard_count: 1,
            node: [7; 16],
            seed: [1, 2],
            segment_size: 64 << 20,
            segment_count_max: 4,
            catalog: CatalogLimits {
                partition_count_default: 1,
                topic_count_max: 10,
                partition_count_max: 100,
                retention_ms: None,
                retention_bytes: None,
                batch_size_max: 1 << 20,
                batch_size_limit: 1 << 20,
            },
            group: GroupLimits::default(),
            idle_frame_ms: 1000,
            producer_expiry_ms: 1000,
            retention_check_ms: 1000,
            delta_size_max: 64 << 20,
            disk_reserve_size: 0,
            disk_full_retry_ms: 1000,
            scrub_rate: 0,
            settle_sync_size: 1 << 20,
            copied_at_once: usize::MAX,
            readers_max: 10,
            waiting_batches_size_max: 8 << 20,
            topologies: Vec::new(),
            state_budget: u64::MAX,
        };
        let mut disk = MemoryStorage::new();
        let opened = Shard::open(&mut disk, options, NOW, &mut |_| {}).expect("a good disk");
        let (inbox, effects) = (VecDeque::new(), Vec::new());
        let mut world = Self { shard: opened.shard, inbox, effects, replies: 0, topic: None };
        world.shard.start(&mut world.effects);
        let topic = NewTopic {
            name: "a".into(),
            partition_count: Some(1),
            config: Vec::new(),
            automatic: false,
        };
        world.ask(Command::Catalog(CatalogCommand::CreateTopics {
            topics: vec![topic],
            validate_only: false,
        }));
        assert!(world.topic.is_some(), "the topic is made");
        world
    }

    /// Gives a command and performs until nothing happens any more.
    fn ask(&mut self, command: Command) {
        let ticket = Ticket { origin: ShardId(0), id: self.replies };
        self.inbox.push_back(Input::Command { ticket, command });
        loop {
            while let Some(input) = self.inbox.pop_front() {
                self.shard.step(NOW, input, &mut self.effects);
            }
            self.shard.flush(NOW, &mut self.effects);
            if self.effects.is_empty() {
                return;
            }
            for effect in std::mem::take(&mut self.effects) {
                self.perform(effect);
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Write(write) => self.inbox.push_front(Input::Durable(write.sequence)),
            Effect::Disk { job, .. } => {
                self.inbox.push_back(Input::DiskDone { job, result: Ok(()) });
            }
            Effect::Reply { reply, .. } => {
                self.replies += 1;
                match reply {
                    Reply::Catalog(results) => {
                        self.topic = results[0].as_ref().ok().map(|change| change.topic);
                    }
                    Reply::Produce(results) => assert!(results.iter().all(Result::is_ok)),
                    other => panic!("nobody asked for {other:?}"),
                }
            }
            Effect::Plan(files) => self.inbox.push_back(Input::Planned(files.plan())),
            Effect::Routes(_) | Effect::Notice(_) | Effect::Verify(_) => {}
            Effect::Mesh { .. }
            | Effect::Read { .. }
            | Effect::ReadMerge(_)
            | Effect::Call { .. }
            | Effect::Halt(_) => {
                panic!("nobody asked for {effect:?}")
            }
        }
    }
}

/// Command in, durable reply out, all that a shard does between the socket and the disk. The
/// settling that the load brings with it is in.
fn shard_produce(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("shard_produce");
    for records in RECORD_COUNTS {
        let mut world = World::new();
        let topic = world.topic.expect("made");
        let partition = PartitionId { topic, index: 0 };
        let batch = batch(records);
        group.throughput(Throughput::Elements(records as u64));
        group.bench_function(BenchmarkId::from_parameter(records), |bencher| {
            bencher.iter(|| {
                let batches = vec![(partition, batch.clone())];
                world.ask(Command::Produce(Produce { batches }));
            });
        });
    }
}

fn request_decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request_decode");
    for records in RECORD_COUNTS {
        let partition = ProducePartition { index: 1, records: Some(batch(records).into_bytes()) };
        let request = ProduceRequest {
            acks: -1,
            timeout_ms: 30_000,
            topic_data: vec![ProduceTopic {
                name: "a-topic".into(),
                partition_data: vec![partition],
                ..ProduceTopic::default()
            }],
            ..ProduceRequest::default()
        };
        // Without the length.
        let frame = encode_request(9, 7, Some("client"), &request).concat().slice(4..);
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_with_input(BenchmarkId::from_parameter(records), &frame, |bencher, frame| {
            bencher.iter(|| {
                let Ok(Incoming::Request(request)) = Incoming::decode(black_box(frame.clone()))
                else {
                    panic!("it is a request");
                };
                request.decode::<ProduceRequest>(1 << 20).expect("it is whole")
            });
        });
    }
}

fn fetch_encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fetch_encode");
    let batch = batch(RECORD_COUNTS[1]).into_bytes();
    for batches in [1, 16] {
        let partition = FetchPartitionResponse {
            records: Records(vec![batch.clone(); batches]),
            ..FetchPartitionResponse::default()
        };
        let topic = FetchTopicResponse {
            topic: "a-topic".into(),
            partitions: vec![partition],
            ..FetchTopicResponse::default()
        };
        let response = FetchResponse { responses: vec![topic], ..FetchResponse::default() };
        group.throughput(Throughput::Bytes((batches * batch.len()) as u64));
        group.bench_function(BenchmarkId::from_parameter(batches), |bencher| {
            bencher.iter(|| encode_response::<FetchRequest>(12, 7, black_box(&response)));
        });
    }
}

fn mesh_ring(criterion: &mut Criterion) {
    let (mut producer, mut consumer) = ring::<[u64; 4]>(4096);
    let mut group = criterion.benchmark_group("ring");
    group.throughput(Throughput::Elements(64));
    group.bench_function("push_pop_64", |bencher| {
        bencher.iter(|| {
            for number in 0..64 {
                producer.push([number; 4]).expect("room");
            }
            let mut sum = 0;
            while let Some(item) = consumer.pop() {
                sum += item[0];
            }
            sum
        });
    });
}

fn settle(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("settle");
    let bytes: Bytes = batch(RECORD_COUNTS[1]).into_bytes();
    let count = 16;
    let run = RunData {
        partition: PartitionId { topic: TopicId([1; 16]), index: 0 },
        batches: (0..count)
            .map(|number| {
                let base_offset = number * RECORD_COUNTS[1] as u64;
                let mut stamped = bytes.to_vec();
                tidemill::batch::stamp(&mut stamped, base_offset, 0);
                BatchRef {
                    base_offset,
                    last_offset: base_offset + RECORD_COUNTS[1] as u64 - 1,
                    max_timestamp_ms: NOW.wall_ms,
                    bytes: stamped.into(),
                }
            })
            .collect(),
    };
    group.throughput(Throughput::Bytes(run.size()));
    group.bench_function("plan_extent", |bencher| {
        bencher.iter(|| {
            let runs = vec![run.clone()];
            let spec = ExtentSpec { id: 1, generation: 0, level: 0, shard: ShardId(0), runs };
            plan_extent(spec, 4 << 20)
        });
    });
}

criterion_group!(
    pieces,
    checksum,
    batch_check,
    frame,
    group_commit,
    shard_produce,
    request_decode,
    fetch_encode,
    mesh_ring,
    settle
);
criterion_main!(pieces);
