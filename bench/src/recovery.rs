//! `tidemill-bench recovery`: from `kill -9` with much unsettled to ready again.
//!
//! The segments are made so large that nothing settles: what was acknowledged is in the log alone,
//! and all of it has to be replayed. Afterwards every partition has to end where it ended.

use std::path::Path;
use std::time::Instant;
use std::{fs, io};

use clap::Args;

use crate::client::Client;
use crate::fill;
use crate::machine;
use crate::measure::Target;
use crate::node::Node;
use crate::options::{OutputOptions, ServerOptions};
use crate::parse_size;

/// Smallest segment that the engine takes, and the unit that sizes are rounded to.
const SEGMENT_SIZE_MIN: u64 = 17 << 20;

/// Largest segment that the engine takes.
const SEGMENT_SIZE_MAX: u64 = 4 << 30;

/// Room in a segment beside the batches: blocks that are padded, and headers.
const MARGIN: u64 = 32 << 20;

const TOPIC: &str = "recovery";

/// Arguments of the subcommand.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    output: OutputOptions,
    /// Bytes of batches that are acknowledged and not settled when the node is killed.
    #[arg(long, default_value = "950MiB", value_parser = parse_size)]
    fill: u64,
    /// Bytes of a record's value.
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// Partitions.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    partitions: u32,
    /// Times that it is killed, each after a new fill on an empty directory.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

/// Runs the subcommand.
pub fn run(options: &Options) -> Result<(), String> {
    if options.server.address.is_some() {
        return Err("a node at --address is not ours to kill".to_owned());
    }
    (1..=options.rounds).try_for_each(|round| one(options, round))
}

fn one(options: &Options, round: u32) -> Result<(), String> {
    let mut server = options.server.clone();
    // All of one shard's part is in the segment that is being written.
    let segment_size = (options.fill / u64::from(server.shards) + MARGIN).max(SEGMENT_SIZE_MIN);
    if segment_size > SEGMENT_SIZE_MAX {
        return Err("a shard holds at most 4 GiB in one segment: fill less".to_owned());
    }
    let segment_size = segment_size.next_multiple_of(4096);
    server.server_arg.push(format!("--segment-size={segment_size}B"));
    server.server_arg.push("--segments-max=3".to_owned());
    let mut target = Target::open(&server)?;
    let mut run = target.describe("recovery", &server)?;
    run.round = round;
    let filled =
        fill::into_topic(target.address(), TOPIC, options.partitions, options.fill, options.size)?;
    let mut client = Client::open(target.address()).map_err(|error| error.to_string())?;
    let ends = client.ends(TOPIC, options.partitions)?;
    if ends.iter().sum::<u64>() != filled.records {
        return Err(format!("{} records were acknowledged, {ends:?} are there", filled.records));
    }

    let node = target.node.as_mut().expect("it is ours");
    node.kill()?;
    if has_extents(node.directory()).map_err(|error| error.to_string())? {
        return Err("something settled after all: that is not what is measured here".to_owned());
    }
    let started = Instant::now();
    node.spawn()?;
    node.wait_ready()?;
    let seconds = started.elapsed().as_secs_f64();
    let cpu = machine::process_cpu_seconds(node.pid());
    let read = node.metric("tidemill_recovery_work_bytes");
    let resident = machine::resident_bytes(node.pid());

    let mut client = Client::open(target.address()).map_err(|error| error.to_string())?;
    let recovered = client.ends(TOPIC, options.partitions)?;
    if recovered != ends {
        return Err(format!("partitions ended at {ends:?} before the kill, now at {recovered:?}"));
    }
    run.load.record_size = options.size as u64;
    run.load.partitions = options.partitions;
    run.load.shards = server.shards.into();
    run.result.records = filled.records;
    run.result.accepted_bytes = filled.size;
    run.result.seconds = seconds;
    run.result.cost.server_cpu_seconds = cpu;
    let figures = [
        ("ready_seconds", Some(seconds)),
        ("unsettled_bytes", Some(filled.size as f64)),
        ("unsettled_bytes_per_second", Some(filled.size as f64 / seconds)),
        ("recovery_read_bytes", read),
        ("resident_bytes_when_ready", resident.map(|bytes| bytes as f64)),
    ];
    let known = figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    run.figures = known.collect();
    run.notes.push("the page cache was not emptied; the log is read directly".to_owned());
    eprintln!(
        "round {round}: ready after {seconds:.2} s, {} MiB unsettled, {:.2} processor seconds; all {} records are there",
        filled.size >> 20,
        cpu.unwrap_or_default(),
        filled.records,
    );
    options.output.write(&run)?;
    target.node.take().map_or(Ok(()), Node::stop)
}

/// Whether anything has left the log below a directory.
fn has_extents(directory: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let is_extent = path.extension().is_some_and(|extension| extension == "ext");
        if is_extent || (path.is_dir() && has_extents(&path)?) {
            return Ok(true);
        }
    }
    Ok(false)
}
