//! Delta files: coalesced changes of a shard's state since the file before.
//!
//! A delta is written when the WAL is settled through a frame, but its values are those of the
//! time when they were copied, which went on until the frame `valid_at`, at or above `through`. It
//! holds every key that a frame up to `through` changed, unless a file before it has what is as new;
//! a key that a later frame changed is in it or in the next one. The `after` of a file is the
//! `valid_at` of the one before. It must not be named by a manifest before the frame `valid_at` is
//! durable. Replay of frames above `through` then ends at the same state.

use bytes::Bytes;

use crate::block::{
    BlockWriter, STATE_FORMAT_VERSION, StateFileInfo, StateFileKind, StateHeader, read_state_file,
};
use crate::damage::{Damage, FileFault};
use crate::disk::{DiskOp, Storage};
use crate::format::{FileName, Sequence, ShardId};
use crate::plan;

/// Ends the names of delta files.
pub const DELTA_SUFFIX: &str = ".dlt";

/// A key with its new value; `None`: the key is gone.
pub type StateChange = (Vec<u8>, Option<Vec<u8>>);

/// Brings changes into the order of their keys, each key once with the last of its values.
pub fn coalesce(mut changes: Vec<StateChange>) -> Vec<StateChange> {
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    changes.dedup_by(|later, earlier| {
        let is_same = later.0 == earlier.0;
        if is_same {
            earlier.1 = later.1.take();
        }
        is_same
    });
    changes
}

/// Takes in one key with its new value, or `None` if the key is gone.
pub type VisitChange<'a> = dyn FnMut(&[u8], Option<&[u8]>) + 'a;

/// A delta file that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaRef {
    /// Newest frame that the delta before it saw; zero for the first.
    pub after: Sequence,
    /// The WAL was settled through this frame.
    pub through: Sequence,
    /// Newest frame that its values saw.
    pub valid_at: Sequence,
    /// Version of the manifest that named it first; makes the name unique.
    pub number: u64,
    /// Bytes of the file.
    pub size: u64,
    /// Identifies the content.
    pub checksum: u32,
}

impl DeltaRef {
    /// The file's name.
    pub fn file(&self) -> FileName {
        name(self.through, self.number)
    }
}

fn name(through: Sequence, number: u64) -> FileName {
    FileName(format!("delta-{:020}-{number}{DELTA_SUFFIX}", through.0).into())
}

/// What a delta file is about.
#[derive(Debug, Clone, Copy)]
pub struct DeltaSpec {
    /// Whose state.
    pub shard: ShardId,
    /// Newest frame that the delta before it saw; zero for the first.
    pub after: Sequence,
    /// The WAL is settled through this frame.
    pub through: Sequence,
    /// Newest frame that the values saw.
    pub valid_at: Sequence,
    /// Version of the manifest that will name it.
    pub number: u64,
}

/// Plans the file. The changes are sorted by key, each key once.
pub fn plan_delta(
    spec: &DeltaSpec,
    changes: &[StateChange],
    drain_size: usize,
) -> (DeltaRef, Vec<DiskOp>) {
    assert!(spec.through <= spec.valid_at);
    assert!(spec.after <= spec.valid_at);
    assert!(changes.is_sorted_by(|a, b| a.0 < b.0), "each key once, in order");
    let (mut writer, header) = BlockWriter::new(StateHeader {
        checksum: 0.into(),
        version: STATE_FORMAT_VERSION.into(),
        kind: StateFileKind::Delta as u8,
        reserved_a: 0,
        magic: [0; 8],
        shard: spec.shard.0.into(),
        reserved_b: [0; 6],
        first: spec.after.0.into(),
        through: spec.through.0.into(),
        valid_at: spec.valid_at.0.into(),
        number: spec.number.into(),
        reserved_c: [0; 8],
    });
    let mut pieces: Vec<Bytes> = vec![header];
    for (key, value) in changes {
        pieces.extend(writer.add(key, value.as_deref()));
    }
    let (checksum, rest) = writer.finish(spec.valid_at);
    pieces.extend(rest);
    let file = name(spec.through, spec.number);
    let (size, ops) = plan::whole_file(&file, pieces, drain_size);
    let delta = DeltaRef {
        after: spec.after,
        through: spec.through,
        valid_at: spec.valid_at,
        number: spec.number,
        size,
        checksum,
    };
    (delta, ops)
}

/// Reads and checks the file that the manifest names; hands out the changes in key order.
pub fn read_delta(
    storage: &dyn Storage,
    shard: ShardId,
    delta: &DeltaRef,
    visit: &mut VisitChange<'_>,
) -> Result<(), FileFault> {
    let file = delta.file();
    let check = |info: &StateFileInfo| {
        info.kind == StateFileKind::Delta
            && info.shard == shard
            && info.first == delta.after
            && info.through == delta.through
            && info.last == delta.valid_at
            && info.number == delta.number
            && info.checksum == delta.checksum
    };
    let info = crate::block::read_state_info(storage, &file, delta.size)?;
    if !check(&info) {
        return Err(Damage::new(0, "not the file that the manifest names").into());
    }
    let mut last_key: Option<Vec<u8>> = None;
    let mut disorder = None;
    read_state_file(storage, &file, delta.size, &mut |block| {
        for (key, value) in block.entries() {
            if last_key.as_deref().is_some_and(|last| last >= key) {
                disorder.get_or_insert(block.position);
            }
            match &mut last_key {
                Some(last) => {
                    last.clear();
                    last.extend_from_slice(key);
                }
                None => last_key = Some(key.to_vec()),
            }
            visit(key, value);
        }
    })?;
    match disorder {
        Some(position) => Err(Damage::new(position, "keys are out of order").into()),
        None => Ok(()),
    }
}
