//! The frame that fills, in memory that direct I/O takes as it is: from its first byte to the disk
//! and to its readers nothing copies it, unless it outgrows its place.
//!
//! Frames lie one behind the other in larger chunks of memory; a chunk is free once the last of its
//! frames is. They settle in their order, so hardly more than one chunk is kept for a frame's sake.
//! The rest of a chunk that a frame outgrew is lost until then: less than a frame in each chunk.

use bytes::BytesMut;

use crate::limits::BLOCK_SIZE;
use crate::pool::Pool;

/// Size of a chunk, unless a frame is larger.
const CHUNK_SIZE: usize = 8 << 20;

/// The frame that fills.
#[derive(Debug)]
pub struct Filling {
    /// At the end of a chunk of memory, starting on a block.
    bytes: BytesMut,
    pool: Pool,
}

impl Filling {
    /// Nothing, and no memory yet.
    pub fn new() -> Self {
        Self { bytes: BytesMut::new(), pool: Pool::new(CHUNK_SIZE) }
    }

    /// Makes room for so many more bytes, and for the padding behind them.
    pub fn reserve(&mut self, added: usize) {
        let wanted = (self.bytes.len() + added).next_multiple_of(BLOCK_SIZE);
        if self.bytes.capacity() >= wanted {
            return;
        }
        // More than is needed, so that a frame that grows is not copied each time.
        let size = if wanted <= CHUNK_SIZE { CHUNK_SIZE } else { wanted * 2 };
        let mut larger = self.pool.take(size);
        larger.extend_from_slice(&self.bytes);
        self.bytes = larger;
    }

    /// Gives memory back that no frame has needed since this was called last.
    pub fn release(&mut self) {
        self.pool.release();
    }

    /// The bytes so far; room was reserved for what is added.
    pub fn bytes_mut(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// The bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes the bytes, padded with zeros to a whole number of blocks.
    pub fn take(&mut self) -> BytesMut {
        self.reserve(0);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_SIZE), 0);
        let taken = self.bytes.split();
        assert!(taken.as_ptr().addr().is_multiple_of(BLOCK_SIZE), "memory for direct I/O");
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(filling: &mut Filling, count: usize, value: u8) {
        filling.reserve(count);
        filling.bytes_mut().extend_from_slice(&vec![value; count]);
    }

    #[test]
    fn frames_are_whole_blocks_and_lie_behind_each_other() {
        let mut filling = Filling::new();
        add(&mut filling, 10, 1);
        let first = filling.take();
        assert_eq!(first.len(), BLOCK_SIZE);
        assert_eq!((first[9], first[10]), (1, 0));
        add(&mut filling, BLOCK_SIZE, 2);
        add(&mut filling, 1, 3);
        let second = filling.take();
        assert_eq!(second.len(), 2 * BLOCK_SIZE);
        assert_eq!(second.as_ptr(), first.as_ptr().wrapping_add(BLOCK_SIZE));
        assert_eq!((second[0], second[BLOCK_SIZE], second[BLOCK_SIZE + 1]), (2, 3, 0));
        assert_eq!(first[9], 1);
    }

    #[test]
    fn full_frames_take_little_more_memory_than_their_bytes() {
        let mut filling = Filling::new();
        let (mut frames, mut chunks) = (0, 0);
        for _ in 0..200 {
            while filling.bytes().len() < 1 << 20 {
                let before = filling.bytes().as_ptr();
                add(&mut filling, 16 << 10, 7);
                if filling.bytes().as_ptr() != before {
                    chunks += filling.bytes_mut().capacity();
                }
            }
            frames += filling.take().len();
        }
        assert!(chunks < frames + frames / 6, "{chunks} bytes of memory for {frames}");
    }

    #[test]
    fn memory_of_frames_that_are_gone_is_filled_again() {
        let mut filling = Filling::new();
        let mut begins = Vec::new();
        for _ in 0..4 * CHUNK_SIZE / BLOCK_SIZE {
            add(&mut filling, BLOCK_SIZE, 1);
            begins.push(filling.take().as_ptr().addr());
        }
        let count = begins.len();
        begins.sort_unstable();
        begins.dedup();
        assert!(begins.len() <= count / 2, "{} places of {count} frames", begins.len());
    }

    #[test]
    fn a_frame_that_outgrows_its_place_moves_with_what_it_holds() {
        let mut filling = Filling::new();
        for number in 0..40_u8 {
            add(&mut filling, 100_000, number);
        }
        let frame = filling.take();
        assert_eq!(frame.len(), 4_000_000_usize.next_multiple_of(BLOCK_SIZE));
        for number in 0..40_u8 {
            let part = &frame[usize::from(number) * 100_000..][..100_000];
            assert!(part.iter().all(|byte| *byte == number));
        }
        add(&mut filling, 20 << 20, 9);
        assert_eq!(filling.take().len(), 20 << 20);
        assert_eq!(filling.take().len(), 0);
    }
}
