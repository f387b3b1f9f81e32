//! The hand-over of records from the workers to the journal: bounded, never waiting.
//!
//! A worker hands over what it knows of a request when that is admitted ([`Kind::Open`]), now and
//! then while it streams ([`Kind::Note`]), and once at its end ([`Kind::Close`]). Each has a
//! ticket, a number that grows per worker; the journal's thread tells the worker's [`Desk`] up to
//! which ticket everything is in the kernel's hands, and wakes who waits for that.
//!
//! What is handed over in one turn of a worker's loop goes to the journal together, when the turn
//! is over ([`Outbox::flush`]): one message, one wake and one write for all of it.

use super::counters::{count, UsageCounters};
use super::doorbell::Doorbell;
use super::journal::{Ends as JournalEnds, Piece};
use super::record::UsageRecord;
use super::spool::state::SpoolState;
use crate::base::limits::{
    OUTBOX_BODY_BYTES_MAX, OUTBOX_END_WAIT, OUTBOX_RECORDS_MAX, OUTBOX_SPARES_MIN,
    OUTBOX_TURNS_MAX, OUTBOX_TURN_RECORDS_MAX,
};
use crate::config::plan::Reporter;
use atomic_waker::AtomicWaker;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use std::cell::{Cell, RefCell};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::Arc;
use std::task::Waker;

pub use super::spool::segment::Kind;

/// One of so many spare records is given up by a sweep.
const SPARES_PER_SWEEP: usize = 16;

/// What one worker handed over in one turn of its loop, in order.
pub type Turn = Vec<Box<Queued>>;

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
/// The doorbell is rung when there is something for the journal.
pub fn open(
    reporters: &[Reporter],
    workers: usize,
    spool: (&Arc<SpoolState>, &Arc<Doorbell>),
) -> Ends {
    with_capacity(reporters, workers, spool, OUTBOX_RECORDS_MAX)
}

pub(super) fn with_capacity(
    reporters: &[Reporter],
    workers: usize,
    (spool, doorbell): (&Arc<SpoolState>, &Arc<Doorbell>),
    capacity: usize,
) -> Ends {
    let (sender, turns) = crossbeam_channel::bounded(OUTBOX_TURNS_MAX);
    let counters = Arc::new(UsageCounters::new(reporters));
    let mut desks = Vec::with_capacity(workers);
    let outbox = |worker| {
        let (spare, spares) = crossbeam_channel::bounded(OUTBOX_TURNS_MAX);
        let progress = Arc::<Desk>::default();
        desks.push((progress.clone(), spare));
        Outbox {
            worker: worker as u32,
            capacity: capacity as u64,
            sender: sender.clone(),
            doorbell: doorbell.clone(),
            turn: RefCell::default(),
            rooms: RefCell::new(Vec::with_capacity(OUTBOX_SPARES_MIN)),
            idle: RefCell::default(),
            spares,
            counters: counters.clone(),
            desk: progress,
            tickets: Cell::new(0),
            spool: spool.clone(),
        }
    };
    let workers = (0..workers).map(outbox).collect();
    let gauge = Gauge { counters: counters.clone(), spool: spool.clone() };
    let acknowledge = Acknowledge { desks, counters };
    Ends { workers, inbox: Inbox { turns, acknowledge }, gauge }
}

/// A worker's end.
#[derive(Debug)]
pub struct Outbox {
    worker: u32,
    /// Records that may wait for the journal, of all workers.
    capacity: u64,
    sender: Sender<Turn>,
    doorbell: Arc<Doorbell>,
    /// What this turn handed over so far.
    turn: RefCell<Turn>,
    /// Empty: room for turns to come.
    rooms: RefCell<Vec<Turn>>,
    /// Records to be filled again.
    idle: RefCell<Turn>,
    spares: Receiver<Turn>,
    counters: Arc<UsageCounters>,
    desk: Arc<Desk>,
    tickets: Cell<u64>,
    spool: Arc<SpoolState>,
}

/// The journal's end.
pub struct Inbox {
    /// What the workers hand over.
    pub turns: Receiver<Turn>,
    /// How the journal answers.
    pub acknowledge: Acknowledge,
}

/// The way back from the journal to the workers.
pub struct Acknowledge {
    /// Of each worker: who waits there, and where its records go back to when all is done, to be
    /// filled again; so a worker does not ask the allocator for what another thread frees.
    desks: Vec<(Arc<Desk>, Sender<Turn>)>,
    counters: Arc<UsageCounters>,
}

impl JournalEnds<Box<Queued>> for Acknowledge {
    fn acknowledge(&mut self, worker: usize, ticket: u64) {
        if let Some((desk, _)) = self.desks.get(worker) {
            desk.advance(ticket);
        }
    }

    fn spare(&mut self, mut turn: Turn) {
        self.counters.waiting.fetch_sub(turn.len() as u64, Relaxed);
        turn.iter_mut().for_each(|queued| queued.release_body());
        let worker = turn.first().map_or(usize::MAX, |queued| queued.worker as usize);
        if let Some((_, spare)) = self.desks.get(worker) {
            // When there are enough, they are freed.
            let _ = spare.try_send(turn);
        }
    }
}

impl Piece for Box<Queued> {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn record(&self) -> &UsageRecord {
        &self.record
    }

    fn ticket(&self) -> (usize, u64) {
        (self.worker as usize, self.ticket)
    }
}

/// What the metrics see.
#[derive(Debug, Clone)]
pub struct Gauge {
    counters: Arc<UsageCounters>,
    spool: Arc<SpoolState>,
}

