//! `tidemill-dump quarantine`: moves damage aside so that the node starts, and says what is lost.
//!
//! Nothing is deleted: damaged files go to `quarantine-<n>` in the data directory (and in that of
//! the WAL). In this order, so that a crash at any time leaves the old or the new picture: second
//! names in the quarantine, new files, the manifest that names them, then the old names go.

mod chain;
mod ends;
mod rebuild;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::json;
use tidemill::runtime::identity::shard_directory;
use tidemill::state::Kind;
use tidemill_wal::commit::LogOptions;
use tidemill_wal::disk::{
    Directory, DirectoryError, DirectoryOptions, DiskFault, DiskOp, Place, Storage,
};
use tidemill_wal::extent::{ExtentSpec, RunData, plan_extent};
use tidemill_wal::format::{FileName, SegmentId, ShardEpoch, ShardId};
use tidemill_wal::limits::{SEGMENT_COUNT_MAX_DEFAULT, SEGMENT_SIZE_DEFAULT};
use tidemill_wal::manifest::{Manifest, SNAPSHOT_COUNT_MAX, plan_manifest};
use tidemill_wal::plan::DRAIN_SIZE_DEFAULT;
use tidemill_wal::recovery::{self, ScanEnd};
use tidemill_wal::snapshot::SnapshotWriter;
use tidemill_wal::store::RUN_OWN_SIZE;

use self::ends::Ends;
use self::rebuild::Rebuilt;
use crate::fault::Fault;
use crate::output::Printer;
use crate::place::{self, Node};
use crate::progress::Progress;
use crate::words::Names;
use crate::{Failure, Outcome, verify};

/// State added to the snapshot at once.
const SLICE_SIZE: usize = 1 << 20;

/// Bytes of small runs that share one extent.
const SHARED_SIZE: u64 = 64 << 20;

/// The last writes of a node that was just killed end within this time.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Quarantines of one directory.
const QUARANTINES_MAX: u32 = 10_000;

