//! A client that leaves: whenever and however it does, the engine stops working for it at once.

use crate::harness::client::post_bytes;
use crate::harness::{await_until, pause, Conn, SOON};
use crate::rig::{leave, rejected, Leave, Rig, CHAT, CHATS, STREAM};
use std::time::Duration;

/// Catches: a generation that goes on for nobody because the client is only watched once bytes
/// flow, streamed or not (litellm#30244).
#[test]
fn a_client_that_leaves_before_the_first_token_frees_the_engine() {
    for (body, knobs) in [
        (STREAM, "x-mock-ttft-ms: 60000\r\nx-mock-head: late\r\n"),
        (STREAM, "x-mock-stall-before-head: 1\r\n"),
        (CHAT, "x-mock-ttft-ms: 60000\r\nx-mock-head: late\r\n"),
    ] {
        for how in [Leave::Fin, Leave::Rst] {
            let rig = cut(how, "waiting", |rig| {
                let conn = rig.ask(body, knobs);
                rig.await_post("the engine has the request", |post| post["ended"] == "open");
                conn
            });
            let record = rig.record();
            assert_eq!(record["status_code"], 499, "{record}");
            assert_eq!(record["response_bytes"], 0, "{record}");
        }
    }
}

/// Catches: the same behind a head that the engine sent early, as uvicorn does.
#[test]
fn a_client_that_leaves_between_head_and_first_token_frees_the_engine() {
    for how in [Leave::Fin, Leave::Rst] {
        cut(how, "relay", |rig| {
            let mut conn = rig.ask(STREAM, "x-mock-ttft-ms: 60000\r\nx-mock-head: early\r\n");
            assert_eq!(conn.head().status(), 200);
            conn
        });
    }
}

/// Catches: an abort that is only noticed at the next write, a token later.
#[test]
fn a_client_that_leaves_mid_stream_frees_the_engine() {
    for how in [Leave::Fin, Leave::Rst] {
        let rig = cut(how, "relay", |rig| {
            let mut conn = rig.ask(STREAM, "x-mock-stall-after: 3\r\nx-mock-gap-ms: 5\r\n");
            conn.head();
            rig.await_post("three events are out", |post| post["ended"] == "stalled");
            conn.read_until("data:");
            conn
        });
        let record = rig.record();
        assert_eq!(record["status_code"], 200, "{record}");
        assert_eq!(record["is_stream"], true, "{record}");
        assert!(record["events"].as_u64().unwrap() >= 1, "{record}");
        assert_eq!(record["usage_source"], "missing", "{record}");
    }
}

/// Catches: a watch for readability, which a client's pipelined bytes keep from seeing its FIN.
#[test]
fn unread_pipelined_bytes_do_not_hide_a_leaving_client() {
    for how in [Leave::Fin, Leave::Rst] {
        cut(how, "waiting", |rig| {
            let mut conn = rig.ask(STREAM, "x-mock-stall-before-head: 1\r\n");
            rig.await_post("the engine has the request", |post| post["ended"] == "open");
            // More than one read of the proxy takes, less than its kernel buffer.
            conn.start_post(CHATS, "", format!("\"{}\"", "x".repeat(40_000)));
            conn
        });
    }
}

/// Catches: a client that sends so much behind its request that its FIN never arrives, and whose
/// engine works on for nobody.
#[test]
fn a_client_that_sends_more_than_is_taken_behind_its_request_is_gone() {
    let rig = Rig::new();
    let mut conn = rig.ask(STREAM, "x-mock-stall-before-head: 1\r\n");
    rig.await_post("the engine has the request", |post| post["ended"] == "open");
    // Over TLS there are tickets to be read: a close with unread bytes would be a reset, which is
    // heard at once whatever was sent before it.
    let _ = conn.stream().read_within(&mut [0; 16], Duration::from_millis(50));
    // Until neither kernel takes any more.
    conn.stream().tcp().set_nonblocking(true).unwrap();
    while conn.stream().write_all(&[b'x'; 64 * 1024]).is_ok() {}
    drop(conn);
    rig.await_post("the engine was cut", |post| post["ended"] == "cancelled");
    assert_eq!(rig.record()["status"], "client_left");
    assert_eq!(rejected(&rig.proxy, "pipelined_too_much"), 1.0);
    rig.assert_quiet();
}

