//! What is lent, in one word for each thing. The word says whose it is: the place may be another
//! one's by now. Of units: how many are at hand, and the tag. Of requests at one time: how many are
//! lent, how many of them are in use, and the tag.

use crate::state::counters::word::Word;

const TAG: u64 = 0xffff_ffff;
/// Of units.
const UNITS: u32 = 32;
/// Of requests at one time: those in use stand lower, those that are lent higher.
const USED: u32 = 32;
const LENT: u32 = 48;
const COUNT: u64 = 0xffff;

fn is_of(word: u64, tag: u32) -> bool {
    word & TAG == u64::from(tag)
}

fn used(word: u64) -> u64 {
    (word >> USED) & COUNT
}

fn lent_in(word: u64) -> u64 {
    word >> LENT
}

fn slots(lent: u64, used: u64, tag: u32) -> u64 {
    lent.min(COUNT) << LENT | used.min(COUNT) << USED | u64::from(tag)
}

/// Takes so many units. False: there are not so many.
pub fn draw(word: &impl Word, tag: u32, units: u64) -> bool {
    let less = |old: u64| {
        let left = (old >> UNITS).checked_sub(units)?;
        is_of(old, tag).then_some(left << UNITS | u64::from(tag))
    };
    word.change(less).is_some()
}

/// Adds units. What is of another one is gone.
pub fn fill(word: &impl Word, tag: u32, units: u64) {
    word.change(|old| {
        let there = if is_of(old, tag) { old >> UNITS } else { 0 };
        let more = there.saturating_add(units).min(u64::from(u32::MAX));
        Some(more << UNITS | u64::from(tag))
    });
}

/// Takes all units.
pub fn empty(word: &impl Word, tag: u32) -> u64 {
    let none = |old: u64| (is_of(old, tag) && old >> UNITS > 0).then_some(u64::from(tag));
    word.change(none).map_or(0, |old| old >> UNITS)
}

/// A request takes one of the slots that are lent. False: all are in use.
pub fn enter(word: &impl Word, tag: u32) -> bool {
    let more = |old: u64| {
        let may = is_of(old, tag) && used(old) < lent_in(old);
        may.then(|| slots(lent_in(old), used(old) + 1, tag))
    };
    word.change(more).is_some()
}

/// A request has ended.
pub fn leave(word: &impl Word, tag: u32) {
    word.change(|old| {
        (is_of(old, tag) && used(old) > 0).then(|| slots(lent_in(old), used(old) - 1, tag))
    });
}

/// One more is lent, and in use.
pub fn lend(word: &impl Word, tag: u32) {
    word.change(|old| {
        let (lent, used) = if is_of(old, tag) { (lent_in(old), used(old)) } else { (0, 0) };
        Some(slots(lent + 1, used + 1, tag))
    });
}

/// Those that are not in use are not lent any more. Gives how many are.
pub fn shrink(word: &impl Word, tag: u32) -> u32 {
    word.change(|old| {
        let is_more = is_of(old, tag) && lent_in(old) > used(old);
        is_more.then(|| slots(used(old), used(old), tag))
    });
    lent(word, tag)
}

/// Those that are lent.
pub fn lent(word: &impl Word, tag: u32) -> u32 {
    let word = word.value();
    if is_of(word, tag) {
        lent_in(word) as u32
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::sync::atomic::AtomicU64 as Watched;
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering::SeqCst;
    use std::sync::Arc;
    use std::thread;

    /// Catches: units that are used twice, units of one id that another one uses.
    #[test]
    fn units_are_taken_once_and_by_whom_they_are_lent_to() {
        let word = AtomicU64::new(0);
        assert!(!draw(&word, 7, 1) && empty(&word, 7) == 0);
        fill(&word, 7, 5);
        fill(&word, 7, 2);
        assert!(!draw(&word, 8, 1) && empty(&word, 8) == 0);
        assert!(draw(&word, 7, 3) && !draw(&word, 7, 5) && draw(&word, 7, 4) && !draw(&word, 7, 1));
        fill(&word, 7, 9);
        fill(&word, 8, 4);
        assert!(!draw(&word, 7, 1), "the place is another one's");
        assert_eq!((empty(&word, 8), empty(&word, 8)), (4, 0));
        fill(&word, 8, u64::MAX);
        assert_eq!(empty(&word, 8), u64::from(u32::MAX));
    }

    /// Catches: a slot that is used and counts as free, a place that goes below zero.
    #[test]
    fn slots_are_lent_used_and_given_back() {
        let word = AtomicU64::new(0);
        assert!(!enter(&word, 7));
        leave(&word, 7);
        lend(&word, 7);
        lend(&word, 7);
        assert!(!enter(&word, 7), "who has asked uses them");
        leave(&word, 7);
        leave(&word, 8);
        assert!(enter(&word, 7) && !enter(&word, 7));
        leave(&word, 7);
        assert_eq!((lent(&word, 7), lent(&word, 8)), (2, 0));
        assert_eq!((shrink(&word, 7), shrink(&word, 7)), (1, 1));
        assert!(!enter(&word, 7));
        leave(&word, 7);
        leave(&word, 7);
        assert_eq!(shrink(&word, 7), 0);
    }

    /// Every interleaving, by loom.
    fn each(check: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(check);
    }

    /// Catches: units that two requests get, or that are given back and used; those of an id whose
    /// place becomes another one's meanwhile.
    #[test]
    fn no_interleaving_makes_or_loses_units() {
        for other in [7, 8] {
            each(move || {
                let word = Arc::new(Watched::new(0));
                fill(&*word, 7, 1);
                let draws = |tag| {
                    let word = Arc::clone(&word);
                    loom::thread::spawn(move || u64::from(draw(&*word, tag, 1)))
                };
                let both = [draws(7), draws(other)];
                fill(&*word, 7, 1);
                let back = empty(&*word, 7);
                let drawn: u64 = both.into_iter().map(|it| it.join().unwrap()).sum();
                assert_eq!(drawn + back + empty(&*word, 7), 2);
                assert!(other == 7 || drawn <= 1, "what is of another one is not drawn");
            });
        }
    }

    /// Catches: a slot that two requests use, one that is not lent and in use, one that stays.
    #[test]
    fn no_interleaving_uses_more_slots_than_are_lent() {
        each(|| {
            let word = Arc::new(Watched::new(0));
            lend(&*word, 7);
            let asker = {
                let word = Arc::clone(&word);
                loom::thread::spawn(move || {
                    let is_in = enter(&*word, 7);
                    let value = word.value();
                    assert!(used(value) <= lent_in(value));
                    if is_in {
                        leave(&*word, 7);
                    }
                })
            };
            leave(&*word, 7);
            let kept = shrink(&*word, 7);
            assert!(kept <= 1);
            asker.join().unwrap();
            assert_eq!((shrink(&*word, 7), lent(&*word, 7)), (0, 0));
        });
    }

    /// Catches: an exchange that loses what another thread did at the same time.
    #[test]
    fn nothing_is_lost_between_threads() {
        const EACH: u64 = 20_000;
        let (word, taken) = (AtomicU64::new(0), AtomicU64::new(0));
        let emptied = thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        taken.fetch_add(draw(&word, 7, 1).into(), SeqCst);
                    }
                });
            }
            let filler = scope.spawn(|| {
                let fill_some = |sum, _| {
                    fill(&word, 7, 2);
                    sum + empty(&word, 7)
                };
                (0..EACH).fold(0, fill_some)
            });
            filler.join().unwrap()
        });
        assert_eq!(taken.load(SeqCst) + emptied + empty(&word, 7), 2 * EACH);
    }
}
