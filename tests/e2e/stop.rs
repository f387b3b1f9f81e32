//! How the proxy ends: what runs may finish, what idles is closed, nothing new begins; and the exit
//! code says how it went.

use crate::harness::message::Ended;
use crate::harness::metrics::Metrics;
use crate::harness::{await_until, pause, Config, Conn, Engine, Proxy, SOON};
use crate::rig::{Rig, CHAT, CHATS, STREAM};
use rustix::process::Signal;
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A proxy with this drain timeout, and its engine.
fn rig(drain: &str) -> (Engine, Proxy) {
    let engine = Engine::start(&[]);
    let config = Config::backend_at(engine.url());
    let proxy = config.server(format!("drain_timeout: {drain}")).start();
    (engine, proxy)
}

/// A stream of which the first event has arrived, with these knobs.
fn stream(proxy: &Proxy, knobs: &str) -> Conn {
    let mut conn = proxy.connect();
    conn.start_post(CHATS, knobs, STREAM);
    assert_eq!(conn.head().status(), 200);
    conn.read_until("data:");
    conn
}

/// Catches: streams cut by a restart, connections taken that nobody will serve, a process that
/// waits for idle clients.
#[test]
fn a_drain_finishes_streams_and_begins_nothing() {
    // SIGPWR and SIGRTMIN+3 are how containers are stopped.
    for signal in [15, 2, 3, 30, 37] {
        let (engine, proxy) = rig("30s");
        let mut idle = proxy.connect();
        assert_eq!(idle.get("/health").status(), 200);
        let mut silent = proxy.connect();
        let mut running: Vec<Conn> =
            (0..5).map(|_| stream(&proxy, "x-mock-tokens: 40\r\nx-mock-gap-ms: 100\r\n")).collect();
        let mut waiting = proxy.connect();
        waiting.start_post(CHATS, "x-mock-ttft-ms: 3000\r\nx-mock-head: late\r\n", CHAT);
        await_until("the engine has it", SOON, || engine.posts().len() == 6);
        proxy.process.signal_number(signal);
        await_until("no connection is taken", SOON, || TcpStream::connect(proxy.addr()).is_err());
        idle.assert_closes();
        silent.assert_closes();
        assert!(proxy.process.try_status().is_none(), "streams still run");
        for conn in &mut running {
            let (pieces, ended) = conn.rest();
            let text: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
            assert_eq!(ended, Ended::Whole);
            assert!(String::from_utf8(text).unwrap().ends_with("data: [DONE]\n\n"));
            conn.assert_closes();
        }
        let answer = waiting.response();
        assert_eq!((answer.status(), answer.ended), (200, Ended::Whole));
        assert_eq!(answer.head.get("connection"), Some("close"));
        assert_eq!(proxy.process.wait(SOON).code(), Some(0), "{signal}");
        assert_eq!(engine.stat("cancelled"), 0);
    }
}

/// Catches: a balancer that goes on sending because readiness does not follow.
#[test]
fn a_draining_proxy_is_not_ready() {
    let (_engine, proxy) = rig("30s");
    let _running = stream(&proxy, "x-mock-tokens: 2\r\nx-mock-gap-ms: 20000\r\n");
    // A connection that is not idle: its request has begun.
    let mut asking = proxy.connect();
    asking.send("GET /ready HTTP/1.1\r\n");
    let mut living = proxy.connect();
    living.send("GET /health HTTP/1.1\r\n");
    proxy.await_metric("llmproxy_connections_open", &[], 4.0);
    proxy.process.signal(Signal::TERM);
    await_until("no connection is taken", SOON, || TcpStream::connect(proxy.addr()).is_err());
    let ready = asking.send("Host: t\r\n\r\n").response();
    assert_eq!((ready.status(), ready.text().as_str()), (503, "draining\n"));
    assert_eq!(ready.head.get("connection"), Some("close"));
    asking.assert_closes();
    assert_eq!(living.send("Host: t\r\n\r\n").response().status(), 200, "it lives");
}

