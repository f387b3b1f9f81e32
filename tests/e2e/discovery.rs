//! Backends that are found while the process runs: sources that change, fail, lie and hang, and
//! requests that notice nothing of it.

use crate::harness::message::Ended;
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, Backend, Config, Engine, Proxy, SOON};
use crate::rig::{quiet, CHAT, CHATS, STREAM};
use serde_json::{json, Value};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{channel, Receiver};
use std::sync::{Arc, Mutex};

/// A backend that says its name in each answer.
pub fn named(name: &str) -> Backend {
    Backend::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

/// What a service does with a question.
#[derive(Clone)]
pub enum Says {
    Status(u16, Vec<u8>),
    /// It takes the question and says nothing.
    Nothing,
    /// It begins an answer that it never ends.
    Half,
}

/// A service that is asked for backends.
pub struct Service {
    says: Arc<Mutex<Says>>,
    /// Where it is asked.
    pub backend: Backend,
}

impl Service {
    pub fn start(rows: Value) -> Service {
        let says = Arc::new(Mutex::new(Says::Status(200, rows.to_string().into_bytes())));
        let told = Arc::clone(&says);
        let backend = Backend::start(move |served| {
            while served.request().is_some() {
                let says = told.lock().unwrap().clone();
                match says {
                    Says::Status(status, body) => {
                        let length = body.len();
                        let head =
                            format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n");
                        served.send([head.as_bytes(), &body].concat());
                    }
                    Says::Nothing => drop(served.left_within(SOON)),
                    Says::Half => {
                        served.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{\"name\":");
                        served.left_within(SOON);
                    }
                }
            }
        });
        Service { says, backend }
    }

    pub fn say(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }

    pub fn rows(&self, rows: Value) {
        self.say(Says::Status(200, rows.to_string().into_bytes()));
    }

    /// As an item of `sources`, asked every tenth of a second.
    fn source(&self, more: &str) -> String {
        let url = self.backend.url();
        format!("{{type: http, http: {{url: \"{url}/list\", interval: 100ms{more}}}}}")
    }
}

fn row(name: &str, backend: &Backend) -> Value {
    json!({ "name": name, "url": backend.url() })
}

pub fn discovering(sources: &[String]) -> Config {
    Config::new()
        .section("health_check: {enabled: false}")
        .section(format!("discovery: {{enabled: true, sources: [{}]}}", sources.join(", ")))
}

/// Who answers the next so many requests.
pub fn answers(proxy: &Proxy, count: usize) -> String {
    let mut conn = proxy.connect();
    (0..count).map(|_| conn.post(CHATS, "", CHAT).text()).collect()
}

/// The backends in use, in the order of their names.
pub fn in_use(proxy: &Proxy) -> Vec<String> {
    let page = proxy.metrics();
    let up = page.samples.iter().filter(|sample| sample.name == "llmproxy_backend_up");
    let mut names: Vec<String> = up.map(|sample| sample.labels[0].1.clone()).collect();
    names.sort();
    names
}

pub fn await_in_use(proxy: &Proxy, wanted: &[&str]) {
    await_until(&format!("{wanted:?} are in use"), SOON, || in_use(proxy) == wanted);
}

fn count(proxy: &Proxy, what: &str) -> f64 {
    proxy.metric(&format!("llmproxy_discovery_{what}_total"), &[])
}

/// Waits until a source was asked twice more from now: the answer to the second question is the
/// one that it gives now.
pub fn await_looks(proxy: &Proxy, what: &str) {
    let before = count(proxy, what);
    await_until("two more looks", SOON, || count(proxy, what) >= before + 2.0);
}

/// Lines of the log that say this.
fn said(proxy: &Proxy, text: &str) -> usize {
    let says = |event: &&Value| event["message"].as_str().is_some_and(|line| line.contains(text));
    proxy.events().iter().filter(says).count()
}

/// Waits until so many lines say this: the log is behind what metrics tell.
pub fn await_said(proxy: &Proxy, lines: usize, text: &str) {
    await_until(text, SOON, || said(proxy, text) == lines);
}

/// Catches: a backend that is found and not used, one that is gone and used on, numbers that stay,
/// a line or a new view for each look though nothing changes.
#[test]
fn backends_of_a_service_come_and_go() {
    let (a, b) = (named("a"), named("b"));
    let service = Service::start(json!([row("a", &a)]));
    let proxy = discovering(&[service.source(", headers: {X-Token: t1}")]).start();
    assert_eq!(answers(&proxy, 2), "aa", "it is known when the first client comes");
    service.rows(json!({"backends": [row("a", &a), row("b", &b)]}));
    await_in_use(&proxy, &["a", "b"]);
    let both = answers(&proxy, 4);
    assert_eq!((both.matches('a').count(), both.matches('b').count()), (2, 2), "{both}");
    assert_eq!(a.connections(), 1, "a backend that stays keeps its connections");
    service.rows(json!({"services": [row("b", &b)]}));
    await_in_use(&proxy, &["b"]);
    assert_eq!(answers(&proxy, 2), "bb");
    await_looks(&proxy, "success");
    let page = proxy.metrics();
    assert_eq!(page.sum("llmproxy_discovery_backends", &[("source", "http")]), 1.0);
    assert!(page.sum("llmproxy_discovery_last_success_timestamp_seconds", &[]) > 1.7e9);
    assert_eq!(count(&proxy, "failure"), 0.0);
    await_said(&proxy, 3, "discovery: backends found");
    await_said(&proxy, 1, &format!("backend a ({}): removed", a.url()));
    let asked = service.backend.requests().pop().unwrap().head;
    assert_eq!((asked.target(), asked.get("x-token")), ("/list", Some("t1")));
    quiet(&proxy);
}

/// Catches: engines that go because the service that names them does not answer, or answers with
/// nothing, with nonsense, or without end; and a line for each time that it does.
#[test]
fn a_bad_answer_keeps_the_last_good_one() {
    let (a, b) = (named("a"), named("b"));
    let service = Service::start(json!([row("a", &a)]));
    let proxy = discovering(&[service.source(", timeout: 300ms")]).start();
    let bad = [
        Says::Status(500, b"[]".to_vec()),
        Says::Status(301, Vec::new()),
        Says::Status(200, b"[]".to_vec()),
        Says::Status(200, b"{\"backends\": [{\"name\"".to_vec()),
        Says::Status(200, b"<html>hello</html>".to_vec()),
        Says::Status(200, vec![0xff; 100]),
        Says::Status(200, vec![b' '; 10 << 20]),
        Says::Status(200, json!([{"name": "x", "url": "ftp://x"}]).to_string().into_bytes()),
        Says::Nothing,
        Says::Half,
    ];
    for says in bad {
        service.say(says);
        await_looks(&proxy, "failure");
        assert_eq!((answers(&proxy, 1).as_str(), in_use(&proxy)), ("a", vec!["a".to_owned()]));
    }
    let warnings = |event: &&Value| event["level"] == "WARN" && event["source"] == "http";
    assert_eq!(proxy.events().iter().filter(warnings).count(), 1, "it is told once");
    service.rows(json!([row("b", &b)]));
    await_in_use(&proxy, &["b"]);
    assert_eq!(answers(&proxy, 1), "b");
}

/// Catches: found backends that nobody probes.
#[test]
fn what_is_found_is_probed() {
    let (a, sick) = (Engine::start(&[]), Engine::start(&[]));
    sick.set_health(503);
    let row = |name: &str, engine: &Engine| json!({ "name": name, "url": engine.url() });
    let service = Service::start(json!([row("a", &a)]));
    let sources = format!("discovery: {{enabled: true, sources: [{}]}}", service.source(""));
    let proxy = Config::new().health_check().section(sources).start();
    service.rows(json!([row("a", &a), row("sick", &sick)]));
    proxy.await_metric("llmproxy_backend_up", &[("backend", "a")], 1.0);
    await_until("it is found and probed", SOON, || {
        in_use(&proxy).len() == 2
            && proxy.metric("llmproxy_backend_up", &[("backend", "sick")]) == 0.0
    });
    (0..4).for_each(|_| assert_eq!(proxy.post(CHATS, CHAT).status(), 200));
    assert!(sick.posts().is_empty());
}

/// Catches: a bad row that takes the good ones with it, and defaults that a found backend lacks.
#[test]
fn a_bad_row_is_left_out_and_named() {
    let (a, silent) = (
        named("a"),
        Backend::start(|served| {
            while served.request().is_some() {
                served.left_within(SOON);
            }
        }),
    );
    let bad = json!({"name": "heavy", "url": "http://192.0.2.1", "weight": -1.5});
    let service = Service::start(json!([bad, row("a", &a)]));
    let proxy = discovering(&[service.source("")]).section("routing: {timeout: 200ms}").start();
    assert_eq!(answers(&proxy, 1), "a");
    await_looks(&proxy, "success");
    assert_eq!(in_use(&proxy), ["a"]);
    await_said(&proxy, 1, "[0].weight (`heavy`)");
    service.rows(json!([row("silent", &silent)]));
    await_in_use(&proxy, &["silent"]);
    proxy.post(CHATS, CHAT).assert_refused(504, "first_byte_timeout");
}

/// Catches: a source that waits for another one, which hangs.
#[test]
fn a_source_that_hangs_holds_up_no_other() {
    let (a, b) = (named("a"), named("b"));
    let hung = Service::start(json!([]));
    hung.say(Says::Nothing);
    let service = Service::start(json!([row("a", &a)]));
    let proxy = discovering(&[hung.source(", timeout: 1h"), service.source("")]).start();
    assert_eq!(answers(&proxy, 1), "a");
    service.rows(json!([row("b", &b)]));
    await_in_use(&proxy, &["b"]);
    let named = [("source", "http#2")];
    assert!(proxy.metric("llmproxy_discovery_success_total", &named) >= 2.0);
    assert_eq!(proxy.metric("llmproxy_discovery_backends", &[("source", "http")]), 0.0);
}

/// Catches: an engine that two sources name and that gets twice its share, one of the file that a
/// source takes the place of, and `first` that is not the first.
#[test]
fn sources_add_up_behind_the_backends_of_the_file() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let (one, two) = (
        Service::start(json!([row("again", &a), row("a", &b)])),
        Service::start(json!([row("b-too", &b), row("c", &c)])),
    );
    let sources = [one.source(""), two.source("")];
    let proxy = discovering(&sources).backend(a.url(), "name: a").start();
    let second = format!("a/{}", b.addr());
    await_in_use(&proxy, &["a", &second, "c"]);
    let three = answers(&proxy, 3);
    assert!(["a", "b", "c"].iter().all(|name| three.contains(name)), "{three}");
    let list = format!("{{type: static, static: {{backends: [{{url: \"{}\"}}]}}}}", c.url());
    let first =
        format!("discovery: {{enabled: true, mode: first, sources: [{}, {list}]}}", one.source(""));
    one.rows(json!([]));
    let proxy = Config::new().section("health_check: {enabled: false}").section(first).start();
    assert_eq!(in_use(&proxy), [c.addr().to_string()], "the first is empty");
    one.rows(json!([row("a", &a)]));
    await_in_use(&proxy, &["a"]);
    one.rows(json!([]));
    await_looks(&proxy, "failure");
    assert_eq!(in_use(&proxy), ["a"]);
}

