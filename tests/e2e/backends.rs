//! Where engines can be: TCP by address and by name, TLS, Unix sockets, behind a base path; and
//! which of several gets a request.

use crate::harness::backend::Served;
use crate::harness::message::Ended;
use crate::harness::scratch::Scratch;
use crate::harness::tls::Authority;
use crate::harness::{Backend, Config, Engine, Proxy, SOON};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"Count."}]}"#;
const STREAM: &str = r#"{"model":"m","stream":true,"messages":[]}"#;

/// An address on which nobody listens.
fn dead_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn faults(proxy: &Proxy, kind: &str) -> f64 {
    proxy.metric("llmproxy_faults_total", &[("kind", kind)])
}

/// Catches: an engine behind a Unix socket that is not reached, or not probed.
#[test]
fn an_engine_behind_a_unix_socket_is_served() {
    let engine = Engine::start_unix(&[]);
    let proxy = Config::backend_at(engine.url()).health_check().start();
    for body in [CHAT, STREAM] {
        let direct = engine.connect().post("/v1/chat/completions", "", body);
        let through = proxy.post("/v1/chat/completions", body);
        assert_eq!((through.status(), through.ended), (200, Ended::Whole));
        assert!(through.body == direct.body, "{}", through.text());
    }
    assert_eq!(proxy.get("/ready").status(), 200);
}

/// Catches: a base path that is lost, doubled, or put into the wrong place, over both transports.
#[test]
fn a_base_path_goes_before_the_path() {
    let unix = Engine::start_unix(&["--echo", "headers"]);
    let tcp = Engine::start(&["--echo", "headers"]);
    for (url, expected) in [
        (format!("{}:/base", unix.url()), "/base/v1/models?x=/y"),
        (format!("{}:/a/b/", unix.url()), "/a/b/v1/models?x=/y"),
        (format!("{}/base/", tcp.url()), "/base/v1/models?x=/y"),
        (format!("{}/", tcp.url()), "/v1/models?x=/y"),
    ] {
        let proxy = Config::backend_at(&url).start();
        let response = proxy.get("/v1/models?x=/y");
        assert_eq!(response.json()["target"], expected, "{url}");
    }
}

/// Catches: a socket that is not there that hangs or crashes instead of a 502.
#[test]
fn a_missing_unix_socket_is_a_502() {
    let scratch = Scratch::new();
    let url = format!("unix:{}", scratch.file("none.sock").display());
    let proxy = Config::backend_at(url).start();
    proxy.post("/v1/chat/completions", CHAT).assert_refused(502, "connect_failed");
}

/// Catches: a host name that is not resolved, or of which only the first address is tried
/// (`localhost` is often `::1` first, where nobody listens here).
#[test]
fn a_backend_may_have_a_name() {
    let engine = Engine::start(&["--echo", "headers"]);
    let url = format!("http://localhost:{}", engine.addr().port());
    let proxy = Config::backend_at(&url).health_check().start();
    let echo = proxy.get("/v1/models").json();
    let host = format!("localhost:{}", engine.addr().port());
    let fields = echo["fields"].as_array().unwrap();
    assert!(fields.iter().any(|f| f[0] == "Host" && f[1] == host.as_str()), "{echo}");
}

/// Catches: a name that does not resolve and stops the start, blocks a worker, or is reported as
/// anything else; requests that fail although another backend could serve them.
#[test]
fn a_name_that_does_not_resolve_is_a_502_and_others_serve() {
    let nowhere = "http://no-such-host.invalid:8000";
    let proxy = Config::backend_at(nowhere).start();
    let response = proxy.post("/v1/chat/completions", CHAT);
    response.assert_refused(502, "backend_unresolved");
    assert_eq!(faults(&proxy, "backend_unresolved"), 1.0);
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(nowhere).backend(engine.url(), "").start();
    for _ in 0..6 {
        assert_eq!(proxy.post("/v1/chat/completions", CHAT).status(), 200);
    }
    assert_eq!(engine.posts().len(), 6);
}

