//! What the short body of an error says, read before the client gets any of it: some such answers
//! are no answer to the client, but a reason for another try.

use super::exchange::Exchange;
use crate::base::fault::Fault;
use crate::base::limits::{PEEKED_ANSWER_BYTES_MAX, PEEKED_ANSWER_WAIT};
use crate::http::framing::ResponseFraming;
use crate::http::response::ResponseHead;
use crate::http::write::LAST_CHUNK;
use crate::llm::error;
use crate::proxy::client::Client;
use crate::rt::buffer::Buffer;
use memchr::memmem;
use std::io::ErrorKind;

/// How a refusal names what we asked for on our own account.
const WISH: [&[u8]; 2] = [b"stream_options", b"include_usage"];

/// What llama.cpp's server says while it loads:
/// `{"error":{"message":"Loading model","type":"unavailable_error","code":503}}`.
const LOADING: [&[u8]; 2] = [b"Loading model", b"unavailable_error"];

/// Whether a refusal names the wish for usage that we put into the request.
pub async fn names_wish(client: &Client, response: &ResponseHead, got: &mut Exchange) -> bool {
    let says = |body: &[u8]| WISH.into_iter().any(|name| memmem::find(body, name).is_some());
    says_so(client, response, got, says).await
}

/// What the body of a 503 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// The engine is still loading its model: it has done nothing for the request, so another
    /// backend may answer it.
    Loading,
    /// It has as much to do as it takes.
    Full,
    /// Something else, or nothing.
    Other,
}

/// What an answer says of why its engine does not serve the request.
pub async fn unavailable(
    client: &Client,
    response: &ResponseHead,
    got: &mut Exchange,
) -> Unavailable {
    if response.status != 503 || response.encoded || response.event_stream {
        return Unavailable::Other;
    }
    let is_loading =
        |body: &[u8]| LOADING.into_iter().all(|words| memmem::find(body, words).is_some());
    let says = |body: &[u8]| is_loading(body) || error::says_full(body);
    if !says_so(client, response, got, says).await {
        return Unavailable::Other;
    }
    match is_loading(got.body()) {
        true => Unavailable::Loading,
        false => Unavailable::Full,
    }
}

/// Whether an answer is our own refusal of a request that came back to us: no engine has seen it.
pub async fn is_loop(client: &Client, response: &ResponseHead, got: &mut Exchange) -> bool {
    if response.status != 508 || response.encoded || response.event_stream {
        return false;
    }
    let says = |body: &[u8]| memmem::find(body, Fault::BackendLoops.code().as_bytes()).is_some();
    says_so(client, response, got, says).await
}

/// Reads the body of an answer until it is whole, or longer or slower than errors are; gives what
/// came of it, in its framing.
pub async fn body<'a>(client: &Client, response: &ResponseHead, got: &'a mut Exchange) -> &'a [u8] {
    says_so(client, response, got, |_| false).await;
    got.body()
}

/// Reads the body of an answer until it says so, or is whole, or longer or slower than such answers
/// are. What is read stays in the exchange, for whoever sends the answer on.
async fn says_so(
    client: &Client,
    response: &ResponseHead,
    got: &mut Exchange,
    says: impl Fn(&[u8]) -> bool,
) -> bool {
    client.post.arm(PEEKED_ANSWER_WAIT);
    loop {
        let bytes = got.bytes.get_or_insert_with(Buffer::take);
        let body = bytes.get(got.head_len..).unwrap_or_default();
        if says(body) {
            return true;
        }
        let is_whole = match response.framing {
            ResponseFraming::None => true,
            ResponseFraming::Length(len) => body.len() as u64 >= len,
            ResponseFraming::Chunked => body.ends_with(LAST_CHUNK),
            ResponseFraming::UntilClose => false,
        };
        let is_long = body.len() >= PEEKED_ANSWER_BYTES_MAX || bytes.len() == bytes.capacity();
        if is_whole || is_long {
            return false;
        }
        // Whatever ends the reading is met again by whoever sends the answer on.
        if !matches!(client.post.attended(got.lease.link().readable()).await, Ok(Ok(()))) {
            return false;
        }
        let Some(bytes) = got.bytes.as_mut() else { return false };
        match got.lease.link().try_recv(bytes) {
            Ok(n) if n > 0 => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return false,
        }
    }
}
