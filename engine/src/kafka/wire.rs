//! Kafka's wire types, and the tables that describe its messages.
//!
//! A message is a table of fields with the versions that have them, written with `message!`;
//! reading and writing follow from it, in both directions, because tests, the simulator and the
//! load generator are clients.
//!
//! Promise: reading never panics, whatever the bytes, and never allocates more than the memory it
//! was given, whatever counts the bytes claim. Strings, byte fields and record batches are slices
//! of the request itself. Writing does not copy record batches either: a message leaves as
//! [`Pieces`], headers and records by turns.
//!
//! A field that the version lacks takes its default when read and is left out when written.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::mem;
use std::ops::Deref;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tidemill_wal::format::TopicId;

/// Shorter slices are copied into the header bytes: that is cheaper than one more piece to send.
const SHARED_SIZE_MIN: usize = 256;

/// Longest string outside flexible versions, whose length is an `i16`.
const TEXT_SIZE_MAX: usize = i16::MAX as usize;

/// Why bytes are not the message they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("the message ends too early")]
    Short,
    /// A length or count is negative or larger than what is left of the message.
    #[error("a length or count is larger than the message")]
    Length,
    /// A string that is not UTF-8.
    #[error("a string is not UTF-8")]
    Text,
    /// A null where the protocol has none.
    #[error("a field is null that may not be")]
    Null,
    /// A variable-length number longer than its type.
    #[error("a variable-length number is too long")]
    Varint,
    /// The decoded message would take more memory than allowed.
    #[error("the message would take too much memory")]
    Memory,
}

/// A type with one form on the wire for each version of a message.
pub trait Wire: Sized {
    /// Takes one value off the front.
    fn read(reader: &mut Reader) -> Result<Self, DecodeError>;
    /// Adds one value at the end.
    fn write(&self, writer: &mut Writer);
    /// Any value, for tests.
    #[cfg(test)]
    fn sample(sampler: &mut Sampler) -> Self;
}

/// Takes values off a message.
#[derive(Debug)]
pub struct Reader {
    bytes: Bytes,
    version: i16,
    flexible: bool,
    memory_left: usize,
}

impl Reader {
    /// Reads `bytes` as the given version; what is decoded takes at most `memory_max` bytes.
    pub fn new(bytes: Bytes, version: i16, flexible: bool, memory_max: usize) -> Self {
        Self { bytes, version, flexible, memory_left: memory_max }
    }

    /// The message's version.
    pub fn version(&self) -> i16 {
        self.version
    }

    /// Bytes not yet taken.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// Ends reading: what was not taken.
    pub fn into_rest(self) -> Bytes {
        self.bytes
    }

    fn need(&self, size: usize) -> Result<(), DecodeError> {
        if self.bytes.len() < size { Err(DecodeError::Short) } else { Ok(()) }
    }

    fn take(&mut self, size: usize) -> Result<Bytes, DecodeError> {
        if self.bytes.len() < size {
            return Err(DecodeError::Length);
        }
        Ok(self.bytes.split_to(size))
    }

    fn charge(&mut self, size: usize) -> Result<(), DecodeError> {
        self.memory_left = self.memory_left.checked_sub(size).ok_or(DecodeError::Memory)?;
        Ok(())
    }

    /// An unsigned number of seven bits a byte, lowest first.
    pub fn uvarint(&mut self) -> Result<u32, DecodeError> {
        let mut value = 0_u32;
        for shift in (0..35).step_by(7) {
            self.need(1)?;
            let byte = self.bytes.get_u8();
            if shift == 28 && byte > 0x0f {
                return Err(DecodeError::Varint);
            }
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Varint)
    }

    /// A length or count that may be null: one more than it in flexible versions, else -1 for null.
    fn length(&mut self, short: bool) -> Result<Option<usize>, DecodeError> {
        let length = if self.flexible {
            i64::from(self.uvarint()?) - 1
        } else if short {
            i64::from(i16::read(self)?)
        } else {
            i64::from(i32::read(self)?)
        };
        match length {
            -1 => Ok(None),
            0.. => {
                let length = length as usize;
                if length > self.bytes.len() { Err(DecodeError::Length) } else { Ok(Some(length)) }
            }
            _ => Err(DecodeError::Length),
        }
    }

