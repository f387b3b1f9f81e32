use super::*;
use crate::base::limits::LOANED_SLOTS_TOLD_EVERY;
use crate::state::counters::shared::Counters;
use crate::state::counters::table::TablePart;
use crossbeam_channel::{bounded, Receiver};

const LEASE: Duration = Duration::from_millis(100);

struct Stage {
    book: LoanBook,
    ledger: Ledger,
    now: Instant,
    whose: Counted,
    _changed: Receiver<LoanChange>,
}

impl Stage {
    fn new() -> Stage {
        let (changes, _changed) = bounded(8);
        let table = Counters::anonymous(16, 16, 1).unwrap();
        let (place, _) = table.find(7 << 70, TablePart::Known, 1);
        let whose = Counted::new(7 << 70, TablePart::Known, place);
        let book = LoanBook::new(32, changes).unwrap();
        Stage { book, ledger: Ledger::new(LEASE), now: Instant::now(), whose, _changed }
    }

    /// Of a bucket into which a thousand units flow in a second: a hundred in a lease.
    fn units(&self, units: u64) -> LoanItem {
        let bucket = Bucket::new(1000, Duration::from_secs(1), 2000);
        LoanItem { whose: self.whose, of: LoanOf::Units(1, bucket), units }
    }

    fn slot(&self) -> LoanItem {
        LoanItem { whose: self.whose, of: LoanOf::Slot(5), units: 1 }
    }

    fn owed(&mut self) -> Vec<i64> {
        self.ledger.amounts_to_tell().iter().map(|owed| owed.units).collect()
    }

    fn tell(&mut self, asked: &[Counted]) -> Vec<u32> {
        let told = self.ledger.slots_to_tell(&self.book, asked.iter().copied(), self.now);
        self.ledger.heard(&told, self.now);
        told.into_iter().map(|(_, slots)| slots).collect()
    }
}

/// Catches: a busy key that asks for each request, an idle one that hoards, more lent than flows
/// in, and what was not used and stays away from others.
#[test]
fn who_is_busy_borrows_ahead_and_gives_back() {
    let mut stage = Stage::new();
    let one = stage.units(1);
    assert_eq!(stage.ledger.more(&one), 0, "nobody knows it");
    for _ in 0..30 {
        stage.ledger.lent(&one, 0, stage.now);
    }
    assert_eq!(stage.ledger.more(&one), 0, "nor how busy it is");
    stage.now += LEASE;
    assert_eq!(stage.ledger.sweep(&stage.book, stage.now), 0);
    assert_eq!((stage.ledger.more(&one), stage.ledger.more(&stage.units(40))), (30, 0));
    stage.ledger.lent(&one, 30, stage.now);
    stage.book.fill(&stage.whose, 1, 30);
    assert!(stage.book.take(&stage.units(12)));
    stage.now += LEASE;
    stage.ledger.sweep(&stage.book, stage.now);
    assert_eq!((stage.owed(), stage.ledger.more(&one)), (vec![-18], 13));
    assert!(!stage.book.take(&one), "it was given back");
    stage.ledger.lent(&stage.units(5000), 0, stage.now);
    stage.now += LEASE;
    stage.ledger.sweep(&stage.book, stage.now);
    assert_eq!(stage.ledger.more(&one), 100, "so many flow in");
    stage.now += LEASE;
    stage.ledger.sweep(&stage.book, stage.now);
    assert!(stage.ledger.uses.is_empty(), "it is forgotten when it is idle");
}

/// Catches: an amount that is told twice or never, a batch that changes while it is on its way, a
/// list that grows without end.
#[test]
fn amounts_are_added_up_and_told_until_they_are_heard() {
    let mut stage = Stage::new();
    let LoanOf::Units(which, bucket) = stage.units(1).of else { panic!() };
    let change = |whose, units| LoanChange { whose, bucket: (which, bucket), units };
    for units in [5, -2, -7] {
        assert!(stage.ledger.owe(&change(stage.whose, units)));
    }
    assert_eq!(stage.owed(), [-4]);
    let number = stage.ledger.number;
    assert!(stage.ledger.owe(&change(stage.whose, 9)));
    assert_eq!((stage.owed(), stage.ledger.number), (vec![-4], number), "it was not heard");
    stage.ledger.heard(&[], stage.now);
    assert_eq!(stage.owed(), [9]);
    assert_ne!(stage.ledger.number, number);
    stage.ledger.heard(&[], stage.now);
    assert!(stage.owed().is_empty());
    let other = |n: u128| Counted { id: n, ..stage.whose };
    for n in 0..LOANS_RETURNED_MAX as u128 {
        assert!(stage.ledger.owe(&change(other(n), 1)));
    }
    let beyond = change(other(u128::MAX), 1);
    assert!(!stage.ledger.owe(&beyond) && stage.ledger.owe(&change(other(3), 1)));
    assert_eq!(stage.owed().len(), LOANS_TOLD_MAX);
}

/// Catches: slots that expire on the server while they are in use, that stay there when they are
/// not, and a server that is told of each of them each time.
#[test]
fn slots_are_told_when_they_change_and_before_they_expire() {
    let mut stage = Stage::new();
    let whose = stage.whose;
    assert_eq!(stage.tell(&[whose, whose]), [0]);
    for _ in 0..2 {
        stage.book.lend_slot(&whose);
        stage.ledger.lent(&stage.slot(), 0, stage.now);
    }
    assert_eq!(stage.tell(&[]), [0; 0], "it knows that it lent them");
    stage.now += LOANED_SLOTS_TOLD_EVERY;
    assert_eq!((stage.tell(&[]), stage.tell(&[])), (vec![2], vec![]));
    stage.book.leave(&whose);
    stage.ledger.sweep(&stage.book, stage.now);
    assert_eq!(stage.tell(&[]), [1]);
    // Nobody knows what became of a call that was not answered.
    stage.ledger.slots_to_tell(&stage.book, [whose].into_iter(), stage.now);
    assert_eq!(stage.tell(&[]), [1]);
    stage.book.leave(&whose);
    stage.ledger.sweep(&stage.book, stage.now);
    assert!(!stage.ledger.is_quiet());
    assert_eq!((stage.tell(&[]), stage.ledger.is_quiet()), (vec![0], true));
}

/// Catches: slots of running requests that are never told of because others come first each time,
/// so that the server takes them for free.
#[test]
fn slots_that_find_no_room_in_a_call_are_told_with_the_next() {
    const BEYOND: usize = 100;
    let (changes, _changed) = bounded(8);
    let table = Counters::anonymous(4096, 16, 1).unwrap();
    let book = LoanBook::new(8192, changes).unwrap();
    let (mut ledger, began) = (Ledger::new(LEASE), Instant::now());
    for n in 1..=(LOANS_TOLD_MAX + BEYOND) as u128 {
        let id = n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let (place, is_own) = table.find(id, TablePart::Known, 1);
        assert!(is_own);
        let whose = Counted::new(id, TablePart::Known, place);
        book.lend_slot(&whose);
        ledger.lent(&LoanItem { whose, of: LoanOf::Slot(5), units: 1 }, 0, began);
    }
    let now = began + LOANED_SLOTS_TOLD_EVERY;
    let mut tell = || {
        let told = ledger.slots_to_tell(&book, [].into_iter(), now);
        ledger.heard(&told, now);
        (told.len(), ledger.has_more())
    };
    assert_eq!(tell(), (LOANS_TOLD_MAX, true));
    assert_eq!(tell(), (BEYOND, false));
    assert_eq!(tell(), (0, false));
}
