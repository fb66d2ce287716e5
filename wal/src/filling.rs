//! The frame that fills, in memory that direct I/O takes as it is: from its first byte to the disk
//! and to its readers nothing copies it, unless it outgrows its place.
//!
//! Frames lie one behind the other in larger pieces of memory; a piece is free once the last of its
//! frames is. They settle in their order, so hardly more than one piece is kept for a frame's sake.
//! The rest of a piece that a frame outgrew is lost until then: less than a frame in each piece.

use bytes::BytesMut;

use crate::limits::BLOCK_SIZE;

/// Size of a piece, unless a frame is larger.
const PIECE_SIZE: usize = 8 << 20;

/// Bytes at the end of a piece of memory, starting on a block.
#[derive(Debug)]
pub struct Filling(BytesMut);

impl Filling {
    /// Nothing, and no memory yet.
    pub fn new() -> Self {
        Self(BytesMut::new())
    }

    /// Makes room for so many more bytes, and for the padding behind them.
    pub fn reserve(&mut self, added: usize) {
        let wanted = (self.0.len() + added).next_multiple_of(BLOCK_SIZE);
        if self.0.capacity() >= wanted {
            return;
        }
        // Twice what is needed, so that a frame that grows is not copied each time.
        let size = (wanted * 2).clamp(PIECE_SIZE, wanted.max(4 * PIECE_SIZE));
        let mut larger = blocks(size);
        larger.extend_from_slice(&self.0);
        self.0 = larger;
    }

    /// The bytes so far; room was reserved for what is added.
    pub fn bytes_mut(&mut self) -> &mut BytesMut {
        &mut self.0
    }

    /// The bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Takes the bytes, padded with zeros to a whole number of blocks.
    pub fn take(&mut self) -> BytesMut {
        self.reserve(0);
        self.0.resize(self.0.len().next_multiple_of(BLOCK_SIZE), 0);
        let taken = self.0.split();
        assert!(taken.as_ptr().addr().is_multiple_of(BLOCK_SIZE), "memory for direct I/O");
        taken
    }
}

/// Empty memory with room for `size` bytes, starting on a block.
fn blocks(size: usize) -> BytesMut {
    let mut memory = BytesMut::with_capacity(size + BLOCK_SIZE);
    let before = memory.as_ptr().align_offset(BLOCK_SIZE);
    memory.resize(before, 0);
    let _ = memory.split();
    memory
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
        let (mut frames, mut pieces) = (0, 0);
        for _ in 0..200 {
            while filling.bytes().len() < 1 << 20 {
                let before = filling.bytes().as_ptr();
                add(&mut filling, 16 << 10, 7);
                if filling.bytes().as_ptr() != before {
                    pieces += filling.bytes_mut().capacity();
                }
            }
            frames += filling.take().len();
        }
        assert!(pieces < frames + frames / 6, "{pieces} bytes of memory for {frames}");
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
