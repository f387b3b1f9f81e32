use super::*;
use crate::base::limits::HEAD_BYTES_MAX;

fn parse_for(request: Method, text: &[u8]) -> Result<ResponseHead, BadResponse> {
    let mut head = ResponseHead::default();
    match head.parse(text, request, HEAD_BYTES_MAX)? {
        Parse::Done { .. } => Ok(head),
        Parse::Partial => panic!("not a whole head: {:?}", String::from_utf8_lossy(text)),
    }
}

fn parse(text: &str) -> Result<ResponseHead, BadResponse> {
    parse_for(Method::Post, text.as_bytes())
}

fn with(fields: &str) -> Result<ResponseHead, BadResponse> {
    parse(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"))
}

#[test]
fn a_usual_stream_is_understood() {
    let text = b"HTTP/1.1 200 OK\r\ndate: x\r\nserver: uvicorn\r\n\
        content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n6";
    let mut head = ResponseHead::default();
    let done = head.parse(text, Method::Post, HEAD_BYTES_MAX).unwrap();
    assert_eq!(done, Parse::Done { len: text.len() - 1 });
    assert_eq!((head.status, head.reason.of(text)), (200, b"OK".as_slice()));
    assert_eq!(head.framing, ResponseFraming::Chunked);
    assert!(head.event_stream && head.keep_alive && !head.json && !head.encoded);
    assert_eq!(head.named(text, "Server"), Some(b"uvicorn".as_slice()));
    head.reset();
    assert!(!head.event_stream && head.fields.is_empty());
}

#[test]
fn framing_follows_the_order_of_rfc_9112() {
    use ResponseFraming::{Chunked, Length, None, UntilClose};
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n";
    let cases = [
        (Method::Get, length, Length(5)),
        (Method::Get, chunked, Chunked),
        (Method::Get, "HTTP/1.1 200 OK\r\n\r\n", UntilClose),
        (Method::Head, length, None),
        (Method::Head, chunked, None),
        (Method::Get, "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", None),
        (Method::Get, "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        (Method::Get, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", None),
        (Method::Get, "HTTP/1.1 100 Continue\r\n\r\n", None),
        (Method::Get, "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n", None),
    ];
    for (method, text, framing) in cases {
        assert_eq!(parse_for(method, text.as_bytes()).unwrap().framing, framing, "{text:?}");
    }
    let head = parse_for(Method::Head, length.as_bytes()).unwrap();
    assert_eq!(head.content_length, Some(5), "a HEAD answer echoes it");
}

#[test]
fn doubtful_framing_is_bad() {
    for (fields, code) in [
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "content_length_and_transfer_encoding",
        ),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "duplicate_content_length"),
        ("Content-Length: 5, 5\r\n", "bad_content_length"),
        ("Content-Length: +5\r\n", "bad_content_length"),
        ("Transfer-Encoding: gzip, chunked\r\n", "transfer_coding_not_implemented"),
        ("Transfer-Encoding: chunked, chunked\r\n", "bad_transfer_encoding"),
        ("Transfer-Encoding : chunked\r\n", "bad_field_line"),
        ("Content_Length: 5\r\n", "framing_look_alike"),
        ("a: b\r\n c\r\n", "bad_field_line"),
        ("a: b\nc: d\r\n", "bare_line_feed"),
        ("a: b\0\r\n", "control_character"),
        ("Connection: a b\r\n", "bad_connection_option"),
    ] {
        assert_eq!(with(fields).unwrap_err(), BadResponse(code), "{fields:?}");
    }
    let old = parse("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(old.unwrap_err(), BadResponse("transfer_encoding_on_http10"));
    // Also where there is no body: the backend is confused about something.
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n";
    assert!(parse_for(Method::Head, head).is_err());
}

