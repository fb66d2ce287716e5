//! Real clients as processes: what they acknowledge, read and commit comes back as events.
//!
//! The programs and their lines are described in `tests/clients/README.md`; `tests/setup` installs
//! them. All processes of a test share one bounded channel, so a test that stops to look also stops
//! the clients: nobody runs away while a test kills the daemon "in the middle".

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::{repository, send_signal};

/// Events that wait for the test; beyond it the clients wait.
const EVENTS_MAX: usize = 64;
/// Lines of a client's standard error that are kept for a failure.
const COMPLAINTS_MAX: usize = 40;
/// Size of a record's value: its key and dots.
pub const VALUE_SIZE: usize = 120;

/// A client library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Client {
    /// kcat: librdkafka as Debian ships it.
    Kcat,
    /// confluent-kafka: a current librdkafka.
    Confluent,
    /// kafka-python.
    KafkaPython,
    /// aiokafka.
    Aiokafka,
    /// The Java client.
    Java,
    /// franz-go.
    FranzGo,
}

/// Records `first .. first + count`: the number is the key, `number % partitions` the partition.
/// Except kcat's, whose partition is its own choice.
#[derive(Debug, Clone)]
pub struct Produce<'a> {
    /// Topic.
    pub topic: &'a str,
    /// First key.
    pub first: u64,
    /// How many records.
    pub count: u64,
    /// Partitions of the topic.
    pub partitions: u32,
    /// Compression by its Kafka name, or none.
    pub codec: Option<&'a str>,
}

/// A member of a consumer group, from the committed offset or the start.
#[derive(Debug, Clone)]
pub struct Consume<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Group.
    pub group: &'a str,
    /// Static membership: `group.instance.id`.
    pub instance: Option<&'a str>,
    /// `cooperative-sticky` or `range`, or the client's default.
    pub assignor: Option<&'a str>,
}

/// Names one process among a test's clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(usize);

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The broker acknowledged one record. kcat does not say which: its key is `None`.
    Ack {
        /// Partition.
        partition: u32,
        /// Offset.
        offset: u64,
        /// Key, if the client says it.
        key: Option<u64>,
    },
    /// The member has these partitions now.
    Assigned(Vec<u32>),
    /// The member read a record.
    Record {
        /// Partition.
        partition: u32,
        /// Offset.
        offset: u64,
        /// Key.
        key: u64,
    },
    /// The broker confirmed this committed offset.
    Committed {
        /// Partition.
        partition: u32,
        /// First offset that the group has not read.
        offset: u64,
    },
    /// A line with a record whose value is not the one that was sent.
    Changed(String),
    /// The process ended; `true` is status 0.
    Ended(bool),
}

/// The client processes of one test; those that still run at its end are killed.
pub struct Clients {
    broker: SocketAddr,
    deadline: Instant,
    processes: Vec<Process>,
    sender: SyncSender<(ClientId, Event)>,
    events: Receiver<(ClientId, Event)>,
}

struct Process {
    client: Client,
    child: Child,
    /// Open while a consumer shall run; kcat's producer reads its records from a thread instead.
    stdin: Option<ChildStdin>,
    complaints: Arc<Mutex<VecDeque<String>>>,
}

impl Clients {
    /// Clients of this broker, all of which must be done within `patience`.
    pub fn new(broker: SocketAddr, patience: Duration) -> Clients {
        let (sender, events) = sync_channel(EVENTS_MAX);
        let deadline = Instant::now() + patience;
        Clients { broker, deadline, processes: Vec::new(), sender, events }
    }

    /// Starts a producer.
    pub fn produce(&mut self, client: Client, produce: &Produce<'_>) -> ClientId {
        let Produce { topic, first, count, partitions, codec } = *produce;
        if client == Client::Kcat {
            return self.produce_kcat(produce);
        }
        let mut command = program(client);
        command.args(["produce", &self.broker.to_string(), topic]);
        command.args([first.to_string(), count.to_string(), partitions.to_string()]);
        command.args(codec.map(|codec| format!("codec={codec}")));
        command.stdin(Stdio::null());
        self.spawn(client, command, Pipe::Stdout, parse_line)
    }

    /// Starts a member of a group; it runs until `stop`.
    pub fn consume(&mut self, client: Client, consume: &Consume<'_>) -> ClientId {
        let Consume { topic, group, instance, assignor } = *consume;
        let broker = self.broker.to_string();
        let mut command = program(client);
        if client == Client::Kcat {
            command.args(["-b", &broker, "-G", group, "-E", "-u", "-f", "record %p %o %k %s\\n"]);
            command.args(KCAT_SETTINGS);
            command.args(["-X", "auto.offset.reset=earliest", "-X", "session.timeout.ms=10000"]);
            command.args(["-X", "heartbeat.interval.ms=300", topic]);
        } else {
            command.args(["consume", &broker, topic, group]);
        }
        command.args(instance.map(|instance| format!("instance={instance}")));
        command.args(assignor.map(|assignor| format!("assignor={assignor}")));
        command.stdin(Stdio::piped());
        self.spawn(client, command, Pipe::Stdout, parse_line)
    }

