//! Behind an answer: the engine's connection is kept, closed or drained, and the request settled.

use super::delivery::Delivered;
use super::{Afterwards, Next, Notes, Talk, Underway};
use crate::base::fault::{Fault, Side};
use crate::base::limits::{ANSWER_DRAIN_MAX, LATE_USAGE_WAIT, UNPACKED_LATE_MAX};
use crate::base::panic_point;
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
use crate::state::member::Member;
use crate::state::meters::Phase;
use std::rc::Rc;
use std::time::Duration;

/// An answer that is read on though its client has left.
pub(super) struct Undrained {
    exchange: Exchange,
    what: Rest,
    limit: Duration,
}

/// What follows an answer, whether it was whole or not: its connection is kept or closed, and it is
/// said when the request is settled: later when the engine must not be cut off, or when it is not
/// known yet what is in a packed answer.
pub(super) fn conclude(
    w: &Shared,
    underway: Underway<'_>,
    exchange: Exchange,
    delivered: Delivered,
) -> (Next, Afterwards) {
    let Underway { notes, .. } = underway;
    let Delivered { outcome, closes } = delivered;
    // A client that closes behind the end mark, as some do, has missed nothing.
    let is_missing = |fault: &Fault| *fault != Fault::ClientLeft || !notes.tap.is_over();
    notes.story.ending = Ending::Complete;
    if let Some(fault) = outcome.fault.filter(is_missing) {
        w.shelf.count_fault(Some(exchange.lease.backend()), fault);
        if fault == Fault::ClientLeft {
            let is_begun = notes.story.status != 0;
            w.shelf.count_abort(if is_begun { Phase::Relay } else { Phase::Waiting });
        }
        notes.story.ending = Ending::Fault(fault);
    }
    if outcome.upstream_extra {
        let fault = Fault::BadResponse("bytes_behind_the_end");
        w.shelf.count_fault(Some(exchange.lease.backend()), fault);
    }
    notes.story.outcome = Some(outcome);
    if !notes.tap.awaits_copy() {
        notes.learn(outcome);
    }
    if let Some((what, limit)) = left_to_read(exchange.lease.backend(), &notes.tap, outcome) {
        let undrained = Undrained { exchange, what, limit };
        return (Next::Close, Afterwards::Drain(Box::new(undrained)));
    }
    let Exchange { mut lease, .. } = exchange;
    if outcome.upstream_at_end {
        lease.note_end();
    }
    lease.give_back(w.patrol.now());
    let next = match (outcome.client_clean, closes) {
        (false, _) => Next::Close,
        (true, true) => Next::CloseGently,
        (true, false) => Next::Request,
    };
    match notes.tap.awaits_copy() {
        true => (next, Afterwards::Unpack(outcome)),
        false => (next, Afterwards::Settle),
    }
}

impl Talk {
    /// The request is over for its client, of whose answer so many bytes were sent, and goes on for
    /// its record alone. Should we be killed while it does, this is what the record says.
    fn note_past(&mut self, sent: u64) {
        let Talk { pass, notes: Notes { request, story, tap, .. } } = self;
        story.is_past = true;
        if let Some(pass) = pass {
            pass.end_for_client();
            note(pass, (request, tap), story, sent);
        }
    }
}

impl Notes {
    /// What the end of a stream teaches of its engine.
    fn learn(&self, outcome: Relayed) {
        let tap = &self.tap;
        let is_timed = tap.body_usage.facts().is_timed();
        let heard = (outcome.fault.is_none(), is_timed, tap.usage().is_some());
        hear_stream(&self.request, &self.story, heard);
    }
}

/// Settles a request as soon as it is known what is in its packed answer. Its client does not wait
/// for that: the connection goes on with an empty talk.
pub(super) fn settle_late(w: &Rc<Shared>, talk: &mut Talk, outcome: Relayed) {
    let next = Request::new(w.shelf.next_id(), talk.notes.request.from.clone());
    let mut late = Box::new(std::mem::replace(talk, Talk::new(next)));
    // Should we be killed while that goes on.
    late.note_past(outcome.bytes);
    let (worker, waiting) = (Rc::clone(w), LateRecord::begin(&w.drains));
    w.spawn_guarded(async move {
        see_copy(&worker, &mut late.notes.tap, &waiting).await;
        panic_point::pass("settling late");
        late.notes.learn(outcome);
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
fn left_to_read(backend: &Member, tap: &Tap, outcome: Relayed) -> Option<(Rest, Duration)> {
    if outcome.upstream_finished || outcome.fault?.side() != Side::Client {
        return None;
    }
    match backend.plan.on_client_abort {
        OnClientAbort::Drain => Some((Rest::Whole(backend.plan.idle_timeout), ANSWER_DRAIN_MAX)),
        OnClientAbort::Close if tap.awaits_usage() => Some((Rest::Usage, LATE_USAGE_WAIT)),
        OnClientAbort::Close => None,
    }
}

/// Reads the rest of an answer without its client, gives the connection back, and settles. Until
/// then the request's record is what was last noted.
pub(super) async fn spare(live: Live, talk: &mut Talk, undrained: Undrained) {
    let w = &Rc::clone(live.shared());
    let going = {
        let cut = &mut w.shelf.meters.borrow_mut().crowded_closed[3];
        Drain::begin(&w.drains, &w.connections, cut)
    };
    // Its client's place is free.
    drop(live);
    match &going {
        Some(going) => read_on(w, talk, undrained, going).await,
        // There is no room for it: the engine is cut.
        None => drop(undrained),
    }
    // The engine's connection is closed or kept by now, so this is no drain any more.
    let waiting = LateRecord::begin(&w.drains);
    drop(going);
    see_copy(w, &mut talk.notes.tap, &waiting).await;
    talk.settle();
}

async fn read_on(w: &Shared, talk: &mut Talk, undrained: Undrained, going: &Drain) {
    let Undrained { exchange: Exchange { mut lease, .. }, what, limit } = undrained;
    talk.notes.tap.stop();
    // Should we be killed while that goes on.
    talk.note_past(talk.notes.story.outcome.map_or(0, |outcome| outcome.bytes));
    panic_point::pass("reading on");
    let Notes { inbound, tap, .. } = &mut talk.notes;
    let rest = drain(lease.link(), inbound, tap, what);
    let rest = going.cut().unless(rt::timeout(limit, rest));
    let rest = w.patrol.until_end(rest).await.flatten();
    if matches!(rest, Some(Ok(true))) {
        lease.note_end();
        tap.hand_copy_over(&w.unpacker);
    }
    lease.give_back(w.patrol.now());
}
