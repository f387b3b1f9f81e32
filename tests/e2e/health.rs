//! Active probes decide where traffic goes; when they say that nobody is well, somebody is asked
//! all the same.

use crate::harness::{await_until, Backend, Config, Engine, Proxy, SOON};
use crate::rig::{CHAT, CHATS};
use std::sync::atomic::{AtomicUsize, Ordering};

/// An interval that no test waits for.
const NEVER: &str = "health_check: {interval: 1h, timeout: 2s}";

/// Catches: a first probe that comes one interval after the start.
#[test]
fn the_first_probe_is_immediate_and_decides() {
    let (good, bad) = (Engine::start(&[]), Engine::start(&["--unhealthy"]));
    let proxy = Config::new()
        .backend(good.url(), "name: good")
        .backend(bad.url(), "name: bad")
        .section(NEVER)
        .start();
    await_up(&proxy, "bad", 0.0);
    await_up(&proxy, "good", 1.0);
    assert_eq!(bad.stat("probes"), 1);
}

/// Catches: one failed probe that takes a backend out, or one good one that brings it back.
#[test]
fn only_probes_in_a_row_change_the_verdict() {
    const STATUSES: [u16; 13] = [200, 500, 500, 200, 500, 500, 200, 500, 500, 500, 200, 500, 200];
    let count = AtomicUsize::new(0);
    let backend = Backend::start(move |served| {
        while served.request().is_some() {
            let n = count.fetch_add(1, Ordering::Relaxed);
            let status = STATUSES.get(n).unwrap_or(&200);
            served.send(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n"));
        }
    });
    let proxy = Config::new()
        .backend(backend.url(), "name: it")
        .section(
            "health_check: {interval: 50ms, path: /, unhealthy_threshold: 3, healthy_threshold: 2}",
        )
        .start();
    let said = |proxy: &Proxy| {
        let events = proxy.events();
        let messages = events.iter().filter_map(|event| event["message"].as_str());
        messages.filter(|m| m.starts_with("backend is ")).map(str::to_owned).collect::<Vec<_>>()
    };
    await_until("it is back", SOON, || said(&proxy).len() >= 3);
    assert_eq!(said(&proxy), ["backend is healthy", "backend is unhealthy", "backend is healthy"]);
    // 13 decided nothing yet; the second good one in a row is the fourteenth.
    assert!(backend.requests().len() >= 14, "{}", backend.requests().len());
}

/// Catches: one path and one status for all engines (Ollama has no /health).
#[test]
fn a_backend_may_have_its_own_path_and_status() {
    let answer = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
    let (plain, own) = (Backend::answering(answer), Backend::answering(answer));
    let proxy = Config::new()
        .backend(plain.url(), "name: plain")
        .backend(format!("{}/base", own.url()), "name: own, health_path: /api/tags")
        .section("health_check: {interval: 1h, path: /alive, method: HEAD, expected_status: 404}")
        .start();
    for (name, backend, line) in
        [("plain", &plain, "HEAD /alive HTTP/1.1"), ("own", &own, "HEAD /base/api/tags HTTP/1.1")]
    {
        await_until("a probe", SOON, || !backend.requests().is_empty());
        assert_eq!(backend.requests()[0].head.first_line, line);
        await_up(&proxy, name, 1.0);
    }
}

/// Catches: a probe that waits for ever, and leaves a dead engine in.
#[test]
fn an_engine_that_does_not_answer_a_probe_is_out() {
    let silent = Backend::start(|served| {
        served.request();
        served.left_within(SOON);
    });
    let proxy = Config::new()
        .backend(silent.url(), "name: silent")
        .section("health_check: {interval: 1h, timeout: 200ms}")
        .start();
    await_up(&proxy, "silent", 0.0);
}

/// Catches: readiness that is liveness, and a restart of a proxy that could do nothing for it.
#[test]
fn ready_follows_the_backends_and_health_does_not() {
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url()).health_check().start();
    await_ready(&proxy, 200);
    for status in [503, 500] {
        engine.set_health(status);
        await_ready(&proxy, 503);
        assert_eq!(proxy.get("/health").status(), 200);
        assert_eq!(proxy.get("/ready").text(), "no healthy backend\n");
        engine.set_health(200);
        await_ready(&proxy, 200);
        assert_eq!(proxy.get("/health").status(), 200);
    }
}

/// Catches: traffic to a sick backend while a well one is there; one that never comes back.
#[test]
fn a_sick_backend_gets_no_traffic_while_another_is_well() {
    let (sick, well) = (Engine::start(&[]), Engine::start(&[]));
    let proxy = Config::new()
        .backend(sick.url(), "name: sick")
        .backend(well.url(), "name: well")
        .health_check()
        .start();
    sick.set_health(503);
    await_up(&proxy, "sick", 0.0);
    for _ in 0..20 {
        assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    }
    assert_eq!((sick.posts().len(), well.posts().len()), (0, 20));
    sick.set_health(200);
    await_up(&proxy, "sick", 1.0);
    for _ in 0..20 {
        assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    }
    assert_eq!(sick.posts().len(), 10, "its share, and no burst for the time it was away");
}

