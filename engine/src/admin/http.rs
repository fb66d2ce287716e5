//! The HTTP server: a few read-only pages on one ordinary thread.
//!
//! Bounded like everything else: a number of connections, and a time that one may be silent. So
//! a client that connects and says nothing, or asks and does not read, keeps nobody else out.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::telemetry::Telemetry;
use super::{metrics, topologies};
use crate::command::StateQuery;

/// Most open connections: a scraper, probes and a few people. Each may hold 400 KiB of a
/// request's head, the limit of the HTTP library, so this is 13 MiB at worst.
const CONNECTIONS_MAX: usize = 32;

/// A connection from which nothing comes for this long is closed. Longer than the usual interval
/// between two scrapes, which share a connection.
const SILENCE_MAX: Duration = Duration::from_mins(2);

/// Most entries of state that one page shows.
const STATE_ENTRIES_MAX: usize = 1000;

/// How long a page waits for one shard.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long a stop waits for answers that are on their way.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// The running admin port.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Serves on a socket that already listens, until [`Server::stop`].
    pub fn start(listener: std::net::TcpListener, telemetry: Arc<Telemetry>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let (stop, stopped) = watch::channel(false);
        let thread = thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || runtime.block_on(serve(listener, telemetry, stopped)))?;
        Ok(Self { address, stop, thread })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, gives answers on their way a moment, and ends the thread.
    pub fn stop(self) {
        self.stop.send_replace(true);
        if self.thread.join().is_err() {
            tracing::error!("the admin thread panicked");
        }
    }
}

async fn serve(
    listener: TcpListener,
    telemetry: Arc<Telemetry>,
    mut stopped: watch::Receiver<bool>,
) {
    let router = Router::new()
        .route("/", get(index))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics_page))
        .route("/topologies", get(topologies_page))
        .route("/topologies.dot", get(topologies_dot))
        .route("/topologies/{topology}/state/{operator}/{state}", get(state_page))
        .with_state(telemetry);
    let listener = Gate { listener, seats: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };

    let mut drain = stopped.clone();
    let server = tokio::spawn(
        axum::serve(listener, router)
            .with_graceful_shutdown(async move {
                // A dropped sender means the same as a stop.
                let _ = drain.wait_for(|stop| *stop).await;
            })
            .into_future(),
    );
    let _ = stopped.wait_for(|stop| *stop).await;
    if timeout(DRAIN_MAX, server).await.is_err() {
        tracing::debug!("admin connections were cut at the stop");
    }
}

async fn index() -> &'static str {
    "Tidemill\n/health/live\n/health/ready\n/metrics\n/topologies\n/topologies.dot\n\
     /topologies/TOPOLOGY/state/OPERATOR/STATE?key=KEY\n"
}

async fn live() -> &'static str {
    "alive\n"
}

async fn ready(State(telemetry): State<Arc<Telemetry>>) -> Response {
    let status =
        if telemetry.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness(&telemetry))).into_response()
}

fn readiness(telemetry: &Telemetry) -> Value {
    let shards: Vec<Value> = telemetry
        .shards()
        .enumerate()
        .map(|(index, shard)| {
            if shard.ready.is_set() {
                return json!({ "shard": index, "ready": true });
            }
            json!({
                "shard": index,
                "ready": false,
                "recovery_bytes_done": shard.recovery_done.value(),
                "recovery_bytes": shard.recovery_total.value(),
                "remaining_ms_estimate": shard.recovery_estimate_ms.value(),
            })
        })
        .collect();
    json!({
        "ready": telemetry.is_ready(),
        "stopping": telemetry.is_stopping(),
        "shards": shards,
    })
}

async fn metrics_page(State(telemetry): State<Arc<Telemetry>>) -> Response {
    match metrics::page(&telemetry) {
        Ok(page) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], page).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics page could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn topologies_page(State(telemetry): State<Arc<Telemetry>>) -> Json<Value> {
    Json(topologies::page(&telemetry))
}

async fn topologies_dot(State(telemetry): State<Arc<Telemetry>>) -> String {
    topologies::dot(&telemetry)
}

/// Which key is asked for.
#[derive(Debug, Deserialize)]
struct Asked {
    /// As text.
    key: Option<String>,
    /// As hexadecimal digits.
    key_hex: Option<String>,
}

