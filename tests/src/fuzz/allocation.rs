//! An allocator that knows how much a thread holds, so that a bound on memory can be asserted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread has allocated and not freed; less than nothing if others allocated.
    static HELD: Cell<isize> = const { Cell::new(0) };
    /// The most that it held since [`bounded`] began.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator with a count. A program that asserts bounds makes it the global one.
#[derive(Debug, Clone, Copy)]
pub struct Counting;

fn count(change: isize) {
    // A thread that ends has no counters any more, and needs none.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: all calls go to the system's allocator unchanged; counting touches no heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs something that may hold this much more at most. Says nothing unless [`Counting`] is the
/// program's allocator.
pub fn bounded<R>(size_max: usize, run: impl FnOnce() -> R) -> R {
    let before = HELD.get();
    PEAK.set(before);
    let result = run();
    let taken = PEAK.get() - before;
    assert!(taken <= size_max as isize, "{taken} bytes are allocated, {size_max} are allowed");
    result
}
