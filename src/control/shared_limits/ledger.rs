//! What the thread knows of what is lent: to whom more is lent than was asked for, what is to be
//! given back, and which slots the server has to be told of.

use crate::base::limits::{
    LOANED_SLOTS_TOLD_EVERY, LOANS_AHEAD_MAX, LOANS_RETURNED_MAX, LOANS_TOLD_MAX, REDIS_LEASE_MAX,
};
use crate::state::counters::bucket::{ticks, Bucket};
use crate::state::loans::{Counted, LoanBook, LoanChange, LoanItem, LoanOf};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A bucket of somebody.
type Line = (Counted, usize);

/// An amount for the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    pub whose: Counted,
    pub which: usize,
    pub bucket: Bucket,
    pub units: i64,
}

/// How much of a bucket was used lately.
#[derive(Debug)]
struct Use {
    bucket: Bucket,
    /// What is not used by then is given back.
    until: Instant,
    /// Since then: what was asked for, and lent besides.
    lent: u64,
    /// Used in the time before.
    last: u64,
}

/// Slots as the server knows them.
#[derive(Debug)]
struct Told {
    slots: u32,
    /// When; `None`: it is not known what has reached it.
    at: Option<Instant>,
}

/// See the head of the file.
#[derive(Debug)]
pub struct Ledger {
    lease: Duration,
    uses: HashMap<Line, Use>,
    owed: HashMap<Line, (Bucket, i64)>,
    slots: HashMap<Counted, Told>,
    has_more_slots: bool,
    /// What is on its way to the server, under this number, until it has answered.
    pub sending: Vec<Owed>,
    pub number: u64,
}

impl Ledger {
    pub fn new(lease: Duration) -> Ledger {
        let (uses, owed, slots) = (HashMap::new(), HashMap::new(), HashMap::new());
        Ledger {
            lease: lease.min(REDIS_LEASE_MAX),
            uses,
            owed,
            slots,
            has_more_slots: false,
            sending: Vec::new(),
            number: 1,
        }
    }

    /// Adds up what is owed. False: there is no room, and it is lost.
    pub fn owe(&mut self, change: &LoanChange) -> bool {
        let line = (change.whose, change.bucket.0);
        if self.owed.len() >= LOANS_RETURNED_MAX && !self.owed.contains_key(&line) {
            return false;
        }
        let (bucket, units) = self.owed.entry(line).or_insert((change.bucket.1, 0));
        // The limit may be another one by now.
        *bucket = change.bucket.1;
        *units = units.saturating_add(change.units);
        true
    }

    /// How many units more than an item needs are of use: as many as were used in the last time of
    /// a lease, if they are not one request's alone.
    pub fn more(&self, item: &LoanItem) -> u64 {
        let LoanOf::Units(which, bucket) = item.of else { return 0 };
        let last = self.uses.get(&(item.whose, which)).map_or(0, |it| it.last);
        let flow = ticks(self.lease) / bucket.each().max(1);
        if last > item.units {
            last.min(flow).min(u64::from(u32::MAX))
        } else {
            0
        }
    }

    /// An item was lent, and so much more.
    pub fn lent(&mut self, item: &LoanItem, more: u64, now: Instant) {
        let LoanOf::Units(which, bucket) = item.of else {
            let told = self.slots.entry(item.whose).or_insert(Told { slots: 0, at: Some(now) });
            told.slots = told.slots.saturating_add(1);
            return;
        };
        // Beyond: it asks for each request.
        if self.uses.len() >= LOANS_AHEAD_MAX && !self.uses.contains_key(&(item.whose, which)) {
            return;
        }
        let until = now + self.lease;
        let new = || Use { bucket, until, lent: 0, last: 0 };
        let line = self.uses.entry((item.whose, which)).or_insert_with(new);
        line.bucket = bucket;
        line.lent = line.lent.saturating_add(item.units).saturating_add(more);
    }

    /// Takes back what was lent for long enough and not used. Gives how many amounts were lost.
    pub fn sweep(&mut self, book: &LoanBook, now: Instant) -> u64 {
        let mut back = Vec::new();
        let until = now + self.lease;
        self.uses.retain(|(whose, which), line| {
            if line.until > now {
                return true;
            }
            let left = book.empty(whose, *which);
            book.note_returned(left);
            let units = i64::try_from(left).unwrap_or(i64::MAX).saturating_neg();
            back.push(LoanChange { whose: *whose, bucket: (*which, line.bucket), units });
            (line.last, line.lent, line.until) = (line.lent.saturating_sub(left), 0, until);
            line.last > 0
        });
        let back = back.iter().filter(|change| change.units != 0);
        let lost = back.filter(|change| !self.owe(change)).count();
        self.slots.keys().for_each(|whose| {
            book.shrink_slots(whose);
        });
        lost as u64
    }

    /// Slots that the server has to be told of, with those of `asked`: it adds to them.
    pub fn slots_to_tell(
        &mut self,
        book: &LoanBook,
        asked: impl Iterator<Item = Counted>,
        now: Instant,
    ) -> Vec<(Counted, u32)> {
        let mut all: Vec<(Counted, u32)> = Vec::new();
        for whose in asked {
            if !all.iter().any(|(other, _)| *other == whose) {
                all.push((whose, book.slots(&whose)));
            }
        }
        let asked = all.len();
        let mut due = Vec::new();
        for (whose, told) in &self.slots {
            let slots = book.slots(whose);
            let is_old = |at: Instant| now.saturating_duration_since(at) >= LOANED_SLOTS_TOLD_EVERY;
            let is_due = told.slots != slots || told.at.is_none_or(is_old);
            if is_due && !all.iter().take(asked).any(|(other, _)| other == whose) {
                due.push((told.at, (*whose, slots)));
            }
        }
        let most = LOANS_TOLD_MAX.saturating_sub(asked);
        self.has_more_slots = due.len() > most;
        if self.has_more_slots {
            // The others with the next call. First those that were told the longest ago: the server
            // takes who is not heard of for dead.
            due.sort_by_key(|(at, _)| *at);
        }
        all.extend(due.into_iter().take(most).map(|(_, slots)| slots));
        // Until it has answered, nobody knows what it knows.
        for (whose, slots) in &all {
            self.slots.insert(*whose, Told { slots: *slots, at: None });
        }
        all
    }

    /// Amounts to tell: those that it may not have heard, or others.
    pub fn amounts_to_tell(&mut self) -> &[Owed] {
        if self.sending.is_empty() {
            self.number += 1;
            let some: Vec<Line> = self.owed.keys().take(LOANS_TOLD_MAX).copied().collect();
            for line in some {
                let Some((bucket, units)) = self.owed.remove(&line) else { continue };
                if units != 0 {
                    let (whose, which) = line;
                    self.sending.push(Owed { whose, which, bucket, units });
                }
            }
        }
        &self.sending
    }

    /// The server has heard it all.
    pub fn heard(&mut self, told: &[(Counted, u32)], now: Instant) {
        self.sending.clear();
        for (whose, slots) in told {
            match slots {
                0 => drop(self.slots.remove(whose)),
                _ => {
                    self.slots.insert(*whose, Told { slots: *slots, at: Some(now) });
                }
            }
        }
    }

    /// Amounts or slots are left that did not fit into the last call.
    pub fn has_more(&self) -> bool {
        !self.owed.is_empty() || self.has_more_slots
    }

    /// Nothing is to be told, and nothing is lent that has to be looked after.
    pub fn is_quiet(&self) -> bool {
        self.sending.is_empty() && self.owed.is_empty() && self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests;