    /// Reads the tagged fields that end a struct: `known` gets the ones that are there, each
    /// limited to its own bytes, and leaves those that it does not know.
    pub fn tagged(
        &mut self,
        mut known: impl FnMut(u32, &mut Reader) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        for _ in 0..self.uvarint()? {
            let tag = self.uvarint()?;
            let size = self.uvarint()? as usize;
            let value = self.take(size)?;
            let rest = mem::replace(&mut self.bytes, value);
            known(tag, self)?;
            self.bytes = rest;
        }
        Ok(())
    }

    /// Whether structs end with tagged fields and lengths are compact.
    pub fn flexible(&self) -> bool {
        self.flexible
    }
}

/// What is to be sent, in order: header bytes and, between them, shared record bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pieces {
    /// Slices to send one after the other.
    pub pieces: Vec<Bytes>,
}

impl Pieces {
    /// Bytes in all.
    pub fn size(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// One copy of everything; for clients and tests, where a copy does not matter.
    pub fn concat(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(self.size());
        for piece in &self.pieces {
            bytes.extend_from_slice(piece);
        }
        bytes.freeze()
    }
}

/// Adds values to a message.
#[derive(Debug)]
pub struct Writer {
    version: i16,
    flexible: bool,
    head: BytesMut,
    /// Shared slices with the position in `head` before which each belongs.
    shared: Vec<(usize, Bytes)>,
}

impl Writer {
    /// An empty message of the given version.
    pub fn new(version: i16, flexible: bool) -> Self {
        Self { version, flexible, head: BytesMut::with_capacity(128), shared: Vec::new() }
    }

    /// The message's version.
    pub fn version(&self) -> i16 {
        self.version
    }

    /// Whether structs end with tagged fields and lengths are compact.
    pub fn flexible(&self) -> bool {
        self.flexible
    }

    /// What follows is of another kind: headers and bodies differ.
    pub fn set_flexible(&mut self, flexible: bool) {
        self.flexible = flexible;
    }

    /// An unsigned number of seven bits a byte, lowest first.
    pub fn uvarint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.head.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.head.put_u8(value as u8);
    }

    /// One tagged field.
    pub fn tagged(&mut self, tag: u32, value: impl FnOnce(&mut Writer)) {
        let shared_count = self.shared.len();
        let head = mem::take(&mut self.head);
        value(self);
        let value = mem::replace(&mut self.head, head);
        assert!(self.shared.len() == shared_count, "no tagged field holds record bytes");
        self.uvarint(tag);
        self.uvarint(value.len() as u32);
        self.head.put_slice(&value);
    }

    fn length(&mut self, length: Option<usize>, short: bool) {
        let signed = length.map_or(-1, |length| length as i64);
        assert!(signed <= i64::from(i32::MAX), "no message is that long");
        if self.flexible {
            self.uvarint((signed + 1) as u32);
        } else if short {
            self.head.put_i16(signed as i16);
        } else {
            self.head.put_i32(signed as i32);
        }
    }

    fn slice(&mut self, bytes: &Bytes) {
        if bytes.len() < SHARED_SIZE_MIN {
            self.head.put_slice(bytes);
        } else {
            self.shared.push((self.head.len(), bytes.clone()));
        }
    }

    /// The message as it stands, without a length before it.
    pub fn finish(self) -> Pieces {
        let head = self.head.freeze();
        let mut pieces = Vec::with_capacity(2 * self.shared.len() + 1);
        let mut from = 0;
        for (at, bytes) in self.shared {
            if from < at {
                pieces.push(head.slice(from..at));
            }
            pieces.push(bytes);
            from = at;
        }
        if from < head.len() {
            pieces.push(head.slice(from..));
        }
        Pieces { pieces }
    }

    /// Begins a message that [`Writer::finish_frame`] ends.
    pub fn frame(version: i16) -> Self {
        let mut writer = Self::new(version, false);
        writer.head.put_i32(0);
        writer
    }

    /// The message with its length in front.
    pub fn finish_frame(mut self) -> Pieces {
        let shared_size: usize = self.shared.iter().map(|(_, bytes)| bytes.len()).sum();
        let size = self.head.len() - size_of::<i32>() + shared_size;
        let size = i32::try_from(size).expect("replies are bounded far below 2 GiB");
        self.head[..size_of::<i32>()].copy_from_slice(&size.to_be_bytes());
        self.finish()
    }
}

