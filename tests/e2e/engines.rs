//! `backends[].engine` and `backends[].metrics`: each engine is probed where it tells how it is, is
//! told from the others, and its own figures of its load are heard.

use crate::harness::{await_until, Backend, Config, Engine, Proxy, SOON};
use crate::rig::{CHAT, CHATS};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

/// Each, its name, and where it is probed.
const ENGINES: [(&str, &str); 5] = [
    ("vllm", "/health"),
    ("sglang", "/ready"),
    ("tgi", "/health"),
    ("llamacpp", "/health"),
    ("ollama", "/api/version"),
];

const OFTEN: &str =
    "health_check: {interval: 100ms, timeout: 5s, unhealthy_threshold: 1, healthy_threshold: 1}";
const NO_PROBES: &str = "health_check: {enabled: false}";
const RUNNING: &str = "llmproxy_backend_engine_running";
const READS: &str = "llmproxy_backend_engine_reads_total";

fn start_all() -> Vec<Engine> {
    ENGINES.iter().map(|(name, _)| Engine::start(&["--dialect", name])).collect()
}

/// Before all of them, each with its name, and further properties.
fn before(engines: &[Engine], more: impl Fn(&str) -> String) -> Proxy {
    let named = engines.iter().zip(ENGINES);
    let config = named.fold(Config::new(), |config, (engine, (name, _))| {
        config.backend(engine.url(), &format!("name: {name}{}", more(name)))
    });
    config.section(OFTEN).start()
}

fn await_up(proxy: &Proxy, name: &str, up: f64) {
    proxy.await_metric("llmproxy_backend_up", &[("backend", name)], up);
}

fn await_engine(proxy: &Proxy, backend: &str, engine: &str) {
    let labels = [("backend", backend), ("engine", engine)];
    proxy.await_metric("llmproxy_backend_info", &labels, 1.0);
}

fn has_asked(engine: &Engine, path: &str) -> bool {
    engine.log().iter().any(|entry| entry["path"] == path)
}

/// Catches: an engine that is probed where it does not tell how it is, or where that costs a token;
/// one that is up while it says that it is not.
#[test]
fn a_given_engine_is_probed_where_it_tells() {
    let engines = start_all();
    let proxy = before(&engines, |name| format!(", engine: {name}"));
    for (engine, (name, path)) in engines.iter().zip(ENGINES) {
        await_engine(&proxy, name, name);
        await_until(&format!("{name} is probed"), SOON, || has_asked(engine, path));
        let mut asked = engine.log().into_iter().map(|entry| entry["path"].clone());
        assert!(asked.all(|asked| asked == path), "{name}: nothing else is asked for");
        engine.set_health(503);
        await_up(&proxy, name, 0.0);
        engine.set_health(200);
        await_up(&proxy, name, 1.0);
    }
    proxy.await_event("what llama.cpp does", |event| {
        event["why"] == "status 503: it is loading its model" && event["backend"] == "llamacpp"
    });
}

/// Catches: an engine that is not told from the others, or told more than once.
#[test]
fn each_engine_is_told_from_the_others() {
    let engines = start_all();
    let proxy = before(&engines, |_| String::new());
    for (engine, (name, path)) in engines.iter().zip(ENGINES) {
        await_engine(&proxy, name, name);
        engine.reset();
        await_until(&format!("{name} is probed there"), SOON, || has_asked(engine, path));
        await_up(&proxy, name, 1.0);
    }
    let told = proxy.events().into_iter().filter(|event| event.get("engine").is_some()).count();
    assert_eq!(told, ENGINES.len());
}