/// A backend whose answers to streams go on when the test says so.
fn slow() -> (Backend, std::sync::mpsc::Sender<()>) {
    let (go, wait) = channel::<()>();
    let wait: Mutex<Receiver<()>> = Mutex::new(wait);
    let backend = Backend::start(move |served| {
        while served.request().is_some() {
            served.begin_events();
            served.chunk("data: 1\n\n");
            let _ = wait.lock().unwrap().recv_timeout(SOON);
            served.chunk("data: 2\n\ndata: [DONE]\n\n");
            served.send("0\r\n\r\n");
        }
    });
    (backend, go)
}

/// Catches: a stream that is cut because its backend is not named any more.
#[test]
fn a_stream_at_a_backend_that_goes_is_finished() {
    let ((a, go), b) = (slow(), named("b"));
    let service = Service::start(json!([row("a", &a)]));
    let proxy = discovering(&[service.source("")]).start();
    let mut stream = proxy.connect();
    stream.start_post(CHATS, "", STREAM);
    assert_eq!(stream.head().status(), 200);
    stream.read_until("1");
    service.rows(json!([row("b", &b)]));
    await_until("b is in use", SOON, || in_use(&proxy).contains(&"b".to_owned()));
    assert_eq!(answers(&proxy, 2), "bb");
    assert_eq!(proxy.metric("llmproxy_inflight", &[("backend", "a")]), 1.0);
    go.send(()).unwrap();
    let (pieces, ended) = stream.rest();
    let rest: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
    assert_eq!((ended, rest), (Ended::Whole, b"data: 2\n\ndata: [DONE]\n\n".to_vec()));
    await_in_use(&proxy, &["b"]);
    quiet(&proxy);
}

