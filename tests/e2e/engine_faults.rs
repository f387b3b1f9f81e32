//! Engines that fail: every way has its name in the answer, the metrics and the record, and a
//! client never takes half an answer for a whole one.

use crate::harness::message::Ended;
use crate::harness::{await_until, Backend, Config, Conn, Engine, Proxy, Webhook, SOON};
use crate::rig::{before, quiet, Rig, CHAT, CHATS, STREAM};
use serde_json::Value;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

/// Catches: a dead engine that shows as an empty answer, a hang, or a second generation.
#[test]
fn an_engine_that_dies_before_its_head_is_a_502() {
    for with in ["rst", "fin"] {
        for body in [CHAT, STREAM] {
            let rig = Rig::new();
            let knobs = format!("x-mock-die-before-head: 1\r\nx-mock-die-with: {with}\r\n");
            let answer = rig.ask(body, &knobs).response();
            answer.assert_refused(502, "backend_closed");
            assert_eq!(rig.engine.posts().len(), 1, "a POST is never sent twice");
            assert_fault(&rig.proxy, &rig.hook, "backend_closed", "backend_error", 502);
        }
    }
}

/// Catches: a stream that an engine broke off and that ends as if it were whole, or without a word.
#[test]
fn an_engine_that_dies_between_events_is_an_error_event_and_a_cut() {
    for with in ["rst", "fin"] {
        let rig = Rig::new();
        let knobs = format!(
            "x-mock-tokens: 9\r\nx-mock-gap-ms: 5\r\nx-mock-die-after: 4\r\nx-mock-die-with: {with}\r\n"
        );
        let answer = rig.ask(STREAM, &knobs).response();
        assert_eq!((answer.status(), answer.ended), (200, Ended::Cut), "{}", answer.text());
        assert_ends_with_event(&answer.text(), "backend_broke");
        assert_fault(&rig.proxy, &rig.hook, "backend_broke", "backend_error", 200);
        let record = rig.record();
        assert_eq!(record["usage_source"], "missing", "{record}");
        assert_eq!(record["events"], 4, "{record}");
    }
}

/// The error that a stream ended with, as the clients of its path find it.
fn told(path: &str, stream: &str) -> Value {
    let last = stream.trim_end().rsplit("\n\n").next().unwrap();
    if path == "/api/chat" {
        return serde_json::from_str(stream.trim_end().rsplit('\n').next().unwrap()).unwrap();
    }
    let json = match path {
        CHATS | "/v1/completions" => last.strip_prefix("data: "),
        _ => last.strip_prefix("event: error\ndata: "),
    };
    serde_json::from_str(json.unwrap_or_else(|| panic!("{path}: {stream:?}"))).unwrap()
}

/// Catches: an engine's death told in a form that the clients of a path do not take for an error,
/// and an error that does not say how much of the answer is there.
#[test]
fn an_engines_death_is_told_in_the_form_of_its_path() {
    let (vllm, ollama) = (Engine::start(&[]), Engine::start(&["--dialect", "ollama"]));
    for path in [CHATS, "/v1/completions", "/v1/messages", "/v1/responses", "/api/chat"] {
        let engine = if path == "/api/chat" { &ollama } else { &vllm };
        let hook = Webhook::start();
        let proxy = Config::backend_at(engine.url())
            .server(format!("paths: [\"{path}\"]"))
            .webhook(&hook.url(), "")
            .start();
        let knobs = "x-mock-tokens: 9\r\nx-mock-gap-ms: 5\r\nx-mock-die-after: 3\r\n";
        let answer = proxy.connect().post(path, knobs, STREAM);
        assert_eq!((answer.status(), &answer.ended), (200, &Ended::Cut), "{path}");
        let error = told(path, &answer.text());
        let message = match path {
            "/api/chat" => &error["error"],
            "/v1/messages" => {
                assert_eq!(
                    (&error["type"], &error["error"]["type"]),
                    (&"error".into(), &"api_error".into())
                );
                &error["error"]["message"]
            }
            "/v1/responses" => {
                assert_eq!(
                    (&error["type"], &error["code"]),
                    (&"error".into(), &"backend_broke".into())
                );
                assert_eq!(error["sequence_number"], 3);
                &error["error"]["message"]
            }
            _ => &error["error"]["message"],
        };
        let message = message.as_str().unwrap_or_else(|| panic!("{path}: {error}"));
        assert!(message.ends_with("after 3 events."), "{path}: {message}");
        let record = hook.await_records(1, SOON).remove(0);
        assert_eq!(record["events"], 3, "{record}");
    }
}

