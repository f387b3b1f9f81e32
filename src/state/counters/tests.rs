use super::bucket::{self, give_back, Bucket, Wait};
use super::quota::{Quota, QuotaTerms, QuotaWindow};
use super::shared::Counters;
use super::slots;
use super::table::{word, CounterTable, EntryFound, TablePart, TableShape, ENTRY_WORDS};
use super::word::{Word, WordMemory};
use proptest::prelude::*;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

mod threads;

const SECOND: u64 = 1_000_000_000 * bucket::TICKS_PER_NS;

/// Memory of a test.
struct Plain(Vec<AtomicU64>);

impl WordMemory for Plain {
    type Word = AtomicU64;
    fn words(&self) -> &[AtomicU64] {
        &self.0
    }
}

fn table(known: usize, strangers: usize) -> CounterTable<Plain> {
    let shape = TableShape { header: 0, known, strangers, seed: 7 };
    CounterTable::new(Plain((0..shape.words()).map(|_| AtomicU64::new(0)).collect()), shape)
}

fn per_second(units: u64, size: u64) -> Bucket {
    Bucket::new(units, Duration::from_secs(1), size)
}

/// Catches: a bucket that gives more or less than it holds, a wait that is not honest.
#[test]
fn a_bucket_gives_what_it_holds_and_says_when_more_is_there() {
    let (bucket, word) = (Bucket::new(7, Duration::from_secs(60), 7), AtomicU64::new(0));
    let now = 1000 * SECOND;
    for _ in 0..7 {
        bucket.take(&word, now, 1).unwrap();
    }
    let Wait(wait) = bucket.take(&word, now, 1).unwrap_err();
    assert_eq!(Wait(wait).seconds(), 9, "a seventh of a minute, rounded up");
    assert!(bucket.take(&word, now + wait - 1, 1).is_err());
    assert_eq!(bucket.left(&word, now + wait), 1);
    bucket.take(&word, now + wait, 1).unwrap();
    assert_eq!(bucket.left(&word, now + 61 * SECOND), 6);
    assert_eq!(bucket.left(&word, now + 161 * SECOND), 7, "no more than it holds");
}

