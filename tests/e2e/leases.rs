//! A connection to an engine carries another request only when everything of the one before is
//! over: the request was sent whole, the answer was read to its end, and the engine keeps it.
//! Otherwise bytes of one client become a request, or an answer, of another.

use crate::harness::backend::{Received, Served};
use crate::harness::client::{post_bytes, Response};
use crate::harness::{await_until, pause, Backend, Config, Conn, Proxy, SOON};
use crate::rig::{leave, quiet, Leave, CHAT, CHATS, STREAM};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

const POLICIES: [&str; 2] = ["on_client_abort: close", "on_client_abort: drain"];
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
/// The body of a form passes as it is, behind its first boundary.
const FORMS: &str = "/v1/audio/transcriptions";
const BEGIN: &str = "--b\r\n";
const FORM: &str = "Content-Type: multipart/form-data; boundary=b\r\n";
/// More than the kernel takes on its way to an engine that does not read.
const LARGE: usize = 20 << 20;

/// Catches: request smuggling. The rest of a request that an engine answered early is still to come
/// on its connection; if that is used again, the next request is taken for that rest, and what a
/// client wrote into its body becomes a request of its own, which nobody has checked.
#[test]
fn a_body_never_becomes_a_request() {
    for policy in POLICIES {
        for leaves in [true, false] {
            let (is_gone, told) = flag();
            // As uvicorn does: it answers early, and goes on reading the body to its end.
            let backend = Backend::start(move |served| {
                while let Some(head) = served.head() {
                    let is_early = head.get("x-early").is_some();
                    if is_early {
                        served.send("HTTP/1.1 413 Large\r\ncontent-length: 6\r\n\r\nlar");
                        await_flag(&told);
                        served.send("ge\n");
                    }
                    if served.body_of(head).is_none() {
                        return;
                    }
                    if !is_early {
                        served.send(OK);
                    }
                }
            });
            let proxy = before(&backend, policy);
            let mut first = proxy.connect();
            first.send(form("X-Early: 1\r\n", &"x".repeat(LARGE)));
            assert_eq!(first.head().status(), 413);
            go_on(&proxy, first, leaves, &is_gone);
            quiet(&proxy);
            let smuggled = "GET /internal/flush_cache HTTP/1.1\r\nHost: evil\r\n\r\n";
            let body = "\r\n".repeat(LARGE / 2) + smuggled;
            let mut second = proxy.connect();
            second.send(form("", &body));
            // Not the answer: an engine that was tricked gives none to this request.
            await_until("the engine has a request", SOON, || !backend.requests().is_empty());
            assert_eq!(second.response().text(), "ok");
            let executed = backend.requests();
            let targets: Vec<_> = executed.iter().map(|request| request.head.target()).collect();
            assert_eq!(targets, [FORMS], "{policy}, leaves: {leaves}");
            assert!(executed[0].body == [BEGIN, &body].concat().as_bytes(), "the body is whole");
        }
    }
}

/// Catches: a connection used again against the engine's word, or with bytes on it that belong to
/// nobody; and, in the first lines, one that is closed without need.
#[test]
fn a_connection_is_used_again_only_at_the_exact_end_of_an_answer_that_keeps_it() {
    const KEPT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    const CLOSED: &str = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\nconnection: close\r\n\r\n";
    const OLD: &str = "HTTP/1.0 200 OK\r\ncontent-length: 8\r\nconnection: keep-alive\r\n\r\n";
    let interim = format!("HTTP/1.1 102 Processing\r\n\r\n{KEPT}");
    for (head, first, rest, used_again) in [
        (KEPT, "half", "half", true),
        (interim.as_str(), "half", "half", true),
        (CHUNKED, "4\r\nhalf\r\n", "4\r\nhalf\r\n0\r\n\r\n", true),
        (CLOSED, "half", "half", false),
        (OLD, "half", "half", false),
        (KEPT, "half", "halfHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother", false),
        (CHUNKED, "4\r\nhalf\r\n", "4\r\nhalf\r\n0\r\n\r\nmore", false),
        (CHUNKED, "4\r\nhalf\r\n", "4\r\nhalf....", false),
    ] {
        for policy in POLICIES {
            for leaves in [true, false] {
                let (is_gone, told) = flag();
                let parts = [head.to_owned() + first, rest.to_owned()];
                let backend = Backend::start(move |served| answer_in_two(served, &parts, &told));
                let proxy = before(&backend, policy);
                let mut client = proxy.connect();
                client.start_post(CHATS, "X-First: 1\r\n", CHAT);
                client.head();
                client.read_until("half");
                go_on(&proxy, client, leaves, &is_gone);
                quiet(&proxy);
                assert_eq!(proxy.post(CHATS, CHAT).text(), "ok");
                let cut = leaves && policy == POLICIES[0];
                let conn = usize::from(cut || !used_again);
                let last = backend.requests().pop().unwrap();
                assert_eq!(last.conn, conn, "{policy}, leaves: {leaves}, {head}{first}|{rest}");
            }
        }
    }
}

