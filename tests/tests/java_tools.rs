//! Kafka's own command-line tools of the Java distribution, as an administrator types them.

use std::time::Duration;

use tidemill_tests::clients::{Client, Clients, Consume, Event, JavaTools, Produce};
use tidemill_tests::daemon::{Daemon, Options, counting_binary};
use tidemill_tests::peer::{Peer, batch_of};

const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn kafka_topics_creates_describes_alters_and_deletes() {
    let daemon = Daemon::start(Options::default());
    let mut tools = JavaTools::start(daemon.kafka());

    let create =
        "kafka-topics --create --topic orders --partitions 3 --config retention.ms=3600000";
    let (status, output) = tools.run(create);
    assert_eq!((status, output.as_str()), (0, "Created topic orders.\n"));
    let (status, output) = tools.run("kafka-topics --create --topic orders");
    assert_ne!(status, 0);
    assert!(output.contains("Topic 'orders' already exists"), "{output}");

    let (status, output) = tools.run("kafka-topics --list --exclude-internal");
    assert_eq!((status, output.as_str()), (0, "orders\n"));
    let (status, output) = tools.run("kafka-topics --describe --topic orders");
    assert_eq!(status, 0, "{output}");
    let head = output.lines().next().unwrap_or_default();
    for part in
        ["Topic: orders", "PartitionCount: 3", "ReplicationFactor: 1", "retention.ms=3600000"]
    {
        assert!(head.contains(part), "{part:?} is not in {head:?}");
    }
    assert_eq!(output.matches("\tPartition: ").count(), 3, "{output}");
    assert!(!output.contains("Leader: none"), "{output}");

    let (status, output) = tools.run("kafka-topics --alter --topic orders --partitions 5");
    assert_eq!(status, 0, "{output}");
    let (_, output) = tools.run("kafka-topics --describe --topic orders");
    assert!(output.contains("PartitionCount: 5"), "{output}");
    let (status, output) = tools.run("kafka-topics --alter --topic orders --partitions 4");
    assert_ne!(status, 0, "partitions cannot be taken away: {output}");

    let (status, output) = tools.run("kafka-topics --delete --topic orders");
    assert_eq!(status, 0, "{output}");
    let (status, output) = tools.run("kafka-topics --list --exclude-internal");
    assert_eq!((status, output.trim()), (0, ""));
    let (status, _) = tools.run("kafka-topics --describe --topic orders");
    assert_ne!(status, 0, "a deleted topic cannot be described");
}

#[test]
fn a_topic_that_cannot_be_kept_as_asked_is_refused() {
    let daemon = Daemon::start(Options::default());
    let mut tools = JavaTools::start(daemon.kafka());
    for (arguments, told) in [
        ("--topic a --replication-factor 2", "replication factor"),
        ("--topic b --config no.such.setting=1", "no.such.setting"),
        ("--topic c --config retention.ms=soon", "retention.ms"),
        ("--topic bad/name", "bad/name"),
        ("--topic d --partitions 0", "partitions"),
    ] {
        let (status, output) = tools.run(&format!("kafka-topics --create {arguments}"));
        assert_ne!(status, 0, "{arguments}");
        assert!(output.to_lowercase().contains(told), "{arguments}: {output}");
    }
    assert_eq!(tools.run("kafka-topics --list --exclude-internal").1.trim(), "");
}

#[test]
fn kafka_configs_alters_and_describes() {
    let daemon = Daemon::start(Options::default());
    let mut tools = JavaTools::start(daemon.kafka());
    let topic = "--entity-type topics --entity-name orders";
    tools.run("kafka-topics --create --topic orders");

    let add = "--add-config retention.ms=7200000,max.message.bytes=65536";
    let (status, output) = tools.run(&format!("kafka-configs --alter {topic} {add}"));
    assert_eq!(status, 0, "{output}");
    let (status, output) = tools.run(&format!("kafka-configs --describe {topic}"));
    assert_eq!(status, 0, "{output}");
    assert!(output.contains("retention.ms=7200000"), "{output}");
    assert!(output.contains("max.message.bytes=65536"), "{output}");

    let delete = "--delete-config retention.ms";
    let (status, output) = tools.run(&format!("kafka-configs --alter {topic} {delete}"));
    assert_eq!(status, 0, "{output}");
    let (_, output) = tools.run(&format!("kafka-configs --describe {topic}"));
    assert!(!output.contains("retention.ms=7200000"), "{output}");
    assert!(output.contains("max.message.bytes=65536"), "{output}");

    let wrong = "--add-config no.such.setting=1";
    let (status, output) = tools.run(&format!("kafka-configs --alter {topic} {wrong}"));
    assert_ne!(status, 0, "{output}");
    assert!(output.contains("no.such.setting"), "the refused setting is named: {output}");

    // What user interfaces ask first.
    let (_, output) = tools.run("kafka-broker-api-versions");
    let id = output.split_once("(id: ").and_then(|(_, rest)| rest.split(' ').next());
    let broker = format!("--entity-type brokers --all --entity-name {}", id.expect("an id"));
    let (status, output) = tools.run(&format!("kafka-configs --describe {broker}"));
    assert_eq!(status, 0, "{output}");
}

