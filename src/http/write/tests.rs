use super::*;
use crate::base::limits::HEAD_BYTES_MAX;
use crate::http::request::Method;

const HOW: ForwardRequest<'static> = ForwardRequest {
    base_path: "",
    host: "engine:9",
    body_len: None,
    request_id: "rid",
    drop: &[],
    set: &[],
    identity: &[],
    client_ip: "1.2.3.4",
    via: "hop",
    client_scheme: "http",
    plain_answer: false,
    trust_forwarded: false,
    trace: None,
};

fn forward(client: &str, how: &ForwardRequest<'_>) -> String {
    let mut head = RequestHead::default();
    head.parse(client.as_bytes(), HEAD_BYTES_MAX).unwrap();
    let mut out = Vec::new();
    request(&mut out, &head, client.as_bytes(), how);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_request_is_written_anew() {
    let client = "POST /v1/x?q=1 HTTP/1.1\r\nHost: gw\r\nUser-Agent: a/1\r\nX-MiXed: Kept  Spaces\r\n\
        Authorization: Bearer secret\r\nx-api-key: k\r\nContent-Length: 2\r\nConnection: x-hop, te\r\n\
        X-Hop: 1\r\nTE: trailers\r\nExpect: 100-continue\r\nUpgrade: h2c\r\nX_Under: 1\r\n\
        X-Request-ID: theirs\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\
        X-Real-IP: 6.6.6.6\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Proto: https\r\n\
        traceparent: 00-1-1-01\r\naccept: a\r\nAccept: b\r\n\r\n";
    let drop = ["authorization".to_owned()];
    let set = [("X-API-Key".to_owned(), Secret::new("ours"))];
    let how =
        ForwardRequest { base_path: "/base", body_len: Some(2), drop: &drop, set: &set, ..HOW };
    let sent = forward(client, &how);
    assert_eq!(
        sent,
        "POST /base/v1/x?q=1 HTTP/1.1\r\nHost: engine:9\r\nUser-Agent: a/1\r\n\
         X-MiXed: Kept  Spaces\r\ntraceparent: 00-1-1-01\r\naccept: a\r\nAccept: b\r\n\
         Content-Length: 2\r\nx-request-id: rid\r\nX-Forwarded-For: 1.2.3.4\r\n\
         X-Forwarded-Proto: http\r\nX-Forwarded-Host: gw\r\nVia: 1.1 hop\r\nX-API-Key: ours\r\n\r\n"
    );
}

/// Catches: the engine is sent the client's spelling of a path instead of what was classified.
#[test]
fn the_engine_gets_the_path_that_was_classified() {
    let mut bytes = b"GET /v1/%6dodels/?q=%2f HTTP/1.1\r\nHost: gw\r\n\r\n".to_vec();
    let mut head = RequestHead::default();
    head.parse(&bytes, HEAD_BYTES_MAX).unwrap();
    let path = head.path_range();
    let len = crate::http::path::normalise(&mut bytes[path]).unwrap().len;
    for (len, sent) in [(len, "/v1/models/"), (len - 1, "/v1/models")] {
        head.shorten_path(len);
        let mut out = Vec::new();
        request(&mut out, &head, &bytes, &HOW);
        let first = format!("GET {sent}?q=%2f HTTP/1.1\r\n");
        assert!(out.starts_with(first.as_bytes()), "{}", String::from_utf8_lossy(&out));
    }
}

#[test]
fn a_request_line_is_written_alike_however_it_came() {
    let first = |client: &str, base_path: &'static str| {
        let sent = forward(client, &ForwardRequest { base_path, ..HOW });
        sent.split_once("\r\n").unwrap().0.to_owned()
    };
    let plain = "GET /a?b HTTP/1.1\r\nHost: gw\r\n\r\n";
    assert_eq!(first(plain, ""), "GET /a?b HTTP/1.1");
    assert_eq!(first(plain, "/x"), "GET /x/a?b HTTP/1.1");
    let absolute = "GET http://gw/a HTTP/1.1\r\nHost: gw\r\n\r\n";
    assert_eq!(first(absolute, ""), "GET /a HTTP/1.1");
    assert_eq!(first("GET http://gw?q HTTP/1.1\r\nHost: gw\r\n\r\n", ""), "GET /?q HTTP/1.1");
    assert_eq!(first("GET /a HTTP/1.0\r\n\r\n", ""), "GET /a HTTP/1.1");
    assert_eq!(first("OPTIONS * HTTP/1.1\r\nHost: gw\r\n\r\n", "/x"), "OPTIONS * HTTP/1.1");
    // A base that ends in the version, as clients write theirs.
    let versioned = "GET /v1/models?q HTTP/1.1\r\nHost: gw\r\n\r\n";
    assert_eq!(first(versioned, "/v1"), "GET /v1/models?q HTTP/1.1");
    assert_eq!(first(versioned, "/x/v1"), "GET /x/v1/models?q HTTP/1.1");
    assert_eq!(first(plain, "/v1"), "GET /a?b HTTP/1.1");
    assert_eq!(first("\r\nGET /a HTTP/1.1\r\nHost: gw\r\n\r\n", ""), "GET /a HTTP/1.1");
    assert_eq!(first("OPTIONS * HTTP/1.1\r\nHost: gw\r\n\r\n", "/x"), "OPTIONS * HTTP/1.1");
}