/// Catches: listeners that close, or answers that close their connections, before a balancer knows
/// that we leave; a delay that a second signal cannot end.
#[test]
fn a_leaving_proxy_serves_on_while_it_says_that_it_is_not_ready() {
    let (_engine, proxy) = leaving("60s");
    let mut kept = proxy.connect();
    assert_eq!(kept.post(CHATS, "", CHAT).status(), 200);
    proxy.process.signal(Signal::TERM);
    await_until("it is not ready", SOON, || proxy.get("/ready").status() == 503);
    let fresh = proxy.post(CHATS, CHAT);
    assert_eq!((fresh.status(), fresh.head.get("connection")), (200, None), "a new connection");
    assert_eq!(kept.post(CHATS, "", CHAT).status(), 200, "a kept one");
    assert_eq!(proxy.get("/health").status(), 200);
    assert!(proxy.process.try_status().is_none());
    insist(&proxy, Signal::TERM);
    assert_eq!(proxy.process.wait(SOON).code(), Some(143));
}

/// Sends a signal until the proxy has ended: one that comes too soon counts as the first.
fn insist(proxy: &Proxy, signal: Signal) {
    await_until("it ends", SOON, || {
        proxy.process.try_status().is_some() || {
            proxy.process.signal(signal);
            false
        }
    });
}

/// Catches: `timeout 2 llmproxy`, which signals the process and then its group, so that the second
/// of two ends it undrained and without a word.
#[test]
fn two_signals_at_once_are_one() {
    let (_engine, proxy) = rig("30s");
    let mut running = stream(&proxy, "x-mock-tokens: 2\r\nx-mock-gap-ms: 1500\r\n");
    proxy.process.signal(Signal::TERM);
    proxy.process.signal(Signal::INT);
    assert_eq!(running.rest().1, Ended::Whole);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    proxy.await_event("it stops in order", |event| event["message"] == "stopped");
}

