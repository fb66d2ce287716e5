//! Checks every byte that a node would ever trust, and what the files say about one another.
//!
//! Beside a running node the picture moves: the manifest is read again, files it names no longer
//! are forgotten, and a fault in the WAL counts only if a second look finds the same one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::json;
use tidemill::batch::RecordBatch;
use tidemill::state::{Kind, State};
use tidemill_wal::block::read_state_file;
use tidemill_wal::delta::read_delta;
use tidemill_wal::disk::{Directory, ExtentMap, Storage};
use tidemill_wal::extent::{ExtentRef, ExtentView, Run};
use tidemill_wal::format::{Entry, FileName, PartitionId, ShardId};
use tidemill_wal::manifest::{Manifest, load_manifest, version_of};
use tidemill_wal::recovery::{self, ReplayFrame, ScanError, WalkItem};
use tidemill_wal::snapshot::read_snapshot;
use tidemill_wal::store::Store;

use crate::fault::{Fault, exists};
use crate::output::Printer;
use crate::picture::{Keep, Picture, scan_start};
use crate::place::{FileKind, Node, ShardFile};
use crate::progress::Progress;
use crate::words::{Names, Size, entry};
use crate::{Failure, Outcome};

/// Looks at a picture that keeps moving; each round has less to look at.
const ROUNDS_MAX: usize = 20;

/// Checks a data directory, or the shards of it that were asked for.
pub fn node(node: &Node, printer: &mut Printer) -> Result<Outcome, Failure> {
    let mut faults = Vec::new();
    match &node.identity {
        Ok(Some(_)) => {}
        Ok(None) => faults.push(Fault::of_path(
            &node.data.join(tidemill::runtime::identity::FILE),
            "missing, but there are shards; restore it from a copy",
        )),
        Err(error) => faults.push(Fault::of_path(&node.data, error)),
    }
    let sizes = node.shards.iter().map(|shard| named_size(node, *shard));
    let progress = Progress::new("verifying", sizes.sum());
    let mut checked = Checked::default();
    for shard in &node.shards {
        faults.extend(self::shard(node, *shard, &progress, &mut checked));
    }
    drop(progress);
    print(&faults, &checked, printer)
}

/// Checks one file by itself.
pub fn file(file: &ShardFile, printer: &mut Printer) -> Result<Outcome, Failure> {
    let directory = Directory::open_read_only(file.directory.clone(), file.directory.clone());
    let size = std::fs::metadata(directory.path(&file.name))
        .map_err(|error| Failure::Unreadable(format!("{}: {error}", file.name)))?
        .len();
    let mut faults = Vec::new();
    let mut checked = Checked::default();
    match file.kind {
        FileKind::Segment(id) => {
            checked.count(size);
            match recovery::walk(&directory, id) {
                Ok(items) => walk_segment(&directory, &file.name, items, &mut faults),
                Err(error) => faults.push(Fault::of_scan(&directory, &error)),
            }
        }
        FileKind::Extent => check_extent(
            &directory,
            &file.name,
            size,
            None,
            &Progress::new("verifying", size),
            &mut checked,
            &mut faults,
        ),
        FileKind::Snapshot | FileKind::Delta => {
            checked.count(size);
            check_entries(&directory, &file.name, size, &Names::new(1), &mut faults);
        }
        FileKind::Manifest(_) => {
            checked.count(size);
            faults.extend(check_manifest_file(&directory, &file.name, size));
        }
        FileKind::Other => {}
    }
    print(&faults, &checked, printer)
}

/// What was looked at.
#[derive(Debug, Default)]
pub struct Checked {
    files: u64,
    bytes: u64,
    frames: u64,
}

impl Checked {
    fn count(&mut self, size: u64) {
        self.files += 1;
        self.bytes += size;
    }
}

fn print(faults: &[Fault], checked: &Checked, printer: &mut Printer) -> Result<Outcome, Failure> {
    for fault in faults {
        printer.item(format_args!("fault: {fault}"), || fault.json())?;
    }
    let Checked { files, bytes, frames } = checked;
    printer.item(
        format_args!(
            "{} faults; {files} files with {} and {frames} frames of the WAL were checked",
            faults.len(),
            Size(*bytes)
        ),
        || json!({ "faults": faults.len(), "files": files, "bytes": bytes, "frames": frames }),
    )?;
    printer.finish()?;
    Ok(if faults.is_empty() { Outcome::Fine } else { Outcome::Faults })
}

