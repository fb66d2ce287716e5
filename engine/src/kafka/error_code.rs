//! Kafka's error codes, and how a shard's refusals are told in them.
//!
//! A refusal that passes by itself must become a code that clients retry, and which codes they
//! retry depends on what they asked. Hence one translation for each audience:
//!
//! | | overload, full disk | elsewhere, stopping |
//! |---|---|---|
//! | produce (`From`) | NOT_ENOUGH_REPLICAS: Java, librdkafka and franz-go retry it, and all know that nothing was stored | NOT_LEADER_OR_FOLLOWER: retried after fresh metadata |
//! | reads (`for_read`) | NOT_LEADER_OR_FOLLOWER: Java's consumer takes a code that it does not expect in a fetch for a bug and ends | the same |
//! | groups (`for_group`) | COORDINATOR_NOT_AVAILABLE: retried after a search for the coordinator | NOT_COORDINATOR |
//! | administration (`for_admin`) | REQUEST_TIMED_OUT: retried until the caller's own timeout | the same |
//!
//! KAFKA_STORAGE_ERROR is kept for damage: it is retriable too, but a full disk is no damage.

use crate::command::Refusal;
use crate::kafka::wire::{DecodeError, Reader, Wire, Writer};

macro_rules! codes {
    ($($(#[$meta:meta])* $name:ident $code:literal,)+) => {
        /// An error code of the protocol. `Other` has the numbers that this node never sends.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        #[allow(missing_docs, reason = "the protocol's own names")]
        pub enum ErrorCode {
            $($(#[$meta])* $name,)+
            Other(i16),
        }

        impl ErrorCode {
            #[cfg(test)]
            const KNOWN: &[(Self, &str)] = &[$((Self::$name, stringify!($name)),)+];

            /// Its number on the wire.
            pub fn code(self) -> i16 {
                match self {
                    $(Self::$name => $code,)+
                    Self::Other(code) => code,
                }
            }
        }

        impl From<i16> for ErrorCode {
            fn from(code: i16) -> Self {
                match code {
                    $($code => Self::$name,)+
                    code => Self::Other(code),
                }
            }
        }
    };
}

codes! {
    UnknownServerError -1,
    #[default]
    None 0,
    OffsetOutOfRange 1,
    CorruptMessage 2,
    UnknownTopicOrPartition 3,
    LeaderNotAvailable 5,
    NotLeaderOrFollower 6,
    RequestTimedOut 7,
    ReplicaNotAvailable 9,
    MessageTooLarge 10,
    OffsetMetadataTooLarge 12,
    CoordinatorLoadInProgress 14,
    CoordinatorNotAvailable 15,
    NotCoordinator 16,
    InvalidTopic 17,
    RecordListTooLarge 18,
    NotEnoughReplicas 19,
    InvalidRequiredAcks 21,
    IllegalGeneration 22,
    InconsistentGroupProtocol 23,
    InvalidGroupId 24,
    UnknownMemberId 25,
    InvalidSessionTimeout 26,
    RebalanceInProgress 27,
    InvalidCommitOffsetSize 28,
    InvalidTimestamp 32,
    UnsupportedVersion 35,
    TopicAlreadyExists 36,
    InvalidPartitions 37,
    InvalidReplicationFactor 38,
    InvalidReplicaAssignment 39,
    InvalidConfig 40,
    NotController 41,
    InvalidRequest 42,
    UnsupportedForMessageFormat 43,
    PolicyViolation 44,
    OutOfOrderSequenceNumber 45,
    DuplicateSequenceNumber 46,
    InvalidProducerEpoch 47,
    InvalidTxnState 48,
    InvalidTransactionTimeout 50,
    TransactionalIdAuthorizationFailed 53,
    KafkaStorageError 56,
    LogDirNotFound 57,
    UnknownProducerId 59,
    NonEmptyGroup 68,
    GroupIdNotFound 69,
    FetchSessionIdNotFound 70,
    InvalidFetchSessionEpoch 71,
    TopicDeletionDisabled 73,
    FencedLeaderEpoch 74,
    UnknownLeaderEpoch 75,
    UnsupportedCompressionType 76,
    OffsetNotAvailable 78,
    MemberIdRequired 79,
    GroupMaxSizeReached 81,
    FencedInstanceId 82,
    GroupSubscribedToTopic 86,
    InvalidRecord 87,
    ThrottlingQuotaExceeded 89,
    ProducerFenced 90,
    ResourceNotFound 91,
    DuplicateResource 92,
    UnknownTopicId 100,
    InconsistentTopicId 103,
    FetchSessionTopicIdError 106,
    MismatchedEndpointType 114,
    UnsupportedEndpointType 115,
}

impl ErrorCode {
    /// Whether it means success.
    pub fn is_none(self) -> bool {
        self == Self::None
    }

    /// Whether a client that tries again may succeed without anybody's help.
    pub fn is_retriable(self) -> bool {
        matches!(
            self,
            Self::NotEnoughReplicas
                | Self::NotLeaderOrFollower
                | Self::LeaderNotAvailable
                | Self::CoordinatorNotAvailable
                | Self::CoordinatorLoadInProgress
                | Self::NotCoordinator
                | Self::RequestTimedOut
                | Self::RebalanceInProgress
                | Self::ThrottlingQuotaExceeded
                | Self::UnknownTopicOrPartition
                | Self::MemberIdRequired
        )
    }

    /// For fetches and offset queries.
    pub fn for_read(refusal: Refusal) -> Self {
        translate(refusal, Self::NotLeaderOrFollower, Self::NotLeaderOrFollower)
    }

    /// For consumer groups.
    pub fn for_group(refusal: Refusal) -> Self {
        translate(refusal, Self::CoordinatorNotAvailable, Self::NotCoordinator)
    }

    /// For topics, configurations and producer ids.
    pub fn for_admin(refusal: Refusal) -> Self {
        translate(refusal, Self::RequestTimedOut, Self::RequestTimedOut)
    }
}

impl From<Refusal> for ErrorCode {
    /// For produce.
    fn from(refusal: Refusal) -> Self {
        translate(refusal, Self::NotEnoughReplicas, Self::NotLeaderOrFollower)
    }
}

/// `busy` and `elsewhere` are what the asker retries.
fn translate(refusal: Refusal, busy: ErrorCode, elsewhere: ErrorCode) -> ErrorCode {
    match refusal {
        Refusal::Busy | Refusal::DiskFull => busy,
        Refusal::WrongShard | Refusal::Stopping => elsewhere,
        Refusal::UnknownPartition => ErrorCode::UnknownTopicOrPartition,
        Refusal::UnknownTopicId => ErrorCode::UnknownTopicId,
        Refusal::OffsetOutOfRange => ErrorCode::OffsetOutOfRange,
        Refusal::Storage => ErrorCode::KafkaStorageError,
        Refusal::BatchTooLarge => ErrorCode::MessageTooLarge,
        Refusal::InvalidBatch => ErrorCode::InvalidRecord,
        Refusal::InvalidTimestamp => ErrorCode::InvalidTimestamp,
        Refusal::OutOfOrderSequence => ErrorCode::OutOfOrderSequenceNumber,
        Refusal::DuplicateSequence => ErrorCode::DuplicateSequenceNumber,
        Refusal::InvalidProducerEpoch => ErrorCode::InvalidProducerEpoch,
        Refusal::UnknownProducerId => ErrorCode::UnknownProducerId,
        Refusal::TopicExists => ErrorCode::TopicAlreadyExists,
        Refusal::InvalidTopic => ErrorCode::InvalidTopic,
        Refusal::InvalidPartitionCount => ErrorCode::InvalidPartitions,
        Refusal::InvalidConfig => ErrorCode::InvalidConfig,
        Refusal::InvalidRequest => ErrorCode::InvalidRequest,
        Refusal::PolicyViolation => ErrorCode::PolicyViolation,
        Refusal::UnknownMember => ErrorCode::UnknownMemberId,
        Refusal::MemberIdRequired => ErrorCode::MemberIdRequired,
        Refusal::IllegalGeneration => ErrorCode::IllegalGeneration,
        Refusal::RebalanceInProgress => ErrorCode::RebalanceInProgress,
        Refusal::InconsistentProtocol => ErrorCode::InconsistentGroupProtocol,
        Refusal::InvalidSessionTimeout => ErrorCode::InvalidSessionTimeout,
        Refusal::FencedInstance => ErrorCode::FencedInstanceId,
        Refusal::GroupFull => ErrorCode::GroupMaxSizeReached,
        Refusal::InvalidGroup => ErrorCode::InvalidGroupId,
        Refusal::NonEmptyGroup => ErrorCode::NonEmptyGroup,
        Refusal::UnknownGroup => ErrorCode::GroupIdNotFound,
        Refusal::SubscribedTopic => ErrorCode::GroupSubscribedToTopic,
        Refusal::OffsetMetadataTooLarge => ErrorCode::OffsetMetadataTooLarge,
        Refusal::Loading => ErrorCode::CoordinatorLoadInProgress,
    }
}

impl Wire for ErrorCode {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self::from(i16::read(reader)?))
    }

    fn write(&self, writer: &mut Writer) {
        self.code().write(writer);
    }

    #[cfg(test)]
    fn sample(sampler: &mut crate::kafka::wire::Sampler) -> Self {
        Self::from(i16::sample(sampler))
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::ResponseError;

    use super::*;

    #[test]
    fn numbers_agree_with_the_reference() {
        for &(code, name) in ErrorCode::KNOWN {
            assert_eq!(ErrorCode::from(code.code()), code);
            let reference = ResponseError::try_from_code(code.code())
                .map_or("None".to_owned(), |error| error.to_string());
            assert_eq!(name, reference.trim_end_matches("Exception"));
        }
        assert_eq!(ErrorCode::from(12345).code(), 12345);
    }

    #[test]
    fn what_passes_by_itself_is_told_in_codes_that_the_reference_retries() {
        for refusal in [Refusal::Busy, Refusal::DiskFull, Refusal::WrongShard, Refusal::Stopping] {
            for code in [
                ErrorCode::from(refusal),
                ErrorCode::for_read(refusal),
                ErrorCode::for_group(refusal),
                ErrorCode::for_admin(refusal),
            ] {
                let reference = ResponseError::try_from_code(code.code()).unwrap();
                assert!(reference.is_retriable(), "{refusal:?} as {code:?}");
            }
        }
    }

    #[test]
    fn what_does_not_pass_is_told_alike_to_everybody() {
        for refusal in [Refusal::Storage, Refusal::BatchTooLarge, Refusal::UnknownMember] {
            let code = ErrorCode::from(refusal);
            assert_eq!(code, ErrorCode::for_read(refusal));
            assert_eq!(code, ErrorCode::for_group(refusal));
            assert_eq!(code, ErrorCode::for_admin(refusal));
        }
    }
}
