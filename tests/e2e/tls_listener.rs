//! TLS towards clients: what they get over it, who is refused, and certificates that change.
//! `LLMPROXY_TEST_TLS=1` runs all other tests over TLS too.

use crate::harness::message::Ended;
use crate::harness::metrics::Metrics;
use crate::harness::process::{program, run};
use crate::harness::scratch::Scratch;
use crate::harness::stream::Stream;
use crate::harness::tls::{Authority, Pki};
use crate::harness::{await_until, Backend, Config, Conn, Engine, Proxy, SOON};
use crate::rig::{CHAT, CHATS, OK, STREAM};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

fn secured(pki: &Pki, config: Config, more: &str) -> Proxy {
    let mut proxy = config.server(pki.server_line(more)).start();
    proxy.tls = Some(pki.client());
    proxy
}

fn before_engine(pki: &Pki, more: &str) -> (Engine, Proxy) {
    let engine = Engine::start(&[]);
    let proxy = secured(pki, Config::backend_at(engine.url()), more);
    (engine, proxy)
}

/// Whether a client gets an answer.
fn is_served(proxy: &Proxy, config: &Arc<ClientConfig>) -> bool {
    let mut conn = Conn::open_tls(proxy.addr(), Arc::clone(config));
    if !conn.try_send("GET /health HTTP/1.1\r\nHost: test\r\n\r\n") {
        return false;
    }
    let mut first = [0u8; 12];
    let got = conn.stream().read_within(&mut first, SOON);
    matches!(got, Ok(n) if n > 0)
}

fn failed(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric("llmproxy_tls_handshakes_failed_total", &[("reason", reason)])
}

/// Catches: an answer that differs over TLS, a stream whose end is not announced, a version that is
/// not spoken, an engine that takes the client's connection for a plain one.
#[test]
fn clients_are_served_with_either_version() {
    let pki = Pki::new();
    let (engine, proxy) = before_engine(&pki, "");
    for (version, name) in [(&TLS12, "1.2"), (&TLS13, "1.3")] {
        let before = proxy.metric("llmproxy_tls_handshakes_total", &[("version", name)]);
        let mut conn = Conn::open_tls(proxy.addr(), pki.client_of(&[version]));
        assert_eq!(conn.post(CHATS, "", CHAT).status(), 200);
        let streamed = conn.post(CHATS, "", STREAM);
        assert_eq!((streamed.status(), streamed.ended), (200, Ended::Whole));
        assert!(streamed.text().ends_with("data: [DONE]\n\n"), "{}", streamed.text());
        let after = proxy.metric("llmproxy_tls_handshakes_total", &[("version", name)]);
        // The page comes over TLS as well, with the newest.
        assert!(after > before, "TLS {name} is counted");
    }
    let posts = engine.posts();
    assert_eq!(posts.len(), 4);
    for post in posts {
        let head = post["head"].as_str().unwrap().to_ascii_lowercase();
        assert!(head.contains("x-forwarded-proto: https"), "{head}");
    }
}

/// Catches: an event that waits in the session for the next one: the engine stalls behind it.
#[test]
fn each_event_is_sent_at_once() {
    let pki = Pki::new();
    let (engine, proxy) = before_engine(&pki, "");
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "x-mock-stall-after: 3\r\n", STREAM);
    assert_eq!(conn.head().status(), 200);
    let mut seen = String::new();
    while seen.matches("data: ").count() < 3 {
        seen += &String::from_utf8_lossy(&conn.next_piece().unwrap().bytes);
    }
    assert_eq!(engine.posts()[0]["ended"], "stalled");
    // Who leaves frees the engine, as without TLS.
    drop(conn);
    await_until("the engine is freed", SOON, || engine.posts()[0]["ended"] == "cancelled");
}

/// Catches: a buffer held by each connection that is kept between two requests: a session was asked
/// whether it has more, and had not.
#[test]
fn a_kept_connection_holds_no_buffer() {
    let pki = Pki::new();
    let engine = Engine::start(&[]);
    let config = Config::backend_at(engine.url()).section("metrics: {listen: \"127.0.0.1:0\"}");
    let proxy = secured(&pki, config, "");
    let event = proxy.await_event("the page listens", |event| event["message"] == "metrics");
    let page: SocketAddr = event["addr"].as_str().unwrap().parse().unwrap();
    let kept: Vec<Conn> = (0..20)
        .map(|_| {
            let mut conn = proxy.connect();
            assert_eq!(conn.post(CHATS, "", CHAT).status(), 200);
            conn
        })
        .collect();
    await_until("they hold none", SOON, || {
        let metrics = Metrics::parse(&Conn::open(page).get("/metrics").text());
        metrics.sum("llmproxy_buffers", &[("state", "in_use")]) == 0.0
    });
    drop(kept);
}

