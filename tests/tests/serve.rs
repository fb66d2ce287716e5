//! Starting, watching, stopping and killing the real process.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemill::batch::{BatchBuilder, NewRecord};
use tidemill::kafka::error_code::ErrorCode;
use tidemill::kafka::messages::{
    ApiVersionsRequest, DescribeConfigsRequest, DescribeConfigsResource, HeartbeatRequest,
    InitProducerIdRequest, JoinGroupProtocol, JoinGroupRequest, OffsetCommitPartition,
    OffsetCommitRequest, OffsetCommitTopic, OffsetFetchGroup, OffsetFetchRequest, OffsetFetchTopic,
    ProduceRequest, SyncGroupAssignment, SyncGroupRequest,
};
use tidemill_tests::daemon::{Daemon, Options};
use tidemill_tests::note;
use tidemill_tests::peer::{
    FETCH_VERSION, PRODUCE_VERSION, Peer, batch_of, fetch_request, produce_request,
};

/// Longest that a stop or a start without much to recover may take on a busy machine.
const SOON: Duration = Duration::from_secs(10);

fn options(shards: u16, more: &[&str]) -> Options {
    let small = ["--segment-size", "17MiB", "--segments-max", "3"];
    let arguments = small.iter().chain(more).map(|argument| (*argument).to_owned()).collect();
    Options { shards, arguments, ..Default::default() }
}

fn says(daemon: &Daemon, text: &str) -> bool {
    daemon.log().iter().any(|line| line.contains(text))
}

#[test]
fn both_signals_answer_what_is_open_seal_the_log_and_end_with_0() {
    let mut daemon = Daemon::start(options(2, &[]));
    for (round, signal) in [libc::SIGTERM, libc::SIGINT].into_iter().enumerate() {
        let mut peer = Peer::connect(daemon.kafka());
        if round == 0 {
            peer.make_topic("kept", 2);
        }
        for partition in [0, 1] {
            peer.append("kept", partition, batch_of(b"a record"));
        }
        // A consumer at the end, that would wait for a minute.
        let mut waiting = Peer::connect(daemon.kafka());
        let mut poll = fetch_request("kept", 0, round as i64 + 1);
        poll.max_wait_ms = 60_000;
        waiting.send(FETCH_VERSION, &poll).expect("connected");
        // And one that has connected and says nothing.
        let mut silent = Peer::connect(daemon.kafka());
        peer.ask(4, &ApiVersionsRequest::default());

        let started = Instant::now();
        daemon.signal(signal);
        let status = daemon.wait_exit();
        assert_eq!(status.code(), Some(0), "signal {signal}: {status}");
        assert!(started.elapsed() < SOON, "signal {signal}: after {:?}", started.elapsed());
        assert!(says(&daemon, "stopped cleanly"));
        assert!(silent.waits_for_close());
        let answer = waiting.receive_frame().and_then(|_| waiting.receive_frame());
        assert!(answer.is_err(), "at most one answer, then the end");

        let started = Instant::now();
        daemon.restart();
        assert!(started.elapsed() < SOON, "after signal {signal}: {:?}", started.elapsed());
        assert!(!says(&daemon, "cut the last frame short"), "a sealed log has no torn tail");
        let mut peer = Peer::connect(daemon.kafka());
        for partition in [0, 1] {
            assert_eq!(peer.values("kept", partition, 0).len(), round + 1);
        }
    }
}

#[test]
fn health_follows_the_life_of_the_node() {
    let mut daemon = Daemon::start(options(2, &[]));
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("much", 2);
    let batch = batch_of(&vec![b'x'; 900_000]);
    for number in 0..60 {
        peer.append_patiently("much", number % 2, &batch);
    }
    daemon.kill();
    assert!(daemon.get("/health/live").is_none(), "nobody answers for a dead node");

    daemon.spawn();
    let started = Instant::now();
    // Between the admin port's first answer and the last shard's recovery the node says so.
    let first = loop {
        if let Some(answer) = daemon.get("/health/ready") {
            break answer;
        }
        assert!(started.elapsed() < SOON, "no answer");
        std::thread::yield_now();
    };
    assert_eq!(first.status, 503, "{}", first.body);
    let body: serde_json::Value = serde_json::from_str(&first.body).expect("JSON");
    assert_eq!(body["ready"], false);
    assert_eq!(body["shards"].as_array().map(Vec::len), Some(2), "{body}");
    let live = daemon.get("/health/live").expect("an answer");
    assert_eq!(live.status, 200, "a node that recovers is alive");
    let mut most = 0;
    loop {
        let answer = daemon.get("/health/ready").expect("an answer");
        let body: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
        for shard in body["shards"].as_array().expect("a list") {
            let done = shard["recovery_bytes_done"].as_u64().unwrap_or(0);
            let all = shard["recovery_bytes"].as_u64().unwrap_or(0);
            assert!(done <= all, "progress beyond its end: {body}");
            most = most.max(all);
        }
        if answer.status == 200 {
            assert_eq!(body["ready"], true);
            break;
        }
        assert!(started.elapsed() < SOON, "never ready: {body}");
    }
    assert!(most > 1 << 20, "megabytes were to recover, the page said at most {most} bytes");
    daemon.wait_ready();
    assert_eq!(Peer::connect(daemon.kafka()).values("much", 0, 0).len(), 30);
    let status = daemon.get("/nothing").expect("an answer").status;
    assert_eq!(status, 404);
}

