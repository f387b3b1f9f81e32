//! How many bytes the buffers of all workers may hold together.

use crate::base::limits::BUFFERED_SMALL_SHARE;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A count of bytes, and its limit. Shared by all workers.
#[derive(Debug)]
pub struct Budget {
    held: AtomicU64,
    /// Times that bytes were not to be had.
    denied: AtomicU64,
    max: AtomicU64,
}

impl Budget {
    /// None held yet, of at most `max`.
    pub fn new(max: u64) -> Budget {
        Budget { held: AtomicU64::new(0), denied: AtomicU64::new(0), max: AtomicU64::new(max) }
    }

    /// From now on at most so many may be held. What is held stays.
    pub fn set_max(&self, max: u64) {
        self.max.store(max, Relaxed);
    }

    /// Bytes that are held.
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// Bytes that may be held.
    pub fn max(&self) -> u64 {
        self.max.load(Relaxed)
    }

    /// True when nothing is left.
    pub fn is_spent(&self) -> bool {
        self.held() >= self.max()
    }

    /// Times that somebody wanted bytes and did not get them.
    pub fn denied(&self) -> u64 {
        self.denied.load(Relaxed)
    }

    /// True when four fifths or more are held.
    pub fn is_nearly_spent(&self) -> bool {
        self.held() >= self.max() / 5 * 4
    }

    /// What large buffers may not go beyond: the rest is for small ones, which most requests need.
    pub fn max_for_large(max: u64) -> u64 {
        max - max / BUFFERED_SMALL_SHARE
    }

    /// Takes so many bytes for a buffer, be it a large one or not; false, and none, when that many
    /// are not left.
    pub fn take(&self, bytes: u64, is_large: bool) -> bool {
        let max = if is_large { Budget::max_for_large(self.max()) } else { self.max() };
        let fits = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= max);
        let taken = self.held.fetch_update(Relaxed, Relaxed, fits).is_ok();
        self.denied.fetch_add(u64::from(!taken), Relaxed);
        taken
    }

    /// Takes so many bytes even where they are not left: what is small and must go on.
    pub fn take_anyway(&self, bytes: u64) {
        self.held.fetch_add(bytes, Relaxed);
    }

    /// Gives so many bytes back that were taken.
    pub fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: threads that take the last bytes twice.
    #[test]
    fn no_more_is_taken_than_is_there() {
        let budget = Budget::new(1000);
        let taken = std::thread::scope(|scope| {
            let take = || (0..500).filter(|_| budget.take(3, false)).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!((taken, budget.held(), budget.is_spent()), (333, 999, false));
        assert_eq!(budget.denied(), 2000 - 333);
        budget.take_anyway(16);
        assert!(budget.is_spent() && !budget.take(0, false));
        budget.give_back(1015);
        assert_eq!(budget.held(), 0);
        assert!(!budget.take(u64::MAX, false) && budget.take(1000, false));
        budget.set_max(1001);
        assert!(budget.take(1, false) && !budget.take(1, false));
        budget.set_max(1);
        assert!(budget.is_spent());
    }

    /// Catches: large bodies that take what small ones need; a budget without a limit that has one.
    #[test]
    fn an_eighth_is_not_for_large_ones() {
        let budget = Budget::new(800);
        assert!(budget.take(600, true) && !budget.is_nearly_spent());
        assert!(!budget.take(101, true) && budget.take(100, true) && budget.is_nearly_spent());
        assert!(!budget.take(1, true) && budget.take(100, false) && budget.is_spent());
        assert!(Budget::new(u64::MAX).take(1 << 60, true));
    }
}
