//! Fills a new data directory with extents, without a node: as if a node had settled so much and
//! then stopped. The bytes are those that a node writes, for its own plans make them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tidemill::catalog::{Catalog, CatalogLimits, IdSource};
use tidemill::command::{CatalogCommand, NewTopic};
use tidemill::effect::Change;
use tidemill::runtime::identity::{FORMAT_VERSION, Identity, shard_directory};
use tidemill::state::Kind;
use tidemill_wal::commit::LogOptions;
use tidemill_wal::disk::{Directory, DirectoryOptions, DiskFault, DiskOp, Storage};
use tidemill_wal::extent::{BatchRef, RunData};
use tidemill_wal::format::{PartitionId, SegmentId, Sequence, ShardEpoch, ShardId, TopicId};
use tidemill_wal::limits::{SEGMENT_COUNT_MAX_DEFAULT, SEGMENT_READY_COUNT, SEGMENT_SIZE_DEFAULT};
use tidemill_wal::recovery::{self, ScanEnd};
use tidemill_wal::store::{Settle, Store};

use super::{Filled, Options, Template, now_ms, random};

/// Bytes of one settle round: what is in memory at once.
const ROUND_SIZE: u64 = 64 << 20;

/// One partition and how many batches it still gets.
struct Rest {
    id: PartitionId,
    batches: u64,
    end: u64,
}

pub(super) fn fill(data: &Path, options: &Options, template: &Template) -> Result<Filled, String> {
    let says = |error: &dyn std::fmt::Display| format!("{}: {error}", data.display());
    fs::create_dir_all(data).map_err(|error| says(&error))?;
    if fs::read_dir(data).map_err(|error| says(&error))?.next().is_some() {
        return Err(format!("{} is not empty; choose a new directory", data.display()));
    }
    let identity = Identity {
        format: FORMAT_VERSION,
        node: format!("{:016x}{:016x}", random(), random()),
        shards: options.shards,
    };
    identity.store(data).map_err(|error| error.to_string())?;
    let partition_count = options.partitions.unwrap_or(options.shards.into());
    let (topic, catalog, changes) = plan_topic(options, partition_count)?;
    let route = catalog.topic(topic).expect("just planned").clone();
    let mut filled = Filled::default();
    let batches = options.size.div_ceil(template.size());
    for shard in (0..options.shards).map(ShardId) {
        let own = (0..partition_count).filter(|index| route.shard_of(*index) == shard);
        let rests = own.map(|index| {
            let share = batches / u64::from(partition_count);
            let extra = u64::from(u64::from(index) < batches % u64::from(partition_count));
            Rest { id: route.partition(index), batches: share + extra, end: 0 }
        });
        let rests: Vec<Rest> = rests.collect();
        let count: u64 = rests.iter().map(|rest| rest.batches).sum();
        fill_shard(data, &identity, shard, rests, &changes, template)
            .map_err(|error| says(&error))?;
        filled.size += count * template.size();
        filled.records += count * template.record_count();
    }
    Ok(filled)
}

/// Lets the catalog itself decide the topic.
fn plan_topic(
    options: &Options,
    partition_count: u32,
) -> Result<(TopicId, Catalog, Vec<Change>), String> {
    let limits = CatalogLimits {
        partition_count_default: partition_count,
        topic_count_max: 1,
        partition_count_max: partition_count,
        retention_ms: None,
        retention_bytes: None,
        batch_size_max: 1 << 20,
        batch_size_limit: 8 << 20,
    };
    let mut catalog = Catalog::new(options.shards, limits);
    let new = NewTopic {
        name: options.topic.clone(),
        partition_count: Some(partition_count),
        // Tests that run for days must find what was filled.
        config: vec![("retention.ms".to_owned(), "-1".to_owned())],
        automatic: false,
    };
    let command = CatalogCommand::CreateTopics { topics: vec![new], validate_only: false };
    let plan = catalog.plan(&command, &mut IdSource::new([random(), random()]));
    let planned = plan.results.into_iter().next().expect("one topic was asked for");
    let topic = planned.map_err(|refused| refused.message)?.topic;
    for change in &plan.changes {
        catalog.apply(change)?;
    }
    Ok((topic, catalog, plan.changes))
}

