//! A Tidemill node of the run's own: started beside this program on an empty directory, stopped and
//! removed in the end.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::load::Poll;
use crate::machine;

/// Longest wait for a start.
const START_TIMEOUT: Duration = Duration::from_secs(600);

/// How often a node that starts is asked whether it is ready.
const READY_TICK: Duration = Duration::from_millis(1);

/// Longest wait for an answer of the admin port.
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);

/// Below the ports that the kernel gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 18_000..32_000;

/// What to start.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The server; none: `tidemill` beside this program.
    pub binary: Option<PathBuf>,
    /// Where to make the directory of the run; none: beside the build.
    pub scratch: Option<PathBuf>,
    /// Shards.
    pub shards: u16,
    /// Further arguments of `tidemill serve`.
    pub arguments: Vec<String>,
    /// Leave the directory in the end.
    pub keep: bool,
}

/// What a node goes on as.
#[derive(Debug, Clone)]
pub struct Program {
    /// The binary.
    pub binary: PathBuf,
    /// What it is asked to do: `serve`, or a command of its own with that one's options.
    pub command: Vec<String>,
    /// Settings beside those that the node began with.
    pub settings: Vec<String>,
}

/// A process, or none for the moment.
pub struct Node {
    binary: PathBuf,
    /// What it is asked to do, before its settings: `serve`.
    command: Vec<String>,
    directory: PathBuf,
    arguments: Vec<String>,
    /// Further settings, which the next program may change.
    further: Vec<String>,
    kafka: SocketAddr,
    admin: SocketAddr,
    child: Option<Child>,
    keep: bool,
}

impl Node {
    /// Starts on an empty directory and waits until it is ready.
    pub fn start(options: &NodeOptions) -> Result<Self, String> {
        let binary = match &options.binary {
            Some(path) => path.clone(),
            None => beside_us("tidemill")?,
        };
        if !binary.is_file() {
            let shown = binary.display();
            return Err(format!("{shown} is missing: cargo build --release, or say --server"));
        }
        let scratch = match &options.scratch {
            Some(path) => path.clone(),
            None => default_scratch()?,
        };
        let directory = scratch.join(format!("run-{}-{:08x}", std::process::id(), ports_seed()));
        let says = |error: io::Error| format!("{}: {error}", directory.display());
        fs::create_dir_all(&directory).map_err(says)?;
        machine::check_keeps(&directory)?;
        let base = free_ports(options.shards + 1)?;
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (admin, kafka) = (local(base), local(base + 1));
        let mut arguments: Vec<String> =
            vec!["--data-dir".into(), directory.join("data").display().to_string()];
        arguments.extend(["--kafka-listen".into(), kafka.to_string()]);
        arguments.extend(["--admin-listen".into(), admin.to_string()]);
        arguments.extend(["--shards".into(), options.shards.to_string()]);
        arguments.extend(options.arguments.iter().cloned());
        let mut node = Self {
            binary,
            command: vec!["serve".into()],
            directory,
            arguments,
            further: Vec::new(),
            kafka,
            admin,
            child: None,
            keep: options.keep,
        };
        node.spawn()?;
        node.wait_ready()?;
        Ok(node)
    }

    /// Starts the process and does not wait.
    pub fn spawn(&mut self) -> Result<(), String> {
        assert!(self.child.is_none(), "one process at a time");
        let says = |error: io::Error| format!("{}: {error}", self.binary.display());
        let log = File::options().create(true).append(true).open(self.log_path()).map_err(says)?;
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIDEMILL_")) {
            command.env_remove(name);
        }
        command.args(&self.command).args(&self.arguments).args(&self.further);
        command.stdin(Stdio::null());
        // Nothing is written to standard output: its end is the end of the process.
        let child = command.stdout(Stdio::piped()).stderr(log).spawn().map_err(says)?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until the admin port says that it is ready.
    pub fn wait_ready(&mut self) -> Result<(), String> {
        let child = self.child.as_mut().expect("started");
        let mut poll = Poll::new().map_err(|error| error.to_string())?;
        let output = child.stdout.as_ref().expect("piped");
        poll.add(output, 0).map_err(|error| error.to_string())?;
        let deadline = Instant::now() + START_TIMEOUT;
        while get(self.admin, "/health/ready").is_none_or(|(status, _)| status != 200) {
            if Instant::now() > deadline {
                return Err(format!("the node is not ready after {START_TIMEOUT:?}"));
            }
            let events = poll.wait(Some(READY_TICK)).map_err(|error| error.to_string())?;
            if events.count() > 0 {
                return Err(format!("the node ended before it was ready: {}", self.log_end()));
            }
        }
        Ok(())
    }

