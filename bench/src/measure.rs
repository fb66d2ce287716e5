//! One measurement: a server, a load, and what it cost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::client::{Client, Leaders};
use crate::limit::{self, Answerer, LimitFile};
use crate::load::kafka::{Produce, Shape};
use crate::load::{self, Mark, Outcome, Plan, Poll, Protocol};
use crate::machine::{self, Device, DeviceCounters};
use crate::node::{self, Node, Program};
use crate::options::{LoadOptions, ServerOptions};
use crate::run::{Cost, FORMAT, Latency, Limit, Load, Measured, Point, Run};

/// Longest wait for answers after the load.
pub const DRAIN: Duration = Duration::from_secs(30);

/// Requests that may wait for answers when a rate is asked for: more than any server lives with.
pub const IN_FLIGHT_MAX: u64 = 1_000_000;

/// Time that the processors' pauses are watched for.
const PAUSES_TIME: Duration = Duration::from_secs(2);

/// A device rests when it wrote next to nothing in some windows, one after the other.
const REST_WINDOW: Duration = Duration::from_millis(100);
const REST_WINDOWS: u32 = 3;
const REST_WINDOWS_MAX: u32 = 50;
const REST_SIZE: u64 = 1 << 20;

/// The server of a run.
pub struct Target {
    /// If it is ours.
    pub node: Option<Node>,
    address: SocketAddr,
    pid: Option<u32>,
    directory: PathBuf,
    device: Option<Device>,
}

