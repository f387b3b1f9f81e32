//! `routing.hold_preamble`: what a stream begins with is held back until its model says something.
//! Some engines answer 200 and say then, in the first event, that they are overloaded or broken;
//! while the client has nothing of that, another engine may answer instead.

use crate::base::limits::HELD_BYTES_MAX;
use crate::http::response::ResponseHead;
use crate::llm::dialect::Dialect;
use crate::llm::sse::EventFraming;
use crate::llm::usage::UsageScan;
use crate::proxy::client::Client;
use crate::proxy::relay::framing::{Inbound, Sections};
use crate::proxy::upstream::exchange::Exchange;
use crate::rt::buffer::Buffer;
use memchr::memmem;
use std::io::ErrorKind;
use std::time::Duration;

/// How TGI and SGLang say that they are full, under whatever code.
const OVERLOADED: [&[u8]; 2] = [b"overloaded", b"queue is full"];

/// What a stream has said so far.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// Nothing that a client could not do without.
    Nothing,
    /// Something that is for the client.
    Something,
    /// An error, for which this status stands, before anything else.
    Error(u16),
}

/// Reads a stream until its model says something, for so long at most. `Some`: it told of an error
/// before that, for which this status stands. What is read stays in the exchange.
pub(super) async fn hold(
    client: &Client,
    (response, dialect): (&ResponseHead, Dialect),
    got: &mut Exchange,
    time: Duration,
) -> Option<u16> {
    client.post.arm(time);
    loop {
        let bytes = got.bytes.get_or_insert_with(Buffer::take);
        let body = bytes.get(got.head_len..).unwrap_or_default();
        match said(response, dialect, body) {
            Said::Nothing => {}
            Said::Something => return None,
            Said::Error(status) => return Some(status),
        }
        if body.len() >= HELD_BYTES_MAX || bytes.len() == bytes.capacity() {
            return None;
        }
        // Whatever ends the wait is met again by whoever sends the answer on.
        if !matches!(client.post.attended(got.lease.link().readable()).await, Ok(Ok(()))) {
            return None;
        }
        let bytes = got.bytes.as_mut()?;
        match got.lease.link().try_recv(bytes) {
            Ok(n) if n > 0 => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return None,
        }
    }
}

/// Looks at all of what came, each time anew: it is little.
fn said(response: &ResponseHead, dialect: Dialect, mut body: &[u8]) -> Said {
    let (mut inbound, mut sections) = (Inbound::new(response.framing), Sections::default());
    let mut scan = UsageScan::default();
    scan.expect(dialect, Some(EventFraming::Events));
    let whole = body;
    while !body.is_empty() {
        let progress = inbound.decode(body, false, &mut sections);
        sections.for_each_data(body, |data| scan.feed(data));
        body = body.get(progress.consumed..).unwrap_or_default();
        if progress.finished || progress.broken.is_some() {
            break;
        }
    }
    let facts = scan.facts();
    if facts.content_events() > 0 || facts.choices().first_ended().is_some() {
        return Said::Something;
    }
    if facts.error() {
        return Said::Error(status_of(facts.error_code(), whole));
    }
    match scan.done() || facts.native_end() {
        true => Said::Something,
        false => Said::Nothing,
    }
}

/// The status that an engine would have answered with, had it not begun already.
fn status_of(code: Option<&str>, body: &[u8]) -> u16 {
    let is_full = OVERLOADED.into_iter().any(|words| memmem::find(body, words).is_some());
    let told = code.and_then(|code| code.parse().ok()).filter(|code| (400..600).contains(code));
    if is_full {
        503
    } else {
        told.unwrap_or(500)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::HEAD_BYTES_MAX;
    use crate::http::request::Method;

    const ROLE: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    const TEXT: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\n";

    fn said_of(dialect: Dialect, events: &str) -> Said {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
        let mut response = ResponseHead::default();
        response.parse(head.as_bytes(), Method::Post, HEAD_BYTES_MAX).unwrap();
        let body = format!("{:x}\r\n{events}\r\n", events.len());
        // However it is cut, what was not said yet is nothing.
        for end in 0..body.len() {
            let early = said(&response, dialect, &body.as_bytes()[..end]);
            assert!(early == Said::Nothing || early == said(&response, dialect, body.as_bytes()));
        }
        said(&response, dialect, body.as_bytes())
    }

    /// Catches: a stream that is held though its model speaks, one that is let go though it has
    /// only said who speaks, and an error whose status decides wrongly whether it is retried.
    #[test]
    fn what_engines_begin_with() {
        let chat = |events: &str| said_of(Dialect::OpenAi, events);
        assert_eq!(chat(ROLE), Said::Nothing);
        assert_eq!(chat(&format!("{ROLE}{TEXT}")), Said::Something);
        assert_eq!(chat("data: [DONE]\n\n"), Said::Something);
        for (event, status) in [
            (r#"{"error": {"message": "oh", "type": "InternalServerError", "code": 500}}"#, 500),
            (
                r#"{"error": {"object": "error", "message": "The request queue is full.", "code": 503}}"#,
                503,
            ),
            (r#"{"error":{"message":"Model is overloaded","http_status_code":422}}"#, 503),
            (r#"{"error":{"message":"too long","code":400}}"#, 400),
            (r#"{"error":{"message":"oh","code":"x"}}"#, 500),
        ] {
            let event = format!("data: {event}\n\n");
            assert_eq!(chat(&event), Said::Error(status), "{event}");
            assert_eq!(chat(&format!("{ROLE}{event}")), Said::Error(status), "{event}");
            assert_eq!(chat(&format!("{TEXT}{event}")), Said::Something, "{event}");
        }
    }
}
