//! Nothing that a client sends crashes the node, makes it allocate beyond its budget, or stalls
//! another client; against the real process.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemill::kafka::api_key::ApiKey;
use tidemill::kafka::error_code::ErrorCode;
use tidemill::kafka::frame::encode_request;
use tidemill::kafka::messages::{
    ApiVersionsRequest, FetchRequest, FindCoordinatorRequest, InitProducerIdRequest,
    ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic, MetadataRequest,
    MetadataRequestTopic, ProducePartition, ProduceRequest, ProduceTopic,
};
use tidemill_tests::daemon::{Daemon, Options};
use tidemill_tests::peer::{
    FETCH_VERSION, PRODUCE_VERSION, Peer, Witness, batch_at, batch_of, crc32c, fetch_request,
    produce_request,
};

/// A well-behaved client must not wait longer for one record in each partition, there and back. It
/// takes a millisecond alone; the machine may be busy with other tests.
const STALL_MAX: Duration = Duration::from_secs(5);

/// Room for what is no client's doing: code, executors' buffers, a debug build.
const BASE_SIZE: u64 = 150 << 20;

/// A node with small segments, so that it starts soon.
fn options(more: &[&str]) -> Options {
    let small = ["--segment-size", "17MiB", "--segments-max", "3"];
    let arguments = small.iter().chain(more).map(|argument| (*argument).to_owned()).collect();
    Options { arguments, ..Default::default() }
}

fn status_bytes(daemon: &Daemon, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()))
        .expect("the process is up");
    let line = status.lines().find(|line| line.starts_with(name)).expect("Linux says so");
    let kibibytes = line.split_whitespace().nth(1).expect("a number");
    kibibytes.parse::<u64>().expect("a number") << 10
}

/// Without what is only mapped: code, and extents, which the kernel takes back when it likes.
fn memory(daemon: &Daemon) -> u64 {
    status_bytes(daemon, "RssAnon:")
}

fn memory_peak(daemon: &Daemon) -> u64 {
    status_bytes(daemon, "VmHWM:")
}

/// Bytes of unfinished requests that a node of one shard holds.
fn receive_budget_used(daemon: &Daemon) -> u64 {
    const NAME: &str = r#"tidemill_budget_used_bytes{shard="0",budget="receive"} "#;
    let page = daemon.get("/metrics").expect("it answers").body;
    let value = page.lines().find_map(|line| line.strip_prefix(NAME)).expect("it is there");
    value.parse::<f64>().expect("a number") as u64
}

/// The memory budget that the node printed at its start.
fn printed_budget(daemon: &Daemon) -> u64 {
    let log = daemon.log();
    let line = log.iter().find(|line| line.contains("memory budget")).expect("it is printed");
    let (_, size) = line.split_once("memory budget ").expect("it is in the line");
    let digits = size.len() - size.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    let (number, unit) = size.split_at(digits);
    let shift = [("KiB", 10), ("MiB", 20), ("GiB", 30)]
        .iter()
        .find_map(|(name, shift)| unit.starts_with(name).then_some(*shift));
    number.parse::<u64>().expect("a number") << shift.expect("a unit")
}

/// Says that a well-behaved client saw nothing of what went on.
fn assert_unharmed(witness: Witness) {
    let seen = witness.finish();
    eprintln!("the witness made {} rounds, the slowest took {:?}", seen.rounds, seen.slowest);
    assert!(seen.slowest < STALL_MAX, "another client was stalled for {:?}", seen.slowest);
}

/// A frame with this header and body; the header is the old or the flexible one.
fn frame(key: i16, version: i16, is_flexible: bool, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 4];
    frame.extend(key.to_be_bytes());
    frame.extend(version.to_be_bytes());
    frame.extend(1_i32.to_be_bytes());
    frame.extend((-1_i16).to_be_bytes());
    if is_flexible {
        frame.push(0);
    }
    frame.extend(body);
    let size = i32::try_from(frame.len() - 4).expect("small");
    frame[..4].copy_from_slice(&size.to_be_bytes());
    frame
}

/// A client that sends this is closed, and nobody else.
fn assert_closes(daemon: &Daemon, what: &str, bytes: &[u8]) {
    let mut peer = Peer::connect(daemon.kafka());
    // The other side may have closed before all is sent.
    let _ = peer.send_bytes(bytes);
    assert!(peer.waits_for_close(), "{what} leaves the connection open");
}

