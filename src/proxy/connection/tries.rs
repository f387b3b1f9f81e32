//! From a whole request to the head of an engine's answer: the opening record, the tries.

use super::early;
use super::ours::{give_up, turn_away};
use super::preamble::Held;
use super::retry::{self, is_doubtful};
use super::waiting::{enter, is_waited, wait, Unserved};
use super::{Next, Notes, Underway};
use crate::base::fault::Fault;
use crate::base::panic_point;
use crate::base::refusal::Refusal;
use crate::config::plan::Fallback;
use crate::http::response::ResponseHead;
use crate::proxy::asking::Asking;
use crate::proxy::client::Client;
use crate::proxy::flight;
use crate::proxy::queue::Waiter;
use crate::proxy::receive::Request;
use crate::proxy::repute;
use crate::proxy::route::affinity::Taught;
use crate::proxy::route::tries::{Policy, Tries};
use crate::proxy::route::{NotPicked, TriedMembers};
use crate::proxy::settle::{self, Story};
use crate::proxy::shared::Shared;
use crate::proxy::upstream::exchange::{exchange, Exchange, How};
use crate::proxy::upstream::pool::{InFlight, LocalMember};
use crate::proxy::view::WorkerView;
use crate::rt::patrol::Stand;
use crate::state::engine_cache::ExpectedPrefix;
use crate::state::models::GroupId;
use crate::usage::outbox::Outbox;
use std::rc::Rc;

/// The way of a request that is for a backend, to the head of an answer. An error when there is
/// none; the client has been told.
pub(super) async fn forward(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
) -> Result<Exchange, Next> {
    if let Some(every) = early::due(underway) {
        // Boxed: what it needs beside the tries is not for every stream to carry.
        return Box::pin(early::forward(w, client, underway, every)).await;
    }
    let first = match start(w, client, underway) {
        Ok(First::Picked(first)) => first,
        // Boxed: few requests wait, or are refused.
        other => Box::pin(begin_late(w, client, underway, other)).await?,
    };
    let fault = match try_backends(w, client, underway, first).await {
        Ok(exchange) => return Ok(exchange),
        Err(fault) => fault,
    };
    Err(Box::pin(give_up(w, client, underway, fault)).await)
}

/// Who is asked first after a wait; the error: nobody.
async fn begin_late(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
    first: Result<First, Refusal>,
) -> Result<Rc<LocalMember>, Next> {
    let unserved = match first {
        Ok(First::Picked(first)) => return Ok(first),
        Ok(First::Waits(waiter)) => match wait(w, client, underway, *waiter).await {
            Ok(first) => return Ok(first),
            Err(unserved) => unserved,
        },
        Err(refusal) => Unserved::Refused(refusal),
    };
    Err(turn_away(w, client, underway, unserved).await)
}

/// Who is asked first.
pub(super) enum First {
    /// This one.
    Picked(Rc<LocalMember>),
    /// Whoever has room when it is the request's turn.
    Waits(Box<Waiter>),
}

/// Picks who is asked first, or lets the request wait for that.
pub(super) fn start(
    w: &Shared,
    client: &Client,
    underway: &mut Underway<'_>,
) -> Result<First, Refusal> {
    if w.usage.as_ref().is_some_and(Outbox::refuses) {
        return Err(NO_JOURNAL);
    }
    let Underway { pass, notes: Notes { request, .. } } = &*underway;
    let group = pass.view.shared.models.choose(request.served_model()).group;
    let picked = match is_waited(&pass.view, group) {
        true => Err(NotPicked::Full { retry_after_s: 1 }),
        false => pick((&pass.view, group), request, &TriedMembers::default()),
    };
    match picked {
        Ok(inflight) => opened(w, client, underway, inflight).map(First::Picked),
        Err(why) => {
            enter(w, client, underway, (group, why)).map(|waiter| First::Waits(Box::new(waiter)))
        }
    }
}

/// The request goes to a backend first, and its record is opened: an engine has nothing that the
/// journal has not.
pub(super) fn opened(
    w: &Shared,
    client: &Client,
    underway: &mut Underway<'_>,
    inflight: InFlight,
) -> Result<Rc<LocalMember>, Refusal> {
    let Underway { pass, notes: Notes { request, story, .. } } = underway;
    let first = story.goes_to(inflight);
    story.expected = pass.view.expected();
    flight::note_pick(pass, request);
    w.retries.deposit();
    panic_point::pass("choosing");
    story.keep_body(pass, request, client);
    match settle::open(pass, request, story) {
        true => Ok(first),
        false => {
            first.untried();
            Err(NO_JOURNAL)
        }
    }
}

/// The next try, in flight at whoever of the group gets it.
pub(super) fn pick(
    (view, group): (&WorkerView, GroupId),
    request: &Request,
    tried: &TriedMembers,
) -> Result<InFlight, NotPicked> {
    view.pick((group, &request.unique_id), tried)
}

/// What a client hears when there is nobody to ask.
pub(super) fn refusal(why: NotPicked) -> Refusal {
    match why {
        NotPicked::Nobody => NO_BACKEND.with_retry_after(1),
        NotPicked::Full { retry_after_s } => {
            Fault::BackendFull.refusal().with_retry_after(retry_after_s)
        }
    }
}

