//! What requests find out about their backends goes to the members.

use crate::base::clock::unix_ms;
use crate::base::fault::{Fault, Side};
use crate::http::response::ResponseHead;
use crate::state::member::{Member, Witness};
use crate::state::repute::{BodyForm, Change, Evidence};
use std::time::Duration;

/// Takes in what a fault says about a backend.
pub fn hear_fault(backend: &Member, fault: Fault) {
    match Evidence::of_fault(fault) {
        Some(evidence) => {
            backend.hear_served(false);
            hear(backend, evidence);
        }
        None if fault.side() != Side::Backend || fault == Fault::RetryTimeout => backend.untried(),
        None => {}
    }
}

/// Takes in what the head of an answer says about a backend.
pub fn hear_answer(backend: &Member, response: &ResponseHead) {
    let wait = match (response.status, response.retry_after) {
        (429 | 503, Some(retry_after)) => retry_after.wait(unix_ms()),
        _ => Duration::ZERO,
    };
    if !wait.is_zero() {
        backend.spare_for(wait);
    }
    // A refusal of what the client sent is an answer; one for lack of room, or strength, is none.
    backend.hear_served(response.status < 500 && response.status != 429);
    hear(backend, Evidence::of_status(response.status, wait));
}

/// Takes in an error that stood inside an answer of status 200, for which this status stands. That
/// the backend is full is no illness, but no service either.
pub fn hear_inside(backend: &Member, form: BodyForm, status: u16, is_full: bool) {
    backend.hear_served(status < 500);
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
    let Some(change) = member.hear(evidence) else { return };
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
