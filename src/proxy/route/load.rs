//! What backends have to do, and who has the least.

use super::dice::Dice;
use super::strategy::{Candidates, Fit};

/// A backend that fits, with what it has to do.
#[derive(Debug, Clone, Copy)]
pub struct Burden {
    /// Its place in the tier.
    pub place: u32,
    /// Requests of all workers there.
    pub inflight: u64,
    /// Its weight, in hundredths.
    pub weight: u64,
    /// Bytes that it had to read lately, where that matters.
    pub fresh: u64,
}

impl Burden {
    /// One that fits.
    pub fn of(place: u32, fit: Fit, field: &impl Candidates) -> Burden {
        Burden { place, inflight: field.inflight(place).into(), weight: fit.weight, fresh: 0 }
    }

    /// The same, and of two that have equally much to do it had less to read.
    fn is_before(self, other: Burden) -> bool {
        let is_same = !other.is_below(self);
        self.is_below(other) || is_same && self.fresh * other.weight < other.fresh * self.weight
    }

    /// Whether it has less to do, for its weight, than another one.
    pub fn is_below(self, other: Burden) -> bool {
        self.inflight * other.weight < other.inflight * self.weight
    }
}

/// The one with the fewest requests for its weight; of several, any of them by weight. Were it the
/// first of them, the workers would all choose the same one at the same moment.
#[derive(Debug, Default)]
pub struct Least {
    /// And the weights of all that have as few.
    found: Option<(Burden, u64)>,
}

impl Least {
    /// Looks at one more.
    pub fn see(&mut self, one: Burden, dice: &mut Dice) {
        let tied = match self.found {
            Some((least, _)) if least.is_before(one) => return,
            Some((least, tied)) if !one.is_before(least) => tied + one.weight,
            _ => one.weight,
        };
        let least = self.found.map_or(one, |(least, _)| least);
        let is_drawn = dice.below(tied) < one.weight;
        self.found = Some((if is_drawn { one } else { least }, tied));
    }

    /// Who that is.
    pub fn found(&self) -> Option<Burden> {
        self.found.map(|(least, _)| least)
    }
}
