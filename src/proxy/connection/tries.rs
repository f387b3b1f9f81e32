//! From a whole request to the head of an engine's answer: the opening record, the tries.

use super::ours::{give_up, refuse};
use super::{Next, Notes, Underway};
use crate::base::fault::Fault;
use crate::base::panic_point;
use crate::base::refusal::Refusal;
use crate::http::response::ResponseHead;
use crate::proxy::asking::{self, Asking};
use crate::proxy::client::Client;
use crate::proxy::receive::Request;
use crate::proxy::repute;
use crate::proxy::route::tries::{Follow, Tries, TryEnd};
use crate::proxy::route::{self, TriedMembers};
use crate::proxy::settle::{self, Story};
use crate::proxy::shared::Shared;
use crate::proxy::upstream::exchange::{exchange, Exchange};
use crate::proxy::upstream::peek;
use crate::proxy::upstream::pool::LocalMember;
use crate::proxy::view::WorkerView;
use crate::rt::patrol::Stand;
use crate::usage::outbox::Outbox;
use std::rc::Rc;

/// The way of a request that is for a backend, to the head of an answer. An error when there is
/// none; the client has been told.
pub(super) async fn forward(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
) -> Result<Exchange, Next> {
    let first = match open(w, client, underway) {
        Ok(first) => first,
        Err(refusal) => return Err(Box::pin(refuse(w, client, underway, refusal)).await),
    };
    let fault = match try_backends(w, client, underway, first).await {
        Ok(exchange) => return Ok(exchange),
        Err(fault) => fault,
    };
    Err(Box::pin(give_up(w, client, underway, fault)).await)
}

/// Picks who is asked first and opens the request's record: an engine has nothing that the journal
/// has not.
fn open(
    w: &Shared,
    client: &Client,
    underway: &mut Underway<'_>,
) -> Result<Rc<LocalMember>, Refusal> {
    if w.usage.as_ref().is_some_and(Outbox::refuses) {
        return Err(NO_JOURNAL);
    }
    let Underway { pass, notes: Notes { request, story, .. } } = underway;
    let first = pick(&pass.view, request, &TriedMembers::default()).ok_or(NO_BACKEND)?;
    story.backend = Some(Rc::clone(&first));
    panic_point::pass("choosing");
    story.keep_body(pass, request, client);
    match settle::open(pass, request, story) {
        true => Ok(first),
        false => Err(NO_JOURNAL),
    }
}

/// Who gets the next try.
fn pick(view: &WorkerView, request: &Request, tried: &TriedMembers) -> Option<Rc<LocalMember>> {
    view.pick(view.shared.models.choose(&request.model).group, tried).cloned()
}

