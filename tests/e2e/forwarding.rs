//! Requests reach the engine as the client sent them, but for what must not: credentials,
//! hop-by-hop fields, what a client says of itself that only a proxy can know.

use crate::harness::backend::Received;
use crate::harness::client::{in_chunks, Response};
use crate::harness::{Backend, Config, Conn, Proxy};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A proxy before a backend that answers everything with OK.
fn pair(more: &str) -> (Proxy, Backend) {
    let backend = Backend::answering(OK);
    let proxy = Config::new().backend(backend.url(), more).start();
    (proxy, backend)
}

/// Sends the bytes on a fresh connection; gives the answer and what the backend received.
fn pass(proxy: &Proxy, backend: &Backend, bytes: impl AsRef<[u8]>) -> (Response, Received) {
    let before = backend.requests().len();
    let response = proxy.connect().send(bytes).response();
    let received = backend.requests();
    assert_eq!(received.len(), before + 1, "{}", response.text());
    (response, received.last().unwrap().clone())
}

fn get_with(fields: &str) -> String {
    format!("GET /v1/models HTTP/1.1\r\nHost: client.test\r\n{fields}\r\n")
}

/// Catches: a query that is lost or changed, escapes that are decoded, an absolute-form target
/// that reaches the engine as such, a method that is not passed on.
#[test]
fn method_path_and_query_are_kept() {
    let (proxy, backend) = pair("");
    for (sent, got) in [
        ("GET /v1/models?a=1&b=%20x&&c", "GET /v1/models?a=1&b=%20x&&c"),
        ("GET /v1/models?", "GET /v1/models?"),
        ("GET /v1/models/org%2Fname?q=/../x", "GET /v1/models/org%2Fname?q=/../x"),
        ("GET http://other.test/v1/models?a", "GET /v1/models?a"),
        ("DELETE /v1/responses/1", "DELETE /v1/responses/1"),
        ("OPTIONS /v1/models", "OPTIONS /v1/models"),
    ] {
        let bytes = format!("{sent} HTTP/1.1\r\nHost: client.test\r\n\r\n");
        let (_, received) = pass(&proxy, &backend, bytes);
        assert_eq!(received.head.first_line, format!("{got} HTTP/1.1"), "{sent}");
        assert_eq!(received.head.get("host"), Some(backend.addr().to_string().as_str()));
    }
}

