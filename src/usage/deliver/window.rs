//! What a lane sends next: a pure state machine over the records that were read ahead.
//!
//! - Records of one key keep their order: none is sent while an earlier one of its key is not
//!   finished, unless both are in the same batch. Records without a key have no order.
//! - A batch that the receiver does not take is cut in pieces until the record at fault is alone.
//! - A record that is refused for good holds up its own key while it is tried again, then it is
//!   buried. So is one that fails again and again while others are delivered in between: it alone
//!   is at fault. If all that waits is of its key, one record at a time may overtake it to find
//!   out; that is the only way in which the order yields.
//! - A receiver that cannot be reached never costs a record, only time ([`super::backoff`]). While
//!   it is away, what did not get through last lets others go first: should one record cut each
//!   connection that it comes over, it holds up its own key and no other.

use super::backoff::{Backoff, Leave, Waits};
use crate::base::limits::{
    BATCH_BODY_BYTES_MAX, LANE_BODY_BYTES_MAX, LANE_RECORDS_MAX, LANE_RECORDS_MIN, LANE_SPAN_MAX,
};
use crate::usage::record::UsageRecord;
use crate::usage::reporter::Shape;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The records that are not finished, and what is known of them.
pub struct Window {
    shape: Shape,
    /// Records that are held at most.
    most: usize,
    backoff: Backoff,
    /// By their place in the source.
    open: BTreeMap<u64, Held>,
    /// The open records of each key, in order.
    keys: HashMap<u64, VecDeque<u64>>,
    /// Records that lie still and have no open one of their key before them.
    heads: BTreeSet<u64>,
    flights: HashMap<u64, Flight>,
    /// Flights so far; the number of one is its name.
    launched: u64,
    /// Batches that were delivered so far.
    delivered: u64,
    read_to: u64,
    body_bytes: usize,
}

/// One record that is not finished.
struct Held {
    record: Arc<UsageRecord>,
    key: Option<u64>,
    flying: bool,
    tried: bool,
    /// Its own wait.
    not_before: Option<Instant>,
    /// Records of the largest batch that it may be in.
    batch: usize,
    /// Tries that were refused.
    refused: u32,
    /// Tries that failed, alone.
    failed: u32,
    /// Of these, the first and those with a delivery between it and the failure before.
    proven: u32,
    /// Tries that did not get through, counted like `proven`.
    lost: u32,
    /// [`Window::delivered`] when it failed or did not get through last.
    failed_at: u64,
    /// The round in which others go first, because this one failed.
    stood_back: u64,
}

struct Flight {
    seqs: Vec<u64>,
    round: u64,
}

/// Records to be sent together, in order.
pub struct Batch {
    /// Names it in [`Window::settle`].
    pub id: u64,
    /// At least one.
    pub records: Vec<Arc<UsageRecord>>,
    /// How many of them were sent before.
    pub retried: u64,
}

/// What came of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver has the records.
    Delivered,
    /// It cannot be reached or is overloaded; it may have said for how long.
    Again(Option<Duration>),
    /// It answered and did not take them; the records may be at fault, or the receiver.
    Failed,
    /// It will never take them as they are.
    Refused,
}

/// What the end of a batch finished.
#[derive(Default)]
pub struct Settled {
    /// Records delivered.
    pub delivered: u64,
    /// The record that is given up.
    pub buried: Option<Arc<UsageRecord>>,
}

impl Window {
    /// An empty one. The seed should be random.
    pub fn new(shape: Shape, waits: Waits, seed: u64) -> Self {
        let ahead = shape.batch.saturating_mul(shape.concurrency).saturating_mul(4);
        Window {
            shape,
            most: ahead.clamp(LANE_RECORDS_MIN, LANE_RECORDS_MAX),
            backoff: Backoff::new(waits, seed),
            open: BTreeMap::new(),
            keys: HashMap::new(),
            heads: BTreeSet::new(),
            flights: HashMap::new(),
            launched: 0,
            delivered: 0,
            read_to: 0,
            body_bytes: 0,
        }
    }

