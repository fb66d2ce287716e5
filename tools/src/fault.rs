//! Something that is not as it was written, and where.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tidemill_wal::damage::FileFault;
use tidemill_wal::disk::{Directory, Storage};
use tidemill_wal::format::FileName;
use tidemill_wal::recovery::ScanError;
use tidemill_wal::store::StoreError;

/// One fault. Two are equal if they are at the same place for the same reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The shard's file; `None` if the fault is of the whole directory.
    pub name: Option<FileName>,
    /// The file or directory.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub position: u64,
    /// What is wrong.
    pub why: String,
    /// A newer release wrote it: not damage.
    pub is_too_new: bool,
}

impl Fault {
    /// A fault in a file of a shard.
    pub fn of_file(
        directory: &Directory,
        file: &FileName,
        position: u64,
        why: impl fmt::Display,
    ) -> Self {
        Self {
            path: directory.path(file),
            name: Some(file.clone()),
            position,
            why: why.to_string(),
            is_too_new: false,
        }
    }

    /// A fault of a directory, or of a file that is no shard's.
    pub fn of_path(path: &Path, why: impl fmt::Display) -> Self {
        Self {
            path: path.to_owned(),
            name: None,
            position: 0,
            why: why.to_string(),
            is_too_new: false,
        }
    }

    /// What a reader of one file found.
    pub fn of_reader(directory: &Directory, file: &FileName, fault: &FileFault) -> Self {
        match fault {
            FileFault::Damage(damage) => {
                Self::of_file(directory, file, damage.position, &damage.why)
            }
            FileFault::Read { position, source } => {
                Self::of_file(directory, file, *position, format!("cannot be read: {source}"))
            }
        }
    }

    /// What loading the manifest and its files found.
    pub fn of_store(directory: &Directory, error: &StoreError) -> Self {
        match error {
            StoreError::Corrupt { file, damage, hint: _ } => {
                Self::of_file(directory, file, damage.position, &damage.why)
            }
            StoreError::Missing { file, manifest } => {
                Self::of_file(directory, file, 0, format!("missing, but {manifest} names it"))
            }
            StoreError::NoManifest { file } => {
                Self::of_file(directory, file, 0, "there is no manifest, but this file needs one")
            }
            StoreError::TooNew { file, found } => Self {
                is_too_new: true,
                ..Self::of_file(directory, file, 0, format!("format {found} is of a newer release"))
            },
            StoreError::Read { file, position, source } => {
                Self::of_file(directory, file, *position, format!("cannot be read: {source}"))
            }
            StoreError::List(source) => {
                Self::of_path(&data_path(directory), format!("cannot be listed: {source}"))
            }
        }
    }

    /// What a scan of the WAL found.
    pub fn of_scan(directory: &Directory, error: &ScanError) -> Self {
        match error {
            ScanError::Corrupt { file, offset, why, .. } => {
                Self::of_file(directory, file, *offset, why)
            }
            ScanError::Missing { file, sequence, .. } => Self::of_file(
                directory,
                file,
                0,
                format!(
                    "missing, though frame {sequence} was durable; if the WAL is elsewhere, name \
                     it with --wal-dir"
                ),
            ),
            ScanError::TooNew { file, offset, found } => Self {
                is_too_new: true,
                ..Self::of_file(
                    directory,
                    file,
                    *offset,
                    format!("format {found} is of a newer release"),
                )
            },
            ScanError::Rejected { file, offset, sequence, why } => {
                Self::of_file(directory, file, *offset, format!("frame {sequence}: {why}"))
            }
            ScanError::Io { file, offset, source } => {
                Self::of_file(directory, file, *offset, format!("cannot be read: {source}"))
            }
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "fault": self.why,
            "file": self.path.display().to_string(),
            "position": self.position,
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: byte {}: {}", self.path.display(), self.position, self.why)
    }
}

fn data_path(directory: &Directory) -> PathBuf {
    let path = directory.path(&FileName("manifest".into()));
    path.parent().map(Path::to_owned).unwrap_or_default()
}

/// Whether a file is there now: beside a running node files come and go.
pub fn exists(directory: &Directory, file: &FileName) -> bool {
    let list = directory.list().unwrap_or_default();
    list.iter().any(|(name, _)| name == file)
}
