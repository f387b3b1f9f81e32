//! Requests at one time. One word has a count for each process, so that one exchange both sees all
//! of them and enters, and so that what a dead process held can be told from the rest.

use super::word::Word;
use crate::base::limits::LIMIT_CONCURRENT_MAX;

/// Processes that may use one table at a time.
pub const COLUMNS: usize = 4;
/// Requests at one time that fit.
pub const SLOTS_MAX: u32 = LIMIT_CONCURRENT_MAX;
const BITS: usize = 64 / COLUMNS;

fn count(word: u64, column: usize) -> u64 {
    (word >> (column * BITS)) & u64::from(SLOTS_MAX)
}

/// Requests of all processes.
pub fn total(word: u64) -> u64 {
    (0..COLUMNS).map(|column| count(word, column)).sum()
}

/// One more request of a process. False: the limit is reached, and none was entered.
pub fn enter(word: &impl Word, column: usize, limit: u32) -> bool {
    let limit = u64::from(limit.min(SLOTS_MAX));
    word.change(|old| (total(old) < limit).then(|| old + (1 << (column * BITS)))).is_some()
}

/// One request less of it.
pub fn leave(word: &impl Word, column: usize) {
    word.change(|old| (count(old, column) > 0).then(|| old - (1 << (column * BITS))));
}

/// Its process is gone: none of its requests is left.
pub fn clear(word: &impl Word, column: usize) {
    let mask = u64::from(SLOTS_MAX) << (column * BITS);
    word.change(|old| (old & mask != 0).then_some(old & !mask));
}
