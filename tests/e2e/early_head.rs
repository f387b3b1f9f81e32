//! `routing.early_head`: the head of a stream that goes before any engine's, and what is told
//! inside the stream because it can be no status any more.

use crate::harness::message::Ended;
use crate::harness::{Backend, Config, Conn, Proxy, Webhook, SOON};
use crate::rig::{quiet, CHAT, CHATS, STREAM};
use serde_json::Value;
use std::sync::mpsc::{channel, Sender};
use std::sync::Mutex;
use std::time::Duration;

const COMMENT: &str = ": keep-alive\n\n";
const EVENTS: &str = "data: {\"a\":1}\n\ndata: [DONE]\n\n";

/// An engine that answers each request with these bytes, once it is told to.
fn waiting(answer: impl Into<String>) -> (Backend, Sender<()>) {
    let ((go, going), answer) = (channel(), answer.into());
    let going = Mutex::new(going);
    let backend = Backend::start(move |served| {
        while served.request().is_some() {
            if going.lock().unwrap().recv_timeout(SOON).is_err() || !served.send(&answer) {
                return;
            }
        }
    });
    (backend, go)
}

/// The answer of an engine that streams. It says how long it is, as some do: that of our client is
/// in chunks all the same.
fn stream() -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Engine: e\r\n\
         Content-Length: {}\r\n\r\n{EVENTS}",
        EVENTS.len()
    )
}