/// Bytes that the newest manifest names: how much there is to do.
fn named_size(node: &Node, shard: u16) -> u64 {
    let directory = node.open(shard);
    let files = directory.list().unwrap_or_default();
    match load_manifest(&directory, ShardId(shard), &files) {
        Ok(Some(manifest)) => {
            tidemill_wal::store::named_files(&manifest).map(|(_, size)| size).sum()
        }
        Ok(None) | Err(_) => 0,
    }
}

/// Checks a shard: everything that its newest manifest names, and its WAL.
pub fn shard(node: &Node, shard: u16, progress: &Progress, checked: &mut Checked) -> Vec<Fault> {
    let mut done: BTreeMap<FileName, Vec<Fault>> = BTreeMap::new();
    let mut version = None;
    let mut is_confirmed = false;
    let mut faults = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let directory = node.open(shard);
        let files = match directory.list() {
            Ok(files) => files,
            Err(error) => return vec![Fault::of_path(&node.data, error)],
        };
        let manifest = match load_manifest(&directory, ShardId(shard), &files) {
            Ok(Some(manifest)) => manifest,
            Ok(None) => Manifest::new(ShardId(shard), 0, [0; 16]),
            Err(error) => {
                let fault = Fault::of_store(&directory, &error);
                // The newest one may have gone for a newer one since the list was made.
                if fault.name.as_ref().is_none_or(|name| exists(&directory, name)) {
                    let mut faults = vec![fault];
                    faults.extend(check_old_manifests(&directory, &files, None));
                    return faults;
                }
                continue;
            }
        };
        if version == Some(manifest.version) {
            if faults.is_empty() || is_confirmed {
                break;
            }
            // A name that came while the directory was listed may be missing in the list.
            done.retain(|_, found| found.is_empty());
            is_confirmed = true;
        } else {
            is_confirmed = false;
        }
        version = Some(manifest.version);
        faults = check_named(node, &directory, &files, &manifest, &mut done, progress, checked);
    }
    let wal = wal(node, shard, checked);
    let is_whole = faults.is_empty() && wal.is_empty();
    faults.extend(wal);
    if is_whole {
        faults.extend(check_coverage(node, shard));
    }
    faults
}

/// Checks what a manifest names and what was not checked before. Faults of files that it names no
/// longer are left out: they may just have been removed.
fn check_named(
    node: &Node,
    directory: &Directory,
    files: &[(FileName, u64)],
    manifest: &Manifest,
    done: &mut BTreeMap<FileName, Vec<Fault>>,
    progress: &Progress,
    checked: &mut Checked,
) -> Vec<Fault> {
    let manifest_file = tidemill_wal::manifest::manifest_name(manifest.version);
    let mut faults = Vec::new();
    if let Ok(Some(identity)) = &node.identity
        && manifest.version > 0
        && (identity.node_bytes() != Some(manifest.node_id)
            || u32::from(identity.shards) != manifest.shard_count)
    {
        let why = "the manifest is of another node than node.toml says, or of another number of \
                   shards";
        faults.push(Fault::of_file(directory, &manifest_file, 0, why));
    }
    if let Err(why) = Store::from_manifest(manifest.clone()) {
        faults.push(Fault::of_file(directory, &manifest_file, 0, why));
    }
    faults.extend(check_old_manifests(directory, files, Some(manifest.version)));
    let names = names_of(manifest, directory);
    let sizes: BTreeMap<&FileName, u64> = files.iter().map(|(name, size)| (name, *size)).collect();
    let named: Vec<(FileName, u64)> = tidemill_wal::store::named_files(manifest).collect();
    for (name, size) in &named {
        if done.contains_key(name) {
            continue;
        }
        let mut found = Vec::new();
        match sizes.get(name) {
            None => {
                let why = format!("missing, but {manifest_file} names it");
                found.push(Fault::of_file(directory, name, 0, why));
            }
            Some(have) if have != size => {
                let why = format!("{have} bytes long, {manifest_file} says {size}");
                found.push(Fault::of_file(directory, name, *have.min(size), why));
            }
            Some(_) => {
                let extent = manifest.extents.iter().find(|extent| extent.file == *name);
                match extent {
                    Some(extent) => check_extent(
                        directory,
                        name,
                        *size,
                        Some((extent, manifest.shard)),
                        progress,
                        checked,
                        &mut found,
                    ),
                    None => {
                        checked.count(*size);
                        check_state(directory, manifest, name, *size, &names, &mut found);
                        progress.add(*size);
                    }
                }
            }
        }
        done.insert(name.clone(), found);
    }
    let named: BTreeSet<&FileName> = named.iter().map(|(name, _)| name).collect();
    faults
        .extend(done.iter().filter(|(name, _)| named.contains(name)).flat_map(|(_, f)| f.clone()));
    faults
}

