//! Every interleaving of a few steps, by loom; and many real threads.

use super::*;
use loom::sync::atomic::AtomicU64 as Watched;
use loom::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::thread;

impl Word for Watched {
    fn value(&self) -> u64 {
        // Loom takes a sequentially consistent load for one that may be stale; an exchange reads
        // the newest value, as such a load does.
        self.fetch_or(0, SeqCst)
    }
    fn exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        self.compare_exchange(old, new, SeqCst, SeqCst).map(drop)
    }
}

struct WatchedMemory(Vec<Watched>);

impl WordMemory for WatchedMemory {
    type Word = Watched;
    fn words(&self) -> &[Watched] {
        &self.0
    }
}

fn each(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // More are the same over again, and take minutes.
    builder.preemption_bound = Some(3);
    builder.check(check);
}

/// Catches: two threads that both get the last unit; one that is gone although nobody has it.
#[test]
fn no_interleaving_takes_more_than_a_bucket_holds() {
    each(|| {
        let words = Arc::new([Watched::new(0), Watched::new(0)]);
        // The second refuses one of three: what he took from the first is there again.
        let buckets = [per_second(1, 3), per_second(1, 2)];
        let now = 9 * SECOND;
        let work = move |words: &[Watched; 2]| {
            let taken = buckets[0].take(&words[0], now, 1).unwrap();
            let is_in = buckets[1].take(&words[1], now, 1).is_ok();
            if !is_in {
                give_back(&words[0], taken);
            }
            u64::from(is_in)
        };
        let theirs: Vec<_> = (0..2)
            .map(|_| {
                let words = Arc::clone(&words);
                loom::thread::spawn(move || work(&words))
            })
            .collect();
        let ours = work(&words);
        let all: u64 = ours + theirs.into_iter().map(|t| t.join().unwrap()).sum::<u64>();
        assert_eq!(all, 2);
        assert_eq!((buckets[0].left(&words[0], now), buckets[1].left(&words[1], now)), (1, 0));
    });
}

/// Catches: two processes that reserve the same tokens, or settle so that some are free for a
/// moment.
#[test]
fn no_interleaving_reserves_more_than_a_quota() {
    each(|| {
        let words: Arc<Vec<Watched>> = Arc::new((0..6).map(|_| Watched::new(0)).collect());
        let terms = terms(DAY_9, 10);
        let of = |words: &Arc<Vec<Watched>>, column| {
            let words = Arc::clone(words);
            move || {
                let quota =
                    Quota { used: &words[0], own: &words[5], reserved: &words[1..5], column };
                let is_in = quota.reserve(terms, 6);
                if is_in {
                    quota.debit(terms, 6, 0);
                    quota.release(6);
                }
                u64::from(is_in)
            }
        };
        let (other, same) =
            (loom::thread::spawn(of(&words, 1)), loom::thread::spawn(of(&words, 0)));
        let all = of(&words, 0)() + other.join().unwrap() + same.join().unwrap();
        assert!(all <= 1, "{all} of 6 in 10");
        let quota = Quota { used: &words[0], own: &words[5], reserved: &words[1..5], column: 0 };
        assert_eq!((quota.used(terms), quota.reserved()), (all * 6, 0));
    });
}

/// Catches: the threads of one process that turn each other away although there is enough.
#[test]
fn no_interleaving_refuses_what_is_there() {
    each(|| {
        let words: Arc<Vec<Watched>> = Arc::new((0..6).map(|_| Watched::new(0)).collect());
        let theirs = {
            let words = Arc::clone(&words);
            loom::thread::spawn(move || {
                Quota { used: &words[0], own: &words[5], reserved: &words[1..5], column: 0 }
                    .reserve(terms(DAY_9, 10), 6)
            })
        };
        let quota = Quota { used: &words[0], own: &words[5], reserved: &words[1..5], column: 0 };
        let ours = quota.reserve(terms(DAY_9, 10), 6);
        assert!(ours != theirs.join().unwrap(), "one of both");
    });
}

