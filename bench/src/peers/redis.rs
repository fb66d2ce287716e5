//! Redis Streams: each record an `XADD`, answered in order.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::values::Values;
use crate::load::{Protocol, Taken, Which};

/// Longest line or id that Redis answers with.
const LINE_SIZE_MAX: usize = 4096;

/// Appends to one stream.
pub struct Append {
    values: Values,
    /// The newest entry that was acknowledged, by connection.
    ends: Vec<(u64, u64)>,
}

impl Append {
    /// Appends values of a size.
    pub fn new(record_size: usize, connections: usize) -> Self {
        Self { values: Values::new(record_size), ends: vec![(0, 0); connections] }
    }
}

impl Protocol for Append {
    fn open(&mut self, _connection: usize, stream: &mut TcpStream) -> Result<(), String> {
        stream.write_all(b"*1\r\n$4\r\nPING\r\n").map_err(|error| error.to_string())?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).map_err(|error| error.to_string())?;
        if &answer == b"+PONG\r\n" { Ok(()) } else { Err("Redis does not answer PING".to_owned()) }
    }

    fn encode(&mut self, _connection: usize, number: u64, out: &mut Vec<u8>) {
        let value = self.values.of(number);
        out.extend_from_slice(b"*5\r\n$4\r\nXADD\r\n$5\r\nbench\r\n$1\r\n*\r\n$1\r\nv\r\n$");
        out.extend_from_slice(value.len().to_string().as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }

    fn take(
        &mut self,
        connection: usize,
        received: &[u8],
        _out: &mut Vec<u8>,
    ) -> Result<Taken, String> {
        let Some(end) = received.windows(2).take(LINE_SIZE_MAX).position(|two| two == b"\r\n")
        else {
            return if received.len() > LINE_SIZE_MAX {
                Err("Redis answers with an endless line".to_owned())
            } else {
                Ok(Taken::More)
            };
        };
        let line = String::from_utf8_lossy(&received[..end]);
        let Some(size) = line.strip_prefix('$').and_then(|size| size.parse::<usize>().ok()) else {
            return Err(format!("Redis says {line}"));
        };
        if size > LINE_SIZE_MAX {
            return Err(format!("Redis answers with an id of {size} bytes"));
        }
        let (id_at, size) = (end + 2, end + 2 + size + 2);
        let Some(id) = received.get(id_at..size) else { return Ok(Taken::More) };
        let id = std::str::from_utf8(id).ok().and_then(|id| id.trim_end().split_once('-'));
        let id = id.and_then(|(ms, sequence)| Some((ms.parse().ok()?, sequence.parse().ok()?)));
        let id: (u64, u64) = id.ok_or("Redis answers with what is no id")?;
        let newest = &mut self.ends[connection];
        if id <= *newest {
            return Err(format!("entry {id:?} after {newest:?}"));
        }
        *newest = id;
        Ok(Taken::Answer { size, which: Which::Next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_command() {
        let mut out = Vec::new();
        Append::new(3, 1).encode(0, 0, &mut out);
        let text = String::from_utf8(out).expect("text");
        let (head, value) = text.split_at(text.len() - 5);
        assert_eq!(head, "*5\r\n$4\r\nXADD\r\n$5\r\nbench\r\n$1\r\n*\r\n$1\r\nv\r\n$3\r\n");
        assert!(value.ends_with("\r\n"));
    }

    #[test]
    fn ids_are_taken_when_whole_and_have_to_rise() {
        let mut append = Append::new(3, 1);
        let mut take = |bytes: &[u8]| append.take(0, bytes, &mut Vec::new());
        let good = b"$15\r\n1700000000000-0\r\n+more";
        for cut in 0..22 {
            assert_eq!(take(&good[..cut]), Ok(Taken::More), "{cut}");
        }
        assert_eq!(take(good), Ok(Taken::Answer { size: 22, which: Which::Next }));
        assert!(take(good).is_err(), "the same id again");
        assert!(take(b"$15\r\n1700000000000-1\r\n").is_ok());
        assert!(take(b"$3\r\nabc\r\n").is_err());
        assert!(take(b"-OOM command not allowed\r\n").is_err());
        assert!(take(b"$-1\r\n").is_err());
    }
}
