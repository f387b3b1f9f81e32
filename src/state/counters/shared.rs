//! The table as all threads of a process use it: in its memory, with the process' own column, by
//! one clock.

use super::bucket::{ticks, TICKS_PER_NS};
use super::quota::{self, Quota};
use super::slots::{self, COLUMNS};
use super::table::{word, CounterTable, EntryFound, EntryPlace, TablePart, TableShape};
use super::word::Word;
use crate::base::clock::boot_ns;
use crate::rt::sys::mapping::Mapping;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

/// Words of the page in front of the entries.
pub const HEADER_WORDS: usize = 512;

/// Words of that page, by what they are for.
pub mod header {
    /// What the file begins with.
    pub const MAGIC: usize = 0;
    /// Grows when an older program could not read what a newer one writes.
    pub const VERSION: usize = 1;
    /// Entries for known ids, and for strangers.
    pub const SHAPE: [usize; 2] = [2, 3];
    /// See [`super::TableShape::seed`].
    pub const SEED: usize = 4;
    /// Which start of the machine the moments in the table belong to.
    pub const BOOT: usize = 5;
    /// A bit for each column that a process began to use.
    pub const COLUMNS_USED: usize = 6;
    /// Entries that have an id, known ones and strangers', on cache lines of their own.
    pub const FILL: [usize; 2] = [64, 72];
    /// Entries that were given to another id.
    pub const REPLACED: usize = 80;
    /// Ids that found no entry.
    pub const FULL: usize = 88;
}

/// The id of the entry that those share who find none of their own.
pub const COMMON: u128 = 1;

/// How much of the table is in use, for the metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fill {
    /// Entries of known ids, and of strangers.
    pub used: [u64; 2],
    /// Entries that there are.
    pub of: [u64; 2],
    /// Entries that were given to another id.
    pub replaced: u64,
    /// Ids that found no entry.
    pub full: u64,
}

/// The counters of this machine, as one process has them.
pub struct Counters {
    table: CounterTable<Mapping>,
    column: usize,
    began: (Instant, u64),
    common: EntryPlace,
}

impl Counters {
    /// In memory that has the header and the entries of this shape, and with a column that no other
    /// process has. `None`: there is not even room for the first id.
    pub fn new(memory: Mapping, shape: TableShape, column: usize) -> Option<Counters> {
        let table = CounterTable::new(memory, shape);
        let began = (Instant::now(), boot_ns().saturating_mul(TICKS_PER_NS));
        let common = match table.find(COMMON, TablePart::Known, began.1) {
            EntryFound::There(place) | EntryFound::New(place) | EntryFound::Instead(place) => place,
            EntryFound::Full => return None,
        };
        Some(Counters { table, column, began, common })
    }

    /// Memory of this process alone, for tests and where no folder is.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn anonymous(known: usize, strangers: usize, seed: u64) -> std::io::Result<Counters> {
        let shape = TableShape { header: HEADER_WORDS, known, strangers, seed };
        let memory = Mapping::anonymous(shape.words())?;
        Counters::new(memory, shape, 0).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
    }

    /// The moment, in ticks of the one clock that all processes of a machine share.
    pub fn at(&self, now: Instant) -> u64 {
        self.began.1.saturating_add(ticks(now.saturating_duration_since(self.began.0)))
    }

    /// Where an id counts, and whether it counts there alone.
    pub fn find(&self, id: u128, part: TablePart, now: u64) -> (EntryPlace, bool) {
        let fill = header::FILL[part as usize];
        let (place, event) = match self.table.find(id, part, now) {
            EntryFound::There(place) => return (place, true),
            EntryFound::New(place) => (place, fill),
            EntryFound::Instead(place) => (place, header::REPLACED),
            EntryFound::Full => (self.common, header::FULL),
        };
        self.change_header(event, |n| n.saturating_add(1));
        (place, event != header::FULL)
    }

    /// Where an id counts, if it ever did.
    pub fn seek(&self, id: u128, part: TablePart) -> Option<EntryPlace> {
        self.table.seek(id, part)
    }

    /// The word of one of the buckets of a place.
    pub fn bucket(&self, place: EntryPlace, which: usize) -> Option<&AtomicU64> {
        self.table.word(place, *word::BUCKETS.get(which)?)
    }

    /// Requests at one time in a place, of all processes.
    pub fn in_flight(&self, place: EntryPlace) -> u64 {
        self.table.word(place, word::SLOTS).map_or(0, |word| slots::total(word.value()))
    }

    /// One more request in a place. False: there are as many as may be.
    pub fn enter(&self, place: EntryPlace, limit: u32) -> bool {
        self.table
            .word(place, word::SLOTS)
            .is_some_and(|word| slots::enter(word, self.column, limit))
    }

    /// One less.
    pub fn leave(&self, place: EntryPlace) {
        if let Some(word) = self.table.word(place, word::SLOTS) {
            slots::leave(word, self.column);
        }
    }

    /// The quota of a place.
    pub fn quota(&self, place: EntryPlace) -> Option<Quota<'_, AtomicU64>> {
        let entry = self.table.entry(place);
        let reserved = entry.get(word::RESERVED..word::RESERVED + COLUMNS)?;
        let (used, own) = (entry.get(word::QUOTA)?, entry.get(word::QUOTA_OWN)?);
        Some(Quota { used, own, reserved, column: self.column })
    }

    /// What a process that is gone had in flight is nothing any more. Nobody uses the column.
    pub fn clear_column(&self, column: usize) {
        for place in self.table.places() {
            if let Some(word) = self.table.word(place, word::SLOTS) {
                slots::clear(word, column);
            }
            if let Some(word) = self.table.word(place, word::RESERVED + column) {
                quota::clear(word);
            }
        }
        self.change_header(header::COLUMNS_USED, |used| used & !(1 << column));
    }

    /// The process begins to use its column.
    pub fn begin_column(&self) {
        self.change_header(header::COLUMNS_USED, |used| used | 1 << self.column);
    }

    /// Whether a process has begun to use a column, and nobody has cleared it since.
    pub fn is_used(&self, column: usize) -> bool {
        self.header(header::COLUMNS_USED) & (1 << column) != 0
    }

    /// The process' own column.
    pub fn column(&self) -> usize {
        self.column
    }

    /// The table.
    pub fn table(&self) -> &CounterTable<Mapping> {
        &self.table
    }

    /// How full it is.
    pub fn fill(&self) -> Fill {
        let shape = self.table.shape();
        Fill {
            used: header::FILL.map(|word| self.header(word)),
            of: [shape.known as u64, shape.strangers as u64],
            replaced: self.header(header::REPLACED),
            full: self.header(header::FULL),
        }
    }

    fn header(&self, which: usize) -> u64 {
        self.table.memory().words().get(which).map_or(0, Word::value)
    }

    fn change_header(&self, which: usize, change: impl Fn(u64) -> u64) {
        if let Some(word) = self.table.memory().words().get(which) {
            word.change(|old| Some(change(old)));
        }
    }
}