fn error(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn before(backends: &[&Backend], routing: &str) -> (Proxy, Webhook) {
    let hook = Webhook::start();
    let config = backends.iter().fold(Config::new(), |config, b| config.backend(b.url(), ""));
    let config = config
        .section("health_check: {enabled: false}")
        .section(format!("routing: {{sse_keepalive: 100ms, early_head: true{routing}}}"));
    (config.webhook(&hook.url(), "").start(), hook)
}

/// A client that has waited long enough for a head and two comments.
fn patient(proxy: &Proxy, path: &str) -> Conn {
    let mut conn = proxy.connect();
    conn.start_post(path, "Accept-Encoding: gzip\r\n", STREAM);
    let head = conn.head();
    assert_eq!(head.status(), 200);
    assert_eq!(head.get("content-type"), Some("text/event-stream"));
    assert_eq!(head.get("transfer-encoding"), Some("chunked"));
    assert!(head.get("x-request-id").is_some_and(|id| !id.is_empty()));
    conn.read_until(&format!("{COMMENT}{COMMENT}"));
    conn
}

/// What is left of a body, without comments; it must come to its proper end.
fn rest_of(conn: &mut Conn) -> String {
    rest_until(conn, Ended::Whole)
}

fn rest_until(conn: &mut Conn, end: Ended) -> String {
    let (pieces, ended) = conn.rest();
    assert_eq!(ended, end);
    let bytes: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
    String::from_utf8(bytes).unwrap().replace(COMMENT, "")
}

/// The JSON of the only event that is left.
fn only_event(conn: &mut Conn, before: &str) -> Value {
    let text = rest_of(conn);
    let event = text.strip_prefix(before).and_then(|text| text.strip_suffix("\n\n"));
    serde_json::from_str(event.unwrap_or_else(|| panic!("{text}"))).unwrap()
}

/// Catches: an early head that is sent again with the engine's, or breaks the framing or the
/// connection; a packed answer behind a head that does not say so.
#[test]
fn a_slow_stream_begins_before_its_engine_does() {
    let (engine, go) = waiting(stream());
    let (proxy, hook) = before(&[&engine], "");
    let mut conn = patient(&proxy, CHATS);
    go.send(()).unwrap();
    assert_eq!(rest_of(&mut conn), EVENTS);
    // The connection lives on; who does not have to wait gets the engine's own head.
    go.send(()).unwrap();
    let answer = conn.post(CHATS, "", STREAM);
    assert_eq!(answer.text().replace(COMMENT, ""), EVENTS);
    let record = hook.await_records(2, SOON).remove(0);
    assert_eq!((&record["status"], &record["status_code"]), (&"complete".into(), &200.into()));
    let head = &engine.requests()[0].head;
    assert_eq!(head.get("accept-encoding"), None, "nothing packed fits behind our head");
    assert!(proxy.metric("llmproxy_sse_early_heads_total", &[]) >= 1.0);
    quiet(&proxy);
}

/// Catches: an error of an engine that is lost, or that the clients of a path do not take for one,
/// behind a head that said 200.
#[test]
fn an_engines_error_is_told_inside_the_stream() {
    let body = r#"{"error":{"message":"no \"m\" here","type":"NotFoundError","code":404}}"#;
    let (engine, go) = waiting(error(404, body));
    let (proxy, hook) = before(&[&engine], "");
    for (path, prefix) in [
        (CHATS, "data: "),
        ("/v1/messages", "event: error\ndata: "),
        ("/v1/responses", "event: error\ndata: "),
    ] {
        let mut conn = patient(&proxy, path);
        go.send(()).unwrap();
        let event = only_event(&mut conn, prefix);
        assert_eq!(event["error"]["message"], "no \"m\" here", "{path}");
        assert_eq!(event["error"]["code"], "backend_error", "{path}");
        conn.assert_ends();
    }
    for record in hook.await_records(3, SOON) {
        assert_eq!(record["status_code"], 404, "{record}");
        assert_eq!((&record["status"], &record["error"]), (&"complete".into(), &Value::Null));
    }
    quiet(&proxy);
    assert!(proxy.events().iter().all(|event| event["level"] != "ERROR"));
}

/// Catches: a client that waits for ever, or takes a failure for an end, when no engine answers; an
/// answer of another form relayed as if it were events.
#[test]
fn what_fails_is_told_inside_the_stream() {
    let json = error(200, r#"{"choices":[]}"#);
    for (answer, code, status) in
        [("", "backend_closed", 502), (json.as_str(), "bad_response", 502)]
    {
        let (engine, go) = match answer {
            "" => {
                let (go, going) = channel::<()>();
                let going = Mutex::new(going);
                let silent = Backend::start(move |served| {
                    served.request();
                    let _ = going.lock().unwrap().recv_timeout(SOON);
                });
                (silent, go)
            }
            answer => waiting(answer),
        };
        let (proxy, hook) = before(&[&engine], "");
        let mut conn = patient(&proxy, CHATS);
        go.send(()).unwrap();
        let event = only_event(&mut conn, "data: ");
        assert_eq!(event["error"]["code"], code);
        conn.assert_ends();
        let record = hook.await_records(1, SOON).remove(0);
        assert_eq!((&record["status_code"], &record["error"]), (&status.into(), &code.into()));
        let counted = proxy.metric("llmproxy_faults_total", &[("kind", code)]);
        assert_eq!(counted, 1.0, "{code}");
        quiet(&proxy);
    }
}

/// Catches: a retry that is given up because comments went to the client.
#[test]
fn another_backend_may_still_answer() {
    let (down, go_down) = waiting(error(503, "{}"));
    let (well, go_well) = waiting(stream());
    let (proxy, hook) = before(&[&down, &well], ", retry: {max_retries: 2}");
    for _ in 0..2 {
        let mut conn = patient(&proxy, CHATS);
        go_down.send(()).unwrap();
        go_well.send(()).unwrap();
        assert_eq!(rest_of(&mut conn), EVENTS);
    }
    let records = hook.await_records(2, SOON);
    assert!(records.iter().any(|record| record["retry_count"] == 1), "{records:?}");
    quiet(&proxy);
}

/// Catches: a backend that must not be cut off and whose answer is lost, or passed on as it is,
/// because it was asked as a later one, behind a head that is out.
#[test]
fn a_backend_that_is_drained_may_be_asked_later() {
    for (answer, is_stream) in [(stream(), true), (error(200, r#"{"choices":[]}"#), false)] {
        let ((down, go_down), (spared, go)) = (waiting(error(503, "{}")), waiting(answer));
        let hook = Webhook::start();
        let proxy = Config::new()
            .backend(down.url(), "")
            .backend(spared.url(), "name: spared, backup: true, on_client_abort: drain")
            .section("health_check: {enabled: false}")
            .section("routing: {sse_keepalive: 100ms, early_head: true, retry: {max_retries: 1}}")
            .webhook(&hook.url(), "")
            .start();
        let mut conn = patient(&proxy, CHATS);
        go_down.send(()).unwrap();
        go.send(()).unwrap();
        match is_stream {
            true => assert_eq!(rest_of(&mut conn), EVENTS),
            false => {
                assert_eq!(only_event(&mut conn, "data: ")["error"]["code"], "bad_response");
            }
        }
        let record = hook.await_records(1, SOON).remove(0);
        assert_eq!((&record["backend"], &record["retry_count"]), (&"spared".into(), &1.into()));
        quiet(&proxy);
    }
}

/// Catches: an engine that works on for a client that has left.
#[test]
fn a_client_that_leaves_frees_the_engine() {
    let (left, was_left) = channel();
    let left = Mutex::new(left);
    let engine = Backend::start(move |served| {
        if served.request().is_some() {
            let _ = left.lock().unwrap().send(served.left_within(SOON));
        }
    });
    let (proxy, hook) = before(&[&engine], "");
    drop(patient(&proxy, CHATS));
    assert!(was_left.recv_timeout(SOON).unwrap());
    assert_eq!(hook.await_records(1, SOON)[0]["status"], "client_left");
    quiet(&proxy);
}

/// Catches: an early head where the client asked for no stream, or an old client that gets chunks.
#[test]
fn only_streams_begin_early_and_old_clients_are_understood() {
    let (engine, go) = waiting(error(200, "{}"));
    let (proxy, _hook) = before(&[&engine], "");
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", CHAT);
    conn.assert_silent(Duration::from_millis(350));
    go.send(()).unwrap();
    assert_eq!(conn.response().text(), "{}");
    assert_eq!(proxy.metric("llmproxy_sse_early_heads_total", &[]), 0.0);
    let (engine, go) = waiting(stream());
    let (proxy, _hook) = before(&[&engine], "");
    let mut conn = proxy.connect();
    let len = STREAM.len();
    conn.send(format!("POST {CHATS} HTTP/1.0\r\nContent-Length: {len}\r\n\r\n{STREAM}"));
    let head = conn.head();
    assert_eq!((head.status(), head.get("transfer-encoding")), (200, None));
    assert_eq!(head.get("connection"), Some("close"));
    conn.read_until(COMMENT);
    go.send(()).unwrap();
    assert_eq!(rest_until(&mut conn, Ended::Closed), EVENTS);
    quiet(&proxy);
}

/// Catches: heads that go early although nobody asked for it.
#[test]
fn nothing_begins_early_unless_it_is_asked_for() {
    let (engine, go) = waiting(error(503, "{}"));
    let config = Config::backend_at(engine.url()).section("routing: {sse_keepalive: 50ms}");
    let proxy = config.start();
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", STREAM);
    conn.assert_silent(Duration::from_millis(300));
    go.send(()).unwrap();
    assert_eq!(conn.response().status(), 503);
}
