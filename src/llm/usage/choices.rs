//! Which choices of an answer have ended: when all have, all of its text was said.

/// A bit for each choice, by its index.
pub type Bits = u32;

/// The index that stands for itself and all higher ones.
pub const INDEX_MAX: u8 = Bits::BITS as u8 - 1;

/// The choices of an event, or of all events so far. One with an index of [`INDEX_MAX`] or more is
/// never taken for ended: of so many it cannot be told which were, so the end mark has to tell.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Choices {
    seen: Bits,
    ended: Bits,
}

impl Choices {
    /// A choice was told of; and that it has ended, or not.
    pub fn see(&mut self, index: u8, has_ended: bool) {
        let bit = 1 << index.min(INDEX_MAX);
        self.seen |= bit;
        if has_ended {
            self.ended |= bit;
        }
    }

    /// Later events told of these. True when one of them has ended by that.
    pub fn add(&mut self, later: Choices) -> bool {
        let before = self.ended;
        self.seen |= later.seen;
        self.ended |= later.ended;
        self.ended != before
    }

    /// There is none.
    pub fn is_empty(self) -> bool {
        self.seen == 0
    }

    /// There is one at least, and all that were told of have ended.
    pub fn all_ended(self) -> bool {
        let is_known = self.seen & (1 << INDEX_MAX) == 0;
        self.seen != 0 && self.seen == self.ended && is_known
    }

    /// The index of the only one.
    pub fn only(self) -> Option<u8> {
        self.seen.is_power_of_two().then(|| self.seen.trailing_zeros() as u8)
    }

    /// The indices of those that have not ended; the first one's where none was told of.
    pub fn open(self) -> impl Iterator<Item = u8> {
        let seen = if self.is_empty() { 1 } else { self.seen };
        let open = seen & !self.ended;
        (0..=INDEX_MAX).filter(move |index| open & (1 << index) != 0)
    }

    /// The lowest index of those that ended.
    pub fn first_ended(self) -> Option<u8> {
        (self.ended != 0).then(|| self.ended.trailing_zeros() as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: one choice that ends all, and many choices of which nobody knows and that count as
    /// ended.
    #[test]
    fn all_have_ended_when_each_has() {
        let mut all = Choices::default();
        assert!(all.is_empty() && !all.all_ended());
        all.see(0, false);
        all.see(1, true);
        assert!(!all.all_ended() && all.only().is_none());
        all.see(0, true);
        all.see(0, false);
        assert!(all.all_ended());
        let mut one = Choices::default();
        one.see(INDEX_MAX - 1, true);
        assert_eq!((one.only(), one.all_ended()), (Some(INDEX_MAX - 1), true));
        assert!(all.add(one) && !all.add(one) && all.all_ended());
        assert_eq!((Choices::default().open().next(), all.open().next()), (Some(0), None));
        let mut some = Choices::default();
        some.see(1, true);
        some.see(0, false);
        some.see(4, false);
        assert_eq!(some.open().collect::<Vec<_>>(), [0, 4]);
        all.see(200, true);
        assert!(!all.all_ended() && all.first_ended() == Some(0));
    }
}
