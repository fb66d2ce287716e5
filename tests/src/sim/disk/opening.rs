//! A disk during recovery: it may be cut short after any operation, and any operation may fail.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;

use bytes::Bytes;
use tidemill_wal::disk::{DiskFault, DiskOp, Storage};
use tidemill_wal::format::FileName;
use tidemill_wal::segment;

use super::{Disk, Sabotage, io_error};

/// A disk during recovery.
pub struct Opening<'a> {
    /// The disk.
    disk: &'a mut Disk,
    /// Operations until the machine ends once more; never if `None`.
    ops_until_crash: Option<u64>,
    /// Files that recovery read, and that are therefore synced.
    read: RefCell<BTreeSet<FileName>>,
    has_failed: Cell<bool>,
}

impl<'a> Opening<'a> {
    /// Opens a disk; the machine ends after so many operations.
    pub fn new(disk: &'a mut Disk, ops_until_crash: Option<u64>) -> Self {
        Self { disk, ops_until_crash, read: RefCell::default(), has_failed: Cell::new(false) }
    }

    /// The machine ended during recovery.
    pub fn is_crashed(&self) -> bool {
        self.ops_until_crash == Some(0)
    }

    /// Operations that are left until the machine ends.
    pub fn ops_until_crash(&self) -> Option<u64> {
        self.ops_until_crash
    }

    /// Whether something failed that may work the next time.
    pub fn has_failed(&self) -> bool {
        self.has_failed.get()
    }

    /// What recovery read is durable.
    pub fn sync_read(&mut self) {
        for file in self.read.take() {
            if let Some(inode) = self.disk.inode_mut(&file) {
                inode.sync();
            }
        }
    }

    fn fail_read(&self) -> io::Result<()> {
        let fails = self.disk.fails_to_read();
        self.has_failed.set(self.has_failed.get() || fails);
        if fails { Err(io_error()) } else { Ok(()) }
    }
}

impl Storage for Opening<'_> {
    fn list(&self) -> io::Result<Vec<(FileName, u64)>> {
        self.fail_read()?;
        self.disk.list()
    }

    fn read(&self, file: &FileName, offset: u64, size: usize) -> io::Result<Bytes> {
        self.fail_read()?;
        self.read.borrow_mut().insert(file.clone());
        self.disk.read(file, offset, size)
    }

    fn perform(&mut self, op: &DiskOp) -> Result<(), DiskFault> {
        self.sync_read();
        match &mut self.ops_until_crash {
            Some(0) => {
                let (operation, file) = ("anything", FileName("a machine without power".into()));
                let source = io::ErrorKind::Other.into();
                return Err(DiskFault::Failed { operation, file, source });
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let is_seal =
            |file: &FileName| matches!(segment::parse_name(file), segment::NameKind::Segment(_));
        let result = match op {
            DiskOp::Write { file, .. }
                if is_seal(file) && self.disk.sabotage == Some(Sabotage::SkipStartSeal) =>
            {
                Ok(())
            }
            op => self.disk.perform(op),
        };
        if let Err(DiskFault::Failed { .. }) = &result {
            self.has_failed.set(true);
        }
        result
    }
}