#[test]
fn kafka_consumer_groups_lists_describes_resets_and_deletes() {
    let daemon = Daemon::start(Options::default());
    let mut tools = JavaTools::start(daemon.kafka());
    tools.run("kafka-topics --create --topic orders --partitions 2");
    read_and_commit(&daemon, 100);

    let (status, output) = tools.run("kafka-consumer-groups --list");
    assert_eq!((status, output.trim()), (0, "readers"));
    let (status, output) = tools.run("kafka-consumer-groups --describe --group readers");
    assert_eq!(status, 0, "{output}");
    assert_eq!(offsets(&output), ["orders 0 50 50 0", "orders 1 50 50 0"], "{output}");
    let (status, output) = tools.run("kafka-consumer-groups --describe --group readers --state");
    assert_eq!(status, 0, "{output}");
    assert!(output.contains("Empty"), "{output}");

    let reset =
        "kafka-consumer-groups --reset-offsets --group readers --topic orders --to-offset 20";
    let (status, output) = tools.run(&format!("{reset} --execute"));
    assert_eq!(status, 0, "{output}");
    let (_, output) = tools.run("kafka-consumer-groups --describe --group readers");
    assert_eq!(offsets(&output), ["orders 0 20 50 30", "orders 1 20 50 30"], "{output}");

    let forget = "kafka-consumer-groups --delete-offsets --group readers --topic orders:1";
    let (status, output) = tools.run(forget);
    assert_eq!(status, 0, "{output}");
    let (_, output) = tools.run("kafka-consumer-groups --describe --group readers");
    assert_eq!(offsets(&output), ["orders 0 20 50 30"], "{output}");

    let (status, output) = tools.run("kafka-consumer-groups --delete --group readers");
    assert_eq!(status, 0, "{output}");
    let (_, output) = tools.run("kafka-consumer-groups --list");
    assert_eq!(output.trim(), "");
}

