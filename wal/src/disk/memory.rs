//! A directory in memory, for tests and for tools' tests. Every operation is durable at once; a
//! crash between operations is a clone.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

use super::{DiskFault, DiskOp, Storage};
use crate::format::FileName;
use crate::limits::BLOCK_SIZE;

/// Files in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryStorage {
    files: BTreeMap<FileName, Vec<u8>>,
    /// How many bytes all files may have together; no limit if `None`.
    size_max: Option<usize>,
}

impl MemoryStorage {
    /// No files.
    pub fn new() -> Self {
        Self::default()
    }

    /// A disk that is full once all files together have this size.
    pub fn limit(&mut self, size_max: usize) {
        self.size_max = Some(size_max);
    }

    /// The contents of a file.
    pub fn file(&self, file: &FileName) -> Option<&[u8]> {
        self.files.get(file).map(Vec::as_slice)
    }

    /// The contents of a file, to damage them. Created empty if it is not there.
    pub fn file_mut(&mut self, file: &FileName) -> &mut Vec<u8> {
        self.files.entry(file.clone()).or_default()
    }

    /// Every name, in order.
    pub fn names(&self) -> impl Iterator<Item = &FileName> {
        self.files.keys()
    }

    fn write(&mut self, file: &FileName, offset: u64, bytes: &[u8]) -> Result<(), DiskFault> {
        let end = (offset as usize + bytes.len()).next_multiple_of(BLOCK_SIZE);
        let all: usize = self.files.values().map(Vec::len).sum();
        let contents = self.existing(file, "write")?;
        let growth = end.saturating_sub(contents.len());
        if growth > 0 && self.size_max.is_some_and(|max| all + growth > max) {
            return Err(DiskFault::Full { file: file.clone() });
        }
        let contents = self.existing(file, "write")?;
        if contents.len() < end {
            contents.resize(end, 0);
        }
        let (written, padding) = contents[offset as usize..end].split_at_mut(bytes.len());
        written.copy_from_slice(bytes);
        padding.fill(0);
        Ok(())
    }

    fn existing(
        &mut self,
        file: &FileName,
        operation: &'static str,
    ) -> Result<&mut Vec<u8>, DiskFault> {
        self.files.get_mut(file).ok_or_else(|| DiskFault::Failed {
            operation,
            file: file.clone(),
            source: io::ErrorKind::NotFound.into(),
        })
    }
}

impl Storage for MemoryStorage {
    fn list(&self) -> io::Result<Vec<(FileName, u64)>> {
        Ok(self.files.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect())
    }

    fn read(&self, file: &FileName, offset: u64, size: usize) -> io::Result<Bytes> {
        let contents = self.files.get(file).ok_or(io::ErrorKind::NotFound)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(contents.len());
        let end = start.saturating_add(size).min(contents.len());
        Ok(Bytes::copy_from_slice(&contents[start..end]))
    }

    fn perform(&mut self, op: &DiskOp) -> Result<(), DiskFault> {
        match op {
            DiskOp::Create { file } => {
                self.files.insert(file.clone(), Vec::new());
            }
            DiskOp::Write { file, offset, pieces } => {
                self.write(file, *offset, &pieces.concat())?;
            }
            DiskOp::Zero { file, offset, size } => {
                self.write(file, *offset, &vec![0; *size as usize])?;
            }
            DiskOp::Sync { file } | DiskOp::Drain { file } => {
                self.existing(file, "sync")?;
            }
            DiskOp::Rename { from, to } => {
                self.existing(from, "rename")?;
                let contents = self.files.remove(from).expect("it exists");
                self.files.insert(to.clone(), contents);
            }
            DiskOp::Remove { file } => {
                self.files.remove(file);
            }
            DiskOp::SyncDirectory { place: _ } => {}
        }
        Ok(())
    }
}
