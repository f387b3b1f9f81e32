//! The story of one client connection: receive, admit, route, exchange, relay, settle; then the
//! next request of the same connection. Whatever happens to a request, it is settled exactly once
//! (but for a panic of ours, which is counted as that).

use super::admit::path::{self, Kind};
use super::admit::{body, credential};
use super::answer::{self, Frame};
use super::asking::Asking;
use super::client::Client;
use super::ledger::{Ledger, Written};
use super::receive::{self, KeyText, Received, Request};
use super::relay::copy::{Relay, Step};
use super::relay::drain::drain;
use super::relay::framing::{outbound, Inbound};
use super::relay::strip;
use super::relay::tap::{Expected, Tap};
use super::relay::Outcome;
use super::route::{self, Tried};
use super::settle::{self, settle, Ending, Story};
use super::upstream::exchange::{exchange, Exchange};
use super::upstream::pool::Lease;
use super::worker::{Active, Live, Worker};
use crate::base::fault::{Fault, Retry, Side};
use crate::base::id::RequestId;
use crate::base::limits::{
    ANSWER_DRAIN_MAX, CONNECT_TRIES_MAX, DRAIN_BYTES_MAX, RECORD_PATH_BYTES_MAX,
};
use crate::base::refusal::Refusal;
use crate::config::plan::{KeyForm, OnClientAbort};
use crate::http::field::Known;
use crate::http::framing::Framing;
use crate::http::request::Method;
use crate::http::write::{self, ForwardResponse, OutFraming};
use crate::llm::dialect::Dialect;
use crate::rt;
use crate::rt::buffer::Buffer;
use crate::rt::socket::Socket;
use crate::state::meters::{BackendIndex, Phase};
use crate::state::scrape::PAGE_CONTENT_TYPE;
use crate::usage::key_form::write_key;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;

/// What becomes of the connection after a request.
enum Next {
    /// It carries another.
    Request,
    /// It closes at once: nobody reads it any more, or its answer must be seen to be incomplete.
    Close,
    /// It closes after the client had time to read the last answer.
    CloseGently,
}

/// What a connection keeps from request to request. Boxed: the future of a stream stays small.
struct Talk {
    request: Request,
    story: Story,
    exchange: Option<Exchange>,
    inbound: Inbound,
    tap: Tap,
}

/// Serves one client until it or we close. `None` when it cannot be watched. What runs before the
/// future does stands outside the panic guard: it must not panic.
pub fn serve(live: Live, socket: Socket, peer: IpAddr) -> Option<impl Future<Output = ()>> {
    let w = live.worker();
    let post = w.patrol.watch(socket).ok()?;
    let write_timeout = w.plan.server.write_timeout;
    let client = Box::new(Client { post, write_timeout, inbox: None });
    let talk = Box::new(Talk {
        request: Request::new(w.next_id(), peer.to_string().into()),
        story: Story::default(),
        exchange: None,
        inbound: Inbound::Length(0),
        tap: Tap::default(),
    });
    Some(converse(live, client, talk))
}

async fn converse(live: Live, mut client: Box<Client>, mut talk: Box<Talk>) {
    let w = live.worker();
    loop {
        talk.tap.reset();
        talk.story = Story::default();
        // All that comes before an answer is one step, which leaves nothing behind: a stream that
        // runs for minutes stands two calls deep and carries what these two need.
        let next = match ask(w, &mut client, &mut talk).await {
            Ok(_active) => deliver(w, &mut client, &mut talk).await,
            Err(next) => next,
        };
        match next {
            Next::Request if w.patrol.is_draining() => return,
            Next::Request => {}
            Next::Close => return,
            Next::CloseGently => return client.close_gently().await,
        }
    }
}

/// From the first byte of a request to the head of an engine's answer. `Err`: there is none, and
/// the client has been told.
async fn ask(w: &Rc<Worker>, client: &mut Client, talk: &mut Talk) -> Result<Active, Next> {
    if let Some(next) = receive_head(w, client, &mut talk.request).await {
        return Err(next);
    }
    let active = w.enter_request();
    match admit(w, client, talk).await {
        Some(next) => Err(next),
        None => forward(w, client, talk).await.map(|()| active),
    }
}