#[test]
fn garbage_ends_its_connection_with_a_logged_reason() {
    let mut daemon = Daemon::start(options(&[]));
    let witness = Witness::start(daemon.kafka(), 2);
    let served = ApiKey::Metadata.served();
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("HTTP", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), "frame of 1195725856 bytes"),
        ("TLS", vec![0x16, 3, 1, 2, 0, 1, 0, 1], "frame of 369295618 bytes"),
        ("length -1", vec![0xff; 4], "frame of -1 bytes"),
        ("least length", vec![0x80, 0, 0, 0], "frame of -2147483648 bytes"),
        (
            "one byte too much",
            (100 * 1024 * 1024 + 1_i32).to_be_bytes().to_vec(),
            "frame of 104857601 bytes, the limit is 104857600",
        ),
        ("an empty frame", vec![0; 4], "request header"),
        ("half a header", vec![0, 0, 0, 5, 0, 3, 0, 1, 0], "request header"),
        ("SaslHandshake", frame(17, 1, false, b""), "API 17 version 1 is not served"),
        ("AddPartitionsToTxn", frame(24, 3, true, b""), "API 24 version 3 is not served"),
        ("a number of no API", frame(i16::MAX, 0, false, b""), "API 32767 version 0"),
        ("a negative number", frame(-1, 0, false, b""), "API -1 version 0"),
        (
            "a version from the future",
            frame(3, served.end() + 1, true, b""),
            "Metadata version 14 is not served, 0 to 13 are",
        ),
        ("an old version", frame(0, 2, false, b""), "Produce version 2 is not served"),
        ("a negative version", frame(1, -1, false, b""), "Fetch version -1 is not served"),
        ("no body", frame(3, 1, false, b""), "Metadata version 1"),
    ];
    for (what, bytes, reason) in cases {
        assert_closes(&daemon, what, bytes);
        let line = daemon.wait_log(reason);
        assert!(line.contains("closing the connection"), "{what}: {line}");
    }
    assert_unharmed(witness);
    assert!(daemon.terminate().success());
}

#[test]
fn api_versions_of_an_unknown_version_is_answered_and_the_connection_goes_on() {
    let daemon = Daemon::start(options(&[]));
    let mut peer = Peer::connect(daemon.kafka());
    // The body of a version that nobody knows is not even looked at.
    peer.send_bytes(&frame(18, 5, true, &[0xff; 40])).expect("connected");
    let answer = peer.receive_frame().expect("an answer");
    assert_eq!(answer[..4], 1_i32.to_be_bytes(), "the correlation id");
    assert_eq!(answer[4..6], 35_i16.to_be_bytes(), "UNSUPPORTED_VERSION");
    assert_eq!(answer[6..10], (ApiKey::ALL.len() as i32).to_be_bytes(), "what is served, as v0");
    assert_eq!(answer.len(), 10 + 6 * ApiKey::ALL.len());
    let known = peer.ask(4, &ApiVersionsRequest::default());
    assert_eq!(known.error_code, ErrorCode::None);
}

/// Frames that claim more than they hold: in each API, in its oldest and newest version, behind
/// every small number of zero bytes.
fn bombs() -> impl Iterator<Item = (ApiKey, Vec<u8>)> {
    let count = i32::MAX.to_be_bytes();
    let compact = [0xff, 0xff, 0xff, 0xff, 0x0f];
    ApiKey::ALL.iter().flat_map(move |&api| {
        [*api.served().start(), *api.served().end()].into_iter().flat_map(move |version| {
            (0..24).map(move |zeros| {
                let is_flexible = api.is_flexible(version);
                let mut body = vec![0; zeros];
                let pattern = if is_flexible { &compact[..] } else { &count[..] };
                body.extend(pattern.repeat(6));
                (api, frame(api.number(), version, is_flexible, &body))
            })
        })
    })
}

