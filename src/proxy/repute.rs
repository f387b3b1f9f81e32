//! What requests find out about their backends goes to the members.

use crate::base::clock::unix_ms;
use crate::base::fault::Fault;
use crate::http::response::ResponseHead;
use crate::state::member::{Member, Witness};
use crate::state::repute::{BodyForm, Change, Evidence};
use std::time::Duration;

/// Takes in what a fault says about a backend.
pub fn hear_fault(backend: &Member, fault: Fault) {
    if let Some(evidence) = Evidence::of_fault(fault) {
        backend.hear_served(false);
        hear(backend, evidence);
    }
}

/// Takes in what an answer says about a backend that was picked for it so long ago. `says_full`:
/// its body says that the backend is full; few heads do.
pub fn hear_answer(
    backend: &Member,
    response: &ResponseHead,
    (says_full, age): (bool, impl FnOnce() -> Duration),
) {
    let status = response.status;
    // A refusal of what the client sent is an answer; one for lack of room, or strength, is none.
    backend.hear_served(status < 500 && status != 429);
    let is_full = matches!(status, 429 | 503) && spare(backend, response, says_full);
    match Evidence::of_status(status, is_full) {
        Evidence::Good => note(backend, Evidence::Good, backend.hear_good(age)),
        evidence => hear(backend, evidence),
    }
}

/// Spares one that is full: for as long as it asks for, or a moment. False: it is not.
fn spare(backend: &Member, response: &ResponseHead, says_full: bool) -> bool {
    match response.retry_after.map(|retry_after| retry_after.wait(unix_ms())) {
        Some(wait) if !wait.is_zero() => backend.fullness().spare_for(wait),
        // A 429 says nothing else. A time that is over is one.
        None if response.status == 429 => backend.fullness().spare(),
        _ if says_full => backend.fullness().spare(),
        _ => return false,
    }
    true
}

/// The words of [`hear_answer`] are to be looked for: the answer may say so, and its head does not.
pub fn may_say_full(response: &ResponseHead) -> bool {
    response.status == 503
        && response.retry_after.is_none_or(|retry_after| retry_after.wait(unix_ms()).is_zero())
}

/// Takes in an error that stood inside an answer of status 200, for which this status stands. That
/// the backend is full is no illness, but no service either.
pub fn hear_inside(backend: &Member, form: BodyForm, status: u16, is_full: bool) {
    backend.hear_served(status < 500);
    if is_full {
        backend.fullness().spare();
    }
    match status < 500 || is_full {
        true => hear(backend, Evidence::Good),
        false => hear(backend, Evidence::BadInside(form, status)),
    }
}

/// Takes in a body in which a model spoke, or that came well to its end.
pub fn hear_body(backend: &Member, form: BodyForm) {
    // It changes nothing of which anybody must be told.
    let _ = backend.hear(Evidence::GoodInside(form));
}

fn hear(member: &Member, evidence: Evidence) {
    note(member, evidence, member.hear(evidence));
}

/// Tells what evidence has changed.
fn note(member: &Member, evidence: Evidence, change: Option<Change>) {
    let Some(change) = change else { return };
    let backend = &*member.name;
    match change {
        Change::Ejected(time) => {
            let why = match evidence {
                Evidence::NoConnection(_) => "too many connections in a row failed",
                Evidence::BadInside(BodyForm::Stream, _) => {
                    "too many streams in a row told of errors"
                }
                Evidence::BadInside(BodyForm::Whole, _) => {
                    "too many answers in a row told of errors"
                }
                _ => "too many answers in a row failed",
            };
            let (last, pause_s) = (evidence.words(), time.as_secs());
            member.remark(Witness::Requests, format!("{why}, the last: {last}"));
            tracing::warn!(backend, why, last, pause_s, "backend is ejected");
        }
        Change::Back => {
            member.remark(Witness::Requests, "it answered a request".to_owned());
            tracing::info!(backend, "backend is back: it answered a request");
        }
        // It was told when it went.
        Change::StaysOut(_) => {}
    }
}