/// Catches: a request that fails because backends come and go meanwhile.
#[test]
fn no_request_fails_while_backends_come_and_go() {
    let backends: Vec<Backend> = ["a", "b", "c"].map(named).into();
    let rows = |left_out: usize| -> Value {
        let kept = backends.iter().enumerate().filter(|(n, _)| *n != left_out);
        kept.map(|(n, backend)| row(&format!("n{n}"), backend)).collect()
    };
    let service = Service::start(rows(0));
    let proxy = discovering(&[service.source("").replace("100ms", "20ms")]).start();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut conn = proxy.connect();
                    let mut statuses = Vec::new();
                    while !is_over.load(Relaxed) {
                        statuses.push(conn.post(CHATS, "", CHAT).status());
                    }
                    statuses
                })
            })
            .collect();
        for left_out in (0..3).cycle().take(12) {
            service.rows(rows(left_out));
            let names: Vec<String> =
                (0..3).filter(|n| *n != left_out).map(|n| format!("n{n}")).collect();
            await_until("they are in use", SOON, || in_use(&proxy) == names);
        }
        is_over.store(true, Relaxed);
        for client in clients {
            let statuses = client.join().unwrap();
            assert!(!statuses.is_empty() && statuses.iter().all(|s| *s == 200), "{statuses:?}");
        }
    });
    quiet(&proxy);
}

