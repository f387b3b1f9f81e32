//! The window against a simulated receiver and a clock that jumps from event to event.

use super::*;
use crate::base::id::RequestId;
use proptest::prelude::*;

const WAITS: Waits = Waits { least: Duration::from_secs(1), most: Duration::from_secs(300) };

/// What a receiver does with a record, whenever it is well.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Taken,
    Refused,
    /// The batch that it is in fails.
    Poison,
    /// The batch that it is in gets no answer.
    Cut,
}

#[derive(Debug, Clone)]
struct Planned {
    /// After the record before.
    gap_ms: u64,
    key: Option<u64>,
    fate: Fate,
}

/// A time in which the receiver is not well.
#[derive(Debug, Clone)]
struct Outage {
    from_ms: u64,
    ms: u64,
    answers_500: bool,
}

fn planned() -> impl Strategy<Value = Planned> {
    let fate = prop_oneof![
        12 => Just(Fate::Taken), 1 => Just(Fate::Refused), 1 => Just(Fate::Poison)
    ];
    let gap = prop_oneof![3 => Just(0), 2 => 0..50_u64, 1 => 0..20_000_u64];
    (gap, proptest::option::weighted(0.8, 0..3_u64), fate).prop_map(|(gap_ms, key, fate)| Planned {
        gap_ms,
        key,
        fate,
    })
}

fn outages() -> impl Strategy<Value = Vec<Outage>> {
    // Each may cost a good record one proven failure, and two are not enough to bury it.
    let one = (0..200_000_u64, 0..600_000_u64, any::<bool>())
        .prop_map(|(from_ms, ms, answers_500)| Outage { from_ms, ms, answers_500 });
    proptest::collection::vec(one, 0..=2)
}

fn record(seq: u64) -> Arc<UsageRecord> {
    let request_id = RequestId::from_client(seq.to_string().as_bytes()).unwrap();
    Arc::new(UsageRecord { request_id, ..UsageRecord::default() })
}

fn seq_of(record: &UsageRecord) -> u64 {
    record.request_id.as_str().parse().unwrap()
}

struct Sim {
    window: Window,
    shape: Shape,
    start: Instant,
    now_ms: u64,
    /// By sequence number minus one.
    records: Vec<Planned>,
    outages: Vec<Outage>,
    flying: Vec<(u64, Batch)>,
    /// What became of each record, and the failures and refusals that it had alone.
    ended: Vec<Option<Fate>>,
    failures: Vec<u32>,
    refusals: Vec<u32>,
    added: usize,
    sends_in_outage: u64,
    latencies: u64,
}

