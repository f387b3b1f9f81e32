//! The window against a simulated receiver and a clock that jumps from event to event.

use super::*;
use crate::base::limits::LANE_OPINIONS_MAX;
use proptest::prelude::*;

mod losses;
mod refusals;
mod sim;

use sim::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Catches: records lost, delivered twice, buried without fault or never; order broken within
    /// a key; a checkpoint that passes what is open; a window that grows; a lane that stops or
    /// spins.
    #[test]
    fn every_record_ends_as_its_receiver_decides(
        play in plays(0, 60),
    ) {
        let mut sim = play.sim();
        sim.run();
        for (planned, ended) in sim.records.iter().zip(&sim.ended) {
            prop_assert!(ended.is_none_or(|fate| fate == planned.fate));
        }
        // All that is there, once; then one a wait of half a second at least, that doubles up to
        // half a minute. Of each record one more, where an outage begins.
        let most = 60 * sim.outages.len() as u64 + 2 * sim.records.len() as u64;
        prop_assert!(sim.sends_in_outage <= most, "{} sends in outages", sim.sends_in_outage);
    }
}

/// Catches: one bad record that holds up its key, or all, for as long as it is not taken.
#[test]
fn poison_is_buried_even_when_all_are_of_its_key() {
    use Fate::{Poison, Taken};
    for (batch, concurrency) in [(1, 1), (1, 4), (100, 1), (100, 4)] {
        let records = all(&[Poison, Taken, Taken, Poison, Poison, Taken], Some(1));
        let mut sim = Sim::new(shape(batch, concurrency, 2), 100, records, Vec::new());
        sim.run();
        let fates = [Poison, Taken, Taken, Poison, Poison, Taken].map(Some);
        assert_eq!(sim.ended[..6], fates);
        assert!(sim.now_ms < 120_000, "it took {} ms", sim.now_ms);
    }
}

/// Catches: records without a key, or of other keys, that wait until a bad one is given up.
#[test]
fn a_bad_record_holds_up_its_own_key_only() {
    // Where it first has to be found in a batch, or told from a receiver that is away, some waits
    // are needed.
    for (fate, batch, waits_ms) in [
        (Fate::Refused, 1, 0),
        (Fate::Refused, 10, 0),
        (Fate::Poison, 1, 0),
        (Fate::Poison, 10, 4_000),
        (Fate::Cut, 1, 8_000),
        (Fate::Cut, 10, 20_000),
    ] {
        let mut records = all(&[fate], Some(1));
        records.extend(all(&[Fate::Taken; 50], Some(2)));
        records.extend(all(&[Fate::Taken; 50], None));
        let mut sim = Sim::new(shape(batch, 2, 4), 200, records, Vec::new());
        for seq in 1..=101 {
            sim.window.add(seq, sim.records[seq as usize - 1].key, record(seq));
        }
        let mut waited_ms = 0;
        while sim.ended[1..].iter().any(Option::is_none) {
            sim.send();
            let ends = sim.flying.iter().map(|(time, _)| *time).min();
            let next = ends.unwrap_or_else(|| {
                let wake = sim.window.wake(sim.now()).expect("nothing will happen");
                let wake = (wake - sim.start).as_millis() as u64 + 1;
                waited_ms += wake - sim.now_ms;
                wake
            });
            sim.now_ms = sim.now_ms.max(next);
            sim.land();
        }
        assert!(waited_ms <= waits_ms, "{fate:?} in batches of {batch}: {waited_ms} ms of waits");
        assert_eq!((sim.ended[0], sim.window.finished()), (None, 0), "{fate:?}");
    }
}

/// Catches: a batch that is too large for its receiver and is sent as it is for ever.
#[test]
fn a_batch_that_does_not_get_through_is_halved() {
    let now = Instant::now();
    let mut window = Window::new(shape(64, 1, 4), WAITS, 3);
    (1..=64).for_each(|seq| window.add(seq, None, record(seq)));
    let mut time = now;
    let mut sizes = Vec::new();
    while window.unfinished() > 0 {
        let Some(batch) = window.next(time) else {
            time = window.wake(time).unwrap();
            continue;
        };
        sizes.push(batch.records.len());
        let fits = batch.records.len() <= 10;
        let outcome = if fits { BatchOutcome::Delivered } else { BatchOutcome::Again(None) };
        window.settle(batch.id, outcome, time);
    }
    assert!(sizes.len() < 30, "{sizes:?}");
    assert!(time - now < Duration::from_secs(120), "{:?}", time - now);
}

/// Catches: a receiver that is dead for hours and is asked all the time, or never again.
#[test]
fn a_dead_receiver_is_asked_at_growing_waits() {
    let hours = Outage { from_ms: 0, ms: 6 * 3_600_000, answers: BatchOutcome::Again(None) };
    let records = all(&[Fate::Taken; 500], None);
    let mut sim = Sim::new(shape(1, 4, 4), 1_000, records, vec![hours]);
    sim.run();
    assert!((70..170).contains(&sim.sends_in_outage), "{} sends", sim.sends_in_outage);
    assert!(sim.now_ms < 6 * 3_600_000 + 310_000, "it is seen when it comes back");
}

