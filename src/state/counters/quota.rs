//! Tokens of a period. One word holds the period's number and the tokens that were used in it, so
//! that a new period begins by one exchange. Beside it, each process has a word of what its
//! requests in flight have reserved, which ends with the process.

use super::slots::COLUMNS;
use super::word::Word;

/// A period of a key: which kind, and its number. No two kinds share a value, and within one kind
/// a later period has a greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QuotaWindow(u16);

const NUMBER_BITS: u32 = 14;

impl QuotaWindow {
    /// For those with whom it is agreed on.
    pub fn number_of_kind(self) -> u16 {
        self.0
    }

    /// `kind` is 0 to 3; the number begins anew after 16 383.
    pub const fn new(kind: u16, number: u16) -> QuotaWindow {
        // Never 0: that is a key that was never met.
        QuotaWindow(kind << NUMBER_BITS | if number == 0 { 1 } else { number & 0x3fff })
    }

    fn kind(self) -> u16 {
        self.0 >> NUMBER_BITS
    }

    fn number(self) -> u16 {
        self.0 & 0x3fff
    }
}

const USED_BITS: u32 = 48;
/// More tokens are not counted.
pub const USED_MAX: u64 = (1 << USED_BITS) - 1;

fn pack(window: QuotaWindow, used: u64) -> u64 {
    u64::from(window.0) << USED_BITS | used.min(USED_MAX)
}

/// What the word means now: the period that counts, and what was used in it.
fn read(word: u64, now: QuotaWindow, first: u64) -> (QuotaWindow, u64) {
    let (window, used) = (QuotaWindow((word >> USED_BITS) as u16), word & USED_MAX);
    if window.0 == 0 {
        return (now, first);
    }
    if window.kind() != now.kind() || window < now {
        // A new period; or the key has another kind of them now.
        return (now, 0);
    }
    // A clock that was put back opens no period again. Where it had been wrong by more than one
    // period, nobody has to wait until it is there once more: what was used stays.
    match window.number() - now.number() > 1 {
        true => (now, used),
        false => (window, used),
    }
}

/// The words of one key.
#[derive(Clone, Copy)]
pub struct Quota<'a, W> {
    /// Period and used tokens.
    pub used: &'a W,
    /// Of them, those that were used here; others may have used the rest, where a quota is counted
    /// on a server.
    pub own: &'a W,
    /// What is reserved, by process.
    pub reserved: &'a [W],
    /// Which of them is ours.
    pub column: usize,
}

/// The moment, and what its provider says of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaTerms {
    /// The running period.
    pub window: QuotaWindow,
    /// Tokens of a period.
    pub total: u64,
    /// Tokens that were used when the key was first met.
    pub first: u64,
}

impl QuotaTerms {
    /// Both, as one counter can hold them: it lets as much through as the one that has less left.
    /// `None`: their periods are not the same.
    pub fn strictest(self, other: QuotaTerms) -> Option<QuotaTerms> {
        let left = |terms: QuotaTerms| terms.total.saturating_sub(terms.first);
        let total = self.total.min(other.total);
        let first = total.saturating_sub(left(self).min(left(other)));
        (self.window == other.window).then_some(QuotaTerms { total, first, ..self })
    }
}

const AMOUNT_BITS: u32 = 48;
const AMOUNT_MAX: u64 = (1 << AMOUNT_BITS) - 1;

/// A reservation counts its changes above its amount: who exchanges it knows that nothing was
/// settled since it looked.
fn changed(word: u64, amount: u64) -> u64 {
    ((word >> AMOUNT_BITS).wrapping_add(1) << AMOUNT_BITS) | amount.min(AMOUNT_MAX)
}

fn amount(word: u64) -> u64 {
    word & AMOUNT_MAX
}