/// A backend that lists a model of the engine whose name stands at the count, answers nothing else
/// but 404, and is down at an empty name.
fn changing(names: &'static [&'static str], at: &Arc<AtomicUsize>) -> Backend {
    let at = Arc::clone(at);
    Backend::start(move |served| {
        while let Some(received) = served.request() {
            let owner = names[at.load(Ordering::Relaxed)];
            let body = format!(r#"{{"data":[{{"id":"m","owned_by":"{owner}"}}]}}"#);
            let status = match (owner, received.head.target()) {
                ("", _) => 503,
                (_, "/v1/models") => 200,
                _ => 404,
            };
            let len = body.len();
            served.send(format!("HTTP/1.1 {status} X\r\nContent-Length: {len}\r\n\r\n{body}"));
        }
    })
}

/// Catches: a guess that takes a backend out whose probes have only been answered by what stands
/// before it; one that holds for another engine that came in its place.
#[test]
fn a_guess_makes_no_probe_stricter_and_ends_with_its_engine() {
    let at = Arc::default();
    let backend = changing(&["vllm", "", "sglang"], &at);
    let proxy = Config::new().backend(backend.url(), "name: it").section(OFTEN).start();
    await_engine(&proxy, "it", "vllm");
    let probes = backend.requests().len();
    await_until("further probes", SOON, || backend.requests().len() > probes + 3);
    await_up(&proxy, "it", 1.0);
    at.store(1, Ordering::Relaxed);
    await_up(&proxy, "it", 0.0);
    await_engine(&proxy, "it", "unknown");
    at.store(2, Ordering::Relaxed);
    await_engine(&proxy, "it", "sglang");
    await_up(&proxy, "it", 1.0);
}

/// Catches: a backend that is asked for ever what it is.
#[test]
fn what_nobody_knows_is_not_asked_for_ever() {
    let backend = changing(&["somebody"], &Arc::default());
    let proxy = Config::new().backend(backend.url(), "name: it").section(OFTEN).start();
    let asked = |path: &str| {
        backend.requests().iter().filter(|request| request.head.target() == path).count()
    };
    await_until("many probes", SOON, || asked("/health") > 8);
    assert_eq!((asked("/v1/models"), asked("/info")), (3, 3));
    await_engine(&proxy, "it", "unknown");
    await_up(&proxy, "it", 1.0);
}

/// Catches: requests for an engine that others keep busy; figures that nobody can see.
#[test]
fn an_engine_that_others_keep_busy_gets_less() {
    let (busy, idle) = (Engine::start(&[]), Engine::start_unix(&["--dialect", "tgi"]));
    let proxy = Config::new()
        .backend(busy.url(), "name: busy, metrics: auto")
        .backend(idle.url(), "name: idle, metrics: /metrics")
        .section("routing: {load_balance: least_connections}")
        .section(NO_PROBES)
        .start();
    let figure = |name: &str, backend: &str, wanted: f64| {
        proxy.await_metric(name, &[("backend", backend)], wanted);
    };
    busy.set("load=40,2");
    idle.set("load=0,0");
    figure(RUNNING, "busy", 40.0);
    figure("llmproxy_backend_engine_waiting", "busy", 2.0);
    let is_read = [("backend", "idle"), ("result", "ok")];
    await_until("it is read", SOON, || proxy.metric(READS, &is_read) >= 1.0);
    let ask = || (0..20).for_each(|_| assert_eq!(proxy.post(CHATS, CHAT).status(), 200));
    // Some, should this machine stand still for so long that the figures are forgotten.
    await_until("it gets none of twenty", SOON, || {
        let before = busy.posts().len();
        ask();
        busy.posts().len() == before
    });
    busy.set("load=0,0");
    figure(RUNNING, "busy", 0.0);
    let before = busy.posts().len();
    ask();
    assert!(busy.posts().len() > before, "of two that are idle each gets some");
}

/// Catches: figures that are asked for without the engine's key, or where nobody wants them.
#[test]
fn figures_are_asked_for_as_the_engine_wants_it() {
    let page = "vllm:num_requests_running 3\nvllm:kv_cache_usage_perc 0.5\n";
    let len = page.len();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n{page}");
    let (own, none) = (Backend::answering(answer.as_str()), Backend::answering(answer.as_str()));
    let proxy = Config::new()
        .backend(format!("{}/base/v1", own.url()), "name: own, api_key: k, metrics: /own")
        .backend(none.url(), "name: none")
        .section(NO_PROBES)
        .start();
    proxy.await_metric(RUNNING, &[("backend", "own")], 3.0);
    proxy.await_metric("llmproxy_backend_engine_cache_usage_ratio", &[("backend", "own")], 0.5);
    let head = &own.requests()[0].head;
    assert_eq!(head.first_line, "GET /base/own HTTP/1.1");
    assert_eq!(head.get("authorization"), Some("Bearer k"));
    assert!(none.requests().is_empty());
}

/// Catches: an engine that is given up, or a proxy that is held up, because of a page of figures
/// that never comes, never ends, or is something else.
#[test]
fn figures_that_cannot_be_read_do_no_harm() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4000000000\r\n\r\n";
    let answers = [
        ("garbage", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{\"a\":"),
        ("lie", "HTTP/1.1 200 OK\r\nContent-Length: 29\r\n\r\nvllm:num_requests_waiting NaN"),
        ("none", "HTTP/1.1 501 X\r\nContent-Length: 0\r\n\r\n"),
        ("endless", HEAD),
        ("silent", ""),
    ];
    for (name, answer) in answers {
        let backend = Backend::start(move |served| {
            while let Some(received) = served.request() {
                match received.head.method() {
                    "GET" if answer.is_empty() => drop(served.left_within(SOON)),
                    "GET" => drop(served.send(answer)),
                    _ => drop(served.send(crate::rig::OK)),
                }
            }
        });
        let proxy = Config::new()
            .backend(backend.url(), "name: it, metrics: auto")
            .section("routing: {load_balance: least_connections}")
            .section(NO_PROBES)
            .start();
        let failed = [("backend", "it"), ("result", "failed")];
        await_until(name, SOON, || proxy.metric(READS, &failed) >= 1.0);
        assert_eq!(proxy.post(CHATS, CHAT).text(), "ok", "{name}");
        assert_eq!(proxy.metric(READS, &[("result", "ok")]), 0.0, "{name}");
        proxy.await_event("it is told", |event| {
            event["message"] == "the engine's figures of its load cannot be read"
        });
        assert!(!proxy.metrics().samples.iter().any(|sample| sample.name == RUNNING), "{name}");
    }
}

/// Catches: engines beyond those that are read at a time, whose figures nobody ever reads.
#[test]
fn the_figures_of_many_engines_are_read_in_turns() {
    const MANY: usize = 70;
    let (now, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (reading, highest) = (Arc::clone(&now), Arc::clone(&most));
    let engine = Backend::start(move |served| {
        while served.request().is_some() {
            highest.fetch_max(reading.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let page = "vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n";
            let len = page.len();
            reading.fetch_sub(1, Ordering::SeqCst);
            served.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n{page}"));
        }
    });
    let config = (0..MANY).fold(Config::new(), |config, number| {
        let url = format!("{}/{number}", engine.url());
        config.backend(url, &format!("name: engine-{number}, engine: vllm, metrics: auto"))
    });
    let proxy = config.section(NO_PROBES).start();
    await_until("all are read", 3 * SOON, || {
        let figures = proxy.metrics().samples;
        figures.iter().filter(|one| one.name == RUNNING && one.value == 3.0).count() == MANY
    });
    // `ENGINE_LOADS_READ_MAX`.
    assert!(most.load(Ordering::SeqCst) <= 32, "{most:?} at a time");
}
