use super::*;
use proptest::prelude::*;

const REFUSED: Evidence = Evidence::NoConnection(Fault::ConnectFailed);
const SILENT: Evidence = Evidence::NoAnswer(Fault::FirstByteTimeout);
const STEP: u32 = EJECTION_STEP.as_secs() as u32 * 10;
const LONGEST: u32 = EJECTION_MAX.as_secs() as u32 * 10;

fn at(tenths: u32) -> Tenths {
    Tenths(tenths)
}

/// After so many times the same, all at one moment.
fn after(mut repute: Repute, times: u32, evidence: Evidence, now: u32) -> Repute {
    for _ in 0..times {
        repute = repute.hear(evidence, at(now), None, 0).0;
    }
    repute
}

/// Catches: one bad answer that ejects; failures that count although a good one stood between.
#[test]
fn only_failures_in_a_row_eject() {
    for (evidence, most) in [
        (REFUSED, FAILED_CONNECTS_MAX),
        (SILENT, FAILED_ANSWERS_MAX),
        (Evidence::BadGateway(502), FAILED_ANSWERS_MAX),
    ] {
        let nearly = after(Repute::default(), most - 1, evidence, 7);
        assert!(!nearly.is_out(), "{evidence:?}");
        let (well, change) = nearly.hear(Evidence::Good, at(7), None, 0);
        assert!(well.is_spotless() && change.is_none());
        assert!(!after(well, most - 1, evidence, 7).is_out());
        let (out, change) = nearly.hear(evidence, at(7), None, 0);
        assert_eq!((out.is_out(), change), (true, Some(Change::Ejected(EJECTION_STEP))));
    }
}

/// Catches: a client's mistake, or a full engine, taken for an illness.
#[test]
fn refusals_and_full_engines_are_no_illness() {
    for status in [200, 301, 400, 401, 404, 422, 429, 501, 505, 600] {
        for is_full in [false, true] {
            assert_eq!(Evidence::of_status(status, is_full), Evidence::Good, "{status}");
        }
    }
    for status in [500, 502, 503, 504, 508, 599] {
        assert_eq!(Evidence::of_status(status, false), Evidence::BadGateway(status));
        // Only of a 503 does it mean that there is no room; an ingress may put it on all it says.
        let is_good = Evidence::of_status(status, true) == Evidence::Good;
        assert_eq!(is_good, status == 503, "{status}");
    }
    assert_eq!(Evidence::of_fault(Fault::ClientLeft), None);
    assert_eq!(Evidence::of_fault(Fault::ReuseRace), None);
}

/// Catches: streams that tell of errors and eject nobody, since their heads, and what does not
/// stream, are good answers; one that comes back for as many failures as at first.
#[test]
fn errors_inside_streams_are_counted_apart() {
    let bad = Evidence::BadInside(BodyForm::Stream, 500);
    let mut repute = Repute::default();
    for _ in 1..FAILED_ANSWERS_MAX {
        repute = repute.hear(bad, at(1), None, 0).0;
        repute = repute.hear(Evidence::Good, at(1), None, 0).0;
        assert!(!repute.is_out());
    }
    let (well, change) = repute.hear(Evidence::GoodInside(BodyForm::Stream), at(1), None, 0);
    assert!(well.is_spotless() && change.is_none(), "a good stream forgets them");
    // Nor do they forget what others are counted for.
    let failing = after(Repute::default(), FAILED_ANSWERS_MAX - 1, Evidence::BadGateway(502), 1);
    let failing = failing
        .hear(bad, at(1), None, 0)
        .0
        .hear(Evidence::GoodInside(BodyForm::Stream), at(1), None, 0)
        .0;
    assert!(failing.hear(Evidence::BadGateway(502), at(1), None, 0).0.is_out());
    // Those that are no streams are in a row of their own, which good streams do not end.
    let whole = Evidence::BadInside(BodyForm::Whole, 500);
    let mixed = after(repute, FAILED_ANSWERS_MAX - 1, whole, 1);
    let mixed = mixed.hear(Evidence::GoodInside(BodyForm::Stream), at(1), None, 0).0;
    assert!(!mixed.is_out() && mixed.hear(whole, at(1), None, 0).0.is_out());
    let (out, change) = repute.hear(bad, at(1), None, 0);
    assert_eq!(change, Some(Change::Ejected(EJECTION_STEP)));
    // The head of the stream that tries it brings it back; its error ejects it again.
    let tried = out.admit(at(1 + STEP), 0, EJECTION_MAX).0;
    let (back, change) = tried.hear(Evidence::Good, at(1 + STEP), None, 0);
    assert_eq!(change, Some(Change::Back));
    let (_, change) = back.hear(bad, at(2 + STEP), None, 0);
    assert_eq!(change, Some(Change::Ejected(2 * EJECTION_STEP)));
}