/// Catches: bytes lost or doubled where the socket is full, and a slow client for which the whole
/// answer is held.
#[test]
fn large_bodies_arrive_whole_both_ways() {
    const BYTES: usize = 3 * 1024 * 1024;
    let pki = Pki::new();
    let body: Vec<u8> = (0..BYTES).map(|at| b'a' + (at / 7 % 26) as u8).collect();
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n").into_bytes();
    answer.extend_from_slice(&body);
    let backend = Backend::answering(answer);
    let proxy = secured(&pki, Config::backend_at(backend.url()), "");
    let text = String::from_utf8(body.clone()).unwrap();
    let sent = format!("{{\"model\":\"m\",\"prompt\":\"{text}\"}}");
    let mut conn = proxy.connect();
    for _ in 0..2 {
        let got = conn.post(CHATS, "", &sent);
        assert_eq!((got.status(), got.body == body), (200, true));
    }
}

/// Catches: a request whose first record fills the first buffer to its last byte, and that loses
/// the room for more while it waits: the client is taken for gone.
#[test]
fn a_request_may_pause_where_a_buffer_ends() {
    const RECORD: usize = 16 * 1024;
    let (pki, backend) = (Pki::new(), Backend::answering(OK));
    let config = Config::backend_at(backend.url()).section("metrics: {listen: \"127.0.0.1:0\"}");
    let proxy = secured(&pki, config, "");
    let event = proxy.await_event("the page listens", |event| event["message"] == "metrics");
    let page: SocketAddr = event["addr"].as_str().unwrap().parse().unwrap();
    let body = format!("{{\"model\":\"m\",\"prompt\":\"{}\"}}", "x".repeat(3 * RECORD));
    let length = body.len();
    let fields = format!("Host: t\r\nContent-Length: {length}\r\n\r\n");
    let head = format!("POST {CHATS} HTTP/1.1\r\n{fields}");
    let request = head + &body;
    let mut conn = proxy.connect();
    conn.send(&request[..RECORD]);
    await_until("it waits for the rest", SOON, || {
        let metrics = Metrics::parse(&Conn::open(page).get("/metrics").text());
        metrics.sum("llmproxy_buffers", &[("state", "in_use")]) > 0.0
    });
    assert_eq!(conn.send(&request[RECORD..]).response().status(), 200);
}

/// Catches: a body that somebody cut taken for a whole one, or its request sent to an engine.
#[test]
fn a_cut_request_reaches_no_engine() {
    let pki = Pki::new();
    let (engine, proxy) = before_engine(&pki, "");
    let mut conn = proxy.connect();
    conn.send(format!("POST {CHATS} HTTP/1.1\r\nHost: t\r\nContent-Length: 400\r\n\r\n{{"));
    // No word of TLS that it ends.
    conn.stream().shutdown(Shutdown::Write);
    let aborted = [("phase", "request")];
    await_until("it is counted", SOON, || {
        proxy.metric("llmproxy_client_abort_total", &aborted) == 1.0
    });
    assert!(engine.posts().is_empty());
}