/// A string: a checked slice of the message that brought it, cheap to clone.
///
/// It keeps that whole message in memory. What is to stay takes a copy.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text(Bytes);

impl Text {
    /// The characters.
    pub fn as_str(&self) -> &str {
        // SAFETY: every constructor takes UTF-8 only, and `Bytes` never changes.
        unsafe { std::str::from_utf8_unchecked(&self.0) }
    }
}

impl TryFrom<Bytes> for Text {
    type Error = DecodeError;

    fn try_from(bytes: Bytes) -> Result<Self, DecodeError> {
        match std::str::from_utf8(&bytes) {
            Ok(_) => Ok(Self(bytes)),
            Err(_) => Err(DecodeError::Text),
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Bytes::from(text))
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for Text {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

/// Record batches of one partition in a reply, in order, as slices that are sent without a copy.
///
/// Never null on the wire: some versions of librdkafka refuse that.
#[derive(Debug, Clone, Default)]
pub struct Records(pub Vec<Bytes>);

impl PartialEq for Records {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().flatten().eq(other.0.iter().flatten())
    }
}

impl Wire for Records {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let bytes = Option::<Bytes>::read(reader)?.unwrap_or_default();
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        reader.charge(size_of::<Bytes>())?;
        Ok(Self(vec![bytes]))
    }

    fn write(&self, writer: &mut Writer) {
        writer.length(Some(self.0.iter().map(Bytes::len).sum()), false);
        for bytes in &self.0 {
            writer.slice(bytes);
        }
    }

    #[cfg(test)]
    fn sample(sampler: &mut Sampler) -> Self {
        Self(Vec::sample(sampler))
    }
}

macro_rules! number {
    ($($type:ty, $get:ident, $put:ident;)+) => {$(
        impl Wire for $type {
            fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
                reader.need(size_of::<Self>())?;
                Ok(reader.bytes.$get())
            }

            fn write(&self, writer: &mut Writer) {
                writer.head.$put(*self);
            }

            #[cfg(test)]
            fn sample(sampler: &mut Sampler) -> Self {
                sampler.number() as Self
            }
        }
    )+};
}

number! {
    i8, get_i8, put_i8;
    i16, get_i16, put_i16;
    i32, get_i32, put_i32;
    i64, get_i64, put_i64;
    u16, get_u16, put_u16;
    u32, get_u32, put_u32;
    f64, get_f64, put_f64;
}

impl Wire for bool {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(i8::read(reader)? != 0)
    }

    fn write(&self, writer: &mut Writer) {
        i8::from(*self).write(writer);
    }

    #[cfg(test)]
    fn sample(sampler: &mut Sampler) -> Self {
        sampler.below(2) == 1
    }
}

impl Wire for TopicId {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let mut id = [0; 16];
        reader.need(id.len())?;
        reader.bytes.copy_to_slice(&mut id);
        Ok(Self(id))
    }

    fn write(&self, writer: &mut Writer) {
        writer.head.put_slice(&self.0);
    }

    #[cfg(test)]
    fn sample(sampler: &mut Sampler) -> Self {
        Self([sampler.below(256) as u8; 16])
    }
}

impl Wire for Option<Text> {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        match reader.length(true)? {
            Some(size) => Ok(Some(Text::try_from(reader.take(size)?)?)),
            None => Ok(None),
        }
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Some(text) => text.write(writer),
            None => writer.length(None, true),
        }
    }

    #[cfg(test)]
    fn sample(sampler: &mut Sampler) -> Self {
        (sampler.below(4) > 0).then(|| Text::sample(sampler))
    }
}

impl Wire for Option<Bytes> {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        match reader.length(false)? {
            Some(size) => Ok(Some(reader.take(size)?)),
            None => Ok(None),
        }
    }

    fn write(&self, writer: &mut Writer) {
        writer.length(self.as_ref().map(Bytes::len), false);
        if let Some(bytes) = self {
            writer.slice(bytes);
        }
    }

    #[cfg(test)]
    fn sample(sampler: &mut Sampler) -> Self {
        (sampler.below(4) > 0).then(|| Bytes::sample(sampler))
    }
}