/// Catches: an engine that is ejected because some wait long while others get their tokens.
#[test]
fn a_backend_that_streams_is_alive() {
    let mut repute = Repute::default();
    let fresh = Some(at(1000));
    for _ in 0..2 * FAILED_ANSWERS_MAX {
        repute = repute.hear(SILENT, at(1010), fresh, 0).0;
    }
    assert!(!repute.is_out());
    let stale = 1000 + Tenths::of(STREAM_ALIVE).0 + 1;
    for _ in 0..FAILED_ANSWERS_MAX {
        repute = repute.hear(SILENT, at(stale), fresh, 0).0;
    }
    assert!(repute.is_out());
    // What it breaks off or says itself counts all the same.
    let broken = Evidence::NoAnswer(Fault::BackendClosed);
    assert_eq!(Repute::default().hear(broken, at(1010), fresh, 0).0.answers, 1);
}

/// Catches: a rush of requests to a backend that may still be dead; one that never gets another
/// chance, or whose pauses do not grow; a late failure that takes the scout's place.
#[test]
fn one_request_at_a_time_tries_and_the_pauses_grow() {
    let mut repute = after(Repute::default(), FAILED_CONNECTS_MAX, REFUSED, 0);
    let mut now = 0;
    for round in 1..20 {
        let pause = (STEP * round).min(LONGEST);
        // Others that were under way fail too, and nothing comes of it.
        assert_eq!(repute.hear(REFUSED, at(now), None, 0), (repute, None));
        assert!(!repute.admit(at(now + pause - 1), 0, EJECTION_MAX).1, "round {round}");
        now += pause;
        let (tried, may, _) = repute.admit(at(now), 0, EJECTION_MAX);
        assert!(may && tried.is_out(), "round {round}");
        assert!(!tried.admit(at(now), 0, EJECTION_MAX).1, "one at a time");
        let (out, change) = tried.hear(REFUSED, at(now), None, 0);
        let next = EJECTION_STEP * (round + 1);
        assert_eq!(change, Some(Change::StaysOut(next.min(EJECTION_MAX))));
        repute = out;
    }
    let (tried, _, _) = repute.admit(at(now + LONGEST), 0, EJECTION_MAX);
    let (back, change) = tried.hear(Evidence::Good, at(now + LONGEST), None, 0);
    assert_eq!((back.is_out(), change), (false, Some(Change::Back)));
}

/// Catches: an answer to what was asked for before an ejection, which ends that before it has
/// begun; one to what was asked for since, where so many are ejected that all are asked, and that
/// ends none.
#[test]
fn only_what_was_asked_since_brings_back() {
    for jitter in [0, 50, 100] {
        let mut out = after(Repute::default(), FAILED_CONNECTS_MAX - 1, REFUSED, 100);
        out = out.hear(REFUSED, at(100), None, jitter).0;
        for old in [Evidence::Good, Evidence::GoodSince(at(99)), Evidence::GoodSince(at(100))] {
            assert_eq!(out.hear(old, at(102), None, 0), (out, None), "{old:?}");
        }
        let (back, change) = out.hear(Evidence::GoodSince(at(101)), at(120), None, 0);
        assert_eq!((back.is_out(), change), (false, Some(Change::Back)), "{jitter}");
        let tried = out.admit(at(200), 0, EJECTION_MAX).0;
        let old = tried.hear(Evidence::GoodSince(at(198)), at(201), None, 0);
        assert_eq!(old, (tried, None), "it was asked before the one that tries it");
        let its = tried.hear(Evidence::GoodSince(at(200)), at(201), None, 0);
        assert_eq!(its.1, Some(Change::Back));
    }
}

