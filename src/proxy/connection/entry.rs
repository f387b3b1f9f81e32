//! Whether a request is let in, and whose it is: its key is looked up before a byte of its body is
//! read.

use super::ours::Instead;
use super::scripted;
use crate::base::fault::Fault;
use crate::base::refusal::Refusal;
use crate::base::secret::Secret;
use crate::config::plan::KeyForm;
use crate::keys::check::{asks_for_address, Circumstances};
use crate::keys::digest::KeyDigest;
use crate::keys::facts::KeyFacts;
use crate::keys::together;
use crate::proxy::admit::gate::{Gate, Ruling, Tour};
use crate::proxy::client::Client;
use crate::proxy::pass::Pass;
use crate::proxy::receive::Request;
use crate::rt::patrol::Alarm;
use crate::state::counters::ids;
use crate::state::counters::table::TablePart;
use crate::state::lookup::{KeyAnswer, KeyQuestion};
use crate::state::meters::CacheResult;
use crate::usage::key_form;
use jiff::Timestamp;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Beyond what a provider says that a look-up may take: its own deadline should come first, since
/// it knows why.
const SLACK: Duration = Duration::from_millis(250);

/// A request on its way past the providers, of which the next has to be asked.
pub(super) struct Asking {
    tour: Tour,
    question: KeyQuestion,
}

/// Lets a request in whose path, which is normal, is one for a backend or one of ours that needs a
/// key. `Some`: it is not known yet whether it is let in, and a provider has to be asked, by
/// [`ask`].
///
/// # Errors
/// It has to stay outside.
pub(super) fn let_in(
    pass: &mut Pass,
    client: &Client,
    request: &mut Request,
) -> Result<Option<Box<Asking>>, Refusal> {
    let view = Rc::clone(&pass.view);
    let Some(gate) = &view.gate else { return Ok(None) };
    if gate.skips(request.head.path(client.bytes())) {
        return Ok(None);
    }
    let key = gate.credential(&request.head.fields, client.bytes())?;
    let digest = KeyDigest::of(key.as_bytes());
    let mut tour = gate.begin()?;
    while let Some(answer) = known(gate, pass, tour.place, (key, &digest)) {
        let heard = hear(gate, pass, (client, request), (&mut tour, answer, key));
        if heard? == Ruling::In {
            keep_who(pass, (key, &digest), request);
            return Ok(None);
        }
    }
    let question = KeyQuestion { digest, key: Secret::new(key) };
    Ok(Some(Box::new(Asking { tour, question })))
}

/// Asks the providers that have to be asked, from the first of them on.
///
/// # Errors
/// The request has to stay outside, or its client has left.
pub(super) async fn ask(
    pass: &mut Pass,
    client: &Client,
    request: &mut Request,
    asking: Box<Asking>,
) -> Result<(), Instead> {
    let Asking { mut tour, question } = *asking;
    let view = Rc::clone(&pass.view);
    let Some(gate) = &view.gate else { return Ok(()) };
    // The first is known to be one that has to be asked.
    let mut here = None;
    loop {
        let answer = match here {
            Some(answer) => answer,
            None => ask_one(gate, client, tour.place, &question).await?,
        };
        let key = question.key.reveal();
        if hear(gate, pass, (client, request), (&mut tour, answer, key))? == Ruling::In {
            keep_who(pass, (question.key.reveal(), &question.digest), request);
            return Ok(());
        }
        here = known(gate, pass, tour.place, (question.key.reveal(), &question.digest));
    }
}

/// The answer of a provider that need not be asked, because its keys are here or it was asked a
/// moment ago.
fn known(
    gate: &Gate,
    pass: &Pass,
    place: usize,
    (key, digest): (&str, &KeyDigest),
) -> Option<KeyAnswer> {
    if gate.is_script(place) {
        return Some(KeyAnswer::Known(scripted::facts_of(key, digest)));
    }
    if let Some(table) = gate.table(place) {
        let found = table.find(digest).map(Arc::clone);
        return Some(found.map_or(KeyAnswer::Unknown, KeyAnswer::Known));
    }
    let answer = gate.remembered(place, digest, Instant::now());
    let kind = match answer {
        Some(KeyAnswer::Known(_)) => CacheResult::Hit,
        Some(_) => CacheResult::NegativeHit,
        None => CacheResult::Miss,
    };
    pass.w.shelf.meters.borrow_mut().key_cache[kind as usize] += 1;
    answer
}

