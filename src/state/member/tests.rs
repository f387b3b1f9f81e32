use super::*;
use crate::base::fault::Fault;
use crate::state::repute::BodyForm;

/// Catches: a backend that gets nothing when it comes back, or all at once; one that starts
/// slowly with the process, when all others do the same.
#[test]
fn the_weight_of_one_that_came_grows_evenly_from_a_tenth() {
    for (age, percent) in
        [(0, 10), (1, 10), (100, 40), (150, 55), (299, 99), (300, 100), (u32::MAX, 100)]
    {
        assert_eq!(started(age, 300), percent, "{age}");
    }
    assert_eq!(started(0, 0), 10, "shorter than can be told");
    let plan = |slow_start| Backend { slow_start, weight: 3, ..Backend::sample("engine") };
    let slow = Member::new(plan(Duration::from_secs(3600)), None);
    let at = |seconds| now().plus(Duration::from_secs(seconds));
    assert_eq!(slow.weight_at(now), 300, "from the start");
    slow.set_passes_probes(false);
    slow.set_passes_probes(true);
    assert_eq!(slow.weight_at(now), 30, "it is back");
    // An hour is so long that it does not matter how busy this machine is.
    let half = slow.weight_at(|| at(1800));
    assert!((162..=168).contains(&half), "{half}");
    assert_eq!(slow.weight_at(|| at(3601)), 300);
    let at_once = slow.renewed(plan(Duration::ZERO), None);
    assert_eq!(at_once.weight_at(now), 300, "without slow_start");
}

/// Catches: an engine that was away for long, that probes find well again, and that still waits for
/// the end of an ejection of a minute; one that gets all requests at once.
#[test]
fn one_that_probes_find_well_again_is_tried_by_the_next_request() {
    let member = Member::new(Backend::sample("engine"), None);
    let eject = || {
        let refused = Evidence::NoConnection(Fault::ConnectFailed);
        (0..3).filter(|_| member.hear(refused).is_some()).count()
    };
    assert_eq!(eject(), 1);
    assert!(!member.admit(), "its time is not over");
    // That they found it well all the time says nothing.
    member.set_passes_probes(true);
    assert!(!member.admit());
    member.set_passes_probes(false);
    member.set_passes_probes(true);
    assert!(!member.is_healthy());
    assert_eq!((member.admit(), member.admit()), (true, false), "one at a time");
    assert_eq!(member.hear(Evidence::Good), Some(Change::Back));
}

/// Catches: generations that are called off because their engine is full, or because it answers
/// others with errors; requests that wait for one that is gone.
#[test]
fn only_what_is_as_good_as_dead_loses_those_who_wait_there() {
    for (evidence, losses) in [
        (Evidence::BadGateway(503), 0),
        (Evidence::BadInside(BodyForm::Whole, 500), 0),
        (Evidence::NoAnswer(Fault::BackendClosed), 1),
        (Evidence::NoConnection(Fault::ConnectFailed), 1),
    ] {
        let member = Member::new(Backend::sample("engine"), None);
        let ejected = (0..5).filter(|_| member.hear(evidence).is_some()).count();
        assert_eq!((ejected, member.departures(), member.losses()), (1, 1, losses), "{evidence:?}");
        // An answer to what was asked for before that changes nothing.
        assert_eq!(member.hear_good(|| Duration::from_secs(3600)), None);
        assert!(!member.is_healthy());
    }
    let member = Member::new(Backend::sample("engine"), None);
    member.set_passes_probes(false);
    assert_eq!((member.departures(), member.losses()), (1, 1));
}

/// Catches: a count that two workers lose when they count at the same moment.
#[test]
fn no_more_enter_than_may_however_many_try_at_once() {
    let plan = Backend { max_concurrent: 7, ..Backend::sample("engine") };
    let member = Member::new(plan, None);
    let most = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    if member.enter() {
                        most.fetch_max(member.inflight(), Ordering::Relaxed);
                        member.leave();
                    }
                }
            });
        }
    });
    assert_eq!(member.inflight(), 0);
    assert!((1..=7).contains(&most.into_inner()));
    assert_eq!((0..9).filter(|_| member.enter()).count(), 7);
    assert!(member.is_full());
}