    /// Asks a consumer to commit, leave its group and end; `Event::Ended` follows.
    pub fn stop(&mut self, id: ClientId) {
        let process = &mut self.processes[id.0];
        let stdin = process.stdin.take();
        assert!(stdin.is_some(), "a running consumer is stopped once");
        if process.client == Client::Kcat {
            send_signal(&process.child, libc::SIGTERM);
        }
    }

    /// Ends a client with SIGKILL: it does not leave its group. `Event::Ended(false)` follows.
    pub fn kill(&mut self, id: ClientId) {
        send_signal(&self.processes[id.0].child, libc::SIGKILL);
    }

    /// The next event of any client; fails the test when the time is up.
    pub fn next_event(&mut self) -> (ClientId, Event) {
        self.poll(self.deadline).expect("the clients are not done in time")
    }

    /// The next event of any client; `None` if there is none up to this moment.
    pub fn poll(&mut self, until: Instant) -> Option<(ClientId, Event)> {
        let left = until.saturating_duration_since(Instant::now());
        let (id, event) = self.events.recv_timeout(left).ok()?;
        if let Event::Ended(_) = event {
            // Its output is closed, so this does not take long.
            let status = self.processes[id.0].child.wait().expect("a child of ours");
            return Some((id, Event::Ended(status.success())));
        }
        Some((id, event))
    }

    /// What a client wrote to its standard error lately.
    pub fn complaints(&self, id: ClientId) -> Vec<String> {
        let complaints = &self.processes[id.0].complaints;
        complaints.lock().expect("no panic while it is held").iter().cloned().collect()
    }

    fn produce_kcat(&mut self, produce: &Produce<'_>) -> ClientId {
        let mut command = program(Client::Kcat);
        command.args([
            "-b",
            &self.broker.to_string(),
            "-P",
            "-t",
            produce.topic,
            "-K:",
            "-E",
            "-vvv",
        ]);
        command.args(KCAT_SETTINGS);
        command.args(["-X", "acks=all", "-X", "enable.idempotence=true", "-X", "batch.size=8192"]);
        command.args(["-X", "queue.buffering.max.messages=2000", "-X", "linger.ms=1"]);
        command.args(["-X", "message.timeout.ms=60000"]);
        command.args(produce.codec.map(|codec| format!("-Xcompression.codec={codec}")));
        command.stdin(Stdio::piped());
        let id = self.spawn(Client::Kcat, command, Pipe::Stderr, parse_kcat);
        let mut stdin = self.processes[id.0].stdin.take().expect("piped");
        let keys = produce.first..produce.first + produce.count;
        thread::spawn(move || {
            for key in keys {
                let value = format!("{key:.<VALUE_SIZE$}");
                if writeln!(stdin, "{key}:{value}").is_err() {
                    return; // kcat ended early, and its exit status tells.
                }
            }
        });
        id
    }

    fn spawn(
        &mut self,
        client: Client,
        mut command: Command,
        pipe: Pipe,
        parse: fn(&str) -> Option<Event>,
    ) -> ClientId {
        let id = ClientId(self.processes.len());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("{client:?} does not start: {error}; tests/setup installs the clients")
        });
        let stdin = child.stdin.take();
        let stdout: Box<dyn Read + Send> = Box::new(child.stdout.take().expect("piped"));
        let stderr: Box<dyn Read + Send> = Box::new(child.stderr.take().expect("piped"));
        let (events, rest) = match pipe {
            Pipe::Stdout => (stdout, stderr),
            Pipe::Stderr => (stderr, stdout),
        };
        let complaints = Arc::new(Mutex::new(VecDeque::new()));
        let process = Process { client, child, stdin, complaints: Arc::clone(&complaints) };
        self.processes.push(process);

        let sender = self.sender.clone();
        let assigned = (client == Client::Kcat).then(|| self.sender.clone());
        let rest_complaints = Arc::clone(&complaints);
        thread::spawn(move || {
            for line in lines(rest) {
                if let (Some(sender), Some(event)) = (&assigned, parse_kcat(&line)) {
                    let _ = sender.send((id, event));
                }
                remember(&rest_complaints, line);
            }
        });
        thread::spawn(move || {
            let mut last_read = Vec::new();
            for line in lines(events) {
                match parse(&line) {
                    Some(event) => {
                        if client == Client::Kcat {
                            note_last_read(&mut last_read, &event);
                        }
                        if sender.send((id, event)).is_err() {
                            return; // The test is over.
                        }
                    }
                    None => remember(&complaints, line),
                }
            }
            // kcat commits what it has read when it ends, and does not say so.
            for (partition, offset) in last_read {
                let _ = sender.send((id, Event::Committed { partition, offset }));
            }
            let _ = sender.send((id, Event::Ended(false)));
        });
        id
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for (index, process) in self.processes.iter_mut().enumerate() {
            let _ = process.child.kill();
            let _ = process.child.wait();
            if thread::panicking() {
                for line in process.complaints.lock().expect("no panic while it is held").iter() {
                    eprintln!("client {index}, {:?}: {line}", process.client);
                }
            }
        }
    }
}

