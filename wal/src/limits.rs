//! Sizes and limits of the log, each with its reason.

/// Unit of every direct write: a frame starts on a block and is padded to one, so no write
/// touches an acknowledged byte. 4 KiB covers the logical block of every common disk.
pub const BLOCK_SIZE: usize = 4096;

/// A frame is submitted no later than when it has grown to this, if the disk is free.
pub const FRAME_SIZE_TARGET: usize = 1 << 20;

/// No frame is larger, header included. Bounds the memory of one step and of one read at recovery.
pub const FRAME_SIZE_MAX: usize = 16 << 20;

/// Default size of a segment file.
pub const SEGMENT_SIZE_DEFAULT: u64 = 64 << 20;

/// Smallest segment: one header block and one frame of the largest size.
pub const SEGMENT_SIZE_MIN: u64 = (BLOCK_SIZE + FRAME_SIZE_MAX) as u64;

/// Default number of segments a shard may hold; with the default size 512 MiB a shard.
pub const SEGMENT_COUNT_MAX_DEFAULT: usize = 8;

/// Segments that are written through before the shard listens, and kept ready after.
pub const SEGMENT_READY_COUNT: usize = 2;

/// Longest key of a state change.
pub const KEY_SIZE_MAX: usize = u16::MAX as usize;

/// Longest value of a state change; several fit one frame.
pub const VALUE_SIZE_MAX: usize = 4 << 20;

/// Bytes of the WAL that only seals may take, so that a full WAL can still stop and start: a seal
/// takes one block at each start and one at a clean stop, which makes this eight of both.
pub const SEAL_RESERVE_SIZE: u64 = 16 * BLOCK_SIZE as u64;

/// Zeros are written in pieces of this size, so that a commit waits for one piece at most.
pub const ZERO_PIECE_SIZE: usize = 1 << 20;

/// Recovery and tools read this much at once: enough that the disk streams.
pub const SCAN_READ_SIZE: usize = 8 << 20;
