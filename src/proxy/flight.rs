//! What is noted of a request on its way to an answer, beside what its record says: for its story,
//! which the flight recorder keeps, and for its trace.

use super::pass::Pass;
use super::receive::Request;
use crate::base::limits::SPAN_TRIES_MAX;
use crate::state::member::Member;
use crate::state::meters::RetryReason;
use crate::usage::flight::picked::PickedBy;
use crate::usage::flight::story::{tell, FlightFacts};
use crate::usage::flight::FlightLane;
use crate::usage::record::borrowed::RecordRef;
use crate::usage::spans::{SpanTry, TryFailure};
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// See above.
#[derive(Default)]
pub struct FlightNotes {
    /// When the last try began, and why its backend got it.
    pick: Cell<Option<(Duration, PickedBy)>>,
    queue_wait: Cell<Option<Duration>>,
    /// Tries that were followed by another one. Nothing is allocated where there are none.
    failed: RefCell<Vec<SpanTry>>,
}

impl FlightNotes {
    /// Tries that were followed by another one.
    pub fn take_failed(&self) -> Vec<SpanTry> {
        self.failed.take()
    }
}

/// A backend was picked, just now.
pub fn note_pick(pass: &Pass, request: &Request) {
    if let (Some(_), Some(notes)) = (&pass.w.flight, pass.notes()) {
        notes.pick.set(Some((since(request), pass.view.picked_by())));
    }
}

/// A request has waited for so long until it was its turn, or it gave up.
pub fn note_wait(pass: &Pass, waited: Duration) {
    pass.notes().into_iter().for_each(|notes| notes.queue_wait.set(Some(waited)));
}

/// There is another try, for this reason.
pub fn note_try(pass: &Pass, request: &Request, backend: &Member, reason: RetryReason) {
    let Some(notes) = pass.notes() else { return };
    let mut failed = notes.failed.borrow_mut();
    let is_wanted = pass.w.flight.is_some() || request.trace().is_some();
    if !is_wanted || failed.len() >= SPAN_TRIES_MAX {
        return;
    }
    let reason = match reason {
        RetryReason::Named(code) => TryFailure::Code(code),
        RetryReason::Status(status) => TryFailure::Status(status),
    };
    let (began, picked_by) = notes.pick.get().unwrap_or_default();
    let backend = Arc::clone(&backend.name);
    failed.push(SpanTry { began, picked_by, at: since(request), backend, reason });
}

/// Keeps the story of a request that is over.
pub fn keep(lane: &FlightLane, pass: &Pass, request: &Request, record: RecordRef<'_>) {
    let Some(notes) = pass.notes() else { return };
    let (served, pick) = (request.served_model(), notes.pick.get());
    let facts = FlightFacts {
        record,
        served_model: (served != request.model).then_some(served),
        queue_wait: notes.queue_wait.get(),
        began: pick.map(|(began, _)| began),
        picked_by: pick.map(|(_, by)| by).unwrap_or_default(),
        failed: &notes.failed.borrow(),
    };
    lane.write(|pen| tell(&facts, pen));
}

fn since(request: &Request) -> Duration {
    Instant::now().saturating_duration_since(request.started)
}
