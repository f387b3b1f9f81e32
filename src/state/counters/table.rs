//! Finds the words that belong to an id. The table is open-addressed and never grows; an entry that
//! nobody needs any more is given to another id in its place, so that no search finds a hole.
//!
//! There are two parts, so that whoever invents ids pushes out nobody who has a right to be there:
//! one for what the configuration and the providers of keys name, one for strangers (addresses,
//! and keys that nobody checks).

use super::bucket::TICKS_PER_NS;
use super::slots::COLUMNS;
use super::word::{Word, WordMemory};

/// Words of an entry: two cache lines.
pub const ENTRY_WORDS: usize = 16;

/// Words of an entry, by what they are for.
pub mod word {
    /// The upper half of the id, of which the first bit is always set; 0: nobody's. Smaller values
    /// are a second: it is being given to another id since then.
    pub const ID: usize = 0;
    /// The lower half; 0: not written yet.
    pub const ID_LOW: usize = 1;
    /// The second of its last use.
    pub const SEEN: usize = 2;
    /// Requests per second, requests per minute, tokens per minute.
    pub const BUCKETS: [usize; 3] = [3, 4, 5];
    /// Requests at one time.
    pub const SLOTS: usize = 6;
    /// Period and used tokens.
    pub const QUOTA: usize = 7;
    /// Reserved tokens, by process.
    pub const RESERVED: usize = 8;
    /// Period and tokens used here, of those above: others may use a quota too.
    pub const QUOTA_OWN: usize = RESERVED + super::COLUMNS;
}

const _: () = assert!(word::QUOTA_OWN < ENTRY_WORDS, "an entry has room for it");

/// Entries of the part for strangers that an id may be in, beginning with the one that it falls
/// on. More of them are looked at when an id that is not there is to be found.
const STRANGER_REACH: usize = 16;
/// The same of the other part, which may be nearly full.
const KNOWN_REACH: usize = 1024;
/// An entry must not have been used for so many seconds before another id gets it: whoever has just
/// found it may be about to count in it.
const QUIET_S: u64 = 10;
/// Set in the upper half of each id.
const IS_ID: u64 = 1 << 63;

/// Whose id it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TablePart {
    /// Named by the configuration or by a provider of keys.
    Known,
    /// Named by the client alone.
    Strangers,
}

/// Where the words of an id are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryPlace(u32);

impl EntryPlace {
    /// Its number among all places of the table.
    pub fn number(self) -> usize {
        self.0 as usize
    }
}

/// What came of looking for an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryFound {
    /// It was there.
    There(EntryPlace),
    /// It is there now.
    New(EntryPlace),
    /// It is there now, in the place of another one that nobody needed any more.
    Instead(EntryPlace),
    /// All entries that it may be in are in use.
    Full,
}

/// The shape of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableShape {
    /// Words in front of the entries.
    pub header: usize,
    /// Entries for known ids.
    pub known: usize,
    /// Entries for strangers.
    pub strangers: usize,
    /// Random: nobody outside can tell which ids fall on the same entry.
    pub seed: u64,
}

impl TableShape {
    /// Words of all.
    pub fn words(&self) -> usize {
        self.header + self.entries() * ENTRY_WORDS
    }

    /// Entries of both parts.
    pub fn entries(&self) -> usize {
        self.known + self.strangers
    }
}

/// An id as it stands in the table.
fn halves(id: u128) -> (u64, u64) {
    ((id >> 64) as u64 | IS_ID, (id as u64).max(1))
}

/// A table in some memory.
pub struct CounterTable<M> {
    memory: M,
    shape: TableShape,
}

impl<M: WordMemory> CounterTable<M> {
    /// The memory has the words that the shape needs.
    pub fn new(memory: M, shape: TableShape) -> CounterTable<M> {
        CounterTable { memory, shape }
    }

    /// Its shape.
    pub fn shape(&self) -> TableShape {
        self.shape
    }

    /// Its memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Its memory, when nobody else has it.
    pub fn into_memory(self) -> M {
        self.memory
    }

    /// Whether a place is still that of this id.
    pub fn is_of(&self, place: EntryPlace, id: u128) -> bool {
        let [high, low, ..] = self.entry(place) else { return false };
        (high.value(), low.value()) == halves(id)
    }

    /// Whose a place is.
    pub fn id(&self, place: EntryPlace) -> Option<(u128, TablePart)> {
        let [high, low, ..] = self.entry(place) else { return None };
        let (high, low) = (high.value(), low.value());
        let part = match (place.0 as usize) < self.shape.known {
            true => TablePart::Known,
            false => TablePart::Strangers,
        };
        (high & IS_ID != 0 && low != 0).then(|| (u128::from(high) << 64 | u128::from(low), part))
    }

    /// The words of a place.
    pub fn entry(&self, place: EntryPlace) -> &[M::Word] {
        let from = self.shape.header + place.0 as usize * ENTRY_WORDS;
        self.memory.words().get(from..from + ENTRY_WORDS).unwrap_or_default()
    }

    /// One word of a place.
    pub fn word(&self, place: EntryPlace, which: usize) -> Option<&M::Word> {
        self.entry(place).get(which)
    }

    /// All places.
    pub fn places(&self) -> impl Iterator<Item = EntryPlace> {
        (0..self.shape.entries()).map(|place| EntryPlace(place as u32))
    }