impl Asked {
    fn bytes(self) -> Result<Bytes, &'static str> {
        match (self.key, self.key_hex) {
            (Some(key), None) => Ok(key.into()),
            (None, Some(digits)) => unhex(&digits).ok_or("key_hex has to be pairs of hex digits"),
            _ => Err("say which key: ?key=TEXT, or ?key_hex=DIGITS for bytes"),
        }
    }
}

/// What an operator keeps for a key, as every shard has it.
async fn state_page(
    State(telemetry): State<Arc<Telemetry>>,
    Path((topology, operator, state)): Path<(String, String, String)>,
    Query(asked): Query<Asked>,
) -> Response {
    let key = match asked.bytes() {
        Ok(key) => key,
        Err(why) => return (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    };
    let count_max = STATE_ENTRIES_MAX + 1;
    let query = StateQuery { topology, operator, state, key, count_max };
    let busy = || (StatusCode::SERVICE_UNAVAILABLE, "too much to do; ask again\n").into_response();
    let mut entries = Vec::new();
    let mut is_known = false;
    for shard in telemetry.shards() {
        let Some(answered) = shard.ask(query.clone()) else { return busy() };
        let Ok(Ok(answer)) = timeout(ANSWER_WAIT_MAX, answered).await else { return busy() };
        is_known |= answer.is_some();
        entries.extend(answer.into_iter().flatten());
    }
    if !is_known {
        let StateQuery { topology, operator, state, .. } = query;
        let why = format!(
            "operator {operator:?} of topology {topology:?} has no state {state:?}, or does not run; \
             /topologies names the states\n"
        );
        return (StatusCode::NOT_FOUND, why).into_response();
    }
    let is_cut = entries.len() > STATE_ENTRIES_MAX;
    entries.truncate(STATE_ENTRIES_MAX);
    let shown = entries.into_iter().map(|it| {
        json!({
            "entry": shown(&it.entry),
            "version": it.version,
            "value": shown(&it.value),
        })
    });
    Json(json!({ "entries": shown.collect::<Vec<_>>(), "is_cut": is_cut })).into_response()
}

/// Bytes for people: as digits always, as text and as a number where they may be one.
fn shown(bytes: &[u8]) -> Value {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains(char::is_control));
    let number = <[u8; 8]>::try_from(bytes).ok().map(i64::from_be_bytes);
    json!({ "hex": hex, "text": text, "int64": number })
}

fn unhex(digits: &str) -> Option<Bytes> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8; 2]| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    rest.is_empty().then_some(bytes?.into())
}

/// A listener that takes a connection only when there is a seat for it.
struct Gate {
    listener: TcpListener,
    seats: Arc<Semaphore>,
}

