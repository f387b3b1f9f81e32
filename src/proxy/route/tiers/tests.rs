use super::*;
use crate::base::fault::Fault;
use crate::base::limits::FAILED_CONNECTS_MAX;
use crate::config::plan::{Backend, LoadBalance};
use crate::state::reported::Shown;
use crate::state::repute::{Change, Evidence};
use std::time::Duration;

const STRATEGIES: [LoadBalance; 5] = [
    LoadBalance::RoundRobin,
    LoadBalance::LeastConnections,
    LoadBalance::LatencyBased,
    LoadBalance::Random,
    LoadBalance::PrefixAffinity,
];

fn eject(member: &Member) {
    for _ in 0..FAILED_CONNECTS_MAX {
        member.hear(Evidence::NoConnection(Fault::ConnectFailed));
    }
    assert!(!member.is_healthy());
}

/// A member that is Well, Full, Spared, Ejected, or fails its Probes.
fn member(state: char) -> Arc<Member> {
    let plan = Backend { max_concurrent: 1, ..Backend::sample("engine") };
    let member = Arc::new(Member::new(plan, None));
    match state {
        'W' => {}
        'F' => assert!(member.enter()),
        'S' => member.fullness().spare_for(Duration::from_secs(60)),
        'E' => eject(&member),
        'P' => member.set_passes_probes(false),
        other => panic!("{other}"),
    }
    member
}

/// Tiers as a text says them: `WE|W` is two.
fn tiers(text: &str, strategy: LoadBalance) -> (Vec<Tier>, Vec<Arc<Member>>) {
    let states = text.chars().filter(|state| *state != '|');
    let mut next = 0;
    let tier = |states: &str| {
        let places: Box<[u32]> = (next..).take(states.len()).collect();
        next += places.len() as u32;
        let balancer = Balancer::new(strategy, &vec![1; places.len()], (0, 1));
        Tier { places, balancer: RefCell::new(balancer), sessions: None }
    };
    (text.split('|').map(tier).collect(), states.map(member).collect())
}

/// Who gets the next requests, in order of number and without repetition.
fn picked(
    (tiers, members): &(Vec<Tier>, Vec<Arc<Member>>),
    tried: &TriedMembers,
) -> Result<Vec<usize>, NotPicked> {
    let picks =
        (0..40 * members.len()).map(|_| Ok(pick(tiers, members, (tried, &Hints::NONE))?.place));
    let mut picked = picks.collect::<Result<Vec<_>, _>>()?;
    picked.sort_unstable();
    picked.dedup();
    Ok(picked)
}

/// Catches: a standby that is used though a better one can; one that is not used though nobody else
/// can; a tier of which most are ejected that hides one that is well; survivors that drown; an
/// answer that all are full although somebody is not, or that nobody is there although all are
/// full.
#[test]
fn the_first_rule_that_finds_somebody_decides() {
    for (states, wanted) in [
        ("WW|W", &[0, 1][..]),
        ("FW|W", &[1]),
        ("SW|W", &[1]),
        ("EW|W", &[1]),
        ("PW|W", &[1]),
        ("FF|W", &[2]),
        ("SS|W", &[2]),
        ("EE|W", &[2]),
        ("PP|W", &[2]),
        ("FE|S|W", &[3]),
        // Most of a tier are ejected.
        ("EEW", &[0, 1, 2]),
        ("EEW|E", &[0, 1, 2]),
        ("EEW|W", &[2]),
        ("EEW|F", &[2]),
        ("EEE|E|W", &[4]),
        ("EE|E", &[0, 1]),
        ("PE|E", &[1]),
        ("EE|F", &[0, 1]),
        ("W|EEE", &[0]),
        // Nobody does better than those who said that they are full.
        ("SS|S", &[0, 1]),
        ("SF|F", &[0]),
        ("SF|E", &[0]),
        ("F|S", &[1]),
        // Probes leave nobody.
        ("PP|P", &[0, 1]),
        // All are full.
        ("FF|F", &[]),
        ("PF|P", &[]),
        ("FEF", &[]),
    ] {
        for strategy in STRATEGIES {
            let row = tiers(states, strategy);
            let got = picked(&row, &TriedMembers::default());
            let wanted = match wanted {
                [] => Err(NotPicked::Full { retry_after_s: 1 }),
                some => Ok(some.to_vec()),
            };
            assert_eq!(got, wanted, "{states}, {strategy:?}");
        }
    }
    let nobody = pick(&[], &[], (&TriedMembers::default(), &Hints::NONE));
    assert_eq!(nobody, Err(NotPicked::Nobody));
}

/// Catches: a request that goes back to who has failed it, or does not go on to the next tier.
#[test]
fn who_was_tried_is_left_out_by_each_rule() {
    for (states, wanted) in [
        ("WW|W", Ok(&[1][..])),
        ("W|WW", Ok(&[1, 2])),
        ("W|E", Err(NotPicked::Nobody)),
        ("WE", Err(NotPicked::Nobody)),
        ("EEE", Ok(&[1, 2])),
        ("P|P", Ok(&[1])),
        ("WF", Err(NotPicked::Full { retry_after_s: 1 })),
        ("W", Err(NotPicked::Nobody)),
    ] {
        let row = tiers(states, LoadBalance::Random);
        let tried = TriedMembers::only(row.1[0].id());
        assert_eq!(picked(&row, &tried), wanted.map(<[usize]>::to_vec), "{states}");
    }
}