impl<W: Word> Quota<'_, W> {
    /// Tokens used in the running period.
    pub fn used(&self, terms: QuotaTerms) -> u64 {
        read(self.used.value(), terms.window, terms.first).1
    }

    /// What the requests in flight of all processes have reserved.
    pub fn reserved(&self) -> u64 {
        self.reserved.iter().take(COLUMNS).map(|word| amount(word.value())).sum()
    }

    /// Used and reserved, with this word of ours. In this order: whoever settles debits first and
    /// then frees, so nothing is missed in between, though it may count twice.
    fn taken(&self, terms: QuotaTerms, ours: u64) -> u64 {
        let reserved = self.of_others().saturating_add(amount(ours));
        reserved.saturating_add(self.used(terms))
    }

    fn of_others(&self) -> u64 {
        let others = self.reserved.iter().enumerate().filter(|(at, _)| *at != self.column);
        others.map(|(_, word)| amount(word.value())).sum()
    }

    /// Reserves tokens, if so many are left. False: they are not, and nothing was reserved. What is
    /// greater than a whole quota needs all of it.
    pub fn reserve(&self, terms: QuotaTerms, tokens: u64) -> bool {
        let Some(ours) = self.reserved.get(self.column) else { return false };
        // At least one: with none left, nobody comes in.
        let tokens = tokens.clamp(1, terms.total.max(1));
        loop {
            let old = ours.value();
            if self.taken(terms, old).saturating_add(tokens) > terms.total {
                return false;
            }
            if ours.exchange(old, changed(old, amount(old) + tokens)).is_err() {
                continue;
            }
            // Another process may have reserved at the same time. Each looks again after it did, so
            // one of both sees both.
            if self.taken(terms, ours.value()) <= terms.total {
                return true;
            }
            self.release(tokens);
            return false;
        }
    }

    /// Reserves more than was asked for, whether or not it is left: it is used already.
    pub fn extend(&self, tokens: u64) {
        if let Some(ours) = self.reserved.get(self.column) {
            ours.change(|old| Some(changed(old, amount(old).saturating_add(tokens))));
        }
    }

    /// What was reserved is not needed any more.
    pub fn release(&self, tokens: u64) {
        if let Some(ours) = self.reserved.get(self.column) {
            ours.change(|old| Some(changed(old, amount(old).saturating_sub(tokens))));
        }
    }

    /// So many tokens were used; `less` were told before and were not.
    pub fn debit(&self, terms: QuotaTerms, more: u64, less: u64) {
        self.own.change(|old| {
            let (window, used) = read(old, terms.window, 0);
            Some(pack(window, used.saturating_add(more).saturating_sub(less)))
        });
        self.used.change(|old| {
            let (window, used) = read(old, terms.window, terms.first);
            Some(pack(window, used.saturating_add(more).saturating_sub(less)))
        });
    }

    /// A key that is met for the first time has what its provider says from now on.
    pub fn meet(&self, terms: QuotaTerms) {
        self.used.change(|old| (old == 0).then(|| pack(terms.window, terms.first)));
    }

    /// Tokens of the running period that were used here.
    pub fn used_here(&self, terms: QuotaTerms) -> u64 {
        read(self.own.value(), terms.window, 0).1
    }

    /// All have used so many in the running period, as the server says that was told of `told` from
    /// here. What was used here since comes on top. If tokens are debited in this very moment they
    /// may count twice until the server is asked again.
    pub fn mirror(&self, terms: QuotaTerms, all: u64, told: u64) {
        let used = all.saturating_add(self.used_here(terms)).saturating_sub(told);
        self.used.change(|old| {
            // Several providers may know a key, and its quota be counted by another kind of period.
            let is_same_kind = QuotaWindow((old >> USED_BITS) as u16).kind() == terms.window.kind();
            let (window, _) = read(old, terms.window, terms.first);
            (is_same_kind && window == terms.window).then(|| pack(window, used))
        });
    }

    /// Sets the used tokens of the running period: an operator says so.
    pub fn set(&self, terms: QuotaTerms, used: u64) {
        self.used.set(pack(terms.window, used));
    }
}

/// A process is gone: what its requests had reserved is free.
pub fn clear(word: &impl Word) {
    word.change(|old| (amount(old) > 0).then(|| changed(old, 0)));
}
