//! What a group looks like in the shard's state: two kinds of entries, little-endian, each value
//! with a leading version byte.
//!
//! A `Kind::Group` entry has everything a member needs to go on after a restart without a
//! rebalance: generation, chosen protocol, leader, subscriptions and assignments. A
//! `Kind::GroupOffset` entry is one committed offset. Decoding never trusts a count: it takes
//! memory only for what is there. Members that have an id but never joined are not stored.

use bytes::Bytes;
use tidemill_wal::format::{PartitionId, TopicId};

use crate::command::CommittedOffset;
use crate::state::Kind;

/// First byte of every value written by this build.
const VERSION: u8 = 1;

/// What is stored of a group besides its members.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupFacts {
    /// Version of the assignment; 0 before the first.
    pub generation: i32,
    /// `consumer`, …; `None` if the group never had a member.
    pub protocol_type: Option<String>,
    /// The protocol that all members know; `None` without members.
    pub protocol: Option<String>,
    /// Member id of the leader; `None` without members.
    pub leader: Option<String>,
    /// When the last member went, in milliseconds since 1970; `None` if members are there or
    /// never were.
    pub empty_since_ms: Option<i64>,
    /// The members have to join again: their assignments are not those of this generation.
    pub rebalancing: bool,
}

/// What is stored of a member besides its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberFacts {
    /// Its instance id if it is static.
    pub instance_id: Option<String>,
    /// Its client id.
    pub client_id: String,
    /// Its address.
    pub client_host: String,
    /// Unheard for this long, it is out.
    pub session_timeout_ms: u32,
    /// How long a rebalance waits for it.
    pub rebalance_timeout_ms: u32,
    /// Protocols in order of preference, each with its opaque subscription.
    pub protocols: Vec<(String, Bytes)>,
    /// Its opaque assignment.
    pub assignment: Bytes,
}

/// A committed offset with the time of its commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredOffset {
    /// What the client stored.
    pub committed: CommittedOffset,
    /// When, in milliseconds since 1970.
    pub commit_ms: i64,
}

/// Key of a group's entry.
pub fn group_key(group: &str) -> Vec<u8> {
    Kind::Group.key(&[group.as_bytes()])
}

/// Group of a `Kind::Group` key.
pub fn decode_group_key(key: &[u8]) -> Result<&str, String> {
    match key.split_first() {
        Some((&kind, name)) if kind == Kind::Group as u8 => text(name),
        _ => Err("not the key of a group".into()),
    }
}

/// Value of a group's entry.
pub fn encode_group<'a>(
    facts: &GroupFacts,
    members: impl ExactSizeIterator<Item = (&'a str, &'a MemberFacts)>,
) -> Vec<u8> {
    let mut value = vec![VERSION, u8::from(facts.rebalancing)];
    value.extend_from_slice(&facts.generation.to_le_bytes());
    put_flag(&mut value, facts.empty_since_ms.is_some());
    if let Some(since_ms) = facts.empty_since_ms {
        value.extend_from_slice(&since_ms.to_le_bytes());
    }
    put_option(&mut value, facts.protocol_type.as_deref());
    put_option(&mut value, facts.protocol.as_deref());
    put_option(&mut value, facts.leader.as_deref());
    put_size(&mut value, members.len());
    for (id, member) in members {
        put_bytes(&mut value, id.as_bytes());
        put_option(&mut value, member.instance_id.as_deref());
        put_bytes(&mut value, member.client_id.as_bytes());
        put_bytes(&mut value, member.client_host.as_bytes());
        value.extend_from_slice(&member.session_timeout_ms.to_le_bytes());
        value.extend_from_slice(&member.rebalance_timeout_ms.to_le_bytes());
        put_size(&mut value, member.protocols.len());
        for (name, metadata) in &member.protocols {
            put_bytes(&mut value, name.as_bytes());
            put_bytes(&mut value, metadata);
        }
        put_bytes(&mut value, &member.assignment);
    }
    value
}

