//! Clients that are slow or stop: they hold up themselves alone, and a bounded number of bytes.

use crate::harness::backend::Served;
use crate::harness::message::Ended;
use crate::harness::metrics::Metrics;
use crate::harness::{await_until, pause, Backend, Config, Conn, Engine, Proxy, SOON};
use crate::rig::{await_stall, before, quiet, CHAT, CHATS, STREAM};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that may be on their way to a client that stopped: the kernel's buffers of its socket and
/// of the proxy's two, and the proxy's own. Unbounded, the kernel takes 4 MiB and more.
const IN_FLIGHT_MAX: u64 = 3 << 19;
/// Bytes that a slow client reads at a time.
const SIP: usize = 16 * 1024;
/// Bytes of one event of the endless engine.
const EVENT: usize = 8192;

/// An engine that sends as fast as its bytes are taken, and counts them.
struct Endless {
    backend: Backend,
    taken: Arc<AtomicU64>,
}

impl Endless {
    fn start() -> Endless {
        let taken = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&taken);
        let backend = Backend::start(move |served| flood(served, &count));
        Endless { backend, taken }
    }

    fn await_stall(&self) -> u64 {
        await_stall(&self.taken)
    }
}

fn flood(served: &mut Served, taken: &AtomicU64) {
    let Some(request) = served.request() else { return };
    if !String::from_utf8_lossy(&request.body).contains("true") {
        served.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        return;
    }
    // A small buffer of its own: what it counts as taken is with the proxy, or beyond.
    socket2::SockRef::from(served.stream().tcp()).set_send_buffer_size(16 * 1024).unwrap();
    served.begin_events();
    let event = format!("data: {}\n\n", "x".repeat(EVENT - 8));
    while served.chunk(&event) {
        taken.fetch_add(EVENT as u64, Ordering::Relaxed);
    }
}

/// A client with a small buffer that asked for a stream and reads no more than it is told.
fn slow_client(proxy: &Proxy) -> Conn {
    let mut conn = proxy.connect();
    socket2::SockRef::from(conn.stream().tcp()).set_recv_buffer_size(128 * 1024).unwrap();
    conn.start_post(CHATS, "", STREAM);
    conn
}

/// Catches: a relay that reads ahead of its client and grows, or that holds up everyone.
#[test]
fn a_client_that_stops_reading_stops_its_engine_and_nobody_else() {
    let engine = Endless::start();
    let (proxy, _hook) = before(&engine.backend, "");
    let start = proxy.resident_bytes();
    let mut clients: Vec<Conn> = (0..20).map(|_| slow_client(&proxy)).collect();
    let taken = engine.await_stall();
    println!("{taken} bytes are on their way to 20 clients");
    assert!(taken <= 20 * IN_FLIGHT_MAX, "{taken} bytes");
    let grown = proxy.resident_bytes().saturating_sub(start);
    assert!(grown < 4 << 20, "{grown} bytes more");
    // Nobody else waits for them.
    for _ in 0..10 {
        assert_eq!(proxy.post(CHATS, CHAT).text(), "ok");
    }
    // What one reads makes room for as much.
    let one = &mut clients[0];
    one.head();
    let mut read = 0;
    while read < 6 << 20 {
        read += one.next_piece().unwrap().bytes.len() as u64;
    }
    let more = engine.await_stall() - taken;
    assert!(more >= read - IN_FLIGHT_MAX && more <= read + IN_FLIGHT_MAX, "{more} for {read}");
    drop(clients);
    quiet(&proxy);
}

/// Catches: a client that reads slowly but steadily being taken for one that stopped.
#[test]
fn a_slow_client_is_served_to_the_end() {
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url()).server("write_timeout: 1s").start();
    let mut conn = proxy.connect();
    socket2::SockRef::from(conn.stream().tcp()).set_recv_buffer_size(128 * 1024).unwrap();
    let knobs = "x-mock-tokens: 1000\r\nx-mock-event-bytes: 4000\r\n";
    conn.start_post(CHATS, knobs, STREAM);
    conn.head();
    let started = Instant::now();
    let mut read = 0;
    let ended = loop {
        match conn.next_piece() {
            Ok(piece) => read += piece.bytes.len(),
            Err(ended) => break ended,
        }
        // Longer in all than the write timeout, each step much shorter, on a busy machine too.
        while read >= SIP {
            read -= SIP;
            pause(Duration::from_millis(25));
        }
    };
    assert_eq!(ended, Ended::Whole);
    assert!(started.elapsed() > Duration::from_millis(1300), "this proves nothing");
    quiet(&proxy);
}

/// Catches: a client that never reads holding its engine for ever.
#[test]
fn a_client_that_stays_stopped_is_let_go() {
    let engine = Endless::start();
    let hook = crate::harness::Webhook::start();
    let proxy = Config::backend_at(engine.backend.url())
        .server("write_timeout: 500ms")
        .webhook(&hook.url(), "")
        .start();
    let mut conn = slow_client(&proxy);
    engine.await_stall();
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!(record["error"], "client_write_timeout", "{record}");
    assert_eq!(record["status"], "client_left", "{record}");
    proxy.await_metric("llmproxy_faults_total", &[("kind", "client_write_timeout")], 1.0);
    quiet(&proxy);
    // Should it read again, it sees that its answer is not whole.
    conn.head();
    assert_eq!(conn.rest().1, Ended::Cut);
}

/// Catches: a buffer held by each stream that waits for a token (16 KiB times ten thousand), or a
/// prompt by each request that waits for its first byte.
#[test]
fn streams_that_wait_hold_no_buffer() {
    let engine = Engine::start(&[]);
    let config = Config::backend_at(engine.url());
    // The page's own listener: a scrape through the worker would hold one itself.
    let proxy = config.section("metrics: {listen: \"127.0.0.1:0\"}").start();
    let event = proxy.await_event("the page listens", |event| event["message"] == "metrics");
    let page: SocketAddr = event["addr"].as_str().unwrap().parse().unwrap();
    let in_use = || {
        let metrics = Metrics::parse(&Conn::open(page).get("/metrics").text());
        metrics.sum("llmproxy_buffers", &[("state", "in_use")])
    };
    // A kept connection between two requests holds none.
    let mut idle = proxy.connect();
    assert_eq!(idle.get("/health").status(), 200);
    let begin = |knobs: &str| {
        let mut conn = proxy.connect();
        conn.start_post(CHATS, knobs, STREAM);
        conn
    };
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(begin("x-mock-ttft-ms: 60000\r\nx-mock-head: early\r\n"));
        streams.push(begin("x-mock-stall-after: 2\r\n"));
    }
    streams.iter_mut().for_each(|stream| assert_eq!(stream.head().status(), 200));
    await_until("streams hold none", SOON, || in_use() == 0.0);
    let _prefill: Vec<Conn> = (0..20).map(|_| begin("x-mock-stall-before-head: 1\r\n")).collect();
    await_until("all are at the engine", SOON, || engine.posts().len() == 60);
    await_until("requests hold none", SOON, || in_use() == 0.0);
    // A kept connection may still turn out to be closed: the request is held for that long.
    let mut conn = proxy.connect();
    assert_eq!(conn.post(CHATS, "", CHAT).status(), 200);
    conn.start_post(CHATS, "x-mock-stall-before-head: 1\r\n", CHAT);
    await_until("it is at the engine", SOON, || engine.posts().len() == 62);
    await_until("it holds none", SOON, || in_use() == 0.0);
}
