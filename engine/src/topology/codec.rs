//! How values become bytes and come back: of records, of keys, and of operators' state.

use std::marker::PhantomData;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why bytes are no value.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The record has no value, and the codec has none for that; see [`Nullable`].
    #[error("a null where {codec} is expected")]
    Null {
        /// What was expected.
        codec: String,
    },
    /// The bytes are something else.
    #[error("not {codec}: {reason}")]
    Malformed {
        /// What was expected.
        codec: String,
        /// Why it is not that.
        reason: String,
    },
    /// State that another version of the codec wrote.
    #[error("{codec} of version {found}, which version {version} does not read")]
    Version {
        /// The codec.
        codec: String,
        /// The version that wrote it.
        found: u8,
        /// The version that is asked.
        version: u8,
    },
}

/// Encodes and decodes one type.
///
/// State is stored with the version of the codec that wrote it. A codec that reads what older (or
/// newer) versions wrote says so with [`Codec::reads`] and does it in [`Codec::decode_version`]; a
/// topology whose codec does not read what is stored is refused at start.
pub trait Codec: Clone + Send + Sync + 'static {
    /// What it encodes.
    type Value: Clone + Send + 'static;

    /// A stable name: state written by a codec of one name is not read by one of another.
    fn name(&self) -> String;

    /// Appends the bytes of a value.
    fn encode(&self, value: &Self::Value, to: &mut Vec<u8>);

    /// The value of these bytes.
    fn decode(&self, bytes: &Bytes) -> Result<Self::Value, CodecError>;

    /// The value of no bytes at all: a record whose value is null.
    fn decode_null(&self) -> Result<Self::Value, CodecError> {
        Err(CodecError::Null { codec: self.name() })
    }

    /// Whether a value encodes as null: a tombstone for its key.
    fn is_null(&self, _value: &Self::Value) -> bool {
        false
    }

    /// The version that it writes, from 1: state keeps 0 for null.
    fn version(&self) -> u8 {
        1
    }

    /// Whether it reads what this version wrote.
    fn reads(&self, version: u8) -> bool {
        version == self.version()
    }

    /// The value of bytes that this version wrote.
    fn decode_version(&self, version: u8, bytes: &Bytes) -> Result<Self::Value, CodecError> {
        if version == self.version() {
            return self.decode(bytes);
        }
        Err(CodecError::Version { codec: self.name(), found: version, version: self.version() })
    }
}

/// Bytes as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Raw;

impl Codec for Raw {
    type Value = Bytes;

    fn name(&self) -> String {
        "bytes".to_owned()
    }

    fn encode(&self, value: &Bytes, to: &mut Vec<u8>) {
        to.extend_from_slice(value);
    }

    fn decode(&self, bytes: &Bytes) -> Result<Bytes, CodecError> {
        Ok(bytes.clone())
    }
}

/// Text.
#[derive(Debug, Clone, Copy, Default)]
pub struct Utf8;

impl Codec for Utf8 {
    type Value = String;

    fn name(&self) -> String {
        "utf-8".to_owned()
    }

    fn encode(&self, value: &String, to: &mut Vec<u8>) {
        to.extend_from_slice(value.as_bytes());
    }

    fn decode(&self, bytes: &Bytes) -> Result<String, CodecError> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(malformed(self, &error)),
        }
    }
}

/// A whole number as eight bytes, most significant first, as Kafka's `LongSerializer` has it. As a
/// key it sorts by number only among numbers of one sign.
#[derive(Debug, Clone, Copy, Default)]
pub struct Int64;

impl Codec for Int64 {
    type Value = i64;

    fn name(&self) -> String {
        "int64".to_owned()
    }

    fn encode(&self, value: &i64, to: &mut Vec<u8>) {
        to.extend_from_slice(&value.to_be_bytes());
    }

    fn decode(&self, bytes: &Bytes) -> Result<i64, CodecError> {
        match <[u8; 8]>::try_from(&bytes[..]) {
            Ok(bytes) => Ok(i64::from_be_bytes(bytes)),
            Err(_) => Err(malformed(self, &format_args!("{} bytes", bytes.len()))),
        }
    }
}

/// A time in milliseconds since 1970 as eight bytes whose order is that of the times, before 1970 as
/// well: big-endian with the sign bit flipped.
#[derive(Debug, Clone, Copy, Default)]
pub struct Time;

impl Codec for Time {
    type Value = i64;

    fn name(&self) -> String {
        "time".to_owned()
    }

    fn encode(&self, time_ms: &i64, to: &mut Vec<u8>) {
        to.extend_from_slice(&(*time_ms as u64 ^ 1 << 63).to_be_bytes());
    }

