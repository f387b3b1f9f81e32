//! One record that is not finished, and who is to blame for its tries.
//!
//! A failure (a refusal is one) or a loss may be the receiver's: it counts as proof only when
//! something else was delivered, so that no number of bad hours gives up a record.

use crate::base::limits::{LANE_LOSSES_PROVEN_MAX, LANE_LOSSES_PROVEN_SOME, LANE_OVERTAKEN_LOSSES};
use crate::usage::record::UsageRecord;
use std::sync::Arc;
use std::time::Instant;

/// A record is tried so often at least after its first failure, whatever is configured: an outage
/// that begins or ends between two tries gives one proof that is none.
pub const RETRIES_LEAST: u32 = 2;

/// A record of the window.
pub struct Held {
    /// Itself.
    pub record: Arc<UsageRecord>,
    /// Records of one key keep their order.
    pub key: Option<u64>,
    /// It is in a batch that is under way.
    pub flying: bool,
    /// It was in a batch before.
    pub tried: bool,
    /// Its own wait.
    pub not_before: Option<Instant>,
    /// Records of the largest batch that it may be in.
    pub batch: usize,
    /// The round in which others go first, because this one failed.
    pub stood_back: u64,
    /// Tries that failed, alone.
    failed: u32,
    /// Of these, the first and those with a delivery between it and the failure before.
    failed_proven: u32,
    /// Tries that did not get through, counted like `failed_proven`.
    lost: u32,
    /// Tries that did not get through, alone, since one of them was proven by other keys.
    lost_alone: u32,
    /// All those after which the next that was sent was delivered.
    lost_proven: u32,
    /// Batches that were delivered in all when it failed or did not get through last.
    failed_at: u64,
}

/// What a failure says.
pub struct Failure {
    /// The record has had its tries, and is at fault.
    pub is_last: bool,
    /// Others were delivered since it failed before: the receiver is well.
    pub is_its_own: bool,
}

impl Held {
    /// One that was never tried.
    pub fn new(record: Arc<UsageRecord>, key: Option<u64>, batch: usize) -> Held {
        Held {
            record,
            key,
            flying: false,
            tried: false,
            not_before: None,
            batch,
            stood_back: 0,
            failed: 0,
            failed_proven: 0,
            lost: 0,
            lost_alone: 0,
            lost_proven: 0,
            failed_at: 0,
        }
    }

    /// True when it is under way, or has a wait of its own.
    pub fn is_busy(&self, now: Instant) -> bool {
        self.flying || self.not_before.is_some_and(|time| time > now)
    }

    /// Bytes of its request body.
    pub fn body_bytes(&self) -> usize {
        body_bytes(&self.record)
    }

    /// It failed, alone, when so many batches had been delivered. Whether others were delivered
    /// between two failures of a record tells its fault from the receiver's.
    pub fn fail(&mut self, delivered: u64, retries: u32) -> Failure {
        let is_first = self.failed == 0;
        let is_its_own = !is_first && delivered > self.failed_at;
        self.failed = self.failed.saturating_add(1);
        self.failed_at = delivered;
        self.failed_proven += u32::from(is_first || is_its_own);
        Failure { is_last: self.failed_proven > retries.max(RETRIES_LEAST), is_its_own }
    }

    /// It did not get through, when so many batches had been delivered. True when that is not the
    /// first time, and others got through since.
    pub fn lose(&mut self, delivered: u64) -> bool {
        let is_first = self.lost == 0;
        let others_did = delivered > self.failed_at;
        self.lost = self.lost.saturating_add(u32::from(is_first || others_did));
        self.failed_at = delivered;
        !is_first && others_did
    }

    /// It was alone when it did not get through. True when it is at fault: `is_pressing` says that
    /// it holds up as much as may be held up, and less has to do.
    pub fn lose_alone(&mut self, is_pressing: bool) -> bool {
        self.lost_alone = self.lost_alone.saturating_add(1);
        let most = if is_pressing { LANE_LOSSES_PROVEN_SOME } else { LANE_LOSSES_PROVEN_MAX };
        self.lost_proven >= most
    }

    /// The next that was sent after its loss was delivered, and had no record of its key.
    pub fn prove_loss(&mut self, by_others: bool) {
        if by_others {
            self.lost_alone = 0;
        }
        self.lost_proven = self.lost_proven.saturating_add(1);
    }

    /// Repeated tries of the kinds that have a growing wait: failures, losses.
    pub fn tries(&self) -> [u32; 2] {
        [self.failed_proven, self.lost]
    }

    /// Tries alone that failed, and those that did not get through since others told that the
    /// receiver was well.
    pub fn tries_alone(&self) -> u32 {
        self.failed.saturating_add(self.lost_alone)
    }

    /// It may cut each connection that it comes over.
    pub fn is_suspect(&self) -> bool {
        self.lost > 1 || self.is_often_lost()
    }

    /// It cannot tell how the receiver is: it was not taken, alone, and nothing was delivered
    /// since.
    pub fn has_told(&self, delivered: u64) -> bool {
        self.failed > 0 && self.failed_at == delivered
    }

    /// So many losses, alone, do not tell whether it or the receiver is at fault. Should nothing of
    /// another key be there to tell, one of its own may overtake it.
    pub fn is_often_lost(&self) -> bool {
        self.lost_alone >= LANE_OVERTAKEN_LOSSES
    }
}

/// Bytes of a record's request body.
pub fn body_bytes(record: &UsageRecord) -> usize {
    record.request_body.as_ref().map_or(0, Vec::len)
}