/// Catches: a connection kept behind a body that the engine may not look for, or behind an answer
/// that announces a body and must have none: what follows may be taken for something else.
#[test]
fn a_connection_is_not_used_again_where_two_readers_may_see_another_end() {
    let with_body = |method: &str| {
        let post = String::from_utf8(post_bytes("/api/delete", "", CHAT)).unwrap();
        post.replacen("POST", method, 1)
    };
    let bare = |method: &str| format!("{method} /api/delete HTTP/1.1\r\nHost: t\r\n\r\n");
    for (request, used_again) in [
        (with_body("POST"), true),
        (bare("DELETE"), true),
        (with_body("DELETE"), false),
        (bare("HEAD"), false),
    ] {
        let backend = Backend::start(|served| {
            while let Some(request) = served.request() {
                let end = if request.head.method() == "HEAD" { OK.len() - 2 } else { OK.len() };
                served.send(&OK[..end]);
            }
        });
        let proxy = Config::backend_at(backend.url()).server("paths: [/v1/*, /api/*]").start();
        let mut client = proxy.connect();
        client.send(&request);
        let answer = match request.starts_with("HEAD") {
            true => client.response_to_head(),
            false => client.response(),
        };
        assert_eq!(answer.status(), 200, "{request}");
        assert_eq!(proxy.post(CHATS, CHAT).text(), "ok");
        let last = backend.requests().pop().unwrap();
        assert_eq!(last.conn, usize::from(!used_again), "{request}");
    }
}

fn before(backend: &Backend, policy: &str) -> Proxy {
    Config::new().backend(backend.url(), policy).start()
}