/// All samples of the metrics page by name and labels.
fn metrics(daemon: &Daemon) -> BTreeMap<String, f64> {
    let page = daemon.get("/metrics").expect("an answer");
    assert_eq!(page.status, 200);
    page.body
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
        .collect()
}

#[test]
fn metrics_tell_what_happened() {
    let mut daemon = Daemon::start(options(2, &[]));
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("counted", 2);
    let before = metrics(&daemon);
    for number in 0..10 {
        peer.append("counted", number % 2, batch_of(b"a record"));
    }
    let refused = peer.produce("counted", 0, Bytes::from_static(b"junk")).expect("an answer");
    assert_eq!(refused.error_code, ErrorCode::CorruptMessage);
    let after = metrics(&daemon);
    let grown = |name: &str| {
        let value = |of: &BTreeMap<String, f64>| of.get(name).copied().unwrap_or(0.0);
        value(&after) - value(&before)
    };
    let sum = |name: &str| -> f64 {
        (0..2).map(|shard| grown(&format!("{name}{{shard=\"{shard}\"}}"))).sum()
    };
    assert_eq!(grown("tidemill_requests_total{api=\"Produce\"}"), 11.0);
    assert_eq!(grown("tidemill_request_errors_total{api=\"Produce\",class=\"refused\"}"), 1.0);
    assert_eq!(
        sum("tidemill_commit_latency_seconds_count"),
        sum("tidemill_frame_size_bytes_count")
    );
    assert!(sum("tidemill_frames_total") >= 10.0, "each lone record is a frame");
    for name in [
        "tidemill_ready",
        "tidemill_inbox_depth{shard=\"0\"}",
        "tidemill_wal_used_bytes{shard=\"1\"}",
        "tidemill_wal_capacity_bytes{shard=\"1\"}",
        "tidemill_settle_lag_bytes{shard=\"0\"}",
        "tidemill_tail_bytes{shard=\"0\"}",
        "tidemill_disk_full{shard=\"0\"}",
        "tidemill_disk_free_bytes{directory=\"data\"}",
        "tidemill_connections_open{shard=\"0\"}",
        "tidemill_configuration_hash",
    ] {
        assert!(after.contains_key(name), "no {name} among {:?}", after.keys());
    }
    let fetched = peer.values("counted", 0, 0);
    assert_eq!(fetched.len(), 5);
    drop(peer);
    assert!(daemon.terminate().success());
}

/// A batch of one record of an idempotent producer.
fn idempotent(producer: (i64, i16), sequence: i32) -> Bytes {
    let mut builder = BatchBuilder::new().producer(producer.0, producer.1, sequence);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_millis() as i64;
    let value = sequence.to_string();
    let value = Some(value.as_bytes());
    builder.push(NewRecord { timestamp_ms: now, value, ..Default::default() });
    builder.build().into_bytes()
}

