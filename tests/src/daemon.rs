//! The real `tidemill` process: started on free ports, killed, stopped and started again.
//!
//! Waits are for events: a line of the log, the end of a pipe, an HTTP answer. Each has a deadline,
//! and a test that misses it fails with the end of the log. A daemon that goes out of scope is
//! killed.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longest wait for a start or an end; a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often readiness is asked for when the log is silent.
const READY_TICK: Duration = Duration::from_millis(20);
/// Longest wait for an answer of the admin interface.
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);
/// Lines of the log that are kept.
const LOG_LINES_MAX: usize = 4096;
/// Ports that one daemon may take: one for each shard, and one for the admin interface.
const PORTS_PER_DAEMON: u16 = 16;
/// Below the ports that the kernel gives to outgoing connections, so that a client that reconnects
/// cannot take the port of a daemon that is down.
const PORTS: std::ops::Range<u16> = 18_000..32_000;

/// A `tidemill serve` of a test's own.
pub struct Daemon {
    data: TempDir,
    kafka: SocketAddr,
    admin: SocketAddr,
    command: Vec<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    process: Option<Process>,
    log: Log,
}

/// What differs from one test's daemon to another's.
#[derive(Debug, Clone)]
pub struct Options {
    /// Shards of the data directory.
    pub shards: u16,
    /// Arguments after those that every daemon gets.
    pub arguments: Vec<String>,
    /// Environment variables beside the caller's; the caller's own `TIDEMILL_*` are not passed on.
    pub environment: Vec<(String, String)>,
    /// What to start instead of the binary under test: a command that runs it in other
    /// circumstances, in the same process.
    pub command: Vec<String>,
    /// Where to make the data directory, instead of in the target directory.
    pub scratch: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            shards: 2,
            arguments: Vec::new(),
            environment: Vec::new(),
            command: Vec::new(),
            scratch: None,
        }
    }
}

impl Daemon {
    /// Starts a daemon on an empty directory and waits until it is ready.
    pub fn start(options: Options) -> Daemon {
        let mut daemon = Daemon::prepare(options);
        daemon.restart();
        daemon
    }

    /// An empty directory and free ports, with nothing running.
    pub fn prepare(options: Options) -> Daemon {
        let data = tempfile::Builder::new()
            .prefix("data-")
            .tempdir_in(options.scratch.unwrap_or_else(scratch))
            .expect("a scratch directory can be made");
        let (kafka, admin) = free_ports();
        let shards = options.shards.to_string();
        let mut arguments: Vec<String> =
            ["serve", "--data-dir", &data.path().display().to_string()].map(String::from).into();
        arguments.extend(["--kafka-listen".into(), kafka.to_string()]);
        arguments.extend(["--admin-listen".into(), admin.to_string()]);
        arguments.extend(["--shards".into(), shards]);
        arguments.extend(options.arguments);
        let mut command = options.command;
        if command.is_empty() {
            command.push(binary().display().to_string());
        }
        let environment = options.environment;
        let (process, log) = (None, Log::default());
        Daemon { data, kafka, admin, command, arguments, environment, process, log }
    }

