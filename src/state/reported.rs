//! What an engine says of its own load: read by the control plane, used by the workers to see the
//! requests that others than we have sent there.
//!
//! It may be old, wrong or a lie. What is old is not known. What is too low changes nothing: our
//! own requests are always counted. What is too high is believed only in part ([`OTHERS_SHARE_MAX`]
//! and [`OTHERS_FREE_MAX`]): a backend that says it is overwhelmed still gets, in the mean, a
//! quarter of what the others of its weight have, beyond their first eight.

use super::repute::Tenths;
use crate::base::limits::{ENGINE_LOAD_KNOWN, OTHERS_FREE_MAX, OTHERS_SHARE_MAX};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Steps in which the share of a cache is kept.
const CACHE_STEPS: f64 = 10_000.0;

/// What an engine said last.
#[derive(Default)]
pub struct Reported {
    /// When it was heard, in [`Tenths`], and below that the requests of others; 0: never.
    others: AtomicU64,
    running: AtomicU32,
    waiting: AtomicU32,
    /// One more than the steps of [`CACHE_STEPS`]; 0: not told.
    cache: AtomicU32,
    good: AtomicU64,
    failed: AtomicU64,
}

/// What is shown of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shown {
    /// Requests that it works on.
    pub running: u32,
    /// Requests that wait in it.
    pub waiting: u32,
    /// The share of its cache that is in use, from 0 to 1.
    pub cache: Option<f64>,
}

impl Reported {
    /// Takes in what it says; `ours`: so many of its requests may be ours.
    pub fn hear(&self, said: Shown, ours: u32, now: Tenths) {
        let others = said.running.saturating_add(said.waiting).saturating_sub(ours);
        self.running.store(said.running, Ordering::Relaxed);
        self.waiting.store(said.waiting, Ordering::Relaxed);
        let cache = said.cache.map_or(0, |share| (share * CACHE_STEPS) as u32 + 1);
        self.cache.store(cache, Ordering::Relaxed);
        self.others.store(u64::from(now.0.max(1)) << 32 | u64::from(others), Ordering::Relaxed);
        self.good.fetch_add(1, Ordering::Relaxed);
    }

    /// It said nothing, or nothing that can be understood.
    pub fn hear_nothing(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests of others that count beside `ours`. The time is asked for only where there are any.
    pub fn others_beside(&self, ours: u32, now: impl FnOnce() -> Tenths) -> u32 {
        let word = self.others.load(Ordering::Relaxed);
        let others = word as u32;
        if others == 0 || !is_known(word, now()) {
            return 0;
        }
        others.min(ours.saturating_mul(OTHERS_SHARE_MAX).saturating_add(OTHERS_FREE_MAX))
    }

    /// What it said, if that is not too long ago.
    pub fn shown(&self, now: Tenths) -> Option<Shown> {
        is_known(self.others.load(Ordering::Relaxed), now).then(|| Shown {
            running: self.running.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            cache: match self.cache.load(Ordering::Relaxed) {
                0 => None,
                steps => Some(f64::from(steps - 1) / CACHE_STEPS),
            },
        })
    }

    /// Times that it could be read, and that it could not.
    pub fn counts(&self) -> [u64; 2] {
        [&self.good, &self.failed].map(|count| count.load(Ordering::Relaxed))
    }
}

fn is_known(word: u64, now: Tenths) -> bool {
    let heard = Tenths((word >> 32) as u32);
    heard.0 > 0 && now < heard.plus(ENGINE_LOAD_KNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(running: u32, waiting: u32, ours: u32) -> Reported {
        let reported = Reported::default();
        reported.hear(Shown { running, waiting, cache: Some(0.25) }, ours, Tenths(100));
        reported
    }

    fn others(reported: &Reported, ours: u32) -> u32 {
        reported.others_beside(ours, || Tenths(101))
    }

    /// Catches: our own requests counted twice; a figure that takes some of them away.
    #[test]
    fn only_what_is_not_ours_is_added() {
        assert_eq!(others(&Reported::default(), 5), 0);
        assert_eq!(others(&heard(4, 1, 5), 5), 0);
        assert_eq!(others(&heard(0, 0, 9), 9), 0, "too low a figure changes nothing");
        assert_eq!(others(&heard(6, 4, 5), 5), 5);
        assert_eq!(others(&heard(6, 4, 5), 0), 5, "ours have left, those of others have not");
    }

    /// Catches: an engine that nobody asks any more because of what it once said, or says.
    #[test]
    fn what_is_too_high_is_believed_in_part() {
        let liar = heard(u32::MAX, u32::MAX, 3);
        for ours in [0, 1, 7, 1000] {
            assert_eq!(others(&liar, ours), 3 * ours + 8);
        }
        assert_eq!(others(&liar, u32::MAX), u32::MAX - 3);
    }

    #[test]
    fn what_is_old_is_not_known() {
        let reported = heard(20, 0, 0);
        let at = |time: u32| reported.others_beside(9, || Tenths(time));
        assert_eq!((at(100), at(149), at(150), at(99)), (20, 20, 0, 20));
        assert_eq!(reported.shown(Tenths(150)), None);
        let shown = reported.shown(Tenths(149));
        assert_eq!(shown, Some(Shown { running: 20, waiting: 0, cache: Some(0.25) }));
        reported.hear_nothing();
        assert_eq!(reported.counts(), [1, 1]);
    }
}
