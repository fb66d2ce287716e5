//! A peer's process: started on a directory of its own, stopped and removed in the end.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::load::Poll;

/// Longest wait for a start.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How often a server that starts is tried.
const START_TICK: Duration = Duration::from_millis(50);

/// Longest wait for an end that was asked for; then it is killed.
const STOP_TICKS_MAX: u32 = 600;

/// A server that runs.
pub struct Process {
    name: String,
    child: Child,
    directory: PathBuf,
    log: PathBuf,
}

impl Process {
    /// Starts a command. Its output goes to a file in the directory, which is removed in the end.
    pub fn start(name: &str, mut command: Command, directory: &Path) -> Result<Self, String> {
        let log = directory.join("server.log");
        let says = |error: io::Error| format!("{name}: {error}");
        let output = File::create(&log).map_err(says)?;
        let errors = output.try_clone().map_err(says)?;
        // In a group of its own, so that a Ctrl-C here ends it by us and not beside us.
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        let child = command.spawn().map_err(says)?;
        Ok(Self { name: name.to_owned(), child, directory: directory.to_owned(), log })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tries until something succeeds, the process ends, or the time is over.
    pub fn wait_until<T>(
        &mut self,
        mut attempt: impl FnMut() -> Result<T, String>,
    ) -> Result<T, String> {
        let started = Instant::now();
        loop {
            let why = match attempt() {
                Ok(done) => return Ok(done),
                Err(why) => why,
            };
            let ended = self.child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || started.elapsed() > START_TIMEOUT {
                return Err(format!("{} does not start: {why}\n{}", self.name, self.log_end()));
            }
            tick()?;
        }
    }

    /// Waits until it listens.
    pub fn wait_listening(&mut self, address: SocketAddr) -> Result<(), String> {
        self.wait_until(|| TcpStream::connect(address).map(drop).map_err(|it| it.to_string()))
    }

    /// The last lines of what it wrote.
    pub fn log_end(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    fn end(&mut self) -> io::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        // SAFETY: takes numbers only; the child was not waited for, so its number is its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        for _ in 0..STOP_TICKS_MAX {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            tick().map_err(io::Error::other)?;
        }
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{} cannot be stopped: {error}", self.name);
        }
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("{}: {error}", self.directory.display());
        }
    }
}

/// Waits a moment.
fn tick() -> Result<(), String> {
    let mut nothing = Poll::new().map_err(|error| error.to_string())?;
    let events = nothing.wait(Some(START_TICK)).map_err(|error| error.to_string())?;
    drop(events);
    Ok(())
}