/// Catches: a scout that is never answered and keeps the backend out for ever, or lets everybody
/// in; one that is given up sooner than its answer may begin; one whose client left and that costs
/// the backend its chance.
#[test]
fn a_scout_without_an_end_is_given_up() {
    let out = after(Repute::default(), FAILED_CONNECTS_MAX, REFUSED, 0);
    let patience = 5 * EJECTION_MAX;
    let (tried, _, _) = out.admit(at(STEP), 0, patience);
    let late = STEP + 5 * LONGEST;
    assert!(!tried.admit(at(late - 1), 0, patience).1);
    assert_eq!(tried.hear(Evidence::Good, at(late - 1), None, 0).1, Some(Change::Back));
    let (again, may, change) = tried.admit(at(late), 0, patience);
    assert_eq!((may, change), (false, Some(Change::StaysOut(2 * EJECTION_STEP))));
    assert!(again.admit(at(late + 2 * STEP), 0, EJECTION_MAX).1);
    assert!(tried.untried(at(STEP + 1)).admit(at(STEP + 1), 0, EJECTION_MAX).1);
    assert_eq!(out.untried(at(1)), out, "nobody tries: the pause is not cut short");
}

/// Catches: a backend that fails again and again for the same short pause; one that is never
/// forgiven.
#[test]
fn ejections_are_remembered_for_a_while() {
    let out = after(Repute::default(), FAILED_CONNECTS_MAX, REFUSED, 0);
    let tried = out.admit(at(STEP), 0, EJECTION_MAX).0;
    let back = tried.hear(Evidence::Good, at(50), None, 0).0;
    let soon = after(back, FAILED_CONNECTS_MAX - 1, REFUSED, 60);
    let (_, change) = soon.hear(REFUSED, at(60), None, 0);
    assert_eq!(change, Some(Change::Ejected(2 * EJECTION_STEP)));
    let later = 50 + Tenths::of(EJECTION_FORGOTTEN).0;
    assert!(!back.hear(Evidence::Good, at(later - 1), None, 0).0.is_spotless());
    assert!(back.hear(Evidence::Good, at(later), None, 0).0.is_spotless());
}

fn any_evidence() -> impl Strategy<Value = Evidence> {
    prop_oneof![
        Just(Evidence::Good),
        (0u32..4000).prop_map(|picked| Evidence::GoodSince(at(picked))),
        Just(Evidence::GoodInside(BodyForm::Stream)),
        Just(Evidence::BadInside(BodyForm::Stream, 500)),
        Just(Evidence::GoodInside(BodyForm::Whole)),
        Just(Evidence::BadInside(BodyForm::Whole, 500)),
        Just(REFUSED),
        Just(SILENT),
        Just(Evidence::NoAnswer(Fault::BackendBroke)),
        Just(Evidence::BadGateway(503)),
    ]
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Hear(Evidence),
    Admit,
    Untried,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![any_evidence().prop_map(Step::Hear), Just(Step::Admit), Just(Step::Untried)]
}

proptest! {
    /// Whatever happens: a word holds all of a repute; a backend that is out lets somebody try
    /// again within its longest pause twice over, and a good answer to that always brings it back.
    #[test]
    fn no_history_locks_a_backend_out(
        steps in prop::collection::vec((any_step(), 0u32..400, any::<u32>()), 0..200),
    ) {
        let (mut repute, mut now) = (Repute::default(), 0);
        for (step, pause, jitter) in steps {
            now += pause;
            let before = repute;
            match step {
                Step::Hear(evidence) => {
                    let (next, change) = repute.hear(evidence, at(now), None, jitter);
                    let expected = match change {
                        Some(Change::Ejected(_)) => (false, true),
                        Some(Change::StaysOut(_)) => (true, true),
                        Some(Change::Back) => (true, false),
                        None => (before.is_out(), before.is_out()),
                    };
                    prop_assert_eq!((before.is_out(), next.is_out()), expected);
                    repute = next;
                }
                Step::Admit => {
                    let (next, may, _) = repute.admit(at(now), jitter, EJECTION_MAX);
                    prop_assert!(may || next.is_out());
                    repute = next;
                }
                Step::Untried => repute = repute.untried(at(now)),
            }
            prop_assert_eq!(Repute::unpack(repute.pack()), repute);
        }
        let longest = LONGEST + LONGEST / 10 + 1;
        let (mut tried, mut may, _) = repute.admit(at(now + longest), 0, EJECTION_MAX);
        if !may {
            (tried, may, _) = tried.admit(at(now + 2 * longest), 0, EJECTION_MAX);
        }
        prop_assert!(may);
        prop_assert!(!tried.hear(Evidence::Good, at(now), None, 0).0.is_out());
    }
}