/// Facts and members of a group's entry; the members in the order of their ids.
pub fn decode_group(value: &[u8]) -> Result<(GroupFacts, Vec<(String, MemberFacts)>), String> {
    let mut reader = Reader::new(value)?;
    let rebalancing = reader.flag()?;
    let generation = i32::from_le_bytes(reader.array()?);
    let empty_since_ms =
        if reader.flag()? { Some(i64::from_le_bytes(reader.array()?)) } else { None };
    let facts = GroupFacts {
        generation,
        protocol_type: reader.option()?,
        protocol: reader.option()?,
        leader: reader.option()?,
        empty_since_ms,
        rebalancing,
    };
    let mut members = Vec::new();
    for _ in 0..reader.size()? {
        let id = reader.string()?;
        let instance_id = reader.option()?;
        let client_id = reader.string()?;
        let client_host = reader.string()?;
        let session_timeout_ms = u32::from_le_bytes(reader.array()?);
        let rebalance_timeout_ms = u32::from_le_bytes(reader.array()?);
        let mut protocols = Vec::new();
        for _ in 0..reader.size()? {
            protocols.push((reader.string()?, Bytes::copy_from_slice(reader.bytes()?)));
        }
        let assignment = Bytes::copy_from_slice(reader.bytes()?);
        let member = MemberFacts {
            instance_id,
            client_id,
            client_host,
            session_timeout_ms,
            rebalance_timeout_ms,
            protocols,
            assignment,
        };
        members.push((id, member));
    }
    reader.end()?;
    Ok((facts, members))
}

/// Key of a committed offset.
pub fn offset_key(group: &str, partition: PartitionId) -> Vec<u8> {
    let size = u16::try_from(group.len()).expect("group names are shorter than their limit");
    Kind::GroupOffset.key(&[
        &size.to_le_bytes(),
        group.as_bytes(),
        &partition.topic.0,
        &partition.index.to_le_bytes(),
    ])
}

/// Group and partition of a `Kind::GroupOffset` key.
pub fn decode_offset_key(key: &[u8]) -> Result<(&str, PartitionId), String> {
    let mut reader = match key.split_first() {
        Some((&kind, rest)) if kind == Kind::GroupOffset as u8 => Reader { rest },
        _ => return Err("not the key of a committed offset".into()),
    };
    let size = u16::from_le_bytes(reader.array()?);
    let group = text(reader.take(usize::from(size))?)?;
    let topic = TopicId(reader.array()?);
    let index = u32::from_le_bytes(reader.array()?);
    reader.end()?;
    Ok((group, PartitionId { topic, index }))
}

/// Value of a committed offset.
pub fn encode_offset(offset: &StoredOffset) -> Vec<u8> {
    let mut value = vec![VERSION];
    value.extend_from_slice(&offset.committed.offset.to_le_bytes());
    value.extend_from_slice(&offset.committed.leader_epoch.to_le_bytes());
    value.extend_from_slice(&offset.commit_ms.to_le_bytes());
    put_bytes(&mut value, offset.committed.metadata.as_bytes());
    value
}

/// A committed offset.
pub fn decode_offset(value: &[u8]) -> Result<StoredOffset, String> {
    let mut reader = Reader::new(value)?;
    let offset = u64::from_le_bytes(reader.array()?);
    let leader_epoch = i32::from_le_bytes(reader.array()?);
    let commit_ms = i64::from_le_bytes(reader.array()?);
    let metadata = reader.string()?;
    reader.end()?;
    Ok(StoredOffset { committed: CommittedOffset { offset, leader_epoch, metadata }, commit_ms })
}

fn put_flag(value: &mut Vec<u8>, flag: bool) {
    value.push(u8::from(flag));
}

fn put_size(value: &mut Vec<u8>, size: usize) {
    let size = u32::try_from(size).expect("group state is far smaller than 4 GiB");
    value.extend_from_slice(&size.to_le_bytes());
}

fn put_bytes(value: &mut Vec<u8>, bytes: &[u8]) {
    put_size(value, bytes.len());
    value.extend_from_slice(bytes);
}

fn put_option(value: &mut Vec<u8>, text: Option<&str>) {
    put_flag(value, text.is_some());
    if let Some(text) = text {
        put_bytes(value, text.as_bytes());
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| format!("a name is not UTF-8: {error}"))
}

