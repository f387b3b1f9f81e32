//! `routing.queue`: a request that finds all its backends full waits until it is its turn, instead
//! of being refused. It is bound to a backend only then, so that none waits for a slow one while
//! another has room. Until then no engine, and no journal, knows of it.

use super::facts;
use super::tries::{opened, pick, refusal};
use super::Underway;
use crate::base::fault::Fault;
use crate::base::fnv;
use crate::base::limits::FULL_RETRY_AFTER_S_MAX;
use crate::base::panic_point;
use crate::base::refusal::Refusal;
use crate::proxy::client::Client;
use crate::proxy::flight;
use crate::proxy::pass::Pass;
use crate::proxy::queue::{Called, LocalQueue, Waiter};
use crate::proxy::receive::Request;
use crate::proxy::route::{NotPicked, TriedMembers};
use crate::proxy::shared::Shared;
use crate::proxy::upstream::pool::{InFlight, LocalMember};
use crate::proxy::view::WorkerView;
use crate::rt::patrol::Alarm;
use crate::state::board::View;
use crate::state::member::{Member, MemberId};
use crate::state::meters::QueueEnd;
use crate::state::models::GroupId;
use crate::state::queues::StartTag;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a request has no answer of an engine.
pub(super) enum Unserved {
    /// It was for none, or none could take it.
    Refused(Refusal),
    /// Those that were asked failed.
    Failed(Fault),
}

/// Tokens of a prompt by its bytes, and of an answer: a guess that only orders requests.
const BYTES_PER_TOKEN: usize = 4;
const ANSWER_TOKENS: usize = 256;

/// Whether a request of this group must wait because others do.
pub(super) fn is_waited(view: &WorkerView, group: GroupId) -> bool {
    view.queue(group).is_some_and(|queue| queue.is_waited())
}

/// A request begins to wait. The error: it is refused, because it may not wait, or would wait in
/// vain.
pub(super) fn enter(
    w: &Shared,
    client: &Client,
    underway: &Underway<'_>,
    (group, why): (GroupId, NotPicked),
) -> Result<Waiter, Refusal> {
    let view = &underway.pass.view;
    let (Some(queue), Some(plan), NotPicked::Full { .. }) =
        (view.queue(group), &view.plan.routing.queue, why)
    else {
        return Err(refusal(why));
    };
    let request = &underway.notes.request;
    let (key, tokens) = (whose(underway.pass, client, request), tokens(client, request));
    let claim = queue.claim(key, tokens);
    let wait = likely_wait((queue, claim.tag), &view.shared, group);
    let refuse = |end| {
        queue.take_back(&claim);
        w.shelf.meters.borrow_mut().queued.count(end, None);
        full(wait)
    };
    if wait.is_some_and(|wait| wait > plan.timeout) {
        return Err(refuse(QueueEnd::Hopeless));
    }
    queue.enter(claim, plan.max_waiting).ok_or_else(|| refuse(QueueEnd::NoRoom))
}

/// Waits; then the request is in flight at whoever has room, and its record is open.
pub(super) async fn wait(
    w: &Shared,
    client: &Client,
    underway: &mut Underway<'_>,
    mut waiter: Waiter,
) -> Result<Rc<LocalMember>, Unserved> {
    let began = Instant::now();
    let queue = underway.pass.view.plan.routing.queue.as_ref();
    client.post.arm(queue.map_or(Duration::ZERO, |queue| queue.timeout));
    let taken = loop {
        let request = &underway.notes.request;
        let take = |barred: &[MemberId]| take(w, client, (request, barred));
        let called = Box::pin(poll_fn(|cx| waiter.poll(cx, take)));
        match client.post.attended(called).await {
            Ok(Called::Served(taken)) => break taken,
            Ok(Called::Moved) => {
                let view = w.view();
                let group = view.shared.models.choose(request.served_model()).group;
                match view.queue(group) {
                    Some(queue) => waiter.move_to(queue),
                    // A reload has ended the waiting.
                    None => break pick((&view, group), request, &TriedMembers::default()),
                }
            }
            Ok(Called::Displaced) => {
                ended(w, underway, (began, QueueEnd::Displaced));
                return Err(in_vain(request, &w.view(), &waiter));
            }
            Err(Alarm::Expired) => {
                ended(w, underway, (began, QueueEnd::TimedOut));
                return Err(in_vain(request, &w.view(), &waiter));
            }
            Err(Alarm::Gone) => {
                ended(w, underway, (began, QueueEnd::Left));
                return Err(Unserved::Failed(Fault::ClientLeft));
            }
            Err(Alarm::Ended) => {
                ended(w, underway, (began, QueueEnd::Left));
                return Err(Unserved::Failed(Fault::ShuttingDown));
            }
            Err(Alarm::CalledOff) => {}
        }
    };
    // The next one is called while this one is on its way.
    drop(waiter);
    panic_point::pass("queueing");
    let end = if taken.is_ok() { QueueEnd::Served } else { QueueEnd::NoRoom };
    ended(w, underway, (began, end));
    let inflight = taken.map_err(|why| Unserved::Refused(refusal(why)))?;
    opened(w, client, underway, inflight).map_err(Unserved::Refused)
}