    /// Sets a variable of its environment, from the next start on.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the process again on the same directory and ports, and waits until it is ready.
    pub fn restart(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    /// Starts the process and does not wait.
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "one process at a time");
        self.log.push("--- start".into());
        let mut command = Command::new(&self.command[0]);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIDEMILL_")) {
            command.env_remove(name);
        }
        command
            .args(&self.command[1..])
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", self.command[0]));
        let (sender, lines) = channel();
        self.log.follow(child.stdout.take().expect("piped"), sender.clone());
        self.log.follow(child.stderr.take().expect("piped"), sender);
        self.process = Some(Process { child, lines });
    }

    /// Waits until `/health/ready` says 200.
    pub fn wait_ready(&mut self) {
        self.try_wait_ready().unwrap_or_else(|why| self.fail(why));
    }

    /// Waits until `/health/ready` says 200; an error says what happened instead.
    pub fn try_wait_ready(&mut self) -> Result<(), &'static str> {
        let deadline = Instant::now() + PATIENCE;
        while self.get("/health/ready").is_none_or(|answer| answer.status != 200) {
            if Instant::now() > deadline {
                return Err("is not ready in time");
            }
            let process = self.process.as_ref().expect("started");
            match process.lines.recv_timeout(READY_TICK) {
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("ended before it was ready"),
            }
        }
        Ok(())
    }

    /// Waits until the log has a line with this text, and returns the line.
    pub fn wait_log(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.log.lines().into_iter().rev().find(|line| line.contains(text))
            {
                return line;
            }
            let process = self.process.as_ref().expect("started");
            let left = deadline.saturating_duration_since(Instant::now());
            if process.lines.recv_timeout(left).is_err() && !self.log.has(text) {
                self.fail(&format!("never says {text:?}"));
            }
        }
    }

    /// Ends the process with SIGKILL: no warning, nothing flushed.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("started");
        process.child.kill().expect("a child of ours");
        process.child.wait().expect("a child of ours");
        self.log.push("--- killed".into());
    }

    /// Asks the process to stop with SIGTERM and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        self.try_terminate().unwrap_or_else(|why| self.fail(why))
    }

    /// Asks the process to stop with SIGTERM; an error says that it does not.
    pub fn try_terminate(&mut self) -> Result<ExitStatus, &'static str> {
        self.signal(libc::SIGTERM);
        self.try_wait_exit()
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: i32) {
        send_signal(&self.process.as_ref().expect("started").child, signal);
    }

    /// Waits until the process has ended by itself.
    pub fn wait_exit(&mut self) -> ExitStatus {
        self.try_wait_exit().unwrap_or_else(|why| self.fail(why))
    }

    /// How the process ended by itself, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let child = &mut self.process.as_mut().expect("started").child;
        child.try_wait().expect("a child of ours")
    }

    fn try_wait_exit(&mut self) -> Result<ExitStatus, &'static str> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let process = self.process.as_ref().expect("started");
            let left = deadline.saturating_duration_since(Instant::now());
            match process.lines.recv_timeout(left) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Err("does not end in time"),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = self.process.take().expect("started").child.wait().expect("a child of ours");
        self.log.push(format!("--- {status}"));
        Ok(status)
    }

    /// Whether it was started and neither killed nor waited for.
    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// Where Kafka clients connect.
    pub fn kafka(&self) -> SocketAddr {
        self.kafka
    }

    /// Where the admin interface listens.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        self.data.path()
    }

    /// Runs the topologies of this command once more over what it recorded while it was running: the
    /// exit code, and what it said.
    pub fn verify_replay(&self) -> (Option<i32>, String) {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).arg("--verify-replay");
        command.arg("--data-dir").arg(self.data.path());
        said(command)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("started").child.id()
    }

    /// The log of all processes so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Asks the admin interface; `None` if there is no answer.
    pub fn get(&self, path: &str) -> Option<Answer> {
        let mut stream = TcpStream::connect_timeout(&self.admin, HTTP_TIMEOUT).ok()?;
        stream.set_read_timeout(Some(HTTP_TIMEOUT)).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: tidemill\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, body: body.into() })
    }

    fn fail(&self, why: &str) -> ! {
        panic!("the daemon {why}; the end of its log is above");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
        if thread::panicking() {
            for line in self.log.lines().iter().rev().take(60).rev() {
                eprintln!("daemon: {line}");
            }
        }
    }
}

/// An answer of the admin interface.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// What follows the headers, as it came.
    pub body: String,
}

struct Process {
    child: Child,
    /// One message for each line; disconnected when the process has closed its output.
    lines: Receiver<()>,
}

/// The last lines of a process and those before it.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<VecDeque<String>>>);

impl Log {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().expect("no panic while it is held");
        if lines.len() == LOG_LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no panic while it is held").iter().cloned().collect()
    }

    fn has(&self, text: &str) -> bool {
        self.lines().iter().any(|line| line.contains(text))
    }

    fn follow(&self, pipe: impl Read + Send + 'static, sender: Sender<()>) {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                log.push(line);
                // Nobody has to listen.
                let _ = sender.send(());
            }
        });
    }
}