/// Catches: records that are given up because their receiver lost its token or its route, or shows
/// the page of a maintenance, for however long; and one that is asked all the time meanwhile.
#[test]
fn a_receiver_that_refuses_everything_is_away() {
    for (batch, concurrency, retries, keys) in [(1, 1, 0, 1), (1, 4, 4, 3), (150, 2, 2, 3)] {
        for from_ms in [0, 700] {
            let hours = Outage { from_ms, ms: 6 * 3_600_000, answers: BatchOutcome::Refused };
            let record = |at: u64| Planned { gap_ms: 5, key: Some(at % keys), fate: Fate::Taken };
            let records: Vec<Planned> = (0..300).map(record).collect();
            let mut sim = Sim::new(shape(batch, concurrency, retries), 350, records, vec![hours]);
            // It is full within the first hour, and stays so.
            sim.window.most_held_up = 200;
            sim.run();
            assert!(sim.ended[..300].iter().all(|ended| *ended == Some(Fate::Taken)));
            // Other opinions; then one at each wait, which double up to half a minute.
            let most = u64::from(LANE_OPINIONS_MAX) + 6 * 3600 / 16 + 12;
            assert!((600..most).contains(&sim.sends_in_outage), "{} sends", sim.sends_in_outage);
            assert!(sim.was_down && sim.now_ms < 6 * 3_600_000 + 400_000, "{} ms", sim.now_ms);
        }
    }
}

/// Catches: a single refused record that stops all, or that is never given up, whatever number of
/// tries is configured.
#[test]
fn what_is_refused_while_others_pass_is_buried() {
    for (batch, retries) in [(1, 0), (1, 4), (100, 0), (100, 4)] {
        let mut records = all(&[Fate::Refused], Some(1));
        records.extend(all(&[Fate::Taken; 200], Some(2)));
        let mut sim = Sim::new(shape(batch, 1, retries), 300, records, Vec::new());
        sim.run();
        assert_eq!(sim.ended[0], Some(Fate::Refused));
        assert_eq!(sim.refusals[0], retries.max(held::RETRIES_LEAST) + 1);
        assert!(sim.ended_ms[0] < 120_000, "after {} ms", sim.ended_ms[0]);
        assert!(sim.ended[1..201].iter().all(|ended| *ended == Some(Fate::Taken)));
    }
}

/// Catches: a few refused records in front that are tried until each has had all its tries, while
/// nothing that would be taken is sent.
#[test]
fn refused_records_in_front_do_not_stop_the_others() {
    for (batch, retries) in [(1, 2), (1, 4), (50, 2), (50, 4)] {
        let mut records = all(&[Fate::Refused; 4], None);
        records.extend(all(&[Fate::Taken; 80], None));
        let mut sim = Sim::new(shape(batch, 1, retries), 300, records, Vec::new());
        sim.run();
        let last = sim.ended_ms[4..84].iter().max().copied().unwrap_or_default();
        assert!(last < 30_000, "batch {batch}, retries {retries}: {last} ms");
        assert!(sim.ended[..4].iter().all(|ended| *ended == Some(Fate::Refused)));
    }
}

/// Catches: bodies that fill the memory because only records are counted.
#[test]
fn large_bodies_close_the_window() {
    let mut window = Window::new(shape(100, 1, 4), WAITS, 3);
    let large = || {
        let body = vec![0; LANE_BODY_BYTES_MAX / 4];
        Arc::new(UsageRecord { request_body: Some(body), ..UsageRecord::default() })
    };
    assert!(window.room() > 4);
    (1..=4).for_each(|seq| window.add(seq, None, large()));
    assert_eq!(window.room(), 0);
    let now = Instant::now();
    let batch = window.next(now).unwrap();
    assert_eq!(batch.records.len(), 1, "and a batch has one of them");
    window.settle(batch.id, BatchOutcome::Delivered, now);
    assert!(window.room() > 0);
}

/// Catches: an old record that stays open while ever more are delivered behind it.
#[test]
fn the_window_does_not_run_far_ahead_of_its_oldest() {
    let mut window = Window::new(shape(1000, 2, 4), WAITS, 3);
    let now = Instant::now();
    window.add(1, Some(1), record(1));
    let first = window.next(now).unwrap();
    // Those between are another reporter's.
    let mut seq = LANE_SPAN_MAX - 3_000;
    while window.room() > 0 {
        seq += 1;
        window.add(seq, None, record(seq));
        if let Some(batch) = window.next(now) {
            window.settle(batch.id, BatchOutcome::Delivered, now);
        }
    }
    assert_eq!((seq, window.finished()), (LANE_SPAN_MAX + 1, 0));
    window.settle(first.id, BatchOutcome::Delivered, now);
    assert_eq!(window.finished(), seq);
    assert!(window.room() > 0);
}

/// Catches: a stop that waits for a back-off that is longer than its grace.
#[test]
fn a_hurry_ends_all_waits() {
    let now = Instant::now();
    let mut window = Window::new(shape(1, 2, 4), WAITS, 3);
    window.add(1, Some(1), record(1));
    window.add(2, Some(2), record(2));
    let refused = window.next(now).unwrap();
    window.settle(refused.id, BatchOutcome::Refused, now);
    let again = window.next(now).unwrap();
    window.settle(again.id, BatchOutcome::Again(Some(Duration::from_secs(200))), now);
    assert!(window.next(now).is_none());
    window.hurry(now);
    let one = window.next(now).unwrap();
    window.settle(one.id, BatchOutcome::Delivered, now);
    assert!(window.next(now).is_some());
}