/// Catches: fields that lose their case, order, doubles or values; a lost traceparent.
#[test]
fn fields_are_kept_with_case_order_and_doubles() {
    let (proxy, backend) = pair("");
    let fields = [
        ("X-Dup", "1"),
        ("x-CASE", "MiXed"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tracestate", "a=1,b=2"),
        ("X-Dup", "2"),
        ("Accept-Encoding", "gzip, br"),
        ("User-Agent", "OpenAI/Python 1.0"),
        ("Cookie", "a=b; c=d"),
        ("OpenAI-Organization", "org-1"),
    ];
    let text: String = fields.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    let (_, received) = pass(&proxy, &backend, get_with(&text));
    let kept: Vec<(&str, &str)> = received
        .head
        .fields
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .filter(|(name, _)| fields.iter().any(|(sent, _)| sent == name))
        .collect();
    assert_eq!(kept, fields);
}

/// Catches: a key of the gateway that an engine could log; any spelling of its fields.
#[test]
fn credentials_of_the_client_never_reach_a_backend() {
    let (proxy, backend) = pair("");
    for fields in [
        "Authorization: Bearer sk-secret\r\nX-API-Key: sk-secret\r\n",
        "AUTHORIZATION: Basic c2stc2VjcmV0\r\nx-api-key: sk-secret\r\nX-Api-Key: sk-secret\r\n",
        "Proxy-Authorization: Basic sk-secret\r\n",
    ] {
        let (_, received) = pass(&proxy, &backend, get_with(fields));
        for name in ["authorization", "x-api-key", "proxy-authorization"] {
            assert!(received.head.all(name).is_empty(), "{name}: {:?}", received.head);
        }
        assert!(!format!("{:?}", received.head).contains("secret"));
    }
}

/// Catches: a backend's own key that is not sent, or that a client can override or double.
#[test]
fn fields_of_the_backend_replace_those_of_the_client() {
    let (proxy, backend) =
        pair("api_key: sk-engine, headers: {X-Team: \"blue\", \"X-Zone\": \"a\"}");
    let fields = "Authorization: Bearer sk-mine\r\nx-team: red\r\nX-Team: green\r\nX-Own: 1\r\n";
    let (_, received) = pass(&proxy, &backend, get_with(fields));
    assert_eq!(received.head.all("authorization"), ["Bearer sk-engine"]);
    assert_eq!(received.head.all("x-team"), ["blue"]);
    assert_eq!(received.head.all("x-zone"), ["a"]);
    assert_eq!(received.head.all("x-own"), ["1"]);
}

/// Catches: a client that can say where it comes from although nobody vouches for it.
#[test]
fn forwarded_fields_of_a_client_are_replaced() {
    let (proxy, backend) = pair("");
    let fields =
        "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: 10.0.0.2\r\nForwarded: for=10.0.0.3\r\n\
                  X-Real-IP: 10.0.0.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n";
    let (_, received) = pass(&proxy, &backend, get_with(fields));
    assert_eq!(received.head.all("x-forwarded-for"), ["127.0.0.1"]);
    let proto = if proxy.tls.is_some() { "https" } else { "http" };
    assert_eq!(received.head.all("x-forwarded-proto"), [proto]);
    assert_eq!(received.head.all("x-forwarded-host"), ["client.test"]);
    for name in ["forwarded", "x-real-ip"] {
        assert!(received.head.all(name).is_empty(), "{name}: {:?}", received.head);
    }
}

/// Catches: a hop-by-hop field, or one that any Connection line nominates, that reaches the
/// engine; names with an underscore, which WSGI-like engines read as another name.
#[test]
fn hop_by_hop_fields_of_a_request_stay_behind() {
    let (proxy, backend) = pair("");
    let fields =
        "Connection: keep-alive, x-hop\r\nConnection: X-Other\r\nX-Hop: 1\r\nx-other: 2\r\n\
                  Keep-Alive: 5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nUpgrade: h2c\r\n\
                  X_Under: 1\r\nX-Stays: 1\r\n";
    let (response, received) = pass(&proxy, &backend, get_with(fields));
    assert_eq!(response.status(), 200, "an Upgrade is a plain request");
    for name in ["x-hop", "x-other", "keep-alive", "proxy-connection", "te", "upgrade", "x_under"] {
        assert!(received.head.all(name).is_empty(), "{name}: {:?}", received.head);
    }
    assert_eq!(received.head.get("x-stays"), Some("1"));
}

/// Catches: a valid id of the client that is not kept on both sides, a harmful one that is, two
/// requests with one id.
#[test]
fn request_ids_are_kept_when_harmless_and_made_otherwise() {
    let (proxy, backend) = pair("");
    for kept in ["a", "req-1.A_b", &"x".repeat(64)] {
        let (response, received) =
            pass(&proxy, &backend, get_with(&format!("X-Request-ID: {kept}\r\n")));
        assert_eq!(response.head.get("x-request-id"), Some(kept));
        assert_eq!(received.head.get("x-request-id"), Some(kept));
    }
    let mut made = Vec::new();
    for replaced in ["", "a b", "a\"b", "a/b", "é", &"x".repeat(65)] {
        let (response, received) =
            pass(&proxy, &backend, get_with(&format!("x-request-id: {replaced}\r\n")));
        let id = response.head.get("x-request-id").unwrap().to_owned();
        assert_ne!(id, replaced);
        assert_eq!(received.head.get("x-request-id"), Some(id.as_str()));
        made.push(id);
    }
    let (response, received) = pass(&proxy, &backend, get_with(""));
    let id = response.head.get("x-request-id").unwrap().to_owned();
    assert_eq!(received.head.get("x-request-id"), Some(id.as_str()));
    made.push(id);
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 7, "no two ids are equal: {made:?}");
}

/// Catches: the engine's own id beside ours, which would make two of them.
#[test]
fn an_engines_request_id_gives_way_to_ours() {
    let backend = Backend::answering(
        "HTTP/1.1 200 OK\r\nX-Request-Id: theirs\r\nContent-Length: 2\r\n\r\nok",
    );
    let proxy = Config::backend_at(backend.url()).start();
    let response = proxy.connect().send(get_with("x-request-id: ours\r\n")).response();
    assert_eq!(response.head.all("x-request-id"), ["ours"]);
}