    /// Records that may be added now.
    pub fn room(&self) -> usize {
        let oldest = self.open.keys().next().map_or(self.read_to, |first| *first);
        let far = self.read_to.saturating_sub(oldest) >= LANE_SPAN_MAX;
        if far || self.body_bytes >= LANE_BODY_BYTES_MAX {
            return 0;
        }
        self.most.saturating_sub(self.open.len())
    }

    /// Adds the next record of the source. Records with the same `key` keep their order.
    pub fn add(&mut self, seq: u64, key: Option<u64>, record: Arc<UsageRecord>) {
        self.read_to = seq;
        self.body_bytes += body_bytes(&record);
        let first = match key {
            None => true,
            Some(key) => {
                let queue = self.keys.entry(key).or_default();
                queue.push_back(seq);
                queue.len() == 1
            }
        };
        if first {
            self.heads.insert(seq);
        }
        let held = Held {
            record,
            key,
            flying: false,
            tried: false,
            not_before: None,
            batch: self.shape.batch.max(1),
            refused: 0,
            failed: 0,
            proven: 0,
            lost: 0,
            failed_at: 0,
            stood_back: 0,
        };
        self.open.insert(seq, held);
    }

    /// All up to this place of the source are finished.
    pub fn finished(&self) -> u64 {
        self.open.keys().next().map_or(self.read_to, |first| first.saturating_sub(1))
    }

    /// Records that are not finished.
    pub fn unfinished(&self) -> usize {
        self.open.len()
    }

    /// Batches that are under way.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// True while the receiver is held to be down.
    pub fn is_down(&self) -> bool {
        self.backoff.is_down()
    }

    /// The next batch; `None` when nothing may be sent before something is settled or added, or
    /// before [`Window::wake`].
    pub fn next(&mut self, now: Instant) -> Option<Batch> {
        if self.flights.len() >= self.shape.concurrency.max(1) {
            return None;
        }
        let leave = self.backoff.leave(now);
        match leave {
            Leave::All => {}
            Leave::One if !self.is_asking() => {}
            _ => return None,
        }
        let seqs = match leave {
            Leave::All => self.choose(now, |_| true),
            _ => self.sample(now),
        };
        (!seqs.is_empty()).then(|| self.launch(seqs))
    }

    /// When [`Window::next`] may have something to send, if nothing else happens: always later
    /// than `now`, if that gave `None` just now. `None` = it needs a record, or the end of a batch.
    pub fn wake(&self, now: Instant) -> Option<Instant> {
        if self.flights.len() >= self.shape.concurrency.max(1) || self.open.is_empty() {
            return None;
        }
        match self.backoff.leave(now) {
            Leave::NotBefore(until) => Some(until),
            Leave::One if self.is_asking() => None,
            _ => {
                let own = |seq: &u64| self.open.get(seq)?.not_before;
                self.heads.iter().filter_map(own).filter(|time| *time > now).min()
            }
        }
    }

    /// Ends all waits, so that each record gets one more try before the end.
    pub fn hurry(&mut self, now: Instant) {
        self.backoff.hurry(now);
        self.open.values_mut().for_each(|held| held.not_before = None);
    }

    /// Takes in what came of a batch.
    pub fn settle(&mut self, id: u64, outcome: Outcome, now: Instant) -> Settled {
        let mut settled = Settled::default();
        let Some(Flight { seqs, round }) = self.flights.remove(&id) else { return settled };
        for seq in &seqs {
            if let Some(held) = self.open.get_mut(seq) {
                held.flying = false;
            }
        }
        match outcome {
            Outcome::Delivered => {
                self.backoff.answered(round);
                self.delivered += 1;
                settled.delivered = seqs.len() as u64;
                seqs.iter().for_each(|seq| drop(self.close(*seq)));
            }
            Outcome::Again(named) => {
                self.backoff.failed(round, named, now);
                self.lost(&seqs, now);
                self.stand_back(&seqs);
            }
            Outcome::Refused => {
                self.backoff.answered(round);
                settled.buried = self.refused(&seqs, now);
            }
            Outcome::Failed => settled.buried = self.failed(&seqs, round, now),
        }
        seqs.iter().for_each(|seq| self.lie_still(*seq));
        settled
    }