/// Where a client's events are; the other one is only kept for a failure.
enum Pipe {
    Stdout,
    Stderr,
}

const KCAT_SETTINGS: [&str; 4] =
    ["-X", "reconnect.backoff.ms=50", "-X", "reconnect.backoff.max.ms=200"];

fn program(client: Client) -> Command {
    let installed = installed();
    let python = |script: &str| {
        let mut command = Command::new(installed.join("venv/bin/python"));
        command.arg(repository().join("tests/clients/python").join(script));
        command
    };
    match client {
        Client::Kcat => Command::new("kcat"),
        Client::Confluent => python("confluent_client.py"),
        Client::KafkaPython => python("kafka_python_client.py"),
        Client::Aiokafka => python("aiokafka_client.py"),
        Client::Java => java("Client", "warn"),
        Client::FranzGo => Command::new(installed.join("go/client")),
    }
}

fn java(class: &str, log_level: &str) -> Command {
    let java = installed().join("java");
    let mut command = Command::new("java");
    // A short life on few cores: do not optimise much, do not start many threads.
    command.args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
    command.arg(format!("-Dorg.slf4j.simpleLogger.defaultLogLevel={log_level}"));
    command.arg("-cp").arg(format!("{0}/classes:{0}/lib/*", java.display()));
    command.arg(format!("tidemill.clients.{class}"));
    command
}

/// Where `tests/setup` puts the clients.
fn installed() -> PathBuf {
    repository().join("target/clients")
}

fn lines(pipe: impl Read) -> impl Iterator<Item = String> {
    BufReader::new(pipe).lines().map_while(Result::ok)
}

fn remember(complaints: &Mutex<VecDeque<String>>, line: String) {
    let mut complaints = complaints.lock().expect("no panic while it is held");
    if complaints.len() == COMPLAINTS_MAX {
        complaints.pop_front();
    }
    complaints.push_back(line);
}

fn note_last_read(last_read: &mut Vec<(u32, u64)>, event: &Event) {
    let Event::Record { partition, offset, .. } = *event else { return };
    match last_read.iter_mut().find(|(known, _)| *known == partition) {
        Some((_, next)) => *next = offset + 1,
        None => last_read.push((partition, offset + 1)),
    }
}

/// A line of `tests/clients/README.md`; `None` if it is something else.
fn parse_line(line: &str) -> Option<Event> {
    let words: Vec<&str> = line.split(' ').collect();
    match *words.as_slice() {
        ["ack", partition, offset, key] => Some(Event::Ack {
            partition: partition.parse().ok()?,
            offset: offset.parse().ok()?,
            key: Some(key.parse().ok()?),
        }),
        ["assigned", list] => Some(Event::Assigned(numbers(list.split(',')))),
        ["record", partition, offset, key, value] => {
            if value.len() != VALUE_SIZE || value.trim_end_matches('.') != key {
                return Some(Event::Changed(line.into()));
            }
            Some(Event::Record {
                partition: partition.parse().ok()?,
                offset: offset.parse().ok()?,
                key: key.parse().ok()?,
            })
        }
        ["committed", partition, offset] => Some(Event::Committed {
            partition: partition.parse().ok()?,
            offset: offset.parse().ok()?,
        }),
        _ => None,
    }
}

/// What kcat says on standard error: deliveries and rebalances.
fn parse_kcat(line: &str) -> Option<Event> {
    if let Some(delivered) = line.strip_prefix("% Message delivered to partition ") {
        let (partition, rest) = delivered.split_once(" (offset ")?;
        let (offset, _) = rest.split_once(')')?;
        let (partition, offset) = (partition.parse().ok()?, offset.parse().ok()?);
        return Some(Event::Ack { partition, offset, key: None });
    }
    let (_, assigned) = line.split_once(": assigned: ")?;
    let partitions = assigned.split(['[', ']']).skip(1).step_by(2);
    Some(Event::Assigned(numbers(partitions)))
}

fn numbers<'a>(words: impl Iterator<Item = &'a str>) -> Vec<u32> {
    words.filter_map(|word| word.parse().ok()).collect()
}

