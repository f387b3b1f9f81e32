//! From a whole request to the head of an engine's answer: the opening record, the tries.

use super::ours::{give_up, refuse};
use super::{Next, Talk};
use crate::base::fault::{Fault, Retry};
use crate::base::limits::CONNECT_TRIES_MAX;
use crate::base::refusal::Refusal;
use crate::proxy::asking::{self, Asking};
use crate::proxy::client::Client;
use crate::proxy::pass::Pass;
use crate::proxy::receive::Request;
use crate::proxy::repute;
use crate::proxy::route::{self, Tried};
use crate::proxy::settle::{self, Ending};
use crate::proxy::shared::Shared;
use crate::proxy::upstream::exchange::{exchange, Exchange};
use crate::proxy::upstream::peek;
use crate::proxy::upstream::pool::LocalMember;
use crate::proxy::view::WorkerView;
use crate::usage::outbox::Outbox;
use std::rc::Rc;

/// The way of a request that is for a backend.
pub(super) async fn forward(
    w: &Rc<Shared>,
    client: &mut Client,
    talk: &mut Talk,
) -> Result<(), Next> {
    if !open(w, client, talk) {
        return Err(Box::pin(refuse(w, client, talk, NO_JOURNAL)).await);
    }
    match try_backends(w, client, talk).await {
        Ok(()) => Ok(()),
        Err(None) => Err(Box::pin(refuse(w, client, talk, NO_BACKEND)).await),
        Err(Some(fault)) => Err(Box::pin(give_up(w, client, talk, fault)).await),
    }
}

/// Picks who is asked first and opens the request's record: an engine has nothing that the journal
/// has not. False when it cannot be kept, and nobody is served without.
fn open(w: &Rc<Shared>, client: &Client, talk: &mut Talk) -> bool {
    if w.usage.as_ref().is_some_and(Outbox::refuses) {
        return false;
    }
    let Talk { request, story, pass, .. } = talk;
    let pass = pass.get_or_insert_with(|| Pass::new(w));
    story.keep_body(pass, request, client);
    story.backend = pick(&pass.view, &Tried::default());
    settle::open(pass, request, story)
}

/// Who gets the next try.
fn pick(view: &WorkerView, tried: &Tried) -> Option<Rc<LocalMember>> {
    let place = route::pick(&mut view.balancer.borrow_mut(), view.shared.members(), tried)?;
    view.members.get(place).cloned()
}

/// Tries backends until one begins to answer. Another one is asked while nobody saw the request,
/// when the engine is still loading its model, and, once, when the backend goes out of service
/// before the first byte of an answer: the connection there is closed, which cancels what it may
/// have begun. A kept connection that was closed under us is replaced once, and a request that was
/// refused with a wish of ours goes once more without. The error is how the last one failed; `None`
/// when there was nobody to ask.
async fn try_backends(
    w: &Rc<Shared>,
    client: &mut Client,
    talk: &mut Talk,
) -> Result<(), Option<Fault>> {
    let Talk { request, story, exchange: answered, pass, .. } = talk;
    let view = &pass.get_or_insert_with(|| Pass::new(w)).view;
    let (mut tried, mut is_moved) = (Tried::default(), false);
    while tried.len() < CONNECT_TRIES_MAX {
        // The first one was picked already.
        let picked = match &story.backend {
            Some(first) if tried.is_empty() => Some(Rc::clone(first)),
            _ => pick(view, &tried),
        };
        let Some(backend) = picked else { break };
        if !tried.is_empty() {
            story.retries += 1;
            w.shelf.meters.borrow_mut().retries += 1;
        }
        tried.add(backend.id());
        let backend = &*story.backend.insert(backend);
        let (mut fresh, mut asking) = (false, Asking::of(&view.plan, request, backend));
        client.post.stand_at((!is_moved).then(|| backend.id().number()));
        // One await in a loop: the futures of two in a row would lie side by side in every stream.
        let result = loop {
            let met = exchange((&w.shelf, view), client, request, backend, (fresh, asking)).await;
            match met.map(|got| *answered = Some(got)) {
                Err(fault) if fault.retry() == Retry::Fresh && !fresh => {
                    fresh = true;
                    w.shelf.count_fault(Some(backend), Fault::ReuseRace);
                }
                Ok(()) => {
                    let status = request.response.status;
                    // Boxed: it is rare, and the future of a stream would carry it.
                    let is_named = asking.may_be_refused(status)
                        && Box::pin(names_wish(client, request, answered)).await;
                    match asking.learn(&w.shelf, (backend, &request.model), status, is_named) {
                        Some(next) => asking = next,
                        None => break Ok(()),
                    }
                    *answered = None;
                }
                failed => break failed,
            }
            story.retries += 1;
            w.shelf.meters.borrow_mut().retries += 1;
        };
        client.post.stand_at(None);
        let result = match result {
            Ok(()) => turned_down((view, &tried), client, request, (backend, answered)).await,
            failed => failed,
        };
        match result {
            Ok(()) => {
                story.fallback = tried.len() > 1 || is_moved;
                story.asked_usage = asking.is_spliced();
                story.ending = Ending::Complete;
                return Ok(());
            }
            Err(fault) => {
                asking::hear_failure(backend, fault);
                w.shelf.count_fault(Some(backend), fault);
                story.ending = Ending::Fault(fault);
                if fault.retry() != Retry::Any {
                    break;
                }
                if fault == Fault::BackendEjected {
                    // Those that were tried before may be well again.
                    (tried, is_moved) = (Tried::only(backend.id()), true);
                }
            }
        }
    }
    match story.ending {
        Ending::Fault(fault) => Err(Some(fault)),
        _ => Err(None),
    }
}

/// Whether a refusal names the wish for usage that we put into the request.
async fn names_wish(client: &Client, request: &Request, answered: &mut Option<Exchange>) -> bool {
    match answered {
        Some(got) => peek::names_wish(client, &request.response, got).await,
        None => false,
    }
}

/// Tells the member what an answer says of it. `Err`: the engine is still loading its
/// model, or the backend leads back to us, and there is another that is well; that counts as if it
/// had never seen the request.
async fn turned_down(
    (view, tried): (&WorkerView, &Tried),
    client: &Client,
    request: &Request,
    (backend, answered): (&LocalMember, &mut Option<Exchange>),
) -> Result<(), Fault> {
    let Some(got) = answered.as_mut() else { return Ok(()) };
    repute::hear_answer(backend, &request.response);
    let fault = match request.response.status {
        503 => Fault::BackendLoading,
        508 => Fault::BackendLoops,
        _ => return Ok(()),
    };
    // Boxed: it is rare, and the future of a stream would carry it.
    let has_other = route::has_other(view.shared.members(), tried);
    if has_other && Box::pin(says(client, request, got, fault)).await {
        *answered = None;
        return Err(fault);
    }
    Ok(())
}

/// Whether an answer says that no engine did anything for the request, for this reason.
async fn says(client: &Client, request: &Request, got: &mut Exchange, why: Fault) -> bool {
    match why {
        Fault::BackendLoops => peek::is_loop(client, &request.response, got).await,
        _ => peek::is_loading(client, &request.response, got).await,
    }
}

const NO_JOURNAL: Refusal = Refusal::new(
    503,
    "usage_unavailable",
    "Usage records cannot be kept, and nobody is served without them.",
);

const NO_BACKEND: Refusal =
    Refusal::new(503, "no_backend", "No backend is configured for this request.");
