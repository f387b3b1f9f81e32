//! Behind an answer: the engine's connection is kept, closed or drained, and the request settled.

use super::{Next, Talk};
use crate::base::fault::{Fault, Side};
use crate::base::limits::ANSWER_DRAIN_MAX;
use crate::config::plan::OnClientAbort;
use crate::proxy::relay::drain::drain;
use crate::proxy::relay::framing::Inbound;
use crate::proxy::relay::Outcome;
use crate::proxy::settle::{settle, Ending};
use crate::proxy::upstream::exchange::Exchange;
use crate::proxy::upstream::pool::Lease;
use crate::proxy::worker::Worker;
use crate::rt;
use crate::state::meters::{BackendIndex, Phase};
use std::rc::Rc;

/// What follows an answer, whether it was whole or not: its connection is kept or closed, and the
/// request is settled.
pub(super) fn conclude(w: &Rc<Worker>, talk: &mut Talk, outcome: Outcome, close: bool) -> Next {
    let Talk { request, story, exchange, inbound, tap } = talk;
    if let Some(Exchange { lease, .. }) = exchange.take() {
        match outcome.upstream_clean && request.response.keep_alive {
            true => w.pool.give_back(lease, w.patrol.now()),
            false => part(w, lease, outcome, story.backend, inbound),
        }
    }
    if let Some(fault) = outcome.fault {
        w.count_fault(story.backend, fault);
        if fault == Fault::ClientLeft {
            w.count_abort(if story.status == 0 { Phase::Waiting } else { Phase::Relay });
        }
        story.ending = Ending::Fault(fault);
    }
    if outcome.upstream_extra {
        w.count_fault(story.backend, Fault::BadResponse("bytes_behind_the_end"));
    }
    story.outcome = Some(outcome);
    settle(w, request, tap, story);
    match (outcome.client_clean, close) {
        (false, _) => Next::Close,
        (true, true) => Next::CloseGently,
        (true, false) => Next::Request,
    }
}

/// Lets go of a connection that cannot be kept. Dropping it closes it, which cancels the
/// generation; an engine that cannot bear that is drained first.
fn part(
    w: &Rc<Worker>,
    mut lease: Lease,
    outcome: Outcome,
    backend: BackendIndex,
    inbound: &mut Inbound,
) {
    let Some(plan) = backend.and_then(|backend| w.backend(backend)) else { return };
    let client_left = outcome.fault.is_some_and(|fault| fault.side() == Side::Client);
    let spared = plan.on_client_abort == OnClientAbort::Drain;
    if !client_left || !spared || outcome.upstream_finished {
        return;
    }
    let rest = std::mem::replace(inbound, Inbound::Length(0));
    let (w, idle) = (Rc::clone(w), plan.idle_timeout);
    let draining = Rc::clone(&w);
    // Counted like a connection: the worker does not end before the engine was spared.
    let live = w.enter_live();
    w.spawn_guarded(Box::pin(async move {
        let _live = live;
        let spared = rt::timeout(ANSWER_DRAIN_MAX, drain(lease.link(), rest, idle)).await;
        if spared.unwrap_or(false) {
            draining.pool.give_back(lease, draining.patrol.now());
        }
    }));
}
