//! Starting and stopping a node.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;
use tidemill_wal::disk::{
    Directory, DirectoryError, DirectoryOptions, ProbeError, Storage, SyncMethod, probe_disk,
    probe_io_uring,
};
use tidemill_wal::format::ShardId;
use tidemill_wal::limits::BLOCK_SIZE;
use tidemill_wal::recovery::ScanError;
use tidemill_wal::store::StoreError;

use super::beginning::{Event, Told, wait_until_listening, wait_until_ready};
use super::calls::Calls;
use super::clock::{Clock, stopwatch_ns};
use super::helper::{Helper, Mailbox};
use super::hub::{Hub, Limits};
use super::identity::{self, Identity, IdentityError, shard_directory};
use super::listener;
use super::mesh::{Doorbell, Port, RING_CAPACITY, connect};
use super::placement;
use super::serving::Serving;
use super::signals::StopSignals;
use super::uring::{EventFd, Uring};
use super::witness;
use super::worker::{Budgets, Outside, Phase, Places, Worker};
use crate::admin::Server;
use crate::admin::notify::Notify;
use crate::admin::telemetry::{About, Graph, Telemetry};
use crate::catalog::CatalogLimits;
use crate::config::{self, Advertise, Config, SyncChoice};
use crate::exit_code::ExitCode;
use crate::group::GroupLimits;
use crate::kafka::api_key::ApiKey;
use crate::kafka::session::{Advertise as Advertised, Endpoint, NodeFacts};
use crate::shard::{OpenError, Shard, ShardOptions};
use crate::topology::Plan;

/// A killed predecessor's writes end within this time, or somebody else lives.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Changed entries of state copied between two steps: about a hundred microseconds.
const COPIED_AT_ONCE: usize = 256;

/// A durable write slower than this is said at start.
const DURABLE_WRITE_WARNING: Duration = Duration::from_millis(1);

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The kernel or the file system cannot do what is needed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The data directory's identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The configuration asks for something that this directory is not.
    #[error("{0}")]
    Configuration(String),
    /// A shard's data.
    #[error("shard {shard}: {source}")]
    Open {
        /// Which shard.
        shard: u16,
        /// Why.
        source: Box<OpenError>,
    },
    /// A listening address.
    #[error("{key} = {address}: {source}{}", port_advice(key, source))]
    Listen {
        /// The setting.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Lockable memory.
    #[error(
        "this user may lock {limit} bytes of memory, and io_uring needs more (about 100 KiB a \
         shard); raise the limit: `ulimit -l`, LimitMEMLOCK= in the unit, --ulimit memlock= of the \
         container"
    )]
    LockedMemory {
        /// The limit.
        limit: u64,
    },
    /// Threads, rings, signals.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// The setting of the Kafka listeners.
const KAFKA_LISTEN: &str = "kafka_listen";

fn port_advice(key: &str, source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse if key == KAFKA_LISTEN => {
            "; stop what listens there, or choose another port (each shard takes one, from \
             `kafka_listen` on, unless advertise = \"node\")"
        }
        io::ErrorKind::AddrInUse => "; stop what listens there, or choose another port",
        io::ErrorKind::AddrNotAvailable => "; the machine has no such address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege",
        _ => "",
    }
}

impl ServeError {
    /// What the process ends with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Probe(ProbeError::NoIoUring | ProbeError::IoUringForbidden) => {
                ExitCode::IoUringMissing
            }
            Self::Probe(ProbeError::Directory(error)) | Self::Directory(error) => {
                directory_exit_code(error)
            }
            Self::Probe(ProbeError::Io(_)) => ExitCode::Other,
            Self::Identity(IdentityError::TooNew { .. }) => ExitCode::FormatTooNew,
            Self::Identity(IdentityError::Damaged { .. } | IdentityError::Missing { .. }) => {
                ExitCode::Corruption
            }
            Self::Identity(IdentityError::Io { .. }) => ExitCode::Other,
            Self::Configuration(_) => ExitCode::Configuration,
            Self::Open { source, .. } => open_exit_code(source),
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                ExitCode::PortInUse
            }
            Self::Listen { .. } => ExitCode::Configuration,
            Self::LockedMemory { .. } | Self::System { .. } => ExitCode::Other,
        }
    }
}

