//! Before a request is for a backend: its head, whether it may pass, its body and what that says.

use super::borrowing;
use super::entry::{self, Asking};
use super::facts;
use super::ours::{answer_instead, Instead};
use super::tries::{NO_BACKEND, NO_JOURNAL};
use super::{Next, Underway};
use crate::base::id::RequestId;
use crate::base::limits::{DRAIN_BYTES_MAX, RECORD_PATH_BYTES_MAX, SAID_BYTES_MAX};
use crate::base::panic_point;
use crate::base::refusal::Refusal;
use crate::config::plan::{KeyForm, Limits};
use crate::http::field::Known;
use crate::http::framing::Framing;
use crate::http::head::{named, Version};
use crate::keys::digest::KeyDigest;
use crate::keys::together;
use crate::llm::dialect::Dialect;
use crate::proxy::admit::body;
use crate::proxy::admit::cors::Preflight;
use crate::proxy::admit::gate::Gate;
use crate::proxy::admit::hop as hop_check;
use crate::proxy::admit::path::{self, Purpose, Served};
use crate::proxy::admit::rate::{self, Asker};
use crate::proxy::client::Client;
use crate::proxy::pass::{LimitsInUse, Pass};
use crate::proxy::place;
use crate::proxy::receive::{self, HeadLimits, Received, Request};
use crate::proxy::shared::Shared;
use crate::proxy::takings::Estimate;
use crate::proxy::trace;
use crate::proxy::unpack::unpack;
use crate::proxy::view::{WorkerView, NO_COUNTERS};
use crate::state::counters::ids;
use crate::state::counters::table::TablePart;
use crate::state::hop;
use crate::state::meters::Phase;
use crate::usage::access::{AccessQueue, Said};
use crate::usage::key_form::write_key;
use crate::usage::outbox::Outbox;
use std::rc::Rc;
use std::time::Instant;

/// What comes of waiting for a head.
pub(super) enum Arrival {
    /// A head.
    Request,
    /// One that is not good.
    Refused(Box<Refusal>),
    /// None: the connection closes.
    Nothing,
}

/// Hears whose connection it is, where a balancer that we trust says so before anything else.
/// False: it does not, and nobody knows whom we would serve.
pub(super) async fn hear_source(w: &Shared, client: &mut Client, request: &mut Request) -> bool {
    let view = w.view();
    let server = &view.plan.server;
    if !server.proxy_protocol || !request.from.is_of(&server.trusted_proxies) {
        return true;
    }
    let heard =
        Box::pin(receive::proxy_header(client, &mut request.from, server.header_timeout)).await;
    // One that said nothing at all looked whether we are there.
    if !heard && !client.bytes().is_empty() {
        let code = "bad_proxy_header";
        *w.shelf.meters.borrow_mut().rejected.entry(code).or_default() += 1;
        if w.shelf.may_log(code) {
            let peer = request.from.client_text();
            tracing::warn!(%peer, "a connection without a header of the PROXY protocol is closed");
        }
    }
    heard
}

/// Waits for a head.
pub(super) async fn receive_head(
    w: &Shared,
    client: &mut Client,
    request: &mut Request,
) -> Arrival {
    // Not the view itself: a connection may idle for minutes, and would hold it for as long.
    let limits = HeadLimits::of(&w.view().plan.server);
    match receive::head(client, request, limits).await {
        Ok(Received::Whole) => Arrival::Request,
        Ok(Received::Idled) => {
            w.shelf.meters.borrow_mut().idle_closed[0] += 1;
            Arrival::Nothing
        }
        Ok(Received::Closed) => {
            if !client.bytes().is_empty() {
                w.shelf.count_abort(Phase::Request);
            }
            Arrival::Nothing
        }
        Err(refusal) => {
            request.unique_id = w.shelf.next_id();
            Arrival::Refused(Box::new(refusal))
        }
    }
}

/// Decides whether the request goes to a backend, and reads its body. An error when it does not;
/// then its client got something else.
pub(super) async fn admit(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
) -> Result<(), Next> {
    match judge(w, client, &mut underway.notes.request, underway.pass).await {
        Ok(()) => Ok(()),
        Err(instead) => Err(Box::pin(answer_instead(w, client, underway, instead)).await),
    }
}

