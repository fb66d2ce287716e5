//! A data directory at a glance: files, WAL, topics, and whether it looks whole.

use std::collections::BTreeMap;
use std::fs;

use bytes::Bytes;
use serde_json::{Value, json};
use tidemill::batch::batches;
use tidemill_wal::disk::ExtentMap;
use tidemill_wal::extent::{ExtentView, ReadFrom};
use tidemill_wal::format::PartitionId;

use crate::output::Printer;
use crate::picture::{Keep, Picture};
use crate::place::{FileKind, Node};
use crate::records::Selection;
use crate::words::{Names, Size, Time};
use crate::{Failure, Outcome};

/// Prints the summary.
pub fn of_node(
    node: &Node,
    selection: &Selection,
    printer: &mut Printer,
) -> Result<Outcome, Failure> {
    let mut is_whole = print_identity(node, printer)?;
    let mut names = Names::new(node.shard_count());
    let load = |shard: &u16| Picture::load(node, *shard, Keep::Numbers);
    let pictures: Vec<Picture> = node.shards.iter().map(load).collect();
    for picture in &pictures {
        picture.name(&mut names);
    }
    for picture in &pictures {
        print_shard(picture, printer)?;
        is_whole &= picture.faults.is_empty();
    }
    let mut partitions = BTreeMap::new();
    for picture in &pictures {
        for id in picture.partitions() {
            // What is left of a deleted topic goes with the next settling.
            if names.routes().ids.contains_key(&id.topic) && selection.has(&names, id) {
                partitions.insert((names.topic(id.topic), id.index), (picture, id));
            }
        }
    }
    for topic in names.routes().topics.values() {
        let is_shown = (0..topic.partition_count)
            .any(|index| selection.has(&names, PartitionId { topic: topic.id, index }));
        if !is_shown {
            continue;
        }
        printer.item(
            format_args!(
                "topic {}: id {}, {} partitions",
                topic.name, topic.id, topic.partition_count
            ),
            || {
                json!({
                    "topic": &*topic.name,
                    "id": topic.id.to_string(),
                    "partitions": topic.partition_count,
                    "config": topic.config.overrides,
                })
            },
        )?;
        for ((_, index), (picture, id)) in
            partitions.range((topic.name.to_string(), 0)..=(topic.name.to_string(), u32::MAX))
        {
            print_partition(&topic.name, *index, picture, *id, printer)?;
        }
    }
    print_health(node, &pictures, is_whole, printer)?;
    Ok(if is_whole { Outcome::Fine } else { Outcome::Faults })
}

fn print_identity(node: &Node, printer: &mut Printer) -> Result<bool, Failure> {
    let path = node.data.display();
    match &node.identity {
        Ok(Some(identity)) => {
            printer.item(
                format_args!(
                    "{path}: node {}, {} shards, format {}",
                    identity.node, identity.shards, identity.format
                ),
                || {
                    json!({
                        "directory": path.to_string(),
                        "node": identity.node,
                        "shards": identity.shards,
                        "format": identity.format,
                    })
                },
            )?;
            Ok(true)
        }
        Ok(None) => {
            printer.item(
                format_args!("{path}: node.toml is missing"),
                || json!({ "directory": path.to_string(), "fault": "node.toml is missing" }),
            )?;
            Ok(false)
        }
        Err(error) => {
            let why = error.to_string();
            printer.item(format_args!("{why}"), || json!({ "fault": why }))?;
            Ok(false)
        }
    }
}

fn print_shard(picture: &Picture, printer: &mut Printer) -> Result<(), Failure> {
    let shard = picture.shard;
    let mut kinds: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (name, size) in &picture.files {
        let kind = match FileKind::of(name) {
            FileKind::Segment(_) => "WAL segments",
            FileKind::Extent => "extents",
            FileKind::Snapshot => "snapshots",
            FileKind::Delta => "delta files",
            FileKind::Manifest(_) => "manifests",
            FileKind::Other => "others",
        };
        let (count, total) = kinds.entry(kind).or_default();
        *count += 1;
        *total += size;
    }
    let words: Vec<String> = kinds
        .iter()
        .map(|(kind, (count, size))| format!("{count} {kind} {}", Size(*size)))
        .collect();
    printer.item(format_args!("shard {shard}: {}", words.join(", ")), || {
        let kind = |(kind, (count, size)): (&&str, &(u64, u64))| {
            (kind.to_string(), json!({ "count": count, "size": size }))
        };
        json!({ "shard": shard, "files": kinds.iter().map(kind).collect::<serde_json::Map<_, _>>() })
    })?;
    if let Some(store) = &picture.store {
        let manifest = store.manifest();
        printer.item(
            format_args!(
                "  manifest {}: settled through frame {}, {} snapshots, {} delta files, {} extents, \
                 {} lost ranges",
                manifest.version,
                manifest.replay_from.0 - 1,
                manifest.snapshots.len(),
                manifest.deltas.len(),
                manifest.extents.len(),
                manifest.lost.len()
            ),
            || {
                json!({
                    "shard": shard,
                    "manifest": manifest.version,
                    "settled_through": manifest.replay_from.0 - 1,
                    "durable": manifest.durable.0,
                    "epoch": manifest.epoch.0,
                    "snapshots": manifest.snapshots.len(),
                    "deltas": manifest.deltas.len(),
                    "extents": manifest.extents.len(),
                    "lost": manifest.lost.len(),
                })
            },
        )?;
    }
    print_wal(picture, printer)
}