#[test]
fn status_line_rules() {
    for (line, reason) in [
        ("HTTP/1.1 200 OK", "OK"),
        ("HTTP/1.1 200 ", ""),
        ("HTTP/1.1 200", ""),
        ("HTTP/1.0 404 Not  Found", "Not  Found"),
        ("HTTP/1.1 599 \u{e9}", "\u{e9}"),
    ] {
        let text = format!("{line}\r\nContent-Length: 0\r\n\r\n");
        let head = parse(&text).unwrap();
        assert_eq!(head.reason.of(text.as_bytes()), reason.as_bytes(), "{line:?}");
    }
    for line in [
        "HTTP/1.1 099 x",
        "HTTP/1.1 600 x",
        "HTTP/1.1 20 x",
        "HTTP/1.1 2000 x",
        "HTTP/1.1  200 x",
        "HTTP/2.0 200 x",
        "http/1.1 200 x",
        "HTTP/1.1 200\tx",
        "ICY 200 OK",
        " HTTP/1.1 200 x",
        "{}",
    ] {
        let text = format!("{line}\r\n\r\n");
        assert_eq!(parse(&text).unwrap_err(), BadResponse("bad_status_line"), "{line:?}");
    }
    let switch = parse("HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap_err();
    assert_eq!(switch, BadResponse("unexpected_switching_protocols"));
    assert_eq!(parse("\r\nHTTP/1.1 200 OK\r\n\r\n").unwrap_err(), BadResponse("empty_lines"));
}

/// Bytes that are no head must fail at once, not at the first-byte timeout.
#[test]
fn an_unfinished_head_is_bad_as_soon_as_it_is_wrong() {
    for text in ["<html>\r\n", "HTTP/1.1 200 OK\n", "HTTP/1.1 200 OK\r\na : b\r\n", "\0", "\r\n"] {
        let parsed = ResponseHead::default().parse(text.as_bytes(), Method::Get, HEAD_BYTES_MAX);
        assert!(parsed.is_err(), "{text:?}");
    }
}

#[test]
fn keep_alive_needs_an_end_of_the_body() {
    let alive = |text: &str| parse(text).unwrap().keep_alive;
    assert!(alive("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
    assert!(!alive("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
    assert!(!alive("HTTP/1.1 200 OK\r\n\r\n"));
    assert!(!alive("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"));
    assert!(alive("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n\r\n"));
    assert!(!alive("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\n"));
}

#[test]
fn facts_for_the_proxy() {
    let facts = |line: &str| {
        let head = with(&format!("{line}\r\nContent-Length: 0\r\n")).unwrap();
        (head.event_stream, head.json, head.encoded)
    };
    assert_eq!(facts("Content-Type: Text/Event-Stream ;charset=utf-8"), (true, false, false));
    assert_eq!(facts("Content-Type: application/json"), (false, true, false));
    assert_eq!(facts("Content-Type: application/problem+JSON; a=b"), (false, true, false));
    assert_eq!(facts("Content-Type: text/event-streams"), (false, false, false));
    assert_eq!(facts("Content-Type: json"), (false, false, false));
    assert_eq!(facts("Content-Encoding: gzip"), (false, false, true));
    assert_eq!(facts("Content-Encoding: identity"), (false, false, false));
    let retry = |value: &str| with(&format!("Retry-After: {value}\r\n")).unwrap().retry_after;
    assert_eq!(retry("120"), Some(RetryAfter::In(120)));
    let date = RetryAfter::At(946_684_799);
    assert_eq!(retry("Fri, 31 Dec 1999 23:59:59 GMT"), Some(date));
    assert_eq!(retry("99999999999"), Some(RetryAfter::In(u32::MAX)), "long, and not absent");
    assert_eq!((retry("-1"), retry("Fri, 31 Dec"), retry("")), (None, None, None));
    let wait = |millis| date.wait(millis).as_millis();
    assert_eq!((wait(946_684_798_500), wait(946_684_799_000)), (500, 0));
    assert_eq!(wait(u64::MAX), 0, "it is over");
}

/// A backend may nominate what it likes, but not what the proxy needs to be sure of.
#[test]
fn nominated_fields_stay_but_protected_ones_do_not() {
    let text = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x-a, x-request-id\r\n\
        X-A: 1\r\nX-Request-Id: r\r\n\r\n";
    let head = parse_for(Method::Get, text).unwrap();
    let stays: Vec<bool> = head.fields.iter().map(|f| f.stays).collect();
    assert_eq!(stays, [true, true, true, false]);
}
