//! What a request has taken from limits and quotas. It gives back what is to be given back exactly
//! once: when it is settled, or when it is dropped, whichever comes first.

mod borrowed;

use super::rules::{Buckets, LimitKind, Scope};
use crate::state::counters::bucket::{give_back, Bucket, Drawn, Wait};
use crate::state::counters::quota::QuotaTerms;
use crate::state::counters::shared::Counters;
use crate::state::counters::table::EntryPlace;
use crate::state::loans::{Counted, LoanBook, LoanItem};
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

/// Takings that a worker keeps when they are not in use.
const SPARE_MAX: usize = 256;

thread_local! {
    /// Not in use: each limited request needs one, and none should allocate it.
    #[allow(clippy::vec_box, reason = "what is kept is the box")]
    static SPARE: RefCell<Vec<Box<Held>>> = const { RefCell::new(Vec::new()) };
}

/// What a request holds; nothing, until it has taken something.
#[derive(Default)]
pub struct Takings(Option<Box<Held>>);

/// Boxed: a stream has little room.
#[derive(Default)]
struct Held {
    counters: Option<Arc<Counters>>,
    shares: Vec<Share>,
    quota: Option<QuotaShare>,
    estimate: Estimate,
    /// Where it has borrowed what several gateways count together.
    book: Option<Arc<LoanBook>>,
    /// What it has to ask for there.
    wanted: Vec<LoanItem>,
}

/// What a request may cost, before anybody has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Tokens of its prompt.
    pub prompt: u64,
    /// These, and those that its model may write, if it says how many.
    pub tokens: u64,
}

/// What it holds of its key's quota.
#[derive(Debug)]
struct QuotaShare {
    place: EntryPlace,
    terms: QuotaTerms,
    /// What its prompt is taken to be.
    prompt: u64,
    /// Reserved still, and debited so far.
    reserved: Cell<u64>,
    debited: Cell<u64>,
    /// It gets no more than there is.
    is_hard: bool,
}

/// What it holds of one scope.
#[derive(Debug, Clone)]
struct Share {
    scope: Scope,
    whose: Counted,
    buckets: Buckets,
    taken: [Option<Drawn>; 3],
    has_slot: Cell<bool>,
    /// What it has borrowed, of the same buckets, and whether it has a slot from there.
    borrowed: [u64; 3],
    borrows_slot: Cell<bool>,
}

/// Why a request may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// Too many requests, or tokens, in a time.
    Rate(Scope, LimitKind, Wait),
    /// Too many requests at one time.
    Concurrent(Scope),
}

/// How a limit stands, for the fields of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Units that its bucket holds.
    pub size: u64,
    /// Ticks in which an empty one is full.
    pub whole: u64,
    /// Units that are left.
    pub left: u64,
    /// Ticks until it is full.
    pub missing: u64,
}

impl Takings {
    /// Of a request that is about to take something.
    pub fn begin(&mut self, counters: &Arc<Counters>) {
        let held =
            self.0.get_or_insert_with(|| SPARE.with_borrow_mut(Vec::pop).unwrap_or_default());
        held.counters.get_or_insert_with(|| Arc::clone(counters));
    }

    /// The request is held to the limits of a further scope.
    pub fn add(&mut self, scope: Scope, whose: Counted, buckets: Buckets) {
        if let Some(held) = &mut self.0 {
            held.shares.push(Share {
                scope,
                whose,
                buckets,
                taken: [None; 3],
                has_slot: Cell::new(false),
                borrowed: [0; 3],
                borrows_slot: Cell::new(false),
            });
        }
    }

    /// What it may cost is known.
    pub fn expect(&mut self, estimate: Estimate) {
        if let Some(held) = &mut self.0 {
            held.estimate = estimate;
        }
    }

    /// What it may cost. No quota is debited with an estimate of more than there ever is.
    pub fn estimate(&self) -> Estimate {
        let Some(Held { estimate, quota, .. }) = self.0.as_deref() else {
            return Estimate::default();
        };
        let most = quota.as_ref().map_or(u64::MAX, |share| share.terms.total);
        Estimate { prompt: estimate.prompt.min(most), tokens: estimate.tokens.min(most) }
    }

    /// What its quota was debited with so far; `None`: it has none.
    pub fn debited(&self) -> Option<u64> {
        Some(self.0.as_deref()?.quota.as_ref()?.debited.get())
    }

    /// Takes a request from all scopes that it was not taken from, and a slot. All or nothing: what
    /// one refuses, the others get back, and those of before too.
    ///
    /// # Errors
    /// The limit that needs the longest wait.
    pub fn take_request(&mut self, now: Instant) -> Result<(), Limited> {
        self.take(now, &[(LimitKind::PerSecond, 1), (LimitKind::PerMinute, 1)], true)
    }

    /// Takes so many tokens from all scopes.
    ///
    /// # Errors
    /// The limit that needs the longest wait; then nothing is held any more.
    pub fn take_tokens(&mut self, now: Instant, tokens: u64) -> Result<(), Limited> {
        self.take(now, &[(LimitKind::Tokens, tokens)], false)
    }

