//! Pooled read buffers of one worker. A stream holds one only while bytes move through it.
//!
//! Small ones serve almost every read. Large ones serve large bodies, where the system calls and
//! page faults of small ones would cost more than the bytes: they are few, and those that nobody
//! needed for some seconds go back to the system.
//!
//! All that is on loan counts against the budget of the process, whatever it is lent for, and is
//! given back when the buffer is dropped, whatever the reason. A buffer that wants to grow beyond
//! the budget does not; a small one is always had, so that what runs can go on, and so that health
//! and readiness answer.

use super::budget::Budget;
use crate::base::limits::{
    BUFFERS_IDLE_MAX, BUFFERS_IDLE_MIN, BUFFER_BYTES, LARGE_BUFFERS_READING_MAX,
    LARGE_BUFFER_BYTES, LARGE_IDLE_BYTES_MAX,
};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// One of so many small buffers is given up by a sweep.
const SMALL_PER_SWEEP: usize = 16;
/// Sweeps after which large buffers that were idle all the time are given up.
const SWEEPS_TO_SHRINK: u32 = 50;
/// The budget is told of small buffers in steps of so many bytes, and at each sweep: workers would
/// fight for its cache line else.
const BUDGET_STEP: usize = 16 * BUFFER_BYTES;

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
    /// Bytes of those on loan.
    bytes_on_loan: usize,
    /// As many of them as the budget was told of.
    bytes_told: usize,
    budget: Option<Arc<Budget>>,
    large_reading: usize,
    large_denied: u64,
    /// Fewest idle large buffers since the pool last shrank.
    never_needed: usize,
    sweeps: u32,
}

/// An empty vector of at least [`BUFFER_BYTES`] capacity, on loan; goes back when dropped.
pub struct Buffer {
    bytes: Vec<u8>,
    /// Bytes that count as on loan for it.
    counted: u32,
    large_reading: bool,
}

impl Buffer {
    /// Borrows a buffer of this thread's pool, or makes one.
    pub fn take() -> Buffer {
        POOL.with_borrow_mut(|pool| {
            let small = pool.take_small();
            pool.lend(small, false)
        })
    }

    /// From now on the buffers of this thread count against this budget.
    pub fn count_against(budget: &Arc<Budget>) {
        POOL.with_borrow_mut(|pool| {
            pool.budget = Some(Arc::clone(budget));
            pool.bytes_told = 0;
            pool.tell(1);
        });
    }

    /// True when nothing is left of the budget: nothing new should begin that needs buffers.
    pub fn is_budget_spent() -> bool {
        POOL.with_borrow(|pool| pool.budget.as_ref().is_some_and(|budget| budget.is_spent()))
    }

    /// One of [`LARGE_BUFFER_BYTES`] to read a large body with, unless too many of those
    /// are on loan: then a small one does. (Who holds one holds it while its peer is slow.)
    pub fn take_large() -> Buffer {
        POOL.with_borrow_mut(|pool| {
            if pool.large_reading == LARGE_BUFFERS_READING_MAX {
                pool.large_denied += 1;
                let small = pool.take_small();
                return pool.lend(small, false);
            }
            pool.large_reading += 1;
            let pooled = pool.take_large(LARGE_BUFFER_BYTES);
            let bytes = pooled.unwrap_or_else(|| Vec::with_capacity(LARGE_BUFFER_BYTES));
            pool.lend(bytes, true)
        })
    }

    /// Makes room behind the bytes that are there: in a large buffer that lies idle, or else by
    /// asking the system for some `room` bytes. False, with all as it was, when the budget does not
    /// have them.
    #[must_use = "there may be no room"]
    pub fn grow(&mut self, room: usize) -> bool {
        let is_small = self.bytes.capacity() < LARGE_BUFFER_BYTES;
        let pooled = POOL.with_borrow_mut(|pool| match is_small {
            true => pool.take_large(usize::MAX),
            false => None,
        });
        // A new one is of a size that can be kept.
        let is_new_large = pooled.is_none() && is_small && room > BUFFER_BYTES;
        let wanted = match &pooled {
            Some(bytes) => bytes.capacity(),
            None if is_new_large => LARGE_BUFFER_BYTES,
            None => self.bytes.len().saturating_add(room.max(1)),
        };
        if !POOL.with_borrow_mut(|pool| pool.count_more(&mut self.counted, wanted)) {
            POOL.with_borrow_mut(|pool| pooled.map(|bytes| pool.put(bytes)));
            return false;
        }
        let mut bytes = match pooled {
            Some(bytes) => bytes,
            None if is_new_large => Vec::with_capacity(LARGE_BUFFER_BYTES),
            None => {
                self.bytes.reserve_exact(room.max(1));
                return true;
            }
        };
        bytes.extend_from_slice(&self.bytes);
        let small = std::mem::replace(&mut self.bytes, bytes);
        POOL.with_borrow_mut(|pool| pool.put(small));
        true
    }

