//! What happens on and between connections: keep-alive on both sides, pipelining, HTTP/1.0, HEAD,
//! `Expect`, and the first byte out as soon as it is in.

use crate::harness::backend::Served;
use crate::harness::message::Ended;
use crate::harness::{await_until, pause, Backend, Config, Engine, SOON};
use std::sync::mpsc::channel;
use std::sync::Mutex;
use std::time::Duration;

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"Count."}]}"#;

/// Catches: a token that waits for the next one, or for a buffer to fill. The engine goes on only
/// when the client has seen what was sent before: a proxy that holds anything back hangs here.
#[test]
fn each_token_arrives_before_the_engine_sends_the_next() {
    let (go_on, signals) = channel::<()>();
    let signals = Mutex::new(signals);
    let backend = Backend::start(move |served| {
        let wait = || signals.lock().unwrap().recv_timeout(SOON).is_ok();
        served.request();
        // First the head alone: a client learns its status from it.
        served.begin_events();
        for number in 0..5 {
            if !wait() || !served.chunk(&format!("data: {number}\n\n")) {
                return;
            }
        }
        wait();
        served.send("0\r\n\r\n");
        wait();
    });
    let proxy = Config::backend_at(backend.url()).start();
    let mut conn = proxy.connect().patience(Duration::from_secs(5));
    conn.start_post("/v1/chat/completions", "", CHAT);
    let head = conn.head();
    assert_eq!(head.get("transfer-encoding"), Some("chunked"));
    for number in 0..5 {
        go_on.send(()).unwrap();
        let mut got = Vec::new();
        while got.len() < 9 {
            got.extend(conn.next_piece().unwrap().bytes);
        }
        assert_eq!(String::from_utf8_lossy(&got), format!("data: {number}\n\n"));
    }
    go_on.send(()).unwrap();
    assert_eq!(conn.next_piece().unwrap_err(), Ended::Whole);
    go_on.send(()).unwrap();
}

/// Catches: the same for a body with a length, and for one that ends with the close: half an
/// event, even a single byte, must not wait for more.
#[test]
fn bytes_of_other_framings_are_not_held_back_either() {
    for (framing, ended) in [("Content-Length: 6\r\n", Ended::Whole), ("", Ended::Whole)] {
        let (go_on, signals) = channel::<()>();
        let signals = Mutex::new(signals);
        let backend = Backend::start(move |served| {
            served.request();
            served.send(format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n{framing}\r\n"));
            for byte in ["a", "b", "c", "d", "e", "f"] {
                if signals.lock().unwrap().recv_timeout(SOON).is_err() {
                    return;
                }
                served.send(byte);
            }
        });
        let proxy = Config::backend_at(backend.url()).start();
        let mut conn = proxy.connect().patience(Duration::from_secs(5));
        conn.send("GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n").head();
        for byte in *b"abcdef" {
            go_on.send(()).unwrap();
            let mut got = conn.next_piece().unwrap().bytes;
            if got.is_empty() {
                got = conn.next_piece().unwrap().bytes;
            }
            assert_eq!(got, [byte], "{framing:?}");
        }
        assert_eq!(conn.next_piece().unwrap_err(), ended, "{framing:?}");
    }
}

/// Catches: a fresh connection to the engine for every request, on one client connection and on
/// many.
#[test]
fn connections_to_the_engine_are_kept() {
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url()).start();
    let mut conn = proxy.connect();
    for _ in 0..20 {
        assert_eq!(conn.post("/v1/chat/completions", "", CHAT).status(), 200);
    }
    for _ in 0..20 {
        assert_eq!(proxy.post("/v1/chat/completions", CHAT).status(), 200);
    }
    let posts = engine.posts();
    assert_eq!(posts.len(), 40);
    assert!(posts.iter().all(|post| post["conn"] == posts[0]["conn"]), "one connection for all");
    let kinds = |reused| proxy.metric("llmproxy_upstream_connections_total", &[("reused", reused)]);
    assert_eq!((kinds("false"), kinds("true")), (1.0, 39.0));
}

/// Catches: a connection that is used again although the engine said that it closes it, or that
/// answers must close the client's as well.
#[test]
fn an_engine_that_closes_is_connected_to_anew() {
    let backend = Backend::start(|served| {
        served.request();
        served.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    });
    let proxy = Config::backend_at(backend.url()).start();
    let mut conn = proxy.connect();
    for _ in 0..5 {
        let response = conn.get("/v1/models");
        assert_eq!(response.text(), "ok");
        assert!(response.head.get("connection").is_none());
    }
    assert_eq!(backend.connections(), 5);
    assert_eq!(proxy.metric("llmproxy_faults_total", &[]), 0.0);
}