/// Catches: an event of ours in the midst of one of the engine's, which makes two lies of them.
#[test]
fn nothing_is_put_into_an_event_that_was_cut() {
    const WHOLE: &str = "data: {\"n\":1}\n\n";
    let places = [
        ("after a piece of it", "7\r\ndata: {\r\n", false),
        ("inside a chunk", "40\r\ndata: {\"n\":", false),
        ("between its line ends", "e\r\ndata: {\"n\":2}\n\r\n", false),
        ("inside a chunk's size", "4", true),
        ("before a size that is none", "zz\r\n", true),
    ];
    // Of a stream that we asked for usage, half an event is never sent.
    for (properties, is_asked) in [("stream_usage: never", false), ("", true)] {
        for (place, cut, is_clean) in places {
            let backend = Backend::start(move |served| {
                served.request();
                served.begin_events();
                served.chunk(WHOLE);
                // Else all would be one read of the proxy, and refused as a whole.
                served.left_within(Duration::from_millis(100));
                served.send(cut);
            });
            let (proxy, _hook) = before(&backend, properties);
            let answer = proxy.post(CHATS, STREAM);
            assert_eq!((answer.status(), answer.ended), (200, Ended::Cut), "{place}");
            let text = answer.text();
            assert_eq!(text.contains("\"error\""), is_clean || is_asked, "{place}: {text:?}");
            assert!(text.starts_with(WHOLE) && !text.contains("[DONE]"), "{place}: {text:?}");
        }
    }
}

/// Catches: bytes of a body sent without a head, because the body was broken from its start.
#[test]
fn a_body_that_is_broken_from_the_start_is_a_502() {
    for framed in ["text/event-stream", "application/json"] {
        let backend = Backend::answering(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {framed}\r\ntransfer-encoding: chunked\r\n\r\n\
             3\r\n:\n\n\r\nxyz\r\n"
        ));
        let (proxy, hook) = before(&backend, "");
        let mut conn = proxy.connect();
        for _ in 0..2 {
            conn.post(CHATS, "", STREAM).assert_refused(502, "bad_response");
        }
        assert_eq!(backend.connections(), 2, "such a connection is not used again");
        let record = hook.await_records(2, SOON).remove(0);
        assert_eq!(record["error"], "bad_response", "{record}");
        assert_eq!(record["status_code"], 502, "{record}");
        quiet(&proxy);
    }
}

/// Catches: a body that is padded, re-framed or ended early to look whole.
#[test]
fn a_body_of_known_length_that_breaks_off_is_cut() {
    let backend = Backend::start(|served| {
        served.request();
        served.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"half\":");
    });
    let (proxy, hook) = before(&backend, "");
    let answer = proxy.post(CHATS, CHAT);
    assert_eq!(answer.head.get("content-length"), Some("100"));
    assert_eq!((answer.text().as_str(), answer.ended), ("{\"half\":", Ended::Cut));
    assert_fault(&proxy, &hook, "backend_broke", "backend_error", 200);
}

/// Catches: a body that ends with its connection changed on the way, or never ended.
#[test]
fn a_body_that_ends_with_the_close_passes_to_both_versions() {
    let rig = Rig::new();
    let knobs = "x-mock-close: delimited\r\nx-mock-tokens: 30\r\n";
    let new = rig.ask(STREAM, knobs).response();
    assert_eq!(new.head.get("transfer-encoding"), Some("chunked"));
    assert_eq!(new.ended, Ended::Whole);
    let old = rig.proxy.connect().send(http10(knobs)).response();
    assert_eq!(old.head.get("transfer-encoding"), None, "chunks mean nothing to HTTP/1.0");
    assert_eq!(old.ended, Ended::Closed);
    let direct = rig.engine.connect().post(CHATS, knobs, STREAM);
    let ids_apart = |text: String| text.replace(|c: char| c.is_ascii_digit(), "");
    assert_eq!(ids_apart(new.text()), ids_apart(direct.text()));
    assert_eq!(ids_apart(old.text()), ids_apart(direct.text()));
    rig.assert_quiet();
}

