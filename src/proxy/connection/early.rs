//! `routing.early_head`: a stream whose answer is long in coming gets its head, and then comments,
//! while the engines are still being tried. Nothing of an answer is out by that: the tries go on as
//! they would. But what comes of them can be no status any more, so that a failure, also one that
//! an engine answers with, is told by an event.

use super::ours::{give_up, refuse, turn_away};
use super::tries::{start, try_backends, First};
use super::waiting::{wait, Unserved};
use super::{Next, Notes, Underway};
use crate::base::fault::Fault;
use crate::base::id::RequestId;
use crate::base::refusal::Refusal;
use crate::config::plan::OnClientAbort;
use crate::http::head::Version;
use crate::http::request::Method;
use crate::http::response::ResponseHead;
use crate::http::write::{self, chunk_header, CHUNK_HEADER_BYTES_MAX, LAST_CHUNK};
use crate::llm::dialect::Dialect;
use crate::llm::error;
use crate::proxy::client::Client;
use crate::proxy::receive::Request;
use crate::proxy::relay::framing::{Inbound, Sections};
use crate::proxy::relay::COMMENT;
use crate::proxy::settle::{self, Ending, Story};
use crate::proxy::shared::Shared;
use crate::proxy::upstream::exchange::Exchange;
use crate::proxy::upstream::peek;
use crate::proxy::view::WorkerView;
use crate::rt;
use crate::rt::patrol::Pen;
use crate::state::member::Member;
use crate::state::meters::Phase;
use std::io::IoSlice;
use std::pin::pin;
use std::time::Duration;

/// What is told of an engine whose words cannot be read.
const UNSAID: &str = "The backend answered with an error.";

/// After how long a silent client gets the head and a comment, and then further comments; `None`:
/// it asks for no stream, or one of both is off.
pub(super) fn due(underway: &Underway<'_>) -> Option<Duration> {
    let routing = &underway.pass.view.plan.routing;
    if !routing.early_head || routing.sse_keepalive.is_zero() {
        return None;
    }
    let request = &underway.notes.request;
    let is_asked_for = request.stream && request.method == Some(Method::Post);
    is_asked_for.then_some(routing.sse_keepalive)
}

/// Whether the answer is a stream, and may be cut off, whoever gives it.
fn is_certain(underway: &Underway<'_>, first: &First) -> bool {
    let request = &underway.notes.request;
    match first {
        First::Picked(first) => is_certain_at(request, first),
        First::Waits(_) => {
            let view = &underway.pass.view.shared;
            let group = view.models.choose(request.served_model()).group;
            view.group(group).all(|member| is_certain_at(request, member))
        }
    }
}

/// Whether the answer to what asks for a stream is one, and may be cut off.
fn is_certain_at(request: &Request, first: &Member) -> bool {
    // Of the engines' own paths, some stream though nobody asks them to, or not though one does.
    let streams = matches!(
        request.dialect_at(&first.plan.base_path),
        Dialect::OpenAi
            | Dialect::Responses
            | Dialect::Messages
            | Dialect::Completions
            | Dialect::LlamaCpp
    );
    // An answer that cannot be passed on is cut off.
    streams && first.plan.on_client_abort == OnClientAbort::Close
}

/// As [`super::tries::forward`], with a client that hears something meanwhile, so often.
pub(super) async fn forward(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
    every: Duration,
) -> Result<Exchange, Next> {
    let first = match start(w, client, underway) {
        Ok(first) => first,
        Err(refusal) => return Err(refuse(w, client, underway, refusal).await),
    };
    let is_certain = is_certain(underway, &first);
    let mut early = EarlyHead::new(&underway.pass.view, client, &underway.notes.request);
    let tried = {
        let mut trying = pin!(begin(w, client, underway, first));
        match is_certain {
            false => trying.await,
            true => loop {
                match rt::timeout(every, trying.as_mut()).await {
                    Ok(tried) => break tried,
                    Err(_) => early.speak(w),
                }
            },
        }
    };
    let Words { is_out, unsent, .. } = early.words;
    underway.notes.story.head_is_out = is_out;
    let is_gone = matches!(tried, Err(Unserved::Failed(Fault::ClientLeft)));
    if !is_gone && !unsent.is_empty() {
        // What was sent in part is sent to its end before anything else.
        if let Err(fault) = client.send(&mut [IoSlice::new(&unsent)]).await {
            // The engine first: it may still be at work.
            drop(tried);
            return Err(cut_off(w, client, underway, fault));
        }
    }
    let Notes { response, .. } = &*underway.notes;
    let is_stream = response.status == 200 && response.event_stream && !response.encoded;
    match tried {
        Ok(got) if is_stream || !is_out => Ok(got),
        Ok(got) if response.status != 200 => Err(tell_error(client, underway, got).await),
        Ok(got) => {
            let fault = Fault::BadResponse("no_event_stream");
            w.shelf.count_fault(Some(got.lease.backend()), fault);
            drop(got);
            Err(give_up(w, client, underway, fault).await)
        }
        Err(unserved) => Err(turn_away(w, client, underway, unserved).await),
    }
}

