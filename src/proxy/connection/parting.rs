//! Behind an answer: the engine's connection is kept, closed or drained, and the request settled.

use super::{Next, Talk};
use crate::base::fault::{Fault, Side};
use crate::base::limits::ANSWER_DRAIN_MAX;
use crate::config::plan::OnClientAbort;
use crate::proxy::relay::drain::drain;
use crate::proxy::relay::Outcome;
use crate::proxy::settle::{note, settle, Ending};
use crate::proxy::upstream::exchange::Exchange;
use crate::proxy::worker::Worker;
use crate::rt;
use crate::state::meters::{BackendIndex, Phase};
use std::rc::Rc;

/// What follows an answer, whether it was whole or not: its connection is kept or closed, and the
/// request is settled; all of that later when the engine must not be cut off.
pub(super) fn conclude(w: &Rc<Worker>, talk: &mut Talk, outcome: Outcome, close: bool) -> Next {
    if let Some(fault) = outcome.fault {
        w.count_fault(talk.story.backend, fault);
        if fault == Fault::ClientLeft {
            w.count_abort(if talk.story.status == 0 { Phase::Waiting } else { Phase::Relay });
        }
        talk.story.ending = Ending::Fault(fault);
    }
    if outcome.upstream_extra {
        w.count_fault(talk.story.backend, Fault::BadResponse("bytes_behind_the_end"));
    }
    talk.story.outcome = Some(outcome);
    if is_spared(w, outcome, talk.story.backend) {
        return Next::Drain;
    }
    if let Some(Exchange { mut lease, .. }) = talk.exchange.take() {
        if outcome.upstream_at_end {
            lease.note_end();
        }
        w.pool.give_back(lease, w.patrol.now());
    }
    settle(w, &talk.request, &talk.tap, &mut talk.story);
    match (outcome.client_clean, close) {
        (false, _) => Next::Close,
        (true, true) => Next::CloseGently,
        (true, false) => Next::Request,
    }
}

/// True when the rest of an answer must be read for its engine's sake, though its client has left.
fn is_spared(w: &Worker, outcome: Outcome, backend: BackendIndex) -> bool {
    let Some(plan) = backend.and_then(|backend| w.backend(backend)) else { return false };
    let client_left = outcome.fault.is_some_and(|fault| fault.side() == Side::Client);
    client_left && plan.on_client_abort == OnClientAbort::Drain && !outcome.upstream_finished
}

/// Reads the rest of an answer without its client, gives the connection back, and settles. Until
/// then the request's record is what was last noted.
pub(super) async fn spare(w: &Rc<Worker>, talk: &mut Talk) {
    let Talk { request, story, exchange, inbound, tap } = talk;
    let plan = story.backend.and_then(|backend| w.backend(backend));
    if let (Some(plan), Some(Exchange { mut lease, .. })) = (plan, exchange.take()) {
        story.is_drained = true;
        tap.stop();
        // Should we be killed while that goes on.
        note(w, request, tap, story, story.outcome.map_or(0, |outcome| outcome.bytes));
        let rest = drain(lease.link(), inbound, tap, plan.idle_timeout);
        let rest = w.patrol.until_end(rt::timeout(ANSWER_DRAIN_MAX, rest)).await;
        if matches!(rest, Some(Ok(true))) {
            lease.note_end();
        }
        w.pool.give_back(lease, w.patrol.now());
    }
    settle(w, request, tap, story);
}