/// Catches: engines that a reload forgets, such that stay though nobody asks for them any more, and
/// a source that a reload asks from the beginning though it is as it was.
#[test]
fn a_reload_keeps_what_was_found_until_the_sources_say_otherwise() {
    let (a, b) = (named("a"), named("b"));
    let (one, two) = (Service::start(json!([row("a", &a)])), Service::start(json!([])));
    let proxy = discovering(&[one.source("")]).start();
    assert_eq!(answers(&proxy, 1), "a");
    let success = count(&proxy, "success");
    assert!(proxy.reload_with(&discovering(&[one.source("")]).server("idle_timeout: 9s")));
    assert!(count(&proxy, "success") >= success, "the same source goes on");
    assert_eq!((answers(&proxy, 1).as_str(), a.connections()), ("a", 1));
    await_said(&proxy, 1, "discovery: backend a");
    // Another service, which names nobody yet.
    assert!(proxy.reload_with(&discovering(&[two.source("")])));
    assert_eq!((answers(&proxy, 1).as_str(), a.connections()), ("a", 1));
    await_looks(&proxy, "failure");
    assert_eq!(in_use(&proxy), ["a"]);
    two.rows(json!([row("b", &b)]));
    await_in_use(&proxy, &["b"]);
    // A file that is broken changes nothing.
    proxy.rewrite("discovery: {");
    assert!(!proxy.reload());
    assert_eq!(answers(&proxy, 1), "b");
    let without = Config::new().section("health_check: {enabled: false}");
    assert!(proxy.reload_with(&without.clone().backend(a.url(), "name: a")));
    assert_eq!(in_use(&proxy), ["a"]);
    assert!(!proxy.metrics().text.contains("llmproxy_discovery"));
}

