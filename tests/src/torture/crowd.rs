//! Clients that nobody wants: too many at a time, half a request, never reading, vanishing.
//!
//! They expect nothing, so nothing that the node does to them is wrong. What counts is that the
//! others are served when they are gone.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tidemill::kafka::messages::{ApiVersionsRequest, FetchRequest, MetadataRequest};

use crate::peer::{FETCH_VERSION, Peer, batch_of, fetch_request, produce_request};
use crate::sim::random::Random;

/// None of them waits longer for the node, so that they are gone when they should be.
const PATIENCE: Duration = Duration::from_millis(200);
/// Pause of one that cannot connect.
const PAUSE: Duration = Duration::from_millis(5);

/// A crowd that is there until it is told to go.
#[derive(Debug)]
pub struct Crowd {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Crowd {
    /// Connections that come and go, so many at a time.
    pub fn flood(address: SocketAddr, connections: usize, seed: u64) -> Crowd {
        Crowd::start(address, connections, seed, true, "")
    }

    /// Connections that come, do something by halves, and stay.
    pub fn half_open(address: SocketAddr, connections: usize, seed: u64, topic: &str) -> Crowd {
        Crowd::start(address, connections, seed, false, topic)
    }

    fn start(address: SocketAddr, count: usize, seed: u64, is_flood: bool, topic: &str) -> Crowd {
        let is_over = Arc::new(AtomicBool::new(false));
        let (stop, topic) = (is_over.clone(), topic.to_owned());
        let thread = thread::spawn(move || {
            let mut random = Random::new(seed);
            let mut open: VecDeque<Peer> = VecDeque::new();
            let mut total = 0;
            while !stop.load(Ordering::Relaxed) {
                if open.len() == count {
                    if !is_flood {
                        thread::park_timeout(PATIENCE);
                        continue;
                    }
                    let oldest = open.pop_front().expect("there is at least one");
                    vanish(oldest, &mut random);
                }
                let Ok(mut peer) = Peer::try_connect_within(address, PATIENCE) else {
                    thread::park_timeout(PAUSE);
                    continue;
                };
                total += 1;
                // It may be refused, closed or not read from.
                let _ = if is_flood {
                    pass_by(&mut peer, &mut random)
                } else {
                    half(&mut peer, &topic, &mut random)
                };
                open.push_back(peer);
            }
            for peer in open {
                vanish(peer, &mut random);
            }
            total
        });
        Crowd { is_over, thread }
    }

    /// Tells it to go.
    pub fn stop(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
    }

    /// Waits until it is gone: how many connections there were.
    pub fn finish(self) -> u64 {
        self.stop();
        match self.thread.join() {
            Ok(total) => total,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// What a client does that is one of too many.
fn pass_by(peer: &mut Peer, random: &mut Random) -> io::Result<()> {
    match random.below(4) {
        0 => Ok(()),
        1 => peer.try_ask(4, &ApiVersionsRequest::default()).map(|_| ()),
        2 => peer.send(12, &MetadataRequest { topics: None, ..Default::default() }),
        _ => peer.send_bytes(b"GET / HTTP/1.1\r\n\r\n"),
    }
}

/// Something begun and not ended.
fn half(peer: &mut Peer, topic: &str, random: &mut Random) -> io::Result<()> {
    match random.below(5) {
        0 => Ok(()),
        1 => {
            // Three megabytes are said to come; up to one does.
            let mut bytes = (3_i32 << 20).to_be_bytes().to_vec();
            bytes.resize(random.skewed(5, 1 << 20) as usize, 0);
            peer.send_bytes(&bytes)
        }
        2 => {
            // Much is asked for and nothing read.
            let request = fetch_request(topic, 0, 0);
            (0..20).try_for_each(|_| peer.send::<FetchRequest>(FETCH_VERSION, &request))
        }
        3 => {
            let all = MetadataRequest { topics: None, ..Default::default() };
            (0..200).try_for_each(|_| peer.send(12, &all))
        }
        _ => {
            // A request that is cut in its middle, behind a whole one whose answer nobody wants.
            peer.send(12, &MetadataRequest { topics: None, ..Default::default() })?;
            let batch = batch_of(&vec![b'x'; random.skewed(1, 100_000) as usize]);
            let request = produce_request(-1, topic, 0, batch);
            let bytes = tidemill::kafka::frame::encode_request(9, 2, None, &request).concat();
            peer.send_bytes(&bytes[..random.between(1, bytes.len() as u64 - 1) as usize])
        }
    }
}

/// Goes with a FIN, with a reset, or without a word.
fn vanish(peer: Peer, random: &mut Random) {
    let off = libc::linger { l_onoff: 1, l_linger: 0 };
    match random.below(3) {
        0 => {}
        1 => set_option(peer.stream(), libc::SOL_SOCKET, libc::SO_LINGER, &off),
        // A socket under repair is closed in silence, as if its machine were gone. This takes
        // privileges; without them it goes with a FIN.
        _ => set_option(peer.stream(), libc::IPPROTO_TCP, libc::TCP_REPAIR, &1_i32),
    }
}

fn set_option<T>(stream: &TcpStream, level: i32, name: i32, value: &T) {
    // SAFETY: the descriptor is open, and the pointer is to a live value of the size given.
    unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        );
    }
}

/// The node's connections as the kernel has them, for a failure: how many there are in each state,
/// and the queues of those that are open.
pub fn connections(ports: std::ops::Range<u16>) -> io::Result<String> {
    // In the order of their numbers, from 1.
    const STATES: [&str; 11] = [
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "CLOSING",
    ];
    let mut table = String::new();
    std::fs::File::open("/proc/net/tcp")?.read_to_string(&mut table)?;
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut open = String::new();
    for line in table.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, state, queues, ..] = words[..] else { continue };
        let number = |hex: &str| u64::from_str_radix(hex, 16).unwrap_or(0);
        let port = |address: &str| address.rsplit(':').next().map_or(0, number);
        if !(u64::from(ports.start)..ports.end.into()).contains(&port(local)) {
            continue;
        }
        let state = STATES.get((number(state) as usize).wrapping_sub(1)).unwrap_or(&"?");
        *counts.entry(state).or_default() += 1;
        if ["ESTABLISHED", "CLOSE_WAIT"].contains(state) {
            let (sending, receiving) = queues.split_once(':').unwrap_or_default();
            let (sending, receiving) = (number(sending), number(receiving));
            let port = port(remote);
            open += &format!("{state} from {port}: {sending} to send, {receiving} to read\n");
        }
    }
    Ok(format!("{counts:?}\n{open}"))
}
