use super::*;
use crate::config::plan::Limits;
use crate::state::counters::quota::QuotaWindow;
use crate::state::counters::table::TablePart;
use crate::state::loans::{LoanChange, Loaned};
use std::time::Duration;

mod model;

fn buckets(per_minute: u32, tokens: u64, concurrent: u32) -> Buckets {
    Buckets::from(&Limits {
        requests_per_minute: Some(per_minute),
        tokens_per_minute: Some(tokens),
        max_concurrent: Some(concurrent),
        ..Limits::default()
    })
}

struct Stage(Arc<Counters>, Instant);

impl Stage {
    fn new() -> Stage {
        Stage(Arc::new(Counters::anonymous(16, 16, 1).unwrap()), Instant::now())
    }

    /// A request that is held to these limits.
    fn request(&self, limits: &[(Scope, Buckets)]) -> Takings {
        let mut takings = Takings::default();
        takings.begin(&self.0);
        for (scope, buckets) in limits {
            let id = 7 << 70 | (*scope as u128) << 90;
            let (place, _) = self.0.find(id, TablePart::Known, self.0.at(self.1));
            takings.add(*scope, Counted::new(id, TablePart::Known, place), *buckets);
        }
        takings
    }

    fn left(&self, limits: &[(Scope, Buckets)]) -> [u64; 2] {
        let takings = self.request(limits);
        takings.levels(self.1).map(|level| level.map_or(0, |level| level.left))
    }
}

/// Catches: a limit that keeps what a later one refused, a slot that stays taken.
#[test]
fn what_a_later_limit_refuses_the_earlier_ones_get_back() {
    let table = Stage::new();
    let (wide, narrow) = ((Scope::Global, buckets(10, 1000, 5)), (Scope::Key, buckets(2, 100, 5)));
    let both = [wide, narrow];
    let (mut one, mut two) = (table.request(&both), table.request(&both));
    one.take_request(table.1).unwrap();
    two.take_request(table.1).unwrap();
    let refused = table.request(&both).take_request(table.1).unwrap_err();
    assert!(matches!(refused, Limited::Rate(Scope::Key, LimitKind::PerMinute, _)));
    assert_eq!(table.left(&[wide]), [8, 1000]);
    one.take_tokens(table.1, 60).unwrap();
    // Tokens are refused after the request was taken: it is as if it had never been here.
    let refused = two.take_tokens(table.1, 60).unwrap_err();
    assert!(matches!(refused, Limited::Rate(Scope::Key, LimitKind::Tokens, _)));
    assert_eq!((table.left(&[wide]), table.left(&[narrow])), ([9, 940], [1, 40]));
    one.settle(table.1, 25);
    drop(two);
    assert_eq!((table.left(&[wide]), table.left(&[narrow])), ([9, 975], [1, 75]));
}

/// Catches: a slot that is not freed, or twice, by any end of a request.
#[test]
fn a_slot_is_freed_once() {
    let table = Stage::new();
    let limits = [(Scope::Key, buckets(100, 1000, 1))];
    let ends: [fn(&mut Takings, Instant); 4] = [
        |takings, now| takings.settle(now, 5),
        |takings, _| takings.leave(),
        |takings, now| {
            takings.leave();
            takings.settle(now, 5);
        },
        |takings, _| drop(std::mem::take(takings)),
    ];
    for end in ends {
        let mut first = table.request(&limits);
        first.take_request(table.1).unwrap();
        let refused = table.request(&limits).take_request(table.1).unwrap_err();
        assert_eq!(refused, Limited::Concurrent(Scope::Key));
        end(&mut first, table.1);
        let mut second = table.request(&limits);
        second.take_request(table.1).unwrap();
        drop(first);
        let refused = table.request(&limits).take_request(table.1).unwrap_err();
        assert_eq!(refused, Limited::Concurrent(Scope::Key), "the second one is still there");
    }
}

/// Catches: tokens of a request that nobody settled, and that stay taken; a refusal that does not
/// name the longest wait.
#[test]
fn what_nobody_settles_is_given_back() {
    let table = Stage::new();
    let limits = [(Scope::Global, buckets(60, 600, 9)), (Scope::User, buckets(60, 60, 9))];
    let mut request = table.request(&limits);
    request.take_request(table.1).unwrap();
    request.take_tokens(table.1, 60).unwrap();
    let mut other = table.request(&limits);
    other.take_request(table.1).unwrap();
    match other.take_tokens(table.1, 600).unwrap_err() {
        Limited::Rate(Scope::User, LimitKind::Tokens, wait) => assert_eq!(wait.seconds(), 60),
        limited => panic!("{limited:?}"),
    }
    drop(request);
    assert_eq!(table.left(&limits), [59, 60]);
    let later = table.1 + Duration::from_secs(1);
    assert_eq!(table.request(&limits).levels(later)[0].unwrap().left, 60);
}