#[test]
fn counts_that_no_frame_can_hold_cost_nothing() {
    let mut daemon = Daemon::start(options(&[]));
    let witness = Witness::start(daemon.kafka(), 2);
    // Produce version 3: no transactional id, acks, timeout, then the count of topics.
    let mut produce = (-1_i16).to_be_bytes().to_vec();
    produce.extend([0, 1, 0, 0, 0, 1]);
    produce.extend(i32::MAX.to_be_bytes());
    assert_eq!(produce.len(), 12);
    assert_closes(&daemon, "a produce of 12 bytes", &frame(0, 3, false, &produce));
    daemon.wait_log("Produce version 3");
    let mut count = 0;
    for (api, bytes) in bombs() {
        let mut peer = Peer::connect(daemon.kafka());
        // Some of these are requests that make sense, and a produce may want no answer: then the
        // one behind it is answered.
        let bytes = [bytes, frame(18, 0, false, b"")].concat();
        peer.send_bytes(&bytes).unwrap_or_else(|error| panic!("{api}: {error}"));
        match peer.receive_frame() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{api}: neither an answer nor the end: {error}; {bytes:x?}"),
        }
        count += 1;
    }
    assert_eq!(count, ApiKey::ALL.len() * 2 * 24);
    let peak = memory_peak(&daemon);
    assert!(peak < BASE_SIZE, "{} MiB at the peak", peak >> 20);
    assert_unharmed(witness);
    assert!(daemon.terminate().success());
}

#[test]
fn a_request_cut_anywhere_ends_with_its_connection_and_is_never_carried_out() {
    let daemon = Daemon::start(options(&[]));
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("cut", 1);
    let request = produce_request(-1, "cut", 0, batch_of(b"whole"));
    let whole = encode_request(PRODUCE_VERSION, 1, None, &request).concat();
    for size in 0..whole.len() {
        let mut cut = Peer::connect(daemon.kafka());
        cut.send_bytes(&whole[..size]).expect("connected");
        cut.stream().shutdown(std::net::Shutdown::Write).expect("connected");
        assert!(cut.waits_for_close(), "open after {size} bytes and the end");
    }
    // The same bytes as whole frames whose bodies break off.
    for size in 14..whole.len() - 1 {
        let mut short = whole[..size].to_vec();
        let claimed = i32::try_from(size - 4).expect("small");
        short[..4].copy_from_slice(&claimed.to_be_bytes());
        assert_closes(&daemon, &format!("a produce of {size} bytes"), &short);
    }
    assert_eq!(peer.list_offset("cut", 0, -1), (ErrorCode::None, 0), "nothing was appended");
    peer.append("cut", 0, batch_of(b"whole"));
    assert_eq!(peer.values("cut", 0, 0), [&b"whole"[..]]);
}

#[test]
fn long_arrays_neither_fill_memory_nor_stall_others() {
    let mut daemon = Daemon::start(options(&[]));
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("wide", 2000);
    let witness = Witness::start(daemon.kafka(), 2);
    let address = daemon.kafka();
    let try_it = |what: &str, bytes: Bytes| {
        let started = Instant::now();
        let mut peer = Peer::connect(address);
        // A produce may want no answer; the request behind it always does.
        let bytes = [&bytes[..], &frame(18, 0, false, b"")].concat();
        let answer = peer.send_bytes(&bytes).and_then(|()| peer.receive_frame());
        let end = match &answer {
            Ok(answer) => format!("an answer of {} bytes", answer.len()),
            Err(error) => error.to_string(),
        };
        eprintln!("{what}: {} bytes, {end}, {:?}", bytes.len(), started.elapsed());
        if let Err(error) = answer {
            assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "{what}: no answer and no end");
        }
    };
    // As many as are taken, and more.
    for count in [40_000, 400_000] {
        let topics = |name: &str| {
            let topic = MetadataRequestTopic { name: Some(name.into()), ..Default::default() };
            Some(vec![topic; count])
        };
        let many = |topics| MetadataRequest {
            topics,
            allow_auto_topic_creation: false,
            ..Default::default()
        };
        let encoded =
            |version, request: &MetadataRequest| encode_request(version, 1, None, request).concat();
        try_it("one topic, many times", encoded(12, &many(topics("wide"))));
        try_it("no name, many times", encoded(12, &many(topics(""))));
        let names = (0..count).map(|number| MetadataRequestTopic {
            name: Some(format!("t{number}").as_str().into()),
            ..Default::default()
        });
        try_it("many names", encoded(12, &many(Some(names.collect()))));

        let partitions =
            (0..count).map(|index| ProducePartition { index: index as i32, records: None });
        let topic = ProduceTopic {
            name: "wide".into(),
            partition_data: partitions.collect(),
            ..Default::default()
        };
        let produce = ProduceRequest { acks: -1, topic_data: vec![topic], ..Default::default() };
        try_it("many partitions", encode_request(PRODUCE_VERSION, 1, None, &produce).concat());

        let mut fetch = fetch_request("wide", 0, 0);
        fetch.topics[0].partitions = vec![fetch.topics[0].partitions[0].clone(); count];
        try_it(
            "one partition, many times",
            encode_request(FETCH_VERSION, 1, None, &fetch).concat(),
        );

        let partitions = (0..count).map(|index| ListOffsetsPartition {
            partition_index: index as i32 % 2000,
            timestamp: 0,
            ..Default::default()
        });
        let topic = ListOffsetsTopic { name: "wide".into(), partitions: partitions.collect() };
        let list = ListOffsetsRequest { topics: vec![topic], ..Default::default() };
        try_it("offsets of many", encode_request(7, 1, None, &list).concat());

        let keys = (0..count).map(|number| format!("g{number}").as_str().into());
        let find =
            FindCoordinatorRequest { coordinator_keys: keys.collect(), ..Default::default() };
        try_it("many groups", encode_request(6, 1, None, &find).concat());
    }

    // Nothing but zeros: as many elements of nothing as the body's count says.
    for &api in ApiKey::ALL {
        let version = *api.served().start();
        let is_flexible = api.is_flexible(version);
        let mut body = vec![0; 4 << 20];
        body[..4].copy_from_slice(&1_000_000_i32.to_be_bytes());
        try_it(&format!("zeros as {api}"), frame(api.number(), version, is_flexible, &body).into());
    }
    let peak = memory_peak(&daemon);
    eprintln!(
        "{} MiB at the peak, the budget is {} MiB",
        peak >> 20,
        printed_budget(&daemon) >> 20
    );
    assert!(peak < printed_budget(&daemon), "{} MiB at the peak", peak >> 20);
    assert_unharmed(witness);
    assert!(daemon.terminate().success());
}

