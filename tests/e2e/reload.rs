//! A configuration that changes while the process runs: what is in use at once, what needs a
//! restart, and files that change nothing.

use crate::harness::message::Ended;
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, Backend, Config, Engine, Proxy, SOON};
use crate::rig::{quiet, CHAT, CHATS, OK, STREAM};
use ring::digest::{digest, SHA256};
use rustix::process::Signal;
use serde_json::Value;
use std::sync::mpsc::{channel, Receiver};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A backend that says its name in each answer.
fn named(name: &str) -> Backend {
    Backend::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

fn config() -> Config {
    Config::new().section("health_check: {enabled: false}")
}

/// Who answers the next so many requests.
fn answers(proxy: &Proxy, count: usize) -> String {
    let mut conn = proxy.connect();
    (0..count).map(|_| conn.post(CHATS, "", CHAT).text()).collect()
}

/// Lines of the log that say this, whatever their level.
fn said(proxy: &Proxy, text: &str) -> Vec<Value> {
    let says = |event: &Value| event["message"].as_str().is_some_and(|line| line.contains(text));
    proxy.events().into_iter().filter(says).collect()
}

/// Waits until so many lines say this: those of a reload come behind the line that it happened.
fn await_said(proxy: &Proxy, lines: usize, text: &str) {
    await_until(text, SOON, || said(proxy, text).len() == lines);
}

fn reloads(proxy: &Proxy) -> (f64, f64) {
    let metrics = proxy.metrics();
    let of = |what: &str| metrics.sum(&format!("llmproxy_config_reload_{what}_total"), &[]);
    (of("success"), of("failure"))
}

/// Catches: a backend that is added and not used, removed and used on, and numbers of one that is
/// gone that stay on the page for ever.
#[test]
fn backends_come_and_go() {
    let (a, b) = (named("a"), named("b"));
    let only = |backend: &Backend, name: &str| config().backend(backend.url(), name);
    let proxy = only(&a, "name: a").start();
    assert_eq!(answers(&proxy, 2), "aa");
    assert!(proxy.reload_with(&only(&a, "name: a").backend(b.url(), "name: b")));
    let both = answers(&proxy, 4);
    assert_eq!((both.matches('a').count(), both.matches('b').count()), (2, 2), "{both}");
    await_said(&proxy, 1, &format!("backend b ({}): added", b.url()));
    assert!(proxy.reload_with(&only(&b, "name: b")));
    assert_eq!(answers(&proxy, 3), "bbb");
    await_said(&proxy, 1, &format!("backend a ({}): removed", a.url()));
    for name in ["llmproxy_requests_total", "llmproxy_backend_up", "llmproxy_inflight"] {
        await_until("nothing of a is left", SOON, || {
            !proxy.metrics().text.lines().any(|line| line.contains("backend=\"a\""))
        });
        assert!(proxy.metrics().text.contains(name));
    }
    assert!(proxy.metric("llmproxy_requests_total", &[("backend", "b")]) >= 5.0);
    assert_eq!(reloads(&proxy), (2.0, 0.0));
    quiet(&proxy);
}

/// A backend whose answers to streams go on when the test says so.
fn slow(name: &'static str) -> (Backend, std::sync::mpsc::Sender<()>) {
    let (go, wait) = channel::<()>();
    let wait: Mutex<Receiver<()>> = Mutex::new(wait);
    let backend = Backend::start(move |served| {
        while served.request().is_some() {
            served.begin_events();
            served.chunk(&format!("data: {name} 1\n\n"));
            let _ = wait.lock().unwrap().recv_timeout(SOON);
            served.chunk(&format!("data: {name} 2\n\ndata: [DONE]\n\n"));
            served.send("0\r\n\r\n");
        }
    });
    (backend, go)
}

/// Catches: a stream that is cut because its backend was taken out, one that goes on with another,
/// numbers that are forgotten before it ends, and such that are never.
#[test]
fn what_is_in_flight_ends_where_it_began() {
    let ((a, go), b) = (slow("a"), named("b"));
    let proxy = config().backend(a.url(), "name: a").start();
    let mut stream = proxy.connect();
    stream.start_post(CHATS, "", STREAM);
    assert_eq!(stream.head().status(), 200);
    stream.read_until("a 1");
    assert!(proxy.reload_with(&config().backend(b.url(), "name: b")));
    assert_eq!(answers(&proxy, 2), "bb");
    assert_eq!(proxy.metric("llmproxy_inflight", &[("backend", "a")]), 1.0);
    go.send(()).unwrap();
    let (pieces, ended) = stream.rest();
    let rest: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
    assert_eq!(ended, Ended::Whole);
    assert_eq!(String::from_utf8(rest).unwrap(), "data: a 2\n\ndata: [DONE]\n\n");
    // The client's connection goes on, with the backends of now.
    assert_eq!(stream.post(CHATS, "", CHAT).text(), "b");
    await_until("a is forgotten", SOON, || !proxy.metrics().text.contains("backend=\"a\""));
    assert_eq!(a.connections(), 1);
    quiet(&proxy);
}

/// Catches: a backend whose connections, health or numbers begin anew because another of its
/// settings changed.
#[test]
fn a_backend_that_stays_keeps_its_connections_and_numbers() {
    let (a, b) = (named("a"), named("b"));
    let with = |weights: [u32; 2], more: &str| {
        let first = format!("name: a, weight: {}{more}", weights[0]);
        config()
            .backend(a.url(), &first)
            .backend(b.url(), &format!("name: b, weight: {}", weights[1]))
    };
    let proxy = with([1, 1], "").start();
    assert_eq!(answers(&proxy, 2).len(), 2);
    assert!(proxy.reload_with(&with([3, 1], "")));
    let eight = answers(&proxy, 8);
    assert_eq!((eight.matches('a').count(), eight.matches('b').count()), (6, 2), "{eight}");
    assert!(proxy.reload_with(&with([3, 1], ", idle_timeout: 7s, headers: {X-New: yes}")));
    assert_eq!(answers(&proxy, 4).len(), 4);
    assert_eq!((a.connections(), b.connections()), (1, 1), "kept connections are kept");
    let last = a.requests().pop().unwrap();
    assert_eq!(last.head.get("x-new"), Some("yes"));
    proxy.await_metric("llmproxy_requests_total", &[("backend", "a")], 10.0);
    await_said(&proxy, 1, "backends[a].weight: 1 -> 3");
    await_said(&proxy, 1, "backends[a].headers.X-New: unset -> ***");
}

/// Catches: requests that fail or a connection of another engine when a name changes hands.
#[test]
fn a_backend_may_get_another_name_and_a_name_another_backend() {
    let (a, b) = (named("a"), named("b"));
    let proxy = config().backend(a.url(), "name: one").start();
    assert_eq!(answers(&proxy, 1), "a");
    assert!(proxy.reload_with(&config().backend(a.url(), "name: two")));
    await_said(&proxy, 1, "backend one: renamed to two");
    assert_eq!(answers(&proxy, 1), "a");
    await_until("its numbers have the new name", SOON, || {
        let metrics = proxy.metrics();
        metrics.sum("llmproxy_requests_total", &[("backend", "two")]) == 1.0
            && !metrics.text.contains("\"one\"")
    });
    // The same name, another place.
    assert!(proxy.reload_with(&config().backend(b.url(), "name: two")));
    assert_eq!(answers(&proxy, 2), "bb");
    assert_eq!((a.requests().len(), b.requests().len()), (2, 2));
}

/// Catches: a reload that is refused as a whole, or that says nothing, because a part of it needs a
/// restart.
#[test]
fn what_needs_a_restart_is_named_and_the_rest_applies() {
    let (a, b) = (named("a"), named("b"));
    let proxy = config().backend(a.url(), "name: a").start();
    let next = config().backend(b.url(), "name: b").server("workers: 3").server("pid_file: /x");
    let yaml = next.yaml().replace("127.0.0.1:0", "127.0.0.1:1");
    proxy.rewrite(&yaml);
    assert!(proxy.reload());
    let warning = proxy.await_event("the keys", |event| event["keys"].is_string());
    assert_eq!(warning["level"], "WARN");
    assert_eq!(warning["keys"], "server.listen, server.pid_file, server.workers");
    assert_eq!(answers(&proxy, 2), "bb");
    // It is said again as long as it is so, and not any more when the file is as it was.
    assert!(proxy.reload());
    await_said(&proxy, 2 * (1 + 3), "needs a restart");
    assert!(proxy.reload_with(&config().backend(b.url(), "name: b")));
    await_said(&proxy, 2 * (1 + 3), "needs a restart");
}

/// Catches: half a configuration in use, and a failure that nobody is told of.
#[test]
fn a_broken_file_changes_nothing_and_says_why() {
    let a = named("a");
    let good = config().backend(a.url(), "name: a");
    // Root may read whatever it likes, unless it gives that up.
    let way = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"];
    let root = rustix::process::getuid().is_root();
    let proxy = Proxy::start_through(if root { &way } else { &[] }, &good.yaml());
    let before = std::fs::read(proxy.config_file()).unwrap();
    let file = proxy.config_file();
    let huge = format!("{}# {}", good.yaml(), "x".repeat(2 << 20));
    let mut failures = 0.0;
    let mut fails = |what: &str, why: &str| {
        assert!(!proxy.reload(), "{what}");
        failures += 1.0;
        await_until(why, SOON, || said(&proxy, why).iter().any(|event| event["level"] == "ERROR"));
        assert_eq!(answers(&proxy, 1), "a", "{what}");
        assert_eq!(reloads(&proxy), (0.0, failures), "{what}");
    };
    for (what, text, why) in [
        ("half written", "backends:\n  - {url: \"http:", "config.yaml"),
        ("wrong", "backends: [{url: 'http://b', weight: 99999}]", "backends[0].weight"),
        ("misspelt", "backends: [{url: 'http://b'}]\nauht: {}\n", "auth"),
        (
            "not built",
            "backends: [{url: 'http://b'}]\nhooks: {on_request: {enabled: true, script: x}}",
            "hooks: scripts at points of a request",
        ),
        ("itself", "backends: [{url: '@self@'}]", "is this proxy itself"),
        ("certificate", "backends: [{url: 'https://b', tls: {ca_file: /nonexistent}}]", "ca_file"),
        ("empty", "", "says nothing"),
        ("huge", &huge, "longer than"),
        ("binary", "\0\0\0", "zero bytes"),
    ] {
        std::fs::write(&file, text.replace("@self@", &format!("http://{}", proxy.addr()))).unwrap();
        fails(what, why);
    }
    std::fs::write(&file, &before).unwrap();
    let permissions = std::fs::metadata(&file).unwrap().permissions();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    fails("unreadable", "this user may not read it");
    std::fs::set_permissions(&file, permissions).unwrap();
    std::fs::remove_file(&file).unwrap();
    fails("away", "there is no such file");
    std::fs::create_dir(&file).unwrap();
    fails("a folder", "is a folder");
    std::fs::remove_dir(&file).unwrap();
    assert_eq!(proxy.metric("llmproxy_config_last_reload_successful", &[]), 0.0);
    std::fs::write(&file, &before).unwrap();
    assert!(proxy.reload());
    assert_eq!(proxy.metric("llmproxy_config_last_reload_successful", &[]), 1.0);
    assert_eq!(answers(&proxy, 1), "a");
}

/// Catches: a hash of another file than the one in use, and a time that does not move.
#[test]
fn the_page_tells_which_configuration_is_in_use() {
    let a = named("a");
    let proxy = config().backend(a.url(), "name: a").start();
    let in_use = |bytes: Vec<u8>| {
        let hash: String =
            digest(&SHA256, &bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect();
        proxy.metric("llmproxy_config_info", &[("sha256", &hash)])
    };
    let file = || std::fs::read(proxy.config_file()).unwrap();
    assert_eq!(in_use(file()), 1.0);
    let time = || proxy.metric("llmproxy_config_last_reload_success_timestamp_seconds", &[]);
    let began = time();
    assert!(began > 1.7e9);
    let first = file();
    assert!(proxy.reload_with(&config().backend(a.url(), "name: b")));
    assert_eq!((in_use(file()), in_use(first)), (1.0, 0.0));
    assert!(time() > began);
    let then = time();
    std::fs::write(proxy.config_file(), "backends: {").unwrap();
    assert!(!proxy.reload());
    assert_eq!((in_use(file()), time()), (0.0, then));
}

/// Catches: settings that are read at the start only.
#[test]
fn settings_of_requests_apply_to_the_next_one() {
    let engine = Engine::start(&["--echo", "headers"]);
    let with = |line: &str| config().backend(engine.url(), "name: e").server(line);
    let proxy = with("max_body_size: 1MiB").start();
    let mut kept = proxy.connect();
    let large = format!("{{\"model\":\"m\",\"x\":\"{}\"}}", "y".repeat(64 << 10));
    assert_eq!(kept.post(CHATS, "", &large).status(), 200);
    assert!(proxy.reload_with(&with("max_body_size: 1KiB")));
    assert_eq!(proxy.post(CHATS, &large).status(), 413);
    assert_eq!(kept.post(CHATS, "", &large).status(), 413, "on a kept connection too");
    assert!(proxy.reload_with(&with("paths: [/v1/embeddings]")));
    assert_eq!(proxy.post(CHATS, CHAT).status(), 404);
    let with_key = |proxy: &Proxy| {
        let answer = proxy.connect().post(CHATS, "Authorization: Bearer sk-1\r\n", CHAT);
        answer.text().contains("sk-1")
    };
    assert!(proxy.reload_with(&with("forward_credentials: true")));
    assert!(with_key(&proxy));
    assert!(proxy.reload_with(&with("forward_credentials: false")));
    assert!(!with_key(&proxy));
    let page = with("half_close: serve").section("metrics: {path: /numbers}");
    assert!(proxy.reload_with(&page));
    assert_eq!((proxy.get("/numbers").status(), proxy.get("/metrics").status()), (200, 404));
}

/// Catches: limits on connections and bytes that are those of the start.
#[test]
fn limits_that_workers_share_change_too() {
    let a = named("a");
    let with = |line: &str| config().backend(a.url(), "name: a").server(line);
    let proxy = with("max_connections: 1").start();
    let bytes = || proxy.metric("llmproxy_buffered_bytes_max", &[]);
    assert_eq!(proxy.post(CHATS, CHAT).head.get("connection"), Some("close"), "it is crowded");
    assert!(proxy.reload_with(&with("max_connections: 20")));
    let mut many: Vec<_> = (0..10).map(|_| proxy.connect()).collect();
    for _ in 0..2 {
        many.iter_mut().for_each(|conn| assert_eq!(conn.post(CHATS, "", CHAT).text(), "a"));
    }
    let auto = bytes();
    assert!(proxy.reload_with(&with("max_buffered_bytes: 48MiB")));
    assert_eq!(bytes(), f64::from(48 << 20));
    assert!(proxy.reload_with(&with("max_connections: 20")));
    assert_eq!(bytes(), auto);
    assert_eq!(said(&proxy, "needs a restart").len(), 0);
}

/// Catches: probes that go on with what the start knew, or that a reload cannot turn on or off.
#[test]
fn probes_follow_the_configuration() {
    let (a, b) = (Engine::start(&[]), Engine::start(&[]));
    let proxy = config().backend(a.url(), "name: a").start();
    b.set_health(503);
    let probed = Config::new().health_check();
    assert!(
        proxy.reload_with(&probed.clone().backend(a.url(), "name: a").backend(b.url(), "name: b"))
    );
    proxy.await_metric("llmproxy_backend_up", &[("backend", "b")], 0.0);
    assert!(a.stat("probes") > 0, "a backend that was there before is probed too");
    (0..4).for_each(|_| assert_eq!(proxy.post(CHATS, CHAT).status(), 200));
    assert_eq!((a.posts().len(), b.posts().len()), (4, 0));
    assert!(proxy.reload_with(&config().backend(b.url(), "name: b")));
    // One that is alone gets requests however it is: what the page says is what it counts as.
    proxy.await_metric("llmproxy_backend_up", &[("backend", "b")], 1.0);
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200, "nobody says that it is sick any more");
    let last = Instant::now();
    let mut count = b.stat("probes");
    await_until("probes end", SOON, || {
        let before = std::mem::replace(&mut count, b.stat("probes"));
        crate::harness::pause(Duration::from_millis(500));
        before == count && last.elapsed() > Duration::from_millis(500)
    });
}

/// Catches: a request that waits when its backend goes out of service, and is sent by a
/// configuration that is not in use any more: to nobody, or to a backend that was taken out; and
/// one that waits out its timeout because its backend was taken out while it hung.
#[test]
fn who_waits_at_a_backend_that_goes_is_sent_by_the_configuration_of_now() {
    let (a, b, c) = (Engine::start(&["--ttft-ms", "60000"]), named("b"), named("c"));
    let on = |urls: &[(&str, &str)]| {
        let all = Config::new().health_check();
        urls.iter().fold(all, |all, (url, name)| all.backend(*url, &format!("name: {name}")))
    };
    let urls = [a.url().to_string(), b.url().to_string(), c.url().to_string()];
    let [at_a, at_b, at_c] = [(&*urls[0], "a"), (&*urls[1], "b"), (&*urls[2], "c")];
    for (before, after) in [(vec![at_a, at_b], vec![at_a, at_c]), (vec![at_a, at_b], vec![at_c])] {
        a.set_health(200);
        a.reset();
        a.set("ttft-ms=60000");
        let proxy = on(&before).start();
        proxy.await_metric("llmproxy_backend_up", &[("backend", "a")], 1.0);
        let mut waiting: Vec<_> = before.iter().map(|_| proxy.connect()).collect();
        for conn in &mut waiting {
            conn.start_post(CHATS, "", CHAT);
        }
        await_until("one waits at a", SOON, || a.posts().len() == 1);
        assert!(proxy.reload_with(&on(&after)));
        a.set_health(503);
        let answers: String = waiting.iter_mut().map(|conn| conn.response().text()).collect();
        let asked: Vec<_> = before[1..].iter().map(|(_, name)| *name).chain(["c"]).collect();
        let mut answers: Vec<_> = answers.chars().map(String::from).collect();
        answers.sort_unstable();
        assert_eq!(answers, asked, "{before:?} {after:?}");
    }
}

/// Catches: a request of which nothing is held any more, since there was nobody else to send it to,
/// and that is sent to a backend that came since.
#[test]
fn who_waits_at_the_only_backend_stays_there() {
    let (a, c) = (Engine::start(&["--ttft-ms", "3000"]), Engine::start(&[]));
    let at_a = Config::new().health_check().backend(a.url(), "name: a");
    let proxy = at_a.clone().start();
    proxy.await_metric("llmproxy_backend_up", &[("backend", "a")], 1.0);
    let mut waiting = proxy.connect();
    waiting.start_post(CHATS, "", CHAT);
    await_until("it waits at a", SOON, || a.posts().len() == 1);
    assert!(proxy.reload_with(&at_a.backend(c.url(), "name: c")));
    a.set_health(503);
    assert_eq!(waiting.response().status(), 200);
    assert_eq!((a.posts().len(), c.posts().len()), (1, 0));
}

/// Catches: a level or a form of the log that waits for a restart.
#[test]
fn the_log_changes_its_level_and_form() {
    let a = named("a");
    let with = |log: &str| config().backend(a.url(), "name: a").section(format!("log: {{{log}}}"));
    let proxy = with("level: info, format: json").start();
    proxy.rewrite(&with("level: warn, format: text").yaml());
    proxy.process.signal(Signal::HUP);
    proxy.await_metric("llmproxy_config_reload_success_total", &[], 1.0);
    let lines = || proxy.process.stdout.all();
    let told = lines().len();
    std::fs::write(proxy.config_file(), "backends: {").unwrap();
    assert!(!proxy.reload());
    let after = lines().split_off(told);
    assert!(
        after.iter().all(|line| line.contains(" ERROR ") && !line.starts_with('{')),
        "{after:?}"
    );
    assert_eq!(lines().iter().filter(|line| line.contains("configuration reloaded")).count(), 0);
}

/// Catches: an end that takes the time of the configuration of the start.
#[test]
fn the_end_goes_by_the_configuration_in_use() {
    let (a, _go) = slow("a");
    let with = |line: &str| config().backend(a.url(), "name: a").server(line);
    let proxy = with("drain_timeout: unlimited").start();
    let mut stream = proxy.connect();
    stream.start_post(CHATS, "", STREAM).head();
    assert!(proxy.reload_with(&with("drain_timeout: 300ms")));
    proxy.process.signal(Signal::TERM);
    assert_eq!(proxy.process.wait(SOON).code(), Some(3), "it was cut");
    // Nobody reads a file for a process that ends.
    let proxy = with("shutdown_delay: 20s").start();
    proxy.process.signal(Signal::TERM);
    proxy.await_event("it leaves", |event| {
        event["message"].as_str().is_some_and(|text| text.contains("not ready any more"))
    });
    proxy.process.signal(Signal::HUP);
    proxy.await_event("it is told", |event| {
        event["message"]
            .as_str()
            .is_some_and(|text| text.contains("not reloaded: the process is draining"))
    });
    assert_eq!(reloads(&proxy), (0.0, 1.0), "whoever asked sees that it was not done");
    assert_eq!(proxy.metric("llmproxy_config_last_reload_successful", &[]), 0.0);
}

/// Catches: a process without a file that ends, or that loses its backends.
#[test]
fn without_a_file_there_is_nothing_to_reload() {
    let a = Backend::answering(OK);
    let args = ["--backend", &a.url(), "--listen", "127.0.0.1:0"];
    let proxy = Proxy::start_with(&args, Scratch::new());
    assert!(!proxy.reload());
    await_said(&proxy, 1, "there is no file to read anew");
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
}
