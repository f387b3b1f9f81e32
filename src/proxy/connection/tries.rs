//! From a whole request to the head of an engine's answer: the opening record, the tries.

use super::ours::{give_up, refuse};
use super::{Next, Talk};
use crate::base::fault::Fault;
use crate::base::panic_point;
use crate::base::refusal::Refusal;
use crate::http::response::ResponseHead;
use crate::proxy::asking::{self, Asking};
use crate::proxy::client::Client;
use crate::proxy::pass::Pass;
use crate::proxy::receive::Request;
use crate::proxy::repute;
use crate::proxy::route::tries::{Follow, Tries, TryEnd};
use crate::proxy::route::{self, TriedMembers};
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
    match open(w, client, talk) {
        Begun::Open => {}
        Begun::NoBackend => return Err(Box::pin(refuse(w, client, talk, NO_BACKEND)).await),
        Begun::NoJournal => return Err(Box::pin(refuse(w, client, talk, NO_JOURNAL)).await),
    }
    match try_backends(w, client, talk).await {
        Ok(()) => Ok(()),
        Err(fault) => Err(Box::pin(give_up(w, client, talk, fault)).await),
    }
}

/// How the way to a backend begins.
enum Begun {
    /// There is somebody to ask, and the journal has the request.
    Open,
    /// There is nobody to ask.
    NoBackend,
    /// The journal cannot keep it, and nobody is served without.
    NoJournal,
}

/// Picks who is asked first and opens the request's record: an engine has nothing that the journal
/// has not.
fn open(w: &Rc<Shared>, client: &Client, talk: &mut Talk) -> Begun {
    if w.usage.as_ref().is_some_and(Outbox::refuses) {
        return Begun::NoJournal;
    }
    let Talk { request, story, pass, .. } = talk;
    let pass = pass.get_or_insert_with(|| Pass::new(w));
    story.backend = pick(&pass.view, &TriedMembers::default());
    if story.backend.is_none() {
        return Begun::NoBackend;
    }
    panic_point::pass("choosing");
    story.keep_body(pass, request, client);
    match settle::open(pass, request, story) {
        true => Begun::Open,
        false => Begun::NoJournal,
    }
}

/// Who gets the next try.
fn pick(view: &WorkerView, tried: &TriedMembers) -> Option<Rc<LocalMember>> {
    let place = route::pick(&mut view.balancer.borrow_mut(), view.shared.members(), tried)?;
    view.members.get(place).cloned()
}

/// Tries backends until one begins to answer. Another one is asked while nobody saw the request,
/// when the engine is still loading its model, and, once, when the backend goes out of service
/// before the first byte of an answer: the connection there is closed, which cancels what it may
/// have begun. A kept connection that was closed under us is replaced once, and a request that was
/// refused with a wish of ours goes once more without. The error is how the last one failed.
async fn try_backends(w: &Rc<Shared>, client: &mut Client, talk: &mut Talk) -> Result<(), Fault> {
    let Talk { request, response, story, exchange: answered, pass, .. } = talk;
    let view = &pass.get_or_insert_with(|| Pass::new(w)).view;
    let (mut tries, mut asking) = (Tries::default(), Asking::No);
    let (mut follow, mut is_repeated) = (Follow::Other, false);
    loop {
        if follow == Follow::Other {
            // The first one was picked already.
            let first = story.backend.clone().filter(|_| tries.tried().is_empty());
            // Any other one by the view of now: those that left meanwhile get no more requests.
            let Some(next) = first.or_else(|| pick(&w.view(), tries.tried())) else { break };
            tries.begin(next.id());
            asking = Asking::of(&view.plan, request, &next);
            story.backend = Some(next);
        }
        let Some(backend) = &story.backend else { break };
        if std::mem::replace(&mut is_repeated, true) {
            story.retries += 1;
            w.shelf.meters.borrow_mut().retries += 1;
        }
        client.post.stand_at(tries.may_move().then(|| backend.id().number()));
        let how = (tries.is_fresh(), asking);
        let asked = exchange((&w.shelf, view), client, (request, response), backend, how).await;
        // Put away before the next wait, or it would lie beside that in every stream.
        let asked = asked.map(|got| *answered = Some(got));
        panic_point::pass("asking");
        client.post.stand_at(None);
        let end = match asked {
            Ok(()) if is_for_the_client(asking, response.status) => {
                asking.learn(&w.shelf, (backend, &request.model), response.status, false);
                repute::hear_answer(backend, response);
                TryEnd::Answered
            }
            Ok(()) => {
                let about = (&mut asking, &tries, &*request);
                // Boxed: it is rare, and the future of a stream would carry it.
                let heard = hear(w, client, (about, backend), (response, answered));
                Box::pin(heard).await
            }
            Err(fault) => TryEnd::Failed(fault),
        };
        if let TryEnd::Failed(fault) = end {
            asking::hear_failure(backend, fault);
            w.shelf.count_fault(Some(backend), fault);
            story.ending = Ending::Fault(fault);
        }
        follow = tries.next(backend.id(), end);
        if !request.is_in_hand() && follow != Follow::Answer {
            follow = Follow::Stop;
        }
        match follow {
            Follow::Answer => {
                story.fallback = tries.is_fallback();
                story.asked_usage = asking.is_spliced();
                story.ending = Ending::Complete;
                return Ok(());
            }
            Follow::Again | Follow::Other | Follow::Stop => *answered = None,
        }
        if follow == Follow::Stop {
            break;
        }
    }
    match story.ending {
        Ending::Fault(fault) => Err(fault),
        // The first one was picked before, so that there was one try at least.
        _ => Err(Fault::Unresolved),
    }
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
    (response, answered): (&ResponseHead, &mut Option<Exchange>),
) -> TryEnd {
    let Some(got) = answered.as_mut() else { return TryEnd::Answered };
    let status = response.status;
    let is_named = asking.may_be_refused(status) && peek::names_wish(client, response, got).await;
    if let Some(next) = asking.learn(&w.shelf, (backend, &request.model), status, is_named) {
        *asking = next;
        return TryEnd::WishRefused;
    }
    repute::hear_answer(backend, response);
    let fault = match status {
        503 => Fault::BackendLoading,
        508 => Fault::BackendLoops,
        _ => return TryEnd::Answered,
    };
    let has_other =
        request.is_in_hand() && route::has_other(w.view().shared.members(), tries.tried());
    match has_other && says(client, response, got, fault).await {
        true => TryEnd::Failed(fault),
        false => TryEnd::Answered,
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
