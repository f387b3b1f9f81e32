//! What providers said of keys a moment ago, as one worker remembers it. Bounded, and in two parts:
//! keys that nobody knows, of which anybody can invent any number, take no room of those that are
//! known.

use crate::config::plan::LookupCache;
use crate::keys::digest::{DigestHasher, KeyDigest};
use crate::state::lookup::KeyAnswer;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::time::Instant;

/// The answers of one provider.
pub struct KeyCache {
    how: LookupCache,
    /// What it said of keys that it knows, and of those that it does not.
    known: RefCell<Generations>,
    unknown: RefCell<Generations>,
}

impl KeyCache {
    /// An empty one.
    pub fn new(how: LookupCache) -> KeyCache {
        KeyCache { how, known: RefCell::default(), unknown: RefCell::default() }
    }

    /// How it remembers.
    pub fn how(&self) -> &LookupCache {
        &self.how
    }

    /// What was said of a key, unless that is too long ago, or its provider's keys were changed
    /// since: `changes` counts how often that was.
    pub fn find(&self, digest: &KeyDigest, changes: u64, now: Instant) -> Option<KeyAnswer> {
        let is_good = |entry: &Entry| entry.changes == changes && now < entry.until;
        let most = self.how.max_entries as usize;
        let known = self.known.borrow_mut().find(digest, most, is_good);
        known.or_else(|| self.unknown.borrow_mut().find(digest, most, is_good))
    }

    /// Remembers what was said of a key, which was asked when its provider's keys had been changed
    /// so often. That a provider could not say anything is not remembered.
    pub fn keep(&self, digest: KeyDigest, answer: &KeyAnswer, changes: u64, now: Instant) {
        let (part, ttl) = match answer {
            KeyAnswer::Known(_) => (&self.known, self.how.ttl),
            KeyAnswer::Unknown | KeyAnswer::Denied(_) => (&self.unknown, self.how.negative_ttl),
            KeyAnswer::Failed => return,
        };
        let Some(until) = now.checked_add(ttl).filter(|_| !ttl.is_zero()) else { return };
        // Only one of the two parts may know it.
        self.known.borrow_mut().forget(&digest);
        self.unknown.borrow_mut().forget(&digest);
        let entry = Entry { answer: answer.clone(), until, changes };
        part.borrow_mut().keep(digest, entry, self.how.max_entries as usize);
    }
}

struct Entry {
    answer: KeyAnswer,
    until: Instant,
    changes: u64,
}

type Entries = HashMap<KeyDigest, Entry, BuildHasherDefault<DigestHasher>>;

/// Entries in two halves. When the young half is full it becomes the old one, and what was in that
/// is forgotten; what is asked for in the old half becomes young again. So what is in use stays,
/// without a list that is kept in order.
#[derive(Default)]
struct Generations {
    young: Entries,
    old: Entries,
}

impl Generations {
    fn find(
        &mut self,
        digest: &KeyDigest,
        most: usize,
        is_good: impl Fn(&Entry) -> bool,
    ) -> Option<KeyAnswer> {
        if let Some(entry) = self.young.get(digest) {
            return is_good(entry).then(|| entry.answer.clone());
        }
        let entry = self.old.remove(digest).filter(&is_good)?;
        let answer = entry.answer.clone();
        self.keep(*digest, entry, most);
        Some(answer)
    }

    fn keep(&mut self, digest: KeyDigest, entry: Entry, most: usize) {
        if self.young.len() >= most.div_ceil(2) {
            // The room of the old ones is used again.
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(digest, entry);
    }

    fn forget(&mut self, digest: &KeyDigest) {
        self.young.remove(digest);
        self.old.remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::facts::KeyFacts;
    use std::sync::Arc;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn cache(max_entries: u32) -> KeyCache {
        let how = LookupCache { ttl: 30 * SECOND, negative_ttl: 5 * SECOND, max_entries };
        KeyCache::new(how)
    }

    fn digest(n: usize) -> KeyDigest {
        KeyDigest::of(&n.to_le_bytes())
    }

    fn known(n: usize) -> KeyAnswer {
        KeyAnswer::Known(Arc::new(KeyFacts::new(digest(n))))
    }

    /// Catches: an answer that outlives its time or a change of the keys, a failure that lasts.
    #[test]
    fn an_answer_has_its_time() {
        let (cache, start) = (cache(100), Instant::now());
        let at = |seconds: u32| start + seconds * SECOND;
        let is_there = |n, changes, now| cache.find(&digest(n), changes, now).is_some();
        cache.keep(digest(1), &known(1), 7, start);
        cache.keep(digest(2), &KeyAnswer::Unknown, 7, start);
        cache.keep(digest(3), &KeyAnswer::Denied(None), 7, start);
        cache.keep(digest(4), &KeyAnswer::Failed, 7, start);
        assert_eq!([1, 2, 3, 4].map(|n| is_there(n, 7, at(4))), [true, true, true, false]);
        assert_eq!([1, 2, 3].map(|n| is_there(n, 7, at(5))), [true, false, false]);
        assert!(is_there(1, 7, at(29)) && !is_there(1, 7, at(30)));
        assert!(!is_there(1, 8, start), "a key was changed since");
        // What is said last counts, whichever part it is in.
        cache.keep(digest(1), &KeyAnswer::Unknown, 8, start);
        assert!(matches!(cache.find(&digest(1), 8, start), Some(KeyAnswer::Unknown)));
        cache.keep(digest(1), &known(1), 8, start);
        assert!(matches!(cache.find(&digest(1), 8, start), Some(KeyAnswer::Known(_))));
    }

    /// Catches: a flood of invented keys that pushes real ones out, and memory that grows with it.
    #[test]
    fn invented_keys_take_no_room_of_real_ones() {
        let (cache, now) = (cache(100), Instant::now());
        for n in 0..50 {
            cache.keep(digest(n), &known(n), 0, now);
        }
        for n in 1000..100_000 {
            assert!(cache.find(&digest(n), 0, now).is_none());
            cache.keep(digest(n), &KeyAnswer::Unknown, 0, now);
        }
        assert!((0..50).all(|n| cache.find(&digest(n), 0, now).is_some()));
        let sizes = |part: &RefCell<Generations>| {
            let part = part.borrow();
            part.young.len() + part.old.len()
        };
        assert!(sizes(&cache.known) <= 100 && sizes(&cache.unknown) <= 100);
    }

    /// Catches: a key in use that is forgotten for one that is not.
    #[test]
    fn what_is_in_use_stays() {
        let (cache, now) = (cache(100), Instant::now());
        cache.keep(digest(0), &known(0), 0, now);
        for n in 1..10_000 {
            cache.keep(digest(n), &known(n), 0, now);
            assert!(n % 40 > 0 || cache.find(&digest(0), 0, now).is_some(), "{n}");
        }
        assert!(cache.find(&digest(1), 0, now).is_none());
    }
}
