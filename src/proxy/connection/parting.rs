//! Behind an answer: the engine's connection is kept, closed or drained, and the request settled.

use super::{Next, Talk};
use crate::base::fault::{Fault, Side};
use crate::base::limits::{ANSWER_DRAIN_MAX, LATE_USAGE_WAIT, UNPACKED_LATE_MAX};
use crate::config::plan::OnClientAbort;
use crate::proxy::asking::hear_stream;
use crate::proxy::drains::{Drain, LateRecord};
use crate::proxy::receive::Request;
use crate::proxy::relay::drain::{drain, Rest};
use crate::proxy::relay::tap::Tap;
use crate::proxy::relay::Outcome;
use crate::proxy::settle::{note, settle, Ending};
use crate::proxy::upstream::exchange::Exchange;
use crate::proxy::worker::{Live, Worker};
use crate::rt;
use crate::state::meters::Phase;
use std::rc::Rc;
use std::time::Duration;

/// What follows an answer, whether it was whole or not: its connection is kept or closed, and the
/// request is settled. All of that is done later when the engine must not be cut off, and settling
/// when it is not known yet what is in a packed answer.
pub(super) fn conclude(w: &Rc<Worker>, talk: &mut Talk, outcome: Outcome, close: bool) -> Next {
    // A client that closes behind the end mark, as some do, has missed nothing.
    let is_missing = |fault: &Fault| *fault != Fault::ClientLeft || !talk.tap.is_over();
    if let Some(fault) = outcome.fault.filter(is_missing) {
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
    if !talk.tap.awaits_copy() {
        learn(w, talk, outcome);
    }
    if left_to_read(w, talk).is_some() {
        return Next::Drain;
    }
    if let Some(Exchange { mut lease, .. }) = talk.exchange.take() {
        if outcome.upstream_at_end {
            lease.note_end();
        }
        w.pool.give_back(lease, w.patrol.now());
    }
    match talk.tap.awaits_copy() {
        true => settle_late(w, talk, outcome),
        false => settle(w, &talk.request, &talk.tap, &mut talk.story),
    }
    match (outcome.client_clean, close) {
        (false, _) => Next::Close,
        (true, true) => Next::CloseGently,
        (true, false) => Next::Request,
    }
}

/// What the end of a stream teaches of its engine.
fn learn(w: &Worker, talk: &Talk, outcome: Outcome) {
    let tap = &talk.tap;
    let heard = (outcome.fault.is_none(), tap.body_usage.facts().is_timed(), tap.usage().is_some());
    hear_stream(w, &talk.request, &talk.story, heard);
}

/// Settles a request as soon as it is known what is in its packed answer. Its client does not wait
/// for that: the connection goes on with an empty talk.
fn settle_late(w: &Rc<Worker>, talk: &mut Talk, outcome: Outcome) {
    let next = Request::new(w.next_id(), talk.request.peer.clone());
    let mut late = Box::new(std::mem::replace(talk, Talk::new(next)));
    late.story.is_past = true;
    // Should we be killed while that goes on.
    note(w, &late.request, &late.tap, &late.story, outcome.bytes);
    let (worker, waiting) = (Rc::clone(w), LateRecord::begin(w));
    w.spawn_guarded(async move {
        see_copy(&worker, &mut late.tap, &waiting).await;
        learn(&worker, &late, outcome);
        settle(&worker, &late.request, &late.tap, &mut late.story);
    });
}

/// Waits for what is in a packed answer that nobody else waits for any more.
async fn see_copy(w: &Worker, tap: &mut Tap, _counted: &LateRecord) {
    let seen = rt::timeout(UNPACKED_LATE_MAX, tap.see_copy());
    let _ = w.patrol.until_end(seen).await;
    tap.give_copy_up();
}

/// What is to be read of the rest of an answer whose client has left, and for how long: all of it
/// for its engine's sake, or what the engine counted for a client that had all of its text.
fn left_to_read(w: &Worker, talk: &Talk) -> Option<(Rest, Duration)> {
    let plan = talk.story.backend.and_then(|backend| w.backend(backend))?;
    let outcome = talk.story.outcome.filter(|outcome| !outcome.upstream_finished)?;
    outcome.fault.filter(|fault| fault.side() == Side::Client)?;
    match plan.on_client_abort {
        OnClientAbort::Drain => Some((Rest::Whole(plan.idle_timeout), ANSWER_DRAIN_MAX)),
        OnClientAbort::Close if talk.tap.awaits_usage() => Some((Rest::Usage, LATE_USAGE_WAIT)),
        OnClientAbort::Close => None,
    }
}

/// Reads the rest of an answer without its client, gives the connection back, and settles. Until
/// then the request's record is what was last noted.
pub(super) async fn spare(live: Live, talk: &mut Talk) {
    let w = &Rc::clone(live.worker());
    let going = Drain::begin(w);
    // Its client's place is free.
    drop(live);
    let left = left_to_read(w, talk);
    let Talk { request, story, exchange, inbound, tap } = talk;
    // Where there is no room for it, the engine is cut.
    let exchange = exchange.take().zip(going.as_ref());
    if let (Some((what, limit)), Some((Exchange { mut lease, .. }, going))) = (left, exchange) {
        story.is_past = true;
        tap.stop();
        // Should we be killed while that goes on.
        note(w, request, tap, story, story.outcome.map_or(0, |outcome| outcome.bytes));
        let rest = drain(lease.link(), inbound, tap, what);
        let rest = going.cut().unless(rt::timeout(limit, rest));
        let rest = w.patrol.until_end(rest).await.flatten();
        if matches!(rest, Some(Ok(true))) {
            lease.note_end();
            tap.hand_copy_over(&w.unpacker);
        }
        w.pool.give_back(lease, w.patrol.now());
    }
    // From here on no engine is held: others need not be cut for it.
    let waiting = LateRecord::begin(w);
    drop(going);
    see_copy(w, tap, &waiting).await;
    settle(w, request, tap, story);
}
