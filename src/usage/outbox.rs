//! A worker's end of the journal: what happens to requests is put into the worker's ring, where it
//! outlives the process. Nothing here waits, and nothing can fail: what finds no room is counted.
//!
//! A worker says what it knows of a request when that is admitted, before an engine has a byte of
//! it ([`Outbox::open`]); now and then while it streams ([`Outbox::note`]); and once at its end,
//! before its client has the last byte ([`Outbox::close`]).

use super::counters::{count, UsageCounters};
use super::doorbell::Doorbell;
use super::record::borrowed::RecordRef;
use super::ring::entry::{self, HEADER_BYTES, NO_OPEN};
use super::ring::file::RingFile;
use super::ring::spsc::{Producer, Room, Window};
use super::spool::codec;
use super::spool::segment::Kind;
use super::spool::state::SpoolState;
use crate::base::limits::{RING_END_BYTES, RING_LAP_BYTES};
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

/// A draft that an unusual record blew up is not kept so.
const DRAFT_BYTES_KEPT: usize = 4096;

/// A worker's end.
#[derive(Debug)]
pub struct Outbox {
    ring: RefCell<Producer<Arc<RingFile>>>,
    /// Where a payload is put together. Its room is used again each time.
    draft: RefCell<Vec<u8>>,
    /// Bytes of the ring that the ends of the requests in flight will need.
    owed: Cell<u64>,
    doorbell: Arc<Doorbell>,
    counters: Arc<UsageCounters>,
    spool: Arc<SpoolState>,
}

/// The open of a request, for its end: the journal need not write an open whose end it takes from
/// the ring along with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    name: u32,
    /// Bytes that are kept free for the end.
    owed: u32,
}

impl Default for Opening {
    /// There is none.
    fn default() -> Opening {
        Opening { name: NO_OPEN, owed: 0 }
    }
}

impl Outbox {
    /// The end of one ring. The doorbell is rung when there is something in it and the journal
    /// sleeps.
    pub fn new(
        ring: Arc<RingFile>,
        doorbell: Arc<Doorbell>,
        counters: Arc<UsageCounters>,
        spool: Arc<SpoolState>,
    ) -> Outbox {
        let ring = RefCell::new(Producer::new(ring));
        let (draft, owed) = (RefCell::default(), Cell::default());
        Outbox { ring, draft, owed, doorbell, counters, spool }
    }

    /// A request is about to go to its first backend: should we be killed, this is what its record
    /// will say. `None`: that cannot be kept, or there would be no room for its end.
    pub fn open(&self, record: &RecordRef<'_>) -> Option<Opening> {
        let owed = entry::size(self.draft(record, None)) as u64 + RING_END_BYTES;
        let room = Room::Spare(self.spared(self.owed.get() + owed));
        let Some(position) = self.push((Kind::Open, NO_OPEN), &[], room) else {
            count(&self.counters.notes_dropped);
            return None;
        };
        self.owed.set(self.owed.get() + owed);
        // No more than an entry may have, which fits into four bytes.
        Some(Opening { name: entry::name_of(position), owed: owed as u32 })
    }

    /// An answer goes on, and from now on it is this that its record will say.
    pub fn note(&self, record: &RecordRef<'_>) {
        self.draft(record, None);
        // Less than an open may use: a note is what can be done without.
        let room = Room::Spare(self.spared(self.owed.get()) + self.window() / 8);
        if self.push((Kind::Note, NO_OPEN), &[], room).is_none() {
            count(&self.counters.notes_dropped);
        }
    }

    /// A request is over. Its request body goes with the record where there is room for it.
    pub fn close(&self, record: &RecordRef<'_>, opening: Opening) {
        let what = (Kind::Close, opening.name);
        self.owed.set(self.owed.get().saturating_sub(u64::from(opening.owed)));
        if let Some(body) = record.request_body {
            self.draft(record, Some(body));
            if self.push(what, body, Room::Spare(self.spared(self.owed.get()))).is_some() {
                return;
            }
            count(&self.counters.bodies_dropped);
        }
        self.draft(record, None);
        if self.push(what, &[], Room::All).is_none() {
            count(&self.counters.records_dropped);
        }
    }

    fn window(&self) -> u64 {
        self.ring.borrow().window().bytes()
    }

    /// Bytes of the ring that are kept free where ends will need so many. Who must not serve
    /// anybody without a record keeps all of that; else half of the ring is enough: an open that is
    /// left out is lost by a kill alone, and the journal gives room back all the time.
    fn spared(&self, owed: u64) -> u64 {
        let (window, owed) = (self.window(), owed + RING_LAP_BYTES);
        let spared = owed.max(window / 4);
        if self.is_strict() {
            spared
        } else {
            spared.min(window / 2)
        }
    }

    /// Puts a payload together, with this request body or without one, and without the body's
    /// bytes. Gives how long it is so far.
    fn draft(&self, record: &RecordRef<'_>, body: Option<&[u8]>) -> usize {
        let mut draft = self.draft.borrow_mut();
        entry::begin(&mut draft);
        codec::encode_bare(record, &mut draft);
        if let Some(body) = body {
            codec::begin_body(body.len(), &mut draft);
        }
        draft.len() - HEADER_BYTES
    }

    /// Puts into the ring what was put together.
    fn push(&self, (kind, open): (Kind, u32), body: &[u8], room: Room) -> Option<u64> {
        let mut draft = self.draft.borrow_mut();
        let what = (kind.byte(), open);
        let mut ring = self.ring.borrow_mut();
        let position = ring.push(what, (&mut draft, body), room);
        if draft.capacity() > DRAFT_BYTES_KEPT {
            draft.clear();
            draft.shrink_to(DRAFT_BYTES_KEPT);
        }
        match position {
            None => {}
            // It lets some time go by before it looks again: more than is left now, maybe.
            Some(_) if ring.has_filled_a_share() => self.doorbell.ring(),
            Some(_) => self.doorbell.ring_if_asleep(),
        }
        position
    }

    /// True when no request may be admitted: its record could not be kept.
    pub fn refuses(&self) -> bool {
        self.spool.refuses()
    }

    /// True when nobody is to be served without a record.
    pub fn is_strict(&self) -> bool {
        self.spool.is_strict()
    }

    /// True while records are kept in memory, because the spool fails.
    pub fn is_failing(&self) -> bool {
        self.spool.fails(Instant::now())
    }
}

/// What the metrics see.
#[derive(Debug, Clone)]
pub struct Gauge {
    counters: Arc<UsageCounters>,
    rings: Vec<Arc<RingFile>>,
    spool: Arc<SpoolState>,
}

impl Gauge {
    /// Of these.
    pub fn new(
        counters: Arc<UsageCounters>,
        rings: Vec<Arc<RingFile>>,
        spool: Arc<SpoolState>,
    ) -> Gauge {
        Gauge { counters, rings, spool }
    }

    /// How the spool is.
    pub fn spool(&self) -> &Arc<SpoolState> {
        &self.spool
    }

    /// Bytes in the rings that the journal has not taken over.
    pub fn waiting(&self) -> u64 {
        self.rings.iter().map(|ring| ring.waiting()).sum()
    }

    /// True when a kill of the process loses what waits.
    pub fn is_volatile(&self) -> bool {
        !self.rings.iter().all(|ring| ring.outlives_us())
    }

    /// The counters of the room.
    pub fn counters(&self) -> &Arc<UsageCounters> {
        &self.counters
    }
}
