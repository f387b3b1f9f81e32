//! The hand-over of records from the workers to the delivering threads: bounded, never waiting.

use super::counters::{count, UsageCounters};
use super::record::UsageRecord;
use crate::base::limits::{OUTBOX_BODY_BYTES_MAX, OUTBOX_RECORDS_MAX, RECORDS_SPARE_MAX};
use crate::config::plan::Reporter;
use crossbeam_channel::{Receiver, Sender};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

/// One of so many spare records is given up by a sweep.
const SPARES_PER_SWEEP: usize = 64;

/// Makes both ends for these reporters.
pub fn open(reporters: &[Reporter]) -> (Outbox, Inbox) {
    with_capacity(reporters, OUTBOX_RECORDS_MAX)
}

pub(super) fn with_capacity(reporters: &[Reporter], capacity: usize) -> (Outbox, Inbox) {
    let (sender, records) = crossbeam_channel::bounded(capacity);
    let (spare, spares) = crossbeam_channel::bounded(RECORDS_SPARE_MAX);
    let counters = Arc::new(UsageCounters::new(reporters));
    (Outbox { sender, spares, counters: counters.clone() }, Inbox { records, spare, counters })
}

/// A worker's end. Cloned for each worker.
#[derive(Debug, Clone)]
pub struct Outbox {
    sender: Sender<Box<Queued>>,
    spares: Receiver<Box<Queued>>,
    counters: Arc<UsageCounters>,
}

/// The delivering end.
pub struct Inbox {
    pub(super) records: Receiver<Box<Queued>>,
    pub(super) spare: Spare,
    pub(super) counters: Arc<UsageCounters>,
}

/// Where records go back to when all is done: to be filled again, so that a worker does not ask
/// the allocator for what another thread frees.
pub(super) type Spare = Sender<Box<Queued>>;

/// A record on its way, boxed: it is large, and moved often. Its request body is counted as waiting
/// until the last reporter is done.
#[derive(Debug)]
pub struct Queued {
    pub(super) record: UsageRecord,
    counters: Arc<UsageCounters>,
}

impl Outbox {
    /// One that is made already.
    #[cfg(test)]
    pub(super) fn offer(&self, record: UsageRecord) -> bool {
        self.offer_with(|into| *into = record)
    }

    /// Hands a record over, without waiting: `fill` writes it over one that went this way before,
    /// and keeps what that had allocated. False when the outbox was full (or delivery has ended):
    /// the record is lost, and counted.
    pub fn offer_with(&self, fill: impl FnOnce(&mut UsageRecord)) -> bool {
        let mut queued = match self.spares.try_recv() {
            Ok(spare) => spare,
            Err(_) => {
                let counters = self.counters.clone();
                Box::new(Queued { record: UsageRecord::default(), counters })
            }
        };
        fill(&mut queued.record);
        self.bound_body(&mut queued.record);
        let taken = self.sender.try_send(queued).is_ok();
        if !taken {
            count(&self.counters.outbox_dropped);
        }
        taken
    }

    /// Called at a steady pace: gives up some of the records that lie here to be filled again, so
    /// that what a burst left is gone within a minute. Who needs them all the time makes new ones
    /// so rarely that nobody notices.
    pub fn sweep(&self) {
        for _ in 0..self.spares.len().div_ceil(SPARES_PER_SWEEP) {
            let _ = self.spares.try_recv();
        }
    }

    /// Records that wait here now.
    pub fn len(&self) -> usize {
        self.sender.len()
    }

    /// True when no record waits here.
    pub fn is_empty(&self) -> bool {
        self.sender.is_empty()
    }

    /// The counters of the room.
    pub fn counters(&self) -> &Arc<UsageCounters> {
        &self.counters
    }

    /// A slow receiver must cost records of a known size, not all memory: the prompts in them are
    /// what is large, and the first to go.
    fn bound_body(&self, record: &mut UsageRecord) {
        let bytes = body_bytes(record);
        if bytes == 0 {
            return;
        }
        let waiting = self.counters.body_bytes.fetch_add(bytes, Relaxed);
        if waiting.saturating_add(bytes) > OUTBOX_BODY_BYTES_MAX {
            self.counters.body_bytes.fetch_sub(bytes, Relaxed);
            count(&self.counters.bodies_dropped);
            record.request_body = None;
        }
    }
}

