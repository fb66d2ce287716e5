//! Keys of what topologies keep in the shard's state. Persisted: see `docs/FORMAT.md`.
//!
//! Names become 64-bit identities, so that keys stay short; a start checks that no two names of a
//! node share one.

use crate::state::Kind;

/// Identity of a topology, or of an operator's state in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameId(pub u64);

impl NameId {
    /// Of names from the outside to the inside: FNV-1a over them, each ended by a zero byte, which
    /// no name holds.
    pub fn of(names: &[&str]) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in names.iter().flat_map(|name| name.bytes().chain([0])) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Self(hash)
    }
}

/// Beginning of all entries of one state for one key: `kind, state, partition, key size, key`.
pub fn state_prefix(state: NameId, partition: u32, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + 8 + 4 + 4 + key.len() + 8);
    bytes.push(Kind::OperatorState as u8);
    bytes.extend_from_slice(&state.0.to_be_bytes());
    bytes.extend_from_slice(&partition.to_be_bytes());
    bytes.extend_from_slice(&(key.len() as u32).to_be_bytes());
    bytes.extend_from_slice(key);
    bytes
}

/// The partition in the key of an operator's state.
pub fn partition_of_state(key: &[u8]) -> Option<u32> {
    key.get(9..13)?.try_into().map(u32::from_be_bytes).ok()
}

/// The first key behind all that begin with these bytes, of which one is less than 255.
pub fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut bytes = prefix.to_vec();
    while let Some(last) = bytes.pop() {
        if let Some(next) = last.checked_add(1) {
            bytes.push(next);
            break;
        }
    }
    bytes
}

/// Which time a timer goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum TimeDomain {
    /// The watermark of the operator's stage.
    Event = 1,
    /// The step's clock.
    Processing = 2,
}

/// A timer that is set. Its key sorts by topology, domain, operator and time, so the next one of an
/// operator is the first of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    /// The topology.
    pub topology: NameId,
    /// Which clock.
    pub domain: TimeDomain,
    /// The operator in its topology.
    pub operator: NameId,
    /// When, in milliseconds since 1970.
    pub time_ms: i64,
    /// Partition of the stage.
    pub partition: u32,
    /// Key of the state that it is for.
    pub key: Vec<u8>,
}

impl Timer {
    /// Beginning of all timers of an operator.
    pub fn prefix(topology: NameId, domain: TimeDomain, operator: NameId) -> Vec<u8> {
        let mut bytes = vec![Kind::Timer as u8];
        bytes.extend_from_slice(&topology.0.to_be_bytes());
        bytes.push(domain as u8);
        bytes.extend_from_slice(&operator.0.to_be_bytes());
        bytes
    }

    /// Its key.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Self::prefix(self.topology, self.domain, self.operator);
        // The sign bit flipped, so that bytes sort as numbers do.
        bytes.extend_from_slice(&(self.time_ms as u64 ^ 1 << 63).to_be_bytes());
        bytes.extend_from_slice(&self.partition.to_be_bytes());
        bytes.extend_from_slice(&self.key);
        bytes
    }

    /// The timer of a key.
    pub fn decode(key: &[u8]) -> Option<Self> {
        let (kind, rest) = key.split_first()?;
        if *kind != Kind::Timer as u8 {
            return None;
        }
        let (topology, rest) = rest.split_first_chunk::<8>()?;
        let (domain, rest) = rest.split_first()?;
        let domain = match *domain {
            1 => TimeDomain::Event,
            2 => TimeDomain::Processing,
            _ => return None,
        };
        let (operator, rest) = rest.split_first_chunk::<8>()?;
        let (time, rest) = rest.split_first_chunk::<8>()?;
        let (partition, key) = rest.split_first_chunk::<4>()?;
        Some(Self {
            topology: NameId(u64::from_be_bytes(*topology)),
            domain,
            operator: NameId(u64::from_be_bytes(*operator)),
            time_ms: (u64::from_be_bytes(*time) ^ 1 << 63) as i64,
            partition: u32::from_be_bytes(*partition),
            key: key.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(time_ms: i64, key: &[u8]) -> Timer {
        Timer {
            topology: NameId(7),
            domain: TimeDomain::Event,
            operator: NameId(9),
            time_ms,
            partition: 1,
            key: key.to_vec(),
        }
    }

    #[test]
    fn timers_sort_by_time_and_come_back() {
        let mut keys: Vec<Vec<u8>> =
            [5, -1, i64::MIN, 0, i64::MAX].map(|time| timer(time, b"k").encode()).into();
        keys.sort();
        let times: Vec<i64> =
            keys.iter().map(|key| Timer::decode(key).expect("ours").time_ms).collect();
        assert_eq!(times, [i64::MIN, -1, 0, 5, i64::MAX]);
        let one = timer(42, b"");
        assert_eq!(Timer::decode(&one.encode()), Some(one.clone()));
        assert!(one.encode().starts_with(&Timer::prefix(NameId(7), TimeDomain::Event, NameId(9))));
        assert_eq!(Timer::decode(&one.encode()[..24]), None);
    }

    #[test]
    fn names_do_not_run_into_each_other() {
        assert_ne!(NameId::of(&["ab", "c"]), NameId::of(&["a", "bc"]));
        // The published vector of FNV-1a for "a", before the zero byte of ours.
        assert_eq!(NameId::of(&[]), NameId(0xcbf2_9ce4_8422_2325));
    }

    #[test]
    fn what_is_behind_a_prefix_is_behind_all_that_begin_with_it() {
        assert_eq!(behind(&[1, 2]), [1, 3]);
        assert_eq!(behind(&[1, 255, 255]), [2]);
        assert!(behind(&[1, 255]) > [1, 255, 255, 255].to_vec());
    }

    #[test]
    fn the_partition_of_a_state_is_in_its_key() {
        let key = state_prefix(NameId(u64::MAX), 0x0102_0304, b"key");
        assert_eq!(partition_of_state(&key), Some(0x0102_0304));
        assert_eq!(partition_of_state(&key[..12]), None);
    }

    #[test]
    fn a_key_is_never_the_beginning_of_another() {
        let short = state_prefix(NameId(1), 0, b"a");
        let long = state_prefix(NameId(1), 0, b"ab");
        assert!(!long.starts_with(&short));
    }
}
