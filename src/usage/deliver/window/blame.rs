//! What a batch that was not delivered says of its records and of the receiver.

use super::{Given, Window};
use std::collections::HashSet;
use std::time::{Duration, Instant};

impl Window {
    /// A failure may be the record's or the receiver's: one that has lost its token or its route
    /// refuses whatever it gets. What failed together goes in pieces of `piece` records.
    pub(super) fn failed(
        &mut self,
        seqs: &[u64],
        (round, piece): (u64, usize),
        now: Instant,
    ) -> Option<Given> {
        let [alone] = seqs else {
            self.cut(seqs, piece);
            self.ask_others(seqs, round, now);
            return None;
        };
        let held = self.open.get_mut(alone)?;
        let failure = held.fail(self.delivered, self.shape.retries);
        if failure.is_last {
            return self.give_up(*alone);
        }
        let [failed, _] = held.tries();
        held.not_before = Some(now + self.backoff.wait(failed));
        held.batch = 1;
        if !failure.is_its_own {
            self.ask_others(seqs, round, now);
        }
        None
    }

    /// These were answered and not taken: what becomes of another tells whose fault that is.
    fn ask_others(&mut self, seqs: &[u64], round: u64, now: Instant) {
        let has_other = self.has_opinion(now);
        self.backoff.refused(round, has_other, now);
        self.stand_back(seqs);
    }

    /// Nobody is to blame for a receiver that is away. But what does not get through while others
    /// do may be too large, or cut the connection: it is sent in pieces, and less often.
    pub(super) fn lost(
        &mut self,
        seqs: &[u64],
        round: u64,
        named: Option<Duration>,
        now: Instant,
    ) -> Option<Given> {
        let (delivered, mut others_did) = (self.delivered, false);
        for seq in seqs {
            let held = self.open.get_mut(seq);
            others_did |= held.is_some_and(|held| held.lose(delivered));
        }
        let [alone] = seqs else {
            self.backoff.failed(round, named, now);
            if others_did || self.backoff.waits() > 1 {
                self.cut(seqs, seqs.len().div_ceil(2));
            }
            self.stand_back(seqs);
            return None;
        };
        let is_pressed = self.is_pressed();
        let held = self.open.get_mut(alone)?;
        if held.lose_alone(is_pressed) {
            return self.give_up(*alone);
        }
        let mut is_asked = false;
        if held.is_suspect() {
            let [_, lost] = held.tries();
            held.not_before = Some(now + self.backoff.wait(lost));
            // A wait that the receiver asked for is kept, unless none but this record gets it.
            let may_ask = named.is_none() || held.is_often_lost();
            is_asked = may_ask && self.backoff.question(round, now);
        }
        let before = self.backoff.round();
        if !is_asked {
            self.backoff.failed(round, named, now);
        }
        if is_asked || self.backoff.round() > before {
            self.accused = Some((*alone, self.backoff.round()));
        }
        self.stand_back(seqs);
        None
    }

    /// These, sent in this round, were delivered. If the round began with the loss of a record,
    /// nothing was lost between: so it was not the receiver.
    pub(super) fn prove(&mut self, seqs: &[u64], round: u64) {
        let Some((accused, _)) = self.accused.take_if(|(_, since)| *since == round) else { return };
        let keys = seqs.iter().filter_map(|seq| self.open.get(seq)?.key).collect::<HashSet<_>>();
        if let Some(held) = self.open.get_mut(&accused) {
            held.prove_loss(held.key.is_none_or(|key| !keys.contains(&key)));
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

    fn give_up(&mut self, seq: u64) -> Option<Given> {
        Some(Given { seq, record: self.close(seq)? })
    }

    fn cut(&mut self, seqs: &[u64], batch: usize) {
        for seq in seqs {
            if let Some(held) = self.open.get_mut(seq) {
                held.batch = held.batch.min(batch);
            }
        }
    }
}