/// Waits if the request must, and asks.
async fn begin(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
    first: First,
) -> Result<Exchange, Unserved> {
    let first = match first {
        First::Picked(first) => first,
        First::Waits(waiter) => Box::pin(wait(w, client, underway, *waiter)).await?,
    };
    try_backends(w, client, underway, first).await.map_err(Unserved::Failed)
}

/// Half of a head or comment is out, and the client does not take the rest: whatever came behind it
/// would be read as a part of it. So the connection closes.
fn cut_off(w: &Shared, client: &mut Client, underway: &mut Underway<'_>, fault: Fault) -> Next {
    let Notes { request, story, .. } = &mut *underway.notes;
    match fault {
        Fault::ClientLeft => w.shelf.count_abort(Phase::Waiting),
        _ => w.shelf.count_fault(story.member(), fault),
    }
    story.ending = Ending::Fault(fault);
    request.release_body(client);
    Next::Close
}

/// What a client hears before there is an answer. Nothing is allocated until it hears something.
struct EarlyHead {
    pen: Pen,
    words: Words,
}

/// What of it is out, and what is to follow.
struct Words {
    version: Version,
    /// Its connection ends behind the answer.
    closes: bool,
    id: RequestId,
    /// The client has the head, or its beginning.
    is_out: bool,
    /// What the kernel did not take yet.
    unsent: Vec<u8>,
    /// For pages of other origins.
    cors: Vec<(&'static str, String)>,
}

impl EarlyHead {
    fn new(view: &WorkerView, client: &Client, request: &Request) -> EarlyHead {
        let cors = view.cors.iter().flat_map(|cors| cors.fields(request.from.origin()));
        let words = Words {
            cors: cors.map(|(name, value)| (name, value.to_owned())).collect(),
            version: request.head.version,
            closes: !request.head.keep_alive,
            id: *request.id(),
            is_out: false,
            unsent: Vec::new(),
        };
        EarlyHead { pen: client.post.pen(), words }
    }

    /// Sends a comment, and the head before the first one.
    fn speak(&mut self, w: &Shared) {
        // Who cannot be written to has left, or takes nothing: whoever waits finds that out.
        let sent = self.pen.try_send(self.words.next()).unwrap_or_default();
        let (is_head, is_comment) = self.words.note_sent(sent);
        let mut meters = w.shelf.meters.borrow_mut();
        meters.early_heads += u64::from(is_head);
        meters.keep_alives += u64::from(is_comment);
    }
}

impl Words {
    /// What is to be sent next: what is left of the last, or else another comment.
    fn next(&mut self) -> &[u8] {
        if self.unsent.is_empty() {
            if !self.is_out {
                let how = (self.version, self.closes);
                write::own_stream(&mut self.unsent, how, self.id.as_str(), &self.cors);
            }
            push(&mut self.unsent, COMMENT, self.version == Version::Http11);
        }
        &self.unsent
    }

