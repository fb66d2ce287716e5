//! What one file holds: the frames of a segment, the runs of an extent, the entries of a snapshot
//! or delta file, the lists of a manifest.

use bytes::Bytes;
use serde_json::json;
use tidemill::batch::RecordBatch;
use tidemill_wal::batch::BatchHead;
use tidemill_wal::block::{StateFileKind, read_state_file};
use tidemill_wal::disk::{Directory, ExtentMap, Storage};
use tidemill_wal::extent::ExtentView;
use tidemill_wal::format::{Entry, PartitionId, SegmentId};
use tidemill_wal::manifest::Manifest;
use tidemill_wal::recovery::{ReplayFrame, WalkItem, walk};

use crate::fault::Fault;
use crate::output::Printer;
use crate::picture::{Keep, Picture};
use crate::place::{self, FileKind, ShardFile};
use crate::records::{Selection, of_run, print_batch};
use crate::words::{Names, Size, Time, entry, entry_json};
use crate::{Failure, Outcome};

/// What every part needs.
struct Contents<'a> {
    file: &'a ShardFile,
    directory: Directory,
    names: Names,
    selection: &'a Selection,
    prints_records: bool,
    printer: &'a mut Printer,
}

/// Prints a file.
pub fn of_file(
    file: &ShardFile,
    selection: &Selection,
    prints_records: bool,
    printer: &mut Printer,
) -> Result<Outcome, Failure> {
    let directory = Directory::open_read_only(file.directory.clone(), file.directory.clone());
    let names = names_around(file);
    let mut contents = Contents { file, directory, names, selection, prints_records, printer };
    let fault = match file.kind {
        FileKind::Segment(id) => contents.segment(id)?,
        FileKind::Extent => contents.extent()?,
        FileKind::Snapshot | FileKind::Delta => contents.state()?,
        FileKind::Manifest(_) => contents.manifest()?,
        FileKind::Other => None,
    };
    match fault {
        None => Ok(Outcome::Fine),
        Some(fault) => {
            printer.item(format_args!("fault: {fault}"), || fault.json())?;
            Ok(Outcome::Faults)
        }
    }
}

/// Names of topics, if the file still is where a node put it.
fn names_around(file: &ShardFile) -> Names {
    let mut names = Names::new(1);
    let Ok(directory) = file.directory.canonicalize() else { return names };
    let is_shard = directory
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with("shard-"));
    if is_shard
        && let Some(data) = directory.parent()
        && let Ok(place::Target::Node(node)) = place::find(data, None)
    {
        // Every shard has the whole catalog.
        if let Some(shard) = node.shards.first() {
            Picture::load(&node, *shard, Keep::Numbers).name(&mut names);
        }
    }
    names
}

