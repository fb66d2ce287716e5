//! Segment files: names, headers, and the operations that prepare, recycle and remove them.
//!
//! A segment is `free -> ready -> active -> sealed -> free`. Only a file that has been written
//! through once is ever active, so that a commit allocates nothing and changes no file size.
//!
//! The promise to recovery: whatever a crash interrupts here, a file whose name is that of a
//! segment at or after the manifest's first one has the intact header of exactly that segment.
//! - A new file has a temporary name until its header and its zeros are durable.
//! - A recycled file is renamed away first. If that rename is lost, the file has its old name and
//!   perhaps the new header; but a file is recycled only after a durable manifest says that the
//!   log starts after it, and names before that start mean nothing.

use bytes::Bytes;

use crate::disk::{DiskOp, Place};
use crate::format::{FileName, SegmentHeader, SegmentId, ShardId};
use crate::limits::{BLOCK_SIZE, ZERO_PIECE_SIZE};
use crate::mutation::{self, Mutation};

/// Every file that is being prepared has a name that starts so; a start removes what it finds.
const TEMPORARY_PREFIX: &str = "wal-tmp-";

/// Name of a segment's file.
pub fn file_name(id: SegmentId) -> FileName {
    FileName(format!("wal-{:020}.seg", id.0).into())
}

/// Name of the file while it becomes that segment.
pub fn temporary_name(id: SegmentId) -> FileName {
    FileName(format!("{TEMPORARY_PREFIX}{:020}.seg", id.0).into())
}

/// What a name in the WAL's directory means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameKind {
    /// A segment, if its header agrees.
    Segment(SegmentId),
    /// A preparation that was cut short.
    Temporary,
    /// Not ours.
    Other,
}

/// Tells what a file is from its name.
pub fn parse_name(name: &FileName) -> NameKind {
    if name.0.starts_with(TEMPORARY_PREFIX) {
        return NameKind::Temporary;
    }
    let digits = name.0.strip_prefix("wal-").and_then(|rest| rest.strip_suffix(".seg"));
    match digits.and_then(|digits| digits.parse().ok()).map(SegmentId) {
        Some(id) if file_name(id) == *name => NameKind::Segment(id),
        Some(_) | None => NameKind::Other,
    }
}

/// What a prepared segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSpec {
    /// Whose it is.
    pub shard: ShardId,
    /// Its number, from [`crate::commit::Log::next_segment`].
    pub id: SegmentId,
    /// Random, never used before.
    pub nonce: u64,
    /// Size of the file in bytes.
    pub size: u64,
}

/// Makes a new file, written through, that is ready once the last operation succeeded.
pub fn prepare_ops(spec: &SegmentSpec) -> Vec<DiskOp> {
    let temporary = temporary_name(spec.id);
    let mut ops = vec![DiskOp::Create { file: temporary.clone() }];
    let mut offset = BLOCK_SIZE as u64;
    while offset < spec.size {
        // The first piece is a block short, so that the others are aligned to their size.
        let end = (offset + 1).next_multiple_of(ZERO_PIECE_SIZE as u64).min(spec.size);
        ops.push(DiskOp::Zero { file: temporary.clone(), offset, size: end - offset });
        offset = end;
    }
    ops.extend(publish_ops(spec, temporary, false));
    ops
}

/// Gives a released segment of the same size a new life. Its contents stay: they are another
/// nonce's and mean nothing.
pub fn recycle_ops(old: SegmentId, spec: &SegmentSpec) -> Vec<DiskOp> {
    assert!(old < spec.id, "numbers only grow");
    let temporary = temporary_name(spec.id);
    let mut ops = vec![DiskOp::Rename { from: file_name(old), to: temporary.clone() }];
    ops.extend(publish_ops(spec, temporary, true));
    ops
}

/// Removes a released segment, for which there is no further use.
pub fn remove_ops(id: SegmentId) -> Vec<DiskOp> {
    // No directory sync: a name that comes back is before the log's start and is removed again.
    vec![DiskOp::Remove { file: file_name(id) }]
}

