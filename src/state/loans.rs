//! What several gateways count together is counted on a server. A gateway borrows from it before it
//! uses: each request asks for what it needs, and for a key that is busy some more is lent for a
//! moment, so that the next requests need not ask.
//!
//! What is at hand stands in words beside the table of the counters, by the same places. Workers
//! take from them, and give back by a queue; one thread of the control plane fills and empties
//! them.

mod word;

use super::ask::Ask;
use super::counters::bucket::{Bucket, Wait};
use super::counters::table::{EntryPlace, TablePart};
use super::meters::Times;
use crate::config::plan::Redis;
use crate::rt::sys::mapping::Mapping;
use crossbeam_channel::{bounded, Receiver, Sender};
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Words of a place: one for each bucket, and one for requests at one time.
const PLACE_WORDS: usize = 4;
/// The last of them.
const SLOTS: usize = 3;

/// Who is counted, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Counted {
    /// The id that it has in the table, and on the server.
    pub id: u128,
    /// Whether somebody knows the id; strangers are not counted with those who are known.
    pub is_stranger: bool,
    /// Its place in the table of this process.
    pub place: EntryPlace,
}

impl Counted {
    /// Of an id in its place.
    pub fn new(id: u128, part: TablePart, place: EntryPlace) -> Counted {
        Counted { id, is_stranger: part == TablePart::Strangers, place }
    }

    /// What a word says to be of this id.
    fn tag(&self) -> u32 {
        let mixed = (self.id >> 64) as u64 ^ self.id as u64;
        ((mixed >> 32) as u32 ^ mixed as u32).max(1)
    }
}

/// What is borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoanOf {
    /// Units of the bucket that has this number in its place.
    Units(usize, Bucket),
    /// A place among so many requests at one time.
    Slot(u32),
}

impl LoanOf {
    /// The word that it has in its place.
    pub fn number(&self) -> usize {
        match self {
            LoanOf::Units(which, _) => *which,
            LoanOf::Slot(_) => SLOTS,
        }
    }
}

/// One thing that a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoanItem {
    /// Who is counted.
    pub whose: Counted,
    /// Of what.
    pub of: LoanOf,
    /// So much; of slots one.
    pub units: u64,
}

/// What comes of asking.
pub enum LoanAnswer {
    /// All of it is lent.
    Granted(Loaned),
    /// The item of this number cannot be had for so long; nothing was taken.
    Refused(usize, Wait),
    /// The server cannot be asked.
    Failed,
}

/// What was lent to one request. Whoever drops it gives it back: an asker may have left.
pub struct Loaned {
    book: Arc<LoanBook>,
    items: Vec<LoanItem>,
}

impl Loaned {
    /// Of what the server has granted.
    pub fn new(book: &Arc<LoanBook>, items: Vec<LoanItem>) -> Loaned {
        Loaned { book: Arc::clone(book), items }
    }

    /// It is the caller's from now on, who gives it back.
    pub fn accept(mut self) -> Vec<LoanItem> {
        std::mem::take(&mut self.items)
    }
}

impl Drop for Loaned {
    fn drop(&mut self) {
        self.items.iter().for_each(|item| self.book.give_back(item));
    }
}

/// An amount that the server is to be told: below zero it is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoanChange {
    /// Who is counted.
    pub whose: Counted,
    /// The bucket, and its number.
    pub bucket: (usize, Bucket),
    /// So many more than were asked for.
    pub units: i64,
}

/// What became of the questions, and of what was given back.
#[derive(Default)]
pub struct LoanNumbers {
    results: [AtomicU64; 3],
    /// Only the thread that asks and the metrics page take it.
    times: Mutex<Times>,
    /// Units that were lent for others to come, and not used.
    pub returned: AtomicU64,
    /// Amounts that found no room on their way to the server.
    pub lost: AtomicU64,
}

impl LoanNumbers {
    /// Words for the results, in the order of [`LoanNumbers::results`].
    pub const RESULTS: [&'static str; 3] = ["granted", "refused", "failed"];

    /// A question was answered so.
    pub fn note(&self, answer: &LoanAnswer) {
        let [granted, refused, failed] = &self.results;
        let count = match answer {
            LoanAnswer::Granted(_) => granted,
            LoanAnswer::Refused(..) => refused,
            LoanAnswer::Failed => failed,
        };
        count.fetch_add(1, Relaxed);
    }

    /// A call of the server took so long.
    pub fn note_time(&self, time: Duration) {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).record(time);
    }

    /// How many there were of each.
    pub fn results(&self) -> [u64; 3] {
        self.results.each_ref().map(|count| count.load(Relaxed))
    }