/// A batch like another, with a change; the checksum is made anew.
fn changed(batch: &Bytes, change: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut bytes = batch.to_vec();
    change(&mut bytes);
    let checksum = crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
    bytes.into()
}

#[test]
fn damaged_batches_are_refused_and_the_good_ones_beside_them_are_not() {
    let daemon = Daemon::start(options(&[]));
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("good", 1);
    let good = batch_of(b"a record of some length");
    assert_eq!(changed(&good, |_| ()), good, "the checksum is the right one");
    let flipped = |at: usize| {
        let mut bytes = good.to_vec();
        bytes[at] ^= 1;
        Bytes::from(bytes)
    };
    let size = good.len();
    let cases: &[(&str, Bytes, ErrorCode)] = &[
        ("no bytes", Bytes::new(), ErrorCode::CorruptMessage),
        ("half a header", good.slice(..30), ErrorCode::CorruptMessage),
        ("a record cut off", good.slice(..size - 1), ErrorCode::CorruptMessage),
        ("two batches", [&good[..], &good].concat().into(), ErrorCode::CorruptMessage),
        ("a flipped bit in the value", flipped(size - 3), ErrorCode::CorruptMessage),
        ("a flipped bit in the checksum", flipped(18), ErrorCode::CorruptMessage),
        ("a longer length", flipped(11), ErrorCode::CorruptMessage),
        ("a negative length", changed(&good, |b| b[8] = 0xff), ErrorCode::CorruptMessage),
        ("magic 1", changed(&good, |b| b[16] = 1), ErrorCode::UnsupportedForMessageFormat),
        ("magic 0", changed(&good, |b| b[16] = 0), ErrorCode::UnsupportedForMessageFormat),
        ("a count of 2", changed(&good, |b| b[60] = 2), ErrorCode::InvalidRecord),
        ("a count of 0", changed(&good, |b| b[60] = 0), ErrorCode::InvalidRecord),
        ("a huge count", changed(&good, |b| b[57] = 0x7f), ErrorCode::InvalidRecord),
        ("a huge last offset", changed(&good, |b| b[23] = 0x7f), ErrorCode::InvalidRecord),
        (
            "as many records as can be, in few bytes",
            changed(&good, |b| {
                b[23..27].copy_from_slice(&(i32::MAX - 1).to_be_bytes());
                b[57..61].copy_from_slice(&i32::MAX.to_be_bytes());
            }),
            ErrorCode::InvalidRecord,
        ),
        ("codec 7", changed(&good, |b| b[22] = 7), ErrorCode::UnsupportedCompressionType),
        ("a control batch", changed(&good, |b| b[22] = 0x20), ErrorCode::InvalidRecord),
        ("a transaction's batch", changed(&good, |b| b[22] = 0x10), ErrorCode::InvalidRequest),
    ];
    let mut appended = 0;
    for (what, batch, code) in cases {
        let response = peer.produce("good", 0, batch.clone()).expect("an answer");
        assert_eq!(response.error_code, *code, "{what}: {:?}", response.error_message);
        assert_eq!(response.base_offset, -1, "{what}");
        // The connection goes on, and the log has no hole.
        assert_eq!(peer.append("good", 0, good.clone()), appended, "{what}");
        appended += 1;
    }
    assert_eq!(peer.values("good", 0, 0).len() as i64, appended);
}

