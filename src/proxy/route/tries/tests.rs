use super::*;
use crate::base::fault::EarlyClose;
use crate::base::limits::RETRIES_MAX;
use crate::base::tls_fault::TlsFault;
use crate::config::plan::Backend;
use crate::state::member::Member;
use proptest::prelude::*;
use Further::{Again, Other, Wait};
use TryEnd::{Failed, Status, WishRefused};

fn id() -> MemberId {
    Member::new(Backend::sample("engine"), None).id()
}

const SECOND: Duration = Duration::from_secs(1);

type Pick = fn(&TriedMembers) -> Option<&'static str>;

/// Nobody else can be asked.
const NOBODY: Pick = |_| None;

/// Of a request that is in hand, with somebody else to ask.
fn attempt(end: TryEnd) -> Attempt<Pick> {
    Attempt {
        end,
        is_in_hand: true,
        other: |_| Some("other"),
        has_budget: true,
        elapsed: Duration::ZERO,
        spread: 0.0,
    }
}

fn retry(max_retries: u32, retry_on: &[RetryOn]) -> Retry {
    Retry {
        max_retries,
        initial_wait: SECOND,
        max_wait: 10 * SECOND,
        multiplier: 2.0,
        timeout: 300 * SECOND,
        retry_on: retry_on.to_vec(),
    }
}

const NOTHING_SAID: Policy<'static> = Policy { retry: None, rule: None };