#[test]
fn a_repeated_batch_of_an_idempotent_producer_keeps_its_offset_over_kill_and_stop() {
    let mut daemon = Daemon::start(options(2, &[]));
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("once", 2);
    let request = InitProducerIdRequest { transaction_timeout_ms: 60_000, ..Default::default() };
    let producer = peer.ask(4, &request);
    assert_eq!(producer.error_code, ErrorCode::None);
    let id = (producer.producer_id, producer.producer_epoch);
    let mut next = 0;
    for round in 0..3 {
        for partition in [0, 1] {
            peer.append("once", partition, batch_of(b"somebody else's"));
            for sequence in next..next + 3 {
                peer.append("once", partition, idempotent(id, sequence));
            }
        }
        next += 3;
        match round {
            0 | 1 => daemon.kill(),
            _ => assert!(daemon.terminate().success()),
        }
        daemon.restart();
        peer = Peer::connect(daemon.kafka());
        for partition in [0, 1] {
            let end = peer.list_offset("once", partition, -1);
            for sequence in next - 3..next {
                let offset = i64::from(sequence + sequence / 3 + 1);
                let again = peer.append("once", partition, idempotent(id, sequence));
                assert_eq!(again, offset, "round {round}, sequence {sequence}");
            }
            assert_eq!(peer.list_offset("once", partition, -1), end, "nothing was appended");
            let gap = peer.produce("once", partition, idempotent(id, next + 1)).expect("an answer");
            assert_eq!(gap.error_code, ErrorCode::OutOfOrderSequenceNumber);
        }
    }
    // Ids are never given twice, whatever the end.
    let later = peer.ask(4, &request);
    assert_eq!(later.error_code, ErrorCode::None);
    assert!(later.producer_id > producer.producer_id, "{later:?}");
}

fn join(member: &str) -> JoinGroupRequest {
    let protocol = JoinGroupProtocol { name: "range".into(), metadata: Bytes::from_static(b"m") };
    JoinGroupRequest {
        group_id: "workers".into(),
        session_timeout_ms: 60_000,
        rebalance_timeout_ms: 60_000,
        member_id: member.into(),
        protocol_type: "consumer".into(),
        protocols: vec![protocol],
        ..Default::default()
    }
}

fn commit(member: &str, generation: i32, offset: i64) -> OffsetCommitRequest {
    let partition = OffsetCommitPartition {
        partition_index: 1,
        committed_offset: offset,
        committed_metadata: Some("a note".into()),
        ..Default::default()
    };
    let topic = OffsetCommitTopic {
        name: "kept".into(),
        partitions: vec![partition],
        ..Default::default()
    };
    OffsetCommitRequest {
        group_id: if member.is_empty() { "lonely".into() } else { "workers".into() },
        generation_id_or_member_epoch: generation,
        member_id: member.into(),
        topics: vec![topic],
        ..Default::default()
    }
}

fn committed(peer: &mut Peer, group: &str) -> (i64, String) {
    let topic =
        OffsetFetchTopic { name: "kept".into(), partition_indexes: vec![1], ..Default::default() };
    let group = OffsetFetchGroup {
        group_id: group.into(),
        topics: Some(vec![topic]),
        ..Default::default()
    };
    let response = peer.ask(8, &OffsetFetchRequest { groups: vec![group], ..Default::default() });
    assert_eq!(response.groups[0].error_code, ErrorCode::None);
    let found = &response.groups[0].topics[0].partitions[0];
    assert_eq!(found.error_code, ErrorCode::None);
    (found.committed_offset, found.metadata.as_deref().unwrap_or_default().to_owned())
}

fn retention(peer: &mut Peer, topic: &str) -> String {
    let resource = DescribeConfigsResource {
        resource_type: 2,
        resource_name: topic.into(),
        ..Default::default()
    };
    let request = DescribeConfigsRequest { resources: vec![resource], ..Default::default() };
    let response = peer.ask(4, &request);
    let configs = &response.results[0].configs;
    let found = configs.iter().find(|config| &*config.name == "retention.ms");
    found.and_then(|config| config.value.as_deref()).unwrap_or_default().to_owned()
}