/// The decision; the error says what the client gets instead.
async fn judge(
    w: &Shared,
    client: &mut Client,
    request: &mut Request,
    pass: &mut Pass,
) -> Result<(), Instead> {
    let kind = match see_to_head(client, request, pass) {
        Ok((kind, Some(asking))) => {
            // Boxed: few requests have to ask.
            match Box::pin(entry::ask(pass, client, request, asking)).await {
                Ok(()) => Ok(kind),
                Err(Instead::Refusal(refusal)) => Err(refusal),
                Err(instead) => return Err(instead),
            }
        }
        Ok((kind, None)) => Ok(kind),
        Err(refusal) => Err(refusal),
    };
    let mut kind = kind.and_then(|kind| {
        may_begin(w, client, (pass, kind))?;
        if kind == Purpose::Forward {
            hold_to_limits(pass, client, request)?;
        }
        Ok(kind)
    });
    if matches!(kind, Ok(Purpose::Forward)) && pass.has_to_ask() {
        // Boxed: what is asked often is at hand.
        match Box::pin(borrowing::ask(pass, client)).await {
            Ok(()) => {}
            Err(Instead::Refusal(refusal)) => kind = Err(refusal),
            Err(instead) => return Err(instead),
        }
    }
    if matches!(kind, Ok(Purpose::Admin)) {
        // Whether its body is read is for those to say who keep the door.
        return Err(Instead::Page(Purpose::Admin));
    }
    // A body that nobody will look at is read all the same when it is small: the connection lives.
    // Of a client that nobody knows, that goes for what has come already.
    let wanted = matches!(kind, Ok(Purpose::Forward));
    let is_known = kind.is_ok() || pass.view.gate.is_none() || pass.identity().is_some();
    let may_wait = is_small(request) && !client.post.is_guest();
    if wanted || (may_wait && (is_known || has_come(client, request))) {
        match receive::body(client, request, &pass.view.plan.server).await? {
            Received::Whole => {}
            Received::Closed | Received::Idled => return Err(Instead::Nothing),
        }
    }
    panic_point::pass("body");
    match kind? {
        Purpose::Forward => {}
        own => return Err(Instead::Page(own)),
    }
    if let Some(coding) = body::coding(&request.head, client.bytes())? {
        let server = &pass.view.plan.server;
        // Boxed: hardly any body comes packed.
        let unpacked = Box::pin(unpack((&w.unpacking, server), client, request, coding)).await;
        unpacked.map_err(|refusal| unless_gone(client, refusal))?;
    }
    let read = match facts::at_once(pass, client, request) {
        Some(read) => read,
        // Boxed: few bodies are so large.
        None => Box::pin(facts::in_slices(pass, client, request)).await,
    };
    let max_tokens = read.map_err(|refusal| unless_gone(client, refusal))?;
    hold_to_tokens(pass, (request, client.bytes()), max_tokens)?;
    match pass.has_to_ask() {
        true => Box::pin(borrowing::ask(pass, client)).await,
        false => Ok(()),
    }
}

/// Counts the request for its model, and takes what it may cost.
fn hold_to_tokens(
    pass: &mut Pass,
    (request, inbox): (&Request, &[u8]),
    max_tokens: Option<u64>,
) -> Result<(), Refusal> {
    let view = Rc::clone(&pass.view);
    let unix_ms = pass.w.shelf.unix_ms(request.started);
    let Some(LimitsInUse { rules, counters, keys, takings }) = pass.limits()? else {
        return Ok(());
    };
    let now = Instant::now();
    let names = [request.model.as_str(), request.served_model()];
    let estimate = rate::estimate(request.dialect, request.body(inbox), max_tokens);
    let Estimate { prompt, tokens } = estimate;
    rate::by_body(takings, (rules, counters), (names, tokens), now)?;
    takings.expect(estimate);
    borrowing::at_hand(&view, takings)?;
    let Some((key, terms)) = view.quotas.terms_of(keys, unix_ms) else { return Ok(()) };
    let id = ids::of_key(&key.digest);
    let (place, is_own) = counters.find(id, TablePart::Known, counters.at(now));
    if !is_own {
        return Err(NO_COUNTERS);
    }
    takings.begin(counters);
    takings.expect(estimate);
    let tokens = if view.quotas.reserves { tokens } else { 0 };
    match takings.reserve_quota(place, terms, (prompt.min(tokens), tokens), view.quotas.cuts) {
        true => Ok(()),
        false => Err(view.gate.as_ref().map_or(NO_COUNTERS, Gate::refuse_quota)),
    }
}