#[test]
fn a_batch_above_the_limit_of_its_topic_is_too_large() {
    let daemon = Daemon::start(options(&[]));
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("usual", 1);
    let made = peer.create_topic("small", 1, 1, &[("max.message.bytes", "2000")]);
    assert_eq!(made.error_code, ErrorCode::None);
    let too_large = peer.produce("usual", 0, batch_of(&vec![b'x'; 1 << 20])).expect("an answer");
    assert_eq!(too_large.error_code, ErrorCode::MessageTooLarge);
    let message = too_large.error_message.expect("words");
    assert!(message.contains("max.message.bytes of the topic is 1048576"), "{message:?}");
    peer.append("usual", 0, batch_of(&vec![b'x'; (1 << 20) - 100]));
    let small = peer.produce("small", 0, batch_of(&[b'x'; 2000])).expect("an answer");
    assert_eq!(small.error_code, ErrorCode::MessageTooLarge);
    peer.append("small", 0, batch_of(&[b'x'; 1900]));
}

#[test]
fn an_error_without_acknowledgement_ends_the_connection_and_success_is_silent() {
    let mut daemon = Daemon::start(options(&[]));
    let mut setup = Peer::connect(daemon.kafka());
    setup.make_topic("quiet", 1);
    let mut quiet = Peer::connect(daemon.kafka());
    for number in 0..3 {
        let value = format!("{number}");
        let request = produce_request(0, "quiet", 0, batch_of(value.as_bytes()));
        quiet.send(PRODUCE_VERSION, &request).expect("connected");
    }
    // The only answer is to the request that wants one.
    quiet.ask(4, &ApiVersionsRequest::default());
    assert_eq!(quiet.values("quiet", 0, 0), [&b"0"[..], b"1", b"2"]);
    for (topic, batch) in [("missing", batch_of(b"x")), ("quiet", Bytes::from_static(b"junk"))] {
        let mut quiet = Peer::connect(daemon.kafka());
        let request = produce_request(0, topic, 0, batch);
        quiet.send(PRODUCE_VERSION, &request).expect("connected");
        assert!(quiet.waits_for_close(), "{topic}");
        daemon.wait_log("a produce without acknowledgement failed");
    }
}

#[test]
fn what_is_not_there_yet_is_refused_by_its_name() {
    let daemon = Daemon::start(options(&[]));
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("plain", 1);
    let mut produce = produce_request(-1, "plain", 0, batch_of(b"x"));
    produce.transactional_id = Some("tx".into());
    let response = peer.ask(PRODUCE_VERSION, &produce);
    let refused = &response.responses[0].partition_responses[0];
    assert_eq!(refused.error_code, ErrorCode::InvalidRequest);
    let transactional = InitProducerIdRequest {
        transactional_id: Some("tx".into()),
        transaction_timeout_ms: 60_000,
        ..Default::default()
    };
    let response = peer.ask(5, &transactional);
    assert_eq!((response.error_code, response.producer_id), (ErrorCode::InvalidRequest, -1));

    let cases = [
        (2, &[][..], ErrorCode::InvalidReplicationFactor, "replica"),
        (1, &[("cleanup.policy", "compact")], ErrorCode::InvalidConfig, "cleanup.policy"),
        (1, &[("cleanup.policy", "compact,delete")], ErrorCode::InvalidConfig, "cleanup.policy"),
        (1, &[("flush.messages", "1")], ErrorCode::InvalidConfig, "flush.messages"),
        (1, &[("retention.ms", "soon")], ErrorCode::InvalidConfig, "retention.ms"),
        (1, &[("max.message.bytes", "1000000000")], ErrorCode::InvalidConfig, "max.message.bytes"),
    ];
    for (replicas, configs, code, word) in cases {
        let refused = peer.create_topic("refused", 1, replicas, configs);
        assert_eq!(refused.error_code, code, "{configs:?}");
        let message = refused.error_message.expect("words");
        assert!(message.contains(word), "{configs:?}: {message:?}");
    }
    let topics = peer.metadata("refused").topics;
    assert_eq!(topics[0].error_code, ErrorCode::UnknownTopicOrPartition, "none was made");
}