/// Catches: an ejected backend that gets traffic; survivors that drown when most are ejected; a
/// backend that probes rule out taken in because others are ejected.
#[test]
fn the_ejected_are_left_out_unless_they_are_most() {
    for strategy in STRATEGIES {
        let row = tiers("WWWW", strategy);
        let (_, members) = &row;
        let is = |wanted: &[usize]| {
            assert_eq!(picked(&row, &TriedMembers::default()), Ok(wanted.to_vec()), "{strategy:?}");
        };
        eject(&members[0]);
        is(&[1, 2, 3]);
        eject(&members[1]);
        is(&[2, 3]);
        eject(&members[2]);
        is(&[0, 1, 2, 3]);
        members[1].set_passes_probes(false);
        is(&[0, 2, 3]);
        // To what was asked since it is out, in the panic.
        let later = Evidence::GoodSince(member::now().plus(Duration::from_secs(1)));
        assert_eq!(members[0].hear(later), Some(Change::Back));
        is(&[0, 3]);
    }
}

/// Catches: a time to come again that is none, or an hour.
#[test]
fn the_time_to_come_again_is_that_of_who_is_free_soonest() {
    let row = tiers("FF", LoadBalance::Random);
    let after = |stays: [u64; 2]| {
        let row = tiers("FF", LoadBalance::Random);
        let all = row.1.iter().zip(stays);
        all.for_each(|(member, stay)| member.note_stay(Duration::from_millis(stay)));
        picked(&row, &TriedMembers::default())
    };
    for (stays, retry_after_s) in
        [([4100, 9000], 5), ([9000, 200], 1), ([90_000, 3_600_000], 30), ([0, 5000], 1)]
    {
        assert_eq!(after(stays), Err(NotPicked::Full { retry_after_s }), "{stays:?}");
    }
    row.1[1].leave();
    assert_eq!(picked(&row, &TriedMembers::default()), Ok(vec![1]));
}

#[test]
fn another_is_one_that_can_take_a_request_and_was_not_tried() {
    for (states, wanted) in
        [("WW", true), ("WF", false), ("WS", false), ("WE", false), ("WP", false)]
    {
        let (_, members) = tiers(states, LoadBalance::RoundRobin);
        let tried = TriedMembers::only(members[0].id());
        assert_eq!(has_other(members.iter(), &tried), wanted, "{states}");
    }
}

/// Catches: a standby that is nearer before one that is none; regions in another order than the
/// configuration's.
#[test]
fn the_near_come_first_and_the_standbys_last() {
    let all =
        [("eu", false), ("us", true), ("us", false), ("asia", false), ("", false), ("eu", true)];
    let of = |home| split(&[0, 1, 2, 3, 4, 5], &ranks(home, all.into_iter()));
    let rows: [(&str, &[&[u32]]); 3] = [
        ("us", &[&[2], &[0], &[3], &[4], &[1], &[5]]),
        ("mars", &[&[0], &[2], &[3], &[4], &[5], &[1]]),
        ("", &[&[0, 2, 3, 4], &[1, 5]]),
    ];
    for (home, wanted) in rows {
        let tiers = of(home);
        let tiers: Vec<&[u32]> = tiers.iter().map(|tier| &**tier).collect();
        assert_eq!(tiers, wanted, "{home}");
    }
    assert_eq!(split(&[2, 4], &ranks("", all.into_iter())).len(), 1);
}

/// Catches: an engine that others keep busy and that gets as much as the idle ones; one that nobody
/// asks any more because its figures are a lie.
#[test]
fn what_engines_say_of_their_load_counts_within_its_bound() {
    let said = |running| Shown { running, waiting: 0, cache: None };
    for (strategy, running, most, least) in [
        (LoadBalance::LeastConnections, 0, 22, 21),
        (LoadBalance::LeastConnections, 10, 15, 14),
        (LoadBalance::LeastConnections, u32::MAX, 6, 5),
        // It does not go by what is in flight.
        (LoadBalance::RoundRobin, u32::MAX, 22, 21),
    ] {
        let members: Vec<_> =
            (0..3).map(|_| Arc::new(Member::new(Backend::sample("engine"), None))).collect();
        members[0].reported().hear(said(running), 0, member::now());
        let balancer = RefCell::new(Balancer::new(strategy, &[1; 3], (0, 1)));
        let tiers = [Tier { places: [0, 1, 2].into(), balancer, sessions: None }];
        for _ in 0..64 {
            let hints = (&TriedMembers::default(), &Hints::NONE);
            let picked = pick(&tiers, &members, hints).unwrap();
            assert!(members[picked.place].enter());
        }
        let got = members[0].inflight();
        assert!((least..=most).contains(&got), "{strategy:?} with {running}: {got}");
    }
}