/// `None`: it is there.
async fn receive_head(w: &Worker, client: &mut Client, request: &mut Request) -> Option<Next> {
    match receive::head(client, request, &w.plan.server).await {
        Ok(Received::Whole) => None,
        Ok(Received::Idled) => {
            w.meters.borrow_mut().idle_closed[0] += 1;
            Some(Next::Close)
        }
        Ok(Received::Closed) => {
            if !client.bytes().is_empty() {
                w.count_abort(Phase::Request);
            }
            Some(Next::Close)
        }
        Err(refusal) => {
            request.unique_id = w.next_id();
            Some(Box::pin(refuse(w, client, request, refusal)).await)
        }
    }
}

/// Decides whether the request goes to a backend, and reads its body; `None`: it does. What does
/// not is answered here.
async fn admit(w: &Worker, client: &mut Client, talk: &mut Talk) -> Option<Next> {
    let request = &mut talk.request;
    identify(w, client, request);
    let path = request.head.path(client.bytes());
    let kind = path::classify(path, request.head.method, &w.plan);
    // A body that nobody will look at is read all the same when it is small: the connection lives.
    let wanted = matches!(kind, Ok(Kind::Forward));
    if wanted || is_small(request) {
        match receive::body(client, request, &w.plan.server).await {
            Ok(Received::Whole) => {}
            Ok(Received::Closed | Received::Idled) => {
                w.count_abort(Phase::Request);
                settle(w, request, &talk.tap, &mut Story::client_left());
                return Some(Next::Close);
            }
            Err(refusal) => return Some(Box::pin(refuse(w, client, request, refusal)).await),
        }
    }
    match kind {
        Ok(Kind::Forward) => None,
        Ok(own) => Some(Box::pin(own_answer(w, client, request, own)).await),
        Err(refusal) => Some(Box::pin(refuse(w, client, request, refusal)).await),
    }
}

fn is_small(request: &Request) -> bool {
    match request.head.framing {
        Framing::None => true,
        Framing::Length(n) => n <= DRAIN_BYTES_MAX as u64 && !request.head.expect_continue,
        Framing::Chunked => false,
    }
}

/// Gives the request its ids: ours always, and the client's own where it sent a harmless one.
fn identify(w: &Worker, client: &Client, request: &mut Request) {
    request.unique_id = w.next_id();
    let sent = request.head.fields.iter().find(|f| f.known == Known::XRequestId);
    let theirs = sent.and_then(|f| RequestId::from_client(f.value.of(client.bytes())));
    request.client_id = theirs.map(Box::new);
    keep_key(w, client, request);
    // The head is gone when the request is settled; its capacity here is not.
    let path = request.head.path(client.bytes());
    let label = path::label(path);
    request.path_label = label.unwrap_or(path::OTHER);
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

/// Keeps the client's key for the record, if any reporter wants one.
fn keep_key(w: &Worker, client: &Client, request: &mut Request) {
    if w.key_form == KeyForm::None {
        return;
    }
    if let Some(key) = credential::presented(&request.head.fields, client.bytes()) {
        let KeyText(text) = &mut **request.key.get_or_insert_default();
        write_key(w.key_form, key, text);
    }
}

/// Answers with a refusal and settles. The connection survives if its framing is not in doubt and
/// no unread body is in the way.
async fn refuse(w: &Worker, client: &mut Client, request: &mut Request, refusal: Refusal) -> Next {
    let frame = frame(w, request, refusal.close || !request.body_read || w.is_crowded());
    let sent = answer::refuse(client, &frame, &refusal).await;
    let next = after(sent, frame.close);
    request.release_body(client);
    settle(w, request, &Tap::default(), &mut Story::refused(&refusal));
    next
}

fn frame<'a>(w: &Worker, request: &'a Request, close: bool) -> Frame<'a> {
    Frame {
        request_id: request.id().as_str(),
        version: request.head.version,
        close: close || !request.head.keep_alive || w.patrol.is_draining(),
        head_only: request.head.method == Method::Head,
    }
}

fn after(sent: Result<(), Fault>, close: bool) -> Next {
    match (sent, close) {
        (Err(_), _) => Next::Close,
        (Ok(()), true) => Next::CloseGently,
        (Ok(()), false) => Next::Request,
    }
}

