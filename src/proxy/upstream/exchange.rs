//! The request goes out, the head of the answer comes in; the client has seen nothing yet.

use super::connect::connect;
use super::pool::{InFlight, Lease, LocalMember};
use crate::base::fault::{EarlyClose, Fault};
use crate::base::limits::{HEAD_BYTES_MAX, INTERIM_RESPONSES_MAX, REUSE_RACE_MAX};
use crate::config::plan::{Backend, OnClientAbort};
use crate::http::field::Known;
use crate::http::framing::ResponseFraming;
use crate::http::head::{Parse, Version};
use crate::http::request::Method;
use crate::http::response::ResponseHead;
use crate::http::write::{self, ForwardRequest};
use crate::llm::dialect::Dialect;
use crate::proxy::asking::Asking;
use crate::proxy::client::Client;
use crate::proxy::receive::Request;
use crate::proxy::shelf::Shelf;
use crate::proxy::trace::TraceNotes;
use crate::proxy::view::WorkerView;
use crate::rt::buffer::Buffer;
use crate::rt::patrol::{Alarm, Watched};
use crate::rt::tls::{Link, SendOrListen};
use crate::state::hop;
use std::future::Future;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::Duration;

/// The head of an answer was read, nothing was sent to the client.
pub struct Exchange {
    /// The connection, in the middle of an answer.
    pub lease: Lease,
    /// The bytes read so far: the head, and what came with it of the body.
    pub bytes: Option<Buffer>,
    /// Length of the head in `bytes`; the body starts there.
    pub head_len: usize,
    /// The patrol's tick in which the request began to be handed over.
    pub asked: u32,
}

impl Exchange {
    /// What was read of the body so far, in its framing.
    pub fn body(&self) -> &[u8] {
        let bytes = self.bytes.as_ref().map_or(&[][..], |bytes| bytes);
        bytes.get(self.head_len..).unwrap_or_default()
    }
}

/// How a try is made.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// A kept connection must not be used.
    pub is_fresh: bool,
    /// Whether it asks for usage on its own account.
    pub asking: Asking,
    /// The longest it may take to the head of the answer, in milliseconds; `u32::MAX`: that is for
    /// the backend's settings to say.
    pub within: u32,
    /// The request has nowhere to go but where it is.
    pub is_only: bool,
}

impl How {
    /// How long something may take that the backend's settings give so much time.
    fn limit(&self, own: Duration) -> Duration {
        match self.within {
            u32::MAX => own,
            within => own.min(Duration::from_millis(within.into())),
        }
    }

    /// What a fault is called. A backend whose own time was not over has not failed.
    pub fn name(&self, fault: Fault, plan: &Backend) -> Fault {
        let own = match fault {
            Fault::ConnectTimeout => plan.connect_timeout,
            Fault::FirstByteTimeout => plan.first_byte_timeout,
            _ => return fault,
        };
        if self.limit(own) < own {
            Fault::RetryTimeout
        } else {
            fault
        }
    }
}

