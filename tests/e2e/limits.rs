//! Every limit of the client's side, in bytes, in time and in connections: what is beyond it is
//! refused with its own name, counted, and the connection ends.

use crate::harness::client::{post_bytes, Response};
use crate::harness::metrics::Metrics;
use crate::harness::{await_until, Backend, Config, Conn, Proxy, SOON};
use crate::rig::{pair, rejected, OK};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Catches: a body over the limit that is buffered or forwarded, by its declared length or by what
/// has arrived; a limit that is off by one.
#[test]
fn bodies_over_the_limit_are_413() {
    let (proxy, backend) = pair(&["max_body_size: 1000"]);
    let head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\n";
    let chunk = |n: usize| format!("{n:x}\r\n{}\r\n", "{".repeat(n));
    for fits in [
        format!("Content-Length: 1000\r\n\r\n{}", "{".repeat(1000)),
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
    conn.send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n");
    assert!(conn.try_send(body), "what fits in the linger is taken");
    conn.response().assert_refused(413, "body_too_large");
    conn.assert_ends();
}

/// Catches: a head that grows without a bound, in any of its dimensions.
#[test]
fn heads_over_the_limits_are_431_and_414() {
    let (proxy, backend) = pair(&[]);
    let get = |fields: String| format!("GET /v1/models HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let x = |n: usize| "x".repeat(n);
    let many = |n: usize| (0..n).map(|i| format!("X-{i}: {i}\r\n")).collect::<String>();
    for fits in [
        get(many(99)),
        get(format!("X-Long: {}\r\n", x(8000))),
        get((0..7).map(|i| format!("X-{i}: {}\r\n", x(8000))).collect()),
        format!("GET /v1/models/{} HTTP/1.1\r\nHost: a\r\n\r\n", x(8000)),
    ] {
        assert_eq!(proxy.connect().send(fits).response().status(), 200);
    }
    let large = (0..9).map(|i| format!("X-{i}: {}\r\n", x(8000))).collect::<String>();
    let cases = [
        (get(large), 431, "head_too_large"),
        (get(many(100)), 431, "too_many_fields"),
        (get(format!("X-Long: {}\r\n", x(8200))), 431, "field_too_long"),
        (get(format!("{}: 1\r\n", x(257))), 431, "field_name_too_long"),
        (format!("GET /v1/models/{} HTTP/1.1\r\nHost: a\r\n\r\n", x(8200)), 414, "target_too_long"),
        // Without an end, too: nothing more is needed to know.
        (format!("GET /v1/models/{}", x(10_000)), 414, "target_too_long"),
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
    let get =
        |n: usize| format!("GET /v1/models HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "{".repeat(n));
    assert_eq!(proxy.connect().send(get(900)).response().status(), 200);
    proxy.connect().send(get(1100)).response().assert_refused(431, "head_too_large");
}

/// Catches: a head that may take for ever, at one byte now and then; a deadline that each byte
/// starts anew; one that also ends a connection that sent nothing.
#[test]
fn a_slow_head_is_408() {
    let (proxy, _backend) = pair(&["header_timeout: 500ms"]);
    let mut quiet = proxy.connect();
    let mut conn = proxy.connect();
    let started = Instant::now();
    conn.send("GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Slow: ");
    while !conn.arrives_within(Duration::from_millis(20)) {
        assert!(started.elapsed() < SOON, "each byte starts the deadline anew");
        conn.try_send("x");
    }
    let response = conn.response();
    let took = started.elapsed();
    response.assert_refused(408, "header_timeout");
    assert_eq!(response.head.get("connection"), Some("close"));
    assert!(took >= Duration::from_millis(450), "{took:?}");
    assert_eq!(rejected(&proxy, "header_timeout"), 1.0);
    assert_eq!(quiet.get("/v1/models").status(), 200, "a connection that is idle is not slow");
}

/// Catches: a body that stops in its middle and holds the connection, in both framings.
#[test]
fn a_body_that_stops_is_408() {
    let (proxy, backend) = pair(&["body_timeout: 300ms"]);
    for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n5\r\nabc"] {
        let mut conn = proxy.connect();
        let started = Instant::now();
        conn.send(format!("POST /v1/completions HTTP/1.1\r\nHost: a\r\n{framing}"));
        conn.response().assert_refused(408, "body_timeout");
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(250), "{took:?}");
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
    conn.send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    while !conn.arrives_within(Duration::from_millis(250)) {
        assert!(started.elapsed() < 2 * SOON, "it goes on and on");
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
    assert_eq!(used.get("/v1/models").status(), 200);
    let started = Instant::now();
    used.assert_closes();
    fresh.assert_closes();
    assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
    assert_eq!(proxy.metric("llmproxy_rejected_total", &[]), 0.0);
}

/// Catches: connections beyond the limit that wait in silence or are reset; a slot that is not
/// given back; an answer without the hint when to come again; a proxy that cannot be looked at
/// when it matters.
#[test]
fn connections_over_the_limit_are_503() {
    let go_on = Arc::new(AtomicBool::new(false));
    let held = Arc::clone(&go_on);
    let backend = Backend::start(move |served| {
        while let Some(request) = served.request() {
            if request.head.get("x-hold").is_some() {
                await_until("the test goes on", 2 * SOON, || held.load(Ordering::Relaxed));
            }
            served.send(OK);
        }
    });
    let proxy = Config::backend_at(backend.url()).server("max_connections: 20").start();
    let mut held: Vec<_> = (0..20).map(|_| proxy.connect()).collect();
    for conn in &mut held {
        conn.send("GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Hold: 1\r\n\r\n");
    }
    await_until("all are at the engine", SOON, || backend.requests().len() == 20);
    for _ in 0..5 {
        let mut turned_away = proxy.connect();
        let response = turned_away.get("/v1/models");
        response.assert_refused(503, "overloaded");
        assert_eq!(response.head.get("retry-after"), Some("1"));
        assert_eq!(response.head.get("connection"), Some("close"));
        turned_away.assert_closes();
        let response = turned_away_body(&proxy);
        response.assert_refused(503, "overloaded");
    }
    for path in ["/health", "/ready", "/metrics"] {
        let mut guest = proxy.connect();
        let response = guest.get(path);
        assert_eq!((response.status(), response.head.get("connection")), (200, Some("close")));
        guest.assert_closes();
    }
    proxy.await_metric("llmproxy_connections_refused_total", &[], 10.0);
    assert_eq!(rejected(&proxy, "overloaded"), 10.0);
    go_on.store(true, Ordering::Relaxed);
    // Nine tenths are in use: what is forwarded now ends its connection.
    let answer = held[0].response();
    assert_eq!((answer.status(), answer.head.get("connection")), (200, Some("close")));
    held[0].assert_closes();
    await_until("the slot is free again", SOON, || proxy.get("/v1/models").status() == 200);
}

/// A client beyond the limit that does not wait with its body.
fn turned_away_body(proxy: &Proxy) -> Response {
    let mut conn = proxy.connect();
    conn.try_send(post_bytes("/v1/completions", "", "x".repeat(20_000)));
    conn.response()
}

/// Catches: clients that take all connections with a byte each and keep everybody out until
/// `header_timeout`, on new connections and on kept ones; and the same with bodies.
#[test]
fn who_sends_a_piece_of_a_request_gives_way() {
    let (proxy, backend) =
        pair(&["max_connections: 40", "header_timeout: 10m", "body_timeout: 10m"]);
    // More than there is room for: the oldest give way.
    let mut heads = Vec::new();
    for n in 0..60 {
        let mut conn = proxy.connect();
        if n % 2 == 0 && n < 30 {
            assert_eq!(conn.get("/health").status(), 200);
        }
        conn.send("P");
        heads.push(conn);
    }
    for _ in 0..10 {
        assert_eq!(proxy.get("/health").status(), 200);
        assert_eq!(proxy.post("/v1/completions", "{}").status(), 200);
    }
    await_until("all have given way", SOON, || proxy.metric(OPEN, &[]) == 1.0);
    let answered = |conn: &mut Conn| {
        conn.arrives_within(SOON) && conn.any_head().is_some_and(|head| head.status() == 408)
    };
    let slow = heads.iter_mut().map(answered).filter(|answered| *answered).count();
    assert_eq!(rejected(&proxy, "header_timeout"), slow as f64);
    assert!(slow >= 20, "{slow}");
    let closed = proxy.metric("llmproxy_crowded_closed_total", &[("kind", "head")]);
    assert!(closed >= 20.0, "{closed}");
    let part = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{";
    let begin = |_| {
        let mut conn = proxy.connect();
        conn.send(part);
        conn
    };
    let mut bodies: Vec<_> = (0..36).map(begin).collect();
    bodies.iter_mut().for_each(|conn| conn.response().assert_refused(408, "body_too_slow"));
    assert!(backend.requests().iter().all(|request| request.body == b"{}"));
}

const OPEN: &str = "llmproxy_connections_open";

/// Catches: clients that take all connections, say nothing, and keep everybody out for as long as a
/// connection may idle; connections that are closed in a hurry while there is room.
#[test]
fn near_the_limit_the_silent_are_closed_soon() {
    let (proxy, _backend) = pair(&["max_connections: 20"]);
    let files = proxy.open_files();
    let mut silent: Vec<_> = (0..17).map(|_| proxy.connect()).collect();
    await_until("all are accepted", SOON, || proxy.open_files() >= files + 17);
    silent[0].assert_silent(Duration::from_millis(1500));
    // This one makes it nine tenths. It has sent something, and may idle.
    let mut busy = proxy.connect();
    assert_eq!(busy.get("/health").status(), 200);
    silent.iter_mut().for_each(Conn::assert_closes);
    assert_eq!(busy.get("/health").status(), 200);
    let closed = proxy.metric("llmproxy_crowded_closed_total", &[("kind", "silent")]);
    assert_eq!(closed, 17.0);
    assert_eq!(rejected(&proxy, "overloaded"), 0.0);
}

/// Catches: a probe that costs a client its connection, or that is refused, when all are taken; a
/// client that is kept out by idle ones, or takes the place of one that was used later.
#[test]
fn at_the_limit_only_who_asks_for_an_engine_costs_another_its_connection() {
    let backend = Backend::start(|served| {
        while let Some(request) = served.request() {
            if request.head.get("x-hold").is_some() {
                // Until the proxy ends.
                served.request();
                return;
            }
            served.send(OK);
        }
    });
    let proxy = Config::backend_at(backend.url()).server("max_connections: 20").start();
    // Beyond nine tenths, what was forwarded closes its connection: so many may idle.
    let mut kept: Vec<_> = (0..17).map(|_| proxy.connect()).collect();
    for conn in &mut kept {
        assert_eq!(conn.post("/v1/completions", "", "{}").status(), 200);
    }
    let mut held: Vec<_> = (0..3).map(|_| proxy.connect()).collect();
    for conn in &mut held {
        conn.send("GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Hold: 1\r\n\r\n");
    }
    await_until("all are at the engine", SOON, || backend.requests().len() == 20);
    for _ in 0..10 {
        for path in ["/health", "/ready", "/metrics"] {
            assert_eq!(proxy.get(path).status(), 200);
        }
    }
    // More than there are places for guests: who says nothing gives way, or goes after a second.
    let silent: Vec<_> = (0..100).map(|_| proxy.connect()).collect();
    await_until("a probe is answered", SOON, || {
        let mut probe = proxy.connect();
        probe.try_send("GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            && probe.arrives_within(SOON)
            && probe.any_head().is_some_and(|head| head.status() == 200)
    });
    await_until("they are gone", SOON, || proxy.metric(OPEN, &[]) == 21.0);
    let idle = [("kind", "idle")];
    drop(silent);
    assert_eq!(proxy.metric("llmproxy_crowded_closed_total", &idle), 0.0);
    kept.iter_mut().for_each(|conn| assert!(!conn.arrives_within(Duration::ZERO)));
    assert_eq!(proxy.post("/v1/completions", "{}").status(), 200);
    kept[0].assert_closes();
    assert_eq!(proxy.metric("llmproxy_crowded_closed_total", &idle), 1.0);
    for conn in &mut kept[1..] {
        assert_eq!(conn.post("/v1/completions", "", "{}").status(), 200);
    }
}

/// Catches: kept connections that nobody uses, and that keep new clients out; one that gives way
/// though it was used a moment ago.
#[test]
fn at_the_limit_the_longest_idle_gives_way() {
    let (proxy, _backend) = pair(&["max_connections: 20"]);
    let mut kept: Vec<_> = (0..19).map(|_| proxy.connect()).collect();
    kept.iter_mut().for_each(|conn| assert_eq!(conn.get("/health").status(), 200));
    // One that says nothing goes after a second: by then the others have idled for long enough to
    // give way to new ones, but for the first, which is now the last.
    let silent = proxy.connect();
    await_until("it is gone", SOON, || {
        let page = Metrics::parse(&kept[0].get("/metrics").text());
        page.sum("llmproxy_crowded_closed_total", &[("kind", "silent")]) == 1.0
            && page.sum("llmproxy_connections_open", &[]) == 19.0
    });
    drop(silent);
    kept.push(proxy.connect());
    assert_eq!(kept[19].get("/health").status(), 200);
    assert_eq!(kept[0].get("/health").status(), 200);
    let mut fresh: Vec<_> = (0..3).map(|_| proxy.connect()).collect();
    for conn in &mut fresh {
        assert_eq!(conn.get("/health").status(), 200);
    }
    kept[1..4].iter_mut().for_each(Conn::assert_closes);
    for conn in kept[4..].iter_mut().chain(&mut fresh) {
        assert_eq!(conn.get("/health").status(), 200);
    }
    assert_eq!(kept[0].get("/health").status(), 200);
    let page = Metrics::parse(&fresh[0].get("/metrics").text());
    assert_eq!(page.sum("llmproxy_crowded_closed_total", &[("kind", "idle")]), 3.0);
    assert_eq!(page.sum("llmproxy_connections_refused_total", &[]), 0.0);
    assert_eq!(page.sum("llmproxy_connections_open", &[]), 20.0);
}