/// `/health`, `/ready` and the metrics page.
async fn own_answer(w: &Worker, client: &mut Client, request: &mut Request, kind: Kind) -> Next {
    const TEXT: &str = "text/plain; charset=utf-8";
    let draining = w.patrol.is_draining();
    let page;
    let (status, content_type, body): (u16, &str, &[u8]) = match kind {
        Kind::Ready if draining => (503, TEXT, b"draining\n"),
        Kind::Ready if !w.fleet.any_healthy() => (503, TEXT, b"no healthy backend\n"),
        Kind::Ready if w.usage.as_ref().is_some_and(Ledger::refuses) => {
            (503, TEXT, b"usage records cannot be kept\n")
        }
        Kind::Ready if w.usage.as_ref().is_some_and(Ledger::is_failing) => {
            (200, TEXT, b"OK\nwarning: usage records wait in memory\n")
        }
        Kind::Metrics => match w.metrics_page(client).await {
            Some(made) => {
                page = made;
                (200, PAGE_CONTENT_TYPE, page.as_slice())
            }
            None => (503, TEXT, b"the metrics page is not available\n"),
        },
        _ => (200, TEXT, b"OK\n"),
    };
    let frame = frame(w, request, !request.body_read);
    let sent = answer::send(client, &frame, status, content_type, body).await;
    let next = after(sent, frame.close);
    request.release_body(client);
    settle(w, request, &Tap::default(), &mut Story::own(status));
    next
}

/// The way of a request that is for a backend.
async fn forward(w: &Rc<Worker>, client: &mut Client, talk: &mut Talk) -> Result<(), Next> {
    let request = &mut talk.request;
    if let Err(refusal) = read_facts(client, request) {
        return Err(Box::pin(refuse(w, client, request, refusal)).await);
    }
    if w.usage.as_ref().is_some_and(Ledger::refuses) {
        return Err(Box::pin(refuse(w, client, request, NO_JOURNAL)).await);
    }
    talk.story.keep_body(w, request, client);
    talk.story.backend = route::pick(&mut w.balancer.borrow_mut(), &w.fleet, &Tried::default());
    // An engine has nothing that the journal has not.
    let opened = settle::open(w, request, &talk.story);
    let is_ruled_out = |ledger: &Ledger| talk.story.backend.is_some() && ledger.rules_out(opened);
    if w.usage.as_ref().is_some_and(is_ruled_out) {
        return Err(Box::pin(refuse(w, client, request, NO_JOURNAL)).await);
    }
    Written::of(&w.usage, opened).await;
    match try_backends(w, client, talk).await {
        Ok(()) => Ok(()),
        Err(None) => Err(Box::pin(refuse(w, client, &mut talk.request, NO_BACKEND)).await),
        Err(Some(fault)) => Err(Box::pin(give_up(w, client, talk, fault)).await),
    }
}

/// Takes from the body what the way of the request depends on.
fn read_facts(client: &Client, request: &mut Request) -> Result<(), Refusal> {
    // Empty since the reset; its capacity is used again.
    let mut model = std::mem::take(&mut request.model);
    let facts = body::facts(&request.head, client.bytes(), request.body(client.bytes()))?;
    model.push_str(facts.model.as_deref().unwrap_or_default());
    let (stream, splice) = (facts.stream.unwrap_or(false), facts.usage_splice);
    request.stream = stream;
    request.set_usage_splice(splice);
    request.model = model;
    Ok(())
}

/// Answers for a backend that did not, and settles.
async fn give_up(w: &Worker, client: &mut Client, talk: &mut Talk, fault: Fault) -> Next {
    let Talk { request, story, tap, .. } = talk;
    story.ending = Ending::Fault(fault);
    let next = if fault == Fault::ClientLeft {
        w.count_abort(Phase::Waiting);
        Next::Close
    } else {
        let refusal = fault.refusal();
        let frame = frame(w, request, refusal.close);
        let sent = answer::refuse(client, &frame, &refusal).await;
        story.status = refusal.status;
        after(sent, frame.close)
    };
    request.release_body(client);
    settle(w, request, tap, story);
    next
}