/// Catches: an id with two places, two ids with one, in any interleaving of their first search.
#[test]
fn no_interleaving_gives_an_id_two_places() {
    for ids in [[1u128 << 64 | 5; 2], [1 << 64 | 5, 1 << 64 | 6]] {
        each(move || {
            let shape = TableShape { header: 0, known: 2, strangers: 0, seed: 0 };
            let words = (0..shape.words()).map(|_| Watched::new(0)).collect();
            let table = Arc::new(CounterTable::new(WatchedMemory(words), shape));
            let find = move |table: &CounterTable<WatchedMemory>, id| match table.find(
                id,
                TablePart::Known,
                SECOND,
            ) {
                EntryFound::New(place) | EntryFound::There(place) => place,
                found => panic!("{found:?}"),
            };
            let theirs = {
                let table = Arc::clone(&table);
                loom::thread::spawn(move || find(&table, ids[1]))
            };
            let (ours, theirs) = (find(&table, ids[0]), theirs.join().unwrap());
            assert_eq!(ours == theirs, ids[0] == ids[1]);
        });
    }
}

/// Catches: an entry that is given away while somebody counts in it.
#[test]
fn no_interleaving_gives_away_what_was_just_found() {
    each(|| {
        let shape = TableShape { header: 0, known: 1, strangers: 0, seed: 0 };
        let words = (0..shape.words()).map(|_| Watched::new(0)).collect();
        let table = Arc::new(CounterTable::new(WatchedMemory(words), shape));
        table.find(5, TablePart::Known, SECOND);
        let theirs = {
            let table = Arc::clone(&table);
            loom::thread::spawn(move || {
                matches!(table.find(6, TablePart::Known, 99 * SECOND), EntryFound::Instead(_))
            })
        };
        let ours = match table.find(5, TablePart::Known, 99 * SECOND) {
            EntryFound::There(_) => true,
            // It came too late, and did not wait.
            EntryFound::Full => false,
            found => panic!("{found:?}"),
        };
        assert!(!(ours && theirs.join().unwrap()), "both have it");
    });
}

/// Catches, on the machine's own memory: more than the limit, or less than 99.9 % of it, by eight
/// threads at once.
#[test]
fn many_threads_get_exactly_the_limit() {
    const LIMIT: u64 = 20_000;
    let counters = Arc::new(Counters::anonymous(64, 64, 1).unwrap());
    let (passed, now) = (Arc::new(AtomicU64::new(0)), 1000 * SECOND);
    let bucket = per_second(LIMIT, LIMIT);
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (counters, passed) = (Arc::clone(&counters), Arc::clone(&passed));
            thread::spawn(move || {
                for _ in 0..LIMIT / 4 {
                    let (place, _) = counters.find(77 << 64, TablePart::Known, now);
                    if !counters.enter(place, 8) {
                        panic!("a slot that was left is free");
                    }
                    let word = counters.bucket(place, 0).unwrap();
                    passed.fetch_add(u64::from(bucket.take(word, now, 1).is_ok()), Relaxed);
                    counters.leave(place);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(passed.load(Relaxed), LIMIT);
}

/// Catches: units that are lost, or handed out twice, where a bucket fills while many threads take
/// from it, each by a clock of its own that is a little late. Nothing here goes by a real time.
#[test]
fn a_bucket_that_fills_while_threads_take_loses_nothing() {
    const SIZE: u64 = 1000;
    const TRIES: u64 = 40_000;
    let bucket = Bucket::new(1_000_000, std::time::Duration::from_secs(1), SIZE);
    let counters = Arc::new(Counters::anonymous(64, 64, 1).unwrap());
    let (passed, begun) = (Arc::new(AtomicU64::new(0)), 1000 * SECOND);
    // A unit flows in with each second try, so most of the time there is none.
    let (clock, step) = (Arc::new(AtomicU64::new(begun)), bucket.each() / 2);
    let (place, _) = counters.find(78 << 64, TablePart::Known, begun);
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (counters, passed) = (Arc::clone(&counters), Arc::clone(&passed));
            let clock = Arc::clone(&clock);
            thread::spawn(move || {
                let word = counters.bucket(place, 0).unwrap();
                for _ in 0..TRIES {
                    let now = clock.fetch_add(step, Relaxed);
                    passed.fetch_add(u64::from(bucket.take(word, now, 1).is_ok()), Relaxed);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let (word, end) = (counters.bucket(place, 0).unwrap(), clock.load(Relaxed));
    let rest = std::iter::from_fn(|| bucket.take(word, end, 1).ok()).count() as u64;
    let (all, most) = (passed.load(Relaxed) + rest, SIZE + (end - begun) / bucket.each());
    // It was full until the first one took: what flowed in before that had no room.
    assert!((most - most / 1000..=most).contains(&all), "{all} of {most}");
}
