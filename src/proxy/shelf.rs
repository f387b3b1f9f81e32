//! What a worker counts, the ids that it gives, its clock, and how much it may log: what the steps
//! of a request need of their worker.

use super::repute;
use super::sparing::Sparing;
use crate::base::clock::unix_ns;
use crate::base::fault::Fault;
use crate::base::id::{RequestId, RequestIds};
use crate::base::span_id::SpanIds;
use crate::state::member::Member;
use crate::state::meters::{Meters, Phase};
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

/// Of one worker.
pub struct Shelf {
    /// What was counted.
    pub meters: RefCell<Meters>,
    sparing: RefCell<Sparing>,
    ids: RefCell<RequestIds>,
    /// Makes the ids of traces and spans.
    pub span_ids: RefCell<SpanIds>,
    /// The same moment by both clocks, the wall clock's in nanoseconds.
    wall: Cell<(Instant, u64)>,
}

impl Shelf {
    /// Nothing is counted yet. `seed`: random; makes request ids unique.
    pub fn new(seed: u64) -> Shelf {
        Shelf {
            meters: RefCell::default(),
            sparing: RefCell::default(),
            ids: RefCell::new(RequestIds::new(seed)),
            // Request ids show their seed: these are not to be the row that follows from it.
            span_ids: RefCell::new(SpanIds::new(seed.rotate_left(32) ^ unix_ns())),
            wall: Cell::new((Instant::now(), unix_ns())),
        }
    }

    /// Counts a fault, and holds it against the backend where it says something about that.
    pub fn count_fault(&self, backend: Option<&Member>, fault: Fault) {
        backend.into_iter().for_each(|backend| repute::hear_fault(backend, fault));
        let whose = backend.map(|backend| backend.id());
        *self.meters.borrow_mut().faults.entry((whose, fault.code())).or_default() += 1;
    }

    /// Counts a client that left.
    pub fn count_abort(&self, phase: Phase) {
        *self.meters.borrow_mut().client_aborts.entry(phase).or_default() += 1;
    }

    /// True when a log line of this code may be written; else it is counted.
    pub fn may_log(&self, code: &'static str) -> bool {
        self.sparing.borrow_mut().may_log(code, Instant::now())
    }

    /// True for an id that [`Shelf::next_id`] may have given.
    pub fn made_id(&self, id: &[u8]) -> bool {
        self.ids.borrow().made(id)
    }

    /// A new request id.
    pub fn next_id(&self) -> RequestId {
        self.ids.borrow_mut().next_id()
    }

    /// Takes the time that [`Shelf::unix_ms`] goes by.
    pub fn look_at_the_clock(&self) {
        self.wall.set((Instant::now(), unix_ns()));
    }

    /// Milliseconds since 1970 at an instant, by the wall clock as of the last sweep: it is not
    /// asked for each request.
    pub fn unix_ms(&self, at: Instant) -> u64 {
        self.unix_ns(at) / 1_000_000
    }

    /// The same in nanoseconds.
    pub fn unix_ns(&self, at: Instant) -> u64 {
        let (then, unix_ns) = self.wall.get();
        let nanos =
            |time: Duration| time.as_secs() * 1_000_000_000 + u64::from(time.subsec_nanos());
        match at.checked_duration_since(then) {
            Some(since) => unix_ns.saturating_add(nanos(since)),
            None => unix_ns.saturating_sub(nanos(then.saturating_duration_since(at))),
        }
    }

    /// Says what log lines were held back, once their second is over.
    pub fn sweep(&self) {
        self.sparing.borrow_mut().sweep(Instant::now());
    }

    /// Says what log lines were held back so far.
    pub fn finish(&self) {
        self.sparing.borrow_mut().finish();
    }

    /// True when [`Shelf::sweep`] has nothing left to say.
    pub fn is_settled(&self) -> bool {
        self.sparing.borrow().is_settled()
    }
}
