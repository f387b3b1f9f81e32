//! Pooled read buffers of one worker. A stream holds one only while bytes move through it.

use crate::base::limits::{BUFFERS_IDLE_MAX, BUFFER_BYTES};
use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};

thread_local! {
    static IDLE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static IN_USE: Cell<usize> = const { Cell::new(0) };
}

/// An empty vector of at least [`BUFFER_BYTES`] capacity, on loan; goes back when dropped.
pub struct Buffer(Vec<u8>);

impl Buffer {
    /// Borrows a buffer of this thread's pool, or makes one.
    pub fn take() -> Buffer {
        IN_USE.set(IN_USE.get() + 1);
        let pooled = IDLE.with_borrow_mut(Vec::pop);
        Buffer(pooled.unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES)))
    }

    /// Buffers on loan and buffers kept, on this thread.
    pub fn counts() -> (usize, usize) {
        (IN_USE.get(), IDLE.with_borrow(Vec::len))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        IN_USE.set(IN_USE.get().saturating_sub(1));
        // A buffer that grew for a large body goes back to the system.
        if self.0.capacity() > BUFFER_BYTES {
            return;
        }
        self.0.clear();
        let buffer = std::mem::take(&mut self.0);
        IDLE.with_borrow_mut(|idle| {
            if idle.len() < BUFFERS_IDLE_MAX {
                idle.push(buffer);
            }
        });
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;
    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_large_ones_do_not_stay() {
        let mut first = Buffer::take();
        first.extend_from_slice(b"secret of another stream");
        assert_eq!(Buffer::counts(), (1, 0));
        drop(first);
        assert_eq!(Buffer::counts(), (0, 1));
        let mut again = Buffer::take();
        assert!(again.is_empty(), "a pooled buffer must not show another stream's bytes");
        again.reserve(1 << 20);
        drop(again);
        assert_eq!(Buffer::counts(), (0, 0));
        let many: Vec<_> = (0..BUFFERS_IDLE_MAX + 10).map(|_| Buffer::take()).collect();
        drop(many);
        assert_eq!(Buffer::counts(), (0, BUFFERS_IDLE_MAX));
    }
}
