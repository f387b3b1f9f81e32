//! `routing.retry` and `routing.fallback`: who is asked next, when, and what a client gets when
//! nobody is left.

use crate::harness::backend::Served;
use crate::harness::{await_until, pause, Backend, Config, Proxy, SOON};
use crate::rig::{quiet, CHAT, CHATS, OK, STREAM};
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 77\r\nX-Queue: full\r\n\
                    Content-Length: 16\r\n\r\n{\"error\":\"busy\"}";

/// It does not say when to come again, for which it would be spared.
const DOWN: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

/// Before these backends, named a, b, and so on, with this routing.
fn before(backends: &[&Backend], routing: &str) -> Proxy {
    let config = Config::new().section("health_check: {enabled: false}");
    let named = backends.iter().zip('a'..);
    let config = named.fold(config, |config, (backend, name)| {
        config.backend(backend.url(), &format!("name: {name}"))
    });
    config.section(format!("routing: {{{routing}}}")).start()
}

/// Answers so often with this, and then with OK.
fn failing(times: usize, answer: &'static str) -> Backend {
    let failed = Arc::new(AtomicUsize::new(0));
    Backend::start(move |served| {
        while served.request().is_some() {
            let is_over = failed.fetch_add(1, Ordering::Relaxed) >= times;
            if !served.send(if is_over { OK } else { answer }) {
                return;
            }
        }
    })
}

/// Catches: an error that reaches the client although another engine could have answered; a retry
/// that is not counted, or is made although nobody asked for any.
#[test]
fn a_status_to_retry_on_goes_to_another_backend_at_once() {
    let (busy, well) = (Backend::answering(DOWN), Backend::answering(OK));
    let proxy =
        before(&[&busy, &well], "retry: {max_retries: 2, initial_wait: 60s, max_wait: 60s}");
    for _ in 0..4 {
        assert_eq!(proxy.post(CHATS, CHAT).text(), "ok");
    }
    let tried = busy.requests().len() as f64;
    assert!(tried >= 2.0, "both have the same weight: {tried}");
    assert_eq!(proxy.metric("llmproxy_retries_total", &[("reason", "status_503")]), tried);
    assert!(well.requests().iter().all(|request| request.body == CHAT.as_bytes()));
    quiet(&proxy);
    let picked = |name| proxy.metric("llmproxy_backend_picked_total", &[("backend", name)]);
    assert_eq!((picked("a"), picked("b")), (tried, 4.0));
    let plain = before(&[&busy, &well], "");
    let statuses: Vec<_> = (0..2).map(|_| plain.post(CHATS, CHAT).status()).collect();
    assert!(statuses.contains(&503), "{statuses:?}");
}

/// Catches: the last engine's answer replaced by one of ours, or without what it says of when to
/// come back; a request that waits for longer than the client was told.
#[test]
fn what_comes_of_the_last_try_goes_to_the_client_as_it_is() {
    let all = [Backend::answering(BUSY), Backend::answering(BUSY)];
    let proxy = before(&[&all[0], &all[1]], "retry: {max_retries: 5, max_wait: 10s}");
    let answer = proxy.post(CHATS, CHAT);
    assert_eq!((answer.status(), answer.text().as_str()), (503, r#"{"error":"busy"}"#));
    assert_eq!(answer.head.get("retry-after"), Some("77"));
    assert_eq!(answer.head.get("x-queue"), Some("full"));
    assert_eq!(all.map(|backend| backend.requests().len()), [1, 1]);
    quiet(&proxy);
}

/// Catches: an engine that is down for a moment and costs a request because there is no other.
#[test]
fn the_only_backend_is_asked_again_after_a_wait() {
    const BRIEF: &str = "HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n";
    let only = failing(2, BRIEF);
    let waits = "initial_wait: 20ms, max_wait: 40ms";
    let proxy = before(&[&only], &format!("retry: {{max_retries: 3, {waits}}}"));
    assert_eq!(proxy.post(CHATS, CHAT).text(), "ok");
    let requests = only.requests();
    assert!(requests.iter().all(|request| request.body == CHAT.as_bytes()));
    assert_eq!(requests.len(), 3);
    assert_eq!(proxy.metric("llmproxy_retries_total", &[]), 2.0);
    quiet(&proxy);
}

/// Catches: engines that are down and get many times their load.
#[test]
fn retries_have_a_budget() {
    const BRIEF: &str = "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n";
    let down = Backend::answering(BRIEF);
    let retry = "max_retries: 100, initial_wait: 1ms, max_wait: 1ms, timeout: 10s, retry_on: [5xx]";
    let proxy = before(&[&down], &format!("retry: {{{retry}}}"));
    for _ in 0..10 {
        assert_eq!(proxy.post(CHATS, CHAT).status(), 500);
    }
    let sent = down.requests().len();
    // A fifth of the ten, and three for each second that this took, a third of it saved up.
    assert!((12..60).contains(&sent), "{sent} for 10 requests");
}

/// Catches: a request that waits, or fails, although a backend is well that it has not asked; one
/// that is asked again before all others were.
#[test]
fn all_others_are_asked_before_a_wait_however_many_there_are() {
    // A port that somebody has, and on which nobody listens.
    let nobody = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket
    };
    let well = Backend::answering(OK);
    let dead: Vec<Socket> = (0..8).map(nobody).collect();
    let proxy = Config::new().section("health_check: {enabled: false}");
    let proxy = dead.iter().fold(proxy, |config, socket| {
        let place = socket.local_addr().unwrap().as_socket().unwrap();
        config.backend(format!("http://{place}"), "")
    });
    let proxy = proxy
        .backend(well.url(), "")
        .section("routing: {retry: {max_retries: 10, initial_wait: 60s, max_wait: 60s}}")
        .start();
    for _ in 0..2 {
        assert_eq!(proxy.post(CHATS, CHAT).text(), "ok");
    }
    assert!(proxy.metric("llmproxy_retries_total", &[("reason", "connect_failed")]) >= 8.0);
    quiet(&proxy);
}

/// Catches: an engine that is asked sooner than it wished; a rule whose number of tries is not
/// kept; and an engine that is full and is asked all the same because a rule names it.
#[test]
fn engines_and_rules_say_when_and_how_often() {
    const SOON_AGAIN: &str = "HTTP/1.1 503 Oh\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n";
    let only = failing(1, SOON_AGAIN);
    let proxy = before(&[&only], "retry: {max_retries: 3, initial_wait: 1ms, max_wait: 20s}");
    let began = Instant::now();
    assert_eq!(proxy.post(CHATS, CHAT).text(), "ok");
    // The clock of a worker has ticks of a tenth.
    assert!(began.elapsed() >= Duration::from_millis(1800), "{:?}", began.elapsed());
    assert_eq!(only.requests().len(), 2);

    let (a, b, c) = (Backend::answering(DOWN), Backend::answering(DOWN), Backend::answering(OK));
    let rule = "fallback: [{primary: a, fallback: [b, c], retry: 1}], retry: {max_retries: 5}";
    let proxy = before(&[&a, &b, &c], rule);
    let statuses: Vec<_> = (0..3).map(|_| proxy.post(CHATS, CHAT).status()).collect();
    let failed = statuses.iter().filter(|status| **status == 503).count();
    assert_eq!(failed, 1, "the rule is for who was asked first: {statuses:?}");

    const FULL: &str = "HTTP/1.1 429 X\r\nretry-after: 3000\r\ncontent-length: 0\r\n\r\n";
    let (a, full, c) = (Backend::answering(DOWN), Backend::answering(FULL), Backend::answering(OK));
    let proxy = before(&[&a, &full, &c], "fallback: [{primary: a, fallback: [b, c]}]");
    let statuses: Vec<_> = (0..8).map(|_| proxy.post(CHATS, CHAT).status()).collect();
    assert_eq!(statuses.iter().filter(|status| **status != 200).count(), 1, "{statuses:?}");
    assert_eq!(full.requests().len(), 1);
}

/// Catches: a second try that is given its own time anew, and one that is held against an engine
/// which had not all of its own.
#[test]
fn all_tries_have_one_deadline() {
    let silent = Backend::start(|served| {
        served.request();
        served.left_within(3 * SOON);
    });
    let down = Backend::answering(DOWN);
    let proxy = Config::new()
        .section("health_check: {enabled: false}")
        .backend(down.url(), "name: down")
        .backend(silent.url(), "name: silent, backup: true")
        .section("routing: {retry: {timeout: 1s}}")
        .start();
    proxy.post(CHATS, CHAT).assert_refused(504, "retry_timeout");
    let failures = |name| proxy.metric("llmproxy_backend_failures_total", &[("backend", name)]);
    assert_eq!((failures("down"), failures("silent")), (1.0, 0.0));
    quiet(&proxy);
    assert_eq!((down.requests().len(), silent.requests().len()), (1, 1));
}

/// Catches: a rule that is passed over, or whose order is not kept; one that takes the turns of
/// others.
#[test]
fn a_rule_names_who_is_asked_next() {
    let (busy, b, c) = (Backend::answering(DOWN), Backend::answering(OK), Backend::answering(OK));
    let proxy = before(&[&busy, &b, &c], "fallback: [{primary: a, fallback: [c, b]}]");
    for _ in 0..6 {
        assert_eq!(proxy.post(CHATS, CHAT).text(), "ok");
    }
    let count = |backend: &Backend| backend.requests().len();
    assert_eq!((count(&busy), count(&b), count(&c)), (2, 2, 4));
    assert_eq!(proxy.metric("llmproxy_fallback_total", &[]), 2.0);
    let other = "fallback: [{primary: a, fallback: [c, b], models: [other]}]";
    let proxy = before(&[&busy, &b, &c], other);
    let statuses: Vec<_> = (0..3).map(|_| proxy.post(CHATS, CHAT).status()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 1, "another model");
}

/// Catches: an engine that is asked for a client that has left while its request waited.
#[test]
fn a_client_that_leaves_ends_the_wait() {
    let busy = Backend::answering("HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n");
    let retry = "retry: {max_retries: 9, initial_wait: 60s, max_wait: 60s}";
    let proxy = before(&[&busy], retry);
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", CHAT);
    await_until("the first try", SOON, || busy.requests().len() == 1);
    drop(conn);
    proxy.await_metric("llmproxy_client_abort_total", &[], 1.0);
    quiet(&proxy);
    assert_eq!(busy.requests().len(), 1);
}

const ROLE: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const FULL: &str =
    "data: {\"error\":{\"message\":\"Model is overloaded\",\"http_status_code\":422}}\n\n";
const TEXT: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"},\"finish_reason\":\"stop\"}]}\n\n";

/// Streams these events, the role apart from the rest.
fn streaming(events: &'static [&'static str]) -> Backend {
    Backend::start(move |served| {
        while served.request().is_some() {
            served.begin_events();
            for event in events {
                served.chunk(event);
                pause(Duration::from_millis(20));
            }
            if !served.send("0\r\n\r\n") {
                return;
            }
        }
    })
}

/// Catches: an overload that an engine tells inside a 200, and that reaches the client although
/// another one could have answered; a held beginning that is lost, or sent twice.
#[test]
fn an_error_inside_a_200_is_retried_when_the_preamble_is_held() {
    let (full, well) = (streaming(&[ROLE, FULL]), streaming(&[ROLE, TEXT, "data: [DONE]\n\n"]));
    let hold = "hold_preamble: 10s, retry: {max_retries: 2}";
    let proxy = before(&[&full, &well], hold);
    for _ in 0..4 {
        let answer = proxy.connect().post(CHATS, "", STREAM);
        assert_eq!(answer.text(), format!("{ROLE}{TEXT}data: [DONE]\n\n"));
    }
    let tried = full.requests().len() as f64;
    assert!(tried >= 1.0, "they take turns, until it has said that it is full");
    assert_eq!(proxy.metric("llmproxy_retries_total", &[("reason", "status_503")]), tried);
    let held = |result| proxy.metric("llmproxy_preambles_held_total", &[("result", result)]);
    assert_eq!((held("error"), held("spoke"), held("broke")), (tried, 4.0, 0.0));
    quiet(&proxy);
    let alone = before(&[&full], &hold.replace("max_retries: 2", "max_retries: 0"));
    let answer = alone.connect().post(CHATS, "", STREAM);
    assert_eq!((answer.status(), answer.text()), (200, format!("{ROLE}{FULL}")));
    quiet(&alone);
    // It was told when it was held, and when the client had it: that is one failure.
    assert_eq!(alone.metric("llmproxy_backend_failures_total", &[]), 1.0);
}

/// Catches: a stream that waits for longer than the preamble may be held.
#[test]
fn a_prefill_is_held_for_no_longer_than_configured() {
    let (go, going) = std::sync::mpsc::channel::<()>();
    let going = std::sync::Mutex::new(going);
    let slow = Backend::start(move |served| {
        served.request();
        served.begin_events();
        served.chunk(ROLE);
        going.lock().unwrap().recv_timeout(SOON).unwrap();
        served.chunk(TEXT);
        served.send("0\r\n\r\n");
    });
    let proxy = before(&[&slow], "hold_preamble: 200ms, retry: {max_retries: 1}");
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", STREAM);
    assert_eq!(conn.head().status(), 200);
    assert_eq!(conn.read_until("\n\n"), ROLE);
    go.send(()).unwrap();
    assert_eq!(conn.read_until("\n\n"), TEXT);
    conn.rest();
    quiet(&proxy);
}

/// Catches: a stream that is held and breaks before its model said anything, and reaches the client
/// although another engine could have answered.
#[test]
fn a_held_stream_that_breaks_goes_to_another_backend() {
    let broken = Backend::start(|served| {
        served.request();
        served.begin_events();
        served.chunk(ROLE);
        served.reset();
    });
    let well = streaming(&[ROLE, TEXT, "data: [DONE]\n\n"]);
    let proxy = before(&[&broken, &well], "hold_preamble: 10s, retry: {max_retries: 2}");
    for _ in 0..3 {
        let answer = proxy.connect().post(CHATS, "", STREAM);
        assert_eq!(answer.text(), format!("{ROLE}{TEXT}data: [DONE]\n\n"));
    }
    assert!(!broken.requests().is_empty());
    quiet(&proxy);
}

/// How an engine's connection ends before an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// Under the body, of which it has read nothing.
    UnderTheBody,
    /// At once, and it has not read the request.
    Unread,
    /// At once behind the whole request, in order.
    Closed,
    /// The same, by a reset.
    Reset,
    /// Behind the request and an interim answer.
    Told,
    /// Behind the request, after a while.
    Late,
}