    fn take(
        &mut self,
        now: Instant,
        wanted: &[(LimitKind, u64)],
        with_slot: bool,
    ) -> Result<(), Limited> {
        let Some(Held { counters: Some(counters), shares, .. }) = self.0.as_deref_mut() else {
            return Ok(());
        };
        let now = counters.at(now);
        // Looked at first: nothing is taken in vain when a limit is reached for good.
        let looked = look(counters, shares, (now, wanted), with_slot);
        let done = looked.and_then(|()| {
            let mut shares = shares.iter_mut();
            shares.try_for_each(|share| share.take(counters, (now, wanted), with_slot))
        });
        if done.is_err() {
            self.undo();
        }
        done
    }

    /// Gives everything back, as if the request had never been here. How the limits stand is known
    /// still.
    pub fn undo(&mut self) {
        self.undo_loans();
        let Some(Held { counters: Some(counters), shares, .. }) = self.0.as_deref_mut() else {
            return;
        };
        for share in shares {
            for (which, taken) in share.taken.iter_mut().enumerate() {
                let taken = taken.take().zip(counters.bucket(share.whose.place, which));
                taken.into_iter().for_each(|(taken, word)| give_back(word, taken));
            }
            share.leave(counters);
        }
        self.free_quota();
    }

    /// What is reserved of a quota, and was not used, is free.
    fn free_quota(&mut self) {
        let Some(Held { counters: Some(counters), quota, .. }) = self.0.as_deref_mut() else {
            return;
        };
        let Some(share) = quota.take() else { return };
        if let Some(quota) = counters.quota(share.place) {
            quota.release(share.reserved.get());
        }
    }

    /// Reserves tokens of the quota in a place, of which so many are for the prompt. False: there
    /// are not so many left, and nothing is held any more. `is_hard`: nor may it take more later
    /// than there is then.
    pub fn reserve_quota(
        &mut self,
        place: EntryPlace,
        terms: QuotaTerms,
        (prompt, tokens): (u64, u64),
        is_hard: bool,
    ) -> bool {
        let Some(Held { counters: Some(counters), quota, .. }) = self.0.as_deref_mut() else {
            return false;
        };
        let tokens = tokens.clamp(1, terms.total);
        // An estimate of more than there ever is says nothing of when a stream has had enough.
        let prompt = if prompt >= terms.total { 0 } else { prompt };
        let is_in = counters.quota(place).is_some_and(|quota| {
            quota.meet(terms);
            quota.reserve(terms, tokens)
        });
        match is_in {
            true => {
                let (reserved, debited) = (Cell::new(tokens), Cell::new(0));
                *quota = Some(QuotaShare { place, terms, prompt, reserved, debited, is_hard });
            }
            false => self.undo(),
        }
        is_in
    }

    /// The request has used so many tokens of its quota by now, as its record says.
    pub fn debit(&self, tokens: u64) {
        let Some(Held { counters: Some(counters), quota: Some(share), .. }) = self.0.as_deref()
        else {
            return;
        };
        let Some(quota) = counters.quota(share.place) else { return };
        let before = share.debited.replace(tokens);
        let (more, less) = (tokens.saturating_sub(before), before.saturating_sub(tokens));
        if more > 0 || less > 0 {
            quota.debit(share.terms, more, less);
        }
        let free = more.min(share.reserved.get());
        quota.release(free);
        share.reserved.set(share.reserved.get() - free);
    }

    /// Its model has said so much: what was not reserved for that is taken now. False: there is not
    /// so much left, and it may not take more than there is. What was said is taken all the same.
    pub fn see(&self, events: u64) -> bool {
        let Some(Held { counters: Some(counters), quota: Some(share), .. }) = self.0.as_deref()
        else {
            return true;
        };
        let seen = share.prompt.saturating_add(events);
        let held = share.reserved.get().saturating_add(share.debited.get());
        let more = seen.saturating_sub(held);
        let Some(quota) = counters.quota(share.place).filter(|_| more > 0) else { return true };
        share.reserved.set(share.reserved.get() + more);
        let fits = share.is_hard && more <= share.terms.total && quota.reserve(share.terms, more);
        if !fits {
            quota.extend(more);
        }
        fits || !share.is_hard
    }

    /// The last bytes of the answer go out: its place is free. Whoever has them may ask again.
    pub fn leave(&self) {
        if let Some(Held { counters: Some(counters), shares, book, .. }) = self.0.as_deref() {
            let book = book.as_ref();
            book.into_iter().for_each(|book| shares.iter().for_each(|it| it.leave_loan(book)));
            shares.iter().for_each(|share| share.leave(counters));
        }
    }

