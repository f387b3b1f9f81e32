//! An engine that is still loading its model says so with a 503. It has done nothing for the
//! request, so another backend may answer it.

use super::exchange::Exchange;
use crate::base::limits::{LOADING_ANSWER_BYTES_MAX, LOADING_ANSWER_WAIT};
use crate::http::framing::ResponseFraming;
use crate::http::response::ResponseHead;
use crate::http::write::LAST_CHUNK;
use crate::proxy::client::Client;
use crate::rt::buffer::Buffer;
use std::io::ErrorKind;

/// What llama.cpp's server says while it loads:
/// `{"error":{"message":"Loading model","type":"unavailable_error","code":503}}`.
const SAYS_SO: [&[u8]; 2] = [b"Loading model", b"unavailable_error"];

/// Whether an answer says that the engine is loading its model. Reads what there is of a short
/// body, and what is read stays in the exchange.
pub async fn is_loading(client: &Client, response: &ResponseHead, got: &mut Exchange) -> bool {
    if response.status != 503 || response.encoded || response.event_stream {
        return false;
    }
    client.post.arm(LOADING_ANSWER_WAIT);
    loop {
        let bytes = got.bytes.get_or_insert_with(Buffer::take);
        let body = bytes.get(got.head_len..).unwrap_or_default();
        if SAYS_SO.into_iter().all(|words| memchr::memmem::find(body, words).is_some()) {
            return true;
        }
        let is_whole = match response.framing {
            ResponseFraming::None => true,
            ResponseFraming::Length(len) => body.len() as u64 >= len,
            ResponseFraming::Chunked => body.ends_with(LAST_CHUNK),
            ResponseFraming::UntilClose => false,
        };
        let is_long = body.len() >= LOADING_ANSWER_BYTES_MAX || bytes.len() == bytes.capacity();
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
