//! What requests find out about backends: one that fails is named, left alone and tried again; and
//! requests that wait at one that goes out of service are answered by another.

use crate::harness::{await_until, Backend, Config, Conn, Engine, Proxy, Webhook, SOON};
use crate::rig::{quiet, CHAT, CHATS, OK, STREAM};
use rustix::process::Signal;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

/// Nobody probes: what is known comes from requests.
const NO_PROBES: &str = "health_check: {enabled: false}";
/// Two bad probes in a row, soon.
const PROBES: &str = "health_check: {interval: 100ms, timeout: 5s, path: /health, \
                      unhealthy_threshold: 2, healthy_threshold: 1}";
/// It says that it is full, until a time that is over.
const PAST: &str = "HTTP/1.1 503 X\r\nretry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                    content-length: 0\r\n\r\n";
const UNAVAILABLE: &str = "HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n";

/// An answer with a body of JSON.
fn json(status: u16, body: &str) -> String {
    let len = body.len();
    format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n\r\n{body}")
}

/// How engines say that they are full: all but TGI with a 503, and none of them for how long.
const FULL: [(u16, &str); 4] = [
    (503, r#"{"error":{"message":"no","type":"Service Unavailable","param":null,"code":503}}"#),
    (503, r#"{"object":"error","message":"The request queue is full.","code":503}"#),
    (503, r#"{"error":"server busy, please try again.  maximum pending requests exceeded"}"#),
    (429, r#"{"error":"Model is overloaded","error_type":"overloaded"}"#),
];

/// What becomes of an engine that answers so each time, with one beside it that is well.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    Ejected,
    Spared,
    Neither,
}

/// Messages of its log about backends, in order.
fn said(proxy: &Proxy) -> Vec<(String, String)> {
    let events = proxy.events().into_iter();
    let told = events.filter(|event| {
        event["message"].as_str().is_some_and(|text| text.starts_with("backend is "))
    });
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    told.map(|event| (text(&event["backend"]), text(&event["message"]))).collect()
}

/// The log is written by a thread of its own, behind what metrics tell.
fn await_said(proxy: &Proxy, wanted: &[(String, String)]) {
    await_until("the log says so", SOON, || said(proxy).len() >= wanted.len());
    assert_eq!(said(proxy), wanted);
}

fn await_up(proxy: &Proxy, name: &str, up: f64) {
    proxy.await_metric("llmproxy_backend_up", &[("backend", name)], up);
}

/// Catches: a dead engine that costs a connect for each second request for ever, and is named
/// nowhere; one that never gets traffic again; a log line for each failure.
#[test]
fn a_dead_engine_is_named_and_left_alone_until_it_is_back() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let engine = Engine::start(&[]);
    let proxy = Config::new()
        .backend(format!("http://{address}"), "name: dead")
        .backend(engine.url(), "name: well")
        .section(NO_PROBES)
        .start();
    let ask = || assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    while proxy.metric("llmproxy_backend_up", &[("backend", "dead")]) == 1.0 {
        ask();
    }
    let failed = || proxy.metric("llmproxy_faults_total", &[("kind", "connect_failed")]);
    assert_eq!(failed(), 3.0);
    let ejected = ("dead".to_owned(), "backend is ejected".to_owned());
    await_said(&proxy, std::slice::from_ref(&ejected));
    let event = proxy.await_event("the reason", |event| event["message"] == ejected.1);
    assert_eq!(event["last"], "The backend could not be reached", "{event}");
    let ejections = proxy.metric("llmproxy_backend_ejections_total", &[("backend", "dead")]);
    assert!(ejections >= 1.0, "{ejections}");
    // It comes to life; the next one that is let through finds it so.
    let back = Engine::start(&["--listen", &address.to_string()]);
    await_until("it is back", 3 * SOON, || {
        ask();
        proxy.metric("llmproxy_backend_up", &[("backend", "dead")]) == 1.0
    });
    let is_back = ("dead".to_owned(), "backend is back: it answered a request".to_owned());
    await_said(&proxy, &[ejected, is_back]);
    assert!(back.posts().len() <= 2, "one request tried it: {}", back.posts().len());
}

/// Catches: an engine that answers nothing but errors and gets its full share for ever; one
/// that is full, or that refuses what clients send, taken for a sick one.
#[test]
fn errors_in_a_row_eject_and_refusals_do_not() {
    use Fate::{Ejected, Neither, Spared};
    let bare = [
        ("HTTP/1.1 502 X\r\ncontent-length: 0\r\n\r\n", Ejected),
        (UNAVAILABLE, Ejected),
        ("HTTP/1.1 503 X\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n", Spared),
        ("HTTP/1.1 503 X\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n", Ejected),
        (PAST, Ejected),
        ("HTTP/1.1 502 X\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n", Ejected),
        ("HTTP/1.1 429 X\r\ncontent-length: 0\r\n\r\n", Spared),
        ("HTTP/1.1 429 X\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n", Neither),
        ("HTTP/1.1 400 X\r\ncontent-length: 0\r\n\r\n", Neither),
        ("HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n", Ejected),
        ("HTTP/1.1 501 X\r\ncontent-length: 0\r\n\r\n", Neither),
    ];
    let bare = bare.map(|(answer, fate)| (answer.to_owned(), fate));
    let full = FULL.map(|(status, body)| (json(status, body), Spared));
    let sick = [(json(503, r#"{"detail":"Service Unavailable"}"#), Ejected)];
    for (answer, fate) in bare.into_iter().chain(full).chain(sick) {
        let (odd, well) = (Backend::answering(answer.clone()), Backend::answering(OK));
        let proxy = Config::new()
            .backend(odd.url(), "name: odd")
            .backend(well.url(), "name: well")
            .section(NO_PROBES)
            .start();
        let mut client = proxy.connect();
        for _ in 0..20 {
            client.post(CHATS, "", CHAT);
        }
        let up = proxy.metric("llmproxy_backend_up", &[("backend", "odd")]);
        assert_eq!(up == 0.0, fate == Ejected, "{answer:?}");
        let asked = odd.requests().len();
        let is_due = match fate {
            Ejected => (5..=6).contains(&asked),
            // It may take longer than it is spared.
            Spared => (1..=10).contains(&asked),
            Neither => asked == 10,
        };
        assert!(is_due, "{answer:?}: {asked}");
        let spared = proxy.metric("llmproxy_backend_full", &[("backend", "odd")]);
        assert!(fate == Spared || spared == 0.0, "{answer:?}");
    }
}

/// Catches: an engine whose clients hear that it is full, one after the other, while another one
/// has nothing to do.
#[test]
fn a_full_engine_that_names_no_time_is_left_alone_for_a_moment() {
    for (status, body) in FULL {
        let (full, well) = (Backend::answering(json(status, body)), Backend::answering(OK));
        let proxy = Config::new()
            .backend(full.url(), "name: full")
            .backend(well.url(), "name: well")
            .section(NO_PROBES)
            .start();
        let mut client = proxy.connect();
        let is_spared = || proxy.metric("llmproxy_backend_full", &[("backend", "full")]) == 1.0;
        // On a machine that stands still each round can be too late.
        await_until("it is seen to be spared", SOON, || {
            client.post(CHATS, "", CHAT);
            client.post(CHATS, "", CHAT);
            is_spared()
        });
        await_until("and is asked again later", SOON, || !is_spared());
        let asked = full.requests().len();
        await_until("in its turn", SOON, || {
            client.post(CHATS, "", CHAT);
            full.requests().len() > asked
        });
        assert_eq!(proxy.metric("llmproxy_backend_ejections_total", &[]), 0.0);
    }
}

/// A backend that answers this at once, but streams only when they may end.
fn holding_streams(answer: String) -> (Backend, Arc<AtomicBool>) {
    let goes_on = Arc::<AtomicBool>::default();
    let may_end = Arc::clone(&goes_on);
    let backend = Backend::start(move |served| {
        while let Some(request) = served.request() {
            if request.body != STREAM.as_bytes() {
                served.send(&answer);
                continue;
            }
            await_until("it may end", 3 * SOON, || may_end.load(Relaxed));
            served.send(OK);
        }
    });
    (backend, goes_on)
}

/// Catches: generations that are thrown away, and begun again elsewhere, because their engine is
/// full, or answers others with errors.
#[test]
fn what_an_engine_is_at_work_on_stays_there_while_others_are_refused() {
    let (status, body) = FULL[0];
    for (answer, is_ejected) in [(json(status, body), false), (UNAVAILABLE.to_owned(), true)] {
        let (odd, goes_on) = holding_streams(answer);
        let well = Backend::answering(OK);
        let proxy = Config::new()
            .backend(odd.url(), "name: odd")
            .backend(well.url(), "name: well")
            .section(NO_PROBES)
            .start();
        // They take turns.
        let mut clients: Vec<Conn> = (0..2).map(|_| proxy.connect()).collect();
        for client in &mut clients {
            client.start_post(CHATS, "", STREAM);
        }
        await_until("each has one", SOON, || {
            odd.requests().len() == 1 && well.requests().len() == 1
        });
        let mut client = proxy.connect();
        for _ in 0..12 {
            client.post(CHATS, "", CHAT);
        }
        let ejections = proxy.metric("llmproxy_backend_ejections_total", &[("backend", "odd")]);
        assert_eq!(ejections > 0.0, is_ejected);
        // Whoever were to be called off would be by then: workers look ten times a second.
        crate::harness::pause(std::time::Duration::from_millis(500));
        goes_on.store(true, Relaxed);
        for client in &mut clients {
            assert_eq!(client.response().text(), "ok");
        }
        assert_eq!(proxy.metric("llmproxy_faults_total", &[("kind", "backend_ejected")]), 0.0);
        let streams = well.requests().iter().filter(|it| it.body == STREAM.as_bytes()).count();
        assert_eq!(streams, 1, "it was not sent there as well");
        quiet(&proxy);
    }
}

/// Catches: an ejection that ends before it has begun, because somebody gets a good answer who had
/// asked for it before; one that is longer each time for that.
#[test]
fn an_answer_to_what_was_asked_before_does_not_bring_back() {
    let (odd, goes_on) = holding_streams(UNAVAILABLE.to_owned());
    let well = Backend::answering(OK);
    let proxy = Config::new()
        .backend(odd.url(), "name: odd")
        .backend(well.url(), "name: well")
        .section(NO_PROBES)
        .start();
    let mut clients: Vec<Conn> = (0..2).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.start_post(CHATS, "", STREAM);
    }
    await_until("each has one", SOON, || odd.requests().len() == 1 && well.requests().len() == 1);
    let mut client = proxy.connect();
    for _ in 0..12 {
        client.post(CHATS, "", CHAT);
    }
    let ejected = ("odd".to_owned(), "backend is ejected".to_owned());
    await_said(&proxy, std::slice::from_ref(&ejected));
    goes_on.store(true, Relaxed);
    for client in &mut clients {
        assert_eq!(client.response().text(), "ok");
    }
    quiet(&proxy);
    // Whoever tries it, seconds later, finds it as it was.
    assert_eq!(said(&proxy), [ejected]);
}

/// Catches: an engine whose streams all tell of an error, and that gets its share for ever because
/// their heads, and what does not stream, are good answers.
#[test]
fn streams_that_tell_of_errors_eject() {
    for held in ["hold_preamble: 0s", "hold_preamble: 2s, retry: {max_retries: 1}"] {
        let (odd, well) = (Engine::start(&[]), Engine::start(&[]));
        odd.set("error=in-stream&error-after=0");
        let proxy = Config::new()
            .backend(odd.url(), "name: odd")
            .backend(well.url(), "name: well")
            .section(NO_PROBES)
            .section(format!("routing: {{{held}}}"))
            .start();
        let is_up = || proxy.metric("llmproxy_backend_up", &[("backend", "odd")]) == 1.0;
        // They take turns: each gets one of each.
        let mut rounds = 0;
        while is_up() {
            rounds += 1;
            assert!(rounds <= 20, "{held}: it is not ejected");
            for what in [CHAT, CHAT, STREAM, STREAM] {
                proxy.connect().post(CHATS, "", what);
            }
        }
        assert!(rounds > 1, "{held}: one stream is not enough");
        proxy.await_event("the reason", |event| {
            event["why"] == "too many streams in a row told of errors"
        });
        quiet(&proxy);
    }
}

/// Catches: clients that wait for an engine that hangs after it is known to, until a timeout of
/// minutes; an engine that gets the request and is not freed of it; a record that hides the move.
#[test]
fn requests_at_an_engine_that_hangs_are_moved() {
    let (hung, well) = (Engine::start(&[]), Engine::start(&[]));
    let hook = Webhook::start();
    let proxy = Config::new()
        .backend(hung.url(), "name: hung")
        .backend(well.url(), "name: well")
        .webhook(&hook.url(), "")
        .section(
            "health_check: {interval: 300ms, timeout: 2s, path: /health, \
             unhealthy_threshold: 2, healthy_threshold: 1}",
        )
        .start();
    await_until("both were probed", SOON, || hung.stat("probes") > 0 && well.stat("probes") > 0);
    hung.set("ttft-ms=60000");
    let mut clients: Vec<Conn> = (0..6)
        .map(|_| {
            let mut client = proxy.connect();
            client.start_post(CHATS, "", CHAT);
            client
        })
        .collect();
    await_until("all are asked", SOON, || hung.posts().len() + well.posts().len() >= 6);
    let waiting = hung.posts().len();
    assert!(waiting > 0);
    hung.process.signal(Signal::STOP);
    for client in &mut clients {
        let answer = client.response();
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    let moved = proxy.metric("llmproxy_faults_total", &[("kind", "backend_ejected")]);
    assert_eq!(moved, waiting as f64);
    assert_eq!(well.posts().len(), 6);
    let records = hook.await_records(6, SOON);
    let fallen = records.iter().filter(|record| record["fallback_used"] == true);
    let fallen = fallen.inspect(|record| assert_eq!(record["retry_count"], 1, "{record}"));
    assert_eq!(fallen.count(), waiting);
    quiet(&proxy);
    hung.process.signal(Signal::CONT);
    await_until("it is freed", SOON, || {
        hung.posts().iter().filter(|post| post["ended"] == "cancelled").count() == waiting
    });
    await_up(&proxy, "hung", 1.0);
}

/// A backend that answers probes as it is told, and everything else never.
fn hanging() -> (Backend, Arc<AtomicBool>) {
    let sick = Arc::new(AtomicBool::new(false));
    let is_sick = Arc::clone(&sick);
    let backend = Backend::start(move |served| {
        while let Some(request) = served.request() {
            if request.head.method() == "GET" {
                served.send(if is_sick.load(Relaxed) { UNAVAILABLE } else { OK });
            } else {
                served.left_within(3 * SOON);
                return;
            }
        }
    });
    (backend, sick)
}

fn posts(backend: &Backend) -> usize {
    backend.requests().iter().filter(|request| request.head.method() == "POST").count()
}

/// Catches: a request that goes round and round between engines that come and go.
#[test]
fn a_request_is_moved_once() {
    let ((one, one_is_sick), (two, two_is_sick)) = (hanging(), hanging());
    let proxy = Config::new()
        .backend(one.url(), "name: one, first_byte_timeout: 8s")
        .backend(two.url(), "name: two, first_byte_timeout: 8s")
        .section(PROBES)
        .start();
    let mut client = proxy.connect();
    client.start_post(CHATS, "", CHAT);
    await_until("one has it", SOON, || posts(&one) + posts(&two) == 1);
    let is_at_one = posts(&one) == 1;
    let (first, second) = match is_at_one {
        true => (&one_is_sick, &two_is_sick),
        false => (&two_is_sick, &one_is_sick),
    };
    first.store(true, Relaxed);
    await_until("the other has it", SOON, || posts(&one) == 1 && posts(&two) == 1);
    first.store(false, Relaxed);
    await_up(&proxy, if is_at_one { "one" } else { "two" }, 1.0);
    second.store(true, Relaxed);
    client.response().assert_refused(504, "first_byte_timeout");
    assert_eq!((posts(&one), posts(&two)), (1, 1));
    quiet(&proxy);
}

/// Catches: an answer that has begun, cut because probes went wrong; requests that are cut off from
/// the only backend that there is.
#[test]
fn what_has_begun_and_what_has_nowhere_to_go_stays() {
    let sick = Arc::new(AtomicBool::new(false));
    let is_known = Arc::new(AtomicBool::new(false));
    let (is_sick, goes_on) = (Arc::clone(&sick), Arc::clone(&is_known));
    let streaming = Backend::start(move |served| {
        while let Some(request) = served.request() {
            if request.head.method() == "GET" {
                served.send(if is_sick.load(Relaxed) { UNAVAILABLE } else { OK });
                continue;
            }
            served.begin_events();
            served.chunk("data: 1\n\n");
            await_until("it is known to be sick", SOON, || goes_on.load(Relaxed));
            served.chunk("data: [DONE]\n\n");
            served.send("0\r\n\r\n");
        }
    });
    for alone in [false, true] {
        sick.store(false, Relaxed);
        is_known.store(false, Relaxed);
        let other = Backend::answering(OK);
        let mut config = Config::new().backend(streaming.url(), "name: it").section(PROBES);
        if !alone {
            config = config.backend(other.url(), "name: other, weight: 1");
        }
        let proxy = config.start();
        let mut clients = Vec::new();
        // The one of these that goes to it is enough.
        for _ in 0..2 {
            let mut client = proxy.connect();
            client.start_post(CHATS, "", STREAM);
            clients.push(client);
        }
        for client in &mut clients {
            client.head();
        }
        sick.store(true, Relaxed);
        await_up(&proxy, "it", 0.0);
        is_known.store(true, Relaxed);
        for client in &mut clients {
            let (_, ended) = client.rest();
            assert_eq!(ended, crate::harness::message::Ended::Whole);
        }
        assert_eq!(proxy.metric("llmproxy_faults_total", &[]), 0.0, "alone: {alone}");
    }
}

/// Catches: a readiness that falls with what only requests can mend: no request comes any more, and
/// the engine is back for nobody.
#[test]
fn ready_does_not_depend_on_what_requests_find_out() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Config::new().backend(format!("http://{address}"), "name: dead").start();
    // The third failure ejects it: from then on it is known that nobody is there.
    for status in [502, 502, 503, 503] {
        let answer = proxy.post(CHATS, CHAT);
        answer.assert_refused(status, "connect_failed");
        assert_eq!(answer.head.get("retry-after"), (status == 503).then_some("5"));
    }
    assert_eq!(proxy.metric("llmproxy_backend_up", &[("backend", "dead")]), 0.0);
    assert_eq!(proxy.get("/ready").status(), 200);
    let _back = Engine::start(&["--listen", &address.to_string()]);
    // An answer to what was asked in the moment of the ejection does not count yet.
    await_until("it is back", SOON, || {
        assert_eq!(proxy.post(CHATS, CHAT).status(), 200, "the only one is tried at any time");
        proxy.metric("llmproxy_backend_up", &[("backend", "dead")]) == 1.0
    });
}

const LOADING: &str =
    r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#;

/// Catches: clients that are told that a model is loading while another engine has it; an answer
/// that is taken for that and is not; a second engine asked when there is none.
#[test]
fn an_engine_that_is_loading_is_stepped_over() {
    let loading = |body: &'static str| {
        let asked = AtomicUsize::new(0);
        Backend::start(move |served| {
            while served.request().is_some() {
                let head = format!(
                    "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
                     content-length: {}\r\n\r\n",
                    body.len()
                );
                // As one piece, and in two.
                if asked.fetch_add(1, Relaxed).is_multiple_of(2) {
                    served.send(head + body);
                } else {
                    served.send(head);
                    crate::harness::pause(std::time::Duration::from_millis(20));
                    served.send(body);
                }
            }
        })
    };
    let (busy, starting) = (loading(r#"{"error":"busy"}"#), loading(LOADING));
    let engine = Engine::start(&[]);
    let before = |backend: &Backend| {
        Config::new()
            .backend(backend.url(), "name: odd")
            .backend(engine.url(), "")
            .section(NO_PROBES)
            .start()
    };
    let proxy = before(&starting);
    let mut client = proxy.connect();
    // So few that it is not ejected.
    for _ in 0..4 {
        for body in [CHAT, STREAM] {
            assert_eq!(client.post(CHATS, "", body).status(), 200);
        }
    }
    let stepped = proxy.metric("llmproxy_faults_total", &[("kind", "backend_loading")]);
    assert_eq!(stepped, starting.requests().len() as f64);
    assert_eq!(stepped, 4.0);
    let proxy = before(&busy);
    let answers: Vec<u16> = (0..4).map(|_| proxy.post(CHATS, CHAT).status()).collect();
    assert_eq!(answers.iter().filter(|status| **status == 503).count(), 2, "{answers:?}");
    let alone = Config::backend_at(starting.url()).start();
    let answer = alone.post(CHATS, CHAT);
    assert_eq!((answer.status(), answer.text().as_str()), (503, LOADING));
    assert_eq!(alone.metric("llmproxy_faults_total", &[]), 0.0);
}

/// Catches: an engine that answers with 200 and an error in it, and goes on to get its share; one
/// that is ejected for answers between which others were good.
#[test]
fn errors_inside_whole_answers_count_as_those_inside_streams_do() {
    let bad = Arc::<AtomicBool>::default();
    let is_bad = Arc::clone(&bad);
    let engine = Backend::start(move |served| {
        while served.request().is_some() {
            let body = match is_bad.load(Relaxed) {
                true => r#"{"error":{"message":"no","type":"InternalServerError","code":500}}"#,
                false => r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#,
            };
            let len = body.len();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json";
            served.send(format!("{head}\r\ncontent-length: {len}\r\n\r\n{body}"));
        }
    });
    let proxy = Config::new()
        .backend(engine.url(), "name: engine")
        .section("health_check: {enabled: false}")
        .start();
    let ask = |is_bad: bool| {
        bad.store(is_bad, Relaxed);
        assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    };
    let ejections = || proxy.metric("llmproxy_backend_ejections_total", &[("backend", "engine")]);
    for is_bad in [true, true, true, true, false, true, true, true, true] {
        ask(is_bad);
    }
    assert_eq!(ejections(), 0.0);
    ask(true);
    await_until("it is ejected", SOON, || ejections() == 1.0);
    let failures = proxy.metric("llmproxy_backend_failures_total", &[("backend", "engine")]);
    assert_eq!(failures, 9.0);
}