/// Catches: a delay after which nothing follows; a drain that begins, or ends, before the delay is
/// over.
#[test]
fn behind_the_delay_the_drain_follows() {
    let (_engine, proxy) = leaving("1s");
    let mut running = stream(&proxy, "x-mock-tokens: 2\r\nx-mock-gap-ms: 3000\r\n");
    let asked = Instant::now();
    proxy.process.signal(Signal::TERM);
    await_until("no connection is taken", SOON, || TcpStream::connect(proxy.addr()).is_err());
    assert!(asked.elapsed() >= Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(running.rest().1, Ended::Whole);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
}

/// A proxy with this delay before it drains, and its engine.
fn leaving(delay: &str) -> (Engine, Proxy) {
    let engine = Engine::start(&[]);
    let config = Config::backend_at(engine.url()).server("drain_timeout: 30s");
    let proxy = config.server(format!("shutdown_delay: {delay}")).start();
    (engine, proxy)
}

/// Catches: signals that other servers give a meaning to, and that end this one without a word.
#[test]
fn a_signal_without_a_meaning_is_named_and_ignored() {
    let (_engine, proxy) = rig("30s");
    let signals = [
        (Signal::ALARM, "SIGALRM"),
        (Signal::VTALARM, "SIGVTALRM"),
        (Signal::PROF, "SIGPROF"),
        (Signal::IO, "SIGIO"),
        (Signal::XCPU, "SIGXCPU"),
        (Signal::XFSZ, "SIGXFSZ"),
    ];
    let raw = signals.map(|(signal, name)| (signal.as_raw(), name));
    let others = [(16, "SIGSTKFLT"), (34, "SIGRTMIN "), (36, "SIGRTMIN+2"), (64, "SIGRTMIN+30")];
    for (signal, name) in raw.into_iter().chain(others) {
        proxy.process.signal_number(signal);
        proxy.await_event(name, |event| {
            event["level"] == "WARN" && event["message"].as_str().unwrap().starts_with(name)
        });
    }
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
}

/// Catches: one of several listeners that goes on taking connections.
#[test]
fn a_drain_closes_all_listeners() {
    let engine = Engine::start(&[]);
    let config = Config::backend_at(engine.url()).server("workers: 2");
    let listen = "listen: [\"127.0.0.1:0\", \"127.0.0.1:0\", \"127.0.0.1:0\"]";
    let proxy = Proxy::start(&config.yaml().replacen("listen: \"127.0.0.1:0\"", listen, 1));
    let addresses = || -> Vec<std::net::SocketAddr> {
        let events = proxy.events();
        let listening = events.iter().filter(|event| event["message"] == "listening");
        listening.map(|event| event["addr"].as_str().unwrap().parse().unwrap()).collect()
    };
    await_until("three listen", SOON, || addresses().len() == 3);
    let _running = stream(&proxy, "x-mock-tokens: 2\r\nx-mock-gap-ms: 60000\r\n");
    proxy.process.signal(Signal::TERM);
    for address in addresses() {
        await_until("none is taken", SOON, || TcpStream::connect(address).is_err());
    }
    assert!(proxy.process.try_status().is_none());
}

/// Catches: a drain without an end, an end that looks like a whole answer, a code that hides it.
#[test]
fn at_the_deadline_streams_are_cut_and_the_code_says_so() {
    let (engine, proxy) = rig("300ms");
    let mut running = stream(&proxy, "x-mock-tokens: 2\r\nx-mock-gap-ms: 60000\r\n");
    let mut waiting = proxy.connect();
    waiting.start_post(CHATS, "x-mock-stall-before-head: 1\r\n", CHAT);
    await_until("the engine has it", SOON, || engine.posts().len() == 2);
    proxy.process.signal(Signal::TERM);
    let (pieces, ended) = running.rest();
    let text: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(ended, Ended::Cut, "{text}");
    assert!(text.contains("\"shutting_down\"") && !text.contains("[DONE]"), "{text}");
    waiting.response().assert_refused(503, "shutting_down");
    assert_eq!(proxy.process.wait(SOON).code(), Some(3));
    await_until("the engine is freed", SOON, || engine.stat("cancelled") == 2);
}

/// Catches: the record of a request whose client left and whose engine is still read, lost when
/// the process ends before the engine does.
#[test]
fn an_engine_that_is_still_read_does_not_hold_the_end_nor_the_record() {
    let rig = Rig::with("on_client_abort: drain", |config| config.server("drain_timeout: 300ms"));
    let mut conn = stream(&rig.proxy, "x-mock-tokens: 2\r\nx-mock-gap-ms: 60000\r\n");
    conn.shutdown(std::net::Shutdown::Both);
    rig.proxy.await_metric("llmproxy_client_abort_total", &[("phase", "relay")], 1.0);
    assert_eq!(rig.hook.records().len(), 0, "its engine may still say what it counted");
    rig.proxy.process.signal(Signal::TERM);
    assert_eq!(rig.proxy.process.wait(SOON).code(), Some(3));
    let record = rig.record();
    assert_eq!(
        (&record["status"], &record["usage_source"]),
        (&"client_left".into(), &"missing".into())
    );
}

/// Catches: a client that does not read keeping the process beyond its deadline.
#[test]
fn a_client_that_does_not_read_cannot_hold_the_end() {
    let (engine, proxy) = rig("300ms");
    let mut stuck = proxy.connect();
    let knobs = "x-mock-tokens: 5000\r\nx-mock-event-bytes: 2000\r\n";
    stuck.start_post(CHATS, knobs, STREAM);
    await_until("the engine has it", SOON, || engine.posts().len() == 1);
    proxy.process.signal(Signal::TERM);
    assert_eq!(proxy.process.wait(SOON).code(), Some(3));
}

/// Catches: our last event put into the middle of a chunk that its client had not taken whole.
#[test]
fn nothing_of_ours_is_put_into_a_torn_chunk() {
    let (engine, proxy) = rig("300ms");
    let knobs = "x-mock-tokens: 5000\r\nx-mock-event-bytes: 3000\r\n";
    let mut stuck: Vec<Conn> = (0..8).map(|_| stream(&proxy, knobs)).collect();
    await_until("the engine sends", SOON, || engine.posts().len() == 8);
    proxy.process.signal(Signal::TERM);
    assert_eq!(proxy.process.wait(SOON).code(), Some(3));
    for conn in &mut stuck {
        let (pieces, ended) = conn.rest();
        let text: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
        let text = String::from_utf8_lossy(&text);
        assert_eq!(ended, Ended::Cut);
        if let Some((before, _)) = text.split_once("data: {\"error\"") {
            assert!(before.ends_with("\n\n"), "{}", &before[before.len() - 60..]);
        }
    }
}

/// Catches: an operator who has to find kill -9, and an end without a word.
#[test]
fn a_second_signal_ends_at_once() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::QUIT, 131)] {
        let (_engine, proxy) = rig("unlimited");
        let mut running = stream(&proxy, "x-mock-tokens: 2\r\nx-mock-gap-ms: 60000\r\n");
        proxy.process.signal(signal);
        await_until("it drains", SOON, || TcpStream::connect(proxy.addr()).is_err());
        assert!(proxy.process.try_status().is_none(), "without a limit it waits");
        insist(&proxy, signal);
        assert_eq!(proxy.process.wait(SOON).code(), Some(code));
        assert_eq!(running.rest().1, Ended::Cut);
        proxy.await_event("it says so", |event| {
            event["level"] == "WARN" && event["message"].as_str().unwrap().contains("at once")
        });
    }
}