impl<T: Wire> Wire for Option<Vec<T>> {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        // Every element takes a byte or more, so `length` has bounded the count already.
        let Some(count) = reader.length(false)? else { return Ok(None) };
        reader.charge(count.saturating_mul(size_of::<T>()))?;
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(T::read(reader)?);
        }
        Ok(Some(elements))
    }

    fn write(&self, writer: &mut Writer) {
        writer.length(self.as_ref().map(Vec::len), false);
        for element in self.iter().flatten() {
            element.write(writer);
        }
    }

    #[cfg(test)]
    fn sample(sampler: &mut Sampler) -> Self {
        (sampler.below(4) > 0).then(|| Vec::sample(sampler))
    }
}

impl Wire for Text {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Option::<Self>::read(reader)?.ok_or(DecodeError::Null)
    }

    fn write(&self, writer: &mut Writer) {
        let mut text = self.as_str();
        if !writer.flexible && text.len() > TEXT_SIZE_MAX {
            // Only a flexible version can have brought it; an older one cannot carry it.
            text = &text[..text.floor_char_boundary(TEXT_SIZE_MAX)];
        }
        writer.length(Some(text.len()), true);
        writer.head.put_slice(text.as_bytes());
    }

    #[cfg(test)]
    fn sample(sampler: &mut Sampler) -> Self {
        let size = sampler.below(12) as usize;
        Self::from("tide-mïll—wheel".chars().take(size).collect::<String>())
    }
}

impl Wire for Bytes {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Option::<Self>::read(reader)?.ok_or(DecodeError::Null)
    }

    fn write(&self, writer: &mut Writer) {
        writer.length(Some(self.len()), false);
        writer.slice(self);
    }

    #[cfg(test)]
    fn sample(sampler: &mut Sampler) -> Self {
        let size = [0, 1, 17, SHARED_SIZE_MIN - 1, SHARED_SIZE_MIN, 700][sampler.below(6) as usize];
        (0..size).map(|_| sampler.below(256) as u8).collect()
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Option::<Self>::read(reader)?.ok_or(DecodeError::Null)
    }

    fn write(&self, writer: &mut Writer) {
        writer.length(Some(self.len()), false);
        for element in self {
            element.write(writer);
        }
    }

    #[cfg(test)]
    fn sample(sampler: &mut Sampler) -> Self {
        (0..sampler.below(4)).map(|_| T::sample(sampler)).collect()
    }
}

/// Describes structs of messages: `field: Type [versions] = default,`.
///
/// No versions: all that have the struct. `[3.., tag 0]` is a tagged field, sent only if it differs
/// from its default; tags of one struct ascend. `[0.., null 7..]` is an `Option` that may be null
/// only from version 7 on and is sent empty below.
macro_rules! message {
    ($(
        $(#[$meta:meta])*
        $name:ident {
            $($(#[$field_meta:meta])* $field:ident: $type:ty $([$($spec:tt)+])? $(= $default:expr)?,)*
        }
    )+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "the protocol's own names, described in its guide")]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $crate::kafka::wire::message_field!(default $($default)?),)* }
            }
        }

        #[allow(unused_variables, unused_mut, reason = "a table may lack tags, or fields at all")]
        impl $crate::kafka::wire::Wire for $name {
            fn read(
                reader: &mut $crate::kafka::wire::Reader,
            ) -> Result<Self, $crate::kafka::wire::DecodeError> {
                let mut message = Self::default();
                $($crate::kafka::wire::message_field!(
                    read message reader $field $([$($spec)+])?
                );)*
                if reader.flexible() {
                    reader.tagged(|tag, reader| {
                        $($crate::kafka::wire::message_field!(
                            read_tagged tag message reader $field $([$($spec)+])?
                        );)*
                        Ok(())
                    })?;
                }
                Ok(message)
            }

            fn write(&self, writer: &mut $crate::kafka::wire::Writer) {
                let message = self;
                $($crate::kafka::wire::message_field!(
                    write message writer $field $([$($spec)+])?
                );)*
                if writer.flexible() {
                    let default = Self::default();
                    let mut tag_count = 0;
                    $($crate::kafka::wire::message_field!(
                        count_tagged tag_count default message writer $field $([$($spec)+])?
                    );)*
                    writer.uvarint(tag_count);
                    $($crate::kafka::wire::message_field!(
                        write_tagged default message writer $field $([$($spec)+])?
                    );)*
                }
            }

            #[cfg(test)]
            fn sample(sampler: &mut $crate::kafka::wire::Sampler) -> Self {
                Self { $($field: $crate::kafka::wire::Wire::sample(sampler),)* }
            }
        }
    )+};
}