fn publish_ops(spec: &SegmentSpec, temporary: FileName, recycled: bool) -> [DiskOp; 4] {
    let header = SegmentHeader::new(spec.shard, spec.id, spec.nonce, spec.size, recycled);
    let sync = match mutation::is_on(Mutation::SkipSegmentSync) {
        true => DiskOp::SyncDirectory { place: Place::Wal },
        false => DiskOp::Sync { file: temporary.clone() },
    };
    [
        DiskOp::Write {
            file: temporary.clone(),
            offset: 0,
            pieces: vec![Bytes::from(header.encode())],
        },
        sync,
        DiskOp::Rename { from: temporary, to: file_name(spec.id) },
        DiskOp::SyncDirectory { place: Place::Wal },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> SegmentSpec {
        SegmentSpec { shard: ShardId(1), id: SegmentId(7), nonce: 0xfeed, size: 5 << 19 }
    }

    fn trace(ops: &[DiskOp]) -> Vec<String> {
        ops.iter()
            .map(|op| match op {
                DiskOp::Create { file } => format!("create {file}"),
                DiskOp::Write { file, offset, pieces } => {
                    format!(
                        "write {file} {offset}+{}",
                        pieces.iter().map(Bytes::len).sum::<usize>()
                    )
                }
                DiskOp::Zero { file, offset, size } => format!("zero {file} {offset}+{size}"),
                DiskOp::Sync { file } => format!("sync {file}"),
                DiskOp::Drain { file } => format!("drain {file}"),
                DiskOp::Rename { from, to } => format!("rename {from} {to}"),
                DiskOp::Remove { file } => format!("remove {file}"),
                DiskOp::SyncDirectory { place } => format!("sync directory {place:?}"),
            })
            .collect()
    }

    #[test]
    fn a_name_is_read_back_and_a_near_miss_is_not_ours() {
        let name = |text: &str| parse_name(&FileName(text.into()));
        assert_eq!(file_name(SegmentId(7)).0.as_ref(), "wal-00000000000000000007.seg");
        assert_eq!(parse_name(&file_name(SegmentId(7))), NameKind::Segment(SegmentId(7)));
        assert_eq!(
            parse_name(&file_name(SegmentId(u64::MAX))),
            NameKind::Segment(SegmentId(u64::MAX))
        );
        assert_eq!(parse_name(&temporary_name(SegmentId(7))), NameKind::Temporary);
        for other in [
            "wal-7.seg",
            "wal-+0000000000000000007.seg",
            "wal-00000000000000000007.seg.old",
            "wal-99999999999999999999.seg",
            "wal-.seg",
            "manifest-00000000000000000001",
        ] {
            assert_eq!(name(other), NameKind::Other, "{other}");
        }
        assert!(file_name(SegmentId(7)).is_wal());
        assert!(temporary_name(SegmentId(7)).is_wal());
    }

    #[test]
    fn a_new_segment_is_written_through_and_durable_before_it_gets_its_name() {
        assert_eq!(
            trace(&prepare_ops(&spec())),
            [
                "create wal-tmp-00000000000000000007.seg",
                "zero wal-tmp-00000000000000000007.seg 4096+1044480",
                "zero wal-tmp-00000000000000000007.seg 1048576+1048576",
                "zero wal-tmp-00000000000000000007.seg 2097152+524288",
                "write wal-tmp-00000000000000000007.seg 0+4096",
                "sync wal-tmp-00000000000000000007.seg",
                "rename wal-tmp-00000000000000000007.seg wal-00000000000000000007.seg",
                "sync directory Wal",
            ]
        );
    }

    #[test]
    fn a_recycled_segment_loses_its_old_name_first_and_is_never_zeroed_again() {
        assert_eq!(
            trace(&recycle_ops(SegmentId(3), &spec())),
            [
                "rename wal-00000000000000000003.seg wal-tmp-00000000000000000007.seg",
                "write wal-tmp-00000000000000000007.seg 0+4096",
                "sync wal-tmp-00000000000000000007.seg",
                "rename wal-tmp-00000000000000000007.seg wal-00000000000000000007.seg",
                "sync directory Wal",
            ]
        );
    }

    #[test]
    fn removing_a_segment_takes_its_name_away() {
        assert_eq!(trace(&remove_ops(SegmentId(3))), ["remove wal-00000000000000000003.seg"]);
    }
}
