//! etcd puts over gRPC, with as much of HTTP/2 as that takes.
//!
//! The first put of a connection teaches the server the headers; from then on they are six bytes.
//! A stream that ends with a message before its trailers was answered well: a refusal has none. So
//! the trailers need not be decoded.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::TcpStream;

use super::values::Values;
use crate::load::{Protocol, Taken, Which};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const FRAME_HEADER_SIZE: usize = 9;
const FRAME_SIZE_MAX: usize = 1 << 20;
/// What the server may have sent and we not yet allowed anew.
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// What a connection and a stream may carry before anybody says more.
const WINDOW_START: i64 = 65_535;
/// Highest stream id; then a connection is used up.
const STREAM_MAX: u32 = (1 << 31) - 1;

/// Different keys: a value of each is kept, as in a register that is written again and again.
const KEYS: u64 = 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// Puts, each in a stream of its own.
pub struct Put {
    values: Values,
    connections: Vec<Connection>,
}

struct Connection {
    /// Of the next put.
    stream: u32,
    /// Bytes of messages that the server still takes.
    window: i64,
    /// Puts that wait for the window.
    held: VecDeque<(usize, Vec<u8>)>,
    /// Bytes of messages that came since the server was last allowed more.
    received: u32,
    /// By stream: its request, and whether its answer came.
    open: HashMap<u32, (u64, bool)>,
}

impl Put {
    /// Puts values of a size.
    pub fn new(record_size: usize, connections: usize) -> Self {
        let connection = |_| Connection {
            stream: 1,
            window: WINDOW_START,
            held: VecDeque::new(),
            received: 0,
            open: HashMap::new(),
        };
        Self {
            values: Values::new(record_size),
            connections: (0..connections).map(connection).collect(),
        }
    }

    fn put(&mut self, connection: usize, number: u64, headers: &[u8]) -> (usize, Vec<u8>) {
        let message = message(number, self.values.of(number));
        let connection = &mut self.connections[connection];
        let stream = connection.stream;
        assert!(stream < STREAM_MAX, "a run has fewer requests than a connection has streams");
        connection.stream += 2;
        connection.open.insert(stream, (number, false));
        let mut bytes = Vec::with_capacity(message.len() + headers.len() + 2 * FRAME_HEADER_SIZE);
        frame(&mut bytes, HEADERS, END_HEADERS, stream, headers);
        frame(&mut bytes, DATA, END_STREAM, stream, &message);
        (message.len(), bytes)
    }
}

impl Protocol for Put {
    /// Greets, puts once, and waits for the answer.
    fn open(&mut self, connection: usize, stream: &mut TcpStream) -> Result<(), String> {
        let mut out = PREFACE.to_vec();
        // Streams get as much room as there is; so does the connection.
        let setting = [&4_u16.to_be_bytes()[..], &WINDOW_MAX.to_be_bytes()].concat();
        frame(&mut out, SETTINGS, 0, 0, &setting);
        allow(&mut out, WINDOW_MAX - WINDOW_START as u32);
        let (size, put) = self.put(connection, 0, &first_headers());
        self.connections[connection].window -= size as i64;
        out.extend_from_slice(&put);
        let mut received = Vec::new();
        let mut is_answered = false;
        while !is_answered || !received.is_empty() {
            stream.write_all(&out).map_err(|error| error.to_string())?;
            out.clear();
            let at = received.len();
            received.resize(at + 4096, 0);
            let count = stream.read(&mut received[at..]).map_err(|error| error.to_string())?;
            if count == 0 {
                return Err("etcd closed the connection".to_owned());
            }
            received.truncate(at + count);
            loop {
                let size = match self.take(connection, &received, &mut out)? {
                    Taken::More => break,
                    Taken::Other { size } => size,
                    Taken::Refused { .. } => return Err("etcd refuses the first put".to_owned()),
                    Taken::Answer { size, .. } => {
                        is_answered = true;
                        size
                    }
                };
                received.drain(..size);
            }
        }
        stream.write_all(&out).map_err(|error| error.to_string())
    }

    fn encode(&mut self, connection: usize, number: u64, out: &mut Vec<u8>) {
        let (size, put) = self.put(connection, number, &KNOWN_HEADERS);
        let connection = &mut self.connections[connection];
        connection.held.push_back((size, put));
        connection.send_held(out);
    }

