//! What all clients together may make the proxy hold in memory: bounded, counted, given back.

use crate::harness::client::{in_chunks, post_bytes};
use crate::harness::{await_until, heavy, Backend, Config, Conn, Proxy, SOON};
use crate::rig::{pair, rejected, OK};
use std::io::Write;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
const BUFFERED: &str = "llmproxy_buffered_bytes";
/// What a client may have beside: a small buffer, which health and readiness need too.
const SMALL: f64 = 16384.0;

/// The beginning of a request with a body of a MiB.
fn unfinished(bytes: usize) -> Vec<u8> {
    let head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n\r\n";
    [head.as_bytes(), &vec![b'x'; bytes]].concat()
}

/// A body of so many bytes that any engine reads.
fn body_of(bytes: usize) -> Vec<u8> {
    format!("{{\"x\":\"{}\"}}", "x".repeat(bytes - 8)).into_bytes()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// Waits until nothing is held but what a scrape needs.
fn assert_given_back(proxy: &Proxy) {
    await_until("all bytes are given back", SOON, || proxy.metric(BUFFERED, &[]) <= 4.0 * SMALL);
}

/// Catches: clients that hold as much memory as they like, with bodies that they do not finish; a
/// proxy that cannot be looked at meanwhile, or that does not recover.
#[test]
fn unfinished_bodies_have_a_bound_together() {
    const CLIENTS: usize = 60;
    let _alone = heavy();
    let (proxy, _backend) = pair(&["max_body_size: 1MiB", "max_buffered_bytes: 8MiB"]);
    let bound = proxy.metric("llmproxy_buffered_bytes_max", &[]);
    assert_eq!(bound, 8.0 * MIB as f64);
    let mut clients: Vec<Conn> = Vec::new();
    for _ in 0..CLIENTS {
        let mut conn = proxy.connect();
        // Refused, it may close before it has taken all.
        conn.try_send(unfinished(MIB - 100_000));
        clients.push(conn);
        // Now and then: who holds bytes for some seconds and brings no more gives way.
        if clients.len().is_multiple_of(15) {
            let held = proxy.metric(BUFFERED, &[]);
            assert!(held <= bound + SMALL * CLIENTS as f64, "{held} bytes of {bound}");
        }
    }
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(proxy.get(path).status(), 200, "{path}");
    }
    // Those that got no room, and those that held some and brought nothing more.
    let refused = clients.iter_mut().map(Conn::response);
    let (full, slow): (Vec<_>, Vec<_>) = refused.partition(|refused| refused.status() == 503);
    slow.iter().for_each(|refused| refused.assert_refused(408, "body_too_slow"));
    for refused in &full {
        refused.assert_refused(503, "overloaded");
        assert_eq!(refused.head.get("retry-after"), Some("1"));
        assert_eq!(refused.head.get("connection"), Some("close"));
    }
    assert!(full.len() >= 2 && slow.len() >= 4, "{} {}", full.len(), slow.len());
    drop(clients);
    assert_given_back(&proxy);
    let whole = proxy.post("/v1/completions", body_of(MIB - 100));
    assert_eq!(whole.status(), 200);
}

/// Catches: bytes that stay counted, or stay held, behind any way that a body can end.
#[test]
fn however_a_body_ends_its_bytes_are_given_back() {
    let backend = Backend::answering(OK);
    let config = Config::backend_at(backend.url()).server("max_body_size: 1MiB");
    let proxy = config.server("max_buffered_bytes: 8MiB").server("body_timeout: 2s").start();
    let body = body_of(MIB - 1000);
    let whole = post_bytes("/v1/completions", "", &body);
    let chunked = |bytes: &[u8]| {
        let head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        [head.as_bytes(), &in_chunks(bytes, &[100_000])].concat()
    };
    // Digits that do not pack well: the packed and the unpacked body both count.
    let mut random = 1u64;
    let digits = std::iter::repeat_with(|| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        char::from(b'a' + (random >> 60) as u8)
    });
    let body_of_digits = format!("{{\"x\":\"{}\"}}", digits.take(MIB - 1000).collect::<String>());
    let packed = post_bytes("/v1/completions", "Content-Encoding: gzip\r\n", gzip(&body_of_digits));
    assert!(packed.len() > MIB / 3);
    // More often than the budget would bear if anything stayed.
    for round in 0..12 {
        assert_eq!(proxy.connect().send(&whole).response().status(), 200);
        assert_eq!(proxy.connect().send(chunked(&body)).response().status(), 200);
        assert_eq!(proxy.connect().send(&packed).response().status(), 200);
        // Behind a body a piece of the next request: it must not hold what the body held.
        let mut piped = proxy.connect();
        piped.send([whole.as_slice(), b"POST /v1"].concat());
        assert_eq!(piped.response().status(), 200);
        // A timeout must be long, or a busy machine is taken for one; so there are few.
        if round % 4 == 0 {
            let mut stalled = proxy.connect();
            stalled.send(unfinished(MIB / 2)).response().assert_refused(408, "body_timeout");
        }
        let mut large = proxy.connect();
        large.try_send(chunked(&body_of(MIB + 100)));
        large.response().assert_refused(413, "body_too_large");
        let mut bad = proxy.connect();
        let unended = chunked(&body);
        bad.try_send([&unended[..unended.len() - 5], b"no chunk\r\n"].concat());
        bad.response().assert_refused(400, "bad_chunk");
        // This one leaves.
        proxy.connect().send(unfinished(MIB / 2));
        assert_given_back(&proxy);
        assert_eq!(rejected(&proxy, "overloaded"), 0.0, "round {round}");
        drop(piped);
    }
    assert_eq!(proxy.metric("llmproxy_panics_total", &[]), 0.0);
}