fn print_wal(picture: &Picture, printer: &mut Printer) -> Result<(), Failure> {
    let Some(end) = &picture.wal_end else { return Ok(()) };
    let segments: Vec<u64> = end.in_use.iter().map(|segment| segment.id.0).collect();
    let unsettled = match picture.sequences {
        Some((first, last)) => format!("frames {first} to {last} are not settled"),
        None => "everything is settled".to_owned(),
    };
    let epochs = match picture.epochs {
        Some((first, last)) => format!(", epochs {first} to {last}"),
        None => String::new(),
    };
    let torn = match &end.torn {
        Some(torn) => format!(", frame cut short or in flight at byte {}", torn.offset),
        None => String::new(),
    };
    printer.item(
        format_args!(
            "  WAL: segments {} to {}, last frame {}{}, {unsettled}{epochs}{torn}",
            segments.first().unwrap_or(&0),
            segments.last().unwrap_or(&0),
            end.last,
            end.last_kind.map_or(String::new(), |kind| format!(" ({kind})")),
        ),
        || {
            json!({
                "shard": picture.shard,
                "wal": {
                    "segments": segments,
                    "spare": end.spare.len(),
                    "last_frame": end.last.0,
                    "last_kind": end.last_kind.map(|kind| kind.to_string()),
                    "unsettled": picture.sequences.map(|(first, last)| [first.0, last.0]),
                    "epochs": picture.epochs.map(|(first, last)| [first.0, last.0]),
                    "bytes": end.bytes,
                    "torn_at": end.torn.map(|torn| torn.offset),
                },
            })
        },
    )?;
    Ok(())
}

fn print_partition(
    topic: &str,
    index: u32,
    picture: &Picture,
    id: PartitionId,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let (start, end) = picture.bounds(id);
    let tails = picture.tails.get(&id).map_or(&[][..], Vec::as_slice);
    let wal_size: u64 = tails.iter().map(|batch| batch.size).sum();
    let extent_size = picture.store.as_ref().map_or(0, |store| store.size_of(id));
    let newest = picture.store.iter().flat_map(|store| store.runs(id));
    let newest = newest.map(|run| run.max_timestamp_ms);
    let newest = newest.chain(tails.iter().map(|batch| batch.max_timestamp_ms)).max();
    let span = oldest_ms(picture, id, start).zip(newest);
    let lost: Vec<(u64, u64)> = picture
        .store
        .iter()
        .flat_map(|store| &store.manifest().lost)
        .filter(|lost| lost.partition == id)
        .map(|lost| (lost.base, lost.end))
        .collect();
    let times = match span {
        Some((oldest, newest)) => format!(", {} to {}", Time(oldest), Time(newest)),
        None => String::new(),
    };
    let gone: Vec<String> = lost.iter().map(|(base, end)| format!("{base} to {end}")).collect();
    let gone = if gone.is_empty() { gone.join("") } else { format!(", lost {}", gone.join(", ")) };
    printer.item(
        format_args!(
            "  {topic}/{index} on shard {}: offsets {start} to {end}{times}, {} in extents, {} in \
             the WAL{gone}",
            picture.shard,
            Size(extent_size),
            Size(wal_size)
        ),
        || -> Value {
            json!({
                "topic": topic,
                "partition": index,
                "shard": picture.shard,
                "start": start,
                "end": end,
                "oldest_ms": span.map(|span| span.0),
                "newest_ms": span.map(|span| span.1),
                "extent_size": extent_size,
                "wal_size": wal_size,
                "lost": lost,
            })
        },
    )?;
    Ok(())
}

/// Timestamp of the oldest record, from its batch's head.
fn oldest_ms(picture: &Picture, id: PartitionId, start: u64) -> Option<i64> {
    let run = picture.store.as_ref().and_then(|store| store.find(id, start));
    let Some(run) = run else {
        return Some(picture.tails.get(&id)?.first()?.base_timestamp_ms);
    };
    let map = ExtentMap::open(&picture.directory.path(&run.file)).ok()?;
    let populate = |range| map.populate(range);
    let view = ExtentView::open_with(map.bytes(), &populate).ok()?;
    let range = view.read(id, ReadFrom::Offset(start), 1).ok()??;
    let batch = batches(Bytes::copy_from_slice(&map.bytes()[range])).next()?.ok()?;
    Some(batch.base_timestamp_ms())
}

fn print_health(
    node: &Node,
    pictures: &[Picture],
    is_whole: bool,
    printer: &mut Printer,
) -> Result<(), Failure> {
    for fault in pictures.iter().flat_map(|picture| &picture.faults) {
        printer.item(format_args!("fault: {fault}"), || fault.json())?;
    }
    let mut set_aside: Vec<String> = fs::read_dir(&node.data)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("quarantine-"))
        .collect();
    set_aside.sort();
    for name in set_aside {
        printer.item(
            format_args!("{name}: files that a quarantine moved aside"),
            || json!({ "quarantine": name }),
        )?;
    }
    let text = match is_whole {
        true => "health: nothing is wrong at first sight; --verify checks every byte",
        false => "health: faults; --verify finds all of them",
    };
    printer.item(format_args!("{text}"), || json!({ "whole": is_whole }))?;
    Ok(())
}
