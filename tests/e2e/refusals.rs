//! What is refused: with the right status and a stable code, in the one JSON shape, counted, and
//! with the connection in the right state afterwards.

use crate::harness::message::find;
use crate::harness::{Backend, Config, Proxy, SOON};
use std::time::{Duration, Instant};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A proxy with these server lines before a backend that answers everything with OK.
fn pair(server: &[&str]) -> (Proxy, Backend) {
    let backend = Backend::answering(OK);
    let config = server.iter().fold(Config::backend_at(backend.url()), |c, line| c.server(*line));
    (config.start(), backend)
}

fn rejected(proxy: &Proxy, code: &str) -> f64 {
    proxy.metric("llmproxy_rejected_total", &[("reason", code)])
}

/// Catches: a path that is not an LLM engine's and is forwarded all the same (an engine's admin
/// routes among them), or that is refused in another shape or closes the connection.
#[test]
fn unknown_paths_are_404() {
    let (proxy, backend) = pair(&[]);
    let mut conn = proxy.connect();
    let paths =
        ["/", "/v1", "/v1x/chat", "/metrics/x", "/health/", "/sleep?level=1", "/favicon.ico"];
    for path in paths {
        conn.get(path).assert_refused(404, "unknown_path");
    }
    assert_eq!(rejected(&proxy, "unknown_path"), paths.len() as f64);
    let other = [("path", "other"), ("status", "404"), ("backend", "none")];
    assert_eq!(proxy.metric("llmproxy_requests_total", &other), paths.len() as f64);
    assert_eq!(backend.connections(), 0);
}

/// Catches: a dot segment in any spelling that leaves the allowed prefix at the engine.
#[test]
fn dot_segments_are_refused() {
    let (proxy, backend) = pair(&[]);
    let mut conn = proxy.connect();
    let paths =
        ["/v1/../metrics", "/v1/%2e%2E/x", "/v1/./x", "/v1/..%2fx", "/v1/..", "/v1/x\\..\\y"];
    for path in paths {
        conn.get(path).assert_refused(400, "bad_path");
    }
    assert_eq!(rejected(&proxy, "bad_path"), paths.len() as f64);
    assert_eq!(backend.connections(), 0);
}

/// Catches: a method that our own pages do not have and that is served or forwarded.
#[test]
fn own_pages_are_read_only() {
    let (proxy, backend) = pair(&[]);
    let mut conn = proxy.connect();
    for path in ["/health", "/ready", "/metrics"] {
        conn.post(path, "", "{}").assert_refused(405, "method_not_allowed");
    }
    for request in ["CONNECT a:1", "TRACE /v1/x", "GET *"] {
        let mut conn = proxy.connect();
        let bytes = format!("{request} HTTP/1.1\r\nHost: a\r\n\r\n");
        conn.send(bytes).response().assert_refused(405, "method_not_allowed");
        conn.assert_closes();
    }
    assert_eq!(rejected(&proxy, "method_not_allowed"), 6.0);
    assert_eq!(backend.connections(), 0);
}

