//! Connections to engines are kept and used again, and no client ever notices: neither an error
//! when an engine closed one, nor a byte that was meant for another client,
//! nor a generation run twice.

use crate::harness::backend::Served;
use crate::harness::message::Ended;
use crate::harness::{await_until, pause, Backend, SOON};
use crate::rig::{before, quiet, Rig, CHAT, CHATS};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Catches: connections that are opened anew for each request.
#[test]
fn a_connection_is_kept_and_used_again() {
    let backend = Backend::answering(ANSWER);
    let (proxy, _hook) = before(&backend, "");
    for _ in 0..10 {
        assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    }
    assert_eq!((backend.connections(), backend.requests().len()), (1, 10));
    proxy.await_metric("llmproxy_upstream_connections_total", &[("reused", "true")], 9.0);
    proxy.await_metric("llmproxy_upstream_idle", &[], 1.0);
}

/// Catches: the race with an engine that closes at the moment of reuse (uvicorn after 5 s): a 502,
/// or the request run twice (nginx gave 50 % errors).
#[test]
fn an_engine_that_closes_at_the_moment_of_reuse_costs_nothing() {
    // What arrives on a used connection is not read: a reset, as when the close was under way.
    let backend = Backend::start(|served| {
        answer_one(served);
        let _ = served.stream().tcp().peek(&mut [0]);
    });
    let (proxy, _hook) = before(&backend, "");
    let mut client = proxy.connect();
    for number in 1..=20 {
        let body = CHAT.replace("Count.", &number.to_string());
        assert_eq!(client.post(CHATS, "", &body).text(), "ok");
        let requests = backend.requests();
        assert_eq!(requests.len(), number, "executed exactly once");
        assert_eq!(requests[number - 1].body, body.as_bytes());
    }
    proxy.await_metric("llmproxy_faults_total", &[("kind", "reuse_race")], 19.0);
    proxy.await_metric("llmproxy_faults_total", &[], 19.0);
    quiet(&proxy);
}

/// Catches: a closed connection that is only found out by a failed request.
#[test]
fn an_engine_that_closes_after_each_answer_is_not_raced() {
    let backend = Backend::start(answer_one);
    let (proxy, _hook) = before(&backend, "");
    for number in 1..=10 {
        assert_eq!(proxy.post(CHATS, CHAT).text(), "ok");
        assert_eq!(backend.requests().len(), number);
    }
    assert_eq!(backend.connections(), 10);
}

/// Catches: a request sent once more to an engine that may have worked on it.
#[test]
fn an_engine_that_dies_over_a_request_is_not_asked_again() {
    let backend = Backend::start(|served| {
        answer_one(served);
        if served.request().is_some() {
            // Longer than the race can last.
            served.left_within(Duration::from_millis(400));
        }
    });
    let (proxy, _hook) = before(&backend, "");
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    // A name of its own: whether the engine had the request at all is not known.
    proxy.post(CHATS, CHAT).assert_refused(502, "backend_closed_reused");
    proxy.await_metric("llmproxy_faults_total", &[("kind", "backend_closed_reused")], 1.0);
    assert_eq!((backend.connections(), backend.requests().len()), (1, 2));
}

/// Catches: the same when an answer has begun: its first bytes came, so it was worked on.
#[test]
fn an_engine_that_dies_inside_its_head_is_not_asked_again() {
    let backend = Backend::start(|served| {
        answer_one(served);
        if served.request().is_some() {
            served.send("HTTP/1.1 20");
        }
    });
    let (proxy, _hook) = before(&backend, "");
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    proxy.post(CHATS, CHAT).assert_refused(502, "backend_closed");
    assert_eq!((backend.connections(), backend.requests().len()), (1, 2));
}

