//! The hand-over of records from the workers to the journal: bounded, never waiting.
//!
//! A worker hands over what it knows of a request when that is admitted ([`Kind::Open`]), now and
//! then while it streams ([`Kind::Note`]), and once at its end ([`Kind::Close`]). Each has a
//! ticket, a number that grows per worker; the journal's thread tells the worker's [`Desk`] up to
//! which ticket everything is in the kernel's hands, and wakes who waits for that.

use super::counters::{count, UsageCounters};
use super::journal::{Ends as JournalEnds, Piece};
use super::record::UsageRecord;
use super::spool::state::SpoolState;
use crate::base::limits::{OUTBOX_BODY_BYTES_MAX, OUTBOX_RECORDS_MAX, RECORDS_SPARE_MAX};
use crate::config::plan::Reporter;
use atomic_waker::AtomicWaker;
use crossbeam_channel::{Receiver, Sender};
use std::cell::Cell;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::Arc;
use std::task::Waker;

pub use super::spool::segment::Kind;

/// One of so many spare records is given up by a sweep.
const SPARES_PER_SWEEP: usize = 64;

/// The ends of the hand-over.
pub struct Ends {
    /// One for each worker.
    pub workers: Vec<Outbox>,
    /// Of the journal.
    pub inbox: Inbox,
    /// Of the metrics.
    pub gauge: Gauge,
}

/// Makes the ends, for these reporters, so many workers, and a spool.
pub fn open(reporters: &[Reporter], workers: usize, spool: &Arc<SpoolState>) -> Ends {
    with_capacity(reporters, workers, spool, OUTBOX_RECORDS_MAX)
}

pub(super) fn with_capacity(
    reporters: &[Reporter],
    workers: usize,
    spool: &Arc<SpoolState>,
    capacity: usize,
) -> Ends {
    let (sender, records) = crossbeam_channel::bounded(capacity);
    let (spare, spares) = crossbeam_channel::bounded(RECORDS_SPARE_MAX);
    let counters = Arc::new(UsageCounters::new(reporters));
    let desks: Vec<Arc<Desk>> = (0..workers).map(|_| Arc::default()).collect();
    let outbox = |(worker, desk): (usize, &Arc<Desk>)| Outbox {
        worker: worker as u32,
        sender: sender.clone(),
        spares: spares.clone(),
        counters: counters.clone(),
        desk: desk.clone(),
        tickets: Cell::new(0),
        spool: spool.clone(),
    };
    let workers = desks.iter().enumerate().map(outbox).collect();
    let gauge =
        Gauge { records: records.clone(), counters: counters.clone(), spool: spool.clone() };
    Ends { workers, inbox: Inbox { records, acknowledge: Acknowledge { desks, spare } }, gauge }
}

/// A worker's end.
#[derive(Debug)]
pub struct Outbox {
    worker: u32,
    sender: Sender<Box<Queued>>,
    spares: Receiver<Box<Queued>>,
    counters: Arc<UsageCounters>,
    desk: Arc<Desk>,
    tickets: Cell<u64>,
    spool: Arc<SpoolState>,
}

/// The journal's end.
pub struct Inbox {
    /// What the workers hand over.
    pub records: Receiver<Box<Queued>>,
    /// How the journal answers.
    pub acknowledge: Acknowledge,
}

/// The way back from the journal to the workers.
pub struct Acknowledge {
    desks: Vec<Arc<Desk>>,
    spare: Spare,
}

impl JournalEnds<Box<Queued>> for Acknowledge {
    fn acknowledge(&mut self, worker: usize, ticket: u64) {
        if let Some(desk) = self.desks.get(worker) {
            desk.advance(ticket);
        }
    }

    fn spare(&mut self, piece: Box<Queued>) {
        piece.spare(&self.spare);
    }
}

impl Piece for Box<Queued> {
    fn kind(&self) -> Kind {
        self.kind
    }

    /// A packed answer is unpacked here: what its engine counted is known from now on.
    fn record(&mut self) -> &UsageRecord {
        if let Some(packed) = &self.record.packed {
            self.counters.body_bytes.fetch_sub(packed.held() as u64, Relaxed);
            self.record.unpack();
            self.counters.count_unpacked(self.record.usage);
        }
        &self.record
    }

    fn ticket(&self) -> (usize, u64) {
        (self.worker as usize, self.ticket)
    }
}

/// What the metrics see.
#[derive(Debug, Clone)]
pub struct Gauge {
    records: Receiver<Box<Queued>>,
    counters: Arc<UsageCounters>,
    spool: Arc<SpoolState>,
}