/// Tries backends until one begins to answer. Another one is asked only while nobody saw the
/// request; a kept connection that was closed under us is replaced once, and a request that was
/// refused with a wish of ours goes once more without. The error is how the last one failed; `None`
/// when there was nobody to ask.
async fn try_backends(
    w: &Worker,
    client: &mut Client,
    talk: &mut Talk,
) -> Result<(), Option<Fault>> {
    let Talk { request, story, .. } = talk;
    let mut tried = Tried::default();
    while tried.len() < CONNECT_TRIES_MAX {
        // The first one was picked already.
        let picked = match story.backend.filter(|_| tried.is_empty()) {
            None => route::pick(&mut w.balancer.borrow_mut(), &w.fleet, &tried),
            first => first,
        };
        let Some(backend) = picked else { break };
        if !tried.is_empty() {
            story.retries += 1;
            w.meters.borrow_mut().retries += 1;
        }
        story.backend = Some(backend);
        tried.add(backend);
        let (mut fresh, mut asking) = (false, Asking::of(w, request, backend));
        // One await in a loop: the futures of two in a row would lie side by side in every stream.
        let result = loop {
            match exchange(w, client, request, backend, (fresh, asking)).await {
                Err(fault) if fault.retry() == Retry::Fresh && !fresh => {
                    fresh = true;
                    w.count_fault(Some(backend), Fault::ReuseRace);
                }
                Ok(got) => match asking.learn(w, backend, request.response.status) {
                    Some(next) => asking = next,
                    None => break Ok(got),
                },
                result => break result,
            }
            story.retries += 1;
            w.meters.borrow_mut().retries += 1;
        };
        match result {
            Ok(exchange) => {
                story.fallback = tried.len() > 1;
                story.asked_usage = asking.is_spliced();
                story.ending = Ending::Complete;
                talk.exchange = Some(exchange);
                return Ok(());
            }
            Err(fault) => {
                w.count_fault(Some(backend), fault);
                story.ending = Ending::Fault(fault);
                if fault.retry() != Retry::Any {
                    break;
                }
            }
        }
    }
    match story.ending {
        Ending::Fault(fault) => Err(Some(fault)),
        _ => Err(None),
    }
}

const NO_JOURNAL: Refusal = Refusal::new(
    503,
    "usage_unavailable",
    "Usage records cannot be kept, and nobody is served without them.",
);

const NO_BACKEND: Refusal =
    Refusal::new(503, "no_backend", "No backend is configured for this request.");

/// Sends the answer on to the client and settles.
async fn deliver(w: &Rc<Worker>, client: &mut Client, talk: &mut Talk) -> Next {
    let Talk { request, story, exchange, inbound, tap } = talk;
    let plan = w.backend(story.backend.unwrap_or_default());
    let (Some(plan), Some(got)) = (plan, exchange.as_mut()) else { return Next::Close };
    let mut outbound = outbound(&request.response, request.head.version);
    let strips = story.asked_usage && strip::is_readable(&request.response);
    if strips {
        outbound = strip::of_any_length(outbound, request.head.version);
    }
    let close = !request.head.keep_alive
        || outbound == OutFraming::UntilClose
        || w.is_crowded()
        || w.patrol.is_draining();
    *inbound = Inbound::new(request.response.framing);
    expect(tap, request, got);
    // 0: it left before an answer began, which only an engine that is drained did not notice.
    story.status = if client.post.is_gone() { 0 } else { request.response.status };
    story.event_stream = request.response.event_stream || request.response.ndjson;
    request.release_body(client);
    let mut relay = Relay::new((w, client, plan), inbound, outbound, tap, &got.asked);
    if strips {
        relay.strip();
    }
    // In a scope of their own: behind it the stream holds a buffer only while bytes move.
    let begun = {
        let mut bytes = got.bytes.take();
        let read = bytes.as_ref().map_or(&[][..], |bytes| bytes);
        let mut head = Some(client_head(request, read, outbound, close));
        relay.begin(&mut head, &mut bytes, got.head_len).await
    };
    if request.response.event_stream {
        // It may run for minutes, and nothing of the heads is needed any more.
        request.release_heads();
    }
    if let Step::Broken(fault @ Fault::BadResponse(_)) = begun {
        *exchange = None;
        w.count_fault(story.backend, fault);
        return Box::pin(give_up(w, client, talk, fault)).await;
    }
    let last = match begun {
        Step::Last(last) => Ok(last),
        Step::Broken(fault) => Err(fault),
        Step::Goes | Step::NoteDue => loop {
            match relay.advance(got.lease.link()).await {
                Step::Last(last) => break Ok(last),
                Step::Broken(fault) => break Err(fault),
                Step::NoteDue => settle::note(w, request, relay.tap, story, relay.sent()),
                Step::Goes => {}
            }
        },
    };
    let outcome = match last {
        Ok(last) => {
            let sent = relay.sent() + last.data_len();
            Written::of(&w.usage, settle::close(w, request, relay.tap, story, sent)).await;
            relay.end(last).await
        }
        Err(fault) => relay.break_off(fault).await,
    };
    conclude(w, talk, outcome, close)
}

