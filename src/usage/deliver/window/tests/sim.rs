//! A receiver that is played, and a clock that jumps from event to event.

use super::super::*;
use crate::base::id::RequestId;
use crate::base::limits::{LANE_LOSSES_PROVEN_SOME, LANE_OVERTAKEN_LOSSES};
use proptest::prelude::*;

pub const WAITS: Waits = Waits { least: Duration::from_secs(1), most: Duration::from_secs(300) };

/// What a receiver does with a record, whenever it is well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fate {
    Taken,
    Refused,
    /// The batch that it is in fails.
    Poison,
    /// The batch that it is in gets no answer.
    Cut,
}

#[derive(Debug, Clone)]
pub struct Planned {
    /// After the record before.
    pub gap_ms: u64,
    pub key: Option<u64>,
    pub fate: Fate,
}

/// A time in which the receiver is not well.
#[derive(Debug, Clone)]
pub struct Outage {
    pub from_ms: u64,
    pub ms: u64,
    /// What becomes of all that is sent.
    pub answers: BatchOutcome,
}

/// Good records, and bad ones: of the latter so many cut their connections.
pub fn planned(cuts: u32) -> impl Strategy<Value = Planned> {
    let fate = prop_oneof![
        12 => Just(Fate::Taken),
        1 => Just(Fate::Refused),
        1 => Just(Fate::Poison),
        cuts => Just(Fate::Cut),
    ];
    let gap = prop_oneof![3 => Just(0), 2 => 0..50_u64, 1 => 0..20_000_u64];
    (gap, proptest::option::weighted(0.8, 0..3_u64), fate).prop_map(|(gap_ms, key, fate)| Planned {
        gap_ms,
        key,
        fate,
    })
}

pub fn outages() -> impl Strategy<Value = Vec<Outage>> {
    // Each may cost a good record one proven failure, and two are not enough to bury it.
    let answers = prop_oneof![
        Just(BatchOutcome::Again(None)),
        Just(BatchOutcome::Failed),
        Just(BatchOutcome::Refused)
    ];
    let one = (0..200_000_u64, 0..600_000_u64, answers).prop_map(|(from_ms, ms, answers)| Outage {
        from_ms,
        ms,
        answers,
    });
    proptest::collection::vec(one, 0..=2)
}

/// Records, times in which their receiver is not well, and how they are sent.
#[derive(Debug, Clone)]
pub struct Play {
    records: Vec<Planned>,
    outages: Vec<Outage>,
    batch: usize,
    concurrency: usize,
    retries: u32,
}

/// Plays of fewer than so many records, with bad ones as in [`planned`].
pub fn plays(cuts: u32, most: usize) -> impl Strategy<Value = Play> {
    let records = proptest::collection::vec(planned(cuts), 1..most);
    let batch = prop_oneof![Just(1_usize), 2..10_usize, Just(500)];
    (records, outages(), batch, 1..5_usize, 2..5_u32).prop_map(
        |(records, outages, batch, concurrency, retries)| Play {
            records,
            outages,
            batch,
            concurrency,
            retries,
        },
    )
}

impl Play {
    /// The simulation of it, in a window that has no room for all of them.
    pub fn sim(self) -> Sim {
        let most = self.records.len() / 2 + 12;
        let shape = shape(self.batch, self.concurrency, self.retries);
        Sim::new(shape, most, self.records, self.outages)
    }
}

pub fn record(seq: u64) -> Arc<UsageRecord> {
    let request_id = RequestId::from_client(seq.to_string().as_bytes()).unwrap();
    Arc::new(UsageRecord { request_id, ..UsageRecord::default() })
}

pub fn seq_of(record: &UsageRecord) -> u64 {
    record.request_id.as_str().parse().unwrap()
}

pub struct Sim {
    pub window: Window,
    pub shape: Shape,
    pub start: Instant,
    pub now_ms: u64,
    /// By sequence number minus one.
    pub records: Vec<Planned>,
    pub outages: Vec<Outage>,
    pub flying: Vec<(u64, Batch)>,
    /// What became of each record, and the failures and refusals that it had alone.
    pub ended: Vec<Option<Fate>>,
    pub failures: Vec<u32>,
    pub refusals: Vec<u32>,
    pub added: usize,
    /// Tries that it had alone and that did not get through.
    pub losses: Vec<u32>,
    pub ended_ms: Vec<u64>,
    /// Batches that were sent before it ended.
    pub ended_sends: Vec<u64>,
    pub sends: u64,
    /// The receiver was held to be down at some time.
    pub was_down: bool,
    /// Records that were delivered before an earlier one of their key.
    pub overtakers: u64,
    pub sends_in_outage: u64,
    /// Of a hundred requests so many get no answer, by chance.
    pub lossy: u64,
    /// An answer takes less.
    pub latency_ms: u64,
    /// How long it takes until a cut connection is noticed.
    pub timeout_ms: u64,
    /// What comes when all that is planned has come: by its place.
    pub later: fn(usize) -> Planned,
    /// Steps in which all that is planned must end.
    pub steps: usize,
    /// All before this one have ended, so that nobody has to look at them again.
    first_open: usize,
    random: u64,
}