fn directory_exit_code(error: &DirectoryError) -> ExitCode {
    match error {
        DirectoryError::InUse { .. } => ExitCode::DirectoryInUse,
        DirectoryError::NoDirectIo { .. } => ExitCode::DirectIoMissing,
        DirectoryError::Io { .. } => ExitCode::Other,
    }
}

fn open_exit_code(error: &OpenError) -> ExitCode {
    match error {
        OpenError::Store(StoreError::TooNew { .. }) | OpenError::Scan(ScanError::TooNew { .. }) => {
            ExitCode::FormatTooNew
        }
        OpenError::Store(StoreError::Read { .. } | StoreError::List(_))
        | OpenError::Scan(ScanError::Io { .. }) => ExitCode::DiskFailed,
        OpenError::Directory(error) => directory_exit_code(error),
        OpenError::Disk(_) => ExitCode::DiskFailed,
        OpenError::Store(_)
        | OpenError::Scan(_)
        | OpenError::Contents(_)
        | OpenError::Disagree(_) => ExitCode::Corruption,
        OpenError::Topology(..) => ExitCode::Configuration,
    }
}

/// Serves until a signal asks to stop, and runs these topologies. Returns when every shard's WAL is
/// sealed.
pub fn serve(config: &Config, topologies: &[Arc<Plan>]) -> Result<(), ServeError> {
    serve_beside(config, topologies, |_| ())
}

/// The same, and calls `begin` as soon as the node takes connections. What it starts has to end by
/// itself when the node stops; the threads that it starts do not take the signals.
pub fn serve_beside(
    config: &Config,
    topologies: &[Arc<Plan>],
    begin: impl FnOnce(Serving),
) -> Result<(), ServeError> {
    let signals =
        StopSignals::block().map_err(|source| ServeError::System { what: "signals", source })?;
    let notify = Notify::new(std::env::var_os("NOTIFY_SOCKET"));
    raise_locked_memory();
    // Clients must not take the descriptors that segments and extents need.
    raise_limit(libc::RLIMIT_NOFILE);
    probe_io_uring()?;
    let places = open_places(config)?;
    let identity = load_identity(config)?;
    let shard_count = identity.shards;
    let sockets = bind_all(config, shard_count)?;
    let durable_write = match probe_disk(&places.wal, places.sync) {
        Ok(median) => Some(median),
        // The log needs no room: a node that was killed on a full disk must come back on it.
        Err(ProbeError::Directory(DirectoryError::Io { source, .. }))
            if source.kind() == io::ErrorKind::StorageFull =>
        {
            None
        }
        Err(error) => return Err(error.into()),
    };

    let about = About {
        version: env!("CARGO_PKG_VERSION"),
        configuration_hash: config.hash(),
        data_dir: config.data_dir.clone(),
        wal_dir: config.wal_dir.clone(),
        graphs: topologies.iter().map(graph).collect(),
    };
    let api_names = ApiKey::ALL.iter().map(|api| api.name()).collect();
    let telemetry = Telemetry::new(about, shard_count, api_names);
    let admin = start_admin(config, &telemetry)?;
    let cores = placement::allowed_cores();
    let threads_max = config.blocking_threads as usize;
    let node = Node {
        config,
        topologies,
        calls: Calls::new(topologies.to_vec(), cores.clone(), threads_max),
        identity: &identity,
        places,
        telemetry: telemetry.clone(),
        clock: Clock::start(),
        phase: Arc::default(),
    };

    let started = Instant::now();
    let ports = connect(shard_count, RING_CAPACITY);
    let doorbells = ports[0].doorbells();
    let (events, received) = mpsc::channel();
    let (mut threads, mut tells) = (Vec::new(), Vec::new());
    for (port, socket) in ports.into_iter().zip(sockets) {
        let (tell, told) = mpsc::channel();
        threads.push(node.start_shard(port, socket, &cores, events.clone(), told)?);
        tells.push(tell);
    }
    drop(events);
    let replayed = wait_until_ready(&received, tells, &notify)?;
    node.phase.is_serving.store(true, Ordering::Release);
    ring_all(&doorbells);
    wait_until_listening(&received, shard_count);
    node.greet(durable_write, started.elapsed(), replayed);
    notify.ready();
    let serving = Serving::new(telemetry.clone(), config.kafka_listen, shard_count);
    begin(serving.clone());

    while !signals.wait(Duration::from_secs(3600)) {}
    serving.set_stopping();
    tracing::info!("stopping: open requests are finished, then the WAL is sealed");
    notify.stopping();
    telemetry.set_stopping();
    node.phase.is_stopping.store(true, Ordering::Release);
    ring_all(&doorbells);
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a shard's thread panicked");
        }
    }
    if let Some(admin) = admin {
        admin.stop();
    }
    tracing::info!("stopped cleanly");
    Ok(())
}