/// Catches: a refused connection that reaches the client although another backend is there; one
/// that is not named when there is none.
#[test]
fn a_dead_backend_is_stepped_over() {
    let dead = format!("http://{}", dead_address());
    let proxy = Config::backend_at(&dead).start();
    let response = proxy.post("/v1/chat/completions", CHAT);
    response.assert_refused(502, "connect_failed");
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(&dead)
        .backend(engine.url(), "")
        .section("health_check: {enabled: false}")
        .start();
    for _ in 0..10 {
        assert_eq!(proxy.post("/v1/chat/completions", CHAT).status(), 200);
    }
    assert_eq!(engine.posts().len(), 10);
    let failed = faults(&proxy, "connect_failed");
    // Three in a row, and then it is left alone for a while.
    assert!((3.0..=10.0).contains(&failed), "{failed}");
    assert_eq!(proxy.metric("llmproxy_fallback_total", &[]), failed);
    assert_eq!(proxy.metric("llmproxy_retries_total", &[]), failed);
}

/// Catches: a host that swallows connects and holds a request for longer than `connect_timeout`,
/// or for ever; one whose turn is not given to another backend.
#[test]
fn a_connect_that_is_not_answered_times_out() {
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    // The kernel drops the SYNs of whoever comes once the queue is full.
    let mut queue = Vec::new();
    while let Ok(conn) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
        queue.push(conn);
        assert!(queue.len() < 100, "the queue never fills");
    }
    let url = format!("http://{address}");
    let proxy = Config::new().backend(&url, "connect_timeout: 300ms").start();
    let started = Instant::now();
    let response = proxy.post("/v1/chat/completions", CHAT);
    let took = started.elapsed();
    response.assert_refused(504, "connect_timeout");
    assert!(took >= Duration::from_millis(250), "{took:?}");
    assert_eq!(faults(&proxy, "connect_timeout"), 1.0);
    let engine = Engine::start(&[]);
    let proxy =
        Config::new().backend(&url, "connect_timeout: 300ms").backend(engine.url(), "").start();
    for _ in 0..2 {
        assert_eq!(proxy.post("/v1/chat/completions", CHAT).status(), 200);
    }
}

/// Catches: no backend at all that is anything but a clear 503.
#[test]
fn without_backends_the_answer_is_503() {
    let proxy = Config::new().start();
    proxy.post("/v1/chat/completions", CHAT).assert_refused(503, "no_backend");
    assert_eq!(proxy.get("/health").status(), 200);
    assert_eq!(proxy.get("/ready").status(), 503);
    assert_eq!(proxy.metric("llmproxy_rejected_total", &[("reason", "no_backend")]), 1.0);
}

/// Catches: weights that are ignored (as the first implementation did), or bursts to the heaviest.
#[test]
fn traffic_is_shared_by_weight() {
    let (heavy, light) = (Engine::start(&[]), Engine::start(&[]));
    let proxy = Config::new()
        .backend(heavy.url(), "weight: 3, name: heavy")
        .backend(light.url(), "weight: 1, name: light")
        .start();
    let mut conn = proxy.connect();
    for _ in 0..40 {
        assert_eq!(conn.post("/v1/chat/completions", "", CHAT).status(), 200);
    }
    assert_eq!((heavy.posts().len(), light.posts().len()), (30, 10));
    let counted = |name| proxy.metric("llmproxy_requests_total", &[("backend", name)]);
    assert_eq!((counted("heavy"), counted("light")), (30.0, 10.0));
}

/// Answers until the peer closes: a counted body, then a stream.
fn serve_two_kinds(served: &mut Served) {
    while let Some(request) = served.request() {
        if request.head.target() == "/v1/models/stream" {
            served.begin_events();
            for number in 0..3 {
                served.chunk(&format!("data: {number}\n\n"));
            }
            served.send("0\r\n\r\n");
        } else {
            let length = request.body.len();
            served.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"));
            served.send(&request.body);
        }
    }
}