    /// Appends bytes, for which it grows where it must: each time to twice what it was, or to
    /// `most` bytes where that is less. False when the budget does not have them.
    #[must_use = "there may be no room"]
    pub fn append(&mut self, bytes: &[u8], most: usize) -> bool {
        if self.bytes.capacity() - self.bytes.len() < bytes.len() {
            let twice = self.bytes.len().min(most.saturating_sub(self.bytes.len()));
            if !self.grow(twice.max(bytes.len())) {
                return false;
            }
        }
        self.bytes.extend_from_slice(bytes);
        true
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
        POOL.with_borrow(|pool| {
            pool.small.len() <= BUFFERS_IDLE_MIN
                && pool.large.is_empty()
                && pool.bytes_told == pool.bytes_on_loan
        })
    }
}

impl Pool {
    const fn new() -> Pool {
        Pool {
            small: Vec::new(),
            large: Vec::new(),
            large_bytes: 0,
            on_loan: 0,
            bytes_on_loan: 0,
            bytes_told: 0,
            budget: None,
            large_reading: 0,
            large_denied: 0,
            never_needed: 0,
            sweeps: 0,
        }
    }

    fn lend(&mut self, bytes: Vec<u8>, large_reading: bool) -> Buffer {
        let counted = u32::try_from(bytes.capacity()).unwrap_or(u32::MAX);
        self.on_loan += 1;
        self.bytes_on_loan += counted as usize;
        self.tell(BUDGET_STEP);
        Buffer { bytes, counted, large_reading }
    }

    /// Counts a buffer as one of `wanted` bytes; false when the budget does not have the rest.
    fn count_more(&mut self, counted: &mut u32, wanted: usize) -> bool {
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        let more = wanted.saturating_sub(*counted) as usize;
        if self.budget.as_ref().is_some_and(|budget| !budget.take(more as u64)) {
            return false;
        }
        *counted += more as u32;
        self.bytes_on_loan += more;
        self.bytes_told += more;
        true
    }

    /// Tells the budget what is on loan, if that differs by so much from what it was told.
    fn tell(&mut self, step: usize) {
        if self.bytes_on_loan.abs_diff(self.bytes_told) < step {
            return;
        }
        if let Some(budget) = &self.budget {
            match self.bytes_on_loan.checked_sub(self.bytes_told) {
                Some(more) => budget.take_anyway(more as u64),
                None => budget.give_back((self.bytes_told - self.bytes_on_loan) as u64),
            }
        }
        self.bytes_told = self.bytes_on_loan;
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
        self.tell(1);
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
            pool.bytes_on_loan = pool.bytes_on_loan.saturating_sub(self.counted as usize);
            pool.tell(BUDGET_STEP);
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
        assert!(body.grow(LARGE_BUFFER_BYTES));
        assert_eq!(body.capacity(), LARGE_BUFFER_BYTES);
        assert_eq!(Buffer::counts(), (1, 1), "the small one went back");
        assert!(body.len() == BUFFER_BYTES && body.iter().all(|byte| *byte == b'a'));
        body.resize(LARGE_BUFFER_BYTES, b'b');
        assert!(body.grow(1));
        assert!(body.capacity() > LARGE_BUFFER_BYTES && body.ends_with(b"b"));
        let capacity = body.capacity();
        drop(body);
        // What is there already is used, even where little is asked for.
        let mut next = Buffer::take();
        next.resize(BUFFER_BYTES, b'c');
        assert!(next.grow(1));
        assert_eq!((next.capacity(), next.len()), (capacity, BUFFER_BYTES));
        assert!(next.iter().all(|byte| *byte == b'c'));
        // Where nothing is there, no more is taken than is asked for.
        let mut poor = Buffer::take();
        poor.resize(BUFFER_BYTES, b'd');
        assert!(poor.grow(100));
        assert!(poor.capacity() < LARGE_BUFFER_BYTES, "{} bytes", poor.capacity());
        drop(poor);
        assert_eq!(Buffer::counts(), (1, 0), "of no size that is kept");
    }

