//! Requests whose key is known: each key has one connection, which sends its keys by turns, so that
//! the number of a key's record tells the request, and the request when it was due.

use std::net::SocketAddr;

use tidemill::batch::{BatchBuilder, NewRecord};

use super::{Lane, Prepared, Produce, Shape, fill_with_text, request};
use crate::client::Leaders;
use crate::random;

/// Bytes of a key; each value begins with those of its key.
pub const KEY_SIZE: usize = 16;

/// When a key's records are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyTurn {
    /// Its connection, and how many there are.
    pub connection: (u64, u64),
    /// Its turn on the connection, and how many keys take turns there.
    pub turn: (u64, u64),
}

impl KeyTurn {
    /// The number of the request that has the key's record of this index, both counted from the
    /// begin of a run.
    pub fn request(&self, index: u64) -> u64 {
        let ((turn, turns), (connection, connections)) = (self.turn, self.connection);
        (index * turns + turn) * connections + connection
    }
}

/// The text of a key.
pub fn key_text(number: u64) -> String {
    format!("{number:016x}")
}

/// The number of a key; none if it is no key of ours.
pub fn key_number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() == KEY_SIZE)?;
    u64::from_str_radix(text, 16).ok()
}

impl Produce {
    /// Makes requests of one record each, with the keys of the shape, and says when each key has its
    /// turn. `partition_of` places a key.
    pub fn of_keys(
        shape: &Shape,
        leaders: &Leaders,
        partition_of: &dyn Fn(&[u8]) -> u32,
    ) -> Result<(Self, Vec<KeyTurn>), String> {
        let numbers: Vec<u64> = (0..shape.keys).collect();
        Self::of_numbers(shape, leaders, partition_of, &numbers)
    }

    /// The same with the keys of these numbers, whatever the shape says.
    pub fn of_numbers(
        shape: &Shape,
        leaders: &Leaders,
        partition_of: &dyn Fn(&[u8]) -> u32,
        numbers: &[u64],
    ) -> Result<(Self, Vec<KeyTurn>), String> {
        let brokers: Vec<(SocketAddr, Vec<u32>)> = leaders.brokers().into_iter().collect();
        let connections = shape.connections;
        if connections < brokers.len() {
            let wanted = brokers.len();
            return Err(format!("{wanted} brokers want {wanted} connections or more"));
        }
        if shape.record_size < 2 * KEY_SIZE {
            return Err(format!("records with keys have {} bytes at least", 2 * KEY_SIZE));
        }
        let lane = |connection: usize| Lane {
            address: brokers[connection % brokers.len()].0,
            partitions: 1,
            prepared: Vec::new(),
            sent: 0,
            received: 0,
        };
        let mut lanes: Vec<Lane> = (0..connections).map(lane).collect();
        let mut turns = vec![KeyTurn::default(); numbers.len()];
        let mut accepted_size = 0;
        for (number, turn) in numbers.iter().zip(&mut turns) {
            let key = key_text(*number);
            let partition = partition_of(key.as_bytes());
            // Of the connections to its leader the one with the fewest keys.
            let leader = leaders.0[partition as usize];
            let fits = lanes.iter_mut().enumerate().filter(|(_, lane)| lane.address == leader);
            let (connection, lane) = fits
                .min_by_key(|(_, lane)| lane.prepared.len())
                .expect("each broker has a connection");
            turn.connection = (connection as u64, connections as u64);
            turn.turn.0 = lane.prepared.len() as u64;
            let batch = shape.batch_of_key(key.as_bytes());
            accepted_size = batch.len() as u64;
            let batch_size = batch.len();
            let frame = request(&shape.topic, partition, batch);
            lane.prepared.push(Prepared { frame, batch_size, partition });
        }
        if lanes.iter().any(|lane| lane.prepared.is_empty()) {
            return Err("a connection has no key: ask for more keys".to_owned());
        }
        for turn in &mut turns {
            turn.turn.1 = lanes[turn.connection.0 as usize].prepared.len() as u64;
        }
        let ends = vec![-1; leaders.0.len()];
        Ok((Self { topic: shape.topic.clone(), lanes, ends, accepted_size }, turns))
    }

    /// Requests that were answered since the begin of a run.
    pub fn answered(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.received).sum()
    }
}

impl Shape {
    /// A batch of one record, whose value begins with its key.
    fn batch_of_key(&self, key: &[u8]) -> bytes::Bytes {
        let mut bits = random();
        let mut value = vec![0; self.record_size - KEY_SIZE];
        fill_with_text(&mut value, &mut bits);
        value[..KEY_SIZE].copy_from_slice(key);
        let mut builder = BatchBuilder::new();
        builder.push(NewRecord {
            timestamp_ms: crate::now_ms(),
            key: Some(key),
            value: Some(&value),
            ..NewRecord::default()
        });
        builder.build().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;
    use tidemill::batch::{Compression, RecordBatch};

    use super::*;
    use crate::load::Protocol;

    fn shape(keys: u64) -> Shape {
        Shape {
            topic: "t".to_owned(),
            record_size: 100,
            records: 1,
            keys,
            compression: Compression::None,
            connections: 3,
        }
    }

    /// Two brokers, the first with partitions 0 and 2.
    fn leaders() -> Leaders {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Leaders(vec![at(1), at(2), at(1)])
    }

    /// The number of the key in a request.
    fn sent(frame: &[u8]) -> u64 {
        let text = frame.windows(KEY_SIZE).find_map(key_number);
        text.expect("a key")
    }

    #[test]
    fn the_number_of_a_keys_record_tells_its_request() {
        let place = |key: &[u8]| key_number(key).map_or(0, |number| number as u32 % 3);
        let (mut produce, turns) = Produce::of_keys(&shape(20), &leaders(), &place).expect("good");
        let mut counts: HashMap<u64, u64> = HashMap::new();
        for number in 0..200 {
            let mut out = Vec::new();
            produce.encode((number % 3) as usize, number, &mut out);
            let key = sent(&out);
            let index = counts.entry(key).or_default();
            assert_eq!(turns[key as usize].request(*index), number, "key {key}");
            *index += 1;
        }
        assert_eq!(counts.len(), 20, "all keys had their turn");
    }

    #[test]
    fn a_value_begins_with_its_key_and_both_have_the_size_of_a_record() {
        let key = key_text(0xabc);
        let batch = RecordBatch::check(shape(1).batch_of_key(key.as_bytes())).expect("good");
        let records: Vec<_> = batch.records(1 << 20).expect("not compressed").collect();
        let record = records[0].as_ref().expect("whole");
        let (record_key, value) = (record.key.clone(), record.value.clone());
        assert_eq!(record_key, Some(Bytes::from(key.clone())));
        assert_eq!(key_number(key.as_bytes()), Some(0xabc));
        let value = value.expect("a value");
        assert!(value.starts_with(key.as_bytes()) && value.len() + KEY_SIZE == 100, "{value:?}");
        assert_eq!((key_number(b"abc"), key_number(&[0xff; 16])), (None, None));
    }

    #[test]
    fn a_connection_without_a_key_is_an_error() {
        let few = Produce::of_keys(&shape(20), &leaders(), &|_| 1);
        assert!(few.is_err_and(|why| why.contains("more keys")), "the other broker has none");
    }
}