/// A topology's picture for the admin port.
fn graph(plan: &Arc<Plan>) -> Graph {
    let states = plan.states().iter().map(|it| (it.operator.clone(), it.name.clone()));
    Graph {
        topology: plan.name().to_owned(),
        edges: plan.edges().to_vec(),
        states: states.collect(),
    }
}

fn ring_all(doorbells: &[Doorbell]) {
    for doorbell in doorbells {
        doorbell.ring();
    }
}

struct Node<'a> {
    config: &'a Config,
    topologies: &'a [Arc<Plan>],
    calls: Arc<Calls>,
    identity: &'a Identity,
    places: Places,
    telemetry: Arc<Telemetry>,
    clock: Clock,
    phase: Arc<Phase>,
}

impl Node<'_> {
    fn start_shard(
        &self,
        port: Port,
        socket: Socket,
        cores: &[usize],
        events: mpsc::Sender<Event>,
        told: mpsc::Receiver<Told>,
    ) -> Result<thread::JoinHandle<()>, ServeError> {
        let shard = port.own().0;
        let options = self.shard_options(ShardId(shard))?;
        let places = Places {
            wal: shard_directory(&self.places.wal, shard),
            data: shard_directory(&self.places.data, shard),
            ..self.places.clone()
        };
        let start = ShardStart {
            facts: self.facts(ShardId(shard)),
            limits: self.limits(),
            budgets: Budgets {
                cold_reads: self.config.cold_read_budget.bytes() as usize,
                spin: self.config.spin,
                operators: self.config.operator_budget,
            },
            telemetry: self.telemetry.clone(),
            clock: self.clock,
            calls: self.calls.clone(),
            phase: self.phase.clone(),
            options,
            places,
            port,
            socket,
            events,
            told,
        };
        let core = cores[usize::from(shard) % cores.len()];
        let all_cores = cores.to_vec();
        let run = move || {
            placement::keep_on(&[core]);
            placement::be_prompt();
            let events = start.events.clone();
            // It belongs to the thread that makes it.
            let event = match Uring::new() {
                Ok(uring) => match start.run(uring, &all_cores) {
                    Ok(()) => return,
                    Err((what, source)) => Event::FailedToStart { what, source },
                },
                Err(error) => Event::NoRing(error),
            };
            let _ = events.send(event);
        };
        thread::Builder::new()
            .name(format!("shard-{shard}"))
            .spawn(run)
            .map_err(|source| ServeError::System { what: "starting a thread", source })
    }

    fn shard_options(&self, id: ShardId) -> Result<ShardOptions, ServeError> {
        let config = self.config;
        let shard_count = self.identity.shards;
        let milliseconds = |duration: Duration| duration.as_millis() as u64;
        let seed = || -> [u64; 2] {
            let bits = uuid::Uuid::new_v4().as_u64_pair();
            [bits.0, bits.1]
        };
        Ok(ShardOptions {
            id,
            shard_count,
            node: self.identity.node_bytes().expect("checked when it was loaded"),
            seed: seed(),
            segment_size: config.segment_size.bytes(),
            segment_count_max: config.segments_max as usize,
            catalog: self.catalog_limits(),
            group: GroupLimits {
                session_timeout_ms_min: milliseconds(config.group_session_timeout_min) as u32,
                session_timeout_ms_max: milliseconds(config.group_session_timeout_max) as u32,
                member_count_max: config.group_size_max as usize,
                group_count_max: config.groups_max as usize,
                initial_rebalance_delay_ms: milliseconds(config.group_initial_rebalance_delay),
                offsets_retention_ms: milliseconds(config.offsets_retention),
                ..GroupLimits::default()
            },
            idle_frame_ms: milliseconds(config.idle_frame_delay),
            producer_expiry_ms: milliseconds(config.producer_expiry),
            retention_check_ms: 30_000,
            delta_size_max: config.delta_size_max.bytes(),
            disk_reserve_size: config.disk_reserve.bytes().next_multiple_of(BLOCK_SIZE as u64),
            disk_full_retry_ms: 1000,
            scrub_rate: config.scrub_rate.map_or(0, config::Rate::bytes_per_second),
            settle_sync_size: config.settle_sync_size.bytes() as usize,
            copied_at_once: COPIED_AT_ONCE,
            readers_max: config.connections_max as usize,
            waiting_batches_size_max: config.receive_budget.bytes() as usize / 2,
            topologies: self.topologies.to_vec(),
            state_budget: config.state_budget.bytes(),
        })
    }

    fn catalog_limits(&self) -> CatalogLimits {
        let config = self.config;
        CatalogLimits {
            partition_count_default: self.default_partitions(),
            partition_count_max: config.partitions_max,
            topic_count_max: config.topics_max,
            retention_ms: config.default_retention.map(|age| age.as_millis() as u64),
            retention_bytes: config.default_retention_size.map(config::Size::bytes),
            batch_size_max: config.batch_size_max.bytes() as u32,
            batch_size_limit: config::BATCH_SIZE_LIMIT,
        }
    }

    fn default_partitions(&self) -> u32 {
        match self.config.default_partitions {
            0 => u32::from(self.identity.shards),
            count => count,
        }
    }

    fn facts(&self, shard: ShardId) -> NodeFacts {
        let config = self.config;
        let endpoint = |index: u16| {
            let listen = config.kafka_listen;
            let (host, port) = match &config.kafka_advertise_address {
                Some(address) => (address.host.clone(), address.port.unwrap_or(listen.port())),
                None => (listen.ip().to_string(), listen.port()),
            };
            Endpoint { host, port: port + index }
        };
        let advertise = match config.advertise {
            Advertise::Node => Advertised::Node(endpoint(0)),
            Advertise::Shards => {
                Advertised::Shards((0..self.identity.shards).map(endpoint).collect())
            }
        };
        NodeFacts {
            cluster_id: self.identity.node.clone(),
            shard,
            shard_count: self.identity.shards,
            advertise,
            auto_create: config.auto_create,
            partition_count_default: self.default_partitions(),
            topic_defaults: self.catalog_limits().topic_defaults(),
            settings: config.values(),
            request_size_max: config.request_size_max.bytes() as usize,
            fetch_size_max: (config.send_budget.bytes() / 2).min(u64::from(u32::MAX)) as u32,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn limits(&self) -> Limits {
        let config = self.config;
        Limits {
            request_size_max: config.request_size_max.bytes() as usize,
            connection_idle_timeout: config.connection_idle_timeout,
            connections_max: u64::from(config.connections_max),
            receive_budget: config.receive_budget.bytes() as usize,
            send_budget: config.send_budget.bytes() as usize,
        }
    }

    /// A few lines for the person who started it.
    fn greet(&self, durable_write: Option<Duration>, recovery: Duration, replayed: (u64, u64)) {
        let config = self.config;
        let shards = self.identity.shards;
        let (frames, bytes) = replayed;
        tracing::info!(
            "listening for Kafka clients on {}{}, admin on {}",
            config.kafka_listen,
            match config.advertise {
                Advertise::Node => String::new(),
                Advertise::Shards => format!(
                    " to port {}, one for each shard",
                    config.kafka_listen.port() + shards - 1
                ),
            },
            config.admin_listen.map_or("no port".to_owned(), |address| address.to_string()),
        );
        tracing::info!(
            "{shards} shards in {}, sync method {}, memory budget {}",
            config.data_dir.display(),
            match self.places.sync {
                SyncMethod::Dsync => "O_DSYNC",
                SyncMethod::Fdatasync => "fdatasync",
            },
            config.memory_budget(shards),
        );
        tracing::info!(
            "recovery took {} ms ({frames} frames, {} MiB); {}",
            recovery.as_millis(),
            bytes >> 20,
            durable_write
                .map_or("the disk has no room to measure a durable write".to_owned(), |it| {
                    format!("one durable write takes {} us (median)", it.as_micros())
                }),
        );
        if let Some(durable_write) = durable_write
            && durable_write > DURABLE_WRITE_WARNING
        {
            tracing::warn!(
                "durable writes are slow here: every acknowledgement takes at least {} us; use a \
                 disk with power-loss protection, or place the WAL on one (wal_dir)",
                durable_write.as_micros()
            );
        }
        tracing::info!(
            "try: echo hello | kcat -P -b {0} -t first && kcat -C -b {0} -t first -e",
            config.kafka_listen
        );
    }
}

/// Everything that a shard's thread starts from.
struct ShardStart {
    options: ShardOptions,
    facts: NodeFacts,
    limits: Limits,
    budgets: Budgets,
    places: Places,
    telemetry: Arc<Telemetry>,
    clock: Clock,
    calls: Arc<Calls>,
    phase: Arc<Phase>,
    port: Port,
    socket: Socket,
    events: mpsc::Sender<Event>,
    told: mpsc::Receiver<Told>,
}

impl ShardStart {
    /// Recovers and serves. An error is one of the system, before anything is served.
    fn run(self, uring: Uring, cores: &[usize]) -> Result<(), (&'static str, io::Error)> {
        let shard = self.options.id.0;
        let awakener = EventFd::new().map_err(|source| ("making an eventfd", source))?;
        let started = Instant::now();
        let telemetry = self.telemetry.clone();
        let directory = DirectoryOptions {
            wal: self.places.wal.clone(),
            data: self.places.data.clone(),
            lock_wait: LOCK_WAIT,
        };
        let now = self.clock.now();
        let recovered =
            Directory::open(&directory).map_err(OpenError::from).and_then(|mut storage| {
                let block = telemetry.shard(shard);
                let total = segments_size(&storage);
                block.recovery_total.set(total);
                block.recovery_estimate_ms.set(super::remaining_ms(0, total));
                let mut progress = |bytes| {
                    block.recovery_done.set(bytes);
                    block.recovery_estimate_ms.set(super::remaining_ms(bytes, total));
                };
                let recovered = Shard::recover(&mut storage, self.options, &mut progress)?;
                Ok((recovered, storage))
            });
        let failed = |error| {
            let _ = self.events.send(Event::Failed { shard, error: Box::new(error) });
        };
        let (recovered, mut storage) = match recovered {
            Ok(recovered) => recovered,
            Err(error) => {
                failed(error);
                return Ok(());
            }
        };
        let end = recovered.log_end().clone();
        let _ = self.events.send(Event::Recovered { shard, end });
        // Nothing is told where another shard does not start.
        let Ok(Told::End { is_cut }) = self.told.recv() else { return Ok(()) };
        let opened = recovered.open(&mut storage, is_cut, now).and_then(|opened| {
            telemetry.shard(shard).recovery_estimate_ms.set(0);
            // Every shard knows the same topics, but not in every crash; the first decides.
            if shard == 0 {
                opened.shard.check_topics()?;
            }
            Ok(opened)
        });
        let mut opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                failed(error);
                return Ok(());
            }
        };
        let _lock = storage.into_lock();
        opened.shard.measure_calls(stopwatch_ns);
        if opened.shard.has_topologies() {
            match witness::open(&self.places.data) {
                Ok(witness) => opened.shard.note_calls(witness),
                // On a full disk the node has to start all the same.
                Err(error) => tracing::warn!(
                    shard,
                    %error,
                    "what a topology does when it ends the process cannot be noted"
                ),
            }
            for (topology, why) in opened.shard.paused_topologies() {
                tracing::error!(shard, topology, "the topology is paused: {why}");
            }
        }
        if let Some(torn) = &opened.torn {
            let why = match is_cut {
                true => "a crash took what the last frame rests on from another shard",
                false => "a crash cut the last frame short",
            };
            tracing::warn!(
                shard,
                "{why}, {} bytes at {} of {}; none of it was acknowledged",
                torn.size,
                torn.offset,
                tidemill_wal::segment::file_name(torn.segment)
            );
        }
        let mailbox = Mailbox::new(self.port.doorbells(), ShardId(shard));
        let scrub_telemetry = self.telemetry.clone();
        let helper = Helper::start(
            format!("helper-{shard}"),
            self.places.data.clone(),
            mailbox.clone(),
            cores.to_vec(),
            move |bytes| scrub_telemetry.shard(shard).scrubbed.add(bytes),
        )
        .map_err(|source| ("starting a helper thread", source))?;
        let block = telemetry.shard(shard);
        block.receive_budget.limit.set(self.limits.receive_budget as u64);
        block.cold_read_budget.limit.set(self.budgets.cold_reads as u64);
        block.send_budget.limit.set(self.limits.send_budget as u64);
        let hub = Hub::new(self.facts, self.limits, self.clock, self.port, uring, self.telemetry);
        let outside = Outside {
            cores: cores.to_vec(),
            mailbox,
            awakener: Arc::new(awakener),
            helper,
            calls: self.calls,
            phase: self.phase,
        };
        let worker = Worker::new(opened.shard, hub, outside, self.places, self.budgets);
        let _ = self.events.send(Event::Ready {
            shard,
            took: started.elapsed(),
            frames: opened.frames,
            bytes: opened.bytes,
        });
        let Ok(Told::Begin) = self.told.recv() else { return Ok(()) };
        let events = self.events;
        worker.run(self.socket, move || _ = events.send(Event::Listening));
        Ok(())
    }
}

