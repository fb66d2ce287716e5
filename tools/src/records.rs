//! The records themselves, decompressed, in the order of their partitions and offsets.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};
use tidemill::batch::{Record, RecordBatch, batches};
use tidemill_wal::disk::{Directory, ExtentMap};
use tidemill_wal::extent::{ExtentView, Run};
use tidemill_wal::format::{FileName, PartitionId};

use crate::fault::Fault;
use crate::output::Printer;
use crate::picture::{Keep, Picture};
use crate::place::Node;
use crate::words::{Names, Shown, Time, bytes_json};
use crate::{Failure, Outcome};

/// A batch that claims to be larger when decompressed is not printed.
const DECOMPRESSED_SIZE_MAX: usize = 256 << 20;

/// Which records are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Name or id of the topic, and number of the partition; `None`: all.
    partition: Option<(String, u32)>,
    from: u64,
    to: u64,
}

impl Selection {
    /// From the arguments.
    pub fn parse(
        partition: Option<&str>,
        from: Option<u64>,
        to: Option<u64>,
    ) -> Result<Self, Failure> {
        let parse = |text: &str| {
            let (topic, index) = text.rsplit_once('/')?;
            Some((topic.to_owned(), index.parse().ok()?))
        };
        let partition = match partition {
            None => None,
            Some(text) => Some(parse(text).ok_or_else(|| {
                Failure::Usage(format!("--partition {text}: write a topic, a slash and a number"))
            })?),
        };
        Ok(Self { partition, from: from.unwrap_or(0), to: to.unwrap_or(u64::MAX) })
    }

    /// Whether a partition is wanted.
    pub fn has(&self, names: &Names, id: PartitionId) -> bool {
        self.partition.as_ref().is_none_or(|(topic, index)| {
            *index == id.index
                && (*topic == names.topic(id.topic) || *topic == id.topic.to_string())
        })
    }

    /// Whether any record of these offsets may be wanted.
    fn overlaps(&self, base: u64, end: u64) -> bool {
        base < self.to && end > self.from
    }

    /// Whether every partition is wanted.
    pub fn is_all(&self) -> bool {
        self.partition.is_none()
    }
}

/// Prints the records of a data directory.
pub fn of_node(
    node: &Node,
    selection: &Selection,
    printer: &mut Printer,
) -> Result<Outcome, Failure> {
    let mut names = Names::new(node.shard_count());
    let mut wanted: BTreeMap<u16, BTreeMap<(String, u32), PartitionId>> = BTreeMap::new();
    let load = |shard: &u16| Picture::load(node, *shard, Keep::Numbers);
    let pictures: Vec<Picture> = node.shards.iter().map(load).collect();
    for picture in &pictures {
        picture.name(&mut names);
    }
    for picture in pictures {
        for id in picture.partitions() {
            // What a deleted topic left behind is shown only to who asks for it by its id.
            let is_live = names.routes().ids.contains_key(&id.topic);
            if selection.has(&names, id) && (is_live || !selection.is_all()) {
                let of_shard = wanted.entry(picture.shard).or_default();
                of_shard.insert((names.topic(id.topic), id.index), id);
            }
        }
    }
    if wanted.is_empty() && !selection.is_all() {
        return Err(Failure::Usage("there is no such partition here".to_owned()));
    }
    let mut faults: Vec<Fault> = Vec::new();
    for (shard, partitions) in wanted {
        // One at a time: the batches of a WAL are many.
        let picture = Picture::load(node, shard, Keep::Bytes);
        faults.extend(picture.faults.iter().cloned());
        for id in partitions.into_values() {
            of_partition(&picture, id, &names, selection, printer, &mut faults)?;
        }
    }
    printer.finish()?;
    for fault in &faults {
        eprintln!("tidemill-dump: {fault}");
    }
    Ok(if faults.is_empty() { Outcome::Fine } else { Outcome::Faults })
}

