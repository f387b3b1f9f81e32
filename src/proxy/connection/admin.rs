//! The admin API on the main port: the worker asks whether its sender may ask before it reads a
//! byte of a body, then hands the request on to those who answer, who may block. No engine ever
//! hears of it.

use super::ours::{after, frame, refuse};
use super::{Next, Notes, Underway};
use crate::base::limits::ADMIN_BODY_BYTES_MAX;
use crate::base::refusal::Refusal;
use crate::config::plan::Server;
use crate::http::admin_token;
use crate::proxy::answer;
use crate::proxy::client::Client;
use crate::proxy::receive::{self, Received, Request};
use crate::proxy::settle::Story;
use crate::proxy::shared::Shared;
use crate::state::admin_desk::{AdminAnswer, AdminDesk, AdminRequest, AdminResult, Stranger};
use crate::state::meters::Phase;
use futures_channel::oneshot;
use std::rc::Rc;
use std::time::Duration;

/// So long those who say whether somebody may ask have for it. They never wait for anything.
const GATE_WAIT: Duration = Duration::from_secs(3);
/// So long those who answer have for it; a reload takes no longer.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

const OVERLOADED: Refusal =
    Refusal::new(503, "overloaded", "Too many ask the admin API at a time.");
const SILENT: Refusal = Refusal::new(503, "admin_unavailable", "The admin API does not answer.");
const TOO_LARGE: Refusal =
    Refusal::closing(413, "body_too_large", "A body has no more than 1 MiB here.");

/// What its client gets.
enum Said {
    Answer(AdminAnswer),
    Refusal(Refusal),
    Nothing,
}

impl From<Refusal> for Said {
    fn from(refusal: Refusal) -> Said {
        Said::Refusal(refusal)
    }
}

/// Answers a request to the admin API.
pub(super) async fn answer(w: &Shared, client: &mut Client, underway: &mut Underway<'_>) -> Next {
    let view = Rc::clone(&underway.pass.view);
    let said = match &w.admin_desk {
        Some(desk) => {
            let request = &mut underway.notes.request;
            ask(desk, &view.plan.server, client, request).await.unwrap_or_else(|instead| instead)
        }
        None => Said::Refusal(SILENT),
    };
    let answer = match said {
        Said::Answer(answer) => answer,
        Said::Refusal(refusal) => return refuse(w, client, underway, refusal).await,
        Said::Nothing => {
            w.shelf.count_abort(Phase::Request);
            underway.notes.story = Story::client_left();
            return Next::Close;
        }
    };
    let Notes { request, story, .. } = &mut *underway.notes;
    let close = !request.body_read || client.post.is_guest();
    let mut frame = frame((w, &view), request, close);
    frame.cors.extend(answer.fields.iter().map(|(name, value)| (*name, value.as_str())));
    match frame.close {
        true => client.post.set_last(),
        false => client.post.set_busy(),
    }
    let status = answer.status;
    let sent = answer::send(client, &frame, status, answer.content_type, &answer.body).await;
    let next = after(sent, frame.close);
    request.release_body(client);
    *story = Story::own(status);
    next
}

/// Asks those who answer. An error says what the client gets instead.
async fn ask(
    desk: &AdminDesk,
    server: &Server,
    client: &mut Client,
    request: &mut Request,
) -> Result<Said, Said> {
    let overloaded = || {
        desk.numbers.note(AdminResult::Overloaded);
        Said::Refusal(OVERLOADED.with_retry_after(1))
    };
    let shown = admin_token::shown(&request.head, client.bytes());
    let shown = shown.into_iter().map(<[u8]>::to_vec).collect();
    let stranger = Stranger { peer: request.from.client(), shown };
    let verdict = desk.gate.ask(stranger).ok_or_else(overloaded)?;
    client.post.arm(GATE_WAIT);
    let verdict = client.post.within(verdict).await.map_err(|_| SILENT)?.map_err(|_| SILENT)?;
    let may_change = verdict.map_err(Said::Answer)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let query = text(request.head.query.of(client.bytes()));
    let mut asked = AdminRequest {
        method: request.head.method.as_str(),
        path: text(request.head.path(client.bytes())),
        query: query.strip_prefix('?').unwrap_or_default().to_owned(),
        body: Vec::new(),
        may_change,
    };
    if request.has_body() {
        read_body(server, client, request).await?;
        asked.body = request.body(client.bytes()).to_vec();
    }
    let (reply, answer) = oneshot::channel();
    desk.questions.try_send((asked, reply)).map_err(|_| overloaded())?;
    desk.numbers.note(AdminResult::Answered);
    client.post.arm(ANSWER_WAIT);
    match client.post.within(answer).await {
        Ok(Ok(answer)) => Ok(Said::Answer(answer)),
        _ => Err(SILENT.into()),
    }
}

async fn read_body(
    server: &Server,
    client: &mut Client,
    request: &mut Request,
) -> Result<(), Said> {
    // Few ask, and few of them with a body: that a copy costs something does not matter.
    let mut server = server.clone();
    server.max_body_size = server.max_body_size.min(ADMIN_BODY_BYTES_MAX as u64);
    match receive::body(client, request, &server).await {
        Ok(Received::Whole) => Ok(()),
        Ok(Received::Closed | Received::Idled) => Err(Said::Nothing),
        Err(refusal) if refusal.status == 413 => Err(TOO_LARGE.into()),
        Err(refusal) => Err(refusal.into()),
    }
}