/// Catches: TLS that loses bytes at a record's boundary in either direction, that does not stream,
/// that is set up anew for every request, or that is not used for probes.
#[test]
fn an_engine_behind_tls_is_served() {
    let authority = Authority::new();
    let scratch = Scratch::new();
    let ca_file = scratch.write("ca.pem", authority.pem());
    // However slow the machine is, the connection is kept from one request to the next.
    let tls = format!("keepalive_timeout: 1m, tls: {{ca_file: \"{}\"}}", ca_file.display());
    for host in ["127.0.0.1", "localhost"] {
        let backend = Backend::start_tls(authority.server(&[host]), serve_two_kinds);
        let proxy = Config::new().backend(backend.url_as("https", host), &tls).start();
        let mut conn = proxy.connect();
        for size in [0, 5, 16_384, 16_385, 1 << 20, 5 << 20] {
            let noise = (5..size as u64).map(|n| ((n * 0x9E37) >> 8) as u8);
            let body: Vec<u8> = b"--b\r\n".iter().copied().chain(noise).take(size).collect();
            let head = format!(
                "POST /v1/audio/translations HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n\
                 Content-Length: {size}\r\n\r\n"
            );
            let response = conn.send(head).send(&body).response();
            assert_eq!(response.status(), 200);
            assert!(response.body == body, "{size}: {} bytes", response.body.len());
        }
        assert_eq!(conn.get("/v1/models/stream").text(), "data: 0\n\ndata: 1\n\ndata: 2\n\n");
        assert_eq!(backend.connections(), 1, "{host}");
    }
}