/// Sends the request to a backend and reads the head of its answer. `inflight`: counts it there,
/// and goes into the lease; it is where it was when the backend did not get all of the request.
pub async fn exchange(
    (shelf, view): (&Shelf, &WorkerView),
    client: &mut Client,
    (request, head): (&mut Request, &mut ResponseHead),
    (backend, inflight): (&Rc<LocalMember>, &mut Option<InFlight>),
    how: &How,
) -> Result<Exchange, Fault> {
    head.reset();
    let kept = kept(shelf, client, (backend, how));
    let (is_reused, limit) = (kept.is_some(), how.limit(backend.plan.connect_timeout));
    let link = match kept {
        Some(link) => link,
        // Boxed: a connect needs room that a stream should not carry for minutes.
        None => Box::pin(connect(shelf, client, (backend, limit))).await?,
    };
    let mut lease = Lease::of(link, inflight.take().ok_or(Fault::BackendFull)?);
    lease.begin(is_reused);
    let tick = client.post.now();
    let plan = &backend.plan;
    if !request.head.is_clear() {
        // The engine may leave such a body unread, and read it as the next request.
        lease.spoil();
    }
    let wait = Wait { heed_leaving: plan.on_client_abort == OnClientAbort::Close, is_reused };
    // One deadline for sending and waiting: an engine that takes no bytes does not answer either.
    client.post.arm(how.limit(plan.first_byte_timeout));
    // An engine may answer before it has read everything (413), and then close, or not.
    let mut answer = Beginning::of(head);
    let sent_whole = match begin((view, client), (request, how.asking), backend, &mut lease) {
        Ok(None) => judge(wait.until(client, lease.link().flush()).await).map(|()| true),
        // Boxed: a body that does not fit in the socket's buffer is worth it.
        Ok(Some(begun)) => {
            let on = (&mut lease, &mut answer);
            Box::pin(send_rest(&wait, client, (request, how.asking), begun, on)).await
        }
        Err(fault) => Err(fault),
    };
    let sent_whole = match wait.heard_early(sent_whole) {
        Ok(whole) => whole,
        Err(fault) => {
            *inflight = Some(lease.close());
            return Err(fault);
        }
    };
    if sent_whole {
        lease.note_sent();
    } else if wait.is_reused {
        // What was said on a kept connection before the request was whole may be meant for whoever
        // used it before; on a fresh one it is this request's.
        let (is_reused, heard) = (true, answer.heard);
        return Err(EarlyClose { is_reused, sent_whole, heard, at_once: true }.fault());
    }
    if wait.is_reused && !answer.heard {
        answer.ready = race(&wait, client, &mut lease).await?;
        // The deadline that sending had, which the race has replaced.
        client.post.arm(how.limit(plan.first_byte_timeout).saturating_sub(client.post.since(tick)));
    }
    let no_way_back = sent_whole && !answer.ready;
    if no_way_back && !how.asking.is_spliced() && how.is_only {
        // Neither the prompt nor a buffer is held through the prefill, which may take minutes; but
        // what may be refused because of us, or be sent to another backend, must be in hand.
        request.release_body(client);
        // From here on it cannot go anywhere else, whatever is configured meanwhile.
        client.post.stand_at(None);
    }
    match read_head(&wait, client, request.head.method, &mut lease, &mut answer).await {
        Ok(head_len) => {
            let Beginning { head, bytes, .. } = answer;
            let read = bytes.as_ref().map_or(&[][..], |bytes| bytes);
            if is_reused && is_foreign(shelf, request, (head, read)) {
                distrust((shelf, client), backend);
                return Err(Fault::ForeignAnswer);
            }
            lease.note_head(is_kept(head, request.body_len > 0));
            if is_reused && contradicts(request, head) {
                lease.spoil();
            }
            Ok(Exchange { lease, bytes, head_len, asked: tick })
        }
        Err(Fault::BackendClosed) => {
            // By the real clock: while we stood still the engine may have worked on the request.
            let at_once = !no_way_back && lease.age() <= REUSE_RACE_MAX;
            Err(EarlyClose { is_reused, sent_whole, heard: answer.heard, at_once }.fault())
        }
        Err(fault) => Err(fault),
    }
}

/// A connection that was kept, if the try may use one.
fn kept(shelf: &Shelf, client: &Client, (backend, how): (&LocalMember, &How)) -> Option<Link> {
    let link = if how.is_fresh { None } else { backend.take(client.post.now()) }?;
    shelf.meters.borrow_mut().upstream[1] += 1;
    Some(link)
}

/// Closes what is kept of a backend that gave a request the answer of another one.
fn distrust((shelf, client): (&Shelf, &Client), backend: &LocalMember) {
    backend.distrust(client.post.now());
    if shelf.may_log("foreign_answer") {
        tracing::warn!(
            backend = %backend.name,
            "the backend gave a request the answer of another one: its kept connections are closed"
        );
    }
}

/// Whether an answer carries an id that we gave to another request: it was sent unasked behind the
/// last answer on this connection, or is the answer to who was given that. Other ids prove nothing:
/// backends have ids of their own, and some rewrite those of clients.
fn is_foreign(shelf: &Shelf, request: &Request, (head, read): (&ResponseHead, &[u8])) -> bool {
    let told = head.fields.iter().find(|field| field.known == Known::XRequestId);
    let is_other = |told: &[u8]| told != request.id().as_str().as_bytes() && shelf.made_id(told);
    told.is_some_and(|told| is_other(told.value.of(read)))
}

/// Whether an answer has another form than was asked for: some engines do that, and an answer that
/// belongs to somebody else may look so.
fn contradicts(request: &Request, response: &ResponseHead) -> bool {
    let streams =
        matches!(request.dialect, Dialect::OpenAi | Dialect::Responses | Dialect::Messages);
    let is_other = if request.stream { response.json } else { response.event_stream };
    streams && response.status == 200 && is_other
}

/// Whether the head of an answer lets its connection live on. A refusal of a request with a body
/// does not: the engine may not have read that, and would take it for the next request. HTTP/1.0
/// has no rule that all follow; and of an answer that announces a body and must have none (to a
/// HEAD, a 204, a 304) some servers send it all the same, and the next request would get it.
fn is_kept(response: &ResponseHead, had_body: bool) -> bool {
    let announces = || {
        let coded = response.fields.iter().any(|field| field.known == Known::TransferEncoding);
        coded || response.content_length.is_some_and(|length| length > 0)
    };
    let is_bare = response.framing == ResponseFraming::None;
    let is_read = !had_body || response.status < 400;
    let lives = response.keep_alive && response.version == Version::Http11;
    lives && is_read && !(is_bare && announces())
}