/// Catches: tokens that are debited twice, a reservation that outlives its request, events that
/// nobody reserved anything for.
#[test]
fn a_quota_is_debited_once_and_what_was_reserved_ends() {
    let stage = Stage::new();
    let terms = QuotaTerms { window: QuotaWindow::new(1, 5), total: 100, first: 10 };
    let (place, _) = stage.0.find(9 << 90, TablePart::Known, stage.0.at(stage.1));
    let quota = stage.0.quota(place).unwrap();
    let now = || (quota.used(terms), quota.reserved());
    let mut request = stage.request(&[]);
    assert!(request.reserve_quota(place, terms, (5, 60), false));
    assert_eq!(now(), (10, 60));
    assert!(!stage.request(&[]).reserve_quota(place, terms, (5, 31), false));
    assert!(request.see(40));
    assert_eq!(now(), (10, 60), "it was reserved");
    assert!(request.see(70));
    assert_eq!(now(), (10, 75));
    request.debit(20);
    request.debit(20);
    assert_eq!(now(), (30, 55));
    request.debit(15);
    assert_eq!(now(), (25, 55));
    request.settle(stage.1, 15);
    assert_eq!(now(), (25, 0));
    let mut dropped = stage.request(&[]);
    assert!(dropped.reserve_quota(place, terms, (5, 75), false));
    drop(dropped);
    assert_eq!(now(), (25, 0));
}

/// Catches: a stream that goes on beyond a quota that is to hold, one that is cut while others have
/// left it room, what was said and is not counted.
#[test]
fn a_hard_quota_gives_no_more_than_it_has() {
    let stage = Stage::new();
    let terms = QuotaTerms { window: QuotaWindow::new(1, 5), total: 100, first: 10 };
    let (place, _) = stage.0.find(9 << 90, TablePart::Known, stage.0.at(stage.1));
    let quota = stage.0.quota(place).unwrap();
    let (mut one, mut other) = (stage.request(&[]), stage.request(&[]));
    assert!(one.reserve_quota(place, terms, (5, 20), true));
    assert!(other.reserve_quota(place, terms, (5, 50), true));
    assert!(one.see(35), "10 used, 50 of the other's, 40 of its own");
    assert!(!one.see(36) && quota.reserved() == 91, "what was said is said");
    drop(other);
    assert!(one.see(40), "the other one is gone");
    assert!(!one.see(500), "more than a whole quota");
    drop(one);
    assert_eq!((quota.used(terms), quota.reserved()), (10, 0));
}

/// What a request has told the server that lends.
fn told(changed: &crossbeam_channel::Receiver<LoanChange>) -> Vec<(usize, i64)> {
    changed.try_iter().map(|change| (change.bucket.0, change.units)).collect()
}

/// Catches: what is borrowed twice for one request, kept by one that was refused, or not told when
/// it turns out to be another amount; a slot that stays in use.
#[test]
fn what_is_borrowed_goes_the_way_of_what_is_taken() {
    let table = Stage::new();
    let (changes, changed) = crossbeam_channel::bounded(16);
    let book = Arc::new(LoanBook::new(32, changes).unwrap());
    let limits = [(Scope::Key, buckets(10, 1000, 5))];
    let mut one = table.request(&limits);
    one.take_request(table.1).unwrap();
    one.borrow(&book);
    assert!(one.has_to_ask());
    let wanted = one.take_wanted();
    let kinds: Vec<_> = wanted.iter().map(|item| (item.of.number(), item.units)).collect();
    assert_eq!((kinds, one.has_to_ask()), (vec![(1, 1), (3, 1)], false));
    // As the thread does that has asked.
    book.lend_slot(&wanted[1].whose);
    one.accept(Loaned::new(&book, wanted.clone()));
    one.take_tokens(table.1, 60).unwrap();
    book.fill(&wanted[0].whose, 2, 100);
    one.borrow(&book);
    assert!(!one.has_to_ask(), "it is at hand");
    one.settle(table.1, 25);
    assert_eq!((told(&changed), book.shrink_slots(&wanted[0].whose)), (vec![(2, -35)], 0));
    // One that is refused, here or there, and one whose asker has left.
    let mut two = table.request(&limits);
    two.take_request(table.1).unwrap();
    book.lend_slot(&wanted[1].whose);
    two.accept(Loaned::new(&book, wanted.clone()));
    two.take_tokens(table.1, 10).unwrap();
    two.borrow(&book);
    let limited = two.refuse(Some(&wanted[0]), Wait(5));
    assert_eq!(limited, Some(Limited::Rate(Scope::Key, LimitKind::PerMinute, Wait(5))));
    assert_eq!(told(&changed), [(1, -1), (2, -10)]);
    book.lend_slot(&wanted[1].whose);
    drop(Loaned::new(&book, wanted.clone()));
    assert_eq!((told(&changed), book.shrink_slots(&wanted[0].whose)), (vec![(1, -1)], 0));
    assert_eq!(table.left(&limits), [9, 975], "here too");
}