impl Target {
    /// Starts a node, or takes the one that runs.
    pub fn open(options: &ServerOptions) -> Result<Self, String> {
        let (node, address, pid, directory) = match options.address {
            Some(address) => {
                let directory = match &options.data_dir {
                    Some(path) => path.clone(),
                    None => node::default_scratch()?,
                };
                let says = |error: std::io::Error| format!("{}: {error}", directory.display());
                std::fs::create_dir_all(&directory).map_err(says)?;
                (None, address, options.server_pid, directory)
            }
            None => {
                let node = Node::start(&options.node())?;
                let (address, pid) = (node.kafka(), node.pid());
                let directory = node.directory().to_owned();
                (Some(node), address, Some(pid), directory)
            }
        };
        machine::check_keeps(&directory)?;
        let device = Device::of(&directory);
        Ok(Self { node, address, pid, directory, device })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A directory on its file system.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its process, if it is known.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Makes a topic and says where its partitions are led.
    pub fn make_topic(
        &self,
        name: &str,
        partitions: u32,
        configs: &[(&str, &str)],
    ) -> Result<Leaders, String> {
        let mut client = Client::open(self.address).map_err(|error| error.to_string())?;
        client.create_topic(name, Some(partitions), configs)?;
        client.leaders(name)
    }

    /// Where the partitions of a topic are led.
    pub fn leaders(&self, name: &str) -> Result<Leaders, String> {
        Client::open(self.address).map_err(|error| error.to_string())?.leaders(name)
    }

    /// Our node goes on as another program, on the same directory.
    pub fn go_on_as(&mut self, program: &Program) -> Result<(), String> {
        let node = self.node.as_mut().ok_or("the node is not ours")?;
        node.go_on_as(program)?;
        self.pid = Some(node.pid());
        Ok(())
    }

    /// Stops it, if it is ours.
    pub fn close(self) -> Result<(), String> {
        match self.node {
            Some(node) => node.stop(),
            None => Ok(()),
        }
    }

    /// Waits until the device has nothing more to write of what was asked before, so that settling
    /// of one load is not in the times of the next, or of a limit. False: it never rested.
    pub fn wait_for_rest(&self) -> Result<bool, String> {
        let Some(device) = &self.device else { return Ok(true) };
        let mut nothing = Poll::new().map_err(|error| error.to_string())?;
        let mut before = device.counters();
        let mut resting = 0;
        for _ in 0..REST_WINDOWS_MAX {
            nothing.wait(Some(REST_WINDOW)).map_err(|error| error.to_string())?.for_each(drop);
            let now = device.counters();
            let written = now.zip(before).map(|(now, before)| now.since(before).written_bytes);
            before = now;
            resting = if written.is_none_or(|size| size < REST_SIZE) { resting + 1 } else { 0 };
            if resting == REST_WINDOWS {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits until the device has nothing to do, and says so if it always has.
    pub fn rest(&self) -> Result<(), String> {
        if !self.wait_for_rest()? {
            eprintln!("the device does not come to rest: somebody else uses it");
        }
        Ok(())
    }

    /// A run without results.
    pub fn describe(&self, kind: &str, options: &ServerOptions) -> Result<Run, String> {
        let binary = self.node.as_ref().map(Node::binary);
        let (commit, notes) = machine::commit(binary);
        let mut configuration = BTreeMap::new();
        let mut arguments = options.server_arg.iter();
        while let Some(name) = arguments.next() {
            let name = name.trim_start_matches('-');
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => (name.to_owned(), arguments.next().cloned().unwrap_or_default()),
            };
            configuration.insert(name, value);
        }
        Ok(Run {
            format: FORMAT,
            kind: kind.to_owned(),
            system: options.system.clone(),
            started_unix_ms: crate::now_ms() as u64,
            round: 1,
            command: std::env::args().collect(),
            commit,
            machine: machine::facts(&self.directory)?,
            sync_method: options.sync.name().to_owned(),
            configuration,
            notes,
            ..Run::default()
        })
    }

    /// What it has cost so far.
    pub fn reading(&self) -> Reading {
        Reading {
            cpu_seconds: self.pid.and_then(machine::process_cpu_seconds),
            device: self.device.as_ref().and_then(Device::counters),
        }
    }

    /// What was spent between two readings on so many records, of so many bytes as sent.
    pub fn cost(
        &self,
        (begin, end): (&Reading, &Reading),
        (records, accepted_bytes): (u64, u64),
        client_cpu_seconds: f64,
    ) -> Cost {
        let per_million =
            |seconds: f64| if records == 0 { 0.0 } else { seconds * 1e6 / records as f64 };
        let cpu = end.cpu_seconds.zip(begin.cpu_seconds).map(|(end, begin)| end - begin);
        let device = end.device.zip(begin.device).map(|(end, begin)| end.since(begin));
        Cost {
            server_cpu_seconds: cpu,
            server_cpu_seconds_per_million_records: cpu.map(per_million),
            client_cpu_seconds,
            client_cpu_seconds_per_million_records: per_million(client_cpu_seconds),
            device_written_bytes: device.map(|device| device.written_bytes),
            device_writes: device.map(|device| device.writes),
            device_flushes: device.map(|device| device.flushes),
            device_source: self.device.as_ref().map(Device::source).unwrap_or_default(),
            device_bytes_per_accepted_byte: device
                .filter(|_| accepted_bytes > 0)
                .map(|device| device.written_bytes as f64 / accepted_bytes as f64),
        }
    }

    /// Runs a load and adds up what it cost.
    pub fn measure(
        &self,
        plan: &Plan,
        protocol: &mut impl Protocol,
        request: Request,
        on_piece: &mut dyn FnMut(Point),
    ) -> Result<Measured, String> {
        self.wait_for_rest()?;
        let (mut begin, mut end) = (Reading::default(), Reading::default());
        let outcome = load::run(plan, protocol, &mut |mark| match mark {
            Mark::Begin => begin = self.reading(),
            Mark::Piece(point) => on_piece(point),
            Mark::End => end = self.reading(),
        })?;
        let records = (outcome.answered * request.records, outcome.answered * request.size);
        let cost = self.cost((&begin, &end), records, outcome.client_cpu_seconds);
        Ok(to_measured(outcome, request, cost))
    }
}

/// What one request carries.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Records.
    pub records: u64,
    /// Bytes of them as sent.
    pub size: u64,
}

/// What a server has cost since it was started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading {
    /// Its processor seconds, if its process is known.
    pub cpu_seconds: Option<f64>,
    /// Counters of the device that its directory is on.
    pub device: Option<DeviceCounters>,
}

fn to_measured(outcome: Outcome, request: Request, cost: Cost) -> Measured {
    let records = outcome.answered * request.records;
    Measured {
        start_ns: outcome.start_ns,
        seconds: outcome.seconds,
        requests: outcome.answered,
        records,
        accepted_bytes: outcome.answered * request.size,
        records_per_second: records as f64 / outcome.seconds,
        refused: outcome.refused,
        unanswered: outcome.unanswered,
        send_delay_us: outcome.send_delay_us,
        latency: outcome.latency,
        series: outcome.series,
        cost,
    }
}

impl LoadOptions {
    /// The requests of this load.
    pub fn shape(&self, records: usize) -> Shape {
        let topic = self.topic.clone();
        Shape {
            topic: topic.unwrap_or_else(|| format!("bench-{:08x}", crate::random() as u32)),
            record_size: self.size as usize,
            records,
            keys: self.keys,
            compression: self.compression.compression(),
            connections: self.connections as usize,
        }
    }