    /// The request is over, and has used so many tokens.
    pub fn settle(&mut self, now: Instant, tokens: u64) {
        self.free_quota();
        let Some(mut held) = self.0.take() else { return };
        let book = held.book.take();
        held.wanted.clear();
        held.estimate = Estimate::default();
        if let Some(counters) = held.counters.take() {
            let now = counters.at(now);
            for share in &mut held.shares {
                if let Some(book) = &book {
                    share.settle_loans(book, tokens);
                }
                share.leave(&counters);
                let which = LimitKind::Tokens as usize;
                let [.., taken] = share.taken;
                // The bucket may have been full meanwhile, and the entry given to another id.
                let is_its = counters.table().is_of(share.whose.place, share.whose.id);
                let word = counters.bucket(share.whose.place, which).filter(|_| is_its);
                if let ([.., Some(bucket)], Some(taken), Some(word)) =
                    (share.buckets.of, taken, word)
                {
                    bucket.settle(word, now, (taken, tokens));
                }
            }
        }
        held.shares.clear();
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_MAX {
                spare.push(held);
            }
        });
    }

    /// True when something is held, or was refused.
    pub fn is_any(&self) -> bool {
        self.0.is_some()
    }

    /// How the tightest limits stand: that of requests, and that of tokens.
    pub fn levels(&self, now: Instant) -> [Option<Level>; 2] {
        let Some(Held { counters: Some(counters), shares, .. }) = self.0.as_deref() else {
            return [None; 2];
        };
        let now = counters.at(now);
        let tightest = |kinds: &[LimitKind]| {
            let levels = shares.iter().flat_map(|share| {
                kinds.iter().filter_map(move |kind| {
                    let bucket = share.buckets.of.get(*kind as usize).copied().flatten()?;
                    let word = counters.bucket(share.whose.place, *kind as usize)?;
                    Some(level(bucket, bucket.missing(word, now)))
                })
            });
            levels.min_by_key(|level| (level.left, u64::MAX - level.missing))
        };
        [tightest(&[LimitKind::PerSecond, LimitKind::PerMinute]), tightest(&[LimitKind::Tokens])]
    }
}

fn level(bucket: Bucket, missing: u64) -> Level {
    Level { size: bucket.size, whole: bucket.whole, left: bucket.left_of(missing), missing }
}

/// Whether all of it can be had; else the limit that needs the longest wait.
fn look(
    counters: &Counters,
    shares: &[Share],
    (now, wanted): (u64, &[(LimitKind, u64)]),
    with_slot: bool,
) -> Result<(), Limited> {
    let mut longest: Option<(Wait, Limited)> = None;
    for share in shares {
        for (kind, units) in wanted.iter().filter(|(kind, _)| share.lacks(*kind)) {
            let Some((bucket, word)) = share.bucket(counters, *kind) else { continue };
            if let Err(wait) = bucket.look(word, now, *units) {
                let why = Limited::Rate(share.scope, *kind, wait);
                longest = longest.max_by_wait((wait, why));
            }
        }
        let is_full = |limit: u32| counters.in_flight(share.whose.place) >= u64::from(limit);
        if with_slot && !share.has_slot.get() && share.buckets.concurrent.is_some_and(is_full) {
            let why = Limited::Concurrent(share.scope);
            longest = longest.max_by_wait((Wait(0), why));
        }
    }
    longest.map_or(Ok(()), |(_, why)| Err(why))
}

/// Keeps the one with the longer wait.
trait MaxByWait {
    fn max_by_wait(self, other: (Wait, Limited)) -> Self;
}

impl MaxByWait for Option<(Wait, Limited)> {
    fn max_by_wait(self, other: (Wait, Limited)) -> Self {
        match self {
            Some(kept) if kept.0 >= other.0 => Some(kept),
            _ => Some(other),
        }
    }
}

impl Share {
    fn lacks(&self, kind: LimitKind) -> bool {
        self.taken.get(kind as usize).is_some_and(Option::is_none)
    }

    fn bucket<'a>(
        &self,
        counters: &'a Counters,
        kind: LimitKind,
    ) -> Option<(Bucket, &'a std::sync::atomic::AtomicU64)> {
        let bucket = self.buckets.of.get(kind as usize).copied().flatten()?;
        Some((bucket, counters.bucket(self.whose.place, kind as usize)?))
    }

    fn take(
        &mut self,
        counters: &Counters,
        (now, wanted): (u64, &[(LimitKind, u64)]),
        with_slot: bool,
    ) -> Result<(), Limited> {
        if let (true, false, Some(limit)) =
            (with_slot, self.has_slot.get(), self.buckets.concurrent)
        {
            if !counters.enter(self.whose.place, limit) {
                return Err(Limited::Concurrent(self.scope));
            }
            self.has_slot.set(true);
        }
        for (kind, units) in wanted {
            if !self.lacks(*kind) {
                continue;
            }
            let Some((bucket, word)) = self.bucket(counters, *kind) else { continue };
            let taken = bucket.take(word, now, *units);
            let taken = taken.map_err(|wait| Limited::Rate(self.scope, *kind, wait))?;
            if let Some(place) = self.taken.get_mut(*kind as usize) {
                *place = Some(taken);
            }
        }
        Ok(())
    }

    fn leave(&self, counters: &Counters) {
        if self.has_slot.take() {
            counters.leave(self.whose.place);
        }
    }
}

impl Drop for Takings {
    /// Of a request that nobody settled: no engine had it, or a panic ended it, perhaps behind its
    /// record.
    fn drop(&mut self) {
        if self.0.is_some() {
            self.settle(Instant::now(), self.debited().unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests;