    fn take(
        &mut self,
        connection: usize,
        received: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Taken, String> {
        let Some(head) = received.first_chunk::<FRAME_HEADER_SIZE>() else {
            return Ok(Taken::More);
        };
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & STREAM_MAX;
        if length > FRAME_SIZE_MAX {
            return Err(format!("etcd sends a frame of {length} bytes"));
        }
        let size = FRAME_HEADER_SIZE + length;
        let Some(payload) = received.get(FRAME_HEADER_SIZE..size) else { return Ok(Taken::More) };
        let connection = &mut self.connections[connection];
        match kind {
            DATA => connection.on_data(stream, payload, out)?,
            HEADERS if flags & END_STREAM != 0 => return connection.on_end(stream, size),
            // A server that has answered early says that it wants no more of the request
            // (RFC 9113, section 8.1).
            RST_STREAM if payload == [0; 4] && !connection.open.contains_key(&stream) => {}
            RST_STREAM => return Err(format!("etcd resets a stream: {payload:?}")),
            GOAWAY => return Err(format!("etcd goes: {}", String::from_utf8_lossy(payload))),
            SETTINGS if flags & ACK == 0 => frame(out, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => frame(out, PING, ACK, 0, payload),
            WINDOW_UPDATE if stream == 0 => {
                let more = payload.first_chunk::<4>().ok_or("a short window update")?;
                connection.window += i64::from(u32::from_be_bytes(*more));
                connection.send_held(out);
            }
            _ => {}
        }
        Ok(Taken::Other { size })
    }
}

impl Connection {
    fn send_held(&mut self, out: &mut Vec<u8>) {
        while let Some((size, put)) = self.held.front() {
            if self.window < *size as i64 {
                return;
            }
            self.window -= *size as i64;
            out.extend_from_slice(put);
            self.held.pop_front();
        }
    }

    fn on_data(&mut self, stream: u32, payload: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        self.received += payload.len() as u32;
        if self.received > WINDOW_MAX / 2 {
            allow(out, std::mem::take(&mut self.received));
        }
        let (_, has_answer) = self.open.get_mut(&stream).ok_or("an answer to no put")?;
        *has_answer |= !payload.is_empty();
        Ok(())
    }

    fn on_end(&mut self, stream: u32, size: usize) -> Result<Taken, String> {
        let (number, has_answer) = self.open.remove(&stream).ok_or("the end of no put")?;
        let which = Which::Number(number);
        Ok(if has_answer { Taken::Answer { size, which } } else { Taken::Refused { size, which } })
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = (payload.len() as u32).to_be_bytes();
    out.extend_from_slice(&[length[1], length[2], length[3], kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Lets the server send so many more bytes on the connection.
fn allow(out: &mut Vec<u8>, more: u32) {
    frame(out, WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
}

/// `:method POST` and `:scheme http` of HPACK's own table, and four fields for the server to keep.
fn first_headers() -> Vec<u8> {
    const KEEP: u8 = 0x40;
    const PATH_INDEX: u8 = 4;
    const AUTHORITY_INDEX: u8 = 1;
    const CONTENT_TYPE_INDEX: u8 = 31;
    let mut block = vec![0x83, 0x86];
    let mut text = |before: u8, text: &str| {
        block.extend_from_slice(&[before, text.len() as u8]);
        block.extend_from_slice(text.as_bytes());
    };
    text(KEEP | PATH_INDEX, "/etcdserverpb.KV/Put");
    text(KEEP | AUTHORITY_INDEX, "localhost");
    text(KEEP | CONTENT_TYPE_INDEX, "application/grpc");
    text(KEEP, "te");
    block.push("trailers".len() as u8);
    block.extend_from_slice(b"trailers");
    block
}

/// The same by their numbers in the tables: the field that was kept last is 62.
const KNOWN_HEADERS: [u8; 6] = [0x83, 0x86, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];

/// `PutRequest` with its length in front, as gRPC wants it.
fn message(number: u64, value: &[u8]) -> Vec<u8> {
    let key = format!("{:08}", number % KEYS);
    let mut put = Vec::with_capacity(value.len() + 32);
    for (field, bytes) in [(1_u8, key.as_bytes()), (2, value)] {
        put.push(field << 3 | 2);
        varint(&mut put, bytes.len());
        put.extend_from_slice(bytes);
    }
    let mut message = vec![0];
    message.extend_from_slice(&(put.len() as u32).to_be_bytes());
    message.extend_from_slice(&put);
    message
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: Taken = Taken::Answer { size: 10, which: Which::Number(7) };

    fn bytes(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        frame(&mut out, kind, flags, stream, payload);
        out
    }

    #[test]
    fn a_put_is_headers_and_a_message() {
        let mut put = Put::new(300, 1);
        let mut out = Vec::new();
        put.encode(0, 1025, &mut out);
        let head = [&[0, 0, 6, HEADERS, END_HEADERS, 0, 0, 0, 1][..], &KNOWN_HEADERS].concat();
        assert_eq!(out[..15], head);
        let size = 5 + 2 + 8 + 3 + 300;
        assert_eq!(out[15..24], [0, (size >> 8) as u8, size as u8, DATA, END_STREAM, 0, 0, 0, 1]);
        let message = &out[24..];
        assert_eq!(message.len(), size);
        assert_eq!(message[..5], [0, 0, 0, ((size - 5) >> 8) as u8, (size - 5) as u8]);
        assert_eq!(&message[5..18], b"\x0a\x0800000001\x12\xac\x02");
    }

    #[test]
    fn a_stream_with_a_message_is_an_answer_and_one_without_a_refusal() {
        let mut put = Put::new(3, 1);
        put.encode(0, 7, &mut Vec::new());
        put.encode(0, 8, &mut Vec::new());
        let mut take = |bytes: &[u8]| put.take(0, bytes, &mut Vec::new());
        let end = bytes(HEADERS, END_STREAM | END_HEADERS, 1, b"x");
        assert_eq!(take(&end[..9]), Ok(Taken::More));
        assert_eq!(take(&bytes(HEADERS, END_HEADERS, 1, b"")), Ok(Taken::Other { size: 9 }));
        assert_eq!(take(&bytes(DATA, 0, 1, b"message")), Ok(Taken::Other { size: 16 }));
        assert_eq!(take(&end), Ok(ANSWER));
        assert!(take(&end).is_err(), "twice");
        assert_eq!(take(&bytes(RST_STREAM, 0, 1, &[0; 4])), Ok(Taken::Other { size: 13 }));
        assert!(take(&bytes(RST_STREAM, 0, 1, &[0, 0, 0, 2])).is_err(), "an internal error");
        assert!(take(&bytes(RST_STREAM, 0, 3, &[0; 4])).is_err(), "not answered yet");
        let refused = Ok(Taken::Refused { size: 9, which: Which::Number(8) });
        assert_eq!(take(&bytes(HEADERS, END_STREAM | END_HEADERS, 3, b"")), refused);
        assert!(take(&bytes(GOAWAY, 0, 0, b"")).is_err());
    }

    #[test]
    fn what_the_window_does_not_hold_waits_for_it() {
        let mut put = Put::new(30_000, 1);
        let mut out = Vec::new();
        for number in 0..3 {
            put.encode(0, number, &mut out);
        }
        let two = out.len();
        assert!(two > 60_000 && two < WINDOW_START as usize, "two of three: {two}");
        let other = Ok(Taken::Other { size: 13 });
        let more = bytes(WINDOW_UPDATE, 0, 0, &30_000_u32.to_be_bytes());
        assert_eq!(put.take(0, &more, &mut out), other);
        assert!(out.len() > 90_000);
    }

    #[test]
    fn settings_and_pings_are_answered() {
        let mut put = Put::new(3, 1);
        let mut out = Vec::new();
        assert!(put.take(0, &bytes(SETTINGS, 0, 0, b"123456"), &mut out).is_ok());
        assert!(put.take(0, &bytes(PING, 0, 0, b"12345678"), &mut out).is_ok());
        let answers = [bytes(SETTINGS, ACK, 0, b""), bytes(PING, ACK, 0, b"12345678")].concat();
        assert_eq!(out, answers);
        assert!(put.take(0, &answers, &mut out).is_ok());
        assert_eq!(out, answers, "no answers to answers");
    }
}
