//! Which records of the window go together next.

use super::held::Held;
use super::Window;
use crate::base::limits::{BATCH_BODY_BYTES_MAX, LANE_REFUSED_WAITS_MAX};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::time::Instant;

impl Window {
    /// The oldest records that may go together now.
    pub(super) fn choose(&self, now: Instant, fits: impl Fn(&Held) -> bool) -> Vec<u64> {
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
            if held.is_busy(now) || !fits(held) {
                continue;
            }
            most = most.min(held.batch);
            bytes += held.body_bytes();
            if seqs.len() >= most || (!seqs.is_empty() && bytes > BATCH_BODY_BYTES_MAX) {
                break;
            }
            seqs.push(seq);
            let queue = held.key.and_then(|key| self.keys.get(&key));
            if let Some(heir) = queue.and_then(|queue| queue.seqs.get(place + 1)) {
                heirs.push(Reverse((*heir, place + 1)));
            }
        }
        seqs
    }

    /// What tells whether the receiver is well, or the record that failed at fault: others, if
    /// possible such as are not under suspicion themselves.
    pub(super) fn sample(&mut self, now: Instant) -> Vec<u64> {
        if self.backoff.is_refusing() {
            let place = self.backoff.random();
            if let Some(seq) = self.opinion(place, now) {
                return vec![seq];
            }
        }
        let round = self.backoff.round();
        let is_other = |held: &Held| held.stood_back != round;
        let may_tell = |held: &Held| is_other(held) && !self.may_be_overtaken(held);
        let is_clean = |held: &Held| may_tell(held) && !held.is_suspect();
        let scout = || match self.is_out_of_patience() {
            true => self.scout(now, true),
            false => self.backoff.is_doubted().then(|| self.scout(now, false)).flatten(),
        };
        let choices: [&dyn Fn() -> Vec<u64>; 5] = [
            &|| self.least_tried(now, &is_clean),
            &|| self.least_tried(now, &may_tell),
            &|| scout().into_iter().collect(),
            &|| self.least_tried(now, &is_other),
            &|| self.choose(now, |_| true),
        ];
        choices.iter().map(|choice| choice()).find(|seqs| !seqs.is_empty()).unwrap_or_default()
    }

    /// Each in its turn: where several are at fault, to try the oldest of them again and again
    /// tells nothing.
    fn least_tried(&self, now: Instant, fits: &dyn Fn(&Held) -> bool) -> Vec<u64> {
        let heads = self.heads.iter().filter_map(|seq| self.open.get(seq));
        let heads = heads.filter(|held| !held.is_busy(now) && fits(held));
        let least = heads.map(Held::tries_alone).min();
        self.choose(now, |held| fits(held) && Some(held.tries_alone()) == least)
    }

    /// One record with which a receiver that refuses was not asked since it took something last.
    /// Which one is left to chance, so that nobody can put bad ones where we look.
    fn opinion(&self, place: u64, now: Instant) -> Option<u64> {
        let new = || self.heads.iter().filter(|seq| self.is_new(**seq, now));
        let place = place.checked_rem(new().count() as u64).unwrap_or_default();
        let head = new().nth(place as usize).copied();
        head.or_else(|| self.is_out_of_patience().then(|| self.scout(now, false)).flatten())
    }

    /// There is such a record, or it is under way.
    pub(super) fn has_opinion(&self, now: Instant) -> bool {
        !self.flights.is_empty()
            || self.heads.iter().any(|seq| self.is_new(*seq, now))
            || (self.is_out_of_patience() && self.scout(now, false).is_some())
    }

    fn is_new(&self, seq: u64, now: Instant) -> bool {
        let held = self.open.get(&seq).filter(|held| !held.is_busy(now) && !held.is_suspect());
        held.is_some_and(|held| !held.has_told(self.delivered))
    }

    /// One record that may overtake: all before it of its key lie still and may be overtaken. If
    /// asked for again, it may be one that could be overtaken itself: then the least tried.
    fn scout(&self, now: Instant, again: bool) -> Option<u64> {
        let mut held_up = HashSet::new();
        let free = self.open.iter().filter_map(|(seq, held)| {
            let free = held.key.is_none_or(|key| !held_up.contains(&key));
            let gone_by = self.may_be_overtaken(held) && !held.flying;
            if let Some(key) = held.key.filter(|_| !gone_by) {
                held_up.insert(key);
            }
            (free && !held.is_busy(now) && (again || !gone_by))
                .then(|| (gone_by, if gone_by { held.tries_alone() } else { 0 }, *seq))
        });
        free.min().map(|(_, _, seq)| seq)
    }

    /// Its tries do not tell whether it or the receiver is at fault.
    pub(super) fn may_be_overtaken(&self, held: &Held) -> bool {
        let has_told = held.has_told(self.delivered) && self.is_out_of_patience();
        has_told || held.is_often_lost()
    }

    /// A receiver that refuses did not come back in more waits than a record has tries: to keep the
    /// order would be to learn nothing.
    fn is_out_of_patience(&self) -> bool {
        let waits = self.shape.retries.min(LANE_REFUSED_WAITS_MAX - 1);
        self.backoff.is_refusing() && self.backoff.waits() > waits
    }
}