/// A request on its way to an answer.
pub(super) struct Trying<'a> {
    /// What the request goes by.
    pub view: &'a WorkerView,
    /// The rule of the backend that was picked first, if there is one and it failed.
    pub rule: Option<&'a Fallback>,
    /// What was tried.
    pub tries: Tries,
    /// Who has the try that is under way.
    pub backend: Rc<LocalMember>,
    /// Whether it asks for usage on its own account.
    pub asking: Asking,
    /// What was noted of that backend because it has the try.
    pub taught: Taught,
    /// How its stream began, if it was held back and no model spoke in it.
    pub withheld: Option<Held>,
}

impl<'a> Trying<'a> {
    /// What the configuration says of further tries.
    pub(super) fn policy(&self) -> Policy<'a> {
        Policy::of(&self.view.plan.routing, self.rule)
    }

    /// How the next try is made.
    fn how(&self, client: &Client, is_only: bool) -> How {
        let elapsed = client.post.since(self.tries.began());
        How {
            is_fresh: self.tries.is_fresh(),
            asking: self.asking,
            within: self.policy().time_left(&self.tries, elapsed),
            is_only,
        }
    }

    /// A backend gets the next try.
    pub(super) fn move_to(&mut self, backend: &Rc<LocalMember>, request: &Request) {
        self.tries.move_to(backend.id());
        self.taught = self.view.taught();
        self.asking = Asking::of(&self.view.plan, request, backend);
        self.backend = Rc::clone(backend);
    }

    /// Whether the head alone tells that an answer is for the client.
    fn is_for_the_client(&self, request: &Request, response: &ResponseHead) -> bool {
        let status = response.status;
        if retry::is_held(self, request, response) {
            return false;
        }
        let may_be_none = self.asking.may_be_refused(status) || is_doubtful(self, status);
        status < 400 || !may_be_none
    }
}

/// Tries backends until one begins to answer. What follows a try that brought no answer, or one
/// that may be none for the client, is decided by `retry`. The error is how the last one failed.
pub(super) async fn try_backends(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
    first: Rc<LocalMember>,
) -> Result<Exchange, Fault> {
    let Underway { pass, notes: Notes { request, response, story, .. } } = underway;
    let view = &*pass.view;
    let choice = view.shared.models.choose(request.served_model());
    let (aim, serving) = (choice.rule, view.shared.models.members_of(choice.group));
    let is_only = serving.len() == 1 && view.plan.routing.retry.is_none();
    let mut trying = Trying {
        view,
        rule: None,
        tries: Tries::begin(first.id(), client.post.now()),
        asking: Asking::of(&view.plan, request, &first),
        // Nobody else was picked since the first one was.
        taught: view.taught(),
        withheld: None,
        backend: first,
    };
    loop {
        let stand = Stand { place: trying.backend.id().number(), aim };
        client.post.stand_at(trying.tries.may_move().then_some(stand));
        let how = trying.how(client, is_only);
        // In a scope of its own, or it would lie beside the next wait in every stream.
        let doubtful = {
            let (on, there) = ((&w.shelf, trying.view), (&trying.backend, &mut story.inflight));
            let asked = exchange(on, client, (request, response), there, &how).await;
            panic_point::pass("asking");
            client.post.stand_at(None);
            // What was not sent whole counts where it was still.
            story.is_sent |= story.inflight.is_none();
            let asked = asked.map_err(|fault| how.name(fault, &trying.backend.plan));
            if retry::is_unread(&asked, response.status, story.inflight.is_some()) {
                retry::unlearn(w, (client, request), &mut trying);
            }
            match asked {
                Ok(got) if trying.is_for_the_client(request, response) => {
                    let Trying { backend, asking, .. } = &trying;
                    asking.learn(
                        &w.shelf,
                        (backend, request.served_model()),
                        response.status,
                        false,
                    );
                    repute::hear_answer(backend, response, (false, || got.lease.age()));
                    note_answer(story, &trying);
                    return Ok(got);
                }
                // Boxed: it is rare.
                Ok(got) => Ok(Box::new(got)),
                Err(fault) => Err(fault),
            }
        };
        // Where not all of it was sent it still counts there, where it has failed.
        story.inflight = None;
        let known = (&*request, &*response);
        let next = (&mut trying, &mut story.inflight);
        match Box::pin(retry::after(pass, client, (known, next), doubtful)).await {
            Ok(None) => {}
            Ok(Some(got)) => {
                story.is_heard = matches!(trying.withheld, Some(Held::Error(..)));
                note_answer(story, &trying);
                return Ok(*got);
            }
            Err(fault) => return Err(fault),
        }
        story.backend = Some(Rc::clone(&trying.backend));
        story.expected = ExpectedPrefix::default();
        story.retries += 1;
        panic_point::pass("trying again");
    }
}

/// The client gets the answer to this try.
fn note_answer(story: &mut Story, trying: &Trying) {
    story.fallback = trying.tries.is_fallback();
    story.asked_usage = trying.asking.is_spliced();
}

pub(super) const NO_JOURNAL: Refusal = Refusal::new(
    503,
    "usage_unavailable",
    "Usage records cannot be kept, and nobody is served without them.",
);

pub(super) const NO_BACKEND: Refusal =
    Refusal::new(503, "no_backend", "No backend is configured for this request.");