/// What follows an answer, whether it was whole or not: its connection is kept or closed, and the
/// request is settled.
fn conclude(w: &Rc<Worker>, talk: &mut Talk, outcome: Outcome, close: bool) -> Next {
    let Talk { request, story, exchange, inbound, tap } = talk;
    if let Some(Exchange { lease, .. }) = exchange.take() {
        match outcome.upstream_clean && request.response.keep_alive {
            true => w.pool.give_back(lease, w.patrol.now()),
            false => part(w, lease, outcome, story.backend, inbound),
        }
    }
    if let Some(fault) = outcome.fault {
        w.count_fault(story.backend, fault);
        if fault == Fault::ClientLeft {
            w.count_abort(if story.status == 0 { Phase::Waiting } else { Phase::Relay });
        }
        story.ending = Ending::Fault(fault);
    }
    if outcome.upstream_extra {
        w.count_fault(story.backend, Fault::BadResponse("bytes_behind_the_end"));
    }
    story.outcome = Some(outcome);
    settle(w, request, tap, story);
    match (outcome.client_clean, close) {
        (false, _) => Next::Close,
        (true, true) => Next::CloseGently,
        (true, false) => Next::Request,
    }
}

/// Tells the tap what the head says of the body.
fn expect(tap: &mut Tap, request: &Request, got: &Exchange) {
    let response = &request.response;
    let head = got.bytes.as_ref().map_or(&[][..], |bytes| bytes);
    let encoding = response.fields.iter().find(|f| f.known == Known::ContentEncoding);
    let dialect = Dialect::of(request.path.as_bytes());
    tap.expect(&Expected {
        dialect,
        event_stream: response.event_stream,
        ndjson: response.ndjson,
        encoding: encoding.filter(|_| response.encoded).map(|field| field.value.of(head)),
    });
    // The engines that count in fields do so where nothing streams.
    if !matches!(dialect, Dialect::OpenAi | Dialect::Responses | Dialect::Messages) {
        tap.see_head(response.fields.iter().map(|f| (f.name.of(head), f.value.of(head))));
    }
    tap.usage_at_ends = request.path_label == EMBEDDINGS;
}

/// Vectors, with usage behind them, or before them (llama.cpp).
const EMBEDDINGS: &str = "/v1/embeddings";

fn client_head(request: &Request, bytes: &[u8], framing: OutFraming, close: bool) -> Buffer {
    let mut head = Buffer::take();
    let how = ForwardResponse {
        client: request.head.version,
        framing,
        close,
        request_id: request.id().as_str(),
    };
    write::response(&mut head, &request.response, bytes, &how);
    head
}

/// Lets go of a connection that cannot be kept. Dropping it closes it, which cancels the
/// generation; an engine that cannot bear that is drained first.
fn part(
    w: &Rc<Worker>,
    mut lease: Lease,
    outcome: Outcome,
    backend: BackendIndex,
    inbound: &mut Inbound,
) {
    let Some(plan) = backend.and_then(|backend| w.backend(backend)) else { return };
    let client_left = outcome.fault.is_some_and(|fault| fault.side() == Side::Client);
    let spared = plan.on_client_abort == OnClientAbort::Drain;
    if !client_left || !spared || outcome.upstream_finished {
        return;
    }
    let rest = std::mem::replace(inbound, Inbound::Length(0));
    let (w, idle) = (Rc::clone(w), plan.idle_timeout);
    let draining = Rc::clone(&w);
    // Counted like a connection: the worker does not end before the engine was spared.
    let live = w.enter_live();
    w.spawn_guarded(Box::pin(async move {
        let _live = live;
        let spared = rt::timeout(ANSWER_DRAIN_MAX, drain(lease.link(), rest, idle)).await;
        if spared.unwrap_or(false) {
            draining.pool.give_back(lease, draining.patrol.now());
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::size_of;

    /// Bytes of the future that a function of three arguments returns.
    fn size_of_future<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// What a stream that runs for minutes costs, beside its two sockets' own. What is needed only
    /// now and then (connecting, waiting for a slow client, draining) is boxed instead of growing
    /// it.
    #[test]
    fn a_stream_stays_small() {
        let sizes = [size_of_future(converse), size_of::<Talk>(), size_of::<Client>()];
        println!("connection's future, talk, client: {sizes:?} bytes");
        for (size, stated) in sizes.into_iter().zip([832, 920, 80]) {
            assert!(size <= stated, "{size} bytes, {stated} are stated");
        }
    }
}