/// Catches: an answer that lies decrypted in the session of a kept connection, and that the next
/// client gets for its own request.
#[test]
fn what_tls_holds_back_is_nobodys_answer() {
    let authority = Authority::new();
    let scratch = Scratch::new();
    let ca_file = scratch.write("ca.pem", authority.pem());
    let tls = format!("tls: {{ca_file: \"{}\"}}", ca_file.display());
    let backend = Backend::start_tls(authority.server(&["127.0.0.1"]), |served| {
        while served.request().is_some() {
            // The first answer fills one read of the proxy to its last byte.
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 16300\r\nx-fill: ";
            let fill = 16_384 - 16_300 - head.len() - 4;
            let first = format!("{head}{}\r\n\r\n{}", "f".repeat(fill), "a".repeat(16_300));
            assert_eq!(first.len(), 16_384);
            served.send(first + "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
        }
    });
    let proxy = Config::new().backend(backend.url_as("https", "127.0.0.1"), &tls).start();
    for _ in 0..3 {
        let response = proxy.post("/v1/chat/completions", CHAT);
        assert!(!response.text().contains("evil"));
        assert!(response.status() == 502 || response.body.len() == 16_300);
    }
    assert_eq!(backend.connections(), 3, "none of them was kept");
}

/// Catches: a TLS connection that is cut without its own end (a truncation that anybody on the way
/// can cause) and whose answer then looks whole.
#[test]
fn a_truncated_tls_answer_does_not_look_whole() {
    let authority = Authority::new();
    let scratch = Scratch::new();
    let ca_file = scratch.write("ca.pem", authority.pem());
    let tls = format!("tls: {{ca_file: \"{}\"}}", ca_file.display());
    let backend = Backend::start_tls(authority.server(&["127.0.0.1"]), |served| {
        served.request();
        // No framing: the end of the connection is the end of the body.
        served.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhalf of it");
    });
    let proxy = Config::new().backend(backend.url_as("https", "127.0.0.1"), &tls).start();
    let mut conn = proxy.connect();
    conn.send("GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(conn.head().status(), 200);
    assert_eq!(conn.rest().1, Ended::Cut);
    proxy.await_metric("llmproxy_faults_total", &[("kind", "backend_broke")], 1.0);
}

/// Catches: a probe that does not speak TLS to an engine that does.
#[test]
fn probes_speak_tls_too() {
    let authority = Authority::new();
    let scratch = Scratch::new();
    let ca_file = scratch.write("ca.pem", authority.pem());
    let tls = format!("name: tls, tls: {{ca_file: \"{}\"}}", ca_file.display());
    let backend = Backend::start_tls(authority.server(&["127.0.0.1"]), serve_two_kinds);
    let proxy =
        Config::new().backend(backend.url_as("https", "127.0.0.1"), &tls).health_check().start();
    let probed = || backend.requests().iter().any(|r| r.head.target() == "/health");
    crate::harness::await_until("a probe arrives", SOON, probed);
    proxy.await_metric("llmproxy_backend_up", &[("backend", "tls")], 1.0);
}

/// Catches: an engine whose certificate is not from the configured authority, or not for its name,
/// that gets a single byte of a request; a failure that is not named as what it is.
#[test]
fn an_engine_that_cannot_prove_its_name_is_refused() {
    let (ours, other) = (Authority::new(), Authority::new());
    let scratch = Scratch::new();
    let ca_file = scratch.write("ca.pem", ours.pem());
    let tls = format!("ca_file: \"{}\"", ca_file.display());
    let system_roots = String::new();
    for (what, server, tls, code) in [
        ("another authority", other.server(&["127.0.0.1"]), &tls, "tls_bad_signature"),
        ("another name", ours.server(&["gpu-1.test"]), &tls, "tls_wrong_name"),
        ("the system's roots", ours.server(&["127.0.0.1"]), &system_roots, "tls_unknown_issuer"),
    ] {
        let backend = Backend::start_tls(server, serve_two_kinds);
        let url = backend.url_as("https", "127.0.0.1");
        let proxy = Config::new().backend(url, &format!("tls: {{{tls}}}")).start();
        let response = proxy.post("/v1/chat/completions", CHAT);
        response.assert_refused(502, code);
        assert_eq!(faults(&proxy, code), 1.0, "{what}");
        proxy.await_event("the log names it", |event| event["code"] == code);
        assert_eq!(backend.requests().len(), 0, "{what}");
    }
}

/// Catches: a server that does not speak TLS at all and hangs the request.
#[test]
fn a_plain_server_behind_https_is_refused() {
    let authority = Authority::new();
    let scratch = Scratch::new();
    let ca_file = scratch.write("ca.pem", authority.pem());
    let plain = Backend::start(|served| {
        served.send("HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let url = plain.url_as("https", "127.0.0.1");
    let tls = format!("tls: {{ca_file: \"{}\"}}", ca_file.display());
    let proxy = Config::new().backend(url, &tls).start();
    proxy.post("/v1/chat/completions", CHAT).assert_refused(502, "tls_not_spoken");
}

/// Catches: an engine with the certificate of a plain `openssl req -x509`, which has a common name
/// only, refused where curl takes it; or taken for another name, or without being in the file.
#[test]
fn an_engine_with_openssls_own_certificate_is_trusted_under_its_common_name() {
    let scratch = Scratch::new();
    let (pem, server) = crate::harness::tls::by_openssl();
    let (other, _) = crate::harness::tls::self_signed("localhost");
    let (own, other) = (scratch.write("own.pem", pem), scratch.write("other.pem", other));
    let backend = Backend::start_tls(server, serve_two_kinds);
    let url = |host: &str| backend.url_as("https", host);
    let file = |path: &std::path::Path| format!("ca_file: '{}'", path.display());
    for (url, tls) in [
        (url("localhost"), file(&own)),
        (url("127.0.0.1"), format!("{}, server_name: LOCALHOST", file(&own))),
    ] {
        let proxy = Config::new().backend(&url, &format!("tls: {{{tls}}}")).start();
        assert_eq!(proxy.post("/v1/chat/completions", CHAT).status(), 200, "{url} {tls}");
    }
    let served = backend.requests().len();
    for (url, tls, code, words) in [
        (url("127.0.0.1"), file(&own), "tls_wrong_name", "is for another name"),
        (url("localhost"), file(&other), "tls_self_signed", "is self-signed"),
        (url("localhost"), String::new(), "tls_self_signed", "is self-signed"),
    ] {
        let proxy = Config::new().backend(&url, &format!("tls: {{{tls}}}")).start();
        let answer = proxy.post("/v1/chat/completions", CHAT);
        answer.assert_refused(502, code);
        assert!(answer.text().contains(words), "{url} {tls}: {}", answer.text());
        proxy.await_event("the log says why", |event| {
            event["code"] == code && event["detail"].as_str().is_some_and(|d| d.contains(words))
        });
    }
    assert_eq!(backend.requests().len(), served);
}

/// Catches: an engine with a certificate of its own making, which calls itself an authority,
/// refused although `ca_file` holds exactly that one.
#[test]
fn an_engine_whose_own_certificate_is_in_ca_file_is_trusted() {
    let scratch = Scratch::new();
    let (pem, server) = crate::harness::tls::self_signed("127.0.0.1");
    let (other, _) = crate::harness::tls::self_signed("127.0.0.1");
    let backend = Backend::start_tls(server, serve_two_kinds);
    let url = backend.url_as("https", "127.0.0.1");
    for (pem, trusted) in [(other, false), (pem, true)] {
        let ca_file = scratch.write("own.pem", pem);
        let tls = format!("tls: {{ca_file: \"{}\"}}", ca_file.display());
        let proxy = Config::new().backend(&url, &tls).start();
        let answer = proxy.post("/v1/chat/completions", CHAT);
        match trusted {
            true => assert_eq!(answer.status(), 200),
            false => assert_eq!(answer.status(), 502),
        }
        assert_eq!(backend.requests().len(), usize::from(trusted));
    }
}

/// Catches: `server_name` that is not what the certificate is checked against, and
/// `insecure_skip_verify` that does not work or that is silent.
#[test]
fn the_name_that_is_checked_can_be_set_and_the_check_be_waived() {
    let authority = Authority::new();
    let scratch = Scratch::new();
    let ca_file = scratch.write("ca.pem", authority.pem());
    let named = format!("ca_file: \"{}\", server_name: gpu-1.test", ca_file.display());
    for tls in [named.as_str(), "insecure_skip_verify: true"] {
        let backend = Backend::start_tls(authority.server(&["gpu-1.test"]), serve_two_kinds);
        let url = backend.url_as("https", "127.0.0.1");
        let proxy = Config::new().backend(url, &format!("tls: {{{tls}}}")).start();
        assert_eq!(proxy.post("/v1/chat/completions", CHAT).text(), CHAT, "{tls}");
        let warned = proxy.process.stdout.text().contains("NOT verified");
        assert_eq!(warned, tls.starts_with("insecure"), "{tls}");
    }
}

/// Catches: a `ca_file` that cannot be read and that only shows with the first request.
#[test]
fn a_missing_ca_file_stops_the_start() {
    let scratch = Scratch::new();
    let config = Config::new()
        .backend("https://127.0.0.1:1", "name: gpu, tls: {ca_file: /nonexistent/ca.pem}")
        .yaml();
    let file = scratch.write("config.yaml", config);
    let ran = crate::harness::proxy::llmproxy(&["--config", &file.to_string_lossy()]);
    assert_ne!(ran.code, Some(0));
    let said = ran.stderr.lines().last().unwrap_or_default();
    assert!(said.contains("gpu") && said.contains("/nonexistent/ca.pem"), "{ran:?}");
}

/// Catches: an answer that says where it comes from though nobody wanted that told, or does not
/// where somebody did.
#[test]
fn answers_say_of_their_way_what_is_configured() {
    let backend = Backend::answering(crate::rig::OK);
    let config = Config::new().backend(backend.url(), "name: gpu-1");
    let answer = config.start().post(crate::rig::CHATS, CHAT);
    assert_eq!(
        (answer.head.get("x-llmproxy-backend"), answer.head.get("server-timing")),
        (None, None)
    );
    let headers = "routing: {response_headers: [X-LLMProxy-Backend, server-timing]}";
    let config = Config::new().backend(backend.url(), "name: gpu-1").section(headers);
    let answer = config.start().post(crate::rig::CHATS, CHAT);
    assert_eq!(answer.head.get("x-llmproxy-backend"), Some("gpu-1"));
    let timing = answer.head.get("server-timing").unwrap();
    let ms = timing.strip_prefix("llmproxy;dur=").and_then(|rest| rest.split_once(", "));
    let (ms, tries) = ms.unwrap_or_else(|| panic!("{timing}"));
    assert!(ms.parse::<f64>().is_ok_and(|ms| ms > 0.0) && tries == "tries;desc=\"1\"", "{timing}");
}