/// Reads a value from its front.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Skips the version byte of a value.
    fn new(value: &'a [u8]) -> Result<Self, String> {
        match value.split_first() {
            Some((&VERSION, rest)) => Ok(Self { rest }),
            Some((version, _)) => {
                Err(format!("group state has version {version}, this build reads up to {VERSION}"))
            }
            None => Err("group state is empty".into()),
        }
    }

    fn take(&mut self, size: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(size).ok_or_else(|| {
            format!("group state is cut short: {size} bytes wanted, {} left", self.rest.len())
        })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were asked for"))
    }

    fn flag(&mut self) -> Result<bool, String> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(format!("group state has {other} where a flag belongs")),
        }
    }

    fn size(&mut self) -> Result<usize, String> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn bytes(&mut self) -> Result<&'a [u8], String> {
        let size = self.size()?;
        self.take(size)
    }

    fn string(&mut self) -> Result<String, String> {
        text(self.bytes()?).map(str::to_owned)
    }

    fn option(&mut self) -> Result<Option<String>, String> {
        Ok(if self.flag()? { Some(self.string()?) } else { None })
    }

    fn end(&self) -> Result<(), String> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(format!("group state has {left} bytes too many")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (GroupFacts, Vec<(String, MemberFacts)>) {
        let facts = GroupFacts {
            generation: 7,
            protocol_type: Some("consumer".into()),
            protocol: Some("range".into()),
            leader: Some("a-1".into()),
            empty_since_ms: Some(-1),
            rebalancing: true,
        };
        let member = MemberFacts {
            instance_id: Some("i".into()),
            client_id: "a".into(),
            client_host: "127.0.0.1".into(),
            session_timeout_ms: 45_000,
            rebalance_timeout_ms: 300_000,
            protocols: vec![("range".into(), Bytes::from_static(b"\0\x01"))],
            assignment: Bytes::from_static(b"p0"),
        };
        (facts, vec![("a-1".into(), member)])
    }

    fn encode((facts, members): &(GroupFacts, Vec<(String, MemberFacts)>)) -> Vec<u8> {
        encode_group(facts, members.iter().map(|(id, member)| (id.as_str(), member)))
    }

    #[test]
    fn every_cut_and_every_extra_byte_of_a_group_is_refused() {
        let value = encode(&example());
        assert_eq!(decode_group(&value), Ok(example()));
        for size in 0..value.len() {
            assert!(decode_group(&value[..size]).is_err(), "cut at {size}");
        }
        assert!(decode_group(&[value, vec![0]].concat()).is_err());
    }

    #[test]
    fn any_flipped_bit_is_decoded_within_bounds() {
        let value = encode(&example());
        for bit in 0..value.len() * 8 {
            let mut damaged = value.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Ok(decoded) = decode_group(&damaged) {
                assert_eq!(encode(&decoded), damaged, "bit {bit}");
            }
        }
    }

    #[test]
    fn offsets_come_back_as_stored() {
        let partition = PartitionId { topic: TopicId([7; 16]), index: 3 };
        let key = offset_key("group", partition);
        assert_eq!(decode_offset_key(&key), Ok(("group", partition)));
        assert!(decode_offset_key(&key[..key.len() - 1]).is_err());
        let offset = StoredOffset {
            committed: CommittedOffset { offset: 9, leader_epoch: -1, metadata: "m".into() },
            commit_ms: 11,
        };
        let value = encode_offset(&offset);
        assert_eq!(decode_offset(&value), Ok(offset));
        assert!(decode_offset(&value[..value.len() - 1]).is_err());
    }

    /// The bytes themselves, so that no change of the encoding goes unnoticed.
    #[test]
    fn the_encoding_is_frozen() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        expect_test::expect!["01010700000001ffffffffffffffff0108000000636f6e73756d6572010500000072616e67650103000000612d310100000003000000612d310101000000690100000061090000003132372e302e302e31c8af0000e0930400010000000500000072616e6765020000000001020000007030"].assert_eq(&hex(&encode(&example())));
    }
}