/// Catches: a process without clients that takes its time.
#[test]
fn an_idle_proxy_ends_at_once() {
    let (_engine, proxy) = rig("10m");
    let mut kept: Vec<Conn> = (0..50).map(|_| proxy.connect()).collect();
    kept.iter_mut().for_each(|conn| assert_eq!(conn.post(CHATS, "", CHAT).status(), 200));
    proxy.process.signal(Signal::TERM);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    kept.iter_mut().for_each(Conn::assert_closes);
}

/// Catches: a client that we cut while it was sending, and that is told nothing and blamed.
#[test]
fn a_client_that_still_sends_is_told_why_it_is_cut() {
    let (_engine, proxy) = rig("300ms");
    let mut conn = proxy.connect();
    conn.send("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{");
    proxy.await_metric("llmproxy_requests_active", &[], 2.0);
    proxy.process.signal(Signal::TERM);
    conn.response().assert_refused(503, "shutting_down");
    assert_eq!(proxy.process.wait(SOON).code(), Some(3));
}

/// The head of a chat that will have a body of so many bytes.
fn chat_head(length: usize) -> String {
    format!("POST {CHATS} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")
}

/// Catches: half a request of which no more comes, that holds the end until a timeout and makes it
/// an end in which something was cut.
#[test]
fn half_a_request_does_not_hold_the_end() {
    for begun in ["POST /v1/chat".to_owned(), chat_head(1_000_000)] {
        let (engine, proxy) = rig("10m");
        let mut conn = proxy.connect();
        conn.send(&begun);
        let open = || proxy.metric("llmproxy_connections_open", &[]);
        await_until("it is taken in", SOON, || open() >= 2.0);
        proxy.process.signal(Signal::TERM);
        conn.response().assert_refused(503, "shutting_down");
        assert_eq!(proxy.process.wait(SOON).code(), Some(0), "{begun}");
        assert_eq!(engine.posts().len(), 0);
    }
}

/// Longer than a request may pause while the proxy drains.
const LONG: Duration = Duration::from_secs(6);