/// Writes the head of the request.
fn head_of(
    view: &WorkerView,
    client: &Client,
    (request, asking): (&Request, Asking),
    backend: &LocalMember,
) -> Buffer {
    let plan = &backend.plan;
    let mut head = Buffer::take();
    let body_len = body_len(request, client, asking) as u64;
    // Behind a proxy, what it says goes on, and its own address behind that.
    let proxy = request.from.trusted_peer();
    write::request(
        &mut head,
        &request.head,
        client.bytes(),
        &ForwardRequest {
            base_path: &plan.base_path,
            host: &plan.host,
            body_len: request.has_body().then_some(body_len),
            request_id: request.id().as_str(),
            drop: view.credential_fields(),
            set: &plan.headers,
            identity: request.presented.as_ref().map_or(&[], |said| &said.identity),
            client_ip: proxy.as_deref().unwrap_or(request.from.client_text()),
            via: hop::name(),
            client_scheme: request.from.scheme(),
            // To a head that went before the engine's, no packed body fits.
            plain_answer: asking.is_spliced() || (view.plan.routing.early_head && request.stream),
            trust_forwarded: proxy.is_some(),
            trace: request.trace().map(TraceNotes::field),
        },
    );
    head
}

fn body_len(request: &Request, client: &Client, asking: Asking) -> usize {
    let pieces = request.pieces(client.bytes(), asking.is_spliced());
    pieces.iter().map(|piece| piece.len()).sum()
}

/// Sends what the socket takes at once of the request. `Some`: that is not all.
fn begin(
    (view, client): (&WorkerView, &Client),
    (request, asking): (&Request, Asking),
    backend: &LocalMember,
    lease: &mut Lease,
) -> Result<Option<Begun>, Fault> {
    let head = head_of(view, client, (request, asking), backend);
    let whole = head.len() + body_len(request, client, asking);
    let mut begun = Begun { head, sent: 0, whole };
    Ok(begun.go_on(client, (request, asking), lease)?.then_some(begun))
}

/// A request of which the engine has a part.
struct Begun {
    head: Buffer,
    /// Bytes that were handed over.
    sent: usize,
    /// Bytes of all of it.
    whole: usize,
}

impl Begun {
    /// Sends what the socket takes; true when that is not all.
    fn go_on(
        &mut self,
        client: &Client,
        (request, asking): (&Request, Asking),
        lease: &mut Lease,
    ) -> Result<bool, Fault> {
        // The pieces are put together anew after each wait instead of being kept through it.
        while self.sent < self.whole {
            let body = request.pieces(client.bytes(), asking.is_spliced());
            match try_send(lease, &self.head, body, self.sent) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(_) => return Err(Fault::BackendClosed),
            }
        }
        Ok(false)
    }
}

/// Sends the rest of a request. False when the engine answered before it had all of it. An interim
/// answer is none: the engine goes on reading, and so the request goes on.
async fn send_rest(
    wait: &Wait,
    client: &Client,
    (request, asking): (&Request, Asking),
    mut begun: Begun,
    (lease, answer): (&mut Lease, &mut Beginning<'_>),
) -> Result<bool, Fault> {
    loop {
        match judge(wait.until(client, lease.link().writable_or_spoken()).await)? {
            SendOrListen::Send => {
                if !begun.go_on(client, (request, asking), lease)? {
                    break;
                }
            }
            SendOrListen::Listen => {
                take_in(client, request.head.method, lease, answer)?;
                // Half a head on a kept connection may be that of an answer to somebody else.
                if answer.head_len > 0 || (wait.is_reused && answer.bytes.is_some()) {
                    return Ok(false);
                }
            }
        }
    }
    judge(wait.until(client, lease.link().flush()).await).map(|()| true)
}

/// One send, of all but the first `skip` bytes.
fn try_send(lease: &mut Lease, head: &[u8], body: [&[u8]; 5], skip: usize) -> io::Result<usize> {
    let used = 1 + body.iter().rposition(|piece| !piece.is_empty()).map_or(0, |last| last + 1);
    let [first, second, third, fourth, fifth] = body;
    let mut slices = [head, first, second, third, fourth, fifth].map(IoSlice::new);
    let mut slices = slices.get_mut(..used).unwrap_or_default();
    IoSlice::advance_slices(&mut slices, skip);
    lease.link().try_send(slices)
}

/// A kept connection may have been closed by the engine while the request was on its way; then the
/// request is sent once more. True when something is there to be read; false when the time for
/// that is over, and the engine is at work.
async fn race(wait: &Wait, client: &Client, lease: &mut Lease) -> Result<bool, Fault> {
    client.post.arm(REUSE_RACE_MAX);
    match judge(wait.until(client, lease.link().readable()).await) {
        Ok(()) | Err(Fault::BackendClosed) => Ok(true),
        Err(Fault::FirstByteTimeout) => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// What has come of an answer.
struct Beginning<'a> {
    /// What its head says, once that is complete.
    head: &'a mut ResponseHead,
    /// Bytes of a head that is not complete, or is.
    bytes: Option<Buffer>,
    /// Length of the head of the final answer, once it is complete; 0 before that. Four bytes: what
    /// is kept here is kept for each stream.
    head_len: u32,
    /// Interim answers that were passed over.
    interim: u8,
    /// Something came, be it an interim answer: the engine has the request.
    heard: bool,
    /// There is something to read.
    ready: bool,
}

impl Beginning<'_> {
    /// Nothing has come yet; `head` is empty.
    fn of(head: &mut ResponseHead) -> Beginning<'_> {
        Beginning { head, bytes: None, head_len: 0, interim: 0, heard: false, ready: false }
    }
}

