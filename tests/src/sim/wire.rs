//! A client's connection: bytes on their way in both directions, and the node's end of it.
//!
//! Pure: the world moves the pieces and takes the time. A pipe cuts what is sent wherever the dice
//! say, and holds a bounded number of bytes; whoever ends a connection may cut what is on its way
//! at any byte.

pub mod answer;
pub mod encode;
pub mod request;

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use tidemill::command::Ticket;
use tidemill::kafka::session::{DispatchId, Session};

pub use self::request::{Piece, Request};
use super::random::Random;

/// The client's address, as the node sees it.
pub const PEER: &str = "/127.0.0.1";

/// Where bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client.
    ToNode,
    /// From the node.
    ToClient,
}

/// What a seed makes of all its connections.
#[derive(Debug, Clone)]
pub struct Habits {
    /// A connection breaks at one piece in so many; 0: none.
    pub break_one_in: u64,
    /// What is sent is cut in one case in so many.
    pub cut_one_in: u64,
    /// A client does not read for a while at one piece in so many.
    pub pause_one_in: u64,
    /// How long a piece takes, in microseconds.
    pub piece_us_max: u64,
    /// Bytes that are on their way to a client at most.
    pub room: usize,
    /// Unsent bytes past which nothing more is read from a connection.
    pub unsent_max: usize,
}

impl Habits {
    /// Draws them.
    pub fn draw(random: &mut Random) -> Self {
        Self {
            break_one_in: random.choose(&[0, 0, 1000, 300, 60]),
            cut_one_in: random.choose(&[2, 8, 8, 40]),
            pause_one_in: random.choose(&[10, 100, 100, 1000]),
            piece_us_max: random.choose(&[5, 5, 50, 200]),
            room: random.choose(&[2 << 10, 16 << 10, 64 << 10]),
            unsent_max: random.choose(&[1, 4 << 10, 64 << 10, 1 << 20]),
        }
    }
}

/// Bytes on their way.
#[derive(Debug, Default)]
pub struct Pipe {
    pieces: VecDeque<Bytes>,
    size: usize,
    /// Somebody moves its pieces.
    pub is_moving: bool,
}

impl Pipe {
    /// Puts bytes in, whole or in a few pieces.
    pub fn push(&mut self, mut bytes: Bytes, cut_one_in: u64, random: &mut Random) {
        self.size += bytes.len();
        if random.one_in(cut_one_in) {
            for _ in 0..random.between(1, 3) {
                let at = random.below(bytes.len() as u64 + 1) as usize;
                let first = bytes.split_to(at);
                if !first.is_empty() {
                    self.pieces.push_back(first);
                }
            }
        }
        if !bytes.is_empty() {
            self.pieces.push_back(bytes);
        }
    }

    /// Takes the next piece out.
    pub fn pop(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front()?;
        self.size -= piece.len();
        Some(piece)
    }

    /// Only the first so many bytes ever arrive.
    pub fn truncate(&mut self, mut size: usize) {
        self.size = self.size.min(size);
        for piece in &mut self.pieces {
            piece.truncate(size);
            size -= piece.len();
        }
        self.pieces.retain(|piece| !piece.is_empty());
    }

    /// Bytes in it.
    pub fn size(&self) -> usize {
        self.size
    }
}

/// Both ends of a connection and what is between them.
#[derive(Debug)]
pub struct Connection {
    /// Whose it is.
    pub client: usize,
    /// The shard that serves it.
    pub origin: u16,
    /// The client's end is there.
    pub has_client: bool,
    /// Its client wants no answer for itself.
    pub is_deaf: bool,
    /// The node's end is there.
    pub has_node: bool,
    /// Nothing is moved before that one's node end is gone.
    pub after: Option<u64>,
    /// Requests that the client waits for, and their first one's number.
    pub requests: VecDeque<Request>,
    /// Number of the first of them.
    pub first: u64,
    /// To the node.
    pub to_node: Pipe,
    /// To the client.
    pub to_client: Pipe,
    /// What the client has received of an answer that is not whole.
    pub arrived: BytesMut,
    /// What the node has received of requests that it has not taken.
    pub received: BytesMut,
    /// The node's end.
    pub session: Session,
    /// Its open commands.
    pub tickets: BTreeMap<DispatchId, Ticket>,
    /// Commands whose replies have left their shards: their request and its pieces.
    pub claims: BTreeMap<Ticket, (u64, Vec<usize>)>,
    /// Requests that the node has taken.
    pub taken: u64,
    /// Requests that the node is done with.
    pub finished: u64,
    /// What the node has not sent.
    pub unsent: VecDeque<Bytes>,
    /// Its bytes.
    pub unsent_size: usize,
    /// The node reads nothing more, and ends when everything is answered.
    pub is_ending: bool,
    /// The node looks at it again soon.
    pub is_look_due: bool,
}

impl Connection {
    /// A connection of a client to a shard.
    pub fn new(client: usize, origin: u16, after: Option<u64>) -> Self {
        Self {
            client,
            origin,
            has_client: true,
            is_deaf: false,
            has_node: true,
            after,
            requests: VecDeque::new(),
            first: 0,
            to_node: Pipe::default(),
            to_client: Pipe::default(),
            arrived: BytesMut::new(),
            received: BytesMut::new(),
            session: Session::new(PEER.to_owned()),
            tickets: BTreeMap::new(),
            claims: BTreeMap::new(),
            taken: 0,
            finished: 0,
            unsent: VecDeque::new(),
            unsent_size: 0,
            is_ending: false,
            is_look_due: false,
        }
    }

    /// The request of this number, unless it is answered.
    pub fn request(&mut self, number: u64) -> Option<&mut Request> {
        let index = number.checked_sub(self.first)?;
        self.requests.get_mut(index as usize)
    }

    /// Nobody waits for anything on it.
    pub fn is_quiet(&self) -> bool {
        self.has_client && !self.is_deaf && self.requests.is_empty()
    }

    /// Forgets requests at the front that are answered, or want no answer.
    pub fn forget_done(&mut self) {
        while self.requests.front().is_some_and(|request| request.is_done) {
            self.requests.pop_front();
            self.first += 1;
        }
    }

    /// The client takes the next whole answer, without its length.
    pub fn take_answer(&mut self) -> Option<Bytes> {
        let length = self.arrived.first_chunk::<4>()?;
        let size = u32::from_be_bytes(*length) as usize;
        if self.arrived.len() < 4 + size {
            return None;
        }
        let frame = self.arrived.split_to(4 + size).freeze();
        Some(frame.slice(4..))
    }
}