#[test]
fn topics_configurations_groups_and_offsets_survive_kill_and_stop() {
    let mut daemon = Daemon::start(options(2, &[]));
    let mut peer = Peer::connect(daemon.kafka());
    let made = peer.create_topic("kept", 3, 1, &[("retention.ms", "123456789")]);
    assert_eq!(made.error_code, ErrorCode::None);
    peer.append("kept", 1, batch_of(b"a record"));

    let first = peer.ask(9, &join(""));
    assert_eq!(first.error_code, ErrorCode::MemberIdRequired);
    let member = first.member_id.to_string();
    let joined = peer.ask(9, &join(&member));
    assert_eq!(joined.error_code, ErrorCode::None);
    let generation = joined.generation_id;
    let assignment = SyncGroupAssignment {
        member_id: member.as_str().into(),
        assignment: Bytes::from_static(b"all of it"),
    };
    let sync = SyncGroupRequest {
        group_id: "workers".into(),
        generation_id: generation,
        member_id: member.as_str().into(),
        protocol_type: Some("consumer".into()),
        protocol_name: Some("range".into()),
        assignments: vec![assignment],
        ..Default::default()
    };
    assert_eq!(peer.ask(5, &sync).assignment, &b"all of it"[..]);
    for round in 1..=3 {
        for (member, generation) in [(member.as_str(), generation), ("", -1)] {
            let answer = peer.ask(8, &commit(member, generation, round));
            let code = answer.topics[0].partitions[0].error_code;
            assert_eq!(code, ErrorCode::None, "{member:?}");
        }
        match round {
            1 | 2 => daemon.kill(),
            _ => assert!(daemon.terminate().success()),
        }
        daemon.restart();
        peer = Peer::connect(daemon.kafka());
        let topic = &peer.metadata("kept").topics[0];
        assert_eq!((topic.error_code, topic.partitions.len()), (ErrorCode::None, 3));
        assert_eq!(topic.topic_id, made.topic_id, "the same topic as before");
        assert_eq!(retention(&mut peer, "kept"), "123456789");
        assert_eq!(peer.values("kept", 1, 0), [&b"a record"[..]]);
        for group in ["workers", "lonely"] {
            assert_eq!(committed(&mut peer, group), (round, "a note".to_owned()), "{group}");
        }
        let heartbeat = HeartbeatRequest {
            group_id: "workers".into(),
            generation_id: generation,
            member_id: member.as_str().into(),
            ..Default::default()
        };
        assert_eq!(peer.ask(4, &heartbeat).error_code, ErrorCode::None, "still a member");
    }
}

#[test]
fn with_one_broker_for_each_shard_each_port_answers_and_leads_its_own() {
    const SHARDS: u16 = 3;
    let daemon = Daemon::start(options(SHARDS, &["--advertise", "shards"]));
    let first = daemon.kafka().port();
    let port = |index: i32| first + u16::try_from(index).expect("a shard");
    let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Peer::connect(daemon.kafka()).make_topic("spread", 6);
    let mut leaders = [0; SHARDS as usize];
    for shard in 0..i32::from(SHARDS) {
        let mut peer = Peer::connect(address(port(shard)));
        let metadata = peer.metadata("spread");
        let mut brokers: Vec<(i32, u16)> = metadata
            .brokers
            .iter()
            .map(|broker| (broker.node_id, u16::try_from(broker.port).expect("a port")))
            .collect();
        brokers.sort_unstable();
        let all: Vec<(i32, u16)> = (0..i32::from(SHARDS)).map(|id| (id, port(id))).collect();
        assert_eq!(brokers, all, "every port names every broker");
        for partition in &metadata.topics[0].partitions {
            assert_eq!(partition.isr_nodes, [partition.leader_id]);
            let mut leader = Peer::connect(address(port(partition.leader_id)));
            let value = format!("{shard} {}", partition.partition_index);
            let offset =
                leader.append("spread", partition.partition_index, batch_of(value.as_bytes()));
            assert_eq!(offset, i64::from(shard));
            let found = leader.values("spread", partition.partition_index, offset);
            assert_eq!(found, [value.as_bytes()]);
            leaders[partition.leader_id as usize] += 1;
        }
    }
    assert_eq!(leaders, [6; 3], "two partitions for each shard, seen from three ports");
}

/// The counters of the device that holds a directory: writes and flushes.
struct Device(PathBuf);

impl Device {
    /// None if the file system is not on one block device.
    fn of(directory: &Path) -> Option<Device> {
        let device = fs::metadata(directory).expect("there").dev();
        let (major, minor) = (libc::major(device), libc::minor(device));
        let mut path = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
        if path.join("partition").exists() {
            path.pop(); // Flushes are counted for the whole disk.
        }
        path.join("stat").exists().then_some(Device(path))
    }

    fn counts(&self) -> (u64, u64) {
        let stat = fs::read_to_string(self.0.join("stat")).expect("a block device");
        let fields: Vec<u64> =
            stat.split_whitespace().map(|field| field.parse().expect("a number")).collect();
        (fields[4], fields.get(15).copied().unwrap_or(0))
    }

    /// Writes and flushes of the quietest of many tries, for the machine has other things to do.
    fn least(&self, tries: usize, mut act: impl FnMut()) -> (u64, u64) {
        let (mut writes, mut flushes) = (u64::MAX, u64::MAX);
        for _ in 0..tries {
            let before = self.counts();
            act();
            let after = self.counts();
            assert!(after.0 > before.0, "an acknowledgement without a write");
            writes = writes.min(after.0 - before.0);
            flushes = flushes.min(after.1 - before.1);
        }
        (writes, flushes)
    }

