//! Pooled read buffers of one worker. A stream holds one only while bytes move through it.
//!
//! Small ones serve almost every read. Larger ones serve larger bodies, where the system calls and
//! page faults of small ones would cost more than the bytes: they are few, and those that nobody
//! needed for some seconds go back to the system. A buffer that grows becomes at most four times
//! as large as what is in it: who sends little cannot make us hold much.
//!
//! All that is on loan counts against the budget of the process, whatever it is lent for, and is
//! given back when the buffer is dropped, whatever the reason. A buffer that wants to grow beyond
//! the budget does not; a small one is always had, so that what runs can go on, and so that health
//! and readiness answer.

use super::budget::Budget;
use crate::base::limits::{
    BUFFERS_IDLE_MAX, BUFFERS_IDLE_MIN, BUFFER_BYTES, LARGE_BUFFERS_READING_MAX,
    LARGE_BUFFER_BYTES, LARGE_IDLE_BYTES_MAX, MEDIUM_BUFFER_BYTES,
};
use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut, RangeInclusive};
use std::sync::Arc;

/// One of so many small buffers is given up by a sweep.
const SMALL_PER_SWEEP: usize = 16;
/// Sweeps after which large buffers that were idle all the time are given up.
const SWEEPS_TO_SHRINK: u32 = 50;
/// A buffer grows at most to so many times what is in it.
const GROWTH_MAX: usize = 4;
/// Bytes are scarce until so many sweeps after the last sign of it.
const SCARCE_SWEEPS: u32 = 50;
/// The budget is told of small buffers in steps of so many bytes, and at each sweep: workers would
/// fight for its cache line else.
const BUDGET_STEP: usize = 16 * BUFFER_BYTES;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool::new()) };
}

struct Pool {
    small: Vec<Vec<u8>>,
    /// Of [`MEDIUM_BUFFER_BYTES`] or more. The last one given back is lent first: its memory is
    /// the warmest.
    larger: Vec<Vec<u8>>,
    larger_bytes: usize,
    on_loan: usize,
    /// Bytes of those on loan.
    bytes_on_loan: usize,
    /// As many of them as the budget was told of.
    bytes_told: usize,
    budget: Option<Arc<Budget>>,
    large_reading: usize,
    large_denied: u64,
    /// Denials of the budget as of the last sweep.
    denied_seen: u64,
    /// Sweeps for which bytes still count as scarce.
    scarce_for: u32,
    /// Fewest idle larger buffers since the pool last shrank.
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
            pool.denied_seen = budget.denied();
            pool.scarce_for = 0;
            pool.tell(1);
        });
    }

    /// True when nothing is left of the budget: nothing new should begin that needs buffers.
    pub fn is_budget_spent() -> bool {
        POOL.with_borrow(|pool| pool.budget.as_ref().is_some_and(|budget| budget.is_spent()))
    }

    /// True while bytes are scarce: four fifths of the budget are held, or somebody did not get
    /// what it wanted, now or in the last five seconds.
    pub fn are_scarce() -> bool {
        POOL.with_borrow(|pool| pool.scarce_for > 0)
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
            let pooled = pool.take_idle(LARGE_BUFFER_BYTES..=LARGE_BUFFER_BYTES);
            let bytes = pooled.unwrap_or_else(|| Vec::with_capacity(LARGE_BUFFER_BYTES));
            pool.lend(bytes, true)
        })
    }

    /// Makes room for more where so many bytes are still missing: at most for as many as are there,
    /// so that what a peer announces reserves nothing. False like [`Buffer::grow`].
    #[must_use = "there may be no room"]
    pub fn double(&mut self, missing: usize) -> bool {
        self.grow(missing.min(self.bytes.len()))
    }

    /// Makes room for some `room` bytes behind those that are there: in an idle buffer of the pool,
    /// or else by asking the system. False, with all as it was, when the budget does not have them.
    #[must_use = "there may be no room"]
    fn grow(&mut self, room: usize) -> bool {
        POOL.with_borrow_mut(|pool| {
            let needed = self.bytes.len().saturating_add(room.max(1));
            let size = size_for(needed);
            let most = self.bytes.len().saturating_mul(GROWTH_MAX).max(size);
            let pooled = pool.take_idle(size..=most);
            let wanted = pooled.as_ref().map_or(size, Vec::capacity);
            if !pool.count_more(&mut self.counted, wanted) {
                pooled.into_iter().for_each(|bytes| pool.put(bytes));
                return false;
            }
            let mut bytes = match pooled {
                Some(bytes) => bytes,
                None if size <= LARGE_BUFFER_BYTES => Vec::with_capacity(size),
                None => {
                    self.bytes.reserve_exact(room.max(1));
                    return true;
                }
            };
            bytes.extend_from_slice(&self.bytes);
            pool.put(std::mem::replace(&mut self.bytes, bytes));
            true
        })
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
        POOL.with_borrow(|pool| (pool.on_loan, pool.small.len() + pool.larger.len()))
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
                && pool.scarce_for == 0
                && pool.larger.is_empty()
                && pool.bytes_told == pool.bytes_on_loan
        })
    }
}