/// Counts the request for all that is known of it by its head.
fn hold_to_limits(pass: &mut Pass, client: &Client, request: &Request) -> Result<(), Refusal> {
    let view = Rc::clone(&pass.view);
    let Some(LimitsInUse { rules, counters, keys, takings }) = pass.limits()? else {
        return Ok(());
    };
    let asker = || {
        if let Some(first) = keys.first() {
            let user = together::user_id(keys).filter(|_| rules.per_user.is_some());
            return Some(Asker {
                key: (ids::of_key(&first.digest), TablePart::Known),
                user: user.map(ids::of_user),
                own: together::limits(keys),
            });
        }
        rules.per_key?;
        // Where keys are checked and none is asked for, the client could invent one for each
        // request.
        let shown = || view.usual_fields.find(&request.head.fields, client.bytes()).ok().flatten();
        let shown = if view.gate.is_none() { shown() } else { None };
        let id = match shown {
            Some(key) => ids::of_key(&KeyDigest::of(key)),
            None => ids::of_address(request.from.client()),
        };
        Some(Asker { key: (id, TablePart::Strangers), user: None, own: Limits::default() })
    };
    rate::by_head(takings, (rules, counters), asker, Instant::now())?;
    borrowing::at_hand(&view, takings)
}

/// What is decided by the head alone: what the request is for, and whether its key lets it in, or
/// somebody has to be asked that.
fn see_to_head(
    client: &mut Client,
    request: &mut Request,
    pass: &mut Pass,
) -> Result<(Purpose, Option<Box<Asking>>), Refusal> {
    let view = Rc::clone(&pass.view);
    let served = Served::by(&view.plan);
    // First of all: what is recorded, classified and forwarded is the normal path.
    let made = path::make_normal(&mut request.head, client.bytes_mut(), served);
    identify(pass, client, request);
    // Before anything refuses it.
    hide_from_records(request, served, made.is_ok());
    request.from.see(&request.head.fields, client.bytes(), &view.plan.server.trusted_proxies);
    made?;
    if let Some(cors) = &view.cors {
        let head = &request.head;
        if let Some(origin) = cors.allowed(&head.fields, client.bytes()) {
            request.from.set_origin(origin);
        }
        // Before all else: a browser sends no key with it, and methods are asked about, not used.
        if Preflight::of(head.method, &head.fields, client.bytes()).is_some() {
            path::known(request.head.path(client.bytes()), served)?;
            return Ok((Purpose::Preflight, None));
        }
    }
    let path = request.head.path(client.bytes());
    hop_check::check(&request.head, client.bytes(), hop::name())?;
    let kind = path::classify(path, &request.head, served)?;
    let asking = match kind {
        Purpose::Forward | Purpose::Models => entry::let_in(pass, client, request)?,
        Purpose::Admin
        | Purpose::Health
        | Purpose::Ready
        | Purpose::Metrics
        | Purpose::Preflight => None,
    };
    Ok((kind, asking))
}

/// What a request to the admin API shows is a token and no key, and what its path names may be a
/// key. Of a path that is not normal nobody knows whether it is one of that API's.
fn hide_from_records(request: &mut Request, served: Served<'_>, is_normal: bool) {
    let Some(told) = served.told_of(&request.path, is_normal) else { return };
    let told = told.len();
    request.path.truncate(told);
    request.presented.iter_mut().for_each(|presented| presented.key.clear());
}

