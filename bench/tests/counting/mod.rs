//! An allocator that counts what one thread asks for.

#![allow(unsafe_code, reason = "an allocator cannot be had without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    // Without a destructor and without laziness, so that the allocator may use it at any time.
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Counts this thread's allocations from now on.
pub fn count_this_thread() {
    IS_COUNTED.set(true);
}

/// Allocations and reallocations so far.
pub fn counted() -> u64 {
    COUNT.load(Ordering::SeqCst)
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn note() {
    if IS_COUNTED.get() {
        COUNT.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: all work is the system allocator's, which gets every argument as it came; counting
// allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(memory, layout, size) }
    }
}