/// The records of a batch that decompress to this many zeros, as zstd blocks of one repeated byte.
fn zstd_zeros(size: usize) -> Vec<u8> {
    const BLOCK: usize = 128 << 10;
    // Magic; no checksum, no content size; a window of 128 KiB.
    let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3];
    for index in 0..size / BLOCK {
        let is_last = u32::from(index + 1 == size / BLOCK);
        let header = (BLOCK as u32) << 3 | 1 << 1 | is_last;
        bytes.extend(&header.to_le_bytes()[..3]);
        bytes.push(0);
    }
    bytes
}

/// A batch whose records are compressed.
fn compressed(codec: u8, count: i32, records: &[u8]) -> Bytes {
    let mut bytes = batch_at(1000, b"")[..61].to_vec();
    bytes.extend(records);
    let length = i32::try_from(bytes.len() - 12).expect("small");
    changed(&bytes.into(), |bytes| {
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        bytes[22] = codec;
        bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
        bytes[57..61].copy_from_slice(&count.to_be_bytes());
    })
}

#[test]
fn batches_that_decompress_to_gigabytes_neither_fill_memory_nor_stall_others() {
    let mut daemon = Daemon::start(options(&[]));
    let mut peer = Peer::connect(daemon.kafka());
    const PARTITIONS: i32 = 200;
    peer.make_topic("bombs", PARTITIONS);
    // 4 GiB in 128 KiB, and a claim of almost that in five bytes.
    let zstd = compressed(4, 1, &zstd_zeros(4 << 30));
    let snappy = compressed(2, 1, &[0xff, 0xff, 0xff, 0xff, 0x0f]);
    for partition in 0..PARTITIONS {
        let bomb = if partition % 10 == 9 { &snappy } else { &zstd };
        peer.append("bombs", partition, bomb.clone());
    }
    let witness = Witness::start(daemon.kafka(), 2);
    let partitions = (0..PARTITIONS).map(|partition_index| ListOffsetsPartition {
        partition_index,
        timestamp: 500,
        ..Default::default()
    });
    let topic = ListOffsetsTopic { name: "bombs".into(), partitions: partitions.collect() };
    let request = ListOffsetsRequest { topics: vec![topic], ..Default::default() };
    let started = Instant::now();
    let response = peer.ask(7, &request);
    eprintln!("answered after {:?}", started.elapsed());
    for found in &response.topics[0].partitions {
        assert_eq!((found.error_code, found.offset), (ErrorCode::None, 0));
    }
    let peak = memory_peak(&daemon);
    eprintln!("{} MiB at the peak", peak >> 20);
    assert!(peak < BASE_SIZE + (100 << 20), "{} MiB at the peak", peak >> 20);
    assert_unharmed(witness);
    assert!(daemon.terminate().success());
}

#[test]
fn a_thousand_consumers_that_never_read_stay_inside_the_memory_budget() {
    const CONSUMERS: usize = 1000;
    let mut daemon = Daemon::start(options(&[
        "--request-size-max",
        "4MiB",
        "--receive-budget",
        "8MiB",
        "--send-budget",
        "32MiB",
        "--cold-read-budget",
        "8MiB",
    ]));
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("much", 2);
    let batch = batch_of(&vec![b'x'; 1_000_000]);
    let mut largest = 0;
    let mut fill = |megabytes: i64| {
        for number in 0..megabytes {
            peer.append_patiently("much", number as i32 % 2, &batch);
            largest = largest.max(memory(&daemon));
        }
        largest
    };
    fill(20);
    let witness = Witness::start(daemon.kafka(), 2);
    let mut wanted: FetchRequest = fetch_request("much", 0, 0);
    let both = wanted.topics[0].partitions[0].clone();
    wanted.topics[0]
        .partitions
        .push(tidemill::kafka::messages::FetchPartition { partition: 1, ..both });
    wanted.max_bytes = i32::MAX;
    let mut stalled: Vec<Peer> = (0..CONSUMERS).map(|_| Peer::connect(daemon.kafka())).collect();
    let mut largest = 0;
    for round in 0..3 {
        for consumer in &mut stalled {
            // The node may have closed those that hold the most.
            let _ = consumer.send(FETCH_VERSION, &wanted);
        }
        // What the stalled ones hold leaves the log's memory.
        largest = fill(60);
        eprintln!("round {round}: {} MiB", largest >> 20);
    }
    let budget = printed_budget(&daemon);
    assert!(largest < budget, "{} MiB of {} MiB", largest >> 20, budget >> 20);
    assert_unharmed(witness);
    drop(stalled);
    assert!(daemon.terminate().success());
}