    fn decode(&self, bytes: &Bytes) -> Result<i64, CodecError> {
        match <[u8; 8]>::try_from(&bytes[..]) {
            Ok(bytes) => Ok((u64::from_be_bytes(bytes) ^ 1 << 63) as i64),
            Err(_) => Err(malformed(self, &format_args!("{} bytes", bytes.len()))),
        }
    }
}

/// JSON through serde.
pub struct Json<T> {
    of: PhantomData<fn() -> T>,
}

impl<T> Json<T> {
    /// For any type that serde knows.
    pub fn new() -> Self {
        Self { of: PhantomData }
    }
}

impl<T> Default for Json<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Clone for Json<T> {
    fn clone(&self) -> Self {
        Self::new()
    }
}

impl<T: Serialize + DeserializeOwned + Clone + Send + 'static> Codec for Json<T> {
    type Value = T;

    fn name(&self) -> String {
        "json".to_owned()
    }

    fn encode(&self, value: &T, to: &mut Vec<u8>) {
        // Only a map whose keys are no text, or a type's own code, can fail here: the operator's
        // mistake, which is caught as one of its panics is.
        serde_json::to_writer(to, value).expect("a value that serde can write as JSON");
    }

    fn decode(&self, bytes: &Bytes) -> Result<T, CodecError> {
        serde_json::from_slice(bytes).map_err(|error| malformed(self, &error))
    }
}

/// The values of another codec, or null: `None` is a tombstone as a record, and in state a value that
/// is there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nullable<C>(pub C);

impl<C: Codec> Codec for Nullable<C> {
    type Value = Option<C::Value>;

    fn name(&self) -> String {
        format!("nullable {}", self.0.name())
    }

    fn encode(&self, value: &Self::Value, to: &mut Vec<u8>) {
        if let Some(value) = value {
            self.0.encode(value, to);
        }
    }

    fn decode(&self, bytes: &Bytes) -> Result<Self::Value, CodecError> {
        self.0.decode(bytes).map(Some)
    }

    fn decode_null(&self) -> Result<Self::Value, CodecError> {
        Ok(None)
    }

    fn is_null(&self, value: &Self::Value) -> bool {
        value.is_none()
    }

    fn version(&self) -> u8 {
        self.0.version()
    }

    fn reads(&self, version: u8) -> bool {
        self.0.reads(version)
    }

    fn decode_version(&self, version: u8, bytes: &Bytes) -> Result<Self::Value, CodecError> {
        self.0.decode_version(version, bytes).map(Some)
    }
}

fn malformed(codec: &impl Codec, reason: &dyn std::fmt::Display) -> CodecError {
    CodecError::Malformed { codec: codec.name(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<C: Codec>(codec: &C, value: &C::Value) -> Vec<u8>
    where
        C::Value: PartialEq + std::fmt::Debug,
    {
        let mut bytes = Vec::new();
        codec.encode(value, &mut bytes);
        let decoded = codec.decode(&Bytes::from(bytes.clone())).expect("what was encoded");
        assert_eq!(decoded, *value);
        bytes
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        assert_eq!(check(&Raw, &Bytes::from_static(b"a\0b")), b"a\0b");
        assert_eq!(check(&Utf8, &"é".to_owned()), "é".as_bytes());
        assert_eq!(check(&Int64, &-2), (-2_i64).to_be_bytes());
        assert_eq!(check(&Time, &-2), [0x7f, 255, 255, 255, 255, 255, 255, 254]);
        assert_eq!(check(&Json::<Vec<u32>>::new(), &vec![1, 2]), b"[1,2]");
        assert_eq!(check(&Nullable(Int64), &Some(1)), 1_i64.to_be_bytes());
    }

    #[test]
    fn times_sort_as_numbers_do_also_before_1970() {
        let times = [i64::MIN, -1_000_000, -1, 0, 1, 1_000_000, i64::MAX];
        let encoded: Vec<Vec<u8>> = times.iter().map(|time| check(&Time, time)).collect();
        assert!(encoded.is_sorted(), "{encoded:?}");
        assert!(Time.decode(&Bytes::from_static(b"abc")).is_err());
    }

    #[test]
    fn other_bytes_are_named() {
        let error = Int64.decode(&Bytes::from_static(b"abc")).expect_err("three bytes");
        assert_eq!(error.to_string(), "not int64: 3 bytes");
        let error = Json::<Vec<u32>>::new().decode(&Bytes::from_static(b"[1")).expect_err("half");
        assert!(error.to_string().starts_with("not json: EOF"), "{error}");
        assert!(Utf8.decode(&Bytes::from_static(&[0xff])).is_err());
        assert_eq!(
            Utf8.decode_null().expect_err("null").to_string(),
            "a null where utf-8 is expected"
        );
        assert_eq!(Nullable(Utf8).decode_null().expect("null"), None);
    }
}
