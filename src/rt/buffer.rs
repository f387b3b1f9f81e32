//! Pooled read buffers of one worker. A stream holds one only while bytes move through it.
//!
//! Small ones serve almost every read. Large ones serve large bodies, where the system calls and
//! page faults of small ones would cost more than the bytes: they are few, and those that nobody
//! needed for some seconds go back to the system.

use crate::base::limits::{
    BUFFERS_IDLE_MAX, BUFFERS_IDLE_MIN, BUFFER_BYTES, LARGE_BUFFERS_READING_MAX,
    LARGE_BUFFER_BYTES, LARGE_IDLE_BYTES_MAX,
};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// One of so many small buffers is given up by a sweep.
const SMALL_PER_SWEEP: usize = 16;
/// Sweeps after which large buffers that were idle all the time are given up.
const SWEEPS_TO_SHRINK: u32 = 50;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool::new()) };
}

struct Pool {
    small: Vec<Vec<u8>>,
    /// Of [`LARGE_BUFFER_BYTES`] or more. The last one given back is lent first: its memory is
    /// the warmest.
    large: Vec<Vec<u8>>,
    large_bytes: usize,
    on_loan: usize,
    large_reading: usize,
    large_denied: u64,
    /// Fewest idle large buffers since the pool last shrank.
    never_needed: usize,
    sweeps: u32,
}

/// An empty vector of at least [`BUFFER_BYTES`] capacity, on loan; goes back when dropped.
pub struct Buffer {
    bytes: Vec<u8>,
    large_reading: bool,
}

impl Buffer {
    /// Borrows a buffer of this thread's pool, or makes one.
    pub fn take() -> Buffer {
        POOL.with_borrow_mut(|pool| {
            pool.on_loan += 1;
            Buffer { bytes: pool.take_small(), large_reading: false }
        })
    }

    /// One of [`LARGE_BUFFER_BYTES`] to read a large body with, unless too many of those
    /// are on loan: then a small one does. (Who holds one holds it while its peer is slow.)
    pub fn take_large() -> Buffer {
        POOL.with_borrow_mut(|pool| {
            pool.on_loan += 1;
            if pool.large_reading == LARGE_BUFFERS_READING_MAX {
                pool.large_denied += 1;
                return Buffer { bytes: pool.take_small(), large_reading: false };
            }
            pool.large_reading += 1;
            let pooled = pool.take_large(LARGE_BUFFER_BYTES);
            let bytes = pooled.unwrap_or_else(|| Vec::with_capacity(LARGE_BUFFER_BYTES));
            Buffer { bytes, large_reading: true }
        })
    }

    /// Makes room behind the bytes that are there: in a large buffer that lies idle, or else by
    /// asking the system for some `room` bytes.
    pub fn grow(&mut self, room: usize) {
        let pooled =
            POOL.with_borrow_mut(|pool| match self.bytes.capacity() < LARGE_BUFFER_BYTES {
                true => pool.take_large(usize::MAX),
                false => None,
            });
        let mut bytes = match pooled {
            Some(bytes) => bytes,
            // Of a size that can be kept.
            None if room > BUFFER_BYTES && self.bytes.capacity() < LARGE_BUFFER_BYTES => {
                Vec::with_capacity(LARGE_BUFFER_BYTES)
            }
            None => return self.bytes.reserve(room.max(1)),
        };
        bytes.extend_from_slice(&self.bytes);
        let small = std::mem::replace(&mut self.bytes, bytes);
        POOL.with_borrow_mut(|pool| pool.put(small));
    }

    /// Buffers on loan and buffers kept, on this thread.
    pub fn counts() -> (usize, usize) {
        POOL.with_borrow(|pool| (pool.on_loan, pool.small.len() + pool.large.len()))
    }

    /// Times that [`Buffer::take_large`] gave a small one, on this thread.
    pub fn large_denied() -> u64 {
        POOL.with_borrow(|pool| pool.large_denied)
    }

