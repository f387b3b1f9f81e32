//! What is refused: with the right status and a stable code, in the one JSON shape, counted, and
//! with the connection in the right state afterwards.

use crate::harness::message::find;
use crate::harness::scratch::Scratch;
use crate::harness::{await_some, pause, Backend, Config, SOON};
use crate::rig::{pair, rejected, OK};
use serde_json::Value;
use std::time::{Duration, Instant};

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
    for request in ["CONNECT a:1", "TRACE /v1/models", "GET *"] {
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
    let cases: [(&[u8], &str); 14] = [
        (b"{} {}", "invalid_json"),
        (b"{}\0", "invalid_json"),
        (b"{\0\"\0a\0\"\0:\x001\0}\0", "invalid_json"),
        (b"{\"a\":\"\xff\"}", "invalid_json"),
        (b"{\"a\":\"\xed\xa0\x80\"}", "invalid_json"),
        (deep.as_bytes(), "invalid_json"),
        (br#"{"model":"a","model":"b"}"#, "duplicate_key"),
        (br#"{"model":"a","x":1,"model":"a"}"#, "duplicate_key"),
        (br#"{"stream":true,"stream":false}"#, "duplicate_key"),
        (br#"{"max_tokens":1,"max_tokens":2}"#, "duplicate_key"),
        (br#"{"\u006dodel":"a"}"#, "escaped_key"),
        (br#"{"Model":"a"}"#, "ambiguous_key"),
        (br#"{"model":"a","sTream":true}"#, "ambiguous_key"),
        (br#"{"model":7}"#, "invalid_type"),
    ];
    for (body, code) in cases {
        conn.post("/v1/chat/completions", "", body).assert_refused(400, code);
    }
    assert_eq!(rejected(&proxy, "duplicate_key"), 4.0);
    assert_eq!(rejected(&proxy, "invalid_json"), 6.0);
    assert_eq!(backend.connections(), 0);
    // What only looks doubtful passes.
    let nested = r#"{"a":{"model":"x","model":"y"},"model":"m","stream":null,"b":"\"model\":"}"#;
    assert_eq!(conn.post("/v1/chat/completions", "", nested).text(), "ok");
    // Nothing that some server could take for its next request.
    conn.post("/v1/chat/completions", "", "nonsense").assert_refused(400, "not_json");
    // The engine's own error, which its clients know, is for what no parser takes.
    let others = [
        &b"{"[..],
        b"{\"model\":\"m\",}",
        b"[nonsense",
        b"{\"a\":NaN}",
        b"\xef\xbb\xbf{}",
        br#"{"stream":"yes","max_tokens":"3","n":{}}"#,
    ];
    for body in others {
        assert_eq!(conn.post("/v1/chat/completions", "", body).text(), "ok");
        assert_eq!(backend.requests().last().unwrap().body, body);
    }
}

/// Catches: any of the ways to make two servers disagree where a request ends that gets through
/// (the corpora are replayed elsewhere; here the refusal goes all the way).
#[test]
fn heads_that_can_be_read_in_two_ways_are_refused() {
    let (proxy, backend) = pair(&[]);
    let cases: [(&str, u16, &str); 22] = [
        (
            "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "content_length_and_transfer_encoding",
        ),
        ("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400,
            "duplicate_content_length"),
        ("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", 400, "bad_content_length"),
        ("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc", 400,
            "bad_content_length"),
        ("POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501,
            "transfer_coding_not_implemented"),
        ("POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 400,
            "bad_transfer_encoding"),
        ("POST /v1/completions HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400,
            "transfer_encoding_on_http10"),
        ("GET /v1/models HTTP/1.1\nHost: a\n\n", 400, "bare_line_feed"),
        ("GET /v1/models HTTP/1.1\r\nHost : a\r\n\r\n", 400, "bad_field_line"),
        ("GET /v1/models HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400, "bad_field_line"),
        ("GET /v1/models HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400, "control_character"),
        ("GET /v1/models HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400, "control_character"),
        ("GET /v1/models HTTP/1.1\r\nHost: a\r\nContent_Length: 3\r\n\r\n", 400, "framing_look_alike"),
        ("GET /v1/models HTTP/1.1\r\n\r\n", 400, "missing_host"),
        ("GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "duplicate_host"),
        ("GET /v1/models HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "bad_host"),
        ("GET  /v1/x HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line"),
        ("GET /v1/models#f HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
        ("GET /v1/models HTTP/2.0\r\nHost: a\r\n\r\n", 505, "http_version_not_supported"),
        ("GeT /v1/x HTTP/1.1\r\nHost: a\r\n\r\n", 501, "method_not_implemented"),
        ("GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\n\r\n", 400,
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
        conn.send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        let response = conn.send(chunks).response();
        assert_eq!(response.status(), 400, "{chunks:?}");
        response.assert_refused(400, "bad_chunk");
        conn.assert_closes();
    }
    assert_eq!(rejected(&proxy, "bad_chunk"), cases.len() as f64);
    assert_eq!(backend.connections(), 0);
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
    let response = proxy.post("/v1/chat/completions", "{\"sk-secret\": 1} sk-secret");
    response.assert_refused(400, "invalid_json");
    assert!(find(&response.body, b"secret").is_none(), "{}", response.text());
    let logged = proxy.process.stdout.text() + &proxy.process.stderr.text();
    assert!(!logged.contains("secret"), "{logged}");
}

/// Catches: a refused head that is logged with the time, the method or the path of the request
/// before it on the connection, or with none at all.
#[test]
fn a_refused_head_is_logged_as_itself() {
    let scratch = Scratch::new();
    let file = scratch.file("access.log");
    let backend = Backend::answering(OK);
    let access = format!(
        "logging: {{access: {{enabled: true, format: json, output: file, file: {{path: {}}}}}}}",
        file.display()
    );
    let proxy = Config::backend_at(backend.url()).section(access).start();
    let mut conn = proxy.connect();
    assert_eq!(conn.post("/v1/chat/completions", "", "{}").status(), 200);
    pause(Duration::from_millis(300));
    let begun = Instant::now();
    conn.send("GET /v1/models HTTP/1.1\r\n\r\n").response().assert_refused(400, "missing_host");
    let took = begun.elapsed().as_millis() as u64;
    let lines = await_some("both are logged", SOON, || {
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (lines.len() == 2).then_some(lines)
    });
    let line = &lines[1];
    let what = (&line["status"], &line["error"], &line["method"], &line["path"]);
    assert_eq!(
        format!("{what:?}"),
        r#"(Number(400), String("missing_host"), String(""), String(""))"#
    );
    let time = |line: &Value| line["timestamp"].as_str().unwrap().to_owned();
    assert!(time(line) > time(&lines[0]), "{lines:?}");
    let latency = line["latency_ms"].as_u64().unwrap();
    assert!(latency <= took, "{took} ms, not since the one before: {line}");
}

/// Catches: a body that two readers take for two models, let through under another name.
#[test]
fn what_a_body_is_called_does_not_make_it_harmless() {
    let (proxy, backend) = pair(&[]);
    let twice = r#"{"model":"a","model":"b"}"#;
    for field in ["Content-Type: text/plain\r\n", "Content-Type: application/json\r\n", ""] {
        let length = twice.len();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: a\r\n{field}Content-Length: {length}\r\n\r\n"
        );
        proxy.connect().send(head + twice).response().assert_refused(400, "duplicate_key");
    }
    let head =
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\n";
    proxy.connect().send(format!("{head}plain")).response().assert_refused(400, "not_json");
    assert_eq!(backend.connections(), 0);
}
