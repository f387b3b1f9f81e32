use super::*;
use crate::base::limits::{FIELD_NAME_BYTES_MAX, HEAD_BYTES_MAX, HEAD_FIELDS_MAX};

fn parse(text: &[u8]) -> Result<RequestHead, Refusal> {
    let mut head = RequestHead::default();
    match head.parse(text, HEAD_BYTES_MAX)? {
        Parse::Done { .. } => Ok(head),
        Parse::Partial => panic!("not a whole head: {:?}", String::from_utf8_lossy(text)),
    }
}

/// A POST with the given field lines.
fn post(fields: &str) -> Result<RequestHead, Refusal> {
    parse(format!("POST /v1/x HTTP/1.1\r\nHost: h\r\n{fields}\r\n").as_bytes())
}

fn refused(text: &[u8]) -> (u16, &'static str) {
    let refusal = parse(text).expect_err(&String::from_utf8_lossy(text));
    assert!(refusal.close, "the framing is in doubt");
    (refusal.status, refusal.code)
}

fn refused_post(fields: &str) -> (u16, &'static str) {
    refused(format!("POST /v1/x HTTP/1.1\r\nHost: h\r\n{fields}\r\n").as_bytes())
}

#[test]
fn a_usual_request_is_understood() {
    let text = b"POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: api.test:8000\r\n\
        Authorization: Bearer x\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\
        Expect: 100-Continue\r\nX-Empty:\r\n\r\nBODY";
    let mut head = RequestHead::default();
    let done = head.parse(text, HEAD_BYTES_MAX).unwrap();
    assert_eq!(done, Parse::Done { len: text.len() - 4 });
    assert_eq!(head.method, Method::Post);
    assert_eq!(head.target().of(text), b"/v1/chat/completions?a=b");
    assert_eq!(head.path(text), b"/v1/chat/completions");
    assert_eq!(head.host.unwrap().of(text), b"api.test:8000");
    assert_eq!(head.framing, Framing::Length(12));
    assert!(head.keep_alive && head.expect_continue);
    assert_eq!(head.fields.len(), 6);
    assert_eq!(head.first(text, Known::Authorization), Some(b"Bearer x".as_slice()));
    assert_eq!(head.named(text, "x-empty"), Some(b"".as_slice()));
    assert_eq!(head.named(text, "x-none"), None);
}

/// Bytes of a request must not leak into the next one on the connection.
#[test]
fn reset_forgets_everything_but_capacity() {
    let mut head = RequestHead::default();
    let first = b"\r\nGET /a HTTP/1.0\r\nHost: h\r\nExpect: 100-continue\r\n\r\n";
    head.parse(first, HEAD_BYTES_MAX).unwrap();
    let capacity = head.fields.capacity();
    head.reset();
    assert_eq!(head.fields.capacity(), capacity);
    let second = b"POST /b HTTP/1.1\r\nHost: i\r\n\r\n";
    assert_eq!(head.parse(second, HEAD_BYTES_MAX).unwrap(), Parse::Done { len: second.len() });
    assert_eq!(head.host.unwrap().of(second), b"i");
    assert_eq!((head.version, head.fields.len()), (Version::Http11, 1));
}