fn fill_shard(
    data: &Path,
    identity: &Identity,
    shard: ShardId,
    mut rests: Vec<Rest>,
    changes: &[Change],
    template: &Template,
) -> Result<(), String> {
    let path = shard_directory(data, shard.0);
    let places = DirectoryOptions { wal: path.clone(), data: path, lock_wait: Duration::ZERO };
    let mut directory = Directory::open(&places).map_err(|error| error.to_string())?;
    let node = identity.node_bytes().expect("32 hexadecimal digits");
    let mut store = Store::new(shard, identity.shards.into(), node);
    let fail = |fault: DiskFault| fault.to_string();
    // The WAL follows, behind what is settled already.
    let first_segment = SegmentId(1);
    let create = store.create(first_segment, Sequence(0), ShardEpoch(1));
    perform(&mut directory, create).map_err(fail)?;
    store.on_created();
    let mut round = Sequence(0);
    loop {
        round = round.next();
        let runs = next_runs(&mut rests, template);
        let is_last = rests.iter().all(|rest| rest.batches == 0);
        let settle = Settle {
            through: round,
            valid_at: round,
            durable: round,
            first_segment,
            epoch: ShardEpoch(1),
            runs,
            changes: if is_last { state_of(changes, &rests) } else { Vec::new() },
        };
        let ops = store.settle(settle);
        perform(&mut directory, ops).map_err(fail)?;
        let removals = store.on_settled();
        perform(&mut directory, removals).map_err(fail)?;
        if is_last {
            break;
        }
    }
    let end = ScanEnd::settled(round, ShardEpoch(2), first_segment);
    let log = LogOptions {
        shard,
        segment_size: SEGMENT_SIZE_DEFAULT,
        segment_count_max: SEGMENT_COUNT_MAX_DEFAULT,
    };
    // One becomes the active one; a start then finds as many ready as it wants.
    let ready_count = SEGMENT_READY_COUNT + 1;
    recovery::start(&mut directory, log, &end, ready_count, now_ms(), &mut random).map_err(fail)?;
    Ok(())
}

/// The next batches of each partition, each partition's share of a round.
fn next_runs(rests: &mut [Rest], template: &Template) -> Vec<RunData> {
    let open = rests.iter().filter(|rest| rest.batches > 0).count() as u64;
    let share = (ROUND_SIZE / open.max(1)).div_ceil(template.size()).max(1);
    let mut runs = Vec::new();
    for rest in rests.iter_mut().filter(|rest| rest.batches > 0) {
        let mut batches = Vec::new();
        for _ in 0..share.min(rest.batches) {
            let base_offset = rest.end;
            rest.end += template.record_count();
            rest.batches -= 1;
            batches.push(BatchRef {
                base_offset,
                last_offset: rest.end - 1,
                max_timestamp_ms: template.max_timestamp_ms(),
                bytes: template.at(base_offset),
            });
        }
        runs.push(RunData { partition: rest.id, batches });
    }
    runs
}

/// The whole state: the topic, and the ends of its partitions.
fn state_of(changes: &[Change], rests: &[Rest]) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let mut state: Vec<(Vec<u8>, Option<Vec<u8>>)> =
        changes.iter().map(|change| (change.key.clone(), change.value.clone())).collect();
    for rest in rests {
        let key = Kind::Partition.key(&[&rest.id.topic.0, &rest.id.index.to_be_bytes()]);
        let value = [0_u64.to_le_bytes(), rest.end.to_le_bytes()].concat();
        state.push((key, Some(value)));
    }
    state.sort();
    state
}

fn perform(directory: &mut Directory, ops: Vec<DiskOp>) -> Result<(), DiskFault> {
    ops.iter().try_for_each(|op| directory.perform(op))
}