    fn has_write_cache(&self) -> bool {
        let cache = fs::read_to_string(self.0.join("queue/write_cache")).unwrap_or_default();
        cache.trim() == "write back"
    }
}

/// A file of one block whose every write is direct and synced, and changes no metadata.
struct Overwritten {
    file: fs::File,
    blocks: Vec<u8>,
    start: usize,
}

impl Overwritten {
    fn beside(directory: &Path) -> Overwritten {
        use std::os::unix::fs::OpenOptionsExt;
        let path = directory.join("overwritten");
        fs::write(&path, [0; 4096]).expect("room");
        fs::File::open(&path).and_then(|file| file.sync_all()).expect("a disk");
        let mut options = fs::OpenOptions::new();
        options.write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC);
        let blocks = vec![1; 8192];
        let start = blocks.as_ptr().align_offset(4096);
        Overwritten { file: options.open(path).expect("there"), blocks, start }
    }

    fn write(&self) {
        use std::os::unix::fs::FileExt;
        let block = &self.blocks[self.start..][..4096];
        self.file.write_all_at(block, 0).expect("a disk");
    }
}

#[test]
fn a_lone_record_is_one_write_and_one_flush_and_many_share_theirs() {
    for sync in ["dsync", "fdatasync"] {
        // Idle frames are counted apart: there are none while this runs.
        let more = ["--sync", sync, "--idle-frame-delay", "1m"];
        let mut daemon = Daemon::start(options(1, &more));
        let Some(device) = Device::of(daemon.data_dir()) else {
            note::skipped("writes and flushes of the device", "no single block device");
            return;
        };
        let mut peer = Peer::connect(daemon.kafka());
        peer.make_topic("lone", 1);
        let (writes, flushes) =
            device.least(300, || _ = peer.append("lone", 0, batch_of(b"a lone record")));
        // Kernels differ in whether a flush counts as a write too: so a file that is written
        // through tells what one durable write is here.
        let file = Overwritten::beside(daemon.data_dir());
        assert_eq!((writes, flushes), device.least(300, || file.write()), "{sync}");
        assert_eq!(flushes, u64::from(device.has_write_cache()), "{sync}");
        assert!(writes - flushes <= 1, "{sync}: {writes} writes");

        // Many at once share frames.
        const MANY: usize = 500;
        let frames = |daemon: &Daemon| metrics(daemon)["tidemill_frames_total{shard=\"0\"}"];
        let before = frames(&daemon);
        let request: ProduceRequest = produce_request(-1, "lone", 0, batch_of(b"one of many"));
        let mut crowd: Vec<Peer> = (0..20).map(|_| Peer::connect(daemon.kafka())).collect();
        for _ in 0..MANY / crowd.len() {
            for peer in &mut crowd {
                peer.send(PRODUCE_VERSION, &request).expect("connected");
            }
        }
        for peer in &mut crowd {
            for _ in 0..MANY / 20 {
                peer.receive_frame().expect("an answer");
            }
        }
        let frames = frames(&daemon) - before;
        assert!(frames < MANY as f64 / 2.0, "{sync}: {frames} frames for {MANY} records");
        assert_eq!(peer.values("lone", 0, 0).len(), 300 + MANY);
        drop((peer, crowd));
        assert!(daemon.terminate().success());
    }
}

#[test]
fn an_idle_node_writes_one_small_frame_after_a_burst_and_then_nothing() {
    let daemon = Daemon::start(options(1, &["--idle-frame-delay", "1ms"]));
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("burst", 1);
    let idle = |daemon: &Daemon| metrics(daemon)["tidemill_idle_frames_total{shard=\"0\"}"];
    // The topic's own burst.
    peer.ask(FETCH_VERSION, &fetch_request("burst", 0, 0));
    for _ in 0..3 {
        let before = idle(&daemon);
        peer.append("burst", 0, batch_of(b"a record"));
        // A long poll that ends with nothing: time passes without any work to write.
        let end = peer.list_offset("burst", 0, -1).1;
        peer.ask(FETCH_VERSION, &fetch_request("burst", 0, end));
        assert_eq!(idle(&daemon) - before, 1.0);
        peer.ask(FETCH_VERSION, &fetch_request("burst", 0, end));
        assert_eq!(idle(&daemon) - before, 1.0, "an idle node stays idle");
    }
}