/// Whether there is any use in reading the body of a request, and a place for it.
fn may_begin(w: &Shared, client: &Client, (pass, kind): (&Pass, Purpose)) -> Result<(), Refusal> {
    match kind {
        Purpose::Forward => {}
        Purpose::Models => return place::find(w, &client.post),
        // They are for guests too, and cost nobody a place: whoever looks after us must get an
        // answer when everything is taken.
        Purpose::Health
        | Purpose::Ready
        | Purpose::Metrics
        | Purpose::Admin
        | Purpose::Preflight => return Ok(()),
    }
    if w.usage.as_ref().is_some_and(Outbox::refuses) {
        return Err(NO_JOURNAL);
    }
    if pass.view.members.is_empty() {
        return Err(NO_BACKEND.with_retry_after(1));
    }
    place::find(w, &client.post)
}

/// Whoever has left gets no refusal.
fn unless_gone(client: &Client, refusal: Refusal) -> Instead {
    match client.post.is_gone() {
        true => Instead::Nothing,
        false => Instead::Refusal(refusal),
    }
}

fn is_small(request: &Request) -> bool {
    match request.head.framing {
        Framing::None => true,
        Framing::Length(n) => n <= DRAIN_BYTES_MAX as u64 && !request.head.expect_continue,
        Framing::Chunked => false,
    }
}

/// The whole body is there already.
fn has_come(client: &Client, request: &Request) -> bool {
    match request.head.framing {
        Framing::None => true,
        Framing::Length(n) => request.bytes_behind_head(client.bytes()) as u64 >= n,
        Framing::Chunked => false,
    }
}

/// Gives the request its ids: ours always, and the client's own where it sent a harmless one.
fn identify(Pass { w, view, .. }: &Pass, client: &Client, request: &mut Request) {
    request.unique_id = w.shelf.next_id();
    let sent = request.head.fields.iter().find(|f| f.known == Known::XRequestId);
    let theirs = sent.and_then(|f| RequestId::from_client(f.value.of(client.bytes())));
    if let Some(theirs) = theirs {
        request.presented.get_or_insert_default().id = Some(theirs);
    }
    // One that is checked is kept when it is good.
    if view.gate.is_none() {
        keep_key(view, client, request);
    }
    keep_said(w, client, request);
    trace::begin(w, view, client.bytes(), request);
    // The head is gone when the request is settled; its capacity here is not.
    let path = request.head.path(client.bytes());
    let label = path::label(path);
    request.path_label = label.unwrap_or(path::OTHER);
    request.dialect = Dialect::of(path);
    request.path.push_str(match label {
        Some(label) => label,
        None => {
            let path = path.get(..RECORD_PATH_BYTES_MAX).unwrap_or(path);
            // A target is ASCII: the parser holds it to that.
            std::str::from_utf8(path).unwrap_or("?")
        }
    });
    request.method = Some(request.head.method);
}

/// Keeps the key that the client says it has, which nobody checks, for the record, if any reporter
/// wants one.
fn keep_key(view: &WorkerView, client: &Client, request: &mut Request) {
    if view.key_form == KeyForm::None {
        return;
    }
    let shown = view.usual_fields.find(&request.head.fields, client.bytes()).ok().flatten();
    if let Some(key) = shown.and_then(|key| std::str::from_utf8(key).ok()) {
        let presented = request.presented.get_or_insert_default();
        write_key(view.key_form, key, &mut presented.key);
    }
}

/// Keeps what the combined log wants of the head, if one is written.
fn keep_said(w: &Shared, client: &Client, request: &mut Request) {
    if !w.access.as_ref().is_some_and(AccessQueue::wants_said) {
        return;
    }
    let field = |name: &str| {
        let value = named(&request.head.fields, client.bytes(), name)?;
        Some(value.get(..SAID_BYTES_MAX).unwrap_or(value).into())
    };
    let version = match request.head.version {
        Version::Http10 => "HTTP/1.0",
        Version::Http11 => "HTTP/1.1",
    };
    let said = Said { version, referer: field("referer"), user_agent: field("user-agent") };
    request.presented.get_or_insert_default().said = Some(Box::new(said));
}