/// Catches: a found backend that is the proxy itself, or whose certificates cannot be read, and
/// that takes the others with it.
#[test]
fn what_cannot_be_used_is_left_out() {
    let (a, scratch) = (named("a"), Scratch::new());
    let file = scratch.write("list.yaml", "");
    let source = format!("{{type: file, file: {{path: \"{}\"}}}}", file.display());
    let proxy = discovering(&[source]).start();
    proxy.post(CHATS, CHAT).assert_refused(503, "no_backend");
    let text = format!(
        "- {{name: a, url: \"{}\"}}\n- {{name: itself, url: \"http://{}\"}}\n\
         - {{name: tls, url: \"https://192.0.2.1\", tls: {{ca_file: /nonexistent}}}}\n",
        a.url(),
        proxy.addr(),
    );
    fs::write(&file, text).unwrap();
    await_in_use(&proxy, &["a"]);
    let of = |name: &'static str| {
        let event = proxy.await_event(name, move |event| {
            event["backend"] == name && event["message"] == "discovery: the backend is left out"
        });
        event["why"].as_str().unwrap().to_owned()
    };
    assert!(of("itself").contains("this proxy itself") && of("tls").contains("ca_file"));
    assert_eq!(answers(&proxy, 2), "aa");
}

/// Catches: a file that is replaced and not read, and one that is read half written.
#[test]
fn a_file_is_read_when_it_changes() {
    let (a, b) = (named("a"), named("b"));
    let scratch = Scratch::new();
    let file = scratch.file("list.yaml");
    let yaml = |backend: &Backend, name: &str| {
        format!("- name: {name}\n  url: {}\n  keepalive_timeout: 2s\n", backend.url())
    };
    // Only a change can be the reason for a look: the interval is long. It is not there yet.
    let source = format!("{{type: file, file: {{path: \"{}\", interval: 1h}}}}", file.display());
    let proxy = discovering(&[source]).start();
    fs::write(&file, yaml(&a, "a")).unwrap();
    await_in_use(&proxy, &["a"]);
    assert_eq!(answers(&proxy, 1), "a");
    fs::write(scratch.file("new"), yaml(&b, "b")).unwrap();
    fs::rename(scratch.file("new"), &file).unwrap();
    await_in_use(&proxy, &["b"]);
    let failures = count(&proxy, "failure");
    fs::write(&file, "- name: c\n  url: \"http://192.0.2").unwrap();
    await_until("it was read", SOON, || count(&proxy, "failure") > failures);
    assert_eq!((answers(&proxy, 1).as_str(), in_use(&proxy)), ("b", vec!["b".to_owned()]));
    fs::remove_file(&file).unwrap();
    let failures = count(&proxy, "failure");
    await_until("it is away", SOON, || count(&proxy, "failure") > failures);
    assert_eq!(answers(&proxy, 1), "b");
    let json = json!({"backends": [row("j", &a)]}).to_string();
    fs::write(&file, json).unwrap();
    await_in_use(&proxy, &["j"]);
}

/// Catches: a source that is not read and that stops a start, or of which nothing is said; and a
/// `check` that does not show who is asked.
#[test]
fn sources_that_are_not_read_load_with_a_word_on_what_does_the_same() {
    let list = "{type: static, static: {backends: [{url: \"http://192.0.2.1:8000\"}]}}";
    let config = discovering(&[
        list.to_owned(),
        "{type: kubernetes, kubernetes: {service: vllm}}".to_owned(),
        "{type: etcd, etcd: {prefix: /x}}".to_owned(),
        "{type: database, database: {driver: sqlite}}".to_owned(),
    ]);
    let proxy = config.start();
    assert_eq!(in_use(&proxy), ["192.0.2.1:8000"]);
    for word in ["headless service", "type: http", "type: file"] {
        await_until(word, SOON, || said(&proxy, word) > 0);
    }
    let scratch = Scratch::new();
    let path = scratch.write("config.yaml", config.yaml()).display().to_string();
    let ran = llmproxy(&["check", "--print", &path]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for part in ["type: static", "url: http://192.0.2.1:8000", "type: kubernetes", "type: etcd"] {
        assert!(ran.stdout.contains(part), "{part}: {ran:?}");
    }
    assert!(ran.stderr.contains("is not read"), "{ran:?}");
}
