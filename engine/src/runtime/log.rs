//! The frame on its way to the disk: at most one, written from memory that stays.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use tidemill_wal::commit::FrameWrite;
use tidemill_wal::disk::{DiskFault, SegmentWriter, SyncMethod};
use tidemill_wal::format::{FrameKind, Sequence};

use super::uring::{Completion, Token, Uring};

/// Writes a shard's frames, one after the other.
pub struct LogWriter {
    directory: PathBuf,
    method: SyncMethod,
    /// Only the active segment is open.
    segment: Option<SegmentWriter>,
    in_flight: Option<InFlight>,
}

/// A frame that is being written.
#[derive(Debug)]
pub struct InFlight {
    /// Its number.
    pub sequence: Sequence,
    /// What it holds.
    pub kind: FrameKind,
    /// When it was submitted, in microseconds.
    pub started_us: u64,
    /// Read by the kernel.
    bytes: Bytes,
}

impl LogWriter {
    /// For the segments of a directory.
    pub fn new(directory: PathBuf, method: SyncMethod) -> Self {
        Self { directory, method, segment: None, in_flight: None }
    }

    /// Begins to write a frame; its completion goes to [`Self::on_completion`].
    pub fn begin(
        &mut self,
        ring: &mut Uring,
        write: FrameWrite,
        started_us: u64,
    ) -> Result<(), DiskFault> {
        assert!(self.in_flight.is_none(), "one frame at a time");
        let segment = match self.segment.take() {
            Some(segment) if segment.id() == write.segment => segment,
            Some(_) | None => SegmentWriter::open(&self.directory, write.segment, self.method)?,
        };
        let descriptor = segment.descriptor();
        self.segment = Some(segment);
        let FrameWrite { sequence, kind, offset, bytes, .. } = write;
        let frame = self.in_flight.insert(InFlight { sequence, kind, started_us, bytes });
        // SAFETY: shared bytes never change, and these are kept until the completion of the one
        // frame in flight; dropping this before then forgets them.
        let result = unsafe { ring.write(descriptor, &frame.bytes, offset, Token::Frame) };
        self.submitted("write", result)
    }

    /// The frame that is durable now, if that is what this completion says.
    pub fn on_completion(
        &mut self,
        ring: &mut Uring,
        completion: Completion,
    ) -> Result<Option<InFlight>, DiskFault> {
        let frame = self.in_flight.as_ref().expect("a frame is being written");
        let segment = self.segment.as_ref().expect("it is open while a frame is being written");
        if completion.token == Token::Frame {
            segment.check("write", completion.result, frame.bytes.len())?;
            if segment.method() == SyncMethod::Fdatasync {
                let result =
                    ring.sync(segment.descriptor(), Token::Sync).and_then(|()| ring.submit());
                return self.submitted("sync", result).map(|()| None);
            }
        } else {
            segment.check("sync", completion.result, 0)?;
        }
        Ok(self.in_flight.take())
    }

    /// An operation that the ring does not take is one that failed.
    fn submitted(&self, operation: &'static str, result: io::Result<()>) -> Result<(), DiskFault> {
        let Err(error) = result else { return Ok(()) };
        let segment = self.segment.as_ref().expect("it is open while a frame is being written");
        segment.check(operation, -error.raw_os_error().unwrap_or(libc::EIO), 0)
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        // The kernel still reads from it.
        std::mem::forget(self.in_flight.take());
    }
}