/// Catches: an estimate that stays taken, tokens of a stream that are not charged, a debt for ever.
#[test]
fn tokens_are_settled_and_may_be_owed() {
    let (bucket, word) = (Bucket::new(600, Duration::from_secs(60), 600), AtomicU64::new(0));
    let now = 50 * SECOND;
    let taken = bucket.take(&word, now, 500).unwrap();
    assert!(bucket.look(&word, now, 101).is_err());
    bucket.settle(&word, now, (taken, 100));
    assert_eq!(bucket.left(&word, now), 500);
    let taken = bucket.take(&word, now, 500).unwrap();
    bucket.settle(&word, now, (taken, 1100));
    assert_eq!(bucket.look(&word, now, 1).unwrap_err(), Wait(601 * SECOND / 10));
    // Whoever wants more than there ever is needs all of it.
    assert!(bucket.take(&word, now + 119 * SECOND, 9999).is_err());
    bucket.take(&word, now + 120 * SECOND, 9999).unwrap();
    // A word that is wrong, of a machine that was started again for example.
    let broken = AtomicU64::new(u64::MAX);
    assert!(bucket.look(&broken, now, 1).unwrap_err().0 <= 3661 * SECOND);
    bucket.settle(&broken, now, (Default::default(), u64::MAX));
    give_back(&broken, bucket.take(&word, now + 300 * SECOND, 1).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    /// Catches: any difference from a bucket as the books have it: so many units, and more with
    /// time. A thousandth is what whole ticks may cost.
    #[test]
    fn a_bucket_is_a_bucket(
        units in 1u64..2_000_000,
        size in 1u64..1000,
        steps in prop::collection::vec((0u64..3 * SECOND, 1u64..50, any::<bool>()), 1..20),
    ) {
        let (bucket, word) = (per_second(units, size), AtomicU64::new(0));
        let (mut now, mut level) = (5 * SECOND, size as f64);
        for (later, wanted, gives_back) in steps {
            now += later;
            level = (level + later as f64 * units as f64 / SECOND as f64).min(size as f64);
            let cost = wanted.min(size) as f64;
            match bucket.take(&word, now, wanted) {
                Ok(taken) => {
                    prop_assert!(level >= cost * 0.998 - 1e-6, "{level} of {cost}");
                    match gives_back {
                        true => give_back(&word, taken),
                        false => level = (level - cost).max(0.0),
                    }
                }
                Err(Wait(wait)) => {
                    prop_assert!(level <= cost * 1.002 + 1e-6, "{level} of {cost}");
                    prop_assert!(bucket.look(&word, now + wait, wanted).is_ok());
                    prop_assert!(bucket.look(&word, now + wait - 1, wanted).is_err());
                }
            }
            // What rounding made of it is not to add up over the steps.
            let left = bucket.left(&word, now) as f64;
            level = level.clamp(left, left + 1.0);
        }
    }
}

/// Catches: a limit that is not one over all processes, a dead one's requests that stay.
#[test]
fn slots_are_counted_by_process_and_limited_together() {
    let word = AtomicU64::new(0);
    assert!(slots::enter(&word, 0, 3) && slots::enter(&word, 3, 3) && slots::enter(&word, 3, 3));
    assert!(!slots::enter(&word, 1, 3));
    slots::leave(&word, 1);
    assert_eq!(slots::total(word.value()), 3, "a process frees nothing of another one");
    slots::clear(&word, 3);
    assert_eq!(slots::total(word.value()), 1);
    for _ in 0..100_000 {
        slots::enter(&word, 2, u32::MAX);
    }
    assert_eq!(slots::total(word.value()), u64::from(slots::SLOTS_MAX));
}

fn terms(window: QuotaWindow, total: u64) -> QuotaTerms {
    QuotaTerms { window, total, first: 0 }
}

const DAY_9: QuotaWindow = QuotaWindow::new(1, 9);
const DAY_10: QuotaWindow = QuotaWindow::new(1, 10);

/// Catches: what others have used and is not taken over, or comes on top each time; what is used
/// here while the server answers and is lost; a period that is over and counts in the next one.
#[test]
fn what_others_use_is_taken_over() {
    let words: Vec<AtomicU64> = (0..6).map(|_| AtomicU64::new(0)).collect();
    let quota = Quota { used: &words[0], own: &words[5], reserved: &words[1..5], column: 0 };
    let terms = QuotaTerms { first: 40, ..terms(DAY_9, 1000) };
    quota.meet(terms);
    quota.debit(terms, 30, 0);
    assert_eq!((quota.used(terms), quota.used_here(terms)), (70, 30));
    quota.debit(terms, 5, 0);
    // The server was told of 30, and has 100 of others.
    for _ in 0..2 {
        quota.mirror(terms, 130, 30);
        assert_eq!((quota.used(terms), quota.used_here(terms)), (135, 35));
    }
    quota.mirror(terms, 35, 35);
    assert_eq!(quota.used(terms), 35, "somebody has given it back");
    let next = QuotaTerms { window: DAY_10, ..terms };
    assert_eq!((quota.used(next), quota.used_here(next)), (0, 0));
    quota.debit(next, 3, 0);
    quota.mirror(terms, 900, 35);
    assert_eq!((quota.used(next), quota.used_here(next)), (3, 3), "that was yesterday");
    let monthly = QuotaTerms { window: QuotaWindow::new(3, 1), ..terms };
    quota.mirror(monthly, 900, 0);
    assert_eq!(quota.used(next), 3, "it is counted by days here");
}

/// Catches: more tokens than the quota, tokens that are not freed or debited twice, a period that
/// does not begin, or begins again when the clock is put back.
#[test]
fn a_quota_is_reserved_settled_and_begins_again() {
    let words: Vec<AtomicU64> = (0..6).map(|_| AtomicU64::new(0)).collect();
    let quota = Quota { used: &words[0], own: &words[5], reserved: &words[1..5], column: 2 };
    let first = QuotaTerms { first: 40, ..terms(DAY_9, 100) };
    quota.meet(first);
    assert!(quota.reserve(first, 50) && !quota.reserve(first, 11) && quota.reserve(first, 10));
    quota.debit(first, 30, 0);
    quota.release(50);
    assert_eq!((quota.used(first), quota.reserved()), (70, 10));
    // Nobody comes in when all is used, whatever he reserves; a larger wish needs all of it.
    quota.release(10);
    quota.debit(first, 30, 0);
    assert!(!quota.reserve(first, 0));
    let next = QuotaTerms { window: DAY_10, ..first };
    assert_eq!(quota.used(next), 0);
    assert!(quota.reserve(next, 5000) && !quota.reserve(next, 1));
    quota.debit(next, 7, 0);
    quota.release(100);
    assert_eq!(quota.used(first), 7, "a clock that was put back opens no day again");
    // One that was wrong by months locks nobody out until then, and forgives nothing.
    quota.debit(terms(QuotaWindow::new(1, 900), 100), 20, 0);
    assert_eq!(quota.used(next), 20);
    quota.debit(next, 1, 5);
    assert_eq!(quota.used(next), 16);
    assert_eq!(quota.used(terms(QuotaWindow::new(3, 1), 100)), 0, "another kind of period");
    super::quota::clear(&words[3]);
    assert_eq!(quota.reserved(), 0);
}

/// Catches: an id that is two, two that are one, one that is lost when it is looked for again.
#[test]
fn an_id_has_one_place() {
    let table = table(64, 64);
    let mut places = Vec::new();
    for id in 1..=40u128 {
        let EntryFound::New(place) = table.find(id << 64 | id, TablePart::Known, SECOND) else {
            panic!("{id}")
        };
        assert!(!places.contains(&place));
        places.push(place);
    }
    for id in 1..=40u128 {
        assert_eq!(
            table.find(id << 64 | id, TablePart::Known, SECOND),
            EntryFound::There(places[id as usize - 1])
        );
        assert_eq!(table.seek(id << 64 | id, TablePart::Known), Some(places[id as usize - 1]));
    }
    assert_eq!(table.seek(99, TablePart::Known), None);
    assert!(matches!(table.find(1 << 64 | 1, TablePart::Strangers, SECOND), EntryFound::New(_)));
    // The same upper half.
    assert!(matches!(table.find(1 << 64 | 2, TablePart::Known, SECOND), EntryFound::New(_)));
}

/// Catches: a flood of strangers that pushes out those that are known, or those that count; a full
/// table that gives one entry to two ids.
#[test]
fn strangers_push_out_nobody_who_counts() {
    let table = table(16, 32);
    let EntryFound::New(known) = table.find(5, TablePart::Known, SECOND) else { panic!() };
    let mut busy = Vec::new();
    for id in 1..=8u128 {
        let EntryFound::New(place) = table.find(id << 70, TablePart::Strangers, SECOND) else {
            panic!()
        };
        table.word(place, word::BUCKETS[1]).unwrap().set(500 * SECOND);
        busy.push(place);
    }
    let (mut replaced, mut full) = (0, 0);
    for id in 0..5000u128 {
        match table.find(id << 80 | 3, TablePart::Strangers, (100 + id as u64 / 20) * SECOND) {
            EntryFound::Instead(place) => {
                assert!(!busy.contains(&place) && place != known);
                replaced += 1;
            }
            EntryFound::Full => full += 1,
            _ => {}
        }
    }
    assert!(replaced > 100 && full > 100, "{replaced} {full}");
    for id in 1..=8u128 {
        assert_eq!(
            table.find(id << 70, TablePart::Strangers, 400 * SECOND),
            EntryFound::There(busy[id as usize - 1])
        );
    }
    assert_eq!(table.find(5, TablePart::Known, 9000 * SECOND), EntryFound::There(known));
}

/// Catches: an entry that is taken from an id which has used tokens, requests or a reservation.
#[test]
fn what_counts_is_never_given_away() {
    for which in [word::SLOTS, word::QUOTA, word::RESERVED + 3, word::QUOTA_OWN] {
        let table = table(1, 1);
        let EntryFound::New(place) = table.find(5, TablePart::Known, SECOND) else { panic!() };
        table.word(place, which).unwrap().set(1);
        assert_eq!(table.find(6, TablePart::Known, 900 * SECOND), EntryFound::Full, "{which}");
        table.word(place, which).unwrap().set(0);
        assert_eq!(table.find(6, TablePart::Known, 901 * SECOND), EntryFound::Instead(place));
        assert_eq!(
            table.find(5, TablePart::Known, 902 * SECOND),
            EntryFound::Full,
            "it was just used"
        );
    }
}

/// Catches: a panic on what lies in a table, whatever it is, or words outside of it.
#[test]
fn nothing_in_a_table_is_trusted() {
    let shape = TableShape { header: 0, known: 8, strangers: 8, seed: 1 };
    let mut state = 1u64;
    let mut random = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state ^ state >> 31
    };
    for _ in 0..2000 {
        let words = (0..shape.words()).map(|_| AtomicU64::new(random())).collect();
        let table = CounterTable::new(Plain(words), shape);
        let part = if random() % 2 == 0 { TablePart::Known } else { TablePart::Strangers };
        match table.find(u128::from(random()) << 64, part, random()) {
            EntryFound::There(place) | EntryFound::New(place) | EntryFound::Instead(place) => {
                assert_eq!(table.entry(place).len(), ENTRY_WORDS);
            }
            EntryFound::Full => {}
        }
    }
}

/// Catches: strangers without an entry who are unlimited, or locked out; numbers of the metrics
/// that are not true.
#[test]
fn strangers_without_an_entry_share_one() {
    let counters = Counters::anonymous(4, 1, 3).unwrap();
    let now = counters.at(std::time::Instant::now());
    let (place, is_own) = counters.find(1 << 90, TablePart::Strangers, now);
    assert!(is_own);
    let (shared, is_own) = counters.find(2 << 90, TablePart::Strangers, now);
    assert!(!is_own && shared != place);
    assert_eq!(counters.find(3 << 90, TablePart::Strangers, now), (shared, false));
    let fill = counters.fill();
    assert_eq!((fill.used, fill.of, fill.full), ([0, 1], [4, 1], 2));
    assert!(counters.enter(place, 1) && !counters.enter(place, 1));
    assert_eq!(counters.in_flight(place), 1);
    counters.clear_column(0);
    assert_eq!(counters.in_flight(place), 0);
}