    /// Called at a steady pace: gives up what a burst left behind. Of the small ones a sweep takes
    /// so few that nobody notices who needs them all the time; the large ones go when nobody needed
    /// them for a while.
    pub fn sweep() {
        POOL.with_borrow_mut(Pool::sweep);
    }

    /// True when [`Buffer::sweep`] has nothing left to give up.
    pub fn is_settled() -> bool {
        POOL.with_borrow(|pool| pool.small.len() <= BUFFERS_IDLE_MIN && pool.large.is_empty())
    }
}

impl Pool {
    const fn new() -> Pool {
        Pool {
            small: Vec::new(),
            large: Vec::new(),
            large_bytes: 0,
            on_loan: 0,
            large_reading: 0,
            large_denied: 0,
            never_needed: 0,
            sweeps: 0,
        }
    }

    fn take_small(&mut self) -> Vec<u8> {
        self.small.pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES))
    }

    /// One of at most so many bytes.
    fn take_large(&mut self, most: usize) -> Option<Vec<u8>> {
        let at = self.large.iter().rposition(|idle| idle.capacity() <= most)?;
        let taken = self.large.remove(at);
        self.large_bytes -= taken.capacity();
        self.never_needed = self.never_needed.min(self.large.len());
        Some(taken)
    }

    /// Keeps a buffer that comes back, or lets go of it.
    fn put(&mut self, mut bytes: Vec<u8>) {
        bytes.clear();
        let capacity = bytes.capacity();
        if capacity == BUFFER_BYTES && self.small.len() < BUFFERS_IDLE_MAX {
            self.small.push(bytes);
        } else if capacity >= LARGE_BUFFER_BYTES
            && self.large_bytes + capacity <= LARGE_IDLE_BYTES_MAX
        {
            self.large_bytes += capacity;
            self.large.push(bytes);
        }
    }

    fn sweep(&mut self) {
        // Those that nobody has needed for longest.
        let unneeded = self.small.len().saturating_sub(BUFFERS_IDLE_MIN);
        drop(self.small.drain(..unneeded.div_ceil(SMALL_PER_SWEEP)));
        self.sweeps += 1;
        if self.sweeps < SWEEPS_TO_SHRINK {
            return;
        }
        self.sweeps = 0;
        for unneeded in self.large.drain(..self.never_needed) {
            self.large_bytes -= unneeded.capacity();
        }
        self.never_needed = self.large.len();
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        POOL.with_borrow_mut(|pool| {
            pool.on_loan = pool.on_loan.saturating_sub(1);
            pool.large_reading -= usize::from(self.large_reading);
            pool.put(std::mem::take(&mut self.bytes));
        });
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;
    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty() {
        let mut first = Buffer::take();
        first.extend_from_slice(b"secret of another stream");
        assert_eq!(Buffer::counts(), (1, 0));
        drop(first);
        assert_eq!(Buffer::counts(), (0, 1));
        let again = Buffer::take();
        assert!(again.is_empty(), "a pooled buffer must not show another stream's bytes");
        drop(again);
        let many: Vec<_> = (0..BUFFERS_IDLE_MAX + 10).map(|_| Buffer::take()).collect();
        drop(many);
        assert_eq!(Buffer::counts(), (0, BUFFERS_IDLE_MAX));
    }

    #[test]
    fn what_a_burst_left_is_given_up_and_what_is_needed_stays() {
        let many: Vec<_> = (0..BUFFERS_IDLE_MAX).map(|_| Buffer::take()).collect();
        drop(many);
        let needed = Buffer::take();
        let held: *const u8 = needed.as_ptr();
        for _ in 0..BUFFERS_IDLE_MAX {
            Buffer::sweep();
        }
        assert_eq!(Buffer::counts(), (1, BUFFERS_IDLE_MIN));
        drop(needed);
        Buffer::sweep();
        assert_eq!(Buffer::counts(), (0, BUFFERS_IDLE_MIN));
        assert_eq!(Buffer::take().as_ptr(), held, "the warmest one is kept");
    }

    #[test]
    fn a_body_moves_into_a_large_buffer_and_on() {
        let mut body = Buffer::take();
        body.resize(BUFFER_BYTES, b'a');
        body.grow(LARGE_BUFFER_BYTES);
        assert_eq!(body.capacity(), LARGE_BUFFER_BYTES);
        assert_eq!(Buffer::counts(), (1, 1), "the small one went back");
        assert!(body.len() == BUFFER_BYTES && body.iter().all(|byte| *byte == b'a'));
        body.resize(LARGE_BUFFER_BYTES, b'b');
        body.grow(1);
        assert!(body.capacity() > LARGE_BUFFER_BYTES && body.ends_with(b"b"));
        let capacity = body.capacity();
        drop(body);
        // What is there already is used, even where little is asked for.
        let mut next = Buffer::take();
        next.resize(BUFFER_BYTES, b'c');
        next.grow(1);
        assert_eq!((next.capacity(), next.len()), (capacity, BUFFER_BYTES));
        assert!(next.iter().all(|byte| *byte == b'c'));
        // Where nothing is there, no more is taken than is asked for.
        let mut poor = Buffer::take();
        poor.resize(BUFFER_BYTES, b'd');
        poor.grow(100);
        assert!(poor.capacity() < LARGE_BUFFER_BYTES, "{} bytes", poor.capacity());
        drop(poor);
        assert_eq!(Buffer::counts(), (1, 0), "of no size that is kept");
    }

    /// A slow client holds what its answer is read with: that is of a stated size.
    #[test]
    fn what_grew_for_a_prompt_reads_no_answer() {
        let mut prompt = Buffer::take();
        prompt.grow(LARGE_BUFFER_BYTES);
        prompt.reserve(2 * LARGE_BUFFER_BYTES);
        let capacity = prompt.capacity();
        drop(prompt);
        assert_eq!(Buffer::take_large().capacity(), LARGE_BUFFER_BYTES);
        assert!(POOL.with_borrow(|pool| pool.large.iter().any(|b| b.capacity() == capacity)));
    }

    #[test]
    fn only_so_many_read_with_large_buffers() {
        let many: Vec<_> = (0..LARGE_BUFFERS_READING_MAX).map(|_| Buffer::take_large()).collect();
        assert!(many.iter().all(|buffer| buffer.capacity() == LARGE_BUFFER_BYTES));
        let next = Buffer::take_large();
        assert_eq!((next.capacity(), Buffer::large_denied()), (BUFFER_BYTES, 1));
        drop((many, next));
        assert_eq!(Buffer::take_large().capacity(), LARGE_BUFFER_BYTES);
    }

    #[test]
    fn the_pool_of_large_buffers_is_bounded_and_shrinks() {
        let grow = |_| {
            let mut body = Buffer::take();
            body.grow(LARGE_BUFFER_BYTES);
            body
        };
        let kept = LARGE_IDLE_BYTES_MAX / LARGE_BUFFER_BYTES;
        drop((0..kept + 5).map(grow).collect::<Vec<_>>());
        let idle_large = || POOL.with_borrow(|pool| pool.large.len());
        let sweep = || (0..SWEEPS_TO_SHRINK).for_each(|_| Buffer::sweep());
        assert_eq!(idle_large(), kept);
        sweep();
        assert_eq!(idle_large(), kept, "they were needed a moment ago");
        drop((0..3).map(grow).collect::<Vec<_>>());
        sweep();
        assert_eq!(idle_large(), 3, "what was needed stays");
        sweep();
        assert_eq!(idle_large(), 0);
        assert_eq!(POOL.with_borrow(|pool| pool.large_bytes), 0);
        // A body that nobody else will have the like of is not kept.
        let mut huge = Buffer::take();
        huge.reserve(LARGE_IDLE_BYTES_MAX + 1);
        drop(huge);
        assert_eq!(idle_large(), 0);
    }
}