/// The exit code of a command and all that it says, without the caller's `TIDEMILL_*`.
pub fn said(mut command: Command) -> (Option<i32>, String) {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIDEMILL_")) {
        command.env_remove(name);
    }
    let output = command.output().expect("it starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate in a workspace")
}

/// The `tidemill` under test: `TIDEMILL_BIN`, or what Cargo builds beside this test.
pub fn binary() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find("tidemill", "TIDEMILL_BIN"))
}

/// The `tidemill-dump` under test: `TIDEMILL_DUMP_BIN`, or what Cargo builds beside this test.
pub fn dump_binary() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find("tidemill-dump", "TIDEMILL_DUMP_BIN"))
}

/// The node with the topologies of [`crate::exactly_once`], which Cargo builds beside this test.
pub fn counting_binary() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find("counting_node", "TIDEMILL_COUNTING_NODE_BIN"))
}

/// The node whose topology dies of some records, which Cargo builds beside this test.
pub fn deadly_binary() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find("deadly_node", "TIDEMILL_DEADLY_NODE_BIN"))
}

/// The node of [`crate::drifting`], which Cargo builds beside this test.
pub fn drifting_binary() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find("drifting_node", "TIDEMILL_DRIFTING_NODE_BIN"))
}

fn find(name: &str, variable: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        let path = repository().join(path);
        assert!(path.is_file(), "{variable} is {}, which is no file", path.display());
        return path;
    }
    let profile = profile_dir();
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(repository()).args(["build", "--workspace", "--bin", name]);
    if profile.file_name().is_some_and(|profile| profile == "release") {
        build.arg("--release");
    }
    let status = build.status().expect("cargo runs");
    assert!(status.success(), "{name} does not build");
    profile.join(name)
}

/// `target/debug` or `target/release`, wherever the running test or program was built.
fn profile_dir() -> PathBuf {
    let program = std::env::current_exe().expect("a program has a file");
    let directory = program.parent().expect("a file is in a directory");
    let is_test = directory.file_name().is_some_and(|name| name == "deps");
    let profile =
        if is_test { directory.parent().expect("target/<profile>/deps") } else { directory };
    profile.to_path_buf()
}

/// Where data directories go: in the target directory, for `/tmp` may be memory, without O_DIRECT.
pub fn scratch() -> PathBuf {
    let scratch = profile_dir().parent().expect("target/<profile>").join("scratch");
    std::fs::create_dir_all(&scratch).expect("the target directory can be written");
    scratch
}

/// A block of ports that nobody listens on: the first for Kafka, where more follow for more shards,
/// the last for the admin interface. The kernel gives none of them to connections by itself.
pub fn free_ports() -> (SocketAddr, SocketAddr) {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let blocks = (PORTS.end - PORTS.start) / PORTS_PER_DAEMON;
    // Test processes that run side by side start at different blocks.
    let first = (std::process::id() as u16).wrapping_mul(37);
    for _ in 0..blocks {
        let block = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % blocks;
        let ports = PORTS.start + block * PORTS_PER_DAEMON..;
        let mut free = ports.take(PORTS_PER_DAEMON.into());
        if free.all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()) {
            let kafka = PORTS.start + block * PORTS_PER_DAEMON;
            let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            return (at(kafka), at(kafka + PORTS_PER_DAEMON - 1));
        }
    }
    panic!("no free ports in {PORTS:?}");
}

/// Sends a signal to a child that has not been waited for.
pub(crate) fn send_signal(child: &Child, signal: i32) {
    let pid = libc::pid_t::try_from(child.id()).expect("a process id");
    // SAFETY: kill has no memory effects; an unreaped child keeps its id, so it is ours.
    let result = unsafe { libc::kill(pid, signal) };
    assert_eq!(result, 0, "a child of ours can be signalled");
}