/// Catches: an answer that was there before the request was whole, so meant for somebody else,
/// passed to the client. The engine reads no more of this request, so it never becomes whole.
#[test]
fn what_is_said_on_a_kept_connection_before_the_request_is_whole_is_not_its_answer() {
    let backend = Backend::start(|served| {
        if served.request().is_none_or(|request| request.conn > 0) {
            served.send(ANSWER.replace("ok", "22"));
            return;
        }
        served.send(ANSWER);
        if served.head().is_some() {
            served.send(ANSWER.replace("ok", "11"));
            pause(SOON);
        }
    });
    let (proxy, _hook) = before(&backend, "");
    assert_eq!(proxy.post(CHATS, CHAT).text(), "ok");
    let body = format!("{{\"model\":\"m\",\"prompt\":\"{}\"}}", "x".repeat(20 << 20));
    assert_eq!(proxy.post(CHATS, &body).text(), "22", "asked anew on a fresh connection");
    assert_eq!((backend.connections(), backend.requests().len()), (2, 2));
    assert_eq!(backend.requests()[1].body.len(), body.len());
    proxy.await_metric("llmproxy_faults_total", &[("kind", "reuse_race")], 1.0);
    quiet(&proxy);
}

/// Catches: a connection used so late that the engine is about to close it.
#[test]
fn a_connection_that_idled_too_long_is_closed_instead_of_used() {
    let rig = Rig::with("keepalive_timeout: 200ms", |config| config);
    assert_eq!(rig.proxy.post(CHATS, CHAT).status(), 200);
    rig.proxy.await_metric("llmproxy_upstream_idle", &[], 1.0);
    rig.proxy.await_metric("llmproxy_upstream_idle", &[], 0.0);
    // This very question is the one.
    await_until("the engine sees it close", SOON, || rig.engine.stat("connections_open") == 1);
    assert_eq!(rig.proxy.post(CHATS, CHAT).status(), 200);
    rig.proxy.await_metric("llmproxy_upstream_connections_total", &[("reused", "false")], 2.0);
}

/// Catches: an answer smuggled behind another one, which the next client would get as its own.
#[test]
fn bytes_behind_an_answer_never_reach_the_next_client() {
    for late in [false, true] {
        let sent = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&sent);
        let backend = Backend::start(move |served| {
            while let Some(request) = served.request() {
                if !String::from_utf8_lossy(&request.body).contains("mallory") {
                    served.send(ANSWER.replace("ok", "22"));
                    continue;
                }
                let first = ANSWER.replace("ok", "11");
                if late {
                    served.send(first);
                    // The answer is through and the connection kept when the rest comes.
                    assert!(!served.left_within(Duration::from_millis(100)));
                    served.send(ANSWER);
                } else {
                    served.send(first + ANSWER);
                }
                told.store(true, Ordering::Relaxed);
            }
        });
        let (proxy, _hook) = before(&backend, "");
        let mallory = proxy.post(CHATS, r#"{"model":"mallory"}"#);
        if late {
            assert_eq!((mallory.text().as_str(), mallory.ended), ("11", Ended::Whole));
        } else {
            mallory.assert_refused(502, "bad_response");
        }
        await_until("the bytes are out", SOON, || sent.load(Ordering::Relaxed));
        let alice = proxy.post(CHATS, r#"{"model":"alice"}"#);
        assert_eq!((alice.text().as_str(), alice.ended), ("22", Ended::Whole));
        assert_eq!(backend.requests()[1].conn, 1, "a connection of its own");
        quiet(&proxy);
    }
}

/// Catches: more connections kept than are allowed.
#[test]
fn no_more_connections_are_kept_than_allowed() {
    let rig = Rig::with("max_idle_conns: 2", |config| config);
    let mut clients: Vec<_> = (0..6).map(|_| rig.ask(CHAT, "x-mock-ttft-ms: 200\r\n")).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.response().status(), 200));
    rig.proxy.await_metric("llmproxy_upstream_idle", &[], 2.0);
    // And one that asks.
    await_until("the others are closed", SOON, || rig.engine.stat("connections_open") == 3);
}

fn answer_one(served: &mut Served) {
    if served.request().is_some() {
        served.send(ANSWER);
    }
}
