//! Which APIs there are, by number and version.

use std::fmt;
use std::ops::RangeInclusive;

macro_rules! apis {
    ($($(#[$meta:meta])* $name:ident $key:literal $served:expr, $advertised:expr, $flexible:expr;)+) => {
        /// One API of the protocol that this node serves.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(i16)]
        #[allow(missing_docs, reason = "the protocol's own names")]
        pub enum ApiKey {
            $($(#[$meta])* $name = $key,)+
        }

        impl ApiKey {
            /// Every API, by number.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The API with this number, if it is served.
            pub fn from_number(number: i16) -> Option<Self> {
                match number {
                    $($key => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// Its name in the protocol.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// Versions that are answered.
            pub fn served(self) -> RangeInclusive<i16> {
                match self { $(Self::$name => $served,)+ }
            }

            /// Versions that clients are told of.
            pub fn advertised(self) -> RangeInclusive<i16> {
                match self { $(Self::$name => $advertised,)+ }
            }

            /// First version with compact lengths and tagged fields.
            pub fn flexible_from(self) -> i16 {
                match self { $(Self::$name => $flexible,)+ }
            }
        }
    };
}

/// No version of the API is flexible.
const NEVER: i16 = i16::MAX;

apis! {
    // name                  key served   advertised flexible from
    /// librdkafka turns compression off without a word where version 0 is not advertised.
    Produce                   0  3..=13,  0..=13,    9;
    Fetch                     1  4..=18,  4..=18,   12;
    ListOffsets               2  1..=11,  1..=11,    6;
    Metadata                  3  0..=13,  0..=13,    9;
    OffsetCommit              8  2..=10,  2..=10,    8;
    OffsetFetch               9  1..=10,  1..=10,    6;
    FindCoordinator          10  0..=6,   0..=6,     3;
    JoinGroup                11  0..=9,   0..=9,     6;
    Heartbeat                12  0..=4,   0..=4,     4;
    LeaveGroup               13  0..=5,   0..=5,     4;
    SyncGroup                14  0..=5,   0..=5,     4;
    DescribeGroups           15  0..=6,   0..=6,     5;
    ListGroups               16  0..=5,   0..=5,     3;
    ApiVersions              18  0..=4,   0..=4,     3;
    CreateTopics             19  2..=7,   2..=7,     5;
    DeleteTopics             20  1..=6,   1..=6,     4;
    DeleteRecords            21  0..=2,   0..=2,     2;
    InitProducerId           22  0..=5,   0..=5,     2;
    OffsetForLeaderEpoch     23  2..=4,   2..=4,     4;
    DescribeConfigs          32  1..=4,   1..=4,     4;
    AlterConfigs             33  0..=2,   0..=2,     2;
    DescribeLogDirs          35  1..=4,   1..=4,     2;
    CreatePartitions         37  0..=3,   0..=3,     2;
    DeleteGroups             42  0..=2,   0..=2,     2;
    IncrementalAlterConfigs  44  0..=1,   0..=1,     1;
    OffsetDelete             47  0..=0,   0..=0, NEVER;
    DescribeCluster          60  0..=2,   0..=2,     0;
    DescribeProducers        61  0..=0,   0..=0,     0;
    DescribeTopicPartitions  75  0..=0,   0..=0,     0;
}

impl ApiKey {
    /// Its place in [`Self::ALL`].
    pub fn index(self) -> usize {
        Self::ALL.iter().position(|api| *api == self).expect("every API is in the list")
    }

    /// Its number on the wire.
    pub fn number(self) -> i16 {
        self as i16
    }

    /// Whether a version's body has compact lengths and tagged fields, and its request header too.
    pub fn is_flexible(self, version: i16) -> bool {
        version >= self.flexible_from()
    }

    /// Whether a version's response header has tagged fields. Those of ApiVersions never do: a
    /// client must read the answer before it knows what the other side speaks (KIP-511).
    pub fn is_response_header_flexible(self, version: i16) -> bool {
        self != Self::ApiVersions && self.is_flexible(version)
    }
}

impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn produce_is_advertised_from_version_0_and_nothing_else_beyond_what_is_served() {
        for &api in ApiKey::ALL {
            assert_eq!(ApiKey::from_number(api.number()), Some(api));
            if api == ApiKey::Produce {
                assert_eq!((api.served(), api.advertised()), (3..=13, 0..=13));
            } else {
                assert_eq!(api.served(), api.advertised(), "{api}");
            }
        }
        assert_eq!(ApiKey::from_number(17), None);
    }

    #[test]
    fn header_versions_agree_with_the_reference() {
        for &api in ApiKey::ALL {
            let reference = kafka_protocol::messages::ApiKey::try_from(api.number()).unwrap();
            for version in api.served() {
                let request = if api.is_flexible(version) { 2 } else { 1 };
                let response = i16::from(api.is_response_header_flexible(version));
                assert_eq!(request, reference.request_header_version(version), "{api} {version}");
                assert_eq!(response, reference.response_header_version(version), "{api} {version}");
            }
        }
    }
}
