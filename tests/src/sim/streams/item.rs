//! Records of sources: a number that no other has, an event time, and what is to happen with them.

use bytes::Bytes;
use tidemill::topology::{Codec, CodecError};

/// Bytes of the smallest item.
pub const ITEM_SIZE_MIN: usize = 24;

/// Keys that items are given anew.
const NEW_KEY_COUNT: u64 = 8;

const TIME_AT: usize = 8;
const MOOD_AT: usize = 16;
const PARTS_AT: usize = 17;
const PART_AT: usize = 18;
const NEW_KEY_AT: usize = 19;

/// What happens with an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mood {
    /// It is processed.
    Fine = 0,
    /// An operator with state says that it cannot, after it has done half of it.
    Error = 1,
    /// An operator with state panics over it, after it has done half of it.
    Panic = 2,
    /// The first function that sees it panics.
    PanicAtOnce = 3,
    /// It is no item at all.
    Undecodable = 4,
}

/// An item before it is bytes.
#[derive(Debug, Clone, Copy)]
pub struct NewItem {
    /// A number that no other has.
    pub id: u64,
    /// Its event time, in milliseconds since 1970.
    pub time_ms: i64,
    /// What happens with it.
    pub mood: Mood,
    /// How many it becomes where it becomes several.
    pub parts: u8,
    /// What its new keys are made of.
    pub new_key: u8,
    /// Bytes, at least [`ITEM_SIZE_MIN`].
    pub size: usize,
    /// What it is filled with.
    pub fill: u64,
}

impl NewItem {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let fill = self.fill.to_le_bytes();
        let mut bytes: Vec<u8> = fill.into_iter().cycle().take(self.size).collect();
        bytes[..TIME_AT].copy_from_slice(&self.id.to_le_bytes());
        bytes[TIME_AT..MOOD_AT].copy_from_slice(&self.time_ms.to_le_bytes());
        (bytes[MOOD_AT], bytes[PARTS_AT], bytes[PART_AT]) = (self.mood as u8, self.parts, 0);
        bytes[NEW_KEY_AT] = self.new_key;
        bytes
    }
}

/// An item as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    bytes: Bytes,
}

impl Item {
    /// The number of the item that these bytes begin with, whatever its mood.
    pub fn id_of(bytes: &[u8]) -> Option<u64> {
        bytes.first_chunk::<8>().map(|id| u64::from_le_bytes(*id))
    }

    /// Its number.
    pub fn id(&self) -> u64 {
        Self::id_of(&self.bytes).expect("it was decoded")
    }

    /// Its event time, in milliseconds since 1970.
    pub fn time_ms(&self) -> i64 {
        let bytes = self.bytes[TIME_AT..].first_chunk::<8>().expect("it was decoded");
        i64::from_le_bytes(*bytes)
    }

    /// What happens with it.
    pub fn mood(&self) -> Mood {
        match self.bytes[MOOD_AT] {
            1 => Mood::Error,
            2 => Mood::Panic,
            3 => Mood::PanicAtOnce,
            _ => Mood::Fine,
        }
    }

    /// Its key where it is keyed anew.
    pub fn new_key(&self) -> String {
        let number = u64::from(self.bytes[NEW_KEY_AT]) + 3 * u64::from(self.bytes[PART_AT]);
        format!("n{}", number % NEW_KEY_COUNT)
    }

    /// What it becomes where it becomes several. Panics if it is to.
    pub fn parts(self) -> Vec<Self> {
        self.panic_at_once();
        (0..self.bytes[PARTS_AT]).map(|part| self.part(part)).collect()
    }

    /// Whether a filter lets it through. Panics if it is to.
    pub fn passes_filter(&self) -> bool {
        self.panic_at_once();
        !self.id().is_multiple_of(4)
    }

    fn part(&self, part: u8) -> Self {
        let mut bytes = self.bytes.to_vec();
        bytes[PART_AT] = part;
        Self { bytes: bytes.into() }
    }

    fn panic_at_once(&self) {
        assert!(self.mood() != Mood::PanicAtOnce, "as asked, at once");
    }
}

/// Items as they are stored.
#[derive(Debug, Clone, Copy)]
pub struct Items;

impl Codec for Items {
    type Value = Item;

    fn name(&self) -> String {
        "item".to_owned()
    }

    fn encode(&self, item: &Item, to: &mut Vec<u8>) {
        to.extend_from_slice(&item.bytes);
    }

    fn decode(&self, bytes: &Bytes) -> Result<Item, CodecError> {
        if bytes.len() < ITEM_SIZE_MIN || bytes[MOOD_AT] == Mood::Undecodable as u8 {
            let reason = format!("{} bytes of a bad mood", bytes.len());
            return Err(CodecError::Malformed { codec: self.name(), reason });
        }
        Ok(Item { bytes: bytes.clone() })
    }
}
