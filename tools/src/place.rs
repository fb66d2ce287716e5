//! What a path on the command line is: a data directory, one shard of it, or one file.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tidemill::runtime::identity::{Identity, IdentityError, shard_directory};
use tidemill_wal::delta::DELTA_SUFFIX;
use tidemill_wal::disk::Directory;
use tidemill_wal::extent::EXTENT_SUFFIX;
use tidemill_wal::format::{FileName, SegmentId};
use tidemill_wal::manifest::version_of;
use tidemill_wal::segment::{self, NameKind};
use tidemill_wal::snapshot::SNAPSHOT_SUFFIX;

use crate::Failure;

/// What is to be looked at.
pub enum Target {
    /// A data directory, or a part of one.
    Node(Node),
    /// One file.
    File(ShardFile),
}

/// A data directory.
pub struct Node {
    /// Its path.
    pub data: PathBuf,
    /// Where the WAL is; mostly the same.
    pub wal: PathBuf,
    /// What it says about itself; `Ok(None)` if the file that says so is not there.
    pub identity: Result<Option<Identity>, IdentityError>,
    /// The shards to look at.
    pub shards: Vec<u16>,
}

/// One file of a shard.
pub struct ShardFile {
    /// The directory it is in.
    pub directory: PathBuf,
    /// Its name.
    pub name: FileName,
    /// What it is.
    pub kind: FileKind,
}

/// The kinds of files in a shard's directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// A WAL segment.
    Segment(SegmentId),
    /// Record batches.
    Extent,
    /// All of the state.
    Snapshot,
    /// Changes of it.
    Delta,
    /// Which files count.
    Manifest(u64),
    /// Room for a manifest on a full disk, unfinished files, others.
    Other,
}

impl FileKind {
    /// Tells from the name.
    pub fn of(name: &FileName) -> Self {
        if let NameKind::Segment(id) = segment::parse_name(name) {
            return Self::Segment(id);
        }
        if let Some(version) = version_of(name) {
            return Self::Manifest(version);
        }
        let suffixes = [
            (EXTENT_SUFFIX, Self::Extent),
            (SNAPSHOT_SUFFIX, Self::Snapshot),
            (DELTA_SUFFIX, Self::Delta),
        ];
        let is_finished = !name.0.starts_with(tidemill_wal::plan::TEMPORARY);
        let found = suffixes.into_iter().find(|(suffix, _)| name.0.ends_with(suffix));
        found.filter(|_| is_finished).map_or(Self::Other, |(_, kind)| kind)
    }
}

impl Node {
    /// A shard's files, to be read beside whoever writes them.
    pub fn open(&self, shard: u16) -> Directory {
        let (wal, data) = (self.wal.as_path(), self.data.as_path());
        Directory::open_read_only(shard_directory(wal, shard), shard_directory(data, shard))
    }

    /// How many shards there are, as far as can be told.
    pub fn shard_count(&self) -> u16 {
        let counted = match &self.identity {
            Ok(Some(identity)) => identity.shards,
            Ok(None) | Err(_) => 0,
        };
        counted.max(self.shards.iter().max().map_or(0, |last| last + 1)).max(1)
    }
}

/// Looks at what is there.
pub fn find(path: &Path, wal_dir: Option<&Path>) -> Result<Target, Failure> {
    let unreadable = |error| Failure::Unreadable(format!("{}: {error}", path.display()));
    if fs::metadata(path).map_err(unreadable)?.is_file() {
        return file(path).map(Target::File);
    }
    if let Some(shard) = shard_of(path) {
        let absolute = fs::canonicalize(path).map_err(unreadable)?;
        let data = absolute.parent().unwrap_or(Path::new("/"));
        return Ok(Target::Node(node(data, wal_dir, Some(shard))?));
    }
    Ok(Target::Node(node(path, wal_dir, None)?))
}

/// The data directory at a path.
pub fn node(data: &Path, wal_dir: Option<&Path>, only: Option<u16>) -> Result<Node, Failure> {
    let unreadable = |error| Failure::Unreadable(format!("{}: {error}", data.display()));
    let mut shards = BTreeSet::new();
    for entry in fs::read_dir(data).map_err(unreadable)? {
        shards.extend(shard_of(&entry.map_err(unreadable)?.path()));
    }
    let identity = match Identity::load(data) {
        Err(IdentityError::Missing { .. }) => Ok(None),
        identity => identity,
    };
    if let Ok(Some(identity)) = &identity {
        shards.extend(0..identity.shards);
    } else if shards.is_empty() {
        return Err(Failure::Usage(format!(
            "{} is no data directory: it has neither node.toml nor a shard",
            data.display()
        )));
    }
    let shards = match only {
        Some(shard) => vec![shard],
        None => shards.into_iter().collect(),
    };
    let wal = wal_dir.unwrap_or(data).to_owned();
    Ok(Node { data: data.to_owned(), wal, identity, shards })
}

/// The number of a shard's directory, from its name.
fn shard_of(path: &Path) -> Option<u16> {
    let name = path.file_name()?.to_str()?;
    let shard = name.strip_prefix("shard-")?.parse().ok()?;
    (shard_directory(Path::new(""), shard).to_str() == Some(name)).then_some(shard)
}

fn file(path: &Path) -> Result<ShardFile, Failure> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = FileName(name.into());
    let kind = FileKind::of(&name);
    if kind == FileKind::Other {
        return Err(Failure::Usage(format!(
            "{}: by its name it is no segment (wal-N.seg), extent (.ext), snapshot (.snap), delta \
             file (.dlt) or manifest",
            path.display()
        )));
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    };
    Ok(ShardFile { directory, name, kind })
}