fn names_of(manifest: &Manifest, directory: &Directory) -> Names {
    let mut names = Names::new(u16::try_from(manifest.shard_count).unwrap_or(1).max(1));
    if let Ok(store) = Store::from_manifest(manifest.clone()) {
        // What cannot be read is found by the checks.
        let _ = store.visit_state(directory, &mut |key, value| names.learn(key, value));
    }
    names
}

/// Older manifests are kept to look at, so they should be readable too.
fn check_old_manifests(
    directory: &Directory,
    files: &[(FileName, u64)],
    newest: Option<u64>,
) -> Vec<Fault> {
    let newest = newest.or_else(|| files.iter().filter_map(|(name, _)| version_of(name)).max());
    let old = files.iter().filter(|(name, _)| version_of(name).is_some_and(|v| Some(v) < newest));
    old.filter_map(|(name, size)| check_manifest_file(directory, name, *size)).collect()
}

fn check_manifest_file(directory: &Directory, name: &FileName, size: u64) -> Option<Fault> {
    let bytes = match directory.read(name, 0, usize::try_from(size).unwrap_or(usize::MAX)) {
        Ok(bytes) => bytes,
        Err(_) if !exists(directory, name) => return None,
        Err(error) => return Some(Fault::of_file(directory, name, 0, error)),
    };
    match Manifest::decode(&bytes) {
        Ok(manifest) if Some(manifest.version) == version_of(name) => None,
        Ok(_) => Some(Fault::of_file(directory, name, 0, "the manifest has another name")),
        Err(damage) => Some(Fault::of_file(directory, name, damage.position, &damage.why)),
    }
}

/// A snapshot or a delta file that a manifest names.
fn check_state(
    directory: &Directory,
    manifest: &Manifest,
    name: &FileName,
    size: u64,
    names: &Names,
    faults: &mut Vec<Fault>,
) {
    let shard = manifest.shard;
    let snapshot = manifest.snapshots.iter().find(|snapshot| snapshot.file() == *name);
    let delta = manifest.deltas.iter().find(|delta| delta.file() == *name);
    let read = match (snapshot, delta) {
        (Some(snapshot), _) => read_snapshot(directory, shard, snapshot, &mut |_, _| ()),
        (None, Some(delta)) => read_delta(directory, shard, delta, &mut |_, _| ()),
        (None, None) => unreachable!("named files are extents, snapshots and delta files"),
    };
    match read {
        Ok(()) => check_entries(directory, name, size, names, faults),
        Err(fault) => faults.push(Fault::of_reader(directory, name, &fault)),
    }
}

/// Whether each entry of a snapshot or delta file can be understood.
fn check_entries(
    directory: &Directory,
    name: &FileName,
    size: u64,
    names: &Names,
    faults: &mut Vec<Fault>,
) {
    let mut wrong = Vec::new();
    let read = read_state_file(directory, name, size, &mut |block| {
        for (key, value) in block.entries() {
            if let Err(why) = entry(names, key, value) {
                wrong.push(Fault::of_file(directory, name, block.position, why));
            }
        }
    });
    if let Err(fault) = read {
        faults.push(Fault::of_reader(directory, name, &fault));
    }
    faults.extend(wrong);
}

fn check_extent(
    directory: &Directory,
    name: &FileName,
    size: u64,
    named: Option<(&ExtentRef, ShardId)>,
    progress: &Progress,
    checked: &mut Checked,
    faults: &mut Vec<Fault>,
) {
    checked.count(size);
    let mut report = |position: u64, why: &str| {
        let fault = Fault::of_file(directory, name, position, why);
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    };
    let map = match ExtentMap::open(&directory.path(name)) {
        Ok(map) => map,
        Err(error) => return report(0, &format!("cannot be read: {error}")),
    };
    let populate = |range| map.populate(range);
    let view = match ExtentView::open_with(map.bytes(), &populate) {
        Ok(view) => view,
        Err(damage) => return report(damage.position, &damage.why),
    };
    let mut runs: Vec<Run> = view.runs().map(|found| found.run).collect();
    if let Some((extent, shard)) = named {
        let is_same = view.id() == extent.id
            && view.generation() == extent.generation
            && view.shard() == shard
            && extent.runs.iter().all(|run| runs.contains(run));
        if !is_same {
            report(0, "not the file that the manifest names");
        }
        // What retention dropped from a shared file is still in it, and still checked.
        runs.retain(|run| extent.runs.contains(run));
    }
    view.verify(&mut |damage| report(damage.position, &damage.why));
    for run in runs {
        check_run(&view, &map, &run, progress, &mut report);
    }
}