#[test]
fn transfer_encoding_rules() {
    assert_eq!(post("Transfer-Encoding: chunked\r\n").unwrap().framing, Framing::Chunked);
    assert_eq!(post("Transfer-Encoding: \t CHUNKED \t\r\n").unwrap().framing, Framing::Chunked);
    let both = (400, "content_length_and_transfer_encoding");
    assert_eq!(refused_post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"), both);
    assert_eq!(refused_post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"), both);
    let bad = (400, "bad_transfer_encoding");
    // CVE-2022-32213 to -32215, CVE-2024-1135: odd values that were ignored.
    for value in ["", "xchunked", "chunked, chunked", "chunked;", "chunked , x", "\"chunked\""] {
        assert_eq!(refused_post(&format!("Transfer-Encoding: {value}\r\n")), bad, "{value:?}");
    }
    assert_eq!(refused_post("Transfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n"), bad);
    let other = (501, "transfer_coding_not_implemented");
    assert_eq!(refused_post("Transfer-Encoding: gzip, chunked\r\n"), other);
    assert_eq!(refused_post("Transfer-Encoding: identity\r\n"), other);
    // CVE-2026-2835: HTTP/1.0 with a transfer coding.
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(refused(old), (400, "transfer_encoding_on_http10"));
    let look_alike = (400, "framing_look_alike");
    for name in ["Transfer_Encoding", "Content_Length", "Transfer--Encoding", "ContentLength"] {
        assert_eq!(refused_post(&format!("{name}: 3\r\n")), look_alike, "{name}");
    }
}

#[test]
fn content_length_rules() {
    assert_eq!(post("Content-Length: 0\r\n").unwrap().framing, Framing::Length(0));
    assert_eq!(post("").unwrap().framing, Framing::None);
    let twice = (400, "duplicate_content_length");
    assert_eq!(refused_post("Content-Length: 3\r\nContent-Length: 3\r\n"), twice);
    // CVE-2021-32715: the plus sign.
    for value in ["", "+3", "-3", "3 3", "3, 3", "3,3", "0x3", "3_0", "3.0", "a"] {
        let line = format!("Content-Length: {value}\r\n");
        assert_eq!(refused_post(&line), (400, "bad_content_length"), "{value:?}");
    }
    let wide = "18446744073709551617";
    let line = format!("Content-Length: {wide}\r\n");
    assert_eq!(refused_post(&line), (400, "bad_content_length"));
}

#[test]
fn field_line_rules() {
    let bad = (400, "bad_field_line");
    // CVE-2023-25725: an empty name once ended the list of fields.
    for line in [
        "Name : v\r\n",
        "Name\t: v\r\n",
        " Name: v\r\n",
        "\tName: v\r\n",
        ": v\r\n",
        "Na me: v\r\n",
        "Name\r\n",
        "Na(me: v\r\n",
        "N\u{e9}: v\r\n",
        "a: b\r\n folded\r\n",
        "a: b\r\n\tfolded\r\n",
    ] {
        assert_eq!(refused_post(line), bad, "{line:?}");
    }
    let control = (400, "control_character");
    for line in ["a: b\0c\r\n", "a: b\x01\r\n", "a: \x7f\r\n", "a: b\x0bc\r\n", "a: b\rc\r\n"] {
        assert_eq!(refused_post(line), control, "{line:?}");
    }
    assert_eq!(refused_post("a: b\r\r\n"), control);
    let text = b"POST / HTTP/1.1\r\nHost: h\r\n\xe4: tab\tand 8-bit\r\n\r\n";
    assert_eq!(refused(text), bad);
    let fine = b"POST / HTTP/1.1\r\nHost: h\r\na:  tab\tand \xe4  \r\n\r\n";
    assert_eq!(parse(fine).unwrap().named(fine, "A"), Some(b"tab\tand \xe4".as_slice()));
}

#[test]
fn line_end_rules() {
    let bare = (400, "bare_line_feed");
    assert_eq!(refused(b"GET / HTTP/1.1\nHost: h\n\n"), bare);
    assert_eq!(refused(b"GET / HTTP/1.1\r\nHost: h\na: b\r\n\r\n"), bare);
    assert_eq!(refused(b"GET / HTTP/1.1\r\nHost: h\r\n\n"), bare);
    assert_eq!(refused(b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"), bare);
    assert!(parse(b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n").is_ok());
    assert_eq!(refused(b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"), (400, "empty_lines"));
    // CVE-2023-30589: a lone CR as line end.
    assert_eq!(refused(b"GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n"), (400, "control_character"));
}

#[test]
fn request_line_rules() {
    let bad = (400, "bad_request_line");
    for line in [
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET /",
        "GET\t/ HTTP/1.1",
        "GET / a HTTP/1.1",
        "GET / http/1.1",
        "GET / HTTP/1.2",
        "GET / HTTP/1",
        "GET / HTTP/01.1",
        "GET / HTTP/1.10",
        "GET / HTTPS/1.1",
        "GET HTTP/1.1",
        "G(T / HTTP/1.1",
    ] {
        let text = format!("{line}\r\nHost: h\r\n\r\n");
        let (status, code) = refused(text.as_bytes());
        assert!((status, code) == bad || code == "control_character", "{line:?} {code}");
    }
    for version in ["HTTP/2.0", "HTTP/0.9", "HTTP/3.0"] {
        let text = format!("GET / {version}\r\nHost: h\r\n\r\n");
        assert_eq!(refused(text.as_bytes()), (505, "http_version_not_supported"), "{version}");
    }
    assert_eq!(refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), (505, "http_version_not_supported"));
    // CVE-2023-45539: `#` in the path.
    for target in ["/a#b", "/\u{e9}", "a", "host:443", "ftp://h/"] {
        let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        let (status, code) = refused(text.as_bytes());
        assert!(matches!((status, code), (400, "bad_target" | "bad_request_line")), "{target:?}");
    }
}

#[test]
fn method_rules() {
    for (line, answer) in [
        ("CONNECT h:443", (405, "method_not_allowed")),
        ("TRACE /", (405, "method_not_allowed")),
        ("GET *", (405, "method_not_allowed")),
        ("get /", (501, "method_not_implemented")),
        ("G_T /", (501, "method_not_implemented")),
        ("PRI /", (501, "method_not_implemented")),
        ("ANNOUNCE /", (501, "method_not_implemented")),
        ("PROPFIND /", (501, "method_not_implemented")),
        ("GETX /", (501, "method_not_implemented")),
        ("VERSION-CONTROL /", (501, "method_not_implemented")),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG /", (501, "method_not_implemented")),
    ] {
        let text = format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(refused(text.as_bytes()), answer, "{line}");
    }
    let text = b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(parse(text).unwrap().path(text), b"*");
}

#[test]
fn host_rules() {
    assert_eq!(refused(b"GET / HTTP/1.1\r\n\r\n"), (400, "missing_host"));
    assert!(parse(b"GET / HTTP/1.0\r\n\r\n").unwrap().host.is_none());
    let twice = b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n";
    assert_eq!(refused(twice), (400, "duplicate_host"));
    for host in ["", "a b", "a/b", "u@h", "a:b", "h, i", "[::1", "a#b"] {
        let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(refused(text.as_bytes()), (400, "bad_host"), "{host:?}");
    }
    let text = b"GET http://other:81/p?q HTTP/1.1\r\nHost: h\r\n\r\n";
    let head = parse(text).unwrap();
    assert_eq!(head.host.unwrap().of(text), b"other:81");
    assert_eq!((head.target().of(text), head.path(text)), (b"/p?q".as_slice(), b"/p".as_slice()));
    let text = b"GET http://other HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(parse(text).unwrap().path(text), b"/");
    assert_eq!(refused(b"GET http://other/ HTTP/1.1\r\n\r\n"), (400, "missing_host"));
}

#[test]
fn expect_rules() {
    let body = "Content-Length: 3\r\n";
    assert!(post(&format!("{body}Expect: 100-continue\r\n")).unwrap().expect_continue);
    // Nobody waits where no body follows.
    assert!(!post("Expect: 100-continue\r\n").unwrap().expect_continue);
    let old = b"POST / HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
    assert!(!parse(old).unwrap().expect_continue);
    let failed = (417, "expectation_failed");
    assert_eq!(refused_post("Expect: 100-continue, x\r\n"), failed);
    assert_eq!(refused_post("Expect: 200-ok\r\n"), failed);
    assert_eq!(refused_post("Expect:\r\n"), failed);
}

#[test]
fn connection_rules() {
    let stays = |fields: &str, name: &str| {
        let text = format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let head = parse(text.as_bytes()).unwrap();
        let of = |f: &Field| f.name.of(text.as_bytes()).eq_ignore_ascii_case(name.as_bytes());
        let found: Vec<bool> = head.fields.iter().filter(|f| of(f)).map(|f| f.stays).collect();
        assert!(!found.is_empty(), "{name} is not there");
        found.iter().all(|s| *s)
    };
    // All Connection lines count, before and after the field they nominate.
    let two =
        "Connection: x-a\r\nX-A: 1\r\nX-B: 2\r\nX-C: 3\r\nConnection: close, X-b\r\nx-a: 4\r\n";
    assert!(stays(two, "x-a") && stays(two, "x-b") && !stays(two, "x-c"));
    for name in ["Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Upgrade", "X_under"] {
        assert!(stays(&format!("{name}: x\r\n"), name), "{name}");
    }
    for name in
        ["Host", "content-length", "Authorization", "Cookie", "X-Forwarded-For", "X-Forwarded-Any"]
    {
        let line = format!("Connection: keep-alive, {name}\r\n");
        assert_eq!(refused_post(&line), (400, "protected_field_nominated"), "{name}");
    }
    assert_eq!(refused_post("Connection: a b\r\n"), (400, "bad_connection_option"));
    assert!(post("Connection: Keep-Alive\r\n").unwrap().keep_alive);
    assert!(!post("Connection: keep-alive\r\nConnection: close\r\n").unwrap().keep_alive);
    assert!(!parse(b"GET / HTTP/1.0\r\n\r\n").unwrap().keep_alive);
    assert!(parse(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap().keep_alive);
}

/// Servers disagree whether GET has a body; the connection must not outlive the doubt.
#[test]
fn a_body_without_meaning_ends_the_connection() {
    for (line, alive) in [
        ("GET / HTTP/1.1\r\nContent-Length: 3", false),
        ("HEAD / HTTP/1.1\r\nTransfer-Encoding: chunked", false),
        ("GET / HTTP/1.1\r\nContent-Length: 0", true),
        ("PUT / HTTP/1.1\r\nContent-Length: 3", true),
    ] {
        let text = format!("{line}\r\nHost: h\r\n\r\n");
        assert_eq!(parse(text.as_bytes()).unwrap().keep_alive, alive, "{line:?}");
    }
}

#[test]
fn limits() {
    let field =
        |name: usize, value: usize| format!("{}: {}\r\n", "n".repeat(name), "v".repeat(value));
    let value_max = FIELD_LINE_BYTES_MAX - FIELD_NAME_BYTES_MAX - ": \r\n".len();
    assert!(post(&field(FIELD_NAME_BYTES_MAX, value_max)).is_ok());
    let long = refused_post(&field(FIELD_NAME_BYTES_MAX, value_max + 1));
    assert_eq!(long, (431, "field_too_long"));
    assert_eq!(refused_post(&field(FIELD_NAME_BYTES_MAX + 1, 1)), (431, "field_name_too_long"));
    assert_eq!(refused_post(&field(1, HEAD_BYTES_MAX)), (431, "head_too_large"));
    let lines = |n: usize| "a: b\r\n".repeat(n);
    assert!(post(&lines(HEAD_FIELDS_MAX - 1)).is_ok());
    assert_eq!(refused_post(&lines(HEAD_FIELDS_MAX)), (431, "too_many_fields"));
    let get = |n: usize| format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(n));
    assert!(parse(get(TARGET_BYTES_MAX - 1).as_bytes()).is_ok());
    for length in [TARGET_BYTES_MAX, HEAD_BYTES_MAX + 1] {
        assert_eq!(refused(get(length).as_bytes()), (414, "target_too_long"), "{length}");
    }
}

/// A peer that never ends its head must be told at the byte that is wrong.
#[test]
fn an_unfinished_head_is_refused_as_soon_as_it_is_wrong() {
    for text in [
        "GET /\r\n",
        "GET / HTTP/2.0\r\n",
        "GET /# HTTP/1.1\r\n",
        "get / HTTP/1.1\r\n",
        "GET / HTTP/1.1\n",
        "GET / HTTP/1.1\r\na : b\r\n",
        "GET / HTTP/1.1\r\n a: b\r\n",
        "GET / HTTP/1.1\r\na: \x01",
        "\r\n\r\n",
        "\x16\x03\x01\x02",
    ] {
        assert!(RequestHead::default().parse(text.as_bytes(), HEAD_BYTES_MAX).is_err(), "{text:?}");
        // The same byte by byte: some prefix is refused.
        let mut head = RequestHead::default();
        let mut prefixes = (1..=text.len()).map(|n| head.parse(&text.as_bytes()[..n], 65_536));
        assert!(prefixes.any(|parsed| parsed.is_err()), "{text:?}");
    }
    let long = format!("GET /{}", "a".repeat(TARGET_BYTES_MAX + 100));
    let refusal = RequestHead::default().parse(long.as_bytes(), HEAD_BYTES_MAX).unwrap_err();
    assert_eq!(refusal.status, 414);
}