/// Catches: an idle connection that is kept longer than `keepalive_timeout`, below which an
/// engine's own limit is meant to lie.
#[test]
fn idle_connections_to_the_engine_are_closed_in_time() {
    let engine = Engine::start(&[]);
    let proxy = Config::new().backend(engine.url(), "keepalive_timeout: 300ms").start();
    assert_eq!(proxy.post("/v1/chat/completions", CHAT).status(), 200);
    proxy.await_metric("llmproxy_upstream_idle", &[], 1.0);
    proxy.await_metric("llmproxy_upstream_idle", &[], 0.0);
    // The question is itself a connection.
    await_until("the engine sees the close", SOON, || engine.stat("connections_open") == 1);
}

/// Catches: a request that fails because the engine closed a kept connection while it was idle
/// (uvicorn and cpp-httplib do after 5 s).
#[test]
fn a_connection_that_died_in_the_pool_is_not_used() {
    const ROUNDS: usize = 5;
    let (closed, closes) = channel::<()>();
    let closed = Mutex::new(closed);
    let backend = Backend::start(move |served| {
        served.request();
        served.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        // Not before the connection lies in the pool.
        pause(Duration::from_millis(100));
        served.shutdown(std::net::Shutdown::Both);
        let _ = closed.lock().unwrap().send(());
    });
    let proxy = Config::backend_at(backend.url()).start();
    for _ in 0..ROUNDS {
        assert_eq!(proxy.post("/v1/chat/completions", CHAT).text(), "ok");
        closes.recv_timeout(SOON).unwrap();
        // The news has to cross the kernel, at both ends of the loopback.
        pause(Duration::from_millis(50));
    }
    assert_eq!(backend.connections(), ROUNDS);
    // Once may be the race that a retry is for; a pool that does not look finds out every time.
    let retries = proxy.metric("llmproxy_retries_total", &[]);
    assert!(retries <= 1.0, "{retries} of {ROUNDS} requests were sent on a dead connection");
}