/// Lines that can be copied as they are, beside such that cannot and such that stay.
#[test]
fn lines_are_written_alike_however_they_came() {
    let client =
        "GET / HTTP/1.1\r\nA: 1\r\nB: 2\r\nC:3\r\nD: 4 \r\nE:\r\nF: \r\nG:  7\r\nHost: gw\r\n\
        H: 8\r\nConnection: I\r\nI: 9\r\nJ: 10\r\nK:\t11\r\nL: 12\r\n\r\n";
    let sent = forward(client, &HOW);
    assert_eq!(
        sent,
        "GET / HTTP/1.1\r\nHost: engine:9\r\nA: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\nE: \r\nF: \r\nG: 7\r\n\
         H: 8\r\nJ: 10\r\nK: 11\r\nL: 12\r\nx-request-id: rid\r\nX-Forwarded-For: 1.2.3.4\r\n\
         X-Forwarded-Proto: http\r\nX-Forwarded-Host: gw\r\nVia: 1.1 hop\r\n\r\n"
    );
}

#[test]
fn a_trusted_peer_is_believed_about_the_origin() {
    let client =
        "GET / HTTP/1.1\r\nHost: gw\r\nX-Forwarded-For: 5.5.5.5\r\nx-forwarded-for: 6.6.6.6\r\n\
        Forwarded: for=5.5.5.5\r\nX-Forwarded-Proto: https\r\n\r\n";
    let sent = forward(client, &ForwardRequest { trust_forwarded: true, ..HOW });
    assert_eq!(
        sent,
        "GET / HTTP/1.1\r\nHost: engine:9\r\nForwarded: for=5.5.5.5\r\nX-Forwarded-Proto: https\r\n\
         x-request-id: rid\r\nX-Forwarded-For: 5.5.5.5, 6.6.6.6, 1.2.3.4\r\n\
         X-Forwarded-Host: gw\r\nVia: 1.1 hop\r\n\r\n"
    );
    let client = "GET / HTTP/1.1\r\nHost: gw\r\nx-forwarded-host: api.test\r\n\r\n";
    let sent = forward(client, &ForwardRequest { trust_forwarded: true, ..HOW });
    assert!(sent.contains("\r\nx-forwarded-host: api.test\r\n") && !sent.contains("gw"), "{sent}");
}

#[test]
fn the_host_that_the_client_asked_for_is_offered() {
    for (client, host) in [
        ("GET / HTTP/1.1\r\nHost: gw:8000\r\n\r\n", Some("gw:8000")),
        ("GET http://api.test/ HTTP/1.1\r\nHost: gw\r\n\r\n", Some("api.test")),
        ("GET / HTTP/1.0\r\n\r\n", None),
    ] {
        let sent = forward(client, &HOW);
        let line = sent.split("\r\n").find_map(|line| line.strip_prefix("X-Forwarded-Host: "));
        assert_eq!(line, host, "{client}");
    }
}

/// Catches: a reference that still names the engine, or one of somebody else's that was changed.
#[test]
fn references_to_backends_are_replaced() {
    let how = ForwardResponse {
        client: Version::Http11,
        framing: OutFraming::None,
        close: false,
        request_id: "rid",
        fields: &[],
        at_ours: &|value| value.strip_prefix(b"http://engine:9/"),
    };
    let engine = "HTTP/1.1 307 T\r\nA: 1\r\nLOCATION: http://engine:9/v1/x?q\r\nB: 2\r\n\
        content-location: http://other/x\r\nContent-Location:http://engine:9/\r\n\r\n";
    assert_eq!(
        back(engine, &how),
        "HTTP/1.1 307 T\r\nA: 1\r\nB: 2\r\ncontent-location: http://other/x\r\n\
         LOCATION: /v1/x?q\r\nContent-Location: /\r\nx-request-id: rid\r\n\r\n"
    );
}

#[test]
fn targets_of_every_form() {
    let line = |target: &str, base| {
        let method = if target == "*" { "OPTIONS" } else { "GET" };
        let client = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        let sent = forward(&client, &ForwardRequest { base_path: base, ..HOW });
        sent.split("\r\n").next().unwrap().to_owned()
    };
    assert_eq!(line("http://h/a?b", ""), "GET /a?b HTTP/1.1");
    assert_eq!(line("http://h", ""), "GET / HTTP/1.1");
    assert_eq!(line("http://h?b", "/base"), "GET /base/?b HTTP/1.1");
    assert_eq!(line("*", "/base"), "OPTIONS * HTTP/1.1");
}