/// Catches: a close that the client cannot tell from a cut: it ends without the farewell of TLS.
#[test]
fn a_close_is_announced() {
    let pki = Pki::new();
    let (_engine, proxy) = before_engine(&pki, "");
    let mut conn = proxy.connect();
    conn.send("GET /health HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
    assert_eq!(conn.response().status(), 200);
    // An end that was not announced is an error.
    assert_eq!(conn.stream().read_within(&mut [0u8; 8], SOON).unwrap(), 0);
}

/// Catches: a client without a certificate, or with a stranger's, that gets in; a known one that
/// does not.
#[test]
fn clients_show_certificates_where_they_must() {
    let pki = Pki::new();
    let (known, stranger) = (pki.client_known_by(pki.authority()), Authority::new());
    let stranger = pki.client_known_by(&stranger);
    for (auth, without) in [("require", false), ("request", true)] {
        let more = format!(", client_ca_file: \"{}\", client_auth: {auth}", pki.path("ca.pem"));
        let (_engine, mut proxy) = before_engine(&pki, &more);
        proxy.tls = Some(Arc::clone(&known));
        assert!(is_served(&proxy, &known), "{auth}: known");
        assert!(!is_served(&proxy, &stranger), "{auth}: a stranger");
        assert_eq!(is_served(&proxy, &pki.client()), without, "{auth}: none");
        let refused = if without { 1.0 } else { 2.0 };
        assert_eq!(failed(&proxy, "certificate"), refused, "{auth}");
    }
}

/// Catches: one that does not speak TLS and is served, or answered in plain words; a failure that
/// nobody counts, and one that waits for ever.
#[test]
fn what_is_no_handshake_is_closed_and_counted() {
    let pki = Pki::new();
    let engine = Engine::start(&[]);
    let config = Config::backend_at(engine.url()).server("header_timeout: 500ms");
    let proxy = secured(&pki, config, "");
    let mut plain = Conn::open(proxy.addr());
    plain.send("GET /health HTTP/1.1\r\nHost: t\r\n\r\n");
    let mut got = Vec::new();
    let _ = plain.stream().tcp().read_to_end(&mut got);
    assert!(!got.starts_with(b"HTTP"), "{got:?}");
    let silent = Conn::open(proxy.addr());
    await_until("the silent one is counted", SOON, || failed(&proxy, "timeout") == 1.0);
    drop(silent);
    drop(Conn::open(proxy.addr()));
    await_until("the one that left is counted", SOON, || failed(&proxy, "closed") == 1.0);
    assert_eq!(failed(&proxy, "not_tls"), 1.0);
}

/// Catches: a handshake in full for each connection of a client that was here before.
#[test]
fn sessions_are_resumed() {
    let pki = Pki::new();
    let (_engine, proxy) = before_engine(&pki, "");
    for version in [&TLS12, &TLS13] {
        let client = pki.client_of(&[version]);
        let kinds = [(); 2].map(|()| {
            let mut conn = Conn::open_tls(proxy.addr(), Arc::clone(&client));
            assert_eq!(conn.get("/health").status(), 200);
            conn.tls_session().handshake_kind().unwrap()
        });
        assert_eq!(kinds[1], HandshakeKind::Resumed, "{version:?}");
    }
}

/// Catches: a certificate that is renewed and not used before a restart, a bad pair that takes the
/// good one away, and connections that a renewal ends or refuses.
#[test]
fn certificates_are_swapped_under_load() {
    const SWAPS: usize = 100;
    let pki = Pki::new();
    let backend = Backend::answering(OK);
    let proxy = secured(&pki, Config::backend_at(backend.url()), "");
    let mut kept = proxy.connect();
    assert_eq!(kept.post(CHATS, "", CHAT).status(), 200);
    let shown = || {
        let mut conn = proxy.connect();
        assert_eq!(conn.get("/health").status(), 200);
        conn.tls_session().peer_certificates().unwrap()[0].to_vec()
    };
    let (first, over, served) = (shown(), AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(proxy.get("/health").status(), 200);
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..SWAPS {
            pki.renew();
            assert!(proxy.reload());
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(served.load(Ordering::Relaxed) > 0);
    let last = shown();
    assert_ne!(first, last);
    pki.spoil();
    assert!(!proxy.reload(), "a key of another certificate");
    assert_eq!(shown(), last);
    assert_eq!(kept.post(CHATS, "", CHAT).status(), 200, "a connection outlives them all");
    assert_eq!(proxy.metric("llmproxy_tls_handshakes_failed_total", &[]), 0.0);
}

/// Catches: an engine that works for a client which has said over TLS that it is gone, and leaves
/// its connection open; and one that is served for as long as it reads, where it may be, cut off.
#[test]
fn a_goodbye_without_a_close_is_one() {
    let pki = Pki::new();
    for (half_close, ended) in [("leave", "cancelled"), ("serve", "complete")] {
        let engine = Engine::start(&[]);
        let config = Config::backend_at(engine.url()).server(format!("half_close: {half_close}"));
        let proxy = secured(&pki, config, "");
        let mut conn = proxy.connect();
        let fields = match half_close {
            "leave" => "x-mock-stall-before-head: 1\r\n",
            _ => "x-mock-gap-ms: 100\r\n",
        };
        conn.start_post(CHATS, fields, STREAM);
        await_until("the engine has it", SOON, || !engine.posts().is_empty());
        conn.stream().say_goodbye();
        if half_close == "serve" {
            assert_eq!(conn.response().ended, Ended::Whole);
        }
        await_until(ended, SOON, || engine.posts()[0]["ended"] == ended);
    }
}

/// Catches: handshakes that say a byte and hold all places for as long as they may.
#[test]
fn a_silent_handshake_gives_way() {
    const PLACES: usize = 1024;
    let (pki, backend) = (Pki::new(), Backend::answering(OK));
    let config = Config::backend_at(backend.url())
        .server("workers: 1")
        .server("header_timeout: 600s")
        .section("metrics: {listen: \"127.0.0.1:0\"}");
    let proxy = secured(&pki, config, "");
    let event = proxy.await_event("the page listens", |event| event["message"] == "metrics");
    let page: SocketAddr = event["addr"].as_str().unwrap().parse().unwrap();
    let too_many = || {
        let metrics = Metrics::parse(&Conn::open(page).get("/metrics").text());
        metrics.sum("llmproxy_tls_handshakes_failed_total", &[("reason", "too_many")])
    };
    let silent = || {
        let mut conn = Conn::open(proxy.addr());
        conn.send([22]);
        conn
    };
    let mut held: Vec<Conn> = (0..PLACES).map(|_| silent()).collect();
    await_until("all places are taken", SOON, || {
        held.push(silent());
        too_many() > 0.0
    });
    await_until("a client is served", SOON, || is_served(&proxy, &pki.client()));
    drop(held);
}

/// Catches: a balancer's header that is taken for a handshake, an address that is lost over it, and
/// an access log that does not say what was spoken.
#[test]
fn the_header_of_a_balancer_comes_before_the_handshake() {
    let (pki, scratch) = (Pki::new(), Scratch::new());
    let backend = Backend::answering(OK);
    let file = scratch.file("access.log");
    let log =
        format!("logging: {{access: {{output: file, file: {{path: \"{}\"}}}}}}", file.display());
    let config = Config::backend_at(backend.url()).section(log);
    let config = config.server("trusted_proxies: [127.0.0.0/8]").server("proxy_protocol: true");
    let mut proxy = config.server(pki.server_line("")).start();
    proxy.tls = Some(pki.client());
    for (version, name) in [(&TLS12, "TLSv1.2 ECDHE-"), (&TLS13, "TLSv1.3 TLS_")] {
        let before = backend.requests().len();
        let mut tcp = std::net::TcpStream::connect(proxy.addr()).unwrap();
        tcp.write_all(b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 443\r\n").unwrap();
        let stream = Stream::tls_over(tcp, "localhost", pki.client_of(&[version])).unwrap();
        assert_eq!(Conn::over(stream).post(CHATS, "", CHAT).status(), 200);
        let heard = backend.requests().split_off(before);
        assert_eq!(heard[0].head.all("x-forwarded-for"), ["192.0.2.7"]);
        let mut text = String::new();
        await_until("there is a line", SOON, || {
            text = std::fs::read_to_string(&file).unwrap_or_default();
            text.lines().any(|line| line.contains(name))
        });
        let line = text.lines().find(|line| line.contains(name)).unwrap();
        assert!(line.contains("192.0.2.7"), "{line}");
    }
}

/// Catches: a generator of load that measures something else over TLS than what was sent: answers
/// that it does not read to their end, large ones above all, and connections that it does not keep.
#[test]
fn the_load_of_the_benchmarks_passes() {
    let pki = Pki::new();
    let (_engine, proxy) = before_engine(&pki, "");
    let target = format!("https://{}", proxy.addr());
    let common = ["--target", target.as_str(), "--json", "-", "--verify", "--connections", "4"];
    let kinds: [&[&str]; 3] = [
        &["--requests", "200", "--prompt-bytes", "204800"],
        &["--requests", "40", "--stream", "--tokens", "20", "--gap-ms", "2"],
        &["--requests", "20", "--path", "/v1/embeddings", "--answer-bytes", "1048576"],
    ];
    for more in kinds {
        let args = [&common, more].concat();
        let ran = run(&program("loadgen"), &args, Duration::from_secs(60));
        assert_eq!(ran.code, Some(0), "{more:?}: {}\n{}", ran.stdout, ran.stderr);
        let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(report["requests"].to_string(), more[1], "{report}");
        assert!(report["errors"] == 0 && report["connects"] == 4, "{report}");
    }
}