#[test]
fn more_connections_than_allowed_are_refused_and_the_others_go_on() {
    const MAX: usize = 20;
    let daemon = Daemon::start(options(&["--connections-max", "20"]));
    let is_served = |peer: &mut Peer| peer.try_ask(4, &ApiVersionsRequest::default()).is_ok();
    // The witness takes one of them.
    let witness = Witness::start(daemon.kafka(), 2);
    let mut served = Vec::new();
    let mut refused = 0;
    for _ in 0..3 * MAX {
        let mut peer = Peer::connect(daemon.kafka());
        if is_served(&mut peer) {
            served.push(peer);
        } else {
            refused += 1;
        }
    }
    assert!(refused >= 2 * MAX, "{refused} were refused");
    assert!(served.len() < MAX, "{} were served beside the witness", served.len());
    assert!(served.len() > MAX / 2, "only {} were served", served.len());
    assert!(served.iter_mut().all(is_served), "those that were let in stay");
    // There is room as soon as one goes.
    let count = served.len();
    drop(served);
    let mut again = 0;
    for _ in 0..1000 {
        let mut peer = Peer::connect(daemon.kafka());
        if is_served(&mut peer) {
            again += 1;
        }
        if again == count {
            break;
        }
    }
    assert_eq!(again, count, "places are given again");
    assert_unharmed(witness);
}

#[test]
fn connections_that_come_and_go_take_no_other_with_them() {
    // Descriptors are numbers that the shards' threads share: one must not end another's socket.
    let one_port = options(&["--advertise", "node"]);
    let mut daemon = Daemon::start(Options { shards: 3, ..one_port });
    let witness = Witness::start(daemon.kafka(), 3);
    let address = daemon.kafka();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..300 {
                    Peer::connect(address).ask(4, &ApiVersionsRequest::default());
                }
            });
        }
    });
    assert_unharmed(witness);
    assert!(daemon.terminate().success());
}

#[test]
fn connections_without_a_whole_request_are_closed_after_the_idle_timeout() {
    let daemon = Daemon::start(options(&["--connection-idle-timeout", "1s"]));
    let witness = Witness::start(daemon.kafka(), 2);
    let closed_after = |peer: &mut Peer| {
        let started = Instant::now();
        assert!(peer.waits_for_close(), "left open");
        started.elapsed()
    };
    let is_timely = |elapsed: Duration| {
        elapsed > Duration::from_millis(500) && elapsed < Duration::from_secs(10)
    };
    let mut silent = Peer::connect(daemon.kafka());
    let mut half = Peer::connect(daemon.kafka());
    half.send_bytes(&[0, 0, 0, 50, 0, 3]).expect("connected");
    let mut used = Peer::connect(daemon.kafka());
    used.ask(4, &ApiVersionsRequest::default());
    for (what, peer) in [("silent", &mut silent), ("half", &mut half), ("used", &mut used)] {
        let mut elapsed = closed_after(peer);
        if what != "silent" {
            // They were opened before the first of them was closed.
            elapsed = elapsed.max(Duration::from_millis(501));
        }
        assert!(is_timely(elapsed), "{what}: after {elapsed:?}");
    }

    // A byte now and then is no request either.
    let drip = Peer::connect(daemon.kafka());
    drip.stream().set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
    let request = produce_request(-1, "witness", 0, batch_of(&[b'x'; 2000]));
    let bytes = encode_request(PRODUCE_VERSION, 1, None, &request).concat();
    let started = Instant::now();
    let mut is_closed = false;
    for byte in bytes.chunks(1) {
        let mut stream = drip.stream();
        is_closed = stream.write_all(byte).is_err() || matches!(stream.read(&mut [0]), Ok(0));
        if is_closed || started.elapsed() > Duration::from_secs(12) {
            break;
        }
    }
    assert!(is_closed, "a byte every 300 ms keeps a connection for {:?}", started.elapsed());

    // A long poll is a request: its connection is not idle.
    let mut waiting = Peer::connect(daemon.kafka());
    let mut poll = fetch_request("witness", 0, 0);
    poll.topics[0].partitions[0].fetch_offset =
        Peer::connect(daemon.kafka()).list_offset("witness", 0, -1).1;
    poll.min_bytes = i32::MAX;
    poll.max_wait_ms = 3000;
    let started = Instant::now();
    assert_eq!(waiting.ask(FETCH_VERSION, &poll).error_code, ErrorCode::None);
    assert!(started.elapsed() > Duration::from_secs(2), "{:?}", started.elapsed());
    assert_unharmed(witness);
}