impl Gauge {
    /// How the spool is.
    pub fn spool(&self) -> &Arc<SpoolState> {
        &self.spool
    }

    /// Records that wait for the journal now.
    pub fn waiting(&self) -> usize {
        self.records.len()
    }

    /// The counters of the room.
    pub fn counters(&self) -> &Arc<UsageCounters> {
        &self.counters
    }
}

/// How far the journal is with what one worker handed over.
#[derive(Debug, Default)]
pub struct Desk {
    written: AtomicU64,
    waiting: AtomicWaker,
}

impl Desk {
    /// The highest ticket that is in the kernel's hands.
    pub fn written(&self) -> u64 {
        self.written.load(Acquire)
    }

    /// Wakes a task of the worker when the ticket grows next.
    pub fn register(&self, waker: &Waker) {
        self.waiting.register(waker);
    }

    /// Everything up to `ticket` is in the kernel's hands (or given up, and counted).
    pub(super) fn advance(&self, ticket: u64) {
        self.written.store(ticket, Release);
        self.waiting.wake();
    }
}

/// Where records go back to when all is done: to be filled again, so that a worker does not ask
/// the allocator for what another thread frees.
pub(super) type Spare = Sender<Box<Queued>>;

/// A record on its way, boxed: it is large, and moved often. Its request body is counted as waiting
/// until the journal is done with it.
#[derive(Debug)]
pub struct Queued {
    pub(super) kind: Kind,
    pub(super) worker: u32,
    pub(super) ticket: u64,
    pub(super) record: UsageRecord,
    /// Room for the engine's id, which an open has no use for and the next close has.
    kept_id: Option<String>,
    counters: Arc<UsageCounters>,
}

impl Outbox {
    /// One that is made already.
    #[cfg(test)]
    pub(super) fn offer(&self, record: UsageRecord) -> bool {
        self.offer_with(Kind::Close, |into| *into = record).is_some()
    }

    /// Hands a record over, without waiting: `fill` writes it over one that went this way before,
    /// and keeps what that had allocated. Gives its ticket; `None` when the outbox was full (or
    /// the journal has ended): the record is lost, and counted.
    pub fn offer_with(&self, kind: Kind, fill: impl FnOnce(&mut UsageRecord)) -> Option<u64> {
        let mut queued = match self.spares.try_recv() {
            Ok(spare) => spare,
            Err(_) => Box::new(Queued {
                kind,
                worker: 0,
                ticket: 0,
                record: UsageRecord::default(),
                kept_id: None,
                counters: self.counters.clone(),
            }),
        };
        match kind {
            Kind::Open => {
                queued.kept_id = queued.record.upstream_id.take().or(queued.kept_id.take())
            }
            Kind::Note | Kind::Close | Kind::Again => {
                let kept = queued.kept_id.take();
                queued.record.upstream_id = queued.record.upstream_id.take().or(kept);
            }
        }
        fill(&mut queued.record);
        self.bound_body(&mut queued.record);
        // The last quarter is for ends: they are what is billed.
        let room = self.sender.capacity().unwrap_or(usize::MAX);
        if kind != Kind::Close && self.sender.len() >= room - room / 4 {
            count(&self.counters.outbox_dropped);
            return None;
        }
        let ticket = self.tickets.get() + 1;
        (queued.kind, queued.worker, queued.ticket) = (kind, self.worker, ticket);
        if self.sender.try_send(queued).is_err() {
            count(&self.counters.outbox_dropped);
            return None;
        }
        self.tickets.set(ticket);
        Some(ticket)
    }

    /// How far the journal is with what this worker handed over.
    pub fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// How the spool is.
    pub fn spool(&self) -> &SpoolState {
        &self.spool
    }

    /// Counts a wait for the journal that was given up.
    pub fn count_late(&self) {
        count(&self.counters.late);
    }

    /// Called at a steady pace: gives up some of the records that lie here to be filled again, so
    /// that what a burst left is gone within a minute. Who needs them all the time makes new ones
    /// so rarely that nobody notices.
    pub fn sweep(&self) {
        for _ in 0..self.spares.len().div_ceil(SPARES_PER_SWEEP) {
            let _ = self.spares.try_recv();
        }
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
            if record.packed.take().is_some() {
                record.usage_missing_reason = Some("packed_dropped".into());
            }
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
        self.record.packed = None;
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.release_body();
    }
}