/// Bytes that somebody holds beside the buffers of the pool, and that count against the budget like
/// those: what must go on, and is had in any case.
#[derive(Default)]
pub(super) struct Aside(Cell<u32>);

impl Aside {
    /// It holds so many now.
    pub(super) fn set(&self, bytes: usize) {
        let now = u32::try_from(bytes).unwrap_or(u32::MAX);
        let before = self.0.replace(now);
        if now != before {
            POOL.with_borrow_mut(|pool| {
                pool.bytes_on_loan = pool.bytes_on_loan.saturating_sub(before as usize);
                pool.bytes_on_loan += now as usize;
                pool.tell(BUDGET_STEP);
            });
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Pool {
    const fn new() -> Pool {
        Pool {
            small: Vec::new(),
            larger: Vec::new(),
            larger_bytes: 0,
            on_loan: 0,
            bytes_on_loan: 0,
            bytes_told: 0,
            budget: None,
            large_reading: 0,
            large_denied: 0,
            denied_seen: 0,
            scarce_for: 0,
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
        let is_large = wanted as usize > MEDIUM_BUFFER_BYTES;
        if self.budget.as_ref().is_some_and(|budget| !budget.take(more as u64, is_large)) {
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

    /// A larger one of so many bytes that lies idle.
    fn take_idle(&mut self, bytes: RangeInclusive<usize>) -> Option<Vec<u8>> {
        let at = self.larger.iter().rposition(|idle| bytes.contains(&idle.capacity()))?;
        let taken = self.larger.remove(at);
        self.larger_bytes -= taken.capacity();
        self.never_needed = self.never_needed.min(self.larger.len());
        Some(taken)
    }

    /// Keeps a buffer that comes back, or lets go of it.
    fn put(&mut self, mut bytes: Vec<u8>) {
        bytes.clear();
        let capacity = bytes.capacity();
        if capacity == BUFFER_BYTES && self.small.len() < BUFFERS_IDLE_MAX {
            self.small.push(bytes);
        } else if capacity >= MEDIUM_BUFFER_BYTES
            && self.larger_bytes + capacity <= LARGE_IDLE_BYTES_MAX
        {
            self.larger_bytes += capacity;
            self.larger.push(bytes);
        }
    }

    fn sweep(&mut self) {
        self.tell(1);
        self.look_at_budget();
        // Those that nobody has needed for longest.
        let unneeded = self.small.len().saturating_sub(BUFFERS_IDLE_MIN);
        drop(self.small.drain(..unneeded.div_ceil(SMALL_PER_SWEEP)));
        self.sweeps += 1;
        if self.sweeps < SWEEPS_TO_SHRINK {
            return;
        }
        self.sweeps = 0;
        for unneeded in self.larger.drain(..self.never_needed) {
            self.larger_bytes -= unneeded.capacity();
        }
        self.never_needed = self.larger.len();
    }

    fn look_at_budget(&mut self) {
        self.scarce_for = self.scarce_for.saturating_sub(1);
        let Some(budget) = &self.budget else { return };
        let denied = budget.denied();
        if denied != self.denied_seen || budget.is_nearly_spent() {
            self.scarce_for = SCARCE_SWEEPS;
        }
        self.denied_seen = denied;
    }
}

/// The size of a buffer for so many bytes: one that the pool keeps, where there is such a one.
fn size_for(needed: usize) -> usize {
    let kept = [MEDIUM_BUFFER_BYTES, LARGE_BUFFER_BYTES];
    kept.into_iter().find(|size| needed <= *size).unwrap_or(needed)
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
mod tests;