impl axum::serve::Listener for Gate {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        let seat = Arc::clone(&self.seats).acquire_owned().await;
        let seat = seat.expect("the semaphore is never closed");
        // The implementation for plain listeners deals with errors of `accept`.
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        (Guest { stream, silence: Box::pin(sleep(SILENCE_MAX)), _seat: seat }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when nothing has come from it for too long.
struct Guest {
    stream: TcpStream,
    silence: Pin<Box<Sleep>>,
    _seat: OwnedSemaphorePermit,
}

impl Guest {
    fn check_silence(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.silence.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        match polled {
            Poll::Ready(result) => {
                let deadline = Instant::now() + SILENCE_MAX;
                self.silence.as_mut().reset(deadline);
                Poll::Ready(result)
            }
            Poll::Pending => match self.check_silence(context) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
        }
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => match self.check_silence(context) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::PathBuf;

    use expect_test::expect;
    use tidemill_wal::format::{PartitionId, TopicId};

    use super::*;
    use crate::admin::{About, Committed, Graph, Offsets, Outcome, PartitionEnd, TopologyFigures};

    fn telemetry() -> Arc<Telemetry> {
        telemetry_with(Vec::new())
    }

    fn telemetry_with(graphs: Vec<Graph>) -> Arc<Telemetry> {
        let about = About {
            version: "1.2.3",
            configuration_hash: 7,
            data_dir: PathBuf::from("/nonexistent"),
            wal_dir: None,
            graphs,
        };
        Telemetry::new(about, 2, vec!["Produce", "Fetch"])
    }

    #[test]
    fn topologies_are_shown_with_their_graph_and_how_they_are() {
        let edges = vec![("topic in".to_owned(), "the \"end\"".to_owned())];
        let graphs = vec![Graph { topology: "t".to_owned(), edges, states: Vec::new() }];
        let telemetry = telemetry_with(graphs);
        let figures = TopologyFigures {
            topology: "t".to_owned(),
            pause: Some("there is no topic".to_owned()),
            records: 3,
            ..TopologyFigures::default()
        };
        telemetry.shard(1).publish_topologies(vec![figures]);
        let server = start(&telemetry);
        let body = page(&server, "/topologies");
        assert!(body.contains("\"paused_because\":\"there is no topic\""), "{body}");
        assert!(body.contains("\"records\":3"), "{body}");
        let dot = page(&server, "/topologies.dot");
        assert!(dot.contains(r#""t: topic in" -> "t: the \"end\"" [label = "0"];"#), "{dot}");
        let metrics = page(&server, "/metrics");
        let line = r#"tidemill_topology_records_total{topology="t",shard="1"} 3"#;
        assert!(metrics.contains(line), "{metrics}");
        server.stop();
    }

    fn start(telemetry: &Arc<Telemetry>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        Server::start(listener, Arc::clone(telemetry)).expect("a server")
    }

    /// Status line and body of one page.
    fn page(server: &Server, path: &str) -> String {
        let mut stream = TcpStream::connect(server.address()).expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("a response");
        let (head, body) = response.split_once("\r\n\r\n").expect("a head");
        format!("{}\n{body}", head.lines().next().expect("a status"))
    }

    #[test]
    fn a_node_is_ready_when_every_shard_is_and_until_it_stops() {
        let telemetry = telemetry();
        let server = start(&telemetry);
        let mut trace = String::new();
        let mut look = |event: &str| {
            trace.push_str(&format!("{event}: {}\n", page(&server, "/health/ready")));
        };

        look("started");
        telemetry.shard(0).recovery_total.set(100);
        telemetry.shard(0).recovery_done.set(40);
        telemetry.shard(0).recovery_estimate_ms.set(1500);
        telemetry.shard(1).ready.set(true);
        look("one recovers");
        telemetry.shard(0).ready.set(true);
        look("all recovered");
        telemetry.set_stopping();
        look("stopping");
        trace.push_str(&format!("live: {}", page(&server, "/health/live")));
        trace.push_str(&format!("else: {}", page(&server, "/nothing")));

        expect![[r#"
            started: HTTP/1.1 503 Service Unavailable
            {"ready":false,"shards":[{"ready":false,"recovery_bytes":0,"recovery_bytes_done":0,"remaining_ms_estimate":0,"shard":0},{"ready":false,"recovery_bytes":0,"recovery_bytes_done":0,"remaining_ms_estimate":0,"shard":1}],"stopping":false}
            one recovers: HTTP/1.1 503 Service Unavailable
            {"ready":false,"shards":[{"ready":false,"recovery_bytes":100,"recovery_bytes_done":40,"remaining_ms_estimate":1500,"shard":0},{"ready":true,"shard":1}],"stopping":false}
            all recovered: HTTP/1.1 200 OK
            {"ready":true,"shards":[{"ready":true,"shard":0},{"ready":true,"shard":1}],"stopping":false}
            stopping: HTTP/1.1 503 Service Unavailable
            {"ready":false,"shards":[{"ready":true,"shard":0},{"ready":true,"shard":1}],"stopping":true}
            live: HTTP/1.1 200 OK
            alive
            else: HTTP/1.1 404 Not Found
        "#]].assert_eq(&trace);
        server.stop();
    }

    #[test]
    fn metrics_are_openmetrics_text() {
        let telemetry = telemetry();
        let server = start(&telemetry);
        let shard = telemetry.shard(1);
        shard.commit_latency.record(100);
        shard.commit_latency.record(u64::MAX >> 20);
        shard.frame_size.record(4096);
        shard.frames.add(2);
        shard.wal_used.set(5);
        shard.inbox_depth.add(3);
        shard.inbox_depth.subtract(1);
        shard.receive_budget.limit.set(128);
        shard.api(0).record(70, Outcome::Good);
        telemetry.shard(0).api(0).record(90, Outcome::Retriable);

        // Of the buckets only those that hold something.
        let mut cumulative = "0".to_owned();
        let mut text = String::new();
        for line in page(&server, "/metrics").lines() {
            let value = line.rsplit(' ').next().unwrap_or_default();
            if line.contains("_bucket{") {
                if value == cumulative {
                    continue;
                }
                value.clone_into(&mut cumulative);
            } else {
                "0".clone_into(&mut cumulative);
            }
            text.push_str(line);
            text.push('\n');
        }
        expect![[r#"
            HTTP/1.1 200 OK
            # HELP tidemill_build_info The running release, in a label; the value is always 1.
            # TYPE tidemill_build_info gauge
            tidemill_build_info{version="1.2.3"} 1.0
            # HELP tidemill_configuration_hash A number that differs when any setting differs.
            # TYPE tidemill_configuration_hash gauge
            tidemill_configuration_hash 7.0
            # HELP tidemill_ready Whether the node takes requests: every shard has recovered and it is not stopping.
            # TYPE tidemill_ready gauge
            tidemill_ready 0.0
            # HELP tidemill_shard_ready Whether the shard has recovered and takes requests.
            # TYPE tidemill_shard_ready gauge
            tidemill_shard_ready{shard="0"} 0.0
            tidemill_shard_ready{shard="1"} 0.0
            # HELP tidemill_frames Frames with steps that became durable.
            # TYPE tidemill_frames counter
            tidemill_frames_total{shard="0"} 0
            tidemill_frames_total{shard="1"} 2
            # HELP tidemill_idle_frames Frames written only to say that all before them is durable.
            # TYPE tidemill_idle_frames counter
            tidemill_idle_frames_total{shard="0"} 0
            tidemill_idle_frames_total{shard="1"} 0
            # HELP tidemill_inbox_depth Messages that wait for a step.
            # TYPE tidemill_inbox_depth gauge
            tidemill_inbox_depth{shard="0"} 0.0
            tidemill_inbox_depth{shard="1"} 2.0
            # HELP tidemill_filling_bytes Size of the frame that fills.
            # TYPE tidemill_filling_bytes gauge
            # UNIT tidemill_filling_bytes bytes
            tidemill_filling_bytes{shard="0"} 0.0
            tidemill_filling_bytes{shard="1"} 0.0
            # HELP tidemill_waiting_batches_bytes Batches that wait for room in the log.
            # TYPE tidemill_waiting_batches_bytes gauge
            # UNIT tidemill_waiting_batches_bytes bytes
            tidemill_waiting_batches_bytes{shard="0"} 0.0
            tidemill_waiting_batches_bytes{shard="1"} 0.0
            # HELP tidemill_state_bytes Keyed state, in memory and in snapshots.
            # TYPE tidemill_state_bytes gauge
            # UNIT tidemill_state_bytes bytes
            tidemill_state_bytes{shard="0"} 0.0
            tidemill_state_bytes{shard="1"} 0.0
            # HELP tidemill_wal_used_bytes Write-ahead log in use.
            # TYPE tidemill_wal_used_bytes gauge
            # UNIT tidemill_wal_used_bytes bytes
            tidemill_wal_used_bytes{shard="0"} 0.0
            tidemill_wal_used_bytes{shard="1"} 5.0
            # HELP tidemill_wal_capacity_bytes Write-ahead log that may be in use; produce is refused when it is.
            # TYPE tidemill_wal_capacity_bytes gauge
            # UNIT tidemill_wal_capacity_bytes bytes
            tidemill_wal_capacity_bytes{shard="0"} 0.0
            tidemill_wal_capacity_bytes{shard="1"} 0.0
            # HELP tidemill_settle_lag_bytes Durable data that has still to be moved into extents.
            # TYPE tidemill_settle_lag_bytes gauge
            # UNIT tidemill_settle_lag_bytes bytes
            tidemill_settle_lag_bytes{shard="0"} 0.0
            tidemill_settle_lag_bytes{shard="1"} 0.0
            # HELP tidemill_tail_bytes Records kept in memory for readers.
            # TYPE tidemill_tail_bytes gauge
            # UNIT tidemill_tail_bytes bytes
            tidemill_tail_bytes{shard="0"} 0.0
            tidemill_tail_bytes{shard="1"} 0.0
            # HELP tidemill_disk_full Whether the shard refuses writes because the disk is full.
            # TYPE tidemill_disk_full gauge
            tidemill_disk_full{shard="0"} 0.0
            tidemill_disk_full{shard="1"} 0.0
            # HELP tidemill_scrubbed_bytes Extents that the scrub has read.
            # TYPE tidemill_scrubbed_bytes counter
            # UNIT tidemill_scrubbed_bytes bytes
            tidemill_scrubbed_bytes_total{shard="0"} 0
            tidemill_scrubbed_bytes_total{shard="1"} 0
            # HELP tidemill_damage Faults found in stored files by the scrub or by reads.
            # TYPE tidemill_damage counter
            tidemill_damage_total{shard="0"} 0
            tidemill_damage_total{shard="1"} 0
            # HELP tidemill_recovery_done_bytes What recovery has read and replayed.
            # TYPE tidemill_recovery_done_bytes gauge
            # UNIT tidemill_recovery_done_bytes bytes
            tidemill_recovery_done_bytes{shard="0"} 0.0
            tidemill_recovery_done_bytes{shard="1"} 0.0
            # HELP tidemill_recovery_work_bytes What recovery has to read and replay.
            # TYPE tidemill_recovery_work_bytes gauge
            # UNIT tidemill_recovery_work_bytes bytes
            tidemill_recovery_work_bytes{shard="0"} 0.0
            tidemill_recovery_work_bytes{shard="1"} 0.0
            # HELP tidemill_connections_open Open Kafka connections.
            # TYPE tidemill_connections_open gauge
            tidemill_connections_open{shard="0"} 0.0
            tidemill_connections_open{shard="1"} 0.0
            # HELP tidemill_connections_accepted Kafka connections taken since the start.
            # TYPE tidemill_connections_accepted counter
            tidemill_connections_accepted_total{shard="0"} 0
            tidemill_connections_accepted_total{shard="1"} 0
            # HELP tidemill_connections_refused Kafka connections refused because connections_max was reached.
            # TYPE tidemill_connections_refused counter
            tidemill_connections_refused_total{shard="0"} 0
            tidemill_connections_refused_total{shard="1"} 0
            # HELP tidemill_recovery_estimate_seconds Time that recovery would take if the shard started now; while it recovers, what remains.
            # TYPE tidemill_recovery_estimate_seconds gauge
            # UNIT tidemill_recovery_estimate_seconds seconds
            tidemill_recovery_estimate_seconds{shard="0"} 0.0
            tidemill_recovery_estimate_seconds{shard="1"} 0.0
            # HELP tidemill_commit_latency_seconds From the submission of a frame until it is durable.
            # TYPE tidemill_commit_latency_seconds histogram
            # UNIT tidemill_commit_latency_seconds seconds
            tidemill_commit_latency_seconds_sum{shard="0"} 0.0
            tidemill_commit_latency_seconds_count{shard="0"} 0
            tidemill_commit_latency_seconds_sum{shard="1"} 17592186.044515
            tidemill_commit_latency_seconds_count{shard="1"} 2
            tidemill_commit_latency_seconds_bucket{le="0.000128",shard="1"} 1
            tidemill_commit_latency_seconds_bucket{le="+Inf",shard="1"} 2
            # HELP tidemill_frame_size_bytes Sizes of frames with steps in them: how much one durable write carries.
            # TYPE tidemill_frame_size_bytes histogram
            # UNIT tidemill_frame_size_bytes bytes
            tidemill_frame_size_bytes_sum{shard="0"} 0.0
            tidemill_frame_size_bytes_count{shard="0"} 0
            tidemill_frame_size_bytes_sum{shard="1"} 4096.0
            tidemill_frame_size_bytes_count{shard="1"} 1
            tidemill_frame_size_bytes_bucket{le="4096.0",shard="1"} 1
            # HELP tidemill_budget_used_bytes Memory in use of a bounded budget.
            # TYPE tidemill_budget_used_bytes gauge
            # UNIT tidemill_budget_used_bytes bytes
            tidemill_budget_used_bytes{shard="0",budget="receive"} 0.0
            tidemill_budget_used_bytes{shard="0",budget="send"} 0.0
            tidemill_budget_used_bytes{shard="0",budget="cold_read"} 0.0
            tidemill_budget_used_bytes{shard="1",budget="receive"} 0.0
            tidemill_budget_used_bytes{shard="1",budget="send"} 0.0
            tidemill_budget_used_bytes{shard="1",budget="cold_read"} 0.0
            # HELP tidemill_budget_limit_bytes Memory that the budget allows.
            # TYPE tidemill_budget_limit_bytes gauge
            # UNIT tidemill_budget_limit_bytes bytes
            tidemill_budget_limit_bytes{shard="0",budget="receive"} 0.0
            tidemill_budget_limit_bytes{shard="0",budget="send"} 0.0
            tidemill_budget_limit_bytes{shard="0",budget="cold_read"} 0.0
            tidemill_budget_limit_bytes{shard="1",budget="receive"} 128.0
            tidemill_budget_limit_bytes{shard="1",budget="send"} 0.0
            tidemill_budget_limit_bytes{shard="1",budget="cold_read"} 0.0
            # HELP tidemill_requests Requests answered.
            # TYPE tidemill_requests counter
            tidemill_requests_total{api="Produce"} 2
            # HELP tidemill_request_errors Requests answered with an error: retriable by clients, refused as wrong, or our fault.
            # TYPE tidemill_request_errors counter
            tidemill_request_errors_total{api="Produce",class="retriable"} 1
            # HELP tidemill_request_latency_seconds From the last byte of a request to its answer, waiting for the disk or for records included.
            # TYPE tidemill_request_latency_seconds histogram
            # UNIT tidemill_request_latency_seconds seconds
            tidemill_request_latency_seconds_sum{api="Produce"} 0.00016
            tidemill_request_latency_seconds_count{api="Produce"} 2
            tidemill_request_latency_seconds_bucket{le="0.000128",api="Produce"} 2
            # HELP tidemill_group_lag_records Offsets between what a group has committed and the durable end of the partition.
            # TYPE tidemill_group_lag_records gauge
            # HELP tidemill_group_lag_omitted_series Series of group lag left out of this page because there are too many.
            # TYPE tidemill_group_lag_omitted_series gauge
            tidemill_group_lag_omitted_series 0.0
            # HELP tidemill_disk_free_bytes Room on the file system of a directory, for an unprivileged user.
            # TYPE tidemill_disk_free_bytes gauge
            # UNIT tidemill_disk_free_bytes bytes
            # HELP tidemill_disk_size_bytes Size of the file system of a directory.
            # TYPE tidemill_disk_size_bytes gauge
            # UNIT tidemill_disk_size_bytes bytes
            # EOF
        "#]].assert_eq(&text);
        server.stop();
    }

    #[test]
    fn alerts_and_guide_know_the_metrics_by_their_names() {
        let telemetry = telemetry();
        let server = start(&telemetry);
        let page = page(&server, "/metrics");
        server.stop();
        let families: Vec<(&str, &str)> =
            page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        let names: Vec<String> = families
            .iter()
            .flat_map(|(name, kind)| match *kind {
                "counter" => vec![format!("{name}_total")],
                "histogram" => ["bucket", "count", "sum"].map(|s| format!("{name}_{s}")).into(),
                _ => vec![(*name).to_owned()],
            })
            .collect();
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let alerts = include_str!("../../dist/alerts.yml");
        for word in alerts.split(|c| !is_name(c)).filter(|word| word.starts_with("tidemill_")) {
            assert!(names.iter().any(|name| name == word), "an alert asks for {word}");
        }
        let guide = include_str!("../../../docs/OPERATIONS.md");
        for (name, kind) in families {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let row = format!("| `{name}{suffix}`");
            assert!(guide.contains(&row), "the guide has no row for {name}{suffix}");
        }
    }

    #[test]
    fn lag_joins_groups_and_partitions_of_different_shards() {
        let telemetry = telemetry();
        let server = start(&telemetry);
        let partition = |index| PartitionId { topic: TopicId([1; 16]), index };
        let committed = |index, offset| Committed {
            group: "g\"1\\".into(),
            partition: partition(index),
            offset,
        };
        let end = |index, durable_end| PartitionEnd {
            topic: "t".into(),
            partition: partition(index),
            durable_end,
        };
        telemetry.shard(0).publish_offsets(Offsets {
            // The second is ahead of an old snapshot of its partition, the third has no partition.
            committed: vec![committed(0, 10), committed(1, 9), committed(2, 5)],
            ends: vec![end(0, 25)],
        });
        telemetry.shard(1).publish_offsets(Offsets { committed: vec![], ends: vec![end(1, 8)] });

        let text: String = page(&server, "/metrics")
            .lines()
            .filter(|line| line.starts_with("tidemill_group_lag"))
            .map(|line| format!("{line}\n"))
            .collect();
        expect![[r#"
            tidemill_group_lag_records{group="g\"1\\",topic="t",partition="0"} 15.0
            tidemill_group_lag_records{group="g\"1\\",topic="t",partition="1"} 0.0
            tidemill_group_lag_omitted_series 0.0
        "#]]
        .assert_eq(&text);
        server.stop();
    }

    #[test]
    fn a_client_that_says_nothing_does_not_delay_the_stop_or_others() {
        let telemetry = telemetry();
        let server = start(&telemetry);
        let silent = TcpStream::connect(server.address()).expect("a connection");
        assert!(page(&server, "/health/live").starts_with("HTTP/1.1 200"));
        server.stop();
        drop(silent);
    }
}
