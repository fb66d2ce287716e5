//! What a reader found wrong in a file: always with the position, never with wrong data.

use std::borrow::Cow;
use std::io;

/// Bytes that are not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {position}: {why}")]
pub struct Damage {
    /// Where in the file, in bytes: the start of the smallest checksummed part that is wrong.
    pub position: u64,
    /// What is wrong with it.
    pub why: Cow<'static, str>,
}

impl Damage {
    pub(crate) fn new(position: u64, why: impl Into<Cow<'static, str>>) -> Self {
        Self { position, why: why.into() }
    }
}

/// Why a file could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    /// The content is wrong.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// The system could not read.
    #[error("byte {position}: cannot be read: {source}")]
    Read {
        /// Where in the file, in bytes.
        position: u64,
        /// The system's reason.
        source: io::Error,
    },
}