#[test]
fn half_sent_large_requests_cannot_take_the_memory_of_others() {
    const SENDERS: usize = 160;
    let mut daemon = Daemon::start(options(&[
        "--request-size-max",
        "4MiB",
        "--receive-budget",
        "8MiB",
        "--send-budget",
        "32MiB",
        "--cold-read-budget",
        "8MiB",
        // The senders are spread over both shards.
        "--advertise",
        "node",
    ]));
    let witness = Witness::start(daemon.kafka(), 2);
    let before = memory(&daemon);
    let mut bytes = (3_i32 << 20).to_be_bytes().to_vec();
    bytes.resize(64 << 10, 0);
    let mut slow: Vec<Peer> = (0..SENDERS).map(|_| Peer::connect(daemon.kafka())).collect();
    let mut largest = 0;
    for _ in 0..8 {
        for sender in &mut slow {
            // Closing the one that sends is how the node keeps its budget.
            let _ = sender.send_bytes(&bytes);
        }
        largest = largest.max(memory(&daemon));
    }
    // Both shards have a part in a new topic, and so have read much of what came before.
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("large", 2);
    largest = largest.max(memory(&daemon));
    eprintln!("{} MiB before, {} MiB with half requests", before >> 20, largest >> 20);
    // 80 MiB were sent. Both shards' receive budgets and one request beyond each are 24 MiB, and
    // the allocator may keep as much again. The kernel counts the pages of a process a little
    // late on each core, so they may seem to be fewer than before.
    let more = largest.saturating_sub(before);
    assert!(more < 48 << 20, "{} MiB more", more >> 20);
    // A whole request of a well-behaved client is taken meanwhile, in time if not all of them
    // have to be closed first.
    slow.truncate(SENDERS / 4);
    for partition in [0, 1, 0, 1] {
        peer.append("large", partition, batch_of(&vec![b'x'; 1_000_000]));
    }
    assert_unharmed(witness);
    drop(slow);
    assert!(daemon.terminate().success());
}

#[test]
fn a_client_that_stops_amid_a_request_loses_its_connection_only_to_others_who_wait() {
    let receive = ["--receive-budget", "1MiB", "--request-size-max", "1MiB"];
    let options = options(&[&receive[..], &["--batch-size-max", "1000KiB"]].concat());
    let mut daemon = Daemon::start(Options { shards: 1, ..options });
    let mut peer = Peer::connect(daemon.kafka());
    peer.make_topic("large", 1);
    let batch = batch_of(&vec![b'x'; 1_020_000]);
    let request = produce_request(-1, "large", 0, batch.clone());
    let encoded =
        |client: &str| encode_request(PRODUCE_VERSION, 1, Some(client), &request).concat();
    // Of the largest size, which is the budget's: without its last bytes it still uses that up.
    let request = encoded(&"c".repeat((1 << 20) + 4 - encoded("").len()));
    let (begin, rest) = request.split_at(request.len() - 2);
    let mut slow = Peer::connect(daemon.kafka());
    slow.send_bytes(begin).expect("taken");
    for _ in 0..30 {
        peer.pause("large", 0);
    }
    slow.send_bytes(rest).expect("nobody else waits");
    let (_, response) = slow.receive_next::<ProduceRequest>(PRODUCE_VERSION).expect("kept");
    assert_eq!(response.responses[0].partition_responses[0].error_code, ErrorCode::None);

    // Of two others one may go beyond the budget, and the other one waits.
    slow.send_bytes(begin).expect("taken");
    let mut is_used_up = || {
        peer.pause("large", 0);
        receive_budget_used(&daemon) >= 1 << 20
    };
    assert!((0..200).any(|_| is_used_up()), "it takes what there is");
    let mut others = [(); 2].map(|()| Peer::connect(daemon.kafka()));
    for other in &mut others {
        other.send_bytes(begin).expect("taken");
    }
    assert!(slow.waits_for_close());
    drop(others);
    peer.append("large", 0, batch);
    assert!(daemon.terminate().success());
}