impl Queued {
    /// Makes the record ready to be filled again.
    pub(super) fn spare(mut self: Box<Self>, spare: &Spare) {
        self.release_body();
        // When there are enough, it is freed.
        let _ = spare.try_send(self);
    }

    fn release_body(&mut self) {
        let bytes = body_bytes(&self.record);
        if bytes > 0 {
            self.counters.body_bytes.fetch_sub(bytes, Relaxed);
        }
        self.record.request_body = None;
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.release_body();
    }
}

fn body_bytes(record: &UsageRecord) -> u64 {
    record.request_body.as_ref().map_or(0, |body| body.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::record::tests::record;

    #[test]
    fn a_record_is_filled_again_and_its_body_counts_once() {
        let (outbox, inbox) = with_capacity(&[], 2);
        let with_body = || UsageRecord { request_body: Some(vec![b'a'; 10]), ..record() };
        assert!(outbox.offer(with_body()));
        let first = inbox.records.recv().unwrap();
        let place: *const Queued = &*first;
        assert_eq!(outbox.counters().body_bytes.load(Relaxed), 10);
        first.spare(&inbox.spare);
        assert_eq!(outbox.counters().body_bytes.load(Relaxed), 0);
        let mut seen = None;
        assert!(outbox.offer_with(|again| {
            seen = again.model.clone();
            assert!(again.request_body.is_none());
            again.request_body = Some(vec![b'b'; 7]);
        }));
        assert_eq!(seen.as_deref(), Some("org/m"), "what it had allocated is still there");
        let again = inbox.records.recv().unwrap();
        assert_eq!(&*again as *const Queued, place);
        assert_eq!(outbox.counters().body_bytes.load(Relaxed), 7);
        drop(again);
        assert_eq!(outbox.counters().body_bytes.load(Relaxed), 0);
    }

    #[test]
    fn spare_records_are_given_up() {
        let (outbox, inbox) = with_capacity(&[], 200);
        (0..200).for_each(|_| assert!(outbox.offer(record())));
        inbox.records.try_iter().for_each(|queued| queued.spare(&inbox.spare));
        assert_eq!(outbox.spares.len(), 200);
        let mut sweeps = 0;
        while !outbox.spares.is_empty() {
            outbox.sweep();
            sweeps += 1;
        }
        assert!((64..200).contains(&sweeps), "in {sweeps} sweeps");
    }

    #[test]
    fn a_full_outbox_drops_and_counts() {
        let (outbox, inbox) = with_capacity(&[], 2);
        assert!(outbox.offer(record()) && outbox.offer(record()));
        assert!(!outbox.offer(record()));
        assert_eq!(outbox.counters().outbox_dropped.load(Relaxed), 1);
        assert_eq!(outbox.len(), 2);
        inbox.records.recv().unwrap();
        assert!(outbox.offer(record()));
        drop(inbox);
        assert!(!outbox.offer(record()), "delivery has ended");
    }

    #[test]
    fn bodies_beyond_the_limit_stay_behind_and_the_record_goes() {
        let (outbox, inbox) = with_capacity(&[], 8);
        let large = || {
            let body = vec![b'a'; (OUTBOX_BODY_BYTES_MAX / 2) as usize];
            UsageRecord { request_body: Some(body), ..record() }
        };
        assert!(outbox.offer(large()) && outbox.offer(large()) && outbox.offer(large()));
        let counters = outbox.counters();
        assert_eq!(counters.bodies_dropped.load(Relaxed), 1);
        let bodies: Vec<bool> =
            inbox.records.try_iter().map(|queued| queued.record.request_body.is_some()).collect();
        assert_eq!(bodies, [true, true, false]);
        assert_eq!(counters.body_bytes.load(Relaxed), 0, "given back with the records");
    }
}
