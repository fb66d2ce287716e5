//! The exhaustive tail: whatever a crash leaves of the last write, recovery cuts it or keeps it.
//!
//! A [`recorder`] runs a real shard and stops at each frame that it submits, and at each seal that
//! a start writes. There a [`judge`] makes every image of that write that a crash may leave: each
//! subset of its sectors up to a bound, and beyond it each cut and random subsets, before several
//! backgrounds that a recycled segment may have. What recovery has to make of each image follows
//! from a rule, not from the code under test:
//!
//! - all sectors are there: the frame is there, with the bytes that were written;
//! - any sector is missing: the frame is cut; every frame before it is there with its bytes, a
//!   seal follows, and a second and a third recovery say the same;
//! - it is never called corruption, unless a valid later frame says that the frame was durable.

pub mod judge;
pub mod recorder;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

use tidemill_wal::format::FrameKind;

/// What kind of write it is that a crash cuts short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Category {
    /// What the frame holds.
    pub kind: Kind,
    /// What was in its place before.
    pub place: Place,
    /// Whether it is the first of its segment.
    pub is_first: bool,
    /// How large it is.
    pub size: Size,
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Steps of the shard.
    Steps,
    /// Nothing: the shard is idle.
    Idle,
    /// Nothing: a start or a stop.
    Seal,
}

impl From<FrameKind> for Kind {
    fn from(kind: FrameKind) -> Self {
        match kind {
            FrameKind::Steps => Self::Steps,
            FrameKind::Idle => Self::Idle,
            FrameKind::Seal => Self::Seal,
        }
    }
}

/// What was in a frame's place before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Zeros only.
    Fresh,
    /// A segment of an earlier number, recycled.
    Recycled,
    /// What an earlier crash left of a frame in this life of the segment.
    Torn,
}

/// How large a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// One block.
    Block,
    /// Up to 16 KiB.
    Small,
    /// More.
    Big,
}

/// How much was tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes and images of each category.
    pub categories: BTreeMap<Category, (u64, u64)>,
    /// Writes of which every subset of sectors was tried.
    pub exhaustive: u64,
    /// Images with other contents behind or under the write than were there.
    pub backgrounds: u64,
    /// Images that kept the frame.
    pub kept: u64,
    /// Images that lost it.
    pub cut: u64,
    /// Images after which a seal and two more recoveries followed.
    pub resealed: u64,
    /// Images of such a seal, torn in its turn.
    pub seals_torn: u64,
    /// Images with a later frame behind a damaged one, all refused as corruption.
    pub refused: u64,
    /// Images on which the whole shard was opened.
    pub opened: u64,
}

impl Counts {
    /// Images in all.
    pub fn images(&self) -> u64 {
        self.kept + self.cut + self.seals_torn + self.refused
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        for (category, (writes, images)) in other.categories {
            let sum = self.categories.entry(category).or_default();
            sum.0 += writes;
            sum.1 += images;
        }
        self.exhaustive += other.exhaustive;
        self.backgrounds += other.backgrounds;
        self.kept += other.kept;
        self.cut += other.cut;
        self.resealed += other.resealed;
        self.seals_torn += other.seals_torn;
        self.refused += other.refused;
        self.opened += other.opened;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (category, (writes, images)) in &self.categories {
            let Category { kind, place, is_first, size } = category;
            let (kind, place, size) =
                (format!("{kind:?}"), format!("{place:?}"), format!("{size:?}"));
            let first = if *is_first { "first" } else { "" };
            writeln!(
                f,
                "{kind:<6} {place:<9} {size:<6} {first:<6} {writes:>8} writes {images:>10} images"
            )?;
        }
        writeln!(f, "{} writes with every subset of their sectors", self.exhaustive)?;
        writeln!(f, "{} images before another background", self.backgrounds)?;
        writeln!(f, "{} images kept the frame, {} cut it", self.kept, self.cut)?;
        writeln!(f, "{} were sealed and recovered twice more", self.resealed)?;
        writeln!(f, "{} images of those seals, torn", self.seals_torn)?;
        writeln!(f, "{} with a later frame behind, all refused", self.refused)?;
        writeln!(f, "{} opened as whole shards", self.opened)?;
        write!(f, "{} images", self.images())
    }
}

/// Runs one seed. An error says what did not hold.
pub fn run_seed(seed: u64, writes_each: u64) -> Result<Counts, String> {
    let mut recorder = recorder::Recorder::new(seed, writes_each);
    recorder.run()?;
    Ok(recorder.into_counts())
}
