//! Why a WAL is refused.

use std::io;

use crate::format::{FileName, SegmentId, Sequence};

/// Why a shard cannot start from its WAL. One variant per decision of the operator.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// Acknowledged data is damaged or missing.
    #[error(
        "{file}, byte {offset}: {why}. Acknowledged data would be lost, so the shard does not \
         start. Restore the file from a copy, or move the damage aside with `tidemill-dump \
         quarantine`, which prints what is lost"
    )]
    Corrupt {
        /// The segment's file.
        file: FileName,
        /// The segment.
        segment: SegmentId,
        /// Where in the file, in bytes.
        offset: u64,
        /// The frame that was due there; 0 if that is not known.
        sequence: Sequence,
        /// What is wrong.
        why: String,
    },
    /// The segment that the manifest names first is not there.
    #[error(
        "{file} is missing, though frame {sequence} was durable. Is the WAL directory the right \
         one, and mounted? If the file is lost, `tidemill-dump quarantine` makes the shard start \
         without it and prints what is lost"
    )]
    Missing {
        /// The segment's file.
        file: FileName,
        /// The segment.
        segment: SegmentId,
        /// The newest frame that is known to have been durable.
        sequence: Sequence,
    },
    /// Written by a newer release.
    #[error("{file}, byte {offset}: format {found} is newer than this build reads; upgrade it")]
    TooNew {
        /// The segment's file.
        file: FileName,
        /// Where in the file, in bytes.
        offset: u64,
        /// The format that was found.
        found: u16,
    },
    /// An intact frame that the visitor could not use.
    #[error("{file}, byte {offset}: frame {sequence} cannot be replayed: {why}")]
    Rejected {
        /// The segment's file.
        file: FileName,
        /// Where in the file, in bytes.
        offset: u64,
        /// The frame.
        sequence: Sequence,
        /// What the visitor said.
        why: String,
    },
    /// The disk did not give the bytes. Never taken for a torn tail.
    #[error("{file}, byte {offset}: read failed: {source}")]
    Io {
        /// The segment's file, or the directory.
        file: FileName,
        /// Where in the file, in bytes.
        offset: u64,
        /// The system's reason.
        source: io::Error,
    },
}