fn back(engine: &str, how: &ForwardResponse<'_>) -> String {
    let mut head = ResponseHead::default();
    head.parse(engine.as_bytes(), Method::Get, HEAD_BYTES_MAX).unwrap();
    let mut out = Vec::new();
    response(&mut out, &head, engine.as_bytes(), how);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_response_keeps_its_fields_and_loses_its_framing() {
    let engine =
        "HTTP/1.0 207 Multi  Status\r\nSet-Cookie: a\r\nset-cookie: b\r\nConnection: x-hop\r\n\
        X-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-Request-Id: theirs\r\nContent-Length: 5\r\n\
        X_Under: kept\r\nContent-Type: text/plain\r\n\r\n";
    let mut how = ForwardResponse {
        client: Version::Http11,
        framing: OutFraming::Chunked,
        close: false,
        request_id: "rid",
        fields: &[],
        at_ours: &|_| None,
    };
    let fields =
        "HTTP/1.1 207 Multi  Status\r\nSet-Cookie: a\r\nset-cookie: b\r\nX_Under: kept\r\n\
        Content-Type: text/plain\r\nx-request-id: rid\r\n";
    let ends = [
        (OutFraming::Chunked, Version::Http11, false, "Transfer-Encoding: chunked\r\n"),
        (
            OutFraming::Length(5),
            Version::Http11,
            true,
            "Content-Length: 5\r\nConnection: close\r\n",
        ),
        (
            OutFraming::Length(0),
            Version::Http10,
            false,
            "Content-Length: 0\r\nConnection: keep-alive\r\n",
        ),
        (OutFraming::UntilClose, Version::Http10, false, "Connection: close\r\n"),
        (OutFraming::None, Version::Http11, false, ""),
    ];
    for (framing, client, close, end) in ends {
        (how.framing, how.client, how.close) = (framing, client, close);
        assert_eq!(back(engine, &how), format!("{fields}{end}\r\n"), "{framing:?}");
    }
}

#[test]
fn our_own_answers() {
    let mut how = OwnResponse {
        status: 503,
        content_type: "application/json",
        body_len: 7,
        fields: &[("Retry-After", "1")],
        client: Version::Http11,
        close: true,
        request_id: "rid",
    };
    let mut out = Vec::new();
    own(&mut out, &how);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n\
         x-request-id: rid\r\nContent-Length: 7\r\nConnection: close\r\n\r\n"
    );
    (how.status, how.content_type, how.fields, how.close) = (204, "", &[], false);
    let mut out = Vec::new();
    own(&mut out, &how);
    assert_eq!(out, b"HTTP/1.1 204 No Content\r\nx-request-id: rid\r\n\r\n");
}

/// Every status that a fault can have needs a phrase: some clients print nothing else.
#[test]
fn every_status_of_ours_has_a_phrase() {
    for status in [
        200, 400, 401, 403, 404, 405, 408, 413, 414, 415, 417, 429, 431, 500, 501, 502, 503, 504,
        505,
    ] {
        assert!(!reason::phrase(status).is_empty(), "{status}");
    }
}

/// Catches: an answer that comes compressed although we must read it, and one that does not
/// although nobody needs to.
#[test]
fn accept_encoding_stays_here_when_the_answer_is_to_be_read() {
    let client = "POST / HTTP/1.1\r\nHost: a\r\naccept-Encoding: gzip, br\r\nAccept: */*\r\n\r\n";
    assert!(forward(client, &HOW).contains("accept-Encoding: gzip, br\r\nAccept: */*\r\n"));
    let sent = forward(client, &ForwardRequest { plain_answer: true, ..HOW });
    assert!(
        !sent.to_lowercase().contains("encoding") && sent.contains("Accept: */*\r\n"),
        "{sent}"
    );
}

/// Catches: an engine that is told of two parents, of the client's although ours is between, or of
/// the state of another trace.
#[test]
fn a_span_of_ours_stands_in_place_of_the_clients() {
    let client = "GET /a HTTP/1.1\r\nHost: gw\r\nTraceParent: theirs\r\nX-A: 1\r\n\
                  traceparent: theirs too\r\ntracestate: a=1\r\n\r\n";
    let value = super::super::traceparent::TraceParent::root([1; 16], [2; 8]).value();
    let ours = format!("traceparent: {}\r\n", String::from_utf8(value.to_vec()).unwrap());
    for is_new in [false, true] {
        let trace = Some(TraceField { value, is_new });
        let sent = forward(client, &ForwardRequest { trace, ..HOW });
        assert_eq!(sent.to_lowercase().matches("traceparent").count(), 1, "{sent}");
        assert!(sent.contains(&ours) && sent.contains("X-A: 1\r\n"), "{sent}");
        assert_eq!(sent.contains("tracestate: a=1\r\n"), !is_new, "{sent}");
    }
    // An engine may have one that the configuration says.
    let set = [("TraceParent".to_owned(), Secret::new("set"))];
    let trace = Some(TraceField { value, is_new: true });
    let sent = forward(client, &ForwardRequest { trace, set: &set, ..HOW });
    assert_eq!(sent.to_lowercase().matches("traceparent").count(), 1, "{sent}");
    assert!(sent.contains("TraceParent: set\r\n"), "{sent}");
}
