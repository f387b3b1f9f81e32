//! What a lane sends next: a pure state machine over the records that were read ahead.
//!
//! - Records of one key keep their order: none is sent while an earlier one of its key is not
//!   finished, unless both are in the same batch. Records without a key have no order.
//! - A batch that the receiver does not take is cut in pieces until the record at fault is alone.
//! - A record that fails or is refused again and again while others are delivered in between is
//!   buried: it alone is at fault. Meanwhile it holds up its own key. When everything is refused
//!   alike, the receiver is as good as away. To tell the two apart, others are tried at once, one
//!   at a time and alone, picked at random from those that were not tried since something was
//!   delivered last: however many bad ones there are, each is tried once before any is tried
//!   twice. There is no wait before that ends ([`LANE_OPINIONS_MAX`]), and no long one after.
//! - A receiver that cannot be reached never costs a record, only time ([`super::backoff`]). But a
//!   record may cut each connection that it comes over. Its loss, alone, counts as proven when the
//!   very next that is sent is delivered; after [`LANE_LOSSES_PROVEN_MAX`] of those, at growing
//!   waits, it is buried with the next. An outage gives one proof at most, and a receiver that
//!   loses requests at random gives each with a chance of one half at most, whatever it loses.
//! - While it seems away, all that may go first takes turns: several bad ones tell nothing.
//! - What came back holds up its own key and no other: neither it nor what waits behind it takes
//!   room from the rest, up to a limit. Beyond, fewer proofs have to do.
//! - If all that waits is held up by records that were refused or lost many times, one at a time
//!   may overtake them to find out; that is the only way in which the order yields.

mod blame;
mod choice;
mod held;

use super::backoff::{Backoff, Leave, Waits};
use crate::base::limits::{
    LANE_BODY_BYTES_MAX, LANE_HELD_UP_RECORDS_MAX, LANE_RECORDS_MAX, LANE_RECORDS_MIN,
    LANE_SPAN_MAX,
};
#[cfg(doc)]
use crate::base::limits::{LANE_LOSSES_PROVEN_MAX, LANE_OPINIONS_MAX};
use crate::usage::record::UsageRecord;
use crate::usage::reporter::Shape;
use held::{body_bytes, Held};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Batches for each sender that are read ahead, within the limits.
const BATCHES_AHEAD: usize = 2;

/// The records that are not finished, and what is known of them.
pub struct Window {
    shape: Shape,
    /// Records that are held at most.
    most: usize,
    /// Records beyond that, as long as so many are held up.
    most_held_up: usize,
    backoff: Backoff,
    /// By their place in the source.
    open: BTreeMap<u64, Held>,
    /// The open records of each key, in order.
    keys: HashMap<u64, Queue>,
    /// Records that lie still and have no open one of their key before them.
    heads: BTreeSet<u64>,
    /// Records that came back when they were first of their key.
    returned: HashSet<u64>,
    flights: HashMap<u64, Flight>,
    /// Flights so far; the number of one is its name.
    launched: u64,
    /// Batches that were delivered so far, each in the round in which it was sent.
    delivered: u64,
    /// A record that did not get through, alone, and the round that began with that.
    accused: Option<(u64, u64)>,
    read_to: u64,
    body_bytes: usize,
}

/// The open records of one key.
#[derive(Default)]
struct Queue {
    seqs: VecDeque<u64>,
    body_bytes: usize,
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
pub enum BatchOutcome {
    /// The receiver has the records.
    Delivered,
    /// It cannot be reached or is overloaded; it may have said for how long.
    Again(Option<Duration>),
    /// It answered and did not take them; the records may be at fault, or the receiver.
    Failed,
    /// It answered that it will not take them as they are.
    Refused,
}

/// What the end of a batch finished.
#[derive(Default)]
pub struct Settled {
    /// Records delivered.
    pub delivered: u64,
    /// The record that is given up.
    pub buried: Option<Given>,
}

/// A record that is given up: not the window's any more.
pub struct Given {
    /// Its place in the source.
    pub seq: u64,
    /// Itself.
    pub record: Arc<UsageRecord>,
}

impl Window {
    /// An empty one. The seed should be random.
    pub fn new(shape: Shape, waits: Waits, seed: u64) -> Self {
        let ahead = shape.batch.saturating_mul(shape.concurrency).saturating_mul(BATCHES_AHEAD);
        Window {
            shape,
            most: ahead.clamp(LANE_RECORDS_MIN, LANE_RECORDS_MAX),
            most_held_up: LANE_HELD_UP_RECORDS_MAX,
            backoff: Backoff::new(waits, seed),
            open: BTreeMap::new(),
            keys: HashMap::new(),
            heads: BTreeSet::new(),
            returned: HashSet::new(),
            flights: HashMap::new(),
            launched: 0,
            delivered: 0,
            accused: None,
            read_to: 0,
            body_bytes: 0,
        }
    }

    /// Records that may be added now.
    pub fn room(&self) -> usize {
        let is_full = self.open.len() >= self.most || self.body_bytes >= LANE_BODY_BYTES_MAX;
        let (records, bytes) = if is_full { self.held_up() } else { (0, 0) };
        let bytes = self.body_bytes.saturating_sub(bytes.min(LANE_BODY_BYTES_MAX));
        if self.is_far() || bytes >= LANE_BODY_BYTES_MAX {
            return 0;
        }
        (self.most + records.min(self.most_held_up)).saturating_sub(self.open.len())
    }