fn form(fields: &str, body: &str) -> Vec<u8> {
    let body = format!("{BEGIN}{body}");
    let length = body.len();
    let head = format!(
        "POST {FORMS} HTTP/1.1\r\nHost: t\r\n{FORM}{fields}Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

fn flag() -> (Arc<AtomicBool>, Arc<AtomicBool>) {
    let flag = Arc::new(AtomicBool::new(false));
    (Arc::clone(&flag), flag)
}

fn await_flag(flag: &AtomicBool) {
    await_until("the engine is told to go on", SOON, || flag.load(Ordering::Relaxed));
}

/// Lets a client leave in the midst of its answer, or read all of it, and the engine go on.
fn go_on(proxy: &Proxy, mut client: Conn, leaves: bool, engine_goes_on: &AtomicBool) {
    if leaves {
        leave(client, Leave::Rst);
        // Else the rest of the answer may be read before it is seen that nobody wants it.
        proxy.await_metric("llmproxy_client_abort_total", &[], 1.0);
        engine_goes_on.store(true, Ordering::Relaxed);
    } else {
        engine_goes_on.store(true, Ordering::Relaxed);
        client.rest();
    }
}

/// Answers the request that says it is the first in two parts, the second when it is told to, and
/// every other one with OK.
fn answer_in_two(served: &mut Served, parts: &[String; 2], told: &AtomicBool) {
    while let Some(request) = served.request() {
        if request.head.get("x-first").is_some() {
            served.send(&parts[0]);
            await_flag(told);
            served.send(&parts[1]);
        } else {
            served.send(OK);
        }
    }
}

/// Catches: an interim answer that is taken for the beginning of the answer while the request is
/// still on its way: no more of it is sent, and both sides wait for each other.
#[test]
fn an_interim_answer_does_not_end_the_sending_of_a_body() {
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    const FAILED: &str = "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno";
    let (half, rest) = HINTS.split_at(20);
    let twice = HINTS.repeat(2);
    let refused = HINTS.to_owned() + FAILED;
    let too_many = HINTS.repeat(9);
    // (what comes before the engine reads, in pieces; its connections at most; the status)
    let cases: [(&[&str], usize, u16); 7] = [
        (&["HTTP/1.1 100 Continue\r\n\r\n"], 1, 200),
        (&[HINTS], 1, 200),
        (&[&twice], 1, 200),
        (&[HINTS, HINTS, HINTS], 1, 200),
        // On a kept connection half a head may be anybody's: the second request takes a fresh one,
        // unless both halves are read as one.
        (&[half, rest], 2, 200),
        (&[&refused], 2, 417),
        (&[&too_many], 2, 502),
    ];
    for (pieces, connections, status) in cases {
        let said: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
        let backend = Backend::start(move |served| {
            while let Some(head) = served.head() {
                for piece in &said {
                    served.send(piece);
                    // A piece of its own, for nearly every reader.
                    pause(Duration::from_millis(20));
                }
                if status == 200 {
                    served.body_of(head);
                    served.send(OK);
                } else {
                    // It reads no more of this, and leaves the connection open for long enough.
                    pause(SOON);
                    return;
                }
            }
        });
        let proxy = before(&backend, "on_client_abort: close, first_byte_timeout: 10s");
        for filler in ["x", "y"] {
            let answer = proxy.connect().send(form("", &filler.repeat(LARGE))).response();
            assert_eq!(answer.status(), status, "{pieces:?}: {}", answer.text());
            assert!(answer.interim.is_empty(), "{pieces:?}");
        }
        assert!(backend.connections() <= connections, "{pieces:?}");
        if status == 200 {
            let length = BEGIN.len() + LARGE;
            let whole = |request: &Received| (request.body.len(), request.body.last().copied());
            let bodies: Vec<_> = backend.requests().iter().map(whole).collect();
            assert_eq!(bodies, [(length, Some(b'x')), (length, Some(b'y'))], "{pieces:?}");
        }
        quiet(&proxy);
    }
}

/// Catches: the body of a request that an engine refused without reading it, left on a connection
/// that carries the request of somebody else.
#[test]
fn a_refusal_of_a_request_with_a_body_ends_its_connection() {
    let answers_early = || {
        Backend::start(|served| {
            // It never looks at bodies: what stands there is a request to it.
            while let Some(head) = served.head() {
                let status = if head.get("x-good").is_some() { "200 OK" } else { "401 No" };
                served.send(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok"));
            }
        })
    };
    let backend = answers_early();
    let proxy = Config::backend_at(backend.url()).start();
    let mut conn = proxy.connect();
    let inner = "POST /sleep HTTP/1.1\r\nHost: evil\r\nContent-Length: 0\r\n\r\n";
    for (fields, code) in [("Content-Type: text/plain\r\n", "not_json"), ("", "not_json")] {
        conn.post(CHATS, fields, inner).assert_refused(400, code);
    }
    let length = inner.len();
    let head =
        format!("POST {FORMS} HTTP/1.1\r\nHost: t\r\n{FORM}Content-Length: {length}\r\n\r\n");
    conn.send(head + inner).response().assert_refused(400, "not_multipart");
    assert_eq!(backend.connections(), 0);
    assert_eq!(conn.post(CHATS, "", CHAT).status(), 401);
    assert_eq!(conn.post(CHATS, "X-Good: 1\r\n", CHAT).status(), 200);
    assert_eq!(backend.connections(), 2, "the refusal's connection was used again");
}

/// Catches: an answer that is given to another client than the one it belongs to, one after the
/// other for as long as the connection lives.
#[test]
fn the_answer_to_another_request_is_nobodys() {
    let backend = Backend::start(|served| {
        let mut last = String::new();
        while let Some(request) = served.request() {
            let own = request.head.get("x-request-id").unwrap().to_owned();
            // As if the answer before had been sent twice.
            let id = if request.head.get("x-ghost").is_some() { &last } else { &own };
            served.send(format!(
                "HTTP/1.1 200 OK\r\nX-Request-Id: {id}\r\nContent-Length: {}\r\n\r\n{id}",
                id.len()
            ));
            last = own;
        }
    });
    let proxy = Config::backend_at(backend.url()).start();
    let mut conn = proxy.connect();
    let own = |response: &Response| response.text() == response.head.get("x-request-id").unwrap();
    assert!(own(&conn.post(CHATS, "", CHAT)));
    conn.post(CHATS, "X-Ghost: 1\r\n", CHAT).assert_refused(502, "foreign_answer");
    assert!(own(&conn.post(CHATS, "", CHAT)));
    assert_eq!(backend.connections(), 2);
    proxy.await_event("the warning", |event| {
        event["message"].as_str().is_some_and(|said| said.contains("answer of another one"))
    });
    proxy.await_metric("llmproxy_faults_total", &[("kind", "foreign_answer")], 1.0);
}

/// Catches: a backend that gives its answers names of its own, refused for that.
#[test]
fn a_backend_with_ids_of_its_own_is_heard() {
    let backend =
        Backend::answering("HTTP/1.1 200 OK\r\nX-Request-Id: a\r\nContent-Length: 2\r\n\r\nok");
    let proxy = Config::backend_at(backend.url()).start();
    for _ in 0..3 {
        assert_eq!(proxy.post(CHATS, CHAT).text(), "ok");
    }
    assert_eq!(backend.connections(), 1);
}

/// Catches: a backend that repeats the ids of most requests, and rewrites those that some clients
/// bring along (Envoy marks traces in them), refused for that.
#[test]
fn a_backend_that_rewrites_the_ids_of_clients_is_heard() {
    let backend = Backend::start(|served| {
        while let Some(request) = served.request() {
            let id = request.head.get("x-request-id").unwrap().replace("-4", "-9");
            served.send(format!(
                "HTTP/1.1 200 OK\r\nX-Request-Id: {id}\r\nContent-Length: 2\r\n\r\nok"
            ));
        }
    });
    let proxy = Config::backend_at(backend.url()).start();
    let mut conn = proxy.connect();
    for id in ["", "X-Request-Id: a-4b\r\n", "X-Request-Id: a-4c\r\n", ""] {
        assert_eq!(conn.post(CHATS, id, CHAT).text(), "ok");
    }
    assert_eq!(backend.connections(), 1);
}

/// Catches: a connection used again although its last answer was none to what was asked.
#[test]
fn an_answer_of_another_form_than_was_asked_for_is_the_last_of_its_connection() {
    let json = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    let events =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 14\r\n\r\ndata: [DONE]\n\n";
    let backend = Backend::start(move |served| {
        while let Some(request) = served.request() {
            let streams = request.head.get("x-events").is_some();
            served.send(if streams { events } else { json });
        }
    });
    let proxy = Config::backend_at(backend.url()).start();
    let mut conn = proxy.connect();
    let mut made = |fields: &str, body: &str| {
        assert_eq!(conn.post(CHATS, fields, body).status(), 200);
        backend.connections()
    };
    assert_eq!((made("", CHAT), made("X-Events: 1\r\n", STREAM), made("", CHAT)), (1, 1, 1));
    assert_eq!((made("", STREAM), made("", CHAT)), (1, 2));
    assert_eq!((made("X-Events: 1\r\n", CHAT), made("", CHAT)), (2, 3));
}
