//! `routing.sse_keepalive`: what a client gets while its stream is silent.

use crate::harness::message::Ended;
use crate::harness::{pause, Backend, Config, Proxy, SOON};
use crate::rig::{before as plain, quiet, CHATS, STREAM};
use std::sync::mpsc;
use std::sync::Mutex;
use std::time::Duration;

const COMMENT: &str = ": keep-alive\n\n";

fn before(backend: &Backend, properties: &str) -> Proxy {
    let config = Config::new().backend(backend.url(), properties);
    config.section("routing: {sse_keepalive: 100ms}").start()
}

/// A backend that sends each part once it is told to go on.
fn stepwise(parts: &'static [&'static str]) -> (Backend, mpsc::Sender<()>) {
    let (go, going) = mpsc::channel();
    let going = Mutex::new(going);
    let backend = Backend::start(move |served| {
        if served.request().is_none() {
            return;
        }
        served.begin_events();
        for part in parts {
            going.lock().unwrap().recv_timeout(SOON).unwrap();
            served.chunk(part);
        }
        served.send("0\r\n\r\n");
    });
    (backend, go)
}

/// Catches: a stream that a balancer takes for dead; a comment in the middle of an event, one that
/// is not framed, and a stream that is not the engine's but for them.
#[test]
fn a_silent_stream_gets_comments_between_its_events() {
    let (backend, go) =
        stepwise(&["data: {\"a\":1}\n\n", "data: {\"b\"", ":2}\n\n", "data: [DONE]\n\n"]);
    let proxy = before(&backend, "");
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", STREAM);
    assert_eq!(conn.head().status(), 200);
    let mut seen = conn.read_until(&format!("{COMMENT}{COMMENT}"));
    go.send(()).unwrap();
    seen += &conn.read_until(&format!("1}}\n\n{COMMENT}"));
    go.send(()).unwrap();
    seen += &conn.read_until("{\"b\"");
    // Half an event: whatever comes next is its other half.
    let told = proxy.metric("llmproxy_sse_keepalives_total", &[]);
    proxy.await_metric("llmproxy_requests_active", &[], 2.0);
    pause(Duration::from_millis(350));
    assert_eq!(proxy.metric("llmproxy_sse_keepalives_total", &[]), told);
    go.send(()).unwrap();
    go.send(()).unwrap();
    let (rest, ended) = conn.rest();
    assert_eq!(ended, Ended::Whole);
    rest.iter().for_each(|piece| seen += std::str::from_utf8(&piece.bytes).unwrap());
    assert!(told >= 3.0 && seen.matches(COMMENT).count() as f64 >= told, "{seen}");
    let without = seen.replace(COMMENT, "");
    assert_eq!(without, "data: {\"a\":1}\n\ndata: {\"b\":2}\n\ndata: [DONE]\n\n");
    quiet(&proxy);
}

/// Catches: a hung engine that lives for as long as it is silent.
#[test]
fn comments_do_not_put_a_timeout_off() {
    let (backend, _go) = stepwise(&["data: {}\n\n"]);
    let proxy = before(&backend, "first_byte_timeout: 1s, idle_timeout: 1s");
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", STREAM);
    let answer = conn.response();
    assert_eq!(answer.ended, Ended::Cut);
    assert!(answer.text().starts_with(COMMENT), "{}", answer.text());
    assert!(answer.text().contains("first_byte_timeout"), "{}", answer.text());
    quiet(&proxy);
}

/// Catches: comments where nobody asked for them, and in what is no event stream.
#[test]
fn nothing_else_gets_comments() {
    let (backend, go) = stepwise(&["data: {}\n\n"]);
    let (proxy, _hook) = plain(&backend, "");
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", STREAM);
    conn.head();
    conn.assert_silent(Duration::from_millis(300));
    go.send(()).unwrap();
    assert_eq!(conn.rest().1, Ended::Whole);
    let slow = Backend::start(|served| {
        served.request();
        served.send("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n");
        served.send("Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n");
        pause(Duration::from_millis(400));
        served.send("1\r\n}\r\n0\r\n\r\n");
    });
    let answer = before(&slow, "").post(CHATS, STREAM);
    assert_eq!((answer.status(), answer.text().as_str()), (200, "{}"));
}