impl Contents<'_> {
    fn segment(&mut self, id: SegmentId) -> Result<Option<Fault>, Failure> {
        let directory =
            Directory::open_read_only(self.file.directory.clone(), self.file.directory.clone());
        let items = match walk(&directory, id) {
            Ok(items) => items,
            Err(error) => return Ok(Some(Fault::of_scan(&directory, &error))),
        };
        let header = *items.header();
        self.printer.item(
            format_args!(
                "segment {} of shard {}, {}{}, nonce {:016x}",
                header.segment(),
                header.shard(),
                Size(header.size()),
                if header.is_recycled() { ", recycled" } else { "" },
                header.nonce()
            ),
            || {
                json!({
                    "segment": header.segment().0,
                    "shard": header.shard().0,
                    "size": header.size(),
                    "recycled": header.is_recycled(),
                })
            },
        )?;
        let mut fault = None;
        for item in items {
            match item {
                Ok(WalkItem::Frame(frame)) => self.frame(&frame)?,
                Ok(WalkItem::Damage { offset, size, why }) => {
                    let why = format!("{why}; {size} bytes up to the next frame");
                    let found = Fault::of_file(&self.directory, &self.file.name, offset, why);
                    self.printer.item(format_args!("  fault: {found}"), || found.json())?;
                    fault = Some(found);
                }
                Ok(WalkItem::End { offset, torn }) => self.printer.item(
                    format_args!(
                        "  byte {offset}: end of the frames{}",
                        torn.map_or(String::new(), |why| format!(
                            " (cut short or in flight: {why})"
                        ))
                    ),
                    || json!({ "end": offset, "torn": torn }),
                )?,
                Err(error) => return Ok(Some(Fault::of_scan(&directory, &error))),
            }
        }
        Ok(fault)
    }

    fn frame(&mut self, frame: &ReplayFrame) -> Result<(), Failure> {
        if !self.prints_records {
            let header = &frame.header;
            self.printer.item(
                format_args!(
                    "  byte {}: frame {} ({}), epoch {}, durable {}, {}, {}",
                    frame.offset,
                    header.sequence(),
                    header.kind(),
                    header.shard_epoch(),
                    header.durable(),
                    Time(header.clock_ms()),
                    Size(header.frame_size() as u64)
                ),
                || {
                    json!({
                        "offset": frame.offset,
                        "frame": header.sequence().0,
                        "kind": header.kind().to_string(),
                        "epoch": header.shard_epoch().0,
                        "durable": header.durable().0,
                        "clock_ms": header.clock_ms(),
                        "body_size": header.body_size(),
                        "checksum": header.checksum(),
                        "previous": header.previous(),
                    })
                },
            )?;
        }
        for item in frame.entries() {
            match item {
                Ok((range, Entry::Batch(batch, _))) => {
                    if self.selection.has(&self.names, batch.partition) {
                        let position = frame.offset + range.start as u64;
                        self.batch(batch.partition, position, frame.bytes.slice(range))?;
                    }
                }
                Ok((_, Entry::Put { key, value })) => self.change(key, Some(value))?,
                Ok((_, Entry::Delete { key })) => self.change(key, None)?,
                Err(fault) => {
                    let why = fault.to_string();
                    self.printer.item(format_args!("    {why}"), || json!({ "fault": why }))?;
                }
            }
        }
        Ok(())
    }

    fn change(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), Failure> {
        self.names.learn(key, value);
        if self.prints_records || !self.selection.is_all() {
            return Ok(());
        }
        let words = entry(&self.names, key, value);
        let words = words.unwrap_or_else(|why| format!("cannot be read: {why}"));
        let json = || entry_json(&self.names, key, value);
        self.printer.item(format_args!("    {words}"), json)?;
        Ok(())
    }

    fn batch(
        &mut self,
        partition: PartitionId,
        position: u64,
        bytes: Bytes,
    ) -> Result<(), Failure> {
        let name = self.names.partition(partition);
        if self.prints_records {
            return print_batch(&bytes, &name, self.selection, self.printer);
        }
        let batch = match RecordBatch::stored(bytes) {
            Ok(batch) => batch,
            Err(fault) => {
                let why = fault.to_string();
                self.printer.item(format_args!("    {name}: {why}"), || json!({ "fault": why }))?;
                return Ok(());
            }
        };
        let producer = match batch.producer_id() {
            -1 => String::new(),
            id => format!(
                ", producer {id} epoch {} sequence {}",
                batch.producer_epoch(),
                batch.base_sequence()
            ),
        };
        self.printer.item(
            format_args!(
                "    byte {position}: {name} offsets {} to {}, {} records, {:?}, {}, newest {}{producer}",
                batch.base_offset(),
                batch.last_offset(),
                batch.record_count(),
                batch.compression(),
                Size(batch.size() as u64),
                Time(batch.max_timestamp_ms())
            ),
            || {
                json!({
                    "partition": name,
                    "position": position,
                    "base_offset": batch.base_offset(),
                    "last_offset": batch.last_offset(),
                    "records": batch.record_count(),
                    "compression": format!("{:?}", batch.compression()).to_lowercase(),
                    "size": batch.size(),
                    "base_timestamp_ms": batch.base_timestamp_ms(),
                    "max_timestamp_ms": batch.max_timestamp_ms(),
                    "producer_id": batch.producer_id(),
                    "producer_epoch": batch.producer_epoch(),
                    "base_sequence": batch.base_sequence(),
                })
            },
        )?;
        Ok(())
    }

    fn extent(&mut self) -> Result<Option<Fault>, Failure> {
        let name = &self.file.name;
        let map = match ExtentMap::open(&self.directory.path(name)) {
            Ok(map) => map,
            Err(error) => return Ok(Some(Fault::of_file(&self.directory, name, 0, error))),
        };
        let populate = |range| map.populate(range);
        let view = match ExtentView::open_with(map.bytes(), &populate) {
            Ok(view) => view,
            Err(damage) => {
                let fault = Fault::of_file(&self.directory, name, damage.position, &damage.why);
                return Ok(Some(fault));
            }
        };
        if !self.prints_records {
            self.printer.item(
                format_args!(
                    "extent {} of shard {}, generation {}, {}",
                    view.id(),
                    view.shard(),
                    view.generation(),
                    Size(map.bytes().len() as u64)
                ),
                || {
                    json!({
                        "extent": view.id(),
                        "shard": view.shard().0,
                        "generation": view.generation(),
                        "size": map.bytes().len(),
                    })
                },
            )?;
        }
        let mut fault = None;
        for found in view.runs() {
            let run = found.run;
            if !self.selection.has(&self.names, run.partition) {
                continue;
            }
            let partition = self.names.partition(run.partition);
            if self.prints_records {
                let (selection, printer) = (self.selection, &mut *self.printer);
                let printed = of_run(&self.directory, name, &run, &mut |bytes| {
                    print_batch(&bytes, &partition, selection, printer)
                })?;
                fault = fault.or(printed);
                continue;
            }
            self.printer.item(
                format_args!(
                    "  byte {}: run of {partition}, offsets {} to {}, {} batches in {} pieces, {}, \
                     newest {}",
                    run.position,
                    run.base,
                    run.end,
                    found.batch_count,
                    found.piece_count,
                    Size(run.size),
                    Time(run.max_timestamp_ms)
                ),
                || {
                    json!({
                        "partition": partition,
                        "position": run.position,
                        "base": run.base,
                        "end": run.end,
                        "batches": found.batch_count,
                        "pieces": found.piece_count,
                        "size": run.size,
                        "max_timestamp_ms": run.max_timestamp_ms,
                    })
                },
            )?;
            for batch in view.batches(&run) {
                match batch {
                    Ok((range, BatchHead { .. })) => {
                        let bytes = Bytes::copy_from_slice(&map.bytes()[range.clone()]);
                        self.batch(run.partition, range.start as u64, bytes)?;
                    }
                    Err(damage) => {
                        let found =
                            Fault::of_file(&self.directory, name, damage.position, &damage.why);
                        self.printer.item(format_args!("    fault: {found}"), || found.json())?;
                        fault = Some(found);
                    }
                }
            }
        }
        Ok(fault)
    }

    fn state(&mut self) -> Result<Option<Fault>, Failure> {
        let name = self.file.name.clone();
        let size = self.size()?;
        let mut entries: Vec<(u64, Vec<u8>, Option<Vec<u8>>)> = Vec::new();
        let read = read_state_file(&self.directory, &name, size, &mut |block| {
            entries.extend(
                block
                    .entries()
                    .map(|(key, value)| (block.position, key.to_vec(), value.map(<[u8]>::to_vec))),
            );
        });
        let fault = match read {
            Ok(info) => {
                let words = match info.kind {
                    StateFileKind::Snapshot => {
                        format!(
                            "snapshot of shard {}, frames {} to {}",
                            info.shard, info.first, info.last
                        )
                    }
                    StateFileKind::Delta => format!(
                        "delta file of shard {}, after frame {}, settled through {}, values of {}",
                        info.shard, info.first, info.through, info.last
                    ),
                };
                self.printer.item(
                    format_args!(
                        "{words}, {} entries in {} blocks, {}",
                        info.entry_count,
                        info.block_count,
                        Size(info.payload_size)
                    ),
                    || {
                        json!({
                            "shard": info.shard.0,
                            "first": info.first.0,
                            "through": info.through.0,
                            "last": info.last.0,
                            "entries": info.entry_count,
                            "blocks": info.block_count,
                        })
                    },
                )?;
                None
            }
            Err(fault) => Some(Fault::of_reader(&self.directory, &name, &fault)),
        };
        for (_, key, value) in &entries {
            self.names.learn(key, value.as_deref());
        }
        let mut block = 0;
        for (position, key, value) in &entries {
            if *position != block {
                self.printer.note(format_args!("  block at byte {position}"))?;
                block = *position;
            }
            self.change(key, value.as_deref())?;
        }
        Ok(fault)
    }

    fn size(&self) -> Result<u64, Failure> {
        let path = self.directory.path(&self.file.name);
        let metadata = std::fs::metadata(&path)
            .map_err(|error| Failure::Unreadable(format!("{}: {error}", path.display())))?;
        Ok(metadata.len())
    }

    fn manifest(&mut self) -> Result<Option<Fault>, Failure> {
        let name = &self.file.name;
        let size = usize::try_from(self.size()?).unwrap_or(usize::MAX);
        let bytes = match self.directory.read(name, 0, size) {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Some(Fault::of_file(&self.directory, name, 0, error))),
        };
        let manifest = match Manifest::decode(&bytes) {
            Ok(manifest) => manifest,
            Err(damage) => {
                let fault = Fault::of_file(&self.directory, name, damage.position, &damage.why);
                return Ok(Some(fault));
            }
        };
        self.printer.item(
            format_args!(
                "manifest {} of shard {} of {}, epoch {}, replay from frame {} in segment {}, durable \
                 {}",
                manifest.version,
                manifest.shard,
                manifest.shard_count,
                manifest.epoch,
                manifest.replay_from,
                manifest.first_segment,
                manifest.durable
            ),
            || {
                json!({
                    "manifest": manifest.version,
                    "shard": manifest.shard.0,
                    "shards": manifest.shard_count,
                    "epoch": manifest.epoch.0,
                    "replay_from": manifest.replay_from.0,
                    "first_segment": manifest.first_segment.0,
                    "durable": manifest.durable.0,
                })
            },
        )?;
        for (file, size) in tidemill_wal::store::named_files(&manifest) {
            self.printer.item(
                format_args!("  {file}, {}", Size(size)),
                || json!({ "file": file.to_string(), "size": size }),
            )?;
        }
        for extent in &manifest.extents {
            for run in &extent.runs {
                if !self.selection.has(&self.names, run.partition) {
                    continue;
                }
                let partition = self.names.partition(run.partition);
                self.printer.item(
                    format_args!(
                        "  run of {partition}, offsets {} to {}, in {} at byte {}",
                        run.base, run.end, extent.file, run.position
                    ),
                    || {
                        json!({
                            "run": partition,
                            "base": run.base,
                            "end": run.end,
                            "file": extent.file.to_string(),
                            "position": run.position,
                        })
                    },
                )?;
            }
        }
        for lost in &manifest.lost {
            let partition = self.names.partition(lost.partition);
            self.printer.item(
                format_args!("  lost: {partition}, offsets {} to {}", lost.base, lost.end),
                || json!({ "lost": partition, "base": lost.base, "end": lost.end }),
            )?;
        }
        Ok(None)
    }
}
