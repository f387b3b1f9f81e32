//! How many bytes the buffers of all workers may hold together.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A count of bytes, and its limit. Shared by all workers.
#[derive(Debug)]
pub struct Budget {
    held: AtomicU64,
    max: u64,
}

impl Budget {
    /// None held yet, of at most `max`.
    pub fn new(max: u64) -> Budget {
        Budget { held: AtomicU64::new(0), max }
    }

    /// Bytes that are held.
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// Bytes that may be held.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// True when nothing is left.
    pub fn is_spent(&self) -> bool {
        self.held() >= self.max
    }

    /// Takes so many bytes; false, and none, when that many are not left.
    pub fn take(&self, bytes: u64) -> bool {
        let fits = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= self.max);
        self.held.fetch_update(Relaxed, Relaxed, fits).is_ok()
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
            let take = || (0..500).filter(|_| budget.take(3)).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!((taken, budget.held(), budget.is_spent()), (333, 999, false));
        budget.take_anyway(16);
        assert!(budget.is_spent() && !budget.take(0));
        budget.give_back(1015);
        assert_eq!(budget.held(), 0);
        assert!(!budget.take(u64::MAX) && budget.take(1000));
    }
}