/// Tries backends until one begins to answer. Another one is asked while nobody saw the request,
/// when the engine is still loading its model, and, once, when the backend goes out of service
/// before the first byte of an answer: the connection there is closed, which cancels what it may
/// have begun. A kept connection that was closed under us is replaced once, and a request that was
/// refused with a wish of ours goes once more without. The error is how the last one failed.
async fn try_backends(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
    first: Rc<LocalMember>,
) -> Result<Exchange, Fault> {
    let Underway { pass, notes: Notes { request, response, story, .. } } = underway;
    let view = &pass.view;
    let rule = view.shared.models.choose(&request.model).rule;
    let mut tries = Tries::begin(first.id());
    let mut asking = Asking::of(&view.plan, request, &first);
    let mut backend = first;
    loop {
        let stand = Stand { place: backend.id().number(), aim: rule };
        client.post.stand_at(tries.may_move().then_some(stand));
        let how = (tries.is_fresh(), asking);
        // In a scope of its own, or it would lie beside the next wait in every stream.
        let doubtful = {
            let asked = exchange((&w.shelf, view), client, (request, response), &backend, how);
            let asked = asked.await;
            panic_point::pass("asking");
            client.post.stand_at(None);
            match asked {
                Ok(got) if is_for_the_client(asking, response.status) => {
                    asking.learn(&w.shelf, (&backend, &request.model), response.status, false);
                    repute::hear_answer(&backend, response);
                    note_answer(story, &tries, asking);
                    return Ok(got);
                }
                // Boxed: it is rare.
                Ok(got) => Ok(Box::new(got)),
                Err(fault) => Err(fault),
            }
        };
        let end = match doubtful {
            Err(fault) => TryEnd::Failed(fault),
            Ok(got) => {
                let about = (&mut asking, &tries, &*request);
                match Box::pin(hear(w, client, (about, &backend), (response, got))).await {
                    Err(end) => end,
                    Ok(got) => {
                        note_answer(story, &tries, asking);
                        return Ok(*got);
                    }
                }
            }
        };
        if let TryEnd::Failed(fault) = end {
            asking::hear_failure(&backend, fault);
            w.shelf.count_fault(Some(&backend), fault);
        }
        match tries.next(backend.id(), end, request.is_in_hand()) {
            Follow::Again => {}
            // By the view of now: those that left meanwhile get no more requests.
            Follow::Other(fault) => {
                backend = pick(&w.view(), request, tries.tried()).ok_or(fault)?;
                tries.move_to(backend.id());
                asking = Asking::of(&view.plan, request, &backend);
                story.backend = Some(Rc::clone(&backend));
            }
            Follow::Stop(fault) => return Err(fault),
        }
        story.retries += 1;
        w.shelf.meters.borrow_mut().retries += 1;
    }
}

/// The client gets the answer to this try.
fn note_answer(story: &mut Story, tries: &Tries, asking: Asking) {
    story.fallback = tries.is_fallback();
    story.asked_usage = asking.is_spliced();
}

/// Whether the status alone tells that an answer is for the client.
fn is_for_the_client(asking: Asking, status: u16) -> bool {
    !asking.may_be_refused(status) && !matches!(status, 503 | 508)
}

/// Takes in what an answer says of its backend, and whether it is one for the client. It is none
/// when it refuses a wish of ours, and when the engine is still loading its model, or the backend
/// leads back to us, and there is another that is well: then it is as if nobody had seen the
/// request.
async fn hear(
    w: &Shared,
    client: &Client,
    ((asking, tries, request), backend): ((&mut Asking, &Tries, &Request), &LocalMember),
    (response, mut got): (&ResponseHead, Box<Exchange>),
) -> Result<Box<Exchange>, TryEnd> {
    let status = response.status;
    let is_named =
        asking.may_be_refused(status) && peek::names_wish(client, response, &mut got).await;
    let learnt = asking.learn(&w.shelf, (backend, &request.model), status, is_named);
    if let Some(next) = learnt.filter(|_| request.is_in_hand()) {
        *asking = next;
        return Err(TryEnd::WishRefused);
    }
    repute::hear_answer(backend, response);
    let fault = match status {
        503 => Fault::BackendLoading,
        508 => Fault::BackendLoops,
        _ => return Ok(got),
    };
    let view = w.view();
    let group = view.shared.models.choose(&request.model).group;
    let has_other =
        request.is_in_hand() && route::has_other(view.shared.group(group), tries.tried());
    match has_other && says(client, response, &mut got, fault).await {
        true => Err(TryEnd::Failed(fault)),
        false => Ok(got),
    }
}

/// Whether an answer says that no engine did anything for the request, for this reason.
async fn says(client: &Client, response: &ResponseHead, got: &mut Exchange, why: Fault) -> bool {
    match why {
        Fault::BackendLoops => peek::is_loop(client, response, got).await,
        _ => peek::is_loading(client, response, got).await,
    }
}

const NO_JOURNAL: Refusal = Refusal::new(
    503,
    "usage_unavailable",
    "Usage records cannot be kept, and nobody is served without them.",
);

const NO_BACKEND: Refusal =
    Refusal::new(503, "no_backend", "No backend is configured for this request.");