/// Catches: a truncated body whose end looks like the proper one of a close.
#[test]
fn a_body_that_ends_with_the_close_and_breaks_off_is_reset() {
    let backend = Backend::start(|served| {
        served.request();
        served.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n");
        // The proxy has these bytes before the reset that would overtake them.
        served.left_within(Duration::from_millis(200));
        served.reset();
    });
    let (proxy, _hook) = before(&backend, "");
    let new = proxy.post(CHATS, STREAM);
    assert_eq!(new.ended, Ended::Cut);
    assert_ends_with_event(&new.text(), "backend_broke");
    let mut old = proxy.connect();
    old.send(http10(""));
    let (text, end) = read_to_end(&mut old);
    assert!(text.ends_with("data: 1\n\n"), "{text}");
    assert_eq!(end, Some(ErrorKind::ConnectionReset));
}

/// Catches: a client that waits for ever for an engine that never begins.
#[test]
fn an_engine_that_never_begins_is_a_504() {
    for body in [CHAT, STREAM] {
        let rig = Rig::with("first_byte_timeout: 300ms", |config| config);
        let answer = rig.ask(body, "x-mock-stall-before-head: 1\r\n").response();
        answer.assert_refused(504, "first_byte_timeout");
        rig.await_post("the engine is freed", |post| post["ended"] == "cancelled");
        assert_eq!(rig.engine.posts().len(), 1, "a POST is never sent twice");
        assert_fault(&rig.proxy, &rig.hook, "first_byte_timeout", "timed_out", 504);
    }
}

/// Catches: a stream that hangs for ever, or that ends without saying which timeout it was.
#[test]
fn an_engine_that_falls_silent_is_an_error_event_and_a_cut() {
    let rig = Rig::with("idle_timeout: 300ms", |config| config);
    let answer = rig.ask(STREAM, "x-mock-stall-after: 3\r\n").response();
    assert_eq!((answer.status(), answer.ended), (200, Ended::Cut));
    assert_ends_with_event(&answer.text(), "backend_idle_timeout");
    rig.await_post("the engine is freed", |post| post["ended"] == "cancelled");
    assert_fault(&rig.proxy, &rig.hook, "backend_idle_timeout", "timed_out", 200);
}

/// Catches: a total time limit on a stream, which every long answer would run into.
#[test]
fn a_stream_may_last_longer_than_every_timeout() {
    let rig = Rig::with("idle_timeout: 300ms, first_byte_timeout: 300ms", |config| {
        config.server("write_timeout: 300ms").server("idle_timeout: 300ms")
    });
    let answer = rig.ask(STREAM, "x-mock-tokens: 15\r\nx-mock-gap-ms: 100\r\n").response();
    assert_eq!(answer.ended, Ended::Whole, "{}", answer.text());
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
}

/// Catches: a backend that is down costing requests while another one is up.
#[test]
fn a_refused_connection_falls_to_the_other_backend() {
    let rig = Rig::with("", |config| {
        let dead = format!("http://{}", nobody());
        config.backend(dead, "").section("health_check: {enabled: false}")
    });
    for _ in 0..6 {
        assert_eq!(rig.proxy.post(CHATS, CHAT).status(), 200);
    }
    assert_eq!(rig.engine.posts().len(), 6, "each is sent once");
    let records = rig.hook.await_records(6, SOON);
    let fallen = records.iter().filter(|record| record["fallback_used"] == true);
    let fallen = fallen.inspect(|record| assert_eq!(record["retry_count"], 1)).count() as f64;
    assert!(fallen >= 2.0, "both have the same weight: {fallen}");
    for name in ["llmproxy_retries_total", "llmproxy_fallback_total"] {
        rig.proxy.await_metric(name, &[], fallen);
    }
    rig.proxy.await_metric("llmproxy_faults_total", &[("kind", "connect_failed")], fallen);
}

