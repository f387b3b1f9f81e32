//! Records that are refused while others pass, however many there are and wherever they stand, and
//! receivers that refuse everything.

use super::super::*;
use super::sim::*;
use crate::base::limits::LANE_OPINIONS_MAX;
use proptest::prelude::*;

/// Bad records of which no two are told apart by chance: fewer than opinions in a row.
const MANY: u64 = LANE_OPINIONS_MAX as u64 - 10;

/// A key of its own for each, none, or one for all; none is that of a good record.
fn keys() -> impl Strategy<Value = fn(u64) -> Option<u64>> {
    prop_oneof![
        Just((|at| Some(1_000 + at)) as fn(u64) -> Option<u64>),
        Just((|_| None) as fn(u64) -> Option<u64>),
        Just((|_| Some(1_000)) as fn(u64) -> Option<u64>),
    ]
}

fn bad() -> impl Strategy<Value = Fate> {
    prop_oneof![Just(Fate::Refused), Just(Fate::Poison)]
}

fn is_taken(sim: &Sim, range: std::ops::Range<usize>) -> bool {
    sim.ended[range].iter().all(|ended| *ended == Some(Fate::Taken))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    /// Catches: a good record that waits at all because others are refused before it, a receiver
    /// that is held to be down although it takes what is good, and more tries than each record's
    /// own and those that find a bad one in its batch.
    #[test]
    fn bad_records_in_front_cost_the_others_no_wait(
        (bad_count, key, fate) in (0..MANY, keys(), bad()),
        good_count in 1..200_u64,
        batch in prop_oneof![Just(1_usize), 2..10_usize, Just(500)],
        concurrency in 1..5_usize,
        retries in 0..5_u32,
    ) {
        let bad = (0..bad_count).map(|at| Planned { gap_ms: 0, key: key(at), fate });
        let good = |at: u64| {
            let key = (!at.is_multiple_of(4)).then_some(at % 4);
            Planned { gap_ms: 0, key, fate: Fate::Taken }
        };
        let records: Vec<Planned> = bad.chain((0..good_count).map(good)).collect();
        let (from, to) = (bad_count as usize, records.len());
        let mut sim = Sim::new(shape(batch, concurrency, retries), 500, records, Vec::new());
        sim.latency_ms = 1;
        sim.run();
        prop_assert!(is_taken(&sim, from..to));
        prop_assert!(sim.ended_ms[from..to].iter().all(|ended| *ended == 0));
        let sends = sim.ended_sends[from..to].iter().max().copied().unwrap_or_default();
        let in_its_batch = 1 + u64::from(batch.ilog2()) + 1;
        prop_assert!(sends <= good_count + bad_count * (1 + in_its_batch), "{sends} sends");
        prop_assert!(sim.ended[..from].iter().all(|ended| *ended == Some(fate)));
    }

    /// Catches: a lane that stands still because every key that it has begins with bad records.
    #[test]
    fn even_if_each_key_begins_with_bad_ones_all_goes_on(
        (keys, each, fate) in (1..40_u64, 1..3_u64, bad()),
        batch in prop_oneof![Just(1_usize), Just(50)],
        concurrency in 1..5_usize,
        retries in 0..5_u32,
    ) {
        let record = |fate, count: u64| {
            (0..count).map(move |at| Planned { gap_ms: 0, key: Some(at % keys), fate })
        };
        let records: Vec<Planned> =
            record(fate, keys * each).chain(record(Fate::Taken, keys * 3)).collect();
        let (from, to) = ((keys * each) as usize, records.len());
        let mut sim = Sim::new(shape(batch, concurrency, retries), 500, records, Vec::new());
        sim.later = |at| Planned { gap_ms: 1_000, key: Some(at as u64 % 2), fate: Fate::Taken };
        sim.run();
        prop_assert!(is_taken(&sim, from..to));
        let end = sim.ended_ms[from..to].iter().max().copied().unwrap_or_default();
        prop_assert!(end < 20 * 60_000, "{} s", end / 1000);
        let most = to as u64 * 3 + from as u64 * 20;
        prop_assert!(sim.sends <= most, "{} sends, {most}", sim.sends);
    }

    /// Catches: a good record that is buried, or none that is bad, in whatever mixture of bad times
    /// and bad records.
    #[test]
    fn whatever_comes_together_only_bad_records_are_buried(
        play in plays(1, 60),
        lossy in prop_oneof![Just(0_u64), 1..30_u64],
        timeout_ms in prop_oneof![Just(0_u64), Just(30_000)],
    ) {
        let mut sim = play.sim();
        (sim.lossy, sim.timeout_ms, sim.steps) = (lossy, timeout_ms, 1_000_000);
        sim.run();
        for (planned, ended) in sim.records.iter().zip(&sim.ended) {
            prop_assert!(ended.is_none_or(|fate| fate == planned.fate));
        }
    }

    /// Catches: records that are given up because everything was refused for a while, however many
    /// there are and come meanwhile; a receiver that is asked without end; one that is not seen to
    /// be back.
    #[test]
    fn nothing_is_buried_while_everything_is_refused(
        (count, gap_ms, keys) in (1..300_u64, 0..2_000_u64, 1..400_u64),
        answers in prop_oneof![Just(BatchOutcome::Refused), Just(BatchOutcome::Failed)],
        (batch, concurrency) in (prop_oneof![Just(1_usize), Just(50)], 1..5_usize),
        retries in 0..5_u32,
        minutes in 0..120_u64,
    ) {
        let away = Outage { from_ms: 0, ms: minutes * 60_000, answers };
        let record = |at: u64| Planned { gap_ms, key: Some(at % keys), fate: Fate::Taken };
        let records = (0..count).map(record).collect();
        let mut sim = Sim::new(shape(batch, concurrency, retries), 2_000, records, vec![away]);
        sim.steps = 100_000;
        sim.run();
        prop_assert!(is_taken(&sim, 0..count as usize));
        let most = u64::from(LANE_OPINIONS_MAX) + minutes * 60 / 16 + 20;
        prop_assert!(sim.sends_in_outage <= most, "{} sends", sim.sends_in_outage);
    }
}

/// Catches: records that come all the time and are mostly refused, and with which whoever makes
/// them stops the others.
#[test]
fn most_of_what_comes_may_be_bad() {
    let record = |at: u64| {
        let fate = if at % 20 == 19 { Fate::Taken } else { Fate::Refused };
        Planned { gap_ms: 50, key: Some(at), fate }
    };
    let records: Vec<Planned> = (0..1_000).map(record).collect();
    let mut sim = Sim::new(shape(1, 1, 4), 1_024, records, Vec::new());
    (sim.latency_ms, sim.steps) = (1, 200_000);
    sim.run();
    let late = |at: &usize| sim.ended_ms[*at].saturating_sub(*at as u64 * 50);
    let latest = (0..1_000).filter(|at| at % 20 == 19).map(|at| late(&at)).max().unwrap();
    assert!(latest < 60_000, "{} s", latest / 1000);
    assert!(sim.sends < 1_000 * 6, "{} sends", sim.sends);
}
