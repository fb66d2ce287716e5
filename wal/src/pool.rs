//! Memory for direct I/O that is used again.
//!
//! New memory costs a page fault for each page, and on a virtual machine it may cost the host one,
//! too: as much as all else that is done with a page. So a chunk of memory is taken again once
//! nobody holds any part of it.

use std::collections::VecDeque;

use bytes::BytesMut;

use crate::limits::BLOCK_SIZE;

/// Chunks that are given back at a time: freeing takes the caller's time.
const RELEASED_MAX: usize = 4;

/// Chunks of memory of one size, each starting on a block.
#[derive(Debug)]
pub struct Pool {
    chunk_size: usize,
    /// The end of each chunk, which keeps it: in use or free. Which was taken first is first.
    chunks: VecDeque<BytesMut>,
    /// The least number of chunks that were free at a time since [`Self::release`].
    spare_min: usize,
}

impl Pool {
    /// No memory yet.
    pub fn new(chunk_size: usize) -> Self {
        Self { chunk_size, chunks: VecDeque::new(), spare_min: 0 }
    }

    /// Empty memory with room for `size` bytes or more, starting on a block. What is not of the
    /// chunks' order of magnitude is not kept: little would hold much, or much wait for little.
    pub fn take(&mut self, size: usize) -> BytesMut {
        if size > self.chunk_size || size < self.chunk_size / 2 {
            return blocks(BytesMut::with_capacity(size + BLOCK_SIZE));
        }
        let allocated = self.allocated();
        let free = self.chunks.iter_mut().position(|chunk| chunk.try_reclaim(allocated));
        let memory = free.and_then(|index| self.chunks.remove(index));
        self.spare_min = self.spare_min.min(self.spare_count());
        let memory = memory.unwrap_or_else(|| BytesMut::with_capacity(allocated));
        let mut chunk = blocks(memory);
        self.chunks.push_back(chunk.split_off(self.chunk_size));
        chunk
    }

    /// Gives memory back that was free all the time since this was called last, some at a time.
    pub fn release(&mut self) {
        let allocated = self.allocated();
        let mut surplus = self.spare_min.min(RELEASED_MAX);
        self.chunks.retain_mut(|chunk| {
            let goes = surplus > 0 && chunk.try_reclaim(allocated);
            surplus -= usize::from(goes);
            !goes
        });
        self.spare_min = self.spare_count();
    }

    /// What a chunk takes: what is before its first block, its blocks, and the end that is kept.
    fn allocated(&self) -> usize {
        self.chunk_size + 2 * BLOCK_SIZE
    }

    fn spare_count(&mut self) -> usize {
        let allocated = self.allocated();
        self.chunks
            .iter_mut()
            .filter_map(|chunk| chunk.try_reclaim(allocated).then_some(()))
            .count()
    }
}

/// The part of empty memory that starts on a block.
fn blocks(mut memory: BytesMut) -> BytesMut {
    let before = memory.as_ptr().align_offset(BLOCK_SIZE);
    memory.resize(before, 0);
    memory.split_off(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK_SIZE: usize = 16 * BLOCK_SIZE;

    fn begin(memory: &BytesMut) -> usize {
        let begin = memory.as_ptr().addr();
        assert!(begin.is_multiple_of(BLOCK_SIZE), "memory for direct I/O");
        assert!(memory.is_empty());
        begin
    }

    #[test]
    fn memory_that_nobody_holds_is_taken_again() {
        let mut pool = Pool::new(CHUNK_SIZE);
        let chunks = [(); 3].map(|()| pool.take(CHUNK_SIZE));
        let [first, second, third] = chunks.each_ref().map(begin);
        let [mut a, mut b, c] = chunks;
        a.resize(CHUNK_SIZE, 1);
        let part = a.split_to(10).freeze();
        b.resize(7, 2);
        drop((a, b, c));
        let again = [(); 3].map(|()| pool.take(CHUNK_SIZE / 2));
        assert_eq!(again.each_ref().map(begin)[..2], [second, third]);
        assert!(![first, second, third].contains(&begin(&again[2])), "none was free");
        assert!(again.iter().all(|chunk| chunk.capacity() == CHUNK_SIZE));
        assert_eq!(part[..], [1; 10], "a part that is held does not change");
        drop(part);
        assert_eq!(begin(&pool.take(CHUNK_SIZE)), first);
    }

    #[test]
    fn what_is_much_smaller_or_larger_is_not_kept() {
        let mut pool = Pool::new(CHUNK_SIZE);
        for size in [1, CHUNK_SIZE / 2 - 1, CHUNK_SIZE + 1, 9 * CHUNK_SIZE] {
            let memory = pool.take(size);
            begin(&memory);
            assert!(memory.capacity() >= size);
            drop(memory);
            assert_eq!(pool.spare_count(), 0);
        }
    }

    #[test]
    fn memory_that_is_not_needed_for_a_while_is_given_back() {
        let mut pool = Pool::new(CHUNK_SIZE);
        let mut take = |count: usize| {
            let taken: Vec<_> = (0..count).map(|_| pool.take(CHUNK_SIZE)).collect();
            drop(taken);
            pool.release();
            pool.spare_count()
        };
        assert_eq!(take(8), 8, "all were needed until now");
        assert_eq!(take(2), 4, "six were not, and some go at a time");
        assert_eq!(take(2), 2);
        assert_eq!(take(1), 1);
        assert_eq!(take(0), 0);
    }
}
