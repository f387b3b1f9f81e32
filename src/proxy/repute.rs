//! What requests find out about their backends goes to the members.

use crate::base::clock::unix_ms;
use crate::base::fault::{Fault, Side};
use crate::http::field::Known;
use crate::http::response::ResponseHead;
use crate::state::member::{Member, Witness};
use crate::state::repute::{Change, Evidence};

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
    let has_retry_after = response.fields.iter().any(|f| f.known == Known::RetryAfter);
    if let (429 | 503, Some(retry_after)) = (response.status, response.retry_after) {
        backend.spare_for(retry_after.wait(unix_ms()));
    }
    // A refusal of what the client sent is an answer; one for lack of room, or strength, is none.
    backend.hear_served(response.status < 500 && response.status != 429);
    hear(backend, Evidence::of_status(response.status, has_retry_after));
}

/// Takes in an error that stood inside an answer of status 200. That the backend is full is no
/// illness, but no service either.
pub fn hear_inside(backend: &Member, status: u16, is_full: bool) {
    let is_served = status < 500;
    backend.hear_served(is_served);
    hear(backend, Evidence::of_status(status, is_full));
}

fn hear(member: &Member, evidence: Evidence) {
    let Some(change) = member.hear(evidence) else { return };
    let backend = &*member.name;
    match change {
        Change::Ejected(time) => {
            let why = match evidence {
                Evidence::NoConnection(_) => "too many connections in a row failed",
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
