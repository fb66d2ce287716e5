//! What a shard's helper thread does: cold reads, the reads of a merge, the scrub.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tidemill::effect::{ExtentRead, Input, ReadFault, ReadFrom, ReadId};
use tidemill_wal::damage::FileFault;
use tidemill_wal::disk::DiskOp;
use tidemill_wal::extent::{ExtentView, ReadFrom as Position, RunData};
use tidemill_wal::format::{FileName, ShardId};
use tidemill_wal::scrub::ScrubPiece;
use tidemill_wal::store::MergePlan;

use super::World;
use crate::sim::model::Check;

/// What a failing disk says of a whole read.
const FAILED: &str = "the disk failed to read";

impl World {
    /// A map that is kept outlives the file's name.
    fn map(&mut self, shard: usize, file: &FileName) -> Option<Arc<Vec<u8>>> {
        if let Some(map) = self.slots[shard].maps.get(file) {
            return Some(map.clone());
        }
        let map = self.disks[shard].map(file)?;
        if self.random.one_in(2) {
            self.slots[shard].maps.insert(file.clone(), map.clone());
        }
        Some(map)
    }

    pub(super) fn on_read(&mut self, index: u16, read: ReadId, request: &ExtentRead) -> Check {
        let result = self.read_extent(usize::from(index), request);
        self.counts.cold_reads += 1;
        if let Err(fault) = &result {
            let is_told = self.on_read_fault(index, &request.file, fault)?;
            self.slots[usize::from(index)].refusals_due += u64::from(is_told);
        }
        self.give(index, Input::ReadDone { read, result });
        Ok(())
    }

    /// Whether the shard has to tell somebody.
    fn on_read_fault(
        &mut self,
        index: u16,
        file: &FileName,
        fault: &ReadFault,
    ) -> Result<bool, String> {
        match fault {
            ReadFault::Gone | ReadFault::Nothing => return Ok(false),
            ReadFault::Failed(why) if why.ends_with(FAILED) => {}
            ReadFault::Corrupt(why) | ReadFault::Failed(why) => {
                self.on_damage_read(index, file, why)?;
            }
        }
        self.slots[usize::from(index)].notices_due += 1;
        Ok(true)
    }

    fn read_extent(&mut self, shard: usize, request: &ExtentRead) -> Result<Vec<Bytes>, ReadFault> {
        let file = &request.file;
        let map = self.map(shard, file).ok_or(ReadFault::Gone)?;
        let disk = &self.disks[shard];
        if disk.fails_to_read() {
            return Err(ReadFault::Failed(format!("{file}: {FAILED}")));
        }
        let corrupt = |damage| ReadFault::Corrupt(format!("{file}: {damage}"));
        let populate = |range: Range<usize>| disk.populate(file, &range);
        let view = ExtentView::open_named(&map, &populate, ShardId(shard as u16), file)
            .map_err(corrupt)?;
        let from = match request.from {
            ReadFrom::Offset(offset) => Position::Offset(offset),
            ReadFrom::Time(time_ms) => Position::Time(time_ms),
        };
        let bytes_max = request.bytes_max as usize;
        match view.read(request.partition, from, bytes_max).map_err(corrupt)? {
            Some(range) => Ok(vec![Bytes::copy_from_slice(&map[range])]),
            None => Err(ReadFault::Nothing),
        }
    }

    pub(super) fn on_read_merge(&mut self, index: u16, plan: &MergePlan) -> Check {
        let disk = &self.disks[usize::from(index)];
        let has_failed = disk.fails_to_read();
        let mut open = |file: &FileName| {
            if has_failed {
                return Err(io::Error::other(FAILED));
            }
            let map = disk.map(file).ok_or(io::ErrorKind::NotFound)?;
            disk.populate(file, &(0..map.len()))?;
            Ok(Bytes::copy_from_slice(&map))
        };
        let result: Result<Vec<RunData>, (FileName, ReadFault)> =
            plan.read(&mut open).map_err(|(file, fault)| {
                let read_fault = match fault {
                    FileFault::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                        ReadFault::Gone
                    }
                    fault if has_failed => ReadFault::Failed(format!("{file}: {fault}")),
                    fault => ReadFault::Corrupt(format!("{file}: {fault}")),
                };
                (file, read_fault)
            });
        if let Err((file, fault)) = &result {
            self.on_read_fault(index, file, fault)?;
        }
        self.give(index, Input::MergeRead(result.map_err(|(_, fault)| fault)));
        Ok(())
    }

    pub(super) fn verify(&mut self, index: u16, piece: &ScrubPiece) -> Check {
        let disk = &self.disks[usize::from(index)];
        let Some(map) = disk.map(&piece.file) else { return Ok(()) };
        let populate = |range: Range<usize>| disk.populate(&piece.file, &range);
        let mut faults = Vec::new();
        match ExtentView::open_named(&map, &populate, ShardId(index), &piece.file) {
            Ok(view) => view.verify_range(piece.range.clone(), &mut |damage| faults.push(damage)),
            Err(damage) => faults.push(damage),
        }
        match faults.first() {
            Some(fault) => self.on_damage_read(index, &piece.file, &fault.to_string()),
            None => Ok(()),
        }
    }
}

/// An operation in a few words.
pub(super) fn brief(op: &DiskOp) -> String {
    match op {
        DiskOp::Create { file } => format!("create {file}"),
        DiskOp::Write { file, offset, pieces } => {
            format!("write {file} {offset}+{}", pieces.iter().map(Bytes::len).sum::<usize>())
        }
        DiskOp::Zero { file, offset, size } => format!("zero {file} {offset}+{size}"),
        DiskOp::Sync { file } => format!("sync {file}"),
        DiskOp::Drain { file } => format!("drain {file}"),
        DiskOp::Rename { from, to } => format!("rename {from} {to}"),
        DiskOp::Remove { file } => format!("remove {file}"),
        DiskOp::SyncDirectory { place } => format!("sync {place:?}"),
    }
}