/// Bytes of all WAL segments: what a recovery reads at most.
fn segments_size(storage: &Directory) -> u64 {
    let files = storage.list().unwrap_or_default();
    files.iter().filter(|(file, _)| file.is_wal()).map(|(_, size)| size).sum()
}

/// Raises the limit on locked memory as far as this user may, for the kernel counts the rings
/// against it; the limit then.
pub(super) fn raise_locked_memory() -> u64 {
    raise_limit(libc::RLIMIT_MEMLOCK)
}

/// Raises a limit as far as this user may; the limit then.
fn raise_limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the struct in, and reads it; a refusal leaves the limit as it was.
    unsafe {
        if libc::getrlimit(resource, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(resource, &limit);
            libc::getrlimit(resource, &mut limit);
        }
    }
    limit.rlim_cur
}

fn open_places(config: &Config) -> Result<Places, ServeError> {
    let wal = config.wal_dir.clone().unwrap_or_else(|| config.data_dir.clone());
    for (path, what) in [(&config.data_dir, "making data_dir"), (&wal, "making wal_dir")] {
        std::fs::create_dir_all(path).map_err(|source| {
            let source = io::Error::new(source.kind(), format!("{}: {source}", path.display()));
            ServeError::System { what, source }
        })?;
    }
    let sync = match config.sync {
        SyncChoice::Dsync => SyncMethod::Dsync,
        SyncChoice::Fdatasync => SyncMethod::Fdatasync,
    };
    Ok(Places {
        wal,
        data: config.data_dir.clone(),
        sync,
        settle_rate: config.settle_rate.map(config::Rate::bytes_per_second),
    })
}