    /// The places that an id may have, in the order in which they are looked at.
    fn path(&self, id: u128, part: TablePart) -> impl Iterator<Item = EntryPlace> {
        let (first, entries, reach) = match part {
            TablePart::Known => (0, self.shape.known, KNOWN_REACH),
            TablePart::Strangers => (self.shape.known, self.shape.strangers, STRANGER_REACH),
        };
        let (high, low) = halves(id);
        let mixed = u128::from(high ^ self.shape.seed)
            * u128::from(low ^ self.shape.seed.rotate_left(32) | 1);
        let start = ((mixed >> 64) as u64 ^ mixed as u64) as usize % entries.max(1);
        (0..reach.min(entries))
            .map(move |step| EntryPlace((first + (start + step) % entries) as u32))
    }

    /// Where an id is; it gets an entry if it has none. `now` in ticks.
    pub fn find(&self, id: u128, part: TablePart, now: u64) -> EntryFound {
        if let Some(found) = self.search(id, part, second(now)) {
            return found;
        }
        match self.replace(id, part, now) {
            Some(place) => EntryFound::Instead(place),
            None => EntryFound::Full,
        }
    }

    /// Where an id is, if it has an entry.
    pub fn seek(&self, id: u128, part: TablePart) -> Option<EntryPlace> {
        let (high, low) = halves(id);
        for place in self.path(id, part) {
            let [id_high, id_low, ..] = self.entry(place) else { return None };
            match id_high.value() {
                0 => return None,
                found if found == high && id_low.value() == low => return Some(place),
                _ => {}
            }
        }
        None
    }

    /// The entry of an id, or the first one that nobody has; `None`: there is neither.
    fn search(&self, id: u128, part: TablePart, second: u64) -> Option<EntryFound> {
        let (high, low) = halves(id);
        for place in self.path(id, part) {
            let [id_high, id_low, seen, ..] = self.entry(place) else { return None };
            // The upper half decides whose it is: of all who want an empty entry, one gets it.
            let (found, is_new) = match id_high.exchange(0, high) {
                Ok(()) => (high, true),
                Err(found) => (found, false),
            };
            if found != high {
                continue;
            }
            // Whoever comes first writes the lower half: the one that took the entry may have been
            // killed before it did. Two ids of the same upper half are two ids all the same.
            if id_low.exchange(0, low).is_err_and(|found| found != low) {
                continue;
            }
            // In this order: nobody gives it to another id after it was seen, and who did before
            // shows now.
            if seen.value() != second {
                seen.set(second);
            }
            if id_high.value() == high && id_low.value() == low {
                return Some(if is_new {
                    EntryFound::New(place)
                } else {
                    EntryFound::There(place)
                });
            }
        }
        None
    }

    /// Gives an entry that nobody needs to an id that has none.
    ///
    /// Two threads may do so for the same id at the same time, and take two entries. The first on
    /// the path stays, as each sees who looks again afterwards; in the worst case one request was
    /// counted in the other one.
    fn replace(&self, id: u128, part: TablePart, now: u64) -> Option<EntryPlace> {
        let (high, low) = halves(id);
        let second = second(now);
        let place = self.path(id, part).find(|place| self.retire(*place, now))?;
        let [id_high, id_low, seen, others @ ..] = self.entry(place) else { return None };
        others.iter().for_each(|word| word.set(0));
        seen.set(second);
        id_low.set(low);
        // It is ours alone until here.
        id_high.set(high);
        match self.seek(id, part) {
            Some(first) if first != place => {
                id_high.set(second.max(1));
                Some(first)
            }
            _ => Some(place),
        }
    }

    /// Takes an entry away from its id, if nothing is lost by that. True: it is the caller's.
    fn retire(&self, place: EntryPlace, now: u64) -> bool {
        let [id_high, _, seen, ..] = self.entry(place) else { return false };
        let (second, was) = (second(now), id_high.value());
        let is_quiet = |since: u64| second.saturating_sub(since) >= QUIET_S;
        if was & IS_ID == 0 {
            // Somebody was killed while it gave the entry away.
            return is_quiet(was) && id_high.exchange(was, second.max(1)).is_ok();
        }
        if !is_quiet(seen.value()) || !self.is_idle(place, now) {
            return false;
        }
        if id_high.exchange(was, second.max(1)).is_err() {
            return false;
        }
        // Whoever found it meanwhile has said so before it looked at the id again.
        if is_quiet(seen.value()) && self.is_idle(place, now) {
            return true;
        }
        id_high.set(was);
        false
    }

    /// Whether the entry says nothing that an empty one would not say: all buckets are full, no
    /// request is there, and no tokens were ever counted.
    pub fn is_idle(&self, place: EntryPlace, now: u64) -> bool {
        let [_, _, _, words @ ..] = self.entry(place) else { return false };
        words.iter().zip(word::SEEN + 1..).all(|(found, which)| {
            let found = found.value();
            let is_bucket = word::BUCKETS.contains(&which);
            let is_reserved = (word::RESERVED..word::RESERVED + COLUMNS).contains(&which);
            match (is_bucket, is_reserved) {
                (true, _) => found <= now,
                // The upper bits count changes.
                (_, true) => found << 16 == 0,
                _ => found == 0,
            }
        })
    }
}

/// The second of a moment.
fn second(now: u64) -> u64 {
    now / (1_000_000_000 * TICKS_PER_NS)
}
