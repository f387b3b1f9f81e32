//! A worker's end of the journal: what happens to requests is put into the worker's ring, where it
//! outlives the process. Nothing here waits, and nothing can fail: what finds no room is counted.
//!
//! A worker says what it knows of a request when that is admitted, before an engine has a byte of
//! it ([`Outbox::open`]); now and then while it streams ([`Outbox::note`]); and once at its end,
//! before its client has the last byte ([`Outbox::close`]).

use super::counters::{count, UsageCounters};
use super::doorbell::Doorbell;
use super::record::borrowed::RecordRef;
use super::ring::entry::{self, NO_OPEN};
use super::ring::file::RingFile;
use super::ring::spsc::{Producer, Room};
use super::spool::codec;
use super::spool::segment::Kind;
use super::spool::state::SpoolState;
use std::cell::RefCell;
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
    doorbell: Arc<Doorbell>,
    counters: Arc<UsageCounters>,
    spool: Arc<SpoolState>,
}

/// The open of a request, for its end: the journal need not write an open whose end it takes from
/// the ring along with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening(u32);

impl Default for Opening {
    /// There is none.
    fn default() -> Opening {
        Opening(NO_OPEN)
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
        Outbox { ring, draft: RefCell::default(), doorbell, counters, spool }
    }

    /// A request is about to go to its first backend: should we be killed, this is what its record
    /// will say. `None`: that cannot be kept.
    pub fn open(&self, record: &RecordRef<'_>) -> Option<Opening> {
        let bare = RecordRef { request_body: None, ..*record };
        let position = self.push((Kind::Open, NO_OPEN), &bare, Room::Spared);
        if position.is_none() {
            count(&self.counters.notes_dropped);
        }
        position.map(|position| Opening(entry::name_of(position)))
    }

    /// An answer goes on, and from now on it is this that its record will say.
    pub fn note(&self, record: &RecordRef<'_>) {
        let bare = RecordRef { request_body: None, ..*record };
        if self.push((Kind::Note, NO_OPEN), &bare, Room::Spared).is_none() {
            count(&self.counters.notes_dropped);
        }
    }

    /// A request is over. Its request body goes with the record where there is room for it.
    pub fn close(&self, record: &RecordRef<'_>, opening: Opening) {
        let what = (Kind::Close, opening.0);
        if record.request_body.is_some() {
            if self.push(what, record, Room::Spared).is_some() {
                return;
            }
            count(&self.counters.bodies_dropped);
        }
        let bare = RecordRef { request_body: None, ..*record };
        if self.push(what, &bare, Room::All).is_none() {
            count(&self.counters.records_dropped);
        }
    }

    fn push(&self, (kind, open): (Kind, u32), record: &RecordRef<'_>, room: Room) -> Option<u64> {
        let mut draft = self.draft.borrow_mut();
        draft.clear();
        codec::encode_bare(record, &mut draft);
        let body = record.request_body.unwrap_or_default();
        if record.request_body.is_some() {
            codec::begin_body(body.len(), &mut draft);
        }
        let position = self.ring.borrow_mut().push((kind.byte(), open), &[&draft, body], room);
        draft.shrink_to(DRAFT_BYTES_KEPT);
        if position.is_some() {
            self.doorbell.ring_if_asleep();
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