/// Reads until the head of a final answer is complete.
async fn read_head(
    wait: &Wait,
    client: &Client,
    method: Method,
    lease: &mut Lease,
    answer: &mut Beginning<'_>,
) -> Result<usize, Fault> {
    loop {
        if answer.head_len > 0 {
            return Ok(answer.head_len as usize);
        }
        if !std::mem::take(&mut answer.ready) {
            judge(wait.until(client, lease.link().readable()).await)?;
        }
        take_in(client, method, lease, answer)?;
    }
}

/// Reads once what is there, and passes over interim answers (1xx), which may come at any time
/// before the final one and ask for nothing (RFC 9110 section 15.2).
fn take_in(
    client: &Client,
    method: Method,
    lease: &mut Lease,
    answer: &mut Beginning<'_>,
) -> Result<(), Fault> {
    let buffer = answer.bytes.get_or_insert_with(Buffer::take);
    if buffer.len() == buffer.capacity() {
        buffer.reserve(HEAD_BYTES_MAX);
    }
    match lease.link().try_recv(buffer) {
        Ok(1..) => {}
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            drop_if_empty(&mut answer.bytes);
            return Ok(());
        }
        Ok(0) | Err(_) => {
            drop_if_empty(&mut answer.bytes);
            return Err(Fault::BackendClosed);
        }
    }
    answer.heard = true;
    // An engine that has begun to answer is at work: the request stays there.
    client.post.stand_at(None);
    while let Parse::Done { len } = answer
        .head
        .parse(buffer, method, HEAD_BYTES_MAX)
        .map_err(|bad| Fault::BadResponse(bad.0))?
    {
        if answer.head.status >= 200 {
            answer.head_len = len as u32;
            return Ok(());
        }
        answer.interim += 1;
        if usize::from(answer.interim) > INTERIM_RESPONSES_MAX {
            return Err(Fault::BadResponse("too_many_interim_answers"));
        }
        buffer.drain(..len);
        answer.head.reset();
    }
    drop_if_empty(&mut answer.bytes);
    Ok(())
}

fn drop_if_empty(bytes: &mut Option<Buffer>) {
    if bytes.as_ref().is_some_and(|b| b.is_empty()) {
        *bytes = None;
    }
}

/// Waits for steps towards the engine.
struct Wait {
    /// False for an engine that must not be cut off: the answer is read for nobody.
    heed_leaving: bool,
    /// The connection was used before.
    is_reused: bool,
}

impl Wait {
    fn until<'a, F: Future>(&self, client: &'a Client, step: F) -> Watched<'a, F> {
        match self.heed_leaving {
            true => client.post.attended(step),
            false => client.post.within(step),
        }
    }

    /// Whether all was sent; an engine that closes before that may have said why.
    fn heard_early(&self, sent_whole: Result<bool, Fault>) -> Result<bool, Fault> {
        match sent_whole {
            Err(Fault::BackendClosed) => Ok(false),
            Err(Fault::BadResponse(_)) if self.is_reused => Ok(false),
            other => other,
        }
    }
}

fn judge<T>(done: Result<io::Result<T>, Alarm>) -> Result<T, Fault> {
    match done {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(_)) => Err(Fault::BackendClosed),
        Err(Alarm::Expired) => Err(Fault::FirstByteTimeout),
        Err(Alarm::Gone) => Err(Fault::ClientLeft),
        Err(Alarm::Ended) => Err(Fault::ShuttingDown),
        Err(Alarm::CalledOff) => Err(Fault::BackendEjected),
    }
}

#[cfg(test)]
mod tests;
