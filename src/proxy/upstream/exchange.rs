//! The request goes out, the head of the answer comes in; the client has seen nothing yet.

use super::connect::connect;
use super::pool::Lease;
use crate::base::fault::Fault;
use crate::base::limits::{HEAD_BYTES_MAX, INTERIM_RESPONSES_MAX, REUSE_RACE_MAX};
use crate::config::plan::{Backend, OnClientAbort};
use crate::http::field::Known;
use crate::http::framing::ResponseFraming;
use crate::http::head::{Parse, Version};
use crate::http::response::ResponseHead;
use crate::http::write::{self, ForwardRequest};
use crate::proxy::asking::Asking;
use crate::proxy::client::Client;
use crate::proxy::receive::Request;
use crate::proxy::worker::Worker;
use crate::rt::buffer::Buffer;
use crate::rt::patrol::{Alarm, Watched, TICK};
use crate::rt::tls::Turn;
use crate::state::hop;
use std::future::Future;
use std::io::{self, IoSlice};
use std::time::Instant;

/// A head was read (it is in `Request::response`), nothing was sent to the client.
pub struct Exchange {
    /// The connection, in the middle of an answer.
    pub lease: Lease,
    /// The bytes read so far: the head, and what came with it of the body.
    pub bytes: Option<Buffer>,
    /// Length of the head in `bytes`; the body starts there.
    pub head_len: usize,
    /// When the request had been handed over.
    pub asked: Instant,
}

/// Sends the request to a backend and reads the head of its answer. `fresh` forbids a kept
/// connection; `asking`: the try asks for usage on its own account.
pub async fn exchange(
    w: &Worker,
    client: &mut Client,
    request: &mut Request,
    backend: u32,
    (fresh, asking): (bool, Asking),
) -> Result<Exchange, Fault> {
    request.response.reset();
    let kept = if fresh { None } else { w.pool.take(backend, w.patrol.now()) };
    let is_reused = kept.is_some();
    let mut lease = match kept {
        Some(lease) => {
            w.meters.borrow_mut().upstream[1] += 1;
            lease
        }
        // Boxed: a connect needs room that a stream should not carry for minutes.
        None => Box::pin(connect(w, client, backend)).await?,
    };
    let (started, tick) = (Instant::now(), w.patrol.now());
    let plan = w.backend(backend).ok_or(Fault::Unresolved)?;
    if !request.head.is_clear() {
        // The engine may leave such a body unread, and read it as the next request.
        lease.spoil();
    }
    let wait = Wait { heed_leaving: plan.on_client_abort == OnClientAbort::Close };
    // An engine may answer before it has read everything (413), and then close, or not.
    let sent_whole = match send((w, client), &wait, (request, asking), plan, &mut lease).await {
        Ok(whole) => whole,
        Err(Fault::BackendClosed) => false,
        Err(fault) => return Err(fault),
    };
    if sent_whole {
        lease.note_sent();
    } else if is_reused {
        // What was said on a kept connection before the request was whole may be meant for whoever
        // used it before; on a fresh one it is this request's. It may go once more: an engine needs
        // the whole body to generate anything, and one that answered before then refused it.
        return Err(Fault::ReuseRace);
    }
    let mut answer = Beginning::default();
    if is_reused {
        answer.ready = race(&wait, client, &mut lease).await?;
        // The deadline that sending had, which the race has replaced.
        let passed = TICK * w.patrol.now().saturating_sub(tick);
        client.post.arm(plan.first_byte_timeout.saturating_sub(passed));
    }
    let no_way_back = sent_whole && !answer.ready;
    if no_way_back && !asking.is_spliced() && w.plan.backends.len() == 1 {
        // Neither the prompt nor a buffer is held through the prefill, which may take minutes; but
        // what may be refused because of us, or be sent to another backend, must be in hand.
        request.release_body(client);
    }
    match read_head(&wait, client, request, &mut lease, &mut answer).await {
        Ok(head_len) => {
            lease.note_head(is_kept(&request.response));
            Ok(Exchange { lease, bytes: answer.bytes, head_len, asked: started })
        }
        Err(Fault::BackendClosed) if is_reused && !answer.heard => {
            let in_time = !no_way_back && started.elapsed() <= REUSE_RACE_MAX;
            Err(if in_time { Fault::ReuseRace } else { Fault::BackendClosedReused })
        }
        Err(fault) => Err(fault),
    }
}

/// Whether the head of an answer lets its connection live on. HTTP/1.0 has no rule for that which
/// all follow; and of an answer that announces a body and must have none (to a HEAD, a 204, a 304)
/// some servers send it all the same, and the next request would get it.
fn is_kept(response: &ResponseHead) -> bool {
    let announces = || {
        let coded = response.fields.iter().any(|field| field.known == Known::TransferEncoding);
        coded || response.content_length.is_some_and(|length| length > 0)
    };
    let is_bare = response.framing == ResponseFraming::None;
    response.keep_alive && response.version == Version::Http11 && !(is_bare && announces())
}

