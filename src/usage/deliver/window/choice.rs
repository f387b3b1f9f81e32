//! Which records of the window go together next.

use super::held::Held;
use super::Window;
use crate::base::limits::BATCH_BODY_BYTES_MAX;
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
    pub(super) fn sample(&self, now: Instant) -> Vec<u64> {
        let round = self.backoff.round();
        let is_other = |held: &Held| held.stood_back != round;
        let may_tell = |held: &Held| is_other(held) && !self.may_be_overtaken(held);
        let scout = || self.backoff.is_doubted().then(|| self.scout(now)).flatten();
        let is_clean = |held: &Held| may_tell(held) && !held.is_suspect();
        // Each in its turn: where several are at fault, to try the oldest of them again and again
        // tells nothing.
        let heads = self.heads.iter().filter_map(|seq| self.open.get(seq));
        let heads = heads.filter(|held| !held.is_busy(now) && is_clean(held));
        let least = heads.map(Held::tries_alone).min();
        let choices: [&dyn Fn() -> Vec<u64>; 5] = [
            &|| self.choose(now, |held| is_clean(held) && Some(held.tries_alone()) == least),
            &|| self.choose(now, may_tell),
            &|| scout().into_iter().collect(),
            &|| self.choose(now, is_other),
            &|| self.choose(now, |_| true),
        ];
        choices.iter().map(|choice| choice()).find(|seqs| !seqs.is_empty()).unwrap_or_default()
    }

    /// One record that may overtake: all before it of its key are suspects that lie still.
    fn scout(&self, now: Instant) -> Option<u64> {
        let mut held_up = HashSet::new();
        let (seq, _) = self.open.iter().find(|(_, held)| {
            let free = held.key.is_none_or(|key| !held_up.contains(&key));
            let gone_by = self.may_be_overtaken(held) && !held.flying;
            if let Some(key) = held.key.filter(|_| !gone_by) {
                held_up.insert(key);
            }
            free && !held.is_busy(now) && !gone_by
        })?;
        Some(*seq)
    }

    fn may_be_overtaken(&self, held: &Held) -> bool {
        held.may_be_overtaken(self.delivered, self.shape.retries)
    }
}