    /// The kernel took so many bytes of that. Whether the client has the beginning of its head now
    /// and had none, and whether it has all of a comment.
    fn note_sent(&mut self, sent: usize) -> (bool, bool) {
        if sent == 0 {
            // Of a head that nobody has begun to read, nothing has to follow.
            if !self.is_out {
                self.unsent.clear();
            }
            return (false, false);
        }
        self.unsent.drain(..sent);
        (!std::mem::replace(&mut self.is_out, true), self.unsent.is_empty())
    }
}

/// Puts a piece of a body behind what is there.
fn push(out: &mut Vec<u8>, bytes: &[u8], is_chunked: bool) {
    if !is_chunked {
        out.extend_from_slice(bytes);
        return;
    }
    let mut size = [0u8; CHUNK_HEADER_BYTES_MAX];
    out.extend_from_slice(chunk_header(&mut size, bytes.len()));
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Tells what an engine answered with instead of a stream. Its status is that of the record.
async fn tell_error(client: &mut Client, underway: &mut Underway<'_>, mut got: Exchange) -> Next {
    let Underway { pass, notes: Notes { request, response, story, tap, .. } } = underway;
    let body = peek::body(client, response, &mut got).await;
    let said = if response.encoded { None } else { error::message_in(&plain(response, body)) };
    // The engine first: its connection closes.
    drop(got);
    story.status = response.status;
    // An answer like any other: that it is told in another form is no fault.
    settle::complete(pass, (request, tap), story, 0);
    let refusal = Refusal::new(response.status, "backend_error", UNSAID);
    let refusal = match said {
        Some(said) => refusal.with_message(said),
        None => refusal,
    };
    let next = tell(client, (request, story), &refusal).await;
    request.release_body(client);
    next
}

/// A body without its framing, as far as it came.
fn plain(response: &ResponseHead, mut body: &[u8]) -> Vec<u8> {
    let (mut inbound, mut sections) = (Inbound::new(response.framing), Sections::default());
    let mut plain = Vec::new();
    while !body.is_empty() {
        let progress = inbound.decode(body, false, &mut sections);
        sections.for_each_data(body, |data| plain.extend_from_slice(data));
        if progress.finished || progress.broken.is_some() {
            break;
        }
        body = body.get(progress.consumed..).unwrap_or_default();
    }
    plain
}

/// Ends a stream of which nothing but its head and comments is out: with an event that says why, in
/// the form that raises an error in the clients of its path, and the proper end of its body, since
/// that is all of the answer.
pub(super) async fn tell(
    client: &mut Client,
    (request, story): (&Request, &Story),
    refusal: &Refusal,
) -> Next {
    let base = story.member().map_or("", |backend| &backend.plan.base_path);
    let (mut event, mut out) = (Vec::new(), Vec::new());
    error::write_last_event(request.dialect_at(base), refusal, 0, &mut event);
    let is_chunked = request.head.version == Version::Http11;
    push(&mut out, &event, is_chunked);
    if is_chunked {
        out.extend_from_slice(LAST_CHUNK);
    }
    // The head may have said that the connection lives on; a client that goes on takes its end for
    // what it is, as between any two requests.
    match client.send(&mut [IoSlice::new(&out)]).await {
        Ok(()) => Next::CloseGently,
        Err(_) => Next::Close,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::HEAD_BYTES_MAX;

    /// Catches: a head of which the kernel took a part, and that is sent again, or not to its end;
    /// and one that is due to follow though nothing of it is out.
    #[test]
    fn a_head_that_was_sent_in_part_goes_on_where_it_was_torn() {
        for version in [Version::Http10, Version::Http11] {
            let words = || Words {
                cors: Vec::new(),
                version,
                closes: false,
                id: RequestId::default(),
                is_out: false,
                unsent: Vec::new(),
            };
            let whole = words().next().to_vec();
            let mut comment = Vec::new();
            push(&mut comment, COMMENT, version == Version::Http11);
            for torn in 1..whole.len() {
                let mut words = words();
                let mut out = words.next().get(..torn).unwrap().to_vec();
                assert_eq!(words.note_sent(torn), (true, false));
                // Nothing is taken in this round.
                let _ = words.next();
                assert_eq!(words.note_sent(0), (false, false));
                out.extend_from_slice(words.next());
                assert_eq!(words.note_sent(whole.len() - torn), (false, true));
                assert_eq!(out, whole, "{torn}");
                assert_eq!(words.next(), comment, "no other head");
            }
            let mut unread = words();
            let _ = unread.next();
            assert_eq!(unread.note_sent(0), (false, false));
            assert!(!unread.is_out && unread.unsent.is_empty());
        }
    }

    /// Catches: an engine's words that are looked for between the sizes of its chunks.
    #[test]
    fn a_body_is_read_without_its_framing_as_far_as_it_came() {
        let of = |framing: &str, body: &str| {
            let head = format!("HTTP/1.1 503 X\r\n{framing}\r\n\r\n");
            let mut response = ResponseHead::default();
            response.parse(head.as_bytes(), Method::Post, HEAD_BYTES_MAX).unwrap();
            String::from_utf8(plain(&response, body.as_bytes())).unwrap()
        };
        assert_eq!(of("Transfer-Encoding: chunked", "2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"), "abc");
        assert_eq!(of("Transfer-Encoding: chunked", "2\r\nab\r\n5\r\nc"), "abc");
        assert_eq!(of("Content-Length: 5", "abc"), "abc");
        assert_eq!(of("Connection: close", "abc"), "abc");
        assert_eq!(of("Content-Length: 0", ""), "");
    }
}
