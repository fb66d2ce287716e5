//! What a seed makes of a run: the size of the node, its limits, its load and its bad luck.

use std::sync::Arc;

use tidemill::catalog::CatalogLimits;
use tidemill::group::GroupLimits;
use tidemill::shard::ShardOptions;
use tidemill::topology;
use tidemill_wal::format::ShardId;

use super::disk::FaultRates;
use super::random::Random;
use super::streams::Streams;

const DAY_MS: u64 = 24 * 3_600_000;

/// Bytes of state that stop topologies: far more than they ever make.
const STATE_BUDGET: u64 = 1 << 30;

/// Choices that hold for a whole run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Shards of the node.
    pub shard_count: u16,
    /// Size of a segment in bytes.
    pub segment_size: u64,
    /// Segments a shard.
    pub segment_count_max: usize,
    /// See [`ShardOptions::delta_size_max`].
    pub delta_size_max: u64,
    /// See [`ShardOptions::idle_frame_ms`].
    pub idle_frame_ms: u64,
    /// See [`ShardOptions::settle_sync_size`].
    pub settle_sync_size: usize,
    /// See [`ShardOptions::copied_at_once`].
    pub copied_at_once: usize,
    /// Largest record batch, about.
    pub batch_size_max: u64,
    /// Pause of clients between requests, in microseconds.
    pub pause_us: u64,
    /// Plain and idempotent producers.
    pub producers: (u64, u64),
    /// Consumers.
    pub consumers: u64,
    /// Members of the group.
    pub members: u64,
    /// Whether topics may have limits of age and size.
    pub has_retention: bool,
    /// Whether the disks are full now and then.
    pub has_full_disks: bool,
    /// Longest write of a frame, in microseconds.
    pub frame_us_max: u64,
    /// Longest operation of a disk job, in microseconds.
    pub op_us_max: u64,
    /// How often disks fail.
    pub faults: FaultRates,
    /// Whether bits turn and sectors become unreadable.
    pub has_rot: bool,
    /// One operation of a disk in so many takes very long; 0: none.
    pub stall_one_in: u64,
    /// A shard whose thread and disk are slower than the others'.
    pub slow_shard: Option<u16>,
    /// Slots of the rings between shards.
    pub ring_capacity: usize,
    /// Whether the wall clock is set now and then.
    pub has_clock_jumps: bool,
    /// How much faster than the other clock the wall clock goes, in millionths.
    pub clock_drift_ppm: i64,
    /// See [`ShardOptions::producer_expiry_ms`].
    pub producer_expiry_ms: u64,
    /// See [`GroupLimits::offsets_retention_ms`].
    pub offsets_retention_ms: u64,
    /// Starts of the node.
    pub lives: u64,
    /// Effects in one life, about.
    pub effects: u64,
    /// Topologies, their topics and what comes to them.
    pub streams: Streams,
    /// The topologies as shards run them.
    pub topologies: Vec<Arc<topology::Plan>>,
}

impl Plan {
    /// The plan of a seed, with what follows from its dice and those of operators.
    pub fn of_seed(seed: u64) -> (Self, Random, Random) {
        let mut random = Random::new(seed);
        let mut stream_dice = Random::new(seed ^ 0xfe << 48);
        let plan = Self::draw_with(&mut random, Streams::draw(&mut stream_dice));
        (plan, random, stream_dice)
    }

    /// Draws a plan without topologies.
    pub fn draw(random: &mut Random) -> Self {
        Self::draw_with(random, Streams::none())
    }

