//! `routing.hold_preamble`: what a stream begins with is held back until its model says something.
//! Some engines answer 200 and say then, in the first event, that they are overloaded or broken;
//! while the client has nothing of that, another engine may answer instead.

use crate::base::limits::HELD_BYTES_MAX;
use crate::http::framing::ResponseFraming;
use crate::http::response::ResponseHead;
use crate::llm::dialect::Dialect;
use crate::llm::error;
use crate::llm::sse::EventFraming;
use crate::llm::usage::UsageScan;
use crate::proxy::client::Client;
use crate::proxy::relay::framing::{Inbound, Sections};
use crate::proxy::upstream::exchange::Exchange;
use crate::rt::buffer::Buffer;
use std::io::ErrorKind;
use std::time::Duration;

/// What a stream has said so far.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// Nothing that a client could not do without.
    Nothing,
    /// Something that is for the client.
    Something,
    /// An error, for which this status stands, before anything else; whether it is that it is full.
    Error(u16, bool),
    /// What is no stream.
    Broken,
}

/// What comes of holding a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// It is for the client: its model spoke, or it ended well.
    Spoke,
    /// It is for the client, since it cannot be held any longer: time is over, or room.
    Late,
    /// It told of an error before its model said anything, for which this status stands; or that it
    /// is full, in which case the last is true.
    Error(u16, bool),
    /// It broke before its model said anything.
    Broke,
}

impl Held {
    /// Its place in [`crate::state::meters::HELD`].
    pub(super) fn index(&self) -> usize {
        match self {
            Held::Spoke => 0,
            Held::Late => 1,
            Held::Error(..) => 2,
            Held::Broke => 3,
        }
    }
}

/// True for streams of which it is known when their model says something.
pub(super) fn is_for(dialect: Dialect) -> bool {
    !matches!(dialect, Dialect::Other | Dialect::Embeddings | Dialect::Transcriptions)
}

/// Reads a stream until its model says something, for so long at most. What is read stays in the
/// exchange.
pub(super) async fn hold(
    client: &Client,
    (response, dialect): (&ResponseHead, Dialect),
    got: &mut Exchange,
    time: Duration,
) -> Held {
    client.post.arm(time);
    loop {
        let bytes = got.bytes.get_or_insert_with(Buffer::take);
        let body = bytes.get(got.head_len..).unwrap_or_default();
        match said(response, dialect, body) {
            Said::Nothing => {}
            Said::Something => return Held::Spoke,
            Said::Error(status, is_full) => return Held::Error(status, is_full),
            Said::Broken => return Held::Broke,
        }
        if body.len() >= HELD_BYTES_MAX || bytes.len() == bytes.capacity() {
            return Held::Late;
        }
        match client.post.attended(got.lease.link().readable()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Held::Broke,
            // Time is over; or the client is gone, which whoever sends the answer on meets again.
            Err(_) => return Held::Late,
        }
        let Some(bytes) = got.bytes.as_mut() else { return Held::Late };
        match got.lease.link().try_recv(bytes) {
            Ok(n) if n > 0 => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // A body that ends with its connection is whole.
            Ok(_) if response.framing == ResponseFraming::UntilClose => return Held::Spoke,
            _ => return Held::Broke,
        }
    }
}

/// Looks at all of what came, each time anew: it is little.
fn said(response: &ResponseHead, dialect: Dialect, mut body: &[u8]) -> Said {
    let (mut inbound, mut sections) = (Inbound::new(response.framing), Sections::default());
    let mut scan = UsageScan::default();
    scan.expect(dialect, Some(EventFraming::Events));
    let (whole, mut is_over, mut is_broken) = (body, false, false);
    while !body.is_empty() {
        let progress = inbound.decode(body, false, &mut sections);
        sections.for_each_data(body, |data| scan.feed(data));
        body = body.get(progress.consumed..).unwrap_or_default();
        (is_over, is_broken) = (progress.finished, progress.broken.is_some());
        if is_over || is_broken {
            break;
        }
    }
    let facts = scan.facts();
    if facts.content_events() > 0 || facts.choices().first_ended().is_some() {
        return Said::Something;
    }
    if facts.error() {
        return said_error(facts.error_code(), whole);
    }
    match scan.done() || facts.native_end() || is_over {
        true => Said::Something,
        false if is_broken => Said::Broken,
        false => Said::Nothing,
    }
}

/// An error, with the status that the engine would have answered with, had it not begun already.
fn said_error(code: Option<&str>, body: &[u8]) -> Said {
    match error::says_full(body) {
        true => Said::Error(503, true),
        false => Said::Error(error::status_inside(code), false),
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
        for (event, status, is_full) in [
            (
                r#"{"error": {"message": "oh", "type": "InternalServerError", "code": 500}}"#,
                500,
                false,
            ),
            (
                r#"{"error": {"object": "error", "message": "The request queue is full.", "code": 503}}"#,
                503,
                true,
            ),
            (r#"{"error":{"message":"Model is overloaded","http_status_code":422}}"#, 503, true),
            (r#"{"error":{"message":"too long","code":400}}"#, 400, false),
            (r#"{"error":{"message":"oh","code":"x"}}"#, 500, false),
        ] {
            let event = format!("data: {event}\n\n");
            let error = Said::Error(status, is_full);
            assert_eq!(chat(&event), error, "{event}");
            assert_eq!(chat(&format!("{ROLE}{event}")), error, "{event}");
            assert_eq!(chat(&format!("{TEXT}{event}")), Said::Something, "{event}");
        }
    }
}
