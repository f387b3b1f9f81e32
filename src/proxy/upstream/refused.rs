//! An engine that refuses to be asked for usage says so in the body of its answer.

use super::exchange::Exchange;
use crate::base::limits::{REFUSED_ANSWER_BYTES_MAX, REFUSED_ANSWER_WAIT};
use crate::http::response::ResponseHead;
use crate::proxy::client::Client;
use crate::rt::buffer::Buffer;
use memchr::memmem;
use std::io::ErrorKind;

/// The wish, as a refusal may name it.
const NAMES: [&[u8]; 2] = [b"stream_options", b"include_usage"];

/// Whether a refusal names the wish. Reads what there is of a short body, and what is read stays in
/// the exchange.
pub async fn names_wish(
    client: &Client,
    response: &ResponseHead,
    got: &mut Option<Exchange>,
) -> bool {
    let Some(got) = got.as_mut() else { return false };
    client.post.arm(REFUSED_ANSWER_WAIT);
    loop {
        let bytes = got.bytes.get_or_insert_with(Buffer::take);
        let body = bytes.get(got.head_len..).unwrap_or_default();
        if NAMES.into_iter().any(|name| memmem::find(body, name).is_some()) {
            return true;
        }
        let is_whole = match response.content_length {
            Some(length) => body.len() as u64 >= length,
            None => body.ends_with(b"0\r\n\r\n"),
        };
        if is_whole || body.len() >= REFUSED_ANSWER_BYTES_MAX {
            return false;
        }
        // Whatever ends the reading is met again by whoever sends the answer on.
        if !matches!(client.post.attended(got.lease.link().readable()).await, Ok(Ok(()))) {
            return false;
        }
        let Some(bytes) = got.bytes.as_mut() else { return false };
        if bytes.len() == bytes.capacity() {
            bytes.reserve(REFUSED_ANSWER_BYTES_MAX);
        }
        match got.lease.link().try_recv(bytes) {
            Ok(n) if n > 0 => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return false,
        }
    }
}
