use super::*;
use crate::base::limits::HEAD_BYTES_MAX;
use crate::http::head::Parse;
use crate::http::request::{Method, RequestHead};
use crate::http::response::ResponseHead;
use proptest::prelude::*;

fn is_plain_request(head: &[u8]) -> bool {
    request_line(head).is_some_and(|line| fields(head, line.end, &mut Vec::new()).is_some())
}

fn is_plain_response(head: &[u8]) -> bool {
    status_line(head).is_some_and(|line| fields(head, line.end, &mut Vec::new()).is_some())
}

/// What was understood of a head, spans as the texts they stand for.
fn texts<'b>(fields: &[Field], bytes: &'b [u8]) -> Vec<(&'b [u8], &'b [u8], String)> {
    let text =
        |f: &Field| (f.name.of(bytes), f.value.of(bytes), format!("{:?} {}", f.known, f.stays));
    fields.iter().map(text).collect()
}

fn request_seen(bytes: &[u8], pieces: &[usize]) -> String {
    let mut head = RequestHead::default();
    for end in pieces.iter().filter(|end| **end < bytes.len()) {
        match head.parse(&bytes[..*end], HEAD_BYTES_MAX) {
            Ok(Parse::Partial) => {}
            other => return format!("{other:?}"),
        }
    }
    let parsed = head.parse(bytes, HEAD_BYTES_MAX);
    if !matches!(parsed, Ok(Parse::Done { .. })) {
        return format!("{parsed:?}");
    }
    let spans = [Some(head.method_span), Some(head.target()), Some(head.path), head.host];
    format!(
        "{parsed:?} {:?} {:?} {:?} {:?} {} {} {:?}",
        head.method,
        spans.map(|span| span.map(|span| span.of(bytes))),
        head.version,
        head.framing,
        head.keep_alive,
        head.expect_continue,
        texts(&head.fields, bytes)
    )
}

fn response_seen(bytes: &[u8], pieces: &[usize]) -> String {
    let mut head = ResponseHead::default();
    for end in pieces.iter().filter(|end| **end < bytes.len()) {
        match head.parse(&bytes[..*end], Method::Get, HEAD_BYTES_MAX) {
            Ok(Parse::Partial) => {}
            other => return format!("{other:?}"),
        }
    }
    let parsed = head.parse(bytes, Method::Get, HEAD_BYTES_MAX);
    if !matches!(parsed, Ok(Parse::Done { .. })) {
        return format!("{parsed:?}");
    }
    format!(
        "{parsed:?} {} {:?} {:?} {:?} {:?} {} {:?}",
        head.status,
        head.reason.of(bytes),
        head.version,
        head.framing,
        head.content_length,
        head.keep_alive,
        texts(&head.fields, bytes)
    )
}

#[test]
fn heads_of_clients_and_engines_are_plain() {
    let curl =
        b"POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: h:8080\r\nUser-Agent: curl/8.5.0\r\n\
        Accept: */*\r\nAuthorization: Bearer sk-1\r\nContent-Type: application/json\r\n\
        Content-Length: 9\r\n\r\n{\"a\": 1}\n";
    assert!(is_plain_request(curl));
    let vllm = b"HTTP/1.1 200 OK\r\ndate: Thu, 1 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n\
        content-length: 2\r\ncontent-type: application/json\r\n\r\n{}";
    assert!(is_plain_response(vllm));
    let mut found = Vec::new();
    let line = status_line(vllm).unwrap();
    assert_eq!(fields(vllm, line.end, &mut found), Some(vllm.len() - 2));
    assert_eq!(found[1].value.of(vllm), b"uvicorn");
}

#[test]
fn what_is_odd_is_not_plain() {
    for odd in [
        "",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\x7f\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\n: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        "get / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert!(!is_plain_request(odd.as_bytes()), "{odd:?}");
    }
    for odd in [
        "HTTP/1.1 200\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 2x0 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\n\r\n",
        "HTTP/1.1 200 \u{e9}\r\n\r\n",
    ] {
        assert!(!is_plain_response(odd.as_bytes()), "{odd:?}");
    }
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(HEAD_FIELDS_MAX + 1));
    assert!(!is_plain_response(many.as_bytes()));
    assert!(is_plain_response(many.replacen("a: b\r\n", "", 1).as_bytes()));
    let long = format!("HTTP/1.1 200 OK\r\n{}: b\r\n\r\n", "a".repeat(FIELD_NAME_BYTES_MAX + 1));
    assert!(!is_plain_response(long.as_bytes()));
}