fn of_partition(
    picture: &Picture,
    id: PartitionId,
    names: &Names,
    selection: &Selection,
    printer: &mut Printer,
    faults: &mut Vec<Fault>,
) -> Result<(), Failure> {
    // Below the start are leftovers of batches and extents that go as a whole.
    let (start, _) = picture.bounds(id);
    let selection = Selection { from: selection.from.max(start), ..selection.clone() };
    let name = names.partition(id);
    let extents = picture.store.iter().flat_map(|store| &store.manifest().extents);
    let mut runs: Vec<(FileName, Run)> = extents
        .flat_map(|extent| extent.runs.iter().map(|run| (extent.file.clone(), *run)))
        .filter(|(_, run)| run.partition == id && selection.overlaps(run.base, run.end))
        .collect();
    runs.sort_by_key(|(_, run)| run.base);
    for (file, run) in runs {
        let printed = of_run(&picture.directory, &file, &run, &mut |bytes| {
            print_batch(&bytes, &name, &selection, printer)
        })?;
        faults.extend(printed);
    }
    for tail in picture.tails.get(&id).into_iter().flatten() {
        if selection.overlaps(tail.base, tail.end) {
            print_batch(&tail.bytes, &name, &selection, printer)?;
        }
    }
    Ok(())
}

/// Hands out the checked batches of a run. Returns what is wrong with the file.
pub fn of_run(
    directory: &Directory,
    file: &FileName,
    run: &Run,
    print: &mut dyn FnMut(Bytes) -> Result<(), Failure>,
) -> Result<Option<Fault>, Failure> {
    let map = match ExtentMap::open(&directory.path(file)) {
        Ok(map) => map,
        Err(error) => return Ok(Some(Fault::of_file(directory, file, 0, error))),
    };
    let populate = |range| map.populate(range);
    let view = match ExtentView::open_with(map.bytes(), &populate) {
        Ok(view) => view,
        Err(damage) => {
            return Ok(Some(Fault::of_file(directory, file, damage.position, &damage.why)));
        }
    };
    for batch in view.batches(run) {
        match batch {
            Ok((range, _)) => print(Bytes::copy_from_slice(&map.bytes()[range]))?,
            Err(damage) => {
                return Ok(Some(Fault::of_file(directory, file, damage.position, &damage.why)));
            }
        }
    }
    Ok(None)
}

/// Prints the wanted records of stored bytes: one batch, or several.
pub fn print_batch(
    bytes: &Bytes,
    partition: &str,
    selection: &Selection,
    printer: &mut Printer,
) -> Result<(), Failure> {
    for batch in batches(bytes.clone()) {
        let batch = batch.map_err(|fault| Failure::Unreadable(fault.to_string()))?;
        if selection.overlaps(batch.base_offset(), batch.last_offset().saturating_add(1)) {
            print_records(&batch, partition, selection, printer)?;
        }
    }
    Ok(())
}

fn print_records(
    batch: &RecordBatch,
    partition: &str,
    selection: &Selection,
    printer: &mut Printer,
) -> Result<(), Failure> {
    // Nobody looks into records when they come in, so a client may have sent nonsense.
    let unreadable = |why: String, printer: &mut Printer| {
        let base = batch.base_offset();
        printer.item(
            format_args!("{partition} batch at offset {base}: {why}"),
            || json!({ "partition": partition, "offset": base, "unreadable": why }),
        )
    };
    let records = match batch.records(DECOMPRESSED_SIZE_MAX) {
        Ok(records) => records,
        Err(fault) => return Ok(unreadable(fault.to_string(), printer)?),
    };
    for record in records {
        match record {
            Ok(record) if (selection.from..selection.to).contains(&record.offset) => {
                print_record(&record, partition, printer)?;
            }
            Ok(_) => {}
            Err(fault) => unreadable(fault.to_string(), printer)?,
        }
    }
    Ok(())
}

fn print_record(record: &Record, partition: &str, printer: &mut Printer) -> Result<(), Failure> {
    let headers: Vec<String> = record
        .headers
        .iter()
        .map(|(key, value)| format!("{}={}", Shown(Some(key)), Shown(value.as_deref())))
        .collect();
    let headers = match headers.is_empty() {
        true => String::new(),
        false => format!(" headers {}", headers.join(" ")),
    };
    printer.item(
        format_args!(
            "{partition} {} {} key {} value {}{headers}",
            record.offset,
            Time(record.timestamp_ms),
            Shown(record.key.as_deref()),
            Shown(record.value.as_deref())
        ),
        || record_json(record, partition),
    )?;
    Ok(())
}

fn record_json(record: &Record, partition: &str) -> Value {
    let header = |(key, value): &(Bytes, Option<Bytes>)| {
        json!([bytes_json(Some(key)), bytes_json(value.as_deref())])
    };
    json!({
        "partition": partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": bytes_json(record.key.as_deref()),
        "value": bytes_json(record.value.as_deref()),
        "headers": record.headers.iter().map(header).collect::<Vec<_>>(),
    })
}