/// Catches: a client that sends much at once and holds it with a byte now and then: the average
/// since the start says for hours that it is fast enough.
#[test]
fn a_body_that_came_fast_and_then_drips_is_408() {
    let (proxy, backend) = pair(&[]);
    let mut conn = proxy.connect();
    conn.send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n");
    conn.send(vec![b'x'; 4 * MIB]);
    let started = Instant::now();
    while !conn.arrives_within(Duration::from_millis(250)) {
        assert!(started.elapsed() < Duration::from_secs(60), "it goes on and on");
        conn.try_send("x");
    }
    conn.response().assert_refused(408, "body_too_slow");
    assert!(started.elapsed() >= Duration::from_secs(9), "{:?}", started.elapsed());
    assert_eq!(backend.connections(), 0);
    assert_given_back(&proxy);
}

/// Catches: a few clients that take the whole budget, hold it with a byte now and then as the floor
/// allows, and keep everybody else's chats out; for long, or for a moment.
#[test]
fn slow_bodies_give_way_and_never_keep_small_ones_out() {
    let _alone = heavy();
    let (proxy, backend) = pair(&["max_body_size: 2MiB", "max_buffered_bytes: 8MiB"]);
    let head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2097152\r\n\r\n";
    let mut slow: Vec<Conn> = (0..4).map(|_| proxy.connect()).collect();
    for conn in &mut slow {
        conn.try_send([head.as_bytes(), &vec![b'x'; 2 * MIB - 100_000]].concat());
    }
    // The last one may have been refused, and nobody counts what is on its way.
    let mut ended = 0;
    let started = Instant::now();
    while ended < slow.len() {
        let small = proxy.post("/v1/completions", body_of(20_000));
        assert_eq!(small.status(), 200, "{}", small.text());
        assert!(started.elapsed() < SOON, "{ended} of them gave way");
        for conn in &mut slow {
            conn.try_send(vec![b'x'; 300]);
        }
        let arrived = |conn: &mut Conn| conn.arrives_within(Duration::from_millis(50));
        ended = slow.iter_mut().map(arrived).filter(|arrived| *arrived).count();
    }
    assert!(rejected(&proxy, "body_too_slow") >= 3.0);
    assert_given_back(&proxy);
    assert_eq!(proxy.post("/v1/completions", body_of(2 * MIB - 100)).status(), 200);
    assert!(backend.requests().iter().all(|request| request.body.starts_with(b"{")));
}

/// Catches: a client that sends 17 KiB and makes the proxy hold fifteen times as much, because of
/// what it announced or because a head may become longer.
#[test]
fn who_sends_little_holds_little() {
    const CLIENTS: usize = 20;
    let many_fields = format!("X: {}\r\n", "x".repeat(5_600)).repeat(3);
    let posts = "POST /v1/completions HTTP/1.1\r\nHost: a\r\n";
    let body = format!("{posts}Content-Length: 30000000\r\n\r\n{}", "x".repeat(17_000));
    let chunk = format!("{posts}Transfer-Encoding: chunked\r\n\r\n4268\r\n{}", "x".repeat(17_000));
    for bytes in [format!("{posts}{many_fields}"), body, chunk] {
        let (proxy, _backend) = pair(&[]);
        let mut clients: Vec<Conn> = (0..CLIENTS).map(|_| proxy.connect()).collect();
        for conn in &mut clients {
            conn.send(&bytes);
        }
        let (least, most) = (CLIENTS as f64 * 4.0 * SMALL, CLIENTS as f64 * 5.0 * SMALL);
        await_until("all are taken in", SOON, || proxy.metric(BUFFERED, &[]) >= least);
        let held = proxy.metric(BUFFERED, &[]);
        assert!(held <= most + 4.0 * SMALL, "{held} bytes for {} bytes", &bytes[..60]);
    }
}