#[test]
fn every_byte_ends_a_run_or_does_not() {
    for byte in 0..=u8::MAX {
        for at in 0..10 {
            let mut text = [b'x'; 10];
            text[at] = byte;
            let control = (byte < 0x20 && byte != b'\t') || byte == 0x7f;
            assert_eq!(value_len(&text), if control { at } else { 10 }, "{byte} at {at}");
        }
    }
}

/// Pieces of which most heads are plain and many are nearly so.
fn pieces() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        proptest::sample::select(vec![
            "Host: h\r\n",
            "host:h2\r\n",
            "Content-Length: 3\r\n",
            "Content-Length: 3\r\n",
            "Transfer-Encoding: chunked\r\n",
            "A:\r\n",
            "B: \t c \t\r\n",
            "Connection: close\r\n",
            "Connection: x-a, keep-alive\r\n",
            "X-A: 1\r\n",
            "X_B: 2\r\n",
            "Te: x\r\n",
            "Expect: 100-continue\r\n",
            "Content_Length: 1\r\n",
            "Retry-After: 7\r\n",
            "Content-Type: text/event-stream; charset=utf-8\r\n",
            "V: \u{e9} t\tt\r\n",
            "a b: c\r\n",
            " fold\r\n",
            ": x\r\n",
            "x\r\n",
            "N: l\n",
            "R: \r \r\n",
            "Z: \0\r\n",
            "X-Forwarded-For: 1.2.3.4\r\n",
            "x-request-id: ab\r\n",
            "\r\n",
        ]),
        0..7,
    )
    .prop_map(|lines| lines.concat())
}

proptest! {
    /// A head that comes in two pieces is read line by line and by `httparse`.
    #[test]
    fn a_request_in_one_piece_is_what_it_is_in_two(
        first in proptest::sample::select(vec![
            "GET / HTTP/1.1\r\n", "POST /v1/x?y#z HTTP/1.1\r\n", "POST http://o:1/p HTTP/1.1\r\n",
            "OPTIONS * HTTP/1.1\r\n", "GET /a HTTP/1.0\r\n", "FOO-BAR /a HTTP/1.1\r\n",
            "TRACE / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: first\r\n", "POST /%2e~\" HTTP/1.1\r\nHost: q\r\n",
        ]),
        lines in pieces(),
        cut in 1usize..60,
    ) {
        let head = format!("{first}{lines}\r\nbody\r\n\r\n");
        let whole = request_seen(head.as_bytes(), &[]);
        if is_plain_request(head.as_bytes()) {
            prop_assert_eq!(&whole, &request_seen(head.as_bytes(), &[1]));
            prop_assert_eq!(&whole, &request_seen(head.as_bytes(), &[cut.min(first.len() - 1)]));
        }
    }

    /// The same of an answer.
    #[test]
    fn an_answer_in_one_piece_is_what_it_is_in_two(
        first in proptest::sample::select(vec![
            "HTTP/1.1 200 OK\r\n", "HTTP/1.0 404 Not Found\r\n", "HTTP/1.1 204 \r\n",
            "HTTP/1.1 099 x\r\n", "HTTP/1.1 600 x\r\n", "HTTP/1.1 101 Up\r\n", "HTTP/1.1 103 Hints\r\n",
        ]),
        lines in pieces(),
        cut in 1usize..15,
    ) {
        let head = format!("{first}{lines}\r\nbody\r\n\r\n");
        let whole = response_seen(head.as_bytes(), &[]);
        if is_plain_response(head.as_bytes()) {
            prop_assert_eq!(&whole, &response_seen(head.as_bytes(), &[cut]));
        }
    }
}
