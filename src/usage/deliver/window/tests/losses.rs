//! Records that cut each connection, and receivers that are away or lose what they like.

use super::super::*;
use super::sim::*;
use crate::base::limits::LANE_LOSSES_PROVEN_MAX;
use proptest::prelude::*;

const MINUTE_MS: u64 = 60_000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Catches: a record that cuts each connection and holds up its key for ever, or all; one that
    /// is buried before its hour, or in the place of another.
    #[test]
    fn what_cuts_connections_ends_and_all_else_is_delivered(
        play in plays(2, 40),
        held_up in 1..30_usize,
        has_others in any::<bool>(),
    ) {
        let mut sim = play.sim();
        sim.window.most_held_up = held_up;
        sim.steps = 200_000;
        sim.later = match has_others {
            true => |at| Planned { gap_ms: 30_000, key: Some(at as u64 % 4), fate: Fate::Taken },
            false => |_| Planned { gap_ms: 30_000, key: Some(1), fate: Fate::Taken },
        };
        sim.run();
        for (planned, ended) in sim.records.iter().zip(&sim.ended) {
            prop_assert!(ended.is_none_or(|fate| fate == planned.fate));
        }
    }
}

/// Catches: bad records that keep each other from being found out, because one is always lost while
/// another is looked at.
#[test]
fn many_that_time_out_are_all_buried() {
    for (concurrency, keys, hours) in [(1, 40, 14), (4, 40, 8), (4, 1, 5)] {
        let cut = |at: u64| Planned { gap_ms: 60_000, key: Some(9 + at % keys), fate: Fate::Cut };
        let records = (0..if keys == 1 { 3 } else { 40 }).map(cut).collect();
        let mut sim = Sim::new(shape(1, concurrency, 4), 100, records, Vec::new());
        sim.timeout_ms = 30_000;
        sim.steps = 1_000_000;
        sim.run();
        let end = sim.now_ms / MINUTE_MS;
        assert!(end < hours * 60, "{keys} keys, {concurrency} senders: {end} min");
    }
}

/// Catches: a receiver that asks for time and is asked again at once, and a record that always gets
/// that answer and is therefore never given up.
#[test]
fn a_wait_that_is_asked_for_is_kept() {
    let mut now = Instant::now();
    let mut window = Window::new(shape(1, 1, 4), WAITS, 3);
    window.add(1, Some(1), record(1));
    let (start, mut seq, mut is_over) = (now, 1, false);
    while !is_over {
        seq += 1;
        window.add(seq, None, record(seq));
        while let Some(batch) = window.next(now) {
            if seq_of(&batch.records[0]) > 1 {
                window.settle(batch.id, BatchOutcome::Delivered, now);
                continue;
            }
            let wait = Duration::from_secs(40);
            is_over =
                window.settle(batch.id, BatchOutcome::Again(Some(wait)), now).buried.is_some();
            assert!(is_over || window.next(now + wait - WAITS.least).is_none());
        }
        now = window.wake(now).unwrap_or(now).max(now + Duration::from_secs(5));
    }
    assert!(now - start > Duration::from_secs(1800), "{:?}", now - start);
}

/// Catches: a window that one key fills, so that the whole reporter stands still.
#[test]
fn a_key_with_more_records_than_the_window_stops_no_other() {
    for (batch, concurrency, minutes) in [(1, 1, 1), (1, 4, 1), (100, 1, 3), (100, 4, 3)] {
        let mut records = all(&[Fate::Cut], Some(1));
        records.extend(all(&[Fate::Taken; 3000], Some(1)));
        records.extend(all(&[Fate::Taken; 500], Some(2)));
        let most = Window::new(shape(batch, concurrency, 4), WAITS, 3).most;
        assert!(most < 3000);
        let mut sim = Sim::new(shape(batch, concurrency, 4), most, records, Vec::new());
        sim.run();
        let others = sim.ended_ms[3001..3501].iter().max().unwrap() / MINUTE_MS;
        assert!(others < minutes, "{batch}, {concurrency}: others waited {others} min");
        let buried = sim.ended_ms[0] / MINUTE_MS;
        assert!((30..120).contains(&buried), "{batch}, {concurrency}: buried after {buried} min");
        assert!(sim.losses[0] > LANE_LOSSES_PROVEN_MAX);
        assert_eq!(sim.overtakers, 0);
        assert!(sim.ended[1..3501].iter().all(|ended| *ended == Some(Fate::Taken)));
    }
}

/// Catches: a lane that stands still for an hour, or for good, when more waits behind a bad record
/// than may be held up; and one that never finds out when there is nothing but its key.
#[test]
fn even_a_key_that_fills_everything_goes_on() {
    for (batch, other) in [(1, true), (1, false), (20, true), (20, false)] {
        let mut records = all(&[Fate::Cut], Some(1));
        records.extend(all(&[Fate::Taken; 300], Some(1)));
        let mut sim = Sim::new(shape(batch, 2, 4), 20, records, Vec::new());
        sim.window.most_held_up = 50;
        sim.later = match other {
            true => |_| Planned { gap_ms: 5_000, key: Some(2), fate: Fate::Taken },
            false => |_| Planned { gap_ms: 5_000, key: Some(1), fate: Fate::Taken },
        };
        sim.run();
        let buried = sim.ended_ms[0] / MINUTE_MS;
        assert!((20..75).contains(&buried), "batches of {batch}: buried after {buried} min");
        assert!(sim.overtakers <= LANE_LOSSES_PROVEN_MAX.into(), "{} overtook", sim.overtakers);
    }
}

