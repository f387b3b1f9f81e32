//! What several workers do together, and what the process says of itself.

use crate::harness::process::{EXPECTED_DRIVER, LEGACY_DRIVER};
use crate::harness::{await_until, pause, Config, Engine, Proxy, SOON};
use crate::rig::Rig;
use rustix::process::Signal;
use std::time::Duration;

const CHAT: &str = r#"{"model":"m","messages":[]}"#;

/// Catches: a worker whose connections are not served, or whose counts are missing on the page
/// (each scrape is answered by one of them, for all).
#[test]
fn workers_serve_and_count_as_one() {
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url()).server("workers: 3").start();
    let mut conns: Vec<_> = (0..30).map(|_| proxy.connect()).collect();
    for conn in &mut conns {
        assert_eq!(conn.post("/v1/chat/completions", "", CHAT).status(), 200);
    }
    for scrape in 0..8 {
        let page = proxy.metrics();
        assert_eq!(page.sum("llmproxy_workers", &[]), 3.0);
        assert_eq!(page.sum("llmproxy_workers_silent", &[]), 0.0);
        let chats = [("path", "/v1/chat/completions"), ("status", "200")];
        assert_eq!(page.sum("llmproxy_requests_total", &chats), 30.0, "scrape {scrape}");
        assert_eq!(page.sum("llmproxy_connections_open", &[]), 31.0, "scrape {scrape}");
    }
    // SO_REUSEPORT spreads by a hash: that one of three gets none of thirty is a coin that falls
    // on its edge (3 × (2/3)^30). Each worker connects to the engine for itself.
    let mut used: Vec<_> = engine.posts().iter().map(|post| post["conn"].clone()).collect();
    used.sort_by_key(|conn| conn.as_u64());
    used.dedup();
    assert_eq!(used.len(), 3, "{used:?}");
}

/// Catches: a driver that is not the one that was asked for, or that is not told: with
/// `MONOIO_FORCE_LEGACY_DRIVER` the whole suite must really run on epoll, and where the kernel
/// grants a ring it must not silently do so.
#[test]
fn the_driver_is_logged_and_exported() {
    let proxy = Config::new().start();
    let page = proxy.metrics();
    let drivers: Vec<&str> = page
        .samples
        .iter()
        .filter(|sample| sample.name == "llmproxy_workers")
        .map(|sample| sample.labels[0].1.as_str())
        .collect();
    let [driver] = drivers[..] else { panic!("{drivers:?}") };
    assert!(driver == "epoll" || driver.starts_with("io_uring"), "{driver}");
    if std::env::var_os(LEGACY_DRIVER).is_some() {
        assert_eq!(driver, "epoll");
    }
    if let Ok(expected) = std::env::var(EXPECTED_DRIVER) {
        assert!(driver.starts_with(&expected), "{driver} is in use, not {expected}");
    }
    let logged = proxy.await_event("the drivers", |event| event["message"] == "workers run");
    assert_eq!(logged["driver"], driver, "{logged}");
}

/// Catches: timers that run where nothing is open (once twenty wake-ups of each worker a second);
/// a sleeper that does not hear a client, a scrape or a signal. A thread that waits gives up its
/// processor by itself: how busy the machine is does not change that count.
#[test]
fn where_nothing_is_open_nobody_wakes() {
    const WORKERS: usize = 8;
    let rig = Rig::with("keepalive_timeout: 1s", |config| {
        config.server(format!("workers: {WORKERS}")).section("metrics: {listen: \"127.0.0.1:0\"}")
    });
    let page = rig.proxy.await_event("the page", |event| event["message"] == "metrics");
    let page: std::net::SocketAddr = page["addr"].as_str().unwrap().parse().unwrap();
    for round in 0..2 {
        let mut conn = rig.ask(CHAT, "");
        assert_eq!(conn.response().status(), 200);
        rig.hook.await_records(round + 1, SOON);
        drop(conn);
        await_until("all sleep", SOON, || {
            let before = waits(&rig.proxy);
            pause(Duration::from_secs(1));
            // Reporters look now and then whether there is something to do.
            waits(&rig.proxy) - before <= WORKERS as u64
        });
        let text = crate::harness::Conn::open(page).get("/metrics").text();
        let page = crate::harness::metrics::Metrics::parse(&text);
        assert_eq!(page.sum("llmproxy_workers_silent", &[]), 0.0, "they hear a scrape");
    }
    rig.proxy.process.signal(Signal::TERM);
    assert_eq!(rig.proxy.process.wait(SOON).code(), Some(0));
}

/// How often its threads have given up their processors to wait for something.
fn waits(proxy: &Proxy) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.process.pid())).unwrap();
    let waits = tasks.map(|task| {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    });
    waits.sum()
}
