//! What several workers do together, and what the process says of itself.

use crate::harness::process::{run, LEGACY_DRIVER};
use crate::harness::{Config, Engine};
use std::path::Path;
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
/// `MONOIO_FORCE_LEGACY_DRIVER` the whole suite must really run on epoll.
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
    let logged = proxy.await_event("the drivers", |event| event["message"] == "workers run");
    assert!(logged["drivers"].as_str().unwrap().contains(driver), "{logged}");
}

/// Catches: a page that Prometheus does not read, or that its linter complains about.
#[test]
fn promtool_likes_the_page() {
    let promtool = Path::new("promtool");
    let known = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(promtool).is_file())
    });
    if !crate::clients::is_there("promtool_likes_the_page", known) {
        return;
    }
    let engine = Engine::start(&[]);
    let proxy = Config::new()
        .backend(engine.url(), "name: \"odd name\"")
        .backend("http://127.0.0.1:1", "")
        .server("workers: 2")
        .start();
    let stream = r#"{"model":"m","stream":true,"messages":[]}"#;
    for body in [CHAT, stream, stream, "{", CHAT] {
        proxy.post("/v1/chat/completions", body);
    }
    proxy.get("/nowhere?a=\"b\"");
    let page = proxy.get("/metrics");
    assert_eq!(page.head.get("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let scratch = crate::harness::scratch::Scratch::new();
    let file = scratch.write("page", &page.body);
    let command = format!("promtool check metrics < {}", file.display());
    let ran = run(Path::new("sh"), &["-c", &command], Duration::from_secs(30));
    // Existing dashboards read milliseconds; the linter would like seconds. Nothing else may stand.
    let known = |line: &&str| {
        ["latency", "ttft", "inter_token", "upstream_connect"].iter().any(|name| {
            **line
                == format!("llmproxy_{name}_ms metric names should not contain abbreviated units")
        })
    };
    let more: Vec<&str> = ran.stderr.lines().filter(|line| !known(line)).collect();
    assert_eq!((more, ran.stdout.as_str()), (vec![], ""), "{ran:?}");
    // 3: complaints of the linter; 1 would be a page that cannot be read.
    assert!(matches!(ran.code, Some(0 | 3)), "{ran:?}");
}
