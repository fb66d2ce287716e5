//! What a shard's helper thread does: cold reads, the reads of a merge, the scrub.

use std::sync::Arc;

use bytes::Bytes;
use tidemill::effect::{ExtentRead, Input, ReadFault, ReadFrom, ReadId};
use tidemill_wal::damage::FileFault;
use tidemill_wal::disk::DiskOp;
use tidemill_wal::extent::{ExtentView, ReadFrom as Position, RunData};
use tidemill_wal::format::FileName;
use tidemill_wal::scrub::ScrubPiece;
use tidemill_wal::store::MergePlan;

use super::World;
use crate::sim::model::Check;

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
        self.give(index, Input::ReadDone { read, result });
        Ok(())
    }

    fn read_extent(&mut self, shard: usize, request: &ExtentRead) -> Result<Vec<Bytes>, ReadFault> {
        let map = self.map(shard, &request.file).ok_or(ReadFault::Gone)?;
        let corrupt = |damage| ReadFault::Corrupt(format!("{}: {damage}", request.file));
        let view = ExtentView::open(&map).map_err(corrupt)?;
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
        let mut open = |file: &FileName| {
            let map = disk.map(file).ok_or(std::io::ErrorKind::NotFound)?;
            Ok(Bytes::copy_from_slice(&map))
        };
        let result: Result<Vec<RunData>, ReadFault> =
            plan.read(&mut open).map_err(|(file, fault)| match fault {
                FileFault::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                    ReadFault::Gone
                }
                fault => ReadFault::Corrupt(format!("{file}: {fault}")),
            });
        self.give(index, Input::MergeRead(result));
        Ok(())
    }

    pub(super) fn verify(&mut self, shard: usize, piece: &ScrubPiece) -> Check {
        let Some(map) = self.disks[shard].map(&piece.file) else { return Ok(()) };
        let mut faults = Vec::new();
        match ExtentView::open(&map) {
            Ok(view) => view.verify_range(piece.range.clone(), &mut |damage| faults.push(damage)),
            Err(damage) => faults.push(damage),
        }
        match faults.first() {
            Some(fault) => Err(format!("the scrub finds {}: {fault}", piece.file)),
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
        DiskOp::Rename { from, to } => format!("rename {from} {to}"),
        DiskOp::Remove { file } => format!("remove {file}"),
        DiskOp::SyncDirectory { place } => format!("sync {place:?}"),
    }
}
