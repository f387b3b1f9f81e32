//! What a request has borrowed of what several gateways count together. It borrows the same as it
//! has taken here, and afterwards: one gateway alone never goes beyond a limit, whatever is lent.

use super::{Held, Limited, Share, Takings};
use crate::proxy::rules::LimitKind;
use crate::state::counters::bucket::Wait;
use crate::state::loans::{LoanBook, LoanChange, LoanItem, LoanOf, Loaned};
use std::sync::Arc;

const KINDS: [LimitKind; 3] = [LimitKind::PerSecond, LimitKind::PerMinute, LimitKind::Tokens];

impl Takings {
    /// Borrows what it has taken here and not yet there, as far as it is at hand. The rest is to be
    /// asked for.
    pub fn borrow(&mut self, book: &Arc<LoanBook>) {
        let Some(Held { shares, wanted, book: kept, .. }) = self.0.as_deref_mut() else { return };
        // A request that began under other terms stays with those.
        let book = kept.get_or_insert_with(|| Arc::clone(book));
        wanted.clear();
        for share in shares {
            for item in share.unborrowed() {
                match book.take(&item) {
                    true => share.note(&item),
                    false => wanted.push(item),
                }
            }
        }
    }

    /// Whether it has to ask.
    pub fn has_to_ask(&self) -> bool {
        self.0.as_ref().is_some_and(|held| !held.wanted.is_empty())
    }

    /// What it has to ask for; it is the caller's to ask.
    pub fn take_wanted(&mut self) -> Vec<LoanItem> {
        self.0.as_mut().map(|held| std::mem::take(&mut held.wanted)).unwrap_or_default()
    }

    /// It is lent.
    pub fn accept(&mut self, loaned: Loaned) {
        let Some(Held { shares, .. }) = self.0.as_deref_mut() else { return };
        for item in loaned.accept() {
            // Two scopes that found no place of their own are counted in the same one.
            let is_it = |share: &&mut Share| share.unborrowed().any(|other| other == item);
            let share = shares.iter_mut().find(is_it);
            share.into_iter().for_each(|share| share.note(&item));
        }
    }

    /// It is not lent, because of this item. Gives everything back, and says which limit it was.
    pub fn refuse(&mut self, item: Option<&LoanItem>, wait: Wait) -> Option<Limited> {
        self.undo();
        let item = item?;
        let Held { shares, .. } = self.0.as_deref()?;
        let scope = shares.iter().find(|share| share.whose == item.whose)?.scope;
        Some(match item.of {
            LoanOf::Units(which, _) => Limited::Rate(scope, *KINDS.get(which)?, wait),
            LoanOf::Slot(_) => Limited::Concurrent(scope),
        })
    }

    pub(super) fn undo_loans(&mut self) {
        let Some(Held { shares, wanted, book, .. }) = self.0.as_deref_mut() else { return };
        wanted.clear();
        let Some(book) = book else { return };
        for share in shares {
            for which in 0..KINDS.len() {
                let units = share.borrowed.get_mut(which).map_or(0, std::mem::take);
                share.change(book, which, (units, 0));
            }
            share.leave_loan(book);
        }
    }
}

impl Share {
    /// What it has taken here, and not borrowed.
    fn unborrowed(&self) -> impl Iterator<Item = LoanItem> + use<> {
        let &Share { whose, buckets, taken, borrowed, ref has_slot, ref borrows_slot, .. } = self;
        let needs_slot = has_slot.get() && !borrows_slot.get();
        let units = (0..KINDS.len()).filter_map(move |which| {
            let bucket = buckets.of.get(which).copied().flatten()?;
            let units = bucket.units(taken.get(which).copied().flatten()?);
            let is_new = borrowed.get(which) == Some(&0) && units > 0;
            is_new.then_some(LoanItem { whose, of: LoanOf::Units(which, bucket), units })
        });
        let slot = buckets.concurrent.filter(|_| needs_slot);
        units.chain(slot.map(|limit| LoanItem { whose, of: LoanOf::Slot(limit), units: 1 }))
    }

    fn note(&mut self, item: &LoanItem) {
        match item.of {
            LoanOf::Units(which, _) => {
                let place = self.borrowed.get_mut(which);
                place.into_iter().for_each(|borrowed| *borrowed = item.units);
            }
            LoanOf::Slot(_) => self.borrows_slot.set(true),
        }
    }

    /// Of so many units that were borrowed, so many were used.
    fn change(&self, book: &LoanBook, which: usize, (borrowed, used): (u64, u64)) {
        let Some(bucket) = self.buckets.of.get(which).copied().flatten() else { return };
        let signed = |units: u64| i64::try_from(units).unwrap_or(i64::MAX);
        if borrowed > 0 {
            let units = signed(used) - signed(borrowed);
            book.change(LoanChange { whose: self.whose, bucket: (which, bucket), units });
        }
    }

    /// The request is over: its slot is free, and of its tokens it has used so many.
    pub(super) fn settle_loans(&mut self, book: &LoanBook, tokens: u64) {
        self.leave_loan(book);
        let [.., borrowed] = self.borrowed;
        self.change(book, LimitKind::Tokens as usize, (borrowed, tokens));
    }

    /// Before its place here is free: the entry may be another one's after that.
    pub(super) fn leave_loan(&self, book: &LoanBook) {
        if self.borrows_slot.take() {
            book.leave(&self.whose);
        }
    }
}
