//! One of the systems that are compared: opened for one scenario on an empty directory, and closed.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use crate::limit::SyncMethod;
use crate::machine;
use crate::measure::Target;
use crate::options::ServerOptions;
use crate::peers::{Installed, Peer, Process, Speaks};
use crate::run::Run;

/// What Tidemill is called, unless it is compared with itself.
pub const TIDEMILL: &str = "tidemill";

/// A system.
#[derive(Debug, Clone)]
pub enum System {
    /// Started by us.
    Tidemill {
        /// As it is called in results.
        name: String,
        /// The server; none: `tidemill` beside this program.
        binary: Option<PathBuf>,
    },
    /// Started by us.
    Peer(Peer),
    /// Speaks Kafka's protocol and runs already.
    Address {
        /// As it is called in results.
        name: String,
        /// Where.
        address: SocketAddr,
    },
}

/// What all systems are opened with.
#[derive(Debug, Clone)]
pub struct Ground {
    /// Where peers are installed.
    pub installed: Installed,
    /// A directory on the file system to measure.
    pub data: PathBuf,
    /// Shards of Tidemill.
    pub shards: u16,
    /// Its further arguments.
    pub arguments: Vec<String>,
}

/// A system that runs.
pub struct Opened {
    /// For measuring.
    pub target: Target,
    /// Its protocol.
    pub speaks: Speaks,
    options: ServerOptions,
    configuration: BTreeMap<String, String>,
    sync_method: String,
    /// A peer's; it ends with this.
    _process: Option<Process>,
}

impl System {
    /// As it is called in results.
    pub fn name(&self) -> &str {
        match self {
            Self::Tidemill { name, .. } | Self::Address { name, .. } => name,
            Self::Peer(peer) => peer.name(),
        }
    }

    /// Its protocol.
    pub fn speaks(&self) -> Speaks {
        match self {
            Self::Tidemill { .. } | Self::Address { .. } => Speaks::Kafka,
            Self::Peer(peer) => peer.speaks(),
        }
    }

    /// Starts it, or takes the one that runs.
    pub fn open(&self, ground: &Ground) -> Result<Opened, String> {
        let mut options = ground.server_options(self.name());
        match self {
            Self::Tidemill { binary, .. } => {
                options.server.clone_from(binary);
                let target = Target::open(&options)?;
                let sync_method = options.sync.name().to_owned();
                let configuration = BTreeMap::new();
                Ok(Opened {
                    target,
                    speaks: Speaks::Kafka,
                    options,
                    configuration,
                    sync_method,
                    _process: None,
                })
            }
            Self::Peer(peer) => {
                let directory = ground.new_directory(peer.name())?;
                let running = ground.installed.start(*peer, &directory)?;
                options.address = Some(running.address);
                options.server_pid = Some(running.process.pid());
                Ok(Opened {
                    target: Target::open(&options)?,
                    speaks: peer.speaks(),
                    options,
                    configuration: running.configuration,
                    sync_method: peer.promise().to_owned(),
                    _process: Some(running.process),
                })
            }
            Self::Address { address, .. } => {
                options.address = Some(*address);
                Ok(Opened {
                    target: Target::open(&options)?,
                    speaks: Speaks::Kafka,
                    options,
                    configuration: BTreeMap::new(),
                    sync_method: "as it was configured".to_owned(),
                    _process: None,
                })
            }
        }
    }
}

impl Opened {
    /// A run without results.
    pub fn describe(&self, kind: &str) -> Result<Run, String> {
        let mut run = self.target.describe(kind, &self.options)?;
        run.configuration.extend(self.configuration.clone());
        run.sync_method.clone_from(&self.sync_method);
        Ok(run)
    }

    /// Stops it, if it is ours.
    pub fn close(self) -> Result<(), String> {
        self.target.close()
    }
}

impl Ground {
    /// Makes the directory, and refuses one that keeps nothing.
    pub fn prepare(&self) -> Result<(), String> {
        let says = |error: std::io::Error| format!("{}: {error}", self.data.display());
        std::fs::create_dir_all(&self.data).map_err(says)?;
        machine::check_keeps(&self.data)
    }

    /// Makes a directory of its own for something that runs.
    pub fn new_directory(&self, name: &str) -> Result<PathBuf, String> {
        let name = format!("{name}-{}-{:08x}", std::process::id(), crate::random() as u32);
        let says = |error: std::io::Error| format!("{}: {error}", self.data.display());
        let data = Path::canonicalize(&self.data).map_err(says)?;
        let directory = data.join(name);
        std::fs::create_dir(&directory).map_err(says)?;
        Ok(directory)
    }

    fn server_options(&self, system: &str) -> ServerOptions {
        ServerOptions {
            address: None,
            server_pid: None,
            system: system.to_owned(),
            server: None,
            data_dir: Some(self.data.clone()),
            shards: self.shards,
            sync: SyncMethod::Dsync,
            server_arg: self.arguments.clone(),
            keep: false,
        }
    }
}

/// Reads `NAME=HOST:PORT`.
pub fn parse_address(text: &str) -> Result<System, String> {
    let (name, address) = text.split_once('=').ok_or("write NAME=HOST:PORT")?;
    let mut found = address.to_socket_addrs().map_err(|error| format!("{address}: {error}"))?;
    let address = found.next().ok_or_else(|| format!("{address} is nowhere"))?;
    if name.is_empty() {
        return Err("write a name before the address".to_owned());
    }
    Ok(System::Address { name: name.to_owned(), address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_name() {
        let System::Address { name, address } =
            parse_address("klite=127.0.0.1:9092").expect("good")
        else {
            panic!("an address");
        };
        assert_eq!((name.as_str(), address.port()), ("klite", 9092));
        for wrong in ["127.0.0.1:9092", "=127.0.0.1:9092", "klite=127.0.0.1", ""] {
            assert!(parse_address(wrong).is_err(), "{wrong}");
        }
    }
}