/// What a row of a `message!` table means for each job.
macro_rules! message_field {
    (default) => {
        Default::default()
    };
    (default $default:expr) => {
        $default
    };

    (read $message:ident $reader:ident $field:ident) => {
        $message.$field = $crate::kafka::wire::Wire::read($reader)?;
    };
    (read $message:ident $reader:ident $field:ident [$versions:expr, tag $tag:literal]) => {};
    (read $message:ident $reader:ident $field:ident [$versions:expr $(, null $null:expr)?]) => {
        if ::std::ops::RangeBounds::contains(&($versions), &$reader.version()) {
            $message.$field = $crate::kafka::wire::Wire::read($reader)?;
        }
    };

    (read_tagged $found:ident $message:ident $reader:ident $field:ident
        [$versions:expr, tag $tag:literal]) => {
        if $found == $tag && ::std::ops::RangeBounds::contains(&($versions), &$reader.version()) {
            $message.$field = $crate::kafka::wire::Wire::read($reader)?;
        }
    };
    (read_tagged $found:ident $message:ident $reader:ident $field:ident $([$($spec:tt)+])?) => {};

    (write $message:ident $writer:ident $field:ident) => {
        $crate::kafka::wire::Wire::write(&$message.$field, $writer);
    };
    (write $message:ident $writer:ident $field:ident [$versions:expr, tag $tag:literal]) => {};
    (write $message:ident $writer:ident $field:ident [$versions:expr, null $null:expr]) => {
        if ::std::ops::RangeBounds::contains(&($versions), &$writer.version()) {
            let may_be_null = ::std::ops::RangeBounds::contains(&($null), &$writer.version());
            if may_be_null || $message.$field.is_some() {
                $crate::kafka::wire::Wire::write(&$message.$field, $writer);
            } else {
                let empty = Some(Default::default()).or($message.$field.clone());
                $crate::kafka::wire::Wire::write(&empty, $writer);
            }
        }
    };
    (write $message:ident $writer:ident $field:ident [$versions:expr]) => {
        if ::std::ops::RangeBounds::contains(&($versions), &$writer.version()) {
            $crate::kafka::wire::Wire::write(&$message.$field, $writer);
        }
    };

    (count_tagged $count:ident $default:ident $message:ident $writer:ident $field:ident
        [$versions:expr, tag $tag:literal]) => {
        if ::std::ops::RangeBounds::contains(&($versions), &$writer.version())
            && $message.$field != $default.$field
        {
            $count += 1;
        }
    };
    (count_tagged $count:ident $default:ident $message:ident $writer:ident $field:ident
        $([$($spec:tt)+])?) => {};

    (write_tagged $default:ident $message:ident $writer:ident $field:ident
        [$versions:expr, tag $tag:literal]) => {
        if ::std::ops::RangeBounds::contains(&($versions), &$writer.version())
            && $message.$field != $default.$field
        {
            $writer.tagged($tag, |writer| {
                $crate::kafka::wire::Wire::write(&$message.$field, writer);
            });
        }
    };
    (write_tagged $default:ident $message:ident $writer:ident $field:ident
        $([$($spec:tt)+])?) => {};
}

pub(crate) use {message, message_field};

/// Makes values that fill messages in tests: the same for the same seed.
#[cfg(test)]
#[derive(Debug)]
pub struct Sampler(pub u64);

#[cfg(test)]
impl Sampler {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Any number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Small, large and negative numbers.
    pub fn number(&mut self) -> i64 {
        let number = self.next() as i64;
        match self.below(4) {
            0 => number % 100,
            1 => -1,
            2 => i64::MAX,
            _ => number,
        }
    }
}
