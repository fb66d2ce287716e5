//! Several records in a request for protocols that have one: the request is answered when all of
//! its records are.

use std::collections::{HashMap, HashSet};
use std::net::TcpStream;

use crate::load::{Protocol, Taken, Which};

/// `records` requests of a protocol as one.
pub struct Pipelined<P> {
    inner: P,
    records: u64,
    /// Records of the oldest request that are answered, by connection; for answers in order.
    answered: Vec<u64>,
    /// Records that a request still waits for, by its number; for answers in any order.
    missing: HashMap<u64, u64>,
    /// Requests of which a record was refused.
    refused: HashSet<u64>,
    /// Whether a record of the oldest request was refused, by connection.
    is_refused: Vec<bool>,
}

impl<P> Pipelined<P> {
    /// So many records a request.
    pub fn new(inner: P, records: u64, connections: usize) -> Self {
        assert!(records > 0, "a request has records");
        Self {
            inner,
            records,
            answered: vec![0; connections],
            missing: HashMap::new(),
            refused: HashSet::new(),
            is_refused: vec![false; connections],
        }
    }

    fn count(&mut self, connection: usize, size: usize, which: Which, is_good: bool) -> Taken {
        let (which, is_whole, is_good) = match which {
            Which::Number(number) => {
                let request = number / self.records;
                let missing = self.missing.entry(request).or_insert(self.records);
                *missing -= 1;
                let is_whole = *missing == 0;
                if !is_good {
                    self.refused.insert(request);
                }
                let mut all_good = true;
                if is_whole {
                    self.missing.remove(&request);
                    all_good = !self.refused.remove(&request);
                }
                (Which::Number(request), is_whole, all_good)
            }
            Which::Next => {
                assert!(which == Which::Next, "no peer answers several at once");
                self.answered[connection] += 1;
                self.is_refused[connection] |= !is_good;
                let is_whole = self.answered[connection] == self.records;
                let mut all_good = true;
                if is_whole {
                    self.answered[connection] = 0;
                    all_good = !std::mem::take(&mut self.is_refused[connection]);
                }
                (Which::Next, is_whole, all_good)
            }
        };
        match (is_whole, is_good) {
            (false, _) => Taken::Other { size },
            (true, true) => Taken::Answer { size, which },
            (true, false) => Taken::Refused { size, which },
        }
    }
}

impl<P: Protocol> Protocol for Pipelined<P> {
    fn open(&mut self, connection: usize, stream: &mut TcpStream) -> Result<(), String> {
        self.inner.open(connection, stream)
    }

    fn encode(&mut self, connection: usize, number: u64, out: &mut Vec<u8>) {
        for index in 0..self.records {
            self.inner.encode(connection, number * self.records + index, out);
        }
    }

    fn take(
        &mut self,
        connection: usize,
        received: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Taken, String> {
        Ok(match self.inner.take(connection, received, out)? {
            Taken::Answer { size, which } => self.count(connection, size, which, true),
            Taken::Refused { size, which } => self.count(connection, size, which, false),
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One byte a record; the answer is one byte, by order, by number, or a refusal.
    struct Bytes;

    impl Protocol for Bytes {
        fn encode(&mut self, _connection: usize, number: u64, out: &mut Vec<u8>) {
            out.push(number as u8);
        }

        fn take(&mut self, _: usize, received: &[u8], _: &mut Vec<u8>) -> Result<Taken, String> {
            Ok(match received {
                [] => Taken::More,
                [b'o', ..] => Taken::Answer { size: 1, which: Which::Next },
                [b'x', ..] => Taken::Refused { size: 1, which: Which::Next },
                [number, ..] => Taken::Answer { size: 1, which: Which::Number(u64::from(*number)) },
            })
        }
    }

    #[test]
    fn a_request_is_answered_with_the_last_of_its_records() {
        let mut pipelined = Pipelined::new(Bytes, 3, 2);
        let mut out = Vec::new();
        pipelined.encode(0, 2, &mut out);
        assert_eq!(out, [6, 7, 8]);
        let mut take = |connection, byte| pipelined.take(connection, &[byte], &mut Vec::new());
        let (part, whole) =
            (Ok(Taken::Other { size: 1 }), Ok(Taken::Answer { size: 1, which: Which::Next }));
        assert_eq!(take(0, b'o'), part);
        assert_eq!(take(0, b'o'), part);
        assert_eq!(take(1, b'o'), part, "another connection");
        assert_eq!(take(0, b'o'), whole);
        assert_eq!([take(0, b'o'), take(0, b'x')], [part.clone(), part.clone()]);
        assert_eq!(take(0, b'o'), Ok(Taken::Refused { size: 1, which: Which::Next }));
        assert_eq!([take(0, 8), take(0, 3), take(0, 7)], [part.clone(), part.clone(), part]);
        assert_eq!(take(0, 6), Ok(Taken::Answer { size: 1, which: Which::Number(2) }));
    }
}
