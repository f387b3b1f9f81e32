//! The answers that we make ourselves: refusals, what stands for a backend that did not answer, our
//! own pages. Each leaves the story by which its request is settled.

use super::waiting::Unserved;
use super::{admin, early, Next, Notes, Underway};
use crate::base::fault::{Fault, Retryable};
use crate::base::limits::EJECTION_STEP;
use crate::base::refusal::Refusal;
use crate::http::request::Method;
use crate::keys::check::may_ask;
use crate::proxy::admit::cors::Preflight;
use crate::proxy::admit::model;
use crate::proxy::admit::path::Purpose;
use crate::proxy::answer::{self, Frame};
use crate::proxy::client::Client;
use crate::proxy::receive::Request;
use crate::proxy::settle::{self, Ending, Story};
use crate::proxy::shared::Shared;
use crate::proxy::view::WorkerView;
use crate::state::meters::Phase;
use crate::state::scrape::PAGE_CONTENT_TYPE;
use crate::usage::outbox::Outbox;
use std::borrow::Cow;
use std::rc::Rc;
use std::time::Instant;

/// What a client gets instead of an engine's answer.
pub(super) enum Instead {
    /// A refusal.
    Refusal(Refusal),
    /// One of our own pages.
    Page(Purpose),
    /// Nothing: it has left before its request was for a backend.
    Nothing,
}

impl From<Refusal> for Instead {
    fn from(refusal: Refusal) -> Instead {
        Instead::Refusal(refusal)
    }
}

/// Answers a request that does not go to a backend.
pub(super) async fn answer_instead(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
    instead: Instead,
) -> Next {
    match instead {
        Instead::Refusal(refusal) => refuse(w, client, underway, refusal).await,
        Instead::Page(Purpose::Preflight) => answer_page(w, client, underway).await,
        Instead::Page(Purpose::Models) => list_models(w, client, underway).await,
        Instead::Page(Purpose::Admin) => Box::pin(admin::answer(w, client, underway)).await,
        Instead::Page(kind) => own_answer(w, client, underway, kind).await,
        Instead::Nothing => {
            w.shelf.count_abort(Phase::Request);
            underway.notes.story = Story::client_left();
            Next::Close
        }
    }
}

/// Answers with a refusal. The connection survives if its framing is not in doubt and
/// no unread body is in the way.
pub(super) async fn refuse(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
    refusal: Refusal,
) -> Next {
    let view = Rc::clone(&underway.pass.view);
    let Underway { pass, notes: Notes { request, story, .. } } = underway;
    let close = refusal.close || !request.body_read || w.is_crowded();
    let mut frame = frame((w, &view), request, close);
    if let Some(takings) = pass.takings() {
        frame.limits = takings.levels(Instant::now());
        // Whoever has its refusal can ask again.
        takings.leave();
    }
    // Its request may not have come to its end, and does not any more.
    match frame.close {
        true => client.post.set_last(),
        false => client.post.set_busy(),
    }
    let sent = answer::refuse(client, &frame, &refusal).await;
    let next = after(sent, frame.close);
    request.release_body(client);
    *story = Story::refused(&refusal);
    next
}

/// Answers for a backend that did not.
pub(super) async fn give_up(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
    fault: Fault,
) -> Next {
    let Underway { pass, notes: Notes { request, story, tap, .. } } = underway;
    story.ending = Ending::Fault(fault);
    let next = if fault == Fault::ClientLeft {
        w.shelf.count_abort(Phase::Waiting);
        Next::Close
    } else {
        let refusal = of_fault(w, request, fault);
        story.status = refusal.status;
        // As with an engine's answer: whoever has seen the end of it has a record that says so.
        settle::close(pass, (request, tap), story, 0);
        match story.head_is_out {
            true => Box::pin(early::tell(client, (request, story), &refusal)).await,
            false => {
                let view = Rc::clone(&pass.view);
                let frame = frame((w, &view), request, refusal.close);
                let sent = answer::refuse(client, &frame, &refusal).await;
                after(sent, frame.close)
            }
        }
    };
    request.release_body(client);
    next
}

/// Answers for whatever kept a request from an engine's answer.
pub(super) async fn turn_away(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
    unserved: Unserved,
) -> Next {
    match unserved {
        Unserved::Failed(fault) => give_up(w, client, underway, fault).await,
        Unserved::Refused(refusal) if underway.notes.story.head_is_out => {
            let Notes { request, story, .. } = &mut *underway.notes;
            let next = Box::pin(early::tell(client, (request, story), &refusal)).await;
            request.release_body(client);
            *story = Story::refused(&refusal);
            next
        }
        Unserved::Refused(refusal) => refuse(w, client, underway, refusal).await,
    }
}

/// What a client hears of a fault. Where everybody who could have served it is known to be down,
/// that is no failure of a request but an outage, which clients and balancers should wait for.
fn of_fault(w: &Shared, request: &Request, fault: Fault) -> Refusal {
    let (view, refusal) = (w.view(), fault.refusal());
    let group = view.shared.models.choose(request.served_model()).group;
    let is_outage = || !view.shared.group(group).any(|member| member.is_healthy());
    if fault.retry() != Retryable::Any || !is_outage() {
        return refusal;
    }
    // When it is next found out whether one is back.
    let health = view.plan.health_check.as_ref();
    let next = health.map_or(EJECTION_STEP, |health| health.interval);
    let seconds = next.as_secs().clamp(1, 30) as u32;
    Refusal { status: 503, ..refusal }.with_retry_after(seconds)
}

