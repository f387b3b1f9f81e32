//! How many retries there may be. Engines that fail under load fail more when each request comes
//! twice; so most of what they get is always somebody's first try. (Twitter Finagle's retry budget;
//! Envoy and tower have the same.)

use crate::base::limits::{RETRY_BUDGET_MAX, RETRY_RESERVE_PER_SECOND, RETRY_SHARE_PERCENT};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Hundredths of a retry.
const ONE: u64 = 100;

/// Of one worker. Retries that no engine can have worked on do not count.
pub struct RetryBudget {
    left: Cell<u64>,
    /// Hundredths a second that come in by themselves: this worker's part of the reserve.
    reserve: u64,
    /// Until when they have come in.
    until: Cell<Instant>,
}

impl RetryBudget {
    /// A full reserve of one of so many workers.
    pub fn new(workers: usize, now: Instant) -> RetryBudget {
        let reserve = (RETRY_RESERVE_PER_SECOND * ONE).div_ceil(workers.max(1) as u64);
        RetryBudget { left: Cell::new(reserve.max(ONE)), reserve, until: Cell::new(now) }
    }

    /// A request came in.
    pub fn deposit(&self) {
        self.add(RETRY_SHARE_PERCENT);
    }

    fn add(&self, hundredths: u64) {
        let left = self.left.get().saturating_add(hundredths);
        self.left.set(left.min(RETRY_BUDGET_MAX * ONE));
    }

    /// True when there is one left.
    pub fn has_one(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.until.get()).as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        let hundredths = since.saturating_mul(self.reserve) / 1000;
        if hundredths > 0 {
            // What is not a whole hundredth yet comes in later.
            let credited = Duration::from_millis(hundredths.saturating_mul(1000) / self.reserve);
            self.until.set(self.until.get().checked_add(credited).unwrap_or(now).min(now));
            // More than a second's worth is not saved up.
            self.add(hundredths.min(self.reserve.max(ONE)));
        }
        self.left.get() >= ONE
    }

    /// Uses one up.
    pub fn take(&self) {
        self.left.set(self.left.get().saturating_sub(ONE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(budget: &RetryBudget, now: Instant) -> u64 {
        let mut taken = 0;
        while budget.has_one(now) {
            budget.take();
            taken += 1;
        }
        taken
    }

    /// Catches: a fleet that is down, and gets several times its load.
    #[test]
    fn retries_are_a_share_of_the_requests_and_a_few() {
        let start = Instant::now();
        let (budget, at) = (RetryBudget::new(1, start), |s| start + Duration::from_secs(s));
        assert_eq!(taken(&budget, start), RETRY_RESERVE_PER_SECOND);
        (0..100).for_each(|_| budget.deposit());
        assert_eq!(taken(&budget, start), RETRY_SHARE_PERCENT);
        assert_eq!(taken(&budget, at(1)), RETRY_RESERVE_PER_SECOND);
        assert_eq!(taken(&budget, at(200)), RETRY_RESERVE_PER_SECOND, "it is not saved up");
        assert_eq!(taken(&budget, at(2)), 0, "a clock that is late");
        (0..1_000_000).for_each(|_| budget.deposit());
        assert_eq!(taken(&budget, at(200)), RETRY_BUDGET_MAX);
    }

    /// Catches: a reserve for each worker, and a worker that never has one whole retry.
    #[test]
    fn the_reserve_is_that_of_all_workers() {
        let start = Instant::now();
        let budgets = [(); 64].map(|()| RetryBudget::new(64, start));
        let take = |now| budgets.iter().map(|budget| taken(budget, now)).sum::<u64>();
        take(start);
        let in_a_minute: u64 = (1..=60).map(|n| take(start + Duration::from_secs(n))).sum();
        let due = 60 * RETRY_RESERVE_PER_SECOND;
        assert!((due * 9 / 10..due * 2).contains(&in_a_minute), "{in_a_minute} of {due}");
    }
}