    /// What is refused for good is looked at one by one, and each has its tries.
    fn refused(&mut self, seqs: &[u64], now: Instant) -> Option<Arc<UsageRecord>> {
        let [alone] = seqs else {
            self.cut(seqs, 1);
            return None;
        };
        let held = self.open.get_mut(alone)?;
        held.refused += 1;
        if held.refused > self.shape.retries {
            return self.close(*alone);
        }
        held.not_before = Some(now + self.backoff.wait(held.refused));
        None
    }

    /// A failure may be the record's or the receiver's. Whether others were delivered between two
    /// failures of a record tells them apart.
    fn failed(&mut self, seqs: &[u64], round: u64, now: Instant) -> Option<Arc<UsageRecord>> {
        let [alone] = seqs else {
            self.cut(seqs, seqs.len().div_ceil(2));
            self.backoff.doubt(round, now);
            self.stand_back(seqs);
            return None;
        };
        let held = self.open.get_mut(alone)?;
        let is_first = held.failed == 0;
        let is_alone = !is_first && self.delivered > held.failed_at;
        held.failed = held.failed.saturating_add(1);
        held.failed_at = self.delivered;
        held.proven += u32::from(is_first || is_alone);
        // A single failure proves nothing, whatever number of tries is wanted.
        if held.proven > self.shape.retries.max(1) {
            return self.close(*alone);
        }
        held.not_before = Some(now + self.backoff.wait(held.proven));
        if !is_alone {
            self.backoff.doubt(round, now);
            self.stand_back(seqs);
        }
        None
    }

    /// Nobody is to blame for a receiver that is away. But what does not get through while others
    /// do may be too large, or cut the connection: it is sent in pieces, and less often.
    fn lost(&mut self, seqs: &[u64], now: Instant) {
        let mut is_alone = self.backoff.is_down_again();
        for held in seqs.iter().filter_map(|seq| self.open.get(seq)) {
            is_alone |= held.lost > 0 && self.delivered > held.failed_at;
        }
        for seq in seqs {
            let Some(held) = self.open.get_mut(seq) else { continue };
            held.lost += u32::from(held.lost == 0 || self.delivered > held.failed_at);
            held.failed_at = self.delivered;
            if is_alone && seqs.len() == 1 && held.lost > 1 {
                held.not_before = Some(now + self.backoff.wait(held.lost));
            }
        }
        if is_alone && seqs.len() > 1 {
            self.cut(seqs, seqs.len().div_ceil(2));
        }
    }

    /// Lets others go first in this round, and tell whether the receiver is well.
    fn stand_back(&mut self, seqs: &[u64]) {
        for seq in seqs {
            if let Some(held) = self.open.get_mut(seq) {
                held.stood_back = self.backoff.round();
            }
        }
    }

    fn cut(&mut self, seqs: &[u64], batch: usize) {
        for seq in seqs {
            if let Some(held) = self.open.get_mut(seq) {
                held.batch = held.batch.min(batch);
            }
        }
    }

    /// Takes a finished record out.
    fn close(&mut self, seq: u64) -> Option<Arc<UsageRecord>> {
        let held = self.open.remove(&seq)?;
        self.heads.remove(&seq);
        self.body_bytes = self.body_bytes.saturating_sub(body_bytes(&held.record));
        if let Some(key) = held.key {
            let queue = self.keys.get_mut(&key)?;
            queue.retain(|other| *other != seq);
            match queue.front() {
                Some(next) if self.open.get(next).is_some_and(|held| !held.flying) => {
                    self.heads.insert(*next);
                }
                Some(_) => {}
                None => drop(self.keys.remove(&key)),
            }
        }
        Some(held.record)
    }