/// `/health`, `/ready` and the metrics page.
async fn own_answer(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
    kind: Purpose,
) -> Next {
    const TEXT: &str = "text/plain; charset=utf-8";
    let view = Rc::clone(&underway.pass.view);
    let Notes { request, story, .. } = &mut *underway.notes;
    let page;
    let (status, content_type, body): (u16, &str, &[u8]) = match kind {
        Purpose::Ready if !w.is_staying() => (503, TEXT, b"draining\n"),
        Purpose::Ready if !w.view().shared.any_passes_probes() => {
            (503, TEXT, b"no healthy backend\n")
        }
        Purpose::Ready if w.usage.as_ref().is_some_and(Outbox::refuses) => {
            (503, TEXT, b"usage records cannot be kept\n")
        }
        Purpose::Ready if w.usage.as_ref().is_some_and(Outbox::is_failing) => {
            (200, TEXT, b"OK\nwarning: usage records wait in memory\n")
        }
        Purpose::Metrics => match w.metrics_page(client).await {
            Some(made) => {
                page = made;
                (200, PAGE_CONTENT_TYPE, &page[..])
            }
            None => (503, TEXT, b"the metrics page is not available\n"),
        },
        _ => (200, TEXT, b"OK\n"),
    };
    let frame = frame((w, &view), request, !request.body_read || client.post.is_guest());
    let sent = answer::send(client, &frame, status, content_type, body).await;
    let next = after(sent, frame.close);
    request.release_body(client);
    *story = Story::own(status);
    next
}

/// What the browser of a page of another origin asks before it sends a request.
async fn answer_page(w: &Shared, client: &mut Client, underway: &mut Underway<'_>) -> Next {
    let view = Rc::clone(&underway.pass.view);
    let Notes { request, .. } = &*underway.notes;
    let head = &request.head;
    let asked = Preflight::of(head.method, &head.fields, client.bytes());
    let answer = match (&view.cors, &asked) {
        (Some(cors), Some(asked)) => cors.answer(asked),
        // It would not be one.
        _ => Ok(Vec::new()),
    };
    let sent = match answer {
        Err(refusal) => return refuse(w, client, underway, refusal).await,
        Ok(fields) => {
            let close = !request.body_read || client.post.is_guest();
            let frame = Frame { cors: fields, ..frame((w, &view), request, close) };
            (answer::send(client, &frame, 204, "", b"").await, frame.close)
        }
    };
    let next = after(sent.0, sent.1);
    let Notes { request, story, .. } = &mut *underway.notes;
    request.release_body(client);
    *story = Story::own(204);
    next
}

/// `/v1/models`, and what stands below it.
async fn list_models(w: &Shared, client: &mut Client, underway: &mut Underway<'_>) -> Next {
    const JSON: &str = "application/json";
    let Some(list) = w.model_list(client).await else {
        return refuse(w, client, underway, NO_MODELS.with_retry_after(1)).await;
    };
    let (view, keys) = (&*underway.pass.view, underway.pass.keys());
    let is_shown = |model: &str| {
        let served = view.shared.models.alias(model).map_or(model, |alias| &alias.served);
        keys.iter().all(|key| may_ask(key, model, served))
    };
    let Notes { request, story, .. } = &mut *underway.notes;
    let name = model::named_by(request.head.path(client.bytes()));
    let found = match &name {
        None if keys.iter().all(|key| key.allowed_models.is_empty()) => {
            Some(Cow::Borrowed(list.page()))
        }
        None => Some(Cow::Owned(list.page_of(is_shown))),
        Some(name) => list.model(name).filter(|_| is_shown(name)).map(Cow::Borrowed),
    };
    let Some(body) = found else {
        let refusal = model::not_found(name.as_deref().unwrap_or_default());
        return refuse(w, client, underway, refusal).await;
    };
    let view = Rc::clone(&underway.pass.view);
    let frame = frame((w, &view), request, !request.body_read || w.is_crowded());
    let sent = answer::send(client, &frame, 200, JSON, body.as_bytes()).await;
    let next = after(sent, frame.close);
    request.release_body(client);
    *story = Story::answered(200);
    next
}

const NO_MODELS: Refusal =
    Refusal::new(503, "models_unavailable", "No backend says what models it has.");

pub(super) fn frame<'a>(
    (w, view): (&Shared, &'a WorkerView),
    request: &'a Request,
    close: bool,
) -> Frame<'a> {
    let cors = view.cors.iter().flat_map(|cors| cors.fields(request.from.origin()));
    Frame {
        cors: cors.collect(),
        request_id: request.id().as_str(),
        version: request.head.version,
        close: close || !request.head.keep_alive || w.patrol.is_parting(),
        head_only: request.head.method == Method::Head,
        limits: [None; 2],
    }
}

pub(super) fn after(sent: Result<(), Fault>, close: bool) -> Next {
    match (sent, close) {
        (Err(_), _) => Next::Close,
        (Ok(()), true) => Next::CloseGently,
        (Ok(()), false) => Next::Request,
    }
}
