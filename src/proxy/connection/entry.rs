//! Whether a request is let in, and whose it is: its key is looked up before a byte of its body is
//! read.

use crate::base::refusal::Refusal;
use crate::config::plan::KeyForm;
use crate::keys::check::{asks_for_address, Circumstances};
use crate::keys::digest::KeyDigest;
use crate::keys::facts::KeyFacts;
use crate::proxy::admit::gate::{Gate, Ruling};
use crate::proxy::client::Client;
use crate::proxy::pass::Pass;
use crate::proxy::receive::Request;
use crate::proxy::view::WorkerView;
use crate::state::lookup::KeyAnswer;
use crate::usage::key_form;
use jiff::Timestamp;
use std::rc::Rc;
use std::sync::Arc;

/// Lets a request in whose path, which is normal, is one for a backend or one of ours that needs a
/// key.
///
/// # Errors
/// It has to stay outside.
pub(super) fn let_in(
    pass: &mut Pass,
    client: &Client,
    request: &mut Request,
) -> Result<(), Refusal> {
    let view = Rc::clone(&pass.view);
    let Some(gate) = &view.gate else { return Ok(()) };
    if gate.skips(request.head.path(client.bytes())) {
        return Ok(());
    }
    let key = gate.credential(&request.head.fields, client.bytes())?;
    let digest = KeyDigest::of(key.as_bytes());
    let judged = ask_all(gate, pass, request, &digest);
    match judged {
        Ok(()) => keep_key(&view, (key, &digest), request),
        Err(_) => pass.forget_keys(),
    }
    judged
}

fn ask_all(
    gate: &Gate,
    pass: &mut Pass,
    request: &Request,
    digest: &KeyDigest,
) -> Result<(), Refusal> {
    let mut tour = gate.begin()?;
    loop {
        let found = gate.table(tour.place).and_then(|table| table.find(digest));
        let answer = found.map_or(KeyAnswer::Unknown, |facts| KeyAnswer::Known(Arc::clone(facts)));
        let turn = gate.hear(&mut tour, &answer, |facts| circumstances(pass, request, facts))?;
        if let KeyAnswer::Known(facts) = answer {
            pass.add_key(facts);
        }
        if turn == Ruling::In {
            return Ok(());
        }
    }
}

/// In which a key of these facts is used by a request.
fn circumstances(pass: &Pass, request: &Request, facts: &KeyFacts) -> Circumstances {
    let now = i64::try_from(pass.w.shelf.unix_ms(request.started)).ok();
    let now = now.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    Circumstances {
        // A clock beyond the year 9999 ends all lives.
        now: now.unwrap_or(Timestamp::MAX),
        client: asks_for_address(facts).then(|| request.peer.parse().ok()).flatten(),
        used_quota: facts.used_quota,
    }
}

/// Keeps the client's key for the record, if any reporter wants one.
fn keep_key(view: &WorkerView, (key, digest): (&str, &KeyDigest), request: &mut Request) {
    if view.key_form != KeyForm::None {
        let presented = request.presented.get_or_insert_default();
        key_form::write_digested(view.key_form, key, digest.as_bytes(), &mut presented.key);
    }
}