fn check_run(
    view: &ExtentView<'_>,
    map: &ExtentMap,
    run: &Run,
    progress: &Progress,
    report: &mut dyn FnMut(u64, &str),
) {
    let mut due = run.base;
    for batch in view.batches(run) {
        let (range, head) = match batch {
            Ok(batch) => batch,
            Err(damage) => return report(damage.position, &damage.why),
        };
        let position = range.start as u64;
        progress.add(range.len() as u64);
        if let Err(fault) = RecordBatch::stored_intact(Bytes::copy_from_slice(&map.bytes()[range]))
        {
            report(position, &fault.to_string());
        }
        if head.base_offset != due {
            report(position, &format!("offset {} follows, {due} is due", head.base_offset));
        }
        due = head.last_offset + 1;
    }
    if due != run.end {
        report(run.position, &format!("the run ends at offset {due}, its entry says {}", run.end));
    }
}

/// Scans the WAL as recovery does, until two looks find the same.
fn wal(node: &Node, shard: u16, checked: &mut Checked) -> Vec<Fault> {
    let mut before = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let mut frames = 0;
        let faults = scan_wal(node, shard, &mut frames);
        if faults.is_empty() {
            checked.frames += frames;
            return faults;
        }
        let same: Vec<Fault> =
            faults.iter().filter(|fault| before.contains(*fault)).cloned().collect();
        if !same.is_empty() {
            checked.frames += frames;
            return same;
        }
        before = faults;
    }
    before
}

fn scan_wal(node: &Node, shard: u16, frames: &mut u64) -> Vec<Fault> {
    let directory = node.open(shard);
    let files = directory.list().unwrap_or_default();
    let manifest = match load_manifest(&directory, ShardId(shard), &files) {
        Ok(Some(manifest)) => manifest,
        Ok(None) => Manifest::new(ShardId(shard), 0, [0; 16]),
        // Named already; without a manifest the WAL has no beginning.
        Err(_) => return Vec::new(),
    };
    let names = names_of(&manifest, &directory);
    let mut faults = Vec::new();
    let scanned = recovery::scan(&directory, &scan_start(&manifest), &mut |frame| {
        *frames += 1;
        let name = tidemill_wal::segment::file_name(frame.segment);
        faults.extend(check_frame(&directory, &name, &frame, &names));
        Ok(())
    });
    match scanned {
        Ok(end) => *frames = end.frames,
        Err(error) => faults.push(Fault::of_scan(&directory, &error)),
    }
    if !faults.is_empty() {
        // The scan ends at the first fault; what else is damaged is seen file by file.
        for (name, _) in &files {
            let FileKind::Segment(id) = FileKind::of(name) else { continue };
            if id < manifest.first_segment {
                continue;
            }
            let mut more = Vec::new();
            match recovery::walk(&directory, id) {
                Ok(items) => walk_segment(&directory, name, items, &mut more),
                Err(error) => more.push(Fault::of_scan(&directory, &error)),
            }
            more.retain(|fault| {
                !faults.iter().any(|known: &Fault| {
                    known.name == fault.name && known.position == fault.position
                })
            });
            faults.extend(more);
        }
    }
    faults
}

fn walk_segment(
    directory: &Directory,
    name: &FileName,
    items: impl Iterator<Item = Result<WalkItem, ScanError>>,
    faults: &mut Vec<Fault>,
) {
    for item in items {
        match item {
            Ok(WalkItem::Frame(frame)) => {
                faults.extend(check_frame(directory, name, &frame, &Names::new(1)));
            }
            Ok(WalkItem::Damage { offset, why, .. }) => {
                faults.push(Fault::of_file(directory, name, offset, why));
            }
            // A frame in flight, or one that a crash cut short.
            Ok(WalkItem::End { .. }) => {}
            Err(error) => faults.push(Fault::of_scan(directory, &error)),
        }
    }
}