/// Arguments of the subcommand.
#[derive(Debug, Args)]
pub struct Options {
    /// The data directory. The node must be stopped.
    directory: PathBuf,
    /// The damaged shard.
    #[arg(long, value_name = "N")]
    shard: u16,
    /// Directory of the write-ahead log, if it is not in the data directory.
    #[arg(long, value_name = "DIR")]
    wal_dir: Option<PathBuf>,
    /// Does it. Without this it only says what it would do.
    #[arg(long)]
    yes: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand. Without `--yes` damage is an outcome, with it only a failure is.
pub fn run(options: &Options) -> Result<Outcome, Failure> {
    let node = place::node(&options.directory, options.wal_dir.as_deref(), None)?;
    let identity = match &node.identity {
        Ok(Some(identity)) => identity,
        Ok(None) => {
            return Err(Failure::Unreadable(format!(
                "{}: node.toml is missing; restore it from a copy first: it says which node this \
                 is and how many shards it has",
                node.data.display()
            )));
        }
        Err(error) => return Err(Failure::Unreadable(error.to_string())),
    };
    if options.shard >= identity.shards {
        return Err(Failure::Usage(format!(
            "there is no shard {}; the node has {}, counted from 0",
            options.shard, identity.shards
        )));
    }
    let mut printer = Printer::new(options.json);
    let mut directory = lock(&node, options.shard)?;
    let progress = Progress::new("verifying", 0);
    let mut faults = verify::shard(&node, options.shard, &progress, &mut Default::default());
    drop(progress);
    let ends = Ends::load(&node, identity.shards);
    if let Some(fault) = ends.fault() {
        if fault.own == options.shard {
            faults.push(Fault::of_path(&shard_directory(&node.data, fault.own), fault));
        } else if faults.is_empty() {
            return Err(Failure::Unreadable(format!(
                "shard {} has no damage, but {fault}: quarantine shard {}",
                options.shard, fault.own
            )));
        }
    }
    if faults.is_empty() {
        printer.item(
            format_args!("shard {} has no damage; there is nothing to do", options.shard),
            || json!({ "shard": options.shard, "faults": 0 }),
        )?;
        printer.finish()?;
        return Ok(Outcome::Fine);
    }
    if let Some(fault) = faults.iter().find(|fault| fault.is_too_new) {
        return Err(Failure::Unreadable(format!("{fault}; use the newer tidemill-dump")));
    }
    let is_cut = ends.is_cut(options.shard);
    let peers = ends.peers(&node, options.shard);
    let bytes = identity.node_bytes().expect("checked when it was loaded");
    let shard = ShardId(options.shard);
    // Read through a second handle: the locked one may cut off what a reader still needs.
    let reader = node.open(options.shard);
    let rebuilt = rebuild::plan(&reader, shard, identity.shards, bytes, &faults, &peers, is_cut)
        .map_err(Failure::Unreadable)?;
    print_plan(&rebuilt, &faults, identity.shards, &mut printer)?;
    if !options.yes {
        printer.item(
            format_args!("nothing was changed; with --yes this is done"),
            || json!({ "done": false }),
        )?;
        printer.finish()?;
        return Ok(Outcome::Faults);
    }
    let places = quarantine_directories(&node)?;
    perform(&node, &mut directory, shard, rebuilt, &places)?;
    for place in &places {
        printer.item(
            format_args!("done; the damaged files are in {}", place.1.display()),
            || json!({ "done": true, "quarantine": place.1.display().to_string() }),
        )?;
    }
    drop(directory);
    let progress = Progress::new("verifying", 0);
    let left = verify::shard(&node, options.shard, &progress, &mut Default::default());
    drop(progress);
    for fault in &left {
        printer.item(format_args!("fault: {fault}"), || fault.json())?;
    }
    if !left.is_empty() {
        // With a damaged manifest, damage of other files shows only once there is a new one.
        printer.note(format_args!("there is more damage than was seen before; run it again"))?;
    }
    printer.finish()?;
    Ok(if left.is_empty() { Outcome::Fine } else { Outcome::Faults })
}

fn lock(node: &Node, shard: u16) -> Result<Directory, Failure> {
    let options = DirectoryOptions {
        wal: shard_directory(&node.wal, shard),
        data: shard_directory(&node.data, shard),
        lock_wait: LOCK_WAIT,
    };
    Directory::open(&options).map_err(|error| match error {
        DirectoryError::InUse { .. } => Failure::Unreadable(format!(
            "{}: a node is running on it; stop that first",
            node.data.display()
        )),
        error @ (DirectoryError::NoDirectIo { .. } | DirectoryError::Io { .. }) => {
            Failure::Unreadable(error.to_string())
        }
    })
}

fn print_plan(
    rebuilt: &Rebuilt,
    faults: &[Fault],
    shard_count: u16,
    printer: &mut Printer,
) -> Result<(), Failure> {
    for fault in faults {
        printer.item(format_args!("fault: {fault}"), || fault.json())?;
    }
    for file in &rebuilt.aside {
        printer
            .item(format_args!("moves aside: {file}"), || json!({ "aside": file.to_string() }))?;
    }
    for note in &rebuilt.notes {
        printer.item(format_args!("note: {note}"), || json!({ "note": note }))?;
    }
    let mut names = Names::new(shard_count);
    for (key, value) in rebuilt.state.range(&[Kind::Topic as u8]) {
        names.learn(key, Some(value));
    }
    let mut lost: BTreeMap<(String, u32), Vec<(u64, u64)>> = BTreeMap::new();
    for range in &rebuilt.lost {
        let name = (names.topic(range.partition.topic), range.partition.index);
        lost.entry(name).or_default().push((range.base, range.end));
    }
    for ((topic, index), ranges) in &lost {
        let count: u64 = ranges.iter().map(|(base, end)| end - base).sum();
        let words: Vec<String> =
            ranges.iter().map(|(base, end)| format!("{base} to {}", end - 1)).collect();
        printer.item(
            format_args!("lost: {topic}/{index}, {count} records: offsets {}", words.join(", ")),
            || json!({ "topic": topic, "partition": index, "lost": ranges, "records": count }),
        )?;
    }
    if lost.is_empty() {
        printer.note(format_args!("lost: no record that is known of"))?;
    }
    Ok(())
}

/// The roots of the data and of the WAL, each with the quarantine in it.
fn quarantine_directories(node: &Node) -> Result<Vec<(PathBuf, PathBuf)>, Failure> {
    let mut roots = vec![node.data.clone()];
    if node.wal != node.data {
        roots.push(node.wal.clone());
    }
    let is_free =
        |number: &u32| roots.iter().all(|root| !root.join(format!("quarantine-{number}")).exists());
    let number = (1..QUARANTINES_MAX).find(is_free).ok_or_else(|| {
        Failure::Unreadable("there are too many quarantines; remove old ones".to_owned())
    })?;
    Ok(roots
        .into_iter()
        .map(|root| (root.clone(), root.join(format!("quarantine-{number}"))))
        .collect())
}

fn perform(
    node: &Node,
    directory: &mut Directory,
    shard: ShardId,
    rebuilt: Rebuilt,
    places: &[(PathBuf, PathBuf)],
) -> Result<(), Failure> {
    let aside: Vec<FileName> = rebuilt.aside.iter().cloned().collect();
    for file in &aside {
        keep(node, directory, shard, file, places).map_err(|error| {
            Failure::Unreadable(format!(
                "{} cannot be kept: {error}",
                directory.path(file).display()
            ))
        })?;
    }
    write(directory, shard, rebuilt).map_err(|fault| Failure::Unreadable(fault.to_string()))?;
    for file in aside {
        // The manifest that counts now names none of them: what is new has a new name.
        let removed = directory.perform(&DiskOp::Remove { file });
        removed.map_err(|fault| Failure::Unreadable(fault.to_string()))?;
    }
    for place in [Place::Wal, Place::Data] {
        let synced = directory.perform(&DiskOp::SyncDirectory { place });
        synced.map_err(|fault| Failure::Unreadable(fault.to_string()))?;
    }
    Ok(())
}

/// Gives a damaged file a second name in the quarantine, durably.
fn keep(
    node: &Node,
    directory: &Directory,
    shard: ShardId,
    file: &FileName,
    places: &[(PathBuf, PathBuf)],
) -> io::Result<()> {
    let root = if file.is_wal() { &node.wal } else { &node.data };
    let place = places.iter().find(|(of, _)| of == root).map(|(_, place)| place);
    let target = shard_directory(place.expect("both roots have a place"), shard.0);
    fs::create_dir_all(&target)?;
    match fs::hard_link(directory.path(file), target.join(&*file.0)) {
        // A file that is missing is a fault too.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        linked => linked?,
    }
    for path in target.ancestors().take(3) {
        File::open(path)?.sync_all()?;
    }
    Ok(())
}

/// Writes the new files, a new WAL, and the manifest that makes them count.
fn write(directory: &mut Directory, shard: ShardId, rebuilt: Rebuilt) -> Result<(), DiskFault> {
    let Rebuilt { base, version, extents, runs, state, lost, chain, last, .. } = rebuilt;
    let mut extent_id = base.extent_id_next;
    let generation = base.extents.iter().map(|extent| extent.generation).max().unwrap_or(0) + 1;
    let mut named = extents;
    for runs in groups(runs) {
        let spec = ExtentSpec { id: extent_id, generation, level: 0, shard, runs };
        let (extent, ops) = plan_extent(spec, DRAIN_SIZE_DEFAULT);
        extent_id += 1;
        perform_all(directory, ops)?;
        named.push(extent.into());
    }
    // A state as of `last`: a number that no frame has, so that no name is used twice.
    let (mut writer, ops) = SnapshotWriter::begin(shard, last.next(), DRAIN_SIZE_DEFAULT);
    perform_all(directory, ops)?;
    let mut cursor: Option<Vec<u8>> = None;
    loop {
        let mut last_key = None;
        let slice = state.slice(cursor.as_deref(), SLICE_SIZE);
        let ops = writer.add(slice.inspect(|(key, _)| last_key = Some(*key)));
        let Some(key) = last_key else { break };
        cursor = Some(key.to_vec());
        perform_all(directory, ops)?;
    }
    let (snapshot, ops) = writer.finish(last);
    perform_all(directory, ops)?;
    directory.perform(&DiskOp::SyncDirectory { place: Place::Data })?;

    let first_segment = SegmentId(chain.segment.max(base.first_segment.0) + 1);
    let end = ScanEnd::settled(last, ShardEpoch(chain.epoch.max(base.epoch).0 + 1), first_segment);
    let options = LogOptions {
        shard,
        segment_size: chain.segment_size.unwrap_or(SEGMENT_SIZE_DEFAULT),
        segment_count_max: SEGMENT_COUNT_MAX_DEFAULT,
    };
    let log = recovery::start(directory, options, &end, 1, now_ms(), &mut nonce)?;
    let manifest = Manifest {
        version,
        epoch: end.epoch,
        replay_from: last.next(),
        first_segment,
        durable: log.durable(),
        extent_id_next: extent_id,
        snapshots: vec![snapshot],
        deltas: Vec::new(),
        extents: named,
        lost,
        ..base
    };
    assert!(manifest.snapshots.len() <= SNAPSHOT_COUNT_MAX);
    assert_eq!(manifest.check(), Ok(()), "what is written is right");
    perform_all(directory, plan_manifest(&manifest))
}

/// Large runs get a file each, small ones share.
fn groups(runs: Vec<RunData>) -> Vec<Vec<RunData>> {
    let (large, small): (Vec<RunData>, Vec<RunData>) =
        runs.into_iter().partition(|run| run.size() >= RUN_OWN_SIZE);
    let mut groups: Vec<Vec<RunData>> = large.into_iter().map(|run| vec![run]).collect();
    let mut size = SHARED_SIZE;
    for run in small {
        if size >= SHARED_SIZE {
            groups.push(Vec::new());
            size = 0;
        }
        size += run.size();
        groups.last_mut().expect("just pushed").push(run);
    }
    groups
}

fn perform_all(directory: &mut Directory, ops: Vec<DiskOp>) -> Result<(), DiskFault> {
    ops.iter().try_for_each(|op| directory.perform(op))
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Random, as every segment's life needs one of its own.
fn nonce() -> u64 {
    let mut bytes = [0; 8];
    let random =
        File::open(Path::new("/dev/urandom")).and_then(|mut file| file.read_exact(&mut bytes));
    random.expect("the system has random numbers");
    u64::from_le_bytes(bytes)
}