/// Catches: work begun, or a connection kept, for a request that never became whole.
#[test]
fn a_client_that_leaves_inside_its_body_never_reaches_the_engine() {
    for (fields, part) in [
        ("Content-Length: 1000\r\n", "{\"model\":"),
        ("Content-Length: 1000\r\n", ""),
        ("Transfer-Encoding: chunked\r\n", "9\r\n{\"model\":\r\n"),
    ] {
        for how in [Leave::Fin, Leave::Rst] {
            let rig = Rig::new();
            let mut conn = rig.proxy.connect();
            conn.send(format!("POST {CHATS} HTTP/1.1\r\nHost: t\r\n{fields}\r\n{part}"));
            // The scrape is one; the other has its head in.
            rig.proxy.await_metric("llmproxy_requests_active", &[], 2.0);
            let _half = leave(conn, how);
            rig.proxy.await_metric("llmproxy_client_abort_total", &[("phase", "request")], 1.0);
            rig.assert_quiet();
            assert_eq!(rig.engine.posts().len(), 0, "{fields}{part}");
            let labels = [("path", CHATS), ("status", "499"), ("backend", "none")];
            rig.proxy.await_metric("llmproxy_requests_total", &labels, 1.0);
            assert_eq!(rig.hook.records().len(), 0, "what no engine had is nobody's bill");
        }
    }
}

/// Catches: a client that leaves while its large body is read, taken for one that was refused.
#[test]
fn a_client_that_leaves_while_its_body_is_read_is_none_that_was_refused() {
    let rig = Rig::new();
    let body = format!("{{\"model\":\"m\"{}}}", ",\"a\":0".repeat(3 << 20));
    let mut conn = rig.proxy.connect();
    conn.send(post_bytes(CHATS, "", body));
    // It is whole, and much longer than what is read between two looks at the client.
    drop(leave(conn, Leave::Fin));
    rig.proxy.await_metric("llmproxy_client_abort_total", &[("phase", "request")], 1.0);
    assert_eq!(rig.proxy.metric("llmproxy_rejected_total", &[]), 0.0);
    rig.assert_quiet();
    assert_eq!(rig.engine.posts().len(), 0);
}

/// Catches: half a head that is answered, counted as served, or waited for.
#[test]
fn a_client_that_leaves_inside_its_head_is_let_go() {
    let rig = Rig::new();
    let mut conn = rig.proxy.connect();
    conn.send(format!("POST {CHATS} HTTP/1.1\r\nHo"));
    conn.shutdown(std::net::Shutdown::Write);
    conn.assert_closes();
    rig.proxy.await_metric("llmproxy_client_abort_total", &[("phase", "request")], 1.0);
}

/// Catches: an engine that crashes when it is cut (llama-swap#980) being cut all the same.
#[test]
fn an_engine_that_is_drained_is_never_cut() {
    let stream = "x-mock-tokens: 20\r\nx-mock-gap-ms: 10\r\n";
    let slow_start = "x-mock-tokens: 5\r\nx-mock-ttft-ms: 300\r\nx-mock-head: late\r\n";
    for (body, knobs, has_begun) in
        [(STREAM, stream, true), (STREAM, slow_start, false), (CHAT, slow_start, false)]
    {
        for how in [Leave::Fin, Leave::Rst] {
            let rig = Rig::with("on_client_abort: drain", |config| config);
            let mut conn = rig.ask(body, knobs);
            rig.await_post("the engine has the request", |_| true);
            if has_begun {
                conn.read_until_after_head("data:");
            }
            let _half = leave(conn, how);
            let post = rig.await_post("the engine ends by itself", |post| post["ended"] != "open");
            assert_eq!(post["ended"], "complete", "{body} {knobs} {how:?}");
            rig.assert_quiet();
            let record = rig.record();
            assert_eq!(record["status"], "client_left", "{record}");
            // What its engine counted stood in what no client took.
            let tokens = if body == STREAM && has_begun { 20 } else { 5 };
            assert_eq!(record["usage_source"], "engine", "{record}");
            assert_eq!(record["completion_tokens"], tokens, "{record}");
            // Read to its exact end, its connection serves the next client.
            assert_eq!(rig.proxy.post(CHATS, CHAT).status(), 200);
            assert_eq!(rig.engine.posts().pop().unwrap()["conn"], post["conn"]);
            assert_eq!(rig.engine.stat("cancelled"), 0);
        }
    }
}