/// Catches: a request cut by a drain though more of it comes all the time.
#[test]
fn a_drain_waits_for_requests_that_are_on_their_way() {
    let engine = Engine::start(&[]);
    let config = Config::backend_at(engine.url()).server("drain_timeout: 10m");
    let proxy = config.server("header_timeout: 10m").start();
    let begin = |bytes: &str| {
        let mut conn = proxy.connect();
        conn.send(bytes);
        conn
    };
    let (open, close) = CHAT.split_at(1);
    // As many blanks as there may be pieces, and one more.
    let blanks = 100 * 1024;
    let mut counted = begin(&(chat_head(CHAT.len() + blanks) + open));
    let framing = "Transfer-Encoding: chunked";
    let head = format!("POST {CHATS} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n1\r\n{open}\r\n");
    let mut chunked = begin(&head);
    let mut heading = begin(&format!("POST {CHATS} HTTP/1.1\r\nHost: a\r\nX: "));
    proxy.await_metric("llmproxy_requests_active", &[], 3.0);
    proxy.await_metric("llmproxy_connections_open", &[], 4.0);
    proxy.process.signal(Signal::TERM);
    await_until("no connection is taken", SOON, || TcpStream::connect(proxy.addr()).is_err());
    let piece = " ".repeat(1024);
    let chunk = format!("400\r\n{piece}\r\n");
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < LONG {
        if sent < blanks {
            counted.send(&piece);
            sent += piece.len();
        }
        chunked.send(&chunk);
        heading.send("x");
        pause(Duration::from_millis(100));
    }
    counted.send(" ".repeat(blanks - sent) + close);
    chunked.send(format!("{:x}\r\n{close}\r\n0\r\n\r\n", close.len()));
    heading.send(format!("\r\nContent-Length: {}\r\n\r\n{CHAT}", CHAT.len()));
    for conn in [&mut counted, &mut chunked, &mut heading] {
        let answer = conn.response();
        assert_eq!((answer.status(), answer.ended), (200, Ended::Whole), "{}", answer.text());
        assert_eq!(answer.head.get("connection"), Some("close"));
    }
    assert_eq!(engine.posts().len(), 3);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
}

/// Sends one more byte of the field that each of them is in.
fn drip(conns: &mut [Conn]) {
    for conn in conns {
        conn.send("x");
    }
}

/// Catches: a connection that was cut, counted as open for ever.
#[test]
fn who_is_cut_by_a_drain_is_not_counted_any_more() {
    let engine = Engine::start(&[]);
    let config = Config::backend_at(engine.url()).server("drain_timeout: 10m");
    let proxy = config.server("header_timeout: 10m").start();
    let _running = stream(&proxy, "x-mock-tokens: 2\r\nx-mock-gap-ms: 60000\r\n");
    let begin = |bytes: &str| {
        let mut conn = proxy.connect();
        conn.send(bytes);
        conn
    };
    let mut stalled = [begin("POST /v1"), begin(&chat_head(10)), begin(&(chat_head(10) + "x"))];
    let mut silent = begin("");
    // Nobody can ask over a new connection then, and over each of these only once.
    let mut asking: Vec<Conn> =
        (0..20).map(|_| begin("GET /metrics HTTP/1.1\r\nHost: a\r\nX: ")).collect();
    proxy.await_metric("llmproxy_connections_open", &[], 26.0);
    proxy.process.signal(Signal::TERM);
    await_until("they are told", SOON, || {
        drip(&mut asking);
        stalled.iter_mut().all(|conn| conn.arrives_within(Duration::from_millis(20)))
    });
    silent.assert_closes();
    stalled.iter_mut().for_each(|conn| conn.response().assert_refused(503, "shutting_down"));
    stalled.iter_mut().for_each(Conn::assert_closes);
    await_until("they are gone", SOON, || {
        let here = asking.len() as f64;
        let mut conn = asking.pop().expect("one that has not asked");
        let page = conn.send("x\r\n\r\n").response().text();
        drip(&mut asking);
        Metrics::parse(&page).sum("llmproxy_connections_open", &[]) == here + 1.0
    });
}