/// Catches: a body whose policy fields can be read in two ways (the engine would read the other),
/// or one that is no JSON at all; a connection that is lost over it.
#[test]
fn bodies_that_can_be_read_in_two_ways_are_400() {
    let (proxy, backend) = pair(&[]);
    let mut conn = proxy.connect();
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(65), "]".repeat(65));
    let cases: [(&[u8], &str); 16] = [
        (b"{", "invalid_json"),
        (b"{\"model\":\"m\"", "invalid_json"),
        (b"{\"model\":\"m\",}", "invalid_json"),
        (b"{} {}", "invalid_json"),
        (b"nonsense", "invalid_json"),
        (b"{\"a\":NaN}", "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        (b"{\"a\":\"\xff\"}", "invalid_json"),
        (deep.as_bytes(), "invalid_json"),
        (br#"{"model":"a","model":"b"}"#, "duplicate_key"),
        (br#"{"model":"a","x":1,"model":"a"}"#, "duplicate_key"),
        (br#"{"stream":true,"stream":false}"#, "duplicate_key"),
        (br#"{"max_tokens":1,"max_tokens":2}"#, "duplicate_key"),
        (br#"{"\u006dodel":"a"}"#, "escaped_key"),
        (br#"{"model":7}"#, "invalid_type"),
        (br#"{"stream":"yes"}"#, "invalid_type"),
    ];
    for (body, code) in cases {
        conn.post("/v1/chat/completions", "", body).assert_refused(400, code);
    }
    assert_eq!(rejected(&proxy, "duplicate_key"), 4.0);
    assert_eq!(rejected(&proxy, "invalid_json"), 9.0);
    assert_eq!(backend.connections(), 0);
    // What only looks doubtful passes.
    let nested = r#"{"a":{"model":"x","model":"y"},"model":"m","stream":null,"b":"\"model\":"}"#;
    assert_eq!(conn.post("/v1/chat/completions", "", nested).text(), "ok");
}

/// Catches: a body over the limit that is buffered or forwarded, by its declared length or by what
/// has arrived; a limit that is off by one.
#[test]
fn bodies_over_the_limit_are_413() {
    let (proxy, backend) = pair(&["max_body_size: 1000"]);
    let head = "POST /v1/x HTTP/1.1\r\nHost: a\r\n";
    let chunk = |n: usize| format!("{n:x}\r\n{}\r\n", "x".repeat(n));
    for fits in [
        format!("Content-Length: 1000\r\n\r\n{}", "x".repeat(1000)),
        format!("Transfer-Encoding: chunked\r\n\r\n{}{}0\r\n\r\n", chunk(600), chunk(400)),
    ] {
        assert_eq!(proxy.connect().send(format!("{head}{fits}")).response().status(), 200);
    }
    for large in [
        // Not a byte of it needs to be sent.
        "Content-Length: 1001\r\n\r\n".to_owned(),
        "Content-Length: 999999999999999999\r\n\r\n".to_owned(),
        // Neither is its end waited for.
        format!("Transfer-Encoding: chunked\r\n\r\n{}{}", chunk(600), chunk(401)),
        "Transfer-Encoding: chunked\r\n\r\nffffff\r\n".to_owned() + &"x".repeat(1001),
    ] {
        let mut conn = proxy.connect();
        let response = conn.send(format!("{head}{large}")).response();
        response.assert_refused(413, "body_too_large");
        assert!(response.text().contains("1000"), "the limit is named: {}", response.text());
        assert_eq!(response.head.get("connection"), Some("close"));
        conn.assert_closes();
    }
    assert_eq!(rejected(&proxy, "body_too_large"), 4.0);
    assert_eq!(backend.requests().len(), 2);
}

/// Catches: a 413 that the client never reads because the connection is reset under the body that
/// it is still sending.
#[test]
fn a_refusal_is_readable_while_the_body_still_comes() {
    let (proxy, _backend) = pair(&["max_body_size: 1000"]);
    let mut conn = proxy.connect();
    let body = vec![b'x'; 60_000];
    conn.send("POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n");
    assert!(conn.try_send(body), "what fits in the linger is taken");
    conn.response().assert_refused(413, "body_too_large");
    conn.assert_ends();
}

/// Catches: a head that grows without a bound, in any of its dimensions.
#[test]
fn heads_over_the_limits_are_431_and_414() {
    let (proxy, backend) = pair(&[]);
    let get = |fields: String| format!("GET /v1/x HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let x = |n: usize| "x".repeat(n);
    let many = |n: usize| (0..n).map(|i| format!("X-{i}: {i}\r\n")).collect::<String>();
    for fits in [
        get(many(99)),
        get(format!("X-Long: {}\r\n", x(8000))),
        get((0..7).map(|i| format!("X-{i}: {}\r\n", x(8000))).collect()),
        format!("GET /v1/{} HTTP/1.1\r\nHost: a\r\n\r\n", x(8000)),
    ] {
        assert_eq!(proxy.connect().send(fits).response().status(), 200);
    }
    let large = (0..9).map(|i| format!("X-{i}: {}\r\n", x(8000))).collect::<String>();
    let cases = [
        (get(large), 431, "head_too_large"),
        (get(many(100)), 431, "too_many_fields"),
        (get(format!("X-Long: {}\r\n", x(8200))), 431, "field_too_long"),
        (get(format!("{}: 1\r\n", x(257))), 431, "field_name_too_long"),
        (format!("GET /v1/{} HTTP/1.1\r\nHost: a\r\n\r\n", x(8200)), 414, "target_too_long"),
        // Without an end, too: nothing more is needed to know.
        (format!("GET /v1/{}", x(10_000)), 414, "target_too_long"),
    ];
    for (bytes, status, code) in cases {
        let mut conn = proxy.connect();
        conn.try_send(&bytes);
        conn.response().assert_refused(status, code);
        conn.assert_closes();
        assert!(rejected(&proxy, code) >= 1.0, "{code}");
    }
    let longest = backend.requests().iter().map(|r| r.head.fields.len()).max();
    assert_eq!((backend.requests().len(), longest >= Some(99)), (4, true));
}

/// Catches: the configured limit of a head that is not the one that holds.
#[test]
fn the_limit_of_a_head_is_configurable() {
    let (proxy, _backend) = pair(&["max_header_bytes: 1024"]);
    let get = |n: usize| format!("GET /v1/x HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(n));
    assert_eq!(proxy.connect().send(get(900)).response().status(), 200);
    proxy.connect().send(get(1100)).response().assert_refused(431, "head_too_large");
}

/// Catches: any of the ways to make two servers disagree where a request ends that gets through
/// (the corpora are replayed elsewhere; here the refusal goes all the way).
#[test]
fn heads_that_can_be_read_in_two_ways_are_refused() {
    let (proxy, backend) = pair(&[]);
    let cases: [(&str, u16, &str); 22] = [
        (
            "POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "content_length_and_transfer_encoding",
        ),
        ("POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400,
            "duplicate_content_length"),
        ("POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", 400, "bad_content_length"),
        ("POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc", 400,
            "bad_content_length"),
        ("POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501,
            "transfer_coding_not_implemented"),
        ("POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 400,
            "bad_transfer_encoding"),
        ("POST /v1/x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400,
            "transfer_encoding_on_http10"),
        ("GET /v1/x HTTP/1.1\nHost: a\n\n", 400, "bare_line_feed"),
        ("GET /v1/x HTTP/1.1\r\nHost : a\r\n\r\n", 400, "bad_field_line"),
        ("GET /v1/x HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400, "bad_field_line"),
        ("GET /v1/x HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400, "control_character"),
        ("GET /v1/x HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400, "control_character"),
        ("GET /v1/x HTTP/1.1\r\nHost: a\r\nContent_Length: 3\r\n\r\n", 400, "framing_look_alike"),
        ("GET /v1/x HTTP/1.1\r\n\r\n", 400, "missing_host"),
        ("GET /v1/x HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "duplicate_host"),
        ("GET /v1/x HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "bad_host"),
        ("GET  /v1/x HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
        ("GET /v1/x#f HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
        ("GET /v1/x HTTP/2.0\r\nHost: a\r\n\r\n", 505, "http_version_not_supported"),
        ("GeT /v1/x HTTP/1.1\r\nHost: a\r\n\r\n", 501, "method_not_implemented"),
        ("GET /v1/x HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\n\r\n", 400,
            "protected_field_nominated"),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", 400, "bad_request_line"),
    ];
    for (bytes, status, code) in cases {
        let mut conn = proxy.connect();
        let response = conn.send(bytes).response();
        assert_eq!(response.head.get("connection"), Some("close"), "{bytes:?}");
        response.assert_refused(status, code);
        conn.assert_closes();
        assert!(rejected(&proxy, code) >= 1.0, "{code}");
    }
    assert_eq!(backend.connections(), 0);
}

/// Catches: a malformed chunked body that is guessed at.
#[test]
fn malformed_chunks_are_400() {
    let (proxy, backend) = pair(&[]);
    let cases = [
        "xyz\r\n",
        "\r\n",
        "-1\r\nx",
        "0x1\r\na\r\n",
        "1_0\r\n",
        "3\nabc\r\n",
        "3\r\nabcd\r\n",
        "1000000000000000\r\n",
        " 3\r\nabc\r\n",
        "3 \r\nabc\r\n",
        "3;a\0\r\nabc\r\n",
    ];
    for chunks in cases {
        let mut conn = proxy.connect();
        conn.send("POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        let response = conn.send(chunks).response();
        assert_eq!(response.status(), 400, "{chunks:?}");
        response.assert_refused(400, "bad_chunk");
        conn.assert_closes();
    }
    assert_eq!(rejected(&proxy, "bad_chunk"), cases.len() as f64);
    assert_eq!(backend.connections(), 0);
}

/// Catches: a head that may take for ever, at one byte now and then; a deadline that each byte
/// starts anew; one that also ends a connection that sent nothing.
#[test]
fn a_slow_head_is_408() {
    let (proxy, _backend) = pair(&["header_timeout: 500ms"]);
    let mut quiet = proxy.connect();
    let mut conn = proxy.connect();
    let started = Instant::now();
    conn.send("GET /v1/x HTTP/1.1\r\nHost: a\r\nX-Slow: ");
    while !conn.arrives_within(Duration::from_millis(20)) {
        assert!(started.elapsed() < Duration::from_secs(3), "each byte starts the deadline anew");
        conn.try_send("x");
    }
    let response = conn.response();
    let took = started.elapsed();
    response.assert_refused(408, "header_timeout");
    assert_eq!(response.head.get("connection"), Some("close"));
    assert!(took >= Duration::from_millis(450), "{took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(rejected(&proxy, "header_timeout"), 1.0);
    assert_eq!(quiet.get("/v1/x").status(), 200, "a connection that is idle is not slow");
}

/// Catches: a body that stops in its middle and holds the connection, in both framings.
#[test]
fn a_body_that_stops_is_408() {
    let (proxy, backend) = pair(&["body_timeout: 300ms"]);
    for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n5\r\nabc"] {
        let mut conn = proxy.connect();
        let started = Instant::now();
        conn.send(format!("POST /v1/x HTTP/1.1\r\nHost: a\r\n{framing}"));
        conn.response().assert_refused(408, "body_timeout");
        let took = started.elapsed();
        assert!((250..3000).contains(&took.as_millis()), "{took:?}");
        conn.assert_closes();
    }
    assert_eq!(rejected(&proxy, "body_timeout"), 2.0);
    assert_eq!(backend.connections(), 0);
}

/// Catches: a body of a byte now and then, which no timeout between two bytes ever ends: below a
/// floor of 1 KiB/s it is refused after ten seconds.
#[test]
fn a_body_that_trickles_is_408() {
    let (proxy, backend) = pair(&[]);
    let mut conn = proxy.connect();
    let started = Instant::now();
    conn.send("POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    while !conn.arrives_within(Duration::from_millis(250)) {
        assert!(started.elapsed() < Duration::from_secs(15), "it goes on and on");
        conn.try_send("x");
    }
    conn.response().assert_refused(408, "body_too_slow");
    assert!(started.elapsed() >= Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(rejected(&proxy, "body_too_slow"), 1.0);
    assert_eq!(backend.connections(), 0);
}

/// Catches: an idle connection that is kept for ever, or that gets an answer nobody asked for when
/// it ends (a client could take it for that of its next request).
#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let (proxy, _backend) = pair(&["idle_timeout: 300ms"]);
    let mut fresh = proxy.connect();
    let mut used = proxy.connect();
    assert_eq!(used.get("/v1/x").status(), 200);
    let started = Instant::now();
    used.assert_closes_within(Duration::from_secs(3));
    fresh.assert_closes_within(Duration::from_secs(3));
    assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
    assert_eq!(proxy.metric("llmproxy_rejected_total", &[]), 0.0);
}

/// Catches: connections beyond the limit that wait in silence or are reset; a slot that is not
/// given back; an answer without the hint when to come again.
#[test]
fn connections_over_the_limit_are_503() {
    let (proxy, _backend) = pair(&["max_connections: 20"]);
    let mut held: Vec<_> = (0..20).map(|_| proxy.connect()).collect();
    // An answer proves that each of them was taken in.
    for conn in &mut held {
        assert_eq!(conn.get("/health").status(), 200);
    }
    let mut turned_away = proxy.connect();
    let response = turned_away.response();
    response.assert_refused(503, "overloaded");
    assert_eq!(response.head.get("retry-after"), Some("1"));
    assert_eq!(response.head.get("connection"), Some("close"));
    turned_away.assert_closes();
    // The same for a client that does not wait to be greeted.
    for _ in 0..5 {
        let mut conn = proxy.connect();
        conn.try_send("GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n");
        conn.response().assert_refused(503, "overloaded");
    }
    // More than nine tenths are in use: what is forwarded now ends its connection.
    let mut last = held.pop().unwrap();
    assert_eq!(last.get("/v1/x").head.get("connection"), Some("close"));
    last.assert_closes();
    crate::harness::await_until("the slot is free again", SOON, || {
        let mut conn = proxy.connect();
        conn.try_send("GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n");
        conn.response().status() == 200
    });
    drop(held);
    assert!(rejected(&proxy, "overloaded") >= 6.0);
}

/// Catches: a refusal without an id to ask about, in the shape of an error page, or with bytes of
/// the request in it (which may be a secret).
#[test]
fn refusals_carry_an_id_and_nothing_of_the_request() {
    let (proxy, _backend) = pair(&[]);
    let response = proxy
        .connect()
        .send("GET /nowhere?key=sk-secret HTTP/1.1\r\nHost: a\r\nx-request-id: mine-1\r\n\r\n")
        .response();
    response.assert_refused(404, "unknown_path");
    assert_eq!(response.head.get("x-request-id"), Some("mine-1"));
    assert!(find(&response.body, b"secret").is_none(), "{}", response.text());
    let response = proxy.post("/v1/chat/completions", "{\"sk-secret\": oops}");
    response.assert_refused(400, "invalid_json");
    assert!(find(&response.body, b"secret").is_none(), "{}", response.text());
    let logged = proxy.process.stdout.text() + &proxy.process.stderr.text();
    assert!(!logged.contains("secret"), "{logged}");
}