/// Bytes that repeat nowhere near a buffer's size.
fn noise(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

const FORM: &str = "multipart/form-data; boundary=b";

fn form_of(len: usize) -> Vec<u8> {
    const BEGIN: &[u8] = b"--b\r\n";
    [BEGIN, &noise(len.saturating_sub(BEGIN.len()))].concat()
}

fn json_of(len: usize) -> Vec<u8> {
    const EMPTY: &str = r#"{"model":"m","prompt":""}"#;
    let text = "p".repeat(len.saturating_sub(EMPTY.len()));
    format!(r#"{{"model":"m","prompt":"{text}"}}"#).into_bytes()
}

fn assert_arrived(received: &Received, body: &[u8], what: &str) {
    let length = body.len().to_string();
    assert_eq!(received.head.get("content-length"), Some(length.as_str()), "{what}");
    assert!(received.head.get("transfer-encoding").is_none(), "{what}");
    assert!(received.head.get("expect").is_none(), "{what}");
    assert!(received.body == body, "{what}: {} bytes differ", received.body.len());
}

/// Catches: a body that is cut, doubled or shifted at a buffer's boundary, be it counted or in
/// chunks of any size; a chunked one that is not forwarded with its length.
#[test]
fn bodies_arrive_byte_for_byte() {
    let (proxy, backend) = pair("");
    let sizes = [1, 100, 16_383, 16_384, 16_385, 32_768, 65_537, 1 << 20, 5 << 20];
    for size in sizes {
        let bodies = [(FORM, form_of(size)), ("application/json", json_of(size))];
        // The shortest of each is longer than a byte.
        for (kind, body) in bodies.into_iter().filter(|(_, body)| body.len() == size) {
            let what = format!("{size} bytes of {kind}");
            let head = format!(
                "POST /v1/audio/translations HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\n"
            );
            let counted = format!("{head}Content-Length: {size}\r\n\r\n");
            let (_, received) = pass(&proxy, &backend, [counted.as_bytes(), &body].concat());
            assert_arrived(&received, &body, &what);
            let pattern: &[usize] = match size {
                0..=65_536 => &[1, 7, 300],
                _ => &[16_384, 1, 65_535, 200_000],
            };
            let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
            let chunks = in_chunks(&body, pattern);
            let (_, received) = pass(&proxy, &backend, [chunked.as_bytes(), &chunks].concat());
            assert_arrived(&received, &body, &format!("{what} in chunks"));
        }
    }
}

/// Catches: an empty body that hangs or loses its length, and a request without a body that is
/// given one.
#[test]
fn empty_bodies_and_no_bodies_differ() {
    let (proxy, backend) = pair("");
    let head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\n";
    for fields in ["Content-Length: 0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"] {
        let (_, received) = pass(&proxy, &backend, format!("{head}{fields}"));
        assert_arrived(&received, b"", fields);
    }
    let (_, received) = pass(&proxy, &backend, get_with(""));
    assert!(received.head.get("content-length").is_none());
    assert!(received.head.get("transfer-encoding").is_none());
}

/// Catches: bytes that arrive in dribbles and are put together wrongly, heads and chunks alike.
#[test]
fn requests_that_dribble_in_are_put_together() {
    let (proxy, backend) = pair("");
    let body = json_of(300);
    let chunks = in_chunks(&body, &[1, 50, 2]);
    let head = "POST /v1/completions?x=1 HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    let mut conn = proxy.connect();
    // NODELAY: each of these is a segment of its own.
    for byte in head.as_bytes().iter().chain(&chunks) {
        conn.send([*byte]);
    }
    assert_eq!(conn.response().status(), 200);
    assert_arrived(&backend.requests()[0], &body, "byte by byte");
}

/// Catches: chunk extensions or trailers that reach the engine, break the body, or leave the
/// connection out of step (a trailer must not become the next request).
#[test]
fn chunk_extensions_and_trailers_of_a_request_stay_behind() {
    let (proxy, backend) = pair("");
    let mut conn = proxy.connect();
    conn.send(
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n\
         5;a=\"b\";c\r\n{ello\r\n00003\r\n, w\r\n0;z\r\nX-T: 1\r\nAuthorization: x\r\n\r\n\
         GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!((conn.response().status(), conn.response().status()), (200, 200));
    let requests = backend.requests();
    assert_arrived(&requests[0], b"{ello, w", "with trailers");
    for name in ["x-t", "trailer", "authorization"] {
        assert!(requests[0].head.all(name).is_empty(), "{name}");
    }
    assert_eq!(requests[1].head.target(), "/v1/models");
}

/// Catches: an engine that is asked before the client's request is complete.
#[test]
fn nothing_is_forwarded_before_the_body_is_complete() {
    let (proxy, backend) = pair("");
    let mut conn: Conn = proxy.connect();
    conn.send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{2345");
    conn.assert_silent(std::time::Duration::from_millis(200));
    assert_eq!(backend.connections(), 0);
    assert_eq!(conn.send("67890").response().status(), 200);
    assert_eq!(backend.requests()[0].body, b"{234567890");
}

/// Catches: a redirect of an engine (vLLM: 307 for a slash too many) that tells its address, and
/// that clients follow around us, where nobody counts.
#[test]
fn no_reference_names_a_backend() {
    let (engine, other) = (redirecting(), redirecting());
    let config = Config::new().backend(engine.url_as("http", "localhost"), "");
    let proxy = config.backend(format!("{}/base", other.url()), "host: \"gpu.test\"").start();
    let (here, there) = (engine.addr().port(), other.addr().port());
    let mut moved = 0;
    for (told, got) in [
        (format!("http://localhost:{here}/v1/models?a=b#c"), "/v1/models?a=b#c"),
        (format!("HTTP://LocalHost:{here}/v1/models"), "/v1/models"),
        // What the name stands for.
        (format!("http://127.0.0.1:{here}/v1/models"), "/v1/models"),
        (format!("//localhost:{here}/v1/models"), "/v1/models"),
        (format!("https://localhost:{here}/v1/models"), "/v1/models"),
        (format!("http://user@localhost:{here}"), "/"),
        (format!("http://localhost:{here}?q"), "/?q"),
        // The other backend, and its base.
        (format!("http://127.0.0.1:{there}/base/v1/models"), "/v1/models"),
        (format!("http://127.0.0.1:{there}/base"), "/"),
        (format!("http://127.0.0.1:{there}/basement"), "/basement"),
        ("http://gpu.test/base/v1/models".into(), "/v1/models"),
        // In other words.
        (format!("http://localhost.:{here}/v1/models"), "/v1/models"),
        (format!("http://127.1:{here}/v1/models"), "/v1/models"),
        (format!("http://[::1]:{there}/base/v1/models"), "/v1/models"),
        (format!("http://0.0.0.0:{there}/base/v1/models"), "/v1/models"),
        (format!("http://LOCALHOST:{there}/base/v1/models"), "/v1/models"),
        // Never the name of another server.
        (format!("http://localhost:{here}//evil.test/x"), "/evil.test/x"),
        (format!("http://127.0.0.1:{there}/base//evil.test/x"), "/evil.test/x"),
        // Nobody's that we know.
        ("http://elsewhere.test/v1/models".into(), "http://elsewhere.test/v1/models"),
        (format!("http://localhost:{}/v1", 1), "http://localhost:1/v1"),
        ("/v1/models?a".into(), "/v1/models?a"),
        ("models/x".into(), "models/x"),
    ] {
        for name in ["Location", "Content-Location"] {
            let fields = format!("X-Name: {name}\r\nX-Value: {told}\r\n");
            // Of several backends the list of models is ours: another path.
            let request = get_with(&fields).replacen("/v1/models", "/version", 1);
            let response = proxy.connect().send(request).response();
            assert_eq!(response.status(), 307, "{}", response.text());
            assert_eq!(response.head.get(name), Some(got), "{name}: {told}");
            moved += usize::from(told != got);
        }
    }
    assert_eq!(moved, 36);
}

/// Catches: the base of a backend in a path that it gives without its address.
#[test]
fn the_base_of_a_backend_is_taken_off_its_paths() {
    let engine = redirecting();
    let proxy = Config::backend_at(format!("{}/base", engine.url())).start();
    for (told, got) in [
        ("/base/v1/models/", "/v1/models/"),
        ("/base", "/"),
        ("/base//evil.test/", "/evil.test/"),
        ("/basement", "/basement"),
        ("/v1/models", "/v1/models"),
    ] {
        let fields = format!("X-Name: Location\r\nX-Value: {told}\r\n");
        let response = proxy.connect().send(get_with(&fields)).response();
        assert_eq!(response.head.get("location"), Some(got), "{told}");
    }
    // The version at the end of a base belongs to the paths that clients know.
    let proxy = Config::backend_at(format!("{}/base/v1", engine.url())).start();
    for (told, got) in
        [("/base/v1/models/", "/v1/models/"), ("/base/v1/own", "/v1/own"), ("/base/ping", "/ping")]
    {
        let fields = format!("X-Name: Location\r\nX-Value: {told}\r\n");
        let response = proxy.connect().send(get_with(&fields)).response();
        assert_eq!(response.head.get("location"), Some(got), "{told}");
    }
}

/// Catches: an endpoint that engines have beside `/v1`, out of reach behind a base that ends in it.
#[test]
fn a_base_that_ends_in_the_version_goes_where_engines_have_it() {
    let engine = Backend::answering(OK);
    let proxy = Config::backend_at(format!("{}/v1", engine.url())).start();
    for (sent, got) in [
        ("/v1/models", "/v1/models"),
        ("/models", "/v1/models"),
        ("/ping", "/ping"),
        ("/version", "/version"),
        ("/api/tags", "/api/tags"),
    ] {
        assert_eq!(proxy.get(sent).status(), 200);
        let asked = engine.requests().pop().unwrap();
        assert_eq!(asked.head.first_line, format!("GET {got} HTTP/1.1"), "{sent}");
    }
}

/// A backend that redirects to where the request says.
fn redirecting() -> Backend {
    Backend::start(|served| {
        while let Some(request) = served.request() {
            let field = |name| request.head.get(name).unwrap_or_default().to_owned();
            let (name, value) = (field("x-name"), field("x-value"));
            served.send(format!("HTTP/1.1 307 T\r\n{name}: {value}\r\nContent-Length: 0\r\n\r\n"));
        }
    })
}