/// Catches: a request lost to the race between its sending and the engine's idle close: the
/// request must be sent once more on a fresh connection.
#[test]
fn a_kept_connection_that_closes_under_a_request_is_replaced_once() {
    let backend = Backend::start(|served| {
        served.request();
        served.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        if served.number == 0 {
            // The second request is read and never answered: the close comes instead.
            served.request();
            return;
        }
        while served.request().is_some() {
            served.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let proxy = Config::backend_at(backend.url()).start();
    for _ in 0..3 {
        assert_eq!(proxy.post("/v1/chat/completions", CHAT).text(), "ok");
    }
    assert_eq!(backend.connections(), 2);
    assert_eq!(backend.requests().len(), 4, "one of the three was sent twice");
    assert_eq!(proxy.metric("llmproxy_retries_total", &[]), 1.0);
}

/// Answers each request with its target and the length of its body.
fn tell_what_came(served: &mut Served) {
    while let Some(request) = served.request() {
        let text = format!("{} {}", request.head.target(), request.body.len());
        let length = text.len();
        served.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}"));
    }
}

/// Catches: answers out of order, or a pipelined request that is lost or mixed up with the body
/// before it (RFC 9112 section 9.3.2).
#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = Backend::start(tell_what_came);
    let proxy = Config::backend_at(backend.url()).start();
    let mut conn = proxy.connect();
    conn.send(
        "GET /v1/responses/a HTTP/1.1\r\nHost: a\r\n\r\n\
         POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n[ET /\
         POST /v1/rerank HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\n{bc\r\n4\r\ndefg\r\n0\r\n\r\n\
         GET /health HTTP/1.1\r\nHost: a\r\n\r\n\
         GET /v1/responses/d HTTP/1.1\r\nHost: a\r\n\r\nGET /v1/responses/e HT",
    );
    let texts: Vec<String> = (0..5).map(|_| conn.response().text()).collect();
    assert_eq!(
        texts,
        ["/v1/responses/a 0", "/v1/score 5", "/v1/rerank 7", "OK\n", "/v1/responses/d 0"]
    );
    conn.send("TP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(conn.response().text(), "/v1/responses/e 0");
    assert_eq!(backend.connections(), 1, "one request in flight at a time");
}

/// Catches: requests that are lost, doubled or mixed up where what was taken in behind a large body
/// moves to a smaller buffer, and is read on in another one.
#[test]
fn requests_pipelined_behind_large_bodies_are_answered_in_order() {
    // No more than may wait for its turn at the same time.
    const REQUESTS: usize = 500;
    let backend = Backend::start(tell_what_came);
    let proxy = Config::backend_at(backend.url()).start();
    let get = |n| format!("GET /v1/responses/{n} HTTP/1.1\r\nHost: a\r\n\r\n");
    let train: String = (0..REQUESTS).map(get).collect();
    let mut conn = proxy.connect();
    for size in [20_000, 300_000, 900_000] {
        let body = format!("[{}", "x".repeat(size - 1));
        let counted = format!("Content-Length: {size}\r\n\r\n{body}");
        let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n{body}\r\n0\r\n\r\n");
        for framed in [counted, chunked] {
            conn.send(format!("POST /v1/score HTTP/1.1\r\nHost: a\r\n{framed}{train}"));
            assert_eq!(conn.response().text(), format!("/v1/score {size}"));
            for number in 0..REQUESTS {
                assert_eq!(conn.response().text(), format!("/v1/responses/{number} 0"));
            }
        }
    }
    assert_eq!(backend.connections(), 1, "one request in flight at a time");
}

/// Catches: a close that the client asked for and did not get, or one that it did not ask for.
#[test]
fn the_client_decides_whether_its_connection_lives() {
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url()).start();
    let mut conn = proxy.connect();
    for _ in 0..3 {
        assert!(conn.post("/v1/chat/completions", "", CHAT).head.get("connection").is_none());
    }
    let last = conn.post("/v1/chat/completions", "Connection: close\r\n", CHAT);
    assert_eq!(last.head.get("connection"), Some("close"));
    assert_eq!(last.ended, Ended::Whole);
    conn.assert_closes();
}

/// Catches: a body after the answer to a HEAD, a lost Content-Length, or a connection that is out
/// of step afterwards, with the engine and with answers of our own.
#[test]
fn the_answer_to_a_head_has_no_body() {
    let backend = Backend::start(|served| {
        while let Some(request) = served.request() {
            let body = if request.head.method() == "HEAD" { "" } else { "hello" };
            served.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{body}"));
        }
    });
    let proxy = Config::backend_at(backend.url()).start();
    let mut conn = proxy.connect();
    for path in ["/v1/models", "/health", "/metrics", "/nowhere"] {
        conn.send(format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let head = conn.response_to_head().head;
        assert!(head.get("content-length").is_some(), "{path}: {head:?}");
        assert!(head.get("x-request-id").is_some(), "{path}: {head:?}");
        assert_eq!(conn.get("/v1/models").text(), "hello", "after HEAD {path}");
    }
    // The answer to a HEAD that announces a body ends its connection to the engine.
    assert_eq!(backend.connections(), 2);
}

/// Catches: chunks or a kept connection for an HTTP/1.0 client that asked for neither
/// (RFC 9112 section 6.1); a status line of another version.
#[test]
fn an_http10_client_gets_a_body_that_ends_with_the_close() {
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url()).start();
    let stream = r#"{"model":"m","stream":true,"messages":[]}"#;
    let direct = engine.connect().post("/v1/chat/completions", "", stream);
    for (fields, body) in [("", stream), ("Connection: keep-alive\r\n", stream)] {
        let mut conn = proxy.connect();
        conn.send(format!(
            "POST /v1/chat/completions HTTP/1.0\r\n{fields}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        let response = conn.response();
        assert_eq!(response.head.first_line, "HTTP/1.1 200 OK");
        assert!(response.head.get("transfer-encoding").is_none());
        assert_eq!(response.head.get("connection"), Some("close"));
        assert_eq!(response.ended, Ended::Closed);
        assert!(response.body == direct.body, "{}", response.text());
    }
}

/// Catches: an HTTP/1.0 client that asks to keep its connection and is not told that it may, and
/// one that does not ask and is kept waiting for a close.
#[test]
fn an_http10_client_may_keep_its_connection_where_the_length_is_known() {
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url()).start();
    let ask = |fields: &str| {
        format!(
            "POST /v1/chat/completions HTTP/1.0\r\n{fields}Content-Length: {}\r\n\r\n{CHAT}",
            CHAT.len()
        )
    };
    let mut conn = proxy.connect();
    for _ in 0..2 {
        let response = conn.send(ask("Connection: Keep-Alive\r\n")).response();
        assert_eq!(response.head.get("connection"), Some("keep-alive"));
        assert_eq!(response.ended, Ended::Whole);
    }
    let response = conn.send(ask("")).response();
    assert_eq!(response.head.get("connection"), Some("close"));
    conn.assert_closes();
}

/// Catches: a client that waits for its 100 for ever, an expectation that reaches the engine, a
/// 100 for a request that is refused, one that comes although the body is already there.
#[test]
fn expect_100_continue_is_answered_here() {
    let backend = Backend::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let proxy = Config::backend_at(backend.url()).server("max_body_size: 100").start();
    let head = |path: &str, framing: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n{framing}\r\n\r\n")
    };
    let mut conn = proxy.connect();
    for (framing, body) in
        [("Content-Length: 5", "[hell"), ("Transfer-Encoding: chunked", "5\r\n[hell\r\n0\r\n\r\n")]
    {
        conn.send(head("/v1/completions", framing));
        let interim = conn.any_head().unwrap();
        assert_eq!(interim.first_line, "HTTP/1.1 100 Continue");
        let response = conn.send(body).response();
        assert_eq!((response.status(), response.interim.len()), (200, 0));
    }
    for request in backend.requests() {
        assert_eq!(request.body, b"[hell");
        assert!(request.head.get("expect").is_none());
    }
    // Refused without asking for the body, which then may or may not come: the connection ends.
    for (path, framing, status) in [
        ("/v1/completions", "Content-Length: 101", 413),
        ("/nowhere", "Content-Length: 5", 404),
        ("/nowhere", "Transfer-Encoding: chunked", 404),
        ("/health", "Content-Length: 5", 405),
    ] {
        let mut conn = proxy.connect();
        let response = conn.send(head(path, framing)).response();
        assert_eq!((response.status(), response.interim.len()), (status, 0), "{path} {framing}");
        assert_eq!(response.head.get("connection"), Some("close"));
        conn.assert_closes();
    }
    let mut conn = proxy.connect();
    let response = conn
        .send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nExpect: magic\r\nContent-Length: 0\r\n\r\n")
        .response();
    response.assert_refused(417, "expectation_failed");
    assert_eq!(backend.requests().len(), 2);
}

/// Catches: an engine that answers before it has read the whole body (as with a 413) and whose
/// answer is lost, or whose connection is used again although bytes are on their way.
#[test]
fn an_early_answer_of_the_engine_reaches_the_client() {
    let backend = Backend::start(|served| {
        served.head();
        served
            .send("HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge");
        served.shutdown(std::net::Shutdown::Write);
        // Not before the proxy has let go: a reset would be another test.
        let mut sink = vec![0; 1 << 20];
        while served.stream().read_within(&mut sink, SOON).is_ok_and(|n| n > 0) {}
    });
    let proxy = Config::backend_at(backend.url()).start();
    let mut conn = proxy.connect();
    for size in [1 << 10, 4 << 20] {
        let body = vec![b'{'; size];
        conn.send(format!(
            "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
        ));
        let response = conn.send(body).response();
        assert_eq!((response.status(), response.text().as_str()), (413, "large"), "{size}");
    }
    assert_eq!(backend.connections(), 2);
}

/// Catches: the same from an engine that closes at once, with the body unread: the reset that its
/// kernel sends must not swallow the answer.
#[test]
fn an_early_answer_survives_the_reset_behind_it() {
    let backend = Backend::start(|served| {
        served.head();
        served.send("HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge");
    });
    let proxy = Config::backend_at(backend.url()).start();
    for size in [1 << 10, 64 << 10, 4 << 20] {
        let head =
            format!("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n");
        let response = proxy.connect().send(head).send(vec![b'{'; size]).response();
        assert_eq!((response.status(), response.text().as_str()), (413, "large"), "{size}");
    }
}

/// Catches: bytes behind the end of an answer that are taken for the next one (CVE-2025-4366 of
/// another proxy). Seen before the first byte went out, such an answer is nobody's.
#[test]
fn an_engine_that_says_too_much_is_not_kept() {
    let backend = Backend::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    );
    let proxy = Config::backend_at(backend.url()).start();
    for _ in 0..3 {
        proxy.get("/v1/models").assert_refused(502, "bad_response");
    }
    assert_eq!(backend.connections(), 3);
}
