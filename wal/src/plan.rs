//! Plans a new immutable file: written under a temporary name, drained as it grows, synced and renamed
//! when it is whole. So a name without [`TEMPORARY`] in front always means a file that was finished.

use bytes::Bytes;

use crate::disk::DiskOp;
use crate::format::FileName;
use crate::limits::BLOCK_SIZE;
use crate::mutation::{self, Mutation};

/// Begins the names of files that are not finished; they are removed at start.
pub const TEMPORARY: &str = "tmp-";

/// Bytes of one write: large enough for the disk's full speed, small enough that a frame of the
/// WAL never waits long behind one.
pub const WRITE_SIZE: usize = 1 << 20;

/// Bytes after which a file that grows leaves the drive's cache, so that a flush of the WAL has no more
/// than this to drain.
pub const DRAIN_SIZE_DEFAULT: usize = 4 << 20;

const _: () = assert!(WRITE_SIZE.is_multiple_of(BLOCK_SIZE));

/// The name under which a file is written.
pub fn temporary(file: &FileName) -> FileName {
    FileName(format!("{TEMPORARY}{file}").into())
}

/// A file under construction: bytes in, operations out.
#[derive(Debug)]
pub(crate) struct FilePlan {
    file: FileName,
    drain_size: usize,
    /// Bytes in write operations so far.
    written: u64,
    undrained: usize,
    pending: Vec<Bytes>,
    pending_size: usize,
    ops: Vec<DiskOp>,
}

impl FilePlan {
    /// Begins `file`, which is a temporary name.
    pub(crate) fn new(file: FileName, drain_size: usize) -> Self {
        assert!(file.0.starts_with(TEMPORARY));
        let ops = vec![DiskOp::Create { file: file.clone() }];
        Self {
            file,
            drain_size,
            written: 0,
            undrained: 0,
            pending: Vec::new(),
            pending_size: 0,
            ops,
        }
    }

    /// Appends bytes without copying them.
    pub(crate) fn push(&mut self, mut bytes: Bytes) {
        while self.pending_size + bytes.len() >= WRITE_SIZE {
            let piece = bytes.split_to(WRITE_SIZE - self.pending_size);
            self.pending_size += piece.len();
            self.pending.push(piece);
            self.write_pending();
        }
        if !bytes.is_empty() {
            self.pending_size += bytes.len();
            self.pending.push(bytes);
        }
    }

    /// The operations planned since the last call.
    pub(crate) fn take_ops(&mut self) -> Vec<DiskOp> {
        std::mem::take(&mut self.ops)
    }

    /// Writes the rest, makes the file durable and gives it its name. Returns its size, and the
    /// operations not yet taken. The rename is durable after a sync of the directory.
    pub(crate) fn finish(mut self, file: &FileName) -> (u64, Vec<DiskOp>) {
        self.write_pending();
        // The sync does it.
        self.ops.pop_if(|op| matches!(op, DiskOp::Drain { .. }));
        if self.written > 0 && !mutation::is_on(Mutation::SkipFileSync) {
            self.ops.push(DiskOp::Sync { file: self.file.clone() });
        }
        self.ops.push(DiskOp::Rename { from: self.file, to: file.clone() });
        (self.written, self.ops)
    }

    fn write_pending(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let size = self.pending_size.next_multiple_of(BLOCK_SIZE);
        self.ops.push(DiskOp::Write {
            file: self.file.clone(),
            offset: self.written,
            pieces: std::mem::take(&mut self.pending),
        });
        self.written += size as u64;
        self.undrained += size;
        self.pending_size = 0;
        if self.undrained >= self.drain_size {
            self.ops.push(DiskOp::Drain { file: self.file.clone() });
            self.undrained = 0;
        }
    }
}

/// Plans a whole file from its pieces. Returns its size and the operations.
pub(crate) fn whole_file(
    file: &FileName,
    pieces: impl IntoIterator<Item = Bytes>,
    drain_size: usize,
) -> (u64, Vec<DiskOp>) {
    let mut plan = FilePlan::new(temporary(file), drain_size);
    for piece in pieces {
        plan.push(piece);
    }
    plan.finish(file)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn large_pieces_are_cut_to_aligned_writes_and_drained_on_the_way() {
        let (size, ops) = whole_file(
            &FileName("x.ext".into()),
            [Bytes::from(vec![1; 10]), Bytes::from(vec![2; 3 << 20])],
            2 << 20,
        );
        assert_eq!(size, (3 << 20) + 4096);
        let trace: Vec<String> = ops
            .iter()
            .map(|op| match op {
                DiskOp::Write { offset, pieces, .. } => {
                    format!(
                        "write {offset} {:?}",
                        pieces.iter().map(Bytes::len).collect::<Vec<_>>()
                    )
                }
                op => format!("{op:?}").replace("FileName", ""),
            })
            .collect();
        expect![[r#"
            Create { file: ("tmp-x.ext") }
            write 0 [10, 1048566]
            write 1048576 [1048576]
            Drain { file: ("tmp-x.ext") }
            write 2097152 [1048576]
            write 3145728 [10]
            Sync { file: ("tmp-x.ext") }
            Rename { from: ("tmp-x.ext"), to: ("x.ext") }"#]]
        .assert_eq(&trace.join("\n"));
    }

    #[test]
    fn a_file_that_ends_with_a_drain_is_synced_before_it_gets_its_name() {
        let pieces = [Bytes::from(vec![1; 2 << 20])];
        let (_, ops) = whole_file(&FileName("x.ext".into()), pieces, 1 << 20);
        let kinds: Vec<_> = ops.iter().map(std::mem::discriminant).collect();
        let file = || FileName("tmp-x.ext".into());
        let write = || DiskOp::Write { file: file(), offset: 0, pieces: Vec::new() };
        let rename = DiskOp::Rename { from: file(), to: FileName("x.ext".into()) };
        let wanted = [
            DiskOp::Create { file: file() },
            write(),
            DiskOp::Drain { file: file() },
            write(),
            DiskOp::Sync { file: file() },
            rename,
        ];
        assert_eq!(kinds, wanted.iter().map(std::mem::discriminant).collect::<Vec<_>>());
    }
}
