//! What `fill` writes is what a shard would have written.

use std::process::Command as Process;
use std::time::Duration;

use tidemill::catalog::CatalogLimits;
use tidemill::command::{Command, Reply, Ticket};
use tidemill::effect::{Effect, Input, Now};
use tidemill::group::GroupLimits;
use tidemill::runtime::identity::{Identity, shard_directory};
use tidemill::shard::{Shard, ShardOptions};
use tidemill_wal::disk::{Directory, DirectoryOptions};
use tidemill_wal::format::ShardId;

const NOW: Now = Now { monotonic_ms: 0, wall_ms: 1_700_000_000_000 };

fn fill(arguments: &[&str]) -> (bool, String) {
    let output = Process::new(env!("CARGO_BIN_EXE_tidemill-bench"))
        .arg("fill")
        .args(arguments)
        .output()
        .expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn options(identity: &Identity) -> ShardOptions {
    ShardOptions {
        id: ShardId(0),
        shard_count: identity.shards,
        node: identity.node_bytes().expect("32 digits"),
        seed: [1, 2],
        segment_size: 64 << 20,
        segment_count_max: 8,
        catalog: CatalogLimits {
            partition_count_default: 1,
            topic_count_max: 10,
            partition_count_max: 10,
            retention_ms: Some(1),
            retention_bytes: None,
            batch_size_max: 1 << 20,
            batch_size_limit: 8 << 20,
        },
        group: GroupLimits::default(),
        idle_frame_ms: 20,
        producer_expiry_ms: 1_000_000,
        retention_check_ms: 30_000,
        delta_size_max: 256 << 20,
        disk_reserve_size: 1 << 20,
        disk_full_retry_ms: 1000,
        scrub_rate: 0,
        settle_sync_size: 4 << 20,
        copied_at_once: usize::MAX,
        readers_max: 10,
        waiting_batches_size_max: 8 << 20,
        topologies: Vec::new(),
        state_budget: u64::MAX,
    }
}

#[test]
fn a_filled_directory_opens_with_all_its_records() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let data = directory.path().join("data");
    let shown = data.display().to_string();
    let arguments = ["--data-dir", &shown, "--size", "5MiB", "--shards", "1", "--partitions", "3"];
    let (is_good, text) = fill(&arguments);
    assert!(is_good, "{text}");
    let records: u64 =
        text.split(' ').next().and_then(|count| count.parse().ok()).expect("a count");

    let identity = Identity::load(&data).expect("readable").expect("made");
    let path = shard_directory(&data, 0);
    let places =
        DirectoryOptions { wal: path.clone(), data: path, lock_wait: Duration::from_secs(10) };
    let mut storage = Directory::open(&places).expect("nobody holds it");
    let opened = Shard::open(&mut storage, options(&identity), NOW, &mut |_| ());
    let mut shard = opened.expect("it is whole").shard;
    let mut effects = Vec::new();
    shard.start(&mut effects);
    let routes = effects.iter().find_map(|effect| match effect {
        Effect::Routes(routes) => Some(routes.clone()),
        _ => None,
    });
    let topic = routes.expect("the catalog").topics["fill"].clone();
    let partitions = (0..3).map(|index| topic.partition(index)).collect();
    let ticket = Ticket { origin: ShardId(0), id: 1 };
    let command = Command::DescribePartitions(partitions);
    shard.step(NOW, Input::Command { ticket, command }, &mut effects);
    let ends = effects.iter().find_map(|effect| match effect {
        Effect::Reply { reply: Reply::DescribePartitions(facts), .. } => Some(facts.clone()),
        _ => None,
    });
    let ends = ends.expect("an answer");
    let total: u64 = ends.iter().map(|facts| facts.expect("a partition").durable_end).sum();
    assert_eq!(total, records);

    let (is_good, text) = fill(&arguments);
    assert!(!is_good && text.contains("is not empty"), "{text}");
}