    /// Draws a plan for these topologies.
    pub fn draw_with(random: &mut Random, streams: Streams) -> Self {
        let shard_count = random.choose(&[1, 1, 2, 2, 3]);
        let segment_sizes = match streams.flows.is_empty() {
            true => [96 << 10, 128 << 10, 256 << 10],
            // What a step makes has to fit a frame, with the batches that clients send.
            false => [192 << 10, 256 << 10, 512 << 10],
        };
        let mut plan = Self {
            shard_count,
            segment_size: random.choose(&segment_sizes),
            segment_count_max: random.between(3, 8) as usize,
            delta_size_max: random.choose(&[4 << 10, 12 << 10, 48 << 10]),
            idle_frame_ms: random.choose(&[1, 5, 50]),
            settle_sync_size: random.choose(&[4096, 64 << 10, 4 << 20]),
            copied_at_once: random.choose(&[1, 3, 40, 256]),
            batch_size_max: random.choose(&[256, 2048, 8192, 32 << 10]),
            pause_us: random.choose(&[20, 100, 500, 3000]),
            producers: (random.between(0, 2), random.between(1, 2)),
            consumers: random.between(0, 2),
            members: random.between(0, 3),
            has_retention: random.one_in(3),
            has_full_disks: random.one_in(4),
            frame_us_max: random.choose(&[60, 200, 3000]),
            op_us_max: random.choose(&[50, 500, 5000]),
            faults: FaultRates {
                error: random.choose(&[0, 0, 100, 500, 2000]),
                read_error: random.choose(&[0, 0, 200, 2000]),
                silent: random.choose(&[0, 0, 0, 50, 300]),
            },
            has_rot: random.one_in(4),
            stall_one_in: random.choose(&[0, 0, 0, 100, 1000]),
            slow_shard: random.one_in(4).then(|| random.below(u64::from(shard_count)) as u16),
            ring_capacity: random.choose(&[1, 8, 32, 256, 4096, 4096]),
            has_clock_jumps: random.one_in(4),
            clock_drift_ppm: random.choose(&[0, 0, 200, -200, 20_000, -20_000]),
            producer_expiry_ms: random.choose(&[DAY_MS, DAY_MS, DAY_MS, DAY_MS, 40]),
            offsets_retention_ms: random.choose(&[7 * DAY_MS, 7 * DAY_MS, 7 * DAY_MS, 60]),
            lives: random.between(2, 5),
            effects: random.skewed(40, 3000),
            topologies: Vec::new(),
            streams,
        };
        // A record with a call takes two frames, and one of each key is called for at a time.
        let is_slow = plan.slow_shard.is_some() || plan.frame_us_max >= 3000;
        plan.streams.has_calls &= !is_slow || plan.pause_us >= 500;
        plan.topologies = plan.streams.plans();
        plan
    }

    /// Limits of groups.
    pub fn group_limits(&self) -> GroupLimits {
        GroupLimits {
            session_timeout_ms_min: 10,
            initial_rebalance_delay_ms: 3,
            offsets_retention_ms: self.offsets_retention_ms,
            empty_group_ms: self.offsets_retention_ms,
            ..GroupLimits::default()
        }
    }

    /// What a shard is told at a start.
    pub fn options(&self, shard: u16, random: &mut Random) -> ShardOptions {
        ShardOptions {
            id: ShardId(shard),
            shard_count: self.shard_count,
            node: [7; 16],
            seed: [random.bits(), random.bits()],
            segment_size: self.segment_size,
            segment_count_max: self.segment_count_max,
            catalog: CatalogLimits {
                partition_count_default: 1,
                topic_count_max: 100,
                partition_count_max: 1000,
                retention_ms: None,
                retention_bytes: None,
                batch_size_max: 64 << 10,
                batch_size_limit: 64 << 10,
            },
            group: self.group_limits(),
            idle_frame_ms: self.idle_frame_ms,
            producer_expiry_ms: self.producer_expiry_ms,
            retention_check_ms: 20,
            delta_size_max: self.delta_size_max,
            disk_reserve_size: 16 << 10,
            disk_full_retry_ms: 5,
            scrub_rate: 10 << 20,
            settle_sync_size: self.settle_sync_size,
            copied_at_once: self.copied_at_once,
            readers_max: 100,
            waiting_batches_size_max: 8 << 20,
            topologies: self.topologies.clone(),
            state_budget: STATE_BUDGET,
        }
    }
}
