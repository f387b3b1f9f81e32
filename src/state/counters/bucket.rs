//! A token bucket in one word (GCRA, the generic cell rate algorithm): the word is the moment at
//! which the bucket will be full again. To take from it moves that moment on; what would move it
//! further than a whole bucket away is refused.

use super::word::Word;
use std::time::Duration;

/// Moments and times are told in sixteenths of a nanosecond: fine enough for sixteen million
/// requests per second within 0.1 %, and a word holds 36 years of them.
pub const TICKS_PER_NS: u64 = 16;
/// A debt is paid back after so long at most. It also bounds what a word can do that is wrong.
const DEBT_MAX: u64 = 3600 * 1_000_000_000 * TICKS_PER_NS;

/// A time in ticks.
pub const fn ticks(time: Duration) -> u64 {
    let ns =
        time.as_secs().saturating_mul(1_000_000_000).saturating_add(time.subsec_nanos() as u64);
    ns.saturating_mul(TICKS_PER_NS)
}

/// The limit that a bucket keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Units that it holds when it is full.
    pub size: u64,
    /// Ticks after which one unit is there again.
    each: u64,
    /// Ticks after which an empty one is full again.
    pub whole: u64,
}

/// Why nothing could be taken: ticks until that much is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wait(pub u64);

impl Wait {
    /// As `Retry-After` tells it: whole seconds, rounded up, one at least.
    pub fn seconds(self) -> u32 {
        let seconds = self.0.div_ceil(1_000_000_000 * TICKS_PER_NS).max(1);
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }
}

impl Bucket {
    /// One into which so many units flow in a period, and that holds so many.
    pub fn new(units: u64, period: Duration, size: u64) -> Bucket {
        // Rounded up: never more than the limit.
        let each = ticks(period).div_ceil(units.max(1)).max(1);
        let size = size.clamp(1, u64::MAX / each / 4);
        Bucket { size, each, whole: each * size }
    }

    /// What it takes of so many units: no more than it holds, or nobody could ever have them.
    fn cost(&self, units: u64) -> u64 {
        self.each * units.min(self.size)
    }

    /// When it is full again, if this is its word: neither in the past nor further away than a debt
    /// may be.
    fn full_at(&self, word: u64, now: u64) -> u64 {
        word.clamp(now, now.saturating_add(self.whole).saturating_add(DEBT_MAX))
    }

    /// Ticks after which one unit is there again.
    pub fn each(&self) -> u64 {
        self.each
    }

    /// Units that were drawn from it.
    pub fn units(&self, drawn: Drawn) -> u64 {
        drawn.0 / self.each
    }

    /// Whether so many units are there, and when not, how long until they are.
    ///
    /// # Errors
    /// They are not.
    pub fn look(&self, word: &impl Word, now: u64, units: u64) -> Result<(), Wait> {
        self.after(word.value(), now, self.cost(units)).map(drop)
    }

    fn after(&self, word: u64, now: u64, cost: u64) -> Result<u64, Wait> {
        let after = self.full_at(word, now).saturating_add(cost);
        match after.saturating_sub(now).checked_sub(self.whole) {
            None | Some(0) => Ok(after),
            Some(missing) => Err(Wait(missing)),
        }
    }

    /// Takes so many units. Gives what [`give_back`] is to get.
    ///
    /// # Errors
    /// They are not there, and nothing was taken.
    pub fn take(&self, word: &impl Word, now: u64, units: u64) -> Result<Drawn, Wait> {
        let cost = self.cost(units);
        match word.change(|old| self.after(old, now, cost).ok()) {
            Some(_) => Ok(Drawn(cost)),
            None => Err(self.after(word.value(), now, cost).err().unwrap_or(Wait(1))),
        }
    }

    /// What was taken for an estimate turned out to be so many units, which may be more than are
    /// there: then the bucket is in debt.
    pub fn settle(&self, word: &impl Word, now: u64, (taken, units): (Drawn, u64)) {
        let real = self.each.saturating_mul(units);
        match real.checked_sub(taken.0) {
            Some(more) => {
                word.change(|old| Some(self.full_at(old, now).saturating_add(more)));
            }
            None => give_back(word, Drawn(taken.0 - real)),
        }
    }

    /// Units that are there.
    pub fn left(&self, word: &impl Word, now: u64) -> u64 {
        self.left_of(self.missing(word, now))
    }

    /// Units that are there when it is full after so many ticks.
    pub fn left_of(&self, missing: u64) -> u64 {
        self.whole.saturating_sub(missing) / self.each
    }

    /// Ticks until it is full.
    pub fn missing(&self, word: &impl Word, now: u64) -> u64 {
        self.full_at(word.value(), now) - now
    }
}

/// What was taken from a bucket, in ticks of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drawn(u64);

/// What was taken is there again.
pub fn give_back(word: &impl Word, taken: Drawn) {
    word.change(|old| Some(old.saturating_sub(taken.0)));
}