    /// A slow client holds what its answer is read with: that is of a stated size.
    #[test]
    fn what_grew_for_a_prompt_reads_no_answer() {
        let mut prompt = Buffer::take();
        assert!(prompt.grow(LARGE_BUFFER_BYTES));
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
            assert!(body.grow(LARGE_BUFFER_BYTES));
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

    /// Runs with a budget of so many small buffers; gives what is held of it at the end.
    fn with_budget(small: usize, test: impl FnOnce(&Budget)) -> u64 {
        let budget = Arc::new(Budget::new((small * BUFFER_BYTES) as u64));
        Buffer::count_against(&budget);
        test(&budget);
        Buffer::sweep();
        budget.held()
    }

    /// Catches: a buffer that grows beyond the budget, or that loses its bytes when it may not;
    /// one that counts for less than it holds; bytes that are never given back, by a panic either.
    #[test]
    fn what_is_on_loan_counts_until_it_is_given_back() {
        let left = with_budget(100, |budget| {
            let small: Vec<_> = (0..32).map(|_| Buffer::take()).collect();
            assert_eq!(budget.held(), (32 * BUFFER_BYTES) as u64);
            let mut body = Buffer::take();
            body.resize(BUFFER_BYTES, b'a');
            assert!(body.grow(LARGE_BUFFER_BYTES));
            body.resize(LARGE_BUFFER_BYTES, b'b');
            assert!(body.grow(20 * BUFFER_BYTES), "32 + 16 + 20 of 100");
            assert_eq!(body.capacity(), 36 * BUFFER_BYTES, "no more than was asked for");
            body.resize(36 * BUFFER_BYTES, b'c');
            Buffer::sweep();
            assert_eq!(budget.held(), (68 * BUFFER_BYTES) as u64);
            assert!(!body.grow(33 * BUFFER_BYTES));
            assert_eq!((body.len(), body.capacity()), (36 * BUFFER_BYTES, 36 * BUFFER_BYTES));
            assert!(!Buffer::is_budget_spent());
            assert!(body.grow(32 * BUFFER_BYTES) && Buffer::is_budget_spent());
            let more: Vec<_> = (0..64).map(|_| Buffer::take()).collect();
            assert!(budget.held() > budget.max(), "small ones are had all the same");
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _held = (body, more);
                panic!("as a test");
            }));
            assert!(panicked.is_err());
            Buffer::sweep();
            assert_eq!(budget.held(), (32 * BUFFER_BYTES) as u64);
            drop(small);
        });
        assert_eq!(left, 0);
    }

    /// Catches: a large buffer that lies idle, lost when the budget does not have it.
    #[test]
    fn an_idle_buffer_beyond_the_budget_stays_idle() {
        let mut body = Buffer::take();
        assert!(body.grow(LARGE_BUFFER_BYTES));
        drop(body);
        let left = with_budget(8, |_| {
            let mut body = Buffer::take();
            body.resize(BUFFER_BYTES, b'a');
            assert!(!body.grow(1));
            assert_eq!(POOL.with_borrow(|pool| pool.large.len()), 1);
        });
        assert_eq!(left, 0);
    }

    #[test]
    fn what_is_appended_grows_by_doubling_up_to_the_most() {
        let most = 5 * LARGE_BUFFER_BYTES;
        let left = with_budget(most / BUFFER_BYTES, |_| {
            let (mut body, mut capacities) = (Buffer::take(), Vec::new());
            for _ in 0..most / BUFFER_BYTES {
                assert!(body.append(&[b'x'; BUFFER_BYTES], most));
                capacities.push(body.capacity() / LARGE_BUFFER_BYTES);
            }
            capacities.dedup();
            assert_eq!((capacities, body.len()), (vec![0, 1, 2, 4, 5], most));
            Buffer::sweep();
            assert!(!body.append(b"x", most));
            assert_eq!(body.len(), most);
        });
        assert_eq!(left, 0);
    }
}