/// Catches: bytes that were read and not sent being forgotten when the client goes, after which the
/// drain reads the rest of the stream in the middle of a chunk, takes it for broken, and cuts.
#[test]
fn an_engine_is_drained_from_where_its_bytes_were_left() {
    let rig = Rig::with("on_client_abort: drain", |config| config);
    let knobs = "x-mock-tokens: 30000\r\nx-mock-split: merged\r\n";
    let conn = rig.ask(STREAM, knobs);
    // Nothing is read, so the proxy comes to stand in the midst of a buffer full of chunks.
    rig.await_stall();
    leave(conn, Leave::Rst);
    let post = rig.await_post("the engine ends by itself", |post| post["ended"] != "open");
    assert_eq!(post["ended"], "complete");
    assert_eq!(rig.record()["status"], "client_left");
    // What the engine has sent, the proxy has yet to read.
    rig.assert_quiet();
    assert_eq!(rig.proxy.post(CHATS, CHAT).status(), 200);
    assert_eq!(rig.engine.posts().pop().unwrap()["conn"], post["conn"]);
}

/// Catches: clients that come, leave, and come again, until the answers that are still read for
/// them have taken every connection, for ten minutes.
#[test]
fn engines_that_are_drained_take_no_client_s_place() {
    let rig = Rig::with("on_client_abort: drain", |config| config.server("max_connections: 20"));
    for gone in 0..30 {
        let mut conn = rig.ask(STREAM, "x-mock-tokens: 2\r\nx-mock-gap-ms: 600000\r\n");
        conn.read_until_after_head("data:");
        leave(conn, Leave::Rst);
        let phase = [("phase", "relay")];
        rig.proxy.await_metric("llmproxy_client_abort_total", &phase, f64::from(gone + 1));
    }
    // A quarter of the limit; the oldest of them gave way, and their engines are free.
    await_until("the rest is cut", SOON, || rig.engine.stat("cancelled") == 25);
    rig.proxy.await_metric("llmproxy_drains", &[], 5.0);
    rig.proxy.await_metric("llmproxy_crowded_closed_total", &[("kind", "drain")], 25.0);
    rig.proxy.await_metric("llmproxy_connections_open", &[], 1.0);
    let mut clients: Vec<Conn> = (0..15).map(|_| rig.proxy.connect()).collect();
    for conn in &mut clients {
        assert_eq!(conn.post(CHATS, "", CHAT).status(), 200);
    }
    assert_eq!(rig.proxy.metric("llmproxy_connections_refused_total", &[]), 0.0);
    let is_left = |record: &serde_json::Value| record["status"] == "client_left";
    await_until("those that were cut are recorded", SOON, || {
        rig.hook.records().into_iter().filter(is_left).count() == 25
    });
}

impl Rig {
    /// Waits until the engine cannot send any more: nobody takes its bytes.
    fn await_stall(&self) {
        let mut before = None;
        await_until("the engine stalls", SOON, || {
            pause(Duration::from_millis(100));
            let sent = self.engine.posts().pop().and_then(|post| post["events_sent"].as_u64());
            let stalled = sent.is_some() && sent == before;
            before = sent;
            stalled
        });
    }
}

impl Conn {
    /// Reads the head and then the body until it contains `needle`.
    fn read_until_after_head(&mut self, needle: &str) {
        self.head();
        self.read_until(needle);
    }
}

/// Lets the client that `begin` gives leave, and asserts what must follow: the engine's connection
/// closes, long before the engine or a timeout would have moved anything; the record says who left,
/// the counter of the phase, nothing left behind.
fn cut(how: Leave, phase: &str, begin: impl Fn(&Rig) -> Conn) -> Rig {
    let rig = Rig::new();
    let conn = begin(&rig);
    let half = leave(conn, how);
    rig.await_post("the engine was cut", |post| post["ended"] == "cancelled");
    let record = rig.record();
    assert_eq!(record["status"], "client_left", "{record}");
    assert_eq!(record["error"], "client_left", "{record}");
    rig.proxy.await_metric("llmproxy_client_abort_total", &[("phase", phase)], 1.0);
    rig.assert_quiet();
    if let Some(mut half) = half {
        await_until("the client's connection closes", SOON, || half.drained());
    }
    rig
}

impl Conn {
    /// Reads and drops what is there; true at the end of the stream.
    fn drained(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.stream().read_within(&mut buffer, Duration::from_millis(50)) {
            Ok(n) => n == 0,
            Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}