/// All faults of a try, and what is done where the configuration says nothing; `None`: nothing.
const FAULTS: [(Fault, Option<Further<&'static str>>); 17] = [
    (Fault::Unresolved, Some(Other("other"))),
    (Fault::ConnectFailed, Some(Other("other"))),
    (Fault::ConnectTimeout, Some(Other("other"))),
    (Fault::TlsFailed(TlsFault::Other), Some(Other("other"))),
    (Fault::BackendEjected, Some(Other("other"))),
    (Fault::BackendLoading, Some(Other("other"))),
    (Fault::BackendLoops, Some(Other("other"))),
    (Fault::ReuseRace, Some(Again)),
    (Fault::BackendClosed, None),
    (Fault::BackendClosedReused, None),
    (Fault::FirstByteTimeout, None),
    (Fault::ForeignAnswer, None),
    (Fault::BadResponse("x"), None),
    (Fault::ClientLeft, None),
    (Fault::ClientWriteTimeout, None),
    (Fault::QuotaExhausted, None),
    (Fault::ShuttingDown, None),
];

/// Catches: a request that an engine may have worked on sent twice unasked, and one given up though
/// no engine ever saw it.
#[test]
fn what_follows_a_first_try_where_nothing_is_configured() {
    for (fault, further) in FAULTS {
        let mut tries = Tries::begin(id(), 0);
        let unsent = Attempt { is_in_hand: false, ..attempt(Failed(fault)) };
        assert_eq!(tries.next(unsent, &NOTHING_SAID), None, "what is not in hand is not sent");
        let alone = Attempt { other: NOBODY, has_budget: false, ..attempt(Failed(fault)) };
        let again = further.filter(|further| *further == Again);
        assert_eq!(Tries::begin(id(), 0).next(alone, &NOTHING_SAID), again, "{fault:?}");
        let broke = Attempt { has_budget: false, ..attempt(Failed(fault)) };
        assert_eq!(tries.next(broke, &NOTHING_SAID), further, "{fault:?}");
        assert_eq!(tries.is_fresh(), fault == Fault::ReuseRace, "{fault:?}");
    }
    for status in [200, 400, 429, 500, 502, 503, 504] {
        assert_eq!(Tries::begin(id(), 0).next(attempt(Status(status, None)), &NOTHING_SAID), None);
    }
    let mut tries = Tries::begin(id(), 0);
    assert_eq!(tries.next(attempt(WishRefused), &NOTHING_SAID), Some(Again));
    assert!(!tries.is_fresh());
}

/// Catches: another backend that is picked, and counted as one that has had the request, for a try
/// that is never made.
#[test]
fn nobody_is_picked_for_a_try_that_is_not_made() {
    let retry = retry(3, &[RetryOn::ServerError]);
    let configured = Policy { retry: Some(&retry), rule: None };
    let unasked = || unreachable!("nobody is to be asked");
    let not_made = |end| Attempt {
        end,
        is_in_hand: true,
        other: |_: &TriedMembers| -> Option<()> { unasked() },
        has_budget: true,
        elapsed: Duration::ZERO,
        spread: 0.0,
    };
    for policy in [&NOTHING_SAID, &configured] {
        for end in [Fault::ClientLeft, Fault::ShuttingDown].map(Failed) {
            assert_eq!(Tries::begin(id(), 0).next(not_made(end), policy), None, "{end:?}");
        }
        for end in [Failed(Fault::ReuseRace), WishRefused] {
            assert_eq!(Tries::begin(id(), 0).next(not_made(end), policy), Some(Again), "{end:?}");
        }
    }
    let late = Attempt { elapsed: retry.timeout, ..not_made(Status(500, None)) };
    assert_eq!(Tries::begin(id(), 0).next(late, &configured), None);
    let unsent = Attempt { is_in_hand: false, ..not_made(Failed(Fault::ConnectFailed)) };
    assert_eq!(Tries::begin(id(), 0).next(unsent, &configured), None);
}

type Next = Option<Further<&'static str>>;

/// Of each way in which a connection may close before an answer: whether it was kept, all of the
/// request was sent, something was heard, and it closed at once. What it is called; and what is
/// done where nothing is configured, and where `retry_on` names 502.
const CLOSES: [([u8; 4], Fault, Next, Next); 16] = [
    // A connection that was made for the request: the engine had it.
    ([0, 0, 0, 0], Fault::BackendClosed, None, Some(Other("other"))),
    ([0, 0, 0, 1], Fault::BackendClosed, None, Some(Other("other"))),
    ([0, 0, 1, 0], Fault::BackendClosed, None, Some(Other("other"))),
    ([0, 0, 1, 1], Fault::BackendClosed, None, Some(Other("other"))),
    ([0, 1, 0, 0], Fault::BackendClosed, None, Some(Other("other"))),
    ([0, 1, 0, 1], Fault::BackendClosed, None, Some(Other("other"))),
    ([0, 1, 1, 0], Fault::BackendClosed, None, Some(Other("other"))),
    ([0, 1, 1, 1], Fault::BackendClosed, None, Some(Other("other"))),
    // Half a request is none.
    ([1, 0, 0, 0], Fault::ReuseRace, Some(Again), Some(Again)),
    ([1, 0, 0, 1], Fault::ReuseRace, Some(Again), Some(Again)),
    ([1, 0, 1, 0], Fault::ReuseRace, Some(Again), Some(Again)),
    ([1, 0, 1, 1], Fault::ReuseRace, Some(Again), Some(Again)),
    // All of it, and silence: either the engine was about to close, or it has worked.
    ([1, 1, 0, 0], Fault::BackendClosedReused, None, Some(Other("other"))),
    ([1, 1, 0, 1], Fault::ReuseRace, Some(Again), Some(Again)),
    // All of it, and a word.
    ([1, 1, 1, 0], Fault::BackendClosed, None, Some(Other("other"))),
    ([1, 1, 1, 1], Fault::BackendClosed, None, Some(Other("other"))),
];

/// Catches: a request that an engine may have worked on taken for one that it never saw, and the
/// other way round; one that is sent again though it is not in hand, or twice to the same backend.
#[test]
fn what_follows_a_connection_that_closed() {
    let retry = retry(3, &[RetryOn::Status(502)]);
    let configured = Policy { retry: Some(&retry), rule: None };
    for ([is_reused, sent_whole, heard, at_once], fault, unasked, asked) in CLOSES {
        let close = EarlyClose {
            is_reused: is_reused == 1,
            sent_whole: sent_whole == 1,
            heard: heard == 1,
            at_once: at_once == 1,
        };
        assert_eq!(close.fault(), fault, "{close:?}");
        for (policy, further) in [(&NOTHING_SAID, unasked), (&configured, asked)] {
            let next = |attempt| Tries::begin(id(), 0).next(attempt, policy);
            assert_eq!(next(attempt(Failed(fault))), further, "{close:?}");
            let released = Attempt { is_in_hand: false, ..attempt(Failed(fault)) };
            assert_eq!(next(released), None, "{close:?}");
            // A budget is for what an engine may have worked on.
            let broke = Attempt { has_budget: false, ..attempt(Failed(fault)) };
            assert_eq!(next(broke), further.filter(|further| *further == Again), "{close:?}");
            // Nobody else is there: the same again, or in a while.
            let alone = Attempt { other: NOBODY, ..attempt(Failed(fault)) };
            let waits = further.map(|further| if further == Again { Again } else { Wait(SECOND) });
            assert_eq!(next(alone), waits, "{close:?}");
        }
    }
}

/// Catches: a status that is passed on though it is to be retried, and one that is not; a fault
/// that goes by another status than the client would see.
#[test]
fn what_is_retried_because_it_is_configured() {
    use RetryOn::{ConnectFailure, ServerError, Timeout};
    let on = |retry_on: &[RetryOn], end| {
        let retry = retry(3, retry_on);
        let policy = Policy { retry: Some(&retry), rule: None };
        let further = Tries::begin(id(), 0).next(attempt(end), &policy);
        assert!(matches!(further, None | Some(Other("other"))), "{end:?}");
        let broke = Attempt { has_budget: false, ..attempt(end) };
        let is_safe = matches!(end, Failed(fault) if fault.retry() == Retryable::Any);
        assert_eq!(Tries::begin(id(), 0).next(broke, &policy).is_some(), is_safe, "{end:?}");
        further.is_some()
    };
    let statuses = |retry_on: &[RetryOn]| {
        let all = [400, 429, 500, 502, 503, 504, 599].into_iter();
        all.filter(|status| on(retry_on, Status(*status, None))).collect::<Vec<_>>()
    };
    assert_eq!(statuses(&[ConnectFailure]), [0; 0]);
    assert_eq!(statuses(&[RetryOn::Status(503), RetryOn::Status(429)]), [429, 503]);
    assert_eq!(statuses(&[ServerError]), [500, 502, 503, 504, 599]);
    assert_eq!(statuses(&[Timeout]), [504]);
    for (fault, _) in FAULTS {
        let is_safe = fault.retry() == Retryable::Any;
        let is_backend = fault.side() == Side::Backend && fault.retry() == Retryable::Never;
        for (retry_on, status) in [(RetryOn::Status(502), 502), (Timeout, 504)] {
            let is_covered = is_backend && fault.refusal().status == status;
            if fault != Fault::ReuseRace {
                assert_eq!(on(&[retry_on], Failed(fault)), is_safe || is_covered, "{fault:?}");
            }
        }
    }
    assert!(on(&[RetryOn::Status(502)], Failed(Fault::BackendClosed)));
    assert!(on(&[Timeout], Failed(Fault::FirstByteTimeout)));
}

/// Catches: a backend that closes each connection, and is asked for ever; one whose fresh
/// connection is denied to it because another backend had one.
#[test]
fn a_fresh_connection_is_tried_once_at_each_backend() {
    let mut tries = Tries::begin(id(), 0);
    for _ in 0..2 {
        assert!(!tries.is_fresh());
        let raced = attempt(Failed(Fault::ReuseRace));
        assert_eq!(tries.next(raced, &NOTHING_SAID), Some(Again));
        assert_eq!(tries.next(attempt(WishRefused), &NOTHING_SAID), Some(Again));
        assert!(tries.is_fresh());
        assert_eq!(tries.next(raced, &NOTHING_SAID), None);
        tries.move_to(id());
    }
    assert!(tries.is_fallback());
}

/// How often a request whose tries all end so is sent, and when.
fn sent(policy: &Policy, end: TryEnd, backends: usize) -> (u32, Vec<Duration>) {
    let backends: Vec<_> = (0..backends).map(|_| id()).collect();
    let mut tries = Tries::begin(backends[0], 0);
    let (mut sent, mut elapsed, mut waits) = (1, Duration::ZERO, Vec::new());
    let mut last = backends[0];
    loop {
        let other =
            |tried: &TriedMembers| backends.iter().copied().find(|other| !tried.contains(*other));
        let tried =
            Attempt { end, is_in_hand: true, other, has_budget: true, elapsed, spread: 0.0 };
        match tries.next(tried, policy) {
            Some(Other(other)) => {
                tries.move_to(other);
                last = other;
            }
            Some(Wait(wait)) => {
                waits.push(wait);
                elapsed += wait;
                tries.begin_anew();
                // Somebody else if there is one.
                last = backends.iter().copied().find(|other| *other != last).unwrap_or(last);
                tries.move_to(last);
            }
            Some(Again) => panic!("{end:?}"),
            None => return (sent, waits),
        }
        sent += 1;
        assert!(sent < 200);
    }
}

/// Catches: a request that goes round a dead fleet for ever; a wait before somebody who was not
/// asked yet; waits that do not grow, or grow for ever.
#[test]
fn others_come_first_and_waits_grow() {
    let refused = Failed(Fault::ConnectFailed);
    assert_eq!(sent(&NOTHING_SAID, refused, 9), (CONNECT_TRIES_MAX as u32, vec![]));
    assert_eq!(sent(&NOTHING_SAID, refused, 2), (2, vec![]));
    let seven = retry(7, &[RetryOn::Status(503)]);
    let policy = Policy { retry: Some(&seven), rule: None };
    let seconds = |all: &[u32]| all.iter().map(|s| *s * SECOND).collect::<Vec<_>>();
    assert_eq!(sent(&policy, refused, 3), (8, seconds(&[1, 2])));
    assert_eq!(sent(&policy, refused, 9), (8, vec![]), "more than are remembered at hand");
    let most = retry(RETRIES_MAX, &[RetryOn::Status(503)]);
    let most = Policy { retry: Some(&most), rule: None };
    assert_eq!(sent(&most, refused, 200), (RETRIES_MAX + 1, vec![]));
    assert_eq!(sent(&most, refused, 100), (RETRIES_MAX + 1, seconds(&[1])));
    // That costs engines nothing which nobody reached.
    let mut tries = Tries::begin(id(), 0);
    let alone = Attempt { other: NOBODY, has_budget: false, ..attempt(refused) };
    assert_eq!(tries.next(alone, &policy), Some(Wait(SECOND)));
    let full = Attempt { end: Status(503, None), ..alone };
    assert_eq!(tries.next(full, &policy), None);
    assert_eq!(sent(&policy, Status(503, None), 1), (8, seconds(&[1, 2, 4, 8, 10, 10, 10])));
    assert_eq!(sent(&policy, Status(500, None), 1), (1, vec![]));
    let none = retry(0, &[RetryOn::Status(503)]);
    let none = Policy { retry: Some(&none), rule: None };
    assert_eq!(sent(&none, Status(503, None), 3), (1, vec![]));
    assert_eq!(sent(&none, refused, 5), (CONNECT_TRIES_MAX as u32, vec![]), "as without it");
    let many = retry(100, &[]);
    assert_eq!(sent(&Policy { retry: Some(&many), rule: None }, refused, 50).0, 101);
}

/// Catches: a client that waits for longer than it was told; an engine that is asked before it
/// wants to be.
#[test]
fn a_wish_for_later_is_heeded_or_passed_on_and_there_is_one_deadline() {
    let retry = Retry { timeout: 12 * SECOND, ..retry(9, &[RetryOn::Status(503)]) };
    let policy = Policy { retry: Some(&retry), rule: None };
    assert_eq!(
        sent(&policy, Status(503, Some(3 * SECOND)), 1).1,
        [3, 3, 4].map(|s: u32| s * SECOND)
    );
    assert_eq!(sent(&policy, Status(503, Some(11 * SECOND)), 1), (1, vec![]), "over max_wait");
    assert_eq!(sent(&policy, Status(503, Some(11 * SECOND)), 2), (2, vec![]), "others may do");
    // The longest wish of a round counts, whoever had it.
    let mut tries = Tries::begin(id(), 0);
    assert_eq!(tries.next(attempt(Status(503, Some(9 * SECOND))), &policy), Some(Other("other")));
    let last = Attempt { other: NOBODY, elapsed: SECOND, ..attempt(Status(503, None)) };
    assert_eq!(tries.next(last, &policy), Some(Wait(8 * SECOND)));
    let late = Attempt { elapsed: 12 * SECOND, ..attempt(Failed(Fault::ConnectFailed)) };
    assert_eq!(Tries::begin(id(), 0).next(late, &policy), None);
}

/// Catches: a rule that is not used unless retries are configured, one that is used for others'
/// faults, and one whose own number of tries is not heeded.
#[test]
fn a_rule_brings_its_own_tries() {
    let rule = |retry| Fallback {
        primary: "a".into(),
        fallback: vec!["b".into(), "c".into()],
        models: Vec::new(),
        retry,
    };
    let (plain, one) = (rule(None), rule(Some(1)));
    let alone = Policy { retry: None, rule: Some(&plain) };
    assert_eq!(sent(&alone, Status(503, None), 9).0, 3);
    assert_eq!(sent(&alone, Failed(Fault::BackendClosed), 9).0, 3);
    assert_eq!(sent(&alone, Status(500, None), 9).0, 1);
    assert_eq!(sent(&Policy { rule: Some(&one), ..alone }, Status(503, None), 9).0, 2);
    let empty = Fallback { fallback: Vec::new(), ..rule(None) };
    let refused = Failed(Fault::ConnectFailed);
    assert_eq!(sent(&Policy { rule: Some(&empty), ..alone }, refused, 9).0, 3);
    let retry = retry(5, &[RetryOn::Status(500)]);
    let both = Policy { retry: Some(&retry), rule: Some(&plain) };
    assert_eq!(sent(&both, Status(500, None), 9).0, 6);
    assert_eq!(sent(&Policy { rule: Some(&one), ..both }, Status(500, None), 9).0, 2);
}

/// Catches: another backend that is said to have answered where the first one did.
#[test]
fn who_comes_back_to_the_first_has_not_fallen_back() {
    let (first, second) = (id(), id());
    let mut tries = Tries::begin(first, 0);
    assert!(tries.is_first() && !tries.is_fallback());
    tries.move_to(second);
    assert!(!tries.is_first() && tries.is_fallback());
    tries.begin_anew();
    tries.move_to(first);
    assert!(!tries.is_first() && !tries.is_fallback());
}

/// Catches: a request that may not come back to a backend that it had tried before the one that was
/// taken from under it.
#[test]
fn a_move_begins_anew() {
    let (mut tries, last) = (Tries::begin(id(), 0), id());
    tries.move_to(id());
    tries.move_to(last);
    let ejected = attempt(Failed(Fault::BackendEjected));
    assert_eq!(tries.clone().next(ejected, &NOTHING_SAID), None);
    tries.call_off(last);
    assert_eq!(tries.next(ejected, &NOTHING_SAID), Some(Other("other")));
    assert!(tries.tried().len() == 1 && tries.is_fallback() && !tries.may_move());
}

proptest! {
    /// Catches: waits of many requests that end together, or are longer than configured.
    #[test]
    fn waits_are_spread(waits in 0u32..2000, spread in 0.0..1.0f64) {
        let retry = retry(3, &[]);
        let (wait, whole) = (retry.wait(waits, spread), retry.wait(waits, 0.0));
        prop_assert!(wait <= whole && 2 * wait >= whole - Duration::from_micros(1));
        prop_assert!(whole <= retry.max_wait && whole >= retry.initial_wait);
    }
}