    /// How long the calls took.
    pub fn times(&self) -> Times {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What is lent to this process, and the way back.
pub struct LoanBook {
    words: Mapping,
    changes: Sender<LoanChange>,
    /// The server answers.
    is_up: AtomicBool,
    /// There when the process ends: where it is told that all was given back.
    ends: OnceLock<Sender<()>>,
    /// For the metrics page.
    pub numbers: LoanNumbers,
}

impl LoanBook {
    /// Beside a table of so many entries; `changes` is the way to the thread that tells the server.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn new(entries: usize, changes: Sender<LoanChange>) -> io::Result<LoanBook> {
        let words = Mapping::anonymous(entries.saturating_mul(PLACE_WORDS).max(1))?;
        let (is_up, numbers) = (AtomicBool::new(true), LoanNumbers::default());
        Ok(LoanBook { words, changes, is_up, ends: OnceLock::new(), numbers })
    }

    /// Whether the server answered when it was last called.
    pub fn is_up(&self) -> bool {
        self.is_up.load(Relaxed)
    }

    /// It does, or does not.
    pub fn set_up(&self, is_up: bool) {
        self.is_up.store(is_up, Relaxed);
    }

    /// The process ends, and nobody borrows any more. What comes is told when all was given back.
    pub fn end(&self) -> Option<Receiver<()>> {
        let (done, is_done) = bounded(1);
        self.ends.set(done).ok().map(|()| is_done)
    }

    /// There when the process ends.
    pub fn ends(&self) -> Option<&Sender<()>> {
        self.ends.get()
    }

    fn word(&self, whose: &Counted, which: usize) -> Option<&AtomicU64> {
        let first = whose.place.number().checked_mul(PLACE_WORDS)?;
        self.words.words().get(first.checked_add(which)?)
    }

    /// Takes what an item needs of what is at hand. False: it has to be asked for.
    pub fn take(&self, item: &LoanItem) -> bool {
        let Some(word) = self.word(&item.whose, item.of.number()) else { return false };
        match item.of {
            LoanOf::Units(..) => word::draw(word, item.whose.tag(), item.units),
            LoanOf::Slot(_) => word::enter(word, item.whose.tag()),
        }
    }

    /// Gives back what was taken, as if it had never been used.
    pub fn give_back(&self, item: &LoanItem) {
        match item.of {
            LoanOf::Units(which, bucket) => {
                let units = i64::try_from(item.units).unwrap_or(i64::MAX).saturating_neg();
                self.change(LoanChange { whose: item.whose, bucket: (which, bucket), units });
            }
            LoanOf::Slot(_) => self.leave(&item.whose),
        }
    }

    /// A request of those at one time has ended.
    pub fn leave(&self, whose: &Counted) {
        let word = self.word(whose, SLOTS);
        word.into_iter().for_each(|word| word::leave(word, whose.tag()));
    }

    /// The server is to be told of this.
    pub fn change(&self, change: LoanChange) {
        if change.units != 0 && self.changes.try_send(change).is_err() {
            self.numbers.lost.fetch_add(1, Relaxed);
        }
    }

    /// So many units more are at hand. For the thread that fills.
    pub fn fill(&self, whose: &Counted, which: usize, units: u64) {
        let word = self.word(whose, which);
        word.into_iter().for_each(|word| word::fill(word, whose.tag(), units));
    }

    /// Takes all units that are at hand. For the same thread.
    pub fn empty(&self, whose: &Counted, which: usize) -> u64 {
        self.word(whose, which).map_or(0, |word| word::empty(word, whose.tag()))
    }

    /// One request more may run, and does: it has asked. For the same thread.
    pub fn lend_slot(&self, whose: &Counted) {
        let word = self.word(whose, SLOTS);
        word.into_iter().for_each(|word| word::lend(word, whose.tag()));
    }

    /// Keeps no more slots than are in use, and gives how many these are. For the same thread.
    pub fn shrink_slots(&self, whose: &Counted) -> u32 {
        self.word(whose, SLOTS).map_or(0, |word| word::shrink(word, whose.tag()))
    }

    /// Slots that are lent.
    pub fn slots(&self, whose: &Counted) -> u32 {
        self.word(whose, SLOTS).map_or(0, |word| word::lent(word, whose.tag()))
    }

    /// Counts units that were given back.
    pub fn note_returned(&self, units: u64) {
        self.numbers.returned.fetch_add(units, Relaxed);
    }
}

/// The limits that several gateways hold together, as the workers of one see them.
#[derive(Clone)]
pub struct SharedLimits {
    /// What is lent.
    pub book: Arc<LoanBook>,
    /// Where more is asked for.
    pub ask: Ask<Vec<LoanItem>, LoanAnswer>,
    /// What an answer may take.
    pub patience: Duration,
    /// The server, and for how long it lends: another one is another service.
    pub terms: (Redis, Duration),
}
