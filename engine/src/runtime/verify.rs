//! The check of a stopped node: its topologies, run once more over what its shards recorded.

use std::path::PathBuf;
use std::sync::Arc;

use tidemill_wal::disk::{Directory, DirectoryOptions, Storage};

use super::identity::{Identity, shard_directory};
use super::node::{LOCK_WAIT, ServeError};
use crate::config::Config;
use crate::replay::{self, Report};
use crate::topology::Plan;

/// Runs these topologies once more over the data directory, which nobody else may use meanwhile.
/// Nothing is written there but what an earlier process left in caches.
pub fn verify_replay(config: &Config, plans: &[Arc<Plan>]) -> Result<Report, ServeError> {
    let data = &config.data_dir;
    let Some(identity) = Identity::load(data)? else {
        let why = format!("{} is no data directory: there is no node.toml", data.display());
        return Err(ServeError::Configuration(why));
    };
    let wal = config.wal_dir.as_ref().unwrap_or(data);
    let open = |shard: u16| {
        let options = DirectoryOptions {
            wal: existing(shard_directory(wal, shard))?,
            data: existing(shard_directory(data, shard))?,
            lock_wait: LOCK_WAIT,
        };
        Directory::open(&options).map_err(ServeError::Directory)
    };
    let directories: Vec<Directory> = (0..identity.shards).map(open).collect::<Result<_, _>>()?;
    let storages: Vec<&dyn Storage> = directories.iter().map(|it| it as &dyn Storage).collect();
    replay::verify(&storages, plans)
        .map_err(|error| ServeError::Open { shard: error.shard, source: Box::new(error.source) })
}

/// It is not to be made here.
fn existing(path: PathBuf) -> Result<PathBuf, ServeError> {
    match path.is_dir() {
        true => Ok(path),
        false => {
            let why = format!("{} is missing; are data_dir and wal_dir right?", path.display());
            Err(ServeError::Configuration(why))
        }
    }
}