/// What is inside an intact frame.
fn check_frame(
    directory: &Directory,
    name: &FileName,
    frame: &ReplayFrame,
    names: &Names,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut report = |position: u64, why: String| {
        let why = format!("frame {}: {why}", frame.header.sequence());
        faults.push(Fault::of_file(directory, name, frame.offset + position, why));
    };
    for item in frame.entries() {
        match item {
            Ok((range, Entry::Batch(entry, _))) => {
                let position = range.start as u64;
                match RecordBatch::stored_intact(frame.bytes.slice(range)) {
                    Ok(batch) => {
                        let said = (entry.base_offset, entry.last_offset);
                        if (batch.base_offset(), batch.last_offset()) != said {
                            report(position, "batch and entry name other offsets".to_owned());
                        }
                    }
                    Err(fault) => report(position, fault.to_string()),
                }
            }
            Ok((range, Entry::Put { key, value })) => {
                if let Err(why) = entry(names, key, Some(value)) {
                    report(range.start as u64, why);
                }
            }
            Ok((range, Entry::Delete { key })) => {
                if let Err(why) = entry(names, key, None) {
                    report(range.start as u64, why);
                }
            }
            Err(fault) => report(fault.at as u64, fault.why.to_owned()),
        }
    }
    faults
}

/// Every offset of every partition is in an extent, in the WAL, or known to be lost.
fn check_coverage(node: &Node, shard: u16) -> Vec<Fault> {
    let mut before = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let picture = Picture::load(node, shard, Keep::Numbers);
        if !picture.faults.is_empty() {
            // It moves faster than it can be read; what it had was checked.
            continue;
        }
        let faults = uncovered(node, &picture);
        if faults.is_empty() || faults == before {
            return faults;
        }
        before = faults;
    }
    before
}

fn uncovered(node: &Node, picture: &Picture) -> Vec<Fault> {
    let mut names = Names::new(node.shard_count());
    picture.name(&mut names);
    let Some(store) = &picture.store else { return Vec::new() };
    let name = tidemill_wal::manifest::manifest_name(store.manifest().version);
    let mut faults = Vec::new();
    for topic in names.routes().topics.values() {
        for index in 0..topic.partition_count {
            let id = topic.partition(index);
            if topic.shard_of(index) != ShardId(picture.shard) {
                continue;
            }
            let (start, end) = picture.bounds(id);
            for (base, end) in gaps(picture, id, start, end) {
                let why = format!(
                    "offsets {base} to {end} of {} are neither in an extent nor in the WAL",
                    names.partition(id)
                );
                faults.push(Fault::of_file(&picture.directory, &name, 0, why));
            }
        }
    }
    faults.extend(duplicates(&picture.state, picture, &name));
    faults
}

/// Two topics of one name would hide each other.
fn duplicates(state: &State, picture: &Picture, file: &FileName) -> Vec<Fault> {
    let mut seen = BTreeSet::new();
    let mut faults = Vec::new();
    for (key, value) in state.range(&[Kind::Topic as u8]) {
        let mut one = Names::new(1);
        one.learn(key, Some(value));
        for name in one.routes().topics.keys() {
            if !seen.insert(name.clone()) {
                let why = format!("there are two topics of the name {name:?}");
                faults.push(Fault::of_file(&picture.directory, file, 0, why));
            }
        }
    }
    faults
}

fn gaps(picture: &Picture, id: PartitionId, start: u64, end: u64) -> Vec<(u64, u64)> {
    let store = picture.store.iter();
    let runs = store.clone().flat_map(|store| store.runs(id)).map(|run| (run.base, run.end));
    let lost = store
        .flat_map(|store| &store.manifest().lost)
        .filter(|lost| lost.partition == id)
        .map(|lost| (lost.base, lost.end));
    let tails = picture.tails.get(&id).into_iter().flatten();
    let tails = tails.map(|batch| (batch.base, batch.end));
    let mut covered: Vec<(u64, u64)> = runs.chain(lost).chain(tails).collect();
    missing(&mut covered, start, end)
}

/// The parts of `start..end` that none of the ranges covers.
pub fn missing(covered: &mut [(u64, u64)], start: u64, end: u64) -> Vec<(u64, u64)> {
    covered.sort_unstable();
    let mut at = start;
    let mut gaps = Vec::new();
    for (base, range_end) in covered.iter().copied() {
        if base > at && at < end {
            gaps.push((at, base.min(end)));
        }
        at = at.max(range_end);
    }
    if at < end {
        gaps.push((at, end));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::missing;

    #[test]
    fn what_no_range_covers_is_missing() {
        let check = |ranges: &[(u64, u64)], expected: &[(u64, u64)]| {
            assert_eq!(missing(&mut ranges.to_vec(), 10, 20), expected);
        };
        check(&[], &[(10, 20)]);
        check(&[(0, 30)], &[]);
        check(&[(15, 18), (0, 12)], &[(12, 15), (18, 20)]);
        check(&[(12, 14), (13, 16), (25, 30)], &[(10, 12), (16, 20)]);
        check(&[(10, 15), (15, 20)], &[]);
    }
}