impl Sim {
    pub fn new(shape: Shape, most: usize, records: Vec<Planned>, outages: Vec<Outage>) -> Sim {
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
            losses: vec![0; count],
            ended_ms: vec![0; count],
            ended_sends: vec![0; count],
            sends: 0,
            was_down: false,
            overtakers: 0,
            sends_in_outage: 0,
            lossy: 0,
            latency_ms: 200,
            timeout_ms: 0,
            later: |at| {
                let key = (at % 4 < 3).then_some(at as u64 % 4);
                Planned { gap_ms: 5_000, key, fate: Fate::Taken }
            },
            steps: 20_000,
            first_open: 0,
            random: 0,
        }
    }

    pub fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    pub fn outage(&self) -> Option<&Outage> {
        self.outages.iter().find(|o| (o.from_ms..o.from_ms + o.ms).contains(&self.now_ms))
    }

    pub fn key(&self, record: &UsageRecord) -> Option<u64> {
        self.records[seq_of(record) as usize - 1].key
    }

    pub fn fate(&self, record: &UsageRecord) -> Fate {
        self.records[seq_of(record) as usize - 1].fate
    }

    /// Runs until all of the planned records have ended, with good ones that go on coming.
    pub fn run(&mut self) {
        let planned = self.records.len();
        let mut next_arrival = self.records.first().map_or(0, |r| r.gap_ms);
        for _ in 0..self.steps {
            while self.now_ms >= next_arrival && self.window.room() > 0 {
                self.added += 1;
                let key = self.records[self.added - 1].key;
                self.window.add(self.added as u64, key, record(self.added as u64));
                if self.added == self.records.len() {
                    self.records.push((self.later)(self.added));
                    self.ended.push(None);
                    self.ended_ms.push(0);
                    self.ended_sends.push(0);
                    let counts = [&mut self.failures, &mut self.refusals, &mut self.losses];
                    counts.into_iter().for_each(|counts| counts.push(0));
                }
                next_arrival = self.now_ms + self.records[self.added].gap_ms;
            }
            self.send();
            if self.first_open >= planned {
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

    pub fn send(&mut self) {
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
            let is_cut = batch.records.iter().any(|record| self.fate(record) == Fate::Cut);
            self.sends += 1;
            let latency = self.random(self.latency_ms) + if is_cut { self.timeout_ms } else { 0 };
            self.flying.push((self.now_ms + latency, batch));
            assert!(self.flying.len() <= self.shape.concurrency);
            assert_eq!(self.flying.len(), self.window.in_flight());
        }
        let open = self.window.unfinished();
        assert!(open <= self.window.most + self.window.most_held_up, "{open} are held");
        let done = self.window.finished() as usize;
        assert!(done <= self.first_open, "a checkpoint beyond the open");
    }

    /// The batches that end now.
    pub fn land(&mut self) {
        while let Some(i) = self.flying.iter().position(|(time, _)| *time <= self.now_ms) {
            let (_, batch) = self.flying.remove(i);
            let is_lost = self.random(100) < self.lossy;
            let any = |fate| batch.records.iter().any(|r| self.fate(r) == fate);
            let outcome = match self.outage() {
                Some(outage) => outage.answers,
                None if is_lost || any(Fate::Cut) => BatchOutcome::Again(None),
                None if any(Fate::Poison) => BatchOutcome::Failed,
                None if any(Fate::Refused) => BatchOutcome::Refused,
                None => BatchOutcome::Delivered,
            };
            if let [alone] = batch.records.as_slice() {
                let at = seq_of(alone) as usize - 1;
                self.failures[at] += u32::from(outcome == BatchOutcome::Failed);
                self.refusals[at] += u32::from(outcome == BatchOutcome::Refused);
                self.losses[at] += u32::from(outcome == BatchOutcome::Again(None));
            }
            let settled = self.window.settle(batch.id, outcome, self.now());
            self.was_down |= self.window.is_down();
            if outcome == BatchOutcome::Delivered {
                assert_eq!(settled.delivered, batch.records.len() as u64);
                batch.records.iter().for_each(|record| self.deliver(record));
            }
            if let Some(Given { seq, record: buried }) = settled.buried {
                let at = seq as usize - 1;
                let fate = self.fate(&buried);
                assert_ne!(fate, Fate::Taken, "a good record was buried");
                let tries = self.shape.retries + 1;
                let tries = if fate == Fate::Cut { LANE_LOSSES_PROVEN_SOME + 1 } else { tries };
                assert!(self.refusals[at] + self.failures[at] + self.losses[at] >= tries);
                self.end(at, fate);
            }
        }
    }

    fn end(&mut self, at: usize, fate: Fate) {
        assert_eq!(self.ended[at].replace(fate), None, "it ended twice");
        self.ended_ms[at] = self.now_ms;
        self.ended_sends[at] = self.sends;
        while self.ended.get(self.first_open).is_some_and(Option::is_some) {
            self.first_open += 1;
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(25214903917).wrapping_add(11);
        (self.random >> 16) % below
    }

    pub fn deliver(&mut self, record: &UsageRecord) {
        let at = seq_of(record) as usize - 1;
        assert_eq!(self.fate(record), Fate::Taken);
        self.end(at, Fate::Taken);
        let Some(key) = self.key(record) else { return };
        for before in self.first_open..at {
            let overtaken = self.records[before].key == Some(key) && self.ended[before].is_none();
            let suspect = self.failures[before] + self.refusals[before] > 0
                || self.losses[before] >= LANE_OVERTAKEN_LOSSES;
            assert!(!overtaken || suspect, "{} overtook {}", at + 1, before + 1);
            self.overtakers += u64::from(overtaken);
        }
    }
}

pub fn shape(batch: usize, concurrency: usize, retries: u32) -> Shape {
    Shape { batch, gather: Duration::ZERO, concurrency, retries, timeout: Duration::from_secs(1) }
}

pub fn all(fates: &[Fate], key: Option<u64>) -> Vec<Planned> {
    fates.iter().map(|fate| Planned { gap_ms: 0, key, fate: *fate }).collect()
}