/// Sends the request. False when the engine began to answer before it had all of it.
async fn send(
    (w, client): (&Worker, &Client),
    wait: &Wait,
    (request, asking): (&Request, Asking),
    plan: &Backend,
    lease: &mut Lease,
) -> Result<bool, Fault> {
    // One deadline for sending and waiting: an engine that takes no bytes does not answer either.
    client.post.arm(plan.first_byte_timeout);
    let body_len: usize =
        pieces(request, client.bytes(), asking).iter().map(|piece| piece.len()).sum();
    let mut head = Buffer::take();
    write::request(
        &mut head,
        &request.head,
        client.bytes(),
        &ForwardRequest {
            base_path: &plan.base_path,
            host: &plan.host,
            body_len: request.has_body().then_some(body_len as u64),
            request_id: request.id().as_str(),
            drop: w.credential_fields(),
            set: &plan.headers,
            client_ip: &request.peer,
            via: hop::name(),
            client_scheme: "http",
            plain_answer: asking.is_spliced(),
            trust_forwarded: false,
        },
    );
    let mut sent = 0;
    // The pieces are put together anew after each wait instead of being kept through it.
    while sent < head.len() + body_len {
        match try_send(lease, &head, pieces(request, client.bytes(), asking), sent) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                // Boxed: a body that does not fit in the socket's buffer is worth it.
                let turn = wait.until(client, Box::pin(lease.link().writable_or_spoken()));
                if judge(turn.await)? == Turn::Listen {
                    return Ok(false);
                }
            }
            Err(_) => return Err(Fault::BackendClosed),
        }
    }
    judge(wait.until(client, lease.link().flush()).await)?;
    Ok(true)
}

/// The body in the pieces in which it goes out: all of it, or what the splice makes of it.
fn pieces<'a>(request: &'a Request, inbox: &'a [u8], asking: Asking) -> [&'a [u8]; 3] {
    let body = request.body(inbox);
    match request.usage_splice() {
        Some(splice) if asking.is_spliced() => splice.of(body),
        _ => [body, &[], &[]],
    }
}

/// One send, of all but the first `skip` bytes.
fn try_send(lease: &mut Lease, head: &[u8], body: [&[u8]; 3], skip: usize) -> io::Result<usize> {
    let [first, second, third] = body;
    let mut slices = [head, first, second, third].map(IoSlice::new);
    let used = if second.is_empty() { 2 } else { slices.len() };
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
#[derive(Default)]
struct Beginning {
    /// Bytes of a head that is not complete, or is.
    bytes: Option<Buffer>,
    /// Something came, be it an interim answer that was passed over: the engine has the request.
    heard: bool,
    /// There is something to read.
    ready: bool,
}

/// Reads until the head of a final answer is complete; interim ones (1xx) are passed over.
async fn read_head(
    wait: &Wait,
    client: &Client,
    request: &mut Request,
    lease: &mut Lease,
    answer: &mut Beginning,
) -> Result<usize, Fault> {
    let Beginning { bytes, heard, ready } = answer;
    let mut interim = 0;
    loop {
        if !std::mem::take(ready) {
            judge(wait.until(client, lease.link().readable()).await)?;
        }
        let buffer = bytes.get_or_insert_with(Buffer::take);
        if buffer.len() == buffer.capacity() {
            buffer.reserve(HEAD_BYTES_MAX);
        }
        match lease.link().try_recv(buffer) {
            Ok(0) => {
                drop_if_empty(bytes);
                return Err(Fault::BackendClosed);
            }
            Ok(_) => {
                *heard = true;
                // An engine that has begun to answer is at work: the request stays there.
                client.post.stand_at(None);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                drop_if_empty(bytes);
                continue;
            }
            Err(_) => {
                drop_if_empty(bytes);
                return Err(Fault::BackendClosed);
            }
        }
        while let Parse::Done { len } = request
            .response
            .parse(buffer, request.head.method, HEAD_BYTES_MAX)
            .map_err(|bad| Fault::BadResponse(bad.0))?
        {
            if request.response.status >= 200 {
                return Ok(len);
            }
            interim += 1;
            if interim > INTERIM_RESPONSES_MAX {
                return Err(Fault::BadResponse("too_many_interim_answers"));
            }
            buffer.drain(..len);
            request.response.reset();
        }
    }
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
}

impl Wait {
    fn until<'a, F: Future>(&self, client: &'a Client, step: F) -> Watched<'a, F> {
        match self.heed_leaving {
            true => client.post.attended(step),
            false => client.post.within(step),
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