/// Catches: probes that are wrong about everybody taking the whole service down.
#[test]
fn when_all_are_sick_all_are_tried() {
    let (one, two) = (Engine::start(&["--unhealthy"]), Engine::start(&["--unhealthy"]));
    let proxy = Config::new().backend(one.url(), "").backend(two.url(), "").health_check().start();
    proxy.await_metric("llmproxy_backend_up", &[], 0.0);
    await_ready(&proxy, 503);
    for _ in 0..10 {
        assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    }
    assert_eq!((one.posts().len(), two.posts().len()), (5, 5));
}

/// Catches: probes where they help nobody, or where they are forbidden.
#[test]
fn a_single_backend_is_not_probed_and_nobody_is_when_it_is_forbidden() {
    let (one, two) = (Engine::start(&["--unhealthy"]), Engine::start(&["--unhealthy"]));
    for proxy in [
        Config::backend_at(one.url()).start(),
        Config::backend_at(one.url())
            .backend(two.url(), "")
            .section("health_check: {enabled: false}")
            .start(),
    ] {
        assert_eq!(proxy.get("/ready").status(), 200);
        assert!(proxy
            .metrics()
            .samples
            .iter()
            .all(|sample| { sample.name != "llmproxy_backend_up" || sample.value == 1.0 }));
        assert!(!proxy.events().iter().any(is_told));
    }
    assert_eq!((one.stat("probes"), two.stat("probes")), (0, 0));
}

fn is_told(event: &serde_json::Value) -> bool {
    event["message"].as_str().is_some_and(|text| text.starts_with("backends are probed"))
}

/// Catches: several backends that nobody probes unless asked; probes that nobody is told of; an
/// engine that has no `/health` taken for a dead one.
#[test]
fn several_backends_are_probed_without_being_asked() {
    let (good, bad) = (Engine::start(&[]), Engine::start(&["--unhealthy"]));
    let ollama = Backend::answering("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
    let proxy = Config::new()
        .backend(good.url(), "name: good")
        .backend(bad.url(), "name: bad")
        .backend(ollama.url(), "name: ollama")
        .start();
    await_up(&proxy, "bad", 0.0);
    await_until("all are probed", SOON, || !ollama.requests().is_empty());
    assert_eq!(ollama.requests()[0].head.first_line, "GET /health HTTP/1.1");
    proxy.await_event("it is well", |event| {
        event["message"] == "backend is healthy" && event["backend"] == "ollama"
    });
    await_up(&proxy, "good", 1.0);
    await_up(&proxy, "ollama", 1.0);
    assert_eq!(proxy.events().iter().filter(|event| is_told(event)).count(), 1);
}

fn await_up(proxy: &Proxy, name: &str, up: f64) {
    proxy.await_metric("llmproxy_backend_up", &[("backend", name)], up);
}

fn await_ready(proxy: &Proxy, status: u16) {
    await_until(&format!("/ready is {status}"), SOON, || proxy.get("/ready").status() == status);
}

/// Catches: another interval, or the end of all probes, that is in use only once the old interval
/// is over.
#[test]
fn another_configuration_of_probes_is_in_use_at_once() {
    let (a, b) = (Engine::start(&[]), Engine::start(&["--unhealthy"]));
    let with = |probes: &str| {
        let config = Config::new().backend(a.url(), "name: a").backend(b.url(), "name: b");
        config.section(probes)
    };
    let proxy = with(NEVER).start();
    await_up(&proxy, "b", 0.0);
    let asked = || (0..4).for_each(|_| assert_eq!(proxy.post(CHATS, CHAT).status(), 200));
    asked();
    assert_eq!((a.posts().len(), b.posts().len()), (4, 0));
    assert!(proxy.reload_with(&with("health_check: {enabled: false}")));
    await_up(&proxy, "b", 1.0);
    asked();
    assert_eq!(b.posts().len(), 2, "nobody says that it is sick any more");
    assert!(proxy.reload_with(&with(NEVER)));
    await_up(&proxy, "b", 0.0);
    let probes = b.stat("probes");
    assert!(proxy.reload_with(&with("health_check: {interval: 59m, timeout: 2s}")));
    assert_eq!(b.stat("probes"), probes, "a reload is no reason to probe");
    b.set_health(200);
    assert!(proxy.reload_with(&with("health_check: {interval: 50ms}")));
    await_up(&proxy, "b", 1.0);
}