impl Sim {
    fn new(shape: Shape, most: usize, records: Vec<Planned>, outages: Vec<Outage>) -> Sim {
        let mut window = Window::new(shape, WAITS, 3);
        window.most = most;
        let count = records.len();
        Sim {
            window,
            shape,
            start: Instant::now(),
            now_ms: 0,
            records,
            outages,
            flying: Vec::new(),
            ended: vec![None; count],
            failures: vec![0; count],
            refusals: vec![0; count],
            added: 0,
            sends_in_outage: 0,
            latencies: 0,
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    fn outage(&self) -> Option<&Outage> {
        self.outages.iter().find(|o| (o.from_ms..o.from_ms + o.ms).contains(&self.now_ms))
    }

    fn key(&self, record: &UsageRecord) -> Option<u64> {
        self.records[seq_of(record) as usize - 1].key
    }

    fn fate(&self, record: &UsageRecord) -> Fate {
        self.records[seq_of(record) as usize - 1].fate
    }

    /// Runs until all of the planned records have ended, with good ones that go on coming.
    fn run(&mut self) {
        let planned = self.records.len();
        let mut next_arrival = self.records.first().map_or(0, |r| r.gap_ms);
        for _ in 0..20_000 {
            while self.now_ms >= next_arrival && self.window.room() > 0 {
                self.added += 1;
                let key = self.records[self.added - 1].key;
                self.window.add(self.added as u64, key, record(self.added as u64));
                if self.added == self.records.len() {
                    let key = (self.added % 4 < 3).then_some(self.added as u64 % 4);
                    self.records.push(Planned { gap_ms: 5_000, key, fate: Fate::Taken });
                    self.ended.push(None);
                    self.failures.push(0);
                    self.refusals.push(0);
                }
                next_arrival = self.now_ms + self.records[self.added].gap_ms;
            }
            self.send();
            if self.ended[..planned].iter().all(Option::is_some) {
                return;
            }
            let ends = self.flying.iter().map(|(time, _)| *time).min();
            let arrival = (self.window.room() > 0).then_some(next_arrival);
            let wake = self.window.wake(self.now()).map(|time| {
                assert!(time > self.now(), "a wake-up that is not in the future");
                (time - self.start).as_millis() as u64 + 1
            });
            let times = [ends, arrival, wake];
            let next = times.into_iter().flatten().min().expect("stuck: nothing will happen");
            self.now_ms = next.max(self.now_ms);
            self.land();
        }
        panic!("no end: {:?}", self.ended);
    }

    fn send(&mut self) {
        while let Some(batch) = self.window.next(self.now()) {
            assert!(!batch.records.is_empty() && batch.records.len() <= self.shape.batch);
            let mut keys = HashSet::new();
            for record in &batch.records {
                keys.extend(self.key(record));
            }
            let others = self.flying.iter().flat_map(|(_, b)| &b.records);
            let shared = others.filter_map(|r| self.key(r)).any(|key| keys.contains(&key));
            assert!(!shared, "two batches with one key under way");
            if self.outage().is_some() {
                self.sends_in_outage += 1;
            }
            self.latencies = self.latencies.wrapping_mul(25214903917).wrapping_add(11);
            let latency = (self.latencies >> 16) % 200;
            self.flying.push((self.now_ms + latency, batch));
            assert!(self.flying.len() <= self.shape.concurrency);
            assert_eq!(self.flying.len(), self.window.in_flight());
        }
        let open = self.window.unfinished();
        assert!(open <= self.window.most, "{open} are held");
        let done = self.window.finished() as usize;
        assert!(self.ended[..done].iter().all(Option::is_some), "a checkpoint beyond the open");
    }

    /// The batches that end now.
    fn land(&mut self) {
        while let Some(i) = self.flying.iter().position(|(time, _)| *time <= self.now_ms) {
            let (_, batch) = self.flying.remove(i);
            let any = |fate| batch.records.iter().any(|r| self.fate(r) == fate);
            let outcome = match self.outage() {
                Some(outage) if outage.answers_500 => Outcome::Failed,
                Some(_) => Outcome::Again(None),
                None if any(Fate::Cut) => Outcome::Again(None),
                None if any(Fate::Poison) => Outcome::Failed,
                None if any(Fate::Refused) => Outcome::Refused,
                None => Outcome::Delivered,
            };
            if let [alone] = batch.records.as_slice() {
                let at = seq_of(alone) as usize - 1;
                self.failures[at] += u32::from(outcome == Outcome::Failed);
                self.refusals[at] += u32::from(outcome == Outcome::Refused);
            }
            let settled = self.window.settle(batch.id, outcome, self.now());
            if outcome == Outcome::Delivered {
                assert_eq!(settled.delivered, batch.records.len() as u64);
                batch.records.iter().for_each(|record| self.deliver(record));
            }
            if let Some(buried) = settled.buried {
                let at = seq_of(&buried) as usize - 1;
                let fate = self.fate(&buried);
                assert_ne!(fate, Fate::Taken, "a good record was buried");
                let tries = self.shape.retries + 1;
                if fate == Fate::Refused {
                    assert_eq!(self.refusals[at], tries, "tries of what is refused");
                }
                assert!(self.refusals[at] + self.failures[at] >= tries);
                assert_eq!(self.ended[at].replace(fate), None);
            }
        }
    }

    fn deliver(&mut self, record: &UsageRecord) {
        let at = seq_of(record) as usize - 1;
        assert_eq!(self.fate(record), Fate::Taken);
        assert_eq!(self.ended[at].replace(Fate::Taken), None, "delivered twice");
        let Some(key) = self.key(record) else { return };
        for before in 0..at {
            let overtaken = self.records[before].key == Some(key) && self.ended[before].is_none();
            let suspect = self.failures[before] > self.shape.retries;
            assert!(!overtaken || suspect, "{} overtook {}", at + 1, before + 1);
        }
    }
}

fn shape(batch: usize, concurrency: usize, retries: u32) -> Shape {
    Shape { batch, concurrency, retries, timeout: Duration::from_secs(1) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Catches: records lost, delivered twice, buried without fault or never; order broken within
    /// a key; a checkpoint that passes what is open; a window that grows; a lane that stops or
    /// spins.
    #[test]
    fn every_record_ends_as_its_receiver_decides(
        records in proptest::collection::vec(planned(), 1..60),
        outages in outages(),
        batch in prop_oneof![Just(1_usize), 2..10_usize, Just(500)],
        concurrency in 1..5_usize,
        retries in 2..5_u32,
    ) {
        let most = records.len() / 2 + 12;
        let mut sim = Sim::new(shape(batch, concurrency, retries), most, records, outages);
        sim.run();
        for (planned, ended) in sim.records.iter().zip(&sim.ended) {
            prop_assert!(ended.is_none_or(|fate| fate == planned.fate));
        }
        // Two a wait of half a second at least, that doubles; poison among them costs a few more.
        let most = 60 * sim.outages.len() as u64 + 20;
        prop_assert!(sim.sends_in_outage <= most, "{} sends in outages", sim.sends_in_outage);
    }
}

fn all(fates: &[Fate], key: Option<u64>) -> Vec<Planned> {
    fates.iter().map(|fate| Planned { gap_ms: 0, key, fate: *fate }).collect()
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
        let outcome = if fits { Outcome::Delivered } else { Outcome::Again(None) };
        window.settle(batch.id, outcome, time);
    }
    assert!(sizes.len() < 30, "{sizes:?}");
    assert!(time - now < Duration::from_secs(120), "{:?}", time - now);
}

/// Catches: a receiver that is dead for hours and is asked all the time, or never again.
#[test]
fn a_dead_receiver_is_asked_at_growing_waits() {
    let hours = Outage { from_ms: 0, ms: 6 * 3_600_000, answers_500: false };
    let records = all(&[Fate::Taken; 500], None);
    let mut sim = Sim::new(shape(1, 4, 4), 1_000, records, vec![hours]);
    sim.run();
    assert!((70..170).contains(&sim.sends_in_outage), "{} sends", sim.sends_in_outage);
    assert!(sim.now_ms < 6 * 3_600_000 + 310_000, "it is seen when it comes back");
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
    window.settle(batch.id, Outcome::Delivered, now);
    assert!(window.room() > 0);
}

/// Catches: an old record that stays open while ever more are delivered behind it.
#[test]
fn the_window_does_not_run_far_ahead_of_its_oldest() {
    let mut window = Window::new(shape(1000, 2, 4), WAITS, 3);
    let now = Instant::now();
    window.add(1, Some(1), record(1));
    let first = window.next(now).unwrap();
    let mut seq = 1;
    while window.room() > 0 {
        seq += 1;
        window.add(seq, None, record(seq));
        if let Some(batch) = window.next(now) {
            window.settle(batch.id, Outcome::Delivered, now);
        }
    }
    assert_eq!((seq, window.finished()), (LANE_SPAN_MAX + 1, 0));
    window.settle(first.id, Outcome::Delivered, now);
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
    window.settle(refused.id, Outcome::Refused, now);
    let again = window.next(now).unwrap();
    window.settle(again.id, Outcome::Again(Some(Duration::from_secs(200))), now);
    assert!(window.next(now).is_none());
    window.hurry(now);
    let one = window.next(now).unwrap();
    window.settle(one.id, Outcome::Delivered, now);
    assert!(window.next(now).is_some());
}