fn load_identity(config: &Config) -> Result<Identity, ServeError> {
    let directory: &Path = &config.data_dir;
    if let Some(identity) = Identity::load(directory)? {
        if let config::ShardCount::Count(count) = config.shards
            && count != identity.shards
        {
            return Err(ServeError::Configuration(format!(
                "shards = {count}, but {} was made with {}; leave the setting out, or choose \
                 another directory",
                directory.display(),
                identity.shards
            )));
        }
        return Ok(identity);
    }
    let identity = Identity {
        format: identity::FORMAT_VERSION,
        node: uuid::Uuid::new_v4().simple().to_string(),
        shards: config.shards.resolve(),
    };
    identity.store(directory)?;
    Ok(identity)
}

/// One socket for each shard: all on one address, or each on its own port.
fn bind_all(config: &Config, shard_count: u16) -> Result<Vec<Socket>, ServeError> {
    let base = config.kafka_listen;
    let address_of = |shard: u16| match config.advertise {
        Advertise::Node => Ok(base),
        Advertise::Shards => {
            let port = base.port().checked_add(shard).ok_or_else(|| {
                ServeError::Configuration(format!(
                    "kafka_listen = {base}: with advertise = \"shards\" the {shard_count} shards \
                     need ports up to {}, which do not exist",
                    u32::from(base.port()) + u32::from(shard_count) - 1
                ))
            })?;
            Ok(SocketAddr::new(base.ip(), port))
        }
    };
    let fault = |address| move |source| ServeError::Listen { key: KAFKA_LISTEN, address, source };
    let addresses: Vec<SocketAddr> =
        (0..shard_count).map(address_of).collect::<Result<_, ServeError>>()?;
    let mut unique = addresses.clone();
    unique.dedup();
    for address in unique {
        listener::check_free(address).map_err(fault(address))?;
    }
    addresses.into_iter().map(|address| listener::bind(address).map_err(fault(address))).collect()
}

fn start_admin(config: &Config, telemetry: &Arc<Telemetry>) -> Result<Option<Server>, ServeError> {
    let Some(address) = config.admin_listen else { return Ok(None) };
    let fault = |source| ServeError::Listen { key: "admin_listen", address, source };
    let listener = TcpListener::bind(address).map_err(fault)?;
    Server::start(listener, telemetry.clone()).map(Some).map_err(fault)
}