impl Gauge {
    /// How the spool is.
    pub fn spool(&self) -> &Arc<SpoolState> {
        &self.spool
    }

    /// Records that wait for the journal now.
    pub fn waiting(&self) -> u64 {
        self.counters.waiting.load(Relaxed)
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
        let ticket = self.offer_with(Kind::Close, |into| *into = record);
        self.flush();
        ticket.is_some()
    }

    /// Adds a record to this turn: `fill` writes it over one that went this way before, and keeps
    /// what that had allocated. Gives its ticket; `None` when too many wait for the journal: the
    /// record is lost, and counted.
    pub fn offer_with(&self, kind: Kind, fill: impl FnOnce(&mut UsageRecord)) -> Option<u64> {
        let mut queued = self.blank();
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
        let gathered = self.turn.borrow().len();
        // The last quarter is for ends: they are what is billed.
        let room = if kind == Kind::Close { self.capacity } else { self.capacity * 3 / 4 };
        if self.counters.waiting.load(Relaxed) + gathered as u64 >= room {
            count(&self.counters.outbox_dropped);
            queued.release_body();
            self.idle.borrow_mut().push(queued);
            return None;
        }
        let ticket = self.tickets.get() + 1;
        self.tickets.set(ticket);
        (queued.kind, queued.worker, queued.ticket) = (kind, self.worker, ticket);
        self.turn.borrow_mut().push(queued);
        if gathered + 1 >= OUTBOX_TURN_RECORDS_MAX {
            self.flush();
        }
        Some(ticket)
    }

    /// A record to be filled: one that went this way before, if one has come back.
    fn blank(&self) -> Box<Queued> {
        if self.idle.borrow().is_empty() {
            self.take_back();
        }
        let old = self.idle.borrow_mut().pop();
        old.unwrap_or_else(|| {
            Box::new(Queued {
                kind: Kind::Open,
                worker: self.worker,
                ticket: 0,
                record: UsageRecord::default(),
                kept_id: None,
                counters: self.counters.clone(),
            })
        })
    }

    /// Takes what the journal gave back of one turn.
    fn take_back(&self) {
        if let Ok(mut turn) = self.spares.try_recv() {
            self.idle.borrow_mut().append(&mut turn);
            let mut rooms = self.rooms.borrow_mut();
            if rooms.len() < OUTBOX_SPARES_MIN {
                rooms.push(turn);
            }
        }
    }

    /// Sends to the journal what was handed over in this turn. To be called when the turn is over.
    pub fn flush(&self) {
        if self.turn.borrow().is_empty() {
            return;
        }
        if self.rooms.borrow().is_empty() {
            self.take_back();
        }
        let room = self.rooms.borrow_mut().pop().unwrap_or_default();
        let turn = self.turn.replace(room);
        let records = turn.len() as u64;
        // Before the journal has it, which takes it off again.
        self.counters.waiting.fetch_add(records, Relaxed);
        match self.sender.try_send(turn) {
            Ok(()) => self.doorbell.ring(),
            Err(TrySendError::Full(turn)) => {
                // It goes with the next one, and counts as waiting by lying here.
                self.counters.waiting.fetch_sub(records, Relaxed);
                let room = self.turn.replace(turn);
                self.rooms.borrow_mut().push(room);
            }
            Err(TrySendError::Disconnected(_)) => {
                self.counters.waiting.fetch_sub(records, Relaxed);
                self.counters.outbox_dropped.fetch_add(records, Relaxed);
            }
        }
    }

    /// Sends what was handed over, and waits for room for it, [`OUTBOX_END_WAIT`] at most; what
    /// finds none is lost, and counted. For the end of a worker alone: it blocks.
    pub fn finish(&self) {
        let turn = self.turn.take();
        let records = turn.len() as u64;
        if records == 0 {
            return;
        }
        self.counters.waiting.fetch_add(records, Relaxed);
        // It may sleep over many others.
        self.doorbell.ring();
        if self.sender.send_timeout(turn, OUTBOX_END_WAIT).is_err() {
            self.counters.waiting.fetch_sub(records, Relaxed);
            self.counters.outbox_dropped.fetch_add(records, Relaxed);
        }
        self.doorbell.ring();
    }

    /// True when something was handed over that the journal was not sent.
    pub fn has_more(&self) -> bool {
        !self.turn.borrow().is_empty()
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
    /// that what a burst left is gone within a minute. The last [`OUTBOX_SPARES_MIN`] stay: how
    /// long a record is under way depends on the load of the machine, and without them a slow
    /// request would find what it needs given up between two others.
    pub fn sweep(&self) {
        for _ in 0..self.spares.len().div_ceil(SPARES_PER_SWEEP) {
            self.take_back();
        }
        let mut idle = self.idle.borrow_mut();
        let more = idle.len().saturating_sub(OUTBOX_SPARES_MIN);
        let left = idle.len() - more.div_ceil(SPARES_PER_SWEEP);
        idle.truncate(left);
    }

    /// True when [`Outbox::sweep`] has nothing left to give back.
    pub fn is_settled(&self) -> bool {
        self.spares.is_empty() && self.idle.borrow().len() <= OUTBOX_SPARES_MIN
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
    fn release_body(&mut self) {
        let bytes = body_bytes(&self.record);
        if bytes > 0 {
            self.counters.body_bytes.fetch_sub(bytes, Relaxed);
        }
        self.record.request_body = None;
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.release_body();
    }
}

/// Bytes of the request body in a record.
fn body_bytes(record: &UsageRecord) -> u64 {
    record.request_body.as_ref().map_or(0, Vec::len) as u64
}

#[cfg(test)]
pub(crate) mod tests;