    /// Ends it with SIGKILL: nothing is flushed.
    pub fn kill(&mut self) -> Result<(), String> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().and_then(|()| child.wait()).map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Stops it, and goes on as another program with the same settings, on the same directory.
    pub fn go_on_as(&mut self, program: &Program) -> Result<(), String> {
        self.end()?;
        self.binary.clone_from(&program.binary);
        self.command.clone_from(&program.command);
        self.further.clone_from(&program.settings);
        self.spawn()?;
        self.wait_ready()
    }

    /// Asks it to stop, and waits.
    pub fn stop(mut self) -> Result<(), String> {
        self.end()
    }

    fn end(&mut self) -> Result<(), String> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        // SAFETY: takes numbers only; the child was not waited for, so its number is its own.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
        let status = child.wait().map_err(|error| error.to_string())?;
        if status.success() {
            return Ok(());
        }
        Err(format!("the node ended with {status}: {}", self.log_end()))
    }

    /// Where Kafka clients connect.
    pub fn kafka(&self) -> SocketAddr {
        self.kafka
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("started").id()
    }

    /// What was started.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The directory of the run, on the node's file system.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The sum of a metric over all its labels.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics()?.sum(name)
    }

    /// All metrics, as they are now.
    pub fn metrics(&self) -> Option<Metrics> {
        self.page("/metrics").map(Metrics)
    }

    /// A page of the admin port; none if it does not come.
    pub fn page(&self, path: &str) -> Option<String> {
        let (_, body) = get(self.admin, path).filter(|(status, _)| *status == 200)?;
        Some(body)
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("server.log")
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

/// A page of metrics.
#[derive(Debug, Clone)]
pub struct Metrics(String);

impl Metrics {
    /// The sum of a metric over all its labels.
    pub fn sum(&self, name: &str) -> Option<f64> {
        let of_name =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let values = self.0.lines().filter(of_name).filter_map(|line| line.rsplit_once(' '));
        let values: Vec<f64> = values.filter_map(|(_, value)| value.parse().ok()).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // On the way out after an error there is nobody to tell another one.
        let _ = self.kill();
        if !self.keep {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// A program of the same build.
pub fn beside_us(name: &str) -> Result<PathBuf, String> {
    let us = std::env::current_exe().map_err(|error| error.to_string())?;
    Ok(us.with_file_name(name))
}

/// A directory beside the build, on whatever file system that is.
pub fn default_scratch() -> Result<PathBuf, String> {
    let us = std::env::current_exe().map_err(|error| error.to_string())?;
    let profile = us.parent().ok_or("this program is in no directory")?;
    Ok(profile.with_file_name("bench-data"))
}

fn ports_seed() -> u32 {
    crate::random() as u32
}

/// The first of some ports in a row that are free now.
pub fn free_ports(count: u16) -> Result<u16, String> {
    let room = (PORTS.end - PORTS.start - count) / count;
    for attempt in 0..1000 {
        let slot = (ports_seed().wrapping_add(attempt)) % u32::from(room);
        let base = PORTS.start + slot as u16 * count;
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if (base..base + count).all(is_free) {
            return Ok(base);
        }
    }
    Err("no free ports".to_owned())
}

/// Status and body of a page.
fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(HTTP_TIMEOUT)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