#[test]
fn offsets_records_and_sizes_are_told_and_deleted() {
    let daemon = Daemon::start(Options::default());
    let mut tools = JavaTools::start(daemon.kafka());
    tools.run("kafka-topics --create --topic orders --partitions 2");
    read_and_commit(&daemon, 100);

    let at = |tools: &mut JavaTools, time: &str| {
        let (status, output) =
            tools.run(&format!("kafka-get-offsets --topic orders --time {time}"));
        assert_eq!(status, 0, "{output}");
        output
    };
    assert_eq!(at(&mut tools, "latest"), "orders:0:50\norders:1:50\n");
    assert_eq!(at(&mut tools, "earliest"), "orders:0:0\norders:1:0\n");
    assert_eq!(at(&mut tools, "0"), "orders:0:0\norders:1:0\n", "the first record since 1970");

    let request = daemon.data_dir().with_extension("delete.json");
    let partition = r#"{"topic":"orders","partition":1,"offset":30}"#;
    std::fs::write(&request, format!(r#"{{"partitions":[{partition}],"version":1}}"#))
        .expect("the scratch directory can be written");
    let delete = format!("kafka-delete-records --offset-json-file {}", request.display());
    let (status, output) = tools.run(&delete);
    std::fs::remove_file(&request).expect("written just now");
    assert_eq!(status, 0, "{output}");
    assert!(output.contains("low_watermark: 30"), "{output}");
    assert_eq!(at(&mut tools, "earliest"), "orders:0:0\norders:1:30\n");
    assert_eq!(at(&mut tools, "latest"), "orders:0:50\norders:1:50\n");

    let (status, output) = tools.run("kafka-log-dirs --describe --topic-list orders");
    assert_eq!(status, 0, "{output}");
    let json = output.lines().find(|line| line.starts_with('{')).expect("a line of JSON");
    let described: serde_json::Value = serde_json::from_str(json).expect("JSON");
    // Each shard is a broker, with a directory of its own.
    let brokers = described["brokers"].as_array().expect("a list");
    let directories = brokers.iter().flat_map(|broker| broker["logDirs"].as_array()).flatten();
    let partitions = directories.flat_map(|directory| directory["partitions"].as_array());
    let sizes: Vec<_> = partitions.flatten().map(|partition| partition["size"].as_u64()).collect();
    assert_eq!(sizes.len(), 2, "{json}");
    assert!(sizes.iter().all(|size| size.is_some_and(|size| size > 0)), "{json}");
}

#[test]
fn the_versions_of_every_api_are_told() {
    let daemon = Daemon::start(Options::default());
    let mut tools = JavaTools::start(daemon.kafka());
    let (status, output) = tools.run("kafka-broker-api-versions");
    assert_eq!(status, 0, "{output}");
    assert!(output.contains("Produce(0): 0 to"), "advertised from 0 for librdkafka: {output}");
    assert!(output.contains("ApiVersions(18): 0 to"), "{output}");
}

/// Produces and reads as the group `readers`, which then has no members.
fn read_and_commit(daemon: &Daemon, count: u64) {
    let mut clients = Clients::new(daemon.kafka(), PATIENCE);
    let produce = Produce { topic: "orders", first: 0, count, partitions: 2, codec: None };
    clients.produce(Client::FranzGo, &produce);
    let consume = Consume { topic: "orders", group: "readers", instance: None, assignor: None };
    let reader = clients.consume(Client::FranzGo, &consume);
    let (mut committed, mut has_ended) = ([0; 2], false);
    while committed.iter().sum::<u64>() < count {
        match clients.next_event() {
            (_, Event::Committed { partition, offset }) => committed[partition as usize] = offset,
            (_, Event::Ended(success)) => assert!(success, "a client failed"),
            _ => {}
        }
    }
    clients.stop(reader);
    while !has_ended {
        has_ended = clients.next_event() == (reader, Event::Ended(true));
    }
}

/// Topic, partition, committed, end and lag of each line of `kafka-consumer-groups --describe`.
fn offsets(output: &str) -> Vec<String> {
    let rows =
        output.lines().filter(|line| line.starts_with("readers") || line.starts_with("tidemill."));
    let mut rows: Vec<String> = rows
        .map(|line| line.split_whitespace().skip(1).take(5).collect::<Vec<_>>().join(" "))
        .collect();
    rows.sort();
    rows
}

#[test]
fn kafka_consumer_groups_shows_the_lag_of_a_topology() {
    let node = counting_binary().display().to_string();
    let mut daemon = Daemon::start(Options { command: vec![node], ..Options::default() });
    let mut tools = JavaTools::start(daemon.kafka());
    let mut peer = Peer::connect(daemon.kafka());
    for partition in 0..4 {
        for number in 0..5 {
            peer.append("records", partition, batch_of(number.to_string().as_bytes()));
        }
    }
    let (status, output) = tools.run("kafka-consumer-groups --list");
    assert_eq!(status, 0, "{output}");
    let mut groups: Vec<&str> = output.lines().collect();
    groups.sort_unstable();
    assert_eq!(groups, ["tidemill.calling", "tidemill.copying", "tidemill.counting"]);
    let describe = "kafka-consumer-groups --describe --group tidemill.counting";
    let expected = ["records 0 5 5 0", "records 1 5 5 0", "records 2 5 5 0", "records 3 5 5 0"];
    // What is acknowledged may be counted a moment later.
    let described = (0..20).map(|_| tools.run(describe).1);
    let is_done = |output: &String| offsets(output) == expected;
    assert!(described.into_iter().any(|output| is_done(&output)), "{:?}", tools.run(describe));
    let reset = "kafka-consumer-groups --reset-offsets --group tidemill.counting --topic records \
                 --to-earliest --execute";
    let (_, refused) = tools.run(reset);
    let (_, output) = tools.run(describe);
    assert!(is_done(&output), "nobody moves it: {refused}, then {output}");
    daemon.terminate();
}