/// Kafka's command-line tools of the Java distribution, in one JVM.
pub struct JavaTools {
    broker: SocketAddr,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<std::process::ChildStdout>,
}

impl JavaTools {
    /// Tools that talk to this broker.
    pub fn start(broker: SocketAddr) -> JavaTools {
        let mut command = java("Tools", "off");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("java does not start: {error}; tests/setup installs the clients")
        });
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        JavaTools { broker, child, stdin, stdout }
    }

    /// Runs one command, to which `--bootstrap-server` is added: its exit status and its output.
    pub fn run(&mut self, command: &str) -> (i32, String) {
        let mut line = format!("{command} --bootstrap-server {}", self.broker).replace(' ', "\t");
        line.push('\n');
        self.stdin.write_all(line.as_bytes()).expect("the tools run");
        let mut output = String::new();
        loop {
            let mut line = String::new();
            let size = self.stdout.read_line(&mut line).expect("the tools run");
            assert!(size > 0, "the tools ended in {command:?} after {output}");
            if let Some(status) = line.strip_prefix("--- exit ") {
                return (status.trim().parse().expect("an exit status"), output);
            }
            output.push_str(&line);
        }
    }
}

impl Drop for JavaTools {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Creates a topic over the wire, with CreateTopics version 4, which needs no library.
pub fn create_topic(broker: SocketAddr, name: &str, partitions: u32) {
    const CREATE_TOPICS: i16 = 19;
    const VERSION: i16 = 4;
    const TIMEOUT_MS: i32 = 20_000;
    let mut request = Vec::new();
    request.extend(CREATE_TOPICS.to_be_bytes());
    request.extend(VERSION.to_be_bytes());
    request.extend(1i32.to_be_bytes()); // Correlation id.
    request.extend((-1i16).to_be_bytes()); // No client id.
    request.extend(1i32.to_be_bytes()); // One topic.
    request.extend(i16::try_from(name.len()).expect("a short name").to_be_bytes());
    request.extend(name.as_bytes());
    request.extend(i32::try_from(partitions).expect("few partitions").to_be_bytes());
    request.extend(1i16.to_be_bytes()); // Replication factor.
    request.extend(0i32.to_be_bytes()); // No assignments.
    request.extend(0i32.to_be_bytes()); // No configuration.
    request.extend(TIMEOUT_MS.to_be_bytes());
    request.push(0); // Not only to validate.

    let mut stream = TcpStream::connect(broker).expect("the broker listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a valid timeout");
    let size = i32::try_from(request.len()).expect("a small request");
    stream.write_all(&size.to_be_bytes()).expect("the broker reads");
    stream.write_all(&request).expect("the broker reads");
    let mut size = [0; 4];
    stream.read_exact(&mut size).expect("the broker answers");
    let mut response = vec![0; usize::try_from(i32::from_be_bytes(size)).expect("a size")];
    stream.read_exact(&mut response).expect("the broker answers");
    // Correlation id, throttle time, count, length of the name, name, error code.
    let at = 4 + 4 + 4 + 2 + name.len();
    let error = i16::from_be_bytes([response[at], response[at + 1]]);
    assert_eq!(error, 0, "topic {name} cannot be created");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_the_programs_are_events() {
        let value = format!("{:.<VALUE_SIZE$}", 7);
        let lines = ["ack 1 20 7", "assigned 0,3", "assigned ", &format!("record 1 20 7 {value}")];
        let events: Vec<_> = lines.iter().map(|line| parse_line(line)).collect();
        assert_eq!(
            events,
            [
                Some(Event::Ack { partition: 1, offset: 20, key: Some(7) }),
                Some(Event::Assigned(vec![0, 3])),
                Some(Event::Assigned(vec![])),
                Some(Event::Record { partition: 1, offset: 20, key: 7 }),
            ]
        );
        assert_eq!(
            parse_line("committed 2 21"),
            Some(Event::Committed { partition: 2, offset: 21 })
        );
        assert_eq!(parse_line("something else"), None);
    }

    #[test]
    fn a_record_with_another_value_is_told_as_such() {
        let line = "record 1 20 7 8......";
        assert_eq!(parse_line(line), Some(Event::Changed(line.into())));
    }

    #[test]
    fn kcat_tells_of_deliveries_and_assignments() {
        assert_eq!(
            parse_kcat("% Message delivered to partition 1 (offset 1250) on broker 1"),
            Some(Event::Ack { partition: 1, offset: 1250, key: None })
        );
        assert_eq!(
            parse_kcat("% Group kg rebalanced (memberid rdkafka-1): assigned: t4 [0], t4 [12]"),
            Some(Event::Assigned(vec![0, 12]))
        );
        assert_eq!(parse_kcat("% Waiting for group rebalance"), None);
    }
}