/// Catches: a killed engine that takes its streams with it without a word, or new requests too.
#[test]
fn a_killed_engine_breaks_its_own_streams_and_nothing_else() {
    let dying = Engine::start(&[]);
    let rig = Rig::with("", |config| config.backend(dying.url(), "name: dying"));
    let knobs = "x-mock-tokens: 20\r\nx-mock-gap-ms: 50\r\n";
    let mut streams: Vec<Conn> = (0..10).map(|_| rig.ask(STREAM, knobs)).collect();
    for stream in &mut streams {
        stream.head();
        stream.read_until("data:");
    }
    assert_eq!((dying.posts().len(), rig.engine.posts().len()), (5, 5));
    dying.process.signal(rustix::process::Signal::KILL);
    dying.process.wait(SOON);
    // The kernel lets go of a ring's listener a moment later than of its process.
    let refuses = || std::net::TcpStream::connect(dying.addr()).is_err();
    await_until("its port is closed", SOON, refuses);
    for _ in 0..10 {
        let answer = rig.proxy.post(CHATS, CHAT);
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    let mut whole = 0;
    for stream in &mut streams {
        let (pieces, ended) = stream.rest();
        let text: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
        let text = String::from_utf8(text).unwrap();
        match ended {
            Ended::Whole => whole += 1,
            _ => assert_ends_with_event(&text, "backend_broke"),
        }
    }
    assert_eq!(whole, 5);
    let records = rig.hook.await_records(20, SOON);
    let broken = records.iter().filter(|record| record["error"] == "backend_broke");
    assert_eq!(broken.count(), 5, "one record for each");
    assert_eq!(records.len(), 20);
    quiet(&rig.proxy);
}

/// Catches: a connect without a deadline, or one that ends the request while others could answer.
#[test]
fn a_connect_that_is_never_answered_times_out() {
    let hole = BlackHole::dig();
    let slow = format!("http://{}", hole.address);
    let alone = Config::new().backend(&slow, "connect_timeout: 300ms").start();
    alone.post(CHATS, CHAT).assert_refused(504, "connect_timeout");
    alone.await_metric("llmproxy_faults_total", &[("kind", "connect_timeout")], 1.0);
    let rig = Rig::with("", |config| config.backend(&slow, "connect_timeout: 300ms"));
    for _ in 0..2 {
        assert_eq!(rig.proxy.post(CHATS, CHAT).status(), 200);
    }
    rig.proxy.await_metric("llmproxy_fallback_total", &[], 1.0);
}

/// Catches: a connect that goes on when the client has left it.
#[test]
fn a_client_that_leaves_during_a_connect_ends_it() {
    let hole = BlackHole::dig();
    let url = format!("http://{}", hole.address);
    let proxy = Config::new().backend(&url, "connect_timeout: 60s").start();
    let files = proxy.open_files();
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", CHAT);
    proxy.await_metric("llmproxy_requests_active", &[], 2.0);
    drop(conn);
    proxy.await_metric("llmproxy_client_abort_total", &[("phase", "waiting")], 1.0);
    quiet(&proxy);
    await_until("its files are closed", SOON, || proxy.open_files() <= files);
}

/// Catches: clients that wait when there is nobody to wait for.
#[test]
fn when_all_are_down_clients_hear_so_at_once() {
    let (one, two) = (format!("http://{}", nobody()), format!("http://{}", nobody()));
    // Longer than a test waits for an answer.
    let slow = "connect_timeout: 10m";
    let proxy = Config::new().backend(one, slow).backend(two, slow).start();
    // 503 if the probes have found it out by now.
    let answer = proxy.post(CHATS, CHAT);
    answer.assert_refused(if answer.status() == 503 { 503 } else { 502 }, "connect_failed");
    let empty = Config::new().start();
    empty.post(CHATS, CHAT).assert_refused(503, "no_backend");
}

/// Catches: an early refusal of the engine lost because the proxy only writes, or is cut writing.
#[test]
fn an_answer_that_comes_before_the_body_was_read_reaches_the_client() {
    let backend = Backend::start(|served| {
        served.head();
        served.send(
            "HTTP/1.1 413 Content Too Large\r\ncontent-length: 5\r\nconnection: close\r\n\r\nlarge",
        );
        // As servers do: it waits a moment for a client that stops by itself, reading nothing.
        crate::harness::pause(Duration::from_millis(200));
    });
    let (proxy, _hook) = before(&backend, "first_byte_timeout: 5s");
    let body = format!("{{\"model\":\"m\",\"prompt\":\"{}\"}}", "x".repeat(20 << 20));
    let answer = proxy.post(CHATS, body);
    assert_eq!((answer.status(), answer.text().as_str()), (413, "large"));
    assert_eq!(answer.ended, Ended::Whole);
    assert_eq!(backend.connections(), 1, "a POST is never sent twice");
}

/// Catches: the same from an engine that reads no more and waits for us: nobody may stand in a
/// write when there is an answer to read.
#[test]
fn an_answer_is_read_from_an_engine_that_reads_no_more() {
    let backend = Backend::start(|served| {
        served.head();
        served.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 5\r\n\r\nlarge");
        // It neither reads nor closes, for longer than the proxy's deadline.
        crate::harness::pause(SOON);
    });
    let (proxy, _hook) = before(&backend, "first_byte_timeout: 5s");
    let body = format!("{{\"model\":\"m\",\"prompt\":\"{}\"}}", "x".repeat(20 << 20));
    let answer = proxy.post(CHATS, body);
    assert_eq!((answer.status(), answer.text().as_str()), (413, "large"));
    quiet(&proxy);
}

/// Asserts how the one request of a proxy went wrong, wherever that is told.
fn assert_fault(proxy: &Proxy, hook: &Webhook, kind: &str, outcome: &str, status: u16) {
    proxy.await_metric("llmproxy_faults_total", &[("kind", kind)], 1.0);
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!((&record["error"], &record["status"]), (&kind.into(), &outcome.into()), "{record}");
    assert_eq!(record["status_code"], status, "{record}");
    assert_eq!(record["retry_count"], 0, "{record}");
    quiet(proxy);
}

/// Asserts that a stream ends with an event of ours that names the fault, and not as a whole one.
fn assert_ends_with_event(stream: &str, code: &str) {
    assert!(!stream.contains("[DONE]"), "{stream}");
    let last = stream.strip_suffix("\n\n").unwrap_or_else(|| panic!("{stream:?}"));
    let (_, json) = last.rsplit_once("data: ").unwrap_or_else(|| panic!("{stream:?}"));
    let event: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {stream:?}"));
    assert_eq!(event["error"]["code"], code, "{event}");
    assert!(event["error"]["message"].is_string(), "{event}");
}

fn http10(fields: &str) -> String {
    let length = STREAM.len();
    format!("POST {CHATS} HTTP/1.0\r\n{fields}Content-Length: {length}\r\n\r\n{STREAM}")
}

/// Reads to the end or the error that ends the connection.
fn read_to_end(conn: &mut Conn) -> (String, Option<ErrorKind>) {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    loop {
        match conn.stream().read_within(&mut buffer, SOON) {
            Ok(0) => return (text, None),
            Ok(n) => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
            Err(e) => return (text, Some(e.kind())),
        }
    }
}

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A listener whose queue is full: the kernel drops what else wants to connect.
struct BlackHole {
    address: SocketAddr,
    _sockets: Vec<socket2::Socket>,
}

impl BlackHole {
    fn dig() -> BlackHole {
        let socket =
            || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut sockets = vec![listener];
        for _ in 0..16 {
            let filler = socket();
            let full = filler.connect_timeout(&address, Duration::from_millis(100)).is_err();
            sockets.push(filler);
            if full {
                return BlackHole { address: address.as_socket().unwrap(), _sockets: sockets };
            }
        }
        panic!("the queue of a listener of 0 takes 16 connections");
    }
}

/// Catches: the wait for the first token cut by the limit for a gap between two: engines send the
/// head of a stream at once, and then the prefill begins.
#[test]
fn the_first_token_may_take_longer_than_a_gap() {
    let rig = Rig::with("idle_timeout: 300ms, first_byte_timeout: 20s", |config| config);
    let answer = rig.ask(STREAM, "x-mock-ttft-ms: 1500\r\n").response();
    assert_eq!((answer.status(), answer.ended), (200, Ended::Whole), "{}", answer.text());
    let rig = Rig::with("idle_timeout: 20s, first_byte_timeout: 500ms", |config| config);
    let answer = rig.ask(STREAM, "x-mock-ttft-ms: 60000\r\n").response();
    assert_eq!((answer.status(), answer.ended), (200, Ended::Cut));
    assert_ends_with_event(&answer.text(), "first_byte_timeout");
    await_until("the engine is freed", SOON, || rig.engine.stat("cancelled") == 1);
}