/// A request does not wait any more, since it began to do so then.
fn ended(w: &Shared, underway: &Underway<'_>, (began, end): (Instant, QueueEnd)) {
    let waited = began.elapsed();
    w.shelf.meters.borrow_mut().queued.count(end, Some(waited));
    flight::note_wait(underway.pass, waited);
}

/// What a client hears that has waited for nothing: how long it would wait if it came now.
fn in_vain(request: &Request, view: &WorkerView, waiter: &Waiter) -> Unserved {
    let group = view.shared.models.choose(request.served_model()).group;
    Unserved::Refused(full(likely_wait((waiter.queue(), waiter.tag()), &view.shared, group)))
}

/// Room at a backend that is not barred, by the view of now; `None`: there is none yet.
fn take(
    w: &Shared,
    client: &Client,
    (request, barred): (&Request, &[MemberId]),
) -> Option<Result<InFlight, NotPicked>> {
    let view = w.view();
    let group = view.shared.models.choose(request.served_model()).group;
    // Looked for first: most calls find that another one was quicker.
    let is_of_use = |member: &Arc<Member>| !member.is_full() && !barred.contains(&member.id());
    let mut members = view.shared.group(group).peekable();
    if members.peek().is_some() && !members.any(is_of_use) {
        return None;
    }
    facts::once_more(w, &view, client, request);
    let mut others = TriedMembers::default();
    barred.iter().for_each(|barred| others.add(*barred));
    match pick((&view, group), request, &others) {
        Err(NotPicked::Full { .. }) => None,
        picked => Some(picked),
    }
}

/// Who a request is of, for its share of the queue: its key. Without one: where keys are checked,
/// its client, since it could show any; where nobody checks them, the one that it shows, or else
/// its client.
fn whose(pass: &Pass, client: &Client, request: &Request) -> u64 {
    if let Some(key) = pass.identity() {
        return key.digest.label();
    }
    let peer = request.from.client_text().as_bytes();
    let shown = match pass.view.plan.auth {
        Some(_) => None,
        None => pass.view.usual_fields.find(&request.head.fields, client.bytes()).ok().flatten(),
    };
    fnv::hash(shown.unwrap_or(peer).iter().copied())
}

/// What a request is likely to cost.
fn tokens(client: &Client, request: &Request) -> u32 {
    let bytes = request.body(client.bytes()).len();
    u32::try_from(bytes / BYTES_PER_TOKEN + ANSWER_TOKENS).unwrap_or(u32::MAX)
}

/// How long a newcomer would wait, by how long requests stay at the backends that they wait for;
/// `None` while that is not known.
fn likely_wait(
    (queue, tag): (&LocalQueue, StartTag),
    view: &View,
    group: GroupId,
) -> Option<Duration> {
    let places = |member: &Arc<Member>| f64::from(member.plan.max_concurrent);
    let members = || view.group(group).filter(|member| member.is_healthy());
    let known = || members().filter(|member| !member.stay().is_zero());
    let rate = known().map(|member| places(member) / member.stay().as_secs_f64()).sum::<f64>();
    // Those of which nothing is known are likely to be as the others.
    let all = rate * members().map(places).sum::<f64>() / known().map(places).sum::<f64>();
    let seconds = (f64::from(queue.ahead(tag)) + 1.0) / all;
    Duration::try_from_secs_f64(seconds).ok()
}

/// The refusal of one who does not wait, or not any longer.
fn full(wait: Option<Duration>) -> Refusal {
    let seconds = wait.map_or(1, |wait| wait.as_secs_f64().ceil() as u32);
    Fault::BackendFull.refusal().with_retry_after(seconds.clamp(1, FULL_RETRY_AFTER_S_MAX))
}
