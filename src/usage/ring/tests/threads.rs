//! Every interleaving of a producer and a consumer, by loom; and two real threads.

use super::*;
use loom::cell::Cell;
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{self, Acquire, Relaxed, Release};
use std::rc::Rc;

/// A window of which loom knows each word. Its cells fail the test when one side touches a word
/// that the other one may be touching.
struct Watched {
    words: Vec<Cell<u64>>,
    head: AtomicU64,
    tail: AtomicU64,
    /// With which head and tail are set.
    orders: (Ordering, Ordering),
}

impl Watched {
    fn new(bytes: usize, orders: (Ordering, Ordering)) -> Rc<Watched> {
        let words = (0..bytes / 8).map(|_| Cell::new(0)).collect();
        Rc::new(Watched { words, head: AtomicU64::new(0), tail: AtomicU64::new(0), orders })
    }
}

impl Window for Rc<Watched> {
    fn bytes(&self) -> u64 {
        self.words.len() as u64 * 8
    }
    fn load(&self, at: u64) -> u64 {
        self.words[at as usize / 8].get()
    }
    fn store(&self, at: u64, word: u64) {
        self.words[at as usize / 8].set(word);
    }
    fn head(&self) -> u64 {
        self.head.load(Acquire)
    }
    fn set_head(&self, to: u64) {
        self.head.store(to, self.orders.0);
    }
    fn tail(&self) -> u64 {
        self.tail.load(Acquire)
    }
    fn set_tail(&self, to: u64) {
        self.tail.store(to, self.orders.1);
    }
}

/// Catches: a word that is read before the head says so, or written again before the tail does; an
/// entry that is lost, doubled or torn in any interleaving.
#[test]
fn no_interleaving_loses_or_tears_an_entry() {
    run_all((Release, Release));
}

/// Catches: a test above that would not notice a head that is seen before the bytes.
#[test]
#[should_panic(expected = "Causality violation")]
fn a_head_without_release_is_noticed() {
    run_all((Relaxed, Release));
}

/// The same of a tail that is seen before its bytes were read.
#[test]
#[should_panic(expected = "Causality violation")]
fn a_tail_without_release_is_noticed() {
    run_all((Release, Relaxed));
}

fn run_all(orders: (Ordering, Ordering)) {
    let mut check = loom::model::Builder::new();
    // More are the same over again, and take minutes.
    check.preemption_bound = Some(3);
    check.check(move || {
        // Room for four entries of 32 bytes. Three are there; the second of those to come needs the
        // room of the first.
        let window = Watched::new(128, orders);
        let mut producer = Producer::new(window.clone());
        let mut put = Vec::new();
        let mut push = |kind, put: &mut Vec<u8>| {
            if producer.push((kind, NO_OPEN), (&mut draft(&[kind; 8]), &[]), Room::All).is_some() {
                put.push(kind);
            }
        };
        (1..=3).for_each(|kind| push(kind, &mut put));
        let consuming = loom::thread::spawn(move || {
            let mut consumer = Consumer::new(window);
            let (mut all, mut lot) = (Vec::new(), Taken::default());
            for _ in 0..2 {
                if consumer.take(&mut lot) {
                    let mut walk = lot.walk(Check::Each);
                    all.extend((&mut walk).map(|entry| entry.header.kind));
                    assert!(!walk.is_damaged());
                    consumer.release();
                }
            }
            (all, consumer)
        });
        (4..=5).for_each(|kind| push(kind, &mut put));
        let (mut all, mut consumer) = consuming.join().unwrap();
        all.extend(taken(&mut consumer).0.into_iter().map(|(kind, _)| kind));
        assert_eq!(all, put);
    });
}

/// Catches: the same on the machine's own memory, over many laps.
#[test]
fn two_threads_agree() {
    const COUNT: u32 = 200_000;
    let (mut producer, mut consumer) = both(8192);
    let putting = std::thread::spawn(move || {
        for n in 0..COUNT {
            let payload = vec![n as u8; n as usize % 90];
            let mut draft = draft(&n.to_le_bytes());
            while producer.push((1, n), (&mut draft, &payload), Room::All).is_none() {
                std::thread::yield_now();
            }
        }
    });
    let (mut next, mut lot) = (0, Taken::default());
    while next < COUNT {
        if !consumer.take(&mut lot) {
            std::thread::yield_now();
            continue;
        }
        let mut walk = lot.walk(Check::Each);
        for entry in &mut walk {
            assert_eq!((entry.header.open, &entry.payload[..4]), (next, &next.to_le_bytes()[..]));
            assert_eq!(entry.payload[4..], vec![next as u8; next as usize % 90]);
            next += 1;
        }
        assert!(!walk.is_damaged());
        consumer.release();
    }
    putting.join().unwrap();
}
