//! What the machine denies, runs out of, or knows.

use crate::clients::is_there;
use crate::harness::config::PLAIN;
use crate::harness::metrics::Metrics;
use crate::harness::scratch::Scratch;
use crate::harness::tls::Authority;
use crate::harness::{await_until, heavy, pause, Backend, Config, Conn, Engine, Proxy, SOON};
use crate::rig::{CHAT, CHATS};
use rustix::process::{prlimit, Pid, Resource, Rlimit};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Catches: a proxy that does not start, does not serve, or does not say that it is slower, where
/// the kernel has io_uring and a container's filter denies it.
#[test]
fn where_io_uring_is_denied_epoll_serves() {
    let python = Command::new("python3").arg("--version").stdout(Stdio::null()).status();
    let found = python.is_ok_and(|status| status.success());
    if !is_there("where_io_uring_is_denied_epoll_serves", found) {
        return;
    }
    let engine = Engine::start(&[]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/deny_io_uring.py");
    let yaml = Config::backend_at(engine.url()).yaml();
    let proxy = Proxy::start_through(&["python3", script], &yaml);
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    assert_eq!(proxy.metric("llmproxy_workers", &[("driver", "epoll")]), 1.0);
    proxy.await_event("a warning", |event| {
        event["level"] == "WARN" && event["message"].as_str().is_some_and(|m| m.contains("epoll"))
    });
}

/// Catches: an accept loop that spins when descriptors have run out, that ends for good, or that
/// nobody hears of.
#[test]
fn accepting_pauses_while_descriptors_are_out() {
    const CLIENTS: usize = 20;
    // A share of the processor is measured.
    let _alone = heavy();
    // Nobody whom it does not accept gets as far as a handshake.
    let proxy = Config::new().server(PLAIN).start();
    let mut scrape = proxy.connect();
    let mut pauses = move || {
        let page = Metrics::parse(&scrape.get("/metrics").text());
        page.sum("llmproxy_accept_pauses_total", &[])
    };
    assert_eq!(pauses(), 0.0);
    // Lowered under its feet: the proxy itself never admits more than its descriptors allow.
    forbid_files_beyond(&proxy, proxy.open_files() + CLIENTS / 2);
    let mut clients: Vec<Conn> = (0..CLIENTS).map(|_| proxy.connect()).collect();
    await_until("accepting pauses", SOON, || pauses() >= 1.0);
    let (before, used, begun) = (pauses(), proxy.cpu_time(), Instant::now());
    pause(Duration::from_secs(1));
    let (used, elapsed) = (proxy.cpu_time() - used, begun.elapsed());
    let more = pauses() - before;
    assert!(used < elapsed / 3, "{used:?} of processor time in {elapsed:?}");
    // Ten a second.
    assert!(more >= 1.0 && more <= elapsed.as_secs_f64() * 10.0 + 2.0, "{more} in {elapsed:?}");
    let mut last = clients.pop().unwrap();
    drop(clients);
    assert_eq!(last.get("/health").status(), 200);
    assert_eq!(proxy.get("/health").status(), 200);
}

/// Lets a proxy open no descriptor with this number or a higher one.
fn forbid_files_beyond(proxy: &Proxy, number: usize) {
    let pid = Pid::from_raw(proxy.process.pid().cast_signed());
    let limit = Rlimit { current: Some(number as u64), maximum: Some(number as u64) };
    prlimit(pid, Resource::Nofile, limit).unwrap();
}

/// Catches: an engine whose certificate is from an authority that the system trusts, and that is
/// refused because the roots of the system are not asked.
#[test]
fn the_roots_of_the_system_are_trusted() {
    let authority = Authority::new();
    let scratch = Scratch::new();
    let roots = scratch.write("roots.pem", authority.pem());
    let backend = Backend::start_tls(authority.server(&["127.0.0.1"]), |served| {
        while served.request().is_some() {
            served.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let yaml = Config::backend_at(backend.url_as("https", "127.0.0.1")).yaml();
    let way = format!("SSL_CERT_FILE={}", roots.display());
    let proxy = Proxy::start_through(&["env", "-u", "SSL_CERT_DIR", &way], &yaml);
    let response = proxy.post(CHATS, CHAT);
    assert_eq!((response.status(), response.text().as_str()), (200, "ok"));
    // The same engine, where the system does not know the authority.
    let roots = scratch.write("others.pem", Authority::new().pem());
    let way = format!("SSL_CERT_FILE={}", roots.display());
    let proxy = Proxy::start_through(&["env", "-u", "SSL_CERT_DIR", &way], &yaml);
    proxy.post(CHATS, CHAT).assert_refused(502, "tls_bad_signature");
}
