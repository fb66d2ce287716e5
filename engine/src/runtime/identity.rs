//! What a data directory says about itself: which node it is, with how many shards.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Name of the file.
pub const FILE: &str = "node.toml";

/// Version of the directory's layout that this build writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Written once, when the directory is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the directory's layout.
    pub format: u32,
    /// The node's id: a UUID in hexadecimal.
    pub node: String,
    /// How many shards the data are divided among.
    pub shards: u16,
}

/// Why the directory's identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is there but makes no sense.
    #[error(
        "{path} is damaged: {why}. It holds `format`, `node` and `shards`; restore it from a copy \
         of the directory"
    )]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// Written by a newer release.
    #[error("{path} has format {found}, this build reads up to {FORMAT_VERSION}; use a newer one")]
    TooNew {
        /// The file.
        path: String,
        /// Its format.
        found: u32,
    },
    /// Data without the file that names them.
    #[error(
        "{path} is missing, but the directory holds data of shards; restore the file from a copy"
    )]
    Missing {
        /// The file.
        path: String,
    },
}

impl Identity {
    /// Reads the identity, or `None` in a new directory.
    pub fn load(directory: &Path) -> Result<Option<Self>, IdentityError> {
        let path = directory.join(FILE);
        let shown = path.display().to_string();
        let mut text = String::new();
        match File::open(&path).and_then(|file| file.take(1 << 16).read_to_string(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return match shard_directory(directory, 0).exists() {
                    true => Err(IdentityError::Missing { path: shown }),
                    false => Ok(None),
                };
            }
            Err(source) => return Err(IdentityError::Io { path: shown, source }),
        }
        let identity: Self = toml::from_str(&text).map_err(|error| IdentityError::Damaged {
            path: shown.clone(),
            why: error.message().to_owned(),
        })?;
        if identity.format > FORMAT_VERSION {
            return Err(IdentityError::TooNew { path: shown, found: identity.format });
        }
        if identity.node_bytes().is_none() || identity.shards == 0 {
            let why = "the node is not 32 hexadecimal digits, or there are no shards".to_owned();
            return Err(IdentityError::Damaged { path: shown, why });
        }
        Ok(Some(identity))
    }

    /// Writes the identity of a new directory, durably.
    pub fn store(&self, directory: &Path) -> Result<(), IdentityError> {
        let path = directory.join(FILE);
        let write = || -> io::Result<()> {
            let temporary = directory.join("node.toml.tmp");
            let text = format!(
                "# Written by Tidemill when the directory was made. Do not change.\n\
                 format = {}\nnode = \"{}\"\nshards = {}\n",
                self.format, self.node, self.shards
            );
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(directory)?.sync_all()
        };
        write().map_err(|source| IdentityError::Io { path: path.display().to_string(), source })
    }

    /// The node's id as bytes.
    pub fn node_bytes(&self) -> Option<[u8; 16]> {
        uuid::Uuid::parse_str(&self.node).ok().map(uuid::Uuid::into_bytes)
    }
}

/// Where one shard's files are below the data or the WAL directory.
pub fn shard_directory(directory: &Path, shard: u16) -> std::path::PathBuf {
    directory.join(format!("shard-{shard:04}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            format: FORMAT_VERSION,
            node: "0123456789abcdef0123456789abcdef".to_owned(),
            shards: 2,
        }
    }

    #[test]
    fn an_identity_is_read_back() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        assert!(matches!(Identity::load(directory.path()), Ok(None)));
        identity().store(directory.path()).expect("writable");
        let loaded = Identity::load(directory.path()).expect("readable");
        assert_eq!(loaded, Some(identity()));
    }

    #[test]
    fn damage_and_newer_formats_are_told_apart() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let newer = Identity { format: 9, ..identity() };
        newer.store(directory.path()).expect("writable");
        let error = Identity::load(directory.path()).expect_err("too new");
        assert!(matches!(error, IdentityError::TooNew { found: 9, .. }));
        fs::write(directory.path().join(FILE), "format = 1\nnode = \"x\"\nshards = 2\n")
            .expect("writable");
        let error = Identity::load(directory.path()).expect_err("no id");
        assert!(matches!(error, IdentityError::Damaged { .. }));
    }

    #[test]
    fn data_without_identity_are_not_taken_for_a_new_directory() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(shard_directory(directory.path(), 0)).expect("writable");
        let error = Identity::load(directory.path()).expect_err("data are there");
        assert!(matches!(error, IdentityError::Missing { .. }));
    }
}
