//! A disk for tests that forgets, at a crash, whatever was not synced: written data, and names.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{DiskFault, DiskOp, Storage};
use crate::format::FileName;
use crate::limits::BLOCK_SIZE;

/// What a crash leaves of data that were written and not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsynced {
    Lost,
    Kept,
    /// Every other sector.
    Torn,
}

pub(crate) const UNSYNCED: [Unsynced; 3] = [Unsynced::Lost, Unsynced::Kept, Unsynced::Torn];

#[derive(Debug, Clone, Default)]
struct Inode {
    /// Shared between the disks that crashes leave.
    now: Arc<Vec<u8>>,
    synced: Arc<Vec<u8>>,
}

#[derive(Debug, Clone)]
enum NameOp {
    Add(FileName, usize),
    Rename(FileName, FileName, usize),
    Remove(FileName),
}

#[derive(Debug, Clone, Default)]
pub(crate) struct CrashDisk {
    inodes: Vec<Inode>,
    names: BTreeMap<FileName, usize>,
    synced_names: BTreeMap<FileName, usize>,
    unsynced_names: Vec<NameOp>,
}

impl CrashDisk {
    pub(crate) fn run(&mut self, ops: &[DiskOp]) {
        for op in ops {
            self.perform(op).expect("this disk does not fail");
        }
    }

    /// Every disk that a crash now can leave: each set of name changes while they are few; of
    /// many, each prefix, and all but one.
    pub(crate) fn crashes(&self) -> Vec<(String, CrashDisk)> {
        let count = self.unsynced_names.len();
        let sets: Vec<u32> = if count <= 4 {
            (0..1 << count).collect()
        } else {
            let prefixes = (0..=count).map(|kept| (1_u32 << kept) - 1);
            let all = (1_u32 << count) - 1;
            prefixes.chain((0..count).map(|lost| all & !(1 << lost))).collect()
        };
        let is_synced = self.inodes.iter().all(|inode| Arc::ptr_eq(&inode.now, &inode.synced));
        let mut crashes = Vec::new();
        for names in sets {
            for unsynced in if is_synced { &UNSYNCED[..1] } else { &UNSYNCED[..] } {
                crashes.push((format!("{names:b} {unsynced:?}"), self.crash(names, *unsynced)));
            }
        }
        crashes
    }

    fn crash(&self, kept_names: u32, unsynced: Unsynced) -> CrashDisk {
        let mut names = self.synced_names.clone();
        for (at, op) in self.unsynced_names.iter().enumerate() {
            if kept_names & (1 << at) == 0 {
                continue;
            }
            match op.clone() {
                NameOp::Add(file, inode) => drop(names.insert(file, inode)),
                NameOp::Rename(from, to, inode) => {
                    names.remove(&from);
                    names.insert(to, inode);
                }
                NameOp::Remove(file) => drop(names.remove(&file)),
            }
        }
        let inodes = self.inodes.iter().map(|inode| {
            let data = match unsynced {
                _ if Arc::ptr_eq(&inode.now, &inode.synced) => inode.now.clone(),
                Unsynced::Lost => inode.synced.clone(),
                Unsynced::Kept => inode.now.clone(),
                Unsynced::Torn => Arc::new(torn(inode)),
            };
            Inode { now: data.clone(), synced: data }
        });
        CrashDisk {
            inodes: inodes.collect(),
            synced_names: names.clone(),
            names,
            unsynced_names: Vec::new(),
        }
    }

    pub(crate) fn bytes_mut(&mut self, file: &FileName) -> &mut Vec<u8> {
        Arc::make_mut(&mut self.inodes[self.names[file]].now)
    }

    pub(crate) fn bytes(&self, file: &FileName) -> Bytes {
        Bytes::from_owner(Shared(self.inodes[self.names[file]].now.clone()))
    }

    pub(crate) fn remove(&mut self, file: &FileName) {
        self.names.remove(file).expect("the file is there");
    }

    pub(crate) fn files(&self) -> Vec<String> {
        self.names.keys().map(|file| file.to_string()).collect()
    }
}

struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn torn(inode: &Inode) -> Vec<u8> {
    let mut data = inode.synced.to_vec();
    data.resize(inode.now.len(), 0);
    for (at, sector) in inode.now.chunks(512).enumerate() {
        if at % 2 == 1 {
            data[at * 512..at * 512 + sector.len()].copy_from_slice(sector);
        }
    }
    data
}

impl Storage for CrashDisk {
    fn list(&self) -> io::Result<Vec<(FileName, u64)>> {
        let size = |inode: &usize| self.inodes[*inode].now.len() as u64;
        Ok(self.names.iter().map(|(file, inode)| (file.clone(), size(inode))).collect())
    }

    fn read(&self, file: &FileName, offset: u64, size: usize) -> io::Result<Bytes> {
        let inode = self.names.get(file).ok_or(io::ErrorKind::NotFound)?;
        let data = &self.inodes[*inode].now;
        let from = data.len().min(offset as usize);
        let to = data.len().min(from + size);
        Ok(Bytes::copy_from_slice(&data[from..to]))
    }

    fn perform(&mut self, op: &DiskOp) -> Result<(), DiskFault> {
        match op {
            DiskOp::Create { file } => {
                self.inodes.push(Inode::default());
                let inode = self.inodes.len() - 1;
                self.names.insert(file.clone(), inode);
                self.unsynced_names.push(NameOp::Add(file.clone(), inode));
            }
            DiskOp::Write { file, offset, pieces } => {
                assert!(offset.is_multiple_of(BLOCK_SIZE as u64), "writes are aligned");
                let data = self.bytes_mut(file);
                assert_eq!(data.len() as u64, *offset, "files grow without holes");
                for piece in pieces {
                    data.extend_from_slice(piece);
                }
                data.resize(data.len().next_multiple_of(BLOCK_SIZE), 0);
            }
            DiskOp::Zero { file, offset, size } => {
                let data = self.bytes_mut(file);
                data.resize(data.len().max((offset + size) as usize), 0);
            }
            DiskOp::Sync { file } => {
                let inode = &mut self.inodes[self.names[file]];
                inode.synced = inode.now.clone();
            }
            DiskOp::Drain { file } => assert!(self.names.contains_key(file), "the file is there"),
            DiskOp::Rename { from, to } => {
                let inode = self.names.remove(from).expect("the file is there");
                self.names.insert(to.clone(), inode);
                self.unsynced_names.push(NameOp::Rename(from.clone(), to.clone(), inode));
            }
            DiskOp::Remove { file } => {
                if self.names.remove(file).is_some() {
                    self.unsynced_names.push(NameOp::Remove(file.clone()));
                }
            }
            DiskOp::SyncDirectory { .. } => {
                self.synced_names = self.names.clone();
                self.unsynced_names.clear();
            }
        }
        Ok(())
    }
}