/// The answer of one provider that has to be asked.
async fn ask_one(
    gate: &Gate,
    client: &Client,
    place: usize,
    question: &KeyQuestion,
) -> Result<KeyAnswer, Instead> {
    let Some(service) = gate.service(place) else { return Ok(KeyAnswer::Failed) };
    // Before it is asked: an answer that was under way when a key was changed is old.
    let changes = service.changes();
    let Some(reply) = service.ask.ask(question.clone()) else { return Ok(KeyAnswer::Failed) };
    client.post.arm(service.patience.saturating_add(SLACK));
    match client.post.attended(reply).await {
        Ok(Ok(answer)) => {
            gate.keep(place, question.digest, (&answer, changes), Instant::now());
            Ok(answer)
        }
        Ok(Err(_)) | Err(Alarm::Expired) => Ok(KeyAnswer::Failed),
        Err(Alarm::Gone) => Err(Instead::Nothing),
        Err(Alarm::Ended | Alarm::CalledOff) => Err(Fault::ShuttingDown.refusal().into()),
    }
}

/// Takes an answer in.
fn hear(
    gate: &Gate,
    pass: &mut Pass,
    (client, request): (&Client, &Request),
    (tour, answer, key): (&mut Tour, KeyAnswer, &str),
) -> Result<Ruling, Refusal> {
    let place = tour.place;
    let ruling = gate.hear(tour, &answer, |facts| circumstances(pass, request, facts));
    let KeyAnswer::Known(facts) = answer else {
        return ruling.inspect_err(|_| pass.forget_keys());
    };
    facts.last_use.note(unix_ms(pass, request));
    let judge = |ruling| {
        let judged = scripted::judge(pass, (client, request), (key, place), Arc::clone(&facts));
        judged.map(|facts| (ruling, facts))
    };
    match ruling.and_then(judge) {
        Ok((ruling, judged)) => {
            pass.add_key(judged);
            Ok(ruling)
        }
        Err(refusal) => {
            pass.forget_keys();
            pass.note_refused(facts);
            Err(refusal)
        }
    }
}

/// In which a key of these facts is used by a request.
fn circumstances(pass: &Pass, request: &Request, facts: &KeyFacts) -> Circumstances {
    let now = Timestamp::from_millisecond(unix_ms(pass, request));
    Circumstances {
        // A clock beyond the year 9999 ends all lives.
        now: now.unwrap_or(Timestamp::MAX),
        client: asks_for_address(facts).then(|| request.from.client()),
        used_quota: used_quota(pass, request, facts),
    }
}

/// When the request began, by the wall clock.
fn unix_ms(pass: &Pass, request: &Request) -> i64 {
    i64::try_from(pass.w.shelf.unix_ms(request.started)).unwrap_or(i64::MAX)
}

/// Tokens that the key has used in the running period, as they are counted here.
fn used_quota(pass: &Pass, request: &Request, facts: &KeyFacts) -> u64 {
    let now = pass.w.shelf.unix_ms(request.started);
    let Some(terms) = pass.view.quotas.terms(facts, now) else { return facts.used_quota };
    // One count has one kind of period: of quotas of another kind, their providers know.
    let counted = together::quota(pass.keys()).unwrap_or(facts);
    if counted.quota_reset_period != facts.quota_reset_period {
        return terms.first;
    }
    let used = pass.view.shared.counters.as_ref().and_then(|counters| {
        let place = counters.seek(ids::of_key(&facts.digest), TablePart::Known)?;
        Some(counters.quota(place)?.used(terms))
    });
    used.unwrap_or(terms.first)
}

/// Keeps what the record and the engine are to be told of whose the request is.
fn keep_who(pass: &Pass, (key, digest): (&str, &KeyDigest), request: &mut Request) {
    let form = pass.view.key_form;
    if form != KeyForm::None {
        let presented = request.presented.get_or_insert_default();
        key_form::write_digested(form, key, digest.as_bytes(), &mut presented.key);
    }
    let fields = pass.view.gate.as_ref().and_then(|gate| gate.identity.as_ref());
    if let Some(fields) = fields {
        fields.write(pass.keys(), &mut request.presented.get_or_insert_default().identity);
    }
}
