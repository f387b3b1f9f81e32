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
use crate::proxy::relay::Relayed;
use crate::proxy::settle::{note, Ending};
use crate::proxy::shared::{Live, Shared};
use crate::proxy::upstream::exchange::Exchange;
use crate::rt;
use crate::state::meters::Phase;
use std::rc::Rc;
use std::time::Duration;

/// What follows an answer, whether it was whole or not: its connection is kept or closed, and the
/// request is settled. All of that is done later when the engine must not be cut off, and settling
/// when it is not known yet what is in a packed answer.
pub(super) fn conclude(w: &Rc<Shared>, talk: &mut Talk, outcome: Relayed, close: bool) -> Next {
    // A client that closes behind the end mark, as some do, has missed nothing.
    let is_missing = |fault: &Fault| *fault != Fault::ClientLeft || !talk.tap.is_over();
    if let Some(fault) = outcome.fault.filter(is_missing) {
        w.shelf.count_fault(talk.story.member(), fault);
        if fault == Fault::ClientLeft {
            w.shelf.count_abort(if talk.story.status == 0 { Phase::Waiting } else { Phase::Relay });
        }
        talk.story.ending = Ending::Fault(fault);
    }
    if outcome.upstream_extra {
        let fault = Fault::BadResponse("bytes_behind_the_end");
        w.shelf.count_fault(talk.story.member(), fault);
    }
    talk.story.outcome = Some(outcome);
    if !talk.tap.awaits_copy() {
        learn(talk, outcome);
    }
    if left_to_read(talk).is_some() {
        return Next::Drain;
    }
    if let Some(Exchange { mut lease, .. }) = talk.exchange.take() {
        if outcome.upstream_at_end {
            lease.note_end();
        }
        lease.give_back(w.patrol.now());
    }
    match talk.tap.awaits_copy() {
        true => settle_late(w, talk, outcome),
        false => talk.settle(),
    }
    match (outcome.client_clean, close) {
        (false, _) => Next::Close,
        (true, true) => Next::CloseGently,
        (true, false) => Next::Request,
    }
}

impl Talk {
    /// The request is over for its client, of whose answer so many bytes were sent, and goes on for
    /// its record alone. Should we be killed while it does, this is what the record says.
    fn note_past(&mut self, sent: u64) {
        self.story.is_past = true;
        if let Some(pass) = &mut self.pass {
            pass.end_for_client();
            note(pass, (&self.request, &self.tap), &self.story, sent);
        }
    }
}

/// What the end of a stream teaches of its engine.
fn learn(talk: &Talk, outcome: Relayed) {
    let tap = &talk.tap;
    let heard = (outcome.fault.is_none(), tap.body_usage.facts().is_timed(), tap.usage().is_some());
    hear_stream(&talk.request, &talk.story, heard);
}

/// Settles a request as soon as it is known what is in its packed answer. Its client does not wait
/// for that: the connection goes on with an empty talk.
fn settle_late(w: &Rc<Shared>, talk: &mut Talk, outcome: Relayed) {
    let next = Request::new(w.shelf.next_id(), talk.request.peer.clone());
    let mut late = Box::new(std::mem::replace(talk, Talk::new(next)));
    // Should we be killed while that goes on.
    late.note_past(outcome.bytes);
    let (worker, waiting) = (Rc::clone(w), LateRecord::begin(&w.drains));
    w.spawn_guarded(async move {
        see_copy(&worker, &mut late.tap, &waiting).await;
        learn(&late, outcome);
        late.settle();
    });
}

/// Waits for what is in a packed answer that nobody else waits for any more.
async fn see_copy(w: &Shared, tap: &mut Tap, _counted: &LateRecord) {
    let seen = rt::timeout(UNPACKED_LATE_MAX, tap.see_copy());
    let _ = w.patrol.until_end(seen).await;
    tap.give_copy_up();
}

/// What is to be read of the rest of an answer whose client has left, and for how long: all of it
/// for its engine's sake, or what the engine counted for a client that had all of its text.
fn left_to_read(talk: &Talk) -> Option<(Rest, Duration)> {
    let plan = &talk.story.backend.as_ref()?.plan;
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
    let w = &Rc::clone(live.shared());
    let going = {
        let cut = &mut w.shelf.meters.borrow_mut().crowded_closed[3];
        Drain::begin(&w.drains, &w.connections, cut)
    };
    // Its client's place is free.
    drop(live);
    let left = left_to_read(talk);
    // Where there is no room for it, the engine is cut.
    let exchange = talk.exchange.take().zip(going.as_ref());
    if let (Some((what, limit)), Some((Exchange { mut lease, .. }, going))) = (left, exchange) {
        talk.tap.stop();
        // Should we be killed while that goes on.
        talk.note_past(talk.story.outcome.map_or(0, |outcome| outcome.bytes));
        let rest = drain(lease.link(), &mut talk.inbound, &mut talk.tap, what);
        let rest = going.cut().unless(rt::timeout(limit, rest));
        let rest = w.patrol.until_end(rest).await.flatten();
        if matches!(rest, Some(Ok(true))) {
            lease.note_end();
            talk.tap.hand_copy_over(&w.unpacker);
        }
        lease.give_back(w.patrol.now());
    }
    // From here on no engine is held: others need not be cut for it.
    let waiting = LateRecord::begin(&w.drains);
    drop(going);
    see_copy(w, &mut talk.tap, &waiting).await;
    talk.settle();
}