    /// A record that comes back may be the head of its key again.
    fn lie_still(&mut self, seq: u64) {
        let Some(held) = self.open.get(&seq) else { return };
        let queue = held.key.and_then(|key| self.keys.get(&key));
        if queue.is_none_or(|queue| queue.front() == Some(&seq)) {
            self.heads.insert(seq);
        }
    }

    fn is_asking(&self) -> bool {
        self.flights.values().any(|flight| flight.round == self.backoff.round())
    }

    /// The oldest records that may go together now.
    fn choose(&self, now: Instant, fits: impl Fn(&Held) -> bool) -> Vec<u64> {
        let (mut seqs, mut bytes, mut most) = (Vec::new(), 0, usize::MAX);
        let mut heads = self.heads.iter().copied().peekable();
        // Those whose turn it is when what was chosen goes: with their place in the key's queue.
        let mut heirs: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
        loop {
            let heir = heirs.peek().map(|Reverse((seq, _))| *seq);
            let (seq, place) = match (heads.peek(), heir) {
                (Some(head), Some(heir)) if heir < *head => heirs.pop().map(|r| r.0),
                (None, Some(_)) => heirs.pop().map(|r| r.0),
                _ => heads.next().map(|seq| (seq, 0)),
            }
            .unwrap_or((u64::MAX, 0));
            let Some(held) = self.open.get(&seq) else { break };
            if held.flying || held.not_before.is_some_and(|time| time > now) || !fits(held) {
                continue;
            }
            most = most.min(held.batch);
            bytes += body_bytes(&held.record);
            if seqs.len() >= most || (!seqs.is_empty() && bytes > BATCH_BODY_BYTES_MAX) {
                break;
            }
            seqs.push(seq);
            let queue = held.key.and_then(|key| self.keys.get(&key));
            if let Some(heir) = queue.and_then(|queue| queue.get(place + 1)) {
                heirs.push(Reverse((*heir, place + 1)));
            }
        }
        seqs
    }

    /// What tells whether the receiver is well, or the record that failed at fault: others, if
    /// possible such as are not under suspicion themselves.
    fn sample(&self, now: Instant) -> Vec<u64> {
        let round = self.backoff.round();
        let others = self.choose(now, |held| held.stood_back != round && !self.is_suspect(held));
        if !others.is_empty() {
            return others;
        }
        let scout = self.backoff.is_doubted().then(|| self.scout(now)).flatten();
        scout.map_or_else(|| self.choose(now, |_| true), |seq| vec![seq])
    }

    /// It failed in all its tries, and nothing was delivered since: nobody knows whether it or the
    /// receiver is at fault.
    fn is_suspect(&self, held: &Held) -> bool {
        held.failed > self.shape.retries && held.failed_at == self.delivered
    }

    /// One record that may overtake: all before it of its key are suspects that lie still.
    fn scout(&self, now: Instant) -> Option<u64> {
        let mut held_up = HashSet::new();
        let (seq, _) = self.open.iter().find(|(_, held)| {
            let free = held.key.is_none_or(|key| !held_up.contains(&key));
            let waits = held.flying || held.not_before.is_some_and(|time| time > now);
            let gone_by = self.is_suspect(held) && !held.flying;
            if let Some(key) = held.key.filter(|_| !gone_by) {
                held_up.insert(key);
            }
            free && !waits && !gone_by
        })?;
        Some(*seq)
    }

    fn launch(&mut self, seqs: Vec<u64>) -> Batch {
        self.launched += 1;
        let id = self.launched;
        let mut records = Vec::with_capacity(seqs.len());
        let mut retried = 0;
        for seq in &seqs {
            self.heads.remove(seq);
            if let Some(held) = self.open.get_mut(seq) {
                held.flying = true;
                retried += u64::from(std::mem::replace(&mut held.tried, true));
                records.push(Arc::clone(&held.record));
            }
        }
        self.flights.insert(id, Flight { seqs, round: self.backoff.round() });
        Batch { id, records, retried }
    }
}

fn body_bytes(record: &UsageRecord) -> usize {
    record.request_body.as_ref().map_or(0, Vec::len)
}

#[cfg(test)]
mod tests;