/// Catches: records that are given up, or that overtake others, because a receiver was away long.
#[test]
fn a_receiver_that_is_away_for_days_costs_nothing() {
    for (keys, batch) in [(1, 1), (1, 50), (3, 1), (3, 50)] {
        for hours in 60..64 {
            let away = Outage {
                from_ms: 900,
                ms: hours * 60 * MINUTE_MS,
                answers: BatchOutcome::Again(None),
            };
            let record = |at: u64| Planned { gap_ms: 10, key: Some(at % keys), fate: Fate::Taken };
            let records = (0..300).map(record).collect();
            let mut sim = Sim::new(shape(batch, 2, 4), 100, records, vec![away]);
            // It is full within the first hour, and stays so.
            sim.window.most_held_up = 500;
            sim.run();
            assert!(sim.ended[..300].iter().all(|ended| *ended == Some(Fate::Taken)));
            assert_eq!(sim.overtakers, 0, "{keys} keys, {hours} hours");
            let end = (hours * 60 + 6) * MINUTE_MS;
            assert!(sim.now_ms < end, "{} ms after it came back", sim.now_ms - end);
        }
    }
}

/// Catches: a try in each of many bad times that is taken for proof, because there were deliveries
/// in the good times between.
#[test]
fn bad_times_that_always_hit_the_same_record_prove_nothing() {
    let mut now = Instant::now();
    let mut window = Window::new(shape(1, 1, 4), WAITS, 3);
    window.add(1, Some(1), record(1));
    let (mut seq, mut tries, mut others_lost) = (1, 0, true);
    while tries < 10 * LANE_LOSSES_PROVEN_MAX {
        seq += 1;
        window.add(seq, None, record(seq));
        while let Some(batch) = window.next(now) {
            let is_first = seq_of(&batch.records[0]) == 1;
            tries += u32::from(is_first);
            // The receiver is away when the first is sent, and for one try more.
            let is_lost = is_first || !others_lost;
            others_lost = !is_first;
            let outcome = if is_lost { BatchOutcome::Again(None) } else { BatchOutcome::Delivered };
            let settled = window.settle(batch.id, outcome, now);
            assert!(settled.buried.is_none(), "after {tries} tries");
        }
        now = window.wake(now).unwrap_or(now).max(now + Duration::from_secs(5));
    }
    assert!(window.delivered > 10 * u64::from(LANE_LOSSES_PROVEN_MAX));
}

/// Catches: good records that are given up since they were unlucky many times.
#[test]
fn a_receiver_that_loses_requests_by_chance_costs_nothing() {
    for (lossy, batch, concurrency, count) in [
        (10, 1, 4, 3_000),
        (50, 1, 1, 3_000),
        (50, 1, 4, 3_000),
        (50, 20, 2, 3_000),
        (90, 1, 2, 300),
    ] {
        let record = |at: u64| Planned { gap_ms: 0, key: Some(at % 4), fate: Fate::Taken };
        let records = (0..count).map(record).collect();
        let mut sim = Sim::new(shape(batch, concurrency, 4), 200, records, Vec::new());
        (sim.lossy, sim.steps, sim.window.most_held_up) = (lossy, 100_000, 200);
        sim.run();
        let ended = &sim.ended[..count as usize];
        assert!(ended.iter().all(|ended| *ended == Some(Fate::Taken)), "{lossy} of 100 lost");
        assert!(lossy > 50 || sim.overtakers == 0, "{} overtook", sim.overtakers);
    }
}

/// Catches: what waits behind a record that came back and takes the room of others, or takes
/// memory without end.
#[test]
fn what_is_held_up_takes_no_room_up_to_a_limit() {
    let now = Instant::now();
    let mut window = Window::new(shape(1, 1, 4), WAITS, 3);
    (window.most, window.most_held_up) = (10, 5);
    let body = |bytes| {
        let request_body = Some(vec![0; bytes]);
        Arc::new(UsageRecord { request_body, ..UsageRecord::default() })
    };
    (1..=10).for_each(|seq| window.add(seq, Some(1), record(seq)));
    let first = window.next(now).unwrap();
    assert_eq!(window.room(), 0);
    window.settle(first.id, BatchOutcome::Again(None), now);
    assert_eq!(window.room(), 5);
    (11..=15).for_each(|seq| window.add(seq, None, record(seq)));
    assert_eq!(window.room(), 0);
    let again = window.next(now + WAITS.least).unwrap();
    assert_eq!(seq_of(&again.records[0]), 11, "others go first");
    window.settle(again.id, BatchOutcome::Delivered, now + WAITS.least);
    assert_eq!(window.room(), 1);

    let mut window = Window::new(shape(1, 1, 4), WAITS, 3);
    window.add(1, Some(1), body(LANE_BODY_BYTES_MAX));
    assert_eq!(window.room(), 0);
    let first = window.next(now).unwrap();
    window.settle(first.id, BatchOutcome::Again(None), now);
    assert!(window.room() > 0);
    window.add(2, None, body(LANE_BODY_BYTES_MAX));
    assert_eq!(window.room(), 0);
}
