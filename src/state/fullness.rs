//! For how long a backend is left alone that said that it is full, beside others that are not.

use super::repute::Tenths;
use crate::base::limits::{SPARED_MAX, SPARED_UNASKED, SPARED_UNASKED_MAX};
use crate::base::uptime::uptime;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// What it said of that. Two workers that hear so at once may both write: it is about the same.
#[derive(Debug, Default)]
pub struct Fullness {
    /// It is left alone until then, in [`Tenths`]; 0: it never said so.
    until: AtomicU32,
    /// For how long, when it last said so without a time; in [`Tenths`].
    unasked: AtomicU32,
}

impl Fullness {
    /// It is to be left alone for so long.
    pub fn spare_for(&self, time: Duration) {
        self.until.store(Tenths::of(uptime()).plus(time.min(SPARED_MAX)).0, Relaxed);
    }

    /// It is full, and has not said for how long.
    pub fn spare(&self) {
        let elapsed = uptime();
        let (now, jitter) = (Tenths::of(elapsed), elapsed.subsec_nanos());
        let last = (self.until(), self.unasked.load(Relaxed));
        let Some(time) = spared_again(last, now, jitter) else { return };
        self.unasked.store(time, Relaxed);
        self.until.store(now.0.saturating_add(time), Relaxed);
    }

    /// True while that time lasts.
    pub fn is_spared(&self) -> bool {
        self.until() > 0 && Tenths::of(uptime()).0 < self.until()
    }

    /// When that time is over, in [`Tenths`]; 0: it never said so.
    pub fn until(&self) -> u32 {
        self.until.load(Relaxed)
    }
}

/// For how long one is spared now that says that it is full, and names no time: longer when it says
/// so right after it was spared. `last`: until when, and for how long. All in tenths of a second;
/// `None`: it is spared already. `jitter`, any number.
fn spared_again(last: (u32, u32), now: Tenths, jitter: u32) -> Option<u32> {
    let (until, time) = last;
    if now.0 < until {
        return None;
    }
    let [least, most] = [SPARED_UNASKED, SPARED_UNASKED_MAX].map(|time| Tenths::of(time).0);
    let is_again = until > 0 && now.0 - until <= most;
    let time = if is_again { (time + time / 2).clamp(least, most) } else { least };
    Some(time + jitter % (time / 5 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a backend that is spared for as long as a broken engine says.
    #[test]
    fn one_that_said_that_it_is_full_is_spared_for_a_while() {
        let fullness = Fullness::default();
        assert!(!fullness.is_spared());
        fullness.spare_for(Duration::MAX);
        assert!(fullness.is_spared());
        assert!(fullness.until() <= Tenths::of(uptime()).plus(SPARED_MAX).0);
        fullness.spare_for(Duration::ZERO);
        assert!(!fullness.is_spared());
        fullness.spare_for(Duration::from_secs(40));
        let until = fullness.until();
        fullness.spare();
        assert_eq!(fullness.until(), until, "what it said of itself holds");
    }

    /// Catches: a backend that says that it is full and names no time, and that goes on to get its
    /// full share, or is left alone for good; proxies that all come back in the same moment.
    #[test]
    fn one_that_is_full_for_an_unknown_time_is_spared_a_little_longer_each_time() {
        let (mut last, mut now) = ((0, 0), 100);
        for (jitter, time) in [(0, 10), (0, 15), (0, 22), (0, 30), (0, 30), (0, 30)] {
            assert_eq!(spared_again(last, Tenths(now), jitter), Some(time));
            last = (now + time, time);
            assert_eq!(spared_again(last, Tenths(now + time - 1), jitter), None, "it is spared");
            now += time;
        }
        assert_eq!(spared_again(last, Tenths(now + 30), 0), Some(30), "right afterwards");
        assert_eq!(spared_again(last, Tenths(now + 31), 0), Some(10), "it had room meanwhile");
        let times = (0..9).map(|jitter| spared_again((0, 0), Tenths(7), jitter).unwrap());
        assert_eq!(times.collect::<Vec<_>>(), [10, 11, 12, 10, 11, 12, 10, 11, 12]);
    }
}