    /// The records that came back and what waits behind them, and the bytes of their bodies.
    fn held_up(&self) -> (usize, usize) {
        let returned = self.returned.iter().filter_map(|seq| self.open.get(seq));
        returned.fold((0, 0), |(records, bytes), held| {
            let queue = held.key.and_then(|key| self.keys.get(&key));
            let (more, size) =
                queue.map_or((1, held.body_bytes()), |queue| (queue.seqs.len(), queue.body_bytes));
            (records + more, bytes + size)
        })
    }

    /// Much was finished since the oldest was read.
    fn is_far(&self) -> bool {
        let oldest = self.open.keys().next().map_or(self.read_to, |first| *first);
        self.read_to.saturating_sub(oldest) >= LANE_SPAN_MAX
    }

    /// As much is held up as may be: soon nothing more can be read.
    fn is_pressed(&self) -> bool {
        let (records, bytes) = self.held_up();
        self.is_far() || records >= self.most_held_up || bytes >= LANE_BODY_BYTES_MAX
    }

    /// Adds the next record of the source. Records with the same `key` keep their order.
    pub fn add(&mut self, seq: u64, key: Option<u64>, record: Arc<UsageRecord>) {
        self.read_to = seq;
        let bytes = body_bytes(&record);
        self.body_bytes += bytes;
        let first = match key {
            None => true,
            Some(key) => {
                let queue = self.keys.entry(key).or_default();
                queue.seqs.push_back(seq);
                queue.body_bytes += bytes;
                queue.seqs.len() == 1
            }
        };
        if first {
            self.heads.insert(seq);
            self.backoff.call();
        }
        self.open.insert(seq, Held::new(record, key, self.shape.batch.max(1)));
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

    /// True when nothing is held, and nothing is known against the receiver: what is read may be
    /// sent without a place in here.
    pub fn is_clear(&self) -> bool {
        self.open.is_empty() && self.flights.is_empty() && self.backoff.is_well()
    }

    /// A batch that ends at this place of the source was delivered and never had a place in here.
    /// To be called when [`Window::is_clear`].
    pub fn passed(&mut self, through: u64) {
        let round = self.backoff.round();
        self.read_to = through;
        self.delivered += 1;
        self.backoff.answered(round);
        self.prove(&[], round);
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

    /// Gives back the memory that a burst took.
    pub fn rest(&mut self) {
        self.keys.shrink_to(LANE_RECORDS_MIN);
        self.returned.shrink_to(LANE_RECORDS_MIN);
    }

    /// Takes in what came of a batch.
    pub fn settle(&mut self, id: u64, outcome: BatchOutcome, now: Instant) -> Settled {
        let mut settled = Settled::default();
        let Some(Flight { seqs, round }) = self.flights.remove(&id) else { return settled };
        for seq in &seqs {
            if let Some(held) = self.open.get_mut(seq) {
                held.flying = false;
            }
        }
        seqs.iter().for_each(|seq| self.lie_still(*seq));
        match outcome {
            BatchOutcome::Delivered => {
                // What was sent before a refusal and comes after it says nothing of the time since.
                self.delivered += u64::from(round == self.backoff.round());
                self.backoff.answered(round);
                settled.delivered = seqs.len() as u64;
                self.prove(&seqs, round);
                seqs.iter().for_each(|seq| drop(self.close(*seq)));
            }
            BatchOutcome::Again(named) => settled.buried = self.lost(&seqs, round, named, now),
            // What is refused is looked at one by one: the others are welcome.
            BatchOutcome::Refused => settled.buried = self.failed(&seqs, (round, 1), now),
            BatchOutcome::Failed => {
                let half = seqs.len().div_ceil(2);
                settled.buried = self.failed(&seqs, (round, half), now);
            }
        }
        settled
    }

    /// Takes a finished record out.
    fn close(&mut self, seq: u64) -> Option<Arc<UsageRecord>> {
        let held = self.open.remove(&seq)?;
        self.heads.remove(&seq);
        self.returned.remove(&seq);
        let bytes = held.body_bytes();
        self.body_bytes = self.body_bytes.saturating_sub(bytes);
        if let Some(key) = held.key {
            let queue = self.keys.get_mut(&key)?;
            queue.body_bytes = queue.body_bytes.saturating_sub(bytes);
            match queue.seqs.front() {
                Some(first) if *first == seq => drop(queue.seqs.pop_front()),
                _ => queue.seqs.retain(|other| *other != seq),
            }
            match queue.seqs.front() {
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
        if queue.is_none_or(|queue| queue.seqs.front() == Some(&seq)) {
            self.heads.insert(seq);
            self.returned.insert(seq);
        }
    }

    fn is_asking(&self) -> bool {
        self.flights.values().any(|flight| flight.round == self.backoff.round())
    }

    /// These go together, and are free to: [`Window::next`] chose them, or they were sent before
    /// they had a place in here.
    pub fn launch(&mut self, seqs: Vec<u64>) -> Batch {
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

#[cfg(test)]
mod tests;