/// What a record holds of a request and of a packed answer.
fn body_bytes(record: &UsageRecord) -> u64 {
    let body = record.request_body.as_ref().map_or(0, Vec::len);
    (body + record.packed.as_ref().map_or(0, |packed| packed.held())) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::OnSpoolFailure;
    use crate::usage::record::tests::record;

    fn ends(capacity: usize) -> (Outbox, Inbox) {
        let spool = Arc::new(SpoolState::new(OnSpoolFailure::Serve, &[]));
        let Ends { mut workers, inbox, .. } = with_capacity(&[], 1, &spool, capacity);
        (workers.remove(0), inbox)
    }

    fn counter(outbox: &Outbox, pick: fn(&UsageCounters) -> &AtomicU64) -> u64 {
        pick(&outbox.counters).load(Relaxed)
    }

    #[test]
    fn a_record_is_filled_again_and_its_body_counts_once() {
        let (outbox, inbox) = ends(2);
        let with_body = || UsageRecord { request_body: Some(vec![b'a'; 10]), ..record() };
        assert!(outbox.offer(with_body()));
        let first = inbox.records.recv().unwrap();
        let place: *const Queued = &*first;
        assert_eq!(counter(&outbox, |c| &c.body_bytes), 10);
        first.spare(&inbox.acknowledge.spare);
        assert_eq!(counter(&outbox, |c| &c.body_bytes), 0);
        let mut seen = None;
        let ticket = outbox.offer_with(Kind::Note, |again| {
            seen = again.model.clone();
            assert!(again.request_body.is_none());
            again.request_body = Some(vec![b'b'; 7]);
        });
        assert_eq!(ticket, Some(2));
        assert_eq!(seen.as_deref(), Some("org/m"), "what it had allocated is still there");
        let again = inbox.records.recv().unwrap();
        assert_eq!((again.kind, again.ticket), (Kind::Note, 2));
        assert_eq!(&*again as *const Queued, place);
        assert_eq!(counter(&outbox, |c| &c.body_bytes), 7);
        drop(again);
        assert_eq!(counter(&outbox, |c| &c.body_bytes), 0);
    }

    #[test]
    fn spare_records_are_given_up() {
        let (outbox, inbox) = ends(200);
        (0..200).for_each(|_| assert!(outbox.offer(record())));
        inbox.records.try_iter().for_each(|queued| queued.spare(&inbox.acknowledge.spare));
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
        let (outbox, inbox) = ends(2);
        assert!(outbox.offer(record()) && outbox.offer(record()));
        assert!(!outbox.offer(record()));
        assert_eq!(counter(&outbox, |c| &c.outbox_dropped), 1);
        inbox.records.recv().unwrap();
        assert!(outbox.offer(record()));
        drop(inbox);
        assert!(!outbox.offer(record()), "the journal has ended");
    }

    /// Catches: a ticket that was dropped and that somebody would wait for, or one given twice.
    #[test]
    fn tickets_are_of_one_worker_and_without_gaps() {
        let spool = Arc::new(SpoolState::new(OnSpoolFailure::Serve, &[]));
        let Ends { workers, mut inbox, .. } = with_capacity(&[], 2, &spool, 3);
        let offer = |worker: usize| workers[worker].offer_with(Kind::Open, |_| {});
        assert_eq!([offer(0), offer(1), offer(0)], [Some(1), Some(1), Some(2)]);
        assert_eq!(offer(1), None, "it is full");
        let seen: Vec<_> = inbox.records.try_iter().map(|q| (q.worker, q.ticket)).collect();
        assert_eq!(seen, [(0, 1), (1, 1), (0, 2)]);
        assert_eq!(offer(1), Some(2));
        inbox.acknowledge.acknowledge(0, 2);
        assert_eq!((workers[0].desk().written(), workers[1].desk().written()), (2, 0));
    }

    #[test]
    fn bodies_beyond_the_limit_stay_behind_and_the_record_goes() {
        let (outbox, inbox) = ends(8);
        let large = || {
            let body = vec![b'a'; (OUTBOX_BODY_BYTES_MAX / 2) as usize];
            UsageRecord { request_body: Some(body), ..record() }
        };
        assert!(outbox.offer(large()) && outbox.offer(large()) && outbox.offer(large()));
        assert_eq!(counter(&outbox, |c| &c.bodies_dropped), 1);
        let bodies: Vec<bool> =
            inbox.records.try_iter().map(|queued| queued.record.request_body.is_some()).collect();
        assert_eq!(bodies, [true, true, false]);
        assert_eq!(counter(&outbox, |c| &c.body_bytes), 0, "given back with the records");
    }
}
