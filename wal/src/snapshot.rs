//! Snapshots: all of a shard's state, copied slice by slice between steps while the shard goes on.
//!
//! A snapshot names the `first` frame that its slices may have missed and the `last` that they
//! may have seen. It is a state only together with the changes of `first ..= last`, which delta
//! files and WAL hold; so it is valid once `last` is durable, and is replayed from `first`. Only
//! a finished, valid snapshot gets its name and enters a manifest.

use crate::block::{
    BlockWriter, STATE_FORMAT_VERSION, StateFileKind, StateHeader, read_state_file, read_state_info,
};
use crate::damage::{Damage, FileFault};
use crate::disk::{DiskOp, Storage};
use crate::format::{FileName, Sequence, ShardId};
use crate::plan::{self, FilePlan};

/// Ends the names of snapshots.
pub const SNAPSHOT_SUFFIX: &str = ".snap";

/// A snapshot that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRef {
    /// First frame to replay with it.
    pub first: Sequence,
    /// Newest frame that its slices saw.
    pub last: Sequence,
    /// Bytes of the file.
    pub size: u64,
    /// Entries in it.
    pub entry_count: u64,
    /// Identifies the content.
    pub checksum: u32,
}

impl SnapshotRef {
    /// The file's name.
    pub fn file(&self) -> FileName {
        let (first, last) = (self.first.0, self.last.0);
        FileName(format!("snapshot-{first:020}-{last:020}{SNAPSHOT_SUFFIX}").into())
    }
}

/// A snapshot under construction.
#[derive(Debug)]
pub struct SnapshotWriter {
    first: Sequence,
    file: FileName,
    plan: FilePlan,
    writer: BlockWriter,
}

impl SnapshotWriter {
    /// Begins a snapshot before the frame `first` is filled: state as of `first - 1`, or newer.
    pub fn begin(shard: ShardId, first: Sequence, drain_size: usize) -> (Self, Vec<DiskOp>) {
        let name = FileName(format!("snapshot-{:020}{SNAPSHOT_SUFFIX}", first.0).into());
        let file = plan::temporary(&name);
        let mut plan = FilePlan::new(file.clone(), drain_size);
        let (writer, header) = BlockWriter::new(StateHeader {
            checksum: 0.into(),
            version: STATE_FORMAT_VERSION.into(),
            kind: StateFileKind::Snapshot as u8,
            reserved_a: 0,
            magic: [0; 8],
            shard: shard.0.into(),
            reserved_b: [0; 6],
            first: first.0.into(),
            through: 0.into(),
            valid_at: 0.into(),
            number: 0.into(),
            reserved_c: [0; 8],
        });
        plan.push(header);
        let ops = plan.take_ops();
        (Self { first, file, plan, writer }, ops)
    }

    /// First frame to replay with it.
    pub fn first(&self) -> Sequence {
        self.first
    }

    /// Adds keys with their values as they are now. Every entry that exists from begin to finish is
    /// added once.
    pub fn add(
        &mut self,
        slice: impl IntoIterator<Item = (impl AsRef<[u8]>, impl AsRef<[u8]>)>,
    ) -> Vec<DiskOp> {
        for (key, value) in slice {
            if let Some(block) = self.writer.add(key.as_ref(), Some(value.as_ref())) {
                self.plan.push(block);
            }
        }
        self.plan.take_ops()
    }

    /// Ends the file: `last` is the newest frame whose changes a slice may hold.
    pub fn finish(mut self, last: Sequence) -> (SnapshotRef, Vec<DiskOp>) {
        assert!(self.first <= last.next(), "a snapshot does not begin after its end");
        let entry_count = self.writer.entry_count();
        let (checksum, blocks) = self.writer.finish(last);
        for block in blocks {
            self.plan.push(block);
        }
        let mut snapshot = SnapshotRef { first: self.first, last, size: 0, entry_count, checksum };
        let (size, ops) = self.plan.finish(&snapshot.file());
        snapshot.size = size;
        (snapshot, ops)
    }

    /// Gives up: removes what was written.
    pub fn abandon(self) -> Vec<DiskOp> {
        vec![DiskOp::Remove { file: self.file }]
    }

    /// The temporary name.
    pub fn file(&self) -> &FileName {
        &self.file
    }
}

/// Reads and checks the file that the manifest names, a piece at a time; hands out the entries.
pub fn read_snapshot(
    storage: &dyn Storage,
    shard: ShardId,
    snapshot: &SnapshotRef,
    visit: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<(), FileFault> {
    let file = snapshot.file();
    let info = read_state_info(storage, &file, snapshot.size)?;
    let is_named = info.kind == StateFileKind::Snapshot
        && info.shard == shard
        && info.first == snapshot.first
        && info.last == snapshot.last
        && info.entry_count == snapshot.entry_count
        && info.checksum == snapshot.checksum;
    if !is_named {
        return Err(Damage::new(0, "not the file that the manifest names").into());
    }
    let mut tombstone = None;
    read_state_file(storage, &file, snapshot.size, &mut |block| {
        for (key, value) in block.entries() {
            match value {
                Some(value) => visit(key, value),
                None => tombstone = Some(block.position),
            }
        }
    })?;
    match tombstone {
        Some(position) => Err(Damage::new(position, "a snapshot holds no removed keys").into()),
        None => Ok(()),
    }
}
