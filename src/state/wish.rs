//! What is known of an engine's answer to the wish for usage. It is known for a while only: engines
//! are restarted, with another version or other options, and nobody tells us.

use crate::base::limits::USAGE_WISH_KNOWN;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What an engine did when it was asked for the usage of a stream by us, and not by the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageWish {
    /// It was never asked, or has not answered in a way that tells, or that was long ago.
    Unknown = 0,
    /// It took the wish.
    Taken = 1,
    /// It refused a request for it, and took the same without.
    Refused = 2,
    /// It tells as much without being asked.
    Needless = 3,
}

const ALL: [UsageWish; 4] =
    [UsageWish::Unknown, UsageWish::Taken, UsageWish::Refused, UsageWish::Needless];
/// Bits of the cell that say what is known; the others say since when.
const KIND_BITS: u32 = 2;

/// The same with the moment at which it was learnt, shared by all workers.
#[derive(Debug)]
pub struct KnownWish {
    born: Instant,
    cell: AtomicU64,
}

impl KnownWish {
    /// Of an engine that was never asked.
    pub fn new(born: Instant) -> KnownWish {
        KnownWish { born, cell: AtomicU64::new(0) }
    }

    /// What is known now.
    pub fn at(&self, now: Instant) -> UsageWish {
        self.read(self.cell.load(Ordering::Relaxed), now)
    }

    /// Learns it. True when that is news. What the engine refused, or tells by itself, it is not
    /// asked for, so that nothing which comes late can say otherwise; that it takes the wish is
    /// held until something else shows.
    pub fn learn(&self, wish: UsageWish, now: Instant) -> bool {
        // Read first: the line is shared, and nearly always there is nothing to be learnt.
        let cell = self.cell.load(Ordering::Relaxed);
        let is_news = match self.read(cell, now) {
            UsageWish::Unknown => true,
            UsageWish::Taken => wish != UsageWish::Taken,
            UsageWish::Refused | UsageWish::Needless => false,
        };
        let next = self.millis(now) << KIND_BITS | wish as u64;
        let (set, read) = (Ordering::Relaxed, Ordering::Relaxed);
        is_news && self.cell.compare_exchange(cell, next, set, read).is_ok()
    }

    /// The engine may be another now.
    pub fn forget(&self) {
        if self.cell.load(Ordering::Relaxed) != 0 {
            self.cell.store(0, Ordering::Relaxed);
        }
    }

    fn read(&self, cell: u64, now: Instant) -> UsageWish {
        let age = self.millis(now).saturating_sub(cell >> KIND_BITS);
        let kind = (cell & ((1 << KIND_BITS) - 1)) as usize;
        let is_known = u128::from(age) < USAGE_WISH_KNOWN.as_millis();
        ALL.get(kind).copied().filter(|_| is_known).unwrap_or(UsageWish::Unknown)
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.born).as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use UsageWish::{Needless, Refused, Taken, Unknown};

    /// Catches: an engine that is asked no more because one of two requests came late, and one
    /// that fails every stream because it took the wish once.
    #[test]
    fn what_was_learnt_gives_way_to_what_shows_more() {
        for (first, second, is_news) in [
            (Taken, Taken, false),
            (Taken, Refused, true),
            (Taken, Needless, true),
            (Refused, Taken, false),
            (Refused, Needless, false),
            (Needless, Taken, false),
            (Needless, Refused, false),
        ] {
            let now = Instant::now();
            let known = KnownWish::new(now);
            assert_eq!(known.at(now), Unknown);
            assert!(known.learn(first, now));
            assert_eq!(known.learn(second, now), is_news, "{first:?} {second:?}");
            assert_eq!(known.at(now), if is_news { second } else { first });
        }
    }

    /// Catches: what is known for the life of the process.
    #[test]
    fn what_was_learnt_is_forgotten_in_time_and_on_demand() {
        let born = Instant::now();
        let later = born + Duration::from_secs(100);
        for wish in [Taken, Refused, Needless] {
            let known = KnownWish::new(born);
            assert!(known.learn(wish, later));
            let last = later + USAGE_WISH_KNOWN - Duration::from_millis(1);
            assert_eq!((known.at(later), known.at(last)), (wish, wish));
            assert_eq!(known.at(later + USAGE_WISH_KNOWN), Unknown);
            assert!(known.learn(Refused, later + USAGE_WISH_KNOWN));
            known.forget();
            assert_eq!(known.at(later + USAGE_WISH_KNOWN), Unknown);
        }
    }
}
