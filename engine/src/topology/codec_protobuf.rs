//! Protocol Buffers, by prost.

use std::marker::PhantomData;

use bytes::Bytes;
use prost::Message;

use super::codec::{Codec, CodecError};

/// A message of Protocol Buffers, as its bytes alone. Fields are known by their numbers, so messages
/// that change as Protocol Buffers ask for read each other, and the version stays 1.
pub struct Protobuf<M> {
    of: PhantomData<fn() -> M>,
}

impl<M> Protobuf<M> {
    /// For any message that prost knows.
    pub fn new() -> Self {
        Self { of: PhantomData }
    }
}

impl<M> Default for Protobuf<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M> Clone for Protobuf<M> {
    fn clone(&self) -> Self {
        Self::new()
    }
}

impl<M: Message + Default + Clone + 'static> Codec for Protobuf<M> {
    type Value = M;

    fn name(&self) -> String {
        "protobuf".to_owned()
    }

    fn encode(&self, value: &M, to: &mut Vec<u8>) {
        value.encode(to).expect("a vector has room");
    }

    fn decode(&self, bytes: &Bytes) -> Result<M, CodecError> {
        M::decode(bytes.clone()).map_err(|error| CodecError::Malformed {
            codec: self.name(),
            reason: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct Order {
        #[prost(string, tag = "1")]
        item: String,
        #[prost(uint32, tag = "2")]
        count: u32,
    }

    /// As it was before there was a count.
    #[derive(Clone, PartialEq, Message)]
    struct OldOrder {
        #[prost(string, tag = "1")]
        item: String,
    }

    fn encoded<M: Message + Default + Clone + 'static>(value: &M) -> Bytes {
        let mut bytes = vec![9];
        Protobuf::<M>::new().encode(value, &mut bytes);
        assert_eq!(bytes[0], 9, "it is appended");
        bytes.split_off(1).into()
    }

    #[test]
    fn messages_come_back_and_read_those_of_other_versions() {
        let order = Order { item: "tea".to_owned(), count: 300 };
        let bytes = encoded(&order);
        // The example of the encoding's own description: a field number and a type, then the value.
        assert_eq!(bytes[..], [0x0a, 3, b't', b'e', b'a', 0x10, 0xac, 0x02]);
        assert_eq!(Protobuf::<Order>::new().decode(&bytes).expect("ours"), order);
        let old = Protobuf::<OldOrder>::new().decode(&bytes).expect("an unknown field is skipped");
        assert_eq!(old.item, "tea");
        let newer = Protobuf::<Order>::new().decode(&encoded(&old)).expect("a field is missing");
        assert_eq!(newer, Order { item: "tea".to_owned(), count: 0 });
    }

    #[test]
    fn other_bytes_are_named() {
        let cut = Bytes::from_static(&[0x0a, 3, b't']);
        let error = Protobuf::<Order>::new().decode(&cut).expect_err("it is cut short");
        assert!(error.to_string().starts_with("not protobuf: "), "{error}");
    }
}