    /// The plan of this load.
    pub fn plan(&self, produce: &Produce, per_second: Option<f64>, in_flight_max: u64) -> Plan {
        Plan {
            addresses: produce.addresses(),
            per_second,
            arrivals: self.arrivals,
            gather: Duration::ZERO,
            in_flight_max,
            warm_up: self.warm_up,
            duration: self.duration,
            piece: Duration::from_secs(1),
            drain: DRAIN,
            spin: self.spin,
            clock: None,
        }
    }

    /// The load as it is told in a run.
    pub fn told(&self, plan: &Plan, produce: &Produce, records: usize, shards: u16) -> Load {
        let arrivals = match plan.per_second {
            Some(_) => format!("{:?}", plan.arrivals).to_lowercase(),
            None => "closed".to_owned(),
        };
        Load {
            requests_per_second: plan.per_second,
            arrivals,
            in_flight_max: plan.in_flight_max,
            record_size: self.size.into(),
            records_per_request: records as u64,
            request_size: produce.request_size(),
            partitions: self.partitions,
            connections: self.connections,
            keys: self.keys,
            compression: self.compression.name(),
            acks: "all".to_owned(),
            warm_up_seconds: plan.warm_up.as_secs_f64(),
            duration_seconds: plan.duration.as_secs_f64(),
            shards: shards.into(),
        }
    }
}

/// The same load against the least server; its latencies and its processor seconds.
pub fn answered_by_limit(
    plan: &Plan,
    produce: &mut Produce,
    file: Option<LimitFile>,
) -> Result<(Latency, Option<f64>), String> {
    let answerer = Answerer::start(file, produce.answer_frame())?;
    let plan = Plan { addresses: vec![answerer.address(); plan.addresses.len()], ..plan.clone() };
    produce.elsewhere();
    let task = answerer.task();
    let (mut begin, mut end) = (None, None);
    let outcome = load::run(&plan, produce, &mut |mark| match mark {
        Mark::Begin => begin = machine::task_cpu_seconds(task),
        Mark::Piece(_) => {}
        Mark::End => end = machine::task_cpu_seconds(task),
    });
    answerer.stop()?;
    let latency = outcome?.latency;
    Ok((latency, end.zip(begin).map(|(end, begin)| end - begin)))
}

/// The limits of a load on the file system of a target, which has nothing to do meanwhile.
pub fn limits(
    plan: &Plan,
    produce: &mut Produce,
    target: &Target,
    method: limit::SyncMethod,
) -> Result<Limit, String> {
    let directory = target.directory();
    target.rest()?;
    let pauses = limit::pauses(PAUSES_TIME.min(plan.duration));
    let depth_one = Duration::from_secs(1).min(plan.duration);
    let durable_write = limit::durable_writes(directory, method, depth_one)?;
    let file = LimitFile::create(directory, limit::FILE_SIZE, method)?;
    let (acknowledgement, cpu) = answered_by_limit(plan, produce, Some(file))?;
    let shorter = Plan { duration: plan.duration.min(Duration::from_secs(5)), ..plan.clone() };
    let (echo, _) = answered_by_limit(&shorter, produce, None)?;
    Ok(Limit {
        acknowledgement: Some(acknowledgement),
        echo: Some(echo),
        durable_write: Some(durable_write),
        sequential_bytes_per_second: None,
        written_twice_bytes_per_second: None,
        pauses: Some(pauses),
        acknowledgement_cpu_seconds: cpu,
    })
}