impl Death {
    fn come(self, served: &mut Served) {
        match self {
            Death::UnderTheBody => drop(served.head()),
            Death::Unread => drop(served.stream().tcp().peek(&mut [0])),
            _ => drop(served.request()),
        }
        match self {
            Death::Reset => served.reset(),
            Death::Told => drop(served.send("HTTP/1.1 102 Processing\r\n\r\n")),
            // Longer than the race for a kept connection can last.
            Death::Late => drop(served.left_within(Duration::from_millis(400))),
            _ => {}
        }
    }
}

/// The rows of `route::tries`, end to end: how the connection ends, and whether it was a kept one.
/// The client hears of it, or where 502 is to be retried the standby answers; or, where the engine
/// cannot have worked on the request, it is asked once more on a fresh connection.
///
/// Catches: a generation that runs twice unasked, and a request that is lost though no engine has
/// seen it.
#[test]
fn what_follows_a_connection_that_closed() {
    const OTHER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother";
    let long = format!("{{\"model\":\"m\",\"prompt\":\"{}\"}}", "x".repeat(8 << 20));
    for (is_kept, death, is_again) in [
        (false, Death::UnderTheBody, false),
        (false, Death::Closed, false),
        (false, Death::Reset, false),
        (false, Death::Told, false),
        (false, Death::Late, false),
        (true, Death::UnderTheBody, true),
        (true, Death::Unread, true),
        (true, Death::Told, false),
        (true, Death::Late, false),
    ] {
        for routing in ["", "retry: {max_retries: 1, retry_on: [502]}"] {
            let odd = Backend::start(move |served| {
                if served.number == 0 {
                    if is_kept && served.request().is_some() {
                        served.send(OK);
                    }
                    return death.come(served);
                }
                while served.request().is_some() {
                    served.send(OK);
                }
            });
            let standby = Backend::answering(OTHER);
            let proxy = Config::new()
                .section("health_check: {enabled: false}")
                .backend(odd.url(), "name: odd")
                .backend(standby.url(), "name: standby, backup: true")
                .section(format!("routing: {{{routing}}}"))
                .start();
            if is_kept {
                assert_eq!(proxy.post(CHATS, CHAT).text(), "ok");
            }
            let body = if death == Death::UnderTheBody { long.as_str() } else { CHAT };
            let (answer, row) = (proxy.post(CHATS, body), (is_kept, death, routing));
            match (is_again, routing.is_empty()) {
                (true, _) => assert_eq!(answer.text(), "ok", "{row:?}"),
                (false, true) => assert_eq!(answer.status(), 502, "{row:?}: {}", answer.text()),
                (false, false) => assert_eq!(answer.text(), "other", "{row:?}"),
            }
            let asked = usize::from(!is_again && !routing.is_empty());
            assert_eq!(standby.requests().len(), asked, "{row:?}");
            assert_eq!(odd.connections(), 1 + usize::from(is_again), "{row:?}");
            quiet(&proxy);
        }
    }
}

/// Catches: a timeout that is not retried though it is to be, or though it is not.
#[test]
fn an_engine_that_does_not_begin_in_time_is_followed_by_another_where_that_is_configured() {
    let silent = Backend::start(|served| {
        served.request();
        served.left_within(SOON);
    });
    let well = Backend::answering(OK);
    for (routing, is_retried) in
        [("", false), ("retry: {retry_on: [502]}", false), ("retry: {retry_on: [timeout]}", true)]
    {
        let proxy = Config::new()
            .section("health_check: {enabled: false}")
            .backend(silent.url(), "name: silent, first_byte_timeout: 200ms")
            .backend(well.url(), "name: well, backup: true")
            .section(format!("routing: {{{routing}}}"))
            .start();
        let answer = proxy.post(CHATS, CHAT);
        assert_eq!(answer.status(), if is_retried { 200 } else { 504 }, "{routing}");
        quiet(&proxy);
    }
    assert_eq!((silent.requests().len(), well.requests().len()), (3, 1));
}
