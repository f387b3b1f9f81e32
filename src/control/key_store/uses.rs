//! What is to be written down of when keys were used. Requests note it themselves, also those that
//! are answered from memory; now and then whoever has this looks what they noted.

use crate::base::limits::KEY_USES_MAX;
use crate::keys::digest::{DigestHasher, KeyDigest};
use crate::keys::facts::UseMark;
use std::collections::hash_map::Entry;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;

/// Uses that are written at a time: look-ups wait for the store meanwhile.
const WRITTEN_AT_A_TIME: usize = 1000;

/// The keys that are in use, by their identities.
#[derive(Default)]
pub struct KeyUses {
    noted: HashMap<KeyDigest, Noted, BuildHasherDefault<DigestHasher>>,
    /// What is still to be written of what the last look has found.
    round: Vec<(KeyDigest, i64)>,
    /// Since the last look there was no room for a key.
    is_full: bool,
    lost: u64,
}

/// One key.
struct Noted {
    mark: UseMark,
    written_ms: Option<i64>,
}

impl KeyUses {
    /// A key was looked up. Gives where requests note that they showed it; when too many keys are
    /// in use, they note it nowhere.
    pub fn meet(&mut self, identity: KeyDigest, now_ms: i64) -> UseMark {
        self.meet_of(identity, now_ms, KEY_USES_MAX)
    }

    fn meet_of(&mut self, identity: KeyDigest, now_ms: i64, most: usize) -> UseMark {
        let is_known = self.noted.contains_key(&identity);
        if !is_known && self.noted.len() >= most && !self.is_full {
            // Once between two looks: to find nothing costs as much as to find something.
            self.forget();
            self.is_full = self.noted.len() >= most;
        }
        if !is_known && self.noted.len() >= most {
            self.lost += 1;
            return UseMark::default();
        }
        match self.noted.entry(identity) {
            Entry::Occupied(noted) => {
                let mark = noted.get().mark.clone();
                mark.note(now_ms);
                mark
            }
            Entry::Vacant(place) => {
                let mark = UseMark::new(now_ms);
                place.insert(Noted { mark: mark.clone(), written_ms: None });
                mark
            }
        }
    }

    /// True when no key is in use.
    pub fn is_empty(&self) -> bool {
        self.noted.is_empty()
    }

    /// Looks what was noted since the last look.
    pub fn look(&mut self) {
        self.forget();
        self.is_full = false;
        let unwritten = self.noted.iter().filter_map(|(identity, noted)| {
            let last = noted.mark.last_ms()?;
            noted.is_unwritten().then_some((*identity, last))
        });
        self.round = unwritten.collect();
    }

    /// What is to be written next of what was found; empty: all of it was.
    pub fn next_part(&self) -> &[(KeyDigest, i64)] {
        self.round.get(self.begin_of_part()..).unwrap_or_default()
    }

    fn begin_of_part(&self) -> usize {
        self.round.len().saturating_sub(WRITTEN_AT_A_TIME)
    }

    /// That part is written.
    pub fn note_written(&mut self) {
        for (identity, ms) in self.round.split_off(self.begin_of_part()) {
            if let Some(noted) = self.noted.get_mut(&identity) {
                noted.written_ms = Some(ms);
            }
        }
    }

    /// It could not be written: the next look finds it again.
    pub fn put_back(&mut self) {
        self.round.clear();
    }

    /// How many look-ups found no room since this was asked last.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Forgets keys of which nobody has the facts any more, and nothing is to be written.
    fn forget(&mut self) {
        self.noted.retain(|_, noted| noted.is_unwritten() || !noted.mark.is_forgotten());
    }
}

impl Noted {
    fn is_unwritten(&self) -> bool {
        self.mark.last_ms() > self.written_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: usize) -> KeyDigest {
        KeyDigest::of(&n.to_le_bytes())
    }

    fn written(uses: &mut KeyUses) -> Vec<(KeyDigest, i64)> {
        let mut all = Vec::new();
        while !uses.next_part().is_empty() {
            all.extend_from_slice(uses.next_part());
            uses.note_written();
        }
        all
    }

    /// Catches: a use that was noted from memory and is not written, one that is lost because the
    /// store could not be written, one that is written again and again.
    #[test]
    fn what_was_noted_is_written_once() {
        let mut uses = KeyUses::default();
        let mark = uses.meet(digest(1), 5_000);
        uses.look();
        assert_eq!(uses.next_part(), [(digest(1), 5_000)]);
        uses.put_back();
        assert!(uses.next_part().is_empty(), "not at once");
        uses.look();
        assert_eq!(written(&mut uses), [(digest(1), 5_000)]);
        uses.look();
        assert!(written(&mut uses).is_empty());
        mark.note(9_000);
        mark.note(8_000);
        uses.look();
        assert_eq!(written(&mut uses), [(digest(1), 9_000)]);
        // Somebody may still note a use while its key is in somebody's memory, and not longer.
        mark.note(12_000);
        drop(mark);
        uses.look();
        assert_eq!(written(&mut uses), [(digest(1), 12_000)]);
        assert!(!uses.is_empty());
        uses.look();
        assert!(uses.is_empty());
    }

    /// Catches: a use that comes while the one before is being written, and is taken for it.
    #[test]
    fn a_use_while_another_is_written_is_not_lost() {
        let mut uses = KeyUses::default();
        let mark = uses.meet(digest(1), 5_000);
        uses.look();
        mark.note(7_000);
        assert_eq!(written(&mut uses), [(digest(1), 5_000)]);
        uses.look();
        assert_eq!(written(&mut uses), [(digest(1), 7_000)]);
    }

    /// Catches: a table that grows with every key, a key that finds no place though one is free, a
    /// loss that nobody counts.
    #[test]
    fn keys_beyond_what_is_kept_are_counted() {
        let mut uses = KeyUses::default();
        let mut marks: Vec<_> = (0..3).map(|n| uses.meet_of(digest(n), 1_000, 3)).collect();
        assert_eq!(uses.meet_of(digest(3), 1_000, 3).last_ms(), None);
        assert_eq!((uses.take_lost(), uses.take_lost()), (1, 0));
        assert_eq!(uses.meet_of(digest(2), 3_000, 3).last_ms(), Some(3_000), "it has its place");
        uses.look();
        assert_eq!(written(&mut uses).len(), 3);
        drop(marks.remove(0));
        assert_eq!(uses.meet_of(digest(3), 1_000, 3).last_ms(), Some(1_000));
        assert_eq!((uses.noted.len(), uses.take_lost()), (3, 0));
    }

    /// Catches: look-ups that wait until the uses of all keys are written.
    #[test]
    fn many_uses_are_written_in_parts() {
        let mut uses = KeyUses::default();
        let _marks: Vec<_> = (0..2_500).map(|n| uses.meet(digest(n), 1_000)).collect();
        uses.look();
        assert_eq!(uses.next_part().len(), WRITTEN_AT_A_TIME);
        assert_eq!(written(&mut uses).len(), 2_500);
    }
}
